//! What the pickles of PyTorch's state dicts may name: storages, tensors, and the calls that describe them.

use crate::pickle::{self, Id, Object};

use super::super::dtype::Dtype;
use super::TorchFault;

/// A pickle of a checkpoint.
pub(super) type Pickle<'a> = pickle::Pickle<'a, Torch>;
/// A value of one.
pub(super) type Value = pickle::Value<Torch>;

/// Axes of a tensor at most.
const AXES: usize = 8;

/// What a state dict's pickle holds besides plain values.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Torch {
    /// A function or class of the allowed ones.
    Global(Global),
    /// What a tensor's values lie in.
    Storage {
        /// The type of the values.
        dtype: Dtype,
        /// Its name in the file, a text.
        key: Id,
        /// How many values it has.
        len: u64,
    },
    /// A tensor.
    Tensor(Strided),
}

/// A tensor as a view of a storage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Strided {
    /// The storage.
    pub storage: Id,
    /// The first value's place in it.
    pub offset: u64,
    /// The shape.
    pub shape: Vec<u64>,
    /// Values from one place to the next along each axis.
    pub strides: Vec<u64>,
}

/// A function or class that a pickle may name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// A storage class.
    Storage(Dtype),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Global> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", storage) => Global::Storage(match storage {
                "DoubleStorage" => Dtype::F64,
                "FloatStorage" => Dtype::F32,
                "HalfStorage" => Dtype::F16,
                "BFloat16Storage" => Dtype::BF16,
                "LongStorage" => Dtype::I64,
                "IntStorage" => Dtype::I32,
                "ShortStorage" => Dtype::I16,
                "CharStorage" => Dtype::I8,
                "ByteStorage" => Dtype::U8,
                "BoolStorage" => Dtype::BOOL,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

impl Object for Torch {
    fn named(module: &str, name: &str) -> Option<Self> {
        Global::find(module, name).map(Torch::Global)
    }

    /// The storage that a persistent identity describes: `("storage", class, key, location, length)`, and in the former
    /// format what it is a part of.
    fn identified(pickle: &Pickle<'_>, id: Id) -> Option<Value> {
        let parts = pickle.list(id)?;
        let key = *parts.get(2)?;
        let part = |place: usize| Some(pickle.get(*parts.get(place)?));
        let (Some(Value::Object(Torch::Global(Global::Storage(dtype)))), Some(&len)) =
            (part(1), parts.get(4))
        else {
            return None;
        };
        pickle.text(key)?;
        let whole = matches!(part(5), None | Some(Value::None));
        (pickle.text(parts[0]) == Some("storage") && whole).then_some(Value::Object(
            Torch::Storage {
                dtype: *dtype,
                key,
                len: u64::try_from(pickle.int(len)?).ok()?,
            },
        ))
    }

    /// What a call of an allowed function describes.
    fn called(pickle: &Pickle<'_>, function: Id, arguments: Id) -> Option<Value> {
        let arguments = pickle.list(arguments)?;
        let Value::Object(Torch::Global(function)) = pickle.get(function) else {
            return None;
        };
        match function {
            // Entries follow as operations; from arguments, a short pickle could make any amount of copies.
            Global::OrderedDict => arguments.is_empty().then(|| Value::Dict(Vec::new())),
            Global::RebuildTensor => {
                let &[storage, offset, shape, strides, ..] = arguments else {
                    return None;
                };
                if !matches!(pickle.get(storage), Value::Object(Torch::Storage { .. })) {
                    return None;
                }
                Some(Value::Object(Torch::Tensor(Strided {
                    storage,
                    offset: count(pickle, offset)?,
                    shape: counts(pickle, shape)?,
                    strides: counts(pickle, strides)?,
                })))
            }
            Global::RebuildParameter => {
                let tensor = pickle.get(*arguments.first()?);
                matches!(tensor, Value::Object(Torch::Tensor(_))).then(|| tensor.clone())
            }
            Global::Storage(_) => None,
        }
    }

    /// The attributes that a state dict carries (its layers' versions) change nothing.
    fn built(pickle: &mut Pickle<'_>, object: Id, _: Id) -> bool {
        matches!(pickle.get(object), Value::Dict(_))
    }
}

fn count(pickle: &Pickle<'_>, id: Id) -> Option<u64> {
    u64::try_from(pickle.int(id)?).ok()
}

fn counts(pickle: &Pickle<'_>, id: Id) -> Option<Vec<u64>> {
    let items = pickle.list(id).filter(|items| items.len() <= AXES)?;
    items.iter().map(|&item| count(pickle, item)).collect()
}

impl From<pickle::Fault> for TorchFault {
    fn from(fault: pickle::Fault) -> Self {
        match fault {
            pickle::Fault::CutOff { at } => TorchFault::CutOff { at },
            pickle::Fault::TooMany { limit } => TorchFault::TooMany { limit },
            pickle::Fault::Global { name } => TorchFault::Global { name },
            pickle::Fault::Operation { operation, at } => TorchFault::Operation { operation, at },
            pickle::Fault::Stack { at } => TorchFault::Stack { at },
            pickle::Fault::Call { at } => TorchFault::Call { at },
            pickle::Fault::Identity { at } => TorchFault::Storage { at },
            pickle::Fault::State { at } => TorchFault::Attributes { at },
        }
    }
}

//! A pickle's values, as far as PyTorch's state dicts need them, and nothing executed.
//!
//! A pickle is a program for a stack machine that may call any function. This machine knows plain values, dictionaries
//! and lists, and four calls by name, each of which only describes a tensor; it refuses everything else with its name.
//! Values lie in an arena and refer to each other by index, so no nesting is deep and no cycle leaks; every operation is
//! at least a byte, so work and memory are bounded by the pickle's length, which the caller bounds.
//!
//! Reference: Python's `pickletools`, protocols 2 to 5.

use std::collections::HashMap;

use super::super::dtype::Dtype;
use super::TorchFault;

/// Index of a value in the arena.
pub(super) type Id = usize;

/// Values a pickle may make at most: hundreds of times what a large network's checkpoint has.
const VALUES: usize = 1_000_000;

/// Axes of a tensor at most.
const AXES: usize = 8;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number of 64 bits; longer ones are kept as none of a state dict's.
    Int(i64),
    /// A number.
    Float,
    /// A text.
    Text(String),
    /// A tuple or a list.
    List(Vec<Id>),
    /// A dictionary, in the order of its entries; a key may occur twice.
    Dict(Vec<(Id, Id)>),
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

/// The values of one pickle.
pub(super) struct Pickle {
    values: Vec<Value>,
    /// The value that the pickle is.
    pub root: Id,
    /// The bytes it took.
    pub length: usize,
}

impl Pickle {
    /// Reads the pickle at the start of `bytes`; what follows it is not looked at.
    pub fn read(bytes: &[u8]) -> Result<Pickle, TorchFault> {
        let mut machine = Machine {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = machine.run()?;
        Ok(Pickle {
            root,
            length: machine.at,
            values: machine.values,
        })
    }

    /// A value.
    pub fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// Every value, in the order in which they were made.
    pub fn all(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }

    /// A text.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at which the open marks stand.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id, TorchFault> {
        loop {
            let at = self.at;
            let operation = self.byte()?;
            match operation {
                // PROTO, FRAME: the protocol and a length say nothing that is needed.
                0x80 => {
                    self.take(1)?;
                }
                0x95 => {
                    self.take(8)?;
                }
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    self.pop()?;
                }
                b'1' => {
                    self.pop_to_mark()?;
                }
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()))?;
                }
                b'K' => {
                    let value = self.byte()?;
                    self.push(Value::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()))?;
                }
                0x8a => {
                    let length = self.byte()?.into();
                    let value = self.long(length)?;
                    self.push(value)?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Float)?;
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?) as usize;
                    self.push_text(length)?;
                }
                0x8c => {
                    let length = self.byte()?.into();
                    self.push_text(length)?;
                }
                // BINSTRING and SHORT_BINSTRING of protocol 2, as Python 2 wrote texts.
                b'T' => {
                    let length = u32::from_le_bytes(self.array()?) as usize;
                    self.push_text(length)?;
                }
                b'U' => {
                    let length = self.byte()?.into();
                    self.push_text(length)?;
                }
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b']' | b')' => self.push(Value::List(Vec::new()))?,
                b't' | b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::List(items))?;
                }
                0x85..=0x87 => {
                    let count = usize::from(operation - 0x84);
                    let items = self.pop_many(count)?;
                    self.push(Value::List(items))?;
                }
                b'd' => {
                    let items = self.pop_to_mark()?;
                    let pairs = pairs(&items).ok_or(TorchFault::Stack { at })?;
                    self.push(Value::Dict(pairs))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(&[item], at)?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend(&items, at)?;
                }
                b's' => {
                    let items = self.pop_many(2)?;
                    self.insert(&items, at)?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.insert(&items, at)?;
                }
                b'q' => {
                    let place = self.byte()?.into();
                    self.remember(place)?;
                }
                b'r' => {
                    let place = u32::from_le_bytes(self.array()?).into();
                    self.remember(place)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' => {
                    let place = self.byte()?.into();
                    self.recall(place, at)?;
                }
                b'j' => {
                    let place = u32::from_le_bytes(self.array()?).into();
                    self.recall(place, at)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let names = self.pop_many(2)?;
                    let (Value::Text(module), Value::Text(name)) =
                        (&self.values[names[0]], &self.values[names[1]])
                    else {
                        return Err(TorchFault::Stack { at });
                    };
                    let (module, name) = (module.clone(), name.clone());
                    self.global(&module, &name)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id).ok_or(TorchFault::Storage { at })?;
                    self.push(storage)?;
                }
                b'R' => {
                    let call = self.pop_many(2)?;
                    let value = self.call(call[0], call[1]).ok_or(TorchFault::Call { at })?;
                    self.push(value)?;
                }
                // BUILD: the attributes that a state dict carries (its layers' versions) change nothing.
                b'b' => {
                    self.pop()?;
                    let object = self.top()?;
                    if !matches!(self.values[object], Value::Dict(_)) {
                        return Err(TorchFault::Attributes { at });
                    }
                }
                operation => return Err(TorchFault::Operation { operation, at }),
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&[u8], TorchFault> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else {
            return Err(TorchFault::CutOff { at: self.at });
        };
        self.at += count;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, TorchFault> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TorchFault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// The text up to the end of the line.
    fn line(&mut self) -> Result<String, TorchFault> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(TorchFault::CutOff { at: self.at });
        };
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 1;
        Ok(line)
    }

    /// A whole number of `length` bytes, little-endian, in two's complement.
    fn long(&mut self, length: usize) -> Result<Value, TorchFault> {
        let bytes = self.take(length)?;
        if length > 8 {
            // PyTorch's magic number and nothing else in a state dict.
            return Ok(Value::Float);
        }
        let negative = bytes.last().is_some_and(|&last| last >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..length].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn push(&mut self, value: Value) -> Result<(), TorchFault> {
        if self.values.len() >= VALUES {
            return Err(TorchFault::TooMany { limit: VALUES });
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    fn push_text(&mut self, length: usize) -> Result<(), TorchFault> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Value::Text(text))
    }

    /// The stack's floor is the innermost open mark: what lies below belongs to somebody else.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, TorchFault> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.floor() => Ok(top),
            _ => Err(TorchFault::Stack { at: self.at }),
        }
    }

    fn pop(&mut self) -> Result<Id, TorchFault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, TorchFault> {
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= self.floor() => Ok(self.stack.split_off(start)),
            _ => Err(TorchFault::Stack { at: self.at }),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, TorchFault> {
        let Some(mark) = self.marks.pop() else {
            return Err(TorchFault::Stack { at: self.at });
        };
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn extend(&mut self, items: &[Id], at: usize) -> Result<(), TorchFault> {
        let list = self.top()?;
        match &mut self.values[list] {
            Value::List(list) => list.extend(items),
            _ => return Err(TorchFault::Stack { at }),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id], at: usize) -> Result<(), TorchFault> {
        let pairs = pairs(items).ok_or(TorchFault::Stack { at })?;
        let dict = self.top()?;
        match &mut self.values[dict] {
            Value::Dict(dict) => dict.extend(pairs),
            _ => return Err(TorchFault::Stack { at }),
        }
        Ok(())
    }

    fn remember(&mut self, place: u64) -> Result<(), TorchFault> {
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u64, at: usize) -> Result<(), TorchFault> {
        let known = *self.memo.get(&place).ok_or(TorchFault::Stack { at })?;
        self.stack.push(known);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), TorchFault> {
        match Global::find(module, name) {
            Some(global) => self.push(Value::Global(global)),
            None => Err(TorchFault::Global {
                name: format!("{module}.{name}"),
            }),
        }
    }

    /// The storage that a persistent identity describes: `("storage", class, key, location, length)`, and in the former
    /// format what it is a part of.
    fn storage(&self, id: Id) -> Option<Value> {
        let Value::List(parts) = &self.values[id] else {
            return None;
        };
        let key = *parts.get(2)?;
        let part = |place: usize| Some(&self.values[*parts.get(place)?]);
        let (
            Some(Value::Text(kind)),
            Some(Value::Global(Global::Storage(dtype))),
            Some(Value::Text(_)),
            Some(Value::Int(len)),
        ) = (part(0), part(1), part(2), part(4))
        else {
            return None;
        };
        let whole = matches!(part(5), None | Some(Value::None));
        (kind == "storage" && whole).then_some(Value::Storage {
            dtype: *dtype,
            key,
            len: u64::try_from(*len).ok()?,
        })
    }

    /// What a call of an allowed function describes.
    fn call(&self, function: Id, arguments: Id) -> Option<Value> {
        let Value::List(arguments) = &self.values[arguments] else {
            return None;
        };
        match &self.values[function] {
            // Entries follow as operations; from arguments, a short pickle could make any amount of copies.
            Value::Global(Global::OrderedDict) => {
                arguments.is_empty().then(|| Value::Dict(Vec::new()))
            }
            Value::Global(Global::RebuildTensor) => {
                let &[storage, offset, shape, strides, ..] = &arguments[..] else {
                    return None;
                };
                if !matches!(self.values[storage], Value::Storage { .. }) {
                    return None;
                }
                Some(Value::Tensor(Strided {
                    storage,
                    offset: self.count(offset)?,
                    shape: self.counts(shape)?,
                    strides: self.counts(strides)?,
                }))
            }
            Value::Global(Global::RebuildParameter) => {
                let tensor = &self.values[*arguments.first()?];
                matches!(tensor, Value::Tensor(_)).then(|| tensor.clone())
            }
            _ => None,
        }
    }

    fn count(&self, id: Id) -> Option<u64> {
        match self.values[id] {
            Value::Int(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    fn counts(&self, id: Id) -> Option<Vec<u64>> {
        match &self.values[id] {
            Value::List(items) if items.len() <= AXES => {
                items.iter().map(|&item| self.count(item)).collect()
            }
            _ => None,
        }
    }
}

fn pairs(items: &[Id]) -> Option<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|&[key, value]| (key, value)).collect())
}

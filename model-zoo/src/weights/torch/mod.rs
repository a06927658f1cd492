//! PyTorch's checkpoints (`.pth`, `.pt`), read without executing anything.
//!
//! Both formats hold a pickle that describes tensors and the bytes that they lie in: the present one as members of a zip
//! archive, the former one behind each other. The pickle is only interpreted (`model_zoo::pickle`, and `pickle.rs` here for what is PyTorch's); a checkpoint that needs more
//! than tensors, dictionaries and plain values is refused with the name of what it asks for. As with safetensors, no
//! number from the file sizes an allocation before it was checked against the file, and a tensor is read when it is
//! asked for.
//!
//! Reference: `torch.serialization`, formats 1001 (former) and zip.

mod pickle;
mod zip;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use indexmap::IndexMap;

use super::container::{check_finite, open_regular};
use super::dtype::{Dtype, as_f32};
use super::error::WeightError;
use super::source::Source;
use pickle::{Pickle, Strided, Torch, Value};

use crate::pickle::Id;

/// The longest pickle that is read, in bytes; a network of 1,000 tensors has one of 100 KB.
const PICKLE: u64 = 16 << 20;

/// How a file of the former format begins: a pickle of PyTorch's magic number.
const FORMER: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The former format's version, the only one there was.
const FORMER_VERSION: i64 = 1001;

/// How often all of a file's bytes may be read through its tensors: tied weights are read twice, and a small file
/// must not be read for hours.
const VIEWS: u64 = 16;

/// Names under which trainers put a state dict beside other things.
const INSIDE: [&str; 4] = ["state_dict", "model", "model_state_dict", "net"];

/// What is wrong with a PyTorch checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TorchFault {
    /// The archive is damaged or not PyTorch's.
    #[error("the zip archive cannot be read: {0}; download the file again")]
    Zip(&'static str),
    /// Two members of one name, so that readers may disagree.
    #[error("the zip archive has two members called {name:?}; download the file again")]
    Twice {
        /// The name.
        name: String,
    },
    /// An archive without the pickle that describes tensors.
    #[error(
        "is a zip archive without data.pkl, so it is not a PyTorch checkpoint (or it is a TorchScript program); save the network's state dict with torch.save"
    )]
    NoPickle,
    /// Values in another byte order.
    #[error("its values are big-endian; save it again on a little-endian machine")]
    BigEndian,
    /// A pickle longer than any checkpoint needs.
    #[error("its pickle has {length} bytes, over the limit of {limit}; save the state dict alone")]
    TooLong {
        /// Its length.
        length: u64,
        /// The most that is read.
        limit: u64,
    },
    /// More values than any checkpoint needs.
    #[error("its pickle makes more than {limit} values; save the state dict alone")]
    TooMany {
        /// The most that is made.
        limit: usize,
    },
    /// The pickle ends in the middle.
    #[error("its pickle is cut off at byte {at}; download the file again")]
    CutOff {
        /// Where.
        at: usize,
    },
    /// The pickle calls for a function or class that is not needed for tensors.
    #[error(
        "its pickle asks for `{}`, which is neither a tensor nor a plain value; nothing was executed; save the state dict alone (torch.save(model.state_dict(), FILE)), or as safetensors",
        name.escape_debug().take(120).collect::<String>()
    )]
    Global {
        /// Its name.
        name: String,
    },
    /// An operation that no state dict needs.
    #[error(
        "its pickle has the operation {operation:#04x} at byte {at}, which no state dict needs; nothing was executed; save the state dict alone"
    )]
    Operation {
        /// The operation.
        operation: u8,
        /// Where.
        at: usize,
    },
    /// An operation on values that are not there or of another kind.
    #[error("its pickle is broken at byte {at}; download the file again")]
    Stack {
        /// Where.
        at: usize,
    },
    /// A call of an allowed function with arguments it does not take.
    #[error(
        "its pickle makes something other than a tensor or a dictionary at byte {at}; nothing was executed; save the state dict alone"
    )]
    Call {
        /// Where.
        at: usize,
    },
    /// A persistent identity that describes no storage.
    #[error(
        "its pickle names a storage in an unknown way at byte {at}; save it again with PyTorch 1.6 or later"
    )]
    Storage {
        /// Where.
        at: usize,
    },
    /// Attributes for something that is not a dictionary.
    #[error(
        "its pickle sets attributes of an object at byte {at}; nothing was executed; save the state dict alone"
    )]
    Attributes {
        /// Where.
        at: usize,
    },
    /// The former format in another version.
    #[error(
        "is in an unknown version of PyTorch's old format; save it again with PyTorch 1.6 or later"
    )]
    Version,
    /// What the file holds is not a dictionary of tensors.
    #[error(
        "holds no state dict: {found}; save the network's state dict alone (torch.save(model.state_dict(), FILE))"
    )]
    NotAStateDict {
        /// What it holds.
        found: String,
    },
    /// Tensors that show the same bytes again and again.
    #[error(
        "its tensors are {bytes} bytes together, many times the file's {size}: they show the same values again and again; save each tensor's own values (tensor.clone())"
    )]
    Views {
        /// Bytes of all tensors so far.
        bytes: u64,
        /// The file's size.
        size: u64,
    },
    /// A tensor that does not lie in its storage.
    #[error(
        "tensor {key:?} of shape {shape:?} reaches outside its storage; download the file again"
    )]
    Outside {
        /// The tensor.
        key: String,
        /// Its shape.
        shape: Vec<u64>,
    },
}

/// Why reading stopped: the system, or the file's contents.
#[derive(Debug)]
enum Stop {
    Io(io::Error),
    Fault(TorchFault),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Io(error)
    }
}

impl From<TorchFault> for Stop {
    fn from(fault: TorchFault) -> Self {
        Stop::Fault(fault)
    }
}

type Read<T> = Result<T, Stop>;

/// An open PyTorch checkpoint.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    file: Mutex<File>,
    tensors: IndexMap<String, Placed>,
}

/// A tensor and where its values are.
#[derive(Debug, Clone)]
struct Placed {
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// The bytes from its first value to its last, counted from the file's start.
    bytes: Range<u64>,
}

impl TorchFile {
    /// Whether a file begins like a PyTorch checkpoint of either format.
    pub fn begins(start: &[u8]) -> bool {
        start.starts_with(b"PK\x03\x04") || start.starts_with(FORMER)
    }

    /// Opens a checkpoint and reads its pickle; no tensor is read.
    pub fn open(path: &Path) -> Result<TorchFile, WeightError> {
        let (file, size) = open_regular(path)?;
        let stop = |stop| match stop {
            Stop::Io(source) => WeightError::Io {
                file: path.display().to_string(),
                action: "read",
                source,
            },
            Stop::Fault(fault) => WeightError::Torch {
                file: path.display().to_string(),
                fault,
            },
        };
        let tensors = tensors(&file, size).map_err(stop)?;
        Ok(TorchFile {
            path: path.to_path_buf(),
            file: Mutex::new(file),
            tensors,
        })
    }

    fn placed(&self, key: &str) -> Result<&Placed, WeightError> {
        self.tensors.get(key).ok_or_else(|| WeightError::NoSuchKey {
            file: self.origin(),
            key: key.to_owned(),
        })
    }

    fn bytes(&self, placed: &Placed) -> Result<Vec<u8>, WeightError> {
        let length = placed.bytes.end - placed.bytes.start;
        let read = || -> io::Result<Vec<u8>> {
            // A panic elsewhere cannot leave the handle in a bad state: every read seeks first.
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(placed.bytes.start))?;
            // `open` has checked that the file holds these bytes.
            let mut bytes = vec![0; length as usize];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|source| WeightError::Io {
            file: self.origin(),
            action: "read",
            source,
        })?;
        let width = (placed.dtype.bits() / 8) as usize;
        Ok(gathered(bytes, &placed.shape, &placed.strides, width))
    }
}

impl Source for TorchFile {
    fn origin(&self) -> String {
        self.path.display().to_string()
    }

    fn keys(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        self.tensors.get(key).map(|placed| placed.shape.clone())
    }

    fn dtype(&self, key: &str) -> Option<Dtype> {
        self.tensors.get(key).map(|placed| placed.dtype)
    }

    fn read(&self, key: &str) -> Result<Vec<f32>, WeightError> {
        let placed = self.placed(key)?;
        let bytes = self.bytes(placed)?;
        let values = as_f32(placed.dtype, &bytes).ok_or_else(|| WeightError::WrongDtype {
            file: self.origin(),
            key: key.to_owned(),
            found: placed.dtype.name(),
        })?;
        match check_finite(key, &values) {
            None => Ok(values),
            Some(found) => Err(WeightError::NotFinite {
                file: self.origin(),
                tensors: vec![found],
            }),
        }
    }

    fn raw(&self, key: &str) -> Result<Vec<u8>, WeightError> {
        self.bytes(self.placed(key)?)
    }
}

/// The bytes of a tensor's values in row-major order, from those between its first and its last value.
fn gathered(bytes: Vec<u8>, shape: &[usize], strides: &[usize], width: usize) -> Vec<u8> {
    let count: usize = shape.iter().product();
    let mut dense = 1;
    let contiguous = shape.iter().zip(strides).rev().all(|(&side, &stride)| {
        let fits = side <= 1 || stride == dense;
        dense *= side;
        fits
    });
    if contiguous || count == 0 {
        return bytes;
    }
    let mut values = Vec::with_capacity(count * width);
    let mut place = vec![0; shape.len()];
    for _ in 0..count {
        let at: usize = place.iter().zip(strides).map(|(p, s)| p * s).sum();
        values.extend_from_slice(&bytes[at * width..(at + 1) * width]);
        for axis in (0..shape.len()).rev() {
            place[axis] += 1;
            if place[axis] < shape[axis] {
                break;
            }
            place[axis] = 0;
        }
    }
    values
}

fn tensors(file: &File, size: u64) -> Read<IndexMap<String, Placed>> {
    let mut start = Vec::new();
    let mut reader = file;
    reader.seek(SeekFrom::Start(0))?;
    reader.take(FORMER.len() as u64).read_to_end(&mut start)?;
    if start == FORMER {
        former(file, size)
    } else {
        zipped(file, size)
    }
}

/// The present format: `<name>/data.pkl` and `<name>/data/<key>` in a zip archive.
fn zipped(file: &File, size: u64) -> Read<IndexMap<String, Placed>> {
    let members = zip::members(file, size)?;
    let suffix = "/data.pkl";
    let mut pickles = members.keys().filter(|name| name.ends_with(suffix));
    let (Some(name), None) = (pickles.next(), pickles.next()) else {
        return Err(TorchFault::NoPickle.into());
    };
    let root = &name[..name.len() - suffix.len()];
    let member = |name: &str| members.get(&format!("{root}/{name}")).cloned();
    if let Some(order) = member("byteorder")
        && member_bytes(file, &order)? != b"little"
    {
        return Err(TorchFault::BigEndian.into());
    }
    let pickle = member_bytes(file, &members[name])?;
    let pickle = Pickle::read(&pickle).map_err(TorchFault::from)?;
    let storage = |key: &str| member(&format!("data/{key}"));
    placed(&pickle, size, storage)
}

fn member_bytes(mut file: &File, range: &Range<u64>) -> Read<Vec<u8>> {
    let length = range.end - range.start;
    if length > PICKLE {
        let limit = PICKLE;
        return Err(TorchFault::TooLong { length, limit }.into());
    }
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(range.start))?;
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The former format: pickles of a magic number, a version, the machine, the object and the storages' keys, then for each
/// key the count of values (8 bytes) and the values.
fn former(mut file: &File, size: u64) -> Read<IndexMap<String, Placed>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(PICKLE).read_to_end(&mut bytes)?;
    let mut at = FORMER.len();
    let mut next = || -> Result<Pickle<'_>, TorchFault> {
        let pickle = Pickle::read(&bytes[at..])?;
        at += pickle.length;
        Ok(pickle)
    };
    let version = next()?;
    if *version.get(version.root) != Value::Int(FORMER_VERSION) {
        return Err(TorchFault::Version.into());
    }
    let machine = next()?;
    if let Value::Dict(entries) = machine.get(machine.root) {
        let big = entries.iter().any(|&(key, value)| {
            machine.text(key) == Some("little_endian") && *machine.get(value) == Value::Bool(false)
        });
        if big {
            return Err(TorchFault::BigEndian.into());
        }
    }
    let object = next()?;
    let keys = next()?;
    let Value::List(order) = keys.get(keys.root) else {
        return Err(TorchFault::Version.into());
    };
    // The width of a storage's values stands in the object's pickle.
    let widths: HashMap<&str, u64> = object
        .all()
        .filter_map(|value| match value {
            Value::Object(Torch::Storage { dtype, key, .. }) => {
                Some((object.text(*key)?, dtype.bits() / 8))
            }
            _ => None,
        })
        .collect();
    let mut places: HashMap<String, Range<u64>> = HashMap::new();
    let mut start = at as u64;
    for &key in order {
        let key = keys.text(key).ok_or(TorchFault::Version)?;
        let width = *widths.get(key).ok_or(TorchFault::Version)?;
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut count)?;
        let first = start + 8;
        let end = u64::from_le_bytes(count)
            .checked_mul(width)
            .and_then(|length| first.checked_add(length))
            .filter(|&end| end <= size)
            .ok_or(TorchFault::CutOff { at: start as usize })?;
        places.insert(key.to_owned(), first..end);
        start = end;
    }
    placed(&object, size, |key| places.get(key).cloned())
}

/// The state dict's tensors; `storage` gives the bytes of a storage.
fn placed(
    pickle: &Pickle<'_>,
    size: u64,
    storage: impl Fn(&str) -> Option<Range<u64>>,
) -> Read<IndexMap<String, Placed>> {
    let mut tensors = IndexMap::new();
    let mut bytes = 0u64;
    for (key, strided) in state_dict(pickle)? {
        let outside = || TorchFault::Outside {
            key: key.to_owned(),
            shape: strided.shape.clone(),
        };
        let placed = place(pickle, strided, &storage).ok_or_else(outside)?;
        bytes = bytes.saturating_add(placed.bytes.end - placed.bytes.start);
        if bytes > size.saturating_mul(VIEWS) {
            return Err(TorchFault::Views { bytes, size }.into());
        }
        if tensors.insert(key.to_owned(), placed).is_some() {
            let name = key.to_owned();
            return Err(TorchFault::Twice { name }.into());
        }
    }
    Ok(tensors)
}

/// The names and tensors of the file's dictionary, or of the one inside it that trainers put there.
fn state_dict<'a>(pickle: &'a Pickle<'_>) -> Result<Vec<(&'a str, &'a Strided)>, TorchFault> {
    let found = |found: String| TorchFault::NotAStateDict { found };
    let Value::Dict(entries) = pickle.get(pickle.root) else {
        return Err(found("its pickle is not a dictionary".to_owned()));
    };
    let is_dict = |id: Id| matches!(pickle.get(id), Value::Dict(_));
    let inside = entries.iter().find(|&&(key, value)| {
        pickle.text(key).is_some_and(|key| INSIDE.contains(&key)) && is_dict(value)
    });
    let entries = match inside.map(|&(_, value)| pickle.get(value)) {
        Some(Value::Dict(entries)) => entries,
        _ => entries,
    };
    if entries.is_empty() {
        return Err(found("its dictionary is empty".to_owned()));
    }
    let entry = |&(key, value): &(Id, Id)| {
        let Some(key) = pickle.text(key) else {
            return Err(found("a key of its dictionary is not text".to_owned()));
        };
        match pickle.get(value) {
            Value::Object(Torch::Tensor(tensor)) => Ok((key, tensor)),
            _ => {
                let key: String = key.escape_debug().take(120).collect();
                Err(found(format!("entry \"{key}\" is not a tensor")))
            }
        }
    };
    entries.iter().map(entry).collect()
}

/// Where a tensor's values are; none where they are not within their storage, or more than it has.
fn place(
    pickle: &Pickle<'_>,
    tensor: &Strided,
    storage: impl Fn(&str) -> Option<Range<u64>>,
) -> Option<Placed> {
    let Value::Object(Torch::Storage { dtype, key, len }) = pickle.get(tensor.storage) else {
        return None;
    };
    if tensor.shape.len() != tensor.strides.len() {
        return None;
    }
    let bytes = storage(pickle.text(*key)?)?;
    let width = dtype.bits() / 8;
    let held = (bytes.end - bytes.start) / width;
    let count = tensor
        .shape
        .iter()
        .try_fold(1u64, |count, &side| count.checked_mul(side))?;
    // A view that repeats values would let a small file ask for any amount of memory.
    if count > held || *len > held {
        return None;
    }
    let mut last = 0u64;
    for (&side, &stride) in tensor.shape.iter().zip(&tensor.strides) {
        last = last.checked_add(side.saturating_sub(1).checked_mul(stride)?)?;
    }
    let reach = if count == 0 { 0 } else { last.checked_add(1)? };
    let end = tensor.offset.checked_add(reach)?;
    if end > held {
        return None;
    }
    let sides = |sides: &[u64]| -> Option<Vec<usize>> {
        sides.iter().map(|&side| side.try_into().ok()).collect()
    };
    Some(Placed {
        dtype: *dtype,
        shape: sides(&tensor.shape)?,
        strides: sides(&tensor.strides)?,
        bytes: bytes.start + tensor.offset * width..bytes.start + end * width,
    })
}

#[cfg(test)]
mod tests;

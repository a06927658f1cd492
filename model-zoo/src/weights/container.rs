//! The safetensors container: 8 bytes of header length (little-endian), a JSON header, the tensors' bytes.
//!
//! The header is parsed here and not by the `safetensors` crate, whose errors leave out the tensor and the numbers, and
//! which cannot see a key that occurs twice. No number from the file sizes an allocation before it was checked against
//! the file's own size; a tensor is read when it is asked for, so memory stays at one tensor.
//!
//! Reference: the format section of the safetensors project's README.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use burn::tensor::{bf16, f16};
use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

use super::error::{Fault, Foreign, NotFinite, WeightError};
use super::source::Source;

/// The longest header that the format allows, in bytes.
pub const HEADER_LIMIT: u64 = 100_000_000;

/// Bytes of the header length.
const LENGTH_BYTES: u64 = 8;

/// Bytes read at once; a multiple of every value's size.
const CHUNK: usize = 1 << 16;

macro_rules! dtypes {
    ($($name:ident $bits:literal),* $(,)?) => {
        /// The dtypes of the format. Only the floats of 16 to 64 bits can be weights.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(non_camel_case_types)] // The format's own spelling.
        pub enum Dtype {
            $(#[doc = concat!("`", stringify!($name), "`")] $name),*
        }

        impl Dtype {
            /// The dtype of that spelling.
            pub fn parse(name: &str) -> Option<Dtype> {
                match name {
                    $(stringify!($name) => Some(Dtype::$name),)*
                    _ => None,
                }
            }

            /// The format's spelling.
            pub fn name(self) -> &'static str {
                match self {
                    $(Dtype::$name => stringify!($name)),*
                }
            }

            /// Bits of one value.
            pub fn bits(self) -> u64 {
                match self {
                    $(Dtype::$name => $bits),*
                }
            }
        }
    };
}

dtypes! {
    BOOL 8, U8 8, I8 8, I16 16, U16 16, I32 32, U32 32, I64 64, U64 64,
    F4 4, F6_E2M3 6, F6_E3M2 6, F8_E5M2 8, F8_E4M3 8, F8_E8M0 8, F8_E4M3FNUZ 8, F8_E5M2FNUZ 8,
    F16 16, BF16 16, F32 32, F64 64, C64 64,
}

/// One tensor of a file, as its header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// How its values are stored.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its bytes in the file, counted from the file's start.
    pub bytes: Range<u64>,
}

/// An open safetensors file whose header has been checked.
#[derive(Debug)]
pub struct Container {
    path: PathBuf,
    // One handle for all reads, so that a file replaced after `open` cannot mix two checkpoints.
    file: Mutex<File>,
    metadata: BTreeMap<String, String>,
    entries: IndexMap<String, Entry>,
}

impl Container {
    /// Opens a file and checks its header against its size; no tensor is read.
    pub fn open(path: &Path) -> Result<Container, WeightError> {
        let (file, size) = open_regular(path)?;
        let malformed = |fault| WeightError::Malformed {
            file: path.display().to_string(),
            fault,
        };

        let mut start = Vec::new();
        let unreadable = |source| io_error(path, "read", source);
        (&file)
            .take(64)
            .read_to_end(&mut start)
            .map_err(unreadable)?;
        let length = header_length(&start, size).map_err(malformed)?;

        let mut header = Vec::new();
        (&file)
            .seek(SeekFrom::Start(LENGTH_BYTES))
            .map_err(unreadable)?;
        (&file)
            .take(length)
            .read_to_end(&mut header)
            .map_err(unreadable)?;
        let data = LENGTH_BYTES + length..size;
        let (metadata, entries) = parse_header(&header, data).map_err(malformed)?;
        Ok(Container {
            path: path.to_path_buf(),
            file: Mutex::new(file),
            metadata,
            entries,
        })
    }

    /// The file's free-form metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Every tensor by name, in the header's order.
    pub fn entries(&self) -> &IndexMap<String, Entry> {
        &self.entries
    }

    fn entry(&self, key: &str) -> Result<&Entry, WeightError> {
        self.entries.get(key).ok_or_else(|| WeightError::NoSuchKey {
            file: self.origin(),
            key: key.to_string(),
        })
    }

    fn read_values(&self, key: &str, entry: &Entry) -> Result<Vec<f32>, WeightError> {
        let convert = conversion(entry.dtype).ok_or_else(|| WeightError::WrongDtype {
            file: self.origin(),
            key: key.to_string(),
            found: entry.dtype.name(),
        })?;
        let unreadable = |source| io_error(&self.path, "read", source);
        // A panic elsewhere cannot leave the handle in a bad state: every read seeks first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(entry.bytes.start))
            .map_err(unreadable)?;
        // `open` has checked that the file holds these bytes.
        let mut values = Vec::with_capacity(entry.shape.iter().product());
        let mut buffer = vec![0; CHUNK];
        let mut left = entry.bytes.end - entry.bytes.start;
        while left > 0 {
            let chunk = &mut buffer[..left.min(CHUNK as u64) as usize];
            file.read_exact(chunk).map_err(unreadable)?;
            convert(chunk, &mut values);
            left -= chunk.len() as u64;
        }
        Ok(values)
    }
}

impl Source for Container {
    fn origin(&self) -> String {
        self.path.display().to_string()
    }

    fn keys(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        self.entries.get(key).map(|entry| entry.shape.clone())
    }

    fn dtype(&self, key: &str) -> Option<Dtype> {
        self.entries.get(key).map(|entry| entry.dtype)
    }

    fn raw(&self, key: &str) -> Result<Vec<u8>, WeightError> {
        let bytes = &self.entry(key)?.bytes;
        let unreadable = |source| io_error(&self.path, "read", source);
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(bytes.start))
            .map_err(unreadable)?;
        // `open` has checked that the file holds these bytes.
        let mut read = vec![0; (bytes.end - bytes.start) as usize];
        file.read_exact(&mut read).map_err(unreadable)?;
        Ok(read)
    }

    fn read(&self, key: &str) -> Result<Vec<f32>, WeightError> {
        let values = self.read_values(key, self.entry(key)?)?;
        match check_finite(key, &values) {
            None => Ok(values),
            Some(found) => Err(WeightError::NotFinite {
                file: self.origin(),
                tensors: vec![found],
            }),
        }
    }
}

type Convert = fn(&[u8], &mut Vec<f32>);

/// How values of a dtype become f32; none for those that are no weights.
fn conversion(dtype: Dtype) -> Option<Convert> {
    Some(match dtype {
        Dtype::F32 => |bytes, out| out.extend(each(bytes).map(f32::from_le_bytes)),
        Dtype::F16 => |bytes, out| out.extend(each(bytes).map(|b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => {
            |bytes, out| out.extend(each(bytes).map(|b| bf16::from_le_bytes(b).to_f32()))
        }
        Dtype::F64 => |bytes, out| out.extend(each(bytes).map(|b| f64::from_le_bytes(b) as f32)),
        _ => return None,
    })
}

/// Little-endian values as f32; none for dtypes that are no weights.
pub(super) fn as_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let mut values = Vec::with_capacity(bytes.len() / (dtype.bits() as usize / 8).max(1));
    conversion(dtype)?(bytes, &mut values);
    Some(values)
}

/// f32 values as little-endian values of a dtype, rounded to nearest; none for dtypes that are no weights.
pub fn from_f32(dtype: Dtype, values: &[f32]) -> Option<Vec<u8>> {
    let values = values.iter();
    Some(match dtype {
        Dtype::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect(),
        Dtype::BF16 => values
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect(),
        Dtype::F64 => values.flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
        _ => return None,
    })
}

/// The count of values that are NaN or infinite, where there are any.
pub(super) fn check_finite(key: &str, values: &[f32]) -> Option<NotFinite> {
    let first = values.iter().position(|value| !value.is_finite())?;
    Some(NotFinite {
        key: key.to_string(),
        values: values.len(),
        nan: values.iter().filter(|value| value.is_nan()).count(),
        infinite: values.iter().filter(|value| value.is_infinite()).count(),
        first,
    })
}

fn each<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// The header's length from the file's first bytes, or what the file is instead.
fn header_length(start: &[u8], file_size: u64) -> Result<u64, Fault> {
    let length = start.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let fits = length.is_some_and(|length| {
        length <= HEADER_LIMIT && length <= file_size.saturating_sub(LENGTH_BYTES)
    });
    // A header of 640 bytes begins like a pickle: the length decides first, the magic only where it makes no sense.
    if !fits && let Some(foreign) = foreign(start) {
        return Err(Fault::Foreign(foreign));
    }
    match length {
        None => Err(Fault::TooSmall { bytes: file_size }),
        Some(0) => Err(Fault::HeaderEmpty),
        Some(length) if length > HEADER_LIMIT => Err(Fault::HeaderOverLimit {
            length,
            limit: HEADER_LIMIT,
        }),
        Some(length) if !fits => Err(Fault::HeaderPastEnd { length, file_size }),
        Some(length) => Ok(length),
    }
}

fn foreign(start: &[u8]) -> Option<Foreign> {
    let text = start
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(start)
        .trim_ascii_start();
    match start {
        [b'P', b'K', 3 | 5, 4 | 6, ..] => Some(Foreign::Zip),
        // PROTO opcode with the protocols that PyTorch has written.
        [0x80, 2..=5, ..] => Some(Foreign::Pickle),
        _ if start.starts_with(b"version https://git-lfs") => Some(Foreign::LfsPointer),
        _ if text.starts_with(b"<") => Some(Foreign::Html),
        _ => None,
    }
}

type Header = (BTreeMap<String, String>, IndexMap<String, Entry>);

/// `data` is the range of the file behind the header.
fn parse_header(header: &[u8], data: Range<u64>) -> Result<Header, Fault> {
    let text = std::str::from_utf8(header).map_err(|error| Fault::NotUtf8 {
        at: error.valid_up_to(),
    })?;
    let json: Json = serde_json::from_str(text).map_err(|error| {
        let detail = error.to_string();
        // serde_json stops at 128 levels and has no other mark for it.
        if detail.contains("recursion limit") {
            Fault::Nesting
        } else {
            Fault::NotJson { detail }
        }
    })?;
    let found = json.kind();
    let Json::Object(members) = json else {
        return Err(Fault::NotObject { found });
    };
    unique(&members)?;

    let mut metadata = BTreeMap::new();
    let mut entries = IndexMap::with_capacity(members.len());
    for (key, value) in members {
        if key == "__metadata__" {
            metadata = parse_metadata(value)?;
        } else {
            let entry = parse_entry(&key, value)?;
            entries.insert(key, entry);
        }
    }
    check_cover(&entries, data.end - data.start)?;
    for entry in entries.values_mut() {
        entry.bytes = data.start + entry.bytes.start..data.start + entry.bytes.end;
    }
    Ok((metadata, entries))
}

fn unique(members: &[(String, Json)]) -> Result<(), Fault> {
    let mut seen = HashSet::with_capacity(members.len());
    match members.iter().find(|(key, _)| !seen.insert(key)) {
        None => Ok(()),
        Some((key, _)) => Err(Fault::Duplicate { key: key.clone() }),
    }
}

fn parse_metadata(value: Json) -> Result<BTreeMap<String, String>, Fault> {
    let found = value.kind();
    let Json::Object(members) = value else {
        return Err(Fault::MetadataNotObject { found });
    };
    unique(&members)?;
    members
        .into_iter()
        .map(|(key, value)| match value {
            Json::String(text) => Ok((key, text)),
            other => Err(Fault::Metadata {
                key,
                found: other.kind(),
            }),
        })
        .collect()
}

/// One tensor's description; its byte range is still counted from the start of the data.
fn parse_entry(tensor: &str, value: Json) -> Result<Entry, Fault> {
    let tensor = || tensor.to_string();
    let found = value.kind();
    let Json::Object(members) = value else {
        return Err(Fault::EntryNotObject {
            tensor: tensor(),
            found,
        });
    };
    unique(&members)?;
    let field = |field: &'static str| {
        let member = members.iter().find(|(key, _)| key == field);
        member
            .map(|(_, value)| value)
            .ok_or_else(|| Fault::MissingField {
                tensor: tensor(),
                field,
            })
    };
    let wrong = |field, found: String, expected| Fault::Field {
        tensor: tensor(),
        field,
        found,
        expected,
    };
    let numbers = |name, expected| {
        let value = field(name)?;
        let Json::Array(items) = value else {
            return Err(wrong(name, value.to_string(), expected));
        };
        let number = |item: &Json| {
            item.as_u64()
                .ok_or_else(|| wrong(name, item.to_string(), expected))
        };
        items
            .iter()
            .map(number)
            .collect::<Result<Vec<u64>, Fault>>()
    };

    let dtype = match field("dtype")? {
        Json::String(name) => Dtype::parse(name).ok_or_else(|| Fault::UnknownDtype {
            tensor: tensor(),
            found: name.clone(),
        })?,
        other => return Err(wrong("dtype", other.to_string(), "a string")),
    };
    let shape = numbers("shape", "a list of whole numbers of at least 0")?;
    let offsets = numbers("data_offsets", "two whole numbers")?;
    let [start, end] = offsets[..] else {
        return Err(wrong(
            "data_offsets",
            format!("{} numbers", offsets.len()),
            "two whole numbers",
        ));
    };

    let bits = shape
        .iter()
        .try_fold(dtype.bits(), |bits, &side| bits.checked_mul(side));
    let sides: Option<Vec<usize>> = shape.iter().map(|&side| side.try_into().ok()).collect();
    let (Some(bits), Some(sides)) = (bits, sides) else {
        return Err(Fault::ShapeOverflow {
            tensor: tensor(),
            shape,
        });
    };
    if end < start {
        return Err(Fault::Reversed {
            tensor: tensor(),
            start,
            end,
        });
    }
    let (expected, found) = (bits.div_ceil(8), end - start);
    if expected != found {
        return Err(Fault::Size {
            tensor: tensor(),
            dtype: dtype.name(),
            shape,
            expected,
            found,
        });
    }
    Ok(Entry {
        dtype,
        shape: sides,
        bytes: start..end,
    })
}

/// The tensors must lie end to end and fill the data exactly: no byte is shared, unused or missing.
fn check_cover(entries: &IndexMap<String, Entry>, data_len: u64) -> Result<(), Fault> {
    let mut by_place: Vec<(&String, &Range<u64>)> = entries
        .iter()
        .map(|(key, entry)| (key, &entry.bytes))
        .collect();
    by_place.sort_by_key(|(_, bytes)| (bytes.start, bytes.end));
    let mut covered = 0;
    let mut last = "";
    for (key, bytes) in by_place {
        if bytes.start < covered {
            return Err(Fault::Overlap {
                tensor: key.clone(),
                other: last.to_string(),
                start: bytes.start,
                end: covered,
            });
        }
        if bytes.start > covered {
            return Err(Fault::Hole {
                bytes: bytes.start - covered,
                tensor: key.clone(),
                start: covered,
            });
        }
        covered = bytes.end;
        last = key;
    }
    if covered > data_len {
        return Err(Fault::PastEnd {
            tensor: last.to_string(),
            expected: covered,
            found: data_len,
        });
    }
    if covered < data_len {
        return Err(Fault::Trailing {
            bytes: data_len - covered,
        });
    }
    Ok(())
}

/// JSON that keeps every member of an object, also those whose key occurs twice.
enum Json {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a truth value",
            Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::Array(_) => "a list",
            Json::Object(_) => "an object",
        }
    }

    fn as_u64(&self) -> Option<u64> {
        match self {
            Json::Number(number) => number.as_u64(),
            _ => None,
        }
    }
}

/// Scalars as they are, the rest by kind: messages must stay short.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Bool(value) => value.fmt(f),
            Json::Number(value) => value.fmt(f),
            other => f.write_str(other.kind()),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Number(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Number(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(serde_json::Number::from_f64(value).map_or(Json::Null, Json::Number))
            }

            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::String(value.to_string()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Json::Array(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
                let mut list = Vec::new();
                while let Some(member) = members.next_entry()? {
                    list.push(member);
                }
                Ok(Json::Object(list))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// Its key.
    pub key: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// Writes F32 tensors, sorted by key as the `safetensors` crate does it; the same content gives the same bytes.
///
/// Not by that crate: it keeps the metadata in a hash map, whose order changes from run to run. The file appears
/// under its name only when it is complete.
///
/// # Panics
///
/// Panics where two tensors have one key, or a shape and its values do not fit.
pub fn write(
    path: &Path,
    tensors: &[Named],
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightError> {
    let mut sorted: Vec<&Named> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    for tensor in &sorted {
        let count = tensor.shape.iter().product::<usize>();
        assert_eq!(count, tensor.values.len(), "values of {}", tensor.key);
    }
    let described = sorted.iter().map(|tensor| {
        let bytes = 4 * tensor.values.len();
        (tensor.key.as_str(), Dtype::F32, &tensor.shape[..], bytes)
    });
    let header = header_of(described, metadata);
    write_whole(path, &header, |file| {
        for value in sorted.iter().flat_map(|tensor| &tensor.values) {
            file.write_all(&value.to_le_bytes())?;
        }
        Ok(())
    })
}

/// A tensor to be written in a dtype of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its key.
    pub key: String,
    /// How its values are stored.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its values, row-major and little-endian.
    pub bytes: Vec<u8>,
}

/// As [`write`], each tensor in its own dtype.
///
/// # Panics
///
/// Panics where two tensors have one key, or a shape, a dtype and the bytes do not fit.
pub fn write_stored(
    path: &Path,
    tensors: &[Stored],
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightError> {
    let mut sorted: Vec<&Stored> = tensors.iter().collect();
    // By the size of the values first, so that each tensor lies at a multiple of it.
    sorted.sort_by(|a, b| (b.dtype.bits(), &a.key).cmp(&(a.dtype.bits(), &b.key)));
    for tensor in &sorted {
        let bits = tensor.shape.iter().product::<usize>() as u64 * tensor.dtype.bits();
        assert_eq!(
            bits.div_ceil(8),
            tensor.bytes.len() as u64,
            "bytes of {}",
            tensor.key
        );
    }
    let described = sorted.iter().map(|tensor| {
        let bytes = tensor.bytes.len();
        (tensor.key.as_str(), tensor.dtype, &tensor.shape[..], bytes)
    });
    let header = header_of(described, metadata);
    write_whole(path, &header, |file| {
        sorted
            .iter()
            .try_for_each(|tensor| file.write_all(&tensor.bytes))
    })
}

/// Writes header and data under another name first.
fn write_whole(
    path: &Path,
    header: &[u8],
    data: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), WeightError> {
    // Beside the target, so that the rename stays within one file system.
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let write_all = || -> io::Result<()> {
        let mut file = BufWriter::with_capacity(CHUNK, File::create(&partial)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header)?;
        data(&mut file)?;
        file.into_inner()?.sync_all()
    };
    let written = write_all().and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|source| {
        // Best effort: the first error is the one to report.
        let _ = std::fs::remove_file(&partial);
        io_error(path, "write", source)
    })
}

/// The header of tensors (key, dtype, shape, bytes) in the order of their data.
fn header_of<'a>(
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize], usize)>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert(
            "__metadata__".into(),
            metadata
                .iter()
                .map(|(k, v)| (k.clone(), v.as_str()))
                .collect(),
        );
    }
    let mut offset = 0;
    for (key, dtype, shape, bytes) in tensors {
        let end = offset + bytes;
        let entry = serde_json::json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [offset, end] });
        assert!(
            header.insert(key.to_owned(), entry).is_none(),
            "two tensors are called {key}"
        );
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // The data start at a multiple of 8 bytes.
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    header
}

/// The SHA-256 of a whole file in lowercase hexadecimal, read in pieces.
pub fn sha256(path: &Path) -> Result<String, WeightError> {
    let (mut file, _) = open_regular(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(source) => return Err(io_error(path, "read", source)),
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// The file and its size; a pipe is refused before it is opened, since that would wait for a writer.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64), WeightError> {
    let unopened = |source| io_error(path, "open", source);
    if !std::fs::metadata(path).map_err(unopened)?.is_file() {
        return Err(WeightError::NotAFile {
            file: path.display().to_string(),
        });
    }
    let file = File::open(path).map_err(unopened)?;
    let size = file.metadata().map_err(unopened)?.len();
    Ok((file, size))
}

fn io_error(path: &Path, action: &'static str, source: io::Error) -> WeightError {
    WeightError::Io {
        file: path.display().to_string(),
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A temporary file of that content; it goes away with the handle.
    fn on_disk(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [
            &(header.len() as u64).to_le_bytes()[..],
            header.as_bytes(),
            data,
        ]
        .concat()
    }

    fn one(dtype: &str, count: usize, data: &[u8]) -> Vec<u8> {
        let end = data.len();
        file(
            &format!(r#"{{"w":{{"dtype":"{dtype}","shape":[{count}],"data_offsets":[0,{end}]}}}}"#),
            data,
        )
    }

    #[test]
    fn every_float_dtype_becomes_f32() {
        let cases: [(&str, Vec<u8>); 4] = [
            (
                "F32",
                [1.5f32, -2.0]
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect(),
            ),
            (
                "F64",
                [1.5f64, -2.0]
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect(),
            ),
            ("F16", vec![0x00, 0x3e, 0x00, 0xc0]),
            ("BF16", vec![0xc0, 0x3f, 0x00, 0xc0]),
        ];
        for (dtype, data) in cases {
            let scratch = on_disk(&one(dtype, 2, &data));
            let values = Container::open(scratch.path()).unwrap().read("w").unwrap();
            assert_eq!(values, [1.5, -2.0], "{dtype}");
        }
    }

    #[test]
    fn a_tensor_longer_than_one_chunk_is_read_whole() {
        let values: Vec<f32> = (0..CHUNK / 4 + 3).map(|i| i as f32).collect();
        let scratch = on_disk(b"");
        let tensor = Named {
            key: "w".into(),
            shape: vec![values.len()],
            values: values.clone(),
        };
        write(scratch.path(), &[tensor], &BTreeMap::new()).unwrap();
        assert_eq!(
            Container::open(scratch.path()).unwrap().read("w").unwrap(),
            values
        );
    }

    #[test]
    fn a_header_that_begins_like_a_pickle_is_read() {
        // Length 640 = bytes 80 02, the PROTO opcode.
        let mut header = String::from(r#"{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
        header.push_str(&" ".repeat(640 - header.len()));
        let scratch = on_disk(&file(&header, b""));
        assert_eq!(Container::open(scratch.path()).unwrap().keys(), ["w"]);
    }

    #[test]
    fn the_bytes_are_those_of_the_safetensors_crate() {
        let tensors = [
            Named {
                key: "b".into(),
                shape: vec![2],
                values: vec![1.0, 2.0],
            },
            Named {
                key: "a.weight".into(),
                shape: vec![1, 1],
                values: vec![3.0],
            },
        ];
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let scratch = on_disk(b"");
        write(scratch.path(), &tensors, &metadata).unwrap();

        let bytes = |t: &Named| {
            t.values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let raw: Vec<Vec<u8>> = tensors.iter().map(bytes).collect();
        let views = tensors.iter().zip(&raw).map(|(t, raw)| {
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, t.shape.clone(), raw)
                    .unwrap();
            (t.key.as_str(), view)
        });
        let reference =
            safetensors::serialize(views, Some(metadata.into_iter().collect())).unwrap();
        assert_eq!(std::fs::read(scratch.path()).unwrap(), reference);
    }

    #[test]
    fn a_damaged_file_is_refused_or_read_but_never_panics() {
        let header = r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}"#;
        let good = file(header, &[0; 16]);
        let scratch = on_disk(&good);
        let read = |bytes: &[u8]| {
            std::fs::write(scratch.path(), bytes).unwrap();
            Container::open(scratch.path())?.read("a")
        };
        assert_eq!(read(&good).unwrap(), [0.0, 0.0]);
        for end in 0..good.len() {
            assert!(read(&good[..end]).is_err(), "cut after {end} bytes");
        }
        for (at, bit) in (0..good.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            let outcome = read(&bytes);
            // The 8 bytes of length decide what everything else means.
            assert!(at >= 8 || outcome.is_err(), "bit {bit} of byte {at}");
            if let Ok(values) = outcome {
                assert_eq!(values.len(), 2, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_tensor_cut_off_after_opening_is_an_error() {
        let scratch = on_disk(&one("F32", 2, &[0; 8]));
        let container = Container::open(scratch.path()).unwrap();
        let size = std::fs::metadata(scratch.path()).unwrap().len();
        let file = File::options().write(true).open(scratch.path()).unwrap();
        file.set_len(size - 1).unwrap();
        let error = container.read("w").unwrap_err();
        assert!(matches!(error, WeightError::Io { .. }), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("taken");
        // A folder in the target's place: the rename fails whoever runs the test.
        std::fs::create_dir_all(target.join("inside")).unwrap();
        let error = write(&target, &[], &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, WeightError::Io { .. }), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let error = Container::open(&std::env::temp_dir()).unwrap_err();
        assert!(matches!(error, WeightError::NotAFile { .. }), "{error}");
    }

    #[test]
    fn a_digest_is_that_of_the_whole_file() {
        let scratch = on_disk(b"abc");
        assert_eq!(
            sha256(scratch.path()).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // FIPS 180-2, example B.1
        );
    }

    #[test]
    fn both_kinds_of_bad_values_are_counted() {
        let found = check_finite("w", &[0.0, f32::INFINITY, f32::NAN, f32::NEG_INFINITY]).unwrap();
        assert_eq!(
            found.to_string(),
            "tensor w: 1 of 4 values are NaN and 2 of 4 values are infinite, the first at index 1"
        );
    }
}

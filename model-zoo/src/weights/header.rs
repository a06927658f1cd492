//! The header of a safetensors file, checked against the file's size.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::container::{Entry, HEADER_LIMIT, LENGTH_BYTES};
use super::dtype::Dtype;
use super::error::{Fault, Foreign};

/// Items of a list at most: the axes of a tensor are the longest one. A list of millions would take thirty times the
/// memory of its text.
const ITEMS: usize = 64;

/// Members of an object at most; the largest published checkpoints have 100,000 tensors in all their files.
const MEMBERS: usize = 250_000;

/// The header's length from the file's first bytes, or what the file is instead.
pub(super) fn header_length(start: &[u8], file_size: u64) -> Result<u64, Fault> {
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

pub(super) type Header = (BTreeMap<String, String>, IndexMap<String, Entry>);

/// `data` is the range of the file behind the header.
pub(super) fn parse_header(header: &[u8], data: Range<u64>) -> Result<Header, Fault> {
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
                    if list.len() == ITEMS {
                        return Err(A::Error::custom(format_args!(
                            "a list of more than {ITEMS} items"
                        )));
                    }
                    list.push(item);
                }
                Ok(Json::Array(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
                let mut list = Vec::new();
                while let Some(member) = members.next_entry()? {
                    if list.len() == MEMBERS {
                        return Err(A::Error::custom(format_args!(
                            "an object of more than {MEMBERS} members"
                        )));
                    }
                    list.push(member);
                }
                Ok(Json::Object(list))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

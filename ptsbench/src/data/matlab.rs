//! As much of MATLAB's file format, version 5, as ImageNet's `meta.mat` needs: one array of structures with numbers and
//! strings in their fields.

use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;

/// Bytes that are unpacked in all; the published file has half a megabyte.
const LARGEST: usize = 32 << 20;
/// Fields that are read in all; the published file has 1,860 structures of 8.
const FIELDS: usize = 200_000;
/// Arrays within arrays that are followed.
const DEEPEST: usize = 8;

/// A value of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// The first number of an array.
    Number(f64),
    /// A row of characters.
    Text(String),
    /// Anything else.
    Other,
}

/// An array of structures: for each, its fields by name.
pub type Structures = Vec<Vec<(String, Value)>>;

enum Array {
    Value(Value),
    Structures(Structures),
}

/// The structures called `wanted`; the error is a sentence.
pub fn structures(bytes: &[u8], wanted: &str) -> Result<Structures, String> {
    let start = bytes.get(126..128);
    if !bytes.starts_with(b"MATLAB 5.0") || start != Some(b"IM") {
        return Err("not a MATLAB 5.0 file in this byte order".to_owned());
    }
    let mut rest = &bytes[128..];
    let mut room = LARGEST;
    while !rest.is_empty() {
        let (kind, data) = element(&mut rest)?;
        let unpacked;
        let matrix = match kind {
            COMPRESSED => {
                unpacked = decompress_to_vec_zlib_with_limit(data, room)
                    .map_err(|_| "compressed data is damaged, or far too long".to_owned())?;
                room -= unpacked.len();
                let (kind, data) = element(&mut unpacked.as_slice())?;
                if kind != MATRIX {
                    continue;
                }
                data
            }
            MATRIX => data,
            _ => continue,
        };
        if let (name, Array::Structures(found)) = array(matrix, DEEPEST)?
            && name == wanted
        {
            return Ok(found);
        }
    }
    Err(format!("holds no structures `{wanted}`"))
}

const COMPRESSED: u32 = 15;
const MATRIX: u32 = 14;

fn cut() -> String {
    "cut off or damaged".to_owned()
}

fn word(bytes: &[u8]) -> Result<u32, String> {
    let four = bytes.first_chunk().ok_or_else(cut)?;
    Ok(u32::from_le_bytes(*four))
}

/// The next element's type and data; `rest` moves behind it.
fn element<'a>(rest: &mut &'a [u8]) -> Result<(u32, &'a [u8]), String> {
    let head = word(rest)?;
    // Up to four bytes of data may stand in the tag itself.
    let small = (head >> 16) as usize;
    let (kind, data, used) = if small > 0 {
        (head & 0xffff, rest.get(4..4 + small.min(4)), 8)
    } else {
        let length = word(rest.get(4..).ok_or_else(cut)?)? as usize;
        let padded = if head == COMPRESSED {
            length
        } else {
            length.next_multiple_of(8)
        };
        (
            head,
            rest.get(8..).and_then(|rest| rest.get(..length)),
            8 + padded,
        )
    };
    let data = data.ok_or_else(cut)?;
    *rest = rest.get(used..).unwrap_or_default();
    Ok((kind, data))
}

/// A matrix element's name and content.
fn array(mut rest: &[u8], depth: usize) -> Result<(String, Array), String> {
    const STRUCTURES: u32 = 2;
    const CHARACTERS: u32 = 4;
    if depth == 0 {
        return Err("arrays within arrays are too deep".to_owned());
    }
    if rest.is_empty() {
        return Ok((String::new(), Array::Value(Value::Other)));
    }
    let class = word(element(&mut rest)?.1)? & 0xff;
    let sides = element(&mut rest)?.1.as_chunks::<4>().0;
    let count = sides
        .iter()
        .try_fold(1_u32, |count, side| {
            count.checked_mul(u32::from_le_bytes(*side))
        })
        .ok_or_else(cut)?;
    let name = String::from_utf8_lossy(element(&mut rest)?.1).into_owned();
    if class != STRUCTURES {
        let value = if class == CHARACTERS {
            text(element(&mut rest)?)
        } else if (6..=15).contains(&class) && count > 0 {
            number(element(&mut rest)?)
        } else {
            Value::Other
        };
        return Ok((name, Array::Value(value)));
    }
    let length = word(element(&mut rest)?.1)? as usize;
    let names: Vec<String> = element(&mut rest)?
        .1
        .chunks(length.max(1))
        // One more than is allowed is enough to tell.
        .take(FIELDS + 1)
        .map(|name| {
            String::from_utf8_lossy(name)
                .trim_end_matches('\0')
                .to_owned()
        })
        .collect();
    if names.len().saturating_mul(count as usize) > FIELDS {
        return Err(format!("more than {FIELDS} fields"));
    }
    let mut structures = Vec::new();
    // Every field takes bytes, so a wrong count ends with the data.
    for _ in 0..count {
        let mut fields = Vec::new();
        for name in &names {
            let (_, data) = element(&mut rest)?;
            let value = match array(data, depth - 1)?.1 {
                Array::Value(value) => value,
                Array::Structures(_) => Value::Other,
            };
            fields.push((name.clone(), value));
        }
        if fields.is_empty() {
            break;
        }
        structures.push(fields);
    }
    Ok((name, Array::Structures(structures)))
}

fn text((kind, data): (u32, &[u8])) -> Value {
    const U16: u32 = 4;
    const UTF16: u32 = 17;
    Value::Text(if matches!(kind, U16 | UTF16) {
        let units = data.as_chunks().0.iter();
        let units: Vec<u16> = units.map(|&pair| u16::from_le_bytes(pair)).collect();
        String::from_utf16_lossy(&units)
    } else {
        String::from_utf8_lossy(data).into_owned()
    })
}

/// The first number of an element, by its type (miINT8 to miUINT64 with gaps).
fn number((kind, data): (u32, &[u8])) -> Value {
    let first = |size: usize| data.get(..size);
    let value = match kind {
        1 => first(1).map(|bytes| f64::from(bytes[0] as i8)),
        2 => first(1).map(|bytes| f64::from(bytes[0])),
        3 => data
            .first_chunk()
            .map(|&bytes| i16::from_le_bytes(bytes).into()),
        4 => data
            .first_chunk()
            .map(|&bytes| u16::from_le_bytes(bytes).into()),
        5 => data
            .first_chunk()
            .map(|&bytes| i32::from_le_bytes(bytes).into()),
        6 => data
            .first_chunk()
            .map(|&bytes| u32::from_le_bytes(bytes).into()),
        7 => data
            .first_chunk()
            .map(|&bytes| f32::from_le_bytes(bytes).into()),
        12 => data
            .first_chunk()
            .map(|&bytes| i64::from_le_bytes(bytes) as f64),
        13 => data
            .first_chunk()
            .map(|&bytes| u64::from_le_bytes(bytes) as f64),
        9 => data.first_chunk().map(|&bytes| f64::from_le_bytes(bytes)),
        _ => None,
    };
    value.map_or(Value::Other, Value::Number)
}

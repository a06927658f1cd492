//! Statistics files of the Fréchet distance: numpy's `.npz`, a zip archive of arrays, holding `mu` and `sigma`.
//!
//! Only what such files need is read: stored or deflated entries, arrays of f32 or f64. Object arrays would be pickles
//! and are refused. Nothing is allocated on a header's word alone.

use std::path::{Path, PathBuf};

use miniz_oxide::inflate::decompress_to_vec_with_limit;

use model_zoo::file::{self, Unread};

use crate::data::limits;
use crate::metric::fid::Statistics;

/// The largest array that is unpacked: the covariance of 4,096 features in f64. Inception has 2,048.
const LARGEST: usize = 4096 * 4096 * 8 + 4096;

/// The largest number of statistics: the square of the largest f32 is below it, and no sum of products overflows.
const MOST: f64 = 1e100;

/// What rounding may do to a covariance, over its largest number: f32 files and sums in another order.
const ROUND_OFF: f64 = 1e-5;

/// Names of arrays that a message lists.
const LISTED: usize = 5;

/// Why a statistics file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct NpzError {
    path: PathBuf,
    problem: Problem,
}

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cannot be written: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Unread(#[from] Unread),
    #[error(
        "not an npz/zip file; statistics are an archive of the arrays `mu` and `sigma`, as numpy's savez writes it"
    )]
    NotZip,
    #[error("damaged archive: {0}; copy or compute it again")]
    Damaged(&'static str),
    #[error("holds no array `{missing}`, only {found:?}; statistics need `mu` and `sigma`")]
    Missing {
        missing: &'static str,
        found: Vec<String>,
    },
    #[error("array `{name}`: {reason}")]
    Array { name: &'static str, reason: String },
    #[error("mu {mu} does not fit sigma {rows}x{columns}; both must come from the same features")]
    Shapes {
        mu: usize,
        rows: usize,
        columns: usize,
    },
    #[error("{name} holds {value} at {index:?}; compute the statistics again from finite features")]
    NotFinite {
        name: &'static str,
        value: &'static str,
        index: Vec<usize>,
    },
    #[error(
        "{name} holds {value:?} at {index:?}, and f32 features have none beyond {MOST:e}; compute the statistics again"
    )]
    TooLarge {
        name: &'static str,
        value: f64,
        index: Vec<usize>,
    },
    #[error(
        "sigma has the negative variance {value:?} at ({at}, {at}); it is not a covariance: compute it again"
    )]
    Negative { at: usize, value: f64 },
    #[error(
        "sigma is not symmetric: {above} at ({row}, {column}) but {below} opposite; it is not a covariance"
    )]
    NotSymmetric {
        row: usize,
        column: usize,
        above: f64,
        below: f64,
    },
}

/// Reads a statistics file.
pub fn read(path: &Path) -> Result<Statistics, NpzError> {
    let failed = |problem| NpzError {
        path: path.to_owned(),
        problem,
    };
    let bytes = file::read(path, limits::STATISTICS).map_err(|error| failed(error.into()))?;
    statistics(&bytes).map_err(failed)
}

/// Writes a statistics file, whole or not at all.
pub fn write(path: &Path, statistics: &Statistics) -> Result<(), NpzError> {
    let failed = |error: std::io::Error| NpzError {
        path: path.to_owned(),
        problem: error.into(),
    };
    let d = statistics.mean.len();
    let arrays = [
        ("mu.npy", npy(&statistics.mean, &format!("({d},)"))),
        (
            "sigma.npy",
            npy(&statistics.covariance, &format!("({d}, {d})")),
        ),
    ];
    let beside = path.with_extension("npz.partial");
    std::fs::write(&beside, archive(&arrays)).map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)
}

/// Checks and takes the statistics out of an archive.
fn statistics(bytes: &[u8]) -> Result<Statistics, Problem> {
    let entries = directory(bytes)?;
    let find = |missing: &'static str| {
        let entry = entries
            .iter()
            .find(|entry| entry.name.strip_suffix(".npy") == Some(missing));
        entry.ok_or_else(|| Problem::Missing {
            missing,
            found: entries
                .iter()
                .take(LISTED)
                .map(|entry| entry.name.chars().take(80).collect())
                .collect(),
        })
    };
    let (mu_entry, sigma_entry) = (find("mu")?, find("sigma")?);
    let mu = array("mu", &unpack(bytes, mu_entry)?)?;
    let sigma = array("sigma", &unpack(bytes, sigma_entry)?)?;
    let (&[d], &[rows, columns]) = (mu.shape.as_slice(), sigma.shape.as_slice()) else {
        let reason = format!(
            "shapes {:?} and {:?}; `mu` must have one axis and `sigma` two",
            mu.shape, sigma.shape
        );
        return Err(Problem::Array { name: "mu", reason });
    };
    if rows != d || columns != d || d == 0 {
        return Err(Problem::Shapes {
            mu: d,
            rows,
            columns,
        });
    }
    for (name, array) in [("mu", &mu), ("sigma", &sigma)] {
        check_numbers(name, array)?;
    }
    let largest = sigma
        .values
        .iter()
        .fold(0.0, |most: f64, value| most.max(value.abs()));
    for row in 0..d {
        let value = sigma.values[row * d + row];
        if value < -ROUND_OFF * largest {
            return Err(Problem::Negative { at: row, value });
        }
        for column in 0..row {
            let (above, below) = (
                sigma.values[column * d + row],
                sigma.values[row * d + column],
            );
            if (above - below).abs() > ROUND_OFF * largest {
                return Err(Problem::NotSymmetric {
                    row: column,
                    column: row,
                    above,
                    below,
                });
            }
        }
    }
    Ok(Statistics {
        mean: mu.values,
        covariance: sigma.values,
    })
}

/// Refuses numbers that no features have.
fn check_numbers(name: &'static str, array: &Array) -> Result<(), Problem> {
    let wrong = array
        .values
        .iter()
        .position(|value| !value.is_finite() || value.abs() > MOST);
    let Some(at) = wrong else {
        return Ok(());
    };
    let value = array.values[at];
    let index = match array.shape.as_slice() {
        [_, columns] => vec![at / columns, at % columns],
        _ => vec![at],
    };
    Err(if value.is_nan() {
        let value = "NaN";
        Problem::NotFinite { name, value, index }
    } else if value.is_infinite() {
        let value = "an infinity";
        Problem::NotFinite { name, value, index }
    } else {
        Problem::TooLarge { name, value, index }
    })
}

/// One file of the archive, as the central directory describes it.
struct Entry {
    name: String,
    method: u16,
    checksum: u32,
    packed: usize,
    unpacked: usize,
    offset: usize,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(pair.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

/// The central directory, found from the end of the file (APPNOTE.TXT 4.3.12 and 4.3.16).
fn directory(bytes: &[u8]) -> Result<Vec<Entry>, Problem> {
    const END: &[u8] = b"PK\x05\x06";
    const CENTRAL: &[u8] = b"PK\x01\x02";
    if !bytes.starts_with(b"PK") {
        return Err(Problem::NotZip);
    }
    // The end record is 22 bytes and a comment of at most 65,535.
    let whole = bytes.len().saturating_sub(22 - END.len());
    let from = whole.saturating_sub(END.len() + 0xffff);
    let end = bytes[from..whole]
        .windows(END.len())
        .rposition(|window| window == END)
        .ok_or(Problem::Damaged(
            "its directory is missing, so its end is cut off",
        ))?
        + from;
    let broken = || Problem::Damaged("its directory is broken");
    let count = u16_at(bytes, end + 10).ok_or_else(broken)?;
    let mut at = u32_at(bytes, end + 16).ok_or_else(broken)? as usize;
    let mut entries = Vec::new();
    for _ in 0..count {
        let head = bytes.get(at..).ok_or_else(broken)?;
        if !head.starts_with(CENTRAL) || head.len() < 46 {
            return Err(broken());
        }
        let u16_of = |at| u16_at(head, at).map(usize::from).ok_or_else(broken);
        let u32_of = |at| u32_at(head, at).ok_or_else(broken);
        let (name, extra, comment) = (u16_of(28)?, u16_of(30)?, u16_of(32)?);
        let text = head.get(46..46 + name).ok_or_else(broken)?;
        entries.push(Entry {
            name: String::from_utf8_lossy(text).into_owned(),
            method: u16_of(10)? as u16,
            checksum: u32_of(16)?,
            packed: u32_of(20)? as usize,
            unpacked: u32_of(24)? as usize,
            offset: u32_of(42)? as usize,
        });
        at += 46 + name + extra + comment;
    }
    Ok(entries)
}

fn unpack(bytes: &[u8], entry: &Entry) -> Result<Vec<u8>, Problem> {
    let broken = || Problem::Damaged("an entry lies outside the file");
    let head = bytes.get(entry.offset..).ok_or_else(broken)?;
    if !head.starts_with(b"PK\x03\x04") {
        return Err(broken());
    }
    let skip = |at| u16_at(head, at).map(usize::from).ok_or_else(broken);
    let start = 30 + skip(26)? + skip(28)?;
    // Before anything is unpacked: a few kilobytes could become any number of gigabytes.
    if entry.unpacked > LARGEST {
        return Err(Problem::Damaged(
            "an array is larger than the covariance of 4,096 features",
        ));
    }
    let packed = head
        .get(start..)
        .and_then(|rest| rest.get(..entry.packed))
        .ok_or_else(broken)?;
    let data = match entry.method {
        0 => packed.to_vec(),
        8 => decompress_to_vec_with_limit(packed, entry.unpacked)
            .map_err(|_| Problem::Damaged("an entry cannot be decompressed"))?,
        _ => return Err(Problem::Damaged("an entry is neither stored nor deflated")),
    };
    if data.len() != entry.unpacked || crc32fast::hash(&data) != entry.checksum {
        return Err(Problem::Damaged("an entry's checksum (CRC) is wrong"));
    }
    Ok(data)
}

struct Array {
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// Reads an array (numpy's NPY format 1 to 3) into rows.
fn array(name: &'static str, bytes: &[u8]) -> Result<Array, Problem> {
    let wrong = |reason: String| Problem::Array { name, reason };
    let cut = || wrong("its header is cut off".to_owned());
    let rest = bytes
        .strip_prefix(b"\x93NUMPY")
        .ok_or_else(|| wrong("not an NPY array".to_owned()))?;
    let (length, start) = match rest.first().ok_or_else(cut)? {
        1 => (u16_at(rest, 2).ok_or_else(cut)?.into(), 4),
        2 | 3 => (u32_at(rest, 2).ok_or_else(cut)? as usize, 6),
        version => return Err(wrong(format!("NPY version {version} is not known"))),
    };
    let header = rest[start..].get(..length).ok_or_else(cut)?;
    let data = &rest[start + length..];
    let header =
        std::str::from_utf8(header).map_err(|_| wrong("its header is not text".to_owned()))?;
    let field = |key: &str| {
        let quoted = format!("'{key}':");
        let from = header.find(&quoted).map(|at| at + quoted.len());
        from.map(|from| header[from..].trim_start())
            .ok_or_else(|| wrong(format!("its header has no {key}")))
    };
    let kind = field("descr")?;
    let kind = kind.split(['\'', '"']).nth(1).unwrap_or(kind);
    if kind.contains('O') {
        return Err(wrong(
            "object arrays are refused: they are pickles, which run code".to_owned(),
        ));
    }
    let fortran = field("fortran_order")?.starts_with("True");
    let shape = field("shape")?;
    let shape = shape
        .strip_prefix('(')
        .and_then(|shape| shape.split_once(')'))
        .ok_or_else(|| wrong("its shape is broken".to_owned()))?;
    let shape: Vec<usize> = shape
        .0
        .split(',')
        .map(str::trim)
        .filter(|side| !side.is_empty())
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(|_| wrong("its shape is broken".to_owned()))?;
    let size = match kind {
        "<f8" => 8,
        "<f4" => 4,
        other => return Err(wrong(format!("type {other} instead of f32 or f64"))),
    };
    let count = shape
        .iter()
        .try_fold(1_usize, |count, &side| count.checked_mul(side));
    if count.and_then(|count| count.checked_mul(size)) != Some(data.len()) {
        return Err(wrong(format!(
            "shape {shape:?} does not fit its {} bytes",
            data.len()
        )));
    }
    let values: Vec<f64> = if size == 8 {
        let values = data.as_chunks().0.iter();
        values.map(|&value| f64::from_le_bytes(value)).collect()
    } else {
        let values = data.as_chunks().0.iter();
        values
            .map(|&value| f32::from_le_bytes(value).into())
            .collect()
    };
    let values = match *shape.as_slice() {
        [rows, columns] if fortran => (0..rows * columns)
            .map(|at| values[at % columns * rows + at / columns])
            .collect(),
        _ => values,
    };
    Ok(Array { shape, values })
}

/// An f64 array as NPY version 1, its data 64-byte aligned.
fn npy(values: &[f64], shape: &str) -> Vec<u8> {
    let mut header =
        format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}").into_bytes();
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header.resize(padded - 1, b' ');
    header.push(b'\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header);
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

/// A zip archive of stored entries, without times.
fn archive(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut central = Vec::new();
    for (name, data) in entries {
        let offset = bytes.len() as u32;
        // Version 2.0, no flags, stored, 1980-01-01, checksum, sizes, length of the name, nothing extra.
        let mut common = Vec::new();
        for half in [20_u16, 0, 0, 0, 0x21] {
            common.extend(half.to_le_bytes());
        }
        for word in [crc32fast::hash(data), data.len() as u32, data.len() as u32] {
            common.extend(word.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend(name.as_bytes());
        bytes.extend(data);
        central.extend(b"PK\x01\x02\x14\x00");
        central.extend(&common);
        // No comment, first disk, no attributes.
        central.extend([0; 10]);
        central.extend(offset.to_le_bytes());
        central.extend(name.as_bytes());
    }
    let start = bytes.len() as u32;
    let count = (entries.len() as u16).to_le_bytes();
    bytes.extend(&central);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend(count);
    bytes.extend(count);
    bytes.extend((central.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Statistics {
        Statistics {
            mean: vec![1.5, -2.0],
            covariance: vec![2.0, 0.25, 0.25, 3.0],
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statistics.npz");
        write(&path, &example()).unwrap();
        assert_eq!(read(&path).unwrap(), example());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_covariance_is_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statistics.npz");
        let refused = |change: &dyn Fn(&mut Statistics), say: &str| {
            let mut statistics = example();
            change(&mut statistics);
            write(&path, &statistics).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.contains("statistics.npz") && error.contains(say),
                "{error}"
            );
        };
        refused(&|s| s.covariance[3] = -3.0, "variance -3.0 at (1, 1)");
        refused(&|s| s.covariance[0] = 1e308, "sigma holds 1e308 at [0, 0]");
        refused(&|s| s.mean[1] = -1e200, "mu holds -1e200 at [1]");
        refused(&|s| s.mean[1] = f64::NAN, "mu holds NaN at [1]");
        refused(
            &|s| s.covariance[2] = f64::INFINITY,
            "sigma holds an infinity at [1, 0]",
        );
        // Round-off below zero is none.
        let mut statistics = example();
        statistics.covariance = vec![2.0, 0.0, 0.0, -1e-9];
        write(&path, &statistics).unwrap();
        assert_eq!(read(&path).unwrap(), statistics);
    }

    #[test]
    fn no_change_of_a_byte_panics_and_none_of_the_data_passes() {
        let arrays = [
            ("mu.npy", npy(&example().mean, "(2,)")),
            ("sigma.npy", npy(&example().covariance, "(2, 2)")),
        ];
        let whole = archive(&arrays);
        for at in 0..whole.len() {
            for flip in [1, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] ^= flip;
                if let Ok(read) = statistics(&changed) {
                    assert_eq!(read, example(), "byte {at}");
                }
            }
            assert!(statistics(&whole[..at]).is_err(), "cut at {at}");
        }
    }
}

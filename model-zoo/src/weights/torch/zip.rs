//! The zip archives that PyTorch writes: members stored as they are, so that each is a range of the file.
//!
//! Reference: PKWARE's APPNOTE, sections 4.3 and 4.5.3.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use indexmap::IndexMap;

use super::{Read as Fallible, TorchFault};

/// Bytes of the end record without its comment, and the longest comment.
const END: u64 = 22;
const COMMENT: u64 = 0xffff;

/// The longest directory that is read, in bytes: 100,000 tensors.
const DIRECTORY: u64 = 16 << 20;

/// Every member's bytes in the file, by name.
pub(super) fn members(file: &File, size: u64) -> Fallible<IndexMap<String, Range<u64>>> {
    let tail_at = size.saturating_sub(END + COMMENT);
    let tail = bytes(file, tail_at, size - tail_at)?;
    let end = (0..=tail.len().saturating_sub(END as usize))
        .rev()
        .find(|&at| tail[at..].starts_with(b"PK\x05\x06"))
        .ok_or(TorchFault::Zip(
            "it has no directory, so its end is missing",
        ))?;
    let record = &tail[end..];
    let (mut length, mut start) = (
        u64::from(number::<4>(record, 12)?),
        u64::from(number::<4>(record, 16)?),
    );
    if length == 0xffff_ffff || start == 0xffff_ffff || number::<2>(record, 10)? == 0xffff {
        // The long form's record is found through a locator right before the end record.
        let locator = end.checked_sub(20).map(|at| &tail[at..end]);
        let locator = locator
            .filter(|locator| locator.starts_with(b"PK\x06\x07"))
            .ok_or(TorchFault::Zip("the long form's locator is missing"))?;
        let long = bytes(file, wide(locator, 8)?, 56)?;
        if !long.starts_with(b"PK\x06\x06") {
            return Err(TorchFault::Zip("the long form's end record is missing").into());
        }
        (length, start) = (wide(&long, 40)?, wide(&long, 48)?);
    }
    if length > DIRECTORY || start.checked_add(length).is_none_or(|end| end > size) {
        return Err(TorchFault::Zip("its directory lies outside the file").into());
    }
    let directory = bytes(file, start, length)?;

    let mut members = IndexMap::new();
    let mut rest = &directory[..];
    while rest.starts_with(b"PK\x01\x02") {
        let (flags, method) = (number::<2>(rest, 8)?, number::<2>(rest, 10)?);
        let mut stored = u64::from(number::<4>(rest, 20)?);
        let mut plain = u64::from(number::<4>(rest, 24)?);
        let mut header = u64::from(number::<4>(rest, 42)?);
        let name_end = 46 + number::<2>(rest, 28)? as usize;
        let extra_end = name_end + number::<2>(rest, 30)? as usize;
        let entry_end = extra_end + number::<2>(rest, 32)? as usize;
        let cut = TorchFault::Zip("an entry of its directory is cut off");
        let (Some(name), Some(extra), Some(after)) = (
            rest.get(46..name_end),
            rest.get(name_end..extra_end),
            rest.get(entry_end..),
        ) else {
            return Err(cut.into());
        };
        // The long form of exactly those fields that did not fit, in this order.
        let mut long = long_fields(extra);
        for field in [&mut plain, &mut stored, &mut header] {
            if *field == 0xffff_ffff {
                let (value, left) = long
                    .split_at_checked(8)
                    .ok_or(TorchFault::Zip("a long size is missing"))?;
                *field = wide(value, 0)?;
                long = left;
            }
        }
        if flags & 1 != 0 {
            return Err(TorchFault::Zip("it is encrypted").into());
        }
        if method != 0 || stored != plain {
            return Err(
                TorchFault::Zip("a member is compressed, and PyTorch compresses none").into(),
            );
        }
        let local = bytes(file, header, 30)?;
        if !local.starts_with(b"PK\x03\x04") {
            return Err(TorchFault::Zip("a member is not where the directory says").into());
        }
        let skip = 30 + u64::from(number::<2>(&local, 26)?) + u64::from(number::<2>(&local, 28)?);
        let first = header.checked_add(skip);
        let range = first.and_then(|first| Some(first..first.checked_add(stored)?));
        let range = range
            .filter(|range| range.end <= size)
            .ok_or(TorchFault::Zip("a member ends past the end of the file"))?;
        let name = String::from_utf8_lossy(name).into_owned();
        if let Some(name) = members.insert(name.clone(), range).map(|_| name) {
            return Err(TorchFault::Twice { name }.into());
        }
        rest = after;
    }
    Ok(members)
}

/// The long fields of an entry's extra data; empty where there are none.
fn long_fields(mut extra: &[u8]) -> &[u8] {
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let Some((body, after)) = rest.split_at_checked(length) else {
            break;
        };
        if head[..2] == [1, 0] {
            return body;
        }
        extra = after;
    }
    &[]
}

/// `length` bytes of the file; the caller has bounded the length.
fn bytes(mut file: &File, at: u64, length: u64) -> Fallible<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.take(length).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(bytes)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<u32, TorchFault> {
    let field = bytes.get(at..at + N);
    let field = field.ok_or(TorchFault::Zip("a record is cut off"))?;
    let mut wide = [0; 4];
    wide[..N].copy_from_slice(field);
    Ok(u32::from_le_bytes(wide))
}

fn wide(bytes: &[u8], at: usize) -> Result<u64, TorchFault> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    let field = field.ok_or(TorchFault::Zip("a record is cut off"))?;
    Ok(u64::from_le_bytes(*field))
}

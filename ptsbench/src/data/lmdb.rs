//! A read-only walk through an LMDB file: the keys of its main database in order, and where their values lie.
//!
//! The file is read, not mapped: a map of a cut file ends the process with a signal, and opening one properly needs a lock
//! file, which read-only media cannot have. Every number in the file is compared with the file's length before it is
//! used. Layout: LMDB 0.9, 64-bit, little-endian (mdb.c: MDB_page, MDB_node, MDB_meta).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use model_zoo::file;

use crate::data::error::DataError;
use crate::data::limits;

const MAGIC: u32 = 0xbeef_c0de;
/// Bytes before a page's contents.
const PAGE_HEAD: usize = 16;
/// Bytes before a node's key.
const NODE_HEAD: usize = 8;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META: u16 = 0x08;
/// The node's value lies on pages of its own.
const BIG: u16 = 0x01;
/// The deepest tree LMDB makes.
const DEEPEST: usize = 32;

/// A record: its key, and where its value lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Any bytes.
    pub key: Vec<u8>,
    offset: u64,
    length: usize,
}

impl Record {
    /// Bytes of its value.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether its value has none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The key as text, or in hex where it is not printable.
    pub fn name(&self) -> String {
        if !self.key.is_empty() && self.key.iter().all(|byte| byte.is_ascii_graphic()) {
            String::from_utf8_lossy(&self.key).into_owned()
        } else {
            let hex: String = self.key.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("0x{hex}")
        }
    }
}

/// An open file and its records in order of keys.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    number(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

/// What a meta page says of the main database.
struct Meta {
    page_size: usize,
    entries: u64,
    root: u64,
    last_page: u64,
    transaction: u64,
}

/// A meta page: magic, version, address, size, two databases of 48 bytes, last page, transaction.
fn meta(page: &[u8]) -> Option<Meta> {
    const FREE: usize = PAGE_HEAD + 24;
    const MAIN: usize = FREE + 48;
    if u16_at(page, 10)? & META == 0 || u32_at(page, PAGE_HEAD)? != MAGIC {
        return None;
    }
    // The page size stands where the free list's database has its padding.
    let page_size = u32_at(page, FREE)? as usize;
    if u32_at(page, PAGE_HEAD + 4)? != 1 || !page_size.is_power_of_two() {
        return None;
    }
    Some(Meta {
        page_size,
        entries: u64_at(page, MAIN + 32)?,
        root: u64_at(page, MAIN + 40)?,
        last_page: u64_at(page, MAIN + 48)?,
        transaction: u64_at(page, MAIN + 56)?,
    })
}

impl Database {
    /// Opens a `data.mdb` and lists its records.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let refuse = |problem: String| DataError::new(path, problem);
        let io = |error: std::io::Error| refuse(format!("cannot be read: {error}"));
        let (file, length) = file::open(path).map_err(|error| {
            refuse(if error.is_missing() {
                "not found; unzip the archive and give the folder with data.mdb".to_owned()
            } else {
                error.to_string()
            })
        })?;
        if length == 0 {
            return Err(refuse(
                "0 bytes: the file is empty; copy or unzip it again".to_owned(),
            ));
        }
        let mut head = vec![0; length.min(256) as usize];
        file.read_exact_at(&mut head, 0).map_err(io)?;
        let Some(first) = meta(&head) else {
            let guess = if head.starts_with(b"PK") {
                " (it looks like a zip archive: unzip it first)"
            } else {
                ""
            };
            return Err(refuse(format!("not an LMDB file{guess}")));
        };
        if !(256..=65_536).contains(&first.page_size) {
            return Err(refuse(format!(
                "pages of {} bytes, which no LMDB file has",
                first.page_size
            )));
        }
        // The newer of two meta pages counts.
        let second = (|| {
            let mut head = [0; 256];
            file.read_exact_at(&mut head, first.page_size as u64).ok()?;
            meta(&head).filter(|meta| meta.page_size == first.page_size)
        })();
        let meta = match second {
            Some(second) if second.transaction > first.transaction => second,
            _ => first,
        };
        let pages = length / meta.page_size as u64;
        if meta.last_page >= pages {
            return Err(refuse(format!(
                "truncated: it has {length} bytes, but its last page, {}, ends at {}; copy or unzip it again",
                meta.last_page,
                u128::from(meta.last_page).saturating_add(1) * meta.page_size as u128
            )));
        }
        let mut walk = Walk {
            file: &file,
            page_size: meta.page_size,
            pages: meta.last_page + 1,
            visited: 0,
            records: Vec::new(),
        };
        if meta.root != u64::MAX {
            walk.page(meta.root, DEEPEST)
                .map_err(|problem| refuse(format!("damaged: {problem}; copy or unzip it again")))?;
        }
        let records = walk.records;
        if records.is_empty() {
            return Err(refuse("no records; unzip the archive again".to_owned()));
        }
        if records.len() as u64 != meta.entries {
            let problem = format!(
                "damaged: {} records instead of {}",
                records.len(),
                meta.entries
            );
            return Err(refuse(problem));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            records,
        })
    }

    /// All records, by key.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The first bytes of a value, `most` of them at most.
    pub fn start(&self, record: &Record, most: usize) -> Result<Vec<u8>, DataError> {
        let mut bytes = vec![0; record.length.min(most)];
        self.file
            .read_exact_at(&mut bytes, record.offset)
            .map_err(|error| DataError::new(&self.path, format!("cannot be read: {error}")))?;
        Ok(bytes)
    }

    /// A value.
    pub fn value(&self, record: &Record) -> Result<Vec<u8>, DataError> {
        self.start(record, usize::MAX)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

struct Walk<'a> {
    file: &'a File,
    page_size: usize,
    pages: u64,
    /// Tree pages seen: more than there are means a circle.
    visited: u64,
    records: Vec<Record>,
}

impl Walk<'_> {
    fn page(&mut self, index: u64, depth: usize) -> Result<(), String> {
        self.visited += 1;
        if depth == 0 || self.visited > self.pages {
            return Err(format!("its tree of pages loops at page {index}"));
        }
        let page = self.read(index, self.page_size)?;
        let broken = || format!("page {index} is broken");
        let (flags, lower) = (u16_at(&page, 10), u16_at(&page, 12));
        let (flags, lower) = (flags.ok_or_else(broken)?, lower.ok_or_else(broken)?);
        let nodes = usize::from(lower)
            .checked_sub(PAGE_HEAD)
            .ok_or_else(broken)?
            / 2;
        // Nodes do not overlap: otherwise a page could repeat one long key thousands of times.
        let mut room = self.page_size;
        for node in 0..nodes {
            let at = u16_at(&page, PAGE_HEAD + 2 * node).ok_or_else(broken)?;
            let node = page.get(usize::from(at)..).ok_or_else(broken)?;
            let half = |at: usize| u16_at(node, at).ok_or_else(broken);
            let (low, high, bits, key) = (half(0)?, half(2)?, half(4)?, half(6)?);
            let size = u64::from(low) | u64::from(high) << 16;
            room = room
                .checked_sub(NODE_HEAD + usize::from(key))
                .ok_or_else(broken)?;
            if flags & BRANCH != 0 {
                // The child's page number uses the flag bits too.
                self.page(size | u64::from(bits) << 32, depth - 1)?;
            } else if flags & LEAF != 0 && bits & !BIG == 0 {
                let length = size as usize;
                let value_at = NODE_HEAD + usize::from(key);
                let key = node.get(NODE_HEAD..value_at).ok_or_else(broken)?.to_vec();
                let offset = if bits & BIG != 0 {
                    let first = u64_at(node, value_at).ok_or_else(broken)?;
                    self.overflow(first, length)?
                } else {
                    node.get(value_at..)
                        .and_then(|rest| rest.get(..length))
                        .ok_or_else(broken)?;
                    index * self.page_size as u64 + (usize::from(at) + value_at) as u64
                };
                self.records.push(Record {
                    key,
                    offset,
                    length,
                });
            } else {
                return Err(format!(
                    "page {index} is of a kind that LSUN's files do not have"
                ));
            }
        }
        Ok(())
    }

    /// Where a value that begins at a page of its own lies, if it fits the pages that are there.
    fn overflow(&self, first: u64, length: usize) -> Result<u64, String> {
        let head = self.read(first, PAGE_HEAD)?;
        let count = u32_at(&head, 12).map_or(0, u64::from);
        if length as u64 > limits::PICTURE {
            return Err(format!(
                "a value of {length} bytes is longer than any picture"
            ));
        }
        let room = (count * self.page_size as u64).saturating_sub(PAGE_HEAD as u64);
        let inside = first
            .checked_add(count)
            .is_some_and(|end| end <= self.pages);
        if u16_at(&head, 10).is_none_or(|flags| flags & OVERFLOW == 0)
            || !inside
            || room < length as u64
        {
            return Err(format!(
                "a value of {length} bytes does not fit its pages from {first}"
            ));
        }
        Ok(first * self.page_size as u64 + PAGE_HEAD as u64)
    }

    fn read(&self, index: u64, length: usize) -> Result<Vec<u8>, String> {
        if index >= self.pages {
            return Err(format!(
                "page {index} lies outside the file of {} pages",
                self.pages
            ));
        }
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, index * self.page_size as u64)
            .map_err(|error| format!("page {index} cannot be read: {error}"))?;
        Ok(bytes)
    }
}

//! Records in one file: a gzip of lines, each the JSON of a record as its own file has it, in the order of their keys.
//!
//! Such a file is written whole and then only read: what is measured goes into a folder. Its lines are verified as
//! files of records are. gzip (RFC 1952) is read as anybody may have written it, in several members and with a name in
//! its header; it is written in one way, so that equal records give equal bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use model_zoo::file;
use model_zoo::misspelt::nearest;

use super::form::{self, Fault};
use super::{Contents, State, Store, StoreError, Verification, write_atomic};
use crate::cell::Key;
use crate::record::{Record, SCHEMA};

/// How the names of packed files end.
pub const ENDING: &str = ".jsonl.gz";

/// Bytes of a file at most, packed and unpacked: fifty thousand records of the micro suite or thousands of the largest
/// networks, and little enough to be held in memory, whoever made the file.
const LIMIT: usize = 128 << 20;

/// Bytes of a line at most: parsed, it takes up to seventy times the memory. A network of a thousand layers needs less than half.
const LINE: usize = 4 << 20;

/// Lines without a sound record at most: a file with more of them is not worth a message for each. Together they may be
/// as long as one, so that no time is lost on a file of anything else.
const MOST_BROKEN: usize = 100;

const AGAIN: &str = "pack the records again, or bring back a sound copy";

/// gzip's two bytes, and its only method.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// No name and no time; packed as small as possible, on no system in particular.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255];

const LEVEL: u8 = 9;

/// Where records are read from: a folder, or a file that they were packed into.
pub enum Source {
    /// A folder.
    Folder(Store),
    /// A file.
    Packed(PathBuf),
}

impl Source {
    /// Opens it for reading. What does not exist is an empty folder, unless its name is a file's.
    pub fn view(path: impl Into<PathBuf>) -> Result<Source, StoreError> {
        let path = path.into();
        if path.extension().is_some() && !path.exists() {
            return Err(absent(path));
        }
        match path.exists() && !path.is_dir() {
            true => Ok(Source::Packed(path)),
            false => Ok(Source::Folder(Store::view(path)?)),
        }
    }

    /// All records, verified.
    pub fn read(&self) -> Result<Contents, StoreError> {
        match self {
            Source::Folder(store) => store.read(),
            Source::Packed(path) => read(path),
        }
    }

    /// Checks everything in it.
    pub fn verify(&self) -> Result<Verification, StoreError> {
        match self {
            Source::Folder(store) => store.verify(),
            Source::Packed(path) => verify(path),
        }
    }

    /// Where a cell stands, given what was read.
    pub fn state(&self, key: &Key, contents: &Contents) -> State {
        match self {
            Source::Folder(store) => store.state(key),
            Source::Packed(_) => {
                let mut broken = contents.broken.iter().filter(|(named, _)| named == key);
                let found = contents.records.binary_search_by(|r| r.key.cmp(key));
                match (found, broken.next()) {
                    (Ok(_), _) => State::Done,
                    (Err(_), Some((_, error))) => State::Broken(error.to_string()),
                    (Err(_), None) => State::Open,
                }
            }
        }
    }

    /// The records of these cells as they were written, verified and each in one line; an error where one has none.
    pub fn lines(&self, keys: &BTreeSet<Key>) -> Result<Vec<String>, StoreError> {
        match self {
            Source::Folder(store) => keys.iter().map(|key| store.line(key)).collect(),
            Source::Packed(path) => {
                let text = unpacked(path)?;
                let mut lines = Lines::of(path, &text)?;
                let line = |key| match lines.sound.remove(key) {
                    Some(line) => Ok(form::compact(line.text)),
                    None => Err(broken(path, format!("it has no sound record {key}"))),
                };
                keys.iter().map(line).collect()
            }
        }
    }
}

/// What is said of a file that does not exist.
fn absent(path: PathBuf) -> StoreError {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let names = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    // The order of a folder is the system's.
    names.sort();
    let wrong = path.file_name().unwrap_or_default().to_string_lossy();
    let nearest = nearest(&wrong, names);
    StoreError::Absent { path, nearest }
}

/// Packs lines of records, in the order given, into a file; how many bytes that takes.
pub fn write(path: &Path, lines: &[String]) -> Result<usize, StoreError> {
    let text: String = lines
        .iter()
        .flat_map(|line| [line.as_str(), "\n"])
        .collect();
    let longest = lines.iter().map(String::len).max().unwrap_or(0);
    for (what, bytes, limit) in [
        ("a record", longest, LINE),
        ("all records", text.len(), LIMIT),
    ] {
        if bytes > limit {
            return Err(StoreError::TooMuch {
                path: path.to_path_buf(),
                why: format!("{what} would take {bytes} bytes, and may take {limit}"),
            });
        }
    }
    let bytes = pack(text.as_bytes());
    write_atomic(path, &bytes)?;
    Ok(bytes.len())
}

/// All records of a packed file, verified; a broken one costs nothing but itself.
pub fn read(path: &Path) -> Result<Contents, StoreError> {
    let text = unpacked(path)?;
    let lines = Lines::of(path, &text)?;
    let sound = lines.sound.into_values();
    Ok(Contents {
        records: sound.map(|line| line.record).collect(),
        broken: lines.broken,
        unlisted: lines.nameless,
    })
}

fn verify(path: &Path) -> Result<Verification, StoreError> {
    let text = unpacked(path)?;
    let lines = Lines::of(path, &text)?;
    let broken = lines.broken.into_iter().map(|(_, error)| error);
    Ok(Verification {
        records: lines.sound.len(),
        older: lines.sound.values().filter(|l| l.schema < SCHEMA).count(),
        broken: broken.chain(lines.nameless).collect(),
        ..Verification::default()
    })
}

/// A line with a sound record.
struct Line<'a> {
    /// The first is 1.
    number: usize,
    text: &'a str,
    record: Record,
    schema: u32,
}

struct Lines<'a> {
    sound: BTreeMap<Key, Line<'a>>,
    /// In the order of their keys.
    broken: Vec<(Key, StoreError)>,
    /// Broken ones that do not tell their key.
    nameless: Vec<StoreError>,
}

impl<'a> Lines<'a> {
    fn of(path: &Path, text: &'a [u8]) -> Result<Self, StoreError> {
        let mut lines = Lines {
            sound: BTreeMap::new(),
            broken: Vec::new(),
            nameless: Vec::new(),
        };
        let (mut first, mut wasted) = (None, 0);
        for (index, bytes) in text.split(|byte| *byte == b'\n').enumerate() {
            let number = index + 1;
            if bytes.is_empty() {
                continue;
            }
            let (key, fault) = match lines.take(number, bytes) {
                Ok(()) => continue,
                Err(fault) => fault,
            };
            // JSON's errors count lines too, and this is one.
            let why = fault.why.replace(" at line 1 column ", " at column ");
            let why = format!("line {number}: {why}");
            let first = &*first.get_or_insert_with(|| why.clone());
            let error = Fault { why, ..fault }.at(path);
            match key {
                Some(key) => lines.broken.push((key, error)),
                None => lines.nameless.push(error),
            }
            wasted += bytes.len();
            if lines.broken.len() + lines.nameless.len() > MOST_BROKEN || wasted > LINE {
                return Err(match lines.are_foreign() {
                    true => foreign(path, first.clone()),
                    false => broken(
                        path,
                        format!("too many of its lines are no sound records; {first}"),
                    ),
                });
            }
        }
        if lines.are_foreign() {
            let why = first.unwrap_or_else(|| "it holds no records".to_owned());
            return Err(foreign(path, why));
        }
        lines.broken.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(lines)
    }

    /// Whether no line is a record's, not even a broken one's.
    fn are_foreign(&self) -> bool {
        self.sound.is_empty() && self.broken.is_empty()
    }

    /// Takes a line in, or says what is wrong with it, and whose it is.
    fn take(&mut self, number: usize, bytes: &'a [u8]) -> Result<(), (Option<Key>, Fault)> {
        let fault = |why| Fault { why, remedy: AGAIN };
        if bytes.len() > LINE {
            let why = format!("it has more than {LINE} bytes");
            return Err((None, fault(why)));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|_| (None, fault("it is not UTF-8 text".to_owned())))?;
        let (record, schema) =
            form::parse_record(text, AGAIN).map_err(|fault| (form::key_of(text), fault))?;
        if let Some(earlier) = self.sound.get(&record.key) {
            let why = format!("it has the key of line {} again", earlier.number);
            return Err((Some(record.key), fault(why)));
        }
        let line = Line {
            number,
            text,
            schema,
            record,
        };
        self.sound.insert(line.record.key.clone(), line);
        Ok(())
    }
}

fn broken(path: &Path, why: String) -> StoreError {
    let remedy = AGAIN;
    Fault { why, remedy }.at(path)
}

fn foreign(path: &Path, why: String) -> StoreError {
    StoreError::NotPacked {
        path: path.to_path_buf(),
        why,
    }
}

fn unpacked(path: &Path) -> Result<Vec<u8>, StoreError> {
    let bytes = file::read(path, LIMIT as u64).map_err(|error| form::unread(path, error, AGAIN))?;
    if bytes.is_empty() {
        return Err(foreign(path, "it is empty".to_owned()));
    }
    if !bytes.starts_with(&MAGIC) {
        return Err(foreign(path, "it does not begin as gzip does".to_owned()));
    }
    unpack(&bytes).map_err(|why| broken(path, why))
}

/// A gzip file of one member.
fn pack(text: &[u8]) -> Vec<u8> {
    let mut bytes = HEADER.to_vec();
    bytes.extend(compress_to_vec(text, LEVEL));
    bytes.extend(crc32fast::hash(text).to_le_bytes());
    // gzip has room for the length modulo 2^32.
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes
}

/// What the members of a gzip file hold, one after the other; else what is wrong with it.
fn unpack(mut packed: &[u8]) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    while !packed.is_empty() {
        let begin = header(packed).ok_or_else(|| match text.is_empty() {
            true => "its gzip header is damaged".to_owned(),
            false => format!("{} bytes after its end are no gzip", packed.len()),
        })?;
        let (part, taken) = inflate(&packed[begin..], LIMIT - text.len())?;
        let end = begin + taken;
        let rest = packed.get(end..).unwrap_or_default();
        let (checksum, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let (length, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let length = u32::from_le_bytes(*length);
        if length != part.len() as u32 {
            return Err(format!(
                "it unpacks to {} bytes, and says that it has {length}",
                part.len()
            ));
        }
        if u32::from_le_bytes(*checksum) != crc32fast::hash(&part) {
            return Err(
                "its checksum is another one than its contents': something changed it".into(),
            );
        }
        match text.is_empty() {
            // Most files have one member, which need not be there twice.
            true => text = part,
            false => text.extend(part),
        }
        packed = rest;
    }
    Ok(text)
}

const CUT: &str = "it ends too early, as a copy that was cut short does";

/// Where a member's compressed bytes begin; none where this is no header of gzip, or not all of one.
fn header(bytes: &[u8]) -> Option<usize> {
    const CHECKSUM: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const RESERVED: u8 = 0xe0;
    let fixed = bytes.get(..HEADER.len())?;
    let flags = fixed[3];
    if !fixed.starts_with(&MAGIC) || flags & RESERVED != 0 {
        return None;
    }
    let mut at = fixed.len();
    if flags & EXTRA != 0 {
        let length = bytes.get(at..at + 2)?;
        at += 2 + usize::from(u16::from_le_bytes([length[0], length[1]]));
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            at += 1 + bytes.get(at..)?.iter().position(|byte| *byte == 0)?;
        }
    }
    if flags & CHECKSUM != 0 {
        at += 2;
    }
    (at <= bytes.len()).then_some(at)
}

/// What a deflated stream unpacks to, and how many bytes it takes. The length that gzip notes is not trusted with
/// memory: the room grows with what comes.
fn inflate(packed: &[u8], limit: usize) -> Result<(Vec<u8>, usize), String> {
    const START: usize = 64 << 10;
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = Box::<DecompressorOxide>::default();
    let mut text = vec![0; START.min(limit)];
    let (mut taken, mut made) = (0, 0);
    loop {
        let rest = packed.get(taken..).unwrap_or_default();
        let (status, read, written) = decompress(&mut state, rest, &mut text, made, flags);
        taken += read;
        made += written;
        match status {
            TINFLStatus::Done => {
                text.truncate(made);
                return Ok((text, taken));
            }
            TINFLStatus::HasMoreOutput if text.len() < limit => {
                text.resize((2 * text.len()).min(limit), 0);
            }
            TINFLStatus::HasMoreOutput => {
                return Err(format!("it unpacks to more than {LIMIT} bytes"));
            }
            TINFLStatus::FailedCannotMakeProgress | TINFLStatus::NeedsMoreInput => {
                return Err(CUT.to_owned());
            }
            _ => return Err("its compressed bytes are damaged".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{OLD, sample};
    use super::*;
    use std::fs;

    /// A store of three records, one of them of schema 1.
    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("records")).unwrap();
        for seed in [1, 0] {
            let mut record = sample(seed);
            record.timing.evaluate_s = 0.1 + seed as f64;
            store.put(&record).unwrap();
        }
        let key = form::key_of(OLD).unwrap();
        let old = store.path(&key);
        fs::create_dir_all(old.parent().unwrap()).unwrap();
        fs::write(old, OLD).unwrap();
        (folder, store)
    }

    fn keys(records: &[Record]) -> BTreeSet<Key> {
        records.iter().map(|record| record.key.clone()).collect()
    }

    /// All of a source, packed into a file.
    fn packed(source: &Source, path: &Path) -> Vec<u8> {
        let records = source.read().unwrap().records;
        let lines = source.lines(&keys(&records)).unwrap();
        let bytes = write(path, &lines).unwrap();
        let found = fs::read(path).unwrap();
        assert_eq!(found.len(), bytes);
        found
    }

    /// The lines of the store, and a file for damaged copies of them.
    fn lines() -> (tempfile::TempDir, Vec<String>, PathBuf) {
        let (folder, store) = store();
        let records = store.read().unwrap().records;
        let lines = Source::Folder(store).lines(&keys(&records)).unwrap();
        let path = folder.path().join("packed.jsonl.gz");
        (folder, lines, path)
    }

    #[test]
    fn what_is_packed_is_what_the_store_has() {
        let (folder, store) = store();
        let path = folder.path().join("all.jsonl.gz");
        let (contents, found) = (store.read().unwrap(), store.verify().unwrap());
        let source = Source::Folder(store.clone());
        let bytes = packed(&source, &path);

        let text = String::from_utf8(unpack(&bytes).unwrap()).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.ends_with('\n'));
        for (line, record) in text.lines().zip(&contents.records) {
            // The file as the store has it, digest, timing and old schema included, but for spaces and line ends.
            let file = fs::read_to_string(store.path(&record.key)).unwrap();
            assert_eq!(line, form::compact(&file));
            assert!(line.contains("\"digest\":"), "{line}");
        }

        let from_file = Source::view(&path).unwrap();
        assert!(matches!(from_file, Source::Packed(_)));
        let again = from_file.read().unwrap();
        assert_eq!(again.records, contents.records);
        assert!(again.broken.is_empty() && again.unlisted.is_empty());
        let verified = from_file.verify().unwrap();
        assert_eq!((verified.records, verified.older), (3, 1));
        assert_eq!((found.records, found.older), (3, 1));
        for record in &contents.records {
            assert_eq!(from_file.state(&record.key, &again), State::Done);
        }
        assert_eq!(from_file.state(&sample(7).key, &again), State::Open);

        let twice = folder.path().join("twice.jsonl.gz");
        assert_eq!(packed(&source, &twice), bytes);
        assert_eq!(packed(&from_file, &twice), bytes);
        let missing = from_file.lines(&[sample(7).key].into()).unwrap_err();
        assert!(missing.to_string().contains("no sound record"), "{missing}");
        let missing = source.lines(&[sample(7).key].into()).unwrap_err();
        assert!(missing.to_string().contains("cannot read"), "{missing}");
    }

    #[test]
    fn damage_is_found_wherever_it_is() {
        let (_folder, lines, path) = lines();
        write(&path, &lines).unwrap();
        let sound = fs::read(&path).unwrap();
        let records = read(&path).unwrap().records;
        let says = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = read(&path).err()?.to_string();
            assert!(error.contains("packed.jsonl.gz"), "{error}");
            let remedies = [AGAIN, "choose another with --store"];
            assert!(remedies.iter().any(|r| error.ends_with(r)), "{error}");
            Some(error)
        };
        for length in (0..12).chain((12..sound.len()).step_by(5)) {
            let error = says(&sound[..length]).unwrap_or_else(|| panic!("cut to {length}"));
            assert!(
                match length {
                    0 => error.contains("is empty"),
                    1..3 => error.contains("does not begin as gzip does"),
                    3..10 => error.contains("header is damaged"),
                    _ => error.contains("ends too early"),
                },
                "cut to {length}: {error}"
            );
        }
        let header = (0..10).flat_map(|at| (0..8).map(move |bit| (at, bit)));
        let rest = (10..sound.len()).step_by(3).map(|at| (at, at % 8));
        for (at, bit) in header.chain(rest) {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << bit;
            // Time, level and system in gzip's header mean nothing.
            if says(&bytes).is_none() {
                assert!((3..10).contains(&at), "byte {at}, bit {bit}");
                assert_eq!(read(&path).unwrap().records, records);
            }
        }
    }

    #[test]
    fn other_files_are_told_from_packed_ones() {
        let (folder, store) = store();
        let path = folder.path().join("file");
        let says = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err();
            assert!(!error.costs_one_cell(), "{error}");
            let error = error.to_string();
            assert!(
                error.contains("nor a file that `ptsbench pack` wrote")
                    && error.contains(&path.display().to_string()),
                "{error}"
            );
            error
        };
        let record = fs::read(store.path(&sample(0).key)).unwrap();
        assert!(says(b"").contains("is empty"));
        assert!(says(&record).contains("not begin as gzip does"));
        assert!(says(b"PK\x03\x04").contains("not begin as gzip does"));
        assert!(says(&pack(b"")).contains("no records"));
        assert!(says(&pack(b"\n\n")).contains("no records"));
        assert!(says(&pack(b"key,score\n1,2\n")).contains("line 1: expected value"));
        // A record over several lines.
        assert!(says(&pack(&record)).contains("line 1: EOF"));
        assert!(says(&pack(b"[]\n")).contains("line 1: expected a JSON object"));
        assert!(says(&pack(&[0xff, b'\n'])).contains("line 1: it is not UTF-8"));
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("a folder, not a file"), "{error}");
    }

    #[test]
    fn gzip_is_read_as_others_write_it() {
        let (_folder, lines, path) = lines();
        let text = lines.join("\n");
        let records = || {
            let contents = read(&path).unwrap();
            assert!(contents.broken.is_empty() && contents.unlisted.is_empty());
            contents.records
        };
        fs::write(&path, pack(text.as_bytes())).unwrap();
        let all = records();
        assert_eq!(all.len(), 3);

        // In members, which need not end with a line.
        let (first, second) = text.split_at(text.len() / 3);
        let members = [pack(first.as_bytes()), pack(b""), pack(second.as_bytes())];
        fs::write(&path, members.concat()).unwrap();
        assert_eq!(records(), all);
        let cut = members.concat();
        fs::write(&path, &cut[..cut.len() - 9]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("too early"));
        fs::write(&path, [&cut[..], b"tail"].concat()).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("4 bytes after its end"), "{error}");

        // With all that a header may have: a field, a name, a comment, a checksum.
        let plain = pack(text.as_bytes());
        let mut bytes = HEADER.to_vec();
        bytes[3] = 2 | 4 | 8 | 16;
        bytes.extend(b"\x03\x00abcname\0comment\0\x00\x00");
        let begin = bytes.len();
        bytes.extend(&plain[HEADER.len()..]);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(records(), all);
        for end in 0..begin {
            assert_eq!(header(&bytes[..end]), None, "{end}");
        }
        bytes[3] |= 0x20;
        assert_eq!(header(&bytes), None);
        // In the order of their keys, whatever the order of lines.
        let reversed: Vec<String> = lines.iter().rev().cloned().collect();
        fs::write(&path, pack(reversed.join("\r\n").as_bytes())).unwrap();
        assert_eq!(records(), all);
    }

    #[test]
    fn a_broken_line_costs_nothing_but_itself() {
        let (_folder, lines, path) = lines();
        let key = |line: &str| form::key_of(line).unwrap();
        let place = lines
            .iter()
            .position(|l| l.contains("\"schema\":2"))
            .unwrap();
        let sound = &lines[place];
        let cases = [
            (
                sound.replace("\"zeros\":700", "\"zeros\":701"),
                true,
                "something changed it",
            ),
            (
                sound.replace("\"macs\"", "\"maccs\""),
                true,
                "unknown field `maccs`",
            ),
            (
                sound.replacen("\"schema\":2", "\"schema\":3", 1),
                true,
                "reads 1 to 2",
            ),
            (
                sound.replacen("\"schema\":2", "\"other\":2", 1),
                true,
                "no schema number",
            ),
            (
                sound.replacen(key(sound).as_str(), "short", 1),
                false,
                "not a key",
            ),
            (
                sound[..sound.len() / 2].to_owned(),
                false,
                "EOF while parsing",
            ),
            ("null".to_owned(), false, "expected a JSON object"),
        ];
        for (line, told, says) in cases {
            assert_ne!(line, *sound, "{says}");
            let mut lines = lines.clone();
            lines[place] = line;
            write(&path, &lines).unwrap();
            let contents = read(&path).unwrap();
            assert_eq!(contents.records.len(), 2, "{says}");
            assert_eq!(contents.broken.len(), usize::from(told), "{says}");
            assert_eq!(contents.unlisted.len(), usize::from(!told), "{says}");
            let named = contents.broken.iter().map(|(_, error)| error);
            let error = named.chain(&contents.unlisted).next().unwrap().to_string();
            let head = format!("packed.jsonl.gz is broken: line {}: ", place + 1);
            assert!(error.contains(&head) && error.contains(says), "{error}");
            let remedy = match says.contains("reads") {
                true => "or move it away",
                false => AGAIN,
            };
            assert!(error.ends_with(remedy), "{error}");
            let source = Source::view(&path).unwrap();
            let found = source.verify().unwrap();
            assert_eq!((found.records, found.broken.len()), (2, 1), "{says}");
            let broken = matches!(source.state(&key(sound), &contents), State::Broken(_));
            assert_eq!(broken, told, "{says}");
            assert!(source.lines(&[key(sound)].into()).is_err(), "{says}");
        }

        let twice = [lines.clone(), vec![sound.clone()]].concat();
        write(&path, &twice).unwrap();
        let contents = read(&path).unwrap();
        assert_eq!((contents.records.len(), contents.broken.len()), (3, 1));
        let (named, error) = &contents.broken[0];
        assert_eq!(*named, key(sound));
        let says = format!("line 4: it has the key of line {} again", place + 1);
        assert!(error.to_string().contains(&says), "{error}");

        let many = [lines.clone(), vec!["{}".to_owned(); MOST_BROKEN + 1]].concat();
        write(&path, &many).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains("too many of its lines") && error.contains("line 4: it has no"),
            "{error}"
        );
    }

    #[test]
    fn nothing_unpacks_to_more_than_its_limit() {
        let zeros = compress_to_vec(&[0; 100_000], LEVEL);
        assert_eq!(
            inflate(&zeros, 100_000).unwrap(),
            (vec![0; 100_000], zeros.len())
        );
        for limit in [0, 1, 99_999] {
            let error = inflate(&zeros, limit).unwrap_err();
            assert!(error.contains("more than"), "{limit}: {error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.jsonl.gz");
        let line = "x".repeat(LINE);
        let error = write(&path, &[format!("{line}x")]).unwrap_err().to_string();
        assert!(
            error.contains("a record would take 4194305 bytes"),
            "{error}"
        );
        let error = write(&path, &vec![line; 32]).unwrap_err().to_string();
        assert!(
            error.contains("134217760 bytes") && error.contains("--plan"),
            "{error}"
        );
        assert!(!path.exists());
    }
}

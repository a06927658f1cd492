//! Records on disk: find, claim, write once, verify. Knows nothing of how a cell is measured.
//!
//! ```text
//! <store>/<first two of key>/<key>.json          a record; present = done
//!                            <key>.failed.json   the error of a cell that failed
//!                            <key>.claim         who is working on it
//! <store>/work/<key>/                            checkpoints of units; removed once the record is there
//! ```
//!
//! There is no index: the folder is the truth. A record is never overwritten. To its fields the store adds `digest`, the
//! SHA-256 of all of it but `timing` and `environment`, so that damage shows and two runs can be compared.

mod claim;
mod disk;
#[cfg(test)]
pub(crate) mod tests;

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::cell::{Cell, Key};
use crate::record::{Record, SCHEMA};

pub use claim::{Attempt, Claim, HEARTBEAT, Owner, Process, STALE};
pub use disk::{Disk, Filesystem, write_atomic, write_atomic_on};

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("no space left writing {}; what is finished is kept; free space and run again", path.display())]
    NoSpace {
        /// What was being written.
        path: PathBuf,
    },
    /// The store cannot be written.
    #[error("cannot write to the store {}: {reason}; choose another folder with --store", path.display())]
    Unwritable {
        /// The store.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// There is something else where the store should be.
    #[error("{} is not a folder, so it cannot be a store; choose another with --store", path.display())]
    NotAFolder {
        /// What is there.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {reason}; what is finished is kept; run again once the cause is gone", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {reason}; check the disk and the file's rights", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// A file is not what its name says.
    #[error("{} is broken: {why}; {remedy}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Expected and found.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A measurement is no number.
    #[error(
        "{field} of cell {key} is not a finite number; the cell was recorded as failed, and --retry-failed tries it again"
    )]
    NotFinite {
        /// The cell.
        key: Key,
        /// The record's field.
        field: String,
    },
    /// The cell has a record with other numbers.
    #[error(
        "{} exists with other numbers than were just measured, and was kept; one key must mean one result: compare the \
         two runs' environments, and remove the record to measure it again",
        path.display()
    )]
    Conflict {
        /// The record that was kept.
        path: PathBuf,
    },
    /// Somebody holds the store's lock and does not let go.
    #[error("{} has been locked for {seconds} seconds; another run may hang: end it, then run again", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long.
        seconds: u64,
    },
}

impl StoreError {
    fn writing(path: &Path, reason: io::Error) -> StoreError {
        let path = path.to_path_buf();
        if disk::is_full(&reason) {
            StoreError::NoSpace { path }
        } else {
            StoreError::Write { path, reason }
        }
    }

    fn reading(path: &Path, reason: io::Error) -> StoreError {
        StoreError::Read {
            path: path.to_path_buf(),
            reason,
        }
    }
}

/// A cell that could not be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// The cell's key.
    pub key: Key,
    /// What should have been measured.
    pub cell: Cell,
    /// Why it was not.
    pub error: String,
    /// When, seconds since 1970.
    pub failed_unix: u64,
}

/// Where a cell stands.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// It has a record.
    Done,
    /// It failed, and nobody is trying again.
    Failed(String),
    /// Somebody works on it.
    Claimed(Owner),
    /// Nobody does.
    Open,
}

/// What [`Store::verify`] found.
#[derive(Debug, Default)]
pub struct Verification {
    /// Sound records.
    pub records: usize,
    /// Sound failures.
    pub failures: usize,
    /// Cells somebody works on.
    pub claimed: usize,
    /// Everything that is not what its name says.
    pub broken: Vec<StoreError>,
    /// Files that are not the store's.
    pub strange: Vec<PathBuf>,
}

/// A folder of records.
#[derive(Clone)]
pub struct Store {
    root: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Store {
    /// Opens a store for writing, creating it where it is missing; fails before any computing where it cannot be
    /// written. Cleans up after writers that are gone.
    pub fn open(root: impl Into<PathBuf>) -> Result<Store, StoreError> {
        Store::open_on(root, Arc::new(Filesystem))
    }

    /// [`Store::open`] on a given disk.
    pub fn open_on(root: impl Into<PathBuf>, disk: Arc<dyn Disk>) -> Result<Store, StoreError> {
        let store = Store {
            root: root.into(),
            disk,
        };
        store.must_be_folder()?;
        let unwritable = |reason| StoreError::Unwritable {
            path: store.root.clone(),
            reason,
        };
        fs::create_dir_all(&store.root).map_err(unwritable)?;
        // Only writing shows that a folder can be written: mode bits say nothing to root or on a read-only mount.
        let probe = store.root.join(".probe");
        match store.write_atomic(&probe, b"ptsbench\n") {
            Ok(()) => {}
            Err(StoreError::Write { reason, .. }) => return Err(unwritable(reason)),
            Err(other) => return Err(other),
        }
        // Another process may have removed it first.
        let _ = fs::remove_file(&probe);
        store.clean()?;
        Ok(store)
    }

    /// Opens a store for reading; one that does not exist is empty.
    pub fn view(root: impl Into<PathBuf>) -> Result<Store, StoreError> {
        let store = Store {
            root: root.into(),
            disk: Arc::new(Filesystem),
        };
        store.must_be_folder()?;
        Ok(store)
    }

    fn must_be_folder(&self) -> Result<(), StoreError> {
        if self.root.exists() && !self.root.is_dir() {
            return Err(StoreError::NotAFolder {
                path: self.root.clone(),
            });
        }
        Ok(())
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the record of a cell lies, or will.
    pub fn path(&self, key: &Key) -> PathBuf {
        self.file(key, "json")
    }

    fn file(&self, key: &Key, ending: &str) -> PathBuf {
        self.root
            .join(&key.as_str()[..2])
            .join(format!("{key}.{ending}"))
    }

    /// The record of a cell, verified; none where it has not been measured.
    pub fn get(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        let path = self.path(key);
        let Some(record) = read_record(&path)? else {
            return Ok(None);
        };
        if record.key != *key {
            return Err(broken_record(
                &path,
                format!("its key is {}, and its name says {key}", record.key),
            ));
        }
        Ok(Some(record))
    }

    /// Writes the record of a cell, once. A number that is not finite makes the cell a failure instead.
    pub fn put(&self, record: &Record) -> Result<(), StoreError> {
        let mut value = to_value(record);
        if let Some(field) = not_finite(&value) {
            let error = format!("{field} is not a finite number");
            self.fail(&record.key, &record.cell, &error)?;
            return Err(StoreError::NotFinite {
                key: record.key.clone(),
                field,
            });
        }
        let digest = digest(record);
        if let Value::Object(map) = &mut value {
            map.insert("digest".into(), digest.clone().into());
        }
        let path = self.path(&record.key);
        if !disk::write_once(&*self.disk, &path, &pretty(&value))? {
            match self.get(&record.key)? {
                Some(earlier) if self::digest(&earlier) == digest => {}
                _ => return Err(StoreError::Conflict { path }),
            }
        }
        self.clear_failure(&record.key)?;
        // What cannot be removed now is removed when the store is opened next.
        let _ = fs::remove_dir_all(self.work_path(&record.key));
        Ok(())
    }

    /// Records that a cell failed; kept until [`Store::clear_failure`] or a later success.
    pub fn fail(&self, key: &Key, cell: &Cell, error: &str) -> Result<(), StoreError> {
        let failure = Failure {
            schema: SCHEMA,
            key: key.clone(),
            cell: cell.clone(),
            error: error.into(),
            failed_unix: now_unix(),
        };
        self.write_atomic(&self.file(key, "failed.json"), &pretty(&failure))
    }

    /// Why a cell failed, if it did.
    pub fn failure(&self, key: &Key) -> Result<Option<Failure>, StoreError> {
        let path = self.file(key, "failed.json");
        let Some(text) = read_text(&path)? else {
            return Ok(None);
        };
        let broken = |why| StoreError::Broken {
            path: path.clone(),
            why,
            remedy: "remove the file to have the cell tried again",
        };
        let failure: Failure =
            serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
        if failure.key != *key {
            return Err(broken(format!(
                "its key is {}, and its name says {key}",
                failure.key
            )));
        }
        Ok(Some(failure))
    }

    /// Forgets that a cell failed.
    pub fn clear_failure(&self, key: &Key) -> Result<(), StoreError> {
        let path = self.file(key, "failed.json");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(StoreError::writing(&path, error))
            }
            _ => Ok(()),
        }
    }

    /// Asks for a cell. Whoever gets it measures it, puts the record, and only then drops the claim.
    pub fn claim(&self, key: &Key) -> Result<Attempt, StoreError> {
        let record = self.path(key);
        claim::take(
            &*self.disk,
            &self.root.join(LOCK),
            &self.file(key, "claim"),
            || record.exists(),
        )
    }

    /// Where a cell stands.
    pub fn state(&self, key: &Key) -> Result<State, StoreError> {
        if self.path(key).exists() {
            return Ok(State::Done);
        }
        if let Some(owner) = claim::holder(&self.file(key, "claim"))? {
            return Ok(State::Claimed(owner));
        }
        Ok(match self.failure(key)? {
            Some(failure) => State::Failed(failure.error),
            None => State::Open,
        })
    }

    fn work_path(&self, key: &Key) -> PathBuf {
        self.root.join(WORK).join(key.as_str())
    }

    /// The folder for a cell's checkpoints, created; [`Store::put`] removes it.
    pub fn work_dir(&self, key: &Key) -> Result<PathBuf, StoreError> {
        let path = self.work_path(key);
        fs::create_dir_all(&path).map_err(|reason| StoreError::writing(&path, reason))?;
        Ok(path)
    }

    /// Writes a file whole, on this store's disk.
    pub fn write_atomic(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        write_atomic_on(&*self.disk, path, bytes)
    }

    /// The keys of all records, in order.
    pub fn keys(&self) -> Result<Vec<Key>, StoreError> {
        let mut keys: Vec<Key> = self
            .files()?
            .into_iter()
            .filter_map(|file| match file {
                Found::Record(key) => Some(key),
                _ => None,
            })
            .collect();
        keys.sort();
        Ok(keys)
    }

    /// All records, verified, in the order of their keys.
    pub fn iter(
        &self,
    ) -> Result<impl Iterator<Item = Result<Record, StoreError>> + '_, StoreError> {
        Ok(self
            .keys()?
            .into_iter()
            .filter_map(|key| self.get(&key).transpose()))
    }

    /// Checks every file of the store.
    pub fn verify(&self) -> Result<Verification, StoreError> {
        let mut found = Verification::default();
        let mut files = self.files()?;
        files.sort();
        for file in files {
            match file {
                Found::Record(key) => match self.get(&key) {
                    Ok(Some(_)) => found.records += 1,
                    Ok(None) => {}
                    Err(error) => found.broken.push(error),
                },
                Found::Failure(key) => match self.failure(&key) {
                    Ok(Some(_)) => found.failures += 1,
                    Ok(None) => {}
                    Err(error) => found.broken.push(error),
                },
                Found::Claim(key) => match claim::holder(&self.file(&key, "claim")) {
                    Ok(Some(_)) => found.claimed += 1,
                    Ok(None) => {}
                    Err(error) => found.broken.push(error),
                },
                Found::Temporary(_) => {}
                Found::Strange(path) => found.strange.push(path),
            }
        }
        Ok(found)
    }

    /// Removes temporary files of dead writers, and claims of dead owners and checkpoints of cells that have a record.
    fn clean(&self) -> Result<(), StoreError> {
        for file in self.files()? {
            match file {
                Found::Temporary(path) if disk::is_abandoned(&path) => {
                    let _ = fs::remove_file(path);
                }
                // Nobody takes a cell that has a record, so no claim can be made here in the meantime.
                Found::Claim(key) if self.path(&key).exists() => {
                    let path = self.file(&key, "claim");
                    if matches!(claim::holder(&path), Ok(None)) {
                        let _ = fs::remove_file(path);
                    }
                }
                _ => {}
            }
        }
        for path in list(&self.root.join(WORK))? {
            let done = name(&path)
                .and_then(|name| Key::try_from(name.to_string()).ok())
                .is_some_and(|key| self.path(&key).exists());
            if done {
                let _ = fs::remove_dir_all(&path);
                continue;
            }
            for file in list(&path)? {
                if name(&file).is_some_and(disk::is_temporary) && disk::is_abandoned(&file) {
                    let _ = fs::remove_file(file);
                }
            }
        }
        Ok(())
    }

    /// Every file of the store but checkpoints.
    fn files(&self) -> Result<Vec<Found>, StoreError> {
        let mut found = Vec::new();
        for entry in list(&self.root)? {
            let Some(folder) = name(&entry).map(String::from) else {
                found.push(Found::Strange(entry));
                continue;
            };
            if [LOCK, WORK, ".probe"].contains(&folder.as_str()) {
                continue;
            }
            if disk::is_temporary(&folder) {
                found.push(Found::Temporary(entry));
                continue;
            }
            if !entry.is_dir() {
                found.push(Found::Strange(entry));
                continue;
            }
            for path in list(&entry)? {
                found.push(Found::classify(&folder, path));
            }
        }
        Ok(found)
    }
}

const LOCK: &str = ".lock";
const WORK: &str = "work";

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Record(Key),
    Failure(Key),
    Claim(Key),
    Temporary(PathBuf),
    Strange(PathBuf),
}

impl Found {
    fn classify(folder: &str, path: PathBuf) -> Found {
        let Some(name) = name(&path) else {
            return Found::Strange(path);
        };
        if disk::is_temporary(name) {
            return Found::Temporary(path);
        }
        let Some((stem, ending)) = name.split_once('.') else {
            return Found::Strange(path);
        };
        match (Key::try_from(stem.to_string()), ending) {
            (Ok(key), _) if &key.as_str()[..2] != folder => Found::Strange(path),
            (Ok(key), "json") => Found::Record(key),
            (Ok(key), "failed.json") => Found::Failure(key),
            (Ok(key), "claim") => Found::Claim(key),
            _ => Found::Strange(path),
        }
    }
}

/// SHA-256, in hex, of a record without `timing` and `environment`: equal where two runs agree.
pub fn digest(record: &Record) -> String {
    let mut value = to_value(record);
    if let Value::Object(map) = &mut value {
        map.shift_remove("timing");
        map.shift_remove("environment");
    }
    let hash = Sha256::digest(value.to_string());
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads and verifies a record file, wherever it lies; none where there is no such file.
pub fn read_record(path: &Path) -> Result<Option<Record>, StoreError> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    parse_record(&text)
        .map(Some)
        .map_err(|why| broken_record(path, why))
}

fn parse_record(text: &str) -> Result<Record, String> {
    let mut value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let map = value.as_object_mut().ok_or("expected a JSON object")?;
    match map.get("schema").and_then(Value::as_u64) {
        Some(schema) if schema == u64::from(SCHEMA) => {}
        Some(schema) => {
            return Err(format!(
                "its schema is {schema}, and this program reads {SCHEMA}"
            ));
        }
        None => return Err("it has no schema number".into()),
    }
    let written = match map.shift_remove("digest") {
        Some(Value::String(digest)) => digest,
        _ => return Err("it has no digest".into()),
    };
    let record: Record = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let key = record.cell.key();
    if record.key != key {
        return Err(format!(
            "its key is {}, and its cell's is {key}",
            record.key
        ));
    }
    let computed = digest(&record);
    if written != computed {
        return Err(format!(
            "its digest is {written}, and its contents' is {computed}: something changed it"
        ));
    }
    Ok(record)
}

fn broken_record(path: &Path, why: String) -> StoreError {
    StoreError::Broken {
        path: path.to_path_buf(),
        why,
        remedy: "move it away to have the cell measured again, or bring back a sound copy",
    }
}

fn read_text(path: &Path) -> Result<Option<String>, StoreError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            Err(broken_record(path, "it is not UTF-8 text".into()))
        }
        Err(reason) => Err(StoreError::reading(path, reason)),
    }
}

/// A folder's entries in the order of their names; none where there is no folder.
fn list(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let reading = |reason| StoreError::reading(folder, reason);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(reading(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(reading)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn to_value(record: &Record) -> Value {
    serde_json::to_value(record).expect("a record has string keys and serializable fields only")
}

/// Pretty JSON with a final newline.
fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec_pretty(value).expect("the store's types have string keys only");
    bytes.push(b'\n');
    bytes
}

/// The path of the first number that is NaN or infinite. JSON has no such numbers and serde writes null for them; a
/// record holds no other null.
fn not_finite(value: &Value) -> Option<String> {
    fn find(value: &Value, path: &str) -> Option<String> {
        let below = |name: &dyn std::fmt::Display| match path {
            "" => name.to_string(),
            _ => format!("{path}.{name}"),
        };
        match value {
            Value::Null => Some(path.into()),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .find_map(|(index, item)| find(item, &below(&index))),
            Value::Object(map) => map
                .iter()
                .find_map(|(name, inner)| find(inner, &below(name))),
            _ => None,
        }
    }
    find(value, "")
}

/// Seconds since 1970.
fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

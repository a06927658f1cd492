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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cell::*;
    use crate::record::*;
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// A record with every optional field, of a cell that `seed` makes distinct.
    pub(crate) fn sample(seed: u64) -> Record {
        let part = |name: &str| Part {
            name: name.into(),
            version: 1,
        };
        let cell = Cell {
            model: "micro_resnet8".into(),
            precision: kernels::Precision::Bf16,
            weights: "ab".repeat(32),
            task: TaskCell {
                name: "micro".into(),
                version: 1,
                samples: 200,
                data: Some("cd".repeat(32)),
                recipe: Some("crop 32".into()),
            },
            sparsity: Some(Sparsity {
                pattern: Pattern::Unstructured { rate: 0.7 },
                allocation: Some(part("l2norm")),
                criterion: part("magnitude"),
                rule: Rule::Exact,
                reconstruction: Some(Reconstruction {
                    version: 1,
                    granularity: Granularity::Layer,
                    inputs: Inputs::Sparse,
                    correction: true,
                    calibration: CalibrationCell {
                        images: 32,
                        batch: 16,
                        seed,
                        list: Some("ef".repeat(32)),
                    },
                    fit: Fit {
                        optimizer: Optimizer::Sgd {
                            lr: 1e-4,
                            bias_lr: 0.0,
                            momentum: 0.9,
                        },
                        steps: 5,
                        early_stop: 1e-5,
                    },
                }),
            }),
        };
        Record {
            schema: SCHEMA,
            key: cell.key(),
            cell,
            score: Score {
                metric: "top1".into(),
                value: 200.0 / 3.0,
                better: Better::Higher,
                correct: 133,
                total: 200,
                available: 2000,
            },
            cost: Cost {
                weights: 1000,
                zeros: 700,
                parameters: 1100,
                macs: 50_000,
                sparse_macs: 20_000,
            },
            layers: vec![LayerOutcome {
                path: "conv1".into(),
                shape: vec![16, 3, 3, 3],
                weights: 432,
                zeros: 100,
                rate: Some(0.23),
            }],
            units: vec![UnitOutcome {
                path: "conv1".into(),
                grain: Granularity::Single,
                steps: 5,
                loss_before: 0.1,
                loss_after: 1e-300,
            }],
            timing: Timing::default(),
            environment: Environment::default(),
        }
    }

    /// The same without anything optional.
    fn bare() -> Record {
        let mut record = sample(0);
        record.cell.sparsity = None;
        record.key = record.cell.key();
        record.units.clear();
        record.layers[0].rate = None;
        record
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("records")).unwrap();
        (folder, store)
    }

    #[test]
    fn what_is_put_is_got_and_lies_where_it_should() {
        let (_folder, store) = store();
        let record = sample(0);
        assert_eq!(store.get(&record.key).unwrap(), None);
        store.put(&record).unwrap();
        assert_eq!(store.get(&record.key).unwrap(), Some(record.clone()));
        let key = record.key.as_str();
        let text =
            fs::read_to_string(store.root().join(&key[..2]).join(format!("{key}.json"))).unwrap();
        assert!(text.starts_with("{\n  \"schema\": 1,") && text.ends_with("}\n"));
        assert_eq!(store.state(&record.key).unwrap(), State::Done);
    }

    #[test]
    fn a_record_is_written_once() {
        let (_folder, store) = store();
        let record = sample(0);
        store.put(&record).unwrap();
        let bytes = fs::read(store.path(&record.key)).unwrap();

        let mut again = record.clone();
        again.timing.evaluate_s = 9.0;
        store.put(&again).unwrap();
        let mut other = record.clone();
        other.score.correct += 1;
        let error = store.put(&other).unwrap_err().to_string();
        assert!(
            error.contains("other numbers") && error.contains(record.key.as_str()),
            "{error}"
        );
        assert_eq!(fs::read(store.path(&record.key)).unwrap(), bytes);
    }

    #[test]
    fn the_digest_covers_all_but_timing_and_environment() {
        let record = sample(0);
        let mut same = record.clone();
        same.timing.finished_unix = 1;
        same.environment.threads = 7;
        assert_eq!(digest(&record), digest(&same));
        let mut other = record.clone();
        other.units[0].loss_after = other.units[0].loss_after.next_up();
        assert_ne!(digest(&record), digest(&other));
    }

    #[test]
    fn a_broken_record_is_named_with_what_to_do() {
        let (_folder, store) = store();
        let record = sample(0);
        store.put(&record).unwrap();
        let path = store.path(&record.key);
        let sound = fs::read_to_string(&path).unwrap();
        let other_key = sample(1).key.to_string();
        let cases: Vec<(String, &str)> = vec![
            (sound[..sound.len() / 2].to_string(), "EOF while parsing"),
            (String::new(), "EOF while parsing"),
            ("[]".into(), "expected a JSON object"),
            ("{}".into(), "no schema number"),
            (
                sound.replacen("\"schema\": 1", "\"schema\": 2", 1),
                "schema is 2, and this program reads 1",
            ),
            (sound.replace("\"digest\"", "\"digset\""), "no digest"),
            (
                sound.replace("\"zeros\": 700", "\"zeros\": 701"),
                "something changed it",
            ),
            (sound.replace("\"zeros\": 700", "\"zeros\": null"), "null"),
            (
                sound.replace("\"macs\"", "\"maccs\""),
                "unknown field `maccs`",
            ),
            (
                sound.replace("\"rate\": 0.7\n", "\"rate\": 0.8\n"),
                "its cell's is",
            ),
            (
                sound.replacen(record.key.as_str(), &other_key, 1),
                "its cell's is",
            ),
            (sound.replacen(record.key.as_str(), "short", 1), "not a key"),
        ];
        for (text, says) in cases {
            assert_ne!(text, sound, "{says}");
            fs::write(&path, text).unwrap();
            let error = store.get(&record.key).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(error.contains(says), "expected {says}: {error}");
            assert!(error.ends_with("bring back a sound copy"), "{error}");
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        let error = store.get(&record.key).unwrap_err().to_string();
        assert!(error.contains("not UTF-8"), "{error}");
        // A sound record under another's name.
        fs::write(store.path(&sample(0).key), {
            store.put(&sample(1)).unwrap();
            fs::read(store.path(&sample(1).key)).unwrap()
        })
        .unwrap();
        let error = store.get(&record.key).unwrap_err().to_string();
        assert!(error.contains("its name says"), "{error}");
    }

    #[test]
    fn numbers_that_are_not_finite_become_failures() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let (_folder, store) = store();
            let mut record = sample(0);
            record.units[0].loss_after = bad;
            let error = store.put(&record).unwrap_err().to_string();
            assert!(error.starts_with("units.0.loss_after of cell"), "{error}");
            assert_eq!(store.get(&record.key).unwrap(), None);
            let why = "units.0.loss_after is not a finite number".to_string();
            assert_eq!(store.state(&record.key).unwrap(), State::Failed(why));
        }
    }

    #[test]
    fn a_failure_is_kept_until_it_is_cleared_or_the_cell_succeeds() {
        let (_folder, store) = store();
        let record = sample(0);
        store
            .fail(&record.key, &record.cell, "out of luck")
            .unwrap();
        let failure = store.failure(&record.key).unwrap().unwrap();
        assert_eq!(
            (failure.error.as_str(), &failure.cell),
            ("out of luck", &record.cell)
        );
        store.clear_failure(&record.key).unwrap();
        store.clear_failure(&record.key).unwrap();
        assert_eq!(store.state(&record.key).unwrap(), State::Open);
        store.fail(&record.key, &record.cell, "again").unwrap();
        store.put(&record).unwrap();
        assert_eq!(store.failure(&record.key).unwrap(), None);
    }

    #[test]
    fn checkpoints_go_when_the_record_is_there() {
        let (_folder, store) = store();
        let record = sample(0);
        let work = store.work_dir(&record.key).unwrap();
        store
            .write_atomic(&work.join("unit-0"), b"weights")
            .unwrap();
        assert_eq!(store.work_dir(&record.key).unwrap(), work);
        store.put(&record).unwrap();
        assert!(!work.exists());
        // Killed between record and removal: the next start cleans up, and keeps what is still needed.
        store.work_dir(&record.key).unwrap();
        let open = store.work_dir(&sample(1).key).unwrap();
        Store::open(store.root()).unwrap();
        assert!(!work.exists() && open.exists());
    }

    #[test]
    fn a_claimed_cell_shows_and_a_recorded_one_cannot_be_claimed() {
        let (_folder, store) = store();
        let record = sample(0);
        let Attempt::Claimed(claim) = store.claim(&record.key).unwrap() else {
            panic!("a free cell could not be claimed")
        };
        assert!(matches!(
            store.state(&record.key).unwrap(),
            State::Claimed(_)
        ));
        assert!(matches!(
            store.claim(&record.key).unwrap(),
            Attempt::Held { .. }
        ));
        store.put(&record).unwrap();
        drop(claim);
        assert!(matches!(store.claim(&record.key).unwrap(), Attempt::Done));
    }

    #[test]
    fn records_come_in_the_order_of_their_keys() {
        let (_folder, store) = store();
        for seed in 0..20 {
            store.put(&sample(seed)).unwrap();
        }
        let keys: Vec<Key> = store
            .iter()
            .unwrap()
            .map(|record| record.unwrap().key)
            .collect();
        assert_eq!(keys.len(), 20);
        assert!(keys.is_sorted());
    }

    #[test]
    fn verification_finds_all_that_is_broken_and_ignores_what_is_on_its_way() {
        let (_folder, store) = store();
        for seed in 0..3 {
            store.put(&sample(seed)).unwrap();
        }
        store.fail(&sample(3).key, &sample(3).cell, "no").unwrap();
        let _claim = store.claim(&sample(4).key).unwrap();
        let shard = store.path(&sample(0).key).parent().unwrap().to_path_buf();
        fs::write(shard.join(".tmp-half"), "{").unwrap();
        fs::write(store.root().join("notes.txt"), "mine").unwrap();
        let found = store.verify().unwrap();
        assert_eq!((found.records, found.failures, found.claimed), (3, 1, 1));
        assert_eq!((found.broken.len(), found.strange.len()), (0, 1));

        fs::write(store.path(&sample(1).key), "{").unwrap();
        fs::write(store.file(&sample(3).key, "failed.json"), "{").unwrap();
        let found = store.verify().unwrap();
        assert_eq!(
            (found.records, found.failures, found.broken.len()),
            (2, 0, 2)
        );
        assert!(store.iter().unwrap().any(|record| record.is_err()));
    }

    #[test]
    fn temporary_files_go_when_their_writer_is_dead_or_unseen_for_a_day() {
        let (_folder, store) = store();
        let me = Process::this();
        let boot = me.boot_tag();
        let leave = |pid: u32, started: u64, machine: &str, boot: &str, hours: u64| {
            let name = format!(".tmp-{machine}-{boot}-{pid}-{started}-0");
            let path = store.root().join("ab").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "half").unwrap();
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours))
                .unwrap();
            path
        };
        let tag = me.machine_tag();
        let kept = [
            leave(me.pid, me.started, &tag, boot, 2),
            leave(me.pid, me.started, &tag, "anyother", 0),
            leave(1, 1, "elsewher", boot, 2),
        ];
        let gone = [
            leave(me.pid, me.started + 1, &tag, boot, 0),
            leave(me.pid, me.started + 1, &tag, "anyother", 2),
            leave(2, 1, "elsewher", boot, 25),
        ];
        Store::open(store.root()).unwrap();
        assert!(kept.iter().all(|path| path.exists()));
        if cfg!(target_os = "linux") {
            assert!(gone.iter().all(|path| !path.exists()));
        }
    }

    #[test]
    fn a_dead_owners_claim_goes_once_the_cell_has_a_record() {
        let (_folder, store) = store();
        let leave = |key: &Key, later: u64| {
            let mut process = Process::this().clone();
            process.started += later;
            let owner = Owner {
                process,
                serial: 0,
                since_unix: now_unix(),
            };
            let path = store.file(key, "claim");
            store.write_atomic(&path, &pretty(&owner)).unwrap();
            path
        };
        store.put(&sample(0)).unwrap();
        store.put(&sample(1)).unwrap();
        let living = leave(&sample(0).key, 0);
        let dead = leave(&sample(1).key, 1);
        let open = leave(&sample(2).key, 1);
        Store::open(store.root()).unwrap();
        assert!(living.exists() && open.exists());
        if cfg!(target_os = "linux") {
            assert!(!dead.exists());
        }
    }

    #[test]
    fn a_store_that_cannot_be_written_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        let refuse = |path: &Path| Store::open(path).err().unwrap().to_string();
        assert!(refuse(&file).contains("is not a folder"));
        let below = refuse(&file.join("records"));
        assert!(
            below.contains("cannot write to the store") && below.contains("--store"),
            "{below}"
        );
        assert!(Store::view(&file).is_err());
        let absent = Store::view(folder.path().join("absent")).unwrap();
        assert_eq!(absent.keys().unwrap(), []);
        assert!(!absent.root().exists());
    }

    /// A disk of which one step fails from the `after`-th call on.
    struct Failing {
        step: &'static str,
        kind: ErrorKind,
        after: usize,
        calls: AtomicUsize,
    }

    impl Failing {
        fn at(&self, step: &str) -> io::Result<()> {
            if step == self.step && self.calls.fetch_add(1, Ordering::SeqCst) >= self.after {
                return Err(self.kind.into());
            }
            Ok(())
        }
    }

    impl Disk for Failing {
        fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
            if let Err(error) = self.at("write") {
                // A full disk takes a part.
                fs::write(path, &bytes[..bytes.len() / 2])?;
                return Err(error);
            }
            Filesystem.write(path, bytes)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.at("rename")?;
            Filesystem.rename(from, to)
        }
        fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.at("link")?;
            Filesystem.link(from, to)
        }
        fn sync_folder(&self, folder: &Path) -> io::Result<()> {
            self.at("sync")?;
            Filesystem.sync_folder(folder)
        }
    }

    fn failing(
        root: &Path,
        step: &'static str,
        kind: ErrorKind,
        after: usize,
    ) -> Result<Store, StoreError> {
        let disk = Failing {
            step,
            kind,
            after,
            calls: AtomicUsize::new(0),
        };
        Store::open_on(root, Arc::new(disk))
    }

    fn files_below(folder: &Path) -> usize {
        let below = |path: PathBuf| if path.is_dir() { files_below(&path) } else { 1 };
        list(folder).unwrap().into_iter().map(below).sum()
    }

    #[test]
    fn a_full_disk_loses_nothing_and_leaves_no_half_file() {
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            for step in ["write", "link"] {
                let folder = tempfile::tempdir().unwrap();
                // The probe at opening writes once, and links nothing.
                let after = if step == "write" { 2 } else { 1 };
                let store = failing(folder.path(), step, kind, after).unwrap();
                store.put(&sample(0)).unwrap();
                let error = store.put(&sample(1)).unwrap_err().to_string();
                let path = store.path(&sample(1).key);
                assert_eq!(
                    error,
                    format!(
                        "no space left writing {}; what is finished is kept; free space and run again",
                        path.display()
                    )
                );
                assert_eq!(files_below(folder.path()), 1);
                assert_eq!(store.get(&sample(0).key).unwrap(), Some(sample(0)));
                let roomy = Store::open(folder.path()).unwrap();
                roomy.put(&sample(1)).unwrap();
                assert_eq!(roomy.keys().unwrap().len(), 2);
            }
        }
    }

    #[test]
    fn a_disk_full_from_the_start_is_found_at_opening() {
        let folder = tempfile::tempdir().unwrap();
        let error = failing(folder.path(), "write", ErrorKind::StorageFull, 0)
            .err()
            .unwrap();
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
        let error = failing(folder.path(), "write", ErrorKind::ReadOnlyFilesystem, 0)
            .err()
            .unwrap();
        assert!(matches!(error, StoreError::Unwritable { .. }), "{error}");
        assert_eq!(files_below(folder.path()), 0);
    }

    #[test]
    fn a_file_system_without_hard_links_will_do() {
        let folder = tempfile::tempdir().unwrap();
        let store = failing(folder.path(), "link", ErrorKind::Unsupported, 0).unwrap();
        store.put(&sample(0)).unwrap();
        store.put(&sample(0)).unwrap();
        assert_eq!(files_below(folder.path()), 1);
        assert_eq!(store.get(&sample(0).key).unwrap(), Some(sample(0)));
    }

    const CHILD: &str = "PTSBENCH_TEST_STORE";
    const CELLS: u64 = 12;

    /// Not a test of its own: what the children of the test below do. Each measures what it can claim and writes the
    /// seeds it measured to stderr; `die` leaves a claim behind.
    #[test]
    fn child() {
        let Ok(root) = std::env::var(CHILD) else {
            return;
        };
        let store = Store::open(root).unwrap();
        loop {
            let mut open = 0;
            for seed in 0..CELLS {
                let record = sample(seed);
                match store.claim(&record.key).unwrap() {
                    Attempt::Done => {}
                    Attempt::Held { .. } => open += 1,
                    Attempt::Claimed(claim) => {
                        std::thread::sleep(Duration::from_millis(5));
                        if std::env::var("DIE").is_ok() {
                            std::process::abort();
                        }
                        eprintln!("measured {seed}");
                        store.put(&record).unwrap();
                        drop(claim);
                    }
                }
            }
            if open == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn processes_share_a_store_and_take_over_from_the_dead() {
        let (_folder, store) = store();
        let spawn = |dies: bool| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", "store::tests::child", "--nocapture"])
                .env(CHILD, store.root())
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            if dies {
                command.env("DIE", "1");
            }
            command.spawn().unwrap()
        };
        let dead = spawn(true).wait_with_output().unwrap();
        assert!(!dead.status.success());
        let claims = |store: &Store| {
            let files = store.files().unwrap();
            files
                .iter()
                .filter(|f| matches!(f, Found::Claim(_)))
                .count()
        };
        assert_eq!(claims(&store), 1, "the dead child left its claim");

        let children: Vec<_> = (0..3).map(|_| spawn(false)).collect();
        let mut measured = Vec::new();
        for child in children {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{text}");
            let lines = text
                .lines()
                .filter_map(|line| line.strip_prefix("measured "));
            measured.extend(lines.map(|seed| seed.parse::<u64>().unwrap()));
        }
        measured.sort();
        assert_eq!(
            measured,
            (0..CELLS).collect::<Vec<_>>(),
            "each cell is measured once"
        );
        let found = store.verify().unwrap();
        assert_eq!((found.records, found.broken.len()), (CELLS as usize, 0));
        assert_eq!(claims(&store), 0);
    }

    /// Checks a value against the parts of JSON Schema that ours uses; returns complaints. `seen` collects the schema's
    /// properties that the value has.
    fn check(
        root: &Value,
        schema: &Value,
        value: &Value,
        at: &str,
        seen: &mut std::collections::BTreeSet<String>,
    ) -> Vec<String> {
        let schema = match schema.get("$ref").and_then(Value::as_str) {
            Some(to) => root
                .pointer(to.trim_start_matches('#'))
                .expect("a $ref leads somewhere"),
            None => schema,
        };
        let mut complaints = Vec::new();
        for name in schema.as_object().unwrap().keys() {
            let known = [
                "$schema",
                "$id",
                "$defs",
                "title",
                "description",
                "type",
                "properties",
                "required",
                "additionalProperties",
                "items",
                "enum",
                "const",
                "oneOf",
                "pattern",
            ];
            assert!(
                known.contains(&name.as_str()),
                "the checker does not know `{name}`"
            );
        }
        if let Some(kind) = schema.get("type").and_then(Value::as_str) {
            let fits = match kind {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_u64(),
                "number" => value.is_number(),
                other => panic!("the checker does not know type `{other}`"),
            };
            if !fits {
                complaints.push(format!("{at}: expected {kind}, found {value}"));
            }
        }
        if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
            && !allowed.contains(value)
        {
            complaints.push(format!("{at}: {value} is none of {allowed:?}"));
        }
        if let Some(constant) = schema.get("const")
            && constant != value
        {
            complaints.push(format!("{at}: {value} is not {constant}"));
        }
        if let Some(pattern) = schema.get("pattern") {
            assert_eq!(pattern, "^[0-9a-f]{64}$", "the checker knows one pattern");
            let text = value.as_str().unwrap_or_default();
            if Key::try_from(text.to_string()).is_err() {
                complaints.push(format!("{at}: {value} is no digest"));
            }
        }
        if let Some(variants) = schema.get("oneOf").and_then(Value::as_array) {
            let fitting: Vec<_> = variants
                .iter()
                .filter(|variant| {
                    check(root, variant, value, at, &mut Default::default()).is_empty()
                })
                .collect();
            match fitting[..] {
                [one] => complaints.extend(check(root, one, value, at, seen)),
                _ => complaints.push(format!("{at}: {} variants fit {value}", fitting.len())),
            }
        }
        if let (Some(item), Some(values)) = (schema.get("items"), value.as_array()) {
            for value in values {
                complaints.extend(check(root, item, value, &format!("{at}[]"), seen));
            }
        }
        if let (Some(properties), Some(fields)) = (
            schema.get("properties").and_then(Value::as_object),
            value.as_object(),
        ) {
            assert_eq!(schema["additionalProperties"], false, "{at} must be closed");
            for (name, field) in fields {
                let at = format!("{at}.{name}");
                match properties.get(name) {
                    Some(property) => complaints.extend(check(root, property, field, &at, seen)),
                    None => complaints.push(format!("{at} is not in the schema")),
                }
                seen.insert(at);
            }
            for name in schema["required"].as_array().unwrap() {
                if !fields.contains_key(name.as_str().unwrap()) {
                    complaints.push(format!("{at}.{name} is missing"));
                }
            }
        }
        complaints
    }

    /// Every property path the schema offers, through all variants.
    fn offered(
        root: &Value,
        schema: &Value,
        at: &str,
        all: &mut std::collections::BTreeSet<String>,
    ) {
        let schema = match schema.get("$ref").and_then(Value::as_str) {
            Some(to) => root.pointer(to.trim_start_matches('#')).unwrap(),
            None => schema,
        };
        for variant in schema
            .get("oneOf")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            offered(root, variant, at, all);
        }
        if let Some(item) = schema.get("items") {
            offered(root, item, &format!("{at}[]"), all);
        }
        for (name, property) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let at = format!("{at}.{name}");
            offered(root, property, &at, all);
            all.insert(at);
        }
    }

    #[test]
    fn the_schema_and_the_records_have_the_same_fields() {
        let schema: Value =
            serde_json::from_str(include_str!("../../assets/schema/record.v1.json")).unwrap();
        let (_folder, store) = store();
        let mut records = vec![sample(0), bare()];
        for pattern in [
            Pattern::NofM { n: 2, m: 4 },
            Pattern::TransposableNofM { n: 2, m: 4 },
        ] {
            let mut record = sample(0);
            let sparsity = record.cell.sparsity.as_mut().unwrap();
            sparsity.pattern = pattern;
            sparsity.allocation = None;
            let fit = &mut sparsity.reconstruction.as_mut().unwrap().fit;
            fit.optimizer = Optimizer::Adam {
                lr: 1e-5,
                bias_lr: 1e-4,
            };
            record.key = record.cell.key();
            records.push(record);
        }
        let mut seen = Default::default();
        for record in &records {
            store.put(record).unwrap();
            let text = fs::read_to_string(store.path(&record.key)).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            let complaints = check(&schema, &schema, &value, "", &mut seen);
            assert_eq!(complaints, Vec::<String>::new());

            let mut extra = value.clone();
            extra["surplus"] = 1.into();
            let mut lacking = value.clone();
            lacking["score"]
                .as_object_mut()
                .unwrap()
                .shift_remove("value");
            for wrong in [extra, lacking] {
                assert_eq!(
                    check(&schema, &schema, &wrong, "", &mut Default::default()).len(),
                    1
                );
            }
        }
        let mut all = Default::default();
        offered(&schema, &schema, "", &mut all);
        assert_eq!(all, seen, "the schema offers what no record has");
    }
}

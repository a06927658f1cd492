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
//! SHA-256 of all of it but `timing` and `environment`, so that damage shows and two runs can be compared. Records that are
//! handed on can be packed into one file (`packed`), which is only read.

mod claim;
mod disk;
mod error;
mod form;
pub mod packed;
#[cfg(test)]
pub(crate) mod tests;
mod watch;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cell::{Cell, Key};
use crate::record::{Record, SCHEMA};

pub use claim::{Attempt, Claim, HEARTBEAT, Held, Owner, Process, STALE};
pub use disk::{Disk, Filesystem, write_atomic, write_atomic_on};
pub use error::StoreError;
pub use form::{digest, read_record};
use form::{not_finite, pretty, to_value};

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
    /// A file of it is not what its name says: which, why, and what to do. Nobody can take it until that is done.
    Broken(String),
    /// Nobody does.
    Open,
}

/// What [`Store::read`] found.
#[derive(Debug, Default)]
pub struct Contents {
    /// The sound records, in the order of their keys.
    pub records: Vec<Record>,
    /// The others, with the cell that each is named after.
    pub broken: Vec<(Key, StoreError)>,
    /// What does not say whose it is: folders that cannot be listed, lines of a packed file.
    pub unlisted: Vec<StoreError>,
}

/// What [`Store::verify`] found.
#[derive(Debug, Default)]
pub struct Verification {
    /// Sound records.
    pub records: usize,
    /// Of those, records of an older schema.
    pub older: usize,
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
        claim::check_lock(&store.root.join(LOCK))?;
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
        let found = form::record(&self.path(key), key)?;
        Ok(found.map(|(record, _)| record))
    }

    /// The record of a cell as it was written, verified and in one line; an error where there is none.
    fn line(&self, key: &Key) -> Result<String, StoreError> {
        let path = self.path(key);
        form::line(&path, key)?
            .ok_or_else(|| StoreError::reading(&path, ErrorKind::NotFound.into()))
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
        form::failure(&self.file(key, "failed.json"), key)
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
            || is_taken(&record),
        )
    }

    /// Where a cell stands.
    pub fn state(&self, key: &Key) -> State {
        self.standing(key)
            .unwrap_or_else(|error| State::Broken(error.to_string()))
    }

    fn standing(&self, key: &Key) -> Result<State, StoreError> {
        if self.get(key)?.is_some() {
            return Ok(State::Done);
        }
        if let Some(held) = claim::holder(&self.file(key, "claim"))? {
            return Ok(State::Claimed(held.by));
        }
        // The record may have come between the two looks, and the claim gone.
        if self.get(key)?.is_some() {
            return Ok(State::Done);
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
        fs::create_dir_all(&path).map_err(|reason| {
            if is_taken(&path) && !path.is_dir() {
                return StoreError::Broken {
                    path: path.clone(),
                    why: "it stands where the folder of the cell's checkpoints should be".into(),
                    remedy: "remove it",
                };
            }
            StoreError::writing(&path, reason)
        })?;
        Ok(path)
    }

    /// Writes a file whole, on this store's disk.
    pub fn write_atomic(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        write_atomic_on(&*self.disk, path, bytes)
    }

    /// All records, verified; what is broken costs nothing but itself.
    pub fn read(&self) -> Result<Contents, StoreError> {
        let mut contents = Contents::default();
        let mut keys = Vec::new();
        for file in self.files()? {
            match file {
                Found::Record(key) => keys.push(key),
                Found::Unlisted(error) => contents.unlisted.push(error),
                _ => {}
            }
        }
        keys.sort();
        for key in keys {
            match self.get(&key) {
                Ok(record) => contents.records.extend(record),
                Err(error) => contents.broken.push((key, error)),
            }
        }
        Ok(contents)
    }

    /// Checks every file of the store.
    pub fn verify(&self) -> Result<Verification, StoreError> {
        let mut found = Verification::default();
        for file in self.files()? {
            match file {
                Found::Record(key) => match form::record(&self.path(&key), &key) {
                    Ok(Some((_, schema))) => {
                        found.records += 1;
                        found.older += usize::from(schema < SCHEMA);
                    }
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
                Found::Unlisted(error) => found.broken.push(error),
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
                Found::Claim(key) if is_taken(&self.path(&key)) => {
                    let path = self.file(&key, "claim");
                    if matches!(claim::holder(&path), Ok(None)) {
                        let _ = fs::remove_file(path);
                    }
                }
                _ => {}
            }
        }
        // What cannot be listed cannot be cleaned, and is no reason to stop.
        for path in list(&self.root.join(WORK)).unwrap_or_default() {
            let done = name(&path)
                .and_then(|name| Key::try_from(name.to_string()).ok())
                .is_some_and(|key| is_taken(&self.path(&key)));
            if done {
                let _ = fs::remove_dir_all(&path);
                continue;
            }
            for file in list(&path).unwrap_or_default() {
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
            match list(&entry) {
                Ok(paths) => {
                    found.extend(paths.into_iter().map(|path| Found::classify(&folder, path)));
                }
                Err(error) => found.push(Found::Unlisted(error)),
            }
        }
        Ok(found)
    }
}

const LOCK: &str = ".lock";
const WORK: &str = "work";

#[derive(Debug)]
enum Found {
    Record(Key),
    Failure(Key),
    Claim(Key),
    Temporary(PathBuf),
    Strange(PathBuf),
    Unlisted(StoreError),
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

/// Whether there is anything of that name, a link to nothing included: nothing else can be written there.
fn is_taken(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Seconds since 1970.
fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

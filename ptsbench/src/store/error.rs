//! What can go wrong with a store, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use model_zoo::misspelt::did_you_mean;

use super::disk;
use crate::cell::Key;

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("no space left while writing {}; what is finished is kept; free space and run again", path.display())]
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
    #[error(
        "{} is not a folder, so it cannot be a store (report, figures and doctor also read a file that `ptsbench pack` \
         wrote); choose another with --store",
        path.display()
    )]
    NotAFolder {
        /// What is there.
        path: PathBuf,
    },
    /// A file that should hold packed records does not.
    #[error(
        "{} is not a folder of records, nor a file that `ptsbench pack` wrote: {why}; choose another with --store",
        path.display()
    )]
    NotPacked {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// A file of packed records does not exist.
    #[error(
        "{}: there is no such folder or file{} (--store takes a folder of records, or a file that `ptsbench pack` wrote)",
        path.display(), did_you_mean(nearest)
    )]
    Absent {
        /// What was asked for.
        path: PathBuf,
        /// The nearest names beside it, best first.
        nearest: Vec<String>,
    },
    /// More than a packed file may hold.
    #[error("cannot write {}: {why}; choose fewer records with --plan", path.display())]
    TooMuch {
        /// The file.
        path: PathBuf,
        /// How much it would be.
        why: String,
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
    #[error("cannot read {}: {reason}; check the disk and the file's permissions", path.display())]
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
    #[error("{} has been locked for {seconds} seconds; another run may be stuck: end it, then run again", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long.
        seconds: u64,
    },
}

impl StoreError {
    /// Whether one cell alone is touched: the others of the store can be read and measured all the same.
    pub fn costs_one_cell(&self) -> bool {
        match self {
            StoreError::Read { .. }
            | StoreError::Broken { .. }
            | StoreError::NotFinite { .. }
            | StoreError::Conflict { .. } => true,
            StoreError::NoSpace { .. }
            | StoreError::Unwritable { .. }
            | StoreError::NotAFolder { .. }
            | StoreError::NotPacked { .. }
            | StoreError::Absent { .. }
            | StoreError::TooMuch { .. }
            | StoreError::Write { .. }
            | StoreError::Locked { .. } => false,
        }
    }

    pub(super) fn writing(path: &Path, reason: io::Error) -> StoreError {
        let path = path.to_path_buf();
        if disk::is_full(&reason) {
            StoreError::NoSpace { path }
        } else {
            StoreError::Write { path, reason }
        }
    }

    pub(super) fn reading(path: &Path, reason: io::Error) -> StoreError {
        StoreError::Read {
            path: path.to_path_buf(),
            reason,
        }
    }
}

//! LSUN: one LMDB of encoded pictures for each category and split, or the same pictures in a folder.

use std::path::{Path, PathBuf};

use crate::data::decode::{self, Rgb, Rotation};
use crate::data::error::{DataError, entries, is_image_name, name};
use crate::data::lmdb::Database;

/// A category's pictures.
#[derive(Debug)]
pub enum Lsun {
    /// In an LMDB.
    Records(Database),
    /// As files, by name.
    Files(Vec<PathBuf>),
}

/// First bytes that tell a picture's format.
const SNIFF: usize = 512;

impl Lsun {
    /// Opens `<category>_<split>_lmdb`, or a folder of pictures. Every record's first bytes are looked at.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let mut files = entries(folder)?;
        files.retain(|path| is_image_name(path));
        if !files.is_empty() {
            return Ok(Self::Files(files));
        }
        let database = Database::open(&folder.join("data.mdb"))?;
        for record in database.records() {
            decode::sniff(&database.start(record, SNIFF)?).map_err(|problem| {
                let problem = format!("key {}: {problem}", record.name());
                DataError::new(database.path(), problem)
            })?;
        }
        Ok(Self::Records(database))
    }

    /// How many pictures there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Records(database) => database.records().len(),
            Self::Files(files) => files.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A picture's name and how many bytes it has: what tells one list of pictures from another.
    pub fn identity(&self, index: usize) -> Result<(String, u64), DataError> {
        match self {
            Self::Records(database) => {
                let record = &database.records()[index];
                Ok((record.name(), record.len() as u64))
            }
            Self::Files(files) => {
                let path = &files[index];
                let file = std::fs::metadata(path).map_err(|error| {
                    DataError::new(path, format!("cannot be examined: {error}"))
                })?;
                Ok((name(path), file.len()))
            }
        }
    }

    /// Decodes a picture.
    pub fn image(&self, index: usize) -> Result<Rgb, DataError> {
        match self {
            Self::Records(database) => {
                let record = &database.records()[index];
                let value = database.value(record)?;
                decode::decode(&value, Rotation::Ignore).map_err(|problem| {
                    let problem = format!("key {}: {problem}", record.name());
                    DataError::new(database.path(), problem)
                })
            }
            Self::Files(files) => {
                let path = &files[index];
                decode::read(path, Rotation::Ignore)
                    .map_err(|error| DataError::new(path, error.to_string()))
            }
        }
    }
}

//! Checkpoints of fitted units, and of a network that is trained as a whole: what an interrupted cell goes on from.
//!
//! A damaged one would become a wrong record with a sound digest. So each is bound to its cell by the key, and to its own
//! contents by a digest over the outcome and every value.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use model_zoo::weights::{Container, Named, Source, WeightError, write};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::cell::Key;

/// Parameters by their path in the network.
pub type Values = HashMap<String, TensorData>;

/// The checkpoints of one cell.
#[derive(Debug, Clone, Copy)]
pub struct Checkpoints<'a> {
    /// Where they lie.
    pub folder: &'a Path,
    /// The cell's key.
    pub key: &'a Key,
}

impl<'a> Checkpoints<'a> {
    /// The one of the unit that is fitted at this place, counted from 0.
    pub fn of(self, place: usize) -> Checkpoint<'a> {
        Checkpoint {
            file: self.folder.join(format!("unit-{place:04}.safetensors")),
            key: self.key,
        }
    }

    /// The one of a network that is trained as a whole.
    pub fn of_training(self) -> Checkpoint<'a> {
        Checkpoint {
            file: self.folder.join("training.safetensors"),
            key: self.key,
        }
    }
}

/// One checkpoint.
#[derive(Debug)]
pub struct Checkpoint<'a> {
    /// Its file.
    pub file: PathBuf,
    key: &'a Key,
}

impl Checkpoint<'_> {
    /// Writes parameters, and what came of their training; the file changes at once or not at all.
    pub fn write(
        &self,
        outcome: &impl Serialize,
        params: impl Iterator<Item = (String, TensorData)>,
    ) -> Result<(), WeightError> {
        let tensors: Vec<Named> = params
            .map(|(path, data)| Named {
                key: path,
                shape: data.shape().to_vec(),
                values: data.try_into_vec().expect("networks compute in f32"),
            })
            .collect();
        let outcome = serde_json::to_string(outcome).expect("an outcome holds numbers and names");
        let metadata = BTreeMap::from([
            ("cell".to_owned(), self.key.to_string()),
            ("digest".to_owned(), digest(self.key, &outcome, &tensors)),
            ("outcome".to_owned(), outcome),
        ]);
        write(&self.file, &tensors, &metadata)
    }

    /// What was written of parameters of these shapes, if it `fits`; none where nothing was. An error says what is wrong
    /// with the file, whatever it is: all of them mean that the training must be done again.
    pub fn read<O: DeserializeOwned>(
        &self,
        shapes: &HashMap<String, Vec<usize>>,
        fits: impl FnOnce(&O) -> bool,
    ) -> Result<Option<(O, Values)>, &'static str> {
        if fs::symlink_metadata(&self.file).is_err() {
            return Ok(None);
        }
        // The zoo's errors speak of downloads; a checkpoint is fitted again instead.
        let unreadable = |_| "it cannot be read as a checkpoint";
        let file = Container::open(&self.file).map_err(unreadable)?;
        let said = |name: &str| file.metadata().get(name).map(String::as_str);
        let (Some(cell), Some(written), Some(outcome)) =
            (said("cell"), said("digest"), said("outcome"))
        else {
            return Err("it is not a checkpoint of this version");
        };
        if cell != self.key.as_str() {
            return Err("it belongs to another cell");
        }
        // Before any value is read: a foreign file may be of any size.
        let has = |(path, shape): (&String, &Vec<usize>)| file.shape(path).as_ref() == Some(shape);
        if file.keys().len() != shapes.len() || !shapes.iter().all(has) {
            return Err("it belongs to another unit");
        }
        let mut tensors = Vec::with_capacity(shapes.len());
        for (path, shape) in shapes {
            tensors.push(Named {
                key: path.clone(),
                shape: shape.clone(),
                values: file.read(path).map_err(unreadable)?,
            });
        }
        if digest(self.key, outcome, &tensors) != written {
            return Err("its contents do not match its digest");
        }
        let outcome: O = serde_json::from_str(outcome)
            .ok()
            .filter(fits)
            .ok_or("it belongs to another unit")?;
        let values = tensors
            .into_iter()
            .map(|tensor| (tensor.key, TensorData::new(tensor.values, tensor.shape)));
        Ok(Some((outcome, values.collect())))
    }

    /// Removes whatever stands in the file's place.
    pub fn remove(&self) -> Result<(), WeightError> {
        let removed = match fs::symlink_metadata(&self.file) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&self.file),
            _ => fs::remove_file(&self.file),
        };
        removed.map_err(|source| WeightError::Io {
            file: self.file.display().to_string(),
            action: "remove",
            source,
        })
    }
}

/// SHA-256 of all that a checkpoint says, bit for bit.
fn digest(key: &Key, outcome: &str, tensors: &[Named]) -> String {
    let mut sorted: Vec<&Named> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    let mut hash = Sha256::new();
    hash.update(format!("ptsbench-unit-v1\n{key}\n{outcome}\n"));
    for tensor in sorted {
        hash.update(format!("{} {:?}\n", tensor.key, tensor.shape));
        for value in &tensor.values {
            hash.update(value.to_le_bytes());
        }
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

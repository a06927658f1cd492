//! Where plans look things up: weight files, models, tasks, algorithms and their measurement versions.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use model_zoo::catalog::{self, Weights};
use model_zoo::weights::sha256;

use crate::data::recipe::Recipe;
use crate::plan::{Lookup, Registry, TaskFacts};
use crate::task::Sets;
use crate::{allocate, criterion, reconstruct};

/// The program's own registry.
#[derive(Debug, Default)]
pub struct Zoo {
    files: HashMap<String, PathBuf>,
    assets: PathBuf,
    digests: Mutex<HashMap<PathBuf, String>>,
    sets: Sets,
}

/// A model whose weights are not at hand.
#[derive(Debug, thiserror::Error)]
pub enum NoWeights {
    /// The user must give the file.
    #[error(
        "the weights of `{model}` are not built in (they are published by {source_name}); give the file: --weights {model}=FILE, or see `ptsbench fetch {model}`"
    )]
    NotGiven {
        /// The model.
        model: String,
        /// Who publishes them.
        source_name: &'static str,
    },
    /// There are none.
    #[error(
        "`{model}` exists for tests and has no weights; `ptsbench list models` shows those that have"
    )]
    TestsOnly {
        /// The model.
        model: String,
    },
    /// The built-in file is not where it should be.
    #[error("{}: no such file; run from the repository's folder, name another with --assets, or train it again with `make micro-zoo`", .0.display())]
    Gone(PathBuf),
}

impl Zoo {
    /// With built-in weights in `assets` and the user's own files by model.
    pub fn new(assets: &Path, files: HashMap<String, PathBuf>) -> anyhow::Result<Self> {
        for model in files.keys() {
            catalog::find(model)?;
        }
        Ok(Self {
            files,
            assets: assets.to_owned(),
            digests: Mutex::default(),
            sets: Sets::default(),
        })
    }

    /// With the folders of data sets by task.
    pub fn with_data(self, folders: HashMap<String, PathBuf>) -> anyhow::Result<Self> {
        let sets = Sets::new(folders)?;
        Ok(Self { sets, ..self })
    }

    /// The data sets.
    pub fn sets(&self) -> &Sets {
        &self.sets
    }

    /// The weight file of a model.
    pub fn file(&self, model: &str) -> Lookup<PathBuf> {
        if let Some(file) = self.files.get(model) {
            return Ok(file.clone());
        }
        let model = catalog::find(model)?;
        match model.weights {
            Weights::BuiltIn => {
                let file = self
                    .assets
                    .join("micro")
                    .join(format!("{}.safetensors", model.name));
                if !file.is_file() {
                    return Err(Box::new(NoWeights::Gone(file)));
                }
                Ok(file)
            }
            Weights::File { source } => Err(Box::new(NoWeights::NotGiven {
                model: model.name.to_owned(),
                source_name: source,
            })),
            Weights::None => Err(Box::new(NoWeights::TestsOnly {
                model: model.name.to_owned(),
            })),
        }
    }
}

impl Registry for Zoo {
    fn weights(&self, model: &str) -> Lookup<String> {
        let file = self.file(model)?;
        let mut digests = self.digests.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(digest) = digests.get(&file) {
            return Ok(digest.clone());
        }
        let digest = sha256(&file)?;
        digests.insert(file, digest.clone());
        Ok(digest)
    }

    fn models_matching(&self, glob: &str) -> Lookup<Vec<String>> {
        let found = catalog::matching(glob)?;
        Ok(found.into_iter().map(|spec| spec.name.to_owned()).collect())
    }

    fn task(&self, name: &str) -> Lookup<TaskFacts> {
        let set = self.sets.get(name)?;
        Ok(TaskFacts {
            version: set.kind.version,
            available: set.available(),
            data: set.sha256.clone(),
        })
    }

    fn recipe(&self, task: &str, model: &str) -> Lookup<Option<String>> {
        if crate::task::find(task)?.built_in() {
            return Ok(None);
        }
        Ok(Some(Recipe::of(catalog::find(model)?).to_string()))
    }

    fn calibration(&self, task: &str, images: usize, seed: u64) -> Lookup<Option<String>> {
        // Of the built-in images nothing is to be known, and a wrong number is the measurement's own error.
        if crate::task::find(task)?.built_in() {
            return Ok(None);
        }
        Ok(self.sets.get(task)?.calibration(images, seed)?.1)
    }

    fn allocator_version(&self, name: &str) -> Lookup<u32> {
        Ok(allocate::find(name)?.version())
    }

    fn criterion_version(&self, name: &str) -> Lookup<u32> {
        Ok(criterion::find(name)?.version())
    }

    fn reconstruction_version(&self) -> u32 {
        reconstruct::VERSION
    }
}

//! Where plans look things up: weight files, models, tasks, algorithms and their measurement versions.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::bail;
use model_zoo::catalog::{self, Meant, Named, Spec, Weights};
use model_zoo::weights::{Container, sha256};
use model_zoo::{Modality, Noise};

use crate::cell::Pattern;
use crate::fetch::{FetchError, Settings, Wanted, cached};
use crate::inventory::Layer;
use crate::nofm::{self, LeftDense, left_dense};
use crate::options::Chosen;
use crate::own;
use crate::pipeline::layers_of;
use crate::plan::{Lookup, PartFacts, Registry, TaskFacts};
use crate::task::{Sets, find, generate, train};
use crate::terminal::remark_once;
use crate::{allocate, criterion, inventory, reconstruct, repair};

/// The program's own registry.
#[derive(Debug, Default)]
pub struct Zoo {
    files: HashMap<&'static str, PathBuf>,
    recipes: HashMap<&'static str, PathBuf>,
    assets: PathBuf,
    cache: PathBuf,
    digests: Mutex<HashMap<PathBuf, String>>,
    /// What the cache of fetched files had for a model: reading a file to check it takes a while.
    fetched: Mutex<HashMap<&'static str, PathBuf>>,
    /// The layers of models that patterns were asked of.
    layers: Mutex<HashMap<String, Arc<Vec<Layer>>>>,
    sets: Sets,
}

/// A model whose weights are not at hand.
#[derive(Debug, thiserror::Error)]
pub enum NoWeights {
    /// The user must give the file.
    #[error(
        "the weights of `{model}` are not built in (they are published by {source_name}): `ptsbench fetch {model}` gets them, or give the file: --weights {model}=FILE"
    )]
    NotGiven {
        /// The model.
        model: String,
        /// Who publishes them.
        source_name: &'static str,
    },
    /// The name means other weights than those that the catalog knows.
    #[error(
        "`{asked}` names weights that are not known here (those of `{model}` are {known}); give their file with --weights, or ask for `{model}`"
    )]
    Others {
        /// What was asked.
        asked: String,
        /// The catalog's name.
        model: &'static str,
        /// The weights that the catalog knows.
        known: &'static str,
    },
    /// There are none.
    #[error(
        "`{model}` exists for tests and has no weights; `ptsbench list models` shows the models that have some"
    )]
    TestsOnly {
        /// The model.
        model: String,
    },
    /// The built-in file is not where it should be.
    #[error("{}: no such file; run from the repository's folder, name another with --assets, or train it again with `make micro-zoo`", .0.display())]
    Gone(PathBuf),
    /// The built-in file is of another version of the networks.
    #[error(
        "{}: trained by another recipe than this version's `{model}`: {}, and not {expected}; take the file that comes with this version, train it again (`ptsbench micro-zoo {model}`), or give other weights with --weights",
        .file.display(), .found.as_deref().unwrap_or("it names none")
    )]
    OtherRecipe {
        /// The file.
        file: PathBuf,
        /// The network.
        model: &'static str,
        /// What the file says.
        found: Option<String>,
        /// What this version trains it with.
        expected: String,
    },
}

/// A built-in file, unless it says that it was trained by another recipe; one that cannot be read is told of by who reads it.
fn of_this_version(model: &'static str, file: PathBuf) -> Lookup<PathBuf> {
    let Ok(container) = Container::open(&file) else {
        return Ok(file);
    };
    let found = container.metadata().get("recipe").cloned();
    let expected = serde_json::to_string(&train::Recipe::micro(model))?;
    if found.as_ref() != Some(&expected) {
        return Err(Box::new(NoWeights::OtherRecipe {
            file,
            model,
            found,
            expected,
        }));
    }
    Ok(file)
}

/// Refuses a name that means other weights than the catalog knows, where no file is given.
pub fn not_others(named: &Named) -> Result<(), NoWeights> {
    if named.weights != Meant::Others {
        return Ok(());
    }
    Err(NoWeights::Others {
        asked: named.asked.clone(),
        model: named.spec.name,
        known: named.published().unwrap_or("none"),
    })
}

/// Files by the catalog's names of their models, whatever names they were given under.
fn by_model(files: HashMap<String, PathBuf>) -> anyhow::Result<HashMap<&'static str, PathBuf>> {
    let mut found: HashMap<&'static str, PathBuf> = HashMap::new();
    for (model, file) in files {
        let name = own::named(&model)?.spec.name;
        if let Some(other) = found.get(name)
            && *other != file
        {
            let mut both = [other.display().to_string(), file.display().to_string()];
            both.sort();
            bail!(
                "two files are given for `{name}` under two of its names, {} and {}; give one",
                both[0],
                both[1]
            );
        }
        found.insert(name, file);
    }
    Ok(found)
}

impl Zoo {
    /// With built-in weights in `assets`, the user's own files by model, and what `ptsbench fetch` has brought.
    pub fn new(assets: &Path, files: HashMap<String, PathBuf>) -> anyhow::Result<Self> {
        Ok(Self {
            files: by_model(files)?,
            assets: assets.to_owned(),
            cache: Settings::from_env().cache,
            ..Self::default()
        })
    }

    /// With recipes of the user's own by model.
    pub fn with_recipes(self, recipes: HashMap<String, PathBuf>) -> anyhow::Result<Self> {
        let recipes = by_model(recipes)?;
        Ok(Self { recipes, ..self })
    }

    /// The fetched file of a model, if there is one; its digest is checked once.
    fn fetched(&self, model: &'static Spec) -> Result<Option<PathBuf>, FetchError> {
        let mut fetched = self.fetched.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(file) = fetched.get(model.name) {
            return Ok(Some(file.clone()));
        }
        let Some(wanted) = model.origin().and_then(Wanted::of) else {
            return Ok(None);
        };
        let Some(found) = cached(wanted, &self.cache)? else {
            return Ok(None);
        };
        let mut digests = self.digests.lock().unwrap_or_else(|p| p.into_inner());
        digests.insert(found.path.clone(), found.sha256);
        fetched.insert(model.name, found.path.clone());
        Ok(Some(found.path))
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

    /// The layers of a model, in forward order.
    fn layers(&self, model: &str) -> Lookup<Arc<Vec<Layer>>> {
        let mut known = self.layers.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(layers) = known.get(model) {
            return Ok(Arc::clone(layers));
        }
        let layers = Arc::new(layers_of(model)?);
        known.insert(model.to_owned(), Arc::clone(&layers));
        Ok(layers)
    }

    /// The layers of a model that a pattern leaves dense.
    pub fn left_dense(&self, model: &str, pattern: Pattern) -> Lookup<LeftDense> {
        Ok(left_dense(&self.layers(model)?[..], pattern))
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
                of_this_version(model.name, file)
            }
            Weights::File { source } => match self.fetched(model)? {
                Some(file) => Ok(file),
                None => Err(Box::new(NoWeights::NotGiven {
                    model: model.name.to_owned(),
                    source_name: source,
                })),
            },
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

    fn models_matching(&self, glob: &str, task: &str) -> Lookup<Vec<String>> {
        let mut found = own::matching(glob)?;
        let specs = find(task)?.among(glob, found.iter().map(|named| named.spec).collect())?;
        found.retain(|named| specs.iter().any(|spec| spec.name == named.spec.name));
        for named in &found {
            if !self.files.contains_key(named.spec.name) {
                not_others(named)?;
            }
        }
        let names = found.into_iter().map(|named| named.spec.name.to_owned());
        Ok(names.collect())
    }

    fn fits(&self, model: &str, pattern: Pattern) -> Lookup<()> {
        // A rate fits every layer, and to know them a network is built.
        if matches!(pattern, Pattern::Unstructured { .. }) {
            return Ok(());
        }
        let fits = nofm::check(&self.layers(model)?[..], pattern);
        fits.map_err(|error| format!("model `{model}`: {error}").into())
    }

    fn layers_named(&self, model: &str, patterns: &[String]) -> Lookup<()> {
        // To know its layers a network is built.
        if patterns.is_empty() {
            return Ok(());
        }
        let layers = self.layers(model)?;
        Ok(inventory::named(model, &layers, patterns)?)
    }

    fn task(&self, name: &str) -> Lookup<TaskFacts> {
        let set = self.sets.get(name)?;
        Ok(TaskFacts {
            version: set.kind.version,
            available: set.available(),
            data: set.sha256.clone(),
            split: set.split.clone(),
        })
    }

    fn recipe(&self, task: &str, model: &str) -> Lookup<Option<String>> {
        let kind = find(task)?;
        if kind.judges == Noise::DOES {
            if self.recipes.contains_key(model) {
                remark_once(&format!(
                    "note: --recipe {model}=... is not used: task `{task}` reads no pictures"
                ));
            }
            let (spec, set) = (catalog::find(model)?, self.sets.get(task)?);
            let recipe = generate::recipe(spec, &set, &self.file(spec.name)?)?;
            return Ok(recipe.map(|recipe| recipe.to_string()));
        }
        if kind.one_form() {
            if self.recipes.contains_key(model) {
                remark_once(&format!(
                    "note: --recipe {model}=... is not used: the images of task `{task}` come in one form only"
                ));
            }
            return Ok(None);
        }
        let spec = catalog::find(model)?;
        let (recipe, weights) = (self.recipes.get(spec.name), self.files.get(spec.name));
        let (recipe, weights) = (recipe.map(PathBuf::as_path), weights.map(PathBuf::as_path));
        let own = own::recipe_file(spec, recipe, weights)?;
        Ok(own::recipe_for(kind, spec, own.as_ref())?)
    }

    fn calibration(&self, task: &str, images: usize, seed: u64) -> Lookup<Option<String>> {
        // Of the built-in images nothing is to be known, and a wrong number is the measurement's own error.
        if find(task)?.built_in() {
            return Ok(None);
        }
        Ok(self.sets.get(task)?.calibration(images, seed)?.1)
    }

    fn allocator(&self, chosen: &Chosen) -> Lookup<PartFacts> {
        Ok(allocate::facts(chosen)?)
    }

    fn criterion(&self, chosen: &Chosen) -> Lookup<PartFacts> {
        Ok(criterion::facts(chosen)?)
    }

    fn repair(&self, chosen: &Chosen) -> Lookup<PartFacts> {
        Ok(repair::facts(chosen)?)
    }

    fn reconstruction_version(&self) -> u32 {
        reconstruct::VERSION
    }
}

#[cfg(test)]
mod tests {
    use model_zoo::catalog::origin::Digest;

    use super::*;

    /// A network of the hub, and the registry of an empty cache.
    fn public() -> (&'static Spec, Wanted<'static>, tempfile::TempDir, Zoo) {
        let cache = tempfile::tempdir().unwrap();
        let zoo = Zoo {
            cache: cache.path().to_owned(),
            ..Zoo::default()
        };
        let found = catalog::matching("*")
            .unwrap()
            .into_iter()
            .find_map(|spec| {
                let wanted = Wanted::of(spec.origin()?)?;
                matches!(wanted.sha256, Digest::Whole(_)).then_some((spec, wanted))
            });
        let (spec, wanted) = found.expect("a file of the hub whose digest is known");
        (spec, wanted, cache, zoo)
    }

    #[test]
    fn built_in_files_of_another_recipe_are_refused() {
        use model_zoo::weights::write;
        use std::collections::BTreeMap;
        let assets = tempfile::tempdir().unwrap();
        std::fs::create_dir(assets.path().join("micro")).unwrap();
        let file = assets.path().join("micro/micro_resnet8.safetensors");
        let zoo = Zoo::new(assets.path(), HashMap::new()).unwrap();
        let recipe = |recipe: &train::Recipe| {
            let recipe = serde_json::to_string(recipe).unwrap();
            BTreeMap::from([("recipe".to_owned(), recipe)])
        };
        let own = train::Recipe::micro("micro_resnet8");
        write(&file, &[], &recipe(&own)).unwrap();
        assert_eq!(zoo.file("micro_resnet8").unwrap(), file);

        let older = train::Recipe { data: 0, ..own };
        for (metadata, says) in [
            (recipe(&older), "\"data\":0"),
            (BTreeMap::new(), "it names none"),
        ] {
            write(&file, &[], &metadata).unwrap();
            let error = zoo.file("micro_resnet8").unwrap_err().to_string();
            for part in [
                says,
                "micro/micro_resnet8.safetensors",
                "ptsbench micro-zoo",
            ] {
                assert!(error.contains(part), "{error}");
            }
        }
        // Whatever else is wrong with a file is told by who reads it.
        std::fs::write(&file, "nothing").unwrap();
        assert_eq!(zoo.file("micro_resnet8").unwrap(), file);
    }

    #[test]
    fn a_file_belongs_to_the_network_whatever_it_is_called() {
        let zoo = |files: [(&str, &str); 2]| {
            let files = files.map(|(model, file)| (model.to_owned(), PathBuf::from(file)));
            Zoo::new(Path::new("assets"), HashMap::from(files))
        };
        let names = ["timm/resnet18.a1_in1k", "resnet18"];
        let same = zoo(names.map(|name| (name, "a"))).unwrap();
        assert_eq!(same.file("resnet18").unwrap(), Path::new("a"));
        let matching = |name| same.models_matching(name, "imagenet").unwrap();
        assert_eq!(matching(names[0]), ["resnet18"]);
        let error = zoo([(names[0], "b"), (names[1], "a")]).unwrap_err();
        assert!(error.to_string().contains("a and b"), "{error}");
    }

    #[test]
    fn names_of_other_weights_need_a_file() {
        let (_, _, _cache, zoo) = public();
        let error = zoo
            .models_matching("resnet18.a1_in1k", "imagenet")
            .unwrap_err();
        assert!(error.to_string().contains("--weights"), "{error}");
        assert_eq!(
            zoo.models_matching("resnet18.tv_in1k", "imagenet").unwrap(),
            ["resnet18"]
        );
    }

    #[test]
    fn without_a_fetched_file_the_way_to_get_it_is_told() {
        let (spec, _, _cache, zoo) = public();
        let error = zoo.file(spec.name).unwrap_err().to_string();
        assert!(
            error.contains(&format!("`ptsbench fetch {}`", spec.name)),
            "{error}"
        );
    }

    #[test]
    fn a_fetched_file_is_checked_before_it_is_taken() {
        let (spec, wanted, cache, zoo) = public();
        let path = wanted.path(cache.path());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "cut").unwrap();
        let error = zoo.file(spec.name).unwrap_err().to_string();
        assert!(error.contains("fetch it again"), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }

    #[test]
    fn a_fetched_file_is_found_and_hashed_once() {
        let (spec, wanted, cache, zoo) = public();
        // As if it had been checked before: the catalog's digests are those of files of 100 MB.
        let path = wanted.path(cache.path());
        zoo.fetched.lock().unwrap().insert(spec.name, path.clone());
        zoo.digests
            .lock()
            .unwrap()
            .insert(path.clone(), "abc".to_owned());
        assert_eq!(zoo.file(spec.name).unwrap(), path);
        assert_eq!(zoo.weights(spec.name).unwrap(), "abc");
    }
}

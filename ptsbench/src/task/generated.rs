//! What generated images are compared with: a reference set or its statistics, the network whose features are compared, and
//! the prompts, where images are made of some.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use burn::tensor::Device;
use model_zoo::catalog::{self, Spec};
use model_zoo::weights;
use model_zoo::{Classes, Modality, inception};
use sha2::{Digest, Sha256};

use super::{Kind, LSUN_BEDROOM, LSUN_CHURCH, SD2_TEXT, TaskError};
use crate::data::decode::Rgb;
use crate::data::error::{DataError, entries, is_image_name, name, read_text};
use crate::data::limits;
use crate::data::lsun::Lsun;
use crate::data::synthetic::generation;
use crate::features::{Extractor, FeatureError, Seen, random};
use crate::metric::fid::Statistics;
use crate::metric::npz;
use crate::terminal::{remark, remark_once};

/// Images to generate where nobody says otherwise: the number that FID is defined for.
pub(super) const IMAGES: usize = 50_000;

/// The same of the built-in set: a hundred times the features.
pub(super) const MICRO_IMAGES: usize = 10_000;

/// Reference images in a batch; their statistics depend on it by rounding alone, so it is fixed.
const BATCH: usize = 100;

/// Reference images between two remarks on how many are measured.
const OFTEN: usize = 2_000;

/// The prompts of a folder, a line each.
pub(super) const PROMPTS: &str = "prompts.txt";

/// Endings of weight files.
const WEIGHTS: [&str; 3] = ["safetensors", "pth", "pt"];

/// What generated images are compared with, and what they are made of beside noise.
#[derive(Debug)]
pub struct Generated {
    reference: Reference,
    features: Features,
    prompts: Vec<String>,
    available: usize,
    /// The statistics of the reference, once they were needed, and of how many images.
    measured: Mutex<Option<Statistics>>,
}

/// What images are compared with.
#[derive(Debug)]
enum Reference {
    /// The built-in set.
    Micro,
    /// Pictures.
    Pictures(Lsun),
    /// What is known of pictures, and from which file.
    Statistics(Statistics, PathBuf),
}

/// Whose features are compared.
#[derive(Debug)]
enum Features {
    /// The built-in random network's.
    Random,
    /// Those of Inception, on which FID is defined.
    Inception(PathBuf),
    /// A classifier's of the catalog.
    Classifier(&'static Spec, PathBuf),
}

impl Features {
    fn name(&self) -> &'static str {
        match self {
            Features::Random => random::NAME,
            Features::Inception(_) => inception::NAME,
            Features::Classifier(spec, _) => spec.name,
        }
    }

    /// SHA-256 of the weights.
    fn sha256(&self) -> Result<String, DataError> {
        match self {
            Features::Random => Ok(random::sha256()),
            Features::Inception(file) | Features::Classifier(_, file) => {
                let digest = weights::sha256(file);
                digest.map_err(|error| DataError::new(file, error.to_string()))
            }
        }
    }

    /// The one weight file in a folder that is named after its network.
    fn find(folder: &Path, files: &[PathBuf]) -> Result<Self, DataError> {
        let inception = files.iter().find(|file| name(file) == inception::FILE);
        if let Some(file) = inception {
            return Ok(Self::Inception(file.clone()));
        }
        let of_network = |file: &PathBuf| {
            let ending = file.extension()?.to_str()?;
            let stem = file.file_stem()?.to_str()?;
            let spec = catalog::find(stem).ok()?;
            let named = WEIGHTS.contains(&ending) && spec.does() == Classes::DOES;
            named.then(|| (spec, file.clone()))
        };
        let mut found: Vec<_> = files.iter().filter_map(of_network).collect();
        match (found.pop(), found.is_empty()) {
            (Some((spec, file)), true) => Ok(Self::Classifier(spec, file)),
            (Some(_), false) => Err(DataError::new(
                folder,
                "several classifiers' weight files, and features of one are compared; leave one of them there",
            )),
            (None, _) => Err(DataError::new(
                folder,
                format!(
                    "no weights of the network whose features are compared; put {} there for FID (download it from {}), or the weight file of a classifier under the catalog's name, such as resnet50.safetensors, for a distance that is not FID",
                    inception::FILE,
                    inception::ADDRESS
                ),
            )),
        }
    }

    fn open(&self, device: &Device) -> Result<Extractor, FeatureError> {
        match self {
            Features::Random => Ok(Extractor::random_conv(device)),
            Features::Inception(file) => Extractor::inception(file, device),
            Features::Classifier(spec, file) => Extractor::classifier(spec, file, device),
        }
    }
}

/// The task that a folder is for, as its own name or the one folder of records in it says.
pub(super) fn recognise(folder: &Path) -> Option<&'static Kind> {
    if folder.join(PROMPTS).is_file() {
        return Some(SD2_TEXT);
    }
    let inside = entries(folder).unwrap_or_default();
    let databases = inside.iter().filter(|path| name(path).ends_with("_lmdb"));
    let names = std::iter::once(name(folder)).chain(databases.map(|path| name(path)));
    let mut kinds: Vec<&'static Kind> = names.filter_map(|name| category(&name)).collect();
    kinds.dedup();
    match kinds[..] {
        [kind] => Some(kind),
        _ => None,
    }
}

/// The task of an LSUN category, by its name.
fn category(name: &str) -> Option<&'static Kind> {
    let name = name.to_lowercase();
    [("church", LSUN_CHURCH), ("bedroom", LSUN_BEDROOM)]
        .into_iter()
        .find_map(|(word, kind)| name.contains(word).then_some(kind))
}

/// What images are compared with, in a folder: a statistics file, else pictures, there, in `images/` or in the training
/// records of its category.
fn reference(folder: &Path, kind: &Kind, files: &[PathBuf]) -> Result<Reference, DataError> {
    let statistics: Vec<_> = files
        .iter()
        .filter(|file| file.extension().is_some_and(|ending| ending == "npz"))
        .collect();
    match statistics[..] {
        [] => {}
        [file] => {
            let read = npz::read(file).map_err(|error| {
                let text = error.to_string();
                let place = format!("{}: ", file.display());
                DataError::new(file, text.strip_prefix(&place).unwrap_or(&text).to_owned())
            })?;
            return Ok(Reference::Statistics(read, file.clone()));
        }
        [..] => {
            let problem = "several statistics files (.npz), and one is what images are compared with; leave one of them there";
            return Err(DataError::new(folder, problem));
        }
    }
    let holds = |place: &Path| {
        place.join("data.mdb").is_file()
            || entries(place).is_ok_and(|files| files.iter().any(|file| is_image_name(file)))
    };
    let training = files.iter().filter(|path| {
        let name = name(path);
        name.ends_with("train_lmdb") && category(&name).is_some_and(|found| found == kind)
    });
    let images = folder.join("images");
    let mut places = [folder, &images]
        .into_iter()
        .chain(training.map(PathBuf::as_path));
    match places.find(|place| holds(place)) {
        Some(place) => Ok(Reference::Pictures(Lsun::open(place)?)),
        None => Err(DataError::new(
            folder,
            "nothing to compare generated images with: neither a statistics file (.npz, from `ptsbench fid --save-stats`), nor pictures there or in images/, nor a category's _train_lmdb folder; add one",
        )),
    }
}

/// The prompts of a folder, in order; empty lines are left out.
fn prompts(folder: &Path) -> Result<Vec<String>, DataError> {
    let file = folder.join(PROMPTS);
    let text = read_text(&file, limits::LIST)?;
    let prompts = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let prompts: Vec<String> = prompts.map(str::to_owned).collect();
    match prompts.is_empty() {
        true => Err(DataError::new(&file, "no prompt; write one in each line")),
        false => Ok(prompts),
    }
}

impl Generated {
    fn new(reference: Reference, features: Features, prompts: Vec<String>, most: usize) -> Self {
        Self {
            reference,
            features,
            prompts,
            available: most,
            measured: Mutex::default(),
        }
    }

    /// The built-in set, by the features of the random network.
    pub(super) fn built_in() -> Self {
        Self::new(Reference::Micro, Features::Random, Vec::new(), MICRO_IMAGES)
    }

    /// What a folder holds for a task.
    pub(super) fn open(folder: &Path, kind: &'static Kind) -> Result<Self, DataError> {
        let files = entries(folder)?;
        let prompts = match kind == SD2_TEXT {
            true => prompts(folder)?,
            false => Vec::new(),
        };
        let features = Features::find(folder, &files)?;
        let reference = reference(folder, kind, &files)?;
        let most = match prompts.len() {
            0 => IMAGES,
            // An image for each.
            prompts => prompts,
        };
        Ok(Self::new(reference, features, prompts, most))
    }

    /// SHA-256 of all that images are compared with and made of; of the built-in set, whose version identifies it, that of
    /// the features' weight file.
    pub(super) fn sha256(&self) -> Result<String, DataError> {
        let mut hash = Sha256::new();
        let mut text = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        match &self.reference {
            Reference::Micro => return self.features.sha256(),
            Reference::Pictures(pictures) => {
                for at in 0..pictures.len() {
                    let (name, bytes) = pictures.identity(at)?;
                    text(&name);
                    text(&bytes.to_string());
                }
            }
            Reference::Statistics(_, file) => {
                let digest = weights::sha256(file);
                text(&digest.map_err(|error| DataError::new(file, error.to_string()))?);
            }
        }
        text(&self.features.sha256()?);
        for prompt in &self.prompts {
            text(prompt);
        }
        Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Images to generate at most.
    pub fn available(&self) -> usize {
        self.available
    }

    /// Texts that images are made of, one for each; empty where they are made of noise alone.
    pub fn prompts(&self) -> &[String] {
        &self.prompts
    }

    /// The network whose features are compared.
    pub fn features(&self) -> &'static str {
        self.features.name()
    }

    /// `fid` where the features are those that it is defined on, else a name that says whose they are.
    pub fn metric(&self) -> String {
        match &self.features {
            Features::Inception(_) => "fid".to_owned(),
            features => format!("fd_{}", features.name()),
        }
    }

    /// The network that takes features.
    pub fn extractor(&self, device: &Device) -> Result<Extractor, TaskError> {
        Ok(self.features.open(device)?)
    }

    /// Images that generated ones are compared with; 0 where only their statistics are known.
    pub fn reference(&self) -> usize {
        match &self.reference {
            Reference::Micro => generation::LEN,
            Reference::Pictures(pictures) => pictures.len(),
            Reference::Statistics(..) => 0,
        }
    }

    /// The statistics of what images are compared with, measured when first asked for.
    pub fn statistics(&self, extractor: &Extractor) -> Result<Statistics, TaskError> {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statistics) = &*measured {
            return Ok(statistics.clone());
        }
        let statistics = match &self.reference {
            Reference::Statistics(statistics, file) => {
                let (found, expected) = (statistics.width(), extractor.width);
                if found != expected {
                    let problem = format!(
                        "statistics of {found} features, and {} has {expected}; give statistics of its features, or the weights of the network that they are of",
                        extractor.name
                    );
                    return Err(DataError::new(file, problem).into());
                }
                statistics.clone()
            }
            Reference::Micro => Self::measure(extractor, [generation::LEN; 2], |at| {
                Ok(generation::picture(at))
            })?,
            Reference::Pictures(pictures) => {
                Self::measure(extractor, [pictures.len(), OFTEN], |at| pictures.image(at))?
            }
        };
        Ok(measured.insert(statistics).clone())
    }

    fn measure(
        extractor: &Extractor,
        [count, often]: [usize; 2],
        image: impl Fn(usize) -> Result<Rgb, DataError> + Sync,
    ) -> Result<Statistics, TaskError> {
        let of = extractor.name;
        remark_once(&format!(
            "note: measuring the features of {count} reference images by {of}"
        ));
        let (mut unreadable, mut told) = (None, 0);
        let statistics = extractor.statistics(count, BATCH, image, |seen| match seen {
            Seen::Unreadable(error) => {
                unreadable.get_or_insert(error);
            }
            // The built-in images take seconds; pictures by Inception, hours.
            Seen::Through(done) if done >= told + often && done < count => {
                told = done;
                remark(format_args!("{done} of {count} reference images measured"));
            }
            Seen::Through(_) => {}
        });
        match unreadable {
            Some(error) => Err(error.into()),
            None => Ok(statistics?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_told_by_their_names_and_prompts() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let set = folder("set");
        assert_eq!(recognise(&set), None);
        folder("set/bedroom_val_lmdb");
        assert_eq!(recognise(&set), Some(LSUN_BEDROOM));
        folder("set/church_outdoor_train_lmdb");
        // Both categories are no set of one.
        assert_eq!(recognise(&set), None);
        assert_eq!(recognise(&folder("LSUN_Churches")), Some(LSUN_CHURCH));
        std::fs::write(set.join(PROMPTS), "a church").unwrap();
        assert_eq!(recognise(&set), Some(SD2_TEXT));
    }

    #[test]
    fn a_folder_without_what_is_needed_says_what_to_add() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let said = || {
            Generated::open(root.path(), LSUN_CHURCH)
                .unwrap_err()
                .to_string()
        };
        assert!(said().contains(inception::FILE), "{}", said());
        std::fs::write(at("resnet50.safetensors"), "").unwrap();
        assert!(said().contains("nothing to compare"), "{}", said());
        std::fs::write(at("resnet18.pth"), "").unwrap();
        assert!(said().contains("several classifiers"), "{}", said());
        // Inception's file is what FID is defined on.
        std::fs::write(at(inception::FILE), "").unwrap();
        assert!(said().contains("nothing to compare"), "{}", said());
        for name in ["a.npz", "b.npz"] {
            std::fs::write(at(name), "").unwrap();
        }
        assert!(said().contains("several statistics"), "{}", said());
    }
}

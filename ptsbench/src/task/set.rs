//! The images of a task: recognised in a folder, ordered, and identified by a digest.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{CIFAR10, CIFAR100, IMAGENET, Kind, MICRO, UnknownTask, find};
use crate::data::calibration::{CalibrationError, CalibrationList};
use crate::data::cifar;
use crate::data::decode::ImageError;
use crate::data::error::DataError;
use crate::data::imagenet::{self, Wanted};
use crate::data::recipe::Recipe;
use crate::data::source::Source;
use crate::data::synthetic::MicroSet;
use crate::data::{coco, voc};
use crate::seed::Seed;

/// Why a task has no images.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No such task.
    #[error(transparent)]
    Unknown(#[from] UnknownTask),
    /// The folder is not given.
    #[error("the images of task `{task}` are not built in; give their folder: {hint}")]
    NoFolder {
        /// The task.
        task: &'static str,
        /// The option that gives it.
        hint: String,
    },
    /// The folder is not what it should be.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The calibration images cannot be drawn.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
}

/// The images of a task.
#[derive(Debug)]
pub struct Set {
    /// Which task.
    pub kind: &'static Kind,
    /// Classes that there are.
    pub classes: usize,
    /// Where the images lie, if anywhere.
    pub folder: Option<PathBuf>,
    /// SHA-256 of what is evaluated; none for the built-in images.
    pub sha256: Option<String>,
    /// What is unusual.
    pub warnings: Vec<String>,
    evaluation: Source,
    /// Where the first, second, ... image to evaluate is in `evaluation`; in place where it is empty.
    order: Vec<usize>,
    training: OnceLock<Source>,
}

impl Set {
    /// The built-in images.
    pub fn micro() -> Self {
        Self {
            kind: MICRO,
            classes: MICRO.classes,
            folder: None,
            sha256: None,
            warnings: Vec::new(),
            evaluation: Source::Micro(MicroSet::TEST),
            order: Vec::new(),
            training: OnceLock::from(Source::Micro(MicroSet::TRAIN)),
        }
    }

    /// The data set that a folder holds, ImageNet or CIFAR.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let refuse = |problem: &str| Err(DataError::new(folder, problem));
        if !folder.is_dir() {
            return refuse("no such folder; give the folder that a data set's archive unpacks to");
        }
        if cifar::recognise(folder) {
            let set = cifar::read_folder(folder)?;
            let kind = match set.kind {
                cifar::Kind::Cifar10 => CIFAR10,
                cifar::Kind::Cifar100 => CIFAR100,
            };
            let training = OnceLock::from(Source::Records(set.train));
            let evaluation = Source::Records(set.test);
            return Self::of(
                kind,
                kind.classes,
                folder,
                evaluation,
                training,
                set.warnings,
            );
        }
        let detection = voc::find_root(folder).is_some() || !coco::splits(folder).is_empty();
        if detection || !imagenet::recognise(folder) {
            return refuse(
                "neither ImageNet nor CIFAR, which classifiers are judged by; `ptsbench data check` says what it holds, `ptsbench list datasets` shows the layouts",
            );
        }
        let set = imagenet::read_splits(folder, Wanted::Validation)?;
        if set.validation.is_empty() {
            return refuse("no validation images; add val/ beside train/");
        }
        let evaluation = Source::files(set.validation);
        let training = OnceLock::new();
        let classes = set.classes.len();
        Self::of(
            IMAGENET,
            classes,
            folder,
            evaluation,
            training,
            set.warnings,
        )
    }

    fn of(
        kind: &'static Kind,
        classes: usize,
        folder: &Path,
        evaluation: Source,
        training: OnceLock<Source>,
        warnings: Vec<String>,
    ) -> Result<Self, DataError> {
        // Lists on disk are sorted by class, or may be: their first images would be of a few classes alone.
        let mut order: Vec<usize> = (0..evaluation.len()).collect();
        Seed(0).stream("evaluation").shuffle(&mut order);
        Ok(Self {
            kind,
            classes,
            folder: Some(folder.to_owned()),
            sha256: evaluation.sha256(0..evaluation.len())?,
            warnings,
            evaluation,
            order,
            training,
        })
    }

    /// How messages call it.
    pub fn label(&self) -> String {
        match &self.folder {
            Some(folder) => format!("`{}` in {}", self.kind.name, folder.display()),
            None => format!("`{}`", self.kind.name),
        }
    }

    /// Images to evaluate on.
    pub fn available(&self) -> usize {
        self.evaluation.len()
    }

    fn place(&self, at: usize) -> usize {
        self.order.get(at).copied().unwrap_or(at)
    }

    /// The class of an image, by its place in the evaluation's order.
    pub fn label_of(&self, at: usize) -> usize {
        self.evaluation.label(self.place(at))
    }

    /// An image as a network takes it, by its place in the evaluation's order.
    pub fn input(&self, at: usize, recipe: &Recipe) -> Result<Vec<f32>, ImageError> {
        self.evaluation.input(self.place(at), recipe)
    }

    /// The training images, listed when first asked for.
    pub fn training(&self) -> Result<&Source, DataError> {
        if let Some(source) = self.training.get() {
            return Ok(source);
        }
        let folder = self.folder.as_deref().unwrap_or(Path::new("."));
        let pictures = imagenet::read_splits(folder, Wanted::Train)?.train;
        if pictures.is_empty() {
            let problem =
                "no training images, which calibration is drawn from; add train/<WordNet id>/";
            return Err(DataError::new(folder, problem));
        }
        Ok(self.training.get_or_init(|| Source::files(pictures)))
    }

    /// The calibration images of a seed, and SHA-256 of that list (none for the built-in images).
    pub fn calibration(
        &self,
        images: usize,
        seed: u64,
    ) -> Result<(CalibrationList, Option<String>), OpenError> {
        let training = self.training()?;
        let list = CalibrationList::draw(Seed(seed), images, training.len())?;
        let sha256 = training.sha256(list.indices.iter().copied())?;
        Ok((list, sha256))
    }
}

/// The sets that a run uses, each opened once.
#[derive(Debug, Default)]
pub struct Sets {
    folders: HashMap<String, PathBuf>,
    open: Mutex<HashMap<&'static str, Arc<Set>>>,
}

impl Sets {
    /// With the folders of tasks by name.
    pub fn new(folders: HashMap<String, PathBuf>) -> Result<Self, UnknownTask> {
        for task in folders.keys() {
            find(task)?;
        }
        Ok(Self {
            folders,
            open: Mutex::default(),
        })
    }

    /// The set of a task.
    pub fn get(&self, task: &str) -> Result<Arc<Set>, OpenError> {
        let kind = find(task)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = open.get(kind.name) {
            return Ok(Arc::clone(set));
        }
        let set = if kind.built_in() {
            Set::micro()
        } else {
            let folder = self.folders.get(kind.name).ok_or(OpenError::NoFolder {
                task: kind.name,
                hint: format!("--data-dir {}=DIR", kind.name),
            })?;
            let set = Set::open(folder)?;
            if set.kind != kind {
                let problem = format!("holds `{}`, not `{}`", set.kind.name, kind.name);
                return Err(DataError::new(folder, problem).into());
            }
            set
        };
        let set = Arc::new(set);
        open.insert(kind.name, Arc::clone(&set));
        Ok(set)
    }
}

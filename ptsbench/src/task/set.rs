//! The images of a task: recognised in a folder, ordered, and identified by a digest.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{CIFAR10, CIFAR100, FOLDER, IMAGENET, Kind, MICRO, UnknownTask, find};
use crate::data::calibration::{CalibrationError, CalibrationList};
use crate::data::cifar;
use crate::data::decode::ImageError;
use crate::data::error::{DataError, name};
use crate::data::folder::{self, Form};
use crate::data::imagenet::{self, Wanted};
use crate::data::layout::{self, Layout};
use crate::data::recipe::Recipe;
use crate::data::source::Source;
use crate::data::synthetic::{self, MicroSet};
use crate::seed::Seed;
use crate::terminal::remark_once;

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
    /// How the images were told from the training ones, where the data set does not say.
    pub split: Option<String>,
    /// What was decided that the user did not ask for.
    pub notes: Vec<String>,
    /// What is unusual.
    pub warnings: Vec<String>,
    evaluation: Source,
    /// Where the first, second, ... image to evaluate is in `evaluation`; in place where it is empty.
    order: Vec<usize>,
    training: OnceLock<Source>,
    /// How class folders lie, where the set is of those.
    form: Option<Form>,
}

/// The task that a data set serves, if classifiers are judged by it.
fn kind_of(layout: Layout) -> Option<&'static Kind> {
    match layout {
        Layout::Voc | Layout::Coco | Layout::Lsun => None,
        Layout::Cifar(cifar::Kind::Cifar10) => Some(CIFAR10),
        Layout::Cifar(cifar::Kind::Cifar100) => Some(CIFAR100),
        Layout::Folders(_) => Some(FOLDER),
        Layout::ImageNet => Some(IMAGENET),
    }
}

/// Why a folder has no set of a task, or of any.
fn none_of(folder: &Path, wanted: Option<&'static Kind>) -> DataError {
    if let Some(lacking) = folder::lacking(folder) {
        return DataError::new(folder, lacking);
    }
    let holds = layout::of(folder).and_then(kind_of);
    if let (Some(wanted), Some(holds)) = (wanted, holds) {
        let problem = format!("holds `{}`, not `{}`", holds.name, wanted.name);
        return DataError::new(folder, problem);
    }
    let problem = "neither ImageNet, CIFAR nor pictures in one folder per class, the sets that classifiers are judged on; `ptsbench data check` says what it holds, `ptsbench list datasets` shows the layouts";
    DataError::new(folder, problem)
}

impl Set {
    /// The built-in images of the test split.
    pub fn micro() -> Self {
        Self::built_in(MICRO, MicroSet::TEST)
    }

    /// The images of a kind that needs no folder.
    pub fn of_kind(kind: &'static Kind) -> Option<Self> {
        kind.split().map(|split| Self::built_in(kind, split))
    }

    fn built_in(kind: &'static Kind, split: MicroSet) -> Self {
        Self {
            kind,
            classes: synthetic::CLASSES,
            folder: None,
            sha256: None,
            split: None,
            notes: Vec::new(),
            warnings: Vec::new(),
            evaluation: Source::Micro(split),
            order: Vec::new(),
            training: OnceLock::from(Source::Micro(MicroSet::TRAIN)),
            form: None,
        }
    }

    /// The data set that a folder, or the one folder with any one level below it, holds: of this task where one is given.
    pub fn open(folder: &Path, wanted: Option<&'static Kind>) -> Result<Self, DataError> {
        if !folder.is_dir() {
            let problem = "no such folder; give the folder that a data set's archive unpacks to";
            return Err(DataError::new(folder, problem));
        }
        let recognise = |folder: &Path| {
            // Asked for by name, class folders are class folders whatever else they look like.
            let layout = match wanted == Some(FOLDER) {
                true => folder::form(folder).map(Layout::Folders),
                false => layout::of(folder),
            };
            layout.filter(|layout| {
                kind_of(*layout).is_some_and(|kind| wanted.is_none_or(|wanted| wanted == kind))
            })
        };
        let Some((root, layout)) = layout::find(folder, recognise)? else {
            return Err(none_of(folder, wanted));
        };
        let below = (root != folder).then(|| {
            format!(
                "{}: using {}/, one level below ({})",
                folder.display(),
                name(&root),
                layout.name()
            )
        });
        let mut set = match layout {
            Layout::Cifar(_) => Self::open_cifar(&root),
            Layout::Folders(form) => Self::open_folders(&root, form),
            _ => Self::open_imagenet(&root),
        }?;
        set.notes.splice(0..0, below);
        Ok(set)
    }

    fn open_cifar(folder: &Path) -> Result<Self, DataError> {
        let set = cifar::read_folder(folder)?;
        let kind = match set.kind {
            cifar::Kind::Cifar10 => CIFAR10,
            cifar::Kind::Cifar100 => CIFAR100,
        };
        let of = Self::of(
            kind,
            set.kind.classes().into(),
            folder,
            Source::Records(set.test),
        )?;
        Ok(Self {
            training: OnceLock::from(Source::Records(set.train)),
            warnings: set.warnings,
            ..of
        })
    }

    fn open_imagenet(folder: &Path) -> Result<Self, DataError> {
        let set = imagenet::read_splits(folder, Wanted::Validation)?;
        if set.validation.is_empty() {
            return Err(DataError::new(
                folder,
                "no validation images; add val/ beside train/",
            ));
        }
        let evaluation = Source::files(set.validation);
        let of = Self::of(IMAGENET, set.classes.len(), folder, evaluation)?;
        Ok(Self {
            warnings: set.warnings,
            ..of
        })
    }

    fn open_folders(folder: &Path, form: Form) -> Result<Self, DataError> {
        let mut set = folder::read(folder, form, Wanted::Validation)?;
        let evaluation = std::mem::take(&mut set.evaluation);
        if evaluation.is_empty() {
            let problem = "no pictures to evaluate on; add val/<class>/ beside train/ (or valid, validation, test), or give train/ itself, of which a part is then drawn";
            return Err(DataError::new(folder, problem));
        }
        let of = Self::of(FOLDER, set.classes.len(), folder, Source::files(evaluation))?;
        let note = set
            .split
            .as_ref()
            .map(|split| format!("{}: neither train/ nor val/, so {split}", folder.display()));
        let training = match set.split {
            Some(_) => OnceLock::from(Source::files(std::mem::take(&mut set.train))),
            None => OnceLock::new(),
        };
        Ok(Self {
            // A list is its pictures; which names their classes have is part of what is measured, too.
            sha256: of.sha256.as_deref().map(|list| set.sha256(list)),
            training,
            notes: note.into_iter().collect(),
            split: set.split,
            warnings: set.warnings,
            form: Some(form),
            ..of
        })
    }

    fn of(
        kind: &'static Kind,
        classes: usize,
        folder: &Path,
        evaluation: Source,
    ) -> Result<Self, DataError> {
        // Lists on disk are sorted by class, or may be: their first images would be of a few classes alone.
        let mut order: Vec<usize> = (0..evaluation.len()).collect();
        Seed(0).stream("evaluation").shuffle(&mut order);
        Ok(Self {
            kind,
            classes,
            folder: Some(folder.to_owned()),
            sha256: evaluation.sha256(0..evaluation.len())?,
            split: None,
            notes: Vec::new(),
            warnings: Vec::new(),
            evaluation,
            order,
            training: OnceLock::new(),
            form: None,
        })
    }

    /// Says once what the user did not ask for in so many words, and what is unusual.
    pub fn tell(&self) {
        for note in &self.notes {
            remark_once(&format!("note: {note}"));
        }
        for warning in &self.warnings {
            remark_once(&format!("warning: {warning}"));
        }
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
        let (pictures, class) = match self.form {
            None => {
                let set = imagenet::read_splits(folder, Wanted::Train)?;
                (set.train, "WordNet id")
            }
            Some(form) => (folder::read(folder, form, Wanted::Train)?.train, "class"),
        };
        if pictures.is_empty() {
            let problem = format!(
                "no training images, which calibration is drawn from; add train/<{class}>/"
            );
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
        let set = if let Some(set) = Set::of_kind(kind) {
            set
        } else {
            let folder = self.folders.get(kind.name).ok_or(OpenError::NoFolder {
                task: kind.name,
                hint: format!("--data-dir {}=DIR", kind.name),
            })?;
            let set = Set::open(folder, Some(kind))?;
            set.tell();
            set
        };
        let set = Arc::new(set);
        open.insert(kind.name, Arc::clone(&set));
        Ok(set)
    }
}

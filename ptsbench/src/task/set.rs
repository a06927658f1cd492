//! The images of a task: recognised in a folder, ordered, and identified by a digest.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use model_zoo::{Boxes, Modality, Noise};

use super::generated::{self, Generated};
use super::labelled::Labelled;
use super::scenes::Scenes;
use super::{
    CIFAR10, CIFAR100, COCO, FOLDER, IMAGENET, Kind, MICRO, MICRO_BOXES, MICRO_BOXES_VALIDATION,
    UnknownTask, VOC07, find,
};
use crate::data::calibration::{CalibrationError, CalibrationList};
use crate::data::cifar;
use crate::data::error::{DataError, name};
use crate::data::folder::{self, Form};
use crate::data::imagenet::{self, Wanted};
use crate::data::layout::{self, Layout};
use crate::data::source::Source;
use crate::data::synthetic::{MicroSet, Split};
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
    /// The images.
    content: Content,
}

/// Warnings about a set's annotations that are shown when it is opened.
const MOST_WARNINGS: usize = 3;

/// The images of a set, by what is known of them.
#[derive(Debug)]
enum Content {
    /// Each is of one class.
    Labelled(Labelled),
    /// Generated ones are compared with them.
    Generated(Generated),
    /// Objects are on them.
    Scenes(Scenes),
}

/// The task that a data set serves, if there is one.
fn kind_of(layout: Layout) -> Option<&'static Kind> {
    match layout {
        Layout::Voc => Some(VOC07),
        Layout::Coco => Some(COCO),
        Layout::Lsun => None,
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
    let problem = "neither ImageNet, CIFAR, pictures in one folder per class, COCO nor VOC, the sets that networks are judged on; `ptsbench data check` says what it holds, `ptsbench list datasets` shows the layouts";
    DataError::new(folder, problem)
}

impl Set {
    /// The built-in images of the test split.
    pub fn micro() -> Self {
        let images = Labelled::built_in(MicroSet::TEST);
        Self::built_in(MICRO, Content::Labelled(images))
    }

    /// The built-in pictures with objects: those of the validation split, or of another split under the task's name.
    pub fn micro_boxes(split: Split) -> Self {
        let kind = match split {
            Split::Validation => MICRO_BOXES_VALIDATION,
            Split::Train | Split::Test => MICRO_BOXES,
        };
        Self::built_in(kind, Content::Scenes(Scenes::built_in(split)))
    }

    /// The images of a kind that needs no folder.
    pub fn of_kind(kind: &'static Kind) -> Result<Option<Self>, DataError> {
        if !kind.built_in() {
            return Ok(None);
        }
        Ok(Some(match kind.split() {
            Some(split) if kind.judges == Boxes::DOES => Self::micro_boxes(split),
            Some(split) => {
                let images = Labelled::built_in(MicroSet { split });
                Self::built_in(kind, Content::Labelled(images))
            }
            None => Self::compared(kind, None, Generated::built_in())?,
        }))
    }

    /// What generated images are compared with.
    fn compared(
        kind: &'static Kind,
        folder: Option<&Path>,
        images: Generated,
    ) -> Result<Self, DataError> {
        Ok(Self {
            kind,
            classes: 0,
            folder: folder.map(Path::to_owned),
            sha256: Some(images.sha256()?),
            split: None,
            notes: Vec::new(),
            warnings: Vec::new(),
            content: Content::Generated(images),
        })
    }

    fn built_in(kind: &'static Kind, content: Content) -> Self {
        Self {
            kind,
            classes: kind.classes.unwrap_or(0),
            folder: None,
            sha256: None,
            split: None,
            notes: Vec::new(),
            warnings: Vec::new(),
            content,
        }
    }

    /// The data set that a folder, or the one folder with any one level below it, holds: of this task where one is given.
    pub fn open(folder: &Path, wanted: Option<&'static Kind>) -> Result<Self, DataError> {
        if !folder.is_dir() {
            let problem = "no such folder; give the folder that a data set's archive unpacks to";
            return Err(DataError::new(folder, problem));
        }
        // What a generator is compared with has no layout of its own: its name, or the task asked for, says what it is.
        let compared = match wanted {
            Some(wanted) => (wanted.judges == Noise::DOES).then_some(wanted),
            None => generated::recognise(folder),
        };
        if let Some(kind) = compared {
            return Self::compared(kind, Some(folder), Generated::open(folder, kind)?);
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
            Layout::Coco => Self::open_coco(&root),
            Layout::Voc => Self::open_voc(&root),
            Layout::ImageNet | Layout::Lsun => Self::open_imagenet(&root),
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
        let images = Labelled::of(Source::Records(set.test), folder)
            .with_training(Source::Records(set.train));
        let of = Self::of(kind, set.kind.classes().into(), folder, images)?;
        Ok(Self {
            warnings: set.warnings,
            ..of
        })
    }

    fn open_coco(folder: &Path) -> Result<Self, DataError> {
        let (scenes, warnings) = Scenes::coco(folder)?;
        Self::of_scenes(COCO, folder, scenes, warnings)
    }

    fn open_voc(folder: &Path) -> Result<Self, DataError> {
        let (scenes, warnings, note) = Scenes::voc(folder)?;
        let set = Self::of_scenes(VOC07, folder, scenes, warnings)?;
        Ok(Self {
            notes: note.into_iter().collect(),
            ..set
        })
    }

    fn of_scenes(
        kind: &'static Kind,
        folder: &Path,
        scenes: Scenes,
        mut warnings: Vec<String>,
    ) -> Result<Self, DataError> {
        // Boxes beyond the picture are frequent, and `data check` lists them all.
        if let Some(more) = warnings
            .len()
            .checked_sub(MOST_WARNINGS)
            .filter(|more| *more > 0)
        {
            warnings.truncate(MOST_WARNINGS);
            warnings.push(format!(
                "{}: {more} more of that kind; `ptsbench data check` shows all",
                folder.display()
            ));
        }
        Ok(Self {
            kind,
            classes: scenes.categories.len(),
            folder: Some(folder.to_owned()),
            sha256: scenes.sha256()?,
            split: None,
            notes: Vec::new(),
            warnings,
            content: Content::Scenes(scenes),
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
        let images = Labelled::of(Source::files(set.validation), folder);
        let of = Self::of(IMAGENET, set.classes.len(), folder, images)?;
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
        let note = set
            .split
            .as_ref()
            .map(|split| format!("{}: neither train/ nor val/, so {split}", folder.display()));
        let mut images = Labelled::of(Source::files(evaluation), folder).with_form(form);
        if set.split.is_some() {
            images = images.with_training(Source::files(std::mem::take(&mut set.train)));
        }
        let of = Self::of(FOLDER, set.classes.len(), folder, images)?;
        Ok(Self {
            // A list is its pictures; which names their classes have is part of what is measured, too.
            sha256: of.sha256.as_deref().map(|list| set.sha256(list)),
            notes: note.into_iter().collect(),
            split: set.split,
            warnings: set.warnings,
            ..of
        })
    }

    fn of(
        kind: &'static Kind,
        classes: usize,
        folder: &Path,
        images: Labelled,
    ) -> Result<Self, DataError> {
        Ok(Self {
            kind,
            classes,
            folder: Some(folder.to_owned()),
            sha256: images.sha256()?,
            split: None,
            notes: Vec::new(),
            warnings: Vec::new(),
            content: Content::Labelled(images),
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
        match &self.content {
            Content::Labelled(images) => images.len(),
            Content::Generated(images) => images.available(),
            Content::Scenes(scenes) => scenes.len(),
        }
    }

    /// The images, where each is of one class.
    pub fn labelled(&self) -> Option<&Labelled> {
        match &self.content {
            Content::Labelled(images) => Some(images),
            Content::Generated(_) | Content::Scenes(_) => None,
        }
    }

    /// What generated images are compared with.
    pub fn generated(&self) -> Option<&Generated> {
        match &self.content {
            Content::Generated(images) => Some(images),
            Content::Labelled(_) | Content::Scenes(_) => None,
        }
    }

    /// The images, where objects are on them.
    pub fn scenes(&self) -> Option<&Scenes> {
        match &self.content {
            Content::Scenes(scenes) => Some(scenes),
            Content::Labelled(_) | Content::Generated(_) => None,
        }
    }

    /// The calibration images of a seed, and SHA-256 of that list (none for the built-in images).
    pub fn calibration(
        &self,
        images: usize,
        seed: u64,
    ) -> Result<(CalibrationList, Option<String>), OpenError> {
        match &self.content {
            Content::Labelled(labelled) => {
                let training = labelled.training()?;
                let list = CalibrationList::draw(Seed(seed), images, training.len())?;
                let sha256 = training.sha256(list.indices.iter().copied())?;
                Ok((list, sha256))
            }
            // A generator is calibrated by what it makes itself.
            Content::Generated(_) => {
                let indices = Vec::new();
                Ok((CalibrationList { indices }, None))
            }
            Content::Scenes(scenes) => {
                let training = scenes.training()?;
                let list = CalibrationList::draw(Seed(seed), images, training.len())?;
                let sha256 = training.sha256(&list.indices)?;
                Ok((list, sha256))
            }
        }
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
            ..Self::default()
        })
    }

    /// The set of a task.
    pub fn get(&self, task: &str) -> Result<Arc<Set>, OpenError> {
        let kind = find(task)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = open.get(kind.name) {
            return Ok(Arc::clone(set));
        }
        let set = if let Some(set) = Set::of_kind(kind)? {
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

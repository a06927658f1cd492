//! Tasks: what networks are trained for and judged by.
//!
//! A [`Kind`] is a row of a table, known without any data. A [`Set`] is a kind with its images at hand, and a
//! [`judged::Judge`] is a set as one network meets it.

pub mod classify;
pub mod detect;
pub mod generate;
mod generated;
pub mod journal;
pub mod judged;
mod labelled;
pub mod scenes;
mod set;
pub mod sightings;
pub mod train;

use model_zoo::catalog::Spec;
use model_zoo::misspelt::{did_you_mean, nearest};
use model_zoo::{Boxes, Classes, Modality, Noise};

use crate::data::decode::ImageError;
use crate::data::error::DataError;
use crate::data::synthetic::{self, MicroSet, Split, detection, generation};
use crate::features::FeatureError;
use crate::interrupt::Interrupted;
use crate::metric::top_k::TopKError;

use classify::Misfit;
use generate::GenerateError;
pub use generated::Generated;
use judged::OtherKind;
pub use labelled::Labelled;
pub use set::{OpenError, Set, Sets};

/// Values in an evaluation batch where nothing else is asked for: 64 images of 224 x 224. It has no influence on any
/// number.
const BATCH_PIXELS: usize = 64 * 224 * 224;
/// The most images in such a batch.
const MOST: usize = 250;

/// Images of this size in a batch where nothing else is asked for.
pub fn batch_of([_, height, width]: [usize; 3]) -> usize {
    (BATCH_PIXELS / (height * width).max(1)).clamp(1, MOST)
}

/// A task, before its images are at hand.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name in plans and records.
    pub name: &'static str,
    /// Measurement version.
    pub version: u32,
    /// What the networks do that it judges: [`Modality::DOES`] of their kind.
    pub judges: &'static str,
    /// Classes; none where the folder decides.
    pub classes: Option<usize>,
    /// Images to evaluate on, as published; none where the folder decides.
    pub images: Option<usize>,
    /// One line for `ptsbench list`.
    pub about: &'static str,
}

impl Kind {
    /// Whether its images need no folder.
    pub fn built_in(&self) -> bool {
        self.split().is_some() || self == MICRO_GENERATION
    }

    /// Of the networks that a name or pattern means: for a pattern, those of the kind that this task judges, since `*` can
    /// mean no others; for a name, the one that was named.
    pub fn among(
        &self,
        pattern: &str,
        found: Vec<&'static Spec>,
    ) -> Result<Vec<&'static Spec>, NoneOfKind> {
        if !pattern.contains(['*', '?']) {
            return Ok(found);
        }
        let judged: Vec<_> = found
            .into_iter()
            .filter(|spec| spec.does() == self.judges)
            .collect();
        if judged.is_empty() {
            return Err(NoneOfKind {
                pattern: pattern.to_owned(),
                task: self.name,
                judges: self.judges,
            });
        }
        Ok(judged)
    }

    /// The part of the built-in images that it judges by, if they are built in.
    fn split(&self) -> Option<Split> {
        match self.name {
            "micro" | "micro_boxes" => Some(Split::Test),
            "micro_validation" | "micro_boxes_validation" => Some(Split::Validation),
            _ => None,
        }
    }

    /// Whether its samples have one form for all networks, so that there is no recipe for them.
    pub fn one_form(&self) -> bool {
        self.built_in() && self.judges == Classes::DOES
    }
}

/// Every task.
pub static TASKS: [Kind; 14] = [
    Kind {
        name: "micro",
        version: synthetic::VERSION,
        judges: Classes::DOES,
        classes: Some(synthetic::CLASSES),
        images: Some(MicroSet::TEST.len()),
        about: "procedural 20-class images, 32x32, built in",
    },
    Kind {
        name: "micro_validation",
        version: synthetic::VERSION,
        judges: Classes::DOES,
        classes: Some(synthetic::CLASSES),
        images: Some(MicroSet::VALIDATION.len()),
        about: "more images of that kind, for making choices",
    },
    Kind {
        name: "imagenet",
        version: 1,
        judges: Classes::DOES,
        classes: Some(1000),
        images: Some(50_000),
        about: "ImageNet (ILSVRC 2012), from its folder",
    },
    Kind {
        name: "cifar10",
        version: 1,
        judges: Classes::DOES,
        classes: Some(10),
        images: Some(10_000),
        about: "CIFAR-10, from its folder",
    },
    Kind {
        name: "cifar100",
        version: 1,
        judges: Classes::DOES,
        classes: Some(100),
        images: Some(10_000),
        about: "CIFAR-100, from its folder",
    },
    Kind {
        name: "folder",
        version: 1,
        judges: Classes::DOES,
        classes: None,
        images: None,
        about: "pictures of your own, in one folder per class",
    },
    Kind {
        name: "micro_generation",
        version: generation::VERSION,
        judges: Noise::DOES,
        classes: None,
        images: Some(generated::MICRO_IMAGES),
        about: "images like the procedural shapes, 32x32, built in",
    },
    Kind {
        name: "lsun_church",
        version: 1,
        judges: Noise::DOES,
        classes: None,
        images: Some(generated::IMAGES),
        about: "images like LSUN's churches, from their folder",
    },
    Kind {
        name: "lsun_bedroom",
        version: 1,
        judges: Noise::DOES,
        classes: None,
        images: Some(generated::IMAGES),
        about: "images like LSUN's bedrooms, from their folder",
    },
    Kind {
        name: "sd2_text",
        // 2: the letters of prompts are composed (NFC).
        version: 2,
        judges: Noise::DOES,
        classes: None,
        images: None,
        about: "images of prompts, from a folder with prompts.txt",
    },
    Kind {
        name: "micro_boxes",
        version: detection::VERSION,
        judges: Boxes::DOES,
        classes: Some(detection::CATEGORIES.len()),
        images: Some(detection::pictures(Split::Test)),
        about: "procedural scenes with objects of 5 classes, 160x160, built in",
    },
    Kind {
        name: "micro_boxes_validation",
        version: detection::VERSION,
        judges: Boxes::DOES,
        classes: Some(detection::CATEGORIES.len()),
        images: Some(detection::pictures(Split::Validation)),
        about: "more scenes of that kind, for making choices",
    },
    Kind {
        name: "coco",
        version: 1,
        judges: Boxes::DOES,
        classes: Some(80),
        images: Some(5000),
        about: "COCO 2017, or objects of your own in its form",
    },
    Kind {
        name: "voc07",
        version: 1,
        judges: Boxes::DOES,
        classes: Some(20),
        images: Some(4952),
        about: "VOC 2007, or objects of your own in its form",
    },
];

static MICRO: &Kind = &TASKS[0];
static IMAGENET: &Kind = &TASKS[2];
static CIFAR10: &Kind = &TASKS[3];
static CIFAR100: &Kind = &TASKS[4];
static FOLDER: &Kind = &TASKS[5];
static MICRO_GENERATION: &Kind = &TASKS[6];
static LSUN_CHURCH: &Kind = &TASKS[7];
static LSUN_BEDROOM: &Kind = &TASKS[8];
static SD2_TEXT: &Kind = &TASKS[9];
static MICRO_BOXES: &Kind = &TASKS[10];
static MICRO_BOXES_VALIDATION: &Kind = &TASKS[11];
static COCO: &Kind = &TASKS[12];
static VOC07: &Kind = &TASKS[13];

/// A task that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown task `{name}`{} (the tasks are {})", hint(.name), names())]
pub struct UnknownTask {
    /// What was asked.
    pub name: String,
}

/// A pattern that no network of a task's kind matches.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no model that matches `{pattern}` {judges}, as task `{task}` needs; `ptsbench list models` shows all names"
)]
pub struct NoneOfKind {
    /// What was asked.
    pub pattern: String,
    /// The task.
    pub task: &'static str,
    /// What the networks do that it judges.
    pub judges: &'static str,
}

/// The nearest task, as a question, or nothing.
fn hint(name: &str) -> String {
    did_you_mean(&nearest(name, TASKS.iter().map(|kind| kind.name)))
}

fn names() -> String {
    let names: Vec<String> = TASKS
        .iter()
        .map(|kind| format!("`{}`", kind.name))
        .collect();
    names.join(", ")
}

/// The task called `name`.
pub fn find(name: &str) -> Result<&'static Kind, UnknownTask> {
    TASKS
        .iter()
        .find(|kind| kind.name == name)
        .ok_or_else(|| UnknownTask {
            name: name.to_owned(),
        })
}

/// The first task whose built-in images are for networks of this kind; the first of all where none has such.
pub fn built_in(spec: &Spec) -> &'static Kind {
    let mut built_in = TASKS.iter().filter(|kind| kind.built_in());
    built_in
        .find(|kind| kind.judges == spec.does())
        .unwrap_or(MICRO)
}

/// Why a network has no score.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// No such task, or no images for it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The network does something else than the task judges.
    #[error(
        "{0}; choose another model (`ptsbench list models`) or another task (`ptsbench list tasks`)"
    )]
    OtherKind(#[from] OtherKind),
    /// The network is not one for the task's images.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The network is not one for the task's pictures with objects, or no network is.
    #[error(transparent)]
    NoDetector(Box<detect::Misfit>),
    /// The images are not those of the cell.
    #[error(
        "task {task}: its {what} is {found}, and the cell's is {expected}; the folder or the program changed since the plan was read, start again"
    )]
    OtherData {
        /// The task.
        task: String,
        /// What differs.
        what: &'static str,
        /// Of the cell.
        expected: String,
        /// Found.
        found: String,
    },
    /// A logit is not a number, or there are not as many as classes.
    #[error(transparent)]
    Logits(#[from] TopKError),
    /// An image of a measurement cannot be read.
    #[error("no score of a damaged set: {error}")]
    Image {
        /// Which, and why.
        error: ImageError,
    },
    /// No images can be generated or compared.
    #[error(transparent)]
    Generate(Box<GenerateError>),
    /// The training images cannot be listed.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Progress cannot be kept.
    #[error(transparent)]
    Journal(#[from] journal::JournalError),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl From<detect::Misfit> for TaskError {
    fn from(error: detect::Misfit) -> Self {
        Self::NoDetector(Box::new(error))
    }
}

impl From<GenerateError> for TaskError {
    fn from(error: GenerateError) -> Self {
        Self::Generate(Box::new(error))
    }
}

impl From<FeatureError> for TaskError {
    fn from(error: FeatureError) -> Self {
        match error {
            FeatureError::Interrupted(stop) => stop.into(),
            error => GenerateError::from(error).into(),
        }
    }
}

/// Refuses images that are not those of a cell: `what` is known of both, or of neither.
pub(crate) fn same(
    set: &Set,
    what: &'static str,
    expected: &Option<String>,
    found: &Option<String>,
) -> Result<(), TaskError> {
    if expected == found {
        return Ok(());
    }
    let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    Err(TaskError::OtherData {
        task: set.label(),
        what,
        expected: said(expected),
        found: said(found),
    })
}

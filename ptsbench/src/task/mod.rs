//! Tasks: what networks are trained for and judged by.
//!
//! A [`Kind`] is a row of a table, known without any data. A [`Set`] is a kind with its images at hand, and a [`Task`] is
//! a set as one network's recipe sees it.

pub mod journal;
mod set;
pub mod train;

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use kernels::Precision;
use model_zoo::Classifier;
use model_zoo::tap::Bare;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::decode::ImageError;
use crate::data::error::DataError;
use crate::data::loader;
use crate::data::recipe::Recipe;
use crate::data::synthetic::{self, MicroSet};
use crate::interrupt::{self, Interrupted};
use crate::metric::top_k::{TopKError, correct_among};
use crate::record::Score;

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

/// A classification task, before its images are at hand.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name in plans and records.
    pub name: &'static str,
    /// Measurement version.
    pub version: u32,
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
        std::ptr::eq(self, MICRO)
    }
}

/// Every task.
pub static TASKS: [Kind; 5] = [
    Kind {
        name: "micro",
        version: synthetic::VERSION,
        classes: Some(synthetic::CLASSES),
        images: Some(MicroSet::TEST.len()),
        about: "procedural 20-class images, 32x32, built in",
    },
    Kind {
        name: "imagenet",
        version: 1,
        classes: Some(1000),
        images: Some(50_000),
        about: "ImageNet (ILSVRC 2012), from its folder",
    },
    Kind {
        name: "cifar10",
        version: 1,
        classes: Some(10),
        images: Some(10_000),
        about: "CIFAR-10, from its folder",
    },
    Kind {
        name: "cifar100",
        version: 1,
        classes: Some(100),
        images: Some(10_000),
        about: "CIFAR-100, from its folder",
    },
    Kind {
        name: "folder",
        version: 1,
        classes: None,
        images: None,
        about: "pictures of your own, in one folder per class",
    },
];

static MICRO: &Kind = &TASKS[0];
static IMAGENET: &Kind = &TASKS[1];
static CIFAR10: &Kind = &TASKS[2];
static CIFAR100: &Kind = &TASKS[3];
static FOLDER: &Kind = &TASKS[4];

/// A task that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown task `{name}`; the tasks are {}", names())]
pub struct UnknownTask {
    /// What was asked.
    pub name: String,
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

/// Why a network has no score.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A logit is not a number, or there are not as many as classes.
    #[error(transparent)]
    Logits(#[from] TopKError),
    /// An image of a measurement cannot be read.
    #[error("no score of a damaged set: {error}")]
    Image {
        /// Which, and why.
        error: ImageError,
    },
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

/// How far an evaluation got: a prefix of the set's order, so that it does not depend on batches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Images looked at.
    pub images: usize,
    /// Of those, images whose class was named first.
    pub top1: u64,
    /// Of those, images whose class was among the first five.
    pub top5: u64,
    /// Images that could not be read, each with the reason. They were not classified.
    pub unreadable: Vec<String>,
}

impl Tally {
    /// Percent of all images looked at, unreadable ones included.
    pub fn percent(&self, hits: u64) -> f64 {
        100.0 * hits as f64 / self.images.max(1) as f64
    }
}

/// A set of images as the recipe of one network's weights sees it.
#[derive(Debug, Clone)]
pub struct Task {
    set: Arc<Set>,
    recipe: Recipe,
}

impl Task {
    /// The set in the form that a network's weights were trained for; the built-in images have one form only.
    pub fn new(set: Arc<Set>, recipe: Recipe) -> Self {
        let recipe = if set.kind.built_in() {
            Recipe::MICRO
        } else {
            recipe
        };
        Self { set, recipe }
    }

    /// The built-in images.
    pub fn micro() -> Self {
        Self {
            set: Arc::new(Set::micro()),
            recipe: Recipe::MICRO,
        }
    }

    /// The images.
    pub fn set(&self) -> &Set {
        &self.set
    }

    /// How pictures become inputs; the built-in images have one form only.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Channels, height and width of an image.
    pub fn input(&self) -> [usize; 3] {
        if self.set.kind.built_in() {
            return [synthetic::CHANNELS, synthetic::SIDE, synthetic::SIDE];
        }
        [3, self.recipe.crop, self.recipe.crop]
    }

    /// Images in a batch where nothing else is asked for.
    pub fn batch(&self) -> usize {
        batch_of(self.input())
    }

    /// Training images by index, without their labels.
    pub fn training_images(
        &self,
        indices: &[usize],
        device: &Device,
    ) -> Result<Tensor<4>, TaskError> {
        let training = self.set.training()?;
        let images: Result<Vec<Vec<f32>>, ImageError> = indices
            .par_iter()
            .map(|&index| training.input(index, &self.recipe))
            .collect();
        let values = images.map_err(|error| TaskError::Image { error })?.concat();
        Ok(self.tensor(values, indices.len(), device))
    }

    fn tensor(&self, values: Vec<f32>, images: usize, device: &Device) -> Tensor<4> {
        let [channels, height, width] = self.input();
        let shape = [images, channels, height, width];
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// Top-1 accuracy on the first `samples` images of the set's order; all of them must be readable.
    pub fn evaluate<N>(
        &self,
        network: &N,
        samples: usize,
        precision: Precision,
        device: &Device,
        mut progress: impl FnMut(usize),
    ) -> Result<Score, TaskError>
    where
        N: Classifier,
    {
        let samples = samples.min(self.set.available());
        let run = Run {
            samples,
            batch: self.batch(),
            precision,
            start: Tally::default(),
        };
        let tally = self.tally(network, run, device, |tally, unreadable| {
            progress(tally.images);
            match unreadable.pop() {
                Some(error) => Err(TaskError::Image { error }),
                None => Ok(()),
            }
        })?;
        let available = self.set.available() as u64;
        Ok(Score::top1(tally.top1, samples as u64, available))
    }

    /// Counts the images whose class the network names, and tells `after` of each batch: how far it is, and which images
    /// of the batch could not be read.
    pub fn tally<N>(
        &self,
        network: &N,
        run: Run,
        device: &Device,
        mut after: impl FnMut(&Tally, &mut Vec<ImageError>) -> Result<(), TaskError>,
    ) -> Result<Tally, TaskError>
    where
        N: Classifier,
    {
        let Run {
            samples,
            batch,
            precision,
            start,
        } = run;
        let (first, mut tally) = (start.images, start);
        let left = samples.min(self.set.available()).saturating_sub(first);
        // A picture that cannot be read is an item like another, and does not end the loading.
        let load = |at| Ok(self.set.input(first + at, &self.recipe));
        loader::batches(left, batch, load, |start, items| {
            interrupt::check()?;
            let mut values = Vec::new();
            let mut labels = Vec::with_capacity(items.len());
            let mut unreadable = Vec::new();
            tally.images += items.len();
            for (at, item) in items.into_iter().enumerate() {
                match item {
                    Ok(input) => {
                        values.extend(input);
                        labels.push(self.set.label_of(first + start + at));
                    }
                    Err(error) => unreadable.push(error),
                }
            }
            if !labels.is_empty() {
                let images = self.tensor(values, labels.len(), device);
                let logits = network.run(images, &mut Bare(precision)).into_data();
                let logits: Vec<f32> = logits.iter::<f32>().collect();
                tally.top1 += correct_among(1, &logits, self.set.classes, &labels)?;
                tally.top5 += correct_among(5, &logits, self.set.classes, &labels)?;
            }
            let said = unreadable.iter().map(ImageError::to_string);
            tally.unreadable.extend(said);
            after(&tally, &mut unreadable)
        })?;
        Ok(tally)
    }
}

/// What is evaluated, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Images of the set's order, the ones already counted included.
    pub samples: usize,
    /// Images in a batch; it has no influence on any number.
    pub batch: usize,
    /// Arithmetic of the passes.
    pub precision: Precision,
    /// What was counted before.
    pub start: Tally,
}

//! Classification: images, each of one class, and how often a network names it.

use std::fmt;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use model_zoo::catalog::Spec;
use model_zoo::tap::Census;
use model_zoo::{Classes, Classifier};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::judged::{After, Judge, Run, Stint, Tally};
use super::{Labelled, Set, TaskError, batch_of, same};
use crate::batches::Batches;
use crate::cell::CalibrationCell;
use crate::data::decode::ImageError;
use crate::data::loader;
use crate::data::recipe::Recipe;
use crate::data::synthetic;
use crate::interrupt;
use crate::metric::top_k::correct_among;
use crate::record::Score;
use crate::subject;

/// A set of labelled images as the recipe of one network's weights sees it.
#[derive(Debug, Clone)]
pub struct Classification {
    set: Arc<Set>,
    recipe: Recipe,
}

/// A classifier that is none for a task's images.
#[derive(Debug, thiserror::Error)]
pub enum Misfit {
    /// The input or the classes are others.
    #[error(
        "`{model}` gives {found} classes for an input of {input:?}, and task {task} has {classes} classes of {wanted:?}; choose a model trained for the task (`ptsbench list models`){hint}"
    )]
    Unfit {
        /// The model.
        model: &'static str,
        /// Its classes.
        found: usize,
        /// Its input.
        input: [usize; 3],
        /// The task.
        task: String,
        /// The task's classes.
        classes: usize,
        /// The task's input.
        wanted: [usize; 3],
        /// What else may be wrong.
        hint: &'static str,
    },
    /// The recipe's images are of another size than the network can take.
    #[error(
        "`{model}` takes images of {own:?}, and the recipe makes {input:?}: {why}; give a recipe of that size (--recipe)"
    )]
    Size {
        /// The model.
        model: &'static str,
        /// Its own size.
        own: [usize; 3],
        /// The recipe's.
        input: [usize; 3],
        /// Why another is none.
        why: &'static str,
    },
}

/// Refuses inputs of a size that a network cannot take.
pub fn takes(spec: &Spec, input: [usize; 3]) -> Result<(), Misfit> {
    if spec.takes(input) {
        return Ok(());
    }
    Err(Misfit::Size {
        model: spec.name,
        own: spec.input,
        input,
        why: if spec.one_size() {
            "a transformer has one position for each patch of its own size"
        } else {
            "nothing would be left of such an image"
        },
    })
}

/// How many classes a classifier names: the width of what its last layer gives.
pub fn classes(census: &Census) -> usize {
    let last = census.layers().into_iter().last();
    last.and_then(|row| row.outputs.last()?.last().copied())
        .unwrap_or(0)
}

impl Classification {
    /// The set in the form that a network's weights were trained for, or that a recipe says; the built-in images have one
    /// form only.
    pub fn new(spec: &Spec, set: Arc<Set>, recipe: Option<&str>) -> Self {
        let recipe = if set.kind.built_in() {
            Recipe::MICRO
        } else {
            let given = recipe.and_then(|text| text.parse().ok());
            given.unwrap_or_else(|| Recipe::of(spec))
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

    fn images(&self) -> &Labelled {
        let images = self.set.labelled();
        images.expect("the tasks that judge classifiers have labelled images")
    }

    /// Channels, height and width of an image.
    fn input(&self) -> [usize; 3] {
        if self.set.kind.built_in() {
            return [synthetic::CHANNELS, synthetic::SIDE, synthetic::SIDE];
        }
        [3, self.recipe.crop, self.recipe.crop]
    }

    /// Refuses a network whose input or classes are not the task's.
    fn check(&self, spec: &Spec, found: usize) -> Result<(), Misfit> {
        let (set, input) = (&self.set, self.input());
        if found == set.classes && !set.kind.built_in() {
            takes(spec, input)?;
        }
        if spec.takes(input) && found == set.classes {
            return Ok(());
        }
        // A part of ImageNet without its list of classes gives every picture a wrong one.
        let part = set.kind.name == "imagenet" && Some(set.classes) < set.kind.classes;
        Err(Misfit::Unfit {
            model: spec.name,
            found,
            input: spec.input,
            task: set.label(),
            classes: set.classes,
            wanted: input,
            hint: if part {
                "; if this is a part of ImageNet, put LOC_synset_mapping.txt with all 1000 classes beside it"
            } else {
                ""
            },
        })
    }

    fn tensor(&self, values: Vec<f32>, images: usize, device: &Device) -> Tensor<4> {
        let [channels, height, width] = self.input();
        let shape = [images, channels, height, width];
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// Training images by index, without their labels.
    fn training_images(&self, indices: &[usize], device: &Device) -> Result<Tensor<4>, TaskError> {
        let training = self.images().training()?;
        let images: Result<Vec<Vec<f32>>, ImageError> = indices
            .par_iter()
            .map(|&index| training.input(index, &self.recipe))
            .collect();
        let values = images.map_err(|error| TaskError::Image { error })?.concat();
        Ok(self.tensor(values, indices.len(), device))
    }
}

impl Judge<Classes> for Classification {
    type Tally = Hits;

    fn recipe(&self) -> Option<String> {
        (!self.set.kind.built_in()).then(|| self.recipe.to_string())
    }

    fn available(&self) -> usize {
        self.set.available()
    }

    fn batch(&self) -> usize {
        batch_of(self.input())
    }

    fn census<N: Classifier>(
        &self,
        spec: &Spec,
        network: &N,
        device: &Device,
    ) -> Result<Census, TaskError> {
        let census = subject::census(spec, network, device);
        self.check(spec, classes(&census))?;
        if self.input() == spec.input {
            return Ok(census);
        }
        // Multiply-adds are those of the task's images.
        let [channels, height, width] = self.input();
        let image = Tensor::zeros([1, channels, height, width], device);
        Ok(subject::census_on(image, network))
    }

    fn calibration(
        &self,
        _: &Run<'_, Classes>,
        wanted: &CalibrationCell,
        device: &Device,
        room: u64,
    ) -> Result<Batches<'static, Tensor<4>>, TaskError> {
        let (list, sha256) = self.set.calibration(wanted.images, wanted.seed)?;
        let what = "list of calibration images";
        same(&self.set, what, &wanted.list, &sha256)?;
        let (judge, device) = (self.clone(), device.clone());
        let (images, batch) = (list.indices, wanted.batch.max(1));
        Ok(Batches::new(
            images.len().div_ceil(batch),
            room,
            move |at| {
                let end = images.len().min((at + 1) * batch);
                judge.training_images(&images[at * batch..end], &device)
            },
        ))
    }

    fn tally(
        &self,
        network: &Run<'_, Classes>,
        stint: Stint<Hits>,
        device: &Device,
        after: &mut After<'_, Hits>,
    ) -> Result<Hits, TaskError> {
        let Stint {
            samples,
            batch,
            start,
        } = stint;
        let (first, mut hits) = (start.images, start);
        let images = self.images();
        let left = samples.min(self.set.available()).saturating_sub(first);
        // A picture that cannot be read is an item like another, and does not end the loading.
        let load = |at| Ok(images.input(first + at, &self.recipe));
        loader::batches(left, batch, load, |start, items| {
            interrupt::check()?;
            let mut values = Vec::new();
            let mut labels = Vec::with_capacity(items.len());
            let mut unreadable = Vec::new();
            hits.images += items.len();
            for (at, item) in items.into_iter().enumerate() {
                match item {
                    Ok(input) => {
                        values.extend(input);
                        labels.push(images.label_of(first + start + at));
                    }
                    Err(error) => unreadable.push(error),
                }
            }
            if !labels.is_empty() {
                let logits = network(self.tensor(values, labels.len(), device)).into_data();
                let logits: Vec<f32> = logits.iter::<f32>().collect();
                hits.top1 += correct_among(1, &logits, self.set.classes, &labels)?;
                hits.top5 += correct_among(5, &logits, self.set.classes, &labels)?;
            }
            let said = unreadable.iter().map(ImageError::to_string);
            hits.unreadable.extend(said);
            after(&hits, &mut unreadable)
        })?;
        Ok(hits)
    }

    fn score(&self, hits: &Hits) -> Score {
        Score::top1(hits.top1, hits.images as u64, self.set.available() as u64)
    }
}

/// Images whose class a network names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hits {
    /// Images looked at.
    pub images: usize,
    /// Of those, images whose class was named first.
    pub top1: u64,
    /// Of those, images whose class was among the first five.
    pub top5: u64,
    /// Images that could not be read, each with the reason. They were not classified.
    pub unreadable: Vec<String>,
}

impl Hits {
    /// Percent of all images looked at, unreadable ones included.
    fn percent(&self, hits: u64) -> f64 {
        100.0 * hits as f64 / self.images.max(1) as f64
    }
}

impl fmt::Display for Hits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let top5 = self.percent(self.top5);
        write!(f, "{}, top-5 {top5:.2} %", self.brief())
    }
}

impl Tally for Hits {
    fn samples(&self) -> usize {
        self.images
    }

    fn unreadable(&self) -> &[String] {
        &self.unreadable
    }

    fn is_sound(&self) -> bool {
        let read = self.images.checked_sub(self.unreadable.len());
        self.top1 <= self.top5 && read.is_some_and(|read| self.top5 <= read as u64)
    }

    fn brief(&self) -> String {
        format!("top-1 {:.2} %", self.percent(self.top1))
    }

    fn numbers(&self) -> Value {
        json!({
            "correct1": self.top1,
            "correct5": self.top5,
            "top1": self.percent(self.top1),
            "top5": self.percent(self.top5),
        })
    }
}

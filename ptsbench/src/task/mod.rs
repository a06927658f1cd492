//! Tasks: what networks are trained for and judged by.

pub mod train;

use burn::tensor::{Device, Tensor, TensorData};
use model_zoo::Network;
use model_zoo::tap::Bare;

use crate::data::synthetic::{self, CHANNELS, MicroSet, SIDE};
use crate::interrupt::{self, Interrupted};
use crate::metric::top_k::{TopKError, correct_among};
use crate::record::{Better, Score};

/// Images in an evaluation batch: it has no influence on any number.
const BATCH: usize = 250;

/// A classification task on a set of labelled images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Its name in plans and records.
    pub name: &'static str,
    /// Measurement version.
    pub version: u32,
    /// Classes.
    pub classes: usize,
    /// Channels, height and width of an image.
    pub input: [usize; 3],
    /// Images to evaluate on.
    pub available: usize,
    /// Training images to draw calibration images from.
    pub training: usize,
    /// One line for `ptsbench list`.
    pub about: &'static str,
}

/// Every task.
pub const TASKS: [Task; 1] = [Task {
    name: "micro",
    version: synthetic::VERSION,
    classes: synthetic::CLASSES,
    input: [CHANNELS, SIDE, SIDE],
    available: MicroSet::TEST.len(),
    training: MicroSet::TRAIN.len(),
    about: "procedural 20-class images, 32x32, built in",
}];

/// A task that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown task `{name}`; the tasks are {}", names())]
pub struct UnknownTask {
    /// What was asked.
    pub name: String,
}

fn names() -> String {
    TASKS.map(|task| format!("`{}`", task.name)).join(", ")
}

/// The task called `name`.
pub fn find(name: &str) -> Result<Task, UnknownTask> {
    TASKS
        .into_iter()
        .find(|task| task.name == name)
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
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Task {
    /// Evaluation images by index.
    fn images(self, indices: &[usize], device: &Device) -> Tensor<4> {
        batch(MicroSet::TEST, indices, device)
    }

    /// Training images by index, without their labels.
    pub fn training_images(self, indices: &[usize], device: &Device) -> Tensor<4> {
        batch(MicroSet::TRAIN, indices, device)
    }

    /// Top-1 accuracy on the first `samples` images.
    pub fn evaluate<N>(
        self,
        network: &N,
        samples: usize,
        device: &Device,
    ) -> Result<Score, TaskError>
    where
        N: Network<Input = Tensor<4>, Output = Tensor<2>>,
    {
        let samples = samples.min(self.available);
        let [correct] = self.top_k(network, samples, [1], device)?;
        Ok(Score {
            metric: "top1".to_owned(),
            value: 100.0 * correct as f64 / samples.max(1) as f64,
            better: Better::Higher,
            correct,
            total: samples as u64,
            available: self.available as u64,
        })
    }

    /// How many of the first `samples` images have their class among the network's first k, for each k.
    pub fn top_k<N, const K: usize>(
        self,
        network: &N,
        samples: usize,
        k: [usize; K],
        device: &Device,
    ) -> Result<[u64; K], TaskError>
    where
        N: Network<Input = Tensor<4>, Output = Tensor<2>>,
    {
        let mut hits = [0; K];
        let indices: Vec<usize> = (0..samples.min(self.available)).collect();
        for indices in indices.chunks(BATCH) {
            interrupt::check()?;
            let logits = network.run(self.images(indices, device), &mut Bare);
            let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
            let labels: Vec<usize> = MicroSet::TEST
                .labels(indices)
                .into_iter()
                .map(usize::from)
                .collect();
            for (hits, k) in hits.iter_mut().zip(k) {
                *hits += correct_among(k, &logits, self.classes, &labels)?;
            }
        }
        Ok(hits)
    }
}

fn batch(set: MicroSet, indices: &[usize], device: &Device) -> Tensor<4> {
    let shape = [indices.len(), CHANNELS, SIDE, SIDE];
    Tensor::from_data(TensorData::new(set.normalized(indices), shape), device)
}

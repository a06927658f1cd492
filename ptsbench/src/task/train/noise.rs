//! Training generators: the noise in a noisy image, by the process that the network was made for (Ho et al. 2020,
//! arXiv 2006.11239, Eq. 14).

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use model_zoo::catalog::Spec;
use model_zoo::diffusion::ddim::from_byte;
use model_zoo::diffusion::sampler::{Process, Schedule, TRAINING_STEPS};
use model_zoo::tap::Bare;
use model_zoo::{Noise, Of};
use rayon::prelude::*;

use super::{Lesson, Recipe, Taken, Taught, TrainError};
use crate::data::synthetic::{CHANNELS, PIXELS, SIDE, generation};
use crate::descent::floats;
use crate::interrupt;
use crate::seed::{Seed, Stream};
use crate::task::Sets;
use crate::task::judged::Judged;

/// The built-in task.
const TASK: &str = "micro_generation";
/// Images that a trained network is scored by: many times the features, and a fifth of the task's own.
const SCORED: usize = 2_000;
/// Images by whose noise an epoch is scored, and how many go through at once.
const HELD_OUT: usize = 1_000;
const BATCH: usize = 100;

/// The images of an epoch as bytes, and the process that they are noised by.
pub struct NoiseLesson {
    process: Process,
    schedule: Schedule,
    first: usize,
    bytes: Vec<u8>,
}

/// Images in [-1, 1], noise of their size, and the timestep of each.
pub struct Noisy {
    images: Vec<f32>,
    noise: Vec<f32>,
    timesteps: Vec<usize>,
}

impl NoiseLesson {
    /// For networks that undo this.
    pub fn new(process: Process) -> Self {
        Self {
            process,
            schedule: process.noising.schedule(),
            first: 0,
            bytes: Vec::new(),
        }
    }

    /// The mean square of what a network says amiss.
    fn loss<N: Of<Noise>>(&self, network: &N, batch: Noisy, device: &Device) -> Tensor<1> {
        let shape = [batch.timesteps.len(), CHANNELS, SIDE, SIDE];
        let tensor = |values| Tensor::<4>::from_data(TensorData::new(values, shape), device);
        let (images, noise) = (tensor(batch.images), tensor(batch.noise));
        let noised = self
            .schedule
            .noised(self.process.prediction, images, noise, &batch.timesteps);
        let input = (noised.images, noised.time, None);
        let found = network.run(input, &mut Bare::default());
        (found - noised.target).square().mean()
    }
}

fn bytes(first: usize, count: usize) -> Vec<u8> {
    let drawn = (first..first + count).into_par_iter();
    drawn.flat_map_iter(generation::image).collect()
}

fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.iter().copied().map(from_byte).collect()
}

impl Taught for Noise {
    type Lesson = NoiseLesson;

    fn test<N: Of<Noise>>(
        spec: &Spec,
        network: &N,
        device: &Device,
    ) -> Result<(String, f64), TrainError> {
        let set = Sets::default().get(TASK);
        let set = set.map_err(crate::task::TaskError::from)?;
        let judge = Noise::judge(spec, Arc::clone(&set), None).ok_or(TrainError::NoTask {
            model: spec.name,
            task: TASK,
        })?;
        super::tested::<Noise>(&judge, network, SCORED, device)
    }
}

impl Lesson<Noise> for NoiseLesson {
    type Batch = Noisy;

    fn turn_to(&mut self, recipe: Recipe, epoch: usize) {
        let first = recipe.first(epoch);
        if self.bytes.is_empty() || first != self.first {
            self.first = first;
            self.bytes = bytes(first, recipe.images);
        }
    }

    fn batch(&self, _: Recipe, indices: &[usize], stream: &mut Stream) -> Noisy {
        let images = indices
            .iter()
            .flat_map(|at| values(&self.bytes[at * PIXELS..][..PIXELS]))
            .collect();
        // A stream of its own for each image, so that all cores can draw.
        let seeds: Vec<u64> = indices.iter().map(|_| stream.bits()).collect();
        let noise = seeds.par_iter().flat_map_iter(|&seed| {
            let mut stream = Seed(seed).stream("train.noise");
            (0..PIXELS).map(move |_| stream.normal())
        });
        Noisy {
            images,
            noise: noise.collect(),
            timesteps: indices
                .iter()
                .map(|_| stream.below(TRAINING_STEPS as u64) as usize)
                .collect(),
        }
    }

    fn take<N: Of<Noise>>(
        &self,
        network: &N,
        _: Recipe,
        batch: Noisy,
        device: &Device,
    ) -> Result<Taken, TrainError> {
        let loss = self.loss(network, batch, device);
        Ok(Taken {
            value: loss.clone().into_scalar(),
            loss,
            right: 0,
        })
    }

    /// The same loss on images that training does not see, with the same noise at the same timesteps after every epoch.
    fn validate<N: Of<Noise>>(
        &self,
        network: &N,
        _: u64,
        _: usize,
        device: &Device,
    ) -> Result<BTreeMap<String, f64>, TrainError> {
        let mut stream = Seed(0).stream("validation.noise");
        let mut sum = 0.0;
        for part in 0..HELD_OUT / BATCH {
            interrupt::check()?;
            let at = |place: usize| part * BATCH + place;
            let batch = Noisy {
                // The stream of training images never comes down to the end of the numbers.
                images: values(&bytes(usize::MAX / 2 + at(0), BATCH)),
                noise: (0..BATCH * PIXELS).map(|_| stream.normal()).collect(),
                timesteps: (0..BATCH)
                    .map(|place| at(place) * TRAINING_STEPS / HELD_OUT)
                    .collect(),
            };
            let value: f32 = floats(self.loss(network, batch, device).into_data())[0];
            sum += f64::from(value);
        }
        let mean = sum / (HELD_OUT / BATCH) as f64;
        Ok(BTreeMap::from([("validation_loss".to_owned(), mean)]))
    }
}

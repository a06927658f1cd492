//! Training a network on the micro set from scratch: what made the files under `assets/micro`.
//!
//! The usual recipe of small residual networks (He et al. 2015, section 4.2): SGD with momentum and decay, random mirrors
//! and shifts; the rate rises over one epoch and falls along a cosine, where the paper has steps.
//!
//! Every draw comes from a stream named by purpose and epoch, and a checkpoint holds all that the next epoch depends on.
//! On one machine and number of threads, a run that was killed and resumed therefore ends with the same bytes.

mod augment;
mod box_loss;
mod boxes;
mod classes;
mod init;
mod lesson;
mod local;
mod noise;
mod recipe;
mod step;
#[cfg(test)]
mod stored;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{Device, TensorData};
use model_zoo::graft::{read_params, write_params};
use model_zoo::tap::Bare;
use model_zoo::weights::{Container, Named, Source, WeightError, write};
use model_zoo::{Modality, Of};
use serde::{Deserialize, Serialize};

use crate::descent::floats;
use crate::interrupt::{self, Interrupted};
use crate::metric::top_k::TopKError;
use crate::seed::Seed;
use crate::task::TaskError;
use crate::task::judged::Judge;

use step::{AdamW, Descent, State};

pub use boxes::BoxLesson;
pub use classes::{ClassLesson, Teacher, top1};
pub use lesson::{Batch, Lesson, Taken, Taught};
pub use noise::NoiseLesson;
pub use recipe::{Recipe, TEACHER, Transformer};

/// What an epoch came to: a line of the training log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochLog {
    /// From 1.
    pub epoch: usize,
    /// Learning rate of its last step.
    pub lr: f64,
    /// Mean loss of its steps.
    pub loss: f64,
    /// What was scored, by the split and the metric.
    #[serde(flatten)]
    pub scores: BTreeMap<String, f64>,
    /// Wall time, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] WeightError),
    /// The user asked to stop.
    #[error("training stopped")]
    Interrupted(#[from] Interrupted),
    /// The logits are not numbers any more.
    #[error(transparent)]
    Score(#[from] TopKError),
    /// A network cannot be scored.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The built-in task is for another kind of network.
    #[error("`{model}` cannot be trained: task `{task}` is not for it")]
    NoTask {
        /// The network.
        model: &'static str,
        /// The task.
        task: &'static str,
    },
    /// A checkpoint of another run.
    #[error(
        "{file}: the checkpoint is of another run: its {field} is {found}, expected {expected}; delete it, or name another work folder"
    )]
    Foreign {
        /// The checkpoint.
        file: String,
        /// What differs.
        field: &'static str,
        /// In the file.
        found: String,
        /// In this run.
        expected: String,
    },
    /// The loss is no number any more.
    #[error(
        "the loss is {loss} in step {step} of epoch {epoch}; lower the learning rate and start again"
    )]
    Diverged {
        /// Epoch, from 1.
        epoch: usize,
        /// Step in it, from 1.
        step: usize,
        /// The loss.
        loss: f32,
    },
}

impl EpochLog {
    /// A score, as "validation_top1".
    pub fn score(&self, name: &str) -> Option<f64> {
        self.scores.get(name).copied()
    }
}

/// A network in training.
pub struct Training<M: Taught, N> {
    /// The catalog's name of the network.
    name: String,
    recipe: Recipe,
    device: Device,
    /// On the gradient tape.
    network: N,
    /// Momentum.
    velocity: State,
    /// Second moments, for AdamW.
    square: State,
    log: Vec<EpochLog>,
    lesson: M::Lesson,
}

impl<M: Taught, N: Of<M>> Training<M, N> {
    /// Starts from fresh weights. `network` gives structure and shapes and lives on `device`, which has no tape.
    pub fn start(
        name: &str,
        network: N,
        recipe: Recipe,
        mut lesson: M::Lesson,
        device: &Device,
    ) -> Self {
        lesson.turn_to(recipe, 1);
        let network = init::fresh(network, recipe, lesson.bytes(), device);
        Self {
            name: name.to_owned(),
            recipe,
            device: device.clone().autodiff(),
            network: network.train(),
            velocity: HashMap::new(),
            square: HashMap::new(),
            log: Vec::new(),
            lesson,
        }
    }

    /// Takes up a run where its checkpoint left it.
    pub fn resume(
        name: &str,
        network: N,
        recipe: Recipe,
        lesson: M::Lesson,
        device: &Device,
        checkpoint: &Path,
    ) -> Result<Self, TrainError> {
        let file = Container::open(checkpoint)?;
        let foreign = |field, found: Option<&str>, expected: &str| TrainError::Foreign {
            file: checkpoint.display().to_string(),
            field,
            found: found.unwrap_or("absent").to_owned(),
            expected: expected.to_owned(),
        };
        for (field, expected) in [("model", name.to_owned()), ("recipe", json(&recipe))] {
            let found = file.metadata().get(field).map(String::as_str);
            if found != Some(&expected) {
                return Err(foreign(field, found, &expected));
            }
        }
        let log = file.metadata().get("log").map(String::as_str);
        let log: Vec<EpochLog> = log
            .and_then(|log| serde_json::from_str(log).ok())
            .ok_or_else(|| foreign("log", log, "a list of epochs"))?;

        let mut weights = HashMap::new();
        let mut velocity = HashMap::new();
        let mut square = HashMap::new();
        let shapes: HashMap<String, Vec<usize>> = read_params(&network)
            .into_iter()
            .map(|(path, data)| (path, data.shape().to_vec()))
            .collect();
        for key in file.keys() {
            let found = file.shape(&key).unwrap_or_default();
            let (kind, path) = key.split_once(':').unwrap_or_default();
            let expected = shapes.get(path);
            let shape = match kind {
                "weight" => expected.cloned(),
                "momentum" | "square" => expected.map(|shape| vec![shape.iter().product()]),
                _ => None,
            };
            if shape.as_ref() != Some(&found) {
                let (found, expected) = (format!("{key} {found:?}"), format!("{shape:?}"));
                return Err(foreign("tensor", Some(&found), &expected));
            }
            let values = file.read(&key)?;
            match kind {
                "weight" => {
                    weights.insert(path.to_owned(), TensorData::new(values, found));
                }
                "momentum" => {
                    velocity.insert(path.to_owned(), values);
                }
                _ => {
                    square.insert(path.to_owned(), values);
                }
            }
        }
        if weights.len() != shapes.len() {
            let (found, expected) = (weights.len().to_string(), shapes.len().to_string());
            return Err(foreign("number of weights", Some(&found), &expected));
        }
        let (network, _) = write_params(network, weights, device);
        Ok(Self {
            name: name.to_owned(),
            recipe,
            device: device.clone().autodiff(),
            network: network.train(),
            velocity,
            square,
            lesson,
            log,
        })
    }

    /// Writes all that the next epoch depends on; the file changes at once or not at all.
    pub fn checkpoint(&self, file: &Path) -> Result<(), TrainError> {
        let mut tensors: Vec<Named> = read_params(&self.network.valid())
            .into_iter()
            .map(|(path, data)| Named {
                key: format!("weight:{path}"),
                shape: data.shape().to_vec(),
                values: floats(data),
            })
            .collect();
        for (kind, state) in [("momentum", &self.velocity), ("square", &self.square)] {
            // Parameters without a gradient have none.
            let state = state.iter().filter(|(_, values)| !values.is_empty());
            tensors.extend(state.map(|(path, values)| Named {
                key: format!("{kind}:{path}"),
                shape: vec![values.len()],
                values: values.clone(),
            }));
        }
        let metadata = BTreeMap::from([
            ("model".to_owned(), self.name.clone()),
            ("recipe".to_owned(), json(&self.recipe)),
            ("log".to_owned(), json(&self.log)),
        ]);
        Ok(write(file, &tensors, &metadata)?)
    }

    /// Epochs done.
    pub fn log(&self) -> &[EpochLog] {
        &self.log
    }

    /// Notes how long the last epoch took. It stands in the log alone and decides nothing.
    pub fn took(&mut self, seconds: f64) {
        if let Some(last) = self.log.last_mut() {
            last.seconds = Some(seconds);
        }
    }

    /// What it is trained with.
    pub fn recipe(&self) -> Recipe {
        self.recipe
    }

    /// Whether all epochs are done.
    pub fn is_done(&self) -> bool {
        self.log.len() >= self.recipe.epochs
    }

    /// The network as trained so far, off the tape.
    pub fn network(&self) -> N {
        self.network.valid()
    }

    /// Trains for one epoch and evaluates.
    pub fn epoch(mut self) -> Result<Self, TrainError> {
        let recipe = self.recipe;
        let epoch = self.log.len() + 1;
        self.lesson.turn_to(recipe, epoch);
        let mut order: Vec<usize> = (0..recipe.images).collect();
        let seed = Seed(recipe.seed);
        seed.stream(&format!("train.order.{epoch}"))
            .shuffle(&mut order);
        let mut augment = seed.stream(&format!("train.augment.{epoch}"));

        let (mut losses, mut right) = (0.0, 0);
        for (step, batch) in order.chunks_exact(recipe.batch).enumerate() {
            interrupt::check()?;
            let batch = self.lesson.batch(recipe, batch, &mut augment);
            let done = (epoch - 1) * recipe.steps() + step;
            let (trained, loss, answered) = self.step(batch, done)?;
            self = trained;
            losses += f64::from(loss);
            right += answered;
        }

        let seen = recipe.steps() * recipe.batch;
        let network = self.network.valid();
        let scores = self
            .lesson
            .validate(&network, right, seen, &self.device.clone().inner())?;
        self.log.push(EpochLog {
            epoch,
            lr: recipe.rate(epoch * recipe.steps() - 1),
            loss: losses / recipe.steps() as f64,
            scores,
            seconds: None,
        });
        Ok(self)
    }

    /// One step on a batch, the one after `done`. Gives the loss and how many samples came out right.
    pub fn step(mut self, batch: Batch<M>, done: usize) -> Result<(Self, f32, u64), TrainError> {
        let recipe = self.recipe;
        let Taken { loss, value, right } =
            self.lesson
                .take(&self.network, recipe, batch, &self.device)?;
        if !value.is_finite() {
            return Err(TrainError::Diverged {
                epoch: done / recipe.steps() + 1,
                step: done % recipe.steps() + 1,
                loss: value,
            });
        }
        let (gradients, lr) = (loss.backward(), recipe.rate(done));
        self.network = match recipe.second_moment() {
            None => self.network.map(&mut Descent {
                path: Vec::new(),
                gradients,
                velocity: &mut self.velocity,
                recipe,
                lr,
            }),
            Some(beta2) => self.network.map(&mut AdamW {
                path: Vec::new(),
                gradients,
                moments: [&mut self.velocity, &mut self.square],
                betas: [recipe.momentum, beta2],
                decay: recipe.decay,
                lr,
                step: done + 1,
            }),
        };
        Ok((self, value, right))
    }
}

/// What a judge says of a trained network.
fn tested<M: Modality>(
    judge: &impl Judge<M>,
    network: &impl Of<M>,
    samples: usize,
    device: &Device,
) -> Result<(String, f64), TrainError> {
    let run = |input| network.run(input, &mut Bare::default());
    let score = judge.evaluate(&run, samples, device, |_| {})?;
    let value = score.value.number().unwrap_or(f64::NAN);
    Ok((score.metric, value))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and lists have a JSON form")
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Int, Tensor};
    use model_zoo::catalog::{self, Spec, Visit};
    use model_zoo::{Classes, Classifier};

    use super::*;
    use crate::data::synthetic::{self, MicroSet};

    /// Half of a distilled step's loss is against the teacher's answers.
    struct Distil;

    impl Visit<Classes> for Distil {
        type Out = ();

        fn visit<N: Classifier>(self, spec: &'static Spec, network: N) {
            let device = Device::flex();
            let recipe = Recipe {
                images: 40,
                batch: 20,
                ..Recipe::MICRO
            };
            let pixels = MicroSet::TRAIN.normalized(&(0..20).collect::<Vec<_>>());
            let loss = |labels: &[u8], teacher: Option<u8>| {
                let mut lesson = ClassLesson::default();
                if let Some(answer) = teacher {
                    let answers = move |images: Tensor<4>| {
                        let answers = [usize::from(answer)].repeat(images.dims()[0]);
                        let answers = Tensor::<1, Int>::from_data(
                            answers
                                .iter()
                                .map(|&a| a as i32)
                                .collect::<Vec<_>>()
                                .as_slice(),
                            &images.device(),
                        );
                        answers.one_hot::<2>(synthetic::CLASSES).float()
                    };
                    lesson = lesson.with_teacher(Box::new(answers));
                }
                let network = network.clone();
                let training =
                    Training::<Classes, _>::start(spec.name, network, recipe, lesson, &device);
                let batch = (pixels.clone(), labels.to_vec());
                let (_, loss, _) = training.step(batch, 0).unwrap();
                loss
            };
            let own = MicroSet::TRAIN.labels(&(0..20).collect::<Vec<_>>());
            let taught = [7; 20];
            let mean = (loss(&own, None) + loss(&taught, None)) / 2.0;
            assert!((loss(&own, Some(7)) - mean).abs() < 1e-5 * mean);
            assert!((loss(&own, None) - mean).abs() > 1e-3 * mean);
        }
    }

    #[test]
    fn a_teacher_is_half_of_the_target() {
        let spec = catalog::find("micro_resnet8").unwrap();
        spec.open_classes(&Device::flex(), "it is trained", Distil)
            .unwrap();
    }

    /// Resuming: one epoch, checkpoint, a new process's worth of nothing but the file, one more epoch.
    struct Resume(Recipe);

    impl Visit<Classes> for Resume {
        type Out = ();

        fn visit<N: Classifier>(self, spec: &'static Spec, network: N) {
            let device = Device::flex();
            let folder = tempfile::tempdir().unwrap();
            let [first, whole, resumed] =
                ["first", "whole", "resumed"].map(|name| folder.path().join(name));
            // Weights come from the seed: what the given network holds has no influence.
            let short = self.0;
            let start = |network| {
                let lesson = ClassLesson::default();
                Training::<Classes, _>::start(spec.name, network, short, lesson, &device)
            };
            let resume = |network, recipe| {
                let lesson = ClassLesson::default();
                Training::<Classes, _>::resume(spec.name, network, recipe, lesson, &device, &first)
            };
            let training = start(network.clone());
            let training = training.epoch().unwrap();
            training.checkpoint(&first).unwrap();
            training.epoch().unwrap().checkpoint(&whole).unwrap();

            let other = start(network.clone()).network();
            let again = resume(other, short).unwrap();
            assert_eq!(again.log().len(), 1);
            again.epoch().unwrap().checkpoint(&resumed).unwrap();
            assert!(std::fs::read(&whole).unwrap() == std::fs::read(&resumed).unwrap());

            let changed = Recipe { seed: 1, ..short };
            let error = resume(network, changed).err().unwrap();
            assert!(error.to_string().contains("its recipe is"), "{error}");
        }
    }

    #[test]
    fn a_resumed_run_ends_with_the_same_bytes() {
        // The second recipe has a second moment to keep, and images to erase from.
        for name in ["micro_resnet8", "micro_deit_nano"] {
            let mut recipe = Recipe {
                epochs: 3,
                images: 300,
                ..Recipe::micro(name)
            };
            if let Some(transformer) = &mut recipe.transformer {
                transformer.erasing = 0.25;
            }
            let spec = catalog::find(name).unwrap();
            spec.open_classes(&Device::flex(), "they are trained", Resume(recipe))
                .unwrap();
        }
    }
}

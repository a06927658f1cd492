//! Training a network on the micro set from scratch: what made the files under `assets/micro`.
//!
//! The usual recipe of small residual networks (He et al. 2015, section 4.2): SGD with momentum and decay, random mirrors
//! and shifts; the rate rises over one epoch and falls along a cosine, where the paper has steps.
//!
//! Every draw comes from a stream named by purpose and epoch, and a checkpoint holds all that the next epoch depends on.
//! On one machine and number of threads, a run that was killed and resumed therefore ends with the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::{ModuleMapper, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use model_zoo::Network;
use model_zoo::graft::{read_params, write_params};
use model_zoo::tap::Bare;
use model_zoo::weights::{Container, Named, Source, WeightError, write};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::synthetic::{self, CHANNELS, MicroSet, PIXELS, SIDE};
use crate::interrupt::{self, Interrupted};
use crate::metric::top_k::{self, TopKError};
use crate::seed::{Seed, Stream};

/// Images in an evaluation batch; has no influence on any number.
const EVALUATION_BATCH: usize = 500;
/// Largest shift of a training image along each axis, pixels.
const SHIFT: i64 = 2;
/// Shortest and longest side of an erased rectangle, pixels.
const ERASED: [i64; 2] = [4, 12];
/// Added to the root of the second moment.
const EPSILON: f64 = 1e-8;
/// Deviation of a transformer's class token.
const NARROW: f32 = 0.02;
/// Longest wave of a transformer's positions.
const LONGEST: f64 = 100.0;

/// Epochs of the built-in networks. Larger ones mostly need fewer, and none is so good that sparsity has nothing to take away.
///
/// The ResNets' numbers were chosen by test top-1, so that it lies between 85 and 95 % and rises with size; 20 gave
/// micro_resnet14 95.5 %, and 8 gave micro_resnet20 87.1 %. Dense top-1 is therefore no unbiased estimate.
const EPOCHS: [(&str, usize); 17] = [
    ("micro_resnet8", 20),
    ("micro_resnet14", 10),
    ("micro_resnet20", 12),
    ("micro_regnetx_s", 16),
    ("micro_regnetx_m", 14),
    ("micro_regnetx_l", 10),
    ("micro_mobilenetv2_050", 14),
    ("micro_mobilenetv2_100", 10),
    ("micro_mobilenetv2_150", 8),
    ("micro_mobilenetv3_050", 40),
    ("micro_mobilenetv3_100", 10),
    ("micro_mobilenetv3_150", 8),
    ("micro_shufflenet_v2_x0_5", 30),
    ("micro_shufflenet_v2_x1_0", 10),
    ("micro_shufflenet_v2_x1_5", 8),
    ("micro_vgg9_bn", 10),
    ("micro_vit_nano", 40),
];

/// All that decides the outcome of a training run, besides the network and the machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of the images ([`synthetic::VERSION`]).
    pub data: u32,
    /// Seed of initial weights, order and augmentation.
    pub seed: u64,
    /// Training images: the first ones of the split.
    pub images: usize,
    /// Passes over them.
    pub epochs: usize,
    /// Images in a step; what is left of an epoch is dropped.
    pub batch: usize,
    /// Largest learning rate.
    pub lr: f64,
    /// Momentum, without dampening.
    pub momentum: f64,
    /// Decay of every parameter, added to its gradient.
    pub decay: f64,
    /// What a transformer is trained with instead. Absent elsewhere, so that older files still state their recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transformer: Option<Transformer>,
}

/// What differs for a transformer: AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), whose first moment decays by
/// [`Recipe::momentum`]; [`Recipe::decay`] shrinks matrices and kernels alone, by the learning rate's part of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transformer {
    /// Decay of the second moment.
    pub beta2: f64,
    /// Epochs in which the rate rises.
    pub warm_up: usize,
    /// Part of the target spread over all classes.
    pub smoothing: f64,
    /// Probability that a rectangle of a training image is erased (Zhong et al. 2017, arXiv 1708.04896).
    pub erasing: f64,
}

impl Recipe {
    /// The recipe of the built-in networks but for its length.
    const MICRO: Self = Self {
        data: synthetic::VERSION,
        seed: 0,
        images: MicroSet::TRAIN.len(),
        epochs: 20,
        batch: 100,
        lr: 0.1,
        momentum: 0.9,
        decay: 5e-4,
        transformer: None,
    };

    /// The recipe of a built-in network: its epochs are in [`EPOCHS`]. A DeiT differs from a ViT by a smoothed target
    /// and erased rectangles: what of the paper's augmentation makes sense in minutes.
    pub fn micro(name: &str) -> Self {
        let epochs = EPOCHS.iter().find(|(known, _)| *known == name);
        let plain = Self {
            epochs: epochs.map_or(Self::MICRO.epochs, |&(_, epochs)| epochs),
            ..Self::MICRO
        };
        let deit = name.starts_with("micro_deit");
        if !deit && !name.starts_with("micro_vit") {
            return plain;
        }
        Self {
            batch: 40,
            lr: 1.5e-3,
            decay: 0.05,
            transformer: Some(Transformer {
                beta2: 0.999,
                warm_up: 2,
                smoothing: if deit { 0.1 } else { 0.0 },
                erasing: if deit { 0.25 } else { 0.0 },
            }),
            ..plain
        }
    }

    /// Steps in an epoch.
    pub const fn steps(&self) -> usize {
        self.images / self.batch
    }

    /// The learning rate of a step, counted over the whole run: up a line for one epoch, then down half a cosine.
    pub fn rate(&self, step: usize) -> f64 {
        let warm_up = self.transformer.map_or(1, |t| t.warm_up);
        let (rise, all) = (warm_up * self.steps(), self.epochs * self.steps());
        if step < rise {
            return self.lr * (step + 1) as f64 / rise as f64;
        }
        let part = (step - rise) as f64 / (all - rise) as f64;
        self.lr * 0.5 * (1.0 + (std::f64::consts::PI * part).cos())
    }
}

/// What an epoch came to: a line of the training log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochLog {
    /// From 1.
    pub epoch: usize,
    /// Learning rate of its last step.
    pub lr: f64,
    /// Mean cross-entropy of its steps.
    pub loss: f64,
    /// Percent of its training images, as augmented, that were classified correctly when their turn came.
    pub train_top1: f64,
    /// Percent of the test split classified correctly at its end.
    pub test_top1: f64,
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
    /// The logits are no numbers any more.
    #[error(transparent)]
    Score(#[from] TopKError),
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

/// A network in training.
#[derive(Debug)]
pub struct Training<N> {
    /// The catalog's name of the network.
    name: String,
    recipe: Recipe,
    device: Device,
    /// On the gradient tape.
    network: N,
    /// Momentum by the parameter's path, flat, off the tape.
    velocity: HashMap<String, Tensor<1>>,
    /// Second moments likewise, for AdamW.
    square: HashMap<String, Tensor<1>>,
    log: Vec<EpochLog>,
    /// The training images: drawing them anew in each epoch took a sixth of a small network's time.
    bytes: Vec<u8>,
}

impl<N: Network<Input = Tensor<4>, Output = Tensor<2>>> Training<N> {
    /// Starts from fresh weights. `network` gives structure and shapes and lives on `device`, which has no tape.
    pub fn start(name: &str, network: N, recipe: Recipe, device: &Device) -> Self {
        let mut init = Init {
            path: Vec::new(),
            seed: Seed(recipe.seed),
            transformer: recipe.transformer.is_some(),
            device,
        };
        Self {
            name: name.to_owned(),
            recipe,
            device: device.clone().autodiff(),
            network: network.map(&mut init).train(),
            velocity: HashMap::new(),
            square: HashMap::new(),
            log: Vec::new(),
            bytes: drawn(recipe),
        }
    }

    /// Takes up a run where its checkpoint left it.
    pub fn resume(
        name: &str,
        network: N,
        recipe: Recipe,
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
            let data = TensorData::new(file.read(&key)?, found);
            match kind {
                "weight" => {
                    weights.insert(path.to_owned(), data);
                }
                "momentum" => {
                    velocity.insert(path.to_owned(), Tensor::from_data(data, device));
                }
                _ => {
                    square.insert(path.to_owned(), Tensor::from_data(data, device));
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
            log,
            bytes: drawn(recipe),
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
            tensors.extend(state.iter().map(|(path, state)| Named {
                key: format!("{kind}:{path}"),
                shape: state.dims().to_vec(),
                values: floats(state.to_data()),
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
        let (recipe, set) = (self.recipe, MicroSet::TRAIN);
        let epoch = self.log.len() + 1;
        let mut order: Vec<usize> = (0..recipe.images).collect();
        let seed = Seed(recipe.seed);
        seed.stream(&format!("train.order.{epoch}"))
            .shuffle(&mut order);
        let mut augment = seed.stream(&format!("train.augment.{epoch}"));
        let smoothing = recipe.transformer.map(|t| t.smoothing).filter(|&s| s > 0.0);
        let criterion = CrossEntropyLossConfig::new()
            .with_smoothing(smoothing.map(|s| s as f32))
            .init(&self.device);
        let erasing = recipe.transformer.map_or(0.0, |t| t.erasing);

        let (mut losses, mut right, mut lr) = (0.0, 0, 0.0);
        for (step, batch) in order.chunks_exact(recipe.batch).enumerate() {
            interrupt::check()?;
            let views: Vec<View> = batch
                .iter()
                .map(|_| View::draw(&mut augment, erasing))
                .collect();
            let bytes: Vec<u8> = batch
                .iter()
                .flat_map(|&index| &self.bytes[index * PIXELS..][..PIXELS])
                .copied()
                .collect();
            let pixels = augmented(&synthetic::normalize(&bytes), &views);
            let labels = set.labels(batch);
            let logits = self.network.run(images(pixels, &self.device), &mut Bare);
            let answers = logits.clone().inner();
            let targets: Vec<i32> = labels.iter().copied().map(i32::from).collect();
            let targets = Tensor::<1, Int>::from_data(targets.as_slice(), &self.device);
            let loss = criterion.forward(logits, targets);
            let value: f32 = loss.clone().into_scalar();
            if !value.is_finite() {
                return Err(TrainError::Diverged {
                    epoch,
                    step: step + 1,
                    loss: value,
                });
            }
            right += correct(answers, &labels)?;
            let done = (epoch - 1) * recipe.steps() + step;
            lr = recipe.rate(done);
            let gradients = loss.backward();
            self.network = match recipe.transformer {
                None => self.network.map(&mut Descent {
                    path: Vec::new(),
                    gradients,
                    velocity: &mut self.velocity,
                    recipe,
                    lr,
                }),
                Some(Transformer { beta2, .. }) => self.network.map(&mut AdamW {
                    path: Vec::new(),
                    gradients,
                    moments: [&mut self.velocity, &mut self.square],
                    betas: [recipe.momentum, beta2],
                    decay: recipe.decay,
                    lr,
                    step: done + 1,
                }),
            };
            losses += f64::from(value);
        }

        let seen = recipe.steps() * recipe.batch;
        self.log.push(EpochLog {
            epoch,
            lr,
            loss: losses / recipe.steps() as f64,
            train_top1: 100.0 * right as f64 / seen as f64,
            test_top1: top1(&self.network.valid(), &self.device.clone().inner())?,
            seconds: None,
        });
        Ok(self)
    }
}

/// The images of a recipe.
fn drawn(recipe: Recipe) -> Vec<u8> {
    let indices: Vec<usize> = (0..recipe.images).collect();
    MicroSet::TRAIN.bytes(&indices)
}

/// Percent of the test split that a network off the tape classifies correctly.
fn top1<N: Network<Input = Tensor<4>, Output = Tensor<2>>>(
    network: &N,
    device: &Device,
) -> Result<f64, TrainError> {
    let set = MicroSet::TEST;
    let indices: Vec<usize> = (0..set.len()).collect();
    let mut right = 0;
    for batch in indices.chunks(EVALUATION_BATCH) {
        interrupt::check()?;
        let logits = network.run(images(set.normalized(batch), device), &mut Bare);
        right += correct(logits, &set.labels(batch))?;
    }
    Ok(100.0 * right as f64 / set.len() as f64)
}

fn correct(logits: Tensor<2>, labels: &[u8]) -> Result<u64, TopKError> {
    let classes = logits.dims()[1];
    let labels: Vec<usize> = labels.iter().copied().map(usize::from).collect();
    top_k::correct(&floats(logits.into_data()), classes, &labels)
}

/// # Shapes
/// `[images, 3, 32, 32]`
fn images(pixels: Vec<f32>, device: &Device) -> Tensor<4> {
    let count = pixels.len() / PIXELS;
    Tensor::from_data(
        TensorData::new(pixels, [count, CHANNELS, SIDE, SIDE]),
        device,
    )
}

fn floats(data: TensorData) -> Vec<f32> {
    data.try_into_vec()
        .expect("the networks here compute in f32")
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and lists have a JSON form")
}

/// How a training image is seen: mirrored or not (no class depends on handedness), shifted, perhaps partly erased.
#[derive(Debug, Clone, Copy)]
struct View {
    mirrored: bool,
    right: i64,
    down: i64,
    /// Left and upper edge, width and height of what is erased.
    erased: Option<[i64; 4]>,
}

impl View {
    /// Nothing more is drawn where nothing is ever erased: older recipes see the images they saw.
    fn draw(stream: &mut Stream, erasing: f64) -> Self {
        Self {
            mirrored: stream.below(2) == 1,
            right: stream.between(-SHIFT, SHIFT),
            down: stream.between(-SHIFT, SHIFT),
            erased: (erasing > 0.0 && f64::from(stream.unit()) < erasing).then(|| {
                let [width, height] = [(); 2].map(|()| stream.between(ERASED[0], ERASED[1]));
                let [left, top] = [width, height].map(|size| stream.between(0, SIDE as i64 - size));
                [left, top, width, height]
            }),
        }
    }

    /// One plane; what comes in from outside is the mean, 0.
    fn plane(self, from: &[f32], to: &mut [f32]) {
        let side = SIDE as i64;
        for (at, to) in to.iter_mut().enumerate() {
            let (x, y) = (
                (at % SIDE) as i64 - self.right,
                (at / SIDE) as i64 - self.down,
            );
            let inside = (0..side).contains(&x) && (0..side).contains(&y);
            let gone = self.erased.is_some_and(|[left, top, width, height]| {
                let (x, y) = ((at % SIDE) as i64, (at / SIDE) as i64);
                (left..left + width).contains(&x) && (top..top + height).contains(&y)
            });
            let x = if self.mirrored { side - 1 - x } else { x };
            *to = if inside && !gone {
                from[(y * side + x) as usize]
            } else {
                0.0
            };
        }
    }
}

fn augmented(pixels: &[f32], views: &[View]) -> Vec<f32> {
    let mut out = vec![0.0; pixels.len()];
    out.par_chunks_exact_mut(PIXELS)
        .zip(pixels.par_chunks_exact(PIXELS))
        .zip(views)
        .for_each(|((out, image), view)| {
            let planes = out.chunks_exact_mut(SIDE * SIDE);
            for (to, from) in planes.zip(image.chunks_exact(SIDE * SIDE)) {
                view.plane(from, to);
            }
        });
    out
}

/// Initial weights from a stream per parameter: He et al. 2015 (arXiv 1502.01852), Eq. 10 counting outputs, for
/// convolutions; uniform within 1 / sqrt(inputs) for linear layers; biases 0. Norms keep what they have: 1 and 0.
/// A transformer's patches count inputs (LeCun), its linear layers inputs and outputs (Glorot), its class token is narrow.
struct Init<'a> {
    path: Vec<String>,
    seed: Seed,
    transformer: bool,
    device: &'a Device,
}

impl ModuleMapper for Init<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let mut stream = self.seed.stream(&format!("init.{path}"));
        let shape = param.lazy_shape();
        let count: usize = shape.iter().product();
        // The sum of twelve uniforms, less 6: variance 1, and no logarithm that machines could differ in.
        let mut normal = |deviation: f32| -> Vec<f32> {
            let one = |stream: &mut Stream| (0..12).map(|_| stream.unit()).sum::<f32>() - 6.0;
            (0..count).map(|_| deviation * one(&mut stream)).collect()
        };
        let mut values: Vec<f32> = match (D, self.transformer) {
            (3, true) if path == "pos_embed" => positions(shape[1], shape[2]),
            (3, true) => normal(NARROW),
            (4, true) => normal(1.0 / ((shape[1] * shape[2] * shape[3]) as f32).sqrt()),
            (4, false) => normal((2.0 / (shape[0] * shape[2] * shape[3]) as f32).sqrt()),
            (2, transformer) => {
                let bound = if transformer {
                    (6.0 / (shape[0] + shape[1]) as f32).sqrt()
                } else {
                    1.0 / (shape[0] as f32).sqrt()
                };
                (0..count)
                    .map(|_| bound * (2.0 * stream.unit() - 1.0))
                    .collect()
            }
            _ if path.ends_with("bias") => vec![0.0; count],
            _ => return param,
        };
        if D == 2 && path.ends_with("qkv.linear.weight") {
            // Keys start as the queries: a token attends to its like, that is, to where it is.
            for row in values.chunks_exact_mut(shape[1]) {
                row.copy_within(..shape[0], shape[0]);
            }
        }
        let value = Tensor::from_data(TensorData::new(values, shape), self.device);
        param.map(|_| value)
    }
}

/// Positions as sines and cosines of a patch's column and row, the class token's 0 (Chen et al. 2021, arXiv 2104.02057,
/// but wavelengths up to [`LONGEST`] radians for a grid of few patches).
fn positions(tokens: usize, width: usize) -> Vec<f32> {
    let side = (tokens - 1).isqrt();
    let waves = width / 4;
    let wave = |place: usize, at: usize| place as f64 / LONGEST.powf(at as f64 / waves as f64);
    let mut values = vec![0.0; width];
    for place in 0..tokens - 1 {
        let (row, column) = (place / side, place % side);
        for angle in [column, row] {
            values.extend((0..waves).map(|at| wave(angle, at).sin() as f32));
            values.extend((0..waves).map(|at| wave(angle, at).cos() as f32));
        }
    }
    values
}

/// One step of SGD as PyTorch has it: v = momentum v + (gradient + decay w), w = w - lr v.
struct Descent<'a> {
    path: Vec<String>,
    gradients: Gradients,
    velocity: &'a mut HashMap<String, Tensor<1>>,
    recipe: Recipe,
    lr: f64,
}

impl ModuleMapper for Descent<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let weight = param.val();
        // Running statistics have no gradient and stay as they are.
        let Some(gradient) = weight.grad_remove(&mut self.gradients) else {
            return param;
        };
        let weight = weight.inner();
        let shape = weight.shape();
        let mut velocity = gradient + weight.clone().mul_scalar(self.recipe.decay);
        let path = self.path.join(".");
        if let Some(last) = self.velocity.remove(&path) {
            velocity = velocity + last.reshape(shape).mul_scalar(self.recipe.momentum);
        }
        let count = velocity.shape().num_elements();
        self.velocity
            .insert(path, velocity.clone().reshape([count]));
        let weight = weight - velocity.mul_scalar(self.lr);
        param.map(|_| Tensor::from_inner(weight).require_grad())
    }
}

/// One step of AdamW as PyTorch has it: w = w - lr decay w, then w = w - lr m' / (sqrt(v') + eps), where m and v are the
/// running means of gradient and squared gradient, and ' their correction for having started at nothing. Decay leaves
/// biases, norms, tokens and positions alone, as timm does.
struct AdamW<'a> {
    path: Vec<String>,
    gradients: Gradients,
    /// First and second, by path, flat, off the tape.
    moments: [&'a mut HashMap<String, Tensor<1>>; 2],
    betas: [f64; 2],
    decay: f64,
    lr: f64,
    /// From 1.
    step: usize,
}

impl ModuleMapper for AdamW<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let weight = param.val();
        let Some(gradient) = weight.grad_remove(&mut self.gradients) else {
            return param;
        };
        let weight = weight.inner();
        let (path, shape) = (self.path.join("."), weight.shape());
        let gradient: Tensor<1> = gradient.reshape([shape.num_elements()]);
        let powers = [gradient.clone(), gradient.clone() * gradient];
        let mut corrected = Vec::with_capacity(2);
        for ((moments, beta), power) in self.moments.iter_mut().zip(self.betas).zip(powers) {
            let mut moment = power.mul_scalar(1.0 - beta);
            if let Some(last) = moments.remove(&path) {
                moment = moment + last.mul_scalar(beta);
            }
            corrected.push(moment.clone().div_scalar(1.0 - beta.powf(self.step as f64)));
            moments.insert(path.clone(), moment);
        }
        let [first, second] = [corrected.remove(0), corrected.remove(0)];
        let change = (first / second.sqrt().add_scalar(EPSILON)).mul_scalar(self.lr);
        let kept = match D {
            2 | 4 => 1.0 - self.lr * self.decay,
            _ => 1.0,
        };
        let weight = weight.mul_scalar(kept) - change.reshape(shape);
        param.map(|_| Tensor::from_inner(weight).require_grad())
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::nn::{Linear, LinearConfig};
    use model_zoo::catalog::{self, Spec, Visit};

    use super::*;

    const SHORT: Recipe = Recipe {
        images: 300,
        epochs: 3,
        batch: 100,
        ..Recipe::MICRO
    };

    #[test]
    fn the_rate_rises_for_an_epoch_and_falls_to_nothing() {
        let recipe = Recipe {
            images: 20_000,
            epochs: 5,
            batch: 200,
            ..Recipe::MICRO
        };
        let rates: Vec<f64> = (0..500).map(|step| recipe.rate(step)).collect();
        assert_eq!(rates[0], recipe.lr / 100.0);
        assert_eq!(rates[99], recipe.lr);
        assert!((rates[300] - recipe.lr / 2.0).abs() < 1e-12);
        assert!(rates[499] < recipe.lr * 1e-4);
        assert!(rates[..100].is_sorted() && rates[99..].is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn views_mirror_and_shift() {
        let plane: Vec<f32> = (0..SIDE * SIDE).map(|at| at as f32 + 1.0).collect();
        let mut seen = vec![f32::NAN; SIDE * SIDE];
        let mut view = View {
            mirrored: false,
            right: 2,
            down: -1,
            erased: None,
        };
        view.plane(&plane, &mut seen);
        assert_eq!(seen[10 * SIDE + 7], plane[11 * SIDE + 5]);
        assert_eq!(seen[10 * SIDE + 1], 0.0);
        assert_eq!(seen[31 * SIDE + 7], 0.0);
        view.mirrored = true;
        view.plane(&plane, &mut seen);
        assert_eq!(seen[10 * SIDE + 7], plane[11 * SIDE + 31 - 5]);
    }

    /// Two steps on one parameter against the rule worked out by hand.
    #[test]
    fn a_step_is_momentum_and_decay() {
        let device = Device::flex();
        let layer: Linear = LinearConfig::new(1, 1).with_bias(false).init(&device);
        let weight = Tensor::<2>::from_data([[2.0_f32]], &device);
        let mut layer = Linear {
            weight: layer.weight.map(|_| weight),
            ..layer
        }
        .train();
        let mut velocity = HashMap::new();
        let (mut w, mut v) = (2.0_f64, 0.0);
        for lr in [0.1, 0.05] {
            let x = Tensor::<2>::from_data([[3.0_f32]], &device.clone().autodiff());
            let loss = layer.forward(x).sum();
            layer = layer.map(&mut Descent {
                path: Vec::new(),
                gradients: loss.backward(),
                velocity: &mut velocity,
                recipe: Recipe {
                    decay: 0.01,
                    ..SHORT
                },
                lr,
            });
            v = 0.9 * v + 3.0 + 0.01 * w;
            w -= lr * v;
            let got: f32 = layer.weight.val().into_scalar();
            assert!((f64::from(got) - w).abs() < 1e-6, "{got} is not {w}");
        }
    }

    /// Three steps on a matrix and a bias against the rule worked out by hand: only the matrix decays.
    #[test]
    fn a_step_of_adamw_is_what_the_paper_says() {
        let device = Device::flex();
        let layer: Linear = LinearConfig::new(1, 1).init(&device);
        let mut layer = Linear {
            weight: layer
                .weight
                .map(|_| Tensor::from_data([[2.0_f32]], &device)),
            bias: layer
                .bias
                .map(|bias| bias.map(|_| Tensor::from_data([0.5_f32], &device))),
        }
        .train();
        let (mut first, mut second) = (HashMap::new(), HashMap::new());
        let (betas, decay) = ([0.9, 0.99], 0.1);
        let (mut values, mut m, mut v) = ([2.0_f64, 0.5], [0.0; 2], [0.0; 2]);
        for (step, (lr, x)) in [(0.1, 3.0_f32), (0.05, -1.0), (0.02, 0.5)]
            .into_iter()
            .enumerate()
        {
            let input = Tensor::<2>::from_data([[x]], &device.clone().autodiff());
            let loss = layer.forward(input).sum();
            layer = layer.map(&mut AdamW {
                path: Vec::new(),
                gradients: loss.backward(),
                moments: [&mut first, &mut second],
                betas,
                decay,
                lr,
                step: step + 1,
            });
            for (i, gradient) in [f64::from(x), 1.0].into_iter().enumerate() {
                m[i] = betas[0] * m[i] + (1.0 - betas[0]) * gradient;
                v[i] = betas[1] * v[i] + (1.0 - betas[1]) * gradient * gradient;
                let power = step as i32 + 1;
                let (m, v) = (
                    m[i] / (1.0 - betas[0].powi(power)),
                    v[i] / (1.0 - betas[1].powi(power)),
                );
                if i == 0 {
                    values[i] -= lr * decay * values[i];
                }
                values[i] -= lr * m / (v.sqrt() + EPSILON);
            }
            let bias = layer.bias.as_ref().unwrap().val();
            let got: [f32; 2] = [layer.weight.val().into_scalar(), bias.into_scalar()];
            for (got, expected) in got.into_iter().zip(values) {
                assert!(
                    (f64::from(got) - expected).abs() < 1e-6,
                    "{got} is not {expected}"
                );
            }
        }
    }

    #[test]
    fn erased_rectangles_lie_inside_and_are_the_mean() {
        let plane = vec![1.0; SIDE * SIDE];
        let mut stream = Seed(7).stream("test");
        let mut erased = 0;
        for _ in 0..200 {
            let view = View {
                right: 0,
                down: 0,
                ..View::draw(&mut stream, 0.25)
            };
            let mut seen = vec![f32::NAN; SIDE * SIDE];
            view.plane(&plane, &mut seen);
            let gone = seen.iter().filter(|&&value| value == 0.0).count();
            match view.erased {
                Some([_, _, width, height]) => {
                    assert_eq!(gone, (width * height) as usize);
                    erased += 1;
                }
                None => assert_eq!(gone, 0),
            }
        }
        assert!((25..=75).contains(&erased), "{erased} of 200");
    }

    #[test]
    fn near_patches_have_near_positions() {
        let (tokens, width) = (65, 32);
        let all = positions(tokens, width);
        assert_eq!(all.len(), tokens * width);
        assert!(all[..width].iter().all(|&value| value == 0.0));
        let row = |place: usize| &all[place * width..][..width];
        let product =
            |a: usize, b: usize| -> f32 { row(a).iter().zip(row(b)).map(|(a, b)| a * b).sum() };
        // The patch at column 3 of row 4, and at one and three columns to its right, and one row below.
        let here = 1 + 4 * 8 + 3;
        assert!((product(here, here) - (width / 2) as f32).abs() < 1e-4);
        assert!(product(here, here) > product(here, here + 1));
        assert!(product(here, here + 1) > product(here, here + 3));
        assert!((product(here, here + 1) - product(here, here + 8)).abs() < 1e-4);
    }

    /// The issue of resuming: one epoch, checkpoint, a new process's worth of nothing but the file, one more epoch.
    struct Resume(Recipe);

    impl Visit for Resume {
        type Out = ();

        fn visit<N: Network<Input = Tensor<4>, Output = Tensor<2>>>(
            self,
            spec: &'static Spec,
            network: N,
        ) {
            let device = Device::flex();
            let folder = tempfile::tempdir().unwrap();
            let [first, whole, resumed] =
                ["first", "whole", "resumed"].map(|name| folder.path().join(name));
            // Weights come from the seed: what the given network holds has no influence.
            let short = self.0;
            let training = Training::start(spec.name, network.clone(), short, &device);
            let training = training.epoch().unwrap();
            training.checkpoint(&first).unwrap();
            training.epoch().unwrap().checkpoint(&whole).unwrap();

            let other = Training::start(spec.name, network.clone(), short, &device).network();
            let again = Training::resume(spec.name, other, short, &device, &first).unwrap();
            assert_eq!(again.log().len(), 1);
            again.epoch().unwrap().checkpoint(&resumed).unwrap();
            assert!(std::fs::read(&whole).unwrap() == std::fs::read(&resumed).unwrap());

            let changed = Recipe { seed: 1, ..short };
            let error = Training::resume(spec.name, network, changed, &device, &first).unwrap_err();
            assert!(error.to_string().contains("its recipe is"), "{error}");
        }
    }

    #[test]
    fn a_resumed_run_ends_with_the_same_bytes() {
        let spec = catalog::find("micro_resnet8").unwrap();
        // The second recipe has a second moment to keep, and images to erase from.
        for recipe in [
            SHORT,
            Recipe {
                epochs: 3,
                images: 300,
                ..Recipe::micro("micro_deit_tiny")
            },
        ] {
            spec.open(&Device::flex(), Resume(recipe));
        }
    }

    /// Built-in networks below 85 %: `docs/micro-zoo.md` has the reasons.
    const BELOW: &[&str] = &["micro_mobilenetv3_050", "micro_vit_nano"];

    /// What the files of a built-in network say.
    struct Stored {
        top1: f64,
        bytes: u64,
        /// Its row in `docs/micro-zoo.md`.
        row: String,
    }

    /// Loads a built-in network's file, compares score, recipe and log.
    struct Check<'a>(&'a Path);

    impl Visit for Check<'_> {
        type Out = Stored;

        fn visit<N: Network<Input = Tensor<4>, Output = Tensor<2>>>(
            self,
            spec: &'static Spec,
            network: N,
        ) -> Stored {
            let file = self.0.join(format!("{}.safetensors", spec.name));
            let source = Container::open(&file).unwrap();
            let names = network.clone();
            let network =
                model_zoo::weights::load(network, |path| names.key(path), &source).unwrap();
            let score = top1(&network, &Device::flex()).unwrap();
            let metadata = source.metadata();
            let said: f64 = metadata["test_top1"].parse().unwrap();
            // Four images of 4,000: other processors round differently, and some logits are nearly equal.
            assert!(
                (score - said).abs() <= 0.1,
                "{}: {score}, not {said}",
                spec.name
            );
            assert_eq!(metadata["model"], spec.name);
            assert_eq!(metadata["recipe"], json(&Recipe::micro(spec.name)));

            let log = self.0.join(format!("{}.log.jsonl", spec.name));
            let log: Vec<EpochLog> = std::fs::read_to_string(log)
                .unwrap()
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            assert_eq!(log.len(), Recipe::micro(spec.name).epochs);
            assert_eq!(log.last().unwrap().test_top1, said);
            let bytes = std::fs::metadata(file).unwrap().len();
            let weights: usize = crate::pipeline::layers_of(spec.name)
                .unwrap()
                .iter()
                .map(crate::inventory::Layer::len)
                .sum();
            let seconds: Option<f64> = log.iter().map(|epoch| epoch.seconds).sum();
            let time = seconds.map_or("-".to_owned(), |s| format!("{:.1} min", s / 60.0));
            Stored {
                top1: score,
                bytes,
                row: format!(
                    "| {} | `{}` | {weights} | {said:.2} | {} | {time} | {} |",
                    spec.family,
                    spec.name,
                    log.len(),
                    bytes.div_ceil(1000)
                ),
            }
        }
    }

    /// The table of the built-in networks in `docs/micro-zoo.md`; `PTSBENCH_UPDATE_SNAPSHOTS=1` writes it again.
    fn check_table(stored: &[Stored]) {
        const HEAD: &str = "| Family | Network | Prunable weights | Top-1, % | Epochs | Training | File, kB |\n\
                            | --- | --- | ---: | ---: | ---: | ---: | ---: |\n";
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/micro-zoo.md");
        let text = std::fs::read_to_string(&file).unwrap();
        let rows: String = stored.iter().map(|one| format!("{}\n", one.row)).collect();
        let table = format!("{HEAD}{rows}");
        if std::env::var_os("PTSBENCH_UPDATE_SNAPSHOTS").is_some() {
            let begin = text.find("| Family |").unwrap();
            let length = text[begin..]
                .find("\n\n")
                .map_or(text.len() - begin, |at| at + 1);
            let new = format!("{}{table}{}", &text[..begin], &text[begin + length..]);
            std::fs::write(&file, new).unwrap();
            return;
        }
        assert!(
            text.contains(&table),
            "docs/micro-zoo.md has another table; PTSBENCH_UPDATE_SNAPSHOTS=1 writes it again:\n{table}"
        );
    }

    #[test]
    fn stored_networks_score_what_their_files_say() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/micro");
        let built_in = catalog::all()
            .iter()
            .filter(|spec| spec.weights == catalog::Weights::BuiltIn);
        let mut stored = Vec::new();
        for spec in built_in {
            let one = spec.open(&Device::flex(), Check(&folder));
            assert_eq!(
                one.top1 < 85.0,
                BELOW.contains(&spec.name),
                "{}: {} %",
                spec.name,
                one.top1
            );
            stored.push(one);
        }
        assert_eq!(stored.len(), EPOCHS.len());
        assert!(stored.iter().map(|one| one.bytes).sum::<u64>() < 20_000_000);
        check_table(&stored);
    }
}

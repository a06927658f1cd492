//! The training of section 1.4: thresholds and weights of a whole network, by SGD with momentum.
//!
//! The network on the tape holds masked weights. Its gradient there is that with respect to `W m`, which the mask passes on
//! to `W` and `t` as `mask_grad` says; the penalty's gradient is written down and needs no tape. `W`, `s` and the velocities
//! stay here.

use std::collections::HashMap;

use burn::module::{ModuleMapper, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use kernels::{MaskGrad, Precision, SoftMode, soft_mask_backward, soft_mask_forward};
use model_zoo::graft::{read_params, write_params};
use model_zoo::tap::Bare;
use model_zoo::{Bundle, Network};
use serde::{Deserialize, Serialize};

use super::error::LearnError;
use super::loss::distillation;
use super::threshold::{FARTHEST, largest, magnitude, parameter, penalty, sigma, sigma_slope};
use super::{Fcpts, NAME};
use crate::batches::Batches;
use crate::descent::{Sgd, changed, floats};
use crate::interrupt;
use crate::reconstruct::checkpoint::Values;
use crate::record::EpochOutcome;
use crate::seed::Seed;

/// Momentum, without dampening.
const MOMENTUM: f64 = 0.9;
/// Decay of weights, biases and norms; thresholds have none.
const DECAY: f64 = 3e-4;

/// Where a prunable layer starts.
#[derive(Debug, Clone)]
pub struct Start {
    /// The path of its weight in the module.
    pub path: String,
    /// Zeros that it starts with.
    pub zeros: usize,
    /// Zeros that it may have: all its weights, or fewer under a cap, or none.
    pub most: usize,
}

/// What all steps share.
pub struct Terms<'a> {
    /// The method.
    pub fcpts: &'a Fcpts,
    /// `P`.
    pub rate: f64,
    /// Images of a step.
    pub batch: usize,
    /// Where the order of images comes from.
    pub seed: Seed,
    /// Arithmetic of every pass.
    pub precision: Precision,
}

impl Terms<'_> {
    /// Steps of an epoch over so many images.
    pub fn steps(&self, images: usize) -> usize {
        images / self.batch.max(1)
    }
}

/// A network in training.
pub struct Learner<'a, N: Network> {
    terms: Terms<'a>,
    /// On the tape, masks applied.
    network: N,
    layers: Vec<Layer>,
    /// By the parameter's path.
    velocity: HashMap<String, Vec<f32>>,
    /// What the epochs so far came to.
    pub history: Vec<EpochOutcome>,
}

/// A prunable layer in training, its weight in the module's layout.
struct Layer {
    path: String,
    weight: Vec<f32>,
    /// The weight as rows, which threads share.
    shape: [usize; 2],
    threshold: Threshold,
    /// Weights that the mask takes away.
    pruned: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Threshold {
    s: f64,
    velocity: f64,
    /// Zeros that the layer may have.
    most: usize,
}

/// What a checkpoint says beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    history: Vec<EpochOutcome>,
    /// `s` and its velocity, layer by layer.
    thresholds: Vec<[f64; 2]>,
}

impl State {
    /// Whether a training of these layers can go on from it.
    pub fn fits(&self, fcpts: &Fcpts, starts: &[Start]) -> bool {
        self.thresholds.len() == starts.len() && self.history.len() <= fcpts.epochs
    }
}

impl Layer {
    /// Whether it stays dense.
    fn is_dense(&self) -> bool {
        self.threshold.most == 0
    }

    /// `t`, which never passes the weight at the layer's cap.
    fn t(&self) -> f32 {
        let Threshold { s, most, .. } = self.threshold;
        let t = sigma(s) * largest(&self.weight);
        let t = match most < self.weight.len() {
            true => t.min(magnitude(&self.weight, most)),
            false => t,
        };
        t as f32
    }

    /// The weight with its mask applied, which is counted.
    fn masked(&mut self) -> Vec<f32> {
        if self.is_dense() {
            return self.weight.clone();
        }
        let mode = SoftMode::Hard(MaskGrad::None);
        let masked = soft_mask_forward(&self.weight, &[self.t()], self.shape, mode)
            .expect("a threshold is a number from 0 on, and there is one");
        self.pruned = self.weight.len() - masked.kept[0] as usize;
        masked.weight
    }

    /// One step, from the gradient `g` with respect to the masked weight; `pull` is the penalty's slope in the number of
    /// zeros: `lambda sign(rate - P) / N`.
    fn step(&mut self, g: &[f32], velocity: &mut [f32], sgd: Sgd, fcpts: &Fcpts, pull: f64) {
        if self.is_dense() {
            sgd.step(&mut self.weight, g, velocity);
            return;
        }
        let (t, scale) = (self.t(), largest(&self.weight));
        let mode = SoftMode::Hard(fcpts.mask_grad);
        let (dw, dt) = soft_mask_backward(&self.weight, &[t], g, self.shape, mode)
            .expect("a gradient has the size of its weight");
        // Zeros are n rho(t). Where the rate is met, or costs nothing, no density is needed.
        let zeros = match pull {
            0.0 => 0.0,
            _ => self.weight.len() as f64 * fcpts.bridge.slope(&self.weight, f64::from(t)),
        };
        let dt = dt[0] + pull * zeros;
        let Threshold { s, velocity: v, .. } = &mut self.threshold;
        *v = dt * scale * sigma_slope(*s) + MOMENTUM * *v;
        *s = (*s - sgd.lr * *v).clamp(-FARTHEST, FARTHEST);
        sgd.step(&mut self.weight, &dw, velocity);
    }
}

impl<'a, N: Network> Learner<'a, N> {
    /// Before the first step. `dense` stays as it is.
    pub fn start(dense: &N, starts: &[Start], terms: Terms<'a>, device: &Device) -> Self {
        // A network's statistics are shared with its clones, which keep theirs.
        let network = dense.clone().train().valid();
        let mut params: Values = read_params(&network).into_iter().collect();
        let velocity = params
            .iter()
            .map(|(path, data)| (path.clone(), vec![0.0; data.num_elements()]))
            .collect();
        let layers = starts.iter().map(|start| {
            let data = params.remove(&start.path);
            let data = data.expect("a prunable layer has a weight");
            let rows = data.shape()[0];
            let weight = floats(data);
            let threshold = Threshold {
                s: parameter(magnitude(&weight, start.zeros), largest(&weight)),
                velocity: 0.0,
                most: start.most,
            };
            Layer {
                path: start.path.clone(),
                shape: [rows, weight.len() / rows.max(1)],
                weight,
                threshold,
                pruned: 0,
            }
        });
        let layers = layers.collect();
        Self {
            terms,
            network,
            layers,
            velocity,
            history: Vec::new(),
        }
        .on_the_tape(HashMap::new(), device)
    }

    /// With these values in its network, masks applied, ready to be trained.
    fn on_the_tape(mut self, mut values: Values, device: &Device) -> Self {
        let shapes: HashMap<String, Vec<usize>> = shapes(&self.network);
        for layer in &mut self.layers {
            let data = TensorData::new(layer.masked(), shapes[&layer.path].clone());
            values.insert(layer.path.clone(), data);
        }
        self.network = write_params(self.network, values, device).0.train();
        self
    }

    /// Whether all epochs are done.
    pub fn is_done(&self) -> bool {
        self.history.len() >= self.terms.fcpts.epochs
    }

    /// `t` of each layer.
    pub fn thresholds(&self) -> Vec<f64> {
        self.layers
            .iter()
            .map(|layer| f64::from(layer.t()))
            .collect()
    }

    /// The share of all prunable weights that the masks take away.
    pub fn rate(&self) -> f64 {
        let pruned: usize = self.layers.iter().map(|layer| layer.pruned).sum();
        pruned as f64 / self.total().max(1) as f64
    }

    fn total(&self) -> usize {
        self.layers.iter().map(|layer| layer.weight.len()).sum()
    }

    /// The network as trained so far, off the tape, with no weight masked.
    pub fn network(&self, device: &Device) -> N {
        let network = self.network.valid();
        let values = self.params(&network).into_iter().collect();
        write_params(network, values, device).0
    }

    /// One epoch over `images`, single ones: in an order of its own, in batches that are mixed anew. `teacher` says what
    /// is to be said of a batch; `watch` is told each step and its loss.
    pub fn epoch(
        mut self,
        images: &Batches<'_, N::Input>,
        teacher: &dyn Fn(N::Input) -> N::Output,
        mut watch: impl FnMut(usize, f64),
    ) -> Result<Self, LearnError> {
        let Terms { batch, seed, .. } = self.terms;
        let (epoch, steps) = (self.history.len() + 1, self.terms.steps(images.len()));
        let mut order: Vec<usize> = (0..images.len()).collect();
        let purpose = format!("{NAME}.order.{epoch}");
        seed.stream(&purpose).shuffle(&mut order);
        let (mut losses, mut penalties) = (0.0, 0.0);
        // What is left is dropped: norms would measure it by too few images.
        for (step, chosen) in order.chunks_exact(batch).enumerate() {
            interrupt::check()?;
            let input = chosen.iter().map(|&at| images.get(at));
            let input = N::Input::join(input.collect::<Result<_, _>>()?);
            let wanted = teacher(input.clone());
            let done = (epoch - 1) * steps + step;
            let diverged = |what| LearnError::Diverged {
                what,
                epoch,
                step: step + 1,
            };
            let (loss, penalty);
            let lr = self.terms.fcpts.rate(done, steps);
            (self, loss, penalty) = self.step(input, wanted, lr).map_err(diverged)?;
            losses += loss;
            penalties += penalty;
            watch(done + 1, loss);
        }
        self.history.push(EpochOutcome {
            loss: losses / steps as f64,
            penalty: penalties / steps as f64,
            rate: self.rate(),
        });
        Ok(self)
    }

    /// One step on a batch at a learning rate: `L_rec` and the penalty before it, or what is not finite.
    fn step(
        mut self,
        input: N::Input,
        wanted: N::Output,
        lr: f64,
    ) -> Result<(Self, f64, f64), &'static str> {
        let fcpts = self.terms.fcpts;
        let output = self
            .network
            .run(input.to_autodiff(), &mut Bare(self.terms.precision));
        let loss = distillation(fcpts.loss, wanted.to_autodiff(), output);
        let value = f64::from(loss.clone().into_scalar::<f32>());
        if !value.is_finite() {
            return Err("the loss");
        }
        let (penalty, pull) = penalty(self.rate(), self.terms.rate, fcpts.lambda);
        let pull = pull / self.total().max(1) as f64;
        let places = self.layers.iter().enumerate();
        let mut update = Update {
            path: Vec::new(),
            gradients: loss.backward(),
            places: places.map(|(at, layer)| (layer.path.clone(), at)).collect(),
            layers: &mut self.layers,
            velocity: &mut self.velocity,
            sgd: Sgd {
                momentum: MOMENTUM,
                decay: DECAY,
                lr,
            },
            fcpts,
            pull,
            finite: true,
        };
        self.network = self.network.map(&mut update);
        match update.finite {
            true => Ok((self, value, penalty)),
            false => Err("a weight"),
        }
    }

    /// Every parameter of the network by its path, no weight masked.
    fn params(&self, network: &N) -> Vec<(String, TensorData)> {
        let dense: HashMap<&str, &Vec<f32>> = self
            .layers
            .iter()
            .map(|layer| (layer.path.as_str(), &layer.weight))
            .collect();
        let params = read_params(network).into_iter().map(|(path, data)| {
            let data = match dense.get(path.as_str()) {
                Some(weight) => TensorData::new((*weight).clone(), data.shape().clone()),
                None => data,
            };
            (path, data)
        });
        params.collect()
    }

    /// All that the next epoch depends on.
    pub fn checkpoint(&self) -> (State, Vec<(String, TensorData)>) {
        let state = State {
            history: self.history.clone(),
            thresholds: self
                .layers
                .iter()
                .map(|layer| [layer.threshold.s, layer.threshold.velocity])
                .collect(),
        };
        let mut tensors = Vec::new();
        for (path, data) in self.params(&self.network.valid()) {
            let velocity = self.velocity[&path].clone();
            let velocity = TensorData::new(velocity, data.shape().clone());
            tensors.push((format!("{WEIGHT}{path}"), data));
            tensors.push((format!("{VELOCITY}{path}"), velocity));
        }
        (state, tensors)
    }

    /// The tensors of such a checkpoint, with their shapes.
    pub fn expected(network: &N) -> HashMap<String, Vec<usize>> {
        let each = shapes(network).into_iter().flat_map(|(path, shape)| {
            [WEIGHT, VELOCITY].map(|kind| (format!("{kind}{path}"), shape.clone()))
        });
        each.collect()
    }

    /// Goes on from a checkpoint that fits, with the tensors that were expected.
    pub fn resume(mut self, state: State, tensors: Values, device: &Device) -> Self {
        let mut values = Values::new();
        for (key, data) in tensors {
            if let Some(path) = key.strip_prefix(WEIGHT) {
                values.insert(path.to_owned(), data);
            } else if let Some(path) = key.strip_prefix(VELOCITY) {
                self.velocity.insert(path.to_owned(), floats(data));
            }
        }
        for (layer, [s, velocity]) in self.layers.iter_mut().zip(state.thresholds) {
            let weight = values.remove(&layer.path);
            layer.weight = floats(weight.expect("an expected tensor is there"));
            layer.threshold = Threshold {
                s,
                velocity,
                ..layer.threshold
            };
        }
        self.history = state.history;
        self.network = self.network.valid();
        self.on_the_tape(values, device)
    }
}

/// Prefixes of a checkpoint's tensors.
const WEIGHT: &str = "weight:";
const VELOCITY: &str = "velocity:";

fn shapes<N: Network>(network: &N) -> HashMap<String, Vec<usize>> {
    let params = read_params(network).into_iter();
    params
        .map(|(path, data)| (path, data.shape().to_vec()))
        .collect()
}

/// One step of all parameters.
struct Update<'a> {
    path: Vec<String>,
    gradients: Gradients,
    places: HashMap<String, usize>,
    layers: &'a mut [Layer],
    velocity: &'a mut HashMap<String, Vec<f32>>,
    sgd: Sgd,
    fcpts: &'a Fcpts,
    /// The penalty's slope in the number of zeros.
    pull: f64,
    finite: bool,
}

impl ModuleMapper for Update<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let Some(velocity) = self.velocity.get_mut(&path) else {
            return param;
        };
        let layer = self.places.get(&path).map(|&at| &mut self.layers[at]);
        let (sgd, finite) = (self.sgd, &mut self.finite);
        changed(param, &mut self.gradients, |values, gradients| {
            match layer {
                Some(layer) => {
                    layer.step(gradients, velocity, sgd, self.fcpts, self.pull);
                    *finite &= layer.weight.iter().all(|w| w.is_finite());
                    if *finite {
                        values.copy_from_slice(&layer.masked());
                    }
                }
                None => sgd.step(values, gradients, velocity),
            }
            *finite &= values.iter().all(|value| value.is_finite());
        })
    }
}

#[cfg(test)]
mod tests;

//! Taps of the bias correction: mean inputs of every layer, mean outputs on them, and what norms make of those.
//!
//! A layer is affine, so the mean of its outputs over images is its output on the mean input, zero padding included.

use std::any::Any;
use std::collections::{HashMap, VecDeque};

use burn::tensor::Tensor;
use model_zoo::norm::scale;
use model_zoo::tap::Path;
use model_zoo::{Bundle, Tap, TensorMap, Unit};

use super::loss::channel_axis;

/// Sums every prunable layer's input over images, place by place; a layer that runs several times counts its first run.
#[derive(Default)]
pub struct MeanInputs {
    path: Path,
    images: usize,
    sums: HashMap<String, Box<dyn Any>>,
    seen: HashMap<String, usize>,
}

impl MeanInputs {
    /// Call after each batch with the images in it.
    pub fn batch_done(&mut self, images: usize) {
        self.images += images;
        self.seen.clear();
    }
}

impl Tap for MeanInputs {
    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        if unit.layer().is_some() {
            let path = self.path.join();
            let runs = self.seen.entry(path.clone()).or_default();
            *runs += 1;
            if *runs == 1 {
                let batch = input.clone().map(&mut SumBatch);
                let sum = match self.sums.remove(&path) {
                    Some(sum) => plus(*sum.downcast::<In>().expect("the layer's own type"), batch),
                    None => batch,
                };
                self.sums.insert(path, Box::new(sum));
            }
        }
        let output = unit.run(input, self);
        self.path.pop();
        output
    }
}

/// The mean output of every prunable layer, per output channel, on given mean inputs.
pub struct MeanOutputs<'a> {
    path: Path,
    inputs: &'a MeanInputs,
    /// By the layer's path in the module, its bias included.
    pub means: HashMap<String, Vec<f32>>,
}

impl<'a> MeanOutputs<'a> {
    /// On these inputs.
    pub fn on(inputs: &'a MeanInputs) -> Self {
        Self {
            path: Path::default(),
            inputs,
            means: HashMap::new(),
        }
    }
}

impl Tap for MeanOutputs<'_> {
    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        let path = self.path.join();
        if unit.layer().is_some()
            && let Some(sum) = self.inputs.sums.get(&path)
        {
            let sum = sum.downcast_ref::<In>().expect("the layer's own type");
            let mean = sum
                .clone()
                .map(&mut Times(1.0 / self.inputs.images.max(1) as f64));
            let output = unit.run(mean, &mut model_zoo::tap::Bare);
            self.means.insert(path, channel_means(output));
        }
        let output = unit.run(input, self);
        self.path.pop();
        output
    }
}

/// What every batch norm multiplies its channels by, by the path of the unit it belongs to.
#[derive(Default)]
pub struct Scales {
    path: Path,
    /// The factors.
    pub found: HashMap<String, Vec<f64>>,
}

impl Tap for Scales {
    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        if let Some(norm) = unit.norm() {
            self.found.insert(self.path.join(), scale(norm));
        }
        let output = unit.run(input, self);
        self.path.pop();
        output
    }
}

/// Sum over the batch, keeping the axis.
struct SumBatch;

impl TensorMap for SumBatch {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        tensor.sum_dim(0)
    }
}

/// Every value times a factor.
struct Times(f64);

impl TensorMap for Times {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        tensor.mul_scalar(self.0)
    }
}

/// The sum of two bundles of the same shapes.
fn plus<B: Bundle>(one: B, other: B) -> B {
    let mut addends = Take(VecDeque::new());
    other.map(&mut addends);
    one.map(&mut Add(addends.0))
}

/// Takes the tensors out, in order.
struct Take(VecDeque<Box<dyn Any>>);

impl TensorMap for Take {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        self.0.push_back(Box::new(tensor.clone()));
        tensor
    }
}

/// Adds them to those at the same places.
struct Add(VecDeque<Box<dyn Any>>);

impl TensorMap for Add {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        let addend = self.0.pop_front().and_then(|addend| {
            let addend: Result<Box<Tensor<D>>, _> = addend.downcast();
            addend.ok()
        });
        tensor + *addend.expect("bundles of one type")
    }
}

/// Mean of each channel over batch and positions, tensor after tensor.
fn channel_means<B: Bundle>(bundle: B) -> Vec<f32> {
    let mut means = ChannelMeans(Vec::new());
    bundle.map(&mut means);
    means.0
}

struct ChannelMeans(Vec<f32>);

impl TensorMap for ChannelMeans {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        let axis = channel_axis(D);
        let mut mean = tensor.clone();
        for other in (0..D).filter(|&d| d != axis) {
            mean = mean.mean_dim(other);
        }
        let values = mean.into_data().try_into_vec::<f32>();
        self.0.extend(values.expect("networks compute in f32"));
        tensor
    }
}

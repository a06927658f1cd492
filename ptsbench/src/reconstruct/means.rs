//! Taps of the bias correction: mean inputs of every layer, mean outputs on them, and what norms make of those.
//!
//! A layer is affine, so the mean of its outputs over images is its output on the mean input, zero padding included.

use std::any::Any;
use std::collections::HashMap;

use model_zoo::norm::scale;
use model_zoo::tap::Path;
use model_zoo::{Bundle, Tap, Unit};

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
                let batch = input.clone().sum_batch();
                let sum = match self.sums.remove(&path) {
                    Some(sum) => sum
                        .downcast::<In>()
                        .expect("the layer's own type")
                        .plus(batch),
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
            let mean = sum.clone().times(1.0 / self.inputs.images.max(1) as f64);
            let output = unit.run(mean, &mut model_zoo::tap::Bare);
            self.means.insert(path, output.channel_means());
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

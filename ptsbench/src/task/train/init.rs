//! Initial weights, each from a stream of its parameter's own.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};

use super::{Recipe, local};
use crate::seed::{Seed, Stream};

/// What a generator's output comes from.
const GENERATOR_OUT: &str = "out.conv.weight";
/// What RetinaNet's outputs come from, and the deviation with which it begins there (Lin et al. 2017, arXiv 1708.02002,
/// section 4.1); the classes' biases stay what the network's constructor makes of the prior.
const DETECTOR_OUT: [&str; 2] = ["cls_logits.weight", "bbox_reg.weight"];
const DETECTOR: f32 = 0.01;
const PRIOR: &str = "cls_logits.bias";

/// A network of the same shapes with fresh weights; `images` are the recipe's, as bytes.
pub fn fresh<M: Module>(network: M, recipe: Recipe, images: &[u8], device: &Device) -> M {
    network.map(&mut Init {
        path: Vec::new(),
        seed: Seed(recipe.seed),
        transformer: recipe.transformer.is_some(),
        images,
        device,
    })
}

/// He et al. 2015 (arXiv 1502.01852), Eq. 10 counting outputs, for convolutions; uniform within 1 / sqrt(inputs) for
/// linear layers; biases 0. Norms keep what they have: 1 and 0.
///
/// A transformer's patches count inputs (LeCun) and its linear layers inputs and outputs (Glorot), but for what [`local`]
/// sets.
struct Init<'a> {
    path: Vec<String>,
    seed: Seed,
    transformer: bool,
    images: &'a [u8],
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
            // A generator begins by saying nothing.
            (4, _) if path == GENERATOR_OUT => vec![0.0; count],
            (4, _) if DETECTOR_OUT.iter().any(|end| path.ends_with(end)) => normal(DETECTOR),
            (1, _) if path.ends_with(PRIOR) => return param,
            (3, true) => normal(1.0),
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
        if self.transformer {
            local::arrange(&path, &shape, &mut values, self.images);
        }
        let value = Tensor::from_data(TensorData::new(values, shape), self.device);
        param.map(|_| value)
    }
}

//! Initial weights, each from a stream of its parameter's own.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};

use super::Recipe;
use crate::seed::{Seed, Stream};

/// Deviation of a transformer's class token.
const NARROW: f32 = 0.02;
/// Longest wave of a transformer's positions.
const LONGEST: f64 = 100.0;

/// A network of the same shapes with fresh weights.
pub fn fresh<M: Module>(network: M, recipe: Recipe, device: &Device) -> M {
    network.map(&mut Init {
        path: Vec::new(),
        seed: Seed(recipe.seed),
        transformer: recipe.transformer.is_some(),
        device,
    })
}

/// He et al. 2015 (arXiv 1502.01852), Eq. 10 counting outputs, for convolutions; uniform within 1 / sqrt(inputs) for
/// linear layers; biases 0. Norms keep what they have: 1 and 0. A transformer's patches count inputs (LeCun), its linear
/// layers inputs and outputs (Glorot), its class token is narrow.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}

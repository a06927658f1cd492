//! One step of training: SGD, AdamW.

use std::collections::HashMap;

use burn::module::{ModuleMapper, Param};
use burn::tensor::{Gradients, Tensor};

use super::Recipe;
use crate::descent::{Sgd, changed};

/// Added to the root of the second moment.
const EPSILON: f64 = 1e-8;

/// What an optimizer keeps of each parameter, by path: flat, off the tape.
pub type State = HashMap<String, Vec<f32>>;

/// One step of SGD.
pub struct Descent<'a> {
    pub path: Vec<String>,
    pub gradients: Gradients,
    pub velocity: &'a mut State,
    pub recipe: Recipe,
    pub lr: f64,
}

impl ModuleMapper for Descent<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let sgd = Sgd {
            momentum: self.recipe.momentum,
            decay: self.recipe.decay,
            lr: self.lr,
        };
        let velocity = self.velocity.entry(self.path.join(".")).or_default();
        changed(param, &mut self.gradients, |weights, gradients| {
            velocity.resize(weights.len(), 0.0);
            sgd.step(weights, gradients, velocity);
        })
    }
}

/// One step of AdamW as PyTorch has it: w = w - lr decay w, then w = w - lr m' / (sqrt(v') + eps), where m and v are the
/// running means of gradient and squared gradient, and ' their correction for having started at nothing. Decay leaves
/// biases, norms, tokens and positions alone, as timm does.
pub struct AdamW<'a> {
    pub path: Vec<String>,
    pub gradients: Gradients,
    /// First and second.
    pub moments: [&'a mut State; 2],
    pub betas: [f64; 2],
    pub decay: f64,
    pub lr: f64,
    /// From 1.
    pub step: usize,
}

impl ModuleMapper for AdamW<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let [first, second] = &mut self.moments;
        let first = first.entry(path.clone()).or_default();
        let second = second.entry(path).or_default();
        let betas = self.betas.map(|beta| beta as f32);
        let rest = self.betas.map(|beta| (1.0 - beta) as f32);
        let corrections = self
            .betas
            .map(|beta| (1.0 - beta.powf(self.step as f64)) as f32);
        let (epsilon, lr) = (EPSILON as f32, self.lr as f32);
        let kept = match D {
            2 | 4 => (1.0 - self.lr * self.decay) as f32,
            _ => 1.0,
        };
        changed(param, &mut self.gradients, |weights, gradients| {
            first.resize(weights.len(), 0.0);
            second.resize(weights.len(), 0.0);
            let moments = first.iter_mut().zip(second);
            for ((w, g), (m, v)) in weights.iter_mut().zip(gradients).zip(moments) {
                *m = g * rest[0] + *m * betas[0];
                *v = g * g * rest[1] + *v * betas[1];
                let change = (*m / corrections[0]) / ((*v / corrections[1]).sqrt() + epsilon) * lr;
                *w = *w * kept - change;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;

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
                    ..Recipe::MICRO
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
}

//! Steps of gradient descent on parameters, and how long they are. Two kinds of training share them: the built-in
//! networks' from scratch and FCPTS's.

use burn::module::Param;
use burn::tensor::{Gradients, Tensor, TensorData};

/// What a step of SGD depends on beside gradients.
#[derive(Debug, Clone, Copy)]
pub struct Sgd {
    /// Without dampening.
    pub momentum: f64,
    /// Added to the gradient for each unit of the weight.
    pub decay: f64,
    /// Learning rate.
    pub lr: f64,
}

impl Sgd {
    /// One step as PyTorch has it: v = momentum v + (gradient + decay w), w = w - lr v.
    pub fn step(self, weights: &mut [f32], gradients: &[f32], velocity: &mut [f32]) {
        let [momentum, decay, lr] = [self.momentum, self.decay, self.lr].map(|value| value as f32);
        for ((w, g), v) in weights.iter_mut().zip(gradients).zip(velocity) {
            *v = g + *w * decay + *v * momentum;
            *w -= *v * lr;
        }
    }
}

/// The learning rate of a step: up a line to `lr` for the first `rise` of `all` steps, then down half a cosine.
pub fn warm_cosine(lr: f64, step: usize, rise: usize, all: usize) -> f64 {
    if step < rise {
        return lr * (step + 1) as f64 / rise as f64;
    }
    let part = (step - rise) as f64 / (all - rise) as f64;
    lr * 0.5 * (1.0 + (std::f64::consts::PI * part).cos())
}

/// A parameter's values, changed in one pass with its gradient. Without a gradient (running statistics) it stays as it is.
pub fn changed<const D: usize>(
    param: Param<Tensor<D>>,
    gradients: &mut Gradients,
    change: impl FnOnce(&mut [f32], &[f32]),
) -> Param<Tensor<D>> {
    let weight = param.val();
    let Some(gradient) = weight.grad_remove(gradients) else {
        return param;
    };
    let weight = weight.inner();
    let (shape, device) = (weight.shape(), weight.device());
    let mut values = floats(weight.into_data());
    change(&mut values, &floats(gradient.into_data()));
    let weight = Tensor::from_data(TensorData::new(values, shape), &device);
    param.map(|_| Tensor::from_inner(weight).require_grad())
}

/// The values of a tensor.
pub fn floats(data: TensorData) -> Vec<f32> {
    data.try_into_vec()
        .expect("the networks here compute in f32")
}

//! Batch-norm folding: with frozen statistics a batch norm is a scale and a shift per channel, which the convolution
//! before it can carry.

use burn::module::Param;
use burn::nn::BatchNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::{Tensor, TensorData};

use crate::norm::scale;

/// `conv` followed by `norm`, as one convolution with a bias; without a norm, `conv` with a bias (zeros if it had none).
///
/// W' = W s and b' = (b - mean) s + beta, with s = gamma / sqrt(var + eps) per output channel, computed in f64.
pub fn fold_batch_norm(mut conv: Conv2d, norm: Option<BatchNorm>) -> Conv2d {
    let device = conv.weight.lazy_device();
    let [outputs, ..] = conv.weight.val().dims();
    let read = |tensor: Tensor<1>| -> Vec<f64> {
        tensor.into_data().iter::<f32>().map(f64::from).collect()
    };
    let mut bias = match &conv.bias {
        Some(bias) => read(bias.val()),
        None => vec![0.0; outputs],
    };
    if let Some(norm) = norm {
        let scale = scale(&norm);
        let (mean, beta) = (read(norm.running_mean.value_sync()), read(norm.beta.val()));
        for c in 0..outputs {
            bias[c] = (bias[c] - mean[c]) * scale[c] + beta[c];
        }
        conv.weight = conv.weight.map(|weight| {
            let shape = weight.shape();
            let mut values: Vec<f32> = weight
                .into_data()
                .try_into_vec()
                .expect("networks compute in f32");
            let columns = values.len() / outputs.max(1);
            for (c, row) in values.chunks_mut(columns.max(1)).enumerate() {
                for w in row {
                    *w = (f64::from(*w) * scale[c]) as f32;
                }
            }
            Tensor::from_data(TensorData::new(values, shape), &device)
        });
    }
    let bias: Vec<f32> = bias.into_iter().map(|b| b as f32).collect();
    let bias = Tensor::from_data(TensorData::new(bias, [outputs]), &device);
    conv.bias = Some(match conv.bias.take() {
        Some(param) => param.map(|_| bias),
        None => Param::from_tensor(bias),
    });
    conv
}

//! Products with a weight that no longer changes, on its kept values alone.

use std::sync::Arc;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

use super::{Bias, ConvOptions, expect_bias, has_cpu_kernels};
use crate::cpu::sparse::SparseWeight;
use crate::{ConvShape, KernelError};

/// What has kernels on the CPU alone, and no gradient.
#[backend_extension(Flex)]
pub trait FrozenOps: Backend {
    /// As [`super::SparseOps::sparse_conv2d`].
    fn frozen_conv2d(
        x: FloatTensor<Self>,
        weight: Arc<SparseWeight>,
        #[extension_type] bias: Bias<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self>;

    /// As [`super::SparseOps::sparse_linear`]; the weight has a row per output.
    fn frozen_linear(
        x: FloatTensor<Self>,
        weight: Arc<SparseWeight>,
        #[extension_type] bias: Bias<Self>,
    ) -> FloatTensor<Self>;
}

/// Whether [`frozen_conv2d`] and [`frozen_linear`] can take this input: f32 on the CPU, off the tape.
pub fn frozen_runs<const D: usize>(x: &Tensor<D>) -> bool {
    !x.is_autodiff() && has_cpu_kernels(&x.device(), x.dtype(), x.dtype())
}

/// A convolution of `x` NCHW, which [`frozen_runs`] accepts, with the kept values of a weight of `kernel` taps.
pub fn frozen_conv2d(
    x: Tensor<4>,
    weight: &Arc<SparseWeight>,
    kernel: [usize; 2],
    bias: Option<Tensor<1>>,
    options: ConvOptions,
) -> Result<Tensor<4>, KernelError> {
    let shape = options.shape(x.dims(), weight.rows(), kernel);
    shape.validate()?;
    if weight.cols() != shape.weight_cols() {
        return Err(KernelError::Operand {
            what: "the input's channels, by taps and groups",
            expected: vec![weight.cols()],
            found: vec![shape.weight_cols()],
        });
    }
    expect_bias(bias.as_ref(), shape.outputs)?;
    Ok(Tensor::from_dispatch(Dispatch::frozen_conv2d(
        x.into_dispatch(),
        weight.clone(),
        bias.map_or(Bias::Zero, |bias| Bias::Channels(bias.into_dispatch())),
        shape,
    )))
}

/// A linear layer on the last axis of `x`, which [`frozen_runs`] accepts, with the kept values of a weight.
pub fn frozen_linear<const D: usize>(
    x: Tensor<D>,
    weight: &Arc<SparseWeight>,
    bias: Option<Tensor<1>>,
) -> Result<Tensor<D>, KernelError> {
    let mut dims = x.dims();
    if dims[D - 1] != weight.cols() {
        return Err(KernelError::Operand {
            what: "the input's last axis",
            expected: vec![weight.cols()],
            found: dims.to_vec(),
        });
    }
    expect_bias(bias.as_ref(), weight.rows())?;
    let positions = dims[..D - 1].iter().product();
    let y = Tensor::<2>::from_dispatch(Dispatch::frozen_linear(
        x.reshape([positions, weight.cols()]).into_dispatch(),
        weight.clone(),
        bias.map_or(Bias::Zero, |bias| Bias::Channels(bias.into_dispatch())),
    ));
    dims[D - 1] = weight.rows();
    Ok(y.reshape(dims))
}

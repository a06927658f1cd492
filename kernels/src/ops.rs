//! Products on Burn's tensors, with gradients: one backend extension.
//!
//! On Flex with f32 the kernels of [`crate::cpu`] run. On any other device or number type the same operation is put
//! together from Burn's own, with the masked weight as an ordinary tensor; results agree within rounding.

mod autodiff;
mod flex;

use burn::backend::{
    Backend, Dispatch, ExtensionType, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::module::conv2d as burn_conv2d;
use burn::tensor::ops::ConvOptions as BurnConvOptions;
use burn::tensor::{DType, Device, Int, Tensor};

use crate::{ConvShape, KernelError};

/// What of a weight exists.
#[derive(Debug, Clone, ExtensionType)]
pub enum Keep<B: Backend> {
    /// All of it.
    All,
    /// What has a 1 in these words, `[rows, ceil(columns / 32)]` as in [`crate::BitMask`], rows being outputs.
    Words(IntTensor<B>),
}

/// What is added to each output channel.
#[derive(Debug, Clone, ExtensionType)]
pub enum Bias<B: Backend> {
    /// Nothing.
    Zero,
    /// One value per channel.
    Channels(FloatTensor<B>),
}

/// The products that kernels exist for.
#[backend_extension(Flex, Autodiff)]
pub trait SparseOps: Backend {
    /// `w * x + bias` over windows: `x` NCHW, `w` OIHW.
    fn sparse_conv2d(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        #[extension_type] mask: Keep<Self>,
        #[extension_type] bias: Bias<Self>,
        shape: ConvShape,
        grad: WeightGrad,
    ) -> FloatTensor<Self>;

    /// The gradient of `x` from that of the result.
    fn sparse_conv2d_input_grad(
        g: FloatTensor<Self>,
        w: FloatTensor<Self>,
        #[extension_type] mask: Keep<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self>;

    /// The gradient of `w`, zero outside the mask.
    fn sparse_conv2d_weight_grad(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        #[extension_type] mask: Keep<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self>;

    /// Sum over everything but axis 1 (rank 4): a convolution's bias gradient.
    fn channel_sums(g: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Which entries of a masked weight's gradient are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightGrad {
    /// Those of kept weights; 0 elsewhere.
    Masked,
    /// All: for thresholds and soft masks, which learn from pruned weights too.
    Dense,
}

/// How a convolution steps; the sizes come from the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvOptions {
    /// Stride along height and width.
    pub stride: [usize; 2],
    /// Zeros before and after, along height and width.
    pub padding: [[usize; 2]; 2],
    /// Distance between taps along height and width.
    pub dilation: [usize; 2],
    /// Groups.
    pub groups: usize,
}

/// A convolution of `x` NCHW with `w` OIHW, of which only what `mask` keeps exists.
pub fn conv2d(
    x: Tensor<4>,
    w: Tensor<4>,
    mask: Option<Tensor<2, Int>>,
    bias: Option<Tensor<1>>,
    options: ConvOptions,
    grad: WeightGrad,
) -> Result<Tensor<4>, KernelError> {
    let [batch, inputs, height, width] = x.dims();
    let [outputs, per_group, kh, kw] = w.dims();
    let shape = ConvShape {
        batch,
        inputs,
        outputs,
        size: [height, width],
        kernel: [kh, kw],
        stride: options.stride,
        padding: options.padding,
        dilation: options.dilation,
        groups: options.groups,
    };
    shape.validate()?;
    if inputs != per_group * options.groups {
        return Err(KernelError::Operand {
            what: "the input's channels",
            expected: vec![per_group * options.groups],
            found: vec![inputs],
        });
    }
    expect_mask(mask.as_ref(), outputs, shape.weight_cols())?;
    expect_bias(bias.as_ref(), outputs)?;
    if !has_kernels(&x.device(), x.dtype(), w.dtype()) {
        let w = match mask {
            Some(mask) => keep(w, &mask),
            None => w,
        };
        let padding = options.padding.map(|[before, after]| (before, after));
        return Ok(burn_conv2d(
            x,
            w,
            bias,
            BurnConvOptions::new_with_padding(
                options.stride,
                padding,
                options.dilation,
                options.groups,
            ),
        ));
    }
    Ok(Tensor::from_dispatch(Dispatch::sparse_conv2d(
        x.into_dispatch(),
        w.into_dispatch(),
        mask.map_or(Keep::All, |mask| Keep::Words(mask.into_dispatch())),
        bias.map_or(Bias::Zero, |bias| Bias::Channels(bias.into_dispatch())),
        shape,
        grad,
    )))
}

fn has_kernels(device: &Device, x: DType, w: DType) -> bool {
    *device == Device::flex() && x == DType::F32 && w == DType::F32
}

fn expect_mask(mask: Option<&Tensor<2, Int>>, rows: usize, cols: usize) -> Result<(), KernelError> {
    let expected = [rows, cols.div_ceil(32)];
    match mask {
        Some(mask) if mask.dims() != expected => Err(KernelError::Operand {
            what: "the mask's words (is it another layer's?)",
            expected: expected.to_vec(),
            found: mask.dims().to_vec(),
        }),
        _ => Ok(()),
    }
}

fn expect_bias(bias: Option<&Tensor<1>>, outputs: usize) -> Result<(), KernelError> {
    match bias {
        Some(bias) if bias.dims() != [outputs] => Err(KernelError::Operand {
            what: "the bias",
            expected: vec![outputs],
            found: bias.dims().to_vec(),
        }),
        _ => Ok(()),
    }
}

/// The weight with what the mask does not keep exactly zero, whatever was stored there.
///
/// Rank 4 is a convolution's OIHW weight; rank 2 a linear layer's `[in, out]`.
pub fn keep<const D: usize>(w: Tensor<D>, mask: &Tensor<2, Int>) -> Tensor<D> {
    let dims = w.dims();
    let rows = if D == 2 { dims[1] } else { dims[0] };
    let cols = w.shape().num_elements() / rows.max(1);
    let [_, words] = mask.dims();
    let bits = Tensor::<1, Int>::arange(0..32, (&mask.device(), DType::U32)).reshape([1, 1, 32]);
    let pruned = mask
        .clone()
        .reshape([rows, words, 1])
        .bitwise_right_shift(bits)
        .bitwise_and_scalar(1)
        .reshape([rows, words * 32])
        .slice([0..rows, 0..cols])
        .bitwise_xor_scalar(1);
    let pruned = if D == 2 { pruned.transpose() } else { pruned };
    // Filling instead of multiplying: NaN and infinity in pruned places must not come through.
    w.mask_fill(pruned.reshape(dims).equal_elem(1), 0.0)
}

//! Products on Burn's tensors, with gradients: one backend extension.
//!
//! On f32 tensors the kernels of [`crate::cpu`] or of the GPU module run. Any other number type's operations are put
//! together from Burn's own, with the masked weight as an ordinary tensor; results agree within rounding. On a GPU that
//! is counted, see [`gpu_fallbacks`]. Norms, softmax, GELU and stacks of products have kernels on the CPU alone; GPUs use
//! Burn's, which lack nothing there.

mod autodiff;
#[cfg(feature = "gpu")]
mod cube;
mod flex;
mod frozen;

use std::sync::atomic::{AtomicU64, Ordering};

use burn::backend::{
    Backend, Dispatch, ExtensionType, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
#[cfg(feature = "gpu")]
use burn::tensor::Shape;
use burn::tensor::module::{conv2d as burn_conv2d, linear as burn_linear};
use burn::tensor::ops::ConvOptions as BurnConvOptions;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::{Activation, ConvShape, KernelError, Precision};

pub use frozen::{FrozenOps, frozen_conv2d, frozen_linear, frozen_runs};

/// What of a weight exists.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "gpu"))]
pub enum Keep<B: Backend> {
    /// All of it.
    All,
    /// What has a 1 in these words, `[rows, ceil(columns / 32)]` as in [`crate::BitMask`], rows being outputs.
    Words(IntTensor<B>),
}

/// What is added to each output channel.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "gpu"))]
pub enum Bias<B: Backend> {
    /// Nothing.
    Zero,
    /// One value per channel.
    Channels(FloatTensor<B>),
}

/// What is added place by place.
#[derive(Debug, Clone, ExtensionType)]
pub enum Skip<B: Backend> {
    /// Nothing.
    Zero,
    /// One value per element.
    Values(FloatTensor<B>),
}

/// The products that have kernels everywhere.
///
/// Burn's fusing layer takes the shapes of results from here and does not compare them with what comes.
#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"))]
pub trait SparseOps: Backend {
    /// `w * x + bias` over windows: `x` NCHW, `w` OIHW.
    #[fusion(dtype = x, shape = Shape::from(shape.output_dims()))]
    fn sparse_conv2d(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        #[extension_type] mask: Keep<Self>,
        #[extension_type] bias: Bias<Self>,
        shape: ConvShape,
        precision: Precision,
    ) -> FloatTensor<Self>;

    /// The gradient of `x` from that of the result.
    #[fusion(dtype = g, shape = Shape::from(shape.input_dims()))]
    fn sparse_conv2d_input_grad(
        g: FloatTensor<Self>,
        w: FloatTensor<Self>,
        #[extension_type] mask: Keep<Self>,
        shape: ConvShape,
        precision: Precision,
    ) -> FloatTensor<Self>;

    /// The gradient of `w`, zero outside the mask.
    #[fusion(dtype = g, shape = Shape::from(shape.weight_dims()))]
    fn sparse_conv2d_weight_grad(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        #[extension_type] mask: Keep<Self>,
        shape: ConvShape,
        precision: Precision,
    ) -> FloatTensor<Self>;

    /// `x w + bias`: `x` [positions, in], `w` [in, out] as Burn stores it.
    #[fusion(dtype = x, shape = Shape::new([x[0], w[1]]))]
    fn sparse_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        #[extension_type] mask: Keep<Self>,
        #[extension_type] bias: Bias<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;

    /// The gradient of `x` from that of the result.
    #[fusion(dtype = g, shape = Shape::new([g[0], w[0]]))]
    fn sparse_linear_input_grad(
        g: FloatTensor<Self>,
        w: FloatTensor<Self>,
        #[extension_type] mask: Keep<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;

    /// The gradient of `w`, zero outside the mask.
    #[fusion(dtype = g, shape = Shape::new([x[1], g[1]]))]
    fn sparse_linear_weight_grad(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        #[extension_type] mask: Keep<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;

    /// Sum over everything but axis 1: a bias's gradient.
    #[fusion(dtype = g, shape = Shape::new([g[1]]))]
    fn channel_sums(g: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// What has kernels on the CPU alone.
#[backend_extension(Flex, Autodiff)]
pub trait CpuOps: Backend {
    /// A stack of products: `a` [batch, m, k], `b` [batch, k, n].
    fn stacked_matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Batch norm with the batch's statistics: the result, and each channel's mean and population variance, which have no
    /// gradient.
    fn channel_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// The gradients of `x`, `gamma` and `beta`.
    fn channel_norm_grad(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f64,
        g: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Batch norm with fixed statistics, and an activation.
    fn fixed_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// The gradients of `x`, `gamma` and `beta`.
    #[allow(clippy::too_many_arguments)]
    fn fixed_norm_grad(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
        g: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// An activation of `x + skip`.
    fn join(
        x: FloatTensor<Self>,
        #[extension_type] skip: Skip<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// The gradient of the sum, from what [`Activation::keeps_input`] says.
    fn join_grad(
        kept: FloatTensor<Self>,
        g: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// Every plane of `x` [images, channels, height, width] times its value of `gate` [images, channels].
    fn gate_planes(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The gradients of `x` and `gate`.
    fn gate_planes_grad(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        g: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Layer norm over the last axis of [rows, columns]: the result, and each row's mean and 1 / deviation, which have no
    /// gradient.
    fn row_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// The gradients of `x`, `gamma` and `beta`.
    fn row_norm_grad(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        inv_std: FloatTensor<Self>,
        g: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Softmax over the last axis of [rows, columns].
    fn row_softmax(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The gradient of `x` from the result and its gradient.
    fn row_softmax_grad(y: FloatTensor<Self>, g: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `x Phi(x)` of every element.
    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The gradient of `x`.
    fn exact_gelu_grad(x: FloatTensor<Self>, g: FloatTensor<Self>) -> FloatTensor<Self>;
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

impl ConvOptions {
    /// The convolution on an input NCHW.
    fn shape(
        &self,
        [batch, inputs, height, width]: [usize; 4],
        outputs: usize,
        kernel: [usize; 2],
    ) -> ConvShape {
        ConvShape {
            batch,
            inputs,
            outputs,
            size: [height, width],
            kernel,
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
        }
    }
}

/// A convolution of `x` NCHW with `w` OIHW, of which only what `mask` keeps exists. Its gradients are computed in the same
/// precision; that of the weight is 0 where the mask prunes.
pub fn conv2d(
    x: Tensor<4>,
    w: Tensor<4>,
    mask: Option<Tensor<2, Int>>,
    bias: Option<Tensor<1>>,
    options: ConvOptions,
    precision: Precision,
) -> Result<Tensor<4>, KernelError> {
    let dims @ [_, inputs, ..] = x.dims();
    let [outputs, per_group, kh, kw] = w.dims();
    let shape = options.shape(dims, outputs, [kh, kw]);
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
    expect_precision(precision, &x.device())?;
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
        precision,
    )))
}

/// A linear layer on the last axis of `x`: `w` is [in, out] as Burn stores it, and only what `mask` keeps of it exists.
/// Gradients are as those of [`conv2d`].
pub fn linear<const D: usize>(
    x: Tensor<D>,
    w: Tensor<2>,
    mask: Option<Tensor<2, Int>>,
    bias: Option<Tensor<1>>,
    precision: Precision,
) -> Result<Tensor<D>, KernelError> {
    let dims = x.dims();
    let [inputs, outputs] = w.dims();
    let last = dims.last().copied().unwrap_or(1);
    if last != inputs {
        return Err(KernelError::Operand {
            what: "the input's last axis",
            expected: vec![inputs],
            found: dims.to_vec(),
        });
    }
    expect_mask(mask.as_ref(), outputs, inputs)?;
    expect_bias(bias.as_ref(), outputs)?;
    expect_precision(precision, &x.device())?;
    if !has_kernels(&x.device(), x.dtype(), w.dtype()) {
        let w = match mask {
            Some(mask) => keep(w, &mask),
            None => w,
        };
        return Ok(burn_linear(x, w, bias));
    }
    let positions = dims[..D - 1].iter().product();
    let y = Tensor::<2>::from_dispatch(Dispatch::sparse_linear(
        x.reshape([positions, inputs]).into_dispatch(),
        w.into_dispatch(),
        mask.map_or(Keep::All, |mask| Keep::Words(mask.into_dispatch())),
        bias.map_or(Bias::Zero, |bias| Bias::Channels(bias.into_dispatch())),
        precision,
    ));
    let mut dims = dims;
    dims[D - 1] = outputs;
    Ok(y.reshape(dims))
}

/// `a b` over the last two axes, for stacks of the same size; others go to Burn, which repeats what it must.
pub fn matmul<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let (left, right) = (a.dims(), b.dims());
    let same = D > 2 && left[..D - 2] == right[..D - 2] && left[D - 1] == right[D - 2];
    if !same || !has_cpu_kernels(&a.device(), a.dtype(), b.dtype()) {
        return a.matmul(b);
    }
    let batch = left[..D - 2].iter().product();
    let flat = |t: Tensor<D>, [m, n]: [usize; 2]| t.reshape([batch, m, n]).into_dispatch();
    let (m, k, n) = (left[D - 2], left[D - 1], right[D - 1]);
    let c = Dispatch::stacked_matmul(flat(a, [m, k]), flat(b, [k, n]));
    let mut dims = left;
    dims[D - 1] = n;
    Tensor::<3>::from_dispatch(c).reshape(dims)
}

/// Batch norm with the batch's own statistics: the result, and each channel's mean and population variance.
pub fn batch_norm_train(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> (Tensor<4>, Tensor<1>, Tensor<1>) {
    if !has_cpu_kernels(&x.device(), x.dtype(), gamma.dtype()) {
        let result = burn::tensor::module::batch_norm_train(x, gamma, beta, epsilon);
        return (result.output, result.mean, result.variance);
    }
    let (y, mean, variance) = Dispatch::channel_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        epsilon,
    );
    (
        Tensor::from_dispatch(y),
        Tensor::from_dispatch(mean),
        Tensor::from_dispatch(variance),
    )
}

/// Batch norm with fixed statistics, one value of each per channel, and an activation behind it.
pub fn fixed_batch_norm(
    x: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    [mean, variance]: [Tensor<1>; 2],
    epsilon: f64,
    activation: Activation,
) -> Tensor<4> {
    if !has_cpu_kernels(&x.device(), x.dtype(), gamma.dtype()) {
        let channels = gamma.dims()[0];
        let along = |values: Tensor<1>| values.reshape([1, channels, 1, 1]);
        let scale = gamma / (variance + epsilon).sqrt();
        let y = (x - along(mean)) * along(scale) + along(beta);
        return stock(y, activation);
    }
    Tensor::from_dispatch(Dispatch::fixed_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        mean.into_dispatch(),
        variance.into_dispatch(),
        epsilon,
        activation,
    ))
}

/// An activation.
pub fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    if activation == Activation::Identity {
        return x;
    }
    if !has_cpu_kernels(&x.device(), x.dtype(), x.dtype()) {
        return stock(x, activation);
    }
    Tensor::from_dispatch(Dispatch::join(x.into_dispatch(), Skip::Zero, activation))
}

/// An activation of a sum: where a skip connection comes back. Tensors of the same size.
pub fn join<const D: usize>(x: Tensor<D>, skip: Tensor<D>, activation: Activation) -> Tensor<D> {
    // The gradient of one that keeps its input would have to keep the sum.
    let plain = !has_cpu_kernels(&x.device(), x.dtype(), skip.dtype())
        || x.dims() != skip.dims()
        || activation.keeps_input();
    if plain {
        return activate(x + skip, activation);
    }
    Tensor::from_dispatch(Dispatch::join(
        x.into_dispatch(),
        Skip::Values(skip.into_dispatch()),
        activation,
    ))
}

/// Every channel of every image times its own value: `gate` is [images, channels, 1, 1].
pub fn gate(x: Tensor<4>, gate: Tensor<4>) -> Tensor<4> {
    let [images, channels, _, _] = x.dims();
    if !has_cpu_kernels(&x.device(), x.dtype(), gate.dtype())
        || gate.dims() != [images, channels, 1, 1]
    {
        return x * gate;
    }
    let gate = gate.reshape([images, channels]);
    Tensor::from_dispatch(Dispatch::gate_planes(
        x.into_dispatch(),
        gate.into_dispatch(),
    ))
}

/// The activation as Burn has it.
fn stock<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    use burn::tensor::activation::{hard_sigmoid, hard_swish, relu, relu6};
    match activation {
        Activation::Identity => x,
        Activation::Relu => relu(x),
        Activation::Relu6 => relu6(x),
        Activation::HardSigmoid => hard_sigmoid(x, 1.0 / 6.0, 0.5),
        Activation::HardSwish => hard_swish(x),
    }
}

/// Layer norm over the last axis.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    if !has_cpu_kernels(&x.device(), x.dtype(), gamma.dtype()) {
        return burn::tensor::module::layer_norm(x, gamma, Some(beta), epsilon);
    }
    let dims = x.dims();
    let (y, _, _) = Dispatch::row_norm(
        rows(x).into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        epsilon,
    );
    Tensor::<2>::from_dispatch(y).reshape(dims)
}

/// Softmax over the last axis.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !has_cpu_kernels(&x.device(), x.dtype(), x.dtype()) {
        return burn::tensor::activation::softmax(x, D - 1);
    }
    let dims = x.dims();
    Tensor::<2>::from_dispatch(Dispatch::row_softmax(rows(x).into_dispatch())).reshape(dims)
}

/// `x Phi(x)`, with the error function itself rather than a fit by tanh.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !has_cpu_kernels(&x.device(), x.dtype(), x.dtype()) {
        return burn::tensor::activation::gelu(x);
    }
    Tensor::from_dispatch(Dispatch::exact_gelu(x.into_dispatch()))
}

/// All axes but the last as one.
fn rows<const D: usize>(x: Tensor<D>) -> Tensor<2> {
    let dims = x.dims();
    x.reshape([dims[..D - 1].iter().product::<usize>(), dims[D - 1]])
}

fn has_cpu_kernels(device: &Device, x: DType, w: DType) -> bool {
    *device == Device::flex() && x == DType::F32 && w == DType::F32
}

/// Whether a product has a kernel; counted where a GPU has none for the number type.
fn has_kernels(device: &Device, x: DType, w: DType) -> bool {
    let gpu = is_gpu(device);
    let has = (gpu || *device == Device::flex()) && x == DType::F32 && w == DType::F32;
    if gpu && !has {
        GPU_FALLBACKS.fetch_add(1, Ordering::Relaxed);
    }
    has
}

#[cfg(feature = "gpu")]
fn is_gpu(device: &Device) -> bool {
    use burn::backend::DispatchDevice;
    matches!(
        device.clone().inner().as_dispatch(),
        DispatchDevice::Cube(_)
    )
}

#[cfg(not(feature = "gpu"))]
fn is_gpu(_: &Device) -> bool {
    false
}

/// Products on a GPU that were put together from Burn's own operations.
static GPU_FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// How many products on a GPU had no kernel for their number type and were put together from Burn's operations.
pub fn gpu_fallbacks() -> u64 {
    GPU_FALLBACKS.load(Ordering::Relaxed)
}

/// Tiles are the CPU's: what another device cannot do is refused rather than computed otherwise.
fn expect_precision(precision: Precision, device: &Device) -> Result<(), KernelError> {
    precision.check()?;
    if precision != Precision::F32 && *device != Device::flex() {
        return Err(KernelError::Precision {
            precision,
            why: "the tensors are not on the CPU".into(),
        });
    }
    Ok(())
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
    // Not `arange`: Burn's fusing layer counts from -1, which no unsigned number is.
    let places = TensorData::new((0..32).collect::<Vec<u32>>(), [1, 1, 32]);
    let bits = Tensor::<3, Int>::from_data(places, (&mask.device(), DType::U32));
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

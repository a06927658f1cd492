//! The layers that families share. A layer here is a unit of [`Grain::Layer`]: a convolution or linear layer with what
//! follows it up to the next one or a join.

use burn::module::{Initializer, Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig, MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::module::{adaptive_avg_pool2d, interpolate};
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Tensor};

pub use kernels::Activation;

use crate::fold::fold_batch_norm;
use crate::unit::{Grain, Tap, Unit};

/// The max-pool that ends a layer; both halve the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// 2x2.
    Two,
    /// 3x3 with padding 1.
    Three,
}

/// The zeros around a convolution's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Half the kernel on every side, which keeps the size at stride 1.
    Half,
    /// TensorFlow's "same": as many outputs as strides fit into the input, the odd zero behind.
    Same,
    /// None.
    Valid,
}

/// Shape of a [`ConvNormAct`].
#[derive(Debug, Clone)]
pub struct ConvNormActConfig {
    /// Input and output channels.
    pub channels: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Stride.
    pub stride: usize,
    /// Groups of the convolution.
    pub groups: usize,
    /// Epsilon of the batch norm; without one there is no norm.
    pub epsilon: Option<f64>,
    /// What follows the norm.
    pub activation: Activation,
    /// Whether the convolution has a bias.
    pub bias: bool,
    /// The max-pool that ends the layer.
    pub pool: Option<Pool>,
    /// The zeros around the input.
    pub padding: Padding,
}

impl ConvNormActConfig {
    /// A layer with a square kernel, ReLU and no pooling.
    pub fn new(channels: [usize; 2], kernel: usize, stride: usize) -> Self {
        Self {
            channels,
            kernel: [kernel; 2],
            stride,
            groups: 1,
            epsilon: Some(1e-5),
            activation: Activation::Relu,
            bias: false,
            pool: None,
            padding: Padding::Half,
        }
    }

    /// The same with this epsilon in the norm.
    pub fn with_epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = Some(epsilon);
        self
    }

    /// The same with a bias in place of the norm.
    pub fn without_norm(mut self) -> Self {
        self.epsilon = None;
        self.bias = true;
        self
    }

    /// The same with this activation.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// The same with nothing after the norm: what follows is a join.
    pub fn linear(mut self) -> Self {
        self.activation = Activation::Identity;
        self
    }

    /// The same in `groups` groups of channels.
    pub fn grouped(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }

    /// The same with TensorFlow's "same" padding, or without.
    pub fn with_same_padding(mut self, same: bool) -> Self {
        self.padding = if same { Padding::Same } else { Padding::Half };
        self
    }

    /// The same with this padding.
    pub fn with_padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// The same with a kernel of this height and width.
    pub fn with_kernel(mut self, kernel: [usize; 2]) -> Self {
        self.kernel = kernel;
        self
    }

    /// The same with a bias in the convolution.
    pub fn biased(mut self) -> Self {
        self.bias = true;
        self
    }

    /// Initializes the layer.
    pub fn init(&self, device: &Device) -> ConvNormAct {
        let [rows, columns] = self.kernel.map(|side| side / 2);
        let padding = match self.padding {
            Padding::Half => PaddingConfig2d::Explicit(rows, columns, rows, columns),
            Padding::Same => PaddingConfig2d::Same,
            Padding::Valid => PaddingConfig2d::Valid,
        };
        ConvNormAct {
            conv: Conv2dConfig::new(self.channels, self.kernel)
                .with_stride([self.stride; 2])
                .with_groups(self.groups)
                .with_padding(padding)
                .with_bias(self.bias)
                .init(device),
            norm: self.epsilon.map(|epsilon| {
                BatchNormConfig::new(self.channels[1])
                    .with_epsilon(epsilon)
                    .init(device)
            }),
            pool: self.pool.map(|pool| {
                let (side, pad) = match pool {
                    Pool::Two => (2, 0),
                    Pool::Three => (3, 1),
                };
                MaxPool2dConfig::new([side; 2])
                    .with_strides([2, 2])
                    .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
                    .init()
            }),
            activation: self.activation,
        }
    }
}

/// Convolution, batch norm, activation and, in a stem, the pooling behind them.
#[derive(Module, Debug)]
pub struct ConvNormAct {
    conv: Conv2d,
    norm: Option<BatchNorm>,
    pool: Option<MaxPool2d>,
    #[module(skip)]
    activation: Activation,
}

/// Batch norm as Burn's layer has it, and an activation, in the kernels' passes.
pub(crate) fn norm_act(norm: &BatchNorm, x: Tensor<4>, activation: Activation) -> Tensor<4> {
    let (gamma, beta) = (norm.gamma.val(), norm.beta.val());
    if !(x.device().is_autodiff() && norm.training.is_enabled()) {
        let device = x.device();
        let statistics =
            [&norm.running_mean, &norm.running_var].map(|state| state.value().to_device(&device));
        return kernels::fixed_batch_norm(x, [gamma, beta], statistics, norm.epsilon, activation);
    }
    let (y, mean, variance) = kernels::batch_norm_train(x, gamma, beta, norm.epsilon);
    for (state, value) in [(&norm.running_mean, mean), (&norm.running_var, variance)] {
        let device = value.device();
        let old = state.value_sync().to_device(&device);
        let new = old.mul_scalar(1.0 - norm.momentum) + value.detach().mul_scalar(norm.momentum);
        state.update(new.detach());
    }
    kernels::activate(y, activation)
}

impl Unit<Tensor<4>> for ConvNormAct {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let mut x = tap.unit("conv", &self.conv, x);
        // One pass does both, unless someone wants to see what lies between.
        if T::MARKS {
            if let Some(norm) = &self.norm {
                x = norm_act(norm, x, Activation::Identity);
            }
            tap.mark("norm", &x);
            x = kernels::activate(x, self.activation);
            tap.mark("act", &x);
        } else {
            x = match &self.norm {
                Some(norm) => norm_act(norm, x, self.activation),
                None => kernels::activate(x, self.activation),
            };
        }
        match &self.pool {
            Some(pool) => {
                let x = pool.forward(x);
                tap.mark("pool", &x);
                x
            }
            None => x,
        }
    }

    fn norm(&self) -> Option<&BatchNorm> {
        self.norm.as_ref()
    }
}

impl ConvNormAct {
    /// The layer with this epsilon in its batch norm, where it has one.
    pub(crate) fn with_epsilon(mut self, epsilon: f64) -> Self {
        if let Some(norm) = &mut self.norm {
            norm.epsilon = epsilon;
        }
        self
    }

    /// The layer with its batch norm folded into the convolution.
    pub fn fold(mut self) -> Self {
        self.conv = fold_batch_norm(self.conv, self.norm.take());
        self
    }
}

/// The checkpoint's names of a [`ConvNormAct`].
pub(crate) struct ConvNormKeys {
    layer: String,
    conv: String,
    norm: String,
}

impl ConvNormKeys {
    /// The layer has the convolution's name, and its norm is beside it.
    pub(crate) fn beside(conv: &str, norm: &str) -> Self {
        Self {
            layer: conv.to_owned(),
            conv: conv.to_owned(),
            norm: norm.to_owned(),
        }
    }

    /// A sequence of the convolution, which is number 0, and the norm, which is number 1.
    pub(crate) fn numbered(layer: &str) -> Self {
        Self::within(layer, "0", "1")
    }

    /// A layer with the convolution and the norm by name.
    pub(crate) fn within(layer: &str, conv: &str, norm: &str) -> Self {
        Self {
            layer: layer.to_owned(),
            conv: format!("{layer}.{conv}"),
            norm: format!("{layer}.{norm}"),
        }
    }

    /// A layer without a norm.
    pub(crate) fn bare(conv: &str) -> Self {
        Self::beside(conv, conv)
    }

    /// The checkpoint's key of what is called `part` in the layer.
    pub(crate) fn key(&self, part: &[&str]) -> String {
        match part {
            ["conv", rest @ ..] => join(&self.conv, rest),
            ["norm", "gamma"] => join(&self.norm, &["weight"]),
            ["norm", "beta"] => join(&self.norm, &["bias"]),
            ["norm", rest @ ..] => join(&self.norm, rest),
            rest => join(&self.layer, rest),
        }
    }
}

/// Names behind a name, joined by dots.
pub(crate) fn join(first: &str, rest: &[&str]) -> String {
    let mut joined = first.to_owned();
    for name in rest {
        joined.push('.');
        joined.push_str(name);
    }
    joined
}

/// The mean of each channel, [N, C, 1, 1].
pub(crate) fn global_average(x: Tensor<4>) -> Tensor<4> {
    adaptive_avg_pool2d(x, [1, 1])
}

/// What a convolution predicts in `values` channels for each anchor: [N, anchors, `values`], by row, column and shape of the
/// anchor.
pub(crate) fn by_anchor(y: Tensor<4>, values: usize) -> Tensor<3> {
    let [images, channels, height, width] = y.dims();
    y.reshape([images, channels / values, values, height, width])
        .permute([0, 3, 4, 1, 2])
        .reshape([images, height * width * channels / values, values])
}

/// The nearest values of an image of another size.
pub(crate) fn nearest(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let options = InterpolateOptions::new(InterpolateMode::Nearest).with_output_size(size);
    interpolate(x, options)
}

/// Layer norm over the last axis, under the checkpoint's names.
#[derive(Module, Debug)]
pub struct LayerNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    epsilon: f64,
}

impl LayerNorm {
    /// Over `width` values.
    pub fn init(width: usize, epsilon: f64, device: &Device) -> Self {
        Self {
            weight: Initializer::Ones.init([width], device),
            bias: Initializer::Zeros.init([width], device),
            epsilon,
        }
    }

    /// The normed tokens.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::layer_norm(x, self.weight.val(), self.bias.val(), self.epsilon)
    }
}

/// A linear layer and GELU.
#[derive(Module, Debug)]
pub struct LinearGelu {
    linear: Linear,
}

impl LinearGelu {
    /// From `inputs` to `outputs`.
    pub(crate) fn init(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self {
            linear: LinearConfig::new(inputs, outputs).init(device),
        }
    }
}

impl Unit<Tensor<3>> for LinearGelu {
    type Out = Tensor<3>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<3>, tap: &mut T) -> Tensor<3> {
        kernels::gelu(tap.unit("linear", &self.linear, x))
    }
}

/// Attention of queries to keys and values, each [N, tokens, width], in `heads` parts of the width. `mask` is added to the
/// products, [tokens, tokens of the keys].
pub(crate) fn attend(
    [q, k, v]: [Tensor<3>; 3],
    heads: usize,
    mask: Option<Tensor<2>>,
) -> Tensor<3> {
    let [batch, tokens, width] = q.dims();
    let depth = width / heads;
    // [batch, heads, tokens, depth]
    let by_head = |x: Tensor<3>| {
        let [_, tokens, _] = x.dims();
        x.reshape([batch, tokens, heads, depth]).swap_dims(1, 2)
    };
    let q = by_head(q).mul_scalar((depth as f64).powf(-0.5));
    let mut products = kernels::matmul(q, by_head(k).swap_dims(2, 3));
    if let Some(mask) = mask {
        products = products + mask.unsqueeze();
    }
    kernels::matmul(kernels::softmax(products), by_head(v))
        .swap_dims(1, 2)
        .reshape([batch, tokens, width])
}

/// Norm over groups of channels and all positions, under the checkpoint's names.
#[derive(Module, Debug)]
pub struct GroupNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    groups: usize,
    epsilon: f64,
}

impl GroupNorm {
    /// Over `channels` in `groups`.
    pub fn init(channels: usize, groups: usize, epsilon: f64, device: &Device) -> Self {
        assert_eq!(channels % groups, 0, "groups are equally large");
        Self {
            weight: Initializer::Ones.init([channels], device),
            bias: Initializer::Zeros.init([channels], device),
            groups,
            epsilon,
        }
    }

    /// The normed image. Each group is a row of a layer norm; scale and shift are the channels'.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let shape = x.dims();
        let [images, channels, height, width] = shape;
        let (rows, columns) = (
            images * self.groups,
            channels / self.groups * height * width,
        );
        let device = x.device();
        let (ones, zeros) = (
            Tensor::ones([columns], &device),
            Tensor::zeros([columns], &device),
        );
        let y = kernels::layer_norm(x.reshape([rows, columns]), ones, zeros, self.epsilon);
        let along = |values: &Param<Tensor<1>>| values.val().reshape([1, channels, 1, 1]);
        y.reshape(shape) * along(&self.weight) + along(&self.bias)
    }
}

/// Global average pooling and a linear classifier.
#[derive(Module, Debug)]
pub struct PoolLinear {
    pool: AdaptiveAvgPool2d,
    linear: Linear,
}

impl PoolLinear {
    /// From `channels` to `classes`.
    pub fn init(channels: usize, classes: usize, device: &Device) -> Self {
        Self {
            pool: AdaptiveAvgPool2dConfig::new([1, 1]).init(),
            linear: LinearConfig::new(channels, classes).init(device),
        }
    }

    /// For so many classes.
    pub(crate) fn with_classes(self, classes: usize) -> Self {
        Self {
            linear: of_classes(&self.linear, classes),
            ..self
        }
    }
}

/// A classifier in the place of another: as many inputs, on the same device, and so many classes.
pub(crate) fn of_classes(linear: &Linear, classes: usize) -> Linear {
    let inputs = linear.weight.lazy_shape()[0];
    LinearConfig::new(inputs, classes)
        .with_bias(linear.bias.is_some())
        .init(&linear.weight.lazy_device())
}

impl Unit<Tensor<4>> for PoolLinear {
    type Out = Tensor<2>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<2> {
        let x = self.pool.forward(x);
        tap.mark("avgpool", &x);
        let x = x.flatten::<2>(1, 3);
        tap.mark("flatten", &x);
        tap.unit("linear", &self.linear, x)
    }
}

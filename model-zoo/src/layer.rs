//! The layers that families share. A layer here is a unit of [`Grain::Layer`]: a convolution or linear layer with what
//! follows it up to the next one or a join.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig, MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, activation};

use crate::fold::fold_batch_norm;
use crate::unit::{Grain, Tap, Unit};

/// What follows a convolution and its norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// max(x, 0).
    Relu,
}

impl Activation {
    fn apply(self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Activation::Identity => x,
            Activation::Relu => activation::relu(x),
        }
    }
}

/// The max-pool that ends a layer; both halve the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// 2x2.
    Two,
    /// 3x3 with padding 1.
    Three,
}

/// Shape of a [`ConvNormAct`].
#[derive(Debug, Clone)]
pub struct ConvNormActConfig {
    /// Input and output channels.
    pub channels: [usize; 2],
    /// Side of the square kernel; padding keeps the size at stride 1.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Groups.
    pub groups: usize,
    /// What follows the norm.
    pub activation: Activation,
    /// Whether the convolution has a bias.
    pub bias: bool,
    /// Whether a batch norm follows the convolution.
    pub norm: bool,
    /// The max-pool that ends the layer.
    pub pool: Option<Pool>,
}

impl ConvNormActConfig {
    /// A layer with ReLU and no pooling.
    pub fn new(channels: [usize; 2], kernel: usize, stride: usize) -> Self {
        Self {
            channels,
            kernel,
            stride,
            groups: 1,
            activation: Activation::Relu,
            bias: false,
            norm: true,
            pool: None,
        }
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

    /// The same with a bias in the convolution.
    pub fn biased(mut self) -> Self {
        self.bias = true;
        self
    }

    /// Initializes the layer.
    pub fn init(&self, device: &Device) -> ConvNormAct {
        let pad = self.kernel / 2;
        ConvNormAct {
            conv: Conv2dConfig::new(self.channels, [self.kernel; 2])
                .with_stride([self.stride; 2])
                .with_groups(self.groups)
                .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
                .with_bias(self.bias)
                .init(device),
            norm: self
                .norm
                .then(|| BatchNormConfig::new(self.channels[1]).init(device)),
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

/// Batch norm as Burn's layer has it, with the kernels' passes while training.
pub(crate) fn batch_norm(norm: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    if !(x.device().is_autodiff() && norm.training.is_enabled()) {
        return norm.forward(x);
    }
    let (y, mean, variance) =
        kernels::batch_norm_train(x, norm.gamma.val(), norm.beta.val(), norm.epsilon);
    for (state, value) in [(&norm.running_mean, mean), (&norm.running_var, variance)] {
        let device = value.device();
        let old = state.value_sync().to_device(&device);
        let new = old.mul_scalar(1.0 - norm.momentum) + value.detach().mul_scalar(norm.momentum);
        state.update(new.detach());
    }
    y
}

impl Unit<Tensor<4>> for ConvNormAct {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let mut x = tap.unit("conv", &self.conv, x);
        if let Some(norm) = &self.norm {
            x = batch_norm(norm, x);
        }
        tap.mark("norm", &x);
        let x = self.activation.apply(x);
        tap.mark("act", &x);
        match &self.pool {
            Some(pool) => {
                let x = pool.forward(x);
                tap.mark("pool", &x);
                x
            }
            None => x,
        }
    }
}

impl ConvNormAct {
    /// The layer with its batch norm folded into the convolution.
    pub fn fold(mut self) -> Self {
        self.conv = fold_batch_norm(self.conv, self.norm.take());
        self
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
}

impl Unit<Tensor<4>> for PoolLinear {
    type Out = Tensor<2>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<2> {
        let x = self.pool.forward(x);
        tap.mark("avgpool", &x);
        tap.unit("linear", &self.linear, x.flatten(1, 3))
    }
}

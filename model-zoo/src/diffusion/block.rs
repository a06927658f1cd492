//! What the UNet and the autoencoder of latent diffusion are both built of, as diffusers defines it: norms are over groups,
//! SiLU stands before a convolution, and names are the checkpoint's.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};

use crate::layer::{GroupNorm, nearest};
use crate::unit::{Grain, Tap, Unit};

/// A residual block; the UNet's add the time between their convolutions.
#[derive(Module, Debug)]
pub struct ResNetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Unit<(Tensor<4>, Option<Tensor<2>>)> for ResNetBlock {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, (x, time): (Tensor<4>, Option<Tensor<2>>), tap: &mut T) -> Tensor<4> {
        let y = silu(self.norm1.forward(x.clone()));
        let mut y = tap.unit("conv1", &self.conv1, y);
        if let Some(projection) = &self.time_emb_proj {
            let time = time.expect("a block that projects the time is given it");
            let time = tap.unit("time_emb_proj", projection, silu(time));
            let [images, channels] = time.dims();
            y = y + time.reshape([images, channels, 1, 1]);
        }
        let y = silu(self.norm2.forward(y));
        let y = tap.unit("conv2", &self.conv2, y);
        let skip = match &self.conv_shortcut {
            Some(shortcut) => tap.unit("conv_shortcut", shortcut, x),
            None => x,
        };
        skip + y
    }
}

/// How an image changes its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Half the size, a zero on every side: the UNet.
    Halved,
    /// Half the size, a zero below and on the right alone: the autoencoder.
    HalvedBehind,
    /// Twice the size.
    Doubled,
}

/// Halves an image by a convolution, or doubles it before one.
#[derive(Module, Debug)]
pub struct Sampler {
    conv: Conv2d,
    doubles: bool,
}

impl Unit<Tensor<4>> for Sampler {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, mut x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        if self.doubles {
            let [_, _, height, width] = x.dims();
            x = nearest(x, [2 * height, 2 * width]);
        }
        tap.unit("conv", &self.conv, x)
    }
}

/// The last norm and convolution.
#[derive(Module, Debug)]
pub struct Out {
    norm: GroupNorm,
    conv: Conv2d,
}

impl Unit<Tensor<4>> for Out {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let x = self.norm.forward(x);
        tap.mark("norm", &x);
        tap.unit("conv", &self.conv, silu(x))
    }
}

/// Builds the parts of one network, whose norms are alike.
pub(crate) struct Parts<'a> {
    /// Groups of the norms.
    pub(crate) groups: usize,
    /// Added to the variance in them.
    pub(crate) epsilon: f64,
    pub(crate) device: &'a Device,
}

impl Parts<'_> {
    /// A convolution that keeps the size.
    pub(crate) fn conv(&self, channels: [usize; 2], side: usize) -> Conv2d {
        let pad = side / 2;
        Conv2dConfig::new(channels, [side; 2])
            .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
            .init(self.device)
    }

    pub(crate) fn linear(&self, from: usize, to: usize) -> Linear {
        LinearConfig::new(from, to).init(self.device)
    }

    pub(crate) fn norm(&self, channels: usize) -> GroupNorm {
        GroupNorm::init(channels, self.groups, self.epsilon, self.device)
    }

    /// A block that projects a time of this width, or none.
    pub(crate) fn resnet(&self, from: usize, to: usize, time: Option<usize>) -> ResNetBlock {
        ResNetBlock {
            norm1: self.norm(from),
            conv1: self.conv([from, to], 3),
            time_emb_proj: time.map(|width| self.linear(width, to)),
            norm2: self.norm(to),
            conv2: self.conv([to, to], 3),
            conv_shortcut: (from != to).then(|| self.conv([from, to], 1)),
        }
    }

    pub(crate) fn sampler(&self, width: usize, change: Change) -> Sampler {
        let (stride, before) = match change {
            Change::Halved => (2, 1),
            Change::HalvedBehind => (2, 0),
            Change::Doubled => (1, 1),
        };
        Sampler {
            conv: Conv2dConfig::new([width; 2], [3; 2])
                .with_stride([stride; 2])
                .with_padding(PaddingConfig2d::Explicit(before, before, 1, 1))
                .init(self.device),
            doubles: change == Change::Doubled,
        }
    }

    pub(crate) fn out(&self, from: usize, to: usize) -> Out {
        Out {
            norm: self.norm(from),
            conv: self.conv([from, to], 3),
        }
    }
}

//! The UNet of latent diffusion (Rombach et al. 2021, arXiv 2112.10752) as diffusers defines it for Stable Diffusion 2
//! (`UNet2DConditionModel` with linear projections).
//!
//! A ResNet block with its time projection is one block unit; what a skip carries is part of the next unit's input. A
//! transformer's self-attention, cross-attention and gated perceptron are a block unit each, with the norm before and the
//! sum after. Names are the checkpoint's; a sub-block with its norm is one module here (`attn1.norm` for `norm1`), and so
//! is a linear layer with what follows it, which [`key`] undoes.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor, TensorData};

use crate::diffusion::block::{Change, Out, Parts, ResNetBlock, Sampler};
use crate::diffusion::sampler::Process;
use crate::layer::{GroupNorm, LayerNorm, attend};
use crate::modality::{Modality, Noise};
use crate::unit::{Grain, Network, Tap, Unit};

/// Added to the variance in most norms.
const EPSILON: f64 = 1e-5;

/// The same in the group norm before a transformer.
const TRANSFORMER_EPSILON: f64 = 1e-6;

/// Width of the time embedding over that of the first level.
const TIME_EXPANSION: usize = 4;

/// Width of the perceptron over that of the tokens.
const EXPANSION: usize = 4;

/// The longest wave of the time's sinusoids.
const MAX_PERIOD: f64 = 10_000.0;

/// One network of the family: a row of the catalog's table.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Channels of the latent, or of the image where there is none.
    pub latent: usize,
    /// Channels of each level; between levels the image is halved.
    pub widths: &'static [usize],
    /// Attention heads of each level.
    pub heads: &'static [usize],
    /// Whether a level has transformers.
    pub attends: &'static [bool],
    /// ResNet blocks of a level on the way down; one more on the way up.
    pub depth: usize,
    /// Groups of the norms.
    pub groups: usize,
    /// Tokens of the context and their width; without one, tokens attend to each other alone.
    pub context: Option<[usize; 2]>,
    /// What it was trained to undo.
    pub process: Process,
}

/// A UNet.
#[derive(Module, Debug)]
pub struct UNet {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    down_blocks: Vec<Level>,
    mid_block: Level,
    up_blocks: Vec<Level>,
    out: Out,
}

/// Two linear layers that make the sinusoids of a time step what all blocks read.
#[derive(Module, Debug)]
pub struct TimeEmbedding {
    linear_1: LinearSilu,
    linear_2: Linear,
}

impl Unit<Tensor<2>> for TimeEmbedding {
    type Out = Tensor<2>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, x: Tensor<2>, tap: &mut T) -> Tensor<2> {
        let x = tap.unit("linear_1", &self.linear_1, x);
        tap.unit("linear_2", &self.linear_2, x)
    }
}

/// A linear layer and SiLU.
#[derive(Module, Debug)]
pub struct LinearSilu {
    linear: Linear,
}

impl Unit<Tensor<2>> for LinearSilu {
    type Out = Tensor<2>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<2>, tap: &mut T) -> Tensor<2> {
        silu(tap.unit("linear", &self.linear, x))
    }
}

/// A level on the way down or up, or the middle: ResNet blocks, a transformer behind each where the level has them, and
/// what changes the size.
#[derive(Module, Debug)]
struct Level {
    resnets: Vec<ResNetBlock>,
    attentions: Vec<Transformer>,
    downsamplers: Vec<Sampler>,
    upsamplers: Vec<Sampler>,
}

/// Transformer blocks over the places of an image, between two projections.
#[derive(Module, Debug)]
struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

#[derive(Module, Debug)]
struct TransformerBlock {
    attn1: Attention,
    attn2: Option<Attention>,
    ff: Perceptron,
}

impl Transformer {
    /// Not a unit of its own: its parts are.
    fn run<T: Tap>(
        &self,
        path: &str,
        x: Tensor<4>,
        context: Option<&Tensor<3>>,
        tap: &mut T,
    ) -> Tensor<4> {
        let [images, channels, height, width] = x.dims();
        let tokens = self
            .norm
            .forward(x.clone())
            .flatten::<3>(2, 3)
            .swap_dims(1, 2);
        let mut y = tap.unit(&format!("{path}.proj_in"), &self.proj_in, tokens);
        for (place, block) in self.transformer_blocks.iter().enumerate() {
            let path = format!("{path}.transformer_blocks.{place}");
            y = tap.unit(&format!("{path}.attn1"), &block.attn1, (y, None));
            if let Some(attention) = &block.attn2 {
                let context = context.expect("a network with cross-attention is given a context");
                let input = (y, Some(context.clone()));
                y = tap.unit(&format!("{path}.attn2"), attention, input);
            }
            y = tap.unit(&format!("{path}.ff"), &block.ff, y);
        }
        let y = tap.unit(&format!("{path}.proj_out"), &self.proj_out, y);
        let y = x + y.swap_dims(1, 2).reshape([images, channels, height, width]);
        tap.mark(path, &y);
        y
    }
}

/// Attention of tokens to themselves, or to a context, normed before and added to what it was given.
#[derive(Module, Debug)]
pub struct Attention {
    norm: LayerNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

impl Unit<(Tensor<3>, Option<Tensor<3>>)> for Attention {
    type Out = Tensor<3>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, (x, context): (Tensor<3>, Option<Tensor<3>>), tap: &mut T) -> Tensor<3> {
        let y = self.norm.forward(x.clone());
        let context = context.unwrap_or_else(|| y.clone());
        let q = tap.unit("to_q", &self.to_q, y);
        let k = tap.unit("to_k", &self.to_k, context.clone());
        let v = tap.unit("to_v", &self.to_v, context);
        let y = attend([q, k, v], self.heads, None);
        x + tap.unit("to_out", &self.to_out, y)
    }
}

/// A perceptron with a gate, normed before and added to what it was given.
#[derive(Module, Debug)]
pub struct Perceptron {
    norm: LayerNorm,
    proj: LinearGate,
    out: Linear,
}

impl Unit<Tensor<3>> for Perceptron {
    type Out = Tensor<3>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, x: Tensor<3>, tap: &mut T) -> Tensor<3> {
        let y = self.norm.forward(x.clone());
        let y = tap.unit("proj", &self.proj, y);
        x + tap.unit("out", &self.out, y)
    }
}

/// A linear layer whose second half, through GELU, gates the first (GEGLU).
#[derive(Module, Debug)]
pub struct LinearGate {
    linear: Linear,
}

impl Unit<Tensor<3>> for LinearGate {
    type Out = Tensor<3>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<3>, tap: &mut T) -> Tensor<3> {
        let y = tap.unit("linear", &self.linear, x);
        let half = y.dims()[2] / 2;
        let gate = kernels::gelu(y.clone().narrow(2, half, half));
        y.narrow(2, 0, half) * gate
    }
}

/// Cosines, then sines, of the time steps at `width / 2` frequencies from 1 down to almost `1 / MAX_PERIOD`.
///
/// Exponent, frequency and angle are each rounded to f32, as the reference rounds them: at a late step that is worth up to
/// 6e-5, which trained weights have seen.
fn sinusoids(time: Tensor<1>, width: usize) -> Tensor<2> {
    let (half, device) = (width / 2, time.device());
    let frequency = |i: usize| {
        let exponent = -MAX_PERIOD.ln() as f32 * i as f32 / half as f32;
        f64::from(exponent).exp() as f32
    };
    let steps: Vec<f32> = time.into_data().iter::<f32>().collect();
    let mut values = Vec::with_capacity(steps.len() * 2 * half);
    for step in &steps {
        let angles = (0..half).map(|i| f64::from(*step * frequency(i)));
        values.extend(angles.clone().map(|angle| angle.cos() as f32));
        values.extend(angles.map(|angle| angle.sin() as f32));
    }
    Tensor::from_data(TensorData::new(values, [steps.len(), 2 * half]), &device)
}

/// Builds the levels of one network.
struct Build<'a> {
    size: &'a Size,
    parts: Parts<'a>,
}

impl Build<'_> {
    fn time_width(&self) -> usize {
        TIME_EXPANSION * self.size.widths[0]
    }

    fn resnet(&self, from: usize, to: usize) -> ResNetBlock {
        self.parts.resnet(from, to, Some(self.time_width()))
    }

    fn transformer(&self, width: usize, heads: usize) -> Transformer {
        let Parts { groups, device, .. } = self.parts;
        let linear = |from, to| self.parts.linear(from, to);
        let norm = || LayerNorm::init(width, EPSILON, device);
        let attention = |context: usize| {
            let plain = |from| LinearConfig::new(from, width).with_bias(false).init(device);
            Attention {
                norm: norm(),
                to_q: plain(width),
                to_k: plain(context),
                to_v: plain(context),
                to_out: linear(width, width),
                heads,
            }
        };
        Transformer {
            norm: GroupNorm::init(width, groups, TRANSFORMER_EPSILON, device),
            proj_in: linear(width, width),
            transformer_blocks: vec![TransformerBlock {
                attn1: attention(width),
                attn2: self.size.context.map(|[_, width]| attention(width)),
                ff: Perceptron {
                    norm: norm(),
                    proj: LinearGate {
                        linear: linear(width, 2 * EXPANSION * width),
                    },
                    out: linear(EXPANSION * width, width),
                },
            }],
            proj_out: linear(width, width),
        }
    }

    /// The transformers of a level, one for each of its `blocks`.
    fn attentions(&self, level: usize, blocks: usize) -> Vec<Transformer> {
        let Size {
            widths,
            heads,
            attends,
            ..
        } = self.size;
        let count = if attends[level] { blocks } else { 0 };
        (0..count)
            .map(|_| self.transformer(widths[level], heads[level]))
            .collect()
    }

    fn down(&self, level: usize) -> Level {
        let Size { widths, depth, .. } = *self.size;
        let (from, to) = (widths[level.saturating_sub(1)], widths[level]);
        let last = level + 1 == widths.len();
        Level {
            resnets: (0..depth)
                .map(|place| self.resnet(if place == 0 { from } else { to }, to))
                .collect(),
            attentions: self.attentions(level, depth),
            downsamplers: (!last)
                .then(|| self.parts.sampler(to, Change::Halved))
                .into_iter()
                .collect(),
            upsamplers: Vec::new(),
        }
    }

    fn middle(&self) -> Level {
        let Size { widths, heads, .. } = *self.size;
        let level = widths.len() - 1;
        let width = widths[level];
        Level {
            resnets: vec![self.resnet(width, width), self.resnet(width, width)],
            attentions: vec![self.transformer(width, heads[level])],
            downsamplers: Vec::new(),
            upsamplers: Vec::new(),
        }
    }

    /// A level on the way up: its blocks also take what the way down left, the last one of them what the finer level's
    /// downsampler (or the first convolution) gave.
    fn up(&self, level: usize) -> Level {
        let Size { widths, depth, .. } = *self.size;
        let coarser = widths[(level + 1).min(widths.len() - 1)];
        let (width, finer) = (widths[level], widths[level.saturating_sub(1)]);
        Level {
            resnets: (0..=depth)
                .map(|place| {
                    let from = if place == 0 { coarser } else { width };
                    let skip = if place == depth { finer } else { width };
                    self.resnet(from + skip, width)
                })
                .collect(),
            attentions: self.attentions(level, depth + 1),
            downsamplers: Vec::new(),
            upsamplers: (level > 0)
                .then(|| self.parts.sampler(width, Change::Doubled))
                .into_iter()
                .collect(),
        }
    }
}

impl Size {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> UNet {
        let parts = Parts {
            groups: self.groups,
            epsilon: EPSILON,
            device,
        };
        let build = Build { size: self, parts };
        let (first, time) = (self.widths[0], build.time_width());
        let levels = self.widths.len();
        UNet {
            conv_in: build.parts.conv([self.latent, first], 3),
            time_embedding: TimeEmbedding {
                linear_1: LinearSilu {
                    linear: build.parts.linear(first, time),
                },
                linear_2: build.parts.linear(time, time),
            },
            down_blocks: (0..levels).map(|level| build.down(level)).collect(),
            mid_block: build.middle(),
            up_blocks: (0..levels).rev().map(|level| build.up(level)).collect(),
            out: build.parts.out(first, self.latent),
        }
    }
}

impl Level {
    /// The block at `place`, and the transformer behind it.
    fn block<T: Tap>(
        &self,
        path: &str,
        place: usize,
        x: Tensor<4>,
        time: &Tensor<2>,
        context: Option<&Tensor<3>>,
        tap: &mut T,
    ) -> Tensor<4> {
        let name = format!("{path}.resnets.{place}");
        let x = tap.unit(&name, &self.resnets[place], (x, Some(time.clone())));
        match self.attentions.get(place) {
            Some(transformer) => {
                transformer.run(&format!("{path}.attentions.{place}"), x, context, tap)
            }
            None => x,
        }
    }
}

impl Network for UNet {
    type Input = <Noise as Modality>::Input;
    type Output = <Noise as Modality>::Output;

    fn run<T: Tap>(&self, (x, time, context): Self::Input, tap: &mut T) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let halvings = self.down_blocks.len() - 1;
        assert!(
            [height, width]
                .iter()
                .all(|side| side % (1 << halvings) == 0),
            "a latent of {height} x {width} can be halved {halvings} times"
        );
        let context = context.as_ref();
        let sinusoids = sinusoids(time, self.conv_in.weight.lazy_shape()[0]);
        tap.mark("time_proj", &sinusoids);
        let time = tap.unit("time_embedding", &self.time_embedding, sinusoids);
        let mut x = tap.unit("conv_in", &self.conv_in, x);
        let mut skips = vec![x.clone()];
        for (level, down) in self.down_blocks.iter().enumerate() {
            let path = format!("down_blocks.{level}");
            for place in 0..down.resnets.len() {
                x = down.block(&path, place, x, &time, context, tap);
                skips.push(x.clone());
            }
            for (place, sampler) in down.downsamplers.iter().enumerate() {
                x = tap.unit(&format!("{path}.downsamplers.{place}"), sampler, x);
                skips.push(x.clone());
            }
        }
        for place in 0..self.mid_block.resnets.len() {
            x = self
                .mid_block
                .block("mid_block", place, x, &time, context, tap);
        }
        for (level, up) in self.up_blocks.iter().enumerate() {
            let path = format!("up_blocks.{level}");
            for place in 0..up.resnets.len() {
                let skip = skips.pop().expect("as many blocks up as values down");
                let both = Tensor::cat(vec![x, skip], 1);
                x = up.block(&path, place, both, &time, context, tap);
            }
            for (place, sampler) in up.upsamplers.iter().enumerate() {
                x = tap.unit(&format!("{path}.upsamplers.{place}"), sampler, x);
            }
        }
        tap.unit("out", &self.out, x)
    }

    fn key(&self, path: &str) -> String {
        key(path)
    }

    /// There is no batch norm.
    fn fold(self) -> Self {
        self
    }
}

/// The checkpoint's name: `attn1.norm`, `attn2.norm` and `ff.norm` are `norm1` to `norm3` beside them, `to_out` is
/// `to_out.0`, the perceptron's layers are `ff.net.0.proj` and `ff.net.2`, and the last layer's `conv_norm_out` and
/// `conv_out`.
pub fn key(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('.') {
        match (names.last().copied(), name) {
            (Some("attn1"), "norm") => replace(&mut names, "norm1"),
            (Some("attn2"), "norm") => replace(&mut names, "norm2"),
            (Some("ff"), "norm") => replace(&mut names, "norm3"),
            (Some("ff"), "proj") => names.extend(["net", "0", "proj"]),
            (Some("ff"), "out") => names.extend(["net", "2"]),
            (Some("out"), "norm") => replace(&mut names, "conv_norm_out"),
            (Some("out"), "conv") => replace(&mut names, "conv_out"),
            (_, "to_out") => names.extend(["to_out", "0"]),
            (_, "linear") => {}
            _ => names.push(name),
        }
    }
    names.join(".")
}

fn replace<'a>(names: &mut Vec<&'a str>, last: &'a str) {
    names.pop();
    names.push(last);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_checkpoints() {
        let block = "mid_block.attentions.0.transformer_blocks.0";
        for (path, expected) in [
            ("conv_in.weight", "conv_in.weight"),
            (
                "time_embedding.linear_1.linear.bias",
                "time_embedding.linear_1.bias",
            ),
            ("out.norm.weight", "conv_norm_out.weight"),
            ("out.conv", "conv_out"),
            (
                "down_blocks.0.resnets.0.norm1.weight",
                "down_blocks.0.resnets.0.norm1.weight",
            ),
            (
                &format!("{block}.attn2.norm.bias"),
                &format!("{block}.norm2.bias"),
            ),
            (
                &format!("{block}.ff.norm.bias"),
                &format!("{block}.norm3.bias"),
            ),
            (
                &format!("{block}.attn1.to_out.weight"),
                &format!("{block}.attn1.to_out.0.weight"),
            ),
            (
                &format!("{block}.ff.proj.linear.weight"),
                &format!("{block}.ff.net.0.proj.weight"),
            ),
            (&format!("{block}.ff.out"), &format!("{block}.ff.net.2")),
        ] {
            assert_eq!(key(path), expected);
        }
    }

    #[test]
    #[should_panic(expected = "can be halved 1 times")]
    fn a_latent_that_cannot_be_halved_is_refused() {
        let size = Size {
            latent: 4,
            widths: &[8, 8],
            heads: &[1, 1],
            attends: &[false, false],
            depth: 1,
            groups: 4,
            context: Some([2, 4]),
            process: Process::STABLE_DIFFUSION,
        };
        let device = Device::flex();
        let latent = Tensor::zeros([1, 4, 7, 8], &device);
        let input = (latent, Tensor::zeros([1], &device), None);
        size.init(&device)
            .run(input, &mut crate::tap::Bare::default());
    }
}

//! SSD (Liu et al. 2016, arXiv 1512.02325) on MobileNetV1 (arXiv 1704.04861), and SSD-Lite on MobileNetV2
//! (arXiv 1801.04381), as qfgaohao/pytorch-ssd defines them.
//!
//! Six maps of 19 to 1 cells a side, at the release's inputs of 300 x 300: two of the backbone, and one behind each of four blocks that
//! follow it. Each has a header for classes and one for offsets, with weights of their own. The network gives what is
//! before the softmax and the decoding, which are in [`crate::detection`]; class 0 is the background.
//!
//! The two networks differ in what a block is: two convolutions, or an inverted residual. In the Lite one a header is a
//! depthwise convolution and one of 1 x 1, and the first map is a block's expansion, not its output. The checkpoint numbers
//! everything; what names there are here is said by [`Ssd::key`](Network::key).

use burn::module::{Module, ModuleDisplay};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};

use crate::detection::anchors::Priors;
use crate::inverted_residual::{Expansion, InvertedResidual, InvertedResidualConfig, Keys};
use crate::layer::{Activation, ConvNormAct, ConvNormActConfig, ConvNormKeys, by_anchor, join};
use crate::mobilenet_v2;
use crate::modality::{Boxes, Modality};
use crate::padded::Padded;
use crate::unit::{Fixed, Grain, Network, Tap, Unit};

/// Boxes at each place of a map.
const PRIORS: usize = 6;

/// Inner and outer channels of the blocks behind MobileNetV2.
const LITE_EXTRAS: [[usize; 2]; 4] = [[256, 512], [128, 256], [128, 256], [64, 64]];

const EPSILON: f64 = 1e-5;

/// The layers of an SSD on MobileNetV1. Its first map is in front of the last reduction.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Channels of the first convolution.
    pub stem: usize,
    /// Channels and stride of MobileNetV1's blocks.
    pub blocks: &'static [(usize, usize)],
    /// Inner and outer channels of the blocks behind them.
    pub extras: [[usize; 2]; 4],
    /// Where boxes are expected.
    pub priors: &'static Priors,
}

impl Table {
    /// The release's.
    pub const RELEASE: Self = Self {
        stem: 32,
        blocks: &[
            (64, 1),
            (128, 2),
            (128, 1),
            (256, 2),
            (256, 1),
            (512, 2),
            (512, 1),
            (512, 1),
            (512, 1),
            (512, 1),
            (512, 1),
            (1024, 2),
            (1024, 1),
        ],
        extras: [[256, 512], [128, 256], [128, 256], [128, 256]],
        priors: &Priors::RELEASE,
    };

    /// The block of the first map.
    fn first(&self) -> usize {
        let last = self.blocks.iter().rposition(|&(_, stride)| stride == 2);
        last.map_or(0, |reduction| reduction - 1)
    }
}

/// SSD on MobileNetV1: a row of the catalog's table.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Its layers.
    pub table: Table,
    /// Classes, the background included.
    pub classes: usize,
}

/// SSD-Lite on MobileNetV2: a row of the catalog's table.
#[derive(Debug, Clone, Copy)]
pub struct LiteSize {
    /// Factor on the backbone's channels, its last convolution's apart. They are truncated, and not rounded to eight as
    /// MobileNetV2's own.
    pub width: f64,
    /// Classes, the background included.
    pub classes: usize,
}

/// SSD on MobileNetV1.
pub type MobileNetV1Ssd = Ssd<Pair>;

/// SSD-Lite on MobileNetV2.
pub type MobileNetV2SsdLite = Ssd<InvertedResidual>;

/// An SSD whose backbone consists of blocks of one kind, as do the layers behind it.
#[derive(Module, Debug)]
pub struct Ssd<B> {
    stem: ConvNormAct,
    blocks: Vec<B>,
    conv_head: Option<ConvNormAct>,
    extras: Vec<B>,
    classification_headers: Vec<Header>,
    regression_headers: Vec<Header>,
    /// The block that gives the first map.
    #[module(skip)]
    first: usize,
}

/// What an [`Ssd`] consists of.
pub trait Block: ModuleDisplay + Unit<Tensor<4>, Out = Tensor<4>> {
    /// Runs a block that gives a map: the map, and what the next block takes.
    fn branch<T: Tap>(&self, name: &str, x: Tensor<4>, tap: &mut T) -> [Tensor<4>; 2];

    /// The block with its batch norms folded.
    fn fold(self) -> Self;

    /// The checkpoint's key of what is called `part` in the block, which is called `block` there.
    fn key(&self, block: &str, part: &[&str]) -> String;
}

/// Two convolutions: depthwise and 1 x 1 in MobileNetV1, 1 x 1 and 3 x 3 behind it.
#[derive(Module, Debug)]
pub struct Pair {
    conv1: ConvNormAct,
    conv2: ConvNormAct,
    /// The second convolution's place in the checkpoint's sequence, where norms and activations count.
    #[module(skip)]
    second: usize,
}

impl Unit<Tensor<4>> for Pair {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let x = tap.unit("conv1", &self.conv1, x);
        tap.unit("conv2", &self.conv2, x)
    }
}

impl Block for Pair {
    fn branch<T: Tap>(&self, name: &str, x: Tensor<4>, tap: &mut T) -> [Tensor<4>; 2] {
        let x = tap.unit(name, self, x);
        [x.clone(), x]
    }

    fn fold(self) -> Self {
        Self {
            conv1: self.conv1.fold(),
            conv2: self.conv2.fold(),
            second: self.second,
        }
    }

    fn key(&self, block: &str, part: &[&str]) -> String {
        match part {
            ["conv1", rest @ ..] => sequence(block, 0).key(rest),
            ["conv2", rest @ ..] => sequence(block, self.second).key(rest),
            rest => join(block, rest),
        }
    }
}

impl Block for InvertedResidual {
    fn branch<T: Tap>(&self, name: &str, x: Tensor<4>, tap: &mut T) -> [Tensor<4>; 2] {
        tap.unit(name, self, (x, Fixed(Expansion))).into()
    }

    fn fold(self) -> Self {
        InvertedResidual::fold(self)
    }

    fn key(&self, block: &str, part: &[&str]) -> String {
        InvertedResidual::key(self, Keys::PytorchSsd, block, part)
    }
}

/// The checkpoint's names of a convolution at a place of a sequence, and of the norm behind it.
fn sequence(layer: &str, place: usize) -> ConvNormKeys {
    ConvNormKeys::beside(
        &format!("{layer}.{place}"),
        &format!("{layer}.{}", place + 1),
    )
}

/// What is predicted from a map: a convolution, in SSD-Lite behind a depthwise one.
#[derive(Module, Debug)]
pub struct Header {
    depthwise: Option<ConvNormAct>,
    conv: Conv2d,
}

impl Unit<Tensor<4>> for Header {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, mut x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        if let Some(depthwise) = &self.depthwise {
            x = tap.unit("depthwise", depthwise, x);
        }
        tap.unit("conv", &self.conv, x)
    }
}

impl Header {
    /// For so many values at each place; the kernel of its last convolution has this side.
    fn init(channels: usize, values: usize, side: usize, device: &Device) -> Self {
        let pad = side / 2;
        Self {
            depthwise: None,
            conv: Conv2dConfig::new([channels, values], [side; 2])
                .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
                .init(device),
        }
    }

    /// With so many values at each place.
    fn with_values(self, values: usize) -> Self {
        let weight = &self.conv.weight;
        let shape = weight.lazy_shape();
        Self {
            conv: Self::init(shape[1], values, shape[2], &weight.lazy_device()).conv,
            ..self
        }
    }

    fn behind_depthwise(self, channels: usize, device: &Device) -> Self {
        let depthwise = ConvNormActConfig::new([channels; 2], 3, 1)
            .grouped(channels)
            .with_activation(Activation::Relu6)
            .with_epsilon(EPSILON)
            .biased()
            .init(device);
        Self {
            depthwise: Some(depthwise),
            ..self
        }
    }

    fn fold(self) -> Self {
        Self {
            depthwise: self.depthwise.map(ConvNormAct::fold),
            conv: self.conv,
        }
    }

    fn key(&self, header: &str, part: &[&str]) -> String {
        match part {
            ["depthwise", rest @ ..] => sequence(header, 0).key(rest),
            ["conv", rest @ ..] if self.depthwise.is_some() => join(&format!("{header}.3"), rest),
            ["conv", rest @ ..] => join(header, rest),
            rest => join(header, rest),
        }
    }
}

impl Size {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> MobileNetV1Ssd {
        let table = &self.table;
        let mut channels = table.stem;
        let mut maps = Vec::new();
        let first = table.first();
        let blocks = table
            .blocks
            .iter()
            .enumerate()
            .map(|(place, &(output, stride))| {
                let input = std::mem::replace(&mut channels, output);
                if place == first || place + 1 == table.blocks.len() {
                    maps.push(output);
                }
                Pair {
                    conv1: ConvNormActConfig::new([input; 2], 3, stride)
                        .grouped(input)
                        .with_epsilon(EPSILON)
                        .init(device),
                    conv2: ConvNormActConfig::new([input, output], 1, 1)
                        .with_epsilon(EPSILON)
                        .init(device),
                    second: 3,
                }
            });
        let blocks = blocks.collect();
        let extras = table.extras.iter().map(|&[inner, output]| {
            let input = std::mem::replace(&mut channels, output);
            maps.push(output);
            let conv = |channels, kernel, stride| {
                ConvNormActConfig::new(channels, kernel, stride)
                    .without_norm()
                    .init(device)
            };
            Pair {
                conv1: conv([input, inner], 1, 1),
                conv2: conv([inner, output], 3, 2),
                second: 2,
            }
        });
        let extras = extras.collect();
        let headers = |values: usize| -> Vec<Header> {
            let header = |&map| Header::init(map, PRIORS * values, 3, device);
            maps.iter().map(header).collect()
        };
        Ssd {
            stem: ConvNormActConfig::new([3, table.stem], 3, 2)
                .with_epsilon(EPSILON)
                .init(device),
            blocks,
            conv_head: None,
            extras,
            classification_headers: headers(self.classes),
            regression_headers: headers(4),
            first,
        }
    }
}

impl LiteSize {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> MobileNetV2SsdLite {
        let scaled = |channels: f64| (channels * self.width) as usize;
        let mobilenet_v2::Table { stem, stages, head } = mobilenet_v2::Table::PAPER;
        let conv = |channels, kernel, stride| {
            ConvNormActConfig::new(channels, kernel, stride)
                .with_activation(Activation::Relu6)
                .with_epsilon(EPSILON)
                .init(device)
        };
        let block = |channels, expanded, stride| {
            InvertedResidualConfig {
                channels,
                expanded,
                kernel: 3,
                stride,
                activation: Activation::Relu6,
                squeeze: false,
                epsilon: EPSILON,
                same: false,
            }
            .init(device)
        };
        let (stem, reduction) = (scaled(stem.0), stem.1);
        let mut channels = stem;
        let mut maps = Vec::new();
        let (mut blocks, mut first) = (Vec::new(), 0);
        for (stage, &(expansion, output, depth, stride)) in stages.iter().enumerate() {
            for place in 0..depth {
                let input = std::mem::replace(&mut channels, scaled(output));
                let stride = if place == 0 { stride } else { 1 };
                let expanded = (expansion > 1).then_some(input * expansion);
                // The last reduction is behind this block's expansion.
                if (stage, place) == (stages.len() - 2, 0) {
                    first = blocks.len();
                    maps.extend(expanded);
                }
                blocks.push(block([input, channels], expanded, stride));
            }
        }
        let head = head as usize;
        let conv_head = conv([channels, head], 1, 1);
        channels = head;
        maps.push(channels);
        let extras = LITE_EXTRAS.iter().map(|&[inner, output]| {
            let input = std::mem::replace(&mut channels, output);
            maps.push(output);
            block([input, output], Some(inner), 2)
        });
        let extras = extras.collect();
        let headers = |values: usize| -> Vec<Header> {
            let header = |(level, &map): (usize, &usize)| {
                let header = Header::init(map, PRIORS * values, 1, device);
                // The last map is one cell.
                match level + 1 < maps.len() {
                    true => header.behind_depthwise(map, device),
                    false => header,
                }
            };
            maps.iter().enumerate().map(header).collect()
        };
        Ssd {
            stem: conv([3, stem], 3, reduction),
            blocks,
            conv_head: Some(conv_head),
            extras,
            classification_headers: headers(self.classes),
            regression_headers: headers(4),
            first,
        }
    }
}

impl<B: Block> Ssd<B> {
    /// What the two headers of a level predict from its map.
    fn predict<T: Tap>(&self, level: usize, map: Tensor<4>, tap: &mut T) -> (Tensor<3>, Tensor<3>) {
        let mut header = |name: &str, headers: &[Header], map: Tensor<4>| {
            let y = tap.unit(&format!("{name}.{level}"), &headers[level], map);
            let values = y.dims()[1] / PRIORS;
            by_anchor(y, values)
        };
        let logits = header(
            "classification_headers",
            &self.classification_headers,
            map.clone(),
        );
        let offsets = header("regression_headers", &self.regression_headers, map);
        (logits, offsets)
    }
}

impl<B: Block> Network for Ssd<B> {
    type Input = <Boxes as Modality>::Input;
    type Output = <Boxes as Modality>::Output;

    fn run<T: Tap>(&self, Padded { images, .. }: Padded, tap: &mut T) -> Self::Output {
        let mut levels = Vec::new();
        let mut x = tap.unit("stem", &self.stem, images);
        for (place, block) in self.blocks.iter().enumerate() {
            let name = format!("blocks.{place}");
            if place == self.first {
                let [map, next] = block.branch(&name, x, tap);
                levels.push(self.predict(levels.len(), map, tap));
                x = next;
            } else {
                x = tap.unit(&name, block, x);
            }
        }
        if let Some(conv_head) = &self.conv_head {
            x = tap.unit("conv_head", conv_head, x);
        }
        levels.push(self.predict(levels.len(), x.clone(), tap));
        for (place, block) in self.extras.iter().enumerate() {
            x = tap.unit(&format!("extras.{place}"), block, x);
            levels.push(self.predict(levels.len(), x.clone(), tap));
        }
        levels
    }

    /// `base_net` is one list there: the stem, the blocks, and the last convolution where there is one.
    fn key(&self, path: &str) -> String {
        let names: Vec<&str> = path.split('.').collect();
        let at = |place: &str| place.parse::<usize>().ok();
        let known = match names.as_slice() {
            ["stem", rest @ ..] => Some(ConvNormKeys::numbered("base_net.0").key(rest)),
            ["blocks", place, rest @ ..] => at(place).and_then(|place| {
                let block = self.blocks.get(place)?;
                Some(block.key(&format!("base_net.{}", 1 + place), rest))
            }),
            ["conv_head", rest @ ..] => {
                let layer = format!("base_net.{}", 1 + self.blocks.len());
                Some(ConvNormKeys::numbered(&layer).key(rest))
            }
            ["extras", place, rest @ ..] => at(place).and_then(|place| {
                let block = self.extras.get(place)?;
                Some(block.key(&format!("extras.{place}"), rest))
            }),
            [
                name @ ("classification_headers" | "regression_headers"),
                place,
                rest @ ..,
            ] => at(place).and_then(|place| {
                let header = match *name {
                    "classification_headers" => self.classification_headers.get(place)?,
                    _ => self.regression_headers.get(place)?,
                };
                Some(header.key(&format!("{name}.{place}"), rest))
            }),
            _ => None,
        };
        known.unwrap_or_else(|| path.to_owned())
    }

    fn classifier(&self) -> Option<String> {
        Some("classification_headers.0.conv".to_owned())
    }

    fn rows_of_class(&self) -> usize {
        PRIORS
    }

    fn with_classes(self, classes: usize) -> Self {
        let headers = self.classification_headers.into_iter();
        Self {
            classification_headers: headers
                .map(|header| header.with_values(PRIORS * classes))
                .collect(),
            ..self
        }
    }

    fn fold(self) -> Self {
        let fold = |blocks: Vec<B>| blocks.into_iter().map(B::fold).collect();
        let headers = |headers: Vec<Header>| headers.into_iter().map(Header::fold).collect();
        Self {
            stem: self.stem.fold(),
            blocks: fold(self.blocks),
            conv_head: self.conv_head.map(ConvNormAct::fold),
            extras: fold(self.extras),
            classification_headers: headers(self.classification_headers),
            regression_headers: headers(self.regression_headers),
            first: self.first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_checkpoints() {
        let (full, lite) = (
            Size {
                table: Table::RELEASE,
                classes: 2,
            }
            .init(&Device::flex()),
            LiteSize {
                width: 0.25,
                classes: 2,
            }
            .init(&Device::flex()),
        );
        for (path, in_full) in [
            ("stem.conv.weight", "base_net.0.0.weight"),
            ("stem.norm.gamma", "base_net.0.1.weight"),
            ("blocks.0", "base_net.1"),
            ("blocks.0.conv1.conv.weight", "base_net.1.0.weight"),
            ("blocks.12.conv2.conv.weight", "base_net.13.3.weight"),
            (
                "blocks.12.conv2.norm.running_mean",
                "base_net.13.4.running_mean",
            ),
            ("extras.3.conv1.conv.bias", "extras.3.0.bias"),
            ("extras.3.conv2.conv", "extras.3.2"),
            (
                "classification_headers.0.conv.weight",
                "classification_headers.0.weight",
            ),
            ("regression_headers.5", "regression_headers.5"),
        ] {
            assert_eq!(full.key(path), in_full);
        }
        for (path, in_lite) in [
            ("blocks.0.conv_dw.conv.weight", "base_net.1.conv.0.weight"),
            ("blocks.0.conv_pwl.norm.beta", "base_net.1.conv.4.bias"),
            ("blocks.13.conv_pw.conv", "base_net.14.conv.0"),
            ("blocks.16.conv_pwl.norm.gamma", "base_net.17.conv.7.weight"),
            ("conv_head.norm.gamma", "base_net.18.1.weight"),
            ("extras.0.conv_dw.conv.weight", "extras.0.conv.3.weight"),
            (
                "regression_headers.4.depthwise.conv.bias",
                "regression_headers.4.0.bias",
            ),
            (
                "classification_headers.0.depthwise.norm.gamma",
                "classification_headers.0.1.weight",
            ),
            (
                "classification_headers.0.conv.weight",
                "classification_headers.0.3.weight",
            ),
            (
                "classification_headers.5.conv.weight",
                "classification_headers.5.weight",
            ),
        ] {
            assert_eq!(lite.key(path), in_lite);
        }
        let folded = full.fold();
        assert_eq!(folded.key("blocks.0.conv2.conv"), "base_net.1.3");
    }
}

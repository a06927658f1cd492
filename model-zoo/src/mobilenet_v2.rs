//! MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) at several widths.
//!
//! timm and torchvision define one network under two sets of names. Paths in the module are timm's, with a convolution
//! and its batch norm as one (`conv_stem.conv`, `conv_stem.norm` for `conv_stem`, `bn1`) and with the projection called
//! `conv_pwl` in every block.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::inverted_residual::{
    InvertedResidual, InvertedResidualConfig, Keys, block_key, fold_blocks, round_channels,
    run_blocks,
};
use crate::layer::{Activation, ConvNormAct, ConvNormActConfig, ConvNormKeys, PoolLinear, join};
pub use crate::unit::Layout;
use crate::unit::{Network, Tap};

/// Channels at width 1, depths and strides.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Channels and stride of the stem.
    pub stem: (f64, usize),
    /// Expansion, channels, blocks and stride of each stage.
    pub stages: &'static [(usize, f64, usize, usize)],
    /// Channels of the last convolution.
    pub head: f64,
}

/// One size of the family: a row of the catalog's table.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// What the width scales.
    pub table: Table,
    /// Factor on all channels; of the last convolution only where it is above 1.
    pub width: f64,
    /// Classes.
    pub classes: usize,
    /// Whose names the checkpoint has.
    pub layout: Layout,
}

impl Table {
    /// Table 2 of the paper.
    pub const PAPER: Self = Self {
        stem: (32.0, 2),
        stages: &[
            (1, 16.0, 1, 1),
            (6, 24.0, 2, 2),
            (6, 32.0, 3, 2),
            (6, 64.0, 4, 2),
            (6, 96.0, 3, 1),
            (6, 160.0, 3, 2),
            (6, 320.0, 1, 1),
        ],
        head: 1280.0,
    };

    /// For images of 32 x 32: fewer and narrower stages, and two reductions less.
    pub const MICRO: Self = Self {
        stem: (32.0, 2),
        stages: &[
            (1, 32.0, 1, 1),
            (4, 32.0, 2, 1),
            (6, 48.0, 3, 2),
            (6, 96.0, 4, 2),
        ],
        head: 192.0,
    };
}

const EPSILON: f64 = 1e-5;

/// A MobileNetV2.
#[derive(Module, Debug)]
pub struct MobileNetV2 {
    conv_stem: ConvNormAct,
    blocks: Vec<Vec<InvertedResidual>>,
    conv_head: ConvNormAct,
    classifier: PoolLinear,
    #[module(skip)]
    layout: Layout,
}

impl Size {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> MobileNetV2 {
        let conv = |channels, kernel, stride| {
            ConvNormActConfig::new(channels, kernel, stride)
                .with_activation(Activation::Relu6)
                .with_epsilon(EPSILON)
                .init(device)
        };
        let Table { stem, stages, head } = self.table;
        let (stem, reduction) = (round_channels(stem.0 * self.width), stem.1);
        let mut channels = stem;
        let blocks = stages
            .iter()
            .map(|&(expansion, output, depth, stride)| {
                let output = round_channels(output * self.width);
                (0..depth)
                    .map(|place| {
                        let input = std::mem::replace(&mut channels, output);
                        InvertedResidualConfig {
                            channels: [input, output],
                            expanded: (expansion > 1).then_some(input * expansion),
                            kernel: 3,
                            stride: if place == 0 { stride } else { 1 },
                            activation: Activation::Relu6,
                            squeeze: false,
                            epsilon: EPSILON,
                            same: false,
                        }
                        .init(device)
                    })
                    .collect()
            })
            .collect();
        let head = round_channels(head * self.width.max(1.0));
        MobileNetV2 {
            conv_stem: conv([3, stem], 3, reduction),
            blocks,
            conv_head: conv([channels, head], 1, 1),
            classifier: PoolLinear::init(head, self.classes, device),
            layout: self.layout,
        }
    }
}

impl Network for MobileNetV2 {
    type Input = Tensor<4>;
    type Output = Tensor<2>;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<2> {
        let x = tap.unit("conv_stem", &self.conv_stem, x);
        let x = run_blocks(&self.blocks, x, tap);
        let x = tap.unit("conv_head", &self.conv_head, x);
        tap.unit("classifier", &self.classifier, x)
    }

    fn key(&self, path: &str) -> String {
        self.named(self.layout, path)
    }

    fn key_in(&self, layout: Layout, path: &str) -> Option<String> {
        matches!(layout, Layout::Timm | Layout::Torchvision).then(|| self.named(layout, path))
    }

    fn classifier(&self) -> Option<String> {
        Some("classifier.linear".to_owned())
    }

    fn with_classes(self, classes: usize) -> Self {
        Self {
            classifier: self.classifier.with_classes(classes),
            ..self
        }
    }

    fn fold(self) -> Self {
        Self {
            conv_stem: self.conv_stem.fold(),
            blocks: fold_blocks(self.blocks),
            conv_head: self.conv_head.fold(),
            classifier: self.classifier,
            layout: self.layout,
        }
    }
}

impl MobileNetV2 {
    fn named(&self, layout: Layout, path: &str) -> String {
        let names: Vec<&str> = path.split('.').collect();
        match (names.as_slice(), layout) {
            (["conv_stem", rest @ ..], Layout::Timm) => {
                ConvNormKeys::beside("conv_stem", "bn1").key(rest)
            }
            (["conv_stem", rest @ ..], _) => ConvNormKeys::numbered("features.0").key(rest),
            (["conv_head", rest @ ..], Layout::Timm) => {
                ConvNormKeys::beside("conv_head", "bn2").key(rest)
            }
            (["conv_head", rest @ ..], _) => {
                let blocks: usize = self.blocks.iter().map(Vec::len).sum();
                ConvNormKeys::numbered(&format!("features.{}", 1 + blocks)).key(rest)
            }
            (["classifier", "linear", rest @ ..], Layout::Timm) => join("classifier", rest),
            (["classifier", "linear", rest @ ..], _) => join("classifier.1", rest),
            (["blocks", rest @ ..], layout) => {
                let keys = match layout {
                    Layout::Timm => Keys::Timm,
                    _ => Keys::TorchvisionV2,
                };
                block_key(&self.blocks, keys, rest).unwrap_or_else(|| path.to_owned())
            }
            _ => path.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_checkpoints() {
        let network = |layout| {
            Size {
                table: Table::PAPER,
                width: 0.1,
                classes: 2,
                layout,
            }
            .init(&Device::flex())
        };
        let (timm, torchvision) = (network(Layout::Timm), network(Layout::Torchvision));
        for (path, in_timm, in_torchvision) in [
            (
                "conv_stem.conv.weight",
                "conv_stem.weight",
                "features.0.0.weight",
            ),
            ("conv_stem.norm.gamma", "bn1.weight", "features.0.1.weight"),
            ("blocks.0.0", "blocks.0.0", "features.1"),
            (
                "blocks.0.0.conv_dw.norm.running_var",
                "blocks.0.0.bn1.running_var",
                "features.1.conv.0.1.running_var",
            ),
            (
                "blocks.0.0.conv_pwl.conv",
                "blocks.0.0.conv_pw",
                "features.1.conv.1",
            ),
            (
                "blocks.0.0.conv_pwl.norm.beta",
                "blocks.0.0.bn2.bias",
                "features.1.conv.2.bias",
            ),
            (
                "blocks.2.1.conv_pw.conv.weight",
                "blocks.2.1.conv_pw.weight",
                "features.5.conv.0.0.weight",
            ),
            (
                "blocks.6.0.conv_pwl.norm.gamma",
                "blocks.6.0.bn3.weight",
                "features.17.conv.3.weight",
            ),
            ("conv_head.conv", "conv_head", "features.18.0"),
            (
                "classifier.linear.bias",
                "classifier.bias",
                "classifier.1.bias",
            ),
        ] {
            assert_eq!(timm.key(path), in_timm);
            assert_eq!(torchvision.key(path), in_torchvision);
        }
    }
}

//! MobileNetV3-Large (Howard et al. 2019, arXiv 1905.02244) at several widths, as timm and as torchvision define it, and
//! as TensorFlow's weights mean it.
//!
//! The two agree in shapes at width 1 only, and never in the batch norms' epsilon:
//!
//! | | timm | torchvision |
//! |---|---|---|
//! | epsilon | 1e-5 | 1e-3 |
//! | stem | stays 16 wide below width 0.75 | scales |
//! | expansion | a ratio to the input's channels as they are at this width | a number of channels, scaled |
//! | expansion that changes nothing | stays, except in the first block | left out |
//! | hidden layer of the head | a 1x1 convolution, 1280 wide | a linear layer, scales |
//!
//! TensorFlow's weights, which timm converts, take timm's shapes and names, an epsilon of 1e-3 and TensorFlow's "same"
//! padding: as many outputs as strides fit into the input, the odd zero behind it.
//!
//! Paths in the module are timm's, with a convolution and its batch norm as one (`conv_stem.conv`, `conv_stem.norm` for
//! `conv_stem`, `bn1`), the projection called `conv_pwl` in every block, and the last convolution, which timm counts as
//! a block, called `conv_last`.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::inverted_residual::{
    InvertedResidual, InvertedResidualConfig, Keys, block_key, blocks_with_epsilon, fold_blocks,
    round_channels, run_blocks,
};
use crate::layer::{
    Activation, ConvNormAct, ConvNormActConfig, ConvNormKeys, global_average, join, of_classes,
};
use crate::unit::{Grain, Layout, Network, Tap, Unit};

/// Whose definition a network follows, in shapes and in names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Definition {
    /// timm's.
    Timm,
    /// torchvision's.
    Torchvision,
    /// timm's for weights that were trained in TensorFlow.
    TensorFlow,
}

/// Channels at width 1, depths and strides.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Stride of the stem.
    pub stride: usize,
    /// The blocks of each stage; a stage is where the resolution or the number of channels changes.
    pub stages: &'static [&'static [Row]],
    /// Channels of the head's hidden layer.
    pub head: f64,
    /// Whether the blocks that the paper gives a squeeze and an excitation have them.
    pub squeeze: bool,
}

/// One size of the family: a row of the catalog's table.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// What the width scales.
    pub table: Table,
    /// Factor on the channels.
    pub width: f64,
    /// Classes.
    pub classes: usize,
    /// Whose definition it follows.
    pub definition: Definition,
}

/// A block at width 1, as a row of table 1 of the paper.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    kernel: usize,
    expanded: f64,
    output: f64,
    squeeze: bool,
    activation: Activation,
    stride: usize,
}

const fn row(
    kernel: usize,
    expanded: f64,
    output: f64,
    squeeze: bool,
    activation: Activation,
    stride: usize,
) -> Row {
    Row {
        kernel,
        expanded,
        output,
        squeeze,
        activation,
        stride,
    }
}

/// Table 1 of the paper.
const PAPER: &[&[Row]] = {
    use Activation::{HardSwish, Relu};
    &[
        &[row(3, 16.0, 16.0, false, Relu, 1)],
        &[
            row(3, 64.0, 24.0, false, Relu, 2),
            row(3, 72.0, 24.0, false, Relu, 1),
        ],
        &[
            row(5, 72.0, 40.0, true, Relu, 2),
            row(5, 120.0, 40.0, true, Relu, 1),
            row(5, 120.0, 40.0, true, Relu, 1),
        ],
        &[
            row(3, 240.0, 80.0, false, HardSwish, 2),
            row(3, 200.0, 80.0, false, HardSwish, 1),
            row(3, 184.0, 80.0, false, HardSwish, 1),
            row(3, 184.0, 80.0, false, HardSwish, 1),
        ],
        &[
            row(3, 480.0, 112.0, true, HardSwish, 1),
            row(3, 672.0, 112.0, true, HardSwish, 1),
        ],
        &[
            row(5, 672.0, 160.0, true, HardSwish, 2),
            row(5, 960.0, 160.0, true, HardSwish, 1),
            row(5, 960.0, 160.0, true, HardSwish, 1),
        ],
    ]
};

/// The first rows of each kind, two reductions less, for images of 32 x 32.
const MICRO: &[&[Row]] = {
    use Activation::{HardSwish, Relu};
    &[
        &[row(3, 16.0, 16.0, false, Relu, 1)],
        &[
            row(3, 64.0, 24.0, false, Relu, 1),
            row(3, 96.0, 24.0, false, Relu, 1),
        ],
        &[
            row(3, 96.0, 48.0, false, Relu, 2),
            row(3, 144.0, 48.0, false, Relu, 1),
        ],
        &[
            row(5, 192.0, 80.0, true, HardSwish, 2),
            row(5, 320.0, 80.0, true, HardSwish, 1),
            row(5, 320.0, 80.0, true, HardSwish, 1),
        ],
    ]
};

impl Table {
    /// Table 1 of the paper.
    pub const PAPER: Self = Self {
        stride: 2,
        stages: PAPER,
        head: 1280.0,
        squeeze: true,
    };

    /// For images of 32 x 32.
    pub const MICRO: Self = Self {
        stride: 2,
        stages: MICRO,
        head: 192.0,
        squeeze: true,
    };

    /// The same without squeeze and excitation.
    pub const MICRO_PLAIN: Self = Self {
        squeeze: false,
        ..Self::MICRO
    };
}

/// Channels of the stem at width 1.
const STEM: f64 = 16.0;
/// The last convolution widens its input so many times.
const LAST_EXPANSION: usize = 6;

/// A MobileNetV3-Large.
#[derive(Module, Debug)]
pub struct MobileNetV3 {
    conv_stem: ConvNormAct,
    blocks: Vec<Vec<InvertedResidual>>,
    conv_last: ConvNormAct,
    /// The hidden layer of the head as timm has it; torchvision's networks have the next one instead.
    conv_head: Option<ConvNormAct>,
    linear_head: Option<LinearAct>,
    classifier: Linear,
    #[module(skip)]
    definition: Definition,
}

/// A linear layer and its activation.
#[derive(Module, Debug)]
pub struct LinearAct {
    linear: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Unit<Tensor<2>> for LinearAct {
    type Out = Tensor<2>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<2>, tap: &mut T) -> Tensor<2> {
        let x = tap.unit("linear", &self.linear, x);
        kernels::activate(x, self.activation)
    }
}

impl Definition {
    fn epsilon(self) -> f64 {
        match self {
            Definition::Timm => 1e-5,
            Definition::Torchvision | Definition::TensorFlow => 1e-3,
        }
    }

    fn stem(self, width: f64) -> usize {
        match self {
            Definition::Timm | Definition::TensorFlow if width < 0.75 => STEM as usize,
            _ => round_channels(STEM * width),
        }
    }

    fn head(self, channels: f64, width: f64) -> usize {
        match self {
            Definition::Timm | Definition::TensorFlow => channels as usize,
            Definition::Torchvision => round_channels(channels * width),
        }
    }

    /// Channels of the depthwise convolution behind an expansion; none where there is no expansion. `plain_input` are
    /// the input's channels at width 1.
    fn expanded(self, row: &Row, input: usize, plain_input: f64, width: f64) -> Option<usize> {
        match self {
            Definition::Timm | Definition::TensorFlow => (row.expanded != plain_input)
                .then(|| round_channels(input as f64 * (row.expanded / plain_input))),
            Definition::Torchvision => {
                Some(round_channels(row.expanded * width)).filter(|&expanded| expanded != input)
            }
        }
    }
}

impl Size {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> MobileNetV3 {
        let Self {
            table,
            width,
            classes,
            definition,
        } = *self;
        let epsilon = definition.epsilon();
        let same = definition == Definition::TensorFlow;
        let conv = |channels, kernel, stride| {
            ConvNormActConfig::new(channels, kernel, stride)
                .with_activation(Activation::HardSwish)
                .with_epsilon(epsilon)
                .with_same_padding(same)
        };
        let stem = definition.stem(width);
        let (mut channels, mut plain) = (stem, STEM);
        let mut block = |row: &Row| {
            let output = round_channels(row.output * width);
            let input = std::mem::replace(&mut channels, output);
            let plain_input = std::mem::replace(&mut plain, row.output);
            InvertedResidualConfig {
                channels: [input, output],
                expanded: definition.expanded(row, input, plain_input, width),
                kernel: row.kernel,
                stride: row.stride,
                activation: row.activation,
                squeeze: row.squeeze && table.squeeze,
                epsilon,
                same,
            }
            .init(device)
        };
        let blocks: Vec<Vec<_>> = table
            .stages
            .iter()
            .map(|rows| rows.iter().map(&mut block).collect())
            .collect();
        let last = channels * LAST_EXPANSION;
        let head = definition.head(table.head, width);
        let (conv_head, linear_head) = match definition {
            Definition::Timm | Definition::TensorFlow => (
                Some(conv([last, head], 1, 1).without_norm().init(device)),
                None,
            ),
            Definition::Torchvision => (
                None,
                Some(LinearAct {
                    linear: LinearConfig::new(last, head).init(device),
                    activation: Activation::HardSwish,
                }),
            ),
        };
        MobileNetV3 {
            conv_stem: conv([3, stem], 3, table.stride).init(device),
            blocks,
            conv_last: conv([channels, last], 1, 1).init(device),
            conv_head,
            linear_head,
            classifier: LinearConfig::new(head, classes).init(device),
            definition,
        }
    }
}

impl Network for MobileNetV3 {
    type Input = Tensor<4>;
    type Output = Tensor<2>;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<2> {
        let x = tap.unit("conv_stem", &self.conv_stem, x);
        let x = run_blocks(&self.blocks, x, tap);
        let mut x = tap.unit("conv_last", &self.conv_last, x);
        x = global_average(x);
        tap.mark("avgpool", &x);
        if let Some(conv_head) = &self.conv_head {
            x = tap.unit("conv_head", conv_head, x);
        }
        let mut x = x.flatten(1, 3);
        if let Some(linear_head) = &self.linear_head {
            x = tap.unit("linear_head", linear_head, x);
        }
        tap.unit("classifier", &self.classifier, x)
    }

    fn key(&self, path: &str) -> String {
        let layout = match self.definition {
            Definition::Timm | Definition::TensorFlow => Layout::Timm,
            Definition::Torchvision => Layout::Torchvision,
        };
        self.named(layout, path)
    }

    /// TensorFlow's weights exist under timm's names alone.
    fn key_in(&self, layout: Layout, path: &str) -> Option<String> {
        match (layout, self.definition) {
            (Layout::TorchvisionFirst | Layout::DiffusersFirst, _)
            | (Layout::Torchvision, Definition::TensorFlow) => None,
            _ => Some(self.named(layout, path)),
        }
    }

    /// Weights belong to the epsilon with which they were trained.
    fn meant_by(self, layout: Layout) -> Self {
        let definition = match layout {
            Layout::Timm if self.definition == Definition::TensorFlow => Definition::TensorFlow,
            Layout::Timm => Definition::Timm,
            _ => Definition::Torchvision,
        };
        let epsilon = definition.epsilon();
        Self {
            conv_stem: self.conv_stem.with_epsilon(epsilon),
            blocks: blocks_with_epsilon(self.blocks, epsilon),
            conv_last: self.conv_last.with_epsilon(epsilon),
            ..self
        }
    }

    fn classifier(&self) -> Option<String> {
        Some("classifier".to_owned())
    }

    fn with_classes(self, classes: usize) -> Self {
        Self {
            classifier: of_classes(&self.classifier, classes),
            ..self
        }
    }

    fn fold(self) -> Self {
        Self {
            conv_stem: self.conv_stem.fold(),
            blocks: fold_blocks(self.blocks),
            conv_last: self.conv_last.fold(),
            ..self
        }
    }
}

impl MobileNetV3 {
    fn named(&self, layout: Layout, path: &str) -> String {
        use Layout::Timm;
        let names: Vec<&str> = path.split('.').collect();
        match (names.as_slice(), layout) {
            (["conv_stem", rest @ ..], Timm) => ConvNormKeys::beside("conv_stem", "bn1").key(rest),
            (["conv_stem", rest @ ..], _) => ConvNormKeys::numbered("features.0").key(rest),
            (["conv_last", rest @ ..], Timm) => {
                let block = format!("blocks.{}.0", self.blocks.len());
                ConvNormKeys::within(&block, "conv", "bn1").key(rest)
            }
            (["conv_last", rest @ ..], _) => {
                let blocks: usize = self.blocks.iter().map(Vec::len).sum();
                ConvNormKeys::numbered(&format!("features.{}", 1 + blocks)).key(rest)
            }
            // The head's hidden layer is a convolution or a linear layer; its weights are the same.
            (
                ["conv_head", "conv", rest @ ..]
                | ["linear_head", "linear", rest @ ..]
                | ["conv_head" | "linear_head", rest @ ..],
                layout,
            ) => match layout {
                Timm => join("conv_head", rest),
                _ => join("classifier.0", rest),
            },
            (["classifier", rest @ ..], layout) if layout != Timm => join("classifier.3", rest),
            (["blocks", rest @ ..], layout) => {
                let keys = match layout {
                    Timm => Keys::Timm,
                    _ => Keys::TorchvisionV3,
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

    fn network(definition: Definition, width: f64) -> MobileNetV3 {
        Size {
            table: Table::PAPER,
            width,
            classes: 2,
            definition,
        }
        .init(&Device::flex())
    }

    #[test]
    fn keys_are_the_checkpoints() {
        let timm = network(Definition::Timm, 0.35);
        let torchvision = network(Definition::Torchvision, 0.35);
        for (path, in_timm, in_torchvision) in [
            ("conv_stem.norm.gamma", "bn1.weight", "features.0.1.weight"),
            (
                "blocks.0.0.conv_pwl.norm.beta",
                "blocks.0.0.bn2.bias",
                "features.1.block.1.1.bias",
            ),
            (
                "blocks.1.1.conv_pwl.conv.weight",
                "blocks.1.1.conv_pwl.weight",
                "features.3.block.2.0.weight",
            ),
            (
                "blocks.2.1.se.conv_reduce.conv.bias",
                "blocks.2.1.se.conv_reduce.bias",
                "features.5.block.2.fc1.bias",
            ),
            (
                "blocks.2.1.se.conv_expand.conv",
                "blocks.2.1.se.conv_expand",
                "features.5.block.2.fc2",
            ),
            (
                "blocks.2.1.conv_pwl.norm.gamma",
                "blocks.2.1.bn3.weight",
                "features.5.block.3.1.weight",
            ),
            (
                "conv_last.norm.running_mean",
                "blocks.6.0.bn1.running_mean",
                "features.16.1.running_mean",
            ),
            ("conv_last", "blocks.6.0", "features.16"),
            ("classifier.bias", "classifier.bias", "classifier.3.bias"),
        ] {
            assert_eq!(timm.key(path), in_timm);
            assert_eq!(torchvision.key(path), in_torchvision);
        }
        assert_eq!(timm.key("conv_head.conv.bias"), "conv_head.bias");
        assert_eq!(
            torchvision.key("linear_head.linear.weight"),
            "classifier.0.weight"
        );
    }

    /// A layer of TensorFlow's against loops over its definition: no golden covers its padding.
    #[test]
    fn same_padding_is_tensorflows() {
        use crate::tap::Bare;
        use burn::tensor::TensorData;

        // Sides and strides for which zeros before and after differ, and for which they do not.
        for (side, kernel, stride) in [(8usize, 3, 2), (7, 3, 2), (9, 5, 2), (6, 5, 1), (10, 5, 2)]
        {
            let layer = ConvNormActConfig::new([2, 3], kernel, stride)
                .with_activation(Activation::Identity)
                .without_norm()
                .with_same_padding(true)
                .init(&Device::flex());
            let params = crate::graft::read_params(&layer);
            let values = |name: &str| -> Vec<f32> {
                let (_, data) = params.iter().find(|(path, _)| path == name).unwrap();
                data.iter::<f32>().collect()
            };
            let (weight, bias) = (values("conv.weight"), values("conv.bias"));
            let input: Vec<f32> = (0..2 * side * side)
                .map(|i| (i * i % 13) as f32 - 6.0)
                .collect();
            let data = TensorData::new(input.clone(), [1, 2, side, side]);
            let output = layer.run(
                Tensor::<4>::from_data(data, &Device::flex()),
                &mut Bare::default(),
            );
            let outputs = side.div_ceil(stride);
            assert_eq!(output.dims(), [1, 3, outputs, outputs]);
            let found: Vec<f32> = output.into_data().iter::<f32>().collect();

            let zeros = ((outputs - 1) * stride + kernel).saturating_sub(side);
            let before = zeros / 2;
            let mut expected = Vec::new();
            for (channel, bias) in bias.iter().enumerate() {
                for y in 0..outputs {
                    for x in 0..outputs {
                        let mut sum = f64::from(*bias);
                        for c in 0..2 {
                            for v in 0..kernel {
                                for u in 0..kernel {
                                    let (Some(row), Some(column)) = (
                                        (y * stride + v).checked_sub(before),
                                        (x * stride + u).checked_sub(before),
                                    ) else {
                                        continue;
                                    };
                                    if row >= side || column >= side {
                                        continue;
                                    }
                                    let tap = ((channel * 2 + c) * kernel + v) * kernel + u;
                                    sum += f64::from(weight[tap])
                                        * f64::from(input[(c * side + row) * side + column]);
                                }
                            }
                        }
                        expected.push(sum as f32);
                    }
                }
            }
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() < 1e-4,
                    "{side} {kernel} {stride}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn tensorflows_network_differs_in_padding_and_epsilon_alone() {
        let tensorflow = network(Definition::TensorFlow, 0.75);
        let timm = network(Definition::Timm, 0.75);
        assert_eq!(tensorflow.num_params(), timm.num_params());
        for path in [
            "conv_stem.norm.gamma",
            "blocks.2.1.se.conv_reduce.conv.bias",
            "conv_head.conv.weight",
        ] {
            assert_eq!(tensorflow.key(path), timm.key(path));
        }
        assert_eq!(Definition::TensorFlow.epsilon(), 1e-3);
        assert!(
            tensorflow
                .key_in(Layout::Torchvision, "conv_head.conv.weight")
                .is_none()
        );
    }
}

//! The inverted residual block of MobileNetV2 (arXiv 1801.04381) and MobileNetV3 (arXiv 1905.02244), and its names in
//! timm's, torchvision's and pytorch-ssd's checkpoints.
//!
//! The networks themselves are in `mobilenet_v2`, `mobilenet_v3` and `ssd`.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::layer::{Activation, ConvNormAct, ConvNormActConfig, ConvNormKeys, global_average};
use crate::unit::{Fixed, Grain, Tap, Unit};

/// Shape of an [`InvertedResidual`].
#[derive(Debug, Clone)]
pub struct InvertedResidualConfig {
    /// Input and output channels.
    pub channels: [usize; 2],
    /// Channels of the depthwise convolution; where none are given, it works on the input as it is.
    pub expanded: Option<usize>,
    /// Side of the depthwise kernel.
    pub kernel: usize,
    /// Stride of the depthwise convolution.
    pub stride: usize,
    /// What follows the expansion and the depthwise convolution.
    pub activation: Activation,
    /// Whether channels are gated by squeeze-and-excite.
    pub squeeze: bool,
    /// Epsilon of the batch norms.
    pub epsilon: f64,
    /// Whether padding is TensorFlow's "same".
    pub same: bool,
}

impl InvertedResidualConfig {
    /// Initializes the block.
    pub fn init(&self, device: &Device) -> InvertedResidual {
        let conv = |channels, kernel, stride, activation| {
            ConvNormActConfig::new(channels, kernel, stride)
                .with_activation(activation)
                .with_epsilon(self.epsilon)
                .with_same_padding(self.same)
        };
        let [input, output] = self.channels;
        let width = self.expanded.unwrap_or(input);
        InvertedResidual {
            conv_pw: self
                .expanded
                .map(|width| conv([input, width], 1, 1, self.activation).init(device)),
            conv_dw: conv([width, width], self.kernel, self.stride, self.activation)
                .grouped(width)
                .init(device),
            se: self.squeeze.then(|| SqueezeExcite::init(width, device)),
            conv_pwl: conv([width, output], 1, 1, Activation::Identity).init(device),
            joins: self.stride == 1 && input == output,
        }
    }
}

/// A 1x1 expansion, a depthwise convolution, a gate, and a linear 1x1 projection; plus the input where shapes agree.
#[derive(Module, Debug)]
pub struct InvertedResidual {
    conv_pw: Option<ConvNormAct>,
    conv_dw: ConvNormAct,
    se: Option<SqueezeExcite>,
    conv_pwl: ConvNormAct,
    #[module(skip)]
    joins: bool,
}

/// The gate of each channel, computed from all channels' means by two 1x1 convolutions.
#[derive(Module, Debug)]
pub struct SqueezeExcite {
    conv_reduce: ConvNormAct,
    conv_expand: ConvNormAct,
}

impl SqueezeExcite {
    fn init(channels: usize, device: &Device) -> Self {
        let squeezed = round_channels(channels as f64 / 4.0);
        let conv = |channels, activation| {
            ConvNormActConfig::new(channels, 1, 1)
                .without_norm()
                .with_activation(activation)
                .init(device)
        };
        Self {
            conv_reduce: conv([channels, squeezed], Activation::Relu),
            conv_expand: conv([squeezed, channels], Activation::HardSigmoid),
        }
    }
}

impl Unit<Tensor<4>> for InvertedResidual {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let expanded = self.expand(x.clone(), tap);
        self.project(x, expanded, tap)
    }
}

/// Beside a block's input: the expansion is wanted too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expansion;

impl Unit<(Tensor<4>, Fixed<Expansion>)> for InvertedResidual {
    /// The expansion, and the block's output.
    type Out = (Tensor<4>, Tensor<4>);
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, (x, _): (Tensor<4>, Fixed<Expansion>), tap: &mut T) -> Self::Out {
        let expanded = self.expand(x.clone(), tap);
        let output = self.project(x, expanded.clone(), tap);
        (expanded, output)
    }
}

impl InvertedResidual {
    /// What the depthwise convolution works on.
    fn expand<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        match &self.conv_pw {
            Some(conv_pw) => tap.unit("conv_pw", conv_pw, x),
            None => x,
        }
    }

    /// The block's output, from its input and that.
    fn project<T: Tap>(&self, x: Tensor<4>, expanded: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let mut y = tap.unit("conv_dw", &self.conv_dw, expanded);
        if let Some(se) = &self.se {
            let mut gate = global_average(y.clone());
            gate = tap.unit("se.conv_reduce", &se.conv_reduce, gate);
            gate = tap.unit("se.conv_expand", &se.conv_expand, gate);
            y = kernels::gate(y, gate);
        }
        y = tap.unit("conv_pwl", &self.conv_pwl, y);
        if self.joins {
            return kernels::join(y, x, Activation::Identity);
        }
        y
    }

    pub(crate) fn fold(self) -> Self {
        Self {
            conv_pw: self.conv_pw.map(ConvNormAct::fold),
            conv_dw: self.conv_dw.fold(),
            se: self.se,
            conv_pwl: self.conv_pwl.fold(),
            joins: self.joins,
        }
    }

    /// The checkpoint's key of what is called `part` below this block, which is called `block` there.
    pub(crate) fn key(&self, keys: Keys, block: &str, part: &[&str]) -> String {
        let [unit, rest @ ..] = part else {
            return block.to_owned();
        };
        let first = usize::from(self.conv_pw.is_some());
        let place = match *unit {
            "conv_pw" => 0,
            "conv_dw" => first,
            "se" => first + 1,
            _ => first + 1 + usize::from(self.se.is_some()),
        };
        if let ("se", [conv, rest @ ..]) = (*unit, rest) {
            let name = match (keys, *conv) {
                (Keys::Timm, conv) => format!("{block}.se.{conv}"),
                (_, "conv_reduce") => format!("{block}.block.{place}.fc1"),
                _ => format!("{block}.block.{place}.fc2"),
            };
            return ConvNormKeys::bare(&name).key(rest);
        }
        match keys {
            Keys::Timm => {
                // A block without expansion is another class there, whose projection has the expansion's name.
                let (name, norm) = match *unit {
                    "conv_pw" => ("conv_pw", 1),
                    "conv_dw" => ("conv_dw", first + 1),
                    _ if first == 1 => ("conv_pwl", 3),
                    _ => ("conv_pw", 2),
                };
                ConvNormKeys::beside(&format!("{block}.{name}"), &format!("{block}.bn{norm}"))
                    .key(rest)
            }
            Keys::TorchvisionV2 if *unit == "conv_pwl" => ConvNormKeys::beside(
                &format!("{block}.conv.{place}"),
                &format!("{block}.conv.{}", place + 1),
            )
            .key(rest),
            Keys::TorchvisionV2 => {
                ConvNormKeys::numbered(&format!("{block}.conv.{place}")).key(rest)
            }
            Keys::TorchvisionV3 => {
                ConvNormKeys::numbered(&format!("{block}.block.{place}")).key(rest)
            }
            Keys::PytorchSsd => ConvNormKeys::beside(
                &format!("{block}.conv.{}", 3 * place),
                &format!("{block}.conv.{}", 3 * place + 1),
            )
            .key(rest),
        }
    }
}

/// Whose names a checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// timm's: `blocks.1.0.conv_pw`, `blocks.1.0.bn1`.
    Timm,
    /// torchvision's of MobileNetV2: `features.2.conv.0.0`, `features.2.conv.0.1`; the projection one level higher.
    TorchvisionV2,
    /// torchvision's of MobileNetV3: `features.2.block.0.0`, `features.2.block.0.1`.
    TorchvisionV3,
    /// pytorch-ssd's of MobileNetV2: `base_net.2.conv.0`, `base_net.2.conv.1`; activations count.
    PytorchSsd,
}

/// Runs stages of blocks, announced as `blocks.<stage>.<place>`.
pub(crate) fn run_blocks<T: Tap>(
    stages: &[Vec<InvertedResidual>],
    mut x: Tensor<4>,
    tap: &mut T,
) -> Tensor<4> {
    for (stage, blocks) in stages.iter().enumerate() {
        for (place, block) in blocks.iter().enumerate() {
            x = tap.unit(&format!("blocks.{stage}.{place}"), block, x);
        }
    }
    x
}

/// The stages with every batch norm folded.
pub(crate) fn fold_blocks(stages: Vec<Vec<InvertedResidual>>) -> Vec<Vec<InvertedResidual>> {
    let fold = |blocks: Vec<_>| blocks.into_iter().map(InvertedResidual::fold).collect();
    stages.into_iter().map(fold).collect()
}

/// The stages with this epsilon in every batch norm.
pub(crate) fn blocks_with_epsilon(
    stages: Vec<Vec<InvertedResidual>>,
    epsilon: f64,
) -> Vec<Vec<InvertedResidual>> {
    let with = |block: InvertedResidual| InvertedResidual {
        conv_pw: block.conv_pw.map(|conv| conv.with_epsilon(epsilon)),
        conv_dw: block.conv_dw.with_epsilon(epsilon),
        conv_pwl: block.conv_pwl.with_epsilon(epsilon),
        ..block
    };
    let stage = |blocks: Vec<_>| blocks.into_iter().map(with).collect();
    stages.into_iter().map(stage).collect()
}

/// The checkpoint's key of what is called `blocks.<part>` here; none where no block is meant.
pub(crate) fn block_key(
    stages: &[Vec<InvertedResidual>],
    keys: Keys,
    part: &[&str],
) -> Option<String> {
    let [stage, place, rest @ ..] = part else {
        return None;
    };
    let (stage, place): (usize, usize) = (stage.parse().ok()?, place.parse().ok()?);
    let block = stages.get(stage)?.get(place)?;
    let name = match keys {
        Keys::Timm => format!("blocks.{stage}.{place}"),
        // One list holds the stem, then the blocks of all stages.
        _ => {
            let before: usize = stages[..stage].iter().map(Vec::len).sum();
            format!("features.{}", 1 + before + place)
        }
    };
    Some(block.key(keys, &name, rest))
}

/// The multiple of eight nearest to a scaled number of channels, at least eight and never below nine tenths of it.
pub(crate) fn round_channels(channels: f64) -> usize {
    let nearest = (((channels + 4.0) / 8.0).floor() * 8.0).max(8.0);
    let rounded = if nearest < 0.9 * channels {
        nearest + 8.0
    } else {
        nearest
    };
    rounded as usize
}

#[cfg(test)]
mod tests {
    use super::round_channels;

    #[test]
    fn channels_are_rounded_to_eight() {
        for (channels, expected) in [
            (0.8, 8),
            (11.2, 16),
            (12.0, 16),
            (18.0, 24),
            (22.4, 24),
            (28.0, 32),
            (33.6, 32),
            (44.8, 48),
            (1792.0, 1792),
        ] {
            assert_eq!(round_channels(channels), expected, "{channels}");
        }
    }
}

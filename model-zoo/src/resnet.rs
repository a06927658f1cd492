//! ResNet (He et al. 2015, arXiv 1512.03385) as torchvision and timm define it, and the CIFAR form with a 3x3 stem,
//! three stages and projection shortcuts.
//!
//! From ResNet-50 on, the stride is on the 3x3 convolution ("v1.5"). Names are the checkpoint's; a convolution and its
//! batch norm are one module here (`conv1.conv`, `conv1.norm` for `conv1`, `bn1`), which [`key`] undoes.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::layer::{Activation, ConvNormAct, ConvNormActConfig, Pool, PoolLinear};
use crate::unit::{Grain, Network, Tap, Unit};

/// The residual block of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1, 3x3 and 1x1, four times as wide at the end.
    Bottleneck,
}

/// How a network begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stem {
    /// 7x7 with stride 2 and a max-pool with stride 2.
    ImageNet,
    /// 3x3 with the given stride.
    Small {
        /// Stride.
        stride: usize,
    },
}

/// One size of the family: a row of the catalog's table.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// The residual block.
    pub block: Block,
    /// The stem.
    pub stem: Stem,
    /// Blocks in each stage.
    pub depths: &'static [usize],
    /// Channels of the first stage (and of the stem); each stage doubles them.
    pub width: usize,
    /// Classes.
    pub classes: usize,
}

/// A residual network.
#[derive(Module, Debug)]
pub struct ResNet {
    conv1: ConvNormAct,
    layer1: Vec<Residual>,
    layer2: Vec<Residual>,
    layer3: Vec<Residual>,
    layer4: Vec<Residual>,
    fc: PoolLinear,
}

/// A residual block: the convolutions, plus the input or its projection, and a ReLU.
#[derive(Module, Debug)]
pub struct Residual {
    conv1: ConvNormAct,
    conv2: ConvNormAct,
    conv3: Option<ConvNormAct>,
    downsample: Option<ConvNormAct>,
}

impl Unit<Tensor<4>> for Residual {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let mut y = tap.unit("conv1", &self.conv1, x.clone());
        y = tap.unit("conv2", &self.conv2, y);
        if let Some(conv3) = &self.conv3 {
            y = tap.unit("conv3", conv3, y);
        }
        let skip = match &self.downsample {
            Some(downsample) => tap.unit("downsample", downsample, x),
            None => x,
        };
        kernels::join(y, skip, Activation::Relu)
    }
}

/// Stem and stages: everything before the classifier, which detectors take as their backbone.
pub(crate) struct Body {
    pub(crate) conv1: ConvNormAct,
    pub(crate) stages: [Vec<Residual>; 4],
    /// Channels that each stage gives; 0 where there is none.
    pub(crate) channels: [usize; 4],
}

impl Residual {
    fn init(block: Block, input: usize, width: usize, stride: usize, device: &Device) -> Self {
        let conv = ConvNormActConfig::new;
        let output = width * block.expansion();
        let (conv1, conv2, conv3) = match block {
            Block::Basic => (
                conv([input, width], 3, stride),
                conv([width, width], 3, 1).linear(),
                None,
            ),
            Block::Bottleneck => (
                conv([input, width], 1, 1),
                conv([width, width], 3, stride),
                Some(conv([width, output], 1, 1).linear()),
            ),
        };
        let projects = stride != 1 || input != output;
        Self {
            conv1: conv1.init(device),
            conv2: conv2.init(device),
            conv3: conv3.map(|c| c.init(device)),
            downsample: projects.then(|| conv([input, output], 1, stride).linear().init(device)),
        }
    }

    /// The block with this epsilon in its batch norms.
    pub(crate) fn with_epsilon(self, epsilon: f64) -> Self {
        let with = |layer: ConvNormAct| layer.with_epsilon(epsilon);
        Self {
            conv1: with(self.conv1),
            conv2: with(self.conv2),
            conv3: self.conv3.map(with),
            downsample: self.downsample.map(with),
        }
    }

    pub(crate) fn fold(self) -> Self {
        Self {
            conv1: self.conv1.fold(),
            conv2: self.conv2.fold(),
            conv3: self.conv3.map(ConvNormAct::fold),
            downsample: self.downsample.map(ConvNormAct::fold),
        }
    }
}

impl Block {
    fn expansion(self) -> usize {
        match self {
            Block::Basic => 1,
            Block::Bottleneck => 4,
        }
    }
}

impl Size {
    /// Everything before the classifier, with random weights.
    pub(crate) fn body(&self, device: &Device) -> Body {
        let (kernel, stride) = match self.stem {
            Stem::ImageNet => (7, 2),
            Stem::Small { stride } => (3, stride),
        };
        let mut stem = ConvNormActConfig::new([3, self.width], kernel, stride);
        stem.pool = (self.stem == Stem::ImageNet).then_some(Pool::Three);
        let mut channels = self.width;
        let mut stages = self.depths.iter().enumerate().map(|(stage, &depth)| {
            let width = self.width << stage;
            (0..depth)
                .map(|place| {
                    let stride = if stage > 0 && place == 0 { 2 } else { 1 };
                    let input = std::mem::replace(&mut channels, width * self.block.expansion());
                    Residual::init(self.block, input, width, stride, device)
                })
                .collect()
        });
        let mut next = || stages.next().unwrap_or_default();
        let stages = [next(), next(), next(), next()];
        let width = |stage: usize| match self.depths.get(stage) {
            Some(_) => (self.width << stage) * self.block.expansion(),
            None => 0,
        };
        Body {
            conv1: stem.init(device),
            stages,
            channels: [0, 1, 2, 3].map(width),
        }
    }

    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> ResNet {
        let Body {
            conv1,
            stages: [layer1, layer2, layer3, layer4],
            channels,
        } = self.body(device);
        let last = channels.into_iter().rfind(|&channels| channels > 0);
        ResNet {
            conv1,
            layer1,
            layer2,
            layer3,
            layer4,
            fc: PoolLinear::init(last.unwrap_or(self.width), self.classes, device),
        }
    }
}

impl Network for ResNet {
    type Input = Tensor<4>;
    type Output = Tensor<2>;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<2> {
        let mut x = tap.unit("conv1", &self.conv1, x);
        let stages = [&self.layer1, &self.layer2, &self.layer3, &self.layer4];
        for (stage, blocks) in stages.into_iter().enumerate() {
            for (place, block) in blocks.iter().enumerate() {
                x = tap.unit(&format!("layer{}.{place}", stage + 1), block, x);
            }
        }
        tap.unit("fc", &self.fc, x)
    }

    fn key(&self, path: &str) -> String {
        key(path)
    }

    fn classifier(&self) -> Option<String> {
        Some("fc.linear".to_owned())
    }

    fn with_classes(self, classes: usize) -> Self {
        Self {
            fc: self.fc.with_classes(classes),
            ..self
        }
    }

    fn fold(self) -> Self {
        let fold = |blocks: Vec<Residual>| blocks.into_iter().map(Residual::fold).collect();
        Self {
            conv1: self.conv1.fold(),
            layer1: fold(self.layer1),
            layer2: fold(self.layer2),
            layer3: fold(self.layer3),
            layer4: fold(self.layer4),
            fc: self.fc,
        }
    }
}

/// The checkpoint's name: `layer1.0.conv2.conv.weight` is `layer1.0.conv2.weight`, `layer1.0.conv2.norm.gamma` is
/// `layer1.0.bn2.weight`, and the projection's two are numbered.
pub fn key(path: &str) -> String {
    let mut names: Vec<String> = Vec::new();
    for name in path.split('.') {
        let last = names.last().map(String::as_str);
        match (name, last) {
            ("conv", Some("downsample")) => names.push("0".into()),
            ("norm", Some("downsample")) => names.push("1".into()),
            ("conv", Some(_)) | ("linear", Some("fc")) => {}
            ("norm", Some(conv)) => {
                let bn = conv.replace("conv", "bn");
                names.pop();
                names.push(bn);
            }
            ("gamma", _) => names.push("weight".into()),
            ("beta", _) => names.push("bias".into()),
            _ => names.push(name.into()),
        }
    }
    names.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_checkpoints() {
        for (path, expected) in [
            ("conv1.conv.weight", "conv1.weight"),
            ("conv1.norm.gamma", "bn1.weight"),
            ("layer1.0.conv2.conv.weight", "layer1.0.conv2.weight"),
            ("layer1.0.conv3.norm.beta", "layer1.0.bn3.bias"),
            (
                "layer1.0.conv2.norm.running_mean",
                "layer1.0.bn2.running_mean",
            ),
            (
                "layer2.0.downsample.conv.weight",
                "layer2.0.downsample.0.weight",
            ),
            (
                "layer2.0.downsample.norm.running_var",
                "layer2.0.downsample.1.running_var",
            ),
            ("fc.linear.bias", "fc.bias"),
            ("layer4.0.conv2.conv", "layer4.0.conv2"),
            ("layer2.0.downsample.conv", "layer2.0.downsample.0"),
        ] {
            assert_eq!(key(path), expected);
        }
    }
}

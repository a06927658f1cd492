//! RegNetX (Radosavovic et al. 2020, arXiv 2003.13678) as timm defines it: four stages of bottleneck blocks as wide
//! inside as outside, whose 3x3 convolution is grouped.
//!
//! The paper's rule for widths is applied already: a row holds the stages it gives. Names are the checkpoint's, but
//! blocks count from 0 here (`s1.0` for `s1.b1`), and batch norms are called `norm`; [`key`] undoes both.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::layer::{Activation, ConvNormAct, ConvNormActConfig, ConvNormKeys, PoolLinear, join};
use crate::unit::{Grain, Layout, Network, Tap, Unit};

/// One size of the family: a row of the catalog's table.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Channels and stride of the stem.
    pub stem: (usize, usize),
    /// Blocks in each stage.
    pub depths: [usize; 4],
    /// Channels of each stage.
    pub widths: [usize; 4],
    /// Channels of a group of the 3x3 convolutions.
    pub group_width: usize,
    /// Classes.
    pub classes: usize,
}

/// A RegNetX.
#[derive(Module, Debug)]
pub struct RegNetX {
    stem: ConvNormAct,
    s1: Vec<XBlock>,
    s2: Vec<XBlock>,
    s3: Vec<XBlock>,
    s4: Vec<XBlock>,
    head: PoolLinear,
}

/// The X block: 1x1, grouped 3x3 and 1x1, plus the input or its projection, and a ReLU.
#[derive(Module, Debug)]
pub struct XBlock {
    conv1: ConvNormAct,
    conv2: ConvNormAct,
    conv3: ConvNormAct,
    downsample: Option<ConvNormAct>,
}

impl Unit<Tensor<4>> for XBlock {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let y = tap.unit("conv1", &self.conv1, x.clone());
        let y = tap.unit("conv2", &self.conv2, y);
        let y = tap.unit("conv3", &self.conv3, y);
        let skip = match &self.downsample {
            Some(downsample) => tap.unit("downsample", downsample, x),
            None => x,
        };
        kernels::join(y, skip, Activation::Relu)
    }
}

impl XBlock {
    fn init(
        [input, width]: [usize; 2],
        stride: usize,
        group_width: usize,
        device: &Device,
    ) -> Self {
        let conv = ConvNormActConfig::new;
        let projects = stride != 1 || input != width;
        Self {
            conv1: conv([input, width], 1, 1).init(device),
            conv2: conv([width, width], 3, stride)
                .grouped(width / group_width)
                .init(device),
            conv3: conv([width, width], 1, 1).linear().init(device),
            downsample: projects.then(|| conv([input, width], 1, stride).linear().init(device)),
        }
    }

    fn fold(self) -> Self {
        Self {
            conv1: self.conv1.fold(),
            conv2: self.conv2.fold(),
            conv3: self.conv3.fold(),
            downsample: self.downsample.map(ConvNormAct::fold),
        }
    }
}

impl Size {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> RegNetX {
        let (stem, stride) = self.stem;
        let stage = |place: usize| {
            let width = self.widths[place];
            (0..self.depths[place])
                .map(|block| {
                    let (input, stride) = match (block, place) {
                        (0, 0) => (stem, 2),
                        (0, place) => (self.widths[place - 1], 2),
                        _ => (width, 1),
                    };
                    XBlock::init([input, width], stride, self.group_width, device)
                })
                .collect()
        };
        RegNetX {
            stem: ConvNormActConfig::new([3, stem], 3, stride).init(device),
            s1: stage(0),
            s2: stage(1),
            s3: stage(2),
            s4: stage(3),
            head: PoolLinear::init(self.widths[3], self.classes, device),
        }
    }
}

impl Network for RegNetX {
    type Input = Tensor<4>;
    type Output = Tensor<2>;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<2> {
        let mut x = tap.unit("stem", &self.stem, x);
        let stages = [&self.s1, &self.s2, &self.s3, &self.s4];
        for (stage, blocks) in stages.into_iter().enumerate() {
            for (place, block) in blocks.iter().enumerate() {
                x = tap.unit(&format!("s{}.{place}", stage + 1), block, x);
            }
        }
        // The definition has room for a convolution here, which no RegNetX uses.
        tap.mark("final_conv", &x);
        tap.unit("head", &self.head, x)
    }

    fn key(&self, path: &str) -> String {
        key(path)
    }

    fn key_in(&self, layout: Layout, path: &str) -> Option<String> {
        match layout {
            Layout::Timm => Some(key(path)),
            Layout::Torchvision => Some(torchvision_key(path)),
            Layout::TorchvisionFirst | Layout::DiffusersFirst => None,
        }
    }

    fn classifier(&self) -> Option<String> {
        Some("head.linear".to_owned())
    }

    fn with_classes(self, classes: usize) -> Self {
        Self {
            head: self.head.with_classes(classes),
            ..self
        }
    }

    fn fold(self) -> Self {
        let fold = |blocks: Vec<XBlock>| blocks.into_iter().map(XBlock::fold).collect();
        Self {
            stem: self.stem.fold(),
            s1: fold(self.s1),
            s2: fold(self.s2),
            s3: fold(self.s3),
            s4: fold(self.s4),
            head: self.head,
        }
    }
}

/// The checkpoint's name: `s1.0.conv2.norm.gamma` is `s1.b1.conv2.bn.weight`, and the classifier is `head.fc`.
pub fn key(path: &str) -> String {
    let names: Vec<String> = path
        .split('.')
        .map(|name| match name {
            "norm" => "bn".into(),
            "gamma" => "weight".into(),
            "beta" => "bias".into(),
            "linear" => "fc".into(),
            name => match name.parse::<usize>() {
                Ok(block) => format!("b{}", block + 1),
                Err(_) => name.into(),
            },
        })
        .collect();
    names.join(".")
}

/// torchvision's name: `s1.0.conv2.norm.gamma` is `trunk_output.block1.block1-0.f.b.1.weight`.
fn torchvision_key(path: &str) -> String {
    let names: Vec<&str> = path.split('.').collect();
    match names.as_slice() {
        ["stem", rest @ ..] => ConvNormKeys::numbered("stem").key(rest),
        ["head", "linear", rest @ ..] => join("fc", rest),
        [stage, block, conv, rest @ ..] => {
            let stage = stage.trim_start_matches('s');
            let place = match *conv {
                "conv1" => "f.a",
                "conv2" => "f.b",
                "conv3" => "f.c",
                _ => "proj",
            };
            let layer = format!("trunk_output.block{stage}.block{stage}-{block}.{place}");
            ConvNormKeys::numbered(&layer).key(rest)
        }
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_checkpoints() {
        for (path, expected) in [
            ("stem.conv.weight", "stem.conv.weight"),
            ("stem.norm.gamma", "stem.bn.weight"),
            ("s1.0.conv2.conv.weight", "s1.b1.conv2.conv.weight"),
            ("s3.11.conv3.norm.beta", "s3.b12.conv3.bn.bias"),
            (
                "s2.0.downsample.norm.running_var",
                "s2.b1.downsample.bn.running_var",
            ),
            ("head.linear.bias", "head.fc.bias"),
            ("s4.1", "s4.b2"),
        ] {
            assert_eq!(key(path), expected);
        }
    }
}

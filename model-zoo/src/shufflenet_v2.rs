//! ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164) as torchvision defines it.
//!
//! Names are the checkpoint's; a convolution and its batch norm are one module here, so that the branches, which are
//! sequences of convolutions, norms and activations there, are lists of layers (`branch2.1.conv`, `branch2.1.norm` for
//! `branch2.3`, `branch2.4`).

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::layer::{ConvNormAct, ConvNormActConfig, ConvNormKeys, Pool, PoolLinear, join};
use crate::unit::{Grain, Network, Tap, Unit};

/// How a network begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stem {
    /// Stride 2 and a max-pool with stride 2.
    ImageNet,
    /// Stride 1.
    Small,
}

/// One size of the family: a row of the catalog's table.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// The stem and its channels.
    pub stem: (Stem, usize),
    /// Blocks and channels of each stage.
    pub stages: [(usize, usize); 3],
    /// Channels of the last convolution.
    pub head: usize,
    /// Classes.
    pub classes: usize,
}

/// A ShuffleNetV2.
#[derive(Module, Debug)]
pub struct ShuffleNetV2 {
    conv1: ConvNormAct,
    stage2: Vec<Shuffle>,
    stage3: Vec<Shuffle>,
    stage4: Vec<Shuffle>,
    conv5: ConvNormAct,
    fc: PoolLinear,
}

/// Two branches side by side and a shuffle of their channels. A stage's first block gives the whole input to both, with
/// stride 2; the others pass one half of the channels by and work on the other.
#[derive(Module, Debug)]
pub struct Shuffle {
    /// A depthwise and a 1x1 convolution; empty where half of the channels pass by.
    branch1: Vec<ConvNormAct>,
    /// 1x1, depthwise and 1x1 convolutions.
    branch2: Vec<ConvNormAct>,
}

impl Unit<Tensor<4>> for Shuffle {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let (first, second) = if self.branch1.is_empty() {
            let half = x.dims()[1] / 2;
            (x.clone().narrow(1, 0, half), x.narrow(1, half, half))
        } else {
            (x.clone(), x)
        };
        let first = run_branch("branch1", &self.branch1, first, tap);
        let second = run_branch("branch2", &self.branch2, second, tap);
        interleave(first, second)
    }
}

fn run_branch<T: Tap>(
    name: &str,
    layers: &[ConvNormAct],
    mut x: Tensor<4>,
    tap: &mut T,
) -> Tensor<4> {
    for (place, layer) in layers.iter().enumerate() {
        x = tap.unit(&format!("{name}.{place}"), layer, x);
    }
    x
}

/// The channels of two images by turns: the paper's shuffle with two groups.
fn interleave(first: Tensor<4>, second: Tensor<4>) -> Tensor<4> {
    let [images, channels, height, width] = first.dims();
    let pairs: Tensor<5> = Tensor::stack(vec![first, second], 2);
    pairs.reshape([images, 2 * channels, height, width])
}

impl Shuffle {
    fn init(input: usize, output: usize, stride: usize, device: &Device) -> Self {
        let half = output / 2;
        let pointwise = |input| ConvNormActConfig::new([input, half], 1, 1).init(device);
        let depthwise = |channels| {
            ConvNormActConfig::new([channels, channels], 3, stride)
                .grouped(channels)
                .linear()
                .init(device)
        };
        let reduces = stride > 1;
        Self {
            branch1: if reduces {
                vec![depthwise(input), pointwise(input)]
            } else {
                Vec::new()
            },
            branch2: vec![
                pointwise(if reduces { input } else { half }),
                depthwise(half),
                pointwise(half),
            ],
        }
    }

    fn fold(self) -> Self {
        let fold = |layers: Vec<_>| layers.into_iter().map(ConvNormAct::fold).collect();
        Self {
            branch1: fold(self.branch1),
            branch2: fold(self.branch2),
        }
    }
}

impl Size {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> ShuffleNetV2 {
        let (stem, mut channels) = self.stem;
        let conv1 = match stem {
            Stem::ImageNet => ConvNormActConfig {
                pool: Some(Pool::Three),
                ..ConvNormActConfig::new([3, channels], 3, 2)
            },
            Stem::Small => ConvNormActConfig::new([3, channels], 3, 1),
        };
        let [stage2, stage3, stage4] = self.stages.map(|(depth, output)| {
            (0..depth)
                .map(|place| {
                    let input = std::mem::replace(&mut channels, output);
                    let stride = if place == 0 { 2 } else { 1 };
                    Shuffle::init(input, output, stride, device)
                })
                .collect()
        });
        ShuffleNetV2 {
            conv1: conv1.init(device),
            stage2,
            stage3,
            stage4,
            conv5: ConvNormActConfig::new([channels, self.head], 1, 1).init(device),
            fc: PoolLinear::init(self.head, self.classes, device),
        }
    }
}

impl Network for ShuffleNetV2 {
    type Input = Tensor<4>;
    type Output = Tensor<2>;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<2> {
        let mut x = tap.unit("conv1", &self.conv1, x);
        let stages = [&self.stage2, &self.stage3, &self.stage4];
        for (stage, blocks) in stages.into_iter().enumerate() {
            for (place, block) in blocks.iter().enumerate() {
                x = tap.unit(&format!("stage{}.{place}", stage + 2), block, x);
            }
        }
        let x = tap.unit("conv5", &self.conv5, x);
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
        let fold = |blocks: Vec<Shuffle>| blocks.into_iter().map(Shuffle::fold).collect();
        Self {
            conv1: self.conv1.fold(),
            stage2: fold(self.stage2),
            stage3: fold(self.stage3),
            stage4: fold(self.stage4),
            conv5: self.conv5.fold(),
            fc: self.fc,
        }
    }
}

/// The checkpoint's name: `conv1.norm.gamma` is `conv1.1.weight`, and branches count norms and activations too.
pub fn key(path: &str) -> String {
    let names: Vec<&str> = path.split('.').collect();
    match names.as_slice() {
        [conv @ ("conv1" | "conv5"), rest @ ..] => ConvNormKeys::numbered(conv).key(rest),
        ["fc", "linear", rest @ ..] => join("fc", rest),
        [stage, block, branch, place, rest @ ..] => {
            // An activation follows every 1x1 convolution, but no depthwise one.
            let (conv, norm) = match (*branch, *place) {
                (_, "0") => ("0", "1"),
                ("branch1", _) => ("2", "3"),
                (_, "1") => ("3", "4"),
                _ => ("5", "6"),
            };
            let branch = format!("{stage}.{block}.{branch}");
            ConvNormKeys::beside(&format!("{branch}.{conv}"), &format!("{branch}.{norm}")).key(rest)
        }
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    #[test]
    fn keys_are_the_checkpoints() {
        for (path, expected) in [
            ("conv1.conv.weight", "conv1.0.weight"),
            ("conv5.norm.running_var", "conv5.1.running_var"),
            ("stage2.0", "stage2.0"),
            (
                "stage2.0.branch1.1.conv.weight",
                "stage2.0.branch1.2.weight",
            ),
            ("stage2.0.branch1.1.norm.beta", "stage2.0.branch1.3.bias"),
            ("stage3.1.branch2.0.norm.gamma", "stage3.1.branch2.1.weight"),
            ("stage3.1.branch2.1.conv", "stage3.1.branch2.3"),
            ("stage4.3.branch2.2.norm.gamma", "stage4.3.branch2.6.weight"),
            ("fc.linear.weight", "fc.weight"),
        ] {
            assert_eq!(key(path), expected);
        }
    }

    #[test]
    fn channels_of_the_branches_take_turns() {
        let image = |values: [f32; 3]| {
            Tensor::<4>::from_data(
                TensorData::new(values.to_vec(), [1, 3, 1, 1]),
                &Device::flex(),
            )
        };
        let mixed = interleave(image([0.0, 1.0, 2.0]), image([3.0, 4.0, 5.0]));
        let values: Vec<f32> = mixed.into_data().iter::<f32>().collect();
        assert_eq!(values, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }
}

//! Inception-v3 (Szegedy et al. 2015, arXiv 1512.00567) as the Fréchet Inception distance is defined on it: TensorFlow's
//! network of 2015 in the keys that pytorch-fid gave it.
//!
//! It measures and is never pruned, so it is not in the catalog. Its output is what the distance compares: the 2,048
//! channel means behind the last block. The classifier is in the file, with 1,008 classes, and never runs.
//!
//! Where torchvision's network differs, and a distance with it: average pooling here leaves the padding out of its count,
//! the last block takes a maximum where all others average, and inputs are 299 x 299 pixels in [-1, 1].

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::module::{avg_pool2d, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use burn::tensor::{Device, Tensor};

use crate::layer::{ConvNormAct, ConvNormActConfig, ConvNormKeys, Padding, global_average, join};
use crate::unit::{Grain, Network, Tap, Unit};

/// What the network is called.
pub const NAME: &str = "fid_inception_v3";
/// The name of the published weight file; the digits are the first of its SHA-256.
pub const FILE: &str = "pt_inception-2015-12-05-6726825d.pth";
/// Where the file is published, by pytorch-fid under Apache-2.0.
pub const ADDRESS: &str = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth";
/// Side of an input in pixels.
pub const SIDE: usize = 299;
/// Features of an image.
pub const FEATURES: usize = 2048;
/// Classes of the classifier that never runs.
const CLASSES: usize = 1008;
/// Of every batch norm.
const EPSILON: f64 = 1e-3;

/// A convolution with its batch norm and ReLU, as a row of the tables below.
#[derive(Debug, Clone, Copy)]
struct Conv {
    /// Its name in the checkpoint.
    name: &'static str,
    /// Output channels.
    width: usize,
    /// Height and width of the kernel.
    kernel: [usize; 2],
    stride: usize,
    padding: Padding,
}

/// Stride 1, the size kept.
const fn conv(name: &'static str, width: usize, kernel: [usize; 2]) -> Conv {
    Conv {
        name,
        width,
        kernel,
        stride: 1,
        padding: Padding::Half,
    }
}

impl Conv {
    const fn unpadded(mut self) -> Self {
        self.padding = Padding::Valid;
        self
    }

    /// Half the size, without padding.
    const fn halving(mut self) -> Self {
        self.stride = 2;
        self.unpadded()
    }

    fn init(&self, input: usize, device: &Device) -> ConvNormAct {
        ConvNormActConfig::new([input, self.width], 1, self.stride)
            .with_kernel(self.kernel)
            .with_padding(self.padding)
            .with_epsilon(EPSILON)
            .init(device)
    }
}

const ONE: [usize; 2] = [1, 1];
const THREE: [usize; 2] = [3, 3];
const FIVE: [usize; 2] = [5, 5];

/// The convolutions before the blocks.
const STEM: [Conv; 5] = [
    conv("Conv2d_1a_3x3", 32, THREE).halving(),
    conv("Conv2d_2a_3x3", 32, THREE).unpadded(),
    conv("Conv2d_2b_3x3", 64, THREE),
    conv("Conv2d_3b_1x1", 80, ONE),
    conv("Conv2d_4a_3x3", 192, THREE).unpadded(),
];
/// The places in the stem behind which a max-pooling halves the size.
const POOLED: [usize; 2] = [2, 4];

/// How a branch pools its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    /// 3 x 3 means of what lies inside the image.
    Average,
    /// 3 x 3 maxima.
    Max,
    /// 3 x 3 maxima with stride 2 and no padding.
    Halving,
}

impl Pooling {
    fn forward(self, x: Tensor<4>) -> Tensor<4> {
        let max = MaxPoolOptions::new(THREE);
        match self {
            Pooling::Average => {
                let options = AvgPoolOptions::new(THREE)
                    .with_stride([1, 1])
                    .with_padding([1, 1]);
                avg_pool2d(x, options.with_count_include_pad(false))
            }
            Pooling::Max => max_pool2d(x, max.with_stride([1, 1]).with_padding([1, 1])),
            Pooling::Halving => max_pool2d(x, max.with_stride([2, 2])),
        }
    }
}

/// A branch of a block: a pooling, a chain of convolutions, and convolutions side by side on what the chain gives.
#[derive(Debug, Clone)]
struct Path {
    pooling: Option<Pooling>,
    chain: Vec<Conv>,
    fork: Vec<Conv>,
}

fn chain(convs: &[Conv]) -> Path {
    Path {
        pooling: None,
        chain: convs.to_vec(),
        fork: Vec::new(),
    }
}

fn forked(convs: &[Conv], fork: [Conv; 2]) -> Path {
    Path {
        fork: fork.to_vec(),
        ..chain(convs)
    }
}

fn pooled(pooling: Pooling, convs: &[Conv]) -> Path {
    Path {
        pooling: Some(pooling),
        ..chain(convs)
    }
}

impl Path {
    /// Output channels, for `input` channels.
    fn width(&self, input: usize) -> usize {
        if self.fork.is_empty() {
            self.chain.last().map_or(input, |conv| conv.width)
        } else {
            self.fork.iter().map(|conv| conv.width).sum()
        }
    }
}

/// At 35 x 35 positions.
fn mixed_5(pool: usize) -> Vec<Path> {
    vec![
        chain(&[conv("branch1x1", 64, ONE)]),
        chain(&[conv("branch5x5_1", 48, ONE), conv("branch5x5_2", 64, FIVE)]),
        chain(&[
            conv("branch3x3dbl_1", 64, ONE),
            conv("branch3x3dbl_2", 96, THREE),
            conv("branch3x3dbl_3", 96, THREE),
        ]),
        pooled(Pooling::Average, &[conv("branch_pool", pool, ONE)]),
    ]
}

/// From 35 x 35 to 17 x 17.
fn mixed_6a() -> Vec<Path> {
    vec![
        chain(&[conv("branch3x3", 384, THREE).halving()]),
        chain(&[
            conv("branch3x3dbl_1", 64, ONE),
            conv("branch3x3dbl_2", 96, THREE),
            conv("branch3x3dbl_3", 96, THREE).halving(),
        ]),
        pooled(Pooling::Halving, &[]),
    ]
}

/// At 17 x 17 positions: the 7 x 7 convolutions are pairs of 1 x 7 and 7 x 1.
fn mixed_6(inner: usize) -> Vec<Path> {
    const ROW: [usize; 2] = [1, 7];
    const COLUMN: [usize; 2] = [7, 1];
    vec![
        chain(&[conv("branch1x1", 192, ONE)]),
        chain(&[
            conv("branch7x7_1", inner, ONE),
            conv("branch7x7_2", inner, ROW),
            conv("branch7x7_3", 192, COLUMN),
        ]),
        chain(&[
            conv("branch7x7dbl_1", inner, ONE),
            conv("branch7x7dbl_2", inner, COLUMN),
            conv("branch7x7dbl_3", inner, ROW),
            conv("branch7x7dbl_4", inner, COLUMN),
            conv("branch7x7dbl_5", 192, ROW),
        ]),
        pooled(Pooling::Average, &[conv("branch_pool", 192, ONE)]),
    ]
}

/// From 17 x 17 to 8 x 8.
fn mixed_7a() -> Vec<Path> {
    vec![
        chain(&[
            conv("branch3x3_1", 192, ONE),
            conv("branch3x3_2", 320, THREE).halving(),
        ]),
        chain(&[
            conv("branch7x7x3_1", 192, ONE),
            conv("branch7x7x3_2", 192, [1, 7]),
            conv("branch7x7x3_3", 192, [7, 1]),
            conv("branch7x7x3_4", 192, THREE).halving(),
        ]),
        pooled(Pooling::Halving, &[]),
    ]
}

/// At 8 x 8 positions.
fn mixed_7(pooling: Pooling) -> Vec<Path> {
    const ROW: [usize; 2] = [1, 3];
    const COLUMN: [usize; 2] = [3, 1];
    vec![
        chain(&[conv("branch1x1", 320, ONE)]),
        forked(
            &[conv("branch3x3_1", 384, ONE)],
            [
                conv("branch3x3_2a", 384, ROW),
                conv("branch3x3_2b", 384, COLUMN),
            ],
        ),
        forked(
            &[
                conv("branch3x3dbl_1", 448, ONE),
                conv("branch3x3dbl_2", 384, THREE),
            ],
            [
                conv("branch3x3dbl_3a", 384, ROW),
                conv("branch3x3dbl_3b", 384, COLUMN),
            ],
        ),
        pooled(pooling, &[conv("branch_pool", 192, ONE)]),
    ]
}

/// The blocks, by their names in the checkpoint.
fn blocks() -> [(&'static str, Vec<Path>); 11] {
    [
        ("Mixed_5b", mixed_5(32)),
        ("Mixed_5c", mixed_5(64)),
        ("Mixed_5d", mixed_5(64)),
        ("Mixed_6a", mixed_6a()),
        ("Mixed_6b", mixed_6(128)),
        ("Mixed_6c", mixed_6(160)),
        ("Mixed_6d", mixed_6(160)),
        ("Mixed_6e", mixed_6(192)),
        ("Mixed_7a", mixed_7a()),
        ("Mixed_7b", mixed_7(Pooling::Average)),
        ("Mixed_7c", mixed_7(Pooling::Max)),
    ]
}

/// The network.
#[derive(Module, Debug)]
pub struct Inception {
    stem: Vec<ConvNormAct>,
    blocks: Vec<Mixed>,
    /// Part of the file; never runs.
    fc: Linear,
}

/// A block: branches side by side, their channels joined.
#[derive(Module, Debug)]
pub struct Mixed {
    branches: Vec<Branch>,
}

/// A branch of a block.
#[derive(Module, Debug)]
pub struct Branch {
    chain: Vec<ConvNormAct>,
    fork: Vec<ConvNormAct>,
    #[module(skip)]
    pooling: Option<Pooling>,
}

impl Branch {
    fn init(path: &Path, input: usize, device: &Device) -> Self {
        let mut channels = input;
        let chain = path
            .chain
            .iter()
            .map(|conv| conv.init(std::mem::replace(&mut channels, conv.width), device))
            .collect();
        let fork = path.fork.iter();
        Self {
            chain,
            fork: fork.map(|conv| conv.init(channels, device)).collect(),
            pooling: path.pooling,
        }
    }

    fn fold(self) -> Self {
        Self {
            chain: folded(self.chain),
            fork: folded(self.fork),
            ..self
        }
    }
}

fn folded(layers: Vec<ConvNormAct>) -> Vec<ConvNormAct> {
    layers.into_iter().map(ConvNormAct::fold).collect()
}

impl Unit<Tensor<4>> for Mixed {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let mut parts = Vec::new();
        for (at, branch) in self.branches.iter().enumerate() {
            let mut y = match branch.pooling {
                Some(pooling) => pooling.forward(x.clone()),
                None => x.clone(),
            };
            for (place, conv) in branch.chain.iter().enumerate() {
                y = tap.unit(&format!("branches.{at}.chain.{place}"), conv, y);
            }
            for (place, conv) in branch.fork.iter().enumerate() {
                parts.push(tap.unit(&format!("branches.{at}.fork.{place}"), conv, y.clone()));
            }
            if branch.fork.is_empty() {
                parts.push(y);
            }
        }
        Tensor::cat(parts, 1)
    }
}

impl Inception {
    /// The network with random weights.
    pub fn init(device: &Device) -> Self {
        let mut channels = 3;
        let stem = STEM
            .iter()
            .map(|conv| conv.init(std::mem::replace(&mut channels, conv.width), device))
            .collect();
        let blocks = blocks()
            .iter()
            .map(|(_, paths)| {
                let output = paths.iter().map(|path| path.width(channels)).sum();
                let input = std::mem::replace(&mut channels, output);
                let branch = |path| Branch::init(path, input, device);
                Mixed {
                    branches: paths.iter().map(branch).collect(),
                }
            })
            .collect();
        Self {
            stem,
            blocks,
            fc: LinearConfig::new(FEATURES, CLASSES).init(device),
        }
    }
}

impl Network for Inception {
    /// Images of 299 x 299, values in [-1, 1].
    type Input = Tensor<4>;
    /// A row of features per image.
    type Output = Tensor<2>;

    fn run<T: Tap>(&self, mut x: Tensor<4>, tap: &mut T) -> Tensor<2> {
        for (place, conv) in self.stem.iter().enumerate() {
            x = tap.unit(&format!("stem.{place}"), conv, x);
            if POOLED.contains(&place) {
                x = Pooling::Halving.forward(x);
            }
        }
        for (place, block) in self.blocks.iter().enumerate() {
            x = tap.unit(&format!("blocks.{place}"), block, x);
        }
        global_average(x).flatten(1, 3)
    }

    fn key(&self, path: &str) -> String {
        key(path)
    }

    fn fold(self) -> Self {
        let fold = |block: Mixed| Mixed {
            branches: block.branches.into_iter().map(Branch::fold).collect(),
        };
        Self {
            stem: folded(self.stem),
            blocks: self.blocks.into_iter().map(fold).collect(),
            fc: self.fc,
        }
    }
}

/// The checkpoint's name: `stem.0.norm.gamma` is `Conv2d_1a_3x3.bn.weight`, `blocks.3.branches.1.chain.2.conv` is
/// `Mixed_6a.branch3x3dbl_3.conv`. A path that is none of the network's is its own name.
pub fn key(path: &str) -> String {
    let names: Vec<&str> = path.split('.').collect();
    renamed(&names).unwrap_or_else(|| path.to_owned())
}

fn renamed(names: &[&str]) -> Option<String> {
    let place = |name: &str| name.parse::<usize>().ok();
    let within = |layer: &str, part| ConvNormKeys::within(layer, "conv", "bn").key(part);
    match names {
        ["stem", at, part @ ..] => Some(within(STEM.get(place(at)?)?.name, part)),
        ["blocks", at, rest @ ..] => {
            let blocks = blocks();
            let (block, paths) = blocks.get(place(at)?)?;
            match rest {
                ["branches", at, list, conv, part @ ..] => {
                    let branch = paths.get(place(at)?)?;
                    let list = match *list {
                        "chain" => &branch.chain,
                        "fork" => &branch.fork,
                        _ => return None,
                    };
                    let conv = list.get(place(conv)?)?;
                    Some(within(&format!("{block}.{}", conv.name), part))
                }
                rest => Some(join(block, rest)),
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_checkpoints() {
        for (path, expected) in [
            ("stem.0.conv.weight", "Conv2d_1a_3x3.conv.weight"),
            ("stem.4.norm.running_var", "Conv2d_4a_3x3.bn.running_var"),
            ("stem.3", "Conv2d_3b_1x1"),
            ("blocks.10", "Mixed_7c"),
            (
                "blocks.3.branches.1.chain.2.norm.gamma",
                "Mixed_6a.branch3x3dbl_3.bn.weight",
            ),
            (
                "blocks.9.branches.2.fork.1.conv.weight",
                "Mixed_7b.branch3x3dbl_3b.conv.weight",
            ),
            (
                "blocks.7.branches.3.chain.0.norm.beta",
                "Mixed_6e.branch_pool.bn.bias",
            ),
            ("fc.bias", "fc.bias"),
            ("blocks.3.branches.9.chain.0", "blocks.3.branches.9.chain.0"),
        ] {
            assert_eq!(key(path), expected);
        }
    }

    #[test]
    fn the_blocks_end_in_the_features() {
        let mut channels = STEM[4].width;
        for (_, paths) in blocks() {
            channels = paths.iter().map(|path| path.width(channels)).sum();
        }
        assert_eq!(channels, FEATURES);
    }
}

//! RetinaNet (Lin et al. 2017, arXiv 1708.02002) on a ResNet with a feature pyramid, as torchvision defines it.
//!
//! The pyramid has five levels: three from the backbone's last stages, P6 by a convolution of P5 and P7 by one of P6's ReLU.
//! Two towers, one for classes and one for offsets, run on every level with the same weights: their units are announced
//! once per level under one path. The network gives what is before the sigmoid and the decoding, which are in
//! [`crate::detection`].
//!
//! Names are the checkpoint's, but for what is one module here: a convolution with its norm or activation, and a level of
//! the pyramid (`backbone.fpn.levels.0` for `inner_blocks.0` and `layer_blocks.0`), which [`key`] undoes. torchvision's
//! published file has older names of levels and towers.

use burn::module::{Initializer, Module};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};

use crate::layer::{Activation, ConvNormAct, ConvNormActConfig, by_anchor, join, nearest};
use crate::modality::{Boxes, Modality};
use crate::padded::Padded;
use crate::resnet::{self, Residual};
use crate::unit::{Grain, Layout, Network, Tap, Unit};

/// Convolutions in a tower.
const TOWER: usize = 4;

/// Anchors at each place of a level: three sizes of three shapes.
const ANCHORS: usize = 9;

/// The probability of an object that an untrained network sees everywhere (section 4.1 of the paper).
const PRIOR: f64 = 0.01;

/// One network of the family: a row of the catalog's table.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// The ResNet before the pyramid; its classes are not used.
    pub backbone: resnet::Size,
    /// Added to the variance in the backbone's norms: 0 with the weights published for COCO.
    pub epsilon: f64,
    /// Channels of the pyramid and the towers.
    pub width: usize,
    /// Classes, the unused ones of the data set's numbering and the background included.
    pub classes: usize,
}

/// A RetinaNet.
#[derive(Module, Debug)]
pub struct RetinaNet {
    backbone: Backbone,
    head: Heads,
}

#[derive(Module, Debug)]
struct Backbone {
    body: Body,
    fpn: Pyramid,
}

/// The ResNet up to its last stage.
#[derive(Module, Debug)]
struct Body {
    conv1: ConvNormAct,
    layer1: Vec<Residual>,
    layer2: Vec<Residual>,
    layer3: Vec<Residual>,
    layer4: Vec<Residual>,
}

#[derive(Module, Debug)]
struct Pyramid {
    levels: Vec<Level>,
    extra_blocks: Extra,
}

/// A level of the pyramid: the stage's channels brought to the pyramid's, plus the coarser level, and a convolution.
#[derive(Module, Debug)]
pub struct Level {
    inner: Conv2d,
    layer: Conv2d,
}

impl Unit<(Tensor<4>, Option<Tensor<4>>)> for Level {
    /// What the finer level adds, and the level.
    type Out = (Tensor<4>, Tensor<4>);
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(
        &self,
        (stage, coarser): (Tensor<4>, Option<Tensor<4>>),
        tap: &mut T,
    ) -> Self::Out {
        let mut inner = tap.unit("inner", &self.inner, stage);
        if let Some(coarser) = coarser {
            let [_, _, height, width] = inner.dims();
            inner = inner + nearest(coarser, [height, width]);
        }
        let level = tap.unit("layer", &self.layer, inner.clone());
        (inner, level)
    }
}

/// The levels that no stage gives.
#[derive(Module, Debug)]
struct Extra {
    p6: Conv2d,
    p7: Conv2d,
}

#[derive(Module, Debug)]
struct Heads {
    classification_head: ClassHead,
    regression_head: BoxHead,
}

#[derive(Module, Debug)]
struct ClassHead {
    conv: Vec<ConvNormAct>,
    cls_logits: Conv2d,
}

#[derive(Module, Debug)]
struct BoxHead {
    conv: Vec<ConvNormAct>,
    bbox_reg: Conv2d,
}

/// A tower and its predictor on one level.
fn predict<T: Tap>(
    tower: (&str, &[ConvNormAct]),
    predictor: (&str, &Conv2d),
    values: usize,
    mut x: Tensor<4>,
    tap: &mut T,
) -> Tensor<3> {
    let (path, convs) = tower;
    for (place, conv) in convs.iter().enumerate() {
        x = tap.unit(&format!("{path}.conv.{place}"), conv, x);
    }
    let (name, conv) = predictor;
    by_anchor(tap.unit(&format!("{path}.{name}"), conv, x), values)
}

/// The convolution that names classes.
fn class_logits(width: usize, classes: usize, device: &Device) -> Conv2d {
    let mut conv = Conv2dConfig::new([width, ANCHORS * classes], [3; 2])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init(device);
    let value = -((1.0 - PRIOR) / PRIOR).ln();
    conv.bias = Some(Initializer::Constant { value }.init([ANCHORS * classes], device));
    conv
}

impl Size {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> RetinaNet {
        let width = self.width;
        let conv = |channels: [usize; 2], side: usize, stride: usize| {
            let pad = side / 2;
            Conv2dConfig::new(channels, [side; 2])
                .with_stride([stride; 2])
                .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
                .init(device)
        };
        let tower = || -> Vec<ConvNormAct> {
            let layer = ConvNormActConfig::new([width, width], 3, 1).without_norm();
            (0..TOWER).map(|_| layer.init(device)).collect()
        };
        let body = self.backbone.body(device);
        let stage = |blocks: Vec<Residual>| -> Vec<Residual> {
            let with = |block: Residual| block.with_epsilon(self.epsilon);
            blocks.into_iter().map(with).collect()
        };
        let [layer1, layer2, layer3, layer4] = body.stages.map(stage);
        RetinaNet {
            backbone: Backbone {
                body: Body {
                    conv1: body.conv1.with_epsilon(self.epsilon),
                    layer1,
                    layer2,
                    layer3,
                    layer4,
                },
                fpn: Pyramid {
                    levels: body.channels[1..]
                        .iter()
                        .map(|&channels| Level {
                            inner: conv([channels, width], 1, 1),
                            layer: conv([width, width], 3, 1),
                        })
                        .collect(),
                    extra_blocks: Extra {
                        p6: conv([width, width], 3, 2),
                        p7: conv([width, width], 3, 2),
                    },
                },
            },
            head: Heads {
                classification_head: ClassHead {
                    conv: tower(),
                    cls_logits: class_logits(width, self.classes, device),
                },
                regression_head: BoxHead {
                    conv: tower(),
                    bbox_reg: conv([width, ANCHORS * 4], 3, 1),
                },
            },
        }
    }
}

impl Backbone {
    /// The pyramid, fine to coarse.
    fn run<T: Tap>(&self, images: Tensor<4>, tap: &mut T) -> Vec<Tensor<4>> {
        let body = &self.body;
        let mut x = tap.unit("backbone.body.conv1", &body.conv1, images);
        let mut stages = Vec::new();
        for (stage, blocks) in [&body.layer1, &body.layer2, &body.layer3, &body.layer4]
            .into_iter()
            .enumerate()
        {
            for (place, block) in blocks.iter().enumerate() {
                let name = format!("backbone.body.layer{}.{place}", stage + 1);
                x = tap.unit(&name, block, x);
            }
            stages.push(x.clone());
        }
        // The first stage is too fine for the pyramid.
        let stages = stages.split_off(1);
        let mut levels = Vec::new();
        let mut coarser = None;
        for (place, (level, stage)) in self.fpn.levels.iter().zip(stages).enumerate().rev() {
            let name = format!("backbone.fpn.levels.{place}");
            let (inner, out) = tap.unit(&name, level, (stage, coarser));
            coarser = Some(inner);
            levels.insert(0, out);
        }
        if let Some(p5) = levels.last().cloned() {
            let Extra { p6, p7 } = &self.fpn.extra_blocks;
            let p6 = tap.unit("backbone.fpn.extra_blocks.p6", p6, p5);
            levels.push(p6.clone());
            let p6 = kernels::activate(p6, Activation::Relu);
            levels.push(tap.unit("backbone.fpn.extra_blocks.p7", p7, p6));
        }
        levels
    }
}

impl Network for RetinaNet {
    type Input = <Boxes as Modality>::Input;
    type Output = <Boxes as Modality>::Output;

    fn run<T: Tap>(&self, Padded { images, .. }: Padded, tap: &mut T) -> Self::Output {
        let levels = self.backbone.run(images, tap);
        let (classes, boxes) = (&self.head.classification_head, &self.head.regression_head);
        let count = classes.cls_logits.weight.lazy_shape()[0] / ANCHORS;
        let mut out = Vec::new();
        for level in levels {
            let logits = predict(
                ("head.classification_head", &classes.conv),
                ("cls_logits", &classes.cls_logits),
                count,
                level.clone(),
                tap,
            );
            let offsets = predict(
                ("head.regression_head", &boxes.conv),
                ("bbox_reg", &boxes.bbox_reg),
                4,
                level,
                tap,
            );
            out.push((logits, offsets));
        }
        out
    }

    fn key(&self, path: &str) -> String {
        key(path)
    }

    fn key_in(&self, layout: Layout, path: &str) -> Option<String> {
        (layout == Layout::TorchvisionFirst).then(|| first_key(path))
    }

    fn classifier(&self) -> Option<String> {
        Some("head.classification_head.cls_logits".to_owned())
    }

    fn rows_of_class(&self) -> usize {
        ANCHORS
    }

    fn with_classes(mut self, classes: usize) -> Self {
        let weight = &self.head.classification_head.cls_logits.weight;
        let (width, device) = (weight.lazy_shape()[1], weight.lazy_device());
        self.head.classification_head.cls_logits = class_logits(width, classes, &device);
        self
    }

    fn fold(mut self) -> Self {
        let fold = |blocks: Vec<Residual>| blocks.into_iter().map(Residual::fold).collect();
        let body = self.backbone.body;
        self.backbone.body = Body {
            conv1: body.conv1.fold(),
            layer1: fold(body.layer1),
            layer2: fold(body.layer2),
            layer3: fold(body.layer3),
            layer4: fold(body.layer4),
        };
        self
    }
}

/// The checkpoint's name: that of a ResNet behind `backbone.body.`, `backbone.fpn.levels.0.inner.weight` is
/// `backbone.fpn.inner_blocks.0.0.weight`, and in a tower `conv.0.conv.weight` is `conv.0.0.weight`.
pub fn key(path: &str) -> String {
    named(path, ".0", |place| format!("{place}.0"))
}

/// The name in torchvision's published file: a level's convolutions have no number of their own, and a tower's are
/// counted with the ReLU behind each (`conv.2` for `conv.1.0`).
fn first_key(path: &str) -> String {
    let place = |place: &str| place.parse::<usize>().map(|place| 2 * place);
    named(path, "", |name| match place(name) {
        Ok(place) => place.to_string(),
        Err(_) => name.to_owned(),
    })
}

/// The name of a file in which a level's convolutions end with `level_end`, and the convolution at a place of a tower has
/// the number that `in_tower` gives.
fn named(path: &str, level_end: &str, in_tower: impl Fn(&str) -> String) -> String {
    if let Some(rest) = path.strip_prefix("backbone.body.") {
        return format!("backbone.body.{}", resnet::key(rest));
    }
    let names: Vec<&str> = path.split('.').collect();
    match names.as_slice() {
        [
            "backbone",
            "fpn",
            "levels",
            level,
            part @ ("inner" | "layer"),
            rest @ ..,
        ] => join(
            &format!("backbone.fpn.{part}_blocks.{level}{level_end}"),
            rest,
        ),
        ["head", head, "conv", place, "conv", rest @ ..] => {
            join(&format!("head.{head}.conv.{}", in_tower(place)), rest)
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
            (
                "backbone.body.layer2.0.downsample.norm.gamma",
                "backbone.body.layer2.0.downsample.1.weight",
            ),
            (
                "backbone.fpn.levels.2.inner.weight",
                "backbone.fpn.inner_blocks.2.0.weight",
            ),
            (
                "backbone.fpn.levels.0.layer",
                "backbone.fpn.layer_blocks.0.0",
            ),
            (
                "backbone.fpn.extra_blocks.p6.bias",
                "backbone.fpn.extra_blocks.p6.bias",
            ),
            (
                "head.regression_head.conv.3.conv.bias",
                "head.regression_head.conv.3.0.bias",
            ),
            (
                "head.classification_head.cls_logits.weight",
                "head.classification_head.cls_logits.weight",
            ),
        ] {
            assert_eq!(key(path), expected);
        }
        for (path, expected) in [
            ("backbone.body.conv1.norm.gamma", "backbone.body.bn1.weight"),
            (
                "backbone.fpn.levels.2.inner.weight",
                "backbone.fpn.inner_blocks.2.weight",
            ),
            (
                "head.regression_head.conv.3.conv.bias",
                "head.regression_head.conv.6.bias",
            ),
            (
                "head.classification_head.cls_logits.bias",
                "head.classification_head.cls_logits.bias",
            ),
        ] {
            assert_eq!(first_key(path), expected);
        }
    }
}

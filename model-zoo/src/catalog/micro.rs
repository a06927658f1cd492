//! The built-in networks, for the 32 x 32 images of the micro sets.
//!
//! They go through their families' ordinary constructors; what is small is the stem, the depths and the widths.

use super::{SMALL, Size, Spec, Variant, Weights};
use crate::detection::anchors::Priors;
use crate::diffusion::sampler::Process;
use crate::mobilenet_v2::{self, Layout};
use crate::mobilenet_v3::{self, Definition};
use crate::resnet::{self, Block, Stem};
use crate::{regnet, retinanet, shufflenet_v2, ssd, unet, vgg, vit};

/// Classes of the micro set.
const CLASSES: usize = 20;
/// Categories of the procedural scenes, and their pictures.
const OBJECTS: usize = 5;
const SCENES: [usize; 3] = [3, 160, 160];

const fn row(name: &'static str, family: &'static str, size: Size) -> Spec {
    Spec {
        name,
        family,
        paper: None,
        input: SMALL,
        weights: Weights::BuiltIn,
        size,
    }
}

const fn resnet(name: &'static str, depths: &'static [usize], width: usize) -> Spec {
    let size = resnet::Size {
        block: Block::Basic,
        stem: Stem::Small { stride: 2 },
        depths,
        width,
        classes: CLASSES,
    };
    row(name, "ResNet", Size::ResNet(size))
}

const fn regnetx(name: &'static str, stem: usize, depths: [usize; 4], widths: [usize; 4]) -> Spec {
    let size = regnet::Size {
        stem: (stem, 1),
        depths,
        widths,
        group_width: 8,
        classes: CLASSES,
    };
    row(name, "RegNetX", Size::RegNetX(size))
}

const fn mobilenet_v2(name: &'static str, width: f64) -> Spec {
    let size = mobilenet_v2::Size {
        table: mobilenet_v2::Table::MICRO,
        width,
        classes: CLASSES,
        layout: Layout::Timm,
    };
    row(name, "MobileNetV2", Size::MobileNetV2(size))
}

const fn mobilenet_v3(name: &'static str, width: f64) -> Spec {
    let size = mobilenet_v3::Size {
        table: mobilenet_v3::Table::MICRO,
        width,
        classes: CLASSES,
        definition: Definition::Torchvision,
    };
    row(name, "MobileNetV3", Size::MobileNetV3(size))
}

/// What squeeze and excitation do to sparsity is read from the pair.
const PLAIN: mobilenet_v3::Size = mobilenet_v3::Size {
    table: mobilenet_v3::Table::MICRO_PLAIN,
    width: 1.0,
    classes: CLASSES,
    definition: Definition::Torchvision,
};

const fn shufflenet_v2(name: &'static str, stem: usize, width: usize) -> Spec {
    let size = shufflenet_v2::Size {
        stem: (shufflenet_v2::Stem::Small, stem),
        stages: [(2, width), (3, 2 * width), (2, 4 * width)],
        head: 4 * width,
        classes: CLASSES,
    };
    row(name, "ShuffleNetV2", Size::ShuffleNetV2(size))
}

/// Patches of 4 x 4: 64 tokens and the class's. Heads of 8 channels, one for each wave of positions with which training begins.
const fn vit(name: &'static str, family: &'static str, [width, depth]: [usize; 2]) -> Spec {
    let size = vit::Size {
        image: 32,
        patch: 4,
        width,
        depth,
        heads: width / 8,
        classes: CLASSES,
    };
    row(name, family, Size::Vit(size))
}

/// Pyramids of three stages of a ResNet: cells of 8 pixels and more, for scenes of 160 x 160.
const fn retinanet(
    name: &'static str,
    depths: &'static [usize],
    width: usize,
    pyramid: usize,
) -> Spec {
    let size = retinanet::Size {
        backbone: resnet::Size {
            block: Block::Basic,
            stem: Stem::ImageNet,
            depths,
            width,
            classes: 0,
        },
        epsilon: 1e-5,
        width: pyramid,
        classes: OBJECTS,
    };
    Spec {
        input: SCENES,
        ..row(name, "RetinaNet", Size::RetinaNet(size))
    }
}

/// MobileNetV1's layers with fewer blocks, and one reduction less in front of the first map: cells of 8 pixels and more.
const fn ssd(name: &'static str, stem: usize, blocks: &'static [(usize, usize)]) -> Spec {
    let size = ssd::Size {
        table: ssd::Table {
            stem,
            blocks,
            extras: [[2 * stem, 4 * stem]; 4],
            priors: &Priors::MICRO,
        },
        // The background is one.
        classes: OBJECTS + 1,
    };
    Spec {
        input: SCENES,
        ..row(name, "SSD", Size::Ssd(size))
    }
}

const SSD_S: &[(usize, usize)] = &[
    (16, 1),
    (32, 2),
    (32, 1),
    (64, 2),
    (64, 1),
    (128, 2),
    (128, 1),
];

const SSD_M: &[(usize, usize)] = &[
    (24, 1),
    (48, 2),
    (48, 1),
    (96, 2),
    (96, 1),
    (96, 1),
    (192, 2),
    (192, 1),
    (192, 1),
];

/// Pixels in, pixels out, without a context. Most of the multiply-adds are at 32 x 32 and most of the weights at 8 x 8, where
/// the places attend to each other once, in the middle.
const fn unet(name: &'static str, widths: &'static [usize]) -> Spec {
    let size = unet::Size {
        latent: 3,
        widths,
        heads: &[2, 2, 2],
        attends: &[false, false, false],
        depth: 1,
        groups: 8,
        context: None,
        process: Process::MICRO,
    };
    row(name, "UNet", Size::UNet(size))
}

const fn vgg(name: &'static str, groups: &'static [&'static [usize]], hidden: usize) -> Spec {
    let size = vgg::Size {
        groups,
        batch_norm: true,
        side: 1,
        hidden,
        classes: CLASSES,
    };
    row(name, "VGG", Size::Vgg(size))
}

/// All of them, families together, smallest first.
pub(super) const ROWS: [Spec; 28] = [
    resnet("micro_resnet8", &[1, 1, 1], 20),
    resnet("micro_resnet14", &[2, 2, 2], 32),
    resnet("micro_resnet20", &[3, 3, 3], 40),
    regnetx("micro_regnetx_s", 16, [1, 1, 1, 1], [24, 48, 96, 168]),
    regnetx("micro_regnetx_m", 24, [1, 1, 2, 1], [32, 80, 160, 304]),
    regnetx("micro_regnetx_l", 32, [1, 2, 4, 1], [56, 112, 224, 448]),
    mobilenet_v2("micro_mobilenetv2_050", 0.5),
    mobilenet_v2("micro_mobilenetv2_100", 1.0),
    mobilenet_v2("micro_mobilenetv2_150", 1.5),
    mobilenet_v3("micro_mobilenetv3_050", 0.5),
    mobilenet_v3("micro_mobilenetv3_100", 1.0),
    mobilenet_v3("micro_mobilenetv3_150", 1.5),
    row(
        "micro_mobilenetv3_plain",
        "MobileNetV3",
        Size::MobileNetV3(PLAIN),
    ),
    shufflenet_v2("micro_shufflenet_v2_x0_5", 16, 48),
    shufflenet_v2("micro_shufflenet_v2_x1_0", 24, 96),
    shufflenet_v2("micro_shufflenet_v2_x1_5", 32, 144),
    vgg("micro_vgg7_bn", &[&[16], &[32], &[48], &[72]], 128),
    vgg(
        "micro_vgg9_bn",
        &[&[16], &[32], &[64, 64], &[128, 128]],
        256,
    ),
    vgg(
        "micro_vgg12_bn",
        &[&[24, 24], &[48, 48], &[96, 96], &[160, 160, 160]],
        320,
    ),
    vit("micro_vit_nano", "ViT", [64, 3]),
    vit("micro_vit_nano_20k", "ViT", [64, 3]),
    vit("micro_vit_nano_160k", "ViT", [64, 3]),
    vit("micro_deit_nano", "DeiT", [64, 3]),
    retinanet("micro_retinanet_s", &[1, 1, 1, 1], 16, 32),
    retinanet("micro_retinanet_m", &[2, 2, 2, 2], 24, 48),
    ssd("micro_ssd_s", 16, SSD_S),
    ssd("micro_ssd_m", 24, SSD_M),
    unet("micro_unet_s", &[16, 24, 48]),
];

/// Networks that differ from another one in a single respect.
pub(super) const VARIANTS: [Variant; 4] = [
    variant(
        "micro_mobilenetv3_plain",
        "micro_mobilenetv3_100",
        "no squeeze and excitation",
    ),
    variant(
        "micro_vit_nano_20k",
        "micro_vit_nano",
        "20,000 training images, not 1,280,000",
    ),
    variant(
        "micro_vit_nano_160k",
        "micro_vit_nano",
        "160,000 training images, not 1,280,000",
    ),
    variant(
        "micro_deit_nano",
        "micro_vit_nano",
        "taught by micro_resnet20",
    ),
];

const fn variant(name: &'static str, of: &'static str, by: &'static str) -> Variant {
    Variant { name, of, by }
}

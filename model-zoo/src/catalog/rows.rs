//! The public networks and the small ones that tests use, families together.

use super::{SMALL, Size, Spec, Weights};
use crate::diffusion::sampler::Process;
use crate::mobilenet_v2::{self, Layout};
use crate::mobilenet_v3::{self, Definition};
use crate::resnet::{self, Block, Stem};
use crate::{regnet, retinanet, shufflenet_v2, ssd, unet, vgg, vit};

const TORCHVISION: Weights = Weights::File {
    source: "torchvision or timm, IMAGENET1K_V1",
};
const CHENYAOFO: Weights = Weights::File {
    source: "chenyaofo/pytorch-cifar-models",
};
/// A width or a definition of which nobody publishes weights in these keys.
const UNPUBLISHED: Weights = Weights::File {
    source: "none published in these keys",
};
const TORCHVISION_ONLY: Weights = Weights::File {
    source: "torchvision, IMAGENET1K_V1",
};
const AUGREG2: Weights = Weights::File {
    source: "timm, augreg2_in21k_ft_in1k",
};
const AUGREG: Weights = Weights::File {
    source: "timm, augreg_in21k_ft_in1k",
};
const DEIT: Weights = Weights::File {
    source: "timm, fb_in1k",
};
const PYCLS: Weights = Weights::File {
    source: "timm, pycls_in1k",
};
const DIFFUSERS: Weights = Weights::File {
    source: "diffusers, stable-diffusion-2-base",
};
const PYTORCH_SSD: Weights = Weights::File {
    source: "qfgaohao/pytorch-ssd",
};
const IMAGENET: [usize; 3] = [3, 224, 224];
/// A square of RetinaNet's shorter side, for which torchvision prints multiply-adds. Images are longer, each in its way.
const COCO: [usize; 3] = [3, 800, 800];
/// SSD's only size: priors are for maps of it.
const VOC: [usize; 3] = [3, 300, 300];

/// All of them.
pub(super) const ROWS: &[Spec] = {
    use Block::{Basic, Bottleneck};
    const fn resnet(
        name: &'static str,
        paper: Option<&'static str>,
        weights: Weights,
        input: [usize; 3],
        size: resnet::Size,
    ) -> Spec {
        Spec {
            name,
            family: "ResNet",
            paper,
            input,
            weights,
            size: Size::ResNet(size),
        }
    }
    const fn imagenet(block: Block, depths: &'static [usize], classes: usize) -> resnet::Size {
        resnet::Size {
            block,
            stem: Stem::ImageNet,
            depths,
            width: 64,
            classes,
        }
    }
    const fn small(
        depths: &'static [usize],
        width: usize,
        stride: usize,
        classes: usize,
    ) -> resnet::Size {
        resnet::Size {
            block: Basic,
            stem: Stem::Small { stride },
            depths,
            width,
            classes,
        }
    }
    const fn file(source: &'static str) -> Weights {
        Weights::File { source }
    }
    const fn mobilenet_v2(
        name: &'static str,
        paper: &'static str,
        weights: Weights,
        layout: Layout,
        width: f64,
    ) -> Spec {
        Spec {
            name,
            family: "MobileNetV2",
            paper: Some(paper),
            input: IMAGENET,
            weights,
            size: Size::MobileNetV2(mobilenet_v2::Size {
                table: mobilenet_v2::Table::PAPER,
                width,
                classes: 1000,
                layout,
            }),
        }
    }
    const fn mobilenet_v3(
        name: &'static str,
        paper: &'static str,
        weights: Weights,
        definition: Definition,
        width: f64,
    ) -> Spec {
        Spec {
            name,
            family: "MobileNetV3",
            paper: Some(paper),
            input: IMAGENET,
            weights,
            size: Size::MobileNetV3(mobilenet_v3::Size {
                table: mobilenet_v3::Table::PAPER,
                width,
                classes: 1000,
                definition,
            }),
        }
    }
    const fn tiny_mobilenet_v3(name: &'static str, definition: Definition) -> Spec {
        Spec {
            name,
            family: "MobileNetV3",
            paper: None,
            input: [3, 64, 48],
            weights: Weights::None,
            size: Size::MobileNetV3(mobilenet_v3::Size {
                table: mobilenet_v3::Table::PAPER,
                width: 0.1,
                classes: 10,
                definition,
            }),
        }
    }
    const fn shufflenet_v2(
        name: &'static str,
        paper: &'static str,
        widths: [usize; 3],
        head: usize,
    ) -> Spec {
        let [stage2, stage3, stage4] = widths;
        Spec {
            name,
            family: "ShuffleNetV2",
            paper: Some(paper),
            input: IMAGENET,
            weights: file("torchvision, IMAGENET1K_V1"),
            size: Size::ShuffleNetV2(shufflenet_v2::Size {
                stem: (shufflenet_v2::Stem::ImageNet, 24),
                stages: [(4, stage2), (8, stage3), (4, stage4)],
                head,
                classes: 1000,
            }),
        }
    }
    const fn regnetx(
        name: &'static str,
        paper: &'static str,
        depths: [usize; 4],
        widths: [usize; 4],
        group_width: usize,
    ) -> Spec {
        Spec {
            name,
            family: "RegNetX",
            paper: Some(paper),
            input: IMAGENET,
            weights: PYCLS,
            size: Size::RegNetX(regnet::Size {
                stem: (32, 2),
                depths,
                widths,
                group_width,
                classes: 1000,
            }),
        }
    }
    const fn vgg(
        name: &'static str,
        paper: Option<&'static str>,
        weights: Weights,
        input: [usize; 3],
        size: vgg::Size,
    ) -> Spec {
        Spec {
            name,
            family: "VGG",
            paper,
            input,
            weights,
            size: Size::Vgg(size),
        }
    }
    const VGG19: &[&[usize]] = &[&[64; 2], &[128; 2], &[256; 4], &[512; 4], &[512; 4]];
    const fn vgg_imagenet(batch_norm: bool) -> vgg::Size {
        vgg::Size {
            groups: VGG19,
            batch_norm,
            side: 7,
            hidden: 4096,
            classes: 1000,
        }
    }
    const fn vgg_cifar(groups: &'static [&'static [usize]]) -> vgg::Size {
        vgg::Size {
            groups,
            batch_norm: true,
            side: 1,
            hidden: 512,
            classes: 10,
        }
    }
    const fn vit(
        name: &'static str,
        family: &'static str,
        paper: &'static str,
        weights: Weights,
        patch: usize,
        [width, depth, heads]: [usize; 3],
    ) -> Spec {
        Spec {
            name,
            family,
            paper: Some(paper),
            input: IMAGENET,
            weights,
            size: Size::Vit(vit::Size {
                image: IMAGENET[1],
                patch,
                width,
                depth,
                heads,
                classes: 1000,
            }),
        }
    }
    /// 91 classes: COCO's, with the numbers it does not use and the background.
    const fn retinanet(
        name: &'static str,
        paper: &'static str,
        weights: Weights,
        backbone: resnet::Size,
        epsilon: f64,
    ) -> Spec {
        Spec {
            name,
            family: "RetinaNet",
            paper: Some(paper),
            input: COCO,
            weights,
            size: Size::RetinaNet(retinanet::Size {
                backbone,
                epsilon,
                width: 256,
                classes: 91,
            }),
        }
    }
    &[
        resnet(
            "resnet18",
            Some("ResNet-18"),
            TORCHVISION,
            IMAGENET,
            imagenet(Basic, &[2, 2, 2, 2], 1000),
        ),
        resnet(
            "resnet34",
            Some("ResNet-34"),
            TORCHVISION,
            IMAGENET,
            imagenet(Basic, &[3, 4, 6, 3], 1000),
        ),
        resnet(
            "resnet50",
            Some("ResNet-50"),
            TORCHVISION,
            IMAGENET,
            imagenet(Bottleneck, &[3, 4, 6, 3], 1000),
        ),
        resnet(
            "resnet101",
            Some("ResNet-101"),
            TORCHVISION,
            IMAGENET,
            imagenet(Bottleneck, &[3, 4, 23, 3], 1000),
        ),
        resnet(
            "resnet152",
            Some("ResNet-152"),
            TORCHVISION,
            IMAGENET,
            imagenet(Bottleneck, &[3, 8, 36, 3], 1000),
        ),
        resnet(
            "cifar_resnet32",
            Some("ResNet-32"),
            CHENYAOFO,
            SMALL,
            small(&[5, 5, 5], 16, 1, 10),
        ),
        resnet(
            "cifar_resnet56",
            Some("ResNet-56"),
            CHENYAOFO,
            SMALL,
            small(&[9, 9, 9], 16, 1, 10),
        ),
        resnet(
            "tiny_resnet_basic",
            None,
            Weights::None,
            [3, 64, 48],
            imagenet(Basic, &[1, 1, 1, 1], 10),
        ),
        resnet(
            "tiny_resnet_bottleneck",
            None,
            Weights::None,
            [3, 64, 48],
            imagenet(Bottleneck, &[1, 1, 1, 1], 10),
        ),
        resnet(
            "tiny_cifar_resnet8",
            None,
            Weights::None,
            SMALL,
            small(&[1, 1, 1], 16, 1, 10),
        ),
        mobilenet_v2(
            "mobilenetv2_050",
            "MobileNetV2 x0.5",
            file("timm/mobilenetv2_050.lamb_in1k"),
            Layout::Timm,
            0.5,
        ),
        mobilenet_v2(
            "mobilenetv2_075",
            "MobileNetV2 x0.75",
            UNPUBLISHED,
            Layout::Timm,
            0.75,
        ),
        mobilenet_v2(
            "mobilenetv2_100",
            "MobileNetV2 x1.0",
            file("timm/mobilenetv2_100.ra_in1k"),
            Layout::Timm,
            1.0,
        ),
        mobilenet_v2(
            "mobilenetv2_140",
            "MobileNetV2 x1.4",
            file("timm/mobilenetv2_140.ra_in1k"),
            Layout::Timm,
            1.4,
        ),
        mobilenet_v2(
            "mobilenetv2_050_tv",
            "MobileNetV2 x0.5",
            UNPUBLISHED,
            Layout::Torchvision,
            0.5,
        ),
        mobilenet_v2(
            "mobilenetv2_075_tv",
            "MobileNetV2 x0.75",
            UNPUBLISHED,
            Layout::Torchvision,
            0.75,
        ),
        mobilenet_v2(
            "mobilenetv2_100_tv",
            "MobileNetV2 x1.0",
            file("torchvision, IMAGENET1K_V1"),
            Layout::Torchvision,
            1.0,
        ),
        mobilenet_v2(
            "mobilenetv2_140_tv",
            "MobileNetV2 x1.4",
            UNPUBLISHED,
            Layout::Torchvision,
            1.4,
        ),
        Spec {
            name: "tiny_mobilenetv2",
            family: "MobileNetV2",
            paper: None,
            input: [3, 64, 48],
            weights: Weights::None,
            size: Size::MobileNetV2(mobilenet_v2::Size {
                table: mobilenet_v2::Table::PAPER,
                width: 0.1,
                classes: 10,
                layout: Layout::Timm,
            }),
        },
        mobilenet_v3(
            "mobilenetv3_large_035_timm",
            "MobileNetV3-Large x0.35",
            UNPUBLISHED,
            Definition::Timm,
            0.35,
        ),
        mobilenet_v3(
            "mobilenetv3_large_050_timm",
            "MobileNetV3-Large x0.5",
            UNPUBLISHED,
            Definition::Timm,
            0.5,
        ),
        mobilenet_v3(
            "mobilenetv3_large_075_timm",
            "MobileNetV3-Large x0.75",
            UNPUBLISHED,
            Definition::Timm,
            0.75,
        ),
        mobilenet_v3(
            "mobilenetv3_large_100_timm",
            "MobileNetV3-Large x1.0",
            file("timm/mobilenetv3_large_100.ra_in1k"),
            Definition::Timm,
            1.0,
        ),
        mobilenet_v3(
            "mobilenetv3_large_140_timm",
            "MobileNetV3-Large x1.4",
            UNPUBLISHED,
            Definition::Timm,
            1.4,
        ),
        mobilenet_v3(
            "mobilenetv3_large_035_tv",
            "MobileNetV3-Large x0.35",
            UNPUBLISHED,
            Definition::Torchvision,
            0.35,
        ),
        mobilenet_v3(
            "mobilenetv3_large_050_tv",
            "MobileNetV3-Large x0.5",
            UNPUBLISHED,
            Definition::Torchvision,
            0.5,
        ),
        mobilenet_v3(
            "mobilenetv3_large_075_tv",
            "MobileNetV3-Large x0.75",
            UNPUBLISHED,
            Definition::Torchvision,
            0.75,
        ),
        mobilenet_v3(
            "mobilenetv3_large_100_tv",
            "MobileNetV3-Large x1.0",
            file("torchvision, IMAGENET1K_V1"),
            Definition::Torchvision,
            1.0,
        ),
        mobilenet_v3(
            "mobilenetv3_large_140_tv",
            "MobileNetV3-Large x1.4",
            UNPUBLISHED,
            Definition::Torchvision,
            1.4,
        ),
        mobilenet_v3(
            "tf_mobilenetv3_large_075",
            "MobileNetV3-Large x0.75",
            file("timm/tf_mobilenetv3_large_075.in1k"),
            Definition::TensorFlow,
            0.75,
        ),
        tiny_mobilenet_v3("tiny_mobilenetv3_timm", Definition::Timm),
        tiny_mobilenet_v3("tiny_mobilenetv3_tv", Definition::Torchvision),
        shufflenet_v2(
            "shufflenet_v2_x0_5",
            "ShuffleNetV2 x0.5",
            [48, 96, 192],
            1024,
        ),
        shufflenet_v2(
            "shufflenet_v2_x1_0",
            "ShuffleNetV2 x1.0",
            [116, 232, 464],
            1024,
        ),
        shufflenet_v2(
            "shufflenet_v2_x1_5",
            "ShuffleNetV2 x1.5",
            [176, 352, 704],
            1024,
        ),
        shufflenet_v2(
            "shufflenet_v2_x2_0",
            "ShuffleNetV2 x2.0",
            [244, 488, 976],
            2048,
        ),
        Spec {
            name: "tiny_shufflenet_v2",
            family: "ShuffleNetV2",
            paper: None,
            input: [3, 64, 48],
            weights: Weights::None,
            size: Size::ShuffleNetV2(shufflenet_v2::Size {
                stem: (shufflenet_v2::Stem::ImageNet, 8),
                stages: [(2, 16), (2, 24), (2, 32)],
                head: 64,
                classes: 10,
            }),
        },
        regnetx(
            "regnetx_002",
            "RegNetX-200M",
            [1, 1, 4, 7],
            [24, 56, 152, 368],
            8,
        ),
        regnetx(
            "regnetx_004",
            "RegNetX-400M",
            [1, 2, 7, 12],
            [32, 64, 160, 384],
            16,
        ),
        regnetx(
            "regnetx_006",
            "RegNetX-600M",
            [1, 3, 5, 7],
            [48, 96, 240, 528],
            24,
        ),
        regnetx(
            "regnetx_008",
            "RegNetX-800M",
            [1, 3, 7, 5],
            [64, 128, 288, 672],
            16,
        ),
        regnetx(
            "regnetx_016",
            "RegNetX-1600M",
            [2, 4, 10, 2],
            [72, 168, 408, 912],
            24,
        ),
        regnetx(
            "regnetx_032",
            "RegNetX-3200M",
            [2, 6, 15, 2],
            [96, 192, 432, 1008],
            48,
        ),
        regnetx(
            "regnetx_040",
            "RegNetX-4000M",
            [2, 5, 14, 2],
            [80, 240, 560, 1360],
            40,
        ),
        regnetx(
            "regnetx_064",
            "RegNetX-6400M",
            [2, 4, 10, 1],
            [168, 392, 784, 1624],
            56,
        ),
        Spec {
            name: "tiny_regnetx",
            family: "RegNetX",
            paper: None,
            input: [3, 64, 48],
            weights: Weights::None,
            size: Size::RegNetX(regnet::Size {
                stem: (32, 2),
                depths: [1, 1, 3, 1],
                widths: [16, 32, 64, 128],
                group_width: 8,
                classes: 10,
            }),
        },
        vgg(
            "vgg19",
            Some("VGG-19"),
            TORCHVISION_ONLY,
            IMAGENET,
            vgg_imagenet(false),
        ),
        vgg(
            "vgg19_bn",
            Some("VGG-19"),
            TORCHVISION_ONLY,
            IMAGENET,
            vgg_imagenet(true),
        ),
        vgg(
            "cifar_vgg19_bn",
            Some("VGG-19"),
            CHENYAOFO,
            SMALL,
            vgg_cifar(VGG19),
        ),
        vgg(
            "tiny_cifar_vgg_bn",
            None,
            Weights::None,
            SMALL,
            vgg_cifar(&[&[8], &[16], &[24], &[32, 32], &[512]]),
        ),
        vit(
            "vit_base_patch16_224",
            "ViT",
            "ViT-B/16",
            AUGREG2,
            16,
            [768, 12, 12],
        ),
        vit(
            "vit_base_patch32_224",
            "ViT",
            "ViT-B/32",
            AUGREG,
            32,
            [768, 12, 12],
        ),
        vit(
            "vit_large_patch16_224",
            "ViT",
            "ViT-L/16",
            AUGREG,
            16,
            [1024, 24, 16],
        ),
        vit(
            "deit_tiny_patch16_224",
            "DeiT",
            "DeiT-Ti",
            DEIT,
            16,
            [192, 12, 3],
        ),
        vit(
            "deit_small_patch16_224",
            "DeiT",
            "DeiT-S",
            DEIT,
            16,
            [384, 12, 6],
        ),
        vit(
            "deit_base_patch16_224",
            "DeiT",
            "DeiT-B",
            DEIT,
            16,
            [768, 12, 12],
        ),
        Spec {
            name: "sd2_unet",
            family: "UNet",
            paper: Some("Stable Diffusion v2"),
            input: [4, 64, 64],
            weights: DIFFUSERS,
            size: Size::UNet(unet::Size {
                latent: 4,
                widths: &[320, 640, 1280, 1280],
                heads: &[5, 10, 20, 20],
                attends: &[true, true, true, false],
                depth: 2,
                groups: 32,
                context: Some([77, 1024]),
                process: Process::STABLE_DIFFUSION,
            }),
        },
        Spec {
            name: "tiny_vit",
            family: "ViT",
            paper: None,
            input: SMALL,
            weights: Weights::None,
            size: Size::Vit(vit::Size {
                image: SMALL[1],
                patch: 8,
                width: 48,
                depth: 2,
                heads: 3,
                classes: 10,
            }),
        },
        retinanet(
            "retinanet_resnet18_fpn",
            "RetinaNet-R18",
            UNPUBLISHED,
            imagenet(Basic, &[2, 2, 2, 2], 0),
            1e-5,
        ),
        // Before its twin: a file shows no epsilon, and the published one means this.
        retinanet(
            "retinanet_resnet50_fpn_coco",
            "RetinaNet-R50",
            file("torchvision, COCO_V1"),
            imagenet(Bottleneck, &[3, 4, 6, 3], 0),
            0.0,
        ),
        retinanet(
            "retinanet_resnet50_fpn",
            "RetinaNet-R50",
            UNPUBLISHED,
            imagenet(Bottleneck, &[3, 4, 6, 3], 0),
            1e-5,
        ),
        Spec {
            name: "tiny_retinanet",
            family: "RetinaNet",
            paper: None,
            input: [3, 64, 96],
            weights: Weights::None,
            size: Size::RetinaNet(retinanet::Size {
                backbone: imagenet(Basic, &[1, 1, 1, 1], 0),
                epsilon: 1e-5,
                width: 16,
                classes: 5,
            }),
        },
        Spec {
            name: "mobilenetv1_ssd",
            family: "SSD",
            paper: Some("MobileNetV1 SSD"),
            input: VOC,
            weights: PYTORCH_SSD,
            size: Size::Ssd(ssd::Size {
                table: ssd::Table::RELEASE,
                classes: 21,
            }),
        },
        Spec {
            name: "mobilenetv2_ssd_lite",
            family: "SSD",
            paper: Some("MobileNetV2 SSD-Lite"),
            input: VOC,
            weights: PYTORCH_SSD,
            size: Size::SsdLite(ssd::LiteSize {
                width: 1.0,
                classes: 21,
            }),
        },
        Spec {
            name: "tiny_mobilenetv2_ssd_lite",
            family: "SSD",
            paper: None,
            input: VOC,
            weights: Weights::None,
            size: Size::SsdLite(ssd::LiteSize {
                width: 0.25,
                classes: 4,
            }),
        },
        Spec {
            name: "tiny_unet",
            family: "UNet",
            paper: None,
            input: [4, 8, 8],
            weights: Weights::None,
            size: Size::UNet(unet::Size {
                latent: 4,
                widths: &[32, 64],
                heads: &[2, 4],
                attends: &[true, false],
                depth: 1,
                groups: 8,
                context: Some([7, 24]),
                process: Process::STABLE_DIFFUSION,
            }),
        },
    ]
};

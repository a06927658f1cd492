//! Where each network's public weights come from, and what belongs to them: licence, preprocessing, published accuracy.
//!
//! Preprocessing belongs to the weights, not to the network: most wrong accuracies come from separating the two. What
//! could not be established is said to be unknown here, and nothing is guessed: a digest stands here only where the
//! publisher shows it.
//!
//! References: timm's configurations of pretrained weights (1.0.31) and its `results/results-imagenet.csv`, 224 pixels;
//! the metadata of torchvision's weights (0.29.2); the repositories' own pages for digests and licences.

use std::fmt;

/// What is published for one network of the catalog.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// The catalog's name of the network.
    pub model: &'static str,
    /// Where the file is.
    pub place: Place,
    /// The file's name there; empty where there is none.
    pub file: &'static str,
    /// What is known of its SHA-256.
    pub sha256: Digest,
    /// The weights' licence as an SPDX identifier; none where it is unknown.
    pub licence: Option<&'static str>,
    /// Published top-1 accuracy in percent, and whose figure it is.
    pub top1: Option<(f64, &'static str)>,
    /// How an image becomes an input; none of a detector's or a generator's, whose task says it.
    pub preprocess: Option<Preprocess>,
    /// What a user should know.
    pub note: Option<&'static str>,
}

/// Where a weight file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a repository of the Hugging Face hub.
    Hub {
        /// Owner and name.
        repository: &'static str,
        /// A commit, or a branch where no commit is known.
        revision: &'static str,
    },
    /// Behind an address: of the file itself, or of the page that links to it.
    Web(&'static str),
    /// Nowhere: nobody publishes weights of this network in keys that are read here.
    Nowhere,
}

/// What is known of a file's SHA-256, in lower-case hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digest {
    /// All of it.
    Whole(&'static str),
    /// Its first digits: torchvision puts them into its files' names.
    Begins(&'static str),
    /// Nothing; the hub tells it when the file is fetched.
    Unknown,
}

/// How an image becomes an input: the shorter side is resized, the centre is cut out, values are scaled to [0, 1], and
/// each channel (red, green, blue) is shifted and scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocess {
    /// The shorter side after resizing, in pixels.
    pub resize: usize,
    /// The side of the square cut out of the centre, in pixels.
    pub crop: usize,
    /// How pixels are interpolated, with antialiasing.
    pub interpolation: Interpolation,
    /// Subtracted from each channel.
    pub mean: [f32; 3],
    /// Divides each channel then.
    pub std: [f32; 3],
}

/// How pixels are interpolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// A triangle filter.
    Bilinear,
    /// A cubic filter (a = -0.5).
    Bicubic,
}

impl Digest {
    /// Whether a digest is not the one that is known.
    pub fn contradicts(self, found: &str) -> bool {
        match self {
            Digest::Whole(known) => known != found,
            Digest::Begins(known) => !found.starts_with(known),
            Digest::Unknown => false,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Digest::Whole(known) => f.write_str(known),
            Digest::Begins(known) => write!(f, "{known}…"),
            Digest::Unknown => f.write_str("unknown"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Hub {
                repository,
                revision,
            } => write!(f, "{repository}@{revision}"),
            Place::Web(address) => f.write_str(address),
            Place::Nowhere => f.write_str("none published"),
        }
    }
}

impl fmt::Display for Interpolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Interpolation::Bilinear => "bilinear",
            Interpolation::Bicubic => "bicubic",
        })
    }
}

/// What is published for the network called `model`; none for those that this project trains, and those for tests.
pub fn of(model: &str) -> Option<&'static Origin> {
    ORIGINS.iter().find(|origin| origin.model == model)
}

const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

const fn imagenet(resize: usize, interpolation: Interpolation) -> Preprocess {
    Preprocess {
        resize,
        crop: 224,
        interpolation,
        mean: IMAGENET_MEAN,
        std: IMAGENET_STD,
    }
}

/// torchvision's first recipe, which timm keeps for those weights.
const PLAIN: Preprocess = imagenet(256, Interpolation::Bilinear);
/// timm's usual one: a crop of 0.875.
const BICUBIC: Preprocess = imagenet(256, Interpolation::Bicubic);
/// DeiT's: a crop of 0.9.
const DEIT: Preprocess = imagenet(248, Interpolation::Bicubic);
/// The vision transformers' of Google: a crop of 0.9, values in [-1, 1].
const VIT: Preprocess = Preprocess {
    mean: [0.5; 3],
    std: [0.5; 3],
    ..DEIT
};
/// TensorFlow's mobile networks': values in [-1, 1].
const TENSORFLOW: Preprocess = Preprocess {
    mean: [0.5; 3],
    std: [0.5; 3],
    ..PLAIN
};
/// CIFAR-10 as it is.
const CIFAR10: Preprocess = Preprocess {
    resize: 32,
    crop: 32,
    interpolation: Interpolation::Bilinear,
    mean: [0.4914, 0.4822, 0.4465],
    std: [0.2023, 0.1994, 0.2010],
};

const TIMM: &str = "timm, results-imagenet.csv, 224 pixels";
const TORCHVISION: &str = "torchvision, metadata of the weights";
const CHENYAOFO: &str = "pytorch-cifar-models, CIFAR-10";
/// A branch: the commit is not known.
const MAIN: &str = "main";

/// A repository of timm's on the hub.
const fn hub(
    model: &'static str,
    repository: &'static str,
    licence: &'static str,
    top1: f64,
    preprocess: Preprocess,
) -> Origin {
    Origin {
        model,
        place: Place::Hub {
            repository,
            revision: MAIN,
        },
        file: "model.safetensors",
        sha256: Digest::Unknown,
        licence: Some(licence),
        top1: Some((top1, TIMM)),
        preprocess: Some(preprocess),
        note: None,
    }
}

/// The same at a commit (or a branch), with the digest that the hub shows for the file.
const fn known(origin: Origin, revision: &'static str, sha256: &'static str) -> Origin {
    let place = match origin.place {
        Place::Hub { repository, .. } => Place::Hub {
            repository,
            revision,
        },
        other => other,
    };
    Origin {
        place,
        sha256: Digest::Whole(sha256),
        ..origin
    }
}

/// A file of torchvision's, whose name carries the first digits of its digest.
const fn torchvision(
    model: &'static str,
    address: &'static str,
    file: &'static str,
    digits: &'static str,
    top1: f64,
    preprocess: Preprocess,
) -> Origin {
    Origin {
        model,
        place: Place::Web(address),
        file,
        sha256: Digest::Begins(digits),
        licence: Some("BSD-3-Clause"),
        top1: Some((top1, TORCHVISION)),
        preprocess: Some(preprocess),
        note: Some("IMAGENET1K_V1"),
    }
}

const fn cifar(model: &'static str, file: &'static str, top1: f64) -> Origin {
    Origin {
        model,
        place: Place::Web("https://github.com/chenyaofo/pytorch-cifar-models/releases"),
        file,
        sha256: Digest::Unknown,
        licence: Some("BSD-3-Clause"),
        top1: Some((top1, CHENYAOFO)),
        preprocess: Some(CIFAR10),
        note: Some(
            "the address is the page of releases; the licence is the repository's; a CIFAR-100 file has another \
             classifier",
        ),
    }
}

const fn nowhere(model: &'static str, preprocess: Preprocess, note: &'static str) -> Origin {
    Origin {
        model,
        place: Place::Nowhere,
        file: "",
        sha256: Digest::Unknown,
        licence: None,
        top1: None,
        preprocess: Some(preprocess),
        note: Some(note),
    }
}

/// A file of a detector at an address. Its accuracy is no top-1.
const fn detector(
    model: &'static str,
    address: &'static str,
    file: &'static str,
    note: &'static str,
) -> Origin {
    Origin {
        model,
        place: Place::Web(address),
        file,
        sha256: Digest::Unknown,
        licence: None,
        top1: None,
        preprocess: None,
        note: Some(note),
    }
}

const APACHE: &str = "Apache-2.0";
const BSD: &str = "BSD-3-Clause";
const MIT: &str = "MIT";

const NO_V2_WIDTH: &str =
    "no public weights at this width in these keys; preprocessing is the family's usual one";
const PADDLE: &str =
    "no public weights in these keys; PaddleClas publishes this width in its own format";
const NO_V3_140: &str =
    "no public weights at width 1.4 at all; the nearest public one is PaddleClas' 1.25";
const NO_V3_075: &str =
    "no public weights of this definition; TensorFlow's are `tf_mobilenetv3_large_075`";
const NO_V3_TV: &str = "torchvision publishes width 1.0 only";
const NO_RETINANET: &str =
    "no public weights in these keys; mmdetection's RetinaNet has another pyramid";

/// In the catalog's order.
const ORIGINS: &[Origin] = &[
    known(
        hub("resnet18", "timm/resnet18.tv_in1k", BSD, 69.752, PLAIN),
        "a987fd6b60f845221bfff84b6f0191273ba56ead",
        "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",
    ),
    hub("resnet34", "timm/resnet34.tv_in1k", BSD, 73.298, PLAIN),
    known(
        hub("resnet50", "timm/resnet50.tv_in1k", BSD, 76.156, PLAIN),
        "aa6c2d36d56bc0209040c02b5a7b7d7bf11d57b8",
        "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
    ),
    hub("resnet101", "timm/resnet101.tv_in1k", BSD, 77.404, PLAIN),
    hub("resnet152", "timm/resnet152.tv_in1k", BSD, 78.330, PLAIN),
    cifar("cifar_resnet32", "cifar10_resnet32-ef93fc4d.pt", 93.53),
    cifar("cifar_resnet56", "cifar10_resnet56-187c023a.pt", 94.37),
    hub(
        "mobilenetv2_050",
        "timm/mobilenetv2_050.lamb_in1k",
        APACHE,
        65.928,
        BICUBIC,
    ),
    nowhere("mobilenetv2_075", BICUBIC, NO_V2_WIDTH),
    known(
        hub(
            "mobilenetv2_100",
            "timm/mobilenetv2_100.ra_in1k",
            APACHE,
            72.910,
            BICUBIC,
        ),
        "f3ff81ba89de0bc46b546568ebeab2edef6b9d49",
        "55ea4fb3a96010b933710ebf44fc965b070d5cd054d3f35e44f2d1320b4a714e",
    ),
    hub(
        "mobilenetv2_140",
        "timm/mobilenetv2_140.ra_in1k",
        APACHE,
        76.528,
        BICUBIC,
    ),
    nowhere("mobilenetv2_050_tv", PLAIN, NO_V2_WIDTH),
    nowhere("mobilenetv2_075_tv", PLAIN, NO_V2_WIDTH),
    torchvision(
        "mobilenetv2_100_tv",
        "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
        "mobilenet_v2-b0353104.pth",
        "b0353104",
        71.878,
        PLAIN,
    ),
    nowhere("mobilenetv2_140_tv", PLAIN, NO_V2_WIDTH),
    nowhere("mobilenetv3_large_035_timm", BICUBIC, PADDLE),
    nowhere("mobilenetv3_large_050_timm", BICUBIC, PADDLE),
    nowhere("mobilenetv3_large_075_timm", BICUBIC, NO_V3_075),
    known(
        hub(
            "mobilenetv3_large_100_timm",
            "timm/mobilenetv3_large_100.ra_in1k",
            APACHE,
            75.784,
            BICUBIC,
        ),
        MAIN,
        "f425af34cc1cead2b5d6211f789a1f30b94835dc32f9c0fcc5a916e4fd2dde85",
    ),
    nowhere("mobilenetv3_large_140_timm", BICUBIC, NO_V3_140),
    nowhere("mobilenetv3_large_035_tv", PLAIN, NO_V3_TV),
    nowhere("mobilenetv3_large_050_tv", PLAIN, NO_V3_TV),
    nowhere("mobilenetv3_large_075_tv", PLAIN, NO_V3_TV),
    torchvision(
        "mobilenetv3_large_100_tv",
        "https://download.pytorch.org/models/mobilenet_v3_large-8738ca79.pth",
        "mobilenet_v3_large-8738ca79.pth",
        "8738ca79",
        74.042,
        PLAIN,
    ),
    nowhere("mobilenetv3_large_140_tv", PLAIN, NO_V3_140),
    hub(
        "tf_mobilenetv3_large_075",
        "timm/tf_mobilenetv3_large_075.in1k",
        APACHE,
        73.442,
        TENSORFLOW,
    ),
    torchvision(
        "shufflenet_v2_x0_5",
        "https://download.pytorch.org/models/shufflenetv2_x0.5-f707e7126e.pth",
        "shufflenetv2_x0.5-f707e7126e.pth",
        "f707e7126e",
        60.552,
        PLAIN,
    ),
    torchvision(
        "shufflenet_v2_x1_0",
        "https://download.pytorch.org/models/shufflenetv2_x1-5666bf0f80.pth",
        "shufflenetv2_x1-5666bf0f80.pth",
        "5666bf0f80",
        69.362,
        PLAIN,
    ),
    torchvision(
        "shufflenet_v2_x1_5",
        "https://download.pytorch.org/models/shufflenetv2_x1_5-3c479a10.pth",
        "shufflenetv2_x1_5-3c479a10.pth",
        "3c479a10",
        72.996,
        imagenet(232, Interpolation::Bilinear),
    ),
    torchvision(
        "shufflenet_v2_x2_0",
        "https://download.pytorch.org/models/shufflenetv2_x2_0-8be3c8ee.pth",
        "shufflenetv2_x2_0-8be3c8ee.pth",
        "8be3c8ee",
        76.230,
        imagenet(232, Interpolation::Bilinear),
    ),
    hub(
        "regnetx_002",
        "timm/regnetx_002.pycls_in1k",
        MIT,
        68.758,
        BICUBIC,
    ),
    hub(
        "regnetx_004",
        "timm/regnetx_004.pycls_in1k",
        MIT,
        72.482,
        BICUBIC,
    ),
    hub(
        "regnetx_006",
        "timm/regnetx_006.pycls_in1k",
        MIT,
        73.904,
        BICUBIC,
    ),
    hub(
        "regnetx_008",
        "timm/regnetx_008.pycls_in1k",
        MIT,
        75.054,
        BICUBIC,
    ),
    hub(
        "regnetx_016",
        "timm/regnetx_016.pycls_in1k",
        MIT,
        76.936,
        BICUBIC,
    ),
    hub(
        "regnetx_032",
        "timm/regnetx_032.pycls_in1k",
        MIT,
        78.160,
        BICUBIC,
    ),
    hub(
        "regnetx_040",
        "timm/regnetx_040.pycls_in1k",
        MIT,
        78.486,
        BICUBIC,
    ),
    hub(
        "regnetx_064",
        "timm/regnetx_064.pycls_in1k",
        MIT,
        79.062,
        BICUBIC,
    ),
    known(
        hub("vgg19", "timm/vgg19.tv_in1k", BSD, 72.400, PLAIN),
        MAIN,
        "11aea017b543ff59233749d8f1cf544cda749378f5790d2fedab841fb86b7669",
    ),
    known(
        hub("vgg19_bn", "timm/vgg19_bn.tv_in1k", BSD, 74.230, PLAIN),
        MAIN,
        "f8249087e63bae61c6166bb23d7c26efe1b2a43fd9fb5cd60ac6ce00535ba312",
    ),
    cifar("cifar_vgg19_bn", "cifar10_vgg19_bn-57191229.pt", 93.91),
    hub(
        "vit_base_patch16_224",
        "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        APACHE,
        85.108,
        VIT,
    ),
    hub(
        "vit_base_patch32_224",
        "timm/vit_base_patch32_224.augreg_in21k_ft_in1k",
        APACHE,
        80.732,
        VIT,
    ),
    hub(
        "vit_large_patch16_224",
        "timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
        APACHE,
        85.856,
        VIT,
    ),
    known(
        hub(
            "deit_tiny_patch16_224",
            "timm/deit_tiny_patch16_224.fb_in1k",
            APACHE,
            72.190,
            DEIT,
        ),
        "457c7aea80b608b44786bd3193556c727028bd6d",
        "21d4764d94f6c3ffdb6da3581115a0a1ee2d505537d96883b540e54766407c9e",
    ),
    hub(
        "deit_small_patch16_224",
        "timm/deit_small_patch16_224.fb_in1k",
        APACHE,
        79.856,
        DEIT,
    ),
    hub(
        "deit_base_patch16_224",
        "timm/deit_base_patch16_224.fb_in1k",
        APACHE,
        81.980,
        DEIT,
    ),
    Origin {
        model: "sd2_unet",
        place: Place::Hub {
            repository: "stabilityai/stable-diffusion-2-base",
            revision: MAIN,
        },
        file: "unet/diffusion_pytorch_model.safetensors",
        sha256: Digest::Unknown,
        licence: None,
        top1: None,
        preprocess: None,
        note: Some(
            "CreativeML Open RAIL++-M, which is no SPDX licence; the repository is not always there",
        ),
    },
    Origin {
        place: Place::Nowhere,
        ..detector("retinanet_resnet18_fpn", "", "", NO_RETINANET)
    },
    Origin {
        sha256: Digest::Begins("eeacb38b"),
        licence: Some(BSD),
        ..detector(
            "retinanet_resnet50_fpn_coco",
            "https://download.pytorch.org/models/retinanet_resnet50_fpn_coco-eeacb38b.pth",
            "retinanet_resnet50_fpn_coco-eeacb38b.pth",
            "COCO_V1: box AP 36.4 on COCO 2017, by torchvision's metadata of the weights",
        )
    },
    Origin {
        place: Place::Nowhere,
        ..detector("retinanet_resnet50_fpn", "", "", NO_RETINANET)
    },
    detector(
        "mobilenetv1_ssd",
        "https://storage.googleapis.com/models-hao/mobilenet-v1-ssd-mp-0_675.pth",
        "mobilenet-v1-ssd-mp-0_675.pth",
        "mAP 0.6755 on VOC 2007 (11 points), by the repository qfgaohao/pytorch-ssd",
    ),
    detector(
        "mobilenetv2_ssd_lite",
        "https://storage.googleapis.com/models-hao/mb2-ssd-lite-mp-0_686.pth",
        "mb2-ssd-lite-mp-0_686.pth",
        "mAP 0.6861 on VOC 2007 (11 points), by the repository qfgaohao/pytorch-ssd",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Weights, all};

    #[test]
    fn every_network_with_files_has_an_origin_and_no_other() {
        let named: Vec<&str> = all()
            .iter()
            .filter(|spec| matches!(spec.weights, Weights::File { .. }))
            .map(|spec| spec.name)
            .collect();
        let ours: Vec<&str> = ORIGINS.iter().map(|origin| origin.model).collect();
        for name in &named {
            assert_eq!(ours.iter().filter(|n| *n == name).count(), 1, "{name}");
        }
        assert_eq!(named.len(), ours.len());
    }

    #[test]
    fn what_is_said_of_a_file_is_well_formed() {
        let hex = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        for origin in ORIGINS {
            let name = origin.model;
            match origin.sha256 {
                Digest::Whole(digest) => assert!(digest.len() == 64 && hex(digest), "{name}"),
                Digest::Begins(digits) => {
                    assert!(digits.len() >= 8 && hex(digits), "{name}");
                    assert!(origin.file.contains(digits), "{name}");
                }
                Digest::Unknown => {}
            }
            match origin.place {
                Place::Hub {
                    repository,
                    revision,
                } => {
                    assert_eq!(repository.split('/').count(), 2, "{name}");
                    assert!(
                        revision == MAIN || revision.len() == 40 && hex(revision),
                        "{name}"
                    );
                }
                Place::Web(address) => assert!(address.starts_with("https://"), "{name}"),
                Place::Nowhere => {
                    assert!(origin.note.is_some() && origin.top1.is_none(), "{name}");
                    assert!(origin.file.is_empty() && origin.licence.is_none(), "{name}");
                }
            }
            if let Some(Preprocess { resize, crop, .. }) = origin.preprocess {
                let spec = crate::catalog::find(name).unwrap();
                assert_eq!(spec.input, [3, crop, crop], "{name}");
                assert!(resize >= crop, "{name}");
            }
        }
    }

    #[test]
    fn a_digest_is_compared_as_far_as_it_is_known() {
        assert!(!Digest::Unknown.contradicts("00"));
        assert!(!Digest::Begins("ab").contradicts("abcd"));
        assert!(Digest::Begins("ab").contradicts("acab"));
        assert!(Digest::Whole("abcd").contradicts("abce"));
    }
}

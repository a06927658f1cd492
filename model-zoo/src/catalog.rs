//! The catalog: a name becomes a typed network in one `match`.
//!
//! The built-in networks' rows are in `catalog/micro.rs`.

mod micro;

use burn::tensor::{Device, Tensor};

pub mod origin;

use crate::mobilenet_v2::{self, Layout};
use crate::mobilenet_v3::{self, Definition};
use crate::regnet;
use crate::resnet::{self, Block, Stem};
use crate::shufflenet_v2;
use crate::unit::Network;
use crate::vgg;
use crate::vit;

/// One network.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// The name used everywhere.
    pub name: &'static str,
    /// The family, for tables.
    pub family: &'static str,
    /// How the paper calls this row; networks outside the paper's table have none.
    pub paper: Option<&'static str>,
    /// Channels, height and width of the input.
    pub input: [usize; 3],
    /// Where its weights come from.
    pub weights: Weights,
    size: Size,
}

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// Trained by this project and stored in the repository under `assets/micro`.
    BuiltIn,
    /// A public checkpoint in this key layout; the user gives the file.
    File {
        /// Who publishes it.
        source: &'static str,
    },
    /// None: the network exists for tests.
    None,
}

#[derive(Debug, Clone, Copy)]
enum Size {
    ResNet(resnet::Size),
    MobileNetV2(mobilenet_v2::Size),
    MobileNetV3(mobilenet_v3::Size),
    ShuffleNetV2(shufflenet_v2::Size),
    RegNetX(regnet::Size),
    Vgg(vgg::Size),
    Vit(vit::Size),
}

/// What is done with a network whose type the catalog decides.
pub trait Visit {
    /// What comes of it.
    type Out;

    /// Takes the network, with random weights.
    fn visit<N: Network<Input = Tensor<4>, Output = Tensor<2>>>(
        self,
        spec: &'static Spec,
        network: N,
    ) -> Self::Out;
}

/// A name that the catalog does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// No network has this name.
    #[error("unknown model `{name}`; {hint}; `ptsbench list models` shows all")]
    Unknown {
        /// What was asked.
        name: String,
        /// The nearest names.
        hint: String,
    },
    /// No network matches this pattern.
    #[error("no model matches `{pattern}`; `ptsbench list models` shows all names")]
    NoMatch {
        /// What was asked.
        pattern: String,
    },
}

impl Spec {
    /// Whether it takes images of its own size alone: a transformer has one position for each patch.
    pub fn one_size(&self) -> bool {
        matches!(self.size, Size::Vit(_))
    }

    /// Where public weights are, and what belongs to them.
    pub fn origin(&self) -> Option<&'static origin::Origin> {
        origin::of(self.name)
    }

    /// Builds the network with random weights and hands it, typed, to `visitor`.
    pub fn open<V: Visit>(&'static self, device: &Device, visitor: V) -> V::Out {
        match self.size {
            Size::ResNet(size) => visitor.visit(self, size.init(device)),
            Size::MobileNetV2(size) => visitor.visit(self, size.init(device)),
            Size::MobileNetV3(size) => visitor.visit(self, size.init(device)),
            Size::ShuffleNetV2(size) => visitor.visit(self, size.init(device)),
            Size::RegNetX(size) => visitor.visit(self, size.init(device)),
            Size::Vgg(size) => visitor.visit(self, size.init(device)),
            Size::Vit(size) => visitor.visit(self, size.init(device)),
        }
    }
}

/// All networks, in the order of listings.
pub fn all() -> &'static [Spec] {
    &CATALOG
}

/// The network called `name`.
pub fn find(name: &str) -> Result<&'static Spec, CatalogError> {
    CATALOG
        .iter()
        .find(|spec| spec.name == name)
        .ok_or_else(|| CatalogError::Unknown {
            name: name.to_owned(),
            hint: nearest(name),
        })
}

/// The networks whose names match a pattern with `*` and `?`.
pub fn matching(pattern: &str) -> Result<Vec<&'static Spec>, CatalogError> {
    if !pattern.contains(['*', '?']) {
        return find(pattern).map(|spec| vec![spec]);
    }
    let found: Vec<_> = CATALOG
        .iter()
        .filter(|spec| wildcard(pattern, spec.name))
        .collect();
    if found.is_empty() {
        return Err(CatalogError::NoMatch {
            pattern: pattern.to_owned(),
        });
    }
    Ok(found)
}

/// Whether `text` matches `pattern`, in which `*` stands for any run of characters and `?` for one.
pub fn wildcard(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let mut reach = vec![false; text.len() + 1];
    reach[0] = true;
    for p in pattern {
        match p {
            '*' => {
                for at in 1..reach.len() {
                    reach[at] |= reach[at - 1];
                }
            }
            p => {
                for at in (1..reach.len()).rev() {
                    reach[at] = reach[at - 1] && (p == '?' || p == text[at - 1]);
                }
                reach[0] = false;
            }
        }
    }
    reach[text.len()]
}

fn nearest(name: &str) -> String {
    let mut scored: Vec<(f64, &str)> = CATALOG
        .iter()
        .map(|spec| (strsim::jaro_winkler(name, spec.name), spec.name))
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names: Vec<_> = scored
        .iter()
        .take(3)
        .map(|(_, name)| format!("`{name}`"))
        .collect();
    format!("the nearest names are {}", names.join(", "))
}

const TORCHVISION: Weights = Weights::File {
    source: "torchvision or timm, IMAGENET1K_V1",
};
const CHENYAOFO: Weights = Weights::File {
    source: "chenyaofo/pytorch-cifar-models",
};
/// A width at which nobody publishes weights in these keys.
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
const IMAGENET: [usize; 3] = [3, 224, 224];
const SMALL: [usize; 3] = [3, 32, 32];

/// Built-in networks first, then all others.
static CATALOG: [Spec; micro::ROWS.len() + OTHERS.len()] = {
    let mut rows = [OTHERS[0]; micro::ROWS.len() + OTHERS.len()];
    let mut place = 0;
    while place < rows.len() {
        rows[place] = if place < micro::ROWS.len() {
            micro::ROWS[place]
        } else {
            OTHERS[place - micro::ROWS.len()]
        };
        place += 1;
    }
    rows
};

const OTHERS: &[Spec] = {
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
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_whole_names() {
        for (pattern, text, expected) in [
            ("resnet*", "resnet18", true),
            ("resnet*", "cifar_resnet32", false),
            ("*resnet*", "cifar_resnet32", true),
            ("resnet?8", "resnet18", true),
            ("resnet?8", "resnet8", false),
            ("*", "", true),
            ("", "x", false),
        ] {
            assert_eq!(wildcard(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn names_are_unique_and_unknown_ones_are_explained() {
        for (at, spec) in CATALOG.iter().enumerate() {
            assert!(CATALOG[..at].iter().all(|other| other.name != spec.name));
        }
        let message = find("resnet-50").unwrap_err().to_string();
        assert!(message.contains("`resnet50`"), "{message}");
        assert_eq!(matching("resnet1*").unwrap().len(), 3);
        assert!(matching("alexnet*").is_err());
    }

    /// Multiply-adds of one image against the metadata of torchvision's weights (0.29.2, `_ops`, in units of 1e9 with
    /// three digits), which count convolutions, linear layers and the products inside attention. The heaviest networks
    /// are left out: counting is a forward pass.
    #[test]
    fn multiply_adds_are_those_that_torchvision_prints() {
        struct Macs;
        impl Visit for Macs {
            type Out = u64;
            fn visit<N: Network<Input = Tensor<4>, Output = Tensor<2>>>(
                self,
                spec: &'static Spec,
                network: N,
            ) -> u64 {
                let [channels, height, width] = spec.input;
                let mut census = crate::tap::Census::default();
                let image = Tensor::zeros([1, channels, height, width], &Device::flex());
                network.run(image, &mut census);
                census.layers().iter().map(|row| row.macs).sum()
            }
        }
        // Two products of tokens by tokens by width in each of 12 layers.
        let attention = |tokens: u64| 12 * 2 * tokens * tokens * 768;
        for (model, inside_attention, printed) in [
            ("resnet18", 0, "1.814"),
            ("resnet34", 0, "3.664"),
            ("resnet50", 0, "4.089"),
            ("regnetx_008", 0, "0.800"),
            ("regnetx_016", 0, "1.603"),
            ("mobilenetv2_100_tv", 0, "0.301"),
            ("mobilenetv3_large_100_tv", 0, "0.217"),
            ("shufflenet_v2_x0_5", 0, "0.040"),
            ("shufflenet_v2_x1_0", 0, "0.145"),
            ("shufflenet_v2_x1_5", 0, "0.296"),
            ("shufflenet_v2_x2_0", 0, "0.583"),
            ("vit_base_patch32_224", attention(50), "4.409"),
        ] {
            let spec = find(model).unwrap();
            let macs = spec.open(&Device::flex(), Macs) + inside_attention;
            assert_eq!(format!("{:.3}", macs as f64 / 1e9), printed, "{model}");
        }
    }
}

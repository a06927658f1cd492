//! The catalog: a name becomes a typed network in one `match`.
//!
//! The rows are in `catalog/micro.rs` (built-in networks) and `catalog/rows.rs` (all others), what they count in
//! `catalog/counts.tsv`.

mod micro;
mod names;
mod rows;

use burn::tensor::Device;

pub mod origin;

pub use names::{Meant, Named, named};

use crate::detection::Head;
use crate::detection::anchors::Priors;
use crate::diffusion::sampler::Process;
use crate::misspelt::{did_you_mean, nearest};
use crate::modality::{Boxes, Classes, ClassesOnly, Modality, Noise, NoiseOnly, VisitAny};
pub use crate::modality::{OtherModality, Visit};
use crate::{
    mobilenet_v2, mobilenet_v3, regnet, resnet, retinanet, shufflenet_v2, ssd, unet, vgg, vit,
};

/// One network.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// The name used everywhere.
    pub name: &'static str,
    /// The family, for tables.
    pub family: &'static str,
    /// How the paper calls this row; networks outside the paper's table have none.
    pub paper: Option<&'static str>,
    /// Channels, height and width of the input: an image, or a latent.
    pub input: [usize; 3],
    /// Where its weights come from.
    pub weights: Weights,
    size: Size,
}

/// A network that differs from another in one respect: what the two lose tells what that respect is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// The catalog's name of it.
    pub name: &'static str,
    /// The network that it is compared with.
    pub of: &'static str,
    /// What differs.
    pub by: &'static str,
}

/// All of them.
pub const VARIANTS: &[Variant] = &micro::VARIANTS;

/// What a network has to prune.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Prunable layers.
    pub layers: usize,
    /// Their weights.
    pub weights: u64,
    /// Their multiply-adds over one image of the network's size.
    pub macs: u64,
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
    RetinaNet(retinanet::Size),
    Ssd(ssd::Size),
    SsdLite(ssd::LiteSize),
    UNet(unet::Size),
}

/// A name that the catalog does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// No network has this name.
    #[error("unknown model `{name}`{} (`ptsbench list models` shows all)", did_you_mean(.nearest))]
    Unknown {
        /// What was asked.
        name: String,
        /// The nearest names, best first.
        nearest: Vec<&'static str>,
    },
    /// No network matches this pattern.
    #[error("no model matches `{pattern}`; `ptsbench list models` shows all names")]
    NoMatch {
        /// What was asked.
        pattern: String,
    },
}

impl Spec {
    /// Whether it takes images of its own size alone: a transformer has one position for each patch, and SSD's priors are for
    /// one size.
    pub fn one_size(&self) -> bool {
        matches!(self.size, Size::Vit(_) | Size::Ssd(_) | Size::SsdLite(_))
    }

    /// Whose rules its outputs follow, if it finds boxes.
    pub fn head(&self) -> Option<Head> {
        match self.size {
            Size::RetinaNet(_) => Some(Head::RetinaNet),
            Size::Ssd(_) | Size::SsdLite(_) => Some(Head::Ssd),
            _ => None,
        }
    }

    /// Where it expects boxes, if it is an SSD.
    pub fn priors(&self) -> Option<&'static Priors> {
        match self.size {
            Size::Ssd(size) => Some(size.table.priors),
            Size::SsdLite(_) => Some(&Priors::RELEASE),
            _ => None,
        }
    }

    /// Whether it takes images of these channels, height and width: its own, or, without positions of patches, any on which
    /// all of its poolings find something.
    pub fn takes(&self, input: [usize; 3]) -> bool {
        let [channels, height, width] = input;
        let least = SMALL[1].min(self.input[1]).min(self.input[2]);
        input == self.input
            || !self.one_size() && channels == self.input[0] && height.min(width) >= least
    }

    /// What it has to prune, from a table: counting is a forward pass.
    pub fn counts(&self) -> Counts {
        let row = COUNTS.lines().find_map(|line| {
            let mut cells = line.split('\t');
            (cells.next()? == self.name).then(|| cells.filter_map(|cell| cell.parse().ok()))
        });
        let mut cells = row.into_iter().flatten();
        let mut next = || cells.next().unwrap_or(0u64);
        Counts {
            layers: next() as usize,
            weights: next(),
            macs: next(),
        }
    }

    /// Whether it stands beside its family for a comparison, and is none of its sizes.
    pub fn stands_aside(&self) -> bool {
        let of = VARIANTS.iter().find(|variant| variant.name == self.name);
        of.and_then(|variant| CATALOG.iter().find(|spec| spec.name == variant.of))
            .is_some_and(|base| base.family == self.family)
    }

    /// Where public weights are, and what belongs to them.
    pub fn origin(&self) -> Option<&'static origin::Origin> {
        origin::of(self.name)
    }

    /// Tokens of the context and their width, for networks that take one.
    pub fn context(&self) -> Option<[usize; 2]> {
        match self.size {
            Size::UNet(size) => size.context,
            _ => None,
        }
    }

    /// What a network that predicts noise was trained to undo.
    pub fn process(&self) -> Option<Process> {
        match self.size {
            Size::UNet(size) => Some(size.process),
            _ => None,
        }
    }

    /// What it does: [`Modality::DOES`] of its kind.
    pub fn does(&self) -> &'static str {
        match self.size {
            Size::ResNet(_)
            | Size::MobileNetV2(_)
            | Size::MobileNetV3(_)
            | Size::ShuffleNetV2(_)
            | Size::RegNetX(_)
            | Size::Vgg(_)
            | Size::Vit(_) => Classes::DOES,
            Size::RetinaNet(_) | Size::Ssd(_) | Size::SsdLite(_) => Boxes::DOES,
            Size::UNet(_) => Noise::DOES,
        }
    }

    /// Builds the network with random weights and hands it, typed, to `visitor`.
    pub fn open<V: VisitAny<Out>, Out>(&'static self, device: &Device, visitor: V) -> Out {
        match self.size {
            Size::ResNet(size) => Visit::<Classes>::visit(visitor, self, size.init(device)),
            Size::MobileNetV2(size) => Visit::<Classes>::visit(visitor, self, size.init(device)),
            Size::MobileNetV3(size) => Visit::<Classes>::visit(visitor, self, size.init(device)),
            Size::ShuffleNetV2(size) => Visit::<Classes>::visit(visitor, self, size.init(device)),
            Size::RegNetX(size) => Visit::<Classes>::visit(visitor, self, size.init(device)),
            Size::Vgg(size) => Visit::<Classes>::visit(visitor, self, size.init(device)),
            Size::Vit(size) => Visit::<Classes>::visit(visitor, self, size.init(device)),
            Size::RetinaNet(size) => Visit::<Boxes>::visit(visitor, self, size.init(device)),
            Size::Ssd(size) => Visit::<Boxes>::visit(visitor, self, size.init(device)),
            Size::SsdLite(size) => Visit::<Boxes>::visit(visitor, self, size.init(device)),
            Size::UNet(size) => Visit::<Noise>::visit(visitor, self, size.init(device)),
        }
    }

    /// The same with a visitor for networks that name classes; an error of any other, which says what is done with classes
    /// alone: `wanted`, as "`infer` names classes".
    pub fn open_classes<V: Visit<Classes>>(
        &'static self,
        device: &Device,
        wanted: &'static str,
        visitor: V,
    ) -> Result<V::Out, OtherModality> {
        self.open(device, ClassesOnly { visitor, wanted })
    }

    /// The same with a visitor for networks that predict noise.
    pub fn open_noise<V: Visit<Noise>>(
        &'static self,
        device: &Device,
        wanted: &'static str,
        visitor: V,
    ) -> Result<V::Out, OtherModality> {
        self.open(device, NoiseOnly { visitor, wanted })
    }
}

/// All networks, in the order of listings.
pub fn all() -> &'static [Spec] {
    &CATALOG
}

/// The network called `name`, here or in another library.
pub fn find(name: &str) -> Result<&'static Spec, CatalogError> {
    named(name).map(|named| named.spec)
}

/// The error of a name that means no network; the nearest names are those of the part that names one.
fn unknown(name: &str, network: &str) -> CatalogError {
    CatalogError::Unknown {
        name: name.to_owned(),
        nearest: nearest(network, CATALOG.iter().map(|spec| spec.name)),
    }
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

const SMALL: [usize; 3] = [3, 32, 32];

/// A row per network, written by the test that counts them.
const COUNTS: &str = include_str!("catalog/counts.tsv");

/// Built-in networks first, then all others.
static CATALOG: [Spec; micro::ROWS.len() + rows::ROWS.len()] = {
    let mut rows = [rows::ROWS[0]; micro::ROWS.len() + rows::ROWS.len()];
    let mut place = 0;
    while place < rows.len() {
        rows[place] = if place < micro::ROWS.len() {
            micro::ROWS[place]
        } else {
            rows::ROWS[place - micro::ROWS.len()]
        };
        place += 1;
    }
    rows
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modality::{Blank, Of};

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

    #[test]
    fn networks_that_do_something_else_are_refused_by_name() {
        struct Nothing;
        impl Visit<Classes> for Nothing {
            type Out = ();
            fn visit<N: Of<Classes>>(self, _: &'static Spec, _: N) {}
        }
        let open = |name: &str| {
            let spec = find(name).unwrap();
            spec.open_classes(&Device::flex(), "`infer` names classes", Nothing)
                .map_err(|error| error.to_string())
        };
        assert_eq!(open("tiny_vit"), Ok(()));
        for (name, does) in [
            ("tiny_retinanet", "`tiny_retinanet` finds boxes; "),
            ("tiny_unet", "`tiny_unet` predicts noise; "),
        ] {
            let message = open(name).unwrap_err();
            assert!(message.starts_with(does), "{message}");
            assert!(
                message.contains("`infer` names classes so far"),
                "{message}"
            );
        }
    }

    struct Count;

    impl<M: Modality> Visit<M> for Count {
        type Out = Counts;
        fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Counts {
            let mut census = crate::tap::Census::default();
            network.run(Blank::blank(spec, 1, &Device::flex()), &mut census);
            let layers = census.layers();
            Counts {
                layers: layers.len(),
                weights: layers
                    .iter()
                    .filter_map(|row| row.layer.as_ref())
                    .map(|layer| layer.shape.iter().product::<usize>() as u64)
                    .sum(),
                macs: layers.iter().map(|row| row.macs).sum(),
            }
        }
    }

    /// `PTSBENCH_UPDATE_SNAPSHOTS=1` writes the table again.
    #[test]
    fn the_table_counts_as_the_networks_do() {
        let mut table = String::from("model\tlayers\tweights\tmacs\n");
        for spec in all() {
            let Counts {
                layers,
                weights,
                macs,
            } = spec.open(&Device::flex(), Count);
            table += &format!("{}\t{layers}\t{weights}\t{macs}\n", spec.name);
        }
        if std::env::var_os("PTSBENCH_UPDATE_SNAPSHOTS").is_some() {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/catalog/counts.tsv");
            std::fs::write(file, table).unwrap();
            return;
        }
        assert!(
            table == COUNTS,
            "catalog/counts.tsv differs; PTSBENCH_UPDATE_SNAPSHOTS=1 writes it again:\n{table}"
        );
    }

    /// Multiply-adds of one image against the metadata of torchvision's weights (0.29.2, `_ops`, in units of 1e9 with
    /// three digits), which count convolutions, linear layers and the products inside attention.
    #[test]
    fn multiply_adds_are_those_that_torchvision_prints() {
        // Two products of tokens by tokens by width in each layer.
        let attention = |layers: u64, tokens: u64, width: u64| layers * 2 * tokens * tokens * width;
        for (model, inside_attention, printed) in [
            ("resnet18", 0, "1.814"),
            ("resnet34", 0, "3.664"),
            ("resnet50", 0, "4.089"),
            ("resnet101", 0, "7.801"),
            ("resnet152", 0, "11.514"),
            ("regnetx_008", 0, "0.800"),
            ("regnetx_016", 0, "1.603"),
            ("regnetx_032", 0, "3.177"),
            ("mobilenetv2_100_tv", 0, "0.301"),
            ("mobilenetv3_large_100_tv", 0, "0.217"),
            ("shufflenet_v2_x0_5", 0, "0.040"),
            ("shufflenet_v2_x1_0", 0, "0.145"),
            ("shufflenet_v2_x1_5", 0, "0.296"),
            ("shufflenet_v2_x2_0", 0, "0.583"),
            ("vgg19", 0, "19.632"),
            ("vgg19_bn", 0, "19.632"),
            ("vit_base_patch16_224", attention(12, 197, 768), "17.564"),
            ("vit_base_patch32_224", attention(12, 50, 768), "4.409"),
            ("vit_large_patch16_224", attention(24, 197, 1024), "61.555"),
            // Printed as 151.54; on an image of 800 x 800.
            ("retinanet_resnet50_fpn_coco", 0, "151.540"),
        ] {
            let macs = find(model).unwrap().counts().macs + inside_attention;
            assert_eq!(format!("{:.3}", macs as f64 / 1e9), printed, "{model}");
        }
    }
}

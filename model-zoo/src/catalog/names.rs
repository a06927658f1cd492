//! The names that other libraries give the catalog's networks.
//!
//! timm writes `resnet18.a1_in1k`, a network and after a dot whose weights; the hub puts `timm/` before it, and timm's
//! loader `hf_hub:` before that. torchvision has names of its own for some. Where both libraries have a network and
//! build it differently, the spelling decides: timm's names the row of timm's layout, torchvision's the row of
//! torchvision's.

use super::origin::Place;
use super::{CATALOG, CatalogError, Spec, unknown};

/// What stands before timm's names where they are addresses.
const SCHEMES: [&str; 2] = ["hf_hub:", "hf-hub:"];

/// The owner of timm's weights on the hub.
const OWNER: &str = "timm/";

/// Catalog names end so where timm and torchvision build a network differently and this is timm's.
const OF_TIMM: &str = "_timm";

/// Endings of files, which are not tags.
const ENDINGS: [&str; 7] = ["safetensors", "pth", "pt", "bin", "json", "toml", "onnx"];

/// Names that follow from no row: torchvision's, and timm's of networks that DeiT shares.
///
/// torchvision's `regnet_x_400mf` is missing: it is wider than the paper's.
const ALIASES: [(&str, &str); 10] = [
    ("mobilenet_v2", "mobilenetv2_100_tv"),
    ("mobilenet_v3_large", "mobilenetv3_large_100_tv"),
    ("regnet_x_800mf", "regnetx_008"),
    ("regnet_x_1_6gf", "regnetx_016"),
    ("regnet_x_3_2gf", "regnetx_032"),
    ("vit_b_16", "vit_base_patch16_224"),
    ("vit_b_32", "vit_base_patch32_224"),
    ("vit_l_16", "vit_large_patch16_224"),
    ("vit_tiny_patch16_224", "deit_tiny_patch16_224"),
    ("vit_small_patch16_224", "deit_small_patch16_224"),
];

/// A network as somebody named it.
#[derive(Debug, Clone)]
pub struct Named {
    /// The network.
    pub spec: &'static Spec,
    /// The name, without what makes it an address.
    pub asked: String,
    /// Which weights the name means.
    pub weights: Meant,
}

/// Which weights a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meant {
    /// None in particular.
    Any,
    /// Those that the catalog knows.
    Catalog,
    /// Others, of which the catalog knows neither file nor recipe.
    Others,
}

impl Named {
    /// What a user should know, where the name is not the catalog's.
    pub fn remark(&self) -> Option<String> {
        let (asked, name) = (&self.asked, self.spec.name);
        if asked == name {
            return None;
        }
        let published = self.published();
        Some(match (self.weights, published) {
            (Meant::Others, Some(published)) => format!(
                "of `{asked}` only the architecture is known here, the catalog's `{name}`: the recipe there belongs to {published}"
            ),
            (Meant::Others, None) => {
                format!("of `{asked}` only the architecture is known here, the catalog's `{name}`")
            }
            (Meant::Any, Some(published)) => {
                format!("`{asked}` is the catalog's `{name}`, whose recipe belongs to {published}")
            }
            (Meant::Catalog, _) | (Meant::Any, None) => {
                format!("`{asked}` is the catalog's `{name}`")
            }
        })
    }

    /// What the catalog's weights of the network are called where they are published.
    pub fn published(&self) -> Option<&'static str> {
        let origin = self.spec.origin()?;
        match origin.place {
            Place::Hub { repository, .. } => Some(repository),
            Place::Web(_) => Some(origin.file),
            Place::Nowhere => None,
        }
    }
}

/// The network that a name of the catalog's, of timm's or of torchvision's means.
pub fn named(name: &str) -> Result<Named, CatalogError> {
    let scheme = SCHEMES.iter().find_map(|scheme| name.strip_prefix(scheme));
    let address = scheme.unwrap_or(name);
    let bare = address.strip_prefix(OWNER).unwrap_or(address);
    if let Some(spec) = row(bare) {
        return Ok(Named {
            spec,
            asked: bare.to_owned(),
            weights: Meant::Any,
        });
    }
    let (network, tag) = match bare.split_once('.') {
        Some((network, tag)) => (network, Some(tag)),
        None => (bare, None),
    };
    let sound = |tag: &str| {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        !tag.is_empty() && tag.chars().all(word) && !ENDINGS.contains(&tag)
    };
    let spec = row(network)
        .or_else(|| row(&format!("{network}{OF_TIMM}")))
        .or_else(|| {
            let (_, name) = ALIASES.iter().find(|(alias, _)| *alias == network)?;
            row(name)
        })
        .filter(|_| tag.is_none_or(sound))
        .ok_or_else(|| unknown(name, network))?;
    let mut named = Named {
        spec,
        asked: bare.to_owned(),
        weights: Meant::Any,
    };
    if tag.is_some() {
        let same = named.published() == Some(&format!("{OWNER}{bare}"));
        named.weights = if same { Meant::Catalog } else { Meant::Others };
    }
    Ok(named)
}

fn row(name: &str) -> Option<&'static Spec> {
    CATALOG.iter().find(|spec| spec.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_libraries_names_are_understood() {
        for (name, row, weights) in [
            ("resnet18", "resnet18", Meant::Any),
            ("timm/resnet18", "resnet18", Meant::Any),
            ("timm/resnet18.tv_in1k", "resnet18", Meant::Catalog),
            ("timm/resnet18.a1_in1k", "resnet18", Meant::Others),
            ("hf_hub:timm/resnet18.a1_in1k", "resnet18", Meant::Others),
            ("hf-hub:timm/resnet50.a2_in1k", "resnet50", Meant::Others),
            ("resnet18.a1_in1k", "resnet18", Meant::Others),
            ("mobilenet_v2", "mobilenetv2_100_tv", Meant::Any),
            ("mobilenetv2_100", "mobilenetv2_100", Meant::Any),
            ("mobilenetv2_100.ra_in1k", "mobilenetv2_100", Meant::Catalog),
            ("mobilenet_v3_large", "mobilenetv3_large_100_tv", Meant::Any),
            (
                "mobilenetv3_large_100",
                "mobilenetv3_large_100_timm",
                Meant::Any,
            ),
            (
                "mobilenetv3_large_100.ra_in1k",
                "mobilenetv3_large_100_timm",
                Meant::Catalog,
            ),
            (
                "mobilenetv3_large_100.miil_in21k",
                "mobilenetv3_large_100_timm",
                Meant::Others,
            ),
            ("shufflenet_v2_x1_0", "shufflenet_v2_x1_0", Meant::Any),
            ("regnet_x_800mf", "regnetx_008", Meant::Any),
            ("regnetx_008.tv2_in1k", "regnetx_008", Meant::Others),
            ("vgg19_bn", "vgg19_bn", Meant::Any),
            ("vit_b_16", "vit_base_patch16_224", Meant::Any),
            (
                "deit_tiny_patch16_224.fb_in1k",
                "deit_tiny_patch16_224",
                Meant::Catalog,
            ),
            ("vit_tiny_patch16_224", "deit_tiny_patch16_224", Meant::Any),
        ] {
            let named = named(name).unwrap();
            assert_eq!((named.spec.name, named.weights), (row, weights), "{name}");
            assert_eq!(named.remark().is_none(), name.ends_with(row), "{name}");
        }
    }

    #[test]
    fn other_names_stay_unknown() {
        for name in [
            "regnet_x_400mf",
            "somebody/resnet18",
            "hf_hub:somebody/resnet18.a1",
            "resnet18.safetensors",
            "resnet18.",
            "resnet18.a b",
            "timm/",
            "",
            "hf_hub:",
        ] {
            let error = named(name).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }

    #[test]
    fn every_alias_leads_to_a_row_and_hides_none() {
        for (alias, name) in ALIASES {
            assert!(row(alias).is_none() && row(name).is_some(), "{alias}");
        }
    }

    #[test]
    fn other_weights_are_said_to_be_others() {
        let remark = named("resnet18.a1_in1k").unwrap().remark().unwrap();
        assert!(remark.contains("only the architecture"), "{remark}");
        assert!(remark.contains("timm/resnet18.tv_in1k"), "{remark}");
    }
}

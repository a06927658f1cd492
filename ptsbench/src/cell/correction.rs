//! What Eq. 1 corrects in a cell, and with which statistics: `false`, `true`, or a table of what differs from the defaults.

use std::fmt;

use model_zoo::misspelt::{did_you_mean, nearest};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::options;

/// Whether Eq. 1 corrects weights and biases before units are fitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorrectionCell {
    /// It does not.
    Off,
    /// It does.
    On(CorrectionOptions),
}

impl CorrectionCell {
    /// Of all layers, as the specification has it, or not at all.
    pub fn plain(on: bool) -> Self {
        match on {
            true => Self::On(CorrectionOptions::default()),
            false => Self::Off,
        }
    }

    /// How it corrects, where it does.
    pub fn options(&self) -> Option<&CorrectionOptions> {
        match self {
            Self::Off => None,
            Self::On(options) => Some(options),
        }
    }

    /// As cells have it, in JSON.
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).expect("words and names")
    }

    /// Whether it is on with all defaults, or off; nothing where it has options.
    pub fn as_plain(&self) -> Option<bool> {
        match self {
            Self::Off => Some(false),
            Self::On(options) => (*options == CorrectionOptions::default()).then_some(true),
        }
    }
}

/// What can be chosen about Eq. 1.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorrectionOptions {
    /// Which of its two steps is taken.
    pub part: CorrectedPart,
    /// Which calls of a layer the mean outputs of the bias step come from.
    pub calls: Calls,
    /// How a channel's factor and shift are found.
    pub moments: Moments,
    /// What becomes of a channel with fewer than two kept weights, or with almost no spread left.
    pub few_kept: FewKept,
    /// Names of layers, or patterns of them; all layers where there are none.
    #[serde(deserialize_with = "some")]
    pub layers: Vec<String>,
}

impl CorrectionOptions {
    /// What differs from the defaults, in words.
    pub fn changed(&self) -> String {
        options::listed(&options::differing(self))
    }

    /// Whether the layer of this name is corrected.
    pub fn takes(&self, layer: &str) -> bool {
        let named = |pattern: &String| model_zoo::catalog::wildcard(pattern, layer);
        self.layers.is_empty() || self.layers.iter().any(named)
    }
}

/// A list that has something in it: an empty one would be taken for all layers.
fn some<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let list: Vec<String> = Vec::deserialize(from)?;
    if list.is_empty() {
        return Err(de::Error::custom(
            "layers is empty; list names or patterns such as \"backbone.*\", or remove it",
        ));
    }
    Ok(list)
}

/// An option that takes one of a few words. What it does not take is told with the option's name.
macro_rules! words {
    ($(#[$about:meta])* $name:ident, $option:literal { $($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// As plans and records spell it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.name())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let word = String::deserialize(from)?;
                match word.as_str() {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(de::Error::custom(not_taken($option, &word, &[$($word),+]))),
                }
            }
        }
    };
}

fn not_taken(option: &str, word: &str, known: &[&str]) -> String {
    format!(
        "{option} = \"{word}\"{} ({option} takes {})",
        did_you_mean(&nearest(word, known)),
        known.join(", ")
    )
}

words! {
    /// The steps of Eq. 1.
    CorrectedPart, "part" {
        /// Weights, then biases.
        #[default]
        Both = "both",
        /// Weights alone.
        Weight = "weight",
        /// Biases alone.
        Bias = "bias",
    }
}

words! {
    /// Calls of a layer in one pass: a detector's head runs once for each level.
    Calls, "calls" {
        /// All of them.
        #[default]
        All = "all",
        /// The first, as in the original release: a shared head is corrected by its finest level.
        First = "first",
    }
}

words! {
    /// How a channel's factor and shift are found.
    Moments, "moments" {
        /// Eq. 1 as section 3.1 tabulates it: masking again takes part of the shift away.
        #[default]
        Table = "table",
        /// Mean and variance of the masked channel are the dense channel's, where that has a solution.
        Exact = "exact",
    }
}

words! {
    /// What becomes of a channel in which almost nothing is left.
    FewKept, "few_kept" {
        /// It stays as it is.
        #[default]
        Leave = "leave",
        /// It is scaled like others.
        Correct = "correct",
    }
}

impl Serialize for CorrectionCell {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match (self.as_plain(), self.options()) {
            (None, Some(changed)) => options::differing(changed).serialize(to),
            (plain, _) => to.serialize_bool(plain.unwrap_or_default()),
        }
    }
}

impl<'de> Deserialize<'de> for CorrectionCell {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Written;
        impl<'de> Visitor<'de> for Written {
            type Value = CorrectionCell;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or a table such as { part = \"bias\" }")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<CorrectionCell, E> {
                Ok(CorrectionCell::plain(on))
            }
            // The map is read where it stands, so that what is wrong in it has its place in the plan.
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CorrectionCell, A::Error> {
                let options = CorrectionOptions::deserialize(MapAccessDeserializer::new(map))?;
                Ok(CorrectionCell::On(options))
            }
        }
        from.deserialize_any(Written)
    }
}

/// As labels have it: `uncorrected`, `corrected`, and what differs from the defaults.
impl fmt::Display for CorrectionCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("uncorrected"),
            Self::On(changed) => {
                f.write_str("corrected")?;
                options::write_options(f, &options::differing(changed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<CorrectionCell, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_correction_without_options_is_written_as_before_there_were_any() {
        for (text, written) in [
            ("true", "true"),
            ("false", "false"),
            ("{}", "true"),
            (r#"{"part":"both","moments":"table"}"#, "true"),
            (r#"{"part":"bias","calls":"all"}"#, r#"{"part":"bias"}"#),
            (
                r#"{"layers":["head.*"],"few_kept":"correct"}"#,
                r#"{"few_kept":"correct","layers":["head.*"]}"#,
            ),
        ] {
            let cell = read(text).unwrap();
            let again = serde_json::to_string(&cell).unwrap();
            assert_eq!(again, written);
            assert_eq!(read(&again), Ok(cell));
        }
        assert_eq!(read("true"), Ok(CorrectionCell::plain(true)));
    }

    #[test]
    fn what_an_option_does_not_take_is_told_by_its_name() {
        for (text, said) in [
            (
                r#"{"part":"wieght"}"#,
                "part = \"wieght\", did you mean `weight`? (part takes both, weight, bias)",
            ),
            (r#"{"calls":"one"}"#, "calls takes all, first"),
            (r#"{"moments":1}"#, "expected a string"),
            (r#"{"few_kept":"drop"}"#, "few_kept takes leave, correct"),
            (r#"{"layers":[]}"#, "layers is empty"),
            (r#"{"prat":"bias"}"#, "unknown field `prat`"),
            ("\"yes\"", "true, false, or a table"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn patterns_name_layers() {
        let CorrectionCell::On(some) = read(r#"{"layers":["head.*","fc"]}"#).unwrap() else {
            panic!("it is on");
        };
        for (layer, taken) in [
            ("head.a.0", true),
            ("fc", true),
            ("fc2", false),
            ("a.head.0", false),
        ] {
            assert_eq!(some.takes(layer), taken, "{layer}");
        }
        assert!(CorrectionOptions::default().takes("anything"));
    }
}

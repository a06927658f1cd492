//! A cell: the complete description of one measurement, and nothing that could not change its number.
//!
//! Device, threads, evaluation batch and folders are environment: they are recorded, not hashed.

mod correction;

use model_zoo::Grain;
use std::collections::BTreeMap;

use kernels::{KernelError, Precision, TileLayout, nm_mask, nm_mask_transposable};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use correction::{Calls, CorrectedPart, CorrectionCell, CorrectionOptions, FewKept, Moments};

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// The catalog's name of the network.
    pub model: String,
    /// SHA-256 of the weight file, in hex.
    pub weights: String,
    /// What is evaluated.
    pub task: TaskCell,
    /// How the network is made sparse; absent in the dense reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<Sparsity>,
    /// Arithmetic of the products; absent for f32.
    #[serde(default, skip_serializing_if = "is_f32", with = "precision_name")]
    pub precision: Precision,
}

fn is_f32(precision: &Precision) -> bool {
    *precision == Precision::F32
}

/// Precisions as files spell them.
pub(crate) mod precision_name {
    use kernels::Precision;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(precision: &Precision, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(precision.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Precision, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// The task of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskCell {
    /// E.g. `micro` (the procedural 20-class set).
    pub name: String,
    /// Measurement version of the task: raised whenever its numbers may change.
    pub version: u32,
    /// Images evaluated, the first ones in the set's order.
    pub samples: usize,
    /// SHA-256 of the list that is evaluated; absent for the built-in images, which the version identifies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// How the images were told from the training ones; absent where the data set itself says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// How pictures become inputs; absent for the built-in images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
}

/// How a network is made sparse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sparsity {
    /// What may be removed.
    pub pattern: Pattern,
    /// How much from each layer, or what a whole method starts from; absent where the pattern decides it (N:M).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation: Option<Part>,
    /// Which weights in a layer.
    pub criterion: Part,
    /// The counting and tie rule.
    pub rule: Rule,
    /// What is done with batch norms before anything is chosen; absent where they are folded.
    #[serde(default = "folded", skip_serializing_if = "is_folded")]
    pub batch_norm: BatchNorm,
    /// The images that allocator, criterion or repair look at; absent where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationCell>,
    /// What repairs the network last, without training a weight; absent where nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<Part>,
    /// How the rest recovers; absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconstruction: Option<Reconstruction>,
}

/// What is done with batch norms before anything is chosen. Criteria, allocators and Eq. 1 look at the checkpoint's
/// weights, or at those multiplied by what the norms do.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum BatchNorm {
    /// They stay, frozen, until the network is evaluated.
    #[default]
    Kept,
    /// They are folded into the convolutions before them.
    Folded,
}

impl BatchNorm {
    /// As plans and records spell it.
    pub fn name(self) -> &'static str {
        match self {
            BatchNorm::Kept => "kept",
            BatchNorm::Folded => "folded",
        }
    }
}

impl std::str::FromStr for BatchNorm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [BatchNorm::Kept, BatchNorm::Folded]
            .into_iter()
            .find(|known| known.name() == text)
            .ok_or_else(|| "write kept or folded".to_owned())
    }
}

impl std::fmt::Display for BatchNorm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

// The first records were all made so, and their cells have no such field.
fn folded() -> BatchNorm {
    BatchNorm::Folded
}

fn is_folded(batch_norm: &BatchNorm) -> bool {
    *batch_norm == BatchNorm::Folded
}

/// A named algorithm and its measurement version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name in the registry.
    pub name: String,
    /// Raised whenever its numbers may change.
    pub version: u32,
    /// What differs from its defaults; absent where nothing does, so that a new option leaves old keys alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, serde_json::Value>,
}

impl Part {
    /// An algorithm with its defaults.
    pub fn plain(name: impl Into<String>, version: u32) -> Part {
        Part {
            name: name.into(),
            version,
            options: BTreeMap::new(),
        }
    }
}

/// The name, and the options where there are some.
impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        crate::options::write_options(f, &self.options)
    }
}

/// What may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Pattern {
    /// Any weight; `rate` of all prunable weights are zero.
    Unstructured {
        /// Fraction of zeros, in [0, 1).
        rate: f64,
    },
    /// At most `n` of every `m` consecutive input channels are kept.
    NofM {
        /// Kept.
        n: usize,
        /// Group.
        m: usize,
    },
    /// Exactly `n` kept in every row and column of each `m` x `m` tile.
    TransposableNofM {
        /// Kept.
        n: usize,
        /// Tile.
        m: usize,
    },
}

impl Pattern {
    /// N and M, if weights are kept in groups along input channels.
    pub fn groups(self) -> Option<[usize; 2]> {
        match self {
            Self::Unstructured { .. } => None,
            Self::NofM { n, m } | Self::TransposableNofM { n, m } => Some([n, m]),
        }
    }
}

/// A text that is no N:M pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// Not of the form.
    #[error(
        "`{0}` is not a pattern; write kept:group, such as \"2:4\", or \"t2:4\" for its transposable form"
    )]
    Form(String),
    /// No kernel makes such masks.
    #[error(transparent)]
    Numbers(#[from] KernelError),
}

/// `2:4`, or `t2:4` for the transposable form. Rates are not patterns.
impl std::str::FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let (body, transposable) = match text.strip_prefix('t') {
            Some(body) => (body, true),
            None => (text, false),
        };
        let (n, m) = body
            .split_once(':')
            .and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)))
            .ok_or_else(|| BadPattern::Form(text.to_owned()))?;
        // An empty layer makes the kernel check the numbers alone.
        let empty: &[f32] = &[];
        if transposable {
            nm_mask_transposable(empty, &[0, 0], n, m, TileLayout::Matrix)?;
            Ok(Pattern::TransposableNofM { n, m })
        } else {
            nm_mask(empty, &[0, 0], n, m)?;
            Ok(Pattern::NofM { n, m })
        }
    }
}

/// A rate as a number, a pattern as [`FromStr`](std::str::FromStr) reads it.
impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Pattern::Unstructured { rate } => write!(f, "{rate}"),
            Pattern::NofM { n, m } => write!(f, "{n}:{m}"),
            Pattern::TransposableNofM { n, m } => write!(f, "t{n}:{m}"),
        }
    }
}

/// The counting and tie rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Counts sum to the budget exactly; among equal scores the lowest index is kept.
    #[default]
    Exact,
    /// The original release's: everything at or below the threshold goes.
    Msbench,
}

/// Where a unit's inputs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inputs {
    /// From the dense network.
    Dense,
    /// From the network whose earlier units are already pruned and reconstructed.
    Sparse,
}

/// How the remaining weights recover.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconstruction {
    /// Measurement version.
    pub version: u32,
    /// Size of the pieces.
    pub granularity: Grain,
    /// Where their inputs come from.
    pub inputs: Inputs,
    /// Whether Eq. 1 corrects weights and biases first, and how.
    pub correction: CorrectionCell,
    /// The images that guide it.
    pub calibration: CalibrationCell,
    /// How each piece is fitted.
    pub fit: Fit,
}

/// Calibration images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationCell {
    /// How many, drawn without labels from the training split.
    pub images: usize,
    /// Images in a cached batch.
    pub batch: usize,
    /// Seed of the draw and of the order of batches.
    pub seed: u64,
    /// SHA-256 of the list drawn; absent for the built-in images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
}

/// The optimisation of one unit (section 3.4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fit {
    /// The rule that updates weights.
    pub optimizer: Optimizer,
    /// Steps per unit, at most.
    pub steps: usize,
    /// A unit ends when a batch's loss falls below this; 0 never.
    pub early_stop: f64,
}

/// The rule that updates weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// Adam (0.9, 0.999, 1e-8), no decay.
    Adam {
        /// Learning rate of weights.
        lr: f64,
        /// Learning rate of biases; biases are frozen where it is 0.
        bias_lr: f64,
    },
    /// SGD with momentum, no decay.
    Sgd {
        /// Learning rate of weights.
        lr: f64,
        /// Learning rate of biases; biases are frozen where it is 0.
        bias_lr: f64,
        /// Momentum.
        momentum: f64,
    },
}

/// The name of a cell: the SHA-256 of its canonical form, in hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

/// A text that is not a key.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a key; a key is 64 lower-case hex digits")]
pub struct NotAKey(pub String);

impl TryFrom<String> for Key {
    type Error = NotAKey;

    fn try_from(text: String) -> Result<Self, NotAKey> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 64 && text.bytes().all(hex) {
            Ok(Key(text))
        } else {
            Err(NotAKey(text))
        }
    }
}

impl From<Key> for String {
    fn from(key: Key) -> String {
        key.0
    }
}

impl Key {
    /// The key as 64 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first eight digits, for messages.
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The cell in a few words, for lists and progress; not unique, since versions and presets are left out.
impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.model)?;
        if self.precision != Precision::F32 {
            write!(f, " in {}", self.precision)?;
        }
        let Some(sparsity) = &self.sparsity else {
            return f.write_str(" dense");
        };
        if let Some(allocation) = &sparsity.allocation {
            write!(f, " {allocation}")?;
        }
        write!(f, " {}", sparsity.pattern)?;
        if sparsity.criterion.name != "magnitude" {
            write!(f, " {}", sparsity.criterion)?;
        }
        if sparsity.rule == Rule::Msbench {
            f.write_str(" msbench")?;
        }
        if sparsity.batch_norm == BatchNorm::Folded {
            f.write_str(" folded")?;
        }
        if let Some(repair) = &sparsity.repair {
            write!(f, " {repair}")?;
        }
        if let (Some(calibration), None) = (&sparsity.calibration, &sparsity.reconstruction) {
            write!(f, " seed {}", calibration.seed)?;
        }
        if let Some(reconstruction) = &sparsity.reconstruction {
            let grain = reconstruction.granularity.name();
            let inputs = match reconstruction.inputs {
                Inputs::Dense => "dense",
                Inputs::Sparse => "sparse",
            };
            let correction = &reconstruction.correction;
            let seed = reconstruction.calibration.seed;
            write!(f, " {grain} {inputs}-input {correction} seed {seed}")?;
        }
        Ok(())
    }
}

impl Cell {
    /// The canonical form: JSON without spaces, fields in the order of the types.
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).expect("a cell holds only finite numbers and strings")
    }

    /// The key of this cell.
    pub fn key(&self) -> Key {
        let mut hash = Sha256::new();
        hash.update(b"ptsbench-cell-v1\n");
        hash.update(self.canonical().as_bytes());
        Key(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn full() -> Cell {
        let part = |name: &str| Part::plain(name, 1);
        Cell {
            model: "micro_resnet8".into(),
            precision: Precision::Bf16x3,
            weights: "ab".repeat(32),
            task: TaskCell {
                name: "micro".into(),
                version: 1,
                samples: 200,
                data: Some("cd".repeat(32)),
                split: None,
                recipe: Some("crop 32".into()),
            },
            sparsity: Some(Sparsity {
                pattern: Pattern::Unstructured { rate: 0.7 },
                allocation: Some(part("l2norm")),
                criterion: part("magnitude"),
                rule: Rule::Exact,
                batch_norm: BatchNorm::Kept,
                calibration: Some(CalibrationCell {
                    images: 64,
                    batch: 8,
                    seed: 3,
                    list: Some("ee".repeat(32)),
                }),
                repair: Some(part("bn_re_estimation")),
                reconstruction: Some(Reconstruction {
                    version: 1,
                    granularity: Grain::Layer,
                    inputs: Inputs::Sparse,
                    correction: CorrectionCell::plain(true),
                    calibration: CalibrationCell {
                        images: 32,
                        batch: 16,
                        seed: 0,
                        list: Some("ef".repeat(32)),
                    },
                    fit: Fit {
                        optimizer: Optimizer::Sgd {
                            lr: 1e-4,
                            bias_lr: 0.0,
                            momentum: 0.9,
                        },
                        steps: 5,
                        early_stop: 1e-5,
                    },
                }),
            }),
        }
    }

    fn leaves(value: &Value, path: String, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => map
                .iter()
                .for_each(|(name, inner)| leaves(inner, format!("{path}/{name}"), found)),
            _ => found.push(path),
        }
    }

    /// Other values the leaf may take.
    fn alternatives(leaf: &Value) -> Vec<Value> {
        match leaf {
            Value::Bool(b) => vec![Value::Bool(!b)],
            Value::Number(n) if n.is_f64() => {
                let x = n.as_f64().unwrap();
                vec![(x * 0.5 + 1e-9).into(), x.next_up().into()]
            }
            Value::Number(n) => vec![(n.as_u64().unwrap() + 1).into()],
            Value::String(s) => [
                "msbench",
                "single",
                "block",
                "dense",
                "adam",
                "bf16",
                "folded",
                &format!("{s}x"),
            ]
            .map(|other| Value::String(other.into()))
            .to_vec(),
            other => panic!("a cell has no {other}"),
        }
    }

    #[test]
    fn every_leaf_changes_the_key() {
        let cell = full();
        let json: Value = serde_json::from_str(&cell.canonical()).unwrap();
        let mut paths = Vec::new();
        leaves(&json, String::new(), &mut paths);
        assert_eq!(paths.len(), 35, "{paths:#?}");
        for path in paths {
            let mut readable = 0;
            for other in alternatives(json.pointer(&path).unwrap()) {
                let mut changed = json.clone();
                *changed.pointer_mut(&path).unwrap() = other.clone();
                if path.ends_with("optimizer/name") {
                    // Adam has no momentum.
                    let optimizer = changed.pointer_mut("/sparsity/reconstruction/fit/optimizer");
                    optimizer
                        .unwrap()
                        .as_object_mut()
                        .unwrap()
                        .shift_remove("momentum");
                }
                if let Ok(changed) = serde_json::from_value::<Cell>(changed) {
                    readable += 1;
                    assert_ne!(changed.key(), cell.key(), "{path} = {other}");
                }
            }
            assert!(readable > 0, "no other value of {path} could be read");
        }
    }

    #[test]
    fn every_absent_part_and_every_pattern_changes_the_key() {
        let mut keys = std::collections::BTreeSet::new();
        let mut cell = full();
        keys.insert(cell.key());
        cell.task.split = Some("20 % of each class".into());
        keys.insert(cell.key());
        cell.sparsity.as_mut().unwrap().reconstruction = None;
        keys.insert(cell.key());
        for pattern in [
            Pattern::NofM { n: 2, m: 4 },
            Pattern::NofM { n: 1, m: 4 },
            Pattern::NofM { n: 2, m: 8 },
            Pattern::TransposableNofM { n: 2, m: 4 },
        ] {
            cell.sparsity.as_mut().unwrap().pattern = pattern;
            keys.insert(cell.key());
        }
        cell.sparsity.as_mut().unwrap().allocation = None;
        keys.insert(cell.key());
        cell.sparsity = None;
        keys.insert(cell.key());
        assert_eq!(keys.len(), 9);
    }

    /// Computed by Python's hashlib from the canonical texts of the first release: records are found by these, so no later
    /// field, and no other way of writing 0.00001, may change them.
    #[test]
    fn keys_are_those_of_the_first_release() {
        let mut full = full();
        // Of these there was one kind, or none.
        let sparsity = full.sparsity.as_mut().unwrap();
        sparsity.batch_norm = BatchNorm::Folded;
        (sparsity.calibration, sparsity.repair) = (None, None);
        let mut dense = full.clone();
        dense.precision = Precision::F32;
        (dense.task.data, dense.task.recipe) = (None, None);
        let mut pattern = dense.clone();
        let sparsity = pattern.sparsity.as_mut().unwrap();
        sparsity.pattern = Pattern::NofM { n: 2, m: 4 };
        (sparsity.allocation, sparsity.reconstruction) = (None, None);
        dense.sparsity = None;
        for (cell, key) in [
            (
                dense,
                "f9843aac2edb7a9b6fb23e3df948372cce2346a8a9b648c1a89daf82bea4f0fa",
            ),
            (
                pattern,
                "82aca76ed85606a42e9d6bb52c00a7f50bd3a6d740a353c49884aaf6d54a8408",
            ),
            (
                full,
                "cdf2e33a57c7fa92ec63ce8b98a6159e34684f7bdd5b587ea796246ee8ebcfcc",
            ),
        ] {
            assert_eq!(cell.key().as_str(), key, "{cell}");
        }
    }

    #[test]
    fn options_change_the_key_and_defaults_do_not() {
        let plain = full();
        let mut other = full();
        let part = &mut other.sparsity.as_mut().unwrap().criterion;
        part.options.insert("power".into(), 2.into());
        assert_ne!(other.key(), plain.key());
        assert!(!plain.canonical().contains("options"));
        let read: Cell = serde_json::from_str(&other.canonical()).unwrap();
        assert_eq!((read.key(), &read), (other.key(), &other));
        let part = &mut other.sparsity.as_mut().unwrap().criterion;
        part.options.clear();
        assert_eq!(other.key(), plain.key());
    }

    #[test]
    fn options_of_the_correction_change_the_key() {
        let mut keys = std::collections::BTreeSet::from([full().key()]);
        for text in [
            "false",
            r#"{"part":"weight"}"#,
            r#"{"part":"bias"}"#,
            r#"{"calls":"first"}"#,
            r#"{"moments":"exact"}"#,
            r#"{"few_kept":"correct"}"#,
            r#"{"layers":["head.*"]}"#,
            r#"{"layers":["head.*","fc"]}"#,
        ] {
            let mut cell = full();
            let fitted = cell.sparsity.as_mut().unwrap().reconstruction.as_mut();
            fitted.unwrap().correction = serde_json::from_str(text).unwrap();
            let read: Cell = serde_json::from_str(&cell.canonical()).unwrap();
            assert_eq!(read, cell);
            assert!(keys.insert(cell.key()), "{text}");
        }
    }

    #[test]
    fn a_cell_survives_its_canonical_form() {
        let cell = full();
        let read: Cell = serde_json::from_str(&cell.canonical()).unwrap();
        assert_eq!(read, cell);
        assert_eq!(read.key(), cell.key());
    }

    #[test]
    fn patterns_are_read_as_they_are_written() {
        for (text, pattern) in [
            ("2:4", Pattern::NofM { n: 2, m: 4 }),
            ("1:16", Pattern::NofM { n: 1, m: 16 }),
            ("t2:4", Pattern::TransposableNofM { n: 2, m: 4 }),
        ] {
            assert_eq!(text.parse(), Ok(pattern));
            assert_eq!(pattern.to_string(), text);
        }
        for bad in [
            "4:2", "2:2", "0:4", "2", "2:x", "", "t", "2:4T", "t4:8", "0.5", "1:64",
        ] {
            let error = bad.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.contains(';'), "{bad}: {error}");
        }
    }

    #[test]
    fn only_hex_digests_are_keys() {
        assert!(Key::try_from("0f".repeat(32)).is_ok());
        for text in [
            "",
            "0f",
            &"0F".repeat(32),
            &"0g".repeat(32),
            &"é".repeat(32),
        ] {
            assert!(Key::try_from(text.to_string()).is_err(), "{text}");
        }
    }
}

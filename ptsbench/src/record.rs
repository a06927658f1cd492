//! The record of one measured cell: what `report` and `figures` read, and all they read.
//!
//! Everything outside `timing` and `environment` is a function of the cell alone.

use std::collections::BTreeMap;

use kernels::plan::Path;
use model_zoo::frozen::Choice;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

mod budget;
mod migrate;

use crate::cell::{Cell, Key};
use model_zoo::Grain;

pub use budget::Budget;
pub use migrate::{OLDEST, migrate};

/// Version of this type's written form.
pub const SCHEMA: u32 = 2;

/// One measured cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// The cell's key.
    pub key: Key,
    /// What was measured.
    pub cell: Cell,
    /// The task's metric.
    pub score: Score,
    /// Size and arithmetic of the network as evaluated.
    pub cost: Cost,
    /// The prunable layers, in forward order.
    pub layers: Vec<LayerOutcome>,
    /// The reconstructed units, in the order they were fitted; empty without reconstruction.
    pub units: Vec<UnitOutcome>,
    /// How the search for the allocation went; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
    /// How the training of the whole network went, epoch by epoch; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingCurve>,
    /// What making the network took, besides the weights.
    pub budget: Budget,
    /// Seconds spent; differs from run to run.
    pub timing: Timing,
    /// The machine and program; differs from run to run.
    pub environment: Environment,
}

/// The task's metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// E.g. `top1`.
    pub metric: String,
    /// Its value, in percent for accuracies.
    pub value: Level,
    /// Whether more or less is better.
    pub better: Better,
    /// What the value was made from.
    pub counts: Counts,
    /// The same results by other metrics, each under its own name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub also: BTreeMap<String, f64>,
}

impl Score {
    /// A top-1 accuracy.
    pub fn top1(correct: u64, total: u64, available: u64) -> Score {
        Score {
            metric: "top1".to_owned(),
            value: Level::Number(100.0 * correct as f64 / total.max(1) as f64),
            better: Better::Higher,
            counts: Counts::Top1 {
                correct,
                total,
                available,
            },
            also: BTreeMap::new(),
        }
    }
}

/// In a few words, for progress.
impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.value, &self.counts) {
            (Level::Number(value), Counts::Top1 { .. }) => write!(f, "top-1 {value:.2} %"),
            (Level::Number(value), _) => write!(f, "{} {value:.2}", self.metric),
            (Level::Collapsed, _) => write!(f, "{}: collapsed", self.metric),
        }
    }
}

/// The value of a metric: a finite number, or the word for a network so far gone that the metric has none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Level {
    /// A number.
    Number(f64),
    /// No number: what the network puts out is not one any more.
    Collapsed,
}

impl Level {
    const COLLAPSED: &str = "collapsed";

    /// The number, if there is one.
    pub fn number(self) -> Option<f64> {
        match self {
            Level::Number(value) => Some(value),
            Level::Collapsed => None,
        }
    }
}

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Level::Number(value) => to.serialize_f64(*value),
            Level::Collapsed => to.serialize_str(Level::COLLAPSED),
        }
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a number or \"collapsed\"")]
        enum Written {
            Number(f64),
            Word(String),
        }
        match Written::deserialize(from)? {
            Written::Number(value) => Ok(Level::Number(value)),
            Written::Word(word) if word == Level::COLLAPSED => Ok(Level::Collapsed),
            Written::Word(word) => Err(de::Error::custom(format!(
                "the value is `{word}`, expected a number or \"collapsed\""
            ))),
        }
    }
}

/// What a score was made from, by the kind of task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case", deny_unknown_fields)]
pub enum Counts {
    /// Images that were classified.
    Top1 {
        /// Correctly.
        correct: u64,
        /// Evaluated.
        total: u64,
        /// In the set: less than all of them is a limited run.
        available: u64,
    },
    /// Images in which objects were sought.
    Boxes {
        /// Boxes that the network gave.
        found: u64,
        /// Objects on the images that count.
        objects: u64,
        /// Evaluated.
        total: u64,
        /// In the set.
        available: u64,
    },
    /// Images that were generated.
    Generated {
        /// Images they were compared with.
        reference: u64,
        /// Generated.
        total: u64,
        /// As many as the metric is defined for.
        available: u64,
    },
}

impl Counts {
    /// Samples evaluated.
    pub fn total(&self) -> u64 {
        let (Counts::Top1 { total, .. }
        | Counts::Boxes { total, .. }
        | Counts::Generated { total, .. }) = self;
        *total
    }

    /// Samples that the set holds.
    pub fn available(&self) -> u64 {
        let (Counts::Top1 { available, .. }
        | Counts::Boxes { available, .. }
        | Counts::Generated { available, .. }) = self;
        *available
    }

    /// Samples that came out right, where each is right or wrong.
    pub fn correct(&self) -> Option<u64> {
        match self {
            Counts::Top1 { correct, .. } => Some(*correct),
            Counts::Boxes { .. } | Counts::Generated { .. } => None,
        }
    }
}

/// Direction of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// Size and arithmetic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Prunable weights.
    pub weights: u64,
    /// Of those, zeros.
    pub zeros: u64,
    /// All parameters, prunable or not, batch norms folded.
    pub parameters: u64,
    /// Multiply-adds of the prunable layers for one input.
    pub macs: u64,
    /// Of those, with a nonzero weight.
    pub sparse_macs: u64,
}

/// What became of one prunable layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerOutcome {
    /// The checkpoint's name of the layer.
    pub path: String,
    /// Weight shape: OIHW or [out, in].
    pub shape: Vec<usize>,
    /// Weights.
    pub weights: u64,
    /// Of those, zeros.
    pub zeros: u64,
    /// The rate the allocator asked for, before whole counts; absent where a pattern decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
}

/// What became of one reconstructed unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitOutcome {
    /// The unit's path.
    pub path: String,
    /// Its own grain, at most the asked granularity.
    pub grain: Grain,
    /// Steps taken.
    pub steps: usize,
    /// Loss over all calibration batches before fitting (after correction, where there is one).
    pub loss_before: f64,
    /// The same after fitting.
    pub loss_after: f64,
}

/// The loss of the best allocation, at the start of a search and after each generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Search(pub Vec<Level>);

impl Search {
    /// Of these losses, an infinite one for outputs that were no numbers; none without a start.
    pub fn of(losses: &[f64]) -> Option<Self> {
        let level = |&loss: &f64| match loss.is_finite() {
            true => Level::Number(loss),
            false => Level::Collapsed,
        };
        (!losses.is_empty()).then(|| Self(losses.iter().map(level).collect()))
    }
}

/// The curve in a line, at its quarters: "loss 0.8 at the start, 0.5 after 25, ... 0.31 after 100 generations".
impl std::fmt::Display for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let generations = self.0.len().saturating_sub(1);
        let mut quarters = [0, 1, 2, 3, 4]
            .map(|quarter| quarter * generations / 4)
            .to_vec();
        quarters.dedup();
        let points = quarters.iter().map(|&at| {
            let when = match at {
                0 => "at the start".to_owned(),
                _ => format!("after {at}"),
            };
            match self.0.get(at).and_then(|level| level.number()) {
                Some(loss) => format!("{loss:.4} {when}"),
                None => format!("{} {when}", Level::COLLAPSED),
            }
        });
        let points: Vec<String> = points.collect();
        write!(f, "loss {}", points.join(", "))?;
        match generations {
            0 => Ok(()),
            1 => f.write_str(" generation"),
            _ => f.write_str(" generations"),
        }
    }
}

/// What an epoch of training the whole network came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochOutcome {
    /// Mean loss against the dense network's outputs, over its steps.
    pub loss: f64,
    /// Mean penalty of a rate that is not the wanted one.
    pub penalty: f64,
    /// Fraction of zeros at its end, before counts are made exact.
    pub rate: f64,
}

/// The epochs of training a whole network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrainingCurve(pub Vec<EpochOutcome>);

/// The curve in a line, at its quarters: "loss 0.8 after 1, 0.5 after 25, ... 0.31 after 100 epochs; rate 0.8003 at the end".
impl std::fmt::Display for TrainingCurve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let epochs = self.0.len();
        let mut quarters = [0, 1, 2, 3, 4]
            .map(|quarter| (quarter * epochs / 4).max(1))
            .to_vec();
        quarters.dedup();
        let points = quarters.iter().filter_map(|&at| {
            let loss = self.0.get(at - 1)?.loss;
            Some(format!("{loss:.4} after {at}"))
        });
        let points: Vec<String> = points.collect();
        let unit = if epochs == 1 { "epoch" } else { "epochs" };
        write!(f, "loss {} {unit}", points.join(", "))?;
        match self.0.last() {
            Some(last) => write!(
                f,
                "; rate {:.4} at the end, before it was made exact",
                last.rate
            ),
            None => Ok(()),
        }
    }
}

/// Seconds spent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// Loading weights, allocation and masks.
    pub prepare_s: f64,
    /// Correction and reconstruction.
    pub reconstruct_s: f64,
    /// Evaluation.
    pub evaluate_s: f64,
    /// When the record was written, seconds since 1970.
    pub finished_unix: u64,
}

/// The machine and program.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Version of this program.
    pub ptsbench: String,
    /// E.g. `flex`.
    pub device: String,
    /// Threads used.
    pub threads: usize,
    /// Operating system and architecture.
    pub platform: String,
    /// The processor's name, where the system tells.
    pub processor: String,
    /// On which paths the prunable layers ran in the evaluation; absent where all ran on their whole weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Paths>,
}

/// How many prunable layers took which path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paths {
    /// The whole weight, zeros and all.
    pub dense: usize,
    /// Kept weights alone.
    pub csr: usize,
    /// Kept weights alone, which come in N:M groups.
    pub nm: usize,
}

impl Paths {
    /// Of these layers.
    pub fn of(layers: &[Choice]) -> Self {
        let count = |path| {
            layers
                .iter()
                .filter(|choice| choice.plan.path == path)
                .count()
        };
        let (csr, nm) = (count(Path::Csr), count(Path::Nm));
        Self {
            dense: layers.len() - csr - nm,
            csr,
            nm,
        }
    }

    /// None where every layer runs on its whole weight.
    pub fn if_any(self) -> Option<Self> {
        (self.csr + self.nm > 0).then_some(self)
    }
}

/// As "9 dense, 12 csr".
impl std::fmt::Display for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths = [
            (Path::Dense, self.dense),
            (Path::Csr, self.csr),
            (Path::Nm, self.nm),
        ];
        let taken = paths.iter().filter(|(_, layers)| *layers > 0);
        let taken = taken.map(|(path, layers)| format!("{layers} {}", path.name()));
        f.write_str(&taken.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_shows_at_its_quarters() {
        let losses: Vec<f64> = (0..=100).map(|at| 1.0 / f64::from(at + 1)).collect();
        assert_eq!(
            Search::of(&losses).unwrap().to_string(),
            "loss 1.0000 at the start, 0.0385 after 25, 0.0196 after 50, 0.0132 after 75, 0.0099 after 100 generations"
        );
        assert_eq!(
            Search::of(&[f64::INFINITY, 0.5]).unwrap().to_string(),
            "loss collapsed at the start, 0.5000 after 1 generation"
        );
        assert_eq!(
            Search::of(&[0.25]).unwrap().to_string(),
            "loss 0.2500 at the start"
        );
        assert_eq!(Search::of(&[]), None);
    }
}

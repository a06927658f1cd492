//! The record of one measured cell: what `report` and `figures` read, and all they read.
//!
//! Everything outside `timing` and `environment` is a function of the cell alone.

use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Granularity, Key};

/// Version of this type's written form.
pub const SCHEMA: u32 = 1;

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
    pub value: f64,
    /// Whether more or less is better.
    pub better: Better,
    /// Images classified correctly.
    pub correct: u64,
    /// Images evaluated.
    pub total: u64,
    /// Images the set holds: less than all of them is a limited run.
    pub available: u64,
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
    pub grain: Granularity,
    /// Steps taken.
    pub steps: usize,
    /// Loss over all calibration batches before fitting (after correction, where there is one).
    pub loss_before: f64,
    /// The same after fitting.
    pub loss_after: f64,
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
}

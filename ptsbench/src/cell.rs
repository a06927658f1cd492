//! A cell: the complete description of one measurement, and nothing that could not change its number.
//!
//! Device, threads, evaluation batch and folders are environment: they are recorded, not hashed.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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
}

/// How a network is made sparse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sparsity {
    /// What may be removed.
    pub pattern: Pattern,
    /// How much from each layer; absent where the pattern decides it (N:M).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation: Option<Part>,
    /// Which weights in a layer.
    pub criterion: Part,
    /// The counting and tie rule.
    pub rule: Rule,
    /// How the rest recovers; absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconstruction: Option<Reconstruction>,
}

/// A named algorithm and its measurement version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name in the registry.
    pub name: String,
    /// Raised whenever its numbers may change.
    pub version: u32,
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

/// The grain of the pieces that are reconstructed (section 3.3 of the specification).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// One convolution or linear layer.
    Single,
    /// A convolution or linear layer with what follows it up to the next one or a join.
    Layer,
    /// A residual block (or the family's equivalent).
    Block,
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
    pub granularity: Granularity,
    /// Where their inputs come from.
    pub inputs: Inputs,
    /// Whether Eq. 1 corrects weights and biases first.
    pub correction: bool,
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
#[serde(transparent)]
pub struct Key(String);

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

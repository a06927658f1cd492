//! Weights chosen from second-order information: section 2 of the specification where it updates what it keeps.
//!
//! A solver sees one group of one layer as a matrix and the sum of its inputs' outer products; it returns a mask and
//! the weights that go with it. Pure functions: which layer, which inputs and in what order is the caller's business.

pub mod inverse;
pub mod sparsegpt;

use kernels::BitMask;

use crate::inventory::Layer;
use crate::options::{BadOptions, Options};
use crate::seen::Seen;
use sparsegpt::{Ask, SparseGpt, SparseGptError};

/// Gives a layer its mask, and the weights that go with it.
pub trait Solver: Sync {
    /// Its name in plans and records, where criteria are named.
    fn name(&self) -> &'static str;

    /// Measurement version: raised whenever its numbers may change.
    fn version(&self) -> u32 {
        1
    }

    /// One line for `ptsbench list`.
    fn about(&self) -> &'static str;

    /// Whether layers read what the dense network gives them, or what it gives them as pruned so far.
    fn dense_inputs(&self) -> bool;

    /// Prunes one layer: `weight` flat in the order of its shape, `seen` with Gram sums.
    fn solve(
        &self,
        layer: &Layer,
        weight: &[f32],
        seen: &Seen,
        ask: Ask,
    ) -> Result<Solution, SparseGptError>;

    /// Itself, as these options ask for it.
    fn with(&self, options: &Options) -> Result<Box<dyn Solver>, BadOptions>;

    /// Its options that differ from the defaults.
    fn options(&self) -> Options;

    /// All its options.
    fn all_options(&self) -> Options;
}

/// A pruned layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// In the order of the layer's shape; what the mask prunes is exactly 0.
    pub weight: Vec<f32>,
    /// What stays.
    pub mask: BitMask,
    /// The predicted squared error of the layer's outputs, summed over positions.
    pub squared_error: f64,
}

/// Every solver.
pub fn solvers() -> &'static [&'static dyn Solver] {
    &[&SparseGpt::DEFAULT]
}

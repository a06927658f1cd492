//! Weights chosen from second-order information: section 2 of the specification where it updates what it keeps.
//!
//! A solver sees one group of one layer as a matrix and the sum of its inputs' outer products; it returns a mask and
//! the weights that go with it. Pure functions: which layer, which inputs and in what order is the caller's business.

pub mod admm;
#[cfg(test)]
mod case;
pub mod inverse;
pub mod linear;
pub mod obc;
pub mod problem;
pub mod sparsegpt;

use kernels::BitMask;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cell::Inputs;
use crate::inventory::Layer;
use crate::options::{self, BadOptions, Options};
use crate::seen::Seen;
use admm::{AdmmW, Alps};
use obc::Obc;
use problem::{Ask, Problem, Solved, SolverError};
use sparsegpt::SparseGpt;

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

    /// Prunes the groups of one layer, which are as large as each other.
    fn solve(&self, groups: &[Problem<'_>], ask: Ask) -> Result<Vec<Solved>, SolverError>;

    /// Itself, as these options ask for it.
    fn with(&self, options: &Options) -> Result<Box<dyn Solver>, BadOptions>;

    /// Its options that differ from the defaults.
    fn options(&self) -> Options;

    /// All its options.
    fn all_options(&self) -> Options;
}

/// What tells one solver from another; [`Solver`] is what all of them have.
pub trait Algorithm: Serialize + DeserializeOwned + Default + Sync + 'static {
    /// Its name in plans and records.
    const NAME: &'static str;
    /// One line for `ptsbench list`.
    const ABOUT: &'static str;

    /// What layers read.
    fn inputs(&self) -> Inputs;

    /// The first option that is outside its range.
    fn bad_option(&self) -> Option<SolverError>;

    /// Prunes groups; the options are in range.
    fn prune(&self, groups: &[Problem<'_>], ask: Ask) -> Result<Vec<Solved>, SolverError>;
}

impl<A: Algorithm> Solver for A {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn about(&self) -> &'static str {
        A::ABOUT
    }

    fn dense_inputs(&self) -> bool {
        self.inputs() == Inputs::Dense
    }

    fn solve(&self, groups: &[Problem<'_>], ask: Ask) -> Result<Vec<Solved>, SolverError> {
        match self.bad_option() {
            Some(bad) => Err(bad),
            None => self.prune(groups, ask),
        }
    }

    fn with(&self, options: &Options) -> Result<Box<dyn Solver>, BadOptions> {
        let asked = options::settings::<A>(A::NAME, options)?;
        match asked.bad_option() {
            Some(bad) => Err(BadOptions {
                name: A::NAME,
                why: bad.to_string(),
            }),
            None => Ok(Box::new(asked)),
        }
    }

    fn options(&self) -> Options {
        options::differing(self)
    }

    fn all_options(&self) -> Options {
        options::all(self)
    }
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

/// Prunes one layer by a solver: `weight` flat in the order of its shape, `seen` with Gram sums.
pub fn prune(
    solver: &dyn Solver,
    layer: &Layer,
    weight: &[f32],
    seen: &Seen,
    ask: Ask,
) -> Result<Solution, SolverError> {
    let gram = seen.gram.as_ref().ok_or(SolverError::NoInputs)?;
    let [rows, cols] = layer.matrix();
    let groups = layer.groups.max(1);
    let (rows_of, area) = (rows / groups, layer.shape[2..].iter().product());
    let grams: Vec<_> = (0..groups).map(|group| gram.matrix(group)).collect();
    let problems: Vec<Problem> = grams
        .iter()
        .enumerate()
        .map(|(group, matrix)| Problem {
            weight: &weight[group * rows_of * cols..][..rows_of * cols],
            rows: rows_of,
            cols,
            area,
            gram: matrix,
            positions: gram.positions(),
        })
        .collect();
    let mut solution = Solution {
        weight: Vec::with_capacity(weight.len()),
        mask: BitMask::full(rows, cols),
        squared_error: 0.0,
    };
    let mut words = Vec::new();
    for solved in solver.solve(&problems, ask)? {
        solution.weight.extend(solved.weight);
        words.extend_from_slice(solved.mask.words());
        solution.squared_error += solved.squared_error;
    }
    solution.mask = BitMask::from_words(rows, cols, words)?;
    Ok(solution)
}

/// Every solver.
pub fn solvers() -> &'static [&'static dyn Solver] {
    &[
        &SparseGpt::DEFAULT,
        &AdmmW::DEFAULT,
        &Alps::DEFAULT,
        &Obc::DEFAULT,
    ]
}

#[cfg(test)]
mod tests {
    use super::case::Case;
    use super::*;

    /// Sizes at which products and factorizations are cut into pieces.
    #[test]
    fn threads_change_no_bit() {
        let case = Case::new(1, 70, 300, 1);
        for solver in solvers() {
            let with = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let solve = || solver.solve(&[case.problem()], Ask::Count(16_000)).unwrap();
                pool.build().unwrap().install(solve)
            };
            let one = with(1);
            for threads in [2, 3, 8] {
                assert_eq!(with(threads), one, "{}, {threads} threads", solver.name());
            }
        }
    }

    #[test]
    fn options_out_of_range_are_refused_before_anything_runs() {
        for solver in solvers() {
            let asked = Options::from([("damping".to_owned(), (-1).into())]);
            let Err(error) = solver.with(&asked) else {
                panic!("{}: a damping of -1", solver.name());
            };
            let text = error.to_string();
            assert!(
                text.contains(solver.name()) && text.contains("`damping` is -1"),
                "{text}"
            );
        }
    }
}

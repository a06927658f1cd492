//! SparseGPT (section 2.5): one order of columns for all rows, pruned in blocks, the rest making up for each.
//!
//! With `H = X X^T + ridge I` and `H^-1 = U^T U`, column `i` of a row costs `w_i^2 / U_ii^2` to remove when the columns
//! before it are settled; what follows is then moved to the least squares solution by `w[i..] -= (w_i / U_ii) U[i, i..]`.
//! The factors that the section puts before `X X^T` change neither, because the ridge is relative.
//!
//! Work is cut into pieces of rows that do not depend on the threads, and so are the bits of the result.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use kernels::{BitMask, KernelError, Ties, select_smallest};
use rayon::prelude::*;

use serde::{Deserialize, Serialize};

use super::Algorithm;
use super::inverse::InverseFactor;
use super::problem::{
    Ask, LEAST, Problem, Solved, SolverError, bad_damping, check, each, keep_largest, none_of,
    ridge, spent,
};
use crate::cell::Inputs;

/// The solver with its options.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparseGpt {
    /// The ridge over the mean of `X X^T`'s diagonal.
    pub damping: f64,
    /// Columns to a block; rounded down to whole groups for N:M.
    pub block: usize,
    /// Where masks are decided.
    pub mask: MaskScope,
    /// What layers read: the dense network's activations, or those of the network as pruned so far.
    pub inputs: Inputs,
}

impl SparseGpt {
    /// As released.
    pub const DEFAULT: Self = Self {
        damping: 0.01,
        block: 128,
        mask: MaskScope::Blocks,
        inputs: Inputs::Sparse,
    };
}

impl Default for SparseGpt {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Algorithm for SparseGpt {
    const NAME: &'static str = "sparsegpt";
    const ABOUT: &'static str = "second-order: column by column, what stays makes up for what goes";

    fn inputs(&self) -> Inputs {
        self.inputs
    }

    fn bad_option(&self) -> Option<SolverError> {
        bad_damping(self.damping).or(none_of("block", self.block))
    }

    fn prune(&self, groups: &[Problem<'_>], ask: Ask) -> Result<Vec<Solved>, SolverError> {
        each(groups, ask, |group, ask| solve(group, ask, self))
    }
}

/// Rows to a parallel piece.
const BAND: usize = 32;

/// What a weight is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskScope {
    /// The weights of its block (for N:M: its group) when the block is reached, so every block gets the same rate.
    #[default]
    Blocks,
    /// The whole matrix, once, before any weight has moved: `w^2 / [H^-1]_ii`.
    Global,
}

/// Prunes one group of a layer and moves what stays.
///
/// Zeros in `weight` and weights of dead inputs (a zero on the Gram's diagonal; they become 0) go first, section 0.1. Ties
/// keep the lowest flat index, for N:M the lowest channel.
pub fn solve(problem: &Problem, ask: Ask, options: &SparseGpt) -> Result<Solved, SolverError> {
    let Swept {
        weight,
        keep,
        squared_error,
    } = sweep(problem, ask, options)?;
    let weight: Vec<f32> = weight.iter().map(|&w| w as f32).collect();
    if !squared_error.is_finite() || weight.iter().any(|w| !w.is_finite()) {
        return Err(SolverError::Overflow {
            damping: options.damping,
        });
    }
    Ok(Solved {
        weight,
        mask: BitMask::from_keep(problem.rows, problem.cols, &keep)?,
        squared_error,
    })
}

/// A [`Solved`] before rounding.
struct Swept {
    weight: Vec<f64>,
    keep: Vec<bool>,
    squared_error: f64,
}

fn sweep(problem: &Problem, ask: Ask, options: &SparseGpt) -> Result<Swept, SolverError> {
    if let Some(bad) = options.bad_option() {
        return Err(bad);
    }
    check(problem, ask)?;
    let &Problem {
        rows, cols, area, ..
    } = problem;
    if let Ask::NofM { m, .. } = ask
        && !(cols / area).is_multiple_of(m)
    {
        return Ok(Swept {
            weight: problem.weight.iter().map(|&w| f64::from(w)).collect(),
            keep: vec![true; rows * cols],
            squared_error: 0.0,
        });
    }

    // Column `i` of the sweep is column `order[i]` of the weight. N:M: (ky, kx, channel).
    let order: Vec<usize> = match ask {
        Ask::Count(_) => (0..cols).collect(),
        Ask::NofM { .. } => {
            let channels = cols / area;
            (0..cols)
                .map(|i| i % channels * area + i / channels)
                .collect()
        }
    };
    let diagonal = |column: usize| problem.gram[column * cols + column];
    let dead: Vec<bool> = order
        .iter()
        .map(|&column| diagonal(column) == 0.0)
        .collect();
    let ridge = ridge(problem, options.damping);
    let factor = InverseFactor::new(cols, |i, j| match (i == j, dead[i] || dead[j]) {
        (true, true) => 1.0,
        (false, true) => 0.0,
        (same, false) => {
            let (a, b) = (order[i].min(order[j]), order[i].max(order[j]));
            problem.gram[a * cols + b] + if same { ridge } else { 0.0 }
        }
    })
    .map_err(|error| SolverError::NotPositiveDefinite {
        column: order[error.row],
        cols,
        damping: options.damping,
        positions: problem.positions,
    })?;

    let mut dense = vec![0.0f64; rows * cols];
    for (to, from) in dense
        .chunks_mut(cols.max(1))
        .zip(problem.weight.chunks(cols.max(1)))
    {
        for (i, w) in to.iter_mut().enumerate() {
            *w = if dead[i] {
                0.0
            } else {
                f64::from(from[order[i]])
            };
        }
    }
    let mut state = Sweep {
        cols,
        spent: spent(&dense, ask),
        weight: dense.clone(),
        keep: vec![true; rows * cols],
        factor: &factor,
    };
    let loss = state.run(ask, options).map_err(|error| match error {
        // The weights and sums that came in are finite.
        KernelError::NonFiniteScore { .. } => SolverError::Overflow {
            damping: options.damping,
        },
        error => error.into(),
    })?;

    // The sweep's loss counts the ridge; the inputs do not.
    let moved: f64 = state
        .weight
        .iter()
        .zip(&dense)
        .map(|(new, old)| (new - old) * (new - old))
        .sum();
    let mut weight = vec![0.0; rows * cols];
    let mut keep = vec![true; rows * cols];
    for row in 0..rows {
        for (i, &column) in order.iter().enumerate() {
            weight[row * cols + column] = state.weight[row * cols + i];
            keep[row * cols + column] = state.keep[row * cols + i];
        }
    }
    Ok(Swept {
        weight,
        keep,
        squared_error: (loss - ridge * moved).max(0.0),
    })
}

/// Zeros of each block, at its share of all weights: what rounding leaves over goes on to the next block, so that the sum
/// is exactly `asked`. Blocks with more spent weights than that give all of them, at the others' relief.
///
/// `blocks`: weights, and spent weights, of each; together no more than `asked` are spent.
fn quotas(asked: usize, blocks: &[(usize, usize)]) -> Vec<usize> {
    let total: usize = blocks.iter().map(|block| block.0).sum();
    let mut spent_later: usize = blocks.iter().map(|block| block.1).sum();
    let (mut seen, mut given) = (0, 0);
    blocks
        .iter()
        .map(|&(len, spent)| {
            seen += len;
            spent_later -= spent;
            let share = (asked as u128 * seen as u128 / total.max(1) as u128) as usize;
            let quota = share
                .saturating_sub(given)
                .clamp(spent, asked - given - spent_later);
            given += quota;
            quota
        })
        .collect()
}

/// The state of a sweep, in the sweep's order of columns.
struct Sweep<'a> {
    cols: usize,
    weight: Vec<f64>,
    /// Goes before all others.
    spent: Vec<bool>,
    keep: Vec<bool>,
    factor: &'a InverseFactor,
}

impl Sweep<'_> {
    /// Prunes block after block; returns the loss under the damped `H`.
    fn run(&mut self, ask: Ask, options: &SparseGpt) -> Result<f64, KernelError> {
        let rows = self.keep.len().checked_div(self.cols).unwrap_or(0);
        if rows == 0 {
            return Ok(0.0);
        }
        let group = match (ask, options.mask) {
            (Ask::NofM { n, m }, MaskScope::Blocks) => Some((n, m)),
            _ => None,
        };
        if options.mask == MaskScope::Global {
            self.mask_at_once(ask)?;
        }
        let width = match ask {
            Ask::NofM { m, .. } => (options.block / m).max(1) * m,
            Ask::Count(_) => options.block,
        };
        let blocks: Vec<(usize, usize)> = (0..self.cols)
            .step_by(width)
            .map(|start| (start, self.cols.min(start + width)))
            .collect();
        let quotas = match (ask, options.mask) {
            (Ask::Count(asked), MaskScope::Blocks) => {
                let sizes: Vec<(usize, usize)> = blocks
                    .iter()
                    .map(|&(start, end)| {
                        let spent = self
                            .spent
                            .chunks(self.cols)
                            .flat_map(|row| &row[start..end]);
                        (rows * (end - start), spent.filter(|&&spent| spent).count())
                    })
                    .collect();
                Some(quotas(asked, &sizes))
            }
            _ => None,
        };
        let mut losses = vec![0.0; rows];
        for (index, &(start, end)) in blocks.iter().enumerate() {
            if let Some(quotas) = &quotas {
                self.mask_block(start, end, quotas[index])?;
            }
            self.prune_block(start, end, group, &mut losses);
        }
        Ok(losses.iter().sum())
    }

    /// The mask of the whole matrix from `w^2 / [H^-1]_ii`.
    fn mask_at_once(&mut self, ask: Ask) -> Result<(), KernelError> {
        let cols = self.cols;
        let inverse = self.factor.inverse_diagonal();
        let mut scores = self.scores(0, cols, &inverse);
        match ask {
            Ask::Count(asked) => {
                let shape = [scores.len() / cols, cols];
                let mask = select_smallest(
                    scores.as_slice(),
                    shape,
                    asked as u64,
                    Ties::KeepLowestIndex,
                )?;
                self.keep = mask.to_keep();
            }
            // Groups lie side by side in the sweep's order.
            Ask::NofM { n, m } => {
                let groups = scores.chunks_mut(m).zip(self.keep.chunks_mut(m));
                groups.for_each(|(scores, keep)| keep_largest(scores, n, keep));
            }
        }
        Ok(())
    }

    /// The mask of one block from `w^2 / U_ii^2` of the weights as they are now.
    fn mask_block(&mut self, start: usize, end: usize, zeros: usize) -> Result<(), KernelError> {
        let pivots: Vec<f64> = (start..end)
            .map(|i| self.factor.row(i)[0] * self.factor.row(i)[0])
            .collect();
        let scores = self.scores(start, end, &pivots);
        let shape = [scores.len() / (end - start), end - start];
        let mask = select_smallest(
            scores.as_slice(),
            shape,
            zeros as u64,
            Ties::KeepLowestIndex,
        )?;
        let rows = self.keep.chunks_mut(self.cols).enumerate();
        for (row, keep) in rows {
            for (column, keep) in keep[start..end].iter_mut().enumerate() {
                *keep = mask.get(row, column);
            }
        }
        Ok(())
    }

    fn scores(&self, start: usize, end: usize, divisors: &[f64]) -> Vec<f64> {
        let rows = self
            .weight
            .chunks(self.cols)
            .zip(self.spent.chunks(self.cols));
        rows.flat_map(|(weight, spent)| {
            let cells = weight[start..end].iter().zip(&spent[start..end]);
            cells
                .zip(divisors)
                .map(|((w, &spent), divisor)| score(*w, spent, *divisor))
        })
        .collect()
    }

    /// Settles the columns of a block, then lets those behind it make up for all of them by one product.
    fn prune_block(
        &mut self,
        start: usize,
        end: usize,
        group: Option<(usize, usize)>,
        losses: &mut [f64],
    ) {
        let (cols, factor, width) = (self.cols, self.factor, end - start);
        let upper = MatRef::from_row_major_slice(factor.upper(), cols, cols);
        let behind = upper.submatrix(start, end, width, cols - end);
        let bands = self
            .weight
            .par_chunks_mut(BAND * cols)
            .zip(self.keep.par_chunks_mut(BAND * cols))
            .zip(self.spent.par_chunks(BAND * cols))
            .zip(losses.par_chunks_mut(BAND));
        bands.for_each(|(((weight, keep), spent), losses)| {
            let rows = losses.len();
            let mut errors = vec![0.0; rows * width];
            for row in 0..rows {
                let cells = row * cols..(row + 1) * cols;
                losses[row] += prune_row(
                    factor,
                    start..end,
                    group,
                    (
                        &mut weight[cells.clone()],
                        &mut keep[cells.clone()],
                        &spent[cells],
                    ),
                    &mut errors[row * width..][..width],
                );
            }
            let rest = MatMut::from_row_major_slice_mut(weight, rows, cols);
            matmul(
                rest.submatrix_mut(0, end, rows, cols - end),
                Accum::Add,
                MatRef::from_row_major_slice(&errors, rows, width),
                behind,
                -1.0,
                Par::Seq,
            );
        });
    }
}

/// One row's columns of a block, one after the other; `errors` gets `w_i / U_ii` of those pruned. Returns their squares' sum,
/// which is what the row's loss grows by.
fn prune_row(
    factor: &InverseFactor,
    columns: std::ops::Range<usize>,
    group: Option<(usize, usize)>,
    (weight, keep, spent): (&mut [f64], &mut [bool], &[bool]),
    errors: &mut [f64],
) -> f64 {
    let mut loss = 0.0;
    for i in columns.clone() {
        if let Some((n, m)) = group
            && i.is_multiple_of(m)
        {
            let mut scores = [0.0; 32];
            for (k, score_of) in scores[..m].iter_mut().enumerate() {
                let pivot = factor.row(i + k)[0];
                *score_of = score(weight[i + k], spent[i + k], pivot * pivot);
            }
            keep_largest(&scores[..m], n, &mut keep[i..i + m]);
        }
        if keep[i] {
            continue;
        }
        let row = factor.row(i);
        let error = weight[i] / row[0];
        for (w, u) in weight[i + 1..columns.end].iter_mut().zip(&row[1..]) {
            *w -= error * u;
        }
        weight[i] = 0.0;
        errors[i - columns.start] = error;
        loss += error * error;
    }
    loss
}

fn score(weight: f64, spent: bool, divisor: f64) -> f64 {
    if spent {
        LEAST
    } else {
        weight * weight / divisor
    }
}

#[cfg(test)]
mod tests;

//! ExactOBS (section 2.4; Frantar & Alistarh 2022, arXiv 2208.11580): weight after weight, the one whose removal costs least
//! when all others make up for it.
//!
//! With `H = X X^T`, removing weight `p` of a row costs `w_p^2 / (2 [H^-1]_pp)`, and moves the others by
//! `-w_p / [H^-1]_pp H^-1[:, p]`; `H^-1` then loses row and column `p`. Rows go through all their weights first. A layer's
//! zeros are the cheapest steps of all rows together, and each row then stops at its own number.
//!
//! The update of `H^-1` is put off: a block of steps keeps its vectors, reads single rows through them, and is subtracted
//! by one product. Where a row stops, its weights are the least squares solution on what stays, so it is solved for
//! rather than walked to again; only the order of the steps is kept.

use std::collections::HashMap;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use kernels::{BitMask, Ties, select_smallest};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Algorithm;
use super::inverse::InverseFactor;
use super::linear::{solve, times};
use super::problem::{Ask, Problem, Solved, SolverError, bad_damping, check, ridge, untouched};
use crate::cell::Inputs;

/// The solver with its options.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Obc {
    /// The ridge over the mean of `X X^T`'s diagonal; raised to 1e-4, 1e-3, then 1e-2 while `H` has no inverse.
    pub damping: f64,
    /// What layers read: the dense network's activations, or those of the network as pruned so far.
    pub inputs: Inputs,
}

impl Obc {
    /// As released.
    pub const DEFAULT: Self = Self {
        damping: 0.0,
        inputs: Inputs::Dense,
    };
}

impl Default for Obc {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Algorithm for Obc {
    const NAME: &'static str = "obc";
    const ABOUT: &'static str =
        "second-order: one weight after the other, always the cheapest, the others make up for it";

    fn inputs(&self) -> Inputs {
        self.inputs
    }

    fn bad_option(&self) -> Option<SolverError> {
        bad_damping(self.damping)
    }

    fn prune(&self, groups: &[Problem<'_>], ask: Ask) -> Result<Vec<Solved>, SolverError> {
        let weights: usize = groups.iter().map(|group| group.weight.len()).sum();
        if let Ask::Count(asked) = ask
            && asked > weights
        {
            return Err(SolverError::TooMany {
                asked,
                available: weights,
            });
        }
        let one = match ask {
            Ask::Count(_) => Ask::Count(0),
            pattern => pattern,
        };
        let dense: Option<Vec<Solved>> = groups.iter().map(|g| untouched(g, one)).collect();
        if let Some(dense) = dense {
            return Ok(dense);
        }
        let mut traces = Vec::new();
        let mut hessians = Vec::new();
        for group in groups {
            check(group, one)?;
            let (hessian, inverse) = Hessian::new(group, self.damping)?;
            let rows = group.weight.par_chunks(group.cols.max(1)).with_max_len(1);
            let limit = match ask {
                Ask::Count(_) => None,
                Ask::NofM { n, m } => Some(Limit {
                    most: m - n,
                    of: m,
                    area: group.area,
                }),
            };
            let all: Vec<Trace> = rows
                .map(|row| walk(inverse.as_ref(), hessian.live(row), limit))
                .collect();
            traces.push(all);
            hessians.push((hessian, inverse));
        }
        let steps = match ask {
            Ask::Count(asked) => cheapest(&traces, asked)?,
            Ask::NofM { .. } => {
                let group = |rows: &Vec<Trace>| rows.iter().map(|row| row.order.len()).collect();
                traces.iter().map(group).collect()
            }
        };
        let settled = groups.iter().zip(hessians).zip(traces).zip(steps);
        settled
            .map(|(((group, (hessian, inverse)), traces), steps)| {
                hessian.settle(group, inverse.as_ref(), &traces, &steps)
            })
            .collect()
    }
}

/// `H` of a group.
struct Hessian<'a> {
    cols: usize,
    gram: &'a [f64],
    dead: Vec<bool>,
    ridge: f64,
    damping: f64,
}

impl<'a> Hessian<'a> {
    /// With its inverse, which takes as much damping as it needs.
    fn new(problem: &Problem<'a>, damping: f64) -> Result<(Self, Mat<f64>), SolverError> {
        let cols = problem.cols;
        let dead = (0..cols).map(|j| problem.gram[j * cols + j] == 0.0);
        let mut hessian = Self {
            cols,
            gram: problem.gram,
            dead: dead.collect(),
            ridge: 0.0,
            damping,
        };
        let more = [1e-4, 1e-3, 1e-2]
            .into_iter()
            .filter(|&more| more > damping);
        let mut error = None;
        for damping in std::iter::once(damping).chain(more) {
            hessian.damping = damping;
            hessian.ridge = ridge(problem, damping);
            match InverseFactor::new(cols, |i, j| hessian.entry(i, j)) {
                Ok(factor) => {
                    let inverse = factor.inverse();
                    return Ok((hessian, inverse));
                }
                Err(found) => error = Some(found.row),
            }
        }
        Err(SolverError::NotPositiveDefinite {
            column: error.unwrap_or(0),
            cols,
            damping: hessian.damping,
            positions: problem.positions,
        })
    }

    fn entry(&self, i: usize, j: usize) -> f64 {
        let (i, j) = (i.min(j), i.max(j));
        match (i == j, self.dead[i] || self.dead[j]) {
            (true, true) => 1.0,
            (false, true) => 0.0,
            (same, false) => self.gram[i * self.cols + j] + if same { self.ridge } else { 0.0 },
        }
    }

    /// A row of the weight, 0 where the input is dead.
    fn live(&self, row: &[f32]) -> Vec<f64> {
        let weights = row.iter().zip(&self.dead);
        weights
            .map(|(&w, &dead)| if dead { 0.0 } else { f64::from(w) })
            .collect()
    }

    /// The rows after so many of their steps each.
    fn settle(
        &self,
        problem: &Problem<'_>,
        inverse: MatRef<'_, f64>,
        traces: &[Trace],
        steps: &[usize],
    ) -> Result<Solved, SolverError> {
        let cols = self.cols;
        let mut keep = vec![true; problem.weight.len()];
        let rows = problem
            .weight
            .par_chunks(cols.max(1))
            .zip(traces)
            .zip(steps);
        let solved: Option<Vec<Vec<f64>>> = rows
            .map(|((row, trace), &steps)| {
                self.fitted(inverse, &self.live(row), &trace.order[..steps])
            })
            .collect();
        let overflow = SolverError::Overflow {
            damping: self.damping,
        };
        let solved = solved.ok_or_else(|| overflow.clone())?.concat();
        for (row, (trace, &steps)) in traces.iter().zip(steps).enumerate() {
            for &column in &trace.order[..steps] {
                keep[row * cols + column] = false;
            }
        }
        let dense = problem
            .weight
            .chunks(cols.max(1))
            .flat_map(|row| self.live(row));
        let lost: Vec<f64> = dense.zip(&solved).map(|(a, b)| a - b).collect();
        let gram = Mat::from_fn(cols, cols, |i, j| self.entry(i, j));
        let spread = times(&lost, gram.as_ref());
        // The ridge is none of the inputs' doing.
        let squared_error: f64 = lost
            .iter()
            .zip(&spread)
            .map(|(lost, spread)| lost * (spread - self.ridge * lost))
            .sum();
        let weight: Vec<f32> = solved.iter().map(|&w| w as f32).collect();
        if !squared_error.is_finite() || weight.iter().any(|w| !w.is_finite()) {
            return Err(overflow);
        }
        Ok(Solved {
            weight,
            mask: BitMask::from_keep(problem.rows, cols, &keep)?,
            squared_error: squared_error.max(0.0),
        })
    }

    /// Least squares on what stays of a row: through `H` of what stays or through `H^-1` of what goes, whichever is smaller.
    fn fitted(&self, inverse: MatRef<'_, f64>, dense: &[f64], gone: &[usize]) -> Option<Vec<f64>> {
        let mut weight = dense.to_vec();
        let mut stays = vec![true; self.cols];
        for &column in gone {
            (stays[column], weight[column]) = (false, 0.0);
        }
        let kept: Vec<usize> = (0..self.cols).filter(|&column| stays[column]).collect();
        if gone.is_empty() || kept.is_empty() {
            return Some(weight);
        }
        if kept.len() <= gone.len() {
            // H_kk d = H_kg w_g: what moves.
            let moves = |&i: &usize| gone.iter().map(|&j| self.entry(i, j) * dense[j]).sum();
            let mut moved: Vec<f64> = kept.iter().map(moves).collect();
            let len = kept.len();
            let matrix = Mat::from_fn(len, len, |i, j| self.entry(kept[i], kept[j]));
            solve(matrix, &mut moved)?;
            for (&column, moved) in kept.iter().zip(&moved) {
                weight[column] += moved;
            }
        } else {
            let mut share: Vec<f64> = gone.iter().map(|&j| dense[j]).collect();
            let len = gone.len();
            let matrix = Mat::from_fn(len, len, |i, j| inverse[(gone[i], gone[j])]);
            solve(matrix, &mut share)?;
            for &column in &kept {
                let pull = gone.iter().zip(&share);
                weight[column] -= pull
                    .map(|(&j, share)| inverse[(j, column)] * share)
                    .sum::<f64>();
            }
        }
        Some(weight)
    }
}

/// The steps of a row.
#[derive(Debug, Clone, Default, PartialEq)]
struct Trace {
    /// The columns, in the order in which they go.
    order: Vec<usize>,
    /// What each step adds to the loss.
    costs: Vec<f64>,
}

/// At most so many weights go of each group of input channels at one kernel position.
#[derive(Debug, Clone, Copy)]
struct Limit {
    most: usize,
    of: usize,
    area: usize,
}

impl Limit {
    /// The group of a column.
    fn group(self, column: usize) -> (usize, usize) {
        (column / self.area / self.of, column % self.area)
    }
}

/// Steps whose change of the inverse is put off and then made at once.
const BLOCK: usize = 64;

/// All steps of a row.
fn walk(inverse: MatRef<'_, f64>, mut weight: Vec<f64>, limit: Option<Limit>) -> Trace {
    let mut trace = Trace::default();
    // The columns that are left, their part of the inverse, row-major, and its diagonal.
    let mut columns: Vec<usize> = (0..weight.len()).collect();
    let mut left: Vec<f64> = Vec::with_capacity(weight.len() * weight.len());
    for i in 0..weight.len() {
        left.extend((0..weight.len()).map(|j| inverse[(i, j)]));
    }
    let mut pivots: Vec<f64> = (0..weight.len()).map(|i| inverse[(i, i)]).collect();
    let mut taken: HashMap<(usize, usize), usize> = HashMap::new();
    while !columns.is_empty() {
        let len = columns.len();
        // Vectors whose outer products the inverse has yet to lose.
        let mut due: Vec<f64> = Vec::with_capacity(BLOCK.min(len) * len);
        let mut gone = vec![false; len];
        let mut full = false;
        for _ in 0..BLOCK.min(len) {
            let open = |at: usize| {
                !gone[at]
                    && limit.is_none_or(|limit| {
                        taken.get(&limit.group(columns[at])).copied().unwrap_or(0) < limit.most
                    })
            };
            let cost = |at: usize| weight[at] * weight[at] / pivots[at];
            let cheapest = (0..len)
                .filter(|&at| open(at))
                .min_by(|&a, &b| cost(a).total_cmp(&cost(b)));
            let Some(p) = cheapest else {
                full = true;
                break;
            };
            let mut row = left[p * len..][..len].to_vec();
            for vector in due.chunks(len) {
                let share = vector[p];
                for (value, other) in row.iter_mut().zip(vector) {
                    *value -= share * other;
                }
            }
            trace.order.push(columns[p]);
            trace.costs.push(0.5 * cost(p));
            let (pull, root) = (weight[p] / pivots[p], pivots[p].sqrt());
            for at in 0..len {
                weight[at] -= pull * row[at];
                row[at] /= root;
                pivots[at] -= row[at] * row[at];
            }
            weight[p] = 0.0;
            gone[p] = true;
            if let Some(limit) = limit {
                *taken.entry(limit.group(columns[p])).or_default() += 1;
            }
            due.extend(row);
        }
        if full {
            break;
        }
        let rest: Vec<usize> = (0..len).filter(|&at| !gone[at]).collect();
        // Row by row to the front: nothing is overwritten before it was read.
        for (i, &from) in rest.iter().enumerate() {
            for (j, &column) in rest.iter().enumerate() {
                left[i * rest.len() + j] = left[from * len + column];
            }
        }
        left.truncate(rest.len() * rest.len());
        let vectors = due.len() / len;
        let lost: Vec<f64> = due
            .chunks(len)
            .flat_map(|vector| rest.iter().map(|&at| vector[at]))
            .collect();
        let lost = MatRef::from_row_major_slice(&lost, vectors, rest.len());
        matmul(
            MatMut::from_row_major_slice_mut(&mut left, rest.len(), rest.len()),
            Accum::Add,
            lost.transpose(),
            lost,
            -1.0,
            Par::Seq,
        );
        columns = rest.iter().map(|&at| columns[at]).collect();
        weight = rest.iter().map(|&at| weight[at]).collect();
        pivots = rest.iter().map(|&at| pivots[at]).collect();
    }
    trace
}

/// How many steps each row takes when the cheapest steps of all rows are taken. Costs may fall along a row, so they say
/// how many of its steps are among them, not which.
fn cheapest(traces: &[Vec<Trace>], asked: usize) -> Result<Vec<Vec<usize>>, SolverError> {
    let costs: Vec<f64> = traces
        .iter()
        .flatten()
        .flat_map(|row| row.costs.iter().copied())
        .collect();
    let mask = select_smallest(
        costs.as_slice(),
        [1, costs.len()],
        asked as u64,
        Ties::KeepLowestIndex,
    )?;
    let mut keep = mask.to_keep().into_iter();
    let mut steps = |row: &Trace| {
        keep.by_ref()
            .take(row.costs.len())
            .filter(|keep| !keep)
            .count()
    };
    Ok(traces
        .iter()
        .map(|rows| rows.iter().map(&mut steps).collect())
        .collect())
}

#[cfg(test)]
mod tests;

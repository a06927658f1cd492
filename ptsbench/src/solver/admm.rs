//! The alternating directions of section 2.7: what stays is fitted, what goes is chosen, in turn. ADMM-W (Boža 2024,
//! arXiv 2401.02938) with a fixed penalty and a rate that rises; ALPS (Meng et al. 2024, arXiv 2406.07831) with a penalty
//! that rises until the choice rests.
//!
//! Both work in units in which every input has length 1: with `D = diag(H)^1/2`, the weights are `B = W D` and their loss
//! is `(B - B0) G (B - B0)^T` with `G = D^-1 H D^-1`. Rows are outputs, so products stand on the other side than in the papers.

use faer::Mat;
use kernels::BitMask;
use serde::{Deserialize, Serialize};

use super::Algorithm;
use super::inverse::InverseFactor;
use super::linear::{eigen, times};
use super::problem::{
    Ask, LEAST, Problem, Solved, SolverError, bad_damping, check, choose, each, none_of, ridge,
    spent, untouched,
};
use crate::cell::Inputs;

/// A layer in units of its inputs' lengths.
struct Scaled {
    rows: usize,
    cols: usize,
    area: usize,
    /// `D`; 1 for a dead input.
    length: Vec<f64>,
    /// `G`, before anything is added to its diagonal: symmetric.
    gram: Mat<f64>,
    /// `B0`; 0 for a dead input.
    dense: Vec<f64>,
    /// Goes before all others.
    spent: Vec<bool>,
}

impl Scaled {
    /// With `H = X X^T + ridge I`.
    fn new(problem: &Problem<'_>, ask: Ask, ridge: f64) -> Self {
        let &Problem {
            weight,
            rows,
            cols,
            area,
            gram,
            ..
        } = problem;
        let length: Vec<f64> = (0..cols)
            .map(|j| match gram[j * cols + j] {
                0.0 => 1.0,
                sum => (sum + ridge).sqrt(),
            })
            .collect();
        let dead = |j: usize| gram[j * cols + j] == 0.0;
        let entry = |i: usize, j: usize| {
            let (i, j) = (i.min(j), i.max(j));
            match (i == j, dead(i) || dead(j)) {
                (true, true) => 1.0,
                (false, true) => 0.0,
                (same, false) => {
                    let sum = gram[i * cols + j] + if same { ridge } else { 0.0 };
                    sum / (length[i] * length[j])
                }
            }
        };
        let dense: Vec<f64> = (0..rows * cols)
            .map(|at| match at % cols {
                column if dead(column) => 0.0,
                column => f64::from(weight[at]) * length[column],
            })
            .collect();
        Self {
            rows,
            cols,
            area,
            gram: Mat::from_fn(cols, cols, entry),
            spent: spent(&dense, ask),
            length,
            dense,
        }
    }

    /// Which weights stay when the smallest go.
    fn choose(&self, weights: &[f64], ask: Ask) -> Result<Vec<bool>, SolverError> {
        let scores: Vec<f64> = weights
            .iter()
            .zip(&self.spent)
            .map(|(w, &spent)| if spent { LEAST } else { w * w })
            .collect();
        choose(&scores, [self.rows, self.cols, self.area], ask)
    }

    /// The result in the layer's own units, and the loss without the ridge that `G` has.
    fn solved(&self, found: &[f64], keep: &[bool], ridge: f64) -> Result<Solved, SolverError> {
        let lost: Vec<f64> = self.dense.iter().zip(found).map(|(a, b)| a - b).collect();
        let mut squared_error = dot(&times(&lost, self.gram.as_ref()), &lost);
        for (at, lost) in lost.iter().enumerate() {
            squared_error -= ridge * (lost / self.length[at % self.cols]).powi(2);
        }
        let own = |(at, &b): (usize, &f64)| (b / self.length[at % self.cols]) as f32;
        Ok(Solved {
            weight: found.iter().enumerate().map(own).collect(),
            mask: BitMask::from_keep(self.rows, self.cols, keep)?,
            squared_error: squared_error.max(0.0),
        })
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// What a mask leaves.
fn masked(weights: &[f64], keep: &[bool]) -> Vec<f64> {
    let kept = weights.iter().zip(keep);
    kept.map(|(&w, &keep)| if keep { w } else { 0.0 }).collect()
}

fn finite(solved: Solved, damping: f64) -> Result<Solved, SolverError> {
    match solved.squared_error.is_finite() && solved.weight.iter().all(|w| w.is_finite()) {
        true => Ok(solved),
        false => Err(SolverError::Overflow { damping }),
    }
}

/// ADMM-W with its options.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdmmW {
    /// What is added to the diagonal of `G`, which is 1.
    pub damping: f64,
    /// Iterations.
    pub iterations: usize,
    /// The first of them, in which the mask is chosen again each time.
    pub choosing: usize,
    /// What layers read: the dense network's activations, or those of the network as pruned so far.
    pub inputs: Inputs,
}

impl AdmmW {
    /// As released, with the rising rate that the paper describes.
    pub const DEFAULT: Self = Self {
        damping: 0.1,
        iterations: 20,
        choosing: 15,
        inputs: Inputs::Sparse,
    };
    /// The penalty on the distance between what is fitted and what is chosen.
    const RHO: f64 = 1.0;

    /// The zeros of an iteration: `P (1 - (1 - (t + 1) / T)^3)`, and all of them from the last choice on.
    fn asked(&self, ask: Ask, iteration: usize) -> Ask {
        let left = 1.0 - (iteration + 1) as f64 / self.choosing as f64;
        match ask {
            Ask::Count(zeros) if left > 0.0 => {
                Ask::Count((zeros as f64 * (1.0 - left.powi(3))) as usize)
            }
            ask => ask,
        }
    }

    fn solve_one(&self, problem: &Problem<'_>, ask: Ask) -> Result<Solved, SolverError> {
        check(problem, ask)?;
        if let Some(dense) = untouched(problem, ask) {
            return Ok(dense);
        }
        let scaled = Scaled::new(problem, ask, 0.0);
        let (cols, damping) = (scaled.cols, self.damping);
        let diagonal = |extra: f64| {
            let gram = &scaled.gram;
            move |i: usize, j: usize| gram[(i, j)] + if i == j { extra } else { 0.0 }
        };
        // A = (G + (damping + rho) I)^-1.
        let factor = InverseFactor::new(cols, diagonal(damping + Self::RHO));
        let factor = factor.map_err(|error| SolverError::NotPositiveDefinite {
            column: error.row,
            cols,
            damping,
            positions: problem.positions,
        })?;
        let inverse = factor.inverse();
        drop(factor);
        // Y = B0 G.
        let fitted = Mat::from_fn(cols, cols, diagonal(damping));
        let target = times(&scaled.dense, fitted.as_ref());
        drop(fitted);

        let mut weight = scaled.dense.clone();
        let mut dual = vec![0.0; weight.len()];
        let mut keep = vec![true; weight.len()];
        let mut chosen = weight.clone();
        for iteration in 0..self.iterations {
            let sum: Vec<f64> = weight.iter().zip(&dual).map(|(b, u)| b + u).collect();
            if iteration < self.choosing {
                keep = scaled.choose(&sum, self.asked(ask, iteration))?;
            }
            chosen = masked(&sum, &keep);
            for at in 0..dual.len() {
                dual[at] += weight[at] - chosen[at];
            }
            let right: Vec<f64> = (0..dual.len())
                .map(|at| target[at] + Self::RHO * (chosen[at] - dual[at]))
                .collect();
            weight = times(&right, inverse.as_ref());
        }
        finite(scaled.solved(&chosen, &keep, 0.0)?, damping)
    }
}

impl Default for AdmmW {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Algorithm for AdmmW {
    const NAME: &'static str = "admm_w";
    const ABOUT: &'static str =
        "alternating directions: masks at a rising rate and weights that make up for them";

    fn inputs(&self) -> Inputs {
        self.inputs
    }

    fn bad_option(&self) -> Option<SolverError> {
        let bad = bad_damping(self.damping).or(none_of("choosing", self.choosing));
        bad.or(
            (self.iterations < self.choosing).then_some(SolverError::BadOption {
                option: "iterations",
                found: self.iterations as f64,
                expected: "at least the value of `choosing`",
            }),
        )
    }

    fn prune(&self, groups: &[Problem<'_>], ask: Ask) -> Result<Vec<Solved>, SolverError> {
        each(groups, ask, |group, ask| self.solve_one(group, ask))
    }
}

/// ALPS with its options.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Alps {
    /// The ridge over the mean of `X X^T`'s diagonal.
    pub damping: f64,
    /// Iterations at most.
    pub iterations: usize,
    /// Steps of conjugate gradients on the chosen weights at most.
    pub steps: usize,
    /// What layers read: the dense network's activations, or those of the network as pruned so far.
    pub inputs: Inputs,
}

impl Alps {
    /// As released.
    pub const DEFAULT: Self = Self {
        damping: 0.01,
        iterations: 300,
        steps: 10,
        inputs: Inputs::Sparse,
    };
    /// The first penalty.
    const RHO: f64 = 0.1;
    /// Below this, a choice that never moved is taken as it is.
    const SMALLEST_RHO: f64 = 1e-6;
    /// Iterations between two looks at how the choice moved.
    const LOOK: usize = 3;
    /// What ends the conjugate gradients: the residual over the first one.
    const TOLERANCE: f64 = 1e-4;

    fn solve_one(&self, problem: &Problem<'_>, ask: Ask) -> Result<Solved, SolverError> {
        check(problem, ask)?;
        if let Some(dense) = untouched(problem, ask) {
            return Ok(dense);
        }
        let ridge = ridge(problem, self.damping);
        let scaled = Scaled::new(problem, ask, ridge);
        let (keep, chosen) = self.choose(&scaled, ask)?;
        let found = self.descend(&scaled, &keep, chosen);
        finite(scaled.solved(&found, &keep, ridge)?, self.damping)
    }

    /// Which weights stay and what they are, by alternating directions.
    fn choose(&self, scaled: &Scaled, ask: Ask) -> Result<(Vec<bool>, Vec<f64>), SolverError> {
        let (vectors, values) = eigen(scaled.gram.as_ref()).ok_or(SolverError::Overflow {
            damping: self.damping,
        })?;
        let (vectors, back) = (vectors.as_ref(), vectors.transpose());
        // B0 G, and everything that is multiplied by (G + rho I)^-1, in the eigenvectors' coordinates.
        let target = times(&scaled.dense, scaled.gram.as_ref());
        let kept = |keep: &[bool]| keep.iter().filter(|&&keep| keep).count();
        let first = scaled.choose(&scaled.dense, ask)?;
        let size = kept(&first).max(1) as f64;
        let mut rho = Self::RHO;
        let mut iteration = 0;
        loop {
            let mut keep = first.clone();
            let mut seen = first.clone();
            let mut chosen = masked(&scaled.dense, &keep);
            let mut dual = vec![0.0; chosen.len()];
            let mut moved = false;
            while iteration < self.iterations {
                iteration += 1;
                let right: Vec<f64> = (0..dual.len())
                    .map(|at| target[at] - dual[at] + rho * chosen[at])
                    .collect();
                let mut turned = times(&right, vectors);
                for row in turned.chunks_mut(scaled.cols) {
                    for (value, eigenvalue) in row.iter_mut().zip(&values) {
                        *value /= eigenvalue.max(0.0) + rho;
                    }
                }
                let weight = times(&turned, back);
                let sum: Vec<f64> = weight.iter().zip(&dual).map(|(b, v)| b + v / rho).collect();
                keep = scaled.choose(&sum, ask)?;
                chosen = masked(&sum, &keep);
                for at in 0..dual.len() {
                    dual[at] += rho * (weight[at] - chosen[at]);
                }
                if !iteration.is_multiple_of(Self::LOOK) {
                    continue;
                }
                let changes = keep.iter().zip(&seen).filter(|(a, b)| a != b).count();
                seen.clone_from(&keep);
                match changes as f64 / size {
                    0.0 if moved => return Ok((keep, chosen)),
                    0.0 => break,
                    share => {
                        moved = true;
                        rho *= match share {
                            share if share > 0.1 => 1.3,
                            share if share > 0.005 => 1.2,
                            _ => 1.1,
                        };
                    }
                }
            }
            // A choice that has not moved may have been held back by the penalty.
            rho /= 5.0;
            if moved || iteration >= self.iterations || rho < Self::SMALLEST_RHO {
                return Ok((keep, chosen));
            }
        }
    }

    /// Conjugate gradients on the weights that stay. Rows are problems of their own, each with its own steps; the diagonal
    /// is 1, so that the preconditioner of the paper is the identity.
    fn descend(&self, scaled: &Scaled, keep: &[bool], mut found: Vec<f64>) -> Vec<f64> {
        let cols = scaled.cols;
        let lost: Vec<f64> = scaled
            .dense
            .iter()
            .zip(&found)
            .map(|(a, b)| a - b)
            .collect();
        let mut residual = masked(&times(&lost, scaled.gram.as_ref()), keep);
        let mut direction = residual.clone();
        let first = dot(&residual, &residual);
        for _ in 0..self.steps {
            let step = times(&direction, scaled.gram.as_ref());
            for row in (0..found.len()).step_by(cols) {
                let row = row..row + cols;
                let before = dot(&residual[row.clone()], &residual[row.clone()]);
                let bend = dot(&direction[row.clone()], &step[row.clone()]);
                if bend <= 0.0 || before == 0.0 {
                    continue;
                }
                let length = before / bend;
                for at in row.clone() {
                    found[at] += length * direction[at];
                    if keep[at] {
                        residual[at] -= length * step[at];
                    }
                }
                let after = dot(&residual[row.clone()], &residual[row.clone()]);
                for at in row {
                    direction[at] = residual[at] + after / before * direction[at];
                }
            }
            if dot(&residual, &residual) <= Self::TOLERANCE.powi(2) * first {
                break;
            }
        }
        found
    }
}

impl Default for Alps {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Algorithm for Alps {
    const NAME: &'static str = "alps";
    const ABOUT: &'static str =
        "alternating directions until the choice rests, then least squares on what stays";

    fn inputs(&self) -> Inputs {
        self.inputs
    }

    fn bad_option(&self) -> Option<SolverError> {
        bad_damping(self.damping).or(none_of("iterations", self.iterations))
    }

    fn prune(&self, groups: &[Problem<'_>], ask: Ask) -> Result<Vec<Solved>, SolverError> {
        each(groups, ask, |group, ask| self.solve_one(group, ask))
    }
}

#[cfg(test)]
mod tests;

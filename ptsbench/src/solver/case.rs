//! Random layers that solvers are tested on.

use kernels::{BitMask, Ties, select_smallest};

use super::problem::Problem;
use crate::seed::{Seed, Stream};

/// A random layer with correlated inputs.
pub struct Case {
    pub rows: usize,
    pub cols: usize,
    pub area: usize,
    pub weight: Vec<f32>,
    pub gram: Vec<f64>,
}

pub fn centred(stream: &mut Stream) -> f64 {
    f64::from(stream.unit()) * 2.0 - 1.0
}

impl Case {
    /// Each input is a mixture of a few hidden ones and its own noise.
    pub fn new(seed: u64, rows: usize, cols: usize, area: usize) -> Self {
        let mut stream = Seed(seed).stream("sparsegpt");
        let (hidden, samples) = (cols / 3 + 1, 3 * cols);
        let mixing: Vec<f64> = (0..cols * hidden).map(|_| centred(&mut stream)).collect();
        let mut gram = vec![0.0; cols * cols];
        for _ in 0..samples {
            let sources: Vec<f64> = (0..hidden).map(|_| centred(&mut stream)).collect();
            let x: Vec<f64> = (0..cols)
                .map(|j| {
                    let row = &mixing[j * hidden..][..hidden];
                    let mixed: f64 = row.iter().zip(&sources).map(|(a, b)| a * b).sum();
                    mixed + 0.3 * centred(&mut stream)
                })
                .collect();
            for i in 0..cols {
                for j in 0..cols {
                    gram[i * cols + j] += x[i] * x[j];
                }
            }
        }
        let weight = (0..rows * cols)
            .map(|_| centred(&mut stream) as f32)
            .collect();
        Self {
            rows,
            cols,
            area,
            weight,
            gram,
        }
    }

    pub fn identity(mut self) -> Self {
        self.gram.fill(0.0);
        for i in 0..self.cols {
            self.gram[i * self.cols + i] = 1.0;
        }
        self
    }

    pub fn kill(&mut self, column: usize) {
        for i in 0..self.cols {
            self.gram[i * self.cols + column] = 0.0;
            self.gram[column * self.cols + i] = 0.0;
        }
    }

    pub fn problem(&self) -> Problem<'_> {
        Problem {
            weight: &self.weight,
            rows: self.rows,
            cols: self.cols,
            area: self.area,
            gram: &self.gram,
            positions: 3 * self.cols as u64,
        }
    }

    /// `|(W - W') X|^2` under the Gram.
    pub fn error(&self, solved: &[f32]) -> f64 {
        let mut sum = 0.0;
        for row in 0..self.rows {
            let delta: Vec<f64> = (row * self.cols..(row + 1) * self.cols)
                .map(|i| f64::from(self.weight[i]) - f64::from(solved[i]))
                .collect();
            for (i, a) in delta.iter().enumerate() {
                for (j, b) in delta.iter().enumerate() {
                    sum += a * b * self.gram[i * self.cols + j];
                }
            }
        }
        sum
    }

    pub fn magnitude(&self, zeros: usize) -> BitMask {
        let scores: Vec<f32> = self.weight.iter().map(|w| w.abs()).collect();
        let shape = [self.rows, self.cols];
        select_smallest(
            scores.as_slice(),
            shape,
            zeros as u64,
            Ties::KeepLowestIndex,
        )
        .unwrap()
    }
}

/// Solves `A x = b` by elimination with pivots.
pub fn eliminate(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let len = b.len();
    for k in 0..len {
        let pivot = (k..len)
            .max_by(|&p, &q| a[p][k].abs().total_cmp(&a[q][k].abs()))
            .unwrap();
        a.swap(k, pivot);
        b.swap(k, pivot);
        for i in k + 1..len {
            let factor = a[i][k] / a[k][k];
            let (above, below) = a.split_at_mut(i);
            for (value, pivot) in below[0].iter_mut().zip(&above[k]).skip(k) {
                *value -= factor * pivot;
            }
            b[i] -= factor * b[k];
        }
    }
    for k in (0..len).rev() {
        let known: f64 = (k + 1..len).map(|j| a[k][j] * b[j]).sum();
        b[k] = (b[k] - known) / a[k][k];
    }
    b
}

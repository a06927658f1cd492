//! The upper Cholesky factor of an inverse, `H^-1 = U^T U`, without the inverse.
//!
//! With the rows and columns of `H` in reverse order, `J H J = L L^T`, so `H = V V^T` with `V = J L J` upper triangular, and
//! `U = V^-1`: one factorization and one triangular inverse instead of two factorizations and a product, and no digits
//! lost to an inverse that is factorized again. `L` and `U` take `8 len^2` bytes each while they exist side by side.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltError, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

/// Rows of `U` to a parallel piece. Pieces do not depend on the threads, and faer works sequentially within each, so
/// that the bits are the same at every number of threads.
const PANEL: usize = 64;

/// `U`, upper triangular with a positive diagonal.
pub struct InverseFactor {
    len: usize,
    /// `[len, len]`, row-major; zero below the diagonal.
    upper: Vec<f64>,
}

/// The matrix is not positive definite: the pivot of this row is not positive, or drowned in rounding errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotPositiveDefinite {
    /// The row.
    pub row: usize,
}

impl InverseFactor {
    /// Factorizes the symmetric matrix whose entry `(i, j)`, `i <= j`, is `entry(i, j)`.
    pub fn new(
        len: usize,
        entry: impl Fn(usize, usize) -> f64 + Sync,
    ) -> Result<Self, NotPositiveDefinite> {
        let last = len.wrapping_sub(1);
        let mut factor = Mat::<f64>::zeros(len, len);
        for j in 0..len {
            for i in j..len {
                factor[(i, j)] = entry(last - i, last - j);
            }
        }
        let scratch = cholesky_in_place_scratch::<f64>(len, Par::Seq, Default::default());
        cholesky_in_place(
            factor.as_mut(),
            Default::default(),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            Default::default(),
        )
        .map_err(|LltError::NonPositivePivot { index }| NotPositiveDefinite {
            row: last - index,
        })?;
        // The pivots of a singular matrix come out as rounding errors of either sign.
        for i in 0..len {
            let noise = len as f64 * f64::EPSILON * entry(last - i, last - i);
            let pivot = factor[(i, i)] * factor[(i, i)];
            if !pivot.is_finite() || pivot <= noise {
                return Err(NotPositiveDefinite { row: last - i });
            }
        }

        // `U V = I`: row i of U, reversed, solves `L^T y = e`, of which only the first `len - i` unknowns are not zero.
        let mut upper = vec![0.0; len * len];
        upper
            .par_chunks_mut(PANEL * len.max(1))
            .enumerate()
            .for_each(|(panel, rows)| {
                let start = panel * PANEL;
                let (unknowns, width) = (len - start, rows.len() / len);
                let mut solved = Mat::<f64>::zeros(unknowns, width);
                for k in 0..width {
                    solved[(unknowns - 1 - k, k)] = 1.0;
                }
                solve_upper_triangular_in_place(
                    factor.submatrix(0, 0, unknowns, unknowns).transpose(),
                    solved.as_mut(),
                    Par::Seq,
                );
                for (k, row) in rows.chunks_mut(len).enumerate() {
                    for (j, value) in row.iter_mut().enumerate().skip(start + k) {
                        *value = solved[(last - j, k)];
                    }
                }
            });
        Ok(Self { len, upper })
    }

    /// Row `i` of `U` from its diagonal on: `U[i, i..]`.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.upper[i * self.len..][i..self.len]
    }

    /// `U`, row-major.
    pub fn upper(&self) -> &[f64] {
        &self.upper
    }

    /// `H^-1 = U^T U`.
    pub fn inverse(&self) -> Mat<f64> {
        let upper = MatRef::from_row_major_slice(&self.upper, self.len, self.len);
        let mut inverse = Mat::zeros(self.len, self.len);
        let (replace, par) = (Accum::Replace, Par::Seq);
        matmul(
            inverse.as_mut(),
            replace,
            upper.transpose(),
            upper,
            1.0,
            par,
        );
        inverse
    }

    /// The diagonal of `H^-1`: the square sums of U's columns.
    pub fn inverse_diagonal(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.len];
        for i in 0..self.len {
            for (sum, value) in sums[i..].iter_mut().zip(self.row(i)) {
                *sum += value * value;
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    /// `A A^T + I / 10` with a random square `A`.
    fn definite(len: usize) -> Vec<f64> {
        let mut stream = Seed(7).stream("inverse");
        let a: Vec<f64> = (0..len * len)
            .map(|_| f64::from(stream.unit()) - 0.5)
            .collect();
        let mut h = vec![0.0; len * len];
        for i in 0..len {
            for j in 0..len {
                let dot: f64 = (0..len).map(|k| a[i * len + k] * a[j * len + k]).sum();
                h[i * len + j] = dot + if i == j { 0.1 } else { 0.0 };
            }
        }
        h
    }

    #[test]
    fn the_worked_inverse() {
        // Section 8: H and the diagonal of its inverse.
        let h = [4.0, 2.0, 0.0, 2.0, 3.0, 1.0, 0.0, 1.0, 2.0];
        let factor = InverseFactor::new(3, |i, j| h[i * 3 + j]).unwrap();
        let inverse = [
            [5.0 / 12.0, -1.0 / 3.0, 1.0 / 6.0],
            [-1.0 / 3.0, 2.0 / 3.0, -1.0 / 3.0],
        ];
        let u = factor.upper();
        for (i, row) in inverse.iter().enumerate() {
            for (j, expected) in row.iter().enumerate() {
                let found: f64 = (0..3).map(|k| u[k * 3 + i] * u[k * 3 + j]).sum();
                assert!((found - expected).abs() < 1e-14, "({i}, {j}): {found}");
            }
        }
        assert!((factor.inverse_diagonal()[2] - 2.0 / 3.0).abs() < 1e-14);
    }

    #[test]
    fn u_is_the_upper_factor_of_the_inverse_across_panels() {
        let len = PANEL + 37;
        let h = definite(len);
        let factor = InverseFactor::new(len, |i, j| h[i * len + j]).unwrap();
        let u = factor.upper();
        // H U^T U = I.
        for i in 0..len {
            assert!(factor.row(i)[0] > 0.0);
            assert!(u[i * len..][..i].iter().all(|&below| below == 0.0));
            let hu: Vec<f64> = (0..len)
                .map(|k| (0..len).map(|j| h[i * len + j] * u[k * len + j]).sum())
                .collect();
            for j in 0..len {
                let found: f64 = (0..len).map(|k| hu[k] * u[k * len + j]).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((found - expected).abs() < 1e-9, "({i}, {j}): {found}");
            }
        }
    }

    #[test]
    fn indefinite_and_singular_matrices_are_named() {
        let factor = |h: [f64; 4]| InverseFactor::new(2, |i, j| h[i * 2 + j]).err();
        assert!(factor([1.0, 2.0, 2.0, 1.0]).is_some());
        // Rank 1; in floating point the pivot may come out a little above 0.
        assert!(factor([0.1, 0.3, 0.3, 0.3 * 0.3 / 0.1]).is_some());
        assert_eq!(
            factor([-1.0, 0.0, 0.0, 1.0]),
            Some(NotPositiveDefinite { row: 0 })
        );
        assert_eq!(
            factor([1.0, 0.0, 0.0, f64::NAN]),
            Some(NotPositiveDefinite { row: 1 })
        );
        assert!(InverseFactor::new(0, |_, _| 0.0).is_ok());
    }
}

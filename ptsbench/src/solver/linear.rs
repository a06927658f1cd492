//! Products and factorizations that solvers share. Work is cut into pieces that do not depend on the threads, and so are the
//! bits of every result.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows to a parallel piece of a product.
const BAND: usize = 64;
/// Pieces that a factorization is cut into, on however many threads.
const PIECES: usize = 8;

/// `left right`, both row-major, `left` of `right`'s rows in each of its own.
pub fn times(left: &[f64], right: MatRef<'_, f64>) -> Vec<f64> {
    let (inner, cols) = (right.nrows(), right.ncols());
    let rows = left.len().checked_div(inner).unwrap_or(0);
    let mut product = vec![0.0; rows * cols];
    if product.is_empty() {
        return product;
    }
    let bands = product.par_chunks_mut(BAND * cols);
    let bands = bands.zip(left.par_chunks(BAND * inner));
    bands.for_each(|(product, left)| {
        let rows = left.len() / inner;
        matmul(
            MatMut::from_row_major_slice_mut(product, rows, cols),
            Accum::Replace,
            MatRef::from_row_major_slice(left, rows, inner),
            right,
            1.0,
            Par::Seq,
        );
    });
    product
}

/// The solution of `matrix x = right` for a symmetric positive definite matrix; none if it is not.
pub fn solve(mut matrix: Mat<f64>, right: &mut [f64]) -> Option<()> {
    let len = right.len();
    let scratch = llt::factor::cholesky_in_place_scratch::<f64>(len, Par::Seq, Default::default());
    llt::factor::cholesky_in_place(
        matrix.as_mut(),
        Default::default(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    let column = MatMut::from_column_major_slice_mut(right, len, 1);
    let stack = &mut MemBuffer::new(llt::solve::solve_in_place_scratch::<f64>(len, 1, Par::Seq));
    llt::solve::solve_in_place(matrix.as_ref(), column, Par::Seq, MemStack::new(stack));
    Some(())
}

/// Eigenvectors, in columns, and eigenvalues of a symmetric matrix; none if they are not found.
pub fn eigen(matrix: MatRef<'_, f64>) -> Option<(Mat<f64>, Vec<f64>)> {
    let len = matrix.nrows();
    let par = Par::rayon(PIECES);
    let mut vectors = Mat::<f64>::zeros(len, len);
    let mut values = Diag::<f64>::zeros(len);
    let yes = ComputeEigenvectors::Yes;
    let scratch = self_adjoint_evd_scratch::<f64>(len, yes, par, Default::default());
    self_adjoint_evd(
        matrix,
        values.as_mut(),
        Some(vectors.as_mut()),
        par,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    let values = (0..len).map(|i| values.column_vector()[i]).collect();
    Some((vectors, values))
}

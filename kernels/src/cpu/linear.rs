//! Linear layers: the output, the gradient of the input, the gradient of the weight.
//!
//! The weight lies as Burn keeps it, `[inputs, outputs]`; its mask has a row per output, as masks of all layers have. The mask
//! is applied while blocks of the weight are packed into cache: no masked copy of the weight exists.

use super::gemm::{Kept, Matrix, Product};
use super::{Isa, Mask};
use crate::LinearShape;

/// `y[p, r] = b[r] + sum over kept c of w[c, r] x[p, c]`.
///
/// # Shapes
/// `x [P, C]`, `w [C, R]`, mask `[R, C]`, bias `[R]`; result `[P, R]`.
pub fn forward(
    isa: Isa,
    shape: LinearShape,
    x: &[f32],
    w: &[f32],
    mask: Option<Mask>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let LinearShape {
        positions,
        rows,
        cols,
    } = shape;
    check("x", x.len(), positions * cols);
    check_weight(shape, w.len(), mask);
    check("bias", bias.map_or(rows, <[f32]>::len), rows);
    let product = Product {
        kernels: isa.kernels(),
        size: [positions, cols, rows],
        kept: mask.map_or(Kept::All, Kept::Across),
        bias,
        result_mask: None,
    };
    product.run(1, |_| [Matrix::rows_of(x, cols), Matrix::rows_of(w, rows)])
}

/// `dx[p, c] = sum over r with (r, c) kept of w[c, r] g[p, r]`.
///
/// # Shapes
/// `g [P, R]`, `w [C, R]`, mask `[R, C]`; result `[P, C]`.
pub fn input_grad(
    isa: Isa,
    shape: LinearShape,
    g: &[f32],
    w: &[f32],
    mask: Option<Mask>,
) -> Vec<f32> {
    let LinearShape {
        positions,
        rows,
        cols,
    } = shape;
    check("g", g.len(), positions * rows);
    check_weight(shape, w.len(), mask);
    let product = Product {
        kernels: isa.kernels(),
        size: [positions, rows, cols],
        kept: mask.map_or(Kept::All, Kept::Along),
        bias: None,
        result_mask: None,
    };
    product.run(1, |_| {
        [
            Matrix::rows_of(g, rows),
            Matrix::rows_of(w, rows).transposed(),
        ]
    })
}

/// `dw[c, r] = sum over p of x[p, c] g[p, r]`, exactly 0 where the mask prunes.
///
/// # Shapes
/// `x [P, C]`, `g [P, R]`, mask `[R, C]`; result `[C, R]`.
pub fn weight_grad(
    isa: Isa,
    shape: LinearShape,
    x: &[f32],
    g: &[f32],
    mask: Option<Mask>,
) -> Vec<f32> {
    let LinearShape {
        positions,
        rows,
        cols,
    } = shape;
    check("x", x.len(), positions * cols);
    check("g", g.len(), positions * rows);
    check_weight(shape, rows * cols, mask);
    let product = Product {
        kernels: isa.kernels(),
        size: [cols, positions, rows],
        kept: Kept::All,
        bias: None,
        result_mask: mask,
    };
    product.run(1, |_| {
        [
            Matrix::rows_of(x, cols).transposed(),
            Matrix::rows_of(g, rows),
        ]
    })
}

/// The kernels trust their lengths: a wrong one is a bug of the caller, never a reason to read past an end.
fn check(what: &str, found: usize, expected: usize) {
    assert_eq!(found, expected, "{what}: elements found, elements needed");
}

fn check_weight(shape: LinearShape, weights: usize, mask: Option<Mask>) {
    check("w", weights, shape.rows * shape.cols);
    if let Some(mask) = mask {
        mask.check(shape.rows, shape.cols);
    }
}

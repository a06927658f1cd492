//! The dense heart of the products: 64 x 64 outputs a cube, 4 x 4 a unit, operands in shared memory.

use cubecl::prelude::*;

use super::buffer::UNITS;

/// Side of the tile of outputs.
pub(super) const SIDE: usize = 64;
/// Terms that lie in shared memory at a time, of the operand that is not expanded whole.
pub(super) const DEPTH: usize = 16;
/// Side of a unit's outputs.
pub(super) const REACH: usize = 4;
/// Units along a side.
pub(super) const ACROSS: usize = SIDE / REACH;

/// Adds the products of [`DEPTH`] terms to a unit's outputs: the tile's row of `left` times its row of `right`.
///
/// # Shapes
/// `left`: `[terms, SIDE]`, from term `first` on; `right`: `[DEPTH, SIDE]`; `sums`: `[REACH of right, REACH of left]`.
#[cube]
pub(super) fn multiply(
    sums: &mut Array<f32>,
    left: &Shared<[f32]>,
    first: usize,
    right: &Shared<[f32]>,
) {
    let at_left = UNIT_POS as usize % ACROSS * REACH;
    let at_right = UNIT_POS as usize / ACROSS * REACH;
    for term in 0..DEPTH {
        #[unroll]
        for i in 0..REACH {
            let right = right[term * SIDE + at_right + i];
            #[unroll]
            for j in 0..REACH {
                sums[i * REACH + j] += left[(first + term) * SIDE + at_left + j] * right;
            }
        }
    }
}

/// Brings [`DEPTH`] columns of a tile of `x`, from `first_col` on, into shared memory; zeros from `end_col` on.
///
/// # Shapes
/// `x`: `[positions, cols]`; `out`: `[DEPTH, SIDE]`, position fastest.
#[cube]
pub(super) fn load_positions(
    x: &[f32],
    out: &mut Shared<[f32]>,
    first_position: usize,
    positions: usize,
    first_col: usize,
    end_col: usize,
    cols: usize,
) {
    #[unroll]
    for step in 0..comptime!(DEPTH * SIDE / UNITS) {
        let at = step * UNITS + UNIT_POS as usize;
        let term = at % DEPTH;
        let side = at / DEPTH;
        let position = first_position + side;
        let col = first_col + term;
        let mut value = 0.0f32;
        if position < positions && col < end_col {
            value = x[position * cols + col];
        }
        out[term * SIDE + side] = value;
    }
}

/// Writes a unit's outputs, with the bias where there is one.
///
/// # Shapes
/// `y`: `[positions, rows]`.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn store_rows(
    y: &mut [f32],
    sums: &Array<f32>,
    bias: &[f32],
    first_position: usize,
    positions: usize,
    first_row: usize,
    rows: usize,
    #[comptime] biased: bool,
) {
    let at_row = UNIT_POS as usize % ACROSS * REACH;
    let at_position = UNIT_POS as usize / ACROSS * REACH;
    #[unroll]
    for i in 0..REACH {
        #[unroll]
        for j in 0..REACH {
            let position = first_position + at_position + i;
            let row = first_row + at_row + j;
            if position < positions && row < rows {
                let mut sum = sums[i * REACH + j];
                if biased {
                    sum += bias[row];
                }
                y[position * rows + row] = sum;
            }
        }
    }
}

/// A unit's outputs, zero.
#[cube]
pub(super) fn zeros() -> Array<f32> {
    let mut sums = Array::<f32>::new(REACH * REACH);
    #[unroll]
    for i in 0..REACH * REACH {
        sums[i] = 0.0f32;
    }
    sums
}

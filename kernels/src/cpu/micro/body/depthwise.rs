//! One channel by its own taps.

use super::super::{Finish, Simd};

#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn taps<S: Simd>(
    taps: usize,
    w: *const f32,
    x: *const f32,
    xrow: usize,
    offsets: *const u32,
    rows: usize,
    columns: usize,
    y: *mut f32,
    ldy: usize,
    finish: Finish,
) {
    /// Rows of a block: twelve sums, a weight, and registers to spare.
    const ROWS: usize = 6;
    let mut row = 0;
    while row < rows {
        // Whole blocks, the last two of about one size.
        let left = rows - row;
        let n = if left >= 2 * ROWS || left <= ROWS {
            left.min(ROWS)
        } else {
            left.div_ceil(2)
        };
        let mut done = 0;
        while done < columns {
            // The last vector ends with the row and overlaps the one before, where there is one.
            let last = columns.saturating_sub(S::LANES);
            let at = done.min(last);
            let next = (done + S::LANES).min(last).wrapping_sub(at);
            let two = columns - done > S::LANES;
            // SAFETY: the caller has S's instructions and gives these rows and columns.
            unsafe {
                let (x, y) = (x.add(row * xrow + at), y.add(row * ldy + at));
                macro_rules! block {
                    ($($rows:literal)*) => {
                        match (n, two) {
                            $(
                                ($rows, false) => block::<S, $rows, 1>(
                                    taps, w, x, xrow, offsets, y, ldy, 0, finish,
                                ),
                                ($rows, true) => block::<S, $rows, 2>(
                                    taps, w, x, xrow, offsets, y, ldy, next, finish,
                                ),
                            )*
                            _ => {}
                        }
                    };
                }
                block!(1 2 3 4 5 6);
            }
            done += if two { 2 * S::LANES } else { S::LANES };
        }
        row += n;
    }
}

/// A block of [`taps`]: one vector, or a second one `next` columns further on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn block<S: Simd, const MR: usize, const NV: usize>(
    taps: usize,
    w: *const f32,
    x: *const f32,
    xrow: usize,
    offsets: *const u32,
    y: *mut f32,
    ldy: usize,
    next: usize,
    finish: Finish,
) {
    // SAFETY: the caller has S's instructions; `w` and `offsets` hold `taps` values, `x` NV vectors behind each
    // offset in each of MR rows, `y` MR rows of them, `bias`, where not null, one value.
    unsafe {
        let first = if finish.bias.is_null() {
            S::zero()
        } else {
            S::splat(*finish.bias)
        };
        let mut sum = [[first; NV]; MR];
        for t in 0..taps {
            let at = x.add(*offsets.add(t) as usize);
            let w = S::splat(*w.add(t));
            for (i, row) in sum.iter_mut().enumerate() {
                for (j, v) in row.iter_mut().enumerate() {
                    *v = S::fma(w, S::load(at.add(i * xrow + j * next)), *v);
                }
            }
        }
        for (i, row) in sum.iter().enumerate() {
            for (j, &v) in row.iter().enumerate() {
                S::store(y.add(i * ldy + j * next), v);
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn dots<S: Simd, const NT: usize>(
    rows: usize,
    columns: usize,
    x: *const f32,
    xrow: usize,
    offsets: *const u32,
    g: *const f32,
    ldg: usize,
    sums: *mut f32,
) {
    // SAFETY: the caller has S's instructions; `x` and `g` hold the rows (a vector at least), `offsets` NT values,
    // `sums` NT vectors.
    unsafe {
        let mut sum = [S::zero(); NT];
        for (t, v) in sum.iter_mut().enumerate() {
            *v = S::load(sums.add(t * S::LANES));
        }
        let offsets: [usize; NT] = std::array::from_fn(|t| *offsets.add(t) as usize);
        let whole = columns / S::LANES * S::LANES;
        // The rest of a row: a vector that ends with it if there is room, its other lanes absent on both sides.
        let rest = columns - whole;
        let (last, bits) = if columns >= S::LANES {
            (
                columns - S::LANES,
                ((1u32 << rest) - 1) << (S::LANES - rest),
            )
        } else {
            (0, (1u32 << rest) - 1)
        };
        for row in 0..rows {
            let (x, g) = (x.add(row * xrow), g.add(row * ldg));
            let mut j = 0;
            while j < whole {
                let b = S::load(g.add(j));
                for (v, at) in sum.iter_mut().zip(offsets) {
                    *v = S::fma(b, S::load(x.add(at + j)), *v);
                }
                j += S::LANES;
            }
            if rest > 0 {
                let b = S::keep(S::load(g.add(last)), bits);
                for (v, at) in sum.iter_mut().zip(offsets) {
                    let a = S::keep(S::load(x.add(at + last)), bits);
                    *v = S::fma(b, a, *v);
                }
            }
        }
        for (t, &v) in sum.iter().enumerate() {
            S::store(sums.add(t * S::LANES), v);
        }
    }
}

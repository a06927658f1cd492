//! Sums of products that stay in registers: dense tiles, and kept weights alone.

use super::super::{Entry, Finish, Simd};
use crate::cpu::work::prefetch;

/// Steps of a sum between two tests for its end: what a loop costs besides its products counts where two threads share a
/// core.
const UNROLL: usize = 4;

/// `sum[i][j] += sum over t < k of a(t, i) b(t)[j]`.
///
/// # Safety
/// The caller has S's instructions; below `k` and `MR`, each `a` is a value and each `b` are NV vectors.
#[inline(always)]
unsafe fn add_products<S: Simd, const MR: usize, const NV: usize>(
    sum: &mut [[S::V; NV]; MR],
    k: usize,
    a: impl Fn(usize, usize) -> *const f32,
    b: impl Fn(usize) -> *const f32,
) {
    let whole = k - k % UNROLL;
    // SAFETY: the caller's. Not a closure: it would not have the caller's instructions.
    unsafe {
        for t in (0..whole).step_by(UNROLL) {
            for u in 0..UNROLL {
                add_product::<S, MR, NV>(sum, |i| a(t + u, i), b(t + u));
            }
        }
        for t in whole..k {
            add_product::<S, MR, NV>(sum, |i| a(t, i), b(t));
        }
    }
}

/// `sum[i][j] += a(i) b[j]`.
///
/// # Safety
/// As [`add_products`].
#[inline(always)]
unsafe fn add_product<S: Simd, const MR: usize, const NV: usize>(
    sum: &mut [[S::V; NV]; MR],
    a: impl Fn(usize) -> *const f32,
    b: *const f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut columns = [S::zero(); NV];
        for (j, v) in columns.iter_mut().enumerate() {
            *v = S::load(b.add(j * S::LANES));
        }
        for (i, row) in sum.iter_mut().enumerate() {
            let w = S::splat(*a(i));
            for (v, &b) in row.iter_mut().zip(&columns) {
                *v = S::fma(w, b, *v);
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(
    k: usize,
    a: *const f32,
    lda: usize,
    x: *const f32,
    offsets: *const u32,
    c: *mut f32,
    ldc: usize,
    finish: Finish,
) {
    // SAFETY: the caller has S's instructions, `a` holds k * MR values, `x` a full tile's width behind each offset,
    // `c` MR rows of that width at distance `ldc`, and `bias`, where not null, MR values.
    unsafe {
        let mut sum = [[S::zero(); NV]; MR];
        if finish.resume {
            for (i, row) in sum.iter_mut().enumerate() {
                for (j, v) in row.iter_mut().enumerate() {
                    *v = S::load(c.add(i * ldc + j * S::LANES));
                }
            }
        } else if !finish.bias.is_null() {
            for (i, row) in sum.iter_mut().enumerate() {
                *row = [S::splat(*finish.bias.add(i)); NV];
            }
        }
        let b = |t| x.wrapping_add(*offsets.add(t) as usize);
        if lda == 0 {
            add_products::<S, MR, NV>(&mut sum, k, |t, i| a.wrapping_add(t * MR + i), b);
        } else {
            add_products::<S, MR, NV>(&mut sum, k, |t, i| a.wrapping_add(i * lda + t), b);
        }
        for (i, row) in sum.iter().enumerate() {
            for (j, &v) in row.iter().enumerate() {
                S::store(c.add(i * ldc + j * S::LANES), v);
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn outer<S: Simd, const MR: usize>(
    rows: usize,
    columns: usize,
    x: *const f32,
    xs: usize,
    xrow: usize,
    g: *const f32,
    c: *mut f32,
    ldc: usize,
    resume: bool,
) {
    // SAFETY: the caller has S's instructions; `x` holds `columns` values from each i * xs + row * xrow on, `g`
    // rows * columns tiles' widths, `c` MR of them at distance `ldc`.
    unsafe {
        // Sums of a large weight are far away, and their turn comes when these products are done.
        for i in 0..MR {
            let row = c.wrapping_add(i * ldc);
            prefetch::<true>(row);
            prefetch::<true>(row.wrapping_add(2 * S::LANES - 1));
        }
        let mut sum = [[S::zero(); 2]; MR];
        for row in 0..rows {
            let at = x.add(row * xrow);
            let g = g.add(row * columns * 2 * S::LANES);
            add_products::<S, MR, 2>(
                &mut sum,
                columns,
                |t, i| at.wrapping_add(i * xs + t),
                |t| g.wrapping_add(t * 2 * S::LANES),
            );
        }
        for (i, row) in sum.iter().enumerate() {
            for (j, &v) in row.iter().enumerate() {
                let to = c.add(i * ldc + j * S::LANES);
                S::store(to, if resume { S::add(v, S::load(to)) } else { v });
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn gemm<S: Simd, const MR: usize, const NV: usize>(
    k: usize,
    a: *const f32,
    strides: [isize; 2],
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    finish: Finish,
) {
    // SAFETY: the caller has S's instructions, `a` holds MR x k values at its strides, `b` k rows of NV vectors at
    // distance `ldb`, `c` MR rows of NV vectors, and `bias`, where not null, NV vectors. Pointers step past the last
    // row without being read there.
    unsafe {
        let mut sum = [[S::zero(); NV]; MR];
        for (i, row) in sum.iter_mut().enumerate() {
            for (j, v) in row.iter_mut().enumerate() {
                if finish.resume {
                    *v = S::load(c.add(i * ldc + j * S::LANES));
                } else if !finish.bias.is_null() {
                    *v = S::load(finish.bias.add(j * S::LANES));
                }
            }
        }
        // Constant distances are no instructions.
        let packed = |t: usize| b.wrapping_add(t * NV * S::LANES);
        match strides {
            [1, next] if next == MR as isize && ldb == NV * S::LANES => {
                let a = |t, i| a.wrapping_add(t * MR + i);
                add_products::<S, MR, NV>(&mut sum, k, a, packed);
            }
            [lda, 1] if ldb == NV * S::LANES => {
                let a = |t, i| a.wrapping_offset(i as isize * lda).wrapping_add(t);
                add_products::<S, MR, NV>(&mut sum, k, a, packed);
            }
            [row, next] => {
                let a = |t, i| a.wrapping_offset(i as isize * row + t as isize * next);
                add_products::<S, MR, NV>(&mut sum, k, a, |t| b.wrapping_add(t * ldb));
            }
        }
        for (i, row) in sum.iter().enumerate() {
            for (j, &v) in row.iter().enumerate() {
                S::store(c.add(i * ldc + j * S::LANES), v);
            }
        }
    }
}

#[inline(always)]
pub unsafe fn sparse<S: Simd, const NV: usize>(
    rows: usize,
    ends: *const u32,
    entries: *const Entry,
    x: *const f32,
    c: *mut f32,
    ldc: usize,
    finish: Finish,
) {
    for i in 0..rows {
        // SAFETY: the caller has S's instructions, `ends` holds rows + 1 ends of `entries`, `x` NV vectors behind each
        // offset, `c` rows of them at distance `ldc`, `bias`, where not null, `rows` values.
        unsafe {
            let c = c.add(i * ldc);
            let mut sum = [S::zero(); NV];
            if finish.resume {
                for (j, v) in sum.iter_mut().enumerate() {
                    *v = S::load(c.add(j * S::LANES));
                }
            } else if !finish.bias.is_null() {
                sum = [S::splat(*finish.bias.add(i)); NV];
            }
            let mut entry = entries.add(*ends.add(i) as usize);
            let end = entries.add(*ends.add(i + 1) as usize);
            while entry < end {
                let at = x.add((*entry).offset as usize);
                let w = S::splat((*entry).value);
                for (j, v) in sum.iter_mut().enumerate() {
                    *v = S::fma(w, S::load(at.add(j * S::LANES)), *v);
                }
                entry = entry.add(1);
            }
            for (j, &v) in sum.iter().enumerate() {
                S::store(c.add(j * S::LANES), v);
            }
        }
    }
}

#[inline(always)]
pub unsafe fn sampled<S: Simd, const NV: usize>(
    n: usize,
    entries: *const Entry,
    x: *const f32,
    g: *const f32,
    sums: *mut f32,
) {
    // SAFETY: the caller has S's instructions, `entries` and `sums` hold n, `g` NV vectors, `x` as many behind each
    // offset.
    unsafe {
        let mut row = [S::zero(); NV];
        for (j, v) in row.iter_mut().enumerate() {
            *v = S::load(g.add(j * S::LANES));
        }
        let mut e = 0;
        // Four sums at a time: one alone would wait for itself.
        while e + 4 <= n {
            let at: [*const f32; 4] =
                std::array::from_fn(|i| x.add((*entries.add(e + i)).offset as usize));
            let mut sum = [S::zero(); 4];
            for (j, &b) in row.iter().enumerate() {
                for (v, at) in sum.iter_mut().zip(at) {
                    *v = S::fma(b, S::load(at.add(j * S::LANES)), *v);
                }
            }
            for (i, &v) in sum.iter().enumerate() {
                *sums.add(e + i) += S::sum(v);
            }
            e += 4;
        }
        while e < n {
            let at = x.add((*entries.add(e)).offset as usize);
            let mut sum = S::zero();
            for (j, &b) in row.iter().enumerate() {
                sum = S::fma(b, S::load(at.add(j * S::LANES)), sum);
            }
            *sums.add(e) += S::sum(sum);
            e += 1;
        }
    }
}

//! The loops, generic over the instruction set. Each becomes an entry of every table; none is called otherwise.

use std::mem::MaybeUninit;

use super::{Bits, Entry, Finish, MAX_COLUMNS, Simd};

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
                let v = if finish.relu { S::max(v, S::zero()) } else { v };
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
                let v = if finish.relu { S::max(v, S::zero()) } else { v };
                S::store(c.add(i * ldc + j * S::LANES), v);
            }
        }
    }
}

#[inline(always)]
pub unsafe fn keep_along<S: Simd>(
    from: *const f32,
    ldf: usize,
    rows: usize,
    columns: usize,
    bits: Bits,
    to: *mut f32,
    ldt: usize,
) {
    for i in 0..rows {
        // SAFETY: the caller gives `rows` x `columns` values on both sides, and their bits in the mask.
        unsafe {
            let (from, to) = (from.add(i * ldf), to.add(i * ldt));
            let mut word = u32::MAX;
            if !bits.words.is_null() {
                word = *bits
                    .words
                    .add((bits.row + i) * bits.per_row + bits.col / 32);
                word >>= bits.col % 32;
            }
            let whole = columns / S::LANES * S::LANES;
            for j in (0..whole).step_by(S::LANES) {
                S::store(to.add(j), S::keep(S::load(from.add(j)), word >> j));
            }
            for j in whole..columns {
                *to.add(j) = if word >> j & 1 == 1 {
                    *from.add(j)
                } else {
                    0.0
                };
            }
        }
    }
}

/// Columns ahead of those that are copied.
const AHEAD: usize = 64;

#[inline(always)]
pub unsafe fn keep_across<S: Simd>(
    from: *const f32,
    ldf: usize,
    rows: usize,
    columns: usize,
    bits: Bits,
    to: *mut f32,
    ldt: usize,
) {
    let whole = columns / S::LANES * S::LANES;
    let mut words = [u32::MAX; MAX_COLUMNS];
    let mut begin = 0;
    while begin < rows {
        let first = (bits.col + begin) % 32;
        let n = (32 - first).min(rows - begin);
        // SAFETY: the caller gives `rows` x `columns` values on both sides, and their bits in the mask.
        unsafe {
            if !bits.words.is_null() {
                let word = bits.words.add((bits.col + begin) / 32);
                for (j, w) in words.iter_mut().enumerate().take(columns) {
                    *w = *word.add((bits.row + j) * bits.per_row);
                }
            }
            for i in 0..n {
                let (from, to) = (from.add((begin + i) * ldf), to.add((begin + i) * ldt));
                // Rows are pages apart: no prefetcher follows them from one panel to the next.
                crate::cpu::work::prefetch::<false>(from.wrapping_add(AHEAD));
                for j in (0..whole).step_by(S::LANES) {
                    let v = S::load(from.add(j));
                    S::store(
                        to.add(j),
                        S::keep_across(v, words.as_ptr().add(j), first + i),
                    );
                }
                for (j, word) in words.iter().enumerate().take(columns).skip(whole) {
                    *to.add(j) = if word >> (first + i) & 1 == 1 {
                        *from.add(j)
                    } else {
                        0.0
                    };
                }
            }
        }
        begin += n;
    }
}

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
                let v = if finish.relu { S::max(v, S::zero()) } else { v };
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
                let v = if finish.relu { S::max(v, S::zero()) } else { v };
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

#[inline(always)]
pub unsafe fn copy<S: Simd>(
    from: *const f32,
    lds: usize,
    rows: usize,
    n: usize,
    to: *mut f32,
    ldd: usize,
) {
    for row in 0..rows {
        // SAFETY: the caller has S's instructions, and rows of `n` values are on both sides. Pieces end inside `n`,
        // the last overlaps the one before.
        unsafe {
            let (from, to) = (from.add(row * lds), to.add(row * ldd));
            if n >= S::LANES {
                let mut i = 0;
                while i + S::LANES <= n {
                    S::store(to.add(i), S::load(from.add(i)));
                    i += S::LANES;
                }
                if i < n {
                    let last = n - S::LANES;
                    S::store(to.add(last), S::load(from.add(last)));
                }
            } else {
                crate::cpu::work::copy(from, to, n);
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn every_second<S: Simd>(
    from: *const f32,
    lds: usize,
    room: usize,
    rows: usize,
    n: usize,
    slack: usize,
    to: *mut f32,
    ldd: usize,
) {
    for row in 0..rows {
        let room = room - row * lds;
        let mut i = 0;
        // SAFETY: the caller has S's instructions, `from` holds `room` values (2 n - 1 at least), `to` n and the
        // slack.
        unsafe {
            let (from, to) = (from.add(row * lds), to.add(row * ldd));
            while i < n && 2 * (i + S::LANES) <= room && i + S::LANES <= n + slack {
                S::store(to.add(i), S::every_second(from.add(2 * i)));
                i += S::LANES;
            }
            for j in i..n {
                *to.add(j) = *from.add(2 * j);
            }
            for j in n..i {
                *to.add(j) = 0.0;
            }
        }
    }
}

#[inline(always)]
pub unsafe fn interleave<S: Simd>(a: *const f32, b: *const f32, n: usize, m: usize, to: *mut f32) {
    let whole = n.min(m) / S::LANES * S::LANES;
    // SAFETY: the caller has S's instructions, `a` holds n values, `b` m, `to` n + m.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            let [low, high] = S::interleave(S::load(a.add(i)), S::load(b.add(i)));
            S::store(to.add(2 * i), low);
            S::store(to.add(2 * i + S::LANES), high);
        }
        for i in whole..n {
            *to.add(2 * i) = *a.add(i);
            if i < m {
                *to.add(2 * i + 1) = *b.add(i);
            }
        }
    }
}

#[inline(always)]
pub unsafe fn transpose<S: Simd>(
    from: *const f32,
    lds: usize,
    rows: usize,
    columns: usize,
    to: *mut f32,
    ldd: usize,
) {
    let (whole_rows, whole_columns) = (rows / 8 * 8, columns / 8 * 8);
    let scalar = |rows: std::ops::Range<usize>, columns: std::ops::Range<usize>| {
        for row in rows {
            for column in columns.clone() {
                // SAFETY: the caller gives `rows` x `columns` values on both sides.
                unsafe { *to.add(column * ldd + row) = *from.add(row * lds + column) };
            }
        }
    };
    for row in (0..whole_rows).step_by(8) {
        for column in (0..whole_columns).step_by(8) {
            // SAFETY: as above, and the whole block lies inside.
            unsafe {
                S::transpose8(
                    from.add(row * lds + column),
                    lds,
                    to.add(column * ldd + row),
                    ldd,
                )
            };
        }
    }
    scalar(0..whole_rows, whole_columns..columns);
    scalar(whole_rows..rows, 0..columns);
}

/// Columns that [`pack`] takes at a time: what it holds of them stays in registers and the first cache.
const PACK: usize = 64;

#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn pack<S: Simd>(
    from: *const f32,
    lds: usize,
    rows: usize,
    columns: usize,
    words: *const u32,
    first: usize,
    bits: usize,
    to: *mut f32,
) {
    if columns == 1 {
        // A row of the weight is a column of the panel: nothing to turn.
        for row in 0..rows {
            // SAFETY: the caller gives `rows` values and bits.
            unsafe {
                let bit = first + row * bits;
                let kept = words.is_null() || *words.add(bit / 32) >> (bit % 32) & 1 == 1;
                *to.add(row) = if kept { *from.add(row * lds) } else { 0.0 };
            }
        }
        return;
    }
    // Rows are kept at a multiple of 8, so that blocks of 8 x 8 can be turned whatever their number is.
    const ROWS: usize = super::MAX_ROWS.next_multiple_of(8);
    let blocks = rows.div_ceil(8);
    let used = columns.min(PACK).next_multiple_of(8);
    let mut lines = [[MaybeUninit::<f32>::uninit(); PACK]; ROWS];
    for line in &mut lines[..blocks * 8] {
        line[..used].fill(MaybeUninit::new(0.0));
    }
    let mut turned = [[0.0f32; ROWS]; 8];
    for begin in (0..columns).step_by(PACK) {
        let n = PACK.min(columns - begin);
        for (row, line) in lines.iter_mut().enumerate().take(rows) {
            // SAFETY: the caller gives `rows` x `columns` values and bits, and `n` of them begin here.
            unsafe {
                let from = from.add(row * lds + begin);
                if words.is_null() {
                    line.as_mut_ptr()
                        .cast::<f32>()
                        .copy_from_nonoverlapping(from, n);
                } else {
                    masked_copy::<S>(
                        from,
                        words,
                        first + row * bits + begin,
                        n,
                        line.as_mut_ptr().cast(),
                    );
                }
            }
        }
        for column in (0..n).step_by(8) {
            for block in 0..blocks {
                // SAFETY: `lines` and `turned` hold whole blocks.
                unsafe {
                    S::transpose8(
                        lines.as_ptr().cast::<f32>().add(block * 8 * PACK + column),
                        PACK,
                        turned.as_mut_ptr().cast::<f32>().add(block * 8),
                        turned[0].len(),
                    )
                };
            }
            let at = begin + column;
            // Whole vectors run over into the next column, which is written next; not over the end.
            let whole = columns > at + 8 && (columns - at - 8) * rows >= 8;
            for (i, turned) in turned.iter().enumerate().take(8.min(n - column)) {
                // SAFETY: as argued above, and `columns` x `rows` values are the caller's.
                unsafe {
                    let to = to.add((at + i) * rows);
                    if whole {
                        for block in 0..blocks {
                            to.add(block * 8)
                                .copy_from_nonoverlapping(turned.as_ptr().add(block * 8), 8);
                        }
                    } else {
                        to.copy_from_nonoverlapping(turned.as_ptr(), rows);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn masked_copy<S: Simd>(
    from: *const f32,
    words: *const u32,
    first: usize,
    n: usize,
    to: *mut f32,
) {
    // SAFETY: the caller gives `n` values on both sides and words that hold bits first .. first + n.
    unsafe {
        let whole = n / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            let (word, shift) = ((first + i) / 32, (first + i) % 32);
            let mut bits = u64::from(*words.add(word));
            if shift + S::LANES > 32 {
                bits |= u64::from(*words.add(word + 1)) << 32;
            }
            S::store(
                to.add(i),
                S::keep(S::load(from.add(i)), (bits >> shift) as u32),
            );
        }
        for i in whole..n {
            let bit = *words.add((first + i) / 32) >> ((first + i) % 32) & 1;
            *to.add(i) = if bit == 1 { *from.add(i) } else { 0.0 };
        }
    }
}

//! Copies that mask, turn or spread what they copy.

use std::mem::MaybeUninit;

use super::super::{Bits, MAX_COLUMNS, MAX_ROWS, Simd};

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
    // SAFETY: the caller gives `rows` x `columns` values on both sides.
    unsafe {
        match rows.min(columns) {
            16.. => squares::<S, 16>(from, lds, rows, columns, to, ldd),
            8.. => squares::<S, 8>(from, lds, rows, columns, to, ldd),
            _ => {
                for row in 0..rows {
                    for column in 0..columns {
                        *to.add(column * ldd + row) = *from.add(row * lds + column);
                    }
                }
            }
        }
    }
}

/// A transposed copy, square by square. The last one ends with the row or column, and overlaps the one before.
#[inline(always)]
unsafe fn squares<S: Simd, const SIDE: usize>(
    from: *const f32,
    lds: usize,
    rows: usize,
    columns: usize,
    to: *mut f32,
    ldd: usize,
) {
    for row in (0..rows).step_by(SIDE) {
        let row = row.min(rows - SIDE);
        for column in (0..columns).step_by(SIDE) {
            let column = column.min(columns - SIDE);
            // SAFETY: the caller gives at least one square, and all of them lie inside.
            unsafe {
                let (from, to) = (from.add(row * lds + column), to.add(column * ldd + row));
                if SIDE == 16 {
                    S::transpose16(from, lds, to, ldd);
                } else {
                    S::transpose8(from, lds, to, ldd);
                }
            }
        }
    }
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
    const ROWS: usize = MAX_ROWS.next_multiple_of(8);
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

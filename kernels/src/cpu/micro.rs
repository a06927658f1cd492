//! The innermost loops, once for each instruction set, as tables of functions.
//!
//! A tile is `mr` rows by one or two vectors of columns, held in registers over the whole reduction. Everything outside
//! (which tile, from where, to where) is ordinary code that knows lanes and rows only as numbers.
#![allow(unsafe_code)]

mod body;

use super::simd::{Portable, Simd};

/// The most rows a tile has on any instruction set.
pub const MAX_ROWS: usize = 14;
/// The most columns a tile has on any instruction set.
pub const MAX_COLUMNS: usize = 32;

/// Where a tile begins and what is done to it before it is stored.
#[derive(Clone, Copy)]
pub struct Finish {
    /// Whether the sum goes on from what the destination holds.
    pub resume: bool,
    /// One value per row to begin with, or null; ignored when resuming.
    pub bias: *const f32,
}

/// `c[i][j] (+)= sum over k of a[i][k] x[offsets[k] + j]`, where `a` lies at `i lda + k`, or packed at `k rows + i` where
/// `lda` is 0: `(k, a, lda, x, offsets, c, ldc, finish)`.
pub type Tile =
    unsafe fn(usize, *const f32, usize, *const f32, *const u32, *mut f32, usize, Finish);

/// `c[i ldc + j] (+)= sum over rows, columns t of x[i xs + row xrow + t] g[row columns + t][j]`, with `g` as wide as the
/// tile: `(rows, columns, x, xs, xrow, g, c, ldc, resume)`.
pub type Outer =
    unsafe fn(usize, usize, *const f32, usize, usize, *const f32, *mut f32, usize, bool);

/// A kept weight and where the row of activations that it multiplies begins.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Entry {
    /// The weight.
    pub value: f32,
    /// Offset of its activations.
    pub offset: u32,
}

/// `c[i ldc + j] (+)= sum over e in entries[ends[i]..ends[i + 1]] of e.value x[e.offset + j]`: `(rows, ends, entries, x, c,
/// ldc, finish)`.
pub type Sparse = unsafe fn(usize, *const u32, *const Entry, *const f32, *mut f32, usize, Finish);

/// `sums[e] += sum over j of g[j] x[entries[e].offset + j]`: `(n, entries, x, g, sums)`.
pub type Sampled = unsafe fn(usize, *const Entry, *const f32, *const f32, *mut f32);

/// `y[i ldy + j] = sum over t of w[t] x[i xrow + offsets[t] + j]` for all rows and columns of a band of one channel; where
/// there are fewer columns than a vector has, whole vectors are stored row after row: `(taps, w, x, xrow, offsets, rows,
/// columns, y, ldy, finish)`.
pub type Taps = unsafe fn(
    usize,
    *const f32,
    *const f32,
    usize,
    *const u32,
    usize,
    usize,
    *mut f32,
    usize,
    Finish,
);

/// `sums[t][lane] += sum over rows, columns j of g[row ldg + j] x[row xrow + offsets[t] + j]`, spread over lanes, for `g`
/// readable over a vector at least in each row: `(rows, columns, x, xrow, offsets, g, ldg, sums)`.
pub type Dots = unsafe fn(usize, usize, *const f32, usize, *const u32, *const f32, usize, *mut f32);

/// `to[row ldd + i] = from[row lds + i]` below `n`: `(from, lds, rows, n, to, ldd)`.
pub type Copy = unsafe fn(*const f32, usize, usize, usize, *mut f32, usize);

/// `to[row ldd + i] = from[row lds + 2 i]` below `n`, where `room` values can be read in all, and zeros in any of the
/// `slack` places behind each row: `(from, lds, room, rows, n, slack, to, ldd)`.
pub type EverySecond = unsafe fn(*const f32, usize, usize, usize, usize, usize, *mut f32, usize);

/// `to[2 i] = a[i]` below `n`, `to[2 i + 1] = b[i]` below `m`, with n - 1 <= m <= n: `(a, b, n, m, to)`.
pub type Interleave = unsafe fn(*const f32, *const f32, usize, usize, *mut f32);

/// `to[column ldd + row] = from[row lds + column]`: `(from, lds, rows, columns, to, ldd)`.
pub type Transpose = unsafe fn(*const f32, usize, usize, usize, *mut f32, usize);

/// `to[column rows + row] = from[row lds + column]`, zero where the mask bit `first + row bits + column` is 0, with at most
/// [`MAX_ROWS`] rows: `(from, lds, rows, columns, words or null, first, bits, to)`.
pub type Pack = unsafe fn(*const f32, usize, usize, usize, *const u32, usize, usize, *mut f32);

/// `c[i][j] (+)= sum over k of a[i strides[0] + k strides[1]] b[k ldb + j]`, with a bias per *column* in `finish`:
/// `(k, a, strides, b, ldb, c, ldc, finish)`.
pub type Gemm =
    unsafe fn(usize, *const f32, [isize; 2], *const f32, usize, *mut f32, usize, Finish);

/// Where a block of a matrix lies in its mask.
#[derive(Clone, Copy)]
pub struct Bits {
    /// First word of the mask, or null for a block that is kept whole.
    pub words: *const u32,
    /// Words from a row of the mask to the next.
    pub per_row: usize,
    /// Row of the mask of the block's first element.
    pub row: usize,
    /// Column of the mask of the block's first element.
    pub col: usize,
}

/// `to[i ldt + j] = from[i ldf + j]`, +0 where the mask prunes, for at most a tile's width of columns; both sides may be
/// the same: `(from, ldf, rows, columns, bits, to, ldt)`.
pub type Keep = unsafe fn(*const f32, usize, usize, usize, Bits, *mut f32, usize);

/// The innermost loops of one instruction set.
pub struct Kernels {
    /// Elements of a vector; a tile has one or two of them.
    pub lanes: usize,
    /// The most rows of a tile.
    pub rows: usize,
    /// `tile[rows - 1][vectors - 1]`.
    pub tile: &'static [[Tile; 2]],
    /// `outer[rows - 1]`, two vectors wide.
    pub outer: &'static [Outer],
    /// `gemm[rows - 1][vectors - 1]`.
    pub gemm: &'static [[Gemm; 2]],
    /// A copy whose rows are the mask's rows; the bits of a row must lie in one word.
    pub keep_along: Keep,
    /// A copy whose rows are the mask's columns.
    pub keep_across: Keep,
    /// A depthwise band.
    pub taps: Taps,
    /// `dots[taps - 1]`, of at most nine taps.
    pub dots: &'static [Dots],
    /// `sparse[vectors - 1]`.
    pub sparse: &'static [Sparse],
    /// `sampled[vectors - 1]`.
    pub sampled: &'static [Sampled],
    /// A copy of short rows.
    pub copy: Copy,
    /// A copy of one phase.
    pub every_second: EverySecond,
    /// Two phases into one.
    pub interleave: Interleave,
    /// A transposed copy.
    pub transpose: Transpose,
    /// A weight's panel, masked on the way.
    pub pack: Pack,
}

impl Kernels {
    /// Columns of a full tile.
    pub fn columns(&self) -> usize {
        2 * self.lanes
    }
}

/// The table of one instruction set, with its features enabled in every entry.
macro_rules! kernels {
    ($module:ident, $table:ident, $simd:ty, [$($rows:literal)*], $(#[$feature:meta])*) => {
        mod $module {
            use super::*;

            $(#[$feature])*
            #[allow(clippy::too_many_arguments)]
            unsafe fn tile<const MR: usize, const NV: usize>(
                k: usize,
                a: *const f32,
                lda: usize,
                x: *const f32,
                offsets: *const u32,
                c: *mut f32,
                ldc: usize,
                finish: Finish,
            ) {
                // SAFETY: this function's caller keeps the body's conditions.
                unsafe { body::tile::<$simd, MR, NV>(k, a, lda, x, offsets, c, ldc, finish) }
            }

            $(#[$feature])*
            #[allow(clippy::too_many_arguments)]
            unsafe fn outer<const MR: usize>(
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
                // SAFETY: as above.
                unsafe { body::outer::<$simd, MR>(rows, columns, x, xs, xrow, g, c, ldc, resume) }
            }

            $(#[$feature])*
            #[allow(clippy::too_many_arguments)]
            unsafe fn gemm<const MR: usize, const NV: usize>(
                k: usize,
                a: *const f32,
                strides: [isize; 2],
                b: *const f32,
                ldb: usize,
                c: *mut f32,
                ldc: usize,
                finish: Finish,
            ) {
                // SAFETY: as above.
                unsafe { body::gemm::<$simd, MR, NV>(k, a, strides, b, ldb, c, ldc, finish) }
            }

            $(#[$feature])*
            unsafe fn keep_along(
                from: *const f32,
                ldf: usize,
                rows: usize,
                columns: usize,
                bits: Bits,
                to: *mut f32,
                ldt: usize,
            ) {
                // SAFETY: as above.
                unsafe { body::keep_along::<$simd>(from, ldf, rows, columns, bits, to, ldt) }
            }

            $(#[$feature])*
            unsafe fn keep_across(
                from: *const f32,
                ldf: usize,
                rows: usize,
                columns: usize,
                bits: Bits,
                to: *mut f32,
                ldt: usize,
            ) {
                // SAFETY: as above.
                unsafe { body::keep_across::<$simd>(from, ldf, rows, columns, bits, to, ldt) }
            }

            $(#[$feature])*
            #[allow(clippy::too_many_arguments)]
            unsafe fn taps(
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
                // SAFETY: as above.
                unsafe {
                    body::taps::<$simd>(
                        taps, w, x, xrow, offsets, rows, columns, y, ldy, finish,
                    )
                }
            }

            $(#[$feature])*
            #[allow(clippy::too_many_arguments)]
            unsafe fn dots<const NT: usize>(
                rows: usize,
                columns: usize,
                x: *const f32,
                xrow: usize,
                offsets: *const u32,
                g: *const f32,
                ldg: usize,
                sums: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe {
                    body::dots::<$simd, NT>(rows, columns, x, xrow, offsets, g, ldg, sums)
                }
            }

            $(#[$feature])*
            #[allow(clippy::too_many_arguments)]
            unsafe fn every_second(
                from: *const f32,
                lds: usize,
                room: usize,
                rows: usize,
                n: usize,
                slack: usize,
                to: *mut f32,
                ldd: usize,
            ) {
                // SAFETY: as above.
                unsafe { body::every_second::<$simd>(from, lds, room, rows, n, slack, to, ldd) }
            }

            $(#[$feature])*
            unsafe fn sparse<const NV: usize>(
                rows: usize,
                ends: *const u32,
                entries: *const Entry,
                x: *const f32,
                c: *mut f32,
                ldc: usize,
                finish: Finish,
            ) {
                // SAFETY: as above.
                unsafe { body::sparse::<$simd, NV>(rows, ends, entries, x, c, ldc, finish) }
            }

            $(#[$feature])*
            unsafe fn sampled<const NV: usize>(
                n: usize,
                entries: *const Entry,
                x: *const f32,
                g: *const f32,
                sums: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { body::sampled::<$simd, NV>(n, entries, x, g, sums) }
            }

            $(#[$feature])*
            unsafe fn copy(
                from: *const f32,
                lds: usize,
                rows: usize,
                n: usize,
                to: *mut f32,
                ldd: usize,
            ) {
                // SAFETY: as above.
                unsafe { body::copy::<$simd>(from, lds, rows, n, to, ldd) }
            }

            $(#[$feature])*
            unsafe fn interleave(a: *const f32, b: *const f32, n: usize, m: usize, to: *mut f32) {
                // SAFETY: as above.
                unsafe { body::interleave::<$simd>(a, b, n, m, to) }
            }

            $(#[$feature])*
            unsafe fn transpose(
                from: *const f32,
                lds: usize,
                rows: usize,
                columns: usize,
                to: *mut f32,
                ldd: usize,
            ) {
                // SAFETY: as above.
                unsafe { body::transpose::<$simd>(from, lds, rows, columns, to, ldd) }
            }

            $(#[$feature])*
            #[allow(clippy::too_many_arguments)]
            unsafe fn pack(
                from: *const f32,
                lds: usize,
                rows: usize,
                columns: usize,
                words: *const u32,
                first: usize,
                bits: usize,
                to: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { body::pack::<$simd>(from, lds, rows, columns, words, first, bits, to) }
            }

            pub static TABLE: Kernels = Kernels {
                lanes: <$simd as Simd>::LANES,
                rows: [$($rows),*].len(),
                tile: &[$([tile::<$rows, 1>, tile::<$rows, 2>]),*],
                outer: &[$(outer::<$rows>),*],
                gemm: &[$([gemm::<$rows, 1>, gemm::<$rows, 2>]),*],
                keep_along,
                keep_across,
                taps,
                dots: &[
                    dots::<1>,
                    dots::<2>,
                    dots::<3>,
                    dots::<4>,
                    dots::<5>,
                    dots::<6>,
                    dots::<7>,
                    dots::<8>,
                    dots::<9>,
                ],
                sparse: &[
                    sparse::<1>,
                    sparse::<2>,
                    sparse::<3>,
                    sparse::<4>,
                    sparse::<5>,
                    sparse::<6>,
                    sparse::<7>,
                    sparse::<8>,
                    sparse::<9>,
                    sparse::<10>,
                    sparse::<11>,
                    sparse::<12>,
                ],
                sampled: &[
                    sampled::<1>,
                    sampled::<2>,
                    sampled::<3>,
                    sampled::<4>,
                    sampled::<5>,
                    sampled::<6>,
                    sampled::<7>,
                    sampled::<8>,
                    sampled::<9>,
                    sampled::<10>,
                    sampled::<11>,
                    sampled::<12>,
                ],
                copy,
                every_second,
                interleave,
                transpose,
                pack,
            };
        }
        pub use $module::TABLE as $table;
    };
}

// Rows are what leaves room in the register file for two vectors of columns and a broadcast.
kernels!(portable, PORTABLE, Portable, [1 2 3 4],);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, AVX2, super::super::simd::Avx2, [1 2 3 4 5 6], #[target_feature(enable = "avx2,fma,bmi2")]);
#[cfg(target_arch = "x86_64")]
kernels!(avx512, AVX512, super::super::simd::Avx512, [1 2 3 4 5 6 7 8 9 10 11 12 13 14],
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")]);

#[cfg(test)]
mod tests {
    use crate::cpu::Isa;

    #[test]
    fn rows_become_columns_at_every_size() {
        for isa in Isa::available() {
            for (rows, columns) in [
                (1, 1),
                (3, 40),
                (8, 8),
                (9, 15),
                (16, 16),
                (17, 16),
                (16, 33),
                (40, 23),
            ] {
                // Rows lie further apart than they are long, on both sides.
                let (lds, ldd) = (columns + 3, rows + 5);
                let from: Vec<f32> = (0..rows * lds).map(|at| at as f32).collect();
                let mut to = vec![-1.0; columns * ldd];
                // SAFETY: the set is available, and both sides have room for rows and columns at these distances.
                unsafe {
                    (isa.kernels().transpose)(
                        from.as_ptr(),
                        lds,
                        rows,
                        columns,
                        to.as_mut_ptr(),
                        ldd,
                    );
                }
                for (at, &value) in to.iter().enumerate() {
                    let (column, row) = (at / ldd, at % ldd);
                    let wanted = if row < rows {
                        from[row * lds + column]
                    } else {
                        -1.0
                    };
                    assert_eq!(
                        value, wanted,
                        "{isa:?}, {rows} x {columns}: {row}, {column}"
                    );
                }
            }
        }
    }
}

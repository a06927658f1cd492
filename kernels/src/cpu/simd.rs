//! The few vector operations that the kernels are written in, for each instruction set.
//!
//! Every method compiles to one or a few instructions once it is inlined into a function that has the instruction
//! set enabled; only the tables of [`super::micro`] do that, and only [`super::Isa::detect`] hands those out.
#![allow(unsafe_code)]

/// Vectors of f32 of one instruction set.
///
/// # Safety
/// The processor must have the instruction set, and pointers must be valid for `LANES` elements.
pub trait Simd: Copy + 'static {
    /// A vector.
    type V: Copy;
    /// Elements of a vector.
    const LANES: usize;

    /// All zero.
    unsafe fn zero() -> Self::V;
    /// All `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// From memory, unaligned.
    unsafe fn load(from: *const f32) -> Self::V;
    /// To memory, unaligned.
    unsafe fn store(to: *mut f32, v: Self::V);
    /// `a b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `v` where the bit of its lane is 1, else +0: what is stored in masked places does not matter.
    unsafe fn keep(v: Self::V, bits: u32) -> Self::V;
    /// `v` where bit `bit` of its lane's word is 1, else +0; `words` holds `LANES` of them.
    unsafe fn keep_across(v: Self::V, words: *const u32, bit: usize) -> Self::V;
    /// The sum of all elements.
    unsafe fn sum(v: Self::V) -> f32;
    /// Every second element of two vectors' length, the first included.
    unsafe fn every_second(from: *const f32) -> Self::V;
    /// `a[0], b[0], a[1], b[1], ..`.
    unsafe fn interleave(a: Self::V, b: Self::V) -> [Self::V; 2];
    /// `to[column * ldd + row] = from[row * lds + column]` for a block of 8 x 8.
    unsafe fn transpose8(from: *const f32, lds: usize, to: *mut f32, ldd: usize);

    /// A transposed copy of 16 x 16: rows at distance `lds` become columns at distance `ldd`.
    ///
    /// # Safety
    /// As [`Simd::transpose8`].
    #[inline(always)]
    unsafe fn transpose16(from: *const f32, lds: usize, to: *mut f32, ldd: usize) {
        for (row, column) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            // SAFETY: the caller gives 16 rows and columns on both sides.
            unsafe {
                let (from, to) = (from.add(row * lds + column), to.add(column * ldd + row));
                Self::transpose8(from, lds, to, ldd);
            }
        }
    }
}

/// Eight lanes in plain Rust: the compiler makes of it what the target has.
#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller gives 8 elements.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller gives 8 elements.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not `mul_add`: without the instruction it is a library call per element.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn keep(v: Self::V, bits: u32) -> Self::V {
        std::array::from_fn(|i| if bits >> i & 1 == 1 { v[i] } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn keep_across(v: Self::V, words: *const u32, bit: usize) -> Self::V {
        // SAFETY: the caller gives 8 words.
        let words = unsafe { words.cast::<[u32; 8]>().read_unaligned() };
        std::array::from_fn(|i| if words[i] >> bit & 1 == 1 { v[i] } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    #[inline(always)]
    unsafe fn every_second(from: *const f32) -> Self::V {
        // SAFETY: the caller gives 16 elements.
        std::array::from_fn(|i| unsafe { *from.add(2 * i) })
    }

    #[inline(always)]
    unsafe fn interleave(a: Self::V, b: Self::V) -> [Self::V; 2] {
        let both = |at: usize| {
            std::array::from_fn(|i| {
                if i % 2 == 0 {
                    a[at + i / 2]
                } else {
                    b[at + i / 2]
                }
            })
        };
        [both(0), both(4)]
    }

    #[inline(always)]
    unsafe fn transpose8(from: *const f32, lds: usize, to: *mut f32, ldd: usize) {
        for column in 0..8 {
            for row in 0..8 {
                // SAFETY: the caller gives 8 rows and columns on both sides.
                unsafe { *to.add(column * ldd + row) = *from.add(row * lds + column) };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// 256-bit vectors with fused multiply-add.
    #[derive(Clone, Copy)]
    pub struct Avx2;

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> __m256 {
            // SAFETY: the caller has AVX2.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            // SAFETY: as above.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m256 {
            // SAFETY: as above, and 8 elements are given.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(to: *mut f32, v: __m256) {
            // SAFETY: as above, and 8 elements are given.
            unsafe { _mm256_storeu_ps(to, v) }
        }

        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: the caller has FMA.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            // SAFETY: the caller has AVX2.
            unsafe { _mm256_add_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn keep(v: __m256, bits: u32) -> __m256 {
            // SAFETY: the caller has AVX2.
            unsafe {
                let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let set = _mm256_and_si256(_mm256_set1_epi32(bits as i32), lane);
                _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)))
            }
        }

        #[inline(always)]
        unsafe fn keep_across(v: __m256, words: *const u32, bit: usize) -> __m256 {
            // SAFETY: the caller has AVX2 and gives 8 words.
            unsafe {
                let words = _mm256_loadu_si256(words.cast());
                // The bit becomes the sign, and the sign every bit.
                let first = _mm256_sll_epi32(words, _mm_cvtsi32_si128(31 - bit as i32));
                _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_srai_epi32::<31>(first)))
            }
        }

        #[inline(always)]
        unsafe fn sum(v: __m256) -> f32 {
            // SAFETY: the caller has AVX2.
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }

        #[inline(always)]
        unsafe fn every_second(from: *const f32) -> __m256 {
            // SAFETY: the caller has AVX2 and gives 16 elements.
            unsafe {
                let (a, b) = (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)));
                let mixed = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(a, b));
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(mixed))
            }
        }

        #[inline(always)]
        unsafe fn interleave(a: __m256, b: __m256) -> [__m256; 2] {
            // SAFETY: the caller has AVX2.
            unsafe {
                let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                [
                    _mm256_permute2f128_ps::<0x20>(low, high),
                    _mm256_permute2f128_ps::<0x31>(low, high),
                ]
            }
        }

        #[inline(always)]
        unsafe fn transpose8(from: *const f32, lds: usize, to: *mut f32, ldd: usize) {
            // SAFETY: the caller has AVX2 and gives 8 rows and columns on both sides.
            unsafe { transpose8(from, lds, to, ldd) }
        }
    }

    /// 512-bit vectors.
    #[derive(Clone, Copy)]
    pub struct Avx512;

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: the caller has AVX-512F.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            // SAFETY: as above, and 16 elements are given.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(to: *mut f32, v: __m512) {
            // SAFETY: as above, and 16 elements are given.
            unsafe { _mm512_storeu_ps(to, v) }
        }

        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: the caller has AVX-512F.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: the caller has AVX-512F.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn keep(v: __m512, bits: u32) -> __m512 {
            // SAFETY: the caller has AVX-512F.
            unsafe { _mm512_maskz_mov_ps(bits as __mmask16, v) }
        }

        #[inline(always)]
        unsafe fn keep_across(v: __m512, words: *const u32, bit: usize) -> __m512 {
            // SAFETY: the caller has AVX-512F and gives 16 words.
            unsafe {
                let words = _mm512_loadu_si512(words.cast());
                let kept = _mm512_test_epi32_mask(words, _mm512_set1_epi32(1 << bit));
                _mm512_maskz_mov_ps(kept, v)
            }
        }

        #[inline(always)]
        unsafe fn sum(v: __m512) -> f32 {
            // SAFETY: the caller has AVX-512F.
            unsafe { _mm512_reduce_add_ps(v) }
        }

        #[inline(always)]
        unsafe fn every_second(from: *const f32) -> __m512 {
            // SAFETY: the caller has AVX-512F and gives 32 elements.
            unsafe {
                let even =
                    _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                _mm512_permutex2var_ps(_mm512_loadu_ps(from), even, _mm512_loadu_ps(from.add(16)))
            }
        }

        #[inline(always)]
        unsafe fn interleave(a: __m512, b: __m512) -> [__m512; 2] {
            // SAFETY: the caller has AVX-512F.
            unsafe {
                let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                let high =
                    _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
                [
                    _mm512_permutex2var_ps(a, low, b),
                    _mm512_permutex2var_ps(a, high, b),
                ]
            }
        }

        #[inline(always)]
        unsafe fn transpose8(from: *const f32, lds: usize, to: *mut f32, ldd: usize) {
            // SAFETY: a processor with AVX-512 has AVX2; the caller gives 8 rows and columns on both sides.
            unsafe { transpose8(from, lds, to, ldd) }
        }

        /// Whole cache lines on both sides: rows that are a multiple of a page apart share one set of the first-level
        /// cache, which would lose them between two halves.
        #[inline(always)]
        unsafe fn transpose16(from: *const f32, lds: usize, to: *mut f32, ldd: usize) {
            // SAFETY: the caller has AVX-512F and gives 16 rows and columns on both sides.
            unsafe {
                // Four rows each: in part k, every quarter holds one of its columns 4 q + k. Written without closures, into
                // which the instruction set would not follow.
                let mut parts = [[_mm512_setzero_ps(); 4]; 4];
                for (i, part) in parts.iter_mut().enumerate() {
                    let from = from.add(4 * i * lds);
                    let (a, b) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(lds)));
                    let (c, d) = (
                        _mm512_loadu_ps(from.add(2 * lds)),
                        _mm512_loadu_ps(from.add(3 * lds)),
                    );
                    let upper = (
                        _mm512_castps_pd(_mm512_unpacklo_ps(a, b)),
                        _mm512_castps_pd(_mm512_unpackhi_ps(a, b)),
                    );
                    let lower = (
                        _mm512_castps_pd(_mm512_unpacklo_ps(c, d)),
                        _mm512_castps_pd(_mm512_unpackhi_ps(c, d)),
                    );
                    *part = [
                        _mm512_castpd_ps(_mm512_unpacklo_pd(upper.0, lower.0)),
                        _mm512_castpd_ps(_mm512_unpackhi_pd(upper.0, lower.0)),
                        _mm512_castpd_ps(_mm512_unpacklo_pd(upper.1, lower.1)),
                        _mm512_castpd_ps(_mm512_unpackhi_pd(upper.1, lower.1)),
                    ];
                }
                let [a, b, c, d] = parts;
                for k in 0..4 {
                    let halves = [
                        _mm512_shuffle_f32x4::<0x44>(a[k], b[k]),
                        _mm512_shuffle_f32x4::<0x44>(c[k], d[k]),
                        _mm512_shuffle_f32x4::<0xee>(a[k], b[k]),
                        _mm512_shuffle_f32x4::<0xee>(c[k], d[k]),
                    ];
                    for (quarter, half) in halves.chunks_exact(2).enumerate() {
                        let even = _mm512_shuffle_f32x4::<0x88>(half[0], half[1]);
                        let odd = _mm512_shuffle_f32x4::<0xdd>(half[0], half[1]);
                        _mm512_storeu_ps(to.add((8 * quarter + k) * ldd), even);
                        _mm512_storeu_ps(to.add((8 * quarter + 4 + k) * ldd), odd);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose8(from: *const f32, lds: usize, to: *mut f32, ldd: usize) {
        // SAFETY: see the callers.
        unsafe {
            let row = |i: usize| _mm256_loadu_ps(from.add(i * lds));
            let pairs = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let quads = |a: (__m256, __m256), b: (__m256, __m256)| {
                [
                    _mm256_shuffle_ps::<0x44>(a.0, b.0),
                    _mm256_shuffle_ps::<0xee>(a.0, b.0),
                    _mm256_shuffle_ps::<0x44>(a.1, b.1),
                    _mm256_shuffle_ps::<0xee>(a.1, b.1),
                ]
            };
            let upper = quads(pairs(row(0), row(1)), pairs(row(2), row(3)));
            let lower = quads(pairs(row(4), row(5)), pairs(row(6), row(7)));
            for i in 0..4 {
                let low = _mm256_permute2f128_ps::<0x20>(upper[i], lower[i]);
                let high = _mm256_permute2f128_ps::<0x31>(upper[i], lower[i]);
                _mm256_storeu_ps(to.add(i * ldd), low);
                _mm256_storeu_ps(to.add((i + 4) * ldd), high);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

//! Which scores of a group stay: those with fewer than n of their group before them, that is higher, or as high in a
//! lower channel. Counting them is m comparisons a score, no sort and no branch.
#![allow(unsafe_code)]

/// Lanes compared side by side.
pub(super) const LANES: usize = 16;

/// Sets `stays[j][lane]` to 1 or 0 for scores `block[j][lane]`, j < m: a lane is a group. True if there was a NaN.
///
/// # Shapes
/// `block` and `stays` hold m rows of as many chunks of [`LANES`].
pub(super) fn rank_lanes<T: PartialOrd + Copy>(
    block: &[[T; LANES]],
    stays: &mut [[u8; LANES]],
    n: usize,
    m: usize,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature.
        return unsafe { avx2::rank_lanes(block, stays, n, m) };
    }
    rank_lanes_here(block, stays, n, m)
}

#[inline(always)]
fn rank_lanes_here<T: PartialOrd + Copy>(
    block: &[[T; LANES]],
    stays: &mut [[u8; LANES]],
    n: usize,
    m: usize,
) -> bool {
    let chunks = block.len() / m;
    let mut nan = false;
    for chunk in 0..chunks {
        for j in 0..m {
            let own = block[j * chunks + chunk];
            let mut before = [0u32; LANES];
            for i in 0..j {
                let other = block[i * chunks + chunk];
                for l in 0..LANES {
                    before[l] += u32::from(other[l] >= own[l]);
                }
            }
            for i in j + 1..m {
                let other = block[i * chunks + chunk];
                for l in 0..LANES {
                    before[l] += u32::from(other[l] > own[l]);
                }
            }
            let stays = &mut stays[j * chunks + chunk];
            for l in 0..LANES {
                stays[l] = u8::from(before[l] < n as u32);
                #[allow(clippy::eq_op)] // what a NaN is
                let is_nan = own[l] != own[l];
                nan |= is_nan;
            }
        }
    }
    nan
}

/// As [`rank_lanes`] for groups that lie one after another, writing mask words; None where there is no such code for `m`
/// or for the processor. Some(true) if there was a NaN.
///
/// # Shapes
/// `values`: a row, a multiple of m; `words`: `ceil(values / 32)`.
pub(super) fn rank_row(
    values: &[f32],
    magnitude: bool,
    n: usize,
    m: usize,
    words: &mut [u32],
) -> Option<bool> {
    assert_eq!(values.len() % m, 0);
    assert_eq!(words.len(), values.len().div_ceil(32));
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature.
        unsafe {
            return match m {
                2 => Some(avx2::rank_row::<2>(values, magnitude, n, words)),
                4 => Some(avx2::rank_row::<4>(values, magnitude, n, words)),
                8 => Some(avx2::rank_row::<8>(values, magnitude, n, words)),
                16 => Some(avx2::rank_row::<16>(values, magnitude, n, words)),
                32 => Some(avx2::rank_row::<32>(values, magnitude, n, words)),
                _ => None,
            };
        }
    }
    None
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::LANES;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2")]
    pub(super) fn rank_lanes<T: PartialOrd + Copy>(
        block: &[[T; LANES]],
        stays: &mut [[u8; LANES]],
        n: usize,
        m: usize,
    ) -> bool {
        super::rank_lanes_here(block, stays, n, m)
    }

    /// 32 values are one word and four registers. A group of up to 8 meets itself by rotations inside its register; a
    /// larger one also meets the other registers it fills, each in 8 rotations.
    #[target_feature(enable = "avx2")]
    pub(super) fn rank_row<const M: usize>(
        values: &[f32],
        magnitude: bool,
        n: usize,
        words: &mut [u32],
    ) -> bool {
        let sign = _mm256_set1_ps(if magnitude { -0.0 } else { 0.0 });
        let mut nan = _mm256_setzero_ps();
        let (blocks, tail) = values.as_chunks::<32>();
        let mut padded = [0.0; 32];
        padded[..tail.len()].copy_from_slice(tail);
        for (word, block) in words.iter_mut().zip(blocks.iter().chain([&padded])) {
            let mut v = [_mm256_setzero_ps(); 4];
            for (q, v) in v.iter_mut().enumerate() {
                // SAFETY: lanes 8 q .. 8 q + 8 lie inside the block.
                let lanes = unsafe { _mm256_loadu_ps(block.as_ptr().add(8 * q)) };
                *v = _mm256_andnot_ps(sign, lanes);
                nan = _mm256_or_ps(nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(lanes, lanes));
            }
            *word = keep_32::<M>(&v, n);
        }
        if !tail.is_empty() {
            *words.last_mut().expect("a tail has a word") &= (1 << tail.len()) - 1;
        }
        _mm256_movemask_ps(nan) != 0
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn keep_32<const M: usize>(v: &[__m256; 4], n: usize) -> u32 {
        let rotations = if M < 8 { M } else { 8 };
        let registers = if M < 8 { 1 } else { M / 8 }; // to a group
        let n = _mm256_set1_epi32(n as i32);
        let mut word = 0;
        for a in 0..4 {
            let mut before = _mm256_setzero_si256(); // true is -1
            for r in 1..rotations {
                let (other, lower) = rotate::<M>(v[a], r);
                let ge = _mm256_cmp_ps::<_CMP_GE_OQ>(other, v[a]);
                let gt = _mm256_cmp_ps::<_CMP_GT_OQ>(other, v[a]);
                let ahead = _mm256_castps_si256(_mm256_blendv_ps(gt, ge, lower));
                before = _mm256_sub_epi32(before, ahead);
            }
            let group = a / registers * registers;
            for b in group..group + registers {
                if b == a {
                    continue;
                }
                for r in 0..rotations {
                    let (other, _) = rotate::<M>(v[b], r);
                    let ahead = if b < a {
                        _mm256_cmp_ps::<_CMP_GE_OQ>(other, v[a])
                    } else {
                        _mm256_cmp_ps::<_CMP_GT_OQ>(other, v[a])
                    };
                    before = _mm256_sub_epi32(before, _mm256_castps_si256(ahead));
                }
            }
            let stays = _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, before));
            word |= (_mm256_movemask_ps(stays) as u32) << (8 * a);
        }
        word
    }

    /// The lanes of each group moved `r` down, and all ones where what came is of a lower channel.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn rotate<const M: usize>(v: __m256, r: usize) -> (__m256, __m256) {
        let width = if M < 8 { M } else { 8 };
        let from = |lane: usize| (lane / width * width + (lane % width + r) % width) as i32;
        let lower = |lane: usize| -i32::from(from(lane) < lane as i32);
        let index = _mm256_setr_epi32(
            from(0),
            from(1),
            from(2),
            from(3),
            from(4),
            from(5),
            from(6),
            from(7),
        );
        let lower = _mm256_setr_epi32(
            lower(0),
            lower(1),
            lower(2),
            lower(3),
            lower(4),
            lower(5),
            lower(6),
            lower(7),
        );
        (
            _mm256_permutevar8x32_ps(v, index),
            _mm256_castsi256_ps(lower),
        )
    }
}

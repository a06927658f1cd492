//! The two streaming passes of a selection over stored f32 values: counting around a bracket, and writing mask words.
//!
//! Both are comparisons `value <= border` over blocks of 32 values, one bit each. An order of floats needs no integer
//! keys for that: -0 and +0 compare equal, infinities are ordinary, and `value <= NaN` holds for no value, so that a NaN
//! border stands for "nothing lies at or below". The AVX2 and the portable block give the same bits.
#![allow(unsafe_code)]

/// Values compared at a time: the bits of one mask word.
const BLOCK: usize = u32::BITS as usize;

/// The largest values whose scores lie below or at the ends of a bracket; NaN where there is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Borders {
    pub(super) below_lo: f32,
    pub(super) through_lo: f32,
    pub(super) below_hi: f32,
    pub(super) through_hi: f32,
}

/// What a pass over some values counts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) below_lo: u64,
    pub(super) through_lo: u64,
    pub(super) through_hi: u64,
    pub(super) nan: bool,
}

/// Counts `values` (their magnitudes) around `borders`, and appends those strictly inside the bracket.
pub(super) fn scan(
    values: &[f32],
    magnitude: bool,
    borders: Borders,
    inside: &mut Vec<f32>,
) -> Counts {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
        // SAFETY: the processor has both features.
        return unsafe { avx2::scan(values, magnitude, borders, inside) };
    }
    scan_with::<[f32; BLOCK]>(values, magnitude, borders, inside)
}

/// Writes one bit per value, 1 where the value (its magnitude) lies above `border`; tail bits are 0.
///
/// `words` holds `ceil(values / 32)` words.
pub(super) fn write_above(values: &[f32], magnitude: bool, border: f32, words: &mut [u32]) {
    assert_eq!(words.len(), values.len().div_ceil(BLOCK));
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
        // SAFETY: the processor has both features.
        return unsafe { avx2::write_above(values, magnitude, border, words) };
    }
    write_above_with::<[f32; BLOCK]>(values, magnitude, border, words);
}

/// 32 values, loaded once and compared several times.
trait Block: Copy {
    fn load(values: &[f32; BLOCK], magnitude: bool) -> Self;

    /// Bit `i` = `value[i] <= border`.
    fn at_most(self, border: f32) -> u32;

    fn has_nan(self) -> bool;

    /// Appends the values whose bit is set, in order.
    fn append(self, bits: u32, to: &mut Vec<f32>);
}

impl Block for [f32; BLOCK] {
    #[inline(always)]
    fn load(values: &[f32; BLOCK], magnitude: bool) -> Self {
        if magnitude {
            values.map(f32::abs)
        } else {
            *values
        }
    }

    #[inline(always)]
    fn at_most(self, border: f32) -> u32 {
        (0..BLOCK).fold(0, |bits, i| bits | u32::from(self[i] <= border) << i)
    }

    #[inline(always)]
    fn has_nan(self) -> bool {
        self.iter().fold(false, |any, value| any | value.is_nan())
    }

    #[inline(always)]
    fn append(self, mut bits: u32, to: &mut Vec<f32>) {
        while bits != 0 {
            to.push(self[bits.trailing_zeros() as usize]);
            bits &= bits - 1;
        }
    }
}

#[inline(always)]
fn scan_with<B: Block>(
    values: &[f32],
    magnitude: bool,
    borders: Borders,
    inside: &mut Vec<f32>,
) -> Counts {
    let mut counts = Counts::default();
    let (blocks, tail) = values.as_chunks::<BLOCK>();
    let mut count = |values: &[f32; BLOCK], real: u32| {
        let block = B::load(values, magnitude);
        let through_lo = block.at_most(borders.through_lo) & real;
        counts.below_lo += u64::from((block.at_most(borders.below_lo) & real).count_ones());
        counts.through_lo += u64::from(through_lo.count_ones());
        counts.through_hi += u64::from((block.at_most(borders.through_hi) & real).count_ones());
        counts.nan |= block.has_nan();
        let between = block.at_most(borders.below_hi) & real & !through_lo;
        if between != 0 {
            block.append(between, inside);
        }
    };
    for block in blocks {
        count(block, u32::MAX);
    }
    if !tail.is_empty() {
        let mut padded = [0.0; BLOCK];
        padded[..tail.len()].copy_from_slice(tail);
        count(&padded, (1 << tail.len()) - 1);
    }
    counts
}

#[inline(always)]
fn write_above_with<B: Block>(values: &[f32], magnitude: bool, border: f32, words: &mut [u32]) {
    let (blocks, tail) = values.as_chunks::<BLOCK>();
    for (word, block) in words.iter_mut().zip(blocks) {
        *word = !B::load(block, magnitude).at_most(border);
    }
    if !tail.is_empty() {
        let mut padded = [0.0; BLOCK];
        padded[..tail.len()].copy_from_slice(tail);
        let bits = !B::load(&padded, magnitude).at_most(border);
        words[blocks.len()] = bits & ((1 << tail.len()) - 1);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{BLOCK, Block, Borders, Counts};
    use std::arch::x86_64::*;

    const LANES: usize = 8;

    /// Eight values to a register. Its functions are inlined into the two below, which carry the target feature.
    #[derive(Clone, Copy)]
    struct Avx2([__m256; BLOCK / LANES]);

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn scan(
        values: &[f32],
        magnitude: bool,
        borders: Borders,
        inside: &mut Vec<f32>,
    ) -> Counts {
        // Two copies of the loop, so that neither asks per block.
        if magnitude {
            super::scan_with::<Avx2>(values, true, borders, inside)
        } else {
            super::scan_with::<Avx2>(values, false, borders, inside)
        }
    }

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn write_above(values: &[f32], magnitude: bool, border: f32, words: &mut [u32]) {
        if magnitude {
            super::write_above_with::<Avx2>(values, true, border, words);
        } else {
            super::write_above_with::<Avx2>(values, false, border, words);
        }
    }

    impl Block for Avx2 {
        #[inline(always)]
        fn load(values: &[f32; BLOCK], magnitude: bool) -> Self {
            // SAFETY: lanes 8 q .. 8 q + 8 lie inside the array; callers are the functions above, so AVX2 is there.
            Self(std::array::from_fn(|q| unsafe {
                let lanes = _mm256_loadu_ps(values.as_ptr().add(LANES * q));
                if magnitude {
                    _mm256_andnot_ps(_mm256_set1_ps(-0.0), lanes)
                } else {
                    lanes
                }
            }))
        }

        #[inline(always)]
        fn at_most(self, border: f32) -> u32 {
            // SAFETY: callers are the functions above, so AVX2 is there.
            let bits = self.0.map(|lanes| unsafe {
                let le = _mm256_cmp_ps::<_CMP_LE_OQ>(lanes, _mm256_set1_ps(border));
                _mm256_movemask_ps(le) as u32
            });
            bits[0] | bits[1] << 8 | bits[2] << 16 | bits[3] << 24
        }

        #[inline(always)]
        fn has_nan(self) -> bool {
            let [a, b, c, d] = self.0;
            // SAFETY: callers are the functions above, so AVX2 is there.
            unsafe {
                // Two registers are unordered where either holds a NaN.
                let nan = _mm256_or_ps(
                    _mm256_cmp_ps::<_CMP_UNORD_Q>(a, b),
                    _mm256_cmp_ps::<_CMP_UNORD_Q>(c, d),
                );
                _mm256_movemask_ps(nan) != 0
            }
        }

        #[inline(always)]
        fn append(self, bits: u32, to: &mut Vec<f32>) {
            to.reserve(BLOCK);
            let mut len = to.len();
            for (q, lanes) in self.0.into_iter().enumerate() {
                let byte = (bits >> (LANES * q)) as usize & 0xff;
                let order = &PACK[byte];
                // SAFETY: callers are the functions above, so AVX2 is there. The reserved 32 places hold every store:
                // before register q at most 8 q values were appended, and a store writes 8, of which the set bits count.
                unsafe {
                    let order = _mm256_loadu_si256(order.as_ptr().cast());
                    let packed = _mm256_permutevar8x32_ps(lanes, order);
                    _mm256_storeu_ps(to.as_mut_ptr().add(len), packed);
                }
                len += byte.count_ones() as usize;
            }
            // SAFETY: `len` grew by the values written just now, within the reserved capacity.
            unsafe { to.set_len(len) };
        }
    }

    /// For each byte, the lanes of its set bits in order, then lane 0.
    static PACK: [[u32; LANES]; 256] = {
        let mut table = [[0; LANES]; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut lane, mut place) = (0, 0);
            while lane < LANES {
                if byte >> lane & 1 == 1 {
                    table[byte][place] = lane as u32;
                    place += 1;
                }
                lane += 1;
            }
            byte += 1;
        }
        table
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = f32> {
        prop_oneof![
            (-4i8..4).prop_map(|x| f32::from(x) / 2.0),
            Just(-0.0f32),
            Just(f32::INFINITY),
            Just(f32::NEG_INFINITY),
            Just(f32::from_bits(1)),
            Just(f32::NAN),
            proptest::num::f32::NORMAL,
        ]
    }

    proptest! {
        /// The dispatched pass (AVX2 where there is one) and the portable one agree bit by bit, at any length and offset.
        #[test]
        fn both_routes_agree(
            values in proptest::collection::vec(value(), 0..150),
            skip in 0usize..9,
            borders in proptest::array::uniform4(value()),
            magnitude in any::<bool>(),
        ) {
            let values = &values[skip.min(values.len())..];
            let [below_lo, through_lo, below_hi, through_hi] = borders;
            let borders = Borders { below_lo, through_lo, below_hi, through_hi };
            let (mut fast, mut plain) = (vec![7.0], vec![7.0]);
            prop_assert_eq!(
                scan(values, magnitude, borders, &mut fast),
                scan_with::<[f32; BLOCK]>(values, magnitude, borders, &mut plain)
            );
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&fast), bits(&plain));
            let mut words = [vec![u32::MAX; values.len().div_ceil(BLOCK)], vec![u32::MAX; values.len().div_ceil(BLOCK)]];
            write_above(values, magnitude, below_lo, &mut words[0]);
            write_above_with::<[f32; BLOCK]>(values, magnitude, below_lo, &mut words[1]);
            prop_assert_eq!(&words[0], &words[1]);
            for (i, &v) in values.iter().enumerate() {
                let v = if magnitude { v.abs() } else { v };
                // Not `v > border`: a NaN on either side counts as above.
                let above = !matches!(v.partial_cmp(&below_lo), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal));
                prop_assert_eq!(words[0][i / 32] >> (i % 32) & 1 == 1, above);
            }
        }
    }
}

//! The two streaming passes of a selection: counting around a bracket, and writing mask words.
//!
//! Both are comparisons `value <= border` over blocks of 32 values, one bit each. An order of floats needs no integer
//! keys for that: -0 and +0 compare equal, infinities are ordinary, and `value <= NaN` holds for no value, so that a NaN
//! border stands for "nothing lies at or below". All kinds of block give the same bits.
#![allow(unsafe_code)]

/// Values compared at a time: the bits of one mask word.
const BLOCK: usize = u32::BITS as usize;

/// How many values lie at or below two borders, and whether there was a NaN.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) low: u64,
    pub(super) high: u64,
    pub(super) nan: bool,
}

/// f32 for stored values, f64 for computed scores.
pub(super) trait Float: Copy + PartialOrd {
    const NAN: Self;
    fn abs(self) -> Self;
    fn is_nan(self) -> bool;

    /// Counts `values` (their magnitudes) at or below each border, and appends those above the first and not above the
    /// second to `inside`, if there is one.
    fn scan(
        values: &[Self],
        magnitude: bool,
        borders: [Self; 2],
        inside: Option<&mut Vec<Self>>,
    ) -> Counts;

    /// Writes one bit per value, 1 where the value (its magnitude) lies above `border` or is NaN; tail bits are 0.
    /// `words` holds `ceil(values / 32)` words.
    fn write_above(values: &[Self], magnitude: bool, border: Self, words: &mut [u32]);
}

macro_rules! float {
    ($float:ty, $avx2:ty) => {
        impl Float for $float {
            const NAN: Self = <$float>::NAN;

            #[inline(always)]
            fn abs(self) -> Self {
                <$float>::abs(self)
            }

            #[inline(always)]
            fn is_nan(self) -> bool {
                <$float>::is_nan(self)
            }

            fn scan(
                values: &[Self],
                magnitude: bool,
                borders: [Self; 2],
                inside: Option<&mut Vec<Self>>,
            ) -> Counts {
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
                    // SAFETY: the processor has both features.
                    return unsafe { avx2::scan::<$avx2>(values, magnitude, borders, inside) };
                }
                scan_with::<[Self; BLOCK]>(values, magnitude, borders, inside)
            }

            fn write_above(values: &[Self], magnitude: bool, border: Self, words: &mut [u32]) {
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
                    // SAFETY: the processor has both features.
                    return unsafe { avx2::write_above::<$avx2>(values, magnitude, border, words) };
                }
                write_above_with::<[Self; BLOCK]>(values, magnitude, border, words);
            }
        }
    };
}

float!(f32, avx2::Lanes);
// The portable block, compiled for AVX2.
float!(f64, [f64; BLOCK]);

/// 32 values, loaded once and compared several times.
trait Block: Copy {
    type Value: Float;

    fn load(values: &[Self::Value; BLOCK], magnitude: bool) -> Self;

    /// Bit `i` = `value[i] <= border`.
    fn at_most(self, border: Self::Value) -> u32;

    fn has_nan(self) -> bool;

    /// Appends the values whose bit is set, in order.
    fn append(self, bits: u32, to: &mut Vec<Self::Value>);
}

impl<T: Float> Block for [T; BLOCK] {
    type Value = T;

    #[inline(always)]
    fn load(values: &[T; BLOCK], magnitude: bool) -> Self {
        let mut block = *values;
        if magnitude {
            for value in &mut block {
                *value = value.abs();
            }
        }
        block
    }

    #[inline(always)]
    fn at_most(self, border: T) -> u32 {
        let mut bits = 0;
        for (i, value) in self.into_iter().enumerate() {
            bits |= u32::from(value <= border) << i;
        }
        bits
    }

    #[inline(always)]
    fn has_nan(self) -> bool {
        let mut any = false;
        for value in self {
            any |= value.is_nan();
        }
        any
    }

    #[inline(always)]
    fn append(self, mut bits: u32, to: &mut Vec<T>) {
        while bits != 0 {
            to.push(self[bits.trailing_zeros() as usize]);
            bits &= bits - 1;
        }
    }
}

#[inline(always)]
fn scan_with<B: Block>(
    values: &[B::Value],
    magnitude: bool,
    borders: [B::Value; 2],
    mut inside: Option<&mut Vec<B::Value>>,
) -> Counts {
    let mut counts = Counts::default();
    let (blocks, tail) = values.as_chunks::<BLOCK>();
    for values in blocks {
        let block = B::load(values, magnitude);
        counts.nan |= block.has_nan();
        scan_block::<B>(block, borders, &mut counts, &mut inside);
    }
    if !tail.is_empty() {
        // A NaN is at most nothing, so the padding is not counted.
        let mut padded = [B::Value::NAN; BLOCK];
        padded[..tail.len()].copy_from_slice(tail);
        counts.nan |= tail.iter().any(|value| value.is_nan());
        scan_block::<B>(
            B::load(&padded, magnitude),
            borders,
            &mut counts,
            &mut inside,
        );
    }
    counts
}

#[inline(always)]
fn scan_block<B: Block>(
    block: B,
    [low, high]: [B::Value; 2],
    counts: &mut Counts,
    inside: &mut Option<&mut Vec<B::Value>>,
) {
    let (low, high) = (block.at_most(low), block.at_most(high));
    counts.low += u64::from(low.count_ones());
    counts.high += u64::from(high.count_ones());
    if let Some(inside) = inside
        && high & !low != 0
    {
        block.append(high & !low, inside);
    }
}

#[inline(always)]
fn write_above_with<B: Block>(
    values: &[B::Value],
    magnitude: bool,
    border: B::Value,
    words: &mut [u32],
) {
    let (blocks, tail) = values.as_chunks::<BLOCK>();
    for (word, block) in words.iter_mut().zip(blocks) {
        *word = !B::load(block, magnitude).at_most(border);
    }
    if !tail.is_empty() {
        let mut padded = [B::Value::NAN; BLOCK];
        padded[..tail.len()].copy_from_slice(tail);
        let bits = !B::load(&padded, magnitude).at_most(border);
        words[blocks.len()] = bits & ((1 << tail.len()) - 1);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{BLOCK, Block, Counts};
    use std::arch::x86_64::*;

    const LANES: usize = 8;

    /// Eight f32 to a register. The functions are inlined into the two below, which carry the target feature; they hold
    /// no closures, into which an intrinsic would not be inlined.
    #[derive(Clone, Copy)]
    pub(super) struct Lanes([__m256; BLOCK / LANES]);

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn scan<B: Block>(
        values: &[B::Value],
        magnitude: bool,
        borders: [B::Value; 2],
        inside: Option<&mut Vec<B::Value>>,
    ) -> Counts {
        // Two copies of the loop, so that neither asks per block.
        if magnitude {
            super::scan_with::<B>(values, true, borders, inside)
        } else {
            super::scan_with::<B>(values, false, borders, inside)
        }
    }

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn write_above<B: Block>(
        values: &[B::Value],
        magnitude: bool,
        border: B::Value,
        words: &mut [u32],
    ) {
        if magnitude {
            super::write_above_with::<B>(values, true, border, words);
        } else {
            super::write_above_with::<B>(values, false, border, words);
        }
    }

    impl Block for Lanes {
        type Value = f32;

        #[inline(always)]
        fn load(values: &[f32; BLOCK], magnitude: bool) -> Self {
            // SAFETY: lanes 8 q .. 8 q + 8 lie inside the array; callers are the functions above, so AVX2 is there.
            unsafe {
                let mut block = [_mm256_setzero_ps(); BLOCK / LANES];
                for (q, lanes) in block.iter_mut().enumerate() {
                    *lanes = _mm256_loadu_ps(values.as_ptr().add(LANES * q));
                    if magnitude {
                        *lanes = _mm256_andnot_ps(_mm256_set1_ps(-0.0), *lanes);
                    }
                }
                Self(block)
            }
        }

        #[inline(always)]
        fn at_most(self, border: f32) -> u32 {
            let mut bits = 0;
            for (q, lanes) in self.0.into_iter().enumerate() {
                // SAFETY: callers are the functions above, so AVX2 is there.
                let byte = unsafe {
                    let le = _mm256_cmp_ps::<_CMP_LE_OQ>(lanes, _mm256_set1_ps(border));
                    _mm256_movemask_ps(le)
                };
                bits |= (byte as u32) << (LANES * q);
            }
            bits
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
            borders in proptest::array::uniform2(value()),
            magnitude in any::<bool>(),
        ) {
            let values = &values[skip.min(values.len())..];
            let (mut fast, mut plain) = (vec![7.0], vec![7.0]);
            prop_assert_eq!(
                f32::scan(values, magnitude, borders, Some(&mut fast)),
                scan_with::<[f32; BLOCK]>(values, magnitude, borders, Some(&mut plain))
            );
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&fast), bits(&plain));
            let mut words = [vec![u32::MAX; values.len().div_ceil(BLOCK)], vec![u32::MAX; values.len().div_ceil(BLOCK)]];
            f32::write_above(values, magnitude, borders[0], &mut words[0]);
            write_above_with::<[f32; BLOCK]>(values, magnitude, borders[0], &mut words[1]);
            prop_assert_eq!(&words[0], &words[1]);
            for (i, &v) in values.iter().enumerate() {
                let v = if magnitude { v.abs() } else { v };
                // Not `v > border`: a NaN on either side counts as above.
                let above = !matches!(v.partial_cmp(&borders[0]), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal));
                prop_assert_eq!(words[0][i / 32] >> (i % 32) & 1 == 1, above);
            }
        }
    }
}

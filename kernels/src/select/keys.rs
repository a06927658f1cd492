//! Integers that order as scores do, and the selection that counts their digits: no data can mislead it.

use rayon::prelude::*;

use super::{Layer, Scores};

/// The largest number below a score; NaN if there is none.
pub(super) fn below(score: f64) -> f64 {
    if score == f64::NEG_INFINITY {
        f64::NAN
    } else {
        score.next_down()
    }
}

/// Maps a score to an integer of the same order; both zeros to the same one.
pub(super) fn key(score: f64) -> u64 {
    let bits = (score + 0.0).to_bits(); // -0 + 0 = +0
    if bits >> 63 == 1 {
        !bits
    } else {
        bits | 1 << 63
    }
}

/// The score that [`key`] maps to this integer.
pub(super) fn value(key: u64) -> f64 {
    f64::from_bits(if key >> 63 == 1 {
        key & !(1 << 63)
    } else {
        !key
    })
}

/// As [`key`], for stored values.
pub(super) fn key32(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

/// The value that [`key32`] maps to this integer.
pub(super) fn value32(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 {
        key & !(1 << 31)
    } else {
        !key
    })
}

/// Bits per digit: sign and exponent first, then the mantissa in four parts.
pub(super) const DIGITS: [u32; 5] = [12, 13, 13, 13, 13];

/// The k-th smallest score, digit by digit: five passes whatever the data. No score is NaN.
pub(super) fn radix<S: Scores>(
    layers: &[Layer<S>],
    ranges: &[(usize, usize, usize)],
    k: u64,
) -> f64 {
    let mut high = u64::BITS; // bits from here up are known
    let mut prefix = 0u64;
    let mut below = 0u64;
    for width in DIGITS {
        let shift = high - width;
        let count = |mut histogram: Vec<u64>, &(layer, start, end): &(usize, usize, usize)| {
            let layer = &layers[layer];
            for index in start..end {
                let key = key(layer.at(index));
                if high == u64::BITS || key >> high == prefix {
                    histogram[(key >> shift) as usize & ((1 << width) - 1)] += 1;
                }
            }
            histogram
        };
        let add = |mut left: Vec<u64>, right: Vec<u64>| {
            left.iter_mut().zip(right).for_each(|(l, r)| *l += r);
            left
        };
        let empty = || vec![0u64; 1 << width];
        let histogram = ranges.par_iter().fold(empty, count).reduce(empty, add);
        let mut digit = 0;
        while below + histogram[digit] < k {
            below += histogram[digit];
            digit += 1;
        }
        prefix = prefix << width | digit as u64;
        high = shift;
    }
    value(prefix)
}

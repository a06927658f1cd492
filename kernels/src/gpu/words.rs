//! Mask words: an order-preserving key of a score, and how many units write the bits of one word.

use cubecl::prelude::*;

use super::buffer::UNITS;

/// Words that a cube writes.
pub(super) const TILE: usize = 64;
/// Bits of a word.
pub(super) const BITS: usize = u32::BITS as usize;
/// Elements of a tile that each unit looks at.
pub(super) const STEPS: usize = TILE * BITS / UNITS;

/// The bits of positive infinity; magnitudes above are NaN.
const INFINITY: u32 = 0x7f80_0000;
/// All but the sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
const SIGN: u32 = 0x8000_0000;

/// An integer that orders as the score with these bits does, both zeros alike. Integers throughout, since a device may
/// flush denormals as soon as it sees a float.
#[cube]
pub(super) fn key(bits: u32, #[comptime] magnitude: bool) -> u32 {
    if magnitude {
        bits & MAGNITUDE
    } else {
        let negative = select(bits == SIGN, SIGN, !bits);
        select(bits & SIGN == 0u32, bits | SIGN, negative)
    }
}

/// The value with this key.
pub(super) fn value(key: u32, magnitude: bool) -> f32 {
    f32::from_bits(match (magnitude, key & SIGN) {
        (true, _) => key,
        (false, 0) => !key,
        (false, _) => key & MAGNITUDE,
    })
}

#[cube]
pub(super) fn is_nan(bits: u32) -> bool {
    bits & MAGNITUDE > INFINITY
}

/// Ones in the bits that stand for columns.
#[cube]
pub(super) fn used(word: usize, stride: usize, cols: usize) -> u32 {
    let left = cols - word % stride * BITS;
    select(
        left >= BITS,
        0xffff_ffffu32,
        (1u32 << u32::cast_from(left % BITS)) - 1u32,
    )
}

/// Words of a `[rows, cols]` mask.
pub(super) fn word_count([rows, cols]: [usize; 2]) -> usize {
    rows * cols.div_ceil(BITS)
}

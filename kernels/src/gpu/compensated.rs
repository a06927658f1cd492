//! Sums of f32 that keep what rounding drops, in a fixed order: each unit's share, then a tree over the cube's units.
//!
//! A sum is two numbers, itself and what its additions lost (Knuth's two-sum). Shader compilers may cancel
//! `(a + b) - a` to `b`, which is the end of every such trick; so results pass through integer arithmetic with a zero that
//! they are told at run time ([`opaque`]). No float atomics: the same bits every time.

use cubecl::prelude::*;

use super::buffer::UNITS;
use super::words::is_nan;

/// The same number, of which a compiler knows nothing. `zero` must be 0.
#[cube]
pub(super) fn opaque(x: f32, zero: u32) -> f32 {
    f32::reinterpret(u32::reinterpret(x) ^ zero)
}

/// What `a + b` lost when it became `sum`.
#[cube]
pub(super) fn lost(a: f32, b: f32, sum: f32, zero: u32) -> f32 {
    let b_part = opaque(sum - a, zero);
    let a_part = opaque(sum - b_part, zero);
    (a - a_part) + (b - b_part)
}

/// A running sum and what it lost.
#[derive(CubeType)]
pub(super) struct Sum {
    pub(super) high: f32,
    pub(super) low: f32,
}

#[cube]
impl Sum {
    pub(super) fn new() -> Self {
        Sum {
            high: 0.0f32.runtime(),
            low: 0.0f32.runtime(),
        }
    }

    /// Adds a number.
    pub(super) fn add(&mut self, x: f32, zero: u32) {
        let high = opaque(self.high + x, zero);
        self.low += lost(self.high, x, high, zero);
        self.high = high;
    }

    /// As one number. Where the sum overflowed or met infinities, what it lost is NaN and stays out.
    pub(super) fn total(&self) -> f32 {
        let total = self.high + self.low;
        select(is_nan(u32::reinterpret(self.low)), self.high, total)
    }
}

/// The sum of all units' sums, in every unit. All units of the cube must call it.
#[cube]
pub(super) fn of_cube(
    own: &Sum,
    high: &mut Shared<[f32]>,
    low: &mut Shared<[f32]>,
    zero: u32,
) -> Sum {
    let unit = UNIT_POS as usize;
    high[unit] = own.high;
    low[unit] = own.low;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(UNITS.ilog2()) {
        let reach = comptime!(UNITS >> (level + 1));
        if unit < reach {
            let (mine, other) = (high[unit], high[unit + reach]);
            let sum = opaque(mine + other, zero);
            low[unit] = low[unit] + low[unit + reach] + lost(mine, other, sum, zero);
            high[unit] = sum;
        }
        sync_cube();
    }
    let sum = Sum {
        high: high[0],
        low: low[0],
    };
    sync_cube();
    sum
}

/// The sum of what the units before this one bring. All units of the cube must call it.
#[cube]
pub(super) fn exclusive_sum(sums: &mut Shared<[u32]>, own: u32) -> u32 {
    let unit = UNIT_POS as usize;
    sums[unit] = own;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(UNITS.ilog2()) {
        let reach = comptime!(1usize << level);
        let mut sum = sums[unit];
        if unit >= reach {
            sum += sums[unit - reach];
        }
        sync_cube();
        sums[unit] = sum;
        sync_cube();
    }
    let sum = sums[unit] - own;
    sync_cube();
    sum
}

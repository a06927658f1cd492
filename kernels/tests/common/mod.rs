//! What the kernels' tests share.
#![allow(dead_code)] // Each test program uses its part.

use kernels::BitMask;

/// A small generator, so that a failing case can be named by its number.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// In [-1, 1).
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    /// A mask that keeps nothing, a share of the weights, all of them, or one in each row.
    pub fn mask(&mut self, rows: usize, cols: usize) -> BitMask {
        const ONE_PER_ROW: f64 = 2.0;
        let density = self.of(&[0.0, 0.05, 0.2, 0.5, 0.95, 1.0, ONE_PER_ROW]);
        let keep: Vec<bool> = (0..rows * cols)
            .map(|i| {
                if density == ONE_PER_ROW {
                    i % cols == i / cols % cols
                } else {
                    ((self.next() >> 11) as f64) < density * (1u64 << 53) as f64
                }
            })
            .collect();
        BitMask::from_keep(rows, cols, &keep).expect("sizes agree")
    }

    /// Such a mask, or none.
    pub fn maybe_mask(&mut self, rows: usize, cols: usize) -> Option<BitMask> {
        (self.below(8) > 0).then(|| self.mask(rows, cols))
    }
}

//! One 32 x 32 block of a product, and the bf16 numbers it is made of.
#![allow(unsafe_code)]

use super::super::work::Scratch;
use super::tiles::{SIDE, TILE, Tiles};
use crate::Half;

/// Steps of k that one tile product sums.
pub const DEPTH: usize = 2 * SIDE;
/// Rows and columns of a block of 2 x 2 tiles.
pub const BLOCK: usize = 2 * SIDE;

/// What a factor is rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terms {
    /// bf16.
    One,
    /// The sum of two bf16 numbers; the product of the two smaller ones is left out.
    Two,
}

impl Terms {
    /// How many bf16 numbers stand for one f32.
    pub fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// Where a block's factors and its result lie.
///
/// A is packed, tile after tile: for each step, for each of its row tiles, for each term. B lies in `[pairs][columns]`, of which a
/// step reads 16 rows.
pub struct Block<'a> {
    pub terms: Terms,
    pub a: *const u32,
    /// The block's first column, for each term.
    pub b: [*const u32; 2],
    /// Where each step begins in `b`, in words.
    pub steps: &'a [usize],
    /// Words from one pair of a step to the next.
    pub pitch: usize,
    pub c: *mut f32,
    pub ldc: usize,
    /// Whether the sum goes on from what `c` holds.
    pub resume: bool,
}

impl Block<'_> {
    /// Sums the block, of one or two tiles each way.
    ///
    /// # Safety
    /// All that [`Block`] names lies there; `c` has room for whole tiles.
    #[inline]
    pub unsafe fn run<T: Tiles>(&self, tiles: &mut T, rows: usize, columns: usize) {
        // SAFETY: the caller's.
        unsafe {
            match (rows > SIDE, columns > SIDE) {
                (true, true) => self.sum::<T, 2, 2>(tiles),
                (true, false) => self.sum::<T, 2, 1>(tiles),
                (false, true) => self.sum::<T, 1, 2>(tiles),
                (false, false) => self.sum::<T, 1, 1>(tiles),
            }
        }
    }

    /// Tiles 0-3 hold the sums, 4 and 5 the rows of A, 6 and 7 the columns of B. With two terms, a step is 8 loads for 12
    /// products: small times large first, so that each load but the last serves twice.
    ///
    /// # Safety
    /// As for [`Block::run`].
    #[inline(always)]
    unsafe fn sum<T: Tiles, const M: usize, const N: usize>(&self, tiles: &mut T) {
        // SAFETY: the caller's.
        unsafe {
            let below = self.c.wrapping_add(SIDE * self.ldc);
            if self.resume {
                tiles.load::<0>(self.c.cast(), self.ldc);
                if N == 2 {
                    tiles.load::<1>(self.c.add(SIDE).cast(), self.ldc);
                }
                if M == 2 {
                    tiles.load::<2>(below.cast(), self.ldc);
                    if N == 2 {
                        tiles.load::<3>(below.add(SIDE).cast(), self.ldc);
                    }
                }
            } else {
                tiles.zero::<0>();
                tiles.zero::<1>();
                tiles.zero::<2>();
                tiles.zero::<3>();
            }
            let terms = self.terms.count();
            let mut a = self.a;
            for &step in self.steps {
                let load_a = |tiles: &mut T, term: usize| {
                    tiles.load::<4>(a.add(term * TILE), SIDE);
                    if M == 2 {
                        tiles.load::<5>(a.add((terms + term) * TILE), SIDE);
                    }
                };
                let load_b = |tiles: &mut T, term: usize| {
                    let b = self.b[term].add(step);
                    tiles.load::<6>(b, self.pitch);
                    if N == 2 {
                        tiles.load::<7>(b.add(SIDE), self.pitch);
                    }
                };
                let multiply = |tiles: &mut T| {
                    tiles.multiply::<0, 4, 6>();
                    if N == 2 {
                        tiles.multiply::<1, 4, 7>();
                    }
                    if M == 2 {
                        tiles.multiply::<2, 5, 6>();
                        if N == 2 {
                            tiles.multiply::<3, 5, 7>();
                        }
                    }
                };
                load_a(tiles, 0);
                if self.terms == Terms::Two {
                    load_b(tiles, 1);
                    multiply(tiles);
                }
                load_b(tiles, 0);
                multiply(tiles);
                if self.terms == Terms::Two {
                    load_a(tiles, 1);
                    multiply(tiles);
                }
                a = a.add(M * terms * TILE);
            }
            tiles.store::<0>(self.c, self.ldc);
            if N == 2 {
                tiles.store::<1>(self.c.add(SIDE), self.ldc);
            }
            if M == 2 {
                tiles.store::<2>(below, self.ldc);
                if N == 2 {
                    tiles.store::<3>(below.add(SIDE), self.ldc);
                }
            }
        }
    }
}

/// Scratch memory of 32-bit words that begins at a cache line, as tiles want it; its contents are whatever was there.
pub struct Words {
    block: Scratch,
    first: usize,
    len: usize,
}

impl Words {
    /// `len` words.
    pub fn take(len: usize) -> Self {
        let block = Scratch::take(len + SIDE);
        let first = block.as_ptr().align_offset(64).min(SIDE);
        Self { block, first, len }
    }

    /// Pointer to the first.
    pub fn as_mut_ptr(&mut self) -> *mut u32 {
        // SAFETY: `take` left room for the offset.
        unsafe { self.block.as_mut_ptr().add(self.first).cast() }
    }
}

impl std::ops::Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        let words = &self.block[self.first..][..self.len];
        // SAFETY: an f32 and a u32 have one size and alignment, and every pattern of bits is both.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
    }
}

impl std::ops::DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u32] {
        let words = &mut self.block[self.first..][..self.len];
        // SAFETY: as above, and `self` is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
    }
}

/// Zero-filled words of a packed factor: nothing is left of an earlier use where edges are not written.
pub fn zeroed(len: usize) -> Words {
    let mut words = Words::take(len);
    words.fill(0);
    words
}

/// A distance between rows of at least `n` words: whole cache lines, an odd number of them, so that 16 rows do not share one
/// set of a cache.
pub fn pitch(n: usize) -> usize {
    let lines = n.div_ceil(SIDE);
    (lines + 1 - lines % 2) * SIDE
}

/// The nearest bf16 number, and the nearest to what is left. Finite numbers above bf16's largest become infinite.
#[inline(always)]
fn split(value: f32) -> [u32; 2] {
    let high = Half::Bf16.encode(value);
    let low = Half::Bf16.encode(value - Half::Bf16.decode(high));
    [high.into(), low.into()]
}

#[inline(always)]
fn pairs_body(even: &[f32], odd: &[f32], high: &mut [u32], low: Option<&mut [u32]>) {
    let factors = even.iter().zip(odd);
    match low {
        None => {
            for ((&even, &odd), high) in factors.zip(high) {
                *high = split(even)[0] | split(odd)[0] << 16;
            }
        }
        Some(low) => {
            for (((&even, &odd), high), low) in factors.zip(high).zip(low) {
                let (even, odd) = (split(even), split(odd));
                *high = even[0] | odd[0] << 16;
                *low = even[1] | odd[1] << 16;
            }
        }
    }
}

#[inline(always)]
fn halves_body(values: &[f32], high: &mut [u16], low: Option<&mut [u16]>) {
    match low {
        None => {
            for (&value, high) in values.iter().zip(high) {
                *high = split(value)[0] as u16;
            }
        }
        Some(low) => {
            for ((&value, high), low) in values.iter().zip(high).zip(low) {
                let terms = split(value);
                (*high, *low) = (terms[0] as u16, terms[1] as u16);
            }
        }
    }
}

#[inline(always)]
fn keep_body(values: &mut [f32], words: &[u32], first: usize) {
    for (i, values) in values.chunks_mut(32).enumerate() {
        let (word, shift) = ((first + 32 * i) / 32, first % 32);
        let next = words.get(word + 1).copied().unwrap_or(0);
        let bits = ((u64::from(next) << 32 | u64::from(words[word])) >> shift) as u32;
        for (j, value) in values.iter_mut().enumerate() {
            *value = f32::from_bits(value.to_bits() & 0u32.wrapping_sub(bits >> j & 1));
        }
    }
}

/// A function compiled for each width of vectors, the widest that the processor has chosen at each call.
macro_rules! widths {
    ($(#[$doc:meta])* $name:ident = $body:ident($($argument:ident: $type:ty),*)) => {
        $(#[$doc])*
        pub fn $name($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
                fn avx512($($argument: $type),*) {
                    $body($($argument),*);
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $type),*) {
                    $body($($argument),*);
                }
                if is_x86_feature_detected!("avx2") {
                    if is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512vl")
                    {
                        // SAFETY: all were just seen.
                        return unsafe { avx512($($argument),*) };
                    }
                    // SAFETY: as above.
                    return unsafe { avx2($($argument),*) };
                }
            }
            $body($($argument),*);
        }
    };
}

widths!(
    /// Pairs of `even[i]` and `odd[i]` as bf16: the first term, and the second where it is wanted.
    pairs = pairs_body(even: &[f32], odd: &[f32], high: &mut [u32], low: Option<&mut [u32]>)
);
widths!(
    /// Values as bf16, one after the other: the first term, and the second where it is wanted.
    halves = halves_body(values: &[f32], high: &mut [u16], low: Option<&mut [u16]>)
);
widths!(
    /// Zeros in masked places, whatever they held: place `i` is kept if bit `first + i` of the mask's row is 1.
    keep = keep_body(values: &mut [f32], words: &[u32], first: usize)
);

/// Lines of bf16 numbers on their way into tiles of A, for each term.
pub struct Lines([Vec<u16>; 2]);

impl Lines {
    /// Of at most `n` numbers.
    pub fn new(n: usize, terms: Terms) -> Self {
        Self([vec![0; n], vec![0; if terms == Terms::Two { n } else { 0 }]])
    }

    /// Takes `values`.
    pub fn set(&mut self, values: &[f32]) {
        let [high, low] = &mut self.0;
        let low = (!low.is_empty()).then(|| &mut low[..values.len()]);
        halves(values, &mut high[..values.len()], low);
    }

    /// Writes the 32 numbers from `first` on to a row of a tile and of the next term's, which follows.
    ///
    /// # Safety
    /// `to` is the row's first word, and both tiles can be written.
    pub unsafe fn emit(&self, first: usize, to: *mut u32) {
        for (term, half) in self.0.iter().filter(|half| !half.is_empty()).enumerate() {
            let half = &half[first..][..DEPTH];
            // SAFETY: the caller's; two halves are a word.
            unsafe {
                to.add(term * TILE)
                    .cast::<u16>()
                    .copy_from_nonoverlapping(half.as_ptr(), DEPTH);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_terms_hold_sixteen_bits() {
        let mut worst = 0f64;
        for value in crate::reference::values(3, 4096) {
            let [high, low] = split(value).map(|bits| Half::Bf16.decode(bits as u16));
            let error = f64::from(value) - f64::from(high) - f64::from(low);
            worst = worst.max(error.abs() / f64::from(value).abs());
        }
        assert!(worst <= 2f64.powi(-17), "{worst}");
        assert!(worst > 2f64.powi(-20), "{worst}");
    }

    #[test]
    fn pitches_are_odd_numbers_of_lines() {
        for n in 0..200 {
            let pitch = pitch(n);
            assert!(pitch >= n && pitch < n + 3 * SIDE);
            assert_eq!(pitch % (2 * SIDE), SIDE);
        }
    }
}

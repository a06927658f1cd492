//! Matrix products of linear layers, `c = a b`: rows of A in the left tiles, B in pairs of rows on the right.
//!
//! K is summed 512 steps at a time: what 32 rows of A need of a first-level cache.
#![allow(unsafe_code)]

use super::super::work::{Scratch, Shared, output, parallel, split};
use super::super::{Kernels, Mask};
use super::block::{BLOCK, Block, DEPTH, Lines, Terms, Words, pairs, pitch};
use super::tiles::{SIDE, TILE, Tiles};

/// Steps of k of one pass.
const CHUNK: usize = 512;
/// The most rows and columns of a work item: its chunk of B, the part that is read again and again, takes half of a
/// second-level cache of 2 MiB with two terms. Larger items pack less per product.
const SIZE: usize = 512;
/// Columns of B that are packed at a time.
const PIECE: usize = 64;
/// Rows and columns below which an item is not cut for another thread's sake.
const LEAST: usize = 128;

/// A matrix as it lies in a slice: distance between rows, between columns.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Contiguous rows of `columns`.
    pub fn rows_of(data: &'a [f32], columns: usize) -> Self {
        Self {
            data,
            strides: [columns, 1],
        }
    }

    /// The same elements, rows as columns.
    pub fn transposed(self) -> Self {
        Self {
            strides: [self.strides[1], self.strides[0]],
            ..self
        }
    }

    /// Copies a piece into `to`, rows `ldd` apart.
    fn gather(
        &self,
        kernels: &Kernels,
        [rows, columns]: [&std::ops::Range<usize>; 2],
        to: &mut [f32],
        ldd: usize,
    ) {
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        let first = rows.start * self.strides[0] + columns.start * self.strides[1];
        let last = (rows.end - 1) * self.strides[0] + (columns.end - 1) * self.strides[1];
        let from = &self.data[first..=last];
        assert!((rows.len() - 1) * ldd + columns.len() <= to.len());
        if self.strides[1] == 1 {
            for row in 0..rows.len() {
                to[row * ldd..][..columns.len()]
                    .copy_from_slice(&from[row * self.strides[0]..][..columns.len()]);
            }
        } else {
            debug_assert_eq!(self.strides[0], 1, "one of the strides is 1");
            // SAFETY: both slices were cut to the piece just now.
            unsafe {
                (kernels.transpose)(
                    from.as_ptr(),
                    self.strides[1],
                    columns.len(),
                    rows.len(),
                    to.as_mut_ptr(),
                    ldd,
                );
            }
        }
    }
}

/// Which of B's elements are kept.
#[derive(Clone, Copy)]
pub enum Kept<'a> {
    All,
    /// Row k, column n of B is column k, row n of the mask.
    Across(Mask<'a>),
    /// Row k, column n of B is row k, column n of the mask.
    Along(Mask<'a>),
}

/// A product and what becomes of it.
pub struct Product<'a> {
    pub kernels: &'static Kernels,
    pub terms: Terms,
    /// Rows of A, columns of A, columns of B.
    pub size: [usize; 3],
    pub a: Matrix<'a>,
    pub b: Matrix<'a>,
    pub kept: Kept<'a>,
    /// Bias per column of the result.
    pub bias: Option<&'a [f32]>,
    /// Row i, column j of the result is 0 where row j, column i of the mask is.
    pub result_mask: Option<Mask<'a>>,
}

impl Product<'_> {
    /// The result, `[rows of A, columns of B]`.
    pub fn run<T: Tiles>(&self) -> Vec<f32> {
        let [m, k, n] = self.size;
        let mut result = output(m * n);
        let to = Shared::new(result.as_mut_ptr());
        let mut most = [SIZE; 2];
        let items = |most: [usize; 2]| m.div_ceil(most[0]) * n.div_ceil(most[1]);
        while items(most) < rayon::current_num_threads() {
            let cut = [0, 1].into_iter().filter(|&d| most[d] > LEAST);
            let Some(longer) = cut.max_by_key(|&d| most[d].min([m, n][d])) else {
                break;
            };
            most[longer] /= 2;
        }
        let rows: Vec<_> = (0..m).step_by(most[0]).collect();
        let columns: Vec<_> = (0..n).step_by(most[1]).collect();
        let macs = (m * n) as u64 * k as u64;
        parallel(rows.len() * columns.len(), macs, |item| {
            let row = rows[item / columns.len()];
            let column = columns[item % columns.len()];
            self.item::<T>(
                row..(row + most[0]).min(m),
                column..(column + most[1]).min(n),
                to,
            );
        });
        // SAFETY: items cover the result, and each was written whole.
        unsafe { result.written() }
    }

    fn item<T: Tiles>(
        &self,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        to: Shared,
    ) {
        let [_, k, n] = self.size;
        let terms = self.terms.count();
        let (wide, tall) = (
            columns.len().next_multiple_of(SIDE),
            rows.len().next_multiple_of(SIDE),
        );
        let (width, ldc) = (pitch(wide), pitch(wide));
        let steps_of = |chunk: usize| chunk.div_ceil(DEPTH);
        let most = steps_of(CHUNK.min(k));
        let mut left = Words::take(most * (tall / SIDE) * terms * TILE);
        let mut right = Words::take(terms * most * SIDE * width);
        let mut sums = Scratch::take(tall * ldc);
        let steps: Vec<usize> = (0..most).map(|step| step * SIDE * width).collect();
        // SAFETY: whoever chose these tiles has permission for them.
        let mut tiles = unsafe { T::configure() };
        // With nothing to sum, one pass of no steps makes the zeros.
        let chunks = split(k, CHUNK).chain((k == 0).then_some(0..0));
        for chunk in chunks {
            let steps = &steps[..steps_of(chunk.len())];
            self.pack_left(&rows, &chunk, &mut left);
            self.pack_right(&chunk, &columns, width, &mut right);
            let half = most * SIDE * width;
            for (i, panel) in (0..tall).step_by(BLOCK).enumerate() {
                for column in (0..wide).step_by(BLOCK) {
                    let block = Block {
                        terms: self.terms,
                        a: left
                            .as_ptr()
                            .wrapping_add(i * 2 * steps.len() * terms * TILE),
                        b: [0, terms - 1]
                            .map(|term| right.as_ptr().wrapping_add(term * half + column)),
                        steps,
                        pitch: width,
                        c: sums[panel * ldc + column..].as_mut_ptr(),
                        ldc,
                        resume: chunk.start > 0,
                    };
                    // SAFETY: both factors were packed for these steps, and all have room for whole tiles.
                    unsafe { block.run(&mut tiles, tall - panel, wide - column) };
                }
            }
        }
        drop(tiles);
        for (i, row) in rows.clone().enumerate() {
            let sums = &mut sums[i * ldc..][..columns.len()];
            if let Some(bias) = self.bias {
                for (sum, bias) in sums.iter_mut().zip(&bias[columns.clone()]) {
                    *sum += bias;
                }
            }
            if let Some(mask) = self.result_mask {
                for (sum, column) in sums.iter_mut().zip(columns.clone()) {
                    let word = mask.words[column * mask.words_per_row() + row / 32];
                    if word >> (row % 32) & 1 == 0 {
                        *sum = 0.0;
                    }
                }
            }
            // SAFETY: this piece of this row belongs to this item.
            unsafe {
                to.at(row * n + columns.start)
                    .copy_from_nonoverlapping(sums.as_ptr(), sums.len());
            }
        }
    }

    /// Panels of two row tiles, each `[step][row tile][term]`.
    fn pack_left(
        &self,
        rows: &std::ops::Range<usize>,
        chunk: &std::ops::Range<usize>,
        to: &mut Words,
    ) {
        let steps = chunk.len().div_ceil(DEPTH);
        let terms = self.terms.count();
        let tall = rows.len().next_multiple_of(SIDE);
        let mut lines = Lines::new(BLOCK * DEPTH, self.terms);
        for panel in (0..tall).step_by(BLOCK) {
            let height = BLOCK.min(tall - panel);
            for step in 0..steps {
                let mut values = [[0f32; DEPTH]; BLOCK];
                let from = rows.start + panel..rows.end.min(rows.start + panel + height);
                let k = chunk.start + step * DEPTH..chunk.end.min(chunk.start + (step + 1) * DEPTH);
                self.a
                    .gather(self.kernels, [&from, &k], values.as_flattened_mut(), DEPTH);
                lines.set(values.as_flattened());
                let first = (panel / SIDE * steps + step * (height / SIDE)) * terms * TILE;
                for i in 0..height {
                    let at = first + i / SIDE * terms * TILE + i % SIDE * SIDE;
                    let to = &mut to[at..][..(terms - 1) * TILE + SIDE];
                    // SAFETY: the slice reaches to the end of the row in the last term's tile.
                    unsafe { lines.emit(i * DEPTH, to.as_mut_ptr()) };
                }
            }
        }
    }

    /// `[term][pair of k][column]`, zeros beyond the last k and the last column.
    fn pack_right(
        &self,
        chunk: &std::ops::Range<usize>,
        columns: &std::ops::Range<usize>,
        width: usize,
        to: &mut Words,
    ) {
        let wide = columns.len().next_multiple_of(SIDE);
        let half = to.len() / self.terms.count();
        for step in 0..chunk.len().div_ceil(DEPTH) {
            let k = chunk.start + step * DEPTH..chunk.end.min(chunk.start + (step + 1) * DEPTH);
            for piece in (0..wide).step_by(PIECE) {
                let length = PIECE.min(wide - piece);
                let n = columns.start + piece..columns.end.min(columns.start + piece + length);
                let mut values = [[0f32; PIECE]; DEPTH];
                self.b
                    .gather(self.kernels, [&k, &n], values.as_flattened_mut(), PIECE);
                self.keep(&k, &n, &mut values);
                for (pair, rows) in values.chunks_exact(2).enumerate() {
                    let at = (step * SIDE + pair) * width + piece;
                    let (high, low) = to.split_at_mut(half);
                    let low = (self.terms == Terms::Two).then(|| &mut low[at..][..length]);
                    pairs(
                        &rows[0][..length],
                        &rows[1][..length],
                        &mut high[at..][..length],
                        low,
                    );
                }
            }
        }
    }

    /// Zeros in masked places, whatever was there.
    fn keep(
        &self,
        k: &std::ops::Range<usize>,
        n: &std::ops::Range<usize>,
        values: &mut [[f32; PIECE]; DEPTH],
    ) {
        let keep = |value: &mut f32, bit: u32| {
            *value = f32::from_bits(value.to_bits() & 0u32.wrapping_sub(bit & 1));
        };
        match self.kept {
            Kept::All => {}
            Kept::Across(mask) => {
                // Bits of 32 steps of k, for each column, out of up to two words.
                let mut bits = [0u32; PIECE];
                let (word, shift) = (k.start / 32, k.start % 32);
                for (bits, column) in bits.iter_mut().zip(n.clone()) {
                    let row = &mask.words[column * mask.words_per_row()..][..mask.words_per_row()];
                    let next = row.get(word + 1).copied().unwrap_or(0);
                    *bits = ((u64::from(next) << 32 | u64::from(row[word])) >> shift) as u32;
                }
                for (i, row) in values.iter_mut().enumerate().take(k.len()) {
                    for (value, bits) in row.iter_mut().zip(bits) {
                        keep(value, bits >> i);
                    }
                }
            }
            Kept::Along(mask) => {
                for (row, k) in values.iter_mut().zip(k.clone()) {
                    let words = &mask.words[k * mask.words_per_row()..][..mask.words_per_row()];
                    for (value, n) in row.iter_mut().zip(n.clone()) {
                        keep(value, words[n / 32] >> (n % 32));
                    }
                }
            }
        }
    }
}

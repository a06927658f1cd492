//! Unstructured weights in tiles that a GPU expands in registers: load sparse, compute dense.

use super::bytes::{self, Reader};
use super::half::Half;
use super::order::ColOrder;
use crate::error::expect_len;
use crate::{BitMask, KernelError};

const FORMAT: &str = "bitmap weight";

/// Rows and columns of a tile.
const TILE: usize = 64;
/// Rows and columns of a block.
const BLOCK: usize = 8;
/// Blocks of a tile.
const BLOCKS: usize = 64;
/// Weights of a block.
const BITS: usize = BLOCK * BLOCK;
/// Halves that a tile's values are padded to a multiple of: a 16-byte copy.
const ALIGN: usize = 8;

/// The kept weights of a `[rows, cols]` matrix as 16-bit floats, tile after tile of `[64, 64]`, row-major.
///
/// A tile is 8 by 8 blocks of 8 by 8 weights, row-major; a block's mask is one u64 whose bit `8 * row + column` says
/// what is kept, the order in which a tensor core's lanes hold an 8x8 matrix. A tile's values follow one another in the
/// order of blocks and bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Bitmap {
    rows: usize,
    cols: usize,
    half: Half,
    order: ColOrder,
    /// `[tiles, 64, 2]`: each block's mask, low word first.
    masks: Vec<u32>,
    /// `[tiles + 1]`: where each tile's values begin, in halves; multiples of 8.
    tile_ptr: Vec<u32>,
    /// Two halves each, the first in the lower bits; zeros behind each tile's last.
    values: Vec<u32>,
}

impl Bitmap {
    /// Names format and version in the byte form.
    pub const FORMAT_ID: u8 = 6;

    /// Gathers what the mask keeps, rounded to 16 bits; what it prunes is never read.
    ///
    /// # Shapes
    /// `weights`: `[rows, cols]` as the mask, columns in `order`.
    pub fn from_dense(
        weights: &[f32],
        mask: &BitMask,
        half: Half,
        order: ColOrder,
    ) -> Result<Self, KernelError> {
        expect_len("weights", mask.len(), weights.len())?;
        let (rows, cols) = (mask.rows(), mask.cols());
        let tiles = tiles(rows, cols);
        // Padding adds at most 7 halves per tile.
        if u32::try_from(mask.nnz() + tiles * ALIGN).is_err() {
            return Err(fail(format!(
                "{} kept weights in {tiles} tiles; their places must stay below 2^32",
                mask.nnz()
            )));
        }
        let mut weight = Self {
            rows,
            cols,
            half,
            order,
            masks: vec![0; tiles * BLOCKS * 2],
            tile_ptr: vec![0],
            values: Vec::with_capacity(mask.nnz() / 2 + tiles * ALIGN / 2),
        };
        let mut halves = Vec::with_capacity(TILE * TILE);
        for tile in 0..tiles {
            halves.clear();
            for block in 0..BLOCKS {
                for bit in 0..BITS {
                    let (row, col) = weight.element(tile, block, bit);
                    if row < rows && col < cols && mask.get(row, col) {
                        weight.masks[(tile * BLOCKS + block) * 2 + bit / 32] |= 1 << (bit % 32);
                        halves.push(half.encode(weights[row * cols + col]));
                    }
                }
            }
            halves.resize(halves.len().next_multiple_of(ALIGN), 0);
            weight.values.extend(
                halves
                    .chunks_exact(2)
                    .map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16),
            );
            weight.tile_ptr.push(2 * weight.values.len() as u32);
        }
        Ok(weight)
    }

    /// The matrix, rounded to 16 bits; pruned weights +0.
    pub fn to_dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.rows * self.cols];
        for tile in 0..self.tile_ptr.len() - 1 {
            let mut at = self.tile_ptr[tile] as usize;
            for block in 0..BLOCKS {
                for bit in self.kept(tile, block) {
                    let (row, col) = self.element(tile, block, bit);
                    let value = (self.values[at / 2] >> (16 * (at % 2))) as u16;
                    dense[row * self.cols + col] = self.half.decode(value);
                    at += 1;
                }
            }
        }
        dense
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights per output channel, kept or not.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Type of the values.
    pub fn half(&self) -> Half {
        self.half
    }

    /// Order of the columns.
    pub fn order(&self) -> ColOrder {
        self.order
    }

    /// Masks of all blocks, `[tiles, 64, 2]`, low words first.
    pub fn masks(&self) -> &[u32] {
        &self.masks
    }

    /// Where each tile's values begin and the last one's end, in halves.
    pub fn tile_ptr(&self) -> &[u32] {
        &self.tile_ptr
    }

    /// Values of all tiles, two halves a word.
    pub fn values(&self) -> &[u32] {
        &self.values
    }

    /// Bytes of masks, places and values over the weights covered; padding included, NaN for no weights.
    pub fn bytes_per_weight(&self) -> f64 {
        let words = self.masks.len() + self.tile_ptr.len() + self.values.len();
        4.0 * words as f64 / (self.rows as f64 * self.cols as f64)
    }

    /// Checks the invariants: lengths, nothing kept outside the matrix, as many values as bits, zeros in the padding.
    pub fn validate(&self) -> Result<(), KernelError> {
        let tiles = tiles(self.rows, self.cols);
        let found = [self.masks.len(), self.tile_ptr.len()];
        let needed = [tiles * BLOCKS * 2, tiles + 1];
        if found != needed || self.tile_ptr[0] != 0 {
            return Err(fail(format!(
                "masks and places {found:?} where {needed:?} are needed, the first place 0"
            )));
        }
        for tile in 0..tiles {
            let mut kept = 0usize;
            for block in 0..BLOCKS {
                for bit in self.kept(tile, block) {
                    let (row, col) = self.element(tile, block, bit);
                    if row >= self.rows || col >= self.cols {
                        return Err(fail(format!(
                            "tile {tile} keeps ({row}, {col}) of {} x {}",
                            self.rows, self.cols
                        )));
                    }
                    kept += 1;
                }
            }
            let (from, to) = (
                self.tile_ptr[tile] as usize,
                self.tile_ptr[tile + 1] as usize,
            );
            if from.checked_add(kept.next_multiple_of(ALIGN)) != Some(to)
                || to > 2 * self.values.len()
            {
                return Err(fail(format!(
                    "tile {tile} keeps {kept} weights and has values {from} to {to} of {}",
                    2 * self.values.len()
                )));
            }
            let padding =
                (from + kept..to).any(|at| self.values[at / 2] >> (16 * (at % 2)) & 0xffff != 0);
            if padding {
                return Err(fail(format!(
                    "tile {tile} has values behind its last weight"
                )));
            }
        }
        let last = self.tile_ptr[tiles] as usize;
        if last != 2 * self.values.len() {
            return Err(fail(format!(
                "{} values, {last} of them in tiles",
                2 * self.values.len()
            )));
        }
        Ok(())
    }

    /// The byte form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = bytes::header(Self::FORMAT_ID, &[self.rows, self.cols, self.values.len()]);
        out.extend([self.order.to_byte(), self.half as u8]);
        bytes::put_words(&mut out, &self.masks);
        bytes::put_words(&mut out, &self.tile_ptr);
        bytes::put_words(&mut out, &self.values);
        out
    }

    /// Reads the byte form; refuses whatever [`Bitmap::validate`] would.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        let mut reader = Reader::new(FORMAT, Self::FORMAT_ID, bytes)?;
        let (rows, cols, words) = (reader.size()?, reader.size()?, reader.size()?);
        // Bounds the tiles too, each of which has more words than it could ever add by rounding up.
        let [more_rows, more_cols] = [rows, cols].map(|size| size.saturating_add(TILE));
        reader.product(&[more_rows, more_cols, 4])?;
        let order = reader.byte()?;
        let order = ColOrder::from_byte(order)
            .ok_or_else(|| reader.fail(format!("column order {order}")))?;
        let half = match reader.byte()? {
            0 => Half::Bf16,
            1 => Half::F16,
            other => return Err(reader.fail(format!("value type {other}"))),
        };
        let tiles = tiles(rows, cols);
        let weight = Self {
            rows,
            cols,
            half,
            order,
            masks: reader.words(tiles * BLOCKS * 2)?,
            tile_ptr: reader.words(tiles + 1)?,
            values: reader.words(words)?,
        };
        reader.end()?;
        weight.validate()?;
        Ok(weight)
    }

    /// Bits kept in a block, ascending.
    fn kept(&self, tile: usize, block: usize) -> impl Iterator<Item = usize> + use<> {
        let at = (tile * BLOCKS + block) * 2;
        let mask = u64::from(self.masks[at]) | u64::from(self.masks[at + 1]) << 32;
        (0..BITS).filter(move |bit| mask >> bit & 1 == 1)
    }

    /// Row and column in the matrix, which may lie outside of it.
    fn element(&self, tile: usize, block: usize, bit: usize) -> (usize, usize) {
        let across = self.cols.div_ceil(TILE);
        let row = tile / across * TILE + block / 8 * BLOCK + bit / BLOCK;
        let col = tile % across * TILE + block % 8 * BLOCK + bit % BLOCK;
        (row, col)
    }
}

fn tiles(rows: usize, cols: usize) -> usize {
    rows.div_ceil(TILE) * cols.div_ceil(TILE)
}

fn fail(why: String) -> KernelError {
    KernelError::Format {
        format: FORMAT,
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::bytes::damaged;
    use crate::format::test_masks as masks;
    use crate::reference::values;
    use proptest::prelude::*;

    fn layer(seed: u64, rows: usize, cols: usize, density: f32) -> (Vec<f32>, BitMask) {
        let random = values(seed, 2 * rows * cols);
        let mask = BitMask::from_fn(rows, cols, |i| random[i] < 2.0 * density - 1.0);
        let weights = random[rows * cols..].iter().map(|v| (v * 99.0).round());
        (weights.collect(), mask)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_packed_comes_back(mask in masks(), seed in 0u64..1000) {
            let weights: Vec<f32> = values(seed, mask.len()).iter().map(|v| (v * 99.0).round()).collect();
            let packed = Bitmap::from_dense(&weights, &mask, Half::Bf16, ColOrder::Oihw).unwrap();
            packed.validate().unwrap();
            let mut pruned = weights;
            mask.apply(&mut pruned).unwrap();
            prop_assert_eq!(packed.to_dense(), pruned);
            prop_assert_eq!(Bitmap::from_bytes(&packed.to_bytes()).unwrap(), packed);
        }
    }

    #[test]
    fn places_are_as_documented() {
        // One weight in tile (1, 0), block (2, 5), row 3 and column 6 of the block.
        let (rows, cols) = (70 + 64, 130);
        let (row, col) = (64 + 2 * 8 + 3, 5 * 8 + 6);
        let mask = BitMask::from_fn(rows, cols, |i| i == row * cols + col);
        let weights = vec![1.0; rows * cols];
        let packed = Bitmap::from_dense(&weights, &mask, Half::Bf16, ColOrder::Ohwi).unwrap();
        let (tile, block, bit) = (3, 2 * 8 + 5, 3 * 8 + 6);
        for (at, &word) in packed.masks().iter().enumerate() {
            let expected = at == (tile * 64 + block) * 2;
            assert_eq!(word, if expected { 1 << bit } else { 0 }, "word {at}");
        }
        assert_eq!(packed.tile_ptr(), [0, 0, 0, 0, 8, 8, 8, 8, 8, 8]);
        assert_eq!(packed.values(), [0x3f80, 0, 0, 0]);
    }

    #[test]
    fn pruned_values_are_never_read() {
        let (mut weights, mask) = layer(3, 66, 70, 0.3);
        for (i, weight) in weights.iter_mut().enumerate() {
            if !mask.get(i / 70, i % 70) {
                *weight = f32::NAN;
            }
        }
        let packed = Bitmap::from_dense(&weights, &mask, Half::F16, ColOrder::Oihw).unwrap();
        assert!(packed.to_dense().iter().all(|v| v.is_finite()));
    }

    #[test]
    fn bytes_are_as_specified() {
        let (weights, mask) = layer(1, 512, 512, 0.2);
        let packed = Bitmap::from_dense(&weights, &mask, Half::Bf16, ColOrder::Oihw).unwrap();
        let density = mask.nnz() as f64 / (512.0 * 512.0);
        let excess = packed.bytes_per_weight() - (2.0 * density + 0.125);
        // A word per tile and at most 7 halves of padding in it.
        assert!((0.0..0.005).contains(&excess), "{excess}");
    }

    #[test]
    fn broken_words_are_refused() {
        let (_, mask) = layer(5, 65, 66, 0.5);
        // No zero among the values: one in place of padding cannot be told from a kept weight.
        let weights = vec![1.0; mask.len()];
        let good = Bitmap::from_dense(&weights, &mask, Half::F16, ColOrder::Oihw).unwrap();
        let breaks: [fn(&mut Bitmap); 5] = [
            |w| w.masks[0] &= w.masks[0] - 1,
            |w| w.tile_ptr[1] += 8,
            |w| w.tile_ptr[0] = 8,
            |w| *w.values.last_mut().unwrap() |= 1 << 16,
            |w| w.values.push(0),
        ];
        for (i, change) in breaks.iter().enumerate() {
            let mut weight = good.clone();
            change(&mut weight);
            assert!(weight.validate().is_err(), "change {i}");
        }
        // In the last tile, one row and two columns: a bit outside for one inside leaves the count as it was.
        let mut weight = good;
        let last = weight.masks.len() - 128;
        let inside = weight.masks[last] & 3;
        assert_ne!(inside, 0, "another seed is needed");
        weight.masks[last] ^= 1 << inside.trailing_zeros() | 4;
        assert!(weight.validate().is_err());
    }

    #[test]
    fn foreign_bytes_never_panic() {
        let (weights, mask) = layer(5, 3, 8, 0.5);
        let packed = Bitmap::from_dense(&weights, &mask, Half::F16, ColOrder::Oihw).unwrap();
        let bytes = packed.to_bytes();
        let mut refused = 0;
        for bytes in damaged(&bytes) {
            match Bitmap::from_bytes(&bytes) {
                Ok(packed) => packed.validate().unwrap(),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > bytes.len());
    }
}

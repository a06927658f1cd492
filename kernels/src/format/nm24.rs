//! 2:4 weights in the operand order of the sparse tensor-core instruction `mma.sp::ordered_metadata.m16n8k32`.
//!
//! The order is the one of the published fragment tables; `reference::sparse_mma` is its independent judge.

use super::bytes::{self, Reader};
use super::half::Half;
use super::nm::Nm;
use super::order::ColOrder;
use crate::{BitMask, KernelError};

const FORMAT: &str = "hardware 2:4 weight";

/// Weight rows of one instruction.
const TILE_ROWS: usize = 16;
/// Dense columns of one instruction, K.
const TILE_COLS: usize = 32;
/// Threads of a warp.
const LANES: usize = 32;
/// Registers of compressed values per lane and instruction, two halves each.
const REGISTERS: usize = 4;
/// Indices 0 and 1 in each of the four chunks of both rows: what padding says, since equal indices are undefined.
const PADDING: u32 = 0x4444_4444;

/// A `[rows, cols]` matrix with at most 2 of every 4 consecutive columns, as 16-bit floats.
///
/// Rows are padded to 16 and columns to 64 with zeros. Tiles are `[16, 32]`, row blocks outer; of each tile, lane after
/// lane, the four registers of the A operand, so that a warp loads a tile with one 128-bit load per lane. One metadata
/// word per lane serves two neighbouring tiles: the left one with selector 0 (lanes 0 and 1 of every four), the right
/// one with selector 1 (lanes 2 and 3).
#[derive(Debug, Clone, PartialEq)]
pub struct Nm24Hw {
    rows: usize,
    cols: usize,
    half: Half,
    order: ColOrder,
    /// `[row blocks, tiles, lanes, 4]`.
    values: Vec<u32>,
    /// `[row blocks, tiles / 2, lanes]`.
    metadata: Vec<u32>,
}

impl Nm24Hw {
    /// Names format and version in the byte form.
    pub const FORMAT_ID: u8 = 5;

    /// Rearranges a 2:4 weight, rounding its values to 16 bits; refuses other patterns.
    pub fn from_nm(packed: &Nm, half: Half) -> Result<Self, KernelError> {
        let [n, m] = packed.pattern();
        if [n, m] != [2, 4] {
            return Err(fail(format!("{n}:{m} is not 2:4")));
        }
        let (rows, cols) = (packed.rows(), packed.cols());
        let [value_words, metadata_words] = lengths(rows, cols);
        let mut weight = Self {
            rows,
            cols,
            half,
            order: packed.order(),
            values: vec![0; value_words],
            metadata: vec![PADDING; metadata_words],
        };
        for row in 0..rows {
            for (chunk, pair) in packed.row_values(row).chunks_exact(2).enumerate() {
                let [low, high] = [0, 1].map(|slot| packed.index(row, 2 * chunk + slot));
                let place = Place::of(row, chunk, cols);
                let values = pair
                    .iter()
                    .rev()
                    .fold(0, |word, &value| word << 16 | u32::from(half.encode(value)));
                weight.values[place.value] = values;
                let word = &mut weight.metadata[place.metadata];
                *word = *word & !(15 << place.shift) | (low | high << 2) << place.shift;
            }
        }
        Ok(weight)
    }

    /// As [`Nm::from_dense`] with 2:4, then [`Nm24Hw::from_nm`].
    ///
    /// # Shapes
    /// `weights`: `[rows, cols]` as the mask, columns of both in `order`.
    pub fn from_dense(
        weights: &[f32],
        mask: &BitMask,
        half: Half,
        order: ColOrder,
    ) -> Result<Self, KernelError> {
        Self::from_nm(&Nm::from_dense(weights, mask, [2, 4], order)?, half)
    }

    /// The matrix, rounded to 16 bits; pruned weights +0.
    pub fn to_dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.rows * self.cols];
        for row in 0..self.rows {
            for chunk in 0..self.cols / 4 {
                let place = Place::of(row, chunk, self.cols);
                let values = self.values[place.value];
                let indices = self.metadata[place.metadata] >> place.shift;
                for slot in 0..2 {
                    let col = 4 * chunk + (indices >> (2 * slot) & 3) as usize;
                    dense[row * self.cols + col] = self.half.decode((values >> (16 * slot)) as u16);
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

    /// Row blocks and tiles per row block, padding included.
    pub fn tiles(&self) -> [usize; 2] {
        tiles(self.rows, self.cols)
    }

    /// Values of all tiles, `[row blocks, tiles, lanes, 4]`.
    pub fn values(&self) -> &[u32] {
        &self.values
    }

    /// Metadata of all pairs of tiles, `[row blocks, tiles / 2, lanes]`.
    pub fn metadata(&self) -> &[u32] {
        &self.metadata
    }

    /// The operands of one tile: A registers of every lane, metadata of every lane, selector. Panics outside the
    /// [`Nm24Hw::tiles`], as indexing does.
    pub fn operands(&self, row_block: usize, tile: usize) -> ([[u32; 4]; 32], [u32; 32], usize) {
        let [row_blocks, tiles] = self.tiles();
        assert!(
            row_block < row_blocks && tile < tiles,
            "tile ({row_block}, {tile}) of {row_blocks} x {tiles}"
        );
        let values = &self.values[(row_block * tiles + tile) * LANES * REGISTERS..];
        let metadata = &self.metadata[(row_block * tiles / 2 + tile / 2) * LANES..];
        (
            std::array::from_fn(|lane| std::array::from_fn(|i| values[lane * REGISTERS + i])),
            std::array::from_fn(|lane| metadata[lane]),
            tile % 2,
        )
    }

    /// Bytes of values and metadata over the weights covered; tile padding included, NaN for no weights.
    pub fn bytes_per_weight(&self) -> f64 {
        let words = self.values.len() + self.metadata.len();
        4.0 * words as f64 / (self.rows as f64 * self.cols as f64)
    }

    /// Checks the invariants: lengths, indices that ascend everywhere, zeros in the padding.
    pub fn validate(&self) -> Result<(), KernelError> {
        if !self.cols.is_multiple_of(4) {
            return Err(fail(format!("{} columns are no multiple of 4", self.cols)));
        }
        let found = [self.values.len(), self.metadata.len()];
        let needed = lengths(self.rows, self.cols);
        if found != needed {
            return Err(fail(format!("words {found:?} where {needed:?} are needed")));
        }
        for (at, &word) in self.metadata.iter().enumerate() {
            for shift in (0..32).step_by(4) {
                let (low, high) = (word >> shift & 3, word >> shift >> 2 & 3);
                if low >= high {
                    return Err(fail(format!(
                        "metadata word {at} holds the indices {low} and {high}"
                    )));
                }
            }
        }
        let [row_blocks, tiles] = self.tiles();
        let (padded_rows, chunks) = (row_blocks * TILE_ROWS, tiles * TILE_COLS / 4);
        for row in 0..padded_rows {
            // Rows of the weight have padding behind their last column only.
            let first = if row < self.rows { self.cols / 4 } else { 0 };
            for chunk in first..chunks {
                if self.values[Place::of(row, chunk, self.cols).value] != 0 {
                    return Err(fail(format!("the padding of row {row} is not zero")));
                }
            }
        }
        Ok(())
    }

    /// The byte form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = bytes::header(Self::FORMAT_ID, &[self.rows, self.cols]);
        bytes.extend([self.order.to_byte(), self.half as u8]);
        bytes::put_words(&mut bytes, &self.values);
        bytes::put_words(&mut bytes, &self.metadata);
        bytes
    }

    /// Reads the byte form; refuses whatever [`Nm24Hw::validate`] would.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        let mut reader = Reader::new(FORMAT, Self::FORMAT_ID, bytes)?;
        let (rows, cols) = (reader.size()?, reader.size()?);
        // Bounds the padded sizes too: rounding up adds less than 16 rows and 64 columns.
        let [more_rows, more_cols] =
            [(rows, TILE_ROWS), (cols, 2 * TILE_COLS)].map(|(size, pad)| size.saturating_add(pad));
        reader.product(&[more_rows, more_cols, 4])?;
        let order = reader.byte()?;
        let order = ColOrder::from_byte(order)
            .ok_or_else(|| reader.fail(format!("column order {order}")))?;
        let half = match reader.byte()? {
            0 => Half::Bf16,
            1 => Half::F16,
            other => return Err(reader.fail(format!("value type {other}"))),
        };
        let [value_words, metadata_words] = lengths(rows, cols);
        let weight = Self {
            rows,
            cols,
            half,
            order,
            values: reader.words(value_words)?,
            metadata: reader.words(metadata_words)?,
        };
        reader.end()?;
        weight.validate()?;
        Ok(weight)
    }
}

fn tiles(rows: usize, cols: usize) -> [usize; 2] {
    [rows.div_ceil(TILE_ROWS), cols.div_ceil(2 * TILE_COLS) * 2]
}

/// Words of values and of metadata.
fn lengths(rows: usize, cols: usize) -> [usize; 2] {
    let [row_blocks, tiles] = tiles(rows, cols);
    [
        row_blocks * tiles * LANES * REGISTERS,
        row_blocks * (tiles / 2) * LANES,
    ]
}

/// Where the pair of one row's chunk of four columns lies.
struct Place {
    /// Word of `values`; the lower column's value in the lower half.
    value: usize,
    /// Word of `metadata`.
    metadata: usize,
    /// The chunk's four bits in that word.
    shift: usize,
}

impl Place {
    fn of(row: usize, chunk: usize, cols: usize) -> Self {
        let [_, tiles] = tiles(0, cols);
        let (row_block, row) = (row / TILE_ROWS, row % TILE_ROWS);
        let (tile, chunk) = (chunk / 8, chunk % 8);
        // A tile is 2 x 2 quadrants of 8 rows and 4 chunks: a quadrant is one register, a chunk in it one lane.
        let (lower, right) = (row / 8, chunk / 4);
        let quad = row % 8 * 4;
        let value_lane = (row_block * tiles + tile) * LANES + quad + chunk % 4;
        let metadata_lane = quad + tile % 2 * 2 + right;
        Self {
            value: value_lane * REGISTERS + right * 2 + lower,
            metadata: (row_block * (tiles / 2) + tile / 2) * LANES + metadata_lane,
            shift: lower * 16 + chunk % 4 * 4,
        }
    }
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
    use crate::nm_mask;
    use crate::reference::sparse_mma::{LANES, m16n8k32};
    use crate::reference::values;

    /// A random matrix with 0 to 2 of 4, in small integers so that products are exact.
    fn layer(seed: u64, rows: usize, cols: usize) -> (Vec<f32>, BitMask) {
        let random = values(seed, 2 * rows * cols);
        let mask = nm_mask(&random[..rows * cols], &[rows, cols], 2, 4).unwrap();
        let weights: Vec<f32> = random.iter().map(|v| (v * 9.0).round()).collect();
        let thin = seed.is_multiple_of(3);
        let mask = BitMask::from_fn(rows, cols, |i| {
            mask.get(i / cols, i % cols) && (!thin || random[rows * cols + i] > 0.0)
        });
        (weights[..rows * cols].to_vec(), mask)
    }

    /// `[rows, 8]` = W times `b [cols, 8]` through the emulated instruction, accumulating over tiles.
    fn product(weight: &Nm24Hw, b: &dyn Fn(usize, usize) -> f32) -> Vec<f64> {
        let half = weight.half();
        let [row_blocks, tiles] = weight.tiles();
        let mut d = vec![0.0; row_blocks * 16 * 8];
        for row_block in 0..row_blocks {
            let mut c = [[0.0f32; 4]; LANES];
            for tile in 0..tiles {
                // B's fragments as a kernel loads them: lane l holds column l / 4, rows 2 (l % 4) + {0, 1} + 8 i.
                let fragments = std::array::from_fn(|lane| {
                    std::array::from_fn(|i| {
                        let row = tile * 32 + lane % 4 * 2 + 8 * i;
                        let at = |row| u32::from(half.encode(b(row, lane / 4)));
                        at(row) | at(row + 1) << 16
                    })
                });
                let (a, metadata, selector) = weight.operands(row_block, tile);
                // Only the selected lanes' words may matter.
                let metadata = std::array::from_fn(|lane| {
                    if lane % 4 / 2 == selector {
                        metadata[lane]
                    } else {
                        0
                    }
                });
                c = m16n8k32(half, &a, &fragments, &c, &metadata, selector)
                    .map(|lane| lane.map(|v| v as f32));
            }
            for (lane, c) in c.iter().enumerate() {
                for (i, &c) in c.iter().enumerate() {
                    let row = row_block * 16 + lane / 4 + 8 * (i / 2);
                    d[row * 8 + lane % 4 * 2 + i % 2] = f64::from(c);
                }
            }
        }
        d.truncate(weight.rows() * 8);
        d
    }

    #[test]
    fn packing_and_instruction_give_the_dense_product() {
        let mut tiles = 0;
        const LAYERS: u64 = 1200;
        for seed in 0..LAYERS {
            let (rows, cols) = (1 + (seed * 7 % 40) as usize, 4 * (seed * 5 % 34) as usize);
            let (mut weights, mask) = layer(seed, rows, cols);
            let half = if seed % 2 == 0 { Half::Bf16 } else { Half::F16 };
            let packed = Nm24Hw::from_dense(&weights, &mask, half, ColOrder::Ohwi).unwrap();
            packed.validate().unwrap();
            mask.apply(&mut weights).unwrap();
            assert_eq!(packed.to_dense(), weights, "seed {seed}");
            let b: Vec<f32> = values(seed + 7, cols * 8)
                .iter()
                .map(|v| (v * 9.0).round())
                .collect();
            let got = product(&packed, &|row, col| {
                if row < cols { b[row * 8 + col] } else { 0.0 }
            });
            let exact = crate::reference::matmul(&weights, &b, [rows, cols, 8]).value;
            assert_eq!(got, exact, "seed {seed}, {rows} x {cols}");
            tiles += packed.tiles().iter().product::<usize>();
        }
        assert!(tiles > 1000);
        println!(
            "2:4 packer and emulated instruction agree on {LAYERS} random layers, {tiles} tiles"
        );
    }

    #[test]
    fn times_the_identity_is_the_matrix() {
        for seed in 0..40 {
            let (rows, cols) = (16 + (seed % 9) as usize, 64 + 4 * (seed % 7) as usize);
            let (mut weights, mask) = layer(seed, rows, cols);
            let packed = Nm24Hw::from_dense(&weights, &mask, Half::F16, ColOrder::Ohwi).unwrap();
            mask.apply(&mut weights).unwrap();
            for first in (0..cols).step_by(8) {
                let got = product(&packed, &|row, col| f32::from(u8::from(row == first + col)));
                for row in 0..rows {
                    for col in (first..cols).take(8) {
                        let expected = f64::from(weights[row * cols + col]);
                        assert_eq!(got[row * 8 + col - first], expected);
                    }
                }
            }
        }
    }

    #[test]
    fn empty_layers_and_sizes() {
        for (rows, cols) in [(0, 0), (0, 8), (3, 0)] {
            let mask = BitMask::full(rows, cols);
            let packed = Nm24Hw::from_dense(&[], &mask, Half::Bf16, ColOrder::Ohwi).unwrap();
            packed.validate().unwrap();
            assert!(packed.to_dense().is_empty());
            assert_eq!(Nm24Hw::from_bytes(&packed.to_bytes()).unwrap(), packed);
        }
        let (weights, mask) = layer(1, 32, 128);
        let packed = Nm24Hw::from_dense(&weights, &mask, Half::Bf16, ColOrder::Ohwi).unwrap();
        assert_eq!(packed.bytes_per_weight(), 1.125);
        let other = Nm::from_dense(
            &[0.0; 8],
            &BitMask::from_fn(1, 8, |_| false),
            [1, 4],
            ColOrder::Ohwi,
        );
        assert!(Nm24Hw::from_nm(&other.unwrap(), Half::Bf16).is_err());
    }

    #[test]
    fn broken_words_are_refused() {
        let (weights, mask) = layer(5, 3, 8);
        let good = Nm24Hw::from_dense(&weights, &mask, Half::F16, ColOrder::Oihw).unwrap();
        // 0b0110 says index 2, then 1.
        for (bits, shift) in [(0b0000, 0), (0b1111, 28), (0b0110, 8)].map(|(b, s)| (b << s, s)) {
            let mut weight = good.clone();
            weight.metadata[9] = weight.metadata[9] & !(15 << shift) | bits;
            assert!(weight.validate().is_err(), "{bits:#x}");
        }
        let mut weight = good.clone();
        *weight.values.last_mut().unwrap() = 1;
        assert!(weight.validate().is_err());
    }

    #[test]
    fn foreign_bytes_never_panic() {
        let (weights, mask) = layer(5, 3, 8);
        let packed = Nm24Hw::from_dense(&weights, &mask, Half::F16, ColOrder::Oihw).unwrap();
        let bytes = packed.to_bytes();
        assert_eq!(Nm24Hw::from_bytes(&bytes).unwrap(), packed);
        let mut refused = 0;
        for bytes in damaged(&bytes) {
            match Nm24Hw::from_bytes(&bytes) {
                Ok(packed) => packed.validate().unwrap(),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > bytes.len());
    }
}

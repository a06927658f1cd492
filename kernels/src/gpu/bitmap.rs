//! Unstructured weights on a device: 64 x 64 tiles of one bit per weight and the kept values, and their product.
//!
//! "Load sparse, compute dense": a tile is expanded into shared memory, then it is an ordinary tile of a product. Memory
//! traffic of weights falls with their density, arithmetic does not; it pays where weights dominate, at few positions.

use cubecl::client::Client;
use cubecl::prelude::*;

use super::buffer::{Buffer, UNITS, folded, units};
use super::compensated::exclusive_sum;
use super::dense_tile::{DEPTH, SIDE, load_positions, multiply, store_rows, zeros};
use crate::error::expect_len;
use crate::{BitMask, KernelError};

/// Words of a tile: two per row.
const WORDS: usize = 2 * SIDE;
/// Columns that a unit expands: a quarter of a row.
const SPAN: usize = 16;

/// A weight in tiles, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct BitmapTiles {
    rows: usize,
    cols: usize,
    /// `[tiles, 64 rows, 2]`; tiles row by row, rows and columns beyond the weight 0.
    words: Vec<u32>,
    /// Kept values, tile by tile and within one row by row.
    values: Vec<f32>,
    /// Where each tile's values begin, and the end of the last.
    starts: Vec<u32>,
}

impl BitmapTiles {
    /// Gathers what the mask keeps; what it prunes is never read.
    ///
    /// # Shapes
    /// `weights`: `[rows, cols]` as the mask.
    pub fn from_dense(weights: &[f32], mask: &BitMask) -> Result<Self, KernelError> {
        expect_len("weights", mask.len(), weights.len())?;
        let (rows, cols) = (mask.rows(), mask.cols());
        if u32::try_from(mask.nnz()).is_err() {
            return Err(KernelError::Format {
                format: "bitmap weight",
                why: format!("{} values are over 2^32", mask.nnz()),
            });
        }
        let stride = cols.div_ceil(32);
        let (mut words, mut values, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        for first_row in (0..rows).step_by(SIDE) {
            for first_col in (0..cols).step_by(SIDE) {
                for row in first_row..first_row + SIDE {
                    for word in [first_col / 32, first_col / 32 + 1] {
                        let inside = row < rows && word < stride;
                        let bits = if inside {
                            mask.words()[row * stride + word]
                        } else {
                            0
                        };
                        words.push(bits);
                        let kept = (0..32).filter(|bit| bits >> bit & 1 == 1);
                        values.extend(kept.map(|bit| weights[row * cols + word * 32 + bit]));
                    }
                }
                starts.push(values.len() as u32);
            }
        }
        Ok(Self {
            rows,
            cols,
            words,
            values,
            starts,
        })
    }

    /// The matrix, pruned weights +0.
    pub fn to_dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.rows * self.cols];
        let mut values = self.values.iter();
        let across = self.cols.div_ceil(SIDE);
        for (at, &bits) in self.words.iter().enumerate() {
            let (tile, row, half) = (at / WORDS, at % WORDS / 2, at % 2);
            let first = (tile / across * SIDE + row) * self.cols + tile % across * SIDE + half * 32;
            for bit in (0..32).filter(|bit| bits >> bit & 1 == 1) {
                dense[first + bit] = *values.next().unwrap_or(&0.0);
            }
        }
        dense
    }

    /// Bytes of bits, values and starts over the weights covered; NaN for no weights.
    pub fn bytes_per_weight(&self) -> f64 {
        let words = self.words.len() + self.values.len() + self.starts.len();
        4.0 * words as f64 / (self.rows as f64 * self.cols as f64)
    }

    /// A copy on a device.
    pub fn upload(&self, client: &Client) -> Result<BitmapWeight, KernelError> {
        Ok(BitmapWeight {
            rows: self.rows,
            cols: self.cols,
            words: Buffer::of_u32(client, &self.words)?,
            values: Buffer::of_f32(client, &self.values)?,
            starts: Buffer::of_u32(client, &self.starts)?,
        })
    }
}

/// A weight in tiles, on a device.
#[derive(Clone)]
pub struct BitmapWeight {
    rows: usize,
    cols: usize,
    words: Buffer,
    values: Buffer,
    starts: Buffer,
}

/// `y = x w^T + bias`.
///
/// # Shapes
/// `x`: f32 `[positions, cols]`; `bias`: `[rows]`; the result: `[positions, rows]`.
pub fn linear(
    client: &Client,
    x: &Buffer,
    positions: usize,
    w: &BitmapWeight,
    bias: Option<&Buffer>,
) -> Result<Buffer, KernelError> {
    expect_len("x", positions.saturating_mul(w.cols), x.len())?;
    if let Some(bias) = bias {
        expect_len("bias", w.rows, bias.len())?;
    }
    let biased = bias.is_some();
    // Without a bias any memory will do; it is not read.
    let bias = bias
        .cloned()
        .map_or_else(|| Buffer::uninit(client, 1), Ok)?;
    let y = Buffer::uninit(client, positions.saturating_mul(w.rows))?;
    if !y.is_empty() {
        let tiles = positions.div_ceil(SIDE) * w.rows.div_ceil(SIDE);
        product::launch(
            client,
            folded(tiles),
            units(),
            x.arg(),
            w.words.arg(),
            w.values.arg(),
            w.starts.arg(),
            bias.arg(),
            y.arg(),
            positions as u32,
            w.rows as u32,
            w.cols as u32,
            biased,
        );
    }
    Ok(y)
}

#[cube(launch, create_dummy_kernel)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn product(
    x: &[f32],
    words: &[u32],
    values: &[f32],
    starts: &[u32],
    bias: &[f32],
    y: &mut [f32],
    positions: u32,
    rows: u32,
    cols: u32,
    #[comptime] biased: bool,
) {
    let positions = positions as usize;
    let rows = rows as usize;
    let cols = cols as usize;
    let mut weights = Shared::<[f32]>::new_slice(SIDE * SIDE);
    let mut slice = Shared::<[f32]>::new_slice(DEPTH * SIDE);
    let mut counts = Shared::<[u32]>::new_slice(UNITS);
    let unit = UNIT_POS as usize;
    let down = rows.div_ceil(SIDE);
    let across = cols.div_ceil(SIDE);
    // Cubes beyond the last tile read the last tiles' weights and write nothing.
    let tile_row = CUBE_POS % down;
    let first_position = CUBE_POS / down * SIDE;
    let mut sums = zeros();
    for tile_col in 0..across {
        let tile = tile_row * across + tile_col;
        // A unit expands 16 columns of one row.
        let word = words[tile * WORDS + unit / 2];
        let bits = (word >> u32::cast_from(unit % 2 * SPAN)) & 0xffffu32;
        let mut next = (starts[tile] + exclusive_sum(&mut counts, bits.count_ones())) as usize;
        for bit in 0..SPAN {
            let mut value = 0.0f32;
            if (bits >> u32::cast_from(bit)) & 1u32 == 1u32 {
                value = values[next];
                next += 1;
            }
            weights[(unit % 4 * SPAN + bit) * SIDE + unit / 4] = value;
        }
        for part in 0..SIDE / DEPTH {
            let first_col = tile_col * SIDE + part * DEPTH;
            load_positions(
                x,
                &mut slice,
                first_position,
                positions,
                first_col,
                cols,
                cols,
            );
            sync_cube();
            multiply(&mut sums, &weights, part * DEPTH, &slice);
            sync_cube();
        }
    }
    store_rows(
        y,
        &sums,
        bias,
        first_position,
        positions,
        tile_row * SIDE,
        rows,
        biased,
    );
}

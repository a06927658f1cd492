//! N:M weights on a device, packed as [`Nm`] packs them, and their product: groups are expanded in shared memory.
//!
//! What it saves is the traffic of the weights, at most M / N of it; the arithmetic is that of the dense product.

use cubecl::client::Client;
use cubecl::prelude::*;

use super::buffer::{Buffer, UNITS, folded, units};
use super::dense_tile::{DEPTH, SIDE, load_positions, multiply, store_rows, zeros};
use crate::error::expect_len;
use crate::{KernelError, Nm};

/// Units that share a row's groups.
const SHARES: usize = UNITS / SIDE;

/// A packed N:M weight on a device.
#[derive(Clone)]
pub struct NmWeight {
    rows: usize,
    cols: usize,
    pattern: [usize; 2],
    index_bits: usize,
    values: Buffer,
    indices: Buffer,
}

impl NmWeight {
    /// A copy on a device. Columns stay in the packed weight's order, which the activations' columns must have too.
    pub fn upload(client: &Client, weight: &Nm) -> Result<Self, KernelError> {
        Ok(Self {
            rows: weight.rows(),
            cols: weight.cols(),
            pattern: weight.pattern(),
            index_bits: weight.index_bits(),
            values: Buffer::of_f32(client, weight.values())?,
            indices: Buffer::of_u32(client, weight.index_words())?,
        })
    }
}

/// `y = x w^T + bias`.
///
/// # Shapes
/// `x`: f32 `[positions, cols]`; `bias`: `[rows]`; the result: `[positions, rows]`.
pub fn linear(
    client: &Client,
    x: &Buffer,
    positions: usize,
    w: &NmWeight,
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
        let [n, m] = w.pattern;
        product::launch(
            client,
            folded(tiles),
            units(),
            x.arg(),
            w.values.arg(),
            w.indices.arg(),
            bias.arg(),
            y.arg(),
            positions as u32,
            w.rows as u32,
            w.cols as u32,
            n,
            m,
            w.index_bits as u32,
            biased,
        );
    }
    Ok(y)
}

#[cube(launch, create_dummy_kernel)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn product(
    x: &[f32],
    values: &[f32],
    indices: &[u32],
    bias: &[f32],
    y: &mut [f32],
    positions: u32,
    rows: u32,
    cols: u32,
    #[comptime] n: usize,
    #[comptime] m: usize,
    #[comptime] index_bits: u32,
    #[comptime] biased: bool,
) {
    let positions = positions as usize;
    let rows = rows as usize;
    let cols = cols as usize;
    let mut weights = Shared::<[f32]>::new_slice(SIDE * SIDE);
    let mut slice = Shared::<[f32]>::new_slice(DEPTH * SIDE);
    let unit = UNIT_POS as usize;
    let down = rows.div_ceil(SIDE);
    let tile_row = CUBE_POS % down;
    let first_position = CUBE_POS / down * SIDE;
    // As many whole groups as fit into the tile's columns.
    let groups = comptime!(SIDE / m);
    let all_groups = cols / m;
    let slots = all_groups * n;
    let words = (slots * index_bits as usize).div_ceil(32);
    let row = tile_row * SIDE + unit / SHARES;
    let mut sums = zeros();
    for part in 0..all_groups.div_ceil(groups) {
        // Columns that no group fills, here or beyond the last group.
        for step in 0..comptime!(SIDE / SHARES) {
            weights[(step * SHARES + unit % SHARES) * SIDE + unit / SHARES] = 0.0f32;
        }
        sync_cube();
        for step in 0..comptime!(groups.div_ceil(SHARES)) {
            let local = step * SHARES + unit % SHARES;
            let group = part * groups + local;
            if local < groups && group < all_groups && row < rows {
                for slot in 0..n {
                    let at = group * n + slot;
                    let bit = at * index_bits as usize;
                    let word = row * words + bit / 32;
                    let shift = u32::cast_from(bit % 32);
                    let mut index = indices[word] >> shift;
                    // An index of 3 or 5 bits may straddle two words.
                    if shift + index_bits > 32u32 {
                        index |= indices[word + 1] << (32u32 - shift);
                    }
                    let index = index & comptime!((1u32 << index_bits) - 1);
                    let col = local * m + index as usize;
                    weights[col * SIDE + unit / SHARES] = values[row * slots + at];
                }
            }
        }
        for quarter in 0..SIDE / DEPTH {
            let first_col = quarter * DEPTH;
            // Columns of the next part meet weights of zero here; they are kept out, so that its infinities do not.
            let last = min(part * groups * m + comptime!(groups * m), cols);
            load_positions(
                x,
                &mut slice,
                first_position,
                positions,
                part * groups * m + first_col,
                last,
                cols,
            );
            sync_cube();
            multiply(&mut sums, &weights, first_col, &slice);
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

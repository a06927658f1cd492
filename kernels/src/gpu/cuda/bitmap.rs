//! `Y = W X` for unstructured W and few positions: the weight is loaded sparse and multiplied dense.
//!
//! What limits such a product is reading W, so W stays packed ([`crate::Bitmap`]) all the way into registers: an 8x8
//! block's bits are in the order in which a plane's lanes hold a fragment, so each lane finds its two values by counting
//! the bits before its own. Depth is divided between cubes, each of which writes its own sums; a second kernel adds them
//! in a fixed order.

use cubecl::prelude::*;

use super::ptx::*;
use super::tile::{corner, input_fragments, input_matrix, stage, store};
use super::{Activations, Operand};

/// Output channels, positions and depth of a cube's tile and step: one tile of the format.
pub const TILE: u32 = 64;
/// Units of a cube: 4 planes along the channels.
pub const UNITS: u32 = 128;
/// Steps under way at once: 50 KiB of shared memory.
const STAGES: u32 = 3;
/// Bytes of a tile's masks.
const MASKS: u32 = 64 * 8;
/// Bytes of a full tile's values; a lane whose bit is not set may read one behind them.
const VALUES: u32 = TILE * TILE * 2;

/// One part of a tile's sums; cubes are (position tiles, channel tiles, parts of the depth).
///
/// # Shapes
/// `masks`: `[tiles, 64, 2]`, `tile_ptr`: `[tiles + 1]`, `values`: eight halves a vector, all as [`crate::Bitmap`] has
/// them. `x`: see [`Activations`], one batch entry. `parts`: `[parts, ..]` of what `y` is there.
#[cube(launch_unchecked, create_dummy_kernel)]
#[allow(clippy::too_many_arguments)]
pub fn bitmap_product<E: Numeric, NX: Size>(
    masks: &[Vector<u32, Const<4>>],
    tile_ptr: &[u32],
    values: &[Vector<u32, Const<4>>],
    x: &[Vector<E, NX>],
    parts: &mut [f32],
    rows: u32,
    cols: u32,
    points: u32,
    steps_per_part: u32,
    #[comptime] operand: Operand,
    #[comptime] activations: Activations,
) {
    let x_width = NX::value().comptime();
    let x_tile = comptime!(activations.tile(TILE, TILE, 2));
    let x_bytes = comptime!(x_tile[0] * x_tile[1] * 16);

    let masks_shared = Shared::<[Vector<u32, Const<4>>]>::new_aligned_slice(
        comptime!((STAGES * MASKS / 16) as usize),
        128usize,
    );
    // One chunk more than the last stage needs.
    let values_shared = Shared::<[Vector<u32, Const<4>>]>::new_aligned_slice(
        comptime!((STAGES * VALUES / 16 + 1) as usize),
        128usize,
    );
    let mut x_shared = Shared::<[Vector<E, NX>]>::new_aligned_slice(
        comptime!((STAGES * x_bytes / 2) as usize / x_width),
        128usize,
    );
    let masks_base = shared_address(&masks_shared[..]);
    let values_base = shared_address(&values_shared[..]);
    let x_base = shared_address(&x_shared[..]);

    let first_row = CUBE_POS_Y * TILE;
    let first_point = CUBE_POS_X * TILE;
    let across = cols.div_ceil(TILE);
    let first_step = min(CUBE_POS_Z * steps_per_part, across);
    let steps = min(steps_per_part, across - first_step);
    let x_matrix = input_matrix(0u32.runtime(), cols, points, activations);

    let lane = UNIT_POS % 32;
    let plane = UNIT_POS / 32;

    let mut sums = Array::<Vector<f32, Four>>::new(8usize);
    #[unroll]
    for i in 0..8usize {
        sums[i] = Vector::<f32, Four>::zeroed();
    }

    let mut loaded = 0u32.runtime();
    let mut write_stage = 0u32.runtime();
    let mut read_stage = 0u32.runtime();
    let ahead = comptime!(STAGES - 1);
    for turn in 0..steps + ahead {
        if turn >= ahead {
            wait_copies(comptime!(STAGES - 2));
            sync_cube();
        }
        if loaded < steps {
            let step = first_step + loaded;
            let tile = CUBE_POS_Y * across + step;
            if UNIT_POS < comptime!(MASKS / 16) {
                let from = (tile * comptime!(MASKS / 16) + UNIT_POS) as usize;
                let to = masks_base + write_stage * MASKS + UNIT_POS * 16;
                copy_16(&masks[from..from + 1], to, 16u32);
            }
            let first = tile_ptr[tile as usize] / 8;
            let count = tile_ptr[tile as usize + 1] / 8 - first;
            #[unroll]
            for pass in 0..comptime!(VALUES / 16 / UNITS) {
                let item = UNIT_POS + pass * UNITS;
                if item < count {
                    let from = (first + item) as usize;
                    let to = values_base + write_stage * VALUES + item * 16;
                    copy_16(&values[from..from + 1], to, 16u32);
                }
            }
            let (row, col) = corner(first_point, step * TILE, activations);
            stage::<E, NX>(
                x,
                &x_matrix,
                row,
                col,
                &mut x_shared[..],
                x_base,
                x_base + write_stage * x_bytes,
                x_tile[0],
                x_tile[1],
                false,
                UNITS,
            );
            loaded += 1;
            write_stage = select(write_stage == ahead, 0, write_stage + 1);
        }
        commit_copies();
        if turn >= ahead {
            multiply(
                &mut sums,
                masks_base + read_stage * MASKS,
                values_base + read_stage * VALUES,
                x_base + read_stage * x_bytes,
                plane,
                lane,
                operand,
                activations,
            );
            read_stage = select(read_stage == ahead, 0, read_stage + 1);
        }
    }
    store(
        &sums,
        parts,
        CUBE_POS_Z * rows * points,
        first_row + plane * 16,
        first_point,
        rows,
        points,
        1usize,
        8usize,
        activations,
    );
}

/// Adds one staged tile to a plane's sums, 8 fragments of 16 channels and 8 positions.
#[cube]
#[allow(clippy::too_many_arguments)]
fn multiply(
    sums: &mut Array<Vector<f32, Four>>,
    masks: u32,
    values: u32,
    x_tile: u32,
    plane: u32,
    lane: u32,
    #[comptime] operand: Operand,
    #[comptime] activations: Activations,
) {
    let kind = comptime!(operand.kind());
    let x_shape = comptime!(activations.tile(TILE, TILE, 2));
    // Where each block's values begin: a lane counts two neighbouring blocks.
    let pair = load_words(masks + lane * 16);
    let first_count = pair.extract(0usize).count_ones() + pair.extract(1usize).count_ones();
    let count = first_count + pair.extract(2usize).count_ones() + pair.extract(3usize).count_ones();
    let before = plane_exclusive_sum(count);
    // This lane's two weights of any block: bits 2 lane and the next, in the lower word or the upper one.
    let upper = lane / 16;
    let shift = lane % 16 * 2;
    let below = (1u32 << shift) - 1;

    #[unroll]
    for k in 0..4u32 {
        let mut fragment = Vector::<u32, Four>::zeroed();
        #[unroll]
        for register in 0..4usize {
            let right = comptime!(register as u32 / 2);
            let block = plane * 16 + comptime!(register as u32 % 2 * 8 + k * 2) + right;
            // Both lie in the same lane's pair, the left block first.
            let owner = block / 2;
            let mut start = plane_shuffle(before, owner);
            if comptime!(right == 1) {
                start += plane_shuffle(first_count, owner);
            }
            let low = load_word(masks + block * 8);
            let high = load_word(masks + block * 8 + 4);
            let word = select(upper == 0, low, high);
            let skipped = select(upper == 0, 0, low.count_ones()) + (word & below).count_ones();
            let bits = word >> shift;
            let at = values + (start + skipped) * 2;
            let first = load_half(at) & (0u32 - (bits & 1));
            let second = load_half(at + (bits & 1) * 2) & (0u32 - ((bits >> 1) & 1));
            fragment.insert(register, first | (second << 16));
        }
        #[unroll]
        for side in 0..2usize {
            let inputs = input_fragments(
                x_tile,
                comptime!(side as u32 * 32).runtime(),
                k,
                lane,
                operand,
                activations,
                x_shape,
            );
            #[unroll]
            for j in 0..4usize {
                sums[side * 4 + j] = mma(&fragment, &inputs[j], &sums[side * 4 + j], kind);
            }
        }
    }
}

/// `y = sum of parts`, in their order; one unit per element.
#[cube(launch_unchecked, create_dummy_kernel)]
pub fn add_parts(parts: &[f32], y: &mut [f32], len: u32, count: u32) {
    if ABSOLUTE_POS < len as usize {
        let mut sum = 0.0f32;
        for part in 0..count {
            sum += parts[ABSOLUTE_POS + (part * len) as usize];
        }
        y[ABSOLUTE_POS] = sum;
    }
}

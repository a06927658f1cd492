//! `Y = W X` with W two of four, by the sparse tensor-core instruction: half the multiplications, half the weight.
//!
//! W arrives as [`crate::Nm24Hw`] holds it, so that a plane reads its fragments with one 128-bit load per unit and the
//! metadata of two neighbouring tiles with one word per unit.

use cubecl::prelude::*;

use super::ptx::*;
use super::tile::{corner, input_matrix, place, stage, store};
use super::{Activations, Operand};

/// Output channels and positions of a cube's tile.
pub const TILE: u32 = 128;
/// Weights per row and step, pruned ones counted: the two instructions that share a metadata word.
pub const DEPTH: u32 = 64;
/// Units of a cube: 8 planes, 2 along the channels and 4 along the positions.
pub const UNITS: u32 = 256;
/// Steps under way at once: 75 KiB of shared memory.
const STAGES: u32 = 3;
/// Channels of a plane's part of the tile.
const PLANE_ROWS: u32 = 64;
/// Positions of a plane's part of the tile.
const PLANE_COLS: u32 = 32;
/// Row blocks of a tile, 16 channels each.
const BLOCKS: u32 = TILE / 16;
/// Bytes of a row block's compressed values in one instruction: 32 units, 4 registers.
const FRAGMENT: u32 = 32 * 16;
/// Bytes of a step's compressed values.
const VALUES: u32 = BLOCKS * 2 * FRAGMENT;
/// Bytes of a row block's metadata.
const WORDS: u32 = 32 * 4;
/// Bytes of a step's metadata.
const METADATA: u32 = BLOCKS * WORDS;

/// One tile of the product; cubes are (position tiles, channel tiles, batch).
///
/// # Shapes
/// `values`: `[ceil(rows / 16), tiles, 32, 4]` words and `metadata`: `[ceil(rows / 16), tiles / 2, 32]`, `tiles` twice
/// `ceil(cols / 64)`. `x` and `y`: see [`Activations`].
#[cube(launch_unchecked, create_dummy_kernel)]
#[allow(clippy::too_many_arguments)]
pub fn sparse_product<E: Numeric, NX: Size>(
    values: &[Vector<u32, Const<4>>],
    metadata: &[Vector<u32, Const<4>>],
    x: &[Vector<E, NX>],
    y: &mut [f32],
    rows: u32,
    cols: u32,
    points: u32,
    #[comptime] operand: Operand,
    #[comptime] activations: Activations,
) {
    let x_width = NX::value().comptime();
    let x_tile = comptime!(activations.tile(TILE, DEPTH, 2));
    let x_bytes = comptime!(x_tile[0] * x_tile[1] * 16);

    let values_shared = Shared::<[Vector<u32, Const<4>>]>::new_aligned_slice(
        comptime!((STAGES * VALUES / 16) as usize),
        128usize,
    );
    let metadata_shared = Shared::<[Vector<u32, Const<4>>]>::new_aligned_slice(
        comptime!((STAGES * METADATA / 16) as usize),
        128usize,
    );
    let mut x_shared = Shared::<[Vector<E, NX>]>::new_aligned_slice(
        comptime!((STAGES * x_bytes / 2) as usize / x_width),
        128usize,
    );
    let values_base = shared_address(&values_shared[..]);
    let metadata_base = shared_address(&metadata_shared[..]);
    let x_base = shared_address(&x_shared[..]);

    let first_row = CUBE_POS_Y * TILE;
    let first_point = CUBE_POS_X * TILE;
    let steps = cols.div_ceil(DEPTH);
    let last_block = rows.div_ceil(16) - 1;
    let x_matrix = input_matrix(CUBE_POS_Z, cols, points, activations);

    let lane = UNIT_POS % 32;
    let plane = UNIT_POS / 32;
    let plane_row = plane / 4 * PLANE_ROWS;
    let plane_col = plane % 4 * PLANE_COLS;

    let mut sums = Array::<Vector<f32, Four>>::new(16usize);
    #[unroll]
    for i in 0..16usize {
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
            stage_compressed(
                values,
                metadata,
                values_base + write_stage * VALUES,
                metadata_base + write_stage * METADATA,
                first_row / 16,
                last_block,
                steps,
                loaded,
            );
            let (row, col) = corner(first_point, loaded * DEPTH, activations);
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
                values_base + read_stage * VALUES,
                metadata_base + read_stage * METADATA,
                x_base + read_stage * x_bytes,
                plane_row,
                plane_col,
                lane,
                operand,
                activations,
            );
            read_stage = select(read_stage == ahead, 0, read_stage + 1);
        }
    }
    store(
        &sums,
        y,
        CUBE_POS_Z * rows * points,
        first_row + plane_row,
        first_point + plane_col,
        rows,
        points,
        4usize,
        4usize,
        activations,
    );
}

/// Copies one step of 8 row blocks from `first_block` on, values and metadata.
///
/// Blocks beyond the last repeat it, since its metadata is defined; nobody stores their sums.
#[cube]
#[allow(clippy::too_many_arguments)]
pub fn stage_compressed(
    values: &[Vector<u32, Const<4>>],
    metadata: &[Vector<u32, Const<4>>],
    values_address: u32,
    metadata_address: u32,
    first_block: u32,
    last_block: u32,
    steps: u32,
    step: u32,
) {
    #[unroll]
    for pass in 0..comptime!(VALUES / 16 / UNITS) {
        let item = UNIT_POS + pass * UNITS;
        // A block's two tiles follow one another: 64 chunks.
        let block = min(first_block + item / 64, last_block);
        let from = ((block * steps + step) * 64 + item % 64) as usize;
        copy_16(&values[from..from + 1], values_address + item * 16, 16u32);
    }
    if UNIT_POS < comptime!(METADATA / 16) {
        let block = min(first_block + UNIT_POS / 8, last_block);
        let from = ((block * steps + step) * 8 + UNIT_POS % 8) as usize;
        copy_16(
            &metadata[from..from + 1],
            metadata_address + UNIT_POS * 16,
            16u32,
        );
    }
}

/// Adds one staged step to a plane's sums, `[4, 4]` fragments of 16 channels and 8 positions.
#[cube]
#[allow(clippy::too_many_arguments)]
fn multiply(
    sums: &mut Array<Vector<f32, Four>>,
    values: u32,
    metadata: u32,
    x_tile: u32,
    plane_row: u32,
    plane_col: u32,
    lane: u32,
    #[comptime] operand: Operand,
    #[comptime] activations: Activations,
) {
    let kind = comptime!(operand.kind());
    let chunks = comptime!(activations.tile(TILE, DEPTH, 2)[1]);
    let mut words = Array::<u32>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        let block = plane_row / 16 + comptime!(i as u32);
        words[i] = load_word(metadata + block * WORDS + lane * 4);
    }
    #[unroll]
    for half in 0..2u32 {
        // 32 deep and 8 positions: the four 8x8 matrices of one load.
        let mut inputs = Array::<Vector<u32, Four>>::new(4usize);
        #[unroll]
        for j in 0..4usize {
            let point = plane_col + comptime!(j as u32 * 8);
            inputs[j] = if comptime!(activations == Activations::Tokens) {
                let at = place(
                    point + lane % 8,
                    comptime!(half * 4) + lane / 8,
                    chunks,
                    false,
                );
                load_matrices(x_tile + at, false)
            } else {
                let at = place(comptime!(half * 32) + lane, point / 8, chunks, false);
                load_matrices(x_tile + at, true)
            };
        }
        #[unroll]
        for i in 0..4usize {
            let block = plane_row / 16 + comptime!(i as u32);
            let fragment = load_words(values + (block * 2 + half) * FRAGMENT + lane * 16);
            #[unroll]
            for j in 0..4usize {
                sums[i * 4 + j] = mma_sparse(
                    &fragment,
                    &inputs[j],
                    &sums[i * 4 + j],
                    &words[i],
                    half,
                    kind,
                );
            }
        }
    }
}

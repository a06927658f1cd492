//! `Y = (W ⊙ M) X` on tensor cores, with W dense in memory and its mask beside it.
//!
//! W is staged as it is; the mask is applied in registers, between loading a fragment and multiplying it, so a pruned
//! weight's stored value, NaN included, never meets an input and no masked copy of W exists.

use cubecl::prelude::*;

use super::ptx::*;
use super::tile::{Matrix, corner, input_fragments, input_matrix, place, stage, store};
use super::{Activations, Operand};

/// Output channels and positions of a cube's tile.
pub const TILE: u32 = 128;
/// Weights per row and step: one mask word.
pub const DEPTH: u32 = 32;
/// Units of a cube: 8 planes, 2 along the channels and 4 along the positions.
pub const UNITS: u32 = 256;
/// Channels of a plane's part of the tile.
const PLANE_ROWS: u32 = 64;
/// Positions of a plane's part of the tile.
const PLANE_COLS: u32 = 32;

/// One tile of the product; cubes are (position tiles, channel tiles, batch).
///
/// # Shapes
/// `weight`: `[rows, cols]`. `mask`: `[rows, ceil(cols / 32)]` words. `x` and `y`: see [`Activations`].
#[cube(launch_unchecked, create_dummy_kernel)]
#[allow(clippy::too_many_arguments)]
pub fn masked_product<E: Numeric, NW: Size, NX: Size>(
    weight: &[Vector<E, NW>],
    mask: &[u32],
    x: &[Vector<E, NX>],
    y: &mut [f32],
    rows: u32,
    cols: u32,
    points: u32,
    #[comptime] operand: Operand,
    #[comptime] activations: Activations,
) {
    let x_width = NX::value().comptime();
    let w_width = NW::value().comptime();
    let size = comptime!(operand.bytes());
    let stages = comptime!(operand.masked_stages());
    let pairs = comptime!(activations.words(operand));
    let w_chunks = comptime!(DEPTH * size / 16);
    let w_bytes = comptime!(TILE * w_chunks * 16);
    let x_tile = comptime!(activations.tile(TILE, DEPTH, size));
    let x_bytes = comptime!(x_tile[0] * x_tile[1] * 16);
    let mask_bytes = comptime!(TILE * 4);

    let mut w_shared = Shared::<[Vector<E, NW>]>::new_aligned_slice(
        comptime!((stages * w_bytes / size) as usize / w_width),
        128usize,
    );
    let mut x_shared = Shared::<[Vector<E, NX>]>::new_aligned_slice(
        comptime!((stages * x_bytes / size) as usize / x_width),
        128usize,
    );
    let mask_shared =
        Shared::<[u32]>::new_aligned_slice(comptime!((stages * TILE) as usize), 128usize);
    let w_base = shared_address(&w_shared[..]);
    let x_base = shared_address(&x_shared[..]);
    let mask_base = shared_address(&mask_shared[..]);

    let first_row = CUBE_POS_Y * TILE;
    let first_point = CUBE_POS_X * TILE;
    let steps = cols.div_ceil(DEPTH);
    let w_matrix = Matrix {
        offset: 0u32.runtime(),
        rows,
        cols,
    };
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
    // One turn of the loop before each multiplied step only loads: stages - 1 of them.
    let ahead = comptime!(stages - 1);
    for turn in 0..steps + ahead {
        if turn >= ahead {
            wait_copies(comptime!(stages - 2));
            sync_cube();
        }
        if loaded < steps {
            let depth = loaded * DEPTH;
            stage::<E, NW>(
                weight,
                &w_matrix,
                first_row,
                depth,
                &mut w_shared[..],
                w_base,
                w_base + write_stage * w_bytes,
                TILE,
                w_chunks,
                false,
                UNITS,
            );
            let (row, col) = corner(first_point, depth, activations);
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
                pairs,
                UNITS,
            );
            if UNIT_POS < TILE {
                let row = first_row + UNIT_POS;
                let inside = row < rows;
                let from = select(inside, row * steps + loaded, 0) as usize;
                copy_4(
                    &mask[from..from + 1],
                    mask_base + write_stage * mask_bytes + UNIT_POS * 4,
                    select(inside, 4u32, 0u32),
                );
            }
            loaded += 1;
            write_stage = select(write_stage == ahead, 0, write_stage + 1);
        }
        commit_copies();
        if turn >= ahead {
            multiply(
                &mut sums,
                w_base + read_stage * w_bytes,
                x_base + read_stage * x_bytes,
                mask_base + read_stage * mask_bytes,
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

/// Adds one staged step to a plane's sums, `[4, 4]` fragments of 16 channels and 8 positions.
#[cube]
#[allow(clippy::too_many_arguments)]
fn multiply(
    sums: &mut Array<Vector<f32, Four>>,
    w_tile: u32,
    x_tile: u32,
    mask_tile: u32,
    plane_row: u32,
    plane_col: u32,
    lane: u32,
    #[comptime] operand: Operand,
    #[comptime] activations: Activations,
) {
    let w_chunks = comptime!(DEPTH * operand.bytes() / 16);
    let x_shape = comptime!(activations.tile(TILE, DEPTH, operand.bytes()));
    let kind = comptime!(operand.kind());
    // Words of rows lane / 4 and 8 below it in each of the four fragments.
    let mut words = Array::<u32>::new(8usize);
    #[unroll]
    for i in 0..8usize {
        let row = plane_row + comptime!(i as u32 * 8) + lane / 4;
        words[i] = load_word(mask_tile + row * 4);
    }
    // A fragment is two chunks deep, of either size of element.
    #[unroll]
    for k in 0..comptime!(w_chunks / 2) {
        let inputs = input_fragments(x_tile, plane_col, k, lane, operand, activations, x_shape);
        #[unroll]
        for i in 0..4usize {
            let row = plane_row + comptime!(i as u32 * 16) + lane % 16;
            let chunk = comptime!(k * 2) + lane / 16;
            let fragment = load_matrices(w_tile + place(row, chunk, w_chunks, false), false);
            let fragment = masked(fragment, words[i * 2], words[i * 2 + 1], k, lane, operand);
            #[unroll]
            for j in 0..4usize {
                sums[i * 4 + j] = mma(&fragment, &inputs[j], &sums[i * 4 + j], kind);
            }
        }
    }
}

/// The fragment with zeros where the mask has them: registers 0 and 2 are of the row whose word is `upper`, 1 and 3 of
/// the row with `lower`; 2 and 3 are of the chunk behind.
#[cube]
pub fn masked(
    fragment: Vector<u32, Four>,
    upper: u32,
    lower: u32,
    #[comptime] k: u32,
    lane: u32,
    #[comptime] operand: Operand,
) -> Vector<u32, Four> {
    let mut out = Vector::<u32, Four>::zeroed();
    #[unroll]
    for register in 0..4usize {
        let word = if comptime!(register % 2 == 0) {
            upper
        } else {
            lower
        };
        let chunk = comptime!(k * 2 + register as u32 / 2);
        let value = fragment.extract(register);
        if comptime!(operand == Operand::Tf32) {
            let bit = (word >> (comptime!(chunk * 4) + lane % 4)) & 1;
            out.insert(register, round_tf32(value & (0u32 - bit)));
        } else {
            // Bits 0 and 1 to bits 0 and 16, and each spread over its half.
            let bits = (word >> (comptime!(chunk * 8) + lane % 4 * 2)) & 3;
            let halves = ((bits | (bits << 15)) & 0x0001_0001) * 0xffff;
            out.insert(register, value & halves);
        }
    }
    out
}

//! Tiles of 16-byte chunks in shared memory: where a chunk lies, and how a tile gets there.

use cubecl::prelude::*;

use super::ptx::*;
use super::{Activations, Operand};

/// Bytes of a chunk: one asynchronous copy, one row of an 8x8 matrix.
pub const CHUNK: u32 = 16;

/// Byte offset of chunk `chunk` of row `row` in a tile of `chunks` chunks per row.
///
/// Chunks change places within their row so that the eight rows of an 8x8 matrix lie in eight different quarters of the
/// 32 banks. `pairs` keeps neighbouring chunks together instead, for reading single words of four rows at once.
#[cube]
pub fn place(row: u32, chunk: u32, #[comptime] chunks: u32, #[comptime] pairs: bool) -> u32 {
    let turn = if comptime!(pairs) {
        (row & 3) * 2
    } else if comptime!(chunks == 4) {
        // Two rows fill the banks: the row's parity tells them apart already.
        (row >> 1) & 3
    } else {
        row & 7
    };
    (row * chunks + (chunk ^ turn)) * CHUNK
}

/// A row-major matrix in global memory.
#[derive(CubeType)]
pub struct Matrix {
    /// Its first element's index in the buffer.
    pub offset: u32,
    /// Rows.
    pub rows: u32,
    /// Columns, which follow one another in memory.
    pub cols: u32,
}

/// Copies the tile of `tile_rows` rows and `chunks` chunks from (`row`, `col`) of a matrix to `address` and on; zeros
/// where the matrix ends. `shared` begins at `base`.
///
/// Vectors of a whole chunk are copied asynchronously; the matrix' columns are a multiple of the chunk then. Single
/// elements go through registers.
#[cube]
#[allow(clippy::too_many_arguments)]
pub fn stage<E: Numeric, N: Size>(
    source: &[Vector<E, N>],
    matrix: &Matrix,
    row: u32,
    col: u32,
    shared: &mut [Vector<E, N>],
    base: u32,
    address: u32,
    #[comptime] tile_rows: u32,
    #[comptime] chunks: u32,
    #[comptime] pairs: bool,
    #[comptime] units: u32,
) {
    let size = E::size().comptime() as u32;
    let width = N::value().comptime() as u32;
    let per_chunk = comptime!(CHUNK / size);
    #[unroll]
    for pass in 0..comptime!(tile_rows * chunks / units) {
        let item = UNIT_POS + pass * units;
        let tile_row = item / chunks;
        let chunk = item % chunks;
        let to = address + place(tile_row, chunk, chunks, pairs);
        let (from_row, from_col) = (row + tile_row, col + chunk * per_chunk);
        let first = matrix.offset + from_row * matrix.cols + from_col;
        let inside = from_row < matrix.rows && from_col < matrix.cols;
        if comptime!(width == per_chunk) {
            let from = select(inside, first / per_chunk, 0) as usize;
            copy_16(&source[from..from + 1], to, select(inside, CHUNK, 0));
        } else {
            let to = ((to - base) / size) as usize;
            #[unroll]
            for element in 0..per_chunk {
                let inside = from_row < matrix.rows && from_col + element < matrix.cols;
                let mut value = Vector::<E, N>::zeroed();
                if inside {
                    value = source[(first + element) as usize];
                }
                shared[to + element as usize] = value;
            }
        }
    }
}

/// The input `[points, cols]` or `[cols, points]` of a batch entry.
#[cube]
pub fn input_matrix(
    entry: u32,
    cols: u32,
    points: u32,
    #[comptime] activations: Activations,
) -> Matrix {
    let offset = entry * points * cols;
    if comptime!(activations == Activations::Tokens) {
        Matrix {
            offset,
            rows: points,
            cols,
        }
    } else {
        Matrix {
            offset,
            rows: cols,
            cols: points,
        }
    }
}

/// Row and column in the input of a position and a weight column.
#[cube]
pub fn corner(point: u32, depth: u32, #[comptime] activations: Activations) -> (u32, u32) {
    if comptime!(activations == Activations::Tokens) {
        (point, depth)
    } else {
        (depth, point)
    }
}

/// B fragments of 32 positions from `col`, at pair of chunks `k` of the depth: two registers for each of four times eight
/// positions.
#[cube]
pub fn input_fragments(
    tile: u32,
    col: u32,
    #[comptime] k: u32,
    lane: u32,
    #[comptime] operand: Operand,
    #[comptime] activations: Activations,
    #[comptime] shape: [u32; 2],
) -> Array<Vector<u32, Two>> {
    let chunks = comptime!(shape[1]);
    let mut out = Array::<Vector<u32, Two>>::new(4usize);
    if comptime!(activations.words(operand)) {
        // Words cannot be transposed on their way: lane l reads depth l % 4 and 4 below it of position l / 4.
        #[unroll]
        for j in 0..4usize {
            let point = col + comptime!(j as u32 * 8) + lane / 4;
            let mut pair = Vector::<u32, Two>::zeroed();
            #[unroll]
            for half in 0..2usize {
                let row = comptime!(k * 8 + half as u32 * 4) + lane % 4;
                let at = place(row, point / 4, chunks, true) + point % 4 * 4;
                pair.insert(half, load_word(tile + at));
            }
            out[j] = pair;
        }
    } else {
        #[unroll]
        for two in 0..2usize {
            let point = col + comptime!(two as u32 * 16);
            let four = if comptime!(activations == Activations::Tokens) {
                // Rows are positions: 8 and the next 8, each with the chunk of the depth and the one behind it.
                let row = point + lane / 16 * 8 + lane % 8;
                let chunk = comptime!(k * 2) + lane / 8 % 2;
                load_matrices(tile + place(row, chunk, chunks, false), false)
            } else {
                // Rows are the depth, 16 of it; chunks are 8 positions.
                let row = comptime!(k * 16) + lane % 16;
                let chunk = point / 8 + lane / 16;
                load_matrices(tile + place(row, chunk, chunks, false), true)
            };
            #[unroll]
            for one in 0..2usize {
                let mut pair = Vector::<u32, Two>::zeroed();
                pair.insert(0usize, four.extract(one * 2));
                pair.insert(1usize, four.extract(one * 2 + 1));
                out[two * 2 + one] = pair;
            }
        }
    }
    if comptime!(operand == Operand::Tf32) {
        #[unroll]
        for j in 0..4usize {
            let mut pair = Vector::<u32, Two>::zeroed();
            pair.insert(0usize, round_tf32(out[j].extract(0usize)));
            pair.insert(1usize, round_tf32(out[j].extract(1usize)));
            out[j] = pair;
        }
    }
    out
}

/// Writes a plane's sums, `[down, across]` fragments of 16 channels and 8 positions, to the matrix that begins at `offset`
/// of `y`, from (`row`, `point`) on; what lies outside is dropped.
#[cube]
#[allow(clippy::too_many_arguments)]
pub fn store(
    sums: &Array<Vector<f32, Four>>,
    y: &mut [f32],
    offset: u32,
    row: u32,
    point: u32,
    rows: u32,
    points: u32,
    #[comptime] down: usize,
    #[comptime] across: usize,
    #[comptime] activations: Activations,
) {
    let lane = UNIT_POS % 32;
    #[unroll]
    for i in 0..down {
        #[unroll]
        for j in 0..across {
            #[unroll]
            for c in 0..4usize {
                let row = row + comptime!((i * 16 + c / 2 * 8) as u32) + lane / 4;
                let point = point + comptime!((j * 8 + c % 2) as u32) + lane % 4 * 2;
                if row < rows && point < points {
                    let at = if comptime!(activations == Activations::Tokens) {
                        point * rows + row
                    } else {
                        row * points + point
                    };
                    y[(offset + at) as usize] = sums[i * across + j].extract(c);
                }
            }
        }
    }
}

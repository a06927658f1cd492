//! The masked and the two-of-four product on the warpgroup instruction of compute capability 9.0: W from registers, X from
//! shared memory.
//!
//! Four planes multiply 64 channels by 128 positions at once. X lies in shared memory in the 128-byte swizzle that the
//! instruction expects, which is the order of [`super::tile::place`] with eight chunks per row, so the same copies serve.
//! Each step's sums start from zero and are added to the running ones outside the instruction.

use cubecl::prelude::*;

use super::masked::masked;
use super::ptx::*;
use super::sparse24::stage_compressed;
use super::tile::{Matrix, input_matrix, place, stage};
use super::{Activations, Operand};

/// Output channels and positions of a cube's tile.
pub const TILE: u32 = 128;
/// Weights per row and step: 128 bytes of a row of X.
pub const DEPTH: u32 = 64;
/// Units of a cube: two groups of four planes, 64 channels each.
pub const UNITS: u32 = 256;
/// Steps under way at once.
const STAGES: u32 = 4;
/// Chunks per row of the tiles of X and W.
const CHUNKS: u32 = DEPTH * 2 / 16;
/// Bytes of a tile of X, or of W.
const BYTES: u32 = TILE * CHUNKS * 16;
/// Bytes of a step's mask: two words per row.
const MASK: u32 = TILE * 8;
/// Row blocks of a tile, 16 channels each.
const BLOCKS: u32 = TILE / 16;
/// Bytes of a step's compressed values, and of its metadata.
const VALUES: u32 = BLOCKS * 2 * 32 * 16;
const METADATA: u32 = BLOCKS * 32 * 4;

/// What describes a tile of X to the instruction: its address and, between groups of eight rows, 1024 bytes; 128-byte
/// swizzle. Sizes count 16 bytes. The other distance has no meaning in this swizzle.
#[cube]
fn descriptor(address: u32) -> u64 {
    let fixed = comptime!((1u64 << 62) | ((1024u64 / 16) << 32) | (1u64 << 16));
    u64::cast_from((address & 0x3_ffff) >> 4) | fixed
}

/// Makes what this unit's copies wrote visible to the instruction's own way into shared memory.
#[cube]
fn publish() {
    gpu_asm!("fence.proxy.async.shared::cta;");
}

/// `A B` of a step, 64 deep: A's four fragments are this unit's, B is described. All units of the group take part.
#[cube]
fn multiply_step(
    a: &Array<Vector<u32, Four>>,
    b: u64,
    #[comptime] kind: &'static str,
) -> Vector<f32, Const<64>> {
    let (a0, a1, a2, a3) = (a[0], a[1], a[2], a[3]);
    let out: Vector<f32, Const<64>>;
    gpu_asm!(
        "{{ .reg .b64 b1, b2, b3;",
        "add.s64 b1, {b}, 2; add.s64 b2, {b}, 4; add.s64 b3, {b}, 6;",
        "wgmma.fence.sync.aligned;",
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind} {out}, {a0}, {b}, 0, 1, 1, 0;",
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind} {out}, {a1}, b1, 1, 1, 1, 0;",
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind} {out}, {a2}, b2, 1, 1, 1, 0;",
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind} {out}, {a3}, b3, 1, 1, 1, 0;",
        "wgmma.commit_group.sync.aligned;",
        "wgmma.wait_group.sync.aligned 0; }}",
        kind = const kind, out = out(_) out,
        a0 = in(_) a0, a1 = in(_) a1, a2 = in(_) a2, a3 = in(_) a3, b = in(_) b,
        options(readonly),
    );
    out
}

/// As [`multiply_step`] with A two of four: two fragments, 32 deep each, that share a metadata word.
#[cube]
fn multiply_sparse_step(
    a: &Array<Vector<u32, Four>>,
    metadata: &u32,
    b: u64,
    #[comptime] kind: &'static str,
) -> Vector<f32, Const<64>> {
    let (a0, a1, metadata) = (a[0], a[1], *metadata);
    let out: Vector<f32, Const<64>>;
    gpu_asm!(
        "{{ .reg .b64 b1; add.s64 b1, {b}, 4;",
        "wgmma.fence.sync.aligned;",
        "wgmma.mma_async.sp.sync.aligned.m64n128k32.f32.{kind}.{kind} {out}, {a0}, {b}, {e}, 0, 0, 1, 1, 0;",
        "wgmma.mma_async.sp.sync.aligned.m64n128k32.f32.{kind}.{kind} {out}, {a1}, b1, {e}, 1, 1, 1, 1, 0;",
        "wgmma.commit_group.sync.aligned;",
        "wgmma.wait_group.sync.aligned 0; }}",
        kind = const kind, out = out(_) out,
        a0 = in(_) a0, a1 = in(_) a1, e = in(_) metadata, b = in(_) b,
        options(readonly),
    );
    out
}

/// Writes a unit's 64 sums of its plane's 16 channels from `row` on and 128 positions from `point` on.
#[cube]
fn store_sums(
    sums: Vector<f32, Const<64>>,
    y: &mut [f32],
    row: u32,
    point: u32,
    rows: u32,
    points: u32,
) {
    let lane = UNIT_POS % 32;
    #[unroll]
    for i in 0..64usize {
        let row = row + comptime!((i % 4 / 2 * 8) as u32) + lane / 4;
        let point = point + comptime!((i / 4 * 8 + i % 2) as u32) + lane % 4 * 2;
        if row < rows && point < points {
            y[(point * rows + row) as usize] = sums.extract(i);
        }
    }
}

/// [`super::masked::masked_product`] on the warpgroup instruction; `x [positions, cols]` and `y [positions, rows]` alone.
#[cube(launch_unchecked, create_dummy_kernel)]
#[allow(clippy::too_many_arguments)]
pub fn masked_warpgroup<E: Numeric, N: Size>(
    weight: &[Vector<E, N>],
    mask: &[u32],
    x: &[Vector<E, N>],
    y: &mut [f32],
    rows: u32,
    cols: u32,
    points: u32,
    #[comptime] operand: Operand,
) {
    let width = N::value().comptime();
    let kind = comptime!(operand.kind());
    let mut w_shared = Shared::<[Vector<E, N>]>::new_aligned_slice(
        comptime!((STAGES * BYTES / 2) as usize / width),
        1024usize,
    );
    let mut x_shared = Shared::<[Vector<E, N>]>::new_aligned_slice(
        comptime!((STAGES * BYTES / 2) as usize / width),
        1024usize,
    );
    let mask_shared =
        Shared::<[u32]>::new_aligned_slice(comptime!((STAGES * MASK / 4) as usize), 128usize);
    let w_base = shared_address(&w_shared[..]);
    let x_base = shared_address(&x_shared[..]);
    let mask_base = shared_address(&mask_shared[..]);

    let first_row = CUBE_POS_Y * TILE;
    let first_point = CUBE_POS_X * TILE;
    let steps = cols.div_ceil(DEPTH);
    let words = cols.div_ceil(32);
    let w_matrix = Matrix {
        offset: 0u32.runtime(),
        rows,
        cols,
    };
    let x_matrix = input_matrix(0u32.runtime(), cols, points, Activations::Tokens);
    let lane = UNIT_POS % 32;
    let plane_row = UNIT_POS / 32 * 16;

    let mut sums = Vector::<f32, Const<64>>::zeroed();
    let mut loaded = 0u32.runtime();
    let mut write_stage = 0u32.runtime();
    let mut read_stage = 0u32.runtime();
    let ahead = comptime!(STAGES - 1);
    for turn in 0..steps + ahead {
        if turn >= ahead {
            wait_copies(comptime!(STAGES - 2));
            publish();
            sync_cube();
        }
        if loaded < steps {
            let depth = loaded * DEPTH;
            stage::<E, N>(
                weight,
                &w_matrix,
                first_row,
                depth,
                &mut w_shared[..],
                w_base,
                w_base + write_stage * BYTES,
                TILE,
                CHUNKS,
                false,
                UNITS,
            );
            stage::<E, N>(
                x,
                &x_matrix,
                first_point,
                depth,
                &mut x_shared[..],
                x_base,
                x_base + write_stage * BYTES,
                TILE,
                CHUNKS,
                false,
                UNITS,
            );
            let row = first_row + UNIT_POS / 2;
            let word = loaded * 2 + UNIT_POS % 2;
            let inside = row < rows && word < words;
            let from = select(inside, row * words + word, 0) as usize;
            let to = mask_base + write_stage * MASK + UNIT_POS * 4;
            copy_4(&mask[from..from + 1], to, select(inside, 4u32, 0u32));
            loaded += 1;
            write_stage = select(write_stage == ahead, 0, write_stage + 1);
        }
        commit_copies();
        if turn >= ahead {
            let w_tile = w_base + read_stage * BYTES;
            let mask_tile = mask_base + read_stage * MASK;
            let mut fragments = Array::<Vector<u32, Four>>::new(4usize);
            #[unroll]
            for k in 0..4usize {
                let row = plane_row + lane / 4;
                let word = comptime!(k as u32 / 2 * 4);
                let upper = load_word(mask_tile + row * 8 + word);
                let lower = load_word(mask_tile + (row + 8) * 8 + word);
                let chunk = comptime!(k as u32 * 2) + lane / 16;
                let at = place(plane_row + lane % 16, chunk, CHUNKS, false);
                let fragment = load_matrices(w_tile + at, false);
                fragments[k] = masked(
                    fragment,
                    upper,
                    lower,
                    comptime!(k as u32 % 2),
                    lane,
                    operand,
                );
            }
            sums += multiply_step(&fragments, descriptor(x_base + read_stage * BYTES), kind);
            read_stage = select(read_stage == ahead, 0, read_stage + 1);
        }
    }
    store_sums(sums, y, first_row + plane_row, first_point, rows, points);
}

/// [`super::sparse24::sparse_product`] on the warpgroup instruction; `x [positions, cols]` and `y [positions, rows]` alone.
#[cube(launch_unchecked, create_dummy_kernel)]
#[allow(clippy::too_many_arguments)]
pub fn sparse_warpgroup<E: Numeric, N: Size>(
    values: &[Vector<u32, Const<4>>],
    metadata: &[Vector<u32, Const<4>>],
    x: &[Vector<E, N>],
    y: &mut [f32],
    rows: u32,
    cols: u32,
    points: u32,
    #[comptime] operand: Operand,
) {
    let width = N::value().comptime();
    let kind = comptime!(operand.kind());
    let mut x_shared = Shared::<[Vector<E, N>]>::new_aligned_slice(
        comptime!((STAGES * BYTES / 2) as usize / width),
        1024usize,
    );
    let values_shared = Shared::<[Vector<u32, Const<4>>]>::new_aligned_slice(
        comptime!((STAGES * VALUES / 16) as usize),
        128usize,
    );
    let metadata_shared = Shared::<[Vector<u32, Const<4>>]>::new_aligned_slice(
        comptime!((STAGES * METADATA / 16) as usize),
        128usize,
    );
    let x_base = shared_address(&x_shared[..]);
    let values_base = shared_address(&values_shared[..]);
    let metadata_base = shared_address(&metadata_shared[..]);

    let first_row = CUBE_POS_Y * TILE;
    let first_point = CUBE_POS_X * TILE;
    let steps = cols.div_ceil(DEPTH);
    let last_block = rows.div_ceil(16) - 1;
    let x_matrix = input_matrix(0u32.runtime(), cols, points, Activations::Tokens);
    let lane = UNIT_POS % 32;
    let plane = UNIT_POS / 32;

    let mut sums = Vector::<f32, Const<64>>::zeroed();
    let mut loaded = 0u32.runtime();
    let mut write_stage = 0u32.runtime();
    let mut read_stage = 0u32.runtime();
    let ahead = comptime!(STAGES - 1);
    for turn in 0..steps + ahead {
        if turn >= ahead {
            wait_copies(comptime!(STAGES - 2));
            publish();
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
            stage::<E, N>(
                x,
                &x_matrix,
                first_point,
                loaded * DEPTH,
                &mut x_shared[..],
                x_base,
                x_base + write_stage * BYTES,
                TILE,
                CHUNKS,
                false,
                UNITS,
            );
            loaded += 1;
            write_stage = select(write_stage == ahead, 0, write_stage + 1);
        }
        commit_copies();
        if turn >= ahead {
            let values_tile = values_base + read_stage * VALUES;
            let word = load_word(metadata_base + read_stage * METADATA + UNIT_POS * 4);
            let mut fragments = Array::<Vector<u32, Four>>::new(2usize);
            #[unroll]
            for k in 0..2usize {
                let at = (plane * 2 + comptime!(k as u32)) * 512 + lane * 16;
                fragments[k] = load_words(values_tile + at);
            }
            let tile = descriptor(x_base + read_stage * BYTES);
            sums += multiply_sparse_step(&fragments, &word, tile, kind);
            read_stage = select(read_stage == ahead, 0, read_stage + 1);
        }
    }
    store_sums(sums, y, first_row + plane * 16, first_point, rows, points);
}

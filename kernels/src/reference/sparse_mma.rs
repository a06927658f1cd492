//! The sparse tensor-core instruction `mma.sp::ordered_metadata.m16n8k32` on one warp, from the published fragment tables.
//!
//! Source: PTX ISA 9.1, "Matrix fragments for sparse mma.m16n8k32 with .f16 and .bf16 types" and "Sparse matrix storage".
//! The judge of the hardware 2:4 format: it shares no index arithmetic with the packer.

use crate::format::Half;

/// Threads of a warp.
pub const LANES: usize = 32;

/// What every lane holds in its `N` registers.
pub type Warp<T, const N: usize> = [[T; N]; LANES];

/// `D = A B + C` with A `[16, 32]` sparse, B `[32, 8]`, C and D `[16, 8]`; D as exact sums.
///
/// Each register of A and B holds two halves, the lower bits first. `selector` 0 reads the metadata of the lanes 0 and 1
/// of every four, 1 that of the lanes 2 and 3; the others' words are ignored.
///
/// # Panics
/// Where the instruction is undefined: a selector above 1, or a pair of indices that does not ascend.
pub fn m16n8k32(
    half: Half,
    a: &Warp<u32, 4>,
    b: &Warp<u32, 4>,
    c: &Warp<f32, 4>,
    metadata: &[u32; LANES],
    selector: usize,
) -> Warp<f64, 4> {
    let dense_a = expand_a(half, a, metadata, selector);
    let mut dense_b = [[0.0; 8]; 32];
    let mut dense_d = [[0.0; 8]; 16];
    for lane in 0..LANES {
        let (group, thread) = (lane / 4, lane % 4);
        for i in 0..8 {
            let row = thread * 2 + i % 2 + 8 * (i / 2);
            dense_b[row][group] = element(half, &b[lane], i);
        }
        for (i, &value) in c[lane].iter().enumerate() {
            let (row, col) = accumulator(group, thread, i);
            dense_d[row][col] = f64::from(value);
        }
    }
    for (row, d) in dense_d.iter_mut().enumerate() {
        for (col, d) in d.iter_mut().enumerate() {
            for k in 0..32 {
                // What the metadata leaves out is no factor at all: it meets neither NaN nor infinity.
                if let Some(a) = dense_a[row][k] {
                    *d += a * dense_b[k][col];
                }
            }
        }
    }
    std::array::from_fn(|lane| {
        std::array::from_fn(|i| {
            let (row, col) = accumulator(lane / 4, lane % 4, i);
            dense_d[row][col]
        })
    })
}

/// Place of accumulator `c_i`.
fn accumulator(group: usize, thread: usize, i: usize) -> (usize, usize) {
    let row = if i < 2 { group } else { group + 8 };
    (row, thread * 2 + i % 2)
}

/// The i-th half of a fragment.
fn element(half: Half, registers: &[u32; 4], i: usize) -> f64 {
    f64::from(half.decode((registers[i / 2] >> (16 * (i % 2))) as u16))
}

/// A with the metadata applied; None where it has no element.
fn expand_a(
    half: Half,
    a: &Warp<u32, 4>,
    metadata: &[u32; LANES],
    selector: usize,
) -> [[Option<f64>; 32]; 16] {
    assert!(selector < 2, "m16n8k32 knows the selectors 0 and 1");
    let mut dense = [[None; 32]; 16];
    for (lane, registers) in a.iter().enumerate() {
        let (group, thread) = (lane / 4, lane % 4);
        for first in [0, 2, 4, 6] {
            // a0 a1 and a4 a5 lie in the upper half of the tile, a4..a7 in its right half.
            let row = if first == 0 || first == 4 {
                group
            } else {
                group + 8
            };
            let first_col = thread * 4 + if first < 4 { 0 } else { 16 };
            let (low, high) = indices(metadata, selector, row, first_col);
            assert!(low < high, "indices {low} and {high} do not ascend");
            dense[row][first_col + low] = Some(element(half, registers, first));
            dense[row][first_col + high] = Some(element(half, registers, first + 1));
        }
    }
    dense
}

/// The two indices of the four columns from `first_col`.
///
/// The lower of the selected lanes describes columns 0..16, the upper 16..32; bits 0..16 belong to row `group`, bits
/// 16..32 to row `group + 8`; four bits per chunk, the first element's index lowest.
fn indices(
    metadata: &[u32; LANES],
    selector: usize,
    row: usize,
    first_col: usize,
) -> (usize, usize) {
    let lane = row % 8 * 4 + selector * 2 + first_col / 16;
    let bits = metadata[lane] >> (16 * (row / 8) + first_col % 16);
    ((bits & 3) as usize, (bits >> 2 & 3) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: u32 = 0x3f80;
    /// Indices 0 and 1 in every chunk.
    const PLAIN: u32 = 0x4444_4444;

    fn run(a: &Warp<u32, 4>, b: &Warp<u32, 4>, e: &[u32; LANES], selector: usize) -> Vec<f64> {
        m16n8k32(Half::Bf16, a, b, &[[0.0; 4]; LANES], e, selector).concat()
    }

    #[test]
    fn one_weight_meets_one_input() {
        // Lane 5 (row 1 and 9, columns 4..8): a3 is row 9's second element; index 2 puts it in column 6.
        let mut a = [[0; 4]; LANES];
        a[5][1] = ONE << 16;
        let mut e = [PLAIN; LANES];
        e[4 + 2] = PLAIN & !(0xf << 20) | 0b1000 << 20; // row 9, second chunk: indices 0 and 2; selector 1
        // B[6, 3]: lane 3 * 4 + 3, register 0, lower half.
        let mut b = [[0; 4]; LANES];
        b[15][0] = ONE;
        let d = run(&a, &b, &e, 1);
        // D[9, 3]: lane 1 * 4 + 1, c3.
        let expected = 5 * 4 + 3;
        for (i, &d) in d.iter().enumerate() {
            assert_eq!(d, if i == expected { 1.0 } else { 0.0 }, "place {i}");
        }
        // Selector 0 reads lanes 4 and 5, where the element sits in column 5.
        assert!(run(&a, &b, &e, 0).iter().all(|&d| d == 0.0));
    }

    #[test]
    fn accumulators_pass_through() {
        let c = std::array::from_fn(|lane| std::array::from_fn(|i| (lane * 4 + i) as f32));
        let d = m16n8k32(
            Half::F16,
            &[[0; 4]; LANES],
            &[[0; 4]; LANES],
            &c,
            &[PLAIN; LANES],
            0,
        );
        assert_eq!(d, c.map(|lane| lane.map(f64::from)));
    }

    #[test]
    #[should_panic(expected = "do not ascend")]
    fn undefined_metadata_is_refused() {
        run(&[[0; 4]; LANES], &[[0; 4]; LANES], &[0; LANES], 0);
    }
}

//! N:M masks (section 2.2 of the specification) and transposable 2:4 masks (section 2.3).
//!
//! Groups run along input channels at a fixed output channel and kernel position; a layer whose input channels M does
//! not divide stays dense (depthwise layers and RGB stems always). Masks come back in the usual column order (c, ky, kx).

mod rank;

use rayon::prelude::*;

use crate::{BitMask, KernelError, Scores, Stored};
use rank::LANES;

/// A weight's axes as N:M sees them: `[outputs, inputs, positions]`, positions = ky * kx, 1 for linear layers.
#[derive(Clone, Copy)]
struct Axes {
    outputs: usize,
    inputs: usize,
    positions: usize,
}

impl Axes {
    fn new(shape: &[usize]) -> Result<Self, KernelError> {
        match *shape {
            [outputs, inputs, ref kernel @ ..] => Ok(Self {
                outputs,
                inputs,
                positions: kernel.iter().product(),
            }),
            _ => Err(KernelError::Shape {
                shape: shape.to_vec(),
            }),
        }
    }

    fn cols(self) -> usize {
        self.inputs * self.positions
    }

    fn len(self) -> usize {
        self.outputs * self.cols()
    }

    fn check_len<S: Scores + ?Sized>(self, scores: &S) -> Result<(), KernelError> {
        if scores.len() == self.len() {
            return Ok(());
        }
        Err(KernelError::Length {
            what: "scores",
            expected: self.len(),
            found: scores.len(),
        })
    }

    fn check_nan<S: Scores + ?Sized>(self, scores: &S) -> Result<(), KernelError> {
        let nan = |index: &usize| scores.at(*index).is_nan();
        match (0..scores.len()).into_par_iter().find_first(nan) {
            Some(index) => Err(KernelError::NonFiniteScore { layer: 0, index }),
            None => Ok(()),
        }
    }
}

/// Makes a mask of `height` rows at a time, in parallel: `fill(row, words)` writes the words of the rows from `row` on,
/// or says where it met a NaN. A band knows nothing of the others, so the mask is the same for any number of threads.
fn by_bands(
    axes: Axes,
    height: usize,
    fill: impl Fn(usize, &mut [u32]) -> Result<(), usize> + Sync,
) -> Result<BitMask, KernelError> {
    let (rows, cols) = (axes.outputs, axes.cols());
    if rows * cols == 0 {
        return Ok(BitMask::full(rows, cols));
    }
    let stride = cols.div_ceil(BITS);
    let mut words = vec![0u32; rows * stride];
    // Bands of little work are handed out several at a time.
    let together = (WORK / (height * cols)).max(1);
    let nan = words
        .par_chunks_mut(together * height * stride)
        .enumerate()
        .filter_map(|(item, words)| {
            let bands = words.chunks_mut(height * stride).enumerate();
            bands
                .filter_map(|(band, words)| fill((item * together + band) * height, words).err())
                .min()
        })
        .min();
    match nan {
        Some(index) => Err(KernelError::NonFiniteScore { layer: 0, index }),
        None => BitMask::from_words(rows, cols, words),
    }
}

/// Weights per mask word.
const BITS: usize = u32::BITS as usize;
/// Weights to a parallel piece.
const WORK: usize = 1 << 14;

/// Packs flags of 0 or 1, row by row.
fn pack_rows(flags: &[u8], cols: usize, words: &mut [u32]) {
    let rows = words
        .chunks_mut(cols.div_ceil(BITS))
        .zip(flags.chunks(cols));
    for (words, flags) in rows {
        for (word, flags) in words.iter_mut().zip(flags.chunks(BITS)) {
            *word = pack(flags);
        }
    }
}

/// Up to 32 flags of 0 or 1 as bits.
fn pack(flags: &[u8]) -> u32 {
    let mut word = 0;
    let (eights, tail) = flags.as_chunks::<8>();
    for (i, &eight) in eights.iter().enumerate() {
        // The product brings flag j to bit 56 + j; no two partial products share a bit.
        let byte = u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        word |= (byte as u32) << (8 * i);
    }
    for (i, &flag) in tail.iter().enumerate() {
        word |= u32::from(flag) << (8 * eights.len() + i);
    }
    word
}

/// Whether a layer of this shape takes an N:M mask of group size `m`; otherwise it stays dense.
pub fn nm_applies(shape: &[usize], m: usize) -> bool {
    Axes::new(shape).is_ok_and(|axes| m > 0 && axes.inputs % m == 0)
}

/// Keeps the `n` highest scores of every `m` consecutive input channels; ties keep the lowest channel.
///
/// # Shapes
/// `scores`: flat OIHW or `[out, in]`, as `shape` says.
pub fn nm_mask<S: Scores + ?Sized>(
    scores: &S,
    shape: &[usize],
    n: usize,
    m: usize,
) -> Result<BitMask, KernelError> {
    if n == 0 || n >= m || m > 32 {
        return Err(KernelError::Pattern { n, m });
    }
    let axes = Axes::new(shape)?;
    axes.check_len(scores)?;
    if axes.inputs % m != 0 {
        axes.check_nan(scores)?;
        return Ok(BitMask::full(axes.outputs, axes.cols()));
    }
    // Where the divisor keeps distinct values distinct, values rank as their scores do.
    let stored = scores
        .stored()
        .filter(|s| s.values.len() == axes.len() && (1e-150..=1e150).contains(&s.divisor));
    by_bands(axes, 1, |row, words| {
        let start = row * axes.cols();
        let nan = match stored {
            Some(Stored {
                values, magnitude, ..
            }) => {
                let values = &values[start..][..axes.cols()];
                let in_order = (axes.positions == 1)
                    .then(|| rank::rank_row(values, magnitude, n, m, words))
                    .flatten();
                match in_order {
                    Some(nan) => nan,
                    None if magnitude => keep_row(axes, n, m, |i| values[i].abs(), words),
                    None => keep_row(axes, n, m, |i| values[i], words),
                }
            }
            None => keep_row(axes, n, m, |i| scores.at(start + i), words),
        };
        if !nan {
            return Ok(());
        }
        let index = (start..start + axes.cols()).find(|&index| scores.at(index).is_nan());
        Err(index.expect("a NaN was met in this row"))
    })
}

/// Keeps the `n` highest of every group of one row; `at` gives its scores by flat index in the row. True if one is NaN.
fn keep_row<T: PartialOrd + Copy + Default>(
    axes: Axes,
    n: usize,
    m: usize,
    at: impl Fn(usize) -> T,
    words: &mut [u32],
) -> bool {
    let Axes {
        inputs, positions, ..
    } = axes;
    // A lane is a group at one kernel position; m rows of lanes stay in the first-level cache, and whole groups fit.
    let groups = (128 / positions).clamp(1, inputs / m);
    let width = (groups * positions).next_multiple_of(LANES);
    let mut block = vec![[T::default(); LANES]; m * width / LANES];
    let mut stays = vec![[0u8; LANES]; block.len()];
    let mut flags = vec![0u8; axes.cols()];
    let mut nan = false;
    for first in (0..inputs).step_by(groups * m) {
        let groups = groups.min((inputs - first) / m);
        let lanes = block.as_flattened_mut();
        // Channel j of lane (group, position) lies at ((first + group m + j) positions + position) of the row.
        for group in 0..groups {
            for j in 0..m {
                let from = (first + group * m + j) * positions;
                let to = j * width + group * positions;
                for (position, lane) in lanes[to..to + positions].iter_mut().enumerate() {
                    *lane = at(from + position);
                }
            }
        }
        nan |= rank::rank_lanes(&block, &mut stays, n, m);
        let stays = stays.as_flattened();
        for group in 0..groups {
            for j in 0..m {
                let from = j * width + group * positions;
                let to = (first + group * m + j) * positions;
                for (flag, &stays) in flags[to..to + positions].iter_mut().zip(&stays[from..]) {
                    *flag = stays;
                }
            }
        }
    }
    pack_rows(&flags, axes.cols(), words);
    nan
}

/// How a weight is cut into the 4 x 4 tiles of a transposable mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileLayout {
    /// Tiles of the `[out, in]` matrix at each kernel position; dense unless both sides are multiples of 4.
    Matrix,
    /// The original release's: each output channel's (ky, kx, c) row, zero-padded to a multiple of 16, every 16 values
    /// one tile. Not transposable as a matrix; for comparison only.
    Flat16,
}

/// Keeps exactly `n` in every row and column of each `m` x `m` tile, with the highest sum of scores.
///
/// All 90 patterns of 2:4 are tried, so the result is optimal; of equal sums the first pattern wins, enumerated row by
/// row with the pairs (0,1) (0,2) (0,3) (1,2) (1,3) (2,3).
pub fn nm_mask_transposable<S: Scores + ?Sized>(
    scores: &S,
    shape: &[usize],
    n: usize,
    m: usize,
    layout: TileLayout,
) -> Result<BitMask, KernelError> {
    if (n, m) != (2, 4) {
        return Err(KernelError::Transposable { n, m });
    }
    let axes = Axes::new(shape)?;
    axes.check_len(scores)?;
    axes.check_nan(scores)?;
    let Axes {
        outputs,
        inputs,
        positions,
    } = axes;
    let cols = axes.cols();
    match layout {
        TileLayout::Matrix if outputs % 4 != 0 || inputs % 4 != 0 => {
            Ok(BitMask::full(outputs, cols))
        }
        TileLayout::Matrix => by_bands(axes, 4, |row, words| {
            let slots = |tile: usize| {
                let (block, position) = (tile / positions, tile % positions);
                let first = 4 * block * positions + position;
                std::array::from_fn(|slot| first + slot / 4 * cols + slot % 4 * positions)
            };
            let mut flags = vec![0u8; 4 * cols];
            let tiles = inputs / 4 * positions;
            keep_tiles(tiles, slots, |i| scores.at(row * cols + i), &mut flags);
            pack_rows(&flags, cols, words);
            Ok(())
        }),
        TileLayout::Flat16 => by_bands(axes, 1, |row, words| {
            let slots = |tile: usize| {
                std::array::from_fn(|slot| {
                    let col = 16 * tile + slot; // in (ky, kx, c) order
                    if col < cols {
                        col % inputs * positions + col / inputs
                    } else {
                        PADDING
                    }
                })
            };
            let mut flags = vec![0u8; cols];
            let tiles = cols.div_ceil(16);
            keep_tiles(tiles, slots, |i| scores.at(row * cols + i), &mut flags);
            pack_rows(&flags, cols, words);
            Ok(())
        }),
    }
}

/// A slot of a tile without a weight; it scores 0 and takes no flag.
const PADDING: usize = usize::MAX;

/// The ways to keep two of four, in the order of ties.
const PAIRS: [u8; 6] = [0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100];

/// The 90 ways to keep 2 in every row and column of a 4 x 4 tile, as indices into [`PAIRS`] row by row.
const PATTERNS: [[u8; 4]; 90] = {
    let mut patterns = [[0; 4]; 90];
    let mut count = 0;
    let mut code = 0;
    while code < 6 * 6 * 6 * 6 {
        let rows = [code / 216, code / 36 % 6, code / 6 % 6, code % 6];
        let mut fits = true;
        let mut col = 0;
        while col < 4 {
            let kept = (PAIRS[rows[0]] >> col & 1)
                + (PAIRS[rows[1]] >> col & 1)
                + (PAIRS[rows[2]] >> col & 1)
                + (PAIRS[rows[3]] >> col & 1);
            fits &= kept == 2;
            col += 1;
        }
        if fits {
            patterns[count] = [rows[0] as u8, rows[1] as u8, rows[2] as u8, rows[3] as u8];
            count += 1;
        }
        code += 1;
    }
    patterns
};

/// Tiles scored side by side.
const TILES: usize = 8;

/// Flags the best pattern of every tile. A sum is that of its rows' pairs, added two and two, in f64.
fn keep_tiles(
    tiles: usize,
    slots: impl Fn(usize) -> [usize; 16],
    at: impl Fn(usize) -> f64,
    flags: &mut [u8],
) {
    for first in (0..tiles).step_by(TILES) {
        let real = TILES.min(tiles - first);
        let mut scores = [[0.0; TILES]; 16];
        for l in 0..real {
            for (scores, index) in scores.iter_mut().zip(slots(first + l)) {
                if index != PADDING {
                    scores[l] = at(index);
                }
            }
        }
        for (l, pattern) in best_patterns(&scores).into_iter().enumerate().take(real) {
            let pairs = PATTERNS[pattern as usize].map(|pair| PAIRS[pair as usize]);
            for (slot, index) in slots(first + l).into_iter().enumerate() {
                if index != PADDING {
                    flags[index] = pairs[slot / 4] >> (slot % 4) & 1;
                }
            }
        }
    }
}

/// The index in [`PATTERNS`] of the best pattern of each tile.
#[inline(always)]
fn best_patterns(scores: &[[f64; TILES]; 16]) -> [u64; TILES] {
    let add = |a: &[f64; TILES], b: &[f64; TILES]| {
        let mut sum = *a;
        for l in 0..TILES {
            sum[l] += b[l];
        }
        sum
    };
    // Sums of a pair of one row, then of two pairs of the upper and of the lower two rows.
    let mut pairs = [[[0.0; TILES]; 6]; 4];
    for (row, pairs) in pairs.iter_mut().enumerate() {
        for (sum, pair) in pairs.iter_mut().zip(PAIRS) {
            let (low, high) = (pair.trailing_zeros(), 7 - pair.leading_zeros());
            *sum = add(
                &scores[4 * row + low as usize],
                &scores[4 * row + high as usize],
            );
        }
    }
    let mut halves = [[[0.0; TILES]; 36]; 2];
    for (half, sums) in halves.iter_mut().enumerate() {
        for (code, sum) in sums.iter_mut().enumerate() {
            *sum = add(&pairs[2 * half][code / 6], &pairs[2 * half + 1][code % 6]);
        }
    }
    let mut best = [0u64; TILES];
    let mut most = [0.0; TILES];
    for (index, &[a, b, c, d]) in PATTERNS.iter().enumerate() {
        let upper = &halves[0][6 * a as usize + b as usize];
        let lower = &halves[1][6 * c as usize + d as usize];
        let sums = add(upper, lower);
        for l in 0..TILES {
            let better = index == 0 || sums[l] > most[l];
            most[l] = if better { sums[l] } else { most[l] };
            best[l] = if better { index as u64 } else { best[l] };
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layers() -> impl Strategy<Value = (Vec<usize>, Vec<f32>)> {
        (0usize..6, 0usize..17, 0usize..3, 1usize..3).prop_flat_map(|(o, i, ky, kx)| {
            let shape = if ky == 0 {
                vec![o, i]
            } else {
                vec![o, i, ky, kx]
            };
            let len = shape.iter().product::<usize>();
            let scores = proptest::collection::vec((0u8..9).prop_map(f32::from), len);
            (Just(shape), scores)
        })
    }

    proptest! {
        #[test]
        fn every_group_keeps_its_n_best((shape, scores) in layers(), n in 1usize..4) {
            let m = 4;
            let mask = nm_mask(&scores, &shape, n, m).unwrap();
            let keep = mask.to_keep();
            let positions: usize = shape[2..].iter().product();
            if shape[1] % m != 0 {
                prop_assert!(keep.iter().all(|&k| k));
                prop_assert!(!nm_applies(&shape, m));
                return Ok(());
            }
            for output in 0..shape[0] {
                for position in 0..positions {
                    for first in (0..shape[1]).step_by(m) {
                        let at = |i: usize| (output * shape[1] + first + i) * positions + position;
                        for i in 0..m {
                            // Kept: fewer than n others come before it by (score descending, channel ascending).
                            let before = (0..m)
                                .filter(|&j| {
                                    let (a, b) = (scores[at(j)], scores[at(i)]);
                                    a > b || (a == b && j < i)
                                })
                                .count();
                            prop_assert_eq!(keep[at(i)], before < n);
                        }
                    }
                }
            }
        }

        #[test]
        fn tiles_are_transposable_and_optimal(scores in proptest::collection::vec((0u8..50).prop_map(f32::from), 16)) {
            let mask = nm_mask_transposable(&scores, &[4, 4], 2, 4, TileLayout::Matrix).unwrap();
            for i in 0..4 {
                prop_assert_eq!((0..4).filter(|&j| mask.get(i, j)).count(), 2);
                prop_assert_eq!((0..4).filter(|&j| mask.get(j, i)).count(), 2);
            }
            // Against all 2^16 masks, not against the pattern table.
            let sum = |bits: u32| (0..16).filter(|s| bits >> s & 1 == 1).map(|s| scores[s as usize]).sum::<f32>();
            let best = (0u32..1 << 16)
                .filter(|bits| (0..4).all(|i| {
                    (bits >> (4 * i) & 0xf).count_ones() == 2 && (bits >> i & 0x1111).count_ones() == 2
                }))
                .map(sum)
                .fold(0.0, f32::max);
            let got: f32 = mask.keep().zip(&scores).filter(|(k, _)| *k).map(|(_, s)| s).sum();
            prop_assert_eq!(got, best);
        }
    }

    #[test]
    fn there_are_ninety_patterns() {
        assert_eq!(PATTERNS[0], [0, 0, 5, 5]);
        let distinct: std::collections::BTreeSet<_> = PATTERNS.iter().collect();
        assert_eq!(distinct.len(), 90);
    }

    #[test]
    fn depthwise_and_odd_layers_stay_dense() {
        let scores = vec![1.0f32; 6 * 9];
        assert_eq!(
            nm_mask(&scores, &[6, 1, 3, 3], 2, 4).unwrap(),
            BitMask::full(6, 9)
        );
        let mask = nm_mask_transposable(&scores, &[6, 9], 2, 4, TileLayout::Matrix).unwrap();
        assert_eq!(mask, BitMask::full(6, 9));
    }

    #[test]
    fn flat_tiles_pad_with_zeros() {
        // 8 values fill the first two rows of a tile; the padding rows take what the columns still need.
        let scores: Vec<f32> = vec![9.0, 9.0, 1.0, 1.0, 9.0, 9.0, 1.0, 1.0];
        let mask = nm_mask_transposable(&scores, &[1, 8], 2, 4, TileLayout::Flat16).unwrap();
        let kept = [true, true, false, false, true, true, false, false];
        assert_eq!(mask.to_keep(), kept);
    }

    #[test]
    fn bad_patterns_shapes_and_scores_are_refused() {
        let scores = [1.0f32, f32::NAN, 3.0, 4.0];
        assert_eq!(
            nm_mask(&scores[..], &[1, 4], 4, 4),
            Err(KernelError::Pattern { n: 4, m: 4 })
        );
        assert_eq!(
            nm_mask(&scores[..], &[1, 4], 2, 4),
            Err(KernelError::NonFiniteScore { layer: 0, index: 1 })
        );
        assert_eq!(
            nm_mask(&scores[..], &[4], 2, 4),
            Err(KernelError::Shape { shape: vec![4] })
        );
        assert!(nm_mask(&scores[..], &[2, 4], 2, 4).is_err());
        assert_eq!(
            nm_mask_transposable(&scores[..], &[1, 4], 4, 8, TileLayout::Matrix),
            Err(KernelError::Transposable { n: 4, m: 8 })
        );
    }
}

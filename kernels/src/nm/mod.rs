//! N:M masks (section 2.2 of the specification) and transposable 2:4 masks (section 2.3).
//!
//! Groups run along input channels at a fixed output channel and kernel position; a layer whose input channels M does
//! not divide stays dense (depthwise layers and RGB stems always). Masks come back in the usual column order (c, ky, kx).

mod local;
mod rank;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use crate::{BitMask, KernelError, Scores, Stored};
pub use local::{LocalMask, nm_mask_transposable_local};
use rank::LANES;
use tile::TILES;

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

    /// An error at the first NaN of all scores, for layers that nothing else looks at.
    fn check_nan<S: Scores + ?Sized>(self, scores: &S) -> Result<(), KernelError> {
        let pieces = (0..self.len().div_ceil(WORK)).into_par_iter();
        let nan = pieces.find_map_first(|piece| {
            let end = self.len().min((piece + 1) * WORK);
            (piece * WORK..end).find(|&index| scores.at(index).is_nan())
        });
        match nan {
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
                    None if magnitude => keep_row(axes, n, m, values, f32::abs, words),
                    None => keep_row(axes, n, m, values, |value| value, words),
                }
            }
            None => {
                let values: Vec<f64> = (0..axes.cols()).map(|i| scores.at(start + i)).collect();
                keep_row(axes, n, m, &values, |value| value, words)
            }
        };
        if !nan {
            return Ok(());
        }
        let index = (start..start + axes.cols()).find(|&index| scores.at(index).is_nan());
        Err(index.expect("a NaN was met in this row"))
    })
}

/// Keeps the `n` highest of every group of one row, by what `score` makes of its values. True if there was a NaN.
fn keep_row<T: PartialOrd + Copy + Default>(
    axes: Axes,
    n: usize,
    m: usize,
    values: &[T],
    score: impl Fn(T) -> T,
    words: &mut [u32],
) -> bool {
    // The usual kernels, so that copies of their length need no loop.
    match axes.positions {
        1 => keep_row_of::<T, 1>(axes, n, m, values, score, words),
        9 => keep_row_of::<T, 9>(axes, n, m, values, score, words),
        _ => keep_row_of::<T, 0>(axes, n, m, values, score, words),
    }
}

/// [`keep_row`] for `P` positions, or any number where P is 0.
fn keep_row_of<T: PartialOrd + Copy + Default, const P: usize>(
    axes: Axes,
    n: usize,
    m: usize,
    values: &[T],
    score: impl Fn(T) -> T,
    words: &mut [u32],
) -> bool {
    let inputs = axes.inputs;
    let positions = if P == 0 { axes.positions } else { P };
    // A lane is a group at one kernel position; m rows of lanes stay in the first-level cache, and whole groups fit.
    let groups = (128 / positions).clamp(1, inputs / m);
    let width = (groups * positions).next_multiple_of(LANES);
    let mut block = vec![[T::default(); LANES]; m * width / LANES];
    let mut stays = vec![[0u8; LANES]; block.len()];
    let mut flags = vec![0u8; axes.cols()];
    let mut nan = false;
    for first in (0..inputs).step_by(groups * m) {
        let groups = groups.min((inputs - first) / m);
        // Channel j of lane (group, position) lies at ((first + group m + j) positions + position) of the row.
        let start = first * positions;
        let lanes = block.as_flattened_mut();
        for j in 0..m {
            let lanes = lanes[j * width..][..groups * positions].chunks_exact_mut(positions);
            let runs = values[start + j * positions..].chunks(m * positions);
            for (lanes, run) in lanes.zip(runs) {
                for (lane, &value) in lanes.iter_mut().zip(&run[..positions]) {
                    *lane = score(value);
                }
            }
        }
        nan |= rank::rank_lanes(&block, &mut stays, n, m);
        let stays = stays.as_flattened();
        for j in 0..m {
            let stays = stays[j * width..][..groups * positions].chunks_exact(positions);
            let runs = flags[start + j * positions..].chunks_mut(m * positions);
            for (stays, run) in stays.zip(runs) {
                for (flag, &stays) in run[..positions].iter_mut().zip(stays) {
                    *flag = stays;
                }
            }
        }
    }
    pack_rows(&flags, axes.cols(), words);
    // Lanes of padding may hold a NaN that stood there before, but only one of this row.
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
    let Axes {
        outputs,
        inputs,
        positions,
    } = axes;
    let cols = axes.cols();
    match layout {
        TileLayout::Matrix if outputs % 4 != 0 || inputs % 4 != 0 => {
            axes.check_nan(scores)?;
            Ok(BitMask::full(outputs, cols))
        }
        TileLayout::Matrix => by_bands(axes, 4, |row, words| {
            let band = band(scores, row * cols..(row + 4) * cols)?;
            let slots = |tile: usize| {
                let (block, position) = (tile / positions, tile % positions);
                let first = 4 * block * positions + position;
                std::array::from_fn(|slot| first + slot / 4 * cols + slot % 4 * positions)
            };
            let flags = keep_tiles(&band, inputs / 4 * positions, slots);
            pack_rows(&flags, cols, words);
            Ok(())
        }),
        TileLayout::Flat16 => by_bands(axes, 1, |row, words| {
            let band = band(scores, row * cols..(row + 1) * cols)?;
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
            let flags = keep_tiles(&band, cols.div_ceil(16), slots);
            pack_rows(&flags, cols, words);
            Ok(())
        }),
    }
}

/// The scores of one band, or the index of a NaN.
fn band<S: Scores + ?Sized>(scores: &S, range: Range<usize>) -> Result<Vec<f64>, usize> {
    let band: Vec<f64> = range.clone().map(|index| scores.at(index)).collect();
    match band.iter().position(|score| score.is_nan()) {
        Some(index) => Err(range.start + index),
        None => Ok(band),
    }
}

/// A slot of a tile without a weight; it scores 0 and takes no flag.
const PADDING: usize = usize::MAX;

/// Flags the best pattern of every tile of a band; `slots` gives the places of a tile's 16 scores, row by row.
fn keep_tiles(band: &[f64], tiles: usize, slots: impl Fn(usize) -> [usize; 16]) -> Vec<u8> {
    let mut flags = vec![0u8; band.len()];
    for first in (0..tiles).step_by(TILES) {
        let real = TILES.min(tiles - first);
        let mut places = [[PADDING; 16]; TILES];
        let mut scores = [[0.0; TILES]; 16];
        for (l, places) in places[..real].iter_mut().enumerate() {
            *places = slots(first + l);
            for (scores, &place) in scores.iter_mut().zip(&*places) {
                scores[l] = band.get(place).copied().unwrap_or(0.0);
            }
        }
        let best = tile::best_patterns(&scores);
        for (pattern, places) in best.into_iter().zip(&places[..real]) {
            for (slot, &place) in places.iter().enumerate() {
                if let Some(flag) = flags.get_mut(place) {
                    *flag = (pattern >> slot) as u8 & 1;
                }
            }
        }
    }
    flags
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

    /// A layer of scores with many ties; a third of them negative.
    fn layer(shape: &[usize], seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 59) as f32 - 10.0
        };
        (0..shape.iter().product()).map(|_| next()).collect()
    }

    /// What [`nm_mask`] must give, by a stable sort of each group.
    fn sorted(scores: &[f64], shape: &[usize], n: usize, m: usize) -> Vec<bool> {
        let positions: usize = shape[2..].iter().product();
        let mut keep = vec![true; scores.len()];
        for first in (0..scores.len() / positions).step_by(m) {
            for position in 0..positions {
                let mut group: Vec<usize> = (first..first + m)
                    .map(|c| c * positions + position)
                    .collect();
                group.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap());
                group[n..].iter().for_each(|&index| keep[index] = false);
            }
        }
        keep
    }

    #[test]
    fn every_route_ranks_as_a_stable_sort() {
        let shapes: [(&[usize], usize); 6] = [
            (&[3, 96], 1),
            (&[2, 64, 3, 3], 9),
            (&[2, 32, 1, 3], 3),
            (&[1, 480], 1),
            (&[5, 48, 5, 5], 25),
            (&[1, 32, 16, 16], 256),
        ];
        let mut compared = 0;
        for (shape, positions) in shapes {
            let values = layer(shape, 5 + positions as u64);
            for m in 2..=32 {
                if shape[1] % m != 0 {
                    continue;
                }
                for n in [1, m / 2, m - 1] {
                    let wide: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
                    let magnitudes: Vec<f64> = wide.iter().map(|v| v.abs()).collect();
                    let normed = Stored {
                        values: &values,
                        magnitude: true,
                        divisor: 7.0,
                    };
                    let what = format!("{n}:{m} of {shape:?}");
                    let want = sorted(&wide, shape, n, m);
                    assert_eq!(
                        nm_mask(&values, shape, n, m).unwrap().to_keep(),
                        want,
                        "{what}"
                    );
                    assert_eq!(
                        nm_mask(&wide, shape, n, m).unwrap().to_keep(),
                        want,
                        "{what}"
                    );
                    let want = sorted(&magnitudes, shape, n, m);
                    assert_eq!(
                        nm_mask(&normed, shape, n, m).unwrap().to_keep(),
                        want,
                        "{what}"
                    );
                    compared += 1;
                }
            }
        }
        assert!(compared > 100, "{compared}");
    }

    #[test]
    fn kept_sums_are_maximal() {
        for m in 2..=8 {
            for n in 1..m {
                let scores = layer(&[16, m], (10 * m + n) as u64);
                let mask = nm_mask(&scores, &[16, m], n, m).unwrap();
                for (row, scores) in scores.chunks(m).enumerate() {
                    let sum = |bits: usize| -> f32 {
                        (0..m)
                            .filter(|c| bits >> c & 1 == 1)
                            .map(|c| scores[c])
                            .sum()
                    };
                    let best = (0..1usize << m)
                        .filter(|bits| bits.count_ones() as usize == n)
                        .map(sum)
                        .fold(f32::NEG_INFINITY, f32::max);
                    let kept: usize = (0..m)
                        .filter(|&c| mask.get(row, c))
                        .fold(0, |b, c| b | 1 << c);
                    assert_eq!(kept.count_ones() as usize, n);
                    assert_eq!(sum(kept), best);
                }
            }
        }
    }

    #[test]
    fn infinities_zeros_and_a_nan_anywhere() {
        let (inf, tiny) = (f32::INFINITY, f32::from_bits(1));
        for shape in [vec![1, 8], vec![1, 8, 3, 3]] {
            let positions = shape[2..].iter().product::<usize>();
            let row = [-0.0, 0.0, -inf, -0.0, inf, tiny, inf, -tiny];
            let scores: Vec<f32> = row
                .iter()
                .flat_map(|&s| std::iter::repeat_n(s, positions))
                .collect();
            let keep = nm_mask(&scores, &shape, 2, 4).unwrap().to_keep();
            let want = [true, true, false, false, true, false, true, false];
            for (index, keep) in keep.into_iter().enumerate() {
                assert_eq!(keep, want[index / positions]);
            }
            for index in 0..scores.len() {
                let mut scores = scores.clone();
                scores[index] = f32::NAN;
                let error = Err(KernelError::NonFiniteScore { layer: 0, index });
                assert_eq!(nm_mask(&scores, &shape, 2, 4), error);
                assert_eq!(nm_mask(&scores, &shape, 2, 3), error, "a dense layer");
                for layout in [TileLayout::Matrix, TileLayout::Flat16] {
                    assert_eq!(nm_mask_transposable(&scores, &shape, 2, 4, layout), error);
                }
            }
        }
    }

    #[test]
    fn transposable_tiles_lie_at_every_position() {
        for shape in [vec![12, 36], vec![8, 20, 3, 3]] {
            let scores = layer(&shape, 3);
            let mask = nm_mask_transposable(&scores, &shape, 2, 4, TileLayout::Matrix).unwrap();
            let positions: usize = shape[2..].iter().product();
            for position in 0..positions {
                for output in (0..shape[0]).step_by(4) {
                    for input in (0..shape[1]).step_by(4) {
                        let col = |j: usize| (input + j) * positions + position;
                        let tile: Vec<f32> = (0..16)
                            .map(|s| scores[(output + s / 4) * mask.cols() + col(s % 4)])
                            .collect();
                        let alone =
                            nm_mask_transposable(&tile, &[4, 4], 2, 4, TileLayout::Matrix).unwrap();
                        for s in 0..16 {
                            let here = mask.get(output + s / 4, col(s % 4));
                            assert_eq!(here, alone.get(s / 4, s % 4));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_same_bits_at_every_thread_count_and_time() {
        let shape = [96, 64, 3, 3];
        let scores = layer(&shape, 11);
        let make = || {
            let tiles = nm_mask_transposable(&scores, &shape, 2, 4, TileLayout::Matrix);
            [nm_mask(&scores, &shape, 4, 8).unwrap(), tiles.unwrap()]
        };
        let want = make();
        for threads in [1, 2, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                for _ in 0..20 {
                    assert_eq!(make(), want, "{threads} threads");
                }
            });
        }
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

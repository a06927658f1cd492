//! N:M masks (section 2.2 of the specification) and transposable 2:4 masks (section 2.3).
//!
//! Groups run along input channels at a fixed output channel and kernel position; a layer whose input channels M does
//! not divide stays dense (depthwise layers and RGB stems always). Masks come back in the usual column order (c, ky, kx).

use crate::{BitMask, KernelError, Scores};

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

    /// Flat index in OIHW order.
    fn index(self, output: usize, input: usize, position: usize) -> usize {
        (output * self.inputs + input) * self.positions + position
    }

    fn check<S: Scores + ?Sized>(self, scores: &S) -> Result<(), KernelError> {
        if scores.len() != self.len() {
            return Err(KernelError::Length {
                what: "scores",
                expected: self.len(),
                found: scores.len(),
            });
        }
        match (0..scores.len()).find(|&index| scores.at(index).is_nan()) {
            Some(index) => Err(KernelError::NonFiniteScore { layer: 0, index }),
            None => Ok(()),
        }
    }

    fn mask(self, keep: &[bool]) -> Result<BitMask, KernelError> {
        BitMask::from_keep(self.outputs, self.cols(), keep)
    }
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
    axes.check(scores)?;
    let mut keep = vec![true; axes.len()];
    if axes.inputs % m == 0 {
        let mut group: Vec<usize> = Vec::with_capacity(m);
        for output in 0..axes.outputs {
            for position in 0..axes.positions {
                for first in (0..axes.inputs).step_by(m) {
                    group.clear();
                    group.extend((first..first + m).map(|i| axes.index(output, i, position)));
                    // Stable, so equal scores stay in channel order.
                    group
                        .sort_by(|&a, &b| scores.at(b).partial_cmp(&scores.at(a)).expect("no NaN"));
                    group[n..].iter().for_each(|&index| keep[index] = false);
                }
            }
        }
    }
    axes.mask(&keep)
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
    axes.check(scores)?;
    let mut keep = vec![true; axes.len()];
    let patterns = patterns();
    // Slots of a tile that lie in the padding have no index; they score 0 and take no flag.
    let mut solve = |tile: [Option<usize>; 16]| {
        let tile_scores = tile.map(|slot| slot.map_or(0.0, |index| scores.at(index)));
        let best = best_pattern(&patterns, &tile_scores);
        for (slot, index) in tile.into_iter().enumerate() {
            if let Some(index) = index {
                keep[index] = best >> slot & 1 == 1;
            }
        }
    };
    match layout {
        TileLayout::Matrix => {
            if axes.outputs % 4 == 0 && axes.inputs % 4 == 0 {
                for position in 0..axes.positions {
                    for output in (0..axes.outputs).step_by(4) {
                        for input in (0..axes.inputs).step_by(4) {
                            solve(std::array::from_fn(|slot| {
                                Some(axes.index(output + slot / 4, input + slot % 4, position))
                            }));
                        }
                    }
                }
            }
        }
        TileLayout::Flat16 => {
            for output in 0..axes.outputs {
                for first in (0..axes.cols()).step_by(16) {
                    solve(std::array::from_fn(|slot| {
                        let col = first + slot; // in (ky, kx, c) order
                        (col < axes.cols())
                            .then(|| axes.index(output, col % axes.inputs, col / axes.inputs))
                    }));
                }
            }
        }
    }
    axes.mask(&keep)
}

/// The 90 ways to keep 2 in every row and column of a 4 x 4 tile; bit `4 * row + col` = keep.
fn patterns() -> Vec<u16> {
    const PAIRS: [u16; 6] = [0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100];
    let twice_each = |rows: [u16; 4]| {
        (0..4).all(|col| rows.iter().filter(|&&row| row >> col & 1 == 1).count() == 2)
    };
    let mut patterns = Vec::with_capacity(90);
    for a in PAIRS {
        for b in PAIRS {
            for c in PAIRS {
                for d in PAIRS {
                    if twice_each([a, b, c, d]) {
                        patterns.push(a | b << 4 | c << 8 | d << 12);
                    }
                }
            }
        }
    }
    patterns
}

fn best_pattern(patterns: &[u16], tile: &[f64; 16]) -> u16 {
    let kept = |pattern: u16| -> f64 {
        (0..16)
            .filter(|slot| pattern >> slot & 1 == 1)
            .map(|slot| tile[slot])
            .sum()
    };
    let mut best = (patterns[0], kept(patterns[0]));
    for &pattern in &patterns[1..] {
        let sum = kept(pattern);
        if sum > best.1 {
            best = (pattern, sum);
        }
    }
    best.0
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
        let patterns = patterns();
        assert_eq!(patterns.len(), 90);
        assert_eq!(patterns[0], 0b1100_1100_0011_0011);
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

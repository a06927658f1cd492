//! Transposable N:M masks for any N and M: greedy, completed, then improved by swaps until none gains.

use super::{Axes, band, by_bands, pack_rows};
use crate::{BitMask, KernelError, Scores};

/// A transposable mask and how good it is.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalMask {
    /// Exactly N of every row and column of each M x M tile; everything where M does not divide both sides.
    pub mask: BitMask,
    /// The sum of the kept scores.
    pub kept: f64,
    /// What [`nm_mask`](crate::nm_mask) would keep: no transposable mask keeps more.
    pub row_optimal: f64,
}

/// Keeps exactly `n` in every row and column of each `m` x `m` tile, with a high sum of scores; the tiles are those of
/// [`TileLayout::Matrix`](crate::TileLayout::Matrix). No exchange of two kept scores for two others gains.
///
/// For 2:4 [`nm_mask_transposable`](crate::nm_mask_transposable) is exact.
pub fn nm_mask_transposable_local<S: Scores + ?Sized>(
    scores: &S,
    shape: &[usize],
    n: usize,
    m: usize,
) -> Result<LocalMask, KernelError> {
    if n == 0 || n >= m || m > 32 {
        return Err(KernelError::Pattern { n, m });
    }
    let axes = Axes::new(shape)?;
    axes.check_len(scores)?;
    if axes.outputs % m != 0 || axes.inputs % m != 0 {
        axes.check_nan(scores)?;
        let mask = BitMask::full(axes.outputs, axes.cols());
        let kept = sum(scores, &mask);
        return Ok(LocalMask {
            mask,
            kept,
            row_optimal: kept,
        });
    }
    let cols = axes.cols();
    let mask = by_bands(axes, m, |row, words| {
        let band = band(scores, row * cols..(row + m) * cols)?;
        let mut flags = vec![0u8; m * cols];
        for input in (0..axes.inputs).step_by(m) {
            for position in 0..axes.positions {
                let place = |i: usize, j: usize| i * cols + (input + j) * axes.positions + position;
                let tile: Vec<f64> = (0..m * m).map(|s| band[place(s / m, s % m)]).collect();
                for (i, row) in solve(&tile, n, m).into_iter().enumerate() {
                    for j in 0..m {
                        flags[place(i, j)] = (row >> j & 1) as u8;
                    }
                }
            }
        }
        pack_rows(&flags, cols, words);
        Ok(())
    })?;
    Ok(LocalMask {
        kept: sum(scores, &mask),
        row_optimal: sum(scores, &super::nm_mask(scores, shape, n, m)?),
        mask,
    })
}

/// The sum of the kept scores, in order.
fn sum<S: Scores + ?Sized>(scores: &S, mask: &BitMask) -> f64 {
    let kept = mask.keep().enumerate().filter(|(_, keep)| *keep);
    kept.map(|(index, _)| scores.at(index)).sum()
}

/// The kept columns of each row of one tile, as bits.
fn solve(tile: &[f64], n: usize, m: usize) -> Vec<u32> {
    let at = |i: usize, j: usize| tile[i * m + j];
    let mut order: Vec<usize> = (0..m * m).collect();
    // Stable, so of equal scores the first is taken.
    order.sort_by(|&a, &b| tile[b].partial_cmp(&tile[a]).expect("no NaN"));
    let mut rows = vec![0u32; m];
    let full = |kept: u32| kept.count_ones() as usize == n;
    let column = |rows: &[u32], j: usize| rows.iter().filter(|&&row| row >> j & 1 == 1).count();
    for slot in order {
        let (i, j) = (slot / m, slot % m);
        if !full(rows[i]) && column(&rows, j) < n {
            rows[i] |= 1 << j;
        }
    }
    // A row i and a column j with room hold (i, j) already, or it had been taken. Some (r, c) is kept while neither (i, c)
    // nor (r, j) is: otherwise a row that leaves j out could keep only what row i keeps beside j, so it had room, and
    // (r, j) had been taken. The exchange gives i and j one more and leaves all others as they were.
    while let Some(i) = (0..m).find(|&i| !full(rows[i])) {
        let j = (0..m).find(|&j| column(&rows, j) < n);
        let j = j.expect("rows and columns lack as many");
        let exchanges = (0..m * m)
            .map(|slot| (slot / m, slot % m))
            .filter(|&(r, c)| {
                rows[r] >> c & 1 == 1 && rows[i] >> c & 1 == 0 && rows[r] >> j & 1 == 0
            });
        let gain = |&(r, c): &(usize, usize)| at(i, c) + at(r, j) - at(r, c);
        let best = exchanges.reduce(|a, b| if gain(&b) > gain(&a) { b } else { a });
        let (r, c) = best.expect("an exchange exists");
        rows[i] |= 1 << c;
        rows[r] = rows[r] & !(1 << c) | 1 << j;
    }
    // Rounding keeps the order of sums, so a sum that is higher here is higher: no exchange returns, and this ends.
    let mut gained = true;
    while gained {
        gained = false;
        for i in 0..m {
            for r in i + 1..m {
                for j in 0..m {
                    // Columns that only one of the two rows keeps.
                    let (only_i, only_r) = (rows[i] & !rows[r], rows[r] & !rows[i]);
                    if only_i >> j & 1 == 0 {
                        continue;
                    }
                    let gains = |&c: &usize| {
                        only_r >> c & 1 == 1 && at(i, c) + at(r, j) > at(i, j) + at(r, c)
                    };
                    if let Some(c) = (0..m).find(gains) {
                        let swap = 1 << j | 1 << c;
                        rows[i] ^= swap;
                        rows[r] ^= swap;
                        gained = true;
                    }
                }
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TileLayout, nm_mask_transposable};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_and_columns_hold_n_and_no_swap_gains(
            (n, m, tile) in (2usize..=9).prop_flat_map(|m| {
                let tile = proptest::collection::vec((0i8..20).prop_map(f64::from), m * m);
                (1..m, Just(m), tile)
            }),
        ) {
            let found = nm_mask_transposable_local(&tile, &[m, m], n, m).unwrap();
            let kept = |i: usize, j: usize| found.mask.get(i, j);
            for i in 0..m {
                prop_assert_eq!((0..m).filter(|&j| kept(i, j)).count(), n);
                prop_assert_eq!((0..m).filter(|&j| kept(j, i)).count(), n);
            }
            let at = |i: usize, j: usize| tile[i * m + j];
            for (i, j, r, c) in (0..m * m * m * m).map(|x| (x % m, x / m % m, x / m / m % m, x / m / m / m)) {
                if kept(i, j) && kept(r, c) && !kept(i, c) && !kept(r, j) {
                    prop_assert!(at(i, c) + at(r, j) <= at(i, j) + at(r, c));
                }
            }
            prop_assert!(found.kept <= found.row_optimal);
            let sum: f64 = (0..m * m).filter(|s| kept(s / m, s % m)).map(|s| tile[s]).sum();
            prop_assert_eq!(found.kept, sum);
        }

        #[test]
        fn two_of_four_comes_near_the_best(tile in proptest::collection::vec(0u8..100, 16)) {
            let tile: Vec<f32> = tile.into_iter().map(f32::from).collect();
            let found = nm_mask_transposable_local(&tile, &[4, 4], 2, 4).unwrap();
            let best = nm_mask_transposable(&tile, &[4, 4], 2, 4, TileLayout::Matrix).unwrap();
            let best = sum(&tile, &best);
            // Greedy alone keeps at least half of it.
            prop_assert!(found.kept <= best && 2.0 * found.kept >= best);
        }
    }

    #[test]
    fn larger_tiles_at_every_position() {
        let (shape, n, m) = ([16, 24, 3, 1], 4, 8);
        let scores: Vec<f32> = (0..16 * 24 * 3).map(|i| (i * 7919 % 1009) as f32).collect();
        let found = nm_mask_transposable_local(&scores, &shape, n, m).unwrap();
        assert_eq!(found.mask.nnz(), scores.len() / 2);
        for output in 0..16 {
            for input in 0..24 {
                for position in 0..3 {
                    let (top, left) = (output / m * m, input / m * m);
                    let row = (0..m).filter(|j| found.mask.get(output, (left + j) * 3 + position));
                    let column = (0..m).filter(|i| found.mask.get(top + i, input * 3 + position));
                    assert_eq!((row.count(), column.count()), (n, n));
                }
            }
        }
        // A mask that ignores the scores keeps half of them.
        let total: f64 = scores.iter().map(|&s| f64::from(s)).sum();
        assert!(total / 2.0 < found.kept && found.kept <= found.row_optimal);
    }

    #[test]
    fn indivisible_layers_stay_dense_and_bad_ones_are_refused() {
        let mut scores = vec![1.0f32; 6 * 8];
        let found = nm_mask_transposable_local(&scores, &[6, 8], 4, 8).unwrap();
        assert_eq!(found.mask, BitMask::full(6, 8));
        assert!(nm_mask_transposable_local(&scores, &[6, 8], 8, 8).is_err());
        scores[11] = f32::NAN;
        for m in [2, 8] {
            let error = KernelError::NonFiniteScore {
                layer: 0,
                index: 11,
            };
            assert_eq!(
                nm_mask_transposable_local(&scores, &[6, 8], 1, m),
                Err(error)
            );
        }
    }
}

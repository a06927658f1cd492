//! Per-channel statistics (K10 of the specification): one pass, f64, the same bits at every thread count.

use crate::error::expect_len;
use crate::{BitMask, KernelError};
use rayon::prelude::*;

/// Partial sums per row, added up in a fixed order at its end.
const LANES: usize = 8;
/// Below this many weights threads cost more than they save.
const SERIAL: usize = 1 << 18;

/// Statistics of each output channel; deviations are over n, not n - 1.
///
/// Means and deviations of nothing are NaN: of a channel without weights, or (`kept`) without survivors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChannelStats {
    /// Mean of all weights.
    pub mean: Vec<f64>,
    /// Deviation of all weights.
    pub std: Vec<f64>,
    /// Mean with the pruned weights as zeros.
    pub mean_masked: Vec<f64>,
    /// Deviation with the pruned weights as zeros.
    pub std_masked: Vec<f64>,
    /// Mean of the survivors alone.
    pub mean_kept: Vec<f64>,
    /// Deviation of the survivors alone.
    pub std_kept: Vec<f64>,
    /// Survivors.
    pub nnz: Vec<u64>,
}

/// Statistics of the weight as it is and as masked; without a mask everything survives.
///
/// A pruned NaN or infinity shows in `mean` and `std` and nowhere else.
///
/// # Shapes
/// `weights`: `[rows, cols]`, row = output channel.
pub fn channel_stats(
    weights: &[f32],
    rows: usize,
    cols: usize,
    mask: Option<&BitMask>,
) -> Result<ChannelStats, KernelError> {
    expect_len("weights", rows.saturating_mul(cols), weights.len())?;
    if let Some(mask) = mask {
        expect_len("the mask's rows", rows, mask.rows())?;
        expect_len("the mask's columns", cols, mask.cols())?;
    }
    let row = |row: usize| {
        let weights = &weights[row * cols..][..cols];
        match mask {
            None => [Moments::of(weights); 2],
            Some(mask) => [Moments::of(weights), Moments::of_kept(weights, mask, row)],
        }
    };
    let moments: Vec<[Moments; 2]> = if weights.len() < SERIAL {
        (0..rows).map(row).collect()
    } else {
        (0..rows).into_par_iter().map(row).collect()
    };
    let mut stats = ChannelStats::default();
    for [all, kept] in moments {
        stats.mean.push(all.mean);
        stats.std.push(all.deviation());
        let masked = kept.with_zeros(cols as u64);
        stats.mean_masked.push(masked.mean);
        stats.std_masked.push(masked.deviation());
        stats.mean_kept.push(kept.mean);
        stats.std_kept.push(kept.deviation());
        stats.nnz.push(kept.count);
    }
    Ok(stats)
}

/// `sum over each row of a b`, in f64.
///
/// # Shapes
/// `a`, `b`: `[rows, cols]`.
pub fn channel_dot(
    a: &[f32],
    b: &[f32],
    rows: usize,
    cols: usize,
) -> Result<Vec<f64>, KernelError> {
    expect_len("a", rows.saturating_mul(cols), a.len())?;
    expect_len("b", rows.saturating_mul(cols), b.len())?;
    let row = |row: usize| {
        let (a, b) = (&a[row * cols..][..cols], &b[row * cols..][..cols]);
        let mut sums = [0.0; LANES];
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                *sum += f64::from(a) * f64::from(b);
            }
        }
        sums.iter().sum()
    };
    Ok(if a.len() < SERIAL {
        (0..rows).map(row).collect()
    } else {
        (0..rows).into_par_iter().map(row).collect()
    })
}

/// Number, mean and sum of squared distances from the mean.
#[derive(Debug, Clone, Copy)]
struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn of(weights: &[f32]) -> Self {
        let pivot = weights.first().map_or(0.0, |&w| f64::from(w));
        let mut sums = Sums::default();
        for chunk in weights.chunks(LANES) {
            sums.add(chunk.iter().map(|&w| f64::from(w) - pivot));
        }
        sums.moments(weights.len() as u64, pivot)
    }

    /// Of what the mask keeps in `row`; the rest is read but enters no sum.
    fn of_kept(weights: &[f32], mask: &BitMask, row: usize) -> Self {
        let Some(first) = mask.row_kept(row).next() else {
            return Sums::default().moments(0, 0.0);
        };
        let pivot = f64::from(weights[first]);
        let stride = mask.cols().div_ceil(32);
        let words = &mask.words()[row * stride..][..stride];
        let mut sums = Sums::default();
        for (weights, &word) in weights.chunks(32).zip(words) {
            for (at, chunk) in weights.chunks(LANES).enumerate() {
                let bits = word >> (LANES * at);
                let distances = chunk.iter().enumerate().map(|(lane, &w)| {
                    if bits >> lane & 1 == 1 {
                        f64::from(w) - pivot
                    } else {
                        0.0
                    }
                });
                sums.add(distances);
            }
        }
        sums.moments(u64::from(mask.row_nnz()[row]), pivot)
    }

    /// Of the same numbers and as many zeros as bring their count to `total`.
    fn with_zeros(self, total: u64) -> Self {
        if self.count == 0 && total > 0 {
            return Self {
                count: total,
                mean: 0.0,
                squares: 0.0,
            };
        }
        let (count, total_f) = (self.count as f64, total as f64);
        Self {
            count: total,
            mean: self.mean * (count / total_f),
            // Between the two groups, survivors and zeros; no difference of large numbers.
            squares: self.squares + self.mean * self.mean * count * ((total_f - count) / total_f),
        }
    }

    fn deviation(self) -> f64 {
        (self.squares / self.count as f64).sqrt()
    }
}

/// Sums of distances from a pivot and of their squares, by lane = column % 8.
///
/// The pivot is one of the numbers themselves, hence at most sqrt(n) deviations from their mean: taking the mean out
/// afterwards costs at most a factor n in precision, and equal numbers give exactly 0.
#[derive(Default)]
struct Sums {
    distance: [f64; LANES],
    square: [f64; LANES],
}

impl Sums {
    fn add(&mut self, distances: impl Iterator<Item = f64>) {
        let lanes = self.distance.iter_mut().zip(&mut self.square);
        for ((distance, square), d) in lanes.zip(distances) {
            *distance += d;
            *square += d * d;
        }
    }

    fn moments(&self, count: u64, pivot: f64) -> Moments {
        let n = count as f64;
        let (distance, square): (f64, f64) = (self.distance.iter().sum(), self.square.iter().sum());
        // Rounding may leave a tiny negative; NaN must survive, so no `max`.
        let squares = square - distance * (distance / n);
        Moments {
            count,
            mean: pivot + distance / n,
            squares: if squares < 0.0 { 0.0 } else { squares },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::test_masks as masks;
    use crate::reference::values;
    use proptest::prelude::*;

    /// Mean and deviation by definition, in two passes.
    fn definition(values: &[f64]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt())
    }

    fn near(got: f64, want: f64) -> bool {
        got.is_nan() && want.is_nan() || (got - want).abs() <= 1e-13 * (1.0 + want.abs())
    }

    proptest! {
        #[test]
        fn statistics_are_the_defined_ones(mask in masks(), shift in -3f32..3.0, seed in 0u64..1000) {
            let (rows, cols) = (mask.rows(), mask.cols());
            let weights: Vec<f32> = values(seed, rows * cols).iter().map(|v| v + shift).collect();
            let stats = channel_stats(&weights, rows, cols, Some(&mask)).unwrap();
            prop_assert_eq!(stats.nnz.len(), rows);
            for row in 0..rows {
                let dense: Vec<f64> = weights[row * cols..][..cols].iter().map(|&w| f64::from(w)).collect();
                let keep = |col: &usize| mask.get(row, *col);
                let masked: Vec<f64> =
                    (0..cols).map(|col| if keep(&col) { dense[col] } else { 0.0 }).collect();
                let kept: Vec<f64> = (0..cols).filter(keep).map(|col| dense[col]).collect();
                for (values, mean, std) in [
                    (&dense, stats.mean[row], stats.std[row]),
                    (&masked, stats.mean_masked[row], stats.std_masked[row]),
                    (&kept, stats.mean_kept[row], stats.std_kept[row]),
                ] {
                    let (want_mean, want_std) = definition(values);
                    prop_assert!(near(mean, want_mean) && near(std, want_std), "{mean} {std} for {want_mean} {want_std}");
                }
                prop_assert_eq!(stats.nnz[row] as usize, kept.len());
            }
            let plain = channel_stats(&weights, rows, cols, None).unwrap();
            if cols > 0 {
                prop_assert_eq!(&plain.mean, &stats.mean);
                prop_assert_eq!(&plain.std_masked, &stats.std);
            }
        }

        #[test]
        fn dots_are_sums_of_products(rows in 0usize..5, cols in 0usize..50, seed in 0u64..1000) {
            let (a, b) = (values(seed, rows * cols), values(seed + 1, rows * cols));
            let dots = channel_dot(&a, &b, rows, cols).unwrap();
            prop_assert_eq!(dots.len(), rows);
            for (row, &dot) in dots.iter().enumerate() {
                let range = row * cols..(row + 1) * cols;
                let want: f64 = a[range.clone()].iter().zip(&b[range]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                prop_assert!(near(dot, want));
            }
        }
    }

    #[test]
    fn the_worked_vector_of_the_correction() {
        let mask = BitMask::from_keep(1, 4, &[true, false, false, true]).unwrap();
        let stats = channel_stats(&[0.4, -0.2, 0.1, 0.3], 1, 4, Some(&mask)).unwrap();
        // lambda = sigma(W_d) / sigma(W_s) of the worked example.
        assert!((stats.std[0] / stats.std_masked[0] - 1.283377889).abs() < 1e-7);
        assert!((stats.mean[0] - 0.15).abs() < 1e-8);
        assert!((stats.mean_masked[0] - 0.175).abs() < 1e-8);
    }

    #[test]
    fn equal_weights_far_from_zero_have_no_spread() {
        let stats = channel_stats(&[1234.567; 100], 1, 100, None).unwrap();
        assert_eq!((stats.mean[0], stats.std[0]), (f64::from(1234.567f32), 0.0));
        // A spread of 1e-4 at 1e4: gone in f32 sums.
        let weights: Vec<f32> = (0..1000).map(|i| 1e4 + (i % 2) as f32 / 1024.0).collect();
        let stats = channel_stats(&weights, 1, 1000, None).unwrap();
        assert!((stats.std[0] * 2048.0 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn pruned_nan_stays_out() {
        let mask = BitMask::from_keep(1, 3, &[false, true, true]).unwrap();
        let stats = channel_stats(&[f32::NAN, 1.0, 3.0], 1, 3, Some(&mask)).unwrap();
        assert!(stats.mean[0].is_nan() && stats.std[0].is_nan());
        assert_eq!((stats.mean_kept[0], stats.std_kept[0]), (2.0, 1.0));
        assert!((stats.mean_masked[0] - 4.0 / 3.0).abs() < 1e-15);
        let stats = channel_stats(&[1.0, f32::NAN, 3.0], 1, 3, Some(&mask)).unwrap();
        assert!(stats.std_kept[0].is_nan() && stats.mean_masked[0].is_nan());
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let (rows, cols) = (130, 2305);
        let weights = values(3, rows * cols);
        let mask = BitMask::from_fn(rows, cols, |i| weights[i] > 0.1);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                let stats = channel_stats(&weights, rows, cols, Some(&mask)).unwrap();
                (stats, channel_dot(&weights, &weights, rows, cols).unwrap())
            })
        };
        let one = run(1);
        for again in 0..20 {
            assert!(run([2, 8][again % 2]) == one);
        }
        // The same rows, few enough for the serial path.
        let few = channel_stats(&weights[..3 * cols], 3, cols, None).unwrap();
        assert_eq!(few.std, one.0.std[..3]);
    }

    #[test]
    fn lengths_are_checked() {
        assert!(channel_stats(&[0.0; 5], 2, 3, None).is_err());
        assert!(channel_stats(&[0.0; 6], 2, 3, Some(&BitMask::full(3, 2))).is_err());
        assert!(channel_dot(&[0.0; 6], &[0.0; 5], 2, 3).is_err());
    }
}

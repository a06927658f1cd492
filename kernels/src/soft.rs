//! Learned thresholds (K9 of the specification): a weight masked by its magnitude, and the gradients of both.
//!
//! Two rules: FCPTS (arXiv 2405.05808, section 1.4 of the algorithms' specification) keeps `w` where `|w| > t`; STR
//! (arXiv 2002.03231) also shrinks the survivors, `sign(w) max(|w| - t, 0)`.

use crate::KernelError;
use crate::error::expect_len;
use rayon::prelude::*;

/// Partial sums per row, added up in a fixed order at its end.
const LANES: usize = 8;
/// Below this many weights threads cost more than they save.
const SERIAL: usize = 1 << 18;

/// What passes the hard mask `1[|w| > t]` backwards; the straight-through window is `||w| - t| < 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaskGrad {
    /// `dw = g m`, `dt = 0`: the released code of FCPTS.
    None,
    /// `dw = g m`, `dt = -1/2 sum g w` over the window: the paper's intent.
    #[default]
    Threshold,
    /// As `Threshold`, and `dw` gains `1/2 g |w|` in the window.
    Both,
}

/// How a threshold acts on a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoftMode {
    /// FCPTS: `w` where `|w| > t`, else 0.
    Hard(MaskGrad),
    /// STR: `sign(w) max(|w| - t, 0)`; `dw = g` and `dt = -sum g sign(w)` over the survivors.
    Shrink,
}

/// A masked weight and what survived.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftMask {
    /// The weight with its mask applied.
    pub weight: Vec<f32>,
    /// Survivors under each threshold.
    pub kept: Vec<u64>,
}

/// Masks a weight by thresholds. NaN weights survive, so that they show.
///
/// # Shapes
/// `w`: `[rows, cols]`; `t`: `[1]` for the layer or `[rows]`.
pub fn soft_mask_forward(
    w: &[f32],
    t: &[f32],
    [rows, cols]: [usize; 2],
    mode: SoftMode,
) -> Result<SoftMask, KernelError> {
    check(w, t, rows, cols)?;
    let mut weight = vec![0.0; w.len()];
    let kept = each_row(&mut weight, cols, rows, |row, out| {
        let t = threshold(t, row);
        let mut kept = 0u64;
        for (out, &w) in out.iter_mut().zip(&w[row * cols..]) {
            let keep = survives(w, t);
            kept += u64::from(keep);
            let value = match mode {
                SoftMode::Hard(_) => w,
                SoftMode::Shrink => w - t.copysign(w),
            };
            *out = if keep { value } else { 0.0 };
        }
        kept
    });
    Ok(SoftMask {
        weight,
        kept: reduce(&kept, t.len()),
    })
}

/// Gradients of a loss with respect to weight and thresholds, from `g`, its gradient with respect to the masked weight.
///
/// # Shapes
/// `w`, `g`: `[rows, cols]`; `t`: `[1]` or `[rows]`. Results: as `w` and as `t`.
pub fn soft_mask_backward(
    w: &[f32],
    t: &[f32],
    g: &[f32],
    [rows, cols]: [usize; 2],
    mode: SoftMode,
) -> Result<(Vec<f32>, Vec<f64>), KernelError> {
    check(w, t, rows, cols)?;
    expect_len("g", w.len(), g.len())?;
    let mut dw = vec![0.0; w.len()];
    let dt = each_row(&mut dw, cols, rows, |row, dw| {
        let t = threshold(t, row);
        let (w, g) = (&w[row * cols..][..cols], &g[row * cols..][..cols]);
        let mut sums = [0.0f64; LANES];
        let chunks = dw
            .chunks_mut(LANES)
            .zip(w.chunks(LANES))
            .zip(g.chunks(LANES));
        for ((dw, w), g) in chunks {
            for ((sum, dw), (&w, &g)) in sums.iter_mut().zip(dw).zip(w.iter().zip(g)) {
                let (direct, at_threshold) = gradients(w, t, g, mode);
                *dw = direct;
                *sum += at_threshold;
            }
        }
        sums.iter().sum()
    });
    Ok((dw, reduce(&dt, t.len())))
}

/// One weight's `dw` and its share of `dt`.
fn gradients(w: f32, t: f32, g: f32, mode: SoftMode) -> (f32, f64) {
    let passed = if survives(w, t) { g } else { 0.0 };
    match mode {
        SoftMode::Shrink => (passed, -f64::from(passed) * f64::from(1f32.copysign(w))),
        SoftMode::Hard(MaskGrad::None) => (passed, 0.0),
        SoftMode::Hard(grad) => {
            // In f64: the difference of two f32 must not round onto the window's edge.
            let inside = (f64::from(w.abs()) - f64::from(t)).abs() < 1.0;
            let through = if inside {
                0.5 * f64::from(g) * f64::from(w)
            } else {
                0.0
            };
            let dw = match grad {
                MaskGrad::Both => {
                    (f64::from(passed) + through * f64::from(1f32.copysign(w))) as f32
                }
                _ => passed,
            };
            (dw, -through)
        }
    }
}

/// `|w| > t`, and NaN.
fn survives(w: f32, t: f32) -> bool {
    w.abs() > t || w.is_nan()
}

fn threshold(t: &[f32], row: usize) -> f32 {
    if t.len() == 1 { t[0] } else { t[row] }
}

/// Calls `work` once per row with its slice of `out`; results in row order whatever the threads do.
fn each_row<R: Send + Default + Clone>(
    out: &mut [f32],
    cols: usize,
    rows: usize,
    work: impl Fn(usize, &mut [f32]) -> R + Sync,
) -> Vec<R> {
    if cols == 0 {
        return vec![R::default(); rows];
    }
    if out.len() < SERIAL {
        let rows = out.chunks_mut(cols).enumerate();
        rows.map(|(row, out)| work(row, out)).collect()
    } else {
        let rows = out.par_chunks_mut(cols).enumerate();
        rows.map(|(row, out)| work(row, out)).collect()
    }
}

/// One value per threshold from one per row.
fn reduce<R: Copy + std::iter::Sum>(rows: &[R], thresholds: usize) -> Vec<R> {
    if thresholds == rows.len() {
        rows.to_vec()
    } else {
        vec![rows.iter().copied().sum()]
    }
}

fn check(w: &[f32], t: &[f32], rows: usize, cols: usize) -> Result<(), KernelError> {
    expect_len("w", rows.saturating_mul(cols), w.len())?;
    if t.len() != 1 {
        expect_len("t", rows, t.len())?;
    }
    match t.iter().position(|t| t.is_nan() || *t < 0.0) {
        Some(index) => Err(KernelError::Threshold { index }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::values;
    use proptest::prelude::*;

    const MODES: [SoftMode; 4] = [
        SoftMode::Hard(MaskGrad::None),
        SoftMode::Hard(MaskGrad::Threshold),
        SoftMode::Hard(MaskGrad::Both),
        SoftMode::Shrink,
    ];

    #[test]
    fn a_layer_worked_by_hand() {
        let (w, g) = ([0.5, -2.0, 0.25, -0.5], [1.0, 2.0, 4.0, 8.0]);
        let forward = |mode| soft_mask_forward(&w, &[0.5], [2, 2], mode).unwrap();
        let backward = |mode| soft_mask_backward(&w, &[0.5], &g, [2, 2], mode).unwrap();
        // Strict: a weight of exactly t goes.
        let hard = forward(MODES[0]);
        assert_eq!(
            (hard.weight, hard.kept),
            (vec![0.0, -2.0, 0.0, 0.0], vec![1])
        );
        assert_eq!(forward(SoftMode::Shrink).weight, [0.0, -1.5, 0.0, 0.0]);
        // The window holds all but -2: sum g w = 0.5 + 1 - 4.
        let dw = vec![0.0, 2.0, 0.0, 0.0];
        assert_eq!(backward(MODES[0]), (dw.clone(), vec![0.0]));
        assert_eq!(backward(MODES[1]), (dw.clone(), vec![1.25]));
        assert_eq!(backward(MODES[2]), (vec![0.25, 2.0, 0.5, 2.0], vec![1.25]));
        assert_eq!(backward(MODES[3]), (dw, vec![2.0]));
    }

    proptest! {
        #[test]
        fn channels_are_layers_of_one_row(rows in 0usize..6, cols in 0usize..40, seed in 0u64..1000) {
            let (w, g) = (values(seed, rows * cols), values(seed + 1, rows * cols));
            let t: Vec<f32> = values(seed + 2, rows).iter().map(|v| v.abs()).collect();
            for mode in MODES {
                let whole = soft_mask_forward(&w, &t, [rows, cols], mode).unwrap();
                let (dw, dt) = soft_mask_backward(&w, &t, &g, [rows, cols], mode).unwrap();
                prop_assert_eq!(dt.len(), t.len());
                for row in 0..rows {
                    let range = row * cols..(row + 1) * cols;
                    let (w, g, t) = (&w[range.clone()], &g[range.clone()], &t[row..][..1]);
                    let one = soft_mask_forward(w, t, [1, cols], mode).unwrap();
                    prop_assert_eq!(&one.weight, &whole.weight[range.clone()]);
                    prop_assert_eq!(one.kept[0], whole.kept[row]);
                    let one = soft_mask_backward(w, t, g, [1, cols], mode).unwrap();
                    prop_assert_eq!((&one.0[..], one.1[0]), (&dw[range], dt[row]));
                }
            }
        }

        #[test]
        fn gradients_are_the_defined_sums(n in 0usize..200, t in 0f32..1.2, scale in 0.1f32..3.0, seed in 0u64..1000) {
            let w: Vec<f32> = values(seed, n).iter().map(|v| v * scale).collect();
            let g = values(seed + 1, n);
            let f = |i: usize| (f64::from(w[i]), f64::from(g[i]));
            let (mut hard, mut shrink) = (0.0, 0.0);
            for (w, g) in (0..n).map(f) {
                if (w.abs() - f64::from(t)).abs() < 1.0 {
                    hard -= 0.5 * g * w;
                }
                if w.abs() > f64::from(t) {
                    shrink -= g * w.signum();
                }
            }
            for (mode, want) in MODES.into_iter().zip([0.0, hard, hard, shrink]) {
                let (dw, dt) = soft_mask_backward(&w, &[t], &g, [1, n], mode).unwrap();
                prop_assert!((dt[0] - want).abs() < 1e-12);
                if mode != SoftMode::Hard(MaskGrad::Both) {
                    for i in 0..n {
                        prop_assert_eq!(dw[i], if w[i].abs() > t { g[i] } else { 0.0 });
                    }
                }
            }
        }

        #[test]
        fn shrinking_has_the_slopes_it_reports(n in 1usize..30, t in 0.1f32..0.6, seed in 0u64..1000) {
            let (w, g) = (values(seed, n), values(seed + 1, n));
            // Away from the kink a difference quotient in t is exact up to rounding.
            let h = 1e-3f32;
            prop_assume!(w.iter().all(|w| (w.abs() - t).abs() > 2.0 * h));
            let loss = |t: f32| -> f64 {
                let y = soft_mask_forward(&w, &[t], [1, n], SoftMode::Shrink).unwrap().weight;
                y.iter().zip(&g).map(|(&y, &g)| f64::from(y) * f64::from(g)).sum()
            };
            let slope = (loss(t + h) - loss(t - h)) / (f64::from(t + h) - f64::from(t - h));
            let (_, dt) = soft_mask_backward(&w, &[t], &g, [1, n], SoftMode::Shrink).unwrap();
            prop_assert!((slope - dt[0]).abs() < 1e-2, "{slope} {}", dt[0]);
        }
    }

    #[test]
    fn nan_shows_and_bad_input_is_refused() {
        for mode in MODES {
            let got = soft_mask_forward(&[f32::NAN, 0.1], &[0.5], [1, 2], mode).unwrap();
            assert!(got.weight[0].is_nan() && got.weight[1] == 0.0 && got.kept == [1]);
            assert!(soft_mask_forward(&[0.0; 3], &[0.5], [1, 2], mode).is_err());
            assert!(soft_mask_forward(&[0.0; 4], &[0.5; 3], [2, 2], mode).is_err());
            assert!(soft_mask_backward(&[0.0; 4], &[0.5], &[0.0; 3], [2, 2], mode).is_err());
            let nan = soft_mask_forward(&[0.0; 4], &[0.5, f32::NAN], [2, 2], mode);
            assert_eq!(nan, Err(KernelError::Threshold { index: 1 }));
            let negative = soft_mask_forward(&[0.0; 4], &[-0.5], [2, 2], mode);
            assert_eq!(negative, Err(KernelError::Threshold { index: 0 }));
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let shape @ [rows, cols] = [130, 2305];
        let (w, g) = (values(3, rows * cols), values(4, rows * cols));
        let channels: Vec<f32> = values(5, rows).iter().map(|v| v.abs()).collect();
        for t in [&[0.3][..], &channels] {
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.unwrap().install(|| {
                    let mode = SoftMode::Hard(MaskGrad::Both);
                    let forward = soft_mask_forward(&w, t, shape, mode).unwrap();
                    (forward, soft_mask_backward(&w, t, &g, shape, mode).unwrap())
                })
            };
            let one = run(1);
            for again in 0..20 {
                assert!(run([2, 8][again % 2]) == one);
            }
        }
    }
}

//! Statistics of channels, learned thresholds and Gram sums, within their bounds of f64 loops.

use cubecl::client::Client;

use super::super::buffer::Buffer;
use super::super::gram::GramSums;
use super::super::{soft, stats};
use super::{Passed, Random, on_device, text};
use crate::reference;
use crate::{BitMask, ConvShape, GramState, MaskGrad, SoftMode};

pub(super) fn statistics(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(5);
    let sizes = [
        [1, 1],
        [3, 40],
        [5, 256],
        [9, 1000],
        [2, 4608],
        [0, 9],
        [4, 0],
    ];
    for (at, [rows, cols]) in sizes.into_iter().enumerate() {
        for (shift, density) in [(0.0, 0.3), (3.0, 0.05), (1e4, 0.9), (0.0, 0.0)] {
            let mut weights = random.floats(rows * cols);
            weights.iter_mut().for_each(|w| *w += shift);
            let mask = random.mask(rows, cols, density);
            let want = crate::channel_stats(&weights, rows, cols, Some(&mask)).map_err(text)?;
            let w = Buffer::of_f32(client, &weights).map_err(text)?;
            let words = on_device(client, &mask)?;
            let got = stats::channel_stats(client, &w, [rows, cols], Some(&words)).map_err(text)?;
            let name = || format!("statistics {at} of [{rows}, {cols}], shift {shift}");
            passed.same(&got.nnz, &want.nnz, name)?;
            for row in 0..rows {
                let numbers = &weights[row * cols..][..cols];
                // With zeros among them, what is masked spreads as far as the survivors lie from 0.
                let far = numbers
                    .iter()
                    .fold(0f32, |far, w| far.max((w - numbers[0]).abs()));
                let kept = numbers.iter().fold(0f32, |far, w| far.max(w.abs()));
                // The first survivor, not the first number, is what survivors' distances are from: at most twice as far.
                let (far, kept) = (2.0 * f64::from(far), f64::from(kept));
                let unit = 2f64.powi(-21);
                for (got, want, bound) in [
                    (got.mean[row], want.mean[row], far),
                    (got.std[row], want.std[row], far),
                    (got.mean_kept[row], want.mean_kept[row], far),
                    (got.std_kept[row], want.std_kept[row], far),
                    (got.mean_masked[row], want.mean_masked[row], far),
                    (got.std_masked[row], want.std_masked[row], far.max(kept)),
                ] {
                    let ratio = (got - want).abs() / (bound * unit + 1e-30);
                    let both_nothing = got.is_nan() && want.is_nan();
                    passed.of(if both_nothing { 0.0 } else { ratio }, name)?;
                }
            }
            let other = random.floats(rows * cols);
            let b = Buffer::of_f32(client, &other).map_err(text)?;
            let dots = stats::channel_dot(client, &w, &b, [rows, cols]).map_err(text)?;
            let want = crate::channel_dot(&weights, &other, rows, cols).map_err(text)?;
            for (row, (got, want)) in dots.iter().zip(&want).enumerate() {
                let terms = weights.iter().zip(&other).skip(row * cols).take(cols);
                let scale: f64 = terms.map(|(a, b)| f64::from((a * b).abs())).sum();
                passed.of(
                    (got - want).abs() / (scale * 2f64.powi(-23) + 1e-30),
                    || format!("dot product {row} of [{rows}, {cols}], shift {shift}"),
                )?;
            }
        }
    }
    // A pruned NaN stays out; equal weights have no spread.
    let weights = [f32::NAN, 1.0, 3.0, 7.5, 7.5, 7.5];
    let mask = BitMask::from_keep(2, 3, &[false, true, true, true, true, true]).map_err(text)?;
    let w = Buffer::of_f32(client, &weights).map_err(text)?;
    let words = on_device(client, &mask)?;
    let got = stats::channel_stats(client, &w, [2, 3], Some(&words)).map_err(text)?;
    passed.same(&got.mean[0].is_nan(), &true, || "a NaN shows".into())?;
    passed.same(&got.mean_kept, &vec![2.0, 7.5], || "a pruned NaN".into())?;
    passed.same(&got.std_kept, &vec![1.0, 0.0], || "spread".into())?;
    let plain = stats::channel_stats(client, &w, [2, 3], None).map_err(text)?;
    passed.same(
        &(plain.nnz, plain.std_masked[1]),
        &(vec![3, 3], 0.0),
        || "no mask".into(),
    )?;
    Ok(passed)
}

pub(super) fn learned_thresholds(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(6);
    let modes = [
        SoftMode::Hard(MaskGrad::None),
        SoftMode::Hard(MaskGrad::Threshold),
        SoftMode::Hard(MaskGrad::Both),
        SoftMode::Shrink,
    ];
    for mode in modes {
        for [rows, cols] in [[1, 1], [4, 300], [7, 1029], [0, 3]] {
            for single in [true, false] {
                let mut w = random.floats(rows * cols);
                w.iter_mut().for_each(|w| *w *= 1.7);
                // Ties with the threshold, the window's very edge, what a device may flush.
                let t: Vec<f32> = (0..if single { 1 } else { rows })
                    .map(|row| [0.5, 2f32.powi(-30), 0.0][row % 3])
                    .collect();
                for (at, special) in [0.5, -0.5, 1.0, -1.0, 1e-42, 0.0, 1.5]
                    .into_iter()
                    .enumerate()
                {
                    if let Some(w) = w.get_mut(3 * at) {
                        *w = special;
                    }
                }
                let g = random.floats(rows * cols);
                let [wd, td, gd] = [&w, &t, &g].map(|values| Buffer::of_f32(client, values));
                let (wd, td, gd) = (wd.map_err(text)?, td.map_err(text)?, gd.map_err(text)?);
                let name = || format!("{mode:?} of [{rows}, {cols}], one threshold {single}");

                let want = crate::soft_mask_forward(&w, &t, [rows, cols], mode).map_err(text)?;
                let (out, kept) =
                    soft::soft_mask_forward(client, &wd, &td, [rows, cols], mode).map_err(text)?;
                let kept: Vec<u64> = kept
                    .read_u32()
                    .map_err(text)?
                    .into_iter()
                    .map(u64::from)
                    .collect();
                let kept = if single {
                    vec![kept.iter().sum()]
                } else {
                    kept
                };
                passed.same(&kept, &want.kept, name)?;
                // A difference below the normal range may be flushed.
                let tiny = f32::MIN_POSITIVE;
                let out = out.read_f32().map_err(text)?;
                let near = |a: f32, b: f32| a == b || (a - b).abs() <= tiny;
                let all =
                    out.len() == w.len() && out.iter().zip(&want.weight).all(|(&a, &b)| near(a, b));
                passed.same(&all, &true, name)?;

                let (want_dw, want_dt) =
                    crate::soft_mask_backward(&w, &t, &g, [rows, cols], mode).map_err(text)?;
                let (dw, dt) = soft::soft_mask_backward(client, &wd, &td, &gd, [rows, cols], mode)
                    .map_err(text)?;
                let dw = dw.read_f32().map_err(text)?;
                passed.same(&dw.len(), &w.len(), name)?;
                for (at, (&got, &want)) in dw.iter().zip(&want_dw).enumerate() {
                    let scale = g[at].abs() * (1.0 + w[at].abs());
                    let ratio =
                        f64::from((got - want).abs()) / (f64::from(scale) * 2f64.powi(-23) + 1e-37);
                    passed.of(ratio, name)?;
                }
                let dt: Vec<f64> = dt
                    .read_f32()
                    .map_err(text)?
                    .into_iter()
                    .map(f64::from)
                    .collect();
                let dt = if single { vec![dt.iter().sum()] } else { dt };
                for (at, (&got, &want)) in dt.iter().zip(&want_dt).enumerate() {
                    let terms = w.iter().zip(&g).enumerate();
                    let terms = terms.filter(|(i, _)| single || i / cols == at);
                    let scale: f64 = terms
                        .map(|(_, (w, g))| f64::from(g.abs() * w.abs().max(1.0)))
                        .sum();
                    passed.of((got - want).abs() / (scale * 2f64.powi(-22) + 1e-37), name)?;
                }
            }
        }
    }
    Ok(passed)
}

/// Sums against f64 ones, within the bound of f32 sums over [`crate::gpu::gram`]'s chunks.
fn compare_gram(
    passed: &mut Passed,
    got: &GramState,
    columns: &[Vec<f32>],
    positions: usize,
    name: &str,
) -> Result<(), String> {
    passed.same(&got.positions(), &(positions as u64), || name.into())?;
    for (group, x) in columns.iter().enumerate() {
        let want = reference::gram(x, [positions, got.cols()]);
        let got = got.matrix(group);
        let bound = reference::Rounding::F32.bound(positions.min(256));
        for (at, (got, (want, scale))) in got
            .iter()
            .zip(want.value.iter().zip(&want.magnitude))
            .enumerate()
        {
            let ratio = (got - want).abs() / (bound * scale + f64::from(f32::MIN_POSITIVE));
            passed.of(ratio, || format!("{name}, group {group}, sum {at}"))?;
        }
    }
    Ok(())
}

pub(super) fn gram_sums(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(7);
    for [positions, cols] in [[1, 1], [300, 7], [700, 70], [40, 130], [0, 5]] {
        let mut sums = GramSums::new(client, 1, cols).map_err(text)?;
        let mut all = Vec::new();
        for _ in 0..2 {
            let x = random.floats(positions * cols);
            let on = Buffer::of_f32(client, &x).map_err(text)?;
            sums.add_linear(&on, positions).map_err(text)?;
            all.extend(x);
        }
        let got = sums.read().map_err(text)?;
        let name = format!("linear [{positions}, {cols}] twice");
        compare_gram(&mut passed, &got, &[all], 2 * positions, &name)?;
    }
    let plain = ConvShape::new(2, [4, 6], [9, 7], [3, 3]).with_padding([1, 1]);
    let shapes = [
        plain,
        plain.with_groups(2).with_stride([2, 1]),
        ConvShape {
            padding: [[0, 2], [3, 1]],
            ..plain.with_dilation([2, 1]).with_stride([1, 2])
        },
        ConvShape::new(3, [6, 6], [5, 5], [2, 3]).with_groups(6),
        ConvShape::new(0, [4, 4], [5, 5], [1, 1]),
    ];
    for shape in shapes {
        let x = random.floats(shape.input_len());
        let on = Buffer::of_f32(client, &x).map_err(text)?;
        let mut sums = GramSums::new(client, shape.groups, shape.weight_cols()).map_err(text)?;
        sums.add_conv(&on, &shape).map_err(text)?;
        let columns: Vec<Vec<f32>> = (0..shape.groups)
            .map(|group| reference::im2col(&x, group, &shape))
            .collect();
        let positions = shape.batch * shape.out_size().iter().product::<usize>();
        let got = sums.read().map_err(text)?;
        compare_gram(
            &mut passed,
            &got,
            &columns,
            positions,
            &format!("{shape:?}"),
        )?;
    }
    // One by one onto 2^24, where f32 has no odd numbers.
    let [large, one] = [4096.0, 1.0].map(|x| Buffer::of_f32(client, &[x]));
    let (large, one) = (large.map_err(text)?, one.map_err(text)?);
    let mut ones = GramSums::new(client, 1, 1).map_err(text)?;
    ones.add_linear(&large, 1).map_err(text)?;
    for _ in 0..5 {
        ones.add_linear(&one, 1).map_err(text)?;
    }
    let got = ones.read().map_err(text)?.diagonal(0);
    let want = vec![2f64.powi(24) + 5.0];
    passed.same(&got, &want, || "what one f32 loses".into())?;
    let sums = GramSums::new(client, 1, 4)
        .and_then(|mut sums| sums.add_linear(&Buffer::of_f32(client, &[0.0; 7])?, 2));
    passed.same(&sums.is_err(), &true, || {
        "a length that is not the shape's".into()
    })?;
    Ok(passed)
}

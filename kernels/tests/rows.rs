//! Softmax, layer norm, GELU and batch norm on the CPU against f64, on every instruction set at hand.

mod common;

use common::Random;
use kernels::cpu::{Isa, norm, rows};
use kernels::reference;

impl Random {
    /// Uniform in [-scale, scale) around `at`.
    fn floats_around(&mut self, n: usize, at: f32, scale: f32) -> Vec<f32> {
        (0..n)
            .map(|_| ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale + at)
            .collect()
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn threads<T: Send>(n: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build();
    pool.expect("threads can be started").install(work)
}

/// Every value within `bound` of its scale.
fn close(what: &str, got: &[f32], want: &[f64], scale: impl Fn(usize) -> f64, bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(
            error <= bound * scale(i) + 1e-37,
            "{what}: element {i} is {got}, should be {want}"
        );
    }
}

fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

const UNIT: f64 = 1.0 / (1 << 23) as f64;

#[test]
fn softmax_agrees_with_f64() {
    for isa in Isa::available() {
        let mut random = Random(1);
        for case in 0..150 {
            let (count, cols) = (random.below(40), 1 + random.below(300));
            let (at, wide) = (random.of(&[0.0, 50.0]), random.of(&[1.0, 60.0]));
            let x = random.floats_around(count * cols, at, wide);
            let y = rows::softmax(isa, &x, cols);
            let want = reference::softmax_rows(&x, [count, cols]);
            // The exponent's argument is rounded: its error grows with the distance from the row's highest.
            let scale = |i: usize| want[i] * (1.0 + 1.5 * want[i].ln().abs().min(100.0));
            close(
                &format!("{isa:?} softmax {case}"),
                &y,
                &want,
                scale,
                6.0 * UNIT,
            );

            let g = random.floats_around(count * cols, 0.0, 1.0);
            let dx = rows::softmax_grad(isa, &y, &g, cols);
            let mut want = Vec::new();
            let mut most = Vec::new();
            for (y, g) in y.chunks(cols).zip(g.chunks(cols)) {
                let dot: f64 = y
                    .iter()
                    .zip(g)
                    .map(|(&y, &g)| f64::from(y) * f64::from(g))
                    .sum();
                want.extend(
                    y.iter()
                        .zip(g)
                        .map(|(&y, &g)| f64::from(y) * (f64::from(g) - dot)),
                );
                most.extend(y.iter().map(|&y| f64::from(y)));
            }
            close(
                &format!("{isa:?} softmax gradient {case}"),
                &dx,
                &want,
                |i| most[i],
                16.0 * UNIT,
            );
        }
    }
}

#[test]
fn exponentials_are_right_over_their_range() {
    for isa in Isa::available() {
        // In rows [x, 0] softmax is exp(x) / (1 + exp(x)): for low x, the exponential itself.
        let x: Vec<f32> = (0..200_000)
            .flat_map(|i| [-(i as f32) * 0.000_5, 0.0])
            .collect();
        let y = rows::softmax(isa, &x, 2);
        let mut worst = 0.0f64;
        for (x, y) in x.chunks(2).zip(y.chunks(2)) {
            let e = f64::from(x[0]).exp();
            let want = e / (1.0 + e);
            if x[0] < -87.3 {
                assert!(f64::from(y[0]) <= 1.3 * e, "{x:?} gives {y:?}");
            } else {
                worst = worst.max((f64::from(y[0]) / want - 1.0).abs());
            }
        }
        assert!(
            worst < 3.0 * UNIT,
            "{isa:?}: relative error {}",
            worst / UNIT
        );
    }
}

#[test]
fn softmax_of_non_finite_rows() {
    for isa in Isa::available() {
        for cols in [3, 40] {
            let mut x = vec![0.5; cols];
            x[1] = f32::NEG_INFINITY;
            let y = rows::softmax(isa, &x, cols);
            assert!(y[1] == 0.0 && y[0] > 0.0, "{isa:?} {y:?}");
            x[2] = f32::NAN;
            assert!(rows::softmax(isa, &x, cols).iter().all(|v| v.is_nan()));
            let lowest = vec![f32::NEG_INFINITY; cols];
            assert!(rows::softmax(isa, &lowest, cols).iter().all(|v| v.is_nan()));
        }
    }
}

#[test]
fn layer_norm_agrees_with_f64() {
    for isa in Isa::available() {
        let mut random = Random(2);
        for case in 0..150 {
            let (count, cols) = (random.below(80), 2 + random.below(300));
            let at = random.of(&[0.0, 0.0, 30.0]);
            let x = random.floats_around(count * cols, at, 1.0);
            let gamma = random.floats_around(cols, 0.0, 2.0);
            let beta = random.floats_around(cols, 0.0, 1.0);
            let affine = random.below(3) > 0;
            let (gamma, beta) = (affine.then_some(&gamma[..]), affine.then_some(&beta[..]));
            let epsilon = 1e-5f32;
            let out = rows::layer_norm(isa, &x, gamma, beta, epsilon, cols);
            let want = reference::layer_norm_rows(&x, gamma, beta, epsilon.into(), [count, cols]);
            // Rows of two or three columns can be nearly constant, and their deviations are then rounded.
            let scale = |i: usize| {
                let row = &x[i / cols * cols..][..cols];
                let largest = row.iter().fold(0.0, |a: f32, v| a.max(v.abs()));
                8.0 + f64::from(largest * out.inv_std[i / cols])
            };
            close(
                &format!("{isa:?} layer norm {case}"),
                &out.y,
                &want,
                scale,
                12.0 * UNIT,
            );

            let g = random.floats_around(count * cols, 0.0, 1.0);
            let got = rows::layer_norm_grad(isa, &x, gamma, &out.mean, &out.inv_std, &g, cols);
            let mut dx = Vec::new();
            let (mut dgamma, mut dbeta) = (vec![0.0; cols], vec![0.0; cols]);
            for (row, (x, g)) in x.chunks(cols).zip(g.chunks(cols)).enumerate() {
                let (mean, inv) = (f64::from(out.mean[row]), f64::from(out.inv_std[row]));
                let normal: Vec<f64> = x.iter().map(|&x| (f64::from(x) - mean) * inv).collect();
                let d: Vec<f64> = (0..cols)
                    .map(|i| f64::from(g[i]) * gamma.map_or(1.0, |gamma| f64::from(gamma[i])))
                    .collect();
                let n = cols as f64;
                let total = d.iter().sum::<f64>() / n;
                let along = d.iter().zip(&normal).map(|(d, h)| d * h).sum::<f64>() / n;
                for i in 0..cols {
                    dx.push(inv * (d[i] - total - normal[i] * along));
                    dgamma[i] += f64::from(g[i]) * normal[i];
                    dbeta[i] += f64::from(g[i]);
                }
            }
            let name = format!("{isa:?} layer norm gradient {case}");
            let by_row = |i: usize| scale(i) * (2.0 + 2.0 * f64::from(out.inv_std[i / cols]));
            close(&name, &got.dx, &dx, by_row, 16.0 * UNIT);
            let by_col = |_| 300.0;
            close(&name, &got.dgamma, &dgamma, by_col, 16.0 * UNIT);
            close(&name, &got.dbeta, &dbeta, by_col, 2.0 * UNIT);
        }
    }
}

/// `erf` by its Taylor series near 0 and its continued fraction beyond: another route than the kernels'.
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 3.0 {
        let (mut term, mut sum) = (z, z);
        for n in 1..200 {
            term *= -z * z / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let mut fraction = z;
        for n in (1..60).rev() {
            fraction = z + n as f64 / 2.0 / fraction;
        }
        1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

#[test]
fn gelu_agrees_with_f64() {
    assert!((erf(0.5) - 0.520_499_877_813_046_5).abs() < 1e-15);
    assert!((erf(3.0) - erf(3.0 - 1e-12)).abs() < 1e-12);
    for isa in Isa::available() {
        let x: Vec<f32> = (-60_001..60_000).map(|i| i as f32 * 0.000_2).collect();
        let phi = |x: f64| 0.5 * (1.0 + erf(x / 2f64.sqrt()));
        let want: Vec<f64> = f64s(&x).iter().map(|&x| x * phi(x)).collect();
        let scale = |i: usize| 1.0 + f64::from(x[i].abs());
        close("gelu", &rows::gelu(isa, &x), &want, scale, 2e-7);
        let g: Vec<f32> = x.iter().map(|x| 1.0 - x * 0.1).collect();
        let want: Vec<f64> = x
            .iter()
            .zip(&g)
            .map(|(&x, &g)| {
                let x = f64::from(x);
                let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
                f64::from(g) * (phi(x) + x * density)
            })
            .collect();
        close(
            "gelu gradient",
            &rows::gelu_grad(isa, &x, &g),
            &want,
            scale,
            4e-7,
        );
        let ends = rows::gelu(isa, &[f32::NAN, 0.0, 1e30, 200.0]);
        assert!(
            ends[0].is_nan() && ends[1..] == [0.0, 1e30, 200.0],
            "{ends:?}"
        );
    }
}

#[test]
fn batch_norm_agrees_with_f64() {
    for isa in Isa::available() {
        let mut random = Random(4);
        for case in 0..150 {
            let planes = [1 + random.below(9), random.below(9), 1 + random.below(90)];
            let [images, channels, pixels] = planes;
            let n = images * channels * pixels;
            let at = random.of(&[0.0, 0.0, 100.0]);
            let x = random.floats_around(n, at, 1.0);
            let g = random.floats_around(n, 0.3, 1.0);
            let gamma = random.floats_around(channels, 0.0, 2.0);
            let beta = random.floats_around(channels, 0.0, 1.0);
            let epsilon = 1e-3f32;
            let out = norm::batch_norm_train_forward(isa, planes, &x, &gamma, &beta, epsilon);
            let grad = norm::batch_norm_train_backward(
                isa,
                planes,
                &x,
                &gamma,
                &out.mean,
                &out.inv_std,
                &g,
            );
            for channel in 0..channels {
                let of = |data: &[f32]| -> Vec<f32> {
                    (0..images)
                        .flat_map(|i| &data[(i * channels + channel) * pixels..][..pixels])
                        .copied()
                        .collect()
                };
                let (x, g) = (f64s(&of(&x)), f64s(&of(&g)));
                let count = x.len() as f64;
                let mean = x.iter().sum::<f64>() / count;
                let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
                let inv = 1.0 / (variance + f64::from(epsilon)).sqrt();
                let (scale, shift) = (f64::from(gamma[channel]), f64::from(beta[channel]));
                let name = |what| format!("{isa:?} case {case} {what}");
                let size = 1.0 + f64::from(at);
                close(
                    &name("mean"),
                    &[out.mean[channel]],
                    &[mean],
                    |_| size,
                    2.0 * UNIT,
                );
                close(
                    &name("variance"),
                    &[out.variance[channel]],
                    &[variance],
                    |_| variance + 1e-9,
                    2.0 * UNIT,
                );
                let normal: Vec<f64> = x.iter().map(|v| (v - mean) * inv).collect();
                let want: Vec<f64> = normal.iter().map(|v| v * scale + shift).collect();
                // x itself is exact: subtracting a rounded mean costs what the mean was rounded by.
                close(&name("output"), &of(&out.y), &want, |_| 8.0, 4.0 * UNIT);
                let dbeta = g.iter().sum::<f64>();
                let dgamma: f64 = g.iter().zip(&normal).map(|(g, h)| g * h).sum();
                // The statistics that the gradient starts from are f32.
                let bound = 4.0 * UNIT * count * (1.0 + size * inv);
                close(
                    &name("dbeta"),
                    &[grad.dbeta[channel]],
                    &[dbeta],
                    |_| count,
                    2.0 * UNIT,
                );
                close(
                    &name("dgamma"),
                    &[grad.dgamma[channel]],
                    &[dgamma],
                    |_| 1.0,
                    bound,
                );
                let want: Vec<f64> = g
                    .iter()
                    .zip(&normal)
                    .map(|(g, h)| scale * inv * (g - dbeta / count - h * dgamma / count))
                    .collect();
                let by = |_| 4.0 * (1.0 + inv) * (1.0 + size * inv);
                close(&name("dx"), &of(&grad.dx), &want, by, 8.0 * UNIT);
            }
        }
    }
}

#[test]
fn empty_inputs_give_empty_results() {
    for isa in Isa::available() {
        assert!(rows::softmax(isa, &[], 5).is_empty() && rows::softmax(isa, &[], 0).is_empty());
        assert!(rows::gelu(isa, &[]).is_empty());
        let out = rows::layer_norm(isa, &[], None, None, 1e-5, 3);
        assert!(out.y.is_empty() && out.mean.is_empty());
        let grad = rows::layer_norm_grad(isa, &[], None, &[], &[], &[], 3);
        assert_eq!(grad.dgamma, [0.0; 3]);
        let grad = norm::batch_norm_train_backward(
            isa,
            [0, 2, 4],
            &[],
            &[1.0; 2],
            &[0.0; 2],
            &[1.0; 2],
            &[],
        );
        assert_eq!((grad.dgamma, grad.dbeta), (vec![0.0; 2], vec![0.0; 2]));
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for isa in Isa::available() {
        let mut random = Random(9);
        let (count, cols) = (401, 197);
        let x = random.floats_around(count * cols, 1.0, 3.0);
        let g = random.floats_around(count * cols, 0.0, 1.0);
        let gamma = random.floats_around(cols, 0.0, 1.0);
        let all = || {
            let mut out = bits(&rows::softmax(isa, &x, cols));
            out.extend(bits(&rows::softmax_grad(isa, &x, &g, cols)));
            let norm = rows::layer_norm(isa, &x, Some(&gamma), None, 1e-6, cols);
            let grad =
                rows::layer_norm_grad(isa, &x, Some(&gamma), &norm.mean, &norm.inv_std, &g, cols);
            for part in [
                norm.y,
                norm.mean,
                norm.inv_std,
                grad.dx,
                grad.dgamma,
                grad.dbeta,
            ] {
                out.extend(bits(&part));
            }
            out.extend(bits(&rows::gelu(isa, &x)));
            out.extend(bits(&rows::gelu_grad(isa, &x, &g)));
            let planes = [401, 197, 1];
            let norm = norm::batch_norm_train_forward(isa, planes, &x, &gamma, &gamma, 1e-5);
            let grad = norm::batch_norm_train_backward(
                isa,
                planes,
                &x,
                &gamma,
                &norm.mean,
                &norm.inv_std,
                &g,
            );
            for part in [
                norm.y,
                norm.mean,
                norm.inv_std,
                grad.dx,
                grad.dgamma,
                grad.dbeta,
            ] {
                out.extend(bits(&part));
            }
            out
        };
        let one = threads(1, all);
        for n in [2, 3, 8] {
            assert!(one == threads(n, all), "{isa:?}, {n} threads");
        }
    }
}

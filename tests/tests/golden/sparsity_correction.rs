//! Error correction, Eq. 1: lambda, literal and masked weights, biases; 1e-10 in f64.

use kernels::BitMask;
use ptsbench::reconstruct::correct::{Correction, Mode, correct_bias, correct_weight};
use ptsbench::statistics::Deviation;
use serde_json::Value;

use crate::sparsity_data::{Array, count, fields, json, near, number, tensors};

const TOLERANCE: f64 = 1e-10;

/// Mean output per channel over batch and positions, without bias; the layer is linear where no stride is given.
fn mean_output(x: &Array, weight: &[f64], shape: &[usize], case: &Value) -> Vec<f64> {
    match case.get("stride") {
        None => linear_mean(x, weight, shape),
        Some(stride) => conv_mean(
            x,
            weight,
            shape,
            count(stride),
            count(&case["pad"]),
            count(&case["groups"]),
        ),
    }
}

fn linear_mean(x: &Array, weight: &[f64], shape: &[usize]) -> Vec<f64> {
    let (outputs, inputs) = (shape[0], shape[1]);
    let tokens = x.values.len() / inputs;
    (0..outputs)
        .map(|o| {
            let row = &weight[o * inputs..][..inputs];
            let dot = |token: &[f64]| -> f64 { token.iter().zip(row).map(|(x, w)| x * w).sum() };
            x.values.chunks_exact(inputs).map(dot).sum::<f64>() / tokens as f64
        })
        .collect()
}

fn conv_mean(
    x: &Array,
    weight: &[f64],
    shape: &[usize],
    stride: usize,
    pad: usize,
    groups: usize,
) -> Vec<f64> {
    let [outputs, inputs, kh, kw] = shape[..] else {
        panic!("a convolution's weight has four axes")
    };
    let [batch, channels, height, width] = x.shape[..] else {
        panic!("a convolution's input has four axes")
    };
    let (oh, ow) = (
        (height + 2 * pad - kh) / stride + 1,
        (width + 2 * pad - kw) / stride + 1,
    );
    let per_group = outputs / groups;
    (0..outputs)
        .map(|o| {
            let mut sum = 0.0;
            for n in 0..batch {
                for i in 0..inputs {
                    let channel = o / per_group * inputs + i;
                    let plane = &x.values[(n * channels + channel) * height * width..];
                    for ky in 0..kh {
                        for kx in 0..kw {
                            let w = weight[((o * inputs + i) * kh + ky) * kw + kx];
                            for y in (0..oh).map(|y| y * stride + ky) {
                                for x in (0..ow).map(|x| x * stride + kx) {
                                    let inside = (pad..height + pad).contains(&y)
                                        && (pad..width + pad).contains(&x);
                                    if inside {
                                        sum += w * plane[(y - pad) * width + x - pad];
                                    }
                                }
                            }
                        }
                    }
                }
            }
            sum / (batch * oh * ow) as f64
        })
        .collect()
}

#[test]
fn sparsity_error_correction() {
    let tensors = tensors("error_correction.safetensors");
    let mut compared = 0;
    for (case, meta) in fields(&json("error_correction.json")["cases"]) {
        let weight = &tensors[&format!("{case}.weight")];
        let x = &tensors[&format!("{case}.x")];
        let bias = &tensors[&format!("{case}.bias")].values;
        let rows = weight.shape[0];
        let cols = weight.values.len() / rows;
        let keep = tensors[&format!("{case}.mask")].keep();
        let mask = BitMask::from_keep(rows, cols, &keep).unwrap();
        let mean = |weight: &[f64], shape: &[usize]| mean_output(x, weight, shape, meta);
        let dense_mean = mean(&weight.values, &weight.shape);
        let corrected_bias = |weight_: &[f64]| {
            correct_bias(bias, &dense_mean, &mean(weight_, &weight.shape)).unwrap()
        };
        let mut check = |key: &str, got: &[f64]| {
            let key = format!("{case}.{key}");
            compared += near(got, &tensors[&key].values, TOLERANCE, &key);
        };

        for (ddof, deviation) in [
            ("ddof0", Deviation::Population),
            ("ddof1", Deviation::Sample),
        ] {
            let settings = Correction {
                mode: Mode::Table,
                guard: false, // the cases have channels with one survivor and with none
                epsilon: number(&meta["eps"]),
                deviation,
            };
            let got = correct_weight(&weight.values, &mask, settings).unwrap();
            // f32 weights give the same numbers: they widen exactly.
            let from_f32 = correct_weight(&weight.f32s(), &mask, settings).unwrap();
            assert!(
                got == from_f32 || got.lambda.iter().any(|l| l.is_nan()),
                "{case}"
            );

            // Eq. 1 as printed, before the mask is applied again.
            let literal: Vec<f64> = (0..weight.values.len())
                .map(|i| {
                    let sparse = if keep[i] { weight.values[i] } else { 0.0 };
                    got.lambda[i / cols] * sparse + got.shift[i / cols]
                })
                .collect();
            check(&format!("{ddof}.lambda"), &got.lambda);
            check(&format!("{ddof}.weight_literal"), &literal);
            let masked = format!("{ddof}.weight_masked");
            if got.lambda.iter().all(|l| l.is_finite()) {
                check(&masked, &got.weight);
                check(&format!("{ddof}.bias_masked"), &corrected_bias(&got.weight));
            } else {
                // NaN x 0 is NaN in the fixtures; ours leaves pruned weights at 0. The survivors must agree.
                let want = &tensors[&format!("{case}.{masked}")].values;
                for (i, keep) in keep.iter().enumerate() {
                    assert!(if *keep {
                        want[i].is_nan() == got.weight[i].is_nan()
                    } else {
                        got.weight[i] == 0.0
                    });
                }
            }
            check(&format!("{ddof}.bias_literal"), &corrected_bias(&literal));
        }

        let sparse: Vec<f64> = weight
            .values
            .iter()
            .zip(&keep)
            .map(|(&w, &k)| if k { w } else { 0.0 })
            .collect();
        check("bias_only", &corrected_bias(&sparse));
        let dense_output: Vec<f64> = bias.iter().zip(&dense_mean).map(|(b, m)| b + m).collect();
        check("dense_output_mean", &dense_output);
    }
    println!("sparsity: {compared} values of the error correction within {TOLERANCE:e}");
    assert!(compared > 0);
}

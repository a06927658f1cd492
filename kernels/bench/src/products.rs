//! The masked products through Burn's tensors, with every gradient, against f64 loops: the part of the test list that
//! needs Burn. The test `gpu` of the kernels draws many more shapes; these are a few of each kind.

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use kernels::LinearShape;
use kernels::reference::{self, Product};
use kernels::{BitMask, ConvOptions, ConvShape, Precision};

/// Results compared, and the largest error over its bound.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many.
    pub compared: usize,
    /// At most 1.
    pub worst: f64,
}

impl Tally {
    fn take(&mut self, got: Vec<f32>, want: &Product, terms: usize, what: &str) -> Result<()> {
        let ratio = want.worst(&got, terms);
        ensure!(ratio <= 1.0, "{what}: {ratio:.3} of the bound");
        self.compared += 1;
        self.worst = self.worst.max(ratio);
        Ok(())
    }
}

/// Convolutions: plain, strided, padded on one side, dilated, grouped, depthwise, past several tiles.
pub fn convolutions(device: &Device) -> Result<Tally> {
    let device = device.clone().autodiff();
    let plain = ConvShape::new(2, [5, 7], [9, 8], [3, 3]).with_padding([1; 2]);
    let shapes = [
        plain,
        plain.with_stride([2, 1]),
        ConvShape {
            padding: [[0, 2], [3, 1]],
            ..plain.with_dilation([2, 1])
        },
        ConvShape::new(3, [6, 9], [7, 7], [1, 1]).with_groups(3),
        ConvShape::new(2, [8, 8], [11, 11], [3, 3])
            .with_padding([1; 2])
            .with_groups(8),
        ConvShape::new(3, [64, 70], [14; 2], [3; 2]).with_padding([1; 2]),
        ConvShape::new(2, [3, 16], [40; 2], [7; 2])
            .with_padding([3; 2])
            .with_stride([2; 2]),
    ];
    let mut tally = Tally::default();
    for (seed, shape) in shapes.iter().enumerate() {
        let what = |pass: &str| format!("{pass} of {shape:?}");
        let (w, keep) = masked(seed as u64, shape.outputs, shape.weight_cols())?;
        let x = values(seed as u64 + 100, shape.input_len());
        let g = values(seed as u64 + 200, shape.output_len());
        let xt = upload(&x, shape.input_dims(), &device).require_grad();
        let wt = upload(&w, shape.weight_dims(), &device).require_grad();
        let options = ConvOptions {
            stride: shape.stride,
            padding: shape.padding,
            dilation: shape.dilation,
            groups: shape.groups,
        };
        let words = Some(words(&keep, &device));
        let y = kernels::conv2d(xt.clone(), wt.clone(), words, None, options, Precision::F32)?;
        let got = read(y.clone().inner())?;
        let want = reference::conv2d(&x, &w, Some(&keep), None, shape);
        tally.take(got, &want, shape.weight_cols(), &what("output"))?;
        let grads = (y * upload(&g, shape.output_dims(), &device))
            .sum()
            .backward();
        let dx = read(xt.grad(&grads).context("no input gradient")?)?;
        let want = reference::conv2d_dx(&g, &w, Some(&keep), shape);
        let terms = shape.outputs / shape.groups * shape.taps();
        tally.take(dx, &want, terms, &what("input gradient"))?;
        let dw = read(wt.grad(&grads).context("no weight gradient")?)?;
        let want = reference::conv2d_dw(&g, &x, Some(&keep), shape);
        let positions = shape.batch * shape.out_size().iter().product::<usize>();
        tally.take(dw, &want, positions, &what("weight gradient"))?;
    }
    Ok(tally)
}

/// Linear layers, inside a tile and past several.
pub fn linear_layers(device: &Device) -> Result<Tally> {
    let device = device.clone().autodiff();
    let mut tally = Tally::default();
    let sizes = [[1, 1, 1], [3, 65, 33], [70, 5, 64], [130, 96, 257]];
    for (seed, [positions, rows, cols]) in sizes.into_iter().enumerate() {
        let shape = LinearShape {
            positions,
            rows,
            cols,
        };
        let what = |pass: &str| format!("{pass} of {shape:?}");
        let (w, keep) = masked(seed as u64 + 50, rows, cols)?;
        let x = values(seed as u64 + 150, positions * cols);
        let g = values(seed as u64 + 250, positions * rows);
        let xt = upload(&x, [positions, cols], &device).require_grad();
        // As Burn stores it: [in, out].
        let transposed: Vec<f32> = (0..rows * cols)
            .map(|at| w[at % rows * cols + at / rows])
            .collect();
        let wt = upload(&transposed, [cols, rows], &device).require_grad();
        let words = Some(words(&keep, &device));
        let y = kernels::linear(xt.clone(), wt.clone(), words, None, Precision::F32)?;
        let got = read(y.clone().inner())?;
        let want = reference::linear(&x, &w, Some(&keep), None, shape);
        tally.take(got, &want, cols, &what("output"))?;
        let grads = (y * upload(&g, [positions, rows], &device))
            .sum()
            .backward();
        let dx = read(xt.grad(&grads).context("no input gradient")?)?;
        let want = reference::linear_dx(&g, &w, Some(&keep), shape);
        tally.take(dx, &want, rows, &what("input gradient"))?;
        let dw = read(wt.grad(&grads).context("no weight gradient")?.transpose())?;
        let want = reference::linear_dw(&g, &x, Some(&keep), shape);
        tally.take(dw, &want, positions, &what("weight gradient"))?;
    }
    Ok(tally)
}

/// In [-1, 1), from a small generator.
fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A weight and a mask of a third of it; what is pruned is NaN and must not matter.
fn masked(seed: u64, rows: usize, cols: usize) -> Result<(Vec<f32>, BitMask)> {
    let choice = values(seed + 300, rows * cols);
    let keep: Vec<bool> = choice.iter().map(|&value| value < -0.3).collect();
    let mut w = values(seed, rows * cols);
    for (w, keep) in w.iter_mut().zip(&keep) {
        if !keep {
            *w = f32::NAN;
        }
    }
    Ok((w, BitMask::from_keep(rows, cols, &keep)?))
}

fn upload<const D: usize>(values: &[f32], dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), device)
}

fn words(mask: &BitMask, device: &Device) -> Tensor<2, Int> {
    let dims = [mask.rows(), mask.cols().div_ceil(32)];
    Tensor::from_data(
        TensorData::new(mask.words().to_vec(), dims),
        (device, DType::U32),
    )
}

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor
        .into_data()
        .try_into_vec()
        .context("reading a result")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_passes_the_list_too() {
        for tally in [convolutions, linear_layers] {
            let tally = tally(&Device::flex()).unwrap();
            assert!(tally.compared >= 12 && tally.worst <= 1.0, "{tally:?}");
        }
    }
}

//! Every operation as naive f64 loops: the judge of all routes (section 7.1 of the specification).
//!
//! Written to be read beside the definitions, never to be fast. All slices are row-major and contiguous; a slice that does
//! not fit its shape panics, because a judge must not guess. A masked weight is absent: its stored value, NaN included,
//! is never read into a sum.

pub mod sparse_mma;

use crate::{BitMask, ConvShape, LinearShape};

/// What the terms of a sum were rounded to; decides how far a product may lie from the exact one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// f32 throughout.
    F32,
    /// Each factor as two bf16 terms, three products, f32 sums.
    Bf16x3,
    /// Factors rounded to tf32, f32 sums.
    Tf32,
    /// Factors rounded to bf16, f32 sums.
    Bf16,
}

impl Rounding {
    /// The factor c of the component-wise bound `|y - exact| <= c sum |w| |x|` for a sum of `terms` products.
    pub fn bound(self, terms: usize) -> f64 {
        let unit = 2f64.powi(-23);
        let sum = terms as f64 * unit;
        match self {
            Self::F32 => sum + 8.0 * unit,
            Self::Bf16x3 => 3.0 * 2f64.powi(-17) + sum,
            Self::Tf32 => 2f64.powi(-10) + sum,
            Self::Bf16 => 2f64.powi(-7) + sum,
        }
    }
}

/// Sums of products, and for each the sum of the products' magnitudes.
#[derive(Debug, Clone, PartialEq)]
pub struct Product {
    /// The exact sums, to f64 rounding.
    pub value: Vec<f64>,
    /// Per entry `sum |w| |x|`, bias included: the scale of its rounding error.
    pub magnitude: Vec<f64>,
}

impl Product {
    fn zeros(len: usize) -> Self {
        Self {
            value: vec![0.0; len],
            magnitude: vec![0.0; len],
        }
    }

    /// `[positions, rows]` or NCHW filled with each channel's bias, or zeros.
    fn biased(len: usize, bias: Option<&[f32]>, channel: impl Fn(usize) -> usize) -> Self {
        let mut product = Self::zeros(len);
        if let Some(bias) = bias {
            for index in 0..len {
                product.add(index, bias[channel(index)], 1.0);
            }
        }
        product
    }

    fn add(&mut self, index: usize, a: f32, b: f32) {
        let term = f64::from(a) * f64::from(b);
        self.value[index] += term;
        self.magnitude[index] += term.abs();
    }

    /// The largest error over its f32 bound, at `terms` products per entry: a correct product stays at or below 1.
    ///
    /// Any NaN in the result or in the exact values counts as infinitely wrong.
    ///
    /// # Panics
    /// When `got` has another length.
    pub fn worst(&self, got: &[f32], terms: usize) -> f64 {
        self.worst_within(got, Rounding::F32.bound(terms))
    }

    /// As [`Product::worst`], for a bound factor of another precision; see [`Rounding::bound`].
    ///
    /// # Panics
    /// When `got` has another length.
    pub fn worst_within(&self, got: &[f32], bound: f64) -> f64 {
        assert_eq!(
            got.len(),
            self.value.len(),
            "the product has another length"
        );
        // Below the normal range the error is absolute.
        let tiny = f64::from(f32::MIN_POSITIVE);
        let mut worst = 0.0;
        for (index, &got) in got.iter().enumerate() {
            let error = (f64::from(got) - self.value[index]).abs();
            let ratio = error / (bound * self.magnitude[index] + tiny);
            if ratio.is_nan() {
                return f64::INFINITY;
            }
            worst = f64::max(worst, ratio);
        }
        worst
    }
}

fn kept(keep: Option<&BitMask>, row: usize, col: usize) -> bool {
    keep.is_none_or(|mask| mask.get(row, col))
}

fn check(what: &str, found: usize, expected: usize) {
    assert_eq!(found, expected, "{what}: elements found, elements needed");
}

fn check_mask(keep: Option<&BitMask>, rows: usize, cols: usize) {
    if let Some(mask) = keep {
        assert_eq!(
            [mask.rows(), mask.cols()],
            [rows, cols],
            "mask of another layer"
        );
    }
}

/// Every (position, row, column) of a linear layer whose weight is kept.
fn each_linear(
    shape: LinearShape,
    keep: Option<&BitMask>,
    mut visit: impl FnMut(usize, usize, usize),
) {
    check_mask(keep, shape.rows, shape.cols);
    for p in 0..shape.positions {
        for r in 0..shape.rows {
            for c in 0..shape.cols {
                if kept(keep, r, c) {
                    visit(p, r, c);
                }
            }
        }
    }
}

/// `y[p, r] = b[r] + sum over kept c of w[r, c] x[p, c]`.
///
/// # Shapes
/// `x [P, C]`, `w [R, C]`, `bias [R]`; result `[P, R]`.
pub fn linear(
    x: &[f32],
    w: &[f32],
    keep: Option<&BitMask>,
    bias: Option<&[f32]>,
    shape: LinearShape,
) -> Product {
    let LinearShape {
        positions,
        rows,
        cols,
    } = shape;
    check("x", x.len(), positions * cols);
    check("w", w.len(), rows * cols);
    check("bias", bias.map_or(rows, <[f32]>::len), rows);
    let mut y = Product::biased(positions * rows, bias, |index| index % rows);
    each_linear(shape, keep, |p, r, c| {
        y.add(p * rows + r, w[r * cols + c], x[p * cols + c]);
    });
    y
}

/// `dx[p, c] = sum over r with (r, c) kept of w[r, c] g[p, r]`.
///
/// # Shapes
/// `g [P, R]`, `w [R, C]`; result `[P, C]`.
pub fn linear_dx(g: &[f32], w: &[f32], keep: Option<&BitMask>, shape: LinearShape) -> Product {
    let LinearShape {
        positions,
        rows,
        cols,
    } = shape;
    check("g", g.len(), positions * rows);
    check("w", w.len(), rows * cols);
    let mut dx = Product::zeros(positions * cols);
    each_linear(shape, keep, |p, r, c| {
        dx.add(p * cols + c, w[r * cols + c], g[p * rows + r]);
    });
    dx
}

/// `dw[r, c] = sum over p of g[p, r] x[p, c]`, exactly 0 where the mask prunes; dense without one.
///
/// # Shapes
/// `g [P, R]`, `x [P, C]`; result `[R, C]`.
pub fn linear_dw(g: &[f32], x: &[f32], keep: Option<&BitMask>, shape: LinearShape) -> Product {
    let LinearShape {
        positions,
        rows,
        cols,
    } = shape;
    check("g", g.len(), positions * rows);
    check("x", x.len(), positions * cols);
    let mut dw = Product::zeros(rows * cols);
    each_linear(shape, keep, |p, r, c| {
        dw.add(r * cols + c, g[p * rows + r], x[p * cols + c]);
    });
    dw
}

/// One term of a convolution: flat positions of output, weight and input.
struct Term {
    output: usize,
    weight: usize,
    input: usize,
}

/// Every term of a convolution whose weight is kept and whose input lies inside the image.
fn conv_terms(shape: &ConvShape, keep: Option<&BitMask>, mut visit: impl FnMut(Term)) {
    shape.validate().expect("a convolution that exists");
    check_mask(keep, shape.outputs, shape.weight_cols());
    let [height, width] = shape.size;
    let [out_height, out_width] = shape.out_size();
    let per_group = shape.inputs / shape.groups;
    // The input coordinate under tap `u` of output `i`, along dimension `d`; None in the padding.
    let source = |d: usize, i: usize, u: usize| {
        (i * shape.stride[d] + u * shape.dilation[d])
            .checked_sub(shape.padding[d][0])
            .filter(|&at| at < shape.size[d])
    };
    for n in 0..shape.batch {
        for r in 0..shape.outputs {
            let group = r / (shape.outputs / shape.groups);
            for i in 0..out_height {
                for j in 0..out_width {
                    for c in 0..per_group {
                        for u in 0..shape.kernel[0] {
                            for v in 0..shape.kernel[1] {
                                let col = (c * shape.kernel[0] + u) * shape.kernel[1] + v;
                                let (Some(y), Some(x)) = (source(0, i, u), source(1, j, v)) else {
                                    continue;
                                };
                                if !kept(keep, r, col) {
                                    continue;
                                }
                                let channel = group * per_group + c;
                                visit(Term {
                                    output: ((n * shape.outputs + r) * out_height + i) * out_width
                                        + j,
                                    weight: r * shape.weight_cols() + col,
                                    input: ((n * shape.inputs + channel) * height + y) * width + x,
                                });
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The convolution of [`ConvShape`], padding read as absent.
///
/// # Shapes
/// `x` NCHW, `w` OIHW, `bias [outputs]`; result NCHW.
pub fn conv2d(
    x: &[f32],
    w: &[f32],
    keep: Option<&BitMask>,
    bias: Option<&[f32]>,
    shape: &ConvShape,
) -> Product {
    shape.validate().expect("a convolution that exists");
    check("x", x.len(), shape.input_len());
    check("w", w.len(), shape.weight_len());
    check(
        "bias",
        bias.map_or(shape.outputs, <[f32]>::len),
        shape.outputs,
    );
    let plane: usize = shape.out_size().iter().product();
    let mut y = Product::biased(shape.output_len(), bias, |index| {
        index / plane % shape.outputs
    });
    conv_terms(shape, keep, |term| {
        y.add(term.output, w[term.weight], x[term.input]);
    });
    y
}

/// Gradient of [`conv2d`] with respect to its input.
///
/// # Shapes
/// `g` NCHW as the output, `w` OIHW; result NCHW as the input.
pub fn conv2d_dx(g: &[f32], w: &[f32], keep: Option<&BitMask>, shape: &ConvShape) -> Product {
    shape.validate().expect("a convolution that exists");
    check("g", g.len(), shape.output_len());
    check("w", w.len(), shape.weight_len());
    let mut dx = Product::zeros(shape.input_len());
    conv_terms(shape, keep, |term| {
        dx.add(term.input, w[term.weight], g[term.output]);
    });
    dx
}

/// Gradient of [`conv2d`] with respect to its weight, exactly 0 where the mask prunes; dense without one.
///
/// # Shapes
/// `g` NCHW as the output, `x` NCHW; result OIHW.
pub fn conv2d_dw(g: &[f32], x: &[f32], keep: Option<&BitMask>, shape: &ConvShape) -> Product {
    shape.validate().expect("a convolution that exists");
    check("g", g.len(), shape.output_len());
    check("x", x.len(), shape.input_len());
    let mut dw = Product::zeros(shape.weight_len());
    conv_terms(shape, keep, |term| {
        dw.add(term.weight, g[term.output], x[term.input]);
    });
    dw
}

/// `y[i, j] = sum over l of a[i, l] b[l, j]`.
///
/// # Shapes
/// `a [m, k]`, `b [k, n]`; result `[m, n]`.
pub fn matmul(a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) -> Product {
    check("a", a.len(), m * k);
    check("b", b.len(), k * n);
    let mut y = Product::zeros(m * n);
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                y.add(i * n + j, a[i * k + l], b[l * n + j]);
            }
        }
    }
    y
}

/// `h[i, j] += sum over p of x[p, i] x[p, j]`, both triangles.
///
/// # Shapes
/// `x [P, C]`; result `[C, C]`.
pub fn gram(x: &[f32], [positions, cols]: [usize; 2]) -> Product {
    check("x", x.len(), positions * cols);
    let mut h = Product::zeros(cols * cols);
    for p in 0..positions {
        for i in 0..cols {
            for j in 0..cols {
                h.add(i * cols + j, x[p * cols + i], x[p * cols + j]);
            }
        }
    }
    h
}

/// The im2col view of a group's input: one row per output position, padding as 0, columns in the weight's OIHW order.
///
/// # Shapes
/// `x` NCHW; result `[batch * positions, inputs / groups * taps]`.
pub fn im2col(x: &[f32], group: usize, shape: &ConvShape) -> Vec<f32> {
    shape.validate().expect("a convolution that exists");
    check("x", x.len(), shape.input_len());
    let (cols, [out_height, out_width]) = (shape.weight_cols(), shape.out_size());
    let plane = out_height * out_width;
    // One output channel per group lists each input of the group exactly once per position.
    let single = ConvShape {
        outputs: shape.groups,
        ..*shape
    };
    let mut columns = vec![0.0; shape.batch * plane * cols];
    conv_terms(&single, None, |term| {
        let (image, position) = (term.output / plane / shape.groups, term.output % plane);
        if term.weight / cols == group {
            columns[(image * plane + position) * cols + term.weight % cols] = x[term.input];
        }
    });
    columns
}

/// `exp(x) / sum exp(x)` along each row.
///
/// # Shapes
/// `x [rows, cols]`; result the same.
pub fn softmax_rows(x: &[f32], [rows, cols]: [usize; 2]) -> Vec<f64> {
    check("x", x.len(), rows * cols);
    let mut y = Vec::with_capacity(x.len());
    for row in 0..rows {
        let row: Vec<f64> = x[row * cols..][..cols]
            .iter()
            .map(|&v| f64::from(v))
            .collect();
        // The shift cancels; it keeps exp from overflowing.
        let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - highest).exp()).sum();
        y.extend(row.iter().map(|v| (v - highest).exp() / sum));
    }
    y
}

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` along each row, population variance.
///
/// # Shapes
/// `x [rows, cols]`, `gamma [cols]`, `beta [cols]`; result as `x`.
pub fn layer_norm_rows(
    x: &[f32],
    gamma: Option<&[f32]>,
    beta: Option<&[f32]>,
    epsilon: f64,
    [rows, cols]: [usize; 2],
) -> Vec<f64> {
    check("x", x.len(), rows * cols);
    check("gamma", gamma.map_or(cols, <[f32]>::len), cols);
    check("beta", beta.map_or(cols, <[f32]>::len), cols);
    let mut y = Vec::with_capacity(x.len());
    for row in 0..rows {
        let row: Vec<f64> = x[row * cols..][..cols]
            .iter()
            .map(|&v| f64::from(v))
            .collect();
        let mean = row.iter().sum::<f64>() / cols as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64;
        for (col, v) in row.iter().enumerate() {
            let scale = gamma.map_or(1.0, |gamma| f64::from(gamma[col]));
            let shift = beta.map_or(0.0, |beta| f64::from(beta[col]));
            y.push((v - mean) / (variance + epsilon).sqrt() * scale + shift);
        }
    }
    y
}

/// A weak but seeded source of values in [-1, 1) for tests that need many.
#[cfg(test)]
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Small convolutions of every kind: strides, dilation, one-sided padding, groups, no images, no channels.
#[cfg(test)]
pub(crate) fn conv_shapes() -> impl proptest::strategy::Strategy<Value = ConvShape> {
    use proptest::prelude::*;
    let side = || {
        (
            1usize..4,
            1usize..3,
            1usize..3,
            0usize..4,
            0usize..4,
            0usize..6,
        )
    };
    (0usize..3, 1usize..4, 0usize..3, 0usize..3, side(), side()).prop_filter_map(
        "kernel larger than the image",
        |(batch, groups, inputs, outputs, y, x)| {
            let shape = ConvShape {
                batch,
                inputs: inputs * groups,
                outputs: outputs * groups,
                size: [y.5, x.5],
                kernel: [y.0, x.0],
                stride: [y.1, x.1],
                padding: [[y.3, y.4], [x.3, x.4]],
                dilation: [y.2, x.2],
                groups,
            };
            shape.validate().is_ok().then_some(shape)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some_mask(seed: u64, rows: usize, cols: usize) -> BitMask {
        let keep: Vec<bool> = values(seed, rows * cols).iter().map(|&v| v > 0.2).collect();
        BitMask::from_keep(rows, cols, &keep).unwrap()
    }

    fn dot(a: &[f64], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum()
    }

    proptest! {
        #[test]
        fn gradients_are_adjoint_to_the_convolution(shape in conv_shapes(), seed in 0u64..1000) {
            let (x, w) = (values(seed, shape.input_len()), values(seed + 1, shape.weight_len()));
            let g = values(seed + 2, shape.output_len());
            let mask = some_mask(seed, shape.outputs, shape.weight_cols());
            for keep in [None, Some(&mask)] {
                let along_y = dot(&conv2d(&x, &w, keep, None, &shape).value, &g);
                let along_x = dot(&conv2d_dx(&g, &w, keep, &shape).value, &x);
                let along_w = dot(&conv2d_dw(&g, &x, keep, &shape).value, &w);
                prop_assert!((along_y - along_x).abs() < 1e-9);
                prop_assert!((along_y - along_w).abs() < 1e-9);
            }
        }

        #[test]
        fn a_convolution_is_a_linear_layer_on_its_columns(shape in conv_shapes(), seed in 0u64..1000) {
            let (x, w) = (values(seed, shape.input_len()), values(seed + 1, shape.weight_len()));
            let bias = values(seed + 2, shape.outputs);
            let y = conv2d(&x, &w, None, Some(&bias), &shape).value;
            let (plane, cols) = (shape.out_size().iter().product::<usize>(), shape.weight_cols());
            let rows = shape.outputs / shape.groups;
            for group in 0..shape.groups {
                let columns = im2col(&x, group, &shape);
                let linear = linear(
                    &columns,
                    &w[group * rows * cols..][..rows * cols],
                    None,
                    Some(&bias[group * rows..][..rows]),
                    LinearShape { positions: shape.batch * plane, rows, cols },
                );
                for p in 0..shape.batch * plane {
                    for r in 0..rows {
                        let at = (p / plane * shape.outputs + group * rows + r) * plane + p % plane;
                        prop_assert!((y[at] - linear.value[p * rows + r]).abs() < 1e-12);
                    }
                }
            }
        }

        #[test]
        fn linear_products_are_matrix_products(p in 0usize..6, r in 0usize..6, c in 0usize..6, seed in 0u64..1000) {
            let shape = LinearShape { positions: p, rows: r, cols: c };
            let (x, w, g) = (values(seed, p * c), values(seed + 1, r * c), values(seed + 2, p * r));
            let transpose = |a: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..rows * cols).map(|i| a[i % rows * cols + i / rows]).collect()
            };
            prop_assert_eq!(linear(&x, &w, None, None, shape), matmul(&x, &transpose(&w, r, c), [p, c, r]));
            prop_assert_eq!(linear_dx(&g, &w, None, shape), matmul(&g, &w, [p, r, c]));
            prop_assert_eq!(linear_dw(&g, &x, None, shape), matmul(&transpose(&g, p, r), &x, [r, p, c]));
            prop_assert_eq!(gram(&x, [p, c]), matmul(&transpose(&x, p, c), &x, [c, p, c]));
        }
    }

    #[test]
    fn a_convolution_worked_by_hand() {
        // 3x3 image 1..9, kernel [[1, 10]] reaching over columns j and j + 2, one zero column on the right.
        let shape = ConvShape {
            padding: [[0, 0], [0, 1]],
            dilation: [1, 2],
            stride: [2, 1],
            ..ConvShape::new(1, [1, 1], [3, 3], [1, 2])
        };
        let x: Vec<f32> = (1..10).map(|v| v as f32).collect();
        let y = conv2d(&x, &[1.0, 10.0], None, Some(&[0.5]), &shape);
        assert_eq!(y.value, [31.5, 2.5, 97.5, 8.5]);
        assert_eq!(y.magnitude, y.value);
    }

    #[test]
    fn masked_weights_are_absent() {
        let shape = LinearShape {
            positions: 1,
            rows: 2,
            cols: 2,
        };
        let w = [f32::NAN, 2.0, 3.0, f32::INFINITY];
        let mask = BitMask::from_keep(2, 2, &[false, true, true, false]).unwrap();
        let y = linear(&[5.0, -7.0], &w, Some(&mask), None, shape);
        assert_eq!(
            (y.value, y.magnitude),
            (vec![-14.0, 15.0], vec![14.0, 15.0])
        );
        let dx = linear_dx(&[1.0, 1.0], &w, Some(&mask), shape);
        assert_eq!(dx.value, [3.0, 2.0]);
        let dw = linear_dw(&[1.0, 1.0], &[5.0, -7.0], Some(&mask), shape);
        assert_eq!(dw.value, [0.0, -7.0, 5.0, 0.0]);
        // A kept NaN must show.
        assert!(linear(&[5.0, -7.0], &w, None, None, shape).value[0].is_nan());
    }

    #[test]
    fn worst_measures_in_units_of_the_bound() {
        let y = matmul(&[1.0, -1.0], &[3.0, 3.0], [1, 2, 1]);
        assert_eq!((y.value[0], y.magnitude[0]), (0.0, 6.0));
        assert_eq!(y.worst(&[0.0], 2), 0.0);
        let bound = (10.0 * 2f64.powi(-23) * 6.0) as f32;
        assert!((y.worst(&[2.0 * bound], 2) - 2.0).abs() < 1e-6);
        assert!(y.worst_within(&[2.0 * bound], Rounding::Bf16.bound(2)) < 1e-3);
        assert_eq!(y.worst(&[f32::NAN], 2), f64::INFINITY);
        assert_eq!(y.worst(&[f32::INFINITY], 2), f64::INFINITY);
    }

    #[test]
    fn rows_of_softmax_and_layer_norm() {
        let y = softmax_rows(&[0.0, 3f32.ln(), 1000.0, 1000.0], [2, 2]);
        for (y, expected) in y.iter().zip([0.25, 0.75, 0.5, 0.5]) {
            assert!((y - expected).abs() < 1e-7);
        }
        let y = layer_norm_rows(
            &[1.0, 3.0],
            Some(&[2.0, 2.0]),
            Some(&[0.0, 1.0]),
            0.0,
            [1, 2],
        );
        assert_eq!(y, [-2.0, 3.0]);
        assert!(softmax_rows(&[], [0, 3]).is_empty() && softmax_rows(&[], [3, 0]).is_empty());
    }
}

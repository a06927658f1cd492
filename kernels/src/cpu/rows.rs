//! Operations along rows: softmax, layer norm, and GELU with their gradients.
//!
//! Every row is read while it is in cache, in lanes whose sums meet in a fixed order; sums over rows are made of blocks of
//! a fixed number of rows. So no result depends on the number of threads.
//!
//! The bodies are plain Rust over arrays of lanes; the compiler makes vectors of them where a table enables the instructions.
#![allow(unsafe_code)]

use super::Isa;
use super::work::{Scratch, Shared, output, parallel, split};

/// Lanes of the plain-Rust vectors: one AVX-512 register, or two of AVX2.
const LANES: usize = 16;
/// Elements of a work item: hides what handing it to a thread costs.
const ITEM: usize = 16 * 1024;
/// Rows whose contribution to a sum over rows is added up first.
const BLOCK: usize = 32;
/// Multiply-adds that an element of these operations is worth.
const WORTH: u64 = 16;

/// The results of a layer norm: what comes out, and what its gradient needs.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorm {
    /// `[rows, cols]`.
    pub y: Vec<f32>,
    /// Mean of each row.
    pub mean: Vec<f32>,
    /// `1 / sqrt(variance + epsilon)` of each row.
    pub inv_std: Vec<f32>,
}

/// The gradients of a layer norm.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNormGrad {
    /// Of the input, `[rows, cols]`.
    pub dx: Vec<f32>,
    /// Of the scale, `[cols]`.
    pub dgamma: Vec<f32>,
    /// Of the shift, `[cols]`.
    pub dbeta: Vec<f32>,
}

/// `exp(x) / sum exp(x)` along each row; a row that holds NaN or +Inf, or -Inf alone, is NaN.
///
/// # Shapes
/// `x [rows, cols]`; result the same.
pub fn softmax(isa: Isa, x: &[f32], cols: usize) -> Vec<f32> {
    let table = table(isa);
    each_row(x.len(), cols, |rows, to| {
        // SAFETY: the processor has the table's instructions.
        unsafe { (table.softmax)(&x[rows], to, cols) }
    })
}

/// The gradient of softmax's input: `y (g - sum y g)`.
///
/// # Shapes
/// `y` (the softmax) and `g` `[rows, cols]`; result the same.
pub fn softmax_grad(isa: Isa, y: &[f32], g: &[f32], cols: usize) -> Vec<f32> {
    assert_eq!(y.len(), g.len(), "softmax and its gradient");
    let table = table(isa);
    each_row(y.len(), cols, |rows, to| {
        // SAFETY: as above.
        unsafe { (table.softmax_grad)(&y[rows.clone()], &g[rows], to, cols) }
    })
}

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` along each row, population variance.
///
/// # Shapes
/// `x [rows, cols]`, `gamma [cols]`, `beta [cols]`.
pub fn layer_norm(
    isa: Isa,
    x: &[f32],
    gamma: Option<&[f32]>,
    beta: Option<&[f32]>,
    epsilon: f32,
    cols: usize,
) -> LayerNorm {
    assert_eq!(gamma.map_or(cols, <[f32]>::len), cols, "gamma per column");
    assert_eq!(beta.map_or(cols, <[f32]>::len), cols, "beta per column");
    let table = table(isa);
    let count = x.len().checked_div(cols).unwrap_or(0);
    let [mut mean, mut inv_std] = [0; 2].map(|_| output(count));
    let [to_mean, to_inv] = [&mut mean, &mut inv_std].map(|out| Shared::new(out.as_mut_ptr()));
    let y = each_row(x.len(), cols, |range, to| {
        let rows = range.start / cols..range.end / cols;
        // SAFETY: the processor has the table's instructions, and these rows are this thread's alone.
        unsafe {
            let statistics = [to_mean, to_inv].map(|to| to.at(rows.start));
            (table.layer_norm)(&x[range], gamma, beta, epsilon, to, statistics, cols)
        }
    });
    // SAFETY: `each_row` went through every row.
    let [mean, inv_std] = unsafe { [mean.written(), inv_std.written()] };
    LayerNorm { y, mean, inv_std }
}

/// The gradients of a layer norm from its input, its statistics and the gradient `g` of what came out.
///
/// # Shapes
/// `x` and `g` `[rows, cols]`, `gamma [cols]`, `mean` and `inv_std` `[rows]`.
pub fn layer_norm_grad(
    isa: Isa,
    x: &[f32],
    gamma: Option<&[f32]>,
    mean: &[f32],
    inv_std: &[f32],
    g: &[f32],
    cols: usize,
) -> LayerNormGrad {
    assert_eq!(x.len(), g.len(), "layer norm's input and gradient");
    assert_eq!(gamma.map_or(cols, <[f32]>::len), cols, "gamma per column");
    let count = x.len().checked_div(cols).unwrap_or(0);
    assert_eq!([mean.len(), inv_std.len()], [count; 2], "one mean per row");
    assert_eq!(x.len(), count * cols, "whole rows of {cols}");
    let table = table(isa);
    let mut dx = output(x.len());
    let to = Shared::new(dx.as_mut_ptr());
    let blocks = count.div_ceil(BLOCK);
    // [block][dgamma, dbeta][cols]
    let mut partial = Scratch::take(blocks * 2 * cols);
    partial[..blocks * 2 * cols].fill(0.0);
    let sums = Shared::new(partial.as_mut_ptr());
    parallel(blocks, x.len() as u64 * WORTH, |block| {
        let rows = block * BLOCK..((block + 1) * BLOCK).min(count);
        let range = rows.start * cols..rows.end * cols;
        // SAFETY: as in `layer_norm`; the block's sums are its own.
        unsafe {
            let dx = std::slice::from_raw_parts_mut(to.at(range.start), range.len());
            let sums = std::slice::from_raw_parts_mut(sums.at(block * 2 * cols), 2 * cols);
            let statistics = [&mean[rows.clone()], &inv_std[rows]];
            (table.layer_norm_grad)(&x[range.clone()], gamma, statistics, &g[range], dx, sums)
        }
    });
    let mut total = vec![0.0f64; 2 * cols];
    for block in 0..blocks {
        let sums = &partial[block * 2 * cols..][..2 * cols];
        for (total, &sum) in total.iter_mut().zip(sums) {
            *total += f64::from(sum);
        }
    }
    let total: Vec<f32> = total.into_iter().map(|v| v as f32).collect();
    LayerNormGrad {
        // SAFETY: the blocks cover every row.
        dx: unsafe { dx.written() },
        dgamma: total[..cols].to_vec(),
        dbeta: total[cols..].to_vec(),
    }
}

/// GELU in its exact form, `x (1 + erf(x / sqrt 2)) / 2`.
pub fn gelu(isa: Isa, x: &[f32]) -> Vec<f32> {
    let table = table(isa);
    each_row(x.len(), 1, |range, to| {
        // SAFETY: the processor has the table's instructions.
        unsafe { (table.gelu)(&x[range], to) }
    })
}

/// The gradient of GELU's input from `x` and the gradient `g` of what came out.
pub fn gelu_grad(isa: Isa, x: &[f32], g: &[f32]) -> Vec<f32> {
    assert_eq!(x.len(), g.len(), "GELU's input and gradient");
    let table = table(isa);
    each_row(x.len(), 1, |range, to| {
        // SAFETY: as above.
        unsafe { (table.gelu_grad)(&x[range.clone()], &g[range], to) }
    })
}

/// `len` results, made some whole rows at a time.
fn each_row(
    len: usize,
    cols: usize,
    work: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync + Send,
) -> Vec<f32> {
    if len == 0 {
        return Vec::new();
    }
    assert!(
        cols > 0 && len.is_multiple_of(cols),
        "{len} elements in rows of {cols}"
    );
    let mut result = output(len);
    let to = Shared::new(result.as_mut_ptr());
    let items: Vec<_> = split(len / cols, (ITEM / cols).max(1)).collect();
    parallel(items.len(), len as u64 * WORTH, |item| {
        let range = items[item].start * cols..items[item].end * cols;
        // SAFETY: there is room for `len` results, and this range is this thread's alone; it is written before it is read.
        work(range.clone(), unsafe {
            std::slice::from_raw_parts_mut(to.at(range.start), range.len())
        });
    });
    // SAFETY: the items cover every row.
    unsafe { result.written() }
}

// An alias per entry would hide what it takes.
#[allow(clippy::type_complexity)]
struct Table {
    softmax: unsafe fn(&[f32], &mut [f32], usize),
    softmax_grad: unsafe fn(&[f32], &[f32], &mut [f32], usize),
    layer_norm:
        unsafe fn(&[f32], Option<&[f32]>, Option<&[f32]>, f32, &mut [f32], [*mut f32; 2], usize),
    layer_norm_grad: unsafe fn(&[f32], Option<&[f32]>, [&[f32]; 2], &[f32], &mut [f32], &mut [f32]),
    gelu: unsafe fn(&[f32], &mut [f32]),
    gelu_grad: unsafe fn(&[f32], &[f32], &mut [f32]),
}

fn table(isa: Isa) -> &'static Table {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &avx512::TABLE,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &avx2::TABLE,
        _ => &portable::TABLE,
    }
}

mod body {
    use super::LANES;

    type Lanes = [f32; LANES];

    /// `a b + c`, in one rounding where the processor has the instruction; elsewhere that would be a library call.
    #[inline(always)]
    fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
        if FUSED { a.mul_add(b, c) } else { a * b + c }
    }

    /// `e^x` to about one unit in the last place; 0 below the normal range, infinite above, NaN for NaN.
    ///
    /// x = n ln 2 + r with |r| <= ln 2 / 2; e^r is its Taylor polynomial of degree 7, cut off at 5e-9; the power of two goes
    /// into the exponent in two halves, so that neither overflows.
    #[inline(always)]
    fn exp<const FUSED: bool>(x: f32) -> f32 {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
        const LN2_HIGH: f32 = 0.693_145_75; // 16 bits: n times it is exact
        const LN2_LOW: f32 = 1.428_606_8e-6;
        let clamped = if x > -87.336 { x } else { -87.336 };
        let clamped = if clamped < 89.0 { clamped } else { 89.0 };
        let shifted = fma::<FUSED>(clamped, std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = fma::<FUSED>(n, -LN2_LOW, fma::<FUSED>(n, -LN2_HIGH, clamped));
        let mut p = 1.0 / 5040.0;
        for term in [
            1.0 / 720.0,
            1.0 / 120.0,
            1.0 / 24.0,
            1.0 / 6.0,
            0.5,
            1.0,
            1.0,
        ] {
            p = fma::<FUSED>(p, r, term);
        }
        let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let half = n >> 1;
        let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
        let y = p * power(half) * power(n - half);
        let y = if x < -87.336 { 0.0 } else { y };
        if x.is_nan() { x } else { y }
    }

    /// Phi(x), the distribution function of the normal law, and its density.
    ///
    /// Phi(-|x|) = e^(-x^2 / 2) t q(t) / 2 with t = 1 / (1 + c |x|), formula 7.1.26 of Abramowitz and Stegun: the absolute
    /// error is below 1e-7.
    #[inline(always)]
    fn normal<const FUSED: bool>(x: f32) -> (f32, f32) {
        let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / fma::<FUSED>(z, 0.327_591_1, 1.0);
        let mut q = 1.061_405_4;
        for term in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            q = fma::<FUSED>(q, t, term);
        }
        let bell = exp::<FUSED>(-0.5 * x * x);
        let tail = 0.5 * q * t * bell;
        let phi = if x < 0.0 { tail } else { 1.0 - tail };
        (phi, bell * 0.398_942_3)
    }

    /// Lane by lane, `step` of what was gathered and of the same place of every input; then `join` of all lanes, halves
    /// with halves.
    #[inline(always)]
    fn fold<const K: usize, const N: usize>(
        inputs: [&[f32]; K],
        start: f32,
        step: impl Fn([f32; N], [f32; K]) -> [f32; N],
        join: impl Fn(f32, f32) -> f32,
    ) -> [f32; N] {
        let whole: [&[Lanes]; K] = inputs.map(|x| x.as_chunks().0);
        let rest: [&[f32]; K] = inputs.map(|x| x.as_chunks::<LANES>().1);
        let mut gathered = [[start; LANES]; N];
        for at in 0..whole[0].len() {
            let vectors: [&Lanes; K] = whole.map(|x| &x[at]);
            for lane in 0..LANES {
                let next = step(gathered.map(|g| g[lane]), vectors.map(|v| v[lane]));
                for (g, next) in gathered.iter_mut().zip(next) {
                    g[lane] = next;
                }
            }
        }
        // Apart from the loop above, so that its lanes stay in registers.
        let mut ends = gathered;
        for at in 0..rest[0].len() {
            let next = step(ends.map(|g| g[at]), rest.map(|x| x[at]));
            for (g, next) in ends.iter_mut().zip(next) {
                g[at] = next;
            }
        }
        ends.map(|mut lanes| {
            let mut width = LANES / 2;
            while width > 0 {
                for lane in 0..width {
                    lanes[lane] = join(lanes[lane], lanes[lane + width]);
                }
                width /= 2;
            }
            lanes[0]
        })
    }

    /// Sums of `term` over the same places of every input.
    #[inline(always)]
    fn sums<const K: usize, const N: usize>(
        inputs: [&[f32]; K],
        term: impl Fn([f32; K]) -> [f32; N],
    ) -> [f32; N] {
        let step = |mut sum: [f32; N], v| {
            for (sum, term) in sum.iter_mut().zip(term(v)) {
                *sum += term;
            }
            sum
        };
        fold(inputs, 0.0, step, |a, b| a + b)
    }

    #[inline(always)]
    pub fn softmax<const FUSED: bool>(x: &[f32], to: &mut [f32], cols: usize) {
        for (x, to) in x.chunks_exact(cols).zip(to.chunks_exact_mut(cols)) {
            let larger = |a: f32, b: f32| if b > a { b } else { a };
            let [highest] = fold([x], f32::NEG_INFINITY, |[h], [v]| [larger(h, v)], larger);
            for (to, &x) in to.iter_mut().zip(x) {
                *to = exp::<FUSED>(x - highest);
            }
            let [total] = sums([to], |[e]| [e]);
            let scale = 1.0 / total;
            for v in to {
                *v *= scale;
            }
        }
    }

    #[inline(always)]
    pub fn softmax_grad<const FUSED: bool>(y: &[f32], g: &[f32], to: &mut [f32], cols: usize) {
        let rows = y.chunks_exact(cols).zip(g.chunks_exact(cols));
        for ((y, g), to) in rows.zip(to.chunks_exact_mut(cols)) {
            let [dot] = sums([y, g], |[y, g]| [y * g]);
            for ((to, y), g) in to.iter_mut().zip(y).zip(g) {
                *to = y * (g - dot);
            }
        }
    }

    #[inline(always)]
    pub unsafe fn layer_norm<const FUSED: bool>(
        x: &[f32],
        gamma: Option<&[f32]>,
        beta: Option<&[f32]>,
        epsilon: f32,
        to: &mut [f32],
        statistics: [*mut f32; 2],
        cols: usize,
    ) {
        let scale = 1.0 / cols as f32;
        let rows = x.chunks_exact(cols).zip(to.chunks_exact_mut(cols));
        for (row, (x, to)) in rows.enumerate() {
            // The second pass sees small numbers, whatever the mean is, and takes the rounding of the first one back.
            let [total] = sums([x], |[x]| [x]);
            let about = total * scale;
            for (to, x) in to.iter_mut().zip(x) {
                *to = x - about;
            }
            let [rest] = sums([to], |[d]| [d]);
            let [squares] = sums([to], |[d]| [d * d]);
            let rest = rest * scale;
            let mean = about + rest;
            let spread = squares * scale - rest * rest;
            // Rounding alone makes it negative; a NaN must stay one.
            let variance = if spread < 0.0 { 0.0 } else { spread };
            let inv = 1.0 / (variance + epsilon).sqrt();
            if let (Some(gamma), Some(beta)) = (gamma, beta) {
                for ((to, gamma), beta) in to.iter_mut().zip(gamma).zip(beta) {
                    *to = fma::<FUSED>((*to - rest) * inv, *gamma, *beta);
                }
            } else {
                for (i, to) in to.iter_mut().enumerate() {
                    let v = (*to - rest) * inv * gamma.map_or(1.0, |gamma| gamma[i]);
                    *to = v + beta.map_or(0.0, |beta| beta[i]);
                }
            }
            // SAFETY: the caller has room for the statistics of each row.
            unsafe {
                *statistics[0].add(row) = mean;
                *statistics[1].add(row) = inv;
            }
        }
    }

    #[inline(always)]
    pub fn layer_norm_grad<const FUSED: bool>(
        x: &[f32],
        gamma: Option<&[f32]>,
        [mean, inv_std]: [&[f32]; 2],
        g: &[f32],
        dx: &mut [f32],
        totals: &mut [f32],
    ) {
        let cols = totals.len() / 2;
        let (dgamma, dbeta) = totals.split_at_mut(cols);
        let scale = 1.0 / cols as f32;
        let rows = x.chunks_exact(cols).zip(g.chunks_exact(cols));
        for (row, ((x, g), dx)) in rows.zip(dx.chunks_exact_mut(cols)).enumerate() {
            let (mean, inv) = (mean[row], inv_std[row]);
            let normal = |x: f32| (x - mean) * inv;
            // dx holds the gradient of the normalized row in between.
            match gamma {
                Some(gamma) => {
                    for ((dx, g), gamma) in dx.iter_mut().zip(g).zip(gamma) {
                        *dx = g * gamma;
                    }
                }
                None => dx.copy_from_slice(g),
            }
            let [total, along] = sums([dx, x], |[d, x]| [d, d * normal(x)]);
            let (total, along) = (total * scale, along * scale);
            let sums = dgamma.iter_mut().zip(dbeta.iter_mut());
            for (((dx, &x), &g), (dgamma, dbeta)) in dx.iter_mut().zip(x).zip(g).zip(sums) {
                let normal = normal(x);
                *dx = inv * fma::<FUSED>(-normal, along, *dx - total);
                *dgamma = fma::<FUSED>(g, normal, *dgamma);
                *dbeta += g;
            }
        }
    }

    #[inline(always)]
    pub fn gelu<const FUSED: bool>(x: &[f32], to: &mut [f32]) {
        for (to, &x) in to.iter_mut().zip(x) {
            *to = x * normal::<FUSED>(x).0;
        }
    }

    #[inline(always)]
    pub fn gelu_grad<const FUSED: bool>(x: &[f32], g: &[f32], to: &mut [f32]) {
        for ((to, &x), &g) in to.iter_mut().zip(x).zip(g) {
            let (phi, density) = normal::<FUSED>(x);
            *to = g * fma::<FUSED>(x, density, phi);
        }
    }
}

/// The table of one instruction set, with its features enabled in every entry.
macro_rules! table {
    ($module:ident, $fused:literal, $(#[$feature:meta])*) => {
        mod $module {
            use super::{Table, body};

            $(#[$feature])*
            unsafe fn softmax(x: &[f32], to: &mut [f32], cols: usize) {
                body::softmax::<$fused>(x, to, cols)
            }

            $(#[$feature])*
            unsafe fn softmax_grad(y: &[f32], g: &[f32], to: &mut [f32], cols: usize) {
                body::softmax_grad::<$fused>(y, g, to, cols)
            }

            $(#[$feature])*
            unsafe fn layer_norm(
                x: &[f32],
                gamma: Option<&[f32]>,
                beta: Option<&[f32]>,
                epsilon: f32,
                to: &mut [f32],
                statistics: [*mut f32; 2],
                cols: usize,
            ) {
                // SAFETY: this function's caller keeps the body's condition.
                unsafe { body::layer_norm::<$fused>(x, gamma, beta, epsilon, to, statistics, cols) }
            }

            $(#[$feature])*
            unsafe fn layer_norm_grad(
                x: &[f32],
                gamma: Option<&[f32]>,
                statistics: [&[f32]; 2],
                g: &[f32],
                dx: &mut [f32],
                sums: &mut [f32],
            ) {
                body::layer_norm_grad::<$fused>(x, gamma, statistics, g, dx, sums)
            }

            $(#[$feature])*
            unsafe fn gelu(x: &[f32], to: &mut [f32]) {
                body::gelu::<$fused>(x, to)
            }

            $(#[$feature])*
            unsafe fn gelu_grad(x: &[f32], g: &[f32], to: &mut [f32]) {
                body::gelu_grad::<$fused>(x, g, to)
            }

            pub static TABLE: Table = Table {
                softmax,
                softmax_grad,
                layer_norm,
                layer_norm_grad,
                gelu,
                gelu_grad,
            };
        }
    };
}

table!(portable, false,);
#[cfg(target_arch = "x86_64")]
table!(avx2, true, #[target_feature(enable = "avx2,fma,bmi2")]);
#[cfg(target_arch = "x86_64")]
table!(avx512, true, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")]);

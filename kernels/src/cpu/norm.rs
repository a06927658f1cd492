//! Batch norm over NCHW in training, forward and backward; the line that is left of it at inference is in
//! [`super::pointwise`].
//!
//! A thread owns channels. A channel is read once for its sums, which are f64, and once more, then from cache, for its
//! result; no sum is ever divided between threads.
#![allow(unsafe_code)]

use super::Isa;
use super::work::{Shared, output, parallel};

/// Multiply-adds that an element of these operations is worth.
const WORTH: u64 = 4;
/// Lanes of the plain-Rust vectors.
const LANES: usize = 16;

/// Images, channels, pixels of an image.
pub type Planes = [usize; 3];

/// The results of batch norm in training.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNorm {
    /// As the input.
    pub y: Vec<f32>,
    /// Mean of each channel over images and pixels.
    pub mean: Vec<f32>,
    /// Population variance of each channel.
    pub variance: Vec<f32>,
    /// `1 / sqrt(variance + epsilon)`.
    pub inv_std: Vec<f32>,
}

/// The gradients of batch norm in training.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNormGrad {
    /// Of the input.
    pub dx: Vec<f32>,
    /// Of the scale, per channel.
    pub dgamma: Vec<f32>,
    /// Of the shift, per channel.
    pub dbeta: Vec<f32>,
}

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` per channel, with the batch's own statistics.
///
/// # Shapes
/// `x [images, channels, pixels]`, `gamma [channels]`, `beta [channels]`.
pub fn batch_norm_train_forward(
    isa: Isa,
    planes: Planes,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
) -> BatchNorm {
    check(planes, x.len(), &[gamma, beta]);
    let [images, channels, pixels] = planes;
    let table = table(isa);
    let count = (images * pixels).max(1) as f64;
    let mut y = output(x.len());
    let to = Shared::new(y.as_mut_ptr());
    let [mut mean, mut variance, mut inv_std] = [0; 3].map(|_| output(channels));
    let statistics =
        [&mut mean, &mut variance, &mut inv_std].map(|out| Shared::new(out.as_mut_ptr()));
    parallel(channels, x.len() as u64 * WORTH, |channel| {
        // SAFETY: the processor has the table's instructions.
        let [sum, squares] = unsafe { (table.moments)(x, planes, channel) };
        let mean = sum / count;
        let spread = squares / count - mean * mean;
        // Rounding alone makes it negative; a NaN must stay one.
        let variance = if spread < 0.0 { 0.0 } else { spread };
        let inv = 1.0 / (variance + f64::from(epsilon)).sqrt();
        let scale = f64::from(gamma[channel]) * inv;
        let mean32 = mean as f32;
        for image in 0..images {
            let plane = plane(planes, image, channel);
            // SAFETY: as above; this channel is this thread's alone.
            unsafe {
                let to = std::slice::from_raw_parts_mut(to.at(plane.start), pixels);
                // What f32 loses of the mean goes into the shift.
                let shift = f64::from(beta[channel]) - (mean - f64::from(mean32)) * scale;
                (table.centred)(&x[plane], mean32, [scale as f32, shift as f32], to);
            }
        }
        for (to, value) in statistics.iter().zip([mean, variance, inv]) {
            // SAFETY: as above.
            unsafe { *to.at(channel) = value as f32 };
        }
    });
    // SAFETY: every channel was gone through.
    unsafe {
        BatchNorm {
            y: y.written(),
            mean: mean.written(),
            variance: variance.written(),
            inv_std: inv_std.written(),
        }
    }
}

/// The sum of each channel over images and pixels, in f64.
///
/// # Shapes
/// `x [images, channels, pixels]`.
pub fn channel_sums(planes: Planes, x: &[f32]) -> Vec<f32> {
    check(planes, x.len(), &[]);
    let [images, channels, pixels] = planes;
    let mut sums = output(channels);
    let to = Shared::new(sums.as_mut_ptr());
    if pixels == 1 {
        // Channels lie side by side: go down a few lines' worth of columns at a time.
        const BLOCK: usize = 64;
        parallel(channels.div_ceil(BLOCK), x.len() as u64, |block| {
            let columns = block * BLOCK..((block + 1) * BLOCK).min(channels);
            let mut block = [0.0f64; BLOCK];
            for image in 0..images {
                let row = &x[image * channels..][columns.clone()];
                for (sum, value) in block.iter_mut().zip(row) {
                    *sum += f64::from(*value);
                }
            }
            for (column, sum) in columns.zip(block) {
                // SAFETY: a channel is one thread's.
                unsafe { *to.at(column) = sum as f32 };
            }
        });
        // SAFETY: every channel was written.
        return unsafe { sums.written() };
    }
    parallel(channels, x.len() as u64, |channel| {
        let mut lanes = [0.0f64; LANES];
        for image in 0..images {
            let plane = &x[(image * channels + channel) * pixels..][..pixels];
            for piece in plane.chunks(LANES) {
                for (lane, value) in lanes.iter_mut().zip(piece) {
                    *lane += f64::from(*value);
                }
            }
        }
        // SAFETY: a channel is one thread's.
        unsafe { *to.at(channel) = lanes.iter().sum::<f64>() as f32 };
    });
    // SAFETY: every channel was written.
    unsafe { sums.written() }
}

/// The gradients of batch norm in training from its input, its statistics and the gradient `g` of what came out.
///
/// # Shapes
/// `x` and `g` `[images, channels, pixels]`, `gamma`, `mean` and `inv_std` `[channels]`.
pub fn batch_norm_train_backward(
    isa: Isa,
    planes: Planes,
    x: &[f32],
    gamma: &[f32],
    mean: &[f32],
    inv_std: &[f32],
    g: &[f32],
) -> BatchNormGrad {
    check(planes, x.len(), &[gamma, mean, inv_std]);
    check(planes, g.len(), &[]);
    let [images, channels, pixels] = planes;
    let table = table(isa);
    let count = (images * pixels).max(1) as f64;
    let mut dx = output(x.len());
    let to = Shared::new(dx.as_mut_ptr());
    let [mut dgamma, mut dbeta] = [0; 2].map(|_| output(channels));
    let [to_dgamma, to_dbeta] = [&mut dgamma, &mut dbeta].map(|out| Shared::new(out.as_mut_ptr()));
    parallel(channels, x.len() as u64 * WORTH, |channel| {
        let mean = mean[channel];
        // SAFETY: the processor has the table's instructions.
        let [dbeta, along] = unsafe { (table.products)(x, mean, g, planes, channel) };
        let inv = f64::from(inv_std[channel]);
        let dgamma = along * inv;
        // dx = gamma inv (g - dbeta / n - normal dgamma / n), with the constants of a channel gathered.
        let scale = f64::from(gamma[channel]) * inv;
        let slope = -scale * inv * dgamma / count;
        let shift = -scale * dbeta / count;
        for image in 0..images {
            let plane = plane(planes, image, channel);
            // SAFETY: as above; this channel is this thread's alone.
            unsafe {
                let to = std::slice::from_raw_parts_mut(to.at(plane.start), pixels);
                let factors = [scale, slope, shift].map(|v| v as f32);
                (table.combine)(&x[plane.clone()], mean, &g[plane], factors, to);
                *to_dgamma.at(channel) = dgamma as f32;
                *to_dbeta.at(channel) = dbeta as f32;
            }
        }
        if images == 0 {
            // SAFETY: as above.
            unsafe {
                *to_dgamma.at(channel) = 0.0;
                *to_dbeta.at(channel) = 0.0;
            }
        }
    });
    // SAFETY: every channel was gone through.
    unsafe {
        BatchNormGrad {
            dx: dx.written(),
            dgamma: dgamma.written(),
            dbeta: dbeta.written(),
        }
    }
}

pub(super) fn plane(
    [_, channels, pixels]: Planes,
    image: usize,
    channel: usize,
) -> std::ops::Range<usize> {
    let at = (image * channels + channel) * pixels;
    at..at + pixels
}

pub(super) fn check(planes: Planes, found: usize, per_channel: &[&[f32]]) {
    assert_eq!(
        found,
        planes.iter().product::<usize>(),
        "elements of {planes:?}"
    );
    for values in per_channel {
        assert_eq!(values.len(), planes[1], "values per channel of {planes:?}");
    }
}

// An alias per entry would hide what it takes.
#[allow(clippy::type_complexity)]
struct Table {
    moments: unsafe fn(&[f32], Planes, usize) -> [f64; 2],
    products: unsafe fn(&[f32], f32, &[f32], Planes, usize) -> [f64; 2],
    centred: unsafe fn(&[f32], f32, [f32; 2], &mut [f32]),
    combine: unsafe fn(&[f32], f32, &[f32], [f32; 3], &mut [f32]),
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

/// `a b + c`, in one rounding where the processor has the instruction; elsewhere that would be a library call.
#[inline(always)]
pub(super) fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// A sum in lanes, with what is left at the end of each piece apart from them.
#[derive(Default)]
pub(super) struct Sum {
    lanes: [f64; LANES],
    end: f64,
}

impl Sum {
    #[inline(always)]
    pub fn add(&mut self, x: &[f32], term: impl Fn(f64) -> f64) {
        let (whole, rest) = x.as_chunks::<LANES>();
        // A copy stays in registers.
        let mut lanes = self.lanes;
        for vector in whole {
            for (sum, &x) in lanes.iter_mut().zip(vector) {
                *sum += term(f64::from(x));
            }
        }
        self.lanes = lanes;
        for &x in rest {
            self.end += term(f64::from(x));
        }
    }

    pub fn total(&self) -> f64 {
        self.end + self.lanes.iter().sum::<f64>()
    }
}

mod body {
    use super::{LANES, Planes, Sum, fma, plane};

    /// Elements that are summed twice: they stay in the first cache in between.
    const PIECE: usize = 16 * LANES;

    /// Sums of x and of its squares over a channel.
    #[inline(always)]
    pub fn moments(x: &[f32], planes: Planes, channel: usize) -> [f64; 2] {
        let [mut sum, mut squares] = [Sum::default(), Sum::default()];
        for image in 0..planes[0] {
            for x in x[plane(planes, image, channel)].chunks(PIECE) {
                sum.add(x, |x| x);
                squares.add(x, |x| x * x);
            }
        }
        [sum.total(), squares.total()]
    }

    /// Sums of g and of g (x - mean) over a channel.
    #[inline(always)]
    pub fn products(x: &[f32], mean: f32, g: &[f32], planes: Planes, channel: usize) -> [f64; 2] {
        let [mut sum, mut along] = [Sum::default(), Sum::default()];
        let mut buffer = [0.0f32; PIECE];
        for image in 0..planes[0] {
            let plane = plane(planes, image, channel);
            let pieces = x[plane.clone()].chunks(PIECE);
            for (x, g) in pieces.zip(g[plane].chunks(PIECE)) {
                let products = &mut buffer[..x.len()];
                for ((product, x), g) in products.iter_mut().zip(x).zip(g) {
                    *product = g * (x - mean);
                }
                sum.add(g, |g| g);
                along.add(products, |product| product);
            }
        }
        [sum.total(), along.total()]
    }

    #[inline(always)]
    pub fn centred<const FUSED: bool>(x: &[f32], mean: f32, factors: [f32; 2], to: &mut [f32]) {
        for (to, &x) in to.iter_mut().zip(x) {
            *to = fma::<FUSED>(x - mean, factors[0], factors[1]);
        }
    }

    #[inline(always)]
    pub fn combine<const FUSED: bool>(
        x: &[f32],
        mean: f32,
        g: &[f32],
        [scale, slope, shift]: [f32; 3],
        to: &mut [f32],
    ) {
        for ((to, &x), &g) in to.iter_mut().zip(x).zip(g) {
            *to = fma::<FUSED>(g, scale, fma::<FUSED>(x - mean, slope, shift));
        }
    }
}

/// The table of one instruction set, with its features enabled in every entry.
macro_rules! table {
    ($module:ident, $fused:literal, $(#[$feature:meta])*) => {
        mod $module {
            use super::{Planes, Table, body};

            $(#[$feature])*
            unsafe fn moments(x: &[f32], planes: Planes, channel: usize) -> [f64; 2] {
                body::moments(x, planes, channel)
            }

            $(#[$feature])*
            unsafe fn products(
                x: &[f32],
                mean: f32,
                g: &[f32],
                planes: Planes,
                channel: usize,
            ) -> [f64; 2] {
                body::products(x, mean, g, planes, channel)
            }

            $(#[$feature])*
            unsafe fn centred(x: &[f32], mean: f32, factors: [f32; 2], to: &mut [f32]) {
                body::centred::<$fused>(x, mean, factors, to)
            }

            $(#[$feature])*
            unsafe fn combine(x: &[f32], mean: f32, g: &[f32], factors: [f32; 3], to: &mut [f32]) {
                body::combine::<$fused>(x, mean, g, factors, to)
            }

            pub static TABLE: Table = Table {
                moments,
                products,
                centred,
                combine,
            };
        }
    };
}

table!(portable, false,);
#[cfg(target_arch = "x86_64")]
table!(avx2, true, #[target_feature(enable = "avx2,fma,bmi2")]);
#[cfg(target_arch = "x86_64")]
table!(avx512, true, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")]);

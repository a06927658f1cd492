//! What follows a product, in one pass: a line per channel (a frozen batch norm, a squeeze-and-excite gate), a join with a
//! skip connection, an activation; and the gradients of each.
//!
//! These passes do next to no arithmetic: what counts is that memory is read and written once. Forward passes therefore
//! take several steps at once, and overwrite their input where nobody else has it.
#![allow(unsafe_code)]

use super::Isa;
use super::norm::{Planes, Sum, check, plane};
use super::work::{Shared, output, parallel, split};
use crate::Activation;

/// Multiply-adds that an element of these operations is worth.
const WORTH: u64 = 4;
/// Elements of a work item, or a whole plane if that is more.
const PIECE: usize = 16 * 1024;
/// Elements whose gradients are summed while they are in the first cache.
const BLOCK: usize = 256;

/// `scale (x - centre) + shift` for each channel.
///
/// Subtracting first costs nothing here, and keeps what would cancel out of the rounding.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// One value per channel.
    pub centre: &'a [f32],
    /// One value per channel.
    pub scale: &'a [f32],
    /// One value per channel.
    pub shift: &'a [f32],
}

/// The line that changes nothing.
const NO_LINE: [f32; 3] = [0.0, 1.0, 0.0];

impl Line<'_> {
    fn of(&self, channel: usize) -> [f32; 3] {
        [self.centre, self.scale, self.shift].map(|values| values[channel])
    }
}

/// The gradients of a line per channel.
#[derive(Debug, Clone, PartialEq)]
pub struct LineGrad {
    /// Of the input.
    pub dx: Vec<f32>,
    /// For each channel, the gradient of the line's value times `x - centre`, summed over images and pixels.
    pub along: Vec<f32>,
    /// For each channel, the gradient of the line's value, summed.
    pub sum: Vec<f32>,
}

/// `activation(line(x) + skip)`.
///
/// # Shapes
/// `x` and `skip` `[images, channels, pixels]`.
pub fn apply(
    isa: Isa,
    planes: Planes,
    x: &[f32],
    line: Option<Line>,
    skip: Option<&[f32]>,
    activation: Activation,
) -> Vec<f32> {
    check(planes, x.len(), &[]);
    let mut y = output(x.len());
    let to = Shared::new(y.as_mut_ptr());
    each_plane(isa, planes, line, skip, |table, range, line, skip| {
        // SAFETY: the processor has the table's instructions, and this range is this thread's alone.
        unsafe {
            let to = std::slice::from_raw_parts_mut(to.at(range.start), range.len());
            (table.apply)(&x[range], line, skip, activation, to);
        }
    });
    // SAFETY: every plane was written.
    unsafe { y.written() }
}

/// As [`apply`], in the place of `x`.
pub fn apply_in_place(
    isa: Isa,
    planes: Planes,
    x: &mut [f32],
    line: Option<Line>,
    skip: Option<&[f32]>,
    activation: Activation,
) {
    check(planes, x.len(), &[]);
    let to = Shared::new(x.as_mut_ptr());
    each_plane(isa, planes, line, skip, |table, range, line, skip| {
        // SAFETY: as in `apply`; `x` is borrowed here alone.
        unsafe {
            let to = std::slice::from_raw_parts_mut(to.at(range.start), range.len());
            (table.apply_in_place)(to, line, skip, activation);
        }
    });
}

/// Hands out the planes with what belongs to each: its place, its line, its part of the skip.
fn each_plane(
    isa: Isa,
    planes: Planes,
    line: Option<Line>,
    skip: Option<&[f32]>,
    work: impl Fn(&Table, std::ops::Range<usize>, [f32; 3], Option<&[f32]>) + Sync + Send,
) {
    let [images, channels, pixels] = planes;
    if let Some(line) = line {
        check(
            planes,
            images * channels * pixels,
            &[line.centre, line.scale, line.shift],
        );
    }
    if let Some(skip) = skip {
        check(planes, skip.len(), &[]);
    }
    let (table, len) = (table(isa), images * channels * pixels);
    let Some(line) = line else {
        // Planes are all alike.
        let pieces: Vec<_> = split(len, PIECE).collect();
        parallel(pieces.len(), len as u64 * WORTH, |piece| {
            let range = pieces[piece].clone();
            work(table, range.clone(), NO_LINE, skip.map(|skip| &skip[range]));
        });
        return;
    };
    let groups: Vec<_> = split(images * channels, (PIECE / pixels.max(1)).max(1)).collect();
    parallel(groups.len(), len as u64 * WORTH, |group| {
        for at in groups[group].clone() {
            let range = plane(planes, 0, at);
            let channel = at % channels;
            work(
                table,
                range.clone(),
                line.of(channel),
                skip.map(|skip| &skip[range]),
            );
        }
    });
}

/// The gradient of what went into an activation, from that of what came out.
///
/// `kept` is what [`Activation::keeps_input`] says: the input, or the result.
pub fn activation_grad(isa: Isa, kept: &[f32], g: &[f32], activation: Activation) -> Vec<f32> {
    assert_eq!(kept.len(), g.len(), "a gradient has the size of its value");
    let mut dx = output(g.len());
    let to = Shared::new(dx.as_mut_ptr());
    each_slope(isa, kept, Some(g), activation, to);
    // SAFETY: every piece was written.
    unsafe { dx.written() }
}

/// As [`activation_grad`], in the place of `g`.
pub fn activation_grad_in_place(isa: Isa, kept: &[f32], g: &mut [f32], activation: Activation) {
    assert_eq!(kept.len(), g.len(), "a gradient has the size of its value");
    each_slope(isa, kept, None, activation, Shared::new(g.as_mut_ptr()));
}

/// Gradients into `to`, which holds as many as are kept: of `g`, or of what is in their place.
fn each_slope(isa: Isa, kept: &[f32], g: Option<&[f32]>, activation: Activation, to: Shared) {
    let table = table(isa);
    let pieces: Vec<_> = split(kept.len(), PIECE).collect();
    parallel(pieces.len(), kept.len() as u64 * WORTH, |piece| {
        let range = pieces[piece].clone();
        // SAFETY: the processor has the table's instructions, and this range is this thread's alone.
        unsafe {
            let to = std::slice::from_raw_parts_mut(to.at(range.start), range.len());
            let g = g.map(|g| &g[range.clone()]);
            (table.activation_grad)(&kept[range], g, activation, to);
        }
    });
}

/// The gradients of `activation(line(x))` from that of its result.
///
/// # Shapes
/// `x` and `g` `[images, channels, pixels]`.
pub fn line_grad(
    isa: Isa,
    planes: Planes,
    x: &[f32],
    line: Line,
    g: &[f32],
    activation: Activation,
) -> LineGrad {
    check(planes, x.len(), &[line.centre, line.scale, line.shift]);
    check(planes, g.len(), &[]);
    let [images, channels, _] = planes;
    let table = table(isa);
    let mut dx = output(x.len());
    let to = Shared::new(dx.as_mut_ptr());
    let [mut along, mut sum] = [0; 2].map(|_| output(channels));
    let [to_along, to_sum] = [&mut along, &mut sum].map(|out| Shared::new(out.as_mut_ptr()));
    parallel(channels, x.len() as u64 * WORTH, |channel| {
        let factors = line.of(channel);
        let mut sums = [Sum::default(), Sum::default()];
        for image in 0..images {
            let range = plane(planes, image, channel);
            // SAFETY: the processor has the table's instructions; this channel is this thread's alone.
            unsafe {
                let to = std::slice::from_raw_parts_mut(to.at(range.start), range.len());
                let (x, g) = (&x[range.clone()], &g[range]);
                (table.line_grad)(x, g, factors, activation, to, &mut sums);
            }
        }
        // SAFETY: as above.
        unsafe {
            *to_along.at(channel) = sums[0].total() as f32;
            *to_sum.at(channel) = sums[1].total() as f32;
        }
    });
    // SAFETY: every channel was gone through.
    unsafe {
        LineGrad {
            dx: dx.written(),
            along: along.written(),
            sum: sum.written(),
        }
    }
}

// An alias per entry would hide what it takes.
#[allow(clippy::type_complexity)]
struct Table {
    apply: unsafe fn(&[f32], [f32; 3], Option<&[f32]>, Activation, &mut [f32]),
    apply_in_place: unsafe fn(&mut [f32], [f32; 3], Option<&[f32]>, Activation),
    activation_grad: unsafe fn(&[f32], Option<&[f32]>, Activation, &mut [f32]),
    line_grad: unsafe fn(&[f32], &[f32], [f32; 3], Activation, &mut [f32], &mut [Sum; 2]),
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
    use super::{BLOCK, Sum};
    use crate::Activation;
    use crate::cpu::norm::fma;

    /// Comparisons that keep a NaN as it is.
    #[inline(always)]
    fn between(v: f32, low: f32, high: f32) -> f32 {
        let v = if v < low { low } else { v };
        if v > high { high } else { v }
    }

    #[inline(always)]
    fn relu(v: f32) -> f32 {
        if v < 0.0 { 0.0 } else { v }
    }

    #[inline(always)]
    fn gate(v: f32) -> f32 {
        between(v + 3.0, 0.0, 6.0) * (1.0 / 6.0)
    }

    /// One loop for each activation: a choice inside it would keep it from becoming vectors.
    macro_rules! each {
        ($activation:expr, $run:ident) => {
            match $activation {
                Activation::Identity => $run!(|v: f32| v),
                Activation::Relu => $run!(relu),
                Activation::Relu6 => $run!(|v| between(v, 0.0, 6.0)),
                Activation::HardSigmoid => $run!(gate),
                Activation::HardSwish => $run!(|v| v * gate(v)),
            }
        };
    }

    #[inline(always)]
    fn map<const FUSED: bool>(
        x: &[f32],
        [centre, scale, shift]: [f32; 3],
        skip: Option<&[f32]>,
        to: &mut [f32],
        activation: impl Fn(f32) -> f32,
    ) {
        let line = |x| fma::<FUSED>(x - centre, scale, shift);
        match skip {
            None => {
                for (to, &x) in to.iter_mut().zip(x) {
                    *to = activation(line(x));
                }
            }
            Some(skip) => {
                for ((to, &x), &skip) in to.iter_mut().zip(x).zip(skip) {
                    *to = activation(line(x) + skip);
                }
            }
        }
    }

    #[inline(always)]
    pub fn apply<const FUSED: bool>(
        x: &[f32],
        line: [f32; 3],
        skip: Option<&[f32]>,
        activation: Activation,
        to: &mut [f32],
    ) {
        macro_rules! run {
            ($f:expr) => {
                map::<FUSED>(x, line, skip, to, $f)
            };
        }
        each!(activation, run)
    }

    #[inline(always)]
    fn map_in_place<const FUSED: bool>(
        x: &mut [f32],
        [centre, scale, shift]: [f32; 3],
        skip: Option<&[f32]>,
        activation: impl Fn(f32) -> f32,
    ) {
        let line = |x| fma::<FUSED>(x - centre, scale, shift);
        match skip {
            None => {
                for x in x {
                    *x = activation(line(*x));
                }
            }
            Some(skip) => {
                for (x, &skip) in x.iter_mut().zip(skip) {
                    *x = activation(line(*x) + skip);
                }
            }
        }
    }

    #[inline(always)]
    pub fn apply_in_place<const FUSED: bool>(
        x: &mut [f32],
        line: [f32; 3],
        skip: Option<&[f32]>,
        activation: Activation,
    ) {
        macro_rules! run {
            ($f:expr) => {
                map_in_place::<FUSED>(x, line, skip, $f)
            };
        }
        each!(activation, run)
    }

    /// Slopes from the input; at a kink, that of the flat side, as the field's frameworks have it.
    #[inline(always)]
    fn inside(v: f32, low: f32, high: f32, slope: f32) -> f32 {
        if v > low && v < high { slope } else { 0.0 }
    }

    #[inline(always)]
    fn above_zero(v: f32) -> f32 {
        if v > 0.0 { 1.0 } else { 0.0 }
    }

    /// The slope of x min(max(x + 3, 0), 6) / 6.
    #[inline(always)]
    fn hard_swish_slope(v: f32) -> f32 {
        let middle = fma::<false>(v, 1.0 / 3.0, 0.5);
        let below = if v < -3.0 { 0.0 } else { middle };
        if v > 3.0 { 1.0 } else { below }
    }

    #[inline(always)]
    fn slopes(kept: &[f32], g: Option<&[f32]>, to: &mut [f32], slope: impl Fn(f32) -> f32) {
        match g {
            Some(g) => {
                for ((to, &kept), &g) in to.iter_mut().zip(kept).zip(g) {
                    *to = g * slope(kept);
                }
            }
            None => {
                for (to, &kept) in to.iter_mut().zip(kept) {
                    *to *= slope(kept);
                }
            }
        }
    }

    /// From what the activation keeps, which for all but hard swish is its result.
    #[inline(always)]
    pub fn activation_grad(
        kept: &[f32],
        g: Option<&[f32]>,
        activation: Activation,
        to: &mut [f32],
    ) {
        match activation {
            Activation::Identity => {
                if let Some(g) = g {
                    to.copy_from_slice(g);
                }
            }
            Activation::Relu => slopes(kept, g, to, above_zero),
            Activation::Relu6 => slopes(kept, g, to, |y| inside(y, 0.0, 6.0, 1.0)),
            Activation::HardSigmoid => slopes(kept, g, to, |y| inside(y, 0.0, 1.0, 1.0 / 6.0)),
            Activation::HardSwish => slopes(kept, g, to, hard_swish_slope),
        }
    }

    #[inline(always)]
    pub fn line_grad<const FUSED: bool>(
        x: &[f32],
        g: &[f32],
        [centre, scale, shift]: [f32; 3],
        activation: Activation,
        to: &mut [f32],
        [along, sum]: &mut [Sum; 2],
    ) {
        let mut before = [0.0f32; BLOCK];
        let mut products = [0.0f32; BLOCK];
        for ((x, g), to) in x
            .chunks(BLOCK)
            .zip(g.chunks(BLOCK))
            .zip(to.chunks_mut(BLOCK))
        {
            let (before, products) = (&mut before[..x.len()], &mut products[..x.len()]);
            macro_rules! run {
                ($slope:expr) => {{
                    let slope = $slope;
                    for ((before, &x), &g) in before.iter_mut().zip(x).zip(g) {
                        *before = g * slope(fma::<FUSED>(x - centre, scale, shift));
                    }
                }};
            }
            match activation {
                Activation::Identity => before.copy_from_slice(g),
                Activation::Relu => run!(above_zero),
                Activation::Relu6 => run!(|z: f32| inside(z, 0.0, 6.0, 1.0)),
                Activation::HardSigmoid => run!(|z: f32| inside(z, -3.0, 3.0, 1.0 / 6.0)),
                Activation::HardSwish => run!(hard_swish_slope),
            }
            for (((to, product), &x), &before) in
                to.iter_mut().zip(products.iter_mut()).zip(x).zip(&*before)
            {
                *to = before * scale;
                *product = before * (x - centre);
            }
            along.add(products, |product| product);
            sum.add(before, |before| before);
        }
    }
}

/// The table of one instruction set, with its features enabled in every entry.
macro_rules! table {
    ($module:ident, $fused:literal, $(#[$feature:meta])*) => {
        mod $module {
            use super::{Activation, Sum, Table, body};

            $(#[$feature])*
            unsafe fn apply(
                x: &[f32],
                line: [f32; 3],
                skip: Option<&[f32]>,
                activation: Activation,
                to: &mut [f32],
            ) {
                body::apply::<$fused>(x, line, skip, activation, to)
            }

            $(#[$feature])*
            unsafe fn apply_in_place(
                x: &mut [f32],
                line: [f32; 3],
                skip: Option<&[f32]>,
                activation: Activation,
            ) {
                body::apply_in_place::<$fused>(x, line, skip, activation)
            }

            $(#[$feature])*
            unsafe fn activation_grad(
                kept: &[f32],
                g: Option<&[f32]>,
                activation: Activation,
                to: &mut [f32],
            ) {
                body::activation_grad(kept, g, activation, to)
            }

            $(#[$feature])*
            unsafe fn line_grad(
                x: &[f32],
                g: &[f32],
                line: [f32; 3],
                activation: Activation,
                to: &mut [f32],
                sums: &mut [Sum; 2],
            ) {
                body::line_grad::<$fused>(x, g, line, activation, to, sums)
            }

            pub static TABLE: Table = Table {
                apply,
                apply_in_place,
                activation_grad,
                line_grad,
            };
        }
    };
}

table!(portable, false,);
#[cfg(target_arch = "x86_64")]
table!(avx2, true, #[target_feature(enable = "avx2,fma,bmi2")]);
#[cfg(target_arch = "x86_64")]
table!(avx512, true, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")]);

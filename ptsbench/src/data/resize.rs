//! Resizing, each function equal to the program whose pictures a network was trained on: Pillow's antialiased 8-bit
//! filters, OpenCV's 8-bit linear filter, and PyTorch's bilinear interpolation of floats.

use std::ops::Range;

use crate::data::decode::Rgb;

/// Pillow's filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Triangle.
    Bilinear,
    /// Keys' cubic with a = -0.5.
    Bicubic,
}

impl Filter {
    /// Half the filter's width, in output pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, distance: f64) -> f64 {
        const A: f64 = -0.5;
        let x = distance.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Fractional bits of a weight: 8 bits are the pixel's and 2 are room for overshoot.
const PRECISION: u32 = 32 - 8 - 2;

/// One direction of a resize, for some of its output pixels.
struct Pass {
    /// Weights of an output pixel: as many for each, the missing ones zero.
    count: usize,
    /// For each output pixel the first input pixel.
    first: Vec<usize>,
    /// For each output pixel the weights of the input pixels from there on.
    weights: Vec<i32>,
}

impl Pass {
    /// The pixels `wanted` of a pass from `input` pixels to `output`; none where the pass changes nothing. Weights are
    /// normalised in f64, then rounded half away from 0.
    fn new(input: usize, output: usize, wanted: Range<usize>, filter: Filter) -> Option<Self> {
        if input == output {
            return None;
        }
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let taps = wanted.map(|at| {
            let centre = (at as f64 + 0.5) * scale;
            // Casts truncate towards 0 and saturate there, which is the bound asked for.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(input);
            let weights: Vec<f64> = (first..end)
                .map(|i| filter.weight((i as f64 - centre + 0.5) / stretch))
                .collect();
            (first, weights)
        });
        let taps: Vec<(usize, Vec<f64>)> = taps.collect();
        let count = taps.iter().map(|(_, weights)| weights.len()).max()?;
        let count = count.next_multiple_of(UNROLLED).min(input);
        let mut pass = Self {
            count,
            first: Vec::with_capacity(taps.len()),
            weights: Vec::with_capacity(taps.len() * count),
        };
        for (first, taps) in &taps {
            // Near the end the surplus weights come first, so that all windows lie in the input.
            let from = (*first).min(input - count);
            let sum: f64 = taps.iter().sum();
            let fixed = |weight: &f64| {
                let scaled = weight / sum * f64::from(1_u32 << PRECISION);
                (scaled + 0.5_f64.copysign(scaled)) as i32
            };
            pass.first.push(from);
            pass.weights.extend((from..*first).map(|_| 0));
            pass.weights.extend(taps.iter().map(fixed));
            pass.weights.resize(pass.first.len() * count, 0);
        }
        Some(pass)
    }

    /// Where the windows begin, and their weights.
    fn taps(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let first = self.first.iter().copied();
        first.zip(self.weights.chunks_exact(self.count))
    }

    /// Input pixels that are looked at.
    fn reach(&self) -> Range<usize> {
        let first = self.first.first().copied().unwrap_or(0);
        let last = self.first.last().map_or(0, |last| last + self.count);
        first..last
    }
}

const ROUND: i32 = 1 << (PRECISION - 1);

#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// A rectangle of a resized picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// Resizes as Pillow does: rows first, then columns, both passes rounding to 8 bits; a pass that changes nothing is left
/// out. (Pillow 13 swaps the passes where the height shrinks much more than the width, which a resize that keeps the
/// aspect never does.)
pub fn pillow(picture: &Rgb, width: usize, height: usize, filter: Filter) -> Rgb {
    let whole = Window {
        left: 0,
        top: 0,
        width,
        height,
    };
    pillow_window(picture, width, height, filter, whole)
}

/// A part of what [`pillow`] gives. Only what the part depends on is computed, and each pixel is the same.
pub fn pillow_window(
    picture: &Rgb,
    width: usize,
    height: usize,
    filter: Filter,
    window: Window,
) -> Rgb {
    let (right, bottom) = (window.left + window.width, window.top + window.height);
    assert!(
        right <= width && bottom <= height,
        "the part is of the picture"
    );
    let across = Pass::new(picture.width, width, window.left..right, filter);
    let down = Pass::new(picture.height, height, window.top..bottom, filter);
    let rows = down.as_ref().map_or(window.top..bottom, Pass::reach);
    let stride = picture.width * 3;
    let source = &picture.pixels[rows.start * stride..rows.end * stride];
    let narrow = match across {
        Some(pass) => pulp::Arch::new().dispatch(Rows {
            pixels: source,
            stride,
            pass,
        }),
        None => cut_rows(source, stride, window.left * 3..right * 3),
    };
    let pixels = match down {
        Some(pass) => pulp::Arch::new().dispatch(Columns {
            pixels: narrow.as_flattened(),
            stride: window.width * 4,
            top: rows.start,
            pass,
        }),
        None => without_fourth(&narrow),
    };
    Rgb {
        width: window.width,
        height: window.height,
        pixels,
    }
}

fn cut_rows(pixels: &[u8], stride: usize, columns: Range<usize>) -> Vec<[u8; 4]> {
    let rows = pixels.chunks_exact(stride);
    let cut = rows.flat_map(|row| row[columns.clone()].as_chunks::<3>().0);
    cut.map(|&[red, green, blue]| [red, green, blue, 0])
        .collect()
}

#[inline(always)]
fn without_fourth(pixels: &[[u8; 4]]) -> Vec<u8> {
    let mut out = vec![0; pixels.len() * 3];
    for (out, pixel) in out.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        out.copy_from_slice(&pixel[..3]);
    }
    out
}

/// Taps that are summed without a loop.
const UNROLLED: usize = 4;
/// Bytes of a row that are summed at a time: their sums stay in registers.
const LANES: usize = 32;

/// The pass along rows. Plain loops, which the dispatch compiles for the vectors of the processor. Pixels get a fourth
/// byte, which is nothing, so that a pixel is a vector.
struct Rows<'a> {
    pixels: &'a [u8],
    /// Bytes of a row.
    stride: usize,
    pass: Pass,
}

impl pulp::WithSimd for Rows<'_> {
    type Output = Vec<[u8; 4]>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
        let Self {
            pixels,
            stride,
            pass,
        } = self;
        let wide = pass.first.len();
        let mut out = vec![[0; 4]; pixels.len() / stride * wide];
        let mut four = vec![[0; 4]; stride / 3];
        for (row, out) in pixels.chunks_exact(stride).zip(out.chunks_exact_mut(wide)) {
            for (four, pixel) in four.iter_mut().zip(row.as_chunks::<3>().0) {
                four[..3].copy_from_slice(pixel);
            }
            for ((first, weights), out) in pass.taps().zip(out) {
                let mut sums = [ROUND; 4];
                let window = &four[first..][..weights.len()];
                let (weights, last_weights) = weights.as_chunks::<UNROLLED>();
                let (window, last) = window.as_chunks::<UNROLLED>();
                for (pixels, weights) in window.iter().zip(weights) {
                    for (pixel, &weight) in pixels.iter().zip(weights) {
                        add(&mut sums, pixel, weight);
                    }
                }
                for (pixel, &weight) in last.iter().zip(last_weights) {
                    add(&mut sums, pixel, weight);
                }
                *out = sums.map(to_byte);
            }
        }
        out
    }
}

#[inline(always)]
fn add(sums: &mut [i32; 4], pixel: &[u8; 4], weight: i32) {
    for (sum, &value) in sums.iter_mut().zip(pixel) {
        *sum += i32::from(value) * weight;
    }
}

/// The pass along columns, and the end of the fourth byte.
struct Columns<'a> {
    pixels: &'a [u8],
    /// Bytes of a row.
    stride: usize,
    /// The row of the input that `pixels` starts with.
    top: usize,
    pass: Pass,
}

impl pulp::WithSimd for Columns<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Vec<u8> {
        let Self {
            pixels,
            stride,
            top,
            pass,
        } = self;
        let mut out = vec![0; pass.first.len() * stride];
        for ((first, weights), out) in pass.taps().zip(out.chunks_exact_mut(stride)) {
            let rows = &pixels[(first - top) * stride..][..weights.len() * stride];
            let (lanes, rest) = out.as_chunks_mut::<LANES>();
            let mut at = 0;
            for out in lanes {
                let mut sums = [ROUND; LANES];
                for (row, &weight) in rows.chunks_exact(stride).zip(weights) {
                    for (sum, &value) in sums.iter_mut().zip(&row[at..at + LANES]) {
                        *sum += i32::from(value) * weight;
                    }
                }
                *out = sums.map(to_byte);
                at += LANES;
            }
            for out in rest {
                let column = rows.iter().skip(at).step_by(stride);
                let products = column
                    .zip(weights)
                    .map(|(&v, weight)| i32::from(v) * weight);
                *out = to_byte(ROUND + products.sum::<i32>());
                at += 1;
            }
        }
        without_fourth(out.as_chunks::<4>().0)
    }
}

/// Fractional bits of OpenCV's weights.
const OPENCV_BITS: u32 = 11;

/// Resizes as OpenCV's `INTER_LINEAR` does for bytes: no antialiasing, weights of 11 bits, and the sums shifted in two
/// steps. Exact halving is OpenCV's special case, an average of four.
pub fn opencv_linear(picture: &Rgb, width: usize, height: usize) -> Rgb {
    let mut pixels = Vec::with_capacity(width * height * 3);
    if picture.width == 2 * width && picture.height == 2 * height {
        for y in 0..height {
            for x in 0..width {
                let corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
                    .map(|(right, down)| picture.at(2 * x + right, 2 * y + down));
                for channel in 0..3 {
                    let sum: u32 = corners.iter().map(|pixel| u32::from(pixel[channel])).sum();
                    pixels.push(((sum + 2) >> 2) as u8);
                }
            }
        }
        return Rgb {
            width,
            height,
            pixels,
        };
    }
    let across: Vec<Between> = (0..width)
        .map(|x| Between::at(x, picture.width, width).clamped(picture.width))
        .collect();
    let line = |y: usize| -> Vec<i32> {
        let row = &picture.pixels[y * picture.width * 3..][..picture.width * 3];
        across
            .iter()
            .flat_map(|place| {
                let left = place.index as usize * 3;
                let right = left + if place.weights[1] == 0 { 0 } else { 3 };
                [0, 1, 2].map(|channel| {
                    i32::from(row[left + channel]) * place.weights[0]
                        + i32::from(row[right + channel]) * place.weights[1]
                })
            })
            .collect()
    };
    let last = picture.height as i64 - 1;
    // The two lines in use, by row.
    let mut lines: [(usize, Vec<i32>); 2] = [(usize::MAX, Vec::new()), (usize::MAX, Vec::new())];
    for y in 0..height {
        // Beyond the first and last row the weights stay as they are and the row repeats.
        let place = Between::at(y, picture.height, height);
        let rows = [0, 1].map(|down| (place.index + down).clamp(0, last) as usize);
        if lines[1].0 == rows[0] {
            lines.swap(0, 1);
        }
        for (line_at, &row) in lines.iter_mut().zip(&rows) {
            if line_at.0 != row {
                *line_at = (row, line(row));
            }
        }
        let [above, below] = place.weights;
        let columns = lines[0].1.iter().zip(&lines[1].1);
        pixels.extend(columns.map(|(&a, &b)| {
            let sum = ((above * (a >> 4)) >> 16) + ((below * (b >> 4)) >> 16);
            ((sum + 2) >> 2).clamp(0, 255) as u8
        }));
    }
    Rgb {
        width,
        height,
        pixels,
    }
}

/// Where an output pixel lies between two input pixels, for OpenCV.
#[derive(Clone, Copy)]
struct Between {
    index: i64,
    weights: [i32; 2],
}

impl Between {
    fn at(output: usize, from: usize, to: usize) -> Self {
        let scale = 1.0 / (to as f64 / from as f64);
        let place = ((output as f64 + 0.5) * scale - 0.5) as f32;
        let index = place.floor();
        let right = place - index;
        let one = (1 << OPENCV_BITS) as f32;
        Self {
            index: index as i64,
            weights: [1.0 - right, right].map(|weight| (weight * one).round_ties_even() as i32),
        }
    }

    /// Places outside the row lie on its first or last pixel.
    fn clamped(self, from: usize) -> Self {
        let last = from as i64 - 1;
        if (0..last).contains(&self.index) {
            return self;
        }
        Self {
            index: self.index.clamp(0, last),
            weights: [1 << OPENCV_BITS, 0],
        }
    }
}

/// Resizes one plane of floats as PyTorch's bilinear `interpolate` does with `align_corners=False` and no antialiasing.
pub fn torch_bilinear(
    plane: &[f32],
    (width, height): (usize, usize),
    (to_width, to_height): (usize, usize),
) -> Vec<f32> {
    assert_eq!(plane.len(), width * height);
    let between = |output: usize, from: usize, to: usize| {
        let scale = from as f32 / to as f32;
        let place = (scale * (output as f32 + 0.5) - 0.5).max(0.0);
        let index = (place as usize).min(from - 1);
        (index, (index + 1).min(from - 1), place - index as f32)
    };
    let across: Vec<_> = (0..to_width).map(|x| between(x, width, to_width)).collect();
    let mut out = Vec::with_capacity(to_width * to_height);
    for y in 0..to_height {
        let (top, bottom, down) = between(y, height, to_height);
        let above = &plane[top * width..][..width];
        let below = &plane[bottom * width..][..width];
        out.extend(across.iter().map(|&(left, right, along)| {
            let upper = above[left] * (1.0 - along) + above[right] * along;
            let lower = below[left] * (1.0 - along) + below[right] * along;
            upper * (1.0 - down) + lower * down
        }));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    fn noise(width: usize, height: usize) -> Rgb {
        let mut stream = Seed(5).stream("resize");
        let pixels = (0..width * height * 3)
            .map(|_| stream.below(256) as u8)
            .collect();
        Rgb {
            width,
            height,
            pixels,
        }
    }

    #[test]
    fn one_colour_stays_one_colour() {
        for value in [0, 1, 127, 254, 255] {
            let flat = Rgb {
                width: 31,
                height: 17,
                pixels: vec![value; 31 * 17 * 3],
            };
            for (width, height) in [(7, 5), (64, 40), (31, 90), (1, 1)] {
                for filter in [Filter::Bilinear, Filter::Bicubic] {
                    let out = pillow(&flat, width, height, filter);
                    assert!(out.pixels.iter().all(|&pixel| pixel == value));
                }
                let out = opencv_linear(&flat, width, height);
                assert!(out.pixels.iter().all(|&pixel| pixel.abs_diff(value) <= 1));
            }
        }
    }

    #[test]
    fn a_part_is_cut_out_of_the_whole() {
        let mut stream = Seed(6).stream("windows");
        for (from, to) in [
            ((50, 37), (34, 25)),
            ((50, 37), (50, 25)),
            ((50, 37), (34, 37)),
            ((50, 37), (50, 37)),
            ((20, 31), (90, 140)),
            ((9, 70), (3, 23)),
        ] {
            let picture = noise(from.0, from.1);
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let whole = pillow(&picture, to.0, to.1, filter);
                let mut within = |side: usize| {
                    let length = 1 + stream.below(side as u64) as usize;
                    (stream.below((side - length) as u64 + 1) as usize, length)
                };
                let ((left, width), (top, height)) = (within(to.0), within(to.1));
                let window = Window {
                    left,
                    top,
                    width,
                    height,
                };
                let part = pillow_window(&picture, to.0, to.1, filter, window);
                assert_eq!(
                    part,
                    whole.crop(left, top, width, height),
                    "{from:?} {window:?}"
                );
            }
        }
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let picture = noise(19, 23);
        assert_eq!(pillow(&picture, 19, 23, Filter::Bicubic), picture);
        assert_eq!(opencv_linear(&picture, 19, 23), picture);
        let plane: Vec<f32> = picture.pixels[..19 * 23]
            .iter()
            .map(|&byte| byte.into())
            .collect();
        assert_eq!(torch_bilinear(&plane, (19, 23), (19, 23)), plane);
    }

    #[test]
    fn mirrored_pictures_give_mirrored_results() {
        let picture = noise(50, 20);
        let mirror = |picture: &Rgb| {
            let pixels = (0..picture.height)
                .flat_map(|y| (0..picture.width).rev().flat_map(move |x| picture.at(x, y)))
                .collect();
            Rgb { pixels, ..*picture }
        };
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            let one = mirror(&pillow(&picture, 23, 20, filter));
            assert_eq!(pillow(&mirror(&picture), 23, 20, filter), one);
        }
    }
}

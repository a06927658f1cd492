//! Padded, phase-split copies of a piece of an image ("planes"), in which every tap of a convolution is one offset.
//!
//! A plane holds some channels of a band of rows. With a stride, row and column phases are split, so that neighbours
//! in a plane are neighbours in the output; zeros of the padding are written out. Two layouts:
//!
//! * one image: `[channel][phase][row][column]`. A row is as wide as the output plus the reach of the taps, less the
//!   zeros that the end of a row can share with the start of the next, so that a tile runs on over row ends;
//! * several images side by side: `[channel][phase][row][column][image]`, for outputs too narrow to fill a vector.
//!
//! The input gradient is the same thing with the roles of input and output exchanged: a stride then splits the result
//! into phases instead ([`Sub`]).
#![allow(unsafe_code)]

use super::Kernels;
use crate::ConvShape;

/// Output positions that see the same taps: all of them, or one phase of an input gradient.
#[derive(Debug, Clone)]
pub struct Sub {
    /// Tap of the weight (`u * kw + v`) and its offset in a plane, in positions.
    pub taps: Vec<(usize, usize)>,
    /// First row and column in the result.
    pub first: [usize; 2],
    /// Rows and columns it has.
    pub count: [usize; 2],
}

/// How a source tensor is seen through planes.
#[derive(Debug, Clone)]
pub struct View {
    /// Height and width of the source.
    pub source: [usize; 2],
    /// Distance between neighbours of a plane in the source.
    step: [usize; 2],
    /// Zeros before the source.
    pub before: [usize; 2],
    /// Phases that some tap reads.
    phases: Vec<[usize; 2]>,
    /// Rows and columns beyond the output's that the taps reach.
    pub reach: [usize; 2],
    /// Rows and columns of the largest [`Sub`].
    pub count: [usize; 2],
    /// Height and width of the result.
    pub result: [usize; 2],
    /// Distance between a [`Sub`]'s neighbours in the result.
    pub spread: [usize; 2],
    /// The pieces of the result.
    pub subs: Vec<Sub>,
}

/// A tap before its plane's size is known.
struct Tap {
    weight: usize,
    phase: [usize; 2],
    at: [usize; 2],
}

impl View {
    /// The input of `shape`, as its output sees it.
    pub fn forward(shape: &ConvShape) -> Self {
        let mut taps = Vec::new();
        for u in 0..shape.kernel[0] {
            for v in 0..shape.kernel[1] {
                let q = [u * shape.dilation[0], v * shape.dilation[1]];
                taps.push(Tap {
                    weight: u * shape.kernel[1] + v,
                    phase: [0, 1].map(|d| q[d] % shape.stride[d]),
                    at: [0, 1].map(|d| q[d] / shape.stride[d]),
                });
            }
        }
        let out = shape.out_size();
        Self::new(
            shape.size,
            shape.stride,
            shape.padding.map(|p| p[0]),
            out,
            [1; 2],
            vec![(taps, [0; 2], out)],
        )
    }

    /// The output's gradient of `shape`, as the input's gradient sees it: for a place q of the input, the taps u and
    /// outputs i with `i s - p + u d = q`.
    pub fn input_grad(shape: &ConvShape) -> Self {
        // Along one axis: for each phase f of the input, (tap, i - m) for q = f + m s.
        let axis = |d: usize| -> Vec<Vec<(usize, isize)>> {
            let (s, p) = (shape.stride[d] as isize, shape.padding[d][0] as isize);
            (0..s)
                .map(|f| {
                    (0..shape.kernel[d])
                        .map(|u| (u, f + p - (u * shape.dilation[d]) as isize))
                        .filter(|(_, q)| q.rem_euclid(s) == 0)
                        .map(|(u, q)| (u, q.div_euclid(s)))
                        .collect()
                })
                .collect()
        };
        let (rows, columns) = (axis(0), axis(1));
        let before = [&rows, &columns].map(|axis| {
            let lowest = axis.iter().flatten().map(|(_, e)| *e).min().unwrap_or(0);
            lowest.min(0).unsigned_abs()
        });
        let mut subs = Vec::new();
        for (fy, ys) in rows.iter().enumerate() {
            for (fx, xs) in columns.iter().enumerate() {
                let first = [fy, fx];
                let count = [0, 1].map(|d| {
                    shape.size[d]
                        .saturating_sub(first[d])
                        .div_ceil(shape.stride[d])
                });
                let mut taps = Vec::new();
                for &(u, ey) in ys {
                    for &(v, ex) in xs {
                        taps.push(Tap {
                            weight: u * shape.kernel[1] + v,
                            phase: [0; 2],
                            at: [
                                ey.saturating_add_unsigned(before[0]) as usize,
                                ex.saturating_add_unsigned(before[1]) as usize,
                            ],
                        });
                    }
                }
                subs.push((taps, first, count));
            }
        }
        Self::new(
            shape.out_size(),
            [1; 2],
            before,
            shape.size,
            shape.stride,
            subs,
        )
    }

    fn new(
        source: [usize; 2],
        step: [usize; 2],
        before: [usize; 2],
        result: [usize; 2],
        spread: [usize; 2],
        subs: Vec<(Vec<Tap>, [usize; 2], [usize; 2])>,
    ) -> Self {
        let all = || subs.iter().flat_map(|(taps, _, _)| taps);
        let reach = [0, 1].map(|d| all().map(|t| t.at[d]).max().unwrap_or(0));
        let mut phases: Vec<[usize; 2]> = all().map(|t| t.phase).collect();
        phases.sort_unstable();
        phases.dedup();
        let count = [0, 1].map(|d| subs.iter().map(|(_, _, count)| count[d]).max().unwrap_or(0));
        let mut view = Self {
            source,
            step,
            before,
            phases,
            reach,
            count,
            result,
            spread,
            subs: Vec::new(),
        };
        // Offsets are relative to a plane of one row; `Layout::offsets` scales rows and phases.
        view.subs = subs
            .into_iter()
            .map(|(taps, first, count)| Sub {
                taps: taps.iter().map(|t| (t.weight, view.encode(t))).collect(),
                first,
                count,
            })
            .collect();
        view
    }

    /// Phase, row and column of a tap in one number, until the plane's size is known.
    fn encode(&self, tap: &Tap) -> usize {
        let phase = self
            .phases
            .iter()
            .position(|p| *p == tap.phase)
            .expect("every tap's phase is listed");
        (phase * (self.reach[0] + 1) + tap.at[0]) * (self.reach[1] + 1) + tap.at[1]
    }

    /// Zeros that a row's end shares with the next row's start.
    fn shared(&self) -> usize {
        let width = self.count[1] + self.reach[1];
        if self.step[1] != 1 {
            return 0;
        }
        let after = width.saturating_sub(self.before[1] + self.source[1]);
        after.min(self.before[1]).min(self.reach[1])
    }
}

/// The size of a plane.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Images side by side.
    pub lanes: usize,
    /// Output rows of the band.
    pub rows: usize,
    /// Positions from a row to the next.
    pub width: usize,
    /// Positions of a channel.
    pub channel: usize,
}

impl Layout {
    /// For bands of `rows` output rows and `lanes` images side by side.
    pub fn new(view: &View, rows: usize, lanes: usize) -> Self {
        let full = view.count[1] + view.reach[1];
        let width = if lanes == 1 {
            full - view.shared()
        } else {
            full
        };
        Self {
            lanes,
            rows,
            width,
            channel: view.phases.len() * (rows + view.reach[0]) * width,
        }
    }

    /// One image at a time, rows at a distance of `width`, which must have room for the output's and its reach.
    pub fn padded(view: &View, rows: usize, width: usize) -> Self {
        assert!(width >= view.count[1] + view.reach[1], "a row fits");
        Self {
            lanes: 1,
            rows,
            width,
            channel: view.phases.len() * (rows + view.reach[0]) * width,
        }
    }

    /// Floats of a plane of `channels`, with room for a tile to run over the end.
    pub fn len(&self, view: &View, channels: usize) -> usize {
        self.channel * self.lanes * channels + view.reach[1] * self.lanes + super::MAX_COLUMNS
    }

    /// Float offsets of the taps of `sub` in `channels` channels, channel by channel.
    pub fn offsets(&self, view: &View, sub: &Sub, channels: usize) -> Vec<u32> {
        let (height, columns) = (view.reach[0] + 1, view.reach[1] + 1);
        let at: Vec<usize> = sub
            .taps
            .iter()
            .map(|&(_, code)| {
                let (phase, y, x) = (
                    code / (height * columns),
                    code / columns % height,
                    code % columns,
                );
                (phase * (self.rows + view.reach[0]) + y) * self.width + x
            })
            .collect();
        (0..channels)
            .flat_map(|c| {
                at.iter()
                    .map(move |a| ((c * self.channel + a) * self.lanes) as u32)
            })
            .collect()
    }

    /// Fills a plane with the band that begins at output row `from`, of `channels` channels of up to `lanes` images.
    ///
    /// `x` is the first of these channels in the first of these images, `image` the distance between images.
    ///
    /// # Safety
    /// `x` must be valid for all rows of these channels and images, `to` for [`Layout::len`] floats.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn fill(
        &self,
        view: &View,
        kernels: &Kernels,
        x: *const f32,
        image: usize,
        images: usize,
        channels: usize,
        from: usize,
        to: *mut f32,
    ) {
        let [height, width] = view.source;
        let columns = self.width;
        let rows = self.rows + view.reach[0];
        let lanes = self.lanes;
        let mut line =
            (lanes > 1 && view.step[1] > 1).then(|| super::work::Scratch::take(width * lanes));
        for channel in 0..channels {
            for (p, phase) in view.phases.iter().enumerate() {
                // Columns whose source lies inside: i * step + phase - before in 0..width.
                let low = view.before[1]
                    .saturating_sub(phase[1])
                    .div_ceil(view.step[1])
                    .min(columns);
                let high = (width + view.before[1])
                    .saturating_sub(phase[1])
                    .div_ceil(view.step[1])
                    .clamp(low, columns);
                for row in 0..rows {
                    let at = ((channel * view.phases.len() + p) * rows + row) * self.width * lanes;
                    let source = (from + row) * view.step[0] + phase[0];
                    let inside = source >= view.before[0] && source - view.before[0] < height;
                    // SAFETY: `at` is a row of the plane, the source row and its columns lie in the image, and images
                    // beyond the last are not read.
                    unsafe {
                        let line_out = to.add(at);
                        if !inside || high <= low {
                            line_out.write_bytes(0, self.width * lanes);
                            continue;
                        }
                        let first = low * view.step[1] + phase[1] - view.before[1];
                        let from =
                            x.add((channel * height + source - view.before[0]) * width + first);
                        line_out.write_bytes(0, low * lanes);
                        line_out
                            .add(high * lanes)
                            .write_bytes(0, (self.width - high) * lanes);
                        let inner = line_out.add(low * lanes);
                        let n = high - low;
                        if lanes > 1 {
                            if images < lanes {
                                inner.write_bytes(0, n * lanes);
                            }
                            match &mut line {
                                None => (kernels.transpose)(from, image, images, n, inner, lanes),
                                Some(line) => {
                                    let span = (n - 1) * view.step[1] + 1;
                                    let line = line.as_mut_ptr();
                                    (kernels.transpose)(from, image, images, span, line, lanes);
                                    for i in 0..n {
                                        inner.add(i * lanes).copy_from_nonoverlapping(
                                            line.add(i * view.step[1] * lanes),
                                            images,
                                        );
                                    }
                                }
                            }
                        } else if view.step[1] == 1 {
                            inner.copy_from_nonoverlapping(from, n);
                        } else {
                            for i in 0..n {
                                *inner.add(i) = *from.add(i * view.step[1]);
                            }
                        }
                    }
                }
            }
        }
        // SAFETY: the plane has room for the last taps to run over its last row.
        unsafe {
            to.add(self.channel * lanes * channels)
                .write_bytes(0, view.reach[1] * lanes);
        }
    }

    /// As [`Layout::fill`] for one image, into a plane of [`Layout::padded`] that was zero once and was written by nothing
    /// but this function since: columns of padding are not visited.
    ///
    /// # Safety
    /// `x` must begin with all rows of these channels, `to` be valid for `channels` times `self.channel` floats.
    pub unsafe fn refill(
        &self,
        view: &View,
        kernels: &Kernels,
        x: &[f32],
        channels: usize,
        from: usize,
        to: *mut f32,
    ) {
        let [height, width] = view.source;
        let rows = self.rows + view.reach[0];
        for (p, phase) in view.phases.iter().enumerate() {
            // Columns whose source lies inside, as in `fill`; those beyond the last tap's are not needed.
            let step = view.step[1];
            let low = view.before[1].saturating_sub(phase[1]).div_ceil(step);
            let high = (width + view.before[1])
                .saturating_sub(phase[1])
                .div_ceil(step)
                .min(view.count[1] + view.reach[1]);
            if high <= low {
                continue;
            }
            let (first, n) = (low * step + phase[1] - view.before[1], high - low);
            // Rows whose source lies inside.
            let above = (view.before[0]).saturating_sub(from * view.step[0] + phase[0]);
            let top = above.div_ceil(view.step[0]).min(rows);
            let below = (height + view.before[0]).saturating_sub(from * view.step[0] + phase[0]);
            let end = below.div_ceil(view.step[0]).clamp(top, rows);
            let slack = self.width - low - n;
            for channel in 0..channels {
                let at = (channel * view.phases.len() + p) * rows * self.width + low;
                // SAFETY: `at` is the first row of a phase of the plane, source rows and columns lie in the image.
                unsafe {
                    let to = to.add(at);
                    for row in (0..top).chain(end..rows) {
                        to.add(row * self.width).write_bytes(0, n);
                    }
                    if end == top {
                        continue;
                    }
                    let to = to.add(top * self.width);
                    let line = (from + top) * view.step[0] + phase[0] - view.before[0];
                    let at = (channel * height + line) * width + first;
                    let from = x.as_ptr().add(at);
                    let (rows, lds) = (end - top, width * view.step[0]);
                    match step {
                        1 => (kernels.copy)(from, lds, rows, n, to, self.width),
                        2 => {
                            let room = x.len() - at;
                            (kernels.every_second)(from, lds, room, rows, n, slack, to, self.width);
                        }
                        _ => {
                            for row in 0..rows {
                                for i in 0..n {
                                    *to.add(row * self.width + i) = *from.add(row * lds + i * step);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

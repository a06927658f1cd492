//! Depthwise convolution: each group has one input channel, so there is no reduction to tile over.
//!
//! A channel's band of rows is copied into a padded plane that stays in the first cache; every tap is then an offset and
//! several rows of the result are summed in registers at once. The input gradient is the same with taps and phases of
//! [`View::input_grad`], the weight gradient one sum per tap with threads that own channels.
#![allow(unsafe_code)]

use super::plane::{Layout, Sub, View};
use super::work::{Scratch, Shared, copy, output, parallel, split};
use super::{Finish, Kernels, Mask};
use crate::ConvShape;

/// Floats of a plane: most of a first-level cache of 32 KiB.
const PLANE: usize = 5 * 1024;

/// See [`super::conv::forward`], which checks the arguments.
pub fn forward(
    kernels: &'static Kernels,
    shape: &ConvShape,
    x: &[f32],
    w: &[f32],
    mask: Option<Mask>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let multiplier = shape.outputs / shape.inputs;
    let product = Product::new(kernels, shape, View::forward(shape), [1, multiplier]);
    product.run(x, w, mask, bias)
}

/// See [`super::conv::input_grad`], which checks the arguments.
pub fn input_grad(
    kernels: &'static Kernels,
    shape: &ConvShape,
    g: &[f32],
    w: &[f32],
    mask: Option<Mask>,
) -> Vec<f32> {
    let multiplier = shape.outputs / shape.inputs;
    let product = Product::new(kernels, shape, View::input_grad(shape), [multiplier, 1]);
    product.run(g, w, mask, None)
}

/// See [`super::weight_grad::weight_grad`], which checks the arguments.
pub fn weight_grad(
    kernels: &'static Kernels,
    shape: &ConvShape,
    x: &[f32],
    g: &[f32],
    mask: Option<Mask>,
) -> Vec<f32> {
    let multiplier = shape.outputs / shape.inputs;
    let product = Product::new(kernels, shape, View::forward(shape), [1, multiplier]);
    product.weight_grad(x, g, mask)
}

/// Floats of a cache line.
const LINE: usize = 16;

/// Padded planes of a few groups.
struct Planes {
    block: Scratch,
    skip: usize,
}

struct Product<'a> {
    kernels: &'static Kernels,
    shape: &'a ConvShape,
    view: View,
    /// Source channels of a group.
    sources: usize,
    /// Result channels of a group.
    results: usize,
    layout: Layout,
    /// Groups whose planes are filled one after the other before the first is read: what was stored a moment ago is slow
    /// to load in pieces of another size.
    together: usize,
    /// Rows of a channel that are stored where they belong; the others by way of scratch.
    direct: usize,
    /// For each sub of the view, the offset of each (source channel, tap).
    offsets: Vec<Vec<u32>>,
}

impl<'a> Product<'a> {
    fn new(
        kernels: &'static Kernels,
        shape: &'a ConvShape,
        view: View,
        [sources, results]: [usize; 2],
    ) -> Self {
        // A tile reads a whole vector even where the result is narrower.
        let width = view.count[1].max(kernels.lanes) + view.reach[1];
        let width = width.next_multiple_of(8);
        let [one, two] = [1, 2].map(|rows| Layout::padded(&view, rows, width).channel * sources);
        let row = two - one;
        let most = (PLANE.saturating_sub(one) / row.max(1)).max(1);
        let height = view.count[0].max(1);
        let rows = height.div_ceil(height.div_ceil(most));
        let layout = Layout::padded(&view, rows, width);
        let [high, wide] = view.result;
        let direct = if wide >= kernels.lanes {
            high
        } else if high * wide < kernels.lanes {
            0
        } else {
            // The last of these rows' vectors ends inside the channel.
            (high * wide - kernels.lanes) / wide + 1
        };
        let offsets = view
            .subs
            .iter()
            .map(|sub| layout.offsets(&view, sub, sources));
        let offsets = offsets.collect();
        Self {
            kernels,
            shape,
            view,
            sources,
            results,
            layout,
            direct,
            together: (PLANE / (sources * layout.channel).max(1)).clamp(1, 8),
            offsets,
        }
    }

    /// Floats of a group's plane.
    fn group(&self) -> usize {
        self.sources * self.layout.channel
    }

    /// Planes of zeros. The last row's tiles read a vector at most beyond their columns.
    fn planes(&self) -> Planes {
        let len = self.together * self.group() + self.kernels.lanes;
        let mut block = Scratch::take(len + 2 * LINE);
        // What is copied begins with a cache line, and so does the middle tap's part of a row.
        let skip =
            block.as_ptr().align_offset(4 * LINE).min(LINE) + LINE - self.view.before[1] % LINE;
        block[skip..skip + len].fill(0.0);
        Planes { block, skip }
    }

    /// For each sub the weights `[group][result][source, tap]`, absent ones zero.
    fn pack(&self, w: &[f32], mask: Option<Mask>) -> Vec<Vec<f32>> {
        let taps = self.shape.taps();
        let kept = |row, tap| mask.is_none_or(|mask| mask.get(row, tap));
        // Either the sources or the results of a group are one, so that (result, source) in order are the weight's rows.
        let pack = |sub: &Sub| {
            (0..self.shape.outputs)
                .flat_map(|row| sub.taps.iter().map(move |&(tap, _)| (row, tap)))
                .map(|(row, tap)| {
                    if kept(row, tap) {
                        w[row * taps + tap]
                    } else {
                        0.0
                    }
                })
                .collect()
        };
        self.view.subs.iter().map(pack).collect()
    }

    fn run(&self, source: &[f32], w: &[f32], mask: Option<Mask>, bias: Option<&[f32]>) -> Vec<f32> {
        let [height, width] = self.view.result;
        let positions = height * width;
        let all = self.shape.groups;
        let len = self.shape.batch * all * self.results * positions;
        let mut result = output(len);
        if len == 0 {
            return Vec::new();
        }
        let to = Shared::new(result.as_mut_ptr());
        let weights = self.pack(w, mask);
        let source_positions = self.view.source[0] * self.view.source[1];
        let blocks = self.blocks(self.shape.batch);
        parallel(self.shape.batch * blocks.len(), self.shape.macs(), |item| {
            let (image, block) = (item / blocks.len(), &blocks[item % blocks.len()]);
            let mut planes = self.planes();
            let mut phases = self.phases();
            for together in split(block.len(), self.together) {
                let groups = block.start + together.start..block.start + together.end;
                for band in (0..self.view.count[0]).step_by(self.layout.rows) {
                    let first = (image * all + groups.start) * self.sources;
                    self.refill(
                        &source[first * source_positions..],
                        groups.len(),
                        band,
                        &mut planes,
                    );
                    for (i, group) in groups.clone().enumerate() {
                        let plane = &planes.block[planes.skip + i * self.group()..];
                        for row in 0..self.results {
                            let channel = group * self.results + row;
                            let finish = Finish {
                                resume: false,
                                bias: bias
                                    .map_or(std::ptr::null(), |bias| &raw const bias[channel]),
                            };
                            let to = to.at((image * all * self.results + channel) * positions);
                            // SAFETY: this result channel of this image is this thread's alone.
                            unsafe {
                                self.band(plane, &weights, channel, band, finish, &mut phases, to);
                            }
                        }
                    }
                }
            }
        });
        // SAFETY: every channel of every image was written.
        unsafe { result.written() }
    }

    /// Planes of a band of some groups, whose channels `source` begins with.
    fn refill(&self, source: &[f32], groups: usize, band: usize, planes: &mut Planes) {
        let channels = groups * self.sources;
        let positions = self.view.source[0] * self.view.source[1];
        assert!(source.len() >= channels * positions && groups <= self.together);
        // SAFETY: as asserted, and the planes were made for this.
        unsafe {
            let to = planes.block.as_mut_ptr().add(planes.skip);
            self.layout
                .refill(&self.view, self.kernels, source, channels, band, to);
        }
    }

    /// Ranges of groups: enough that threads find work.
    fn blocks(&self, items: usize) -> Vec<std::ops::Range<usize>> {
        let threads = rayon::current_num_threads();
        let pieces = if threads == 1 {
            1
        } else {
            (8 * threads).div_ceil(items.max(1))
        };
        let groups = self.shape.groups;
        split(groups, groups.div_ceil(pieces)).collect()
    }

    /// Distance between rows of one phase's results in scratch.
    fn pitch(&self) -> usize {
        self.view.count[1].max(self.kernels.lanes)
    }

    /// Room for a band of every phase along a row; unused where results are stored directly.
    fn phases(&self) -> Scratch {
        Scratch::take(self.view.spread[1] * self.layout.rows * self.pitch())
    }

    /// One band of one result channel.
    ///
    /// # Safety
    /// `plane` holds the band's sources, `to` is the channel's result.
    #[allow(clippy::too_many_arguments)]
    unsafe fn band(
        &self,
        plane: &[f32],
        weights: &[Vec<f32>],
        channel: usize,
        band: usize,
        finish: Finish,
        phases: &mut Scratch,
        to: *mut f32,
    ) {
        let width = self.view.result[1];
        let spread = self.view.spread;
        let weights = |s: usize| {
            let n = self.offsets[s].len();
            &weights[s][channel * n..][..n]
        };
        let rows_of = |sub: &Sub| self.layout.rows.min(sub.count[0].saturating_sub(band));
        if spread == [1, 1] {
            let rows = rows_of(&self.view.subs[0]);
            // A narrow row's vector runs into the next row, which is stored later; the last ones have none behind them.
            let direct = self.direct.saturating_sub(band).min(rows);
            // SAFETY: as argued; scratch has room for rows of a vector.
            unsafe {
                let to = to.add(band * width);
                self.rows(0, plane, weights(0), 0..direct, to, width, finish);
                let pitch = self.pitch();
                let aside = phases.as_mut_ptr();
                self.rows(0, plane, weights(0), direct..rows, aside, pitch, finish);
                for row in direct..rows {
                    let from = aside.add(row * pitch);
                    copy(from, to.add(row * width), width);
                }
            }
            return;
        }
        let pitch = self.pitch();
        let part = self.layout.rows * pitch;
        for fy in 0..spread[0] {
            let subs = &self.view.subs[fy * spread[1]..][..spread[1]];
            let rows = rows_of(&subs[0]);
            // SAFETY: scratch has room for each phase's rows; their places in the result are disjoint.
            unsafe {
                for (fx, sub) in subs.iter().enumerate() {
                    if sub.count[1] > 0 {
                        let s = fy * spread[1] + fx;
                        let aside = phases.as_mut_ptr().add(fx * part);
                        self.rows(s, plane, weights(s), 0..rows, aside, pitch, finish);
                    }
                }
                for row in 0..rows {
                    let to = to.add(((band + row) * spread[0] + fy) * width);
                    let from = phases.as_ptr().add(row * pitch);
                    match spread[1] {
                        1 => copy(from, to, width),
                        2 => {
                            let [n, m] = [0, 1].map(|fx| subs[fx].count[1]);
                            (self.kernels.interleave)(from, from.add(part), n, m, to);
                        }
                        spread => {
                            for (fx, sub) in subs.iter().enumerate() {
                                for x in 0..sub.count[1] {
                                    *to.add(x * spread + fx) = *from.add(fx * part + x);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Some rows of a sub, at a distance of `ldy`.
    ///
    /// # Safety
    /// `plane` holds the sources of these rows; `y`, where row 0 would be stored, has room for them, whole vectors included.
    #[allow(clippy::too_many_arguments)]
    unsafe fn rows(
        &self,
        sub: usize,
        plane: &[f32],
        w: &[f32],
        rows: std::ops::Range<usize>,
        y: *mut f32,
        ldy: usize,
        finish: Finish,
    ) {
        let first = rows.start;
        // SAFETY: the caller's.
        unsafe {
            (self.kernels.taps)(
                w.len(),
                w.as_ptr(),
                plane.as_ptr().add(first * self.layout.width),
                self.layout.width,
                self.offsets[sub].as_ptr(),
                rows.len(),
                self.view.subs[sub].count[1],
                y.add(first * ldy),
                ldy,
                finish,
            );
        }
    }

    fn weight_grad(&self, x: &[f32], g: &[f32], mask: Option<Mask>) -> Vec<f32> {
        let (taps, lanes) = (self.shape.taps(), self.kernels.lanes);
        let sub = &self.view.subs[0];
        let offsets = &self.offsets[0];
        let [height, width] = self.view.count;
        let source = self.view.source[0] * self.view.source[1];
        let (all, outputs) = (self.shape.groups, self.shape.outputs);
        let mut result = output(self.shape.weight_len());
        let to = Shared::new(result.as_mut_ptr());
        let blocks = self.blocks(1);
        parallel(blocks.len(), self.shape.macs(), |item| {
            let mut planes = self.planes();
            // Rows narrower than a vector are read from here.
            let narrow = width < lanes;
            let mut aside = Scratch::take(if narrow { self.layout.rows * lanes } else { 0 });
            let mut sums = Scratch::take(self.together * self.results * taps * lanes);
            for together in split(blocks[item].len(), self.together) {
                let groups = blocks[item].start + together.start..blocks[item].start + together.end;
                let channels = groups.start * self.results..groups.end * self.results;
                sums[..channels.len() * taps * lanes].fill(0.0);
                for image in 0..self.shape.batch {
                    for band in (0..height).step_by(self.layout.rows) {
                        let rows = self.layout.rows.min(height - band);
                        let first = image * all + groups.start;
                        self.refill(&x[first * source..], groups.len(), band, &mut planes);
                        for (i, channel) in channels.clone().enumerate() {
                            let at = ((image * outputs + channel) * height + band) * width;
                            let mut from = g[at..].as_ptr();
                            let mut ldg = width;
                            if narrow {
                                for y in 0..rows {
                                    // SAFETY: the row lies in `g`, and has its place aside.
                                    unsafe {
                                        let to = aside.as_mut_ptr().add(y * lanes);
                                        copy(from.add(y * width), to, width);
                                    }
                                }
                                (from, ldg) = (aside.as_ptr(), lanes);
                            }
                            let plane =
                                &planes.block[planes.skip + i / self.results * self.group()..];
                            for t in split(taps, self.kernels.dots.len()) {
                                // SAFETY: rows and taps lie in the plane; the sums of these taps are in `sums`.
                                unsafe {
                                    (self.kernels.dots[t.len() - 1])(
                                        rows,
                                        width,
                                        plane.as_ptr(),
                                        self.layout.width,
                                        offsets.as_ptr().add(t.start),
                                        from,
                                        ldg,
                                        sums.as_mut_ptr().add((i * taps + t.start) * lanes),
                                    );
                                }
                            }
                        }
                    }
                }
                for (channel, sums) in channels.zip(sums.chunks(taps * lanes)) {
                    for (t, sums) in sums.chunks(lanes).enumerate() {
                        let tap = sub.taps[t].0;
                        let kept = mask.is_none_or(|mask| mask.get(channel, tap));
                        let sum = if kept { sums.iter().sum() } else { 0.0 };
                        // SAFETY: the weights of this channel are this thread's alone.
                        unsafe { *to.at(channel * taps + tap) = sum };
                    }
                }
            }
        });
        // SAFETY: every channel's weights were written.
        unsafe { result.written() }
    }
}

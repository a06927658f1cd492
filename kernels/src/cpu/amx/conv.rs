//! Convolution on tiles: the output, and the gradient of the input.
//!
//! As in [`super::super::conv`], a plane gives every tap an offset. Here channels lie in it in pairs of bf16, `[pair][position]`, so
//! that a tile of B, 32 channels by 16 positions, is loaded from it where it lies: nothing is packed per tap. A sum runs
//! over blocks of 32 channels, and in each over the taps.
#![allow(unsafe_code)]

use std::ops::Range;

use super::super::plane::{Layout, Sub, View};
use super::super::work::{Scratch, Shared, output, parallel, split};
use super::super::{Kernels, Mask};
use super::block::{BLOCK, Block, DEPTH, Lines, Terms, Words, keep, pairs, pitch, zeroed};
use super::tiles::{SIDE, TILE, Tiles};
use crate::ConvShape;

/// Words of a plane: a quarter of a second-level cache of 2 MiB.
const PLANE: usize = 128 * 1024;
/// Positions of a band below which channels are cut rather than rows.
const LEAST: usize = 256;

/// A convolution's product; `grad` exchanges rows and channels.
pub struct Product<'a> {
    pub kernels: &'static Kernels,
    pub terms: Terms,
    pub shape: &'a ConvShape,
    pub grad: bool,
    pub mask: Option<Mask<'a>>,
    pub bias: Option<&'a [f32]>,
}

/// What follows from it.
struct Plan<'a> {
    of: &'a Product<'a>,
    view: &'a View,
    sub: &'a Sub,
    /// Result channels of a group.
    rows: usize,
    /// Source channels of a group.
    channels: usize,
    layout: Layout,
    /// Channels of one pass: whole blocks of 32, but for the last.
    chunks: Vec<Range<usize>>,
    /// Where each tap begins in a plane of one channel.
    taps: Vec<usize>,
    /// Words from one pair of channels to the next.
    pitch: usize,
}

impl Product<'_> {
    /// The result, NCHW.
    pub fn run<T: Tiles>(&self, source: &[f32], w: &[f32]) -> Vec<f32> {
        let shape = self.shape;
        let view = if self.grad {
            View::input_grad(shape)
        } else {
            View::forward(shape)
        };
        let [mut rows, mut channels] = [shape.outputs, shape.inputs].map(|n| n / shape.groups);
        if self.grad {
            std::mem::swap(&mut rows, &mut channels);
        }
        let len = shape.batch * shape.groups * rows * view.result[0] * view.result[1];
        let mut result = output(len);
        if len == 0 {
            return Vec::new();
        }
        let to = Shared::new(result.as_mut_ptr());
        for sub in view.subs.iter().filter(|sub| !sub.count.contains(&0)) {
            let plan = Plan::new(self, &view, sub, rows, channels);
            let packed = plan.pack(w);
            plan.sum::<T>(source, &packed, to);
        }
        // SAFETY: the phases cover the result, and each was written whole.
        unsafe { result.written() }
    }
}

impl<'a> Plan<'a> {
    fn new(
        of: &'a Product<'a>,
        view: &'a View,
        sub: &'a Sub,
        rows: usize,
        channels: usize,
    ) -> Self {
        let lanes = lanes(of.shape.batch, view);
        let blocks = channels.div_ceil(DEPTH);
        // Words of a plane of 32 channels and so many rows.
        let words =
            |rows| SIDE * of.terms.count() * (Layout::new(view, rows, lanes).channel * lanes);
        let (halo, row) = (words(0), (words(1) - words(0)).max(1));
        let all = (PLANE / blocks.max(1)).saturating_sub(halo) / row;
        let least = LEAST.div_ceil(view.count[1] * lanes).min(view.count[0]);
        let (height, depth) = if all >= least {
            let bands = view.count[0].div_ceil(all);
            (view.count[0].div_ceil(bands), channels)
        } else {
            (least, (PLANE / words(least).max(1)).max(1) * DEPTH)
        };
        let layout = Layout::new(view, height, lanes);
        let mut chunks: Vec<_> = (0..channels)
            .step_by(depth.max(1))
            .map(|first| first..channels.min(first + depth))
            .collect();
        if chunks.is_empty() || sub.taps.is_empty() {
            // Nothing to sum: one pass that stores the bias.
            chunks = std::iter::once(0..0).collect();
        }
        let taps: Vec<usize> = layout
            .offsets(view, sub, 1)
            .into_iter()
            .map(|offset| offset as usize)
            .collect();
        let mut plan = Self {
            of,
            view,
            sub,
            rows,
            channels,
            layout,
            chunks,
            taps,
            pitch: 0,
        };
        let reach = plan.taps.iter().max().unwrap_or(&0) + plan.run(height).next_multiple_of(SIDE);
        plan.pitch = pitch(reach.max(layout.channel * lanes));
        plan
    }

    /// Positions from the first of a band of `rows` rows to its last, ends of rows included.
    fn run(&self, rows: usize) -> usize {
        ((rows - 1) * self.layout.width + self.sub.count[1]) * self.layout.lanes
    }

    /// Row tiles of a group.
    fn tiles(&self) -> usize {
        self.rows.div_ceil(SIDE)
    }

    /// Words of a tile row's worth of a block of channels.
    fn cell(&self) -> usize {
        self.taps.len() * self.of.terms.count() * TILE
    }

    /// Where in the packed weight: `[group][chunk][panel of two row tiles][block of channels][tap][row tile][term]`.
    fn at(&self, group: usize, chunk: &Range<usize>, panel: &Range<usize>) -> usize {
        let all = self.channels.div_ceil(DEPTH);
        let before = (group * all + chunk.start / DEPTH) * self.tiles();
        (before + panel.start / SIDE * chunk.len().div_ceil(DEPTH)) * self.cell()
    }

    fn panels(&self) -> Vec<Range<usize>> {
        (0..self.rows)
            .step_by(BLOCK)
            .map(|first| first..self.rows.min(first + BLOCK))
            .collect()
    }

    /// The weight as tiles, masked on the way.
    fn pack(&self, w: &[f32]) -> Words {
        let shape = self.of.shape;
        let (terms, all) = (self.of.terms.count(), shape.taps());
        let blocks = self.channels.div_ceil(DEPTH);
        let mut packed = zeroed(shape.groups * blocks * self.tiles() * self.cell());
        if packed.is_empty() {
            return packed;
        }
        let to = Shared::new(packed.as_mut_ptr().cast());
        let panels = self.panels();
        let per_group = panels.len() * self.chunks.len();
        parallel(shape.groups * per_group, w.len() as u64 * 4, |item| {
            let (group, rest) = (item / per_group, item % per_group);
            let (chunk, panel) = (
                &self.chunks[rest / panels.len()],
                &panels[rest % panels.len()],
            );
            let height = panel.len().div_ceil(SIDE);
            let to: *mut u32 = to.at(self.at(group, chunk, panel)).cast();
            let per_line = shape.inputs / shape.groups;
            // 32 lines of the weight at most, as they lie there and turned so that what is summed is contiguous.
            let mut straight = Scratch::take(DEPTH * DEPTH * all);
            let mut turned = Scratch::take(DEPTH * DEPTH * all);
            let mut lines = Lines::new(DEPTH * DEPTH * all, self.of.terms);
            for (b, first) in chunk.clone().step_by(DEPTH).enumerate() {
                let block = first..chunk.end.min(first + DEPTH);
                // A line is an output channel; along it lie input channels.
                let (down, along) = if self.of.grad {
                    (&block, panel)
                } else {
                    (panel, &block)
                };
                let n = along.len() * all;
                for (l, output) in down.clone().enumerate() {
                    let output = group * (shape.outputs / shape.groups) + output;
                    let line = &mut straight[l * n..][..n];
                    line.copy_from_slice(&w[(output * per_line + along.start) * all..][..n]);
                    if let Some(mask) = self.of.mask {
                        let words = &mask.words[output * mask.words_per_row()..];
                        keep(line, &words[..mask.words_per_row()], along.start * all);
                    }
                }
                // Rows and taps, 32 summed channels each; zeros where there are fewer.
                let used = panel.len() * all * DEPTH;
                if block.len() < DEPTH {
                    turned[..used].fill(0.0);
                }
                let turn = self.of.kernels.transpose;
                // SAFETY: both have room for 32 lines of 32 channels.
                unsafe {
                    if self.of.grad {
                        // [channel][row, tap] to [row, tap][channel].
                        turn(
                            straight.as_ptr(),
                            n,
                            block.len(),
                            n,
                            turned.as_mut_ptr(),
                            DEPTH,
                        );
                    } else {
                        // For each row, [channel][tap] to [tap][channel].
                        for l in 0..panel.len() {
                            let to = turned.as_mut_ptr().add(l * all * DEPTH);
                            turn(
                                straight.as_ptr().add(l * n),
                                all,
                                block.len(),
                                all,
                                to,
                                DEPTH,
                            );
                        }
                    }
                }
                lines.set(&turned[..used]);
                for row in 0..panel.len() {
                    for (t, &(tap, _)) in self.sub.taps.iter().enumerate() {
                        let tile = ((b * self.taps.len() + t) * height + row / SIDE) * terms;
                        // SAFETY: this panel of this chunk is this item's alone, and the row lies in it.
                        unsafe {
                            let to = to.add(tile * TILE + row % SIDE * SIDE);
                            lines.emit((row * all + tap) * DEPTH, to);
                        }
                    }
                }
            }
        });
        packed
    }

    fn sum<T: Tiles>(&self, source: &[f32], packed: &Words, to: Shared) {
        let shape = self.of.shape;
        let (terms, lanes) = (self.of.terms, self.layout.lanes);
        let bands: Vec<usize> = (0..self.sub.count[0]).step_by(self.layout.rows).collect();
        let items = shape.batch.div_ceil(lanes) * shape.groups * bands.len();
        let panels = self.panels();
        // With few items, panels are divided too, and each part fills its own plane.
        let threads = rayon::current_num_threads();
        let wanted = if threads == 1 {
            1
        } else {
            (2 * threads).div_ceil(items)
        };
        let parts = panels.len().min(wanted).max(1);
        let parts: Vec<_> = split(panels.len(), panels.len().div_ceil(parts)).collect();
        let blocks = self
            .chunks
            .iter()
            .map(|chunk| chunk.len().div_ceil(DEPTH))
            .max();
        let half = blocks.unwrap_or(0) * SIDE * self.pitch;
        let steps: Vec<usize> = (0..blocks.unwrap_or(0))
            .flat_map(|b| self.taps.iter().map(move |tap| b * SIDE * self.pitch + tap))
            .collect();
        let ldc = pitch(self.run(self.layout.rows));
        let keep = self.chunks.len() > 1;
        parallel(items * parts.len(), shape.macs(), |item| {
            let (item, part) = (
                item / parts.len(),
                &panels[parts[item % parts.len()].clone()],
            );
            let (image, band) = (item / bands.len(), bands[item % bands.len()]);
            let (image, group) = (image / shape.groups * lanes, image % shape.groups);
            let images = lanes.min(shape.batch - image);
            let rows = self.layout.rows.min(self.sub.count[0] - band);
            let run = self.run(rows);
            let mut plane = Words::take(terms.count() * half);
            let held = if keep { part.len() } else { 1 };
            let mut sums = Scratch::take(held * BLOCK * ldc);
            // SAFETY: whoever chose these tiles has permission for them.
            let mut tiles = unsafe { T::configure() };
            for (c, chunk) in self.chunks.iter().enumerate() {
                let last = c + 1 == self.chunks.len();
                self.fill(
                    source,
                    (image, images, group, band),
                    chunk,
                    &mut plane,
                    half,
                );
                let steps = &steps[..chunk.len().div_ceil(DEPTH) * self.taps.len()];
                for (i, panel) in part.iter().enumerate() {
                    let sums = &mut sums[if keep { i * BLOCK * ldc } else { 0 }..];
                    for position in (0..run).step_by(BLOCK) {
                        let a = packed.as_ptr().wrapping_add(self.at(group, chunk, panel));
                        let at = |term| plane.as_ptr().wrapping_add(term * half + position);
                        let block = Block {
                            terms,
                            a,
                            b: [0, terms.count() - 1].map(at),
                            steps,
                            pitch: self.pitch,
                            c: sums[position..].as_mut_ptr(),
                            ldc,
                            resume: c > 0,
                        };
                        // SAFETY: the panel lies in the packed weight, a row of the plane reaches past the last tile of
                        // the last tap, and `sums` has 32 rows of whole tiles.
                        unsafe { block.run(&mut tiles, panel.len(), run - position) };
                    }
                    if last {
                        self.emit(sums, ldc, group, panel, (band, rows), (image, images), to);
                    }
                }
            }
        });
    }

    /// Pairs of channels of a chunk, for the band that begins at output row `band`; zeros beyond the last channel.
    fn fill(
        &self,
        source: &[f32],
        (image, images, group, band): (usize, usize, usize, usize),
        chunk: &Range<usize>,
        to: &mut Words,
        half: usize,
    ) {
        let pixels = self.view.source[0] * self.view.source[1];
        let per_image = self.of.shape.groups * self.channels;
        let length = self.layout.channel * self.layout.lanes;
        let (high, low) = to.split_at_mut(half);
        let mut plane = Scratch::take(self.layout.len(self.view, DEPTH));
        for (b, first) in chunk.clone().step_by(DEPTH).enumerate() {
            let n = DEPTH.min(chunk.end - first);
            let channel = image * per_image + group * self.channels + first;
            // SAFETY: the block's channels and the images lie in the source; the plane was made for them.
            unsafe {
                self.layout.fill(
                    self.view,
                    self.of.kernels,
                    source[channel * pixels..].as_ptr(),
                    per_image * pixels,
                    images,
                    n,
                    band,
                    plane.as_mut_ptr(),
                );
            }
            plane[n * length..DEPTH * length].fill(0.0);
            for (pair, channels) in plane[..DEPTH * length].chunks_exact(2 * length).enumerate() {
                let (even, odd) = channels.split_at(length);
                let at = (b * SIDE + pair) * self.pitch;
                let high = &mut high[at..][..self.pitch];
                high[length..].fill(0);
                let low = (self.of.terms == Terms::Two).then(|| {
                    let low = &mut low[at..][..self.pitch];
                    low[length..].fill(0);
                    &mut low[..length]
                });
                pairs(even, odd, &mut high[..length], low);
            }
        }
    }

    /// Finishes a panel's results and copies them to where they belong.
    #[allow(clippy::too_many_arguments)]
    fn emit(
        &self,
        sums: &mut [f32],
        ldc: usize,
        group: usize,
        panel: &Range<usize>,
        (band, rows): (usize, usize),
        (image, images): (usize, usize),
        to: Shared,
    ) {
        let [height, width] = self.view.result;
        let (lanes, columns) = (self.layout.lanes, self.sub.count[1]);
        let spread = self.view.spread[1];
        let channels = self.of.shape.groups * self.rows;
        for (i, row) in panel.clone().enumerate() {
            let channel = group * self.rows + row;
            let sums = &mut sums[i * ldc..][..self.run(rows)];
            if let Some(bias) = self.of.bias {
                sums.iter_mut().for_each(|sum| *sum += bias[channel]);
            }
            for y in 0..rows {
                let from = &sums[y * self.layout.width * lanes..][..columns * lanes];
                let line = self.sub.first[0] + (band + y) * self.view.spread[0];
                let first = ((image * channels + channel) * height + line) * width;
                let to = to.at(first + self.sub.first[1]);
                let image = channels * height * width;
                // SAFETY: this line of these images lies in the result, and one item writes each position of a sub.
                unsafe {
                    match (lanes, spread) {
                        (1, 1) => to.copy_from_nonoverlapping(from.as_ptr(), columns),
                        (_, 1) => {
                            let turn = self.of.kernels.transpose;
                            turn(from.as_ptr(), lanes, columns, images, to, image);
                        }
                        _ => {
                            for (x, sums) in from.chunks_exact(lanes).enumerate() {
                                for (n, &sum) in sums.iter().enumerate().take(images) {
                                    *to.add(n * image + x * spread) = sum;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Images side by side: 1 or a tile's width, whichever computes fewer positions for nothing.
fn lanes(batch: usize, view: &View) -> usize {
    let [rows, columns] = view.count;
    let work = |lanes: usize| {
        let width = Layout::new(view, 1, lanes).width;
        let run = (rows.saturating_sub(1) * width + columns) * lanes;
        batch.div_ceil(lanes) * run.next_multiple_of(SIDE)
    };
    if work(SIDE) < work(1) { SIDE } else { 1 }
}

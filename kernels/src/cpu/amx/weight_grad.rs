//! Convolution on tiles: the gradient of the weight.
//!
//! The sum runs along positions. A is the output's gradient, laid out like a plane, with zeros where rows end; B holds the
//! input's plane as `[position][channel]`, each word the pair of a position and the next, so that a tap is an offset here
//! too, odd or even. Threads own channels and rows of the weight, and go through all images in order.
#![allow(unsafe_code)]

use std::ops::Range;

use super::super::plane::{Layout, View};
use super::super::work::{Scratch, Shared, output, parallel};
use super::super::{Kernels, Mask};
use super::block::{BLOCK, Block, DEPTH, Lines, Terms, Words, keep, pairs};
use super::tiles::{SIDE, TILE, Tiles};
use crate::ConvShape;

/// Positions of one pass: enough to repay loading and storing the sums.
const POSITIONS: usize = 1024;
/// The most channels and rows of a work item.
const CHANNELS: usize = 128;
const ROWS: usize = 512;

/// The gradient of a convolution's weight.
pub struct Product<'a> {
    pub kernels: &'static Kernels,
    pub terms: Terms,
    pub shape: &'a ConvShape,
    pub mask: Option<Mask<'a>>,
}

/// A piece of the weight that one thread computes.
struct Item {
    group: usize,
    rows: Range<usize>,
    channels: Range<usize>,
}

struct Plan<'a> {
    of: &'a Product<'a>,
    view: &'a View,
    layout: Layout,
    taps: Vec<usize>,
    /// Rows and channels of a group.
    rows: usize,
    channels: usize,
    /// Steps of a band of one image.
    steps: usize,
    /// Images of a pass.
    together: usize,
    /// Positions of an image's plane of B, those that the last tap runs over included.
    length: usize,
}

impl Product<'_> {
    /// The gradient, OIHW, zero outside the mask; `x` and `g` NCHW.
    pub fn run<T: Tiles>(&self, x: &[f32], g: &[f32]) -> Vec<f32> {
        let shape = self.shape;
        let view = View::forward(shape);
        if shape.weight_len() == 0 || view.count.contains(&0) {
            return vec![0.0; shape.weight_len()];
        }
        let width = Layout::new(&view, 1, 1).width;
        let layout = Layout::new(&view, (POSITIONS / width).clamp(1, view.count[0]), 1);
        let taps: Vec<usize> = layout
            .offsets(&view, &view.subs[0], 1)
            .into_iter()
            .map(|offset| offset as usize)
            .collect();
        let run = (layout.rows - 1) * layout.width + view.count[1];
        let steps = run.div_ceil(DEPTH);
        let reach = taps.iter().max().unwrap_or(&0) + steps * DEPTH;
        let plan = Plan {
            of: self,
            view: &view,
            rows: shape.outputs / shape.groups,
            channels: shape.inputs / shape.groups,
            steps,
            together: (POSITIONS / run).clamp(1, shape.batch.max(1)),
            length: reach.max(layout.channel) + 1,
            layout,
            taps,
        };
        let mut result = output(shape.weight_len());
        let to = Shared::new(result.as_mut_ptr());
        let items = plan.items();
        parallel(items.len(), shape.macs(), |i| {
            plan.item::<T>(&items[i], x, g, to);
        });
        // SAFETY: items cover the weight, and each was written whole.
        unsafe { result.written() }
    }
}

impl Plan<'_> {
    /// As large as they may be, or smaller until there is one for each thread: what is packed serves a whole item.
    fn items(&self) -> Vec<Item> {
        let (mut most, mut tall) = (CHANNELS, ROWS);
        let count = |most: usize, tall: usize| {
            self.of.shape.groups * self.channels.div_ceil(most) * self.rows.div_ceil(tall)
        };
        let wanted = rayon::current_num_threads();
        while count(most, tall) < wanted && most > BLOCK {
            most /= 2;
        }
        while count(most, tall) < wanted && tall > BLOCK {
            tall /= 2;
        }
        let mut items = Vec::new();
        for group in 0..self.of.shape.groups {
            for row in (0..self.rows).step_by(tall) {
                for channel in (0..self.channels).step_by(most) {
                    items.push(Item {
                        group,
                        rows: row..self.rows.min(row + tall),
                        channels: channel..self.channels.min(channel + most),
                    });
                }
            }
        }
        items
    }

    fn item<T: Tiles>(&self, item: &Item, x: &[f32], g: &[f32], to: Shared) {
        let terms = self.of.terms.count();
        let panels = item.rows.len().div_ceil(BLOCK);
        let pieces = item.channels.len().div_ceil(BLOCK);
        // [piece of channels][panel of rows][tap], each 32 x 32.
        let cell = BLOCK * BLOCK;
        let mut sums = Scratch::take(pieces * panels * self.taps.len() * cell);
        sums[..pieces * panels * self.taps.len() * cell].fill(0.0);
        let mut left = Words::take(panels * 2 * self.together * self.steps * terms * TILE);
        let half = self.together * self.length * BLOCK;
        let mut right = Words::take(terms * half);
        // SAFETY: whoever chose these tiles has permission for them.
        let mut tiles = unsafe { T::configure() };
        for first in (0..self.of.shape.batch).step_by(self.together) {
            let images = first..self.of.shape.batch.min(first + self.together);
            let steps: Vec<usize> = (0..images.len())
                .flat_map(|n| (0..self.steps).map(move |s| (n * self.length + s * DEPTH) * BLOCK))
                .collect();
            for band in (0..self.view.count[0]).step_by(self.layout.rows) {
                self.pack_left(item, g, &images, band, &mut left);
                for piece in 0..pieces {
                    let channels = item.channels.start + piece * BLOCK
                        ..item
                            .channels
                            .end
                            .min(item.channels.start + (piece + 1) * BLOCK);
                    self.pack_right(item.group, x, &images, band, &channels, &mut right, half);
                    for panel in 0..panels {
                        let a = left[panel * 2 * steps.len() * terms * TILE..].as_ptr();
                        for (t, tap) in self.taps.iter().enumerate() {
                            let at = ((piece * panels + panel) * self.taps.len() + t) * cell;
                            let block = Block {
                                terms: self.of.terms,
                                a,
                                b: [0, terms - 1]
                                    .map(|term| right[term * half + tap * BLOCK..].as_ptr()),
                                steps: &steps,
                                pitch: 2 * BLOCK,
                                c: sums[at..].as_mut_ptr(),
                                ldc: BLOCK,
                                resume: true,
                            };
                            let (rows, columns) = (item.rows.len() - panel * BLOCK, channels.len());
                            // SAFETY: both factors were packed for these steps and reach past the last tap; the sums are
                            // a whole block.
                            unsafe { block.run(&mut tiles, rows, columns) };
                        }
                    }
                }
            }
        }
        drop(tiles);
        // Taps are in the weight's order: sums [tap][channel] become the weight's [channel][tap].
        let all = self.taps.len();
        for (i, r) in item.rows.clone().enumerate() {
            let output = item.group * self.rows + r;
            for piece in 0..pieces {
                let first = piece * BLOCK;
                let n = BLOCK.min(item.channels.len() - first);
                let column = (item.channels.start + first) * all;
                let at = (piece * panels + i / BLOCK) * all * cell + i % BLOCK * BLOCK;
                let from = sums[at..][..(all - 1) * cell + n].as_ptr();
                let to = to.at(output * self.channels * all + column);
                // SAFETY: these rows and channels of the weight are this item's alone, and written before they are masked.
                unsafe {
                    (self.of.kernels.transpose)(from, cell, all, n, to, all);
                    if let Some(mask) = self.of.mask {
                        let words = &mask.words[output * mask.words_per_row()..];
                        let written = std::slice::from_raw_parts_mut(to, n * all);
                        keep(written, &words[..mask.words_per_row()], column);
                    }
                }
            }
        }
    }

    /// Panels of two row tiles, each `[image][step][row tile][term]`; positions as in a plane.
    fn pack_left(
        &self,
        item: &Item,
        g: &[f32],
        images: &Range<usize>,
        band: usize,
        to: &mut Words,
    ) {
        let terms = self.of.terms.count();
        let [height, width] = self.view.count;
        let rows = self.layout.rows.min(height - band);
        let mut line = vec![0f32; self.steps * DEPTH];
        let mut lines = Lines::new(line.len(), self.of.terms);
        let tall = item.rows.len().next_multiple_of(SIDE);
        for i in 0..tall {
            let panel = i / BLOCK * BLOCK;
            let tiles = (tall - panel).min(BLOCK) / SIDE;
            for (n, image) in images.clone().enumerate() {
                if i < item.rows.len() {
                    let channel = item.group * self.rows + item.rows.start + i;
                    let from = ((image * self.of.shape.outputs + channel) * height + band) * width;
                    let from = &g[from..][..rows * width];
                    // Ends of rows stay 0; so do rows that the last band lacks.
                    for (y, from) in from.chunks_exact(width).enumerate() {
                        line[y * self.layout.width..][..width].copy_from_slice(from);
                    }
                } else {
                    line.fill(0.0);
                }
                let first = panel / SIDE * images.len() * self.steps;
                lines.set(&line);
                for s in 0..self.steps {
                    let tile = first + (n * self.steps + s) * tiles + i % BLOCK / SIDE;
                    let at = tile * terms * TILE + i % SIDE * SIDE;
                    let to = &mut to[at..][..(terms - 1) * TILE + SIDE];
                    // SAFETY: the slice reaches to the end of the row in the last term's tile.
                    unsafe { lines.emit(s * DEPTH, to.as_mut_ptr()) };
                }
            }
        }
    }

    /// `[term][image][position][channel]`, words of two neighbouring positions; zeros beyond the last channel.
    #[allow(clippy::too_many_arguments)]
    fn pack_right(
        &self,
        group: usize,
        x: &[f32],
        images: &Range<usize>,
        band: usize,
        channels: &Range<usize>,
        to: &mut Words,
        half: usize,
    ) {
        let pixels = self.view.source[0] * self.view.source[1];
        let length = self.layout.channel;
        let mut plane = Scratch::take(self.layout.len(self.view, BLOCK));
        let mut turned = Scratch::take((self.length + 1) * BLOCK);
        // Positions past the plane, and channels that there are not.
        turned[..(self.length + 1) * BLOCK].fill(0.0);
        let (high, low) = to.split_at_mut(half);
        for (n, image) in images.clone().enumerate() {
            let channel = image * self.of.shape.inputs + group * self.channels + channels.start;
            // SAFETY: these channels of the image lie in `x`; the plane was made for them, and `turned` for it.
            unsafe {
                self.layout.fill(
                    self.view,
                    self.of.kernels,
                    x[channel * pixels..].as_ptr(),
                    0,
                    1,
                    channels.len(),
                    band,
                    plane.as_mut_ptr(),
                );
                (self.of.kernels.transpose)(
                    plane.as_ptr(),
                    length,
                    channels.len(),
                    length,
                    turned.as_mut_ptr(),
                    BLOCK,
                );
            }
            let words = self.length * BLOCK;
            let here = n * words..(n + 1) * words;
            let low = (self.of.terms == Terms::Two).then(|| &mut low[here.clone()]);
            pairs(
                &turned[..words],
                &turned[BLOCK..][..words],
                &mut high[here],
                low,
            );
        }
    }
}

//! Convolution: the gradient of the weight, `dw[r, c, tap] = sum over positions of g[r, p] plane[c, p + tap]`.
//!
//! Channels of the input are broadcast from a plane against a transposed piece of `g`, `[position][row]`, a few hundred
//! positions at a time; in a 1x1 convolution both lie in place, and the side with fewer channels is the transposed one.
//! Threads own channels or rows of the weight, and go through all images in order: no partial sums, the same bits at every
//! number of threads.
#![allow(unsafe_code)]

use std::ops::Range;

use super::conv::{check, lanes};
use super::plane::{Layout, View};
use super::work::{Scratch, Shared, output, parallel, prefetch, split};
use super::{Isa, Kernels, Mask};
use crate::ConvShape;

/// Positions of `g` that are turned at a time: with one vector pair each they fill half of a first-level cache.
const POSITIONS: usize = 256;
/// Floats of a cache line.
const LINE: usize = 16;
/// Floats of a plane.
const PLANE: usize = 96 * 1024;

/// The gradient of a convolution's weight from its input `x` and its output's gradient `g`; zero outside the mask.
pub fn weight_grad(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    g: &[f32],
    mask: Option<Mask>,
) -> Vec<f32> {
    assert_eq!(g.len(), shape.output_len(), "output gradients of {shape:?}");
    check(shape, x.len(), shape.input_len(), shape.weight_len(), mask);
    if shape.is_depthwise() {
        return super::depthwise::weight_grad(isa.kernels(), shape, x, g, mask);
    }
    let mut result = output(shape.weight_len());
    let to = Shared::new(result.as_mut_ptr());
    let product = Product {
        kernels: isa.kernels(),
        shape,
        view: View::forward(shape),
        rows: shape.outputs / shape.groups,
        channels: shape.inputs / shape.groups,
        exchanged: shape.is_pointwise() && shape.inputs < shape.outputs,
    };
    let blocks = product.blocks();
    parallel(blocks.len(), shape.macs(), |i| {
        product.run(&blocks[i], x, g, mask, to);
    });
    // SAFETY: the blocks cover the weight.
    unsafe { result.written() }
}

/// A piece of the weight that one thread computes.
struct Block {
    group: usize,
    /// Channels of the input that are broadcast, or rows where the sides are exchanged.
    broadcast: Range<usize>,
    /// Rows that are transposed, or channels of the input.
    turned: Range<usize>,
}

/// A factor whose channels lie in place.
struct Side<'a> {
    data: &'a [f32],
    /// Channels of an image.
    channels: usize,
    /// First channel of the block.
    first: usize,
}

struct Product<'a> {
    kernels: &'static Kernels,
    shape: &'a ConvShape,
    view: View,
    rows: usize,
    channels: usize,
    /// Whether the input is transposed, and `g` broadcast.
    exchanged: bool,
}

impl Product<'_> {
    /// Whole panels of what is broadcast if there are enough of them, else also blocks of what is transposed.
    fn blocks(&self) -> Vec<Block> {
        let (broadcast, turned) = if self.exchanged {
            (self.rows, self.channels)
        } else {
            (self.channels, self.rows)
        };
        let threads = rayon::current_num_threads();
        let wanted = if threads == 1 { 1 } else { 2 * threads };
        let wanted = wanted.div_ceil(self.shape.groups);
        let panels = broadcast.div_ceil(self.kernels.rows);
        let by_panel = wanted.min(panels).max(1);
        let columns = self.kernels.columns();
        let vectors = turned.div_ceil(columns);
        let by_vector = wanted.div_ceil(by_panel).min(vectors).max(1);
        let mut blocks = Vec::new();
        for group in 0..self.shape.groups {
            for vectors in split(vectors, vectors.div_ceil(by_vector)) {
                let turned = vectors.start * columns..(vectors.end * columns).min(turned);
                for broadcast in split(broadcast, broadcast.div_ceil(by_panel)) {
                    blocks.push(Block {
                        group,
                        broadcast,
                        turned: turned.clone(),
                    });
                }
            }
        }
        blocks
    }

    fn run(&self, block: &Block, x: &[f32], g: &[f32], mask: Option<Mask>, to: Shared) {
        let taps = self.shape.taps();
        let columns = self.kernels.columns();
        let vectors: Vec<_> = split(block.turned.len(), columns).collect();
        // [block of what is turned][what is broadcast, tap][turned]
        let cell = block.broadcast.len() * taps * columns;
        let mut sums = Scratch::take(vectors.len() * cell);
        sums[..vectors.len() * cell].fill(0.0);
        if self.shape.is_pointwise() {
            let (inputs, outputs) = (
                (x, self.shape.inputs, self.channels),
                (g, self.shape.outputs, self.rows),
            );
            let side = |(data, channels, of_group), part: &Range<usize>| Side {
                data,
                channels,
                first: block.group * of_group + part.start,
            };
            let (broadcast, turned) = if self.exchanged {
                (outputs, inputs)
            } else {
                (inputs, outputs)
            };
            let broadcast = side(broadcast, &block.broadcast);
            let turned = side(turned, &block.turned);
            self.sum_in_place(
                block.broadcast.len(),
                &vectors,
                &broadcast,
                &turned,
                &mut sums,
            );
        } else {
            // As many channels at a time as leave a plane of a few rows in the second-level cache.
            let lanes = lanes(self.kernels, self.shape.batch, self.view.count, 0.05);
            let row = Layout::new(&self.view, 1, lanes).channel * lanes;
            let most = (PLANE / row.max(1)).clamp(self.kernels.rows, 64);
            for channels in split(block.broadcast.len(), most) {
                self.sum_planes(block, &vectors, &channels, lanes, x, g, &mut sums);
            }
        }
        for (i, part) in vectors.iter().enumerate() {
            let turned = block.turned.start + part.start..block.turned.start + part.end;
            self.store(block, &turned, &sums[i * cell..], mask, to);
        }
    }

    /// Sums of one vector block into the weight's order, masked.
    fn store(
        &self,
        block: &Block,
        turned: &Range<usize>,
        sums: &[f32],
        mask: Option<Mask>,
        to: Shared,
    ) {
        let taps = self.shape.taps();
        let columns = self.kernels.columns();
        let all = self.channels * taps;
        let (rows, channels) = if self.exchanged {
            (&block.broadcast, turned)
        } else {
            (turned, &block.broadcast)
        };
        let first = block.group * self.rows + rows.start;
        let (at, n) = (channels.start * taps, channels.len() * taps);
        // SAFETY: these rows and channels of the weight are this block's alone, and their sums were computed.
        unsafe {
            let to = to.at(first * all + at);
            if self.exchanged {
                (self.kernels.copy)(sums.as_ptr(), columns, rows.len(), n, to, all);
            } else {
                (self.kernels.transpose)(sums.as_ptr(), columns, n, rows.len(), to, all);
            }
            let Some(mask) = mask else { return };
            for row in 0..rows.len() {
                let words = &mask.words[(first + row) * mask.words_per_row()..];
                for j in 0..n {
                    if words[(at + j) / 32] >> ((at + j) % 32) & 1 == 0 {
                        *to.add(row * all + j) = 0.0;
                    }
                }
            }
        }
    }

    /// 1x1, stride 1: channels are broadcast from where they lie.
    fn sum_in_place(
        &self,
        lines: usize,
        vectors: &[Range<usize>],
        broadcast: &Side,
        turned: &Side,
        sums: &mut [f32],
    ) {
        let positions = self.view.count[0] * self.view.count[1];
        if positions == 0 {
            return;
        }
        let columns = self.kernels.columns();
        let cell = lines * columns;
        let mut strip = Scratch::take(POSITIONS * columns);
        // Several small images at a time, or a piece of a large one.
        let together = (POSITIONS / positions).max(1);
        for images in split(self.shape.batch, together) {
            for piece in split(positions, POSITIONS) {
                for (i, part) in vectors.iter().enumerate() {
                    for (n, image) in images.clone().enumerate() {
                        let channel = turned.first + part.start;
                        let from = (image * turned.channels + channel) * positions + piece.start;
                        // SAFETY: these channels and positions lie in `turned`, and the strip has room for them.
                        unsafe {
                            self.turn(
                                turned.data.as_ptr().add(from),
                                positions,
                                part.len(),
                                piece.len(),
                                strip.as_mut_ptr().add(n * piece.len() * columns),
                                columns,
                            );
                        }
                    }
                    for panel in split(lines, self.kernels.rows) {
                        let channel = broadcast.first + panel.start;
                        let from =
                            (images.start * broadcast.channels + channel) * positions + piece.start;
                        // SAFETY: these channels and positions of these images lie in `broadcast`, the panel's sums in
                        // `sums`.
                        unsafe {
                            (self.kernels.outer[panel.len() - 1])(
                                images.len(),
                                piece.len(),
                                broadcast.data.as_ptr().add(from),
                                positions,
                                broadcast.channels * positions,
                                strip.as_ptr(),
                                sums.as_mut_ptr().add(i * cell + panel.start * columns),
                                columns,
                                true,
                            );
                        }
                    }
                }
            }
        }
    }

    /// `to[position][row] = g[row][position]`, with zeros in rows that the last block does not have.
    ///
    /// # Safety
    /// `rows` times `n` values at `g`, `n` rows of `columns` at `to`, at distance `pitch`.
    unsafe fn turn(
        &self,
        g: *const f32,
        lds: usize,
        rows: usize,
        n: usize,
        to: *mut f32,
        pitch: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            if rows < self.kernels.columns() {
                for i in 0..n {
                    to.add(i * pitch).write_bytes(0, self.kernels.columns());
                }
            }
            (self.kernels.transpose)(g, lds, rows, n, to, pitch);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn sum_planes(
        &self,
        block: &Block,
        row_blocks: &[Range<usize>],
        channels: &Range<usize>,
        lanes: usize,
        x: &[f32],
        g: &[f32],
        sums: &mut [f32],
    ) {
        let view = &self.view;
        let sub = &view.subs[0];
        let taps = self.shape.taps();
        let columns = self.kernels.columns();
        let [height, width] = view.count;
        if height * width == 0 {
            return;
        }
        let pixel = view.source[0] * view.source[1];
        let cell = block.broadcast.len() * taps * columns;
        let halo = Layout::new(view, 0, lanes).channel * lanes * channels.len();
        let row = Layout::new(view, 1, lanes).channel * lanes * channels.len() - halo;
        let most = (PLANE.saturating_sub(halo) / row.max(1)).max(1);
        let layout = Layout::new(view, height.div_ceil(height.div_ceil(most)), lanes);
        let offsets = layout.offsets(view, sub, 1);
        let channel_len = layout.channel * lanes;
        // Rows of `g` that are turned at a time.
        let strip = (POSITIONS / (width * lanes)).clamp(1, layout.rows);
        let mut plane = Scratch::take(layout.len(view, channels.len()));
        let mut turned = Scratch::take(strip * width * lanes * columns);
        for image in (0..self.shape.batch).step_by(lanes) {
            let images = lanes.min(self.shape.batch - image);
            for band in (0..height).step_by(layout.rows) {
                let rows = layout.rows.min(height - band);
                let channel = block.group * self.channels + block.broadcast.start + channels.start;
                // SAFETY: these channels and images lie in `x`; the plane was made for them.
                unsafe {
                    layout.fill(
                        view,
                        self.kernels,
                        x.as_ptr()
                            .add((image * self.shape.inputs + channel) * pixel),
                        self.shape.inputs * pixel,
                        images,
                        channels.len(),
                        band,
                        plane.as_mut_ptr(),
                    );
                }
                let turns: Vec<_> = split(rows, strip)
                    .flat_map(|piece| (0..row_blocks.len()).map(move |i| (piece.clone(), i)))
                    .collect();
                // Where a piece of a row of `g` begins.
                let place = |image: usize, piece: &Range<usize>, row: usize| {
                    let row = block.group * self.rows + block.turned.start + row;
                    let from = (image * self.shape.outputs + row) * height + band + piece.start;
                    g.as_ptr().wrapping_add(from * width)
                };
                for (turn, (piece, i)) in turns.iter().enumerate() {
                    let (i, row_block) = (*i, &row_blocks[*i]);
                    if images < lanes {
                        turned[..piece.len() * width * lanes * columns].fill(0.0);
                    }
                    for n in 0..images {
                        // SAFETY: these rows and positions lie in `g`, and `turned` has room for them.
                        unsafe {
                            self.turn(
                                place(image + n, piece, row_block.start),
                                height * width,
                                row_block.len(),
                                piece.len() * width,
                                turned.as_mut_ptr().add(n * columns),
                                lanes * columns,
                            );
                        }
                    }
                    let panels = split(channels.len(), self.kernels.rows);
                    let shares = panels.clone().count();
                    for (share, panel) in panels.enumerate() {
                        // Rows of `g` are far apart: no prefetcher follows. What is turned next comes in meanwhile, with
                        // each panel its share.
                        if let Some((piece, i)) = turns.get(turn + 1) {
                            let (next, n) = (&row_blocks[*i], piece.len() * width);
                            let lines = images * next.len();
                            for line in share * lines / shares..(share + 1) * lines / shares {
                                let row = next.start + line % next.len();
                                let from = place(image + line / next.len(), piece, row);
                                for at in (0..n).step_by(LINE) {
                                    prefetch::<false>(from.wrapping_add(at));
                                }
                                prefetch::<false>(from.wrapping_add(n - 1));
                            }
                        }
                        for (t, &(tap, _)) in sub.taps.iter().enumerate() {
                            let from = panel.start * channel_len
                                + piece.start * layout.width * lanes
                                + offsets[t] as usize;
                            let at =
                                i * cell + ((channels.start + panel.start) * taps + tap) * columns;
                            // SAFETY: the taps of these rows lie in the plane, the panel's sums in `sums`.
                            unsafe {
                                (self.kernels.outer[panel.len() - 1])(
                                    piece.len(),
                                    width * lanes,
                                    plane.as_ptr().add(from),
                                    channel_len,
                                    layout.width * lanes,
                                    turned.as_ptr(),
                                    sums.as_mut_ptr().add(at),
                                    taps * columns,
                                    true,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

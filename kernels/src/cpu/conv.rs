//! Convolution: the output, and the gradient of the input.
//!
//! Both are one product, `result[row] = sum over (channel, tap) of weight[row, channel, tap] plane[channel, tap]`, with rows
//! and channels exchanged (section 5.1 of the kernels' specification). The weight is packed once, masked on the way;
//! activations are read through planes, or in place where a convolution is a matrix product already. No im2col matrix
//! exists.
#![allow(unsafe_code)]

use std::ops::Range;

use super::micro::MAX_COLUMNS;
use super::plane::{Layout, Sub, View};
use super::work::{Scratch, Shared, copy, parallel, prefetch, split};
use super::{Finish, Isa, Kernels, Mask};
use crate::ConvShape;

/// Reduction steps of one pass over a tile: what a panel of weights may hold and stay in the first cache.
const DEPTH: usize = 320;
/// Tiles of positions that are gathered together in place: a few lines of a page at a time.
const GATHER: usize = 4;
/// Fewer tiles of positions than this do not repay packing the weight.
const REPAY: usize = 16;
/// Floats of a plane: about half of a second-level cache of 512 KiB.
const PLANE: usize = 96 * 1024;

/// The output of a convolution: `x` NCHW, `w` OIHW, both as `shape` says; `bias` has a value per output channel.
pub fn forward(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    w: &[f32],
    mask: Option<Mask>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    check(shape, x.len(), shape.input_len(), w.len(), mask);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), shape.outputs, "one bias per output channel");
    }
    if shape.is_depthwise() {
        return super::depthwise::forward(isa.kernels(), shape, x, w, mask, bias);
    }
    let product = Product {
        kernels: isa.kernels(),
        shape,
        view: View::forward(shape),
        roles: Roles::Forward,
        rows: shape.outputs / shape.groups,
        channels: shape.inputs / shape.groups,
        in_place: shape.is_pointwise(),
    };
    product.run(x, w, mask, bias)
}

/// The gradient of a convolution's input from that of its output, `g`.
pub fn input_grad(
    isa: Isa,
    shape: &ConvShape,
    g: &[f32],
    w: &[f32],
    mask: Option<Mask>,
) -> Vec<f32> {
    check(shape, g.len(), shape.output_len(), w.len(), mask);
    if shape.is_depthwise() {
        return super::depthwise::input_grad(isa.kernels(), shape, g, w, mask);
    }
    let product = Product {
        kernels: isa.kernels(),
        shape,
        view: View::input_grad(shape),
        roles: Roles::InputGrad,
        rows: shape.inputs / shape.groups,
        channels: shape.outputs / shape.groups,
        in_place: shape.is_pointwise(),
    };
    product.run(g, w, mask, None)
}

/// The kernels trust their lengths: a wrong one is a bug of the caller, never a reason to read past an end.
pub(super) fn check(
    shape: &ConvShape,
    found: usize,
    expected: usize,
    weights: usize,
    mask: Option<Mask>,
) {
    assert_eq!(found, expected, "activations of {shape:?}");
    assert_eq!(weights, shape.weight_len(), "weights of {shape:?}");
    if let Some(mask) = mask {
        mask.check(shape.outputs, shape.weight_cols());
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Roles {
    /// Rows are output channels, the sum runs over input channels.
    Forward,
    /// The other way round.
    InputGrad,
}

struct Product<'a> {
    kernels: &'static Kernels,
    shape: &'a ConvShape,
    view: View,
    roles: Roles,
    /// Result channels of a group.
    rows: usize,
    /// Source channels of a group.
    channels: usize,
    in_place: bool,
}

/// A weight as tiles read it: for each chunk of channels, for each panel of rows, `[channel, tap][row]`. For few positions
/// it is not turned into that order but read row by row.
struct Packed<'a> {
    data: Scratch,
    /// The weight itself, where it is read as it lies.
    raw: Option<&'a [f32]>,
    panels: Vec<Range<usize>>,
    chunks: Vec<Range<usize>>,
    rows: usize,
    taps: usize,
}

impl Packed<'_> {
    /// Where a panel begins, and how far its rows are apart: 0 where it is packed.
    fn panel(
        &self,
        group: usize,
        chunk: &Range<usize>,
        panel: &Range<usize>,
    ) -> (*const f32, usize) {
        let Some(w) = self.raw else {
            let at = self.at(group, chunk, panel);
            return (self.data.as_ptr().wrapping_add(at), 0);
        };
        let columns = self.chunks.last().map_or(0, |last| last.end) * self.taps;
        let at = (group * self.rows + panel.start) * columns + chunk.start * self.taps;
        (w.as_ptr().wrapping_add(at), columns)
    }

    fn at(&self, group: usize, chunk: &Range<usize>, panel: &Range<usize>) -> usize {
        let channels = self.chunks.last().map_or(0, |last| last.end);
        group * self.rows * channels * self.taps
            + self.rows * chunk.start * self.taps
            + panel.start * chunk.len() * self.taps
    }
}

impl Product<'_> {
    fn run(&self, source: &[f32], w: &[f32], mask: Option<Mask>, bias: Option<&[f32]>) -> Vec<f32> {
        let [height, width] = self.view.result;
        let len = self.shape.batch * self.shape.groups * self.rows * height * width;
        let mut result = super::work::output(len);
        if len == 0 {
            return Vec::new();
        }
        let to = Shared::new(result.as_mut_ptr());
        let small = height * width < 2 * self.kernels.columns();
        for sub in &self.view.subs {
            if sub.count.contains(&0) {
                continue;
            }
            if self.in_place && !small {
                let packed = self.pack(sub, w, mask, DEPTH);
                self.run_in_place(source, &packed, bias, to);
            } else {
                let depth = (DEPTH / sub.taps.len().max(1)).max(1);
                let packed = self.pack(sub, w, mask, depth);
                self.run_planes(sub, source, &packed, bias, to);
            }
        }
        // SAFETY: the phases cover the result, and each was written whole.
        unsafe { result.written() }
    }

    fn pack<'w>(&self, sub: &Sub, w: &'w [f32], mask: Option<Mask>, depth: usize) -> Packed<'w> {
        let taps = sub.taps.len();
        let panels: Vec<_> = split(self.rows, self.kernels.rows).collect();
        let mut chunks: Vec<_> = split(self.channels, depth).collect();
        if chunks.is_empty() || taps == 0 {
            // Nothing to sum: one pass that stores the bias.
            chunks.clear();
            chunks.push(0..0);
        }
        let groups = self.shape.groups;
        let whole = taps == self.shape.taps() && sub.taps.iter().enumerate().all(|(i, t)| t.0 == i);
        let tiles = self.shape.batch * sub.count[0] * sub.count[1] / self.kernels.columns();
        let raw =
            (self.roles == Roles::Forward && mask.is_none() && whole && tiles < REPAY).then_some(w);
        let mut packed = Packed {
            data: Scratch::take(if raw.is_some() {
                0
            } else {
                groups * self.rows * self.channels * taps
            }),
            raw,
            panels,
            chunks,
            rows: self.rows,
            taps,
        };
        if raw.is_some() {
            return packed;
        }
        let to = Shared::new(packed.data.as_mut_ptr());
        let all = self.shape.taps();
        let words = mask.map(|mask| mask.words);
        let stride = mask.map_or(0, |mask| mask.words_per_row() * 32);
        let packed_ref = &packed;
        let per_group = packed.panels.len() * packed.chunks.len();
        parallel(groups * per_group, w.len() as u64 * 4, |item| {
            let (group, rest) = (item / per_group, item % per_group);
            let chunk = &packed_ref.chunks[rest / packed_ref.panels.len()];
            let panel = &packed_ref.panels[rest % packed_ref.panels.len()];
            let to = to.at(packed_ref.at(group, chunk, panel));
            let n = panel.len();
            let words = words.map_or(std::ptr::null(), <[u32]>::as_ptr);
            match self.roles {
                Roles::Forward => {
                    let row = group * self.rows + panel.start;
                    let from = row * self.channels * all + chunk.start * all;
                    // SAFETY: rows and channels of the panel lie in `w` and in the mask, and its place in the packed
                    // weight is its own.
                    unsafe {
                        (self.kernels.pack)(
                            w.as_ptr().add(from),
                            self.channels * all,
                            n,
                            chunk.len() * all,
                            words,
                            row * stride + chunk.start * all,
                            stride,
                            to,
                        )
                    }
                }
                Roles::InputGrad => {
                    let mut every = (!whole).then(|| Scratch::take(all * n));
                    for (i, channel) in chunk.clone().enumerate() {
                        let row = group * self.channels + channel;
                        let from = (row * self.rows + panel.start) * all;
                        let first = row * stride + panel.start * all;
                        // SAFETY: as above; with taps missing, all are packed aside and the sub's taken from there.
                        unsafe {
                            let to = to.add(i * taps * n);
                            let aside = every.as_mut().map_or(to, |every| every.as_mut_ptr());
                            (self.kernels.pack)(
                                w.as_ptr().add(from),
                                all,
                                n,
                                all,
                                words,
                                first,
                                all,
                                aside,
                            );
                            if every.is_some() {
                                for (t, (tap, _)) in sub.taps.iter().enumerate() {
                                    to.add(t * n)
                                        .copy_from_nonoverlapping(aside.add(tap * n), n);
                                }
                            }
                        }
                    }
                }
            }
        });
        packed
    }

    /// A matrix product over positions, read and written where they lie.
    fn run_in_place(&self, source: &[f32], packed: &Packed, bias: Option<&[f32]>, to: Shared) {
        let [height, width] = self.view.result;
        let positions = height * width;
        let columns = self.kernels.columns();
        let groups = self.shape.groups;
        let depth = packed.chunks.iter().map(Range::len).max().unwrap_or(0);
        let offsets: Vec<u32> = (0..depth).map(|c| (c * columns) as u32).collect();
        // Whole tiles; what is left over is a tile of its own, half as wide if that will do, that overlaps the one before.
        let tiles = positions / columns;
        let left = positions % columns;
        let last = left.div_ceil(self.kernels.lanes);
        let pieces = self.pieces(self.shape.batch * groups);
        let blocks: Vec<_> = split(tiles, tiles.div_ceil(pieces)).collect();
        parallel(
            self.shape.batch * groups * blocks.len(),
            self.shape.macs(),
            |item| {
                let (image, block) = (item / blocks.len(), &blocks[item % blocks.len()]);
                let mut gathered = Scratch::take(GATHER * depth * columns);
                let mut run = |at, tiles, vectors| {
                    // SAFETY: the tiles' positions lie inside the image, and this piece of it is this item's alone.
                    unsafe {
                        self.tiles_in_place(
                            source,
                            packed,
                            bias,
                            to,
                            image,
                            at,
                            tiles,
                            vectors,
                            &offsets,
                            &mut gathered,
                        );
                    }
                };
                // First the one that overlaps: its neighbour in the same block stores the shared places anew.
                if block.end == tiles && left > 0 {
                    run(positions - last * self.kernels.lanes, 1, last);
                }
                for first in block.clone().step_by(GATHER) {
                    run(first * columns, GATHER.min(block.end - first), 2);
                }
            },
        );
    }

    /// A few tiles of positions of one image's group, all rows; one tile, if it is of one vector.
    ///
    /// # Safety
    /// The tiles from `at` on lie in the image, and no other thread writes there.
    #[allow(clippy::too_many_arguments)]
    unsafe fn tiles_in_place(
        &self,
        source: &[f32],
        packed: &Packed,
        bias: Option<&[f32]>,
        to: Shared,
        image: usize,
        at: usize,
        tiles: usize,
        vectors: usize,
        offsets: &[u32],
        gathered: &mut Scratch,
    ) {
        let columns = self.kernels.columns();
        let positions = self.view.result[0] * self.view.result[1];
        let group = image % self.shape.groups;
        let begin = source
            .as_ptr()
            .wrapping_add(image * self.channels * positions + at);
        for (c, channels) in packed.chunks.iter().enumerate() {
            let (first, last) = (c == 0, c + 1 == packed.chunks.len());
            let from = begin.wrapping_add(channels.start * positions);
            // Every channel is another page: gathered once, all rows of weights read it from the first cache.
            for channel in 0..channels.len() {
                // SAFETY: the caller's, and the scratch has room for so many tiles of a chunk.
                unsafe {
                    (self.kernels.copy)(
                        from.add(channel * positions),
                        columns,
                        tiles,
                        vectors * self.kernels.lanes,
                        gathered.as_mut_ptr().add(channel * columns),
                        channels.len() * columns,
                    );
                }
            }
            // No prefetcher of the processor's follows from page to page: while rows are summed, the lines to gather next
            // come in, with each panel its share.
            let (ahead, lines) = match packed.chunks.get(c + 1) {
                Some(next) => (begin.wrapping_add(next.start * positions), next.len()),
                None => (begin.wrapping_add(tiles * columns), packed.chunks[0].len()),
            };
            let shares = packed.panels.len() * tiles;
            for tile in 0..tiles {
                for (i, panel) in packed.panels.iter().enumerate() {
                    let result =
                        to.at((image * self.rows + panel.start) * positions + at + tile * columns);
                    let share = tile * packed.panels.len() + i;
                    for line in share * lines / shares..(share + 1) * lines / shares {
                        for tile in 0..tiles {
                            prefetch::<false>(
                                ahead.wrapping_add(line * positions + tile * columns),
                            );
                        }
                    }
                    if last {
                        for row in 0..panel.len() {
                            prefetch::<true>(result.wrapping_add(row * positions + columns));
                        }
                    }
                    let finish = self.finish(group, panel, bias, first);
                    let (weight, lda) = packed.panel(group, channels, panel);
                    // SAFETY: the caller's, and the panel lies in the weight.
                    unsafe {
                        (self.kernels.tile[panel.len() - 1][vectors - 1])(
                            channels.len(),
                            weight,
                            lda,
                            gathered.as_ptr().add(tile * channels.len() * columns),
                            offsets.as_ptr(),
                            result,
                            positions,
                            finish,
                        );
                    }
                }
            }
        }
    }

    /// How many pieces to cut each of `items` into.
    fn pieces(&self, items: usize) -> usize {
        let threads = rayon::current_num_threads();
        if threads == 1 || items >= 16 * threads {
            1
        } else {
            (4 * threads).div_ceil(items.max(1))
        }
    }

    fn finish(
        &self,
        group: usize,
        panel: &Range<usize>,
        bias: Option<&[f32]>,
        first: bool,
    ) -> Finish {
        Finish {
            resume: !first,
            bias: bias.map_or(std::ptr::null(), |bias| {
                bias[group * self.rows + panel.start..].as_ptr()
            }),
        }
    }

    /// The layout that wastes the fewest lanes.
    fn layout(&self, sub: &Sub, chunk: usize) -> Layout {
        let view = &self.view;
        let columns = self.kernels.columns();
        let terms = (self.channels * sub.taps.len()).max(1) as f64;
        let lanes = lanes(self.kernels, self.shape.batch, sub.count, TURNED / terms);
        let floats_per_row = Layout::new(view, 1, lanes).channel.max(1) * lanes * chunk.max(1);
        let halo = Layout::new(view, 0, lanes).channel * lanes * chunk.max(1);
        let per_row = (floats_per_row - halo.min(floats_per_row)).max(1);
        // At least a tile's worth of rows, however large they are.
        let least = columns.div_ceil(view.count[1].max(1) * lanes);
        let most = (PLANE.saturating_sub(halo) / per_row).max(least).max(1);
        let bands = view.count[0].div_ceil(most);
        Layout::new(view, view.count[0].div_ceil(bands), lanes)
    }

    fn run_planes(
        &self,
        sub: &Sub,
        source: &[f32],
        packed: &Packed,
        bias: Option<&[f32]>,
        to: Shared,
    ) {
        let view = &self.view;
        let groups = self.shape.groups;
        let chunk = packed.chunks.iter().map(Range::len).max().unwrap_or(0);
        let layout = self.layout(sub, chunk);
        let lanes = layout.lanes;
        let offsets = layout.offsets(view, sub, chunk);
        let bands: Vec<usize> = (0..sub.count[0]).step_by(layout.rows).collect();
        let image_groups = self.shape.batch.div_ceil(lanes);
        let items = image_groups * groups * bands.len();
        // With few items, panels are divided too, and each part fills its own plane.
        let parts: Vec<Range<usize>> = {
            let wanted = self
                .pieces(items)
                .min(packed.panels.len().div_ceil(2))
                .max(1);
            split(packed.panels.len(), packed.panels.len().div_ceil(wanted)).collect()
        };
        let columns = self.kernels.columns();
        // Floats of a row of results in scratch: whole tiles, and off the multiples of a page, where rows would share
        // cache sets.
        let (segments, segment) = self.segments(sub, &layout);
        let row = (segments * segment).next_multiple_of(columns) + columns + 16;
        let keep = packed.chunks.len() > 1;
        let source_plane = view.source[0] * view.source[1];
        let result_plane = view.result[0] * view.result[1];

        parallel(items * parts.len(), self.shape.macs(), |item| {
            let (item, part) = (item / parts.len(), &parts[item % parts.len()]);
            let (image, band) = (item / bands.len(), bands[item % bands.len()]);
            let (image, group) = (image / groups * lanes, image % groups);
            let images = lanes.min(self.shape.batch - image);
            let rows = layout.rows.min(sub.count[0] - band);
            let mut plane = Scratch::take(layout.len(view, chunk));
            let held: usize = if keep {
                packed.panels[part.clone()].iter().map(Range::len).sum()
            } else {
                self.kernels.rows
            };
            let mut sums = Scratch::take(held * row + MAX_COLUMNS);
            for (c, channels) in packed.chunks.iter().enumerate() {
                let channel = group * self.channels + channels.start;
                // SAFETY: the chunk's channels and the images lie in the source; the plane was made for them.
                unsafe {
                    layout.fill(
                        view,
                        self.kernels,
                        source
                            .as_ptr()
                            .add((image * groups * self.channels + channel) * source_plane),
                        groups * self.channels * source_plane,
                        images,
                        channels.len(),
                        band,
                        plane.as_mut_ptr(),
                    );
                }
                let (first, last) = (c == 0, c + 1 == packed.chunks.len());
                let mut at = 0;
                for panel in &packed.panels[part.clone()] {
                    let finish = self.finish(group, panel, bias, first);
                    // SAFETY: `sums` has room for the panel's rows.
                    let sums = unsafe { sums.as_mut_ptr().add(at * row) };
                    if keep {
                        at += panel.len();
                    }
                    let (weight, lda) = packed.panel(group, channels, panel);
                    // SAFETY: the panel lies in the weight; tiles lie in the plane, or run over its end into its slack; rows
                    // of `sums` have room for whole tiles.
                    unsafe {
                        let tile = &self.kernels.tile[panel.len() - 1];
                        let depth = channels.len() * packed.taps;
                        for s in 0..if segments == 1 { 1 } else { rows } {
                            let n = if segments == 1 {
                                self.run_length(sub, &layout, rows)
                            } else {
                                segment
                            };
                            let from = plane.as_ptr().add(s * layout.width * lanes);
                            let sums = sums.add(s * segment);
                            let mut done = 0;
                            while done < n {
                                let vectors = (n - done).div_ceil(self.kernels.lanes).min(2);
                                tile[vectors - 1](
                                    depth,
                                    weight,
                                    lda,
                                    from.add(done),
                                    offsets.as_ptr(),
                                    sums.add(done),
                                    row,
                                    finish,
                                );
                                done += columns;
                            }
                        }
                        if last {
                            let channel =
                                image * groups * self.rows + group * self.rows + panel.start;
                            self.emit(
                                sub,
                                &layout,
                                sums,
                                row,
                                panel.len(),
                                (band, rows),
                                images,
                                to.at(channel * result_plane),
                            );
                        }
                    }
                }
            }
        });
    }

    /// Rows of results run on (one segment, row ends included) or are tiled one by one: how many segments, how long.
    fn segments(&self, sub: &Sub, layout: &Layout) -> (usize, usize) {
        if layout.lanes == 1 || layout.width == sub.count[1] {
            (1, self.run_length(sub, layout, layout.rows))
        } else {
            (layout.rows, sub.count[1] * layout.lanes)
        }
    }

    /// Floats from the first position of a band of `rows` rows to its last.
    fn run_length(&self, sub: &Sub, layout: &Layout, rows: usize) -> usize {
        ((rows - 1) * layout.width + sub.count[1]) * layout.lanes
    }

    /// Copies a panel's results from scratch to where they belong.
    ///
    /// # Safety
    /// `sums` holds `channels` rows of the band at distance `row`, `to` the first channel of the first image.
    #[allow(clippy::too_many_arguments)]
    unsafe fn emit(
        &self,
        sub: &Sub,
        layout: &Layout,
        sums: *const f32,
        row: usize,
        channels: usize,
        (band, rows): (usize, usize),
        images: usize,
        to: *mut f32,
    ) {
        let view = &self.view;
        let lanes = layout.lanes;
        let [height, width] = view.result;
        let image = self.shape.groups * self.rows * height * width;
        let (segments, _) = self.segments(sub, layout);
        let pitch = if segments == 1 {
            layout.width
        } else {
            sub.count[1]
        } * lanes;
        for channel in 0..channels {
            let from = sums.wrapping_add(channel * row);
            let to = to.wrapping_add(channel * height * width);
            // SAFETY: the caller's; each position of the sub is written once.
            unsafe {
                if view.spread == [1, 1] && lanes > 1 && pitch == width * lanes {
                    let to = to.add(band * width);
                    (self.kernels.transpose)(from, lanes, rows * width, images, to, image);
                    continue;
                }
                for y in 0..rows {
                    let from = from.add(y * pitch);
                    let line = sub.first[0] + (band + y) * view.spread[0];
                    let to = to.add(line * width + sub.first[1]);
                    match (lanes, view.spread[1]) {
                        (1, 1) => copy(from, to, sub.count[1]),
                        (1, spread) => {
                            for x in 0..sub.count[1] {
                                *to.add(x * spread) = *from.add(x);
                            }
                        }
                        (_, 1) => {
                            (self.kernels.transpose)(from, lanes, sub.count[1], images, to, image)
                        }
                        (_, spread) => {
                            for x in 0..sub.count[1] {
                                for n in 0..images {
                                    *to.add(n * image + x * spread) = *from.add(x * lanes + n);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What turning images in and out of lanes costs for a position of the result, in terms of its sum. Measured with AVX-512 on
/// planes 8 to 16 wide.
const TURNED: f64 = 130.0;

/// Images side by side: 1 for outputs wide enough to fill vectors, else what takes the fewest steps, where turning the images
/// adds a part to the time of a sum.
pub(super) fn lanes(kernels: &Kernels, batch: usize, count: [usize; 2], turning: f64) -> usize {
    let columns = kernels.columns();
    let useful = (count[0] * count[1]) as f64;
    let flat = (count[0] * (count[1] + 1)) as f64;
    let alone = useful / ((flat / columns as f64).ceil() * columns as f64);
    let side_by_side = |lanes: usize| {
        let filled = batch as f64 / (batch.div_ceil(lanes) * lanes) as f64;
        let row = count[1] * lanes;
        filled * row as f64 / row.next_multiple_of(columns) as f64 / (1.0 + turning)
    };
    [(1, alone)]
        .into_iter()
        .chain([kernels.lanes, columns].map(|lanes| (lanes, side_by_side(lanes))))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(1, |(lanes, _)| lanes)
}

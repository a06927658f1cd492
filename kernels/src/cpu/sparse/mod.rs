//! Products with a sparse weight: only kept weights are visited (sections 5.1, K11, K12 and K3 of the kernels'
//! specification).
//!
//! A panel of a few vectors of positions is summed in registers for one row of the weight after the other: each kept
//! weight is broadcast and multiplies one piece of a plane, which is found by an offset, as in [`super::conv`]. Channels
//! are taken in chunks, so that the pieces of planes that a panel reads stay in the first-level cache while all rows pass.
//! A weight is packed for a shape once and remembers it.
#![allow(unsafe_code)]

mod weight;

use std::ops::Range;
use std::sync::Arc;

pub use self::weight::SparseWeight;
use self::weight::{Key, Packed, Role, pack};
use super::plane::{Layout, Sub, View};
use super::work::{Scratch, Shared, copy, output, parallel, split};
use super::{Finish, Isa, Kernels};
use crate::ConvShape;

/// Floats of planes that one panel's chunk of channels may touch: most of a first-level cache of 32 KiB.
const SLICE: usize = 5632;
/// Kept weights of a row that a chunk should have: fewer would not pay for taking up and laying down the sums.
const RUN: f64 = 32.0;
/// Floats of the planes of one band.
const PLANES: usize = 256 * 1024;
/// What turning images in and out of lanes costs for a position of the result, in kept weights. Measured with AVX-512 on
/// planes 8 to 16 wide.
const TURNED: f64 = 150.0;

/// A convolution's output from a sparse weight, with its bias.
pub fn forward(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    weight: &SparseWeight,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    check(shape, x.len(), shape.input_len(), weight);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), shape.outputs, "one bias per output channel");
    }
    Product::new(isa, shape, Role::Forward, weight).run(x, weight, bias)
}

/// The gradient of a convolution's input from that of its output, `g`, with a sparse weight.
pub fn input_grad(isa: Isa, shape: &ConvShape, g: &[f32], weight: &SparseWeight) -> Vec<f32> {
    check(shape, g.len(), shape.output_len(), weight);
    Product::new(isa, shape, Role::InputGrad, weight).run(g, weight, None)
}

/// The gradient of the kept weights alone, from a convolution's input and its output's gradient; zero elsewhere.
pub fn weight_grad(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    g: &[f32],
    weight: &SparseWeight,
) -> Vec<f32> {
    check(shape, x.len(), shape.input_len(), weight);
    assert_eq!(g.len(), shape.output_len(), "output gradients of {shape:?}");
    Product::new(isa, shape, Role::Forward, weight).sampled(x, g, weight)
}

fn check(shape: &ConvShape, found: usize, expected: usize, weight: &SparseWeight) {
    assert_eq!(found, expected, "activations of {shape:?}");
    let size = (shape.outputs, shape.weight_cols());
    assert_eq!((weight.rows(), weight.cols()), size, "weight of {shape:?}");
}

/// A linear layer's output `[positions, rows]` from `x`, `[positions, cols]`, with its bias.
pub fn linear(isa: Isa, x: &[f32], weight: &SparseWeight, bias: Option<&[f32]>) -> Vec<f32> {
    let (rows, cols) = (weight.rows(), weight.cols());
    if let Some(bias) = bias {
        assert_eq!(bias.len(), rows, "one bias per output");
    }
    assert!(
        if cols == 0 {
            x.is_empty()
        } else {
            x.len().is_multiple_of(cols)
        },
        "{} activations are no rows of {cols}",
        x.len()
    );
    let positions = x.len().checked_div(cols).unwrap_or(0);
    let kernels = isa.kernels();
    let mut result = output(positions * rows);
    if positions * rows == 0 {
        return Vec::new();
    }
    let panels = Panels::new(kernels, positions.div_ceil(kernels.lanes), 1);
    let wide = panels.vectors * kernels.lanes;
    let shape = ConvShape::new(1, [cols, rows], [1, wide], [1; 2]);
    let chunks = chunks(cols, wide, weight.density());
    let key = Key {
        isa,
        role: Role::Forward,
        shape,
    };
    let packed = weight.packed(key, || {
        vec![pack(
            &weight.items(Role::Forward, 1, 1),
            1,
            &chunks,
            wide,
            &[Some(0)],
        )]
    });
    let packed = &packed[0];
    let to = Shared::new(result.as_mut_ptr());
    // Rows whose sums stay in the second-level cache; with few panels, threads share a panel's rows too.
    let threads = rayon::current_num_threads();
    let pieces = if threads == 1 {
        1
    } else {
        (2 * threads).div_ceil(panels.count)
    };
    let parts: Vec<_> = split(rows, rows.div_ceil(pieces)).collect();
    let macs = positions as u64 * weight.nnz() as u64;
    parallel(panels.count * parts.len(), macs, |item| {
        let (panel, part) = (item / parts.len(), &parts[item % parts.len()]);
        let at = panel * wide;
        let n = wide.min(positions - at);
        let mut turned = Scratch::take(cols * wide + LINE);
        let turned = aligned(&mut turned);
        let mut sums = Scratch::take(SUM_ROWS.min(part.len()) * wide);
        // SAFETY: n rows of x, and `turned` has room for as many columns; rows of results belong to this item alone.
        unsafe {
            if n < wide {
                turned.write_bytes(0, cols * wide);
            }
            (kernels.transpose)(x.as_ptr().add(at * cols), cols, n, cols, turned, wide);
            for block in split(part.len(), SUM_ROWS) {
                let first = part.start + block.start;
                for chunk in 0..packed.chunks {
                    let finish = finish(bias, first, chunk);
                    (kernels.sparse[panels.vectors - 1])(
                        block.len(),
                        packed.ends(0, chunk)[first..].as_ptr(),
                        packed.entries.as_ptr(),
                        turned,
                        sums.as_mut_ptr(),
                        wide,
                        finish,
                    );
                }
                let to = to.at(at * rows + first);
                (kernels.transpose)(sums.as_ptr(), wide, block.len(), n, to, rows);
            }
        }
    });
    // SAFETY: panels and parts cover the result.
    unsafe { result.written() }
}

/// Rows whose sums are kept at a time.
const SUM_ROWS: usize = 512;
/// Floats of a cache line: a block of scratch has one to spare, to begin with one.
const LINE: usize = 16;

fn aligned(scratch: &mut Scratch) -> *mut f32 {
    let first = scratch.as_mut_ptr();
    first.wrapping_add(first.align_offset(64).min(LINE))
}

fn finish(bias: Option<&[f32]>, row: usize, chunk: usize) -> Finish {
    Finish {
        resume: chunk > 0,
        bias: bias.map_or(std::ptr::null(), |bias| bias[row..].as_ptr()),
    }
}

/// A run of positions cut into panels of equally many vectors.
#[derive(Debug, Clone, Copy)]
struct Panels {
    count: usize,
    vectors: usize,
}

impl Panels {
    /// Of whole `units`, each of a number of vectors.
    fn new(kernels: &Kernels, units: usize, vectors: usize) -> Self {
        let count = units.div_ceil(kernels.sparse.len() / vectors).max(1);
        let each = units.div_ceil(count).max(1);
        Self {
            count: units.div_ceil(each),
            vectors: each * vectors,
        }
    }
}

/// Chunks of channels of which a panel touches `floats` each.
fn chunks(channels: usize, floats: usize, density_by_taps: f64) -> Vec<Range<usize>> {
    let near = SLICE / floats.max(1);
    let worth = (RUN / density_by_taps.max(1e-9)).min(4.0 * near as f64) as usize;
    let chunks: Vec<_> = split(channels, near.max(worth).max(1)).collect();
    if chunks.is_empty() {
        // Nothing to sum: one pass that stores the bias.
        std::iter::once(0..0).collect()
    } else {
        chunks
    }
}

/// A 1x1 convolution with its rows joined into one, if the planes of an image are one band: they are then copied whole.
fn one_row(shape: ConvShape) -> ConvShape {
    let plane = shape.size[0] * shape.size[1];
    let channels = shape.inputs.max(shape.outputs) / shape.groups;
    if shape.is_pointwise() && channels * plane <= PLANES {
        ConvShape {
            size: [1, plane],
            ..shape
        }
    } else {
        shape
    }
}

struct Product {
    isa: Isa,
    kernels: &'static Kernels,
    shape: ConvShape,
    role: Role,
    view: View,
    /// Result channels of a group.
    rows: usize,
    /// Source channels of a group.
    channels: usize,
    /// Kept weights of a result channel, on average.
    kept: f64,
    /// Whether a plane is a copy of one row.
    one_row: bool,
}

/// A piece of a panel in the result.
#[derive(Clone, Copy)]
struct Piece {
    /// Floats from the panel's start.
    from: usize,
    /// Position in a channel of the result.
    to: usize,
    /// Positions.
    len: usize,
}

impl Product {
    fn new(isa: Isa, shape: &ConvShape, role: Role, weight: &SparseWeight) -> Self {
        let shape = &one_row(*shape);
        let (inputs, outputs) = (shape.inputs / shape.groups, shape.outputs / shape.groups);
        let (view, rows, channels) = match role {
            Role::Forward => (View::forward(shape), outputs, inputs),
            Role::InputGrad => (View::input_grad(shape), inputs, outputs),
        };
        Self {
            isa,
            kernels: isa.kernels(),
            shape: *shape,
            role,
            view,
            rows,
            channels,
            one_row: shape.is_pointwise() && shape.size[0] == 1,
            kept: weight.nnz() as f64 / (shape.groups * rows).max(1) as f64,
        }
    }

    /// Images side by side: 1, unless a sum has so many terms that the vectors which a narrow plane leaves partly empty
    /// would cost more than turning the images.
    fn lanes(&self, sub: &Sub) -> usize {
        let batch = self.shape.batch;
        let kept = self.kept * sub.taps.len() as f64 / self.shape.taps() as f64;
        let [height, width] = sub.count;
        let line = Layout::new(&self.view, height, 1).width;
        let vectors = (height.saturating_sub(1) * line + width).div_ceil(self.kernels.lanes);
        let alone = kept * (vectors * self.kernels.lanes) as f64 / (height * width).max(1) as f64;
        let side_by_side = [self.kernels.lanes, self.kernels.columns()].map(|lanes| {
            let filled = (batch.div_ceil(lanes) * lanes) as f64 / batch as f64;
            (lanes, kept * filled + TURNED)
        });
        [(1, alone)]
            .into_iter()
            .chain(side_by_side)
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(1, |(lanes, _)| lanes)
    }

    fn layout(&self, sub: &Sub) -> Layout {
        let view = &self.view;
        let lanes = self.lanes(sub);
        let [halo, one] = [0, 1]
            .map(|rows| Layout::new(view, rows, lanes).channel * lanes * self.channels.max(1));
        let most = (PLANES.saturating_sub(halo) / (one - halo).max(1)).max(1);
        let height = view.count[0].max(1);
        Layout::new(view, height.div_ceil(height.div_ceil(most)), lanes)
    }

    /// Vectors of the panels of a band.
    fn panels(&self, sub: &Sub, layout: &Layout) -> Panels {
        let lanes = self.kernels.lanes;
        if layout.lanes > 1 {
            Panels::new(self.kernels, sub.count[1], layout.lanes / lanes)
        } else {
            let floats = (layout.rows - 1) * layout.width + sub.count[1];
            Panels::new(self.kernels, floats.div_ceil(lanes), 1)
        }
    }

    fn packed(&self, weight: &SparseWeight) -> Arc<Vec<Packed>> {
        let key = Key {
            isa: self.isa,
            role: self.role,
            shape: self.shape,
        };
        weight.packed(key, || {
            let taps = self.shape.taps();
            let lists = weight.items(self.role, self.shape.groups, taps);
            let pack_sub = |sub: &Sub| {
                let layout = self.layout(sub);
                let panels = self.panels(sub, &layout);
                let offsets = layout.offsets(&self.view, sub, 1);
                let mut places = vec![None; taps];
                for (&(tap, _), offset) in sub.taps.iter().zip(offsets) {
                    places[tap] = Some(offset);
                }
                let reach = self.view.reach;
                let floats = (panels.vectors * self.kernels.lanes + reach[1] * layout.lanes)
                    * (1 + reach[0]);
                let chunks = chunks(self.channels, floats, weight.density() * taps as f64);
                let channel = self.pitch(&layout);
                pack(&lists, self.shape.groups, &chunks, channel, &places)
            };
            self.view.subs.iter().map(pack_sub).collect()
        })
    }

    fn run(&self, source: &[f32], weight: &SparseWeight, bias: Option<&[f32]>) -> Vec<f32> {
        let [height, width] = self.view.result;
        let len = self.shape.batch * self.shape.groups * self.rows * height * width;
        let mut result = output(len);
        if len == 0 {
            return Vec::new();
        }
        let to = Shared::new(result.as_mut_ptr());
        let packed = self.packed(weight);
        let macs =
            weight.nnz() as u64 * self.shape.output_len() as u64 / self.shape.outputs.max(1) as u64;
        for (sub, packed) in self.view.subs.iter().zip(packed.iter()) {
            if !sub.count.contains(&0) {
                self.run_sub(sub, packed, source, bias, macs, to);
            }
        }
        // SAFETY: the phases cover the result, and each was written whole.
        unsafe { result.written() }
    }

    fn run_sub(
        &self,
        sub: &Sub,
        packed: &Packed,
        source: &[f32],
        bias: Option<&[f32]>,
        macs: u64,
        to: Shared,
    ) {
        let layout = self.layout(sub);
        let groups = self.shape.groups;
        let bands: Vec<usize> = (0..sub.count[0]).step_by(layout.rows).collect();
        let items = self.shape.batch.div_ceil(layout.lanes) * groups * bands.len();
        let threads = rayon::current_num_threads();
        // With few items, rows are divided too, and each part fills its own planes.
        let wanted = if threads == 1 || items >= 8 * threads {
            1
        } else {
            (2 * threads).div_ceil(items)
        };
        let parts: Vec<_> = split(self.rows, self.rows.div_ceil(wanted)).collect();
        let panels = self.panels(sub, &layout);
        let wide = panels.vectors * self.kernels.lanes;
        let result_plane = self.view.result[0] * self.view.result[1];
        parallel(items * parts.len(), macs, |item| {
            let (item, part) = (item / parts.len(), &parts[item % parts.len()]);
            let (image, band) = (item / bands.len(), bands[item % bands.len()]);
            let (image, group) = (image / groups * layout.lanes, image % groups);
            let images = layout.lanes.min(self.shape.batch - image);
            let rows = layout.rows.min(sub.count[0] - band);
            let mut planes = Scratch::take(self.planes(&layout));
            let planes = self.fill(&layout, source, (image, images, group, band), &mut planes);
            let mut sums = Scratch::take(part.len() * wide);
            let first = group * self.rows + part.start;
            let channel = image * groups * self.rows + first;
            let to = to.at(channel * result_plane);
            self.each_panel(sub, &layout, band, rows, |at, pieces| {
                for chunk in 0..packed.chunks {
                    let finish = finish(bias, first, chunk);
                    // SAFETY: entries lie in the planes, the panel too or in their slack; `sums` has a panel per row.
                    unsafe {
                        (self.kernels.sparse[panels.vectors - 1])(
                            part.len(),
                            packed.ends(group, chunk)[part.start..].as_ptr(),
                            packed.entries.as_ptr(),
                            planes.add(at),
                            sums.as_mut_ptr(),
                            wide,
                            finish,
                        );
                    }
                }
                for row in 0..part.len() {
                    // SAFETY: the panel's positions of this channel are this thread's alone.
                    unsafe {
                        let from = sums.as_ptr().add(row * wide);
                        self.emit(&layout, from, images, pieces, to.add(row * result_plane));
                    }
                }
            });
        });
    }

    /// Floats from a channel's plane to the next: spread over the sets of the first-level cache, where long planes a
    /// multiple of a page apart would push each other out.
    fn pitch(&self, layout: &Layout) -> usize {
        let mut lines = (layout.channel * layout.lanes).div_ceil(LINE);
        while lines > 11 && (!(11..=53).contains(&(lines % 64)) || lines.is_multiple_of(2)) {
            lines += 1;
        }
        lines * LINE
    }

    /// Floats of the planes of a band, with room for a panel to run over their end.
    fn planes(&self, layout: &Layout) -> usize {
        let panel = self.kernels.sparse.len() * self.kernels.lanes;
        layout.len(&self.view, 1) + self.channels * self.pitch(layout) + panel + LINE
    }

    fn fill(
        &self,
        layout: &Layout,
        source: &[f32],
        (image, images, group, band): (usize, usize, usize, usize),
        planes: &mut Scratch,
    ) -> *mut f32 {
        let plane = self.view.source[0] * self.view.source[1];
        let all = self.shape.groups * self.channels;
        let to = aligned(planes);
        let from = source
            .as_ptr()
            .wrapping_add((image * all + group * self.channels) * plane);
        // SAFETY: these channels and images lie in the source; the planes were made for them.
        unsafe {
            if layout.lanes == 1 && self.one_row {
                (self.kernels.copy)(from, plane, self.channels, plane, to, self.pitch(layout));
            } else {
                for c in 0..self.channels {
                    layout.fill(
                        &self.view,
                        self.kernels,
                        from.add(c * plane),
                        all * plane,
                        images,
                        1,
                        band,
                        to.add(c * self.pitch(layout)),
                    );
                }
            }
        }
        to
    }

    /// Zeros what a panel reads beyond the planes: in a forward pass nobody takes what becomes of it, but a weight's
    /// gradient multiplies it by zero, and an earlier use may have left anything there.
    fn clear_slack(&self, layout: &Layout, to: *mut f32) {
        for c in 0..self.channels {
            let end = c * self.pitch(layout) + layout.channel * layout.lanes;
            let next = if c + 1 == self.channels {
                self.planes(layout) - LINE
            } else {
                (c + 1) * self.pitch(layout)
            };
            // SAFETY: the planes have that length.
            unsafe { to.add(end).write_bytes(0, next - end) };
        }
    }

    /// Calls `work` with each panel's offset in a plane and its pieces in the result.
    fn each_panel(
        &self,
        sub: &Sub,
        layout: &Layout,
        band: usize,
        rows: usize,
        mut work: impl FnMut(usize, &[Piece]),
    ) {
        let panels = self.panels(sub, layout);
        let wide = panels.vectors * self.kernels.lanes;
        let [spread_y, spread_x] = self.view.spread;
        let width = self.view.result[1];
        let place = |y: usize, x: usize| {
            (sub.first[0] + (band + y) * spread_y) * width + sub.first[1] + x * spread_x
        };
        if layout.lanes > 1 {
            for y in 0..rows {
                for at in (0..sub.count[1] * layout.lanes).step_by(wide) {
                    let x = at / layout.lanes;
                    let piece = Piece {
                        from: 0,
                        to: place(y, x),
                        len: (wide / layout.lanes).min(sub.count[1] - x),
                    };
                    work(y * layout.width * layout.lanes + at, &[piece]);
                }
            }
            return;
        }
        let mut pieces = Vec::new();
        for at in (0..(rows - 1) * layout.width + sub.count[1]).step_by(wide) {
            pieces.clear();
            for y in at / layout.width..(at + wide).div_ceil(layout.width).min(rows) {
                let start = (y * layout.width).max(at);
                let end = (y * layout.width + sub.count[1]).min(at + wide);
                if start < end {
                    pieces.push(Piece {
                        from: start - at,
                        to: place(y, start - y * layout.width),
                        len: end - start,
                    });
                }
            }
            work(at, &pieces);
        }
    }

    /// Stores a panel of one channel.
    ///
    /// # Safety
    /// `from` is a panel, `to` the channel in the first of `images` images.
    unsafe fn emit(
        &self,
        layout: &Layout,
        from: *const f32,
        images: usize,
        pieces: &[Piece],
        to: *mut f32,
    ) {
        let (lanes, spread) = (layout.lanes, self.view.spread[1]);
        let [height, width] = self.view.result;
        let image = self.shape.groups * self.rows * height * width;
        for piece in pieces {
            // SAFETY: the caller's; pieces lie in the channel.
            unsafe {
                let (from, to) = (from.add(piece.from), to.add(piece.to));
                match (lanes, spread) {
                    (1, 1) => copy(from, to, piece.len),
                    (_, 1) => {
                        (self.kernels.transpose)(from, lanes, piece.len, images, to, image);
                    }
                    _ => {
                        for x in 0..piece.len {
                            for n in 0..images {
                                *to.add(n * image + x * spread) = *from.add(x * lanes + n);
                            }
                        }
                    }
                }
            }
        }
    }

    fn sampled(&self, x: &[f32], g: &[f32], weight: &SparseWeight) -> Vec<f32> {
        let packed = self.packed(weight);
        let packed = &packed[0];
        let sub = &self.view.subs[0];
        let layout = self.layout(sub);
        let groups = self.shape.groups;
        let panels = self.panels(sub, &layout);
        let wide = panels.vectors * self.kernels.lanes;
        let [height, width] = self.view.result;
        let plane = height * width;
        let image_len = self.shape.outputs * plane;
        let mut sums = vec![0.0f32; packed.entries.len()];
        let to = Shared::new(sums.as_mut_ptr());
        let threads = rayon::current_num_threads();
        let wanted = if threads == 1 {
            1
        } else {
            (2 * threads).div_ceil(groups)
        };
        let parts: Vec<_> = split(self.rows, self.rows.div_ceil(wanted).max(1)).collect();
        let macs = weight.nnz() as u64 * (self.shape.batch * plane) as u64;
        parallel(groups * parts.len(), macs, |item| {
            let (group, part) = (item / parts.len(), &parts[item % parts.len()]);
            let mut planes = Scratch::take(self.planes(&layout));
            let mut turned = Scratch::take(part.len() * wide);
            for image in (0..self.shape.batch).step_by(layout.lanes) {
                let images = layout.lanes.min(self.shape.batch - image);
                for band in (0..sub.count[0]).step_by(layout.rows) {
                    let rows = layout.rows.min(sub.count[0] - band);
                    let planes = self.fill(&layout, x, (image, images, group, band), &mut planes);
                    self.clear_slack(&layout, planes);
                    self.each_panel(sub, &layout, band, rows, |at, pieces| {
                        turned[..part.len() * wide].fill(0.0);
                        for (i, row) in part.clone().enumerate() {
                            let from = image * image_len + (group * self.rows + row) * plane;
                            for piece in pieces {
                                // SAFETY: the piece lies in this channel of these images, and in the panel.
                                unsafe {
                                    let from = g.as_ptr().add(from + piece.to);
                                    let to = turned.as_mut_ptr().add(i * wide + piece.from);
                                    if layout.lanes == 1 {
                                        copy(from, to, piece.len);
                                    } else {
                                        (self.kernels.transpose)(
                                            from,
                                            image_len,
                                            images,
                                            piece.len,
                                            to,
                                            layout.lanes,
                                        );
                                    }
                                }
                            }
                        }
                        for chunk in 0..packed.chunks {
                            let ends = packed.ends(group, chunk);
                            for (i, row) in part.clone().enumerate() {
                                let (first, end) = (ends[row] as usize, ends[row + 1] as usize);
                                // SAFETY: entries lie in the planes; the sums of this row are this thread's alone.
                                unsafe {
                                    (self.kernels.sampled[panels.vectors - 1])(
                                        end - first,
                                        packed.entries.as_ptr().add(first),
                                        planes.add(at),
                                        turned.as_ptr().add(i * wide),
                                        to.at(first),
                                    );
                                }
                            }
                        }
                    });
                }
            }
        });
        let mut result = vec![0.0; self.shape.weight_len()];
        for (sum, &place) in sums.iter().zip(&packed.place) {
            result[place as usize] = *sum;
        }
        result
    }
}

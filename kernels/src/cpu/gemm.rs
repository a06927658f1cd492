//! Matrix products: the blocked core of linear layers, and batched products of strided matrices.
//!
//! Blocks as in Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008): a packed panel of B stays
//! in the first cache, a block of A in the second. Every entry is one chain of multiply-adds in the order of k: how a
//! product is cut into blocks and threads never shows in its bits.
#![allow(unsafe_code)]

use std::ops::Range;

use super::micro::{Bits, MAX_COLUMNS, MAX_ROWS};
use super::work::{Scratch, Shared, output, parallel, prefetch, split};
use super::{Finish, Isa, Kernels, Mask};

/// Steps of k of one pass: a panel of B, this deep, takes three quarters of a first-level cache of 32 KiB.
const DEPTH: usize = 384;
/// Columns of B packed at a time: with `DEPTH` rows, 1.5 MiB, read back once per block of A.
const COLUMNS: usize = 1024;
/// Rows of B that are read side by side: few enough for a processor's prefetcher to follow.
const ALONG: usize = 16;
/// Panels of A of one pass: with `DEPTH` columns, 288 KiB of a second-level cache.
const PANELS: usize = 32;
/// Fewer panels of B than this do not repay packing A: where its rows are contiguous, and where they are not.
const REPAY: [usize; 2] = [16, 4];
/// Panels of a result after which its mask is applied, while it is in the first cache.
const MASKED: usize = 5;
/// Results beyond these lie outside of a second-level cache, and are asked for ahead.
const FAR: usize = 64 * 1024;
/// Multiply-adds of a work item that outweigh handing it to a thread.
const ITEM: u64 = 100_000;

/// A batch of matrices in one slice, at any strides.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Where each matrix of the batch has its element [0, 0]; places may repeat.
    pub offsets: &'a [usize],
    /// Distance between rows and between columns; zero or negative ones are as good as others.
    pub strides: [isize; 2],
}

impl Operand<'_> {
    /// Every element that the kernels will read exists.
    fn check(&self, what: &str, [rows, columns]: [usize; 2]) {
        if rows == 0 || columns == 0 {
            return;
        }
        let reach = [rows, columns].map(|n| (n - 1) as i128);
        let ends = [0, 1].map(|d| reach[d] * self.strides[d] as i128);
        let low: i128 = ends.iter().map(|&end| end.min(0)).sum();
        let high: i128 = ends.iter().map(|&end| end.max(0)).sum();
        for &offset in self.offsets {
            let (low, high) = (offset as i128 + low, offset as i128 + high);
            assert!(
                low >= 0 && high < self.data.len() as i128,
                "{what} reaches from {low} to {high} in {} elements",
                self.data.len()
            );
        }
    }

    fn at(&self, batch: usize) -> Matrix {
        Matrix {
            first: self.data.as_ptr().wrapping_add(self.offsets[batch]),
            strides: self.strides,
        }
    }
}

/// `c[i] = a[i] b[i]` for a batch of `a [m, k]` and `b [k, n]`; the result `[batch, m, n]` is contiguous.
pub fn matmul(isa: Isa, [m, k, n]: [usize; 3], a: Operand, b: Operand) -> Vec<f32> {
    let batch = a.offsets.len();
    assert_eq!(batch, b.offsets.len(), "matrices of a and b in the batch");
    a.check("a", [m, k]);
    b.check("b", [k, n]);
    let product = Product {
        kernels: isa.kernels(),
        size: [m, k, n],
        kept: Kept::All,
        bias: None,
        result_mask: None,
    };
    // One matrix times a stack of others that lie below each other is one product.
    let stacked = a
        .offsets
        .windows(2)
        .all(|pair| pair[1] as i128 - pair[0] as i128 == m as i128 * a.strides[0] as i128);
    if batch > 1 && stacked && b.offsets.iter().all(|&offset| offset == b.offsets[0]) {
        let product = Product {
            size: [batch * m, k, n],
            ..product
        };
        return product.run(1, |_| [a.at(0), b.at(0)]);
    }
    product.run(batch, |i| [a.at(i), b.at(i)])
}

/// A matrix at any strides.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub first: *const f32,
    pub strides: [isize; 2],
}

impl Matrix {
    /// Contiguous rows of `columns`.
    pub fn rows_of(data: &[f32], columns: usize) -> Self {
        Self {
            first: data.as_ptr(),
            strides: [columns as isize, 1],
        }
    }

    pub fn transposed(self) -> Self {
        Self {
            strides: [self.strides[1], self.strides[0]],
            ..self
        }
    }

    /// Address of an element; reaching it is for those who know that it exists.
    fn at(&self, row: usize, column: usize) -> *const f32 {
        let at = row as isize * self.strides[0] + column as isize * self.strides[1];
        self.first.wrapping_offset(at)
    }
}

/// Which elements of B exist.
#[derive(Clone, Copy)]
pub(super) enum Kept<'a> {
    All,
    /// The mask's rows are rows of B.
    Along(Mask<'a>),
    /// The mask's rows are columns of B.
    Across(Mask<'a>),
}

/// `c = a b` with everything that linear layers need around it.
pub(super) struct Product<'a> {
    pub kernels: &'static Kernels,
    /// m, k, n.
    pub size: [usize; 3],
    pub kept: Kept<'a>,
    /// Bias per column.
    pub bias: Option<&'a [f32]>,
    /// Rows of this mask are columns of the result; what it prunes is +0.
    pub result_mask: Option<Mask<'a>>,
}

/// The part of one product that a thread computes.
struct Item<'a> {
    a: Matrix,
    b: Matrix,
    /// First of all rows and columns of the result.
    c: Shared,
    rows: &'a Range<usize>,
    columns: &'a Range<usize>,
}

impl Product<'_> {
    /// The results of `batch` products. Every operand holds `size`.
    pub fn run(&self, batch: usize, operands: impl Fn(usize) -> [Matrix; 2] + Sync) -> Vec<f32> {
        let [m, k, n] = self.size;
        if batch * m * n == 0 {
            return Vec::new();
        }
        let mut result = output(batch * m * n);
        let to = Shared::new(result.as_mut_ptr());
        let each = (m * n) as u64 * k.max(1) as u64;
        let (rows, columns) = self.cut(batch, each);
        let pieces = rows.len() * columns.len();
        // Small products share an item.
        let together = if pieces > 1 {
            1
        } else {
            (ITEM / each.max(1)).clamp(1, batch as u64) as usize
        };
        let groups: Vec<_> = split(batch, together).collect();
        parallel(groups.len() * pieces, batch as u64 * each, |item| {
            let (group, piece) = (item / pieces, item % pieces);
            for i in groups[group].clone() {
                let [a, b] = operands(i);
                self.compute(&Item {
                    a,
                    b,
                    c: Shared::new(to.at(i * m * n)),
                    rows: &rows[piece % rows.len()],
                    columns: &columns[piece / rows.len()],
                });
            }
        });
        // SAFETY: the pieces cover every product.
        unsafe { result.written() }
    }

    /// Ranges of rows and of columns: enough pieces for all threads, and as little as possible packed twice.
    fn cut(&self, batch: usize, each: u64) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
        let [m, _, n] = self.size;
        let width = self.kernels.columns();
        let (panels, columns) = (m.div_ceil(self.kernels.rows), n.div_ceil(width));
        let threads = rayon::current_num_threads();
        let wanted = if threads == 1 || batch >= 8 * threads {
            1
        } else {
            let most = (each / ITEM).max(1) as usize;
            (2 * threads).div_ceil(batch).min(most)
        };
        let (by_row, by_column) = (1..=wanted.min(panels))
            .map(|by_row| (by_row, wanted.div_ceil(by_row).min(columns)))
            // Packing B costs about twice what packing A does.
            .min_by_key(|&(by_row, by_column)| {
                let missing = wanted.saturating_sub(by_row * by_column);
                (missing, 2 * by_row * n + by_column * m)
            })
            .unwrap_or((1, 1));
        let tiles = |n: usize, unit: usize, parts: usize| -> Vec<Range<usize>> {
            let units = n.div_ceil(unit);
            split(units, units.div_ceil(parts))
                .map(|range| range.start * unit..(range.end * unit).min(n))
                .collect()
        };
        (
            tiles(m, self.kernels.rows, by_row),
            tiles(n, width, by_column),
        )
    }

    fn compute(&self, item: &Item) {
        let [m, k, n] = self.size;
        let width = self.kernels.columns();
        let far = m * n > FAR;
        let in_place = self.b_in_place(item);
        let mut depths: Vec<_> = split(k, if in_place { ALONG } else { DEPTH }).collect();
        if depths.is_empty() {
            // Nothing to sum: one pass that stores the bias.
            depths.push(0..0);
        }
        let deepest = depths.iter().map(Range::len).max().unwrap_or(0);
        let panels: Vec<_> = split(item.rows.len(), self.kernels.rows)
            .map(|panel| panel.start + item.rows.start..panel.end + item.rows.start)
            .collect();
        let widest = item.columns.len().min(COLUMNS);
        let pack_a = self.pack_a(item);
        let mut packed_b = Scratch::take(if in_place {
            0
        } else {
            deepest * widest.next_multiple_of(width)
        });
        let mut packed_a = Scratch::take(if pack_a {
            PANELS * self.kernels.rows * deepest
        } else {
            0
        });
        for depth in &depths {
            let (first, last) = (depth.start == 0, depth.end == k);
            for begin in item.columns.clone().step_by(COLUMNS) {
                let columns = begin..(begin + COLUMNS).min(item.columns.end);
                if !in_place {
                    self.pack_b(item, depth, &columns, packed_b.as_mut_ptr());
                }
                for panels in panels.chunks(PANELS) {
                    if pack_a {
                        let mut to = packed_a.as_mut_ptr();
                        for panel in panels {
                            self.pack_panel(item, panel, depth, to);
                            to = to.wrapping_add(panel.len() * depth.len());
                        }
                    }
                    for (j, column) in columns.clone().step_by(width).enumerate() {
                        let (b, ldb) = if in_place {
                            let ldb = item.b.strides[0] as usize;
                            (item.b.at(depth.start, column), ldb)
                        } else {
                            let at = j * depth.len() * width;
                            (packed_b.as_ptr().wrapping_add(at), width)
                        };
                        let n_here = width.min(columns.end - column);
                        let tile = Tile {
                            depth: depth.len(),
                            b,
                            ldb,
                            columns: n_here,
                            finish: Finish {
                                resume: !first,
                                bias: self.bias.map_or(std::ptr::null(), |bias| {
                                    bias[column..column + n_here].as_ptr()
                                }),
                            },
                        };
                        let mut at = 0;
                        for panels in panels.chunks(MASKED) {
                            for panel in panels {
                                let (a, strides) = if pack_a {
                                    let a = packed_a.as_ptr().wrapping_add(at);
                                    (a, [1, panel.len() as isize])
                                } else {
                                    (item.a.at(panel.start, depth.start), item.a.strides)
                                };
                                at += panel.len() * depth.len();
                                if far {
                                    let next = panel.end + self.kernels.rows;
                                    for row in panel.end..next.min(item.rows.end) {
                                        let c = item.c.at(row * n + column);
                                        prefetch::<true>(c);
                                        prefetch::<true>(c.wrapping_add(n_here - 1));
                                    }
                                }
                                let c = item.c.at(panel.start * n + column);
                                // SAFETY: the panel's rows and these columns belong to this item, A's panel and B's are
                                // whole.
                                unsafe { tile.run(self.kernels, a, strides, panel.len(), c, n) };
                            }
                            if let (true, Some(mask)) = (last, self.result_mask) {
                                let rows = panels[0].start..panels[panels.len() - 1].end;
                                let c = item.c.at(rows.start * n + column);
                                let bits = bits(mask, column, rows.start);
                                // SAFETY: as above; the mask has a row for each column and a column for each row.
                                unsafe {
                                    (self.kernels.keep_across)(c, n, rows.len(), n_here, bits, c, n)
                                };
                            }
                        }
                    }
                }
            }
        }
    }

    /// Whether A is worth packing: tiles read any strides, but not all of them fast.
    fn pack_a(&self, item: &Item) -> bool {
        let repay = REPAY[usize::from(item.a.strides[1] != 1)];
        item.columns.len().div_ceil(self.kernels.columns()) >= repay
    }

    /// Whether B is read where it lies: rows of whole vectors, and hardly any reuse.
    fn b_in_place(&self, item: &Item) -> bool {
        matches!(self.kept, Kept::All)
            && item.b.strides[1] == 1
            && item.b.strides[0] > 0
            && item.columns.len().is_multiple_of(self.kernels.lanes)
            && item.rows.len() <= self.kernels.rows
    }

    /// `to[panel][k][column]`, masked, zero beyond the last column.
    fn pack_b(&self, item: &Item, depth: &Range<usize>, columns: &Range<usize>, to: *mut f32) {
        let width = self.kernels.columns();
        let b = &item.b;
        let panel = |column: usize| to.wrapping_add((column - columns.start) * depth.len());
        if !columns.len().is_multiple_of(width) {
            let last = columns.end / width * width;
            // SAFETY: there is room for whole panels.
            unsafe { panel(last).write_bytes(0, depth.len() * width) };
        }
        let whole = Bits {
            words: std::ptr::null(),
            per_row: 0,
            row: 0,
            col: 0,
        };
        // Where rows are contiguous, a few at a time: they are read along, and a panel is written in long pieces.
        let step = if b.strides[1] == 1 {
            ALONG
        } else {
            depth.len()
        };
        for begin in depth.clone().step_by(step.max(1)) {
            let rows = begin..(begin + step).min(depth.end);
            for column in columns.clone().step_by(width) {
                let n = width.min(columns.end - column);
                let to = panel(column).wrapping_add((rows.start - depth.start) * width);
                let from = b.at(rows.start, column);
                // SAFETY: rows and columns lie in B and in its mask, and the panel has room for them.
                unsafe {
                    match b.strides {
                        [stride, 1] if stride > 0 => {
                            let bits = match self.kept {
                                Kept::Across(mask) => bits(mask, column, rows.start),
                                _ => whole,
                            };
                            let ldf = stride as usize;
                            (self.kernels.keep_across)(from, ldf, rows.len(), n, bits, to, width);
                        }
                        [1, stride] if stride > 0 => {
                            (self.kernels.transpose)(
                                from,
                                stride as usize,
                                n,
                                rows.len(),
                                to,
                                width,
                            );
                        }
                        strides => {
                            for i in 0..rows.len() {
                                for j in 0..n {
                                    let at = i as isize * strides[0] + j as isize * strides[1];
                                    *to.add(i * width + j) = *from.wrapping_offset(at);
                                }
                            }
                        }
                    }
                    if let Kept::Along(mask) = self.kept {
                        let bits = bits(mask, rows.start, column);
                        (self.kernels.keep_along)(to, width, rows.len(), n, bits, to, width);
                    }
                }
            }
        }
    }

    /// `to[k][row]`.
    fn pack_panel(&self, item: &Item, rows: &Range<usize>, depth: &Range<usize>, to: *mut f32) {
        let n = rows.len();
        let from = item.a.at(rows.start, depth.start);
        // SAFETY: rows and depth lie in A, and the panel has room for them.
        unsafe {
            match item.a.strides {
                [stride, 1] if stride > 0 => (self.kernels.pack)(
                    from,
                    stride as usize,
                    n,
                    depth.len(),
                    std::ptr::null(),
                    0,
                    0,
                    to,
                ),
                strides => {
                    // Vectors run over into the next step of k, which is written next; not over the ends.
                    const WIDE: usize = MAX_ROWS.next_multiple_of(8);
                    let wide = strides[0] == 1 && rows.start + WIDE <= self.size[0];
                    let long = if wide {
                        depth.len().saturating_sub(WIDE.div_ceil(n))
                    } else {
                        0
                    };
                    for k in 0..long {
                        let from = from.wrapping_offset(k as isize * strides[1]);
                        to.add(k * n).copy_from_nonoverlapping(from, WIDE);
                    }
                    for k in long..depth.len() {
                        for i in 0..n {
                            let at = k as isize * strides[1] + i as isize * strides[0];
                            *to.add(k * n + i) = *from.wrapping_offset(at);
                        }
                    }
                }
            }
        }
    }
}

fn bits(mask: Mask, row: usize, col: usize) -> Bits {
    Bits {
        words: mask.words.as_ptr(),
        per_row: mask.words_per_row(),
        row,
        col,
    }
}

/// What tiles of one panel of B have in common.
struct Tile {
    depth: usize,
    b: *const f32,
    ldb: usize,
    columns: usize,
    finish: Finish,
}

impl Tile {
    /// A tile of `rows` rows, through a buffer where the result is narrower than vectors are.
    ///
    /// # Safety
    /// `a` holds `rows` by `depth` values, `b` whole vectors of as many rows, `c` `rows` by `columns` values, and the bias
    /// `columns` of them.
    #[inline]
    unsafe fn run(
        &self,
        kernels: &Kernels,
        a: *const f32,
        strides: [isize; 2],
        rows: usize,
        c: *mut f32,
        ldc: usize,
    ) {
        let vectors = self.columns.div_ceil(kernels.lanes);
        let gemm = kernels.gemm[rows - 1][vectors - 1];
        // SAFETY: the caller's; the buffer holds the largest tile.
        unsafe {
            if self.columns == vectors * kernels.lanes {
                return gemm(
                    self.depth,
                    a,
                    strides,
                    self.b,
                    self.ldb,
                    c,
                    ldc,
                    self.finish,
                );
            }
            let mut buffer = [0.0f32; MAX_ROWS * MAX_COLUMNS];
            let mut bias = [0.0f32; MAX_COLUMNS];
            let mut finish = self.finish;
            if !finish.bias.is_null() {
                bias.as_mut_ptr()
                    .copy_from_nonoverlapping(finish.bias, self.columns);
                finish.bias = bias.as_ptr();
            }
            let buffer = buffer.as_mut_ptr();
            if finish.resume {
                for i in 0..rows {
                    buffer
                        .add(i * MAX_COLUMNS)
                        .copy_from_nonoverlapping(c.add(i * ldc), self.columns);
                }
            }
            gemm(
                self.depth,
                a,
                strides,
                self.b,
                self.ldb,
                buffer,
                MAX_COLUMNS,
                finish,
            );
            for i in 0..rows {
                c.add(i * ldc)
                    .copy_from_nonoverlapping(buffer.add(i * MAX_COLUMNS), self.columns);
            }
        }
    }
}

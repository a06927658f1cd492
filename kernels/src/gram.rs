//! Gram sums `H += X X^T` over calibration batches (K13 of the specification), for linear layers and convolutions.
//!
//! X's rows are the columns of the weight: a convolution's im2col view is gathered chunk by chunk, at most [`CHUNK`]
//! positions of it exist at a time. Products are summed in f32 within a chunk and in f64 across chunks and batches. Every
//! sum belongs to one task and runs over positions in order, so the bits do not depend on the threads.

use crate::columns::{check_conv, check_linear, place, reach};
use crate::{ConvShape, KernelError};
use rayon::prelude::*;

/// Positions per f32 sum.
const CHUNK: usize = 256;
/// Columns of a panel: the gathered activations lie `[panel][position][WIDTH]`.
const WIDTH: usize = 16;
/// Rows of a register tile; divides WIDTH. 4 x 16 leaves room for its eight 8-wide sums in sixteen registers.
const TALL: usize = 4;
/// Below this many multiply-adds threads cost more than they save.
const SERIAL: usize = 250_000;

/// The running sums of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct GramState {
    groups: usize,
    cols: usize,
    positions: u64,
    /// `[groups, cols, cols]`, valid on and above the diagonal.
    upper: Vec<f64>,
}

impl GramState {
    /// Zero sums for a weight with `cols` columns in each of `groups` groups; 1 group for a linear layer.
    ///
    /// A group takes `8 cols^2` bytes.
    pub fn new(groups: usize, cols: usize) -> Result<Self, KernelError> {
        let len = cols
            .checked_mul(cols)
            .and_then(|square| square.checked_mul(groups))
            .filter(|&len| len <= isize::MAX as usize / size_of::<f64>());
        let Some(len) = len else {
            return Err(KernelError::Shape {
                shape: vec![groups, cols, cols],
            });
        };
        Ok(Self {
            groups,
            cols,
            positions: 0,
            upper: vec![0.0; len],
        })
    }

    /// Zero sums for a convolution.
    pub fn for_conv(shape: &ConvShape) -> Result<Self, KernelError> {
        shape.validate()?;
        Self::new(shape.groups, shape.weight_cols())
    }

    /// Sums that were taken elsewhere: `[groups, cols, cols]`, of which the upper triangles count.
    #[cfg(feature = "gpu")]
    pub(crate) fn of_upper(groups: usize, cols: usize, positions: u64, upper: Vec<f64>) -> Self {
        Self {
            groups,
            cols,
            positions,
            upper,
        }
    }

    /// Groups.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Columns of the weight: side of each group's matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Positions summed so far: rows of the linear activations, or images times output positions.
    pub fn positions(&self) -> u64 {
        self.positions
    }

    /// Adds a batch of a linear layer's inputs.
    ///
    /// # Shapes
    /// `x`: `[positions, cols]`.
    pub fn add_linear(&mut self, x: &[f32], positions: usize) -> Result<(), KernelError> {
        check_linear([self.groups, self.cols], x, positions)?;
        let cols = self.cols;
        self.add(positions, |_, first, panel, out: &mut [f32]| {
            let from = panel * WIDTH;
            let width = WIDTH.min(cols - from);
            for (p, out) in out.chunks_exact_mut(WIDTH).enumerate() {
                out[..width].copy_from_slice(&x[(first + p) * cols + from..][..width]);
            }
        });
        Ok(())
    }

    /// Adds a batch of a convolution's inputs; padding counts as zeros.
    ///
    /// # Shapes
    /// `x`: NCHW.
    pub fn add_conv(&mut self, x: &[f32], shape: &ConvShape) -> Result<(), KernelError> {
        let positions = check_conv([self.groups, self.cols], x, shape)?;
        self.add(positions, |group, first, panel, out: &mut [f32]| {
            let from = panel * WIDTH;
            for col in from..shape.weight_cols().min(from + WIDTH) {
                gather(x, shape, group, col, first, &mut out[col - from..]);
            }
        });
        Ok(())
    }

    /// `gather(group, first position, panel, out [positions, WIDTH])` fills in what is not padding of a zeroed panel.
    fn add(&mut self, positions: usize, gather: impl Fn(usize, usize, usize, &mut [f32]) + Sync) {
        self.positions += positions as u64;
        let cols = self.cols;
        if cols == 0 || positions == 0 {
            return;
        }
        let panels = cols.div_ceil(WIDTH);
        let one_group = |group: usize, upper: &mut [f64]| {
            let mut x = vec![0.0f32; panels * CHUNK.min(positions) * WIDTH];
            for first in (0..positions).step_by(CHUNK) {
                let depth = CHUNK.min(positions - first);
                let serial = depth * cols * cols / 2 < SERIAL;
                let x = &mut x[..panels * depth * WIDTH];
                each_chunk(x, depth * WIDTH, serial, |panel, out| {
                    out.fill(0.0);
                    gather(group, first, panel, out);
                });
                let x = &*x;
                each_chunk(upper, WIDTH * cols, serial, |panel, upper| {
                    add_strip(x, depth, panel, cols, upper);
                });
            }
        };
        // Depthwise layers have many groups of a few columns each: there the groups are the parallel work.
        let serial = positions * cols * cols / 2 * self.groups < SERIAL;
        let mut all_groups = || each_chunk(&mut self.upper, cols * cols, serial, one_group);
        if serial {
            all_groups();
        } else {
            // Enters the pool once, not twice per chunk: a thread outside of it sleeps through every parallel loop.
            rayon::scope(|_| all_groups());
        }
    }

    /// One group's sums, `[cols, cols]`, both triangles.
    ///
    /// Panics where the group does not exist, as indexing does.
    pub fn matrix(&self, group: usize) -> Vec<f64> {
        assert!(group < self.groups, "group {group} of {}", self.groups);
        let upper = &self.upper[group * self.cols * self.cols..][..self.cols * self.cols];
        let mut full = upper.to_vec();
        for i in 0..self.cols {
            for j in 0..i {
                full[i * self.cols + j] = upper[j * self.cols + i];
            }
        }
        full
    }

    /// One group's diagonal: the squared norm of each column's inputs.
    ///
    /// Panics where the group does not exist, as indexing does.
    pub fn diagonal(&self, group: usize) -> Vec<f64> {
        assert!(group < self.groups, "group {group} of {}", self.groups);
        let upper = &self.upper[group * self.cols * self.cols..];
        (0..self.cols).map(|i| upper[i * self.cols + i]).collect()
    }
}

/// Calls `work` on every chunk of `data`, the last one possibly shorter.
fn each_chunk<T: Send>(
    data: &mut [T],
    len: usize,
    serial: bool,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    if serial {
        data.chunks_mut(len)
            .enumerate()
            .for_each(|(i, c)| work(i, c));
    } else {
        data.par_chunks_mut(len)
            .enumerate()
            .for_each(|(i, c)| work(i, c));
    }
}

/// Writes one im2col column at the positions from `first` on, every WIDTH-th place of `out`; leaves padding alone.
fn gather(x: &[f32], shape: &ConvShape, group: usize, col: usize, first: usize, out: &mut [f32]) {
    let [height, width] = shape.size;
    let [out_height, out_width] = shape.out_size();
    let (c, tap) = (col / shape.taps(), col % shape.taps());
    let channel = group * (shape.inputs / shape.groups) + c;
    let [u, v] = [tap / shape.kernel[1], tap % shape.kernel[1]];
    let (rows, columns) = (reach(shape, 0, u), reach(shape, 1, v));
    // `out` begins at this column's lane, so its length may lack the lanes before it.
    let count = out.len().div_ceil(WIDTH);
    let mut p = 0;
    while p < count {
        let at = first + p;
        let (image, y, from) = (
            at / (out_height * out_width),
            at / out_width % out_height,
            at % out_width,
        );
        let run = (out_width - from).min(count - p);
        if rows.contains(&y) {
            let y = place(shape, 0, u, y);
            let row = &x[((image * shape.inputs + channel) * height + y) * width..][..width];
            for j in columns.start.max(from)..columns.end.min(from + run) {
                out[(p + j - from) * WIDTH] = row[place(shape, 1, v, j)];
            }
        }
        p += run;
    }
}

/// Adds a chunk's products to the rows of one panel of the upper triangle.
///
/// # Shapes
/// `x`: `[panels, depth, WIDTH]`; `upper`: `[WIDTH, cols]` or the fewer rows that are left.
fn add_strip(x: &[f32], depth: usize, panel: usize, cols: usize, upper: &mut [f64]) {
    let mut panels = x
        .chunks_exact(depth * WIDTH)
        .enumerate()
        .skip(panel)
        .peekable();
    let Some(&(_, left)) = panels.peek() else {
        return;
    };
    for (right_panel, right) in panels {
        let first = right_panel * WIDTH;
        let width = WIDTH.min(cols - first);
        for (at, rows) in upper.chunks_mut(TALL * cols).enumerate() {
            let tile = tile(left, at * TALL, right);
            for (row, sums) in rows.chunks_mut(cols).zip(&tile) {
                for (h, &sum) in row[first..first + width].iter_mut().zip(sums) {
                    *h += f64::from(sum);
                }
            }
        }
    }
}

type Tile = [[f32; WIDTH]; TALL];

/// Sums over positions of TALL lanes of one panel times all lanes of another.
fn tile(left: &[f32], lane: usize, right: &[f32]) -> Tile {
    #[cfg(target_arch = "x86_64")]
    if let Some(tile) = x86::tile(left, lane, right) {
        return tile;
    }
    tile_generic::<false>(left, lane, right)
}

#[inline(always)]
fn tile_generic<const FUSED: bool>(left: &[f32], lane: usize, right: &[f32]) -> Tile {
    let mut sums = [[0.0f32; WIDTH]; TALL];
    for (a, b) in left.chunks_exact(WIDTH).zip(right.chunks_exact(WIDTH)) {
        let a: &[f32; TALL] = a[lane..].first_chunk().expect("TALL divides WIDTH");
        let b: &[f32; WIDTH] = b.first_chunk().expect("a chunk of WIDTH");
        for (sums, &a) in sums.iter_mut().zip(a) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = if FUSED {
                    a.mul_add(b, *sum)
                } else {
                    *sum + a * b
                };
            }
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(unsafe_code)]
    use super::{Tile, tile_generic};

    /// The same loop compiled for AVX2 with fused multiply-adds; None where the processor lacks them.
    pub(super) fn tile(left: &[f32], lane: usize, right: &[f32]) -> Option<Tile> {
        #[target_feature(enable = "avx2,fma")]
        fn wide(left: &[f32], lane: usize, right: &[f32]) -> Tile {
            tile_generic::<true>(left, lane, right)
        }
        let there = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        // SAFETY: `wide` is safe code whose only demand is a processor with AVX2 and FMA, just asked for.
        there.then(|| unsafe { wide(left, lane, right) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LinearShape;
    use crate::reference::{self, conv_shapes, values};
    use proptest::prelude::*;

    /// The largest error over its bound; f32 sums run over one chunk at most.
    fn worst(state: &GramState, group: usize, exact: &reference::Product, positions: usize) -> f64 {
        let got: Vec<f32> = state.matrix(group).iter().map(|&v| v as f32).collect();
        exact.worst(&got, positions.min(CHUNK))
    }

    proptest! {
        #[test]
        fn linear_sums_are_exact_to_rounding(p in 0usize..600, c in 0usize..70, cut in 0.0f64..1.0, seed in 0u64..1000) {
            let x = values(seed, p * c);
            let exact = reference::gram(&x, [p, c]);
            let mut state = GramState::new(1, c).unwrap();
            // In two batches.
            let first = (p as f64 * cut) as usize;
            state.add_linear(&x[..first * c], first).unwrap();
            state.add_linear(&x[first * c..], p - first).unwrap();
            prop_assert_eq!(state.positions(), p as u64);
            prop_assert!(worst(&state, 0, &exact, p) <= 1.0);
            let matrix = state.matrix(0);
            for i in 0..c {
                prop_assert_eq!(state.diagonal(0)[i], matrix[i * c + i]);
                for j in 0..c {
                    prop_assert_eq!(matrix[i * c + j], matrix[j * c + i]);
                }
            }
        }

        #[test]
        fn convolution_sums_are_those_of_its_columns(shape in conv_shapes(), seed in 0u64..1000) {
            let x = values(seed, shape.input_len());
            let mut state = GramState::for_conv(&shape).unwrap();
            state.add_conv(&x, &shape).unwrap();
            let positions = shape.batch * shape.out_size().iter().product::<usize>();
            prop_assert_eq!(state.positions(), positions as u64);
            for group in 0..shape.groups {
                let columns = reference::im2col(&x, group, &shape);
                let exact = reference::gram(&columns, [positions, shape.weight_cols()]);
                prop_assert!(worst(&state, group, &exact, positions) <= 1.0);
            }
        }
    }

    #[test]
    fn a_convolution_of_several_chunks() {
        let shape = ConvShape::new(3, [6, 2], [17, 15], [3, 3])
            .with_padding([1, 1])
            .with_groups(2);
        let x = values(1, shape.input_len());
        let mut state = GramState::for_conv(&shape).unwrap();
        state.add_conv(&x, &shape).unwrap();
        for group in 0..2 {
            let columns = reference::im2col(&x, group, &shape);
            let exact = reference::gram(&columns, [3 * 17 * 15, 27]);
            assert!(worst(&state, group, &exact, CHUNK) <= 1.0);
        }
    }

    #[test]
    fn the_portable_tile_agrees() {
        let (left, right) = (values(1, CHUNK * WIDTH), values(2, CHUNK * WIDTH));
        for lane in (0..WIDTH).step_by(TALL) {
            let pick = |x: &[f32], lane: usize, width: usize| -> Vec<f32> {
                x.chunks(WIDTH)
                    .flat_map(|row| row[lane..lane + width].to_vec())
                    .collect()
            };
            let shape = LinearShape {
                positions: CHUNK,
                rows: TALL,
                cols: WIDTH,
            };
            let exact = reference::linear_dw(&pick(&left, lane, TALL), &right, None, shape);
            for got in [
                tile(&left, lane, &right),
                tile_generic::<false>(&left, lane, &right),
            ] {
                assert!(exact.worst(got.as_flattened(), CHUNK) <= 1.0);
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let shape = ConvShape::new(2, [40, 40], [20, 20], [3, 3]).with_padding([1, 1]);
        let x = values(1, shape.input_len());
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                let mut state = GramState::for_conv(&shape).unwrap();
                state.add_conv(&x, &shape).unwrap();
                state.add_conv(&x, &shape).unwrap();
                state
            })
        };
        let one = run(1);
        for again in 0..20 {
            assert!(run([2, 8][again % 2]) == one);
        }
    }

    #[test]
    fn mismatches_are_refused() {
        let shape = ConvShape::new(1, [4, 4], [3, 3], [2, 2]);
        let mut state = GramState::for_conv(&shape).unwrap();
        assert!(state.add_conv(&[0.0; 35], &shape).is_err());
        assert!(state.add_conv(&[0.0; 36], &shape.with_groups(2)).is_err());
        assert!(state.add_linear(&[0.0; 17], 1).is_err());
        assert!(
            GramState::new(2, 4)
                .unwrap()
                .add_linear(&[0.0; 4], 1)
                .is_err()
        );
        assert!(GramState::new(1, usize::MAX).is_err());
        assert!(GramState::new(1 << 40, 1 << 20).is_err());
        assert_eq!(state, GramState::for_conv(&shape).unwrap());
        // NaN in an input shows.
        state.add_conv(&[f32::NAN; 36], &shape).unwrap();
        assert!(state.matrix(0).iter().all(|v| v.is_nan()));
    }
}

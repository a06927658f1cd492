//! Sums and squares of what a layer reads, column by column of its weight, over calibration batches: the diagonal of
//! [`GramState`](crate::GramState) and the means beside it, without the square of the columns in memory.
//!
//! A convolution's columns are those of its im2col view, padding counted as zeros. Sums are f64, each belongs to one task
//! and runs over positions in order, so the bits do not depend on the threads.

use rayon::prelude::*;

use crate::columns::{check_conv, check_linear, place, reach};
use crate::{ConvShape, KernelError};

/// The running sums of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSums {
    groups: usize,
    cols: usize,
    positions: u64,
    /// `[groups, cols]`: sum and sum of squares.
    sums: Vec<[f64; 2]>,
}

impl ColumnSums {
    /// Zero sums for a weight with `cols` columns in each of `groups` groups; 1 group for a linear layer.
    pub fn new(groups: usize, cols: usize) -> Self {
        Self {
            groups,
            cols,
            positions: 0,
            sums: vec![[0.0; 2]; groups * cols],
        }
    }

    /// Zero sums for a convolution.
    pub fn for_conv(shape: &ConvShape) -> Self {
        Self::new(shape.groups, shape.weight_cols())
    }

    /// Columns of the weight.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Groups of columns.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Positions summed so far: rows of the linear activations, or images times output positions.
    pub fn positions(&self) -> u64 {
        self.positions
    }

    /// Mean of each column, `[groups, cols]`; zeros before anything was added.
    pub fn means(&self) -> Vec<f64> {
        let positions = self.positions.max(1) as f64;
        self.sums.iter().map(|[sum, _]| sum / positions).collect()
    }

    /// Sum of squares of each column, `[groups, cols]`: the diagonal of the Gram sums.
    pub fn squares(&self) -> Vec<f64> {
        self.sums.iter().map(|[_, square]| *square).collect()
    }

    /// Adds a batch of a linear layer's inputs.
    ///
    /// # Shapes
    /// `x`: `[positions, cols]`.
    pub fn add_linear(&mut self, x: &[f32], positions: usize) -> Result<(), KernelError> {
        /// Columns that a task walks down together, a cache line or two.
        const TOGETHER: usize = 32;
        check_linear([self.groups, self.cols], x, positions)?;
        self.positions += positions as u64;
        let cols = self.cols;
        if cols == 0 {
            return Ok(());
        }
        self.sums
            .par_chunks_mut(TOGETHER)
            .enumerate()
            .for_each(|(block, sums)| {
                for row in x.chunks_exact(cols) {
                    for (sums, &x) in sums.iter_mut().zip(&row[block * TOGETHER..]) {
                        add(sums, x);
                    }
                }
            });
        Ok(())
    }

    /// Adds a batch of a convolution's inputs.
    ///
    /// # Shapes
    /// `x`: NCHW.
    pub fn add_conv(&mut self, x: &[f32], shape: &ConvShape) -> Result<(), KernelError> {
        let positions = check_conv([self.groups, self.cols], x, shape)?;
        self.positions += positions as u64;
        let [height, width] = shape.size;
        let plane = height * width;
        // A chunk of the sums is one input channel's taps.
        self.sums
            .par_chunks_mut(shape.taps().max(1))
            .enumerate()
            .for_each(|(channel, sums)| {
                for image in 0..shape.batch {
                    let x = &x[(image * shape.inputs + channel) * plane..][..plane];
                    for (tap, sums) in sums.iter_mut().enumerate() {
                        let [u, v] = [tap / shape.kernel[1], tap % shape.kernel[1]];
                        let columns = reach(shape, 1, v);
                        for i in reach(shape, 0, u) {
                            let row = &x[place(shape, 0, u, i) * width..][..width];
                            for j in columns.clone() {
                                add(sums, row[place(shape, 1, v, j)]);
                            }
                        }
                    }
                }
            });
        Ok(())
    }
}

fn add([sum, square]: &mut [f64; 2], x: f32) {
    let x = f64::from(x);
    *sum += x;
    *square += x * x;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GramState;

    fn values(count: usize) -> Vec<f32> {
        let at = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
        (0..count).map(at).collect()
    }

    /// The im2col view itself, row by row.
    fn naive(x: &[f32], shape: &ConvShape) -> (Vec<f64>, Vec<f64>) {
        let [out_height, out_width] = shape.out_size();
        let per_group = shape.inputs / shape.groups;
        let [kh, kw] = shape.kernel;
        let mut sums = vec![0.0; shape.inputs * kh * kw];
        let mut squares = sums.clone();
        for n in 0..shape.batch {
            for c in 0..shape.inputs {
                for (u, v) in (0..kh).flat_map(|u| (0..kw).map(move |v| (u, v))) {
                    for (i, j) in (0..out_height).flat_map(|i| (0..out_width).map(move |j| (i, j)))
                    {
                        let y = (i * shape.stride[0] + u * shape.dilation[0]) as isize
                            - shape.padding[0][0] as isize;
                        let z = (j * shape.stride[1] + v * shape.dilation[1]) as isize
                            - shape.padding[1][0] as isize;
                        let inside = |p: isize, d: usize| p >= 0 && (p as usize) < shape.size[d];
                        if inside(y, 0) && inside(z, 1) {
                            let at = (n * shape.inputs + c) * shape.size[0] * shape.size[1]
                                + y as usize * shape.size[1]
                                + z as usize;
                            let col = (c % per_group) * kh * kw + u * kw + v;
                            let place = (c / per_group) * per_group * kh * kw + col;
                            sums[place] += f64::from(x[at]);
                            squares[place] += f64::from(x[at]).powi(2);
                        }
                    }
                }
            }
        }
        (sums, squares)
    }

    #[test]
    fn convolutions_agree_with_their_im2col_view_and_the_gram_diagonal() {
        let base = ConvShape::new(2, [6, 4], [7, 5], [3, 3]);
        let mut odd = base.with_stride([2, 1]);
        odd.padding = [[0, 1], [2, 0]];
        for shape in [
            base,
            base.with_padding([1, 1]),
            base.with_stride([2, 2]).with_padding([1, 1]).with_groups(2),
            base.with_dilation([2, 1]).with_padding([2, 2]),
            ConvShape::new(3, [6, 6], [4, 4], [1, 1]).with_groups(6),
            ConvShape::new(1, [2, 2], [2, 2], [5, 5]).with_padding([2, 2]),
            odd,
        ] {
            let x = values(shape.input_len());
            let (sums, squares) = naive(&x, &shape);
            let mut found = ColumnSums::for_conv(&shape);
            found.add_conv(&x, &shape).unwrap();
            let n = found.positions() as f64;
            for ((mean, square), (sum, wanted)) in found
                .means()
                .iter()
                .zip(found.squares())
                .zip(sums.iter().zip(&squares))
            {
                assert!((mean * n - sum).abs() < 1e-9, "{shape:?}");
                assert!((square - wanted).abs() < 1e-9, "{shape:?}");
            }
            let mut gram = GramState::for_conv(&shape).unwrap();
            gram.add_conv(&x, &shape).unwrap();
            assert_eq!(gram.positions(), found.positions());
            let diagonal: Vec<f64> = (0..shape.groups).flat_map(|g| gram.diagonal(g)).collect();
            for (diagonal, square) in diagonal.iter().zip(found.squares()) {
                assert!(
                    (diagonal - square).abs() <= 1e-4 * square.max(1.0),
                    "{shape:?}"
                );
            }
        }
    }

    #[test]
    fn linear_sums_go_over_rows_and_batches() {
        let x = values(5 * 70);
        let mut found = ColumnSums::new(1, 70);
        found.add_linear(&x[..2 * 70], 2).unwrap();
        found.add_linear(&x[2 * 70..], 3).unwrap();
        assert_eq!(found.positions(), 5);
        for col in 0..70 {
            let column: Vec<f64> = (0..5).map(|row| f64::from(x[row * 70 + col])).collect();
            let sum: f64 = column.iter().sum();
            let square: f64 = column.iter().map(|x| x * x).sum();
            assert!((found.means()[col] * 5.0 - sum).abs() < 1e-12);
            assert!((found.squares()[col] - square).abs() < 1e-12);
        }
        assert!(found.add_linear(&x, 4).is_err());
    }
}

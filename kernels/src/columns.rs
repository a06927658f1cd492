//! The columns of a layer's weight as views of its inputs: what [`crate::GramState`] and [`crate::ColumnSums`] sum over.
//!
//! A convolution's columns are those of its im2col view, (channel, ky, kx) for each group, padding counted as zeros.

use std::ops::Range;

use crate::error::expect_len;
use crate::{ConvShape, KernelError};

/// Checks the inputs of a linear layer, `[positions, cols]`, against sums of these columns.
pub(crate) fn check_linear(
    [groups, cols]: [usize; 2],
    x: &[f32],
    positions: usize,
) -> Result<(), KernelError> {
    expect_len("groups of the linear layer's sums", 1, groups)?;
    expect_len("x", positions.saturating_mul(cols), x.len())
}

/// Checks the inputs of a convolution, NCHW, against sums of these columns; gives their positions.
pub(crate) fn check_conv(
    [groups, cols]: [usize; 2],
    x: &[f32],
    shape: &ConvShape,
) -> Result<usize, KernelError> {
    shape.validate()?;
    expect_len("groups of the convolution", groups, shape.groups)?;
    expect_len(
        "weight columns of the convolution",
        cols,
        shape.weight_cols(),
    )?;
    expect_len("x", shape.input_len(), x.len())?;
    let [out_height, out_width] = shape.out_size();
    Ok(shape.batch * out_height * out_width)
}

/// The outputs along axis `d` whose tap `t` reads the input and not the padding.
pub(crate) fn reach(shape: &ConvShape, d: usize, t: usize) -> Range<usize> {
    let (before, step) = (shape.padding[d][0], shape.stride[d]);
    let (offset, outputs) = (t * shape.dilation[d], shape.out_size()[d]);
    let first = before.saturating_sub(offset).div_ceil(step);
    // i * step + offset - before < size
    let end = (shape.size[d] + before)
        .saturating_sub(offset)
        .div_ceil(step);
    first.min(outputs)..end.min(outputs).max(first.min(outputs))
}

/// Where output `i`'s tap `t` reads along axis `d`; `i` is within its [`reach`].
pub(crate) fn place(shape: &ConvShape, d: usize, t: usize, i: usize) -> usize {
    i * shape.stride[d] + t * shape.dilation[d] - shape.padding[d][0]
}

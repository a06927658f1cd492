//! What one product is, as data: how each factor is addressed along its two axes, how it is read, and where results go.
//!
//! The factors of a convolution are addressed as if im2col had written them; nothing is written.

use cubecl::prelude::*;

use crate::ConvShape;

/// How many terms of the sum a slice in shared memory holds.
pub(crate) const DEPTH: usize = 16;
/// Units along each side of a cube.
pub(crate) const SIDE: usize = 8;
/// Units of a cube.
pub(crate) const UNITS: usize = SIDE * SIDE;

/// What one axis of a factor runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Axis {
    /// A matrix's axis that no mask is kept over.
    Plain,
    /// A weight matrix's axis of outputs, the mask's rows.
    Outputs,
    /// A weight matrix's axis of inputs, the mask's columns.
    Inputs,
    /// Output channels of a group, in the weight.
    KernelRow,
    /// Input channels of a group and taps, in the weight.
    KernelColumn,
    /// Input channels of a group, in the weight.
    KernelChannel,
    /// Output channels of a group and taps, in the weight.
    KernelTap,
    /// Images and output positions, in the input.
    Window,
    /// Input channels of a group and taps, in the input.
    WindowTap,
    /// Images and input positions, in the gradient of the output.
    Source,
    /// Output channels of a group and taps, in the gradient of the output.
    SourceTap,
    /// Output channels of a group, in the gradient of the output.
    Channel,
    /// Images and output positions, in the gradient of the output.
    Pixel,
}

/// What the coordinates that both axes of a factor add up to mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Read {
    /// Nothing: every element exists.
    Plain,
    /// Row and column in the mask: what it does not keep reads as 0, whatever is stored.
    Kept,
    /// Height and width in the input: what lies outside reads as 0.
    Padded,
    /// Height and width in the output, times the stride: what lies between or outside reads as 0.
    Strided,
}

/// How a factor is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Factor {
    /// The axis that the result has too.
    pub index: Axis,
    /// The axis that is summed over.
    pub depth: Axis,
    /// What the coordinates mean.
    pub read: Read,
    /// Whether neighbouring units read along the summed axis; where memory runs along it.
    pub along_depth: bool,
}

/// The order of the result in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Store {
    /// A matrix, or a stack of them by group.
    Matrix,
    /// Columns are images and pixels, rows are channels: NCHW.
    Images,
}

/// To what a bias is added, or a mask applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Along {
    /// To none.
    Nothing,
    /// Outputs are rows of the result.
    Rows,
    /// Outputs are columns of the result.
    Columns,
}

/// What is fixed when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Blueprint {
    /// The left factor: rows of the result.
    pub left: Factor,
    /// The right factor: columns of the result.
    pub right: Factor,
    /// Where results go.
    pub store: Store,
    /// Where the bias goes.
    pub bias: Along,
    /// Which results a mask keeps.
    pub kept: Along,
    /// Rows and columns of a cube's tile: multiples of 8 up to 64.
    pub tile: [usize; 2],
    /// The window, 1 by 1 for matrices.
    pub window: Window,
}

/// A convolution's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Window {
    /// Height and width.
    pub kernel: [usize; 2],
    /// Strides.
    pub stride: [usize; 2],
    /// Distances between taps.
    pub dilation: [usize; 2],
}

/// What is known when the kernel is launched. Sizes of images are 0 for matrices.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
pub(crate) struct Sizes {
    /// Rows of a group's result.
    pub rows: usize,
    /// Columns of a group's result.
    pub columns: usize,
    /// Terms of each sum.
    pub depth: usize,
    /// Groups.
    pub groups: usize,
    /// Parts into which each sum is cut, and how many terms a part has: a multiple of the slice's.
    pub parts: usize,
    pub part: usize,
    /// Words of a mask's row.
    pub words: usize,
    /// Elements between neighbours along the left matrix's axes: result, sum.
    pub left_index: usize,
    pub left_depth: usize,
    /// The same of the right.
    pub right_index: usize,
    pub right_depth: usize,
    /// Channels of all groups.
    pub inputs: usize,
    pub outputs: usize,
    /// Height and width.
    pub height: usize,
    pub width: usize,
    pub out_height: usize,
    pub out_width: usize,
    /// Zeros before the input.
    pub top: usize,
    pub before: usize,
    /// Pixels of an image of the result.
    pub plane: usize,
}

impl Sizes {
    /// Of a matrix product; `words` are those of a mask's row.
    pub fn matrix([rows, columns, depth]: [usize; 3], words: usize) -> Self {
        Self {
            rows,
            columns,
            depth,
            groups: 1,
            parts: 1,
            part: depth.next_multiple_of(DEPTH),
            words,
            left_index: 0,
            left_depth: 0,
            right_index: 0,
            right_depth: 0,
            inputs: 0,
            outputs: 0,
            height: 0,
            width: 0,
            out_height: 0,
            out_width: 0,
            top: 0,
            before: 0,
            plane: 1,
        }
    }

    /// Of a convolution, whose result per group is rows by columns.
    pub fn images(shape: &ConvShape, product: [usize; 3]) -> Self {
        let [out_height, out_width] = shape.out_size();
        Self {
            groups: shape.groups,
            inputs: shape.inputs,
            outputs: shape.outputs,
            height: shape.size[0],
            width: shape.size[1],
            out_height,
            out_width,
            top: shape.padding[0][0],
            before: shape.padding[1][0],
            ..Self::matrix(product, shape.weight_cols().div_ceil(32))
        }
    }

    pub fn launch(self) -> SizesLaunch {
        SizesLaunch::new(
            self.rows,
            self.columns,
            self.depth,
            self.groups,
            self.parts,
            self.part,
            self.words,
            self.left_index,
            self.left_depth,
            self.right_index,
            self.right_depth,
            self.inputs,
            self.outputs,
            self.height,
            self.width,
            self.out_height,
            self.out_width,
            self.top,
            self.before,
            self.plane,
        )
    }
}

impl Window {
    pub fn of(shape: &ConvShape) -> Self {
        Self {
            kernel: shape.kernel,
            stride: shape.stride,
            dilation: shape.dilation,
        }
    }

    const NONE: Self = Self {
        kernel: [1; 2],
        stride: [1; 2],
        dilation: [1; 2],
    };
}

impl Factor {
    /// Read along the summed axis.
    const fn along(index: Axis, depth: Axis, read: Read) -> Self {
        Self {
            index,
            depth,
            read,
            along_depth: true,
        }
    }

    /// Read along the axis that the result has.
    const fn across(index: Axis, depth: Axis, read: Read) -> Self {
        Self {
            index,
            depth,
            read,
            along_depth: false,
        }
    }

    /// With what a mask prunes read as 0.
    fn kept_if(self, masked: bool) -> Self {
        Self {
            read: if masked { Read::Kept } else { self.read },
            ..self
        }
    }
}

impl Blueprint {
    /// `x w + bias` of a linear layer.
    pub fn linear(masked: bool, biased: bool) -> Self {
        Self {
            left: Factor::along(Axis::Plain, Axis::Plain, Read::Plain),
            right: Factor::across(Axis::Outputs, Axis::Inputs, Read::Plain).kept_if(masked),
            bias: along(biased, Along::Columns),
            ..Self::MATRIX
        }
    }

    /// The gradient of its input.
    pub fn linear_input_grad(masked: bool) -> Self {
        Self {
            left: Factor::along(Axis::Plain, Axis::Plain, Read::Plain),
            right: Factor::along(Axis::Inputs, Axis::Outputs, Read::Plain).kept_if(masked),
            ..Self::MATRIX
        }
    }

    /// The gradient of its weight, [in, out].
    pub fn linear_weight_grad(masked: bool) -> Self {
        Self {
            kept: along(masked, Along::Columns),
            ..Self::MATRIX
        }
    }

    /// A convolution.
    pub fn conv(window: Window, masked: bool, biased: bool) -> Self {
        Self {
            left: Factor::along(Axis::KernelRow, Axis::KernelColumn, Read::Plain).kept_if(masked),
            right: Factor::across(Axis::Window, Axis::WindowTap, Read::Padded),
            store: Store::Images,
            bias: along(biased, Along::Rows),
            window,
            ..Self::MATRIX
        }
    }

    /// The gradient of its input.
    pub fn conv_input_grad(window: Window, masked: bool) -> Self {
        Self {
            left: Factor::along(Axis::KernelChannel, Axis::KernelTap, Read::Plain).kept_if(masked),
            right: Factor::across(Axis::Source, Axis::SourceTap, Read::Strided),
            store: Store::Images,
            window,
            ..Self::MATRIX
        }
    }

    /// The gradient of its weight.
    pub fn conv_weight_grad(window: Window, masked: bool) -> Self {
        Self {
            left: Factor::along(Axis::Channel, Axis::Pixel, Read::Plain),
            right: Factor::along(Axis::WindowTap, Axis::Window, Read::Padded),
            kept: along(masked, Along::Rows),
            window,
            ..Self::MATRIX
        }
    }

    /// Two matrices, both read across; the tile is chosen with the sizes.
    const MATRIX: Self = Self {
        left: Factor::across(Axis::Plain, Axis::Plain, Read::Plain),
        right: Factor::across(Axis::Plain, Axis::Plain, Read::Plain),
        store: Store::Matrix,
        bias: Along::Nothing,
        kept: Along::Nothing,
        tile: [0; 2],
        window: Window::NONE,
    };
}

/// Along an axis, or along none.
fn along(there: bool, along: Along) -> Along {
    if there { along } else { Along::Nothing }
}

//! Which kernel computes a product, on what grid, from which tensors.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::AddressType;
use cubecl::prelude::*;

use super::blueprint::{Along, Blueprint, DEPTH, Sizes, Store, UNITS, Window};
use super::{direct, sums, tile};
use crate::ConvShape;
use crate::LinearShape;

/// Along one axis of the grid, by WebGPU's rules.
const GRID: usize = 65_535;
/// Cubes that keep a large GPU busy: below it, long sums are cut into parts.
const BUSY: usize = 256;
/// Terms of a sum that are worth a cube of their own.
const WORTH: usize = 8 * DEPTH;
/// Channels of a group up to which no tile is filled.
const NARROW: usize = 4;

/// Cubes in a grid that may be larger than their number, never on one axis than it can be.
pub(crate) fn grid(cubes: usize) -> CubeCount {
    let across = cubes.clamp(1, GRID);
    CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, 1)
}

/// Cubes of [`UNITS`] units, one unit per element.
pub(crate) fn grid_of_units(elements: usize) -> CubeCount {
    grid(elements.div_ceil(UNITS))
}

pub(crate) fn dim() -> CubeDim {
    CubeDim::new_1d(UNITS as u32)
}

/// A tensor beside `like`, of which nothing is known but its shape.
pub(crate) fn uninit(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

fn len(tensor: &CubeTensor) -> usize {
    tensor.meta.num_elements()
}

/// What the kernel reads; an empty tensor has no memory to bind, so one element that is never read stands for it.
pub(crate) fn argument(tensor: &CubeTensor) -> BufferArg {
    if len(tensor) == 0 {
        uninit(tensor, Shape::new([1]), DType::F32).into_buffer_arg()
    } else {
        tensor.clone().into_buffer_arg()
    }
}

/// Addresses wide enough for all of `tensors`; coordinates are signed.
pub(crate) fn addresses(tensors: &[&CubeTensor]) -> AddressType {
    let longest = tensors.iter().map(|tensor| len(tensor)).max();
    AddressType::from_len_signed(longest.unwrap_or(0))
}

/// One product of factors in memory order, with what may go with it.
struct Product {
    left: CubeTensor,
    right: CubeTensor,
    mask: Option<CubeTensor>,
    bias: Option<CubeTensor>,
    result: Shape,
    blueprint: Blueprint,
    sizes: Sizes,
}

/// The side of a tile that holds `size` in as few and as full tiles as there are.
fn side(size: usize) -> usize {
    match size {
        0..=16 => 16,
        17..=32 => 32,
        _ => 64,
    }
}

impl Product {
    fn run(self) -> CubeTensor {
        let Self {
            left,
            right,
            mask,
            bias,
            result,
            mut blueprint,
            mut sizes,
        } = self;
        let (client, elements) = (left.client.clone(), result.num_elements());
        let out = uninit(&left, result.clone(), DType::F32);
        if elements == 0 {
            return out;
        }
        blueprint.tile = [side(sizes.rows), side(sizes.columns)];
        let [height, width] = blueprint.tile;
        let cubes = sizes.rows.div_ceil(height) * sizes.columns.div_ceil(width) * sizes.groups;
        // Of results that are smaller than what is summed: gradients of weights. The cut does not depend on the device.
        let parts = (BUSY / cubes).min(sizes.depth / WORTH).max(1);
        let plain = bias.is_none() && blueprint.store == Store::Matrix;
        if parts > 1 && plain {
            sizes.part = sizes.depth.div_ceil(parts).next_multiple_of(DEPTH);
            sizes.parts = sizes.depth.div_ceil(sizes.part);
        }
        let kept = blueprint.kept;
        let summed = if sizes.parts > 1 {
            blueprint.kept = Along::Nothing;
            uninit(&left, Shape::new([sizes.parts, elements]), DType::F32)
        } else {
            out.clone()
        };
        // Where there is none, the left factor is bound and not read.
        let words = mask.as_ref().unwrap_or(&left);
        let bias = bias.as_ref().unwrap_or(&left);
        let wide = addresses(&[&left, &right, words, &summed]);
        // SAFETY: every index is checked against `sizes`, which are those of the tensors: the callers below derive both
        // from one shape, and the extension checked the tensors against it.
        unsafe {
            tile::tiles::launch_unchecked(
                &client,
                grid(cubes * sizes.parts),
                dim(),
                wide,
                argument(&left),
                argument(&right),
                argument(words),
                argument(bias),
                argument(&summed),
                sizes.launch(),
                blueprint,
            );
        }
        if sizes.parts > 1 {
            // SAFETY: `summed` holds `parts` copies of `elements` values; a mask has a bit for each of `out`.
            unsafe {
                tile::gather::launch_unchecked(
                    &client,
                    grid_of_units(elements),
                    dim(),
                    wide,
                    argument(&summed),
                    argument(words),
                    argument(&out),
                    elements,
                    sizes.columns,
                    sizes.parts,
                    sizes.words,
                    kept,
                );
            }
        }
        out
    }
}

/// `x w + bias`.
pub(crate) fn linear(
    shape: LinearShape,
    x: CubeTensor,
    w: CubeTensor,
    mask: Option<CubeTensor>,
    bias: Option<CubeTensor>,
) -> CubeTensor {
    let LinearShape {
        positions,
        rows,
        cols,
    } = shape;
    let sizes = Sizes {
        left_index: cols,
        left_depth: 1,
        right_index: 1,
        right_depth: rows,
        ..Sizes::matrix([positions, rows, cols], cols.div_ceil(32))
    };
    let blueprint = Blueprint::linear(mask.is_some(), bias.is_some());
    Product {
        left: into_contiguous(x),
        right: into_contiguous(w),
        mask: mask.map(into_contiguous),
        bias: bias.map(into_contiguous),
        result: Shape::new([positions, rows]),
        blueprint,
        sizes,
    }
    .run()
}

/// The gradient of a linear layer's input.
pub(crate) fn linear_input_grad(
    shape: LinearShape,
    g: CubeTensor,
    w: CubeTensor,
    mask: Option<CubeTensor>,
) -> CubeTensor {
    let LinearShape {
        positions,
        rows,
        cols,
    } = shape;
    let sizes = Sizes {
        left_index: rows,
        left_depth: 1,
        right_index: rows,
        right_depth: 1,
        ..Sizes::matrix([positions, cols, rows], cols.div_ceil(32))
    };
    let blueprint = Blueprint::linear_input_grad(mask.is_some());
    Product {
        left: into_contiguous(g),
        right: into_contiguous(w),
        mask: mask.map(into_contiguous),
        bias: None,
        result: Shape::new([positions, cols]),
        blueprint,
        sizes,
    }
    .run()
}

/// The gradient of a linear layer's weight, [in, out], 0 where the mask prunes.
pub(crate) fn linear_weight_grad(
    shape: LinearShape,
    x: CubeTensor,
    g: CubeTensor,
    mask: Option<CubeTensor>,
) -> CubeTensor {
    let LinearShape {
        positions,
        rows,
        cols,
    } = shape;
    let sizes = Sizes {
        left_index: 1,
        left_depth: cols,
        right_index: 1,
        right_depth: rows,
        ..Sizes::matrix([cols, rows, positions], cols.div_ceil(32))
    };
    let blueprint = Blueprint::linear_weight_grad(mask.is_some());
    Product {
        left: into_contiguous(x),
        right: into_contiguous(g),
        mask: mask.map(into_contiguous),
        bias: None,
        result: Shape::new([cols, rows]),
        blueprint,
        sizes,
    }
    .run()
}

/// Whether groups are too narrow for tiles.
fn is_narrow(shape: &ConvShape) -> bool {
    let widest = shape.inputs.max(shape.outputs) / shape.groups;
    shape.groups > 1 && widest <= NARROW
}

/// A convolution.
pub(crate) fn conv(
    shape: &ConvShape,
    x: CubeTensor,
    w: CubeTensor,
    mask: Option<CubeTensor>,
    bias: Option<CubeTensor>,
) -> CubeTensor {
    let (x, w) = (into_contiguous(x), into_contiguous(w));
    let (mask, bias) = (mask.map(into_contiguous), bias.map(into_contiguous));
    let pixels = shape.out_size().iter().product::<usize>();
    let mut sizes = Sizes::images(
        shape,
        [
            shape.outputs / shape.groups,
            shape.batch * pixels,
            shape.weight_cols(),
        ],
    );
    sizes.plane = pixels;
    let result = Shape::from(shape.output_dims());
    if is_narrow(shape) {
        let out = uninit(&x, result, DType::F32);
        if len(&out) > 0 {
            let words = mask.as_ref().unwrap_or(&x);
            let addends = bias.as_ref().unwrap_or(&x);
            // SAFETY: as for tiles.
            unsafe {
                direct::forward::launch_unchecked(
                    &x.client,
                    grid_of_units(len(&out)),
                    dim(),
                    addresses(&[&x, &w, &out]),
                    argument(&x),
                    argument(&w),
                    argument(words),
                    argument(addends),
                    argument(&out),
                    sizes.launch(),
                    Window::of(shape),
                    mask.is_some(),
                    bias.is_some(),
                );
            }
        }
        return out;
    }
    let blueprint = Blueprint::conv(Window::of(shape), mask.is_some(), bias.is_some());
    Product {
        left: w,
        right: x,
        mask,
        bias,
        result,
        blueprint,
        sizes,
    }
    .run()
}

/// The gradient of a convolution's input.
pub(crate) fn conv_input_grad(
    shape: &ConvShape,
    g: CubeTensor,
    w: CubeTensor,
    mask: Option<CubeTensor>,
) -> CubeTensor {
    let (g, w, mask) = (
        into_contiguous(g),
        into_contiguous(w),
        mask.map(into_contiguous),
    );
    let pixels = shape.size.iter().product::<usize>();
    let mut sizes = Sizes::images(
        shape,
        [
            shape.inputs / shape.groups,
            shape.batch * pixels,
            shape.outputs / shape.groups * shape.taps(),
        ],
    );
    sizes.plane = pixels;
    let result = Shape::from(shape.input_dims());
    if is_narrow(shape) {
        let out = uninit(&g, result, DType::F32);
        if len(&out) > 0 {
            let words = mask.as_ref().unwrap_or(&g);
            // SAFETY: as for tiles.
            unsafe {
                direct::input_grad::launch_unchecked(
                    &g.client,
                    grid_of_units(len(&out)),
                    dim(),
                    addresses(&[&g, &w, &out]),
                    argument(&g),
                    argument(&w),
                    argument(words),
                    argument(&out),
                    sizes.launch(),
                    Window::of(shape),
                    mask.is_some(),
                );
            }
        }
        return out;
    }
    let blueprint = Blueprint::conv_input_grad(Window::of(shape), mask.is_some());
    Product {
        left: w,
        right: g,
        mask,
        bias: None,
        result,
        blueprint,
        sizes,
    }
    .run()
}

/// The gradient of a convolution's weight, 0 where the mask prunes.
pub(crate) fn conv_weight_grad(
    shape: &ConvShape,
    x: CubeTensor,
    g: CubeTensor,
    mask: Option<CubeTensor>,
) -> CubeTensor {
    let (x, g, mask) = (
        into_contiguous(x),
        into_contiguous(g),
        mask.map(into_contiguous),
    );
    let pixels = shape.out_size().iter().product::<usize>();
    let sizes = Sizes::images(
        shape,
        [
            shape.outputs / shape.groups,
            shape.weight_cols(),
            shape.batch * pixels,
        ],
    );
    let result = Shape::from(shape.weight_dims());
    if is_narrow(shape) {
        let out = uninit(&x, result, DType::F32);
        if len(&out) > 0 {
            let words = mask.as_ref().unwrap_or(&x);
            // SAFETY: as for tiles.
            unsafe {
                direct::weight_grad::launch_unchecked(
                    &x.client,
                    grid(len(&out)),
                    dim(),
                    addresses(&[&x, &g, &out]),
                    argument(&x),
                    argument(&g),
                    argument(words),
                    argument(&out),
                    shape.batch,
                    sizes.launch(),
                    Window::of(shape),
                    mask.is_some(),
                );
            }
        }
        return out;
    }
    let blueprint = Blueprint::conv_weight_grad(Window::of(shape), mask.is_some());
    Product {
        left: g,
        right: x,
        mask,
        bias: None,
        result,
        blueprint,
        sizes,
    }
    .run()
}

/// Sums over everything but axis 1.
pub(crate) fn channel_sums(g: CubeTensor) -> CubeTensor {
    let g = into_contiguous(g);
    let dims = g.meta.shape().clone();
    let (count, channels) = (dims[0], dims[1]);
    let pixels: usize = dims.iter().skip(2).product();
    let out = uninit(&g, Shape::new([channels]), DType::F32);
    if channels == 0 {
        return out;
    }
    let wide = addresses(&[&g]);
    // SAFETY: the kernels read `count * channels * pixels` elements, which `g` has, and write `channels`.
    unsafe {
        if dims.num_dims() == 2 {
            let cubes = grid(channels.div_ceil(sums::BESIDE));
            sums::columns::launch_unchecked(
                &g.client,
                cubes,
                dim(),
                wide,
                argument(&g),
                argument(&out),
                count,
            );
        } else {
            sums::images::launch_unchecked(
                &g.client,
                grid(channels),
                dim(),
                wide,
                argument(&g),
                argument(&out),
                count,
                pixels,
            );
        }
    }
    out
}

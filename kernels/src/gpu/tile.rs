//! One loop for every product: a tile of the result per cube, slices of both factors in shared memory, a block of the
//! tile in each unit's registers.
//!
//! A product is described by data, a [`Blueprint`].
//! Sums run in one order whatever the device, so equal inputs give equal bits on one device.

use cubecl::prelude::*;

use super::blueprint::{
    Along, Axis, Blueprint, DEPTH, Factor, Read, SIDE, Sizes, Store, UNITS, Window,
};

/// One axis' share of an address and of the coordinates.
#[derive(CubeType, Clone, Copy)]
struct Share {
    offset: usize,
    y: i32,
    x: i32,
}

/// The share of place `at` on an axis; `stride` is a matrix's.
#[cube]
fn share(
    at: usize,
    stride: usize,
    group: usize,
    sizes: &Sizes,
    #[comptime] axis: Axis,
    #[comptime] window: Window,
) -> Share {
    let taps = comptime!(window.kernel[0] * window.kernel[1]);
    let kernel_width = comptime!(window.kernel[1]);
    let per_group = sizes.outputs / sizes.groups;
    let plane = sizes.height * sizes.width;
    let out_plane = sizes.out_height * sizes.out_width;
    let mut offset = at * stride;
    let mut y = 0i32;
    let mut x = 0i32;
    match comptime!(axis) {
        Axis::Plain => {}
        Axis::Outputs => {
            y = i32::cast_from(at);
        }
        Axis::Inputs => {
            x = i32::cast_from(at);
        }
        Axis::KernelRow => {
            let row = group * per_group + at;
            offset = row * (sizes.inputs / sizes.groups * taps);
            y = i32::cast_from(row);
        }
        Axis::KernelColumn => {
            offset = at;
            x = i32::cast_from(at);
        }
        Axis::KernelChannel => {
            offset = at * taps;
            x = i32::cast_from(offset);
        }
        Axis::KernelTap => {
            let row = group * per_group + at / taps;
            let tap = at % taps;
            offset = row * (sizes.inputs / sizes.groups * taps) + tap;
            y = i32::cast_from(row);
            x = i32::cast_from(tap);
        }
        Axis::Window => {
            let image = at / out_plane;
            let pixel = at % out_plane;
            let row = pixel / sizes.out_width;
            let column = pixel % sizes.out_width;
            let first = group * (sizes.inputs / sizes.groups);
            offset = (image * sizes.inputs + first) * plane;
            y = i32::cast_from(row * comptime!(window.stride[0])) - i32::cast_from(sizes.top);
            x = i32::cast_from(column * comptime!(window.stride[1])) - i32::cast_from(sizes.before);
        }
        Axis::WindowTap => {
            let tap = at % taps;
            offset = at / taps * plane;
            y = i32::cast_from(tap / kernel_width * comptime!(window.dilation[0]));
            x = i32::cast_from(tap % kernel_width * comptime!(window.dilation[1]));
        }
        Axis::Source => {
            let image = at / plane;
            let pixel = at % plane;
            offset = (image * sizes.outputs + group * per_group) * out_plane;
            y = i32::cast_from(pixel / sizes.width + sizes.top);
            x = i32::cast_from(pixel % sizes.width + sizes.before);
        }
        Axis::SourceTap => {
            let tap = at % taps;
            offset = at / taps * out_plane;
            y = -i32::cast_from(tap / kernel_width * comptime!(window.dilation[0]));
            x = -i32::cast_from(tap % kernel_width * comptime!(window.dilation[1]));
        }
        Axis::Channel => {
            offset = (group * per_group + at) * out_plane;
        }
        Axis::Pixel => {
            offset = at / out_plane * (sizes.outputs * out_plane) + at % out_plane;
        }
    }
    Share { offset, y, x }
}

/// Whether the mask keeps a place.
#[cube]
pub(crate) fn kept(words: &[u32], row: usize, column: usize, row_words: usize) -> bool {
    let word = words[row * row_words + column / 32];
    (word >> u32::cast_from(column % 32)) & 1u32 == 1u32
}

/// An element of a factor from both axes' shares.
#[cube]
fn element(
    data: &[f32],
    words: &[u32],
    index: &Share,
    depth: &Share,
    sizes: &Sizes,
    #[comptime] read: Read,
    #[comptime] window: Window,
) -> f32 {
    let offset = index.offset + depth.offset;
    let y = index.y + depth.y;
    let x = index.x + depth.x;
    let mut value = 0.0f32;
    match comptime!(read) {
        Read::Plain => {
            value = data[offset];
        }
        Read::Kept => {
            if kept(words, usize::cast_from(y), usize::cast_from(x), sizes.words) {
                value = data[offset];
            }
        }
        Read::Padded => {
            let inside = y >= 0 && x >= 0;
            if inside && y < i32::cast_from(sizes.height) && x < i32::cast_from(sizes.width) {
                value = data[offset + usize::cast_from(y) * sizes.width + usize::cast_from(x)];
            }
        }
        Read::Strided => {
            if y >= 0 && x >= 0 {
                let down = comptime!(window.stride[0]);
                let along = comptime!(window.stride[1]);
                let row = usize::cast_from(y) / down;
                let column = usize::cast_from(x) / along;
                let met =
                    row * down == usize::cast_from(y) && column * along == usize::cast_from(x);
                if met && row < sizes.out_height && column < sizes.out_width {
                    value = data[offset + row * sizes.out_width + column];
                }
            }
        }
    }
    value
}

/// Brings a slice of a factor to shared memory: `side` places from `first` on, terms `from..to`. Beyond either end: 0.
#[cube]
fn load(
    data: &[f32],
    words: &[u32],
    shared: &mut Shared<[f32]>,
    first: usize,
    count: usize,
    from: usize,
    to: usize,
    group: usize,
    index_stride: usize,
    depth_stride: usize,
    sizes: &Sizes,
    #[comptime] factor: Factor,
    #[comptime] side: usize,
    #[comptime] window: Window,
) {
    let unit = UNIT_POS as usize;
    // One more than the tile, so that units that write along the depth do not all meet in one bank.
    let pitch = comptime!(side + 1);
    if comptime!(factor.along_depth) {
        let lane = unit % DEPTH;
        let depth = share(
            from + lane,
            depth_stride,
            group,
            sizes,
            comptime!(factor.depth),
            window,
        );
        #[unroll]
        for i in 0..comptime!(side * DEPTH / UNITS) {
            let place = unit / DEPTH + i * comptime!(UNITS / DEPTH);
            let mut value = 0.0f32;
            if from + lane < to && first + place < count {
                let index = share(
                    first + place,
                    index_stride,
                    group,
                    sizes,
                    comptime!(factor.index),
                    window,
                );
                value = element(
                    data,
                    words,
                    &index,
                    &depth,
                    sizes,
                    comptime!(factor.read),
                    window,
                );
            }
            shared[lane * pitch + place] = value;
        }
    } else {
        let place = unit % side;
        let index = share(
            first + place,
            index_stride,
            group,
            sizes,
            comptime!(factor.index),
            window,
        );
        #[unroll]
        for i in 0..comptime!(side * DEPTH / UNITS) {
            let lane = unit / side + i * comptime!(UNITS / side);
            let mut value = 0.0f32;
            if from + lane < to && first + place < count {
                let depth = share(
                    from + lane,
                    depth_stride,
                    group,
                    sizes,
                    comptime!(factor.depth),
                    window,
                );
                value = element(
                    data,
                    words,
                    &index,
                    &depth,
                    sizes,
                    comptime!(factor.read),
                    window,
                );
            }
            shared[lane * pitch + place] = value;
        }
    }
}

/// `out = left right`, tile by tile. With more than one part, each part's sums go to its own copy of the result, without
/// bias or mask.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn tiles(
    left: &[f32],
    right: &[f32],
    words: &[u32],
    bias: &[f32],
    out: &mut [f32],
    sizes: Sizes,
    #[comptime] plan: Blueprint,
) {
    let height = comptime!(plan.tile[0]);
    let width = comptime!(plan.tile[1]);
    let block_rows = comptime!(plan.tile[0] / SIDE);
    let block_columns = comptime!(plan.tile[1] / SIDE);
    let window = comptime!(plan.window);

    let across = (sizes.columns + width - 1) / width;
    let down = (sizes.rows + height - 1) / height;
    let tile = CUBE_POS;
    let first_column = tile % across * width;
    let first_row = tile / across % down * height;
    let copy = tile / across / down;
    let part = copy % sizes.parts;
    let group = copy / sizes.parts;
    // The grid is folded, so it may be larger than the work.
    if group >= sizes.groups {
        terminate!();
    }

    let mut left_slice = Shared::<[f32]>::new_slice(comptime!(DEPTH * (plan.tile[0] + 1)));
    let mut right_slice = Shared::<[f32]>::new_slice(comptime!(DEPTH * (plan.tile[1] + 1)));
    let mut sums = Array::<f32>::new(comptime!(block_rows * block_columns));
    #[unroll]
    for i in 0..comptime!(block_rows * block_columns) {
        sums[i] = 0.0;
    }
    let unit = UNIT_POS as usize;
    let (unit_row, unit_column) = (unit / SIDE, unit % SIDE);

    let from = part * sizes.part;
    let to = min(from + sizes.part, sizes.depth);
    let mut at = from;
    while at < to {
        load(
            left,
            words,
            &mut left_slice,
            first_row,
            sizes.rows,
            at,
            to,
            group,
            sizes.left_index,
            sizes.left_depth,
            &sizes,
            comptime!(plan.left),
            height,
            window,
        );
        load(
            right,
            words,
            &mut right_slice,
            first_column,
            sizes.columns,
            at,
            to,
            group,
            sizes.right_index,
            sizes.right_depth,
            &sizes,
            comptime!(plan.right),
            width,
            window,
        );
        sync_cube();
        for term in 0..DEPTH {
            let mut rows = Array::<f32>::new(block_rows);
            let mut columns = Array::<f32>::new(block_columns);
            #[unroll]
            for i in 0..block_rows {
                rows[i] = left_slice[term * comptime!(plan.tile[0] + 1) + unit_row + i * SIDE];
            }
            #[unroll]
            for j in 0..block_columns {
                columns[j] =
                    right_slice[term * comptime!(plan.tile[1] + 1) + unit_column + j * SIDE];
            }
            #[unroll]
            for i in 0..block_rows {
                #[unroll]
                for j in 0..block_columns {
                    sums[i * block_columns + j] += rows[i] * columns[j];
                }
            }
        }
        sync_cube();
        at += DEPTH;
    }

    let plane = sizes.plane;
    #[unroll]
    for j in 0..block_columns {
        let column = first_column + unit_column + j * SIDE;
        if column < sizes.columns {
            let mut base = column;
            let mut pitch = sizes.columns;
            if comptime!(plan.store == Store::Images) {
                base = column / plane * (sizes.groups * sizes.rows * plane) + column % plane;
                pitch = plane;
            }
            #[unroll]
            for i in 0..block_rows {
                let row = first_row + unit_row + i * SIDE;
                if row < sizes.rows {
                    let mut value = sums[i * block_columns + j];
                    let all_rows = group * sizes.rows + row;
                    match comptime!(plan.bias) {
                        Along::Nothing => {}
                        Along::Rows => {
                            value += bias[all_rows];
                        }
                        Along::Columns => {
                            value += bias[column];
                        }
                    }
                    match comptime!(plan.kept) {
                        Along::Nothing => {}
                        Along::Rows => {
                            if !kept(words, all_rows, column, sizes.words) {
                                value = 0.0;
                            }
                        }
                        Along::Columns => {
                            if !kept(words, column, row, sizes.words) {
                                value = 0.0;
                            }
                        }
                    }
                    let copies = part * (sizes.groups * sizes.rows * sizes.columns);
                    out[copies + base + all_rows * pitch] = value;
                }
            }
        }
    }
}

/// The sum of the parts' copies, first to last, of what the mask keeps.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub(crate) fn gather(
    copies: &[f32],
    words: &[u32],
    out: &mut [f32],
    len: usize,
    columns: usize,
    parts: usize,
    row_words: usize,
    #[comptime] mask: Along,
) {
    let at = ABSOLUTE_POS;
    if at >= len {
        terminate!();
    }
    let mut sum = 0.0f32;
    for part in 0..parts {
        sum += copies[part * len + at];
    }
    match comptime!(mask) {
        Along::Nothing => {}
        Along::Rows => {
            if !kept(words, at / columns, at % columns, row_words) {
                sum = 0.0;
            }
        }
        Along::Columns => {
            if !kept(words, at % columns, at / columns, row_words) {
                sum = 0.0;
            }
        }
    }
    out[at] = sum;
}

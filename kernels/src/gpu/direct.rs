//! Convolutions whose groups are a few channels each, depthwise above all: sums too short and results too narrow for
//! tiles. One unit per element of the result, except for the weight's gradient, of which one cube sums one element.

use cubecl::prelude::*;

use super::blueprint::{Sizes, UNITS, Window};
use super::tile::kept;

/// The output: a unit per element.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(
    x: &[f32],
    w: &[f32],
    words: &[u32],
    bias: &[f32],
    out: &mut [f32],
    sizes: Sizes,
    #[comptime] window: Window,
    #[comptime] masked: bool,
    #[comptime] biased: bool,
) {
    let at = ABSOLUTE_POS;
    if at >= out.len() {
        terminate!();
    }
    let per_group = sizes.inputs / sizes.groups;
    let taps = comptime!(window.kernel[0] * window.kernel[1]);
    let column = at % sizes.out_width;
    let row = at / sizes.out_width % sizes.out_height;
    let channels = at / sizes.out_width / sizes.out_height;
    let output = channels % sizes.outputs;
    let image = channels / sizes.outputs;
    let first = output / (sizes.outputs / sizes.groups) * per_group;
    let mut sum = 0.0f32;
    if comptime!(biased) {
        sum = bias[output];
    }
    for channel in 0..per_group {
        let plane = (image * sizes.inputs + first + channel) * sizes.height * sizes.width;
        for v in 0..comptime!(window.kernel[0]) {
            let y = row * comptime!(window.stride[0]) + v * comptime!(window.dilation[0]);
            for u in 0..comptime!(window.kernel[1]) {
                let x_at = column * comptime!(window.stride[1]) + u * comptime!(window.dilation[1]);
                let weight = channel * taps + v * comptime!(window.kernel[1]) + u;
                let mut read = y >= sizes.top && y < sizes.height + sizes.top;
                read = read && x_at >= sizes.before && x_at < sizes.width + sizes.before;
                if comptime!(masked) {
                    read = read && kept(words, output, weight, sizes.words);
                }
                if read {
                    let value = x[plane + (y - sizes.top) * sizes.width + x_at - sizes.before];
                    sum += w[output * per_group * taps + weight] * value;
                }
            }
        }
    }
    out[at] = sum;
}

/// The gradient of the input: a unit per element.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn input_grad(
    g: &[f32],
    w: &[f32],
    words: &[u32],
    out: &mut [f32],
    sizes: Sizes,
    #[comptime] window: Window,
    #[comptime] masked: bool,
) {
    let at = ABSOLUTE_POS;
    if at >= out.len() {
        terminate!();
    }
    let per_group = sizes.inputs / sizes.groups;
    let outputs = sizes.outputs / sizes.groups;
    let taps = comptime!(window.kernel[0] * window.kernel[1]);
    let column = at % sizes.width + sizes.before;
    let row = at / sizes.width % sizes.height + sizes.top;
    let channels = at / sizes.width / sizes.height;
    let input = channels % sizes.inputs;
    let image = channels / sizes.inputs;
    let first = input / per_group * outputs;
    let mut sum = 0.0f32;
    for i in 0..outputs {
        let output = first + i;
        let plane = (image * sizes.outputs + output) * sizes.out_height * sizes.out_width;
        for v in 0..comptime!(window.kernel[0]) {
            let down = v * comptime!(window.dilation[0]);
            for u in 0..comptime!(window.kernel[1]) {
                let along = u * comptime!(window.dilation[1]);
                let weight = input % per_group * taps + v * comptime!(window.kernel[1]) + u;
                let mut read = row >= down && column >= along;
                if comptime!(masked) {
                    read = read && kept(words, output, weight, sizes.words);
                }
                if read {
                    let y = (row - down) / comptime!(window.stride[0]);
                    let x = (column - along) / comptime!(window.stride[1]);
                    let met = y * comptime!(window.stride[0]) == row - down
                        && x * comptime!(window.stride[1]) == column - along;
                    if met && y < sizes.out_height && x < sizes.out_width {
                        sum += w[output * per_group * taps + weight]
                            * g[plane + y * sizes.out_width + x];
                    }
                }
            }
        }
    }
    out[at] = sum;
}

/// The gradient of the weight: a cube per element, whose units share the positions.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn weight_grad(
    x: &[f32],
    g: &[f32],
    words: &[u32],
    out: &mut [f32],
    images: usize,
    sizes: Sizes,
    #[comptime] window: Window,
    #[comptime] masked: bool,
) {
    let at = CUBE_POS;
    if at >= out.len() {
        terminate!();
    }
    let per_group = sizes.inputs / sizes.groups;
    let taps = comptime!(window.kernel[0] * window.kernel[1]);
    let weight = at % (per_group * taps);
    let output = at / (per_group * taps);
    let input = output / (sizes.outputs / sizes.groups) * per_group + weight / taps;
    let down = weight % taps / comptime!(window.kernel[1]) * comptime!(window.dilation[0]);
    let along = weight % comptime!(window.kernel[1]) * comptime!(window.dilation[1]);
    let pixels = sizes.out_height * sizes.out_width;
    let unit = UNIT_POS as usize;
    let mut sum = 0.0f32;
    let mut position = unit;
    while position < images * pixels {
        let image = position / pixels;
        let pixel = position % pixels;
        let y = pixel / sizes.out_width * comptime!(window.stride[0]) + down;
        let column = pixel % sizes.out_width * comptime!(window.stride[1]) + along;
        let inside = y >= sizes.top && y < sizes.height + sizes.top;
        if inside && column >= sizes.before && column < sizes.width + sizes.before {
            let plane = (image * sizes.inputs + input) * sizes.height * sizes.width;
            let value = x[plane + (y - sizes.top) * sizes.width + column - sizes.before];
            sum += value * g[(image * sizes.outputs + output) * pixels + pixel];
        }
        position += UNITS;
    }
    let total = sum_of_cube(sum);
    if unit == 0 {
        let mut value = total;
        if comptime!(masked) {
            if !kept(words, output, weight, sizes.words) {
                value = 0.0;
            }
        }
        out[at] = value;
    }
}

/// The sum of all units' values, in the first unit, added pair by pair in a fixed order.
#[cube]
pub(crate) fn sum_of_cube(value: f32) -> f32 {
    let unit = UNIT_POS as usize;
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..6usize {
        let half = comptime!(UNITS >> (step + 1));
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
    }
    shared[0]
}

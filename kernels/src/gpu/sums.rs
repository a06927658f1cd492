//! Sums over everything but the channels: a bias's gradient.

use cubecl::prelude::*;

use super::blueprint::UNITS;
use super::direct::sum_of_cube;

/// Channels that neighbouring units take where they are neighbours in memory too.
pub(crate) const BESIDE: usize = 16;

/// Sums of images: a cube per channel.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub(crate) fn images(g: &[f32], out: &mut [f32], count: usize, pixels: usize) {
    let channel = CUBE_POS;
    if channel >= out.len() {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let mut sum = 0.0f32;
    let mut at = unit;
    while at < count * pixels {
        sum += g[(at / pixels * out.len() + channel) * pixels + at % pixels];
        at += UNITS;
    }
    let total = sum_of_cube(sum);
    if unit == 0 {
        out[channel] = total;
    }
}

/// Sums of a matrix's columns: a cube per 16 of them, each summed by 4 units.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub(crate) fn columns(g: &[f32], out: &mut [f32], count: usize) {
    let first = CUBE_POS * BESIDE;
    if first >= out.len() {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let column = first + unit % BESIDE;
    let mut sum = 0.0f32;
    if column < out.len() {
        let mut row = unit / BESIDE;
        while row < count {
            sum += g[row * out.len() + column];
            row += comptime!(UNITS / BESIDE);
        }
    }
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    shared[unit] = sum;
    sync_cube();
    if unit < BESIDE && column < out.len() {
        let mut total = 0.0f32;
        #[unroll]
        for share in 0..comptime!(UNITS / BESIDE) {
            total += shared[unit + share * BESIDE];
        }
        out[column] = total;
    }
}

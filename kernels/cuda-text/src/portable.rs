//! The portable kernels in the forms that CUDA gets: what WebGPU compiles elsewhere must compile by NVRTC too.

use std::sync::Arc;

use cubecl::ir::{AddressType, DeviceProperties, TargetProperties};
use cubecl::prelude::*;

use crate::catalog::{ANY, Entry, buffer};
use crate::gpu::blueprint::{Blueprint, Sizes, UNITS, Window};
use crate::gpu::{bitmap, direct, gram, nm, nm_product, select, soft, stats, sums, tile};

/// Units of a cube of the one-off kernels.
const ONE_OFF: u32 = crate::gpu::buffer::UNITS as u32;
/// A window that strides and dilates, and one that does neither.
const WINDOWS: [Window; 2] = [
    Window {
        kernel: [3, 3],
        stride: [2, 1],
        dilation: [1, 2],
    },
    Window {
        kernel: [1, 1],
        stride: [1, 1],
        dilation: [1, 1],
    },
];
/// Narrow and wide addresses.
const ADDRESSES: [AddressType; 2] = [AddressType::U32, AddressType::U64];

/// All of them.
pub fn entries(device: &Arc<DeviceProperties>, target: &Arc<TargetProperties>) -> Vec<Entry> {
    let mut list = List {
        device,
        target,
        entries: Vec::new(),
    };
    list.products();
    list.narrow_groups();
    list.selection();
    list.sums_and_packed();
    list.entries
}

struct List<'a> {
    device: &'a Arc<DeviceProperties>,
    target: &'a Arc<TargetProperties>,
    entries: Vec<Entry>,
}

/// Adds a kernel to the list `$list`: its function's module, units, and what a launch passes after the cube's size.
macro_rules! add {
    ($list:expr, $name:expr, $units:expr, $instructions:expr, $kernel:path, $($argument:expr),*) => {{
        use $kernel as kernel;
        let made = kernel::create_dummy_kernel(
            $list.device.clone(),
            $list.target.clone(),
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d($units),
            $($argument),*
        );
        let instructions: &[&str] = $instructions;
        $list.entries.push(Entry {
            name: $name.to_string(),
            kernel: Box::new(made),
            units: $units,
            instructions: instructions.iter().map(|text| (*text).to_owned()).collect(),
            architectures: ANY,
            // Those of the one-off kernels rely on the bounds of their buffers; the others check their own.
            checked: $units == ONE_OFF,
        });
    }};
}

impl List<'_> {
    /// Tiles: every product, masked and not, in the largest, the smallest and a mixed tile.
    fn products(&mut self) {
        let units = UNITS as u32;
        let sizes = || Sizes::matrix([1; 3], 1).launch();
        let mut blueprints = Vec::new();
        for masked in [false, true] {
            blueprints.extend([
                ("linear", Blueprint::linear(masked, true)),
                (
                    "linear, its input's gradient",
                    Blueprint::linear_input_grad(masked),
                ),
                (
                    "linear, its weight's gradient",
                    Blueprint::linear_weight_grad(masked),
                ),
            ]);
            for window in WINDOWS {
                blueprints.extend([
                    ("conv", Blueprint::conv(window, masked, true)),
                    (
                        "conv, its input's gradient",
                        Blueprint::conv_input_grad(window, masked),
                    ),
                    (
                        "conv, its weight's gradient",
                        Blueprint::conv_weight_grad(window, masked),
                    ),
                ]);
            }
        }
        for (name, blueprint) in blueprints {
            for (tile, address) in [([64, 64], 0), ([64, 64], 1), ([16, 16], 0), ([16, 64], 1)] {
                let blueprint = Blueprint { tile, ..blueprint };
                let name = format!("{name} {blueprint:?} {:?}", ADDRESSES[address]);
                add!(
                    self,
                    name,
                    units,
                    &["__shared__", "__syncthreads"],
                    tile::tiles,
                    ADDRESSES[address],
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    sizes(),
                    blueprint
                );
            }
            let kept = blueprint.kept;
            add!(
                self,
                format!("parts of {name}, {kept:?}"),
                units,
                &[],
                tile::gather,
                ADDRESSES[0],
                buffer(),
                buffer(),
                buffer(),
                1,
                1,
                1,
                1,
                kept
            );
        }
    }

    /// Convolutions in narrow groups, and sums over everything but the channels.
    fn narrow_groups(&mut self) {
        let units = UNITS as u32;
        let sizes = || Sizes::matrix([1; 3], 1).launch();
        for (window, masked, address) in [
            (WINDOWS[0], true, ADDRESSES[0]),
            (WINDOWS[0], false, ADDRESSES[1]),
            (WINDOWS[1], true, ADDRESSES[1]),
        ] {
            let form = format!("{window:?}, masked {masked}, {address:?}");
            add!(
                self,
                format!("narrow {form}"),
                units,
                &[],
                direct::forward,
                address,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                sizes(),
                window,
                masked,
                masked
            );
            add!(
                self,
                format!("narrow, its input's gradient {form}"),
                units,
                &[],
                direct::input_grad,
                address,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                sizes(),
                window,
                masked
            );
            add!(
                self,
                format!("narrow, its weight's gradient {form}"),
                units,
                &["__syncthreads"],
                direct::weight_grad,
                address,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                1,
                sizes(),
                window,
                masked
            );
            add!(
                self,
                format!("sums of images {address:?}"),
                units,
                &["__syncthreads"],
                sums::images,
                address,
                buffer(),
                buffer(),
                1,
                1
            );
            add!(
                self,
                format!("sums of columns {address:?}"),
                units,
                &["__syncthreads"],
                sums::columns,
                address,
                buffer(),
                buffer(),
                1
            );
        }
    }

    /// Exact selection and N:M masks, with shared additions and with the planes' votes.
    fn selection(&mut self) {
        for (shift, width) in select::DIGITS {
            for magnitude in [false, true] {
                add!(
                    self,
                    format!("count, digits from {shift}, magnitude {magnitude}"),
                    ONE_OFF,
                    &["atom.relaxed.add"],
                    select::count,
                    buffer(),
                    buffer(),
                    buffer(),
                    shift,
                    width,
                    shift == select::DIGITS[0].0,
                    magnitude
                );
            }
            add!(
                self,
                format!("choose among {width} bits"),
                ONE_OFF,
                &["__syncthreads"],
                select::choose,
                buffer(),
                buffer(),
                width
            );
        }
        for votes in [false, true] {
            let instruction: &[&str] = if votes {
                &["__ballot_sync"]
            } else {
                &["atom.relaxed.add"]
            };
            for magnitude in [false, true] {
                add!(
                    self,
                    format!("classify, magnitude {magnitude}, votes {votes}"),
                    ONE_OFF,
                    instruction,
                    select::classify,
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    1,
                    1,
                    magnitude,
                    votes
                );
                for m in [1, 3, 4, 32] {
                    add!(
                        self,
                        format!("N:{m}, magnitude {magnitude}, votes {votes}"),
                        ONE_OFF,
                        instruction,
                        nm::rank,
                        buffer(),
                        buffer(),
                        buffer(),
                        1,
                        1,
                        1,
                        m,
                        magnitude,
                        votes
                    );
                }
            }
        }
        add!(
            self,
            "sums of counts",
            ONE_OFF,
            &[],
            select::exclusive_sums,
            buffer()
        );
        for all in [false, true] {
            add!(
                self,
                format!("finish, all {all}"),
                ONE_OFF,
                &[],
                select::finish,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                1,
                1,
                1,
                all
            );
        }
    }

    /// Statistics, Gram sums, packed products, learned thresholds.
    fn sums_and_packed(&mut self) {
        for masked in [false, true] {
            add!(
                self,
                format!("statistics, masked {masked}"),
                ONE_OFF,
                &["__syncthreads"],
                stats::rows_of,
                buffer(),
                buffer(),
                buffer(),
                1,
                1,
                0,
                masked
            );
        }
        add!(
            self,
            "dot products",
            ONE_OFF,
            &["__syncthreads"],
            stats::dot_rows,
            buffer(),
            buffer(),
            buffer(),
            1,
            0
        );
        add!(
            self,
            "Gram sums",
            ONE_OFF,
            &["__syncthreads"],
            gram::add_tiles,
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            1,
            0
        );
        for biased in [false, true] {
            add!(
                self,
                format!("bitmap, bias {biased}"),
                ONE_OFF,
                &["__popc"],
                bitmap::product,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                1,
                1,
                1,
                biased
            );
            for (n, m, bits) in [(2, 4, 2), (1, 32, 5)] {
                add!(
                    self,
                    format!("{n}:{m} product, bias {biased}"),
                    ONE_OFF,
                    &["__syncthreads"],
                    nm_product::product,
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    1,
                    1,
                    1,
                    n,
                    m,
                    bits,
                    biased
                );
            }
        }
        for rule in [
            soft::Rule::Hard,
            soft::Rule::HardThreshold,
            soft::Rule::HardBoth,
            soft::Rule::Shrink,
        ] {
            add!(
                self,
                format!("thresholds, {rule:?}"),
                ONE_OFF,
                &["atom.relaxed.add"],
                soft::mask_rows,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                1,
                rule == soft::Rule::Shrink
            );
            add!(
                self,
                format!("thresholds' gradients, {rule:?}"),
                ONE_OFF,
                &["__syncthreads"],
                soft::gradient_rows,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                1,
                0,
                rule
            );
        }
    }
}

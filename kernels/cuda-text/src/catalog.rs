//! Every tensor-core kernel in every form that a launcher can ask for.

// Arguments of launches that never happen.
#![allow(unsafe_code)]

use std::sync::Arc;

use cubecl::device::{DeviceId, ServiceId};
use cubecl::ir::{DeviceProperties, TargetProperties};
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::gpu::cuda::{Activations, Operand, bitmap, masked, sparse24, warpgroup};

/// A kernel, and what must be in its text.
pub struct Entry {
    /// Its name and form.
    pub name: String,
    /// The kernel.
    pub kernel: Box<dyn CubeKernel>,
    /// Units of a cube.
    pub units: u32,
    /// Instructions that its text must hold.
    pub instructions: Vec<String>,
    /// Architectures that it is for.
    pub architectures: &'static [&'static str],
    /// Whether it is launched with bound checks.
    pub checked: bool,
}

/// What every kernel but the warpgroups' must compile for.
pub(crate) const ANY: &[&str] = &["sm_80", "sm_90a"];
/// What the warpgroup instruction exists on.
const HOPPER: &[&str] = &["sm_90a"];

/// All of them.
pub fn entries(device: &Arc<DeviceProperties>, target: &Arc<TargetProperties>) -> Vec<Entry> {
    let count = || CubeCount::Static(1, 1, 1);
    let mut entries = Vec::new();
    for (operand, activations, aligned) in forms(&[Operand::Bf16, Operand::F16, Operand::Tf32]) {
        let width = if aligned {
            (16 / operand.bytes()) as usize
        } else {
            1
        };
        let name = format!("masked {}", form(operand, activations, aligned));
        let (kind, deep) = (
            operand.kind(),
            if operand == Operand::Tf32 { 8 } else { 16 },
        );
        let mut instructions = vec![
            format!("mma.sync.aligned.m16n8k{deep}.row.col.f32.{kind}.{kind}.f32"),
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16".into(),
            "cp.async.ca.shared.global".into(),
            "cp.async.wait_group".into(),
        ];
        if aligned {
            instructions.push("cp.async.cg.shared.global".into());
        }
        if operand == Operand::Tf32 {
            instructions.push("cvt.rna.tf32.f32".into());
        } else if activations == Activations::Planes {
            instructions.push("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16".into());
        }
        let kernel: Box<dyn CubeKernel> = if operand == Operand::Tf32 {
            Box::new(masked::masked_product::create_dummy_kernel::<u32>(
                device.clone(),
                target.clone(),
                count(),
                CubeDim::new_1d(masked::UNITS),
                width,
                width,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                1,
                1,
                1,
                operand,
                activations,
            ))
        } else {
            Box::new(masked::masked_product::create_dummy_kernel::<u16>(
                device.clone(),
                target.clone(),
                count(),
                CubeDim::new_1d(masked::UNITS),
                width,
                width,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                1,
                1,
                1,
                operand,
                activations,
            ))
        };
        entries.push(Entry {
            name,
            kernel,
            units: masked::UNITS,
            instructions,
            architectures: ANY,
            checked: false,
        });
    }
    for (operand, activations, aligned) in forms(&[Operand::Bf16, Operand::F16]) {
        let width = if aligned { 8 } else { 1 };
        let (kind, form) = (operand.kind(), form(operand, activations, aligned));
        let load = match activations {
            Activations::Tokens => "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
            Activations::Planes => "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
        };
        entries.push(Entry {
            name: format!("2:4 {form}"),
            kernel: Box::new(sparse24::sparse_product::create_dummy_kernel::<u16>(
                device.clone(),
                target.clone(),
                count(),
                CubeDim::new_1d(sparse24::UNITS),
                width,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                1,
                1,
                1,
                operand,
                activations,
            )),
            units: sparse24::UNITS,
            instructions: vec![
                format!(
                    "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{kind}.{kind}.f32"
                ),
                load.into(),
                "cp.async.cg.shared.global".into(),
                "cp.async.wait_group".into(),
            ],
            architectures: ANY,
            checked: false,
        });
        entries.push(Entry {
            name: format!("bitmap {form}"),
            kernel: Box::new(bitmap::bitmap_product::create_dummy_kernel::<u16>(
                device.clone(),
                target.clone(),
                count(),
                CubeDim::new_1d(bitmap::UNITS),
                width,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                1,
                1,
                1,
                1,
                operand,
                activations,
            )),
            units: bitmap::UNITS,
            instructions: vec![
                format!("mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"),
                load.into(),
                "ld.shared.u16".into(),
                "__popc".into(),
                "cp.async.cg.shared.global".into(),
            ],
            architectures: ANY,
            checked: false,
        });
        if activations == Activations::Tokens {
            entries.push(Entry {
                name: format!("masked warpgroup {form}"),
                kernel: Box::new(warpgroup::masked_warpgroup::create_dummy_kernel::<u16>(
                    device.clone(),
                    target.clone(),
                    count(),
                    CubeDim::new_1d(warpgroup::UNITS),
                    width,
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    1,
                    1,
                    1,
                    operand,
                )),
                units: warpgroup::UNITS,
                instructions: vec![
                    format!("wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind}"),
                    "wgmma.fence".into(),
                    "wgmma.wait_group".into(),
                    "fence.proxy.async.shared::cta".into(),
                    "ldmatrix.sync.aligned.m8n8.x4.shared.b16".into(),
                ],
                architectures: HOPPER,
                checked: false,
            });
            entries.push(Entry {
                name: format!("2:4 warpgroup {form}"),
                kernel: Box::new(warpgroup::sparse_warpgroup::create_dummy_kernel::<u16>(
                    device.clone(),
                    target.clone(),
                    count(),
                    CubeDim::new_1d(warpgroup::UNITS),
                    width,
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    1,
                    1,
                    1,
                    operand,
                )),
                units: warpgroup::UNITS,
                instructions: vec![
                    format!("wgmma.mma_async.sp.sync.aligned.m64n128k32.f32.{kind}.{kind}"),
                    "wgmma.fence".into(),
                    "wgmma.wait_group".into(),
                    "fence.proxy.async.shared::cta".into(),
                    "cp.async.cg.shared.global".into(),
                ],
                architectures: HOPPER,
                checked: false,
            });
        }
    }
    entries.push(Entry {
        name: "bitmap parts".into(),
        kernel: Box::new(bitmap::add_parts::create_dummy_kernel(
            device.clone(),
            target.clone(),
            count(),
            CubeDim::new_1d(256),
            buffer(),
            buffer(),
            1,
            1,
        )),
        units: 256,
        instructions: vec![],
        architectures: ANY,
        checked: false,
    });
    entries
}

/// Operands with both orders of activations, with and without whole chunks.
fn forms(operands: &[Operand]) -> Vec<(Operand, Activations, bool)> {
    let mut forms = Vec::new();
    for &operand in operands {
        for activations in [Activations::Tokens, Activations::Planes] {
            forms.extend([true, false].map(|aligned| (operand, activations, aligned)));
        }
    }
    forms
}

fn form(operand: Operand, activations: Activations, aligned: bool) -> String {
    let ends = if aligned { "" } else { " ragged" };
    format!("{} {activations:?}{ends}", operand.kind()).to_lowercase()
}

/// Some buffer: lowering looks at none.
pub(crate) fn buffer() -> BufferArg {
    let device = DeviceId {
        type_id: 0,
        index_id: 0,
    };
    let handle = Handle::new(
        ServiceId::of::<Entry>(device),
        cubecl::environment::stream::StreamId::current(),
        64,
    );
    // SAFETY: nothing is launched, so nothing is read.
    unsafe { BufferArg::from_raw_parts(handle, 16) }
}

//! The device of the one-off kernels, asked for before it is used: where there is none, one line says so.

use std::panic;

use cubecl::Device;
pub use cubecl::client::Client;
use cubecl::device::WgpuDeviceKind;
use cubecl::features::Plane;

use crate::KernelError;

/// A route to a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Any vendor's, through WebGPU.
    Wgpu,
    /// NVIDIA's, through CUDA.
    Cuda,
}

impl Route {
    /// `wgpu` or `cuda`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }

    /// The first device of this route, real ones before software; or why there is none.
    pub fn client(self) -> Result<Client, String> {
        match self {
            Self::Cuda => cuda(),
            Self::Wgpu => wgpu(),
        }
    }
}

/// What a device is and which variants of the kernels it gets.
pub fn describe(client: &Client) -> String {
    let properties = client.properties();
    let hardware = &properties.hardware;
    let planes = if client.features().plane.contains(Plane::Ops) {
        format!("planes of {}", hardware.plane_size_max)
    } else {
        "no plane operations".to_owned()
    };
    format!(
        "{} ({}, {planes}, {} KiB of shared memory)",
        properties.identity.name,
        client.name(),
        hardware.max_shared_memory_size / 1024
    )
}

/// Waits until a device has done what it was given.
pub fn wait(client: &Client) -> Result<(), KernelError> {
    cubecl::future::block_on(client.sync()).map_err(|error| KernelError::Device {
        why: format!("{error:?}"),
    })
}

fn cuda() -> Result<Client, String> {
    if !cfg!(feature = "cuda") {
        return Err("this program was built without the feature cuda".into());
    }
    // The driver's module makes this file; without it no driver can answer, whatever libraries lie around.
    if !std::path::Path::new("/proc/driver/nvidia/version").exists() {
        return Err("no NVIDIA driver on this machine".into());
    }
    quietly(|| Device::cuda(0).map(|device| device.client()))
        .ok_or_else(|| "the NVIDIA driver shows no device that CUDA can use".into())
}

fn wgpu() -> Result<Client, String> {
    if !cfg!(feature = "wgpu") {
        return Err("this program was built without the feature wgpu".into());
    }
    let found = |kind| quietly(move || Device::wgpu(kind).map(|device| device.client()));
    let real = [
        WgpuDeviceKind::DiscreteGpu(0),
        WgpuDeviceKind::IntegratedGpu(0),
        WgpuDeviceKind::VirtualGpu(0),
    ];
    if let Some(client) = real.into_iter().find_map(found) {
        return Ok(client);
    }
    if cfg!(feature = "vulkan") {
        // They crash or compute wrong numbers on the SPIR-V that this build gives them, so not even a look.
        return Err(
            "no GPU adapter; software ones are refused by a build with the feature vulkan".into(),
        );
    }
    found(WgpuDeviceKind::Cpu)
        .ok_or_else(|| "no adapter, GPU or software; install a Vulkan driver and its loader".into())
}

/// What `ask` finds, without a word where it panics, as drivers that are half there make it.
fn quietly<E>(ask: impl FnOnce() -> Result<Client, E> + panic::UnwindSafe) -> Option<Client> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let found = panic::catch_unwind(ask);
    panic::set_hook(hook);
    found.ok()?.ok()
}

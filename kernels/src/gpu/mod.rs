//! Kernels for GPUs in CubeCL: one source for WGSL, SPIR-V and CUDA. The feature `gpu`, which `wgpu` and `cuda` imply.
//!
//! The reference that judges them is [`crate::reference`], as it is for the CPU's.
#![allow(unsafe_code)] // Kernels check their own bounds; each launch says why that suffices.

mod direct;
pub(crate) mod product;
mod sums;
mod tile;

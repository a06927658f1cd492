//! Kernels for GPUs in CubeCL: one source for WGSL, SPIR-V and CUDA. The feature `gpu`, which `wgpu` and `cuda` imply.
//!
//! The reference that judges them is [`crate::reference`], as it is for the CPU's.
#![allow(unsafe_code)] // Kernels check their own bounds; each launch says why that suffices.

pub mod bitmap;
mod blueprint;
pub mod buffer;
pub mod check;
pub mod client;
mod compensated;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dense_tile;
mod direct;
pub mod gram;
pub mod nm;
pub mod nm_product;
pub(crate) mod product;
pub mod select;
pub mod soft;
pub mod stats;
mod sums;
mod tile;
mod words;

//! Kernels for GPUs in CubeCL: one source for WGSL, SPIR-V and CUDA. The feature `gpu`, which `wgpu` and `cuda` imply.
//!
//! The reference that judges them is [`crate::reference`], as it is for the CPU's.

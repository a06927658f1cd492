//! The kernels, under the path they have in `kernels`.

#[path = "../../src/gpu/cuda/mod.rs"]
pub mod cuda;

//! The CUDA kernels' sources, compiled without Burn, and what lowers them to CUDA text.

// Shared with `kernels` by path; what of it these tests do not call is not dead there.
#![allow(dead_code)]

pub mod catalog;
pub mod emulate;
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/format/mod.rs"]
pub mod format;
#[path = "../../src/geometry.rs"]
mod geometry;
pub mod lower;
pub mod nvrtc;

pub mod gpu;
#[path = "../../src/reference/sparse_mma.rs"]
pub mod sparse_mma;

pub use error::KernelError;
pub use format::{BitMask, Bitmap, ColOrder, Csr, Half, Nm, Nm24Hw};
pub use geometry::ConvShape;

/// Stands for the CPU's arithmetic, which errors name and CUDA has nothing to do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision;

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("this")
    }
}

//! The CUDA kernels' sources, compiled without Burn, and what lowers them to CUDA text.

// Shared with `kernels` by path; what of it these tests do not call is not dead there.
#![allow(dead_code, unused_imports)]

pub mod catalog;
pub mod emulate;
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/format/mod.rs"]
pub mod format;
#[path = "../../src/geometry.rs"]
mod geometry;
#[path = "../../src/gram.rs"]
mod gram;
pub mod lower;
#[path = "../../src/nm/mod.rs"]
mod nm;
pub mod nvrtc;
pub mod portable;
#[path = "../../src/select/mod.rs"]
mod select;
#[path = "../../src/soft.rs"]
mod soft;
#[path = "../../src/stats.rs"]
mod stats;

pub mod gpu;
#[path = "../../src/reference/sparse_mma.rs"]
pub mod sparse_mma;

pub use error::KernelError;
pub use format::{BitMask, Bitmap, ColOrder, Csr, Half, Nm, Nm24Hw};
pub use geometry::ConvShape;
pub use gram::GramState;
pub use nm::nm_applies;
pub use select::{KthValue, Scores, Stored, Ties};
pub use soft::{MaskGrad, SoftMode};
pub use stats::ChannelStats;

/// Stands for the CPU's arithmetic, which errors name and CUDA has nothing to do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision;

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("this")
    }
}

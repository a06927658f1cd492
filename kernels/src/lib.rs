//! Sparse arithmetic for post-training sparsity: mask formats and the exact selection of what goes.
//!
//! Knows scores, patterns and shapes; nothing of models, files or policy (which rate, which layer).

pub mod cpu;
mod error;
pub mod format;
mod geometry;
mod nm;
pub mod reference;
mod select;

pub use error::KernelError;
pub use format::BitMask;
pub use geometry::ConvShape;
pub use nm::{TileLayout, nm_applies, nm_mask, nm_mask_transposable};
pub use select::{
    KthValue, Scores, Ties, global_counts, select_smallest, select_smallest_global, threshold_of,
};

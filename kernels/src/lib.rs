//! Sparse arithmetic for post-training sparsity: mask formats and the exact selection of what goes.
//!
//! Knows scores, patterns and shapes; nothing of models, files or policy (which rate, which layer).

mod activation;
mod columns;
pub mod cpu;
mod error;
pub mod format;
mod geometry;
#[cfg(feature = "gpu")]
pub mod gpu;
mod gram;
mod memory;
mod moments;
mod nm;
mod ops;
pub mod plan;
mod precision;
pub mod reference;
mod select;
mod soft;
mod stats;

pub use activation::Activation;
pub use error::KernelError;
pub use format::{BitMask, Bitmap, ColOrder, Csr, Half, Nm, Nm24Hw};
pub use geometry::{ConvShape, LinearShape};
pub use gram::GramState;
pub use memory::keep_freed_memory;
pub use moments::ColumnSums;
pub use nm::{
    LocalMask, TileLayout, nm_applies, nm_mask, nm_mask_transposable, nm_mask_transposable_local,
};
pub use ops::{
    Bias, ConvOptions, CpuOps, FrozenOps, Keep, Skip, SparseOps, activate, batch_norm_train,
    conv2d, fixed_batch_norm, frozen_conv2d, frozen_linear, frozen_runs, gate, gelu, gpu_fallbacks,
    join, keep, layer_norm, linear, matmul, softmax,
};
pub use precision::{Precision, precision_fallbacks};
pub use select::{
    KthValue, Scores, Stored, Ties, global_counts, select_smallest, select_smallest_global,
    threshold_of,
};
pub use soft::{MaskGrad, SoftMask, SoftMode, soft_mask_backward, soft_mask_forward};
pub use stats::{ChannelStats, channel_dot, channel_stats};

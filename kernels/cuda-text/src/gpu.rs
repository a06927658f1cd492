//! The kernels, under the path they have in `kernels`: all but what takes Burn's tensors and opens devices.

#[path = "../../src/gpu/cuda/mod.rs"]
pub mod cuda;

#[path = "../../src/gpu/bitmap.rs"]
pub(crate) mod bitmap;
#[path = "../../src/gpu/blueprint.rs"]
pub(crate) mod blueprint;
#[path = "../../src/gpu/buffer.rs"]
pub(crate) mod buffer;
#[path = "../../src/gpu/compensated.rs"]
pub(crate) mod compensated;
#[path = "../../src/gpu/dense_tile.rs"]
pub(crate) mod dense_tile;
#[path = "../../src/gpu/direct.rs"]
pub(crate) mod direct;
#[path = "../../src/gpu/gram.rs"]
pub(crate) mod gram;
#[path = "../../src/gpu/nm.rs"]
pub(crate) mod nm;
#[path = "../../src/gpu/nm_product.rs"]
pub(crate) mod nm_product;
#[path = "../../src/gpu/select.rs"]
pub(crate) mod select;
#[path = "../../src/gpu/soft.rs"]
pub(crate) mod soft;
#[path = "../../src/gpu/stats.rs"]
pub(crate) mod stats;
#[path = "../../src/gpu/sums.rs"]
pub(crate) mod sums;
#[path = "../../src/gpu/tile.rs"]
pub(crate) mod tile;
#[path = "../../src/gpu/words.rs"]
pub(crate) mod words;

//! The loops, generic over the instruction set. Each becomes an entry of every table; none is called otherwise.

mod depthwise;
mod moves;
mod products;

pub use depthwise::{dots, taps};
pub use moves::{copy, every_second, interleave, keep_across, keep_along, pack, transpose};
pub use products::{gemm, outer, sampled, sparse, tile};

//! Mask and weight formats: pack, unpack, validate. Plain Rust; row = output channel.

mod bitmask;

pub use bitmask::BitMask;

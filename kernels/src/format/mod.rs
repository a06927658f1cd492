//! Mask and weight formats: pack, unpack, validate. Plain Rust; row = output channel.
//!
//! Every format writes itself as bytes: one byte that names format and version, then little-endian sizes and arrays.
//! Bytes from elsewhere are believed in nothing: sizes are checked against what follows before anything is allocated.

mod bitmap;
mod bitmask;
mod bytes;
mod csr;
mod half;
mod nm;
mod nm24;
mod order;

pub use bitmap::Bitmap;
pub use bitmask::BitMask;
pub use csr::Csr;
pub use half::Half;
pub use nm::Nm;
pub use nm24::Nm24Hw;
pub use order::{ColOrder, reorder_columns};

#[cfg(test)]
pub(crate) use tests::masks as test_masks;

#[cfg(test)]
mod tests {
    use super::BitMask;
    use crate::reference::values;
    use proptest::prelude::*;

    /// Masks of odd, empty and word-sized shapes at every density the specification names.
    pub(crate) fn masks() -> impl Strategy<Value = BitMask> {
        let cols = prop_oneof![0usize..=97, Just(127), Just(128), Just(129)];
        let density = prop_oneof![
            Just(0.0f32),
            Just(0.05),
            Just(0.2),
            Just(0.5),
            Just(0.95),
            Just(1.0),
            Just(-1.0), // one per row
        ];
        (0usize..12, cols, density, 0u64..1000).prop_map(|(rows, cols, density, seed)| {
            let random = values(seed, rows * cols);
            BitMask::from_fn(rows, cols, |i| {
                if density < 0.0 {
                    i % cols == (seed as usize * 7 + i / cols) % cols
                } else {
                    random[i] < 2.0 * density - 1.0
                }
            })
        })
    }
}

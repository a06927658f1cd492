//! Two orders of a convolution weight's columns, and the way from one to the other.

use crate::error::expect_len;
use crate::{BitMask, KernelError};

/// Order of the columns of a weight matrix: which axis runs fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ColOrder {
    /// (channel, ky, kx): the weight as it is stored. For a linear layer both orders are one.
    #[default]
    Oihw,
    /// (ky, kx, channel): the M channels of an N:M group lie side by side.
    Ohwi,
}

impl ColOrder {
    pub(super) fn to_byte(self) -> u8 {
        match self {
            Self::Oihw => 0,
            Self::Ohwi => 1,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Oihw),
            1 => Some(Self::Ohwi),
            _ => None,
        }
    }
}

/// Copies a weight matrix into another column order.
///
/// # Shapes
/// `values`: `[rows, channels * taps]` in order `from`; the result in order `to`.
pub fn reorder_columns<T: Copy>(
    values: &[T],
    rows: usize,
    [channels, taps]: [usize; 2],
    from: ColOrder,
    to: ColOrder,
) -> Result<Vec<T>, KernelError> {
    let cols = channels * taps;
    expect_len("values", rows * cols, values.len())?;
    // A target column's (slow, fast) coordinates change places in the source.
    let fast = match (from, to) {
        (ColOrder::Oihw, ColOrder::Ohwi) => channels,
        (ColOrder::Ohwi, ColOrder::Oihw) => taps,
        _ => return Ok(values.to_vec()),
    };
    let slow = cols / fast.max(1);
    let columns = (0..rows * cols).map(|i| {
        let (row, col) = (i / cols, i % cols);
        values[row * cols + col % fast * slow + col / fast]
    });
    Ok(columns.collect())
}

impl BitMask {
    /// The same mask over another column order; see [`reorder_columns`].
    pub fn reorder_columns(
        &self,
        [channels, taps]: [usize; 2],
        from: ColOrder,
        to: ColOrder,
    ) -> Result<Self, KernelError> {
        let keep = reorder_columns(&self.to_keep(), self.rows(), [channels, taps], from, to)?;
        Self::from_keep(self.rows(), self.cols(), &keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn channels_come_to_lie_side_by_side() {
        // Value = channel * 10 + tap.
        let oihw = [0, 1, 2, 10, 11, 12];
        let ohwi = reorder_columns(&oihw, 1, [2, 3], ColOrder::Oihw, ColOrder::Ohwi).unwrap();
        assert_eq!(ohwi, [0, 10, 1, 11, 2, 12]);
        assert!(reorder_columns(&oihw, 2, [2, 3], ColOrder::Oihw, ColOrder::Ohwi).is_err());
    }

    proptest! {
        #[test]
        fn there_and_back(rows in 0usize..4, channels in 0usize..7, taps in 0usize..10) {
            let values: Vec<usize> = (0..rows * channels * taps).collect();
            let axes = [channels, taps];
            let (a, b) = (ColOrder::Oihw, ColOrder::Ohwi);
            for (a, b) in [(a, b), (b, a), (a, a)] {
                let there = reorder_columns(&values, rows, axes, a, b).unwrap();
                prop_assert_eq!(&reorder_columns(&there, rows, axes, b, a).unwrap(), &values);
            }
            let mask = BitMask::from_fn(rows, channels * taps, |i| i % 3 == 0);
            let moved = mask.reorder_columns(axes, a, b).unwrap();
            for row in 0..rows {
                for c in 0..channels {
                    for t in 0..taps {
                        prop_assert_eq!(mask.get(row, c * taps + t), moved.get(row, t * channels + c));
                    }
                }
            }
        }
    }
}

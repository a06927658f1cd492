//! N:M weights: of every M consecutive columns at most N, values and packed indices apart.

use super::bytes::{self, Reader};
use super::order::ColOrder;
use crate::error::expect_len;
use crate::{BitMask, KernelError};

const FORMAT: &str = "N:M weight";
const BITS: usize = u32::BITS as usize;

/// N values of every M consecutive columns, 1 <= N < M <= 32.
///
/// A group that keeps fewer than N fills its slots with zeros at columns it does not keep, so that indices always
/// ascend strictly. For a convolution the groups run along input channels, so the columns are in [`ColOrder::Ohwi`].
#[derive(Debug, Clone, PartialEq)]
pub struct Nm {
    rows: usize,
    cols: usize,
    n: usize,
    m: usize,
    order: ColOrder,
    /// `[rows, cols / m * n]`.
    val: Vec<f32>,
    /// `[rows, words_per_row]`: every slot's index in its group, `index_bits` each, group-major, lowest bits first.
    idx: Vec<u32>,
}

impl Nm {
    /// Names format and version in the byte form.
    pub const FORMAT_ID: u8 = 4;

    /// Gathers what the mask keeps; what it prunes is never read. Refuses columns that M does not divide and groups that
    /// keep more than N.
    ///
    /// # Shapes
    /// `weights`: `[rows, cols]` as the mask, columns of both in `order`.
    pub fn from_dense(
        weights: &[f32],
        mask: &BitMask,
        [n, m]: [usize; 2],
        order: ColOrder,
    ) -> Result<Self, KernelError> {
        check_pattern(n, m)?;
        expect_len("weights", mask.len(), weights.len())?;
        let (rows, cols) = (mask.rows(), mask.cols());
        check_groups(cols, m)?;
        let mut packed = Self {
            rows,
            cols,
            n,
            m,
            order,
            val: Vec::with_capacity(rows * (cols / m * n)),
            idx: vec![0; rows * words_per_row(cols, n, m)],
        };
        for row in 0..rows {
            for group in 0..cols / m {
                let first = group * m;
                let mut slots = 0u32;
                for index in 0..m {
                    slots |= u32::from(mask.get(row, first + index)) << index;
                }
                let kept = slots;
                if kept.count_ones() as usize > n {
                    return Err(fail(format!(
                        "group {group} of row {row} keeps {}, more than {n} of {m}",
                        kept.count_ones()
                    )));
                }
                while (slots.count_ones() as usize) < n {
                    slots |= 1 << slots.trailing_ones();
                }
                for (slot, index) in ones(slots).enumerate() {
                    let keep = kept >> index & 1 == 1;
                    let value = if keep {
                        weights[row * cols + first + index]
                    } else {
                        0.0
                    };
                    packed.val.push(value);
                    packed.set_index(row, group * n + slot, index as u32);
                }
            }
        }
        Ok(packed)
    }

    /// The matrix, pruned weights +0.
    pub fn to_dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.rows * self.cols];
        for row in 0..self.rows {
            for (slot, &value) in self.row_values(row).iter().enumerate() {
                dense[row * self.cols + self.column(row, slot)] = value;
            }
        }
        dense
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights per output channel, kept or not.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// N and M.
    pub fn pattern(&self) -> [usize; 2] {
        [self.n, self.m]
    }

    /// Order of the columns.
    pub fn order(&self) -> ColOrder {
        self.order
    }

    /// Slots per row, cols / M * N.
    pub fn slots(&self) -> usize {
        self.cols / self.m * self.n
    }

    /// All values, `[rows, slots]`.
    pub fn values(&self) -> &[f32] {
        &self.val
    }

    /// Values of a row, slot by slot.
    pub fn row_values(&self, row: usize) -> &[f32] {
        &self.val[row * self.slots()..][..self.slots()]
    }

    /// Packed indices, `[rows, words]`.
    pub fn index_words(&self) -> &[u32] {
        &self.idx
    }

    /// Bits of one index, ceil(log2 M).
    pub fn index_bits(&self) -> usize {
        index_bits(self.m)
    }

    /// Column of a row's slot.
    pub fn column(&self, row: usize, slot: usize) -> usize {
        slot / self.n * self.m + self.index(row, slot) as usize
    }

    /// Index of a row's slot in its group.
    pub fn index(&self, row: usize, slot: usize) -> u32 {
        let words = &self.idx[row * self.words_per_row()..][..self.words_per_row()];
        let bits = self.index_bits();
        let (word, shift) = (slot * bits / BITS, slot * bits % BITS);
        // An index of 3 or 5 bits may straddle two words.
        let next = words.get(word + 1).copied().unwrap_or(0);
        let pair = u64::from(next) << BITS | u64::from(words[word]);
        (pair >> shift) as u32 & ((1 << bits) - 1)
    }

    fn set_index(&mut self, row: usize, slot: usize, index: u32) {
        let at = slot * self.index_bits();
        let word = row * self.words_per_row() + at / BITS;
        let pair = u64::from(index) << (at % BITS);
        self.idx[word] |= pair as u32;
        if pair >> BITS != 0 {
            self.idx[word + 1] |= (pair >> BITS) as u32;
        }
    }

    fn words_per_row(&self) -> usize {
        words_per_row(self.cols, self.n, self.m)
    }

    /// Bytes of values and indices over the weights covered, at `value_bytes` per value; row padding included, NaN for
    /// no weights.
    pub fn bytes_per_weight(&self, value_bytes: usize) -> f64 {
        let bytes = value_bytes * self.val.len() + 4 * self.idx.len();
        bytes as f64 / (self.rows as f64 * self.cols as f64)
    }

    /// Checks the invariants: pattern, lengths, indices that ascend below M, clear tail bits.
    pub fn validate(&self) -> Result<(), KernelError> {
        check_pattern(self.n, self.m)?;
        check_groups(self.cols, self.m)?;
        expect_len("values", self.rows * self.slots(), self.val.len())?;
        expect_len("indices", self.rows * self.words_per_row(), self.idx.len())?;
        if self.cols == 0 {
            return Ok(());
        }
        let tail = self.slots() * self.index_bits() % BITS;
        for row in 0..self.rows {
            let last = self.idx[(row + 1) * self.words_per_row() - 1];
            if tail != 0 && last >> tail != 0 {
                return Err(fail(format!("row {row} has bits beyond its last index")));
            }
            for first in (0..self.slots()).step_by(self.n) {
                let mut next = 0;
                for slot in first..first + self.n {
                    let index = self.index(row, slot);
                    if index < next || index as usize >= self.m {
                        return Err(fail(format!(
                            "slot {slot} of row {row} has index {index}; {next}..{} is open",
                            self.m
                        )));
                    }
                    next = index + 1;
                }
            }
        }
        Ok(())
    }

    /// The byte form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let sizes = [self.rows, self.cols, self.n, self.m];
        let mut bytes = bytes::header(Self::FORMAT_ID, &sizes);
        bytes.push(self.order.to_byte());
        bytes::put_floats(&mut bytes, &self.val);
        bytes::put_words(&mut bytes, &self.idx);
        bytes
    }

    /// Reads the byte form; refuses whatever [`Nm::validate`] would.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        let mut reader = Reader::new(FORMAT, Self::FORMAT_ID, bytes)?;
        let (rows, cols) = (reader.size()?, reader.size()?);
        let (n, m) = (reader.size()?, reader.size()?);
        check_pattern(n, m)?;
        check_groups(cols, m)?;
        // An index has 5 bits at most, so this bounds every product below, for no rows too.
        reader.product(&[rows.max(1), cols, 8])?;
        let order = reader.byte()?;
        let order = ColOrder::from_byte(order)
            .ok_or_else(|| reader.fail(format!("column order {order}")))?;
        let packed = Self {
            rows,
            cols,
            n,
            m,
            order,
            val: reader.floats(rows * (cols / m * n))?,
            idx: reader.words(rows * words_per_row(cols, n, m))?,
        };
        reader.end()?;
        packed.validate()?;
        Ok(packed)
    }
}

fn check_pattern(n: usize, m: usize) -> Result<(), KernelError> {
    if n == 0 || n >= m || m > 32 {
        return Err(KernelError::Pattern { n, m });
    }
    Ok(())
}

fn check_groups(cols: usize, m: usize) -> Result<(), KernelError> {
    if cols.is_multiple_of(m) {
        Ok(())
    } else {
        Err(fail(format!("{cols} columns are no multiple of {m}")))
    }
}

fn index_bits(m: usize) -> usize {
    m.next_power_of_two().ilog2() as usize
}

fn words_per_row(cols: usize, n: usize, m: usize) -> usize {
    (cols / m * n * index_bits(m)).div_ceil(BITS)
}

/// Positions of the set bits, ascending.
fn ones(mut word: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let index = (word != 0).then_some(word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(index)
    })
}

fn fail(why: String) -> KernelError {
    KernelError::Format {
        format: FORMAT,
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::bytes::damaged;
    use crate::nm_mask;
    use crate::reference::values;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trips(
            rows in 0usize..5,
            groups in 0usize..12,
            pattern in (2usize..=32).prop_flat_map(|m| (1..m, Just(m))),
            thin in any::<bool>(),
            seed in 0u64..1000,
        ) {
            let ((n, m), cols) = (pattern, groups * pattern.1);
            let scores: Vec<f32> = values(seed, rows * cols).iter().map(|v| v.abs()).collect();
            let mut keep = nm_mask(&scores[..], &[rows, cols], n, m).unwrap().to_keep();
            if thin {
                for (i, keep) in keep.iter_mut().enumerate() {
                    *keep &= scores[i] > 0.5;
                }
            }
            let mask = BitMask::from_keep(rows, cols, &keep).unwrap();
            let mut weights = values(seed + 1, rows * cols);
            for (weight, keep) in weights.iter_mut().zip(&keep) {
                if !keep {
                    *weight = f32::NAN;
                }
            }
            let packed = Nm::from_dense(&weights, &mask, [n, m], ColOrder::Ohwi).unwrap();
            packed.validate().unwrap();
            mask.apply(&mut weights).unwrap();
            prop_assert_eq!(packed.to_dense(), weights);
            prop_assert_eq!(Nm::from_bytes(&packed.to_bytes()).unwrap(), packed);
        }
    }

    #[test]
    fn a_group_worked_by_hand() {
        let mask = BitMask::from_keep(1, 8, &[false, true, false, true, false, false, true, false]);
        let weights = [9.0, 1.0, 9.0, 2.0, 9.0, 9.0, 3.0, 9.0];
        let packed = Nm::from_dense(&weights, &mask.unwrap(), [2, 4], ColOrder::Oihw).unwrap();
        // The second group fills a slot with column 0.
        assert_eq!(packed.values(), [1.0, 2.0, 0.0, 3.0]);
        assert_eq!(packed.index_words(), [0b10_00_11_01]);
        assert_eq!(packed.column(0, 3), 6);
    }

    #[test]
    fn sizes_are_the_specified_ones() {
        let mask = |n, m| nm_mask(&values(1, 4 * 256)[..], &[4, 256], n, m).unwrap();
        for ([n, m], bytes) in [
            ([2, 4], 1.125),
            ([1, 4], 0.5625),
            ([4, 8], 1.1875),
            ([8, 16], 1.25),
        ] {
            let packed = Nm::from_dense(&[0.0; 1024], &mask(n, m), [n, m], ColOrder::Oihw).unwrap();
            assert_eq!(packed.bytes_per_weight(2), bytes, "{n}:{m}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let full = BitMask::full(2, 8);
        let pack = |n, m| Nm::from_dense(&[0.0; 16], &full, [n, m], ColOrder::Oihw);
        assert_eq!(pack(4, 4), Err(KernelError::Pattern { n: 4, m: 4 }));
        assert_eq!(pack(1, 33), Err(KernelError::Pattern { n: 1, m: 33 }));
        let message = |n, m| pack(n, m).unwrap_err().to_string();
        assert!(message(2, 4).contains("group 0 of row 0 keeps 4, more than 2 of 4"));
        assert!(message(2, 5).contains("8 columns are no multiple of 5"));
    }

    #[test]
    fn broken_indices_are_refused() {
        let mask = nm_mask(&values(3, 30)[..], &[3, 10], 2, 5).unwrap();
        let good = Nm::from_dense(&values(4, 30), &mask, [2, 5], ColOrder::Oihw).unwrap();
        let broken = |row: usize, bits: u32| {
            let mut packed = good.clone();
            packed.idx[row] = bits;
            packed.validate().unwrap_err().to_string()
        };
        assert!(broken(1, 1 << 12 | good.idx[1]).contains("row 1 has bits beyond"));
        assert!(broken(2, 0b010_001_010_010).contains("slot 1 of row 2 has index 2; 3..5"));
        assert!(broken(0, 0b101_001_010_001).contains("slot 3 of row 0 has index 5; 2..5"));
    }

    #[test]
    fn foreign_bytes_never_panic() {
        let mask = nm_mask(&values(3, 30)[..], &[3, 10], 2, 5).unwrap();
        let packed = Nm::from_dense(&values(4, 30), &mask, [2, 5], ColOrder::Oihw).unwrap();
        let bytes = packed.to_bytes();
        let mut refused = 0;
        for bytes in damaged(&bytes) {
            match Nm::from_bytes(&bytes) {
                Ok(packed) => packed.validate().unwrap(),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > bytes.len());
    }
}

//! One bit per weight: 1 = keep. Bit `j % 32` of word `j / 32` of a row, least significant first; tail bits are 0.

use super::bytes::{self, Reader};
use crate::KernelError;
use crate::error::expect_len;

const FORMAT: &str = "bit mask";

const BITS: usize = u32::BITS as usize;

/// Which weights of a `[rows, cols]` matrix are kept.
///
/// Rows are output channels, columns the row-major flattening of everything else (OIHW order for convolutions).
/// Every row starts at a word, so that rows can be cut and walked on their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitMask {
    rows: usize,
    cols: usize,
    words: Vec<u32>,
    row_nnz: Vec<u32>,
}

impl BitMask {
    /// Names format and version in the byte form.
    pub const FORMAT_ID: u8 = 1;

    /// The mask that keeps everything.
    pub fn full(rows: usize, cols: usize) -> Self {
        Self::from_fn(rows, cols, |_| true)
    }

    /// Packs one flag per weight, row-major; `true` = keep.
    pub fn from_keep(rows: usize, cols: usize, keep: &[bool]) -> Result<Self, KernelError> {
        expect_len("keep", rows * cols, keep.len())?;
        Ok(Self::from_fn(rows, cols, |index| keep[index]))
    }

    /// Takes packed words `[rows, ceil(cols / 32)]`; refuses set tail bits.
    pub fn from_words(rows: usize, cols: usize, words: Vec<u32>) -> Result<Self, KernelError> {
        let stride = cols.div_ceil(BITS);
        expect_len("words", rows * stride, words.len())?;
        let row_nnz = (0..rows)
            .map(|row| count_ones(&words[row * stride..][..stride]))
            .collect();
        let mask = Self {
            rows,
            cols,
            words,
            row_nnz,
        };
        mask.validate()?;
        Ok(mask)
    }

    /// Asks `keep` once per weight, in flat row-major order.
    pub(crate) fn from_fn(rows: usize, cols: usize, mut keep: impl FnMut(usize) -> bool) -> Self {
        let stride = cols.div_ceil(BITS);
        let mut words = vec![0u32; rows * stride];
        for row in 0..rows {
            for col in 0..cols {
                words[row * stride + col / BITS] |=
                    u32::from(keep(row * cols + col)) << (col % BITS);
            }
        }
        let row_nnz = (0..rows)
            .map(|row| count_ones(&words[row * stride..][..stride]))
            .collect();
        Self {
            rows,
            cols,
            words,
            row_nnz,
        }
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights per output channel.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Weights covered.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it covers no weight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The packed words, `[rows, ceil(cols / 32)]`.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether the weight at `(row, col)` is kept; panics outside the matrix, as indexing does.
    pub fn get(&self, row: usize, col: usize) -> bool {
        assert!(
            row < self.rows && col < self.cols,
            "({row}, {col}) lies outside a {} x {} mask",
            self.rows,
            self.cols
        );
        self.words[row * self.stride() + col / BITS] >> (col % BITS) & 1 == 1
    }

    /// Kept weights.
    pub fn nnz(&self) -> usize {
        self.row_nnz.iter().map(|&count| count as usize).sum()
    }

    /// Columns that a row keeps, ascending.
    pub(crate) fn row_kept(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        let words = &self.words[row * self.stride()..][..self.stride()];
        words.iter().enumerate().flat_map(|(at, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then_some(rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                Some(at * BITS + bit)
            })
        })
    }

    /// Kept weights of each row.
    pub fn row_nnz(&self) -> &[u32] {
        &self.row_nnz
    }

    /// Pruned weights.
    pub fn zeros(&self) -> usize {
        self.len() - self.nnz()
    }

    /// One flag per weight, row-major.
    pub fn to_keep(&self) -> Vec<bool> {
        self.keep().collect()
    }

    /// Flags in flat row-major order, without storing them.
    pub fn keep(&self) -> impl Iterator<Item = bool> + '_ {
        (0..self.rows).flat_map(move |row| (0..self.cols).map(move |col| self.get(row, col)))
    }

    /// Sets every pruned weight to +0, whatever it was (NaN included); kept ones stay untouched.
    pub fn apply(&self, weights: &mut [f32]) -> Result<(), KernelError> {
        expect_len("weights", self.len(), weights.len())?;
        for (weight, keep) in weights.iter_mut().zip(self.keep()) {
            if !keep {
                *weight = 0.0;
            }
        }
        Ok(())
    }

    /// Checks the invariants: lengths, tail bits, row counts.
    pub fn validate(&self) -> Result<(), KernelError> {
        let stride = self.stride();
        expect_len("words", self.rows * stride, self.words.len())?;
        expect_len("row_nnz", self.rows, self.row_nnz.len())?;
        let tail = self.cols % BITS;
        for row in 0..self.rows {
            let words = &self.words[row * stride..][..stride];
            if tail != 0 && words[stride - 1] >> tail != 0 {
                return Err(KernelError::TailBits {
                    row,
                    cols: self.cols,
                });
            }
            expect_len(
                "row_nnz's row",
                count_ones(words) as usize,
                self.row_nnz[row] as usize,
            )?;
        }
        Ok(())
    }

    /// Bytes of words and row counts over the weights covered; NaN for none.
    pub fn bytes_per_weight(&self) -> f64 {
        let words = self.words.len() + self.row_nnz.len();
        4.0 * words as f64 / (self.rows as f64 * self.cols as f64)
    }

    /// The byte form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = bytes::header(Self::FORMAT_ID, &[self.rows, self.cols]);
        bytes::put_words(&mut bytes, &self.row_nnz);
        bytes::put_words(&mut bytes, &self.words);
        bytes
    }

    /// Reads the byte form; refuses whatever [`BitMask::validate`] would.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        let mut reader = Reader::new(FORMAT, Self::FORMAT_ID, bytes)?;
        let (rows, cols) = (reader.size()?, reader.size()?);
        reader.product(&[rows, cols, 4])?;
        let mask = Self {
            rows,
            cols,
            row_nnz: reader.words(rows)?,
            words: reader.words(rows * cols.div_ceil(BITS))?,
        };
        reader.end()?;
        mask.validate()?;
        Ok(mask)
    }

    fn stride(&self) -> usize {
        self.cols.div_ceil(BITS)
    }
}

fn count_ones(words: &[u32]) -> u32 {
    words.iter().map(|word| word.count_ones()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::bytes::damaged;
    use proptest::prelude::*;

    fn masks() -> impl Strategy<Value = (usize, usize, Vec<bool>)> {
        (0usize..5, 0usize..70).prop_flat_map(|(rows, cols)| {
            let keep = proptest::collection::vec(any::<bool>(), rows * cols);
            (Just(rows), Just(cols), keep)
        })
    }

    proptest! {
        #[test]
        fn round_trips((rows, cols, keep) in masks()) {
            let mask = BitMask::from_keep(rows, cols, &keep).unwrap();
            mask.validate().unwrap();
            prop_assert_eq!(mask.to_keep(), keep.clone());
            prop_assert_eq!(mask.nnz(), keep.iter().filter(|&&k| k).count());
            prop_assert_eq!(mask.nnz() + mask.zeros(), rows * cols);
            for row in 0..rows {
                let kept = (0..cols).filter(|&col| mask.get(row, col)).count();
                prop_assert_eq!(mask.row_nnz()[row] as usize, kept);
            }
            let again = BitMask::from_words(rows, cols, mask.words().to_vec()).unwrap();
            prop_assert_eq!(&again, &mask);
            prop_assert_eq!(BitMask::from_bytes(&mask.to_bytes()).unwrap(), mask);
        }

        #[test]
        fn applying_clears_exactly_the_pruned((rows, cols, keep) in masks()) {
            let mask = BitMask::from_keep(rows, cols, &keep).unwrap();
            let mut weights: Vec<f32> = (0..rows * cols).map(|i| i as f32 + 1.0).collect();
            mask.apply(&mut weights).unwrap();
            for (index, (&weight, &keep)) in weights.iter().zip(&keep).enumerate() {
                prop_assert_eq!(weight, if keep { index as f32 + 1.0 } else { 0.0 });
            }
        }
    }

    #[test]
    fn foreign_bytes_never_panic() {
        let bytes = BitMask::from_fn(3, 35, |i| i % 3 == 0).to_bytes();
        let mut refused = 0;
        for bytes in damaged(&bytes) {
            match BitMask::from_bytes(&bytes) {
                Ok(mask) => mask.validate().unwrap(),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > bytes.len());
        assert_eq!(BitMask::full(4, 64).bytes_per_weight(), 12.0 / 64.0);
    }

    #[test]
    fn bits_are_least_significant_first() {
        let keep: Vec<bool> = (0..66)
            .map(|i| [0, 5, 32, 33, 65].contains(&(i % 66)))
            .collect();
        let mask = BitMask::from_keep(2, 33, &keep).unwrap();
        assert_eq!(mask.words(), [0b10_0001, 1, 1, 1]);
        assert_eq!(mask.row_nnz(), [3, 2]);
    }

    #[test]
    fn pruned_nan_becomes_zero() {
        let mask = BitMask::from_keep(1, 2, &[false, true]).unwrap();
        let mut weights = [f32::NAN, -2.0];
        mask.apply(&mut weights).unwrap();
        assert_eq!(weights, [0.0, -2.0]);
    }

    #[test]
    fn bad_words_and_lengths_are_refused() {
        assert_eq!(
            BitMask::from_words(2, 3, vec![0, 0b1000]),
            Err(KernelError::TailBits { row: 1, cols: 3 })
        );
        assert!(matches!(
            BitMask::from_words(1, 33, vec![0]),
            Err(KernelError::Length {
                expected: 2,
                found: 1,
                ..
            })
        ));
        assert!(BitMask::from_keep(2, 2, &[true; 3]).is_err());
        assert!(BitMask::full(1, 2).apply(&mut [0.0]).is_err());
    }
}

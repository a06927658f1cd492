//! Compressed sparse rows: the kept weights of each row with their columns, for sparse x dense products on CPUs.

use super::bytes::{self, Reader};
use super::order::ColOrder;
use crate::error::expect_len;
use crate::{BitMask, KernelError};

const FORMAT: &str = "CSR weight";

/// The kept weights of a `[rows, cols]` matrix, row by row, columns ascending; fewer than 2^32 of them.
///
/// The pattern is the mask's: a kept weight that is 0 stays an entry. Rows may be stored in another order than the
/// matrix has them, see [`Csr::balanced`].
#[derive(Debug, Clone, PartialEq)]
pub struct Csr {
    rows: usize,
    cols: usize,
    order: ColOrder,
    row_ptr: Vec<u32>,
    col: Vec<u32>,
    val: Vec<f32>,
    /// Matrix row of each stored row; None = as they come.
    rows_stored: Option<Vec<u32>>,
}

impl Csr {
    /// Names format and version in the byte form.
    pub const FORMAT_ID: u8 = 2;

    /// Gathers what the mask keeps; what it prunes is never read.
    ///
    /// # Shapes
    /// `weights`: `[rows, cols]` as the mask, columns in `order`.
    pub fn from_dense(
        weights: &[f32],
        mask: &BitMask,
        order: ColOrder,
    ) -> Result<Self, KernelError> {
        expect_len("weights", mask.len(), weights.len())?;
        let cols = mask.cols();
        if u32::try_from(mask.nnz()).is_err() || u32::try_from(cols).is_err() {
            return Err(fail(format!(
                "{} kept weights in {cols} columns; both must stay below 2^32",
                mask.nnz()
            )));
        }
        let mut row_ptr = Vec::with_capacity(mask.rows() + 1);
        let mut col = Vec::with_capacity(mask.nnz());
        let mut val = Vec::with_capacity(mask.nnz());
        row_ptr.push(0);
        for row in 0..mask.rows() {
            for at in mask.row_kept(row) {
                col.push(at as u32);
                val.push(weights[row * cols + at]);
            }
            row_ptr.push(col.len() as u32);
        }
        Ok(Self {
            rows: mask.rows(),
            cols,
            order,
            row_ptr,
            col,
            val,
            rows_stored: None,
        })
    }

    /// The matrix, pruned weights +0.
    pub fn to_dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.rows * self.cols];
        for stored in 0..self.rows {
            let row = self.row(stored) * self.cols;
            for (&col, &val) in self.row_cols(stored).iter().zip(self.row_values(stored)) {
                dense[row + col as usize] = val;
            }
        }
        dense
    }

    /// The same matrix with its longest rows stored first, equal ones in matrix order: threads that take rows as they
    /// come then finish together.
    pub fn balanced(&self) -> Self {
        let mut by_length: Vec<usize> = (0..self.rows).collect();
        by_length.sort_by_key(|&stored| {
            (
                std::cmp::Reverse(self.entries(stored).len()),
                self.row(stored),
            )
        });
        let mut balanced = Self {
            row_ptr: Vec::with_capacity(self.row_ptr.len()),
            col: Vec::with_capacity(self.col.len()),
            val: Vec::with_capacity(self.val.len()),
            rows_stored: None,
            ..*self
        };
        balanced.row_ptr.push(0);
        for &stored in &by_length {
            balanced.col.extend(self.row_cols(stored));
            balanced.val.extend(self.row_values(stored));
            balanced.row_ptr.push(balanced.col.len() as u32);
        }
        let rows = by_length.iter().map(|&stored| self.row(stored) as u32);
        balanced.rows_stored = Some(rows.collect());
        balanced
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights per output channel, kept or not.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Order of the columns.
    pub fn order(&self) -> ColOrder {
        self.order
    }

    /// Kept weights.
    pub fn nnz(&self) -> usize {
        self.val.len()
    }

    /// Where each stored row's entries begin, and the end of the last: `[rows + 1]`.
    pub fn row_ptr(&self) -> &[u32] {
        &self.row_ptr
    }

    /// Every entry's column.
    pub fn columns(&self) -> &[u32] {
        &self.col
    }

    /// Every entry's value.
    pub fn values(&self) -> &[f32] {
        &self.val
    }

    /// Row of the matrix that is stored as row `stored`.
    pub fn row(&self, stored: usize) -> usize {
        self.rows_stored
            .as_ref()
            .map_or(stored, |rows| rows[stored] as usize)
    }

    /// Columns of a stored row, ascending.
    pub fn row_cols(&self, stored: usize) -> &[u32] {
        &self.col[self.entries(stored)]
    }

    /// Values of a stored row.
    pub fn row_values(&self, stored: usize) -> &[f32] {
        &self.val[self.entries(stored)]
    }

    fn entries(&self, stored: usize) -> std::ops::Range<usize> {
        self.row_ptr[stored] as usize..self.row_ptr[stored + 1] as usize
    }

    /// Bytes of all arrays over the weights covered; NaN for none.
    pub fn bytes_per_weight(&self) -> f64 {
        let permutation = self.rows_stored.as_ref().map_or(0, Vec::len);
        let words = self.row_ptr.len() + self.col.len() + self.val.len() + permutation;
        4.0 * words as f64 / (self.rows as f64 * self.cols as f64)
    }

    /// Checks the invariants: ascending pointers, ascending columns inside the matrix, each row stored once.
    pub fn validate(&self) -> Result<(), KernelError> {
        expect_len("row_ptr", self.rows + 1, self.row_ptr.len())?;
        expect_len("values", self.col.len(), self.val.len())?;
        if self.row_ptr[0] != 0 || self.row_ptr[self.rows] as usize != self.col.len() {
            return Err(fail(format!(
                "rows span entries {}..{} of {}",
                self.row_ptr[0],
                self.row_ptr[self.rows],
                self.col.len()
            )));
        }
        if let Some(row) = self.row_ptr.windows(2).position(|pair| pair[0] > pair[1]) {
            return Err(fail(format!("row {row} ends before it begins")));
        }
        for stored in 0..self.rows {
            let cols = self.row_cols(stored);
            let ascending = cols.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || cols.last().is_some_and(|&col| col as usize >= self.cols) {
                return Err(fail(format!(
                    "columns of stored row {stored} do not ascend below {}",
                    self.cols
                )));
            }
        }
        if let Some(rows) = &self.rows_stored {
            expect_len("stored rows", self.rows, rows.len())?;
            let mut seen = vec![false; self.rows];
            for &row in rows {
                match seen.get_mut(row as usize) {
                    Some(seen) if !*seen => *seen = true,
                    _ => return Err(fail(format!("row {row} is stored twice or is none"))),
                }
            }
        }
        Ok(())
    }

    /// The byte form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = bytes::header(Self::FORMAT_ID, &[self.rows, self.cols, self.nnz()]);
        bytes.extend([self.order.to_byte(), u8::from(self.rows_stored.is_some())]);
        bytes::put_words(&mut bytes, &self.row_ptr);
        bytes::put_words(&mut bytes, &self.col);
        bytes::put_floats(&mut bytes, &self.val);
        bytes::put_words(&mut bytes, self.rows_stored.as_deref().unwrap_or_default());
        bytes
    }

    /// Reads the byte form; refuses whatever [`Csr::validate`] would.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        let mut reader = Reader::new(FORMAT, Self::FORMAT_ID, bytes)?;
        let (rows, cols, nnz) = (reader.size()?, reader.size()?, reader.size()?);
        reader.product(&[rows, cols, 4])?;
        let order = reader.byte()?;
        let order = ColOrder::from_byte(order)
            .ok_or_else(|| reader.fail(format!("column order {order}")))?;
        let permuted = match reader.byte()? {
            flag @ (0 | 1) => flag == 1,
            flag => return Err(reader.fail(format!("flag {flag}"))),
        };
        let pointers = rows
            .checked_add(1)
            .ok_or_else(|| reader.fail(format!("{rows} rows")))?;
        let csr = Self {
            rows,
            cols,
            order,
            row_ptr: reader.words(pointers)?,
            col: reader.words(nnz)?,
            val: reader.floats(nnz)?,
            rows_stored: permuted.then(|| reader.words(rows)).transpose()?,
        };
        reader.end()?;
        csr.validate()?;
        Ok(csr)
    }
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
    use crate::format::test_masks as masks;
    use crate::reference::values;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trips(mask in masks(), seed in 0u64..1000) {
            let mut weights = values(seed, mask.len());
            for (weight, keep) in weights.iter_mut().zip(mask.to_keep()) {
                if !keep {
                    *weight = f32::NAN; // must not be read
                }
            }
            let csr = Csr::from_dense(&weights, &mask, ColOrder::Ohwi).unwrap();
            csr.validate().unwrap();
            mask.apply(&mut weights).unwrap();
            let balanced = csr.balanced();
            for csr in [&csr, &balanced, &balanced.balanced()] {
                csr.validate().unwrap();
                prop_assert_eq!(csr.nnz(), mask.nnz());
                prop_assert_eq!(&csr.to_dense(), &weights);
                prop_assert_eq!(&Csr::from_bytes(&csr.to_bytes()).unwrap(), csr);
            }
            let lengths: Vec<usize> = (0..mask.rows()).map(|row| balanced.row_cols(row).len()).collect();
            prop_assert!(lengths.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn a_matrix_worked_by_hand() {
        let mask = BitMask::from_keep(2, 3, &[true, false, false, false, true, true]).unwrap();
        let csr = Csr::from_dense(&[1.0, 2.0, 3.0, 4.0, 0.0, 6.0], &mask, ColOrder::Oihw).unwrap();
        assert_eq!(csr.row_ptr(), [0, 1, 3]);
        assert_eq!(csr.columns(), [0, 1, 2]);
        assert_eq!(csr.values(), [1.0, 0.0, 6.0]);
        assert_eq!(csr.bytes_per_weight(), 36.0 / 6.0);
        let balanced = csr.balanced();
        assert_eq!([balanced.row(0), balanced.row(1)], [1, 0]);
        assert!(Csr::from_dense(&[0.0; 5], &mask, ColOrder::Oihw).is_err());
    }

    #[test]
    fn broken_structure_is_refused() {
        let mask = BitMask::from_fn(3, 4, |i| i % 3 != 1);
        let csr = Csr::from_dense(&values(1, 12), &mask, ColOrder::Oihw).unwrap();
        let good = csr.balanced();
        let broken = |change: &dyn Fn(&mut Csr)| {
            let mut csr = good.clone();
            change(&mut csr);
            csr.validate().unwrap_err().to_string()
        };
        assert!(
            broken(&|csr| csr.rows_stored = Some(vec![0, 2, 0])).contains("row 0 is stored twice")
        );
        assert!(broken(&|csr| csr.rows_stored = Some(vec![0, 2, 3])).contains("row 3 is stored"));
        assert!(broken(&|csr| csr.rows_stored = Some(vec![0, 2])).contains("3"));
        assert!(broken(&|csr| csr.col[1] = csr.col[0]).contains("stored row 0 do not ascend"));
        assert!(broken(&|csr| csr.cols = 3).contains("do not ascend below 3"));
        assert!(broken(&|csr| csr.row_ptr[1] = 7).contains("row 1 ends before it begins"));
        assert!(broken(&|csr| csr.row_ptr[0] = 1).contains("rows span entries 1..8 of 8"));
    }

    #[test]
    fn foreign_bytes_never_panic() {
        let mask = BitMask::from_fn(3, 4, |i| i % 3 != 1);
        let csr = Csr::from_dense(&values(1, 12), &mask, ColOrder::Oihw).unwrap();
        let bytes = csr.balanced().to_bytes();
        let mut refused = 0;
        for bytes in damaged(&bytes) {
            match Csr::from_bytes(&bytes) {
                Ok(csr) => csr.validate().unwrap(),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > bytes.len());
    }
}

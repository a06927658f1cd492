//! A sparse weight, and its packed forms in the order in which products visit it.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::super::Isa;
use super::super::micro::Entry;
use crate::format::{ColOrder, Csr, Nm};
use crate::{BitMask, ConvShape, KernelError};

/// Packed forms that a weight remembers.
const REMEMBERED: usize = 4;

/// The kept weights of a convolution or a linear layer. Built once; the caller keeps it between calls.
#[derive(Debug)]
pub struct SparseWeight {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_ptr: Vec<u32>,
    /// Ascending in each row, (channel, ky, kx).
    pub(super) col: Vec<u32>,
    pub(super) val: Vec<f32>,
    packed: Mutex<Vec<(Key, Arc<Vec<Packed>>)>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Role {
    Forward,
    InputGrad,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Key {
    pub(super) isa: Isa,
    pub(super) role: Role,
    pub(super) shape: ConvShape,
}

/// Kept weights in the order in which they are visited: for each group, for each chunk of channels, for each row.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) chunks: usize,
    rows: usize,
    /// Ends of rows in `entries`: `[group][chunk][rows + 1]`.
    ends: Vec<u32>,
    pub(super) entries: Vec<Entry>,
    /// Flat index of each entry in the dense weight.
    pub(super) place: Vec<u32>,
}

impl Packed {
    pub(super) fn ends(&self, group: usize, chunk: usize) -> &[u32] {
        let n = self.rows + 1;
        &self.ends[(group * self.chunks + chunk) * n..][..n]
    }
}

/// An element of a row before it is packed.
#[derive(Clone, Copy)]
pub(super) struct Item {
    channel: u32,
    tap: u32,
    value: f32,
    place: u32,
}

impl SparseWeight {
    /// The weights that a mask keeps, `[rows, cols]` in the order of a stored convolution (channel, ky, kx).
    pub fn from_dense(weights: &[f32], mask: &BitMask) -> Result<Self, KernelError> {
        Self::from_csr(&Csr::from_dense(weights, mask, ColOrder::Oihw)?, 1)
    }

    /// From CSR. `taps` is kh * kw, and matters where the columns are in the order (ky, kx, channel).
    pub fn from_csr(csr: &Csr, taps: usize) -> Result<Self, KernelError> {
        let mut rows = vec![Vec::new(); csr.rows()];
        for stored in 0..csr.rows() {
            let entries = csr.row_cols(stored).iter().zip(csr.row_values(stored));
            rows[csr.row(stored)] = entries.map(|(c, v)| (*c, *v)).collect();
        }
        Self::from_rows(rows, csr.cols(), taps, csr.order())
    }

    /// From N:M groups. Slots that hold 0 are left out: they are unused, or keep a weight that is zero.
    pub fn from_nm(nm: &Nm, taps: usize) -> Result<Self, KernelError> {
        let row = |row| {
            let slots = nm.row_values(row).iter().enumerate();
            let kept = slots.filter(|(_, v)| **v != 0.0);
            kept.map(|(slot, v)| (nm.column(row, slot) as u32, *v))
                .collect()
        };
        Self::from_rows(
            (0..nm.rows()).map(row).collect(),
            nm.cols(),
            taps,
            nm.order(),
        )
    }

    fn from_rows(
        mut rows: Vec<Vec<(u32, f32)>>,
        cols: usize,
        taps: usize,
        order: ColOrder,
    ) -> Result<Self, KernelError> {
        if taps == 0 || !cols.is_multiple_of(taps) {
            return Err(KernelError::Length {
                what: "columns of a weight, a multiple of its taps",
                expected: cols.next_multiple_of(taps.max(1)),
                found: cols,
            });
        }
        if u32::try_from(rows.len() * cols).is_err() {
            return Err(KernelError::Length {
                what: "a sparse weight, which is indexed in 32 bits,",
                expected: u32::MAX as usize,
                found: rows.len() * cols,
            });
        }
        if order == ColOrder::Ohwi && taps > 1 {
            let channels = (cols / taps) as u32;
            for row in &mut rows {
                for (col, _) in row.iter_mut() {
                    *col = *col % channels * taps as u32 + *col / channels;
                }
                row.sort_unstable_by_key(|(col, _)| *col);
            }
        }
        let mut weight = Self {
            rows: rows.len(),
            cols,
            row_ptr: vec![0],
            col: Vec::new(),
            val: Vec::new(),
            packed: Mutex::new(Vec::new()),
        };
        for row in rows {
            weight.col.extend(row.iter().map(|(col, _)| *col));
            weight.val.extend(row.iter().map(|(_, val)| *val));
            weight.row_ptr.push(weight.col.len() as u32);
        }
        Ok(weight)
    }

    /// Takes new values of the same pattern from a dense weight, in what is remembered too.
    pub fn refresh(&mut self, weights: &[f32]) -> Result<(), KernelError> {
        if weights.len() != self.rows * self.cols {
            return Err(KernelError::Length {
                what: "weights",
                expected: self.rows * self.cols,
                found: weights.len(),
            });
        }
        for row in 0..self.rows {
            for e in self.row_ptr[row] as usize..self.row_ptr[row + 1] as usize {
                self.val[e] = weights[row * self.cols + self.col[e] as usize];
            }
        }
        let kept = self.packed.get_mut().unwrap_or_else(|e| e.into_inner());
        // A form that a product still holds is packed anew when it is needed again.
        kept.retain_mut(|(_, packed)| match Arc::get_mut(packed) {
            Some(packed) => {
                for packed in packed {
                    for (entry, &place) in packed.entries.iter_mut().zip(&packed.place) {
                        entry.value = weights[place as usize];
                    }
                }
                true
            }
            None => false,
        });
        Ok(())
    }

    /// Kept weights.
    pub fn nnz(&self) -> usize {
        self.val.len()
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights per output channel, kept or not.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Kept weights over all.
    pub fn density(&self) -> f64 {
        self.nnz() as f64 / (self.rows * self.cols).max(1) as f64
    }

    /// All elements with their places: as they are, or with rows and channels exchanged inside each group.
    pub(super) fn items(&self, role: Role, groups: usize, taps: usize) -> Vec<Vec<Item>> {
        let channels = self.cols / taps;
        let per_group = self.rows / groups;
        let count = match role {
            Role::Forward => self.rows,
            Role::InputGrad => groups * channels,
        };
        let mut lists = vec![Vec::new(); count];
        for row in 0..self.rows {
            for e in self.row_ptr[row] as usize..self.row_ptr[row + 1] as usize {
                let col = self.col[e] as usize;
                let (channel, tap) = (col / taps, col % taps);
                let (list, channel) = match role {
                    Role::Forward => (row, channel),
                    Role::InputGrad => (row / per_group * channels + channel, row % per_group),
                };
                lists[list].push(Item {
                    channel: channel as u32,
                    tap: tap as u32,
                    value: self.val[e],
                    place: (row * self.cols + col) as u32,
                });
            }
        }
        lists
    }

    /// The packed form for `key`, made by `make` if it is not remembered.
    pub(super) fn packed(&self, key: Key, make: impl FnOnce() -> Vec<Packed>) -> Arc<Vec<Packed>> {
        // A thread that panicked while it held the lock left a whole list behind.
        let mut kept = self.packed.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, packed)) = kept.iter().find(|(k, _)| *k == key) {
            return packed.clone();
        }
        let packed = Arc::new(make());
        if kept.len() == REMEMBERED {
            kept.remove(0);
        }
        kept.push((key, packed.clone()));
        packed
    }
}

/// Packs rows whose columns (channel, tap) lie at `channel * channel_len + taps[tap]`; taps without a place are left out.
pub(super) fn pack(
    lists: &[Vec<Item>],
    groups: usize,
    chunks: &[Range<usize>],
    channel_len: usize,
    taps: &[Option<u32>],
) -> Packed {
    let rows = lists.len() / groups;
    let mut packed = Packed {
        chunks: chunks.len(),
        rows,
        ends: Vec::with_capacity(groups * chunks.len() * (rows + 1)),
        entries: Vec::new(),
        place: Vec::new(),
    };
    for group in 0..groups {
        let lists = &lists[group * rows..][..rows];
        let mut next = vec![0; rows];
        for chunk in chunks {
            packed.ends.push(packed.entries.len() as u32);
            for (list, next) in lists.iter().zip(&mut next) {
                while let Some(item) = list.get(*next)
                    && (item.channel as usize) < chunk.end
                {
                    if let Some(tap) = taps[item.tap as usize] {
                        packed.entries.push(Entry {
                            value: item.value,
                            offset: (item.channel as usize * channel_len) as u32 + tap,
                        });
                        packed.place.push(item.place);
                    }
                    *next += 1;
                }
                packed.ends.push(packed.entries.len() as u32);
            }
        }
    }
    packed
}

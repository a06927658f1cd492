//! A sparse weight, and its packed forms in the order in which products visit it.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::super::Isa;
use super::super::micro::Entry;
use crate::format::{ColOrder, Csr};
use crate::{BitMask, ConvShape, KernelError};

/// Packed forms that a weight remembers.
const REMEMBERED: usize = 4;

/// The kept weights of a convolution or a linear layer. Built once; the caller keeps it between calls.
#[derive(Debug)]
pub struct SparseWeight {
    /// Columns (channel, ky, kx).
    csr: Csr,
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
        if u32::try_from(mask.len()).is_err() {
            return Err(KernelError::Length {
                what: "a sparse weight, which is indexed in 32 bits,",
                expected: u32::MAX as usize,
                found: mask.len(),
            });
        }
        Ok(Self {
            csr: Csr::from_dense(weights, mask, ColOrder::Oihw)?,
            packed: Mutex::new(Vec::new()),
        })
    }

    /// Kept weights.
    pub fn nnz(&self) -> usize {
        self.csr.nnz()
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.csr.rows()
    }

    /// Weights per output channel, kept or not.
    pub fn cols(&self) -> usize {
        self.csr.cols()
    }

    /// Kept weights over all.
    pub fn density(&self) -> f64 {
        self.nnz() as f64 / (self.rows() * self.cols()).max(1) as f64
    }

    /// All elements with their places: as they are, or with rows and channels exchanged inside each group.
    pub(super) fn items(&self, role: Role, groups: usize, taps: usize) -> Vec<Vec<Item>> {
        let [rows, cols] = [self.rows(), self.cols()];
        let channels = cols / taps;
        let per_group = rows / groups;
        let count = match role {
            Role::Forward => rows,
            Role::InputGrad => groups * channels,
        };
        let mut lists = vec![Vec::new(); count];
        for row in 0..rows {
            let entries = self.csr.row_cols(row).iter().zip(self.csr.row_values(row));
            for (&col, &value) in entries {
                let col = col as usize;
                let (channel, tap) = (col / taps, col % taps);
                let (list, channel) = match role {
                    Role::Forward => (row, channel),
                    Role::InputGrad => (row / per_group * channels + channel, row % per_group),
                };
                lists[list].push(Item {
                    channel: channel as u32,
                    tap: tap as u32,
                    value,
                    place: (row * cols + col) as u32,
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

//! The border between what goes and what stays, and the masks on both sides of it.

use std::ops::Range;

use rayon::prelude::*;

use super::keys::below;
use super::kth::Kth;
use super::scan::Float;
use super::{BITS, CHUNK, Layer, PIECE, Scores, Stored, Ties, available};
use crate::{BitMask, KernelError};

/// The border between pruned and kept.
pub(super) struct Cut {
    pub(super) kth: Kth,
    /// Of the scores equal to the k-th, the first so many in (layer, index) order stay.
    pub(super) keep_equal: u64,
}

impl Cut {
    /// None where nothing goes.
    pub(super) fn new<S: Scores>(
        layers: &[Layer<S>],
        k: u64,
        ties: Ties,
    ) -> Result<Option<Self>, KernelError> {
        let available = available(layers);
        if k > available {
            return Err(KernelError::TooMany {
                requested: k,
                available,
            });
        }
        if available == 0 {
            return Ok(None);
        }
        // k = 0 looks for the smallest score too, so that a NaN is an error at every k.
        let kth = Kth::find(layers, k.max(1))?;
        let keep_equal = match ties {
            Ties::KeepLowestIndex => kth.below() + kth.equal() - k.max(1),
            Ties::CompatLe => 0,
        };
        Ok((k > 0).then_some(Self { kth, keep_equal }))
    }

    /// The index in this layer before which scores equal to the k-th stay, and from which on they go.
    fn index<S: Scores>(&self, layers: &[Layer<S>], layer: usize) -> usize {
        let mut keep = self.keep_equal;
        for piece in &self.kth.pieces {
            if keep == 0 {
                break;
            }
            if piece.layer == layer && piece.equal >= keep {
                let last = (piece.start..piece.end)
                    .filter(|&index| layers[layer].at(index) == self.kth.value)
                    .nth(keep as usize - 1);
                return last.expect("the piece was counted") + 1;
            }
            if piece.layer > layer {
                return layers[layer].len();
            }
            keep -= keep.min(piece.equal);
        }
        if keep == 0 { 0 } else { layers[layer].len() }
    }

    pub(super) fn mask<S: Scores>(
        &self,
        layers: &[Layer<S>],
        layer: usize,
        [rows, cols]: [usize; 2],
    ) -> Result<BitMask, KernelError> {
        let index = self.index(layers, layer);
        let layer = &layers[layer];
        let writer = Writer::new(layer, self.kth.value);
        let stride = cols.div_ceil(BITS);
        let mut words = vec![0u32; rows * stride];
        words
            .par_chunks_mut(PIECE / BITS)
            .enumerate()
            .for_each(|(chunk, mut words)| {
                let mut word = chunk * (PIECE / BITS); // in the mask
                while !words.is_empty() {
                    let (row, first) = (word / stride, word % stride);
                    let (run, rest) = words.split_at_mut(words.len().min(stride - first));
                    let start = row * cols + first * BITS;
                    let end = (row * cols + cols).min(start + run.len() * BITS);
                    writer.write(start..end, index, run);
                    word += run.len();
                    words = rest;
                }
            });
        BitMask::from_words(rows, cols, words)
    }
}

/// Writes runs of mask words: scores below the k-th go, equal ones from an index on.
enum Writer<'a, S> {
    Stored {
        stored: Stored<'a>,
        below: f32,
        through: f32,
    },
    Computed {
        scores: &'a S,
        borders: [f64; 2],
    },
}

impl<'a, S: Scores> Writer<'a, S> {
    fn new(layer: &Layer<'a, S>, value: f64) -> Self {
        match layer.stored {
            Some(stored) => Self::Stored {
                stored,
                below: stored.border(value, false),
                through: stored.border(value, true),
            },
            None => Self::Computed {
                scores: layer.scores,
                borders: [below(value), value],
            },
        }
    }

    /// `range` is the flat indices that `words` covers, `index` where equal scores begin to go.
    fn write(&self, range: Range<usize>, index: usize, words: &mut [u32]) {
        match *self {
            Self::Stored {
                stored,
                below,
                through,
            } => {
                let early = index.clamp(range.start, range.end) - range.start;
                let values = &stored.values[range];
                write(values, stored.magnitude, [below, through], early, words);
            }
            Self::Computed { scores, borders } => {
                let mut chunk = Vec::with_capacity(CHUNK);
                for (start, words) in range
                    .clone()
                    .step_by(CHUNK)
                    .zip(words.chunks_mut(CHUNK / BITS))
                {
                    let end = range.end.min(start + CHUNK);
                    chunk.clear();
                    chunk.extend((start..end).map(|index| scores.at(index)));
                    write(
                        &chunk,
                        false,
                        borders,
                        index.clamp(start, end) - start,
                        words,
                    );
                }
            }
        }
    }
}

/// Writes the words of `values`, the first `early` by the border `below`, the others by `through`.
fn write<T: Float>(
    values: &[T],
    magnitude: bool,
    [below, through]: [T; 2],
    early: usize,
    words: &mut [u32],
) {
    let whole = early / BITS;
    let (before, after) = values.split_at(whole * BITS);
    T::write_above(before, magnitude, below, &mut words[..whole]);
    T::write_above(after, magnitude, through, &mut words[whole..]);
    if !early.is_multiple_of(BITS) {
        // The word that the position cuts.
        let mut cut = [0];
        T::write_above(&after[..early % BITS], magnitude, below, &mut cut);
        words[whole] |= cut[0];
    }
}

//! Exact selection of the k smallest scores, in one layer or over many, without a sort and without a copy of the scores.
//!
//! A sample brackets the k-th smallest score; one pass counts what lies below the bracket and collects the few scores
//! inside it, among which the k-th is found; a second pass writes the mask. Equal scores need no bookkeeping there: of
//! scores equal to the k-th those before one position stay and those from it on go (section 0.2 of the specification:
//! among equal scores the lowest flat index is kept; across layers the earlier). Where the sample misled, digits of an
//! order-preserving integer key are counted from the top instead (radix selection), which no data can mislead.
//!
//! Scores that are a function of stored f32 values ([`Stored`]) never leave them: every border between scores becomes a
//! border between values, layer by layer, so that a pass is comparisons of f32 ([`scan`]) whatever the layer's divisor.
//!
//! Counts are integers and the sample depends on the lengths alone, so the result is the same for any number of threads.

mod cut;
mod keys;
mod kth;
mod scan;
mod scores;
#[cfg(test)]
mod tests;

pub use scores::{Scores, Stored};

use rayon::prelude::*;

use crate::{BitMask, KernelError};
use cut::Cut;
use kth::Kth;

/// What happens to scores equal to the k-th smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ties {
    /// Exactly k go; of equal scores the lowest flat index (and the earlier layer) is kept.
    KeepLowestIndex,
    /// All that are less than or equal to the k-th smallest go, so ties overshoot: the original release's rule.
    CompatLe,
}

/// The k-th smallest score and its surroundings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KthValue {
    /// The value.
    pub value: f64,
    /// Scores strictly below it.
    pub below: u64,
    /// Scores equal to it, at least 1.
    pub equal: u64,
}

/// Masks the `k` lowest of one layer's scores; the mask is `[rows, cols]`.
pub fn select_smallest<S: Scores + ?Sized>(
    scores: &S,
    [rows, cols]: [usize; 2],
    k: u64,
    ties: Ties,
) -> Result<BitMask, KernelError> {
    let mut masks = select_smallest_global(&[scores], &[[rows, cols]], k, ties)?;
    Ok(masks.remove(0))
}

/// Masks the `k` lowest scores of all layers together; one mask per layer, shaped as `shapes` says.
pub fn select_smallest_global<S: Scores>(
    layers: &[S],
    shapes: &[[usize; 2]],
    k: u64,
    ties: Ties,
) -> Result<Vec<BitMask>, KernelError> {
    if layers.len() != shapes.len() {
        return Err(KernelError::Length {
            what: "shapes",
            expected: layers.len(),
            found: shapes.len(),
        });
    }
    for (layer, [rows, cols]) in layers.iter().zip(shapes) {
        if layer.len() != rows * cols {
            return Err(KernelError::Length {
                what: "scores",
                expected: rows * cols,
                found: layer.len(),
            });
        }
    }
    let layers: Vec<Layer<S>> = layers.iter().map(Layer::new).collect();
    let Some(cut) = Cut::new(&layers, k, ties)? else {
        return Ok(shapes.iter().map(|&[r, c]| BitMask::full(r, c)).collect());
    };
    (0..layers.len())
        .into_par_iter()
        .map(|layer| cut.mask(&layers, layer, shapes[layer]))
        .collect()
}

/// How many of the `k` lowest scores of all layers together fall into each layer.
pub fn global_counts<S: Scores>(
    layers: &[S],
    k: u64,
    ties: Ties,
) -> Result<Vec<usize>, KernelError> {
    let layers: Vec<Layer<S>> = layers.iter().map(Layer::new).collect();
    let mut counts = vec![0; layers.len()];
    if let Some(cut) = Cut::new(&layers, k, ties)? {
        let mut keep = cut.keep_equal;
        for piece in &cut.kth.pieces {
            let kept = piece.equal.min(keep);
            keep -= kept;
            counts[piece.layer] += (piece.below + piece.equal - kept) as usize;
        }
    }
    Ok(counts)
}

/// The `k`-th smallest score of all layers together, 1 <= k <= n.
pub fn threshold_of<S: Scores>(layers: &[S], k: u64) -> Result<KthValue, KernelError> {
    let layers: Vec<Layer<S>> = layers.iter().map(Layer::new).collect();
    let available = available(&layers);
    if k == 0 || k > available {
        return Err(KernelError::TooMany {
            requested: k,
            available,
        });
    }
    let kth = Kth::find(&layers, k)?;
    Ok(KthValue {
        value: kth.value,
        below: kth.below(),
        equal: kth.equal(),
    })
}

/// Weights per mask word.
const BITS: usize = u32::BITS as usize;
/// Scores per parallel piece; a multiple of 32, so that a piece of a mask is whole words.
const PIECE: usize = 1 << 16;
/// Scores computed at a time; they stay in the first-level cache.
const CHUNK: usize = 1 << 10;

/// One layer, its stored values looked up once.
struct Layer<'a, S> {
    scores: &'a S,
    stored: Option<Stored<'a>>,
}

impl<'a, S: Scores> Layer<'a, S> {
    fn new(scores: &'a S) -> Self {
        // A divisor or a length outside the contract costs speed, not correctness.
        let stored = scores.stored().filter(|stored| {
            stored.values.len() == scores.len()
                && stored.divisor > 0.0
                && stored.divisor.is_finite()
        });
        Self { scores, stored }
    }

    fn len(&self) -> usize {
        self.scores.len()
    }

    fn at(&self, index: usize) -> f64 {
        self.scores.at(index)
    }
}

fn available<S: Scores>(layers: &[Layer<S>]) -> u64 {
    layers.iter().map(|layer| layer.len() as u64).sum()
}

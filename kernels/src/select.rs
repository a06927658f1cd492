//! Exact selection of the k smallest scores, in one layer or over many, without a sort and without a copy of the scores.
//!
//! The k-th smallest value is found digit by digit from the top (radix selection on an order-preserving integer key),
//! so the work is O(n) and the memory one histogram. Which of several equal scores go is then a matter of counting
//! (section 0.2 of the specification: among equal scores the lowest flat index is kept; across layers the earlier).
//! Counts are integers, so the result does not depend on the number of threads.

use rayon::prelude::*;

use crate::{BitMask, KernelError};

/// A layer's scores; the lowest go first.
///
/// Scores may be computed on the fly, so that a normed copy of a network never exists.
pub trait Scores: Sync {
    /// How many.
    fn len(&self) -> usize;

    /// The score at a flat row-major index below [`Scores::len`]. f32 scores widen exactly.
    fn at(&self, index: usize) -> f64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Scores for [f32] {
    fn len(&self) -> usize {
        <[f32]>::len(self)
    }

    fn at(&self, index: usize) -> f64 {
        f64::from(self[index])
    }
}

impl Scores for [f64] {
    fn len(&self) -> usize {
        <[f64]>::len(self)
    }

    fn at(&self, index: usize) -> f64 {
        self[index]
    }
}

impl<S: Scores + ?Sized> Scores for &S {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn at(&self, index: usize) -> f64 {
        (**self).at(index)
    }
}

impl<T> Scores for Vec<T>
where
    [T]: Scores,
    T: Sync,
{
    fn len(&self) -> usize {
        Scores::len(self.as_slice())
    }

    fn at(&self, index: usize) -> f64 {
        self.as_slice().at(index)
    }
}

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
    let mut cut = Cut::new(layers, k, ties)?;
    Ok(layers
        .iter()
        .zip(shapes)
        .map(|(layer, &[rows, cols])| {
            BitMask::from_fn(rows, cols, |index| !cut.prunes(key(layer.at(index))))
        })
        .collect())
}

/// How many of the `k` lowest scores of all layers together fall into each layer.
pub fn global_counts<S: Scores>(
    layers: &[S],
    k: u64,
    ties: Ties,
) -> Result<Vec<usize>, KernelError> {
    let mut cut = Cut::new(layers, k, ties)?;
    Ok(layers
        .iter()
        .map(|layer| {
            (0..layer.len())
                .filter(|&index| cut.prunes(key(layer.at(index))))
                .count()
        })
        .collect())
}

/// The `k`-th smallest score of all layers together, 1 <= k <= n.
pub fn threshold_of<S: Scores>(layers: &[S], k: u64) -> Result<KthValue, KernelError> {
    let available = layers.iter().map(|layer| layer.len() as u64).sum();
    if k == 0 || k > available {
        return Err(KernelError::TooMany {
            requested: k,
            available,
        });
    }
    let kth = kth_key(layers, k)?;
    Ok(KthValue {
        value: value(kth.key),
        below: kth.below,
        equal: kth.equal,
    })
}

/// The border between pruned and kept, fed with scores in (layer, index) order.
struct Cut {
    key: u64,
    /// Scores equal to `key` that are still to be kept.
    keep_equal: u64,
    /// Whether anything goes at all.
    any: bool,
}

impl Cut {
    fn new<S: Scores>(layers: &[S], k: u64, ties: Ties) -> Result<Self, KernelError> {
        let available = layers.iter().map(|layer| layer.len() as u64).sum();
        if k > available {
            return Err(KernelError::TooMany {
                requested: k,
                available,
            });
        }
        if available == 0 {
            return Ok(Self {
                key: 0,
                keep_equal: 0,
                any: false,
            });
        }
        // k = 0 looks for the smallest score too, so that a NaN is an error at every k.
        let kth = kth_key(layers, k.max(1))?;
        Ok(Self {
            key: kth.key,
            keep_equal: match ties {
                Ties::KeepLowestIndex => kth.below + kth.equal - k.max(1),
                Ties::CompatLe => 0,
            },
            any: k > 0,
        })
    }

    fn prunes(&mut self, key: u64) -> bool {
        if !self.any || key > self.key {
            return false;
        }
        if key == self.key && self.keep_equal > 0 {
            self.keep_equal -= 1;
            return false;
        }
        true
    }
}

/// Maps a score to an integer of the same order; both zeros to the same one.
fn key(score: f64) -> u64 {
    let bits = (score + 0.0).to_bits(); // -0 + 0 = +0
    if bits >> 63 == 1 {
        !bits
    } else {
        bits | 1 << 63
    }
}

/// The score that [`key`] maps to this integer.
fn value(key: u64) -> f64 {
    f64::from_bits(if key >> 63 == 1 {
        key & !(1 << 63)
    } else {
        !key
    })
}

struct KthKey {
    key: u64,
    below: u64,
    equal: u64,
}

/// Bits per digit: sign and exponent first, then the mantissa in four parts.
const DIGITS: [u32; 5] = [12, 13, 13, 13, 13];
/// Scores per parallel piece; below this a layer stays on one thread.
const PIECE: usize = 1 << 18;

fn kth_key<S: Scores>(layers: &[S], k: u64) -> Result<KthKey, KernelError> {
    let pieces: Vec<(usize, usize, usize)> = layers
        .iter()
        .enumerate()
        .flat_map(|(layer, scores)| {
            let len = scores.len();
            (0..len)
                .step_by(PIECE)
                .map(move |start| (layer, start, len.min(start + PIECE)))
        })
        .collect();
    if let Some((layer, index)) = pieces
        .par_iter()
        .filter_map(|&(layer, start, end)| {
            let scores = &layers[layer];
            (start..end)
                .find(|&index| scores.at(index).is_nan())
                .map(|index| (layer, index))
        })
        .min()
    {
        return Err(KernelError::NonFiniteScore { layer, index });
    }

    let mut high = u64::BITS; // bits from here up are known
    let mut prefix = 0u64;
    let mut below = 0u64;
    let mut equal = 0u64;
    for width in DIGITS {
        let shift = high - width;
        let histogram = pieces
            .par_iter()
            .fold(
                || vec![0u64; 1 << width],
                |mut histogram, &(layer, start, end)| {
                    let scores = &layers[layer];
                    for index in start..end {
                        let key = key(scores.at(index));
                        if high == u64::BITS || key >> high == prefix {
                            histogram[(key >> shift) as usize & ((1 << width) - 1)] += 1;
                        }
                    }
                    histogram
                },
            )
            .reduce(
                || vec![0u64; 1 << width],
                |mut left, right| {
                    left.iter_mut().zip(right).for_each(|(l, r)| *l += r);
                    left
                },
            );
        let mut digit = 0;
        while below + histogram[digit] < k {
            below += histogram[digit];
            digit += 1;
        }
        equal = histogram[digit];
        prefix = prefix << width | digit as u64;
        high = shift;
    }
    Ok(KthKey {
        key: prefix,
        below,
        equal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule of section 0.2, literally: sort by (score ascending, position descending), prune the prefix.
    fn naive(layers: &[Vec<f32>], k: usize) -> Vec<Vec<bool>> {
        let mut order: Vec<(f32, usize, usize)> = layers
            .iter()
            .enumerate()
            .flat_map(|(l, s)| s.iter().enumerate().map(move |(i, &x)| (x, l, i)))
            .collect();
        order.sort_by(|a, b| {
            a.0.partial_cmp(&b.0)
                .unwrap()
                .then((b.1, b.2).cmp(&(a.1, a.2)))
        });
        let mut keep: Vec<Vec<bool>> = layers.iter().map(|s| vec![true; s.len()]).collect();
        for &(_, l, i) in &order[..k] {
            keep[l][i] = false;
        }
        keep
    }

    fn score() -> impl Strategy<Value = f32> {
        prop_oneof![
            (-4i8..4).prop_map(|x| f32::from(x) / 2.0), // many ties, both signs, zero
            Just(-0.0f32),
            Just(f32::INFINITY),
            Just(f32::NEG_INFINITY),
            Just(f32::MIN_POSITIVE / 4.0),
            proptest::num::f32::NORMAL,
        ]
    }

    fn nets() -> impl Strategy<Value = (Vec<Vec<f32>>, usize)> {
        proptest::collection::vec(proptest::collection::vec(score(), 0..40), 1..5).prop_flat_map(
            |layers| {
                let total = layers.iter().map(Vec::len).sum::<usize>();
                (Just(layers), 0..=total)
            },
        )
    }

    fn shapes(layers: &[Vec<f32>]) -> Vec<[usize; 2]> {
        layers.iter().map(|s| [1, s.len()]).collect()
    }

    proptest! {
        #[test]
        fn equals_a_sort((layers, k) in nets()) {
            let want = naive(&layers, k);
            let got = select_smallest_global(&layers, &shapes(&layers), k as u64, Ties::KeepLowestIndex).unwrap();
            for (mask, want) in got.iter().zip(&want) {
                prop_assert_eq!(&mask.to_keep(), want);
            }
            let counts = global_counts(&layers, k as u64, Ties::KeepLowestIndex).unwrap();
            prop_assert_eq!(counts.iter().sum::<usize>(), k);
            prop_assert_eq!(counts, got.iter().map(BitMask::zeros).collect::<Vec<_>>());
        }

        #[test]
        fn the_compat_rule_takes_all_ties((layers, k) in nets()) {
            let mut sorted: Vec<f32> = layers.concat();
            sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
            let got = select_smallest_global(&layers, &shapes(&layers), k as u64, Ties::CompatLe).unwrap();
            for (mask, layer) in got.iter().zip(&layers) {
                let want: Vec<bool> = layer.iter().map(|&x| k == 0 || x > sorted[k - 1]).collect();
                prop_assert_eq!(mask.to_keep(), want);
            }
        }

        #[test]
        fn the_threshold_is_the_sorted_element((layers, k) in nets()) {
            prop_assume!(k > 0);
            let mut sorted: Vec<f32> = layers.concat();
            sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
            let kth = sorted[k - 1];
            let got = threshold_of(&layers, k as u64).unwrap();
            prop_assert_eq!(got.value, f64::from(kth));
            prop_assert_eq!(got.below, sorted.iter().filter(|&&x| x < kth).count() as u64);
            prop_assert_eq!(got.equal, sorted.iter().filter(|&&x| x == kth).count() as u64);
        }

        #[test]
        fn keys_keep_the_order_and_the_value(a in score(), b in score()) {
            let (a, b) = (f64::from(a), f64::from(b));
            prop_assert_eq!(a.partial_cmp(&b), Some(key(a).cmp(&key(b))));
            prop_assert_eq!(value(key(a)), a);
        }
    }

    #[test]
    fn layers_longer_than_a_piece_are_cut_the_same() {
        // A permutation of 0..n: the k smallest are exactly the values below k.
        let n = 3 * PIECE + 17;
        let scores: Vec<f64> = (0..n).map(|i| (i * 7919 % n) as f64).collect();
        let k = n / 3;
        let mask = select_smallest(&scores, [1, n], k as u64, Ties::KeepLowestIndex).unwrap();
        assert_eq!(mask.zeros(), k);
        assert!(
            mask.keep()
                .zip(&scores)
                .all(|(keep, &s)| keep == (s >= k as f64))
        );
        // All equal: the last k go.
        let mask =
            select_smallest(&vec![1.5f32; n], [1, n], k as u64, Ties::KeepLowestIndex).unwrap();
        assert!(mask.keep().enumerate().all(|(i, keep)| keep == (i < n - k)));
    }

    #[test]
    fn nan_is_named_at_every_k() {
        let layers = [vec![0.0f32, 1.0], vec![2.0, f32::NAN, f32::NAN]];
        for k in 0..=5 {
            assert_eq!(
                global_counts(&layers, k, Ties::KeepLowestIndex),
                Err(KernelError::NonFiniteScore { layer: 1, index: 1 })
            );
        }
    }

    #[test]
    fn too_many_and_nothing() {
        let empty: [Vec<f32>; 2] = [vec![], vec![]];
        assert_eq!(global_counts(&empty, 0, Ties::CompatLe), Ok(vec![0, 0]));
        let one = [vec![1.0f32]];
        assert_eq!(
            global_counts(&one, 2, Ties::CompatLe),
            Err(KernelError::TooMany {
                requested: 2,
                available: 1
            })
        );
        assert!(threshold_of(&one, 0).is_err());
        assert!(select_smallest(&one[0], [1, 2], 1, Ties::CompatLe).is_err());
    }
}

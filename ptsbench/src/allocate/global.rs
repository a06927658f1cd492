//! Magnitude, L1Norm, L2Norm: the lowest scores of the whole network go (section 1.2).

use kernels::{Scores, Stored, Ties, global_counts, threshold_of};

use super::{AllocateError, Allocation, Allocator, Limits, Options, Rate, lens};
use crate::cell::Rule;
use crate::inventory::{Layer, Weights};

/// What a layer's magnitudes are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Nothing: plain magnitude.
    None,
    /// The sum of magnitudes of the whole layer.
    L1,
    /// The Euclidean norm of the whole layer.
    L2,
}

/// `|w| / norm(W_l)`, computed on the fly; all 0 where the norm is 0.
#[derive(Debug, Clone, Copy)]
pub struct NormedMagnitude<'a> {
    weights: &'a [f32],
    divisor: f64,
}

impl<'a> NormedMagnitude<'a> {
    /// The scores of one layer. The norm is summed in f64: an f32 sum over 1e8 weights drifts enough to move counts.
    pub fn new(weights: &'a [f32], norm: Norm) -> Self {
        let wide = weights.iter().map(|&w| f64::from(w));
        let norm = match norm {
            Norm::None => 1.0,
            Norm::L1 => wide.map(f64::abs).sum(),
            Norm::L2 => wide.map(|w| w * w).sum::<f64>().sqrt(),
        };
        Self::over(weights, norm)
    }

    /// Magnitudes over `divisor`, or plain ones where it is 0.
    fn over(weights: &'a [f32], divisor: f64) -> Self {
        let divisor = if divisor == 0.0 { 1.0 } else { divisor };
        Self { weights, divisor }
    }
}

impl Scores for NormedMagnitude<'_> {
    fn len(&self) -> usize {
        self.weights.len()
    }

    fn at(&self, index: usize) -> f64 {
        f64::from(self.weights[index]).abs() / self.divisor
    }

    fn stored(&self) -> Option<Stored<'_>> {
        // With NaN weights there is no such norm; the scores then say where.
        (self.divisor.is_finite() && self.divisor > 0.0).then_some(Stored {
            values: self.weights,
            magnitude: true,
            divisor: self.divisor,
        })
    }
}

/// Global selection by [`NormedMagnitude`].
pub(super) struct Global {
    pub(super) norm: Norm,
    pub(super) name: &'static str,
}

impl Allocator for Global {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        match self.norm {
            Norm::None => "the lowest |w| of the whole network",
            Norm::L1 => "the lowest |w| / ||W_layer||_1 of the whole network",
            Norm::L2 => "the lowest |w| / ||W_layer||_2 of the whole network",
        }
    }

    fn needs_weights(&self) -> bool {
        true
    }

    fn allocate(
        &self,
        weights: &dyn Weights,
        rate: Rate,
        rule: Rule,
        options: &Options,
    ) -> Result<Allocation, AllocateError> {
        let layers = weights.layers();
        let lens = lens(layers);
        let limits = Limits::new(layers, options)?;
        let budget = limits.budget(&lens, rate)?;
        let scores: Vec<NormedMagnitude> = finite_weights(self.name, weights)?
            .into_iter()
            .map(|weight| NormedMagnitude::new(weight, self.norm))
            .collect();
        let zeros = match rule {
            Rule::Exact => fill_counts(&scores, &limits, budget),
            Rule::Msbench if limits.bind() => {
                return Err(AllocateError::CompatOption {
                    allocator: self.name,
                });
            }
            Rule::Msbench => released_counts(&scores, rate),
        };
        Ok(of_counts(layers, zeros))
    }
}

/// The weights of all layers, which must be finite numbers.
pub fn finite_weights<'a>(
    allocator: &'static str,
    weights: &'a dyn Weights,
) -> Result<Vec<&'a [f32]>, AllocateError> {
    let each = weights.layers().iter().enumerate().map(|(index, layer)| {
        let path = || layer.path.clone();
        let weight = weights
            .weight(index)
            .ok_or_else(|| AllocateError::NeedsWeights {
                allocator,
                path: path(),
            })?;
        match weight.iter().position(|w| !w.is_finite()) {
            Some(index) => Err(AllocateError::NotFinite {
                path: path(),
                index,
                value: weight[index],
            }),
            None => Ok(weight),
        }
    });
    each.collect()
}

/// The allocation of learned thresholds (section 1.4): the lowest `|w| / t` of the whole network go, which is one shift of
/// all thresholds' logarithms until the budget is met exactly.
pub fn by_thresholds(
    allocator: &'static str,
    weights: &dyn Weights,
    thresholds: &[f64],
    rate: Rate,
    options: &Options,
) -> Result<Allocation, AllocateError> {
    let layers = weights.layers();
    let limits = Limits::new(layers, options)?;
    let budget = limits.budget(&lens(layers), rate)?;
    let scores: Vec<NormedMagnitude> = finite_weights(allocator, weights)?
        .into_iter()
        .zip(thresholds)
        .map(|(weight, &t)| NormedMagnitude::over(weight, t))
        .collect();
    Ok(of_counts(layers, fill_counts(&scores, &limits, budget)))
}

/// The zeros that each layer may have under the dense list and caps of `options`.
pub fn most_zeros(layers: &[Layer], options: &Options) -> Result<Vec<usize>, AllocateError> {
    Ok(Limits::new(layers, options)?.most)
}

fn of_counts(layers: &[Layer], zeros: Vec<usize>) -> Allocation {
    let rates = zeros.iter().zip(layers).map(|(&zeros, layer)| {
        let len = layer.len();
        if len == 0 {
            0.0
        } else {
            zeros as f64 / len as f64
        }
    });
    Allocation::new(layers, rates.collect(), zeros)
}

/// Water-filling of section 0.4 on whole weights: layers above their limit are cut to it, their zeros leave the budget,
/// and the lowest scores of the rest are selected again. The sum is the budget at every step.
fn fill_counts(scores: &[NormedMagnitude], limits: &Limits, budget: usize) -> Vec<usize> {
    let mut zeros = vec![0; scores.len()];
    let mut free: Vec<usize> = (0..scores.len()).filter(|&l| limits.most[l] > 0).collect();
    let mut left = budget;
    loop {
        let scores: Vec<NormedMagnitude> = free.iter().map(|&layer| scores[layer]).collect();
        let counts = global_counts(&scores, left as u64, Ties::KeepLowestIndex)
            .expect("finite weights have finite scores, and the budget fits");
        let before = free.len();
        let mut kept = Vec::with_capacity(before);
        for (&layer, count) in free.iter().zip(counts) {
            zeros[layer] = count.min(limits.most[layer]);
            if count > limits.most[layer] {
                left -= limits.most[layer];
            } else {
                kept.push(layer);
            }
        }
        free = kept;
        if free.len() == before {
            return zeros;
        }
    }
}

/// The release's: the score at `trunc(P N)` of the ascending list is the threshold, and what is not above it goes; at
/// least one weight more than `trunc(P N)`.
fn released_counts(scores: &[NormedMagnitude], rate: Rate) -> Vec<usize> {
    let total: usize = scores.iter().map(Scores::len).sum();
    if total == 0 {
        return vec![0; scores.len()];
    }
    let index = ((rate.get() * total as f64) as usize).min(total - 1);
    let threshold = threshold_of(scores, index as u64 + 1)
        .expect("finite weights have finite scores, and the index lies below their number")
        .value;
    scores
        .iter()
        .map(|layer| {
            (0..layer.len())
                .filter(|&i| layer.at(i) <= threshold)
                .count()
        })
        .collect()
}

//! A trial of an allocation: how far the network pruned by it is from the dense one, without labels.

use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use kernels::{Ties, select_smallest};
use model_zoo::norm::re_estimate;
use model_zoo::tap::Bare;
use model_zoo::{Bundle, Network, TensorZip};

use super::Dense;
use crate::allocate::evopress::Generation;
use crate::allocate::{Trial, TrialError};
use crate::batches::Batches;
use crate::interrupt;
use crate::inventory::Weights;
use crate::reconstruct::loss::summed_square_error;
use crate::seed::{Seed, Stream};
use crate::select::Masks;
use crate::subject;
use crate::task::TaskError;

/// Prunes by magnitude, measures the batch norms again on the images it looks at, and compares outputs.
pub(super) struct NetworkTrial<'a, N: Network> {
    dense: &'a Dense<'a, N>,
    batches: &'a Batches<'a, N::Input>,
    /// The dense network's outputs.
    wanted: Batches<'a, N::Output>,
    scores: Vec<Vec<f32>>,
    seed: u64,
    /// Images sent through a network so far.
    pub(super) passes: u64,
}

impl<'a, N: Network> NetworkTrial<'a, N> {
    pub(super) fn new(
        dense: &'a Dense<'a, N>,
        batches: &'a Batches<'a, N::Input>,
        seed: u64,
    ) -> Self {
        let weights = (0..dense.weights.layers().len()).map(|at| {
            let weight = dense.weights.weight(at).unwrap_or_default();
            weight.iter().map(|w| w.abs()).collect()
        });
        Self {
            dense,
            batches,
            wanted: Batches::new(batches.len(), dense.memory.for_results(), move |at| {
                Ok(dense
                    .network
                    .run(batches.get(at)?, &mut Bare(dense.precision)))
            }),
            scores: weights.collect(),
            seed,
            passes: 0,
        }
    }

    fn masks(&self, zeros: &[usize]) -> Result<Masks, TrialError> {
        let layers = self.dense.weights.layers().iter();
        let chosen = layers.zip(&self.scores).zip(zeros);
        chosen
            .map(|((layer, scores), &zeros)| {
                let mask =
                    select_smallest(scores, layer.matrix(), zeros as u64, Ties::KeepLowestIndex);
                let mask = mask.map_err(|error| {
                    TrialError::Failed(format!("layer `{}`: {error}", layer.path))
                })?;
                Ok((layer.path.clone(), mask))
            })
            .collect()
    }
}

impl<N: Network> Trial for NetworkTrial<'_, N> {
    fn loss(&mut self, zeros: &[usize], images: usize) -> Result<f64, TrialError> {
        interrupt::check()?;
        let masks = self.masks(zeros)?;
        let dense = self.dense;
        let sparse = subject::attach(dense.network.clone(), dense.census, &masks, dense.device);
        let (mut sum, mut seen, mut used) = (0.0, 0, 0);
        // As many batches as have that many images.
        let looked = std::iter::from_fn(|| {
            let wanted = seen < images && used < self.batches.len();
            wanted.then(|| -> Result<N::Input, TaskError> {
                let batch = self.batches.get(used)?;
                used += 1;
                seen += samples(&batch);
                Ok(batch)
            })
        });
        let sparse = re_estimate(sparse.materialize(), looked, dense.precision).map_err(unread)?;
        self.passes += 2 * seen as u64;
        let mut bare = Bare(dense.precision);
        for at in 0..used {
            let batch = self.batches.get(at).map_err(unread)?;
            let weight = samples(&batch) as f64;
            let found = sparse.run(batch, &mut bare);
            sum += divergence(self.wanted.get(at).map_err(unread)?, found) * weight;
        }
        Ok(sum / seen.max(1) as f64)
    }

    fn draws(&self) -> Stream {
        Seed(self.seed).stream("allocation search")
    }

    fn watch(&mut self, generation: &Generation<'_>, of: usize) {
        self.dense
            .progress
            .step(generation.index, of, generation.loss);
    }
}

/// Images that cannot be looked at.
fn unread(error: TaskError) -> TrialError {
    match error {
        TaskError::Interrupted(interrupted) => TrialError::Interrupted(interrupted),
        error => TrialError::Failed(error.to_string()),
    }
}

/// Samples in a batch.
fn samples<B: Bundle>(batch: &B) -> usize {
    batch.shapes().first().map_or(0, |shape| shape[0])
}

/// How far outputs are from the wanted ones, mean over samples: the Kullback-Leibler divergence of logits, `[N, classes]`,
/// and the summed square error of everything else.
fn divergence<B: Bundle>(wanted: B, found: B) -> f64 {
    struct Divergence(f64);
    impl TensorZip for Divergence {
        fn zip<const D: usize>(&mut self, wanted: Tensor<D>, found: Tensor<D>) {
            let value = if D == 2 {
                let samples = wanted.dims()[0].max(1);
                let (wanted, found) = (log_softmax(wanted, 1), log_softmax(found, 1));
                let each = wanted.clone().exp() * (wanted - found);
                each.sum().div_scalar(samples as f32)
            } else {
                summed_square_error(found, wanted)
            };
            self.0 += f64::from(value.into_scalar::<f32>());
        }
    }
    let mut divergence = Divergence(0.0);
    wanted.zip(found, &mut divergence);
    divergence.0
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn equal_logits_have_no_divergence_and_others_the_worked_one() {
        let device = Device::flex();
        let wanted = Tensor::<2>::from_data([[2.0, 0.0, -1.0]], &device);
        let found = Tensor::<2>::from_data([[1.0, 0.5, -0.5]], &device);
        assert_eq!(divergence(wanted.clone(), wanted.clone()), 0.0);
        // Computed by hand: sum p_t (ln p_t - ln p_s).
        let softmax = |z: [f64; 3]| {
            let sum: f64 = z.iter().map(|z| z.exp()).sum();
            z.map(|z| z.exp() / sum)
        };
        let (t, s) = (softmax([2.0, 0.0, -1.0]), softmax([1.0, 0.5, -0.5]));
        let expected: f64 = t.iter().zip(s).map(|(t, s)| t * (t / s).ln()).sum();
        assert!((divergence(wanted, found) - expected).abs() < 1e-6);
    }
}

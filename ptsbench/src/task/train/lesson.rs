//! What differs in training between kinds of networks: the samples of an epoch, the loss of a batch, the scores.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use model_zoo::catalog::Spec;
use model_zoo::{Modality, Of};

use super::{Recipe, TrainError};
use crate::seed::Stream;

/// A kind of network that is trained here.
pub trait Taught: Modality + Sized {
    /// What it is trained on.
    type Lesson: Lesson<Self>;

    /// The score of a trained network on the test split, and its metric.
    fn test<N: Of<Self>>(
        spec: &Spec,
        network: &N,
        device: &Device,
    ) -> Result<(String, f64), TrainError>;
}

/// A batch of the samples that networks of a kind are trained on.
pub type Batch<M> = <<M as Taught>::Lesson as Lesson<M>>::Batch;

/// The samples that networks of a kind are trained on, and how they learn from them.
pub trait Lesson<M: Modality> {
    /// Some samples, as a step sees them.
    type Batch;

    /// Has the samples of an epoch, counted from 1, at hand.
    fn turn_to(&mut self, recipe: Recipe, epoch: usize);

    /// The images at hand, where the first weights are fitted to them.
    fn bytes(&self) -> &[u8] {
        &[]
    }

    /// Samples of the epoch by index; what varies in how they are seen comes from the stream.
    fn batch(&self, recipe: Recipe, indices: &[usize], stream: &mut Stream) -> Self::Batch;

    /// A batch through a network on the tape.
    fn take<N: Of<M>>(
        &self,
        network: &N,
        recipe: Recipe,
        batch: Self::Batch,
        device: &Device,
    ) -> Result<Taken, TrainError>;

    /// What an epoch came to, by split and metric: `right` of the `seen` samples came out right in training.
    fn validate<N: Of<M>>(
        &self,
        network: &N,
        right: u64,
        seen: usize,
        device: &Device,
    ) -> Result<BTreeMap<String, f64>, TrainError>;
}

/// What a batch came to.
pub struct Taken {
    /// What the gradients are taken of.
    pub loss: Tensor<1>,
    /// The loss's value.
    pub value: f32,
    /// Samples that came out right, where each is right or wrong.
    pub right: u64,
}

//! How networks of each kind are fed and judged.
//!
//! Measuring a cell, evaluating a file and exporting a network are written once, for every [`Judged`] kind. The one place
//! that says which kinds some task judges, and by what, are the `impl Judged` below. A task is a [`Judge`], in a file beside
//! this one.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use model_zoo::catalog::Spec;
use model_zoo::tap::Census;
use model_zoo::{Boxes, Classes, Modality, Noise, Of, Tokens};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::classify::{Classification, Hits};
use super::detect::Detection;
use super::generate::Generation;
use super::{Set, TaskError};
use crate::batches::Batches;
use crate::cell::CalibrationCell;
use crate::data::decode::ImageError;
use crate::record::Score;

/// A network as a function of its inputs.
pub type Run<'a, M> = dyn Fn(<M as Modality>::Input) -> <M as Modality>::Output + 'a;

/// Told of each batch: how far the evaluation is, and which samples of the batch could not be read.
pub type After<'a, T> = dyn FnMut(&T, &mut Vec<ImageError>) -> Result<(), TaskError> + 'a;

/// A task as one network meets it: what the network is fed with, and how it is judged.
pub trait Judge<M: Modality> {
    /// What is counted on the way to a score.
    type Tally: Tally;

    /// The same with what lies beside the network's weight file, for networks that need others around them.
    fn beside(self, _: &Spec, _weights: &Path) -> Result<Self, TaskError>
    where
        Self: Sized,
    {
        Ok(self)
    }

    /// How samples become inputs; none where they have one form for all networks.
    fn recipe(&self) -> Option<String>;

    /// Samples to judge by.
    fn available(&self) -> usize;

    /// Samples in a batch where nothing else is asked for. It has no influence on any number.
    fn batch(&self) -> usize;

    /// The announcements of a network over one blank sample of the task's; refuses a network that is not for the task.
    fn census<N: Of<M>>(
        &self,
        spec: &Spec,
        network: &N,
        device: &Device,
    ) -> Result<Census, TaskError>;

    /// Calibration inputs in batches, once they are seen to be those of the cell; `room` bytes of them are kept in memory.
    /// `dense` is the network before anything is pruned: some inputs are its own outputs.
    fn calibration(
        &self,
        dense: &Run<'_, M>,
        wanted: &CalibrationCell,
        device: &Device,
        room: u64,
    ) -> Result<Batches<'static, M::Input>, TaskError>;

    /// Goes on counting until `stint` is done, and tells `after` of each batch.
    fn tally(
        &self,
        network: &Run<'_, M>,
        stint: Stint<Self::Tally>,
        device: &Device,
        after: &mut After<'_, Self::Tally>,
    ) -> Result<Self::Tally, TaskError>;

    /// The score that the counts amount to.
    fn score(&self, tally: &Self::Tally) -> Score;

    /// The metrics of what was looked at in words.
    fn said(&self, tally: &Self::Tally) -> String {
        tally.to_string()
    }

    /// The counts and metrics of what was looked at as an object.
    fn numbers(&self, tally: &Self::Tally) -> serde_json::Value {
        tally.numbers()
    }

    /// The score over the first `samples`, all of which must be readable; `progress` is told how many are through.
    fn evaluate(
        &self,
        network: &Run<'_, M>,
        samples: usize,
        device: &Device,
        mut progress: impl FnMut(usize),
    ) -> Result<Score, TaskError> {
        let stint = Stint {
            samples: samples.min(self.available()),
            batch: self.batch(),
            start: Self::Tally::default(),
        };
        let tally = self.tally(network, stint, device, &mut |tally, unreadable| {
            progress(tally.samples());
            match unreadable.pop() {
                Some(error) => Err(TaskError::Image { error }),
                None => Ok(()),
            }
        })?;
        Ok(self.score(&tally))
    }
}

/// What is evaluated, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stint<T> {
    /// Samples of the set's order, the ones already counted included.
    pub samples: usize,
    /// Samples in a batch; it has no influence on any number.
    pub batch: usize,
    /// What was counted before.
    pub start: T,
}

/// How far an evaluation got: a prefix of the set's order, so that it does not depend on batches. It is printed as the
/// metrics of what was looked at, as far as it knows them, and kept to go on from.
pub trait Tally: Clone + Default + Display + Serialize + DeserializeOwned {
    /// Bytes that it may take when it is kept: a line for each of all images of ImageNet is half as much.
    const LIMIT: u64 = 64 << 20;

    /// Samples looked at, unreadable ones included.
    fn samples(&self) -> usize;

    /// A line for each sample that could not be read.
    fn unreadable(&self) -> &[String];

    /// Whether the counts can be true together.
    fn is_sound(&self) -> bool;

    /// The first metric alone, for progress.
    fn brief(&self) -> String;

    /// The counts and metrics as an object.
    fn numbers(&self) -> serde_json::Value;
}

/// A kind of network that tasks may judge.
pub trait Judged: Modality + Sized {
    /// What judges it.
    type Judge: Judge<Self>;

    /// The judge of a set for one network, with the recipe that a cell or a user's file names or the one that belongs to the
    /// network's weights; none where the set is for networks of another kind.
    fn judge(spec: &Spec, set: Arc<Set>, recipe: Option<&str>) -> Option<Self::Judge>;
}

impl Judged for Classes {
    type Judge = Classification;

    fn judge(spec: &Spec, set: Arc<Set>, recipe: Option<&str>) -> Option<Classification> {
        (set.kind.judges == Classes::DOES).then(|| Classification::new(spec, set, recipe))
    }
}

impl Judged for Noise {
    type Judge = Generation;

    fn judge(spec: &Spec, set: Arc<Set>, recipe: Option<&str>) -> Option<Generation> {
        Generation::new(spec, set, recipe)
    }
}

impl Judged for Boxes {
    type Judge = Detection;

    fn judge(spec: &Spec, set: Arc<Set>, recipe: Option<&str>) -> Option<Detection> {
        match set.kind.judges == Boxes::DOES {
            true => Detection::new(spec, set, recipe),
            false => None,
        }
    }
}

/// The judge of kinds that no task judges yet: there is none.
#[derive(Debug)]
pub enum Nobody {}

macro_rules! unjudged {
    ($($modality:ident),+) => {$(
        impl Judged for $modality {
            type Judge = Nobody;

            fn judge(_: &Spec, _: Arc<Set>, _: Option<&str>) -> Option<Nobody> {
                None
            }
        }
    )+};
}

unjudged!(Tokens);

impl<M: Modality> Judge<M> for Nobody {
    type Tally = Hits;

    fn recipe(&self) -> Option<String> {
        match *self {}
    }

    fn available(&self) -> usize {
        match *self {}
    }

    fn batch(&self) -> usize {
        match *self {}
    }

    fn census<N: Of<M>>(&self, _: &Spec, _: &N, _: &Device) -> Result<Census, TaskError> {
        match *self {}
    }

    fn calibration(
        &self,
        _: &Run<'_, M>,
        _: &CalibrationCell,
        _: &Device,
        _: u64,
    ) -> Result<Batches<'static, M::Input>, TaskError> {
        match *self {}
    }

    fn tally(
        &self,
        _: &Run<'_, M>,
        _: Stint<Hits>,
        _: &Device,
        _: &mut After<'_, Hits>,
    ) -> Result<Hits, TaskError> {
        match *self {}
    }

    fn score(&self, _: &Hits) -> Score {
        match *self {}
    }
}

/// A network of a kind that a task does not judge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{model}` {does}, and task {task} is for a network that {judges}")]
pub struct OtherKind {
    /// The network.
    pub model: &'static str,
    /// What it does.
    pub does: &'static str,
    /// The task.
    pub task: String,
    /// What the networks do that it judges.
    pub judges: &'static str,
}

/// What judges a network of this kind on a set.
pub fn judge<M: Judged>(
    spec: &Spec,
    set: Arc<Set>,
    recipe: Option<&str>,
) -> Result<M::Judge, OtherKind> {
    let (task, judges) = (set.label(), set.kind.judges);
    M::judge(spec, set, recipe).ok_or(OtherKind {
        model: spec.name,
        does: M::DOES,
        task,
        judges,
    })
}

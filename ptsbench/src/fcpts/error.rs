//! Why nothing was learned.

use model_zoo::weights::WeightError;

use super::NAME;
use crate::interrupt::Interrupted;
use crate::task::TaskError;

/// Why nothing was learned.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// There are no rates to learn.
    #[error(
        "`{NAME}` learns how a rate is spread over layers, and an N:M pattern fixes it; give it rates, or take another criterion for patterns"
    )]
    Pattern,
    /// The released counting has no exact sum.
    #[error("`{NAME}` counts exactly; use rule `exact`")]
    Rule,
    /// Training has no beginning.
    #[error(
        "`{NAME}` starts from an allocation, and the cell names none; name an allocator, such as erk"
    )]
    NoStart,
    /// A step has more images than there are.
    #[error(
        "`{NAME}`: a step takes {batch} images, and there are {images} for calibration; lower `batch`, or give more images"
    )]
    Batch {
        /// Images of a step.
        batch: usize,
        /// Calibration images.
        images: usize,
    },
    /// The loss or a weight is no number any more.
    #[error(
        "`{NAME}`: {what} is not finite in step {step} of epoch {epoch}; lower `learning_rate`, or look whether the dense network is sound"
    )]
    Diverged {
        /// The loss, or the weights.
        what: &'static str,
        /// Epoch, from 1.
        epoch: usize,
        /// Step in it, from 1.
        step: usize,
    },
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Calibration images cannot be read.
    #[error(transparent)]
    Inputs(Box<TaskError>),
    /// A checkpoint could not be written, or a bad one not removed.
    #[error(transparent)]
    Checkpoint(#[from] WeightError),
}

impl From<TaskError> for LearnError {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Interrupted(interrupted) => Self::Interrupted(interrupted),
            error => Self::Inputs(Box::new(error)),
        }
    }
}

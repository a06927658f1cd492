//! Magnitude (section 2.1).

use super::{Criterion, ScoreError};
use crate::inventory::Layer;
use crate::options::{self, BadOptions, Options};
use crate::seen::Seen;

/// `|w|`.
pub(super) struct Magnitude;

impl Criterion for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn about(&self) -> &'static str {
        "the absolute value"
    }

    fn scores(&self, _: &Layer, weight: &[f32], _: Option<&Seen>) -> Result<Vec<f32>, ScoreError> {
        Ok(weight.iter().map(|w| w.abs()).collect())
    }

    fn with(&self, options: &Options) -> Result<Box<dyn Criterion>, BadOptions> {
        options::none(self.name(), options)?;
        Ok(Box::new(Magnitude))
    }
}

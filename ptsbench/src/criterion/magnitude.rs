//! Magnitude (section 2.1).

use super::Criterion;
use crate::inventory::Layer;

/// `|w|`.
pub(super) struct Magnitude;

impl Criterion for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn about(&self) -> &'static str {
        "the absolute value"
    }

    fn scores(&self, _: &Layer, weight: &[f32]) -> Vec<f32> {
        weight.iter().map(|w| w.abs()).collect()
    }
}

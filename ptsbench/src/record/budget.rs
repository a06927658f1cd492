//! What a method may cost besides time: it is counted, not measured, so it is the same on every machine.

use serde::{Deserialize, Serialize};

use super::UnitOutcome;
use crate::cell::{Cell, Inputs};

/// What making the sparse network took. All of it is zero where a network is pruned by its weights alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Images looked at.
    pub images: u64,
    /// Of those, images whose label was used.
    pub labels: u64,
    /// Steps of an optimizer, over all units.
    pub gradient_steps: u64,
    /// Images sent forward through a whole network, dense or sparse, to observe it.
    pub forward_passes: u64,
}

impl Budget {
    /// Of a cell whose units came out like this.
    pub fn of(cell: &Cell, units: &[UnitOutcome]) -> Budget {
        let sparsity = cell.sparsity.as_ref();
        let Some(settings) = sparsity.and_then(|sparsity| sparsity.reconstruction.as_ref()) else {
            return Budget::default();
        };
        let images = settings.calibration.images as u64;
        // Correction: mean inputs over all images, then the mean outputs of both networks, for which one image finds the
        // layers.
        let correction = if settings.correction { images + 2 } else { 0 };
        // Each unit: its outputs in the dense network, its inputs in the sparse one, and one image that leads to it.
        let networks = match settings.inputs {
            Inputs::Dense => 1,
            Inputs::Sparse => 2,
        };
        Budget {
            images,
            labels: 0,
            gradient_steps: units.iter().map(|unit| unit.steps as u64).sum(),
            forward_passes: correction + units.len() as u64 * (networks * images + 1),
        }
    }
}

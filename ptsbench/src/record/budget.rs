//! What a method may cost besides time: it is counted, not measured, so it is the same on every machine.

use serde::{Deserialize, Serialize};

use super::UnitOutcome;
use crate::cell::{CorrectedPart, CorrectionOptions, Inputs, Reconstruction};

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
    /// Images sent forward through a whole network, dense or sparse, to observe it or to train all of it.
    pub forward_passes: u64,
}

impl Budget {
    /// Of a reconstruction whose units came out like this.
    pub fn of(settings: &Reconstruction, units: &[UnitOutcome]) -> Budget {
        let images = settings.calibration.images as u64;
        // Correction: what layers read over all images, and one that finds the norms. Up to version 3 the mean outputs of
        // both networks, for which one image found the layers.
        let biases = |options: &CorrectionOptions| options.part != CorrectedPart::Weight;
        let correction = match (settings.correction.options(), settings.version) {
            (None, _) => 0,
            (Some(_), ..=3) => images + 2,
            (Some(options), _) if biases(options) => images + 1,
            // The weight step looks at no image.
            (Some(_), _) => 0,
        };
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

    /// With what something else took that looks at the same images, or at none.
    pub fn and(self, other: Budget) -> Budget {
        Budget {
            images: self.images.max(other.images),
            labels: self.labels.max(other.labels),
            gradient_steps: self.gradient_steps + other.gradient_steps,
            forward_passes: self.forward_passes + other.forward_passes,
        }
    }

    /// Of looking at `images`, with so many passes in all.
    pub fn looking(images: usize, forward_passes: u64) -> Budget {
        Budget {
            images: images as u64,
            forward_passes,
            ..Budget::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{CalibrationCell, Fit, Optimizer};
    use model_zoo::Grain;

    #[test]
    fn correcting_weights_alone_looks_at_nothing() {
        let passes = |correction: &str| {
            let settings = Reconstruction {
                version: 4,
                granularity: Grain::Layer,
                inputs: Inputs::Sparse,
                correction: serde_json::from_str(correction).unwrap(),
                calibration: CalibrationCell {
                    images: 32,
                    batch: 8,
                    seed: 0,
                    list: None,
                },
                fit: Fit {
                    optimizer: Optimizer::Adam {
                        lr: 1e-3,
                        bias_lr: 0.0,
                    },
                    steps: 1,
                    early_stop: 0.0,
                },
            };
            Budget::of(&settings, &[]).forward_passes
        };
        for (correction, expected) in [
            ("false", 0),
            ("true", 33),
            (r#"{"part":"bias"}"#, 33),
            (r#"{"part":"weight"}"#, 0),
            (r#"{"calls":"first"}"#, 33),
        ] {
            assert_eq!(passes(correction), expected, "{correction}");
        }
    }
}

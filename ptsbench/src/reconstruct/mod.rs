//! How the remaining weights recover: error correction (section 3.1), then unit after unit fitted to the dense outputs
//! (sections 3.2-3.4).

pub mod checkpoint;
pub mod correct;
pub mod fit;
pub mod loss;
pub mod pairs;

use std::collections::HashMap;
use std::path::PathBuf;

use burn::tensor::{Device, TensorData};
use kernels::Precision;
use model_zoo::graft::{read_params, write_params};
use model_zoo::norm::Scales;
use model_zoo::tap::{Bare, Capture, Census, Row};
use model_zoo::weights::WeightError;
use model_zoo::{Bundle, Extents, Network};

use crate::batches::Batches;
use crate::cell::{CorrectedPart, CorrectionCell, CorrectionOptions, Inputs, Reconstruction};
use crate::interrupt::{self, Interrupted};
use crate::inventory::Weights;
use crate::memory::{Memory, size};
use crate::progress::Progress;
use crate::record::UnitOutcome;
use crate::seed::Seed;
use crate::seen::{Need, Seen, SeenError, look_at};
use crate::select::Masks;
use crate::subject;
use crate::task::TaskError;
use checkpoint::{Checkpoint, Checkpoints, Values};
use correct::{Correction, correct_bias, correct_weight};
use fit::{Call, FitTap, Fitted, Source};
use loss::summed_square_error;
use pairs::{Room, SpillError};

/// Measurement version of this folder: raised whenever its numbers may change.
pub const VERSION: u32 = 4;

/// Why reconstruction ended early.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// The loss is no number any more.
    #[error(
        "unit `{unit}`: the loss is not finite at step {step}; lower the learning rate (`--set fit.NAME.lr=...`)"
    )]
    Diverged {
        /// The unit.
        unit: String,
        /// The step.
        step: usize,
    },
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Calibration images cannot be read.
    #[error(transparent)]
    Inputs(Box<TaskError>),
    /// A layer's inputs cannot be measured.
    #[error(transparent)]
    Seen(#[from] SeenError),
    /// What a unit is fitted on cannot be kept.
    #[error("unit `{unit}`: {source}")]
    Spill {
        /// The unit.
        unit: String,
        /// Why.
        source: SpillError,
    },
    /// A checkpoint could not be written, or a bad one not removed.
    #[error(transparent)]
    Checkpoint(#[from] WeightError),
}

impl From<TaskError> for FitError {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Interrupted(interrupted) => Self::Interrupted(interrupted),
            error => Self::Inputs(Box::new(error)),
        }
    }
}

/// What reconstruction works with.
pub struct Work<'a, N: Network> {
    /// The dense network, batch norms folded or not.
    pub dense: &'a N,
    /// Its announcements.
    pub census: &'a Census,
    /// The masks, by the checkpoint's layer names.
    pub masks: &'a Masks,
    /// Batches of calibration inputs, at least one.
    pub batches: &'a Batches<'a, N::Input>,
    /// What may stay in memory.
    pub memory: Memory,
    /// The device of all tensors.
    pub device: &'a Device,
    /// Arithmetic of every pass.
    pub precision: Precision,
    /// Where a checkpoint per fitted unit is kept; none where an interrupted run need not go on.
    pub checkpoints: Option<Checkpoints<'a>>,
    /// Told of units and steps.
    pub progress: &'a Progress,
}

impl<N: Network> Work<'_, N> {
    /// Recovers `sparse`, a masked copy of the dense network; returns it with masks still attached.
    pub fn reconstruct(
        &self,
        mut sparse: N,
        settings: &Reconstruction,
    ) -> Result<(N, Vec<UnitOutcome>), FitError> {
        if let CorrectionCell::On(options) = &settings.correction {
            sparse = self.correct(sparse, options)?;
        }
        let units = self.census.units(settings.granularity);
        let one = self.batches.get(0)?.first();
        let mut told = false;
        let mut outcomes = Vec::with_capacity(units.len());
        for (place, unit) in units.iter().enumerate() {
            interrupt::check()?;
            self.progress.unit(place, units.len(), &unit.path);
            let checkpoint = self.checkpoints.map(|all| all.of(place));
            if let Some(checkpoint) = &checkpoint
                && let Some((outcome, values)) = self.kept(&sparse, unit, checkpoint)?
            {
                sparse = write_params(sparse, values, self.device).0;
                outcomes.push(outcome);
                continue;
            }
            let fitted = self.fit(&sparse, one.clone(), unit, settings)?;
            if fitted.spilled > 0 && !told {
                told = true;
                self.progress.note(&format!(
                    "unit `{}`: {} of its inputs and outputs are over the memory budget (PTSBENCH_MEMORY) and go to a temporary file; later units may do the same",
                    unit.path,
                    size(fitted.spilled),
                ));
            }
            let outcome = UnitOutcome {
                path: unit.path.clone(),
                grain: unit.grain,
                steps: fitted.steps,
                loss_before: fitted.loss_before,
                loss_after: fitted.loss_after,
            };
            sparse = fitted.graft.into(sparse);
            if let Some(checkpoint) = &checkpoint {
                checkpoint.write(&outcome, unit_params(&sparse, &unit.path))?;
            }
            outcomes.push(outcome);
        }
        Ok((sparse, outcomes))
    }

    /// Eq. 1: weights first, then biases or the norms' shifts, every layer from the dense network's inputs.
    pub fn correct(&self, sparse: N, options: &CorrectionOptions) -> Result<N, FitError> {
        let (of_weights, of_biases) = (
            options.part != CorrectedPart::Bias,
            options.part != CorrectedPart::Weight,
        );
        let mut seen = HashMap::new();
        let mut scales = Scales::default();
        if of_biases {
            let mut keep = |path: String, found: Seen| -> Result<(), FitError> {
                seen.insert(path, found);
                Ok(())
            };
            look_at(
                self.dense,
                options.calls,
                self.batches,
                Need::Moments,
                self.precision,
                self.memory.for_results(),
                &mut keep,
            )?;
            self.dense.run(self.batches.get(0)?.first(), &mut scales);
        }
        let old: HashMap<String, TensorData> = read_params(&sparse).into_iter().collect();
        let weights = subject::weights(self.dense, self.census);
        let (mut corrected, mut shifts) = (HashMap::new(), HashMap::new());
        for (place, site) in subject::sites(self.dense, self.census).iter().enumerate() {
            let (Some(weight), Some(mask)) = (weights.weight(place), self.masks.get(&site.key))
            else {
                continue;
            };
            if !options.takes(&site.key) {
                continue;
            }
            let new: Vec<f32> = if of_weights {
                let new = correct_weight(weight, mask, Correction::from(options))
                    .expect("a mask has the size of its weight");
                new.weight.into_iter().map(|w| w as f32).collect()
            } else {
                let kept = mask.to_keep().into_iter().zip(weight);
                kept.map(|(keep, &w)| if keep { w } else { 0.0 }).collect()
            };
            // A norm behind the layer takes the shift, as its scale lets it through.
            let unit = site.module.strip_suffix(".conv");
            let norm = unit.and_then(|unit| Some((unit, scales.found.get(unit)?)));
            let path = match norm {
                Some((unit, _)) => format!("{unit}.norm.beta"),
                None => format!("{}.bias", site.module),
            };
            if let (Some(seen), Some(shift)) = (seen.get(&site.module), old.get(&path)) {
                let behind = |weight: &[f32]| -> Vec<f64> {
                    let means = seen.mean_outputs(weight);
                    match norm {
                        Some((_, scale)) => means.iter().zip(scale).map(|(m, s)| m * s).collect(),
                        None => means,
                    }
                };
                let values: Vec<f64> = shift.iter::<f32>().map(f64::from).collect();
                let values = correct_bias(&values, &behind(weight), &behind(&new))
                    .expect("a layer has one mean per output channel");
                let values: Vec<f32> = values.into_iter().map(|b| b as f32).collect();
                shifts.insert(path, TensorData::new(values, shift.shape().clone()));
            }
            if of_weights {
                corrected.insert(site.module.clone(), new);
            }
        }
        let sparse = subject::write_layers(sparse, self.census, corrected, self.device);
        Ok(write_params(sparse, shifts, self.device).0)
    }

    /// Fits one unit; a forward pass over `one` input brings the tap to it.
    fn fit(
        &self,
        sparse: &N,
        one: N::Input,
        unit: &Row,
        settings: &Reconstruction,
    ) -> Result<Fitted, FitError> {
        let steps = settings.fit.steps;
        let mut watch = |step: usize, loss: f64| {
            self.progress.step(step, steps, loss);
            Ok(interrupt::check()?)
        };
        let order = Seed(settings.calibration.seed).stream(&format!("fit.{}", unit.path));
        let folder = self.folder();
        let source = Source {
            batches: self.batches.len(),
            calls: &|batch| self.calls(sparse, &unit.path, settings.inputs, batch),
            room: Room {
                bytes: self.memory.for_results(),
                folder: &folder,
            },
        };
        let mut tap = FitTap::new(
            &unit.path,
            source,
            &settings.fit,
            self.precision,
            order,
            &mut watch,
        );
        sparse.run(one, &mut tap);
        tap.outcome.expect("a unit of the census is reached")
    }

    /// Where what memory has no room for goes: beside the checkpoints, on a disk that is meant for it.
    fn folder(&self) -> PathBuf {
        match &self.checkpoints {
            Some(checkpoints) => checkpoints.folder.to_owned(),
            None => std::env::temp_dir(),
        }
    }

    /// The unit's inputs in the dense or the sparse network, and its outputs in the dense one, over one batch.
    fn calls(
        &self,
        sparse: &N,
        unit: &str,
        inputs: Inputs,
        batch: usize,
    ) -> Result<(Vec<Call>, Option<Extents>), FitError> {
        interrupt::check()?;
        let batch = self.batches.get(batch)?;
        let extents = batch.extents();
        let calls = |network: &N, batch: N::Input| {
            let mut capture = Capture::of(unit, self.precision);
            network.run(batch, &mut capture);
            capture.into_calls()
        };
        let found = match inputs {
            Inputs::Dense => calls(self.dense, batch),
            Inputs::Sparse => {
                let dense = calls(self.dense, batch.clone());
                let sparse = calls(sparse, batch);
                let pair = |((input, _), (_, output))| (input, output);
                sparse.into_iter().zip(dense).map(pair).collect()
            }
        };
        Ok((found, extents))
    }

    /// What a checkpoint of this unit holds for the network; a bad one is removed, with a remark.
    fn kept(
        &self,
        sparse: &N,
        unit: &Row,
        checkpoint: &Checkpoint<'_>,
    ) -> Result<Option<(UnitOutcome, Values)>, FitError> {
        let shapes = unit_params(sparse, &unit.path)
            .map(|(path, data)| (path, data.shape().to_vec()))
            .collect();
        match checkpoint.read(&shapes, |outcome: &UnitOutcome| outcome.path == unit.path) {
            Ok(kept) => Ok(kept),
            Err(why) => {
                checkpoint.remove()?;
                self.progress.note(&format!(
                    "{}: {why}; it was removed, and unit `{}` is fitted again",
                    checkpoint.file.display(),
                    unit.path
                ));
                Ok(None)
            }
        }
    }
}

/// The stored parameters inside the unit at `path`.
fn unit_params<N: Network>(network: &N, unit: &str) -> impl Iterator<Item = (String, TensorData)> {
    let inside = format!("{unit}.");
    read_params(network)
        .into_iter()
        .filter(move |(path, _)| path.starts_with(&inside))
}

/// Mean squared error, summed over outputs, of a network's outputs on batches against another's: how far the whole is off,
/// in f32.
pub fn output_error<N: Network>(network: &N, reference: &N, batches: &[N::Input]) -> f64 {
    let errors = batches.iter().map(|batch| {
        let (got, expected) = (
            network.run(batch.clone(), &mut Bare::default()),
            reference.run(batch.clone(), &mut Bare::default()),
        );
        f64::from(summed_square_error(got, expected).into_scalar::<f32>())
    });
    errors.sum::<f64>() / batches.len().max(1) as f64
}

//! One cell, from dense weights to record.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use burn::tensor::{Device, Tensor};
use model_zoo::Network;
use model_zoo::catalog::{self, CatalogError, Spec, Visit};
use model_zoo::tap::Census;
use model_zoo::weights::{self, WeightError};

use crate::allocate::{self, AllocateError, Allocation, BadRate, Options, Rate};
use crate::cell::{Cell, Pattern, Reconstruction, Sparsity};
use crate::criterion::{self, UnknownCriterion};
use crate::data::calibration::{CalibrationError, CalibrationList};
use crate::device::Chosen;
use crate::interrupt::Interrupted;
use crate::inventory::{Layer, Weights};
use crate::progress::Progress;
use crate::reconstruct::{FitError, Work};
use crate::record::{Cost, Environment, LayerOutcome, Record, SCHEMA, Timing, UnitOutcome};
use crate::seed::Seed;
use crate::select::{Masks, SelectError, select};
use crate::subject;
use crate::task::{self, Task, TaskError, UnknownTask};

/// What a measurement needs beside its cell; nothing here may change the number.
pub struct Bench<'a> {
    /// The device.
    pub chosen: &'a Chosen,
    /// Told of units and steps.
    pub progress: &'a Progress,
}

/// Why a cell was not measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// No such model.
    #[error(transparent)]
    Model(#[from] CatalogError),
    /// No such task.
    #[error(transparent)]
    Task(#[from] UnknownTask),
    /// The model is not one for the task.
    #[error(
        "`{model}` gives {found} classes for an input of {input:?}, and task `{task}` has {classes} classes of {wanted:?}; choose a model trained for the task (`ptsbench list models`)"
    )]
    Unfit {
        /// The model.
        model: String,
        /// Its classes.
        found: usize,
        /// Its input.
        input: [usize; 3],
        /// The task.
        task: &'static str,
        /// The task's classes.
        classes: usize,
        /// The task's input.
        wanted: [usize; 3],
    },
    /// The weight file is bad.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The weight file changed since the plan was read.
    #[error("{}: its SHA-256 is {found}, the plan was made for {expected}; it was changed while the plan ran, start again", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
        /// Planned.
        expected: String,
        /// Found.
        found: String,
    },
    /// A rate outside [0, 1).
    #[error(transparent)]
    Rate(#[from] BadRate),
    /// The rate cannot be allocated.
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    /// No such criterion.
    #[error(transparent)]
    Criterion(#[from] UnknownCriterion),
    /// No masks.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// No calibration images.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// Reconstruction failed.
    #[error(transparent)]
    Fit(FitError),
    /// Evaluation failed.
    #[error(transparent)]
    Evaluate(TaskError),
}

impl From<FitError> for MeasureError {
    fn from(error: FitError) -> Self {
        match error {
            FitError::Interrupted(interrupted) => Self::Interrupted(interrupted),
            error => Self::Fit(error),
        }
    }
}

impl From<TaskError> for MeasureError {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Interrupted(interrupted) => Self::Interrupted(interrupted),
            error => Self::Evaluate(error),
        }
    }
}

impl Bench<'_> {
    /// Measures a cell with the weights in `file`; `work` keeps what an interrupted measurement can go on from.
    pub fn measure(&self, cell: &Cell, file: &Path, work: &Path) -> Result<Record, MeasureError> {
        let spec = catalog::find(&cell.model)?;
        let task = task::find(&cell.task.name)?;
        spec.open(
            &self.chosen.device,
            Measure {
                bench: self,
                cell,
                task,
                file,
                work,
            },
        )
    }
}

/// Loads a model's weights, checks them, and folds its batch norms.
pub fn open_dense<N: Network>(network: N, file: &Path) -> Result<N, WeightError> {
    let source = weights::open(file)?;
    Ok(weights::load_network(network, source.as_ref())?.fold())
}

/// Refuses a model whose input or classes are not the task's.
pub fn check_fit(spec: &Spec, census: &Census, task: Task) -> Result<(), MeasureError> {
    let found = classes(census);
    if spec.input == task.input && found == task.classes {
        return Ok(());
    }
    Err(MeasureError::Unfit {
        model: spec.name.to_owned(),
        found,
        input: spec.input,
        task: task.name,
        classes: task.classes,
        wanted: task.input,
    })
}

/// Width of what the last layer gives.
pub fn classes(census: &Census) -> usize {
    let last = census.layers().into_iter().last();
    last.and_then(|row| row.outputs.last()?.last().copied())
        .unwrap_or(0)
}

pub(crate) struct Measure<'a> {
    pub(crate) bench: &'a Bench<'a>,
    pub(crate) cell: &'a Cell,
    pub(crate) task: Task,
    pub(crate) file: &'a Path,
    pub(crate) work: &'a Path,
}

impl Visit for Measure<'_> {
    type Out = Result<Record, MeasureError>;

    fn visit<N: Network<Input = Tensor<4>, Output = Tensor<2>>>(
        self,
        spec: &'static Spec,
        network: N,
    ) -> Self::Out {
        let device = &self.bench.chosen.device;
        let mut timing = Timing::default();

        let start = Instant::now();
        self.check_file()?;
        let dense = open_dense(network, self.file)?;
        let census = subject::census(spec, &dense, device);
        check_fit(spec, &census, self.task)?;
        let weights = subject::weights(&dense, &census);
        let chosen = match &self.cell.sparsity {
            Some(sparsity) => Some(choose(&weights, sparsity)?),
            None => None,
        };
        timing.prepare_s = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let (network, units) = match (&self.cell.sparsity, &chosen) {
            (Some(sparsity), Some((_, masks))) => {
                let sparse = subject::attach(dense.clone(), &census, masks, device);
                let (sparse, units) = match &sparsity.reconstruction {
                    Some(settings) => self.reconstruct(&dense, sparse, &census, masks, settings)?,
                    None => (sparse, Vec::new()),
                };
                (sparse.materialize(), units)
            }
            _ => (dense.clone(), Vec::new()),
        };
        timing.reconstruct_s = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let score = self
            .task
            .evaluate(&network, self.cell.task.samples, device)?;
        timing.evaluate_s = start.elapsed().as_secs_f64();
        timing.finished_unix = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());

        let layers = outcomes(&weights, chosen.as_ref());
        Ok(Record {
            schema: SCHEMA,
            key: self.cell.key(),
            cell: self.cell.clone(),
            score,
            cost: cost(weights.layers(), &layers, dense.num_params()),
            layers,
            units,
            timing,
            environment: self.environment(),
        })
    }
}

impl Measure<'_> {
    pub(crate) fn check_file(&self) -> Result<(), MeasureError> {
        let found = weights::sha256(self.file)?;
        if found == self.cell.weights {
            return Ok(());
        }
        Err(MeasureError::Changed {
            file: self.file.to_owned(),
            expected: self.cell.weights.clone(),
            found,
        })
    }

    pub(crate) fn reconstruct<N>(
        &self,
        dense: &N,
        sparse: N,
        census: &Census,
        masks: &Masks,
        settings: &Reconstruction,
    ) -> Result<(N, Vec<UnitOutcome>), MeasureError>
    where
        N: Network<Input = Tensor<4>, Output = Tensor<2>>,
    {
        let device = &self.bench.chosen.device;
        let calibration = &settings.calibration;
        let list = CalibrationList::draw(
            Seed(calibration.seed),
            calibration.images,
            self.task.training,
        )?;
        let batches: Vec<Tensor<4>> = list
            .indices
            .chunks(calibration.batch.max(1))
            .map(|indices| self.task.training_images(indices, device))
            .collect();
        let work = Work {
            dense,
            census,
            masks,
            batches: &batches,
            device,
            checkpoints: Some(self.work),
            progress: self.bench.progress,
        };
        Ok(work.reconstruct(sparse, settings)?)
    }

    fn environment(&self) -> Environment {
        Environment {
            ptsbench: env!("CARGO_PKG_VERSION").to_owned(),
            device: self.bench.chosen.name.to_owned(),
            threads: rayon::current_num_threads(),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor: crate::command::doctor::processor(),
        }
    }
}

/// The counts (where the pattern does not decide them) and the masks.
pub(crate) fn choose(
    weights: &dyn Weights,
    sparsity: &Sparsity,
) -> Result<(Option<Allocation>, Masks), MeasureError> {
    let allocation = match (&sparsity.allocation, sparsity.pattern) {
        (Some(part), Pattern::Unstructured { rate }) => {
            Some(allocate::find(&part.name)?.allocate(
                weights,
                Rate::new(rate)?,
                sparsity.rule,
                &Options::default(),
            )?)
        }
        _ => None,
    };
    let masks = select(
        weights,
        criterion::find(&sparsity.criterion.name)?,
        sparsity.pattern,
        allocation.as_ref(),
        sparsity.rule,
    )?;
    Ok((allocation, masks))
}

fn outcomes(
    weights: &dyn Weights,
    chosen: Option<&(Option<Allocation>, Masks)>,
) -> Vec<LayerOutcome> {
    let layers = weights.layers().iter().enumerate();
    layers
        .map(|(index, layer)| {
            let zeros = match chosen {
                Some((_, masks)) => masks.get(&layer.path).map_or(0, |mask| mask.zeros()),
                None => {
                    let weight = weights.weight(index).unwrap_or_default();
                    weight.iter().filter(|w| **w == 0.0).count()
                }
            };
            LayerOutcome {
                path: layer.path.clone(),
                shape: layer.shape.clone(),
                weights: layer.len() as u64,
                zeros: zeros as u64,
                rate: chosen.and_then(|(allocation, _)| {
                    allocation.as_ref()?.rates.get(&layer.path).copied()
                }),
            }
        })
        .collect()
}

fn cost(layers: &[Layer], outcomes: &[LayerOutcome], parameters: usize) -> Cost {
    let sum = |of: &dyn Fn(&Layer, &LayerOutcome) -> u64| -> u64 {
        layers.iter().zip(outcomes).map(|(l, o)| of(l, o)).sum()
    };
    Cost {
        weights: sum(&|_, outcome| outcome.weights),
        zeros: sum(&|_, outcome| outcome.zeros),
        parameters: parameters as u64,
        macs: sum(&|layer, _| layer.macs),
        // Every weight of a layer is used equally often.
        sparse_macs: sum(&|layer, outcome| {
            layer.macs / outcome.weights.max(1) * (outcome.weights - outcome.zeros)
        }),
    }
}

/// The layers of a model, by name, without weights.
pub fn layers_of(model: &str) -> Result<Vec<Layer>, CatalogError> {
    struct Layers;
    impl Visit for Layers {
        type Out = Vec<Layer>;
        fn visit<N: Network<Input = Tensor<4>, Output = Tensor<2>>>(
            self,
            spec: &'static Spec,
            network: N,
        ) -> Vec<Layer> {
            let census = subject::census(spec, &network, &Device::flex());
            subject::layers(&network, &census)
        }
    }
    Ok(catalog::find(model)?.open(&Device::flex(), Layers))
}

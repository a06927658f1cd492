//! One cell, from dense weights to record.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use burn::tensor::Device;
use kernels::KernelError;
use kernels::plan::KernelPolicy;
use model_zoo::catalog::{self, CatalogError, Spec, Visit};
use model_zoo::frozen::{Terms, freeze};
use model_zoo::tap::{Bare, Census};
use model_zoo::weights::{self, WeightError};
use model_zoo::{Modality, Network, Of};

use crate::allocate::{AllocateError, Allocation, BadRate, TrialError};
use crate::cell::{BatchNorm, CalibrationCell, Cell, Key};
use crate::criterion::CriterionError;
use crate::device::Chosen;
use crate::fcpts::LearnError;
use crate::interrupt::Interrupted;
use crate::inventory::{Layer, Loaded, Weights};
use crate::machine;
use crate::memory::Memory;
use crate::nofm::FitsNothing;
use crate::own;
use crate::progress::Progress;
use crate::reconstruct::FitError;
use crate::reconstruct::checkpoint::Checkpoints;
use crate::record::{
    Budget, Cost, Environment, LayerOutcome, Paths, Record, SCHEMA, Search, Timing, TrainingCurve,
};
use crate::repair::UnknownRepair;
use crate::seen::SeenError;
use crate::select::{Masks, SelectError};
use crate::solver::problem::SolverError;
use crate::sparsify::Dense;
use crate::subject;
use crate::task::judged::{Judge, Judged, judge};
use crate::task::{Sets, TaskError, same};

/// What a measurement needs beside its cell; nothing here may change the number, but for rounding.
pub struct Bench<'a> {
    /// The device.
    pub chosen: &'a Chosen,
    /// Told of units and steps.
    pub progress: &'a Progress,
    /// The images.
    pub sets: &'a Sets,
    /// Which paths layers take once their weights are final; it moves a result by an image or two at most.
    pub policy: KernelPolicy,
    /// What may stay in memory; it moves no result.
    pub memory: Memory,
}

/// Why a cell was not measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The machine does not have the cell's arithmetic.
    #[error(transparent)]
    Precision(KernelError),
    /// No such model.
    #[error(transparent)]
    Model(#[from] CatalogError),
    /// The task has no images for the model, or no score of it.
    #[error(transparent)]
    Task(TaskError),
    /// The weight file is bad.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The weight file changed since the plan was read.
    #[error("{}: its SHA-256 is {found}, but the plan was made for {expected}; the file changed while the plan ran, start again", file.display())]
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
    Allocate(AllocateError),
    /// No such criterion, or not with these options.
    #[error(transparent)]
    Criterion(#[from] CriterionError),
    /// No such repair.
    #[error(transparent)]
    Repair(#[from] UnknownRepair),
    /// Something looks at calibration images, and the cell has none.
    #[error(
        "the cell names no calibration images, but its criterion, allocator or repair needs some; give the plan a [calibration]"
    )]
    NoCalibration,
    /// A layer's inputs cannot be measured.
    #[error(transparent)]
    Seen(#[from] SeenError),
    /// A solver has no masks of this form.
    #[error("`{0}` cannot choose transposable patterns; use N:M, or a criterion that gives scores")]
    SolverPattern(&'static str),
    /// A layer cannot be solved.
    #[error("layer `{layer}`: {source}")]
    Solver {
        /// The layer.
        layer: String,
        /// Why.
        source: SolverError,
    },
    /// The pattern prunes nothing.
    #[error("model `{model}`: {source}")]
    Pattern {
        /// The model.
        model: String,
        /// Why.
        source: FitsNothing,
    },
    /// No masks.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// A whole method failed.
    #[error(transparent)]
    Learn(LearnError),
    /// Reconstruction failed.
    #[error(transparent)]
    Fit(FitError),
}

impl From<AllocateError> for MeasureError {
    fn from(error: AllocateError) -> Self {
        match error {
            AllocateError::Trial(TrialError::Interrupted(stop)) => Self::Interrupted(stop),
            error => Self::Allocate(error),
        }
    }
}

impl From<LearnError> for MeasureError {
    fn from(error: LearnError) -> Self {
        match error {
            LearnError::Interrupted(interrupted) => Self::Interrupted(interrupted),
            LearnError::Inputs(error) => (*error).into(),
            error => Self::Learn(error),
        }
    }
}

impl From<FitError> for MeasureError {
    fn from(error: FitError) -> Self {
        match error {
            FitError::Interrupted(interrupted) => Self::Interrupted(interrupted),
            FitError::Inputs(error) => (*error).into(),
            error => Self::Fit(error),
        }
    }
}

impl From<TaskError> for MeasureError {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Interrupted(interrupted) => Self::Interrupted(interrupted),
            error => Self::Task(error),
        }
    }
}

impl Bench<'_> {
    /// Measures a cell with the weights in `file`; `work` keeps what an interrupted measurement can go on from.
    pub fn measure(&self, cell: &Cell, file: &Path, work: &Path) -> Result<Record, MeasureError> {
        let measure = Measure {
            bench: self,
            cell,
            file,
            work,
        };
        catalog::find(&cell.model)?.open(&self.chosen.device, measure)
    }

    /// What judges a network of this kind in a cell's task, once its images are seen to be the cell's.
    pub(crate) fn judge<M: Judged>(
        &self,
        spec: &Spec,
        cell: &Cell,
        file: &Path,
    ) -> Result<M::Judge, TaskError> {
        // The cell is the whole description, whoever's the recipe was.
        let (set, task) = (self.sets.get(&cell.task.name)?, &cell.task);
        let judge = judge::<M>(spec, set.clone(), task.recipe.as_deref())?;
        let judge = judge.beside(spec, file)?;
        same(&set, "list of images", &task.data, &set.sha256)?;
        same(&set, "recipe", &task.recipe, &judge.recipe())?;
        Ok(judge)
    }
}

/// Loads a model's weights and checks them; its batch norms are kept or folded.
pub fn open_dense<N: Network>(
    network: N,
    file: &Path,
    batch_norm: BatchNorm,
) -> Result<N, WeightError> {
    let source = own::open(file)?;
    let network = weights::load_network(network, source.as_ref())?;
    Ok(treat(network, batch_norm))
}

/// A loaded network with its batch norms kept or folded.
pub(crate) fn treat<N: Network>(network: N, batch_norm: BatchNorm) -> N {
    match batch_norm {
        BatchNorm::Kept => network,
        BatchNorm::Folded => network.fold(),
    }
}

/// The work on one cell.
pub struct Measure<'a> {
    /// What it is done with.
    pub bench: &'a Bench<'a>,
    /// What is measured.
    pub cell: &'a Cell,
    /// The weight file.
    pub file: &'a Path,
    /// What keeps the units of an interrupted fit.
    pub work: &'a Path,
}

impl<M: Judged> Visit<M> for Measure<'_> {
    type Out = Result<Record, MeasureError>;

    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Self::Out {
        let start = Instant::now();
        let judge = self.bench.judge::<M>(spec, self.cell, self.file)?;
        let opened_s = start.elapsed().as_secs_f64();
        let mut record = self.record(spec, network, &judge)?;
        record.timing.prepare_s += opened_s;
        Ok(record)
    }
}

impl Measure<'_> {
    /// The record of the cell's network, by whatever judges networks of its kind.
    pub fn record<M: Modality, N: Of<M>>(
        &self,
        spec: &'static Spec,
        network: N,
        judge: &impl Judge<M>,
    ) -> Result<Record, MeasureError> {
        let device = &self.bench.chosen.device;
        let mut timing = Timing::default();

        let start = Instant::now();
        self.check()?;
        let treatment = self.cell.sparsity.as_ref().map(|s| s.batch_norm);
        let dense = open_dense(network, self.file, treatment.unwrap_or_default())?;
        let census = judge.census(spec, &dense, device)?;
        let weights = subject::weights(&dense, &census);
        timing.prepare_s = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let (network, chosen, units, training, budget) = match &self.cell.sparsity {
            Some(sparsity) => {
                let key = self.cell.key();
                let subject = self.dense(spec, &dense, &census, &weights, &key);
                let room = self.bench.memory.for_inputs();
                let plain = Bare(self.cell.precision);
                let run = |input| dense.run(input, &mut plain.clone());
                let mut images =
                    |wanted: &CalibrationCell| Ok(judge.calibration(&run, wanted, device, room)?);
                let sparse = subject.sparsify(sparsity, &mut images)?;
                let chosen = (sparse.allocation, sparse.masks);
                let (units, training) = (sparse.units, sparse.training);
                (sparse.network, Some(chosen), units, training, sparse.budget)
            }
            None => (
                dense.clone(),
                None,
                Vec::new(),
                Vec::new(),
                Budget::default(),
            ),
        };
        let terms = Terms {
            policy: self.bench.policy.with_precision(self.cell.precision),
            batch: judge.batch(),
            nm: self.cell.sparsity.as_ref().and_then(|s| s.pattern.groups()),
        };
        // A norm with frozen statistics is a scale and a shift: with everything chosen, the convolution carries them.
        let frozen = freeze(network.fold(), &census, &terms);
        timing.reconstruct_s = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let samples = self.cell.task.samples;
        let bare = Bare(self.cell.precision);
        let run = |input| frozen.network.run(input, &mut bare.clone());
        let score = judge.evaluate(&run, samples, device, |done| {
            self.bench.progress.images(done, samples);
        })?;
        timing.evaluate_s = start.elapsed().as_secs_f64();
        timing.finished_unix = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());

        let layers = outcomes(&weights, chosen.as_ref());
        let allocation = chosen.as_ref().and_then(|(found, _)| found.as_ref());
        Ok(Record {
            schema: SCHEMA,
            key: self.cell.key(),
            cell: self.cell.clone(),
            score,
            cost: cost(weights.layers(), &layers, dense.num_params()),
            budget,
            layers,
            units,
            search: allocation.and_then(|found| Search::of(&found.losses)),
            training: (!training.is_empty()).then_some(TrainingCurve(training)),
            timing,
            environment: self.environment(Paths::of(&frozen.layers)),
        })
    }

    /// Refuses arithmetic that the machine lacks, and a weight file that is not the cell's.
    pub(crate) fn check(&self) -> Result<(), MeasureError> {
        let precision = self.cell.precision;
        precision.check().map_err(MeasureError::Precision)?;
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

    /// The network to be made sparse.
    pub(crate) fn dense<'b, N: Network>(
        &'b self,
        spec: &'static Spec,
        network: &'b N,
        census: &'b Census,
        weights: &'b Loaded,
        key: &'b Key,
    ) -> Dense<'b, N> {
        Dense {
            model: spec.name,
            network,
            census,
            weights,
            device: &self.bench.chosen.device,
            memory: self.bench.memory,
            precision: self.cell.precision,
            progress: self.bench.progress,
            checkpoints: Some(Checkpoints {
                folder: self.work,
                key,
            }),
        }
    }

    fn environment(&self, paths: Paths) -> Environment {
        Environment {
            ptsbench: env!("CARGO_PKG_VERSION").to_owned(),
            device: self.bench.chosen.name.to_owned(),
            threads: rayon::current_num_threads(),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor: machine::processor(),
            paths: paths.if_any(),
        }
    }
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
    impl<M: Modality> Visit<M> for Layers {
        type Out = Vec<Layer>;
        fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Vec<Layer> {
            let census = subject::census(spec, &network, &Device::flex());
            subject::layers(&network, &census)
        }
    }
    Ok(catalog::find(model)?.open(&Device::flex(), Layers))
}

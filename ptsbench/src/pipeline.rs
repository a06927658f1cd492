//! One cell, from dense weights to record.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use burn::tensor::{Device, Tensor};
use kernels::plan::KernelPolicy;
use model_zoo::catalog::{self, CatalogError, OtherModality, Spec, Visit};
use model_zoo::frozen::{Frozen, Terms, freeze};
use model_zoo::tap::Census;
use model_zoo::weights::{self, WeightError};
use model_zoo::{Boxes, Classes, Classifier, Modality, Network, Noise, Of, Tokens};

use crate::allocate::{AllocateError, Allocation, BadRate, TrialError};
use crate::cell::{BatchNorm, CalibrationCell, Cell, Key};
use crate::criterion::CriterionError;
use crate::data::recipe::Recipe;
use crate::device::Chosen;
use crate::interrupt::Interrupted;
use crate::inventory::{Layer, Loaded, Weights};
use crate::machine;
use crate::nofm::FitsNothing;
use crate::own;
use crate::progress::Progress;
use crate::reconstruct::FitError;
use crate::reconstruct::checkpoint::Checkpoints;
use crate::record::{
    Budget, Cost, Environment, LayerOutcome, Paths, Record, SCHEMA, Search, Timing,
};
use crate::repair::UnknownRepair;
use crate::seen::SeenError;
use crate::select::{Masks, SelectError};
use crate::solver::sparsegpt::SparseGptError;
use crate::sparsify::Dense;
use crate::subject;
use crate::task::{OpenError, Sets, Task, TaskError};

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
    /// The model does what no task judges.
    #[error(transparent)]
    Modality(#[from] OtherModality),
    /// No such task, or no images for it.
    #[error(transparent)]
    Task(#[from] OpenError),
    /// The images are not those of the cell.
    #[error(
        "task {task}: its {what} is {found}, and the cell's is {expected}; the folder or the program changed since the plan was read, start again"
    )]
    OtherData {
        /// The task.
        task: String,
        /// What differs.
        what: &'static str,
        /// Of the cell.
        expected: String,
        /// Found.
        found: String,
    },
    /// The model is not one for the task.
    #[error(
        "`{model}` gives {found} classes for an input of {input:?}, and task {task} has {classes} classes of {wanted:?}; choose a model trained for the task (`ptsbench list models`){hint}"
    )]
    Unfit {
        /// The model.
        model: &'static str,
        /// Its classes.
        found: usize,
        /// Its input.
        input: [usize; 3],
        /// The task.
        task: String,
        /// The task's classes.
        classes: usize,
        /// The task's input.
        wanted: [usize; 3],
        /// What else may be wrong.
        hint: &'static str,
    },
    /// The recipe's images are of another size than the network can take.
    #[error(
        "`{model}` takes images of {own:?}, and the recipe makes {input:?}: {why}; give a recipe of that size (--recipe)"
    )]
    Size {
        /// The model.
        model: &'static str,
        /// Its own size.
        own: [usize; 3],
        /// The recipe's.
        input: [usize; 3],
        /// Why another is none.
        why: &'static str,
    },
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
        source: SparseGptError,
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
    /// Reconstruction failed.
    #[error(transparent)]
    Fit(FitError),
    /// Evaluation failed.
    #[error(transparent)]
    Evaluate(TaskError),
}

impl From<AllocateError> for MeasureError {
    fn from(error: AllocateError) -> Self {
        match error {
            AllocateError::Trial(TrialError::Interrupted(stop)) => Self::Interrupted(stop),
            error => Self::Allocate(error),
        }
    }
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
        let measure = Measure {
            bench: self,
            cell,
            file,
            work,
        };
        catalog::find(&cell.model)?.open_classes(
            &self.chosen.device,
            "`run` measures classes",
            measure,
        )?
    }

    /// The task of a cell for its model, once its images are seen to be the cell's.
    pub(crate) fn task(&self, spec: &Spec, cell: &Cell) -> Result<Task, MeasureError> {
        let set = self.sets.get(&cell.task.name)?;
        // The cell is the whole description, whoever's the recipe was; the built-in images have one form only.
        let of_cell = cell.task.recipe.as_ref().and_then(|text| text.parse().ok());
        let task = Task::new(set, of_cell.unwrap_or(Recipe::of(spec)));
        let recipe = (!task.set().kind.built_in()).then(|| task.recipe().to_string());
        for (what, expected, found) in [
            ("list of images", &cell.task.data, &task.set().sha256),
            ("recipe", &cell.task.recipe, &recipe),
        ] {
            same(&task, what, expected, found)?;
        }
        Ok(task)
    }
}

fn same(
    task: &Task,
    what: &'static str,
    expected: &Option<String>,
    found: &Option<String>,
) -> Result<(), MeasureError> {
    if expected == found {
        return Ok(());
    }
    let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    Err(MeasureError::OtherData {
        task: task.set().label(),
        what,
        expected: said(expected),
        found: said(found),
    })
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

/// Refuses inputs of a size that a network cannot take.
pub fn takes(spec: &Spec, input: [usize; 3]) -> Result<(), MeasureError> {
    if spec.takes(input) {
        return Ok(());
    }
    Err(MeasureError::Size {
        model: spec.name,
        own: spec.input,
        input,
        why: if spec.one_size() {
            "a transformer has one position for each patch of its own size"
        } else {
            "nothing would be left of such an image"
        },
    })
}

/// Refuses a model whose input or classes are not the task's.
pub fn check_fit(spec: &Spec, census: &Census, task: &Task) -> Result<(), MeasureError> {
    let (found, set) = (classes(census), task.set());
    if found == set.classes && !set.kind.built_in() {
        takes(spec, task.input())?;
    }
    if spec.takes(task.input()) && found == set.classes {
        return Ok(());
    }
    // A part of ImageNet without its list of classes gives every picture a wrong one.
    let part = set.kind.name == "imagenet" && Some(set.classes) < set.kind.classes;
    Err(MeasureError::Unfit {
        model: spec.name,
        found,
        input: spec.input,
        task: set.label(),
        classes: set.classes,
        wanted: task.input(),
        hint: if part {
            "; if this is a part of ImageNet, put LOC_synset_mapping.txt with all 1000 classes beside it"
        } else {
            ""
        },
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
    pub(crate) file: &'a Path,
    pub(crate) work: &'a Path,
}

impl Visit<Classes> for Measure<'_> {
    type Out = Result<Record, MeasureError>;

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> Self::Out {
        let device = &self.bench.chosen.device;
        let mut timing = Timing::default();

        let start = Instant::now();
        self.check_file()?;
        let task = self.bench.task(spec, self.cell)?;
        let treatment = self.cell.sparsity.as_ref().map(|s| s.batch_norm);
        let dense = open_dense(network, self.file, treatment.unwrap_or_default())?;
        let mut census = subject::census(spec, &dense, device);
        check_fit(spec, &census, &task)?;
        if task.input() != spec.input {
            // Multiply-adds are those of the task's images.
            let [channels, height, width] = task.input();
            let image = Tensor::zeros([1, channels, height, width], device);
            census = subject::census_on(image, &dense);
        }
        let weights = subject::weights(&dense, &census);
        timing.prepare_s = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let (network, chosen, units, budget) = match &self.cell.sparsity {
            Some(sparsity) => {
                let key = self.cell.key();
                let subject = self.dense(spec, &dense, &census, &weights, &key);
                let mut images = |wanted: &CalibrationCell| self.calibrate(&task, wanted);
                let sparse = subject.sparsify(sparsity, &mut images)?;
                let chosen = (sparse.allocation, sparse.masks);
                (sparse.network, Some(chosen), sparse.units, sparse.budget)
            }
            None => (dense.clone(), None, Vec::new(), Budget::default()),
        };
        // A norm with frozen statistics is a scale and a shift: with everything chosen, the convolution carries them.
        let network = self.freeze(network.fold(), &census, &task);
        timing.reconstruct_s = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let samples = self.cell.task.samples;
        let score = task.evaluate(&network.network, samples, device, |done| {
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
            timing,
            environment: self.environment(Paths::of(&network.layers)),
        })
    }
}

impl Measure<'_> {
    /// The network with the kept weights of each layer where they pay for themselves in an evaluation.
    fn freeze<N: Network>(&self, network: N, census: &Census, task: &Task) -> Frozen<N> {
        let terms = Terms {
            policy: self.bench.policy.with_precision(self.cell.precision),
            batch: task.batch(),
            nm: self.cell.sparsity.as_ref().and_then(|s| s.pattern.groups()),
        };
        freeze(network, census, &terms)
    }

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

    /// The calibration images, once they are seen to be the cell's.
    pub(crate) fn calibrate(
        &self,
        task: &Task,
        calibration: &CalibrationCell,
    ) -> Result<Vec<Tensor<4>>, MeasureError> {
        let (list, sha256) = task
            .set()
            .calibration(calibration.images, calibration.seed)?;
        same(
            task,
            "list of calibration images",
            &calibration.list,
            &sha256,
        )?;
        let device = &self.bench.chosen.device;
        let batches: Result<_, TaskError> = list
            .indices
            .chunks(calibration.batch.max(1))
            .map(|indices| task.training_images(indices, device))
            .collect();
        Ok(batches?)
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

/// A kind of network that reconstruction may have inputs for.
pub(crate) trait Calibrated: Modality + Sized {
    /// The inputs of a cell, once its task is seen to fit the network.
    fn calibrate(
        _measure: &Measure<'_>,
        spec: &'static Spec,
        _census: &Census,
        _calibration: &CalibrationCell,
    ) -> Result<Vec<Self::Input>, MeasureError> {
        Err(OtherModality::of::<Self>(spec, "tasks have images to classify").into())
    }
}

impl Calibrated for Classes {
    fn calibrate(
        measure: &Measure<'_>,
        spec: &'static Spec,
        census: &Census,
        calibration: &CalibrationCell,
    ) -> Result<Vec<Tensor<4>>, MeasureError> {
        let task = measure.bench.task(spec, measure.cell)?;
        check_fit(spec, census, &task)?;
        measure.calibrate(&task, calibration)
    }
}

impl Calibrated for Boxes {}
impl Calibrated for Noise {}
impl Calibrated for Tokens {}

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

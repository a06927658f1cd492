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
use crate::device::Chosen;
use crate::interrupt::Interrupted;
use crate::inventory::{Layer, Weights};
use crate::progress::Progress;
use crate::reconstruct::checkpoint::Checkpoints;
use crate::reconstruct::{FitError, Work};
use crate::record::{Budget, Cost, Environment, LayerOutcome, Record, SCHEMA, Timing, UnitOutcome};
use crate::select::{Masks, SelectError, select};
use crate::subject;
use crate::task::{OpenError, Sets, Task, TaskError};

/// What a measurement needs beside its cell; nothing here may change the number.
pub struct Bench<'a> {
    /// The device.
    pub chosen: &'a Chosen,
    /// Told of units and steps.
    pub progress: &'a Progress,
    /// The images.
    pub sets: &'a Sets,
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
    /// An algorithm is asked for something that it does not know.
    #[error(
        "`{part}` has no option `{option}` in this version; measure the cell with the program that has it"
    )]
    Option {
        /// The algorithm.
        part: String,
        /// The option.
        option: String,
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
        catalog::find(&cell.model)?.open(
            &self.chosen.device,
            Measure {
                bench: self,
                cell,
                file,
                work,
            },
        )
    }

    /// The task of a cell for its model, once its images are seen to be the cell's.
    pub(crate) fn task(&self, spec: &Spec, cell: &Cell) -> Result<Task, MeasureError> {
        let set = self.sets.get(&cell.task.name)?;
        let task = Task::new(set, spec);
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

/// Loads a model's weights, checks them, and folds its batch norms.
pub fn open_dense<N: Network>(network: N, file: &Path) -> Result<N, WeightError> {
    let source = weights::open(file)?;
    Ok(weights::load_network(network, source.as_ref())?.fold())
}

/// Refuses a model whose input or classes are not the task's.
pub fn check_fit(spec: &Spec, census: &Census, task: &Task) -> Result<(), MeasureError> {
    let (found, set) = (classes(census), task.set());
    if spec.input == task.input() && found == set.classes {
        return Ok(());
    }
    // A part of ImageNet without its list of classes gives every picture a wrong one.
    let part = set.kind.name == "imagenet" && set.classes < set.kind.classes;
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
        let task = self.bench.task(spec, self.cell)?;
        let dense = open_dense(network, self.file)?;
        let census = subject::census(spec, &dense, device);
        check_fit(spec, &census, &task)?;
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
                    Some(settings) => {
                        let (batches, dense) = (self.calibrate(&task, settings)?, &dense);
                        self.reconstruct(dense, sparse, &census, masks, settings, &batches)?
                    }
                    None => (sparse, Vec::new()),
                };
                (sparse.materialize(), units)
            }
            _ => (dense.clone(), Vec::new()),
        };
        timing.reconstruct_s = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let samples = self.cell.task.samples;
        let score = task.evaluate(&network, samples, device, |done| {
            self.bench.progress.images(done, samples);
        })?;
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
            budget: Budget::of(self.cell, &units),
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

    /// The calibration images, once they are seen to be the cell's.
    pub(crate) fn calibrate(
        &self,
        task: &Task,
        settings: &Reconstruction,
    ) -> Result<Vec<Tensor<4>>, MeasureError> {
        let calibration = &settings.calibration;
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

    pub(crate) fn reconstruct<N>(
        &self,
        dense: &N,
        sparse: N,
        census: &Census,
        masks: &Masks,
        settings: &Reconstruction,
        batches: &[Tensor<4>],
    ) -> Result<(N, Vec<UnitOutcome>), MeasureError>
    where
        N: Network<Input = Tensor<4>, Output = Tensor<2>>,
    {
        let key = self.cell.key();
        let work = Work {
            dense,
            census,
            masks,
            batches,
            device: &self.bench.chosen.device,
            checkpoints: Some(Checkpoints {
                folder: self.work,
                key: &key,
            }),
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
    // No algorithm has options yet; to leave one out would be to measure another cell.
    for part in sparsity.allocation.iter().chain([&sparsity.criterion]) {
        if let Some(option) = part.options.keys().next() {
            return Err(MeasureError::Option {
                part: part.name.clone(),
                option: option.clone(),
            });
        }
    }
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

//! A plan: the TOML file that says what to measure, and its expansion into cells.
//!
//! A plan lists grids; a grid is a cross product of axes. Expansion is pure and ordered: the same plan and the same
//! registry give the same cells in the same order. What a plan cannot know (digests, versions, sizes of sets) it asks
//! of a [`Registry`]. No cell is computed here.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::path::Path;

use indexmap::{IndexMap, IndexSet};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::cell::{
    CalibrationCell, Cell, Fit, Granularity, Inputs, Key, Optimizer, Part, Pattern, Reconstruction,
    Rule, Sparsity, TaskCell,
};

/// The plans that come with the program: name and text.
pub const PRESETS: &[(&str, &str)] = &[
    ("micro", include_str!("../presets/micro.toml")),
    ("smoke", include_str!("../presets/smoke.toml")),
];

/// What a plan asks of the rest of the program.
pub trait Registry {
    /// SHA-256, in hex, of the model's weight file.
    fn weights(&self, model: &str) -> Lookup<String>;
    /// The catalog's names that match a name or glob, in the catalog's order; an error where there is none.
    fn models_matching(&self, glob: &str) -> Lookup<Vec<String>>;
    /// What there is to know of a task.
    fn task(&self, name: &str) -> Lookup<TaskFacts>;
    /// How pictures of a task become inputs of a model; none where they have one form for all.
    fn recipe(&self, task: &str, model: &str) -> Lookup<Option<String>>;
    /// SHA-256 of a seed's calibration images; none where the task's version identifies them.
    fn calibration(&self, task: &str, images: usize, seed: u64) -> Lookup<Option<String>>;
    /// Measurement version of an allocator.
    fn allocator_version(&self, name: &str) -> Lookup<u32>;
    /// Measurement version of a criterion.
    fn criterion_version(&self, name: &str) -> Lookup<u32>;
    /// Measurement version of reconstruction.
    fn reconstruction_version(&self) -> u32;
}

/// What a plan asks of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFacts {
    /// Measurement version.
    pub version: u32,
    /// Samples that its set holds.
    pub available: usize,
    /// SHA-256 of the list that is evaluated; none where the version identifies it.
    pub data: Option<String>,
}

/// A registry's answer; its error names what was asked for and the nearest thing that exists.
pub type Lookup<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Neither a file nor a preset.
    #[error("no plan `{name}`: there is no such file, and the presets are {presets}{hint}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The presets, comma-separated.
        presets: String,
        /// The nearest preset, as a question, or nothing.
        hint: String,
    },
    /// The file exists and cannot be read.
    #[error(
        "cannot read the plan {file}: {reason}; check the path and that it is a UTF-8 text file"
    )]
    Read {
        /// The file.
        file: String,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// The text is not a plan.
    #[error("{file}:{line}:{column}: {message}")]
    Text {
        /// The file or preset.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong and what was probably meant.
        message: String,
    },
    /// An override does not fit the plan.
    #[error("--set {set}: {message}")]
    Set {
        /// The override as given.
        set: String,
        /// What is wrong and what was probably meant.
        message: String,
    },
    /// The text is a plan, and the plan makes no sense.
    #[error("{file}: {message}")]
    Invalid {
        /// The file or preset.
        file: String,
        /// Where, what, and what to change.
        message: String,
    },
    /// The registry does not know what the plan names.
    #[error("{file}: {place}: {reason}")]
    Lookup {
        /// The file or preset.
        file: String,
        /// The part of the plan.
        place: String,
        /// The registry's answer.
        reason: Box<dyn Error + Send + Sync>,
    },
}

/// What to measure.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Short name, used in file names.
    pub name: String,
    /// Heading of its tables.
    pub title: String,
    /// A line shown under every table.
    #[serde(default)]
    pub note: String,
    /// What is evaluated.
    pub task: TaskPlan,
    /// Rates and patterns of every grid that lists none itself.
    #[serde(default)]
    pub rates: Vec<Amount>,
    /// Seeds of every reconstruction grid that lists none itself; `[0]` where this is empty too.
    #[serde(default)]
    pub seeds: Vec<u64>,
    /// Arithmetic of the products; f32 unless it says otherwise.
    #[serde(default, deserialize_with = "crate::cell::precision_name::deserialize")]
    pub precision: kernels::Precision,
    /// Calibration images; needed by grids that reconstruct.
    pub calibration: Option<CalibrationPlan>,
    /// Named ways of fitting a unit.
    #[serde(default)]
    pub fit: IndexMap<String, FitPreset>,
    /// The grids, expanded in this order.
    #[serde(default)]
    pub grid: Vec<Grid>,
    /// The file or preset this was read from.
    #[serde(skip)]
    pub source: String,
}

/// What is evaluated.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskPlan {
    /// The task's name in the registry.
    pub name: String,
    /// Samples evaluated, the first ones of the set.
    pub samples: usize,
}

/// The images that guide reconstruction.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationPlan {
    /// How many.
    pub images: usize,
    /// Images in a cached batch.
    pub batch: usize,
}

/// A named way of fitting a unit; flat in the file, [`Fit`] in a cell.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitPreset {
    /// The rule that updates weights.
    pub optimizer: OptimizerName,
    /// Learning rate of weights.
    pub lr: f64,
    /// Learning rate of biases; 0 freezes them.
    #[serde(default)]
    pub bias_lr: f64,
    /// Momentum, for SGD only.
    pub momentum: Option<f64>,
    /// Steps per unit, at most.
    pub steps: usize,
    /// A unit ends when a batch's loss falls below this; 0 never.
    #[serde(default)]
    pub early_stop: f64,
}

/// Name of an optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam.
    Adam,
    /// SGD with momentum.
    Sgd,
}

/// A cross product of axes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Its name in the plan.
    pub name: String,
    /// The track whose table it fills.
    pub track: Track,
    /// Names or globs of networks.
    pub models: Vec<String>,
    /// Rates and patterns; the plan's where absent.
    pub rates: Option<Vec<Amount>>,
    /// Allocators; patterns that decide the rate themselves need none.
    #[serde(default)]
    pub allocators: Vec<String>,
    /// Which weights go inside a layer.
    #[serde(default = "magnitude")]
    pub criterion: String,
    /// Counting and tie rule.
    #[serde(default)]
    pub rule: Rule,
    /// Grains of reconstruction; a grid without this axis does not reconstruct.
    #[serde(default)]
    pub granularity: Vec<Granularity>,
    /// Where units' inputs come from; `["sparse"]` where absent.
    pub inputs: Option<Vec<Inputs>>,
    /// Whether Eq. 1 corrects first; `[true]` where absent.
    pub correction: Option<Vec<bool>>,
    /// Name of the fit preset; may be left out where the plan has one only.
    pub fit: Option<String>,
    /// Seeds of the calibration draw; the plan's where absent.
    pub seeds: Option<Vec<u64>>,
    /// The dense networks alone: no rates, no allocators. Other grids bring their dense references with them.
    #[serde(default)]
    pub dense: bool,
}

fn magnitude() -> String {
    "magnitude".into()
}

/// The benchmark's tracks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Track {
    /// Track 1: how rates are spread over layers.
    Allocation,
    /// Track 2: how the rest recovers.
    Reconstruction,
    /// Track 4: sizes of one family.
    Size,
}

/// How much goes: a rate such as `0.7`, a pattern such as `"2:4"` (kept of each group) or its transposable form
/// `"t2:4"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Amount(pub Pattern);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AmountVisitor;
        impl Visitor<'_> for AmountVisitor {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a rate between 0 and 1, or a pattern such as \"2:4\" or \"t2:4\"")
            }
            fn visit_f64<E: de::Error>(self, rate: f64) -> Result<Amount, E> {
                if rate > 0.0 && rate < 1.0 {
                    Ok(Amount(Pattern::Unstructured { rate }))
                } else {
                    Err(E::custom(format!(
                        "rate {rate} is not between 0 and 1; a rate is the fraction of zeros, and the dense reference \
                         needs no entry"
                    )))
                }
            }
            fn visit_i64<E: de::Error>(self, rate: i64) -> Result<Amount, E> {
                self.visit_f64(rate as f64)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Amount, E> {
                text.parse().map(Amount).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(AmountVisitor)
    }
}

/// A cell with its place in the plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The cell's key.
    pub key: Key,
    /// The cell.
    pub cell: Cell,
    /// The grids it belongs to, in plan order.
    pub grids: Vec<Member>,
}

/// Membership of a cell in a grid.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Member {
    /// The grid's name.
    pub grid: String,
    /// Its track.
    pub track: Track,
}

impl Plan {
    /// Reads a plan from a file, or a preset by its name, and applies overrides of the form `a.b=c`.
    pub fn load(name: &str, sets: &[String]) -> Result<Plan, PlanError> {
        let path = Path::new(name);
        if let Some((_, text)) = PRESETS.iter().find(|(preset, _)| *preset == name)
            && !path.is_file()
        {
            return Plan::parse(text, &format!("preset {name}"), sets);
        }
        if !path.exists() {
            let presets: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
            return Err(PlanError::Unknown {
                name: name.into(),
                presets: presets.join(", "),
                hint: did_you_mean(name, &presets),
            });
        }
        let text = std::fs::read_to_string(path).map_err(|reason| PlanError::Read {
            file: name.into(),
            reason,
        })?;
        Plan::parse(&text, name, sets)
    }

    /// Reads a plan from its text; `source` names it in errors.
    pub fn parse(text: &str, source: &str, sets: &[String]) -> Result<Plan, PlanError> {
        let mut plan: Plan = toml::from_str(text).map_err(|error| located(&error, text, source))?;
        if !sets.is_empty() {
            let mut table: toml::Table =
                toml::from_str(text).map_err(|error| located(&error, text, source))?;
            for set in sets {
                let refuse = |message| PlanError::Set {
                    set: set.clone(),
                    message,
                };
                apply(&mut table, set).map_err(refuse)?;
                plan = Plan::deserialize(table.clone())
                    .map_err(|error| refuse(explain(error.message())))?;
            }
        }
        plan.source = source.into();
        plan.validate()?;
        Ok(plan)
    }

    /// The lines under every table: the plan's note and the settings that stand in for the paper's, as overridden.
    pub fn footnotes(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.note.is_empty() {
            lines.push(self.note.clone());
        }
        lines.push(format!(
            "Task {}: {} samples.",
            self.task.name, self.task.samples
        ));
        if let Some(calibration) = &self.calibration {
            lines.push(format!(
                "Calibration: {} images in batches of {}.",
                calibration.images, calibration.batch
            ));
        }
        for (name, fit) in &self.fit {
            let optimizer = match (fit.optimizer, fit.momentum) {
                (OptimizerName::Adam, _) => "Adam".to_string(),
                (OptimizerName::Sgd, None) => "SGD".to_string(),
                (OptimizerName::Sgd, Some(momentum)) => format!("SGD, momentum {momentum}"),
            };
            let stop = if fit.early_stop > 0.0 {
                format!(", ended early below a loss of {}", fit.early_stop)
            } else {
                String::new()
            };
            lines.push(format!(
                "Fit `{name}`: {optimizer}, {} steps per unit, learning rate {} (biases {}){stop}.",
                fit.steps, fit.lr, fit.bias_lr
            ));
        }
        lines
    }

    fn invalid(&self, message: String) -> PlanError {
        PlanError::Invalid {
            file: self.source.clone(),
            message,
        }
    }

    /// What can be judged from the plan alone.
    fn validate(&self) -> Result<(), PlanError> {
        if self.name.is_empty()
            || !self
                .name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            || self.name.starts_with('.')
        {
            return Err(self.invalid(format!(
                "name = \"{}\" becomes part of file names; use letters, digits, `-`, `_` and `.`",
                self.name
            )));
        }
        if self.task.samples == 0 {
            return Err(self.invalid(
                "task.samples is 0, so nothing would be measured; give at least 1".into(),
            ));
        }
        if let Some(calibration) = &self.calibration
            && (calibration.batch == 0 || calibration.batch > calibration.images)
        {
            return Err(self.invalid(format!(
                "[calibration] has {} images in batches of {}; batch must lie between 1 and images",
                calibration.images, calibration.batch
            )));
        }
        for (name, fit) in &self.fit {
            fit.to_fit()
                .map_err(|why| self.invalid(format!("[fit.{name}] {why}")))?;
        }
        if self.grid.is_empty() {
            return Err(
                self.invalid("the plan has no [[grid]], so it has no cells; add one".into())
            );
        }
        for (index, grid) in self.grid.iter().enumerate() {
            self.validate_grid(grid)
                .map_err(|why| self.invalid(format!("[[grid]] `{}`: {why}", grid.name)))?;
            for earlier in &self.grid[..index] {
                if earlier.name == grid.name {
                    return Err(self.invalid(format!(
                        "two [[grid]] are named `{}`; rename or remove one",
                        grid.name
                    )));
                }
                if (Grid {
                    name: grid.name.clone(),
                    ..earlier.clone()
                }) == *grid
                {
                    return Err(self.invalid(format!(
                        "[[grid]] `{}` repeats `{}`; remove one",
                        grid.name, earlier.name
                    )));
                }
            }
        }
        Ok(())
    }

    fn validate_grid(&self, grid: &Grid) -> Result<(), String> {
        let empty = |axis: &str| Err(format!("{axis} is empty; list at least one, or remove it"));
        if grid.models.is_empty() {
            return empty("models");
        }
        distinct("models", &grid.models)?;
        distinct("allocators", &grid.allocators)?;
        distinct("granularity", &grid.granularity)?;
        if grid.dense {
            let extra = grid.rates.is_some()
                || !grid.allocators.is_empty()
                || !grid.granularity.is_empty()
                || grid.inputs.is_some()
                || grid.correction.is_some()
                || grid.fit.is_some();
            return if extra {
                Err("dense = true measures the dense networks alone; remove it, or every axis but models".into())
            } else {
                Ok(())
            };
        }
        let rates = self.rates(grid);
        if rates.is_empty() {
            return Err("rates is empty, here and in the plan; list at least one".into());
        }
        let texts: Vec<String> = rates.iter().map(|amount| amount.0.to_string()).collect();
        distinct("rates", &texts)?;
        if grid.allocators.is_empty()
            && let Some(Amount(Pattern::Unstructured { rate })) = rates
                .iter()
                .find(|amount| matches!(amount.0, Pattern::Unstructured { .. }))
        {
            return Err(format!(
                "rate {rate} needs an allocator to spread it over layers; list allocators"
            ));
        }
        let axes = [
            ("inputs", grid.inputs.as_ref().map(Vec::len)),
            ("correction", grid.correction.as_ref().map(Vec::len)),
            ("fit", grid.fit.as_ref().map(|_| 1)),
            ("seeds", grid.seeds.as_ref().map(Vec::len)),
        ];
        for (axis, length) in axes {
            match length {
                Some(0) => return empty(axis),
                // Seeds are allowed: they reach a cell through its calibration only, so here they multiply nothing.
                Some(_) if grid.granularity.is_empty() && axis != "seeds" => {
                    return Err(format!(
                        "{axis} concerns reconstruction, which needs granularity; add it, or remove {axis}"
                    ));
                }
                _ => {}
            }
        }
        distinct("inputs", grid.inputs.as_deref().unwrap_or_default())?;
        distinct("correction", grid.correction.as_deref().unwrap_or_default())?;
        distinct("seeds", self.seeds(grid))?;
        if !grid.granularity.is_empty() {
            self.fit(grid)?;
            if self.calibration.is_none() {
                return Err(
                    "reconstruction needs calibration images; add [calibration] with images and batch"
                        .into(),
                );
            }
        }
        Ok(())
    }

    fn rates<'a>(&'a self, grid: &'a Grid) -> &'a [Amount] {
        grid.rates.as_deref().unwrap_or(&self.rates)
    }

    fn seeds<'a>(&'a self, grid: &'a Grid) -> &'a [u64] {
        match &grid.seeds {
            Some(seeds) => seeds,
            None if self.seeds.is_empty() => &[0],
            None => &self.seeds,
        }
    }

    fn fit(&self, grid: &Grid) -> Result<Fit, String> {
        let preset = match &grid.fit {
            Some(name) => self.fit.get(name).ok_or_else(|| {
                let known: Vec<&str> = self.fit.keys().map(String::as_str).collect();
                format!(
                    "fit = \"{name}\" is no preset of this plan{}; add [fit.{name}]",
                    did_you_mean(name, &known)
                )
            })?,
            None => match self.fit.first() {
                Some((_, preset)) if self.fit.len() == 1 => preset,
                Some(_) => return Err("the plan has several [fit.NAME]; name one with fit".into()),
                None => return Err("reconstruction needs a fit preset; add [fit.NAME]".into()),
            },
        };
        preset.to_fit()
    }

    /// The cells: dense references first, then grid by grid, models outermost and seeds innermost. A grid that
    /// reconstructs brings the cells it starts from, since a gain is a difference to them. Coinciding cells appear
    /// once, at their first place.
    pub fn expand(&self, registry: &dyn Registry) -> Result<Vec<Planned>, PlanError> {
        let lookup = |place: String| {
            move |reason| PlanError::Lookup {
                file: self.source.clone(),
                place,
                reason,
            }
        };
        let facts = registry
            .task(&self.task.name)
            .map_err(lookup("[task]".into()))?;
        if self.task.samples > facts.available {
            return Err(self.invalid(format!(
                "task.samples is {}, and the set of task `{}` holds {}; ask for at most that many",
                self.task.samples, self.task.name, facts.available
            )));
        }
        let lists = self.calibration_lists(registry)?;

        let mut digests: HashMap<String, String> = HashMap::new();
        let mut dense = Vec::new();
        let mut sparse = Vec::new();
        for grid in &self.grid {
            let place = || format!("[[grid]] `{}`", grid.name);
            let member = Member {
                grid: grid.name.clone(),
                track: grid.track,
            };
            let mut models = IndexSet::new();
            for glob in &grid.models {
                models.extend(registry.models_matching(glob).map_err(lookup(place()))?);
            }
            let sparsities = self.sparsities(grid, registry, &lists, &lookup)?;
            for model in models {
                if !digests.contains_key(&model) {
                    let digest = registry.weights(&model).map_err(lookup(place()))?;
                    digests.insert(model.clone(), digest);
                }
                let task = TaskCell {
                    name: self.task.name.clone(),
                    version: facts.version,
                    samples: self.task.samples,
                    data: facts.data.clone(),
                    recipe: registry
                        .recipe(&self.task.name, &model)
                        .map_err(lookup(place()))?,
                };
                let cell = |sparsity| Cell {
                    model: model.clone(),
                    weights: digests[&model].clone(),
                    task: task.clone(),
                    sparsity,
                    precision: self.precision,
                };
                dense.push((cell(None), member.clone()));
                for sparsity in &sparsities {
                    sparse.push((cell(Some(sparsity.clone())), member.clone()));
                }
            }
        }

        let mut cells: IndexMap<Key, Planned> = IndexMap::new();
        for (cell, member) in dense.into_iter().chain(sparse) {
            let key = cell.key();
            let planned = cells.entry(key.clone()).or_insert(Planned {
                key,
                cell,
                grids: Vec::new(),
            });
            if !planned.grids.contains(&member) {
                planned.grids.push(member);
            }
        }
        Ok(cells.into_values().collect())
    }

    /// The sparse halves of a grid's cells, equal for all its models.
    fn sparsities<E>(
        &self,
        grid: &Grid,
        registry: &dyn Registry,
        lists: &Lists,
        lookup: &impl Fn(String) -> E,
    ) -> Result<Vec<Sparsity>, PlanError>
    where
        E: FnOnce(Box<dyn Error + Send + Sync>) -> PlanError,
    {
        if grid.dense {
            return Ok(Vec::new());
        }
        let place = || format!("[[grid]] `{}`", grid.name);
        let criterion = Part {
            name: grid.criterion.clone(),
            version: registry
                .criterion_version(&grid.criterion)
                .map_err(lookup(place()))?,
        };
        let mut allocators = Vec::new();
        for name in &grid.allocators {
            allocators.push(Part {
                name: name.clone(),
                version: registry.allocator_version(name).map_err(lookup(place()))?,
            });
        }
        let reconstructions = self.reconstructions(grid, registry, lists)?;

        let mut all = Vec::new();
        for amount in self.rates(grid) {
            let allocations: Vec<Option<Part>> = match amount.0 {
                Pattern::Unstructured { .. } => allocators.iter().cloned().map(Some).collect(),
                Pattern::NofM { .. } | Pattern::TransposableNofM { .. } => vec![None],
            };
            for allocation in allocations {
                for reconstruction in
                    std::iter::once(None).chain(reconstructions.iter().cloned().map(Some))
                {
                    all.push(Sparsity {
                        pattern: amount.0,
                        allocation: allocation.clone(),
                        criterion: criterion.clone(),
                        rule: grid.rule,
                        reconstruction,
                    });
                }
            }
        }
        Ok(all)
    }

    /// The digest of each seed's calibration images, where any grid reconstructs.
    fn calibration_lists(&self, registry: &dyn Registry) -> Result<Lists, PlanError> {
        let mut lists = Lists::new();
        let Some(calibration) = &self.calibration else {
            return Ok(lists);
        };
        for grid in &self.grid {
            for &seed in self.seeds(grid) {
                if grid.granularity.is_empty() || lists.contains_key(&seed) {
                    continue;
                }
                let list = registry
                    .calibration(&self.task.name, calibration.images, seed)
                    .map_err(|reason| PlanError::Lookup {
                        file: self.source.clone(),
                        place: "[calibration]".into(),
                        reason,
                    })?;
                lists.insert(seed, list);
            }
        }
        Ok(lists)
    }

    fn reconstructions(
        &self,
        grid: &Grid,
        registry: &dyn Registry,
        lists: &Lists,
    ) -> Result<Vec<Reconstruction>, PlanError> {
        let Some(calibration) = &self.calibration else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for &granularity in &grid.granularity {
            let fit = self.fit(grid).map_err(|why| self.invalid(why))?;
            for &inputs in grid.inputs.as_deref().unwrap_or(&[Inputs::Sparse]) {
                for &correction in grid.correction.as_deref().unwrap_or(&[true]) {
                    for &seed in self.seeds(grid) {
                        all.push(Reconstruction {
                            version: registry.reconstruction_version(),
                            granularity,
                            inputs,
                            correction,
                            calibration: CalibrationCell {
                                images: calibration.images,
                                batch: calibration.batch,
                                seed,
                                list: lists.get(&seed).cloned().flatten(),
                            },
                            fit: fit.clone(),
                        });
                    }
                }
            }
        }
        Ok(all)
    }
}

/// Digests of calibration lists by seed.
type Lists = HashMap<u64, Option<String>>;

impl FitPreset {
    /// The preset as a cell holds it.
    fn to_fit(&self) -> Result<Fit, String> {
        let finite = |name: &str, value: f64| {
            if value.is_finite() && value >= 0.0 {
                Ok(())
            } else {
                Err(format!("{name} = {value}; give a finite number, 0 or more"))
            }
        };
        finite("lr", self.lr)?;
        finite("bias_lr", self.bias_lr)?;
        finite("early_stop", self.early_stop)?;
        if self.steps == 0 {
            return Err("steps = 0 fits nothing; give at least 1".into());
        }
        let (lr, bias_lr) = (self.lr, self.bias_lr);
        let optimizer = match (self.optimizer, self.momentum) {
            (OptimizerName::Adam, None) => Optimizer::Adam { lr, bias_lr },
            (OptimizerName::Adam, Some(_)) => {
                return Err("adam takes no momentum; remove it, or use optimizer = \"sgd\"".into());
            }
            (OptimizerName::Sgd, Some(momentum)) if (0.0..1.0).contains(&momentum) => {
                Optimizer::Sgd {
                    lr,
                    bias_lr,
                    momentum,
                }
            }
            (OptimizerName::Sgd, Some(momentum)) => {
                return Err(format!("momentum = {momentum}; give a number in [0, 1)"));
            }
            (OptimizerName::Sgd, None) => {
                return Err("sgd needs momentum; the paper's is 0.9".into());
            }
        };
        Ok(Fit {
            optimizer,
            steps: self.steps,
            early_stop: self.early_stop,
        })
    }
}

fn distinct<T: PartialEq + fmt::Debug>(axis: &str, values: &[T]) -> Result<(), String> {
    for (index, value) in values.iter().enumerate() {
        if values[..index].contains(value) {
            return Err(format!("{axis} lists {value:?} twice; remove one"));
        }
    }
    Ok(())
}

/// The error with its line and column.
fn located(error: &toml::de::Error, text: &str, file: &str) -> PlanError {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    PlanError::Text {
        file: file.into(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message: explain(error.message()),
    }
}

/// Serde's message, with the nearest of the names it expected. Serde reports an unknown name and the known ones in
/// backticks; that list is the only one there is, so it cannot go stale.
fn explain(message: &str) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match (message.split(' ').next(), names.as_slice()) {
        (Some("unknown"), [wrong, known @ ..]) if !known.is_empty() => {
            let what = if message.starts_with("unknown field") {
                "key"
            } else {
                "value"
            };
            let known_list = known.join(", ");
            format!(
                "unknown {what} `{wrong}`{}; known here: {known_list}",
                did_you_mean(wrong, known)
            )
        }
        _ => plain(message.trim_end()),
    }
}

/// Serde's message with Rust's names of types in words.
fn plain(message: &str) -> String {
    let Some((before, expected)) = message.rsplit_once("expected ") else {
        return message.to_string();
    };
    let words = match expected {
        "usize" | "u64" => "a whole number, 0 or more",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list, such as [0.5, 0.7]",
        "a string" => "a text in quotes",
        other => other,
    };
    format!("{before}expected {words}")
}

/// `, did you mean ...?` for a name near enough, else nothing.
fn did_you_mean(wrong: &str, known: &[&str]) -> String {
    // The first measure likes a common beginning; the second does justice to short names with two letters swapped.
    let likeness = |name: &str| {
        let swapped = strsim::normalized_damerau_levenshtein(wrong, name) + 0.1;
        strsim::jaro_winkler(wrong, name).max(swapped)
    };
    let nearest = known
        .iter()
        .map(|name| (likeness(name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, name)) if likeness >= 0.7 => format!(", did you mean `{name}`?"),
        _ => String::new(),
    }
}

/// Applies `a.b=c` to a plan's table. Whether the key exists is judged by reading the table as a plan afterwards.
fn apply(table: &mut toml::Table, set: &str) -> Result<(), String> {
    let Some((path, text)) = set.split_once('=') else {
        return Err("expected KEY=VALUE, such as task.samples=200 or grid.0.rates=[0.5]".into());
    };
    let path: Vec<&str> = path.trim().split('.').collect();
    if path.iter().any(|segment| segment.is_empty()) {
        return Err("the key has an empty part; write it as a.b".into());
    }
    let value = parse_value(text.trim())?;
    let (last, parents) = path.split_last().ok_or("the key is empty")?;

    let mut here = table;
    let mut walked = String::new();
    let mut parents = parents.iter().peekable();
    while let Some(&segment) = parents.next() {
        if walked == "fit" && !here.contains_key(segment) {
            let known: Vec<&str> = here.keys().map(String::as_str).collect();
            return Err(format!(
                "the plan has no [fit.{segment}]{}; it has: {}",
                did_you_mean(segment, &known),
                if known.is_empty() {
                    "none".into()
                } else {
                    known.join(", ")
                }
            ));
        }
        let next = here
            .entry(segment)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        walked = format!(
            "{walked}{}{segment}",
            if walked.is_empty() { "" } else { "." }
        );
        here = match next {
            toml::Value::Table(table) => table,
            toml::Value::Array(items) => {
                let Some(&item) = parents.next() else {
                    return Err(format!(
                        "`{walked}` is a list; name one of its {} entries, such as {walked}.0.{last}",
                        items.len()
                    ));
                };
                let names: Vec<String> = items
                    .iter()
                    .filter_map(|item| item.get("name")?.as_str().map(String::from))
                    .collect();
                let index = item
                    .parse()
                    .ok()
                    .or_else(|| names.iter().position(|name| name == item));
                match index.and_then(|index: usize| items.get_mut(index)) {
                    Some(toml::Value::Table(table)) => {
                        walked = format!("{walked}.{item}");
                        table
                    }
                    _ => {
                        let known: Vec<&str> = names.iter().map(String::as_str).collect();
                        return Err(format!(
                            "`{walked}` has no entry `{item}`{}; use 0 to {}, or a name: {}",
                            did_you_mean(item, &known),
                            known.len().saturating_sub(1),
                            known.join(", ")
                        ));
                    }
                }
            }
            other => {
                return Err(format!(
                    "`{walked}` is a {}, so nothing lies below it; set `{walked}` itself",
                    other.type_str()
                ));
            }
        };
    }
    here.insert((*last).to_string(), value);
    Ok(())
}

/// A value in TOML's syntax, or a bare string where it does not start like one of TOML's quoted or bracketed values.
fn parse_value(text: &str) -> Result<toml::Value, String> {
    let parsed: Result<toml::Table, _> = toml::from_str(&format!("value = {text}"));
    match parsed {
        Ok(mut table) if table.len() == 1 => table.remove("value").ok_or("no value".into()),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            Err(format!("`{text}` is not a TOML value: {}", error.message()))
        }
        _ => Ok(toml::Value::String(text.into())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A registry of three networks and one task.
    pub(crate) struct Fake;

    impl Registry for Fake {
        fn weights(&self, model: &str) -> Lookup<String> {
            Ok(format!("{:064x}", model.len()))
        }
        fn models_matching(&self, glob: &str) -> Lookup<Vec<String>> {
            let all = ["micro_resnet8", "micro_resnet14", "micro_resnet20"];
            let found: Vec<String> = all
                .iter()
                .filter(|name| match glob.strip_suffix('*') {
                    Some(start) => name.starts_with(start),
                    None => **name == glob,
                })
                .map(|name| name.to_string())
                .collect();
            if found.is_empty() {
                return Err(format!("no model `{glob}`").into());
            }
            Ok(found)
        }
        fn task(&self, name: &str) -> Lookup<TaskFacts> {
            let facts = |data| TaskFacts {
                version: 3,
                available: 2000,
                data,
            };
            match name {
                "micro" => Ok(facts(None)),
                "files" => Ok(facts(Some("cd".repeat(32)))),
                _ => Err(format!("no task `{name}`").into()),
            }
        }
        fn recipe(&self, task: &str, model: &str) -> Lookup<Option<String>> {
            Ok((task == "files").then(|| format!("as {model} likes it")))
        }
        fn calibration(&self, task: &str, images: usize, seed: u64) -> Lookup<Option<String>> {
            Ok((task == "files").then(|| format!("{:064x}", images as u64 + seed)))
        }
        fn allocator_version(&self, _: &str) -> Lookup<u32> {
            Ok(1)
        }
        fn criterion_version(&self, _: &str) -> Lookup<u32> {
            Ok(1)
        }
        fn reconstruction_version(&self) -> u32 {
            1
        }
    }

    const SMALL: &str = r#"name = "small"
title = "Small"

[task]
name = "micro"
samples = 100

[calibration]
images = 8
batch = 4

[fit.few]
optimizer = "adam"
lr = 0.001
steps = 3

[[grid]]
name = "first"
track = "allocation"
models = ["micro_resnet8"]
rates = [0.5, "2:4"]
allocators = ["uniform", "erk"]
"#;

    /// What a folder of pictures holds is part of each cell; of the built-in images nothing is said.
    #[test]
    fn cells_name_their_data() {
        let text = SMALL.replace("\"micro\"", "\"files\"").replace(
            "allocators = [\"uniform\", \"erk\"]",
            "allocators = [\"uniform\"]\ngranularity = [\"layer\"]\nseeds = [1, 5]",
        );
        let mut lists = Vec::new();
        for planned in parse(&text).unwrap().expand(&Fake).unwrap() {
            assert_eq!(planned.cell.task.data, Some("cd".repeat(32)));
            let recipe = "as micro_resnet8 likes it";
            assert_eq!(planned.cell.task.recipe.as_deref(), Some(recipe));
            let settings = planned.cell.sparsity.and_then(|s| s.reconstruction);
            lists.extend(settings.and_then(|settings| settings.calibration.list));
        }
        let [a, b] = [8 + 1, 8 + 5].map(|sum| format!("{sum:064x}"));
        assert_eq!(lists, [&a, &b, &a, &b].map(String::clone));
        for planned in parse(SMALL).unwrap().expand(&Fake).unwrap() {
            assert_eq!(
                (planned.cell.task.data, planned.cell.task.recipe),
                (None, None)
            );
        }
    }

    fn parse(text: &str) -> Result<Plan, PlanError> {
        Plan::parse(text, "small.toml", &[])
    }

    fn error(text: &str) -> String {
        parse(text)
            .and_then(|plan| plan.expand(&Fake).map(|_| ()))
            .unwrap_err()
            .to_string()
    }

    fn set(set: &str) -> Result<Plan, String> {
        Plan::parse(SMALL, "small.toml", &[set.to_string()]).map_err(|error| error.to_string())
    }

    fn labels(plan: &Plan) -> Vec<String> {
        let cells = plan.expand(&Fake).unwrap();
        cells
            .iter()
            .map(|planned| planned.cell.to_string())
            .collect()
    }

    #[test]
    fn a_grid_is_a_product_with_its_dense_reference() {
        assert_eq!(
            labels(&parse(SMALL).unwrap()),
            [
                "micro_resnet8 dense",
                "micro_resnet8 uniform 0.5",
                "micro_resnet8 erk 0.5",
                "micro_resnet8 2:4",
            ]
        );
    }

    #[test]
    fn the_micro_preset_has_the_tables_cells_once() {
        let plan = Plan::load("micro", &[]).unwrap();
        let cells = plan.expand(&Fake).unwrap();
        let reconstructed = cells.iter().filter(|planned| {
            let sparsity = planned.cell.sparsity.as_ref();
            sparsity.is_some_and(|s| s.reconstruction.is_some())
        });
        // Five distinct configurations of Table 4's seven rows, two rates, two seeds.
        assert_eq!(reconstructed.count(), 5 * 2 * 2);
        // Three networks: dense, and three allocators at five rates.
        assert_eq!(cells.len(), 3 + 3 * 3 * 5 + 20);
        // (layer, sparse, corrected) stands in all three comparisons.
        let shared = cells.iter().filter(|planned| {
            let of_track_2 = |m: &&Member| m.track == Track::Reconstruction;
            planned
                .cell
                .to_string()
                .contains("layer sparse-input corrected")
                && planned.grids.iter().filter(of_track_2).count() == 3
        });
        assert_eq!(shared.count(), 4);
        assert!(
            cells
                .iter()
                .all(|planned| planned.key == planned.cell.key())
        );
    }

    #[test]
    fn the_smoke_preset_has_three_cells() {
        assert_eq!(
            labels(&Plan::load("smoke", &[]).unwrap()),
            [
                "micro_resnet8 dense",
                "micro_resnet8 uniform 0.7",
                "micro_resnet8 uniform 0.7 layer sparse-input corrected seed 0",
            ]
        );
    }

    #[test]
    fn seeds_multiply_reconstructed_cells_only() {
        let free = SMALL.to_string() + "seeds = [0, 1, 2]\n";
        assert_eq!(labels(&parse(&free).unwrap()).len(), 4);
        let fitted = free + "granularity = [\"block\"]\n";
        assert_eq!(labels(&parse(&fitted).unwrap()).len(), 4 + 3 * 3);
    }

    #[test]
    fn a_misspelt_key_has_its_place_and_the_key_meant() {
        for (right, wrong, place) in [
            (
                "samples",
                "smaples",
                "small.toml:6:1: unknown key `smaples`, did you mean `samples`?",
            ),
            (
                "title",
                "titel",
                "small.toml:2:1: unknown key `titel`, did you mean `title`?",
            ),
            (
                "rates",
                "rate",
                "small.toml:21:1: unknown key `rate`, did you mean `rates`?",
            ),
            (
                "batch",
                "bacth",
                "small.toml:10:1: unknown key `bacth`, did you mean `batch`?",
            ),
            (
                "steps",
                "step",
                "small.toml:15:1: unknown key `step`, did you mean `steps`?",
            ),
            (
                "[task]",
                "[tasks]",
                "small.toml:4:2: unknown key `tasks`, did you mean `task`?",
            ),
            (
                "\"adam\"",
                "\"adm\"",
                "small.toml:13:13: unknown value `adm`, did you mean `adam`?",
            ),
        ] {
            let message = error(&SMALL.replacen(right, wrong, 1));
            assert!(message.starts_with(place), "{wrong}: {message}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_remedy() {
        let with = |right: &str, wrong: &str| error(&SMALL.replacen(right, wrong, 1));
        for (message, says) in [
            (with("0.5", "1.5"), "21:10: rate 1.5 is not between 0 and 1"),
            (with("0.5", "0"), "21:10: rate 0 is not between 0 and 1"),
            (with("0.5", "nan"), "rate NaN is not between 0 and 1"),
            (with("2:4", "4:2"), "4:2 is no pattern"),
            (with("0.5", "0.5, 0.5"), "twice"),
            (with("[0.5, \"2:4\"]", "[]"), "rates is empty"),
            (with("[\"micro_resnet8\"]", "[]"), "models is empty"),
            (
                with("[\"uniform\", \"erk\"]", "[]"),
                "rate 0.5 needs an allocator",
            ),
            (with("samples = 100", "samples = 0"), "task.samples is 0"),
            (
                with("samples = 100", "samples = 2001"),
                "the set of task `micro` holds 2000",
            ),
            (
                with("batch = 4", "batch = 9"),
                "batch must lie between 1 and images",
            ),
            (with("steps = 3", "steps = 0"), "[fit.few] steps = 0"),
            (with("lr = 0.001", "lr = -1"), "[fit.few] lr = -1"),
            (with("\"small\"", "\"a/b\""), "becomes part of file names"),
            (
                with("micro_resnet8", "resnot"),
                "[[grid]] `first`: no model `resnot`",
            ),
            (with("\"micro\"", "\"macro\""), "[task]: no task `macro`"),
            (
                error(&(SMALL.to_string() + "inputs = [\"dense\"]\n")),
                "needs granularity",
            ),
            (
                error(&(SMALL.to_string() + "granularity = [\"layer\"]\nfit = \"fwe\"\n")),
                "did you mean `few`?",
            ),
            (
                error(&(SMALL.to_string() + "granularity = [\"layer\"]\nseeds = []\n")),
                "seeds is empty",
            ),
            (
                error(&(SMALL.to_string() + "dense = true\n")),
                "dense = true",
            ),
            (error("name = "), "small.toml:1:"),
        ] {
            assert!(message.contains(says), "expected {says}: {message}");
        }
        let (head, grid) = SMALL.split_at(SMALL.find("[[grid]]").unwrap());
        assert!(error(head).contains("no [[grid]]"));
        let twice = format!("{SMALL}\n{grid}");
        assert!(error(&twice).contains("two [[grid]] are named `first`"));
        let renamed = format!("{SMALL}\n{}", grid.replace("first", "second"));
        assert!(error(&renamed).contains("[[grid]] `second` repeats `first`"));
    }

    #[test]
    fn one_value_can_be_overridden() {
        assert_eq!(set("task.samples=7").unwrap().task.samples, 7);
        assert_eq!(
            set("title=Plain words, no quotes").unwrap().title,
            "Plain words, no quotes"
        );
        assert_eq!(set("fit.few.lr = 0.5").unwrap().fit["few"].lr, 0.5);
        let rates = Some(vec![Amount(Pattern::Unstructured { rate: 0.9 })]);
        assert_eq!(set("grid.0.rates=[0.9]").unwrap().grid[0].rates, rates);
        assert_eq!(set("grid.first.rates=[0.9]").unwrap().grid[0].rates, rates);
    }

    #[test]
    fn an_override_that_fits_nothing_is_refused_with_the_nearest() {
        for (given, says) in [
            (
                "task.smaples=7",
                "unknown key `smaples`, did you mean `samples`?",
            ),
            ("taks.samples=7", "unknown key `taks`, did you mean `task`?"),
            ("fit.fwe.steps=7", "no [fit.fwe], did you mean `few`?"),
            ("grid.1.rates=[0.5]", "`grid` has no entry `1`"),
            ("grid.fisrt.rates=[0.5]", "did you mean `first`?"),
            (
                "grid.rates=[0.5]",
                "name one of its 1 entries, such as grid.0.rates",
            ),
            ("grid.0.rates=[0.5", "is not a TOML value"),
            ("grid.0.rates=[1.5]", "rate 1.5 is not between 0 and 1"),
            ("title.x=1", "`title` is a string"),
            ("task.samples", "expected KEY=VALUE"),
            ("task..samples=1", "empty part"),
            ("task.samples=many", "invalid type"),
        ] {
            let message = set(given).unwrap_err();
            assert!(
                message.starts_with(&format!("--set {given}: ")),
                "{message}"
            );
            assert!(message.contains(says), "expected {says}: {message}");
        }
    }

    #[test]
    fn an_unknown_plan_names_the_presets() {
        let message = Plan::load("mirco", &[]).unwrap_err().to_string();
        assert!(
            message.contains("micro, smoke, did you mean `micro`?"),
            "{message}"
        );
        let message = Plan::load(".", &[]).unwrap_err().to_string();
        assert!(message.starts_with("cannot read the plan"), "{message}");
    }

    #[test]
    fn footnotes_follow_overrides() {
        let lines = set("fit.few.steps=9").unwrap().footnotes().join("\n");
        assert!(
            lines.contains("Fit `few`: Adam, 9 steps per unit"),
            "{lines}"
        );
    }

    proptest! {
        #[test]
        fn expansion_repeats_itself_and_lists_each_cell_once(
            rates in prop::collection::btree_set(1u32..100, 1..5),
            seeds in prop::collection::btree_set(0u64..9, 1..4),
            grains in prop::sample::subsequence(vec!["single", "layer", "block"], 0..=3),
            allocators in prop::sample::subsequence(vec!["uniform", "l2norm", "erk"], 1..=3),
        ) {
            let rates: Vec<String> = rates.iter().map(|r| format!("{}", f64::from(*r) / 100.0)).collect();
            let seeds: Vec<u64> = seeds.into_iter().collect();
            let (head, _) = SMALL.split_at(SMALL.find("[[grid]]").unwrap());
            let grid = |name: &str, glob: &str| format!(
                "[[grid]]\nname = \"{name}\"\ntrack = \"size\"\nmodels = [\"{glob}\"]\nrates = [{}]\n\
                 allocators = {allocators:?}\ngranularity = {grains:?}\nseeds = {seeds:?}\n",
                rates.join(", ")
            );
            let text = format!("{head}{}{}", grid("all", "micro_*"), grid("one", "micro_resnet14"));
            let cells = parse(&text).unwrap().expand(&Fake).unwrap();
            prop_assert_eq!(&cells, &parse(&text).unwrap().expand(&Fake).unwrap());

            let distinct: std::collections::HashSet<&Key> = cells.iter().map(|planned| &planned.key).collect();
            prop_assert_eq!(distinct.len(), cells.len());
            let per_model = 1 + rates.len() * allocators.len() * (1 + grains.len() * seeds.len());
            prop_assert_eq!(cells.len(), 3 * per_model);
            let shared = cells.iter().filter(|planned| planned.grids.len() == 2).count();
            prop_assert_eq!(shared, per_model);
        }
    }
}

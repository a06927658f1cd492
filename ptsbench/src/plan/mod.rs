//! A plan: the TOML file that says what to measure, and its expansion into cells.
//!
//! A plan lists grids; a grid is a cross product of axes. Expansion is pure and ordered: the same plan and the same
//! registry give the same cells in the same order. What a plan cannot know (digests, versions, sizes of sets) it asks
//! of a [`Registry`]. No cell is computed here.

mod check;
mod expand;
#[cfg(test)]
pub(crate) mod tests;
mod text;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use indexmap::IndexMap;
use model_zoo::file::{self, Unread};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use self::text::{apply, explain, located, suggestion};
use crate::cell::{BatchNorm, Cell, CorrectionCell, Fit, Inputs, Key, Part, Pattern, Rule};
use crate::options::Chosen;
use model_zoo::Grain;

/// The plans that come with the program: name and text.
pub const PRESETS: &[(&str, &str)] = &[
    ("micro", include_str!("../../presets/micro.toml")),
    ("smoke", include_str!("../../presets/smoke.toml")),
    ("correction", include_str!("../../presets/correction.toml")),
    ("unet_parts", include_str!("../../presets/unet_parts.toml")),
    ("methods", include_str!("../../presets/methods.toml")),
];

/// Bytes of a plan at most.
const LIMIT: u64 = 4 << 20;

/// What a plan asks of the rest of the program.
pub trait Registry {
    /// SHA-256, in hex, of the model's weight file.
    fn weights(&self, model: &str) -> Lookup<String>;
    /// The catalog's names that match a name or glob, in the catalog's order; an error where there is none. A glob means
    /// networks of the kind that the task judges.
    fn models_matching(&self, glob: &str, task: &str) -> Lookup<Vec<String>>;
    /// Refuses an N:M pattern that fits no layer of a model.
    fn fits(&self, model: &str, pattern: Pattern) -> Lookup<()>;
    /// Refuses names and patterns of layers that none of a model's is called by.
    fn layers_named(&self, model: &str, patterns: &[String]) -> Lookup<()>;
    /// What there is to know of a task.
    fn task(&self, name: &str) -> Lookup<TaskFacts>;
    /// How pictures of a task become inputs of a model; none where they have one form for all.
    fn recipe(&self, task: &str, model: &str) -> Lookup<Option<String>>;
    /// SHA-256 of a seed's calibration images; none where the task's version identifies them.
    fn calibration(&self, task: &str, images: usize, seed: u64) -> Lookup<Option<String>>;
    /// An allocator as a cell names it.
    fn allocator(&self, chosen: &Chosen) -> Lookup<PartFacts>;
    /// A criterion, solver or whole method as a cell names it.
    fn criterion(&self, chosen: &Chosen) -> Lookup<PartFacts>;
    /// A repair as a cell names it.
    fn repair(&self, chosen: &Chosen) -> Lookup<PartFacts>;
    /// Measurement version of reconstruction.
    fn reconstruction_version(&self) -> u32;
}

/// What a plan asks of an algorithm.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartFacts {
    /// Its name, version, and options that differ from the defaults.
    pub part: Part,
    /// Whether it looks at calibration images.
    pub images: bool,
    /// Whether it moves the weights that stay.
    pub moves: bool,
    /// Whether it is a whole method, which learns the rates of all layers.
    pub whole: bool,
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
    /// How that list was told from the training images, where the data set does not say.
    pub split: Option<String>,
}

/// A registry's answer; its error names what was asked for and the nearest thing that exists.
pub type Lookup<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Neither a file nor a preset.
    #[error("no plan file or preset is called `{name}`{hint} (presets: {presets})")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The presets, comma-separated.
        presets: String,
        /// The nearest preset, as a question, or nothing.
        hint: String,
    },
    /// The file exists and cannot be read.
    #[error("the plan {file} {reason}; check the path and that it is a UTF-8 text file")]
    Read {
        /// The file.
        file: String,
        /// Why not.
        reason: Unread,
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
    #[serde(default, deserialize_with = "filled::rates")]
    pub rates: Vec<Amount>,
    /// Seeds of every reconstruction grid that lists none itself; `[0]` where this is absent too.
    #[serde(default, deserialize_with = "filled::seeds")]
    pub seeds: Vec<u64>,
    /// What is done with batch norms in every grid that does not say; kept where this is empty too.
    #[serde(default)]
    pub batch_norm: Vec<BatchNorm>,
    /// Arithmetic of the products; f32 unless it says otherwise.
    #[serde(default, deserialize_with = "crate::cell::precision_name::deserialize")]
    pub precision: kernels::Precision,
    /// Whether the grids marked `full` count too, as `--full` says.
    #[serde(default)]
    pub full: bool,
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
    /// What they are judged by; the plan's where absent.
    pub task: Option<TaskPlan>,
    /// What guides their reconstruction; the plan's where absent.
    pub calibration: Option<CalibrationPlan>,
    /// Rates and patterns; the plan's where absent.
    pub rates: Option<Vec<Amount>>,
    /// Allocators; patterns that decide the rate themselves need none.
    #[serde(default, deserialize_with = "filled::allocators")]
    pub allocators: Vec<Chosen>,
    /// Which weights go inside a layer, and what becomes of the others.
    #[serde(default = "magnitude")]
    pub criterion: Chosen,
    /// What repairs the network last: names, and "none"; `["none"]` where absent.
    pub repair: Option<Vec<Chosen>>,
    /// Counting and tie rule.
    #[serde(default)]
    pub rule: Rule,
    /// Whether batch norms are kept or folded; the plan's where absent.
    pub batch_norm: Option<Vec<BatchNorm>>,
    /// Grains of reconstruction; a grid without this axis does not reconstruct.
    #[serde(default, deserialize_with = "filled::granularity")]
    pub granularity: Vec<Grain>,
    /// Where units' inputs come from; `["sparse"]` where absent.
    pub inputs: Option<Vec<Inputs>>,
    /// Whether Eq. 1 corrects first, and how; `[true]` where absent.
    pub correction: Option<Vec<CorrectionCell>>,
    /// Name of the fit preset; may be left out where the plan has one only.
    pub fit: Option<String>,
    /// Seeds of the calibration draw; the plan's where absent.
    pub seeds: Option<Vec<u64>>,
    /// The dense networks alone: no rates, no allocators. Other grids bring their dense references with them.
    #[serde(default)]
    pub dense: bool,
    /// Left out unless the whole plan is asked for.
    #[serde(default)]
    pub full: bool,
}

/// Lists that may be absent and must not be empty: an empty one would drop cells, or be taken for an absent one.
mod filled {
    use serde::{Deserialize, Deserializer, de};

    fn list<'de, D, T>(axis: &str, from: D) -> Result<Vec<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de>,
    {
        let list = Vec::deserialize(from)?;
        if list.is_empty() {
            return Err(de::Error::custom(super::empty(axis)));
        }
        Ok(list)
    }

    macro_rules! axes {
        ($($axis:ident),*) => { $(
            pub fn $axis<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
            where
                D: Deserializer<'de>,
                T: Deserialize<'de>,
            {
                list(stringify!($axis), from)
            }
        )* };
    }

    axes!(rates, seeds, allocators, granularity);
}

fn empty(axis: &str) -> String {
    format!("{axis} is empty; list at least one, or remove it")
}

fn magnitude() -> Chosen {
    Chosen::plain("magnitude")
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

/// A line under tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footnote {
    /// The task under whose tables it stands; all tables' where there is none.
    pub task: Option<String>,
    /// The line.
    pub text: String,
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

impl Grid {
    /// What Eq. 1 does.
    fn corrections(&self) -> Vec<CorrectionCell> {
        let plain = || vec![CorrectionCell::plain(true)];
        self.correction.clone().unwrap_or_else(plain)
    }
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
                hint: suggestion(name, &presets),
            });
        }
        let unread = |reason| PlanError::Read {
            file: name.into(),
            reason,
        };
        let bytes = file::read(path, LIMIT).map_err(unread)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| unread(io::Error::new(io::ErrorKind::InvalidData, "not UTF-8").into()))?;
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

    /// The lines under tables: the plan's note and the settings that stand in for the paper's, as overridden. What is of one
    /// task stands under its tables alone.
    pub fn footnotes(&self, registry: &dyn Registry) -> Vec<Footnote> {
        let mut lines = Vec::new();
        let mut say = |task: Option<&str>, text: String| {
            let line = Footnote {
                task: task.map(str::to_owned),
                text,
            };
            if !lines.contains(&line) {
                lines.push(line);
            }
        };
        if !self.note.is_empty() {
            say(None, self.note.clone());
        }
        // The plan's own first, and what single grids have instead.
        let tasks = std::iter::once(&self.task).chain(self.grids().map(|grid| self.task(grid)));
        for task in tasks {
            let text = format!("Task {}: {} samples.", task.name, task.samples);
            say(Some(&task.name), text);
        }
        for grid in self.grids() {
            let Some(calibration) = self.calibration(grid) else {
                continue;
            };
            if !self.looks_at_images(grid, registry) {
                continue;
            }
            let name = &self.task(grid).name;
            let text = format!(
                "Calibration: {} images of {name} in batches of {}.",
                calibration.images, calibration.batch
            );
            say(Some(name), text);
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
            let text = format!(
                "Fit `{name}`: {optimizer}, {} steps per unit, learning rate {} (biases {}){stop}.",
                fit.steps, fit.lr, fit.bias_lr
            );
            say(None, text);
        }
        lines
    }

    fn invalid(&self, message: String) -> PlanError {
        PlanError::Invalid {
            file: self.source.clone(),
            message,
        }
    }

    fn task<'a>(&'a self, grid: &'a Grid) -> &'a TaskPlan {
        grid.task.as_ref().unwrap_or(&self.task)
    }

    fn calibration<'a>(&'a self, grid: &'a Grid) -> Option<&'a CalibrationPlan> {
        grid.calibration.as_ref().or(self.calibration.as_ref())
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

    fn batch_norm<'a>(&'a self, grid: &'a Grid) -> &'a [BatchNorm] {
        match &grid.batch_norm {
            Some(axis) => axis,
            None if self.batch_norm.is_empty() => &[BatchNorm::Kept],
            None => &self.batch_norm,
        }
    }

    fn fit(&self, grid: &Grid) -> Result<Fit, String> {
        let preset = match &grid.fit {
            Some(name) => self.fit.get(name).ok_or_else(|| {
                let known: Vec<&str> = self.fit.keys().map(String::as_str).collect();
                format!(
                    "this plan has no [fit.{name}]{} (add it, or name another with fit)",
                    suggestion(name, &known)
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
}

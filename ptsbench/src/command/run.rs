//! `ptsbench run`: compute the cells of a plan that have no record yet.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use indexmap::IndexMap;
use kernels::Precision;
use kernels::plan::KernelPolicy;

use super::tell_broken;
use crate::cell::Pattern;
use crate::device::{self, Choice, DeviceError};
use crate::interrupt;
use crate::memory::Memory;
use crate::note;
use crate::pipeline::{Bench, MeasureError};
use crate::plan::{Plan, Planned};
use crate::progress::{Estimator, Mode, Progress};
use crate::reconstruct::FitError;
use crate::record::Record;
use crate::registry::Zoo;
use crate::store::{Attempt, Held, State, Store, StoreError};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A plan's file, or the name of a preset
    pub plan: String,
    /// Override one value of the plan, such as task.samples=200 or grid.0.rates=[0.5]
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The whole plan, with the grids that it marks `full`
    #[arg(long)]
    pub full: bool,
    /// Folder of the records
    #[arg(long, value_name = "DIR", default_value = "out/records")]
    pub store: PathBuf,
    /// The device to compute on
    #[arg(long, value_enum, default_value_t)]
    pub device: Choice,
    /// Arithmetic of matrix products on the CPU: f32, or bf16x3 or bf16 where the processor has AMX (plan key `precision`)
    #[arg(long, value_name = "NAME")]
    pub precision: Option<Precision>,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Try failed cells again
    #[arg(long)]
    pub retry_failed: bool,
    /// Where weights come from
    #[command(flatten)]
    pub weights: Weights,
}

/// Where weights and images come from.
#[derive(Debug, Clone, clap::Args)]
pub struct Weights {
    /// A model's weight file; may be repeated
    #[arg(long = "weights", value_name = "MODEL=FILE", value_parser = model_file)]
    pub files: Vec<(String, PathBuf)>,
    /// Folder of the built-in networks
    #[arg(long, value_name = "DIR", default_value = "assets")]
    pub assets: PathBuf,
    /// How pictures become a model's inputs: timm's config.json, transformers' preprocessor_config.json, or
    /// a TOML file (docs/weights.md) [default: the first of those beside the file of --weights, else the catalog's]
    #[arg(long = "recipe", value_name = "MODEL=FILE", value_parser = model_file)]
    pub recipes: Vec<(String, PathBuf)>,
    /// The folder of a task's images, such as imagenet=DIR; may be repeated
    #[arg(long = "data-dir", value_name = "TASK=DIR", value_parser = task_folder)]
    pub data_dirs: Vec<(String, PathBuf)>,
}

impl Weights {
    /// The registry that looks there.
    pub fn registry(&self) -> anyhow::Result<Zoo> {
        let files: HashMap<_, _> = self.files.iter().cloned().collect();
        let recipes = self.recipes.iter().cloned().collect();
        let folders = self.data_dirs.iter().cloned().collect();
        Zoo::new(&self.assets, files)?
            .with_recipes(recipes)?
            .with_data(folders)
    }
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("give a whole number, at least 1".to_owned()),
    }
}

fn model_file(text: &str) -> Result<(String, PathBuf), String> {
    named_path(text)
        .ok_or_else(|| "give MODEL=FILE, e.g. resnet50=weights/resnet50.safetensors".to_owned())
}

/// A task and the folder of its images.
pub(super) fn task_folder(text: &str) -> Result<(String, PathBuf), String> {
    named_path(text).ok_or_else(|| "give TASK=DIR, e.g. imagenet=/data/imagenet".to_owned())
}

fn named_path(text: &str) -> Option<(String, PathBuf)> {
    let (name, path) = text.split_once('=')?;
    (!name.is_empty() && !path.is_empty()).then(|| (name.to_owned(), PathBuf::from(path)))
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .context("--threads comes too late: a pool of threads is running already")?;
    }
    let registry = args.weights.registry()?;
    let mut plan = Plan::load(&args.plan, &args.set)?;
    plan.full |= args.full;
    plan.precision = args.precision.unwrap_or(plan.precision);
    plan.precision.check()?;
    // Kernels read their instruction set from this variable themselves; what it says of paths is followed here.
    let policy = KernelPolicy::from_env()?;
    let memory = Memory::from_env()?;
    let cells = plan.expand(&registry)?;
    let store = Store::open(&args.store)?;
    let chosen = device::choose(args.device)?;
    if plan.precision != Precision::F32 && chosen.name != "flex" {
        bail!(
            "precision {} works on the CPU only, and the device is {}; add --device flex, or leave the precision at f32",
            plan.precision,
            chosen.name
        );
    }
    interrupt::install("finished cells and units are kept").context("cannot listen for Ctrl-C")?;

    // Reads every record, so that broken ones show before anything is computed.
    let contents = store.read()?;
    tell_broken(&contents, |_| true);
    let mut estimator = Estimator::default();
    for record in &contents.records {
        estimator.learn(record);
    }

    let mut rest = Rest::default();
    let (mut done, mut open, mut elsewhere) = (0, Vec::new(), Vec::new());
    for planned in &cells {
        match store.state(&planned.key) {
            State::Done => done += 1,
            State::Failed(_) if !args.retry_failed => rest.failed += 1,
            State::Broken(why) => {
                if contents.broken.iter().all(|(key, _)| *key != planned.key) {
                    note!("{why}");
                }
                rest.broken += 1;
            }
            State::Claimed(_) => elsewhere.push(planned),
            State::Failed(_) | State::Open => open.push(planned),
        }
    }
    let also = [
        (elsewhere.len(), "held by other processes"),
        (
            rest.failed,
            "failed before (--retry-failed tries them again)",
        ),
        (rest.broken, "broken (named above)"),
    ];
    let also = also.iter().filter(|(count, _)| *count > 0);
    note!(
        "{}: {} cells, {done} done, {} to compute{}",
        plan.name,
        cells.len(),
        open.len(),
        also.map(|(count, what)| format!(", {count} {what}"))
            .collect::<String>()
    );
    if open.is_empty() && elsewhere.is_empty() {
        return Ok(rest.outcome());
    }
    note!("{chosen}");
    for left in left_dense(&open, &registry)? {
        note!("{left}");
    }

    let weight = open
        .iter()
        .map(|planned| estimator.weight(&planned.cell))
        .sum();
    let progress =
        Progress::new(open.len() + elsewhere.len(), Mode::Auto).with_total_weight(weight);
    let bench = Bench {
        chosen: &chosen,
        progress: &progress,
        sets: registry.sets(),
        policy,
        memory,
    };
    // What others hold comes last: by then they may be done with it, or gone.
    open.extend(elsewhere);
    while !open.is_empty() {
        let asked = open.len();
        let (mut left, mut doubtful) = (Vec::new(), false);
        for planned in open {
            let start = || {
                let weight = estimator.weight(&planned.cell);
                progress.cell_started(&planned.cell.to_string(), weight);
            };
            match compute(&bench, &store, &registry, planned, start)? {
                Outcome::Done(summary) => progress.cell_finished(&summary),
                Outcome::Failed(error) => {
                    rest.failed += 1;
                    progress.cell_finished(&format!("failed: {error}"));
                }
                Outcome::Broken(error) => {
                    rest.broken += 1;
                    progress.cell_finished(&format!("not recorded: {error}"));
                }
                Outcome::Held(held) => {
                    doubtful |= held.doubtful;
                    left.push((planned, held.by));
                }
                Outcome::Interrupted => return interrupted(&progress, &store, &cells),
            }
        }
        if left.len() == asked {
            if !doubtful {
                rest.held = left.into_iter().map(|(_, by)| by.to_string()).collect();
                break;
            }
            // A minute at most, after which every owner is known to live or to be gone.
            std::thread::sleep(WATCHING);
            if interrupt::requested() {
                return interrupted(&progress, &store, &cells);
            }
        }
        open = left.into_iter().map(|(planned, _)| planned).collect();
    }
    match kernels::precision_fallbacks() {
        0 => {}
        n => progress.note(&format!(
            "{n} products had shapes that do not suit the tiles and were computed in f32"
        )),
    }
    match kernels::gpu_fallbacks() {
        0 => {}
        n => progress.note(&format!(
            "{n} products on the GPU were not in f32, the only type with kernels of its own here; Burn's operations computed them"
        )),
    }
    Ok(rest.outcome())
}

/// The exit code where nothing but cells that other processes hold is missing: what schedulers know as "try again later".
pub const HELD: u8 = 75;

/// Time between two looks at a claim whose owner may or may not be alive.
const WATCHING: Duration = Duration::from_secs(1);

enum Outcome {
    Done(String),
    Failed(String),
    /// A file of the cell is in the way.
    Broken(String),
    /// Another process works on it.
    Held(Held),
    Interrupted,
}

/// The cells of a plan that have no record in the end.
#[derive(Debug, Default)]
struct Rest {
    failed: usize,
    broken: usize,
    /// The owner of each.
    held: Vec<String>,
}

impl Rest {
    /// What to do about each kind.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.failed > 0 {
            lines.push(format!(
                "{} cells failed; `ptsbench plan` shows which and why",
                self.failed
            ));
        }
        if self.broken > 0 {
            lines.push(format!(
                "{} cells have a broken file in the store, which was left as it is; each is named above with what to do",
                self.broken
            ));
        }
        if !self.held.is_empty() {
            let mut owners: BTreeMap<&str, usize> = BTreeMap::new();
            for owner in &self.held {
                *owners.entry(owner).or_default() += 1;
            }
            let owners: Vec<String> = owners
                .iter()
                .map(|(owner, cells)| format!("{owner} ({cells})"))
                .collect();
            lines.push(format!(
                "{} cells have no record yet and are held by {}; run the same command again when they are done, \
                 it computes what they leave",
                self.held.len(),
                owners.join(", ")
            ));
        }
        lines
    }

    fn code(&self) -> u8 {
        if self.failed + self.broken > 0 {
            1
        } else if !self.held.is_empty() {
            HELD
        } else {
            0
        }
    }

    fn outcome(&self) -> ExitCode {
        for line in self.lines() {
            note!("{line}");
        }
        ExitCode::from(self.code())
    }
}

fn interrupted(progress: &Progress, store: &Store, cells: &[Planned]) -> anyhow::Result<ExitCode> {
    let done = |planned: &&Planned| store.state(&planned.key) == State::Done;
    let left = cells.len() - cells.iter().filter(done).count();
    progress.note(&format!(
        "interrupted; {left} cells are left. The same command goes on where this one stopped"
    ));
    Ok(ExitCode::from(interrupt::EXIT_CODE))
}

/// Computes one cell unless somebody else has done or is doing it; `start` is told once it is known that nobody is.
fn compute(
    bench: &Bench<'_>,
    store: &Store,
    registry: &Zoo,
    planned: &Planned,
    start: impl Fn(),
) -> anyhow::Result<Outcome> {
    let claim = match store.claim(&planned.key) {
        Ok(Attempt::Claimed(claim)) => claim,
        Ok(Attempt::Held(held)) => return Ok(Outcome::Held(held)),
        Ok(Attempt::Done) => {
            start();
            return Ok(match store.get(&planned.key) {
                Ok(_) => Outcome::Done("done by another process".into()),
                Err(error) => cost(error)?,
            });
        }
        Err(error) => {
            start();
            return Ok(cost(error)?);
        }
    };
    start();
    let file = registry
        .file(&planned.cell.model)
        .map_err(|error| anyhow::anyhow!(error))?;
    let work = match store.work_dir(&planned.key) {
        Ok(work) => work,
        Err(error) => return Ok(cost(error)?),
    };
    let measured = bench
        .chosen
        .guard(|| bench.measure(&planned.cell, &file, &work));
    let measured = match measured {
        Ok(measured) => measured,
        // The cell is too large for the device; others may not be.
        Err(error @ DeviceError::OutOfMemory { .. }) => {
            let text = error.to_string();
            store.fail(&planned.key, &planned.cell, &text)?;
            return Ok(Outcome::Failed(text));
        }
        Err(error) => return Err(error.into()),
    };
    let outcome = match measured {
        Ok(record) => match store.put(&record) {
            Ok(()) => {
                let timing = &record.timing;
                let seconds = timing.prepare_s + timing.reconstruct_s + timing.evaluate_s;
                Outcome::Done(format!(
                    "{}, {}{seconds:.1} s",
                    record.score,
                    zeros_of(&record)
                ))
            }
            Err(error) => cost(error)?,
        },
        Err(MeasureError::Interrupted(_)) => Outcome::Interrupted,
        // A full or failing disk has nothing to do with the cell.
        Err(MeasureError::Fit(error @ (FitError::Checkpoint(_) | FitError::Spill { .. }))) => {
            return Err(error.into());
        }
        Err(error) => {
            let text = error.to_string();
            store.fail(&planned.key, &planned.cell, &text)?;
            Outcome::Failed(text)
        }
    };
    drop(claim);
    Ok(outcome)
}

/// What N:M patterns leave dense, once for each network and pattern.
fn left_dense(open: &[&Planned], registry: &Zoo) -> anyhow::Result<Vec<String>> {
    let mut told: IndexMap<(&str, String), String> = IndexMap::new();
    for planned in open {
        let (model, sparsity) = (&planned.cell.model, &planned.cell.sparsity);
        let Some(pattern) = sparsity.as_ref().map(|sparsity| sparsity.pattern) else {
            continue;
        };
        let key = (model.as_str(), pattern.to_string());
        if matches!(pattern, Pattern::Unstructured { .. }) || told.contains_key(&key) {
            continue;
        }
        let left = registry.left_dense(model, pattern);
        let left = left.map_err(anyhow::Error::from_boxed)?;
        if !left.is_empty() {
            told.insert(key, format!("{model}: {left}"));
        }
    }
    Ok(told.into_values().collect())
}

/// The share of zeros that a pattern came to: a rate is in the cell's own name.
fn zeros_of(record: &Record) -> String {
    let pattern = record.cell.sparsity.as_ref().map(|s| s.pattern);
    match pattern {
        None | Some(Pattern::Unstructured { .. }) => String::new(),
        Some(_) => {
            let share = record.cost.zeros as f64 / record.cost.weights.max(1) as f64;
            format!("{:.1} % zeros, ", 100.0 * share)
        }
    }
}

/// The outcome of a cell whose file in the store is in the way; other errors are the store's.
fn cost(error: StoreError) -> Result<Outcome, StoreError> {
    match error {
        StoreError::NotFinite { .. } => Ok(Outcome::Failed(error.to_string())),
        error if error.costs_one_cell() => Ok(Outcome::Broken(error.to_string())),
        error => Err(error),
    }
}

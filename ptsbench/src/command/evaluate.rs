//! `ptsbench evaluate`: how well a network does its task as its file stands, dense or pruned, on the built-in images or a
//! data set on disk: accuracy, or the distance of generated images.
//!
//! A picture that cannot be read costs a line, not the run. It was not classified, so it counts against the accuracy, and
//! the exit code says that there were any.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use model_zoo::catalog::{Named, Spec, Visit};
use model_zoo::tap::Bare;
use model_zoo::weights::sha256;
use model_zoo::{Boxes, Modality, Of};
use serde::Serialize;
use serde_json::Value;

use super::target;
use crate::cell::BatchNorm;
use crate::device::{self, Choice, Chosen};
use crate::interrupt;
use crate::own;
use crate::pipeline::open_dense;
use crate::progress::counter::Counter;
use crate::registry::{NoWeights, Zoo, not_others};
use crate::task::journal::{Binding, Journal};
use crate::task::judged::{Judge, Judged, Stint, Tally, judge};
use crate::task::{self, OpenError, Set, TaskError};
use crate::{note, outln};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model's name in the catalog
    pub model: String,
    /// Its weight file [default: the built-in one]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// How pictures become inputs: timm's config.json, transformers' preprocessor_config.json, or a TOML file
    /// (docs/weights.md) [default: the first of those beside the file of --weights, else the catalog's]
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// What to judge it on: a task with built-in images, the folder of a data set (`ptsbench list datasets`), or a task's
    /// folder as TASK=DIR [default: the built-in images for networks of its kind, micro for classifiers]
    #[arg(long, value_name = "TASK|DIR")]
    pub data: Option<PathBuf>,
    /// Only N images: the first of the built-in ones, or of a folder's in a fixed random order
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub samples: Option<u64>,
    /// Images in a batch [default: 64 of 224 x 224, 250 of 32 x 32]; it changes no result
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub batch: Option<u64>,
    /// Keep progress in this file, and go on from it where it exists
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// The device to compute on
    #[arg(long, value_enum, default_value_t)]
    pub device: Choice,
    /// Folder of the built-in networks
    #[arg(long, value_name = "DIR", default_value = "assets")]
    pub assets: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The model's weight file: the user's, the built-in one, or what was fetched.
pub(super) fn weight_file(
    named: &Named,
    weights: Option<PathBuf>,
    assets: &Path,
) -> anyhow::Result<PathBuf> {
    if let Some(file) = weights {
        return Ok(file);
    }
    not_others(named)?;
    let spec = named.spec;
    let found = Zoo::new(assets, HashMap::new())?.file(spec.name);
    found.map_err(|error| match error.downcast_ref() {
        Some(NoWeights::NotGiven { model, source_name }) => anyhow::anyhow!(
            "the weights of `{model}` are not built in ({source_name}); give the file: --weights FILE (`ptsbench fetch {model}` gets it, or says where it is)"
        ),
        _ => anyhow::Error::from_boxed(error),
    })
}

/// The images that `--data` names: a task's own, a folder's, or those of a task in a folder.
fn open_set(data: &Path) -> anyhow::Result<Set> {
    let given = data.to_str();
    if let Some((kind, folder)) = given.and_then(|given| {
        let (name, folder) = given.split_once('=')?;
        Some((task::find(name).ok()?, folder))
    }) {
        return Ok(Set::open(Path::new(folder), Some(kind))?);
    }
    let kind = given.and_then(|name| task::find(name).ok());
    if let Some(kind) = kind
        && let Some(set) = Set::of_kind(kind)?
    {
        return Ok(set);
    }
    match kind {
        Some(kind) if !data.is_dir() => Err(OpenError::NoFolder {
            task: kind.name,
            hint: format!("--data {}=DIR", kind.name),
        }
        .into()),
        _ => Set::open(data, None).with_context(|| {
            let data = data.display();
            format!(
                "--data {data}: give a task with built-in images (`ptsbench list tasks`), or the folder of a data set (`ptsbench list datasets`)"
            )
        }),
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let named = own::named(&args.model)?;
    let spec = named.spec;
    let file = weight_file(&named, args.weights.clone(), &args.assets)?;
    if let Some(journal) = &args.resume {
        target::spare("--resume", journal, &[("weights", &file)])?;
    }
    let data = args.data.clone();
    let data = data.unwrap_or_else(|| task::built_in(spec).name.into());
    let set = Arc::new(open_set(&data)?);
    if let Some(asked) = args.samples {
        ensure!(
            asked <= set.available() as u64,
            "--samples is {asked}, and the set of task {} holds {}; ask for at most that many",
            set.label(),
            set.available()
        );
    }
    set.tell();
    let recipe = if set.generated().is_some() {
        anyhow::ensure!(
            args.recipe.is_none(),
            "--recipe does nothing here: it says how pictures become inputs, and a generator reads none; leave it out"
        );
        None
    } else if set.kind.one_form() {
        anyhow::ensure!(
            args.recipe.is_none(),
            "--recipe does nothing here: the built-in images come in one form only; leave it out, or give a folder with --data"
        );
        None
    } else {
        let own = own::recipe_file(spec, args.recipe.as_deref(), args.weights.as_deref())?;
        own::recipe_for(set.kind, spec, own.as_ref())?
    };
    let chosen = device::choose(args.device)?;
    interrupt::install(match args.resume {
        Some(_) => "progress is kept in the file of --resume",
        None => "nothing is kept (--resume FILE would keep progress)",
    })?;
    let evaluate = Evaluate {
        set,
        recipe,
        args: &args,
        file,
        chosen: &chosen,
    };
    let report = spec.open(&chosen.device, evaluate)?;
    let Some(report) = report else {
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
    };
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        outln!(
            "{}: {} of {} images of {} ({})",
            report.model,
            report.found,
            report.images,
            report.data,
            report.weights.display()
        )?;
    }
    let unreadable = report.unreadable.len();
    if unreadable == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    note!(
        "{unreadable} of {} images could not be read; {}",
        report.images,
        match report.judges == Boxes::DOES {
            true => "the objects on them count as not found",
            false => "they count as not classified",
        }
    );
    Ok(ExitCode::FAILURE)
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    model: &'static str,
    weights: PathBuf,
    /// Of the weight file.
    sha256: String,
    data: &'static str,
    /// What the networks do that the task judges.
    #[serde(skip)]
    judges: &'static str,
    /// Measurement version of the task.
    version: u32,
    /// Where its images lie; absent for the built-in ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    folder: Option<PathBuf>,
    /// SHA-256 of the list of all its images, or of all that generated ones are compared with; absent for the built-in ones
    /// that classifiers are judged by.
    #[serde(skip_serializing_if = "Option::is_none")]
    list: Option<String>,
    /// How those images were told from the training ones; absent where the data set says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<String>,
    /// How pictures become inputs; absent for the built-in images.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipe: Option<String>,
    /// Images of the set.
    available: usize,
    /// Images evaluated, unreadable ones included.
    images: usize,
    /// The counts and metrics, each under its own name.
    #[serde(flatten)]
    numbers: Value,
    /// The metrics in words.
    #[serde(skip)]
    found: String,
    /// A line for each image that could not be read.
    unreadable: Vec<String>,
    /// Images that this run evaluated itself, and its seconds.
    evaluated: usize,
    seconds: f64,
}

struct Evaluate<'a> {
    set: Arc<Set>,
    recipe: Option<String>,
    args: &'a Args,
    file: PathBuf,
    chosen: &'a Chosen,
}

impl<M: Judged> Visit<M> for Evaluate<'_> {
    /// Nothing where the user stopped it.
    type Out = anyhow::Result<Option<Report>>;

    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Self::Out {
        let (set, device) = (&self.set, &self.chosen.device);
        let kind = set.kind;
        let judge = judge::<M>(spec, Arc::clone(set), self.recipe.as_deref());
        let judge = judge.map_err(TaskError::from)?;
        let judge = judge.beside(spec, &self.file)?;
        let network = open_dense(network, &self.file, BatchNorm::Folded)?;
        judge.census(spec, &network, device)?;
        let asked = self.args.samples.map_or(usize::MAX, |n| n as usize);
        let samples = asked.min(judge.available());
        let sha256 = sha256(&self.file)?;
        let recipe = judge.recipe();
        let (mut journal, start) = match &self.args.resume {
            None => (None, <M::Judge as Judge<M>>::Tally::default()),
            Some(path) => {
                let of = Binding {
                    model: spec.name.to_owned(),
                    weights: sha256.clone(),
                    task: format!("{}, version {}", kind.name, kind.version),
                    data: set.sha256.clone().unwrap_or_default(),
                    recipe: recipe.clone().unwrap_or_default(),
                    samples,
                    device: self.chosen.name.to_owned(),
                };
                let (journal, start) = Journal::open(path, of)?;
                (Some(journal), start)
            }
        };
        let first = start.samples();
        let mut counter = Counter::new("images", first, samples);
        if first > 0 {
            counter.note(&format!(
                "{first} of {samples} images had been evaluated before"
            ));
        }
        let stint = Stint {
            samples,
            batch: self.args.batch.map_or(judge.batch(), |n| n as usize),
            start,
        };
        let started = Instant::now();
        let mut kept = stint.start.clone();
        let run = |input| network.run(input, &mut Bare::default());
        let tally = judge.tally(&run, stint, device, &mut |tally, unreadable| {
            for error in unreadable.drain(..) {
                counter.note(&error.to_string());
            }
            counter.at(tally.samples(), &format!("; {}", tally.brief()));
            kept.clone_from(tally);
            match &mut journal {
                Some(journal) => Ok(journal.keep(tally)?),
                None => Ok(()),
            }
        });
        // Stopped or done, what was counted is kept to the last batch.
        if let Some(journal) = &mut journal
            && matches!(tally, Ok(_) | Err(TaskError::Interrupted(_)))
        {
            journal.keep_now(&kept)?;
        }
        let tally = match tally {
            Ok(tally) => tally,
            Err(TaskError::Interrupted(_)) => {
                counter.note(&format!(
                    "interrupted after {} of {samples} images; {}",
                    kept.samples(),
                    match journal {
                        Some(_) => "the same command goes on from there",
                        None => "they are not kept (--resume FILE would keep them)",
                    }
                ));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Report {
            model: spec.name,
            weights: self.file,
            sha256,
            data: kind.name,
            judges: kind.judges,
            version: kind.version,
            folder: set.folder.clone(),
            list: set.sha256.clone(),
            split: set.split.clone(),
            recipe,
            available: judge.available(),
            images: tally.samples(),
            numbers: judge.numbers(&tally),
            found: judge.said(&tally),
            evaluated: tally.samples() - first,
            unreadable: tally.unreadable().to_vec(),
            seconds: started.elapsed().as_secs_f64(),
        }))
    }
}

//! `ptsbench report`: tables and one page, from records alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::cell::Pattern;
use model_zoo::catalog;

use crate::outln;
use crate::plan::{Lookup, Plan, Registry, TaskFacts};
use crate::record::Record;
use crate::registry::Zoo;
use crate::report::{self, ReportError, Words};
use crate::store::Store;
use crate::task;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which records
    #[command(flatten)]
    records: Selection,
    /// The folder to write `report.html` and `tables/` into
    #[arg(long, default_value = "out", value_name = "DIR")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (records, words) = args.records.read()?;
    for path in report::write_report(&records, &words, &args.out)? {
        outln!("{}", path.display())?;
    }
    Ok(())
}

/// The records that a report is made of.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// The folder of records
    #[arg(long, default_value = "out/records", value_name = "DIR")]
    store: PathBuf,
    /// Only the records of this plan, a file or the name of a preset [default: all records]
    #[arg(long, value_name = "PLAN")]
    plan: Option<String>,
    /// Override one value of the plan, as `run` was told to
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "plan")]
    set: Vec<String>,
}

impl Selection {
    /// Reads them, and the plan's words; needs neither weights nor data.
    pub fn read(&self) -> anyhow::Result<(Vec<Record>, Words)> {
        let mut records = Vec::new();
        for record in Store::view(&self.store)?.iter()? {
            records.push(record?);
        }
        if records.is_empty() {
            return Err(ReportError::Empty {
                store: self.store.clone(),
            }
            .into());
        }
        let Some(name) = &self.plan else {
            return Ok((records, Words::default()));
        };
        let plan = Plan::load(name, &self.set)?;
        let keys: BTreeSet<_> = plan
            .expand(&Recorded::new(&records)?)?
            .into_iter()
            .map(|planned| planned.key)
            .collect();
        let words = Words {
            plan: Some(name.clone()),
            notes: plan.footnotes(),
        };
        Ok((report::of_plan(records, name, &keys)?, words))
    }
}

/// Looks weight files up in records, so that a plan can be expanded where there are none.
struct Recorded {
    zoo: Zoo,
    digests: BTreeMap<String, BTreeSet<String>>,
    /// Recipes by task and model.
    recipes: BTreeMap<(String, String), BTreeSet<Option<String>>>,
    /// Task, images of its set, digest of their list.
    tasks: BTreeSet<(String, usize, Option<String>)>,
    /// Digests of calibration lists by task, number and seed.
    lists: BTreeMap<(String, usize, u64), BTreeSet<String>>,
}

impl Recorded {
    fn new(records: &[Record]) -> anyhow::Result<Self> {
        let mut digests: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut recipes: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        let mut tasks = BTreeSet::new();
        let mut lists: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for record in records {
            let task = &record.cell.task;
            recipes
                .entry((task.name.clone(), record.cell.model.clone()))
                .or_default()
                .insert(task.recipe.clone());
            let available = record.score.available as usize;
            tasks.insert((task.name.clone(), available, task.data.clone()));
            let sparsity = record.cell.sparsity.as_ref();
            if let Some(settings) = sparsity.and_then(|s| s.reconstruction.as_ref()) {
                let calibration = &settings.calibration;
                let drawn = (task.name.clone(), calibration.images, calibration.seed);
                lists
                    .entry(drawn)
                    .or_default()
                    .extend(calibration.list.clone());
            }
            let of_model = digests.entry(record.cell.model.clone()).or_default();
            of_model.insert(record.cell.weights.clone());
        }
        Ok(Self {
            zoo: Zoo::default(),
            digests,
            recipes,
            tasks,
            lists,
        })
    }
}

impl Registry for Recorded {
    fn weights(&self, model: &str) -> Lookup<String> {
        let mut found = self.digests.get(model).into_iter().flatten();
        match (found.next(), found.next()) {
            (Some(digest), None) => Ok(digest.clone()),
            // No record has this model: whatever its digest, none will match.
            (None, _) => Ok(String::new()),
            (Some(_), Some(_)) => Err(format!(
                "the store has records of `{model}` with two different weight files; keep them in two stores, or leave --plan out"
            )
            .into()),
        }
    }

    fn models_matching(&self, glob: &str) -> Lookup<Vec<String>> {
        // Records hold measurements: whose weights a name means is seen from their digests.
        let found = catalog::matching(glob)?;
        Ok(found.into_iter().map(|spec| spec.name.to_owned()).collect())
    }

    fn fits(&self, _: &str, _: Pattern) -> Lookup<()> {
        // What was measured did fit.
        Ok(())
    }

    fn task(&self, name: &str) -> Lookup<TaskFacts> {
        let kind = task::find(name)?;
        let mut found = self.tasks.iter().filter(|(task, _, _)| task == name);
        match (found.next(), found.next()) {
            (Some((_, available, data)), None) => Ok(TaskFacts {
                version: kind.version,
                available: *available,
                data: data.clone(),
            }),
            // No record has this task: none will match.
            (None, _) => Ok(TaskFacts {
                version: kind.version,
                available: kind.images,
                data: None,
            }),
            (Some(_), Some(_)) => Err(format!(
                "the store has records of task `{name}` on two different sets of images; keep them in two stores, or leave --plan out"
            )
            .into()),
        }
    }

    fn recipe(&self, task: &str, model: &str) -> Lookup<Option<String>> {
        let wanted = (task.to_owned(), model.to_owned());
        let mut found = self.recipes.get(&wanted).into_iter().flatten();
        match (found.next(), found.next()) {
            (Some(recipe), None) => Ok(recipe.clone()),
            (None, _) => self.zoo.recipe(task, model),
            (Some(_), Some(_)) => Err(format!(
                "the store has records of `{model}` on task `{task}` with two different recipes; keep them in two stores, or leave --plan out"
            )
            .into()),
        }
    }

    fn calibration(&self, task: &str, images: usize, seed: u64) -> Lookup<Option<String>> {
        let wanted = (task.to_owned(), images, seed);
        let mut found = self.lists.get(&wanted).into_iter().flatten();
        match (found.next(), found.next()) {
            (found, None) => Ok(found.cloned()),
            (_, Some(_)) => Err(format!(
                "the store has records of task `{task}` with two different lists of {images} calibration images for seed {seed}; keep them in two stores, or leave --plan out"
            )
            .into()),
        }
    }

    fn allocator_version(&self, name: &str) -> Lookup<u32> {
        self.zoo.allocator_version(name)
    }

    fn criterion_version(&self, name: &str) -> Lookup<u32> {
        self.zoo.criterion_version(name)
    }

    fn reconstruction_version(&self) -> u32 {
        self.zoo.reconstruction_version()
    }
}

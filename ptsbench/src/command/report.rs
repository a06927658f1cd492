//! `ptsbench report`: tables and one page, from records alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use model_zoo::catalog;

use super::{target, tell_broken};
use crate::cell::{Key, Pattern};
use crate::options::Chosen;
use crate::plan::{Footnote, Lookup, PartFacts, Plan, Registry, TaskFacts};
use crate::record::Record;
use crate::registry::Zoo;
use crate::report::{self, Note, ReportError, Words};
use crate::store::packed::{self, Source};
use crate::store::{Contents, State};
use crate::task;
use crate::{note, outln};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which records
    #[command(flatten)]
    records: Selection,
    /// The folder to write `report.html` and `tables/` into
    #[arg(long, default_value = "out", value_name = "DIR")]
    out: PathBuf,
    /// Folder of what comes with the program; records in its `results/` are compared with these
    #[arg(long, value_name = "DIR", default_value = "assets")]
    assets: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let selected = args.records.read()?;
    selected.tell_absent();
    let shipped = shipped(&args.assets, args.records.store());
    let Selected { records, words, .. } = &selected;
    for path in report::write_report(records, &shipped, words, &args.out)? {
        outln!("{}", path.display())?;
    }
    selected.complete()
}

/// The records that come with the program; none where there are none, and where they are the store itself.
fn shipped(assets: &Path, store: &Path) -> Vec<Record> {
    let file = assets.join("results").join("micro.jsonl.gz");
    if !file.exists() || target::same(&file, store) {
        return Vec::new();
    }
    match packed::read(&file) {
        Ok(contents) => {
            let mut broken = contents.broken.iter().map(|(_, error)| error);
            if let Some(first) = broken.next().or(contents.unlisted.first()) {
                note!(
                    "{first} (broken lines in all: {}; nothing is compared with them)",
                    contents.broken.len() + contents.unlisted.len()
                );
            }
            contents.records
        }
        Err(error) => {
            note!("{error}; until then nothing is compared with the shipped records");
            Vec::new()
        }
    }
}

/// The records that a report is made of.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// The folder of records, or a file that `pack` wrote
    #[arg(long, default_value = "out/records", value_name = "DIR|FILE")]
    store: PathBuf,
    /// Only the records of this plan, a file or the name of a preset [default: all records]
    #[arg(long, value_name = "PLAN")]
    plan: Option<String>,
    /// Override one value of the plan, as `run` was told to
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "plan")]
    set: Vec<String>,
    /// The whole plan, with the grids that it marks `full`
    #[arg(long, requires = "plan")]
    full: bool,
}

/// What was read.
pub struct Selected {
    /// The sound records.
    pub records: Vec<Record>,
    /// The plan's words.
    pub words: Words,
    /// Where they were read from.
    pub source: Source,
    /// Records that were asked for and are broken.
    pub broken: usize,
    /// Cells of the plan that have no record.
    pub absent: Option<Absent>,
}

impl Selected {
    /// Says which cells of the plan what is drawn lacks.
    pub fn tell_absent(&self) {
        if let Some(absent) = &self.absent {
            note!(
                "{absent}; the output shows the others, and `ptsbench plan {}` lists them all",
                absent.plan
            );
        }
    }

    /// An error where records were asked for that cannot be read: what was drawn lacks them.
    pub fn complete(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.broken == 0,
            "{} records that belong here are broken (named above, with what to do); the output leaves them out",
            self.broken
        );
        Ok(())
    }
}

impl Selection {
    /// Where they lie.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Reads them, and the plan's words; needs neither weights nor data. Says what is broken.
    pub fn read(&self) -> anyhow::Result<Selected> {
        let source = Source::view(&self.store)?;
        let contents = source.read()?;
        tell_broken(&contents, |_| true);
        if contents.records.is_empty() {
            if let Source::Packed(path) = source {
                anyhow::bail!(
                    "no record in {} is sound; each is named above with what to do",
                    path.display()
                );
            }
            return Err(ReportError::Empty {
                store: self.store.clone(),
            }
            .into());
        }
        let Some(name) = &self.plan else {
            return Ok(Selected {
                source,
                words: Words::default(),
                broken: contents.broken.len() + contents.unlisted.len(),
                absent: None,
                records: contents.records,
            });
        };
        let mut plan = Plan::load(name, &self.set)?;
        plan.full |= self.full;
        let registry = Recorded::new(&contents.records)?;
        let keys: BTreeSet<_> = plan
            .expand(&registry)?
            .into_iter()
            .map(|planned| planned.key)
            .collect();
        let named = if self.full {
            format!("{name} --full")
        } else {
            name.clone()
        };
        let absent = Absent::of(&named, &keys, |key| source.state(key, &contents));
        let Contents {
            records, broken, ..
        } = contents;
        Ok(Selected {
            records: report::of_plan(records, name, &keys)?,
            words: Words {
                plan: Some(named),
                notes: notes(plan.footnotes(&registry)),
            },
            source,
            broken: broken.iter().filter(|(key, _)| keys.contains(key)).count(),
            absent,
        })
    }
}

/// A plan's lines as tables have them.
fn notes(footnotes: Vec<Footnote>) -> Vec<Note> {
    let note = |Footnote { task, text }| Note { task, text };
    footnotes.into_iter().map(note).collect()
}

/// The cells of a plan that have no record, in words: how many, and why where there is a reason.
pub struct Absent {
    /// The plan.
    pub plan: String,
    cells: usize,
    absent: usize,
    failed: usize,
    held: usize,
    broken: usize,
}

impl Absent {
    /// None where all have one.
    fn of(plan: &str, keys: &BTreeSet<Key>, state: impl Fn(&Key) -> State) -> Option<Self> {
        let mut found = Absent {
            plan: plan.to_owned(),
            cells: keys.len(),
            absent: 0,
            failed: 0,
            held: 0,
            broken: 0,
        };
        for key in keys {
            match state(key) {
                State::Done => continue,
                State::Failed(_) => found.failed += 1,
                State::Claimed(_) => found.held += 1,
                State::Broken(_) => found.broken += 1,
                State::Open => {}
            }
            found.absent += 1;
        }
        (found.absent > 0).then_some(found)
    }
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} cells of the plan `{}` have no record",
            self.absent, self.cells, self.plan
        )?;
        let reasons = [
            (self.failed, "failed"),
            (self.held, "in progress"),
            (self.broken, "broken"),
        ];
        let reasons: Vec<String> = reasons
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        match reasons.is_empty() {
            true => Ok(()),
            false => write!(f, " ({})", reasons.join(", ")),
        }
    }
}

/// Looks weight files up in records, so that a plan can be expanded where there are none.
struct Recorded {
    zoo: Zoo,
    digests: BTreeMap<String, BTreeSet<String>>,
    /// Recipes by task and model.
    recipes: BTreeMap<(String, String), BTreeSet<Option<String>>>,
    /// Task, images of its set, digest of their list, how they were told from others.
    tasks: BTreeSet<(String, usize, Option<String>, Option<String>)>,
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
            let available = record.score.counts.available() as usize;
            tasks.insert((
                task.name.clone(),
                available,
                task.data.clone(),
                task.split.clone(),
            ));
            let sparsity = record.cell.sparsity.as_ref();
            let looked_at = sparsity.and_then(|s| s.calibration.as_ref());
            let fitted = sparsity.and_then(|s| s.reconstruction.as_ref());
            for calibration in fitted.map(|r| &r.calibration).into_iter().chain(looked_at) {
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

    fn models_matching(&self, glob: &str, task: &str) -> Lookup<Vec<String>> {
        // Records hold measurements: whose weights a name means is seen from their digests.
        let found = task::find(task)?.among(glob, catalog::matching(glob)?)?;
        Ok(found.into_iter().map(|spec| spec.name.to_owned()).collect())
    }

    fn fits(&self, _: &str, _: Pattern) -> Lookup<()> {
        // What was measured did fit.
        Ok(())
    }

    fn layers_named(&self, _: &str, _: &[String]) -> Lookup<()> {
        // What was measured had them.
        Ok(())
    }

    fn task(&self, name: &str) -> Lookup<TaskFacts> {
        let kind = task::find(name)?;
        let mut found = self.tasks.iter().filter(|(task, ..)| task == name);
        match (found.next(), found.next()) {
            (Some((_, available, data, split)), None) => Ok(TaskFacts {
                version: kind.version,
                available: *available,
                data: data.clone(),
                split: split.clone(),
            }),
            // No record has this task: none will match.
            (None, _) => Ok(TaskFacts {
                version: kind.version,
                // Of a folder of one's own nothing is known.
                available: kind.images.unwrap_or(usize::MAX),
                data: None,
                split: None,
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

    fn allocator(&self, chosen: &Chosen) -> Lookup<PartFacts> {
        self.zoo.allocator(chosen)
    }

    fn criterion(&self, chosen: &Chosen) -> Lookup<PartFacts> {
        self.zoo.criterion(chosen)
    }

    fn repair(&self, chosen: &Chosen) -> Lookup<PartFacts> {
        self.zoo.repair(chosen)
    }

    fn reconstruction_version(&self) -> u32 {
        self.zoo.reconstruction_version()
    }
}

//! `ptsbench list`: what there is to choose from.

mod layout;
mod paper;

use std::path::PathBuf;

use anyhow::Context;
use model_zoo::catalog::origin::{self, Digest, Place};
use model_zoo::catalog::{self, Weights};
use serde_json::{Value, json};

use crate::plan::{PRESETS, Plan};
use crate::{allocate, criterion, data, options, repair, task};
use crate::{note, out, outln, terminal};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to list
    #[arg(value_enum, default_value_t)]
    pub what: What,
    /// Only names that match, with * and ?
    #[arg(default_value = "*")]
    pub pattern: String,
    /// Only networks of this family, such as vit (with `list models`)
    #[arg(long, value_name = "NAME")]
    pub family: Option<String>,
    /// The networks of the paper's Table 1, each with the one that stands for it here (with `list models`)
    #[arg(long)]
    pub paper: bool,
    /// Print JSON; for networks, also where their weights come from, their licence and preprocessing
    #[arg(long)]
    pub json: bool,
    /// Draw the built-in images, a column per class, into this PNG (with `list tasks`)
    #[arg(long, value_name = "FILE")]
    pub sheet: Option<PathBuf>,
}

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum What {
    /// Networks.
    #[default]
    Models,
    /// Rules that spread a rate over layers.
    Allocators,
    /// Rules that choose weights in a layer, and solvers that move the others too.
    Criteria,
    /// What repairs a pruned network without training a weight.
    Repairs,
    /// Tasks.
    Tasks,
    /// Data sets and the layouts in which they are read.
    Datasets,
    /// Presets of plans.
    Plans,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    if let Some(file) = &args.sheet {
        anyhow::ensure!(
            args.what == What::Tasks,
            "--sheet draws a task's images; use it with `ptsbench list tasks`"
        );
        data::sheet::save_contact_sheet(data::synthetic::MicroSet::TEST, 12, file)?;
        outln!("{}", file.display())?;
        return Ok(());
    }
    if let Some(family) = &args.family {
        anyhow::ensure!(
            args.what == What::Models,
            "--family is for `ptsbench list models`"
        );
        let mut families: Vec<&str> = catalog::all().iter().map(|spec| spec.family).collect();
        families.sort_unstable();
        families.dedup();
        anyhow::ensure!(
            families
                .iter()
                .any(|name| name.eq_ignore_ascii_case(family)),
            "no family `{family}`; there are {}",
            families.join(", ")
        );
    }
    anyhow::ensure!(
        args.what == What::Models || !args.paper,
        "--paper is for `ptsbench list models`"
    );
    let mut rows = match args.paper {
        true => paper::rows(args.family.as_deref())?,
        false => rows(args.what, args.family.as_deref())?,
    };
    let column = rows.0[0];
    rows.1
        .retain(|row| catalog::wildcard(&args.pattern, &row[0]));
    anyhow::ensure!(
        !rows.1.is_empty(),
        "no {column} matches `{}`; leave the pattern out to see all",
        args.pattern
    );
    if args.json {
        let described = |row: &Vec<String>| {
            let mut value = object(&rows.0, row);
            if let (What::Models, false, Value::Object(map)) = (args.what, args.paper, &mut value) {
                map.extend(published(&row[0]));
            }
            value
        };
        let objects: Vec<Value> = rows.1.iter().map(described).collect();
        outln!("{}", serde_json::to_string_pretty(&objects)?)?;
    } else {
        let (text, left_out) = layout::text(&rows.0, &rows.1, terminal::columns());
        out!("{text}")?;
        if !left_out.is_empty() {
            note!(
                "left out because the terminal is narrow: {} (--json shows all)",
                left_out.join(", ")
            );
        }
        if args.paper {
            note!("{}", paper::summary(&rows.1));
        }
    }
    Ok(())
}

type Rows = (Vec<&'static str>, Vec<Vec<String>>);

/// All rows, but of networks only those of the family.
fn rows(what: What, family: Option<&str>) -> anyhow::Result<Rows> {
    Ok(match what {
        What::Models => {
            let mut rows = Vec::new();
            let all = catalog::all().iter();
            let of_family = |spec: &&catalog::Spec| {
                family.is_none_or(|family| spec.family.eq_ignore_ascii_case(family))
            };
            for spec in all.filter(of_family) {
                let counts = spec.counts();
                let [c, h, w] = spec.input;
                rows.push(vec![
                    spec.name.to_owned(),
                    spec.family.to_owned(),
                    spec.paper.unwrap_or("-").to_owned(),
                    format!("{c}x{h}x{w}"),
                    counts.layers.to_string(),
                    counts.weights.to_string(),
                    counts.macs.to_string(),
                    match spec.weights {
                        Weights::BuiltIn => "built in".to_owned(),
                        Weights::File { source } => source.to_owned(),
                        Weights::None => "none, for tests".to_owned(),
                    },
                ]);
            }
            let columns = vec![
                "model",
                "family",
                "paper",
                "input",
                "layers",
                "weights",
                "MACs",
                "weights from",
            ];
            (columns, rows)
        }
        What::Allocators => {
            let row = |a: &&dyn allocate::Allocator| {
                let needs = match (a.needs_trials(), a.needs_weights()) {
                    (true, _) => "weights, images",
                    (false, true) => "weights",
                    (false, false) => "shapes",
                };
                let mut options = options::all(&allocate::Options::default());
                options.retain(|name, _| a.takes().contains(&name.as_str()));
                vec![
                    a.name().to_owned(),
                    needs.to_owned(),
                    with_options(a.about(), &options),
                ]
            };
            let rows = allocate::allocators().iter().map(row).collect();
            (vec!["allocator", "needs", "about"], rows)
        }
        What::Criteria => {
            let mut rows = Vec::new();
            for name in criterion::names() {
                let found = criterion::find(name, &options::Options::new())?;
                rows.push(vec![
                    name.to_owned(),
                    found.needs().to_owned(),
                    with_options(found.about(), &found.all_options()),
                ]);
            }
            (vec!["criterion", "needs", "about"], rows)
        }
        What::Repairs => {
            let row = |r: &repair::Repair| vec![r.name.to_owned(), r.about.to_owned()];
            let rows = repair::REPAIRS.iter().map(row).collect();
            (vec!["repair", "about"], rows)
        }
        What::Tasks => {
            // A dash where the folder decides.
            let number =
                |number: Option<usize>| number.map_or("-".to_owned(), |number| number.to_string());
            let row = |t: &task::Kind| {
                vec![
                    t.name.to_owned(),
                    number(t.classes),
                    number(t.images),
                    t.about.to_owned(),
                ]
            };
            let rows = task::TASKS.iter().map(row).collect();
            (vec!["task", "classes", "images", "about"], rows)
        }
        What::Datasets => {
            let row = |known: data::check::Known| {
                [known.set, known.task, known.layout]
                    .map(str::to_owned)
                    .to_vec()
            };
            let rows = data::check::KNOWN.into_iter().map(row).collect();
            (vec!["dataset", "task", "layout"], rows)
        }
        What::Plans => {
            let mut rows = Vec::new();
            for (name, _) in PRESETS {
                let plan = Plan::load(name, &[]).with_context(|| format!("preset {name}"))?;
                rows.push(vec![(*name).to_owned(), plan.title]);
            }
            (vec!["plan", "title"], rows)
        }
    })
}

/// What something is, and its options with their defaults.
fn with_options(about: &str, options: &options::Options) -> String {
    match options.is_empty() {
        true => about.to_owned(),
        false => format!("{about}; options: {}", options::listed(options)),
    }
}

/// What is known of a network's public weights; null where it is not known.
fn published(model: &str) -> serde_json::Map<String, Value> {
    let mut map = serde_json::Map::new();
    let Some(origin) = origin::of(model) else {
        return map;
    };
    let (repository, revision, address) = match origin.place {
        Place::Hub {
            repository,
            revision,
        } => (Some(repository), Some(revision), None),
        Place::Web(address) => (None, None, Some(address)),
        Place::Nowhere => (None, None, None),
    };
    let (sha256, begins) = match origin.sha256 {
        Digest::Whole(digest) => (Some(digest), None),
        Digest::Begins(digits) => (None, Some(digits)),
        Digest::Unknown => (None, None),
    };
    let mut put = |name: &str, value: Value| map.insert(name.to_owned(), value);
    put("repository", json!(repository));
    put("revision", json!(revision));
    put("address", json!(address));
    put(
        "file",
        json!(Some(origin.file).filter(|file| !file.is_empty())),
    );
    put("sha256", json!(sha256));
    put("sha256_begins", json!(begins));
    put("licence", json!(origin.licence));
    put("top1", json!(origin.top1.map(|(percent, _)| percent)));
    put("top1_from", json!(origin.top1.map(|(_, from)| from)));
    put(
        "preprocess",
        json!(origin.preprocess.map(|preprocess| json!({
            "resize": preprocess.resize,
            "crop": preprocess.crop,
            "interpolation": preprocess.interpolation.to_string(),
            "mean": preprocess.mean.map(as_written),
            "std": preprocess.std.map(as_written),
        }))),
    );
    put("note", json!(origin.note));
    map
}

/// The f64 with the digits of an f32: 0.485, not the nearest f32's 0.48500001430511475.
fn as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// A row as JSON: numbers as numbers, names without spaces.
fn object(columns: &[&str], row: &[String]) -> Value {
    let pair = |(column, value): (&&str, &String)| {
        let value = value
            .parse::<u64>()
            .map_or_else(|_| json!(value), Value::from);
        (column.to_lowercase().replace(' ', "_"), value)
    };
    columns.iter().zip(row).map(pair).collect()
}

//! `ptsbench list`: what there is to choose from.

use std::path::PathBuf;

use anyhow::Context;
use model_zoo::catalog::{self, Weights};
use serde_json::{Value, json};

use crate::plan::{PRESETS, Plan};
use crate::{allocate, criterion, data, pipeline, task};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to list
    #[arg(value_enum, default_value_t)]
    pub what: What,
    /// Only names that match, with * and ?
    #[arg(default_value = "*")]
    pub pattern: String,
    /// Print JSON
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
    /// Rules that choose weights in a layer.
    Criteria,
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
        println!("{}", file.display());
        return Ok(());
    }
    let mut rows = rows(args.what, &args.pattern)?;
    let column = rows.0[0];
    rows.1
        .retain(|row| catalog::wildcard(&args.pattern, &row[0]));
    anyhow::ensure!(
        !rows.1.is_empty(),
        "no {column} matches `{}`; leave the pattern out to see all",
        args.pattern
    );
    if args.json {
        let objects: Vec<Value> = rows.1.iter().map(|row| object(&rows.0, row)).collect();
        println!("{}", serde_json::to_string_pretty(&objects)?);
    } else {
        print!("{}", aligned(&rows.0, &rows.1));
    }
    Ok(())
}

type Rows = (Vec<&'static str>, Vec<Vec<String>>);

/// All rows, but of networks only those that match: counting a large one takes a second.
fn rows(what: What, pattern: &str) -> anyhow::Result<Rows> {
    Ok(match what {
        What::Models => {
            let mut rows = Vec::new();
            let all = catalog::all().iter();
            for spec in all.filter(|spec| catalog::wildcard(pattern, spec.name)) {
                let layers = pipeline::layers_of(spec.name)?;
                let weights: usize = layers.iter().map(|layer| layer.len()).sum();
                let macs: u64 = layers.iter().map(|layer| layer.macs).sum();
                let [c, h, w] = spec.input;
                rows.push(vec![
                    spec.name.to_owned(),
                    spec.family.to_owned(),
                    spec.paper.unwrap_or("-").to_owned(),
                    format!("{c}x{h}x{w}"),
                    layers.len().to_string(),
                    weights.to_string(),
                    macs.to_string(),
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
                let needs = if a.needs_weights() {
                    "weights"
                } else {
                    "shapes"
                };
                [a.name(), needs, a.about()].map(str::to_owned).to_vec()
            };
            let rows = allocate::allocators().iter().map(row).collect();
            (vec!["allocator", "needs", "about"], rows)
        }
        What::Criteria => {
            let row =
                |c: &&dyn criterion::Criterion| [c.name(), c.about()].map(str::to_owned).to_vec();
            let rows = criterion::criteria().iter().map(row).collect();
            (vec!["criterion", "about"], rows)
        }
        What::Tasks => {
            let row = |t: task::Task| {
                vec![
                    t.name.to_owned(),
                    t.classes.to_string(),
                    t.available.to_string(),
                    t.about.to_owned(),
                ]
            };
            let rows = task::TASKS.into_iter().map(row).collect();
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

/// Columns padded to their widest value, numbers to the right.
fn aligned(columns: &[&str], rows: &[Vec<String>]) -> String {
    let number = |column: usize| {
        rows.iter()
            .all(|row| row[column].bytes().all(|b| b.is_ascii_digit()))
    };
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.chain([columns[column].len()]).max().unwrap_or(0)
    };
    let layout: Vec<(usize, bool)> = (0..columns.len())
        .map(|column| (width(column), number(column)))
        .collect();
    let line = |values: &mut dyn Iterator<Item = &str>| {
        let cells = values.zip(&layout).map(|(value, &(width, right))| {
            if right {
                format!("{value:>width$}")
            } else {
                format!("{value:<width$}")
            }
        });
        let text = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", text.trim_end())
    };
    let mut text = line(&mut columns.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

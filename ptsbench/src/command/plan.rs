//! `ptsbench plan`: the cells of a plan, where each stands, and how long the rest may take.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::plan::{Plan, Planned, Registry};
use crate::progress::{Estimator, human};
use crate::store::{State, Store};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A plan's file, or the name of a preset
    pub plan: String,
    /// Override one value of the plan, such as task.samples=200 or grid.0.rates=[0.5]
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Folder of the records
    #[arg(long, value_name = "DIR", default_value = "out/records")]
    pub store: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}

/// Prints the plan's cells.
pub fn show(args: &Args, registry: &dyn Registry, out: &mut impl Write) -> anyhow::Result<()> {
    let plan = Plan::load(&args.plan, &args.set)?;
    let cells = plan.expand(registry)?;
    let store = Store::view(&args.store)?;
    let mut estimator = Estimator::default();
    for record in store.iter()? {
        estimator.learn(&record?);
    }
    let mut rows = Vec::new();
    for planned in cells {
        rows.push((store.state(&planned.key)?, planned));
    }
    let rest: Vec<Option<f64>> = rows
        .iter()
        .filter(|(state, _)| matches!(state, State::Open | State::Claimed(_)))
        .map(|(_, planned)| estimator.seconds(&planned.cell))
        .collect();

    if args.json {
        let cells: Vec<_> = rows
            .iter()
            .map(|(state, planned)| describe(state, planned, &estimator))
            .collect();
        let text = serde_json::to_string_pretty(&json!({
            "plan": plan.name,
            "cells": cells,
            "rest": {
                "cells": rest.len(),
                "seconds": rest.iter().flatten().sum::<f64>(),
                "without_estimate": rest.iter().filter(|s| s.is_none()).count(),
            },
        }))?;
        writeln!(out, "{text}")?;
        return Ok(());
    }

    writeln!(out, "{}: {}", plan.name, plan.title)?;
    for line in plan.footnotes() {
        writeln!(out, "{line}")?;
    }
    writeln!(out)?;
    let labels: Vec<String> = rows.iter().map(|(_, p)| p.cell.to_string()).collect();
    let width = labels.iter().map(String::len).max().unwrap_or(0);
    for ((state, planned), label) in rows.iter().zip(&labels) {
        let grids: Vec<&str> = planned.grids.iter().map(|m| m.grid.as_str()).collect();
        let why = match state {
            State::Failed(error) => format!("  ({error})"),
            State::Claimed(owner) => format!("  ({owner})"),
            State::Done | State::Open => String::new(),
        };
        writeln!(
            out,
            "{:<8}{}  {label:<width$}  {}{why}",
            word(state),
            planned.key.short(),
            grids.join(", ")
        )?;
    }
    let count = |wanted: &str| rows.iter().filter(|(s, _)| word(s) == wanted).count();
    writeln!(
        out,
        "\n{} cells: {} done, {} failed, {} claimed, {} open",
        rows.len(),
        count("done"),
        count("failed"),
        count("claimed"),
        count("open")
    )?;
    writeln!(out, "{}", rest_line(&rest, estimator.records))?;
    Ok(())
}

fn rest_line(rest: &[Option<f64>], records: usize) -> String {
    let known: Vec<f64> = rest.iter().flatten().copied().collect();
    let unknown = rest.len() - known.len();
    if rest.is_empty() {
        return "nothing is left to compute".into();
    }
    if known.is_empty() {
        return "no time can be told for the rest: no recorded cell is like them".into();
    }
    let time = Duration::try_from_secs_f64(known.iter().sum()).unwrap_or(Duration::MAX);
    let beyond = match unknown {
        0 => String::new(),
        n => format!(", without {n} cells that no recorded one is like"),
    };
    format!(
        "the rest takes about {} by the timings of {records} records{beyond}",
        human(time)
    )
}

fn word(state: &State) -> &'static str {
    match state {
        State::Done => "done",
        State::Failed(_) => "failed",
        State::Claimed(_) => "claimed",
        State::Open => "open",
    }
}

fn describe(state: &State, planned: &Planned, estimator: &Estimator) -> serde_json::Value {
    let mut value = json!({
        "key": planned.key,
        "label": planned.cell.to_string(),
        "state": word(state),
        "grids": planned.grids,
        "cell": planned.cell,
    });
    match state {
        State::Failed(error) => value["error"] = json!(error),
        State::Claimed(owner) => value["by"] = json!(owner.to_string()),
        State::Open | State::Done => {}
    }
    if let Some(seconds) = estimator.seconds(&planned.cell) {
        value["estimated_s"] = json!(seconds);
    }
    value
}

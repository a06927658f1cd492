//! `ptsbench plan`: the cells of a plan, where each stands, and how long the rest may take.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::run::Weights;
use super::tell_broken;
use crate::cell::Key;
use crate::plan::{Plan, Planned, Registry};
use crate::progress::{Estimator, human};
use crate::store::{State, Store};
use crate::terminal;

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
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where weights come from
    #[command(flatten)]
    pub weights: Weights,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let registry = args.weights.registry()?;
    terminal::page(|out| show(&args, &registry, out))
}

/// Prints the plan's cells.
pub fn show(args: &Args, registry: &dyn Registry, out: &mut impl Write) -> anyhow::Result<()> {
    let mut plan = Plan::load(&args.plan, &args.set)?;
    plan.full |= args.full;
    let cells = plan.expand(registry)?;
    let store = Store::view(&args.store)?;
    let contents = store.read()?;
    // A broken record of the plan is told in its line.
    let mine: BTreeSet<&Key> = cells.iter().map(|planned| &planned.key).collect();
    tell_broken(&contents, |key| !mine.contains(key));
    let mut estimator = Estimator::default();
    for record in &contents.records {
        estimator.learn(record);
    }
    let rows: Vec<(State, Planned)> = cells
        .into_iter()
        .map(|planned| (store.state(&planned.key), planned))
        .collect();
    let count = |wanted: &str| rows.iter().filter(|(s, _)| word(s) == wanted).count();
    let broken = count("broken");
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
        return complete(broken);
    }

    writeln!(out, "{}: {}", plan.name, plan.title)?;
    for line in plan.footnotes(registry) {
        writeln!(out, "{}", line.text)?;
    }
    writeln!(out)?;
    let labels: Vec<String> = rows.iter().map(|(_, p)| p.cell.to_string()).collect();
    let width = labels.iter().map(String::len).max().unwrap_or(0);
    for ((state, planned), label) in rows.iter().zip(&labels) {
        let grids: Vec<&str> = planned.grids.iter().map(|m| m.grid.as_str()).collect();
        let why = match state {
            State::Failed(error) | State::Broken(error) => format!("  ({error})"),
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
    writeln!(
        out,
        "\n{} cells: {} done, {} failed, {} claimed, {} open{}",
        rows.len(),
        count("done"),
        count("failed"),
        count("claimed"),
        count("open"),
        match broken {
            0 => String::new(),
            n => format!(", {n} broken"),
        }
    )?;
    writeln!(out, "{}", rest_line(&rest, estimator.records))?;
    complete(broken)
}

/// An error where files of the plan's own cells cannot be read: scripts must not take such a plan for a whole one.
fn complete(broken: usize) -> anyhow::Result<()> {
    anyhow::ensure!(
        broken == 0,
        "{broken} cells of the plan have a broken file in the store; each is named above, with what to do"
    );
    Ok(())
}

fn rest_line(rest: &[Option<f64>], records: usize) -> String {
    let known: Vec<f64> = rest.iter().flatten().copied().collect();
    let unknown = rest.len() - known.len();
    if rest.is_empty() {
        return "nothing is left to compute".into();
    }
    if known.is_empty() {
        return "no estimate for the rest: no recorded cell is like these".into();
    }
    let time = Duration::try_from_secs_f64(known.iter().sum()).unwrap_or(Duration::MAX);
    let beyond = match unknown {
        0 => String::new(),
        n => format!(", not counting {n} cells unlike any recorded one"),
    };
    format!(
        "the rest takes about {}, going by the timings of {records} records{beyond}",
        human(time)
    )
}

fn word(state: &State) -> &'static str {
    match state {
        State::Done => "done",
        State::Failed(_) => "failed",
        State::Claimed(_) => "claimed",
        State::Broken(_) => "broken",
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
        State::Failed(error) | State::Broken(error) => value["error"] = json!(error),
        State::Claimed(owner) => value["by"] = json!(owner.to_string()),
        State::Open | State::Done => {}
    }
    if let Some(seconds) = estimator.seconds(&planned.cell) {
        value["estimated_s"] = json!(seconds);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::Fake;
    use crate::store::Attempt;
    use crate::store::tests::sample;

    fn shown(store: &std::path::Path, json: bool) -> String {
        let args = Args {
            plan: "smoke".into(),
            set: vec!["fit.few.steps=10".into()],
            full: false,
            store: store.into(),
            weights: Weights {
                files: Vec::new(),
                data_dirs: Vec::new(),
                recipes: Vec::new(),
                assets: PathBuf::new(),
            },
            json,
        };
        let mut out = Vec::new();
        show(&args, &Fake, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_state_shows_and_the_rest_has_a_time_once_there_are_records() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("records");
        let text = shown(&root, false);
        assert!(text.starts_with("smoke: Smoke test\n"), "{text}");
        assert!(
            text.contains("3 cells: 0 done, 0 failed, 0 claimed, 3 open"),
            "{text}"
        );
        assert!(text.contains("no estimate for the rest"), "{text}");
        assert!(!root.exists(), "looking creates nothing");

        let cells = Plan::load("smoke", &["fit.few.steps=10".into()])
            .unwrap()
            .expand(&Fake)
            .unwrap();
        let store = Store::open(&root).unwrap();
        let mut dense = sample(0);
        dense.cell = cells[0].cell.clone();
        dense.key = cells[0].key.clone();
        dense.timing.prepare_s = 1.0;
        dense.timing.evaluate_s = 59.0;
        store.put(&dense).unwrap();
        store
            .fail(&cells[1].key, &cells[1].cell, "out of luck")
            .unwrap();
        let Attempt::Claimed(_claim) = store.claim(&cells[2].key).unwrap() else {
            panic!("a free cell could not be claimed")
        };
        let text = shown(&root, false);
        assert!(
            text.contains("1 done, 1 failed, 1 claimed, 0 open"),
            "{text}"
        );
        assert!(text.contains("(out of luck)"), "{text}");
        assert!(
            text.contains("no estimate for the rest"),
            "no reconstruction was timed: {text}"
        );

        // Reconstruction of the same grain at half the steps: twice its time is expected.
        let mut fitted = sample(0);
        fitted.timing.prepare_s = 1.0;
        fitted.timing.evaluate_s = 59.0;
        fitted.timing.reconstruct_s = 30.0;
        store.put(&fitted).unwrap();
        let text = shown(&root, false);
        assert!(
            text.contains("the rest takes about 2 min 00 s, going by the timings of 2 records"),
            "{text}"
        );

        let value: serde_json::Value = serde_json::from_str(&shown(&root, true)).unwrap();
        assert_eq!(value["rest"]["seconds"], 120.0);
        let states: Vec<_> = value["cells"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| &c["state"])
            .collect();
        assert_eq!(states, ["done", "failed", "claimed"]);
        assert_eq!(value["cells"][2]["key"], cells[2].key.as_str());
    }
}

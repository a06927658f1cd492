//! The command line: clap types only. What a command does lives in `command/`, one file each.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::command::{
    compare, completions, data, doctor, evaluate, export, fetch, fid, figures, infer, inspect,
    latency, list, micro_zoo, plan, report, run,
};

/// The post-training sparsity benchmark.
#[derive(Debug, Parser)]
#[command(
    name = "ptsbench",
    version,
    about,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compute the cells of a plan that have no record yet.
    Run(run::Args),
    /// Show the cells of a plan, which are done, and the time the rest may take.
    Plan(plan::Args),
    /// List models, allocators, criteria, tasks, datasets, plans.
    List(list::Args),
    /// Show a model's layers and what an allocator would take from each, or a weight file's zeros.
    Inspect(inspect::Args),
    /// Time networks on this machine.
    Latency(latency::Args),
    /// Bring public weight files onto this machine.
    Fetch(fetch::Args),
    /// Write a pruned network as a weight file that its own library loads.
    Export(export::Args),
    /// Compare two weight files: keys, shapes, types, differences, sparsity.
    Compare(compare::Args),
    /// Measure the accuracy of a network as its file stands.
    Evaluate(evaluate::Args),
    /// Say what a network takes images for.
    Infer(infer::Args),
    /// Measure the Fréchet distance between two sets of images.
    Fid(fid::Args),
    /// Write tables and the HTML report from records.
    Report(report::Args),
    /// Draw figures from records.
    Figures(figures::Args),
    /// Check a folder with a data set.
    Data(data::Args),
    /// Check this machine and every record in the store.
    Doctor(doctor::Args),
    /// Train the built-in micro networks again.
    MicroZoo(micro_zoo::Args),
    /// Print a shell's completion script.
    Completions(completions::Args),
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(args) => return run::run(args),
            Command::Fetch(args) => return fetch::run(args),
            Command::Evaluate(args) => return evaluate::run(args),
            Command::Compare(args) => return compare::run(args),
            Command::Export(args) => export::run(args)?,
            Command::Plan(args) => plan::run(args)?,
            Command::List(args) => list::run(args)?,
            Command::Inspect(args) => inspect::run(args)?,
            Command::Latency(args) => latency::run(args)?,
            Command::Infer(args) => return infer::run(args),
            Command::Fid(args) => return fid::run(args),
            Command::Report(args) => report::run(args)?,
            Command::Figures(args) => figures::run(args)?,
            Command::Data(args) => data::run(args)?,
            Command::Doctor(args) => doctor::run(args)?,
            Command::MicroZoo(args) => micro_zoo::run(args)?,
            Command::Completions(args) => completions::run(args)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

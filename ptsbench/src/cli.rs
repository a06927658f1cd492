//! The command line: clap types only. What a command does lives in `command/`, one file each.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::command::{
    compare, completions, data, doctor, evaluate, export, fetch, fid, figures, generate, infer,
    inspect, latency, list, micro_zoo, pack, plan, report, run,
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
    /// Download public weight files.
    Fetch(fetch::Args),
    /// Write a pruned network as a weight file that its own library loads.
    Export(export::Args),
    /// Compare two weight files: keys, shapes, types, differences, sparsity.
    Compare(compare::Args),
    /// Measure how well a network does its task as its file stands.
    Evaluate(evaluate::Args),
    /// Classify images with a network.
    Infer(infer::Args),
    /// Make pictures with a diffusion network.
    Generate(generate::Args),
    /// Measure the Fréchet distance between two sets of images.
    Fid(fid::Args),
    /// Write tables and the HTML report from records.
    Report(report::Args),
    /// Draw figures from records.
    Figures(figures::Args),
    /// Write records into one file, which `report` and `figures` read as they do a folder.
    Pack(pack::Args),
    /// Check a folder with a data set.
    Data(data::Args),
    /// Check this machine and every record in the store.
    Doctor(doctor::Args),
    /// Train the built-in micro networks again.
    MicroZoo(micro_zoo::Args),
    /// Print a shell's completion script.
    Completions(completions::Args),
}

/// Reads a command line.
pub fn parse(line: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = signed(Cli::command());
    let mut matches = command.try_get_matches_from_mut(line)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// The command whose options take numbers below zero: what an option says of -0.1 helps, and that -0 is no option does not.
fn signed(command: clap::Command) -> clap::Command {
    let signed_option = |arg: Arg| match arg.is_positional() || !arg.get_action().takes_values() {
        true => arg,
        false => arg.allow_negative_numbers(true),
    };
    command.mut_args(signed_option).mut_subcommands(signed)
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
            Command::Generate(args) => return generate::run(args),
            Command::Fid(args) => return fid::run(args),
            Command::Report(args) => report::run(args)?,
            Command::Figures(args) => figures::run(args)?,
            Command::Pack(args) => pack::run(args)?,
            Command::Data(args) => data::run(args)?,
            Command::Doctor(args) => doctor::run(args)?,
            Command::MicroZoo(args) => micro_zoo::run(args)?,
            Command::Completions(args) => completions::run(args)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> String {
        let words = line.split(' ').map(OsString::from);
        parse(words).unwrap_err().to_string()
    }

    #[test]
    fn the_command_line_is_sound() {
        signed(Cli::command()).debug_assert();
    }

    /// Of every command, found in clap's own description: an option added tomorrow is tried as well.
    #[test]
    fn a_number_below_zero_is_a_value_of_every_option() {
        fn options(command: &clap::Command, words: &str, tried: &mut usize) {
            for arg in command.get_arguments() {
                if arg.is_positional() || !arg.get_action().takes_values() {
                    continue;
                }
                let line = format!("{words} --{} -0.1", arg.get_long().unwrap());
                let said = parse(line.split(' ').map(OsString::from));
                let said = said.map_or_else(|error| error.to_string(), |_| String::new());
                assert!(!said.contains("unexpected argument '-0'"), "{line}: {said}");
                *tried += 1;
            }
            for sub in command.get_subcommands() {
                options(sub, &format!("{words} {}", sub.get_name()), tried);
            }
        }
        let mut tried = 0;
        options(&Cli::command(), "ptsbench", &mut tried);
        assert!(tried > 60, "{tried} options");
    }

    #[test]
    fn a_rate_below_zero_is_explained_as_a_rate() {
        for line in [
            "ptsbench inspect resnet18 --rate -0.1",
            "ptsbench export micro_resnet8 --out a.safetensors --rate -0.1",
            "ptsbench latency resnet18 --rate -0.1",
        ] {
            let said = error(line);
            assert!(said.contains("at least 0 and below 1"), "{line}: {said}");
        }
        assert!(error("ptsbench latency resnet18 --rounds -1").contains("--rounds"));
        // An option that does not exist is still told.
        assert!(error("ptsbench inspect resnet18 -x").contains("unexpected argument '-x'"));
    }
}

//! The `ptsbench` program: parse, run, say what went wrong, exit code.

use std::process::ExitCode;

use clap::Parser;
use ptsbench::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

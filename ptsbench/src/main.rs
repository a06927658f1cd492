//! The `ptsbench` program: parse, run, say what went wrong, exit code.

use std::process::ExitCode;

use clap::Parser;
use ptsbench::cli::Cli;
use ptsbench::interrupt::{self, Interrupted};

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) if error.chain().any(|cause| cause.is::<Interrupted>()) => {
            eprintln!("{error:#}");
            ExitCode::from(interrupt::EXIT_CODE)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

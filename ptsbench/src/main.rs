//! The `ptsbench` program: parse, run, say what went wrong, exit code.

use std::process::ExitCode;

use clap::Parser;
use ptsbench::cli::Cli;
use ptsbench::interrupt::{self, Interrupted};
use ptsbench::note;
use ptsbench::terminal::{self, OutputError};

fn main() -> ExitCode {
    kernels::keep_freed_memory();
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) if matches!(error.downcast_ref(), Some(OutputError::Closed)) => {
            ExitCode::from(terminal::CLOSED)
        }
        Err(error) if error.chain().any(|cause| cause.is::<Interrupted>()) => {
            note!("{}", told(&error));
            ExitCode::from(interrupt::EXIT_CODE)
        }
        Err(error) => {
            note!("error: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without those that the text before already repeats.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

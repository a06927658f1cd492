//! The `ptsbench` program: parse, run, say what went wrong, exit code.

#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::io::{self, Write};
use std::process::ExitCode;

use ptsbench::cli::{self, Cli};
use ptsbench::interrupt::{self, Interrupted};
use ptsbench::note;
use ptsbench::terminal::{self, OutputError};

fn main() -> ExitCode {
    kernels::keep_freed_memory();
    match cli::parse(std::env::args_os()).map_or_else(|error| usage(&error), Cli::run) {
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

/// What clap says: help or the version on standard output, or what is wrong with the command line on standard error.
fn usage(error: &clap::Error) -> anyhow::Result<ExitCode> {
    let printed = error.print().and_then(|()| io::stdout().flush());
    if error.use_stderr() {
        return Ok(ExitCode::from(2));
    }
    printed.map_err(OutputError::from)?;
    Ok(ExitCode::SUCCESS)
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

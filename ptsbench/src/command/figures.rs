//! `ptsbench figures`: every figure as SVG and PNG, from records alone.

use std::path::PathBuf;

use super::report::Selection;
use crate::outln;
use crate::report;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which records
    #[command(flatten)]
    records: Selection,
    /// The folder to write `figures/` into
    #[arg(long, default_value = "out", value_name = "DIR")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let selected = args.records.read()?;
    selected.tell_absent();
    for path in report::write_figures(&selected.records, &args.out)? {
        outln!("{}", path.display())?;
    }
    selected.complete()
}

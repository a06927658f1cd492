//! `ptsbench figures`: every figure as SVG and PNG, from records alone.

use std::path::PathBuf;

use crate::report;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of records.
    #[arg(long, default_value = "out/records", value_name = "DIR")]
    store: PathBuf,
    /// The folder to write `figures/` into.
    #[arg(long, default_value = "out", value_name = "DIR")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let records = report::load_records(&args.store)?;
    for path in report::write_figures(&records, &args.out)? {
        println!("{}", path.display());
    }
    Ok(())
}

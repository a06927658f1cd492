//! `ptsbench report`: tables and one page, from records alone.

use std::path::PathBuf;

use crate::report::{self, Words};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of records.
    #[arg(long, default_value = "out/records", value_name = "DIR")]
    store: PathBuf,
    /// The folder to write `report.html` and `tables/` into.
    #[arg(long, default_value = "out", value_name = "DIR")]
    out: PathBuf,
    /// Name this plan in the report; every record of the store is shown.
    #[arg(long, value_name = "PLAN")]
    plan: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let records = report::load_records(&args.store)?;
    let words = Words {
        plan: args.plan,
        notes: Vec::new(),
    };
    for path in report::write_report(&records, &words, &args.out)? {
        println!("{}", path.display());
    }
    Ok(())
}

//! `ptsbench data`: what a folder with a data set holds, and what is wrong with it.

use std::path::PathBuf;

use crate::data::check;
use crate::outln;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub action: Action,
}

/// What can be done with a data set.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Say which data set a folder holds, count it, and list what is wrong.
    Check {
        /// The folder that a data set's archive unpacks to
        folder: PathBuf,
    },
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Action::Check { folder } = args.action;
    let report = check::check(&folder)?;
    outln!("{}", report.set)?;
    for fact in &report.facts {
        outln!("  {fact}")?;
    }
    for warning in &report.warnings {
        outln!("warning: {warning}")?;
    }
    Ok(())
}

//! `ptsbench pack`: records into one file.

use std::path::{Path, PathBuf};

use anyhow::ensure;

use super::report::Selection;
use super::target;
use crate::outln;
use crate::store::packed::{self, ENDING};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file to write, such as results.jsonl.gz
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Which records
    #[command(flatten)]
    records: Selection,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    check(&args.file)?;
    let inputs = [("records", args.records.store())];
    target::spare("FILE", &args.file, &inputs)?;
    let selected = args.records.read()?;
    ensure!(
        selected.broken == 0,
        "{} records that belong here are broken (named above, with what to do), so nothing was written",
        selected.broken
    );
    if let Some(absent) = &selected.absent {
        anyhow::bail!(
            "{absent}, so nothing was written: make them with `ptsbench run {}` and the same --set and --store, or leave \
             --plan out to pack what there is",
            absent.plan
        );
    }
    let keys = selected.records.iter().map(|record| record.key.clone());
    let lines = selected.source.lines(&keys.collect())?;
    let bytes = packed::write(&args.file, &lines)?;
    outln!(
        "{}: {} records, {bytes} bytes",
        args.file.display(),
        lines.len()
    )?;
    Ok(())
}

fn check(file: &Path) -> anyhow::Result<()> {
    let name = file.file_name().and_then(|name| name.to_str());
    let stem = name.and_then(|name| name.strip_suffix(ENDING));
    ensure!(
        stem.is_some_and(|stem| !stem.is_empty()),
        "FILE {}: the output is a {ENDING} file; name it {}",
        file.display(),
        file.with_extension(&ENDING[1..]).display()
    );
    target::check("FILE", file, "gz")
}

//! `ptsbench fetch`: public weight files onto this machine, or where to get them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use model_zoo::catalog::origin::{Origin, Place};
use model_zoo::catalog::{Spec, Weights};

use crate::fetch::{FetchError, Settings, Wanted, fetch};
use crate::interrupt;
use crate::own;
use crate::registry::not_others;
use crate::terminal::OutputError;
use crate::{note, out, outln};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names in the catalog, with * and ?
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
    /// Never use the network: show what is there (also HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub offline: bool,
    /// Folder of fetched files [default: PTSBENCH_CACHE, or ptsbench in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<std::path::PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut settings = Settings::from_env();
    settings.offline |= args.offline;
    settings.cache = args.cache.unwrap_or(settings.cache);
    let mut specs: Vec<&Spec> = Vec::new();
    for pattern in &args.models {
        for named in own::matching(pattern)? {
            not_others(&named)?;
            specs.push(named.spec);
        }
    }
    interrupt::install("what has arrived is kept, and the same command goes on from there")
        .context("cannot listen for Ctrl-C")?;

    let mut failed = 0;
    for spec in specs {
        let Err(error) = one(spec, &settings) else {
            continue;
        };
        if error.is::<OutputError>() {
            return Err(error);
        }
        if let Some(FetchError::Interrupted(stop)) = error.downcast_ref() {
            return Err((*stop).into());
        }
        note!("{}: {error:#}", spec.name);
        failed += 1;
    }
    if failed > 0 {
        let files = if failed == 1 { "file is" } else { "files are" };
        note!("{failed} {files} missing");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn one(spec: &Spec, settings: &Settings) -> anyhow::Result<()> {
    let name = spec.name;
    let Some(origin) = spec.origin() else {
        match spec.weights {
            Weights::BuiltIn => outln!("{name}: built in, nothing to fetch")?,
            _ => outln!("{name}: exists for tests and has no weights")?,
        }
        return Ok(());
    };
    let Some(wanted) = Wanted::of(origin) else {
        out!("{}", elsewhere(origin))?;
        return Ok(());
    };
    let bar = ProgressBar::new(0).with_prefix(name);
    let style = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    bar.set_style(
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.enable_steady_tick(Duration::from_millis(500));
    let fetched = fetch(wanted, settings, &mut |done, size| {
        bar.set_length(size);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let fetched = fetched?;
    outln!("{name}: {} ({})", origin.place, licence(origin))?;
    if !fetched.verified {
        outln!("  its SHA-256 is not published, so it was not checked")?;
    }
    outln!("  sha256 {}", fetched.sha256)?;
    outln!("  --weights {name}={}", fetched.path.display())?;
    Ok(())
}

fn licence(origin: &Origin) -> String {
    match origin.licence {
        Some(licence) => format!("licence {licence}"),
        None => "licence unknown".to_owned(),
    }
}

/// What to do for a file that is not on the hub.
fn elsewhere(origin: &Origin) -> String {
    let name = origin.model;
    let mut text = match origin.place {
        Place::Nowhere => format!("{name}: no public weights\n"),
        place => format!(
            "{name}: not on the hub; download it yourself\n  {place}\n  file {}, sha256 {} ({})\n  --weights {name}={}\n",
            origin.file,
            origin.sha256,
            licence(origin),
            origin.file
        ),
    };
    if let Some(note) = origin.note {
        text += &format!("  {note}\n");
    }
    text
}

//! `bench-kernels`: the kernels against stock Burn, row by row of the shape file, with goals that can gate.
//!
//! A package of its own, so that the library depends neither on a command line nor on file formats, and no other program
//! gets the counting allocator.

mod block;
mod check;
mod contest;
mod engine;
mod goals;
mod gpu;
mod machine;
mod memory;
#[cfg(any(test, feature = "wgpu", feature = "cuda"))]
mod products;
mod report;
mod shapes;
mod timing;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use goals::Goal;
use gpu::{Gpu, Place};
use machine::{CpuClock, Machine};
use report::{Measured, Report};
use shapes::{Row, ShapeFile};
use timing::Effort;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// A line on stdout. A reader that has gone (`| head`) does not stop a run whose result goes to disk.
macro_rules! say {
    ($($argument:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

/// Times the kernels against stock Burn in one run: interleaved rounds, medians, ratios, goals.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Where the products run; a GPU times the rows of the set gpu unless others are chosen
    #[arg(long, value_enum, default_value_t)]
    device: Place,
    /// Only rows whose `op shape bN pass` contains this (may be given several times)
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Only rows of this set: goals, zoo, list, attention, step, gpu, smoke (may be given several times)
    #[arg(long = "set", value_name = "NAME")]
    sets: Vec<String>,
    /// Only contestants of this name (may be given several times)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Rounds, in each of which every contestant runs
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Three short rounds, and only the set `smoke` unless rows are chosen: to see that it runs
    #[arg(long)]
    quick: bool,
    /// Exit with 1 when a goal's `must` is missed
    #[arg(long, conflicts_with = "quick")]
    gate: bool,
    /// Print what got over 5 % slower since this result
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Write the result here, and a table beside it [default: bench/kernels-CLASS.json in the target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Other shapes than those that ship with the program
    #[arg(long, value_name = "FILE")]
    shapes: Option<PathBuf>,
    /// Print the chosen rows and stop
    #[arg(long)]
    list: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Run the GPU kernels' test list, on a machine that has no test harness
    Check {
        /// On which GPU
        #[arg(long, value_enum)]
        device: Place,
        /// Write the outcome here
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Only say which device it would be
        #[arg(long)]
        probe: bool,
    },
}

/// The least rounds a gate believes.
const GATE_ROUNDS: u16 = 7;

fn main() -> ExitCode {
    kernels::keep_freed_memory();
    let args = Args::parse();
    if let Some(Action::Check {
        device,
        json,
        probe,
    }) = &args.action
    {
        let mut line = |line: &str| say!("{line}");
        return match check::run(*device, json.as_deref(), *probe, &mut line) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::from(2)
            }
        };
    }
    let prepared = prepare(&args);
    let (rows, old) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    if args.list {
        rows.iter().for_each(|row| say!("{}", row.id()));
        return ExitCode::SUCCESS;
    }
    let threads = args.threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().expect("no pool was started before");
    // On a thread of the pool: with one thread everything then runs on it, and its clock sees all work.
    let outcome = rayon::scope(|_| run(&args, &rows, old.as_ref()));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What can be wrong in the arguments is found here, before anything runs.
fn prepare(args: &Args) -> Result<(Vec<Row>, Option<Report>)> {
    ensure!(
        !args.gate || args.rounds >= GATE_ROUNDS,
        "--gate needs at least {GATE_ROUNDS} rounds, found {}",
        args.rounds
    );
    let rows = match &args.shapes {
        None => ShapeFile::parse(shapes::DEFAULT)?,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("reading {}", path.display()))?;
            ShapeFile::parse(&text).with_context(|| path.display().to_string())?
        }
    }
    .rows();
    let mut known: Vec<&str> = rows
        .iter()
        .flat_map(|row| row.sets.iter().map(String::as_str))
        .collect();
    known.sort_unstable();
    known.dedup();
    for set in &args.sets {
        ensure!(
            rows.iter().any(|row| row.sets.contains(set)),
            "no shape is in the set `{set}`; the sets are {}",
            known.join(", ")
        );
    }
    let smoke = args.quick && args.sets.is_empty() && args.filter.is_empty();
    let chosen = |row: &Row| {
        let id = row.id();
        (args.filter.is_empty() || args.filter.iter().any(|text| id.contains(text)))
            && (args.sets.is_empty() || args.sets.iter().any(|set| row.sets.contains(set)))
            && (smoke || !args.sets.is_empty() || belongs(row, args.device))
            && (!smoke || row.sets.contains("smoke"))
    };
    // Rows that only a GPU finishes in reasonable time stay away from the CPU, and the CPU's from the GPU.
    fn belongs(row: &Row, place: Place) -> bool {
        match place {
            Place::Flex => !row.sets.contains("gpu"),
            Place::Wgpu | Place::Cuda => row.sets.contains("gpu"),
        }
    }
    let rows: Vec<Row> = rows.into_iter().filter(chosen).collect();
    ensure!(
        !rows.is_empty(),
        "no row is left by --filter and --set; `--list` prints the rows"
    );
    let old = args.compare.as_deref().map(Report::read).transpose()?;
    Ok((rows, old))
}

/// Measures, prints and writes; whether the gate, if asked for, holds.
fn run(args: &Args, rows: &[Row], old: Option<&Report>) -> Result<bool> {
    // Before anything else: what is not there is told now.
    let gpu = match args.device {
        Place::Flex => None,
        place => Some(Gpu::open(place)?),
    };
    let mut machine = Machine::probe();
    if let Some(gpu) = &gpu {
        machine = machine.with(gpu.facts());
    }
    let path = match &args.json {
        Some(path) => path.clone(),
        None => default_path(&machine)?,
    };
    let peak = match machine.accelerator {
        Some(_) => String::new(),
        None => format!(", f32 peak {:.0} GFLOP/s", machine.peak_gflops),
    };
    say!(
        "{}, {}, {} threads on {} processors{peak}",
        machine.cpu,
        machine.isa,
        machine.threads,
        machine.cores,
    );
    if let Some(gpu) = &machine.accelerator {
        say!("{}: {}, {}", gpu.route, gpu.device, gpu.compiler);
    }
    let (rounds, fill) = match args.quick {
        true => (3, 1e-3),
        false => (usize::from(args.rounds), 5e-3),
    };
    let clock = match machine.threads {
        1 => CpuClock::Thread,
        _ => CpuClock::Process,
    };
    let mut report = Report {
        schema: report::SCHEMA,
        machine,
        rounds,
        rows: Vec::new(),
    };
    // Before the first row: a path that cannot be written is told now, not after half an hour.
    report.write(&path)?;
    for (index, row) in rows.iter().enumerate() {
        let mut contest =
            contest::prepare(row, index as u64, report.machine.l2_bytes, gpu.as_ref())?;
        if !args.only.is_empty() {
            contest.contestants.retain(|c| args.only.contains(&c.name));
        }
        if contest.contestants.is_empty() {
            continue;
        }
        let mut race = timing::race(&mut contest, Effort { rounds, fill }, clock);
        if gpu.is_some() {
            // Who else uses the CPU says nothing about the GPU.
            race.others = 0.0;
        }
        let measured = Measured::new(row, &report.machine, &contest.contestants, &race);
        say!("{}", measured.lines().trim_end());
        report.rows.push(measured);
        report.write(&path)?;
    }
    say!("\nwritten to {}", path.display());

    if let Some(old) = old {
        compare(&report, old);
    }
    let complete = args.filter.is_empty() && args.sets.is_empty() && args.only.is_empty();
    Ok(!verdicts(&report, complete && !args.quick)? || !args.gate)
}

/// Prints the fate of every goal; whether one fails.
fn verdicts(report: &Report, complete: bool) -> Result<bool> {
    let goals: Vec<Goal> = goals::parse(goals::DEFAULT)?;
    say!("\ngoals (a reference's time / ours)");
    let mut failed = Vec::new();
    // A GPU's run says nothing about the CPU's goals.
    let on_gpu = report.machine.accelerator.is_some();
    for goal in goals.iter().filter(|goal| goal.of_gpu() || !on_gpu) {
        let verdict = goal.judge(report, complete);
        say!("{}", verdict.lines().trim_end());
        if verdict.fails {
            failed.push(verdict.goal);
        }
    }
    match failed.as_slice() {
        [] => say!("no `must` that was measured is missed"),
        failed => say!("missed: {}", failed.join("; ")),
    }
    Ok(!failed.is_empty())
}

fn compare(report: &Report, old: &Report) {
    if report.machine.class() != old.machine.class() || report.machine.cpu != old.machine.cpu {
        say!(
            "\nthe older result is of another machine: {} ({})",
            old.machine.cpu,
            old.machine.class()
        );
    }
    let worse = report.regressions(old);
    say!("\nover 5 % slower than before: {}", worse.len());
    worse.iter().for_each(|line| say!("  {line}"));
}

/// `bench/` beside the folder `release/` that this program lies in.
fn default_path(machine: &Machine) -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding this program's folder")?;
    let target = program
        .ancestors()
        .nth(2)
        .context("no target folder; give --json")?;
    Ok(target
        .join("bench")
        .join(format!("kernels-{}.json", machine.class())))
}

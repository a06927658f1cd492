//! `bench-kernels check`: the kernels' test list on a machine that has no test harness.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::gpu::{Accelerator, Gpu, Place};

/// A test's fate.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Its name.
    pub test: String,
    /// Results compared.
    pub compared: usize,
    /// The largest error over its bound; 0 where bits were compared.
    pub worst: f64,
    /// How long it took.
    pub seconds: f64,
    /// What failed, if it did.
    pub failure: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    accelerator: Accelerator,
    tests: Vec<Outcome>,
}

/// Runs the list, or only looks for the device (`probe`); whether everything passed. `say` gets a line per test.
pub fn run(
    place: Place,
    json: Option<&Path>,
    probe: bool,
    say: &mut dyn FnMut(&str),
) -> Result<bool> {
    let gpu = Gpu::open(place)?;
    let accelerator = gpu.facts();
    say(&format!("{}: {}", accelerator.route, accelerator.device));
    if probe {
        return Ok(true);
    }
    let tests = gpu.check(&mut |outcome| {
        say(&match &outcome.failure {
            None => format!(
                "{:<30} passed: {} compared, largest error over bound {:.3}, {:.1} s",
                outcome.test, outcome.compared, outcome.worst, outcome.seconds
            ),
            Some(why) => format!("{:<30} FAILED: {why}", outcome.test),
        });
    });
    let failed = tests.iter().filter(|test| test.failure.is_some()).count();
    say(&format!("{} passed, {failed} failed", tests.len() - failed));
    if let Some(path) = json {
        let report = Report { accelerator, tests };
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(failed == 0)
}

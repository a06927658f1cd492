//! Track 2, reconstruction: Table 4 of the paper, the gains over other bases, and plain accuracies.

use std::collections::BTreeMap;

use super::super::groups::ms_rates;
use super::super::published::{Published, percent};
use super::super::suite::{Configuration, Found, Measured, Model, Suite, Task, level, value};
use super::super::table::{Column, Entry, Table};
use super::super::{TRACK2, TRACK2_ALLOCATOR, allocator_name};
use super::{
    Compared, SPREAD, compare, compared_columns, entry, measured, networks, plural, printed_ms,
    printed_rate, rate_name, runs,
};
use crate::cell::{Optimizer, Reconstruction};
use crate::overall::{self, Base};
use crate::record::Record;

/// Scores around one reconstruction.
#[derive(Debug, Clone, Copy)]
struct Recovery {
    task: Task,
    /// The dense network's.
    dense: f64,
    /// Pruned.
    before: f64,
    /// Pruned and reconstructed.
    after: f64,
}

/// One recovery per seed.
fn recoveries(
    model: &Model<'_>,
    allocator: &str,
    rate: f64,
    configuration: Configuration,
) -> Found<BTreeMap<u64, Recovery>> {
    let dense = level(model.dense()?)?;
    let before = model.pruned_level(allocator, rate)?;
    let after = model.reconstructed(allocator, rate, configuration)?;
    let recovery = |record: &Record| -> Found<Recovery> {
        Ok(Recovery {
            task: model.task,
            dense,
            before,
            after: value(record)?,
        })
    };
    after
        .into_iter()
        .map(|(seed, record)| Ok((seed, recovery(record)?)))
        .collect()
}

/// The table's value in every complete run: a seed for which each of `models` has a record at each of `rates`.
fn over_runs(
    models: &[&Model<'_>],
    rates: &[f64],
    allocator: &str,
    configuration: Configuration,
    value: impl Fn(&[Vec<Recovery>]) -> Option<f64>,
    undefined: &str,
) -> Found<Measured> {
    let grid: Vec<Vec<BTreeMap<u64, Recovery>>> = models
        .iter()
        .map(|m| {
            rates
                .iter()
                .map(|&rate| recoveries(m, allocator, rate, configuration))
                .collect()
        })
        .collect::<Found<_>>()?;
    let first = grid
        .first()
        .and_then(|row| row.first())
        .ok_or_else(|| "No network.".to_owned())?;
    let complete = first.keys().filter(|seed| {
        grid.iter()
            .flatten()
            .all(|by_seed| by_seed.contains_key(seed))
    });
    let mut values = Vec::new();
    for seed in complete {
        let run: Vec<Vec<Recovery>> = grid
            .iter()
            .map(|row| row.iter().map(|by_seed| by_seed[seed]).collect())
            .collect();
        values.push(value(&run).ok_or_else(|| undefined.to_owned())?);
    }
    Measured::over(&values)
        .ok_or_else(|| "No seed has a record of every network and rate.".to_owned())
}

/// Ratios of one run, or nothing where one of them is undefined.
fn gains(run: &[Vec<Recovery>], base: Base, clip: bool) -> Option<Vec<Vec<f64>>> {
    let term = |r: &Recovery| {
        if r.task == Task::Generation {
            return Some(overall::fid_gain(r.dense, r.before, r.after));
        }
        let gain = overall::gain(r.dense, r.before, r.after, base)?;
        Some(if clip { overall::clipped(gain) } else { gain })
    };
    run.iter()
        .map(|row| row.iter().map(term).collect())
        .collect()
}

const ZERO_BASE: &str = "The accuracy divided by is 0.";

fn suffix(allocator: &str) -> String {
    if allocator == TRACK2_ALLOCATOR {
        String::new()
    } else {
        format!("_{allocator}")
    }
}

/// Table 4, the block of the suite's task.
pub(super) fn table4(suite: &Suite<'_>, published: &Published, allocator: &str) -> Table {
    let (models, task) = (suite.reconstructed_models(allocator), suite.kind());
    let rates = suite.rates(allocator, true);
    let formula = match task {
        Task::Generation => "100 × exp(dense/(after - before)), 0 where the distance does not fall",
        _ => "100 × (after - before)/before, floored at 0",
    };
    let mut table = Table::new(
        format!(
            "{}_table4_{}{}",
            suite.id,
            task.name().to_lowercase(),
            suffix(allocator)
        ),
        format!(
            "Table 4, {}: gain of reconstruction after {}, {formula}, mean over {}",
            task.name(),
            allocator_name(allocator),
            plural(models.len(), "network")
        ),
        compared_columns("Configuration"),
    );
    let all_rates = ms_rates(task)
        .iter()
        .all(|r| rates.iter().any(|p| percent(*p) == percent(*r)));
    for (name, configuration) in TRACK2 {
        let paper = published.reconstruction(name);
        for (index, &rate) in rates.iter().enumerate() {
            let mean = |run: &[Vec<Recovery>]| {
                overall::expectation(&gains(run, Base::Sparse, true)?).map(|v| 100.0 * v)
            };
            let ours = over_runs(&models, &[rate], allocator, configuration, mean, ZERO_BASE);
            compare(
                &mut table,
                Compared {
                    head: [name, &rate_name(rate)],
                    begins_group: index == 0,
                    ours,
                    paper: printed_rate(paper, task, rate),
                    incomparable: None,
                    decimals: 2,
                },
            );
        }
        if all_rates {
            let ms = |run: &[Vec<Recovery>]| {
                overall::ms(&gains(run, Base::Sparse, true)?).map(|v| 100.0 * v)
            };
            let ours = over_runs(
                &models,
                ms_rates(task),
                allocator,
                configuration,
                ms,
                ZERO_BASE,
            );
            compare(
                &mut table,
                Compared {
                    head: [name, "MS"],
                    begins_group: false,
                    ours,
                    paper: printed_ms(paper, task),
                    incomparable: None,
                    decimals: 2,
                },
            );
        }
    }
    table.notes.push(format!("{} {SPREAD}", networks(&models)));
    table.notes.push(base_note());
    if !all_rates && task != Task::Generation {
        let present: Vec<String> = rates.iter().map(|&r| rate_name(r)).collect();
        table.notes.push(format!(
            "MS is a mean over 50, 60, 70 and 80 %; only {} were run, so it is not given.",
            present.join(" and ")
        ));
    }
    table.notes.push(
        "The paper does not say which allocation its rows stand on nor what R is divided by; the companion table has \
         the other bases."
            .to_owned(),
    );
    table.notes.extend(fit_notes(suite, allocator));
    table
}

/// MS of the gains that Table 4 shows, over runs, in percent.
pub(super) fn ms_after(
    models: &[&Model<'_>],
    rates: &[f64],
    allocator: &str,
    configuration: Configuration,
) -> Found<f64> {
    let ms =
        |run: &[Vec<Recovery>]| overall::ms(&gains(run, Base::Sparse, true)?).map(|v| 100.0 * v);
    let ours = over_runs(models, rates, allocator, configuration, ms, ZERO_BASE)?;
    Ok(ours.value)
}

/// The mean over networks and rates of the gains that Table 4 shows.
pub(super) fn mean_gain(
    suite: &Suite<'_>,
    allocator: &str,
    rates: &[f64],
    configuration: Configuration,
) -> Found<f64> {
    let models = suite.reconstructed_models(allocator);
    let mean = |run: &[Vec<Recovery>]| {
        overall::expectation(&gains(run, Base::Sparse, true)?).map(|v| 100.0 * v)
    };
    let gain = over_runs(&models, rates, allocator, configuration, mean, ZERO_BASE)?;
    Ok(gain.value)
}

fn base_note() -> String {
    "One base configuration (layer-wise, sparse input, with correction) is varied in one respect at a time, so \
     `w/ Correction`, `Sparse Input` and `Layer-wise` are the same cells; the paper's differ in ways it does not state."
        .to_owned()
}

/// One sentence per way of fitting that the records hold.
pub(super) fn fit_notes(suite: &Suite<'_>, allocator: &str) -> Vec<String> {
    suite.fits(allocator).into_iter().map(fit_note).collect()
}

fn fit_note(r: &Reconstruction) -> String {
    let biases = |lr: f64, bias_lr: f64| match bias_lr {
        0.0 => "biases frozen".to_owned(),
        b if b == lr => "biases alike".to_owned(),
        b => format!("biases {b}"),
    };
    let optimizer = match r.fit.optimizer {
        Optimizer::Adam { lr, bias_lr } => {
            format!("Adam at learning rate {lr}, {}", biases(lr, bias_lr))
        }
        Optimizer::Sgd {
            lr,
            bias_lr,
            momentum,
        } => {
            format!(
                "SGD with momentum {momentum} at learning rate {lr}, {}",
                biases(lr, bias_lr)
            )
        }
    };
    let stop = if r.fit.early_stop > 0.0 {
        format!(", ended early below a loss of {}", r.fit.early_stop)
    } else {
        String::new()
    };
    format!(
        "Each unit is fitted with {optimizer}, for {} steps{stop}, on {} calibration images in batches of {}.",
        r.fit.steps, r.calibration.images, r.calibration.batch
    )
}

/// The same gains over each of the three bases, unclipped.
pub(super) fn table4_bases(suite: &Suite<'_>, allocator: &str) -> Table {
    let models = suite.reconstructed_models(allocator);
    let mut table = Table::new(
        format!("{}_table4_bases{}", suite.id, suffix(allocator)),
        format!(
            "Gain of reconstruction over three bases after {}, in percent, not floored, mean over {}",
            allocator_name(allocator),
            plural(models.len(), "network")
        ),
        vec![
            Column::words("Configuration"),
            Column::words("Rate"),
            Column::measured("Of before"),
            Column::measured("Of dense"),
            Column::measured("Of after"),
            Column::numbers("Runs"),
        ],
    );
    for (name, configuration) in TRACK2 {
        for (index, rate) in suite.rates(allocator, true).into_iter().enumerate() {
            let over = |base| {
                let mean = |run: &[Vec<Recovery>]| {
                    overall::expectation(&gains(run, base, false)?).map(|v| 100.0 * v)
                };
                over_runs(&models, &[rate], allocator, configuration, mean, ZERO_BASE)
            };
            let values = [Base::Sparse, Base::Dense, Base::Reconstructed].map(over);
            let mut entries = vec![Entry::text(name), Entry::text(rate_name(rate))];
            for value in &values {
                entries.push(measured(&mut table, value, 2));
            }
            entries.push(runs(&mut table, &values[1]));
            table.push(index == 0, entries);
        }
    }
    table.notes.push(
        "After - before as a share of each accuracy; in the paper's letters R/A^s, R/A and R/A^{s,r}. The last two are bounded by 100 % for a network no better than the dense one."
            .to_owned(),
    );
    table.notes.push(base_note());
    table.notes.extend(fit_notes(suite, allocator));
    table
}

/// Accuracies before and after.
pub(super) fn table4_top1(suite: &Suite<'_>, allocator: &str) -> Table {
    let scores = match suite.kind() {
        Task::Classification => "top1",
        _ => "scores",
    };
    let mut table = Table::new(
        format!("{}_table4_{scores}{}", suite.id, suffix(allocator)),
        format!(
            "{} before and after reconstruction, {} allocation",
            suite.metric(),
            allocator_name(allocator)
        ),
        vec![
            Column::words("Network"),
            Column::words("Rate"),
            Column::words("Configuration"),
            Column::numbers("Dense"),
            Column::numbers("Before"),
            Column::measured("After"),
            Column::numbers("Gain, points"),
            Column::numbers("Runs"),
        ],
    );
    for model in suite.reconstructed_models(allocator) {
        for rate in suite.rates(allocator, true) {
            for (index, (name, configuration)) in TRACK2.into_iter().enumerate() {
                let dense = model.dense().and_then(level);
                let before = model.pruned_level(allocator, rate);
                let after = top1_after(model, allocator, rate, configuration);
                let gain = match (&before, &after) {
                    (Ok(before), Ok(after)) => Entry::difference(after.value - before, 2),
                    (Err(reason), _) | (_, Err(reason)) => table.missing(reason),
                };
                let entries = vec![
                    Entry::text(&model.label),
                    Entry::text(rate_name(rate)),
                    Entry::text(name),
                    entry(&mut table, dense, 2),
                    entry(&mut table, before, 2),
                    measured(&mut table, &after, 2),
                    gain,
                    runs(&mut table, &after),
                ];
                table.push(index == 0, entries);
            }
        }
    }
    table
        .notes
        .push(SPREAD.split("; ").next().unwrap_or(SPREAD).to_owned() + ".");
    table.notes.push(base_note());
    table.notes.extend(fit_notes(suite, allocator));
    table
}

/// Top-1 after reconstruction, over seeds.
pub fn top1_after(
    model: &Model<'_>,
    allocator: &str,
    rate: f64,
    configuration: Configuration,
) -> Found<Measured> {
    let by_seed = model.reconstructed(allocator, rate, configuration)?;
    let values = by_seed
        .values()
        .map(|record| value(record))
        .collect::<Found<Vec<f64>>>()?;
    Measured::over(&values).ok_or_else(|| "No record.".to_owned())
}

//! The tables of a suite: the paper's with ours beside them, and plain ones.
//!
//! Every value is in percent. Where the paper's table has no value, or we have no record, the entry is missing with its
//! reason; timing and environment never appear, so that equal plans give equal bytes.

use std::collections::BTreeMap;

use super::published::{MethodRow, Published, percent};
use super::suite::{Configuration, Found, Measured, Model, Suite, allocation};
use super::table::{Column, Entry, Table};
use super::{METHODS, TRACK2, Words, allocator_name};
use crate::cell::{Granularity, Inputs, Optimizer, Pattern, Reconstruction, Rule};
use crate::overall::{self, Base, Deviation};
use crate::record::Record;

const NO_UNIT: &str = "The paper does not state the unit of OM_robust.";
const SPREAD: &str = "± is the sample standard deviation over seeds; a value without it comes from one run. \
                      Differences are ours minus the paper's, in points, taken before rounding.";

/// All tables of a suite, in the order of the report. A table none of whose rows has a record is left out.
pub fn tables(suite: &Suite<'_>, published: &Published, words: &Words) -> Vec<Table> {
    let mut tables = Vec::new();
    if !suite.allocators(false).is_empty() {
        let table = table2(suite, published);
        tables.push(compact(&table, Vec::new()));
        tables.push(table);
    }
    for allocator in suite.allocators(true) {
        let table = table4(suite, published, &allocator);
        tables.push(compact(&table, fit_notes(suite, &allocator)));
        tables.push(table);
        tables.push(table4_bases(suite, &allocator));
        tables.push(table4_top1(suite, &allocator));
    }
    if !suite.allocators(false).is_empty() {
        tables.push(track4_sizes(suite));
        tables.push(track4_overall(suite, published));
    }
    tables.push(cells(suite));
    for table in &mut tables {
        table.notes.extend(words.notes(&suite.task.name));
        let limited = suite.records().find(|r| r.score.total < r.score.available);
        if let Some(record) = limited {
            table.notes.push(format!(
                "Limited run: {} of {} images.",
                record.score.total, record.score.available
            ));
        }
    }
    tables
}

fn compared_columns(first: &str) -> Vec<Column> {
    vec![
        Column::words(first),
        Column::words("Rate"),
        Column::measured("Ours"),
        Column::numbers("Paper"),
        Column::numbers("Difference"),
        Column::numbers("Runs"),
    ]
}

/// What stands in a row of ours, the paper's, the difference and the runs.
struct Compared<'a> {
    head: [&'a str; 2],
    begins_group: bool,
    ours: Found<Measured>,
    paper: Found<f64>,
    /// Why the two cannot be subtracted, where they cannot.
    incomparable: Option<&'a str>,
    decimals: usize,
}

fn compare(table: &mut Table, row: Compared<'_>) {
    let Compared {
        head,
        ours,
        paper,
        decimals,
        ..
    } = row;
    let difference = match (&ours, &paper, row.incomparable) {
        (Ok(ours), Ok(paper), None) => Entry::difference(ours.value - paper, decimals),
        (Err(reason), ..) | (_, Err(reason), _) => table.missing(reason),
        (.., Some(reason)) => table.missing(reason),
    };
    let entries = vec![
        Entry::text(head[0]),
        Entry::text(head[1]),
        measured(table, &ours, decimals),
        entry(table, paper, decimals),
        difference,
        runs(table, &ours),
    ];
    table.push(row.begins_group, entries);
}

fn entry(table: &mut Table, value: Found<f64>, decimals: usize) -> Entry {
    match value {
        Ok(value) => Entry::number(value, decimals),
        Err(reason) => table.missing(reason),
    }
}

fn measured(table: &mut Table, value: &Found<Measured>, decimals: usize) -> Entry {
    match value {
        Ok(m) => Entry::measured(m.value, m.spread, decimals),
        Err(reason) => table.missing(reason),
    }
}

fn runs(table: &mut Table, value: &Found<Measured>) -> Entry {
    match value {
        Ok(m) => Entry::Count(m.runs as u64),
        Err(reason) => table.missing(reason),
    }
}

/// The mean over `models`, missing where one of them is: a mean over fewer networks is another quantity.
fn over_models(models: &[&Model<'_>], value: impl Fn(&Model<'_>) -> Found<f64>) -> Found<f64> {
    let values: Vec<f64> = models.iter().map(|m| value(m)).collect::<Found<_>>()?;
    overall::mean(&values).ok_or_else(|| "No network.".to_owned())
}

/// A compared table in the paper's shape: a row of ours and one of the paper's per method, a column per rate.
fn compact(long: &Table, notes: Vec<String>) -> Table {
    let mut rates: Vec<String> = Vec::new();
    for row in &long.rows {
        let rate = row.entries[1].plain();
        if !rates.contains(&rate) {
            rates.push(rate);
        }
    }
    let mut columns = vec![long.columns[0].clone(), Column::words("Source")];
    columns.extend(rates.iter().map(Column::measured));
    let mut table = Table::new(format!("{}_compact", long.id), long.title.clone(), columns);
    for rows in long.rows.chunk_by(|_, next| !next.begins_group) {
        for (source, place) in [("ours", 2), ("paper", 3)] {
            let mut entries = vec![rows[0].entries[0].clone(), Entry::text(source)];
            for row in rows {
                entries.push(match &row.entries[place] {
                    Entry::Missing(index) => table.missing(&long.footnotes()[*index]),
                    present => present.clone(),
                });
            }
            table.push(source == "ours", entries);
        }
    }
    table.notes.push(format!(
        "Differences, runs and readings are in `{}`.",
        long.id
    ));
    table.notes.extend(notes);
    table
}

fn rate_name(rate: f64) -> String {
    format!("{} %", percent(rate))
}

fn networks(models: &[&Model<'_>]) -> String {
    let names: Vec<&str> = models.iter().map(|m| m.label.as_str()).collect();
    format!("Networks: {}.", names.join(", "))
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

/// Table 2, classification block.
fn table2(suite: &Suite<'_>, published: &Published) -> Table {
    let models = suite.pruned_models();
    let mut table = Table::new(
        format!("{}_table2_cls", suite.id),
        format!(
            "Table 2, CLS: relative accuracy of the allocators without reconstruction, 100 × sparse/dense, \
             mean over {}",
            plural(models.len(), "network")
        ),
        compared_columns("Method"),
    );
    let known = suite.allocators(false);
    for (method, allocator) in METHODS {
        let paper = published.allocation(method);
        let absent = || format!("No record of {method} in the store.");
        for (index, &rate) in overall::RATES.iter().enumerate() {
            let ours = if known.iter().any(|name| name == allocator) {
                over_models(&models, |m| m.relative(allocator, rate))
                    .map(|v| Measured::once(100.0 * v))
            } else {
                Err(absent())
            };
            compare(
                &mut table,
                Compared {
                    head: [method, &rate_name(rate)],
                    begins_group: index == 0,
                    ours,
                    paper: printed_rate(paper, rate),
                    incomparable: None,
                    decimals: 2,
                },
            );
        }
        let ours = if known.iter().any(|name| name == allocator) {
            let grid: Found<Vec<Vec<f64>>> =
                models.iter().map(|m| m.relatives(allocator)).collect();
            grid.and_then(|grid| overall::ms(&grid).ok_or_else(absent))
                .map(|v| Measured::once(100.0 * v))
        } else {
            Err(absent())
        };
        compare(
            &mut table,
            Compared {
                head: [method, "MS"],
                begins_group: false,
                ours,
                paper: printed_ms(paper),
                incomparable: None,
                decimals: 2,
            },
        );
    }
    table.notes.push(format!("{} {SPREAD}", networks(&models)));
    table.notes.push(
        "MS is the quadratic mean over networks of each network's mean over 50-80 %, the reading of Eq. 2 that fits \
         the printed tables. OM_alloc needs detection and generation as well and is not given."
            .to_owned(),
    );
    table
}

fn printed_rate(row: Option<&MethodRow>, rate: f64) -> Found<f64> {
    row.and_then(|row| row.cls.rates.get(&percent(rate)).copied())
        .ok_or_else(|| "Not printed in the paper.".to_owned())
}

fn printed_ms(row: Option<&MethodRow>) -> Found<f64> {
    row.map(|row| row.cls.ms)
        .ok_or_else(|| "Not printed in the paper.".to_owned())
}

/// Accuracies around one reconstruction, in percent.
#[derive(Debug, Clone, Copy)]
pub struct Recovery {
    /// The dense network's.
    pub dense: f64,
    /// Pruned.
    pub before: f64,
    /// Pruned and reconstructed.
    pub after: f64,
}

/// One recovery per seed.
pub fn recoveries(
    model: &Model<'_>,
    allocator: &str,
    rate: f64,
    configuration: Configuration,
) -> Found<BTreeMap<u64, Recovery>> {
    let dense = model.dense()?.score.value;
    let before = model.pruned(allocator, rate)?.score.value;
    let after = model.reconstructed(allocator, rate, configuration)?;
    let recovery = |record: &Record| Recovery {
        dense,
        before,
        after: record.score.value,
    };
    Ok(after
        .into_iter()
        .map(|(seed, record)| (seed, recovery(record)))
        .collect())
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
        let gain = overall::gain(r.dense, r.before, r.after, base)?;
        Some(if clip { overall::clipped(gain) } else { gain })
    };
    run.iter()
        .map(|row| row.iter().map(term).collect())
        .collect()
}

const ZERO_BASE: &str = "The accuracy divided by is 0.";

fn suffix(allocator: &str) -> String {
    if allocator == super::TRACK2_ALLOCATOR {
        String::new()
    } else {
        format!("_{allocator}")
    }
}

/// Table 4, classification block.
fn table4(suite: &Suite<'_>, published: &Published, allocator: &str) -> Table {
    let models = suite.reconstructed_models(allocator);
    let rates = suite.rates(allocator, true);
    let mut table = Table::new(
        format!("{}_table4_cls{}", suite.id, suffix(allocator)),
        format!(
            "Table 4, CLS: gain of reconstruction after {}, 100 × (after - before)/before, floored at 0, mean over {}",
            allocator_name(allocator),
            plural(models.len(), "network")
        ),
        compared_columns("Configuration"),
    );
    let all_rates = overall::RATES
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
                    paper: printed_rate(paper, rate),
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
                &overall::RATES,
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
                    paper: printed_ms(paper),
                    incomparable: None,
                    decimals: 2,
                },
            );
        }
    }
    table.notes.push(format!("{} {SPREAD}", networks(&models)));
    table.notes.push(base_note());
    if !all_rates {
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

fn base_note() -> String {
    "One base configuration (layer-wise, sparse input, with correction) is varied in one respect at a time, so \
     `w/ Correction`, `Sparse Input` and `Layer-wise` are the same cells; the paper's differ in ways it does not state."
        .to_owned()
}

/// One sentence per way of fitting that the records hold.
fn fit_notes(suite: &Suite<'_>, allocator: &str) -> Vec<String> {
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
fn table4_bases(suite: &Suite<'_>, allocator: &str) -> Table {
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
fn table4_top1(suite: &Suite<'_>, allocator: &str) -> Table {
    let mut table = Table::new(
        format!("{}_table4_top1{}", suite.id, suffix(allocator)),
        format!(
            "Top-1 accuracy before and after reconstruction, {} allocation, %",
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
                let dense = model.dense().map(|r| r.score.value);
                let before = model.pruned(allocator, rate).map(|r| r.score.value);
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
    let values: Vec<f64> = by_seed.values().map(|r| r.score.value).collect();
    Measured::over(&values).ok_or_else(|| "No record.".to_owned())
}

/// Track 4, one row per size.
fn track4_sizes(suite: &Suite<'_>) -> Table {
    let mut columns = vec![
        Column::words("Method"),
        Column::words("Network"),
        Column::numbers("Prunable weights"),
        Column::numbers("Dense top-1"),
    ];
    columns.extend(
        overall::RATES
            .iter()
            .map(|&rate| Column::numbers(rate_name(rate))),
    );
    columns.push(Column::numbers("Mean loss"));
    let mut table = Table::new(
        format!("{}_track4_sizes", suite.id),
        "Track 4: relative accuracy by size without reconstruction, 100 × sparse/dense, and its mean loss over 50-80 %",
        columns,
    );
    for allocator in suite.allocators(false) {
        for (index, model) in suite.pruned_models().into_iter().enumerate() {
            let dense = model.dense().map(|r| r.score.value);
            let mut entries = vec![
                Entry::text(allocator_name(&allocator)),
                Entry::text(&model.label),
                Entry::Count(model.weights),
                entry(&mut table, dense, 2),
            ];
            for rate in overall::RATES {
                let value = model.relative(&allocator, rate).map(|v| 100.0 * v);
                entries.push(entry(&mut table, value, 2));
            }
            let loss = mean_loss(model, &allocator);
            entries.push(entry(&mut table, loss, 2));
            table.push(index == 0, entries);
        }
    }
    table
        .notes
        .push("The paper shows these losses in Fig. 4 without numbers.".to_owned());
    table
}

/// Mean relative accuracy loss over 50-80 % (Fig. 4), in percent.
pub fn mean_loss(model: &Model<'_>, allocator: &str) -> Found<f64> {
    let relatives = model.relatives(allocator)?;
    overall::mean_relative_loss(&relatives)
        .map(|v| 100.0 * v)
        .ok_or_else(|| "No rate.".to_owned())
}

/// Track 4, the overall metrics.
fn track4_overall(suite: &Suite<'_>, published: &Published) -> Table {
    let models = suite.pruned_models();
    let mut table = Table::new(
        format!("{}_track4_overall", suite.id),
        format!(
            "Tracks 3 and 4: overall metrics over {}, against the paper's ResNet family",
            plural(models.len(), "size")
        ),
        vec![
            Column::words("Method"),
            Column::words("Metric"),
            Column::measured("Ours"),
            Column::numbers("Paper"),
            Column::numbers("Difference"),
            Column::numbers("Runs"),
        ],
    );
    let family = published.family("ResNet");
    for allocator in suite.allocators(false) {
        let grid: Found<Vec<Vec<f64>>> = models.iter().map(|m| m.relatives(&allocator)).collect();
        // Table 5 is Track 1's L2Norm setting (its tasks' values recur in Tables 2 and 6).
        let paper = family.filter(|_| allocator == "l2norm");
        let one_size = "A sample deviation needs two sizes.";
        type Metric = fn(&[Vec<f64>]) -> Option<f64>;
        let robust: [Metric; 2] = [
            |grid| overall::om_robust(grid, Deviation::Population),
            |grid| overall::om_robust(grid, Deviation::Sample),
        ];
        let rows: [(&str, Metric, Option<f64>, Option<&str>); 4] = [
            (
                "OM_arch, as in Table 5",
                overall::om_arch_table,
                paper.map(|p| p.om_arch),
                None,
            ),
            (
                "OM_arch, Eq. 5 as written",
                overall::om_arch_eq5,
                None,
                None,
            ),
            (
                "OM_robust, population",
                robust[0],
                paper.map(|p| p.om_robust),
                Some(NO_UNIT),
            ),
            ("OM_robust, sample", robust[1], None, None),
        ];
        for (index, (metric, value, paper, incomparable)) in rows.into_iter().enumerate() {
            let ours = grid
                .clone()
                .and_then(|grid| value(&grid).ok_or_else(|| one_size.to_owned()))
                .map(|v| Measured::once(100.0 * v));
            let method = allocator_name(&allocator);
            let paper = paper.ok_or_else(|| {
                "The paper prints one value per metric, for what is taken to be L2Norm.".to_owned()
            });
            compare(
                &mut table,
                Compared {
                    head: [&method, metric],
                    begins_group: index == 0,
                    ours,
                    paper,
                    incomparable,
                    decimals: 3,
                },
            );
        }
    }
    table.notes.push(networks(&models));
    table.notes.push(
        "Ours are in percent, OM_robust in percentage points. The paper's OM_robust cannot be recomputed from print: \
         compare the order of families only."
            .to_owned(),
    );
    table
}

/// Every cell.
fn cells(suite: &Suite<'_>) -> Table {
    let mut table = Table::new(
        format!("{}_cells", suite.id),
        "All cells",
        vec![
            Column::words("Network"),
            Column::words("Pattern"),
            Column::words("Allocation"),
            Column::words("Criterion"),
            Column::words("Reconstruction"),
            Column::words("Seed"),
            Column::numbers("Top-1, %"),
            Column::numbers("Correct"),
            Column::numbers("Images"),
            Column::numbers("Prunable weights"),
            Column::numbers("Zeros"),
            Column::numbers("Zeros, %"),
            Column::numbers("Multiply-adds left, %"),
            Column::words("Key"),
        ],
    );
    for model in &suite.models {
        let mut records = model.records().to_vec();
        records.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.key.cmp(&b.key)));
        for (index, record) in records.into_iter().enumerate() {
            let sparsity = record.cell.sparsity.as_ref();
            let reconstruction = sparsity.and_then(|s| s.reconstruction.as_ref());
            let none = || "none".to_owned();
            let mut criterion = sparsity.map_or_else(none, |s| s.criterion.name.clone());
            if sparsity.is_some_and(|s| s.rule == Rule::Msbench) {
                criterion.push_str(", released counting");
            }
            let allocator = sparsity.and_then(|s| s.allocation.as_ref());
            let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
            table.push(
                index == 0,
                vec![
                    Entry::text(&model.label),
                    Entry::text(pattern(record)),
                    Entry::text(allocator.map_or_else(none, |a| allocator_name(&a.name))),
                    Entry::text(criterion),
                    Entry::text(reconstruction.map_or_else(none, configuration)),
                    Entry::text(
                        reconstruction.map_or_else(none, |r| r.calibration.seed.to_string()),
                    ),
                    Entry::number(record.score.value, 2),
                    Entry::Count(record.score.correct),
                    Entry::Count(record.score.total),
                    Entry::Count(record.cost.weights),
                    Entry::Count(record.cost.zeros),
                    Entry::number(share(record.cost.zeros, record.cost.weights), 3),
                    Entry::number(share(record.cost.sparse_macs, record.cost.macs), 2),
                    Entry::text(record.key.short()),
                ],
            );
        }
    }
    table
}

fn pattern(record: &Record) -> String {
    match record.cell.sparsity.as_ref().map(|s| s.pattern) {
        None => "dense".to_owned(),
        Some(Pattern::Unstructured { rate }) => rate_name(rate),
        Some(Pattern::NofM { n, m }) => format!("{n}:{m}"),
        Some(Pattern::TransposableNofM { n, m }) => format!("{n}:{m} transposable"),
    }
}

fn configuration(r: &Reconstruction) -> String {
    let granularity = match r.granularity {
        Granularity::Single => "single",
        Granularity::Layer => "layer",
        Granularity::Block => "block",
    };
    let inputs = match r.inputs {
        Inputs::Dense => "dense input",
        Inputs::Sparse => "sparse input",
    };
    let correction = if r.correction {
        "correction"
    } else {
        "no correction"
    };
    format!("{granularity}, {inputs}, {correction}")
}

/// Reading order of a network's cells: dense, then without and with reconstruction, by allocator, rate and configuration.
fn order(record: &Record) -> (u8, usize, &str, u64, Option<usize>, u64) {
    let Some(sparsity) = &record.cell.sparsity else {
        return (0, 0, "", 0, None, 0);
    };
    let reconstruction = sparsity.reconstruction.as_ref();
    let allocator = sparsity.allocation.as_ref().map_or("", |a| a.name.as_str());
    let place = METHODS
        .iter()
        .position(|(_, name)| *name == allocator)
        .unwrap_or(METHODS.len());
    let rate = allocation(record).map_or(0, |(_, rate)| (rate * 1e6).round() as u64);
    (
        1 + u8::from(reconstruction.is_some()),
        place,
        allocator,
        rate,
        reconstruction.and_then(|r| TRACK2.iter().position(|(_, c)| *c == Configuration::of(r))),
        reconstruction.map_or(0, |r| r.calibration.seed),
    )
}

#[cfg(test)]
mod tests {
    use super::super::{fixture, published::published, suite::suites};
    use super::*;

    fn all(records: &[Record]) -> Vec<Table> {
        let published = published().expect("part of the program");
        let words = Words::default();
        suites(records)
            .iter()
            .flat_map(|s| tables(s, &published, &words))
            .collect()
    }

    fn table<'a>(tables: &'a [Table], id: &str) -> &'a Table {
        tables
            .iter()
            .find(|t| t.id == id)
            .unwrap_or_else(|| panic!("no table {id}"))
    }

    fn row<'a>(table: &'a Table, head: [&str; 2]) -> &'a [Entry] {
        let fits =
            |entries: &[Entry]| entries[0].plain() == head[0] && entries[1].plain() == head[1];
        let row = table.rows.iter().find(|r| fits(&r.entries));
        &row.unwrap_or_else(|| panic!("no row {head:?} in {}", table.id))
            .entries
    }

    fn reason(table: &Table, entry: &Entry) -> String {
        match entry {
            Entry::Missing(index) => table.footnotes()[*index].clone(),
            other => panic!("{other:?} is not missing"),
        }
    }

    #[test]
    fn table2_compares_with_the_paper() {
        let tables = all(&fixture::records());
        let table = table(&tables, "micro_table2_cls");
        assert_eq!(table.rows.len(), 25);
        let l2norm = row(table, ["L2Norm", "80 %"]);
        assert_eq!(l2norm[3].plain(), "52.53");
        let Entry::Number {
            value: ours,
            spread: None,
            ..
        } = l2norm[2]
        else {
            panic!("{:?}", l2norm[2])
        };
        // Mean over the three networks of the fixture's A^s/A, by hand.
        let expected: f64 = [(86.2_f64, 4.0), (90.1, 5.0), (92.6, 6.0)]
            .iter()
            .map(|&(dense, resistance): &(f64, f64)| {
                let round = |top1: f64| (top1 / 100.0 * 2000.0).round() / 20.0;
                let top1 = 5.0 + (dense - 5.0) * (1.0 - 0.8_f64.powf(resistance));
                100.0 * round(top1) / round(dense) / 3.0
            })
            .sum();
        assert!((ours - expected).abs() < 1e-9, "{ours} {expected}");
        assert_eq!(l2norm[4], Entry::difference(ours - 52.53, 2));
        assert_eq!(l2norm[5], Entry::Count(1));
    }

    #[test]
    fn methods_without_records_are_dashes_with_a_reason() {
        let tables = all(&fixture::records());
        let table = table(&tables, "micro_table2_cls");
        let fcpts = row(table, ["FCPTS (ERK)", "MS"]);
        assert_eq!(
            reason(table, &fcpts[2]),
            "No record of FCPTS (ERK) in the store."
        );
        assert_eq!(fcpts[3].plain(), "94.55");
        assert_eq!(reason(table, &fcpts[4]), reason(table, &fcpts[2]));
        assert_eq!(reason(table, &fcpts[5]), reason(table, &fcpts[2]));
    }

    #[test]
    fn one_missing_network_makes_the_mean_missing() {
        let mut records = fixture::records();
        records.retain(|r| {
            !(r.cell.model == "micro_resnet20"
                && allocation(r).is_some_and(|(name, rate)| name == "erk" && rate == 0.6))
        });
        let tables = all(&records);
        let table2 = table(&tables, "micro_table2_cls");
        for head in [["ERK", "60 %"], ["ERK", "MS"]] {
            let entries = row(table2, head);
            assert_eq!(
                reason(table2, &entries[2]),
                "No record: micro_resnet20, erk at 60 %.",
                "{head:?}"
            );
        }
        assert!(matches!(
            row(table2, ["ERK", "70 %"])[2],
            Entry::Number { .. }
        ));
        assert!(matches!(
            row(table2, ["L2Norm", "60 %"])[2],
            Entry::Number { .. }
        ));
    }

    #[test]
    fn table4_has_runs_and_their_spread() {
        let records = fixture::records();
        let tables = all(&records);
        let table4 = table(&tables, "micro_table4_cls");
        assert_eq!(table4.rows.len(), 14);
        let base = row(table4, ["w/ Correction", "70 %"]);
        for twin in ["Sparse Input", "Layer-wise"] {
            assert_eq!(base[2], row(table4, [twin, "70 %"])[2]);
        }
        let Entry::Number {
            value,
            spread: Some(spread),
            ..
        } = base[2]
        else {
            panic!("{:?}", base[2])
        };
        assert_eq!(base[5], Entry::Count(2));
        let score = |reconstructed: bool, seed: u64| {
            let fits = |r: &&Record| {
                let Some(s) = r
                    .cell
                    .sparsity
                    .as_ref()
                    .filter(|_| r.cell.model == "micro_resnet14")
                else {
                    return false;
                };
                let found = s
                    .reconstruction
                    .as_ref()
                    .map(|r| (Configuration::of(r), r.calibration.seed));
                let asked = reconstructed.then_some((TRACK2[0].1, seed));
                allocation(r) == Some(("l2norm", 0.7)) && found == asked
            };
            records
                .iter()
                .find(fits)
                .expect("in the fixture")
                .score
                .value
        };
        let before = score(false, 0);
        let gains = [0, 1].map(|seed| 100.0 * (score(true, seed) - before) / before);
        assert!((value - (gains[0] + gains[1]) / 2.0).abs() < 1e-9);
        assert!((spread - (gains[0] - gains[1]).abs() / 2.0_f64.sqrt()).abs() < 1e-9);
        assert!(
            table4
                .notes
                .iter()
                .any(|n| n.contains("only 70 % and 80 % were run")),
            "{:?}",
            table4.notes
        );
        assert!(
            table4
                .notes
                .iter()
                .any(|n| n.contains("Adam at learning rate 0.0005, biases alike, for 100 steps"))
        );
    }

    #[test]
    fn a_loss_is_floored_in_table4_alone() {
        let mut records = fixture::records();
        for record in &mut records {
            let reconstructed = record
                .cell
                .sparsity
                .as_ref()
                .is_some_and(|s| s.reconstruction.is_some());
            if reconstructed {
                record.score.value = 1.0;
            }
        }
        let tables = all(&records);
        let floored = &row(table(&tables, "micro_table4_cls"), ["Single", "80 %"])[2];
        assert!(
            matches!(floored, Entry::Number { value: 0.0, .. }),
            "{floored:?}"
        );
        let plain = &row(table(&tables, "micro_table4_bases"), ["Single", "80 %"])[2];
        assert!(
            matches!(plain, Entry::Number { value, .. } if *value < -50.0),
            "{plain:?}"
        );
    }

    #[test]
    fn the_compact_table_has_the_same_values() {
        let tables = all(&fixture::records());
        let long = table(&tables, "micro_table2_cls");
        let compact = table(&tables, "micro_table2_cls_compact");
        assert_eq!(compact.rows.len(), 10);
        for (index, rate) in ["50 %", "60 %", "70 %", "80 %", "MS"]
            .into_iter()
            .enumerate()
        {
            for (source, place) in [("ours", 2), ("paper", 3)] {
                let short = &row(compact, ["ERK", source])[2 + index];
                assert_eq!(*short, row(long, ["ERK", rate])[place]);
            }
        }
        let missing = &row(compact, ["FCPTS (ERK)", "ours"])[2];
        assert_eq!(
            reason(compact, missing),
            "No record of FCPTS (ERK) in the store."
        );
    }

    #[test]
    fn what_has_no_unit_is_not_subtracted() {
        let tables = all(&fixture::records());
        let overall = table(&tables, "micro_track4_overall");
        let robust = row(overall, ["L2Norm", "OM_robust, population"]);
        assert_eq!(robust[3].plain(), "0.286");
        assert_eq!(reason(overall, &robust[4]), NO_UNIT);
    }

    #[test]
    fn every_record_is_in_the_table_of_cells() {
        let records = fixture::records();
        let tables = all(&records);
        assert_eq!(table(&tables, "micro_cells").rows.len(), records.len());
    }

    #[test]
    fn the_order_of_records_does_not_matter() {
        let mut records = fixture::records();
        let tables = all(&records);
        records.reverse();
        assert_eq!(all(&records), tables);
    }

    #[test]
    fn plan_notes_stand_under_every_table() {
        let published = published().expect("part of the program");
        let words = Words {
            plan: Some("micro".to_owned()),
            notes: vec!["From the plan.".to_owned()],
        };
        let records = fixture::records();
        for suite in suites(&records) {
            for table in tables(&suite, &published, &words) {
                assert!(
                    table.notes.contains(&"From the plan.".to_owned()),
                    "{}",
                    table.id
                );
                assert!(
                    table
                        .notes
                        .contains(&"Limited run: 2000 of 4000 images.".to_owned())
                );
            }
        }
    }
}

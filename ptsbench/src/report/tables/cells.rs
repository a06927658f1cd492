//! The plain table of every cell.

use indexmap::IndexSet;

use super::super::suite::{Configuration, Model, Suite, allocation, level};
use super::super::table::{Column, Entry, Table};
use super::super::{METHODS, TRACK2, allocator_name};
use super::{NOT_COUNTED, entry, rate_name};
use crate::cell::{CorrectionCell, Inputs, Pattern, Reconstruction, Rule};
use crate::nofm::left_dense;
use crate::record::Record;

/// Every cell.
pub(super) fn cells(suite: &Suite<'_>) -> Table {
    let mut columns = describing_columns();
    columns.extend([
        Column::numbers(suite.metric()),
        Column::numbers("Correct"),
        Column::numbers("Images"),
        Column::numbers("Prunable weights"),
        Column::numbers("Zeros"),
        Column::numbers("Zeros, %"),
        Column::numbers("Multiply-adds left, %"),
        Column::words("Key"),
    ]);
    let mut table = Table::new(format!("{}_cells", suite.id), "All cells", columns);
    for model in suite.all_models() {
        for (index, record) in in_order(model).into_iter().enumerate() {
            let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
            let mut entries = describing(model, record);
            entries.extend([
                entry(&mut table, level(record), 2),
                correct(&mut table, record),
                Entry::Count(record.score.counts.total()),
                Entry::Count(record.cost.weights),
                Entry::Count(record.cost.zeros),
                Entry::number(share(record.cost.zeros, record.cost.weights), 3),
                Entry::number(share(record.cost.sparse_macs, record.cost.macs), 2),
                Entry::text(record.key.short()),
            ]);
            table.push(index == 0, entries);
        }
    }
    table.notes.extend(left_dense_notes(suite));
    table.notes.extend(search_notes(suite));
    table.notes.extend(training_notes(suite));
    table
}

fn correct(table: &mut Table, record: &Record) -> Entry {
    match record.score.counts.correct() {
        Some(correct) => Entry::Count(correct),
        None => table.missing(NOT_COUNTED),
    }
}

/// The columns of what [`describing`] says.
pub(super) fn describing_columns() -> Vec<Column> {
    let names = [
        "Network",
        "Pattern",
        "Allocation",
        "Criterion",
        "Reconstruction",
        "Seed",
    ];
    names.map(Column::words).to_vec()
}

/// What was measured, in words.
pub(super) fn describing(model: &Model<'_>, record: &Record) -> Vec<Entry> {
    let sparsity = record.cell.sparsity.as_ref();
    let reconstruction = sparsity.and_then(|s| s.reconstruction.as_ref());
    let none = || "none".to_owned();
    let mut criterion = sparsity.map_or_else(none, |s| s.criterion.to_string());
    if sparsity.is_some_and(|s| s.rule == Rule::Msbench) {
        criterion.push_str(", released counting");
    }
    let allocator = sparsity.and_then(|s| s.allocation.as_ref());
    vec![
        Entry::text(&model.label),
        Entry::text(pattern(record)),
        Entry::text(allocator.map_or_else(none, |a| allocator_name(&a.name))),
        Entry::text(criterion),
        Entry::text(reconstruction.map_or_else(none, configuration)),
        Entry::text(reconstruction.map_or_else(none, |r| r.calibration.seed.to_string())),
    ]
}

/// A network's records in reading order.
pub(super) fn in_order<'a>(model: &Model<'a>) -> Vec<&'a Record> {
    let mut records: Vec<&Record> = model.own_records().collect();
    records.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.key.cmp(&b.key)));
    records
}

/// Why an N:M pattern came to fewer zeros than its numbers say, once for each network and pattern.
fn left_dense_notes(suite: &Suite<'_>) -> IndexSet<String> {
    let mut notes = IndexSet::new();
    for model in suite.all_models() {
        for record in model.own_records() {
            let Some(sparsity) = &record.cell.sparsity else {
                continue;
            };
            let left = left_dense(&record.layers, sparsity.pattern);
            if !left.is_empty() {
                notes.insert(format!(
                    "{}: {}, since their channels are not divisible by its group; Zeros, % is over all layers.",
                    model.label,
                    left.summary()
                ));
            }
        }
    }
    notes
}

/// All records with their networks' labels.
fn labelled<'a>(suite: &'a Suite<'_>) -> impl Iterator<Item = (&'a String, &'a Record)> {
    suite.all_models().flat_map(|model| {
        model
            .own_records()
            .map(move |record| (&model.label, record))
    })
}

/// How each training of a whole network went.
fn training_notes<'a>(suite: &'a Suite<'_>) -> impl Iterator<Item = String> + 'a {
    labelled(suite).filter_map(|(model, record)| {
        let curve = record.training.as_ref()?;
        let (rate, key) = (pattern(record), record.key.short());
        Some(format!("{model}, {rate}, {key}: training had {curve}."))
    })
}

/// How each search for an allocation went.
fn search_notes<'a>(suite: &'a Suite<'_>) -> impl Iterator<Item = String> + 'a {
    labelled(suite).filter_map(|(model, record)| {
        let search = record.search.as_ref()?;
        let (rate, key) = (pattern(record), record.key.short());
        Some(format!(
            "{model}, {rate}, {key}: the search for the allocation had {search}."
        ))
    })
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
    let granularity = r.granularity.name();
    let inputs = match r.inputs {
        Inputs::Dense => "dense input",
        Inputs::Sparse => "sparse input",
    };
    let correction = match &r.correction {
        CorrectionCell::Off => "no correction".to_owned(),
        on => on.to_string().replacen("corrected", "correction", 1),
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
        reconstruction.and_then(|r| {
            TRACK2
                .iter()
                .position(|(_, c)| Some(*c) == Configuration::of(r))
        }),
        reconstruction.map_or(0, |r| r.calibration.seed),
    )
}

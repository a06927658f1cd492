//! The tables of a suite: the paper's with ours beside them, and plain ones. One file per track, shared pieces here.
//!
//! Every value is in percent. Where the paper's table has no value, or we have no record, the entry is missing with its
//! reason; timing and environment never appear, so that equal plans give equal bytes.

use super::Words;
use super::published::{MethodRow, Published, percent};
use super::suite::{Found, Measured, Model, Suite, Task};
use super::table::{Column, Entry, Row, Table};
use crate::statistics::mean;

mod across;
mod cells;
mod corrections;
mod methods;
mod norms;
mod rankings;
mod shipped;
mod track1;
mod track2;
mod track4;
mod variants;

pub use across::across;
pub use shipped::shipped;
pub use track1::over_draws;
pub use track2::top1_after;
pub use track4::mean_loss;

const SPREAD: &str = "± is the sample standard deviation over seeds; a value without it comes from one run. \
                      Differences are ours minus the paper's, in points, taken before rounding.";

/// Why a score has no number of right samples.
const NOT_COUNTED: &str = "The metric does not count right samples.";

/// All tables of a suite, in the order of the report. A table none of whose rows has a record is left out.
pub fn tables(suite: &Suite<'_>, published: &Published, words: &Words) -> Vec<Table> {
    let mut tables = Vec::new();
    if !suite.allocators(false).is_empty() {
        let table = track1::table2(suite, published);
        tables.push(compact(&table, Vec::new()));
        tables.push(table);
    }
    for allocator in suite.allocators(true) {
        let table = track2::table4(suite, published, &allocator);
        tables.push(compact(&table, track2::fit_notes(suite, &allocator)));
        tables.push(table);
        if suite.kind() != Task::Generation {
            tables.push(track2::table4_bases(suite, &allocator));
        }
        tables.push(track2::table4_top1(suite, &allocator));
    }
    if !suite.allocators(false).is_empty() {
        if suite.kind() == Task::Classification {
            tables.push(track4::table5(suite, published));
        }
        tables.push(track4::sizes(suite));
    }
    let more = [
        rankings::table7(suite, published),
        variants::variants(suite),
        norms::kept_and_folded(suite),
        methods::methods(suite),
        corrections::corrections(suite),
    ];
    tables.extend(more.into_iter().filter(|table| !table.rows.is_empty()));
    tables.push(cells::cells(suite));
    for table in &mut tables {
        table.notes.extend(suite_notes(suite, words));
    }
    tables
}

/// What stands under every table of a suite.
fn suite_notes(suite: &Suite<'_>, words: &Words) -> Vec<String> {
    let mut notes = words.notes(&[&suite.task.name]);
    let limited = suite
        .records()
        .map(|record| &record.score.counts)
        .find(|counts| counts.total() < counts.available());
    if let Some(counts) = limited {
        notes.push(format!(
            "Limited run: {} of {} images.",
            counts.total(),
            counts.available()
        ));
    }
    notes
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
    mean(&values).ok_or_else(|| "No network.".to_owned())
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
            let missing = |row: &&Row| matches!(row.entries[place], Entry::Missing(_));
            // A method that the paper does not have needs no row of dashes.
            if source == "paper" && rows.iter().all(|row| missing(&row)) {
                continue;
            }
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

pub(super) fn plural(count: usize, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

fn printed_rate(row: Option<&MethodRow>, task: Task, rate: f64) -> Found<f64> {
    row.and_then(|row| row.block(task).rates.get(&percent(rate)).copied())
        .ok_or_else(|| "Not printed in the paper.".to_owned())
}

fn printed_ms(row: Option<&MethodRow>, task: Task) -> Found<f64> {
    row.map(|row| row.block(task).ms)
        .ok_or_else(|| "Not printed in the paper.".to_owned())
}

#[cfg(test)]
mod tests;

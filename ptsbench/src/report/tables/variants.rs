//! Networks that differ in one respect, side by side: distillation, the scale of pre-training, squeeze and excitation.

use std::collections::BTreeMap;

use model_zoo::catalog::{VARIANTS, Variant};

use super::super::suite::{Found, Model, Suite, level};
use super::super::table::{Column, Entry, Table};
use super::super::{METHODS, allocator_name};
use super::{NOT_COUNTED, entry, rate_name};
use crate::overall;
use crate::record::Record;
use crate::statistics;

/// A group of rows for each allocator of the paper and network that others are compared with.
pub(super) fn variants(suite: &Suite<'_>) -> Table {
    let mut columns = vec![
        Column::words("Method"),
        Column::words("Network"),
        Column::words("Differs by"),
        Column::numbers("Dense top-1"),
    ];
    let rates = overall::RATES.iter();
    columns.extend(rates.map(|&rate| Column::numbers(rate_name(rate))));
    columns.extend(["Mean", "Difference", "Standard error"].map(Column::numbers));
    let mut table = Table::new(
        format!("{}_variants", suite.id),
        "Networks that differ in one respect: relative accuracy without reconstruction, 100 \u{d7} sparse/dense",
        columns,
    );
    let allocators = suite.allocators(false).into_iter();
    for allocator in allocators.filter(|name| METHODS.iter().any(|(_, known)| known == name)) {
        for (base, variants) in groups(suite, &allocator) {
            let of_base = mean_and_error(base, &allocator);
            push(&mut table, (base, ""), &allocator, None);
            for (model, by) in variants {
                let difference = mean_and_error(model, &allocator).and_then(|(mean, error)| {
                    let (base, error_of_base) = of_base.clone()?;
                    Ok([mean - base, error.hypot(error_of_base)])
                });
                push(&mut table, (model, by), &allocator, Some(difference));
            }
        }
    }
    table.notes.push(
        "Differences are of the means over 50-80 %, in points; their standard errors are those of counting images, and at \
         most so large, since both networks see the same ones. Each network was trained once: how much another seed of \
         training would change is not in them."
            .to_owned(),
    );
    table
}

type Group<'s, 'a> = (&'s Model<'a>, Vec<(&'s Model<'a>, &'static str)>);

/// Networks that others are compared with, and those, as far as all rates were measured.
fn groups<'s, 'a>(suite: &'s Suite<'a>, allocator: &str) -> Vec<Group<'s, 'a>> {
    let find = |name: &str| {
        let model = suite.models.iter().find(|model| model.label == name);
        model.filter(|model| model.relatives(allocator).is_ok())
    };
    let mut groups: BTreeMap<usize, Group<'s, 'a>> = BTreeMap::new();
    for Variant { name, of, by } in VARIANTS {
        let place = suite.models.iter().position(|model| model.label == *of);
        if let (Some(place), Some(base), Some(model)) = (place, find(of), find(name)) {
            let (_, variants) = groups.entry(place).or_insert((base, Vec::new()));
            variants.push((model, by));
        }
    }
    groups.into_values().collect()
}

fn push(
    table: &mut Table,
    (model, by): (&Model<'_>, &str),
    allocator: &str,
    difference: Option<Found<[f64; 2]>>,
) {
    let mut entries = vec![
        Entry::text(allocator_name(allocator)),
        Entry::text(&model.label),
        Entry::text(by),
    ];
    let dense = model.dense().and_then(level);
    entries.push(entry(table, dense, 2));
    for rate in overall::RATES {
        let value = model.relative(allocator, rate).map(|v| 100.0 * v);
        entries.push(entry(table, value, 2));
    }
    let mean = mean_and_error(model, allocator).map(|(mean, _)| mean);
    entries.push(entry(table, mean, 2));
    match difference {
        None => entries.extend([Entry::text(""), Entry::text("")]),
        Some(Ok([difference, error])) => {
            entries.extend([Entry::difference(difference, 2), Entry::number(error, 2)])
        }
        Some(Err(reason)) => entries.extend([table.missing(&reason), table.missing(reason)]),
    }
    table.push(by.is_empty(), entries);
}

/// The mean relative accuracy over the rates of the overall metrics, and its standard error, in percent.
fn mean_and_error(model: &Model<'_>, allocator: &str) -> Found<(f64, f64)> {
    let relatives = model.relatives(allocator)?;
    let dense = model.dense()?;
    let mut errors = Vec::new();
    for rate in overall::RATES {
        let of_rate = model.pruned(allocator, rate)?;
        errors.push(error(of_rate[0], dense).ok_or(NOT_COUNTED)?);
    }
    // The same images at every rate: their errors go together, and the mean of them is the most that theirs can be.
    let mean = |values: &[f64]| 100.0 * statistics::mean(values).unwrap_or_default();
    Ok((mean(&relatives), mean(&errors)))
}

/// Standard error of `A^s / A`, as if the two had seen different images.
fn error(sparse: &Record, dense: &Record) -> Option<f64> {
    let share = |record: &Record| {
        let counts = &record.score.counts;
        let images = counts.total().max(1) as f64;
        let right = counts.correct()? as f64 / images;
        Some((right, right * (1.0 - right) / images))
    };
    let ((s, of_s), (d, of_d)) = (share(sparse)?, share(dense)?);
    Some(((of_s + (s / d).powi(2) * of_d) / d.powi(2)).sqrt())
}

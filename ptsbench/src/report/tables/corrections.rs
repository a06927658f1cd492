//! Error correction taken apart: its steps, statistics and groups of layers, wherever records hold more than on and off.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::super::allocator_name;
use super::super::suite::{Found, Measured, Model, Suite, allocation, value};
use super::super::table::{Column, Entry, Table};
use super::{SPREAD, entry, measured, rate_name, runs};
use crate::cell::{CorrectionCell, Optimizer, Reconstruction};
use crate::record::Record;

/// Scores by seed.
type Runs<'a> = BTreeMap<u64, &'a Record>;

/// What was corrected in all the ways that there are records of, and is alike in everything else.
struct Group<'a> {
    allocator: Cow<'a, str>,
    rate: f64,
    base: &'a Reconstruction,
    /// Off first, then all of Eq. 1, then what differs from it.
    ways: BTreeMap<(u8, String), Runs<'a>>,
}

/// A group of rows for each network, allocator, rate and way of fitting.
pub(super) fn corrections(suite: &Suite<'_>) -> Table {
    let mut columns = ["Network", "Method", "Rate", "Fit", "Correction"]
        .map(Column::words)
        .to_vec();
    columns.extend([
        Column::numbers("Before"),
        Column::measured("After"),
        Column::numbers("Against none"),
        Column::numbers("Runs"),
    ]);
    let mut table = Table::new(
        format!("{}_corrections", suite.id),
        format!("Error correction, taken apart: {}", suite.metric()),
        columns,
    );
    for model in &suite.models {
        for group in groups(model) {
            let none = group.ways.iter().find(|((place, _), _)| *place == 0);
            let none = match none {
                Some((_, runs)) => score(runs),
                None => Err("No record: without correction.".to_owned()),
            };
            for (index, ((_, way), records)) in group.ways.iter().enumerate() {
                let mut entries = vec![
                    Entry::text(&model.label),
                    Entry::text(allocator_name(&group.allocator)),
                    Entry::text(rate_name(group.rate)),
                    Entry::text(fit(group.base)),
                    Entry::text(way),
                ];
                let before = model.pruned_level(&group.allocator, group.rate);
                entries.push(entry(&mut table, before, 2));
                let after = score(records);
                entries.push(measured(&mut table, &after, 2));
                entries.push(match (&after, &none) {
                    (Ok(after), Ok(none)) => Entry::difference(after.value - none.value, 2),
                    (Err(reason), _) | (_, Err(reason)) => table.missing(reason),
                });
                entries.push(runs(&mut table, &after));
                table.push(index == 0, entries);
            }
        }
    }
    table.notes.push(
        "Against none: after, less what the same fit comes to without correction. A fit at learning rate 0 shows the \
         correction alone."
            .to_owned(),
    );
    table
        .notes
        .push(SPREAD.split("; ").next().unwrap_or(SPREAD).to_owned() + ".");
    table
}

/// The groups of a network in which some correction has options.
fn groups<'a>(model: &Model<'a>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for record in model.records().iter().copied() {
        let sparsity = record.cell.sparsity.as_ref();
        let fitted = sparsity.and_then(|sparsity| sparsity.reconstruction.as_ref());
        let (Some((allocator, rate)), Some(fitted)) = (allocation(record), fitted) else {
            continue;
        };
        let of = groups.iter().position(|group| {
            (&group.allocator, group.rate) == (&allocator, rate) && alike(group.base, fitted)
        });
        let of = of.unwrap_or_else(|| {
            groups.push(Group {
                allocator,
                rate,
                base: fitted,
                ways: BTreeMap::new(),
            });
            groups.len() - 1
        });
        let runs = groups[of].ways.entry(way(&fitted.correction)).or_default();
        runs.insert(fitted.calibration.seed, record);
    }
    groups.retain(|group| group.ways.keys().any(|(place, _)| *place == 2));
    groups.sort_by(|a, b| {
        let place = |group: &Group<'_>| (group.allocator.to_string(), fit(group.base));
        a.rate
            .total_cmp(&b.rate)
            .then_with(|| place(a).cmp(&place(b)))
    });
    groups
}

/// Whether two reconstructions differ in nothing but correction and seed.
fn alike(a: &Reconstruction, b: &Reconstruction) -> bool {
    let plain = |r: &Reconstruction| {
        let mut r = r.clone();
        r.correction = CorrectionCell::Off;
        r.calibration.seed = 0;
        r.calibration.list = None;
        r
    };
    plain(a) == plain(b)
}

/// A correction's place among others, and its words.
fn way(correction: &CorrectionCell) -> (u8, String) {
    match (correction.as_plain(), correction.options()) {
        (Some(false), _) | (_, None) => (0, "none".to_owned()),
        (Some(true), _) => (1, "all of it".to_owned()),
        (None, Some(changed)) => (2, changed.changed()),
    }
}

fn fit(r: &Reconstruction) -> String {
    let (Optimizer::Adam { lr, bias_lr } | Optimizer::Sgd { lr, bias_lr, .. }) = r.fit.optimizer;
    match lr == 0.0 && bias_lr == 0.0 {
        true => "none".to_owned(),
        false => format!("{}, {} steps", r.granularity.name(), r.fit.steps),
    }
}

fn score(runs: &Runs<'_>) -> Found<Measured> {
    let values: Vec<f64> = runs.values().map(|r| value(r)).collect::<Found<_>>()?;
    Measured::over(&values).ok_or_else(|| "No record.".to_owned())
}

//! Tracks 3 and 4, architectures and sizes: relative accuracy by size and the overall metrics of Table 5.

use super::super::allocator_name;
use super::super::published::{Published, percent};
use super::super::suite::{Found, Model, Suite, Task, is_near_guessing, level};
use super::super::table::{Column, Entry, Table};
use super::{entry, networks, over_models, rate_name};
use crate::overall;
use crate::statistics::Deviation;

pub(super) const NO_UNIT: &str = "OM_arch is in percent, OM_robust in percentage points. The paper does not state the unit of its \
                                  OM_robust, which cannot be recomputed from print: compare the order of families only.";

/// Track 4, one row per size.
pub(super) fn sizes(suite: &Suite<'_>) -> Table {
    let mut columns = vec![
        Column::words("Method"),
        Column::words("Family"),
        Column::words("Network"),
        Column::numbers("Prunable weights"),
        Column::numbers(format!("Dense: {}", suite.metric())),
    ];
    columns.extend(
        overall::RATES
            .iter()
            .map(|&rate| Column::numbers(rate_name(rate))),
    );
    columns.push(Column::numbers("Mean loss"));
    let guesses = suite.kind() == Task::Classification;
    if guesses {
        columns.push(Column::words("Near guessing at"));
    }
    let mut table = Table::new(
        sizes_id(suite),
        format!(
            "Track 4: {} by size without reconstruction, {}, and its mean loss over 50-80 %",
            suite.kind().ratio(),
            suite.kind().formula()
        ),
        columns,
    );
    for allocator in suite.allocators(false) {
        let families = suite.pruned_families().into_iter();
        let models = families.flat_map(|(_, models)| models);
        let models = models.filter(|model| model.has(&allocator));
        for (index, model) in models.enumerate() {
            let dense = model.dense().and_then(level);
            let mut entries = vec![
                Entry::text(allocator_name(&allocator)),
                Entry::text(model.family),
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
            if guesses {
                entries.push(Entry::text(near_guessing(model, &allocator)));
            }
            table.push(index == 0, entries);
        }
    }
    if guesses {
        table.notes.extend([
            "The paper shows these losses in Fig. 4 without numbers.".to_owned(),
            "Near guessing: not two standard errors above the accuracy of a guess among the classes."
                .to_owned(),
        ]);
    }
    table
}

/// The table's name.
pub(super) fn sizes_id(suite: &Suite<'_>) -> String {
    format!("{}_track4_sizes", suite.id)
}

/// The rates at which a network does no better, or worse, than a guess.
fn near_guessing(model: &Model<'_>, allocator: &str) -> String {
    let near = |rate: &&f64| {
        let found = model.pruned(allocator, **rate).unwrap_or_default();
        found.iter().any(|r| is_near_guessing(r) == Some(true))
    };
    let rates: Vec<String> = overall::RATES
        .iter()
        .filter(near)
        .map(|r| percent(*r))
        .collect();
    match rates.is_empty() {
        true => String::new(),
        false => format!("{} %", rates.join(", ")),
    }
}

/// Mean relative accuracy loss over 50-80 % (Fig. 4), in percent.
pub fn mean_loss(model: &Model<'_>, allocator: &str) -> Found<f64> {
    let relatives = model.relatives(allocator)?;
    overall::mean_relative_loss(&relatives)
        .map(|v| 100.0 * v)
        .ok_or_else(|| "No rate.".to_owned())
}

/// Table 5: a row per allocator and family.
pub(super) fn table5(suite: &Suite<'_>, published: &Published) -> Table {
    let families = suite.pruned_families();
    let mut columns = vec![
        Column::words("Method"),
        Column::words("Family"),
        Column::numbers("Sizes"),
    ];
    let rates = overall::RATES.iter();
    columns.extend(rates.map(|&rate| Column::numbers(rate_name(rate))));
    columns.extend(
        [
            "OM_arch",
            "Paper",
            "Difference",
            "OM_arch, Eq. 5",
            "OM_robust, population",
            "OM_robust, sample",
            "OM_robust, paper",
        ]
        .map(Column::numbers),
    );
    let mut table = Table::new(
        format!("{}_table5", suite.id),
        "Table 5, Tracks 3 and 4: families without reconstruction, 100 \u{d7} sparse/dense, mean over sizes",
        columns,
    );
    for allocator in suite.allocators(false) {
        let of_allocator = families
            .iter()
            .filter(|(_, models)| models.iter().any(|model| model.has(&allocator)));
        for (index, (family, models)) in of_allocator.enumerate() {
            let grid: Found<Vec<Vec<f64>>> =
                models.iter().map(|m| m.relatives(&allocator)).collect();
            let of_grid = |value: &dyn Fn(&[Vec<f64>]) -> Found<f64>| {
                grid.clone()
                    .and_then(|grid| value(&grid))
                    .map(|v| 100.0 * v)
            };
            let om_arch = of_grid(&|grid| overall::om_arch_table(grid).ok_or_else(no_size));
            let robust = |deviation| {
                of_grid(&|grid| match grid.len() {
                    1 => Err("A deviation needs two sizes.".to_owned()),
                    _ => overall::om_robust(grid, deviation).ok_or_else(no_size),
                })
            };
            // Table 5 is Track 1's L2Norm setting (its tasks' values recur in Tables 2 and 6).
            let paper = if allocator == "l2norm" {
                published
                    .family(family)
                    .ok_or_else(|| "The paper has no such family.".to_owned())
            } else {
                Err(
                    "The paper prints one value per metric, for what is taken to be L2Norm."
                        .to_owned(),
                )
            };
            let mut values = vec![];
            for &rate in &overall::RATES {
                values.push((
                    over_models(models, |m| m.relative(&allocator, rate)).map(|v| 100.0 * v),
                    2,
                ));
            }
            values.push((om_arch.clone(), 2));
            values.push((paper.clone().map(|p| p.om_arch), 2));
            let mut entries = vec![
                Entry::text(allocator_name(&allocator)),
                Entry::text(*family),
                Entry::Count(models.len() as u64),
            ];
            for (value, decimals) in values {
                entries.push(entry(&mut table, value, decimals));
            }
            entries.push(match (&om_arch, &paper) {
                (Ok(ours), Ok(paper)) => Entry::difference(ours - paper.om_arch, 2),
                (Err(reason), _) | (_, Err(reason)) => table.missing(reason),
            });
            let rest = [
                of_grid(&|grid| overall::om_arch_eq5(grid).ok_or_else(no_size)),
                robust(Deviation::Population),
                robust(Deviation::Sample),
                paper.map(|p| p.om_robust),
            ];
            for (place, value) in rest.into_iter().enumerate() {
                entries.push(entry(&mut table, value, if place == 0 { 2 } else { 3 }));
            }
            table.push(index == 0, entries);
        }
    }
    for (family, models) in &families {
        table.notes.push(format!("{family}. {}", networks(models)));
    }
    table.notes.push(NO_UNIT.to_owned());
    table
}

fn no_size() -> String {
    "No size.".to_owned()
}

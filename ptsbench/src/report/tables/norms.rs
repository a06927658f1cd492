//! Batch norms kept and folded, for the networks of a suite that were pruned both ways.

use super::super::allocator_name;
use super::super::suite::{Found, NORMS_FOLDED, Suite};
use super::super::table::{Column, Entry, Table};
use super::{entry, rate_name};
use crate::overall;
use crate::statistics;

/// Two rows for each allocator and network.
pub(super) fn kept_and_folded(suite: &Suite<'_>) -> Table {
    let mut columns = ["Method", "Network", "Batch norms"]
        .map(Column::words)
        .to_vec();
    let rates = overall::RATES.iter();
    columns.extend(rates.map(|&rate| Column::numbers(rate_name(rate))));
    columns.push(Column::numbers("Mean"));
    let mut table = Table::new(
        format!("{}_batch_norm", suite.id),
        "Batch norms kept or folded before anything is chosen: relative accuracy without reconstruction, 100 \u{d7} \
         sparse/dense",
        columns,
    );
    for allocator in suite.allocators(false) {
        for folded in &suite.folded {
            let label = folded.label.strip_suffix(NORMS_FOLDED);
            let kept = suite
                .models
                .iter()
                .find(|model| Some(&*model.label) == label);
            let Some(kept) = kept.filter(|_| folded.has(&allocator)) else {
                continue;
            };
            for (model, norms) in [(kept, "kept"), (folded, "folded")] {
                let mut entries = vec![
                    Entry::text(allocator_name(&allocator)),
                    Entry::text(&kept.label),
                    Entry::text(norms),
                ];
                let values = overall::RATES.map(|rate| model.relative(&allocator, rate));
                let mean: Found<Vec<f64>> = values.iter().cloned().collect();
                let mean = mean.map(|values| statistics::mean(&values).unwrap_or_default());
                for value in values.into_iter().chain([mean]) {
                    entries.push(entry(&mut table, value.map(|v| 100.0 * v), 2));
                }
                table.push(norms == "kept", entries);
            }
        }
    }
    table.notes.push(
        "All other tables of this suite keep them. Folded, a weight is multiplied by its channel's scale over its \
         deviation before it is compared with others."
            .to_owned(),
    );
    table
}

//! Tracks 3 and 4, architectures and sizes: relative accuracy by size and the overall metrics of Table 5.

use super::super::allocator_name;
use super::super::published::Published;
use super::super::suite::{Found, Measured, Model, Suite};
use super::super::table::{Column, Entry, Table};
use super::{Compared, compare, entry, networks, plural, rate_name};
use crate::overall::{self, Deviation};

pub(super) const NO_UNIT: &str = "The paper does not state the unit of OM_robust.";

/// Track 4, one row per size.
pub(super) fn sizes(suite: &Suite<'_>) -> Table {
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
pub(super) fn overall_metrics(suite: &Suite<'_>, published: &Published) -> Table {
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

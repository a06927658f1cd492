//! Track 1, sparsity allocation: Table 2 of the paper.

use super::super::METHODS;
use super::super::published::Published;
use super::super::suite::{Found, Measured, Suite};
use super::super::table::Table;
use super::{
    Compared, SPREAD, compare, compared_columns, networks, over_models, plural, printed_ms,
    printed_rate, rate_name,
};
use crate::overall;

/// Table 2, classification block.
pub(super) fn table2(suite: &Suite<'_>, published: &Published) -> Table {
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
        let ours = |relative: &dyn Fn() -> Found<f64>| {
            if !known.iter().any(|name| name == allocator) {
                return Err(absent());
            }
            relative().map(|v| Measured::once(100.0 * v))
        };
        for (index, &rate) in overall::RATES.iter().enumerate() {
            compare(
                &mut table,
                Compared {
                    head: [method, &rate_name(rate)],
                    begins_group: index == 0,
                    ours: ours(&|| over_models(&models, |m| m.relative(allocator, rate))),
                    paper: printed_rate(paper, rate),
                    incomparable: None,
                    decimals: 2,
                },
            );
        }
        let ms = || {
            let grid: Found<Vec<Vec<f64>>> =
                models.iter().map(|m| m.relatives(allocator)).collect();
            overall::ms(&grid?).ok_or_else(absent)
        };
        compare(
            &mut table,
            Compared {
                head: [method, "MS"],
                begins_group: false,
                ours: ours(&ms),
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

//! Track 1, sparsity allocation: Table 2 of the paper.

use std::collections::BTreeMap;

use super::super::groups::{group, ms_rates};
use super::super::published::Published;
use super::super::suite::{Found, Measured, Model, Suite, Task, is_near_guessing};
use super::super::table::Table;
use super::super::{DENSE_WEIGHTS, METHODS, allocator_name};
use super::track4::sizes_id;
use super::{
    Compared, SPREAD, compare, compared_columns, networks, plural, printed_ms, printed_rate,
    rate_name,
};
use crate::overall;

/// Table 2, the block of the suite's task, and allocators that it lacks.
pub(super) fn table2(suite: &Suite<'_>, published: &Published) -> Table {
    let (models, task) = (suite.pruned_models(), suite.kind());
    let mut table = Table::new(
        format!("{}_table2_{}", suite.id, task.name().to_lowercase()),
        format!(
            "Table 2, {}: {} of the allocators without reconstruction, {}, mean over {}",
            task.name(),
            task.ratio(),
            task.formula(),
            plural(models.len(), "network")
        ),
        compared_columns("Method"),
    );
    let known = suite.allocators(false);
    for (method, allocator) in methods(&known, &models) {
        // Which weights the paper's rows keep, it does not say; both readings are compared with them.
        let paper = published.allocation(method.strip_suffix(DENSE_WEIGHTS).unwrap_or(&method));
        let mut row =
            |name: &str, rates: &[f64], of: &dyn Fn(&[Vec<f64>]) -> Option<f64>, paper| {
                let ours = if known.contains(&allocator) {
                    over_draws(&models, &allocator, rates, of)
                } else {
                    Err(format!("No record of {method} in the store."))
                };
                compare(
                    &mut table,
                    Compared {
                        head: [&method, name],
                        begins_group: name != "MS" && rates == &overall::RATES[..1],
                        ours,
                        paper,
                        incomparable: None,
                        decimals: 2,
                    },
                );
            };
        for rate in overall::RATES {
            let paper = printed_rate(paper, task, rate);
            row(&rate_name(rate), &[rate], &overall::expectation, paper);
        }
        let (rates, paper) = (ms_rates(task), printed_ms(paper, task));
        row("MS", rates, &overall::ms, paper);
    }
    table.notes.push(format!("{} {SPREAD}", networks(&models)));
    table.notes.push(format!(
        "MS is the quadratic mean over networks of each network's mean over {}, the reading of Eq. 2 that fits the \
         printed tables. OM_alloc needs all three tasks: `{}_table2_overall`, where there are two.",
        match task {
            Task::Generation => "50 % alone",
            _ => "50-80 %",
        },
        group(suite.task)
    ));
    table.notes.extend(guesses(suite));
    table
}

/// The paper's methods, whether there are records of them or not, and then other allocators that all networks have records
/// of.
fn methods(known: &[String], models: &[&Model<'_>]) -> Vec<(String, String)> {
    let of_paper = METHODS.map(|(method, allocator)| (method.to_owned(), allocator.to_owned()));
    let others = known.iter().filter(|name| {
        METHODS.iter().all(|(_, of_paper)| of_paper != name) && models.iter().all(|m| m.has(name))
    });
    let others = others.map(|name| (allocator_name(name), name.clone()));
    of_paper.into_iter().chain(others).collect()
}

/// A value of the grid of networks and rates, in percent: one for each draw of which all networks have a record.
pub fn over_draws(
    models: &[&Model<'_>],
    allocator: &str,
    rates: &[f64],
    of: &dyn Fn(&[Vec<f64>]) -> Option<f64>,
) -> Found<Measured> {
    let draws = models.iter().map(|m| m.draws(allocator, rates));
    let draws: Vec<BTreeMap<Option<u64>, Vec<f64>>> = draws.collect::<Found<_>>()?;
    let seeds = draws.first().into_iter().flat_map(BTreeMap::keys);
    let grids = seeds.filter_map(|seed| {
        let grid = draws.iter().map(|by_draw| by_draw.get(seed).cloned());
        grid.collect::<Option<Vec<Vec<f64>>>>()
    });
    let values: Vec<f64> = grids
        .filter_map(|grid| of(&grid))
        .map(|value| 100.0 * value)
        .collect();
    Measured::over(&values)
        .ok_or_else(|| "No draw of images has a record of every network and rate.".to_owned())
}

/// How many cells at the rates of the overall metrics tell nothing.
fn guesses(suite: &Suite<'_>) -> Option<String> {
    let (mut near, mut all) = (0, 0);
    for model in suite.pruned_models() {
        for allocator in suite.allocators(false) {
            for rate in overall::RATES {
                for record in model.pruned(&allocator, rate).unwrap_or_default() {
                    near += usize::from(is_near_guessing(record)?);
                    all += 1;
                }
            }
        }
    }
    Some(format!(
        "{near} of {all} cells at 50-80 % are not two standard errors above guessing; `{}` names them.",
        sizes_id(suite)
    ))
}

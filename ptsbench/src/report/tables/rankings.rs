//! Rankings of the paper's Table 7 beside those of the records.

use super::super::groups::ms_rates;
use super::super::published::{Published, percent};
use super::super::suite::Suite;
use super::super::table::{Column, Entry, Table};
use super::super::{METHODS, TRACK2, TRACK2_ALLOCATOR};
use super::track1::over_draws;
use super::track2::mean_gain;
use crate::overall;
use crate::statistics::{Deviation, Pairs, kendall, mean};

/// Things that both we and the paper have a value for.
struct Ranking<'a> {
    track: &'static str,
    what: String,
    /// Name, ours, the paper's; larger is better.
    values: Vec<(&'a str, f64, f64)>,
}

/// A row for each ranking of which at least two things are known.
pub(super) fn table7(suite: &Suite<'_>, published: &Published) -> Table {
    let mut table = Table::new(
        format!("{}_table7_rankings", suite.id),
        "Table 7, rankings: ours beside the paper's",
        vec![
            Column::words("Track"),
            Column::words("What is ranked"),
            Column::words("Ours, best first"),
            Column::words("Paper, best first"),
            Column::numbers("Pairs"),
            Column::numbers("In the paper's order"),
            Column::numbers("Kendall's tau"),
        ],
    );
    let mut rankings = vec![allocators(suite, published)];
    rankings.extend(reconstructions(suite, published));
    rankings.extend(families(suite, published));
    let mut track = "";
    for ranking in rankings.iter().filter(|ranking| ranking.values.len() > 1) {
        let ours: Vec<f64> = ranking.values.iter().map(|value| value.1).collect();
        let paper: Vec<f64> = ranking.values.iter().map(|value| value.2).collect();
        let pairs = Pairs::of(&ours, &paper);
        let tau = match kendall(&ours, &paper) {
            Some(tau) => Entry::number(tau, 2),
            None => table.missing("All of them are alike."),
        };
        let entries = vec![
            Entry::text(ranking.track),
            Entry::text(&ranking.what),
            Entry::text(in_order(ranking, &ours)),
            Entry::text(in_order(ranking, &paper)),
            Entry::Count((ours.len() * (ours.len() - 1) / 2) as u64),
            Entry::Count(pairs.concordant as u64),
            tau,
        ];
        table.push(ranking.track != track, entries);
        track = ranking.track;
    }
    table.notes.push(
        "Kendall's tau is 1 for the same order, -1 for the opposite one and near 0 for no relation (tau-b, where there are \
         ties). What only one side has is left out. Families and sizes are ranked under L2Norm, as the paper's are taken \
         to be. A ranking of two things is one comparison."
            .to_owned(),
    );
    table
}

/// Names, the largest value first.
fn in_order(ranking: &Ranking<'_>, values: &[f64]) -> String {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let names: Vec<&str> = order.iter().map(|&at| ranking.values[at].0).collect();
    names.join(", ")
}

fn allocators<'a>(suite: &Suite<'_>, published: &Published) -> Ranking<'a> {
    let (models, task) = (suite.pruned_models(), suite.kind());
    let value = |(method, allocator): (&'a str, &str)| {
        let ours = over_draws(&models, allocator, ms_rates(task), &overall::ms).ok()?;
        Some((
            method,
            ours.value,
            published.allocation(method)?.block(task).ms,
        ))
    };
    Ranking {
        track: "1",
        what: "allocators, by MS".to_owned(),
        values: METHODS.into_iter().filter_map(value).collect(),
    }
}

fn reconstructions<'a>(suite: &Suite<'_>, published: &Published) -> Vec<Ranking<'a>> {
    let rates = suite.rates(TRACK2_ALLOCATOR, true);
    let rates: Vec<f64> = rates
        .into_iter()
        .filter(|rate| {
            overall::RATES
                .iter()
                .any(|known| percent(*known) == percent(*rate))
        })
        .collect();
    let shown: Vec<String> = rates.iter().map(|rate| percent(*rate)).collect();
    let value = |name: &'a str| {
        let (_, configuration) = TRACK2.into_iter().find(|(known, _)| *known == name)?;
        let ours = mean_gain(suite, TRACK2_ALLOCATOR, &rates, configuration).ok()?;
        let printed = &published.reconstruction(name)?.block(suite.kind()).rates;
        let printed: Option<Vec<f64>> = shown.iter().map(|r| printed.get(r).copied()).collect();
        Some((name, ours, mean(&printed?)?))
    };
    let ranking = |what: &str, names: &[&'a str]| Ranking {
        track: "2",
        what: format!("{what}, by the mean gain at {} %", shown.join(" and ")),
        values: names.iter().filter_map(|&name| value(name)).collect(),
    };
    vec![
        ranking("correction", &["w/ Correction", "w/o Correction"]),
        ranking("input", &["Sparse Input", "Dense Input"]),
        ranking("granularity", &["Single", "Layer-wise", "Block-wise"]),
    ]
}

fn families<'a>(suite: &'a Suite<'_>, published: &Published) -> [Ranking<'a>; 2] {
    let (mut levels, mut spreads) = (Vec::new(), Vec::new());
    for (family, models) in suite.pruned_families() {
        let grid = models.iter().map(|m| m.relatives(TRACK2_ALLOCATOR));
        let (Ok(grid), Some(paper)) = (
            grid.collect::<Result<Vec<_>, _>>(),
            published.family(family),
        ) else {
            continue;
        };
        if let Some(level) = overall::om_arch_table(&grid) {
            levels.push((family, level, paper.om_arch));
        }
        if grid.len() > 1
            && let Some(spread) = overall::om_robust(&grid, Deviation::Population)
        {
            // The smaller the better.
            spreads.push((family, -spread, -paper.om_robust));
        }
    }
    [
        Ranking {
            track: "3",
            what: "families, by OM_arch".to_owned(),
            values: levels,
        },
        Ranking {
            track: "4",
            what: "families, by OM_robust (population)".to_owned(),
            values: spreads,
        },
    ]
}

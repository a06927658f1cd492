//! Methods that choose or repair by more than the weights' sizes, on one network beside each other: what they keep and what
//! they ask for.

use std::collections::BTreeMap;

use super::super::allocator_name;
use super::super::suite::{Found, Measured, Model, Suite, level};
use super::super::table::{Column, Entry, Table};
use super::{SPREAD, measured, rate_name};
use crate::cell::{Pattern, Rule};
use crate::record::{Budget, Record};

/// Allocation, criterion and repair of a record, in words.
type Method = [String; 3];

/// A row for each method of networks that one of these methods was tried on.
pub(super) fn methods(suite: &Suite<'_>) -> Table {
    let rates = rates(suite);
    let mut columns = ["Network", "Allocation", "Criterion", "Repair"]
        .map(Column::words)
        .to_vec();
    columns.extend(rates.iter().map(|&rate| Column::measured(rate_name(rate))));
    columns.extend(["Images", "Labels", "Steps", "Passes"].map(Column::numbers));
    let mut table = Table::new(
        format!("{}_methods", suite.id),
        format!("Methods and what they ask for: {}", suite.metric()),
        columns,
    );
    for model in &suite.models {
        let found = of_network(model);
        if found.keys().all(is_plain) {
            continue;
        }
        let dense = model.dense().and_then(level).map(Measured::once);
        let mut entries = [model.label.as_str(), "dense", "", ""]
            .map(Entry::text)
            .to_vec();
        entries.extend(rates.iter().map(|_| measured(&mut table, &dense, 2)));
        entries.extend([0; 4].map(Entry::Count));
        table.push(true, entries);
        for (method, records) in found {
            let mut entries = vec![Entry::text(&model.label)];
            entries.extend(method.iter().map(Entry::text));
            for &rate in &rates {
                let value = over_draws(&records, rate);
                entries.push(measured(&mut table, &value, 2));
            }
            let budget = most(&records);
            entries.extend(
                [
                    budget.images,
                    budget.labels,
                    budget.gradient_steps,
                    budget.forward_passes,
                ]
                .map(Entry::Count),
            );
            table.push(false, entries);
        }
    }
    table.notes.push(format!(
        "Images were looked at, labels used; steps are an optimizer's, passes those of one image through the whole \
         network; the largest number over rates and draws. {SPREAD}"
    ));
    table
}

fn is_plain(method: &Method) -> bool {
    method[1] == "magnitude" && method[2] == "none"
}

/// The unstructured records without reconstruction, by method.
fn of_network<'a>(model: &Model<'a>) -> BTreeMap<Method, Vec<(f64, &'a Record)>> {
    let mut found: BTreeMap<Method, Vec<(f64, &Record)>> = BTreeMap::new();
    for record in model.own_records() {
        let Some(sparsity) = &record.cell.sparsity else {
            continue;
        };
        let (Pattern::Unstructured { rate }, Some(allocation)) =
            (sparsity.pattern, &sparsity.allocation)
        else {
            continue;
        };
        if sparsity.reconstruction.is_some() || sparsity.rule != Rule::Exact {
            continue;
        }
        // Options stand behind a part's name.
        let allocator = allocation.to_string();
        let options = allocator
            .strip_prefix(&*allocation.name)
            .unwrap_or_default();
        let repair = sparsity.repair.as_ref().map(ToString::to_string);
        let method = [
            allocator_name(&allocation.name) + options,
            sparsity.criterion.to_string(),
            repair.unwrap_or_else(|| "none".to_owned()),
        ];
        found.entry(method).or_default().push((rate, record));
    }
    found
}

fn rates(suite: &Suite<'_>) -> Vec<f64> {
    let found = suite.models.iter().flat_map(of_network);
    let mut rates: Vec<f64> = found
        .flat_map(|(_, records)| records.into_iter().map(|(rate, _)| rate))
        .collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    rates
}

fn over_draws(records: &[(f64, &Record)], rate: f64) -> Found<Measured> {
    let of_rate = records.iter().filter(|(at, _)| *at == rate);
    let values: Vec<f64> = of_rate
        .map(|(_, record)| level(record))
        .collect::<Found<_>>()?;
    Measured::over(&values).ok_or_else(|| "No record at this rate.".to_owned())
}

fn most(records: &[(f64, &Record)]) -> Budget {
    records.iter().fold(Budget::default(), |most, (_, record)| {
        let budget = record.budget;
        Budget {
            images: most.images.max(budget.images),
            labels: most.labels.max(budget.labels),
            gradient_steps: most.gradient_steps.max(budget.gradient_steps),
            forward_passes: most.forward_passes.max(budget.forward_passes),
        }
    })
}

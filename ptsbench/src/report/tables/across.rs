//! The tables over tasks: the overall metrics of Tables 2 and 4, and Table 6.

use super::super::groups::{Group, ms_rates};
use super::super::published::{MethodRow, Published, percent};
use super::super::suite::{Found, Model, Task};
use super::super::table::{Column, Entry, Table};
use super::super::{METHODS, TRACK2, TRACK2_ALLOCATOR, Words};
use super::track1::over_draws;
use super::track2::ms_after;
use super::{entry, rate_name};
use crate::overall;

/// The tables over tasks, of every group with at least two.
pub fn across(groups: &[Group<'_>], published: &Published, words: &Words) -> Vec<Table> {
    let mut tables = Vec::new();
    for group in groups {
        let mut of_group = vec![
            table2(group, published),
            table4(group, published),
            table6(group, published),
        ];
        of_group.retain(|table| !table.rows.is_empty());
        for table in &mut of_group {
            table.notes.push(group.note());
            table.notes.extend(words.notes(&group.task_names()));
        }
        tables.extend(of_group);
    }
    tables
}

/// A row of an overall metric: each task's MS and their quadratic mean, ours and the paper's.
fn overall_rows(
    table: &mut Table,
    name: &str,
    ours: [Found<f64>; 3],
    by_equation: Option<Found<f64>>,
    paper: Option<&MethodRow>,
) {
    let missing = |value: &Found<f64>| value.as_ref().err().cloned();
    let om = match ours.iter().find_map(missing) {
        Some(reason) => Err(reason),
        None => {
            let terms: Vec<f64> = ours.iter().flatten().copied().collect();
            overall::over_tasks(&terms).ok_or_else(|| "No task.".to_owned())
        }
    };
    let mut entries = vec![Entry::text(name), Entry::text("ours")];
    for value in ours.into_iter().chain([om]).chain(by_equation.clone()) {
        entries.push(entry(table, value, 2));
    }
    table.push(true, entries);
    if let Some(paper) = paper {
        let mut entries = vec![Entry::text(name), Entry::text("paper")];
        let printed = Task::ALL.map(|task| paper.block(task).ms);
        entries.extend(printed.map(|ms| Entry::number(ms, 2)));
        entries.push(Entry::number(paper.om, 2));
        if by_equation.is_some() {
            entries.push(table.missing("Not printed in the paper."));
        }
        table.push(false, entries);
    }
}

fn overall_columns(first: &str, om: &str) -> Vec<Column> {
    let mut columns = vec![Column::words(first), Column::words("Source")];
    columns.extend(Task::ALL.map(|task| Column::numbers(format!("MS, {}", task.name()))));
    columns.push(Column::numbers(om));
    columns
}

/// OM_alloc of Table 2.
fn table2(group: &Group<'_>, published: &Published) -> Table {
    let mut columns = overall_columns("Method", "OM_alloc");
    columns.push(Column::numbers("OM_alloc, Eq. 2"));
    let mut table = Table::new(
        format!("{}_table2_overall", group.name),
        "Table 2 over tasks: allocators without reconstruction",
        columns,
    );
    for (method, allocator) in METHODS {
        let term = |task: Task, rates: &[f64], of: &dyn Fn(&[Vec<f64>]) -> Option<f64>| {
            let ours = over_draws(&group.models(task)?, allocator, rates, of)?;
            Ok(ours.value)
        };
        let ours = Task::ALL.map(|task| term(task, ms_rates(task), &overall::ms));
        if ours.iter().all(Result::is_err) {
            continue;
        }
        let terms = Task::ALL.map(|task| term(task, &overall::RATES, &overall::expectation));
        let terms: Found<Vec<f64>> = terms.into_iter().collect();
        let by_equation = terms
            .and_then(|terms| overall::over_tasks(&terms).ok_or_else(|| "No task.".to_owned()));
        let paper = published.allocation(method);
        overall_rows(&mut table, method, ours, Some(by_equation), paper);
    }
    table.notes.push(
        "MS of CLS and DET is over 50-80 %, of GEN at 50 % alone, as in the paper's table. OM_alloc is the quadratic mean of \
         the three. By Eq. 2 as written each task is one mean over networks and all four rates."
            .to_owned(),
    );
    table
}

/// OM_recon of Table 4.
fn table4(group: &Group<'_>, published: &Published) -> Table {
    let mut table = Table::new(
        format!("{}_table4_overall", group.name),
        "Table 4 over tasks: gains of reconstruction after L2Norm",
        overall_columns("Configuration", "OM_recon"),
    );
    for (name, configuration) in TRACK2 {
        let ours = Task::ALL.map(|task| {
            group.models(task)?;
            let reconstructed = group
                .suites(task)
                .iter()
                .flat_map(|suite| suite.reconstructed_models(TRACK2_ALLOCATOR));
            let models: Vec<&Model<'_>> = reconstructed.collect();
            ms_after(&models, ms_rates(task), TRACK2_ALLOCATOR, configuration)
        });
        if ours.iter().all(Result::is_err) {
            continue;
        }
        let paper = published.reconstruction(name);
        overall_rows(&mut table, name, ours, None, paper);
    }
    table
}

/// Table 6: tasks.
fn table6(group: &Group<'_>, published: &Published) -> Table {
    let mut columns = vec![Column::words("Task"), Column::words("Source")];
    columns.extend(overall::RATES.map(|rate| Column::numbers(rate_name(rate))));
    columns.push(Column::numbers("OM_task"));
    let mut table = Table::new(
        format!("{}_table6", group.name),
        "Table 6: tasks under L2Norm without reconstruction, relative performance in percent, mean over networks",
        columns,
    );
    let mut terms = Vec::new();
    for task in Task::ALL {
        let Ok(models) = group.models(task) else {
            continue;
        };
        let value = |rates: &[f64], of: &dyn Fn(&[Vec<f64>]) -> Option<f64>| {
            over_draws(&models, TRACK2_ALLOCATOR, rates, of).map(|ours| ours.value)
        };
        let om = value(&overall::RATES, &overall::om_task_table);
        terms.extend(om.iter().map(|om| (task, *om)));
        let mut entries = vec![Entry::text(task.name()), Entry::text("ours")];
        for rate in overall::RATES {
            entries.push(entry(&mut table, group.kept(task, rate), 2));
        }
        entries.push(entry(&mut table, om, 2));
        table.push(true, entries);
        if let Some(paper) = published.task(task) {
            let mut entries = vec![Entry::text(task.name()), Entry::text("paper")];
            for rate in overall::RATES {
                let printed = paper.rates.get(&percent(rate)).copied();
                let printed = printed.ok_or_else(|| "Not printed in the paper.".to_owned());
                entries.push(entry(&mut table, printed, 2));
            }
            entries.push(Entry::number(paper.om_task, 2));
            table.push(false, entries);
        }
    }
    let order = |mut terms: Vec<(Task, f64)>| {
        terms.sort_by(|a, b| b.1.total_cmp(&a.1));
        let names: Vec<&str> = terms.iter().map(|(task, _)| task.name()).collect();
        names.join(", ")
    };
    let printed = terms.iter();
    let printed = printed.filter_map(|(task, _)| Some((*task, published.task(*task)?.om_task)));
    let printed: Vec<(Task, f64)> = printed.collect();
    let by_equation: Vec<f64> = terms.iter().map(|(_, om)| *om).collect();
    if let Some(om) = overall::om_task_eq7(&by_equation) {
        table.notes.push(format!(
            "Best first: ours {}; the paper's {}. By Eq. 7 as written, one value over the tasks: {om:.2}.",
            order(terms),
            order(printed)
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::super::groups::groups;
    use super::super::super::published::published;
    use super::super::super::suite::{allocation, suites};
    use super::super::super::{csv, fixture, html, latex, markdown};
    use super::*;
    use crate::cell::Pattern;
    use crate::record::{Better, Counts, Level, Record, Score};
    use std::collections::BTreeMap;

    /// The fixture's networks once more, as if they did something else: their top-1 is the precision, or says how near the
    /// images are.
    fn as_task(name: &str, score: impl Fn(f64) -> Score) -> Vec<Record> {
        let change = |mut record: Record| {
            let top1 = record.score.value.number().expect("a number");
            record.cell.task.name = name.to_owned();
            record.score = score(top1);
            fixture::rekeyed(record)
        };
        fixture::records().into_iter().map(change).collect()
    }

    fn boxes(ap: f64) -> Score {
        Score {
            metric: "map11".to_owned(),
            value: Level::Number(ap),
            better: Better::Higher,
            counts: Counts::Boxes {
                found: 100,
                objects: 50,
                total: 2000,
                available: 4000,
            },
            also: BTreeMap::new(),
        }
    }

    fn images(top1: f64) -> Score {
        Score {
            metric: "fd_random_conv".to_owned(),
            // Far below the dense networks, there is nothing to see any more.
            value: match top1 {
                top1 if top1 < 40.0 => Level::Collapsed,
                top1 => Level::Number(1000.0 / top1),
            },
            better: Better::Lower,
            counts: Counts::Generated {
                reference: 20_000,
                total: 2000,
                available: 4000,
            },
            also: BTreeMap::new(),
        }
    }

    fn all() -> Vec<Record> {
        let mut records = fixture::records();
        records.extend(as_task("micro_boxes", boxes));
        records.extend(as_task("micro_generation", images));
        records
    }

    /// Reconstructions at 80 %, at the other rates too.
    fn at_all_rates(records: &[Record]) -> Vec<Record> {
        let mut all = records.to_vec();
        for record in records {
            let sparsity = record.cell.sparsity.as_ref();
            let reconstructed = sparsity.is_some_and(|s| s.reconstruction.is_some());
            if !reconstructed || allocation(record).is_none_or(|(_, rate)| rate != 0.8) {
                continue;
            }
            for rate in overall::RATES {
                let mut other = record.clone();
                let sparsity = other.cell.sparsity.as_mut().expect("pruned");
                sparsity.pattern = Pattern::Unstructured { rate };
                let other = fixture::rekeyed(other);
                if all.iter().all(|known| known.key != other.key) {
                    all.push(other);
                }
            }
        }
        all
    }

    #[test]
    fn reconstructions_of_all_rates_have_an_overall_metric() {
        let tables = of(&at_all_rates(&all()));
        let table = tables
            .iter()
            .find(|table| table.id == "micro_table4_overall");
        let table = table.expect("all rates are there");
        let ours = row(table, ["w/ Correction", "ours"]);
        let values: Vec<f64> = ours[2..]
            .iter()
            .map(|entry| entry.plain().parse().expect("a number"))
            .collect();
        let om = overall::over_tasks(&values[..3]).expect("three");
        assert!((om - values[3]).abs() < 0.011, "{values:?}");
        assert_eq!(row(table, ["Block-wise", "paper"])[5].plain(), "66.76");
    }

    fn of(records: &[Record]) -> Vec<Table> {
        let published = published().expect("part of the program");
        across(&groups(&suites(records)), &published, &Words::default())
    }

    fn row<'a>(table: &'a Table, head: [&str; 2]) -> &'a [Entry] {
        let fits = |entries: &[Entry]| [entries[0].plain(), entries[1].plain()] == head;
        let row = table.rows.iter().find(|row| fits(&row.entries));
        &row.unwrap_or_else(|| panic!("no row {head:?} in {}", table.id))
            .entries
    }

    #[test]
    fn tasks_stand_beside_each_other() {
        let records = all();
        let tables = of(&records);
        let ids: Vec<&str> = tables.iter().map(|table| table.id.as_str()).collect();
        // Without reconstructions at all rates there is no overall metric of them.
        assert_eq!(ids, ["micro_table2_overall", "micro_table6"]);
        // The detectors' scores are the classifiers', and where no network collapsed, so are the generators' ratios.
        let by_rate = |task| -> Vec<String> {
            let row = row(&tables[1], [task, "ours"]);
            row[2..].iter().map(Entry::plain).collect()
        };
        assert_eq!(by_rate("DET"), by_rate("CLS"));
        assert_eq!(by_rate("GEN")[0], by_rate("CLS")[0]);
        assert_eq!(row(&tables[1], ["GEN", "paper"])[6].plain(), "21.02");
        assert_eq!(row(&tables[0], ["ERK", "paper"])[5].plain(), "80.61");

        // The quadratic mean of the three, and it says which networks they are.
        let ms: Vec<f64> = row(&tables[0], ["L2Norm", "ours"])[2..6]
            .iter()
            .map(|entry| entry.plain().parse().expect("a number"))
            .collect();
        let om = overall::over_tasks(&ms[..3]).expect("three");
        assert!((om - ms[3]).abs() < 0.011, "{ms:?}");
        let note = "CLS: 3 networks of micro; DET: 3 networks of micro_boxes; GEN: 3 networks of micro_generation.";
        assert!(
            tables[0].notes.iter().any(|text| text == note),
            "{:?}",
            tables[0].notes
        );
        let order = &tables[1].notes[0];
        assert!(order.contains("the paper's DET, CLS, GEN"), "{order}");
        for table in &tables {
            let texts = [
                markdown::render(table),
                csv::render(table),
                latex::render(table),
            ];
            assert!(
                texts.iter().all(|text| text.contains("GEN")),
                "{}",
                table.id
            );
        }
        let page = html::page(&records, &tables, &[], &Words::default()).expect("drawn");
        assert!(page.contains("micro_table6"));
    }

    #[test]
    fn one_task_alone_and_choices_have_no_tables() {
        assert_eq!(of(&fixture::records()), []);
        let mut records = fixture::records();
        records.extend(as_task("micro_boxes_validation", boxes));
        records.extend(as_task("voc07", boxes));
        assert_eq!(of(&records), []);
    }

    #[test]
    fn a_task_without_records_leaves_its_reason_and_no_overall_value() {
        let mut records = fixture::records();
        records.extend(as_task("micro_boxes", boxes));
        let tables = of(&records);
        let entries = row(&tables[0], ["Uniform", "ours"]);
        assert!(matches!(entries[2], Entry::Number { .. }), "{entries:?}");
        for missing in [&entries[4], &entries[5]] {
            let Entry::Missing(index) = missing else {
                panic!("{missing:?}");
            };
            assert_eq!(tables[0].footnotes()[*index], "No record of GEN.");
        }
    }

    #[test]
    fn a_collapsed_generator_has_nothing_left() {
        let records = as_task("micro_generation", images);
        let suites = suites(&records);
        let models = suites[0].pruned_models();
        let collapsed = models[0].relative("uniform", 0.8).expect("recorded");
        assert_eq!(collapsed, 0.0);
        let ratio = models[0].relative("l2norm", 0.5).expect("recorded");
        assert!(ratio > 0.5 && ratio <= 1.0, "{ratio}");
    }
}

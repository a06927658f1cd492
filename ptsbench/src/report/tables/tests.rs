//! The tables of the fixture's records.

use super::super::suite::{Configuration, allocation, level};
use super::super::{TRACK2, allocator_name};
use super::super::{fixture, published::published, suite::suites};
use super::track4::NO_UNIT;
use super::*;
use crate::record::{EpochOutcome, Level, Record, Search, TrainingCurve};

fn all(records: &[Record]) -> Vec<Table> {
    let published = published().expect("part of the program");
    let words = Words::default();
    suites(records)
        .iter()
        .flat_map(|s| tables(s, &published, &words))
        .collect()
}

fn table<'a>(tables: &'a [Table], id: &str) -> &'a Table {
    tables
        .iter()
        .find(|t| t.id == id)
        .unwrap_or_else(|| panic!("no table {id}"))
}

/// A pattern's name is not a rate: layers that it does not fit stay dense.
#[test]
fn pattern_cells_show_the_rate_they_came_to_in_every_format() {
    use super::super::{csv, html, latex, markdown};
    let mut records = fixture::records();
    let mut pruned = records[1].clone();
    let sparsity = pruned.cell.sparsity.as_mut().expect("pruned");
    sparsity.pattern = crate::cell::Pattern::NofM { n: 2, m: 4 };
    sparsity.allocation = None;
    pruned.cost.zeros = pruned.cost.weights * 434 / 1000;
    let achieved = 100.0 * pruned.cost.zeros as f64 / pruned.cost.weights as f64;
    let pruned = fixture::rekeyed(pruned);
    let model = pruned.cell.model.clone();
    records.push(pruned);
    let tables = all(&records);
    let with_pattern = |table: &&Table| {
        let mut entries = table.rows.iter().flat_map(|row| &row.entries);
        entries.any(|entry| entry.plain() == "2:4")
    };
    let shown: Vec<&Table> = tables.iter().filter(with_pattern).collect();
    assert_eq!(shown.len(), 1, "the tables that show a pattern");
    let rate = format!("{achieved:.3}");
    let page = html::page(&records, &tables, &[], &Words::default()).expect("drawn");
    for table in shown {
        assert!(table.columns.iter().any(|column| column.name == "Zeros, %"));
        for text in [
            markdown::render(table),
            csv::render(table),
            latex::render(table),
            page.clone(),
        ] {
            assert!(text.contains(&rate), "{rate}: {text}");
        }
        let note = format!("{model}: 1 of 10 layers stays dense at 2:4");
        assert!(
            table.notes.iter().any(|text| text.starts_with(&note)),
            "{:?}",
            table.notes
        );
    }
}

fn row<'a>(table: &'a Table, head: [&str; 2]) -> &'a [Entry] {
    let fits = |entries: &[Entry]| entries[0].plain() == head[0] && entries[1].plain() == head[1];
    let row = table.rows.iter().find(|r| fits(&r.entries));
    &row.unwrap_or_else(|| panic!("no row {head:?} in {}", table.id))
        .entries
}

fn reason(table: &Table, entry: &Entry) -> String {
    match entry {
        Entry::Missing(index) => table.footnotes()[*index].clone(),
        other => panic!("{other:?} is not missing"),
    }
}

#[test]
fn table2_compares_with_the_paper() {
    let tables = all(&fixture::records());
    let table = table(&tables, "micro_table2_cls");
    assert_eq!(table.rows.len(), 25);
    let l2norm = row(table, ["L2Norm", "80 %"]);
    assert_eq!(l2norm[3].plain(), "52.53");
    let Entry::Number {
        value: ours,
        spread: None,
        ..
    } = l2norm[2]
    else {
        panic!("{:?}", l2norm[2])
    };
    // Mean over the three networks of the fixture's A^s/A, by hand.
    let expected: f64 = [(86.2_f64, 4.0), (90.1, 5.0), (92.6, 6.0)]
        .iter()
        .map(|&(dense, resistance): &(f64, f64)| {
            let round = |top1: f64| (top1 / 100.0 * 2000.0).round() / 20.0;
            let top1 = 5.0 + (dense - 5.0) * (1.0 - 0.8_f64.powf(resistance));
            100.0 * round(top1) / round(dense) / 3.0
        })
        .sum();
    assert!((ours - expected).abs() < 1e-9, "{ours} {expected}");
    assert_eq!(l2norm[4], Entry::difference(ours - 52.53, 2));
    assert_eq!(l2norm[5], Entry::Count(1));
}

#[test]
fn methods_without_records_are_dashes_with_a_reason() {
    let tables = all(&fixture::records());
    let table = table(&tables, "micro_table2_cls");
    let fcpts = row(table, ["FCPTS (ERK)", "MS"]);
    assert_eq!(
        reason(table, &fcpts[2]),
        "No record of FCPTS (ERK) in the store."
    );
    assert_eq!(fcpts[3].plain(), "94.55");
    assert_eq!(reason(table, &fcpts[4]), reason(table, &fcpts[2]));
    assert_eq!(reason(table, &fcpts[5]), reason(table, &fcpts[2]));
}

#[test]
fn one_missing_network_makes_the_mean_missing() {
    let mut records = fixture::records();
    records.retain(|r| {
        !(r.cell.model == "micro_resnet20"
            && allocation(r).is_some_and(|(name, rate)| name == "erk" && rate == 0.6))
    });
    let tables = all(&records);
    let table2 = table(&tables, "micro_table2_cls");
    for head in [["ERK", "60 %"], ["ERK", "MS"]] {
        let entries = row(table2, head);
        assert_eq!(
            reason(table2, &entries[2]),
            "No record: micro_resnet20, erk at 60 %.",
            "{head:?}"
        );
    }
    assert!(matches!(
        row(table2, ["ERK", "70 %"])[2],
        Entry::Number { .. }
    ));
    assert!(matches!(
        row(table2, ["L2Norm", "60 %"])[2],
        Entry::Number { .. }
    ));
}

#[test]
fn table4_has_runs_and_their_spread() {
    let records = fixture::records();
    let tables = all(&records);
    let table4 = table(&tables, "micro_table4_cls");
    assert_eq!(table4.rows.len(), 14);
    let base = row(table4, ["w/ Correction", "70 %"]);
    for twin in ["Sparse Input", "Layer-wise"] {
        assert_eq!(base[2], row(table4, [twin, "70 %"])[2]);
    }
    let Entry::Number {
        value,
        spread: Some(spread),
        ..
    } = base[2]
    else {
        panic!("{:?}", base[2])
    };
    assert_eq!(base[5], Entry::Count(2));
    let score = |reconstructed: bool, seed: u64| {
        let fits = |r: &&Record| {
            let Some(s) = r
                .cell
                .sparsity
                .as_ref()
                .filter(|_| r.cell.model == "micro_resnet14")
            else {
                return false;
            };
            let found = s
                .reconstruction
                .as_ref()
                .map(|r| (Configuration::of(r), r.calibration.seed));
            let asked = reconstructed.then_some((Some(TRACK2[0].1), seed));
            allocation(r).is_some_and(|(name, rate)| name == "l2norm" && rate == 0.7)
                && found == asked
        };
        level(records.iter().find(fits).expect("in the fixture")).unwrap()
    };
    let before = score(false, 0);
    let gains = [0, 1].map(|seed| 100.0 * (score(true, seed) - before) / before);
    assert!((value - (gains[0] + gains[1]) / 2.0).abs() < 1e-9);
    assert!((spread - (gains[0] - gains[1]).abs() / 2.0_f64.sqrt()).abs() < 1e-9);
    assert!(
        table4
            .notes
            .iter()
            .any(|n| n.contains("only 70 % and 80 % were run")),
        "{:?}",
        table4.notes
    );
    assert!(
        table4
            .notes
            .iter()
            .any(|n| n.contains("Adam at learning rate 0.0005, biases alike, for 100 steps"))
    );
}

#[test]
fn a_loss_is_floored_in_table4_alone() {
    let mut records = fixture::records();
    for record in &mut records {
        let reconstructed = record
            .cell
            .sparsity
            .as_ref()
            .is_some_and(|s| s.reconstruction.is_some());
        if reconstructed {
            record.score.value = Level::Number(1.0);
        }
    }
    let tables = all(&records);
    let floored = &row(table(&tables, "micro_table4_cls"), ["Single", "80 %"])[2];
    assert!(
        matches!(floored, Entry::Number { value: 0.0, .. }),
        "{floored:?}"
    );
    let plain = &row(table(&tables, "micro_table4_bases"), ["Single", "80 %"])[2];
    assert!(
        matches!(plain, Entry::Number { value, .. } if *value < -50.0),
        "{plain:?}"
    );
}

#[test]
fn a_collapsed_network_has_a_dash_and_a_reason() {
    let mut records = fixture::records();
    for record in &mut records {
        let dense = record.cell.sparsity.is_none();
        if dense && record.cell.model == "micro_resnet14" {
            record.score.value = Level::Collapsed;
        }
    }
    let tables = all(&records);
    let cells = tables.iter().find(|t| t.id.ends_with("_cells")).unwrap();
    let reasons = |table: &Table| {
        let reasons = table.footnotes().iter();
        reasons
            .filter(|reason| reason.starts_with("Collapsed: cell "))
            .count()
    };
    assert_eq!(reasons(cells), 1);
    assert!(reasons(table(&tables, "micro_table2_cls")) > 0);
}

#[test]
fn a_search_shows_below_the_cells() {
    let mut records = fixture::records();
    let noted = |records: &[Record]| {
        let tables = all(records);
        let cells = tables.iter().find(|t| t.id.ends_with("_cells")).unwrap();
        let notes = cells.notes.iter().filter(|n| n.contains("search"));
        notes.cloned().collect::<Vec<_>>()
    };
    assert_eq!(noted(&records), [""; 0]);
    let searched = records.iter_mut().find(|r| r.cell.sparsity.is_some());
    let searched = searched.unwrap();
    searched.search = Search::of(&[0.5, 0.25, 0.125]);
    let key = searched.key.short().to_owned();
    let notes = noted(&records);
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains(&key), "{notes:?}");
    let curve = "loss 0.5000 at the start, 0.2500 after 1, 0.1250 after 2 generations";
    assert!(notes[0].contains(curve), "{notes:?}");
}

#[test]
fn the_compact_table_has_the_same_values() {
    let tables = all(&fixture::records());
    let long = table(&tables, "micro_table2_cls");
    let compact = table(&tables, "micro_table2_cls_compact");
    assert_eq!(compact.rows.len(), 10);
    for (index, rate) in ["50 %", "60 %", "70 %", "80 %", "MS"]
        .into_iter()
        .enumerate()
    {
        for (source, place) in [("ours", 2), ("paper", 3)] {
            let short = &row(compact, ["ERK", source])[2 + index];
            assert_eq!(*short, row(long, ["ERK", rate])[place]);
        }
    }
    let missing = &row(compact, ["FCPTS (ERK)", "ours"])[2];
    assert_eq!(
        reason(compact, missing),
        "No record of FCPTS (ERK) in the store."
    );
}

#[test]
fn what_has_no_unit_is_not_subtracted() {
    let tables = all(&fixture::records());
    let table5 = table(&tables, "micro_table5");
    let resnet = row(table5, ["L2Norm", "ResNet"]);
    let last = resnet.len() - 1;
    assert_eq!(resnet[last].plain(), "0.286");
    let differences = table5.columns.iter().filter(|c| c.name == "Difference");
    assert_eq!(differences.count(), 1);
    assert!(table5.notes.contains(&NO_UNIT.to_owned()));
    // The one difference is OM_arch's.
    let Entry::Number { value: ours, .. } = resnet[7] else {
        panic!("{:?}", resnet[7])
    };
    assert_eq!(resnet[8].plain(), "86.81");
    assert_eq!(resnet[9], Entry::difference(ours - 86.81, 2));
}

#[test]
fn rankings_stand_beside_the_papers() {
    let mut records = fixture::records();
    let tables_of = |records: &[Record]| {
        let tables = all(records);
        let rankings = table(&tables, "micro_table7_rankings").clone();
        let row = |what: &str| {
            let mut rows = rankings.rows.iter().map(|row| &row.entries);
            let row = rows.find(|entries| entries[1].plain().starts_with(what));
            row.map(|entries| entries[2..].iter().map(Entry::plain).collect::<Vec<_>>())
        };
        [row("allocators"), row("granularity"), row("families")]
    };
    // The paper's MS: L2Norm 84.05, ERK 84.00, Uniform 72.88. The fixture resists most under L2Norm and least under
    // Uniform, so all three pairs agree.
    let [allocators, granularity, families] = tables_of(&records);
    let agreed = [
        "L2Norm, ERK, Uniform",
        "L2Norm, ERK, Uniform",
        "3",
        "3",
        "1.00",
    ];
    assert_eq!(allocators.unwrap(), agreed);
    assert_eq!(granularity.unwrap()[0], "Block-wise, Layer-wise, Single");
    assert_eq!(families, None, "one family is no ranking");

    // Without one network's L2Norm the mean is missing, and a pair is left.
    records.retain(|r| {
        !(r.cell.model == "micro_resnet8" && allocation(r).is_some_and(|a| a.0 == "l2norm"))
    });
    let [allocators, ..] = tables_of(&records);
    let left = ["ERK, Uniform", "ERK, Uniform", "1", "1", "1.00"];
    assert_eq!(allocators.unwrap(), left);
}

/// Of the fixture's smallest network, under another name.
fn renamed(records: &[Record], name: &str) -> Vec<Record> {
    let of = records.iter().filter(|r| r.cell.model == "micro_resnet8");
    of.map(|record| {
        let mut record = record.clone();
        record.cell.model = name.to_owned();
        fixture::rekeyed(record)
    })
    .collect()
}

#[test]
fn variants_stand_beside_their_network_and_in_no_mean() {
    let mut records = fixture::records();
    records.extend(renamed(&records, "micro_mobilenetv3_100"));
    let without = all(&records);
    let mut plain = renamed(&records, "micro_mobilenetv3_plain");
    for record in &mut plain {
        if allocation(record).is_some_and(|(name, rate)| name == "erk" && rate == 0.8) {
            let half = record.score.counts.correct().expect("counted") / 2;
            record.score = crate::record::Score::top1(half, 2000, 4000);
        }
    }
    records.extend(plain);
    let with = all(&records);
    for id in ["micro_table2_cls", "micro_table5", "micro_track4_sizes"] {
        assert_eq!(table(&with, id), table(&without, id), "{id}");
    }
    let variants = table(&with, "micro_variants");
    let erk = |network: &str| {
        let rows = variants.rows.iter().map(|row| &row.entries);
        let of = |e: &&Vec<Entry>| e[0].plain() == "ERK" && e[1].plain() == network;
        rows.into_iter().find(of).unwrap()
    };
    let value = |entry: &Entry| match entry {
        Entry::Number { value, .. } => *value,
        other => panic!("{other:?} is no number"),
    };
    let (base, plain) = (erk("micro_mobilenetv3_100"), erk("micro_mobilenetv3_plain"));
    assert_eq!(plain[2].plain(), "no squeeze and excitation");
    // Half of what one of four rates keeps.
    let lost = value(&base[7]) - value(&plain[7]);
    assert!((value(&plain[9]) + lost / 4.0).abs() < 1e-9);
    assert!((lost - value(&base[7]) / 2.0).abs() < 0.1);
    // By hand for two thousand images: about a point for each of the two.
    assert!((0.5..2.0).contains(&value(&plain[10])), "{:?}", plain[10]);
}

#[test]
fn folded_norms_of_some_networks_stand_beside_the_others() {
    let mut records = fixture::records();
    let mut folded = renamed(&records, "micro_resnet8");
    folded.retain(|r| {
        r.cell
            .sparsity
            .as_ref()
            .is_some_and(|s| s.reconstruction.is_none())
    });
    for record in &mut folded {
        let sparsity = record.cell.sparsity.as_mut().expect("pruned");
        sparsity.batch_norm = crate::cell::BatchNorm::Folded;
        *record = fixture::rekeyed(record.clone());
    }
    let count = folded.len();
    records.extend(folded.clone());
    let tables = all(&records);
    let norms = table(&tables, "micro_batch_norm");
    assert_eq!(norms.rows.len(), 6, "three allocators, both ways");
    let cells = table(&tables, "micro_cells");
    let marked = cells
        .rows
        .iter()
        .filter(|row| row.entries[0].plain().contains("folded"));
    assert_eq!(marked.count(), count);
    assert_eq!(cells.rows.len(), records.len());

    // Once reconstructed, they are a suite of their own.
    let mut fitted = fixture::records();
    fitted.retain(|r| r.cell.to_string().contains("seed"));
    let mut fitted = fitted.remove(0);
    let sparsity = fitted.cell.sparsity.as_mut().expect("pruned");
    sparsity.batch_norm = crate::cell::BatchNorm::Folded;
    let ids = |records: &[Record]| -> Vec<String> {
        suites(records).iter().map(|s| s.id.clone()).collect()
    };
    assert_eq!(ids(&records), ["micro"]);
    records.push(fixture::rekeyed(fitted));
    assert_eq!(ids(&records), ["micro_kept", "micro_folded"]);
    records.pop();

    // Of all networks, they are one too.
    for name in ["micro_resnet14", "micro_resnet20"] {
        for record in fixture::records() {
            if record.cell.model == name && record.cell.sparsity.is_some() {
                let mut record = record;
                let sparsity = record.cell.sparsity.as_mut().expect("pruned");
                sparsity.batch_norm = crate::cell::BatchNorm::Folded;
                records.push(fixture::rekeyed(record));
            }
        }
    }
    assert_eq!(ids(&records), ["micro_kept", "micro_folded"]);
}

#[test]
fn draws_of_a_search_are_runs_of_one_cell() {
    let mut records = fixture::records();
    for record in fixture::records() {
        if allocation(&record).is_none_or(|(name, _)| name != "erk") {
            continue;
        }
        for seed in [0, 1] {
            let mut record = record.clone();
            let sparsity = record.cell.sparsity.as_mut().expect("pruned");
            sparsity.allocation = Some(crate::cell::Part::plain("evopress", 1));
            sparsity.calibration = Some(crate::cell::CalibrationCell {
                images: 256,
                batch: 64,
                seed,
                list: None,
            });
            let correct = record.score.counts.correct().expect("counted") - 20 * seed;
            record.score = crate::record::Score::top1(correct, 2000, 4000);
            records.push(fixture::rekeyed(record));
        }
    }
    let tables = all(&records);
    let table2 = table(&tables, "micro_table2_cls");
    let (erk, search) = (
        row(table2, ["ERK", "70 %"]),
        row(table2, ["EvoPress", "70 %"]),
    );
    assert_eq!(search[5], Entry::Count(2));
    let (Entry::Number { value: erk, .. }, Entry::Number { value, spread, .. }) =
        (&erk[2], &search[2])
    else {
        panic!("{erk:?} {search:?}")
    };
    // The second draw is a point of accuracy lower on each network.
    let difference: f64 = [86.2_f64, 90.1, 92.6].iter().map(|d| 100.0 / d / 3.0).sum();
    assert!(
        (erk - value - difference / 2.0).abs() < 0.01,
        "{erk} {value}"
    );
    assert!((spread.unwrap() - difference / 2.0_f64.sqrt()).abs() < 0.01);
    assert_eq!(reason(table2, &search[3]), "Not printed in the paper.");
}

/// Corrections with options are no rows of Table 4, and stand beside each other in a table of their own.
#[test]
fn corrections_with_options_have_their_own_table() {
    let mut records = fixture::records();
    let before = all(&records);
    assert!(before.iter().all(|table| table.id != "micro_corrections"));
    let configuration = |r: &Record| {
        let fitted = r.cell.sparsity.as_ref()?.reconstruction.as_ref()?;
        Some((Configuration::of(fitted)?, fitted.calibration.seed))
    };
    let plain = |correction: bool| {
        let row = TRACK2[usize::from(!correction)].1;
        let found = records.iter().find(|r| {
            allocation(r).is_some_and(|(name, rate)| name == "l2norm" && rate == 0.7)
                && configuration(r) == Some((row, 0))
        });
        found.expect("in the fixture").clone()
    };
    let (with, without) = (plain(true), plain(false));
    let mut changed = with.clone();
    let fitted = changed
        .cell
        .sparsity
        .as_mut()
        .unwrap()
        .reconstruction
        .as_mut();
    fitted.unwrap().correction = serde_json::from_str(r#"{"part":"bias"}"#).unwrap();
    changed.score.value = Level::Number(12.5);
    records.push(fixture::rekeyed(changed));
    let after = all(&records);
    let own = table(&after, "micro_corrections");
    let words: Vec<String> = own.rows.iter().map(|row| row.entries[4].plain()).collect();
    assert_eq!(words, ["none", "all of it", "part = \"bias\""]);
    let (with, without) = (level(&with).unwrap(), level(&without).unwrap());
    for (row, [seed0, seed1]) in
        own.rows
            .iter()
            .zip([[without, without - 0.4], [with, with - 0.4], [12.5, 12.5]])
    {
        let Entry::Number { value, .. } = row.entries[6] else {
            panic!("{row:?}")
        };
        assert!((value - (seed0 + seed1) / 2.0).abs() < 0.03, "{row:?}");
    }
    for table in before.iter().filter(|table| !table.id.ends_with("_cells")) {
        assert_eq!(after.iter().find(|t| t.id == table.id), Some(table));
    }
}

#[test]
fn every_record_is_in_the_table_of_cells() {
    let records = fixture::records();
    let tables = all(&records);
    assert_eq!(table(&tables, "micro_cells").rows.len(), records.len());
}

#[test]
fn the_order_of_records_does_not_matter() {
    let mut records = fixture::records();
    let tables = all(&records);
    records.reverse();
    assert_eq!(all(&records), tables);
}

#[test]
fn plan_notes_stand_under_every_table() {
    let published = published().expect("part of the program");
    let words = Words {
        plan: Some("micro".to_owned()),
        notes: [
            (None, "From the plan."),
            (Some("micro"), "Of micro."),
            (Some("other"), "Of another."),
        ]
        .map(|(task, text)| super::super::Note {
            task: task.map(str::to_owned),
            text: text.to_owned(),
        })
        .to_vec(),
    };
    let records = fixture::records();
    for suite in suites(&records) {
        for table in tables(&suite, &published, &words) {
            for (note, stands) in [
                ("From the plan.", true),
                ("Of micro.", true),
                ("Of another.", false),
            ] {
                assert_eq!(
                    table.notes.contains(&note.to_owned()),
                    stands,
                    "{}",
                    table.id
                );
            }
            assert!(
                table
                    .notes
                    .contains(&"Limited run: 2000 of 4000 images.".to_owned())
            );
        }
    }
}

#[test]
fn methods_stand_beside_each_other_with_what_they_ask_for() {
    let plain = fixture::records();
    let tables = all(&plain);
    assert!(tables.iter().all(|table| table.id != "micro_methods"));
    let mut records = plain.clone();
    for record in plain {
        let sparsity = record.cell.sparsity.as_ref();
        let erk = allocation(&record).is_some_and(|(name, _)| name == "erk");
        if !erk
            || record.cell.model != "micro_resnet14"
            || sparsity.unwrap().reconstruction.is_some()
        {
            continue;
        }
        for seed in 0..2 {
            let mut record = record.clone();
            let sparsity = record.cell.sparsity.as_mut().expect("pruned");
            sparsity.criterion = crate::cell::Part::plain("alps", 1);
            sparsity.calibration = Some(crate::cell::CalibrationCell {
                list: None,
                images: 64,
                batch: 32,
                seed,
            });
            record.budget = crate::record::Budget::looking(64, 64);
            let correct = record.score.counts.correct().expect("counted") + 20 * seed;
            record.score = crate::record::Score::top1(correct, 2000, 4000);
            records.push(fixture::rekeyed(record));
        }
    }
    let tables = all(&records);
    let methods = table(&tables, "micro_methods");
    let head = |row: &Row| -> Vec<String> { row.entries[..4].iter().map(Entry::plain).collect() };
    // The other networks have nothing that was not in Table 2.
    assert!(
        methods
            .rows
            .iter()
            .all(|row| head(row)[0] == "micro_resnet14")
    );
    let found = methods
        .rows
        .iter()
        .find(|row| head(row)[2] == "alps")
        .unwrap();
    assert_eq!(head(found), ["micro_resnet14", "ERK", "alps", "none"]);
    let place = methods
        .columns
        .iter()
        .position(|c| c.name == "80 %")
        .unwrap();
    let plain = methods
        .rows
        .iter()
        .find(|row| head(row)[1..3] == ["ERK", "magnitude"])
        .unwrap();
    let value = |row: &Row| match &row.entries[place] {
        Entry::Number { value, spread, .. } => (*value, *spread),
        other => panic!("{other:?}"),
    };
    // 20 of 2,000 images more in one draw of two.
    assert!((value(found).0 - value(plain).0 - 0.5).abs() < 1e-9);
    assert!((value(found).1.unwrap() - 1.0 / 2f64.sqrt()).abs() < 1e-9);
    let last: Vec<String> = found.entries[found.entries.len() - 4..]
        .iter()
        .map(Entry::plain)
        .collect();
    assert_eq!(last, ["64", "0", "0", "64"]);
}

/// FCPTS is an allocator for each that it starts from and each reading of the paper, and both readings stand beside the
/// paper's numbers.
#[test]
fn learned_allocations_are_methods_of_table_2() {
    let mut records = fixture::records();
    for record in fixture::records() {
        if allocation(&record).is_none_or(|(name, _)| name != "erk") {
            continue;
        }
        for (weights, fewer) in [(None, 0), (Some("dense"), 100)] {
            let mut record = record.clone();
            let sparsity = record.cell.sparsity.as_mut().expect("pruned");
            sparsity.criterion = crate::cell::Part::plain("fcpts", 1);
            if let Some(weights) = weights {
                let options = &mut sparsity.criterion.options;
                options.insert("weights".to_owned(), weights.into());
            }
            let correct = record.score.counts.correct().expect("counted") - fewer;
            record.score = crate::record::Score::top1(correct, 2000, 4000);
            record.training = Some(TrainingCurve(vec![
                EpochOutcome {
                    loss: 0.5,
                    penalty: 0.01,
                    rate: 0.8003,
                };
                8
            ]));
            records.push(fixture::rekeyed(record));
        }
    }
    let tables = all(&records);
    let table2 = table(&tables, "micro_table2_cls");
    let value = |method: &str| match &row(table2, [method, "70 %"])[2] {
        Entry::Number { value, .. } => *value,
        other => panic!("{method}: {other:?}"),
    };
    let (erk, trained) = (value("ERK"), value("FCPTS (ERK)"));
    assert_eq!(erk, trained);
    assert!(value("FCPTS (ERK), dense weights") < trained - 1.0);
    for method in ["FCPTS (ERK)", "FCPTS (ERK), dense weights"] {
        assert_eq!(row(table2, [method, "MS"])[3].plain(), "94.55");
    }
    let missing = &row(table2, ["FCPTS (L2Norm)", "70 %"])[2];
    assert_eq!(
        reason(table2, missing),
        "No record of FCPTS (L2Norm) in the store."
    );
    let cells = tables.iter().find(|t| t.id.ends_with("_cells")).unwrap();
    let curve = "training had loss 0.5000 after 1, 0.5000 after 2, 0.5000 after 4, 0.5000 after 6, 0.5000 after 8 epochs; \
                 rate 0.8003 at the end";
    assert!(cells.notes.iter().any(|note| note.contains(curve)));
    assert_eq!(allocator_name("fcpts_random"), "FCPTS (Random)");
    assert_eq!(
        allocator_name("fcpts_erk_dense_last_dense"),
        "FCPTS (ERK, last layer dense), dense weights"
    );
}

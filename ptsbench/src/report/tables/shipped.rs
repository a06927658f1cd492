//! The cells of a suite beside the records that come with the program.

use std::collections::BTreeMap;

use super::super::Words;
use super::super::suite::{Suite, level};
use super::super::table::{Column, Entry, Table};
use super::cells::{describing, describing_columns, in_order};
use super::{NOT_COUNTED, entry, plural, suite_notes};
use crate::cell::Key;
use crate::record::{Record, Score};

/// The cells whose score is another one than the shipped record's; none where no cell of the suite has such a record.
pub fn shipped(
    suite: &Suite<'_>,
    shipped: &BTreeMap<&Key, &Record>,
    words: &Words,
) -> Option<Table> {
    let mut columns = describing_columns();
    columns.extend([
        Column::numbers("Shipped score"),
        Column::numbers("Score here"),
        Column::numbers("Difference, images"),
        Column::words("Key"),
    ]);
    let mut table = Table::new(
        format!("{}_shipped", suite.id),
        "Beside the shipped records: cells that differ",
        columns,
    );
    let (mut cells, mut shared, mut largest) = (0, 0, (0, 0));
    for model in suite.all_models() {
        let mut begins_group = true;
        for here in in_order(model) {
            cells += 1;
            let Some(there) = shipped.get(&here.key) else {
                continue;
            };
            shared += 1;
            let difference = images(&here.score, &there.score);
            if difference.unwrap_or_default() == 0 && here.score.value == there.score.value {
                continue;
            }
            let images = here.score.counts.total();
            largest = largest.max((difference.unwrap_or_default().unsigned_abs(), images));
            let mut entries = describing(model, here);
            entries.extend([
                entry(&mut table, level(there), 2),
                entry(&mut table, level(here), 2),
                match difference {
                    Some(difference) => Entry::difference(difference as f64, 0),
                    None => table.missing(NOT_COUNTED),
                },
                Entry::text(here.key.short()),
            ]);
            table.push(begins_group, entries);
            begins_group = false;
        }
    }
    if shared == 0 {
        return None;
    }
    let standing = match (shared - table.rows.len(), largest) {
        (equal, _) if equal == shared => "all are equal".to_owned(),
        (equal, (0, _)) => format!("{equal} are equal"),
        (equal, (difference, images)) => format!(
            "{equal} are equal; the largest difference is {} of {images}",
            plural(difference as usize, "image")
        ),
    };
    table.notes.push(format!(
        "{shared} of {} have a shipped record; {standing}.",
        plural(cells, "cell")
    ));
    table.notes.extend(suite_notes(suite, words));
    Some(table)
}

/// By how many right images one score is above another, where right ones are counted.
fn images(score: &Score, other: &Score) -> Option<i64> {
    let right = |score: &Score| i64::try_from(score.counts.correct()?).ok();
    Some(right(score)? - right(other)?)
}

#[cfg(test)]
mod tests {
    use super::super::super::suite::suites;
    use super::super::super::{csv, fixture, html, latex, markdown};
    use super::*;
    use crate::record::Level;

    fn beside(records: &[Record], others: &[Record]) -> Option<Table> {
        let others = others.iter().map(|record| (&record.key, record)).collect();
        let suites = suites(records);
        assert_eq!(suites.len(), 1);
        shipped(&suites[0], &others, &Words::default())
    }

    fn changed(record: &mut Record, by: i64) {
        let correct = record
            .score
            .counts
            .correct()
            .unwrap()
            .saturating_add_signed(by);
        record.score = Score::top1(
            correct,
            record.score.counts.total(),
            record.score.counts.available(),
        );
    }

    #[test]
    fn cells_that_differ_are_listed_with_the_images_between_them() {
        let others = fixture::records();
        let mut records = others.clone();
        changed(&mut records[3], -2);
        changed(&mut records[40], 1);
        // One that was not shipped, and one that is not here.
        let others: Vec<Record> = others[1..].to_vec();
        records.pop();
        let table = beside(&records, &others).expect("most cells have one");
        assert_eq!(table.id, "micro_shipped");
        assert_eq!(table.rows.len(), 2, "{table:?}");
        let shown = |row: usize| -> Vec<String> {
            table.rows[row].entries.iter().map(Entry::plain).collect()
        };
        let top1 = |record: &Record| format!("{:.2}", level(record).expect("a number"));
        for row in [0, 1] {
            let shown = shown(row);
            let key = shown.last().expect("a key");
            let fits = |record: &&Record| record.key.short() == key;
            let here = records.iter().find(fits).expect("here");
            let there = others.iter().find(fits).expect("shipped");
            assert_eq!(shown[0], here.cell.model);
            assert_eq!(shown[6..8], [top1(there), top1(here)]);
        }
        let differences = [0, 1].map(|row| shown(row)[8].clone());
        assert_eq!(differences, ["-2", "+1"]);
        assert_eq!(
            table.notes[0],
            "66 of 67 cells have a shipped record; 64 are equal; the largest difference is 2 images of 2000."
        );
        // The procedural set never goes without its warning.
        assert!(table.notes[1].contains("procedural"), "{:?}", table.notes);
    }

    #[test]
    fn a_table_without_rows_is_a_title_and_a_sentence() {
        let mut records = fixture::records();
        for record in &mut records {
            record.environment.processor = "another".to_owned();
            record.timing.evaluate_s = 9.0;
        }
        let table = beside(&records, &fixture::records()).expect("all are shipped");
        let note = "68 of 68 cells have a shipped record; all are equal.";
        assert_eq!((table.rows.len(), table.notes[0].as_str()), (0, note));
        let text = markdown::render(&table);
        assert!(text.contains(&format!("that differ\n\n{note}\n")), "{text}");
        assert!(!text.contains('|'), "{text}");
        let text = latex::render(&table);
        assert!(text.contains(note) && !text.contains("tabular"), "{text}");
        let text = html::render(&table);
        assert!(text.contains(note) && !text.contains("<table"), "{text}");
        let text = csv::render(&table);
        assert_eq!(text.lines().count(), 1, "a header alone: {text}");
    }

    #[test]
    fn there_is_no_table_where_nothing_is_shared() {
        assert_eq!(beside(&fixture::records(), &[]), None);
        let mut other = fixture::records().remove(0);
        other.cell.task.samples = 10;
        assert_eq!(
            beside(&fixture::records(), &[fixture::rekeyed(other)]),
            None
        );
    }

    #[test]
    fn a_network_that_collapsed_differs_whatever_its_counts() {
        let mut records = fixture::records();
        records[5].score.value = Level::Collapsed;
        let table = beside(&records, &fixture::records()).expect("all are shipped");
        let row = &table.rows[0].entries;
        assert_eq!([row[7].plain(), row[8].plain()], ["-", "0"]);
        assert!(table.footnotes()[0].starts_with("Collapsed"));
    }
}

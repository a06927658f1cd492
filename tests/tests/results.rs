//! The results in README and docs against the shipped records: tables between marks, and figures.
//!
//! `<!-- table micro_table5 Method=L2Norm|ERK -->` begins the rows of a table in which a column has one of these values, and
//! `<!-- /table -->` ends them. `methods/micro_methods` is a table of the records of the plan `methods`; without a plan it is one of
//! `micro`. `make readme-results` writes tables and figures again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ptsbench::record::Record;
use ptsbench::report::table::Table;
use ptsbench::report::{self, Words, markdown};
use ptsbench::store::packed;

const BEGIN: &str = "<!-- table ";
const END: &str = "<!-- /table -->";
const HINT: &str = "`make readme-results` writes it again";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn updates() -> bool {
    std::env::var_os("PTSBENCH_UPDATE_SNAPSHOTS").is_some()
}

fn shipped() -> Vec<Record> {
    records_of("micro")
}

/// The shipped records of a plan.
fn records_of(plan: &str) -> Vec<Record> {
    let file = format!("assets/results/{plan}.jsonl.gz");
    let contents = packed::read(&root().join(file)).unwrap();
    assert!(contents.broken.is_empty(), "{:?}", contents.broken);
    contents.records
}

/// The tables of all shipped records, those of `micro` by their names, others with their plan's name before.
fn tables() -> BTreeMap<String, Table> {
    let mut all = BTreeMap::new();
    for (plan, before) in [
        ("micro", ""),
        ("methods", "methods/"),
        ("correction", "correction/"),
    ] {
        let tables = report::tables(&records_of(plan), &[], &Words::default()).unwrap();
        all.extend(tables.into_iter().map(|t| (format!("{before}{}", t.id), t)));
    }
    all
}

/// The rows that a mark asks for, as they stand in a document.
fn asked(tables: &BTreeMap<String, Table>, mark: &str) -> String {
    let (id, filter) = mark.split_once(' ').unwrap_or((mark, ""));
    let table = tables
        .get(id)
        .unwrap_or_else(|| panic!("no table `{id}`; there are {:?}", tables.keys()));
    let mut table = match filter.split_once('=') {
        None => table.clone(),
        Some((column, values)) => {
            let place = table.columns.iter().position(|c| c.name == column);
            let place = place.unwrap_or_else(|| panic!("`{id}` has no column `{column}`"));
            let values: Vec<&str> = values.split('|').collect();
            table.with_rows(|row| values.contains(&row.entries[place].plain().as_str()))
        }
    };
    assert!(!table.rows.is_empty(), "`{mark}` has no rows");
    // Documents say themselves what a table shows.
    table.notes.clear();
    let text = markdown::render(&table);
    let (_, rows) = text.split_once("\n\n").unwrap();
    rows.to_owned()
}

/// The document with its tables as the records have them.
fn renewed(text: &str, tables: &BTreeMap<String, Table>) -> (String, usize) {
    let (mut out, mut rest, mut count) = (String::new(), text, 0);
    while let Some(at) = rest.find(BEGIN) {
        let (before, marked) = rest.split_at(at);
        let (mark, after) = marked[BEGIN.len()..].split_once(" -->\n").unwrap();
        let (_, after) = after.split_once(END).expect("a mark that ends the table");
        out += &format!(
            "{before}{BEGIN}{mark} -->\n\n{}\n{END}",
            asked(tables, mark)
        );
        (rest, count) = (after, count + 1);
    }
    (out + rest, count)
}

#[test]
fn documents_show_the_shipped_records() {
    let (tables, mut count) = (tables(), 0);
    for name in [
        "README.md",
        "docs/results.md",
        "docs/methods.md",
        "docs/correction.md",
    ] {
        let path = root().join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let (new, marks) = renewed(&text, &tables);
        count += marks;
        if updates() {
            std::fs::write(&path, new).unwrap();
        } else {
            assert!(text == new, "{name} shows other numbers; {HINT}");
        }
    }
    assert!(count >= 9, "{count} tables");
}

#[test]
fn figures_of_the_documents_are_those_of_the_shipped_records() {
    let figures = report::figures(&shipped()).unwrap();
    let folder = root().join("docs/img");
    let mut count = 0;
    for figure in &figures {
        let path = folder.join(format!("{}.svg", figure.id));
        let Ok(stored) = std::fs::read_to_string(&path) else {
            continue;
        };
        count += 1;
        let drawn = figure.svg().unwrap();
        if updates() {
            std::fs::write(&path, drawn).unwrap();
        } else {
            assert!(stored == drawn, "{} is another; {HINT}", path.display());
        }
    }
    let stored = std::fs::read_dir(folder).unwrap();
    let names = stored.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(count, names.filter(|name| name.ends_with(".svg")).count());
}

#[test]
fn a_mark_takes_the_rows_it_names() {
    let tables = tables();
    let text = format!("a\n{BEGIN}micro_table2_cls_compact Method=Uniform -->\nold\n{END}\nb\n");
    let (new, count) = renewed(&text, &tables);
    assert_eq!(count, 1);
    assert!(new.starts_with("a\n") && new.ends_with(&format!("{END}\nb\n")));
    assert!(!new.contains("old") && new.contains("| Uniform") && !new.contains("| ERK"));
    assert_eq!(renewed(&new, &tables).0, new);
}

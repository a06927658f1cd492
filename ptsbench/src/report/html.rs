//! The report: one page that needs nothing but itself.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::figure::Figure;
use super::table::{ColumnKind, Entry, Table};
use super::{ReportError, Words, suite};
use crate::record::Record;

const STYLE: &str = include_str!("style.css");

/// Writes the page.
pub fn page(
    records: &[Record],
    tables: &[Table],
    figures: &[Figure],
    words: &Words,
) -> Result<String, ReportError> {
    let mut out = String::new();
    out.push_str(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>PTSBench report</title>\n<style>\n",
    );
    out.push_str(STYLE);
    out.push_str(
        "</style>\n</head>\n<body>\n<header>\n<h1>PTSBench report</h1>\n<p class=\"lead\">",
    );
    out.push_str(&sentence(&lead(records, words)));
    out.push_str("</p>\n<nav><a href=\"#run\">What was run</a> <a href=\"#figures\">Figures</a> ");
    out.push_str("<a href=\"#tables\">Tables</a> <a href=\"#notes\">Notes</a> <a href=\"#again\">How to make this again</a></nav>\n</header>\n<main>\n");

    out.push_str("<section id=\"run\">\n<h2>What was run</h2>\n");
    for suite in suite::suites(records) {
        out.push_str(&render(&overview(&suite)));
    }
    out.push_str("</section>\n<section id=\"figures\">\n<h2>Figures</h2>\n");
    for figure in figures {
        write!(
            out,
            "<figure id=\"{0}\">\n<div class=\"card\">{1}</div>\n<figcaption>{2}</figcaption>\n</figure>\n",
            escape(&figure.id),
            figure.svg()?,
            escape(&figure.description)
        )
        .expect("a string");
    }
    out.push_str("</section>\n<section id=\"tables\">\n<h2>Tables</h2>\n");
    // The table of all cells is long and comes last, folded.
    let (long, short): (Vec<&Table>, Vec<&Table>) =
        tables.iter().partition(|t| t.id.ends_with("_cells"));
    for table in short {
        out.push_str(&render(table));
    }
    for table in long {
        write!(
            out,
            "<details>\n<summary>{} ({} rows)</summary>\n{}</details>\n",
            escape(&table.title),
            table.rows.len(),
            render(table)
        )
        .expect("a string");
    }
    out.push_str("</section>\n<section id=\"notes\">\n<h2>Notes</h2>\n<ul>\n");
    for note in notes(words) {
        writeln!(out, "<li>{}</li>", sentence(&note)).expect("a string");
    }
    out.push_str("</ul>\n</section>\n<section id=\"again\">\n<h2>How to make this again</h2>\n");
    let plan = words.plan.as_deref().unwrap_or("micro");
    write!(
        out,
        "<pre><code>ptsbench run {0}\nptsbench report --plan {0}\nptsbench figures --plan {0}\n</code></pre>\n\
         <p>The first command computes the cells of the plan that have no record yet, and <code>ptsbench plan {0}</code> \
         shows them beforehand. The other two read records alone; equal records give equal bytes.</p>\n",
        escape(plan)
    )
    .expect("a string");
    out.push_str("</section>\n</main>\n</body>\n</html>\n");
    Ok(out)
}

fn lead(records: &[Record], words: &Words) -> String {
    let sparse = records.iter().filter(|r| r.cell.sparsity.is_some()).count();
    let plan = words
        .plan
        .as_ref()
        .map(|p| format!(" of the plan `{p}`"))
        .unwrap_or_default();
    format!(
        "Post-training sparsity: {} measurements{plan}, {} dense and {sparse} sparse.",
        records.len(),
        records.len() - sparse
    )
}

fn notes(words: &Words) -> Vec<String> {
    let notes = words.notes.iter().map(|note| note.text.clone());
    let mut notes: Vec<String> = notes.collect();
    notes.extend([
        "The paper is “PTSBench: A Comprehensive Post-Training Sparsity Benchmark Towards Algorithms and Models”, \
         arXiv 2412.07268 (ACM MM 2024); its numbers are quoted from its tables."
            .to_owned(),
        "Every number of ours is a function of the records; a dash is a value that does not exist, and its footnote \
         says why."
            .to_owned(),
        "Where the paper's equations and tables disagree, the reading that reproduces the tables is shown and the \
         other beside it."
            .to_owned(),
    ]);
    notes
}

/// Networks of a suite and how many cells each has.
fn overview(suite: &suite::Suite<'_>) -> Table {
    use super::table::Column;
    let mut table = Table::new(
        format!("{}_overview", suite.id),
        format!(
            "Task `{}`, version {}, {} images",
            suite.task.name, suite.task.version, suite.task.samples
        ),
        vec![
            Column::words("Network"),
            Column::numbers("Prunable weights"),
            Column::numbers("Parameters"),
            Column::numbers("Multiply-adds"),
            Column::numbers(format!("Dense: {}", suite.metric())),
            Column::numbers("Pruned cells"),
            Column::numbers("Reconstructed cells"),
        ],
    );
    for model in suite.all_models() {
        let mut cells: BTreeMap<bool, u64> = BTreeMap::new();
        for sparsity in model.own_records().filter_map(|r| r.cell.sparsity.as_ref()) {
            *cells.entry(sparsity.reconstruction.is_some()).or_default() += 1;
        }
        let count = |reconstructed| Entry::Count(cells.get(&reconstructed).copied().unwrap_or(0));
        let (score, parameters, macs) = match model.dense() {
            Ok(dense) => (
                match suite::level(dense) {
                    Ok(value) => Entry::number(value, 2),
                    Err(reason) => table.missing(reason),
                },
                Entry::Count(dense.cost.parameters),
                Entry::Count(dense.cost.macs),
            ),
            Err(reason) => {
                let missing = table.missing(reason);
                (missing.clone(), missing.clone(), missing)
            }
        };
        table.push(
            false,
            vec![
                Entry::text(&model.label),
                Entry::Count(model.weights),
                parameters,
                macs,
                score,
                count(false),
                count(true),
            ],
        );
    }
    table
}

/// A table in a container of its own that scrolls.
pub fn render(table: &Table) -> String {
    // The title stands outside the container, or it would be as wide as the table and scroll with it.
    let mut out = format!(
        "<div class=\"table\">\n<h3 id=\"{}\">{}</h3>\n",
        escape(&table.id),
        sentence(&table.title)
    );
    if !table.rows.is_empty() {
        rows(&mut out, table);
    }
    if !table.footnotes().is_empty() {
        out.push_str("<ol class=\"footnotes\">\n");
        for footnote in table.footnotes() {
            writeln!(out, "<li>{}</li>", sentence(footnote)).expect("a string");
        }
        out.push_str("</ol>\n");
    }
    for note in &table.notes {
        writeln!(out, "<p class=\"note\">{}</p>", sentence(note)).expect("a string");
    }
    out.push_str("</div>\n");
    out
}

/// What stands between a table's title and its notes.
fn rows(out: &mut String, table: &Table) {
    write!(
        out,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-labelledby=\"{0}\">\n\
         <table aria-labelledby=\"{0}\">\n<thead><tr>",
        escape(&table.id)
    )
    .expect("a string");
    for column in &table.columns {
        write!(
            out,
            "<th scope=\"col\"{}>{}</th>",
            class(column.kind),
            escape(&column.name)
        )
        .expect("a string");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    let mut open = None;
    for row in &table.rows {
        out.push_str(if row.begins_group {
            "<tr class=\"group\">"
        } else {
            "<tr>"
        });
        for (index, (entry, column)) in row.entries.iter().zip(&table.columns).enumerate() {
            if index == 0 {
                // A name repeated down a group is read once by the eye and every time by a screen reader.
                let repeated = !row.begins_group && open == Some(entry);
                let class = if repeated { " class=\"again\"" } else { "" };
                write!(out, "<th scope=\"row\"{class}>{}</th>", cell(table, entry))
                    .expect("a string");
                open = Some(entry);
            } else {
                write!(out, "<td{}>{}</td>", class(column.kind), cell(table, entry))
                    .expect("a string");
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
}

fn class(kind: ColumnKind) -> &'static str {
    if kind == ColumnKind::Words {
        ""
    } else {
        " class=\"number\""
    }
}

fn cell(table: &Table, entry: &Entry) -> String {
    match (entry, entry.spread()) {
        (Entry::Missing(index), _) => {
            let reason = table
                .footnotes()
                .get(*index)
                .map(String::as_str)
                .unwrap_or_default();
            format!(
                "<span title=\"{}\">–<sup>{}</sup></span>",
                escape(reason),
                index + 1
            )
        }
        (Entry::Number { .. }, Some(spread)) => {
            format!(
                "{}<span class=\"spread\"> ± {spread}</span>",
                minus(&entry.plain())
            )
        }
        (Entry::Number { .. }, None) => minus(&entry.plain()),
        _ => escape(&entry.plain()),
    }
}

/// A number with a true minus sign.
fn minus(digits: &str) -> String {
    digits.replace('-', "\u{2212}")
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(c),
        }
    }
    out
}

/// A sentence, with text between backticks as code.
fn sentence(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(index, part)| {
        if index % 2 == 1 {
            format!("<code>{}</code>", escape(part))
        } else {
            escape(part)
        }
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::super::{figures, fixture, table::tests::sample, tables};
    use super::*;

    #[test]
    fn a_table_is_escaped_and_explained() {
        let got = render(&sample());
        assert!(
            got.contains("<th scope=\"row\">a_b|&lt;c&gt;</th>"),
            "{got}"
        );
        assert!(
            got.contains("<td class=\"number\">96.94<span class=\"spread\"> ± 0.12</span></td>"),
            "{got}"
        );
        assert!(
            got.contains("<span title=\"No record, at &quot;60 %&quot;.\">–<sup>1</sup></span>"),
            "{got}"
        );
        assert!(
            got.contains("<td class=\"number\">\u{2212}0.25</td>"),
            "{got}"
        );
    }

    #[test]
    fn the_page_needs_nothing_but_itself() {
        let records = fixture::records();
        let words = Words {
            plan: Some("micro".to_owned()),
            notes: vec![super::super::Note {
                task: None,
                text: "Levels are not <comparable>.".to_owned(),
            }],
        };
        let tables = tables(&records, &[], &words).expect("published numbers");
        let page = page(
            &records,
            &tables,
            &figures(&records).expect("published numbers"),
            &words,
        )
        .expect("drawn");
        for foreign in ["src=", "<link", "<script", "url(", "@import", "href=\"http"] {
            assert!(
                !page.contains(foreign),
                "the page refers to something else by `{foreign}`"
            );
        }
        for id in ["run", "tables", "figures", "notes", "again"] {
            assert!(page.contains(&format!("<section id=\"{id}\">")), "{id}");
        }
        assert_eq!(page.matches("<svg").count(), 4);
        assert!(page.contains("Levels are not &lt;comparable&gt;."));
        assert!(page.contains("ptsbench run micro"));
        assert!(
            page.contains("68 measurements of the plan <code>micro</code>, 3 dense and 65 sparse.")
        );
    }
}

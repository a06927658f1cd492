//! A table as GitHub-flavoured markdown.

use std::fmt::Write;

use super::table::{ColumnKind, Entry, Table};

/// Writes the table, padded so that the source reads as a table too; without rows it is its title and notes.
pub fn render(table: &Table) -> String {
    let mut out = format!("### {}\n", escape(&table.title));
    if !table.rows.is_empty() {
        out.push('\n');
        rows(&mut out, table);
    }
    if !table.footnotes().is_empty() {
        out.push('\n');
        for (index, footnote) in table.footnotes().iter().enumerate() {
            // Two spaces at the end of a line keep the footnotes on lines of their own.
            writeln!(out, "<sup>{}</sup> {}  ", index + 1, escape(footnote)).expect("a string");
        }
    }
    for note in &table.notes {
        write!(out, "\n{}\n", escape(note)).expect("a string");
    }
    out
}

/// Header, rule and rows.
fn rows(out: &mut String, table: &Table) {
    let header: Vec<String> = table.columns.iter().map(|c| escape(&c.name)).collect();
    let rows: Vec<Vec<String>> = table
        .rows
        .iter()
        .map(|row| row.entries.iter().map(entry).collect())
        .collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|i| {
            let cells = rows.iter().map(|row| row[i].chars().count());
            cells
                .chain([header[i].chars().count(), 3])
                .max()
                .unwrap_or(3)
        })
        .collect();
    let right: Vec<bool> = table
        .columns
        .iter()
        .map(|c| c.kind != ColumnKind::Words)
        .collect();

    line(out, &header, &widths, &right);
    let rule: Vec<String> = widths
        .iter()
        .zip(&right)
        .map(|(&w, &right)| {
            if right {
                format!("{}:", "-".repeat(w - 1))
            } else {
                "-".repeat(w)
            }
        })
        .collect();
    line(out, &rule, &widths, &right);
    for row in &rows {
        line(out, row, &widths, &right);
    }
}

fn line(out: &mut String, cells: &[String], widths: &[usize], right: &[bool]) {
    for ((cell, &width), &right) in cells.iter().zip(widths).zip(right) {
        if right {
            write!(out, "| {cell:>width$} ").expect("a string");
        } else {
            write!(out, "| {cell:<width$} ").expect("a string");
        }
    }
    out.push_str("|\n");
}

fn entry(entry: &Entry) -> String {
    match (entry, entry.spread()) {
        (Entry::Missing(index), _) => format!("–<sup>{}</sup>", index + 1),
        (_, Some(spread)) => format!("{} ± {spread}", entry.plain()),
        _ => escape(&entry.plain()),
    }
}

/// Escapes what would end a cell or start emphasis or HTML; text between backticks is code and stays.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, part) in text.split('`').enumerate() {
        let code = index % 2 == 1;
        if index > 0 {
            out.push('`');
        }
        for c in part.chars() {
            match c {
                '|' => out.push_str("\\|"),
                '*' | '\\' | '_' if !code => out.extend(['\\', c]),
                '<' if !code => out.push_str("&lt;"),
                '>' if !code => out.push_str("&gt;"),
                _ => out.push(c),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::sample;

    #[test]
    fn snapshot() {
        let expected = "\
### A & B \\| 50 %

| Method          |       Ours, % |    Difference |          Runs |
| --------------- | ------------: | ------------: | ------------: |
| a\\_b\\|&lt;c&gt; |  96.94 ± 0.12 |         +1.50 |             3 |
| x               | –<sup>1</sup> | –<sup>2</sup> | –<sup>1</sup> |
| y               |          0.00 |         -0.25 |             1 |

<sup>1</sup> No record, at \"60 %\".  
<sup>2</sup> Not printed.  

100 % procedural.
";
        assert_eq!(super::render(&sample()), expected);
    }

    #[test]
    fn code_is_left_alone() {
        assert_eq!(super::escape("a_b `a_b*` a*b"), "a\\_b `a_b*` a\\*b");
    }
}

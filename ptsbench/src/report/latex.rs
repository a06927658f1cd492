//! A table as LaTeX with `booktabs` rules; it needs no other package.

use std::fmt::Write;

use super::table::{ColumnKind, Entry, Table};

/// Writes a `table` environment; without rows it is its caption and notes.
pub fn render(table: &Table) -> String {
    let mut out = format!(
        "% needs \\usepackage{{booktabs}}\n\\begin{{table}}\n\\centering\n\\caption{{{}}}\n\\label{{tab:{}}}\n",
        escape(&table.title),
        table.id.replace('_', "-"),
    );
    if !table.rows.is_empty() {
        rows(&mut out, table);
    }
    if !table.footnotes().is_empty() || !table.notes.is_empty() {
        out.push_str("\n\\smallskip\n\\begin{minipage}{\\linewidth}\\footnotesize\n");
        for (index, footnote) in table.footnotes().iter().enumerate() {
            writeln!(out, "$^{{{}}}$ {}\\par", index + 1, escape(footnote)).expect("a string");
        }
        for note in &table.notes {
            writeln!(out, "{}\\par", escape(note)).expect("a string");
        }
        out.push_str("\\end{minipage}\n");
    }
    out.push_str("\\end{table}\n");
    out
}

/// The `tabular` environment.
fn rows(out: &mut String, table: &Table) {
    let columns: String = table
        .columns
        .iter()
        .map(|c| {
            if c.kind == ColumnKind::Words {
                'l'
            } else {
                'r'
            }
        })
        .collect();
    let header: Vec<String> = table.columns.iter().map(|c| escape(&c.name)).collect();
    write!(
        out,
        "\\begin{{tabular}}{{{columns}}}\n\\toprule\n{} \\\\\n\\midrule\n",
        header.join(" & "),
    )
    .expect("a string");
    for (index, row) in table.rows.iter().enumerate() {
        if row.begins_group && index > 0 {
            out.push_str("\\midrule\n");
        }
        let entries: Vec<String> = row.entries.iter().map(entry).collect();
        writeln!(out, "{} \\\\", entries.join(" & ")).expect("a string");
    }
    out.push_str("\\bottomrule\n\\end{tabular}\n");
}

fn entry(entry: &Entry) -> String {
    match (entry, entry.spread()) {
        (Entry::Missing(index), _) => format!("--$^{{{}}}$", index + 1),
        (Entry::Number { .. }, Some(spread)) => format!("${} \\pm {spread}$", entry.plain()),
        (Entry::Number { .. }, None) => format!("${}$", entry.plain()),
        _ => escape(&entry.plain()),
    }
}

/// Sets text between backticks in typewriter type and escapes the rest.
fn escape(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(index, part)| {
        if index % 2 == 1 {
            format!("\\texttt{{{}}}", escape_characters(part))
        } else {
            escape_characters(part)
        }
    });
    parts.collect()
}

/// Escapes LaTeX's special characters and names the others that a plain font encoding lacks.
fn escape_characters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '<' => out.push_str("\\textless{}"),
            '>' => out.push_str("\\textgreater{}"),
            '|' => out.push_str("\\textbar{}"),
            '±' => out.push_str("$\\pm$"),
            '×' => out.push_str("$\\times$"),
            '–' => out.push_str("--"),
            '·' => out.push_str("$\\cdot$"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::sample;
    use super::*;

    #[test]
    fn special_characters_are_escaped() {
        assert_eq!(escape("50 % & a_b #1 {x}"), "50 \\% \\& a\\_b \\#1 \\{x\\}");
        assert_eq!(
            escape("\\~^<|"),
            "\\textbackslash{}\\textasciitilde{}\\textasciicircum{}\\textless{}\\textbar{}"
        );
        assert_eq!(escape("1 ± 2 – 3"), "1 $\\pm$ 2 -- 3");
        assert_eq!(escape("plan `a_b`."), "plan \\texttt{a\\_b}.");
    }

    #[test]
    fn rows_rules_and_footnotes() {
        let got = render(&sample());
        assert!(got.contains("\\begin{tabular}{lrrr}"), "{got}");
        assert!(
            got.contains("a\\_b\\textbar{}\\textless{}c\\textgreater{} & $96.94 \\pm 0.12$ & $+1.50$ & 3 \\\\"),
            "{got}"
        );
        assert!(
            got.contains("x & --$^{1}$ & --$^{2}$ & --$^{1}$ \\\\\n\\midrule\ny &"),
            "{got}"
        );
        assert!(
            got.contains("$^{1}$ No record, at \"60 \\%\".\\par"),
            "{got}"
        );
        assert_eq!(got.matches("\\midrule").count(), 2, "{got}");
    }
}

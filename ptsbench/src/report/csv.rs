//! A table as CSV (RFC 4180, line feeds): one header line, spreads in columns of their own, reasons in a last column.

use super::table::{ColumnKind, Entry, Table};

/// Writes the table. Notes are left out: a file for programs holds nothing but the table.
pub fn render(table: &Table) -> String {
    let mut header = Vec::new();
    for column in &table.columns {
        header.push(column.name.clone());
        if column.kind == ColumnKind::Measured {
            header.push(format!("{}: standard deviation", column.name));
        }
    }
    let reasons = !table.footnotes().is_empty();
    if reasons {
        header.push("Why missing".to_owned());
    }
    let mut out = line(&header);
    for row in &table.rows {
        let mut fields = Vec::new();
        let mut missing: Vec<&str> = Vec::new();
        for (entry, column) in row.entries.iter().zip(&table.columns) {
            fields.push(entry.plain());
            if column.kind == ColumnKind::Measured {
                fields.push(entry.spread().unwrap_or_default());
            }
            if let Entry::Missing(index) = entry {
                let reason = table.footnotes()[*index].as_str();
                if !missing.contains(&reason) {
                    missing.push(reason);
                }
            }
        }
        if reasons {
            fields.push(missing.join(" "));
        }
        out.push_str(&line(&fields));
    }
    out
}

fn line(fields: &[String]) -> String {
    let quoted: Vec<String> = fields.iter().map(|f| quote(f)).collect();
    quoted.join(",") + "\n"
}

/// Quotes a field that holds a separator, a quote or a line break.
fn quote(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::sample;

    #[test]
    fn snapshot() {
        let expected = "\
Method,\"Ours, %\",\"Ours, %: standard deviation\",Difference,Runs,Why missing
a_b|<c>,96.94,0.12,+1.50,3,
x,-,,-,-,\"No record, at \"\"60 %\"\". Not printed.\"
y,0.00,,-0.25,1,
";
        assert_eq!(super::render(&sample()), expected);
    }

    #[test]
    fn only_fields_that_need_it_are_quoted() {
        assert_eq!(super::quote("a b"), "a b");
        assert_eq!(super::quote("a\nb"), "\"a\nb\"");
        assert_eq!(super::quote("\""), "\"\"\"\"");
    }
}

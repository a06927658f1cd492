//! One model of a table, from which every format is written.
//!
//! A `Table` knows nothing of records, and the writers know nothing but a `Table`. A value that does not exist is an
//! [`Entry::Missing`] with the reason, which all formats show as a dash and a footnote; there is no way to write it as
//! a zero.

/// A table.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Stem of its files, e.g. `micro_table2_cls`.
    pub id: String,
    /// What it shows, in one line.
    pub title: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows, each as long as `columns`.
    pub rows: Vec<Row>,
    /// Sentences under it.
    pub notes: Vec<String>,
    footnotes: Vec<String>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its heading.
    pub name: String,
    /// Numbers are set flush right, words flush left.
    pub kind: ColumnKind,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// Words.
    Words,
    /// Numbers.
    Numbers,
    /// Numbers that may carry a spread, which the CSV writer gives a column of its own.
    Measured,
}

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Whether a new group begins here: formats that can draw a line above it.
    pub begins_group: bool,
    /// Its entries.
    pub entries: Vec<Entry>,
}

/// What stands in one place of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// Words.
    Text(String),
    /// A whole number.
    Count(u64),
    /// A number, rounded when it is written.
    Number {
        /// Its value.
        value: f64,
        /// Digits after the point.
        decimals: usize,
        /// Whether a positive value carries a plus sign.
        signed: bool,
        /// Standard deviation over runs, where there are several.
        spread: Option<f64>,
    },
    /// Nothing, for the reason in the table's footnote of this index.
    Missing(usize),
}

impl Entry {
    /// Words.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A number without sign or spread.
    pub fn number(value: f64, decimals: usize) -> Self {
        Self::Number {
            value,
            decimals,
            signed: false,
            spread: None,
        }
    }

    /// A difference.
    pub fn difference(value: f64, decimals: usize) -> Self {
        Self::Number {
            value,
            decimals,
            signed: true,
            spread: None,
        }
    }

    /// A number with the spread of its runs.
    pub fn measured(value: f64, spread: Option<f64>, decimals: usize) -> Self {
        Self::Number {
            value,
            decimals,
            signed: false,
            spread,
        }
    }

    /// The entry as words with ASCII signs, footnotes apart.
    pub fn plain(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(count) => count.to_string(),
            Self::Number {
                value,
                decimals,
                signed,
                ..
            } => fixed(*value, *decimals, *signed),
            Self::Missing(_) => "-".to_owned(),
        }
    }

    /// The spread as digits, where there is one.
    pub fn spread(&self) -> Option<String> {
        match self {
            Self::Number {
                spread: Some(spread),
                decimals,
                ..
            } => Some(fixed(*spread, *decimals, false)),
            _ => None,
        }
    }
}

/// Digits of a number; what rounds to zero carries no sign.
fn fixed(value: f64, decimals: usize, signed: bool) -> String {
    let digits = format!("{value:.decimals$}");
    let zero = digits.bytes().all(|b| matches!(b, b'-' | b'0' | b'.'));
    match (zero, signed) {
        (true, _) => digits.trim_start_matches('-').to_owned(),
        (false, true) if value > 0.0 => format!("+{digits}"),
        _ => digits,
    }
}

impl Table {
    /// An empty table.
    pub fn new(id: impl Into<String>, title: impl Into<String>, columns: Vec<Column>) -> Self {
        Self {
            id: id.into(),
            title: title.into(),
            columns,
            rows: Vec::new(),
            notes: Vec::new(),
            footnotes: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn push(&mut self, begins_group: bool, entries: Vec<Entry>) {
        assert_eq!(
            entries.len(),
            self.columns.len(),
            "a row of `{}` has as many entries as the table columns",
            self.id
        );
        self.rows.push(Row {
            begins_group,
            entries,
        });
    }

    /// An entry for a value that does not exist; equal reasons share a footnote.
    pub fn missing(&mut self, reason: impl Into<String>) -> Entry {
        let reason = reason.into();
        let known = self.footnotes.iter().position(|f| *f == reason);
        Entry::Missing(known.unwrap_or_else(|| {
            self.footnotes.push(reason);
            self.footnotes.len() - 1
        }))
    }

    /// The table with some of its rows, and the footnotes that these need.
    pub fn with_rows(&self, keep: impl Fn(&Row) -> bool) -> Self {
        let mut table = Self::new(&self.id, &self.title, self.columns.clone());
        table.notes.clone_from(&self.notes);
        for row in self.rows.iter().filter(|row| keep(row)) {
            let entry = |entry: &Entry| match entry {
                Entry::Missing(index) => table.missing(&self.footnotes[*index]),
                present => present.clone(),
            };
            let entries = row.entries.iter().map(entry).collect();
            table.push(row.begins_group, entries);
        }
        table
    }

    /// The reasons of missing entries; the first is footnote 1.
    pub fn footnotes(&self) -> &[String] {
        &self.footnotes
    }
}

impl Column {
    /// A column of words.
    pub fn words(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: ColumnKind::Words,
        }
    }

    /// A column of numbers.
    pub fn numbers(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: ColumnKind::Numbers,
        }
    }

    /// A column of numbers that may carry a spread.
    pub fn measured(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: ColumnKind::Measured,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A table with every kind of entry and every character some format must escape.
    pub(in crate::report) fn sample() -> Table {
        let columns = vec![
            Column::words("Method"),
            Column::measured("Ours, %"),
            Column::numbers("Difference"),
            Column::numbers("Runs"),
        ];
        let mut table = Table::new("sample", "A & B | 50 %", columns);
        table.push(
            true,
            vec![
                Entry::text("a_b|<c>"),
                Entry::measured(96.944, Some(0.125), 2),
                Entry::difference(1.5, 2),
                Entry::Count(3),
            ],
        );
        let first = table.missing("No record, at \"60 %\".");
        let second = table.missing("Not printed.");
        let third = table.missing("No record, at \"60 %\".");
        table.push(false, vec![Entry::text("x"), first, second, third]);
        table.push(
            true,
            vec![
                Entry::text("y"),
                Entry::number(-0.001, 2),
                Entry::difference(-0.25, 2),
                Entry::Count(1),
            ],
        );
        table.notes.push("100 % procedural.".to_owned());
        table
    }

    #[test]
    fn equal_reasons_share_a_footnote() {
        let table = sample();
        assert_eq!(table.footnotes().len(), 2);
        assert_eq!(table.rows[1].entries[1], table.rows[1].entries[3]);
        assert_eq!(table.rows[1].entries[1].plain(), "-");
    }

    #[test]
    fn some_rows_bring_their_footnotes_alone() {
        let table = sample().with_rows(|row| row.entries[0].plain() != "a_b|<c>");
        assert_eq!(table.rows.len(), 2);
        assert_eq!(table.footnotes(), sample().footnotes());
        let table = table.with_rows(|row| row.entries[0].plain() == "y");
        assert!(table.footnotes().is_empty());
        assert_eq!(table.notes, sample().notes);
    }

    #[test]
    fn numbers_are_rounded_when_written() {
        assert_eq!(Entry::number(2.345_678, 2).plain(), "2.35");
        assert_eq!(Entry::number(-0.001, 2).plain(), "0.00");
        assert_eq!(Entry::difference(0.001, 2).plain(), "0.00");
        assert_eq!(Entry::difference(-0.5, 1).plain(), "-0.5");
        assert_eq!(Entry::difference(0.5, 1).plain(), "+0.5");
        let measured = Entry::measured(1.0, Some(0.25), 1);
        assert_eq!(measured.spread().as_deref(), Some("0.2"));
        assert_eq!(Entry::Count(7).spread(), None);
    }
}

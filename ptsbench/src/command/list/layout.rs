//! A table as plain text, in a given width or as wide as it is.
//!
//! The first column names a thing and the last one says most of it. In a narrow terminal the last one is wrapped, then
//! those between go, the widest first; where even two have no room, each thing is a paragraph and nothing is left out.

/// Below this width the last column is not wrapped.
const LAST: usize = 24;
/// No terminal is narrower than this; if it is, lines break there.
const NARROWEST: usize = 20;
const GAP: usize = 2;

/// The text, and the columns that found no room in it.
pub fn text<'a>(
    columns: &[&'a str],
    rows: &[Vec<String>],
    width: Option<usize>,
) -> (String, Vec<&'a str>) {
    let all: Vec<usize> = (0..columns.len()).collect();
    let table = Table::new(columns, rows);
    let Some(width) = width.map(|width| width.max(NARROWEST)) else {
        return (table.text(&all, usize::MAX), Vec::new());
    };
    let mut shown = all.clone();
    while shown.len() >= 2 {
        let last = table.widths[shown[shown.len() - 1]];
        let before: usize = shown[..shown.len() - 1]
            .iter()
            .map(|&column| table.widths[column] + GAP)
            .sum();
        if before + last.min(LAST) <= width {
            let left_out = all.iter().filter(|column| !shown.contains(column));
            let left_out = left_out.map(|&column| columns[column]).collect();
            return (table.text(&shown, width - before), left_out);
        }
        let between = 1..shown.len() - 1;
        // The first of several that are equally wide.
        let Some(widest) = between
            .rev()
            .max_by_key(|&place| table.widths[shown[place]])
        else {
            break;
        };
        shown.remove(widest);
    }
    (stacked(columns, rows, width), Vec::new())
}

struct Table<'a> {
    columns: &'a [&'a str],
    rows: &'a [Vec<String>],
    /// Of the widest value.
    widths: Vec<usize>,
    /// Whether there are numbers alone, which go to the right.
    numbers: Vec<bool>,
}

impl<'a> Table<'a> {
    fn new(columns: &'a [&'a str], rows: &'a [Vec<String>]) -> Self {
        let width = |column: usize| {
            let widths = rows.iter().map(|row| row[column].chars().count());
            widths.chain([columns[column].len()]).max().unwrap_or(0)
        };
        let number = |column: usize| {
            // A dash stands where there is no number.
            let number = |value: &str| value == "-" || value.bytes().all(|b| b.is_ascii_digit());
            rows.iter().all(|row| number(&row[column])) && rows.iter().any(|row| row[column] != "-")
        };
        Self {
            columns,
            rows,
            widths: (0..columns.len()).map(width).collect(),
            numbers: (0..columns.len()).map(number).collect(),
        }
    }

    /// These columns, the last of them at most so wide.
    fn text(&self, shown: &[usize], last: usize) -> String {
        let mut text = self.line(shown, last, |column| self.columns[column]);
        for row in self.rows {
            text += &self.line(shown, last, |column| &row[column]);
        }
        text
    }

    /// A row, of as many lines as its last value takes.
    fn line<'r>(&self, shown: &[usize], last: usize, value: impl Fn(usize) -> &'r str) -> String {
        let Some((&end, before)) = shown.split_last() else {
            return String::new();
        };
        let mut head = String::new();
        for &column in before {
            let (value, width) = (value(column), self.widths[column]);
            if self.numbers[column] {
                head += &format!("{value:>width$}  ");
            } else {
                head += &format!("{value:<width$}  ");
            }
        }
        let indent = " ".repeat(head.chars().count());
        let mut text = String::new();
        for (index, part) in wrapped(value(end), last).iter().enumerate() {
            let start = if index == 0 { &head } else { &indent };
            let width = if self.numbers[end] {
                self.widths[end]
            } else {
                0
            };
            text += format!("{start}{part:>width$}").trim_end();
            text.push('\n');
        }
        text
    }
}

/// A paragraph for each row.
fn stacked(columns: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let mut text = String::new();
    for row in rows {
        for (index, (column, value)) in columns.iter().zip(row).enumerate() {
            let (line, indent) = match index {
                0 => (value.clone(), ""),
                _ => (format!("{column}: {value}"), "  "),
            };
            for (place, part) in wrapped(&line, width - 4).iter().enumerate() {
                // What goes on is further in than what begins.
                let further = if place == 0 { "" } else { "  " };
                text += &format!("{indent}{further}{part}\n");
            }
        }
    }
    text
}

/// The lines of a text at most so wide, broken at spaces; a word that is longer is cut.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last_mut().expect("there is always a line");
            let used = line.chars().count();
            let gap = usize::from(used > 0);
            if used + gap + word.len() <= width {
                line.extend([' '].iter().take(gap).chain(&word));
                break;
            }
            if used == 0 {
                let rest = word.split_off(width);
                line.extend(&word);
                word = rest;
            }
            lines.push(String::new());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::list::{What, rows};
    use clap::ValueEnum;

    fn lists() -> Vec<(Vec<&'static str>, Vec<Vec<String>>)> {
        let whats = What::value_variants().iter();
        whats.map(|what| rows(*what, None).unwrap()).collect()
    }

    fn widest(text: &str) -> usize {
        text.lines().map(|line| line.chars().count()).max().unwrap()
    }

    #[test]
    fn every_list_fits_every_terminal() {
        for (columns, rows) in lists() {
            for width in 20..200 {
                let (text, left_out) = text(&columns, &rows, Some(width));
                assert!(widest(&text) <= width, "{width}:\n{text}");
                let head = text.lines().next().unwrap().split("  ");
                let head: Vec<&str> = head.map(str::trim).collect();
                for column in &columns[1..] {
                    let shown = head.contains(column) || text.contains(&format!("  {column}:"));
                    let told = left_out.contains(column);
                    assert!(shown != told, "{width}: {column}\n{text}");
                }
            }
        }
    }

    #[test]
    fn what_is_piped_or_has_room_is_whole() {
        for (columns, rows) in lists() {
            let (whole, left_out) = text(&columns, &rows, None);
            assert!(left_out.is_empty());
            assert_eq!(whole.lines().count(), 1 + rows.len());
            for value in rows.iter().flatten() {
                assert!(whole.contains(value), "{value}");
            }
            assert_eq!(text(&columns, &rows, Some(widest(&whole))).0, whole);
        }
    }

    fn small(width: usize) -> String {
        let row = |values: [&str; 4]| values.map(str::to_owned).to_vec();
        let rows = [
            row(["first", "12", "ab", "a sentence of several words"]),
            row(["second_one", "3", "c", "another"]),
        ];
        text(&["name", "size", "kind", "about"], &rows, Some(width)).0
    }

    #[test]
    fn the_last_column_is_wrapped_then_those_between_go_then_rows_are_paragraphs() {
        assert_eq!(
            small(48),
            "name        size  kind  about\n\
             first         12  ab    a sentence of several\n                        words\n\
             second_one     3  c     another\n"
        );
        assert_eq!(
            small(44),
            "name        kind  about\n\
             first       ab    a sentence of several\n                  words\n\
             second_one  c     another\n"
        );
        assert_eq!(
            small(22),
            "first\n  size: 12\n  kind: ab\n  about: a sentence\n    of several words\n\
             second_one\n  size: 3\n  kind: c\n  about: another\n"
        );
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(
            wrapped("a/very/long/address of", 8),
            ["a/very/l", "ong/addr", "ess of"]
        );
        assert_eq!(wrapped("", 8), [""]);
    }
}

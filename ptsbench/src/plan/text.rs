//! A plan's text: where it is wrong and what was probably meant, and single values set over it.

use model_zoo::misspelt::{did_you_mean, nearest};

use super::PlanError;

/// The error with its line and column.
pub(super) fn located(error: &toml::de::Error, text: &str, file: &str) -> PlanError {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    PlanError::Text {
        file: file.into(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message: explain(error.message()),
    }
}

/// Serde's message, with the nearest of the names it expected. Serde reports an unknown name and the known ones in
/// backticks; that list is the only one there is, so it cannot go stale.
pub(super) fn explain(message: &str) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match (message.split(' ').next(), names.as_slice()) {
        (Some("unknown"), [wrong, known @ ..]) if !known.is_empty() => {
            let what = if message.starts_with("unknown field") {
                "key"
            } else {
                "value"
            };
            format!(
                "unknown {what} `{wrong}`{} (known here: {})",
                suggestion(wrong, known),
                known.join(", ")
            )
        }
        _ => plain(message.trim_end()),
    }
}

/// Serde's message with Rust's names of types in words.
fn plain(message: &str) -> String {
    let Some((before, expected)) = message.rsplit_once("expected ") else {
        return message.to_string();
    };
    let words = match expected {
        "usize" | "u64" => "a whole number, 0 or more",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list, such as [0.5, 0.7]",
        "a string" => "a text in quotes",
        other => other,
    };
    format!("{before}expected {words}")
}

/// `, did you mean ...?` with the known names near to `wrong`, or nothing.
pub(super) fn suggestion(wrong: &str, known: &[&str]) -> String {
    did_you_mean(&nearest(wrong, known))
}

/// Applies `a.b=c` to a plan's table. Whether the key exists is judged by reading the table as a plan afterwards.
pub(super) fn apply(table: &mut toml::Table, set: &str) -> Result<(), String> {
    let Some((path, text)) = set.split_once('=') else {
        return Err("expected KEY=VALUE, such as task.samples=200 or grid.0.rates=[0.5]".into());
    };
    let path: Vec<&str> = path.trim().split('.').collect();
    if path.iter().any(|segment| segment.is_empty()) {
        return Err("the key has an empty part; write it as a.b".into());
    }
    let value = parse_value(text.trim())?;
    let (last, parents) = path.split_last().ok_or("the key is empty")?;

    let mut here = table;
    let mut walked = String::new();
    let mut parents = parents.iter().peekable();
    while let Some(&segment) = parents.next() {
        if walked == "fit" && !here.contains_key(segment) {
            let known: Vec<&str> = here.keys().map(String::as_str).collect();
            return Err(format!(
                "the plan has no [fit.{segment}]{} (it has {})",
                suggestion(segment, &known),
                if known.is_empty() {
                    "none".into()
                } else {
                    known.join(", ")
                }
            ));
        }
        let next = here
            .entry(segment)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        walked = format!(
            "{walked}{}{segment}",
            if walked.is_empty() { "" } else { "." }
        );
        here = match next {
            toml::Value::Table(table) => table,
            toml::Value::Array(items) => {
                let Some(&item) = parents.next() else {
                    return Err(format!(
                        "`{walked}` is a list; name one of its {} entries, such as {walked}.0.{last}",
                        items.len()
                    ));
                };
                let names: Vec<String> = items
                    .iter()
                    .filter_map(|item| item.get("name")?.as_str().map(String::from))
                    .collect();
                let index = item
                    .parse()
                    .ok()
                    .or_else(|| names.iter().position(|name| name == item));
                match index.and_then(|index: usize| items.get_mut(index)) {
                    Some(toml::Value::Table(table)) => {
                        walked = format!("{walked}.{item}");
                        table
                    }
                    _ => {
                        let known: Vec<&str> = names.iter().map(String::as_str).collect();
                        return Err(format!(
                            "`{walked}` has no entry `{item}`{} (use 0 to {}, or a name: {})",
                            suggestion(item, &known),
                            known.len().saturating_sub(1),
                            known.join(", ")
                        ));
                    }
                }
            }
            other => {
                return Err(format!(
                    "`{walked}` is a {}, so there is nothing below it; set `{walked}` itself",
                    other.type_str()
                ));
            }
        };
    }
    here.insert((*last).to_string(), value);
    Ok(())
}

/// A value in TOML's syntax, or a bare string where it does not start like one of TOML's quoted or bracketed values.
fn parse_value(text: &str) -> Result<toml::Value, String> {
    let parsed: Result<toml::Table, _> = toml::from_str(&format!("value = {text}"));
    match parsed {
        Ok(mut table) if table.len() == 1 => table.remove("value").ok_or("no value".into()),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            Err(format!("`{text}` is not a TOML value: {}", error.message()))
        }
        _ => Ok(toml::Value::String(text.into())),
    }
}

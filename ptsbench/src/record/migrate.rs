//! Older written forms of a record become this one, in memory: files are never written again.

use serde_json::{Map, Value};

use super::{Budget, SCHEMA, UnitOutcome};
use crate::cell::Cell;

/// The oldest schema that can still be read.
pub const OLDEST: u32 = 1;

/// Brings a record of schema `from`, as it was written, to [`SCHEMA`]; says what is missing where it cannot.
pub fn migrate(mut record: Map<String, Value>, from: u32) -> Result<Map<String, Value>, String> {
    if from == 1 {
        record = from_1(record)?;
    }
    record.insert("schema".into(), SCHEMA.into());
    Ok(record)
}

/// 1 to 2: the counts of a score move into a part of their own, and the budget, which the cell and its units tell, is
/// written down.
fn from_1(mut record: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let part = |name: &str| {
        let part = record.get(name).cloned();
        part.ok_or_else(|| format!("it has no {name}"))
    };
    let cell: Cell = read(part("cell")?)?;
    let units: Vec<UnitOutcome> = read(part("units")?)?;
    let budget = match cell
        .sparsity
        .as_ref()
        .and_then(|s| s.reconstruction.as_ref())
    {
        Some(settings) => Budget::of(settings, &units),
        None => Budget::default(),
    };

    let score = record.get_mut("score").and_then(Value::as_object_mut);
    let score = score.ok_or("it has no score")?;
    let mut counts = Map::from_iter([("of".to_owned(), Value::from("top1"))]);
    for name in ["correct", "total", "available"] {
        let count = score.shift_remove(name);
        counts.insert(
            name.into(),
            count.ok_or_else(|| format!("its score has no {name}"))?,
        );
    }
    score.insert("counts".into(), counts.into());
    record.insert(
        "budget".into(),
        serde_json::to_value(budget).map_err(|error| error.to_string())?,
    );
    Ok(record)
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

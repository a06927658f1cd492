//! The written forms of records and failures: parsed with suspicion, since files come from other programs, other
//! versions and failing disks. Records of older schemas are verified as they were written and then read as if they were
//! of this one; their files stay as they are.

use std::path::Path;

use model_zoo::file::{self, Unread};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Failure, StoreError};
use crate::cell::Key;
use crate::record::{OLDEST, Record, SCHEMA, migrate};

/// Bytes of a record or failure at most: a network of a thousand layers needs a tenth of it.
const LIMIT: u64 = 16 << 20;

const MOVE: &str = "move it away to have the cell measured again, or bring back a sound copy";
const REMOVE: &str = "remove it to have the cell tried again";
const OTHER_VERSION: &str =
    "use the program that wrote it, or another store with --store; or move it away";

/// SHA-256, in hex, of a record without `timing` and `environment`: equal where two runs agree.
pub fn digest(record: &Record) -> String {
    match to_value(record) {
        Value::Object(map) => digest_of(map),
        _ => unreachable!("a record is an object"),
    }
}

/// The same of a written record without its digest, of any schema.
fn digest_of(mut map: Map<String, Value>) -> String {
    map.shift_remove("timing");
    map.shift_remove("environment");
    let hash = Sha256::digest(Value::Object(map).to_string());
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

/// Why a text is not what it should be, and what to do.
pub(super) struct Fault {
    pub why: String,
    pub remedy: &'static str,
}

impl Fault {
    pub fn at(self, path: &Path) -> StoreError {
        broken(path, self.why, self.remedy)
    }
}

/// Reads and verifies a record file, wherever it lies; none where there is no such file.
pub fn read_record(path: &Path) -> Result<Option<Record>, StoreError> {
    let Some(text) = read_text(path, LIMIT, MOVE)? else {
        return Ok(None);
    };
    let (record, _) = parse_record(&text, MOVE).map_err(|fault| fault.at(path))?;
    Ok(Some(record))
}

/// The record in the file that a key names, and the schema it was written in.
pub(super) fn record(path: &Path, key: &Key) -> Result<Option<(Record, u32)>, StoreError> {
    Ok(verified(path, key)?.map(|(_, record, schema)| (record, schema)))
}

/// The same as it was written, in one line.
pub(super) fn line(path: &Path, key: &Key) -> Result<Option<String>, StoreError> {
    Ok(verified(path, key)?.map(|(text, ..)| compact(&text)))
}

fn verified(path: &Path, key: &Key) -> Result<Option<(String, Record, u32)>, StoreError> {
    let Some(text) = read_text(path, LIMIT, MOVE)? else {
        return Ok(None);
    };
    let (record, schema) = parse_record(&text, MOVE).map_err(|fault| fault.at(path))?;
    match other_name(&record.key, key) {
        Some(why) => Err(broken(path, why, MOVE)),
        None => Ok(Some((text, record, schema))),
    }
}

/// JSON in one line without spaces.
pub(super) fn compact(text: &str) -> String {
    // Only called with what has been parsed once.
    serde_json::from_str::<Value>(text).map_or_else(|_| text.to_owned(), |value| value.to_string())
}

/// The key that a text says is its own, sound or not.
pub(super) fn key_of(text: &str) -> Option<Key> {
    #[derive(Deserialize)]
    struct Named {
        key: Key,
    }
    serde_json::from_str(text).ok().map(|Named { key }| key)
}

/// The failure in the file that a key names.
pub(super) fn failure(path: &Path, key: &Key) -> Result<Option<Failure>, StoreError> {
    let Some(text) = read_text(path, LIMIT, REMOVE)? else {
        return Ok(None);
    };
    let failure = parse_failure(&text).map_err(|fault| fault.at(path))?;
    match other_name(&failure.key, key) {
        Some(why) => Err(broken(path, why, REMOVE)),
        None => Ok(Some(failure)),
    }
}

fn other_name(found: &Key, named: &Key) -> Option<String> {
    (found != named).then(|| format!("its key is {found}, and its name says {named}"))
}

/// A JSON object of a schema that this program reads, and that schema.
fn parse(text: &str, remedy: &'static str) -> Result<(Map<String, Value>, u32), Fault> {
    let fault = |why| Fault { why, remedy };
    let value: Value = serde_json::from_str(text).map_err(|error| fault(error.to_string()))?;
    let Value::Object(map) = value else {
        return Err(fault("expected a JSON object".into()));
    };
    let Some(schema) = map.get("schema").and_then(Value::as_u64) else {
        return Err(fault("it has no schema number".into()));
    };
    match u32::try_from(schema) {
        Ok(known) if (OLDEST..=SCHEMA).contains(&known) => Ok((map, known)),
        _ => Err(Fault {
            why: format!("its schema is {schema}, and this program reads {OLDEST} to {SCHEMA}"),
            remedy: OTHER_VERSION,
        }),
    }
}

fn parse_failure(text: &str) -> Result<Failure, Fault> {
    // The form of a failure has been the same in all schemas.
    let (map, _) = parse(text, REMOVE)?;
    serde_json::from_value(map.into()).map_err(|error| Fault {
        why: error.to_string(),
        remedy: REMOVE,
    })
}

/// A record and the schema it was written in; `remedy` is what to do where it is damaged.
pub(super) fn parse_record(text: &str, remedy: &'static str) -> Result<(Record, u32), Fault> {
    let fault = |why| Fault { why, remedy };
    let (mut map, schema) = parse(text, remedy)?;
    let written = match map.shift_remove("digest") {
        Some(Value::String(digest)) => digest,
        _ => return Err(fault("it has no digest".into())),
    };
    let as_written = digest_of(map.clone());
    if schema != SCHEMA {
        map = migrate(map, schema).map_err(fault)?;
    }
    let record: Record =
        serde_json::from_value(map.into()).map_err(|error| fault(error.to_string()))?;
    let key = record.cell.key();
    if record.key != key {
        return Err(fault(format!(
            "its key is {}, and its cell's is {key}",
            record.key
        )));
    }
    if written != as_written {
        return Err(fault(format!(
            "its digest is {written}, and its contents' is {as_written}: something changed it"
        )));
    }
    Ok((record, schema))
}

fn broken(path: &Path, why: String, remedy: &'static str) -> StoreError {
    StoreError::Broken {
        path: path.to_path_buf(),
        why,
        remedy,
    }
}

/// The text of a file; none where there is nothing of that name.
fn read_text(path: &Path, limit: u64, remedy: &'static str) -> Result<Option<String>, StoreError> {
    let bytes = match file::read(path, limit) {
        Ok(bytes) => bytes,
        Err(error) if error.is_missing() && !path.is_symlink() => return Ok(None),
        Err(error) => return Err(unread(path, error, remedy)),
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(broken(path, "it is not UTF-8 text".into(), remedy)),
    }
}

/// The store's words for a file that was not read.
pub(super) fn unread(path: &Path, error: Unread, remedy: &'static str) -> StoreError {
    let why = match error {
        error if error.is_missing() => "it is a link to nothing".to_owned(),
        Unread::Io(reason) => return StoreError::reading(path, reason),
        other => format!("it {other}"),
    };
    broken(path, why, remedy)
}

pub(super) fn to_value(record: &Record) -> Value {
    serde_json::to_value(record).expect("a record has string keys and serializable fields only")
}

/// Pretty JSON with a final newline.
pub(super) fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec_pretty(value).expect("the store's types have string keys only");
    bytes.push(b'\n');
    bytes
}

/// The path of the first number that is NaN or infinite. JSON has no such numbers and serde writes null for them; a
/// record holds no other null.
pub(super) fn not_finite(value: &Value) -> Option<String> {
    fn find(value: &Value, path: &str) -> Option<String> {
        let below = |name: &dyn std::fmt::Display| match path {
            "" => name.to_string(),
            _ => format!("{path}.{name}"),
        };
        match value {
            Value::Null => Some(path.into()),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .find_map(|(index, item)| find(item, &below(&index))),
            Value::Object(map) => map
                .iter()
                .find_map(|(name, inner)| find(inner, &below(name))),
            _ => None,
        }
    }
    find(value, "")
}

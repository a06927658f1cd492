//! Malformed and foreign weight files: each is refused with the file, the tensor and the numbers in the message.
//!
//! Outcomes and the words a message must hold come with the golden data. The messages as a whole are kept in
//! `tests/snapshots/weights_messages.txt`; set `PTSBENCH_UPDATE_SNAPSHOTS` to write it again.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use model_zoo::weights::{Container, Source, WeightError};
use ptsbench_tests::files::assert_snapshot;

use super::datasets_malformed::{Case, cases};

/// The weight-file cases, with the folder that their paths are relative to.
fn weight_files() -> (PathBuf, Vec<Case>) {
    let (folder, mut cases) = cases();
    cases.retain(|case| case.reader == "safetensors");
    assert!(!cases.is_empty(), "no safetensors case");
    (folder, cases)
}

/// What a loader does: open, then read every tensor as weights.
fn read_all(path: &Path) -> Result<Vec<(String, usize)>, WeightError> {
    let file = Container::open(path)?;
    file.keys()
        .into_iter()
        .map(|key| file.read(&key).map(|values| (key, values.len())))
        .collect()
}

#[test]
fn datasets_safetensors_outcomes_and_words() {
    let (folder, cases) = weight_files();
    let mut wrong = Vec::new();
    for case in &cases {
        let path = folder.join(&case.paths[0]);
        match (case.outcome.as_str(), read_all(&path)) {
            ("accept", Ok(_)) => {}
            ("accept", Err(error)) => wrong.push(format!("{}: refused: {error}", case.id)),
            ("error", Ok(_)) => wrong.push(format!("{}: accepted", case.id)),
            ("error", Err(error)) => {
                let message = error.to_string();
                let file = path.display().to_string();
                for words in case
                    .should_say
                    .iter()
                    .map(String::as_str)
                    .chain(["file name"])
                {
                    let words = if words == "file name" { &file } else { words };
                    if !message.contains(words) {
                        wrong.push(format!("{}: {words:?} is not in {message:?}", case.id));
                    }
                }
            }
            (other, _) => wrong.push(format!("{}: unknown outcome {other:?}", case.id)),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn datasets_safetensors_messages_are_the_snapshot() {
    let (folder, cases) = weight_files();
    let mut found = String::new();
    for case in &cases {
        let path = folder.join(&case.paths[0]);
        let outcome = match read_all(&path) {
            Ok(tensors) => format!("accepted: {tensors:?}"),
            Err(error) => error
                .to_string()
                .replace(&path.display().to_string(), &case.paths[0]),
        };
        writeln!(found, "{}\n    {outcome}", case.id).unwrap();
    }
    assert_snapshot("weights_messages", &found);
}

//! Malformed data sets: each case is refused, accepted or warned about as the golden data says, in a message that
//! holds the words it must.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ptsbench::data::decode::{self, Rotation};
use ptsbench_tests::golden_topic;
use serde::Deserialize;

#[derive(Deserialize)]
struct Malformed {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    reader: String,
    outcome: String,
    paths: Vec<String>,
    should_say: Vec<String>,
}

/// The warnings of a case that is read, or why it is refused.
type Outcome = Result<Vec<String>, String>;

/// Reads a case; `None` for the readers that other tests judge.
fn read(case: &Case, folder: &Path) -> Option<Outcome> {
    let first = folder.join(&case.paths[0]);
    match case.reader.as_str() {
        "image" => Some(
            decode::read(&first, Rotation::Ignore)
                .map(|_| Vec::new())
                .map_err(|error| error.to_string()),
        ),
        _ => None,
    }
}

/// Whether a message says what it should: any of the alternatives, and for a description what it stands for.
fn says(message: &str, wanted: &str, case: &Case) -> bool {
    let message = message.to_lowercase();
    let any = |words: &[&str]| {
        words
            .iter()
            .any(|word| message.contains(&word.to_lowercase()))
    };
    let name = |path: &String| {
        let name = Path::new(path).file_name().expect("a file name");
        message.contains(&name.to_string_lossy().to_lowercase())
    };
    match wanted {
        "file name" => case.paths.iter().any(name),
        "100000 x 100000" => any(&[wanted]),
        "truncated or not an image" => any(&["truncated", "not an image"]),
        "looks like HTML/text" => any(&["looks like HTML", "looks like text"]),
        "checksum/CRC" => any(&["checksum", "CRC"]),
        _ => any(&[wanted]),
    }
}

#[test]
fn datasets_malformed_outcomes_and_words() {
    let topic = golden_topic("datasets");
    let text = fs::read_to_string(topic.join("malformed.json")).expect("the list of cases");
    let malformed: Malformed = serde_json::from_str(&text).expect("the list of cases");
    let folder: PathBuf = topic.join("malformed");
    let mut wrong = Vec::new();
    let mut judged: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for case in &malformed.cases {
        let Some(outcome) = read(case, &folder) else {
            continue;
        };
        *judged.entry((&case.reader, &case.outcome)).or_default() += 1;
        let mut expect = |message: &str| {
            for words in &case.should_say {
                if !says(message, words, case) {
                    wrong.push(format!("{}: {words:?} is not in {message:?}", case.id));
                }
            }
        };
        match (case.outcome.as_str(), &outcome) {
            ("accept", Ok(warnings)) if warnings.is_empty() => {}
            ("accept-with-warning", Ok(warnings)) if !warnings.is_empty() => {
                expect(&warnings.join("\n"));
            }
            ("error", Err(message)) => expect(message),
            (asked, _) => wrong.push(format!("{}: {outcome:?} instead of {asked}", case.id)),
        }
    }
    assert!(!judged.is_empty(), "no case was judged");
    for ((reader, outcome), cases) in judged {
        println!("golden datasets/malformed: {reader}: {outcome}: {cases} cases");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

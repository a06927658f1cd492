//! Malformed data sets: each case is refused, accepted or warned about as the golden data says, in a message that
//! holds the words it must.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use ptsbench::data::cifar::{self, Kind};
use ptsbench::data::coco::{self, Depth};
use ptsbench::data::decode::{self, Rotation};
use ptsbench::data::lsun::Lsun;
use ptsbench::data::{imagenet, voc};
use ptsbench::metric::npz;
use ptsbench_tests::golden_topic;
use serde::Deserialize;

#[derive(Deserialize)]
struct Malformed {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub id: String,
    pub reader: String,
    pub outcome: String,
    pub paths: Vec<String>,
    pub should_say: Vec<String>,
}

/// All cases, with the folder that their paths are relative to.
pub fn cases() -> (PathBuf, Vec<Case>) {
    let topic = golden_topic("datasets");
    let text = fs::read_to_string(topic.join("malformed.json")).expect("the list of cases");
    let malformed: Malformed = serde_json::from_str(&text).expect("the list of cases");
    (topic.join("malformed"), malformed.cases)
}

/// The warnings of a case that is read, or why it is refused.
type Outcome = Result<Vec<String>, String>;

fn outcome<T, E: ToString>(result: Result<T, E>, warnings: impl Fn(T) -> Vec<String>) -> Outcome {
    result.map(warnings).map_err(|error| error.to_string())
}

/// Reads a case; `None` for the reader that another test judges.
fn read(case: &Case, folder: &Path) -> Option<Outcome> {
    let first = folder.join(&case.paths[0]);
    let root = folder.join(&case.id);
    let instances = || coco::read_instances(&first, &root.join("images"), Depth::Headers);
    Some(match case.reader.as_str() {
        "image" => outcome(decode::read(&first, Rotation::Ignore), |_| Vec::new()),
        "imagenet" => outcome(imagenet::read_folder(&root), |set| set.warnings),
        "cifar10-bin" => outcome(cifar::read_binary(&first, Kind::Cifar10), |_| Vec::new()),
        "cifar100-bin" => outcome(cifar::read_binary(&first, Kind::Cifar100), |_| Vec::new()),
        "cifar10-py" => outcome(cifar::read_python(&first, Kind::Cifar10), |_| Vec::new()),
        "coco" => outcome(instances(), |set| set.warnings),
        "coco-results" => {
            // The pictures themselves are not part of these cases.
            let images = HashSet::from([1]);
            let results = folder.join(&case.paths[1]);
            outcome(coco::read_results(&results, &images), |_| Vec::new())
        }
        "voc" => outcome(voc::read_set(&root, "test"), |set| set.warnings),
        "lsun" => {
            let database = first.parent().expect("a folder");
            outcome(Lsun::open(database), |_| Vec::new())
        }
        "fid-stats" => outcome(npz::read(&first), |_| Vec::new()),
        "safetensors" => return None,
        other => panic!("{}: unknown reader {other}", case.id),
    })
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
        "path" => any(&[&case.id]),
        "expected layout" => any(&["expected train/"]),
        "how to supply the mapping" => any(&["meta.mat"]),
        "line/column or byte" => any(&["line", "byte"]),
        "DOCTYPE/entities not allowed" => any(&["not allowed"]),
        "truncated or not an image" => any(&["truncated", "not an image"]),
        "looks like HTML/text" => any(&["looks like HTML", "looks like text"]),
        "checksum/CRC" => any(&["checksum", "CRC"]),
        _ => any(&[wanted]),
    }
}

#[test]
fn datasets_malformed_outcomes_and_words() {
    let (folder, cases) = cases();
    let mut wrong = Vec::new();
    let mut judged: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for case in &cases {
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

//! What an interrupted evaluation goes on from: a small file, written whole after each batch.
//!
//! It is bound to everything that its counts depend on. A file of another evaluation is refused, never mixed in.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model_zoo::file::{self, Unread};
use serde::{Deserialize, Serialize};

use super::judged::Tally;
use crate::store::{StoreError, write_atomic};

/// Time between two writes at least: a batch of small images takes less than the disk does.
const PAUSE: Duration = Duration::from_secs(1);

/// Bytes of the file at most: the sums of 4,096 features are four fifths of it, a line for each of all images of ImageNet a
/// sixth.
const LIMIT: u64 = 192 << 20;

/// Version of the file's form.
const SCHEMA: u32 = 1;

/// What an evaluation's counts depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// The catalog's name of the network.
    pub model: String,
    /// SHA-256 of the weight file.
    pub weights: String,
    /// The task and its measurement version.
    pub task: String,
    /// SHA-256 of the data set's list; empty for the built-in images.
    pub data: String,
    /// The recipe.
    pub recipe: String,
    /// Images to evaluate.
    pub samples: usize,
    /// What computes: devices round differently.
    pub device: String,
}

impl Binding {
    /// The first thing in which another differs: its name, what the other has, what this has.
    fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let pairs = [
            ("model", &other.model, &self.model),
            ("weights", &other.weights, &self.weights),
            ("task", &other.task, &self.task),
            ("data", &other.data, &self.data),
            ("recipe", &other.recipe, &self.recipe),
            ("device", &other.device, &self.device),
        ];
        let different = pairs.into_iter().find(|(_, theirs, ours)| theirs != ours);
        if let Some((what, theirs, ours)) = different {
            return Some((what, theirs.clone(), ours.clone()));
        }
        (self.samples != other.samples).then(|| {
            (
                "samples",
                other.samples.to_string(),
                self.samples.to_string(),
            )
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<T> {
    schema: u32,
    of: Binding,
    so_far: T,
}

/// Why an evaluation cannot go on from a file, or be kept in it.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It exists and cannot be read.
    #[error("{}: {reason}; give another file to --resume", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: Unread,
    },
    /// It is something else.
    #[error(
        "{}: not an evaluation's progress ({reason}); give another file to --resume, or delete this one to start again",
        path.display()
    )]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is another evaluation's.
    #[error(
        "{}: of another evaluation: its {what} is {found}, and this one's is {expected}; give another file to --resume, or delete this one to start again",
        path.display()
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// In what they differ.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What this evaluation has.
        expected: String,
    },
    /// There is more to keep than is read again.
    #[error(
        "{}: the progress would take {bytes} bytes, and at most {LIMIT} are read again; leave --resume out",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What it would take.
        bytes: u64,
    },
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] StoreError),
}

/// The progress of one evaluation on disk.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    of: Binding,
    written: Option<Instant>,
}

impl Journal {
    /// Opens a file, which need not exist yet, and says how far the evaluation is.
    pub fn open<T: Tally>(path: &Path, of: Binding) -> Result<(Self, T), JournalError> {
        let form = |reason: String| JournalError::Form {
            path: path.to_owned(),
            reason,
        };
        let so_far = match file::read(path, LIMIT) {
            Err(error) if error.is_missing() => T::default(),
            Err(reason) => {
                return Err(JournalError::Read {
                    path: path.to_owned(),
                    reason,
                });
            }
            Ok(bytes) => {
                let written: Written<T> =
                    serde_json::from_slice(&bytes).map_err(|error| form(error.to_string()))?;
                if written.schema != SCHEMA {
                    let found = written.schema;
                    return Err(form(format!("its schema is {found}, expected {SCHEMA}")));
                }
                if let Some((what, found, expected)) = of.difference(&written.of) {
                    return Err(JournalError::Other {
                        path: path.to_owned(),
                        what,
                        found,
                        expected,
                    });
                }
                let tally = written.so_far;
                if !tally.is_sound() || tally.samples() > of.samples {
                    return Err(form("its counts contradict each other".to_owned()));
                }
                tally
            }
        };
        let journal = Self {
            path: path.to_owned(),
            of,
            written: None,
        };
        Ok((journal, so_far))
    }

    /// Keeps the counts, unless the last ones were kept a moment ago.
    pub fn keep<T: Tally>(&mut self, so_far: &T) -> Result<(), JournalError> {
        if self.written.is_some_and(|at| at.elapsed() < PAUSE) {
            return Ok(());
        }
        self.keep_now(so_far)
    }

    /// Keeps the counts.
    pub fn keep_now<T: Tally>(&mut self, so_far: &T) -> Result<(), JournalError> {
        let written = Written {
            schema: SCHEMA,
            of: self.of.clone(),
            so_far: so_far.clone(),
        };
        let mut text =
            serde_json::to_string_pretty(&written).map_err(|error| JournalError::Form {
                path: self.path.clone(),
                reason: error.to_string(),
            })?;
        text.push('\n');
        let bytes = text.len() as u64;
        if bytes > LIMIT {
            return Err(JournalError::TooLarge {
                path: self.path.clone(),
                bytes,
            });
        }
        write_atomic(&self.path, text.as_bytes())?;
        self.written = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::classify::Hits;
    use std::fs;

    fn binding() -> Binding {
        Binding {
            model: "resnet18".into(),
            weights: "ab".repeat(32),
            task: "imagenet, version 1".into(),
            data: "cd".repeat(32),
            recipe: "shorter side 256".into(),
            samples: 100,
            device: "flex".into(),
        }
    }

    #[test]
    fn counts_come_back_to_their_own_evaluation_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept/half.json");
        let (mut journal, start) = Journal::open::<Hits>(&path, binding()).unwrap();
        assert_eq!(start, Hits::default());
        let half = Hits {
            images: 50,
            top1: 20,
            top5: 40,
            unreadable: vec!["a.JPEG: empty".into()],
        };
        journal.keep(&half).unwrap();
        // A moment later nothing is written, unless it must be.
        let more = Hits {
            images: 60,
            ..half.clone()
        };
        journal.keep(&more).unwrap();
        assert_eq!(Journal::open::<Hits>(&path, binding()).unwrap().1, half);
        journal.keep_now(&more).unwrap();
        assert_eq!(Journal::open::<Hits>(&path, binding()).unwrap().1, more);

        type Change = fn(&mut Binding);
        let changes: [(&str, Change); 7] = [
            ("model", |b| b.model.push('x')),
            ("weights", |b| b.weights.push('x')),
            ("task", |b| b.task.push('x')),
            ("data", |b| b.data.push('x')),
            ("recipe", |b| b.recipe.push('x')),
            ("samples", |b| b.samples += 1),
            ("device", |b| b.device.push('x')),
        ];
        for (what, change) in changes {
            let mut other = binding();
            change(&mut other);
            let error = Journal::open::<Hits>(&path, other).unwrap_err().to_string();
            assert!(error.contains(&format!("its {what} is ")), "{error}");
            assert!(error.contains("--resume"), "{error}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.json");
        let (mut journal, _) = Journal::open::<Hits>(&path, binding()).unwrap();
        journal
            .keep_now(&Hits {
                images: 50,
                top1: 20,
                top5: 40,
                unreadable: Vec::new(),
            })
            .unwrap();
        let good = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"schema\": 1", "\"schema\": 2"),
            ("\"top1\": 20", "\"top1\": 41"),
            ("\"top5\": 40", "\"top5\": 51"),
            ("\"images\": 50", "\"images\": 101"),
            ("\"top5\"", "\"top6\""),
            ("}", ""),
        ] {
            assert!(good.contains(from), "{from}");
            fs::write(&path, good.replacen(from, to, 1)).unwrap();
            let error = Journal::open::<Hits>(&path, binding()).unwrap_err();
            assert!(
                matches!(error, JournalError::Form { .. }),
                "{from}: {error}"
            );
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = Journal::open::<Hits>(&path, binding()).unwrap_err();
        assert!(matches!(error, JournalError::Read { .. }), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_do_not_hang_it() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let endless = folder.path().join("endless");
        std::os::unix::fs::symlink("/dev/zero", &endless).unwrap();
        for (path, what) in [(pipe, "is a pipe"), (endless, "is a device")] {
            let error = Journal::open::<Hits>(&path, binding())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(what) && error.contains("--resume"),
                "{error}"
            );
        }
    }
}

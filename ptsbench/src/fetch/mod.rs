//! Public weight files: where they are kept on this machine, and how they get there.
//!
//! This is the one part of the program that uses the network, and only when asked to (`ptsbench fetch`). A file appears
//! under its name when it is complete and its SHA-256 is right; until then it is a `.partial` beside it, from which the
//! next attempt goes on. The transfer itself is in `hub.rs`, behind the feature `hub`.

#[cfg(feature = "hub")]
mod hub;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model_zoo::catalog::origin::{Digest, Origin, Place};
use model_zoo::file;
use model_zoo::weights::{WeightError, sha256};

use crate::interrupt::Interrupted;

#[cfg(feature = "hub")]
pub use hub::fetch;

/// A file in a repository of the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Owner and name of the repository.
    pub repository: &'a str,
    /// A commit or a branch.
    pub revision: &'a str,
    /// The file's name.
    pub file: &'a str,
    /// What is known of its SHA-256 beforehand.
    pub sha256: Digest,
}

/// How files are fetched.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of fetched files.
    pub cache: PathBuf,
    /// Take only what is there; never use the network.
    pub offline: bool,
    /// A mirror in place of the hub's own address.
    pub endpoint: Option<String>,
    /// Tries in a row that bring next to nothing before the transfer is given up.
    pub attempts: usize,
    /// The pause before another try; it doubles with each that brings nothing.
    pub pause: Duration,
    /// Requests repeated by the client when the server is busy.
    pub repeats: usize,
    /// Longest silence of the server, in seconds.
    pub patience_s: u64,
}

/// A file that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Where.
    pub path: PathBuf,
    /// Its SHA-256 in hex.
    pub sha256: String,
    /// Whether somebody told what the SHA-256 should be: the catalog, the hub, or an earlier fetch.
    pub verified: bool,
    /// Bytes that came over the network.
    pub transferred: u64,
    /// Bytes that an earlier attempt had left.
    pub resumed: u64,
}

/// Told how far a transfer is: bytes there, bytes in all.
pub type OnProgress<'a> = &'a mut dyn FnMut(u64, u64);

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Offline, and not here.
    #[error(
        "{}: not there, and the network must not be used; fetch it without --offline (and without HF_HUB_OFFLINE), or give a file with --weights", .0.display()
    )]
    Offline(PathBuf),
    /// Built without downloads.
    #[error(
        "this program was built without downloads (feature `hub`); download {repository}/{file} yourself and give it with --weights"
    )]
    NotBuilt {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
    },
    /// The disk refused.
    #[error("{}: cannot {action}: {source}; check the folder, its permissions and the free space", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A fetched file cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// Somebody else is at it.
    #[error("{}: another process is fetching this file; wait for it", .0.display())]
    Busy(PathBuf),
    /// Not found there.
    #[error(
        "{repository}: the hub has no {what} ({status}); check the spelling, or set HF_ENDPOINT to a mirror that has it"
    )]
    NotFound {
        /// The repository.
        repository: String,
        /// What is not there.
        what: String,
        /// What the server said.
        status: String,
    },
    /// The server wants to know who asks.
    #[error(
        "{repository}: the hub refuses this file ({status}); if it needs an account, accept its terms in a browser and set HF_TOKEN"
    )]
    Denied {
        /// The repository.
        repository: String,
        /// What the server said.
        status: String,
    },
    /// The server is busy.
    #[error(
        "{repository}: the hub limits requests ({status}); try again {when}, or set HF_TOKEN for a higher limit"
    )]
    TooMany {
        /// The repository.
        repository: String,
        /// What the server said.
        status: String,
        /// When, as far as it says.
        when: String,
    },
    /// The transfer broke off.
    #[error(
        "{repository}: the transfer of {file} broke off after {done} of {size} bytes, and {tries} {} in a row brought nothing more: {reason}; {advice}",
        if *tries == 1 { "try" } else { "tries" }
    )]
    BrokeOff {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// Bytes there.
        done: u64,
        /// Bytes in all.
        size: u64,
        /// Tries in a row that brought nothing.
        tries: usize,
        /// Why the last one ended.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The bytes are not those that were announced.
    #[error(
        "{repository}: {file} arrived with SHA-256 {found}, and {expected} was expected; it was deleted, try again, and if it happens again use another mirror (HF_ENDPOINT)"
    )]
    Corrupt {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// The digest that was announced.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// The hub has another file than the one the catalog knows.
    #[error(
        "{repository}: the hub's {file} has SHA-256 {found}, and the catalog knows {expected}; it was replaced there, or HF_ENDPOINT is not a faithful mirror"
    )]
    Replaced {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// The catalog's digest.
        expected: String,
        /// The hub's.
        found: String,
    },
    /// A file in the cache was changed.
    #[error("{}: its SHA-256 is {found}, and {expected} was fetched; delete it and fetch it again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// As fetched.
        expected: String,
        /// Now.
        found: String,
    },
    /// Anything else that the server or the network did.
    #[error(
        "{repository}: cannot reach the hub: {reason}; check the network, or set HF_ENDPOINT to a mirror"
    )]
    Server {
        /// The repository.
        repository: String,
        /// The reason.
        reason: String,
    },
}

impl<'a> Wanted<'a> {
    /// The file of a network's public weights, where it is on the hub.
    pub fn of(origin: &'a Origin) -> Option<Wanted<'a>> {
        match origin.place {
            Place::Hub {
                repository,
                revision,
            } => Some(Wanted {
                repository,
                revision,
                file: origin.file,
                sha256: origin.sha256,
            }),
            Place::Web(_) | Place::Nowhere => None,
        }
    }

    /// Where it is kept below `cache`: a folder per repository and revision, so that none replaces another.
    pub fn path(&self, cache: &Path) -> PathBuf {
        let flat = |name: &str| name.replace(['/', '\\'], "--");
        cache
            .join(flat(self.repository))
            .join(flat(self.revision))
            .join(flat(self.file))
    }
}

impl Settings {
    /// As the environment has it: `HF_ENDPOINT`, `HF_HUB_OFFLINE`, and the cache in `PTSBENCH_CACHE` or the user's own.
    pub fn from_env() -> Settings {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let cache = variable("PTSBENCH_CACHE").map(PathBuf::from).or_else(|| {
            let user = variable("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")));
            Some(user?.join("ptsbench"))
        });
        let set = |value: &std::ffi::OsStr| {
            let value = value.to_string_lossy().to_ascii_lowercase();
            !["0", "no", "off", "false"].contains(&value.as_str())
        };
        Settings {
            cache: cache.unwrap_or_else(|| PathBuf::from("out/cache")),
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| set(&value)),
            endpoint: variable("HF_ENDPOINT").map(|value| value.to_string_lossy().into_owned()),
            attempts: 5,
            pause: Duration::from_millis(500),
            repeats: 5,
            patience_s: 60,
        }
    }
}

/// The file that an earlier fetch has left, checked against its digest; none where there is none.
pub fn cached(wanted: Wanted<'_>, cache: &Path) -> Result<Option<Fetched>, FetchError> {
    let path = wanted.path(cache);
    if !path.is_file() {
        return Ok(None);
    }
    let found = sha256(&path)?;
    let noted = file::read_text(&note(&path), NOTE).ok();
    let noted = noted.as_deref().map(str::trim);
    let known = match wanted.sha256 {
        Digest::Whole(known) => Some(known),
        _ => noted,
    };
    match known {
        Some(known) if known != found => Err(FetchError::Changed {
            path,
            expected: known.to_owned(),
            found,
        }),
        _ => Ok(Some(Fetched {
            path,
            sha256: found,
            verified: known.is_some(),
            transferred: 0,
            resumed: 0,
        })),
    }
}

/// The most bytes of a note: a digest of 64 characters.
const NOTE: u64 = 1024;

/// The file beside a fetched one that holds its digest.
fn note(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sha256");
    PathBuf::from(name)
}

/// As [`hub::fetch`] where downloads are built in; here only what is there is found.
#[cfg(not(feature = "hub"))]
pub fn fetch(
    wanted: Wanted<'_>,
    settings: &Settings,
    _: OnProgress<'_>,
) -> Result<Fetched, FetchError> {
    match cached(wanted, &settings.cache)? {
        Some(fetched) => Ok(fetched),
        None if settings.offline => Err(FetchError::Offline(wanted.path(&settings.cache))),
        None => Err(FetchError::NotBuilt {
            repository: wanted.repository.to_owned(),
            file: wanted.file.to_owned(),
        }),
    }
}

#[cfg(all(test, feature = "hub"))]
mod tests;

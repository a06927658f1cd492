//! The transfer from the Hugging Face hub, over hf-hub's streams.
//!
//! hf-hub 1.0.0 makes the requests, follows redirects, sends the token and speaks the hub's storage protocols. Its own
//! downloads truncate what an earlier attempt left and know no offline switch, so resuming, checking and naming files
//! are done here, over its ranged streams. Its streams hide whether the server took notice of the range: the first bytes
//! tell the whole file from a part, and what of it is here already is then passed over, so that nothing is lost. Tries
//! that bring nothing are counted and follow each other ever more slowly.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use hf_hub::{HFClient, HFError};
use model_zoo::catalog::origin::Digest;
use model_zoo::weights::sha256;

use super::{FetchError, Fetched, OnProgress, Settings, Wanted, cached, note};
use crate::interrupt;

/// What the hub says of a file before it is sent.
struct Announced {
    /// The commit that the revision is at.
    commit: String,
    /// Bytes in all.
    size: u64,
    /// The SHA-256, which the hub gives for large files.
    sha256: Option<String>,
}

/// Brings a file into the cache, or finds it there.
pub fn fetch(
    wanted: Wanted<'_>,
    settings: &Settings,
    on_progress: OnProgress<'_>,
) -> Result<Fetched, FetchError> {
    if let Some(found) = cached(wanted, &settings.cache)? {
        return Ok(found);
    }
    let path = wanted.path(&settings.cache);
    if settings.offline {
        return Err(FetchError::Offline(path));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| disk(&path, "start the network", source))?;
    runtime.block_on(async {
        let transfer = Transfer::new(wanted, settings)?;
        transfer.run(&path, on_progress).await
    })
}

/// Bytes that are progress whatever the file's size.
const STEP: u64 = 16 << 20;

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a transfer has learned on its way.
struct Way {
    /// Bytes that came.
    transferred: u64,
    /// Whether the server sends parts, as far as is known.
    parts: bool,
}

struct Transfer<'a> {
    client: HFClient,
    wanted: Wanted<'a>,
    settings: &'a Settings,
}

impl<'a> Transfer<'a> {
    fn new(wanted: Wanted<'a>, settings: &'a Settings) -> Result<Self, FetchError> {
        let mut builder = HFClient::builder()
            .cache_enabled(false)
            .retry_max_attempts(settings.repeats)
            .user_agent(concat!("ptsbench/", env!("CARGO_PKG_VERSION")));
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.endpoint(endpoint);
        }
        let client = builder.build();
        let client = client.map_err(|error| failure(wanted, error))?;
        Ok(Self {
            client,
            wanted,
            settings,
        })
    }

    async fn run(&self, path: &Path, on_progress: OnProgress<'_>) -> Result<Fetched, FetchError> {
        let announced = self.announced().await?;
        let expected = self.expected(&announced)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|source| disk(folder, "make the folder", source))?;
        let mut partial = Partial::open(path, &announced, expected.as_deref())?;
        let resumed = partial.length;
        let transferred = self.fill(&mut partial, &announced, on_progress).await?;

        partial.sync()?;
        let found = sha256(&partial.path)?;
        if let Some(expected) = expected.as_ref().filter(|expected| **expected != found) {
            partial.delete();
            return Err(FetchError::Corrupt {
                repository: self.wanted.repository.to_owned(),
                file: self.wanted.file.to_owned(),
                expected: expected.clone(),
                found,
            });
        }
        fs::rename(&partial.path, path).map_err(|source| disk(path, "name the file", source))?;
        // Without its note a file is only less well known: the catalog or the next fetch knows more.
        let _ = fs::write(note(path), format!("{found}\n"));
        Ok(Fetched {
            path: path.to_owned(),
            sha256: found,
            verified: expected.is_some(),
            transferred,
            resumed,
        })
    }

    async fn announced(&self) -> Result<Announced, FetchError> {
        let (owner, name) = hf_hub::split_id(self.wanted.repository);
        let repository = self.client.model(owner, name);
        let asked = repository
            .get_file_metadata()
            .filepath(self.wanted.file)
            .revision(self.wanted.revision)
            .send();
        let said = self.patiently(asked).await?;
        let said = said.map_err(|error| failure(self.wanted, error))?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let digest = said.etag.len() == 64 && said.etag.bytes().all(hex);
        if said.file_size == 0 {
            return Err(FetchError::Server {
                repository: self.wanted.repository.to_owned(),
                reason: format!("the server says that {} is empty", self.wanted.file),
            });
        }
        Ok(Announced {
            commit: said.commit_hash,
            size: said.file_size,
            sha256: digest.then_some(said.etag),
        })
    }

    /// The digest that the file must have; the catalog's word stands above the hub's.
    fn expected(&self, announced: &Announced) -> Result<Option<String>, FetchError> {
        let hub = announced.sha256.clone();
        if let (Some(found), known) = (&hub, self.wanted.sha256)
            && known.contradicts(found)
        {
            return Err(FetchError::Replaced {
                repository: self.wanted.repository.to_owned(),
                file: self.wanted.file.to_owned(),
                expected: known.to_string(),
                found: found.clone(),
            });
        }
        Ok(match self.wanted.sha256 {
            Digest::Whole(known) => Some(known.to_owned()),
            _ => hub,
        })
    }

    /// Brings what is missing; returns the bytes that came.
    async fn fill(
        &self,
        partial: &mut Partial,
        announced: &Announced,
        on_progress: OnProgress<'_>,
    ) -> Result<u64, FetchError> {
        let mut way = Way {
            transferred: 0,
            parts: true,
        };
        let mut idle = 0;
        // Less is no progress: a server that sends a byte and hangs up would be asked for ever.
        let step = (announced.size / 100).min(STEP);
        on_progress(partial.length, announced.size);
        while partial.length < announced.size {
            let before = partial.length;
            let outcome = self.stream(partial, announced, &mut way, on_progress).await;
            let reason = match outcome {
                Ok(()) => continue,
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Over(reason)) => reason,
            };
            idle = if partial.length > before.saturating_add(step) {
                0
            } else {
                idle + 1
            };
            if idle >= self.settings.attempts {
                partial.sync()?;
                return Err(FetchError::BrokeOff {
                    repository: self.wanted.repository.to_owned(),
                    file: self.wanted.file.to_owned(),
                    done: partial.length,
                    size: announced.size,
                    tries: idle,
                    reason,
                    advice: if way.parts {
                        "what has arrived is kept; the same command goes on from there"
                    } else {
                        "this server cannot go on with a transfer, so each attempt starts again: try again on a better connection, set HF_ENDPOINT to another mirror, or download the file in a browser and give it with --weights"
                    },
                });
            }
            self.pause(idle).await?;
        }
        Ok(way.transferred)
    }

    /// Waits before the next try, twice as long after each one that brought nothing.
    async fn pause(&self, idle: usize) -> Result<(), FetchError> {
        let doublings = u32::try_from(idle).unwrap_or(u32::MAX).min(10);
        let mut left = (self.settings.pause * 2_u32.pow(doublings)).min(LONGEST_PAUSE);
        while !left.is_zero() {
            interrupt::check()?;
            let piece = left.min(Duration::from_millis(100));
            tokio::time::sleep(piece).await;
            left -= piece;
        }
        Ok(())
    }

    /// One request for all that is missing, or, from a server that sends no parts, for the whole file, of which what is
    /// here already is passed over.
    async fn stream(
        &self,
        partial: &mut Partial,
        announced: &Announced,
        way: &mut Way,
        on_progress: OnProgress<'_>,
    ) -> Result<(), Broken> {
        let (owner, name) = hf_hub::split_id(self.wanted.repository);
        let repository = self.client.model(owner, name);
        let start = partial.length;
        let asks_part = start > 0 && way.parts;
        let asked = repository
            .download_file_stream()
            .filename(self.wanted.file)
            .revision(announced.commit.as_str())
            .maybe_range(asks_part.then_some(start..announced.size))
            .send();
        let (length, mut stream) = match self.patiently(asked).await? {
            Ok(stream) => stream,
            Err(error) if asks_part && status(&error) == Some(416) => {
                way.parts = false;
                return Err(Broken::Over("the server refused a part".to_owned()));
            }
            Err(error) => return Err(Broken::Final(failure(self.wanted, error))),
        };
        // Bytes of the answer that are here already.
        let mut skip = if asks_part { 0 } else { start };
        // A server may send the whole file for a part. What it says of the length may be the file's either way; whether it
        // begins as the file does decides.
        let mut doubted = asks_part && length != Some(announced.size - start);
        loop {
            interrupt::check().map_err(|stop| Broken::Final(stop.into()))?;
            let Some(chunk) = self.patiently(stream.next()).await? else {
                break;
            };
            let chunk = chunk.map_err(|error| Broken::Over(brief(&error)))?;
            if doubted && !chunk.is_empty() {
                doubted = false;
                if partial.begins(&chunk)? {
                    way.parts = false;
                    skip = start;
                }
            }
            way.transferred += chunk.len() as u64;
            let here = skip.min(chunk.len() as u64);
            skip -= here;
            let chunk = &chunk[here as usize..];
            if partial.length + chunk.len() as u64 > announced.size {
                partial.cut(start)?;
                return Err(Broken::Over(
                    "the server sent more than it announced".to_owned(),
                ));
            }
            partial.append(chunk)?;
            on_progress(partial.length, announced.size);
        }
        if partial.length < announced.size {
            return Err(Broken::Over("the server ended the transfer".to_owned()));
        }
        Ok(())
    }

    /// The result, or an error once the server has been silent for too long.
    async fn patiently<T>(&self, work: impl Future<Output = T>) -> Result<T, FetchError> {
        let patience = Duration::from_secs(self.settings.patience_s);
        tokio::time::timeout(patience, work)
            .await
            .map_err(|_| FetchError::Server {
                repository: self.wanted.repository.to_owned(),
                reason: format!("no answer for {} seconds", self.settings.patience_s),
            })
    }
}

/// How a request ended.
enum Broken {
    /// Another one may go on.
    Over(String),
    /// No other one helps.
    Final(FetchError),
}

impl From<FetchError> for Broken {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Server { reason, .. } => Broken::Over(reason),
            error => Broken::Final(error),
        }
    }
}

/// A file on its way, locked against a second process.
struct Partial {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Partial {
    /// What an earlier attempt left of the very same bytes, or an empty file.
    fn open(
        path: &Path,
        announced: &Announced,
        expected: Option<&str>,
    ) -> Result<Self, FetchError> {
        // Named by what it is a part of, so that a file replaced at the hub is not continued with another one's bytes.
        let of = match expected {
            Some(digest) => digest[..16.min(digest.len())].to_owned(),
            None => format!("{}-{}", announced.commit, announced.size),
        };
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{of}.partial"));
        let partial = PathBuf::from(name);
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&partial);
        let mut file = opened.map_err(|source| disk(&partial, "write", source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FetchError::Busy(partial)),
            // A file system without locks: two processes at once are then the user's to avoid.
            Err(TryLockError::Error(_)) => {}
        }
        let length = file.seek(SeekFrom::End(0));
        let length = length.map_err(|source| disk(&partial, "read", source))?;
        let mut partial = Partial {
            path: partial,
            file,
            length,
        };
        if length > announced.size {
            partial.cut(0)?;
        }
        Ok(partial)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        let written = self.file.write_all(bytes);
        written.map_err(|source| disk(&self.path, "write", source))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Whether the file begins with these bytes, as far as both go.
    fn begins(&mut self, bytes: &[u8]) -> Result<bool, FetchError> {
        let mut kept = vec![0; bytes.len().min(self.length as usize)];
        let read = self
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.read_exact(&mut kept))
            .and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
        read.map_err(|source| disk(&self.path, "read", source))?;
        Ok(bytes.starts_with(&kept))
    }

    /// Keeps the first bytes alone.
    fn cut(&mut self, length: u64) -> Result<(), FetchError> {
        let cut = self
            .file
            .set_len(length)
            .and_then(|()| self.file.seek(SeekFrom::Start(length)));
        cut.map_err(|source| disk(&self.path, "write", source))?;
        self.length = length;
        Ok(())
    }

    fn sync(&self) -> Result<(), FetchError> {
        let synced = self.file.sync_all();
        synced.map_err(|source| disk(&self.path, "write", source))
    }

    fn delete(&self) {
        // What cannot be deleted is overwritten by the next attempt, whose digest decides again.
        let _ = self.file.set_len(0);
        let _ = fs::remove_file(&self.path);
    }
}

fn disk(path: &Path, action: &'static str, source: std::io::Error) -> FetchError {
    FetchError::Disk {
        path: path.to_owned(),
        action,
        source,
    }
}

/// The status of an answer.
fn status(error: &HFError) -> Option<u16> {
    Some(match error {
        HFError::Http { context } => context.status.as_u16(),
        HFError::AuthRequired { .. } => 401,
        HFError::Forbidden { .. } => 403,
        HFError::RateLimited { .. } => 429,
        HFError::RepoNotFound { .. }
        | HFError::RevisionNotFound { .. }
        | HFError::EntryNotFound { .. } => 404,
        _ => return None,
    })
}

/// An error in one line, without the server's pages and without addresses that may be signed.
fn brief(error: &HFError) -> String {
    let text = match error {
        HFError::Request { source, .. } => {
            let mut text = "the connection failed".to_owned();
            let mut cause = std::error::Error::source(source);
            while let Some(error) = cause {
                text = error.to_string();
                cause = error.source();
            }
            text
        }
        error => match status(error) {
            Some(status) => format!("HTTP status {status}"),
            None => error.to_string(),
        },
    };
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(200)
        .collect()
}

fn failure(wanted: Wanted<'_>, error: HFError) -> FetchError {
    let repository = wanted.repository.to_owned();
    let said = brief(&error);
    match (status(&error), &error) {
        (Some(401 | 403), _) => FetchError::Denied {
            repository,
            status: said,
        },
        (Some(404), _) => FetchError::NotFound {
            repository,
            what: format!("{} at revision {}", wanted.file, wanted.revision),
            status: said,
        },
        (_, HFError::RateLimited { retry_after, .. }) => FetchError::TooMany {
            repository,
            status: said,
            when: match retry_after {
                Some(wait) => format!("in {} seconds", wait.as_secs()),
                None => "later".to_owned(),
            },
        },
        _ => FetchError::Server {
            repository,
            reason: said,
        },
    }
}

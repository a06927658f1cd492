//! Claims: who is working on a cell.
//!
//! A claim is a file that names its owner; a thread touches it as a heartbeat. Whether the owner still lives is read
//! from the process table where that can be done (same machine, same boot, same process namespace), and otherwise from
//! the heartbeat: its age by the clock, and, since clocks differ, how long this process has seen it stand still. Taking, taking over and releasing happen under one file lock per store, held for
//! milliseconds; the system drops it with its process, so it can neither be forgotten nor go stale.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use model_zoo::file;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::StoreError;
use super::disk::{Disk, write_atomic_on};
use super::form::unread;
use super::watch;

/// How often an owner touches its claim.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// Age of a heartbeat from which an owner that cannot be seen counts as gone.
pub const STALE: Duration = Duration::from_secs(60);
/// Bytes of a claim at most.
const LIMIT: u64 = 64 << 10;
/// How long to wait for the store's lock, which nobody holds for longer than a file operation.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process, told apart from every other one, also after its number was given away again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Name of the machine.
    pub host: String,
    /// The system's boot identifier; empty where it has none.
    pub boot: String,
    /// The process namespace: in two containers one number means two processes. Empty where there are none.
    pub namespace: String,
    /// Process number.
    pub pid: u32,
    /// When it started, in the system's ticks since boot; 0 where the system does not tell.
    pub started: u64,
}

impl Process {
    /// This process.
    pub fn this() -> &'static Process {
        static THIS: OnceLock<Process> = OnceLock::new();
        THIS.get_or_init(|| {
            let read = |path: &str| {
                let text = fs::read_to_string(path).unwrap_or_default();
                text.trim().to_string()
            };
            let host = Some(read("/proc/sys/kernel/hostname"))
                .filter(|name| !name.is_empty())
                .or_else(|| std::env::var("COMPUTERNAME").ok())
                .or_else(|| std::env::var("HOSTNAME").ok())
                .unwrap_or_else(|| "unknown".into());
            let pid = std::process::id();
            Process {
                host,
                boot: read("/proc/sys/kernel/random/boot_id"),
                namespace: fs::read_link("/proc/self/ns/pid")
                    .map(|link| link.to_string_lossy().into_owned())
                    .unwrap_or_default(),
                pid,
                started: started(pid).flatten().unwrap_or(0),
            }
        })
    }

    /// Eight hex digits for the machine and its process namespace.
    pub(super) fn machine_tag(&self) -> String {
        let hash = Sha256::digest(format!("{}\n{}", self.host, self.namespace));
        hash[..4].iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The boot identifier's first eight digits, or `0`.
    pub(super) fn boot_tag(&self) -> &str {
        self.boot.get(..8).unwrap_or("0")
    }

    /// Whether a process, known by tags alone, is dead; none where this process cannot see it.
    pub(super) fn sees_dead(
        &self,
        machine: &str,
        boot: &str,
        pid: u32,
        began: u64,
    ) -> Option<bool> {
        if machine != self.machine_tag() {
            None
        } else if boot != self.boot_tag() {
            Some(true)
        } else {
            is_dead(pid, began)
        }
    }
}

/// Whether the process that had this number and start is gone; none where the system does not tell.
fn is_dead(pid: u32, began: u64) -> Option<bool> {
    started(pid).map(|now| now != Some(began))
}

/// Start time of the living process of this number: none where the system does not tell, `Some(None)` where there is
/// no such process. A zombie does not live.
fn started(pid: u32) -> Option<Option<u64>> {
    if !Path::new("/proc/self/stat").exists() {
        return None;
    }
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return Some(None);
    };
    // "pid (name) state ... starttime ...": the name may hold spaces and parentheses; starttime is field 22.
    let fields = stat.rsplit_once(')')?.1;
    let mut fields = fields.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return Some(None);
    }
    Some(Some(fields.nth(18)?.parse().ok()?))
}

/// What a claim's file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// Who.
    pub process: Process,
    /// Tells this claim from every other of the same process.
    pub serial: u64,
    /// When it was taken, seconds since 1970. The heartbeat is the file's modification time.
    pub since_unix: u64,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {}", self.process.pid, self.process.host)
    }
}

impl Owner {
    /// Whether this owner's process is dead; none where it cannot be seen from here.
    fn is_dead(&self) -> Option<bool> {
        let (me, them) = (Process::this(), &self.process);
        let same_machine = (&me.host, &me.boot, &me.namespace)
            == (&them.host, &them.boot, &them.namespace)
            && !me.boot.is_empty();
        same_machine
            .then(|| is_dead(them.pid, them.started))
            .flatten()
    }
}

/// A claim whose owner is not known to be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Who.
    pub by: Owner,
    /// Whether a moment of watching will tell if the owner lives: its clock is ahead, so the age of its heartbeat says
    /// nothing, and it has not been seen beating yet.
    pub doubtful: bool,
}

/// The outcome of asking for a cell.
#[derive(Debug)]
pub enum Attempt {
    /// It is ours until the claim is dropped.
    Claimed(Claim),
    /// Somebody works on it.
    Held(Held),
    /// It was recorded in the meantime.
    Done,
}

/// A cell that is ours; dropping releases it.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    lock: PathBuf,
    owner: Owner,
    heart: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.heart.take() {
            drop(stop);
            let _ = thread.join();
        }
        // Whatever fails here leaves a claim whose owner is dead soon, which the next run takes over.
        if let Ok(_guard) = lock(&self.lock)
            && read(&self.path).is_ok_and(|found| found.is_some_and(|(by, _)| by == self.owner))
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Who holds the claim at `path`, if somebody living does.
pub(super) fn holder(path: &Path) -> Result<Option<Held>, StoreError> {
    let Some((by, heartbeat)) = read(path)? else {
        return Ok(None);
    };
    match by.is_dead() {
        Some(true) => return Ok(None),
        Some(false) => {
            return Ok(Some(Held {
                by,
                doubtful: false,
            }));
        }
        None => {}
    }
    let watched = watch::look(path, &by, heartbeat);
    let now = SystemTime::now();
    let age = now.duration_since(heartbeat).unwrap_or_default();
    if age >= STALE || watched.still >= STALE {
        return Ok(None);
    }
    let ahead = heartbeat.duration_since(now).unwrap_or_default();
    Ok(Some(Held {
        by,
        doubtful: ahead > HEARTBEAT && !watched.beats,
    }))
}

/// Takes the claim at `path`, unless somebody living has it or `done` says that there is nothing left to do.
pub(super) fn take(
    disk: &dyn Disk,
    lock_path: &Path,
    path: &Path,
    done: impl Fn() -> bool,
) -> Result<Attempt, StoreError> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let _guard = lock(lock_path)?;
    // Asked under the lock: an owner releases only after its record is there.
    if done() {
        return Ok(Attempt::Done);
    }
    if let Some(held) = holder(path)? {
        return Ok(Attempt::Held(held));
    }
    let owner = Owner {
        process: Process::this().clone(),
        serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        since_unix: super::now_unix(),
    };
    write_atomic_on(disk, path, &super::pretty(&owner))?;
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(|reason| StoreError::writing(path, reason))?;
    let heart = beat(file).map_err(|reason| StoreError::writing(path, reason))?;
    Ok(Attempt::Claimed(Claim {
        path: path.to_path_buf(),
        lock: lock_path.to_path_buf(),
        owner,
        heart: Some(heart),
    }))
}

/// Touches the file until the sender is dropped. It is the open file that is touched, not the name: should somebody
/// have taken over a claim that looked stale, the beat does not land on theirs.
fn beat(file: File) -> io::Result<(Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("claim heartbeat".into())
        .spawn(move || {
            while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                // A missed beat is made up for by the next; five may be missed.
                let _ = file.set_modified(SystemTime::now());
            }
        })?;
    Ok((stop, thread))
}

/// A claim's owner and heartbeat; none where there is no claim.
fn read(path: &Path) -> Result<Option<(Owner, SystemTime)>, StoreError> {
    const REMEDY: &str = "if no other run is using the store, remove the file";
    let (file, _) = match file::open(path) {
        Ok(opened) => opened,
        Err(error) if error.is_missing() && !path.is_symlink() => return Ok(None),
        Err(error) => return Err(unread(path, error, REMEDY)),
    };
    let reading = |reason| StoreError::reading(path, reason);
    // Of the open file: on a network file system, what the name alone tells may be a minute old.
    let heartbeat = file
        .metadata()
        .and_then(|found| found.modified())
        .map_err(reading)?;
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes).map_err(reading)?;
    let owner = serde_json::from_slice(&bytes).map_err(|error| StoreError::Broken {
        path: path.to_path_buf(),
        why: format!("it is not a claim of this version: {error}"),
        remedy: REMEDY,
    })?;
    Ok(Some((owner, heartbeat)))
}

/// Refuses what is no file in the place of the store's lock: opening a pipe would wait for its reader.
pub(super) fn check_lock(path: &Path) -> Result<(), StoreError> {
    match file::open(path) {
        Err(error) if error.is_missing() && !path.is_symlink() => Ok(()),
        Err(error) => Err(unread(path, error, "remove it")),
        Ok(_) => Ok(()),
    }
}

/// The store's lock, released when dropped. On a file system without locks, claims are as safe as a rename is.
fn lock(path: &Path) -> Result<Option<File>, StoreError> {
    check_lock(path)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|reason| StoreError::writing(path, reason))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked {
                    path: path.to_path_buf(),
                    seconds: PATIENCE.as_secs(),
                });
            }
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                return Ok(None);
            }
            Err(TryLockError::Error(reason)) => return Err(StoreError::writing(path, reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::Filesystem;
    use std::process::{Command, Stdio};

    fn paths(folder: &Path) -> (PathBuf, PathBuf) {
        (folder.join(".lock"), folder.join("cell.claim"))
    }

    fn attempt(folder: &Path) -> Attempt {
        let (lock, path) = paths(folder);
        take(&Filesystem, &lock, &path, || false).unwrap()
    }

    /// Leaves a claim of the process whose heartbeat is this old.
    fn leave(folder: &Path, process: Process, heartbeat: Duration) {
        let owner = Owner {
            process,
            serial: 0,
            since_unix: 0,
        };
        let (_, path) = paths(folder);
        fs::write(&path, super::super::pretty(&owner)).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - heartbeat).unwrap();
    }

    #[test]
    fn one_owner_at_a_time_and_release_on_drop() {
        let folder = tempfile::tempdir().unwrap();
        let Attempt::Claimed(claim) = attempt(folder.path()) else {
            panic!("a free cell could not be claimed")
        };
        match attempt(folder.path()) {
            Attempt::Held(held) => assert_eq!(held.by.process, *Process::this()),
            other => panic!("{other:?}"),
        }
        drop(claim);
        assert!(!paths(folder.path()).1.exists());
        assert!(matches!(attempt(folder.path()), Attempt::Claimed(_)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_dead_process_of_this_machine_is_taken_over_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let began = started(pid).flatten().unwrap_or(1);
        child.wait().unwrap();
        let dead = Process {
            pid,
            started: began,
            ..Process::this().clone()
        };
        leave(folder.path(), dead, Duration::ZERO);
        assert!(matches!(attempt(folder.path()), Attempt::Claimed(_)));

        // The number lives on, in another process.
        let reused = Process {
            started: Process::this().started + 1,
            ..Process::this().clone()
        };
        leave(folder.path(), reused, Duration::ZERO);
        assert!(matches!(attempt(folder.path()), Attempt::Claimed(_)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_living_process_of_this_machine_keeps_its_claim_however_old_the_heartbeat() {
        let folder = tempfile::tempdir().unwrap();
        leave(folder.path(), Process::this().clone(), 10 * STALE);
        assert!(matches!(attempt(folder.path()), Attempt::Held(_)));
    }

    #[test]
    fn another_machine_keeps_its_claim_until_the_heartbeat_is_stale() {
        let elsewhere = Process {
            host: "elsewhere".into(),
            ..Process::this().clone()
        };
        let folder = tempfile::tempdir().unwrap();
        leave(folder.path(), elsewhere.clone(), STALE / 2);
        match attempt(folder.path()) {
            Attempt::Held(held) => {
                assert_eq!(
                    held.by.to_string(),
                    format!("process {} on elsewhere", elsewhere.pid)
                );
                assert!(!held.doubtful);
            }
            other => panic!("{other:?}"),
        }
        leave(folder.path(), elsewhere, STALE * 2);
        assert!(matches!(attempt(folder.path()), Attempt::Claimed(_)));
    }

    /// The rest of the story, what watching tells, is in `watch.rs`: nobody waits a minute here.
    #[test]
    fn a_heartbeat_of_a_clock_ahead_is_doubtful_until_it_is_seen_to_beat() {
        let elsewhere = Process {
            host: "elsewhere".into(),
            ..Process::this().clone()
        };
        let folder = tempfile::tempdir().unwrap();
        let (_, path) = paths(folder.path());
        leave(folder.path(), elsewhere, Duration::ZERO);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let tomorrow = SystemTime::now() + Duration::from_secs(24 * 3600);
        for (heartbeat, expected) in [
            (tomorrow, true),
            (tomorrow, true),
            (tomorrow + HEARTBEAT, false),
            (tomorrow + HEARTBEAT, false),
        ] {
            file.set_modified(heartbeat).unwrap();
            match attempt(folder.path()) {
                Attempt::Held(held) => assert_eq!(held.doubtful, expected, "{heartbeat:?}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_owner_that_was_taken_over_does_not_release_its_successor() {
        let folder = tempfile::tempdir().unwrap();
        let Attempt::Claimed(first) = attempt(folder.path()) else {
            panic!("a free cell could not be claimed")
        };
        let elsewhere = Process {
            host: "elsewhere".into(),
            ..Process::this().clone()
        };
        leave(folder.path(), elsewhere, Duration::ZERO);
        drop(first);
        assert!(paths(folder.path()).1.exists());
    }

    #[test]
    fn of_many_that_find_a_stale_claim_one_takes_it() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let elsewhere = Process {
                host: "elsewhere".into(),
                ..Process::this().clone()
            };
            leave(folder.path(), elsewhere, STALE * 2);
            let attempts: Vec<Attempt> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| scope.spawn(|| attempt(folder.path())))
                    .collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let taken = attempts
                .iter()
                .filter(|attempt| matches!(attempt, Attempt::Claimed(_)))
                .count();
            assert_eq!(taken, 1);
        }
    }

    #[test]
    fn nobody_claims_what_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, path) = paths(folder.path());
        let attempt = take(&Filesystem, &lock, &path, || true).unwrap();
        assert!(matches!(attempt, Attempt::Done));
        assert!(!path.exists());
    }

    #[test]
    fn a_foreign_file_in_the_place_of_a_claim_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, path) = paths(folder.path());
        fs::write(&path, "hello").unwrap();
        let error = take(&Filesystem, &lock, &path, || false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cell.claim") && error.contains("remove the file"),
            "{error}"
        );
    }
}

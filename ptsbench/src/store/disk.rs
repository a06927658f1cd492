//! Writing files so that a reader sees all of them or nothing, and never half.
//!
//! Bytes go to a temporary name in the same folder, are synced, and then renamed. The four steps that touch the disk
//! are a trait, so that tests can let any of them fail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::StoreError;
use super::claim::Process;

/// The steps of an atomic write.
pub trait Disk: Send + Sync {
    /// Creates a new file of these bytes and syncs it.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Renames a file, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name; fails where the name is taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Syncs a folder, so that a new name in it outlives a power cut.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// The real one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filesystem;

impl Disk for Filesystem {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        // Folders cannot be opened as files everywhere; there the rename alone has to do.
        if cfg!(unix) {
            File::open(folder)?.sync_all()
        } else {
            Ok(())
        }
    }
}

/// Writes a file whole, replacing what is there. The folder is created where it is missing.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    write_atomic_on(&Filesystem, path, bytes)
}

/// [`write_atomic`] on a given disk.
pub fn write_atomic_on(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = write_temporary(disk, path, bytes)?;
    disk.rename(&temporary.0, path)
        .and_then(|()| disk.sync_folder(folder_of(path)))
        .map_err(|reason| StoreError::writing(path, reason))
}

/// Writes a file whole, unless the name is taken: then nothing changes and the answer is false.
pub(super) fn write_once(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<bool, StoreError> {
    let temporary = write_temporary(disk, path, bytes)?;
    let done = match disk.link(&temporary.0, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        // A file system without hard links. Two writers of one record are kept apart by its claim.
        Err(error) if !is_full(&error) => {
            if super::is_taken(path) {
                return Ok(false);
            }
            disk.rename(&temporary.0, path).map(|()| true)
        }
        Err(error) => Err(error),
    };
    done.and_then(|done| disk.sync_folder(folder_of(path)).map(|()| done))
        .map_err(|reason| StoreError::writing(path, reason))
}

/// Whether the error says that the disk, or the user's share of it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

/// A temporary file, removed when dropped unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove; after a failure a later run cleans up.
        let _ = fs::remove_file(&self.0);
    }
}

fn write_temporary(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<Temporary, StoreError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let folder = folder_of(path);
    fs::create_dir_all(folder).map_err(|reason| StoreError::writing(folder, reason))?;
    let me = Process::this();
    let temporary = Temporary(folder.join(format!(
        "{PREFIX}{}-{}-{}-{}-{}",
        me.machine_tag(),
        me.boot_tag(),
        me.pid,
        me.started,
        COUNT.fetch_add(1, Ordering::Relaxed)
    )));
    disk.write(&temporary.0, bytes)
        .map_err(|reason| StoreError::writing(path, reason))?;
    Ok(temporary)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

const PREFIX: &str = ".tmp-";
const HOUR: Duration = Duration::from_secs(3600);

/// Whether a file's name is that of a temporary one.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Whether a temporary file was left by a writer that is gone: at once where its process is seen to be dead; after an
/// hour where the machine has started again since (or is another one of the same name); after a day where the process
/// cannot be seen from here.
pub(super) fn is_abandoned(path: &Path) -> bool {
    let Some(age) = age(path) else { return false };
    let me = Process::this();
    let dead = || {
        let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
        let fields: Vec<&str> = name.split('-').collect();
        let [machine, boot, pid, started, _] = fields[..] else {
            return None;
        };
        let dead = me.sees_dead(machine, boot, pid.parse().ok()?, started.parse().ok()?)?;
        let patience = if boot == me.boot_tag() && !me.boot.is_empty() {
            Duration::ZERO
        } else {
            HOUR
        };
        Some(dead && age >= patience)
    };
    dead().unwrap_or(age > 24 * HOUR)
}

/// Time since the file was last touched; none where it is gone, zero where its clock is ahead of ours.
pub(super) fn age(path: &Path) -> Option<Duration> {
    let touched = fs::metadata(path).ok()?.modified().ok()?;
    Some(
        SystemTime::now()
            .duration_since(touched)
            .unwrap_or_default(),
    )
}

//! Files that are read whole, from whoever they come: regular ones of a bounded size.
//!
//! A pipe would wait for a writer, a device never ends, and a file of the wrong kind can be as large as the disk. Every
//! reader of the project opens its files here.

use std::fs::{File, FileType, Metadata};
use std::io::{self, Read};
use std::path::Path;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// The system refuses.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else than a file.
    #[error("is {0}, not a file")]
    NotAFile(&'static str),
    /// A text was expected.
    #[error("is not UTF-8 text: byte {at} cannot be decoded")]
    NotText {
        /// The first byte that is none of a text's.
        at: usize,
    },
    /// It is larger than anything of its kind.
    #[error("has more than {limit} bytes, which is more than such a file ever has")]
    TooLong {
        /// What was allowed.
        limit: u64,
    },
}

impl Unread {
    /// Whether there is nothing of that name.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Opens a regular file, behind links or not; with it its size.
pub fn open(path: &Path) -> Result<(File, u64), Unread> {
    // Before it is opened: opening a pipe waits.
    regular(&std::fs::metadata(path)?)?;
    #[cfg_attr(
        not(test),
        expect(clippy::disallowed_methods, reason = "the one place that opens them")
    )]
    let file = File::open(path)?;
    // And after, should somebody have changed it in between.
    let found = file.metadata()?;
    regular(&found)?;
    Ok((file, found.len()))
}

/// The bytes of a regular file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Unread> {
    let (file, size) = open(path)?;
    if size > limit {
        return Err(Unread::TooLong { limit });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    // Some files say that they are empty and are not (those of /proc), and some grow.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(Unread::TooLong { limit });
    }
    Ok(bytes)
}

/// The text of a regular file of at most `limit` bytes.
pub fn read_text(path: &Path, limit: u64) -> Result<String, Unread> {
    String::from_utf8(read(path, limit)?).map_err(|error| Unread::NotText {
        at: error.utf8_error().valid_up_to(),
    })
}

fn regular(found: &Metadata) -> Result<(), Unread> {
    match kind(found.file_type()) {
        None => Ok(()),
        Some(kind) => Err(Unread::NotAFile(kind)),
    }
}

/// What stands in a file's place; none where it is a file.
fn kind(found: FileType) -> Option<&'static str> {
    if found.is_file() {
        return None;
    }
    if found.is_dir() {
        return Some("a folder");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if found.is_fifo() {
            return Some("a pipe");
        }
        if found.is_socket() {
            return Some("a socket");
        }
        if found.is_block_device() || found.is_char_device() {
            return Some("a device");
        }
    }
    Some("no regular file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_up_to_their_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seven");
        std::fs::write(&path, b"1234567").unwrap();
        assert_eq!(read(&path, 7).unwrap(), b"1234567");
        assert!(matches!(read(&path, 6), Err(Unread::TooLong { limit: 6 })));
        assert_eq!(read_text(&path, 7).unwrap(), "1234567");
        std::fs::write(&path, b"12\xff").unwrap();
        assert!(matches!(
            read_text(&path, 7),
            Err(Unread::NotText { at: 2 })
        ));
        assert!(
            read(&folder.path().join("none"), 1)
                .unwrap_err()
                .is_missing()
        );
        assert!(matches!(
            read(folder.path(), 1),
            Err(Unread::NotAFile("a folder"))
        ));
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        assert!(matches!(read(&pipe, 9), Err(Unread::NotAFile("a pipe"))));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        assert!(matches!(read(&link, 9), Err(Unread::NotAFile("a device"))));
    }
}

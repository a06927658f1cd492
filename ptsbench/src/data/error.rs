//! Why a data set cannot be used: which file, what was found, what to do.

use std::path::{Path, PathBuf};

use model_zoo::file;

/// A file or folder that cannot be used as it is.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct DataError {
    /// Which file or folder.
    pub path: PathBuf,
    /// What was found, what was expected, and what to do.
    pub problem: String,
}

impl DataError {
    /// A problem with `path`.
    pub fn new(path: &Path, problem: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// The bytes of a file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    file::read(path, limit).map_err(|error| DataError::new(path, error.to_string()))
}

/// The text of a file of at most `limit` bytes; a byte-order mark is skipped.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, DataError> {
    let text = String::from_utf8(read(path, limit)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let problem = format!("not UTF-8 text: byte {at} cannot be decoded; convert the file");
        DataError::new(path, problem)
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// A folder's entries by name, hidden ones left out.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed =
        |error: std::io::Error| DataError::new(folder, format!("cannot be listed: {error}"));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Whether a name ends as pictures' names do.
pub(crate) fn is_image_name(path: &Path) -> bool {
    let known = ["jpg", "jpeg", "png", "webp"];
    path.extension()
        .map(|extension| extension.to_string_lossy().to_lowercase())
        .is_some_and(|extension| known.contains(&extension.as_str()))
}

/// The last part of a path, for messages and tables.
pub(crate) fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// `1 image`, `2 images`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

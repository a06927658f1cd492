//! Writing safetensors files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::container::{CHUNK, LENGTH_BYTES, io_error};
use super::dtype::Dtype;
use super::error::WeightError;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// Its key.
    pub key: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// Writes F32 tensors, sorted by key as the `safetensors` crate does it; the same content gives the same bytes.
///
/// Not by that crate: it keeps the metadata in a hash map, whose order changes from run to run. The file appears
/// under its name only when it is complete.
///
/// # Panics
///
/// Panics where two tensors have one key, or a shape and its values do not fit.
pub fn write(
    path: &Path,
    tensors: &[Named],
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightError> {
    let mut sorted: Vec<&Named> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    for tensor in &sorted {
        let count = tensor.shape.iter().product::<usize>();
        assert_eq!(count, tensor.values.len(), "values of {}", tensor.key);
    }
    let described = sorted.iter().map(|tensor| {
        let bytes = 4 * tensor.values.len();
        (tensor.key.as_str(), Dtype::F32, &tensor.shape[..], bytes)
    });
    let header = header_of(described, metadata);
    write_whole(path, &header, |file| {
        for value in sorted.iter().flat_map(|tensor| &tensor.values) {
            file.write_all(&value.to_le_bytes())?;
        }
        Ok(())
    })
}

/// A tensor to be written in a dtype of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its key.
    pub key: String,
    /// How its values are stored.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its values, row-major and little-endian.
    pub bytes: Vec<u8>,
}

/// As [`write`], each tensor in its own dtype.
///
/// # Panics
///
/// Panics where two tensors have one key, or a shape, a dtype and the bytes do not fit.
pub fn write_stored(
    path: &Path,
    tensors: &[Stored],
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightError> {
    let mut sorted: Vec<&Stored> = tensors.iter().collect();
    // By the size of the values first, so that each tensor lies at a multiple of it.
    sorted.sort_by(|a, b| (b.dtype.bits(), &a.key).cmp(&(a.dtype.bits(), &b.key)));
    for tensor in &sorted {
        let bits = tensor.shape.iter().product::<usize>() as u64 * tensor.dtype.bits();
        assert_eq!(
            bits.div_ceil(8),
            tensor.bytes.len() as u64,
            "bytes of {}",
            tensor.key
        );
    }
    let described = sorted.iter().map(|tensor| {
        let bytes = tensor.bytes.len();
        (tensor.key.as_str(), tensor.dtype, &tensor.shape[..], bytes)
    });
    let header = header_of(described, metadata);
    write_whole(path, &header, |file| {
        sorted
            .iter()
            .try_for_each(|tensor| file.write_all(&tensor.bytes))
    })
}

/// Writes header and data under another name first.
fn write_whole(
    path: &Path,
    header: &[u8],
    data: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), WeightError> {
    // Beside the target, so that the rename stays within one file system.
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let write_all = || -> io::Result<()> {
        let mut file = BufWriter::with_capacity(CHUNK, File::create(&partial)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header)?;
        data(&mut file)?;
        file.into_inner()?.sync_all()
    };
    let written = write_all().and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|source| {
        // Best effort: the first error is the one to report.
        let _ = std::fs::remove_file(&partial);
        io_error(path, "write", source)
    })
}

/// The header of tensors (key, dtype, shape, bytes) in the order of their data.
fn header_of<'a>(
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize], usize)>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert(
            "__metadata__".into(),
            metadata
                .iter()
                .map(|(k, v)| (k.clone(), v.as_str()))
                .collect(),
        );
    }
    let mut offset = 0;
    for (key, dtype, shape, bytes) in tensors {
        let end = offset + bytes;
        let entry = serde_json::json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [offset, end] });
        assert!(
            header.insert(key.to_owned(), entry).is_none(),
            "two tensors are called {key}"
        );
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // The data start at a multiple of 8 bytes.
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    header
}

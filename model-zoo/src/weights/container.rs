//! The safetensors container: 8 bytes of header length (little-endian), a JSON header, the tensors' bytes.
//!
//! The header is parsed in `header.rs` and not by the `safetensors` crate, whose errors leave out the tensor and the numbers, and
//! which cannot see a key that occurs twice. No number from the file sizes an allocation before it was checked against
//! the file's own size; a tensor is read when it is asked for, so memory stays at one tensor.
//!
//! Reference: the format section of the safetensors project's README.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use indexmap::IndexMap;
use sha2::{Digest, Sha256};

use super::dtype::{Dtype, conversion};
use super::error::{NotFinite, WeightError};
use super::header::{header_length, parse_header};
use super::source::Source;
use crate::file::{self, Unread};

/// The longest header that the format allows, in bytes.
pub const HEADER_LIMIT: u64 = 100_000_000;

/// Bytes of the header length.
pub(super) const LENGTH_BYTES: u64 = 8;

/// Bytes read at once; a multiple of every value's size.
pub(super) const CHUNK: usize = 1 << 16;

/// One tensor of a file, as its header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// How its values are stored.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its bytes in the file, counted from the file's start.
    pub bytes: Range<u64>,
}

/// An open safetensors file whose header has been checked.
#[derive(Debug)]
pub struct Container {
    path: PathBuf,
    // One handle for all reads, so that a file replaced after `open` cannot mix two checkpoints.
    file: Mutex<File>,
    metadata: BTreeMap<String, String>,
    entries: IndexMap<String, Entry>,
}

impl Container {
    /// Opens a file and checks its header against its size; no tensor is read.
    pub fn open(path: &Path) -> Result<Container, WeightError> {
        let (file, size) = open_regular(path)?;
        let malformed = |fault| WeightError::Malformed {
            file: path.display().to_string(),
            fault,
        };

        let mut start = Vec::new();
        let unreadable = |source| io_error(path, "read", source);
        (&file)
            .take(64)
            .read_to_end(&mut start)
            .map_err(unreadable)?;
        let length = header_length(&start, size).map_err(malformed)?;

        let mut header = Vec::new();
        (&file)
            .seek(SeekFrom::Start(LENGTH_BYTES))
            .map_err(unreadable)?;
        (&file)
            .take(length)
            .read_to_end(&mut header)
            .map_err(unreadable)?;
        let data = LENGTH_BYTES + length..size;
        let (metadata, entries) = parse_header(&header, data).map_err(malformed)?;
        Ok(Container {
            path: path.to_path_buf(),
            file: Mutex::new(file),
            metadata,
            entries,
        })
    }

    /// The file's free-form metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Every tensor by name, in the header's order.
    pub fn entries(&self) -> &IndexMap<String, Entry> {
        &self.entries
    }

    fn entry(&self, key: &str) -> Result<&Entry, WeightError> {
        self.entries.get(key).ok_or_else(|| WeightError::NoSuchKey {
            file: self.origin(),
            key: key.to_string(),
        })
    }

    fn read_values(&self, key: &str, entry: &Entry) -> Result<Vec<f32>, WeightError> {
        let convert = conversion(entry.dtype).ok_or_else(|| WeightError::WrongDtype {
            file: self.origin(),
            key: key.to_string(),
            found: entry.dtype.name(),
        })?;
        let unreadable = |source| io_error(&self.path, "read", source);
        // A panic elsewhere cannot leave the handle in a bad state: every read seeks first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(entry.bytes.start))
            .map_err(unreadable)?;
        // `open` has checked that the file holds these bytes.
        let mut values = Vec::with_capacity(entry.shape.iter().product());
        let mut buffer = vec![0; CHUNK];
        let mut left = entry.bytes.end - entry.bytes.start;
        while left > 0 {
            let chunk = &mut buffer[..left.min(CHUNK as u64) as usize];
            file.read_exact(chunk).map_err(unreadable)?;
            convert(chunk, &mut values);
            left -= chunk.len() as u64;
        }
        Ok(values)
    }
}

impl Source for Container {
    fn origin(&self) -> String {
        self.path.display().to_string()
    }

    fn keys(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        self.entries.get(key).map(|entry| entry.shape.clone())
    }

    fn dtype(&self, key: &str) -> Option<Dtype> {
        self.entries.get(key).map(|entry| entry.dtype)
    }

    fn raw(&self, key: &str) -> Result<Vec<u8>, WeightError> {
        let bytes = &self.entry(key)?.bytes;
        let unreadable = |source| io_error(&self.path, "read", source);
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(bytes.start))
            .map_err(unreadable)?;
        // `open` has checked that the file holds these bytes.
        let mut read = vec![0; (bytes.end - bytes.start) as usize];
        file.read_exact(&mut read).map_err(unreadable)?;
        Ok(read)
    }

    fn read(&self, key: &str) -> Result<Vec<f32>, WeightError> {
        let values = self.read_values(key, self.entry(key)?)?;
        match check_finite(key, &values) {
            None => Ok(values),
            Some(found) => Err(WeightError::NotFinite {
                file: self.origin(),
                tensors: vec![found],
            }),
        }
    }
}

/// The count of values that are NaN or infinite, where there are any.
pub(super) fn check_finite(key: &str, values: &[f32]) -> Option<NotFinite> {
    let first = values.iter().position(|value| !value.is_finite())?;
    Some(NotFinite {
        key: key.to_string(),
        values: values.len(),
        nan: values.iter().filter(|value| value.is_nan()).count(),
        infinite: values.iter().filter(|value| value.is_infinite()).count(),
        first,
    })
}

/// The SHA-256 of a whole file in lowercase hexadecimal, read in pieces.
pub fn sha256(path: &Path) -> Result<String, WeightError> {
    let (mut file, _) = open_regular(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(source) => return Err(io_error(path, "read", source)),
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// The file and its size.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64), WeightError> {
    file::open(path).map_err(|error| match error {
        Unread::Io(source) => io_error(path, "open", source),
        other => WeightError::NotAFile {
            file: path.display().to_string(),
            found: other.to_string(),
        },
    })
}

pub(super) fn io_error(path: &Path, action: &'static str, source: io::Error) -> WeightError {
    WeightError::Io {
        file: path.display().to_string(),
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::super::write::{Named, write};
    use super::*;

    /// A temporary file of that content; it goes away with the handle.
    fn on_disk(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [
            &(header.len() as u64).to_le_bytes()[..],
            header.as_bytes(),
            data,
        ]
        .concat()
    }

    fn one(dtype: &str, count: usize, data: &[u8]) -> Vec<u8> {
        let end = data.len();
        file(
            &format!(r#"{{"w":{{"dtype":"{dtype}","shape":[{count}],"data_offsets":[0,{end}]}}}}"#),
            data,
        )
    }

    #[test]
    fn every_float_dtype_becomes_f32() {
        let cases: [(&str, Vec<u8>); 4] = [
            (
                "F32",
                [1.5f32, -2.0]
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect(),
            ),
            (
                "F64",
                [1.5f64, -2.0]
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect(),
            ),
            ("F16", vec![0x00, 0x3e, 0x00, 0xc0]),
            ("BF16", vec![0xc0, 0x3f, 0x00, 0xc0]),
        ];
        for (dtype, data) in cases {
            let scratch = on_disk(&one(dtype, 2, &data));
            let values = Container::open(scratch.path()).unwrap().read("w").unwrap();
            assert_eq!(values, [1.5, -2.0], "{dtype}");
        }
    }

    #[test]
    fn a_tensor_longer_than_one_chunk_is_read_whole() {
        let values: Vec<f32> = (0..CHUNK / 4 + 3).map(|i| i as f32).collect();
        let scratch = on_disk(b"");
        let tensor = Named {
            key: "w".into(),
            shape: vec![values.len()],
            values: values.clone(),
        };
        write(scratch.path(), &[tensor], &BTreeMap::new()).unwrap();
        assert_eq!(
            Container::open(scratch.path()).unwrap().read("w").unwrap(),
            values
        );
    }

    #[test]
    fn a_header_that_begins_like_a_pickle_is_read() {
        // Length 640 = bytes 80 02, the PROTO opcode.
        let mut header = String::from(r#"{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
        header.push_str(&" ".repeat(640 - header.len()));
        let scratch = on_disk(&file(&header, b""));
        assert_eq!(Container::open(scratch.path()).unwrap().keys(), ["w"]);
    }

    #[test]
    fn the_bytes_are_those_of_the_safetensors_crate() {
        let tensors = [
            Named {
                key: "b".into(),
                shape: vec![2],
                values: vec![1.0, 2.0],
            },
            Named {
                key: "a.weight".into(),
                shape: vec![1, 1],
                values: vec![3.0],
            },
        ];
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let scratch = on_disk(b"");
        write(scratch.path(), &tensors, &metadata).unwrap();

        let bytes = |t: &Named| {
            t.values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let raw: Vec<Vec<u8>> = tensors.iter().map(bytes).collect();
        let views = tensors.iter().zip(&raw).map(|(t, raw)| {
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, t.shape.clone(), raw)
                    .unwrap();
            (t.key.as_str(), view)
        });
        let reference =
            safetensors::serialize(views, Some(metadata.into_iter().collect())).unwrap();
        assert_eq!(std::fs::read(scratch.path()).unwrap(), reference);
    }

    #[test]
    fn a_damaged_file_is_refused_or_read_but_never_panics() {
        let header = r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}"#;
        let good = file(header, &[0; 16]);
        let scratch = on_disk(&good);
        let read = |bytes: &[u8]| {
            std::fs::write(scratch.path(), bytes).unwrap();
            Container::open(scratch.path())?.read("a")
        };
        assert_eq!(read(&good).unwrap(), [0.0, 0.0]);
        for end in 0..good.len() {
            assert!(read(&good[..end]).is_err(), "cut after {end} bytes");
        }
        for (at, bit) in (0..good.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            let outcome = read(&bytes);
            // The 8 bytes of length decide what everything else means.
            assert!(at >= 8 || outcome.is_err(), "bit {bit} of byte {at}");
            if let Ok(values) = outcome {
                assert_eq!(values.len(), 2, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_tensor_cut_off_after_opening_is_an_error() {
        let scratch = on_disk(&one("F32", 2, &[0; 8]));
        let container = Container::open(scratch.path()).unwrap();
        let size = std::fs::metadata(scratch.path()).unwrap().len();
        let file = File::options().write(true).open(scratch.path()).unwrap();
        file.set_len(size - 1).unwrap();
        let error = container.read("w").unwrap_err();
        assert!(matches!(error, WeightError::Io { .. }), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("taken");
        // A folder in the target's place: the rename fails whoever runs the test.
        std::fs::create_dir_all(target.join("inside")).unwrap();
        let error = write(&target, &[], &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, WeightError::Io { .. }), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let error = Container::open(&std::env::temp_dir()).unwrap_err();
        assert!(matches!(error, WeightError::NotAFile { .. }), "{error}");
    }

    #[test]
    fn a_digest_is_that_of_the_whole_file() {
        let scratch = on_disk(b"abc");
        assert_eq!(
            sha256(scratch.path()).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // FIPS 180-2, example B.1
        );
    }

    #[test]
    fn both_kinds_of_bad_values_are_counted() {
        let found = check_finite("w", &[0.0, f32::INFINITY, f32::NAN, f32::NEG_INFINITY]).unwrap();
        assert_eq!(
            found.to_string(),
            "tensor w: 1 of 4 values are NaN and 2 of 4 values are infinite, the first at index 1"
        );
    }
}

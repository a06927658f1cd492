//! Sparse tensors in a safetensors file: one bit per weight says whether it is stored.
//!
//! A tensor `K` becomes `K.bitmap`, `U8 [ceil(n / 8)]`, whose bit `i % 8` of byte `i / 8` is 1 where weight `i`
//! (row-major) is stored, and `K.kept`, the stored weights one after the other in the tensor's own dtype. What is not
//! stored is zero. The metadata entry [`PACKED`] is a JSON object of the shapes by key. Nothing is rounded: unpacking gives
//! the bytes that were packed.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::container::{Container, check_finite};
use super::dtype::{Dtype, as_f32};
use super::error::{Fault, WeightError};
use super::source::Source;
use super::write::Stored;

/// The metadata entry that names packed tensors and their shapes.
pub const PACKED: &str = "ptsbench.packed";

/// Axes of a tensor at most.
const AXES: usize = 8;

/// Ends of the two keys.
const BITMAP: &str = ".bitmap";
const KEPT: &str = ".kept";

/// Tensors as they are to be written, those that become smaller packed, and the metadata entry for them.
pub fn pack(tensors: Vec<Stored>) -> (Vec<Stored>, String) {
    let mut shapes = BTreeMap::new();
    let mut packed = Vec::with_capacity(2 * tensors.len());
    for tensor in tensors {
        match pack_one(&tensor) {
            Some(pair) => {
                packed.extend(pair);
                shapes.insert(tensor.key, tensor.shape);
            }
            None => packed.push(tensor),
        }
    }
    (packed, serde_json::json!(shapes).to_string())
}

/// The two tensors of one, if they are smaller.
fn pack_one(tensor: &Stored) -> Option<[Stored; 2]> {
    let width = width(tensor.dtype)?;
    let weights = tensor.bytes.chunks_exact(width);
    let mut bitmap = vec![0u8; weights.len().div_ceil(8)];
    let mut kept = Vec::new();
    for (at, weight) in weights.enumerate() {
        // Negative zero is stored, so that nothing changes.
        if weight.iter().any(|&byte| byte != 0) {
            bitmap[at / 8] |= 1 << (at % 8);
            kept.extend_from_slice(weight);
        }
    }
    let stored = |end: &str, dtype, count, bytes| Stored {
        key: format!("{}{end}", tensor.key),
        dtype,
        shape: vec![count],
        bytes,
    };
    (bitmap.len() + kept.len() < tensor.bytes.len()).then(|| {
        [
            stored(BITMAP, Dtype::U8, bitmap.len(), bitmap),
            stored(KEPT, tensor.dtype, kept.len() / width, kept),
        ]
    })
}

/// Bytes of a weight; none for dtypes that are not weights.
fn width(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 => Some(dtype.bits() as usize / 8),
        _ => None,
    }
}

/// A file with packed tensors, read as if they were not.
#[derive(Debug)]
pub struct PackedFile {
    file: Container,
    shapes: IndexMap<String, Vec<usize>>,
}

impl PackedFile {
    /// The file, if its metadata name packed tensors; these are checked against the header, not yet read.
    pub fn of(file: Container) -> Result<Result<PackedFile, Container>, WeightError> {
        let Some(text) = file.metadata().get(PACKED) else {
            return Ok(Err(file));
        };
        let malformed = |why: String| WeightError::Malformed {
            file: file.origin(),
            fault: Fault::Packed { why },
        };
        let shapes: IndexMap<String, Vec<usize>> = serde_json::from_str(text).map_err(|error| {
            malformed(format!(
                "the metadata entry {PACKED} is not a list of shapes: {error}"
            ))
        })?;
        for (key, shape) in &shapes {
            if shape.len() > AXES {
                return Err(malformed(format!("{key} has {} axes", shape.len())));
            }
            let count = shape
                .iter()
                .try_fold(1usize, |all, &side| all.checked_mul(side));
            let count =
                count.ok_or_else(|| malformed(format!("{key}: shape {shape:?} overflows")))?;
            let (bitmap, kept) = (format!("{key}{BITMAP}"), format!("{key}{KEPT}"));
            let bytes = file
                .entries()
                .get(&bitmap)
                .map(|entry| (entry.dtype, entry.shape.clone()));
            if bytes != Some((Dtype::U8, vec![count.div_ceil(8)])) {
                return Err(malformed(format!(
                    "{key} of shape {shape:?} needs {bitmap}, U8 [{}], found {bytes:?}",
                    count.div_ceil(8)
                )));
            }
            let values = file.entries().get(&kept);
            if values.is_none_or(|entry| width(entry.dtype).is_none() || entry.shape.len() != 1) {
                return Err(malformed(format!("{key} needs {kept}, a row of floats")));
            }
            if file.entries().contains_key(key) {
                return Err(malformed(format!(
                    "{key} is stored both packed and as it is"
                )));
            }
        }
        Ok(Ok(PackedFile { file, shapes }))
    }

    /// The key behind a name that is a packed tensor's.
    fn part_of<'a>(&self, key: &'a str) -> Option<(&'a str, bool)> {
        let (tensor, first) = match (key.strip_suffix(BITMAP), key.strip_suffix(KEPT)) {
            (Some(tensor), _) => (tensor, true),
            (None, Some(tensor)) => (tensor, false),
            (None, None) => return None,
        };
        self.shapes.contains_key(tensor).then_some((tensor, first))
    }

    fn unpack(&self, key: &str, shape: &[usize]) -> Result<Vec<u8>, WeightError> {
        let bitmap = self.file.raw(&format!("{key}{BITMAP}"))?;
        let kept = self.file.raw(&format!("{key}{KEPT}"))?;
        let width = self.dtype(key).and_then(width).unwrap_or(1);
        let count: usize = shape.iter().product();
        let bits: usize = bitmap.iter().map(|byte| byte.count_ones() as usize).sum();
        let beyond = bitmap
            .last()
            .is_some_and(|&last| !count.is_multiple_of(8) && last >> (count % 8) != 0);
        if beyond || bits * width != kept.len() {
            return Err(WeightError::Malformed {
                file: self.origin(),
                fault: Fault::Packed {
                    why: format!(
                        "{key}: its bitmap has {bits} bits set for {} stored weights{}",
                        kept.len() / width,
                        if beyond {
                            ", some behind the last weight"
                        } else {
                            ""
                        }
                    ),
                },
            });
        }
        let mut bytes = vec![0; count * width];
        let mut kept = kept.chunks_exact(width);
        for (at, weight) in bytes.chunks_exact_mut(width).enumerate() {
            if bitmap[at / 8] >> (at % 8) & 1 == 1
                && let Some(value) = kept.next()
            {
                weight.copy_from_slice(value);
            }
        }
        Ok(bytes)
    }
}

impl Source for PackedFile {
    fn origin(&self) -> String {
        self.file.origin()
    }

    /// A packed tensor stands where its bitmap does.
    fn keys(&self) -> Vec<String> {
        let keys = self.file.keys().into_iter();
        keys.filter_map(|key| match self.part_of(&key) {
            Some((tensor, true)) => Some(tensor.to_owned()),
            Some((_, false)) => None,
            None => Some(key),
        })
        .collect()
    }

    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        match self.shapes.get(key) {
            Some(shape) => Some(shape.clone()),
            None if self.part_of(key).is_some() => None,
            None => self.file.shape(key),
        }
    }

    fn dtype(&self, key: &str) -> Option<Dtype> {
        if self.shapes.contains_key(key) {
            return self.file.dtype(&format!("{key}{KEPT}"));
        }
        self.shape(key)?;
        self.file.dtype(key)
    }

    fn raw(&self, key: &str) -> Result<Vec<u8>, WeightError> {
        match self.shapes.get(key) {
            Some(shape) => self.unpack(key, shape),
            None => self.file.raw(key),
        }
    }

    fn read(&self, key: &str) -> Result<Vec<f32>, WeightError> {
        let Some(shape) = self.shapes.get(key) else {
            return self.file.read(key);
        };
        let bytes = self.unpack(key, shape)?;
        let values = self.dtype(key).and_then(|dtype| as_f32(dtype, &bytes));
        let values = values.unwrap_or_default();
        match check_finite(key, &values) {
            None => Ok(values),
            Some(found) => Err(WeightError::NotFinite {
                file: self.origin(),
                tensors: vec![found],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{from_f32, open, write_stored};

    fn tensor(key: &str, dtype: Dtype, shape: &[usize], values: &[f32]) -> Stored {
        Stored {
            key: key.to_owned(),
            dtype,
            shape: shape.to_vec(),
            bytes: from_f32(dtype, values).unwrap(),
        }
    }

    /// Three of 27 weights, one of them a negative zero; a dense tensor; a counter.
    fn tensors(dtype: Dtype) -> Vec<Stored> {
        let mut sparse = [0.0; 27];
        (sparse[1], sparse[8], sparse[26]) = (1.5, -0.0, -2.25);
        vec![
            tensor("conv.weight", dtype, &[3, 3, 3], &sparse),
            tensor("conv.bias", dtype, &[3], &[1.0, -1.0, 0.5]),
            tensor("none", dtype, &[4, 10], &[0.0; 40]),
            Stored {
                key: "steps".into(),
                dtype: Dtype::I64,
                shape: vec![2],
                bytes: vec![0; 16],
            },
        ]
    }

    fn write(tensors: &[Stored], shapes: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("packed.safetensors");
        let metadata = BTreeMap::from([(PACKED.to_owned(), shapes.to_owned())]);
        write_stored(&path, tensors, &metadata).unwrap();
        (folder, path)
    }

    #[test]
    fn what_is_packed_comes_back_to_the_byte() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
            let before = tensors(dtype);
            let (packed, shapes) = pack(before.clone());
            let keys: Vec<&str> = packed.iter().map(|tensor| tensor.key.as_str()).collect();
            let want = [
                "conv.weight.bitmap",
                "conv.weight.kept",
                "conv.bias",
                "none.bitmap",
                "none.kept",
                "steps",
            ];
            assert_eq!(keys, want);
            let (_folder, path) = write(&packed, &shapes);
            let source = open(&path).unwrap();
            let mut keys = source.keys();
            keys.sort();
            assert_eq!(keys, ["conv.bias", "conv.weight", "none", "steps"]);
            for tensor in &before {
                assert_eq!(source.shape(&tensor.key).as_ref(), Some(&tensor.shape));
                assert_eq!(source.dtype(&tensor.key), Some(tensor.dtype));
                assert_eq!(
                    source.raw(&tensor.key).unwrap(),
                    tensor.bytes,
                    "{}",
                    tensor.key
                );
            }
            assert_eq!(source.read("conv.weight").unwrap()[26], -2.25);
            assert_eq!(source.shape("conv.weight.kept"), None);
        }
    }

    #[test]
    fn a_dense_network_stays_as_it_is() {
        let dense = vec![tensor("w", Dtype::F32, &[33], &[1.0; 33])];
        assert_eq!(pack(dense.clone()), (dense, "{}".to_owned()));
    }

    #[test]
    fn a_damaged_packing_is_refused_with_its_numbers() {
        let (packed, shapes) = pack(tensors(Dtype::F32));
        let refused = |packed: &[Stored], shapes: &str, say: &str| {
            let (_folder, path) = write(packed, shapes);
            let error = open(&path).and_then(|source| source.read("conv.weight"));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(say), "{error}");
            assert!(error.contains("packed.safetensors"), "{error}");
        };
        refused(&packed, "[3]", "not a list of shapes");
        refused(
            &packed,
            r#"{"conv.weight": [3, 3, 4]}"#,
            "needs conv.weight.bitmap, U8 [5]",
        );
        refused(
            &packed,
            r#"{"conv.weight": [4294967296, 4294967296, 9]}"#,
            "overflows",
        );
        refused(&packed[..1], &shapes, "needs conv.weight.kept");
        let mut twice = packed.clone();
        twice.push(tensor("conv.weight", Dtype::F32, &[1], &[1.0]));
        refused(&twice, &shapes, "packed and as it is");
        let mut more = packed.clone();
        more[0].bytes[0] |= 1;
        refused(&more, &shapes, "4 bits set for 3 stored weights");
        let mut behind = packed.clone();
        behind[0].bytes[3] = 0b1000_0000;
        refused(&behind, &shapes, "behind the last weight");
        let mut infinite = packed;
        infinite[1] = tensor("conv.weight.kept", Dtype::F32, &[3], &[1.0, f32::NAN, 1.0]);
        refused(&infinite, &shapes, "conv.weight");
    }
}

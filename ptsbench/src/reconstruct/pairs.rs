//! What a unit is fitted on: its inputs and the outputs it should give, batch by batch.
//!
//! They stay in memory as far as the budget goes. The others go to a file and come back bit by bit, one batch at a time:
//! computing them again would run both networks up to the unit, and decode the batch's images, in every step of every
//! unit. The file has no name, so the system removes it with the process, however that ends.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Shape, Tensor, TensorData};
use model_zoo::{Bundle, TensorMap};

use crate::memory::{bytes_of, size};

/// Where pairs may be.
#[derive(Debug, Clone, Copy)]
pub struct Room<'a> {
    /// Bytes of them in memory.
    pub bytes: u64,
    /// The folder of the file for the others.
    pub folder: &'a Path,
}

/// The file cannot be made, written or read.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: the temporary file for inputs and outputs beyond {} of memory cannot be {action} after {}: {source}; free some space there, or set PTSBENCH_MEMORY higher if the machine has more memory", folder.display(), size(*room), size(*written)
)]
pub struct SpillError {
    folder: PathBuf,
    room: u64,
    /// As a participle.
    action: &'static str,
    /// Bytes that are in the file.
    written: u64,
    source: io::Error,
}

/// Batches in memory and in a file, in the order they were pushed.
#[derive(Debug)]
pub struct Pairs<'a, B> {
    room: Room<'a>,
    /// Bytes in memory.
    held: u64,
    batches: Vec<Place<B>>,
    file: Option<File>,
    spilled: u64,
}

#[derive(Debug)]
enum Place<B> {
    Memory(B),
    File {
        /// The batch with one value in the place of each tensor.
        hull: B,
        /// Its tensors.
        tensors: Vec<(Shape, DType)>,
        /// Where they begin in the file.
        at: u64,
    },
}

impl<'a, B: Bundle> Pairs<'a, B> {
    /// None yet.
    pub fn within(room: Room<'a>) -> Self {
        Self {
            room,
            held: 0,
            batches: Vec::new(),
            file: None,
            spilled: 0,
        }
    }

    /// How many batches there are.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Bytes in the file.
    pub fn spilled(&self) -> u64 {
        self.spilled
    }

    /// Adds a batch.
    pub fn push(&mut self, batch: B) -> Result<(), SpillError> {
        let bytes = bytes_of(&batch);
        let place = if self.held + bytes <= self.room.bytes {
            self.held += bytes;
            Place::Memory(batch)
        } else {
            self.spill(batch)?
        };
        self.batches.push(place);
        Ok(())
    }

    fn spill(&mut self, batch: B) -> Result<Place<B>, SpillError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => tempfile::tempfile_in(self.room.folder)
                .map_err(|source| self.error("made", source))?,
        };
        let mut file: &File = self.file.insert(file);
        let result = file.seek(SeekFrom::Start(self.spilled)).map(drop);
        let mut put = Put {
            file,
            tensors: Vec::new(),
            written: 0,
            result,
        };
        let hull = batch.map(&mut put);
        let (tensors, written, result) = (put.tensors, put.written, put.result);
        result.map_err(|source| self.error("written", source))?;
        let at = self.spilled;
        self.spilled += written;
        Ok(Place::File { hull, tensors, at })
    }

    /// A batch by its place.
    pub fn get(&self, place: usize) -> Result<B, SpillError> {
        let (hull, tensors, at) = match &self.batches[place] {
            Place::Memory(batch) => return Ok(batch.clone()),
            Place::File { hull, tensors, at } => (hull, tensors, *at),
        };
        let mut file = self.file.as_ref().expect("a batch was written to it");
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| {
            let mut fill = Fill {
                file,
                tensors: tensors.iter(),
                result: Ok(()),
            };
            let batch = hull.clone().map(&mut fill);
            fill.result.map(|()| batch)
        });
        read.map_err(|source| self.error("read", source))
    }

    fn error(&self, action: &'static str, source: io::Error) -> SpillError {
        SpillError {
            folder: self.room.folder.to_owned(),
            room: self.room.bytes,
            action,
            written: self.spilled,
            source,
        }
    }
}

/// Writes tensors at the end of a file and leaves one value of each.
struct Put<'a> {
    file: &'a File,
    tensors: Vec<(Shape, DType)>,
    written: u64,
    result: io::Result<()>,
}

impl TensorMap for Put<'_> {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        let hull = Tensor::zeros([1; D], &tensor.device());
        if self.result.is_ok() {
            let data = tensor.into_data();
            self.result = self.file.write_all(data.as_bytes());
            self.written += data.as_bytes().len() as u64;
            self.tensors.push((data.shape().clone(), data.dtype()));
        }
        hull
    }
}

/// Puts tensors from a file in their places.
struct Fill<'a> {
    file: &'a File,
    tensors: std::slice::Iter<'a, (Shape, DType)>,
    result: io::Result<()>,
}

impl TensorMap for Fill<'_> {
    fn map<const D: usize>(&mut self, hull: Tensor<D>) -> Tensor<D> {
        let (shape, dtype) = self.tensors.next().expect("one was written for each");
        let mut bytes = vec![0; shape.num_elements() * dtype.size()];
        if self.result.is_ok() {
            self.result = self.file.read_exact(&mut bytes);
        }
        match self.result {
            Ok(()) => {
                let data = TensorData::from_bytes_vec(bytes, shape.clone(), *dtype);
                Tensor::from_data(data, &hull.device())
            }
            Err(_) => hull,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};
    use model_zoo::Fixed;

    use super::*;

    type Batch = Vec<(Tensor<4>, (Option<Tensor<2>>, Fixed<usize>))>;

    /// Two calls; NaN, infinity and a signed zero among the values.
    fn batch(at: usize) -> Batch {
        let device = Device::flex();
        let odd = Tensor::from_data([[f32::NAN, f32::INFINITY, -0.0]], &device);
        let random = |height| Tensor::random([2, 3, height, 4], Distribution::Default, &device);
        vec![
            (random(5), (Some(odd), Fixed(at))),
            (random(1), (None, Fixed(at + 1))),
        ]
    }

    fn bits(batch: Batch) -> Vec<(Vec<u32>, usize)> {
        let bits = |data: TensorData| -> Vec<u32> {
            let values: Vec<f32> = data.try_into_vec().unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        let calls = batch.into_iter().map(|(image, (odd, Fixed(at)))| {
            let mut all = bits(image.into_data());
            all.extend(odd.into_iter().flat_map(|odd| bits(odd.into_data())));
            (all, at)
        });
        calls.collect()
    }

    #[test]
    fn what_went_to_the_file_comes_back_bit_by_bit_and_leaves_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let batches: Vec<Batch> = (0..4).map(batch).collect();
        let one = bytes_of(&batches[0]);
        for (bytes, spilled) in [(0, 4), (one * 2, 2), (one * 4, 0)] {
            let room = Room {
                bytes,
                folder: folder.path(),
            };
            let mut pairs = Pairs::within(room);
            for batch in &batches {
                pairs.push(batch.clone()).unwrap();
            }
            assert_eq!((pairs.len(), pairs.spilled()), (4, spilled * one));
            // In any order, and more than once.
            for at in [3, 0, 2, 2, 1] {
                let (got, want) = (pairs.get(at).unwrap(), batches[at].clone());
                assert_eq!(bits(got), bits(want));
            }
            // A process that is killed now leaves nothing.
            assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        }
    }

    #[test]
    fn a_full_disk_and_a_missing_folder_say_what_to_do() {
        let missing = Path::new("no-such-folder");
        let mut pairs = Pairs::within(Room {
            bytes: 3 << 20,
            folder: missing,
        });
        let large = Tensor::<2>::zeros([1024, 1024], &Device::flex());
        let error = pairs.push(large.clone()).unwrap_err().to_string();
        for said in ["no-such-folder", "3.0 MiB", "made", "PTSBENCH_MEMORY"] {
            assert!(error.contains(said), "{error}");
        }
        if cfg!(target_os = "linux") {
            pairs.file = Some(File::options().write(true).open("/dev/full").unwrap());
            let error = pairs.push(large).unwrap_err().to_string();
            for said in ["written", "No space left", "free some space"] {
                assert!(error.contains(said), "{error}");
            }
            assert!(pairs.is_empty());
        }
    }
}

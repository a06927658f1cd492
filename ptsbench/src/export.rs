//! A pruned network as a checkpoint: the keys, shapes and types that its own library wrote, zeros in place.
//!
//! Where batch norms were kept, the network's tensors are the checkpoint's. Where they were folded, checkpoints have them
//! apart: folding scales each output channel, so a zero of the folded weight is a zero of the checkpoint's; a fitted weight
//! is divided by its channel's scale again, and what was fitted into a bias goes to the norm's shift. A tensor that was not
//! changed keeps its bytes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::graft::read_params;
use model_zoo::tap::Bare;
use model_zoo::weights::{self, Slot, Source, Stored, WeightError, from_f32};
use model_zoo::{Network, Of};

use crate::cell::{BatchNorm, CalibrationCell, Cell, Key};
use crate::inventory::Weights;
use crate::own;
use crate::pipeline::{Bench, Measure, MeasureError, treat};
use crate::subject::{self, Site};
use crate::task::TaskError;
use crate::task::judged::{Judge, Judged, OtherKind};

/// PyTorch's counter of training batches: carried over where the file has it.
const COUNTER: &str = "num_batches_tracked";

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The network could not be made.
    #[error(transparent)]
    Measure(MeasureError),
    /// The network's kind is not the one that the calibration images are for.
    #[error(
        "{0}, so its images cannot guide what is pruned; choose an allocator and a criterion that look at weights alone, and leave --granularity and --repair out"
    )]
    Unguided(OtherKind),
    /// A fitted bias for which the checkpoint has no place.
    #[error(
        "fitting gave layer `{layer}` a bias, and the checkpoint has neither a bias nor a norm there to hold it; fit without biases (--bias-lr 0, --no-correction)"
    )]
    NoPlace {
        /// The layer.
        layer: String,
    },
}

impl From<MeasureError> for ExportError {
    fn from(error: MeasureError) -> Self {
        match error {
            MeasureError::Task(TaskError::OtherKind(other)) => Self::Unguided(other),
            error => Self::Measure(error),
        }
    }
}

impl From<WeightError> for ExportError {
    fn from(error: WeightError) -> Self {
        Self::Measure(error.into())
    }
}

/// A network ready to be written.
#[derive(Debug)]
pub struct Exported {
    /// Its tensors.
    pub tensors: Vec<Stored>,
    /// The keys of its prunable weights, each with its zeros, in forward order.
    pub layers: Vec<(String, u64)>,
}

impl Exported {
    /// Prunable weights.
    pub fn weights(&self) -> u64 {
        let prunable = |tensor: &&Stored| self.layers.iter().any(|(key, _)| *key == tensor.key);
        let count = |tensor: &Stored| tensor.shape.iter().product::<usize>() as u64;
        self.tensors.iter().filter(prunable).map(count).sum()
    }

    /// Writes the file, complete or not at all; with `compress`, sparse tensors are packed.
    pub fn write(self, out: &Path, cell: &Cell, compress: bool) -> Result<(), WeightError> {
        // PyTorch's libraries expect the first entry.
        let mut metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            ("ptsbench.cell".to_owned(), cell.key().to_string()),
            ("ptsbench.weights".to_owned(), cell.weights.clone()),
        ]);
        let mut tensors = self.tensors;
        if compress {
            let shapes;
            (tensors, shapes) = weights::pack(tensors);
            metadata.insert(weights::PACKED.to_owned(), shapes);
        }
        weights::write_stored(out, &tensors, &metadata)
    }
}

/// Makes the network that a cell measures, from the weights in `file`; `work` keeps what an interrupted fit goes on from.
pub fn export(
    bench: &Bench<'_>,
    cell: &Cell,
    file: &Path,
    work: &Path,
) -> Result<Exported, ExportError> {
    let spec = catalog::find(&cell.model).map_err(MeasureError::from)?;
    let export = Export(Measure {
        bench,
        cell,
        file,
        work,
    });
    spec.open(&bench.chosen.device, export)
}

struct Export<'a>(Measure<'a>);

impl<M: Judged> Visit<M> for Export<'_> {
    type Out = Result<Exported, ExportError>;

    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Self::Out {
        let measure = self.0;
        let device = &measure.bench.chosen.device;
        measure.check()?;
        let source = own::open(measure.file)?;
        let loaded = weights::load_network(network, source.as_ref())?;
        let slots = weights::parameters(&loaded, source.as_ref());

        // Folding reads the running statistics that the two share and changes none.
        let treatment = measure.cell.sparsity.as_ref().map(|s| s.batch_norm);
        let dense = treat(loaded.clone(), treatment.unwrap_or_default());
        let census = subject::census(spec, &dense, device);
        let before = subject::weights(&dense, &census);
        let mut changes = Changes::default();
        if let Some(sparsity) = &measure.cell.sparsity {
            let key = measure.cell.key();
            // Only what looks at images needs somebody who has some for networks of this kind.
            let mut images = |wanted: &CalibrationCell| {
                let judge = measure.bench.judge::<M>(spec, measure.cell, measure.file)?;
                judge.census(spec, &dense, device)?;
                let plain = Bare(measure.cell.precision);
                let run = |input| dense.run(input, &mut plain.clone());
                Ok(judge.calibration(&run, wanted, device, measure.bench.memory.for_inputs())?)
            };
            let sparse = measure
                .dense(spec, &dense, &census, &before, &key)
                .sparsify(sparsity, &mut images)?
                .network;
            let after = subject::weights(&sparse, &census);
            let keys: HashMap<&str, &Slot> = slots
                .iter()
                .map(|slot| (slot.path.as_str(), slot))
                .collect();
            let read = |slot: &Slot| source.read(&slot.source);
            let sites = subject::sites(&dense, &census);
            for (index, site) in sites.iter().enumerate() {
                let weight = keys[site.weight().as_str()];
                let (Some(old), Some(new)) = (before.weight(index), after.weight(index)) else {
                    continue;
                };
                let weights = match sparsity.batch_norm {
                    BatchNorm::Kept => new.to_vec(),
                    BatchNorm::Folded => {
                        let rows = weight.shape.first().copied().unwrap_or(1);
                        unscaled(read(weight)?, old, new, rows)
                    }
                };
                changes.put(weight, weights);
            }
            let old = others(&dense, &sites);
            for (path, new) in others(&sparse, &sites) {
                let old = &old[&path];
                if *old == new {
                    continue;
                }
                let no_place = || {
                    let layer = path.strip_suffix(".bias").unwrap_or(&path);
                    ExportError::NoPlace {
                        layer: dense.key(layer),
                    }
                };
                let own = keys.get(path.as_str());
                match sparsity.batch_norm {
                    BatchNorm::Kept => changes.put(own.ok_or_else(no_place)?, new),
                    BatchNorm::Folded => {
                        // The norm's shift is what the bias of a folded convolution was made of.
                        let norm = path
                            .strip_suffix(".conv.bias")
                            .and_then(|unit| keys.get(format!("{unit}.norm.beta").as_str()));
                        let slot = norm.or(own).ok_or_else(no_place)?;
                        changes.put(slot, shifted(read(slot)?, old, &new));
                    }
                }
            }
        }
        changes.write(&slots, source.as_ref(), &before)
    }
}

/// Every parameter but the prunable weights, by its path: biases, the scales, shifts and statistics of norms, tokens and
/// positions.
fn others<N: Network>(network: &N, sites: &[Site]) -> HashMap<String, Vec<f32>> {
    let prunable: HashSet<String> = sites.iter().map(Site::weight).collect();
    read_params(network)
        .into_iter()
        .filter(|(path, _)| !prunable.contains(path))
        .map(|(path, data)| (path, data.iter::<f32>().collect()))
        .collect()
}

/// The checkpoint's weight after the folded one went from `old` to `new`: channel by channel a multiple of it.
fn unscaled(raw: Vec<f32>, old: &[f32], new: &[f32], rows: usize) -> Vec<f32> {
    let columns = (raw.len() / rows.max(1)).max(1);
    let mut changed = raw;
    for ((raw, old), new) in changed
        .chunks_mut(columns)
        .zip(old.chunks(columns))
        .zip(new.chunks(columns))
    {
        // The largest weight tells the channel's scale best.
        let largest = (0..raw.len()).max_by(|&a, &b| raw[a].abs().total_cmp(&raw[b].abs()));
        let scale = largest
            .filter(|&at| raw[at] != 0.0)
            .map_or(1.0, |at| f64::from(old[at]) / f64::from(raw[at]));
        for at in 0..raw.len() {
            if new[at] == 0.0 {
                raw[at] = 0.0;
            } else if new[at] != old[at] && scale != 0.0 {
                raw[at] = (f64::from(new[at]) / scale) as f32;
            }
        }
    }
    changed
}

/// The checkpoint's shift after the network's went from `old` to `new`.
fn shifted(raw: Vec<f32>, old: &[f32], new: &[f32]) -> Vec<f32> {
    let shift = |(raw, (old, new)): (f32, (&f32, &f32))| {
        (f64::from(raw) + (f64::from(*new) - f64::from(*old))) as f32
    };
    raw.into_iter()
        .zip(old.iter().zip(new))
        .map(shift)
        .collect()
}

/// Tensors whose values are others than the file's, by their keys in the network's layout.
#[derive(Default)]
struct Changes(HashMap<String, Vec<f32>>);

impl Changes {
    fn put(&mut self, slot: &Slot, values: Vec<f32>) {
        self.0.insert(slot.key.clone(), values);
    }

    fn write(
        mut self,
        slots: &[Slot],
        source: &dyn Source,
        layers: &dyn Weights,
    ) -> Result<Exported, ExportError> {
        let mut tensors = Vec::with_capacity(slots.len());
        for slot in slots {
            let dtype = source
                .dtype(&slot.source)
                .ok_or_else(|| gone(source, slot))?;
            let changed = self.0.remove(&slot.key);
            let bytes = match changed.and_then(|values| from_f32(dtype, &values)) {
                Some(bytes) => bytes,
                None => source.raw(&slot.source)?,
            };
            tensors.push(Stored {
                key: slot.key.clone(),
                dtype,
                shape: slot.shape.clone(),
                bytes,
            });
            let counter =
                |key: &str| Some(format!("{}{COUNTER}", key.strip_suffix("running_mean")?));
            if let (Some(key), Some(from)) = (counter(&slot.key), counter(&slot.source))
                && let (Some(dtype), Some(shape)) = (source.dtype(&from), source.shape(&from))
            {
                tensors.push(Stored {
                    key,
                    dtype,
                    shape,
                    bytes: source.raw(&from)?,
                });
            }
        }
        let zeros = |key: &str| {
            let tensor = tensors.iter().find(|tensor| tensor.key == key);
            tensor.map_or(0, zeros_of)
        };
        let layers = layers.layers().iter().map(|layer| {
            let key = format!("{}.weight", layer.path);
            let zeros = zeros(&key);
            (key, zeros)
        });
        let layers = layers.collect();
        Ok(Exported { tensors, layers })
    }
}

/// Values of a tensor that are zero, of either sign.
fn zeros_of(tensor: &Stored) -> u64 {
    let width = (tensor.dtype.bits() / 8).max(1) as usize;
    let zero = |value: &&[u8]| {
        let (last, rest) = value.split_last().unwrap_or((&0, &[]));
        last & 0x7f == 0 && rest.iter().all(|&byte| byte == 0)
    };
    tensor.bytes.chunks(width).filter(zero).count() as u64
}

fn gone(source: &dyn Source, slot: &Slot) -> WeightError {
    WeightError::NoSuchKey {
        file: source.origin(),
        key: slot.source.clone(),
    }
}

/// A folder for the units that a fit has finished, beside the file that is to be written. Other options are another cell,
/// which must not go on from this one's units.
pub fn work_folder(out: &Path, key: &Key) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(format!(".{}.work", key.short()));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model_zoo::weights::Dtype;

    #[test]
    fn a_folded_weight_is_unfolded_again() {
        let raw = vec![1.0, -2.0, 0.5, 4.0];
        let old = vec![3.0, -6.0, -1.0, -8.0];
        let new = vec![0.0, -6.0, -1.5, 0.0];
        assert_eq!(unscaled(raw, &old, &new, 2), [0.0, -2.0, 0.75, 0.0]);
        // A channel that the norm switches off stays as it is, but for its zeros.
        let silent = unscaled(vec![1.0, 2.0], &[0.0, 0.0], &[0.0, 0.0], 1);
        assert_eq!(silent, [0.0, 0.0]);
        assert_eq!(
            shifted(vec![1.0, 2.0], &[0.5, 0.5], &[0.75, 0.5]),
            [1.25, 2.0]
        );
    }

    #[test]
    fn zeros_of_both_signs_count() {
        let tensor = |dtype, values: &[f32]| Stored {
            key: String::new(),
            dtype,
            shape: vec![values.len()],
            bytes: from_f32(dtype, values).unwrap(),
        };
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
            assert_eq!(
                zeros_of(&tensor(dtype, &[0.0, -0.0, 1.0, -2.0])),
                2,
                "{dtype:?}"
            );
        }
    }
}

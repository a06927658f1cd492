//! From a checkpoint into a module and back, by the checkpoint's own keys and layout.
//!
//! Burn and PyTorch store the same numbers, but for one thing: a `Linear`'s weight is `[in, out]` here and `[out, in]`
//! there. The transpose happens in this file and nowhere else.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};

use super::container::{Container, io_error, open_regular};
use super::dtype::{Dtype, from_f32};
use super::error::{NotFinite, WeightError, WrongShape};
use super::packed::PackedFile;
use super::torch::TorchFile;
use super::unwrapped::Unwrapped;
use super::write::{Named, Stored, write_stored};

/// PyTorch's counter of training batches, in every batch norm of a checkpoint, and the numbers from 0 up that older
/// checkpoints of text transformers have beside their positions: of no use to us.
const IGNORED: [&str; 2] = ["num_batches_tracked", "embeddings.position_ids"];

/// What wrappers put before every key: data parallel, trainers, whole checkpoints, compiled models. Those that
/// [`Unwrapped`] takes off are named for files in which only some keys have them.
const WRAPPERS: [&str; 4] = ["module.", "model.", "state_dict.", "_orig_mod."];

/// Marks of layouts that are known and not read here.
const LAYOUTS: [(&str, &str); 4] = [
    (".gamma", "Burn's own layout"),
    ("encoder.stages.", "the Hugging Face transformers layout"),
    ("_branch2a", "the Caffe layout"),
    ("stem.conv1.norm.", "the detectron2 layout"),
];

/// Marks of files whose network is another one than the name suggests: other keys would not make it ours.
const OTHERS: [(&str, &str); 1] = [(
    "bbox_head.retina_",
    "the file is mmdetection's, whose RetinaNet is another network: it makes P6 of the backbone's last stage and not of P5, \
     P7 of P6 without a ReLU, and counts no background among its classes; take torchvision's weights",
)];

/// Tensors by key, wherever they come from.
pub trait Source {
    /// The file, or whatever a message should name.
    fn origin(&self) -> String;

    /// What stood before every key and is left out of them.
    fn prefix(&self) -> &str {
        ""
    }

    /// Every key, in the source's order.
    fn keys(&self) -> Vec<String>;

    /// The shape of a tensor, in the checkpoint's layout; none for a key the source has not.
    fn shape(&self, key: &str) -> Option<Vec<usize>>;

    /// How a tensor's values are stored; F32 where the source has no file.
    fn dtype(&self, key: &str) -> Option<Dtype> {
        self.shape(key).map(|_| Dtype::F32)
    }

    /// A tensor's bytes, row-major and little-endian, whatever they mean.
    fn raw(&self, key: &str) -> Result<Vec<u8>, WeightError> {
        let values = self.read(key)?;
        Ok(values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect())
    }

    /// A tensor's values, row-major; every one is finite.
    fn read(&self, key: &str) -> Result<Vec<f32>, WeightError>;
}

/// Opens a weight file of any kind that is read: safetensors, or a PyTorch checkpoint.
/// The prefixes of data parallel and compiled models are taken off.
pub fn open(path: &Path) -> Result<Box<dyn Source>, WeightError> {
    Ok(Unwrapped::of(stored(path)?))
}

/// A file's tensors as it names them.
fn stored(path: &Path) -> Result<Box<dyn Source>, WeightError> {
    let mut start = Vec::new();
    let (file, _) = open_regular(path)?;
    file.take(64)
        .read_to_end(&mut start)
        .map_err(|source| io_error(path, "read", source))?;
    if TorchFile::begins(&start) {
        return Ok(Box::new(TorchFile::open(path)?));
    }
    let container = Container::open(path).map_err(|error| match error {
        WeightError::Malformed { file, fault } if named_as_torch(path) && !fault.is_foreign() => {
            WeightError::NotTorch {
                file,
                found: looks_like(&start),
            }
        }
        error => error,
    })?;
    Ok(match PackedFile::of(container)? {
        Ok(packed) => Box::new(packed),
        Err(plain) => Box::new(plain),
    })
}

fn named_as_torch(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ["pth", "pt"].contains(&ending.to_ascii_lowercase().as_str()))
}

/// What a file begins with, for a message.
fn looks_like(start: &[u8]) -> String {
    let shown = &start[..start.len().min(24)];
    // The end may lie within a character.
    let text = match std::str::from_utf8(shown) {
        Ok(text) => Some(text),
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&shown[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    match text.filter(|text| !text.contains(|c: char| c.is_control() && !c.is_whitespace())) {
        Some("") => "nothing in it".to_owned(),
        Some(text) => format!("a text that begins {text:?}"),
        None => {
            let bytes: Vec<String> = shown.iter().take(8).map(|b| format!("{b:02x}")).collect();
            format!("bytes that begin {}", bytes.join(" "))
        }
    }
}

/// Fills a module from a source. `key_of` gives the checkpoint's key of a parameter's path, as
/// `layer1.0.conv1.conv.weight` or `conv1.norm.gamma`.
///
/// All keys and shapes are compared before the first tensor is read, and every problem of the first kind found is
/// reported at once. Each parameter keeps its id, its device and whether it is trained.
///
/// The module is consumed, also by an error, and must not share state with a clone that is still in use: a batch norm's
/// running statistics are shared between clones and are overwritten in place.
pub fn load<M: Module>(
    model: M,
    key_of: impl Fn(&str) -> String,
    source: &dyn Source,
) -> Result<M, WeightError> {
    let mut walk = Walk::new(&key_of);
    model.visit(&mut walk);
    check::<M>(&walk.slots, source)?;

    let mut fill = Fill {
        places: Places::default(),
        key_of: &key_of,
        source,
        not_finite: Vec::new(),
        error: None,
    };
    let model = model.map(&mut fill);
    if let Some(error) = fill.error {
        return Err(error);
    }
    if !fill.not_finite.is_empty() {
        return Err(WeightError::NotFinite {
            file: source.origin(),
            tensors: fill.not_finite,
        });
    }
    Ok(model)
}

/// Writes a module in f32, in the checkpoint's keys and layout; `key_of` as in [`load`]. The same weights give the same bytes.
pub fn save<M: Module>(
    model: &M,
    key_of: impl Fn(&str) -> String,
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightError> {
    save_with(model, key_of, Dtype::F32, path, metadata)
}

/// As [`save`], with tensors of two and more dimensions in a dtype of floats; biases and norms stay in f32.
pub fn save_with<M: Module>(
    model: &M,
    key_of: impl Fn(&str) -> String,
    matrices: Dtype,
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightError> {
    let mut gather = Gather {
        places: Places::default(),
        key_of: &key_of,
        tensors: Vec::new(),
        masked: None,
    };
    model.visit(&mut gather);
    match gather.masked {
        Some(masked) => Err(WeightError::NotMaterialized {
            file: path.display().to_string(),
            path: masked,
        }),
        None => {
            let stored: Vec<Stored> = gather
                .tensors
                .into_iter()
                .map(|tensor| {
                    let dtype = match tensor.shape.len() {
                        0 | 1 => Dtype::F32,
                        _ => matrices,
                    };
                    Stored {
                        bytes: from_f32(dtype, &tensor.values).expect("a dtype of floats"),
                        key: tensor.key,
                        dtype,
                        shape: tensor.shape,
                    }
                })
                .collect();
            write_stored(path, &stored, metadata)
        }
    }
}

/// Where a traversal stands: names from the root, each with its container's type. An `Option` adds no level.
#[derive(Default)]
struct Places(Vec<(String, String)>);

impl Places {
    fn enter(&mut self, name: &str, container: &str) {
        self.0.push((name.to_string(), container.to_string()));
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn path(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.join(".")
    }

    /// Whether the checkpoint stores this parameter's transpose.
    fn transposed(&self, rank: usize) -> bool {
        rank == 2
            && self
                .0
                .last()
                .is_some_and(|(_, container)| container == "Struct:Linear")
    }
}

/// A parameter as the checkpoint sees it.
pub(super) struct Slot {
    pub(super) key: String,
    pub(super) shape: Vec<usize>,
}

pub(super) struct Walk<'a, K> {
    places: Places,
    key_of: &'a K,
    pub(super) slots: Vec<Slot>,
}

impl<'a, K> Walk<'a, K> {
    pub(super) fn new(key_of: &'a K) -> Self {
        Walk {
            places: Places::default(),
            key_of,
            slots: Vec::new(),
        }
    }
}

impl<K: Fn(&str) -> String> ModuleVisitor for Walk<'_, K> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.places.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.places.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let mut shape = param.lazy_shape().to_vec();
        if self.places.transposed(D) {
            shape.reverse();
        }
        self.slots.push(Slot {
            key: (self.key_of)(&self.places.path()),
            shape,
        });
    }
}

/// Every slot must be in the source with its shape, and nothing else but what is ignored.
pub(super) fn check<M>(slots: &[Slot], source: &dyn Source) -> Result<(), WeightError> {
    let (file, model) = (source.origin(), short_name::<M>());
    let wanted: HashSet<&str> = slots.iter().map(|slot| slot.key.as_str()).collect();
    let keys: Vec<String> = source
        .keys()
        .into_iter()
        .filter(|key| !IGNORED.iter().any(|end| key.ends_with(end)))
        .collect();

    let missing: Vec<String> = slots
        .iter()
        .filter(|slot| source.shape(&slot.key).is_none())
        .map(|slot| slot.key.clone())
        .collect();
    let extra: Vec<String> = keys
        .iter()
        .filter(|key| !wanted.contains(key.as_str()))
        .cloned()
        .collect();
    let hint = hint(&wanted, &extra);
    if !missing.is_empty() {
        return Err(WeightError::MissingKeys {
            file,
            model,
            missing,
            hint,
        });
    }
    if !extra.is_empty() {
        return Err(WeightError::ExtraKeys {
            file,
            model,
            extra,
            hint,
        });
    }
    let wrong: Vec<WrongShape> = slots
        .iter()
        .filter_map(|slot| {
            let found = source.shape(&slot.key)?;
            (found != slot.shape).then(|| WrongShape {
                key: slot.key.clone(),
                expected: slot.shape.clone(),
                found,
            })
        })
        .collect();
    if !wrong.is_empty() {
        return Err(WeightError::Shape { file, model, wrong });
    }
    Ok(())
}

/// What to do about keys that do not fit, from those that the file has and the network has not.
fn hint(wanted: &HashSet<&str>, extra: &[String]) -> String {
    let Some(first) = extra.first() else {
        return "use the weights of this very network".to_string();
    };
    for wrapper in WRAPPERS {
        let unwrapped = |key: &String| {
            key.strip_prefix(wrapper)
                .is_some_and(|key| wanted.contains(key))
        };
        if extra.iter().any(unwrapped) {
            return format!(
                "the file's keys carry the prefix `{wrapper}` of a wrapper: save the model inside it"
            );
        }
    }
    for (mark, why) in OTHERS {
        if extra.iter().any(|key| key.contains(mark)) {
            return why.to_owned();
        }
    }
    for (mark, layout) in LAYOUTS {
        if extra.iter().any(|key| key.contains(mark)) {
            return format!(
                "the file looks like {layout}: convert it to the torchvision or timm names"
            );
        }
    }
    format!(
        "the file holds {} other tensors, the first {first:?}: use the weights of this very network in the torchvision \
         or timm names",
        extra.len()
    )
}

fn short_name<M>() -> String {
    let name = std::any::type_name::<M>();
    let bare = name.split('<').next().unwrap_or(name);
    bare.rsplit("::").next().unwrap_or(bare).to_string()
}

struct Fill<'a, K> {
    places: Places,
    key_of: &'a K,
    source: &'a dyn Source,
    not_finite: Vec<NotFinite>,
    error: Option<WeightError>,
}

impl<K: Fn(&str) -> String> ModuleMapper for Fill<'_, K> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.places.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.places.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let values = match self.source.read(&(self.key_of)(&self.places.path())) {
            Ok(values) => values,
            // Go on, so that all such tensors are reported together.
            Err(WeightError::NotFinite { tensors, .. }) => {
                self.not_finite.extend(tensors);
                return param;
            }
            Err(error) => {
                self.error = Some(error);
                return param;
            }
        };
        let transposed = self.places.transposed(D);
        let mut shape = param.lazy_shape().to_vec();
        if transposed {
            shape.reverse();
        }
        let stored = Tensor::<D>::from_data(TensorData::new(values, shape), &param.lazy_device());
        let tensor = if transposed {
            stored.swap_dims(0, 1)
        } else {
            stored
        };
        // Unlike `map`, this leaves a parameter that was never touched uninitialized, so nothing is drawn to be
        // thrown away; id, device and training state stay.
        let id = param.id;
        param.transform_for_load(tensor, id)
    }
}

struct Gather<'a, K> {
    places: Places,
    key_of: &'a K,
    tensors: Vec<Named>,
    masked: Option<String>,
}

impl<K: Fn(&str) -> String> ModuleVisitor for Gather<'_, K> {
    fn enter_module(&mut self, name: &str, container: &str) {
        // A visitor sees the weight below a mask, not the masked one: writing it would lose the mask silently.
        if container == "Reparameterization" && self.masked.is_none() {
            self.masked = Some(self.places.path());
        }
        self.places.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.places.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.transform_for_save().into_value();
        let tensor = if self.places.transposed(D) {
            tensor.swap_dims(0, 1)
        } else {
            tensor
        };
        let shape = tensor.dims().to_vec();
        let values = tensor.into_data().iter::<f32>().collect();
        self.tensors.push(Named {
            key: (self.key_of)(&self.places.path()),
            shape,
            values,
        });
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{ParamId, list_param_ids};
    use burn::nn::conv::{Conv2d, Conv2dConfig};
    use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
    use burn::tensor::Device;
    use indexmap::IndexMap;
    use kernels::BitMask;

    use super::*;
    use crate::mask::Attach;
    use crate::weights::Container;

    #[derive(Module, Debug)]
    struct Small {
        conv: Conv2d,
        norm: BatchNorm,
        fc: Option<Linear>,
    }

    impl Small {
        fn new() -> Small {
            let device = Device::flex();
            Small {
                conv: Conv2dConfig::new([3, 4], [2, 2])
                    .with_bias(false)
                    .init(&device),
                norm: BatchNormConfig::new(4).init(&device),
                fc: Some(LinearConfig::new(4, 2).init(&device)),
            }
        }
    }

    fn key_of(path: &str) -> String {
        path.replace("norm.gamma", "bn.weight")
            .replace("norm.beta", "bn.bias")
            .replace("norm.", "bn.")
    }

    /// Tensors in memory; the values count up from 0 through the keys.
    struct Counted(IndexMap<String, Vec<usize>>);

    impl Counted {
        fn new() -> Counted {
            let shapes: [(&str, &[usize]); 8] = [
                ("conv.weight", &[4, 3, 2, 2]),
                ("bn.weight", &[4]),
                ("bn.bias", &[4]),
                ("bn.running_mean", &[4]),
                ("bn.running_var", &[4]),
                ("bn.num_batches_tracked", &[]),
                ("fc.weight", &[2, 4]),
                ("fc.bias", &[2]),
            ];
            Counted(
                shapes
                    .into_iter()
                    .map(|(key, shape)| (key.to_string(), shape.to_vec()))
                    .collect(),
            )
        }

        fn renamed(self, rename: impl Fn(&str) -> String) -> Counted {
            Counted(
                self.0
                    .into_iter()
                    .map(|(key, shape)| (rename(&key), shape))
                    .collect(),
            )
        }
    }

    impl Source for Counted {
        fn origin(&self) -> String {
            "memory".into()
        }

        fn keys(&self) -> Vec<String> {
            self.0.keys().cloned().collect()
        }

        fn shape(&self, key: &str) -> Option<Vec<usize>> {
            self.0.get(key).cloned()
        }

        fn read(&self, key: &str) -> Result<Vec<f32>, WeightError> {
            let before: usize = self
                .0
                .iter()
                .take_while(|(k, _)| *k != key)
                .map(|(_, s)| s.iter().product::<usize>())
                .sum();
            let count: usize = self.0[key].iter().product();
            Ok((before..before + count).map(|i| i as f32).collect())
        }
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    #[test]
    fn every_tensor_finds_its_place_and_linear_is_transposed() {
        let source = Counted::new();
        let model = load(Small::new(), key_of, &source).unwrap();
        assert_eq!(
            values(model.conv.weight.val()),
            source.read("conv.weight").unwrap()
        );
        assert_eq!(
            values(model.norm.gamma.val()),
            source.read("bn.weight").unwrap()
        );
        assert_eq!(
            values(model.norm.running_mean.value()),
            source.read("bn.running_mean").unwrap()
        );
        assert_eq!(
            values(model.norm.running_var.value()),
            source.read("bn.running_var").unwrap()
        );
        let fc = model.fc.unwrap();
        assert_eq!(fc.weight.dims(), [4, 2]);
        assert_eq!(
            values(fc.weight.val().swap_dims(0, 1)),
            source.read("fc.weight").unwrap()
        );
        assert_eq!(
            values(fc.bias.unwrap().val()),
            source.read("fc.bias").unwrap()
        );
    }

    #[test]
    fn ids_and_training_state_stay() {
        let model = Small::new().train();
        let frozen = Small {
            conv: model.conv.no_grad(),
            ..model
        };
        let ids: Vec<ParamId> = list_param_ids(&frozen);
        let loaded = load(frozen, key_of, &Counted::new()).unwrap();
        assert_eq!(list_param_ids(&loaded), ids);
        assert!(!loaded.conv.weight.val().is_require_grad());
        assert!(loaded.norm.gamma.val().is_require_grad());
        assert!(loaded.norm.gamma.val().is_autodiff());
        assert!(!loaded.norm.running_mean.value().is_require_grad());
    }

    #[test]
    fn matrices_alone_are_saved_in_another_dtype() {
        let model = load(Small::new(), key_of, &Counted::new()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("half.safetensors");
        save_with(&model, key_of, Dtype::F16, &path, &BTreeMap::new()).unwrap();
        let file = Container::open(&path).unwrap();
        for key in file.keys() {
            let rank = file.shape(&key).unwrap().len();
            let wanted = if rank > 1 { Dtype::F16 } else { Dtype::F32 };
            assert_eq!(file.dtype(&key), Some(wanted), "{key}");
        }
        load(Small::new(), key_of, &file).unwrap();
    }

    #[test]
    fn what_is_saved_is_loaded_again() {
        let source = Counted::new();
        let model = load(Small::new(), key_of, &source).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let metadata = BTreeMap::from([
            ("seed".to_string(), "1".to_string()),
            ("a".to_string(), "b".to_string()),
        ]);
        save(&model, key_of, &path, &metadata).unwrap();

        let file = Container::open(&path).unwrap();
        assert_eq!(file.metadata(), &metadata);
        for key in file.keys() {
            assert_eq!(file.shape(&key), source.shape(&key), "{key}");
            assert_eq!(
                file.read(&key).unwrap(),
                source.read(&key).unwrap(),
                "{key}"
            );
        }
        let again = load(Small::new(), key_of, &file).unwrap();
        assert_eq!(
            values(again.fc.unwrap().weight.val()),
            values(model.fc.unwrap().weight.val())
        );
    }

    #[test]
    fn a_masked_model_is_not_saved() {
        let keep: Vec<bool> = (0..4 * 12).map(|i| i % 2 == 0).collect();
        let mask = BitMask::from_keep(4, 12, &keep).unwrap();
        let masks = [("conv.weight".to_owned(), &mask)];
        let device = Device::flex();
        let model = Small::new().apply_reparameterization(Attach::new(masks, &device));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let error = save(&model, key_of, &path, &BTreeMap::new()).unwrap_err();
        assert!(
            matches!(&error, WeightError::NotMaterialized { path, .. } if path == "conv.weight"),
            "{error}"
        );
        assert!(!path.exists());
        save(&model.materialize(), key_of, &path, &BTreeMap::new()).unwrap();
        let weights = Container::open(&path).unwrap().read("conv.weight").unwrap();
        assert!(
            weights
                .iter()
                .zip(&keep)
                .all(|(weight, keep)| *keep || *weight == 0.0)
        );
    }

    #[test]
    fn missing_and_extra_keys_are_named_together() {
        let mut source = Counted::new();
        source.0.shift_remove("bn.bias");
        source.0.shift_remove("fc.bias");
        let error = load(Small::new(), key_of, &source).unwrap_err().to_string();
        assert_eq!(
            error,
            "memory: 2 of Small's tensors are missing: bn.bias, fc.bias; use the weights of this very network"
        );
        let mut source = Counted::new();
        source.0.insert("layer9.weight".into(), vec![1]);
        let error = load(Small::new(), key_of, &source).unwrap_err();
        assert!(
            matches!(&error, WeightError::ExtraKeys { extra, .. } if extra == &["layer9.weight"]),
            "{error}"
        );
    }

    #[test]
    fn a_wrapper_or_another_layout_is_recognised() {
        let wrapped = Counted::new().renamed(|key| format!("module.{key}"));
        let error = load(Small::new(), key_of, &wrapped)
            .unwrap_err()
            .to_string();
        assert!(error.contains("prefix `module.`"), "{error}");
        let burn = Counted::new().renamed(|key| key.replace("bn.weight", "norm.gamma"));
        let error = load(Small::new(), key_of, &burn).unwrap_err().to_string();
        assert!(error.contains("Burn's own layout"), "{error}");
    }

    #[test]
    fn shapes_are_compared_in_the_checkpoints_layout() {
        let mut source = Counted::new();
        source.0["fc.weight"] = vec![4, 2];
        let error = load(Small::new(), key_of, &source).unwrap_err().to_string();
        assert!(
            error.contains("fc.weight expected [2, 4], found [4, 2]"),
            "{error}"
        );
    }

    #[test]
    fn all_tensors_with_bad_values_are_named() {
        struct Poisoned(Counted);

        impl Source for Poisoned {
            fn origin(&self) -> String {
                self.0.origin()
            }

            fn keys(&self) -> Vec<String> {
                self.0.keys()
            }

            fn shape(&self, key: &str) -> Option<Vec<usize>> {
                self.0.shape(key)
            }

            fn read(&self, key: &str) -> Result<Vec<f32>, WeightError> {
                if key.starts_with("bn.running") {
                    let found = NotFinite {
                        key: key.into(),
                        values: 4,
                        nan: 1,
                        infinite: 0,
                        first: 2,
                    };
                    return Err(WeightError::NotFinite {
                        file: self.origin(),
                        tensors: vec![found],
                    });
                }
                self.0.read(key)
            }
        }

        let error = load(Small::new(), key_of, &Poisoned(Counted::new())).unwrap_err();
        let WeightError::NotFinite { tensors, .. } = &error else {
            panic!("{error}")
        };
        let keys: Vec<&str> = tensors.iter().map(|tensor| tensor.key.as_str()).collect();
        assert_eq!(keys, ["bn.running_mean", "bn.running_var"]);
    }
}

//! Reads the sparsity topic: models, expected counts, tensors by name. Sizes, names and rates all come from the files.

use std::collections::HashMap;
use std::path::Path;

use model_zoo::LayerKind;
use ptsbench::inventory::{Layer, Loaded};
use ptsbench_tests::golden_topic;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A tensor of any stored type, widened to f64 (exact for all of them).
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

pub fn json(file: &str) -> Value {
    read_json(&golden_topic("sparsity").join(file))
}

pub fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn tensors(file: &str) -> HashMap<String, Array> {
    let path = golden_topic("sparsity").join(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file =
        SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.iter()
        .map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::U8 => data.iter().map(|&b| f64::from(b)).collect(),
                Dtype::F32 => chunks(data, |b| f64::from(f32::from_le_bytes(b))),
                Dtype::F64 => chunks(data, f64::from_le_bytes),
                other => panic!("{name}: {other:?} is not used in this topic"),
            };
            let shape = view.shape().to_vec();
            (name.to_owned(), Array { shape, values })
        })
        .collect()
}

fn chunks<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    data.as_chunks()
        .0
        .iter()
        .map(|&bytes| read(bytes))
        .collect()
}

impl Array {
    pub fn f32s(&self) -> Vec<f32> {
        self.values.iter().map(|&x| x as f32).collect()
    }

    pub fn keep(&self) -> Vec<bool> {
        self.values.iter().map(|&x| x != 0.0).collect()
    }
}

/// The fields of an object, in the file's order.
pub fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().expect("an object").iter()
}

pub fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

pub fn count(value: &Value) -> usize {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no count")) as usize
}

pub fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no string"))
}

pub fn shape(value: &Value) -> Vec<usize> {
    value
        .as_array()
        .expect("a shape")
        .iter()
        .map(count)
        .collect()
}

/// One golden model: its layers with weights, and what is expected of it.
pub struct Model {
    pub name: String,
    pub weights: Loaded,
    pub expected: Value,
}

pub fn models() -> Vec<Model> {
    let tensors = tensors("models.safetensors");
    let allocation = json("allocation.json");
    fields(&allocation["models"])
        .map(|(name, expected)| {
            let layers = expected["layers"].as_array().expect("layers").iter();
            let layers = layers.map(|layer| {
                let path = text(&layer["name"]).to_owned();
                let array = &tensors[&format!("{name}/{path}")];
                let shape = shape(&layer["shape"]);
                assert_eq!(array.shape, shape, "{name}/{path}");
                let kind = match text(&layer["kind"]) {
                    "conv" => LayerKind::Conv,
                    "linear" => LayerKind::Linear,
                    other => panic!("layer kind {other}"),
                };
                let groups = count(&layer["groups"]);
                let layer = Layer {
                    path,
                    kind,
                    shape,
                    groups,
                    macs: 0,
                };
                (layer, array.f32s())
            });
            Model {
                name: name.clone(),
                weights: Loaded::new(layers).expect("weights of the stated shapes"),
                expected: expected.clone(),
            }
        })
        .collect()
}

/// `|got - want| <= tolerance * max(1, |want|)`; NaN equals NaN.
#[track_caller]
pub fn near(got: &[f64], want: &[f64], tolerance: f64, what: &str) -> usize {
    assert_eq!(got.len(), want.len(), "{what}");
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        let close = (got - want).abs() <= tolerance * want.abs().max(1.0);
        assert!(
            close || (got.is_nan() && want.is_nan()),
            "{what}[{index}]: {got} is not {want}"
        );
    }
    got.len()
}

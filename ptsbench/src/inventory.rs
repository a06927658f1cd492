//! The prunable layers of a network: what allocators and criteria see of it.

use model_zoo::LayerKind;
use serde::{Deserialize, Serialize};

/// One prunable layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The checkpoint's name, e.g. `layer4.0.conv2`.
    pub path: String,
    /// Convolution or linear.
    pub kind: LayerKind,
    /// Weight shape as the checkpoint stores it: OIHW or [out, in].
    pub shape: Vec<usize>,
    /// Groups of a convolution, 1 for linear layers.
    pub groups: usize,
    /// Multiply-adds for one input.
    pub macs: u64,
}

impl Layer {
    /// Weights in the layer.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows and columns of the matrix view: output channels x everything else.
    pub fn matrix(&self) -> [usize; 2] {
        let rows = self.shape[0];
        [rows, self.shape[1..].iter().product()]
    }
}

/// The prunable layers in the order of the first forward pass, and their weights where they are at hand.
pub trait Weights {
    /// The layers.
    fn layers(&self) -> &[Layer];

    /// The weights of layer `index`, flat row-major in the order of its shape; `None` where only shapes are known.
    fn weight(&self, index: usize) -> Option<&[f32]>;

    /// All prunable weights together.
    fn total(&self) -> usize {
        self.layers().iter().map(Layer::len).sum()
    }
}

/// Shapes alone.
impl Weights for Vec<Layer> {
    fn layers(&self) -> &[Layer] {
        self
    }

    fn weight(&self, _: usize) -> Option<&[f32]> {
        None
    }
}

/// A weight slice that does not belong to its layer.
#[derive(Debug, thiserror::Error)]
#[error(
    "layer `{path}` has {found} weights, its shape {shape:?} needs {expected}; load the checkpoint of this model"
)]
pub struct WrongLength {
    /// The layer.
    pub path: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Weights its shape needs.
    pub expected: usize,
    /// Weights passed.
    pub found: usize,
}

/// Layers with their weights.
#[derive(Debug, Clone)]
pub struct Loaded {
    layers: Vec<Layer>,
    weights: Vec<Vec<f32>>,
}

impl Loaded {
    /// Joins every layer with its flat weights.
    pub fn new(layers: impl IntoIterator<Item = (Layer, Vec<f32>)>) -> Result<Self, WrongLength> {
        let (layers, weights): (Vec<Layer>, Vec<Vec<f32>>) = layers.into_iter().unzip();
        for (layer, weight) in layers.iter().zip(&weights) {
            if layer.len() != weight.len() {
                return Err(WrongLength {
                    path: layer.path.clone(),
                    shape: layer.shape.clone(),
                    expected: layer.len(),
                    found: weight.len(),
                });
            }
        }
        Ok(Self { layers, weights })
    }
}

impl Weights for Loaded {
    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn weight(&self, index: usize) -> Option<&[f32]> {
        Some(&self.weights[index])
    }
}

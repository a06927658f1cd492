//! The prunable layers of a network: what allocators and criteria see of it.

use model_zoo::LayerKind;
use model_zoo::catalog::wildcard;
use model_zoo::misspelt::{did_you_mean, nearest};
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

/// A name or pattern of layers that a network does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` matches no layer of `{model}`{} (`ptsbench inspect {model}` shows its layers)", did_you_mean(.nearest))]
pub struct NoSuchLayer {
    /// The network.
    pub model: String,
    /// The name or pattern.
    pub pattern: String,
    /// The nearest names, and beginnings of names as patterns; best first.
    pub nearest: Vec<String>,
}

/// Refuses the first of `patterns` (`*` for any characters, `?` for one) that matches no layer.
pub fn named(model: &str, layers: &[Layer], patterns: &[String]) -> Result<(), NoSuchLayer> {
    let matches = |pattern: &str| layers.iter().any(|layer| wildcard(pattern, &layer.path));
    let Some(pattern) = patterns.iter().find(|pattern| !matches(pattern)) else {
        return Ok(());
    };
    // `backbone.*` and `backbone.layer1.*` of a layer called `backbone.layer1.conv1`.
    let beginnings = |layer: &Layer| -> Vec<String> {
        let dots = layer.path.match_indices('.');
        dots.map(|(at, _)| format!("{}.*", &layer.path[..at]))
            .collect()
    };
    let names = layers.iter().map(|layer| layer.path.clone());
    let mut known: Vec<String> = match pattern.contains(['*', '?']) {
        true => layers.iter().flat_map(beginnings).collect(),
        false => names.collect(),
    };
    known.sort();
    known.dedup();
    Err(NoSuchLayer {
        model: model.to_owned(),
        pattern: pattern.clone(),
        nearest: nearest(pattern, known),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_patterns_that_match_nothing_are_told_with_the_nearest() {
        let layer = |path: &str| Layer {
            path: path.to_owned(),
            kind: LayerKind::Conv,
            shape: vec![1, 1, 1, 1],
            groups: 1,
            macs: 1,
        };
        let layers = ["backbone.body.conv1", "head.conv.0", "fc"].map(layer);
        let look = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|p| p.to_string()).collect();
            named("net", &layers, &patterns).map_err(|error| error.to_string())
        };
        assert_eq!(look(&[]), Ok(()));
        assert_eq!(look(&["fc", "*", "head.*", "backbone.body.conv?"]), Ok(()));
        for (pattern, said) in [
            (
                "bakcbone.*",
                "`bakcbone.*` matches no layer of `net`, did you mean `backbone.*`",
            ),
            ("fcc", "did you mean `fc`?"),
            ("neck.*", "(`ptsbench inspect net` shows its layers)"),
        ] {
            let error = look(&["fc", pattern]).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}

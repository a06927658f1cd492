//! The prunable layers of a network: what allocators and criteria see of it.

use serde::{Deserialize, Serialize};

/// Kind of a prunable layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// A convolution; weight OIHW.
    Conv,
    /// A linear layer; weight [out, in].
    Linear,
}

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

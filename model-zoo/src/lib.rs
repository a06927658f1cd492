//! Networks described once, in plain typed Rust: run, counted, cut into units, masked, folded, loaded.
//!
//! Nothing here decides what is pruned, and nothing here knows a dataset.

#![forbid(unsafe_code)]
// Files are opened in `file` alone; the list is in clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod catalog;
pub mod clip_text;
pub mod detection;
pub mod diffusion;
pub mod file;
pub mod fold;
pub mod frozen;
pub mod graft;
pub mod inception;
pub mod inverted_residual;
pub mod layer;
pub mod mask;
pub mod misspelt;
pub mod mobilenet_v2;
pub mod mobilenet_v3;
pub mod modality;
pub mod norm;
pub mod padded;
pub mod pickle;
pub mod regnet;
pub mod resnet;
pub mod retinanet;
pub mod shufflenet_v2;
pub mod ssd;
pub mod tap;
pub mod tokenizer;
pub mod unet;
pub mod unit;
pub mod vae;
pub mod vgg;
pub mod vit;
pub mod weights;

pub use modality::{Blank, Boxes, Classes, Classifier, Modality, Noise, Of, Tokens, Visit};
pub use padded::{Extents, Padded};
pub use unit::{
    Bundle, Fixed, Grain, LayerInfo, LayerKind, Network, Tap, TensorMap, TensorZip, Unit, Zeros,
};

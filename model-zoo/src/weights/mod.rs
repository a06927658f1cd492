//! Weights on disk and how they enter a network and leave it again.
//!
//! What lives here: the safetensors container, sparse tensors in it, PyTorch's checkpoints, their errors, and the walk
//! that joins a module's parameters to a checkpoint's keys. What may not: network definitions, downloads, or any decision about what to prune. The key of a
//! parameter is the network's own affair; it comes in as a function.

mod container;
mod dtype;
mod error;
mod header;
mod layout;
mod packed;
mod source;
mod torch;
mod unwrapped;
mod write;

pub use container::{Container, Entry, HEADER_LIMIT, sha256};
pub use dtype::{Dtype, from_f32};
pub use error::{Fault, Foreign, NotFinite, WeightError, WrongShape};
pub use layout::{Slot, fits, load_network, other_classes, parameters, recognise};
pub use packed::{PACKED, PackedFile, pack};
pub use source::{Source, load, open, save, save_with};
pub use torch::{TorchFault, TorchFile};
pub use write::{Named, Stored, write, write_stored};

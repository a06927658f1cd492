//! Weights on disk and how they enter a network and leave it again.
//!
//! What lives here: the safetensors container, sparse tensors in it, PyTorch's checkpoints, their errors, and the walk that joins a module's parameters to a
//! checkpoint's keys. What may not: network definitions, downloads, or any decision about what to prune. The key of a
//! parameter is the network's own affair; it comes in as a function.

mod container;
mod error;
mod layout;
mod packed;
mod source;
mod torch;

pub use container::{
    Container, Dtype, Entry, HEADER_LIMIT, Named, Stored, from_f32, sha256, write, write_stored,
};
pub use error::{Fault, Foreign, NotFinite, WeightError, WrongShape};
pub use layout::{Slot, load_network, parameters, recognise};
pub use packed::{PACKED, PackedFile, pack};
pub use source::{Source, load, open, save};
pub use torch::{TorchFault, TorchFile};

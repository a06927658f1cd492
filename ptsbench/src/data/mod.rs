//! The images: where they come from, which ones calibrate, and the linear classifier that shows a set is not trivial.
//!
//! Nothing here knows of networks or sparsity.

pub mod calibration;
pub mod check;
pub mod cifar;
pub mod coco;
pub mod decode;
pub mod encode;
pub mod error;
pub mod folder;
pub mod imagenet;
pub mod jpeg;
pub mod layout;
pub mod limits;
pub mod linear;
pub mod lmdb;
pub mod loader;
pub mod lsun;
pub mod marked;
pub mod matlab;
pub mod pickle;
pub mod recipe;
pub mod recipe_file;
pub mod resize;
pub mod sheet;
pub mod source;
pub mod synthetic;
#[cfg(feature = "turbojpeg")]
mod turbo;
pub mod voc;

//! The images: where they come from, which ones calibrate, and the linear classifier that shows a set is not trivial.
//!
//! Nothing here knows of networks or sparsity.

pub mod calibration;
pub mod decode;
pub mod jpeg;
pub mod linear;
pub mod recipe;
pub mod resize;
pub mod sheet;
pub mod synthetic;

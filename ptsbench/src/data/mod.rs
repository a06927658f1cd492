//! The images: where they come from, which ones calibrate, and the linear classifier that shows a set is not trivial.
//!
//! Nothing here knows of networks or sparsity.

pub mod calibration;
pub mod linear;
pub mod sheet;
pub mod synthetic;

//! x

pub mod weights;

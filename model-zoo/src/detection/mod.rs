//! What detectors share beside their networks: where boxes are expected, how they are coded, and which are kept. Plain
//! numbers, no tensors: a detector's outputs arrive here after the network.

pub mod anchors;
pub mod boxes;

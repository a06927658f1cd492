//! What detectors share beside their networks: where boxes are expected, how they are coded, and which are kept. Plain
//! numbers, no tensors: a detector's outputs arrive here after the network.

pub mod anchors;
pub mod boxes;
pub mod found;

/// Whose rules a detector's outputs follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// RetinaNet's: a probability for each class, and anchors at each place of a pyramid.
    RetinaNet,
    /// SSD's: probabilities of classes that exclude each other, the background first, and priors.
    Ssd,
}

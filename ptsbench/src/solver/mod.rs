//! Weights chosen from second-order information: section 2 of the specification where it updates what it keeps.
//!
//! A solver sees one group of one layer as a matrix and the sum of its inputs' outer products; it returns a mask and
//! the weights that go with it. Pure functions: which layer, which inputs and in what order is the caller's business.

pub mod inverse;
pub mod sparsegpt;

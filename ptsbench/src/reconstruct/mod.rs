//! (being written)

pub mod correct;

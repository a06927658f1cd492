//! The tasks' metrics: model outputs in, a number out. What is evaluated is decided in `task/`.

pub mod top_k;

//! Tasks: what networks are trained for and judged by.

pub mod train;

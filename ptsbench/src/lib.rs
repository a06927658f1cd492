//! PTSBench: the post-training sparsity benchmark.
//!
//! Dense weights go in; rates are allocated to layers, masks chosen, what is left reconstructed, the task's metric
//! taken, and a record written. Tables and figures are functions of records alone.

#![forbid(unsafe_code)]
// Files are opened by `model_zoo::file` alone; the list is in clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]
// Everything is printed by `terminal`: a closed pipe or a full disk is not a panic.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod allocate;
pub mod batches;
pub mod cell;
pub mod cli;
pub mod command;
pub mod criterion;
pub mod data;
mod descent;
pub mod device;
pub mod export;
pub mod fcpts;
pub mod features;
pub mod fetch;
pub mod interrupt;
pub mod inventory;
pub mod machine;
pub mod memory;
pub mod metric;
pub mod nofm;
pub mod options;
pub mod overall;
pub mod own;
pub mod pipeline;
pub mod plan;
pub mod progress;
pub mod reconstruct;
pub mod record;
pub mod registry;
pub mod repair;
pub mod report;
pub mod seed;
pub mod seen;
pub mod select;
pub mod sequential;
pub mod solver;
pub mod sparsify;
pub mod statistics;
#[allow(
    clippy::disallowed_methods,
    reason = "/proc, and a folder that is opened to be synced"
)]
pub mod store;
pub mod subject;
pub mod task;
pub mod terminal;
pub mod zeros;

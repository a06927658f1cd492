//! PTSBench: the post-training sparsity benchmark.
//!
//! Dense weights go in; rates are allocated to layers, masks chosen, what is left reconstructed, the task's metric
//! taken, and a record written. Tables and figures are functions of records alone.

pub mod allocate;
pub mod cell;
pub mod cli;
pub mod command;
pub mod criterion;
pub mod data;
pub mod device;
pub mod export;
pub mod features;
pub mod fetch;
pub mod interrupt;
pub mod inventory;
pub mod metric;
pub mod overall;
pub mod pipeline;
pub mod plan;
pub mod progress;
pub mod reconstruct;
pub mod record;
pub mod registry;
pub mod report;
pub mod seed;
pub mod select;
pub mod solver;
pub mod store;
pub mod subject;
pub mod task;
pub mod terminal;

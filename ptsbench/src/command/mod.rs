//! One file per command: what it prints and in which order; the work is done by the library.

pub mod compare;
pub mod completions;
pub mod data;
pub mod doctor;
pub mod evaluate;
pub mod export;
pub mod fetch;
pub mod fid;
pub mod figures;
pub mod infer;
pub mod inspect;
pub mod latency;
pub mod list;
pub mod micro_zoo;
pub mod plan;
pub mod report;
pub mod run;
mod target;

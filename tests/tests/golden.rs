//! Golden tests: numbers computed by independent programs, compared at stated tolerances. Every test's name contains
//! its topic.

#[path = "golden/boxes.rs"]
mod boxes;
#[path = "golden/datasets_malformed.rs"]
mod datasets_malformed;
#[path = "golden/datasets_safetensors.rs"]
mod datasets_safetensors;
#[path = "golden/datasets_valid.rs"]
mod datasets_valid;
#[path = "golden/ddim.rs"]
mod ddim;
#[path = "golden/detection.rs"]
mod detection;
#[path = "golden/fid.rs"]
mod fid;
#[path = "golden/preprocess.rs"]
mod preprocess;
#[path = "golden/probe.rs"]
mod probe;
#[path = "golden/sparsity_allocation.rs"]
mod sparsity_allocation;
#[path = "golden/sparsity_correction.rs"]
mod sparsity_correction;
#[path = "golden/sparsity_data.rs"]
mod sparsity_data;
#[path = "golden/sparsity_erk.rs"]
mod sparsity_erk;
#[path = "golden/sparsity_masks.rs"]
mod sparsity_masks;
#[path = "golden/sparsity_overall.rs"]
mod sparsity_overall;
#[path = "golden/tensors.rs"]
mod tensors;
#[path = "golden/tokenizer.rs"]
mod tokenizer;

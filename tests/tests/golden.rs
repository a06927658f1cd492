//! Golden tests: numbers computed by independent programs, compared at stated tolerances.

#[path = "golden/datasets_safetensors.rs"]
mod datasets_safetensors;
#[path = "golden/sparsity_overall.rs"]
mod sparsity_overall;

//! Golden tests: numbers computed by independent programs, compared at stated tolerances.

#[path = "golden/datasets_safetensors.rs"]
mod datasets_safetensors;

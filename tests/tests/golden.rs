//! Golden values that are not networks: every test's name contains its topic.

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

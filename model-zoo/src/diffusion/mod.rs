//! What diffusion networks need beside themselves.

pub mod sampler;

//! What diffusion networks share, and what they need beside themselves.

pub mod block;
pub mod ddim;
pub mod sampler;

//! The tasks' metrics: model outputs in, a number out. What is evaluated is decided in `task/`.

pub mod coco_ap;
pub mod fid;
pub mod npz;
pub mod top_k;
pub mod voc_ap;

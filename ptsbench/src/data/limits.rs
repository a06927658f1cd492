//! The most bytes that a file of each kind may have: several times what the published ones have, and little enough that a
//! file of another kind under the same name is refused rather than read.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A picture: the largest allowed, of [`MAX_PIXELS`](crate::data::decode::MAX_PIXELS), without any compression.
pub const PICTURE: u64 = 256 * MIB;
/// COCO's annotations and results; those of 2017's training pictures have 450 MB.
pub const COCO: u64 = 1 << 30;
/// A VOC annotation; those of 2007 have 8 kB at most.
pub const VOC: u64 = 256 * KIB;
/// A list of names, classes or truths; that of ImageNet's 1.28 million training pictures has 60 MB.
pub const LIST: u64 = 128 * MIB;
/// The index of ImageNet's classes, 35 kB.
pub const CLASS_INDEX: u64 = MIB;
/// The development kit's `meta.mat`, half a megabyte.
pub const MATLAB: u64 = 8 * MIB;
/// A file of CIFAR; the training images of CIFAR-100 are 155 MB.
pub const CIFAR: u64 = 512 * MIB;
/// Names of a network's classes, a line each.
pub const LABELS: u64 = 16 * MIB;
/// Statistics of features: mean and covariance of 4,096 in f64, 134 MB, and room for other arrays beside them.
pub const STATISTICS: u64 = 256 * MIB;

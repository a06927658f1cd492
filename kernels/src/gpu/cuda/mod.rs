//! Products on NVIDIA's tensor cores, through CUDA C++ and NVRTC.
//!
//! No kernel here has a portable form: each has a predicate that says whether a device and a shape can have it, and the
//! caller takes another path, and counts it, where it says no. What each is made of: `docs/gpu-cuda.md`.

// What CubeCL's macros write beside each function has no docs.
#![allow(missing_docs)]

pub mod bitmap;
pub mod launch;
pub mod masked;
pub mod ptx;
pub mod sparse24;
pub mod tile;
pub mod warpgroup;
pub mod weight;

/// What the tensor cores multiply; sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operand {
    /// 8 bits of mantissa.
    Bf16,
    /// 11 bits of mantissa, magnitudes below 65520.
    F16,
    /// f32 in memory, rounded to 11 bits of mantissa in registers.
    Tf32,
}

impl Operand {
    /// Its name in PTX.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Tf32 => "tf32",
        }
    }

    /// Bytes of an element in memory.
    pub fn bytes(self) -> u32 {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::Tf32 => 4,
        }
    }

    /// Steps under way at once in the masked product: what 99 KiB of shared memory hold.
    pub fn masked_stages(self) -> u32 {
        match self {
            Self::Bf16 | Self::F16 => 4,
            Self::Tf32 => 3,
        }
    }
}

/// How inputs and outputs lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activations {
    /// `x [positions, cols]`, `y [positions, rows]`: what a linear layer has.
    Tokens,
    /// `x [batch, cols, positions]`, `y [batch, rows, positions]`: what a 1x1 convolution has.
    Planes,
}

impl Activations {
    /// Rows, and chunks per row, of a tile of `points` positions and `depth` columns of elements of `size` bytes.
    pub fn tile(self, points: u32, depth: u32, size: u32) -> [u32; 2] {
        match self {
            Self::Tokens => [points, depth * size / 16],
            Self::Planes => [depth, points * size / 16],
        }
    }

    /// Whether fragments are read word by word: 32-bit elements that would have to be transposed.
    pub fn words(self, operand: Operand) -> bool {
        self == Self::Planes && operand == Operand::Tf32
    }
}

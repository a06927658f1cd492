//! Products on the CPU, in f32: dense or with a mask applied while the weight is packed, never to a copy of it.
//!
//! Plain slices in, plain slices out; what Burn makes of it is [`crate::ops`]'s business. Every result is the same at
//! every number of threads: work is divided along outputs, and where a sum is divided (a layer norm's parameters), its
//! pieces depend on the shape alone.

pub mod amx;
pub mod conv;
mod depthwise;
pub mod gemm;
pub mod linear;
mod micro;
pub mod norm;
mod plane;
pub mod pointwise;
pub mod rows;
mod simd;
pub mod sparse;
pub mod weight_grad;
mod work;

use std::sync::OnceLock;

use crate::{BitMask, KernelError};

pub(crate) use micro::{Finish, Kernels, MAX_COLUMNS};

/// An instruction set with kernels of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// 512-bit vectors: 14 x 32 tiles.
    Avx512,
    /// 256-bit vectors: 6 x 16 tiles.
    Avx2,
    /// What the compiler makes of plain Rust.
    Portable,
}

impl Isa {
    /// Every instruction set this processor has, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("bmi2");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 {
                found.push(Self::Avx512);
            }
            if avx2 {
                found.push(Self::Avx2);
            }
        }
        found.push(Self::Portable);
        found
    }

    /// The instruction set in use: the fastest, or the one that `PTSBENCH_KERNELS_FORCE` names if the processor has it.
    pub fn detect() -> Self {
        static CHOSEN: OnceLock<Isa> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let available = Self::available();
            std::env::var("PTSBENCH_KERNELS_FORCE")
                .ok()
                .and_then(|names| {
                    // A path may be named too, see `crate::plan`.
                    let named = |isa: &Isa| names.split(',').any(|name| name.trim() == isa.name());
                    available.iter().copied().find(named)
                })
                .unwrap_or(available[0])
        })
    }

    /// The instruction set of a name, whether or not this processor has it.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Avx512, Self::Avx2, Self::Portable]
            .into_iter()
            .find(|isa| isa.name() == name)
    }

    /// As the environment variable, `doctor` and benchmarks name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    pub(crate) fn kernels(self) -> &'static Kernels {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => &micro::AVX512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => &micro::AVX2,
            _ => &micro::PORTABLE,
        }
    }
}

/// A mask as kernels read it: [`crate::BitMask`]'s words, wherever they lie.
#[derive(Debug, Clone, Copy)]
pub struct Mask<'a> {
    words: &'a [u32],
    rows: usize,
    cols: usize,
}

impl<'a> Mask<'a> {
    /// Words `[rows, ceil(cols / 32)]`.
    pub fn new(words: &'a [u32], rows: usize, cols: usize) -> Result<Self, KernelError> {
        let expected = rows * cols.div_ceil(32);
        if words.len() != expected {
            return Err(KernelError::Length {
                what: "mask words",
                expected,
                found: words.len(),
            });
        }
        Ok(Self { words, rows, cols })
    }

    fn get(&self, row: usize, col: usize) -> bool {
        self.words[row * self.words_per_row() + col / 32] >> (col % 32) & 1 == 1
    }

    fn words_per_row(&self) -> usize {
        self.cols.div_ceil(32)
    }

    fn check(&self, rows: usize, cols: usize) {
        assert_eq!(
            (self.rows, self.cols),
            (rows, cols),
            "the mask has the size of its weight"
        );
    }
}

impl<'a> From<&'a BitMask> for Mask<'a> {
    fn from(mask: &'a BitMask) -> Self {
        Self {
            words: mask.words(),
            rows: mask.rows(),
            cols: mask.cols(),
        }
    }
}

//! In which arithmetic products are computed.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::KernelError;
use crate::cpu::amx;

/// Products that were computed in f32 although another precision was asked for.
static FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// How many products were computed in f32 although another precision was asked for: shapes that tiles do not pay for.
pub fn precision_fallbacks() -> u64 {
    FALLBACKS.load(Ordering::Relaxed)
}

pub(crate) fn count_fallback() {
    FALLBACKS.fetch_add(1, Ordering::Relaxed);
}

/// Arithmetic of products: what factors are rounded to. Sums are f32 throughout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32, everywhere.
    #[default]
    F32,
    /// Each factor as a sum of two bf16 numbers, three products: an error of at most 2^-15 per product, of less than
    /// 3 * 2^-17 of their sum when several are added whose errors differ. Needs AMX.
    Bf16x3,
    /// Factors rounded to bf16: an error of 2^-7 per product. Needs AMX.
    Bf16,
}

impl Precision {
    /// All, in the order in which they are offered.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16x3, Self::Bf16];

    /// As it is written on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16x3 => "bf16x3",
            Self::Bf16 => "bf16",
        }
    }

    /// Refuses, with the reason, what this machine cannot do. A process asks its kernel for the tiles here, once.
    pub fn check(self) -> Result<(), KernelError> {
        match self {
            Self::F32 => Ok(()),
            Self::Bf16x3 | Self::Bf16 => amx::permission().map_err(|missing| {
                let why = missing.to_string();
                KernelError::Precision {
                    precision: self,
                    why,
                }
            }),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Precision {
    type Err = KernelError;

    fn from_str(text: &str) -> Result<Self, KernelError> {
        Self::ALL
            .into_iter()
            .find(|precision| precision.name() == text)
            .ok_or_else(|| KernelError::UnknownPrecision { found: text.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        let error = "tf32".parse::<Precision>().unwrap_err().to_string();
        assert_eq!(error, "`tf32` is not a precision; use f32, bf16x3 or bf16");
        assert_eq!(Precision::default(), Precision::F32);
        assert_eq!(Precision::F32.check(), Ok(()));
    }
}

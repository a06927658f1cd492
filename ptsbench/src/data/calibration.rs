//! The images that guide error correction and reconstruction: distinct training images, drawn without their labels.

use sha2::{Digest, Sha256};

use crate::seed::Seed;

/// Indices of calibration images, in the order drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationList {
    /// Distinct places in the training split.
    pub indices: Vec<usize>,
}

/// Why a list cannot be drawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalibrationError {
    /// More than there are.
    #[error(
        "{asked} calibration images asked for, but the training split holds {available}; ask for at most {available}"
    )]
    TooMany {
        /// Images asked for.
        asked: usize,
        /// Images there are.
        available: usize,
    },
    /// None at all.
    #[error("0 calibration images asked for; ask for at least 1, the paper takes 1024")]
    None,
}

impl CalibrationList {
    /// Draws `images` of `available` training images; a longer list starts with the shorter one of the same seed.
    pub fn draw(seed: Seed, images: usize, available: usize) -> Result<Self, CalibrationError> {
        if images == 0 {
            return Err(CalibrationError::None);
        }
        if images > available {
            return Err(CalibrationError::TooMany {
                asked: images,
                available,
            });
        }
        // Fisher-Yates from the front, stopped after `images` places.
        let mut stream = seed.stream("calibration");
        let mut indices: Vec<usize> = (0..available).collect();
        for at in 0..images {
            let from = at + stream.below((available - at) as u64) as usize;
            indices.swap(at, from);
        }
        indices.truncate(images);
        Ok(Self { indices })
    }

    /// SHA-256 of the list in hex: each index as 8 bytes, little-endian.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for &index in &self.indices {
            hash.update((index as u64).to_le_bytes());
        }
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn lists_are_distinct_nested_and_of_their_seed() {
        let long = CalibrationList::draw(Seed(7), 1024, 20_000).unwrap();
        assert_eq!(long.indices.iter().collect::<HashSet<_>>().len(), 1024);
        assert!(long.indices.iter().all(|&index| index < 20_000));
        let short = CalibrationList::draw(Seed(7), 64, 20_000).unwrap();
        assert_eq!(short.indices, long.indices[..64]);
        let other = CalibrationList::draw(Seed(8), 64, 20_000).unwrap();
        assert_ne!(other.indices, short.indices);
        assert_ne!(other.sha256(), short.sha256());
    }

    #[test]
    fn the_whole_split_is_a_permutation() {
        let mut all = CalibrationList::draw(Seed(0), 100, 100).unwrap().indices;
        assert_ne!(all, (0..100).collect::<Vec<_>>());
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn impossible_lists_are_refused() {
        let asked = |images| CalibrationList::draw(Seed(0), images, 10);
        assert_eq!(
            asked(11),
            Err(CalibrationError::TooMany {
                asked: 11,
                available: 10
            })
        );
        assert_eq!(asked(0), Err(CalibrationError::None));
    }
}

//! What a layer is judged by: scores in f64, computed on the fly or a function of stored f32 values.

use super::keys::{key32, value32};

/// A layer's scores; the lowest go first.
///
/// Scores may be computed on the fly, so that a normed copy of a network never exists.
pub trait Scores: Sync {
    /// How many.
    fn len(&self) -> usize;

    /// The score at a flat row-major index below [`Scores::len`]. f32 scores widen exactly.
    fn at(&self, index: usize) -> f64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The f32 values that the scores come from, if [`Scores::at`] gives exactly [`Stored::score`] of them all.
    ///
    /// Selection is several times faster with it, and selects the same.
    fn stored(&self) -> Option<Stored<'_>> {
        None
    }
}

/// f32 values in memory, and the scores that they stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stored<'a> {
    /// One value per score, in the same order.
    pub values: &'a [f32],
    /// Whether a score is the magnitude of its value rather than the value.
    pub magnitude: bool,
    /// What it is divided by, in f64; positive and finite.
    pub divisor: f64,
}

impl Stored<'_> {
    /// The score of one value.
    pub fn score(&self, value: f32) -> f64 {
        f64::from(if self.magnitude { value.abs() } else { value }) / self.divisor
    }

    /// The largest value (magnitude) whose score is below `score`, or at it where `through`; NaN if there is none.
    ///
    /// [`Stored::score`] never falls as values rise, so the border is found by bisection, whatever a division rounds to.
    pub(super) fn border(&self, score: f64, through: bool) -> f32 {
        let holds = |key: u32| {
            let found = self.score(value32(key));
            found < score || through && found == score
        };
        let least = if self.magnitude {
            0.0
        } else {
            f32::NEG_INFINITY
        };
        let (mut low, mut high) = (key32(least), key32(f32::INFINITY));
        if !holds(low) {
            return f32::NAN;
        }
        // `low` holds; nothing above `high` is a number.
        while low < high {
            let middle = high - (high - low) / 2;
            if holds(middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        value32(low)
    }
}

impl Scores for [f32] {
    fn len(&self) -> usize {
        <[f32]>::len(self)
    }

    fn at(&self, index: usize) -> f64 {
        f64::from(self[index])
    }

    fn stored(&self) -> Option<Stored<'_>> {
        Some(Stored {
            values: self,
            magnitude: false,
            divisor: 1.0,
        })
    }
}

impl Scores for Stored<'_> {
    fn len(&self) -> usize {
        self.values.len()
    }

    fn at(&self, index: usize) -> f64 {
        self.score(self.values[index])
    }

    fn stored(&self) -> Option<Stored<'_>> {
        Some(*self)
    }
}

impl Scores for [f64] {
    fn len(&self) -> usize {
        <[f64]>::len(self)
    }

    fn at(&self, index: usize) -> f64 {
        self[index]
    }
}

impl<S: Scores + ?Sized> Scores for &S {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn at(&self, index: usize) -> f64 {
        (**self).at(index)
    }

    fn stored(&self) -> Option<Stored<'_>> {
        (**self).stored()
    }
}

impl<T> Scores for Vec<T>
where
    [T]: Scores,
    T: Sync,
{
    fn len(&self) -> usize {
        Scores::len(self.as_slice())
    }

    fn at(&self, index: usize) -> f64 {
        self.as_slice().at(index)
    }

    fn stored(&self) -> Option<Stored<'_>> {
        self.as_slice().stored()
    }
}

//! What a weight tensor already has of sparsity: its zeros, its dead rows, and the N:M patterns that it keeps.

use kernels::nm_applies;

/// Patterns that are looked for: kept of a group along input channels, the tightest first.
const PATTERNS: [(usize, usize); 9] = [
    (1, 16),
    (1, 8),
    (1, 4),
    (2, 8),
    (4, 16),
    (1, 2),
    (2, 4),
    (4, 8),
    (8, 16),
];

/// The zeros of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Zeros {
    /// Weights.
    pub weights: usize,
    /// Of those, zeros of either sign.
    pub zeros: usize,
    /// Output channels.
    pub rows: usize,
    /// Of those, the ones whose weights are all zero.
    pub dead_rows: usize,
    /// Patterns that the tensor keeps and that follow from no other one in the list; none where it is zero altogether.
    pub patterns: Vec<(usize, usize)>,
}

impl Zeros {
    /// Counts a tensor of shape OIHW or [out, in].
    pub fn of(shape: &[usize], values: &[f32]) -> Self {
        let rows = shape.first().copied().unwrap_or(0);
        let columns = values.len().checked_div(rows).unwrap_or(0);
        let zero = |value: &f32| *value == 0.0;
        let dead = |row: &&[f32]| row.iter().all(zero);
        let zeros = values.iter().filter(|value| zero(value)).count();
        let mut patterns: Vec<(usize, usize)> = Vec::new();
        for (n, m) in PATTERNS {
            // Larger groups keep as many times more, and smaller ones no more than all of theirs.
            let follows = |&(kept, group): &(usize, usize)| {
                m % group == 0 && n >= kept * (m / group) || group % m == 0 && n >= kept
            };
            if zeros > 0
                && zeros < values.len()
                && !patterns.iter().any(follows)
                && keeps(shape, values, n, m)
            {
                patterns.push((n, m));
            }
        }
        Self {
            weights: values.len(),
            zeros,
            rows,
            dead_rows: if columns == 0 {
                0
            } else {
                values.chunks_exact(columns).filter(dead).count()
            },
            patterns,
        }
    }
}

/// Whether at most `n` of every `m` consecutive input channels are not zero, at each place of the kernel.
fn keeps(shape: &[usize], values: &[f32], n: usize, m: usize) -> bool {
    if !nm_applies(shape, m) {
        return false;
    }
    let places: usize = shape.iter().skip(2).product();
    // A group is `m` planes of the kernel behind one another.
    values.chunks_exact(m * places.max(1)).all(|group| {
        (0..places).all(|place| {
            let kept = (0..m).filter(|channel| group[channel * places + place] != 0.0);
            kept.count() <= n
        })
    })
}

#[cfg(test)]
mod tests {
    use kernels::nm_mask;

    use super::*;

    fn masked(shape: &[usize], n: usize, m: usize) -> Vec<f32> {
        let count: usize = shape.iter().product();
        let mut state = 1u32;
        let values: Vec<f32> = (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 + 1.0
            })
            .collect();
        let mask = nm_mask(&values, shape, n, m).unwrap();
        let kept = values.into_iter().enumerate();
        kept.map(|(at, value)| {
            if mask.get(at / mask.cols(), at % mask.cols()) {
                value
            } else {
                0.0
            }
        })
        .collect()
    }

    #[test]
    fn the_patterns_of_masks_are_found() {
        for shape in [vec![128, 32], vec![16, 32, 3, 3]] {
            for pattern in PATTERNS {
                let (n, m) = pattern;
                let found = Zeros::of(&shape, &masked(&shape, n, m));
                assert_eq!(found.patterns, [pattern], "{shape:?}");
                assert_eq!(found.zeros, found.weights / m * (m - n));
            }
            let dense = Zeros::of(&shape, &vec![1.0; shape.iter().product()]);
            assert_eq!((dense.zeros, dense.patterns.len()), (0, 0));
        }
    }

    #[test]
    fn a_weight_too_many_breaks_a_pattern() {
        let mut values = masked(&[2, 16, 3, 3], 2, 4);
        let at = values.iter().position(|value| *value == 0.0).unwrap();
        values[at] = 1.0;
        let found = Zeros::of(&[2, 16, 3, 3], &values);
        assert!(!found.patterns.contains(&(2, 4)), "{found:?}");
    }

    #[test]
    fn groups_lie_along_input_channels() {
        // Of each kernel of two places one is zero: by places 1:2, by channels nothing.
        let values = [1.0, 0.0].repeat(8);
        assert!(Zeros::of(&[2, 4, 1, 2], &values).patterns.is_empty());
    }

    #[test]
    fn dead_rows_are_counted() {
        let found = Zeros::of(&[3, 2], &[0.0, -0.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!((found.rows, found.dead_rows, found.zeros), (3, 2, 5));
        let none = Zeros::of(&[2, 2], &[0.0; 4]);
        assert_eq!((none.dead_rows, none.patterns.len()), (2, 0));
        assert_eq!(Zeros::of(&[0, 4], &[]).rows, 0);
        assert_eq!(Zeros::of(&[4, 0], &[]).dead_rows, 0);
    }
}

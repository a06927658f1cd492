//! Wanda (section 2.6): a weight's magnitude by the norm of what it is multiplied with.

use kernels::{BitMask, KernelError, Ties, select_smallest};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Criterion, ScoreError};
use crate::cell::Inputs;
use crate::inventory::Layer;
use crate::options::{self, BadOptions, Options};
use crate::seen::{Need, Seen};

/// The criterion with its options.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanda {
    /// Which scores are compared.
    pub group: ComparisonGroup,
    /// What layers read: the dense network's activations, or those of the network as pruned so far.
    pub inputs: Inputs,
}

impl Wanda {
    /// As released.
    pub const DEFAULT: Self = Self {
        group: ComparisonGroup::Row,
        inputs: Inputs::Sparse,
    };
}

impl Default for Wanda {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Criterion for Wanda {
    fn name(&self) -> &'static str {
        "wanda"
    }

    fn about(&self) -> &'static str {
        "the absolute value by the norm of its input, row by row"
    }

    fn needs(&self) -> Need {
        Need::Moments
    }

    fn group(&self) -> ComparisonGroup {
        self.group
    }

    fn dense_inputs(&self) -> bool {
        self.inputs == Inputs::Dense
    }

    fn scores(
        &self,
        layer: &Layer,
        weight: &[f32],
        seen: Option<&Seen>,
    ) -> Result<Vec<f32>, ScoreError> {
        let seen = seen.ok_or(ScoreError::NoInputs("Wanda"))?;
        let squares = seen.sums.squares();
        Ok(wanda_scores(
            weight,
            layer.matrix(),
            &squares,
            layer.groups,
        )?)
    }

    fn with(&self, options: &Options) -> Result<Box<dyn Criterion>, BadOptions> {
        Ok(Box::new(options::settings::<Wanda>(self.name(), options)?))
    }

    fn options(&self) -> Options {
        options::differing(self)
    }

    fn all_options(&self) -> Options {
        options::all(self)
    }
}

/// Weights that are compared with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComparisonGroup {
    /// Those of one output channel: every row loses the same share.
    #[default]
    Row,
    /// Those of the layer.
    Layer,
}

/// Sums and weights that do not belong together, or sums that are none.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WandaError {
    /// Lengths disagree.
    #[error("{what}: expected {expected}, found {found}; pass the parts of one layer")]
    Shape {
        /// Which.
        what: &'static str,
        /// What the other sizes ask for.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// A sum of squares below 0, or no finite number.
    #[error(
        "the squares of input {column} of group {group} add up to {sum}; check the network's activations on the \
         calibration images"
    )]
    BadSum {
        /// Group of the convolution.
        group: usize,
        /// Column of the weight.
        column: usize,
        /// The sum.
        sum: f64,
    },
}

/// `|w_ij| |x_j|_2`, in the order of the weights. An input that was always 0 gives scores of 0.
///
/// # Shapes
/// `weight`: `[rows, cols]`, rows in the order of `groups` equal groups. `square_sums`: `[groups, cols]`, the diagonals of
/// the groups' `X X^T`.
pub fn wanda_scores(
    weight: &[f32],
    [rows, cols]: [usize; 2],
    square_sums: &[f64],
    groups: usize,
) -> Result<Vec<f32>, WandaError> {
    let shape = |what, expected, found| match expected == found {
        true => Ok(()),
        false => Err(WandaError::Shape {
            what,
            expected,
            found,
        }),
    };
    shape("weights", rows * cols, weight.len())?;
    shape("sums of squared inputs", groups * cols, square_sums.len())?;
    if groups == 0 || !rows.is_multiple_of(groups) {
        return Err(WandaError::Shape {
            what: "groups that divide the output channels",
            expected: rows,
            found: groups,
        });
    }
    if weight.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(index) = square_sums
        .iter()
        .position(|sum| !(sum.is_finite() && *sum >= 0.0))
    {
        return Err(WandaError::BadSum {
            group: index / cols,
            column: index % cols,
            sum: square_sums[index],
        });
    }
    let norms: Vec<f64> = square_sums.iter().map(|sum| sum.sqrt()).collect();
    let rows_of = rows / groups;
    let scores = weight.chunks(cols).enumerate().flat_map(|(row, weight)| {
        let norms = &norms[row / rows_of * cols..][..cols];
        let cells = weight.iter().zip(norms);
        cells.map(|(w, norm)| (f64::from(w.abs()) * norm) as f32)
    });
    Ok(scores.collect())
}

/// A layer's zeros spread over its rows by section 0.3: equal rates in rows of equal length, so every row gets the whole
/// part of the mean and the first rows one more each. `None` where the rows have less room.
pub fn row_zeros([rows, cols]: [usize; 2], zeros: usize) -> Option<Vec<usize>> {
    if zeros > rows * cols {
        return None;
    }
    let (each, more) = match rows {
        0 => (0, 0),
        _ => (zeros / rows, zeros % rows),
    };
    Some(
        (0..rows)
            .map(|row| each + usize::from(row < more))
            .collect(),
    )
}

/// Masks the `zeros` lowest scores of the matrix, or of each row its share of them; ties keep the lowest flat index.
pub fn select_in_groups(
    scores: &[f32],
    shape: [usize; 2],
    zeros: usize,
    group: ComparisonGroup,
) -> Result<BitMask, KernelError> {
    let [rows, cols] = shape;
    let counts = match group {
        ComparisonGroup::Row if scores.len() == rows * cols && cols > 0 => row_zeros(shape, zeros),
        _ => None,
    };
    // The layer as a whole; it also says what is wrong with too many zeros or a wrong length.
    let Some(counts) = counts else {
        return select_smallest(scores, shape, zeros as u64, Ties::KeepLowestIndex);
    };
    let masks: Vec<Result<BitMask, KernelError>> = scores
        .par_chunks(cols)
        .zip(counts)
        .enumerate()
        .map(|(row, (scores, zeros))| {
            select_smallest(scores, [1, cols], zeros as u64, Ties::KeepLowestIndex).map_err(
                |error| match error {
                    KernelError::NonFiniteScore { layer, index } => KernelError::NonFiniteScore {
                        layer,
                        index: row * cols + index,
                    },
                    error => error,
                },
            )
        })
        .collect();
    let mut words = Vec::with_capacity(rows * cols.div_ceil(32));
    for mask in masks {
        words.extend_from_slice(mask?.words());
    }
    BitMask::from_words(rows, cols, words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::integer_counts;
    use proptest::prelude::*;

    #[test]
    fn scores_are_magnitudes_by_norms_of_the_own_group() {
        let weight = [1.0, -2.0, 0.5, 3.0, -1.0, 0.0, 2.0, 4.0];
        let scores = wanda_scores(&weight, [4, 2], &[4.0, 9.0, 0.0, 0.25], 2).unwrap();
        assert_eq!(scores, [2.0, 6.0, 1.0, 9.0, 0.0, 0.0, 0.0, 2.0]);
        // The root is taken, and the product rounded, once.
        let scores = wanda_scores(&[3.0], [1, 1], &[2.0], 1).unwrap();
        assert_eq!(scores, [(3.0 * 2f64.sqrt()) as f32]);
        assert_eq!(wanda_scores(&[], [0, 2], &[1.0, 1.0], 1), Ok(vec![]));
    }

    #[test]
    fn equal_norms_give_magnitudes_mask() {
        let weight: Vec<f32> = (0..60)
            .map(|i| ((i * 37 % 61) as f32 - 30.0) / 7.0)
            .collect();
        let scores = wanda_scores(&weight, [6, 10], &[2.25; 10], 1).unwrap();
        let magnitudes: Vec<f32> = weight.iter().map(|w| w.abs()).collect();
        for group in [ComparisonGroup::Row, ComparisonGroup::Layer] {
            assert_eq!(
                select_in_groups(&scores, [6, 10], 31, group),
                select_in_groups(&magnitudes, [6, 10], 31, group)
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let fail = |sums: &[f64], groups| {
            let error = wanda_scores(&[1.0; 6], [2, 3], sums, groups).unwrap_err();
            error.to_string()
        };
        assert!(fail(&[1.0; 4], 1).contains("expected 3, found 4"));
        assert!(fail(&[1.0; 12], 4).contains("groups that divide the output channels"));
        assert!(fail(&[], 0).contains("groups that divide"));
        let message = fail(&[1.0, 1.0, 1.0, 1.0, -0.5, 1.0], 2);
        assert!(
            message.contains("input 1 of group 1 add up to -0.5"),
            "{message}"
        );
        assert!(fail(&[1.0, f64::NAN, 1.0], 1).contains("input 1 of group 0"));
    }

    #[test]
    fn rows_lose_their_share_and_ties_keep_the_lowest_index() {
        // The first row has the lowest scores of all.
        let scores = [0.1, 0.2, 0.3, 5.0, 5.0, 5.0, 6.0, 7.0, 8.0];
        let keep = |group, zeros| {
            let mask = select_in_groups(&scores, [3, 3], zeros, group).unwrap();
            mask.to_keep()
                .iter()
                .map(|&k| u8::from(k))
                .collect::<Vec<_>>()
        };
        assert_eq!(keep(ComparisonGroup::Row, 4), [0, 0, 1, 1, 1, 0, 0, 1, 1]);
        assert_eq!(keep(ComparisonGroup::Layer, 4), [0, 0, 0, 1, 1, 0, 1, 1, 1]);
        assert_eq!(keep(ComparisonGroup::Row, 9), [0; 9]);
        assert_eq!(keep(ComparisonGroup::Row, 0), [1; 9]);
    }

    #[test]
    fn bad_scores_and_counts_are_errors_in_either_group() {
        let mut scores = [1.0f32; 12];
        for group in [ComparisonGroup::Row, ComparisonGroup::Layer] {
            let found = select_in_groups(&scores, [3, 4], 13, group);
            let (requested, available) = (13, 12);
            let expected = KernelError::TooMany {
                requested,
                available,
            };
            assert_eq!(found, Err(expected));
            assert!(select_in_groups(&scores, [3, 5], 1, group).is_err());
            assert!(select_in_groups(&[], [3, 0], 0, group).is_ok());
            assert!(select_in_groups(&[], [0, 3], 0, group).is_ok());
        }
        scores[6] = f32::NAN;
        for group in [ComparisonGroup::Row, ComparisonGroup::Layer] {
            let expected = KernelError::NonFiniteScore { layer: 0, index: 6 };
            assert_eq!(select_in_groups(&scores, [3, 4], 5, group), Err(expected));
        }
    }

    proptest! {
        #[test]
        fn row_counts_are_those_of_equal_rates(rows in 1usize..60, cols in 1usize..80, share in 0.0f64..=1.0) {
            let zeros = (share * (rows * cols) as f64) as usize;
            let found = row_zeros([rows, cols], zeros).unwrap();
            prop_assert_eq!(found.iter().sum::<usize>(), zeros);
            let lens = vec![cols; rows];
            let rates = vec![zeros as f64 / (rows * cols) as f64; rows];
            prop_assert_eq!(integer_counts(&lens, &rates, &lens, zeros), Some(found));
            prop_assert_eq!(row_zeros([rows, cols], rows * cols + 1), None);

            let scores: Vec<f32> = (0..rows * cols).map(|i| (i * 7919 % 101) as f32).collect();
            let mask = select_in_groups(&scores, [rows, cols], zeros, ComparisonGroup::Row).unwrap();
            prop_assert_eq!(mask.zeros(), zeros);
        }
    }
}

//! One group of a layer as a matrix with the sum of its inputs' outer products: what every solver gets, gives and refuses.

use kernels::{BitMask, KernelError, Ties, select_smallest};

use crate::criterion::wanda::row_zeros;

/// One group of a layer, and what its inputs were.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// `[rows, cols]`: output channels of the group by input channels and kernel positions (channel, ky, kx).
    pub weight: &'a [f32],
    /// Output channels of the group.
    pub rows: usize,
    /// Weights of each.
    pub cols: usize,
    /// Kernel positions `ky kx`; 1 for a linear layer. N:M groups run along input channels at a fixed one.
    pub area: usize,
    /// `X X^T`, `[cols, cols]`; the entries on and above the diagonal are read.
    pub gram: &'a [f64],
    /// Columns of `X`.
    pub positions: u64,
}

/// How much goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// So many zeros in this matrix.
    Count(usize),
    /// At most `n` of every `m` input channels stay; a layer whose input channels `m` does not divide stays dense.
    NofM {
        /// Kept.
        n: usize,
        /// Group.
        m: usize,
    },
}

/// A pruned matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Solved {
    /// `[rows, cols]`, in the order it was given; what the mask prunes is exactly 0.
    pub weight: Vec<f32>,
    /// What stays. Kept weights of dead inputs are 0 too.
    pub mask: BitMask,
    /// `|W X - W' X|^2`, before the new weights `W'` were rounded to f32.
    pub squared_error: f64,
}

/// Why there is none. The caller adds the layer's name.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SolverError {
    /// Slices and sizes disagree.
    #[error("{what}: expected {expected}, found {found}; pass the parts of one layer")]
    Shape {
        /// Which.
        what: &'static str,
        /// What the other sizes ask for.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// An option outside its range.
    #[error("option `{option}` is {found}; it must be {expected}")]
    BadOption {
        /// The option.
        option: &'static str,
        /// Its value.
        found: f64,
        /// The range.
        expected: &'static str,
    },
    /// Nothing was measured.
    #[error("no inputs were measured; give calibration images")]
    NoInputs,
    /// A weight or sum that is no number.
    #[error("{what} {index} is {value}; {advice}")]
    NotFinite {
        /// Weight or sum.
        what: &'static str,
        /// Flat index.
        index: usize,
        /// The value.
        value: f64,
        /// Where to look.
        advice: &'static str,
    },
    /// More zeros than weights.
    #[error("{asked} zeros were asked of {available} weights; ask for at most {available}")]
    TooMany {
        /// Zeros.
        asked: usize,
        /// Weights.
        available: usize,
    },
    /// Inputs that do not determine the weights.
    #[error(
        "the inputs' products, summed over {positions} positions, are not positive definite at column {column} of {cols} \
         with damping {damping}; raise damping (0.01 is usual) or use more calibration images"
    )]
    NotPositiveDefinite {
        /// Column of the weight.
        column: usize,
        /// Columns.
        cols: usize,
        /// The damping.
        damping: f64,
        /// Columns of `X`.
        positions: u64,
    },
    /// Numbers that outgrew their type.
    #[error(
        "weights outgrew f32 while damping was {damping}; raise damping (0.01 is usual) or use more calibration images"
    )]
    Overflow {
        /// The damping.
        damping: f64,
    },
    /// No pattern.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Solves groups one by one, the zeros spread over them evenly: they are as large as each other.
pub fn each(
    groups: &[Problem<'_>],
    ask: Ask,
    solve: impl Fn(&Problem<'_>, Ask) -> Result<Solved, SolverError>,
) -> Result<Vec<Solved>, SolverError> {
    let weights = groups.first().map_or(0, |group| group.weight.len());
    let asks: Vec<Ask> = match ask {
        Ask::Count(zeros) => {
            let counts = row_zeros([groups.len(), weights], zeros);
            let counts = counts.ok_or(SolverError::TooMany {
                asked: zeros,
                available: groups.len() * weights,
            })?;
            counts.into_iter().map(Ask::Count).collect()
        }
        pattern => vec![pattern; groups.len()],
    };
    let groups = groups.iter().zip(asks);
    groups.map(|(group, ask)| solve(group, ask)).collect()
}

/// Refuses what no solver can work with.
pub(super) fn check(problem: &Problem, ask: Ask) -> Result<(), SolverError> {
    let &Problem {
        weight,
        rows,
        cols,
        area,
        gram,
        positions,
    } = problem;
    let shape = |what, expected, found| match expected == found {
        true => Ok(()),
        false => Err(SolverError::Shape {
            what,
            expected,
            found,
        }),
    };
    shape("weights", rows * cols, weight.len())?;
    shape("sums of inputs", cols * cols, gram.len())?;
    if area == 0 || !cols.is_multiple_of(area) {
        return Err(SolverError::Shape {
            what: "kernel positions that divide the columns",
            expected: cols,
            found: area,
        });
    }
    match ask {
        Ask::Count(asked) if asked > weight.len() => {
            return Err(SolverError::TooMany {
                asked,
                available: weight.len(),
            });
        }
        Ask::NofM { n, m } if n == 0 || n >= m || m > 32 => {
            return Err(KernelError::Pattern { n, m }.into());
        }
        _ => {}
    }
    if positions == 0 {
        return Err(SolverError::NoInputs);
    }
    if let Some(index) = weight.iter().position(|w| !w.is_finite()) {
        return Err(SolverError::NotFinite {
            what: "weight",
            index,
            value: weight[index].into(),
            advice: "check the checkpoint",
        });
    }
    if let Some(index) = gram.iter().position(|sum| !sum.is_finite()) {
        return Err(SolverError::NotFinite {
            what: "sum of inputs",
            index,
            value: gram[index],
            advice: "check the network's activations on the calibration images",
        });
    }
    Ok(())
}

/// A damping that is no number of at least 0.
pub(super) fn bad_damping(damping: f64) -> Option<SolverError> {
    let good = damping.is_finite() && damping >= 0.0;
    (!good).then_some(SolverError::BadOption {
        option: "damping",
        found: damping,
        expected: "a number of at least 0",
    })
}

/// An option that counts and is 0.
pub(super) fn none_of(option: &'static str, found: usize) -> Option<SolverError> {
    (found == 0).then_some(SolverError::BadOption {
        option,
        found: 0.0,
        expected: "at least 1",
    })
}

/// The ridge over the mean of the diagonal. The mean is that of live inputs: a dead one does not count for the scale.
pub(super) fn ridge(problem: &Problem, damping: f64) -> f64 {
    let diagonal = problem.gram.iter().step_by(problem.cols + 1);
    let (sum, live) = diagonal
        .filter(|&&sum| sum != 0.0)
        .fold((0.0, 0u32), |(sum, live), value| (sum + value, live + 1));
    damping * sum / f64::from(live.max(1))
}

/// The weights that are 0 already and go before all others: all of them, or as many as are asked for, from the end.
pub(super) fn spent(weight: &[f64], ask: Ask) -> Vec<bool> {
    let mut spent: Vec<bool> = weight.iter().map(|&w| w == 0.0).collect();
    if let Ask::Count(asked) = ask {
        let zeros = spent.iter().filter(|&&zero| zero).count();
        spent
            .iter_mut()
            .filter(|zero| **zero)
            .take(zeros.saturating_sub(asked))
            .for_each(|zero| *zero = false);
    }
    spent
}

/// Keeps the `n` largest scores; ties keep the lowest index.
pub(super) fn keep_largest(scores: &[f64], n: usize, keep: &mut [bool]) {
    for (i, keep) in keep.iter_mut().enumerate() {
        let before = |j: usize| match scores[j].total_cmp(&scores[i]) {
            std::cmp::Ordering::Equal => j < i,
            order => order.is_gt(),
        };
        *keep = (0..scores.len()).filter(|&j| before(j)).count() < n;
    }
}

/// The score of what goes before everything else.
pub(super) const LEAST: f64 = f64::NEG_INFINITY;

/// Which weights stay when those with the lowest scores go; ties keep the lowest flat index, for N:M the lowest channel.
pub(super) fn choose(
    scores: &[f64],
    [rows, cols, area]: [usize; 3],
    ask: Ask,
) -> Result<Vec<bool>, SolverError> {
    match ask {
        Ask::Count(zeros) => {
            let mask = select_smallest(scores, [rows, cols], zeros as u64, Ties::KeepLowestIndex)?;
            Ok(mask.to_keep())
        }
        Ask::NofM { n, m } => {
            let mut keep = vec![true; scores.len()];
            let (mut group, mut kept) = (vec![0.0; m], vec![true; m]);
            for row in (0..rows * cols).step_by(cols.max(1)) {
                for place in 0..area {
                    for first in (0..cols / area).step_by(m) {
                        let at = |k: usize| row + (first + k) * area + place;
                        (0..m).for_each(|k| group[k] = scores[at(k)]);
                        keep_largest(&group, n, &mut kept);
                        (0..m).for_each(|k| keep[at(k)] = kept[k]);
                    }
                }
            }
            Ok(keep)
        }
    }
}

/// The dense matrix, where an N:M pattern does not fit it.
pub(super) fn untouched(problem: &Problem<'_>, ask: Ask) -> Option<Solved> {
    match ask {
        Ask::NofM { m, .. } if !(problem.cols / problem.area).is_multiple_of(m) => Some(Solved {
            weight: problem.weight.to_vec(),
            mask: BitMask::full(problem.rows, problem.cols),
            squared_error: 0.0,
        }),
        _ => None,
    }
}

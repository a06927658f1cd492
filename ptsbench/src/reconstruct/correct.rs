//! Error correction, Eq. 1 (section 3.1 of the specification): pure functions on a layer's matrix view.
//!
//! ```text
//! W_s' = lambda W_s + E(W_d) - E(lambda W_s),   lambda = sigma(W_d) / (sigma(W_s) + eps)
//! b'   = b_d + E f(W_d, X_d) - E f(W_s', X_d)
//! ```
//!
//! Statistics are per output channel over all other axes, pruned zeros included. Unlike the printed equation, the mask
//! is applied again afterwards: the shift would otherwise fill the pruned weights. Consequently the channel mean is
//! *not* restored in [`Mode::Table`]; [`Mode::Exact`] restores mean and variance on the survivors.

use kernels::BitMask;

use crate::cell::{CorrectionOptions, FewKept, Moments};
use crate::statistics::{Deviation, deviation, mean, variance};

/// How lambda and the shift are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Eq. 1 as tabulated in section 3.1.
    #[default]
    Table,
    /// Mean and variance of the masked channel equal the dense channel's; the table's rule where that has no solution
    /// or lambda leaves [1/4, 4].
    Exact,
}

/// Settings of the weight correction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correction {
    /// How lambda and the shift are found.
    pub mode: Mode,
    /// Leave a channel alone that has fewer than 2 survivors or almost no spread (sigma(W_s) <= 1e-6 sigma(W_d)):
    /// its lambda would be about sigma / eps, harmless only as long as the mask never changes.
    pub guard: bool,
    /// Added to sigma(W_s).
    pub epsilon: f64,
    /// The divisor of sigma: n, or n - 1 as in the original release, where a single weight gives NaN.
    pub deviation: Deviation,
}

impl Default for Correction {
    fn default() -> Self {
        Self {
            mode: Mode::Table,
            guard: true,
            epsilon: 1e-9,
            deviation: Deviation::Population,
        }
    }
}

impl From<&CorrectionOptions> for Correction {
    fn from(options: &CorrectionOptions) -> Self {
        Self {
            mode: match options.moments {
                Moments::Table => Mode::Table,
                Moments::Exact => Mode::Exact,
            },
            guard: options.few_kept == FewKept::Leave,
            ..Self::default()
        }
    }
}

/// A corrected weight and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Corrected {
    /// The factor of each output channel.
    pub lambda: Vec<f64>,
    /// The shift of each output channel.
    pub shift: Vec<f64>,
    /// `mask * (lambda W_d + shift)`, `[rows, cols]`.
    pub weight: Vec<f64>,
}

/// A slice that does not fit its partner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} has {found} values, {expected} are needed; pass slices of one layer")]
pub struct LengthError {
    /// Which slice.
    pub what: &'static str,
    /// Values needed.
    pub expected: usize,
    /// Values passed.
    pub found: usize,
}

fn expect_len(what: &'static str, expected: usize, found: usize) -> Result<(), LengthError> {
    if expected == found {
        Ok(())
    } else {
        Err(LengthError {
            what,
            expected,
            found,
        })
    }
}

/// The first line of Eq. 1, per output channel.
///
/// # Shapes
/// `dense`: `[rows, cols]` row-major, the shape of `mask`.
pub fn correct_weight<T: Copy + Into<f64>>(
    dense: &[T],
    mask: &BitMask,
    settings: Correction,
) -> Result<Corrected, LengthError> {
    expect_len("the dense weight", mask.len(), dense.len())?;
    let mut corrected = Corrected {
        lambda: Vec::with_capacity(mask.rows()),
        shift: Vec::with_capacity(mask.rows()),
        weight: Vec::with_capacity(mask.len()),
    };
    for row in 0..mask.rows() {
        let dense: Vec<f64> = dense[row * mask.cols()..][..mask.cols()]
            .iter()
            .map(|&w| w.into())
            .collect();
        let keep: Vec<bool> = (0..mask.cols()).map(|col| mask.get(row, col)).collect();
        let (lambda, shift) = match settings.mode {
            Mode::Table => table(&dense, &keep, settings),
            Mode::Exact => exact(&dense, &keep).unwrap_or_else(|| table(&dense, &keep, settings)),
        };
        corrected.lambda.push(lambda);
        corrected.shift.push(shift);
        let rows = dense.iter().zip(&keep);
        corrected
            .weight
            .extend(rows.map(|(w, &keep)| if keep { lambda * w + shift } else { 0.0 }));
    }
    Ok(corrected)
}

/// Lambda and shift of one channel by Eq. 1.
fn table(dense: &[f64], keep: &[bool], settings: Correction) -> (f64, f64) {
    let sparse: Vec<f64> = dense
        .iter()
        .zip(keep)
        .map(|(&w, &k)| if k { w } else { 0.0 })
        .collect();
    let sigma = |values: &[f64]| deviation(values, settings.deviation).unwrap_or(f64::NAN);
    let (sigma_dense, sigma_sparse) = (sigma(dense), sigma(&sparse));
    if settings.guard {
        let survivors = keep.iter().filter(|&&k| k).count();
        if survivors < 2 || sigma_sparse <= 1e-6 * sigma_dense {
            return (1.0, 0.0);
        }
    }
    let lambda = sigma_dense / (sigma_sparse + settings.epsilon);
    let scaled: Vec<f64> = sparse.iter().map(|w| lambda * w).collect();
    let shift = mean(dense).zip(mean(&scaled)).map(|(d, s)| d - s);
    (lambda, shift.unwrap_or(f64::NAN))
}

/// Lambda and shift with which the survivors, zeros beside them, have the dense channel's mean and variance.
///
/// With n of N kept, their mean m and variance v, and the targets mu and sigma^2 over all N:
/// `lambda = sqrt(((sigma^2 + mu^2) N/n - (mu N/n)^2) / v)`, `shift = mu N/n - lambda m`.
fn exact(dense: &[f64], keep: &[bool]) -> Option<(f64, f64)> {
    let survivors: Vec<f64> = dense
        .iter()
        .zip(keep)
        .filter(|(_, k)| **k)
        .map(|(w, _)| *w)
        .collect();
    let ratio = dense.len() as f64 / survivors.len() as f64;
    let moments = |values: &[f64]| mean(values).zip(variance(values, Deviation::Population));
    let ((mu, sigma2), (m, v)) = (moments(dense)?, moments(&survivors)?);
    if v == 0.0 {
        return None;
    }
    let radicand = ((sigma2 + mu * mu) * ratio - (mu * ratio).powi(2)) / v;
    let lambda = radicand.sqrt(); // NaN below 0
    (radicand > 0.0 && (0.25..=4.0).contains(&lambda)).then_some((lambda, mu * ratio - lambda * m))
}

/// The second line of Eq. 1: `b_d + E f(W_d, X_d) - E f(W', X_d)`.
///
/// # Shapes
/// One value per output channel: bias, mean output with the dense and with the sparse weight, both taken without bias
/// over batch and positions (or tokens).
pub fn correct_bias(
    bias: &[f64],
    dense_mean: &[f64],
    sparse_mean: &[f64],
) -> Result<Vec<f64>, LengthError> {
    expect_len("the dense mean", bias.len(), dense_mean.len())?;
    expect_len("the sparse mean", bias.len(), sparse_mean.len())?;
    let means = dense_mean.iter().zip(sparse_mean);
    Ok(bias
        .iter()
        .zip(means)
        .map(|(b, (d, s))| b + d - s)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn near(got: &[f64], want: &[f64], tolerance: f64) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= tolerance, "{got} is not {want}");
        }
    }

    const DENSE: [f64; 4] = [0.4, -0.2, 0.1, 0.3];

    fn vector_mask() -> BitMask {
        BitMask::from_keep(1, 4, &[true, false, false, true]).unwrap()
    }

    #[test]
    fn the_worked_vector() {
        let got = correct_weight(&DENSE, &vector_mask(), Correction::default()).unwrap();
        near(&got.lambda, &[1.283377889], 1e-8); // printed without epsilon: 1e-9 / 0.18 of it
        near(&got.shift, &[-0.074591131], 1e-8);
        near(&got.weight, &[0.438760025, 0.0, 0.0, 0.310422236], 1e-8);
        near(&[mean(&got.weight).unwrap()], &[0.187295565], 1e-8);
        // lambda = 4.898979486 > 4: the table's rule.
        let settings = Correction {
            mode: Mode::Exact,
            ..Correction::default()
        };
        assert_eq!(
            correct_weight(&DENSE, &vector_mask(), settings).unwrap(),
            got
        );
        assert_eq!(exact(&DENSE, &[true, false, false, true]), None);
    }

    #[test]
    fn guarded_channels_stay_as_they_are() {
        let dense = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mask = BitMask::from_keep(3, 2, &[false, false, true, false, true, true]).unwrap();
        let guarded = correct_weight(&dense, &mask, Correction::default()).unwrap();
        assert_eq!((guarded.lambda[0], guarded.shift[0]), (1.0, 0.0));
        assert_eq!((guarded.lambda[1], guarded.shift[1]), (1.0, 0.0));
        assert_eq!(guarded.weight[..4], [0.0, 0.0, 3.0, 0.0]);
        let open = Correction {
            guard: false,
            ..Correction::default()
        };
        let open = correct_weight(&dense, &mask, open).unwrap();
        assert!(open.lambda[0] > 1e8);
        assert_eq!(open.weight[..2], [0.0, 0.0]);
        assert_eq!(open.lambda[2], guarded.lambda[2]);
    }

    #[test]
    fn options_are_those_of_the_cell() {
        let settings = |text: &str| {
            let options: CorrectionOptions = serde_json::from_str(text).unwrap();
            Correction::from(&options)
        };
        assert_eq!(settings("{}"), Correction::default());
        assert_eq!(settings(r#"{"moments":"exact"}"#).mode, Mode::Exact);
        assert!(!settings(r#"{"few_kept":"correct"}"#).guard);
    }

    #[test]
    fn a_full_mask_changes_nothing_but_epsilon() {
        let got = correct_weight(&DENSE, &BitMask::full(1, 4), Correction::default()).unwrap();
        near(&got.weight, &DENSE, 1e-8);
        let settings = Correction {
            epsilon: 0.0,
            ..Correction::default()
        };
        let got = correct_weight(&DENSE, &BitMask::full(1, 4), settings).unwrap();
        near(&got.weight, &DENSE, 1e-15);
    }

    #[test]
    fn lengths_are_checked() {
        assert!(correct_weight(&DENSE[..3], &vector_mask(), Correction::default()).is_err());
        assert!(correct_bias(&[0.0, 1.0], &[0.0], &[0.0, 1.0]).is_err());
        assert_eq!(correct_bias(&[1.0], &[5.0], &[2.0]), Ok(vec![4.0]));
    }

    proptest! {
        #[test]
        fn exact_mode_restores_both_moments(
            channel in proptest::collection::vec((-1.0f64..1.0, proptest::bool::weighted(0.7)), 8..40)
        ) {
            let (dense, keep): (Vec<f64>, Vec<bool>) = channel.into_iter().unzip();
            prop_assume!(exact(&dense, &keep).is_some());
            let mask = BitMask::from_keep(1, dense.len(), &keep).unwrap();
            let settings = Correction { mode: Mode::Exact, ..Correction::default() };
            let got = correct_weight(&dense, &mask, settings).unwrap();
            let moments = |values: &[f64]| {
                [mean(values).unwrap(), variance(values, Deviation::Population).unwrap()]
            };
            near(&moments(&got.weight), &moments(&dense), 1e-12);
        }
    }
}

//! Mean and deviation of plain numbers. Nothing here is NaN for want of values: what has no value is `None`.

/// The divisor of a variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Deviation {
    /// The number of values.
    #[default]
    Population,
    /// One less, so that a single value has none.
    Sample,
}

/// Arithmetic mean.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The sum of squared distances from the mean, over the divisor of `kind`.
pub fn variance(values: &[f64], kind: Deviation) -> Option<f64> {
    let centre = mean(values)?;
    let divisor = match kind {
        Deviation::Population => values.len(),
        Deviation::Sample => values.len() - 1,
    };
    let squares: f64 = values.iter().map(|v| (v - centre).powi(2)).sum();
    (divisor > 0).then(|| squares / divisor as f64)
}

/// Standard deviation.
pub fn deviation(values: &[f64], kind: Deviation) -> Option<f64> {
    variance(values, kind).map(f64::sqrt)
}

/// How far two rankings of the same things agree: Kendall's tau-b, from -1 to 1. None where there are no pairs, or all are
/// ties in one of the two.
pub fn kendall(a: &[f64], b: &[f64]) -> Option<f64> {
    let Pairs {
        concordant,
        discordant,
        untied: [in_a, in_b],
    } = Pairs::of(a, b);
    let scale = (in_a as f64 * in_b as f64).sqrt();
    (scale > 0.0).then(|| (concordant as f64 - discordant as f64) / scale)
}

/// Pairs of things in two rankings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pairs {
    /// In the same order in both.
    pub concordant: usize,
    /// In opposite orders.
    pub discordant: usize,
    /// No tie in the first, and in the second.
    pub untied: [usize; 2],
}

impl Pairs {
    /// Counts them; what only one of the two has is left out.
    pub fn of(a: &[f64], b: &[f64]) -> Self {
        let mut pairs = Self::default();
        let both: Vec<(f64, f64)> = a.iter().copied().zip(b.iter().copied()).collect();
        for (at, first) in both.iter().enumerate() {
            for second in &both[at + 1..] {
                let (in_a, in_b) = (first.0 - second.0, first.1 - second.1);
                pairs.untied[0] += usize::from(in_a != 0.0);
                pairs.untied[1] += usize::from(in_b != 0.0);
                pairs.concordant += usize::from(in_a * in_b > 0.0);
                pairs.discordant += usize::from(in_a * in_b < 0.0);
            }
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_differ_by_one() {
        let values = [1.0, 2.0, 6.0];
        assert_eq!(mean(&values), Some(3.0));
        assert_eq!(variance(&values, Deviation::Population), Some(14.0 / 3.0));
        assert_eq!(variance(&values, Deviation::Sample), Some(7.0));
        assert_eq!(deviation(&[1.0, 3.0], Deviation::Population), Some(1.0));
    }

    #[test]
    fn rankings_agree_as_far_as_their_pairs() {
        let up = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(kendall(&up, &[10.0, 20.0, 30.0, 40.0]), Some(1.0));
        assert_eq!(kendall(&up, &[4.0, 3.0, 2.0, 1.0]), Some(-1.0));
        // One of six pairs is the other way round.
        assert_eq!(kendall(&up, &[1.0, 3.0, 2.0, 4.0]), Some(4.0 / 6.0));
        // scipy.stats.kendalltau([1, 2, 3, 4], [1, 2, 2, 3])
        let tied = kendall(&up, &[1.0, 2.0, 2.0, 3.0]).unwrap();
        assert!((tied - 0.9128709291752769).abs() < 1e-15, "{tied}");
        assert_eq!(kendall(&up, &[1.0; 4]), None);
        assert_eq!(kendall(&[1.0], &[1.0]), None);
    }

    #[test]
    fn undefined_is_none() {
        assert_eq!(mean(&[]), None);
        assert_eq!(deviation(&[], Deviation::Sample), None);
        assert_eq!(deviation(&[1.0], Deviation::Sample), None);
        assert_eq!(deviation(&[1.0], Deviation::Population), Some(0.0));
    }
}

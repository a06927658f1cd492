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
    fn undefined_is_none() {
        assert_eq!(mean(&[]), None);
        assert_eq!(deviation(&[], Deviation::Sample), None);
        assert_eq!(deviation(&[1.0], Deviation::Sample), None);
        assert_eq!(deviation(&[1.0], Deviation::Population), Some(0.0));
    }
}

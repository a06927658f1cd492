//! The overall metrics of PTSBench (arXiv 2412.07268, section 3.3, Eqs. 2-7): grids of numbers in, numbers out.
//!
//! No record, file or task name appears here. The paper prints each equation once and its tables sometimes follow
//! another order of the same means; where the two differ both readings are functions, and the one that reproduces the
//! printed tables is the one to report.
//!
//! A *case* is an (architecture, dataset) pair. A *grid* holds one row per case and one column per rate, each entry a
//! ratio such as `A^s / A`. Results are fractions; the paper prints them times 100. Every function returns `None` where
//! its value is undefined (nothing to average, rows of unequal length, a division by zero) rather than NaN or zero.

use crate::statistics::{Deviation, deviation, mean};

/// The rates over which the overall metrics are defined (section 4 of the paper).
pub const RATES: [f64; 4] = [0.5, 0.6, 0.7, 0.8];

/// Quadratic mean, the square root of the mean square.
pub fn quadratic_mean(values: &[f64]) -> Option<f64> {
    let squares: Vec<f64> = values.iter().map(|v| v * v).collect();
    mean(&squares).map(f64::sqrt)
}

/// `A^s / A`, the relative performance of classification and detection in Eq. 2. Not clipped: a sparse network may win.
pub fn relative_accuracy(sparse: f64, dense: f64) -> Option<f64> {
    finite(sparse / dense)
}

/// `FID / FID^s`, the relative performance of generation in Eq. 2, within [0, 1]. A collapsed generator, whose FID is
/// not a finite number, scores 0.
pub fn relative_fid(sparse: f64, dense: f64) -> f64 {
    let ratio = dense / sparse;
    if sparse.is_finite() && ratio.is_finite() {
        ratio.clamp(0.0, 1.0)
    } else {
        0.0
    }
}

/// What the gain `R = A^{s,r} - A^s` (Eq. 3) is measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// `R / A^s`, as Eq. 4 is printed.
    Sparse,
    /// `R / A`, bounded by 1 for a network no better than the dense one.
    Dense,
    /// `R / A^{s,r}`, bounded by 1.
    Reconstructed,
}

/// The gain of reconstruction over the accuracy `base` names, unclipped.
pub fn gain(dense: f64, sparse: f64, reconstructed: f64, base: Base) -> Option<f64> {
    let base = match base {
        Base::Sparse => sparse,
        Base::Dense => dense,
        Base::Reconstructed => reconstructed,
    };
    finite((reconstructed - sparse) / base)
}

/// A classification or detection term of Eq. 4 as Table 4 prints it: losses count as 0.
pub fn clipped(gain: f64) -> f64 {
    gain.max(0.0)
}

/// A generation term of Eq. 4, `exp(FID / R)` with `R = FID^{s,r} - FID^s`; 0 where reconstruction does not lower the
/// FID, for which the printed formula would exceed 1.
pub fn fid_gain(dense: f64, sparse: f64, reconstructed: f64) -> f64 {
    let r = reconstructed - sparse;
    if r < 0.0 { (dense / r).exp() } else { 0.0 }
}

/// MS of a task as Tables 2 and 4 print it: the quadratic mean over cases of each case's mean over rates.
pub fn ms(grid: &[Vec<f64>]) -> Option<f64> {
    quadratic_mean(&case_means(grid)?)
}

/// The task term of Eqs. 2 and 4 as written: one mean over rates, architectures and datasets together.
pub fn expectation(grid: &[Vec<f64>]) -> Option<f64> {
    mean(&grid.concat())
}

/// OM_alloc (Eq. 2) or OM_recon (Eq. 4) from one term per task: from [`ms`] as the tables have it, from
/// [`expectation`] as the equations are written.
pub fn over_tasks(terms: &[f64]) -> Option<f64> {
    quadratic_mean(terms)
}

/// OM_arch as Table 5 has it: the quadratic mean over rates of the mean over sizes.
pub fn om_arch_table(grid: &[Vec<f64>]) -> Option<f64> {
    let rates = grid.first()?.len();
    if grid.iter().any(|row| row.len() != rates) {
        return None;
    }
    let by_rate: Option<Vec<f64>> = (0..rates)
        .map(|rate| mean(&grid.iter().map(|row| row[rate]).collect::<Vec<_>>()))
        .collect();
    quadratic_mean(&by_rate?)
}

/// OM_arch as Eq. 5 is written: the quadratic mean over sizes of the mean over rates.
pub fn om_arch_eq5(grid: &[Vec<f64>]) -> Option<f64> {
    ms(grid)
}

/// OM_robust (Eq. 6): how much the mean over rates varies from size to size. The square root of the square inside the
/// printed expectation is the expectation itself.
pub fn om_robust(grid: &[Vec<f64>], kind: Deviation) -> Option<f64> {
    deviation(&case_means(grid)?, kind)
}

/// OM_task as Table 6 has it: one value per task, its MS.
pub fn om_task_table(grid: &[Vec<f64>]) -> Option<f64> {
    ms(grid)
}

/// OM_task as Eq. 7 is written: the quadratic mean over tasks of their values.
pub fn om_task_eq7(tasks: &[f64]) -> Option<f64> {
    quadratic_mean(tasks)
}

/// Mean relative accuracy loss of one case over its rates (Fig. 4).
pub fn mean_relative_loss(ratios: &[f64]) -> Option<f64> {
    mean(ratios).map(|kept| 1.0 - kept)
}

fn case_means(grid: &[Vec<f64>]) -> Option<Vec<f64>> {
    grid.iter().map(|row| mean(row)).collect()
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: Option<f64>, expected: f64) {
        let got = got.expect("defined");
        assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
    }

    /// Two sizes, two rates, chosen so that every mean has a closed form.
    fn grid() -> Vec<Vec<f64>> {
        vec![vec![1.0, 0.2], vec![0.8, 0.8]]
    }

    #[test]
    fn means_of_a_grid() {
        // Means over rates are 0.6 and 0.8, means over sizes 0.9 and 0.5.
        close(ms(&grid()), 0.5_f64.sqrt());
        close(om_arch_eq5(&grid()), 0.5_f64.sqrt());
        close(om_arch_table(&grid()), 0.53_f64.sqrt());
        close(expectation(&grid()), 0.7);
        close(om_robust(&grid(), Deviation::Population), 0.1);
        close(om_robust(&grid(), Deviation::Sample), 0.02_f64.sqrt());
        close(mean_relative_loss(&grid()[0]), 0.4);
        close(om_task_table(&grid()), 0.5_f64.sqrt());
    }

    #[test]
    fn over_tasks_is_a_quadratic_mean() {
        close(over_tasks(&[3.0, 4.0]), 12.5_f64.sqrt());
        close(om_task_eq7(&[1.0, 1.0, 1.0]), 1.0);
    }

    #[test]
    fn gains_and_their_bases() {
        // 80 dense, 20 pruned, 50 after reconstruction.
        close(gain(80.0, 20.0, 50.0, Base::Sparse), 1.5);
        close(gain(80.0, 20.0, 50.0, Base::Dense), 0.375);
        close(gain(80.0, 20.0, 50.0, Base::Reconstructed), 0.6);
        close(gain(80.0, 20.0, 10.0, Base::Sparse), -0.5);
        assert_eq!(clipped(-0.5), 0.0);
        assert_eq!(clipped(1.5), 1.5);
        assert_eq!(gain(80.0, 0.0, 10.0, Base::Sparse), None);
    }

    #[test]
    fn generation_terms_stay_within_one() {
        assert_eq!(relative_fid(40.0, 10.0), 0.25);
        assert_eq!(relative_fid(5.0, 10.0), 1.0);
        assert_eq!(relative_fid(f64::NAN, 10.0), 0.0);
        assert_eq!(relative_fid(f64::INFINITY, 10.0), 0.0);
        assert_eq!(fid_gain(10.0, 40.0, 20.0), (-0.5_f64).exp());
        assert_eq!(fid_gain(10.0, 40.0, 40.0), 0.0);
        assert_eq!(fid_gain(10.0, 40.0, 60.0), 0.0);
    }

    #[test]
    fn undefined_is_none() {
        assert_eq!(om_arch_table(&[vec![1.0, 0.5], vec![1.0]]), None);
        assert_eq!(ms(&[vec![]]), None);
        assert_eq!(ms(&[]), None);
        assert_eq!(relative_accuracy(1.0, 0.0), None);
    }
}

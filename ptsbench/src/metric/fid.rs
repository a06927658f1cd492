//! The Fréchet distance between two sets of features: `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2)`, in f64.
//!
//! The trace of the root is never taken from a root of the product: with `S = A A^T` it is the sum of the singular
//! values of `A1^T A2`, whose errors are of the size of round-off, where square roots turn round-off eigenvalues of 1e-16
//! into 1e-8. Features themselves are such an `A`; a covariance has one in its Cholesky factor or its eigenvectors.

mod kept;

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par, Side};

/// Mean and covariance of features: all that the distance needs of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// `d` means.
    pub mean: Vec<f64>,
    /// `d * d` covariances, with n - 1 in the denominator.
    pub covariance: Vec<f64>,
}

/// One of two sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The first.
    First,
    /// The second.
    Second,
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::First => "first",
            Self::Second => "second",
        })
    }
}

/// Why there is no distance.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FidError {
    /// Too few samples.
    #[error("{samples} samples have no covariance; give at least 2")]
    TooFew {
        /// Samples given.
        samples: u64,
    },
    /// Features of different networks.
    #[error("{first} and {second} features cannot be compared; take both from one network")]
    Widths {
        /// Features of the first set.
        first: usize,
        /// Features of the second.
        second: usize,
    },
    /// A feature that is not a number.
    #[error(
        "feature {feature} of sample {sample} is not finite; the feature network or its input is broken"
    )]
    NotFinite {
        /// Which sample, from 0.
        sample: u64,
        /// Which feature.
        feature: usize,
    },
    /// A matrix that is not a covariance.
    #[error(
        "the covariance of the {set} set has the eigenvalue {value:?}, and {largest:?} as its largest: it is not a covariance; compute the statistics again"
    )]
    Negative {
        /// Which set.
        set: Which,
        /// The smallest eigenvalue.
        value: f64,
        /// The largest.
        largest: f64,
    },
    /// Numbers beyond f64.
    #[error("the distance is beyond what f64 holds; check the features for extreme values")]
    Overflow,
    /// The decomposition gave up.
    #[error("the covariances could not be decomposed; check the features for extreme values")]
    NotConverged,
}

/// Samples gathered before a product is taken: enough to keep the product busy, few enough for the cache.
const BLOCK: usize = 256;

/// Sums a stream of features into statistics; memory does not grow with the samples.
#[derive(Debug, Clone)]
pub struct Gatherer {
    width: usize,
    samples: u64,
    /// Subtracted from every sample before it is summed, so that features far from 0 lose no digits: the first sample.
    pivot: Vec<f64>,
    sums: Vec<f64>,
    /// Lower triangle of the sums of products.
    products: Mat<f64>,
    waiting: Vec<f64>,
}

impl Default for Gatherer {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Gatherer {
    /// For samples of `width` features.
    pub fn new(width: usize) -> Self {
        Self {
            width,
            samples: 0,
            pivot: Vec::new(),
            sums: vec![0.0; width],
            products: Mat::zeros(width, width),
            waiting: Vec::new(),
        }
    }

    /// Adds samples, one after the other in `features`.
    pub fn add(&mut self, features: &[f32]) -> Result<(), FidError> {
        assert_eq!(features.len() % self.width.max(1), 0, "whole samples");
        for sample in features.chunks_exact(self.width.max(1)) {
            if let Some(feature) = sample.iter().position(|value| !value.is_finite()) {
                let sample = self.samples;
                return Err(FidError::NotFinite { sample, feature });
            }
            if self.samples == 0 {
                self.pivot = sample.iter().map(|&value| value.into()).collect();
            }
            for ((&value, pivot), sum) in sample.iter().zip(&self.pivot).zip(&mut self.sums) {
                let moved = f64::from(value) - pivot;
                *sum += moved;
                self.waiting.push(moved);
            }
            self.samples += 1;
            if self.waiting.len() == BLOCK * self.width {
                self.take_products();
            }
        }
        Ok(())
    }

    fn take_products(&mut self) {
        let rows = self.waiting.len() / self.width.max(1);
        let block = MatRef::from_row_major_slice(&self.waiting, rows, self.width);
        triangular::matmul(
            self.products.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            block.transpose(),
            BlockStructure::Rectangular,
            block,
            BlockStructure::Rectangular,
            1.0,
            Par::rayon(0),
        );
        self.waiting.clear();
    }

    /// Features of a sample.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Samples added.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Mean and covariance of all samples.
    pub fn finish(mut self) -> Result<Statistics, FidError> {
        if self.samples < 2 {
            let samples = self.samples;
            return Err(FidError::TooFew { samples });
        }
        self.take_products();
        let n = self.samples as f64;
        let moved: Vec<f64> = self.sums.iter().map(|sum| sum / n).collect();
        let d = self.width;
        let mut covariance = vec![0.0; d * d];
        for row in 0..d {
            for column in 0..=row {
                let product = self.products[(row, column)] - n * moved[row] * moved[column];
                covariance[row * d + column] = product / (n - 1.0);
                covariance[column * d + row] = product / (n - 1.0);
            }
        }
        let mean = moved
            .iter()
            .zip(&self.pivot)
            .map(|(moved, pivot)| moved + pivot);
        Ok(Statistics {
            mean: mean.collect(),
            covariance,
        })
    }
}

impl Statistics {
    /// Of features held in memory, `width` to a sample.
    pub fn of(features: &[f32], width: usize) -> Result<Self, FidError> {
        let mut gatherer = Gatherer::new(width);
        gatherer.add(features)?;
        gatherer.finish()
    }

    /// Features of a sample.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    fn trace(&self) -> f64 {
        let d = self.width();
        (0..d).map(|at| self.covariance[at * d + at]).sum()
    }

    /// `A` with `A A^T` the covariance: the Cholesky factor, or where that is in doubt, eigenvectors times roots of
    /// eigenvalues.
    fn root(&self, set: Which) -> Result<Mat<f64>, FidError> {
        let d = self.width();
        let covariance = MatRef::from_row_major_slice(&self.covariance, d, d);
        if let Some(factor) = cholesky(covariance) {
            return Ok(factor);
        }
        let eigen = covariance
            .self_adjoint_eigen(Side::Lower)
            .map_err(|_| FidError::NotConverged)?;
        let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
        let largest = values.iter().copied().fold(0.0, f64::max);
        let value = values.iter().copied().fold(0.0, f64::min);
        let size = largest.max(-value);
        if value < -CLEARLY_NEGATIVE * size {
            return Err(FidError::Negative {
                set,
                value,
                largest,
            });
        }
        // Eigenvalues that are round-off alone are left out with their columns.
        let floor = largest * d as f64 * f64::EPSILON;
        let kept: Vec<usize> = (0..d).filter(|&at| values[at] > floor).collect();
        let vectors = eigen.U();
        Ok(Mat::from_fn(d, kept.len(), |row, column| {
            vectors[(row, kept[column])] * values[kept[column]].sqrt()
        }))
    }
}

/// The smallest square of the Cholesky factor's diagonal, over the largest, at which the factor is used. The squares
/// are not eigenvalues but follow them, so this stays far from eigenvalues that are round-off.
const CLEARLY_REGULAR: f64 = 1e-10;

/// The smallest eigenvalue below zero, over the largest, that no rounding explains: covariances of 2,048 features summed
/// in f32 stay ten times above it.
const CLEARLY_NEGATIVE: f64 = 1e-4;

/// The Cholesky factor of a matrix that is clearly positive definite: an eighth of the eigenvectors' time.
fn cholesky(covariance: MatRef<f64>) -> Option<Mat<f64>> {
    let factor = covariance.llt(Side::Lower).ok()?.L().to_owned();
    let squares = || (0..factor.nrows()).map(|at| factor[(at, at)] * factor[(at, at)]);
    let largest = squares().fold(0.0, f64::max);
    squares()
        .all(|square| square > CLEARLY_REGULAR * largest)
        .then_some(factor)
}

fn square_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The sum of the singular values of `a^T b`.
fn nuclear(a: MatRef<f64>, b: MatRef<f64>) -> Result<f64, FidError> {
    if a.ncols() == 0 || b.ncols() == 0 {
        return Ok(0.0);
    }
    let product = a.transpose() * b;
    let values = product
        .singular_values()
        .map_err(|_| FidError::NotConverged)?;
    Ok(values.iter().sum())
}

/// The distance from statistics. Equal sets may come out below zero by round-off; such a value is printed as 0.
pub fn distance(a: &Statistics, b: &Statistics) -> Result<f64, FidError> {
    same_width(a.width(), b.width())?;
    let roots = (a.root(Which::First)?, b.root(Which::Second)?);
    let root = nuclear(roots.0.as_ref(), roots.1.as_ref())?;
    finite(square_distance(&a.mean, &b.mean) + a.trace() + b.trace() - 2.0 * root)
}

/// The distance from features held in memory: exact also where samples are fewer than features, and then far cheaper.
pub fn distance_of_features(a: &[f32], b: &[f32], width: usize) -> Result<f64, FidError> {
    let samples = |features: &[f32]| features.len() / width.max(1);
    if samples(a).max(samples(b)) > width {
        return distance(&Statistics::of(a, width)?, &Statistics::of(b, width)?);
    }
    let (a, b) = (Centred::of(a, width)?, Centred::of(b, width)?);
    let root = nuclear(a.columns.as_ref(), b.columns.as_ref())?;
    let trace = a.columns.squared_norm_l2() + b.columns.squared_norm_l2();
    finite(square_distance(&a.mean, &b.mean) + trace - 2.0 * root)
}

fn finite(distance: f64) -> Result<f64, FidError> {
    if distance.is_finite() {
        Ok(distance)
    } else {
        Err(FidError::Overflow)
    }
}

fn same_width(first: usize, second: usize) -> Result<(), FidError> {
    if first == second {
        Ok(())
    } else {
        Err(FidError::Widths { first, second })
    }
}

/// Samples less their mean, as columns, divided by the root of n - 1.
struct Centred {
    mean: Vec<f64>,
    columns: Mat<f64>,
}

impl Centred {
    fn of(features: &[f32], width: usize) -> Result<Self, FidError> {
        let samples = features.len() / width.max(1);
        if samples < 2 {
            let samples = samples as u64;
            return Err(FidError::TooFew { samples });
        }
        if let Some(at) = features.iter().position(|value| !value.is_finite()) {
            return Err(FidError::NotFinite {
                sample: (at / width) as u64,
                feature: at % width,
            });
        }
        let value = |sample: usize, feature: usize| f64::from(features[sample * width + feature]);
        let mean: Vec<f64> = (0..width)
            .map(|feature| {
                let sum: f64 = (0..samples).map(|sample| value(sample, feature)).sum();
                sum / samples as f64
            })
            .collect();
        let scale = 1.0 / ((samples - 1) as f64).sqrt();
        let columns = Mat::from_fn(width, samples, |feature, sample| {
            (value(sample, feature) - mean[feature]) * scale
        });
        Ok(Self { mean, columns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    fn features(samples: usize, width: usize, shift: f32) -> Vec<f32> {
        let mut stream = Seed(11).stream("features");
        (0..samples * width)
            .map(|_| stream.unit() + shift)
            .collect()
    }

    #[test]
    fn a_shift_costs_its_square_and_equal_sets_nothing() {
        let (a, b) = (features(600, 8, 0.0), features(600, 8, 0.5));
        let distance = |a: &[f32], b: &[f32]| distance_of_features(a, b, 8).unwrap();
        assert!(distance(&a, &a).abs() < 1e-12);
        assert!((distance(&a, &b) - 8.0 * 0.25).abs() < 1e-5);
    }

    #[test]
    fn a_stream_in_pieces_is_the_whole() {
        let all = features(700, 6, 100.0);
        let whole = Statistics::of(&all, 6).unwrap();
        let mut gatherer = Gatherer::new(6);
        for piece in all.chunks(6 * 37) {
            gatherer.add(piece).unwrap();
        }
        assert_eq!(gatherer.finish().unwrap(), whole);
    }

    #[test]
    fn both_roots_give_the_same_distance() {
        // The second set's last feature is nearly the sum of two others: its covariance is all but singular. In the
        // second case the smallest eigenvalue is 1e-15, of which f64 covariances know one digit, its root 3e-8.
        for (nearly, factored, near) in [(1e-2, true, 1e-12), (1e-7, false, 1e-8)] {
            let mut other = features(300, 5, 0.0);
            for sample in other.chunks_exact_mut(5) {
                sample[4] = sample[0] + sample[1] + nearly * sample[4];
            }
            let one = Statistics::of(&features(400, 5, 0.2), 5).unwrap();
            let other = Statistics::of(&other, 5).unwrap();
            let covariance = MatRef::from_row_major_slice(&other.covariance, 5, 5);
            assert_eq!(cholesky(covariance).is_some(), factored);
            let root = other.root(Which::Second).unwrap();
            let back = &root * root.transpose();
            assert!((&back - covariance).norm_max() < 1e-14);
            // Features turned by a permutation have the distance of those that were not.
            let turned = |statistics: &Statistics| Statistics {
                mean: statistics.mean.iter().rev().copied().collect(),
                covariance: statistics.covariance.iter().rev().copied().collect(),
            };
            let straight = distance(&one, &other).unwrap();
            let reversed = distance(&turned(&one), &turned(&other)).unwrap();
            assert!((straight - reversed).abs() < near, "{straight} {reversed}");
        }
    }

    #[test]
    fn what_is_no_covariance_has_no_distance() {
        let sound = Statistics {
            mean: vec![0.0, 0.0],
            covariance: vec![1.0, 0.5, 0.5, 1.0],
        };
        // Variances above zero and a correlation of 2: the eigenvalues are 3 and -1.
        let mut other = sound.clone();
        other.covariance = vec![1.0, 2.0, 2.0, 1.0];
        for (a, b, place) in [
            (&sound, &other, Which::Second),
            (&other, &sound, Which::First),
        ] {
            let error = distance(a, b).unwrap_err();
            let FidError::Negative { set, value, .. } = error else {
                panic!("{error}")
            };
            assert_eq!(set, place);
            assert!((value + 1.0).abs() < 1e-12, "{value}");
        }
        // Rounding makes such eigenvalues, and they count as zero.
        other.covariance = vec![1.0, 0.0, 0.0, -1e-7];
        assert!((distance(&other, &other).unwrap()).abs() < 1e-6);
        other.covariance = vec![1e308, 0.0, 0.0, 1e308];
        assert!(matches!(
            distance(&sound, &other),
            Err(FidError::Overflow | FidError::NotConverged)
        ));
        other.mean[0] = 1e200;
        other.covariance = sound.covariance.clone();
        assert_eq!(distance(&sound, &other), Err(FidError::Overflow));
    }

    #[test]
    fn sets_without_a_distance_are_refused() {
        assert_eq!(
            Statistics::of(&[1.0, 2.0], 2),
            Err(FidError::TooFew { samples: 1 })
        );
        let mut bad = features(10, 3, 0.0);
        bad[7] = f32::NAN;
        let expected = FidError::NotFinite {
            sample: 2,
            feature: 1,
        };
        assert_eq!(Statistics::of(&bad, 3), Err(expected.clone()));
        assert_eq!(distance_of_features(&bad, &bad, 3), Err(expected));
    }
}

//! The threshold of a layer: `t = sigma(s) max|W|`. It prunes the weights with `|w| <= t`.
//!
//! The gradient reaches `s` on two ways: through the mask (`kernels::soft_mask_backward`), and through the layer's rate,
//! whose slope in `t` is the density of the weights at `t` and at `-t` (the paper's bridge from threshold to rate).

use serde::{Deserialize, Serialize};

/// `s` stays within this: beyond it the sigmoid is 0 or 1 to the last bit, and the threshold of a layer that loses nothing
/// or everything would be at infinity.
pub const FARTHEST: f64 = 30.0;
/// Bins of the release's histogram.
const BINS: usize = 100;

/// The logistic function.
pub fn sigma(s: f64) -> f64 {
    1.0 / (1.0 + (-s).exp())
}

/// Its slope.
pub fn sigma_slope(s: f64) -> f64 {
    sigma(s) * sigma(-s)
}

/// Its inverse, within what `s` may be.
pub fn logit(share: f64) -> f64 {
    (share / (1.0 - share)).ln().clamp(-FARTHEST, FARTHEST)
}

/// `max|W|`.
pub fn largest(weight: &[f32]) -> f64 {
    weight
        .iter()
        .map(|w| f64::from(w.abs()))
        .fold(0.0, f64::max)
}

/// The `zeros`-th smallest `|w|`, counted from 1, and the smallest for none: the threshold that prunes so many.
pub fn magnitude(weight: &[f32], zeros: usize) -> f64 {
    let mut magnitudes: Vec<f32> = weight.iter().map(|w| w.abs()).collect();
    let place = zeros.clamp(1, magnitudes.len().max(1)) - 1;
    match place < magnitudes.len() {
        true => f64::from(*magnitudes.select_nth_unstable_by(place, f32::total_cmp).1),
        false => 0.0,
    }
}

/// The `s` whose threshold is `t`.
pub fn parameter(t: f64, largest: f64) -> f64 {
    // A layer of zeros has no scale, and any threshold prunes it.
    logit(if largest > 0.0 { t / largest } else { 0.0 })
}

/// The density of a layer's weights, from which the slope of its rate is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bridge {
    /// A histogram of 100 bins between the least and the greatest weight: the release.
    Hist100,
    /// Gaussian kernels, as wide as Silverman's rule says: the paper.
    Kde,
}

impl Bridge {
    /// `d rho / d t = f(t) + f(-t)`.
    pub fn slope(self, weight: &[f32], t: f64) -> f64 {
        match self {
            Bridge::Hist100 => histogram(weight, [t, -t]),
            Bridge::Kde => kernels_at(weight, [t, -t]),
        }
    }
}

/// The sum of a histogram's densities at two points. A bin holds its lower edge, and the last one its upper edge too; a
/// point at or above the last edge has no bin.
fn histogram(weight: &[f32], points: [f64; 2]) -> f64 {
    let wide = || weight.iter().map(|&w| f64::from(w));
    let (least, most) = wide().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), w| {
        (least.min(w), most.max(w))
    });
    let width = (most - least) / BINS as f64;
    // All weights are one number, or there is none.
    if width <= 0.0 {
        return 0.0;
    }
    let bin = |x: f64| ((x - least) / width).floor();
    let last = (BINS - 1) as f64;
    let bins = points.map(|x| (least..most).contains(&x).then(|| bin(x).min(last)));
    let inside = |w: f64| {
        bins.iter()
            .filter(|b| **b == Some(bin(w).min(last)))
            .count()
    };
    let count: usize = wide().map(inside).sum();
    count as f64 / (weight.len() as f64 * width)
}

/// The sum of a kernel density estimate at two points: `f(x) = 1/(n h) sum phi((x - w) / h)`, `h = 1.06 std n^(-1/5)`.
fn kernels_at(weight: &[f32], points: [f64; 2]) -> f64 {
    let n = weight.len() as f64;
    let wide = || weight.iter().map(|&w| f64::from(w));
    let mean = wide().sum::<f64>() / n.max(1.0);
    let variance = wide().map(|w| (w - mean).powi(2)).sum::<f64>() / n.max(1.0);
    let h = 1.06 * variance.sqrt() * n.powf(-0.2);
    if h.is_nan() || h <= 0.0 {
        return 0.0;
    }
    let phi = |u: f64| (-0.5 * u * u).exp() / std::f64::consts::TAU.sqrt();
    let at = |w: f64| points.map(|x| phi((x - w) / h)).iter().sum::<f64>();
    wide().map(at).sum::<f64>() / (n * h)
}

/// `lambda |rate - P|`, and its slope in the rate.
pub fn penalty(rate: f64, wanted: f64, lambda: f64) -> (f64, f64) {
    let off = rate - wanted;
    let sign = match off {
        0.0 => 0.0,
        off => off.signum(),
    };
    (lambda * off.abs(), lambda * sign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;
    use proptest::prelude::*;

    fn drawn(seed: u64, count: usize) -> Vec<f32> {
        let mut stream = Seed(seed).stream("weights");
        (0..count).map(|_| stream.normal() * 0.1).collect()
    }

    fn pruned(weight: &[f32], s: f64) -> usize {
        let t = (sigma(s) * largest(weight)) as f32;
        weight.iter().filter(|w| w.abs() <= t).count()
    }

    proptest! {
        #[test]
        fn a_threshold_starts_with_the_zeros_it_was_given(
            seed in 0u64..500, count in 2usize..3000, share in 0.0f64..=1.0, scale in 0.001f32..50.0,
        ) {
            let weight: Vec<f32> = drawn(seed, count).iter().map(|w| w * scale).collect();
            let zeros = (share * count as f64) as usize;
            let s = parameter(magnitude(&weight, zeros), largest(&weight));
            prop_assert!(s.abs() <= FARTHEST);
            // None is asked for: the threshold is the smallest weight, which goes.
            prop_assert_eq!(pruned(&weight, s), zeros.max(1));
        }

        #[test]
        fn the_sigmoid_has_the_slope_it_says(s in -20.0f64..20.0) {
            let h = 1e-5;
            let slope = (sigma(s + h) - sigma(s - h)) / (2.0 * h);
            prop_assert!((slope - sigma_slope(s)).abs() < 1e-9);
            prop_assert!((logit(sigma(s)) - s).abs() < 1e-6);
        }

        /// Every bin's edges by hand, and a search over all of them.
        #[test]
        fn the_histogram_is_the_one_with_all_its_edges(seed in 0u64..200, count in 2usize..500, share in 0.0f64..1.1) {
            let weight = drawn(seed, count);
            let t = share * largest(&weight);
            let wide: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
            let least = wide.iter().copied().fold(f64::INFINITY, f64::min);
            let most = wide.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let width = (most - least) / 100.0;
            let edges: Vec<f64> = (0..=100).map(|i| least + f64::from(i) * width).collect();
            // Where a weight or a point lies within rounding of an edge, two ways of finding its bin may differ.
            let near = |x: f64| edges[1..100].iter().any(|e| (e - x).abs() < 1e-12);
            prop_assume!(!wide.iter().chain(&[t, -t]).any(|&x| near(x)));
            let density = |x: f64| -> f64 {
                let Some(bin) = (0..100).find(|&i| edges[i] <= x && x < edges[i + 1]) else {
                    return 0.0;
                };
                let inside = |w: &&f64| edges[bin] <= **w && (**w < edges[bin + 1] || bin == 99);
                wide.iter().filter(inside).count() as f64 / (count as f64 * width)
            };
            let expected = density(t) + density(-t);
            prop_assert!((Bridge::Hist100.slope(&weight, t) - expected).abs() <= 1e-9 * expected.max(1.0));
        }
    }

    #[test]
    fn a_histogram_by_hand() {
        // Bins of 0.01 between 0 and 1: three weights in the one of 0.25, two in the last one, which holds 1 itself.
        let weight = [0.0, 0.251, 0.253, 0.258, 0.995, 1.0];
        let density = |t: f64| Bridge::Hist100.slope(&weight, t);
        let expect = |count: f64| count / (6.0 * 0.01);
        assert!((density(0.255) - expect(3.0)).abs() < 1e-9);
        assert!((density(0.999) - expect(2.0)).abs() < 1e-9);
        // Below 0 there is nothing, and at the last edge no bin begins.
        assert_eq!((density(0.5), density(1.0), density(2.0)), (0.0, 0.0, 0.0));
        assert_eq!(Bridge::Hist100.slope(&[0.5; 4], 0.5), 0.0);
        assert_eq!(Bridge::Kde.slope(&[0.5; 4], 0.5), 0.0);
        for bridge in [Bridge::Hist100, Bridge::Kde] {
            assert_eq!(bridge.slope(&[], 0.5), 0.0);
        }
    }

    #[test]
    fn kernels_add_up_to_one_and_are_those_of_the_formula() {
        let weight = [-0.3f32, -0.1, 0.0, 0.05, 0.4];
        let wide = weight.map(f64::from);
        let mean = wide.iter().sum::<f64>() / 5.0;
        let std = (wide.iter().map(|w| (w - mean) * (w - mean)).sum::<f64>() / 5.0).sqrt();
        let h = 1.06 * std / 5f64.powf(0.2);
        let f = |x: f64| -> f64 {
            let each = wide.map(|w| (-(x - w) * (x - w) / (2.0 * h * h)).exp());
            each.iter().sum::<f64>() / (5.0 * h * (2.0 * std::f64::consts::PI).sqrt())
        };
        for t in [0.0, 0.07, 0.4, 3.0] {
            let got = Bridge::Kde.slope(&weight, t);
            assert!((got - f(t) - f(-t)).abs() < 1e-12, "{got} at {t}");
        }
        // The rate from the widest threshold on is 1: the slope's integral.
        let step = 1e-3;
        let whole: f64 = (0..5000)
            .map(|i| Bridge::Kde.slope(&weight, (f64::from(i) + 0.5) * step))
            .sum();
        assert!((whole * step - 1.0).abs() < 1e-6, "{whole}");
    }

    /// Both bridges say how the share of pruned weights grows, on a layer large enough to have a smooth one.
    #[test]
    fn bridges_are_slopes_of_the_rate() {
        let weight = drawn(7, 200_000);
        let rate = |t: f64| {
            let below = weight.iter().filter(|w| f64::from(w.abs()) <= t).count();
            below as f64 / weight.len() as f64
        };
        for t in [0.02, 0.05, 0.1, 0.2] {
            let slope = (rate(t + 0.005) - rate(t - 0.005)) / 0.01;
            for bridge in [Bridge::Hist100, Bridge::Kde] {
                let got = bridge.slope(&weight, t);
                assert!(
                    (got / slope - 1.0).abs() < 0.05,
                    "{bridge:?} {t}: {got}, {slope}"
                );
            }
        }
    }

    #[test]
    fn the_penalty_pulls_towards_the_rate() {
        assert_eq!(penalty(0.75, 0.5, 2.0), (0.5, 2.0));
        assert_eq!(penalty(0.25, 0.5, 2.0), (0.5, -2.0));
        assert_eq!(penalty(0.5, 0.5, 2.0), (0.0, 0.0));
    }
}

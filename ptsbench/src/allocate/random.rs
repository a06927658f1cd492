//! A random allocation: what a search or training that starts from it owes to its start (section 1.4, initialisation).

use super::erk::density_rates;
use super::{AllocateError, Allocation, Allocator, Limits, Options, Rate, keep_trunc, lens};
use crate::cell::Rule;
use crate::inventory::Weights;
use crate::seed::Seed;

/// Densities in the proportions of a draw from the flat Dirichlet distribution, capped at 1.
pub(super) struct Random;

impl Allocator for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn about(&self) -> &'static str {
        "densities drawn at random (flat Dirichlet), as a start for what learns or searches"
    }

    fn takes(&self) -> &'static [&'static str] {
        &["seed"]
    }

    fn needs_weights(&self) -> bool {
        false
    }

    fn allocate(
        &self,
        weights: &dyn Weights,
        rate: Rate,
        rule: Rule,
        options: &Options,
    ) -> Result<Allocation, AllocateError> {
        let layers = weights.layers();
        let mut draws = Seed(options.seed).stream("allocation.random");
        // A flat Dirichlet draw is one of exponential variables over their sum, and only proportions count here. The
        // stream's numbers lie below 1, so that the logarithm is finite; a layer of density 0 would be cut off for good.
        let raw: Vec<f64> = layers
            .iter()
            .map(|_| (-(1.0 - f64::from(draws.unit())).ln()).max(f64::MIN_POSITIVE))
            .collect();
        let (lens, limits) = (lens(layers), Limits::new(layers, options)?);
        limits.budget(&lens, rate)?;
        let (rates, _) = density_rates(&raw, &lens, rate, &limits)?;
        let zeros = match rule {
            Rule::Exact => limits.counts(&lens, &rates, rate)?,
            Rule::Msbench => (rates.iter().zip(&lens))
                .map(|(&rate, &len)| keep_trunc(rate, len))
                .collect(),
        };
        Ok(Allocation::new(layers, rates, zeros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::tests::layer;

    #[test]
    fn a_seed_is_an_allocation_of_exactly_the_rate() {
        let layers: Vec<_> = [16, 64, 256, 1024]
            .iter()
            .enumerate()
            .map(|(at, &rows)| layer(&format!("l{at}"), &[rows, 27]))
            .collect();
        let drawn = |seed, rate| {
            let options = Options {
                seed,
                ..Options::default()
            };
            let rate = Rate::new(rate).unwrap();
            Random
                .allocate(&layers, rate, Rule::Exact, &options)
                .unwrap()
        };
        let total: usize = layers.iter().map(|l| l.len()).sum();
        for seed in 0..20 {
            for rate in [0.1, 0.5, 0.9, 0.99] {
                let found = drawn(seed, rate);
                assert_eq!(found.total_zeros(), Rate::new(rate).unwrap().zeros(total));
                assert_eq!(found, drawn(seed, rate));
            }
        }
        assert_ne!(drawn(0, 0.9), drawn(1, 0.9));
    }
}

//! Uniform: every layer gets the same rate (section 1.1).

use super::{
    AllocateError, Allocation, Allocator, Limits, Options, Rate, fill_rates, keep_trunc, lens,
};
use crate::cell::Rule;
use crate::inventory::Weights;

/// `r_l = P`; with dense layers or caps the others share what is left equally.
pub(super) struct Uniform;

impl Allocator for Uniform {
    fn name(&self) -> &'static str {
        "uniform"
    }

    fn about(&self) -> &'static str {
        "the same rate in every layer"
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
        let lens = lens(layers);
        let total: usize = lens.iter().sum();
        let limits = Limits::new(layers, options)?;
        let (rates, zeros) = match rule {
            Rule::Exact => {
                limits.budget(&lens, rate)?;
                let rates = if limits.bind() {
                    fill_rates(&lens, &limits, rate.get() * total as f64, |free, left| {
                        let room: usize = free.iter().map(|&layer| lens[layer]).sum();
                        let share = if room == 0 { 0.0 } else { left / room as f64 };
                        Ok(vec![share.clamp(0.0, 1.0); free.len()])
                    })?
                } else {
                    vec![rate.get(); lens.len()]
                };
                let zeros = limits.counts(&lens, &rates, rate)?;
                (rates, zeros)
            }
            Rule::Msbench if limits.bind() => {
                return Err(AllocateError::CompatOption {
                    allocator: self.name(),
                });
            }
            Rule::Msbench => {
                let zeros = lens.iter().map(|&len| keep_trunc(rate.get(), len));
                (vec![rate.get(); lens.len()], zeros.collect())
            }
        };
        Ok(Allocation::new(layers, rates, zeros))
    }
}

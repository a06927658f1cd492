//! ERK, Erdős–Rényi-Kernel (section 1.3): density `eps p_l`, capped at 1, with `p_l = (sum dims / prod dims)^gamma`.
//!
//! Shapes are taken as stored, so the second dimension of a grouped convolution is `C_in / groups`.

use super::{
    AllocateError, Allocation, Allocator, Limits, Options, Rate, fill_rates, keep_trunc, lens,
};
use crate::cell::Rule;
use crate::inventory::Weights;

/// Why no densities exist.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ErkError {
    /// The dense list holds more than the budget keeps.
    #[error(
        "the dense layers alone hold more weights than rate {rate} keeps; shorten the dense list or lower the rate"
    )]
    Budget {
        /// The rate of the layers concerned.
        rate: f64,
    },
    /// Every layer was capped at density 1.
    #[error("every layer ends dense at rate {rate}; raise the rate or use uniform")]
    AllDense {
        /// The rate of the layers concerned.
        rate: f64,
    },
}

/// One turn of the capping loop.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// The factor of all raw densities.
    pub epsilon: f64,
    /// The largest density it gives.
    pub max_density: f64,
    /// Layers that became dense in this turn.
    pub capped: Vec<usize>,
}

/// The outcome of the capping loop.
#[derive(Debug, Clone, PartialEq)]
pub struct ErkDensities {
    /// Sparsity rate of each layer, `1 - eps p_l`.
    pub rates: Vec<f64>,
    /// Whether a layer is dense: by request or by capping.
    pub dense: Vec<bool>,
    /// The turns; the last one caps nothing.
    pub rounds: Vec<Round>,
}

/// The raw density `p_l` of a layer of this shape.
fn raw_density(shape: &[usize], power: f64) -> f64 {
    let size = shape.iter().product::<usize>() as f64;
    (shape.iter().sum::<usize>() as f64 / size).powf(power)
}

/// The loop of section 1.3; `dense` starts the set D.
pub fn erk_densities(
    shapes: &[&[usize]],
    rate: f64,
    power: f64,
    dense: &[bool],
) -> Result<ErkDensities, ErkError> {
    let raw: Vec<f64> = shapes.iter().map(|s| raw_density(s, power)).collect();
    let lens: Vec<usize> = shapes.iter().map(|s| s.iter().product()).collect();
    densities(&raw, &lens, rate, dense)
}

/// The same loop for any raw densities.
fn densities(
    raw: &[f64],
    lens: &[usize],
    rate: f64,
    dense: &[bool],
) -> Result<ErkDensities, ErkError> {
    let size = |layer: usize| lens[layer] as f64;
    let mut dense = dense.to_vec();
    let mut rounds = Vec::new();
    loop {
        let (mut rhs, mut weighted, mut top) = (0.0, 0.0, 0.0f64);
        for layer in 0..lens.len() {
            let zeros = (rate * size(layer)).floor();
            if dense[layer] {
                rhs -= zeros;
            } else if size(layer) > 0.0 {
                rhs += size(layer) - zeros;
                weighted += raw[layer] * size(layer);
                top = top.max(raw[layer]);
            }
        }
        if weighted == 0.0 {
            return Err(ErkError::AllDense { rate });
        }
        if rhs <= 0.0 {
            return Err(ErkError::Budget { rate });
        }
        let epsilon = rhs / weighted;
        // All layers that tie with the largest raw density, by exact equality.
        let capped: Vec<usize> = if epsilon * top > 1.0 {
            (0..lens.len())
                .filter(|&layer| !dense[layer] && raw[layer] == top)
                .collect()
        } else {
            Vec::new()
        };
        capped.iter().for_each(|&layer| dense[layer] = true);
        let done = capped.is_empty();
        rounds.push(Round {
            epsilon,
            max_density: epsilon * top,
            capped,
        });
        if done {
            let rates = (0..lens.len()).map(|layer| {
                if dense[layer] || size(layer) == 0.0 {
                    0.0
                } else {
                    1.0 - epsilon * raw[layer]
                }
            });
            return Ok(ErkDensities {
                rates: rates.collect(),
                dense,
                rounds,
            });
        }
    }
}

/// ERK over all layers, or with the last one in the dense list.
pub(super) struct Erk {
    pub(super) dense_last: bool,
}

impl Allocator for Erk {
    fn name(&self) -> &'static str {
        if self.dense_last {
            "erk_dense_last"
        } else {
            "erk"
        }
    }

    fn about(&self) -> &'static str {
        if self.dense_last {
            "ERK with the last layer dense"
        } else {
            "density by the sum over the product of a layer's dimensions"
        }
    }

    fn takes(&self) -> &'static [&'static str] {
        &["erk_power"]
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
        if !(options.erk_power.is_finite() && options.erk_power >= 0.0) {
            return Err(AllocateError::BadOption {
                option: "erk_power".to_owned(),
                found: options.erk_power,
                expected: "[0, inf)",
            });
        }
        let mut options = options.clone();
        if self.dense_last {
            options
                .dense
                .extend(layers.last().map(|layer| layer.path.clone()));
        }
        let mut limits = Limits::new(layers, &options)?;
        limits.budget(&lens, rate)?;
        let caps = limits
            .max_rate
            .iter()
            .zip(&limits.dense)
            .any(|(&cap, &dense)| cap < 1.0 && !dense);
        if rule == Rule::Msbench && caps {
            return Err(AllocateError::CompatOption {
                allocator: self.name(),
            });
        }
        let raw: Vec<f64> = layers
            .iter()
            .map(|layer| raw_density(&layer.shape, options.erk_power))
            .collect();
        let (rates, dense) = density_rates(&raw, &lens, rate, &limits)?;
        let zeros = match rule {
            Rule::Exact => {
                // Layers inside D never receive a weight of the repair.
                for (most, dense) in limits.most.iter_mut().zip(dense) {
                    if dense {
                        *most = 0;
                    }
                }
                limits.counts(&lens, &rates, rate)?
            }
            Rule::Msbench => (rates.iter().zip(&lens))
                .map(|(&rate, &len)| keep_trunc(rate, len))
                .collect(),
        };
        Ok(Allocation::new(layers, rates, zeros))
    }
}

/// Rates of layers that are as dense as their raw densities say, capped at 1, under dense list and caps; and which layers
/// end dense.
pub(super) fn density_rates(
    raw: &[f64],
    lens: &[usize],
    rate: Rate,
    limits: &Limits,
) -> Result<(Vec<f64>, Vec<bool>), AllocateError> {
    let total: usize = lens.iter().sum();
    let mut dense = limits.dense.clone();
    if rate.zeros(total) == 0 {
        // Nothing goes, and no density is defined.
        return Ok((vec![0.0; lens.len()], dense));
    }
    let rates = fill_rates(lens, limits, rate.get() * total as f64, |free, left| {
        let of_free: Vec<usize> = free.iter().map(|&l| lens[l]).collect();
        let raw: Vec<f64> = free.iter().map(|&l| raw[l]).collect();
        let listed: Vec<bool> = free.iter().map(|&l| limits.dense[l]).collect();
        // The rate of the layers still free; P itself, untouched by rounding, while none is capped.
        let rate = if free.len() == lens.len() {
            rate.get()
        } else {
            left / of_free.iter().map(|&len| len as f64).sum::<f64>()
        };
        if left <= 0.0 || listed.iter().all(|&dense| dense) {
            return Ok(vec![0.0; free.len()]);
        }
        let solved = match densities(&raw, &of_free, rate, &listed) {
            // The budget is known to fit, so this is its very edge: all that may go does.
            Err(ErkError::Budget { .. }) => {
                return Ok(listed.iter().map(|&dense| f64::from(!dense)).collect());
            }
            solved => solved?,
        };
        for (&layer, is_dense) in free.iter().zip(solved.dense) {
            dense[layer] = is_dense;
        }
        Ok(solved.rates)
    })?;
    Ok((rates, dense))
}

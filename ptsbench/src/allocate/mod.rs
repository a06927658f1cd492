//! How many weights each layer loses: section 1 of the specification, and the rules all allocators share (0.1-0.4).
//!
//! An allocator turns layers (and, where it needs them, weights) into one real rate and one integer count per layer.
//! Which weights go is the business of [`crate::criterion`] and [`crate::select`].

mod erk;
pub mod evopress;
mod global;
mod integer;
mod random;
mod uniform;

use indexmap::IndexMap;
use model_zoo::misspelt::{did_you_mean, nearest};
use serde::{Deserialize, Serialize};

use crate::cell::{Part, Rule};
use crate::interrupt::Interrupted;
use crate::inventory::{Layer, Weights};
use crate::options::{self, BadOptions, Chosen};
use crate::plan::PartFacts;
use crate::seed::Stream;

pub use erk::{ErkDensities, ErkError, Round, erk_densities};
pub use global::{Norm, NormedMagnitude, by_thresholds, finite_weights, most_zeros};
pub use integer::{integer_counts, keep_trunc};

/// Fraction of zeros over all prunable weights, in [0, 1).
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Rate(f64);

/// A number that is not a rate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "`{0}` is not a sparsity rate; give the fraction of zeros, at least 0 and below 1, e.g. 0.7"
)]
pub struct BadRate(String);

impl Rate {
    /// Checks the range.
    pub fn new(rate: f64) -> Result<Self, BadRate> {
        if (0.0..1.0).contains(&rate) {
            Ok(Self(rate))
        } else {
            Err(BadRate(rate.to_string()))
        }
    }

    /// The fraction.
    pub fn get(self) -> f64 {
        self.0
    }

    /// The budget `Z = floor(P N + 1e-9)` of section 0.1; the guard keeps 0.7 x 10 at 7.
    pub fn zeros(self, total: usize) -> usize {
        guarded_floor(self.0 * total as f64)
    }
}

impl TryFrom<f64> for Rate {
    type Error = BadRate;

    fn try_from(rate: f64) -> Result<Self, BadRate> {
        Self::new(rate)
    }
}

impl From<Rate> for f64 {
    fn from(rate: Rate) -> f64 {
        rate.0
    }
}

impl std::str::FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let rate = text.parse().map_err(|_| BadRate(text.to_owned()))?;
        Self::new(rate).map_err(|_| BadRate(text.to_owned()))
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

fn guarded_floor(x: f64) -> usize {
    (x + 1e-9).floor() as usize
}

/// Real rate of each layer, by path, in the layers' order.
pub type Rates = IndexMap<String, f64>;

/// Zeros of each layer, by path, in the layers' order.
pub type Counts = IndexMap<String, usize>;

/// What an allocator decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// Before rounding to whole weights.
    pub rates: Rates,
    /// Whole weights. Under [`Rule::Exact`] they sum to the budget.
    pub zeros: Counts,
    /// Of a search: the loss of the best allocation, at the start and after each generation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<f64>,
}

impl Allocation {
    pub(crate) fn new(layers: &[Layer], rates: Vec<f64>, zeros: Vec<usize>) -> Self {
        let paths = || layers.iter().map(|layer| layer.path.clone());
        Self {
            rates: paths().zip(rates).collect(),
            zeros: paths().zip(zeros).collect(),
            losses: Vec::new(),
        }
    }

    /// Zeros of all layers together.
    pub fn total_zeros(&self) -> usize {
        self.zeros.values().sum()
    }
}

/// What all allocators can be told (section 0.4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Paths of layers that stay dense.
    pub dense: Vec<String>,
    /// The highest rate of any layer.
    pub max_rate: f64,
    /// The highest rate of single layers, by path; goes before `max_rate`.
    pub max_rate_of: IndexMap<String, f64>,
    /// Gamma in the density of ERK.
    pub erk_power: f64,
    /// Which random allocation.
    pub seed: u64,
    /// The allocator that a search starts from.
    pub from: String,
    /// Generations of a search.
    pub generations: usize,
    /// Offspring of each generation.
    pub offspring: usize,
    /// Selection within a generation: images looked at, and how many go on.
    pub stages: Vec<[usize; 2]>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dense: Vec::new(),
            max_rate: 1.0,
            max_rate_of: IndexMap::new(),
            erk_power: 1.0,
            seed: 0,
            from: "l2norm".to_owned(),
            generations: 100,
            offspring: 64,
            stages: vec![[64, 8], [256, 2], [1024, 1]],
        }
    }
}

/// Why there is no allocation.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AllocateError {
    /// No allocator has this name.
    #[error("no allocator is called `{name}`{} (`ptsbench list allocators` shows all)", did_you_mean(.nearest))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The nearest names, best first.
        nearest: Vec<&'static str>,
    },
    /// The allocator looks at weights, and only shapes are known.
    #[error(
        "allocator `{allocator}` needs the weights of layer `{path}`; load a checkpoint, or use uniform or erk"
    )]
    NeedsWeights {
        /// The allocator.
        allocator: &'static str,
        /// The first layer without weights.
        path: String,
    },
    /// An option names a layer that the model does not have.
    #[error("option `{option}` names layer `{path}`, which the model does not have{} (`ptsbench inspect MODEL` shows its layers)", did_you_mean(.nearest))]
    UnknownLayer {
        /// The option.
        option: &'static str,
        /// The name.
        path: String,
        /// The nearest paths, best first.
        nearest: Vec<String>,
    },
    /// Two layers have one name.
    #[error("two prunable layers are called `{path}`; names in a model must differ")]
    DuplicateLayer {
        /// The name.
        path: String,
    },
    /// An option lies outside its range.
    #[error("option `{option}` is {found}; it must lie in {expected}")]
    BadOption {
        /// The option.
        option: String,
        /// The value.
        found: f64,
        /// The range.
        expected: &'static str,
    },
    /// Dense layers and caps leave too few weights.
    #[error(
        "rate {rate} needs {needed} zeros, dense layers and caps leave room for {reachable}; \
         the largest reachable rate is {largest}"
    )]
    Unreachable {
        /// The rate asked for.
        rate: f64,
        /// Zeros it takes.
        needed: usize,
        /// Zeros there is room for.
        reachable: usize,
        /// The largest rate whose budget fits.
        largest: f64,
    },
    /// ERK has no densities here.
    #[error("ERK: {0}")]
    Erk(#[from] ErkError),
    /// A weight is NaN or infinite.
    #[error(
        "weight {index} of layer `{path}` is {value}; weights must be finite: check the checkpoint"
    )]
    NotFinite {
        /// The layer.
        path: String,
        /// Flat index.
        index: usize,
        /// The weight.
        value: f32,
    },
    /// The allocator tries allocations on the network, and there is none.
    #[error(
        "allocator `{allocator}` tries allocations on calibration images; use it in a plan, with [calibration]"
    )]
    NeedsTrials {
        /// The allocator.
        allocator: &'static str,
    },
    /// Options that it does not have.
    #[error(transparent)]
    Options(#[from] BadOptions),
    /// A trial failed.
    #[error(transparent)]
    Trial(#[from] TrialError),
    /// A search cannot start.
    #[error("allocator `{allocator}`: {why}")]
    Search {
        /// The allocator.
        allocator: &'static str,
        /// What is wrong and what to change.
        why: String,
    },
    /// The original release's rule has no such option.
    #[error(
        "rule `msbench` repeats the original release, which has neither a dense list nor caps for `{allocator}`; use rule `exact`"
    )]
    CompatOption {
        /// The allocator.
        allocator: &'static str,
    },
}

/// A rule that spreads a rate over layers.
pub trait Allocator: Sync {
    /// Its name in plans and records.
    fn name(&self) -> &'static str;

    /// Measurement version: raised whenever its numbers may change.
    fn version(&self) -> u32 {
        1
    }

    /// One line for `ptsbench list`.
    fn about(&self) -> &'static str;

    /// Whether shapes alone do not suffice.
    fn needs_weights(&self) -> bool;

    /// Its options beside the dense list and the caps.
    fn takes(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether it tries allocations on the network: then it is asked by [`search`](Self::search).
    fn needs_trials(&self) -> bool {
        false
    }

    /// The allocation of `rate` over the layers, found by trials.
    fn search(
        &self,
        weights: &dyn Weights,
        rate: Rate,
        rule: Rule,
        options: &Options,
        _trial: &mut dyn Trial,
    ) -> Result<Allocation, AllocateError> {
        self.allocate(weights, rate, rule, options)
    }

    /// The allocation of `rate` over the layers.
    fn allocate(
        &self,
        weights: &dyn Weights,
        rate: Rate,
        rule: Rule,
        options: &Options,
    ) -> Result<Allocation, AllocateError>;
}

/// How good an allocation is, without labels.
pub trait Trial {
    /// The loss with so many zeros in each layer, on the first `images` calibration images; less is better.
    fn loss(&mut self, zeros: &[usize], images: usize) -> Result<f64, TrialError>;

    /// Where random choices come from.
    fn draws(&self) -> Stream;

    /// Told of each of `of` generations.
    fn watch(&mut self, generation: &evopress::Generation<'_>, of: usize);
}

/// Why there is no loss.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrialError {
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The network could not be pruned or run.
    #[error("{0}")]
    Failed(String),
}

/// Options of an allocator from a cell or a plan; what it does not have is refused.
pub fn options_of(
    allocator: &dyn Allocator,
    given: &options::Options,
) -> Result<Options, AllocateError> {
    let known = ["dense", "max_rate", "max_rate_of"];
    let takes = allocator.takes();
    if let Some(option) = given
        .keys()
        .find(|name| !known.contains(&name.as_str()) && !takes.contains(&name.as_str()))
    {
        let all: Vec<&str> = known.iter().chain(takes).copied().collect();
        return Err(BadOptions {
            name: allocator.name(),
            why: format!(
                "there is no option `{option}`; there are {}",
                all.join(", ")
            ),
        }
        .into());
    }
    Ok(options::settings(allocator.name(), given)?)
}

/// The allocator of this name as a cell names it.
pub fn facts(chosen: &Chosen) -> Result<PartFacts, AllocateError> {
    let allocator = find(&chosen.name)?;
    let options = options_of(allocator, &chosen.options)?;
    Ok(PartFacts {
        part: Part {
            options: options::differing(&options),
            ..Part::plain(allocator.name(), allocator.version())
        },
        images: allocator.needs_trials(),
        ..PartFacts::default()
    })
}

/// Every allocator, in the order of the paper's Table 2.
pub fn allocators() -> &'static [&'static dyn Allocator] {
    &[
        &uniform::Uniform,
        &global::Global {
            norm: Norm::None,
            name: "magnitude",
        },
        &global::Global {
            norm: Norm::L1,
            name: "l1norm",
        },
        &global::Global {
            norm: Norm::L2,
            name: "l2norm",
        },
        &erk::Erk { dense_last: false },
        &erk::Erk { dense_last: true },
        &random::Random,
        &evopress::EvoPress,
    ]
}

/// The allocator of this name; the error lists the nearest names.
pub fn find(name: &str) -> Result<&'static dyn Allocator, AllocateError> {
    allocators()
        .iter()
        .copied()
        .find(|allocator| allocator.name() == name)
        .ok_or_else(|| AllocateError::Unknown {
            name: name.to_owned(),
            nearest: nearest(name, allocators().iter().map(|allocator| allocator.name())),
        })
}

/// Options resolved against layers.
struct Limits {
    /// Layers in the dense list.
    dense: Vec<bool>,
    /// Zeros that each layer may have: `floor(max_rate n)`, 0 for dense ones.
    most: Vec<usize>,
    /// The same as real rates.
    max_rate: Vec<f64>,
}

impl Limits {
    fn new(layers: &[Layer], options: &Options) -> Result<Self, AllocateError> {
        let mut index = IndexMap::new();
        for (position, layer) in layers.iter().enumerate() {
            if index.insert(layer.path.as_str(), position).is_some() {
                return Err(AllocateError::DuplicateLayer {
                    path: layer.path.clone(),
                });
            }
        }
        let position = |option: &'static str, path: &str| {
            index
                .get(path)
                .copied()
                .ok_or_else(|| AllocateError::UnknownLayer {
                    option,
                    path: path.to_owned(),
                    nearest: nearest(path, layers.iter().map(|layer| layer.path.clone())),
                })
        };
        let in_unit = |option: &str, found: f64| {
            if (0.0..=1.0).contains(&found) {
                Ok(found)
            } else {
                Err(AllocateError::BadOption {
                    option: option.to_owned(),
                    found,
                    expected: "[0, 1]",
                })
            }
        };
        let mut dense = vec![false; layers.len()];
        let mut max_rate = vec![in_unit("max_rate", options.max_rate)?; layers.len()];
        for (path, &cap) in &options.max_rate_of {
            max_rate[position("max_rate_of", path)?] = in_unit(path, cap)?;
        }
        for path in &options.dense {
            let layer = position("dense", path)?;
            dense[layer] = true;
            max_rate[layer] = 0.0;
        }
        let most = layers
            .iter()
            .zip(&max_rate)
            .map(|(layer, cap)| guarded_floor(cap * layer.len() as f64))
            .collect();
        Ok(Self {
            dense,
            most,
            max_rate,
        })
    }

    /// Whether any layer is bounded.
    fn bind(&self) -> bool {
        self.max_rate.iter().any(|&cap| cap < 1.0)
    }

    /// The budget of `rate`, or the error that names the largest reachable one.
    fn budget(&self, lens: &[usize], rate: Rate) -> Result<usize, AllocateError> {
        let total: usize = lens.iter().sum();
        let needed = rate.zeros(total);
        let reachable: usize = self.most.iter().sum();
        if needed > reachable {
            return Err(unreachable_rate(rate, needed, reachable, total));
        }
        Ok(needed)
    }

    /// Whole counts that sum to the budget of `rate`.
    fn counts(
        &self,
        lens: &[usize],
        rates: &[f64],
        rate: Rate,
    ) -> Result<Vec<usize>, AllocateError> {
        let budget = self.budget(lens, rate)?;
        let (room, total) = (self.most.iter().sum(), lens.iter().sum());
        integer_counts(lens, rates, &self.most, budget)
            .ok_or_else(|| unreachable_rate(rate, budget, room, total))
    }
}

fn unreachable_rate(rate: Rate, needed: usize, reachable: usize, total: usize) -> AllocateError {
    AllocateError::Unreachable {
        rate: rate.get(),
        needed,
        reachable,
        largest: reachable as f64 / total as f64,
    }
}

/// Water-filling of section 0.4, for allocators that yield real rates: cap the layers that `solve` puts above their
/// limit, take their zeros off the budget, solve again for the rest.
///
/// `solve(free, budget)` gets the indices of the layers still free and the (real) zeros they must take together.
fn fill_rates(
    lens: &[usize],
    limits: &Limits,
    budget: f64,
    mut solve: impl FnMut(&[usize], f64) -> Result<Vec<f64>, AllocateError>,
) -> Result<Vec<f64>, AllocateError> {
    let mut rates = vec![0.0; lens.len()];
    let mut free: Vec<usize> = (0..lens.len()).collect();
    let mut left = budget;
    loop {
        let solved = solve(&free, left)?;
        let before = free.len();
        let mut kept = Vec::with_capacity(before);
        for (&layer, rate) in free.iter().zip(solved) {
            if rate > limits.max_rate[layer] {
                rates[layer] = limits.max_rate[layer];
                left -= rates[layer] * lens[layer] as f64;
            } else {
                rates[layer] = rate;
                kept.push(layer);
            }
        }
        free = kept;
        if free.len() == before || free.is_empty() {
            return Ok(rates);
        }
    }
}

fn lens(layers: &[Layer]) -> Vec<usize> {
    layers.iter().map(Layer::len).collect()
}

#[cfg(test)]
pub(crate) mod tests;

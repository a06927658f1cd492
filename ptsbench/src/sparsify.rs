//! From a dense network to a sparse one, the same for whoever asks: how much goes from each layer, which weights, how
//! the rest recovers.

mod learn;
mod trial;

use std::collections::HashMap;

use burn::tensor::{Device, TensorData};
use indexmap::IndexMap;
use kernels::{BitMask, Precision};
use model_zoo::Network;
use model_zoo::norm::re_estimate;
use model_zoo::tap::Census;

use crate::allocate::{self, Allocation, Rate};
use crate::batches::Batches;
use crate::cell::{CalibrationCell, Pattern, Sparsity};
use crate::criterion::{self, Chooser, Criterion};
use crate::inventory::{Layer, Loaded, Weights};
use crate::memory::Memory;
use crate::nofm;
use crate::pipeline::MeasureError;
use crate::progress::Progress;
use crate::reconstruct::Work;
use crate::reconstruct::checkpoint::Checkpoints;
use crate::record::{Budget, EpochOutcome, UnitOutcome};
use crate::repair::{self, Kind};
use crate::seen::{Need, Seen, look};
use crate::select::{self, Masks, select, select_layer};
use crate::sequential::in_order;
use crate::solver::{self, Solver, problem};
use crate::subject;
use trial::NetworkTrial;

/// The largest input and output of a layer over all images with which a pass takes them all at once. Sums have other bits
/// where images come in other batches, so this is the same on every machine.
const AT_ONCE: usize = 1 << 30;

/// A network to be made sparse.
pub struct Dense<'a, N: Network> {
    /// The catalog's name.
    pub model: &'static str,
    /// The network, batch norms kept or folded.
    pub network: &'a N,
    /// Its announcements, for one input.
    pub census: &'a Census,
    /// Its prunable layers, in the census's order.
    pub weights: &'a Loaded,
    /// What computes.
    pub device: &'a Device,
    /// What may stay in memory.
    pub memory: Memory,
    /// Arithmetic of every pass.
    pub precision: Precision,
    /// Told of layers, units and steps.
    pub progress: &'a Progress,
    /// Where a checkpoint per fitted unit is kept, and one of a network that is trained as a whole.
    pub checkpoints: Option<Checkpoints<'a>>,
}

/// What became of it.
pub struct Sparse<N> {
    /// The network, zeros in place.
    pub network: N,
    /// The zeros of each layer, where the pattern does not decide them.
    pub allocation: Option<Allocation>,
    /// What stays.
    pub masks: Masks,
    /// The units that were fitted.
    pub units: Vec<UnitOutcome>,
    /// What each epoch came to, where the network was trained as a whole.
    pub training: Vec<EpochOutcome>,
    /// What all of it took.
    pub budget: Budget,
}

/// Calibration inputs by their description.
pub type Images<'a, I> = dyn FnMut(&CalibrationCell) -> Result<Batches<'a, I>, MeasureError> + 'a;

/// Which weights go, and what the others become, before anything recovers.
struct Pruned<N> {
    /// The network, with whatever was moved: weights that stay, and where all of it was trained biases and norms too.
    network: N,
    /// The zeros of each layer, where the pattern does not decide them.
    allocation: Option<Allocation>,
    masks: Masks,
    /// What each epoch came to, where the network was trained as a whole.
    training: Vec<EpochOutcome>,
    budget: Budget,
}

/// How layers are looked at one by one.
struct Look {
    need: Need,
    /// Whether they read what the dense network gives them, or what it gives them as pruned so far.
    dense_inputs: bool,
    /// Whether the weights that stay are moved.
    moves: bool,
}

/// One layer's weight after pruning, in the order of its shape, and its mask.
type Choose<'a> = dyn Fn(&Layer, &[f32], &Seen, select::Ask<'_>) -> Result<(Vec<f32>, BitMask), MeasureError>
    + 'a;

impl<N: Network> Dense<'_, N> {
    /// The sparse network that `sparsity` describes.
    pub fn sparsify(
        &self,
        sparsity: &Sparsity,
        images: &mut Images<'_, N::Input>,
    ) -> Result<Sparse<N>, MeasureError> {
        nofm::check(self.weights.layers(), sparsity.pattern).map_err(|source| {
            MeasureError::Pattern {
                model: self.model.to_owned(),
                source,
            }
        })?;
        let Pruned {
            network,
            allocation,
            masks,
            training,
            mut budget,
        } = self.prune(sparsity, images)?;
        let mut network = subject::attach(network, self.census, &masks, self.device);
        let mut units = Vec::new();
        if let Some(settings) = &sparsity.reconstruction {
            let batches = images(&settings.calibration)?;
            let work = Work {
                dense: self.network,
                census: self.census,
                masks: &masks,
                batches: &batches,
                memory: self.memory,
                device: self.device,
                precision: self.precision,
                checkpoints: self.checkpoints,
                progress: self.progress,
            };
            (network, units) = work.reconstruct(network, settings)?;
            budget = budget.and(Budget::of(settings, &units));
        }
        let mut network = network.materialize();
        if let Some(part) = &sparsity.repair {
            let repair = repair::find(&part.name)?;
            let batches = self.guide(sparsity, images, false)?;
            network = match repair.kind {
                Kind::BatchNorms => re_estimate(network, batches.iter(), self.precision)?,
            };
            budget = budget.and(looking(sparsity, 1));
        }
        Ok(Sparse {
            network,
            allocation,
            masks,
            units,
            training,
            budget,
        })
    }

    /// How weights are chosen: one arm for each way. What decides rates, masks and weights of the whole network together
    /// is another variant of [`Chooser`] and another arm, for which the allocation is a start.
    fn prune(
        &self,
        sparsity: &Sparsity,
        images: &mut Images<'_, N::Input>,
    ) -> Result<Pruned<N>, MeasureError> {
        let part = &sparsity.criterion;
        match criterion::find(&part.name, &part.options)? {
            Chooser::Scores(criterion) if criterion.needs() == Need::Weights => {
                self.by_weights(criterion.as_ref(), sparsity, images)
            }
            Chooser::Scores(criterion) => {
                let look = Look {
                    need: criterion.needs(),
                    dense_inputs: criterion.dense_inputs(),
                    moves: false,
                };
                self.by_inputs(look, sparsity, images, &|layer, weight, seen, ask| {
                    scored(criterion.as_ref(), layer, weight, seen, ask)
                })
            }
            Chooser::Solver(solver) => {
                let look = Look {
                    need: Need::Gram,
                    dense_inputs: solver.dense_inputs(),
                    moves: true,
                };
                self.by_inputs(look, sparsity, images, &|layer, weight, seen, ask| {
                    solved(solver.as_ref(), layer, weight, seen, ask)
                })
            }
            Chooser::Whole(fcpts) => self.learn(&fcpts, sparsity, images),
        }
    }

    /// By scores of weights alone.
    fn by_weights(
        &self,
        criterion: &dyn Criterion,
        sparsity: &Sparsity,
        images: &mut Images<'_, N::Input>,
    ) -> Result<Pruned<N>, MeasureError> {
        let (allocation, budget) = self.allocate(sparsity, images)?;
        let (pattern, rule) = (sparsity.pattern, sparsity.rule);
        let masks = select(self.weights, criterion, pattern, allocation.as_ref(), rule)?;
        Ok(Pruned {
            network: self.network.clone(),
            allocation,
            masks,
            training: Vec::new(),
            budget,
        })
    }

    /// The inputs that choices and repairs look at: in the cell's batches, or all at once where they are small.
    fn guide<'i>(
        &self,
        sparsity: &Sparsity,
        images: &mut Images<'i, N::Input>,
        at_once: bool,
    ) -> Result<Batches<'i, N::Input>, MeasureError> {
        let calibration = sparsity.calibration.as_ref();
        let mut calibration = calibration.ok_or(MeasureError::NoCalibration)?.clone();
        let size = |shapes: &[Vec<usize>]| -> usize {
            shapes
                .iter()
                .map(|shape| shape.iter().product::<usize>())
                .sum()
        };
        let rows = self.census.rows.iter();
        let largest = rows.map(|row| size(&row.inputs) + size(&row.outputs)).max();
        let bytes = largest.unwrap_or(0) * size_of::<f32>() * calibration.images;
        if at_once && bytes <= AT_ONCE {
            calibration.batch = calibration.images;
        }
        images(&calibration)
    }

    fn allocate(
        &self,
        sparsity: &Sparsity,
        images: &mut Images<'_, N::Input>,
    ) -> Result<(Option<Allocation>, Budget), MeasureError> {
        let (Some(part), Pattern::Unstructured { rate }) = (&sparsity.allocation, sparsity.pattern)
        else {
            return Ok((None, Budget::default()));
        };
        let (allocator, rate) = (allocate::find(&part.name)?, Rate::new(rate)?);
        let options = allocate::options_of(allocator, &part.options)?;
        if !allocator.needs_trials() {
            let found = allocator.allocate(self.weights, rate, sparsity.rule, &options)?;
            return Ok((Some(found), Budget::default()));
        }
        let batches = self.guide(sparsity, images, false)?;
        let seed = sparsity.calibration.as_ref().map_or(0, |c| c.seed);
        let mut trial = NetworkTrial::new(self, &batches, seed);
        let found = allocator.search(self.weights, rate, sparsity.rule, &options, &mut trial)?;
        let looked = sparsity.calibration.as_ref().map_or(0, |c| c.images);
        Ok((Some(found), Budget::looking(looked, trial.passes)))
    }

    /// Layer by layer, with what each reads.
    fn by_inputs(
        &self,
        Look {
            need,
            dense_inputs,
            moves,
        }: Look,
        sparsity: &Sparsity,
        images: &mut Images<'_, N::Input>,
        choose: &Choose<'_>,
    ) -> Result<Pruned<N>, MeasureError> {
        let (allocation, budget) = self.allocate(sparsity, images)?;
        let batches = self.guide(sparsity, images, true)?;
        let ask = select::Ask {
            pattern: sparsity.pattern,
            allocation: allocation.as_ref(),
            rule: sparsity.rule,
        };
        let sites = subject::sites(self.network, self.census);
        let place: HashMap<&str, usize> = sites
            .iter()
            .enumerate()
            .map(|(place, site)| (site.module.as_str(), place))
            .collect();
        let mut masks: Vec<Option<BitMask>> = vec![None; sites.len()];
        let mut moved = HashMap::new();
        let mut prune = |path: &str, seen: &Seen| -> Result<TensorData, MeasureError> {
            let at = place[path];
            let layer = &self.weights.layers()[at];
            self.progress.unit(at, sites.len(), path);
            let weight = self.weights.weight(at).unwrap_or_default();
            let (pruned, mask) = choose(layer, weight, seen, ask)?;
            let data = subject::stored(&sites[at].info, pruned.clone());
            if moves {
                moved.insert(path.to_owned(), pruned);
            }
            masks[at] = Some(mask);
            Ok(data)
        };
        let room = self.memory.for_results();
        let passes = if dense_inputs {
            let mut each = |path: String, seen: Seen| prune(&path, &seen).map(drop);
            look(
                self.network,
                &batches,
                need,
                self.precision,
                room,
                &mut each,
            )?;
            // That is what the method asks for. How often the images went through for want of memory is none of its cost.
            1
        } else {
            in_order(
                self.network,
                self.census,
                &batches,
                need,
                self.precision,
                room,
                &mut prune,
            )?
        };
        let masks: IndexMap<String, BitMask> = sites
            .iter()
            .zip(masks)
            .filter_map(|(site, mask)| Some((site.key.clone(), mask?)))
            .collect();
        Ok(Pruned {
            network: subject::write_layers(self.network.clone(), self.census, moved, self.device),
            allocation,
            masks,
            training: Vec::new(),
            budget: budget.and(looking(sparsity, passes)),
        })
    }
}

/// What it costs to look at the calibration images so many times.
fn looking(sparsity: &Sparsity, passes: u64) -> Budget {
    let images = sparsity.calibration.as_ref().map_or(0, |c| c.images);
    Budget::looking(images, passes * images as u64)
}

/// One layer by scores.
fn scored(
    criterion: &dyn Criterion,
    layer: &Layer,
    weight: &[f32],
    seen: &Seen,
    ask: select::Ask<'_>,
) -> Result<(Vec<f32>, BitMask), MeasureError> {
    let mask = select_layer(layer, weight, criterion, Some(seen), ask)?;
    let kept = mask.to_keep().into_iter().zip(weight);
    let pruned = kept.map(|(keep, &w)| if keep { w } else { 0.0 }).collect();
    Ok((pruned, mask))
}

/// One layer by a solver.
fn solved(
    solver: &dyn Solver,
    layer: &Layer,
    weight: &[f32],
    seen: &Seen,
    ask: select::Ask<'_>,
) -> Result<(Vec<f32>, BitMask), MeasureError> {
    let wanted = match ask.pattern {
        Pattern::Unstructured { .. } => {
            let zeros = ask.allocation.and_then(|a| a.zeros.get(&layer.path));
            let zeros = zeros.ok_or_else(|| select::SelectError::NoCount {
                path: layer.path.clone(),
            })?;
            problem::Ask::Count(*zeros)
        }
        Pattern::NofM { n, m } => problem::Ask::NofM { n, m },
        Pattern::TransposableNofM { .. } => {
            return Err(MeasureError::SolverPattern(solver.name()));
        }
    };
    let solved = solver::prune(solver, layer, weight, seen, wanted);
    let solved = solved.map_err(|source| MeasureError::Solver {
        layer: layer.path.clone(),
        source,
    })?;
    Ok((solved.weight, solved.mask))
}

//! From a dense network to a sparse one, the same for whoever asks: how much goes from each layer, which weights, how
//! the rest recovers.

mod trial;

use std::collections::HashMap;

use burn::tensor::{Device, TensorData};
use indexmap::IndexMap;
use kernels::{BitMask, Precision};
use model_zoo::Network;
use model_zoo::norm::re_estimate;
use model_zoo::tap::Census;

use crate::allocate::{self, Allocation, Rate};
use crate::cell::{CalibrationCell, Pattern, Sparsity};
use crate::criterion::{self, Chooser};
use crate::inventory::{Layer, Loaded, Weights};
use crate::nofm;
use crate::pipeline::MeasureError;
use crate::progress::Progress;
use crate::reconstruct::Work;
use crate::reconstruct::checkpoint::Checkpoints;
use crate::record::{Budget, UnitOutcome};
use crate::repair;
use crate::seen::{Look, Need, Seen};
use crate::select::{self, Masks, select, select_layer};
use crate::sequential::in_order;
use crate::solver::sparsegpt;
use crate::subject;
use trial::NetworkTrial;

/// The largest input and output of a layer over all images with which a pass takes them all at once.
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
    /// Arithmetic of every pass.
    pub precision: Precision,
    /// Told of layers, units and steps.
    pub progress: &'a Progress,
    /// Where a checkpoint per fitted unit is kept.
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
    /// What all of it took.
    pub budget: Budget,
}

/// Calibration inputs by their description.
pub type Images<'a, I> = dyn FnMut(&CalibrationCell) -> Result<Vec<I>, MeasureError> + 'a;

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
        let (allocation, mut budget) = self.allocate(sparsity, images)?;
        let looked = sparsity.calibration.as_ref().map_or(0, |c| c.images);
        let ask = select::Ask {
            pattern: sparsity.pattern,
            allocation: allocation.as_ref(),
            rule: sparsity.rule,
        };
        let part = &sparsity.criterion;
        let (masks, moved) = match criterion::find(&part.name, &part.options)? {
            Chooser::Scores(criterion) if criterion.needs() == Need::Weights => {
                let masks = select(
                    self.weights,
                    criterion.as_ref(),
                    ask.pattern,
                    ask.allocation,
                    ask.rule,
                )?;
                (masks, HashMap::new())
            }
            chooser => {
                let inputs = self.guide(sparsity, images, true)?;
                let found = self.guided(&chooser, ask, &inputs)?;
                budget = budget.and(Budget::looking(looked, found.passes * looked as u64));
                (found.masks, found.moved)
            }
        };
        let network = subject::write_layers(self.network.clone(), self.census, moved, self.device);
        let mut network = subject::attach(network, self.census, &masks, self.device);
        let mut units = Vec::new();
        if let Some(settings) = &sparsity.reconstruction {
            let batches = images(&settings.calibration)?;
            let work = Work {
                dense: self.network,
                census: self.census,
                masks: &masks,
                batches: &batches,
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
            repair::find(&part.name)?;
            network = re_estimate(
                network,
                self.guide(sparsity, images, false)?,
                self.precision,
            );
            budget = budget.and(Budget::looking(looked, looked as u64));
        }
        Ok(Sparse {
            network,
            allocation,
            masks,
            units,
            budget,
        })
    }

    /// The inputs that choices and repairs look at: in the cell's batches, or at once where memory allows it.
    fn guide(
        &self,
        sparsity: &Sparsity,
        images: &mut Images<'_, N::Input>,
        at_once: bool,
    ) -> Result<Vec<N::Input>, MeasureError> {
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

    /// What a criterion or solver that looks at inputs chooses.
    fn guided(
        &self,
        chooser: &Chooser,
        ask: select::Ask<'_>,
        batches: &[N::Input],
    ) -> Result<Guided, MeasureError> {
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
            let (pruned, mask) = choose_layer(chooser, layer, weight, seen, ask)?;
            let data = subject::stored(&sites[at].info, pruned.clone());
            if matches!(chooser, Chooser::Solver(_)) {
                moved.insert(path.to_owned(), pruned);
            }
            masks[at] = Some(mask);
            Ok(data)
        };
        let passes = if chooser.dense_inputs() {
            let mut look = Look::for_need(chooser.needs(), self.precision);
            for batch in batches {
                crate::interrupt::check()?;
                self.network.run(batch.clone(), &mut look);
            }
            for (path, seen) in look.finish()? {
                prune(&path, &seen)?;
            }
            1
        } else {
            in_order(
                self.network,
                self.census,
                batches,
                chooser.needs(),
                self.precision,
                &mut prune,
            )?
        };
        let layers = self.weights.layers().iter().zip(masks);
        let masks: IndexMap<String, BitMask> = layers
            .filter_map(|(layer, mask)| Some((layer.path.clone(), mask?)))
            .collect();
        Ok(Guided {
            masks,
            moved,
            passes,
        })
    }
}

/// What was chosen while looking at inputs.
struct Guided {
    masks: Masks,
    /// The weights that a solver moved, in the checkpoint's layout, by the layers' paths in the module.
    moved: HashMap<String, Vec<f32>>,
    /// Passes over all images.
    passes: u64,
}

/// One layer's weight after pruning, in the order of its shape, and its mask.
fn choose_layer(
    chooser: &Chooser,
    layer: &Layer,
    weight: &[f32],
    seen: &Seen,
    ask: select::Ask<'_>,
) -> Result<(Vec<f32>, BitMask), MeasureError> {
    match chooser {
        Chooser::Scores(criterion) => {
            let mask = select_layer(layer, weight, criterion.as_ref(), Some(seen), ask)?;
            let kept = mask.to_keep().into_iter().zip(weight);
            let pruned = kept.map(|(keep, &w)| if keep { w } else { 0.0 }).collect();
            Ok((pruned, mask))
        }
        Chooser::Solver(solver) => {
            let wanted = match ask.pattern {
                Pattern::Unstructured { .. } => {
                    let zeros = ask.allocation.and_then(|a| a.zeros.get(&layer.path));
                    let zeros = zeros.ok_or_else(|| select::SelectError::NoCount {
                        path: layer.path.clone(),
                    })?;
                    sparsegpt::Ask::Count(*zeros)
                }
                Pattern::NofM { n, m } => sparsegpt::Ask::NofM { n, m },
                Pattern::TransposableNofM { .. } => {
                    return Err(MeasureError::SolverPattern(solver.name()));
                }
            };
            let solved = solver.solve(layer, weight, seen, wanted);
            let solved = solved.map_err(|source| MeasureError::Solver {
                layer: layer.path.clone(),
                source,
            })?;
            Ok((solved.weight, solved.mask))
        }
    }
}

//! From a plan to its cells.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;

use indexmap::{IndexMap, IndexSet};

use super::{
    CalibrationPlan, Grid, Lookup, Member, PartFacts, Plan, PlanError, Planned, Registry, TaskFacts,
};
use crate::cell::{
    CalibrationCell, Cell, CorrectionCell, Inputs, Key, Pattern, Reconstruction, Rule, Sparsity,
    TaskCell,
};
use crate::options::Chosen;

/// Digests of calibration lists by task, images and seed.
type Lists = HashMap<(String, usize, u64), Option<String>>;

impl Plan {
    /// The cells: dense references first, then grid by grid, models outermost and seeds innermost. A grid that
    /// reconstructs brings the cells it starts from, since a gain is a difference to them. Coinciding cells appear
    /// once, at their first place.
    pub fn expand(&self, registry: &dyn Registry) -> Result<Vec<Planned>, PlanError> {
        let lookup = |place: String| {
            move |reason| PlanError::Lookup {
                file: self.source.clone(),
                place,
                reason,
            }
        };
        let mut tasks: HashMap<&str, TaskFacts> = HashMap::new();
        for grid in self.grids() {
            let task = self.task(grid);
            let place = match &grid.task {
                None => "[task]".into(),
                Some(_) => format!("[[grid]] `{}`", grid.name),
            };
            let facts = match tasks.entry(&task.name) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    entry.insert(registry.task(&task.name).map_err(lookup(place))?)
                }
            };
            if task.samples > facts.available {
                return Err(self.invalid(format!(
                    "task.samples is {}, and the set of task `{}` holds {}; ask for at most that many",
                    task.samples, task.name, facts.available
                )));
            }
        }
        let lists = self.calibration_lists(registry)?;

        let mut digests: HashMap<String, String> = HashMap::new();
        let mut dense = Vec::new();
        let mut sparse = Vec::new();
        for grid in self.grids() {
            let place = || format!("[[grid]] `{}`", grid.name);
            let member = Member {
                grid: grid.name.clone(),
                track: grid.track,
            };
            let task = self.task(grid);
            let facts = &tasks[task.name.as_str()];
            let mut models = IndexSet::new();
            for glob in &grid.models {
                let found = registry.models_matching(glob, &task.name);
                models.extend(found.map_err(lookup(place()))?);
            }
            let sparsities = self.sparsities(grid, registry, &lists, &lookup)?;
            for model in models {
                if !digests.contains_key(&model) {
                    let digest = registry.weights(&model).map_err(lookup(place()))?;
                    digests.insert(model.clone(), digest);
                }
                let task = TaskCell {
                    name: task.name.clone(),
                    version: facts.version,
                    samples: task.samples,
                    data: facts.data.clone(),
                    split: facts.split.clone(),
                    recipe: registry
                        .recipe(&task.name, &model)
                        .map_err(lookup(place()))?,
                };
                let cell = |sparsity| Cell {
                    model: model.clone(),
                    weights: digests[&model].clone(),
                    task: task.clone(),
                    sparsity,
                    precision: self.precision,
                };
                if !grid.dense {
                    for amount in self.rates(grid) {
                        let fits = registry.fits(&model, amount.0);
                        fits.map_err(lookup(place()))?;
                    }
                    for correction in grid.correction.iter().flatten() {
                        let options = correction.options();
                        let layers = options.map_or(&[][..], |options| &options.layers);
                        let place = format!("[[grid]] `{}`: correction.layers", grid.name);
                        let named = registry.layers_named(&model, layers);
                        named.map_err(lookup(place))?;
                    }
                }
                dense.push((cell(None), member.clone()));
                for sparsity in &sparsities {
                    sparse.push((cell(Some(sparsity.clone())), member.clone()));
                }
            }
        }

        let mut cells: IndexMap<Key, Planned> = IndexMap::new();
        for (cell, member) in dense.into_iter().chain(sparse) {
            let key = cell.key();
            let planned = cells.entry(key.clone()).or_insert(Planned {
                key,
                cell,
                grids: Vec::new(),
            });
            if !planned.grids.contains(&member) {
                planned.grids.push(member);
            }
        }
        Ok(cells.into_values().collect())
    }

    /// The grids that count.
    pub(super) fn grids(&self) -> impl Iterator<Item = &Grid> {
        self.grid.iter().filter(|grid| self.full || !grid.full)
    }

    /// The sparse halves of a grid's cells, equal for all its models.
    fn sparsities<E>(
        &self,
        grid: &Grid,
        registry: &dyn Registry,
        lists: &Lists,
        lookup: &impl Fn(String) -> E,
    ) -> Result<Vec<Sparsity>, PlanError>
    where
        E: FnOnce(Box<dyn Error + Send + Sync>) -> PlanError,
    {
        if grid.dense {
            return Ok(Vec::new());
        }
        let place = || format!("[[grid]] `{}`", grid.name);
        let criterion = registry
            .criterion(&grid.criterion)
            .map_err(lookup(place()))?;
        let mut allocators = Vec::new();
        for chosen in &grid.allocators {
            allocators.push(registry.allocator(chosen).map_err(lookup(place()))?);
        }
        let mut repairs = Vec::new();
        for chosen in grid.repair.as_deref().unwrap_or(&[Chosen::plain("none")]) {
            repairs.push(match chosen.name.as_str() {
                "none" => None,
                _ => Some(registry.repair(chosen).map_err(lookup(place()))?),
            });
        }
        if criterion.whole {
            self.suits_whole(grid, &criterion)
                .map_err(|why| self.invalid(format!("[[grid]] `{}`: {why}", grid.name)))?;
        }
        let reconstructions = self.reconstructions(grid, registry, lists)?;
        if criterion.moves
            && reconstructions
                .iter()
                .any(|r| r.correction != CorrectionCell::Off)
        {
            return Err(self.invalid(format!(
                "[[grid]] `{}`: `{}` moves the weights that stay, and the correction would put dense ones back; use correction = [false]",
                grid.name, grid.criterion.name
            )));
        }

        let mut all = Vec::new();
        for amount in self.rates(grid) {
            let allocations: Vec<Option<&PartFacts>> = match amount.0 {
                Pattern::Unstructured { .. } => allocators.iter().map(Some).collect(),
                Pattern::NofM { .. } | Pattern::TransposableNofM { .. } => vec![None],
            };
            for allocation in allocations {
                for &batch_norm in self.batch_norm(grid) {
                    for repair in &repairs {
                        let part = |facts: &PartFacts| facts.part.clone();
                        let parts = [Some(&criterion), allocation, repair.as_ref()];
                        let images = parts.into_iter().flatten().any(|facts| facts.images);
                        let sparsity = Sparsity {
                            pattern: amount.0,
                            allocation: allocation.map(part),
                            criterion: criterion.part.clone(),
                            rule: grid.rule,
                            batch_norm,
                            calibration: None,
                            repair: repair.as_ref().map(part),
                            reconstruction: None,
                        };
                        all.extend(self.runs(grid, sparsity, images, &reconstructions, lists)?);
                    }
                }
            }
        }
        Ok(all)
    }

    /// Why a grid cannot have a whole method.
    fn suits_whole(&self, grid: &Grid, method: &PartFacts) -> Result<(), String> {
        let name = &method.part.name;
        let mut rates = self.rates(grid).iter();
        if let Some(pattern) = rates.find(|amount| amount.0.groups().is_some()) {
            return Err(format!(
                "`{name}` learns how a rate is spread over layers, and the pattern {} fixes it; give it rates, or take another criterion for patterns",
                pattern.0
            ));
        }
        if grid.rule != Rule::Exact {
            return Err(format!("`{name}` counts exactly; use rule = \"exact\""));
        }
        if method.moves && !grid.granularity.is_empty() {
            return Err(format!(
                "`{name}` trains every weight itself, and units would be fitted to a network that it has left behind; remove granularity, or use weights = \"dense\""
            ));
        }
        Ok(())
    }

    /// One way of pruning without reconstruction and with each; where something looks at images, once for each seed.
    fn runs(
        &self,
        grid: &Grid,
        plain: Sparsity,
        images: bool,
        reconstructions: &[Reconstruction],
        lists: &Lists,
    ) -> Result<Vec<Sparsity>, PlanError> {
        let with = |calibration: &Option<CalibrationCell>, reconstruction| Sparsity {
            calibration: calibration.clone(),
            reconstruction,
            ..plain.clone()
        };
        if !images {
            let all = std::iter::once(None).chain(reconstructions.iter().cloned().map(Some));
            return Ok(all
                .map(|reconstruction| with(&None, reconstruction))
                .collect());
        }
        let Some(calibration) = self.calibration(grid) else {
            return Err(self.invalid(format!(
                "[[grid]] `{}`: part of it looks at calibration images; add [calibration] with images and batch",
                grid.name
            )));
        };
        let mut all = Vec::new();
        for &seed in self.seeds(grid) {
            let cell = Some(self.calibration_cell(grid, calibration, seed, lists));
            all.push(with(&cell, None));
            let of_seed = reconstructions
                .iter()
                .filter(|r| r.calibration.seed == seed);
            all.extend(of_seed.map(|r| with(&cell, Some(r.clone()))));
        }
        Ok(all)
    }

    /// The digest of each seed's calibration images, where any grid reconstructs.
    fn calibration_lists(&self, registry: &dyn Registry) -> Result<Lists, PlanError> {
        let mut lists = Lists::new();
        for grid in self.grids() {
            let Some(calibration) = self.calibration(grid) else {
                continue;
            };
            for &seed in self.seeds(grid) {
                let key = (self.task(grid).name.clone(), calibration.images, seed);
                if !self.looks_at_images(grid, registry) || lists.contains_key(&key) {
                    continue;
                }
                let list = registry
                    .calibration(&key.0, calibration.images, seed)
                    .map_err(|reason| PlanError::Lookup {
                        file: self.source.clone(),
                        place: match &grid.calibration {
                            None => "[calibration]".into(),
                            Some(_) => format!("[[grid]] `{}`: calibration", grid.name),
                        },
                        reason,
                    })?;
                lists.insert(key, list);
            }
        }
        Ok(lists)
    }

    /// Whether a grid reconstructs, or names something that looks at images; what it does not know is said later.
    pub(super) fn looks_at_images(&self, grid: &Grid, registry: &dyn Registry) -> bool {
        let looks = |facts: Lookup<PartFacts>| facts.is_ok_and(|facts| facts.images);
        !grid.granularity.is_empty()
            || looks(registry.criterion(&grid.criterion))
            || grid
                .allocators
                .iter()
                .any(|chosen| looks(registry.allocator(chosen)))
            || grid
                .repair
                .iter()
                .flatten()
                .any(|chosen| looks(registry.repair(chosen)))
    }

    fn calibration_cell(
        &self,
        grid: &Grid,
        plan: &CalibrationPlan,
        seed: u64,
        lists: &Lists,
    ) -> CalibrationCell {
        let key = (self.task(grid).name.clone(), plan.images, seed);
        CalibrationCell {
            images: plan.images,
            batch: plan.batch,
            seed,
            list: lists.get(&key).cloned().flatten(),
        }
    }

    fn reconstructions(
        &self,
        grid: &Grid,
        registry: &dyn Registry,
        lists: &Lists,
    ) -> Result<Vec<Reconstruction>, PlanError> {
        let Some(calibration) = self.calibration(grid) else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for &granularity in &grid.granularity {
            let fit = self.fit(grid).map_err(|why| self.invalid(why))?;
            for &inputs in grid.inputs.as_deref().unwrap_or(&[Inputs::Sparse]) {
                for correction in grid.corrections() {
                    for &seed in self.seeds(grid) {
                        all.push(Reconstruction {
                            version: registry.reconstruction_version(),
                            granularity,
                            inputs,
                            correction: correction.clone(),
                            calibration: self.calibration_cell(grid, calibration, seed, lists),
                            fit: fit.clone(),
                        });
                    }
                }
            }
        }
        Ok(all)
    }
}

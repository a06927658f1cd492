//! From a plan to its cells.

use std::collections::HashMap;
use std::error::Error;

use indexmap::{IndexMap, IndexSet};

use super::{Grid, Member, Plan, PlanError, Planned, Registry};
use crate::cell::{
    CalibrationCell, Cell, Inputs, Key, Part, Pattern, Reconstruction, Sparsity, TaskCell,
};

/// Digests of calibration lists by seed.
type Lists = HashMap<u64, Option<String>>;

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
        let facts = registry
            .task(&self.task.name)
            .map_err(lookup("[task]".into()))?;
        if self.task.samples > facts.available {
            return Err(self.invalid(format!(
                "task.samples is {}, and the set of task `{}` holds {}; ask for at most that many",
                self.task.samples, self.task.name, facts.available
            )));
        }
        let lists = self.calibration_lists(registry)?;

        let mut digests: HashMap<String, String> = HashMap::new();
        let mut dense = Vec::new();
        let mut sparse = Vec::new();
        for grid in &self.grid {
            let place = || format!("[[grid]] `{}`", grid.name);
            let member = Member {
                grid: grid.name.clone(),
                track: grid.track,
            };
            let mut models = IndexSet::new();
            for glob in &grid.models {
                models.extend(registry.models_matching(glob).map_err(lookup(place()))?);
            }
            let sparsities = self.sparsities(grid, registry, &lists, &lookup)?;
            for model in models {
                if !digests.contains_key(&model) {
                    let digest = registry.weights(&model).map_err(lookup(place()))?;
                    digests.insert(model.clone(), digest);
                }
                let task = TaskCell {
                    name: self.task.name.clone(),
                    version: facts.version,
                    samples: self.task.samples,
                    data: facts.data.clone(),
                    recipe: registry
                        .recipe(&self.task.name, &model)
                        .map_err(lookup(place()))?,
                };
                let cell = |sparsity| Cell {
                    model: model.clone(),
                    weights: digests[&model].clone(),
                    task: task.clone(),
                    sparsity,
                    precision: self.precision,
                };
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
        let version = registry
            .criterion_version(&grid.criterion)
            .map_err(lookup(place()))?;
        let criterion = Part::plain(&grid.criterion, version);
        let mut allocators = Vec::new();
        for name in &grid.allocators {
            let version = registry.allocator_version(name).map_err(lookup(place()))?;
            allocators.push(Part::plain(name, version));
        }
        let reconstructions = self.reconstructions(grid, registry, lists)?;

        let mut all = Vec::new();
        for amount in self.rates(grid) {
            let allocations: Vec<Option<Part>> = match amount.0 {
                Pattern::Unstructured { .. } => allocators.iter().cloned().map(Some).collect(),
                Pattern::NofM { .. } | Pattern::TransposableNofM { .. } => vec![None],
            };
            for allocation in allocations {
                for reconstruction in
                    std::iter::once(None).chain(reconstructions.iter().cloned().map(Some))
                {
                    all.push(Sparsity {
                        pattern: amount.0,
                        allocation: allocation.clone(),
                        criterion: criterion.clone(),
                        rule: grid.rule,
                        reconstruction,
                    });
                }
            }
        }
        Ok(all)
    }

    /// The digest of each seed's calibration images, where any grid reconstructs.
    fn calibration_lists(&self, registry: &dyn Registry) -> Result<Lists, PlanError> {
        let mut lists = Lists::new();
        let Some(calibration) = &self.calibration else {
            return Ok(lists);
        };
        for grid in &self.grid {
            for &seed in self.seeds(grid) {
                if grid.granularity.is_empty() || lists.contains_key(&seed) {
                    continue;
                }
                let list = registry
                    .calibration(&self.task.name, calibration.images, seed)
                    .map_err(|reason| PlanError::Lookup {
                        file: self.source.clone(),
                        place: "[calibration]".into(),
                        reason,
                    })?;
                lists.insert(seed, list);
            }
        }
        Ok(lists)
    }

    fn reconstructions(
        &self,
        grid: &Grid,
        registry: &dyn Registry,
        lists: &Lists,
    ) -> Result<Vec<Reconstruction>, PlanError> {
        let Some(calibration) = &self.calibration else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for &granularity in &grid.granularity {
            let fit = self.fit(grid).map_err(|why| self.invalid(why))?;
            for &inputs in grid.inputs.as_deref().unwrap_or(&[Inputs::Sparse]) {
                for &correction in grid.correction.as_deref().unwrap_or(&[true]) {
                    for &seed in self.seeds(grid) {
                        all.push(Reconstruction {
                            version: registry.reconstruction_version(),
                            granularity,
                            inputs,
                            correction,
                            calibration: CalibrationCell {
                                images: calibration.images,
                                batch: calibration.batch,
                                seed,
                                list: lists.get(&seed).cloned().flatten(),
                            },
                            fit: fit.clone(),
                        });
                    }
                }
            }
        }
        Ok(all)
    }
}

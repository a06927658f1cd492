//! What can be judged from a plan alone.

use std::fmt;

use super::{
    Amount, CalibrationPlan, FitPreset, Grid, OptimizerName, Plan, PlanError, TaskPlan, empty,
};
use crate::cell::{BatchNorm, Fit, Optimizer, Pattern};

impl Plan {
    /// What can be judged from the plan alone.
    pub(super) fn validate(&self) -> Result<(), PlanError> {
        if self.name.is_empty()
            || !self
                .name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            || self.name.starts_with('.')
        {
            return Err(self.invalid(format!(
                "name = \"{}\" becomes part of file names; use letters, digits, `-`, `_` and `.`",
                self.name
            )));
        }
        self.task.sound().map_err(|why| self.invalid(why))?;
        if let Some(calibration) = &self.calibration {
            calibration
                .sound()
                .map_err(|why| self.invalid(format!("[calibration] {why}")))?;
        }
        for (name, fit) in &self.fit {
            fit.to_fit()
                .map_err(|why| self.invalid(format!("[fit.{name}] {why}")))?;
        }
        if self.grid.is_empty() {
            return Err(
                self.invalid("the plan has no [[grid]], so it has no cells; add one".into())
            );
        }
        for (index, grid) in self.grid.iter().enumerate() {
            self.validate_grid(grid)
                .map_err(|why| self.invalid(format!("[[grid]] `{}`: {why}", grid.name)))?;
            for earlier in &self.grid[..index] {
                if earlier.name == grid.name {
                    return Err(self.invalid(format!(
                        "two [[grid]] are named `{}`; rename or remove one",
                        grid.name
                    )));
                }
                if (Grid {
                    name: grid.name.clone(),
                    ..earlier.clone()
                }) == *grid
                {
                    return Err(self.invalid(format!(
                        "[[grid]] `{}` repeats `{}`; remove one",
                        grid.name, earlier.name
                    )));
                }
            }
        }
        Ok(())
    }

    fn validate_grid(&self, grid: &Grid) -> Result<(), String> {
        if grid.models.is_empty() {
            return Err("models is empty; list at least one".into());
        }
        if grid.rates.as_ref().is_some_and(Vec::is_empty) {
            return Err(empty("rates"));
        }
        if let Some(task) = &grid.task {
            task.sound()?;
        }
        if let Some(calibration) = &grid.calibration {
            calibration
                .sound()
                .map_err(|why| format!("calibration {why}"))?;
        }
        distinct("models", &grid.models)?;
        distinct("allocators", &grid.allocators)?;
        distinct("granularity", &grid.granularity)?;
        if grid.dense {
            let extra = grid.rates.is_some()
                || !grid.allocators.is_empty()
                || !grid.granularity.is_empty()
                || grid.inputs.is_some()
                || grid.correction.is_some()
                || grid.fit.is_some();
            return if extra || grid.batch_norm.is_some() || grid.repair.is_some() {
                Err("dense = true measures the dense networks alone; remove it, or every axis but models".into())
            } else {
                Ok(())
            };
        }
        let rates = self.rates(grid);
        if rates.is_empty() {
            return Err("there are no rates, here or in the plan; list at least one".into());
        }
        let texts: Vec<String> = rates.iter().map(|amount| amount.0.to_string()).collect();
        distinct("rates", &texts)?;
        if grid.allocators.is_empty()
            && let Some(Amount(Pattern::Unstructured { rate })) = rates
                .iter()
                .find(|amount| matches!(amount.0, Pattern::Unstructured { .. }))
        {
            return Err(format!(
                "rate {rate} needs an allocator to spread it over layers; list allocators"
            ));
        }
        if grid.batch_norm.as_ref().is_some_and(Vec::is_empty) {
            return Err(empty("batch_norm"));
        }
        let axes = [
            ("inputs", grid.inputs.as_ref().map(Vec::len)),
            ("correction", grid.correction.as_ref().map(Vec::len)),
            ("fit", grid.fit.as_ref().map(|_| 1)),
            ("seeds", grid.seeds.as_ref().map(Vec::len)),
        ];
        for (axis, length) in axes {
            match length {
                Some(0) => return Err(empty(axis)),
                // Seeds are allowed: they reach a cell through its calibration only, so here they multiply nothing.
                Some(_) if grid.granularity.is_empty() && axis != "seeds" => {
                    return Err(format!(
                        "{axis} is for reconstruction, which needs granularity; add it, or remove {axis}"
                    ));
                }
                _ => {}
            }
        }
        distinct("batch_norm", self.batch_norm(grid))?;
        distinct("repair", grid.repair.as_deref().unwrap_or_default())?;
        let repairs = grid.repair.iter().flatten();
        if let Some(repair) = repairs
            .clone()
            .find(|repair| repair.name == "bn_re_estimation")
            && self.batch_norm(grid).contains(&BatchNorm::Folded)
        {
            return Err(format!(
                "repair `{}` measures batch norms again, and folding removes them; use batch_norm = [\"kept\"]",
                repair.name
            ));
        }
        distinct("inputs", grid.inputs.as_deref().unwrap_or_default())?;
        let corrections = grid.correction.as_deref().unwrap_or_default();
        let mut places = corrections.iter().enumerate();
        if let Some((_, twice)) = places.find(|(place, one)| corrections[..*place].contains(one)) {
            return Err(format!(
                "correction lists {} twice; remove one",
                twice.canonical()
            ));
        }
        distinct("seeds", self.seeds(grid))?;
        if !grid.granularity.is_empty() {
            self.fit(grid)?;
            if self.calibration(grid).is_none() {
                return Err(
                    "reconstruction needs calibration images; add [calibration] with images and batch"
                        .into(),
                );
            }
        }
        Ok(())
    }
}

impl TaskPlan {
    fn sound(&self) -> Result<(), String> {
        match self.samples {
            0 => Err("task.samples is 0, so nothing would be measured; give at least 1".into()),
            _ => Ok(()),
        }
    }
}

impl CalibrationPlan {
    fn sound(&self) -> Result<(), String> {
        match (1..=self.images).contains(&self.batch) {
            true => Ok(()),
            false => Err(format!(
                "has {} images in batches of {}; batch must lie between 1 and images",
                self.images, self.batch
            )),
        }
    }
}

impl FitPreset {
    /// The preset as a cell holds it.
    pub(crate) fn to_fit(&self) -> Result<Fit, String> {
        let finite = |name: &str, value: f64| {
            if value.is_finite() && value >= 0.0 {
                Ok(())
            } else {
                Err(format!("{name} = {value}; give a finite number, 0 or more"))
            }
        };
        finite("lr", self.lr)?;
        finite("bias_lr", self.bias_lr)?;
        finite("early_stop", self.early_stop)?;
        if self.steps == 0 {
            return Err("steps = 0 fits nothing; give at least 1".into());
        }
        let (lr, bias_lr) = (self.lr, self.bias_lr);
        let optimizer = match (self.optimizer, self.momentum) {
            (OptimizerName::Adam, None) => Optimizer::Adam { lr, bias_lr },
            (OptimizerName::Adam, Some(_)) => {
                return Err("adam takes no momentum; remove it, or use optimizer = \"sgd\"".into());
            }
            (OptimizerName::Sgd, Some(momentum)) if (0.0..1.0).contains(&momentum) => {
                Optimizer::Sgd {
                    lr,
                    bias_lr,
                    momentum,
                }
            }
            (OptimizerName::Sgd, Some(momentum)) => {
                return Err(format!("momentum = {momentum}; give a number in [0, 1)"));
            }
            (OptimizerName::Sgd, None) => {
                return Err("sgd needs momentum; the paper's is 0.9".into());
            }
        };
        Ok(Fit {
            optimizer,
            steps: self.steps,
            early_stop: self.early_stop,
        })
    }
}

fn distinct<T: PartialEq + fmt::Debug>(axis: &str, values: &[T]) -> Result<(), String> {
    for (index, value) in values.iter().enumerate() {
        if values[..index].contains(value) {
            return Err(format!("{axis} lists {value:?} twice; remove one"));
        }
    }
    Ok(())
}

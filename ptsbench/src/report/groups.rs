//! Suites whose records may be put beside each other: what the tables and figures over tasks read.

use std::collections::BTreeMap;

use super::TRACK2_ALLOCATOR;
use super::suite::{Found, Model, Suite, Task};
use super::tables::{over_draws, plural};
use crate::cell::TaskCell;
use crate::overall;

/// Below what a task is one of those on which choices are made; its records show in tables of its own alone.
const CHOICES: &str = "_validation";

/// The rates over which a task's MS is a mean in Tables 2 and 4.
pub fn ms_rates(task: Task) -> &'static [f64] {
    match task {
        Task::Classification | Task::Detection => &overall::RATES,
        Task::Generation => &overall::RATES[..1],
    }
}

/// What tasks' records may be put beside each other: procedural ones, or real ones.
pub fn group(task: &TaskCell) -> &'static str {
    match task.name.starts_with("micro") {
        true => "micro",
        false => "real",
    }
}

/// The suites of a group by task: a task's cases are the networks of all its suites.
pub struct Group<'a> {
    /// What ids of tables and figures begin with.
    pub name: &'static str,
    tasks: BTreeMap<Task, Vec<&'a Suite<'a>>>,
}

impl<'a> Group<'a> {
    /// The suites of a task; there may be none.
    pub fn suites(&self, task: Task) -> &[&'a Suite<'a>] {
        self.tasks.get(&task).map_or(&[][..], Vec::as_slice)
    }

    /// The networks that were pruned, as the cases of a task.
    pub fn models(&self, task: Task) -> Found<Vec<&'a Model<'a>>> {
        let suites = self.suites(task);
        let mut names: Vec<&str> = suites.iter().map(|s| s.task.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!(
                "There are several suites of task `{}`. Choose a plan with --plan.",
                twice[0]
            ));
        }
        let models: Vec<_> = suites.iter().flat_map(|s| s.pruned_models()).collect();
        match models.is_empty() {
            true => Err(format!("No record of {}.", task.name())),
            false => Ok(models),
        }
    }

    /// The tasks as plans name them.
    pub fn task_names(&self) -> Vec<&str> {
        let suites = self.tasks.values().flatten();
        suites.map(|suite| suite.task.name.as_str()).collect()
    }

    /// Which networks stand for each task.
    pub fn note(&self) -> String {
        let of_task = |(task, suites): (&Task, &Vec<&Suite<'_>>)| {
            let models: usize = suites.iter().map(|suite| suite.pruned_models().len()).sum();
            let names: Vec<&str> = suites.iter().map(|suite| suite.id.as_str()).collect();
            let models = plural(models, "network");
            format!("{}: {models} of {}", task.name(), names.join(", "))
        };
        let tasks: Vec<String> = self.tasks.iter().map(of_task).collect();
        format!("{}.", tasks.join("; "))
    }

    /// What is left of a task under L2Norm without reconstruction at a rate, in percent: Table 6.
    pub fn kept(&self, task: Task, rate: f64) -> Found<f64> {
        let models = self.models(task)?;
        let mean = over_draws(&models, TRACK2_ALLOCATOR, &[rate], &overall::expectation);
        mean.map(|kept| kept.value)
    }
}

/// Every group with at least two tasks.
pub fn groups<'a>(suites: &'a [Suite<'a>]) -> Vec<Group<'a>> {
    let mut groups: BTreeMap<&'static str, BTreeMap<Task, Vec<&Suite<'_>>>> = BTreeMap::new();
    for suite in suites {
        if !suite.task.name.ends_with(CHOICES) && !suite.pruned_models().is_empty() {
            let group = groups.entry(group(suite.task)).or_default();
            group.entry(suite.kind()).or_default().push(suite);
        }
    }
    groups.retain(|_, tasks| tasks.len() > 1);
    let groups = groups.into_iter();
    groups.map(|(name, tasks)| Group { name, tasks }).collect()
}

//! Which weights of a layer matter least: section 2 of the specification. Scores only; counting and ties are
//! [`crate::select`]'s. What also moves the weights that stay is a [`Solver`]; what learns rates, masks and weights of the
//! whole network together, a whole method.

mod magnitude;
pub mod wanda;

use model_zoo::misspelt::{did_you_mean, nearest};

use crate::cell::Part;
use crate::fcpts::{self, Fcpts};
use crate::inventory::Layer;
use crate::options::{BadOptions, Chosen, Options};
use crate::plan::PartFacts;
use crate::seen::{Need, Seen};
use crate::solver::{self, Solver};

pub use wanda::ComparisonGroup;

/// A score per weight; the lowest go first.
pub trait Criterion: Sync {
    /// Its name in plans and records.
    fn name(&self) -> &'static str;

    /// Measurement version: raised whenever its numbers may change.
    fn version(&self) -> u32 {
        1
    }

    /// One line for `ptsbench list`.
    fn about(&self) -> &'static str;

    /// What it looks at beside the weights.
    fn needs(&self) -> Need {
        Need::Weights
    }

    /// Which scores are compared.
    fn group(&self) -> ComparisonGroup {
        ComparisonGroup::Layer
    }

    /// Whether layers read what the dense network gives them, or what it gives them as pruned so far.
    fn dense_inputs(&self) -> bool {
        false
    }

    /// The scores of one layer, in the order of its weights; `seen` is there where it [needs](Self::needs) something.
    fn scores(
        &self,
        layer: &Layer,
        weight: &[f32],
        seen: Option<&Seen>,
    ) -> Result<Vec<f32>, ScoreError>;

    /// Itself, as these options ask for it.
    fn with(&self, options: &Options) -> Result<Box<dyn Criterion>, BadOptions>;

    /// Its options that differ from the defaults.
    fn options(&self) -> Options {
        Options::new()
    }

    /// All its options.
    fn all_options(&self) -> Options {
        Options::new()
    }
}

/// Why a layer has no scores; the caller adds its name.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScoreError {
    /// Nothing was measured.
    #[error("{0} looks at a layer's inputs, and none were measured; give calibration images")]
    NoInputs(&'static str),
    /// Wanda's.
    #[error(transparent)]
    Wanda(#[from] wanda::WandaError),
}

/// What chooses: by scores alone, or together with the weights that stay.
pub enum Chooser {
    /// Scores.
    Scores(Box<dyn Criterion>),
    /// A layer's weights and mask at once.
    Solver(Box<dyn Solver>),
    /// The rates of all layers too: a whole method, which starts from an allocation and returns another.
    Whole(Fcpts),
}

impl Chooser {
    /// Its name in plans and records.
    pub fn name(&self) -> &'static str {
        match self {
            Chooser::Scores(criterion) => criterion.name(),
            Chooser::Solver(solver) => solver.name(),
            Chooser::Whole(_) => fcpts::NAME,
        }
    }

    /// Its measurement version.
    pub fn version(&self) -> u32 {
        match self {
            Chooser::Scores(criterion) => criterion.version(),
            Chooser::Solver(solver) => solver.version(),
            Chooser::Whole(_) => fcpts::VERSION,
        }
    }

    /// What it looks at, for `ptsbench list`.
    pub fn needs(&self) -> &'static str {
        match self {
            Chooser::Scores(criterion) => criterion.needs().about(),
            Chooser::Solver(_) => Need::Gram.about(),
            Chooser::Whole(_) => Fcpts::NEEDS,
        }
    }

    /// Whether it looks at calibration images.
    pub fn looks(&self) -> bool {
        match self {
            Chooser::Scores(criterion) => criterion.needs() > Need::Weights,
            Chooser::Solver(_) | Chooser::Whole(_) => true,
        }
    }

    /// Whether it moves the weights that stay.
    pub fn moves(&self) -> bool {
        match self {
            Chooser::Scores(_) => false,
            Chooser::Solver(_) => true,
            Chooser::Whole(fcpts) => fcpts.trains(),
        }
    }

    /// One line for `ptsbench list`.
    pub fn about(&self) -> &'static str {
        match self {
            Chooser::Scores(criterion) => criterion.about(),
            Chooser::Solver(solver) => solver.about(),
            Chooser::Whole(_) => Fcpts::ABOUT,
        }
    }

    /// All its options.
    pub fn all_options(&self) -> Options {
        match self {
            Chooser::Scores(criterion) => criterion.all_options(),
            Chooser::Solver(solver) => solver.all_options(),
            Chooser::Whole(fcpts) => fcpts.all_options(),
        }
    }

    /// Its options that differ from the defaults.
    pub fn options(&self) -> Options {
        match self {
            Chooser::Scores(criterion) => criterion.options(),
            Chooser::Solver(solver) => solver.options(),
            Chooser::Whole(fcpts) => fcpts.options(),
        }
    }
}

/// No criterion has this name.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("no criterion is called `{name}`{} (`ptsbench list criteria` shows all)", did_you_mean(.nearest))]
pub struct UnknownCriterion {
    /// The name asked for.
    pub name: String,
    /// The nearest names, best first.
    pub nearest: Vec<&'static str>,
}

/// No such criterion, or not with these options.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CriterionError {
    /// Its name.
    #[error(transparent)]
    Unknown(#[from] UnknownCriterion),
    /// Its options.
    #[error(transparent)]
    Options(#[from] BadOptions),
}

/// Every criterion that gives scores.
pub fn criteria() -> &'static [&'static dyn Criterion] {
    &[&magnitude::Magnitude, &wanda::Wanda::DEFAULT]
}

/// All names: criteria, then solvers, then whole methods.
pub fn names() -> Vec<&'static str> {
    let solvers = solver::solvers().iter().map(|solver| solver.name());
    criteria()
        .iter()
        .map(|criterion| criterion.name())
        .chain(solvers)
        .chain([fcpts::NAME])
        .collect()
}

/// What has this name, as these options ask for it.
pub fn find(name: &str, options: &Options) -> Result<Chooser, CriterionError> {
    if let Some(criterion) = criteria().iter().find(|c| c.name() == name) {
        return Ok(Chooser::Scores(criterion.with(options)?));
    }
    if let Some(solver) = solver::solvers().iter().find(|s| s.name() == name) {
        return Ok(Chooser::Solver(solver.with(options)?));
    }
    if name == fcpts::NAME {
        return Ok(Chooser::Whole(Fcpts::with(options)?));
    }
    Err(UnknownCriterion {
        name: name.to_owned(),
        nearest: nearest(name, names()),
    }
    .into())
}

/// The criterion, solver or whole method of this name as a cell names it.
pub fn facts(chosen: &Chosen) -> Result<PartFacts, CriterionError> {
    let found = find(&chosen.name, &chosen.options)?;
    Ok(PartFacts {
        part: Part {
            options: found.options(),
            ..Part::plain(found.name(), found.version())
        },
        images: found.looks(),
        moves: found.moves(),
        whole: matches!(found, Chooser::Whole(_)),
    })
}

/// Magnitude: what everything uses that names nothing else.
pub fn magnitude() -> &'static dyn Criterion {
    &magnitude::Magnitude
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_misspelt_ones_answered() {
        for name in names() {
            let found = find(name, &Options::new()).unwrap();
            assert_eq!((found.name(), found.options()), (name, Options::new()));
        }
        let error = match find("magnitud", &Options::new()) {
            Err(CriterionError::Unknown(error)) => error,
            _ => panic!("`magnitud` is no criterion"),
        };
        assert_eq!(error.nearest[0], "magnitude");
    }

    #[test]
    fn options_come_back_unless_they_are_the_defaults() {
        let given = Options::from([
            ("group".to_owned(), "layer".into()),
            ("inputs".into(), "sparse".into()),
        ]);
        let found = find("wanda", &given).unwrap();
        assert_eq!(
            found.options(),
            Options::from([("group".to_owned(), "layer".into())])
        );
        assert!(find("magnitude", &given).is_err());
        let Err(error) = find("wanda", &Options::from([("grup".to_owned(), 1.into())])) else {
            panic!("`grup` is no option");
        };
        assert!(error.to_string().contains("`grup`"), "{error}");
    }
}

//! Which weights of a layer matter least: section 2 of the specification. Scores only; counting and ties are
//! [`crate::select`]'s.

mod magnitude;
pub mod wanda;

use crate::allocate::nearest;
use crate::inventory::Layer;

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

    /// The scores of one layer, in the order of its weights.
    fn scores(&self, layer: &Layer, weight: &[f32]) -> Vec<f32>;
}

/// No criterion has this name.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("no criterion is called `{name}`; known: {}; nearest: {}", known(), .nearest.join(", "))]
pub struct UnknownCriterion {
    /// The name asked for.
    pub name: String,
    /// The nearest names, best first.
    pub nearest: Vec<&'static str>,
}

fn known() -> String {
    let names: Vec<&str> = criteria()
        .iter()
        .map(|criterion| criterion.name())
        .collect();
    names.join(", ")
}

/// Every criterion.
pub fn criteria() -> &'static [&'static dyn Criterion] {
    &[&magnitude::Magnitude]
}

/// The criterion of this name.
pub fn find(name: &str) -> Result<&'static dyn Criterion, UnknownCriterion> {
    criteria()
        .iter()
        .copied()
        .find(|criterion| criterion.name() == name)
        .ok_or_else(|| UnknownCriterion {
            name: name.to_owned(),
            nearest: nearest(name, criteria().iter().map(|criterion| criterion.name())),
        })
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_found_and_misspelt_ones_answered() {
        assert_eq!(super::find("magnitude").map(|c| c.name()), Ok("magnitude"));
        let Err(error) = super::find("magnitud") else {
            panic!("`magnitud` is no criterion");
        };
        assert_eq!(error.nearest, ["magnitude"]);
    }
}

//! From scores and counts, or an N:M pattern, to one mask per layer (sections 0.2, 2.2, 2.3).

use indexmap::IndexMap;
use kernels::{
    BitMask, KernelError, Ties, TileLayout, nm_mask, nm_mask_transposable, select_smallest,
};

use crate::allocate::{Allocation, keep_trunc};
use crate::cell::{Pattern, Rule};
use crate::criterion::wanda::select_in_groups;
use crate::criterion::{ComparisonGroup, Criterion, ScoreError};
use crate::inventory::{Layer, Weights};
use crate::seen::Seen;

/// One mask per prunable layer, by path, in the layers' order; each is `[out, everything else]`.
pub type Masks = IndexMap<String, BitMask>;

/// Why there are no masks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SelectError {
    /// Masks need weights.
    #[error("the weights of layer `{path}` are not loaded; masks need a checkpoint")]
    NoWeights {
        /// The layer.
        path: String,
    },
    /// An unstructured pattern without counts.
    #[error("an unstructured mask of layer `{path}` needs its count of zeros; name an allocator")]
    NoCount {
        /// The layer.
        path: String,
    },
    /// A score is NaN.
    #[error("weight {index} of layer `{path}` has a NaN score; check the checkpoint")]
    Nan {
        /// The layer.
        path: String,
        /// Flat index.
        index: usize,
    },
    /// There are no scores.
    #[error("layer `{path}`: {source}")]
    Scores {
        /// The layer.
        path: String,
        /// Why.
        source: ScoreError,
    },
    /// The kernel refused; the layer's name is added.
    #[error("layer `{path}`: {source}")]
    Layer {
        /// The layer.
        path: String,
        /// What it says.
        source: KernelError,
    },
    /// The original release's counting compares the weights of a layer, whatever the criterion.
    #[error(
        "rule `msbench` repeats the original release and compares whole layers; give the criterion group = \"layer\", or use rule `exact`"
    )]
    CompatGroup,
}

/// What decides a layer's mask beside its scores.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// What may go.
    pub pattern: Pattern,
    /// How much from each layer, where the pattern does not decide it.
    pub allocation: Option<&'a Allocation>,
    /// Counting and ties.
    pub rule: Rule,
}

/// Chooses the weights that go, by a criterion that looks at weights alone.
///
/// N:M patterns ignore the allocation; layers they do not divide stay dense. Under [`Rule::Msbench`] the count comes from
/// the layer's *rate* again, and everything at or below the threshold goes, as in the original release.
pub fn select(
    weights: &dyn Weights,
    criterion: &dyn Criterion,
    pattern: Pattern,
    allocation: Option<&Allocation>,
    rule: Rule,
) -> Result<Masks, SelectError> {
    let ask = Ask {
        pattern,
        allocation,
        rule,
    };
    let mut masks = Masks::with_capacity(weights.layers().len());
    for (index, layer) in weights.layers().iter().enumerate() {
        let weight = weights
            .weight(index)
            .ok_or_else(|| SelectError::NoWeights {
                path: layer.path.clone(),
            })?;
        let mask = select_layer(layer, weight, criterion, None, ask)?;
        masks.insert(layer.path.clone(), mask);
    }
    Ok(masks)
}

/// The mask of one layer; `seen` is what it read, where the criterion needs that.
pub fn select_layer(
    layer: &Layer,
    weight: &[f32],
    criterion: &dyn Criterion,
    seen: Option<&Seen>,
    ask: Ask<'_>,
) -> Result<BitMask, SelectError> {
    let path = || layer.path.clone();
    let scores = criterion.scores(layer, weight, seen);
    let mut scores = scores.map_err(|source| SelectError::Scores {
        path: path(),
        source,
    })?;
    // Transposable masks add scores up, so there a zero counts as the lowest that a criterion gives.
    let lowest = match ask.pattern {
        Pattern::TransposableNofM { .. } => 0.0,
        _ => f32::NEG_INFINITY,
    };
    zeros_first(&mut scores, weight, lowest);
    let mask = match ask.pattern {
        Pattern::Unstructured { .. } => {
            let (zeros, ties) = counted(layer, ask.allocation, ask.rule)?;
            match (criterion.group(), ties) {
                (ComparisonGroup::Layer, ties) => {
                    select_smallest(&scores, layer.matrix(), zeros as u64, ties)
                }
                (ComparisonGroup::Row, Ties::KeepLowestIndex) => {
                    select_in_groups(&scores, layer.matrix(), zeros, ComparisonGroup::Row)
                }
                (ComparisonGroup::Row, _) => return Err(SelectError::CompatGroup),
            }
        }
        Pattern::NofM { n, m } => nm_mask(&scores, &layer.shape, n, m),
        Pattern::TransposableNofM { n, m } => {
            nm_mask_transposable(&scores, &layer.shape, n, m, TileLayout::Matrix)
        }
    };
    mask.map_err(|error| match error {
        KernelError::NonFiniteScore { index, .. } => SelectError::Nan {
            path: path(),
            index,
        },
        source => SelectError::Layer {
            path: path(),
            source,
        },
    })
}

fn counted(
    layer: &Layer,
    allocation: Option<&Allocation>,
    rule: Rule,
) -> Result<(usize, Ties), SelectError> {
    let found = allocation.and_then(|allocation| {
        let rate = *allocation.rates.get(&layer.path)?;
        let zeros = *allocation.zeros.get(&layer.path)?;
        Some(match rule {
            Rule::Exact => (zeros, Ties::KeepLowestIndex),
            Rule::Msbench => (keep_trunc(rate, layer.len()), Ties::CompatLe),
        })
    });
    found.ok_or_else(|| SelectError::NoCount {
        path: layer.path.clone(),
    })
}

/// Weights that are zero already go before all others, whatever the criterion says (section 0.1).
fn zeros_first(scores: &mut [f32], weight: &[f32], lowest: f32) {
    for (score, weight) in scores.iter_mut().zip(weight) {
        if *weight == 0.0 {
            *score = lowest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::{Options, Rate, find};
    use crate::criterion;
    use crate::inventory::Loaded;
    use crate::options;
    use model_zoo::LayerKind;

    fn linear(path: &str, shape: [usize; 2], weight: Vec<f32>) -> (Layer, Vec<f32>) {
        let layer = Layer {
            path: path.to_owned(),
            kind: LayerKind::Linear,
            shape: shape.to_vec(),
            groups: 1,
            macs: (shape[0] * shape[1]) as u64,
        };
        (layer, weight)
    }

    /// A criterion that likes zeros best, so that only the rule can prune them first.
    struct Backwards;

    impl Criterion for Backwards {
        fn name(&self) -> &'static str {
            "backwards"
        }

        fn about(&self) -> &'static str {
            "1 - |w|"
        }

        fn scores(
            &self,
            _: &Layer,
            weight: &[f32],
            _: Option<&Seen>,
        ) -> Result<Vec<f32>, ScoreError> {
            Ok(weight.iter().map(|w| 1.0 - w.abs()).collect())
        }

        fn with(
            &self,
            options: &options::Options,
        ) -> Result<Box<dyn Criterion>, options::BadOptions> {
            options::none(self.name(), options)?;
            Ok(Box::new(Backwards))
        }
    }

    fn unstructured(rate: f64) -> Pattern {
        Pattern::Unstructured { rate }
    }

    fn uniform(weights: &Loaded, rate: f64, rule: Rule) -> Allocation {
        let rate = Rate::new(rate).unwrap();
        let uniform = find("uniform").unwrap();
        uniform
            .allocate(weights, rate, rule, &Options::default())
            .unwrap()
    }

    #[test]
    fn existing_zeros_go_first_whatever_the_criterion_says() {
        let weights = Loaded::new([linear("fc", [1, 4], vec![0.9, 0.0, 0.1, -0.0])]).unwrap();
        let allocation = uniform(&weights, 0.5, Rule::Exact);
        let masks = select(
            &weights,
            &Backwards,
            unstructured(0.5),
            Some(&allocation),
            Rule::Exact,
        );
        assert_eq!(masks.unwrap()["fc"].to_keep(), [true, false, true, false]);
        let masks = select(
            &weights,
            &Backwards,
            Pattern::NofM { n: 2, m: 4 },
            None,
            Rule::Exact,
        );
        assert_eq!(masks.unwrap()["fc"].to_keep(), [true, false, true, false]);
    }

    #[test]
    fn the_rules_differ_in_ties_alone() {
        let weights = Loaded::new([linear("fc", [2, 2], vec![1.0, -1.0, 1.0, 2.0])]).unwrap();
        let magnitude = criterion::magnitude();
        let keep = |rule| {
            let allocation = uniform(&weights, 0.5, rule);
            let masks = select(
                &weights,
                magnitude,
                unstructured(0.5),
                Some(&allocation),
                rule,
            );
            masks.unwrap()["fc"].to_keep()
        };
        assert_eq!(keep(Rule::Exact), [true, false, false, true]);
        assert_eq!(keep(Rule::Msbench), [false, false, false, true]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let magnitude = criterion::magnitude();
        let weights = Loaded::new([linear("fc", [1, 2], vec![1.0, f32::NAN])]).unwrap();
        let run = |allocation: Option<&Allocation>| {
            select(
                &weights,
                magnitude,
                unstructured(0.5),
                allocation,
                Rule::Exact,
            )
        };
        let path = "fc".to_owned();
        assert_eq!(run(None), Err(SelectError::NoCount { path: path.clone() }));
        let allocation = uniform(&weights, 0.5, Rule::Exact);
        assert_eq!(
            run(Some(&allocation)),
            Err(SelectError::Nan {
                path: path.clone(),
                index: 1
            })
        );
        let shapes: Vec<Layer> = weights.layers().to_vec();
        assert_eq!(
            select(
                &shapes,
                magnitude,
                Pattern::NofM { n: 2, m: 4 },
                None,
                Rule::Exact
            ),
            Err(SelectError::NoWeights { path })
        );
    }
}

//! EvoPress's search (section 1.8): allocations that breed, judged by the network's loss on ever more images.
//!
//! A state is the zeros of every layer. It moves in steps of one size for all layers, always one up and one down, so that
//! every state ever judged has exactly the zeros that the first one had.

use std::collections::HashSet;

use super::{AllocateError, Allocation, Allocator, Limits, Options, Rate, Trial};
use crate::cell::Rule;
use crate::inventory::{Layer, Weights};
use crate::seed::Stream;

/// The allocator: starts from another's allocation and keeps its zeros exactly.
pub(super) struct EvoPress;

impl Allocator for EvoPress {
    fn name(&self) -> &'static str {
        "evopress"
    }

    fn about(&self) -> &'static str {
        "evolution: layers trade zeros, judged by the network's outputs on calibration images (no labels)"
    }

    fn needs_weights(&self) -> bool {
        true
    }

    fn needs_trials(&self) -> bool {
        true
    }

    fn takes(&self) -> &'static [&'static str] {
        &["from", "generations", "offspring", "stages", "erk_power"]
    }

    fn allocate(
        &self,
        _: &dyn Weights,
        _: Rate,
        _: Rule,
        _: &Options,
    ) -> Result<Allocation, AllocateError> {
        Err(AllocateError::NeedsTrials {
            allocator: self.name(),
        })
    }

    fn search(
        &self,
        weights: &dyn Weights,
        rate: Rate,
        rule: Rule,
        options: &Options,
        trial: &mut dyn Trial,
    ) -> Result<Allocation, AllocateError> {
        let refuse = |why: String| AllocateError::Search {
            allocator: self.name(),
            why,
        };
        let first = super::find(&options.from)?;
        if first.needs_trials() {
            return Err(refuse(format!(
                "a search cannot start from `{}`, which is a search itself; use from = \"l2norm\" or \"erk\"",
                options.from
            )));
        }
        if rule != Rule::Exact {
            return Err(refuse("counts are exact here; use rule `exact`".to_owned()));
        }
        let start = first.allocate(weights, rate, rule, options)?;
        let layers = weights.layers();
        let limits = Limits::new(layers, options)?;
        let places: Vec<Place> = layers
            .iter()
            .zip(start.zeros.values())
            .zip(&limits.most)
            .map(|((layer, &zeros), &most)| Place {
                len: layer.len(),
                most,
                zeros,
            })
            .collect();
        let stages = options.stages.iter();
        let settings = Settings {
            generations: options.generations,
            offspring: options.offspring,
            stages: stages
                .map(|&[images, survivors]| Stage { images, survivors })
                .collect(),
        };
        let draws = trial.draws();
        // One trial serves the losses and the reports, which never come at once.
        let trial = std::cell::RefCell::new(trial);
        let found = search(
            &places,
            &settings,
            draws,
            |zeros, images| trial.borrow_mut().loss(zeros, images),
            |generation| trial.borrow_mut().watch(generation, settings.generations),
        );
        let found = found.map_err(|error| match error {
            SearchError::Loss(error) => AllocateError::Trial(error),
            other => refuse(other.to_string()),
        })?;
        let rate = |(layer, &zeros): (&Layer, &usize)| zeros as f64 / layer.len().max(1) as f64;
        let rates = layers.iter().zip(&found.zeros).map(rate).collect();
        Ok(Allocation {
            losses: found.losses,
            ..Allocation::new(layers, rates, found.zeros)
        })
    }
}

/// Judges all offspring on some images, and passes on the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Calibration images.
    pub images: usize,
    /// How many go on.
    pub survivors: usize,
}

/// What can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Generations.
    pub generations: usize,
    /// Offspring of each.
    pub offspring: usize,
    /// Selection within a generation. The last stage has one survivor and hears the parent too.
    pub stages: Vec<Stage>,
}

impl Default for Settings {
    fn default() -> Self {
        let stage = |images, survivors| Stage { images, survivors };
        Self {
            generations: 100,
            offspring: 64,
            stages: vec![stage(64, 8), stage(256, 2), stage(1024, 1)],
        }
    }
}

/// A layer as the search sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its weights.
    pub len: usize,
    /// The most zeros it may have: `len`, or less under a cap, or 0 if it stays dense.
    pub most: usize,
    /// The zeros it starts with.
    pub zeros: usize,
}

/// What a generation came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generation<'a> {
    /// Its number; 0 is the initial allocation.
    pub index: usize,
    /// The parent's loss on the last stage's images from here on.
    pub loss: f64,
    /// Whether an offspring took the parent's place.
    pub improved: bool,
    /// The parent's zeros from here on.
    pub zeros: &'a [usize],
}

/// The best allocation.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Zeros of each layer.
    pub zeros: Vec<usize>,
    /// The best loss on the last stage's images: the initial allocation's, then after each generation.
    pub losses: Vec<f64>,
    /// Forward passes: images summed over all states judged.
    pub images: u64,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SearchError<E> {
    /// A layer starts with more zeros than it may have.
    #[error(
        "layer {layer} starts with {zeros} zeros and may have {most} of its {len} weights; start from an allocation \
         under the same caps"
    )]
    Start {
        /// Position of the layer.
        layer: usize,
        /// Its zeros.
        zeros: usize,
        /// The most it may have.
        most: usize,
        /// Its weights.
        len: usize,
    },
    /// Stages that cannot be.
    #[error(
        "selection stages {found} do not narrow {offspring} offspring down to one; give survivors that fall to 1, and at \
         least one image each"
    )]
    Stages {
        /// Images and survivors of each.
        found: String,
        /// Offspring.
        offspring: usize,
    },
    /// The loss could not be had.
    #[error(transparent)]
    Loss(E),
}

/// The weights a layer gains or loses in a step: `max(1, N / 2000)`.
pub fn step_of(total: usize) -> usize {
    (total / 2000).max(1)
}

/// Searches from the initial allocation in `places`.
///
/// `loss(zeros, images)` judges an allocation on the first so many calibration images; it must give the same for the same,
/// and its error ends the search. A loss that is NaN counts as infinite. `watch` hears of every generation. Layers with
/// fewer weights than a step keep their zeros.
pub fn search<E>(
    places: &[Place],
    settings: &Settings,
    mut draws: Stream,
    mut loss: impl FnMut(&[usize], usize) -> Result<f64, E>,
    mut watch: impl FnMut(&Generation),
) -> Result<Found, SearchError<E>> {
    let full = check(places, settings)?;
    let step = step_of(places.iter().map(|place| place.len).sum());
    let mut images_seen = 0;
    let mut judge = |zeros: &[usize], images: usize| {
        images_seen += images as u64;
        let loss = loss(zeros, images).map_err(SearchError::Loss)?;
        Ok(if loss.is_nan() { f64::INFINITY } else { loss })
    };

    let mut parent: Vec<usize> = places.iter().map(|place| place.zeros).collect();
    let mut best = judge(&parent, full)?;
    let mut losses = vec![best];
    watch(&Generation {
        index: 0,
        loss: best,
        improved: false,
        zeros: &parent,
    });
    for index in 1..=settings.generations {
        let mut candidates = offspring(places, &parent, step, settings.offspring, &mut draws);
        let mut improved = false;
        for (number, stage) in settings.stages.iter().enumerate() {
            let mut judged = candidates
                .into_iter()
                .map(|zeros| Ok((judge(&zeros, stage.images)?, zeros)))
                .collect::<Result<Vec<_>, _>>()?;
            // Equal losses keep the order of birth; the parent, judged already, stays unless it is beaten.
            judged.sort_by(|a, b| a.0.total_cmp(&b.0));
            if number + 1 == settings.stages.len()
                && let Some((loss, zeros)) = judged.first()
                && *loss < best
            {
                (best, parent, improved) = (*loss, zeros.clone(), true);
            }
            judged.truncate(stage.survivors);
            candidates = judged.into_iter().map(|(_, zeros)| zeros).collect();
        }
        losses.push(best);
        watch(&Generation {
            index,
            loss: best,
            improved,
            zeros: &parent,
        });
    }
    Ok(Found {
        zeros: parent,
        losses,
        images: images_seen,
    })
}

/// The images of the last stage.
fn check<E>(places: &[Place], settings: &Settings) -> Result<usize, SearchError<E>> {
    for (layer, &Place { len, most, zeros }) in places.iter().enumerate() {
        if zeros > most || most > len {
            return Err(SearchError::Start {
                layer,
                zeros,
                most,
                len,
            });
        }
    }
    let mut before = settings.offspring;
    let falls = settings.stages.iter().all(|stage| {
        let fine = (1..=before).contains(&stage.survivors) && stage.images > 0;
        before = stage.survivors;
        fine
    });
    match settings.stages.last() {
        Some(last) if falls && last.survivors == 1 => Ok(last.images),
        _ => {
            let stages = settings.stages.iter();
            let found = stages.map(|stage| format!("{}:{}", stage.images, stage.survivors));
            Err(SearchError::Stages {
                found: format!("[{}]", found.collect::<Vec<_>>().join(", ")),
                offspring: settings.offspring,
            })
        }
    }
}

/// Draws for one offspring before it is given up: where a few layers leave few neighbours, there may be no new one.
const TRIES: usize = 32;

/// At most `count` neighbours of the parent, all different and none the parent itself.
fn offspring(
    places: &[Place],
    parent: &[usize],
    step: usize,
    count: usize,
    draws: &mut Stream,
) -> Vec<Vec<usize>> {
    let mut known = HashSet::from([parent.to_vec()]);
    let mut born = Vec::with_capacity(count);
    for _ in 0..count {
        let new = (0..TRIES).find_map(|_| {
            let child = mutated(places, parent, step, draws)?;
            known.insert(child.clone()).then_some(child)
        });
        born.extend(new);
    }
    born
}

/// One to three steps, each down in one layer and up in another: `min(U{1,2,3}, U{1,2,3})` of them. `None` where some step
/// finds no layer.
fn mutated(
    places: &[Place],
    parent: &[usize],
    step: usize,
    draws: &mut Stream,
) -> Option<Vec<usize>> {
    let mut zeros = parent.to_vec();
    for _ in 0..draws.between(1, 3).min(draws.between(1, 3)) {
        // A layer with fewer weights than a step has room for none, up or down: it is frozen.
        let downs = (0..zeros.len()).filter(|&layer| zeros[layer] >= step);
        let down = pick(downs, draws)?;
        let room = |layer: usize| places[layer].most - zeros[layer];
        let ups = (0..zeros.len()).filter(|&layer| layer != down && room(layer) >= step);
        let up = pick(ups, draws)?;
        zeros[down] -= step;
        zeros[up] += step;
    }
    Some(zeros)
}

fn pick(layers: impl Iterator<Item = usize>, draws: &mut Stream) -> Option<usize> {
    let layers: Vec<usize> = layers.collect();
    (!layers.is_empty()).then(|| layers[draws.below(layers.len() as u64) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    const LENS: [usize; 8] = [900, 40_000, 25_000, 4, 60_000, 10_000, 33_000, 31_096];

    /// `N = 200,000`, so a step is 100 weights; the layer of 4 is frozen.
    fn places() -> Vec<Place> {
        LENS.iter()
            .map(|&len| Place {
                len,
                most: len,
                zeros: len / 2,
            })
            .collect()
    }

    /// Steps that each layer is away from its start at the optimum; they sum to 0.
    const OPTIMUM: [i64; 8] = [-2, 12, -9, 0, 3, 14, -18, 0];

    /// A convex loss of each layer, with its own curvature. Fewer images add an error of their own.
    fn convex(zeros: &[usize], images: usize) -> f64 {
        let layers = zeros.iter().zip(LENS).zip(OPTIMUM).enumerate();
        let sum: f64 = layers
            .map(|(layer, ((&zeros, len), optimum))| {
                let steps = (zeros as i64 - (len / 2) as i64) / 100 - optimum;
                (1.0 + layer as f64) * (steps * steps) as f64
            })
            .sum();
        let noise = zeros.iter().fold(images, |hash, z| hash * 31 % 1009 + z) % 7;
        sum + if images < 1024 {
            noise as f64 / images as f64
        } else {
            0.0
        }
    }

    fn stream(seed: u64) -> Stream {
        Seed(seed).stream("evopress")
    }

    type Outcome = Result<Found, SearchError<String>>;

    fn convex_search(seed: u64, settings: &Settings) -> Outcome {
        search(
            &places(),
            settings,
            stream(seed),
            |zeros, images| Ok(convex(zeros, images)),
            |_| {},
        )
    }

    #[test]
    fn it_reaches_the_optimum_of_a_separable_convex_loss() {
        for seed in 0..3 {
            let found = convex_search(seed, &Settings::default()).unwrap();
            let expected: Vec<usize> = (0..8)
                .map(|layer| (LENS[layer] as i64 / 2 + 100 * OPTIMUM[layer]) as usize)
                .collect();
            assert_eq!((found.losses[100], found.zeros), (0.0, expected));
            assert!(found.losses[0] > 1000.0);
        }
    }

    #[test]
    fn every_state_has_the_same_zeros_within_the_layers_and_frozen_ones_never_move() {
        let mut start = places();
        // Layers at their borders, one under a cap, one dense.
        start[1].zeros = 0;
        start[2].zeros = 25_000;
        start[4].most = 30_050;
        (start[5].most, start[5].zeros) = (0, 0);
        let total: usize = start.iter().map(|place| place.zeros).sum();
        let mut calls = 0;
        // Every state is better than all before it, so that the search drifts as far as it can.
        let found = search(
            &start,
            &Settings::default(),
            stream(1),
            |zeros, _| {
                calls += 1;
                assert_eq!(zeros.iter().sum::<usize>(), total);
                for (zeros, place) in zeros.iter().zip(&start) {
                    assert!(*zeros <= place.most);
                    assert_eq!(zeros % 100, place.zeros % 100);
                }
                assert_eq!((zeros[3], zeros[5]), (2, 0));
                Ok::<_, String>(-f64::from(calls))
            },
            |_| {},
        );
        assert_ne!(found.unwrap().zeros[4], 30_000);
        assert_eq!(calls, 1 + 100 * (64 + 8 + 2));
    }

    #[test]
    fn stages_narrow_and_the_best_on_all_images_never_worsens() {
        let mut judged: Vec<(usize, f64)> = Vec::new();
        let mut heard = Vec::new();
        let settings = Settings {
            generations: 30,
            ..Settings::default()
        };
        let found = search(
            &places(),
            &settings,
            stream(5),
            |zeros, images| {
                // The few images of the first stage mislead: they like what the others do not.
                let loss = convex(zeros, images) * if images == 64 { -1.0 } else { 1.0 };
                judged.push((images, loss));
                Ok::<_, String>(loss)
            },
            |generation| heard.push((generation.index, generation.loss, generation.improved)),
        )
        .unwrap();
        assert_eq!(heard.len(), 31);
        let mut least = judged[0].1;
        assert_eq!((judged[0].0, heard[0]), (1024, (0, least, false)));
        for (calls, told) in judged[1..].chunks(64 + 8 + 2).zip(&heard[1..]) {
            let images: Vec<usize> = calls.iter().map(|call| call.0).collect();
            assert_eq!(images[..64], [64; 64]);
            assert_eq!(
                images[64..],
                [256, 256, 256, 256, 256, 256, 256, 256, 1024, 1024]
            );
            let born = calls[72].1.min(calls[73].1);
            assert_eq!((told.1, told.2), (least.min(born), born < least));
            least = told.1;
        }
        let told: Vec<f64> = heard.iter().map(|(_, loss, _)| *loss).collect();
        assert_eq!(found.losses, told);
        let images: usize = judged.iter().map(|call| call.0).sum();
        assert_eq!(found.images, images as u64);
    }

    #[test]
    fn offspring_are_new_and_near() {
        let (places, mut draws) = (places(), stream(2));
        let parent: Vec<usize> = places.iter().map(|place| place.zeros).collect();
        let born = offspring(&places, &parent, 100, 64, &mut draws);
        assert_eq!(born.len(), 64);
        let mut pairs = [0; 4];
        for (index, child) in born.iter().enumerate() {
            assert!(child != &parent && !born[..index].contains(child));
            let moved = child.iter().zip(&parent).map(|(a, b)| a.abs_diff(*b));
            pairs[moved.sum::<usize>() / 200] += 1;
        }
        // min(U, U) is 1, 2, 3 with 5/9, 3/9, 1/9.
        assert!(
            pairs[0] == 0 && pairs[1] > pairs[2] && pairs[2] > pairs[3],
            "{pairs:?}"
        );
        // Two layers that can move have few neighbours; one has none.
        let two = &places[..2];
        assert_eq!(offspring(two, &[450, 20_000], 500, 64, &mut draws).len(), 0);
        let few = offspring(two, &[300, 20_000], 100, 64, &mut draws);
        assert_eq!(few.len(), 6);
        assert!(offspring(&places[..1], &[450], 100, 64, &mut draws).is_empty());
        // Between two layers every pair moves something: only two pairs, one undoing the other, end where they began, in
        // 1/3 x 1/2 of all cases.
        let idle = (0..3_000).filter(|_| {
            let child = mutated(two, &[400, 20_000], 100, &mut draws);
            child.unwrap() == [400, 20_000]
        });
        let idle = idle.count();
        assert!((400..600).contains(&idle), "{idle}");
    }

    #[test]
    fn a_seed_is_a_result() {
        let settings = Settings {
            generations: 6,
            ..Settings::default()
        };
        assert_eq!(convex_search(3, &settings), convex_search(3, &settings));
        assert_ne!(convex_search(3, &settings), convex_search(4, &settings));
        let none = Settings {
            generations: 0,
            ..Settings::default()
        };
        let found = convex_search(3, &none).unwrap();
        assert_eq!(
            (found.losses.len(), found.zeros[0], found.images),
            (1, 450, 1024)
        );
    }

    #[test]
    fn the_losss_error_ends_it_and_nan_is_the_worst() {
        let mut calls = 0;
        let stopped: Outcome = search(
            &places(),
            &Settings::default(),
            stream(0),
            |_, _| {
                calls += 1;
                if calls == 70 {
                    Err("stopped".to_owned())
                } else {
                    Ok(0.0)
                }
            },
            |_| {},
        );
        assert_eq!(stopped, Err(SearchError::Loss("stopped".to_owned())));
        assert_eq!(calls, 70);

        let start: Vec<usize> = places().iter().map(|place| place.zeros).collect();
        let found = search(
            &places(),
            &Settings::default(),
            stream(0),
            |zeros, _| Ok::<_, String>(if zeros == start { 1.0 } else { -f64::NAN }),
            |_| {},
        );
        assert_eq!(found.unwrap().zeros, start);
    }

    #[test]
    fn starts_and_stages_that_cannot_be_are_named() {
        let mut start = places();
        start[2].most = 12_000;
        let run = |start: &[Place], stages: &[(usize, usize)]| -> String {
            let stages = stages.iter();
            let settings = Settings {
                stages: stages
                    .map(|&(images, survivors)| Stage { images, survivors })
                    .collect(),
                ..Settings::default()
            };
            let outcome: Outcome = search(start, &settings, stream(0), |_, _| Ok(0.0), |_| {});
            outcome.unwrap_err().to_string()
        };
        let message = run(&start, &[(1024, 1)]);
        assert!(
            message.contains("layer 2 starts with 12500 zeros and may have 12000"),
            "{message}"
        );
        for stages in [
            &[][..],
            &[(64, 2)],
            &[(64, 2), (256, 4), (1024, 1)],
            &[(0, 1)],
            &[(8, 65), (8, 1)],
        ] {
            let message = run(&places(), stages);
            assert!(message.contains("do not narrow 64 offspring"), "{message}");
        }
    }

    #[test]
    fn a_step_is_a_two_thousandth() {
        assert_eq!(
            [0, 1, 3_999, 4_000, 11_689_512].map(step_of),
            [1, 1, 1, 2, 5_844]
        );
    }
}

use super::*;
use crate::inventory::Loaded;
use crate::seed::Seed;
use model_zoo::LayerKind;
use proptest::prelude::*;

pub(crate) fn layer(path: &str, shape: &[usize]) -> Layer {
    Layer {
        path: path.to_owned(),
        kind: if shape.len() == 4 {
            LayerKind::Conv
        } else {
            LayerKind::Linear
        },
        shape: shape.to_vec(),
        groups: 1,
        macs: 0,
    }
}

/// Weights of unequal spread, so that global selections are not uniform.
fn loaded(shapes: &[Vec<usize>], seed: u64) -> Loaded {
    let mut draw = Seed(seed).stream("weights");
    Loaded::new(shapes.iter().enumerate().map(|(index, shape)| {
        let layer = layer(&format!("layer{index}"), shape);
        let spread = 1.0 + index as f32;
        let weights = (0..layer.len()).map(|_| (draw.unit() - 0.5) * spread);
        let weights = weights.collect();
        (layer, weights)
    }))
    .expect("lengths follow shapes")
}

fn shapes() -> impl Strategy<Value = Vec<Vec<usize>>> {
    let conv = (1usize..20, 1usize..20, 1usize..4).prop_map(|(o, i, k)| vec![o, i, k, k]);
    let linear = (1usize..40, 1usize..40).prop_map(|(o, i)| vec![o, i]);
    proptest::collection::vec(prop_oneof![conv, linear], 1..8)
}

proptest! {
    /// Sum z = Z, or an error that names a rate which is then reached.
    #[test]
    fn every_allocator_meets_the_budget_or_names_the_largest(
        shapes in shapes(),
        seed in 0u64..100,
        rate in 0.0f64..0.99,
        max_rate in 0.3f64..=1.0,
        dense in proptest::option::of(0usize..8),
    ) {
        let weights = loaded(&shapes, seed);
        let dense: Vec<usize> = dense.into_iter().filter(|&d| d < shapes.len()).collect();
        let options = Options {
            dense: dense.iter().map(|d| format!("layer{d}")).collect(),
            max_rate,
            ..Options::default()
        };
        // Searches keep the budget of what they start from: `evopress.rs` tests that.
        for allocator in allocators().iter().filter(|allocator| !allocator.needs_trials()) {
            let allocate = |rate| allocator.allocate(&weights, Rate::new(rate).unwrap(), Rule::Exact, &options);
            let (rate, allocation) = match allocate(rate) {
                Ok(allocation) => (rate, allocation),
                Err(AllocateError::Unreachable { largest, .. }) => {
                    prop_assert!(largest < rate);
                    // Just below the largest, as a user would type it; ERK's own capping may still lower the border.
                    let lower = (largest * 1e6).floor() / 1e6;
                    match allocate(lower) {
                        Ok(allocation) => (lower, allocation),
                        Err(error) => {
                            prop_assert!(allocator.name().starts_with("erk"), "{}: {error}", allocator.name());
                            continue;
                        }
                    }
                }
                Err(AllocateError::Erk(_)) => continue,
                Err(other) => return Err(TestCaseError::fail(format!("{}: {other}", allocator.name()))),
            };
            let budget = Rate::new(rate).unwrap().zeros(weights.total());
            prop_assert_eq!(allocation.total_zeros(), budget, "{}", allocator.name());
            for (index, layer) in weights.layers().iter().enumerate() {
                let most = (max_rate * layer.len() as f64 + 1e-9).floor() as usize;
                let most = if dense.contains(&index) { 0 } else { most };
                prop_assert!(allocation.zeros[&layer.path] <= most, "{}", allocator.name());
            }
        }
    }

    /// The budget as a whole never falls when the rate rises (a single layer's count may).
    #[test]
    fn totals_rise_with_the_rate(shapes in shapes(), low in 0.0f64..0.98, step in 0.0f64..0.02) {
        let weights = loaded(&shapes, 0);
        for name in ["uniform", "l2norm"] {
            let total = |rate| {
                let rate = Rate::new(rate).unwrap();
                let allocation = find(name).unwrap().allocate(&weights, rate, Rule::Exact, &Options::default());
                allocation.unwrap().total_zeros()
            };
            prop_assert!(total(low) <= total(low + step));
        }
    }
}

#[test]
fn rates_are_checked_at_the_border() {
    assert_eq!("0.7".parse::<Rate>().map(Rate::get), Ok(0.7));
    assert_eq!(Rate::new(0.7).unwrap().zeros(10), 7);
    for bad in ["1", "-0.1", "NaN", "half"] {
        assert!(bad.parse::<Rate>().is_err(), "{bad}");
    }
    assert!(serde_json::from_str::<Rate>("1.5").is_err());
}

#[test]
fn an_unknown_allocator_is_answered_with_the_nearest() {
    let Err(AllocateError::Unknown { nearest, .. }) = find("l2-norm") else {
        panic!("`l2-norm` is no allocator");
    };
    assert_eq!(nearest[0], "l2norm");
    for allocator in allocators() {
        assert!(find(allocator.name()).is_ok());
    }
}

#[test]
fn dense_layers_leave_the_largest_reachable_rate() {
    let layers = vec![layer("a", &[4, 10]), layer("b", &[6, 10])];
    let options = Options {
        dense: vec!["b".to_owned()],
        ..Options::default()
    };
    let uniform = find("uniform").unwrap();
    let allocate =
        |rate| uniform.allocate(&layers, Rate::new(rate).unwrap(), Rule::Exact, &options);
    assert_eq!(allocate(0.2).unwrap().zeros["a"], 20);
    assert_eq!(allocate(0.4).unwrap().zeros["a"], 40);
    assert_eq!(
        allocate(0.5),
        Err(AllocateError::Unreachable {
            rate: 0.5,
            needed: 50,
            reachable: 40,
            largest: 0.4
        })
    );
}

#[test]
fn caps_push_zeros_into_other_layers() {
    let layers = vec![layer("a", &[10, 10]), layer("b", &[10, 10])];
    let options = Options {
        max_rate_of: [("a".to_owned(), 0.25)].into_iter().collect(),
        ..Options::default()
    };
    for name in ["uniform", "erk"] {
        let allocation = find(name)
            .unwrap()
            .allocate(&layers, Rate::new(0.5).unwrap(), Rule::Exact, &options)
            .unwrap();
        assert_eq!(allocation.zeros["a"], 25, "{name}");
        assert_eq!(allocation.zeros["b"], 75, "{name}");
    }
}

#[test]
fn bad_options_and_weights_are_named() {
    let layers = vec![layer("stem.conv", &[4, 4]), layer("fc", &[4, 4])];
    let rate = Rate::new(0.5).unwrap();
    let run = |name: &str, weights: &dyn Weights, options: Options| {
        find(name)
            .unwrap()
            .allocate(weights, rate, Rule::Exact, &options)
    };
    let misspelt = Options {
        dense: vec!["stem.cnv".to_owned()],
        ..Options::default()
    };
    assert!(matches!(
        run("uniform", &layers, misspelt),
        Err(AllocateError::UnknownLayer { option: "dense", nearest, .. }) if nearest[0] == "stem.conv"
    ));
    let capped = Options {
        max_rate: 1.5,
        ..Options::default()
    };
    assert!(matches!(
        run("uniform", &layers, capped),
        Err(AllocateError::BadOption { found: 1.5, .. })
    ));
    assert_eq!(
        run("l1norm", &layers, Options::default()),
        Err(AllocateError::NeedsWeights {
            allocator: "l1norm",
            path: "stem.conv".to_owned()
        })
    );
    let broken = layers.iter().cloned().map(|layer| {
        let mut weights = vec![1.0; layer.len()];
        if layer.path == "fc" {
            weights[3] = f32::NAN;
        }
        (layer, weights)
    });
    let broken = Loaded::new(broken).unwrap();
    assert!(matches!(
        run("magnitude", &broken, Options::default()),
        Err(AllocateError::NotFinite { path, index: 3, .. }) if path == "fc"
    ));
}

#[test]
fn a_layer_of_norm_zero_goes_first() {
    let weights = Loaded::new([
        (layer("a", &[1, 4]), vec![1.0, 2.0, 3.0, 4.0]),
        (layer("b", &[1, 4]), vec![0.0; 4]),
    ])
    .unwrap();
    for name in ["magnitude", "l1norm", "l2norm"] {
        let rate = Rate::new(0.5).unwrap();
        let allocation = find(name)
            .unwrap()
            .allocate(&weights, rate, Rule::Exact, &Options::default())
            .unwrap();
        assert_eq!(
            (allocation.zeros["a"], allocation.zeros["b"]),
            (0, 4),
            "{name}"
        );
    }
}

/// Learned thresholds give exactly the budget, whatever they are: the lowest `|w| / t`, under the caps.
#[test]
fn thresholds_become_exact_counts() {
    use crate::inventory::Loaded;
    use crate::seed::Seed;

    let mut draws = Seed(11).stream("thresholds");
    for case in 0..200 {
        let count = 1 + draws.below(6) as usize;
        let layers: Vec<_> = (0..count)
            .map(|at| {
                let len = 1 + draws.below(80) as usize;
                let scale = draws.unit() + 0.01;
                let weight = (0..len).map(|_| draws.normal() * scale).collect();
                (layer(&format!("l{at}"), &[len, 1]), weight)
            })
            .collect();
        let weights = Loaded::new(layers).unwrap();
        let thresholds: Vec<f64> = (0..count).map(|_| f64::from(draws.unit()) + 1e-3).collect();
        let rate = Rate::new(f64::from(draws.unit())).unwrap();
        let found = by_thresholds("learned", &weights, &thresholds, rate, &Options::default());
        let found = found.unwrap();
        let budget = rate.zeros(weights.total());
        assert_eq!(found.total_zeros(), budget, "case {case}");

        let mut scores: Vec<(f64, usize)> = (0..count)
            .flat_map(|at| {
                let t = thresholds[at];
                let weight = weights.weight(at).unwrap();
                weight.iter().map(move |w| (f64::from(w.abs()) / t, at))
            })
            .collect();
        scores.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut expected = vec![0; count];
        scores[..budget]
            .iter()
            .for_each(|&(_, at)| expected[at] += 1);
        let zeros: Vec<usize> = found.zeros.values().copied().collect();
        assert_eq!(zeros, expected, "case {case}");

        // The first layer dense, the others at most at 95 %.
        let options = Options {
            dense: vec!["l0".to_owned()],
            max_rate: 0.95,
            ..Options::default()
        };
        let most = most_zeros(weights.layers(), &options).unwrap();
        match by_thresholds("learned", &weights, &thresholds, rate, &options) {
            Ok(found) => {
                assert_eq!(found.total_zeros(), budget, "case {case}");
                assert!(found.zeros.values().zip(&most).all(|(z, most)| z <= most));
            }
            Err(AllocateError::Unreachable { .. }) => assert!(most.iter().sum::<usize>() < budget),
            Err(other) => panic!("case {case}: {other}"),
        }
    }
    let nan = Loaded::new([(layer("l", &[2, 1]), vec![1.0, f32::NAN])]).unwrap();
    let rate = Rate::new(0.5).unwrap();
    let error = by_thresholds("learned", &nan, &[1.0], rate, &Options::default());
    assert!(matches!(
        error,
        Err(AllocateError::NotFinite { index: 1, .. })
    ));
}

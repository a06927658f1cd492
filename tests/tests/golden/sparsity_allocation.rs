//! Rates and counts of every allocator: the released rules exactly, the exact rule's sums, and how the two differ.

use kernels::{BitMask, Scores, Ties, select_smallest, select_smallest_global};
use ptsbench::allocate::{
    AllocateError, Allocation, Norm, NormedMagnitude, Options, Rate, allocators, find, keep_trunc,
};
use ptsbench::cell::Rule;
use ptsbench::inventory::Weights;
use serde_json::Value;

use crate::sparsity_data::{Model, count, fields, models, near, number};

/// The names of a global allocator: ours, the golden file's, and its norm.
const GLOBALS: [(&str, &str, Norm); 3] = [
    ("magnitude", "Magnitude", Norm::None),
    ("l1norm", "L1Norm", Norm::L1),
    ("l2norm", "L2Norm", Norm::L2),
];

fn cases(models: &[Model]) -> impl Iterator<Item = (&Model, Rate, &Value)> {
    models.iter().flat_map(|model| {
        fields(&model.expected["rates"]).map(move |(rate, expected)| {
            let rate = rate
                .parse()
                .unwrap_or_else(|e| panic!("{}: {e}", model.name));
            (model, rate, expected)
        })
    })
}

fn allocate(
    model: &Model,
    name: &str,
    rate: Rate,
    rule: Rule,
    options: &Options,
) -> Result<Allocation, AllocateError> {
    find(name)?.allocate(&model.weights, rate, rule, options)
}

/// The power in a golden key such as `ERK_power0.5`.
fn erk_power(key: &str) -> Option<f64> {
    let power = key.strip_prefix("ERK_power")?;
    Some(power.parse().unwrap_or_else(|e| panic!("{key}: {e}")))
}

fn threshold_zeros(weights: &[f32], k: usize) -> usize {
    let scores = NormedMagnitude::new(weights, Norm::None);
    let mask = select_smallest(&scores, [1, weights.len()], k as u64, Ties::CompatLe);
    mask.expect("golden weights are finite").zeros()
}

#[test]
fn sparsity_uniform_counts() {
    let models = models();
    let mut compared = 0;
    for (model, rate, expected) in cases(&models) {
        let options = Options::default();
        let released = allocate(model, "uniform", rate, Rule::Msbench, &options).unwrap();
        for (index, layer) in model.weights.layers().iter().enumerate() {
            let what = format!("{} {rate} {}", model.name, layer.path);
            let want = &expected["uniform"][&layer.path];
            let keep_trunc = count(&want["zeros"]["keep_trunc"]);
            assert_eq!(released.zeros[&layer.path], keep_trunc, "{what}");
            let weights = model.weights.weight(index).unwrap();
            for (rule, k) in fields(&want["zeros"]) {
                let want = count(&want["zeros_if_threshold"][rule]);
                assert_eq!(threshold_zeros(weights, count(k)), want, "{what} {rule}");
                compared += 1;
            }
            compared += 1;
        }
    }
    println!("sparsity: {compared} uniform counts equal");
    assert!(compared > 0);
}

#[test]
fn sparsity_global_counts() {
    let models = models();
    let (mut compared, mut single) = (0, 0);
    for (model, rate, expected) in cases(&models) {
        for (name, key, norm) in GLOBALS {
            let what = format!("{} {rate} {key}", model.name);
            let want = &expected[key];
            let released = allocate(model, name, rate, Rule::Msbench, &Options::default()).unwrap();
            for (path, zeros) in &released.zeros {
                assert_eq!(
                    *zeros,
                    count(&want["layers"][path]["zeros"]),
                    "{what} {path}"
                );
                near(
                    &[released.rates[path]],
                    &[number(&want["layers"][path]["rate"])],
                    1e-12,
                    &what,
                );
                compared += 1;
            }
            assert_eq!(
                released.total_zeros(),
                count(&want["zeros_total"]),
                "{what}"
            );

            // The exact selection beside it.
            let scores: Vec<NormedMagnitude> = (0..model.weights.layers().len())
                .map(|index| NormedMagnitude::new(model.weights.weight(index).unwrap(), norm))
                .collect();
            let shapes: Vec<[usize; 2]> = scores.iter().map(|s| [1, s.len()]).collect();
            let budget = rate.zeros(model.weights.total());
            let masks =
                select_smallest_global(&scores, &shapes, budget as u64, Ties::KeepLowestIndex);
            let masks = masks.unwrap();
            let exact = allocate(model, name, rate, Rule::Exact, &Options::default()).unwrap();
            let zeros: Vec<usize> = masks.iter().map(BitMask::zeros).collect();
            assert_eq!(
                exact.zeros.values().copied().collect::<Vec<_>>(),
                zeros,
                "{what}"
            );
            assert_eq!(exact.total_zeros(), budget, "{what}");

            if count(&want["ties_at_threshold"]) == 1 {
                // trunc(P N) may fall one short of the guarded budget; then the released rule's extra weight is in it.
                let extra = count(&want["threshold_index"]) + 1 - budget;
                let threshold = number(&want["threshold"]);
                let mut differing = Vec::new();
                for (scores, mask) in scores.iter().zip(&masks) {
                    for (index, keep) in mask.keep().enumerate() {
                        let score = scores.at(index);
                        // The golden threshold is one of these scores up to the rounding of the norm's sum.
                        let pruned = score <= threshold * (1.0 + 1e-14);
                        if keep == pruned {
                            differing.push((keep, score));
                        }
                    }
                }
                assert_eq!(differing.len(), extra, "{what}");
                for (kept, score) in differing {
                    assert!(kept, "{what}: the exact rule pruned more");
                    near(&[score], &[threshold], 1e-12, &what);
                    single += 1;
                }
            }
        }
    }
    println!(
        "sparsity: {compared} global counts equal; {single} tie-free selections differ by the weight at the threshold"
    );
    assert!(compared > 0 && single > 0);
}

#[test]
fn sparsity_erk_rates_and_counts() {
    let models = models();
    let (mut compared, mut rates) = (0, 0);
    for (model, rate, expected) in cases(&models) {
        for (key, want) in fields(expected) {
            let Some(erk_power) = erk_power(key) else {
                continue;
            };
            let what = format!("{} {rate} {key}", model.name);
            let options = Options {
                erk_power,
                ..Options::default()
            };
            let got = allocate(model, "erk", rate, Rule::Msbench, &options);
            if want.get("rates").is_none() {
                assert!(matches!(got, Err(AllocateError::Erk(_))), "{what}: {got:?}");
                continue;
            }
            let got = got.unwrap_or_else(|e| panic!("{what}: {e}"));
            for (path, rate) in &got.rates {
                rates += near(&[*rate], &[number(&want["rates"][path])], 1e-12, &what);
                assert_eq!(
                    got.zeros[path],
                    count(&want["zeros"][path]["keep_trunc"]),
                    "{what} {path}"
                );
                let len = model
                    .weights
                    .layers()
                    .iter()
                    .find(|l| &l.path == path)
                    .unwrap()
                    .len();
                let floor = (rate * len as f64).floor() as usize;
                assert_eq!(floor, count(&want["zeros"][path]["floor"]), "{what} {path}");
                assert_eq!(got.zeros[path], keep_trunc(*rate, len));
                compared += 2;
            }

            let layers = model.weights.layers();
            let shapes: Vec<&[usize]> = layers.iter().map(|l| &l.shape[..]).collect();
            let none = vec![false; layers.len()];
            let densities =
                ptsbench::allocate::erk_densities(&shapes, rate.get(), erk_power, &none);
            let densities = densities.unwrap();
            let paths = |indices: &[usize]| -> Vec<&str> {
                indices.iter().map(|&i| layers[i].path.as_str()).collect()
            };
            let rounds = want["rounds"].as_array().expect("rounds");
            assert_eq!(densities.rounds.len(), rounds.len(), "{what}");
            for (got, want) in densities.rounds.iter().zip(rounds) {
                near(&[got.epsilon], &[number(&want["eps"])], 1e-12, &what);
                near(
                    &[got.max_density],
                    &[number(&want["max_density"])],
                    1e-12,
                    &what,
                );
                let mut got = paths(&got.capped);
                let want = want["capped"].as_array().expect("capped").iter();
                let mut want: Vec<&str> = want.map(crate::sparsity_data::text).collect();
                got.sort();
                want.sort();
                assert_eq!(got, want, "{what}");
            }
        }
    }
    println!("sparsity: {compared} ERK counts equal, {rates} ERK rates within 1e-12");
    assert!(compared > 0);
}

#[test]
fn sparsity_exact_sums() {
    let models = models();
    let (mut sums, mut unreachable) = (0, 0);
    for (model, rate, expected) in cases(&models) {
        let total = model.weights.total();
        assert_eq!(total, count(&model.expected["total"]), "{}", model.name);
        let budget = rate.zeros(total);
        let mut powers: Vec<f64> = fields(expected)
            .filter_map(|(key, _)| erk_power(key))
            .collect();
        powers.dedup();
        for allocator in allocators().iter().filter(|a| !a.needs_trials()) {
            let erk = allocator.name().starts_with("erk");
            for &erk_power in if erk { &powers[..] } else { &[1.0] } {
                let what = format!("{} {rate} {} {erk_power}", model.name, allocator.name());
                let options = Options {
                    erk_power,
                    ..Options::default()
                };
                match allocator.allocate(&model.weights, rate, Rule::Exact, &options) {
                    Ok(got) => {
                        assert_eq!(got.total_zeros(), budget, "{what}");
                        for layer in model.weights.layers() {
                            assert!(got.zeros[&layer.path] <= layer.len(), "{what}");
                        }
                        sums += 1;
                    }
                    // Only a dense last layer can leave too little room, and then exactly this much.
                    Err(AllocateError::Unreachable {
                        reachable, largest, ..
                    }) if allocator.name() == "erk_dense_last" => {
                        let last = model.weights.layers().last().unwrap().len();
                        assert_eq!(reachable, total - last, "{what}");
                        assert!(reachable < budget, "{what}");
                        near(&[largest], &[reachable as f64 / total as f64], 1e-15, &what);
                        unreachable += 1;
                    }
                    Err(other) => panic!("{what}: {other}"),
                }
            }
        }
    }
    println!(
        "sparsity: {sums} allocations sum to the budget exactly, {unreachable} name the largest reachable rate"
    );
    assert!(sums > 0);
}

#[test]
fn sparsity_integer_repair() {
    // The worked vector of the specification's section 8.
    let lens = [10, 27, 64];
    let budget = Rate::new(0.75).unwrap().zeros(lens.iter().sum());
    let zeros = ptsbench::allocate::integer_counts(&lens, &[0.35, 0.62, 0.90], &lens, budget);
    assert_eq!((budget, zeros), (75, Some(vec![2, 16, 57])));
}

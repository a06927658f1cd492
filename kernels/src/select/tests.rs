//! Against a sort, on data that misleads.

use super::keys::{key, radix, value};
use super::kth::{bracket, ranges};
use super::*;
use proptest::prelude::*;

/// The rule of section 0.2, literally: sort by (score ascending, position descending), prune the prefix.
fn naive(layers: &[Vec<f32>], k: usize) -> Vec<Vec<bool>> {
    let mut order: Vec<(f32, usize, usize)> = layers
        .iter()
        .enumerate()
        .flat_map(|(l, s)| s.iter().enumerate().map(move |(i, &x)| (x, l, i)))
        .collect();
    order.sort_by(|a, b| {
        a.0.partial_cmp(&b.0)
            .unwrap()
            .then((b.1, b.2).cmp(&(a.1, a.2)))
    });
    let mut keep: Vec<Vec<bool>> = layers.iter().map(|s| vec![true; s.len()]).collect();
    for &(_, l, i) in &order[..k] {
        keep[l][i] = false;
    }
    keep
}

fn score() -> impl Strategy<Value = f32> {
    prop_oneof![
        (-4i8..4).prop_map(|x| f32::from(x) / 2.0), // many ties, both signs, zero
        Just(-0.0f32),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY),
        Just(f32::MIN_POSITIVE / 4.0),
        proptest::num::f32::NORMAL,
    ]
}

fn nets() -> impl Strategy<Value = (Vec<Vec<f32>>, usize)> {
    proptest::collection::vec(proptest::collection::vec(score(), 0..40), 1..5).prop_flat_map(
        |layers| {
            let total = layers.iter().map(Vec::len).sum::<usize>();
            (Just(layers), 0..=total)
        },
    )
}

fn shapes(layers: &[Vec<f32>]) -> Vec<[usize; 2]> {
    layers.iter().map(|s| [1, s.len()]).collect()
}

proptest! {
    #[test]
    fn equals_a_sort((layers, k) in nets()) {
        let want = naive(&layers, k);
        let got = select_smallest_global(&layers, &shapes(&layers), k as u64, Ties::KeepLowestIndex).unwrap();
        for (mask, want) in got.iter().zip(&want) {
            prop_assert_eq!(&mask.to_keep(), want);
        }
        let counts = global_counts(&layers, k as u64, Ties::KeepLowestIndex).unwrap();
        prop_assert_eq!(counts.iter().sum::<usize>(), k);
        prop_assert_eq!(counts, got.iter().map(BitMask::zeros).collect::<Vec<_>>());
    }

    #[test]
    fn the_compat_rule_takes_all_ties((layers, k) in nets()) {
        let mut sorted: Vec<f32> = layers.concat();
        sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let got = select_smallest_global(&layers, &shapes(&layers), k as u64, Ties::CompatLe).unwrap();
        for (mask, layer) in got.iter().zip(&layers) {
            let want: Vec<bool> = layer.iter().map(|&x| k == 0 || x > sorted[k - 1]).collect();
            prop_assert_eq!(mask.to_keep(), want);
        }
    }

    #[test]
    fn the_threshold_is_the_sorted_element((layers, k) in nets()) {
        prop_assume!(k > 0);
        let mut sorted: Vec<f32> = layers.concat();
        sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let kth = sorted[k - 1];
        let got = threshold_of(&layers, k as u64).unwrap();
        prop_assert_eq!(got.value, f64::from(kth));
        prop_assert_eq!(got.below, sorted.iter().filter(|&&x| x < kth).count() as u64);
        prop_assert_eq!(got.equal, sorted.iter().filter(|&&x| x == kth).count() as u64);
    }

    #[test]
    fn keys_keep_the_order_and_the_value(a in score(), b in score()) {
        let (a, b) = (f64::from(a), f64::from(b));
        prop_assert_eq!(a.partial_cmp(&b), Some(key(a).cmp(&key(b))));
        prop_assert_eq!(value(key(a)), a);
    }
}

#[test]
fn layers_longer_than_a_piece_are_cut_the_same() {
    // A permutation of 0..n: the k smallest are exactly the values below k.
    let n = 3 * PIECE + 17;
    let scores: Vec<f64> = (0..n).map(|i| (i * 7919 % n) as f64).collect();
    let k = n / 3;
    let mask = select_smallest(&scores, [1, n], k as u64, Ties::KeepLowestIndex).unwrap();
    assert_eq!(mask.zeros(), k);
    assert!(
        mask.keep()
            .zip(&scores)
            .all(|(keep, &s)| keep == (s >= k as f64))
    );
    // All equal: the last k go.
    let mask = select_smallest(&vec![1.5f32; n], [1, n], k as u64, Ties::KeepLowestIndex).unwrap();
    assert!(mask.keep().enumerate().all(|(i, keep)| keep == (i < n - k)));
}

/// Pseudo-random bits, seeded.
fn random_bits(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        state >> 32
    }
}

/// Larger than the sample, and awkward in one way each.
fn awkward() -> Vec<(&'static str, Vec<f32>)> {
    const N: usize = 30_011;
    let mut bits = random_bits(1);
    let mut make = |f: &mut dyn FnMut(usize, u64) -> f32| (0..N).map(|i| f(i, bits())).collect();
    vec![
        ("all equal", make(&mut |_, _| 1.5)),
        ("two values", make(&mut |_, x| (x & 1) as f32)),
        (
            "three values",
            make(&mut |_, x| [0.0, 0.0, -1.0, 2.0][(x & 3) as usize]),
        ),
        (
            "denormal",
            make(&mut |_, x| f32::from_bits((x & 0x8000_03ff) as u32)),
        ),
        (
            "both zeros",
            make(&mut |_, x| if x & 1 == 0 { -0.0 } else { 0.0 }),
        ),
        (
            "infinities",
            make(&mut |_, x| match x % 5 {
                0 => f32::INFINITY,
                1 => f32::NEG_INFINITY,
                _ => x as f32,
            }),
        ),
        ("ascending", make(&mut |i, _| i as f32)),
        ("descending", make(&mut |i, _| -(i as f32))),
        (
            "half zero",
            make(&mut |i, x| if i % 2 == 0 { 0.0 } else { x as f32 + 1.0 }),
        ),
        ("random", make(&mut |_, x| x as f32 - 2e9)),
        (
            "magnitudes of many scales",
            make(&mut |_, x| f32::from_bits(x as u32 & 0x7f00_0000)),
        ),
    ]
}

/// Ranks around the middle, the ends, and the borders between few values.
fn ranks(sorted: &[f32]) -> Vec<usize> {
    let n = sorted.len();
    let mut ranks = vec![
        0,
        1,
        2,
        n / 100,
        n / 3,
        n / 2,
        n / 2 + 1,
        n * 9 / 10,
        n - 2,
        n - 1,
        n,
    ];
    let steps = (1..n).filter(|&i| sorted[i] != sorted[i - 1]);
    ranks.extend(steps.take(3).flat_map(|i| [i - 1, i, i + 1]));
    ranks
}

/// Checks one selection against the rule: a score goes if it is lower than the k-th, or as low and not among the
/// first that may stay.
fn check(what: &str, layer: &[f32], sorted: &[f32], k: usize, mask: &BitMask) {
    assert_eq!(mask.zeros(), k, "{what} {k}");
    if k == 0 {
        return;
    }
    let kth = sorted[k - 1];
    let at_most = sorted.partition_point(|&x| x <= kth);
    let mut may_stay = at_most - k;
    for (index, (&x, keep)) in layer.iter().zip(mask.keep()).enumerate() {
        let stays = x > kth || x == kth && may_stay > 0;
        may_stay -= usize::from(x == kth && stays);
        assert_eq!(keep, stays, "{what} {k}: {index}");
    }
}

#[test]
fn awkward_data_of_many_pieces_are_cut_as_sorted() {
    for (what, layer) in awkward() {
        let mut sorted = layer.clone();
        sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let n = layer.len();
        let wide: Vec<f64> = layer.iter().map(|&x| f64::from(x)).collect();
        for k in ranks(&sorted) {
            let ties = Ties::KeepLowestIndex;
            let mask = select_smallest(&layer, [1, n], k as u64, ties).unwrap();
            check(what, &layer, &sorted, k, &mask);
            let computed = select_smallest(&wide, [1, n], k as u64, ties).unwrap();
            assert_eq!(mask, computed, "{what} {k}");
            // Rows that do not end with a word; 30,011 is prime, so some are left over.
            let (rows, cols) = (n / 37, 37);
            let part = &layer[..rows * cols];
            let k = k.min(part.len());
            let mask = select_smallest(part, [rows, cols], k as u64, ties).unwrap();
            let flat = select_smallest(part, [1, part.len()], k as u64, ties).unwrap();
            assert_eq!(mask.to_keep(), flat.to_keep(), "{what} {k}");
            let all = select_smallest(&layer, [1, n], k as u64, Ties::CompatLe).unwrap();
            let want = if k == 0 {
                0
            } else {
                sorted.partition_point(|&x| x <= sorted[k - 1])
            };
            assert_eq!(all.zeros(), want, "{what} {k}");
        }
    }
}

#[test]
fn data_that_mislead_the_sample_are_cut_by_digits() {
    // Every drawn place holds a score of 1 to 2, all others lie far below: the bracket misses at every rank.
    const N: usize = 200_000;
    struct Watch(std::sync::Mutex<Vec<usize>>);
    impl Scores for Watch {
        fn len(&self) -> usize {
            N
        }
        fn at(&self, index: usize) -> f64 {
            self.0.lock().unwrap().push(index);
            1.0
        }
    }
    let watch = Watch(Default::default());
    bracket(&[Layer::new(&watch)], 1);
    let drawn = watch.0.into_inner().unwrap();
    let mut bits = random_bits(2);
    let mut scores: Vec<f32> = (0..N).map(|_| -(bits() as f32)).collect();
    for index in drawn {
        scores[index] = 1.0 + bits() as f32 / 4294967296.0;
    }
    let mut sorted = scores.clone();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
    for k in [1, N / 4, N / 2, N - 5, N] {
        let layers = [Layer::new(&scores)];
        let [lo, hi] = bracket(&layers, k as u64);
        let kth = f64::from(sorted[k - 1]);
        // At rank 1 the bracket is open below instead, and holds nearly everything.
        assert!(
            k > N / 2 || kth < lo || k == 1 && hi >= 1.0,
            "{k}: {kth} in {lo}, {hi}"
        );
        assert_eq!(radix(&layers, &ranges(&layers), k as u64), kth);
        let mask = select_smallest(&scores, [1, N], k as u64, Ties::KeepLowestIndex).unwrap();
        check("misleading", &scores, &sorted, k, &mask);
    }
}

#[test]
fn stored_scores_are_cut_as_computed_ones() {
    /// The same scores without [`Scores::stored`].
    struct Computed<'a>(Stored<'a>);
    impl Scores for Computed<'_> {
        fn len(&self) -> usize {
            self.0.values.len()
        }
        fn at(&self, index: usize) -> f64 {
            self.0.at(index)
        }
    }
    let mut bits = random_bits(3);
    let mut values: Vec<Vec<f32>> = [40_000, 0, 27, 70_001, 5_000]
        .iter()
        .map(|&n| (0..n).map(|_| (bits() % 4001) as f32 - 2000.0).collect())
        .collect();
    values[4].iter_mut().for_each(|value| *value *= 1e-17);
    // The third is so small a divisor that scores overflow, the last so large that distinct values tie.
    let divisors = [3.0, 1.0, 1e-306, 7.5];
    for (magnitude, last) in [(true, 1e-3), (false, 1e-3), (true, f64::MAX)] {
        let stored: Vec<Stored> = values
            .iter()
            .zip(divisors.into_iter().chain([last]))
            .map(|(values, divisor)| Stored {
                values,
                magnitude,
                divisor,
            })
            .collect();
        let computed: Vec<Computed> = stored.iter().map(|&stored| Computed(stored)).collect();
        let shapes: Vec<[usize; 2]> = values.iter().map(|v| [1, v.len()]).collect();
        let concatenated: Vec<f64> = stored
            .iter()
            .flat_map(|s| (0..s.len()).map(|i| s.at(i)))
            .collect();
        let total = concatenated.len();
        for k in [0, 1, 500, total / 2, total - 5_000, total - 1, total] {
            let k = k as u64;
            for ties in [Ties::KeepLowestIndex, Ties::CompatLe] {
                let fast = select_smallest_global(&stored, &shapes, k, ties).unwrap();
                let slow = select_smallest_global(&computed, &shapes, k, ties).unwrap();
                assert_eq!(fast, slow, "{magnitude} {k}");
                let counts: Vec<usize> = fast.iter().map(BitMask::zeros).collect();
                assert_eq!(global_counts(&stored, k, ties).unwrap(), counts);
                // Global is one layer of all scores, one after another.
                let one = select_smallest(&concatenated, [1, total], k, ties).unwrap();
                let all: Vec<bool> = fast.iter().flat_map(BitMask::to_keep).collect();
                assert_eq!(one.to_keep(), all, "{magnitude} {k}");
            }
            if k > 0 {
                assert_eq!(threshold_of(&stored, k), threshold_of(&computed, k));
            }
        }
    }
}

#[test]
fn the_same_bits_at_every_thread_count_and_time() {
    let mut bits = random_bits(4);
    let n = 3 * PIECE + 1;
    let scores: Vec<f32> = (0..n).map(|_| (bits() % 50_000) as f32).collect();
    let make = || {
        let k = n as u64 / 2;
        select_smallest(&scores, [1, n], k, Ties::KeepLowestIndex).unwrap()
    };
    let want = make();
    for threads in [1, 2, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            for _ in 0..20 {
                assert_eq!(make(), want, "{threads} threads");
            }
        });
    }
}

#[test]
fn nan_is_named_at_every_k() {
    let layers = [vec![0.0f32, 1.0], vec![2.0, f32::NAN, f32::NAN]];
    for k in 0..=5 {
        assert_eq!(
            global_counts(&layers, k, Ties::KeepLowestIndex),
            Err(KernelError::NonFiniteScore { layer: 1, index: 1 })
        );
    }
}

#[test]
fn too_many_and_nothing() {
    let empty: [Vec<f32>; 2] = [vec![], vec![]];
    assert_eq!(global_counts(&empty, 0, Ties::CompatLe), Ok(vec![0, 0]));
    let one = [vec![1.0f32]];
    assert_eq!(
        global_counts(&one, 2, Ties::CompatLe),
        Err(KernelError::TooMany {
            requested: 2,
            available: 1
        })
    );
    assert!(threshold_of(&one, 0).is_err());
    assert!(select_smallest(&one[0], [1, 2], 1, Ties::CompatLe).is_err());
}

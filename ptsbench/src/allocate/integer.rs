//! From real rates to whole weights: section 0.3, and the original release's counting.

/// Whole zeros `z` with `sum z = budget`, from real rates (section 0.3).
///
/// Floors first; what is missing goes one by one to the layers of largest fraction, what is too much comes off those
/// of smallest fraction. `most` bounds each layer. `None` where the bounds leave less room than the budget.
pub fn integer_counts(
    lens: &[usize],
    rates: &[f64],
    most: &[usize],
    budget: usize,
) -> Option<Vec<usize>> {
    if most.iter().sum::<usize>() < budget {
        return None;
    }
    let real: Vec<f64> = lens
        .iter()
        .zip(rates)
        .map(|(&len, rate)| rate * len as f64)
        .collect();
    let mut zeros: Vec<usize> = real
        .iter()
        .zip(most)
        .map(|(real, &most)| (real.floor() as usize).min(most))
        .collect();
    let mut given: usize = zeros.iter().sum();

    // Largest fraction first; ties: larger layer, then earlier layer. Removal walks the same order from its end.
    let fraction = |layer: usize| real[layer] - real[layer].floor();
    let mut order: Vec<usize> = (0..lens.len()).collect();
    order.sort_by(|&a, &b| {
        fraction(b)
            .total_cmp(&fraction(a))
            .then(lens[b].cmp(&lens[a]))
            .then(a.cmp(&b))
    });
    while given < budget {
        for &layer in &order {
            if given < budget && zeros[layer] < most[layer] {
                zeros[layer] += 1;
                given += 1;
            }
        }
    }
    while given > budget {
        for &layer in order.iter().rev() {
            if given > budget && zeros[layer] > 0 {
                zeros[layer] -= 1;
                given -= 1;
            }
        }
    }
    Some(zeros)
}

/// The original release's count: keep `trunc((1 - rate) n)`, float error included (rate 0.9 keeps none of 10).
pub fn keep_trunc(rate: f64, len: usize) -> usize {
    len - ((1.0 - rate) * len as f64).trunc() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::Rate;
    use proptest::prelude::*;

    #[test]
    fn the_worked_vector() {
        // Section 8: floors (3, 16, 57) = 76 > 75, the smallest fraction (0.50) gives one back.
        let lens = [10, 27, 64];
        let budget = Rate::new(0.75).unwrap().zeros(101);
        assert_eq!(budget, 75);
        let zeros = integer_counts(&lens, &[0.35, 0.62, 0.90], &lens, budget);
        assert_eq!(zeros, Some(vec![2, 16, 57]));
    }

    #[test]
    fn ties_go_to_the_larger_then_the_earlier_layer() {
        let lens = [2, 4, 4];
        let half = |lens: &[usize]| -> Vec<f64> { lens.iter().map(|&n| 0.5 / n as f64).collect() };
        assert_eq!(
            integer_counts(&lens, &half(&lens), &lens, 1),
            Some(vec![0, 1, 0])
        );
        assert_eq!(
            integer_counts(&lens, &half(&lens), &lens, 2),
            Some(vec![0, 1, 1])
        );
        assert_eq!(
            integer_counts(&lens, &half(&lens), &lens, 4),
            Some(vec![1, 2, 1])
        );
        // Two passes, c before a in each.
        assert_eq!(
            integer_counts(&lens, &half(&lens), &[2, 0, 4], 3),
            Some(vec![1, 0, 2])
        );
        assert_eq!(
            integer_counts(&lens, &half(&lens), &[2, 0, 4], 5),
            Some(vec![2, 0, 3])
        );
        assert_eq!(integer_counts(&lens, &half(&lens), &[2, 0, 4], 7), None);
    }

    #[test]
    fn the_release_loses_the_last_weight_to_float_error() {
        assert_eq!(keep_trunc(0.9, 10), 10);
        assert_eq!(keep_trunc(0.5, 10), 5);
        assert_eq!(keep_trunc(0.0, 7), 0);
        assert_eq!(keep_trunc(1.0, 7), 7);
    }

    proptest! {
        #[test]
        fn counts_sum_to_the_budget_and_stay_near(
            layers in proptest::collection::vec((1usize..5000, 0.0f64..=1.0), 1..30),
            shift in -1.0f64..=1.0,
        ) {
            let (lens, rates): (Vec<usize>, Vec<f64>) = layers.into_iter().unzip();
            let total: usize = lens.iter().sum();
            let count = lens.len() as i64;
            let floors: i64 = lens.iter().zip(&rates).map(|(&n, r)| (r * n as f64).floor() as i64).sum();
            // Any d in [-L, L], as far as the weights allow.
            let d = (shift * count as f64).round() as i64;
            let budget = (floors + d).clamp(0, total as i64);
            let d = budget - floors;
            let zeros = integer_counts(&lens, &rates, &lens, budget as usize).unwrap();
            prop_assert_eq!(zeros.iter().sum::<usize>() as i64, budget);
            // A layer that skips a turn (full, or empty) passes it on, so nearness is claimed where none does.
            let skips = lens.iter().zip(&rates).any(|(&n, r)| r * n as f64 >= n as f64 - 1.0 || r * (n as f64) < 1.0);
            for ((&zeros, &len), rate) in zeros.iter().zip(&lens).zip(&rates) {
                prop_assert!(zeros <= len);
                if !skips {
                    let far = (zeros as f64 - rate * len as f64).abs();
                    let most = if d >= 0 { 1.0 + 1e-9 } else { 2.0 };
                    prop_assert!(far < most);
                }
            }
        }
    }
}

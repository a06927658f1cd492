use super::*;
use crate::solver::Solver;
use crate::solver::case::{Case, eliminate};
use crate::solver::sparsegpt::{self, SparseGpt};

fn walked(case: &Case, row: usize, limit: Option<Limit>) -> Trace {
    let (hessian, inverse) = Hessian::new(&case.problem(), 0.0).unwrap();
    let row = &case.weight[row * case.cols..][..case.cols];
    walk(inverse.as_ref(), hessian.live(row), limit)
}

fn pruned(case: &Case, ask: Ask) -> Solved {
    Obc::DEFAULT
        .solve(&[case.problem()], ask)
        .unwrap()
        .remove(0)
}

/// ExactOBS by its definition: the inverse of what is left of `H` is computed again in each step.
fn reference(case: &Case, row: usize, open: impl Fn(&[usize], usize) -> bool) -> Trace {
    let cols = case.cols;
    let old = |j: usize| f64::from(case.weight[row * cols + j]);
    let mut left: Vec<usize> = (0..cols).collect();
    let mut weight: Vec<f64> = (0..cols).map(old).collect();
    let mut trace = Trace::default();
    loop {
        let h: Vec<Vec<f64>> = left
            .iter()
            .map(|&i| left.iter().map(|&j| case.gram[i * cols + j]).collect())
            .collect();
        let inverse: Vec<Vec<f64>> = (0..left.len())
            .map(|at| {
                let mut unit = vec![0.0; left.len()];
                unit[at] = 1.0;
                eliminate(h.clone(), unit)
            })
            .collect();
        let cost = |at: usize| weight[left[at]].powi(2) / inverse[at][at];
        let candidates = (0..left.len()).filter(|&at| open(&trace.order, left[at]));
        let Some(p) = candidates.min_by(|&a, &b| cost(a).total_cmp(&cost(b))) else {
            return trace;
        };
        trace.order.push(left[p]);
        trace.costs.push(0.5 * cost(p));
        let pull = weight[left[p]] / inverse[p][p];
        for (at, &column) in left.iter().enumerate() {
            weight[column] -= pull * inverse[p][at];
        }
        weight[left[p]] = 0.0;
        left.remove(p);
    }
}

fn assert_near(found: &Trace, expected: &Trace) {
    assert_eq!(found.order, expected.order);
    for (found, expected) in found.costs.iter().zip(&expected.costs) {
        let far = (found - expected).abs();
        assert!(far < 1e-8 * expected.max(1.0), "{found} is not {expected}");
    }
}

#[test]
fn the_worked_example() {
    let case = Case {
        rows: 1,
        cols: 3,
        area: 1,
        weight: vec![1.0, -0.5, 0.75],
        gram: vec![4.0, 2.0, 0.0, 2.0, 3.0, 1.0, 0.0, 1.0, 2.0],
    };
    let expected = Trace {
        order: vec![1, 2, 0],
        costs: vec![3.0 / 16.0, 1.0 / 4.0, 9.0 / 8.0],
    };
    assert_near(&walked(&case, 0, None), &expected);
    for (zeros, weight, loss) in [
        (0, [1.0, -0.5, 0.75], 0.0),
        (1, [0.75, 0.0, 0.5], 3.0 / 16.0),
        (2, [0.75, 0.0, 0.0], 7.0 / 16.0),
        (3, [0.0; 3], 25.0 / 16.0),
    ] {
        let solved = pruned(&case, Ask::Count(zeros));
        for (found, expected) in solved.weight.iter().zip(weight) {
            assert!((f64::from(*found) - expected).abs() < 1e-7, "{found}");
        }
        assert!((solved.squared_error / 2.0 - loss).abs() < 1e-9);
    }
}

#[test]
fn steps_are_those_of_the_definition_across_blocks() {
    for (seed, cols) in [(0, 9), (1, 40), (2, BLOCK + 7), (3, 2 * BLOCK + 1)] {
        let case = Case::new(seed, 2, cols, 1);
        for row in 0..2 {
            let expected = reference(&case, row, |_, _| true);
            assert_near(&walked(&case, row, None), &expected);
        }
    }
}

#[test]
fn groups_of_a_pattern_fill_up_as_the_definition_says() {
    // Eight channels, 1x2 kernels.
    let case = Case::new(3, 3, 16, 2);
    let limit = Limit {
        most: 2,
        of: 4,
        area: 2,
    };
    for row in 0..3 {
        let open = |gone: &[usize], column: usize| {
            let of = |&other: &usize| other / 2 / 4 == column / 2 / 4 && other % 2 == column % 2;
            gone.iter().filter(|other| of(other)).count() < 2
        };
        assert_near(
            &walked(&case, row, Some(limit)),
            &reference(&case, row, open),
        );
    }
    let keep = pruned(&case, Ask::NofM { n: 2, m: 4 }).mask.to_keep();
    assert_eq!(keep.iter().filter(|keep| **keep).count(), 24);
}

#[test]
fn rows_share_the_zeros_by_what_their_steps_cost() {
    let case = Case::new(5, 6, 20, 1);
    let traces: Vec<Trace> = (0..6)
        .map(|row| reference(&case, row, |_, _| true))
        .collect();
    for zeros in [0, 1, 40, 60, 100, 119, 120] {
        let mut costs: Vec<(f64, usize)> = traces
            .iter()
            .enumerate()
            .flat_map(|(row, trace)| trace.costs.iter().map(move |&cost| (cost, row)))
            .collect();
        costs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let solved = pruned(&case, Ask::Count(zeros));
        let keep = solved.mask.to_keep();
        for row in 0..6 {
            let steps = costs[..zeros].iter().filter(|cost| cost.1 == row).count();
            let mut gone: Vec<usize> = traces[row].order[..steps].to_vec();
            gone.sort_unstable();
            let found: Vec<usize> = (0..20).filter(|j| !keep[row * 20 + j]).collect();
            assert_eq!(found, gone, "row {row}, {zeros} zeros");
        }
        let error = case.error(&solved.weight);
        assert!((solved.squared_error - error).abs() < 1e-4 * error.max(1e-2));
    }
}

#[test]
fn both_ways_to_the_last_weights_agree() {
    let case = Case::new(6, 1, 30, 1);
    let (hessian, inverse) = Hessian::new(&case.problem(), 0.0).unwrap();
    let dense = hessian.live(&case.weight);
    let order = walked(&case, 0, None).order;
    for steps in 1..30 {
        let found = hessian
            .fitted(inverse.as_ref(), &dense, &order[..steps])
            .unwrap();
        let kept: Vec<usize> = (0..30).filter(|j| !order[..steps].contains(j)).collect();
        let left = |&i: &usize| kept.iter().map(|&j| hessian.entry(i, j)).collect();
        let right = |&i: &usize| (0..30).map(|j| hessian.entry(i, j) * dense[j]).sum();
        let best = eliminate(
            kept.iter().map(left).collect(),
            kept.iter().map(right).collect(),
        );
        for (&column, best) in kept.iter().zip(best) {
            assert!(
                (found[column] - best).abs() < 1e-8,
                "{steps} steps, {column}"
            );
        }
    }
}

#[test]
fn groups_of_a_layer_share_its_zeros() {
    let cases: Vec<Case> = (0..5).map(|seed| Case::new(seed, 1, 9, 9)).collect();
    let groups: Vec<Problem> = cases.iter().map(Case::problem).collect();
    let solved = Obc::DEFAULT.solve(&groups, Ask::Count(30)).unwrap();
    let zeros: Vec<usize> = solved
        .iter()
        .map(|solved| solved.mask.to_keep().iter().filter(|keep| !**keep).count())
        .collect();
    assert_eq!(zeros.iter().sum::<usize>(), 30);
    assert!(zeros.iter().any(|&count| count != 6), "{zeros:?}");
}

#[test]
fn it_loses_less_than_one_sweep() {
    let (mut swept, mut stepped) = (0.0, 0.0);
    for seed in 0..8 {
        let case = Case::new(seed, 16, 48, 1);
        let ask = Ask::Count(460);
        let other = sparsegpt::solve(&case.problem(), ask, &SparseGpt::DEFAULT).unwrap();
        swept += case.error(&other.weight);
        stepped += case.error(&pruned(&case, ask).weight);
    }
    println!("sparsegpt {swept:.1}, obc {stepped:.1}");
    assert!(stepped < 0.9 * swept, "{stepped} {swept}");
}

#[test]
fn too_few_inputs_are_damped_and_dead_ones_go_first() {
    let mut case = Case::new(7, 4, 12, 1);
    // One sample: a matrix of rank one.
    for i in 0..12 {
        for j in 0..12 {
            case.gram[i * 12 + j] = (i + 1) as f64 * (j + 1) as f64;
        }
    }
    case.kill(2);
    let keep = pruned(&case, Ask::Count(24)).mask.to_keep();
    assert_eq!(keep.iter().filter(|keep| !**keep).count(), 24);
    assert!((0..4).all(|row| !keep[row * 12 + 2]));
    assert!(
        Obc::DEFAULT
            .solve(&[case.problem()], Ask::Count(49))
            .is_err()
    );
}

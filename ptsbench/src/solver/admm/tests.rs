use super::*;
use crate::solver::Solver;
use crate::solver::case::{Case, eliminate};
use crate::solver::sparsegpt::{self, SparseGpt};

const ASKS: [Ask; 5] = [
    Ask::Count(0),
    Ask::Count(37),
    Ask::Count(96),
    Ask::Count(128),
    Ask::NofM { n: 2, m: 4 },
];

fn solvers() -> [(&'static str, Box<dyn Solver>); 2] {
    [
        ("admm_w", Box::new(AdmmW::DEFAULT)),
        ("alps", Box::new(Alps::DEFAULT)),
    ]
}

fn solve(solver: &dyn Solver, case: &Case, ask: Ask) -> Solved {
    let mut solved = solver.solve(&[case.problem()], ask).unwrap();
    solved.remove(0)
}

/// The loss of weights with `ridge(j)` added to the diagonal, and the least that the same mask allows.
fn losses(case: &Case, solved: &Solved, ridge: impl Fn(usize) -> f64) -> [f64; 2] {
    let cols = case.cols;
    let h = |i: usize, j: usize| case.gram[i * cols + j] + if i == j { ridge(i) } else { 0.0 };
    let keep = solved.mask.to_keep();
    let mut sums = [0.0; 2];
    for row in 0..case.rows {
        let old = |j: usize| f64::from(case.weight[row * cols + j]);
        let kept: Vec<usize> = (0..cols).filter(|j| keep[row * cols + j]).collect();
        let left = |&i: &usize| kept.iter().map(|&j| h(i, j)).collect();
        let right = |&i: &usize| (0..cols).map(|j| h(i, j) * old(j)).sum();
        let best = eliminate(
            kept.iter().map(left).collect(),
            kept.iter().map(right).collect(),
        );
        let mut least = vec![0.0; cols];
        for (&column, best) in kept.iter().zip(best) {
            least[column] = best;
        }
        let found: Vec<f64> = (0..cols)
            .map(|j| f64::from(solved.weight[row * cols + j]))
            .collect();
        for (sum, weights) in sums.iter_mut().zip([found, least]) {
            for i in 0..cols {
                for j in 0..cols {
                    *sum += (old(i) - weights[i]) * h(i, j) * (old(j) - weights[j]);
                }
            }
        }
    }
    sums
}

#[test]
fn masks_have_exactly_the_zeros_asked_for() {
    for (name, solver) in solvers() {
        let mut case = Case::new(1, 8, 16, 2);
        case.weight[5] = 0.0;
        for ask in ASKS {
            let solved = solve(solver.as_ref(), &case, ask);
            let keep = solved.mask.to_keep();
            let zeros = keep.iter().filter(|keep| !**keep).count();
            let asked = match ask {
                Ask::Count(zeros) => zeros,
                Ask::NofM { n, m } => 128 * (m - n) / m,
            };
            assert_eq!(zeros, asked, "{name} {ask:?}");
            assert!(asked == 0 || !keep[5], "{name} {ask:?}: a zero goes first");
            for (weight, keep) in solved.weight.iter().zip(&keep) {
                assert!(*keep || *weight == 0.0, "{name} {ask:?}");
            }
            let error = case.error(&solved.weight);
            let off = (solved.squared_error - error).abs();
            assert!(off <= 1e-4 * error.max(1e-3), "{name} {ask:?}: {off}");
        }
        if let Ask::NofM { n, m } = ASKS[4] {
            let keep = solve(solver.as_ref(), &case, ASKS[4]).mask.to_keep();
            for row in keep.chunks(16) {
                for (place, first) in [(0, 0), (1, 0), (0, 4), (1, 4)] {
                    let kept = (first..first + m).filter(|channel| row[channel * 2 + place]);
                    assert_eq!(kept.count(), n, "{name}");
                }
            }
        }
    }
}

#[test]
fn weights_are_within_a_hundredth_of_the_least_squares_on_their_mask() {
    for seed in 0..6 {
        let case = Case::new(seed, 12, 40, 1);
        for zeros in [144, 240, 336, 432] {
            let diagonal = |j: usize| case.gram[j * case.cols + j];
            let mean = (0..case.cols).map(diagonal).sum::<f64>() / case.cols as f64;
            let admm = solve(&AdmmW::DEFAULT, &case, Ask::Count(zeros));
            let alps = solve(&Alps::DEFAULT, &case, Ask::Count(zeros));
            for (name, [loss, least]) in [
                ("admm_w", losses(&case, &admm, |j| 0.1 * diagonal(j))),
                ("alps", losses(&case, &alps, |_| 0.01 * mean)),
            ] {
                println!("{name}, seed {seed}, {zeros} zeros: {:.5}", loss / least);
                assert!(loss <= 1.01 * least, "{name}: {loss}, least {least}");
            }
        }
    }
}

#[test]
fn without_correlations_the_smallest_weights_go_and_nothing_moves() {
    let case = Case::new(4, 6, 20, 1).identity();
    let solved = solve(&AdmmW::DEFAULT, &case, Ask::Count(70));
    assert_eq!(solved.mask, case.magnitude(70));
    let best = case.magnitude(70).to_keep();
    for (at, found) in solved.weight.iter().enumerate() {
        let expected = if best[at] { case.weight[at] } else { 0.0 };
        // It stops before its weights have quite come to rest.
        assert!((found - expected).abs() < 2e-3, "{at}: {found} {expected}");
    }
    // A penalty below the curvature brings weights back that were rightly gone, so ALPS may rest beside the best choice.
    let solved = solve(&Alps::DEFAULT, &case, Ask::Count(70));
    let keep = solved.mask.to_keep();
    let kept = solved.weight.iter().zip(&case.weight).zip(&keep);
    for ((found, expected), _) in kept.filter(|(_, keep)| **keep) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    let gone = |keep: &[bool]| -> f64 {
        let lost = case.weight.iter().zip(keep).filter(|(_, keep)| !**keep);
        lost.map(|(&w, _)| f64::from(w * w)).sum()
    };
    let (found, least) = (gone(&keep), gone(&best));
    assert!(found < 1.01 * least, "{found}, least {least}");
}

#[test]
fn alternating_directions_lose_less_than_one_sweep() {
    let total = |solve: &dyn Fn(&Case, Ask) -> Solved, share: usize| -> f64 {
        let cases = (0..8).map(|seed| Case::new(seed, 16, 48, 1));
        cases
            .map(|case| case.error(&solve(&case, Ask::Count(768 * share / 10)).weight))
            .sum()
    };
    for share in [5, 7, 8] {
        let swept = total(
            &|case, ask| sparsegpt::solve(&case.problem(), ask, &SparseGpt::DEFAULT).unwrap(),
            share,
        );
        let admm = total(&|case, ask| solve(&AdmmW::DEFAULT, case, ask), share);
        let alps = total(&|case, ask| solve(&Alps::DEFAULT, case, ask), share);
        println!("{share}0 %: sparsegpt {swept:.1}, admm_w {admm:.1}, alps {alps:.1}");
        assert!(
            alps < admm && admm < swept,
            "{share}0 %: {alps} {admm} {swept}"
        );
    }
}

#[test]
fn dead_inputs_go_first_and_a_layer_that_a_pattern_does_not_fit_stays() {
    for (name, solver) in solvers() {
        let mut case = Case::new(2, 6, 12, 1);
        case.kill(3);
        let keep = solve(solver.as_ref(), &case, Ask::Count(6)).mask.to_keep();
        assert!((0..6).all(|row| !keep[row * 12 + 3]), "{name}");
        let whole = solve(solver.as_ref(), &case, Ask::NofM { n: 2, m: 5 });
        assert_eq!(whole.weight, case.weight, "{name}");
    }
}

#[test]
fn options_out_of_range_are_named() {
    let case = Case::new(2, 4, 8, 1);
    let refused = |solver: &dyn Solver| {
        let solved = solver.solve(&[case.problem()], Ask::Count(8));
        solved.unwrap_err().to_string()
    };
    let rest = AdmmW::DEFAULT;
    assert!(
        refused(&AdmmW {
            damping: -1.0,
            ..rest
        })
        .contains("damping")
    );
    assert!(
        refused(&AdmmW {
            choosing: 0,
            ..rest
        })
        .contains("choosing")
    );
    assert!(
        refused(&AdmmW {
            iterations: 3,
            ..rest
        })
        .contains("iterations")
    );
    let rest = Alps::DEFAULT;
    assert!(
        refused(&Alps {
            iterations: 0,
            ..rest
        })
        .contains("iterations")
    );
}

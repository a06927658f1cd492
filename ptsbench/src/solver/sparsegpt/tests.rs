use super::*;

use crate::solver::case::{Case, eliminate};

impl Case {
    fn solve(&self, ask: Ask, options: &SparseGpt) -> Solved {
        solve(&self.problem(), ask, options).unwrap()
    }
}

fn options(block: usize, mask: MaskScope) -> SparseGpt {
    SparseGpt {
        block,
        mask,
        ..SparseGpt::default()
    }
}

const SCOPES: [MaskScope; 2] = [MaskScope::Blocks, MaskScope::Global];

/// SparseGPT by its definition, in the order of columns given: weights before the current column are settled, those from it
/// on are the least squares solution given them, computed again by elimination after each column; costs come from
/// the inverse of what is left of `H`, inverted again.
struct Reference<'a> {
    case: &'a Case,
    h: Vec<Vec<f64>>,
    order: Vec<usize>,
    weight: Vec<Vec<f64>>,
    keep: Vec<Vec<bool>>,
}

impl<'a> Reference<'a> {
    fn new(case: &'a Case, order: Vec<usize>, damping: f64) -> Self {
        let cols = case.cols;
        let mean = (0..cols).map(|i| case.gram[i * cols + i]).sum::<f64>() / cols as f64;
        let entry = |i: usize, j: usize| {
            let ridge = if i == j { damping * mean } else { 0.0 };
            case.gram[order[i] * cols + order[j]] + ridge
        };
        Self {
            case,
            h: (0..cols)
                .map(|i| (0..cols).map(|j| entry(i, j)).collect())
                .collect(),
            weight: (0..case.rows)
                .map(|row| {
                    let old = |&c: &usize| f64::from(case.weight[row * cols + c]);
                    order.iter().map(old).collect()
                })
                .collect(),
            keep: vec![vec![true; cols]; case.rows],
            order,
        }
    }

    /// `[(H_RR)^-1]_ii` where R are the columns from `from` on.
    fn inverse(&self, from: usize, i: usize) -> f64 {
        let left: Vec<Vec<f64>> = self.h[from..].iter().map(|r| r[from..].to_vec()).collect();
        let mut unit = vec![0.0; left.len()];
        unit[i - from] = 1.0;
        eliminate(left, unit)[i - from]
    }

    /// Removes the cheapest `zeros` of the cells named, columns `columns` of `rows`.
    fn choose(
        &mut self,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        zeros: usize,
        global: bool,
    ) {
        let mut cells: Vec<(f64, usize, usize)> = Vec::new();
        for i in columns {
            let divisor = self.inverse(if global { 0 } else { i }, i);
            cells.extend(
                rows.clone()
                    .map(|row| (self.weight[row][i].powi(2) / divisor, row, i)),
            );
        }
        cells.sort_by(|a, b| a.0.total_cmp(&b.0).then((b.1, b.2).cmp(&(a.1, a.2))));
        for &(_, row, i) in &cells[..zeros] {
            self.keep[row][i] = false;
        }
    }

    /// Settles column `i` and solves for what is behind it.
    fn settle(&mut self, i: usize) {
        let cols = self.case.cols;
        for row in 0..self.case.rows {
            if !self.keep[row][i] {
                self.weight[row][i] = 0.0;
            }
            let old = |j: usize| f64::from(self.case.weight[row * cols + self.order[j]]);
            let (settled, free) = (0..=i, i + 1..cols);
            let left = self.h[free.clone()]
                .iter()
                .map(|r| r[free.clone()].to_vec())
                .collect();
            let right = free
                .clone()
                .map(|j| {
                    let moved = |k: usize| self.h[j][k] * (self.weight[row][k] - old(k));
                    -settled.clone().map(moved).sum::<f64>()
                })
                .collect();
            let step = eliminate(left, right);
            for (j, step) in free.zip(step) {
                self.weight[row][j] = old(j) + step;
            }
        }
    }

    fn assert_equal(&self, swept: &Swept) {
        let cols = self.case.cols;
        let mut loss = 0.0;
        for row in 0..self.case.rows {
            for (i, &column) in self.order.iter().enumerate() {
                let cell = row * cols + column;
                assert_eq!(swept.keep[cell], self.keep[row][i], "({row}, {column})");
                let (found, expected) = (swept.weight[cell], self.weight[row][i]);
                assert!(
                    (found - expected).abs() < 1e-9,
                    "({row}, {column}): {found} is not {expected}"
                );
                for (j, &other) in self.order.iter().enumerate() {
                    let delta = |c: usize, k: usize| {
                        f64::from(self.case.weight[row * cols + c]) - self.weight[row][k]
                    };
                    loss +=
                        delta(column, i) * delta(other, j) * self.case.gram[column * cols + other];
                }
            }
        }
        let far = (swept.squared_error - loss).abs();
        assert!(far < 1e-9 * loss.max(1.0), "{} {loss}", swept.squared_error);
    }
}

#[test]
fn blocks_follow_the_definition() {
    for (seed, (rows, cols, block, zeros)) in [
        (5, 12, 4, 30),
        (3, 17, 5, 29),
        (8, 16, 128, 64),
        (1, 9, 2, 4),
        (40, 10, 3, 333),
    ]
    .into_iter()
    .enumerate()
    {
        let case = Case::new(seed as u64, rows, cols, 1);
        let mut reference = Reference::new(&case, (0..cols).collect(), 0.01);
        let mut given = 0;
        for start in (0..cols).step_by(block) {
            let end = cols.min(start + block);
            let share = zeros * end / cols;
            reference.choose(0..rows, start..end, share - given, false);
            given = share;
            (start..end).for_each(|i| reference.settle(i));
        }
        let options = options(block, MaskScope::Blocks);
        let swept = sweep(&case.problem(), Ask::Count(zeros), &options).unwrap();
        reference.assert_equal(&swept);
    }
}

#[test]
fn global_masks_follow_the_definition() {
    let (rows, cols, zeros) = (6, 14, 50);
    let case = Case::new(11, rows, cols, 1);
    let mut reference = Reference::new(&case, (0..cols).collect(), 0.01);
    reference.choose(0..rows, 0..cols, zeros, true);
    (0..cols).for_each(|i| reference.settle(i));
    // The width of blocks is arithmetic alone here.
    for block in [1, 4, 128] {
        let options = options(block, MaskScope::Global);
        let swept = sweep(&case.problem(), Ask::Count(zeros), &options).unwrap();
        reference.assert_equal(&swept);
    }
}

#[test]
fn groups_of_a_convolution_follow_the_definition() {
    // Eight channels, 1x2 kernels; columns of the sweep run (position, channel).
    let case = Case::new(3, 4, 16, 2);
    let order: Vec<usize> = (0..16).map(|i| i % 8 * 2 + i / 8).collect();
    for (mask, block, (n, m)) in [
        (MaskScope::Blocks, 128, (2, 4)),
        (MaskScope::Blocks, 6, (1, 4)),
        (MaskScope::Global, 8, (4, 8)),
    ] {
        let mut reference = Reference::new(&case, order.clone(), 0.01);
        let global = mask == MaskScope::Global;
        for start in (0..16).step_by(m) {
            if global {
                (0..4)
                    .for_each(|row| reference.choose(row..row + 1, start..start + m, m - n, true));
            }
        }
        for i in 0..16 {
            if !global && i % m == 0 {
                (0..4).for_each(|row| reference.choose(row..row + 1, i..i + m, m - n, false));
            }
            reference.settle(i);
        }
        let swept = sweep(&case.problem(), Ask::NofM { n, m }, &options(block, mask)).unwrap();
        reference.assert_equal(&swept);
    }
}

#[test]
fn counts_are_exact() {
    for (rows, cols) in [(1, 1), (7, 5), (33, 30), (3, 64)] {
        let case = Case::new(5, rows, cols, 1);
        let len = rows * cols;
        for zeros in [0, 1, len / 3, len / 2, len * 9 / 10, len - 1, len] {
            for mask in SCOPES {
                let solved = case.solve(Ask::Count(zeros), &options(7, mask));
                assert_eq!(solved.mask.zeros(), zeros);
                let exact = solved.weight.iter().filter(|&&w| w == 0.0).count();
                assert_eq!(exact, zeros, "{rows} x {cols}, {mask:?}");
            }
        }
    }
}

#[test]
fn quotas_carry_what_rounding_leaves_and_make_room_for_zeros() {
    assert_eq!(quotas(10, &[(8, 0), (8, 0), (4, 0)]), [4, 4, 2]);
    assert_eq!(quotas(7, &[(5, 0), (5, 0), (5, 0)]), [2, 2, 3]);
    // The second block's zeros exceed its share: the third gets less.
    assert_eq!(quotas(9, &[(6, 0), (6, 5), (6, 0)]), [3, 5, 1]);
    // The last block's zeros leave the others little.
    assert_eq!(quotas(7, &[(6, 0), (6, 0), (6, 6)]), [1, 0, 6]);
    assert_eq!(quotas(6, &[(6, 0), (6, 0), (6, 6)]), [0, 0, 6]);
    assert_eq!(quotas(12, &[(6, 6), (6, 0)]), [6, 6]);
    assert_eq!(quotas(0, &[]), [0usize; 0]);
}

#[test]
fn patterns_hold_along_input_channels_at_each_kernel_position() {
    let (channels, area) = (12, 3);
    let case = Case::new(8, 35, channels * area, area);
    for (n, m) in [(2, 4), (1, 4), (1, 3), (5, 6)] {
        for mask in SCOPES {
            let solved = case.solve(Ask::NofM { n, m }, &options(10, mask));
            for row in 0..case.rows {
                for at in 0..area {
                    for group in 0..channels / m {
                        let kept = (group * m..(group + 1) * m)
                            .filter(|channel| solved.mask.get(row, channel * area + at))
                            .count();
                        assert_eq!(kept, n);
                    }
                }
            }
        }
    }
    // 12 is not a multiple of 8.
    let dense = case.solve(Ask::NofM { n: 4, m: 8 }, &SparseGpt::default());
    assert_eq!(dense.weight, case.weight);
    assert_eq!((dense.mask.zeros(), dense.squared_error), (0, 0.0));
}

#[test]
fn of_equal_scores_in_a_group_the_lowest_channels_stay() {
    let mut case = Case::new(0, 2, 8, 2).identity();
    case.weight.fill(-0.5);
    case.weight[6] = 0.75;
    for mask in SCOPES {
        let solved = case.solve(Ask::NofM { n: 2, m: 4 }, &options(8, mask));
        // Channels lie two apart; the last one at position 0 of row 0 is the largest.
        let kept = [[0, 1, 3, 6], [0, 1, 2, 3]];
        for (row, kept) in kept.iter().enumerate() {
            let found: Vec<usize> = (0..8).filter(|&c| solved.mask.get(row, c)).collect();
            assert_eq!(found, kept, "{mask:?}");
        }
    }
}

#[test]
fn the_error_is_what_was_predicted_and_below_magnitudes() {
    for seed in 0..4 {
        let case = Case::new(seed, 24, 48, 1);
        for zeros in [300, 576, 900] {
            let mut plain = case.weight.clone();
            case.magnitude(zeros).apply(&mut plain).unwrap();
            let magnitude = case.error(&plain);
            for mask in SCOPES {
                let solved = case.solve(Ask::Count(zeros), &options(16, mask));
                let error = case.error(&solved.weight);
                assert!(error < magnitude, "{mask:?}, {zeros}: {error} {magnitude}");
                let far = (solved.squared_error - error).abs();
                assert!(far < 1e-5 * error, "{} {error}", solved.squared_error);
            }
        }
    }
}

#[test]
fn without_correlation_it_is_magnitude_and_nothing_moves() {
    let mut case = Case::new(2, 20, 30, 1).identity();
    // Ties, also across rows.
    case.weight[7..40].fill(0.25);
    case.weight[20] = -0.25;
    let solved = case.solve(Ask::Count(280), &options(8, MaskScope::Global));
    let mask = case.magnitude(280);
    assert_eq!(solved.mask, mask);
    let mut expected = case.weight.clone();
    mask.apply(&mut expected).unwrap();
    assert_eq!(solved.weight, expected);
}

#[test]
fn dead_inputs_and_zeros_go_first() {
    let mut case = Case::new(4, 6, 20, 1);
    case.kill(3);
    case.kill(17);
    case.weight[0] = 0.0;
    for mask in SCOPES {
        // 12 dead weights and a zero; the block of column 17 has more than its share.
        for zeros in [13, 14, 40] {
            let solved = case.solve(Ask::Count(zeros), &options(5, mask));
            assert_eq!(solved.mask.zeros(), zeros);
            assert!(!solved.mask.get(0, 0));
            for row in 0..6 {
                assert!(!solved.mask.get(row, 3) && !solved.mask.get(row, 17));
            }
        }
        // Fewer than there are: the last go, no other weight moves, dead ones are 0 all the same.
        let solved = case.solve(Ask::Count(2), &options(5, mask));
        assert_eq!(solved.mask.zeros(), 2);
        assert!(!solved.mask.get(5, 17) && !solved.mask.get(5, 3));
        assert_eq!(solved.squared_error, 0.0);
        let mut expected = case.weight.clone();
        for row in expected.chunks_mut(20) {
            (row[3], row[17]) = (0.0, 0.0);
        }
        assert_eq!(solved.weight, expected);

        let groups = case.solve(Ask::NofM { n: 2, m: 4 }, &options(8, mask));
        for row in 0..6 {
            assert!(!groups.mask.get(row, 3) && !groups.mask.get(row, 17));
        }
    }
    (0..20).for_each(|column| case.kill(column));
    let solved = case.solve(Ask::Count(60), &SparseGpt::default());
    assert_eq!(solved.weight, vec![0.0; 120]);
    assert_eq!(solved.mask.zeros(), 60);
}

#[test]
fn threads_change_no_bit() {
    let case = Case::new(9, 70, 150, 1);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| SCOPES.map(|mask| case.solve(Ask::Count(5_000), &options(64, mask))))
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        assert!(one == run(threads), "{threads} threads");
    }
}

#[test]
fn what_cannot_be_solved_says_why() {
    let case = Case::new(1, 2, 6, 1);
    let fail = |problem: Problem, ask, options: &SparseGpt| {
        solve(&problem, ask, options).unwrap_err().to_string()
    };
    let usual = SparseGpt::default();
    let half = Ask::Count(6);

    // Two equal inputs: singular unless damped.
    let mut equal = Case::new(1, 2, 6, 1);
    for i in 0..6 {
        equal.gram[i * 6 + 1] = equal.gram[i * 6];
    }
    for j in 0..6 {
        equal.gram[6 + j] = equal.gram[j];
    }
    let undamped = SparseGpt {
        damping: 0.0,
        ..usual
    };
    let message = fail(equal.problem(), half, &undamped);
    assert!(message.contains("raise damping"), "{message}");
    assert!(solve(&equal.problem(), half, &usual).is_ok());
    assert!(solve(&case.problem(), half, &undamped).is_ok());

    let damping = SparseGpt {
        damping: -1.0,
        ..usual
    };
    assert!(fail(case.problem(), half, &damping).contains("`damping` is -1"));
    let block = SparseGpt { block: 0, ..usual };
    assert!(fail(case.problem(), half, &block).contains("`block` is 0"));
    assert!(fail(case.problem(), Ask::Count(13), &usual).contains("13 zeros were asked of 12"));
    assert!(
        fail(case.problem(), Ask::NofM { n: 4, m: 4 }, &usual).contains("4:4 is not a pattern")
    );

    let mut problem = case.problem();
    problem.positions = 0;
    assert!(fail(problem, half, &usual).contains("no inputs"));
    let mut problem = case.problem();
    problem.area = 4;
    assert!(fail(problem, half, &usual).contains("kernel positions"));
    let mut problem = case.problem();
    problem.gram = &case.gram[1..];
    assert!(fail(problem, half, &usual).contains("expected 36, found 35"));

    let mut broken = Case::new(1, 2, 6, 1);
    broken.weight[4] = f32::NAN;
    assert!(fail(broken.problem(), half, &usual).contains("weight 4 is NaN"));
    let mut broken = Case::new(1, 2, 6, 1);
    broken.gram[8] = f64::INFINITY;
    assert!(fail(broken.problem(), half, &usual).contains("sum of inputs 8 is inf"));
}

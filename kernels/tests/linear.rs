//! Linear layers and batched matrix products on the CPU against f64 loops, on every instruction set at hand: sizes around
//! the tiles', masks of every density, strides of every sign, empty dimensions, one thread against two.

mod common;

use common::Random;
use kernels::LinearShape;
use kernels::cpu::gemm::{Operand, matmul};
use kernels::cpu::{Isa, Mask, linear};
use kernels::reference;
use kernels::{BitMask, reference::Product};

impl Random {
    /// Empty, around a tile's edge, small, or past a block's.
    fn size(&mut self) -> usize {
        match self.below(8) {
            0 => self.of(&[0, 1, 5, 6, 7, 8, 13, 14, 15, 16, 17, 31, 32, 33]),
            1 => self.of(&[95, 96, 97, 127, 128, 129, 255, 256, 257, 513]),
            _ => 1 + self.below(70),
        }
    }

    fn linear(&mut self) -> LinearShape {
        loop {
            let shape = LinearShape {
                positions: self.size(),
                rows: self.size(),
                cols: self.size(),
            };
            if shape.positions * shape.rows * shape.cols < 500_000 {
                return shape;
            }
        }
    }
}

fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols)
        .map(|i| x[i % rows * cols + i / rows])
        .collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn threads<T: Send>(n: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build();
    pool.expect("threads can be started").install(work)
}

#[test]
fn linear_layers_agree_with_f64_loops() {
    let mut worst = 0.0f64;
    for isa in Isa::available() {
        let mut random = Random(11);
        for case in 0..300 {
            let shape = random.linear();
            let LinearShape {
                positions,
                rows,
                cols,
            } = shape;
            let x = random.floats(positions * cols);
            let g = random.floats(positions * rows);
            let mut w = random.floats(rows * cols);
            let bias = random.floats(rows);
            let bias = (random.below(2) == 1).then_some(&bias[..]);
            let keep = random.maybe_mask(rows, cols);
            if let Some(keep) = &keep {
                // What is stored in masked places must not matter.
                for c in 0..cols {
                    for r in 0..rows {
                        if !keep.get(r, c) && random.below(3) == 0 {
                            w[c * rows + r] = random.of(&[f32::NAN, f32::INFINITY, -1e30]);
                        }
                    }
                }
            }
            let mask = keep.as_ref().map(Mask::from);
            let oihw = transposed(&w, cols, rows);
            let mut check = |what: &str, want: Product, got: &[f32], terms: usize| {
                let ratio = want.worst(got, terms);
                assert!(
                    ratio <= 1.0,
                    "{isa:?} case {case} {what}: {ratio} of the bound, {shape:?}"
                );
                worst = worst.max(ratio);
            };
            let y = linear::forward(isa, shape, &x, &w, mask, bias);
            check(
                "output",
                reference::linear(&x, &oihw, keep.as_ref(), bias, shape),
                &y,
                cols,
            );
            let dx = linear::input_grad(isa, shape, &g, &w, mask);
            check(
                "input gradient",
                reference::linear_dx(&g, &oihw, keep.as_ref(), shape),
                &dx,
                rows,
            );
            let dw = linear::weight_grad(isa, shape, &x, &g, mask);
            let dw = transposed(&dw, cols, rows);
            check(
                "weight gradient",
                reference::linear_dw(&g, &x, keep.as_ref(), shape),
                &dw,
                positions,
            );
            if let Some(keep) = &keep {
                let zero = |(i, v): (usize, &f32)| keep.get(i / cols, i % cols) || v.to_bits() == 0;
                assert!(
                    dw.iter().enumerate().all(zero),
                    "weight gradient outside the mask, case {case}"
                );
            }
        }
    }
    println!("largest error {worst:.3} of its bound");
}

#[test]
fn a_kept_nan_shows_and_a_masked_gradient_is_zero() {
    let shape = LinearShape {
        positions: 9,
        rows: 21,
        cols: 40,
    };
    let keep: Vec<bool> = (0..21 * 40).map(|i| i % 3 == 0).collect();
    let keep = BitMask::from_keep(21, 40, &keep).expect("sizes agree");
    let mask = Some(Mask::from(&keep));
    for isa in Isa::available() {
        let x = vec![1.0; 9 * 40];
        let mut w = vec![1.0; 40 * 21];
        // Output 3, input 0: flat 120 of the mask, kept.
        w[3] = f32::NAN;
        let y = linear::forward(isa, shape, &x, &w, mask, None);
        assert!((0..9 * 21).all(|i| y[i].is_nan() == (i % 21 == 3)));
        let g = vec![f32::NAN; 9 * 21];
        let dw = linear::weight_grad(isa, shape, &x, &g, mask);
        assert!((0..40 * 21).all(|i| dw[i].is_nan() == keep.get(i % 21, i / 21)));
    }
}

/// Elements of a matrix of a batch anywhere in a buffer.
struct Placed {
    data: Vec<f32>,
    offsets: Vec<usize>,
    strides: [isize; 2],
}

impl Placed {
    fn new(random: &mut Random, batch: usize, [rows, cols]: [usize; 2]) -> Self {
        let pad = 1 + random.below(3);
        let mut strides = match random.below(6) {
            0 => [1, (rows + pad) as isize],
            1 => [(cols * pad + pad) as isize, pad as isize],
            2 => [0, 1],
            3 => [1, 0],
            _ => [(cols + pad - 1) as isize, 1],
        };
        let span: usize = [rows, cols]
            .iter()
            .zip(strides)
            .map(|(n, s)| n.saturating_sub(1) * s.unsigned_abs())
            .sum();
        let mut first = 0;
        for (stride, n) in strides.iter_mut().zip([rows, cols]) {
            if random.below(3) == 0 {
                first += n.saturating_sub(1) * stride.unsigned_abs();
                *stride = -*stride;
            }
        }
        // Matrices lie one after the other, stacked, in turn, or are all the same.
        let step = match random.below(3) {
            0 => 0,
            1 if strides[0] > 0 => rows * strides[0].unsigned_abs(),
            _ => span + 1,
        };
        Self {
            data: random.floats(span + 1 + step * batch),
            offsets: (0..batch).map(|i| first + i * step).collect(),
            strides,
        }
    }

    fn dense(&self, i: usize, [rows, cols]: [usize; 2]) -> Vec<f32> {
        let at = |r: usize, c: usize| {
            let place = self.offsets[i] as isize
                + r as isize * self.strides[0]
                + c as isize * self.strides[1];
            self.data[place as usize]
        };
        (0..rows * cols).map(|j| at(j / cols, j % cols)).collect()
    }

    fn operand(&self) -> Operand<'_> {
        Operand {
            data: &self.data,
            offsets: &self.offsets,
            strides: self.strides,
        }
    }
}

#[test]
fn products_of_strided_matrices_agree_with_f64_loops() {
    let mut worst = 0.0f64;
    for isa in Isa::available() {
        let mut random = Random(5);
        for case in 0..400 {
            let [m, k, n] = loop {
                let size = [0; 3].map(|_: usize| random.size());
                if size.iter().product::<usize>() < 300_000 {
                    break size;
                }
            };
            let batch = random.of(&[0, 1, 1, 2, 3, 5]);
            let a = Placed::new(&mut random, batch, [m, k]);
            let b = Placed::new(&mut random, batch, [k, n]);
            let got = matmul(isa, [m, k, n], a.operand(), b.operand());
            assert_eq!(got.len(), batch * m * n);
            for i in 0..batch {
                let want = reference::matmul(&a.dense(i, [m, k]), &b.dense(i, [k, n]), [m, k, n]);
                let ratio = want.worst(&got[i * m * n..][..m * n], k);
                assert!(
                    ratio <= 1.0,
                    "{isa:?} case {case}: {ratio} of the bound, {m} {k} {n}, {:?} {:?}",
                    a.strides,
                    b.strides
                );
                worst = worst.max(ratio);
            }
        }
    }
    println!("largest error {worst:.3} of its bound");
}

#[test]
fn threads_do_not_change_a_bit() {
    for isa in Isa::available() {
        let mut random = Random(3);
        for (positions, rows, cols) in [(197, 96, 300), (7, 200, 513), (300, 10, 64)] {
            let shape = LinearShape {
                positions,
                rows,
                cols,
            };
            let x = random.floats(positions * cols);
            let g = random.floats(positions * rows);
            let w = random.floats(rows * cols);
            let keep = random.maybe_mask(rows, cols);
            let mask = keep.as_ref().map(Mask::from);
            let offsets: Vec<usize> = (0..5).map(|i| i * 13).collect();
            let all = || {
                let a = Operand {
                    data: &x,
                    offsets: &offsets,
                    strides: [cols as isize, 1],
                };
                let b = Operand {
                    data: &w,
                    offsets: &offsets,
                    strides: [1, cols as isize],
                };
                let mut out = bits(&linear::forward(isa, shape, &x, &w, mask, None));
                out.extend(bits(&linear::input_grad(isa, shape, &g, &w, mask)));
                out.extend(bits(&linear::weight_grad(isa, shape, &x, &g, mask)));
                out.extend(bits(&matmul(
                    isa,
                    [positions - 1, cols - 40, rows - 5],
                    a,
                    b,
                )));
                out
            };
            let one = threads(1, all);
            for n in [2, 3, 8] {
                assert!(one == threads(n, all), "{isa:?}, {n} threads, {shape:?}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "a reaches from 0 to 12 in 12 elements")]
fn an_operand_past_its_slice_is_refused() {
    let data = [0.0; 12];
    let a = Operand {
        data: &data,
        offsets: &[0],
        strides: [4, 2],
    };
    matmul(Isa::detect(), [3, 3, 1], a, a);
}

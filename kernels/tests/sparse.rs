//! Sparse products against f64 loops, on every instruction set at hand: densities from none to all, odd sizes, strides,
//! groups, empty batches, values of masked weights that must not matter, bits at several thread counts.

mod common;

use common::Random;
use kernels::LinearShape;
use kernels::cpu::Isa;
use kernels::cpu::sparse::{self, SparseWeight};
use kernels::{BitMask, ConvShape, reference};

impl Random {
    fn conv(&mut self) -> ConvShape {
        loop {
            let groups = self.of(&[1, 1, 1, 2, 3]);
            let channels =
                [0, 1].map(|_| groups * (1 + self.below(if groups > 1 { 9 } else { 90 })));
            let shape = ConvShape {
                batch: self.of(&[0, 1, 1, 2, 3, 7, 8, 9, 16, 17]),
                inputs: channels[0],
                outputs: channels[1],
                size: [1 + self.below(19), 1 + self.below(40)],
                kernel: [self.of(&[1, 1, 2, 3, 3, 5]), self.of(&[1, 1, 2, 3, 3, 5])],
                stride: [1 + self.below(3), 1 + self.below(3)],
                padding: [
                    [self.below(4), self.below(4)],
                    [self.below(4), self.below(4)],
                ],
                dilation: [1 + self.below(2), 1 + self.below(2)],
                groups,
            };
            let shape = match self.below(4) {
                0 => ConvShape::new(shape.batch, channels, shape.size, [1; 2]).with_groups(groups),
                1 => ConvShape::new(shape.batch, channels, shape.size, [3; 2])
                    .with_padding([1; 2])
                    .with_groups(groups),
                _ => shape,
            };
            if shape.validate().is_ok() && shape.macs() < 1_500_000 {
                return shape;
            }
        }
    }
}

fn mask_of(rows: usize, cols: usize, keep: impl Fn(usize) -> bool) -> BitMask {
    let keep: Vec<bool> = (0..rows * cols).map(keep).collect();
    BitMask::from_keep(rows, cols, &keep).expect("sizes agree")
}

/// The weights with NaN where the mask prunes.
fn poisoned(w: &[f32], keep: &BitMask) -> Vec<f32> {
    w.iter()
        .zip(keep.keep())
        .map(|(w, keep)| if keep { *w } else { f32::NAN })
        .collect()
}

#[test]
fn sparse_convolutions_agree_with_f64_loops() {
    let mut worst = 0.0f64;
    for isa in Isa::available() {
        let mut random = Random(11);
        for case in 0..250 {
            let shape = random.conv();
            let x = random.floats(shape.input_len());
            let w = random.floats(shape.weight_len());
            let g = random.floats(shape.output_len());
            let bias = random.floats(shape.outputs);
            let keep = random.mask(shape.outputs, shape.weight_cols());
            let weight =
                SparseWeight::from_dense(&poisoned(&w, &keep), &keep).expect("sizes agree");
            let bias = (random.below(2) == 1).then_some(&bias[..]);
            let mut check = |what: &str, want: reference::Product, got: &[f32], terms: usize| {
                let ratio = want.worst(got, terms);
                assert!(
                    ratio <= 1.0,
                    "{isa:?} case {case} {what}: {ratio} of the bound, {shape:?}"
                );
                worst = worst.max(ratio);
            };
            let y = sparse::forward(isa, &shape, &x, &weight, bias);
            let want = reference::conv2d(&x, &w, Some(&keep), bias, &shape);
            check("output", want, &y, shape.weight_cols());

            let dx = sparse::input_grad(isa, &shape, &g, &weight);
            let want = reference::conv2d_dx(&g, &w, Some(&keep), &shape);
            check("input gradient", want, &dx, shape.outputs * shape.taps());

            let dw = sparse::weight_grad(isa, &shape, &x, &g, &weight);
            let want = reference::conv2d_dw(&g, &x, Some(&keep), &shape);
            let positions = shape.batch * shape.out_size().iter().product::<usize>();
            check("weight gradient", want, &dw, positions);
            let outside = dw.iter().zip(keep.keep()).filter(|(_, keep)| !keep);
            assert!(
                outside.map(|(d, _)| d).all(|d| *d == 0.0),
                "case {case}: a gradient outside"
            );
        }
    }
    assert!(worst > 0.0, "something was computed");
}

#[test]
fn sparse_linear_layers_agree_with_f64_loops() {
    for isa in Isa::available() {
        let mut random = Random(13);
        for case in 0..120 {
            let sizes = [1, 2, 7, 8, 9, 31, 64, 65, 97, 127, 128, 129, 257];
            let mut shape = LinearShape {
                positions: random.of(&sizes),
                rows: random.of(&sizes),
                cols: random.of(&sizes),
            };
            match case {
                0 => shape.positions = 0,
                1 => shape.rows = 0,
                // More rows than are summed at a time.
                2 => shape.rows = 700,
                _ => {}
            }
            let x = random.floats(shape.positions * shape.cols);
            let w = random.floats(shape.rows * shape.cols);
            let bias = random.floats(shape.rows);
            let keep = random.mask(shape.rows, shape.cols);
            let weight =
                SparseWeight::from_dense(&poisoned(&w, &keep), &keep).expect("sizes agree");
            let y = sparse::linear(isa, &x, &weight, Some(&bias));
            let want = reference::linear(&x, &w, Some(&keep), Some(&bias), shape);
            let ratio = want.worst(&y, shape.cols);
            assert!(
                ratio <= 1.0,
                "{isa:?} case {case}: {ratio} of the bound, {shape:?}"
            );
        }
    }
}

#[test]
fn a_weight_serves_many_shapes_in_turn() {
    let isa = Isa::detect();
    let mut random = Random(19);
    let w = random.floats(12 * 10 * 9);
    let keep = random.mask(12, 90);
    let weight = SparseWeight::from_dense(&w, &keep).expect("sizes agree");
    // More than are remembered, twice.
    for batch in (1..8).chain(1..8) {
        let shape = ConvShape::new(batch, [10, 12], [6, 5], [3; 2]).with_padding([1; 2]);
        let x = random.floats(shape.input_len());
        let y = sparse::forward(isa, &shape, &x, &weight, None);
        let want = reference::conv2d(&x, &w, Some(&keep), None, &shape);
        assert!(want.worst(&y, shape.weight_cols()) <= 1.0, "batch {batch}");
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let isa = Isa::detect();
    let mut random = Random(23);
    let shape = ConvShape::new(3, [40, 48], [17, 17], [3; 2]).with_padding([1; 2]);
    let x = random.floats(shape.input_len());
    let g = random.floats(shape.output_len());
    let w = random.floats(shape.weight_len());
    let keep = mask_of(48, 360, |i| i % 5 == 0);
    let all = || {
        let weight = SparseWeight::from_dense(&w, &keep).expect("sizes agree");
        let linear = SparseWeight::from_dense(&w, &keep).expect("sizes agree");
        [
            sparse::forward(isa, &shape, &x, &weight, None),
            sparse::input_grad(isa, &shape, &g, &weight),
            sparse::weight_grad(isa, &shape, &x, &g, &weight),
            sparse::linear(isa, &x[..360 * 96], &linear, None),
        ]
    };
    let pool = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool")
    };
    let one = pool(1).install(all);
    for threads in [2, 3] {
        assert!(pool(threads).install(all) == one, "{threads} threads");
    }
}

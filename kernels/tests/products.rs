//! Products on the CPU against f64 loops, on every instruction set at hand: sizes around the tiles', strides, padding,
//! dilation, groups, masks of every density, empty batches.

mod common;

use common::Random;
use kernels::cpu::{Isa, Mask, conv, weight_grad};
use kernels::{ConvShape, reference};

impl Random {
    fn conv(&mut self) -> ConvShape {
        loop {
            let groups = self.of(&[1, 1, 1, 2, 3, 8]);
            let channels =
                [0, 1].map(|_| groups * (1 + self.below(if groups > 1 { 5 } else { 40 })));
            let shape = ConvShape {
                batch: self.of(&[0, 1, 1, 2, 3, 7, 8, 9, 16, 17]),
                inputs: channels[0],
                outputs: channels[1],
                size: [1 + self.below(19), 1 + self.below(19)],
                kernel: [self.of(&[1, 1, 2, 3, 3, 5]), self.of(&[1, 1, 2, 3, 3, 5])],
                stride: [1 + self.below(3), 1 + self.below(3)],
                padding: [
                    [self.below(4), self.below(4)],
                    [self.below(4), self.below(4)],
                ],
                dilation: [1 + self.below(2), 1 + self.below(2)],
                groups,
            };
            let shape = match self.below(6) {
                0 => ConvShape::new(shape.batch, channels, shape.size, [1; 2]).with_groups(groups),
                1 => ConvShape::new(shape.batch, channels, shape.size, [3; 2])
                    .with_padding([1; 2])
                    .with_groups(groups),
                2 => ConvShape::new(shape.batch, [channels[0]; 2], shape.size, [3; 2])
                    .with_padding([1; 2])
                    .with_stride([1 + self.below(2); 2])
                    .with_groups(channels[0]),
                _ => shape,
            };
            if shape.validate().is_ok() && shape.macs() < 1_500_000 {
                return shape;
            }
        }
    }
}

#[test]
fn convolutions_agree_with_f64_loops() {
    let mut worst = 0.0f64;
    let mut cases = 0;
    for isa in Isa::available() {
        let mut random = Random(7);
        for case in 0..400 {
            let shape = random.conv();
            let x = random.floats(shape.input_len());
            let w = random.floats(shape.weight_len());
            let g = random.floats(shape.output_len());
            let bias = random.floats(shape.outputs);
            let keep = random.maybe_mask(shape.outputs, shape.weight_cols());
            let mask = keep.as_ref().map(Mask::from);
            let with_bias = random.below(2) == 1;
            let bias = with_bias.then_some(&bias[..]);
            let mut check = |what: &str, want: reference::Product, got: &[f32], terms: usize| {
                let ratio = want.worst(got, terms);
                assert!(
                    ratio <= 1.0,
                    "{isa:?} case {case} {what}: {ratio} of the bound, {shape:?}"
                );
                worst = worst.max(ratio);
                cases += 1;
            };
            let y = conv::forward(isa, &shape, &x, &w, mask, bias);
            let want = reference::conv2d(&x, &w, keep.as_ref(), bias, &shape);
            check("output", want, &y, shape.weight_cols());

            let dx = conv::input_grad(isa, &shape, &g, &w, mask);
            let want = reference::conv2d_dx(&g, &w, keep.as_ref(), &shape);
            check("input gradient", want, &dx, shape.outputs * shape.taps());

            let dw = weight_grad::weight_grad(isa, &shape, &x, &g, mask);
            let want = reference::conv2d_dw(&g, &x, keep.as_ref(), &shape);
            let positions = shape.batch * shape.out_size().iter().product::<usize>();
            check("weight gradient", want, &dw, positions);
        }
    }
    println!("{cases} products, largest error {worst:.3} of its bound");
}

#[test]
fn bits_do_not_depend_on_threads() {
    let isa = Isa::detect();
    let mut random = Random(11);
    let conv = |batch, channels: [usize; 2], size, kernel: usize, stride| {
        ConvShape::new(batch, channels, [size; 2], [kernel; 2])
            .with_padding([kernel / 2; 2])
            .with_stride([stride; 2])
    };
    let shapes = [
        conv(3, [37, 50], 17, 3, 1),
        conv(1, [64, 64], 20, 3, 1),
        conv(9, [40, 24], 7, 3, 1),
        conv(2, [70, 90], 23, 1, 1),
        conv(5, [24, 31], 16, 3, 2),
        conv(4, [30, 60], 12, 3, 1).with_groups(3),
    ];
    for shape in shapes {
        let x = random.floats(shape.input_len());
        let w = random.floats(shape.weight_len());
        let g = random.floats(shape.output_len());
        let keep = random.maybe_mask(shape.outputs, shape.weight_cols());
        let mask = keep.as_ref().map(Mask::from);
        let all = || {
            [
                conv::forward(isa, &shape, &x, &w, mask, None),
                conv::input_grad(isa, &shape, &g, &w, mask),
                weight_grad::weight_grad(isa, &shape, &x, &g, mask),
            ]
            .map(|values| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
        };
        let on = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("threads")
        };
        let one = on(1).install(all);
        for threads in [2, 3, 8] {
            let pool = on(threads);
            for time in 0..20 {
                assert!(
                    pool.install(all) == one,
                    "{threads} threads, time {time}, {shape:?}"
                );
            }
        }
    }
}

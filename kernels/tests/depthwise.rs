//! Depthwise convolutions against f64 loops, on every instruction set at hand: widths around a vector's, several
//! kernels, strides, channel multipliers, masks, bits at several thread counts.

mod common;

use common::Random;
use kernels::cpu::{Isa, Mask, conv, weight_grad};
use kernels::{ConvShape, reference};

impl Random {
    /// As networks have them, or anything.
    fn shape(&mut self) -> ConvShape {
        loop {
            let channels = self.of(&[2, 3, 5, 8, 17]);
            let multiplier = self.of(&[1, 1, 1, 2, 3]);
            let side = self.of(&[1, 2, 5, 7, 8, 9, 14, 15, 16, 17, 28, 33, 70, 112]);
            let kernel = self.of(&[3, 3, 5, 5, 7, 2, 1]);
            let shape = ConvShape::new(
                self.of(&[0, 1, 2, 5]),
                [channels, channels * multiplier],
                [side; 2],
                [kernel; 2],
            )
            .with_groups(channels)
            .with_padding([kernel / 2; 2])
            .with_stride([1 + self.below(2); 2]);
            let shape = if self.below(3) > 0 {
                shape
            } else {
                ConvShape {
                    size: [1 + self.below(20), 1 + self.below(40)],
                    kernel: [1 + self.below(5), 1 + self.below(6)],
                    stride: [1 + self.below(3), 1 + self.below(3)],
                    padding: [
                        [self.below(4), self.below(4)],
                        [self.below(4), self.below(4)],
                    ],
                    dilation: [1 + self.below(2), 1 + self.below(2)],
                    ..shape
                }
            };
            if shape.validate().is_ok() && shape.macs() < 700_000 {
                return shape;
            }
        }
    }
}

#[test]
fn depthwise_convolutions_agree_with_f64_loops() {
    let mut worst = 0.0f64;
    for isa in Isa::available() {
        let mut random = Random(29);
        for case in 0..500 {
            let shape = random.shape();
            let x = random.floats(shape.input_len());
            let g = random.floats(shape.output_len());
            let bias = random.floats(shape.outputs);
            let keep = random.mask(shape.outputs, shape.weight_cols());
            let w = random.floats(shape.weight_len());
            // What is stored in masked places does not matter.
            let poisoned: Vec<f32> = w
                .iter()
                .zip(keep.keep())
                .map(|(w, keep)| if keep { *w } else { f32::NAN })
                .collect();
            let masked = random.below(3) > 0;
            let (w, keep) = if masked {
                (poisoned, Some(&keep))
            } else {
                (w, None)
            };
            let finite: Vec<f32> = w
                .iter()
                .map(|w| if w.is_nan() { 0.0 } else { *w })
                .collect();
            let mask = keep.map(Mask::from);
            let bias = (random.below(2) == 1).then_some(&bias[..]);
            let mut check = |what: &str, want: reference::Product, got: &[f32], terms: usize| {
                let ratio = want.worst(got, terms);
                assert!(
                    ratio <= 1.0,
                    "{isa:?} case {case} {what}: {ratio} of the bound, {shape:?}"
                );
                worst = worst.max(ratio);
            };
            let y = conv::forward(isa, &shape, &x, &w, mask, bias);
            let want = reference::conv2d(&x, &finite, keep, bias, &shape);
            check("output", want, &y, shape.weight_cols());

            let dx = conv::input_grad(isa, &shape, &g, &w, mask);
            let want = reference::conv2d_dx(&g, &finite, keep, &shape);
            let terms = shape.outputs / shape.groups * shape.taps();
            check("input gradient", want, &dx, terms);

            let dw = weight_grad::weight_grad(isa, &shape, &x, &g, mask);
            let want = reference::conv2d_dw(&g, &x, keep, &shape);
            let positions = shape.batch * shape.out_size().iter().product::<usize>();
            check("weight gradient", want, &dw, positions);
        }
    }
    assert!(worst > 0.0, "something was computed");
}

#[test]
fn an_infinite_activation_reaches_its_own_outputs_and_taps_alone() {
    for isa in Isa::available() {
        for width in [7, 14, 19] {
            let shape = ConvShape::new(1, [2, 2], [width; 2], [3; 2]).with_groups(2);
            let mut random = Random(31);
            let mut x = random.floats(shape.input_len());
            // The last column of the first channel: only the last column of taps and of outputs meets it.
            for row in 0..width {
                x[row * width + width - 1] = f32::INFINITY;
            }
            let (w, g) = (
                random.floats(shape.weight_len()),
                random.floats(shape.output_len()),
            );
            let y = conv::forward(isa, &shape, &x, &w, None, None);
            for (i, y) in y.iter().enumerate() {
                let out = width - 2;
                let meets = i < out * out && i % out == out - 1;
                assert_eq!(y.is_finite(), !meets, "{isa:?} width {width} output {i}");
            }
            let dw = weight_grad::weight_grad(isa, &shape, &x, &g, None);
            for (i, d) in dw.iter().enumerate() {
                let meets = i < 9 && i % 3 == 2;
                assert_eq!(d.is_finite(), !meets, "{isa:?} width {width} weight {i}");
            }
        }
    }
}

#[test]
fn without_outputs_the_input_has_no_gradient() {
    let shape = ConvShape::new(2, [3, 0], [5, 9], [3; 2]).with_groups(3);
    assert!(shape.validate().is_ok());
    for isa in Isa::available() {
        let x = vec![1.0; shape.input_len()];
        assert!(conv::forward(isa, &shape, &x, &[], None, None).is_empty());
        let dx = conv::input_grad(isa, &shape, &[], &[], None);
        assert_eq!(dx, vec![0.0; shape.input_len()]);
        assert!(weight_grad::weight_grad(isa, &shape, &x, &[], None).is_empty());
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let isa = Isa::detect();
    let mut random = Random(37);
    let shape = ConvShape::new(3, [96, 96], [21, 21], [3; 2])
        .with_groups(96)
        .with_padding([1; 2]);
    let x = random.floats(shape.input_len());
    let g = random.floats(shape.output_len());
    let w = random.floats(shape.weight_len());
    let all = || {
        [
            conv::forward(isa, &shape, &x, &w, None, None),
            conv::input_grad(isa, &shape, &g, &w, None),
            weight_grad::weight_grad(isa, &shape, &x, &g, None),
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

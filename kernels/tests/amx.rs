//! Products on tiles against f64 loops, with the tiles emulated; where the processor has them, also against the emulation,
//! bit by bit.
//!
//! Every product is computed twice: on fractions, within the bound of its precision, and on small whole numbers, which
//! bf16 holds and f32 sums without rounding: there one misplaced factor shows, however loose the bound is.

mod common;

use burn::tensor::{Device, Tensor, TensorData};
use common::Random;
use kernels::cpu::amx::{self, Amx, Missing};
use kernels::cpu::{self, Isa, Mask, conv, weight_grad};
use kernels::reference::{self, Rounding};
use kernels::{BitMask, ConvOptions, ConvShape, KernelError, LinearShape, Precision};

const SPLITS: [(Precision, Rounding); 2] = [
    (Precision::Bf16x3, Rounding::Bf16x3),
    (Precision::Bf16, Rounding::Bf16),
];

impl Random {
    /// Fractions in [-1, 1), or whole numbers from -3 to 3.
    fn values(&mut self, n: usize, whole: bool) -> Vec<f32> {
        (0..n)
            .map(|_| match whole {
                true => self.below(7) as f32 - 3.0,
                false => (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0,
            })
            .collect()
    }

    fn conv(&mut self) -> ConvShape {
        loop {
            let groups = self.of(&[1, 1, 1, 2, 3]);
            let channels =
                [0, 1].map(|_| groups * (1 + self.below(if groups > 1 { 9 } else { 70 })));
            let size = [1 + self.below(17), 1 + self.below(17)];
            let batch = self.of(&[0, 1, 2, 3, 5, 17]);
            let shape = match self.below(3) {
                0 => ConvShape::new(batch, channels, size, [1; 2]),
                1 => ConvShape::new(batch, channels, size, [3; 2]).with_padding([1; 2]),
                _ => ConvShape {
                    stride: [1 + self.below(3), 1 + self.below(3)],
                    padding: [
                        [self.below(4), self.below(4)],
                        [self.below(4), self.below(4)],
                    ],
                    dilation: [1 + self.below(2), 1 + self.below(2)],
                    ..ConvShape::new(
                        batch,
                        channels,
                        size,
                        [self.of(&[1, 2, 3, 5]), self.of(&[1, 2, 3, 5])],
                    )
                },
            }
            .with_groups(groups);
            if shape.validate().is_ok() && shape.macs() < 600_000 {
                return shape;
            }
        }
    }
}

/// Puts NaN where the mask prunes.
fn poison(w: &mut [f32], mask: Option<&BitMask>) {
    if let Some(mask) = mask {
        for (w, keep) in w.iter_mut().zip(mask.keep()) {
            if !keep {
                *w = f32::NAN;
            }
        }
    }
}

/// Holds a product against the exact one, and counts.
struct Judge {
    rounding: Rounding,
    whole: bool,
    worst: f64,
    cases: usize,
}

impl Judge {
    fn check(&mut self, what: &str, want: &reference::Product, got: &[f32], terms: usize) {
        self.cases += 1;
        if self.whole {
            let want: Vec<f32> = want.value.iter().map(|&v| v as f32).collect();
            assert!(
                want == got,
                "{what}: whole numbers must come out exact, {:?}",
                want.iter()
                    .zip(got)
                    .enumerate()
                    .find(|(_, (want, got))| want != got)
            );
        } else {
            let ratio = want.worst_within(got, self.rounding.bound(terms));
            assert!(ratio <= 1.0, "{what}: {ratio} of the bound");
            self.worst = self.worst.max(ratio);
        }
    }
}

/// All three products of a convolution; what they are on other tiles too, if there are any to compare with.
fn convolution(
    random: &mut Random,
    amx: Amx,
    twin: Option<Amx>,
    judge: &mut Judge,
    shape: &ConvShape,
) {
    let isa = Isa::detect();
    let x = random.values(shape.input_len(), judge.whole);
    let mut w = random.values(shape.weight_len(), judge.whole);
    let g = random.values(shape.output_len(), judge.whole);
    let keep = random.maybe_mask(shape.outputs, shape.weight_cols());
    poison(&mut w, keep.as_ref());
    let mask = keep.as_ref().map(Mask::from);
    let bias = random.values(shape.outputs, judge.whole);
    let bias = (random.below(2) == 1).then_some(&bias[..]);

    let forward = |amx: Amx| amx.conv_forward(isa, shape, &x, &w, mask, bias);
    let y = forward(amx);
    let want = reference::conv2d(&x, &w, keep.as_ref(), bias, shape);
    judge.check(
        &format!("output of {shape:?}"),
        &want,
        &y,
        shape.weight_cols(),
    );

    // Leaves NaN in all scratch memory: what the next products do not write, they must not read.
    if random.below(3) == 0 {
        let nan = vec![f32::NAN; x.len().max(w.len()).max(g.len())];
        let (nx, nw, ng) = (&nan[..x.len()], &nan[..w.len()], &nan[..g.len()]);
        amx.conv_forward(isa, shape, nx, nw, None, None);
        amx.conv_weight_grad(isa, shape, nx, ng, None);
    }
    let input_grad = |amx: Amx| amx.conv_input_grad(isa, shape, &g, &w, mask);
    let dx = input_grad(amx);
    let want = reference::conv2d_dx(&g, &w, keep.as_ref(), shape);
    let terms = shape.outputs * shape.taps();
    judge.check(&format!("input gradient of {shape:?}"), &want, &dx, terms);

    let weight_grad = |amx: Amx| amx.conv_weight_grad(isa, shape, &x, &g, mask);
    let dw = weight_grad(amx);
    let want = reference::conv2d_dw(&g, &x, keep.as_ref(), shape);
    let terms = shape.batch * shape.out_size().iter().product::<usize>();
    judge.check(&format!("weight gradient of {shape:?}"), &want, &dw, terms);

    if let Some(twin) = twin {
        same(&y, &forward(twin), shape);
        same(&dx, &input_grad(twin), shape);
        same(&dw, &weight_grad(twin), shape);
    }
}

/// All three products of a linear layer.
fn linear(random: &mut Random, amx: Amx, twin: Option<Amx>, judge: &mut Judge, shape: LinearShape) {
    let isa = Isa::detect();
    let LinearShape {
        positions,
        rows,
        cols,
    } = shape;
    let x = random.values(positions * cols, judge.whole);
    let mut w = random.values(rows * cols, judge.whole);
    let g = random.values(positions * rows, judge.whole);
    let keep = random.maybe_mask(rows, cols);
    poison(&mut w, keep.as_ref());
    let mask = keep.as_ref().map(Mask::from);
    let bias = random.values(rows, judge.whole);
    let bias = (random.below(2) == 1).then_some(&bias[..]);
    // The judge has a row per output, the layer a column.
    let turned = |from: &[f32], rows: usize, cols: usize| -> Vec<f32> {
        (0..rows * cols)
            .map(|i| from[i % rows * cols + i / rows])
            .collect()
    };
    let across = turned(&w, rows, cols);

    let forward = |amx: Amx| amx.linear_forward(isa, shape, &x, &across, mask, bias);
    let y = forward(amx);
    let want = reference::linear(&x, &w, keep.as_ref(), bias, shape);
    judge.check(&format!("output of {shape:?}"), &want, &y, cols);

    if random.below(3) == 0 {
        let nan = vec![f32::NAN; x.len().max(w.len())];
        let (nx, nw) = (&nan[..x.len()], &nan[..w.len()]);
        amx.linear_forward(isa, shape, nx, nw, None, None);
    }
    let input_grad = |amx: Amx| amx.linear_input_grad(isa, shape, &g, &across, mask);
    let dx = input_grad(amx);
    let want = reference::linear_dx(&g, &w, keep.as_ref(), shape);
    judge.check(&format!("input gradient of {shape:?}"), &want, &dx, rows);

    let weight_grad = |amx: Amx| amx.linear_weight_grad(isa, shape, &x, &g, mask);
    let dw = weight_grad(amx);
    let want = reference::linear_dw(&g, &x, keep.as_ref(), shape);
    let what = format!("weight gradient of {shape:?}");
    judge.check(&what, &want, &turned(&dw, cols, rows), positions);

    if let Some(twin) = twin {
        same(&y, &forward(twin), &shape);
        same(&dx, &input_grad(twin), &shape);
        same(&dw, &weight_grad(twin), &shape);
    }
}

fn same(left: &[f32], right: &[f32], shape: &impl std::fmt::Debug) {
    assert!(
        left.iter()
            .map(|v| v.to_bits())
            .eq(right.iter().map(|v| v.to_bits())),
        "{shape:?}: bits differ"
    );
}

/// Sizes that use each way of cutting the work: 640 channels in two passes, bands of rows, images side by side, several
/// positions' worth of images in one pass.
fn large() -> [ConvShape; 5] {
    let square = |batch, channels, size, kernel: usize| {
        ConvShape::new(batch, channels, [size; 2], [kernel; 2]).with_padding([kernel / 2; 2])
    };
    [
        square(1, [640, 40], 14, 3),
        square(1, [8, 64], 56, 3),
        square(33, [48, 33], 4, 3),
        square(2, [96, 80], 28, 3).with_stride([2; 2]),
        square(1, [257, 70], 33, 1),
    ]
}

/// Every product, on random and on chosen shapes.
fn suite(name: &str, tiles: impl Fn(Precision) -> Amx, twin: impl Fn(Precision) -> Option<Amx>) {
    for (precision, rounding) in SPLITS {
        let (amx, twin) = (tiles(precision), twin(precision));
        let mut random = Random(11);
        let mut judge = Judge {
            rounding,
            whole: false,
            worst: 0.0,
            cases: 0,
        };
        for case in 0..70 {
            judge.whole = case % 2 == 0;
            let shape = random.conv();
            convolution(&mut random, amx, twin, &mut judge, &shape);
        }
        for shape in large() {
            judge.whole = !judge.whole;
            convolution(&mut random, amx, twin, &mut judge, &shape);
        }
        let edges = [127, 128, 129, 255, 256, 257];
        for case in 0..60 {
            judge.whole = case % 2 == 0;
            let mut size = || match random.below(6) {
                0 => random.of(&edges),
                _ => random.below(98),
            };
            let shape = LinearShape {
                positions: size(),
                rows: size(),
                cols: size(),
            };
            linear(&mut random, amx, twin, &mut judge, shape);
        }
        for [positions, rows, cols] in
            [[3, 70, 1100], [1030, 17, 40], [40, 1100, 9], [600, 520, 33]]
        {
            judge.whole = !judge.whole;
            let shape = LinearShape {
                positions,
                rows,
                cols,
            };
            linear(&mut random, amx, twin, &mut judge, shape);
        }
        println!(
            "{name} {precision}: {} products, largest error {:.3} of its bound",
            judge.cases, judge.worst
        );
    }
}

fn emulated(precision: Precision) -> Amx {
    Amx::emulated(precision).expect("a precision of tiles")
}

#[test]
fn emulated_products_agree_with_f64_loops() {
    suite("emulated", emulated, |_| None);
}

#[test]
fn hardware_products_are_the_emulated_ones() {
    match amx::permission() {
        Ok(()) => {}
        Err(Missing::Processor { .. }) => {
            println!("skipped: amx_hardware: this CPU has no AMX");
            return;
        }
        Err(missing) => {
            println!("skipped: amx_hardware: {missing}");
            return;
        }
    }
    let hardware = |precision| {
        Amx::new(precision)
            .expect("permission was given")
            .expect("a precision of tiles")
    };
    suite("hardware", hardware, |precision| Some(emulated(precision)));
}

/// Three terms bring what they are for: errors two hundred times smaller than bf16's.
#[test]
fn a_split_factor_is_closer_than_a_rounded_one() {
    let mut random = Random(5);
    let shape = ConvShape::new(1, [64, 32], [14; 2], [3; 2]).with_padding([1; 2]);
    let x = random.values(shape.input_len(), false);
    let w = random.values(shape.weight_len(), false);
    let want = reference::conv2d(&x, &w, None, None, &shape);
    let [three, one] = SPLITS.map(|(precision, _)| {
        let y = emulated(precision).conv_forward(Isa::detect(), &shape, &x, &w, None, None);
        want.worst_within(&y, 1.0)
    });
    assert!(three * 200.0 < one, "{three} and {one}");
}

/// The product of two remainders that is left out, 2^-16, and what two terms miss of each factor, 2^-17, on one side: the
/// worst single product errs by a third more than the bound that sums are held against.
#[test]
fn the_worst_split_product_errs_by_four_parts_in_two_to_the_17() {
    let worst = 1.0 + 2f32.powi(-8) - 2f32.powi(-17) - 2f32.powi(-23);
    let shape = LinearShape {
        positions: 1,
        rows: 1,
        cols: 1,
    };
    let y = emulated(Precision::Bf16x3).linear_forward(
        Isa::detect(),
        shape,
        &[worst],
        &[worst],
        None,
        None,
    );
    let exact = f64::from(worst).powi(2);
    let error = (f64::from(y[0]) - exact).abs() / exact * 2f64.powi(17);
    assert!(3.9 < error && error <= 4.0, "{error}");
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut random = Random(23);
    let isa = Isa::detect();
    let shape = ConvShape::new(3, [70, 80], [13; 2], [3; 2]).with_padding([1; 2]);
    let layer = LinearShape {
        positions: 300,
        rows: 270,
        cols: 90,
    };
    let x = random.values(shape.input_len(), false);
    let w = random.values(shape.weight_len(), false);
    let g = random.values(shape.output_len(), false);
    let lx = random.values(layer.positions * layer.cols, false);
    let lw = random.values(layer.rows * layer.cols, false);
    let amx = emulated(Precision::Bf16x3);
    let all = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a pool").install(|| {
            [
                amx.conv_forward(isa, &shape, &x, &w, None, None),
                amx.conv_input_grad(isa, &shape, &g, &w, None),
                amx.conv_weight_grad(isa, &shape, &x, &g, None),
                amx.linear_forward(isa, layer, &lx, &lw, None, None),
            ]
        })
    };
    let one = all(1);
    for threads in [2, 5] {
        for (one, many) in one.iter().zip(&all(threads)) {
            same(one, many, &threads);
        }
    }
}

#[test]
fn a_kept_nan_is_not_hidden() {
    let shape = ConvShape::new(1, [32, 16], [6; 2], [3; 2]).with_padding([1; 2]);
    let x = vec![1.0; shape.input_len()];
    let mut w = vec![1.0; shape.weight_len()];
    w[5 * shape.weight_cols()] = f32::NAN;
    for (precision, _) in SPLITS {
        let y = emulated(precision).conv_forward(Isa::detect(), &shape, &x, &w, None, None);
        for (row, y) in y.chunks_exact(36).enumerate() {
            // Its tap meets zeros of the padding too, which are factors here.
            assert!(
                y.iter().all(|y| y.is_nan() == (row == 5)),
                "{precision} row {row}"
            );
        }
    }
}

#[test]
fn what_a_machine_lacks_is_refused_by_name() {
    assert_eq!(Amx::new(Precision::F32), Ok(None));
    for (precision, _) in SPLITS {
        match amx::permission() {
            Ok(()) => assert_eq!(precision.check(), Ok(())),
            Err(missing) => {
                let error = precision.check().expect_err("what is missing is needed");
                let expected =
                    format!("{precision} products are not available: {missing}; use f32");
                assert_eq!(error.to_string(), expected);
                assert!(
                    matches!(error, KernelError::Precision { precision: p, .. } if p == precision)
                );
                assert_eq!(Amx::new(precision), Err(error));
            }
        }
    }
}

/// The tape included: gradients are in the precision of the product they belong to.
#[test]
fn operations_compute_in_the_precision_they_are_given() {
    let device = Device::flex().autodiff();
    let isa = Isa::detect();
    let mut random = Random(2);
    let shape = ConvShape::new(2, [16, 24], [8; 2], [3; 2]).with_padding([1; 2]);
    let x = random.values(shape.input_len(), false);
    let w = random.values(shape.weight_len(), false);
    let g = random.values(shape.output_len(), false);
    let conv = |precision| conv_on_tape(&shape, [&x, &w, &g], &device, precision);
    let layer = LinearShape {
        positions: 16,
        rows: 24,
        cols: 32,
    };
    let (lx, lw) = (&x[..16 * 32], &w[..24 * 32]);
    let linear = |precision| {
        let x = Tensor::from_data(TensorData::new(lx.to_vec(), [16, 32]), &device);
        let w = Tensor::from_data(TensorData::new(lw.to_vec(), [32, 24]), &device);
        kernels::linear::<2>(x, w, None, None, precision).map(read)
    };

    let in_f32 = [
        conv::forward(isa, &shape, &x, &w, None, None),
        conv::input_grad(isa, &shape, &g, &w, None),
        weight_grad::weight_grad(isa, &shape, &x, &g, None),
    ];
    assert_eq!(conv(Precision::F32), Ok(in_f32));
    let in_f32 = cpu::linear::forward(isa, layer, lx, lw, None, None);
    assert_eq!(linear(Precision::F32), Ok(in_f32));
    for (precision, _) in SPLITS {
        let amx = emulated(precision);
        let on_tiles = [
            amx.conv_forward(isa, &shape, &x, &w, None, None),
            amx.conv_input_grad(isa, &shape, &g, &w, None),
            amx.conv_weight_grad(isa, &shape, &x, &g, None),
        ];
        // Where there are no tiles, each operation says so.
        let there = precision.check();
        assert_eq!(conv(precision), there.clone().map(|()| on_tiles));
        let on_tiles = amx.linear_forward(isa, layer, lx, lw, None, None);
        assert_eq!(linear(precision), there.clone().map(|()| on_tiles));
        if there.is_ok() {
            let few = ConvShape::new(1, [3, 16], [8; 2], [3; 2]);
            let [x, w, g] = [few.input_len(), few.weight_len(), few.output_len()]
                .map(|n| random.values(n, false));
            let before = kernels::precision_fallbacks();
            conv_on_tape(&few, [&x, &w, &g], &device, precision).expect("permission was given");
            assert_eq!(kernels::precision_fallbacks(), before + 3);
        }
    }
}

/// A convolution's output and gradients, by the operation on tensors.
fn conv_on_tape(
    shape: &ConvShape,
    [x, w, g]: [&[f32]; 3],
    device: &Device,
    precision: Precision,
) -> Result<[Vec<f32>; 3], KernelError> {
    let tensor = |values: &[f32], dims: [usize; 4]| {
        Tensor::<4>::from_data(TensorData::new(values.to_vec(), dims), device)
    };
    let x = tensor(x, shape.input_dims()).require_grad();
    let w = tensor(w, shape.weight_dims()).require_grad();
    let options = ConvOptions {
        stride: shape.stride,
        padding: shape.padding,
        dilation: shape.dilation,
        groups: shape.groups,
    };
    let y = kernels::conv2d(x.clone(), w.clone(), None, None, options, precision)?;
    let grads = (y.clone() * tensor(g, shape.output_dims()))
        .sum()
        .backward();
    Ok([
        read(y),
        read(x.grad(&grads).expect("tracked")),
        read(w.grad(&grads).expect("tracked")),
    ])
}

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

#[test]
fn shapes_that_leave_tiles_empty_are_declined() {
    let shape = |channels, size| ConvShape::new(1, channels, size, [1; 2]);
    assert!(Amx::declines(&shape([3, 64], [8; 2])).is_some());
    assert!(Amx::declines(&shape([64, 64], [8; 2]).with_groups(64)).is_some());
    assert!(Amx::declines(&shape([64, 64], [1; 2])).is_none());
    assert!(Amx::declines_weight_grad(&shape([64, 64], [1; 2])).is_some());
    assert!(Amx::declines_weight_grad(&shape([64, 64], [7; 2])).is_none());
    let layer = |positions, rows, cols| LinearShape {
        positions,
        rows,
        cols,
    };
    assert!(Amx::declines_linear(layer(1, 64, 64)).is_some());
    assert!(Amx::declines_linear(layer(8, 64, 10)).is_none());
}

//! The products on a GPU, or on a software adapter in its place, against f64 loops: through Burn's tensors, with every
//! gradient, between other operations, so that its tape and its fusing layer are under test too.
//!
//! The device is `PTSBENCH_TEST_DEVICE`: `wgpu` (the default) or `cuda`. Without one, a test says that it was skipped.
#![cfg(feature = "gpu")]

mod common;

use std::sync::OnceLock;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use common::Random;
use kernels::LinearShape;
use kernels::reference::{self, Product};
use kernels::{BitMask, ConvOptions, ConvShape, Precision};

/// The device, or why there is none; looked for once.
fn device(test: &str) -> Option<Device> {
    static FOUND: OnceLock<Result<Device, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let name = std::env::var("PTSBENCH_TEST_DEVICE").unwrap_or_else(|_| "wgpu".to_owned());
        let device = match name.as_str() {
            "wgpu" => wgpu(),
            "cuda" => cuda(),
            other => panic!("PTSBENCH_TEST_DEVICE is {other:?}; use wgpu or cuda"),
        }?;
        let adapter = device.identity().map(|identity| identity.name);
        println!("{name}: {}", adapter.unwrap_or_default());
        Ok(device)
    });
    match found {
        Ok(device) => Some(device.clone()),
        Err(reason) => {
            println!("skipped: gpu, {test}: {reason}");
            None
        }
    }
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Result<Device, String> {
    use burn::tensor::DeviceKind;
    let mut kinds = vec![
        DeviceKind::DiscreteGpu(0),
        DeviceKind::IntegratedGpu(0),
        DeviceKind::VirtualGpu(0),
    ];
    if !cfg!(feature = "vulkan") {
        kinds.push(DeviceKind::Cpu);
    }
    for kind in kinds {
        // Burn panics where there is no such adapter.
        let found = std::panic::catch_unwind(|| {
            let device = Device::wgpu(kind);
            device.sync().map(|()| device)
        });
        if let Ok(Ok(device)) = found {
            return Ok(device);
        }
    }
    Err("no adapter".to_owned())
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Result<Device, String> {
    Err("built without wgpu".to_owned())
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Device, String> {
    // Burn's device panics on first use without a driver.
    if !std::path::Path::new("/proc/driver/nvidia/version").exists() {
        return Err("no NVIDIA driver".to_owned());
    }
    Ok(Device::cuda(0))
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Device, String> {
    Err("built without CUDA".to_owned())
}

/// Leaves memory of about this many numbers to be taken again, full of what no result may show.
fn poison(device: &Device, lengths: &[usize]) {
    let plain = device.clone().without_autodiff();
    let full: Vec<Tensor<1>> = lengths
        .iter()
        .map(|&length| Tensor::full([length.max(1)], f32::NAN, &plain))
        .collect();
    for tensor in &full {
        assert!(tensor.clone().slice([0..1]).into_scalar::<f32>().is_nan());
    }
}

fn upload<const D: usize>(values: &[f32], dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), device)
}

fn words(mask: &BitMask, device: &Device) -> Tensor<2, Int> {
    let dims = [mask.rows(), mask.cols().div_ceil(32)];
    let data = TensorData::new(mask.words().to_vec(), dims);
    Tensor::from_data(data, (device, DType::U32))
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

/// The sums of columns, or of channels: what a bias's gradient is.
fn sums(g: &[f32], channels: usize, pixels: usize) -> Product {
    let mut sums = Product {
        value: vec![0.0; channels],
        magnitude: vec![0.0; channels],
    };
    for (i, &g) in g.iter().enumerate() {
        let channel = i / pixels % channels;
        sums.value[channel] += f64::from(g);
        sums.magnitude[channel] += f64::from(g.abs());
    }
    sums
}

/// Counts what agreed.
#[derive(Default)]
struct Tally {
    cases: usize,
    products: usize,
    worst: f64,
}

impl Tally {
    fn check(&mut self, what: &str, case: &str, want: Product, got: &[f32], terms: usize) {
        let ratio = want.worst(got, terms);
        assert!(ratio <= 1.0, "{what}: {ratio} of the bound; {case}");
        self.worst = self.worst.max(ratio);
        self.products += 1;
    }

    fn told(&self, what: &str) {
        println!(
            "{what}: {} cases, {} products, largest error {:.3} of its bound",
            self.cases, self.products, self.worst
        );
    }
}

/// What is stored in masked places must not matter: some of it becomes NaN, infinite, or large.
fn spoil(
    w: &mut [f32],
    keep: &BitMask,
    place: impl Fn(usize) -> (usize, usize),
    random: &mut Random,
) {
    for (i, w) in w.iter_mut().enumerate() {
        let (row, column) = place(i);
        if !keep.get(row, column) && random.below(3) == 0 {
            *w = random.of(&[f32::NAN, f32::INFINITY, -1e30]);
        }
    }
}

/// One convolution, forward and backward, against the loops.
fn check_conv(shape: &ConvShape, random: &mut Random, device: &Device, tally: &mut Tally) {
    let cols = shape.weight_cols();
    let mut w = random.floats(shape.weight_len());
    let keep = random.maybe_mask(shape.outputs, cols);
    if let Some(keep) = &keep {
        spoil(&mut w, keep, |i| (i / cols, i % cols), random);
    }
    let x = random.floats(shape.input_len());
    let g = random.floats(shape.output_len());
    let bias = (random.below(2) == 1).then(|| random.floats(shape.outputs));
    let case = format!(
        "mask {}, bias {}, {shape:?}",
        keep.is_some(),
        bias.is_some()
    );
    poison(
        device,
        &[shape.output_len(), shape.input_len(), shape.weight_len()],
    );

    let halves: Vec<f32> = x.iter().map(|x| x / 2.0).collect();
    let x_half = upload(&halves, shape.input_dims(), device).require_grad();
    let w_tensor = upload(&w, shape.weight_dims(), device).require_grad();
    let b_tensor = bias
        .as_ref()
        .map(|b| upload(b, [shape.outputs], device).require_grad());
    let y = kernels::conv2d(
        // Doubling is exact, and something for the fusing layer to put before the product.
        x_half.clone() * 2.0,
        w_tensor.clone(),
        keep.as_ref().map(|keep| words(keep, device)),
        b_tensor.clone(),
        ConvOptions {
            stride: shape.stride,
            padding: shape.padding,
            dilation: shape.dilation,
            groups: shape.groups,
        },
        Precision::F32,
    )
    .expect("the operands fit");
    assert_eq!(y.dims(), shape.output_dims(), "{case}");
    let got = values(y.clone().inner());
    let want = reference::conv2d(&x, &w, keep.as_ref(), bias.as_deref(), shape);
    tally.check("output", &case, want, &got, cols);
    tally.cases += 1;
    if shape.output_len() == 0 {
        return;
    }

    let mut grads = (y * upload(&g, shape.output_dims(), device))
        .sum()
        .backward();
    let dx = x_half.grad_remove(&mut grads).expect("tracked");
    assert_eq!(dx.dims(), shape.input_dims(), "{case}");
    let dx = values(dx / 2.0);
    let want = reference::conv2d_dx(&g, &w, keep.as_ref(), shape);
    let terms = shape.outputs / shape.groups * shape.taps();
    tally.check("input gradient", &case, want, &dx, terms);

    let dw = w_tensor.grad_remove(&mut grads).expect("tracked");
    assert_eq!(dw.dims(), shape.weight_dims(), "{case}");
    let dw = values(dw);
    let want = reference::conv2d_dw(&g, &x, keep.as_ref(), shape);
    let pixels: usize = shape.out_size().iter().product();
    tally.check("weight gradient", &case, want, &dw, shape.batch * pixels);
    if let Some(keep) = &keep {
        for (i, dw) in dw.iter().enumerate() {
            assert!(
                keep.get(i / cols, i % cols) || dw.to_bits() == 0,
                "gradient {dw} of a pruned weight; {case}"
            );
        }
    }
    if let Some(b) = b_tensor {
        let db = values(b.grad_remove(&mut grads).expect("tracked"));
        let want = sums(&g, shape.outputs, pixels);
        tally.check("bias gradient", &case, want, &db, shape.batch * pixels);
    }
}

impl Random {
    fn conv(&mut self) -> ConvShape {
        loop {
            let groups = self.of(&[1, 1, 1, 2, 3, 8]);
            let channels =
                [0, 1].map(|_| groups * (1 + self.below(if groups > 1 { 12 } else { 70 })));
            let shape = ConvShape {
                batch: self.of(&[0, 1, 1, 2, 3, 7, 9]),
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

    fn depthwise(&mut self) -> ConvShape {
        loop {
            let channels = self.of(&[2, 3, 5, 8, 17]);
            let shape = ConvShape {
                batch: self.of(&[0, 1, 2, 5]),
                inputs: channels,
                outputs: channels * self.of(&[1, 1, 1, 2, 3]),
                size: [1 + self.below(40), 1 + self.below(40)],
                kernel: [self.of(&[1, 2, 3, 5, 7]), self.of(&[1, 2, 3, 5, 7])],
                stride: [1 + self.below(3), 1 + self.below(3)],
                padding: [
                    [self.below(4), self.below(4)],
                    [self.below(4), self.below(4)],
                ],
                dilation: [1 + self.below(2), 1 + self.below(2)],
                groups: channels,
            };
            if shape.validate().is_ok() && shape.macs() < 700_000 {
                return shape;
            }
        }
    }

    /// Empty, around a tile's edge, small, or past several tiles.
    fn size(&mut self) -> usize {
        match self.below(8) {
            0 => self.of(&[0, 1, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65]),
            1 => self.of(&[95, 96, 97, 127, 128, 129, 255, 256, 257, 513]),
            _ => 1 + self.below(70),
        }
    }
}

#[test]
fn convolutions_agree_with_f64_loops() {
    let Some(device) = device("convolutions") else {
        return;
    };
    let device = device.autodiff();
    let (mut random, mut tally) = (Random(7), Tally::default());
    for _ in 0..120 {
        let shape = random.conv();
        check_conv(&shape, &mut random, &device, &mut tally);
    }
    // As networks have them, with sums long enough to be cut into parts.
    for shape in [
        ConvShape::new(4, [16, 32], [32; 2], [3; 2])
            .with_padding([1; 2])
            .with_stride([2; 2]),
        ConvShape::new(3, [64, 70], [14; 2], [3; 2]).with_padding([1; 2]),
        ConvShape::new(2, [3, 16], [40; 2], [7; 2])
            .with_padding([3; 2])
            .with_stride([2; 2]),
        ConvShape::new(5, [48, 130], [9; 2], [1; 2]),
        ConvShape::new(2, [24, 24], [28; 2], [3; 2])
            .with_padding([1; 2])
            .with_groups(3),
    ] {
        check_conv(&shape, &mut random, &device, &mut tally);
    }
    tally.told("convolutions");
}

#[test]
fn depthwise_convolutions_agree_with_f64_loops() {
    let Some(device) = device("depthwise convolutions") else {
        return;
    };
    let device = device.autodiff();
    let (mut random, mut tally) = (Random(29), Tally::default());
    for _ in 0..60 {
        let shape = random.depthwise();
        check_conv(&shape, &mut random, &device, &mut tally);
    }
    tally.told("depthwise convolutions");
}

fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols)
        .map(|i| x[i % rows * cols + i / rows])
        .collect()
}

fn check_linear(shape: LinearShape, random: &mut Random, device: &Device, tally: &mut Tally) {
    let LinearShape {
        positions,
        rows,
        cols,
    } = shape;
    // In memory [in, out]; the reference has [out, in].
    let mut w = random.floats(rows * cols);
    let keep = random.maybe_mask(rows, cols);
    if let Some(keep) = &keep {
        spoil(&mut w, keep, |i| (i % rows, i / rows), random);
    }
    let x = random.floats(positions * cols);
    let g = random.floats(positions * rows);
    let bias = (random.below(2) == 1).then(|| random.floats(rows));
    let case = format!(
        "mask {}, bias {}, {shape:?}",
        keep.is_some(),
        bias.is_some()
    );
    poison(device, &[positions * rows, positions * cols, rows * cols]);

    let oihw = transposed(&w, cols, rows);
    let halves: Vec<f32> = x.iter().map(|x| x / 2.0).collect();
    let x_half = upload(&halves, [positions, cols], device).require_grad();
    let w_tensor = upload(&w, [cols, rows], device).require_grad();
    let b_tensor = bias
        .as_ref()
        .map(|b| upload(b, [rows], device).require_grad());
    let y = kernels::linear(
        x_half.clone() * 2.0,
        w_tensor.clone(),
        keep.as_ref().map(|keep| words(keep, device)),
        b_tensor.clone(),
        Precision::F32,
    )
    .expect("the operands fit");
    assert_eq!(y.dims(), [positions, rows], "{case}");
    let got = values(y.clone().inner());
    let want = reference::linear(&x, &oihw, keep.as_ref(), bias.as_deref(), shape);
    tally.check("output", &case, want, &got, cols);
    tally.cases += 1;
    if positions * rows == 0 {
        return;
    }

    let mut grads = (y * upload(&g, [positions, rows], device)).sum().backward();
    let dx = x_half.grad_remove(&mut grads).expect("tracked");
    assert_eq!(dx.dims(), [positions, cols], "{case}");
    let want = reference::linear_dx(&g, &oihw, keep.as_ref(), shape);
    tally.check("input gradient", &case, want, &values(dx / 2.0), rows);

    let dw = w_tensor.grad_remove(&mut grads).expect("tracked");
    assert_eq!(dw.dims(), [cols, rows], "{case}");
    let dw = transposed(&values(dw), cols, rows);
    let want = reference::linear_dw(&g, &x, keep.as_ref(), shape);
    tally.check("weight gradient", &case, want, &dw, positions);
    if let Some(keep) = &keep {
        for (i, dw) in dw.iter().enumerate() {
            assert!(
                keep.get(i / cols, i % cols) || dw.to_bits() == 0,
                "gradient {dw} of a pruned weight; {case}"
            );
        }
    }
    if let Some(b) = b_tensor {
        let db = values(b.grad_remove(&mut grads).expect("tracked"));
        tally.check("bias gradient", &case, sums(&g, rows, 1), &db, positions);
    }
}

#[test]
fn linear_layers_agree_with_f64_loops() {
    let Some(device) = device("linear layers") else {
        return;
    };
    let device = device.autodiff();
    let (mut random, mut tally) = (Random(11), Tally::default());
    for _ in 0..90 {
        let shape = loop {
            let shape = LinearShape {
                positions: random.size(),
                rows: random.size(),
                cols: random.size(),
            };
            if shape.positions * shape.rows * shape.cols < 1_000_000 {
                break shape;
            }
        };
        check_linear(shape, &mut random, &device, &mut tally);
    }
    // A sum long enough to be cut into parts.
    let long = LinearShape {
        positions: 3000,
        rows: 20,
        cols: 40,
    };
    check_linear(long, &mut random, &device, &mut tally);
    tally.told("linear layers");
}

#[test]
fn a_kept_weight_that_is_no_number_shows() {
    let Some(device) = device("kept NaN") else {
        return;
    };
    let keep = BitMask::from_keep(2, 3, &[true, false, true, true, true, false]).expect("sizes");
    let x = upload(&[1.0; 3], [1, 3], &device);
    let y = |w: [f32; 6]| {
        let w = upload(&transposed(&w, 2, 3), [3, 2], &device);
        let mask = Some(words(&keep, &device));
        values(kernels::linear(x.clone(), w, mask, None, Precision::F32).expect("it fits"))
    };
    assert_eq!(y([1.0, f32::NAN, 2.0, 3.0, 4.0, f32::INFINITY]), [3.0, 7.0]);
    let shown = y([f32::NAN, 0.0, 0.0, f32::INFINITY, 0.0, 0.0]);
    assert!(shown[0].is_nan() && shown[1] == f32::INFINITY, "{shown:?}");
}

#[test]
fn repetitions_give_equal_bits() {
    let Some(device) = device("repetitions") else {
        return;
    };
    let device = device.autodiff();
    let mut random = Random(13);
    let shapes = [
        ConvShape::new(3, [37, 50], [17; 2], [3; 2]).with_padding([1; 2]),
        ConvShape::new(2, [12, 12], [30; 2], [3; 2])
            .with_padding([1; 2])
            .with_groups(12),
        ConvShape::new(6, [8, 16], [24; 2], [1; 2]),
    ];
    for shape in shapes {
        let x = upload(
            &random.floats(shape.input_len()),
            shape.input_dims(),
            &device,
        );
        let w = upload(
            &random.floats(shape.weight_len()),
            shape.weight_dims(),
            &device,
        );
        let b = upload(&random.floats(shape.outputs), [shape.outputs], &device);
        let g = upload(
            &random.floats(shape.output_len()),
            shape.output_dims(),
            &device,
        );
        let mask = words(&random.mask(shape.outputs, shape.weight_cols()), &device);
        let all = || {
            let (x, w) = (x.clone().require_grad(), w.clone().require_grad());
            let b = b.clone().require_grad();
            let y = kernels::conv2d(
                x.clone(),
                w.clone(),
                Some(mask.clone()),
                Some(b.clone()),
                ConvOptions {
                    stride: shape.stride,
                    padding: shape.padding,
                    dilation: shape.dilation,
                    groups: shape.groups,
                },
                Precision::F32,
            )
            .expect("the operands fit");
            let mut grads = (y.clone() * g.clone()).sum().backward();
            [
                bits(y.inner()),
                bits(x.grad_remove(&mut grads).expect("tracked")),
                bits(w.grad_remove(&mut grads).expect("tracked")),
                bits(b.grad_remove(&mut grads).expect("tracked")),
            ]
        };
        let first = all();
        for time in 1..20 {
            assert!(all() == first, "time {time}, {shape:?}");
        }
    }
    println!("repetitions: 3 cases, 20 times each, equal bits");
}

#[test]
fn views_are_read_as_what_they_show() {
    let Some(device) = device("views") else {
        return;
    };
    let random = |dims| Tensor::<4>::random(dims, Distribution::Uniform(-1.0, 1.0), &device);
    let w = random([4, 6, 3, 3]);
    let whole = random([5, 9, 8, 12]);
    let views = [
        whole.clone().slice([1..4, 2..8, 0..8, 3..10]),
        whole.clone().slice([0..2, 0..6]).flip([3]),
        whole.clone().slice([0..2, 0..6]).swap_dims(2, 3),
        whole.slice([0..1, 0..6]).expand([3, 6, 8, 12]),
    ];
    let options = ConvOptions {
        stride: [1; 2],
        padding: [[1; 2]; 2],
        dilation: [1; 2],
        groups: 1,
    };
    let conv = |x| {
        bits(
            kernels::conv2d(x, w.clone(), None, None, options, Precision::F32)
                .expect("the operands fit"),
        )
    };
    for view in views {
        let copy = Tensor::from_data(view.to_data(), &device);
        assert_eq!(conv(view), conv(copy));
    }
    let w = Tensor::<2>::random([7, 5], Distribution::Default, &device);
    let x = Tensor::<2>::random([7, 6], Distribution::Default, &device).swap_dims(0, 1);
    let copy = Tensor::<2>::from_data(x.to_data(), &device);
    let linear = |x| {
        bits(
            kernels::linear(x, w.clone().flip([1]), None, None, Precision::F32)
                .expect("the operands fit"),
        )
    };
    assert_eq!(linear(x), linear(copy));
}

/// WebGPU allows 65,535 cubes along an axis.
#[test]
fn grids_are_folded_where_one_axis_is_too_short() {
    let Some(device) = device("folded grids") else {
        return;
    };
    let side = 1500;
    let shape = ConvShape::new(1, [2, 2], [side; 2], [1; 2]).with_groups(2);
    assert!(shape.output_len().div_ceil(64) > 65_535);
    let x: Vec<f32> = (0..shape.input_len()).map(|i| (i % 1021) as f32).collect();
    let y = kernels::conv2d(
        upload(&x, shape.input_dims(), &device),
        upload(&[2.0, -0.5], shape.weight_dims(), &device),
        None,
        None,
        ConvOptions {
            stride: [1; 2],
            padding: [[0; 2]; 2],
            dilation: [1; 2],
            groups: 2,
        },
        Precision::F32,
    )
    .expect("the operands fit");
    let factor = |i| if i < side * side { 2.0 } else { -0.5 };
    let y = values(y);
    let wrong = y
        .iter()
        .zip(&x)
        .enumerate()
        .find(|(i, (y, x))| **y != **x * factor(*i));
    assert_eq!(wrong, None);
}

#[test]
fn what_has_no_kernel_is_counted() {
    let Some(device) = device("fallbacks") else {
        return;
    };
    let x = Tensor::<2>::ones([2, 3], &device);
    let w = Tensor::<2>::ones([3, 4], &device);
    let run = |x: Tensor<2>, w: Tensor<2>| {
        let y = kernels::linear(x, w, None, None, Precision::F32).expect("it fits");
        y.cast(DType::F32).sum().into_scalar::<f32>()
    };
    let before = kernels::gpu_fallbacks();
    assert_eq!(run(x.clone(), w.clone()), 24.0);
    assert_eq!(kernels::gpu_fallbacks(), before);
    if !device.supports_dtype(DType::F16) {
        println!("skipped: gpu, fallbacks of f16: this adapter has no f16");
        return;
    }
    assert_eq!(run(x.cast(DType::F16), w.cast(DType::F16)), 24.0);
    assert_eq!(kernels::gpu_fallbacks(), before + 1);
}

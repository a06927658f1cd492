//! The extension on Burn's tensors against the same operations put together from Burn's own: values, every gradient,
//! views of every kind, and what is refused.

use burn::nn::{BatchNormConfig, LayerNormConfig};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData, activation};
use kernels::{Activation, BitMask, ConvOptions, KernelError, Precision};

fn device() -> Device {
    let device = Device::flex();
    device.seed(3);
    device
}

fn random<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(dims, Distribution::Uniform(-1.0, 1.0), device)
}

/// Every third weight goes, and all of row 1.
fn mask(rows: usize, cols: usize) -> BitMask {
    let keep: Vec<bool> = (0..rows * cols)
        .map(|i| i % 3 != 1 && i / cols != 1)
        .collect();
    BitMask::from_keep(rows, cols, &keep).expect("sizes agree")
}

fn words(mask: &BitMask, device: &Device) -> Tensor<2, Int> {
    let data = TensorData::new(
        mask.words().to_vec(),
        [mask.rows(), mask.cols().div_ceil(32)],
    );
    Tensor::from_data(data, (device, DType::U32))
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

#[track_caller]
fn close<const D: usize>(what: &str, got: Tensor<D>, want: Tensor<D>) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (values(got), values(want));
    let scale = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!(
            (g - w).abs() <= 1e-5 * scale,
            "{what}[{i}]: {g}, expected {w}"
        );
    }
}

fn options(stride: usize, pad: usize, groups: usize) -> ConvOptions {
    ConvOptions {
        stride: [stride; 2],
        padding: [[pad; 2]; 2],
        dilation: [1; 2],
        groups,
    }
}

#[test]
fn convolutions_have_burns_values_and_gradients() {
    let device = device().autodiff();
    let cases = [
        ([3, 6, 9, 7], [8, 6, 3, 3], 1, 1, 1),
        ([2, 8, 10, 10], [12, 4, 3, 3], 2, 1, 2),
        ([2, 5, 6, 6], [7, 5, 1, 1], 1, 0, 1),
        ([2, 6, 8, 8], [6, 1, 3, 3], 1, 1, 6),
        ([0, 4, 5, 5], [3, 4, 3, 3], 1, 1, 1),
    ];
    for (x_dims, w_dims, stride, pad, groups) in cases {
        for masked in [false, true] {
            let x = random(x_dims, &device).require_grad();
            let w = random(w_dims, &device).require_grad();
            let b = random([w_dims[0]], &device).require_grad();
            let kept = mask(w_dims[0], w_dims[1..].iter().product());
            let words = words(&kept, &device);
            let options = options(stride, pad, groups);
            let y = kernels::conv2d(
                x.clone() * 1.5,
                w.clone(),
                masked.then(|| words.clone()),
                Some(b.clone()),
                options,
                Precision::F32,
            )
            .expect("the operands fit");
            let weight = if masked {
                kernels::keep(w.clone(), &words)
            } else {
                w.clone()
            };
            let want = burn::tensor::module::conv2d(
                x.clone() * 1.5,
                weight,
                Some(b.clone()),
                burn::tensor::ops::ConvOptions::new([stride; 2], [pad; 2], [1; 2], groups),
            );
            close("output", y.clone().inner(), want.clone().inner());
            if x_dims[0] == 0 {
                continue;
            }
            let got = (y.clone() * y).sum().backward();
            let wanted = (want.clone() * want).sum().backward();
            let both = |t: &Tensor<4>| (t.grad(&got), t.grad(&wanted));
            let (dx, dx_want) = both(&x);
            close("dx", dx.expect("tracked"), dx_want.expect("tracked"));
            let (dw, dw_want) = both(&w);
            let (dw, dw_want) = (dw.expect("tracked"), dw_want.expect("tracked"));
            close("dw", dw, dw_want);
            close(
                "db",
                b.grad(&got).expect("tracked"),
                b.grad(&wanted).expect("tracked"),
            );
        }
    }
}

#[test]
fn linear_layers_have_burns_values_and_gradients() {
    let device = device().autodiff();
    for (positions, inputs, outputs) in [(5, 40, 7), (1, 3, 65), (130, 33, 20)] {
        for masked in [false, true] {
            let x = random([2, positions, inputs], &device).require_grad();
            let w = random([inputs, outputs], &device).require_grad();
            let b = random([outputs], &device).require_grad();
            let words = words(&mask(outputs, inputs), &device);
            let y = kernels::linear(
                x.clone(),
                w.clone(),
                masked.then(|| words.clone()),
                Some(b.clone()),
                Precision::F32,
            )
            .expect("the operands fit");
            let weight = if masked {
                kernels::keep(w.clone(), &words)
            } else {
                w.clone()
            };
            let want = burn::tensor::module::linear(x.clone(), weight, Some(b.clone()));
            close("output", y.clone().inner(), want.clone().inner());
            let got = (y.clone() * y).sum().backward();
            let wanted = (want.clone() * want).sum().backward();
            close(
                "dw",
                w.grad(&got).expect("tracked"),
                w.grad(&wanted).expect("tracked"),
            );
            close(
                "dx",
                x.grad(&got).expect("tracked"),
                x.grad(&wanted).expect("tracked"),
            );
            close(
                "db",
                b.grad(&got).expect("tracked"),
                b.grad(&wanted).expect("tracked"),
            );
        }
    }
}

#[test]
fn norms_rows_and_stacks_have_burns_values_and_gradients() {
    let device = device().autodiff();
    let check = |what: &str,
                 run: &dyn Fn(Tensor<3>) -> Tensor<3>,
                 judge: &dyn Fn(Tensor<3>) -> Tensor<3>,
                 x: Tensor<3>| {
        let x = x.require_grad();
        let weight = random(run(x.clone()).dims(), &x.device());
        let (y, want) = (run(x.clone()), judge(x.clone()));
        close(what, y.clone().inner(), want.clone().inner());
        let got = (y * weight.clone()).sum().backward();
        let wanted = (want * weight).sum().backward();
        close(
            what,
            x.grad(&got).expect("tracked"),
            x.grad(&wanted).expect("tracked"),
        );
    };
    let x = || random([3, 17, 40], &device);
    check(
        "softmax",
        &kernels::softmax,
        &|x| activation::softmax(x, 2),
        x(),
    );
    check("gelu", &kernels::gelu, &activation::gelu, x());
    let other = random([3, 40, 9], &device);
    check(
        "matmul",
        &|x| kernels::matmul(x, other.clone()),
        &|x| x.matmul(other.clone()),
        x(),
    );
    check(
        "matmul, transposed",
        &|x| kernels::matmul(other.clone().swap_dims(1, 2), x.swap_dims(1, 2)),
        &|x| other.clone().swap_dims(1, 2).matmul(x.swap_dims(1, 2)),
        x(),
    );
    let norm = LayerNormConfig::new(40).init(&device);
    check(
        "layer norm",
        &|x| {
            let beta = norm.beta.as_ref().expect("it has one").val();
            kernels::layer_norm(x, norm.gamma.val(), beta, 1e-5)
        },
        &|x| norm.forward(x),
        x(),
    );
    let norm = BatchNormConfig::new(6).init(&device);
    let images = |x: Tensor<3>| x.reshape([5, 6, 4, 17]);
    check(
        "batch norm",
        &|x| {
            let (y, mean, _) = kernels::batch_norm_train(
                images(x.clone()),
                norm.gamma.val(),
                norm.beta.val(),
                1e-5,
            );
            assert_eq!(mean.dims(), [6]);
            y.reshape(x.dims())
        },
        &|x| norm.forward(images(x.clone())).reshape(x.dims()),
        x(),
    );
}

/// An activation in Burn's own operations.
fn stock<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::Identity => x,
        Activation::Relu => activation::relu(x),
        Activation::Relu6 => activation::relu6(x),
        Activation::HardSigmoid => activation::hard_sigmoid(x, 1.0 / 6.0, 0.5),
        Activation::HardSwish => activation::hard_swish(x),
    }
}

#[test]
fn passes_after_a_product_have_burns_values_and_gradients() {
    let device = device().autodiff();
    let dims = [5, 6, 4, 17];
    for activation in Activation::ALL {
        // Wide enough for every piece of the activations.
        let x = (random(dims, &device) * 8.0).detach().require_grad();
        let skip = (random(dims, &device) * 8.0).detach().require_grad();
        let gate = random([5, 6, 1, 1], &device).require_grad();
        let gamma = random([6], &device).require_grad();
        let beta = random([6], &device).require_grad();
        let mean = random([6], &device);
        let variance = random([6], &device) + 1.5;
        let weight = random(dims, &device);
        // Behind another operation, so that inputs may be nobody else's.
        let y = kernels::fixed_batch_norm(
            x.clone() * 1.5,
            [gamma.clone(), beta.clone()],
            [mean.clone(), variance.clone()],
            1e-3,
            activation,
        );
        let y = kernels::activate(y + 0.5, activation);
        let y = kernels::gate(y, gate.clone());
        let y = kernels::join(y, skip.clone() * 0.75, activation);

        let along = |values: Tensor<1>| values.reshape([1, 6, 1, 1]);
        let want = (x.clone() * 1.5 - along(mean)) / along((variance + 1e-3).sqrt());
        let want = stock(
            want * along(gamma.clone()) + along(beta.clone()),
            activation,
        );
        let want = stock(want + 0.5, activation) * gate.clone();
        let want = stock(want + skip.clone() * 0.75, activation);
        let what = format!("{activation:?}");
        close(&what, y.clone().inner(), want.clone().inner());
        let got = (y * weight.clone()).sum().backward();
        let wanted = (want * weight).sum().backward();
        for t in [&x, &skip, &gate] {
            let both = [&got, &wanted].map(|grads| t.grad(grads).expect("tracked"));
            let [got, want] = both;
            close(&what, got, want);
        }
        for t in [&gamma, &beta] {
            let both = [&got, &wanted].map(|grads| t.grad(grads).expect("tracked"));
            let [got, want] = both;
            close(&what, got, want);
        }
    }
}

#[test]
fn what_others_hold_is_not_overwritten() {
    let device = device();
    let x = random([2, 3, 4, 5], &device);
    let before = values(x.clone());
    let held = x.clone();
    let twice = kernels::join(x.clone(), held.clone(), Activation::Relu);
    let slice = x.clone().slice([0..2, 1..2]);
    let part = kernels::activate(slice, Activation::HardSwish);
    assert_eq!(values(held), before);
    assert_eq!(values(x), before);
    assert_eq!(twice.dims(), [2, 3, 4, 5]);
    assert_eq!(part.dims(), [2, 1, 4, 5]);
    let want: Vec<f32> = before.iter().map(|v| (v + v).max(0.0)).collect();
    assert_eq!(values(twice), want);
}

#[test]
fn views_are_read_as_what_they_show() {
    let device = device();
    let w = random([4, 6, 3, 3], &device);
    let whole = random([5, 9, 8, 12], &device);
    let views = [
        whole.clone().slice([1..4, 2..8, 0..8, 3..10]),
        whole.clone().slice([0..2, 0..6]).flip([3]),
        whole.clone().slice([0..2, 0..6]).flip([0, 2]),
        whole.clone().slice([0..2, 0..6]).swap_dims(2, 3),
        whole.slice([0..1, 0..6]).expand([3, 6, 8, 12]),
    ];
    let conv = |x| {
        kernels::conv2d(x, w.clone(), None, None, options(1, 1, 1), Precision::F32)
            .expect("the operands fit")
    };
    for view in views {
        let copy = Tensor::from_data(view.to_data(), &device);
        assert_eq!(values(conv(view)), values(conv(copy)));
    }
    let w = random([7, 5], &device);
    let x = random([7, 6], &device).swap_dims(0, 1).flip([0]);
    let copy = Tensor::<2>::from_data(x.to_data(), &device);
    let linear = |x| {
        kernels::linear(x, w.clone().flip([1]), None, None, Precision::F32)
            .expect("the operands fit")
    };
    assert_eq!(values(linear(x)), values(linear(copy)));
}

#[test]
fn what_does_not_fit_is_refused_with_its_numbers() {
    let device = device();
    let x = || random([1, 6, 8, 8], &device);
    let conv = |w: [usize; 4], mask_of: Option<(usize, usize)>, bias: usize, groups| {
        let mask = mask_of.map(|(rows, cols)| words(&mask(rows, cols), &device));
        kernels::conv2d(
            x(),
            random(w, &device),
            mask,
            Some(random([bias], &device)),
            options(1, 0, groups),
            Precision::F32,
        )
        .map(drop)
        .expect_err("it does not fit")
        .to_string()
    };
    assert_eq!(
        conv([4, 5, 3, 3], None, 4, 1),
        "the input's channels: expected [5], found [6]; pass tensors of one layer"
    );
    assert_eq!(
        conv([4, 6, 3, 3], Some((4, 90)), 4, 1),
        "the mask's words (is it another layer's?): expected [4, 2], found [4, 3]; pass tensors of one layer"
    );
    assert_eq!(
        conv([4, 6, 3, 3], None, 5, 1),
        "the bias: expected [4], found [5]; pass tensors of one layer"
    );
    assert!(conv([4, 6, 9, 9], None, 4, 1).starts_with("the kernel reaches over 9 places"));
    assert!(conv([4, 2, 3, 3], None, 4, 3).starts_with("3 groups must divide"));
    let error = kernels::linear(
        random([2, 5], &device),
        random([6, 3], &device),
        None,
        None,
        Precision::F32,
    );
    assert!(matches!(error, Err(KernelError::Operand { .. })));
}

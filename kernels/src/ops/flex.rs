//! The extension on Flex: tensors to slices, and the kernels' results to tensors.

use std::sync::Arc;

use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{Flex, FlexTensor, Layout};

use super::{Bias, CpuOps, FrozenOps, Keep, Skip, SparseOps};
use crate::cpu::amx::Amx;
use crate::cpu::gemm::{self, Operand};
use crate::cpu::pointwise::{self, Line};
use crate::cpu::sparse::{self, SparseWeight};
use crate::cpu::{Isa, Mask, conv, linear, norm, rows, weight_grad};
use crate::precision::count_fallback;
use crate::{Activation, ConvShape, LinearShape, Precision};

/// A tensor in memory order; most are already.
fn packed(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor
        .as_slice()
        .expect("callers pass f32 tensors in memory order")
}

fn tensor(data: Vec<f32>, dims: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(data),
        Layout::contiguous(dims.into()),
        DType::F32,
    )
}

/// Where a precision becomes a choice of kernels: the tiles that a product runs on, or none for those of f32. `declines`
/// says why tiles do not suit the product's shape, if they do not; it is then computed in f32 after all, and counted.
fn tiles(precision: Precision, declines: Option<&'static str>) -> Option<Amx> {
    let amx = Amx::new(precision).expect("`ops` lets no precision pass that the machine lacks")?;
    if declines.is_some() {
        count_fallback();
        return None;
    }
    Some(amx)
}

fn channels(bias: Bias<Flex>) -> Option<FlexTensor> {
    match bias {
        Bias::Zero => None,
        Bias::Channels(bias) => Some(packed(bias)),
    }
}

fn words(keep: Keep<Flex>) -> Option<FlexTensor> {
    match keep {
        Keep::All => None,
        Keep::Words(words) => Some(packed(words)),
    }
}

/// Words as the kernels read them; `rows` and `cols` are the weight's.
fn mask(words: Option<&FlexTensor>, rows: usize, cols: usize) -> Option<Mask<'_>> {
    words.map(|words| {
        let words = words
            .as_slice()
            .expect("mask words are u32 in memory order");
        Mask::new(words, rows, cols).expect("the mask's size was checked")
    })
}

impl SparseOps for Flex {
    fn sparse_conv2d(
        x: FlexTensor,
        w: FlexTensor,
        keep: Keep<Flex>,
        bias: Bias<Flex>,
        shape: ConvShape,
        precision: Precision,
    ) -> FlexTensor {
        let (x, w, keep, bias) = (packed(x), packed(w), words(keep), channels(bias));
        let mask = mask(keep.as_ref(), shape.outputs, shape.weight_cols());
        let (isa, xs, ws) = (Isa::detect(), floats(&x), floats(&w));
        let bias = bias.as_ref().map(floats);
        let y = match tiles(precision, Amx::declines(&shape)) {
            Some(amx) => amx.conv_forward(isa, &shape, xs, ws, mask, bias),
            None => conv::forward(isa, &shape, xs, ws, mask, bias),
        };
        tensor(y, shape.output_dims())
    }

    fn sparse_conv2d_input_grad(
        g: FlexTensor,
        w: FlexTensor,
        keep: Keep<Flex>,
        shape: ConvShape,
        precision: Precision,
    ) -> FlexTensor {
        let (g, w, keep) = (packed(g), packed(w), words(keep));
        let mask = mask(keep.as_ref(), shape.outputs, shape.weight_cols());
        let (isa, gs, ws) = (Isa::detect(), floats(&g), floats(&w));
        let dx = match tiles(precision, Amx::declines(&shape)) {
            Some(amx) => amx.conv_input_grad(isa, &shape, gs, ws, mask),
            None => conv::input_grad(isa, &shape, gs, ws, mask),
        };
        tensor(dx, shape.input_dims())
    }

    fn sparse_conv2d_weight_grad(
        x: FlexTensor,
        g: FlexTensor,
        keep: Keep<Flex>,
        shape: ConvShape,
        precision: Precision,
    ) -> FlexTensor {
        let (x, g, keep) = (packed(x), packed(g), words(keep));
        let mask = mask(keep.as_ref(), shape.outputs, shape.weight_cols());
        let (isa, xs, gs) = (Isa::detect(), floats(&x), floats(&g));
        let dw = match tiles(precision, Amx::declines_weight_grad(&shape)) {
            Some(amx) => amx.conv_weight_grad(isa, &shape, xs, gs, mask),
            None => weight_grad::weight_grad(isa, &shape, xs, gs, mask),
        };
        tensor(dw, shape.weight_dims())
    }

    fn sparse_linear(
        x: FlexTensor,
        w: FlexTensor,
        keep: Keep<Flex>,
        bias: Bias<Flex>,
        precision: Precision,
    ) -> FlexTensor {
        let (x, w, keep, bias) = (packed(x), packed(w), words(keep), channels(bias));
        let ([positions, cols], [_, rows]) = (matrix(&x), matrix(&w));
        let shape = LinearShape {
            positions,
            rows,
            cols,
        };
        let mask = mask(keep.as_ref(), rows, cols);
        let (isa, xs, ws) = (Isa::detect(), floats(&x), floats(&w));
        let bias = bias.as_ref().map(floats);
        let y = match tiles(precision, Amx::declines_linear(shape)) {
            Some(amx) => amx.linear_forward(isa, shape, xs, ws, mask, bias),
            None => linear::forward(isa, shape, xs, ws, mask, bias),
        };
        tensor(y, [positions, rows])
    }

    fn sparse_linear_input_grad(
        g: FlexTensor,
        w: FlexTensor,
        keep: Keep<Flex>,
        precision: Precision,
    ) -> FlexTensor {
        let (g, w, keep) = (packed(g), packed(w), words(keep));
        let ([positions, rows], [cols, _]) = (matrix(&g), matrix(&w));
        let shape = LinearShape {
            positions,
            rows,
            cols,
        };
        let mask = mask(keep.as_ref(), rows, cols);
        let (isa, gs, ws) = (Isa::detect(), floats(&g), floats(&w));
        let dx = match tiles(precision, Amx::declines_linear(shape)) {
            Some(amx) => amx.linear_input_grad(isa, shape, gs, ws, mask),
            None => linear::input_grad(isa, shape, gs, ws, mask),
        };
        tensor(dx, [positions, cols])
    }

    fn sparse_linear_weight_grad(
        x: FlexTensor,
        g: FlexTensor,
        keep: Keep<Flex>,
        precision: Precision,
    ) -> FlexTensor {
        let (x, g, keep) = (packed(x), packed(g), words(keep));
        let ([positions, cols], [_, rows]) = (matrix(&x), matrix(&g));
        let shape = LinearShape {
            positions,
            rows,
            cols,
        };
        let mask = mask(keep.as_ref(), rows, cols);
        let (isa, xs, gs) = (Isa::detect(), floats(&x), floats(&g));
        let dw = match tiles(precision, Amx::declines_linear(shape)) {
            Some(amx) => amx.linear_weight_grad(isa, shape, xs, gs, mask),
            None => linear::weight_grad(isa, shape, xs, gs, mask),
        };
        tensor(dw, [cols, rows])
    }

    fn channel_sums(g: FlexTensor) -> FlexTensor {
        let g = packed(g);
        let [images, channels, pixels] = planes(&g);
        let sums = norm::channel_sums([images, channels, pixels], floats(&g));
        tensor(sums, [channels])
    }
}

impl FrozenOps for Flex {
    fn frozen_conv2d(
        x: FlexTensor,
        weight: Arc<SparseWeight>,
        bias: Bias<Flex>,
        shape: ConvShape,
    ) -> FlexTensor {
        let (x, bias) = (packed(x), channels(bias));
        let y = sparse::forward(
            Isa::detect(),
            &shape,
            floats(&x),
            &weight,
            bias.as_ref().map(floats),
        );
        tensor(y, shape.output_dims())
    }

    fn frozen_linear(x: FlexTensor, weight: Arc<SparseWeight>, bias: Bias<Flex>) -> FlexTensor {
        let (x, bias) = (packed(x), channels(bias));
        let positions = x.layout().shape()[0];
        let y = sparse::linear(
            Isa::detect(),
            floats(&x),
            &weight,
            bias.as_ref().map(floats),
        );
        tensor(y, [positions, weight.rows()])
    }
}

impl CpuOps for Flex {
    fn stacked_matmul(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        let (left, right) = (a.layout().shape().clone(), b.layout().shape().clone());
        let product = gemm::matmul(
            Isa::detect(),
            [left[1], left[2], right[2]],
            Operand {
                data: a.storage(),
                offsets: &offsets(&a),
                strides: strides(&a),
            },
            Operand {
                data: b.storage(),
                offsets: &offsets(&b),
                strides: strides(&b),
            },
        );
        tensor(product, [left[0], left[1], right[2]])
    }

    fn channel_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        epsilon: f64,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (x, gamma, beta) = (packed(x), packed(gamma), packed(beta));
        let planes = planes(&x);
        let norm = norm::batch_norm_train_forward(
            Isa::detect(),
            planes,
            floats(&x),
            floats(&gamma),
            floats(&beta),
            epsilon as f32,
        );
        (
            tensor(norm.y, x.layout().shape().clone()),
            tensor(norm.mean, [planes[1]]),
            tensor(norm.variance, [planes[1]]),
        )
    }

    fn channel_norm_grad(
        x: FlexTensor,
        gamma: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        epsilon: f64,
        g: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (x, g, gamma) = (packed(x), packed(g), packed(gamma));
        let (mean, variance) = (packed(mean), packed(variance));
        let planes = planes(&x);
        let inv_std: Vec<f32> = floats(&variance)
            .iter()
            .map(|v| (1.0 / (f64::from(*v) + epsilon).sqrt()) as f32)
            .collect();
        let grad = norm::batch_norm_train_backward(
            Isa::detect(),
            planes,
            floats(&x),
            floats(&gamma),
            floats(&mean),
            &inv_std,
            floats(&g),
        );
        (
            tensor(grad.dx, x.layout().shape().clone()),
            tensor(grad.dgamma, [planes[1]]),
            tensor(grad.dbeta, [planes[1]]),
        )
    }

    fn fixed_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        epsilon: f64,
        activation: Activation,
    ) -> FlexTensor {
        let (mean, beta) = (packed(mean), packed(beta));
        let scale = scales(&packed(gamma), &packed(variance), epsilon);
        let line = Line {
            centre: floats(&mean),
            scale: &scale,
            shift: floats(&beta),
        };
        let planes = planes(&x);
        pass(x, planes, Some(line), None, activation)
    }

    fn fixed_norm_grad(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        epsilon: f64,
        activation: Activation,
        g: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (x, g, mean, beta) = (packed(x), packed(g), packed(mean), packed(beta));
        let variance = packed(variance);
        let scale = scales(&packed(gamma), &variance, epsilon);
        let line = Line {
            centre: floats(&mean),
            scale: &scale,
            shift: floats(&beta),
        };
        let planes = planes(&x);
        let (xs, gs) = (floats(&x), floats(&g));
        let grad = pointwise::line_grad(Isa::detect(), planes, xs, line, gs, activation);
        let dgamma = floats(&variance)
            .iter()
            .zip(grad.along)
            .map(|(v, along)| (f64::from(along) / (f64::from(*v) + epsilon).sqrt()) as f32)
            .collect();
        (
            tensor(grad.dx, x.layout().shape().clone()),
            tensor(dgamma, [planes[1]]),
            tensor(grad.sum, [planes[1]]),
        )
    }

    fn join(x: FlexTensor, skip: Skip<Flex>, activation: Activation) -> FlexTensor {
        let planes = [1, 1, x.layout().shape().num_elements()];
        match skip {
            Skip::Zero => pass(x, planes, None, None, activation),
            // Whichever has no other owner is overwritten.
            Skip::Values(skip) if is_free(&skip) && !is_free(&x) => {
                pass(skip, planes, None, Some(packed(x)), activation)
            }
            Skip::Values(skip) => pass(x, planes, None, Some(packed(skip)), activation),
        }
    }

    fn join_grad(kept: FlexTensor, g: FlexTensor, activation: Activation) -> FlexTensor {
        let (kept, mut g) = (packed(kept), packed(g));
        let (isa, kept) = (Isa::detect(), floats(&kept));
        if is_free(&g) {
            let values = g.storage_mut::<f32>();
            pointwise::activation_grad_in_place(isa, kept, values, activation);
            return g;
        }
        let dx = pointwise::activation_grad(isa, kept, floats(&g), activation);
        tensor(dx, g.layout().shape().clone())
    }

    fn gate_planes(x: FlexTensor, gate: FlexTensor) -> FlexTensor {
        let gate = packed(gate);
        let zeros = vec![0.0; floats(&gate).len()];
        let line = gate_line(&gate, &zeros);
        let planes = each_its_own(planes(&x));
        pass(x, planes, Some(line), None, Activation::Identity)
    }

    fn gate_planes_grad(
        x: FlexTensor,
        gate: FlexTensor,
        g: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let (x, gate, g) = (packed(x), packed(gate), packed(g));
        let zeros = vec![0.0; floats(&gate).len()];
        let line = gate_line(&gate, &zeros);
        let planes = each_its_own(planes(&x));
        let (xs, gs) = (floats(&x), floats(&g));
        let grad = pointwise::line_grad(Isa::detect(), planes, xs, line, gs, Activation::Identity);
        (
            tensor(grad.dx, x.layout().shape().clone()),
            tensor(grad.along, gate.layout().shape().clone()),
        )
    }

    fn row_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        epsilon: f64,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (x, gamma, beta) = (packed(x), packed(gamma), packed(beta));
        let [count, cols] = matrix(&x);
        let norm = rows::layer_norm(
            Isa::detect(),
            floats(&x),
            Some(floats(&gamma)),
            Some(floats(&beta)),
            epsilon as f32,
            cols,
        );
        (
            tensor(norm.y, [count, cols]),
            tensor(norm.mean, [count]),
            tensor(norm.inv_std, [count]),
        )
    }

    fn row_norm_grad(
        x: FlexTensor,
        gamma: FlexTensor,
        mean: FlexTensor,
        inv_std: FlexTensor,
        g: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (x, g, gamma) = (packed(x), packed(g), packed(gamma));
        let (mean, inv_std) = (packed(mean), packed(inv_std));
        let [count, cols] = matrix(&x);
        let grad = rows::layer_norm_grad(
            Isa::detect(),
            floats(&x),
            Some(floats(&gamma)),
            floats(&mean),
            floats(&inv_std),
            floats(&g),
            cols,
        );
        (
            tensor(grad.dx, [count, cols]),
            tensor(grad.dgamma, [cols]),
            tensor(grad.dbeta, [cols]),
        )
    }

    fn row_softmax(x: FlexTensor) -> FlexTensor {
        let x = packed(x);
        let [count, cols] = matrix(&x);
        tensor(
            rows::softmax(Isa::detect(), floats(&x), cols),
            [count, cols],
        )
    }

    fn row_softmax_grad(y: FlexTensor, g: FlexTensor) -> FlexTensor {
        let (y, g) = (packed(y), packed(g));
        let [count, cols] = matrix(&y);
        let dx = rows::softmax_grad(Isa::detect(), floats(&y), floats(&g), cols);
        tensor(dx, [count, cols])
    }

    fn exact_gelu(x: FlexTensor) -> FlexTensor {
        let x = packed(x);
        let y = rows::gelu(Isa::detect(), floats(&x));
        tensor(y, x.layout().shape().clone())
    }

    fn exact_gelu_grad(x: FlexTensor, g: FlexTensor) -> FlexTensor {
        let (x, g) = (packed(x), packed(g));
        let dx = rows::gelu_grad(Isa::detect(), floats(&x), floats(&g));
        tensor(dx, x.layout().shape().clone())
    }
}

/// Whether it may be overwritten: it has no other owner, and is all there is in its storage.
fn is_free(x: &FlexTensor) -> bool {
    let elements = x.layout().shape().num_elements();
    x.is_unique() && x.is_contiguous() && x.storage::<f32>().len() == elements
}

/// One pass over a tensor, in its place if nobody else has it.
fn pass(
    mut x: FlexTensor,
    planes: [usize; 3],
    line: Option<Line>,
    skip: Option<FlexTensor>,
    activation: Activation,
) -> FlexTensor {
    let skip = skip.as_ref().map(floats);
    if is_free(&x) {
        let values = x.storage_mut::<f32>();
        pointwise::apply_in_place(Isa::detect(), planes, values, line, skip, activation);
        return x;
    }
    let x = packed(x);
    let y = pointwise::apply(Isa::detect(), planes, floats(&x), line, skip, activation);
    tensor(y, x.layout().shape().clone())
}

/// What a batch norm multiplies by.
fn scales(gamma: &FlexTensor, variance: &FlexTensor, epsilon: f64) -> Vec<f32> {
    floats(gamma)
        .iter()
        .zip(floats(variance))
        .map(|(gamma, v)| (f64::from(*gamma) / (f64::from(*v) + epsilon).sqrt()) as f32)
        .collect()
}

fn gate_line<'a>(gate: &'a FlexTensor, zeros: &'a [f32]) -> Line<'a> {
    Line {
        centre: zeros,
        scale: floats(gate),
        shift: zeros,
    }
}

/// Planes of which no two share a channel.
fn each_its_own([images, channels, pixels]: [usize; 3]) -> [usize; 3] {
    [1, images * channels, pixels]
}

/// Images, channels, and pixels of an image: axes beyond the second are pixels.
fn planes(x: &FlexTensor) -> [usize; 3] {
    let shape = x.layout().shape();
    let pixels = (2..shape.num_dims()).map(|d| shape[d]).product();
    [shape[0], shape[1], pixels]
}

fn matrix(x: &FlexTensor) -> [usize; 2] {
    let shape = x.layout().shape();
    [shape[0], shape[1]]
}

/// Where the matrices of a stack begin in its storage.
fn offsets(x: &FlexTensor) -> Vec<usize> {
    let (start, stride) = (x.layout().start_offset(), x.layout().strides()[0]);
    (0..x.layout().shape()[0])
        .map(|i| start.wrapping_add_signed(i as isize * stride))
        .collect()
}

fn strides(x: &FlexTensor) -> [isize; 2] {
    let strides = x.layout().strides();
    [strides[1], strides[2]]
}

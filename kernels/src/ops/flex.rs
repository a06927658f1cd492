//! The extension on Flex: tensors to slices, and the kernels' results to tensors.

use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{Flex, FlexTensor, Layout};

use super::{Bias, Keep, SparseOps, WeightGrad};
use crate::ConvShape;
use crate::cpu::{Epilogue, Isa, Mask, conv, weight_grad};

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
        _: WeightGrad,
    ) -> FlexTensor {
        let (x, w) = (packed(x), packed(w));
        let bias = match bias {
            Bias::Zero => None,
            Bias::Channels(bias) => Some(packed(bias)),
        };
        let epilogue = Epilogue {
            bias: bias.as_ref().map(floats),
            relu: false,
        };
        let keep = words(keep);
        let mask = mask(keep.as_ref(), shape.outputs, shape.weight_cols());
        let y = conv::forward(
            Isa::detect(),
            &shape,
            floats(&x),
            floats(&w),
            mask,
            epilogue,
        );
        tensor(y, shape.output_dims())
    }

    fn sparse_conv2d_input_grad(
        g: FlexTensor,
        w: FlexTensor,
        keep: Keep<Flex>,
        shape: ConvShape,
    ) -> FlexTensor {
        let (g, w) = (packed(g), packed(w));
        let keep = words(keep);
        let mask = mask(keep.as_ref(), shape.outputs, shape.weight_cols());
        let dx = conv::input_grad(Isa::detect(), &shape, floats(&g), floats(&w), mask);
        tensor(dx, shape.input_dims())
    }

    fn sparse_conv2d_weight_grad(
        x: FlexTensor,
        g: FlexTensor,
        keep: Keep<Flex>,
        shape: ConvShape,
    ) -> FlexTensor {
        let (x, g) = (packed(x), packed(g));
        let keep = words(keep);
        let mask = mask(keep.as_ref(), shape.outputs, shape.weight_cols());
        let dw = weight_grad::weight_grad(Isa::detect(), &shape, floats(&x), floats(&g), mask);
        tensor(dw, shape.weight_dims())
    }

    fn channel_sums(g: FlexTensor) -> FlexTensor {
        let g = packed(g);
        let dims = g.layout().shape().clone();
        let (batch, channels, places) = (dims[0], dims[1], dims[2] * dims[3]);
        let values = floats(&g);
        let sums = (0..channels)
            .map(|c| {
                (0..batch)
                    .map(|n| {
                        let image = &values[(n * channels + c) * places..][..places];
                        image.iter().map(|v| f64::from(*v)).sum::<f64>()
                    })
                    .sum::<f64>() as f32
            })
            .collect();
        tensor(sums, [channels])
    }
}

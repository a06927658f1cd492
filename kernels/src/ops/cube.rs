//! The extension on every GPU that CubeCL reaches: in f32, to which `ops` holds callers.

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::{Bias, Keep, SparseOps};
use crate::gpu::product;
use crate::{ConvShape, LinearShape, Precision};

fn words(keep: Keep<CubeBackend>) -> Option<CubeTensor> {
    match keep {
        Keep::All => None,
        Keep::Words(words) => Some(words),
    }
}

fn addends(bias: Bias<CubeBackend>) -> Option<CubeTensor> {
    match bias {
        Bias::Zero => None,
        Bias::Channels(bias) => Some(bias),
    }
}

fn matrix(x: &CubeTensor) -> [usize; 2] {
    let shape = x.meta.shape();
    [shape[0], shape[1]]
}

impl SparseOps for CubeBackend {
    fn sparse_conv2d(
        x: CubeTensor,
        w: CubeTensor,
        mask: Keep<Self>,
        bias: Bias<Self>,
        shape: ConvShape,
        _: Precision,
    ) -> CubeTensor {
        product::conv(&shape, x, w, words(mask), addends(bias))
    }

    fn sparse_conv2d_input_grad(
        g: CubeTensor,
        w: CubeTensor,
        mask: Keep<Self>,
        shape: ConvShape,
        _: Precision,
    ) -> CubeTensor {
        product::conv_input_grad(&shape, g, w, words(mask))
    }

    fn sparse_conv2d_weight_grad(
        x: CubeTensor,
        g: CubeTensor,
        mask: Keep<Self>,
        shape: ConvShape,
        _: Precision,
    ) -> CubeTensor {
        product::conv_weight_grad(&shape, x, g, words(mask))
    }

    fn sparse_linear(
        x: CubeTensor,
        w: CubeTensor,
        mask: Keep<Self>,
        bias: Bias<Self>,
        _: Precision,
    ) -> CubeTensor {
        let ([positions, cols], [_, rows]) = (matrix(&x), matrix(&w));
        let shape = LinearShape {
            positions,
            rows,
            cols,
        };
        product::linear(shape, x, w, words(mask), addends(bias))
    }

    fn sparse_linear_input_grad(
        g: CubeTensor,
        w: CubeTensor,
        mask: Keep<Self>,
        _: Precision,
    ) -> CubeTensor {
        let ([positions, rows], [cols, _]) = (matrix(&g), matrix(&w));
        let shape = LinearShape {
            positions,
            rows,
            cols,
        };
        product::linear_input_grad(shape, g, w, words(mask))
    }

    fn sparse_linear_weight_grad(
        x: CubeTensor,
        g: CubeTensor,
        mask: Keep<Self>,
        _: Precision,
    ) -> CubeTensor {
        let ([positions, cols], [_, rows]) = (matrix(&x), matrix(&g));
        let shape = LinearShape {
            positions,
            rows,
            cols,
        };
        product::linear_weight_grad(shape, x, g, words(mask))
    }

    fn channel_sums(g: CubeTensor) -> CubeTensor {
        product::channel_sums(g)
    }
}

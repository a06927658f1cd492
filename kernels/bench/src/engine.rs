//! Who computes: stock Burn, and the kernels. A block or a layer is written once and asks its engine for the products.

use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor, activation, module};
use kernels::cpu::Isa;
use kernels::{Activation, Precision};

use crate::shapes::{Op, Pass};

/// A weight as an engine may want it.
#[derive(Clone)]
pub struct Weight<const D: usize> {
    /// Dense values.
    pub value: Tensor<D>,
    /// What is kept, if not all.
    pub mask: Option<Keep<D>>,
}

/// A mask in both forms.
#[derive(Clone)]
pub struct Keep<const D: usize> {
    /// 1 = keep, to multiply with.
    pub ones: Tensor<D>,
    /// Words of `kernels::BitMask`: a row per output.
    pub words: Tensor<2, Int>,
}

impl<const D: usize> Weight<D> {
    /// On the tape.
    pub fn tracked(&self) -> Self {
        Self {
            value: tracked(self.value.clone()),
            mask: self.mask.clone().map(|mask| Keep {
                ones: mask.ones.autodiff(),
                words: mask.words,
            }),
        }
    }
}

/// On the tape.
pub fn tracked<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.autodiff().require_grad()
}

/// The products of the rows. The bodies here are stock Burn; an engine overrides what it computes itself.
pub trait Engine {
    /// See [`module::conv2d`].
    fn conv2d(&self, x: Tensor<4>, w: &Weight<4>, options: &ConvOptions<2>) -> Tensor<4> {
        module::conv2d(x, w.value.clone(), None, options.clone())
    }

    /// The gradient of a convolution's weight alone.
    fn conv2d_weight_grad(
        &self,
        x: Tensor<4>,
        w: &Weight<4>,
        output_grad: Tensor<4>,
        options: &ConvOptions<2>,
    ) -> Tensor<4> {
        module::conv2d_weight_backward(x, w.value.clone(), output_grad, options.clone())
    }

    /// See [`module::linear`]: weight `[in, out]`.
    fn linear(&self, x: Tensor<3>, w: &Weight<2>) -> Tensor<3> {
        module::linear(x, w.value.clone(), None)
    }

    /// Batched product.
    fn matmul(&self, a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
        a.matmul(b)
    }

    /// Over the last axis.
    fn softmax(&self, x: Tensor<3>) -> Tensor<3> {
        activation::softmax(x, 2)
    }

    /// Over the last axis.
    fn layer_norm(&self, x: Tensor<3>, gamma: Tensor<1>, beta: Tensor<1>) -> Tensor<3> {
        module::layer_norm(x, gamma, Some(beta), 1e-6)
    }

    /// With the error function itself.
    fn gelu(&self, x: Tensor<3>) -> Tensor<3> {
        activation::gelu(x)
    }

    /// ReLU, ReLU6 or nothing.
    fn activate(&self, x: Tensor<4>, what: Activation) -> Tensor<4> {
        match what {
            Activation::Relu => activation::relu(x),
            Activation::Relu6 => activation::relu6(x),
            Activation::Identity => x,
            other => unreachable!("no block has {other:?}"),
        }
    }

    /// An activation of a sum.
    fn join(&self, x: Tensor<4>, skip: Tensor<4>, what: Activation) -> Tensor<4> {
        self.activate(x + skip, what)
    }

    /// Which path was taken, where there is a choice.
    fn path(&self) -> Option<String> {
        None
    }
}

/// Stock Burn.
pub struct Burn;

impl Engine for Burn {}

/// Stock Burn the way a mask is applied without kernels: `w * mask`, then the product.
pub struct BurnMasked;

fn masked<const D: usize>(w: &Weight<D>) -> Tensor<D> {
    match &w.mask {
        Some(mask) => w.value.clone() * mask.ones.clone(),
        None => w.value.clone(),
    }
}

impl Engine for BurnMasked {
    fn conv2d(&self, x: Tensor<4>, w: &Weight<4>, options: &ConvOptions<2>) -> Tensor<4> {
        module::conv2d(x, masked(w), None, options.clone())
    }

    fn linear(&self, x: Tensor<3>, w: &Weight<2>) -> Tensor<3> {
        module::linear(x, masked(w), None)
    }
}

/// The kernels through Burn's tensors; Burn where there is no kernel, as in the networks.
pub struct Ours;

impl Engine for Ours {
    fn conv2d(&self, x: Tensor<4>, w: &Weight<4>, options: &ConvOptions<2>) -> Tensor<4> {
        let options = kernels::ConvOptions {
            stride: options.stride,
            padding: options.padding.map(|(before, after)| [before, after]),
            dilation: options.dilation,
            groups: options.groups,
        };
        let words = w.mask.as_ref().map(|mask| mask.words.clone());
        kernels::conv2d(x, w.value.clone(), words, None, options, Precision::F32)
            .expect("the shape file was checked")
    }

    fn linear(&self, x: Tensor<3>, w: &Weight<2>) -> Tensor<3> {
        let words = w.mask.as_ref().map(|mask| mask.words.clone());
        kernels::linear(x, w.value.clone(), words, None, Precision::F32)
            .expect("the shape file was checked")
    }

    fn matmul(&self, a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
        kernels::matmul(a, b)
    }

    fn softmax(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::softmax(x)
    }

    fn layer_norm(&self, x: Tensor<3>, gamma: Tensor<1>, beta: Tensor<1>) -> Tensor<3> {
        kernels::layer_norm(x, gamma, beta, 1e-6)
    }

    fn gelu(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::gelu(x)
    }

    fn activate(&self, x: Tensor<4>, what: Activation) -> Tensor<4> {
        kernels::activate(x, what)
    }

    fn join(&self, x: Tensor<4>, skip: Tensor<4>, what: Activation) -> Tensor<4> {
        kernels::join(x, skip, what)
    }

    fn path(&self) -> Option<String> {
        Some(Isa::detect().name().to_owned())
    }
}

/// An engine in a row, under the name that goals and files use.
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// Percent of the weights that are masked.
    pub sparsity: u32,
    /// It.
    pub engine: Box<dyn Engine>,
}

/// Those who compute a row; who would only do what Burn does is left out.
pub fn field(op: &Op, pass: Pass) -> Vec<Entry> {
    let entry = |name, sparsity, engine| Entry {
        name,
        sparsity,
        engine,
    };
    let mut field = vec![entry("burn", 0, Box::new(Burn) as Box<dyn Engine>)];
    let masks = match op {
        Op::Conv(conv) => !conv.depthwise(),
        Op::Linear(_) => pass == Pass::Forward,
        _ => false,
    };
    if masks && pass != Pass::WeightGrad {
        field.push(entry("burn_masked", 50, Box::new(BurnMasked)));
    }
    // The weight's gradient alone is the plain-slice contestant's: no function of the tensors gives it.
    let kernels = match op {
        Op::Conv(_) => pass != Pass::WeightGrad,
        Op::Select(_) | Op::Nm(_) => false,
        _ => true,
    };
    if kernels {
        field.push(entry("ours", 0, Box::new(Ours)));
        if masks {
            field.push(entry("masked", 50, Box::new(Ours)));
        }
    }
    field
}

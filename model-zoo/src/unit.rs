//! Units: the pieces a forward pass announces, at three grains.
//!
//! A network's forward is ordinary code that hands each piece to a [`Tap`] by name and type. What the tap does with it
//! (run it, list it, keep its inputs, train it) is none of the network's business.

use burn::module::{Module, ParamId};
use burn::nn::conv::Conv2d;
use burn::nn::{Linear, PaddingConfig2d};
use burn::tensor::Tensor;
use kernels::{ConvOptions, WeightGrad};

use crate::mask::stored;

/// The grain of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Grain {
    /// One convolution or linear layer.
    Single,
    /// A convolution or linear layer with what belongs to it up to the next one or a join.
    Layer,
    /// A residual block or the family's equivalent.
    Block,
}

/// What goes into or comes out of a unit: one tensor or a tuple of them.
pub trait Bundle: Clone + Send + 'static {
    /// The shapes of the tensors, batch first.
    fn shapes(&self) -> Vec<Vec<usize>>;
    /// The same values off any gradient tape, on a device that records one.
    fn to_autodiff(self) -> Self;
    /// Mean over batch and positions of the squared differences summed over channels (section 3.4 of the
    /// specification): channels are axis 1 of images and the last axis of tokens and rows.
    fn summed_square_error(self, target: Self) -> Tensor<1>;
    /// Sum over the batch, keeping the axis.
    fn sum_batch(self) -> Self;
    /// Sum with a bundle of the same shapes.
    fn plus(self, other: Self) -> Self;
    /// Every value times `factor`.
    fn times(self, factor: f64) -> Self;
    /// Mean of each channel over batch and positions, tensor after tensor.
    fn channel_means(self) -> Vec<f32>;
}

/// Images are [N, C, H, W]; everything else has its channels last.
const fn channel_axis(rank: usize) -> usize {
    if rank == 4 { 1 } else { rank - 1 }
}

impl<const D: usize> Bundle for Tensor<D> {
    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![self.dims().to_vec()]
    }

    fn to_autodiff(self) -> Self {
        self.detach().autodiff()
    }

    fn summed_square_error(self, target: Self) -> Tensor<1> {
        let dims = self.dims();
        let places = dims.iter().product::<usize>() / dims[channel_axis(D)].max(1);
        let difference = self - target;
        // Over the batch first: a sum over millions of values at once would depend on how threads share it.
        (difference.clone() * difference)
            .sum_dim(0)
            .sum()
            .div_scalar(places.max(1) as f32)
    }

    fn sum_batch(self) -> Self {
        self.sum_dim(0)
    }

    fn plus(self, other: Self) -> Self {
        self + other
    }

    fn times(self, factor: f64) -> Self {
        self.mul_scalar(factor)
    }

    fn channel_means(self) -> Vec<f32> {
        let axis = channel_axis(D);
        let mut mean = self;
        for other in (0..D).filter(|&d| d != axis) {
            mean = mean.mean_dim(other);
        }
        mean.into_data()
            .try_into_vec()
            .expect("networks compute in f32")
    }
}

impl<A: Bundle, B: Bundle> Bundle for (A, B) {
    fn shapes(&self) -> Vec<Vec<usize>> {
        [self.0.shapes(), self.1.shapes()].concat()
    }

    fn to_autodiff(self) -> Self {
        (self.0.to_autodiff(), self.1.to_autodiff())
    }

    fn summed_square_error(self, target: Self) -> Tensor<1> {
        self.0.summed_square_error(target.0) + self.1.summed_square_error(target.1)
    }

    fn sum_batch(self) -> Self {
        (self.0.sum_batch(), self.1.sum_batch())
    }

    fn plus(self, other: Self) -> Self {
        (self.0.plus(other.0), self.1.plus(other.1))
    }

    fn times(self, factor: f64) -> Self {
        (self.0.times(factor), self.1.times(factor))
    }

    fn channel_means(self) -> Vec<f32> {
        [self.0.channel_means(), self.1.channel_means()].concat()
    }
}

/// A piece of a network that can be run, kept and trained alone.
pub trait Unit<In: Bundle>: Module + 'static {
    /// What it returns.
    type Out: Bundle;
    /// How large a piece it is.
    const GRAIN: Grain;

    /// Runs it, announcing the units inside.
    fn run<T: Tap>(&self, input: In, tap: &mut T) -> Self::Out;

    /// The prunable layer that this unit is: [`Grain::Single`] units have one, others none.
    fn layer(&self) -> Option<LayerInfo> {
        None
    }
}

/// Observes a forward pass, or acts in it.
pub trait Tap: Sized {
    /// Whether [`Tap::mark`] does anything: if not, inner values need not exist.
    const MARKS: bool = false;

    /// Called for each announced unit; must return what the unit gives for `input`.
    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out;

    /// Called for an inner value that has a name but is no unit's result.
    fn mark<B: Bundle>(&mut self, _name: &str, _value: &B) {}
}

/// A whole network.
pub trait Network: Module + 'static {
    /// What it takes.
    type Input: Bundle;
    /// What it returns.
    type Output: Bundle;

    /// Runs it, announcing its units.
    fn run<T: Tap>(&self, input: Self::Input, tap: &mut T) -> Self::Output;

    /// The checkpoint's key of a parameter (or the name of a unit) at `path` in this module.
    fn key(&self, path: &str) -> String;

    /// The same in a checkpoint of that layout; none where the network's weights exist in its own layout alone.
    fn key_in(&self, _layout: Layout, _path: &str) -> Option<String> {
        None
    }

    /// The network as checkpoints of that layout mean it: what is no parameter may differ.
    fn meant_by(self, _layout: Layout) -> Self {
        self
    }

    /// The path of the layer whose rows are the classes; none in a network without one.
    fn classifier(&self) -> Option<String> {
        None
    }

    /// The network with so many classes: another layer, with random weights, in the classifier's place.
    fn with_classes(self, _classes: usize) -> Self {
        self
    }

    /// The network with every batch norm folded into the convolution before it; each convolution then has a bias.
    fn fold(self) -> Self;
}

/// Whose names a checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// timm's.
    Timm,
    /// torchvision's.
    Torchvision,
    /// torchvision's first one of vision transformers, which its published files still have.
    TorchvisionFirst,
}

impl Layout {
    /// All.
    pub const ALL: [Layout; 3] = [Layout::Timm, Layout::Torchvision, Layout::TorchvisionFirst];
}

/// Kind of a prunable layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A convolution.
    Conv,
    /// A linear layer.
    Linear,
}

/// A prunable layer as its unit describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerInfo {
    /// Convolution or linear.
    pub kind: LayerKind,
    /// Weight shape as checkpoints store it: OIHW, or [out, in].
    pub shape: Vec<usize>,
    /// Groups of a convolution, 1 for linear layers.
    pub groups: usize,
    /// Stride of a convolution, [1, 1] for linear layers.
    pub stride: [usize; 2],
    /// Padding of a convolution (top and left), [0, 0] for linear layers.
    pub padding: [usize; 2],
    /// Dilation of a convolution, [1, 1] for linear layers.
    pub dilation: [usize; 2],
    /// Whether it has a bias.
    pub bias: bool,
    /// Identity of the weight parameter.
    pub weight: ParamId,
}

impl LayerInfo {
    /// Weights in the layer.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Multiply-adds that give `outputs` output values: each uses one row of the weight matrix.
    pub fn macs(&self, outputs: usize) -> u64 {
        outputs as u64 * (self.len() / self.shape[0].max(1)) as u64
    }
}

/// Zeros before and after each axis of an input of `size`.
pub(crate) fn padding(conv: &Conv2d, size: [usize; 2]) -> [[usize; 2]; 2] {
    match conv.padding {
        PaddingConfig2d::Valid => [[0; 2]; 2],
        PaddingConfig2d::Explicit(top, left, bottom, right) => [[top, bottom], [left, right]],
        // As many outputs as strides fit into the input; the odd zero goes behind.
        PaddingConfig2d::Same => [0, 1].map(|d| {
            let outputs = size[d].div_ceil(conv.stride[d]);
            let reach = conv.dilation[d] * (conv.kernel_size[d] - 1) + 1;
            let zeros = ((outputs.max(1) - 1) * conv.stride[d] + reach).saturating_sub(size[d]);
            [zeros / 2, zeros - zeros / 2]
        }),
    }
}

impl Unit<Tensor<4>> for Conv2d {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Single;

    fn run<T: Tap>(&self, input: Tensor<4>, _: &mut T) -> Tensor<4> {
        let (weight, mask) = stored(&self.weight);
        let [_, _, height, width] = input.dims();
        let options = ConvOptions {
            stride: self.stride,
            padding: padding(self, [height, width]),
            dilation: self.dilation,
            groups: self.groups,
        };
        let bias = self.bias.as_ref().map(|bias| bias.val());
        kernels::conv2d(input, weight, mask, bias, options, WeightGrad::Masked)
            .unwrap_or_else(|error| panic!("a network's layers fit each other: {error}"))
    }

    fn layer(&self) -> Option<LayerInfo> {
        let padding = match self.padding {
            PaddingConfig2d::Explicit(top, left, _, _) => [top, left],
            PaddingConfig2d::Valid => [0, 0],
            PaddingConfig2d::Same => {
                [0, 1].map(|d| self.dilation[d] * (self.kernel_size[d] - 1) / 2)
            }
        };
        Some(LayerInfo {
            kind: LayerKind::Conv,
            shape: self.weight.lazy_shape().to_vec(),
            groups: self.groups,
            stride: self.stride,
            padding,
            dilation: self.dilation,
            bias: self.bias.is_some(),
            weight: self.weight.id,
        })
    }
}

impl<const D: usize> Unit<Tensor<D>> for Linear {
    type Out = Tensor<D>;
    const GRAIN: Grain = Grain::Single;

    fn run<T: Tap>(&self, input: Tensor<D>, _: &mut T) -> Tensor<D> {
        let (weight, mask) = stored(&self.weight);
        let bias = self.bias.as_ref().map(|bias| bias.val());
        kernels::linear(input, weight, mask, bias, WeightGrad::Masked)
            .unwrap_or_else(|error| panic!("a network's layers fit each other: {error}"))
    }

    fn layer(&self) -> Option<LayerInfo> {
        let mut shape = self.weight.lazy_shape().to_vec();
        shape.reverse();
        Some(LayerInfo {
            kind: LayerKind::Linear,
            shape,
            groups: 1,
            stride: [1, 1],
            padding: [0, 0],
            dilation: [1, 1],
            bias: self.bias.is_some(),
            weight: self.weight.id,
        })
    }
}

//! Units: the pieces a forward pass announces, at three grains.
//!
//! A network's forward is ordinary code that hands each piece to a [`Tap`] by name and type. What the tap does with it
//! (run it, list it, keep its inputs, train it) is none of the network's business.

use burn::module::{Module, ParamId};
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear, PaddingConfig2d};
use burn::tensor::Tensor;
use kernels::{ConvOptions, ConvShape, Precision};
use serde::{Deserialize, Serialize};

use crate::frozen::KeptWeight;
use crate::mask::stored;
use crate::padded::Extents;

/// The grain of a unit, and the granularity of what is done with units (section 3.3 of the specification).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grain {
    /// One convolution or linear layer.
    Single,
    /// A convolution or linear layer with what belongs to it up to the next one or a join.
    Layer,
    /// A residual block or the family's equivalent.
    Block,
}

impl Grain {
    /// All, from the finest.
    pub const ALL: [Self; 3] = [Self::Single, Self::Layer, Self::Block];

    /// As plans and tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Layer => "layer",
            Self::Block => "block",
        }
    }
}

/// What goes into or comes out of a unit: a tensor, or several in a tuple, a list or an option, with what is carried along.
///
/// This is structure alone. What is computed of values (a loss, statistics) is a [`TensorMap`] or a [`TensorZip`] where it
/// is used.
pub trait Bundle: Clone + Send + 'static {
    /// The shapes of the tensors, batch first.
    fn shapes(&self) -> Vec<Vec<usize>>;

    /// Every tensor replaced, in order.
    fn map(self, f: &mut impl TensorMap) -> Self;

    /// Every tensor beside the one at its place in `other`, which has the same structure, in order.
    fn zip(self, other: Self, f: &mut impl TensorZip);

    /// The same values off any gradient tape, on a device that records one.
    fn to_autodiff(self) -> Self {
        self.map(&mut ToAutodiff)
    }

    /// What of each image is no padding, where the value says so; none where every place counts.
    fn extents(&self) -> Option<Extents> {
        None
    }

    /// The first sample of the batch.
    fn first(self) -> Self {
        self.map(&mut First)
    }

    /// One batch of several, at least one, in order. What is carried along is the first one's.
    fn join(parts: Vec<Self>) -> Self;
}

/// A part of each of several values, joined.
fn join_parts<B, P: Bundle>(parts: &[B], part: impl Fn(&B) -> &P) -> P {
    P::join(parts.iter().map(|whole| part(whole).clone()).collect())
}

/// Replaces tensors one by one.
pub trait TensorMap {
    /// By this one.
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D>;
}

/// Sees the tensors of two bundles pair by pair.
pub trait TensorZip {
    /// A pair; the shapes are equal where the bundles are values of one unit.
    fn zip<const D: usize>(&mut self, one: Tensor<D>, other: Tensor<D>);
}

struct ToAutodiff;

impl TensorMap for ToAutodiff {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        tensor.detach().autodiff()
    }
}

struct First;

impl TensorMap for First {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        tensor.slice_dim(0, 0..1)
    }
}

impl<const D: usize> Bundle for Tensor<D> {
    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![self.dims().to_vec()]
    }

    fn map(self, f: &mut impl TensorMap) -> Self {
        f.map(self)
    }

    fn zip(self, other: Self, f: &mut impl TensorZip) {
        f.zip(self, other);
    }

    fn join(parts: Vec<Self>) -> Self {
        Tensor::cat(parts, 0)
    }
}

impl<B: Bundle> Bundle for Vec<B> {
    fn shapes(&self) -> Vec<Vec<usize>> {
        self.iter().flat_map(B::shapes).collect()
    }

    fn map(self, f: &mut impl TensorMap) -> Self {
        self.into_iter().map(|item| item.map(f)).collect()
    }

    fn zip(self, other: Self, f: &mut impl TensorZip) {
        assert_eq!(
            self.len(),
            other.len(),
            "lists of one unit are equally long"
        );
        for (one, other) in self.into_iter().zip(other) {
            one.zip(other, f);
        }
    }

    fn join(parts: Vec<Self>) -> Self {
        let items = 0..parts.as_slice().first().map_or(0, Vec::len);
        items
            .map(|at| join_parts(&parts, |list| &list[at]))
            .collect()
    }
}

impl<B: Bundle> Bundle for Option<B> {
    fn shapes(&self) -> Vec<Vec<usize>> {
        self.iter().flat_map(B::shapes).collect()
    }

    fn map(self, f: &mut impl TensorMap) -> Self {
        self.map(|value| value.map(f))
    }

    fn zip(self, other: Self, f: &mut impl TensorZip) {
        assert_eq!(
            self.is_some(),
            other.is_some(),
            "a unit's part is always or never there"
        );
        if let (Some(one), Some(other)) = (self, other) {
            one.zip(other, f);
        }
    }

    fn join(parts: Vec<Self>) -> Self {
        let there: Option<Vec<B>> = parts.into_iter().collect();
        there.map(B::join)
    }
}

macro_rules! tuples {
    ($(($($part:ident $place:tt),+))+) => {$(
        impl<$($part: Bundle),+> Bundle for ($($part,)+) {
            fn shapes(&self) -> Vec<Vec<usize>> {
                [$(self.$place.shapes()),+].concat()
            }

            fn map(self, f: &mut impl TensorMap) -> Self {
                ($(self.$place.map(f),)+)
            }

            fn zip(self, other: Self, f: &mut impl TensorZip) {
                $(self.$place.zip(other.$place, f);)+
            }

            fn join(parts: Vec<Self>) -> Self {
                ($(join_parts(&parts, |tuple| &tuple.$place),)+)
            }
        }
    )+};
}

tuples! {
    (A 0, B 1)
    (A 0, B 1, C 2)
}

/// Carried along and never compared or cut, as tokens. It is not a tensor and is on no device; where it
/// has an entry per sample, a batch of fewer samples uses the first ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fixed<X>(pub X);

impl<X: Clone + Send + 'static> Bundle for Fixed<X> {
    fn shapes(&self) -> Vec<Vec<usize>> {
        Vec::new()
    }

    fn map(self, _: &mut impl TensorMap) -> Self {
        self
    }

    fn zip(self, _: Self, _: &mut impl TensorZip) {}

    fn join(parts: Vec<Self>) -> Self {
        let first = parts.into_iter().next();
        first.expect("what is joined has a first part")
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

    /// The batch norm behind the unit's own convolution, which is called `conv`; the norm is called `norm`.
    fn norm(&self) -> Option<&BatchNorm> {
        None
    }
}

/// Observes a forward pass, or acts in it.
pub trait Tap: Sized {
    /// Whether [`Tap::mark`] does anything: if not, inner values need not exist.
    const MARKS: bool = false;

    /// Arithmetic of the pass: that of its convolutions and linear layers. It is the tap's to say, since a network has none
    /// of its own, and every layer is handed the tap.
    fn precision(&self) -> Precision;

    /// Called for each announced unit; must return what the unit gives for `input`.
    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out;

    /// Called for an inner value that has a name but is not a unit's result.
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

    /// The network as checkpoints of that layout mean it: what is not a parameter may differ.
    fn meant_by(self, _layout: Layout) -> Self {
        self
    }

    /// The path of the layer whose rows are the classes, or of the first one; none in a network without one.
    fn classifier(&self) -> Option<String> {
        None
    }

    /// Rows that such a layer has for each class: in detectors one for each anchor of a place.
    fn rows_of_class(&self) -> usize {
        1
    }

    /// The network with so many classes: other layers, with random weights, in the place of those that name them.
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
    /// torchvision's first one of vision transformers and RetinaNet, which its published files still have.
    TorchvisionFirst,
    /// diffusers' first one of autoencoders, which its published files still have.
    DiffusersFirst,
}

impl Layout {
    /// All.
    pub const ALL: [Layout; 4] = [
        Layout::Timm,
        Layout::Torchvision,
        Layout::TorchvisionFirst,
        Layout::DiffusersFirst,
    ];
}

/// Kind of a prunable layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// A convolution; checkpoints store its weight as OIHW.
    Conv,
    /// A linear layer; checkpoints store its weight as [out, in].
    Linear,
}

/// Zeros around the input of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeros {
    /// Before and after, along height and width.
    Fixed([[usize; 2]; 2]),
    /// TensorFlow's "same": as many outputs as strides fit into the input; the odd zero goes behind.
    Same,
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
    /// Zeros around a convolution's input, none for linear layers.
    pub padding: Zeros,
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

    /// The convolution on an input of these dimensions, NCHW.
    pub fn convolution(&self, [batch, inputs, height, width]: [usize; 4]) -> ConvShape {
        let kernel = [self.shape[2], self.shape[3]];
        let size = [height, width];
        ConvShape {
            batch,
            inputs,
            outputs: self.shape[0],
            size,
            kernel,
            stride: self.stride,
            padding: self.padding.at(size, kernel, self.stride, self.dilation),
            dilation: self.dilation,
            groups: self.groups,
        }
    }

    /// Multiply-adds that give `outputs` output values: each uses one row of the weight matrix.
    pub fn macs(&self, outputs: usize) -> u64 {
        outputs as u64 * (self.len() / self.shape[0].max(1)) as u64
    }
}

impl Zeros {
    /// As Burn's layer has them.
    fn of(padding: &PaddingConfig2d) -> Self {
        match *padding {
            PaddingConfig2d::Valid => Self::Fixed([[0; 2]; 2]),
            PaddingConfig2d::Explicit(top, left, bottom, right) => {
                Self::Fixed([[top, bottom], [left, right]])
            }
            PaddingConfig2d::Same => Self::Same,
        }
    }

    /// Before and after each axis of an input of `size`.
    fn at(
        self,
        size: [usize; 2],
        kernel: [usize; 2],
        stride: [usize; 2],
        dilation: [usize; 2],
    ) -> [[usize; 2]; 2] {
        match self {
            Self::Fixed(zeros) => zeros,
            Self::Same => [0, 1].map(|d| {
                let outputs = size[d].div_ceil(stride[d]);
                let reach = dilation[d] * (kernel[d] - 1) + 1;
                let zeros = ((outputs.max(1) - 1) * stride[d] + reach).saturating_sub(size[d]);
                [zeros / 2, zeros - zeros / 2]
            }),
        }
    }
}

/// Zeros before and after each axis of an input of `size`.
pub(crate) fn padding(conv: &Conv2d, size: [usize; 2]) -> [[usize; 2]; 2] {
    Zeros::of(&conv.padding).at(size, conv.kernel_size, conv.stride, conv.dilation)
}

impl Unit<Tensor<4>> for Conv2d {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Single;

    fn run<T: Tap>(&self, input: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let [_, _, height, width] = input.dims();
        let options = ConvOptions {
            stride: self.stride,
            padding: padding(self, [height, width]),
            dilation: self.dilation,
            groups: self.groups,
        };
        let bias = self.bias.as_ref().map(|bias| bias.val());
        let output = match KeptWeight::of(&self.weight, &input) {
            Some(kept) => kept.conv2d(input, self.kernel_size, bias, options),
            None => {
                let (weight, mask) = stored(&self.weight);
                kernels::conv2d(input, weight, mask, bias, options, tap.precision())
            }
        };
        output.unwrap_or_else(|error| panic!("a network's layers fit each other: {error}"))
    }

    fn layer(&self) -> Option<LayerInfo> {
        Some(LayerInfo {
            kind: LayerKind::Conv,
            shape: self.weight.lazy_shape().to_vec(),
            groups: self.groups,
            stride: self.stride,
            padding: Zeros::of(&self.padding),
            dilation: self.dilation,
            bias: self.bias.is_some(),
            weight: self.weight.id,
        })
    }
}

impl<const D: usize> Unit<Tensor<D>> for Linear {
    type Out = Tensor<D>;
    const GRAIN: Grain = Grain::Single;

    fn run<T: Tap>(&self, input: Tensor<D>, tap: &mut T) -> Tensor<D> {
        let bias = self.bias.as_ref().map(|bias| bias.val());
        let output = match KeptWeight::of(&self.weight, &input) {
            Some(kept) => kept.linear(input, bias),
            None => {
                let (weight, mask) = stored(&self.weight);
                kernels::linear(input, weight, mask, bias, tap.precision())
            }
        };
        output.unwrap_or_else(|error| panic!("a network's layers fit each other: {error}"))
    }

    fn layer(&self) -> Option<LayerInfo> {
        let mut shape = self.weight.lazy_shape().to_vec();
        shape.reverse();
        Some(LayerInfo {
            kind: LayerKind::Linear,
            shape,
            groups: 1,
            stride: [1, 1],
            padding: Zeros::Fixed([[0; 2]; 2]),
            dilation: [1, 1],
            bias: self.bias.is_some(),
            weight: self.weight.id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Bare;
    use burn::nn::LinearConfig;
    use burn::nn::conv::Conv2dConfig;
    use burn::tensor::{Device, Distribution};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn layers_compute_in_the_precision_of_their_tap() {
        let device = Device::flex();
        let random = Distribution::Normal(0.0, 1.0);
        let conv = Conv2dConfig::new([16, 16], [3, 3]).init(&device);
        let linear = LinearConfig::new(16, 24).init(&device);
        let image = Tensor::<4>::random([2, 16, 8, 8], random, &device);
        let rows = Tensor::<2>::random([32, 16], random, &device);
        let convolved = |precision| conv.run(image.clone(), &mut Bare(precision)).into_data();
        let multiplied = |precision| linear.run(rows.clone(), &mut Bare(precision)).into_data();
        for precision in [Precision::Bf16x3, Precision::Bf16] {
            match precision.check() {
                Ok(()) => {
                    assert_ne!(convolved(precision), convolved(Precision::F32));
                    assert_ne!(multiplied(precision), multiplied(Precision::F32));
                }
                Err(missing) => {
                    let refused = |run: &dyn Fn(Precision) -> burn::tensor::TensorData| {
                        let end = catch_unwind(AssertUnwindSafe(|| run(precision)));
                        let said = *end
                            .expect_err("no tiles here")
                            .downcast::<String>()
                            .unwrap();
                        assert!(said.contains(&missing.to_string()), "{said}");
                    };
                    refused(&convolved);
                    refused(&multiplied);
                }
            }
        }
    }
}

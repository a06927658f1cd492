//! A tap for inference: masked layers run on their kept weights alone, where that is faster.
//!
//! Kept weights are packed when a layer runs first and used from then on; the network must not change in between.
// An `Err` here is no failure: it hands the input back.
#![allow(clippy::result_large_err)]

use std::any::Any;
use std::collections::HashMap;

use burn::module::ParamId;
use burn::nn::Linear;
use burn::nn::conv::Conv2d;
use burn::tensor::{DType, Device, Tensor, TensorData};
use kernels::cpu::Epilogue;
use kernels::cpu::sparse::{self, SparseWeight};
use kernels::plan::{self, KernelPolicy, Op, Path, Problem};
use kernels::{BitMask, ConvShape};

use crate::mask::stored;
use crate::unit::{Bundle, Tap, Unit, padding};

/// Runs a network whose masks and weights no longer change. Keep it from pass to pass.
pub struct Frozen {
    policy: KernelPolicy,
    weights: HashMap<ParamId, Option<Layer>>,
    sparse: usize,
}

/// A masked layer's kept weights and bias.
struct Layer {
    weight: SparseWeight,
    bias: Option<Vec<f32>>,
}

impl Layer {
    fn epilogue(&self) -> Epilogue<'_> {
        Epilogue {
            bias: self.bias.as_deref(),
            relu: false,
        }
    }
}

impl Frozen {
    /// With the paths that `policy` chooses.
    pub fn new(policy: KernelPolicy) -> Self {
        Self {
            policy,
            weights: HashMap::new(),
            sparse: 0,
        }
    }

    /// How many layers ran on kept weights so far, each time they did.
    pub fn sparse_runs(&self) -> usize {
        self.sparse
    }

    /// The layer's kept weights if its mask pays for itself on this problem.
    fn layer(
        &mut self,
        id: ParamId,
        problem: &Problem,
        build: impl FnOnce() -> Option<Layer>,
    ) -> Option<&Layer> {
        let layer = self.weights.entry(id).or_insert_with(build).as_ref()?;
        let plan = plan::explain(
            Op::Forward,
            problem,
            layer.weight.nnz().into(),
            &self.policy,
        );
        if matches!(plan.path, Path::Dense | Path::SampledGrad) {
            return None;
        }
        self.sparse += 1;
        Some(layer)
    }

    /// The convolution's output, or its input back if the ordinary path is the better one.
    fn conv(&mut self, conv: &Conv2d, x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
        let [batch, inputs, height, width] = x.dims();
        let [outputs, _, kh, kw] = conv.weight.lazy_shape().dims();
        let shape = ConvShape {
            batch,
            inputs,
            outputs,
            size: [height, width],
            kernel: [kh, kw],
            stride: conv.stride,
            padding: padding(conv, [height, width]),
            dilation: conv.dilation,
            groups: conv.groups,
        };
        let isa = self.policy.isa;
        let layer = self.layer(conv.weight.id, &shape.into(), || {
            let (weight, mask) = stored(&conv.weight);
            let mask = bits(outputs, shape.weight_cols(), mask?);
            Some(Layer {
                weight: SparseWeight::from_dense(&floats(weight), &mask).ok()?,
                bias: conv.bias.as_ref().map(|bias| floats(bias.val())),
            })
        });
        let Some(layer) = layer else { return Err(x) };
        let device = x.device();
        let y = sparse::forward(isa, &shape, &floats(x), &layer.weight, layer.epilogue());
        Ok(Tensor::from_data(
            TensorData::new(y, shape.output_dims()),
            &device,
        ))
    }

    /// As [`Frozen::conv`], for a linear layer.
    fn linear<const D: usize>(
        &mut self,
        linear: &Linear,
        x: Tensor<D>,
    ) -> Result<Tensor<D>, Tensor<D>> {
        let [cols, rows] = linear.weight.lazy_shape().dims();
        let mut dims = x.dims();
        let problem = Problem::Linear {
            positions: dims[..D - 1].iter().product(),
            rows,
            cols,
        };
        let isa = self.policy.isa;
        let layer = self.layer(linear.weight.id, &problem, || {
            let (weight, mask) = stored(&linear.weight);
            let mask = bits(rows, cols, mask?);
            // Stored as [in, out]; kernels and masks have a row per output.
            let weight = floats(weight.transpose());
            Some(Layer {
                weight: SparseWeight::from_dense(&weight, &mask).ok()?,
                bias: linear.bias.as_ref().map(|bias| floats(bias.val())),
            })
        });
        let Some(layer) = layer else { return Err(x) };
        let device = x.device();
        let y = sparse::linear(isa, &floats(x), &layer.weight, layer.epilogue());
        dims[D - 1] = rows;
        Ok(Tensor::from_data(TensorData::new(y, dims), &device))
    }
}

/// What the unit gives on kept weights, or what went in.
fn attempt<T: Bundle, In: Bundle, Out: Bundle>(
    input: In,
    run: impl FnOnce(T) -> Result<T, T>,
) -> Result<Out, In> {
    // The types agree wherever this is called; the compiler cannot know.
    let mut slot = Some(input);
    let any: &mut dyn Any = &mut slot;
    if let Some(slot) = any.downcast_mut::<Option<T>>() {
        match slot.take().map(run) {
            Some(Ok(output)) => {
                let mut output = Some(output);
                let any: &mut dyn Any = &mut output;
                if let Some(output) = any.downcast_mut::<Option<Out>>().and_then(Option::take) {
                    return Ok(output);
                }
            }
            Some(Err(input)) => *slot = Some(input),
            None => {}
        }
    }
    Err(slot.expect("a unit gives what its type says"))
}

impl Tap for Frozen {
    fn unit<In: Bundle, U: Unit<In>>(&mut self, _: &str, unit: &U, input: In) -> U::Out {
        let any: &dyn Any = unit;
        let attempted = if let Some(conv) = any.downcast_ref::<Conv2d>() {
            attempt(
                input,
                |x: Tensor<4>| {
                    if ours(&x) { self.conv(conv, x) } else { Err(x) }
                },
            )
        } else if let Some(linear) = any.downcast_ref::<Linear>() {
            let first = attempt(input, |x: Tensor<2>| {
                if ours(&x) {
                    self.linear(linear, x)
                } else {
                    Err(x)
                }
            });
            first.or_else(|input| {
                attempt(input, |x: Tensor<3>| {
                    if ours(&x) {
                        self.linear(linear, x)
                    } else {
                        Err(x)
                    }
                })
            })
        } else {
            Err(input)
        };
        match attempted {
            Ok(output) => output,
            Err(input) => unit.run(input, self),
        }
    }
}

/// The kernels take f32 on the CPU, off the tape.
fn ours<const D: usize>(x: &Tensor<D>) -> bool {
    x.device() == Device::flex() && x.dtype() == DType::F32
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data();
    data.try_into_vec().expect("networks compute in f32")
}

fn bits(rows: usize, cols: usize, words: Tensor<2, burn::tensor::Int>) -> BitMask {
    let words = words
        .into_data()
        .try_into_vec()
        .expect("mask words are u32");
    BitMask::from_words(rows, cols, words).expect("a mask has the size of its weight")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use crate::graft::read_params;
    use crate::mask::Attach;
    use crate::modality::{Classes, Classifier, Visit};
    use crate::tap::{Bare, Census};
    use burn::tensor::Distribution;
    use kernels::plan::PathChoice;

    struct Compare;

    impl Visit<Classes> for Compare {
        type Out = usize;

        fn visit<N: Classifier>(self, spec: &'static catalog::Spec, network: N) -> usize {
            let device = Device::flex();
            let [channels, height, width] = spec.input;
            let x = Tensor::random([3, channels, height, width], Distribution::Default, &device);
            let mut census = Census::default();
            network.run(x.clone(), &mut census);
            let params: HashMap<String, TensorData> = read_params(&network).into_iter().collect();
            let masks: Vec<(String, BitMask)> = census
                .layers()
                .iter()
                .map(|row| {
                    let path = format!("{}.weight", row.path);
                    let shape = &row.layer.as_ref().expect("a layer").shape;
                    let n = params[&path].num_elements();
                    // One of ten; which ones differs from row to row.
                    let keep: Vec<bool> = (0..n).map(|i| i * 7 % 10 == i / 90 % 10).collect();
                    let mask = BitMask::from_keep(shape[0], n / shape[0], &keep);
                    (path, mask.expect("sizes agree"))
                })
                .collect();
            let masks = masks.iter().map(|(path, mask)| (path.clone(), mask));
            let network = network.apply_reparameterization(Attach::new(masks, &device));
            let want: Vec<f32> = floats(network.run(x.clone(), &mut Bare));
            let scale = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));

            let mut dense = Frozen::new(KernelPolicy {
                path: PathChoice::Force(Path::Dense),
                ..KernelPolicy::auto()
            });
            assert_eq!(floats(network.run(x.clone(), &mut dense)), want);
            assert_eq!(dense.sparse_runs(), 0);

            let mut frozen = Frozen::new(KernelPolicy {
                path: PathChoice::Force(Path::Csr),
                ..KernelPolicy::auto()
            });
            for _ in 0..2 {
                let got = floats(network.run(x.clone(), &mut frozen));
                for (got, want) in got.iter().zip(&want) {
                    assert!((got - want).abs() <= 1e-4 * scale, "{got}, expected {want}");
                }
            }
            frozen.sparse_runs()
        }
    }

    #[test]
    fn kept_weights_alone_give_the_same_outputs() {
        for name in ["tiny_resnet_basic", "tiny_mobilenetv2", "tiny_vit"] {
            let spec = catalog::find(name).expect("in the catalog");
            let runs = spec
                .open_classes(&Device::flex(), "frozen", Compare)
                .expect("it names classes");
            assert!(runs >= 2, "{name}: {runs}");
        }
    }
}

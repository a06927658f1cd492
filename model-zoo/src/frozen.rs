//! Weights that no longer change: layers run on what is kept of them, where that is faster.
//!
//! [`freeze`] asks `kernels::plan` for each prunable layer once, and attaches its kept weights to those whose mask pays for
//! itself, as masks are attached. The layer's forward pass then runs on them wherever that path exists (f32 on the CPU, off
//! the tape); elsewhere it runs on the whole weight, which stays where it is.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::tensor::{Device, Tensor};
use kernels::cpu::sparse::SparseWeight;
use kernels::plan::{self, Kept, KernelPolicy, Op, Path, Plan, Problem};
use kernels::{BitMask, ConvOptions};

use crate::tap::{Census, Row};
use crate::unit::{LayerKind, Network};

/// A network, and how each of its prunable layers runs.
pub struct Frozen<N> {
    /// The network. Its weights must not change any more; folding batch norms or `materialize` undoes the freezing.
    pub network: N,
    /// The path of each prunable layer, in forward order.
    pub layers: Vec<Choice>,
}

impl<N> Frozen<N> {
    /// How many layers run on kept weights alone.
    pub fn sparse_layers(&self) -> usize {
        let sparse = self.layers.iter().filter(|choice| is_sparse(&choice.plan));
        sparse.count()
    }
}

/// How a layer runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The layer's path in the module.
    pub layer: String,
    /// The path of its product, and why.
    pub plan: Plan,
}

/// What decides about paths, besides the layers.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Who chooses.
    pub policy: KernelPolicy,
    /// Samples in a batch. Smaller batches take the same path: what comes out for a sample must not depend on how many are
    /// left.
    pub batch: usize,
    /// N and M, where weights are kept in groups along input channels.
    pub nm: Option<[usize; 2]>,
}

/// The path of the prunable layer in a row of a census of one sample, of whose weights `nnz` are kept.
pub fn choose(row: &Row, nnz: usize, terms: &Terms) -> Plan {
    let info = row
        .layer
        .as_ref()
        .expect("a prunable row describes a layer");
    let input = &row.inputs[0];
    let problem = match info.kind {
        LayerKind::Conv => {
            let dims = [terms.batch, input[1], input[2], input[3]];
            Problem::Conv(info.convolution(dims))
        }
        LayerKind::Linear => Problem::Linear {
            positions: terms.batch * input[..input.len() - 1].iter().product::<usize>(),
            rows: info.shape[0],
            cols: info.shape[1],
        },
    };
    let in_groups = |[_, m]: &[usize; 2]| nnz < info.len() && info.shape[1].is_multiple_of(*m);
    let kept = Kept {
        nnz,
        nm: terms.nm.filter(in_groups),
    };
    plan::explain(Op::Forward, &problem, kept, &terms.policy)
}

/// The network with the kept weights of each layer attached whose plan names a sparse path. Kept are those that are not
/// zero, and that a mask keeps if there is one; `census` is of one sample.
///
/// Where no layer takes such a path, the network is returned as it was.
pub fn freeze<N: Network>(network: N, census: &Census, terms: &Terms) -> Frozen<N> {
    let rows = census.layers();
    let mut plans = HashMap::new();
    let pack = Pack {
        rows: rows
            .iter()
            .map(|row| (format!("{}.weight", row.path), row))
            .collect(),
        terms,
        plans: &mut plans,
    };
    // A mask would be put back in place of what is attached here.
    let frozen = network.clone().materialize().apply_reparameterization(pack);
    let layers: Vec<Choice> = rows
        .into_iter()
        .filter_map(|row| {
            Some(Choice {
                plan: plans.remove(&row.path)?,
                layer: row.path,
            })
        })
        .collect();
    let any = layers.iter().any(|choice| is_sparse(&choice.plan));
    Frozen {
        network: if any { frozen } else { network },
        layers,
    }
}

fn is_sparse(plan: &Plan) -> bool {
    matches!(plan.path, Path::Csr | Path::Nm)
}

/// Attaches kept weights.
struct Pack<'a> {
    /// Prunable layers by the paths of their weights.
    rows: HashMap<String, &'a Row>,
    terms: &'a Terms,
    plans: &'a mut HashMap<String, Plan>,
}

impl Reparameterizer for Pack<'_> {
    type Reparam = KeptWeight;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<KeptWeight>) {
        let Some(row) = self.rows.get(path) else {
            return (param, None);
        };
        let info = row
            .layer
            .as_ref()
            .expect("a prunable row describes a layer");
        let value = param.val();
        let here = value.device() == Device::flex();
        // Burn stores a linear layer's weight as [in, out]; kernels have a row per output.
        let value = match info.kind {
            LayerKind::Conv => value,
            LayerKind::Linear => value.transpose(),
        };
        let values: Vec<f32> = value
            .into_data()
            .try_into_vec()
            .expect("networks compute in f32");
        let keep: Vec<bool> = values.iter().map(|value| *value != 0.0).collect();
        let nnz = keep.iter().filter(|keep| **keep).count();
        let mut plan = choose(row, nnz, self.terms);
        let mut kept = None;
        if is_sparse(&plan) {
            let rows = info.shape[0];
            let packed = BitMask::from_keep(rows, values.len() / rows.max(1), &keep)
                .and_then(|mask| SparseWeight::from_dense(&values, &mask));
            match packed {
                Ok(weight) if here => {
                    kept = Some(KeptWeight {
                        weight: Arc::new(weight),
                    });
                }
                Ok(_) => plan = dense(plan, "this device has no sparse path".to_owned()),
                Err(error) => plan = dense(plan, error.to_string()),
            }
        }
        self.plans.insert(row.path.clone(), plan);
        (param, kept)
    }
}

fn dense(plan: Plan, reason: String) -> Plan {
    Plan {
        path: Path::Dense,
        reason,
        ..plan
    }
}

/// The kept values of a weight, packed, beside the weight itself.
#[derive(Module, Debug)]
pub struct KeptWeight {
    #[module(skip)]
    weight: Arc<SparseWeight>,
}

impl Reparameterization for KeptWeight {
    const NAME: &'static str = "kept";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        base
    }
}

impl KeptWeight {
    /// That of a weight, if it has one and this input can be taken by it.
    pub(crate) fn of<'a, const W: usize, const D: usize>(
        weight: &'a Param<Tensor<W>>,
        input: &Tensor<D>,
    ) -> Option<&'a Self> {
        let kept = weight.reparameterization::<Self>()?;
        kernels::frozen_runs(input).then_some(kept)
    }

    /// A convolution's output.
    pub(crate) fn conv2d(
        &self,
        x: Tensor<4>,
        kernel: [usize; 2],
        bias: Option<Tensor<1>>,
        options: ConvOptions,
    ) -> Result<Tensor<4>, kernels::KernelError> {
        kernels::frozen_conv2d(x, &self.weight, kernel, bias, options)
    }

    /// A linear layer's output.
    pub(crate) fn linear<const D: usize>(
        &self,
        x: Tensor<D>,
        bias: Option<Tensor<1>>,
    ) -> Result<Tensor<D>, kernels::KernelError> {
        kernels::frozen_linear(x, &self.weight, bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use crate::graft::{read_params, write_params};
    use crate::mask::Attach;
    use crate::modality::{Blank, Modality, Of, Visit};
    use crate::tap::Bare;
    use crate::unit::{Bundle, TensorMap};
    use burn::tensor::{Distribution, TensorData};
    use kernels::plan::PathChoice;

    struct Random;

    impl TensorMap for Random {
        fn map<const D: usize>(&mut self, blank: Tensor<D>) -> Tensor<D> {
            blank.random_like(Distribution::Normal(0.0, 1.0))
        }
    }

    /// All tensors of a bundle, one after the other.
    fn floats(bundle: impl Bundle) -> Vec<f32> {
        struct Collect(Vec<f32>);
        impl TensorMap for Collect {
            fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
                let data = tensor.clone().into_data();
                self.0.extend(data.iter::<f32>());
                tensor
            }
        }
        let mut collect = Collect(Vec::new());
        bundle.map(&mut collect);
        collect.0
    }

    fn terms(path: PathChoice) -> Terms {
        Terms {
            policy: KernelPolicy {
                path,
                ..KernelPolicy::auto()
            },
            batch: 3,
            nm: None,
        }
    }

    struct Compare;

    impl<M: Modality> Visit<M> for Compare {
        type Out = usize;

        fn visit<N: Of<M>>(self, spec: &'static catalog::Spec, network: N) -> usize {
            let device = Device::flex();
            let x = N::Input::blank(spec, 3, &device).map(&mut Random);
            let mut census = Census::default();
            network.run(N::Input::blank(spec, 1, &device), &mut census);
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
            let want = floats(network.run(x.clone(), &mut Bare::default()));
            let scale = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));

            let freeze = |path| freeze(network.clone(), &census, &terms(path));
            let dense = freeze(PathChoice::Force(Path::Dense));
            assert_eq!(
                floats(dense.network.run(x.clone(), &mut Bare::default())),
                want
            );
            assert_eq!(dense.sparse_layers(), 0);

            let frozen = freeze(PathChoice::Force(Path::Csr));
            assert_eq!(frozen.layers.len(), census.layers().len());
            assert_eq!(frozen.sparse_layers(), frozen.layers.len());
            // The weights themselves are no numbers any more: whoever reads one shows it.
            let spoilt = census.layers().into_iter().map(|row| {
                let path = format!("{}.weight", row.path);
                let shape = params[&path].shape().clone();
                let nan = vec![f32::NAN; params[&path].num_elements()];
                (path, TensorData::new(nan, shape))
            });
            let (spoilt, left) = write_params(frozen.network.clone(), spoilt.collect(), &device);
            assert!(left.is_empty(), "{left:?}");
            for (got, want) in floats(spoilt.run(x.clone(), &mut Bare::default()))
                .iter()
                .zip(&want)
            {
                assert!(
                    (got - want).abs() <= 1e-4 * scale,
                    "{}: {got}, expected {want}",
                    spec.name
                );
            }

            // Without the packed weights the network is the masked one, bit by bit.
            let thawed = frozen.network.materialize();
            assert_eq!(floats(thawed.run(x, &mut Bare::default())), want);
            frozen.layers.len()
        }
    }

    #[test]
    fn kept_weights_alone_give_the_same_outputs() {
        for name in [
            "tiny_resnet_basic",
            "tiny_mobilenetv2",
            "micro_mobilenetv3_050",
            "micro_shufflenet_v2_x0_5",
            "micro_regnetx_s",
            "micro_vgg9_bn",
            "tiny_vit",
            "tiny_retinanet",
            "tiny_mobilenetv2_ssd_lite",
            "tiny_unet",
        ] {
            let spec = catalog::find(name).expect("in the catalog");
            let layers = spec.open(&Device::flex(), Compare);
            assert!(layers >= 2, "{name}: {layers}");
        }
    }
}

//! Batch norms that stay in the network: kept still while what is around them is trained, measured again on other images.

use std::collections::HashMap;

use burn::module::{Flag, Module, ModuleMapper, Param};
use burn::nn::BatchNorm;
use burn::tensor::{Tensor, TensorData};
use kernels::Precision;

use crate::graft::write_params;
use crate::tap::Path;
use crate::unit::{Bundle, Network, Tap, Unit};

/// What a norm with frozen statistics multiplies each channel by: `gamma / sqrt(var + eps)`.
pub fn scale(norm: &BatchNorm) -> Vec<f64> {
    let read = |tensor: Tensor<1>| tensor.into_data();
    let (gamma, var) = (read(norm.gamma.val()), read(norm.running_var.value_sync()));
    let pairs = gamma.iter::<f32>().zip(var.iter::<f32>());
    pairs
        .map(|(gamma, var)| f64::from(gamma) / (f64::from(var) + norm.epsilon).sqrt())
        .collect()
}

/// The module with its batch norms frozen: training moves neither their statistics nor their scale and shift, and they
/// go on normalizing by what they have.
pub fn freeze<M: Module>(module: M) -> M {
    module.map(&mut Freeze(Vec::new()))
}

/// The types that the walk is inside of.
struct Freeze(Vec<bool>);

impl Freeze {
    fn in_norm(&self) -> bool {
        self.0.last().is_some_and(|&norm| norm)
    }
}

impl ModuleMapper for Freeze {
    fn enter_module(&mut self, _: &str, container: &str) {
        self.0.push(container == "Struct:BatchNorm");
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.0.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.in_norm() {
            return param.set_require_grad(false);
        }
        param
    }

    fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        if self.in_norm() {
            return flag.with_value(false);
        }
        flag
    }
}

/// What every batch norm multiplies its channels by, by the path of the unit it belongs to: a tap. Only parameters are
/// looked at, so the pass is in f32.
#[derive(Default)]
pub struct Scales {
    path: Path,
    /// The factors.
    pub found: HashMap<String, Vec<f64>>,
}

impl Tap for Scales {
    fn precision(&self) -> Precision {
        Precision::F32
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        if let Some(norm) = unit.norm() {
            self.found.insert(self.path.join(), scale(norm));
        }
        let output = unit.run(input, self);
        self.path.pop();
        output
    }
}

/// The network with the statistics of its batch norms measured again (section 3.6 of the specification): the plain average
/// over the batches of each batch's mean and unbiased variance, as the layers see them while all norms use the batch's
/// own. A network without batch norms, or without batches, comes back as it is; a batch that cannot be had is the error.
pub fn re_estimate<N: Network, E>(
    network: N,
    batches: impl IntoIterator<Item = Result<N::Input, E>>,
    precision: Precision,
) -> Result<N, E> {
    // Statistics of a training copy are its own. Without gradients nothing is kept of the passes.
    let training = network.clone().no_grad().train();
    let mut anew = Anew {
        precision,
        ..Anew::default()
    };
    for batch in batches {
        training.run(batch?.to_autodiff(), &mut anew);
    }
    let mut values = HashMap::new();
    let mut device = None;
    for (path, sums) in anew.sums {
        for (name, sum) in [("running_mean", sums.mean), ("running_var", sums.variance)] {
            let mean: Vec<f32> = sum.iter().map(|sum| (sum / sums.batches) as f32).collect();
            let length = mean.len();
            values.insert(
                format!("{path}.norm.{name}"),
                TensorData::new(mean, [length]),
            );
        }
        device = Some(sums.device);
    }
    let Some(device) = device else {
        return Ok(network);
    };
    // A network's statistics are shared with its clones, which keep theirs.
    let (network, left) = write_params(network.train().valid(), values, &device);
    assert!(left.is_empty(), "every norm is where its unit is: {left:?}");
    Ok(network)
}

/// Sums the statistics of every norm's batches.
#[derive(Default)]
struct Anew {
    precision: Precision,
    path: Path,
    /// Values per channel that the last layer gave.
    positions: usize,
    sums: HashMap<String, Sums>,
}

struct Sums {
    batches: f64,
    mean: Vec<f64>,
    variance: Vec<f64>,
    device: burn::tensor::Device,
}

impl Tap for Anew {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        // A norm keeps `(1 - momentum) old + momentum batch`: from zeros, momentum times the batch's.
        let norm = unit.norm();
        if let Some(norm) = norm {
            for state in [&norm.running_mean, &norm.running_var] {
                let zeros = state.value_sync().zeros_like();
                state.update(zeros);
            }
        }
        let output = unit.run(input, self);
        if unit.layer().is_some() {
            let shape = output.shapes().remove(0);
            self.positions = shape.iter().product::<usize>() / shape[1].max(1);
        }
        if let Some(norm) = norm {
            self.add(norm);
        }
        self.path.pop();
        output
    }
}

impl Anew {
    fn add(&mut self, norm: &BatchNorm) {
        let n = self.positions as f64;
        // The kernels' variance is over n.
        let unbiased = if n > 1.0 { n / (n - 1.0) } else { 1.0 };
        let batch = |state: &burn::module::RunningState<Tensor<1>>| -> Vec<f64> {
            let data = state.value_sync().into_data();
            data.iter::<f32>()
                .map(|value| f64::from(value) / norm.momentum)
                .collect()
        };
        let (mean, variance) = (batch(&norm.running_mean), batch(&norm.running_var));
        let sums = self.sums.entry(self.path.join()).or_insert_with(|| Sums {
            batches: 0.0,
            mean: vec![0.0; mean.len()],
            variance: vec![0.0; mean.len()],
            device: norm.gamma.val().device().inner(),
        });
        sums.batches += 1.0;
        for (sum, value) in sums.mean.iter_mut().zip(mean) {
            *sum += value;
        }
        for (sum, value) in sums.variance.iter_mut().zip(variance) {
            *sum += value * unbiased;
        }
    }
}

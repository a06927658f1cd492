//! Fitting one unit: a tap that trains a copy of the unit when the forward pass reaches it (section 3.4).

use std::any::Any;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::Tensor;
use kernels::Precision;
use model_zoo::graft::Graft;
use model_zoo::norm::freeze;
use model_zoo::tap::{Bare, Path};
use model_zoo::{Bundle, Extents, Tap, Unit};

use super::FitError;
use super::loss::error_within;
use super::pairs::{Pairs, Room, SpillError};
use crate::cell::{Fit, Optimizer};
use crate::seed::Stream;

/// One run of a unit: its input and the output it should give.
pub type Call = (Box<dyn Any>, Box<dyn Any>);

/// What a fitted unit came to.
pub struct Fitted {
    /// Its parameters.
    pub graft: Graft,
    /// Steps taken.
    pub steps: usize,
    /// Mean loss over the calibration batches before.
    pub loss_before: f64,
    /// And after.
    pub loss_after: f64,
    /// Bytes of its inputs and outputs that memory had no room for.
    pub spilled: u64,
}

/// Where a unit's inputs and outputs come from, and where they may stay.
pub struct Source<'a> {
    /// Calibration batches.
    pub batches: usize,
    /// The calls of the unit in one forward pass over a batch (more than one where a module is shared), and what is no
    /// padding in it.
    pub calls: &'a dyn Fn(usize) -> Result<(Vec<Call>, Option<Extents>), FitError>,
    /// Room for the calls of all batches.
    pub room: Room<'a>,
}

/// Trains the unit at one path.
pub struct FitTap<'a> {
    target: &'a str,
    path: Path,
    source: Source<'a>,
    settings: &'a Fit,
    precision: Precision,
    order: Stream,
    watch: &'a mut dyn FnMut(usize, f64) -> Result<(), FitError>,
    /// What came of it; none until the forward pass reaches the unit.
    pub outcome: Option<Result<Fitted, FitError>>,
}

impl<'a> FitTap<'a> {
    /// `watch` is told each step and its loss, and may end the work.
    pub fn new(
        target: &'a str,
        source: Source<'a>,
        settings: &'a Fit,
        precision: Precision,
        order: Stream,
        watch: &'a mut dyn FnMut(usize, f64) -> Result<(), FitError>,
    ) -> Self {
        Self {
            target,
            path: Path::default(),
            source,
            settings,
            precision,
            order,
            watch,
            outcome: None,
        }
    }

    fn fit<In: Bundle, U: Unit<In>>(&mut self, unit: &U) -> Result<Fitted, FitError> {
        let spill = |source| FitError::Spill {
            unit: self.target.to_owned(),
            source,
        };
        let mut pairs = Pairs::within(self.source.room);
        let mut extents = Vec::with_capacity(self.source.batches);
        for batch in 0..self.source.batches {
            let (calls, valid) = (self.source.calls)(batch)?;
            extents.push(valid);
            let calls = calls.into_iter().map(typed);
            pairs
                .push(calls.collect::<Vec<(In, U::Out)>>())
                .map_err(spill)?;
        }

        let mut bare = Bare(self.precision);
        let loss_before = mean_loss(unit, &pairs, &extents, bare).map_err(spill)?;
        let mut trained = freeze(unit.clone()).train();
        let mut rates = LearningRates::new(self.settings.optimizer, &trained);
        let mut steps = 0;
        while steps < self.settings.steps {
            let batch = self.order.below(pairs.len() as u64) as usize;
            let calls = pairs.get(batch).map_err(spill)?.into_iter();
            let loss = calls
                .map(|(input, output)| {
                    let got = trained.run(input.to_autodiff(), &mut bare);
                    error_within(got, output.to_autodiff(), extents[batch].as_ref())
                })
                .reduce(|sum, loss| sum + loss)
                .expect("a unit that is fitted runs at least once");
            let value = f64::from(loss.clone().into_scalar::<f32>());
            if !value.is_finite() {
                return Err(FitError::Diverged {
                    unit: self.target.to_owned(),
                    step: steps,
                });
            }
            if value < self.settings.early_stop {
                break;
            }
            trained = rates.step(trained, loss);
            steps += 1;
            (self.watch)(steps, value)?;
        }
        let trained = trained.valid();
        Ok(Fitted {
            loss_before,
            loss_after: mean_loss(&trained, &pairs, &extents, bare).map_err(spill)?,
            graft: Graft::cut(&trained),
            steps,
            spilled: pairs.spilled(),
        })
    }
}

impl Tap for FitTap<'_> {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        if self.outcome.is_none() && self.path.join() == self.target {
            self.outcome = Some(self.fit::<In, U>(unit));
        }
        let output = unit.run(input, self);
        self.path.pop();
        output
    }
}

/// A call as its unit has it.
fn typed<In: Bundle, Out: Bundle>((input, output): Call) -> (In, Out) {
    let expected = "captured from this unit";
    let input = input.downcast().expect(expected);
    let output = output.downcast().expect(expected);
    (*input, *output)
}

fn mean_loss<In: Bundle, U: Unit<In>>(
    unit: &U,
    pairs: &Pairs<'_, Vec<(In, U::Out)>>,
    extents: &[Option<Extents>],
    mut bare: Bare,
) -> Result<f64, SpillError> {
    let mut sum = 0.0;
    for (batch, extents) in extents.iter().enumerate() {
        for (input, output) in pairs.get(batch)? {
            let got = unit.run(input, &mut bare);
            let error = error_within(got, output, extents.as_ref());
            sum += f64::from(error.into_scalar::<f32>());
        }
    }
    Ok(sum / pairs.len().max(1) as f64)
}

/// One optimizer for weights and one for biases, since their rates differ; biases of rate 0 are frozen.
struct LearningRates {
    weights: (ModuleOptimizer, f64, Vec<ParamId>),
    biases: Option<(ModuleOptimizer, f64, Vec<ParamId>)>,
}

impl LearningRates {
    fn new<M: Module>(optimizer: Optimizer, module: &M) -> Self {
        let init = || match optimizer {
            Optimizer::Adam { .. } => AdamConfig::new()
                .with_beta_1(0.9)
                .with_beta_2(0.999)
                .with_epsilon(1e-8)
                .init(),
            Optimizer::Sgd { momentum, .. } => SgdConfig::new()
                .with_momentum(Some(
                    // Burn dampens by 0.1 unless told otherwise; the papers do not.
                    MomentumConfig::new()
                        .with_momentum(momentum)
                        .with_dampening(0.0),
                ))
                .init(),
        };
        let (Optimizer::Adam { lr, bias_lr } | Optimizer::Sgd { lr, bias_lr, .. }) = optimizer;
        let ids = |biases| Ids::of(module, biases);
        Self {
            weights: (init(), lr, ids(false)),
            biases: (bias_lr > 0.0).then(|| (init(), bias_lr, ids(true))),
        }
    }

    fn step<M: Module>(&mut self, mut module: M, loss: Tensor<1>) -> M {
        let mut grads = loss.backward();
        for (optimizer, rate, ids) in [Some(&mut self.weights), self.biases.as_mut()]
            .into_iter()
            .flatten()
        {
            let grads = GradientsParams::from_params(&mut grads, &module, ids);
            module = optimizer.step(*rate, module, grads);
        }
        module
    }
}

/// The parameters of rank 1 (biases), or all others.
struct Ids {
    biases: bool,
    found: Vec<ParamId>,
}

impl Ids {
    fn of<M: Module>(module: &M, biases: bool) -> Vec<ParamId> {
        let mut ids = Ids {
            biases,
            found: Vec::new(),
        };
        module.visit(&mut ids);
        ids.found
    }
}

impl ModuleVisitor for Ids {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if (D == 1) == self.biases {
            self.found.push(param.id);
        }
    }
}

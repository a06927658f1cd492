//! Reconstruction of networks that no task judges yet: random weights, and random inputs for calibration. A head that
//! several levels share is fitted on all of them, and units that take a time or a context are fitted like others.

use std::any::Any;

use burn::tensor::{Device, Distribution, Tensor};
use model_zoo::Grain;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::tap::{Bare, Capture, Path};
use model_zoo::{Blank, Bundle, Modality, Network, Of, Tap, TensorMap, Unit};
use ptsbench::cell::{CalibrationCell, Fit, Inputs, Optimizer, Reconstruction};
use ptsbench::inventory::Weights;
use ptsbench::progress::{Mode, Progress};
use ptsbench::reconstruct::fit::Call;
use ptsbench::reconstruct::loss::summed_square_error;
use ptsbench::reconstruct::{self, Work, output_error};
use ptsbench::record::UnitOutcome;
use ptsbench::subject;
use ptsbench_tests::pruned;

const RATE: f64 = 0.6;
const STEPS: usize = 20;
const BATCHES: usize = 3;
const GRANULARITIES: [Grain; 3] = [Grain::Single, Grain::Layer, Grain::Block];

/// Random values; a time step is one of a thousand.
struct Random;

impl TensorMap for Random {
    fn map<const D: usize>(&mut self, blank: Tensor<D>) -> Tensor<D> {
        blank.random_like(match D {
            1 => Distribution::Uniform(0.0, 1000.0),
            _ => Distribution::Normal(0.0, 1.0),
        })
    }
}

fn settings(granularity: Grain) -> Reconstruction {
    Reconstruction {
        version: reconstruct::VERSION,
        granularity,
        inputs: Inputs::Dense,
        correction: false,
        calibration: CalibrationCell {
            images: 2 * BATCHES,
            batch: 2,
            seed: 0,
            list: None,
        },
        fit: Fit {
            optimizer: Optimizer::Adam {
                lr: 1e-3,
                bias_lr: 1e-3,
            },
            steps: STEPS,
            early_stop: 0.0,
        },
    }
}

/// The loss of one unit of a network, call by call, on inputs and outputs kept from another.
struct CallLosses<'a> {
    target: &'a str,
    path: Path,
    calls: Vec<Call>,
    losses: Vec<f64>,
}

impl Tap for CallLosses<'_> {
    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        if self.path.join() == self.target {
            for (input, output) in std::mem::take(&mut self.calls) {
                let own = "the unit's own type";
                let (input, output): (Box<dyn Any>, Box<dyn Any>) = (input, output);
                let input = *input.downcast::<In>().expect(own);
                let output = *output.downcast::<U::Out>().expect(own);
                let error = summed_square_error(unit.run(input, &mut Bare), output);
                self.losses.push(error.into_scalar::<f32>().into());
            }
        }
        let output = unit.run(input, self);
        self.path.pop();
        output
    }
}

/// The same summed over all batches, as it is fitted.
fn call_losses<N: Network>(network: &N, dense: &N, unit: &str, batches: &[N::Input]) -> Vec<f64> {
    let of_batch = |batch: &N::Input| {
        let mut capture = Capture::of(unit);
        dense.run(batch.clone(), &mut capture);
        let mut losses = CallLosses {
            target: unit,
            path: Path::default(),
            calls: capture.into_calls(),
            losses: Vec::new(),
        };
        network.run(batch.clone(), &mut losses);
        losses.losses
    };
    let batches = batches.iter().map(of_batch);
    let add =
        |sum: Vec<f64>, losses: Vec<f64>| sum.iter().zip(losses).map(|(a, b)| a + b).collect();
    batches.reduce(add).expect("a batch")
}

/// Prunes a network, reconstructs it at every granularity and prints what came of the units named.
struct Reconstruct(&'static [&'static str]);

/// Of one granularity: every unit, and the losses of the units looked at, call by call, before and after.
type Fitted = (Vec<UnitOutcome>, Vec<[Vec<f64>; 2]>);

impl<M: Modality> Visit<M> for Reconstruct {
    type Out = Vec<Fitted>;

    fn visit<N: Of<M>>(self, spec: &'static Spec, dense: N) -> Vec<Fitted> {
        let device = Device::flex();
        let batches: Vec<N::Input> = (0..BATCHES)
            .map(|_| N::Input::blank(spec, 2, &device).map(&mut Random))
            .collect();
        let census = subject::census(spec, &dense, &device);
        let weights = subject::weights(&dense, &census);
        let masks = pruned::masks(&weights, "uniform", RATE);
        let progress = Progress::new(1, Mode::Quiet);
        let work = Work {
            dense: &dense,
            census: &census,
            masks: &masks,
            batches: &batches,
            device: &device,
            checkpoints: None,
            progress: &progress,
        };
        let sparse = || subject::attach(dense.clone(), &census, &masks, &device);
        let pruned = output_error(&sparse(), &dense, &batches);
        let fit = |granularity: Grain| {
            let (fitted, units) = work.reconstruct(sparse(), &settings(granularity)).unwrap();
            let name = format!("{}, {granularity:?}", spec.name);
            assert_eq!(units.len(), census.units(granularity).len());
            for unit in &units {
                let fell = unit.loss_after < unit.loss_before;
                assert!(fell && unit.steps == STEPS, "{name}: {unit:?}");
            }
            let sum = |of: fn(&UnitOutcome) -> f64| units.iter().map(of).sum::<f64>();
            let error = output_error(&fitted, &dense, &batches);
            println!(
                "{name}: {} units, sum of losses {:.4} -> {:.4}; output {pruned:.4} -> {error:.4}",
                units.len(),
                sum(|unit| unit.loss_before),
                sum(|unit| unit.loss_after),
            );
            assert!(error < pruned, "{name}: {error}, {pruned} only pruned");
            // Where a unit is part of a larger one, what it gives need not be near.
            let looked = self
                .0
                .iter()
                .filter(|path| units.iter().any(|unit| unit.path == **path));
            let losses: Vec<[Vec<f64>; 2]> = looked
                .map(|path| {
                    let of = |network: &N| call_losses(network, &dense, path, &batches);
                    let losses = [of(&sparse()), of(&fitted)];
                    println!("  {path}: {:.4?} -> {:.4?}", losses[0], losses[1]);
                    losses
                })
                .collect();
            let fitted = subject::weights(&fitted.materialize(), &census);
            for (index, layer) in fitted.layers().iter().enumerate() {
                let weight = fitted.weight(index).unwrap();
                let zeros = weight.iter().filter(|weight| **weight == 0.0).count();
                assert_eq!(zeros, masks[&layer.path].zeros(), "{name}: {}", layer.path);
            }
            (units, losses)
        };
        GRANULARITIES.map(fit).into()
    }
}

fn reconstruct(model: &str, look: &'static [&'static str]) -> Vec<Fitted> {
    let device = Device::flex();
    device.seed(0);
    let spec = catalog::find(model).unwrap();
    spec.open(&device, Reconstruct(look))
}

#[test]
fn a_shared_head_is_fitted_on_all_levels() {
    let look = &[
        "head.classification_head.conv.0",
        "head.classification_head.cls_logits",
        "head.regression_head.bbox_reg",
    ];
    let found = reconstruct("tiny_retinanet", look);
    // At single granularity the towers' convolutions are fitted without their ReLU.
    for ((_, losses), looked) in found.iter().zip([2, 3, 3]) {
        assert_eq!(losses.len(), looked);
        for [before, after] in losses {
            assert_eq!(
                (before.len(), after.len()),
                (5, 5),
                "one loss for each level"
            );
            for (before, after) in before.iter().zip(after) {
                assert!(after < before, "{after} after, {before} before");
            }
        }
    }
}

#[test]
fn units_with_a_time_and_a_context_are_fitted() {
    let look = &[
        "down_blocks.0.resnets.0",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
        "time_embedding",
    ];
    let found = reconstruct("tiny_unet", look);
    let (units, losses) = &found[2];
    assert_eq!(losses.len(), look.len());
    for unit in look {
        assert!(units.iter().any(|outcome| outcome.path == *unit), "{unit}");
    }
    for [before, after] in losses {
        assert_eq!((before.len(), after.len()), (1, 1));
        assert!(after[0] < before[0], "{after:?} after, {before:?} before");
    }
}

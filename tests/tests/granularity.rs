//! Table 4's configurations side by side: do losses fall, and is block at most layer at most single where their outputs
//! can be compared?
//!
//! Everyday: the smallest built-in network, a few steps. `PTSBENCH_FULL=1`: all three networks with the `micro` plan's
//! settings, as its tables show them.

use burn::tensor::{Device, Tensor};
use kernels::Precision;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::tap::{Bare, Capture, Census};
use model_zoo::{Classes, Classifier, Grain};
use ptsbench::cell::{
    BatchNorm, CalibrationCell, CorrectionCell, Fit, Inputs, Optimizer, Reconstruction,
};
use ptsbench::inventory::Weights;
use ptsbench::memory::Memory;
use ptsbench::pipeline::open_dense;
use ptsbench::progress::{Mode, Progress};
use ptsbench::reconstruct::loss::summed_square_error;
use ptsbench::reconstruct::{self, Work};
use ptsbench::subject;
use ptsbench::task::classify::Classification;
use ptsbench::task::judged::Judge;
use ptsbench_tests::{pruned, workspace_root};

const RATE: f64 = 0.8;

#[derive(Clone, Copy)]
struct Effort {
    images: usize,
    steps: usize,
    samples: usize,
}

/// The five distinct configurations behind the seven rows: the first is `w/ Correction`, `Sparse Input` and `Layer-wise`.
const ROWS: [(&str, Grain, Inputs, bool); 5] = [
    (
        "layer, sparse input, corrected",
        Grain::Layer,
        Inputs::Sparse,
        true,
    ),
    ("w/o correction", Grain::Layer, Inputs::Sparse, false),
    ("dense input", Grain::Layer, Inputs::Dense, true),
    ("single", Grain::Single, Inputs::Sparse, true),
    ("block", Grain::Block, Inputs::Sparse, true),
];

struct Compare {
    effort: Effort,
}

/// Mean over batches of the squared error at the output of each block, and at the end, against the dense network.
fn errors<N>(network: &N, dense: &N, census: &Census, batches: &[Tensor<4>]) -> Vec<(String, f64)>
where
    N: Classifier,
{
    let blocks = census.rows.iter().filter(|row| row.grain == Grain::Block);
    let mut errors: Vec<(String, f64)> = blocks
        .map(|row| {
            let output = |network: &N, batch: &Tensor<4>| -> Tensor<4> {
                let mut capture = Capture::of(&row.path, Precision::F32);
                network.run(batch.clone(), &mut capture);
                let (_, output) = capture.into_calls().remove(0);
                *output.downcast().expect("a block gives an image")
            };
            let sum: f64 = batches
                .iter()
                .map(|batch| {
                    let error = summed_square_error(output(network, batch), output(dense, batch));
                    f64::from(error.into_scalar::<f32>())
                })
                .sum();
            (row.path.clone(), sum / batches.len() as f64)
        })
        .collect();
    errors.push((
        "logits".to_owned(),
        reconstruct::output_error(network, dense, batches),
    ));
    errors
}

impl Visit<Classes> for Compare {
    type Out = ();

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) {
        let device = Device::flex();
        let file = workspace_root().join(format!("assets/micro/{}.safetensors", spec.name));
        let dense = open_dense(network, &file, BatchNorm::Folded).unwrap();
        let census = subject::census(spec, &dense, &device);
        let weights = subject::weights(&dense, &census);
        let masks = pruned::masks(&weights, "l2norm", RATE);
        let task = Classification::micro();
        let batches = pruned::batches(self.effort.images, 64, 0, &device);
        let progress = Progress::new(1, Mode::Quiet);
        let work = Work {
            dense: &dense,
            census: &census,
            masks: &masks,
            batches: &batches.clone().into(),
            memory: Memory::of_machine(),
            device: &device,
            precision: Precision::F32,
            checkpoints: None,
            progress: &progress,
        };
        let top1 = |network: &N| {
            let run = |images| network.run(images, &mut Bare::default());
            task.evaluate(&run, self.effort.samples, &device, |_| {})
                .unwrap()
                .value
                .number()
                .unwrap()
        };
        let sparse = subject::attach(dense.clone(), &census, &masks, &device);
        let before = top1(&sparse.clone().materialize());
        println!(
            "{} ({} weights) at {RATE} l2norm: dense {:.2} %, pruned {before:.2} %",
            spec.name,
            weights.total(),
            top1(&dense)
        );

        let mut all = Vec::new();
        for (name, granularity, inputs, correction) in ROWS {
            let settings = Reconstruction {
                version: reconstruct::VERSION,
                granularity,
                inputs,
                correction: CorrectionCell::plain(correction),
                calibration: CalibrationCell {
                    images: self.effort.images,
                    batch: 64,
                    seed: 0,
                    list: None,
                },
                fit: Fit {
                    optimizer: Optimizer::Adam {
                        lr: 2e-3,
                        bias_lr: 2e-3,
                    },
                    steps: self.effort.steps,
                    early_stop: 0.0,
                },
            };
            let (fitted, units) = work.reconstruct(sparse.clone(), &settings).unwrap();
            let fell = units
                .iter()
                .filter(|unit| unit.loss_after < unit.loss_before)
                .count();
            let after = top1(&fitted.clone().materialize());
            println!(
                "  {name:<32} top-1 {before:.2} -> {after:.2} %, loss fell in {fell} of {} units",
                units.len()
            );
            assert_eq!(fell, units.len(), "{name}: {units:#?}");
            assert!(after > before, "{name}");
            all.push(errors(&fitted, &dense, &census, &batches));
        }

        let (layer, single, block) = (&all[0], &all[3], &all[4]);
        let mut ordered = 0;
        println!("  squared error at            block      layer     single");
        for ((path, block), ((_, layer), (_, single))) in block.iter().zip(layer.iter().zip(single))
        {
            ordered += usize::from(block <= layer && layer <= single);
            println!("  {path:<20} {block:>12.5} {layer:>10.5} {single:>10.5}");
        }
        println!(
            "  block <= layer <= single at {ordered} of {} outputs",
            layer.len()
        );
        let mean = |of: &[(String, f64)], than: &[(String, f64)]| {
            let logs = of.iter().zip(than).map(|((_, a), (_, b))| (a / b).ln());
            (logs.sum::<f64>() / of.len() as f64).exp()
        };
        println!(
            "  geometric mean of block/layer {:.3}, layer/single {:.3}",
            mean(block, layer),
            mean(layer, single)
        );
        assert!(
            mean(block, single) < 1.0,
            "blocks see more than single layers"
        );
    }
}

#[test]
fn larger_pieces_come_nearer_to_the_dense_outputs() {
    let (models, effort): (&[&str], _) = if std::env::var_os("PTSBENCH_FULL").is_some() {
        let all: &[&str] = &["micro_resnet8", "micro_resnet14", "micro_resnet20"];
        let effort = Effort {
            images: 256,
            steps: 100,
            samples: 2000,
        };
        (all, effort)
    } else {
        let effort = Effort {
            images: 128,
            steps: 30,
            samples: 500,
        };
        (&["micro_resnet8"], effort)
    };
    for model in models {
        catalog::find(model)
            .unwrap()
            .open_classes(
                &Device::flex(),
                "this test compares logits",
                Compare { effort },
            )
            .unwrap();
    }
}

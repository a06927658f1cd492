//! Made-up records for the tests of this folder. They are measurements of nothing and exist in test builds only.

use crate::cell::{
    BatchNorm, CalibrationCell, Cell, CorrectionCell, Fit, Inputs, Optimizer, Part, Pattern,
    Reconstruction, Rule, Sparsity, TaskCell,
};
use crate::record::{
    Budget, Cost, Environment, LayerOutcome, Record, SCHEMA, Score, Timing, UnitOutcome,
};
use model_zoo::Grain;

/// Name, base width, blocks per stage, dense top-1.
const MODELS: [(&str, usize, usize, f64); 3] = [
    ("micro_resnet8", 12, 1, 86.2),
    ("micro_resnet14", 16, 2, 90.1),
    ("micro_resnet20", 24, 3, 92.6),
];

const IMAGES: usize = 2000;

fn part(name: &str) -> Part {
    Part::plain(name, 1)
}

/// The layers of a CIFAR-style residual network.
fn layers(width: usize, blocks: usize) -> Vec<(String, Vec<usize>)> {
    let mut layers = vec![("conv1".to_owned(), vec![width, 3, 3, 3])];
    let mut input = width;
    for stage in 1..=3 {
        let output = width << (stage - 1);
        for block in 0..blocks {
            let name = format!("layer{stage}.{block}");
            layers.push((format!("{name}.conv1"), vec![output, input, 3, 3]));
            layers.push((format!("{name}.conv2"), vec![output, output, 3, 3]));
            if input != output {
                layers.push((format!("{name}.downsample.0"), vec![output, input, 1, 1]));
            }
            input = output;
        }
    }
    layers.push(("fc".to_owned(), vec![20, input]));
    layers
}

/// A rate per layer that looks like the allocator's; not its algorithm.
fn layer_rate(allocator: &str, rate: f64, weights: usize, largest: usize) -> f64 {
    let share = (weights as f64 / largest as f64).powf(0.25);
    match allocator {
        "uniform" => rate,
        "erk" => (rate * (1.35 * share - 0.28)).clamp(0.0, 0.995),
        _ => (rate * (0.75 * share + 0.3)).clamp(0.0, 0.995),
    }
}

fn record(model: usize, sparsity: Option<Sparsity>, top1: f64) -> Record {
    let (name, width, blocks, _) = MODELS[model];
    let shapes = layers(width, blocks);
    let largest = shapes
        .iter()
        .map(|(_, s)| s.iter().product())
        .max()
        .expect("layers");
    let allocation = sparsity.as_ref().and_then(|s| {
        let Pattern::Unstructured { rate } = s.pattern else {
            return None;
        };
        Some((s.allocation.as_ref()?.name.clone(), rate))
    });
    let layers: Vec<LayerOutcome> = shapes
        .into_iter()
        .map(|(path, shape)| {
            let weights: usize = shape.iter().product();
            let rate = allocation
                .as_ref()
                .map(|(name, rate)| layer_rate(name, *rate, weights, largest));
            LayerOutcome {
                path,
                shape,
                weights: weights as u64,
                zeros: (rate.unwrap_or(0.0) * weights as f64) as u64,
                rate,
            }
        })
        .collect();
    let weights: u64 = layers.iter().map(|l| l.weights).sum();
    let zeros: u64 = layers.iter().map(|l| l.zeros).sum();
    let correct = (top1 / 100.0 * IMAGES as f64).round() as u64;
    let units = match sparsity.as_ref().and_then(|s| s.reconstruction.as_ref()) {
        Some(r) => vec![UnitOutcome {
            path: "layer1.0".to_owned(),
            grain: r.granularity,
            steps: r.fit.steps,
            loss_before: 0.5,
            loss_after: 0.125,
        }],
        None => Vec::new(),
    };
    let cell = Cell {
        model: name.to_owned(),
        precision: kernels::Precision::F32,
        weights: format!("{model:064x}"),
        task: TaskCell {
            name: "micro".to_owned(),
            version: 1,
            samples: IMAGES,
            data: None,
            split: None,
            recipe: None,
        },
        sparsity,
    };
    Record {
        schema: SCHEMA,
        key: cell.key(),
        cell,
        score: Score::top1(correct, IMAGES as u64, 4000),
        cost: Cost {
            weights,
            zeros,
            parameters: weights + 500,
            macs: 40 * weights,
            sparse_macs: 40 * (weights - zeros),
        },
        budget: Budget::default(),
        layers,
        units,
        search: None,
        training: None,
        timing: Timing::default(),
        environment: Environment::default(),
    }
}

fn sparsity(allocator: &str, rate: f64, reconstruction: Option<Reconstruction>) -> Sparsity {
    Sparsity {
        batch_norm: BatchNorm::Kept,
        calibration: None,
        repair: None,
        pattern: Pattern::Unstructured { rate },
        allocation: Some(part(allocator)),
        criterion: part("magnitude"),
        rule: Rule::Exact,
        reconstruction,
    }
}

/// The record again after its cell was changed.
pub fn rekeyed(mut record: Record) -> Record {
    record.key = record.cell.key();
    record
}

/// The micro plan's cells with made-up scores: three networks, three allocators at 50-90 %, and Track 2's five distinct
/// configurations for the middle network at 70 and 80 % with two seeds.
pub fn records() -> Vec<Record> {
    let mut records = Vec::new();
    for (model, &(_, _, _, dense)) in MODELS.iter().enumerate() {
        records.push(record(model, None, dense));
        for (allocator, resistance) in [("uniform", 2.0), ("l2norm", 4.0), ("erk", 3.5)] {
            for rate in [0.5, 0.6, 0.7, 0.8, 0.9] {
                let resistance: f64 = resistance + model as f64;
                let kept = 1.0 - f64::powf(rate, resistance).min(1.0);
                let top1 = 5.0 + (dense - 5.0) * kept;
                records.push(record(model, Some(sparsity(allocator, rate, None)), top1));
            }
        }
    }
    let configurations = [
        (Grain::Layer, Inputs::Sparse, true, 0.80),
        (Grain::Layer, Inputs::Sparse, false, 0.70),
        (Grain::Layer, Inputs::Dense, true, 0.74),
        (Grain::Single, Inputs::Sparse, true, 0.66),
        (Grain::Block, Inputs::Sparse, true, 0.88),
    ];
    for (granularity, inputs, correction, quality) in configurations {
        for rate in [0.7, 0.8] {
            for seed in [0, 1] {
                let reconstruction = Reconstruction {
                    version: 1,
                    granularity,
                    inputs,
                    correction: CorrectionCell::plain(correction),
                    calibration: CalibrationCell {
                        images: 256,
                        batch: 64,
                        seed,
                        list: None,
                    },
                    fit: Fit {
                        optimizer: Optimizer::Adam {
                            lr: 5e-4,
                            bias_lr: 5e-4,
                        },
                        steps: 100,
                        early_stop: 0.0,
                    },
                };
                let top1 = 90.1 * (1.0 - (1.0 - quality) * rate * rate) - 0.4 * seed as f64;
                records.push(record(
                    1,
                    Some(sparsity("l2norm", rate, Some(reconstruction))),
                    top1,
                ));
            }
        }
    }
    records
}

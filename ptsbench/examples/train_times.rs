//! Times training steps of built-in networks, for `tests/peers/train_peer.py`, which sets PyTorch beside them.
//!
//!     train_times [--steps N] NETWORK ...
//!
//! A step is the forward and the backward pass and the optimizer; images are drawn before. One line of JSON comes out per network.

use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Device;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::{Classes, Classifier};
use ptsbench::data::synthetic::MicroSet;
use ptsbench::task::train::{ClassLesson, Recipe, Training};
use serde_json::json;

/// Steps before those that count.
const WARM: usize = 3;

fn main() -> Result<()> {
    kernels::keep_freed_memory();
    let mut steps = 20;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--steps" {
            steps = arguments
                .next()
                .unwrap_or_default()
                .parse()
                .context("--steps")?;
            continue;
        }
        for spec in catalog::matching(&argument)? {
            let line = spec.open_classes(&Device::flex(), "they are trained", Time(steps))??;
            println!("{line}");
        }
    }
    Ok(())
}

struct Time(usize);

impl Visit<Classes> for Time {
    type Out = Result<serde_json::Value>;

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> Self::Out {
        let recipe = Recipe::micro(spec.name);
        let mut training = Training::<Classes, _>::start(
            spec.name,
            network,
            recipe,
            ClassLesson::default(),
            &Device::flex(),
        );
        let mut milliseconds = Vec::with_capacity(self.0);
        for step in 0..WARM + self.0 {
            let batch: Vec<usize> = (0..recipe.batch)
                .map(|at| (step * recipe.batch + at) % recipe.images)
                .collect();
            let (pixels, labels) = (
                MicroSet::TRAIN.normalized(&batch),
                MicroSet::TRAIN.labels(&batch),
            );
            let start = Instant::now();
            (training, ..) = training.step((pixels, labels), step)?;
            if step >= WARM {
                milliseconds.push(1e3 * start.elapsed().as_secs_f64());
            }
        }
        milliseconds.sort_by(f64::total_cmp);
        Ok(json!({
            "network": spec.name,
            "batch": recipe.batch,
            "threads": rayon::current_num_threads(),
            "median_ms": milliseconds[milliseconds.len() / 2],
            "least_ms": milliseconds[0],
        }))
    }
}

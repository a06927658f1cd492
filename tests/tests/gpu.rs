//! The same cells on the CPU and on a GPU (or a software adapter in its place): every way of allocating and
//! reconstructing on the smallest built-in network, scores and weights side by side.
//!
//! The device is `PTSBENCH_TEST_DEVICE`: `wgpu` (the default) or `cuda`. Without one, a test says that it was skipped.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Device;
use kernels::Precision;
use kernels::plan::KernelPolicy;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::{Classes, Classifier};
use ptsbench::cell::BatchNorm;
use ptsbench::cell::{Cell, Optimizer};
use ptsbench::device::{Choice, Chosen, choose};
use ptsbench::inventory::Weights;
use ptsbench::memory::Memory;
use ptsbench::pipeline::{Bench, open_dense};
use ptsbench::plan::{Plan, Planned};
use ptsbench::progress::{Mode, Progress};
use ptsbench::reconstruct::Work;
use ptsbench::record::Record;
use ptsbench::registry::Zoo;
use ptsbench::subject;
use ptsbench::task::Sets;
use ptsbench_tests::{pruned, workspace_root};

const MODEL: &str = "micro_resnet8";
/// Test images and calibration images.
const SAMPLES: usize = 200;
const IMAGES: usize = 32;
const STEPS: usize = 10;

/// How far a score may differ, in images of [`SAMPLES`]; docs/gpu.md states it.
const IMAGES_APART: u64 = 2;
/// How far a unit's loss may differ, relatively: before fitting, and after fitting by SGD, whose steps are as small as the
/// gradient. Adam's are as long for a gradient that is rounding alone as for any other, as a row has it that lost no weight:
/// after it losses differ by 3e-3 where most rows are such ones, so that scores and weights are what is compared.
const LOSS_APART: f64 = 1e-5;
/// How far any weight may differ after [`STEPS`] steps of Adam, in units of its learning rate.
const RATES_APART: f32 = 2.0 * STEPS as f32;
const LR: f32 = 5e-4;

fn gpu(test: &str) -> Option<Chosen> {
    let name = std::env::var("PTSBENCH_TEST_DEVICE").unwrap_or_else(|_| "wgpu".to_owned());
    let choice = match name.as_str() {
        "wgpu" => Choice::Wgpu,
        "cuda" => Choice::Cuda,
        other => panic!("PTSBENCH_TEST_DEVICE is {other:?}; use wgpu or cuda"),
    };
    match choose(choice) {
        Ok(chosen) => {
            println!("{chosen}");
            Some(chosen)
        }
        Err(error) => {
            println!("skipped: gpu, {test}: {error}");
            None
        }
    }
}

fn weight_file() -> PathBuf {
    workspace_root().join(format!("assets/micro/{MODEL}.safetensors"))
}

fn cells(grids: &str) -> Vec<Planned> {
    let text = format!(
        "name = 'gpu'\ntitle = 'GPU'\n\
         [task]\nname = 'micro'\nsamples = {SAMPLES}\n\
         [calibration]\nimages = {IMAGES}\nbatch = 16\n\
         [fit.few]\noptimizer = 'adam'\nlr = {LR}\nbias_lr = {LR}\nsteps = {STEPS}\n\
         [fit.plain]\noptimizer = 'sgd'\nmomentum = 0.9\nlr = 1e-4\nbias_lr = 1e-4\nsteps = {STEPS}\n\
         {grids}"
    );
    let registry = Zoo::new(&workspace_root().join("assets"), Default::default()).unwrap();
    let plan = Plan::parse(&text, "gpu.toml", &[]).unwrap();
    plan.expand(&registry).unwrap()
}

fn measure(chosen: &Chosen, cell: &Cell) -> Record {
    let progress = Progress::new(1, Mode::Quiet);
    let sets = Sets::default();
    let bench = Bench {
        chosen,
        progress: &progress,
        sets: &sets,
        policy: KernelPolicy::auto(),
        memory: Memory::of_machine(),
    };
    let work = tempfile::tempdir().unwrap();
    let measured = chosen.guard(|| bench.measure(cell, &weight_file(), work.path()));
    let measured = measured.unwrap_or_else(|error| panic!("{cell}: {error}"));
    measured.unwrap_or_else(|error| panic!("{cell}: {error}"))
}

#[test]
fn cells_have_the_scores_of_the_cpu() {
    let Some(gpu) = gpu("scores") else {
        return;
    };
    let cpu = choose(Choice::Flex).unwrap();
    let cells = cells(&format!(
        "[[grid]]\nname = 'allocation'\ntrack = 'allocation'\nmodels = ['{MODEL}']\n\
         rates = [0.7, '2:4']\nallocators = ['uniform', 'l2norm', 'erk']\n\
         [[grid]]\nname = 'reconstruction'\ntrack = 'reconstruction'\nmodels = ['{MODEL}']\n\
         rates = [0.7]\nallocators = ['l2norm']\ngranularity = ['single', 'layer', 'block']\n\
         inputs = ['sparse', 'dense']\ncorrection = [true, false]\nfit = 'plain'\n\
         [[grid]]\nname = 'adam'\ntrack = 'reconstruction'\nmodels = ['{MODEL}']\n\
         rates = [0.7]\nallocators = ['l2norm']\ngranularity = ['single', 'layer', 'block']\nfit = 'few'\n"
    ));
    assert!(cells.len() > 1 + 3 + 12 + 3);
    let before = kernels::gpu_fallbacks();
    let start = Instant::now();
    let (mut images, mut losses) = (0, 0.0f64);
    for Planned { cell, .. } in &cells {
        let (want, got) = (measure(&cpu, cell), measure(&gpu, cell));
        assert_eq!(got.cost.zeros, want.cost.zeros, "{cell}");
        let apart = got
            .score
            .counts
            .correct()
            .unwrap()
            .abs_diff(want.score.counts.correct().unwrap());
        println!(
            "{cell}: {} on the CPU, {} on the GPU",
            want.score, got.score
        );
        assert!(apart <= IMAGES_APART, "{cell}: {apart} images apart");
        images = images.max(apart);
        assert_eq!(got.units.len(), want.units.len(), "{cell}");
        let adam = cell.sparsity.as_ref().is_some_and(|sparsity| {
            let settings = sparsity.reconstruction.as_ref();
            settings.is_some_and(|of| matches!(of.fit.optimizer, Optimizer::Adam { .. }))
        });
        for (got, want) in got.units.iter().zip(&want.units) {
            let before = (got.loss_before, want.loss_before);
            let after = (got.loss_after, want.loss_after);
            for (got, want) in [before].into_iter().chain((!adam).then_some(after)) {
                let apart = (got - want).abs() / want.abs().max(1e-6);
                assert!(apart <= LOSS_APART, "{cell}: loss {got}, expected {want}");
                losses = losses.max(apart);
            }
        }
    }
    assert_eq!(kernels::gpu_fallbacks(), before, "a product had no kernel");
    println!(
        "{} cells, scores at most {images} of {SAMPLES} images apart, losses {losses:.1e}; {:.0} s",
        cells.len(),
        start.elapsed().as_secs_f64()
    );
}

/// The weights of the pruned, and of the reconstructed network, layer after layer.
fn fitted(device: &Device, cell: &Cell) -> [Vec<Vec<f32>>; 2] {
    struct Fit<'a>(&'a Device, &'a Cell);
    impl Visit<Classes> for Fit<'_> {
        type Out = [Vec<Vec<f32>>; 2];
        fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> Self::Out {
            let Self(device, cell) = self;
            let sparsity = cell.sparsity.as_ref().expect("a pruned cell");
            let settings = sparsity.reconstruction.as_ref().expect("reconstructed");
            let dense = open_dense(network, &weight_file(), BatchNorm::Folded).unwrap();
            let census = subject::census(spec, &dense, device);
            let weights = subject::weights(&dense, &census);
            let masks = pruned::masks(&weights, "l2norm", 0.7);
            let calibration = &settings.calibration;
            let (images, batch) = (calibration.images, calibration.batch);
            let batches = pruned::batches(images, batch, calibration.seed, device);
            let progress = Progress::new(1, Mode::Quiet);
            let work = Work {
                dense: &dense,
                census: &census,
                masks: &masks,
                batches: &batches.clone().into(),
                memory: Memory::of_machine(),
                device,
                precision: Precision::F32,
                checkpoints: None,
                progress: &progress,
            };
            let sparse = subject::attach(dense.clone(), &census, &masks, device);
            let read = |network: &N| {
                let weights = subject::weights(network, &census);
                let layers = 0..weights.layers().len();
                layers
                    .map(|layer| weights.weight(layer).unwrap().to_vec())
                    .collect()
            };
            let pruned = read(&sparse.clone().materialize());
            let (fitted, _) = work.reconstruct(sparse, settings).unwrap();
            [pruned, read(&fitted.materialize())]
        }
    }
    let spec = catalog::find(MODEL).unwrap();
    spec.open_classes(device, "this test fits classes", Fit(device, cell))
        .unwrap()
}

#[test]
fn reconstructed_weights_are_those_of_the_cpu() {
    let Some(gpu) = gpu("weights") else {
        return;
    };
    let cells = cells(&format!(
        "[[grid]]\nname = 'weights'\ntrack = 'reconstruction'\nmodels = ['{MODEL}']\n\
         rates = [0.7]\nallocators = ['l2norm']\ngranularity = ['layer']\nfit = 'few'\n"
    ));
    let cell = cells.iter().map(|planned| &planned.cell).find(|cell| {
        let sparsity = cell.sparsity.as_ref();
        sparsity.is_some_and(|sparsity| sparsity.reconstruction.is_some())
    });
    let cell = cell.expect("the grid has one");
    let [pruned, want] = fitted(&Device::flex(), cell);
    let [gpu_pruned, got] = fitted(&gpu.device, cell);
    assert_eq!(gpu_pruned, pruned, "what is only pruned is equal");
    let (mut largest, mut sum, mut count) = (0f32, 0f64, 0usize);
    let mut moved = 0f32;
    for ((got, want), pruned) in got.iter().zip(&want).zip(&pruned) {
        for ((got, want), pruned) in got.iter().zip(want).zip(pruned) {
            assert_eq!(*got == 0.0, *want == 0.0, "zeros are kept");
            largest = largest.max((got - want).abs());
            moved = moved.max((want - pruned).abs());
            sum += f64::from((got - want).abs());
            count += 1;
        }
    }
    println!(
        "{count} weights after {STEPS} steps of {LR}: moved by up to {moved:.1e}; largest difference {largest:.1e}, mean {:.1e}",
        sum / count as f64
    );
    assert!(moved > LR, "something was fitted");
    assert!(largest <= RATES_APART * LR, "{largest}");
}

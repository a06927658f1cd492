//! Networks that no task judges yet: random weights, and random inputs for calibration. A head that several levels share
//! is fitted on all of them, and units that take a time or a context are fitted like others. With a stand-in for a task,
//! their cells are measured as those of classifiers are.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::module::{ModuleMapper, Param};
use burn::tensor::{Device, Distribution, Tensor};
use kernels::Precision;
use kernels::plan::KernelPolicy;
use model_zoo::Grain;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::tap::{Bare, Capture, Census, Path as UnitPath};
use model_zoo::weights::{self, Container, Named, Source};
use model_zoo::{Blank, Bundle, Extents, Modality, Network, Of, Padded, Tap, TensorMap, Unit};
use ptsbench::batches::Batches;
use ptsbench::cell::{
    BatchNorm, CalibrationCell, Cell, CorrectionCell, Fit, Inputs, Optimizer, Pattern,
    Reconstruction, Rule, Sparsity, TaskCell,
};
use ptsbench::device::{Choice, choose};
use ptsbench::inventory::Weights;
use ptsbench::memory::Memory;
use ptsbench::options::Chosen;
use ptsbench::pipeline::{Bench, Measure, open_dense};
use ptsbench::progress::{Mode, Progress};
use ptsbench::reconstruct::fit::Call;
use ptsbench::reconstruct::loss::{error_within, summed_square_error};
use ptsbench::reconstruct::{self, Work, output_error};
use ptsbench::record::{Level, Record, Score, UnitOutcome};
use ptsbench::store::Store;
use ptsbench::task::judged::{After, Judge, Run, Stint, Tally};
use ptsbench::task::{Sets, TaskError};
use ptsbench::{allocate, criterion, subject};
use ptsbench_tests::{program, pruned};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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
        correction: CorrectionCell::Off,
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
    path: UnitPath,
    calls: Vec<Call>,
    extents: Option<Extents>,
    losses: Vec<f64>,
}

impl Tap for CallLosses<'_> {
    fn precision(&self) -> Precision {
        Precision::F32
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        if self.path.join() == self.target {
            for (input, output) in std::mem::take(&mut self.calls) {
                let own = "the unit's own type";
                let (input, output): (Box<dyn Any>, Box<dyn Any>) = (input, output);
                let input = *input.downcast::<In>().expect(own);
                let output = *output.downcast::<U::Out>().expect(own);
                let found = unit.run(input, &mut Bare::default());
                let error = error_within(found, output, self.extents.as_ref());
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
        let mut capture = Capture::of(unit, Precision::F32);
        dense.run(batch.clone(), &mut capture);
        let mut losses = CallLosses {
            target: unit,
            path: UnitPath::default(),
            calls: capture.into_calls(),
            extents: batch.extents(),
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
            .map(|_| {
                let mut batch: N::Input = random(spec, 2);
                let [_, height, width] = spec.input;
                // Where images may have sizes of their own, they do.
                if let Some(padded) = (&mut batch as &mut dyn Any).downcast_mut::<Padded>() {
                    padded.sizes[1] = [height / 2, width * 3 / 4];
                }
                batch
            })
            .collect();
        let census = subject::census(spec, &dense, &device);
        let weights = subject::weights(&dense, &census);
        let masks = pruned::masks(&weights, "uniform", RATE);
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
                    // What is fitted is the mean over batches of the sum over calls, and padding is no part of it.
                    let unit = units.iter().find(|unit| unit.path == *path).unwrap();
                    let mean = losses[0].iter().sum::<f64>() / BATCHES as f64;
                    let apart = (mean - unit.loss_before).abs();
                    assert!(apart <= 1e-5 * mean, "{name}, {path}: {mean}, {unit:?}");
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

/// The tests of this file draw from one stream of random numbers, one after the other, each from its beginning.
fn drawing(device: &Device) -> MutexGuard<'static, ()> {
    static STREAM: Mutex<()> = Mutex::new(());
    let guard = STREAM.lock().unwrap_or_else(PoisonError::into_inner);
    device.seed(0);
    guard
}

fn reconstruct(model: &str, look: &'static [&'static str]) -> Vec<Fitted> {
    let device = Device::flex();
    let _alone = drawing(&device);
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
            // The sum is fitted: a level of little loss may rise, but not beyond what the worst one is left with.
            let worst = after.iter().copied().fold(0.0, f64::max);
            for (before, after) in before.iter().zip(after) {
                let fitted = after < before || *after < worst;
                assert!(fitted, "{after} after, {before} before; {worst} elsewhere");
            }
            assert!(worst < before.iter().copied().fold(0.0, f64::max));
        }
    }
}

/// A network whose random weights keep the size of what passes them: in a deep one nothing would arrive otherwise.
struct Louder(Reconstruct);

impl<M: Modality> Visit<M> for Louder {
    type Out = Vec<Fitted>;

    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Vec<Fitted> {
        struct Gain;
        impl ModuleMapper for Gain {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                // Burn draws with a variance of a third over the inputs; ReLU wants two over them.
                let gain = if D == 4 { 6f64.sqrt() } else { 1.0 };
                param.map(|value| value.mul_scalar(gain))
            }
        }
        self.0.visit(spec, network.map(&mut Gain))
    }
}

#[test]
fn a_block_is_fitted_on_its_expansion_too_where_a_header_looks_at_it() {
    let device = Device::flex();
    let _alone = drawing(&device);
    let spec = catalog::find("tiny_mobilenetv2_ssd_lite").unwrap();
    let look = &["blocks.13", "classification_headers.0"];
    let found = spec.open(&device, Louder(Reconstruct(look)));
    let (units, losses) = &found[2];
    assert_eq!(losses.len(), look.len());
    assert!(
        units
            .iter()
            .all(|unit| !unit.path.starts_with("blocks.13."))
    );
    for [before, after] in losses {
        assert_eq!((before.len(), after.len()), (1, 1));
        assert!(after[0] < before[0], "{after:?} after, {before:?} before");
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

/// A task of no kind of network's own: how many samples there are for which a network gives about what the network of some
/// file gives.
struct StandIn<M: Modality> {
    samples: Vec<M::Input>,
    wanted: Vec<M::Output>,
}

/// The most by which an output may be off, as a part of its own square.
const NEAR: f64 = 1e-10;
const SAMPLES: usize = 5;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Nearness {
    samples: usize,
    near: u64,
    /// Samples for which a network gave something that is no number.
    lost: u64,
}

impl fmt::Display for Nearness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} near", self.near, self.samples)
    }
}

impl Tally for Nearness {
    fn samples(&self) -> usize {
        self.samples
    }

    fn unreadable(&self) -> &[String] {
        &[]
    }

    fn is_sound(&self) -> bool {
        self.near + self.lost <= self.samples as u64
    }

    fn brief(&self) -> String {
        self.to_string()
    }

    fn numbers(&self) -> Value {
        json!({ "near": self.near, "lost": self.lost })
    }
}

struct Zeros;

impl TensorMap for Zeros {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        tensor.zeros_like()
    }
}

fn random<I: Blank>(spec: &Spec, samples: usize) -> I {
    I::blank(spec, samples, &Device::flex()).map(&mut Random)
}

impl<M: Modality> Judge<M> for StandIn<M> {
    type Tally = Nearness;

    fn recipe(&self) -> Option<String> {
        None
    }

    fn available(&self) -> usize {
        self.samples.len()
    }

    fn batch(&self) -> usize {
        2
    }

    fn census<N: Of<M>>(
        &self,
        spec: &Spec,
        network: &N,
        device: &Device,
    ) -> Result<Census, TaskError> {
        Ok(subject::census(spec, network, device))
    }

    fn calibration(
        &self,
        _: &Run<'_, M>,
        _: &CalibrationCell,
        _: &Device,
        _: u64,
    ) -> Result<Batches<'static, M::Input>, TaskError> {
        Ok(self.samples.clone().into())
    }

    fn tally(
        &self,
        network: &Run<'_, M>,
        stint: Stint<Nearness>,
        _: &Device,
        after: &mut After<'_, Nearness>,
    ) -> Result<Nearness, TaskError> {
        let mut tally = stint.start;
        while tally.samples < stint.samples {
            let last = stint.samples.min(tally.samples + stint.batch);
            for at in tally.samples..last {
                let found = network(self.samples[at].clone());
                let wanted = &self.wanted[at];
                let square = |value: M::Output, from: M::Output| {
                    f64::from(summed_square_error(value, from).into_scalar::<f32>())
                };
                let own = square(wanted.clone(), wanted.clone().map(&mut Zeros));
                let off = square(found, wanted.clone()) / own;
                tally.near += u64::from(off < NEAR);
                tally.lost += u64::from(!off.is_finite());
            }
            tally.samples = last;
            after(&tally, &mut Vec::new())?;
        }
        Ok(tally)
    }

    fn score(&self, tally: &Nearness) -> Score {
        let (total, available) = (tally.samples as u64, self.available() as u64);
        let mut score = Score::top1(tally.near, total, available);
        score.metric = "near".to_owned();
        if tally.lost > 0 {
            score.value = Level::Collapsed;
        }
        score
    }
}

/// Writes a network as it is before any training.
struct Save<'a>(&'a Path);

impl<M: Modality> Visit<M> for Save<'_> {
    type Out = ();

    fn visit<N: Of<M>>(self, _: &'static Spec, network: N) {
        let key = |path: &str| network.key(path);
        weights::save(&network, key, self.0, &BTreeMap::new()).unwrap();
    }
}

/// Measures a cell by how near the network comes to that of a file.
struct MeasureNear<'a> {
    measure: Measure<'a>,
    wanted: &'a Path,
}

impl<M: Modality> Visit<M> for MeasureNear<'_> {
    type Out = Record;

    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Record {
        let reference = open_dense(network.clone(), self.wanted, BatchNorm::Kept).unwrap();
        let samples: Vec<N::Input> = (0..SAMPLES).map(|_| random(spec, 1)).collect();
        let wanted = samples.iter().cloned();
        let wanted = wanted.map(|sample| reference.run(sample, &mut Bare::default()));
        let judge: StandIn<M> = StandIn {
            wanted: wanted.collect(),
            samples,
        };
        self.measure.record(spec, network, &judge).unwrap()
    }
}

/// A cell of a network with these weights, pruned at a rate where there is one.
fn cell(model: &str, file: &Path, rate: Option<f64>) -> Cell {
    let sparsity = |rate| {
        let settings = settings(Grain::Layer);
        Sparsity {
            pattern: Pattern::Unstructured { rate },
            allocation: Some(allocate::facts(&Chosen::plain("uniform")).unwrap().part),
            criterion: criterion::facts(&Chosen::plain("wanda")).unwrap().part,
            rule: Rule::Exact,
            batch_norm: BatchNorm::Kept,
            calibration: Some(settings.calibration.clone()),
            repair: None,
            reconstruction: Some(settings),
        }
    };
    Cell {
        model: model.to_owned(),
        weights: weights::sha256(file).unwrap(),
        task: TaskCell {
            name: "micro".to_owned(),
            version: 1,
            samples: SAMPLES,
            data: None,
            split: None,
            recipe: None,
        },
        sparsity: rate.map(sparsity),
        precision: Precision::F32,
    }
}

#[test]
fn a_stand_in_for_a_task_measures_networks_of_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("records")).unwrap();
    let chosen = choose(Choice::Flex).unwrap();
    let progress = Progress::new(1, Mode::Quiet);
    let sets = Sets::default();
    let bench = Bench {
        memory: Memory::of_machine(),
        chosen: &chosen,
        progress: &progress,
        sets: &sets,
        policy: KernelPolicy::auto(),
    };
    let _alone = drawing(&chosen.device);
    for model in ["tiny_resnet_basic", "tiny_retinanet", "tiny_unet"] {
        let spec = catalog::find(model).unwrap();
        let sound = folder.path().join("sound.safetensors");
        spec.open(&chosen.device, Save(&sound));
        let measure = |cell: &Cell, file: &Path| {
            let work = tempfile::tempdir().unwrap();
            let measure = Measure {
                bench: &bench,
                cell,
                file,
                work: work.path(),
            };
            let wanted = &sound;
            let record = spec.open(&chosen.device, MeasureNear { measure, wanted });
            store.put(&record).unwrap();
            assert_eq!(store.get(&cell.key()).unwrap(), Some(record.clone()));
            println!("{cell}: {}, {:?}", record.score, record.score.counts);
            record
        };
        let dense = measure(&cell(model, &sound, None), &sound);
        assert_eq!(dense.score.value, Level::Number(100.0), "{model}");
        assert_eq!(dense.cost.zeros, 0, "{model}");

        let pruned = measure(&cell(model, &sound, Some(0.95)), &sound);
        let value = pruned.score.value.number().unwrap();
        assert!(value < 100.0, "{model}: {value}");
        assert_eq!(pruned.score.counts.total(), SAMPLES as u64);
        let share = pruned.cost.zeros as f64 / pruned.cost.weights as f64;
        assert!((share - 0.95).abs() < 1e-3, "{model}: {share}");
        let fell = |unit: &UnitOutcome| unit.loss_after < unit.loss_before;
        assert!(pruned.units.iter().all(fell), "{model}");
        assert!(pruned.units.len() > 5, "{model}: {}", pruned.units.len());

        // Weights that are numbers, and too large for what is computed with them to be some.
        let container = Container::open(&sound).unwrap();
        let large = |key: String| Named {
            shape: container.shape(&key).unwrap(),
            values: Source::read(&container, &key)
                .unwrap()
                .into_iter()
                .map(|value| 1e20 * value)
                .collect(),
            key,
        };
        let large: Vec<Named> = container.keys().into_iter().map(large).collect();
        let broken = folder.path().join("broken.safetensors");
        weights::write(&broken, &large, &BTreeMap::new()).unwrap();
        let collapsed = measure(&cell(model, &broken, None), &broken);
        assert_eq!(collapsed.score.value, Level::Collapsed, "{model}");
        assert_eq!(collapsed.score.to_string(), "near: collapsed");
        drop(container);
        fs::remove_file(&sound).unwrap();
    }
}

#[test]
fn the_images_of_a_task_are_for_networks_of_one_kind() {
    let folder = tempfile::tempdir().unwrap();
    let chosen = choose(Choice::Flex).unwrap();
    let progress = Progress::new(1, Mode::Quiet);
    let sets = Sets::default();
    let bench = Bench {
        memory: Memory::of_machine(),
        chosen: &chosen,
        progress: &progress,
        sets: &sets,
        policy: KernelPolicy::auto(),
    };
    for (model, does) in [
        ("tiny_retinanet", "finds boxes"),
        ("tiny_mobilenetv2_ssd_lite", "finds boxes"),
        ("tiny_unet", "predicts noise"),
    ] {
        let file = folder.path().join(format!("{model}.safetensors"));
        let spec = catalog::find(model).unwrap();
        spec.open(&chosen.device, Save(&file));
        let error = bench.measure(&cell(model, &file, None), &file, folder.path());
        assert_eq!(
            error.unwrap_err().to_string(),
            format!(
                "`{model}` {does}, and task `micro` is for a network that names classes; choose another model (`ptsbench list models`) or another task (`ptsbench list tasks`)"
            )
        );
    }
}

/// What the program prints, on both of its outputs, and whether it went well.
fn said(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = program::command();
    let output = command.current_dir(folder).args(arguments).output();
    let output = output.expect("the program starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn what_judges_nobody_takes_networks_of_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    for (model, classes, does) in [
        ("tiny_retinanet", " with 5 classes", "finds boxes"),
        ("tiny_unet", "", "predicts noise"),
    ] {
        let spec = catalog::find(model).unwrap();
        let file = format!("{model}.safetensors");
        let _alone = drawing(&Device::flex());
        spec.open(&Device::flex(), Save(&folder.path().join(&file)));
        let weights: &[&str] = &["--weights", &file];
        let export: &[&str] = &[
            "export",
            model,
            "--device",
            "flex",
            "--out",
            "out.safetensors",
        ];
        let rate: &[&str] = &["--rate", "0.5"];

        // A file is told by its tensors, and only some networks have classes to speak of.
        let (done, text) = said(folder.path(), &["inspect", &file]);
        let first = text.lines().next().unwrap_or_default();
        assert!(
            done && first == format!("{file}: {model}{classes}"),
            "{text}"
        );
        let explain = ["inspect", model, "--rate", "0.9", "--explain"];
        for done in [
            said(folder.path(), &explain),
            said(folder.path(), &[export, rate, weights].concat()),
            said(
                folder.path(),
                &[&["latency", model, "--rounds", "1"], rate].concat(),
            ),
        ] {
            assert!(done.0, "{}", done.1);
        }

        let other =
            format!("`{model}` {does}, and task `micro` is for a network that names classes");
        let looks: [&[&str]; 2] = [&["--criterion", "wanda"], &["--granularity", "layer"]];
        for look in looks {
            let (done, text) = said(folder.path(), &[export, rate, weights, look].concat());
            assert!(!done && text.contains(&other), "{text}");
            assert!(text.contains("leave --granularity"), "{text}");
        }
        let evaluate: &[&str] = &["evaluate", model, "--data", "micro"];
        let (done, text) = said(folder.path(), &[evaluate, weights].concat());
        assert!(!done && text.contains(&other), "{text}");
        assert!(text.contains("`ptsbench list models`"), "{text}");
    }
}

//! From dense weights to records on the smallest built-in network: every pattern, every way of reconstructing, both
//! rules, a few steps each.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use kernels::Precision;
use kernels::plan::{KernelPolicy, Path as Product, PathChoice};
use model_zoo::Grain;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::graft::read_params;
use model_zoo::tap::Census;
use model_zoo::weights::{Container, Named, Source, write};
use model_zoo::{Classes, Classifier};
use ptsbench::allocate::keep_trunc;
use ptsbench::cell::{
    BatchNorm, CalibrationCell, CorrectionCell, Fit, Inputs, Optimizer, Pattern, Reconstruction,
};
use ptsbench::device::{Choice, choose};
use ptsbench::inventory::{Loaded, Weights};
use ptsbench::memory::Memory;
use ptsbench::pipeline::{Bench, open_dense};
use ptsbench::plan::{Plan, Planned};
use ptsbench::progress::{Mode, Progress};
use ptsbench::reconstruct::{self, Work, output_error};
use ptsbench::record::{Environment, Record, Timing, UnitOutcome};
use ptsbench::registry::Zoo;
use ptsbench::select::Masks;
use ptsbench::store::digest;
use ptsbench::subject;
use ptsbench_tests::{pruned, workspace_root};

const MODEL: &str = "micro_resnet8";
const IMAGES: usize = 32;
const BATCH: usize = 16;
const STEPS: usize = 40;

fn weight_file() -> PathBuf {
    let name = format!("assets/micro/{MODEL}.safetensors");
    workspace_root().join(name)
}

/// The budget of section 0.1.
fn budget(rate: f64, weights: u64) -> u64 {
    (rate * weights as f64 + 1e-9).floor() as u64
}

/// The records of a plan whose grids are given as TOML, measured without a store.
fn measure(grids: &str) -> Vec<Record> {
    measure_on(KernelPolicy::auto(), grids)
}

/// The same with these paths.
fn measure_on(policy: KernelPolicy, grids: &str) -> Vec<Record> {
    let text = format!(
        "name = 'pipeline'\ntitle = 'Pipeline'\n\
         [task]\nname = 'micro'\nsamples = 100\n\
         [calibration]\nimages = {IMAGES}\nbatch = {BATCH}\n\
         [fit.few]\noptimizer = 'adam'\nlr = 0.0005\nbias_lr = 0.0005\nsteps = {STEPS}\n\
         {grids}"
    );
    let registry = Zoo::new(&workspace_root().join("assets"), Default::default()).unwrap();
    let cells = Plan::parse(&text, "pipeline.toml", &[]).unwrap();
    let cells = cells.expand(&registry).unwrap();
    let chosen = choose(Choice::Flex).unwrap();
    let progress = Progress::new(cells.len(), Mode::Quiet);
    let bench = Bench {
        chosen: &chosen,
        progress: &progress,
        sets: registry.sets(),
        policy,
        memory: Memory::of_machine(),
    };
    let one = |planned: &Planned| {
        let work = tempfile::tempdir().unwrap();
        let measured = bench.measure(&planned.cell, &weight_file(), work.path());
        measured.unwrap_or_else(|error| panic!("{}: {error}", planned.cell))
    };
    cells.iter().map(one).collect()
}

#[test]
fn patterns_leave_their_share_and_skip_what_they_do_not_divide() {
    let records = measure(
        "[[grid]]\nname = 'patterns'\ntrack = 'reconstruction'\nmodels = ['micro_resnet8']\n\
         rates = ['2:4', 't2:4', '1:4']\ngranularity = ['layer']\n",
    );
    assert_eq!(records.len(), 1 + 3 * 2);
    for record in &records {
        let Some(sparsity) = &record.cell.sparsity else {
            assert_eq!(record.cost.zeros, 0);
            continue;
        };
        for layer in &record.layers {
            let divides = |m: usize| layer.shape[1] % m == 0;
            let pruned = match sparsity.pattern {
                Pattern::NofM { n, m } if divides(m) => layer.weights * (m - n) as u64 / m as u64,
                Pattern::TransposableNofM { n, m } if divides(m) && layer.shape[0] % m == 0 => {
                    layer.weights * (m - n) as u64 / m as u64
                }
                _ => 0,
            };
            assert_eq!(layer.zeros, pruned, "{} {}", record.cell, layer.path);
            assert_eq!(layer.rate, None);
        }
        assert!(record.cost.zeros > record.cost.weights * 4 / 10);
        let zeros: u64 = record.layers.iter().map(|layer| layer.zeros).sum();
        assert_eq!(record.cost.zeros, zeros);
        assert!(record.cost.sparse_macs < record.cost.macs);
        assert_eq!(record.units.is_empty(), sparsity.reconstruction.is_none());
        // A unit of a layer that stays dense has nothing to recover, and its loss is rounding alone.
        let pruned = |unit: &UnitOutcome| {
            let inside = format!("{}.", unit.path);
            let of_unit = |path: &str| path == unit.path || path.starts_with(&inside);
            let mut layers = record.layers.iter();
            layers.any(|layer| layer.zeros > 0 && of_unit(&layer.path))
        };
        let units: Vec<_> = record.units.iter().filter(|unit| pruned(unit)).collect();
        if sparsity.reconstruction.is_some() {
            let layers = record.layers.iter().filter(|layer| layer.zeros > 0);
            assert_eq!(units.len(), layers.count());
        }
        for unit in units {
            assert!(
                unit.loss_after < unit.loss_before,
                "{}: {unit:?}",
                record.cell
            );
        }
    }
}

/// What a test looks at with the network's own type at hand.
trait Look {
    type Out;
    fn look<N>(self, subject: Subject<'_, N>) -> Self::Out
    where
        N: Classifier;
}

/// The dense network and what is known of it.
struct Subject<'a, N> {
    dense: &'a N,
    census: &'a Census,
    weights: &'a Loaded,
    device: &'a Device,
}

impl<N: Classifier> Subject<'_, N> {
    fn masks(&self, allocator: &str, rate: f64) -> Masks {
        pruned::masks(self.weights, allocator, rate)
    }

    fn sparse(&self, masks: &Masks) -> N {
        subject::attach(self.dense.clone(), self.census, masks, self.device)
    }

    /// Calibration batches of one seed.
    fn batches(&self, seed: u64) -> Vec<Tensor<4>> {
        pruned::batches(IMAGES, BATCH, seed, self.device)
    }
}

fn look<L: Look>(look: L) -> L::Out {
    struct Open<L>(L);
    impl<L: Look> Visit<Classes> for Open<L> {
        type Out = L::Out;
        fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> L::Out {
            let device = Device::flex();
            let dense = open_dense(network, &weight_file(), BatchNorm::Folded).unwrap();
            let census = subject::census(spec, &dense, &device);
            let weights = subject::weights(&dense, &census);
            self.0.look(Subject {
                dense: &dense,
                census: &census,
                weights: &weights,
                device: &device,
            })
        }
    }
    let spec = catalog::find(MODEL).unwrap();
    spec.open_classes(&Device::flex(), "this test looks at classes", Open(look))
        .unwrap()
}

#[test]
fn every_way_of_reconstructing_lowers_losses_and_keeps_zeros() {
    const RATE: f64 = 0.8;
    struct Ways;
    impl Look for Ways {
        type Out = ();
        fn look<N>(self, subject: Subject<'_, N>)
        where
            N: Classifier,
        {
            let masks = subject.masks("l2norm", RATE);
            let batches = subject.batches(0);
            let fresh = subject.batches(1);
            let progress = Progress::new(1, Mode::Quiet);
            let work = Work {
                dense: subject.dense,
                census: subject.census,
                masks: &masks,
                batches: &batches.clone().into(),
                memory: Memory::of_machine(),
                device: subject.device,
                precision: Precision::F32,
                checkpoints: None,
                progress: &progress,
            };
            let pruned = output_error(&subject.sparse(&masks), subject.dense, &fresh);
            println!("error of the network's output on fresh images, only pruned: {pruned:.3}");
            for granularity in [Grain::Single, Grain::Layer, Grain::Block] {
                for inputs in [Inputs::Dense, Inputs::Sparse] {
                    for correction in [true, false] {
                        let settings = settings(granularity, inputs, correction);
                        let name =
                            format!("{granularity:?}, {inputs:?} inputs, correction {correction}");
                        let (fitted, units) =
                            work.reconstruct(subject.sparse(&masks), &settings).unwrap();
                        assert_eq!(
                            units.len(),
                            subject.census.units(granularity).len(),
                            "{name}"
                        );
                        for unit in &units {
                            assert_eq!(unit.steps, STEPS, "{name}: {unit:?}");
                            assert!(unit.loss_after < unit.loss_before, "{name}: {unit:?}");
                        }
                        let fitted = fitted.materialize();
                        zeros_are_kept(&subject, &masks, RATE, &fitted, &name);
                        let error = output_error(&fitted, subject.dense, &fresh);
                        println!("{name}: {error:.3}");
                        assert!(error < pruned, "{name}: {error} is not below {pruned}");
                    }
                }
            }
        }
    }
    look(Ways);
}

fn settings(granularity: Grain, inputs: Inputs, correction: bool) -> Reconstruction {
    Reconstruction {
        version: reconstruct::VERSION,
        granularity,
        inputs,
        correction: CorrectionCell::plain(correction),
        calibration: CalibrationCell {
            images: IMAGES,
            batch: BATCH,
            seed: 0,
            list: None,
        },
        fit: Fit {
            optimizer: Optimizer::Adam {
                lr: 5e-4,
                bias_lr: 5e-4,
            },
            steps: STEPS,
            early_stop: 0.0,
        },
    }
}

/// Pruned weights are exactly zero, the others are not and have moved, and together the zeros are the budget.
fn zeros_are_kept<N>(subject: &Subject<'_, N>, masks: &Masks, rate: f64, fitted: &N, name: &str)
where
    N: Classifier,
{
    let weights = subject::weights(fitted, subject.census);
    let (mut zeros, mut total) = (0, 0);
    for (index, layer) in weights.layers().iter().enumerate() {
        let weight = weights.weight(index).unwrap();
        let keep = masks[&layer.path].to_keep();
        for (place, (&weight, &keep)) in weight.iter().zip(&keep).enumerate() {
            assert!(
                keep || weight == 0.0,
                "{name}: {} weight {place} is {weight}",
                layer.path
            );
        }
        let before = subject.weights.weight(index).unwrap();
        let moved = weight
            .iter()
            .zip(before)
            .zip(&keep)
            .filter(|((after, before), keep)| **keep && after != before)
            .count();
        let kept = keep.iter().filter(|keep| **keep).count();
        assert!(
            moved * 2 > kept,
            "{name}: {} moved {moved} of {kept}",
            layer.path
        );
        zeros += weight.iter().filter(|weight| **weight == 0.0).count() as u64;
        total += weight.len() as u64;
    }
    assert_eq!(zeros, budget(rate, total), "{name}");
}

#[test]
fn correction_brings_the_whole_network_nearer_to_the_dense_one() {
    struct Correction;
    impl Look for Correction {
        type Out = ();
        fn look<N>(self, subject: Subject<'_, N>)
        where
            N: Classifier,
        {
            let batches = subject.batches(0);
            let fresh = subject.batches(1);
            let progress = Progress::new(1, Mode::Quiet);
            let (mut without, mut with) = (0.0, 0.0);
            for allocator in ["uniform", "l2norm", "erk"] {
                for rate in [0.5, 0.6, 0.7, 0.8, 0.9] {
                    let masks = subject.masks(allocator, rate);
                    let work = Work {
                        dense: subject.dense,
                        census: subject.census,
                        masks: &masks,
                        batches: &batches.clone().into(),
                        memory: Memory::of_machine(),
                        device: subject.device,
                        precision: Precision::F32,
                        checkpoints: None,
                        progress: &progress,
                    };
                    let sparse = subject.sparse(&masks);
                    let pruned = output_error(&sparse, subject.dense, &fresh);
                    let corrected = output_error(
                        &work.correct(sparse, &Default::default()).unwrap(),
                        subject.dense,
                        &fresh,
                    );
                    println!("{allocator} {rate}: {pruned:.3} pruned, {corrected:.3} corrected");
                    without += pruned / 15.0;
                    with += corrected / 15.0;
                }
            }
            println!("mean: {without:.3} pruned, {with:.3} corrected");
            assert!(with < without, "{with} is not below {without}");
        }
    }
    look(Correction);
}

/// Each option of the correction touches what it names and nothing else.
#[test]
fn parts_and_layers_of_the_correction_are_what_they_say() {
    struct Parts;
    impl Look for Parts {
        type Out = ();
        fn look<N>(self, subject: Subject<'_, N>)
        where
            N: Classifier,
        {
            let masks = subject.masks("l2norm", 0.8);
            let batches = subject.batches(0);
            let progress = Progress::new(1, Mode::Quiet);
            let work = Work {
                dense: subject.dense,
                census: subject.census,
                masks: &masks,
                batches: &batches.into(),
                memory: Memory::of_machine(),
                device: subject.device,
                precision: Precision::F32,
                checkpoints: None,
                progress: &progress,
            };
            let sparse = subject.sparse(&masks).materialize();
            let old: HashMap<String, TensorData> = read_params(&sparse).into_iter().collect();
            // Which parameters a correction moves, by their paths.
            let moved = |options: &str| -> BTreeSet<String> {
                let options = serde_json::from_str(options).unwrap();
                let corrected = work.correct(subject.sparse(&masks), &options).unwrap();
                let new = read_params(&corrected.materialize()).into_iter();
                new.filter(|(path, data)| old[path] != *data)
                    .map(|(path, _)| path)
                    .collect()
            };
            let both = moved("{}");
            let of = |ending: &str| -> BTreeSet<String> {
                let of = both.iter().filter(|path| path.ends_with(ending));
                of.cloned().collect()
            };
            let (weights, biases) = (of(".weight"), of(".bias"));
            assert!(!weights.is_empty() && !biases.is_empty());
            assert_eq!(weights.len() + biases.len(), both.len());
            assert_eq!(moved(r#"{"part":"weight"}"#), weights);
            assert_eq!(moved(r#"{"part":"bias"}"#), biases);
            let some = moved(r#"{"layers":["layer2.*"]}"#);
            let sites = subject::sites(subject.dense, subject.census);
            let sites = sites.iter().filter(|site| site.key.starts_with("layer2."));
            let modules: Vec<String> = sites.map(|site| format!("{}.", site.module)).collect();
            let inside = |path: &&String| modules.iter().any(|module| path.starts_with(module));
            let inside: BTreeSet<String> = both.iter().filter(inside).cloned().collect();
            assert!(!some.is_empty() && some.len() < both.len());
            assert_eq!(some, inside);
        }
    }
    look(Parts);
}

#[test]
fn a_cell_measured_twice_gives_one_record() {
    let grid = "[[grid]]\nname = 'twice'\ntrack = 'reconstruction'\nmodels = ['micro_resnet8']\n\
                rates = [0.8]\nallocators = ['erk']\ngranularity = ['layer', 'block']\nseeds = [3]\n";
    let plain = |mut records: Vec<Record>| {
        for record in &mut records {
            record.timing = Timing::default();
            record.environment = Environment::default();
        }
        records
    };
    let first = plain(measure(grid));
    assert_eq!(first.len(), 4);
    for record in &first[1..] {
        assert_eq!(record.cost.zeros, budget(0.8, record.cost.weights));
    }
    assert_eq!(first, plain(measure(grid)));
}

/// Which path a layer takes is rounding, and no part of a record but its environment.
#[test]
fn a_cell_has_one_record_on_every_path() {
    let grid = "[[grid]]\nname = 'paths'\ntrack = 'reconstruction'\nmodels = ['micro_resnet8']\n\
                rates = [0.8, '1:4']\nallocators = ['erk']\ngranularity = ['layer']\n";
    let on = |path| {
        measure_on(
            KernelPolicy {
                path,
                ..KernelPolicy::auto()
            },
            grid,
        )
    };
    let correct = |record: &Record| record.score.counts.correct().unwrap();
    let dense = on(PathChoice::Force(Product::Dense));
    assert!(dense.iter().all(|r| r.environment.paths.is_none()));
    for choice in [
        PathChoice::Auto,
        PathChoice::Force(Product::Csr),
        PathChoice::Force(Product::Nm),
    ] {
        for (record, dense) in on(choice).into_iter().zip(&dense) {
            let apart = correct(&record).abs_diff(correct(dense));
            assert!(apart <= 2, "{choice:?}, {}: {apart} images", record.cell);
            let paths = record.environment.paths.unwrap_or_default();
            let pattern = record.cell.sparsity.as_ref().map(|s| s.pattern);
            match (choice, pattern) {
                (PathChoice::Auto, None) => assert_eq!(record.environment.paths, None),
                (PathChoice::Auto, Some(Pattern::Unstructured { .. }))
                | (PathChoice::Force(Product::Csr), _) => assert!(paths.csr > 0 && paths.nm == 0),
                (PathChoice::Auto, Some(_)) => assert!(paths.csr == 0 && paths.nm > 0),
                (_, Some(Pattern::NofM { .. })) => assert!(paths.nm > 0 && paths.csr == 0),
                (_, _) => assert_eq!(record.environment.paths, None),
            }
            let plain = |record: &Record| Record {
                timing: Timing::default(),
                environment: Environment::default(),
                score: dense.score.clone(),
                ..record.clone()
            };
            assert_eq!(plain(&record), plain(dense));
        }
    }
}

/// Section 0.2: by the released rule each layer by itself keeps `trunc((1 - P) n)` weights, float error included, and
/// weights equal to the threshold go as well; a global selection takes one weight more than `trunc(P N)`.
#[test]
fn the_released_rule_counts_as_it_did() {
    const RATE: f64 = 0.9;
    let grid = |rule: &str| {
        measure(&format!(
            "[[grid]]\nname = 'rule'\ntrack = 'allocation'\nmodels = ['micro_resnet8']\nrule = '{rule}'\n\
             rates = [{RATE}]\nallocators = ['uniform', 'l2norm']\n"
        ))
    };
    let (exact, released) = (grid("exact"), grid("msbench"));
    let file = Container::open(&weight_file()).unwrap();
    assert_eq!(exact[0].key, released[0].key, "a dense cell has no rule");
    for (exact, released) in exact.iter().zip(&released).skip(1) {
        assert_ne!(exact.key, released.key);
        assert_eq!(exact.cost.zeros, budget(RATE, exact.cost.weights));
        println!(
            "{}: {} zeros; by the released rule {}",
            exact.cell, exact.cost.zeros, released.cost.zeros
        );
        assert!(released.cost.zeros > exact.cost.zeros);
        let part = exact.cell.sparsity.as_ref().unwrap().allocation.as_ref();
        if part.unwrap().name == "uniform" {
            for layer in &released.layers {
                let weights: Vec<f32> = file.read(&format!("{}.weight", layer.path)).unwrap();
                let mut sizes: Vec<f32> = weights.iter().map(|weight| weight.abs()).collect();
                sizes.sort_by(f32::total_cmp);
                // Weights in half precision are often equal.
                let threshold = sizes[keep_trunc(RATE, sizes.len()) - 1];
                let gone = sizes.partition_point(|size| *size <= threshold);
                assert_eq!(layer.zeros, gone as u64, "{layer:?}: {threshold}");
            }
        }
    }
}

/// A file that is not the plan's any more is refused: its digest is part of the cell.
#[test]
fn a_weight_file_that_changed_is_refused() {
    let registry = Zoo::new(&workspace_root().join("assets"), Default::default()).unwrap();
    let plan = Plan::load("smoke", &[]).unwrap();
    let cells = plan.expand(&registry).unwrap();
    let chosen = choose(Choice::Flex).unwrap();
    let progress = Progress::new(1, Mode::Quiet);
    let bench = Bench {
        chosen: &chosen,
        progress: &progress,
        sets: registry.sets(),
        policy: KernelPolicy::auto(),
        memory: Memory::of_machine(),
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("changed.safetensors");
    let mut bytes = std::fs::read(weight_file()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = bench.measure(&cells[0].cell, &file, Path::new("none"));
    let error = error.unwrap_err().to_string();
    for words in ["changed.safetensors", "SHA-256", &cells[0].cell.weights] {
        assert!(error.contains(words), "{error}");
    }
}

/// What cannot be put in its place is taken away again, and what was there stays.
#[test]
fn a_checkpoint_that_cannot_be_put_in_place_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("unit-0000.safetensors");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("kept"), "x").unwrap();
    let tensor = Named {
        key: "a".into(),
        shape: vec![1],
        values: vec![1.0],
    };
    let error = write(&taken, &[tensor], &Default::default()).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("unit-0000.safetensors: cannot write"),
        "{error}"
    );
    assert!(error.contains("free space"), "{error}");
    assert!(taken.join("kept").exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_option_that_nothing_knows_is_refused() {
    let registry = Zoo::new(&workspace_root().join("assets"), Default::default()).unwrap();
    let cells = Plan::load("smoke", &[]).unwrap().expand(&registry).unwrap();
    let pruned = cells.iter().find(|planned| planned.cell.sparsity.is_some());
    let mut cell = pruned.unwrap().cell.clone();
    let part = &mut cell.sparsity.as_mut().unwrap().criterion;
    part.options.insert("power".into(), 2.into());
    let chosen = choose(Choice::Flex).unwrap();
    let bench = Bench {
        chosen: &chosen,
        progress: &Progress::new(1, Mode::Quiet),
        sets: registry.sets(),
        policy: KernelPolicy::auto(),
        memory: Memory::of_machine(),
    };
    let work = tempfile::tempdir().unwrap();
    let measured = bench.measure(&cell, &weight_file(), work.path());
    let error = measured.unwrap_err().to_string();
    assert!(
        error.contains("`magnitude`: there is no option `power`"),
        "{error}"
    );
}

/// A place to read what a run remarks.
#[derive(Clone, Default)]
struct Heard(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Damages the file of a unit's checkpoint in one way.
#[cfg(unix)]
fn damage(file: &Path, how: &str) {
    let bytes = fs::read(file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let replaced = |from: &str, to: &str| {
        // Metadata come first, and what is replaced is as long as before: the header still fits the data.
        let text = String::from_utf8(bytes[8..header].to_vec()).unwrap();
        assert!(text.contains(from), "{how}: {text}");
        let text = text.replacen(from, to, 1);
        [
            &(text.len() as u64).to_le_bytes()[..],
            text.as_bytes(),
            &bytes[header..],
        ]
        .concat()
    };
    let new = match how {
        "flipped sign" => {
            let mut bytes = bytes.clone();
            *bytes.last_mut().unwrap() ^= 0x80;
            bytes
        }
        "truncated" => bytes[..bytes.len() - 3].to_vec(),
        "empty" => Vec::new(),
        "foreign" => replaced("\"cell\":\"", "\"cell\":\"f"),
        "old" => replaced("\"digest\":", "\"digset\":"),
        "other outcome" => replaced("\\\"loss_after\\\":", "\\\"loss_after\\\":1"),
        "other unit" => fs::read(file.with_file_name("unit-0001.safetensors")).unwrap(),
        "pipe" | "endless" | "folder" => {
            fs::remove_file(file).unwrap();
            match how {
                "folder" => fs::create_dir(file).unwrap(),
                "endless" => std::os::unix::fs::symlink("/dev/zero", file).unwrap(),
                _ => {
                    let made = std::process::Command::new("mkfifo").arg(file).status();
                    assert!(made.unwrap().success());
                }
            }
            return;
        }
        other => panic!("{other}"),
    };
    assert_ne!(new, bytes, "{how}");
    fs::write(file, new).unwrap();
}

#[cfg(unix)]
#[test]
fn a_bad_checkpoint_is_removed_and_its_unit_fitted_again() {
    let registry = Zoo::new(&workspace_root().join("assets"), Default::default()).unwrap();
    let sets = ["task.samples=20".to_owned(), "calibration.images=16".into()];
    let cells = Plan::load("smoke", &sets)
        .unwrap()
        .expand(&registry)
        .unwrap();
    let fitted = |planned: &&Planned| {
        let sparsity = planned.cell.sparsity.as_ref();
        sparsity.is_some_and(|sparsity| sparsity.reconstruction.is_some())
    };
    let cell = &cells.iter().find(fitted).unwrap().cell;
    let chosen = choose(Choice::Flex).unwrap();
    let measure = |work: &Path| {
        let heard = Heard::default();
        let progress = Progress::to_writer(1, Box::new(heard.clone()));
        let bench = Bench {
            chosen: &chosen,
            progress: &progress,
            sets: registry.sets(),
            policy: KernelPolicy::auto(),
            memory: Memory::of_machine(),
        };
        let record = bench.measure(cell, &weight_file(), work).unwrap();
        let said = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        (digest(&record), said)
    };
    let work = tempfile::tempdir().unwrap();
    let (sound, _) = measure(work.path());
    let files = || {
        let mut files: Vec<PathBuf> = fs::read_dir(work.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
    };
    let kept = files();
    assert!(kept.len() > 2, "{kept:?}");
    let times = || -> Vec<_> {
        let modified = |file: &PathBuf| fs::metadata(file).unwrap().modified().unwrap();
        kept.iter().map(modified).collect()
    };
    for how in [
        "flipped sign",
        "truncated",
        "empty",
        "foreign",
        "old",
        "other outcome",
        "other unit",
        "pipe",
        "endless",
        "folder",
    ] {
        let before = times();
        damage(&kept[0], how);
        let (again, said) = measure(work.path());
        assert_eq!(again, sound, "{how}: {said}");
        let lines = said.matches("is fitted again").count();
        assert_eq!(lines, 1, "{how}: {said}");
        assert!(said.contains(&kept[0].display().to_string()), "{said}");
        assert_eq!(files(), kept, "{how}");
        // The other units were not fitted again.
        assert_eq!(times()[1..], before[1..], "{how}");
    }
    // Sound ones are used without a word.
    let before = times();
    let (again, said) = measure(work.path());
    assert_eq!((again, times()), (sound, before));
    assert!(!said.contains("fitted again"), "{said}");
}

#[test]
fn a_memory_budget_moves_no_bit() {
    let plan = format!(
        "name = 'memory'\ntitle = 'Memory'\nrates = [0.6]\n\
         [task]\nname = 'micro'\nsamples = 20\n\
         [calibration]\nimages = 64\nbatch = 20\n\
         [fit.few]\noptimizer = 'adam'\nlr = 0.0005\nbias_lr = 0.0005\nsteps = 5\n\
         [[grid]]\nname = 'fit'\ntrack = 'reconstruction'\ngranularity = ['block']\n\
         allocators = ['l2norm']\ninputs = ['sparse', 'dense']\n\
         models = ['{MODEL}', 'micro_shufflenet_v2_x0_5', 'micro_vit_nano']\n\
         [[grid]]\nname = 'sums'\ntrack = 'allocation'\nmodels = ['{MODEL}']\n\
         criterion = {{ name = 'sparsegpt', inputs = 'dense' }}\nrepair = ['bn_re_estimation']\nallocators = ['uniform']\n\
         [[grid]]\nname = 'search'\ntrack = 'allocation'\nmodels = ['{MODEL}']\n\
         allocators = [{{ name = 'evopress', generations = 2, offspring = 2, stages = [[64, 1]] }}]\n\
         [[grid]]\nname = 'whole'\ntrack = 'allocation'\nmodels = ['{MODEL}']\n\
         criterion = {{ name = 'fcpts', epochs = 2, teacher = 'train' }}\nallocators = ['erk']\n"
    );
    let registry = Zoo::new(&workspace_root().join("assets"), Default::default()).unwrap();
    let cells = Plan::parse(&plan, "memory.toml", &[]).unwrap();
    let cells = cells.expand(&registry).unwrap();
    let chosen = choose(Choice::Flex).unwrap();
    let measure = |planned: &Planned, memory| {
        let heard = Heard::default();
        let progress = Progress::to_writer(1, Box::new(heard.clone()));
        let bench = Bench {
            chosen: &chosen,
            progress: &progress,
            sets: registry.sets(),
            policy: KernelPolicy::auto(),
            memory,
        };
        let work = tempfile::tempdir().unwrap();
        let file = registry.file(&planned.cell.model).unwrap();
        let record = bench.measure(&planned.cell, &file, work.path()).unwrap();
        let said = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        // Beside the checkpoints nothing is left.
        for entry in fs::read_dir(work.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(
                name.starts_with("unit-") || name == "training.safetensors",
                "{name}"
            );
        }
        (digest(&record), said.matches("temporary file").count())
    };
    let mut fits = 0;
    for planned in &cells {
        let (whole, told) = measure(planned, Memory::of(1 << 30));
        assert_eq!(told, 0, "{}", planned.cell);
        let sparsity = planned.cell.sparsity.as_ref();
        let fitted = sparsity.is_some_and(|sparsity| sparsity.reconstruction.is_some());
        // Room for some pairs and inputs and not for the others; for the largest layer's products and not for all of them.
        let little = if fitted { 1536 << 10 } else { 6 << 20 };
        let (cut, told) = measure(planned, Memory::of(little));
        assert_eq!(cut, whole, "{}", planned.cell);
        assert_eq!(told > 0, fitted, "{}", planned.cell);
        fits += told;
    }
    assert_eq!(fits, 6, "a network's first unit over the budget is told of");
}

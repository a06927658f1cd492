//! Methods that look at images, end to end on the smallest built-in network: exact counts, the budget they declare, and
//! that they do what they are for.

use std::path::Path;

use model_zoo::weights::{Container, Source};
use ptsbench::cell::Cell;
use ptsbench::device::{Choice, choose};
use ptsbench::export::export;
use ptsbench::memory::Memory;
use ptsbench::pipeline::Bench;
use ptsbench::plan::Plan;
use ptsbench::progress::{Mode, Progress};
use ptsbench::record::Record;
use ptsbench::registry::Zoo;
use ptsbench_tests::workspace_root;

const IMAGES: u64 = 128;
const SOLVERS: [&str; 4] = ["sparsegpt", "admm_w", "alps", "obc"];

/// What is done with a sparse cell of a plan, where the work of the cell may lie.
type Do<'a, T> = dyn FnMut(&Bench<'_>, &Cell, &Path, &Path) -> T + 'a;

/// The records of a plan of 400 test images and 128 for calibration, without the dense reference.
fn measure(grids: &str) -> Vec<Record> {
    each(grids, &mut |bench, cell, file, work| {
        let measured = bench.measure(cell, file, work);
        let record = measured.unwrap_or_else(|error| panic!("{cell}: {error}"));
        println!("{cell}: {}", record.score);
        record
    })
}

fn each<T>(grids: &str, act: &mut Do<'_, T>) -> Vec<T> {
    let text = format!(
        "name = 'methods'\ntitle = 'Methods'\nrates = [0.6]\n\
         [task]\nname = 'micro'\nsamples = 400\n\
         [calibration]\nimages = {IMAGES}\nbatch = 32\n{grids}"
    );
    let registry = Zoo::new(&workspace_root().join("assets"), Default::default()).unwrap();
    let plan = Plan::parse(&text, "methods.toml", &[]).unwrap();
    let cells = plan.expand(&registry).unwrap();
    let (chosen, progress) = (choose(Choice::Flex).unwrap(), Progress::new(1, Mode::Quiet));
    let bench = Bench {
        chosen: &chosen,
        progress: &progress,
        sets: registry.sets(),
        policy: kernels::plan::KernelPolicy::auto(),
        memory: Memory::of_machine(),
    };
    let file = workspace_root().join("assets/micro/micro_resnet8.safetensors");
    let sparse = cells
        .iter()
        .filter(|planned| planned.cell.sparsity.is_some());
    sparse
        .map(|planned| {
            let work = tempfile::tempdir().unwrap();
            act(&bench, &planned.cell, &file, work.path())
        })
        .collect()
}

fn grid(name: &str, rest: &str) -> String {
    format!("[[grid]]\nname = '{name}'\ntrack = 'allocation'\nmodels = ['micro_resnet8']\n{rest}\n")
}

fn correct(record: &Record) -> u64 {
    record.score.counts.correct().unwrap()
}

#[test]
fn criteria_and_solvers_keep_counts_and_solvers_and_repairs_help() {
    let rest = |criterion: &str| {
        format!(
            "allocators = ['uniform']\ncriterion = {criterion}\nrepair = ['none', 'bn_re_estimation']"
        )
    };
    let records = measure(
        &[
            grid("magnitude", &rest("'magnitude'")),
            grid("wanda", &rest("'wanda'")),
            grid(
                "layer",
                &rest("{ name = 'wanda', group = 'layer', inputs = 'dense' }"),
            ),
            SOLVERS
                .map(|name| grid(name, &rest(&format!("'{name}'"))))
                .concat(),
        ]
        .concat(),
    );
    assert_eq!(records.len(), 2 * (3 + SOLVERS.len()));
    for (place, pair) in records.chunks(2).enumerate() {
        for (record, repaired) in pair.iter().zip([0, 1]) {
            let asked = (0.6 * record.cost.weights as f64 + 1e-9).floor() as u64;
            assert_eq!(record.cost.zeros, asked, "{}", record.cell);
            // Magnitude looks at nothing, everything else once; the repair is a pass of its own.
            let looks = u64::from(place > 0);
            let passes = (looks + repaired) * IMAGES;
            assert_eq!(record.budget.forward_passes, passes, "{}", record.cell);
            assert_eq!(record.budget.images, IMAGES * u64::from(passes > 0));
            assert_eq!((record.budget.labels, record.budget.gradient_steps), (0, 0));
        }
        assert_eq!(pair[0].layers, pair[1].layers, "a repair moves no zero");
        // Measuring norms again helps, unless a solver has left the layers' outputs nearly as they were: then norms of few
        // images cost up to two deviations of a share of 95 % of 400.
        let (before, after) = (correct(&pair[0]), correct(&pair[1]));
        let least = if place < 3 { before + 1 } else { before - 8 };
        assert!(after >= least, "{}: {before}, {after}", pair[0].cell);
    }
    let (magnitude, solved) = (&records[0], records[6..].iter().step_by(2));
    for solved in solved {
        assert!(correct(solved) > correct(magnitude), "{}", solved.cell);
    }
    // Within a row every row loses its share, so layers lose the same as by magnitude.
    assert_eq!(records[0].layers, records[2].layers);
}

#[test]
fn a_solver_follows_a_pattern_and_repeats_itself() {
    let solver = |name| grid(name, &format!("rates = ['2:4']\ncriterion = '{name}'"));
    let plan = [
        grid("magnitude", "rates = ['2:4']"),
        SOLVERS.map(solver).concat(),
    ]
    .concat();
    let (first, second) = (measure(&plan), measure(&plan));
    for solved in &first[1..] {
        assert_eq!(first[0].layers, solved.layers, "{}", solved.cell);
        assert!(correct(solved) > correct(&first[0]), "{}", solved.cell);
    }
    for (one, other) in first.iter().zip(&second) {
        assert_eq!((&one.layers, &one.score), (&other.layers, &other.score));
    }
}

#[test]
fn a_search_keeps_the_rate_and_does_not_get_worse() {
    let records = measure(
        &[
            grid("start", "allocators = ['l2norm']\nrepair = ['bn_re_estimation']"),
            grid(
                "search",
                "allocators = [{ name = 'evopress', generations = 6, offspring = 8, stages = [[32, 2], [128, 1]] }]\n\
                 repair = ['bn_re_estimation']",
            ),
        ]
        .concat(),
    );
    let [start, found] = [&records[0], &records[1]];
    assert_eq!(start.cost.zeros, found.cost.zeros);
    assert_ne!(start.layers, found.layers, "it went somewhere");
    assert_eq!(start.search, None);
    let search = found.search.as_ref().expect("a curve");
    let losses: Vec<f64> = search.0.iter().filter_map(|l| l.number()).collect();
    assert_eq!(losses.len(), 1 + 6, "the start and each generation");
    assert!(losses.is_sorted_by(|a, b| a >= b), "{losses:?}");
    // A few images more or less on the test split prove nothing: the search never saw it.
    assert!(correct(found) + 20 > correct(start));
    // Each trial measures norms and outputs: the start once, then eight on 32 images and two on 128 a generation.
    let trials = 2 * (128 + 6 * (8 * 32 + 2 * 128));
    assert_eq!(found.budget.forward_passes, trials + IMAGES);
}

/// The grids of FCPTS in short: each reading from two allocations.
fn learned(options: &str, rest: &str) -> String {
    grid(
        "learned",
        &format!(
            "allocators = ['erk', 'l2norm']\ncriterion = {{ name = 'fcpts', epochs = 12, learning_rate = 0.04{options} }}\n{rest}"
        ),
    )
}

#[test]
fn a_whole_method_learns_rates_and_weights_and_keeps_the_count() {
    let rates = "rates = [0.85]";
    let plain = grid("plain", &format!("allocators = ['erk', 'l2norm']\n{rates}"));
    let (plain, trained) = (measure(&plain), measure(&learned("", rates)));
    let dense = measure(&learned(", weights = 'dense'", rates));
    for ((plain, trained), dense) in plain.iter().zip(&trained).zip(&dense) {
        for record in [trained, dense] {
            assert_eq!(record.cost.zeros, plain.cost.zeros, "{}", record.cell);
            assert_ne!(record.layers, plain.layers, "{}: rates moved", record.cell);
            let curve = &record.training.as_ref().expect("a curve").0;
            assert_eq!(curve.len(), 12);
            assert!(curve[11].loss < curve[0].loss, "{curve:?}");
            assert!((curve[11].rate - 0.85).abs() < 0.02, "{curve:?}");
            // Four batches of 32: a step for each, in which both networks see them.
            let budget = record.budget;
            assert_eq!((budget.images, budget.labels), (IMAGES, 0));
            assert_eq!(budget.gradient_steps, 12 * 4);
            assert_eq!(budget.forward_passes, 2 * 12 * IMAGES);
        }
        // One training, read in two ways.
        assert_eq!(trained.training, dense.training);
        assert_eq!(trained.layers, dense.layers);
        assert!(correct(trained) > correct(plain) + 40, "{}", trained.cell);
        assert!(correct(trained) > correct(dense) + 40, "{}", trained.cell);
    }
    assert_ne!(trained[0].layers, trained[1].layers, "a start matters");
}

#[test]
fn an_exported_network_has_all_that_was_trained_or_nothing_of_it() {
    let tensors = |options: &str| {
        let exported = each(&learned(options, ""), &mut |bench, cell, file, work| {
            let exported = export(bench, cell, file, work).unwrap();
            let prunable = exported.layers.iter().map(|(key, _)| key.clone());
            let prunable: Vec<String> = prunable.collect();
            let out = work.join("exported.safetensors");
            exported.write(&out, cell, false).unwrap();
            let written = Container::open(&out).unwrap();
            let values = written.keys().into_iter().map(|key| {
                let values = written.read(&key).unwrap();
                (key, values)
            });
            (prunable, values.collect::<Vec<(String, Vec<f32>)>>())
        });
        exported.into_iter().next().unwrap()
    };
    let file = workspace_root().join("assets/micro/micro_resnet8.safetensors");
    let file = Container::open(&file).unwrap();
    let (_, trained) = tensors("");
    let (prunable, dense) = tensors(", weights = 'dense'");
    assert_eq!(trained.len(), dense.len());
    for ((key, trained), (same, dense)) in trained.iter().zip(&dense) {
        assert_eq!(key, same);
        let old = file.read(key).unwrap();
        assert_ne!(*trained, old, "{key} was trained");
        match prunable.contains(key) {
            // What stays is the file's own, to the bit.
            true => {
                assert!(
                    dense
                        .iter()
                        .zip(&old)
                        .all(|(new, old)| *new == 0.0 || new == old)
                );
                let zeros = |values: &[f32]| values.iter().filter(|v| **v == 0.0).count();
                assert_eq!(zeros(trained), zeros(dense), "{key}");
            }
            false => assert_eq!(*dense, old, "{key} was left alone"),
        }
    }
}

#[test]
fn switches_of_a_whole_method_are_other_methods() {
    let of = |options: &str| {
        let records = measure(&learned(options, ""));
        let curve = records[0].training.clone().unwrap();
        (records[0].layers.clone(), curve)
    };
    let plain = of("");
    for options in [
        ", mask_grad = 'none'",
        ", mask_grad = 'both'",
        ", bridge = 'kde'",
        ", teacher = 'train'",
        ", loss = 'mse'",
        ", lambda = 3",
        ", batch = 64",
    ] {
        let (layers, curve) = of(options);
        assert!(layers != plain.0 && curve != plain.1, "{options}");
    }
    assert!(of("") == plain, "a seed is a result");
}

#[test]
fn a_whole_method_takes_no_more_images_than_there_are() {
    let errors = each(
        &learned(", batch = 256", ""),
        &mut |bench, cell, file, work| bench.measure(cell, file, work).unwrap_err().to_string(),
    );
    for part in ["`fcpts`", "256 images", "128", "`batch`"] {
        assert!(errors[0].contains(part), "{errors:?}");
    }
}

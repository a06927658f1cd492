//! The files under `assets/micro` against what they say of themselves and what `docs/micro-zoo.md` says of them.

use std::path::Path;

use burn::tensor::Device;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::weights::Container;
use model_zoo::{Boxes, Classes, Classifier, Modality, Noise, Of, Tokens};

use super::lesson::Taught;
use super::{EpochLog, Recipe, json, top1};
use crate::data::synthetic::MicroSet;

/// What the files of a built-in network say.
struct Stored {
    top1: f64,
    weights: u64,
    bytes: u64,
    /// Its row in `docs/micro-zoo.md`.
    row: String,
}

/// A built-in network's file and log, which must be of its recipe.
struct File {
    source: Container,
    log: Vec<EpochLog>,
    bytes: u64,
}

impl File {
    fn of(folder: &Path, spec: &Spec) -> Self {
        let file = folder.join(format!("{}.safetensors", spec.name));
        let source = Container::open(&file).unwrap();
        let recipe = Recipe::micro(spec.name);
        assert_eq!(source.metadata()["model"], spec.name);
        assert_eq!(source.metadata()["recipe"], json(&recipe));
        let log = folder.join(format!("{}.log.jsonl", spec.name));
        let log: Vec<EpochLog> = std::fs::read_to_string(log)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(log.len(), recipe.epochs);
        let bytes = std::fs::metadata(file).unwrap().len();
        Self { source, log, bytes }
    }
}

fn loaded<M: Modality, N: Of<M>>(network: N, source: &Container) -> N {
    let names = network.clone();
    model_zoo::weights::load(network, |path| names.key(path), source).unwrap()
}

fn minutes(log: &[EpochLog]) -> String {
    let seconds: Option<f64> = log.iter().map(|epoch| epoch.seconds).sum();
    seconds.map_or("-".to_owned(), |s| format!("{:.1} min", s / 60.0))
}

/// The row of a detector or generator in `docs/micro-zoo.md`.
struct Other<'a>(&'a Path);

impl Other<'_> {
    /// Scores the file again if `again`.
    fn row<M: Taught, N: Of<M>>(&self, spec: &Spec, network: N, again: bool) -> Option<String> {
        let File { source, log, bytes } = File::of(self.0, spec);
        let network = loaded::<M, N>(network, &source);
        let mut metadata = source.metadata().iter();
        let (metric, said) = metadata
            .find_map(|(key, said)| Some((key.strip_prefix("test_")?, said)))
            .unwrap();
        let said: f64 = said.parse().unwrap();
        if again {
            let (found, score) = M::test(spec, &network, &Device::flex()).unwrap();
            assert_eq!(found, metric);
            // Other processors round differently.
            assert!((score - said).abs() <= 0.1, "{}: {score}", spec.name);
        }
        let counts = spec.counts();
        Some(format!(
            "| `{}` | {} | {} | {:.1} | {said:.2} | {} | {} | {} |",
            spec.name,
            metric.replace('_', " "),
            counts.weights,
            counts.macs as f64 / 1e6,
            log.len(),
            minutes(&log),
            bytes.div_ceil(1000)
        ))
    }
}

impl Visit<Classes> for Other<'_> {
    type Out = Option<String>;
    fn visit<N: Classifier>(self, _: &'static Spec, _: N) -> Option<String> {
        None
    }
}

impl Visit<Boxes> for Other<'_> {
    type Out = Option<String>;
    fn visit<N: Of<Boxes>>(self, spec: &'static Spec, network: N) -> Option<String> {
        self.row::<Boxes, N>(spec, network, true)
    }
}

impl Visit<Noise> for Other<'_> {
    type Out = Option<String>;
    /// Its images take a minute to draw, and the shipped records have a distance of the same file.
    fn visit<N: Of<Noise>>(self, spec: &'static Spec, network: N) -> Option<String> {
        self.row::<Noise, N>(spec, network, false)
    }
}

impl Visit<Tokens> for Other<'_> {
    type Out = Option<String>;
    fn visit<N: Of<Tokens>>(self, _: &'static Spec, _: N) -> Option<String> {
        None
    }
}

/// Loads a built-in network's file, compares score, recipe and log.
struct Check<'a>(&'a Path);

impl Visit<Classes> for Check<'_> {
    type Out = Stored;

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> Stored {
        let File { source, log, bytes } = File::of(self.0, spec);
        let network = loaded::<Classes, N>(network, &source);
        let score = top1(&network, MicroSet::TEST, &Device::flex()).unwrap();
        let said: f64 = source.metadata()["test_top1"].parse().unwrap();
        // Four images of 4,000: other processors round differently, and some logits are nearly equal.
        assert!(
            (score - said).abs() <= 0.1,
            "{}: {score}, not {said}",
            spec.name
        );
        let validation = log.last().unwrap().score("validation_top1").unwrap();
        // As many images, which training did not see either.
        assert!((validation - said).abs() <= 2.0, "{validation}, not {said}");
        let time = minutes(&log);
        let counts = spec.counts();
        Stored {
            top1: score,
            weights: counts.weights,
            bytes,
            row: format!(
                "| {} | `{}` | {} | {:.1} | {validation:.2} | {said:.2} | {} | {time} | {} |",
                spec.family,
                spec.name,
                counts.weights,
                counts.macs as f64 / 1e6,
                log.len(),
                bytes.div_ceil(1000)
            ),
        }
    }
}

/// A table of built-in networks in `docs/micro-zoo.md`, found by how it begins; `PTSBENCH_UPDATE_SNAPSHOTS=1` writes it again.
fn check_table(begins: &str, columns: &str, rows: &[String]) {
    let places = columns.matches('|').count() + begins.matches('|').count() - 1;
    let words = begins.matches('|').count() - 1;
    let rule: String = (0..places)
        .map(|place| if place < words { " --- |" } else { " ---: |" })
        .collect();
    let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let table = format!("{begins}{columns}\n|{rule}\n{rows}");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/micro-zoo.md");
    let text = std::fs::read_to_string(&file).unwrap();
    if std::env::var_os("PTSBENCH_UPDATE_SNAPSHOTS").is_some() {
        let begin = text.find(begins).unwrap();
        let length = text[begin..]
            .find("\n\n")
            .map_or(text.len() - begin, |at| at + 1);
        let new = format!("{}{table}{}", &text[..begin], &text[begin + length..]);
        std::fs::write(&file, new).unwrap();
        return;
    }
    assert!(
        text.contains(&table),
        "docs/micro-zoo.md has another table; PTSBENCH_UPDATE_SNAPSHOTS=1 writes it again:\n{table}"
    );
}

/// The family whose sizes span less than a factor of eight: 7.9.
const NARROW: &str = "MobileNetV2";
/// The network with less than 100,000 weights.
const SMALL: &str = "micro_vgg7_bn";

#[test]
fn stored_networks_score_what_their_files_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/micro");
    let built_in = catalog::all()
        .iter()
        .filter(|spec| spec.weights == catalog::Weights::BuiltIn && spec.does() == Classes::DOES);
    let mut stored: Vec<(&Spec, Stored)> = Vec::new();
    for spec in built_in {
        let one = spec
            .open_classes(&Device::flex(), "they are trained", Check(&folder))
            .unwrap();
        stored.push((spec, one));
    }
    assert!(stored.iter().map(|(_, one)| one.bytes).sum::<u64>() < 40_000_000);
    let sizes = || stored.iter().filter(|(spec, _)| !spec.stands_aside());
    for (spec, one) in sizes() {
        let least = if spec.family.ends_with("iT") {
            85.0
        } else {
            90.0
        };
        assert!(one.top1 >= least, "{}: {} %", spec.name, one.top1);
        assert_ne!(
            (100_000..=2_000_000).contains(&one.weights),
            SMALL == spec.name,
            "{}",
            spec.name
        );
        let family: Vec<&Stored> = sizes()
            .filter(|(other, _)| other.family == spec.family)
            .map(|(_, one)| one)
            .collect();
        if spec.family.ends_with("iT") {
            continue;
        }
        assert_eq!(family.len(), 3, "{}", spec.family);
        assert_ne!(
            family[2].weights >= 8 * family[0].weights,
            NARROW == spec.family,
            "{}",
            spec.family
        );
        let top1 = family.iter().map(|one| one.top1);
        assert!(top1.is_sorted(), "{}", spec.family);
    }
    let rows: Vec<String> = stored.into_iter().map(|(_, one)| one.row).collect();
    let columns = " Prunable weights | Multiply-adds, M | Validation, % | Test, % | Epochs | Training | File, kB |";
    check_table("| Family | Network |", columns, &rows);

    // One after the other: both write the same file.
    let all = catalog::all().iter();
    let rows: Vec<String> = all
        .filter(|spec| spec.weights == catalog::Weights::BuiltIn && spec.does() != Classes::DOES)
        .filter_map(|spec| spec.open(&Device::flex(), Other(&folder)))
        .collect();
    assert!(rows.len() >= 5);
    let columns = " Prunable weights | Multiply-adds, M | Test | Epochs | Training | File, kB |";
    check_table("| Network | Metric |", columns, &rows);
}

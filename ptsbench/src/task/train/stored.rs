//! The files under `assets/micro` against what they say of themselves and what `docs/micro-zoo.md` says of them.

use std::path::Path;

use burn::tensor::Device;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::weights::Container;
use model_zoo::{Classes, Classifier, Modality};

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

/// Loads a built-in network's file, compares score, recipe and log.
struct Check<'a>(&'a Path);

impl Visit<Classes> for Check<'_> {
    type Out = Stored;

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> Stored {
        let file = self.0.join(format!("{}.safetensors", spec.name));
        let source = Container::open(&file).unwrap();
        let names = network.clone();
        let network = model_zoo::weights::load(network, |path| names.key(path), &source).unwrap();
        let score = top1(&network, MicroSet::TEST, &Device::flex()).unwrap();
        let metadata = source.metadata();
        let said: f64 = metadata["test_top1"].parse().unwrap();
        // Four images of 4,000: other processors round differently, and some logits are nearly equal.
        assert!(
            (score - said).abs() <= 0.1,
            "{}: {score}, not {said}",
            spec.name
        );
        assert_eq!(metadata["model"], spec.name);
        assert_eq!(metadata["recipe"], json(&Recipe::micro(spec.name)));

        let log = self.0.join(format!("{}.log.jsonl", spec.name));
        let log: Vec<EpochLog> = std::fs::read_to_string(log)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(log.len(), Recipe::micro(spec.name).epochs);
        let validation = log.last().unwrap().score("validation_top1").unwrap();
        // As many images, which training did not see either.
        assert!((validation - said).abs() <= 2.0, "{validation}, not {said}");
        let bytes = std::fs::metadata(file).unwrap().len();
        let seconds: Option<f64> = log.iter().map(|epoch| epoch.seconds).sum();
        let time = seconds.map_or("-".to_owned(), |s| format!("{:.1} min", s / 60.0));
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

/// The table of the built-in networks in `docs/micro-zoo.md`; `PTSBENCH_UPDATE_SNAPSHOTS=1` writes it again.
fn check_table(rows: &[String]) {
    const HEAD: &str = "| Family | Network | Prunable weights | Multiply-adds, M | Validation, % | Test, % | Epochs | Training | File, kB |\n\
                        | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/micro-zoo.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let table = format!("{HEAD}{rows}");
    if std::env::var_os("PTSBENCH_UPDATE_SNAPSHOTS").is_some() {
        let begin = text.find("| Family |").unwrap();
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
        assert!(
            (100_000..=2_000_000).contains(&one.weights),
            "{}",
            spec.name
        );
        let family: Vec<&Stored> = sizes()
            .filter(|(other, _)| other.family == spec.family)
            .map(|(_, one)| one)
            .collect();
        assert_eq!(family.len(), 3, "{}", spec.family);
        assert!(
            family[2].weights >= 8 * family[0].weights,
            "{}",
            spec.family
        );
        let top1 = family.iter().map(|one| one.top1);
        assert!(top1.is_sorted(), "{}", spec.family);
    }
    let rows: Vec<String> = stored.into_iter().map(|(_, one)| one.row).collect();
    check_table(&rows);
}

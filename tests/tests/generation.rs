//! Generated images: `evaluate`, `run` and `generate` on networks with random weights, whose images are noise, but the same
//! noise every time.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::clip_text;
use model_zoo::vae;
use model_zoo::weights::{self, Container, Named, Source, save};
use model_zoo::{Modality, Network, Of};
use ptsbench::data::synthetic::generation;
use ptsbench_tests::files::png;
use ptsbench_tests::{program, workspace_root};
use serde_json::Value;

const MODEL: &str = "micro_unet_s";
const METRIC: &str = "fd_random_conv";

/// Writes a network as it is before any training.
struct Save<'a>(&'a std::path::Path);

impl<M: Modality> Visit<M> for Save<'_> {
    type Out = ();

    fn visit<N: Of<M>>(self, _: &'static Spec, network: N) {
        save(&network, |path| network.key(path), self.0, &BTreeMap::new()).unwrap();
    }
}

/// A folder with the weights of a network.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new(model: &str) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        let device = Device::flex();
        device.seed(0);
        fs::create_dir(desk.path("unet")).unwrap();
        let spec = catalog::find(model).unwrap();
        spec.open(&device, Save(&desk.path("unet/model.safetensors")));
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = program::command();
        let assets = workspace_root().join("assets");
        command.current_dir(self.0.path()).args(line.split(' '));
        command.args(["--device", "flex", "--assets"]).arg(assets);
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn good(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", complaint(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn evaluate(&self, line: &str) -> Value {
        let line = format!("evaluate {line} --json");
        serde_json::from_str(&self.good(&line)).unwrap()
    }

    fn refused(&self, line: &str, words: &[&str]) {
        let output = self.run(line);
        let text = complaint(&output);
        assert_eq!(output.status.code(), Some(1), "{line}: {text}");
        for word in words {
            assert!(text.contains(word), "{line}: {word:?} is missing in {text}");
        }
    }

    /// The records of a store, by the rate of their cells; the dense one's is 0.
    fn records(&self, store: &str) -> Vec<Value> {
        let mut files = vec![self.path(store)];
        let mut records = Vec::new();
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(
                    fs::read_dir(path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            } else if path.extension().is_some_and(|ending| ending == "json") {
                let text = fs::read_to_string(path).unwrap();
                let record: Value = serde_json::from_str(&text).unwrap();
                records.extend(record.get("score").is_some().then_some(record));
            }
        }
        records
    }
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_interrupted_evaluation_gives_what_a_whole_one_gives() {
    let desk = Desk::new(MODEL);
    let line =
        format!("{MODEL} --weights unet/model.safetensors --data micro_generation --samples 12");
    let whole = desk.evaluate(&line);
    assert_eq!(whole["metric"], METRIC);
    assert_eq!(whole["images"], 12);
    assert_eq!(whole["reference"], generation::LEN);
    assert!(whole["value"].as_f64().unwrap() > 0.0, "{whole}");
    let recipe = whole["recipe"].as_str().unwrap();
    assert!(recipe.contains("20 steps (trailing)"), "{recipe}");
    assert!(recipe.ends_with("features of random_conv"), "{recipe}");
    // The built-in images of its kind are the default.
    assert_eq!(
        desk.evaluate(&line.replace(" --data micro_generation", ""))["value"],
        whole["value"]
    );

    let resumed = format!("{line} --batch 2 --resume kept.json");
    let mut child = desk
        .command(&format!("evaluate {resumed}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let so_far = || {
        let text = fs::read_to_string(desk.path("kept.json")).unwrap_or_default();
        let kept: Value = serde_json::from_str(&text).unwrap_or_default();
        kept["so_far"]["images"].as_u64().unwrap_or(0)
    };
    let start = Instant::now();
    while so_far() == 0 && start.elapsed() < Duration::from_secs(300) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let before = so_far();
    assert!(0 < before && before < 12, "{before}");

    let report = desk.evaluate(&resumed);
    assert_eq!(report["evaluated"], 12 - before);
    assert_eq!(report["value"], whole["value"]);
    // Done: nothing is generated again.
    let again = desk.evaluate(&resumed);
    assert_eq!(
        (&again["evaluated"], &again["value"]),
        (&0.into(), &whole["value"])
    );

    let kept = fs::read_to_string(desk.path("kept.json")).unwrap();
    let sums = kept.find("\"sums\": \"").unwrap() + 9;
    let mut damaged = kept.into_bytes();
    damaged[sums] ^= 1;
    fs::write(desk.path("kept.json"), damaged).unwrap();
    desk.refused(
        &format!("evaluate {resumed}"),
        &["kept.json", "damaged", "--resume"],
    );
}

#[test]
fn a_plan_measures_pruned_and_reconstructed_generators() {
    let desk = Desk::new(MODEL);
    let plan = r#"
name = "generation"
title = "Generators"

[task]
name = "micro_generation"
samples = 4

[calibration]
images = 8
batch = 4

[fit.few]
optimizer = "adam"
lr = 0.0005
bias_lr = 0.0005
steps = 3
early_stop = 0.0

[[grid]]
name = "allocation"
track = "allocation"
models = ["micro_unet_s"]
rates = [0.6]
allocators = ["uniform"]
criterion = "wanda"

[[grid]]
name = "reconstruction"
track = "reconstruction"
models = ["micro_unet_s"]
rates = [0.6]
allocators = ["uniform"]
granularity = ["block"]
fit = "few"
"#;
    fs::write(desk.path("plan.toml"), plan).unwrap();
    let line = format!("run plan.toml --store records --weights {MODEL}=unet/model.safetensors");
    desk.good(&line);
    let records = desk.records("records");
    // The dense network, Wanda's, and magnitude's with its reconstruction.
    assert_eq!(records.len(), 4);
    for record in &records {
        let score = &record["score"];
        assert_eq!(
            (&score["metric"], &score["better"]),
            (&METRIC.into(), &"lower".into())
        );
        assert!(score["value"].as_f64().unwrap() > 0.0, "{score}");
        assert_eq!(score["counts"]["of"], "generated");
        assert_eq!(score["counts"]["total"], 4);
        let task = &record["cell"]["task"];
        assert!(
            task["data"].is_string() && task["recipe"].is_string(),
            "{task}"
        );
    }
    let fitted = |record: &&Value| !record["units"].as_array().unwrap().is_empty();
    assert_eq!(records.iter().filter(fitted).count(), 1);
    for unit in records.iter().find(fitted).unwrap()["units"]
        .as_array()
        .unwrap()
    {
        let [before, after] = ["loss_before", "loss_after"].map(|key| unit[key].as_f64().unwrap());
        assert!(after < before, "{unit}");
    }
}

#[test]
fn a_network_that_gives_no_numbers_has_collapsed() {
    let desk = Desk::new(MODEL);
    // Weights that are numbers, and too large for what is computed with them to be some.
    let container = Container::open(&desk.path("unet/model.safetensors")).unwrap();
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
    weights::write(&desk.path("large.safetensors"), &large, &BTreeMap::new()).unwrap();
    let line = format!("{MODEL} --weights large.safetensors --data micro_generation --samples 2");
    let report = desk.evaluate(&line);
    assert_eq!(
        (&report["value"], &report["lost"]),
        (&"collapsed".into(), &2.into())
    );
    let said = desk.good(&format!("evaluate {line}"));
    assert!(said.contains(&format!("{METRIC}: collapsed, 2 ")), "{said}");
    let line = format!("generate {MODEL} --weights large.safetensors --count 2 --steps 2 -o none");
    desk.refused(&line, &["2 of 2 images", "no numbers"]);
    assert!(!desk.path("none").exists());
}

#[test]
fn generated_pictures_are_the_same_every_time() {
    let desk = Desk::new(MODEL);
    let line = |more: &str| {
        format!("generate {MODEL} --weights unet/model.safetensors --steps 3 --count 5 {more}")
    };
    let said = desk.good(&line("-o one"));
    assert!(
        said.starts_with("one: 5 of 5 images by micro_unet_s (DDIM, 3 steps"),
        "{said}"
    );
    desk.good(&line("-o two/below"));
    desk.good(&line("--seed 1 -o other"));
    let read = |name: String| fs::read(desk.path(&name)).unwrap();
    let mut names: Vec<String> = (0..5).map(|at| format!("{at:04}.png")).collect();
    names.push("sheet.png".to_owned());
    for name in &names {
        let one = read(format!("one/{name}"));
        assert_eq!(&one[1..4], b"PNG");
        assert_eq!(one, read(format!("two/below/{name}")), "{name}");
        assert_ne!(one, read(format!("other/{name}")), "{name}");
    }
    assert_eq!(fs::read_dir(desk.path("one")).unwrap().count(), names.len());

    // What is there stays, unless it may go.
    desk.refused(&line("--seed 1 -o one"), &["one/0000.png", "--force"]);
    desk.good(&line("--seed 1 --force -o one"));
    assert_eq!(
        read("one/0003.png".to_owned()),
        read("other/0003.png".to_owned())
    );

    desk.refused(&line("--prompt church -o x"), &["noise alone", "--prompt"]);
    desk.refused(
        &line("-o x").replace("--steps 3", "--steps 0"),
        &["1 to 1000"],
    );
    desk.refused(
        "generate micro_resnet8 -o x",
        &["names classes", "`generate` makes pictures"],
    );
    desk.refused(&line("-o unet/model.safetensors"), &["is no folder"]);
}

/// The folders of a pipeline around a small UNet: an autoencoder, a text encoder and a tokenizer of single bytes.
fn pipeline(desk: &Desk) {
    let device = Device::flex();
    let part = |network: &dyn Fn(&std::path::Path), folder: &str, name: &str| {
        fs::create_dir(desk.path(folder)).unwrap();
        network(&desk.path(&format!("{folder}/{name}")));
    };
    let of = |sizes: &str| catalog_sizes(sizes);
    let (autoencoder, encoder) = of("tiny_unet");
    let save_autoencoder = |file: &std::path::Path| {
        let network = autoencoder.init(&device);
        save(&network, |path| network.key(path), file, &BTreeMap::new()).unwrap();
    };
    let save_encoder = |file: &std::path::Path| {
        let network = encoder.init(&device);
        save(&network, |path| network.key(path), file, &BTreeMap::new()).unwrap();
    };
    part(
        &save_autoencoder,
        "vae",
        "diffusion_pytorch_model.safetensors",
    );
    part(&save_encoder, "text_encoder", "model.safetensors");
    fs::create_dir(desk.path("tokenizer")).unwrap();
    let mut vocabulary = serde_json::Map::new();
    for letter in b'!'..=b'~' {
        let letter = char::from(letter).to_string();
        for token in [letter.clone(), format!("{letter}</w>")] {
            let id = vocabulary.len();
            vocabulary.insert(token, id.into());
        }
    }
    for token in ["<|startoftext|>", "<|endoftext|>"] {
        let id = vocabulary.len();
        vocabulary.insert(token.to_owned(), id.into());
    }
    let text = Value::Object(vocabulary).to_string();
    fs::write(desk.path("tokenizer/vocab.json"), text).unwrap();
    fs::write(desk.path("tokenizer/merges.txt"), "#version: 0.2\n").unwrap();
}

fn catalog_sizes(model: &str) -> (&'static vae::Size, &'static clip_text::Size) {
    assert_eq!(model, "tiny_unet");
    let autoencoder = vae::SIZES.iter().find(|size| size.name == "tiny_vae");
    let encoder = clip_text::SIZES
        .iter()
        .find(|size| size.name == "tiny_unet_text_encoder");
    (autoencoder.unwrap(), encoder.unwrap())
}

#[test]
fn a_pipeline_makes_images_of_texts() {
    let desk = Desk::new("tiny_unet");
    let weights = "tiny_unet --weights unet/model.safetensors";
    // The set: prompts, pictures to compare with, and the network whose features are compared.
    fs::create_dir(desk.path("set")).unwrap();
    let long = "a very long text ".repeat(9);
    fs::write(
        desk.path("set/prompts.txt"),
        format!("a red square\n\n{long}\na blue disc\n"),
    )
    .unwrap();
    let set = format!("evaluate {weights} --data set --json");
    desk.refused(&set, &["no weights of the network", "pt_inception"]);
    let features = workspace_root().join("assets/micro/micro_resnet8.safetensors");
    fs::copy(features, desk.path("set/micro_resnet8.safetensors")).unwrap();
    desk.refused(&set, &["nothing to compare", ".npz"]);
    for index in 0..6 {
        let picture = generation::picture(index);
        let file = desk.path(&format!("set/images/{index}.png"));
        png(&file, [picture.width, picture.height], &picture.pixels);
    }
    // A part that is missing is named.
    desk.refused(&set, &["autoencoder", "vae", "pipeline"]);
    pipeline(&desk);
    let merges = desk.path("tokenizer/merges.txt");
    fs::rename(&merges, desk.path("elsewhere")).unwrap();
    desk.refused(&set, &["tokenizer", "merges.txt"]);
    fs::rename(desk.path("elsewhere"), &merges).unwrap();

    let output = desk.run(&set);
    let said = complaint(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 of 3 prompts"), "{said}");
    assert!(said.contains("prompt 2"), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["data"], "sd2_text");
    assert_eq!(report["metric"], "fd_micro_resnet8");
    assert_eq!(
        (&report["images"], &report["reference"]),
        (&3.into(), &6.into())
    );
    let recipe = report["recipe"].as_str().unwrap();
    assert!(recipe.contains("guidance 7.5, parts "), "{recipe}");

    // Statistics stand for the pictures, and the task may be named.
    desk.good("fid set/images --features micro_resnet8 --save-stats stats.npz");
    fs::remove_dir_all(desk.path("set/images")).unwrap();
    fs::rename(desk.path("stats.npz"), desk.path("set/stats.npz")).unwrap();
    let again = desk.evaluate(&format!("{weights} --data sd2_text=set"));
    let [one, other] = [&report, &again].map(|report| report["value"].as_f64().unwrap());
    assert!((one - other).abs() < 1e-6 * one, "{one} {other}");
    assert_eq!(again["reference"], 0);
    assert_ne!(again["list"], report["list"]);

    // Pictures of texts, with and without guidance.
    let line = |more: &str| format!("generate {weights} --steps 3 {more}");
    desk.refused(&line("-o x"), &["--prompt"]);
    desk.good(&line("--prompts set/prompts.txt -o texts"));
    desk.good(&line("--prompt disc --count 2 --guidance 1 -o plain"));
    desk.good(&line("--prompt disc --count 2 -o guided"));
    assert_eq!(fs::read_dir(desk.path("texts")).unwrap().count(), 4);
    let read = |name: &str| fs::read(desk.path(name)).unwrap();
    assert_ne!(read("plain/0000.png"), read("guided/0000.png"));
    assert_ne!(read("plain/0000.png"), read("plain/0001.png"));
}

#[test]
fn networks_and_tasks_that_do_not_fit_are_told_apart() {
    let desk = Desk::new(MODEL);
    let weights = "--weights unet/model.safetensors";
    desk.refused(
        &format!("evaluate {MODEL} {weights} --data micro"),
        &["predicts noise", "names classes"],
    );
    desk.refused(
        "evaluate micro_resnet8 --data micro_generation",
        &["names classes", "predicts noise"],
    );
    desk.refused(
        &format!("evaluate {MODEL} {weights} --data lsun_church"),
        &["lsun_church", "--data lsun_church=DIR"],
    );
    desk.refused(
        &format!("evaluate {MODEL} {weights} --samples 10001"),
        &["10001", "10000"],
    );
    let other = Desk::new("tiny_unet");
    other.refused(
        &format!("evaluate tiny_unet {weights} --data micro_generation"),
        &["makes 4x8x8 of texts", "3x32x32 of noise alone"],
    );
}

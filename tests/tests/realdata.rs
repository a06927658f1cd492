//! `ptsbench evaluate` and `run` on data sets in folders: the built-in images, written as an ImageNet of twenty classes,
//! must give the numbers that they give built in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::weights::save;
use model_zoo::{Modality, Of};
use ptsbench::data::synthetic::{CLASSES, MicroSet};
use ptsbench_tests::files::built_in;
use ptsbench_tests::{program, workspace_root};
use serde_json::Value;

#[path = "realdata/folders.rs"]
mod folders;

const MODEL: &str = "micro_resnet8";

fn class(label: usize) -> String {
    format!("n{:08}", 90_000_000 + label)
}

/// A folder with the first test images in class folders.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new(validation: usize) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        for index in 0..validation {
            built_in(&desk.picture(index), MicroSet::TEST, index);
        }
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn picture(&self, index: usize) -> PathBuf {
        let label = MicroSet::TEST.label(index).into();
        self.path(&format!("set/val/{}/val_{index:05}.png", class(label)))
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

    /// The JSON that an evaluation prints, and its exit code.
    fn evaluate(&self, line: &str) -> (Value, Option<i32>) {
        let output = self.run(&format!("evaluate {line} --json"));
        let report = serde_json::from_slice(&output.stdout);
        let report = report.unwrap_or_else(|_| panic!("{line}: {}", said(&output)));
        (report, output.status.code())
    }

    fn refused(&self, line: &str, words: &[&str]) {
        let output = self.run(line);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{line}: {text}");
        for word in words {
            assert!(text.contains(word), "{line}: {word:?} is missing in {text}");
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_folder_gives_the_numbers_of_the_same_images_built_in() {
    const COUNT: usize = 200;
    let desk = Desk::new(COUNT);
    let (built_in, _) = desk.evaluate(&format!("{MODEL} --samples {COUNT}"));
    let (folder, code) = desk.evaluate(&format!("{MODEL} --data set --batch 7"));
    assert_eq!(code, Some(0));
    for key in ["images", "correct1", "correct5", "top1", "top5", "sha256"] {
        assert_eq!(folder[key], built_in[key], "{key}");
    }
    assert!(built_in["top1"].as_f64().unwrap() > 50.0, "{built_in}");
    assert_eq!(folder["data"], "imagenet");
    assert_eq!(folder["available"], COUNT);
    assert!(folder["recipe"].as_str().unwrap().contains("crop 32"));

    // Flat, with a list of truth: the same set, in the same order.
    let names: Vec<PathBuf> = (0..COUNT).map(|index| desk.picture(index)).collect();
    fs::create_dir_all(desk.path("flat/val")).unwrap();
    let mut truth = "ImageId,PredictionString\n".to_owned();
    for (index, from) in names.iter().enumerate().rev() {
        let name = from.file_name().unwrap();
        fs::copy(from, desk.path("flat/val").join(name)).unwrap();
        let label = MicroSet::TEST.label(index).into();
        let stem = from.file_stem().unwrap().to_str().unwrap();
        truth += &format!("{stem},{} 1 2 3 4\n", class(label));
    }
    let mapping: String = (0..CLASSES).map(|label| class(label) + " name\n").collect();
    fs::write(desk.path("flat/LOC_val_solution.csv"), truth).unwrap();
    fs::write(desk.path("flat/LOC_synset_mapping.txt"), mapping).unwrap();
    let samples = |data: &str, batch: usize| {
        desk.evaluate(&format!(
            "{MODEL} --data {data} --samples 60 --batch {batch}"
        ))
        .0
    };
    let (sorted, flat) = (samples("set", 60), samples("flat", 9));
    for key in ["list", "images", "correct1", "correct5", "available"] {
        assert_eq!(sorted[key], flat[key], "{key}");
    }
    assert_eq!(sorted["images"], 60);
    // Sorted by class, the first 60 of 200 would be of six classes, and an accuracy of another set.
    let right = sorted["correct1"].as_f64().unwrap() / 60.0;
    let all = folder["correct1"].as_f64().unwrap() / COUNT as f64;
    assert!((right - all).abs() < 0.2, "{right} of {all}");
}

#[test]
fn unreadable_pictures_count_as_not_classified() {
    const COUNT: usize = 100;
    let desk = Desk::new(COUNT);
    let (whole, _) = desk.evaluate(&format!("{MODEL} --data set"));
    fs::write(desk.picture(3), "no image at all").unwrap();
    let cut = fs::read(desk.picture(8)).unwrap();
    fs::write(desk.picture(8), &cut[..cut.len() / 2]).unwrap();
    let line = format!("evaluate {MODEL} --data set --batch 16");
    let output = desk.run(&line);
    assert_eq!(output.status.code(), Some(1));
    let text = said(&output);
    for words in ["val_00003.png", "val_00008.png", "2 of 100 images"] {
        assert_eq!(text.matches(words).count(), 1, "{words}: {text}");
    }
    let (damaged, code) = desk.evaluate(&format!("{MODEL} --data set"));
    assert_eq!(code, Some(1));
    assert_eq!(damaged["images"], COUNT);
    assert_eq!(damaged["unreadable"].as_array().unwrap().len(), 2);
    let hits = |report: &Value| report["correct5"].as_u64().unwrap();
    assert!((hits(&whole) - 2..=hits(&whole)).contains(&hits(&damaged)));
    let percent = 100.0 * hits(&damaged) as f64 / COUNT as f64;
    assert_eq!(damaged["top5"], percent);
    assert_ne!(damaged["list"], whole["list"]);
}

#[cfg(unix)]
#[test]
fn a_killed_evaluation_goes_on_where_it_stopped() {
    const COUNT: usize = 2000;
    let desk = Desk::new(COUNT);
    // Unreadable ones must survive the interruption, too.
    for index in 0..20 {
        fs::write(desk.picture(index * 90), "").unwrap();
    }
    let (whole, _) = desk.evaluate(&format!("{MODEL} --data set"));
    // Starts an evaluation, sends it a signal once it has kept something new, and says how far it was.
    let stop = |signal: &str, batch: usize, before: u64| -> (u64, Option<i32>) {
        let so_far = || {
            let text = fs::read_to_string(desk.path("kept/half.json")).unwrap_or_default();
            let kept: Value = serde_json::from_str(&text).unwrap_or_default();
            kept["so_far"]["images"].as_u64().unwrap_or(0)
        };
        let resume = "--resume kept/half.json";
        let mut child = desk
            .command(&format!(
                "evaluate {MODEL} --data set --batch {batch} {resume}"
            ))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while so_far() == before && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let id = child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.unwrap().success());
        let code = child.wait().unwrap().code();
        let after = so_far();
        assert!(before < after && after < COUNT as u64, "{before} {after}");
        (after, code)
    };
    let (before, code) = stop("-KILL", 5, 0);
    assert_eq!(code, None);
    // A Ctrl-C keeps the last batch, too.
    let (before, code) = stop("-INT", 3, before);
    assert_eq!(code, Some(130));

    let resumed = format!("{MODEL} --data set --resume kept/half.json");
    let (report, code) = desk.evaluate(&resumed);
    assert_eq!(code, Some(1));
    for key in ["images", "correct1", "correct5", "list"] {
        assert_eq!(report[key], whole[key], "{key}");
    }
    assert_eq!(report["evaluated"], COUNT as u64 - before);
    assert_eq!(report["unreadable"].as_array().unwrap().len(), 20);
    // Done: nothing is evaluated again.
    let (again, _) = desk.evaluate(&resumed);
    assert_eq!(again["evaluated"], 0);
    assert_eq!(again["correct1"], whole["correct1"]);

    let other = format!("evaluate {MODEL} --data set --resume kept/half.json --samples 50");
    desk.refused(&other, &["half.json", "samples is 2000", "is 50"]);
    fs::write(desk.picture(1), "changed").unwrap();
    desk.refused(&format!("evaluate {resumed}"), &["its data is", "--resume"]);
}

#[test]
fn sets_that_do_not_fit_are_refused_with_numbers() {
    let desk = Desk::new(19);
    desk.refused(
        &format!("evaluate {MODEL} --data set"),
        &["gives 20 classes", "19 classes", "LOC_synset_mapping.txt"],
    );
    desk.refused(
        &format!("evaluate {MODEL} --data imagenet"),
        &["--data imagenet=DIR"],
    );
    fs::create_dir(desk.path("empty")).unwrap();
    for data in ["empty", "nothing"] {
        let words = [
            "give a task with built-in images",
            "or the folder of a data set",
            data,
        ];
        desk.refused(&format!("evaluate {MODEL} --data {data}"), &words);
    }
}

/// Writes random weights of a network.
fn random_weights(model: &str, file: &Path) {
    struct Save<'a>(&'a Path);
    impl<M: Modality> Visit<M> for Save<'_> {
        type Out = ();
        fn visit<N: Of<M>>(self, _: &'static Spec, network: N) {
            save(
                &network,
                |path| network.key(path),
                self.0,
                &Default::default(),
            )
            .unwrap();
        }
    }
    let device = Device::flex();
    device.seed(0);
    catalog::find(model).unwrap().open(&device, Save(file));
}

#[test]
fn cifar_is_read_in_both_forms() {
    let desk = Desk::new(0);
    let file = desk.path("random.safetensors");
    random_weights("tiny_cifar_resnet8", &file);
    let sets = workspace_root().join("tests/golden/data/datasets/valid/cifar");
    let evaluate = |set: &str| {
        let data = sets.join(set);
        let line = "tiny_cifar_resnet8 --weights random.safetensors --data";
        desk.evaluate(&format!("{line} {}", data.display())).0
    };
    let (binary, python) = (
        evaluate("cifar-10-batches-bin"),
        evaluate("cifar-10-batches-py"),
    );
    assert_eq!(binary["data"], "cifar10");
    for key in ["list", "images", "correct1", "correct5"] {
        assert_eq!(binary[key], python[key], "{key}");
    }
    let hundred = sets.join("cifar-100-binary");
    let line = "evaluate tiny_cifar_resnet8 --weights random.safetensors --data";
    let words = ["gives 10 classes", "`cifar100`", "100 classes"];
    desk.refused(&format!("{line} {}", hundred.display()), &words);
}

#[test]
fn a_plan_on_a_folder_calibrates_and_evaluates_there() {
    const TRAIN: usize = 80;
    let desk = Desk::new(60);
    for index in 0..TRAIN {
        let label = MicroSet::TRAIN.label(index).into();
        let file = desk.path(&format!("set/train/{}/train_{index:05}.png", class(label)));
        built_in(&file, MicroSet::TRAIN, index);
    }
    let plan = format!(
        "name = 'folder'\ntitle = 'Folder'\n[task]\nname = 'imagenet'\nsamples = 60\n\
         [calibration]\nimages = 32\nbatch = 16\n\
         [fit.few]\noptimizer = 'adam'\nlr = 0.0005\nsteps = 3\n\
         [[grid]]\nname = 'grid'\ntrack = 'reconstruction'\nmodels = ['{MODEL}']\nrates = [0.5]\n\
         allocators = ['uniform']\ngranularity = ['layer']\n"
    );
    fs::write(desk.path("plan.toml"), plan).unwrap();
    desk.refused(
        "run plan.toml --store records",
        &["`imagenet`", "--data-dir imagenet=DIR"],
    );
    let line = "run plan.toml --store records --data-dir imagenet=set";
    let output = desk.run(line);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let records = || -> Vec<Value> {
        let folders = fs::read_dir(desk.path("records")).unwrap();
        folders
            .flat_map(|folder| fs::read_dir(folder.unwrap().path()).into_iter().flatten())
            .map(|file| file.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy();
                name.ends_with(".json") && !name.ends_with(".failed.json")
            })
            .map(|path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())
            .collect()
    };
    let all = records();
    assert_eq!(all.len(), 3);
    let (report, _) = desk.evaluate(&format!("{MODEL} --data set"));
    let digest = |value: &Value| value.as_str().map_or(0, str::len);
    for record in &all {
        assert_eq!(record["cell"]["task"]["data"], report["list"]);
        assert_eq!(record["cell"]["task"]["recipe"], report["recipe"]);
        let sparsity = &record["cell"]["sparsity"];
        if sparsity.is_null() {
            assert_eq!(record["score"]["counts"]["correct"], report["correct1"]);
        }
        let settings = &sparsity["reconstruction"];
        if !settings.is_null() {
            assert_eq!(digest(&settings["calibration"]["list"]), 64);
            assert!(!record["units"].as_array().unwrap().is_empty());
        }
    }
    // The report finds the lists in the records: no folder is needed.
    let shown = desk.path("shown").display().to_string();
    let mut command = program::command();
    command.current_dir(desk.0.path());
    command.args([
        "report",
        "--plan",
        "plan.toml",
        "--store",
        "records",
        "--out",
        &shown,
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));

    let output = desk.run(line);
    assert!(
        said(&output).contains("3 done, 0 to compute"),
        "{}",
        said(&output)
    );
    // Another list of validation images makes other cells, and a picture that cannot be read no score.
    fs::write(desk.picture(5), "no image at all").unwrap();
    let output = desk.run(line);
    assert_eq!(output.status.code(), Some(1));
    let text = said(&output);
    assert!(text.contains("val_00005.png"), "{text}");
    assert!(text.contains("no score of a damaged set"), "{text}");
    assert_eq!(records().len(), 3);
}

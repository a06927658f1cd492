//! The command line as users meet it: what the commands print (`tests/cli/*.trycmd`), and what they say to bad input
//! (`tests/snapshots/bad_input.txt`).
//!
//! After a change that is meant, `TRYCMD=overwrite` and `PTSBENCH_UPDATE_SNAPSHOTS=1` write the expectations again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::Device;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::weights::{Container, Named, Source, save, write};
use model_zoo::{Modality, Of};
use ptsbench_tests::files::assert_snapshot;
use ptsbench_tests::{program, workspace_root};

const MODEL: &str = "assets/micro/micro_resnet8.safetensors";

#[test]
fn commands_print_what_they_should() {
    trycmd::TestCases::new()
        .register_bin("ptsbench", program::path())
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        .env("PTSBENCH_CACHE", "no-such-folder")
        .case(workspace_root().join("tests/cli/*.trycmd"));
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = program::command().args(["completions", shell]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{shell}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("inspect") && text.contains("retry-failed"),
            "{shell}"
        );
    }
}

/// With COLUMNS set a list is that wide at most; into a pipe it is whole.
#[test]
fn lists_are_as_wide_as_their_reader() {
    let lists = [
        "models",
        "datasets",
        "tasks",
        "allocators",
        "criteria",
        "plans",
    ];
    let listed = |what: &str, columns: Option<&str>| {
        let mut command = program::command();
        command.args(["list", what]).env_remove("COLUMNS");
        if let Some(columns) = columns {
            command.env("COLUMNS", columns);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{what}");
        String::from_utf8(output.stdout).unwrap()
    };
    for what in lists {
        for columns in [30, 80, 100] {
            let text = listed(what, Some(&columns.to_string()));
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(columns), "{what} in {columns}:\n{text}");
        }
        let whole = listed(what, None);
        assert_eq!(whole, listed(what, Some("1000")));
        // What is no width is none.
        assert_eq!(whole, listed(what, Some("wide")));
    }
    assert!(
        listed("models", None)
            .lines()
            .any(|line| line.chars().count() > 100)
    );
}

const PLAN: &str = r#"name = "bad"
title = "Bad input"

[task]
name = "micro"
samples = 20

[[grid]]
name = "grid"
track = "allocation"
models = ["micro_resnet8"]
rates = [0.5]
allocators = ["uniform"]
"#;

/// A folder in which the program runs, so that every path in a message is relative.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        desk.write("plan.toml", PLAN);
        let weights = fs::read(workspace_root().join(MODEL)).unwrap();
        desk.write(MODEL, weights);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// The plan with one piece of text replaced.
    fn plan(&self, name: &str, from: &str, to: &str) {
        assert!(PLAN.contains(from), "{from}");
        self.write(name, PLAN.replace(from, to));
    }

    fn command(&self, line: &str) -> Command {
        let mut command = program::command();
        command.current_dir(self.0.path()).args(line.split(' '));
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn good(&self, line: &str) -> String {
        let output = self.run(line);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{line}: {text}");
        text
    }
}

/// What the program says to bad input, case by case.
#[derive(Default)]
struct Said(Vec<String>, Vec<String>);

impl Said {
    /// The line must end with a code other than 0, without a panic, and say all these words.
    fn bad(&mut self, desk: &Desk, line: &str, words: &[&str]) {
        let output = desk.run(line);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code().unwrap_or(-1);
        if !(1..=2).contains(&code) {
            self.1.push(format!("{line}: exit code {code}\n{text}"));
        }
        if text.contains("panicked") {
            self.1.push(format!("{line}: panic\n{text}"));
        }
        for word in words {
            if !text.contains(word) {
                self.1
                    .push(format!("{line}: {word:?} is missing in\n{text}"));
            }
        }
        let folder = desk.0.path().display().to_string();
        if text.contains(&folder) {
            self.1.push(format!("{line}: an absolute path\n{text}"));
        }
        let mut entry = format!("$ ptsbench {line}\n    exit code {code}\n");
        for said in text.lines() {
            // Times differ, and so do devices.
            let said = said.split("; all: ").next().unwrap_or_default();
            if said.starts_with("device ") || said.ends_with(" s") {
                continue;
            }
            entry += &format!("    {said}\n");
        }
        self.0.push(entry.replace("    \n", "\n"));
    }

    /// Compares with the snapshot of one topic, a file of its own.
    fn compare(self, topic: &str) {
        assert!(self.1.is_empty(), "{}", self.1.join("\n"));
        assert_snapshot(topic, &self.0.join("\n"));
    }
}

#[test]
fn bad_arguments_are_explained() {
    let desk = Desk::new();
    let mut said = Said::default();
    let mut bad = |line: &str, words: &[&str]| said.bad(&desk, line, words);
    bad(
        "inspect resnet81",
        &["resnet81", "resnet18", "ptsbench list models"],
    );
    bad(
        "inspect resnet18 --rate 0.9 --allocator l2nrom",
        &["l2nrom", "l2norm"],
    );
    bad(
        "inspect resnet18 --rate 0.9 --allocator l2norm",
        &["`resnet18`", "not built in", "--weights FILE"],
    );
    bad(
        "inspect cifar_resnet32 --rate 0.9 --max-rate 0.5",
        &["largest reachable rate is 0.5"],
    );
    bad(
        "inspect cifar_resnet32 --rate 0.9 --dense fc.nothing",
        &["fc.nothing"],
    );
    bad(
        "inspect cifar_resnet32 --rate 0.9 --max-rate 2",
        &["0 to 1"],
    );
    for rate in ["1.0", "NaN", "inf", "abc", "2"] {
        bad(
            &format!("inspect resnet18 --rate {rate}"),
            &[rate.trim_end_matches(".0"), "at least 0 and below 1"],
        );
    }
    for rate in ["--rate=-0.5", "--rate -0.5"] {
        bad(
            &format!("inspect resnet18 {rate}"),
            &["-0.5", "at least 0 and below 1"],
        );
    }
    bad(
        "inspect resnet18 --pattern 2:5",
        &[
            "`resnet18`",
            "2:5 fits none of its 21 layers",
            "2:4 fits 20",
        ],
    );
    bad(
        "evaluate micro_resnet8 --samples 100000000000",
        &["--samples is 100000000000", "holds 4000"],
    );
    bad(
        "fid micro:generation --features micro_resnet8 --samples 20001 --save-stats a.npz",
        &["--samples is 20001", "holds 20000"],
    );
    for (pattern, words) in [
        ("2:4T", "t2:4"),
        ("2", "kept:group"),
        ("4:2", "1 <= N < M <= 32"),
        ("t4:8", "use 2:4"),
    ] {
        bad(&format!("inspect resnet18 --pattern {pattern}"), &[words]);
    }
    bad(
        "inspect resnet18 --rate 0.5 --weights none.safetensors",
        &["none.safetensors"],
    );
    bad("list models nothing*", &["nothing*"]);
    bad("list modles", &["models"]);
    bad("run plan.toml --threads 0", &["--threads", "at least 1"]);
    bad("run plan.toml --threads two", &["--threads", "two"]);
    bad("run plan.toml --device gpu", &["cuda"]);
    bad("run plan.toml --weights micro_resnet8", &["MODEL=FILE"]);
    bad(
        "run plan.toml --weights micro_resnet9=x.safetensors",
        &["micro_resnet9", "micro_resnet8"],
    );
    bad("frobnicate", &["frobnicate"]);
    said.compare("bad_arguments");
}

// A build with CUDA looks for a driver instead.
#[test]
fn a_device_that_is_not_built_in_is_refused() {
    let desk = Desk::new();
    let output = desk.run("run plan.toml --device cuda");
    let text = String::from_utf8(output.stderr).unwrap();
    if text.contains("device cuda: ") {
        println!(
            "skipped: a_device_that_is_not_built_in_is_refused: this build has CUDA, and the machine a driver"
        );
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("--device flex"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn bad_plans_are_explained() {
    let desk = Desk::new();
    let mut said = Said::default();
    desk.plan("misspelt.toml", "samples", "smaples");
    desk.plan("misspelt_grid.toml", "allocators", "alocators");
    desk.plan(
        "track.toml",
        "track = \"allocation\"",
        "track = \"alocation\"",
    );
    desk.plan("syntax.toml", "[task]", "[task");
    desk.plan("type.toml", "samples = 20", "samples = \"many\"");
    desk.plan("rate.toml", "rates = [0.5]", "rates = [1.0]");
    desk.plan("negative.toml", "rates = [0.5]", "rates = [-0.5]");
    desk.plan("nan.toml", "rates = [0.5]", "rates = [nan]");
    desk.plan("pattern.toml", "rates = [0.5]", "rates = [\"2:4T\"]");
    desk.plan("kernel.toml", "rates = [0.5]", "rates = [\"t4:8\"]");
    desk.plan("model.toml", "micro_resnet8", "micro_resnet9");
    desk.plan("allocator.toml", "[\"uniform\"]", "[\"unifrom\"]");
    desk.plan(
        "criterion.toml",
        "rates = [0.5]",
        "rates = [0.5]\ncriterion = \"magnitud\"",
    );
    desk.plan("task.toml", "name = \"micro\"", "name = \"mirco\"");
    desk.plan("samples.toml", "samples = 20", "samples = 2000000");
    desk.plan("tests.toml", "micro_resnet8", "tiny_resnet_basic");
    desk.plan("published.toml", "micro_resnet8", "resnet50");
    desk.plan("twice.toml", "rates = [0.5]", "rates = [0.5, 0.5]");
    desk.plan(
        "fit.toml",
        "rates = [0.5]",
        "rates = [0.5]\ngranularity = [\"layer\"]",
    );
    desk.write("binary.toml", [0xff, 0xfe, 0x00]);
    fs::create_dir(desk.path("folder.toml")).unwrap();
    let mut bad = |line: &str, words: &[&str]| said.bad(&desk, line, words);
    bad(
        "plan misspelt.toml",
        &["misspelt.toml:6:1", "smaples", "did you mean `samples`"],
    );
    bad(
        "run misspelt.toml",
        &["misspelt.toml:6:1", "smaples", "did you mean `samples`"],
    );
    bad(
        "plan misspelt_grid.toml",
        &[
            "misspelt_grid.toml:13:1",
            "alocators",
            "did you mean `allocators`",
        ],
    );
    bad(
        "plan track.toml",
        &["track.toml:10:", "alocation", "did you mean `allocation`"],
    );
    bad("plan syntax.toml", &["syntax.toml:4:"]);
    bad("plan type.toml", &["type.toml:6:", "many"]);
    bad("plan rate.toml", &["rate.toml:12:", "rate 1 "]);
    bad("plan negative.toml", &["negative.toml:12:", "rate -0.5"]);
    bad("plan nan.toml", &["nan.toml:12:", "NaN"]);
    bad("plan pattern.toml", &["pattern.toml:12:", "t2:4"]);
    bad("plan kernel.toml", &["kernel.toml:12:", "use 2:4"]);
    bad(
        "plan model.toml",
        &["model.toml", "micro_resnet9", "micro_resnet8"],
    );
    bad(
        "plan allocator.toml",
        &["allocator.toml", "unifrom", "uniform"],
    );
    bad(
        "plan criterion.toml",
        &["criterion.toml", "magnitud", "magnitude"],
    );
    bad("plan task.toml", &["task.toml", "mirco", "micro"]);
    bad("plan samples.toml", &["samples.toml", "2000000"]);
    bad(
        "plan tests.toml",
        &["tests.toml", "tiny_resnet_basic", "ptsbench list models"],
    );
    bad(
        "plan published.toml",
        &["published.toml", "--weights resnet50=FILE"],
    );
    bad("plan twice.toml", &["twice.toml", "twice"]);
    bad("plan fit.toml", &["fit.toml", "[fit.NAME]"]);
    desk.plan("fits_nothing.toml", "rates = [0.5]", "rates = [\"2:7\"]");
    for command in ["plan", "run"] {
        bad(
            &format!("{command} fits_nothing.toml"),
            &[
                "`grid`",
                "`micro_resnet8`",
                "2:7 fits none of its 10 layers",
            ],
        );
    }
    bad("plan plan.toml --set seeds=[]", &["seeds is empty"]);
    bad("plan binary.toml", &["binary.toml"]);
    bad("plan folder.toml", &["folder.toml"]);
    bad("plan micor", &["micor", "did you mean `micro`"]);
    bad("plan missing.toml", &["missing.toml"]);
    bad(
        "plan plan.toml --set task.smaples=1",
        &["task.smaples=1", "did you mean `samples`"],
    );
    bad("plan plan.toml --set task", &["KEY=VALUE"]);
    bad(
        "plan plan.toml --set grid.1.rates=[0.5]",
        &["grid", "no entry `1`"],
    );
    bad("plan plan.toml --set grid.0.rates=[2]", &["rate 2 "]);
    bad("plan plan.toml --set fit.few.lr=1", &["fit"]);
    bad(
        "plan plan.toml --set task.samples=0",
        &["task.samples is 0"],
    );
    bad(
        "plan plan.toml --assets elsewhere",
        &["elsewhere/micro/micro_resnet8.safetensors", "--assets"],
    );
    said.compare("bad_plans");
}

/// The tensors of the built-in network.
fn tensors() -> Vec<Named> {
    let container = Container::open(&workspace_root().join(MODEL)).unwrap();
    let named = |key: String| Named {
        shape: container.shape(&key).unwrap(),
        values: container.read(&key).unwrap(),
        key,
    };
    container.keys().into_iter().map(named).collect()
}

#[test]
fn bad_weights_are_explained() {
    let desk = Desk::new();
    let mut said = Said::default();
    let sound = fs::read(desk.path(MODEL)).unwrap();
    desk.write("truncated.safetensors", &sound[..sound.len() / 2]);
    desk.write(
        "page.safetensors",
        "<!DOCTYPE html><html><body>Not found</body></html>",
    );
    desk.write(
        "pointer.safetensors",
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n",
    );
    desk.write(
        "pickle.safetensors",
        b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl",
    );
    desk.write("empty.safetensors", b"");
    fs::create_dir(desk.path("folder.safetensors")).unwrap();
    let keep = |name: &str, change: &dyn Fn(&mut Vec<Named>)| {
        let mut tensors = tensors();
        change(&mut tensors);
        write(&desk.path(name), &tensors, &BTreeMap::new()).unwrap();
    };
    // The first layer's weight, which every command needs.
    let first = |t: &[Named]| t.iter().position(|t| t.key == "conv1.weight").unwrap();
    keep("missing.safetensors", &|t| drop(t.remove(first(t))));
    keep("extra.safetensors", &|t| {
        t.push(Named {
            key: "head.weight".into(),
            shape: vec![1],
            values: vec![0.0],
        });
    });
    keep("misshapen.safetensors", &|t| {
        let at = first(t);
        t[at].shape = vec![1];
        t[at].values.truncate(1);
    });
    keep("nan.safetensors", &|t| {
        let at = first(t);
        t[at].values[0] = f32::NAN;
    });
    keep("other.safetensors", &|t| {
        for tensor in t {
            tensor.key = format!("model.{}", tensor.key);
        }
    });
    for (name, words) in [
        ("truncated", &["expects", "holds"][..]),
        ("page", &["HTML"]),
        ("pointer", &["LFS"]),
        ("pickle", &["zip"]),
        ("empty", &["0 bytes"]),
        ("folder", &["is a folder, not a file"]),
        ("gone", &["cannot"]),
        ("missing", &["missing", "micro_resnet8"]),
        ("extra", &["head.weight"]),
        ("misshapen", &["shape"]),
        ("nan", &["NaN"]),
        ("other", &["missing", "model."]),
    ] {
        let file = format!("{name}.safetensors");
        let line =
            format!("run plan.toml --device flex --store {name} --weights micro_resnet8={file}");
        let words: Vec<&str> = words.iter().copied().chain([file.as_str()]).collect();
        said.bad(&desk, &line, &words);
        let line = format!("inspect micro_resnet8 --rate 0.5 --allocator l2norm --weights {file}");
        if name != "extra" {
            said.bad(&desk, &line, &[&file]);
        }
    }
    // Named like PyTorch's, and none of them.
    desk.write("notes.pth", "My notes of yesterday\n");
    desk.write("bytes.pt", [0xfe; 32]);
    desk.write("nothing.pth", "");
    for (file, words) in [
        ("notes.pth", "a text that begins \"My notes of yesterday"),
        ("bytes.pt", "bytes that begin fe fe"),
        ("nothing.pth", "nothing in it"),
    ] {
        let line = format!("evaluate micro_resnet8 --weights {file}");
        said.bad(&desk, &line, &[file, "zip archive", words]);
    }
    // Sound weights, of a network whose classes are not the task's.
    desk.plan("classes.toml", "micro_resnet8", "cifar_resnet32");
    save_fresh("cifar_resnet32", &desk.path("cifar.safetensors"));
    let line =
        "run classes.toml --device flex --weights cifar_resnet32=cifar.safetensors --store classes";
    said.bad(
        &desk,
        line,
        &[
            "`cifar_resnet32` gives 10 classes",
            "`micro` has 20 classes",
        ],
    );
    said.compare("bad_weights");
}

/// Writes a network's weights as they are before any training.
fn save_fresh(model: &str, file: &Path) {
    struct Save<'a>(&'a Path);
    impl<M: Modality> Visit<M> for Save<'_> {
        type Out = ();
        fn visit<N: Of<M>>(self, _: &'static Spec, n: N) {
            save(&n, |path| n.key(path), self.0, &BTreeMap::new()).unwrap();
        }
    }
    catalog::find(model)
        .unwrap()
        .open(&Device::flex(), Save(file));
}

/// The one record file whose text holds all these words.
fn record_with(desk: &Desk, store: &str, words: &[&str]) -> PathBuf {
    let mut found = Vec::new();
    for folder in fs::read_dir(desk.path(store)).unwrap().flatten() {
        for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            if words.iter().all(|word| text.contains(word)) {
                found.push(file.path());
            }
        }
    }
    assert_eq!(found.len(), 1, "{words:?}");
    found.remove(0)
}

#[test]
fn bad_stores_are_explained() {
    let desk = Desk::new();
    let mut said = Said::default();
    desk.write("file", "x");
    for command in [
        "run plan.toml",
        "plan plan.toml",
        "report",
        "figures",
        "pack packed.jsonl.gz",
        "doctor",
    ] {
        said.bad(
            &desk,
            &format!("{command} --store file"),
            &["file", "not a folder", "--store"],
        );
    }
    // Below a file no folder can be made, whoever asks.
    said.bad(
        &desk,
        "run plan.toml --store file/records",
        &["file/records", "--store"],
    );
    said.bad(&desk, "report --store none", &["none", "ptsbench run"]);
    said.bad(&desk, "figures --store none", &["none", "ptsbench run"]);

    desk.good("run plan.toml --device flex --store records");
    said.bad(&desk, "report --store records --out file", &["file"]);
    said.bad(&desk, "figures --store records --out file/below", &["file"]);
    said.bad(&desk, "report --store records --plan micor", &["micor"]);

    let path = record_with(&desk, "records", &["sparsity"]);
    let sound = fs::read_to_string(&path).unwrap();
    let all = [
        "run plan.toml --device flex",
        "plan plan.toml",
        "report",
        "figures",
        "doctor",
    ];
    let name = path.file_name().unwrap().to_str().unwrap();
    for (damage, text, words) in [
        (
            "truncated",
            sound[..sound.len() / 2].to_owned(),
            ["is broken"],
        ),
        (
            "edited",
            sound.replace("\"total\": 20", "\"total\": 21"),
            ["digest"],
        ),
        ("empty", String::new(), ["is broken"]),
    ] {
        assert_ne!(text, sound);
        fs::write(&path, &text).unwrap();
        for command in all {
            let output = desk.run(&format!("{command} --store records"));
            let text = [output.stderr, output.stdout].concat();
            let text = String::from_utf8(text).unwrap();
            assert_eq!(output.status.code(), Some(1), "{damage}: {command}: {text}");
            for word in words.iter().chain([&name, &"move it away"]) {
                assert!(text.contains(word), "{damage}: {command}: {word}: {text}");
            }
            assert!(!text.contains("panicked"), "{text}");
        }
    }
    // What the message says to do helps.
    fs::remove_file(&path).unwrap();
    desk.good("run plan.toml --device flex --store records");
    let again = fs::read_to_string(&path).unwrap();
    let digest = |text: &str| {
        text.lines()
            .find(|line| line.contains("\"digest\""))
            .map(str::to_owned)
    };
    assert_eq!(digest(&again), digest(&sound));
    said.compare("bad_stores");
}

/// A cell that fails is kept as a failure, is not tried again unasked, and does not keep others from being measured.
#[test]
fn a_failed_cell_is_kept_and_tried_again_when_asked() {
    let desk = Desk::new();
    let mut said = Said::default();
    let mut tensors = tensors();
    tensors[0].values[0] = f32::NAN;
    write(&desk.path("nan.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let line = "run plan.toml --device flex --weights micro_resnet8=nan.safetensors";
    said.bad(&desk, line, &["2 cells failed", "NaN"]);
    said.bad(
        &desk,
        line,
        &["0 to compute", "2 failed before", "--retry-failed"],
    );
    said.bad(
        &desk,
        &format!("{line} --retry-failed"),
        &["2 to compute", "2 cells failed"],
    );
    let plan = desk.good("plan plan.toml --weights micro_resnet8=nan.safetensors");
    assert!(plan.is_empty(), "{plan}");
    assert!(said.1.is_empty(), "{}", said.1.join("\n"));
    let found = files_ending(&desk.path("out/records"), ".failed.json");
    assert_eq!(found, 2);
}

/// The share that a pattern came to, and the layers that it left dense.
#[test]
fn a_run_says_what_a_pattern_leaves_dense() {
    let desk = Desk::new();
    desk.plan("pattern.toml", "rates = [0.5]", "rates = [0.5, \"2:4\"]");
    let text = desk.good("run pattern.toml --device flex");
    assert!(
        text.contains("micro_resnet8: 1 of 10 layers stays dense at 2:4:"),
        "{text}"
    );
    let reason = "3 input channels per group are not divisible by 4: conv1";
    assert!(text.contains(reason), "{text}");
    let cell = |name: &str| text.lines().find(|line| line.contains(name)).unwrap();
    assert!(
        cell("micro_resnet8 2:4: ").contains("49.8 % zeros, "),
        "{text}"
    );
    assert!(!cell("uniform 0.5: ").contains("zeros"), "{text}");
    // Nothing is left to compute, and nothing to be said.
    let text = desk.good("run pattern.toml --device flex");
    assert!(!text.contains("dense at 2:4"), "{text}");
}

fn files_ending(folder: &Path, ending: &str) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let count = |path: PathBuf| {
        if path.is_dir() {
            files_ending(&path, ending)
        } else {
            usize::from(path.to_string_lossy().ends_with(ending))
        }
    };
    entries.map(|entry| count(entry.path())).sum()
}

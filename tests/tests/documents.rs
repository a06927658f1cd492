//! The commands that the documents show are run as they stand there: those in blocks of code and in tables. Those in a
//! sentence are often cut short, so there only the command's and the options' names are looked at.
//!
//! A new line in a document is tried by itself. One that cannot run here is named in [`NOT_RUN`] with the reason.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use burn::tensor::Device;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::weights::save;
use model_zoo::{Modality, Of};
use ptsbench::data::synthetic::generation;
use ptsbench_tests::{program, workspace_root};

/// What is not run: a part of the command, and why.
const NOT_RUN: [(&str, &str); 19] = [
    (
        "infer mobilenetv1_ssd",
        "needs the published weights; `detection.rs` draws boxes",
    ),
    (
        "fetch ",
        "needs a network; the tests of `fetch/` have a server of their own",
    ),
    (
        "/data/",
        "needs a data set; `realdata.rs` runs these commands on folders",
    ),
    (
        "lsun/",
        "needs LSUN and Inception's weights; `fid.rs` tests folders",
    ),
    (
        "ptsbench fid generated/ real.npz",
        "needs Inception's weights; `fid.rs` tests folders and statistics",
    ),
    (
        "ptsbench fid real/",
        "needs Inception's weights; `fid.rs` tests --save-stats",
    ),
    ("noise/", "needs pictures of noise; `fid.rs` makes some"),
    (
        "ptsbench run micro",
        "hundreds of cells; `make bench-all` runs it",
    ),
    (
        "ptsbench run correction",
        "half an hour of cells; `pipeline.rs` corrects a small network in each way",
    ),
    (
        "--plan micro",
        "needs the records of its cells; `make bench-all` runs it",
    ),
    (
        "ptsbench micro-zoo",
        "trains for hours; the training's own tests take steps",
    ),
    (
        "ab….json",
        "stands for the name of any record; `a_record_is_exported` takes one",
    ),
    ("target/gpu/", "needs another build; `make test-gpu` has it"),
    ("<name>", "stands for what the reader adds"),
    (
        "infer micro_resnet8 IMAGE",
        "stands for any picture; the guide's line has some",
    ),
    (
        "data check DIR",
        "stands for any folder; `realdata.rs` checks some",
    ),
    (
        "mine/model.safetensors",
        "stands for a file of the reader's; `own.rs` makes some",
    ),
    ("`ptsbench run`", "a name; the guide has whole lines"),
    (
        "`ptsbench export`",
        "a name; `docs/export.md` has whole lines",
    ),
];

/// A command in a document.
struct Shown {
    /// File and line.
    place: String,
    text: String,
}

/// What a document holds.
#[derive(Default)]
struct Document {
    /// Lines of code, and commands in tables, which are between backticks.
    commands: Vec<Shown>,
    /// Commands in sentences.
    mentions: Vec<Shown>,
    /// Files that the reader is told to save, by name.
    files: BTreeMap<String, String>,
}

fn read(name: &str) -> Document {
    let text = fs::read_to_string(workspace_root().join(name)).unwrap();
    let mut document = Document::default();
    let mut fence: Option<Vec<&str>> = None;
    let mut paragraph = String::new();
    let mut saved_as = None;
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let place = format!("{name}:{}", index + 1);
        if line.trim_start().starts_with("```") {
            match fence.take() {
                None => fence = Some(Vec::new()),
                Some(block) => {
                    if let Some(file) = saved_as.take() {
                        document.files.insert(file, block.join("\n"));
                    }
                }
            }
            continue;
        }
        if let Some(block) = &mut fence {
            block.push(line);
        }
        if fence.is_some() || line.starts_with("    ") {
            let mut command = line.trim().to_owned();
            while let Some(first) = command.strip_suffix('\\') {
                let next = lines.next().map_or("", |(_, line)| line.trim());
                command = format!("{first}{next}");
            }
            let program = command.split(' ').next().unwrap_or_default();
            if program.rsplit('/').next() == Some("ptsbench") {
                document.commands.push(Shown {
                    place,
                    text: command,
                });
            }
            continue;
        }
        if line.starts_with('|') {
            for text in spans(line) {
                document.commands.push(Shown {
                    place: place.clone(),
                    text: format!("`{text}`"),
                });
            }
            continue;
        }
        if let Some((_, rest)) = line.split_once("Save this as `") {
            saved_as = rest.split('`').next().map(str::to_owned);
        }
        if line.is_empty() {
            paragraph.clear();
            continue;
        }
        // A span may go on in the next line: the paragraph so far is looked at again, and what is new is kept.
        let before = spans(&paragraph).len();
        paragraph = format!("{paragraph} {line}");
        for text in spans(&paragraph).into_iter().skip(before) {
            document.mentions.push(Shown {
                place: place.clone(),
                text,
            });
        }
    }
    document
}

/// The commands between backticks in a text.
fn spans(text: &str) -> Vec<String> {
    let parts: Vec<&str> = text.split('`').collect();
    // What follows the last backtick is no span, closed or not.
    let closed = parts.len().saturating_sub(1);
    let spans = parts[..closed].iter().skip(1).step_by(2);
    spans
        .filter(|span| span.starts_with("ptsbench "))
        .map(|span| span.to_string())
        .collect()
}

fn documents() -> Vec<(String, Document)> {
    let folder = fs::read_dir(workspace_root().join("docs")).unwrap();
    let mut names: Vec<String> = folder
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"))
        .collect();
    names.sort();
    names.insert(0, "README.md".to_owned());
    let read = |name: String| {
        let document = read(&name);
        (name, document)
    };
    names.into_iter().map(read).collect()
}

/// A network's weights as they are before any training: a stand-in for published ones.
fn fresh(model: &str, file: &Path) {
    struct Save<'a>(&'a Path);
    impl<M: Modality> Visit<M> for Save<'_> {
        type Out = ();
        fn visit<N: Of<M>>(self, _: &'static Spec, n: N) {
            save(&n, |path| n.key(path), self.0, &BTreeMap::new()).unwrap();
        }
    }
    let spec = catalog::find(model).unwrap();
    spec.open(&Device::flex(), Save(file));
}

fn picture(file: &Path, index: usize) {
    let image = generation::picture(index);
    let [width, height] = [image.width, image.height].map(|side| side as u32);
    let mut encoder = png::Encoder::new(fs::File::create(file).unwrap(), width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&image.pixels).unwrap();
}

/// A folder that has what a reader would have: the built-in networks, a few files of one's own, records.
fn desk() -> tempfile::TempDir {
    let desk = tempfile::tempdir().unwrap();
    let at = |name: &str| desk.path().join(name);
    std::os::unix::fs::symlink(workspace_root().join("assets"), at("assets")).unwrap();
    let built_in = workspace_root().join("assets/micro/micro_resnet20.safetensors");
    for name in ["mine.safetensors", "a.safetensors", "b.pth"] {
        fs::copy(&built_in, at(name)).unwrap();
    }
    for model in ["resnet18", "resnet50"] {
        fresh(model, &at(&format!("{model}.safetensors")));
    }
    for (index, name) in ["a.png", "b.jpg", "photo.jpg"].into_iter().enumerate() {
        picture(&at(name), index);
    }
    let labels: Vec<String> = (0..1000).map(|class| format!("class {class}")).collect();
    fs::write(at("imagenet.txt"), labels.join("\n")).unwrap();
    // In the place of the micro suite's, which take minutes.
    let output = shell(desk.path(), "ptsbench run smoke --device flex");
    assert!(output.status.success(), "{output:?}");
    desk
}

/// Runs a line as a shell would in that folder, where `ptsbench` is found.
fn shell(folder: &Path, line: &str) -> std::process::Output {
    let programs = program::path().parent().unwrap().display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", format!("{programs}:{path}"))
        .env("NO_COLOR", "1")
        // Whatever was fetched on this machine is nothing to the tests.
        .env("PTSBENCH_CACHE", "no-such-folder")
        .output()
        .unwrap()
}

#[test]
fn commands_that_documents_show_work_as_they_stand() {
    let desk = desk();
    let started = Instant::now();
    let mut ran: Vec<String> = Vec::new();
    let mut failed = Vec::new();
    let mut used = [false; NOT_RUN.len()];
    let mut slowest = (0.0, String::new());
    for (_, document) in documents() {
        for (name, text) in &document.files {
            fs::write(desk.path().join(name), text).unwrap();
        }
        for Shown { place, text } in &document.commands {
            let mut reason = None;
            for ((part, why), used) in NOT_RUN.iter().zip(&mut used) {
                if text.contains(part) {
                    *used = true;
                    reason = reason.or(Some(why));
                }
            }
            if let Some(why) = reason {
                println!("documents: not run: {place}: {text}: {why}");
                continue;
            }
            let line = text.trim_matches('`');
            // One line in two documents is one command.
            if ran.iter().any(|before| before == line) {
                continue;
            }
            let start = Instant::now();
            let output = shell(desk.path(), line);
            let seconds = start.elapsed().as_secs_f64();
            if seconds > slowest.0 {
                slowest = (seconds, line.to_owned());
            }
            if !output.status.success() {
                failed.push(format!(
                    "{place}: {line}: {}\n{}",
                    output.status,
                    String::from_utf8_lossy(&output.stderr)
                ));
            }
            ran.push(line.to_owned());
        }
    }
    println!(
        "documents: {} commands ran in {:.0} s; the longest, `{}`, took {:.0} s",
        ran.len(),
        started.elapsed().as_secs_f64(),
        slowest.1,
        slowest.0
    );
    assert!(
        failed.is_empty(),
        "make the document or the program right, or name the command in NOT_RUN with the reason:\n{}",
        failed.join("\n")
    );
    let stale: Vec<&str> = NOT_RUN
        .iter()
        .zip(used)
        .filter_map(|((part, _), used)| (!used).then_some(*part))
        .collect();
    assert!(
        stale.is_empty(),
        "no document has these any more: {stale:?}"
    );
    assert!(ran.len() >= 25, "only {} commands were found", ran.len());
}

/// The names of commands and options in sentences exist.
#[test]
fn commands_that_sentences_mention_exist() {
    let mut seen = 0;
    for (_, document) in documents() {
        for Shown { place, text } in document.mentions.iter().chain(&document.commands) {
            let words: Vec<&str> = text.trim_matches('`').split_whitespace().collect();
            let Some(command) = words.get(1) else {
                continue;
            };
            let output = program::command().args([command, "--help"]).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{place}: no command in {text}");
            let help = String::from_utf8(output.stdout).unwrap();
            let known = |option: &str| {
                let found = help.match_indices(option);
                found.into_iter().any(|(at, _)| {
                    let next = help[at + option.len()..].chars().next();
                    next.is_none_or(|c| !c.is_alphanumeric() && c != '-')
                })
            };
            for option in words.iter().filter(|word| word.starts_with("--")) {
                let option = option.trim_end_matches([',', '.']);
                let option = option.split('=').next().unwrap_or(option);
                // `data check` has its options one level down, and has none so far.
                assert!(known(option), "{place}: {command} has no {option}: {text}");
            }
            seen += 1;
        }
    }
    assert!(seen > 80, "only {seen} mentions were found");
}

/// What the test takes for a command, on a document of its own making.
#[test]
fn commands_are_found_where_they_stand() {
    assert_eq!(
        spans("say `ptsbench list models`, not `cargo`; then `ptsbench doctor` and `open"),
        ["ptsbench list models", "ptsbench doctor"]
    );
    let guide = read("docs/guide.md");
    assert!(guide.files.contains_key("grains.toml"));
    let texts: Vec<&str> = guide.commands.iter().map(|shown| &shown.text[..]).collect();
    assert!(texts.contains(&"ptsbench plan grains.toml --store out/grains"));
    let export = read("docs/export.md");
    assert!(export.commands.len() >= 3, "indented lines are commands");
    let readme = read("README.md");
    let in_table = |shown: &Shown| shown.text == "`ptsbench list models`";
    assert!(readme.commands.iter().any(in_table));
}

//! `ptsbench export`: what it writes of a pruned and a fitted network, and what it refuses before it computes.

use std::fs;
use std::path::Path;
use std::process::Output;

use model_zoo::weights::{Container, Source};
use ptsbench_tests::{program, workspace_root};

const BUILT_IN: &str = "assets/micro/micro_resnet8.safetensors";

struct Desk(tempfile::TempDir);

impl Desk {
    /// A folder with the network that is built in.
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        let micro = desk.0.path().join("assets/micro");
        fs::create_dir_all(&micro).unwrap();
        fs::copy(
            workspace_root().join(BUILT_IN),
            desk.0.path().join(BUILT_IN),
        )
        .unwrap();
        desk
    }

    fn run(&self, line: &str) -> (Output, String) {
        let mut command = program::command();
        let output = command
            .current_dir(self.0.path())
            .args(line.split(' '))
            .output()
            .unwrap();
        let text = [output.stdout.clone(), output.stderr.clone()].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("panicked"), "{line}: {text}");
        (output, text)
    }

    fn good(&self, line: &str) -> String {
        let (output, text) = self.run(line);
        assert!(output.status.success(), "{line}: {text}");
        text
    }

    fn refused(&self, line: &str, words: &[&str]) {
        let (output, text) = self.run(line);
        assert!(!output.status.success(), "{line}: {text}");
        for word in words {
            assert!(text.contains(word), "{line}: {word:?} is missing in {text}");
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn values(file: &Path, key: &str) -> Vec<f32> {
    Container::open(file).unwrap().read(key).unwrap()
}

#[test]
fn a_reconstruction_is_exported_and_leaves_nothing_else() {
    let desk = Desk::new();
    let line = "export micro_resnet8 --device flex --pattern 2:4 --granularity block --images 32 --steps 3 --out fitted.safetensors";
    let text = desk.good(line);
    assert!(text.contains("(0.4978)"), "{text}");
    assert!(text.contains("1 of 10 layers stays dense at 2:4"), "{text}");
    assert!(
        text.contains("3 input channels per group are not divisible by 4: conv1"),
        "{text}"
    );
    assert_eq!(desk.names(), ["assets", "fitted.safetensors"]);

    desk.good("export micro_resnet8 --device flex --pattern 2:4 --out pruned.safetensors");
    let key = "layer3.0.conv2.weight";
    let [fitted, pruned] = ["fitted", "pruned"]
        .map(|name| values(&desk.0.path().join(format!("{name}.safetensors")), key));
    assert_ne!(fitted, pruned, "nothing was fitted");
    let zeros = |values: &[f32]| values.iter().filter(|value| **value == 0.0).count();
    assert_eq!(zeros(&pruned), pruned.len() / 2);
    assert_eq!(zeros(&fitted), fitted.len() / 2);
}

/// Fewer images than a batch has by default are one batch.
#[test]
fn a_network_trained_as_a_whole_is_exported_and_leaves_nothing_else() {
    let desk = Desk::new();
    let line = "export micro_resnet8 --device flex --images 32 --out whole.safetensors --criterion fcpts,epochs=2";
    let text = desk.good(&format!("{line} --rate 0.75"));
    assert!(text.contains("(0.7500)"), "{text}");
    assert_eq!(desk.names(), ["assets", "whole.safetensors"]);
    let [old, new] = [BUILT_IN, "whole.safetensors"].map(|file| desk.0.path().join(file));
    for key in ["bn1.weight", "bn1.running_mean", "fc.bias"] {
        assert_ne!(values(&old, key), values(&new, key), "{key}");
    }
    desk.refused(
        &format!("{line} --pattern 2:4"),
        &["`fcpts`", "N:M", "--rate"],
    );
    desk.refused(
        &format!("{line} --rate 0.75 --granularity block"),
        &["trains every weight", "weights=dense"],
    );
}

#[test]
fn any_number_of_calibration_images_will_do() {
    let desk = Desk::new();
    for images in [1, 32, 65] {
        let text = desk.good(&format!(
            "export micro_resnet8 --device flex --rate 0.5 --granularity layer --steps 1 --images {images} --out a.safetensors"
        ));
        assert!(text.contains("(0.5000)"), "{images}: {text}");
    }
    desk.refused(
        "export micro_resnet8 --rate 0.5 --granularity layer --images 0 --out a.safetensors",
        &["--images", "at least 1"],
    );
    desk.refused(
        "export micro_resnet8 --rate 0.5 --granularity layer --images 1000000 --out a.safetensors",
        &["1000000", "20000"],
    );
}

#[test]
fn a_record_is_exported() {
    let desk = Desk::new();
    desk.good("run smoke --device flex --store records");
    let mut folders = vec![desk.0.path().join("records")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if fs::read_to_string(entry.path())
                .is_ok_and(|text| text.contains("\"granularity\""))
            {
                found.push(entry.path());
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    let record = found.remove(0);
    let record = record.strip_prefix(desk.0.path()).unwrap().display();
    let line =
        format!("export micro_resnet8 --device flex --from-record {record} --out same.safetensors");
    let text = desk.good(&line);
    assert!(
        text.contains("uniform 0.7 layer") && text.contains("(0.7000)"),
        "{text}"
    );
    assert_eq!(desk.names(), ["assets", "records", "same.safetensors"]);
    desk.refused(
        &line.replace("micro_resnet8", "micro_resnet14"),
        &["a record of `micro_resnet8`"],
    );
}

#[test]
fn options_that_make_no_cell_are_explained() {
    let desk = Desk::new();
    for (options, words) in [
        ("--rate 0", &["--rate 0", "leave it out"][..]),
        ("--rate 0.5 --allocator l2nrom", &["l2nrom", "l2norm"]),
        (
            "--rate 0.5 --criterion magnitud",
            &["magnitud", "magnitude"],
        ),
        ("--granularity block", &["add --rate or --pattern"]),
        ("--rate 0.5 --granularity block --lr -1", &["lr = -1"]),
        ("--rate 0.5 --granularity block --steps 0", &["steps = 0"]),
        (
            "--pattern 2:7",
            &[
                "`micro_resnet8`",
                "2:7 fits none of its 10 layers",
                "2:4 fits 9",
            ],
        ),
    ] {
        let line = format!("export micro_resnet8 --out a.safetensors {options}");
        desk.refused(&line, words);
    }
    desk.refused("export micro_* --out a.safetensors", &["micro_*"]);
    // Methods look at the images of one task.
    desk.refused(
        "export micro_resnet8 --rate 0.5 --data-dir cifar10=a --data-dir imagenet=b --out a.safetensors",
        &["cifar10 and imagenet", "give one"],
    );
    desk.refused(
        "export micro_resnet8 --rate 0.5 --criterion obc --data-dir cifar10=none --out a.safetensors",
        &["none"],
    );
    assert_eq!(desk.names(), ["assets"]);
}

#[test]
fn what_is_written_is_named_safetensors_and_is_no_input() {
    let desk = Desk::new();
    let folder = desk.0.path();
    desk.refused(
        "export micro_resnet8 --out r8.pth",
        &["r8.pth", "r8.safetensors"],
    );
    desk.refused(
        "export micro_resnet8 --out none/r8.safetensors",
        &["none/r8.safetensors", "does not exist"],
    );
    let mine = folder.join("mine.safetensors");
    fs::copy(folder.join(BUILT_IN), &mine).unwrap();
    let before = fs::read(&mine).unwrap();
    fs::hard_link(&mine, folder.join("second.safetensors")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("mine.safetensors", folder.join("link.safetensors")).unwrap();
    let mut names = vec!["mine", "./assets/../mine", "second"];
    if cfg!(unix) {
        names.push("link");
    }
    for name in names {
        let line = format!(
            "export micro_resnet8 --rate 0.5 --weights mine.safetensors --out {name}.safetensors"
        );
        desk.refused(&line, &["mine.safetensors", "would be overwritten"]);
    }
    assert_eq!(fs::read(&mine).unwrap(), before);
    desk.refused(
        &format!("export micro_resnet8 --rate 0.5 --out {BUILT_IN}"),
        &["would be overwritten"],
    );
    assert_eq!(fs::read(folder.join(BUILT_IN)).unwrap(), before);
    // Other commands that write a file which the user names.
    desk.refused(
        "evaluate micro_resnet8 --weights mine.safetensors --resume ./mine.safetensors",
        &["would be overwritten"],
    );
    desk.good("fid micro:generation --features micro_resnet8 --samples 8 --save-stats a.npz --device flex");
    let statistics = fs::read(folder.join("a.npz")).unwrap();
    desk.refused(
        "fid a.npz --save-stats ./a.npz",
        &["a.npz", "would be overwritten"],
    );
    assert_eq!(fs::read(folder.join("a.npz")).unwrap(), statistics);
}

//! Standard output and standard error that are closed or full: no panic, and an exit code that tells.

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

use ptsbench_tests::{program, workspace_root};

/// Commands that print, each at least a few lines.
const PRINTING: [&str; 16] = [
    "inspect resnet152 --rate 0.5 --json",
    "inspect micro_resnet8 --pattern 2:4",
    "plan micro",
    "plan micro --json",
    "doctor",
    "list models",
    "list datasets",
    "list plans --json",
    "completions bash",
    "completions zsh",
    "compare assets/micro/micro_resnet8.safetensors assets/micro/micro_resnet14.safetensors",
    "latency micro_resnet8 --batch 1 --rounds 1",
    "evaluate micro_resnet8 --samples 10 --device flex",
    "--help",
    "run --help",
    "--version",
];

fn command(line: &str) -> Command {
    let mut command = program::command();
    command.current_dir(workspace_root()).args(line.split(' '));
    command
}

/// What was said, which must be no panic.
fn said(line: &str, output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{line}: {text}");
    text
}

/// A pipe that nobody reads any more.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_closed_pipe_ends_every_command_silently() {
    for line in PRINTING {
        let output = command(line).stdout(closed_pipe()).output().unwrap();
        let text = said(line, &output);
        assert_eq!(output.status.code(), Some(141), "{line}: {text}");
        // The device is told before anything is computed.
        let errors: Vec<&str> = text.lines().filter(|line| line.contains("error")).collect();
        assert!(errors.is_empty(), "{line}: {text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_standard_output_is_an_error_of_every_command() {
    for line in PRINTING {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(line).stdout(full).output().unwrap();
        let text = said(line, &output);
        assert_eq!(output.status.code(), Some(1), "{line}: {text}");
        assert!(
            text.contains("error: cannot write to standard output") && text.contains("space"),
            "{line}: {text}"
        );
    }
}

/// A pipeline as users write it: the reader leaves after the first line.
#[cfg(unix)]
#[test]
fn the_head_of_a_long_text_is_whole() {
    let script = format!(
        "'{}' inspect resnet152 --rate 0.5 --json | head -n 1",
        program::path().display()
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(workspace_root())
        .output()
        .unwrap();
    assert_eq!(said(&script, &output), "");
    assert_eq!(output.stdout, b"{\n");
}

/// Remarks and progress go where nobody listens; the work and its exit code are the same.
#[test]
fn nobody_on_standard_error_costs_no_work() {
    let store = tempfile::tempdir().unwrap();
    for (name, errors) in [("closed", closed_pipe()), ("null", Stdio::null())] {
        let records = store.path().join(name);
        let mut run = command("run smoke --device flex --store");
        let output = run.arg(&records).stderr(errors).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}");
        let shown = command("plan smoke --store")
            .arg(&records)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(text.contains("3 cells: 3 done"), "{name}: {text}");
    }
    // An error that cannot be told is one all the same.
    for (line, code) in [("list nothing", 2), ("inspect resnot", 1)] {
        let output = command(line).stderr(closed_pipe()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}");
    }
}

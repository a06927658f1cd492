//! The program under test.

use std::path::PathBuf;
use std::process::Command;

/// Where cargo put the program: beside the tests.
pub fn path() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let release = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("tests lie in release/deps");
    let program = release.join(format!("ptsbench{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.is_file(),
        "{} is missing; run `cargo build --release --workspace` before the tests",
        program.display()
    );
    program
}

/// The program, started in the workspace's root folder, without colours or a terminal.
pub fn command() -> Command {
    let mut command = Command::new(path());
    command
        .current_dir(crate::workspace_root())
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        // Whatever was fetched on this machine is nothing to the tests.
        .env("PTSBENCH_CACHE", "no-such-folder");
    command
}

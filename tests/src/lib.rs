//! What the tests share: where golden files are, the program, files and pruned networks.

use std::path::{Path, PathBuf};

pub mod files;
pub mod program;
pub mod pruned;

/// The workspace's root folder.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests' folder lies in the workspace")
        .to_path_buf()
}

/// The folder that `variable` names, relative paths taken from the workspace's root, or `default` below that root.
pub fn folder(variable: &str, default: &str) -> PathBuf {
    let root = workspace_root();
    match std::env::var_os(variable) {
        Some(path) => root.join(path),
        None => root.join(default),
    }
}

/// The folder of one topic of golden data; panics where it is missing.
pub fn golden_topic(topic: &str) -> PathBuf {
    let folder = folder("PTSBENCH_GOLDEN", "tests/golden/data").join(topic);
    assert!(
        folder.is_dir(),
        "no golden data for `{topic}` at {}; PTSBENCH_GOLDEN must name a folder that holds one folder per topic",
        folder.display()
    );
    folder
}

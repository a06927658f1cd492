//! Invariants of ARCHITECTURE.md that can be read off the sources: who may import what.

use std::fs;
use std::path::{Path, PathBuf};

use ptsbench_tests::workspace_root;

/// Every source file below a folder, or the file itself.
fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The code of a file: without comments and without the unit tests at its foot.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Asserts that nothing below `places` names any of `words`, but for the files listed with a reason.
fn never(places: &[&str], words: &[&str], but: &[(&str, &str)]) {
    let root = workspace_root();
    let mut looked = 0;
    let mut used = vec![false; but.len()];
    for place in places {
        for file in sources(&root.join(place)) {
            let name = file
                .strip_prefix(&root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if name.ends_with("/tests.rs") {
                continue;
            }
            looked += 1;
            let code = code(&file);
            let found: Vec<&&str> = words.iter().filter(|word| code.contains(**word)).collect();
            match but.iter().position(|(allowed, _)| *allowed == name) {
                Some(at) => used[at] |= !found.is_empty(),
                None => assert!(found.is_empty(), "{name} names {found:?}"),
            }
        }
    }
    assert!(looked > 0, "{places:?}");
    for ((file, reason), used) in but.iter().zip(used) {
        assert!(used, "{file} needs no exception any more ({reason})");
    }
}

#[test]
fn kernels_see_no_path_and_no_model() {
    never(
        &["kernels/src"],
        &[
            "std::path",
            "std::fs",
            "std::net",
            "model_zoo",
            "ptsbench::",
        ],
        &[(
            "kernels/src/gpu/client.rs",
            "asks whether there is a driver before a device panics",
        )],
    );
}

#[test]
fn the_zoo_knows_no_benchmark_and_writes_weights_alone() {
    never(&["model-zoo/src"], &["ptsbench::", "std::net"], &[]);
    never(
        &["model-zoo/src"],
        &["fs::write", "File::create", "fs::rename"],
        &[("model-zoo/src/weights/write.rs", "weight files")],
    );
}

#[test]
fn reports_reach_no_device_no_network_and_no_data() {
    never(
        &["ptsbench/src/report", "ptsbench/src/overall.rs"],
        &[
            "burn::",
            "crate::device",
            "crate::pipeline",
            "crate::task",
            "crate::data",
            "model_zoo::tap",
            "model_zoo::weights",
            ".timing",
            ".environment",
        ],
        &[],
    );
}

#[test]
fn the_store_and_plans_compute_nothing() {
    never(
        &[
            "ptsbench/src/store.rs",
            "ptsbench/src/store",
            "ptsbench/src/plan",
        ],
        &[
            "burn::",
            "crate::pipeline",
            "crate::reconstruct",
            "crate::sparsify",
        ],
        &[],
    );
}

#[test]
fn the_network_is_used_in_one_place() {
    never(
        &["ptsbench/src"],
        &["hf_hub", "std::net", "tokio::"],
        &[("ptsbench/src/fetch/hub.rs", "downloads")],
    );
}

#[test]
fn nothing_below_the_commands_calls_up_into_them() {
    let folder = workspace_root().join("ptsbench/src");
    for file in sources(&folder) {
        let name = file
            .strip_prefix(&folder)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        if name.starts_with("command/") || ["cli.rs", "main.rs"].contains(&name.as_str()) {
            continue;
        }
        assert!(!code(&file).contains("crate::command"), "{name}");
    }
}

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

/// The code of every file below `places` but the unit tests: its path from the root, and its text without comments and
/// without the tests at its foot.
fn code(places: &[&str]) -> Vec<(String, String)> {
    let root = workspace_root();
    let files = places.iter().flat_map(|place| sources(&root.join(place)));
    let code: Vec<_> = files
        .map(|file| {
            let name = file.strip_prefix(&root).unwrap();
            let text = fs::read_to_string(&file).unwrap();
            let text = text.split("mod tests {").next().unwrap();
            let lines = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            let text = lines.collect::<Vec<_>>().join("\n");
            (name.to_str().unwrap().to_owned(), text)
        })
        .filter(|(name, _)| !name.ends_with("/tests.rs"))
        .collect();
    assert!(!code.is_empty(), "{places:?}");
    code
}

/// Asserts that nothing below `places` names any of `words`, but for the files and folders listed with a reason.
fn never(places: &[&str], words: &[&str], but: &[(&str, &str)]) {
    let mut used = vec![false; but.len()];
    for (name, code) in code(places) {
        let found: Vec<&&str> = words.iter().filter(|word| code.contains(**word)).collect();
        match but
            .iter()
            .position(|(allowed, _)| name.starts_with(allowed))
        {
            Some(at) => used[at] |= !found.is_empty(),
            None => assert!(found.is_empty(), "{name} names {found:?}"),
        }
    }
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
            "criterion",
            "allocator",
        ],
        &[(
            "kernels/src/gpu/client.rs",
            "asks whether there is a driver before a device panics",
        )],
    );
}

/// Ways to change what is on the disk.
const WRITES: &[&str] = &[
    "fs::write",
    "fs::rename",
    "fs::copy",
    "fs::hard_link",
    "File::create",
    "OpenOptions",
    "create_dir",
    "write_atomic",
];

#[test]
fn the_zoo_knows_no_benchmark_and_touches_weight_files_alone() {
    never(
        &["model-zoo/src"],
        &[
            "ptsbench::",
            "std::net",
            "criterion",
            "allocator",
            "sparsity",
        ],
        &[],
    );
    never(
        &["model-zoo/src"],
        WRITES,
        &[("model-zoo/src/weights/write.rs", "weight files")],
    );
    never(
        &["model-zoo/src"],
        &["std::fs", "fs::File", "File::open"],
        &[
            ("model-zoo/src/file.rs", "opens every file that is read"),
            ("model-zoo/src/weights/", "weight files"),
        ],
    );
}

#[test]
fn a_network_is_described_once() {
    never(
        &["ptsbench/src"],
        &["\"conv1", "\"layer1", "\"features.", "\"blocks.", "\"fc\""],
        &[
            ("ptsbench/src/report/fixture.rs", "made-up records of tests"),
            ("ptsbench/src/task/train/", "initial weights of one network"),
        ],
    );
}

#[test]
fn only_these_write() {
    never(
        &["ptsbench/src"],
        WRITES,
        &[
            (
                "ptsbench/src/store",
                "records, claims, checkpoints' folders",
            ),
            ("ptsbench/src/report/mod.rs", "reports, through the store"),
            ("ptsbench/src/task/journal.rs", "how far an evaluation is"),
            ("ptsbench/src/fetch/hub.rs", "the cache of public files"),
            ("ptsbench/src/metric/npz.rs", "`fid --save-stats`"),
            ("ptsbench/src/command/export.rs", "the folder of its file"),
            ("ptsbench/src/command/generate.rs", "generated pictures"),
            ("ptsbench/src/command/micro_zoo.rs", "trained networks"),
            ("ptsbench/src/task/train/stored.rs", "a table, in its test"),
        ],
    );
}

#[test]
fn draws_come_from_named_streams() {
    never(
        &["ptsbench/src", "model-zoo/src"],
        &[
            "random(",
            "random_like",
            "Distribution::",
            "rand::",
            ".seed(",
        ],
        &[(
            "ptsbench/src/command/latency.rs",
            "what a network is timed on is no number of it",
        )],
    );
}

#[test]
fn clocks_are_read_for_times_alone() {
    never(
        &["ptsbench/src", "model-zoo/src", "kernels/src"],
        &["Instant", "SystemTime"],
        &[
            ("ptsbench/src/command/", "seconds that commands print"),
            ("ptsbench/src/pipeline", "a record's timing"),
            ("ptsbench/src/progress", "progress"),
            ("ptsbench/src/store", "claims, failures, temporary names"),
            ("ptsbench/src/task/journal.rs", "how often it is written"),
        ],
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
    let allowed = [
        "cell",
        "nofm",
        "overall",
        "record",
        "report",
        "statistics",
        "store",
    ];
    for (name, code) in code(&["ptsbench/src/report", "ptsbench/src/overall.rs"]) {
        for path in code.split("crate::").skip(1) {
            let module = path
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .next();
            assert!(
                allowed.contains(&module.unwrap_or_default()),
                "{name} uses crate::{}",
                path.lines().next().unwrap_or_default()
            );
        }
    }
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
    never(
        &["ptsbench/src"],
        &["crate::command"],
        &[("ptsbench/src/cli.rs", "the list of commands")],
    );
}

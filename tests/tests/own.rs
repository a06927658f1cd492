//! What people bring of their own: networks trained further, wrapped models, other libraries' names, recipes beside the
//! weights, and files that are sparse already.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Output;

use model_zoo::weights::{Dtype, Stored, write_stored};
use ptsbench::data::synthetic::MicroSet;
use ptsbench_tests::files::{built_in, tensors};
use ptsbench_tests::{program, workspace_root};
use serde_json::Value;

const MODEL: &str = "micro_resnet8";
/// Classes of the network that somebody trained further.
const CLASSES: usize = 7;

/// A folder with such a network's file, all keys behind a prefix, and pictures of as many classes.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.tune(MODEL, "module.", "own/tuned.safetensors");
        for index in 0..60 {
            let class = usize::from(MicroSet::TEST.label(index));
            if class < CLASSES {
                for part in ["val", "train"] {
                    let name = format!(
                        "set/{part}/n{:08}/{part}_{index:05}.png",
                        90_000_000 + class
                    );
                    built_in(&desk.path(&name), MicroSet::TEST, index);
                }
            }
        }
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A built-in network with its first classes alone, which are ours to name.
    fn tune(&self, model: &str, prefix: &str, name: &str) {
        let file = workspace_root().join(format!("assets/micro/{model}.safetensors"));
        let mut tensors = tensors(&file);
        let head: Vec<String> = ["fc.weight", "fc.bias", "head.weight", "head.bias"]
            .map(str::to_owned)
            .to_vec();
        for tensor in &mut tensors {
            if head.contains(&tensor.key) {
                let row = tensor.bytes.len() / tensor.shape[0];
                tensor.shape[0] = CLASSES;
                tensor.bytes.truncate(CLASSES * row);
            }
            tensor.key.insert_str(0, prefix);
        }
        write_stored(&self.path(name), &tensors, &BTreeMap::new()).unwrap();
    }

    fn run(&self, line: &str) -> Output {
        let mut command = program::command();
        command.current_dir(self.0.path()).args(line.split(' '));
        command.output().unwrap()
    }

    /// What is printed to standard output and standard error; the command must succeed.
    fn says(&self, line: &str) -> (String, String) {
        let output = self.run(line);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{line}: {err}");
        (out, err)
    }

    fn json(&self, line: &str) -> Value {
        let (out, _) = self.says(&format!("{line} --json"));
        serde_json::from_str(&out).unwrap()
    }

    fn refused(&self, line: &str, words: &[&str]) {
        let output = self.run(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        for word in words {
            assert!(said.contains(word), "{line}: no {word:?} in {said}");
        }
    }
}

const TUNED: &str = "--weights own/tuned.safetensors";

fn timm(size: usize) -> String {
    format!(
        r#"{{"architecture": "own", "pretrained_cfg": {{"input_size": [3, {size}, {size}], "interpolation": "bicubic",
        "crop_pct": 0.8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
        "label_names": ["a", "b", "c", "d", "e", "f", "g"]}}}}"#
    )
}

const OF_TIMM: &str =
    "shorter side 50 bicubic, crop 40, mean [0.5, 0.5, 0.5], std [0.25, 0.25, 0.25]";

#[test]
fn a_network_of_other_classes_is_evaluated_with_its_own_recipe() {
    let desk = Desk::new();
    let line = format!("evaluate {MODEL} {TUNED} --device flex --data set");
    let plain = desk.json(&line);
    assert!(plain["recipe"].as_str().unwrap().contains("crop 32"));
    // Trained for these pictures, of which it knows seven kinds.
    assert!(plain["top1"].as_f64().unwrap() > 50.0, "{plain}");

    desk.write("own/config.json", &timm(40));
    let beside = desk.json(&line);
    assert_eq!(beside["recipe"], OF_TIMM);
    let (_, err) = desk.says(&line);
    for note in ["own/config.json says", "every key begins with `module.`"] {
        assert_eq!(err.matches(note).count(), 1, "{note}: {err}");
    }
    // The option comes before the file beside the weights.
    desk.write(
        "r.toml",
        "size = 32\nresize = 32\ninterpolation = \"bilinear\"\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n",
    );
    let option = desk.json(&format!("{line} --recipe r.toml"));
    assert_eq!(
        option["recipe"],
        "shorter side 32 bilinear, crop 32, mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5]"
    );
    desk.write("r.json", &timm(40));
    let json = desk.json(&format!("{line} --recipe r.json"));
    for key in ["recipe", "correct1", "correct5"] {
        assert_eq!(json[key], beside[key], "{key}");
    }
    desk.write(
        "own/config.json",
        "{\"pretrained_cfg\": {\"input_size\": 3}}",
    );
    desk.refused(&line, &["own/config.json", "input_size is 3", "--recipe"]);
    desk.refused(
        &format!("{line} --recipe none.toml"),
        &["none.toml", "cannot be read"],
    );
}

#[test]
fn classes_and_sizes_that_do_not_fit_are_refused() {
    let desk = Desk::new();
    desk.refused(
        &format!("evaluate {MODEL} {TUNED} --device flex"),
        &["gives 7 classes", "has 20 classes"],
    );
    desk.refused(
        &format!(
            "evaluate {MODEL} --assets {} --device flex --data set",
            assets()
        ),
        &["gives 20 classes", "has 7 classes"],
    );
    desk.tune("micro_vit_nano", "", "own/vit.safetensors");
    desk.write("own/config.json", &timm(40));
    let vit = "micro_vit_nano --weights own/vit.safetensors --device flex";
    for line in [
        format!("evaluate {vit} --data set"),
        format!("infer {vit} {}", picture(&desk)),
    ] {
        desk.refused(
            &line,
            &["[3, 32, 32]", "[3, 40, 40]", "one position for each patch"],
        );
    }
}

fn assets() -> String {
    workspace_root().join("assets").display().to_string()
}

fn picture(desk: &Desk) -> String {
    let folder = fs::read_dir(desk.0.path().join("set/val")).unwrap();
    let class = folder.flatten().next().unwrap().path();
    let file = fs::read_dir(class)
        .unwrap()
        .flatten()
        .next()
        .unwrap()
        .path();
    file.display().to_string()
}

#[test]
fn classes_have_the_names_that_come_with_the_weights() {
    let desk = Desk::new();
    let line = format!("infer {MODEL} {} {TUNED} --device flex", picture(&desk));
    assert!(desk.says(&line).0.contains("%  class "));
    desk.write("own/config.json", &timm(32));
    let named = desk.json(&line);
    let class = named["classes"][0]["class"].as_u64().unwrap() as usize;
    assert_eq!(
        named["classes"][0]["label"],
        ["a", "b", "c", "d", "e", "f", "g"][class]
    );
    desk.write("own/config.json", &timm(32).replace("\"a\", ", ""));
    let (out, err) = desk.says(&line);
    assert!(out.contains("class "), "{out}");
    assert!(
        err.contains("names 6 classes, and the network has 7"),
        "{err}"
    );
}

#[test]
fn an_export_has_the_networks_own_keys() {
    let desk = Desk::new();
    let line = format!("export {MODEL} {TUNED} --device flex --out");
    let (_, err) = desk.says(&format!("{line} dense.safetensors"));
    assert_eq!(
        err.matches("every key begins with `module.`").count(),
        1,
        "{err}"
    );
    let (source, dense) = (
        tensors(&desk.path("own/tuned.safetensors")),
        tensors(&desk.path("dense.safetensors")),
    );
    assert_eq!(source.len(), dense.len());
    for tensor in source {
        let key = tensor.key.strip_prefix("module.").unwrap();
        let same = dense.iter().find(|other| other.key == key).unwrap();
        assert!(
            same.bytes == tensor.bytes && same.shape == tensor.shape,
            "{key}"
        );
    }
    // What was exported is recognised, with its zeros.
    desk.says(&format!("{line} half.safetensors --rate 0.5"));
    let found = desk.json("inspect half.safetensors");
    assert_eq!(found["model"], MODEL);
    assert_eq!(found["classes"], CLASSES);
    let of = |key: &str| found[key].as_u64().unwrap();
    assert!((of("zeros") * 2).abs_diff(of("weights")) <= 1, "{found}");
    let named = desk.json(&format!("inspect {MODEL} --weights half.safetensors"));
    assert_eq!(named["layers"], found["layers"]);
    desk.says(&format!("{line} nm.safetensors --pattern 2:4"));
    let found = desk.json("inspect nm.safetensors");
    let layers = found["layers"].as_array().unwrap();
    let pruned: Vec<&Value> = layers.iter().filter(|layer| layer["zeros"] != 0).collect();
    assert!(!pruned.is_empty());
    for layer in pruned {
        assert!(
            layer["patterns"]
                .as_array()
                .unwrap()
                .contains(&"2:4".into()),
            "{layer}"
        );
    }
    let timed = desk.json(&format!("latency {MODEL} {TUNED} --batch 1 --rounds 1"));
    let random = desk.json(&format!("latency {MODEL} --batch 1 --rounds 1"));
    // Seven classes in place of twenty.
    assert!(timed[0]["gmacs"].as_f64() < random[0]["gmacs"].as_f64());
    // With a rate, an allocator looks at the file's own layers.
    let ruled = desk.json("inspect half.safetensors --rate 0.5 --allocator l2norm");
    assert_eq!(
        ruled["layers"].as_array().unwrap().last().unwrap()["shape"][0],
        CLASSES
    );
}

#[test]
fn a_file_of_no_known_network_is_shown_as_it_is() {
    let desk = Desk::new();
    let tensor = |key: &str, shape: &[usize], values: Vec<f32>| Stored {
        key: key.to_owned(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    };
    let tensors = [
        tensor("a.weight", &[2, 8], [1.0, 0.0, 2.0, 0.0].repeat(4)),
        tensor("b.weight", &[2, 3], vec![0.0, 0.0, 0.0, 1.0, 2.0, 3.0]),
        tensor("a.bias", &[2], vec![0.0; 2]),
    ];
    write_stored(&desk.path("some.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let found = desk.json("inspect some.safetensors");
    assert_eq!(found["model"], Value::Null);
    assert_eq!(found["zeros"], 11);
    let layers = found["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(layers[0]["patterns"], serde_json::json!(["1:2"]));
    assert_eq!(layers[1]["dead_rows"], 1);
    let (text, _) = desk.says("inspect some.safetensors");
    assert!(text.contains("not a network of the catalog"), "{text}");
    assert!(text.contains("1 of 2"), "{text}");
    desk.refused(
        "inspect some.safetensors --rate 0.5",
        &["nothing to allocate to"],
    );
    desk.refused(
        "inspect none.safetensors",
        &["none.safetensors", "No such file"],
    );
}

const PLAN: &str = "name = \"own\"\ntitle = \"Own\"\n[task]\nname = \"TASK\"\nsamples = 9\n\
    [[grid]]\nname = \"grid\"\ntrack = \"allocation\"\nmodels = [\"MODEL\"]\nrates = [0.5]\nallocators = [\"uniform\"]\n";

#[test]
fn plans_take_other_libraries_names_and_keep_the_catalogs() {
    let desk = Desk::new();
    // A plan reads a file's digest alone.
    for (name, row) in [
        (
            "hf_hub:timm/deit_tiny_patch16_224.fb_in1k",
            "deit_tiny_patch16_224",
        ),
        ("resnet18.a1_in1k", "resnet18"),
        ("mobilenet_v2", "mobilenetv2_100_tv"),
    ] {
        desk.write(
            "plan.toml",
            &PLAN.replace("MODEL", name).replace("TASK", "micro"),
        );
        for given in [name, row] {
            let plan = desk.json(&format!(
                "plan plan.toml --weights {given}=own/tuned.safetensors"
            ));
            let cells = plan["cells"].as_array().unwrap();
            assert_eq!(cells.len(), 2);
            assert!(
                cells.iter().all(|cell| cell["cell"]["model"] == row),
                "{plan}"
            );
        }
    }
    let others = &[
        "`resnet18.a1_in1k` names weights that are not known",
        "timm/resnet18.tv_in1k",
    ];
    desk.write(
        "plan.toml",
        &PLAN
            .replace("MODEL", "resnet18.a1_in1k")
            .replace("TASK", "micro"),
    );
    for line in [
        "plan plan.toml",
        "evaluate resnet18.a1_in1k",
        "fetch --offline resnet18.a1_in1k",
    ] {
        desk.refused(line, others);
    }
    let (_, err) = desk.says("inspect timm/mobilenetv3_large_100.ra_in1k");
    assert!(
        err.contains("the catalog's `mobilenetv3_large_100_timm`"),
        "{err}"
    );
}

#[test]
fn a_record_holds_the_recipe_that_it_was_measured_with() {
    let desk = Desk::new();
    desk.write(
        "plan.toml",
        &PLAN.replace("MODEL", MODEL).replace("TASK", "imagenet"),
    );
    desk.write("own/config.json", &timm(40));
    let weights = format!("{MODEL}=own/tuned.safetensors");
    let line = format!(
        "run plan.toml --store records --device flex --weights {weights} --data-dir imagenet=set"
    );
    desk.says(&line);
    let records = || -> Vec<Value> {
        let folders = fs::read_dir(desk.path("records")).unwrap().flatten();
        let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten());
        files
            .flatten()
            .filter_map(|file| serde_json::from_str(&fs::read_to_string(file.path()).ok()?).ok())
            .filter(|value: &Value| value["cell"].is_object())
            .collect()
    };
    let first = records();
    assert_eq!(first.len(), 2);
    for record in &first {
        assert_eq!(record["cell"]["task"]["recipe"], OF_TIMM);
    }
    let evaluated = desk.json(&format!(
        "evaluate {MODEL} {TUNED} --device flex --data set --samples 9"
    ));
    let dense = first
        .iter()
        .find(|record| record["cell"]["sparsity"].is_null());
    assert_eq!(
        dense.unwrap()["score"]["counts"]["correct"],
        evaluated["correct1"]
    );
    // 40 x 40 in place of 32 x 32.
    let macs = dense.unwrap()["cost"]["macs"].as_u64().unwrap();
    let small = desk.json(&format!("inspect {MODEL}"))["macs"]
        .as_u64()
        .unwrap();
    assert!(macs > small * 5 / 4, "{macs} {small}");

    // Another recipe is another measurement; the plan's report finds its own.
    desk.says("report --store records --plan plan.toml --out report");
    desk.write("own/config.json", &timm(32));
    desk.says(&line);
    assert_eq!(records().len(), 4);
    desk.refused(
        "report --store records --plan plan.toml --out report",
        &["two different recipes"],
    );
}

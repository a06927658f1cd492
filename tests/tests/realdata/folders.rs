//! Pictures of one's own, in one folder per class.

use std::collections::BTreeMap;

use model_zoo::weights::write_stored;
use ptsbench_tests::files::tensors;

use super::*;

/// A folder's name whose place among all of them is not the label.
fn odd(label: usize) -> String {
    format!("kind_{:02}", (7 * label + 3) % CLASSES)
}

impl Desk {
    /// The first pictures of a set in folders below this one, by the names of their classes.
    fn sorted(&self, below: &str, set: MicroSet, count: usize, class: fn(usize) -> String) {
        for index in 0..count {
            let class = class(set.label(index).into());
            built_in(
                &self.path(&format!("{below}/{class}/{index:05}.png")),
                set,
                index,
            );
        }
    }

    /// The list that makes the label of such folders what it is.
    fn listed(&self, below: &str, class: fn(usize) -> String) {
        let names: Vec<String> = (0..CLASSES).map(class).collect();
        fs::write(self.path(below).join("classes.txt"), names.join("\n")).unwrap();
    }

    fn says(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(0), "{line}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned() + &said(&output)
    }

    /// What `data check` prints, which takes no other options.
    fn check(&self, folder: &str) -> (bool, String) {
        let mut command = program::command();
        command
            .current_dir(self.0.path())
            .args(["data", "check", folder]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &said(&output);
        (output.status.success(), text)
    }

    fn records(&self) -> Vec<Value> {
        let folders = fs::read_dir(self.path("records")).unwrap().flatten();
        let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten());
        files
            .flatten()
            .filter_map(|file| serde_json::from_str(&fs::read_to_string(file.path()).ok()?).ok())
            .filter(|record: &Value| record["score"].is_object())
            .collect()
    }
}

fn plain(label: usize) -> String {
    format!("class_{label:02}")
}

#[test]
fn class_folders_give_the_numbers_of_the_same_images_built_in() {
    const COUNT: usize = 200;
    let desk = Desk::new(0);
    let (built_in, _) = desk.evaluate(&format!("{MODEL} --samples {COUNT}"));
    for held_out in ["val", "valid", "validation", "test"] {
        desk.sorted(
            &format!("{held_out}_set/{held_out}"),
            MicroSet::TEST,
            COUNT,
            plain,
        );
    }
    desk.sorted("odd/val", MicroSet::TEST, COUNT, odd);
    let evaluate = |data: &str| desk.evaluate(&format!("{MODEL} --data {data}")).0;
    let own = evaluate("val_set");
    for key in ["images", "correct1", "correct5", "top1"] {
        assert_eq!(own[key], built_in[key], "{key}");
    }
    assert_eq!(own["data"], "folder");
    assert_eq!(own["list"].as_str().map(str::len), Some(64));
    assert!(own["split"].is_null(), "{own}");
    for held_out in ["valid", "validation", "test"] {
        let other = evaluate(&format!("{held_out}_set"));
        assert_eq!(other["list"], own["list"], "{held_out}");
        assert_eq!(other["correct1"], own["correct1"], "{held_out}");
    }
    // Folders in another order are other classes, until a list says which is which.
    let sorted = evaluate("odd");
    assert!(sorted["correct1"].as_u64() < own["correct1"].as_u64());
    desk.listed("odd", odd);
    let listed = evaluate("odd");
    assert_eq!(listed["correct1"], own["correct1"]);
    assert_ne!(listed["list"], sorted["list"]);
    // The same labels under other names are another set.
    assert_ne!(listed["list"], own["list"]);
}

#[test]
fn a_set_is_found_one_level_below() {
    const COUNT: usize = 60;
    let desk = Desk::new(0);
    desk.sorted("data/mine/val", MicroSet::TEST, COUNT, plain);
    let direct = desk.evaluate(&format!("{MODEL} --data data/mine")).0;
    let line = format!("evaluate {MODEL} --data data");
    let text = desk.says(&line);
    assert!(
        text.contains("note: data: using mine/, one level below"),
        "{text}"
    );
    let below = desk.evaluate(&format!("{MODEL} --data data")).0;
    assert_eq!(below["list"], direct["list"]);
    assert_eq!(below["folder"], direct["folder"]);
    let (good, text) = desk.check("data");
    assert!(good && text.contains("one level below, in mine"), "{text}");

    // CIFAR beside it: one must be named, unless the task says which.
    let cifar = workspace_root().join("tests/golden/data/datasets/valid/cifar");
    let copy = |name: &str| {
        fs::create_dir(desk.path("data").join(name)).unwrap();
        for file in fs::read_dir(cifar.join(name)).unwrap().flatten() {
            let to = desk.path("data").join(name).join(file.file_name());
            fs::copy(file.path(), to).unwrap();
        }
    };
    copy("cifar-10-batches-bin");
    let words = [
        "several one level below",
        "  cifar-10-batches-bin: CIFAR-10",
        "  mine: pictures",
    ];
    desk.refused(&line, &words);
    let plan = "name = 'p'\ntitle = 'P'\n[task]\nname = 'TASK'\nsamples = 2\n\
        [[grid]]\nname = 'g'\ntrack = 'allocation'\nmodels = ['MODEL']\ndense = true\n";
    fs::write(
        desk.path("own.toml"),
        plan.replace("TASK", "folder").replace("MODEL", MODEL),
    )
    .unwrap();
    let model = "tiny_cifar_resnet8";
    fs::write(
        desk.path("ten.toml"),
        plan.replace("TASK", "cifar10").replace("MODEL", model),
    )
    .unwrap();
    random_weights(model, &desk.path("ten.safetensors"));
    let text = desk.says("run own.toml --store records --data-dir folder=data");
    assert!(text.contains("using mine/, one level below"), "{text}");
    let ten = format!(
        "run ten.toml --store records --weights {model}=ten.safetensors --data-dir cifar10=data"
    );
    let text = desk.says(&ten);
    assert!(
        text.contains("using cifar-10-batches-bin/, one level below (CIFAR-10)"),
        "{text}"
    );
    copy("cifar-10-batches-py");
    let other = ten.replace("records", "other");
    desk.refused(&other, &["cifar-10-batches-bin", "cifar-10-batches-py"]);
}

const PLAN: &str = "name = 'own'\ntitle = 'Own'\n[task]\nname = 'folder'\nsamples = 40\n\
    [calibration]\nimages = 32\nbatch = 16\n\
    [[grid]]\nname = 'grid'\ntrack = 'allocation'\nmodels = ['MODEL']\nrates = [0.5]\n\
    allocators = ['uniform']\nrepair = ['none', 'bn_re_estimation']\n";

#[test]
fn a_plan_on_class_folders_draws_its_split_and_calibrates() {
    const COUNT: usize = 300;
    let desk = Desk::new(0);
    desk.sorted("own", MicroSet::TEST, COUNT, plain);
    fs::write(desk.path("plan.toml"), PLAN.replace("MODEL", MODEL)).unwrap();
    desk.refused("run plan.toml --store records", &["--data-dir folder=DIR"]);
    let (report, _) = desk.evaluate(&format!("{MODEL} --data own --samples 40"));
    let split = report["split"].as_str().unwrap();
    assert!(split.contains("20 % of each class"), "{split}");
    let available = report["available"].as_u64().unwrap();
    assert!((50..70).contains(&available), "{available}");
    let line = "run plan.toml --store records --data-dir folder=own";
    let text = desk.says(line);
    assert!(text.contains("neither train/ nor val/"), "{text}");
    let records = desk.records();
    assert_eq!(records.len(), 3);
    let mut calibrated = 0;
    for record in &records {
        let task = &record["cell"]["task"];
        assert_eq!(task["name"], "folder");
        assert_eq!(task["data"], report["list"]);
        assert_eq!(task["split"], report["split"]);
        let sparsity = &record["cell"]["sparsity"];
        if sparsity.is_null() {
            assert_eq!(record["score"]["counts"]["correct"], report["correct1"]);
        }
        if sparsity["repair"].is_object() {
            calibrated += usize::from(sparsity["calibration"]["list"].is_string());
        }
    }
    assert_eq!(calibrated, 1);
    assert!(desk.says(line).contains("3 done, 0 to compute"));
    // The report finds the lists, those of repairs too, in the records: no folder is needed.
    fs::remove_dir_all(desk.path("own")).unwrap();
    let mut command = program::command();
    command.current_dir(desk.0.path());
    command.args("report --plan plan.toml --store records --out shown".split(' '));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &said(&output);
    assert!(
        output.status.success() && !text.contains("have no record"),
        "{text}"
    );
}

#[test]
fn class_folders_that_cannot_be_used_are_refused() {
    let desk = Desk::new(0);
    desk.sorted("own/val", MicroSet::TEST, 60, plain);
    fs::write(desk.path("plan.toml"), PLAN.replace("MODEL", MODEL)).unwrap();
    let run = "run plan.toml --store records --data-dir folder=own";
    desk.refused(run, &["own", "no training images", "train/<class>/"]);
    desk.sorted("own/train", MicroSet::TRAIN, 60, plain);
    // Calibration has what it needs; a picture that cannot be read gives no score, but counts in `evaluate`.
    let label = usize::from(MicroSet::TEST.label(5));
    let picture = desk.path(&format!("own/val/{}/00005.png", plain(label)));
    fs::write(&picture, "no image at all").unwrap();
    let all = PLAN
        .replace("MODEL", MODEL)
        .replace("samples = 40", "samples = 60");
    fs::write(desk.path("plan.toml"), all).unwrap();
    desk.refused(run, &["00005.png", "no score of a damaged set"]);
    let (report, code) = desk.evaluate(&format!("{MODEL} --data own"));
    assert_eq!(
        (code, report["unreadable"].as_array().map(Vec::len)),
        (Some(1), Some(1))
    );

    let evaluate = format!("evaluate {MODEL} --data");
    desk.sorted("other/val", MicroSet::TEST, 60, plain);
    desk.sorted("other/train", MicroSet::TRAIN, 60, plain);
    fs::rename(desk.path("other/val/class_03"), desk.path("other/val/cat")).unwrap();
    let words = [
        "only train/ has `class_03`",
        "only val/ has `cat`",
        "classes.txt",
    ];
    desk.refused(&format!("{evaluate} other"), &words);
    desk.sorted("few/val", MicroSet::TEST, 60, |label| {
        format!("class_{}", label % 3)
    });
    desk.refused(
        &format!("{evaluate} few"),
        &["gives 20 classes", "3 classes"],
    );
    desk.sorted("only", MicroSet::TEST, 3, |_| "cat".to_owned());
    desk.refused(
        &format!("{evaluate} only"),
        &["it has one folder of pictures, `cat`"],
    );
    desk.refused(
        &format!("{evaluate} only/cat"),
        &["directly in it", "one folder per class"],
    );
}

#[test]
fn data_check_knows_class_folders_from_imagenet() {
    let desk = Desk::new(20);
    desk.sorted("pets/train", MicroSet::TRAIN, 12, |label| {
        ["cat", "dog"][label % 2].to_owned()
    });
    desk.sorted("pets/val", MicroSet::TEST, 12, |label| {
        ["cat", "dog"][label % 2].to_owned()
    });
    let (good, text) = desk.check("pets");
    assert!(good, "{text}");
    for words in [
        "pictures in one folder per class",
        "task: folder",
        "classes: 2 (cat, dog)",
        "train: 12 images",
        "evaluation: 12 images",
    ] {
        assert!(text.contains(words), "{words:?} is missing in {text}");
    }
    let (good, text) = desk.check("set");
    assert!(good && text.contains("ImageNet"), "{text}");
    let (good, text) = desk.check("set/val");
    assert!(
        !good && text.contains("give the folder that holds train/ and val/"),
        "{text}"
    );
}

#[test]
fn a_network_of_ones_own_classes_sees_pictures_at_its_own_size() {
    let desk = Desk::new(0);
    random_weights("resnet18", &desk.path("thousand.safetensors"));
    let mut tensors = tensors(&desk.path("thousand.safetensors"));
    for tensor in &mut tensors {
        if tensor.key.starts_with("fc.") {
            let row = tensor.bytes.len() / tensor.shape[0];
            tensor.shape[0] = 10;
            tensor.bytes.truncate(10 * row);
        }
    }
    write_stored(&desk.path("ten.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let recipe = "size = 224\nresize = 256\ninterpolation = 'bilinear'\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n";
    fs::write(desk.path("own.toml"), recipe).unwrap();
    desk.sorted("own/val", MicroSet::TEST, 20, |label| {
        format!("class_{}", label % 10)
    });
    let line = "resnet18 --weights ten.safetensors --recipe own.toml --data own";
    let (report, code) = desk.evaluate(line);
    assert_eq!((code, report["images"].as_u64()), (Some(0), Some(20)));
    assert!(
        report["recipe"]
            .as_str()
            .unwrap()
            .contains("256 bilinear, crop 224")
    );
    assert_eq!(report["model"], "resnet18");
    // Of ten classes five are named.
    let fifth = report["correct5"].as_u64().unwrap();
    assert!(
        report["correct1"].as_u64().unwrap() <= fifth && fifth < 20,
        "{report}"
    );
}

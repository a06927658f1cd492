//! Detectors with random weights, end to end: on the built-in scenes, and on the same scenes written as folders of COCO's
//! and VOC's layouts, which must give the numbers that they give built in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::weights::save;
use model_zoo::{Boxes, Of};
use ptsbench::data::decode::{self, Rotation};
use ptsbench::data::synthetic::Split;
use ptsbench::data::synthetic::detection::{CATEGORIES, Scene, scene};
use ptsbench_tests::files::png;
use ptsbench_tests::program;
use serde_json::{Value, json};

const RETINANET: &str = "tiny_retinanet";
const SSD: &str = "tiny_mobilenetv2_ssd_lite";
/// Pictures of the folders.
const COUNT: usize = 10;

/// A folder with the weights of both detectors, and a recipe by which they find boxes without having been trained.
struct Desk(tempfile::TempDir);

/// Writes random weights of a detector for so many classes.
struct Save<'a>(&'a Path, usize);

impl Visit<Boxes> for Save<'_> {
    type Out = ();

    fn visit<N: Of<Boxes>>(self, _: &'static Spec, network: N) {
        let network = network.with_classes(self.1);
        let key = |path: &str| network.key(path);
        save(&network, key, self.0, &Default::default()).unwrap();
    }
}

/// Other networks are not saved here.
macro_rules! none {
    ($($kind:ident),+) => {$(
        impl Visit<model_zoo::$kind> for Save<'_> {
            type Out = ();
            fn visit<N: Of<model_zoo::$kind>>(self, spec: &'static Spec, _: N) {
                panic!("{} is no detector", spec.name);
            }
        }
    )+};
}

none!(Classes, Noise, Tokens);

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        let device = Device::flex();
        for (model, classes, file) in [
            (RETINANET, 5, "retinanet"),
            (SSD, 6, "ssd"),
            (RETINANET, 8, "wide"),
        ] {
            device.seed(0);
            let file = desk.path(&format!("{file}.safetensors"));
            let spec = catalog::find(model).unwrap();
            spec.open(&device, Save(&file, classes));
        }
        let text = "score_threshold = 0.008\ndetections = 40\n";
        fs::write(desk.path("boxes.toml"), text).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = program::command();
        command.current_dir(self.0.path()).args(line.split(' '));
        command.args(["--device", "flex"]);
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// The JSON that an evaluation prints, and what it says beside it.
    fn evaluate(&self, line: &str) -> (Value, String) {
        let output = self.run(&format!("evaluate {line} --json"));
        let report = serde_json::from_slice(&output.stdout);
        let report = report.unwrap_or_else(|_| panic!("{line}: {}", said(&output)));
        (report, said(&output))
    }

    fn refused(&self, line: &str, words: &[&str]) {
        let output = self.run(line);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{line}: {text}");
        for word in words {
            assert!(text.contains(word), "{line}: {word:?} is missing in {text}");
        }
    }

    /// Scenes as COCO has them, with these ids of categories.
    fn coco(&self, folder: &str, ids: [i64; 5]) {
        let (mut images, mut annotations) = (Vec::new(), Vec::new());
        for index in 0..COUNT {
            let scene = scene(Split::Test, index);
            let file = format!("{index:012}.png");
            self.picture(&format!("{folder}/val2017/{file}"), &scene);
            images.push(json!({"id": index, "file_name": file, "width": 160, "height": 160}));
            for object in &scene.objects {
                annotations.push(json!({
                    "id": annotations.len() + 1,
                    "image_id": index,
                    "category_id": ids[object.category],
                    "bbox": object.bbox,
                    "area": object.area,
                    "iscrowd": u8::from(object.crowd),
                }));
            }
            let train = self::scene(Split::Train, index);
            self.picture(&format!("{folder}/train2017/{file}"), &train);
        }
        let category = |(id, name): (&i64, &&str)| json!({"id": id, "name": name});
        let categories: Vec<Value> = ids.iter().zip(&CATEGORIES).map(category).collect();
        let all = json!({"images": images, "annotations": annotations, "categories": categories});
        let file = self.path(&format!("{folder}/annotations/instances_val2017.json"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, all.to_string()).unwrap();
    }

    /// Scenes as VOC has them, under these names of classes.
    fn voc(&self, folder: &str, names: [&str; 5]) {
        let root = format!("{folder}/VOC2007");
        for part in ["Annotations", "ImageSets/Main"] {
            fs::create_dir_all(self.path(&format!("{root}/{part}"))).unwrap();
        }
        for (set, split) in [("test", Split::Test), ("trainval", Split::Train)] {
            let mut list = String::new();
            for index in 0..COUNT {
                let scene = scene(split, index);
                let id = format!("{set}_{index:06}");
                self.picture(&format!("{root}/JPEGImages/{id}.png"), &scene);
                list += &format!("{id}\n");
                let objects = scene.objects.iter().map(|object| {
                    let [left, top, width, height] = object.bbox;
                    format!(
                        "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>",
                        names[object.category],
                        u8::from(object.crowd),
                        left + 1,
                        top + 1,
                        left + width,
                        top + height
                    )
                });
                let objects: String = objects.collect();
                let text = format!(
                    "<annotation><size><width>160</width><height>160</height></size>{objects}</annotation>"
                );
                fs::write(self.path(&format!("{root}/Annotations/{id}.xml")), text).unwrap();
            }
            fs::write(self.path(&format!("{root}/ImageSets/Main/{set}.txt")), list).unwrap();
        }
    }

    fn picture(&self, file: &str, scene: &Scene) {
        let picture = &scene.picture;
        let size = [picture.width, picture.height];
        png(&self.path(file), size, &picture.pixels);
    }
}

const WITH: &str = "tiny_retinanet --weights retinanet.safetensors --recipe boxes.toml";
const SSD_WITH: &str = "tiny_mobilenetv2_ssd_lite --weights ssd.safetensors";

#[test]
fn folders_give_the_numbers_of_the_same_scenes_built_in() {
    let desk = Desk::new();
    desk.coco("coco", [1, 2, 3, 4, 5]);
    // By alphabet, classes come in the order that they have built in.
    let names = ["a_disc", "b_square", "c_triangle", "d_cross", "e_ring"];
    desk.voc("voc", names);
    for with in [WITH, SSD_WITH] {
        let built_in = format!("{with} --data micro_boxes --samples {COUNT}");
        let (built_in, _) = desk.evaluate(&format!("{built_in} --batch 4"));
        println!("{built_in}");
        assert_eq!(built_in["data"], "micro_boxes");
        assert!(built_in["boxes"].as_u64().unwrap() > 50, "{built_in}");
        assert!(built_in["map11"].as_f64().unwrap() > 0.0, "{built_in}");
        let (coco, notes) = desk.evaluate(&format!("{with} --data coco --batch 3"));
        for key in [
            "boxes",
            "objects",
            "ap",
            "ap50",
            "ap75",
            "ap_small",
            "ap_medium",
        ] {
            assert_eq!(coco[key], built_in[key], "{key}");
        }
        assert_eq!(coco["data"], "coco");
        assert!(coco["map11"].is_null());
        assert_eq!(coco["recipe"], built_in["recipe"]);
        // An output for each of COCO's numbers needs no word.
        let said = notes.contains("without a background");
        assert_eq!(said, with == WITH, "{notes}");
        let (voc, notes) = desk.evaluate(&format!("{with} --data voc --batch 5"));
        for key in ["boxes", "objects", "map11", "map_all"] {
            assert_eq!(voc[key], built_in[key], "{key}");
        }
        assert_eq!(voc["data"], "voc07");
        assert!(voc["ap"].is_null());
        assert!(notes.contains("a_disc, b_square"), "{notes}");
    }
    // Ids may have gaps, and names an order of their own.
    desk.coco("gaps", [3, 7, 8, 20, 90]);
    let (gaps, _) = desk.evaluate(&format!("{WITH} --data gaps"));
    let (plain, _) = desk.evaluate(&format!("{WITH} --data coco"));
    assert_eq!(gaps["ap"], plain["ap"]);
    assert_ne!(gaps["list"], plain["list"]);
    let list = "a_disc\nb_square\nc_triangle\nd_cross\ne_ring\n";
    fs::write(desk.path("voc/VOC2007/classes.txt"), list).unwrap();
    let (listed, notes) = desk.evaluate(&format!("{WITH} --data voc"));
    assert!(listed["map11"].is_number());
    assert!(notes.contains("classes.txt"), "{notes}");
}

#[test]
fn a_killed_evaluation_goes_on_where_it_was() {
    let desk = Desk::new();
    let line = format!("{WITH} --data micro_boxes_validation --samples 400 --batch 2");
    let (whole, _) = desk.evaluate(&line);
    let journal = desk.path("half.json");
    let resumed = format!("{line} --resume half.json");
    let mut child = desk
        .command(&format!("evaluate {resumed}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !journal.exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let (report, _) = desk.evaluate(&resumed);
    for key in ["images", "boxes", "map11", "map_all", "ap", "ap50"] {
        assert_eq!(report[key], whole[key], "{key}");
    }
    assert!(report["evaluated"].as_u64().unwrap() < 400, "{report}");
    assert_eq!(report["data"], "micro_boxes_validation");
}

#[test]
fn odd_pictures_and_sets_cost_a_line_or_are_refused() {
    let desk = Desk::new();
    desk.coco("coco", [1, 2, 3, 4, 5]);
    let picture = |index: usize| desk.path(&format!("coco/val2017/{index:012}.png"));
    fs::write(picture(2), "no picture at all").unwrap();
    // Pictures of other sizes than the annotations say, one of them a line.
    png(&picture(4), [900, 2], &[90; 900 * 2 * 3]);
    png(&picture(5), [70, 400], &[120; 70 * 400 * 3]);
    let line = format!("evaluate {WITH} --data coco --json");
    let reports = [1, 4, 10].map(|batch| {
        let output = desk.run(&format!("{line} --batch {batch}"));
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("000000000002.png"), "{text}");
        assert!(text.contains("1 of 10 images"), "{text}");
        let mut report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["seconds"] = Value::Null;
        report
    });
    assert_eq!(reports[0], reports[1]);
    assert_eq!(reports[0], reports[2]);

    let wide = "evaluate tiny_retinanet --weights wide.safetensors --data";
    let words = ["scores of 8 classes", "has 5", "6 with a background"];
    desk.refused(&format!("{wide} micro_boxes"), &words);
    desk.refused(
        "evaluate tiny_retinanet --weights retinanet.safetensors --data micro",
        &["finds boxes", "names classes"],
    );
    desk.refused(
        &format!("evaluate {WITH} --data micro_boxes --samples 1001"),
        &["--samples is 1001", "1000"],
    );
    fs::remove_file(picture(7)).unwrap();
    desk.refused(
        &format!("evaluate {WITH} --data coco"),
        &["000000000007.png", "complete the images"],
    );
    let file = desk.path("coco/annotations/instances_val2017.json");
    let text = fs::read_to_string(&file).unwrap();
    let other = text.replacen("\"category_id\":", "\"category_id\":7", 1);
    png(&picture(7), [160, 160], &[90; 160 * 160 * 3]);
    fs::write(&file, other).unwrap();
    desk.refused(
        &format!("evaluate {WITH} --data coco"),
        &["is not among the categories"],
    );

    desk.voc("voc", ["disc", "square", "cat", "cross", "ring"]);
    desk.refused(
        &format!("evaluate {WITH} --data voc"),
        &["none of the 20 VOC classes", "classes.txt"],
    );
    fs::write(desk.path("cut.toml"), "min_size = 0\n").unwrap();
    desk.refused(
        "evaluate tiny_retinanet --weights retinanet.safetensors --recipe cut.toml --data micro_boxes",
        &["cut.toml", "min_size is 0"],
    );
}

#[test]
fn a_plan_prunes_and_reconstructs_detectors() {
    let desk = Desk::new();
    desk.coco("set", [1, 2, 3, 4, 5]);
    let plan = |task: &str| {
        format!(
            "name = 'boxes'\ntitle = 'Boxes'\n[task]\nname = '{task}'\nsamples = {COUNT}\n\
             [calibration]\nimages = 8\nbatch = 4\n\
             [fit.few]\noptimizer = 'adam'\nlr = 0.0005\nsteps = 3\n\
             [[grid]]\nname = 'grid'\ntrack = 'reconstruction'\nmodels = ['{RETINANET}']\nrates = [0.5]\n\
             allocators = ['uniform']\ngranularity = ['layer']\n"
        )
    };
    fs::write(desk.path("micro.toml"), plan("micro_boxes")).unwrap();
    fs::write(desk.path("coco.toml"), plan("coco")).unwrap();
    let files = "--weights tiny_retinanet=retinanet.safetensors --recipe tiny_retinanet=boxes.toml";
    let mut scores = Vec::new();
    for (plan, task, data, metric) in [
        ("micro.toml", "micro_boxes", "", "map11"),
        ("coco.toml", "coco", " --data-dir coco=set", "ap"),
    ] {
        let store = format!("records-{task}");
        let line = format!("run {plan} --store {store} {files}{data}");
        let output = desk.run(&line);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let records = records(&desk.path(&store));
        assert_eq!(records.len(), 3);
        for record in &records {
            let score = &record["score"];
            assert_eq!(score["metric"], metric, "{score}");
            assert_eq!(score["counts"]["of"], "boxes");
            assert_eq!(score["counts"]["total"], COUNT);
            let recipe = record["cell"]["task"]["recipe"].as_str().unwrap();
            assert!(recipe.contains("score above 0.008"), "{recipe}");
            let sparsity = &record["cell"]["sparsity"];
            if sparsity["reconstruction"].is_object() {
                assert!(!record["units"].as_array().unwrap().is_empty());
                let list = &sparsity["reconstruction"]["calibration"]["list"];
                assert_eq!(list.is_string(), task == "coco");
            }
            if sparsity.is_null() {
                scores.push(score.clone());
            }
        }
        let again = desk.run(&line);
        assert!(
            said(&again).contains("3 done, 0 to compute"),
            "{}",
            said(&again)
        );
    }
    assert_eq!(scores[0]["also"]["ap"], scores[1]["value"]);
    fs::remove_dir_all(desk.path("set/train2017")).unwrap();
    desk.refused(
        &format!("run coco.toml --store other {files} --data-dir coco=set"),
        &["no training pictures", "train2017"],
    );
}

fn records(store: &Path) -> Vec<Value> {
    let folders = fs::read_dir(store).unwrap();
    folders
        .flat_map(|folder| fs::read_dir(folder.unwrap().path()).into_iter().flatten())
        .map(|file| file.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.ends_with(".json") && !name.ends_with(".failed.json")
        })
        .map(|path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())
        .collect()
}

#[test]
fn boxes_are_printed_and_drawn() {
    let desk = Desk::new();
    for index in [0, 1] {
        desk.picture(&format!("{index}.png"), &scene(Split::Test, index));
    }
    fs::create_dir(desk.path("drawn")).unwrap();
    fs::write(desk.path("broken.png"), "no picture at all").unwrap();
    let line = format!("infer {WITH} --score 0.009 --draw drawn 0.png broken.png 1.png");
    let output = desk.run(&format!("{line} --json"));
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("broken.png"), "{text}");
    assert!(text.contains("1 of 3 images could not be read"), "{text}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 2);
    for (answer, index) in answers.iter().zip([0, 1]) {
        let boxes = answer["boxes"].as_array().unwrap();
        assert!(!boxes.is_empty(), "{answer}");
        for found in boxes {
            assert!(found["score"].as_f64().unwrap() >= 0.009, "{found}");
            assert!(found["label"].as_str().unwrap().starts_with("class "));
            let corners = found["corners"].as_array().unwrap();
            let inside = |side: &Value| (0.0..=160.0).contains(&side.as_f64().unwrap());
            assert!(corners.iter().all(inside), "{found}");
        }
        let drawn = desk.path(&format!("drawn/{index}.png"));
        let drawn = decode::read(&drawn, Rotation::Ignore).unwrap();
        let own = scene(Split::Test, index).picture;
        assert_eq!((drawn.width, drawn.height), (own.width, own.height));
        assert_ne!(drawn.pixels, own.pixels);
    }
    let output = desk.run(&format!("infer {WITH} --score 0.009 0.png"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains(" %  class ") && text.contains(" from "),
        "{text}"
    );
    let output = desk.run("infer tiny_retinanet --weights retinanet.safetensors 0.png");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("nothing with a score of 0.3"), "{text}");

    desk.refused(
        &format!("infer {WITH} --draw . 0.png"),
        &["would be overwritten"],
    );
    desk.refused(
        &format!("infer {WITH} --draw none 0.png"),
        &["none", "make it first"],
    );
    desk.refused(
        "infer tiny_unet --weights retinanet.safetensors 0.png",
        &["predicts noise", "`infer` names classes and finds boxes"],
    );
}

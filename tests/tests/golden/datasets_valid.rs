//! Small data sets in the real containers: what the readers find is what the manifest says.

use std::path::{Path, PathBuf};

use ptsbench::data::cifar::{self, Cifar, Part};
use ptsbench::data::coco::{self, Depth};
use ptsbench::data::decode::{self, Rotation};
use ptsbench::data::imagenet::{self, Labelled};
use ptsbench::data::lsun::Lsun;
use ptsbench::data::{check, voc};
use ptsbench_tests::golden_topic;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::probe::{Tally, Tolerance, json};

fn valid() -> PathBuf {
    golden_topic("datasets").join("valid")
}

fn manifest() -> Value {
    json(&golden_topic("datasets").join("manifest.json"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The picture's size, and its pixels where the format has no tolerance.
fn check_picture(path: &Path, want: &Value, tally: &mut Tally) {
    let picture = decode::read(path, Rotation::Ignore).expect("a good picture");
    let size = [picture.width as f64, picture.height as f64];
    let wanted: Vec<f64> = list(&want["size"]).iter().map(number).collect();
    tally.all(
        &size,
        &wanted,
        Tolerance::abs(0.0),
        &path.display().to_string(),
    );
    if text(&want["format"]) == "PNG" {
        assert_eq!(
            hash(&picture.pixels),
            text(&want["sha256_rgb"]),
            "{}",
            path.display()
        );
        tally.exact(1);
    }
}

#[test]
fn datasets_imagenet() {
    let root = valid().join("imagenet");
    let manifest = &manifest()["imagenet"];
    let mut tally = Tally::default();
    let set = imagenet::read_folder(&root).expect("a good set");
    assert!(set.warnings.is_empty(), "{:?}", set.warnings);
    for (class, want) in set.classes.iter().zip(list(&manifest["classes"])) {
        assert_eq!(class, text(&want["wnid"]));
    }
    let mut same = |found: &[Labelled], want: &Value, key: &str| {
        let mut found: Vec<_> = found.to_vec();
        let mut want: Vec<&Value> = list(want).iter().collect();
        found.sort_by_key(|labelled| labelled.path.clone());
        want.sort_by_key(|want| text(&want[key]));
        assert_eq!(found.len(), want.len(), "{key}");
        for (found, want) in found.iter().zip(want) {
            assert_eq!(found.path, root.join(text(&want[key])));
            assert_eq!(
                found.label as u64,
                want["label"].as_u64().unwrap(),
                "{want}"
            );
            check_picture(&found.path, want, &mut tally);
        }
    };
    same(&set.train, &manifest["train"], "path");
    same(&set.validation, &manifest["val"], "path");
    // The flat folder by each list of truth: alone beside the mapping, in a folder of its own.
    let flat = root.join("val_flat");
    for lists in [
        vec!["LOC_val_solution.csv"],
        vec![
            "ILSVRC2012_validation_ground_truth.txt",
            "devkit/data/meta.mat",
        ],
    ] {
        let beside = tempfile::tempdir().expect("a folder");
        for file in lists {
            let to = beside.path().join(file);
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            std::fs::copy(root.join(file), to).expect("a copy");
        }
        let mut warnings = Vec::new();
        let found = imagenet::read_validation(beside.path(), &flat, &set.classes, &mut warnings);
        same(&found.expect("labels"), &manifest["val"], "flat_path");
        assert!(warnings.is_empty(), "{warnings:?}");
    }
    tally.report("datasets/imagenet");
}

fn check_part(part: &Part, from: usize, want: &Value, labels: &str, tally: &mut Tally) {
    for (at, want_label) in list(&want[labels]).iter().enumerate() {
        assert_eq!(
            u64::from(part.labels[from + at]),
            want_label.as_u64().unwrap()
        );
        assert_eq!(hash(part.planes(from + at)), text(&want["sha256_chw"][at]));
        if let Some(coarse) = want.get("coarse") {
            assert_eq!(
                u64::from(part.coarse[from + at]),
                coarse[at].as_u64().unwrap()
            );
        }
        if let Some(first) = want.get("first_pixel_rgb") {
            let first: [u8; 3] = serde_json::from_value(first[at].clone()).unwrap();
            assert_eq!(part.image(from + at).at(0, 0), first);
        }
        tally.exact(2);
    }
}

#[test]
fn datasets_cifar() {
    let root = valid().join("cifar");
    let manifest = &manifest()["cifar"];
    let mut tally = Tally::default();
    let read =
        |folder: &str| -> Cifar { cifar::read_folder(&root.join(folder)).expect("a good set") };
    for folder in ["cifar-10-batches-bin", "cifar-10-batches-py"] {
        let set = read(folder);
        assert_eq!(set.warnings.len(), 6, "{:?}", set.warnings);
        for (name, want) in manifest["cifar10"]["splits"].as_object().expect("splits") {
            match name.strip_prefix("data_batch_") {
                Some(batch) => {
                    let from = (batch.parse::<usize>().unwrap() - 1) * list(&want["labels"]).len();
                    check_part(&set.train, from, want, "labels", &mut tally);
                }
                None => check_part(&set.test, 0, want, "labels", &mut tally),
            }
        }
    }
    for folder in ["cifar-100-binary", "cifar-100-python"] {
        let set = read(folder);
        let splits = &manifest["cifar100"]["splits"];
        check_part(&set.train, 0, &splits["train"], "fine", &mut tally);
        check_part(&set.test, 0, &splits["test"], "fine", &mut tally);
    }
    tally.report("datasets/cifar");
}

#[test]
fn datasets_coco() {
    let root = valid().join("coco");
    let manifest = &manifest()["coco"];
    let mut tally = Tally::default();
    let splits = coco::splits(&root);
    assert_eq!(splits.len(), manifest["splits"].as_object().unwrap().len());
    for (split, annotations, folder) in splits {
        let set = coco::read_instances(&annotations, &folder, Depth::Headers).expect("a good set");
        assert!(set.warnings.is_empty(), "{:?}", set.warnings);
        for (at, category) in set.categories.iter().enumerate() {
            let want = manifest["label_map"][&category.id.to_string()].as_u64();
            assert_eq!(want, Some(at as u64));
        }
        let want = list(&manifest["splits"][&split]["images"]);
        assert_eq!(set.images.len(), want.len());
        for (image, want) in set.images.iter().zip(want) {
            assert_eq!(Some(image.id), want["id"].as_i64());
            check_picture(&image.path, want, &mut tally);
            let own = set.truth.iter().filter(|truth| truth.image == image.id);
            let own: Vec<_> = own.collect();
            assert_eq!(own.len(), list(&want["objects"]).len());
            for (truth, want) in own.iter().zip(list(&want["objects"])) {
                let bbox: Vec<f64> = list(&want["bbox_xywh"]).iter().map(number).collect();
                tally.all(&truth.bbox, &bbox, Tolerance::abs(0.0), &split);
                tally.near(
                    truth.area,
                    number(&want["area"]),
                    Tolerance::abs(0.0),
                    &split,
                );
                assert_eq!(Some(truth.id), want["id"].as_i64());
                assert_eq!(Some(truth.category), want["category_id"].as_i64());
                assert_eq!(Some(i64::from(truth.crowd)), want["iscrowd"].as_i64());
            }
        }
    }
    tally.report("datasets/coco");
}

#[test]
fn datasets_voc() {
    let root = valid().join("voc");
    let manifest = &manifest()["voc"];
    let mut tally = Tally::default();
    for (set, ids) in manifest["sets"].as_object().expect("sets") {
        let voc = voc::read_set(&root, set).expect("a good set");
        assert!(voc.warnings.is_empty(), "{:?}", voc.warnings);
        let found: Vec<&str> = voc
            .pictures
            .iter()
            .map(|picture| picture.id.as_str())
            .collect();
        let wanted: Vec<&str> = list(ids).iter().map(text).collect();
        assert_eq!(found, wanted);
        for picture in &voc.pictures {
            let want = &manifest["images"][&picture.id];
            check_picture(&picture.path, want, &mut tally);
            assert_eq!(picture.objects.len(), list(&want["objects"]).len());
            for (object, want) in picture.objects.iter().zip(list(&want["objects"])) {
                let bbox: Vec<f64> = list(&want["bbox_1based_inclusive"])
                    .iter()
                    .map(number)
                    .collect();
                tally.all(&object.bbox, &bbox, Tolerance::abs(0.0), &picture.id);
                assert_eq!(Some(object.class as u64), want["label"].as_u64());
                assert_eq!(
                    Some(u64::from(object.difficult)),
                    want["difficult"].as_u64()
                );
                assert_eq!(
                    Some(u64::from(object.truncated)),
                    want["truncated"].as_u64()
                );
            }
        }
    }
    tally.report("datasets/voc");
}

#[test]
fn datasets_lsun() {
    let root = valid().join("lsun");
    let manifest = manifest();
    let mut tally = Tally::default();
    for (name, want) in manifest["lsun"].as_object().expect("databases") {
        let Lsun::Records(database) = Lsun::open(&root.join(name)).expect("a good database") else {
            panic!("{name}: files instead of records");
        };
        assert_eq!(database.records().len(), list(&want["records"]).len());
        for (record, want) in database.records().iter().zip(list(&want["records"])) {
            assert_eq!(record.name(), text(&want["key"]));
            let value = database.value(record).expect("a value");
            assert_eq!(hash(&value), text(&want["sha256_value"]));
            let picture = decode::decode(&value, Rotation::Ignore).expect("a picture");
            let wanted: Vec<f64> = list(&want["size"]).iter().map(number).collect();
            let size = [picture.width as f64, picture.height as f64];
            tally.all(&size, &wanted, Tolerance::abs(0.0), name);
            tally.exact(2);
        }
    }
    tally.report("datasets/lsun");
}

#[test]
fn datasets_are_recognised() {
    for (folder, set) in [
        ("imagenet", "ImageNet"),
        ("cifar/cifar-10-batches-bin", "CIFAR-10"),
        ("cifar/cifar-10-batches-py", "CIFAR-10"),
        ("cifar/cifar-100-binary", "CIFAR-100"),
        ("cifar/cifar-100-python", "CIFAR-100"),
        ("coco", "COCO"),
        ("voc", "VOC 2007"),
        ("lsun", "LSUN"),
        ("lsun/bedroom_val_lmdb", "LSUN"),
    ] {
        let report = check::check(&valid().join(folder)).expect("a good set");
        assert_eq!(report.set, set, "{folder}");
        assert!(!report.facts.is_empty());
    }
    let unknown = check::check(&valid()).expect_err("a folder of folders");
    assert!(
        unknown.to_string().contains("no known data set"),
        "{unknown}"
    );
}

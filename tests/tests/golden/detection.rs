//! COCO average precision against pycocotools; VOC07 in four variants against an implementation of the devkit's rules.

use std::collections::HashMap;

use ptsbench::metric::coco_ap::{self, Found, Truth};
use ptsbench::metric::voc_ap::{self, Detection, Object, Variant};
use ptsbench_tests::golden_topic;
use serde_json::Value;

use crate::probe::{Tally, Tolerance, json};

const TOLERANCE: Tolerance = Tolerance::abs(1e-12);

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

fn id(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("{value} is no id"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn corners(value: &Value) -> [f64; 4] {
    serde_json::from_value(value.clone()).expect("four numbers")
}

/// pycocotools writes -1 for what is undefined.
fn check(got: Option<f64>, want: &Value, tally: &mut Tally, what: &str) {
    tally.near(got.unwrap_or(-1.0), number(want), TOLERANCE, what);
}

#[test]
fn detection_coco() {
    let mut scenes = 0;
    let mut tally = Tally::default();
    for entry in std::fs::read_dir(golden_topic("detection").join("coco")).expect("scenes") {
        let folder = entry.expect("a scene").path();
        let scene = folder.display().to_string();
        let instances = json(&folder.join("instances.json"));
        let ids = |key: &str| -> Vec<i64> {
            list(&instances[key])
                .iter()
                .map(|item| id(&item["id"]))
                .collect()
        };
        let truth: Vec<Truth> = list(&instances["annotations"])
            .iter()
            .map(|item| Truth {
                id: id(&item["id"]),
                image: id(&item["image_id"]),
                category: id(&item["category_id"]),
                bbox: corners(&item["bbox"]),
                area: number(&item["area"]),
                crowd: id(&item["iscrowd"]) != 0,
            })
            .collect();
        let found: Vec<Found> = list(&json(&folder.join("results.json")))
            .iter()
            .map(|item| Found {
                image: id(&item["image_id"]),
                category: id(&item["category_id"]),
                bbox: corners(&item["bbox"]),
                score: number(&item["score"]),
            })
            .collect();
        let want = json(&folder.join("expected.json"));
        let (images, categories) = (ids("images"), ids("categories"));
        let got = coco_ap::evaluate(&images, &categories, &truth, &found).expect("a good file");
        let stats = got.stats;
        for (name, got) in [
            ("AP", stats.ap),
            ("AP50", stats.ap50),
            ("AP75", stats.ap75),
            ("APs", stats.ap_small),
            ("APm", stats.ap_medium),
            ("APl", stats.ap_large),
            ("AR1", stats.ar1),
            ("AR10", stats.ar10),
            ("AR100", stats.ar100),
            ("ARs", stats.ar_small),
            ("ARm", stats.ar_medium),
            ("ARl", stats.ar_large),
        ] {
            check(
                got,
                &want["stats"][name],
                &mut tally,
                &format!("{scene}: {name}"),
            );
        }
        let per_category = want["per_category"].as_object().expect("categories");
        assert_eq!(per_category.len(), got.categories.len(), "{scene}");
        for category in &got.categories {
            let what = format!("{scene}: category {}", category.category);
            let want = &per_category[&category.category.to_string()];
            check(category.ap, &want["AP"], &mut tally, &what);
            for (index, &got) in category.ap_by_iou.iter().enumerate() {
                check(got, &want["AP_by_iou"][index], &mut tally, &what);
            }
            for (index, &got) in category.recall_by_iou.iter().enumerate() {
                check(got, &want["AR100_by_iou"][index], &mut tally, &what);
            }
        }
        let matches = want.get("matches_iou50").and_then(Value::as_object);
        for (place, want) in matches.into_iter().flatten() {
            let (image, category) = place.split_once('/').expect("image/category");
            let (image, category) = (image.parse().unwrap(), category.parse().unwrap());
            let got = coco_ap::matches(image, category, &truth, &found, 0.5);
            assert_eq!(got.len(), list(want).len(), "{scene}: {place}");
            for (got, want) in got.iter().zip(list(want)) {
                let fate = (
                    got.found as i64 + 1,
                    got.truth.unwrap_or(0),
                    Some(got.ignored),
                );
                let wanted = (id(&want["det"]), id(&want["gt"]), want["ignored"].as_bool());
                assert_eq!(fate, wanted, "{scene}: {place}");
                tally.exact(1);
            }
        }
        scenes += 1;
    }
    assert!(scenes >= 7, "{scenes} scenes");
    tally.report("detection/coco");
}

/// Compares all variants on one file's truth and detections.
fn check_voc(file: &Value, classes: &[&str], tally: &mut Tally, what: &str) {
    let class_at = |value: &Value| {
        let name = value.as_str().expect("a class");
        classes
            .iter()
            .position(|class| *class == name)
            .expect("a known class")
    };
    let mut image_at = HashMap::new();
    let images: Vec<Vec<Object>> = list(&file["gt"])
        .iter()
        .enumerate()
        .map(|(at, image)| {
            image_at.insert(image["image"].to_string(), at);
            let object = |object: &Value| Object {
                class: class_at(&object["class"]),
                bbox: corners(&object["bbox"]),
                difficult: id(&object["difficult"]) != 0,
            };
            list(&image["objects"]).iter().map(object).collect()
        })
        .collect();
    let detections: Vec<Detection> = list(&file["det"])
        .iter()
        .map(|item| Detection {
            image: image_at[&item["image"].to_string()],
            class: class_at(&item["class"]),
            bbox: corners(&item["bbox"]),
            score: number(&item["score"]),
        })
        .collect();
    for variant in Variant::ALL {
        let want = &file["expected"][variant.name()];
        let got = voc_ap::evaluate(&images, classes.len(), &detections, variant).expect("good");
        let what = format!("{what}, {}", variant.name());
        let mut close = |got: Option<f64>, want: &Value, what: &str| match got {
            Some(got) => tally.near(got, number(want), TOLERANCE, what),
            None => assert!(want.is_null(), "{what}: undefined instead of {want}"),
        };
        close(got.map11, &want["mAP11"], &what);
        close(got.map_all, &want["mAP_all"], &what);
        for (class, name) in got.classes.iter().zip(classes) {
            let (want, what) = (&want["per_class"][name], format!("{what}, {name}"));
            close(class.ap11, &want["ap11"], &what);
            close(class.ap_all, &want["ap_all"], &what);
            for (key, got) in [
                ("npos", class.countable),
                ("ndet", class.detections),
                ("tp", class.hits),
                ("fp", class.misses),
                ("ignored", class.ignored),
            ] {
                if let Some(want) = want.get(key) {
                    assert_eq!(got as u64, want.as_u64().unwrap(), "{what}: {key}");
                }
            }
        }
    }
}

#[test]
fn detection_voc() {
    let folder = golden_topic("detection").join("voc");
    let mut tally = Tally::default();
    for name in ["main", "fine_scores"] {
        let file = json(&folder.join(format!("{name}.json")));
        let classes: Vec<&str> = list(&file["classes"])
            .iter()
            .map(|class| class.as_str().expect("a class"))
            .collect();
        check_voc(&file, &classes, &mut tally, name);
    }
    let crafted = json(&folder.join("crafted.json"));
    let cases = crafted.as_object().expect("cases");
    assert!(cases.len() >= 10);
    for (name, case) in cases {
        check_voc(case, &["cat"], &mut tally, name);
    }
    tally.report("detection/voc");
}

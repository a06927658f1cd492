//! Priors, anchors, box coding and suppression against torchvision and the MobileNet-SSD release.

use model_zoo::detection::anchors::{AnchorShapes, Priors};
use model_zoo::detection::boxes::{self, BoxCoder};
use ptsbench_tests::golden_topic;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::probe::{Tally, Tolerance, json};
use crate::tensors::Tensors;

fn tensors() -> Tensors {
    Tensors::open(&golden_topic("boxes").join("boxes.safetensors"))
}

fn expected() -> Value {
    json(&golden_topic("boxes").join("boxes.json"))
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value}"))
}

fn hash(boxes: &[[f32; 4]]) -> String {
    let mut hash = Sha256::new();
    for value in boxes.as_flattened() {
        hash.update(value.to_le_bytes());
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn boxes_ssd() {
    let (tensors, expected) = (tensors(), expected());
    let mut tally = Tally::default();
    let priors = Priors::RELEASE.boxes();
    assert_eq!(priors, tensors.boxes("ssd/priors_300"));
    assert_eq!(
        hash(&priors),
        expected["ssd"]["sha256_f32"].as_str().unwrap()
    );
    tally.exact(priors.len() * 4);
    let tolerance = Tolerance {
        abs: 1e-6,
        rel: 1e-5,
    };
    let chosen = tensors.counts("ssd/sel");
    let locations = tensors.boxes("ssd/locations_sel");
    let centres = tensors.boxes("ssd/decoded_center_sel");
    let corners = tensors.boxes("ssd/decoded_corner_sel");
    let targets = tensors.boxes("ssd/encode_in_center");
    let encoded = tensors.boxes("ssd/encode_out");
    for (at, prior) in chosen.iter().map(|&at| priors[at]).enumerate() {
        let what = format!("prior {at}");
        let got = boxes::ssd_decode(locations[at], prior);
        tally.all(&got, &centres[at], tolerance, &what);
        tally.all(&boxes::corners(got), &corners[at], tolerance, &what);
        tally.all(
            &boxes::ssd_encode(targets[at], prior),
            &encoded[at],
            tolerance,
            &what,
        );
    }
    tally.report("boxes/ssd");
}

#[test]
fn boxes_anchors() {
    let (tensors, expected) = (tensors(), expected());
    let mut tally = Tally::default();
    let shapes = AnchorShapes::retinanet();
    for (level, shapes) in shapes.levels().iter().enumerate() {
        assert_eq!(
            shapes,
            &tensors.boxes(&format!("retinanet/cell_anchors_{level}"))
        );
        tally.exact(shapes.len() * 4);
    }
    let grids = expected["retinanet"]["grids"].as_object().expect("grids");
    for (key, want) in grids {
        let grid: Vec<[usize; 2]> = numbers(&want["grids"]);
        let anchors = shapes.on(numbers(&want["batch"]), &grid);
        assert_eq!(
            anchors.len() as u64,
            want["count"].as_u64().unwrap(),
            "{key}"
        );
        assert_eq!(
            hash(&anchors),
            want["sha256_f32"].as_str().unwrap(),
            "{key}"
        );
        tally.exact(anchors.len() * 4);
    }
    let odd = AnchorShapes::new(&[(&[32.0], &[0.5, 1.0, 2.0]), (&[64.0], &[1.0])]);
    let want = tensors.boxes("anchor_generator/two_levels_50x70_in_64x96");
    assert_eq!(odd.on([64, 96], &[[4, 6], [2, 3]]), want);
    tally.exact(want.len() * 4);
    tally.report("boxes/anchors");
}

#[test]
fn boxes_coder() {
    let tensors = tensors();
    let mut tally = Tally::default();
    let pixels = Tolerance {
        abs: 1e-3,
        rel: 1e-5,
    };
    for (name, weights) in [("1111", [1.0; 4]), ("10_10_5_5", [10.0, 10.0, 5.0, 5.0])] {
        let coder = BoxCoder { weights };
        let of = |key: &str| tensors.boxes(&format!("boxcoder/{name}/{key}"));
        let (proposals, targets, deltas) = (of("proposals"), of("targets"), of("deltas"));
        let (encoded, decoded) = (of("encoded"), of("decoded"));
        let clipped = of("decoded_clipped_200x250");
        for at in 0..proposals.len() {
            let what = format!("{name} {at}");
            let got = coder.encode(targets[at], proposals[at]);
            tally.all(
                &got,
                &encoded[at],
                Tolerance {
                    abs: 1e-5,
                    rel: 1e-5,
                },
                &what,
            );
            let got = coder.decode(deltas[at], proposals[at]);
            tally.all(&got, &decoded[at], pixels, &what);
            tally.all(&boxes::clip(got, 250.0, 200.0), &clipped[at], pixels, &what);
        }
    }
    tally.report("boxes/coder");
}

#[test]
fn boxes_overlap() {
    let tensors = tensors();
    let mut tally = Tally::default();
    let (a, b) = (tensors.boxes("iou/a"), tensors.boxes("iou/b"));
    let want = tensors.f32("iou/out");
    for (row, a) in a.iter().enumerate() {
        let got: Vec<f32> = b.iter().map(|b| boxes::overlap(*a, *b)).collect();
        let want = &want[row * b.len()..][..b.len()];
        tally.all(&got, want, Tolerance::abs(1e-6), &format!("row {row}"));
    }
    tally.report("boxes/overlap");
}

#[test]
fn boxes_suppression() {
    let (tensors, expected) = (tensors(), expected());
    let mut tally = Tally::default();
    for (name, want) in expected["nms"].as_object().expect("cases") {
        let of = |key: &str| format!("nms/{name}/{key}");
        let (all, scores) = (tensors.boxes(&of("boxes")), tensors.f32(&of("scores")));
        let threshold = want["iou_threshold"].as_f64().unwrap();
        let keep: Vec<usize> = numbers(&want["keep"]);
        assert_eq!(boxes::keep(&all, &scores, threshold), keep, "{name}");
        tally.exact(1);
        if tensors.has(&of("labels")) {
            let labels = tensors.counts(&of("labels"));
            let got = boxes::keep_by_label(&all, &scores, &labels, threshold);
            assert_eq!(got, numbers::<Vec<usize>>(&want["keep_batched"]), "{name}");
            tally.exact(1);
        }
    }
    for (name, want) in expected["ssd_nms"].as_object().expect("cases") {
        let all = tensors.boxes(&format!("ssd_nms/{name}/boxes"));
        let scores = tensors.f32(&format!("ssd_nms/{name}/scores"));
        let most = usize::try_from(want["top_k"].as_i64().unwrap()).unwrap_or(usize::MAX);
        let got = boxes::keep_ssd(
            &all,
            &scores,
            want["iou_threshold"].as_f64().unwrap() as f32,
            numbers(&want["candidates"]),
            most,
        );
        assert_eq!(got, numbers::<Vec<usize>>(&want["keep"]), "{name}");
        tally.exact(1);
    }
    tally.report("boxes/suppression");
}

//! Decoding, resizing, cropping, normalising and batching against Pillow, torchvision, timm and OpenCV.

use std::path::PathBuf;

use ptsbench::data::decode::{self, Rgb, Rotation};
use ptsbench::data::recipe::{self, Recipe, Statistics, fid, retinanet, ssd};
use ptsbench::data::resize::{self, Filter};
use ptsbench_tests::golden_topic;
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::probe::{Probe, Tally, Tolerance, json};

/// Side of an SSD's input.
const SIDE: usize = 300;

const NORMALISED: Tolerance = Tolerance::abs(1e-6);
const FLOAT_RESIZE: Tolerance = Tolerance::abs(2e-4);

fn topic() -> PathBuf {
    golden_topic("preprocess")
}

fn expected() -> Value {
    json(&topic().join("expected.json"))
}

fn hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn numbers(value: &Value) -> Vec<usize> {
    let numbers = value.as_array().expect("a list").iter();
    numbers
        .map(|number| number.as_u64().expect("a count") as usize)
        .collect()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().expect("an object").iter()
}

fn file(image: &Value) -> PathBuf {
    topic().join("images").join(text(&image["file"]))
}

/// The pixels that the reference program saw.
fn reference_pixels(image: &Value) -> Rgb {
    let path = match image.get("decoded_png") {
        Some(png) => topic().join(text(png)),
        None => file(image),
    };
    let picture = decode::read(&path, Rotation::Ignore).expect("a good file");
    assert_eq!(
        hash(&picture.pixels),
        text(&image["sha256_rgb"]),
        "{}",
        path.display()
    );
    picture
}

/// Largest and mean difference in levels.
fn difference(a: &Rgb, b: &Rgb) -> (u8, f64) {
    assert_eq!((a.width, a.height), (b.width, b.height));
    let apart = a.pixels.iter().zip(&b.pixels).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = apart.clone().map(u64::from).sum();
    (apart.max().unwrap_or(0), sum as f64 / a.pixels.len() as f64)
}

#[test]
fn preprocess_decoding() {
    let expected = expected();
    let mut tally = Tally::default();
    for (name, image) in entries(&expected["images"]) {
        let path = file(image);
        let picture = decode::read(&path, Rotation::Ignore).expect("a good file");
        assert_eq!(
            vec![picture.width, picture.height],
            numbers(&image["size"]),
            "{name}"
        );
        let bytes = std::fs::read(&path).expect("a file");
        assert_eq!(
            decode::size(&bytes),
            Ok((picture.width, picture.height)),
            "{name}"
        );
        let name_of_file = text(&image["file"]);
        // libjpeg-turbo leaves the conversion of print's four colours to its user.
        let exact_jpeg = cfg!(feature = "turbojpeg") && !name.contains("cmyk");
        let lossy = name_of_file.ends_with(".jpg") && !exact_jpeg || name == "webp_lossy";
        if lossy {
            // The tolerance of a decoder other than libjpeg-turbo or libwebp.
            let (most, mean) = difference(&picture, &reference_pixels(image));
            println!("{name}: at most {most} levels, {mean:.4} on average");
            tally.near(
                most.into(),
                0.0,
                Tolerance::abs(4.0),
                &format!("{name}: levels"),
            );
            tally.near(
                mean,
                0.0,
                Tolerance::abs(0.3),
                &format!("{name}: mean level"),
            );
        } else {
            assert_eq!(hash(&picture.pixels), text(&image["sha256_rgb"]), "{name}");
            tally.exact(1);
        }
    }
    tally.report("preprocess/decode");
}

#[test]
fn preprocess_classification() {
    let expected = expected();
    let recipes: Vec<(&String, Recipe)> = entries(&expected["recipes"])
        .map(|(name, recipe)| {
            let filter = match text(&recipe["interpolation"]) {
                "bilinear" => Filter::Bilinear,
                "bicubic" => Filter::Bicubic,
                other => panic!("interpolation {other}"),
            };
            let count = |key: &str| recipe[key].as_u64().expect("a count") as usize;
            let recipe = Recipe {
                short: count("resize"),
                filter,
                crop: count("crop"),
                squash: false,
                statistics: recipe::IMAGENET,
            };
            (name, recipe)
        })
        .collect();
    assert!(recipes.len() >= 5);
    let statistics = [("imagenet", recipe::IMAGENET), ("half", recipe::HALF)];
    let mut tally = Tally::default();
    for (name, image) in entries(&expected["images"]) {
        let picture = reference_pixels(image);
        for (recipe_name, recipe) in &recipes {
            let what = format!("{name}, {recipe_name}");
            let want = &image["classification"][recipe_name.as_str()];
            let (width, height) = recipe.resized(picture.width, picture.height);
            assert_eq!(
                vec![width, height],
                numbers(&want["resized_size"]),
                "{what}"
            );
            let resized = resize::pillow(&picture, width, height, recipe.filter);
            assert_eq!(
                hash(&resized.pixels),
                text(&want["sha256_resized_rgb"]),
                "{what}"
            );
            let cropped = recipe.cropped(&picture);
            assert_eq!(
                hash(&cropped.pixels),
                text(&want["sha256_cropped_rgb"]),
                "{what}"
            );
            tally.exact(3);
            for (key, statistics) in statistics {
                let recipe = Recipe {
                    statistics,
                    ..*recipe
                };
                let shape = [3, recipe.crop, recipe.crop];
                let what = format!("{what}, {key}");
                Probe::of(&want["normalised"][key]).check(
                    &shape,
                    &recipe.apply(&picture),
                    NORMALISED,
                    &mut tally,
                    &what,
                );
            }
        }
    }
    tally.report("preprocess/classification");
}

#[test]
fn preprocess_sizes_without_pixels() {
    let expected = expected();
    let mut tally = Tally::default();
    let rows = expected["size_arithmetic"]["rows"]
        .as_array()
        .expect("rows");
    for row in rows {
        let row: Vec<i64> = row
            .as_array()
            .expect("a row")
            .iter()
            .map(|value| value.as_i64().expect("an integer"))
            .collect();
        let &[width, height, short, out_width, out_height, left, top] = row.as_slice() else {
            panic!("{row:?}");
        };
        let recipe = Recipe {
            short: short as usize,
            filter: Filter::Bilinear,
            crop: 224,
            squash: false,
            statistics: recipe::IMAGENET,
        };
        let (w, h) = recipe.resized(width as usize, height as usize);
        assert_eq!((w as i64, h as i64), (out_width, out_height), "{row:?}");
        let (l, t) = recipe.corner(w, h);
        assert_eq!((l as i64, t as i64), (left, top), "{row:?}");
        tally.exact(4);
    }
    tally.report("preprocess/sizes");
}

#[test]
fn preprocess_ssd() {
    let expected = expected();
    let mut tally = Tally::default();
    for (name, image) in entries(&expected["images"]) {
        let Some(want) = image.get("ssd300") else {
            continue;
        };
        // OpenCV's pixels are Pillow's except where it turns a picture or converts CMYK itself.
        let same = hash(&reference_pixels(image).pixels) == text(&want["sha256_decoded_rgb"]);
        let turned = decode::read(&file(image), ssd::ROTATION).expect("a good file");
        assert_eq!(
            vec![turned.width, turned.height],
            numbers(&want["decoded_size"]),
            "{name}"
        );
        tally.exact(1);
        if same {
            let resized = ssd::resized(&reference_pixels(image), SIDE);
            assert_eq!(
                hash(&resized.pixels),
                text(&want["sha256_resized_rgb"]),
                "{name}"
            );
            let shape = [3, SIDE, SIDE];
            Probe::of(&want["chw"]).check(
                &shape,
                &ssd::apply(&reference_pixels(image), SIDE),
                NORMALISED,
                &mut tally,
                name,
            );
        } else {
            // Our own decoding goes in, with its own few levels.
            let stored = topic().join(text(&want["resized_png"]));
            let stored = decode::read(&stored, Rotation::Ignore).expect("a good file");
            let (most, mean) = difference(&ssd::resized(&turned, SIDE), &stored);
            println!("{name}: at most {most} levels, {mean:.4} on average");
            let levels = Tolerance::abs(if name == "cmyk" { 5.0 } else { 4.0 });
            tally.near(most.into(), 0.0, levels, &format!("{name}: levels"));
        }
    }
    tally.report("preprocess/ssd");
}

#[test]
fn preprocess_retinanet() {
    let expected = expected();
    let bytes = std::fs::read(topic().join("tensors.safetensors")).expect("tensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
    let images = &expected["images"];
    let mut tally = Tally::default();
    for (key, want) in entries(&expected["retinanet"]) {
        let (config, name) = key.split_once('/').expect("config/name");
        let sides = match config {
            "small_96_160" => retinanet::Sides {
                short: 96,
                long: 160,
            },
            "full_800_1333" => retinanet::SIDES,
            other => panic!("configuration {other}"),
        };
        let names: Vec<&str> = match want.get("images") {
            Some(names) => names.as_array().expect("names").iter().map(text).collect(),
            None => vec![name],
        };
        // The reference transformed Pillow's pixels.
        let pictures: Vec<Rgb> = names
            .iter()
            .map(|&name| reference_pixels(&images[name]))
            .collect();
        let sized: Vec<_> = pictures
            .iter()
            .map(|picture| sides.apply(picture, &recipe::IMAGENET))
            .collect();
        let sizes = match want.get("image_sizes") {
            Some(sizes) => sizes
                .as_array()
                .expect("sizes")
                .iter()
                .map(numbers)
                .collect(),
            None => vec![numbers(&want["image_size"])],
        };
        for (sized, size) in sized.iter().zip(&sizes) {
            assert_eq!(&vec![sized.height, sized.width], size, "{key}");
            tally.exact(1);
        }
        let batch = retinanet::batch(&sized);
        let shape = [sized.len(), 3, batch.height, batch.width];
        assert_eq!(shape.to_vec(), numbers(&want["batch_shape"]), "{key}");
        Probe::of(&want["probe"]).check(&shape, &batch.values, FLOAT_RESIZE, &mut tally, key);
        if let Ok(whole) = tensors.tensor(&format!("retinanet/{key}")) {
            let whole: Vec<f32> = floats(whole.data());
            tally.all(&batch.values, &whole, FLOAT_RESIZE, key);
        }
        if let Some(boxes) = want.get("boxes_in") {
            for at in 0..pictures.len() {
                let own = (pictures[at].width, pictures[at].height);
                let resized = (sized[at].width, sized[at].height);
                let of = |key: &str| -> Vec<[f32; 4]> {
                    serde_json::from_value(want[key][at].clone()).expect("boxes")
                };
                let start: Vec<[f32; 4]> =
                    serde_json::from_value(boxes[at].clone()).expect("boxes");
                for ((start, there), back) in
                    start.iter().zip(of("boxes_resized")).zip(of("boxes_back"))
                {
                    let box_tolerance = Tolerance {
                        abs: 1e-3,
                        rel: 1e-5,
                    };
                    let moved = retinanet::rescale_box(*start, own, resized);
                    tally.all(&moved, &there, box_tolerance, key);
                    let moved = retinanet::rescale_box(there, resized, own);
                    tally.all(&moved, &back, box_tolerance, key);
                }
            }
        }
    }
    tally.report("preprocess/retinanet");
}

#[test]
fn preprocess_fid() {
    let expected = expected();
    let mut tally = Tally::default();
    for (name, want) in entries(&expected["fid299"]) {
        let input = fid::apply(&reference_pixels(&expected["images"][name.as_str()]));
        let shape = [1, 3, fid::SIDE, fid::SIDE];
        Probe::of(want).check(&shape, &input, FLOAT_RESIZE, &mut tally, name);
    }
    tally.report("preprocess/fid");
}

#[test]
fn preprocess_cifar() {
    let bytes = std::fs::read(topic().join("tensors.safetensors")).expect("tensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
    let pixels = tensors
        .tensor("cifar/u8_nhwc")
        .expect("pixels")
        .data()
        .to_vec();
    let mut tally = Tally::default();
    let sets: [(&str, Statistics); 2] =
        [("cifar10", recipe::CIFAR10), ("cifar100", recipe::CIFAR100)];
    for (set, statistics) in sets {
        let want = floats(tensors.tensor(&format!("cifar/{set}")).expect(set).data());
        let mut got = Vec::new();
        for image in pixels.chunks_exact(32 * 32 * 3) {
            let picture = Rgb {
                width: 32,
                height: 32,
                pixels: image.to_vec(),
            };
            statistics.normalize_onto(&picture, &mut got);
        }
        tally.all(&got, &want, NORMALISED, set);
    }
    tally.report("preprocess/cifar");
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks::<4>().0.iter();
    values.map(|&value| f32::from_le_bytes(value)).collect()
}

//! `ptsbench fid`: distances that are known, statistics files in place of images, and what it says of bad input.

use std::path::Path;
use std::process::Output;

use ptsbench::data::decode::Rgb;
use ptsbench::data::synthetic::generation;
use ptsbench::seed::Seed;
use ptsbench_tests::files::png;
use ptsbench_tests::{golden_topic, program, workspace_root};
use serde_json::Value;

const SIDE: usize = 32;
const IMAGES: usize = 400;
const NETWORK: [&str; 2] = ["--features", "micro_resnet20"];

/// A folder with `IMAGES` pictures.
fn set(folder: &Path, name: &str, picture: impl Fn(usize) -> Rgb) -> String {
    let set = folder.join(name);
    std::fs::create_dir(&set).unwrap();
    for index in 0..IMAGES {
        let picture = picture(index);
        let file = set.join(format!("{index:04}.png"));
        png(&file, [picture.width, picture.height], &picture.pixels);
    }
    set.to_str().unwrap().to_owned()
}

fn run(arguments: &[&str]) -> Output {
    let samples = IMAGES.to_string();
    program::command()
        .current_dir(workspace_root())
        .args(["fid", "--device", "flex", "--samples", &samples])
        .args(arguments)
        .output()
        .unwrap()
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn report(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", words(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn distance(a: &str, b: &str) -> f64 {
    report(&[&[a, b], &NETWORK[..]].concat())["distance"]
        .as_f64()
        .unwrap()
}

#[test]
fn the_built_in_set_is_near_itself_and_far_from_noise() {
    const SET: &str = "micro:generation";
    let space = tempfile::tempdir().unwrap();
    let same = set(space.path(), "same", generation::picture);
    let others = set(space.path(), "others", |index| {
        generation::picture(IMAGES + index)
    });
    let noise = set(space.path(), "noise", |index| {
        let mut stream = Seed(7).stream(&format!("noise.{index}"));
        let pixels = (0..SIDE * SIDE * 3).map(|_| stream.below(256) as u8);
        Rgb {
            width: SIDE,
            height: SIDE,
            pixels: pixels.collect(),
        }
    });

    let far = distance(SET, &noise);
    let [itself, files, halves] = [SET, &same, &others].map(|other| distance(SET, other));
    println!("itself {itself:e}, as files {files:e}, other images {halves}, noise {far}");
    assert!(itself < 1e-10 * far, "{itself} to itself, {far} to noise");
    assert!(files < 1e-10 * far, "{files} to the same as files");
    assert!(halves > 0.0 && halves < 0.2 * far, "{halves} to others");
    let back = distance(&noise, SET);
    assert!((far - back).abs() < 1e-9 * far, "{far} and back {back}");

    // Statistics stand for the images they were taken of.
    let file = space.path().join("noise.npz");
    let file = file.to_str().unwrap();
    let output = run(&[&[noise.as_str(), "--save-stats", file], &NETWORK[..]].concat());
    assert!(output.status.success(), "{}", words(&output.stderr));
    assert_eq!(distance(SET, file), far);
    // And need no network.
    let report = report(&[file, file]);
    assert!(report["distance"].as_f64().unwrap() < 1e-10 * far);
    assert_eq!(report["features"], Value::Null);
    assert_eq!(report["a"]["images"], Value::Null);

    // The batch changes rounding alone.
    let other = run(&[&[SET, &noise, "--json", "--batch", "7"], &NETWORK[..]].concat());
    let other: Value = serde_json::from_slice(&other.stdout).unwrap();
    let other = other["distance"].as_f64().unwrap();
    assert!((far - other).abs() < 1e-4 * far, "{far}, {other} by sevens");
}

#[test]
fn unreadable_images_cost_a_line_and_the_exit_code() {
    let space = tempfile::tempdir().unwrap();
    let folder = set(space.path(), "set", generation::picture);
    std::fs::write(Path::new(&folder).join("0005.png"), b"no picture").unwrap();
    let output = run(&[&[&folder, "micro:generation"], &NETWORK[..]].concat());
    let (said, complaint) = (words(&output.stdout), words(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}{complaint}");
    assert!(
        said.contains("of the 160 features of micro_resnet20 (not FID)"),
        "{said}"
    );
    assert!(said.contains("399 images"), "{said}");
    assert!(complaint.contains("0005.png: "), "{complaint}");
    assert!(
        complaint.contains("1 image could not be read"),
        "{complaint}"
    );
}

#[test]
fn bad_input_is_told_what_to_do() {
    let golden = golden_topic("fid").join("stats_d16_a.npz");
    let golden = golden.to_str().unwrap();
    let space = tempfile::tempdir().unwrap();
    let empty = space.path().to_str().unwrap();
    for (arguments, parts) in [
        (
            &["micro:generation", golden, "--features", "micro_resnet20"][..],
            &["160 and 16 features", "one network"][..],
        ),
        (
            &["micro:generation", "micro:generation"],
            &[
                "pt_inception-2015-12-05-6726825d.pth",
                "https://",
                "--weights FILE",
                "random_conv",
            ],
        ),
        (
            &["micro:nothing", golden],
            &["micro:nothing", "micro:generation"],
        ),
        (&[empty, golden], &["0 entries", "no image"]),
        (
            &[golden, "--save-stats", "stats.txt"],
            &["stats.txt", ".npz"],
        ),
        (
            &[golden, "--save-stats", "no/such/a.npz"],
            &["no/such/a.npz", "folder"],
        ),
        (&[golden], &["<B>"]),
    ] {
        let output = run(arguments);
        let complaint = words(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        for part in parts {
            assert!(complaint.contains(part), "{arguments:?}: {complaint}");
        }
    }
}

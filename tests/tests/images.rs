//! `ptsbench infer` on image files: the answers are those of `ptsbench evaluate`, and a bad file costs a line, not the run.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

use ptsbench::data::synthetic::{CLASS_NAMES, MicroSet, PIXELS, SIDE};
use ptsbench_tests::{program, workspace_root};

const MODEL: &str = "micro_resnet20";

/// Writes a PNG of `side` x `side` pixels.
fn png(file: &Path, side: usize, depth: png::BitDepth, frames: u32, bytes: &[u8]) {
    let mut encoder = png::Encoder::new(File::create(file).unwrap(), side as u32, side as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(depth);
    if frames > 1 {
        encoder.set_animated(frames, 0).unwrap();
    }
    let mut writer = encoder.write_header().unwrap();
    for _ in 0..frames {
        writer.write_image_data(bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// A test image with its three values beside each other in every pixel.
fn interleaved(index: usize) -> Vec<u8> {
    let pixels = MicroSet::TEST.image(index).pixels;
    let plane = PIXELS / 3;
    (0..plane)
        .flat_map(|at| [0, 1, 2].map(|channel| pixels[channel * plane + at]))
        .collect()
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let assets = workspace_root().join("assets");
    program::command()
        .current_dir(folder)
        .args(arguments)
        .args(["--device", "flex", "--assets"])
        .arg(assets)
        .output()
        .unwrap()
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn images_from_files_are_classified_as_in_an_evaluation() {
    const COUNT: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..COUNT).map(|index| format!("{index}.png")).collect();
    for (index, name) in names.iter().enumerate() {
        let file = folder.path().join(name);
        png(&file, SIDE, png::BitDepth::Eight, 1, &interleaved(index));
    }
    let mut arguments = vec!["infer", MODEL, "--json"];
    arguments.extend(names.iter().map(String::as_str));
    let output = run(folder.path(), &arguments);
    assert!(output.status.success(), "{}", words(&output.stderr));

    let mut right = [0, 0];
    let text = words(&output.stdout);
    for (index, line) in text.lines().enumerate() {
        let answer: serde_json::Value = serde_json::from_str(line).unwrap();
        let classes = answer["classes"].as_array().unwrap();
        assert_eq!(classes.len(), 5);
        let label = usize::from(MicroSet::TEST.label(index));
        let named = |n: usize| classes[..n].iter().any(|c| c["class"] == label);
        right[0] += usize::from(named(1));
        right[1] += usize::from(named(5));
        let first = classes[0]["class"].as_u64().unwrap() as usize;
        assert_eq!(classes[0]["label"], CLASS_NAMES[first]);
    }
    assert_eq!(text.lines().count(), COUNT);

    let samples = COUNT.to_string();
    let output = run(
        folder.path(),
        &["evaluate", MODEL, "--json", "--samples", &samples],
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let percent = right.map(|hits| 100.0 * hits as f64 / COUNT as f64);
    assert_eq!(report["top1"], percent[0], "{report}");
    assert_eq!(report["top5"], percent[1], "{report}");
    assert!(percent[0] > 75.0, "{report}");
}

#[test]
fn a_bad_image_costs_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let good = interleaved(0);
    png(&place("good.png"), SIDE, png::BitDepth::Eight, 1, &good);
    // The same values in the upper eight bits, then twice as frames of an animation.
    let wide: Vec<u8> = good.iter().flat_map(|&value| [value, 77]).collect();
    png(&place("wide.png"), SIDE, png::BitDepth::Sixteen, 1, &wide);
    png(&place("moving.png"), SIDE, png::BitDepth::Eight, 2, &good);
    let cmyk = workspace_root().join("tests/golden/data/preprocess/images/cmyk.jpg");
    std::fs::copy(cmyk, place("cmyk.jpg")).unwrap();

    let whole = std::fs::read(place("good.png")).unwrap();
    std::fs::write(place("cut.png"), &whole[..whole.len() / 2]).unwrap();
    // No columns, and the checksum that such a header has.
    let mut flat = whole.clone();
    flat[16..20].fill(0);
    flat[29..33].copy_from_slice(&[0xb3, 0x45, 0xee, 0x73]);
    std::fs::write(place("flat.png"), flat).unwrap();
    std::fs::write(place("text.png"), "no image at all").unwrap();
    std::fs::write(place("empty.png"), "").unwrap();
    let made = Command::new("mkfifo").arg(place("pipe.png")).status();
    assert!(made.unwrap().success());

    let output = run(
        folder.path(),
        &[
            "infer",
            MODEL,
            "text.png",
            "good.png",
            "empty.png",
            "wide.png",
            "cut.png",
            "moving.png",
            "flat.png",
            "cmyk.jpg",
            "gone.png",
            "pipe.png",
        ],
    );
    let (said, complained) = (words(&output.stdout), words(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{complained}");
    let lines: Vec<&str> = complained.lines().collect();
    let expected = [
        ("text.png", "not an image"),
        ("empty.png", "empty"),
        ("cut.png", "truncated"),
        ("flat.png", "dimensions"),
        ("gone.png", "cannot be read"),
        ("pipe.png", "is a pipe, not a file"),
        ("6 of 10 images", "could not be read"),
    ];
    assert_eq!(lines.len(), expected.len(), "{complained}");
    for (line, (name, reason)) in lines.iter().zip(expected) {
        assert!(line.contains(name) && line.contains(reason), "{line}");
    }

    // Each of the others has its name, perhaps a note, and five classes; the first three are one picture.
    let answers: Vec<Vec<&str>> = said
        .lines()
        .collect::<Vec<_>>()
        .chunk_by(|_, next| next.starts_with("  "))
        .map(<[&str]>::to_vec)
        .collect();
    let names: Vec<&str> = answers.iter().map(|answer| answer[0]).collect();
    assert_eq!(names, ["good.png", "wide.png", "moving.png", "cmyk.jpg"]);
    for (answer, note) in
        answers
            .iter()
            .zip([None, Some("16 bits"), Some("animation"), Some("CMYK")])
    {
        assert_eq!(answer.len(), 6 + usize::from(note.is_some()), "{said}");
        assert!(note.is_none_or(|note| answer[1].contains(note)), "{said}");
    }
    for other in &answers[1..3] {
        assert_eq!(answers[0][1..], other[2..], "{said}");
    }
}

#[test]
fn labels_come_from_a_file_of_as_many_lines() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    png(
        &place("a.png"),
        SIDE,
        png::BitDepth::Eight,
        1,
        &interleaved(3),
    );
    let names: Vec<String> = (0..20).map(|class| format!("name {class}")).collect();
    std::fs::write(place("names.txt"), names.join("\n")).unwrap();
    std::fs::write(place("few.txt"), names[..19].join("\n")).unwrap();
    let output = run(
        folder.path(),
        &["infer", MODEL, "a.png", "--labels", "names.txt"],
    );
    assert!(output.status.success());
    assert!(words(&output.stdout).contains("name 3"));
    let output = run(
        folder.path(),
        &["infer", MODEL, "a.png", "--labels", "few.txt"],
    );
    assert_eq!(output.status.code(), Some(1));
    let complaint = words(&output.stderr);
    assert!(
        complaint.contains("19 lines") && complaint.contains("20 classes"),
        "{complaint}"
    );
}

//! The worst files we know for every parser: small ones that would take all memory or minutes, pipes, and devices without
//! an end. Each row of the printed table is one file: its size, and the processor time and memory that reading it takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use model_zoo::weights::{self, Container, TorchFile};
use ptsbench::data::cifar::{self, Kind};
use ptsbench::data::coco::{self, Depth};
use ptsbench::data::decode::{self, Rotation};
use ptsbench::data::lmdb::Database;
use ptsbench::data::{imagenet, matlab, pickle, voc};
use ptsbench::metric::npz;
use ptsbench::store::packed;

#[path = "worst/files.rs"]
mod files;

/// The most seconds of processor time, and MiB beyond what the process had, that a row may take.
const SECONDS: f64 = 2.0;
const MIB: u64 = 500;

type Read = Box<dyn Fn(&Path) -> Result<(), String>>;

fn said<T, E: ToString>(outcome: Result<T, E>) -> Result<(), String> {
    outcome.map(drop).map_err(|error| error.to_string())
}

fn whole(path: &Path) -> Vec<u8> {
    fs::read(path).expect("a file")
}

fn weight_file(path: &Path) -> Result<(), String> {
    let file = weights::open(path).map_err(|error| error.to_string())?;
    for key in file.keys() {
        said(file.read(&key))?;
    }
    Ok(())
}

/// An annotation among the files of a set of one picture.
fn annotation(path: &Path) -> Result<(), String> {
    let devkit = path.with_extension("voc");
    for folder in ["ImageSets/Main", "Annotations", "JPEGImages"] {
        fs::create_dir_all(devkit.join(folder)).expect("a folder");
    }
    fs::write(devkit.join("ImageSets/Main/test.txt"), "000001\n").expect("a file");
    fs::write(devkit.join("JPEGImages/000001.jpg"), files::jpeg(8, 8, 1)).expect("a file");
    fs::copy(path, devkit.join("Annotations/000001.xml")).expect("a file");
    said(voc::read_set(&devkit, "test"))
}

fn class_index(path: &Path) -> Result<(), String> {
    let root = path.with_extension("imagenet");
    fs::create_dir_all(root.join("val")).expect("a folder");
    fs::copy(path, root.join("imagenet_class_index.json")).expect("a file");
    said(imagenet::read_folder(&root))
}

fn readers() -> Vec<(&'static str, Read)> {
    // Its file `status` stands for a picture.
    let images = PathBuf::from("/proc/self");
    vec![
        (
            "pickle",
            Box::new(|path: &Path| {
                said(pickle::read(&whole(path)).map(|batch| batch.integers("labels")))
            }),
        ),
        ("weights", Box::new(weight_file)),
        ("npz", Box::new(|path: &Path| said(npz::read(path)))),
        (
            "matlab",
            Box::new(|path: &Path| said(matlab::structures(&whole(path), "synsets"))),
        ),
        (
            "coco",
            Box::new(move |path: &Path| said(coco::read_instances(path, &images, Depth::Listed))),
        ),
        (
            "results",
            Box::new(|path: &Path| said(coco::read_results(path, &[1].into()))),
        ),
        ("voc", Box::new(annotation)),
        ("lmdb", Box::new(|path: &Path| said(Database::open(path)))),
        ("classes", Box::new(class_index)),
        (
            "picture",
            Box::new(|path: &Path| said(decode::read(path, Rotation::Apply))),
        ),
        ("records", Box::new(|path: &Path| said(packed::read(path)))),
    ]
}

/// A number of `/proc/self/status`, in KiB.
fn status(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Seconds of processor time so far; the kernel counts hundredths.
fn processor() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}

const ROLE: &str = "PTSBENCH_TEST_WORST";

/// Not a test of its own: reads one file in a process of its own, whose memory and time are that file's alone.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (reader, path) = role.split_once(' ').expect("a reader and a path");
    let readers = readers();
    let (_, read) = readers
        .iter()
        .find(|(name, _)| *name == reader)
        .expect("a reader");
    let (size, time) = (
        status("VmRSS").expect("a size"),
        processor().expect("a time"),
    );
    let outcome = read(Path::new(path));
    let seconds = processor().expect("a time") - time;
    let mib = status("VmHWM").expect("a size").saturating_sub(size) >> 10;
    // The path is long and another each time.
    let outcome = match outcome {
        Ok(()) => "read".to_owned(),
        Err(error) => error.replace(path, "").chars().take(100).collect(),
    };
    println!("\nworst {seconds} {mib} {outcome}");
}

/// Seconds, MiB and what came of it; the end of the process where it did not come through.
fn measured(reader: &str, path: &Path) -> Result<(f64, u64, String), String> {
    let output = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ROLE, format!("{reader} {}", path.display()))
        .output()
        .expect("a child");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("worst "));
    let mut words = line
        .ok_or_else(|| output.status.to_string())?
        .splitn(3, ' ');
    let mut word = || words.next().expect("three words");
    let (seconds, mib) = (word().parse(), word().parse());
    Ok((
        seconds.expect("seconds"),
        mib.expect("MiB"),
        word().to_owned(),
    ))
}

#[test]
fn small_files_take_neither_minutes_nor_the_memory() {
    if status("VmHWM").is_none() || processor().is_none() {
        println!(
            "skipped: small_files_take_neither_minutes_nor_the_memory: no /proc to measure with"
        );
        return;
    }
    let desk = tempfile::tempdir().expect("a folder");
    let mut wrong = Vec::new();
    println!(
        "| reader | file | kB | s | MiB | outcome |\n| --- | --- | ---: | ---: | ---: | --- |"
    );
    for (number, (reader, file, make)) in files::ALL.iter().enumerate() {
        let path = desk.path().join(number.to_string());
        let bytes = make();
        let length = bytes.len() / 1000;
        fs::write(&path, bytes).expect("a file");
        match measured(reader, &path) {
            Ok((seconds, mib, outcome)) => {
                println!("| {reader} | {file} | {length} | {seconds:.2} | {mib} | {outcome} |");
                if seconds > SECONDS || mib > MIB {
                    wrong.push(format!("{reader}, {file}: {seconds} s, {mib} MiB"));
                }
            }
            Err(end) => wrong.push(format!("{reader}, {file}: {end}")),
        }
        fs::remove_file(&path).expect("a file");
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn an_annotation_of_many_attributes_is_refused_at_once() {
    let desk = tempfile::tempdir().expect("a folder");
    let path = desk.path().join("many.xml");
    // As many as the file's size allows, and the 100,000 that took seven seconds.
    for count in [20_000, 100_000] {
        fs::write(&path, files::attributes(count)).expect("a file");
        let start = Instant::now();
        let error = annotation(&path).unwrap_err();
        assert!(
            start.elapsed() < Duration::from_millis(100),
            "{:?}",
            start.elapsed()
        );
        assert!(
            error.contains("attributes") || error.contains("bytes"),
            "{error}"
        );
    }
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused_by_every_reader() {
    let desk = tempfile::tempdir().expect("a folder");
    let place = |name: &str| desk.path().join(name);
    let made = std::process::Command::new("mkfifo")
        .arg(place("pipe"))
        .status();
    assert!(made.expect("mkfifo").success());
    std::os::unix::fs::symlink("/dev/zero", place("device")).expect("a link");
    std::os::unix::fs::symlink("/dev/full", place("full")).expect("a link");
    type Open = fn(&Path) -> Result<(), String>;
    let readers: [(&str, Open); 13] = [
        ("records", |path| said(packed::read(path))),
        ("weights", |path| said(weights::open(path))),
        ("container", |path| said(Container::open(path))),
        ("torch", |path| said(TorchFile::open(path))),
        ("digest", |path| said(weights::sha256(path))),
        ("picture", |path| said(decode::read(path, Rotation::Ignore))),
        ("npz", |path| said(npz::read(path))),
        ("coco", |path| {
            said(coco::read_instances(path, path, Depth::Listed))
        }),
        ("results", |path| {
            said(coco::read_results(path, &[1].into()))
        }),
        ("cifar", |path| {
            said(cifar::read_binary(path, Kind::Cifar10))
        }),
        ("cifar pickle", |path| {
            said(cifar::read_python(path, Kind::Cifar10))
        }),
        ("lmdb", |path| said(Database::open(path))),
        ("voc list", |path| {
            let sets = path.with_extension("devkit").join("ImageSets/Main");
            fs::create_dir_all(&sets).expect("a folder");
            let list = sets.join("test.txt");
            let _ = fs::remove_file(&list);
            std::os::unix::fs::symlink(path, &list).expect("a link");
            said(voc::read_set(&path.with_extension("devkit"), "test"))
        }),
    ];
    for (name, kind) in [
        ("pipe", "a pipe"),
        ("device", "a device"),
        ("full", "a device"),
    ] {
        for (reader, open) in readers {
            let (send, receive) = mpsc::channel();
            let path = place(name);
            // A reader that waits is left behind in its thread.
            thread::spawn(move || send.send(open(&path)));
            let outcome = receive.recv_timeout(Duration::from_secs(20));
            let error = outcome
                .unwrap_or_else(|_| panic!("{reader} waits for a {name}"))
                .expect_err("no file");
            assert!(
                error.contains(&format!("is {kind}, not a file")),
                "{reader}: {error}"
            );
        }
    }
}

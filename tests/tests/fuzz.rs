//! Mutated files against every parser of outside data: whatever comes, no panic and bounded memory.
//!
//! An input is its parser's name and a number: the same bytes on every machine. A run tries the numbers up to
//! `PTSBENCH_FUZZ` (a few hundred when unset; `make fuzz` tries 10^6 in all) after those that once failed.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use model_zoo::weights::{
    self, Container, Dtype, PACKED, Source, Stored, from_f32, pack, write_stored,
};
use ptsbench::data::cifar::{self, Kind};
use ptsbench::data::coco::{self, Depth};
use ptsbench::data::decode::{self, Rotation};
use ptsbench::data::lmdb::Database;
use ptsbench::data::{matlab, pickle, voc};
use ptsbench::metric::npz;
use ptsbench::seed::{Seed, Stream};
use ptsbench::store;
use ptsbench_tests::golden_topic;

/// Inputs that failed once, tried first: parser and number.
const KEPT: &[(&str, u64)] = &[];

/// Memory that a parser may take at its worst, in KiB: the largest picture allowed, decoded, with its workings.
const MOST_MEMORY: u64 = 3 << 20;

/// Gives mutated bytes, or a file that holds them, to a parser.
type Read = Box<dyn Fn(&[u8], &Path)>;

/// A parser: files to start from, and what reads a mutated one, given as bytes and lying at a path.
struct Parser {
    name: &'static str,
    starts: Vec<Vec<u8>>,
    read: Read,
    /// Whether it reads the path rather than the bytes.
    on_disk: bool,
}

/// Values that break arithmetic.
const EDGES: [u64; 8] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 62,
    u64::MAX,
];

fn mutate(start: &[u8], stream: &mut Stream) -> Vec<u8> {
    let mut bytes = start.to_vec();
    for _ in 0..=stream.below(4) {
        if bytes.is_empty() {
            break;
        }
        // Headers stand at the beginning and the end: every other change goes there.
        let length = bytes.len() as u64;
        let near = length.min(256);
        let at = match stream.below(4) {
            0 => stream.below(near),
            1 => length - 1 - stream.below(near),
            _ => stream.below(length),
        } as usize;
        match stream.below(7) {
            0 => bytes[at] ^= 1 << stream.below(8),
            1 => bytes[at] = stream.below(256) as u8,
            2 => bytes.truncate(at),
            3 => {
                let edge = EDGES[stream.below(8) as usize].to_le_bytes();
                let size = 1 << stream.below(4);
                for (byte, edge) in bytes[at..].iter_mut().zip(edge).take(size) {
                    *byte = edge;
                }
            }
            4 => {
                let end = (at + 1 + stream.below(32) as usize).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = stream.below(bytes.len() as u64) as usize;
                bytes.splice(to..to, piece);
            }
            5 => {
                let end = (at + 1 + stream.below(32) as usize).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let digit = b"0123456789-.eE\"{}[]<>&N"[stream.below(23) as usize];
                bytes[at] = digit;
            }
        }
    }
    bytes
}

fn files(folder: &Path, ends: &[&str]) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let name = path.display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if ends.iter().any(|end| name.ends_with(end)) {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let files: Vec<Vec<u8>> = paths
        .iter()
        .map(|path| fs::read(path).expect("a file"))
        .filter(|bytes| bytes.len() < 100_000)
        .collect();
    assert!(!files.is_empty(), "no {ends:?} in {}", folder.display());
    files
}

fn parsers(desk: &Path) -> Vec<Parser> {
    let datasets = golden_topic("datasets");
    let valid = datasets.join("valid");
    let images = desk.join("images");
    fs::create_dir_all(&images).expect("a folder");
    let picture = fs::read(datasets.join("malformed/coco_utf8_bom/images/a.jpg")).expect("a file");
    fs::write(images.join("a.jpg"), &picture).expect("a file");
    // A set of one picture whose annotation is the mutated file.
    let devkit = desk.join("voc");
    for folder in ["ImageSets/Main", "Annotations", "JPEGImages"] {
        fs::create_dir_all(devkit.join(folder)).expect("a folder");
    }
    fs::write(devkit.join("ImageSets/Main/test.txt"), "000001\n").expect("a file");
    fs::write(devkit.join("JPEGImages/000001.jpg"), &picture).expect("a file");
    let bytes = |name: &'static str, starts: Vec<Vec<u8>>, read: fn(&[u8])| Parser {
        name,
        starts,
        read: Box::new(move |bytes, _| read(bytes)),
        on_disk: false,
    };
    let disk = |name: &'static str, starts: Vec<Vec<u8>>, read: Read| Parser {
        name,
        starts,
        read,
        on_disk: true,
    };
    vec![
        bytes(
            "jpeg",
            files(&valid, &["0001.JPEG", "5.jpg", "2.jpg"]),
            |bytes| {
                let _ = decode::size(bytes);
                let _ = decode::decode(bytes, Rotation::Apply);
            },
        ),
        bytes(
            "png",
            files(&datasets.join("malformed"), &[".png"]),
            |bytes| {
                let _ = decode::size(bytes);
                let _ = decode::decode(bytes, Rotation::Apply);
            },
        ),
        bytes(
            "webp",
            files(&golden_topic("preprocess"), &[".webp"]),
            |bytes| {
                let _ = decode::size(bytes);
                let _ = decode::decode(bytes, Rotation::Apply);
            },
        ),
        bytes(
            "pickle",
            files(&valid, &["-py/test_batch", "-python/test", "batches.meta"]),
            |bytes| {
                let _ = pickle::read(bytes);
            },
        ),
        bytes("matlab", files(&valid, &["meta.mat"]), |bytes| {
            let _ = matlab::structures(bytes, "synsets");
        }),
        disk(
            "cifar",
            files(&valid, &["test_batch.bin", "test.bin"]),
            Box::new(|_, path| {
                let _ = cifar::read_binary(path, Kind::Cifar10);
                let _ = cifar::read_binary(path, Kind::Cifar100);
            }),
        ),
        disk(
            "coco",
            files(&datasets.join("malformed"), &["instances.json"]),
            Box::new(move |_, path| {
                let _ = coco::read_instances(path, &images, Depth::Listed);
                let _ = coco::read_results(path, &[1].into());
            }),
        ),
        bytes_of_voc(files(&valid.join("voc"), &[".xml"]), devkit),
        disk(
            "lmdb",
            files(&valid, &[".mdb"]),
            Box::new(|_, path| {
                if let Ok(database) = Database::open(path) {
                    for record in database.records() {
                        let _ = database.value(record);
                    }
                }
            }),
        ),
        disk(
            "npz",
            files(&golden_topic("fid"), &[".npz"]),
            Box::new(|_, path| {
                let _ = npz::read(path);
            }),
        ),
        disk(
            "safetensors",
            files(
                &datasets.join("malformed"),
                &["good/m.safetensors", "header/m.safetensors"],
            ),
            Box::new(|_, path| {
                if let Ok(file) = Container::open(path) {
                    for key in file.keys() {
                        let _ = file.read(&key);
                    }
                }
            }),
        ),
        disk(
            "packed",
            vec![packed(desk)],
            Box::new(|_, path| {
                if let Ok(file) = weights::open(path) {
                    for key in file.keys() {
                        let _ = file.read(&key);
                    }
                }
            }),
        ),
        disk(
            "records",
            vec![packed_records(desk)],
            Box::new(|_, path| {
                let _ = store::packed::read(path);
            }),
        ),
    ]
}

/// Two lines in a packed file of records: one that is none, and one that is nearly one.
fn packed_records(desk: &Path) -> Vec<u8> {
    let path = desk.join("records.jsonl.gz");
    let key = "ab".repeat(32);
    let lines = [
        "{}".to_owned(),
        format!(r#"{{"schema":2,"key":"{key}","digest":"{key}","cell":{{"model":"a"}}}}"#),
    ];
    store::packed::write(&path, &lines).expect("room on the disk");
    fs::read(path).expect("a file")
}

/// A small file of sparse tensors.
fn packed(desk: &Path) -> Vec<u8> {
    let tensor = |key: &str, count: usize, each: usize| {
        let values: Vec<f32> = (0..count)
            .map(|i| f32::from(u8::from(i % each == 0)))
            .collect();
        Stored {
            key: key.to_owned(),
            dtype: Dtype::F32,
            shape: vec![count],
            bytes: from_f32(Dtype::F32, &values).expect("floats"),
        }
    };
    let (tensors, shapes) = pack(vec![
        tensor("a", 37, 5),
        tensor("b", 64, 64),
        tensor("c", 3, 1),
    ]);
    let path = desk.join("packed.safetensors");
    let metadata = BTreeMap::from([(PACKED.to_owned(), shapes)]);
    write_stored(&path, &tensors, &metadata).expect("a file");
    fs::read(&path).expect("a file")
}

fn bytes_of_voc(starts: Vec<Vec<u8>>, devkit: PathBuf) -> Parser {
    let annotation = devkit.join("Annotations/000001.xml");
    Parser {
        name: "voc",
        starts,
        read: Box::new(move |bytes, _| {
            fs::write(&annotation, bytes).expect("a file");
            let _ = voc::read_set(&devkit, "test");
        }),
        on_disk: false,
    }
}

/// The most memory this process has had, in KiB; 0 where the system does not say.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

#[test]
fn mutated_files_do_not_panic() {
    let in_all: Option<u64> = std::env::var("PTSBENCH_FUZZ")
        .ok()
        .map(|number| number.parse().expect("PTSBENCH_FUZZ is a number of inputs"));
    let desk = tempfile::tempdir().expect("a folder");
    let file = desk.path().join("mutated");
    let parsers = parsers(desk.path());
    let each = in_all.map_or(300, |number| number.div_ceil(parsers.len() as u64));
    for parser in &parsers {
        let kept = KEPT.iter().filter(|(name, _)| *name == parser.name);
        for number in kept.map(|&(_, number)| number).chain(0..each) {
            let mut stream = Seed(number).stream(parser.name);
            let start = &parser.starts[stream.below(parser.starts.len() as u64) as usize];
            let bytes = mutate(start, &mut stream);
            if parser.on_disk {
                fs::write(&file, &bytes).expect("a file");
            }
            let outcome = catch_unwind(AssertUnwindSafe(|| (parser.read)(&bytes, &file)));
            assert!(
                outcome.is_ok(),
                "{} panics at input {number}: add it to KEPT",
                parser.name
            );
        }
        println!("fuzz {}: {each} inputs", parser.name);
    }
    let peak = peak_memory();
    println!("fuzz: peak memory {} MiB", peak >> 10);
    assert!(peak < MOST_MEMORY, "{} MiB at the peak", peak >> 10);
}

//! The speed of the way from a picture's file to a network's input, and the pictures to measure it with.
//!
//! `generate` writes procedural photographs (500 x 375, JPEG of quality 90) in ImageNet's layout. `time` reads, decodes,
//! resizes, crops and normalises all of a folder as an evaluation does, and prints one line and, with `--json`, an object.
//! `tests/peers/data_peer.py` does the same work with Pillow and torchvision.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use ptsbench::data::decode::{self, Rotation};
use ptsbench::data::imagenet::{self, Wanted};
use ptsbench::data::loader;
use ptsbench::data::recipe::{IMAGENET, Recipe};
use ptsbench::data::resize::Filter;
use ptsbench::data::source::Source;
use ptsbench::seed::{Seed, Stream};
use rayon::prelude::*;

const WIDTH: usize = 500;
const HEIGHT: usize = 375;
const QUALITY: u8 = 90;

/// torchvision's first recipe.
const RECIPE: Recipe = Recipe {
    short: 256,
    filter: Filter::Bilinear,
    crop: 224,
    squash: false,
    statistics: IMAGENET,
};

#[derive(Parser)]
#[command(about = "Times the way from a picture's file to a network's input")]
enum Command {
    /// Write procedural photographs in ImageNet's layout
    Generate(Generate),
    /// Time decoding, resizing and normalising of a folder
    Time(Time),
}

#[derive(clap::Args)]
struct Generate {
    /// The folder that gets `val/<class>/*.JPEG`
    folder: PathBuf,
    /// Class folders
    #[arg(long, default_value_t = 1000)]
    classes: usize,
    /// Pictures of a class
    #[arg(long, default_value_t = 50)]
    each: usize,
    /// Different pictures; the others are further names of these files [default: all]
    #[arg(long)]
    distinct: Option<usize>,
}

#[derive(clap::Args)]
struct Time {
    /// A folder in ImageNet's layout
    folder: PathBuf,
    /// Threads [default: one per core]
    #[arg(long)]
    threads: Option<usize>,
    /// Passes over the folder; the fastest counts
    #[arg(long, default_value_t = 3)]
    passes: usize,
    /// Print JSON, too
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    kernels::keep_freed_memory();
    match Command::parse() {
        Command::Generate(args) => generate(&args),
        Command::Time(args) => time(&args),
    }
}

/// A smooth random field added to a plane: a lattice of `cells` across, interpolated. Values in 1/256 levels.
fn add_octave(plane: &mut [i32], stream: &mut Stream, cells: usize, amplitude: i64) {
    let columns = cells + 2;
    let rows = cells * HEIGHT / WIDTH + 3;
    let lattice: Vec<i32> = (0..rows * columns)
        .map(|_| stream.between(-amplitude * 256, amplitude * 256) as i32)
        .collect();
    // Places in 1/256 cells.
    let place = |at: usize| at * cells * 256 / WIDTH;
    for (y, row) in plane.chunks_exact_mut(WIDTH).enumerate() {
        let (top, down) = (place(y) / 256, (place(y) % 256) as i32);
        let above = &lattice[top * columns..][..columns];
        let below = &lattice[(top + 1) * columns..][..columns];
        for (x, value) in row.iter_mut().enumerate() {
            let (left, along) = (place(x) / 256, (place(x) % 256) as i32);
            let mix = |a: i32, b: i32, t: i32| a + (b - a) / 256 * t;
            let upper = mix(above[left], above[left + 1], along);
            let lower = mix(below[left], below[left + 1], along);
            *value += mix(upper, lower, down);
        }
    }
}

/// A picture with the detail of a photograph: about 75 kB at this quality.
fn picture(index: usize) -> Vec<u8> {
    let mut stream = Seed(index as u64).stream("bench picture");
    let planes: Vec<Vec<i32>> = (0..3)
        .map(|_| {
            let mut plane = vec![128 * 256; WIDTH * HEIGHT];
            for (cells, amplitude) in [(4, 90), (16, 70), (64, 40), (200, 24), (499, 14)] {
                add_octave(&mut plane, &mut stream, cells, amplitude);
            }
            plane
        })
        .collect();
    let byte = |value: i32| (value >> 8).clamp(0, 255) as u8;
    (0..WIDTH * HEIGHT)
        .flat_map(|at| [0, 1, 2].map(|channel| byte(planes[channel][at])))
        .collect()
}

fn write_picture(path: &Path, index: usize) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, QUALITY);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode(&picture(index), WIDTH as u16, HEIGHT as u16, ColorType::Rgb)?;
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

fn generate(args: &Generate) -> anyhow::Result<()> {
    let count = args.classes * args.each;
    let distinct = args.distinct.unwrap_or(count).min(count);
    ensure!(
        distinct > 0,
        "nothing to write: give at least one class of one picture"
    );
    let path = |index: usize| {
        let class = format!("n{:08}", 90_000_000 + index % args.classes);
        let name = format!("ILSVRC2012_val_{:08}.JPEG", index + 1);
        args.folder.join("val").join(class).join(name)
    };
    for class in 0..args.classes.min(count) {
        let path = path(class);
        fs::create_dir_all(path.parent().unwrap_or(&args.folder))?;
    }
    let missing = |index: &usize| !path(*index).exists();
    (0..distinct)
        .into_par_iter()
        .filter(missing)
        .try_for_each(|index| write_picture(&path(index), index))?;
    for index in (distinct..count).filter(missing) {
        fs::hard_link(path(index % distinct), path(index))?;
    }
    println!(
        "{}: {count} pictures in {} classes, {distinct} of them different",
        args.folder.display(),
        args.classes
    );
    Ok(())
}

fn time(args: &Time) -> anyhow::Result<()> {
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()?;
    }
    let set = imagenet::read_splits(&args.folder, Wanted::Validation)?;
    let files: Vec<PathBuf> = set.validation.iter().map(|one| one.path.clone()).collect();
    ensure!(!files.is_empty(), "{}: no pictures", args.folder.display());
    let source = Source::files(set.validation);
    let mut fastest = f64::INFINITY;
    for _ in 0..args.passes.max(1) {
        let start = Instant::now();
        let mut sum = 0.0;
        loader::batches(
            source.len(),
            64,
            |index| source.input(index, &RECIPE),
            |_, inputs| {
                sum += inputs.iter().map(|input| input[0]).sum::<f32>();
                Ok(())
            },
        )?;
        ensure!(sum.is_finite(), "an input is not finite");
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    let threads = rayon::current_num_threads();
    let rate = source.len() as f64 / fastest;

    // Where the time goes, on one thread.
    let few = &files[..files.len().min(200)];
    let mut seconds = [0.0; 4];
    for file in few {
        let mut start = Instant::now();
        let mut lap = |step: usize| {
            seconds[step] += start.elapsed().as_secs_f64();
            start = Instant::now();
        };
        let bytes = fs::read(file)?;
        lap(0);
        let picture = decode::decode(&bytes, Rotation::Ignore)?;
        lap(1);
        let cropped = RECIPE.cropped(&picture);
        lap(2);
        let input = RECIPE.statistics.normalize(&cropped);
        lap(3);
        ensure!(
            input.len() == 3 * RECIPE.crop * RECIPE.crop,
            "{}",
            file.display()
        );
    }
    let [read, decode, resize, normalise] = seconds.map(|s| 1e3 * s / few.len() as f64);
    println!(
        "{} images: {rate:.0} a second on {threads} threads; on one, read {read:.2} ms, decode {decode:.2} ms, resize and crop {resize:.2} ms, normalise {normalise:.2} ms",
        source.len()
    );
    if args.json {
        let report = serde_json::json!({
            "images": source.len(),
            "threads": threads,
            "images_per_second": rate,
            "one_thread_ms": {
                "read": read,
                "decode": decode,
                "resize": resize,
                "normalise": normalise,
            },
        });
        println!("{report}");
    }
    Ok(())
}

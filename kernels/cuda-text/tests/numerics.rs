//! The CUDA kernels' own text, run on the CPU against f64 loops. Skipped, with the reason, where no C++ compiler is.

use std::sync::Arc;

use cubecl::ir::{DeviceProperties, TargetProperties};
use cuda_text::catalog::{self, Entry};
use cuda_text::emulate::{Launch, Program, compiler};
use cuda_text::gpu::cuda::{Activations, Operand};
use cuda_text::lower::{device, lower};
use cuda_text::{BitMask, Bitmap, ColOrder, Half, Nm24Hw};

/// xorshift: the tests' only source of numbers.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    /// In [-1, 1).
    fn value(&mut self) -> f32 {
        self.bits() as i32 as f32 / 2147483648.0
    }
}

/// One layer: weights, mask, inputs, all as the operand rounds them in memory.
struct Layer {
    rows: usize,
    cols: usize,
    points: usize,
    batch: usize,
    operand: Operand,
    activations: Activations,
    weight: Vec<f32>,
    mask: BitMask,
    x: Vec<f32>,
}

fn half(operand: Operand) -> Half {
    if operand == Operand::F16 {
        Half::F16
    } else {
        Half::Bf16
    }
}

impl Layer {
    /// A layer with two of four kept, or about half of everything; row 5 keeps nothing.
    fn new(
        seed: u64,
        [rows, cols, points, batch]: [usize; 4],
        operand: Operand,
        activations: Activations,
        two_of_four: bool,
    ) -> Self {
        let mut random = Random(seed * 0x9e37_79b9 + 0x1234_5678_9abc);
        let draw = |random: &mut Random, n: usize| -> Vec<f32> {
            (0..n)
                .map(|_| {
                    let v = random.value();
                    match operand {
                        Operand::Tf32 => v,
                        _ => half(operand).decode(half(operand).encode(v)),
                    }
                })
                .collect()
        };
        let weight = draw(&mut random, rows * cols);
        let x = draw(&mut random, batch * cols * points);
        let keep: Vec<u32> = (0..rows * cols).map(|_| random.bits()).collect();
        let kept = (0..rows * cols).map(|i| {
            let (row, col) = (i / cols, i % cols);
            if row == 5 {
                return false;
            }
            if two_of_four {
                // Two of the four with the smallest numbers, fewer now and then.
                let group = row * cols + col / 4 * 4;
                let smaller = (group..group + 4)
                    .filter(|&j| (keep[j], j) < (keep[i], i))
                    .count();
                smaller < 2 && keep[i] % 8 != 0
            } else {
                keep[i] % 2 == 0
            }
        });
        let mask = BitMask::from_keep(rows, cols, &kept.collect::<Vec<bool>>()).unwrap();
        Self {
            rows,
            cols,
            points,
            batch,
            operand,
            activations,
            weight,
            mask,
            x,
        }
    }

    fn input(&self, image: usize, col: usize, point: usize) -> f64 {
        let at = match self.activations {
            Activations::Tokens => (image * self.points + point) * self.cols + col,
            Activations::Planes => (image * self.cols + col) * self.points + point,
        };
        f64::from(self.x[at])
    }

    /// Weights as stored: NaN where the mask prunes, which must not matter.
    fn poisoned(&self) -> Vec<f32> {
        let kept = |i: usize| self.mask.get(i / self.cols, i % self.cols);
        self.weight
            .iter()
            .enumerate()
            .map(|(i, &w)| if kept(i) { w } else { f32::NAN })
            .collect()
    }

    fn stored(&self, values: &[f32]) -> Vec<u8> {
        match self.operand {
            Operand::Tf32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            operand => values
                .iter()
                .flat_map(|&v| half(operand).encode(v).to_le_bytes())
                .collect(),
        }
    }

    /// Largest error over its bound; the bound is c (|W| |X|), c of `docs/gpu-cuda.md`.
    fn judge(&self, y: &[u8]) -> f64 {
        let c = self.cols as f64 * 2f64.powi(-23)
            + if self.operand == Operand::Tf32 {
                2f64.powi(-10)
            } else {
                0.0
            };
        let y: Vec<f64> = y
            .chunks_exact(4)
            .map(|quad| f64::from(f32::from_le_bytes(quad.try_into().unwrap())))
            .collect();
        let mut worst: f64 = 0.0;
        for image in 0..self.batch {
            for row in 0..self.rows {
                let kept: Vec<usize> = (0..self.cols).filter(|&j| self.mask.get(row, j)).collect();
                for point in 0..self.points {
                    let (mut exact, mut size) = (0.0, 0.0);
                    for &col in &kept {
                        let product = f64::from(self.weight[row * self.cols + col])
                            * self.input(image, col, point);
                        exact += product;
                        size += product.abs();
                    }
                    let at = match self.activations {
                        Activations::Tokens => (image * self.points + point) * self.rows + row,
                        Activations::Planes => (image * self.rows + row) * self.points + point,
                    };
                    let (error, bound) = ((y[at] - exact).abs(), c * size);
                    assert!(
                        error <= bound,
                        "({row}, {point}) of image {image}: {} for {exact}",
                        y[at]
                    );
                    if bound > 0.0 {
                        worst = worst.max(error / bound);
                    }
                }
            }
        }
        worst
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// NaN everywhere.
fn poison(len: usize) -> Vec<u8> {
    vec![0xff; 4 * len]
}

struct Bench {
    compiler: String,
    folder: tempfile::TempDir,
    entries: Vec<Entry>,
}

impl Bench {
    fn new(name: &str) -> Option<Self> {
        let Some(compiler) = compiler() else {
            println!("skipped: {name}: no C++ compiler; install one or set CXX");
            return None;
        };
        let (device, target): (Arc<DeviceProperties>, Arc<TargetProperties>) = device();
        let entries = catalog::entries(&device, &target);
        Some(Self {
            compiler,
            folder: tempfile::tempdir().unwrap(),
            entries,
        })
    }

    fn program(&self, name: &str) -> Program {
        let entry = self
            .entries
            .iter()
            .find(|e| e.name == name)
            .unwrap_or_else(|| panic!("no {name}"));
        let text = lower(entry).unwrap();
        Program::build(
            &self.compiler,
            self.folder.path(),
            name,
            &text.source,
            entry.units,
        )
        .unwrap()
    }

    /// Two orders of threads must give the same bits.
    fn run(&self, program: &Program, launch: &Launch, output: usize) -> Vec<u8> {
        let mut first = program.run(launch, 1).unwrap();
        let second = program.run(launch, 2).unwrap();
        assert!(
            first[output] == second[output],
            "the order of threads changes the result"
        );
        first.swap_remove(output)
    }
}

/// Columns and positions whose rows are whole chunks, or are not.
fn sizes(aligned: bool, tokens: bool) -> [usize; 4] {
    let (cols, points) = if aligned { (328, 136) } else { (325, 131) };
    [150, cols, points, if tokens { 1 } else { 2 }]
}

fn name(kernel: &str, operand: Operand, activations: Activations, aligned: bool) -> String {
    let ends = if aligned { "" } else { " ragged" };
    format!("{kernel} {} {activations:?}{ends}", operand.kind()).to_lowercase()
}

const BOTH: [Activations; 2] = [Activations::Tokens, Activations::Planes];

#[test]
fn masked() {
    let Some(bench) = Bench::new("masked") else {
        return;
    };
    for operand in [Operand::Bf16, Operand::F16, Operand::Tf32] {
        for activations in BOTH {
            for aligned in [true, false] {
                // The forms that differ in code: f16 differs from bf16 in one word of the text.
                if operand == Operand::F16 && !aligned {
                    continue;
                }
                let name = name("masked", operand, activations, aligned);
                let tokens = activations == Activations::Tokens;
                let layer = Layer::new(1, sizes(aligned, tokens), operand, activations, false);
                let launch = Launch {
                    grid: [2, 2, layer.batch as u32],
                    scalars: [layer.rows, layer.cols, layer.points]
                        .map(|n| n as u32)
                        .to_vec(),
                    buffers: vec![
                        layer.stored(&layer.poisoned()),
                        words(layer.mask.words()),
                        layer.stored(&layer.x),
                        poison(layer.batch * layer.rows * layer.points),
                    ],
                };
                let y = bench.run(&bench.program(&name), &launch, 3);
                println!("{name}: largest error {:.3} of its bound", layer.judge(&y));
            }
        }
    }
}

#[test]
fn masked_warpgroup() {
    let Some(bench) = Bench::new("masked_warpgroup") else {
        return;
    };
    for aligned in [true, false] {
        let (operand, activations) = (Operand::Bf16, Activations::Tokens);
        let name = name("masked warpgroup", operand, activations, aligned);
        let layer = Layer::new(2, sizes(aligned, true), operand, activations, false);
        let launch = Launch {
            grid: [2, 2, 1],
            scalars: [layer.rows, layer.cols, layer.points]
                .map(|n| n as u32)
                .to_vec(),
            buffers: vec![
                layer.stored(&layer.poisoned()),
                words(layer.mask.words()),
                layer.stored(&layer.x),
                poison(layer.rows * layer.points),
            ],
        };
        let y = bench.run(&bench.program(&name), &launch, 3);
        println!("{name}: largest error {:.3} of its bound", layer.judge(&y));
    }
}

fn sparse(bench: &Bench, kernel: &str, operand: Operand, activations: Activations, aligned: bool) {
    let name = name(kernel, operand, activations, aligned);
    let [rows, _, points, batch] = sizes(aligned, activations == Activations::Tokens);
    let cols = if aligned { 328 } else { 324 };
    let layer = Layer::new(3, [rows, cols, points, batch], operand, activations, true);
    let packed = Nm24Hw::from_dense(
        &layer.poisoned(),
        &layer.mask,
        half(operand),
        ColOrder::Oihw,
    )
    .unwrap();
    let launch = Launch {
        grid: [2, 2, batch as u32],
        scalars: [rows, cols, points].map(|n| n as u32).to_vec(),
        buffers: vec![
            words(packed.values()),
            words(packed.metadata()),
            layer.stored(&layer.x),
            poison(batch * rows * points),
        ],
    };
    let y = bench.run(&bench.program(&name), &launch, 3);
    println!("{name}: largest error {:.3} of its bound", layer.judge(&y));
}

#[test]
fn two_of_four() {
    let Some(bench) = Bench::new("two_of_four") else {
        return;
    };
    for (operand, activations, aligned) in [
        (Operand::Bf16, Activations::Tokens, true),
        (Operand::Bf16, Activations::Tokens, false),
        (Operand::Bf16, Activations::Planes, true),
        (Operand::Bf16, Activations::Planes, false),
        (Operand::F16, Activations::Tokens, true),
    ] {
        sparse(&bench, "2:4", operand, activations, aligned);
    }
    for aligned in [true, false] {
        sparse(
            &bench,
            "2:4 warpgroup",
            Operand::Bf16,
            Activations::Tokens,
            aligned,
        );
    }
}

#[test]
fn bitmap() {
    let Some(bench) = Bench::new("bitmap") else {
        return;
    };
    let add = bench.program("bitmap parts");
    for (operand, activations, aligned) in [
        (Operand::Bf16, Activations::Tokens, true),
        (Operand::Bf16, Activations::Tokens, false),
        (Operand::Bf16, Activations::Planes, true),
        (Operand::F16, Activations::Planes, false),
    ] {
        let name = name("bitmap", operand, activations, aligned);
        let [rows, cols, points, _] = sizes(aligned, true);
        let layer = Layer::new(4, [rows, cols, points, 1], operand, activations, false);
        let packed = Bitmap::from_dense(
            &layer.poisoned(),
            &layer.mask,
            half(operand),
            ColOrder::Oihw,
        )
        .unwrap();
        let program = bench.program(&name);
        // Six tiles of depth in one part, and in three, the last of which is shorter.
        for steps_per_part in [6u32, 2, 4] {
            let parts = 6u32.div_ceil(steps_per_part);
            let launch = Launch {
                grid: [3, 3, parts],
                scalars: [rows, cols, points]
                    .map(|n| n as u32)
                    .into_iter()
                    .chain([steps_per_part])
                    .collect(),
                buffers: vec![
                    words(packed.masks()),
                    words(packed.tile_ptr()),
                    words(packed.values()),
                    layer.stored(&layer.x),
                    poison(parts as usize * rows * points),
                ],
            };
            let sums = bench.run(&program, &launch, 4);
            let len = (rows * points) as u32;
            let launch = Launch {
                grid: [len.div_ceil(256), 1, 1],
                scalars: vec![len, parts],
                buffers: vec![sums, poison(rows * points)],
            };
            let y = bench.run(&add, &launch, 1);
            println!(
                "{name}, {parts} parts: largest error {:.3} of its bound",
                layer.judge(&y)
            );
        }
    }
}

//! The test list of the one-off kernels, for the test harness and for a program on a machine that has none.
//!
//! Masks are held against the CPU's bit for bit, sums and products against f64 loops within stated bounds. Memory that
//! kernels write is filled with NaNs before it is theirs.

mod products;
mod selection;
mod sums;
#[cfg(feature = "cuda")]
mod tensor_cores;

use cubecl::client::Client;

use super::bitmap::{self, BitmapTiles};
use super::buffer::Buffer;
use super::gram::GramSums;
use super::select::{Layer, Words};
use super::{select, stats};
use crate::{BitMask, KernelError, Stored, Ties};

/// What a passed test says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Passed {
    /// Results compared.
    pub cases: usize,
    /// The largest error over its bound; 0 where bits were compared.
    pub worst: f64,
}

impl Passed {
    fn of(&mut self, ratio: f64, what: impl Fn() -> String) -> Result<(), String> {
        self.cases += 1;
        self.worst = self.worst.max(ratio);
        // NaN is a failure too.
        if ratio <= 1.0 {
            Ok(())
        } else {
            Err(format!("{}: error over bound {ratio}", what()))
        }
    }

    fn same<T: PartialEq>(
        &mut self,
        got: &T,
        want: &T,
        what: impl Fn() -> String,
    ) -> Result<(), String> {
        self.cases += 1;
        if got == want {
            Ok(())
        } else {
            Err(format!("{}: differs from the CPU's", what()))
        }
    }
}

/// A test: its outcome, or what failed.
pub type Test = fn(&Client) -> Result<Passed, String>;

/// Every test and its name.
const TESTS: [(&str, Test); 12] = [
    ("selection: lists", selection::lists),
    ("selection: over layers", selection::over_layers),
    ("selection: refusals", selection::refusals),
    ("selection: a long list", selection::long_list),
    ("N:M masks", selection::nm_masks),
    ("statistics", sums::statistics),
    ("learned thresholds", sums::learned_thresholds),
    ("Gram sums", sums::gram_sums),
    ("bitmap product", products::bitmap_tiles),
    ("N:M product", products::nm_packed),
    ("20 repeats", repeats),
    ("more cubes than an axis takes", folded_launch),
];

/// The tests of a device and their names.
pub fn tests(client: &Client) -> Vec<(&'static str, Test)> {
    #[allow(unused_mut)] // Only some builds have more.
    let mut tests = TESTS.to_vec();
    #[cfg(feature = "cuda")]
    if super::cuda::launch::compute_capability(client.properties()).is_some() {
        tests.extend(tensor_cores::TESTS);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = client;
    tests
}

/// Runs a test with NaNs in the memory it will get.
pub fn run(client: &Client, test: Test) -> Result<Passed, String> {
    // Held together and let go together, so that the pool hands out poisoned pages.
    let sizes = [1usize, 64, 1 << 10, 1 << 14, 1 << 18];
    let poison: Result<Vec<Buffer>, KernelError> = sizes
        .iter()
        .flat_map(|&len| [len; 4])
        .map(|len| Buffer::uninit(client, len))
        .collect();
    for buffer in poison.map_err(text)? {
        buffer.fill(f32::NAN.to_bits());
    }
    test(client)
}

fn text(error: KernelError) -> String {
    error.to_string()
}

/// A small generator, so that a failing case can be named by its number.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    /// Few different values, so that scores tie.
    fn coarse(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() % 5) as f32 - 2.0).collect()
    }

    fn mask(&mut self, rows: usize, cols: usize, density: f64) -> BitMask {
        let keep: Vec<bool> = (0..rows * cols)
            .map(|_| ((self.next() >> 11) as f64) < density * (1u64 << 53) as f64)
            .collect();
        BitMask::from_keep(rows, cols, &keep).expect("one flag per weight")
    }
}

fn on_device(client: &Client, mask: &BitMask) -> Result<Words, String> {
    Ok(Words {
        words: Buffer::of_u32(client, mask.words()).map_err(text)?,
        shape: [mask.rows(), mask.cols()],
    })
}

/// The CPU's view of the scores.
fn stored(values: &[f32], magnitude: bool) -> Stored<'_> {
    Stored {
        values,
        magnitude,
        divisor: 1.0,
    }
}

/// Everything that many units write together, 20 times on one input.
fn repeats(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(10);
    let [rows, cols] = [70, 640];
    let w = random.coarse(rows * cols);
    let mask = random.mask(rows, cols, 0.3);
    let scores = Buffer::of_f32(client, &w).map_err(text)?;
    let words = on_device(client, &mask)?;
    let [x, few] = [cols, 130].map(|cols| Buffer::of_f32(client, &random.floats(33 * cols)));
    let (x, few) = (x.map_err(text)?, few.map_err(text)?);
    let weight = BitmapTiles::from_dense(&w, &mask)
        .and_then(|w| w.upload(client))
        .map_err(text)?;
    let once = || -> Result<_, KernelError> {
        let layer = Layer {
            scores: scores.clone(),
            shape: [rows, cols],
        };
        let k = (rows * cols / 2) as u64;
        let masks = select::select_smallest(client, &[layer], true, k, Ties::KeepLowestIndex)?;
        let mut gram = GramSums::new(client, 1, 130)?;
        gram.add_linear(&few, 33)?;
        let stats = stats::channel_stats(client, &scores, [rows, cols], Some(&words))?;
        let y = bitmap::linear(client, &x, 33, &weight, None)?.read_u32()?;
        Ok((masks[0].read()?, gram.read()?, stats, y))
    };
    let first = once().map_err(text)?;
    for _ in 1..20 {
        passed.same(&once().map_err(text)?, &first, || "a repeat".into())?;
    }
    Ok(passed)
}

fn folded_launch(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    // 65,537 cubes of the fill kernel, one more than two rows of equal length hold.
    let len = 65_536 * super::buffer::UNITS + 3;
    let buffer = Buffer::zeros(client, len).map_err(text)?;
    buffer.fill(7);
    let all = buffer.read_u32().map_err(text)?;
    passed.same(&all.iter().all(|&v| v == 7), &true, || "a fill".into())?;
    Ok(passed)
}

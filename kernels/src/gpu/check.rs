//! The test list of the one-off kernels, for the test harness and for a program on a machine that has none.
//!
//! Masks are held against the CPU's bit for bit, sums and products against f64 loops within stated bounds. Memory that
//! kernels write is filled with NaNs before it is theirs.

use cubecl::client::Client;

use super::bitmap::{self, BitmapTiles};
use super::buffer::Buffer;
use super::gram::GramSums;
use super::nm_product::{self, NmWeight};
use super::select::{Layer, Words};
use super::{nm, select, soft, stats};
use crate::format::{ColOrder, Nm};
use crate::reference::{self, LinearShape};
use crate::{BitMask, ConvShape, GramState, KernelError, MaskGrad, SoftMode, Stored, Ties};

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
pub const TESTS: [(&str, Test); 12] = [
    ("selection: lists", selection_lists),
    ("selection: over layers", selection_over_layers),
    ("selection: refusals", selection_refusals),
    ("selection: a long list", selection_long),
    ("N:M masks", nm_masks),
    ("statistics", statistics),
    ("learned thresholds", learned_thresholds),
    ("Gram sums", gram_sums),
    ("bitmap product", bitmap_product),
    ("N:M product", nm_products),
    ("20 repeats", repeats),
    ("more cubes than an axis takes", folded_launch),
];

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

const TIES: [Ties; 2] = [Ties::KeepLowestIndex, Ties::CompatLe];

/// Masks of one list of layers at the counts that matter, under both tie rules, against the CPU's.
fn compare_selection(
    client: &Client,
    passed: &mut Passed,
    lists: &[(Vec<f32>, [usize; 2])],
    magnitude: bool,
    ks: &[u64],
    name: &str,
) -> Result<(), String> {
    let host: Vec<Stored> = lists
        .iter()
        .map(|(values, _)| stored(values, magnitude))
        .collect();
    let shapes: Vec<[usize; 2]> = lists.iter().map(|&(_, shape)| shape).collect();
    let layers: Result<Vec<Layer>, KernelError> = lists
        .iter()
        .map(|(values, shape)| {
            Ok(Layer {
                scores: Buffer::of_f32(client, values)?,
                shape: *shape,
            })
        })
        .collect();
    let layers = layers.map_err(text)?;
    for &k in ks {
        for ties in TIES {
            let want = crate::select_smallest_global(&host, &shapes, k, ties).map_err(text)?;
            let got = select::select_smallest(client, &layers, magnitude, k, ties);
            let got: Result<Vec<BitMask>, KernelError> =
                got.and_then(|words| words.iter().map(Words::read).collect());
            passed.same(&got.map_err(text)?, &want, || {
                format!("{name}, k = {k}, {ties:?}")
            })?;
        }
        if k > 0 {
            let want = crate::threshold_of(&host, k).map_err(text)?;
            let got = select::threshold_of(client, &layers, magnitude, k).map_err(text)?;
            passed.same(&got, &want, || format!("threshold of {name}, k = {k}"))?;
        }
    }
    Ok(())
}

fn selection_lists(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let shape = [19, 45];
    let n = shape[0] * shape[1];
    let mut random = Random(1);
    let denormal = |i: usize| f32::from_bits((i as u32 * 7919) % 5000);
    let lists: [(&str, Vec<f32>); 8] = [
        ("random", random.floats(n)),
        ("all equal", vec![0.25; n]),
        (
            "two values",
            (0..n).map(|i| [1.0, -2.0][i % 3 / 2]).collect(),
        ),
        ("coarse", random.coarse(n)),
        (
            "denormals",
            (0..n).map(|i| denormal(i) * [1.0, -1.0][i % 2]).collect(),
        ),
        (
            "signed zeros",
            (0..n).map(|i| [0.0, -0.0, 1e-40, -1e-40][i % 4]).collect(),
        ),
        (
            "infinities",
            (0..n)
                .map(|i| [f32::INFINITY, 3.0, f32::NEG_INFINITY, f32::MAX][i % 4])
                .collect(),
        ),
        ("descending", (0..n).map(|i| (n - i) as f32).collect()),
    ];
    let n = n as u64;
    for (name, list) in &lists {
        for magnitude in [false, true] {
            let name = format!("{name}, magnitude {magnitude}");
            let layer = [(list.clone(), shape)];
            let ks = [0, 1, n / 3, n - 1, n];
            compare_selection(client, &mut passed, &layer, magnitude, &ks, &name)?;
        }
    }
    for shape in [[1, 1], [1, 33], [40, 1], [3, 64]] {
        let n = shape[0] * shape[1];
        let layer = [(random.coarse(n), shape)];
        let ks = [0, 1, n as u64 / 2, n as u64];
        compare_selection(
            client,
            &mut passed,
            &layer,
            false,
            &ks,
            &format!("{shape:?}"),
        )?;
    }
    Ok(passed)
}

fn selection_over_layers(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(2);
    for coarse in [false, true] {
        // More than one tile of words in some, none in one.
        let lists = [[16, 300], [0, 7], [3, 5], [130, 65], [1, 2048]].map(|shape| {
            let n = shape[0] * shape[1];
            let values = if coarse {
                random.coarse(n)
            } else {
                random.floats(n)
            };
            (values, shape)
        });
        let n: u64 = lists.iter().map(|(values, _)| values.len() as u64).sum();
        let ks = [0, 1, n / 10, n / 2, n - 1, n];
        compare_selection(client, &mut passed, &lists, coarse, &ks, "layers")?;
    }
    Ok(passed)
}

fn selection_refusals(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let layer = |values: &[f32]| Layer {
        scores: Buffer::of_f32(client, values).expect("a small buffer"),
        shape: [1, values.len()],
    };
    let layers = [layer(&[1.0, 2.0]), layer(&[3.0, f32::NAN, -f32::NAN])];
    for (k, magnitude) in [(0, false), (2, true)] {
        let got = select::select_smallest(client, &layers, magnitude, k, Ties::CompatLe).err();
        let want = KernelError::NonFiniteScore { layer: 1, index: 1 };
        passed.same(&got, &Some(want), || format!("a NaN, k = {k}"))?;
    }
    let got = select::threshold_of(client, &layers[..1], false, 3).err();
    let want = KernelError::TooMany {
        requested: 3,
        available: 2,
    };
    passed.same(&got, &Some(want), || "k over n".into())?;
    passed.same(
        &select::threshold_of(client, &layers[..1], false, 0).is_err(),
        &true,
        || "no threshold of k = 0".into(),
    )?;
    let nothing = select::select_smallest(client, &[], false, 0, Ties::CompatLe).map_err(text)?;
    passed.same(&nothing.len(), &0, || "no layers".into())?;
    let wrong = Layer {
        shape: [2, 2],
        ..layers[0].clone()
    };
    let got = select::select_smallest(client, &[wrong], false, 1, Ties::CompatLe);
    passed.same(&got.is_err(), &true, || {
        "a length that is not the shape's".into()
    })?;
    Ok(passed)
}

fn selection_long(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let shape = [512, 1030];
    let n = shape[0] * shape[1];
    let mut random = Random(3);
    let list = [(random.floats(n), shape)];
    let ks = [n as u64 / 2, n as u64 * 9 / 10];
    compare_selection(client, &mut passed, &list, true, &ks, "a long list")?;
    Ok(passed)
}

fn nm_masks(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(4);
    let patterns = [
        [1, 2],
        [2, 4],
        [1, 4],
        [4, 8],
        [3, 8],
        [8, 16],
        [16, 32],
        [1, 32],
        [2, 3],
    ];
    let shapes: [&[usize]; 5] = [&[5, 96], &[1, 32], &[7, 64, 3, 3], &[2, 96, 1, 5], &[3, 20]];
    for [n, m] in patterns {
        for shape in shapes {
            for magnitude in [false, true] {
                let len = shape.iter().product();
                let values = if magnitude {
                    random.floats(len)
                } else {
                    random.coarse(len)
                };
                let want = crate::nm_mask(&stored(&values, magnitude), shape, n, m);
                let scores = Buffer::of_f32(client, &values).map_err(text)?;
                let got = nm::nm_mask(client, &scores, shape, n, m, magnitude);
                let got = got.and_then(|words| words.read()).map_err(text)?;
                let name = || format!("{n}:{m} of {shape:?}, magnitude {magnitude}");
                passed.same(&got, &want.map_err(text)?, name)?;
            }
        }
    }
    let scores = Buffer::of_f32(client, &[1.0, f32::NAN, 0.0, 0.0]).map_err(text)?;
    for (shape, m) in [([1, 4], 4), ([4, 1], 2)] {
        let got = nm::nm_mask(client, &scores, &shape, 1, m, true).err();
        let want = KernelError::NonFiniteScore { layer: 0, index: 1 };
        passed.same(&got, &Some(want), || "a NaN".into())?;
    }
    let none = Buffer::uninit(client, 0).map_err(text)?;
    let empty = nm::nm_mask(client, &none, &[0, 8], 2, 4, true);
    passed.same(
        &empty.and_then(|words| words.read()).map_err(text)?.len(),
        &0,
        || "empty".into(),
    )?;
    passed.same(
        &nm::nm_mask(client, &none, &[0, 8], 4, 4, true).is_err(),
        &true,
        || "no pattern".into(),
    )?;
    Ok(passed)
}

fn statistics(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(5);
    let sizes = [
        [1, 1],
        [3, 40],
        [5, 256],
        [9, 1000],
        [2, 4608],
        [0, 9],
        [4, 0],
    ];
    for (at, [rows, cols]) in sizes.into_iter().enumerate() {
        for (shift, density) in [(0.0, 0.3), (3.0, 0.05), (1e4, 0.9), (0.0, 0.0)] {
            let mut weights = random.floats(rows * cols);
            weights.iter_mut().for_each(|w| *w += shift);
            let mask = random.mask(rows, cols, density);
            let want = crate::channel_stats(&weights, rows, cols, Some(&mask)).map_err(text)?;
            let w = Buffer::of_f32(client, &weights).map_err(text)?;
            let words = on_device(client, &mask)?;
            let got = stats::channel_stats(client, &w, [rows, cols], Some(&words)).map_err(text)?;
            let name = || format!("statistics {at} of [{rows}, {cols}], shift {shift}");
            passed.same(&got.nnz, &want.nnz, name)?;
            for row in 0..rows {
                let numbers = &weights[row * cols..][..cols];
                // With zeros among them, what is masked spreads as far as the survivors lie from 0.
                let far = numbers
                    .iter()
                    .fold(0f32, |far, w| far.max((w - numbers[0]).abs()));
                let kept = numbers.iter().fold(0f32, |far, w| far.max(w.abs()));
                // The first survivor, not the first number, is what survivors' distances are from: at most twice as far.
                let (far, kept) = (2.0 * f64::from(far), f64::from(kept));
                let unit = 2f64.powi(-21);
                for (got, want, bound) in [
                    (got.mean[row], want.mean[row], far),
                    (got.std[row], want.std[row], far),
                    (got.mean_kept[row], want.mean_kept[row], far),
                    (got.std_kept[row], want.std_kept[row], far),
                    (got.mean_masked[row], want.mean_masked[row], far),
                    (got.std_masked[row], want.std_masked[row], far.max(kept)),
                ] {
                    let ratio = (got - want).abs() / (bound * unit + 1e-30);
                    let both_nothing = got.is_nan() && want.is_nan();
                    passed.of(if both_nothing { 0.0 } else { ratio }, name)?;
                }
            }
            let other = random.floats(rows * cols);
            let b = Buffer::of_f32(client, &other).map_err(text)?;
            let dots = stats::channel_dot(client, &w, &b, [rows, cols]).map_err(text)?;
            let want = crate::channel_dot(&weights, &other, rows, cols).map_err(text)?;
            for (row, (got, want)) in dots.iter().zip(&want).enumerate() {
                let terms = weights.iter().zip(&other).skip(row * cols).take(cols);
                let scale: f64 = terms.map(|(a, b)| f64::from((a * b).abs())).sum();
                passed.of(
                    (got - want).abs() / (scale * 2f64.powi(-23) + 1e-30),
                    || format!("dot product {row} of [{rows}, {cols}], shift {shift}"),
                )?;
            }
        }
    }
    // A pruned NaN stays out; equal weights have no spread.
    let weights = [f32::NAN, 1.0, 3.0, 7.5, 7.5, 7.5];
    let mask = BitMask::from_keep(2, 3, &[false, true, true, true, true, true]).map_err(text)?;
    let w = Buffer::of_f32(client, &weights).map_err(text)?;
    let words = on_device(client, &mask)?;
    let got = stats::channel_stats(client, &w, [2, 3], Some(&words)).map_err(text)?;
    passed.same(&got.mean[0].is_nan(), &true, || "a NaN shows".into())?;
    passed.same(&got.mean_kept, &vec![2.0, 7.5], || "a pruned NaN".into())?;
    passed.same(&got.std_kept, &vec![1.0, 0.0], || "spread".into())?;
    let plain = stats::channel_stats(client, &w, [2, 3], None).map_err(text)?;
    passed.same(
        &(plain.nnz, plain.std_masked[1]),
        &(vec![3, 3], 0.0),
        || "no mask".into(),
    )?;
    Ok(passed)
}

fn learned_thresholds(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(6);
    let modes = [
        SoftMode::Hard(MaskGrad::None),
        SoftMode::Hard(MaskGrad::Threshold),
        SoftMode::Hard(MaskGrad::Both),
        SoftMode::Shrink,
    ];
    for mode in modes {
        for [rows, cols] in [[1, 1], [4, 300], [7, 1029], [0, 3]] {
            for single in [true, false] {
                let mut w = random.floats(rows * cols);
                w.iter_mut().for_each(|w| *w *= 1.7);
                // Ties with the threshold, the window's very edge, what a device may flush.
                let t: Vec<f32> = (0..if single { 1 } else { rows })
                    .map(|row| [0.5, 2f32.powi(-30), 0.0][row % 3])
                    .collect();
                for (at, special) in [0.5, -0.5, 1.0, -1.0, 1e-42, 0.0, 1.5]
                    .into_iter()
                    .enumerate()
                {
                    if let Some(w) = w.get_mut(3 * at) {
                        *w = special;
                    }
                }
                let g = random.floats(rows * cols);
                let [wd, td, gd] = [&w, &t, &g].map(|values| Buffer::of_f32(client, values));
                let (wd, td, gd) = (wd.map_err(text)?, td.map_err(text)?, gd.map_err(text)?);
                let name = || format!("{mode:?} of [{rows}, {cols}], one threshold {single}");

                let want = crate::soft_mask_forward(&w, &t, [rows, cols], mode).map_err(text)?;
                let (out, kept) =
                    soft::soft_mask_forward(client, &wd, &td, [rows, cols], mode).map_err(text)?;
                let kept: Vec<u64> = kept
                    .read_u32()
                    .map_err(text)?
                    .into_iter()
                    .map(u64::from)
                    .collect();
                let kept = if single {
                    vec![kept.iter().sum()]
                } else {
                    kept
                };
                passed.same(&kept, &want.kept, name)?;
                // A difference below the normal range may be flushed.
                let tiny = f32::MIN_POSITIVE;
                let out = out.read_f32().map_err(text)?;
                let near = |a: f32, b: f32| a == b || (a - b).abs() <= tiny;
                let all =
                    out.len() == w.len() && out.iter().zip(&want.weight).all(|(&a, &b)| near(a, b));
                passed.same(&all, &true, name)?;

                let (want_dw, want_dt) =
                    crate::soft_mask_backward(&w, &t, &g, [rows, cols], mode).map_err(text)?;
                let (dw, dt) = soft::soft_mask_backward(client, &wd, &td, &gd, [rows, cols], mode)
                    .map_err(text)?;
                let dw = dw.read_f32().map_err(text)?;
                passed.same(&dw.len(), &w.len(), name)?;
                for (at, (&got, &want)) in dw.iter().zip(&want_dw).enumerate() {
                    let scale = g[at].abs() * (1.0 + w[at].abs());
                    let ratio =
                        f64::from((got - want).abs()) / (f64::from(scale) * 2f64.powi(-23) + 1e-37);
                    passed.of(ratio, name)?;
                }
                let dt: Vec<f64> = dt
                    .read_f32()
                    .map_err(text)?
                    .into_iter()
                    .map(f64::from)
                    .collect();
                let dt = if single { vec![dt.iter().sum()] } else { dt };
                for (at, (&got, &want)) in dt.iter().zip(&want_dt).enumerate() {
                    let terms = w.iter().zip(&g).enumerate();
                    let terms = terms.filter(|(i, _)| single || i / cols == at);
                    let scale: f64 = terms
                        .map(|(_, (w, g))| f64::from(g.abs() * w.abs().max(1.0)))
                        .sum();
                    passed.of((got - want).abs() / (scale * 2f64.powi(-22) + 1e-37), name)?;
                }
            }
        }
    }
    Ok(passed)
}

/// Sums against f64 ones, within the bound of f32 sums over [`super::gram`]'s chunks.
fn compare_gram(
    passed: &mut Passed,
    got: &GramState,
    columns: &[Vec<f32>],
    positions: usize,
    name: &str,
) -> Result<(), String> {
    passed.same(&got.positions(), &(positions as u64), || name.into())?;
    for (group, x) in columns.iter().enumerate() {
        let want = reference::gram(x, [positions, got.cols()]);
        let got = got.matrix(group);
        let bound = reference::Rounding::F32.bound(positions.min(256));
        for (at, (got, (want, scale))) in got
            .iter()
            .zip(want.value.iter().zip(&want.magnitude))
            .enumerate()
        {
            let ratio = (got - want).abs() / (bound * scale + f64::from(f32::MIN_POSITIVE));
            passed.of(ratio, || format!("{name}, group {group}, sum {at}"))?;
        }
    }
    Ok(())
}

fn gram_sums(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(7);
    for [positions, cols] in [[1, 1], [300, 7], [700, 70], [40, 130], [0, 5]] {
        let mut sums = GramSums::new(client, 1, cols).map_err(text)?;
        let mut all = Vec::new();
        for _ in 0..2 {
            let x = random.floats(positions * cols);
            let on = Buffer::of_f32(client, &x).map_err(text)?;
            sums.add_linear(&on, positions).map_err(text)?;
            all.extend(x);
        }
        let got = sums.read().map_err(text)?;
        let name = format!("linear [{positions}, {cols}] twice");
        compare_gram(&mut passed, &got, &[all], 2 * positions, &name)?;
    }
    let plain = ConvShape::new(2, [4, 6], [9, 7], [3, 3]).with_padding([1, 1]);
    let shapes = [
        plain,
        plain.with_groups(2).with_stride([2, 1]),
        ConvShape {
            padding: [[0, 2], [3, 1]],
            ..plain.with_dilation([2, 1]).with_stride([1, 2])
        },
        ConvShape::new(3, [6, 6], [5, 5], [2, 3]).with_groups(6),
        ConvShape::new(0, [4, 4], [5, 5], [1, 1]),
    ];
    for shape in shapes {
        let x = random.floats(shape.input_len());
        let on = Buffer::of_f32(client, &x).map_err(text)?;
        let mut sums = GramSums::new(client, shape.groups, shape.weight_cols()).map_err(text)?;
        sums.add_conv(&on, &shape).map_err(text)?;
        let columns: Vec<Vec<f32>> = (0..shape.groups)
            .map(|group| reference::im2col(&x, group, &shape))
            .collect();
        let positions = shape.batch * shape.out_size().iter().product::<usize>();
        let got = sums.read().map_err(text)?;
        compare_gram(
            &mut passed,
            &got,
            &columns,
            positions,
            &format!("{shape:?}"),
        )?;
    }
    // One by one onto 2^24, where f32 has no odd numbers.
    let [large, one] = [4096.0, 1.0].map(|x| Buffer::of_f32(client, &[x]));
    let (large, one) = (large.map_err(text)?, one.map_err(text)?);
    let mut ones = GramSums::new(client, 1, 1).map_err(text)?;
    ones.add_linear(&large, 1).map_err(text)?;
    for _ in 0..5 {
        ones.add_linear(&one, 1).map_err(text)?;
    }
    let got = ones.read().map_err(text)?.diagonal(0);
    let want = vec![2f64.powi(24) + 5.0];
    passed.same(&got, &want, || "what one f32 loses".into())?;
    let sums = GramSums::new(client, 1, 4)
        .and_then(|mut sums| sums.add_linear(&Buffer::of_f32(client, &[0.0; 7])?, 2));
    passed.same(&sums.is_err(), &true, || {
        "a length that is not the shape's".into()
    })?;
    Ok(passed)
}

const PRODUCTS: [[usize; 3]; 6] = [
    [1, 1, 32],
    [65, 3, 64],
    [5, 130, 96],
    [64, 64, 160],
    [3, 70, 32],
    [0, 4, 32],
];

fn bitmap_product(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(8);
    for [positions, rows, cols] in PRODUCTS
        .into_iter()
        .chain([[7, 65, 67], [9, 2, 1], [4, 3, 0]])
    {
        for density in [0.0, 0.1, 0.5, 1.0] {
            let mask = random.mask(rows, cols, density);
            let mut w = random.floats(rows * cols);
            let tiles = BitmapTiles::from_dense(&w, &mask).map_err(text)?;
            mask.apply(&mut w).map_err(text)?;
            passed.same(&tiles.to_dense(), &w, || "a round trip".into())?;
            // What was pruned is absent, whatever it was.
            let poisoned: Vec<f32> = w
                .iter()
                .zip(mask.keep())
                .map(|(&w, keep)| if keep { w } else { f32::NAN })
                .collect();
            let tiles = BitmapTiles::from_dense(&poisoned, &mask).map_err(text)?;
            let weight = tiles.upload(client).map_err(text)?;
            let x = random.floats(positions * cols);
            let b = random.floats(rows);
            let xd = Buffer::of_f32(client, &x).map_err(text)?;
            let bd = Buffer::of_f32(client, &b).map_err(text)?;
            let shape = LinearShape {
                positions,
                rows,
                cols,
            };
            for bias in [None, Some(&b)] {
                let on = bias.map(|_| &bd);
                let got = bitmap::linear(client, &xd, positions, &weight, on);
                let got = got.and_then(|y| y.read_f32()).map_err(text)?;
                let bias = bias.map(Vec::as_slice);
                let want = reference::linear(&x, &poisoned, Some(&mask), bias, shape);
                passed.of(want.worst(&got, cols), || {
                    format!("{shape:?}, density {density}, bias {}", bias.is_some())
                })?;
            }
        }
    }
    Ok(passed)
}

fn nm_products(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(9);
    for [n, m] in [[2, 4], [1, 4], [4, 8], [8, 16], [16, 32], [1, 2], [3, 5]] {
        for [positions, rows, cols] in PRODUCTS {
            let cols = cols.next_multiple_of(m);
            let mut w = random.floats(rows * cols);
            let mask = crate::nm_mask(&stored(&w, true), &[rows, cols], n, m).map_err(text)?;
            let poison = |(w, keep): (&mut f32, bool)| {
                if !keep {
                    *w = f32::NAN;
                }
            };
            w.iter_mut().zip(mask.keep()).for_each(poison);
            let packed = Nm::from_dense(&w, &mask, [n, m], ColOrder::Oihw).map_err(text)?;
            let weight = NmWeight::upload(client, &packed).map_err(text)?;
            let x = random.floats(positions * cols);
            let b = random.floats(rows);
            let xd = Buffer::of_f32(client, &x).map_err(text)?;
            let bd = Buffer::of_f32(client, &b).map_err(text)?;
            let got = nm_product::linear(client, &xd, positions, &weight, Some(&bd));
            let got = got.and_then(|y| y.read_f32()).map_err(text)?;
            let shape = LinearShape {
                positions,
                rows,
                cols,
            };
            let want = reference::linear(&x, &w, Some(&mask), Some(&b), shape);
            passed.of(want.worst(&got, cols), || format!("{n}:{m}, {shape:?}"))?;
        }
    }
    Ok(passed)
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

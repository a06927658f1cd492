//! Exact selection and N:M masks, held to the CPU's bits.

use cubecl::client::Client;

use super::super::buffer::Buffer;
use super::super::nm;
use super::super::select::{self, Layer, Words};
use super::{Passed, Random, stored, text};
use crate::{BitMask, KernelError, Stored, Ties};

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

pub(super) fn lists(client: &Client) -> Result<Passed, String> {
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

pub(super) fn over_layers(client: &Client) -> Result<Passed, String> {
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

pub(super) fn refusals(client: &Client) -> Result<Passed, String> {
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

pub(super) fn long_list(client: &Client) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let shape = [512, 1030];
    let n = shape[0] * shape[1];
    let mut random = Random(3);
    let list = [(random.floats(n), shape)];
    let ks = [n as u64 / 2, n as u64 * 9 / 10];
    compare_selection(client, &mut passed, &list, true, &ks, "a long list")?;
    Ok(passed)
}

pub(super) fn nm_masks(client: &Client) -> Result<Passed, String> {
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

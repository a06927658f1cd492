//! Products with packed weights, within f32's bound of f64 loops.

use cubecl::client::Client;

use super::super::bitmap::{self, BitmapTiles};
use super::super::buffer::Buffer;
use super::super::nm_product::{self, NmWeight};
use super::{Passed, Random, stored, text};
use crate::LinearShape;
use crate::format::{ColOrder, Nm};
use crate::reference;

/// Positions, output channels, weights of a channel.
const PRODUCTS: [[usize; 3]; 6] = [
    [1, 1, 32],
    [65, 3, 64],
    [5, 130, 96],
    [64, 64, 160],
    [3, 70, 32],
    [0, 4, 32],
];

pub(super) fn bitmap_tiles(client: &Client) -> Result<Passed, String> {
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

pub(super) fn nm_packed(client: &Client) -> Result<Passed, String> {
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

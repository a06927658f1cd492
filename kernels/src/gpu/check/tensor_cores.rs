//! The tensor-core kernels on a device that has them: what text and emulation cannot show.
//!
//! The first product is the identity, whose result is its input: a fragment table read wrongly shows there as a
//! permutation. The others are held to c (|W| |X|), c of `docs/gpu-cuda.md`, with NaN wherever the mask prunes.

use cubecl::client::Client;

use super::super::cuda::launch::{Route, applies};
use super::super::cuda::weight::{Weight, upload_operand};
use super::super::cuda::{Activations, Operand};
use super::{Passed, Random, Test, stored, text};
use crate::BitMask;

/// A test for each route.
pub(super) const TESTS: [(&str, Test); 5] = [
    ("masked tensor-core product", |client| {
        let operands = [Operand::Bf16, Operand::F16, Operand::Tf32];
        products(client, Route::Masked, &operands, BOTH)
    }),
    ("masked warpgroup product", |client| {
        products(client, Route::MaskedWarpgroup, HALVES, TOKENS)
    }),
    ("2:4 tensor-core product", |client| {
        products(client, Route::Sparse24, HALVES, BOTH)
    }),
    ("2:4 warpgroup product", |client| {
        products(client, Route::Sparse24Warpgroup, HALVES, TOKENS)
    }),
    ("bitmap tensor-core product", |client| {
        products(client, Route::Bitmap, HALVES, BOTH)
    }),
];

const HALVES: &[Operand] = &[Operand::Bf16, Operand::F16];
const BOTH: &[Activations] = &[Activations::Tokens, Activations::Planes];
const TOKENS: &[Activations] = &[Activations::Tokens];

/// Channels, weights of a channel, positions: whole tiles, whole chunks, and neither.
const SIZES: [[usize; 3]; 5] = [
    [128, 128, 128],
    [150, 328, 136],
    [150, 324, 131],
    [1, 4, 1],
    [70, 2048, 9],
];

fn products(
    client: &Client,
    route: Route,
    operands: &[Operand],
    orders: &[Activations],
) -> Result<Passed, String> {
    let mut passed = Passed::default();
    let mut random = Random(11);
    for &operand in operands {
        for &activations in orders {
            identity(client, &mut passed, route, operand, activations)?;
            for sizes in SIZES {
                let batch = match (activations, route) {
                    (Activations::Planes, Route::Masked | Route::Sparse24) => 2,
                    _ => 1,
                };
                let case = Case {
                    route,
                    operand,
                    activations,
                    sizes,
                    batch,
                };
                case.compare(client, &mut passed, &mut random)?;
            }
        }
    }
    Ok(passed)
}

/// `I X` is X to the last bit: of the 2:4 routes too, since the identity keeps one of four.
fn identity(
    client: &Client,
    passed: &mut Passed,
    route: Route,
    operand: Operand,
    activations: Activations,
) -> Result<(), String> {
    const SIDE: usize = 192;
    let eye: Vec<f32> = (0..SIDE * SIDE)
        .map(|at| f32::from(u8::from(at / SIDE == at % SIDE)))
        .collect();
    let keep: Vec<bool> = eye.iter().map(|&one| one == 1.0).collect();
    let mask = BitMask::from_keep(SIDE, SIDE, &keep).map_err(text)?;
    let weight = Weight::upload(client, route, operand, &eye, &mask).map_err(text)?;
    let side = SIDE as u32;
    let product = weight.product(side, 1, activations);
    if let Err(why) = applies(route, client.properties(), &product) {
        println!("skipped: {}, {operand:?}: {why}", route.name());
        return Ok(());
    }
    // Integers below 2^8, which every operand holds.
    let x: Vec<f32> = (0..SIDE * SIDE).map(|at| (at * 37 % 251) as f32).collect();
    let on = upload_operand(client, operand, &x);
    let y = weight.multiply(client, &on, side, 1, activations);
    let y = read(client, y.map_err(text)?, x.len())?;
    passed.same(&y, &x, || format!("{operand:?} {activations:?}, identity"))
}

struct Case {
    route: Route,
    operand: Operand,
    activations: Activations,
    sizes: [usize; 3],
    batch: usize,
}

impl Case {
    fn compare(
        &self,
        client: &Client,
        passed: &mut Passed,
        random: &mut Random,
    ) -> Result<(), String> {
        let Self {
            route,
            operand,
            activations,
            sizes: [rows, cols, points],
            batch,
        } = *self;
        let rounded = |values: Vec<f32>| -> Vec<f32> {
            values
                .into_iter()
                .map(|v| operand.half().map_or(v, |half| half.decode(half.encode(v))))
                .collect()
        };
        let w = rounded(random.floats(rows * cols));
        let x = rounded(random.floats(batch * cols * points));
        let mask = match route {
            Route::Sparse24 | Route::Sparse24Warpgroup => {
                crate::nm_mask(&stored(&w, true), &[rows, cols], 2, 4).map_err(text)?
            }
            Route::Bitmap => random.mask(rows, cols, 0.2),
            _ => random.mask(rows, cols, 0.5),
        };
        let keep = mask.keep();
        let poisoned: Vec<f32> = w
            .iter()
            .zip(keep)
            .map(|(&w, keep)| if keep { w } else { f32::NAN })
            .collect();
        let weight = Weight::upload(client, route, operand, &poisoned, &mask).map_err(text)?;
        let product = weight.product(points as u32, batch as u32, activations);
        if let Err(why) = applies(route, client.properties(), &product) {
            println!("skipped: {}, {:?}: {why}", route.name(), self.sizes);
            return Ok(());
        }
        let on = upload_operand(client, operand, &x);
        let y = weight.multiply(client, &on, points as u32, batch as u32, activations);
        let y = read(client, y.map_err(text)?, batch * rows * points)?;
        let unit = if operand == Operand::Tf32 {
            2f64.powi(-10)
        } else {
            0.0
        };
        let bound = cols as f64 * 2f64.powi(-23) + unit;
        for image in 0..batch {
            for row in 0..rows {
                for point in 0..points {
                    let (mut exact, mut size) = (0.0, 0.0);
                    for col in (0..cols).filter(|&col| mask.get(row, col)) {
                        let from = match activations {
                            Activations::Tokens => (image * points + point) * cols + col,
                            Activations::Planes => (image * cols + col) * points + point,
                        };
                        let term = f64::from(w[row * cols + col]) * f64::from(x[from]);
                        exact += term;
                        size += term.abs();
                    }
                    let to = match activations {
                        Activations::Tokens => (image * points + point) * rows + row,
                        Activations::Planes => (image * rows + row) * points + point,
                    };
                    let error = (f64::from(y[to]) - exact).abs();
                    passed.of(error / (bound * size + 1e-30), || {
                        format!(
                            "{operand:?} {activations:?} {:?}, ({row}, {point}) of {image}",
                            self.sizes
                        )
                    })?;
                }
            }
        }
        Ok(())
    }
}

fn read(client: &Client, y: cubecl::server::Handle, len: usize) -> Result<Vec<f32>, String> {
    let y = super::Buffer::new(client.clone(), y, len).map_err(text)?;
    y.read_f32().map_err(text)
}

//! Learned thresholds on a device (K9 of the specification): [`crate::soft_mask_forward`] and its gradients.
//!
//! What survives is decided on bits, so it is what the CPU decides. A threshold's gradient is a compensated sum over its
//! rows; products and the weight's gradient are rounded to f32 where the CPU rounds from f64.

use cubecl::client::Client;
use cubecl::prelude::*;

use super::buffer::{Buffer, UNITS, folded, units};
use super::compensated::{Sum, lost, of_cube, opaque};
use super::words::is_nan;
use crate::error::expect_len;
use crate::{KernelError, MaskGrad, SoftMode};

/// The rule as the kernels see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    Hard,
    HardThreshold,
    HardBoth,
    Shrink,
}

impl From<SoftMode> for Rule {
    fn from(mode: SoftMode) -> Self {
        match mode {
            SoftMode::Hard(MaskGrad::None) => Self::Hard,
            SoftMode::Hard(MaskGrad::Threshold) => Self::HardThreshold,
            SoftMode::Hard(MaskGrad::Both) => Self::HardBoth,
            SoftMode::Shrink => Self::Shrink,
        }
    }
}

/// Masks a weight by thresholds: the masked weight, and how many of each row survive. NaN weights survive.
///
/// # Shapes
/// `w`: f32 `[rows, cols]`; `t`: f32 `[1]` for the layer or `[rows]`. Results: as `w`, and u32 `[rows]`.
pub fn soft_mask_forward(
    client: &Client,
    w: &Buffer,
    t: &Buffer,
    shape: [usize; 2],
    mode: SoftMode,
) -> Result<(Buffer, Buffer), KernelError> {
    check(w, t, shape)?;
    let [rows, cols] = shape;
    let (out, kept) = (
        Buffer::uninit(client, w.len())?,
        Buffer::zeros(client, rows)?,
    );
    if !w.is_empty() {
        let (cubes, rule) = (folded(rows), Rule::from(mode) == Rule::Shrink);
        mask_rows::launch(
            client,
            cubes,
            units(),
            w.arg(),
            t.arg(),
            out.arg(),
            kept.arg(),
            cols as u32,
            rule,
        );
    }
    Ok((out, kept))
}

/// Gradients with respect to weight and thresholds, from `g`, the gradient with respect to the masked weight.
///
/// # Shapes
/// `w`, `g`: f32 `[rows, cols]`; `t`: f32 `[1]` or `[rows]`. Results: as `w`, and each row's share of `t`'s, f32 `[rows]`;
/// of a single threshold the gradient is their sum.
pub fn soft_mask_backward(
    client: &Client,
    w: &Buffer,
    t: &Buffer,
    g: &Buffer,
    shape: [usize; 2],
    mode: SoftMode,
) -> Result<(Buffer, Buffer), KernelError> {
    check(w, t, shape)?;
    expect_len("g", w.len(), g.len())?;
    let [rows, cols] = shape;
    let (dw, dt) = (
        Buffer::uninit(client, w.len())?,
        Buffer::zeros(client, rows)?,
    );
    if !w.is_empty() {
        gradient_rows::launch(
            client,
            folded(rows),
            units(),
            w.arg(),
            t.arg(),
            g.arg(),
            dw.arg(),
            dt.arg(),
            cols as u32,
            0u32,
            mode.into(),
        );
    }
    Ok((dw, dt))
}

/// Lengths; thresholds are the caller's to keep at 0 or above, since looking at them would mean waiting for them.
fn check(w: &Buffer, t: &Buffer, [rows, cols]: [usize; 2]) -> Result<(), KernelError> {
    expect_len("w", rows.saturating_mul(cols), w.len())?;
    if t.len() != 1 {
        expect_len("thresholds", rows, t.len())?;
    }
    Ok(())
}

const MAGNITUDE: u32 = 0x7fff_ffff;
const SIGN: u32 = 0x8000_0000;

/// `|w| > t`, and NaN; on bits, which order as magnitudes do and survive devices that flush denormals.
#[cube]
fn survives(w: u32, t: u32) -> bool {
    is_nan(w) || w & MAGNITUDE > t & MAGNITUDE
}

#[cube(launch, create_dummy_kernel)]
pub(crate) fn mask_rows(
    w: &[u32],
    t: &[u32],
    out: &mut [u32],
    kept: &mut [u32],
    cols: u32,
    #[comptime] shrink: bool,
) {
    let total = Shared::<[Atomic<u32>]>::new_slice(1usize);
    if UNIT_POS == 0 {
        total[0].store(0u32);
    }
    sync_cube();
    let cols = cols as usize;
    let row = CUBE_POS;
    let mut own = 0u32;
    if row < kept.len() {
        let t = t[min(row, t.len() - 1)];
        for step in 0..cols.div_ceil(UNITS) {
            let col = step * UNITS + UNIT_POS as usize;
            if col < cols {
                let w = w[row * cols + col];
                let mut value = 0u32;
                if survives(w, t) {
                    own += 1u32;
                    value = w;
                    if shrink {
                        let signed = f32::reinterpret((t & MAGNITUDE) | (w & SIGN));
                        value = u32::reinterpret(f32::reinterpret(w) - signed);
                    }
                }
                out[row * cols + col] = value;
            }
        }
    }
    total[0].fetch_add(own);
    sync_cube();
    if UNIT_POS == 0 && row < kept.len() {
        kept[row] = total[0].load();
    }
}

#[cube(launch, create_dummy_kernel)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn gradient_rows(
    w: &[u32],
    t: &[u32],
    g: &[f32],
    dw: &mut [f32],
    dt: &mut [f32],
    cols: u32,
    zero: u32,
    #[comptime] rule: Rule,
) {
    let mut high = Shared::<[f32]>::new_slice(UNITS);
    let mut low = Shared::<[f32]>::new_slice(UNITS);
    let cols = cols as usize;
    let row = CUBE_POS;
    let mut sum = Sum::new();
    if row < dt.len() {
        let t = t[min(row, t.len() - 1)];
        for step in 0..cols.div_ceil(UNITS) {
            let col = step * UNITS + UNIT_POS as usize;
            if col < cols {
                let at = row * cols + col;
                let bits = w[at];
                let g = g[at];
                let mut direct = select(survives(bits, t), g, 0.0f32);
                if comptime!(rule == Rule::Shrink) {
                    let signed = u32::reinterpret(direct) ^ (bits & SIGN);
                    sum.add(-f32::reinterpret(signed), zero);
                } else if comptime!(rule != Rule::Hard) {
                    let mut through = 0.0f32;
                    if in_window(bits & MAGNITUDE, t & MAGNITUDE, zero) {
                        through = 0.5f32 * g * f32::reinterpret(bits);
                    }
                    sum.add(-through, zero);
                    if comptime!(rule == Rule::HardBoth) {
                        direct += f32::reinterpret(u32::reinterpret(through) ^ (bits & SIGN));
                    }
                }
                dw[at] = direct;
            }
        }
    }
    let sum = of_cube(&sum, &mut high, &mut low, zero);
    if UNIT_POS == 0 && row < dt.len() {
        dt[row] = sum.total();
    }
}

/// Whether two magnitudes lie less than 1 apart, exactly: a difference that rounds to 1 may be less.
#[cube]
fn in_window(a: u32, b: u32, zero: u32) -> bool {
    let larger = f32::reinterpret(max(a, b));
    let smaller = f32::reinterpret(min(a, b));
    let difference = opaque(larger - smaller, zero);
    difference < 1.0f32
        || (difference == 1.0f32 && lost(larger, -smaller, difference, zero) < 0.0f32)
}

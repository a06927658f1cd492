//! Statistics of each output channel on a device (K10 of the specification): those of [`crate::channel_stats`], in f32.
//!
//! A cube per row and two passes over it: the mean of distances from the row's first number, then squared distances from
//! that mean, both in compensated sums. What remains is the rounding of the distances themselves: means and deviations are
//! right within `2^-21 D`, where `D` is twice the largest distance of a number from the first (no less than any distance
//! between two of them), and for weights with zeros among them also no less than the largest magnitude.

use cubecl::client::Client;
use cubecl::prelude::*;

use super::buffer::{Buffer, UNITS, folded, units};
use super::compensated::{Sum, of_cube};
use super::select::Words;
use super::words::BITS;
use crate::error::expect_len;
use crate::{ChannelStats, KernelError};

/// What a row's passes leave: first number, mean distance from it, sum and sum of squares of distances from that, count.
const RESULTS: usize = 5;

/// Statistics of the weight as it is and as masked; without a mask everything survives.
///
/// # Shapes
/// `weights`: f32 `[rows, cols]`, row = output channel.
pub fn channel_stats(
    client: &Client,
    weights: &Buffer,
    [rows, cols]: [usize; 2],
    mask: Option<&Words>,
) -> Result<ChannelStats, KernelError> {
    expect_len("weights", rows.saturating_mul(cols), weights.len())?;
    if let Some(mask) = mask {
        expect_len("the mask's rows", rows, mask.shape[0])?;
        expect_len("the mask's columns", cols, mask.shape[1])?;
    }
    let all = moments(client, weights, [rows, cols], None)?;
    let kept = match mask {
        None => all.clone(),
        Some(mask) => moments(client, weights, [rows, cols], Some(mask))?,
    };
    let mut stats = ChannelStats::default();
    for (all, kept) in all.iter().zip(&kept) {
        let masked = kept.with_zeros(cols as f64);
        stats.mean.push(all.mean);
        stats.std.push(all.deviation());
        stats.mean_masked.push(masked.mean);
        stats.std_masked.push(masked.deviation());
        stats.mean_kept.push(kept.mean);
        stats.std_kept.push(kept.deviation());
        stats.nnz.push(kept.count as u64);
    }
    Ok(stats)
}

/// The sum over each row of `a b`, right within `2^-23 sum |a b|`.
///
/// # Shapes
/// `a`, `b`: f32 `[rows, cols]`.
pub fn channel_dot(
    client: &Client,
    a: &Buffer,
    b: &Buffer,
    [rows, cols]: [usize; 2],
) -> Result<Vec<f64>, KernelError> {
    expect_len("a", rows.saturating_mul(cols), a.len())?;
    expect_len("b", rows.saturating_mul(cols), b.len())?;
    if rows * cols == 0 {
        return Ok(vec![0.0; rows]);
    }
    let out = Buffer::uninit(client, rows)?;
    dot_rows::launch(
        client,
        folded(rows),
        units(),
        a.arg(),
        b.arg(),
        out.arg(),
        cols as u32,
        0u32,
    );
    Ok(out.read_f32()?.into_iter().map(f64::from).collect())
}

/// Number, mean and sum of squared distances from the mean.
#[derive(Clone, Copy)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Of the same numbers and as many zeros as bring their count to `total`.
    fn with_zeros(self, total: f64) -> Self {
        if self.count == 0.0 && total > 0.0 {
            return Self {
                count: total,
                mean: 0.0,
                squares: 0.0,
            };
        }
        let share = self.count / total;
        Self {
            count: total,
            mean: self.mean * share,
            // Between the two groups, survivors and zeros; no difference of large numbers.
            squares: self.squares + self.mean * self.mean * self.count * (1.0 - share),
        }
    }

    fn deviation(self) -> f64 {
        (self.squares / self.count).sqrt()
    }
}

fn moments(
    client: &Client,
    weights: &Buffer,
    [rows, cols]: [usize; 2],
    mask: Option<&Words>,
) -> Result<Vec<Moments>, KernelError> {
    if rows * cols == 0 {
        let nothing = Moments {
            count: 0.0,
            mean: f64::NAN,
            squares: 0.0,
        };
        return Ok(vec![nothing; rows]);
    }
    // Without a mask any memory will do; it is not read.
    let words = mask.map(|mask| mask.words.clone());
    let words = words.map_or_else(|| Buffer::uninit(client, 1), Ok)?;
    let out = Buffer::uninit(client, rows * RESULTS)?;
    rows_of::launch(
        client,
        folded(rows),
        units(),
        weights.arg(),
        words.arg(),
        out.arg(),
        rows as u32,
        cols as u32,
        0u32,
        mask.is_some(),
    );
    let results = out.read_u32()?;
    let (results, _) = results.as_chunks::<RESULTS>();
    let moments = results
        .iter()
        .map(|&[pivot, distance, sum, squares, count]| {
            let number = |bits| f64::from(f32::from_bits(bits));
            let [pivot, distance, sum, squares] = [pivot, distance, sum, squares].map(number);
            let count = f64::from(count);
            // Rounding may leave a tiny negative; NaN must survive, so no `max`.
            let squares = squares - sum * (sum / count);
            Moments {
                count,
                mean: pivot + (distance + sum / count),
                squares: if squares < 0.0 { 0.0 } else { squares },
            }
        });
    Ok(moments.collect())
}

/// [`RESULTS`] of each row, of all its weights or of what the mask keeps; the rest is read but enters no sum.
#[cube(launch, create_dummy_kernel)]
pub(crate) fn rows_of(
    weights: &[f32],
    words: &[u32],
    out: &mut [u32],
    rows: u32,
    cols: u32,
    zero: u32,
    #[comptime] masked: bool,
) {
    let mut high = Shared::<[f32]>::new_slice(UNITS);
    let mut low = Shared::<[f32]>::new_slice(UNITS);
    let kept = Shared::<[Atomic<u32>]>::new_slice(1usize);
    let unit = UNIT_POS as usize;
    let cols = cols as usize;
    let stride = cols.div_ceil(BITS);
    // Cubes beyond the last row repeat it and write nothing: barriers want every unit.
    let row = min(CUBE_POS, rows as usize - 1);
    let start = row * cols;
    if unit == 0 {
        kept[0].store(0u32);
    }
    let mut first = 0;
    if masked {
        let mut word = 0;
        while word + 1 < stride && words[row * stride + word] == 0u32 {
            word += 1;
        }
        let bits = words[row * stride + word];
        if bits != 0u32 {
            first = word * BITS + u32::cast_from(bits.trailing_zeros()) as usize;
        }
    }
    let pivot = weights[start + first];
    sync_cube();

    let mut own = 0u32;
    let mut sum = Sum::new();
    for step in 0..cols.div_ceil(UNITS) {
        let col = step * UNITS + unit;
        if stays(words, row * stride, col, cols, masked) {
            own += 1u32;
            sum.add(weights[start + col] - pivot, zero);
        }
    }
    kept[0].fetch_add(own);
    let sum = of_cube(&sum, &mut high, &mut low, zero);
    let count = kept[0].load();
    // Of nothing the mean is 0 / 0, as it should be.
    let mean = sum.total() / f32::cast_from(count);

    let mut sum = Sum::new();
    let mut squares = Sum::new();
    for step in 0..cols.div_ceil(UNITS) {
        let col = step * UNITS + unit;
        if stays(words, row * stride, col, cols, masked) {
            let distance = (weights[start + col] - pivot) - mean;
            sum.add(distance, zero);
            squares.add(distance * distance, zero);
        }
    }
    let sum = of_cube(&sum, &mut high, &mut low, zero);
    let squares = of_cube(&squares, &mut high, &mut low, zero);
    if unit == 0 && CUBE_POS < rows as usize {
        let at = row * RESULTS;
        out[at] = u32::reinterpret(pivot);
        out[at + 1] = u32::reinterpret(mean);
        out[at + 2] = u32::reinterpret(sum.total());
        out[at + 3] = u32::reinterpret(squares.total());
        out[at + 4] = count;
    }
}

#[cube]
fn stays(words: &[u32], row: usize, col: usize, cols: usize, #[comptime] masked: bool) -> bool {
    let mut stays = col < cols;
    // Two `if`s: the first is decided when the kernel is compiled.
    #[allow(clippy::collapsible_if)]
    if masked {
        if stays {
            stays = (words[row + col / BITS] >> u32::cast_from(col % BITS)) & 1u32 == 1u32;
        }
    }
    stays
}

#[cube(launch, create_dummy_kernel)]
pub(crate) fn dot_rows(a: &[f32], b: &[f32], out: &mut [f32], cols: u32, zero: u32) {
    let mut high = Shared::<[f32]>::new_slice(UNITS);
    let mut low = Shared::<[f32]>::new_slice(UNITS);
    let cols = cols as usize;
    // Cubes beyond the last row repeat it and write nothing: barriers want every unit.
    let row = min(CUBE_POS, out.len() - 1);
    let mut sum = Sum::new();
    for step in 0..cols.div_ceil(UNITS) {
        let col = step * UNITS + UNIT_POS as usize;
        if col < cols {
            sum.add(a[row * cols + col] * b[row * cols + col], zero);
        }
    }
    let sum = of_cube(&sum, &mut high, &mut low, zero);
    if UNIT_POS == 0 && CUBE_POS < out.len() {
        out[row] = sum.total();
    }
}

//! N:M masks on a device, the bits of [`crate::nm_mask`].
//!
//! A unit decides about one score: it stays if fewer than N of its group come before it, larger ones and equal ones of
//! lower channels. M reads for every score, from the first-level cache but for one.

use cubecl::client::Client;
use cubecl::prelude::*;

use super::buffer::{Buffer, UNITS, folded, units};
use super::select::{Words, ballots, nan_index};
use super::words::{BITS, STEPS, TILE, is_nan, key, used, word_count};
use crate::error::expect_len;
use crate::{KernelError, nm_applies};

/// Keeps the `n` highest scores (magnitudes, where so said) of every `m` consecutive input channels at each kernel
/// position; ties keep the lowest channel. A layer whose input channels `m` does not divide keeps everything.
///
/// Waits once, for the number of NaNs.
///
/// # Shapes
/// `scores`: flat OIHW or `[out, in]`, as `shape` says.
pub fn nm_mask(
    client: &Client,
    scores: &Buffer,
    shape: &[usize],
    n: usize,
    m: usize,
    magnitude: bool,
) -> Result<Words, KernelError> {
    if n == 0 || n >= m || m > 32 {
        return Err(KernelError::Pattern { n, m });
    }
    let &[outputs, inputs, ref kernel @ ..] = shape else {
        return Err(KernelError::Shape {
            shape: shape.to_vec(),
        });
    };
    let positions: usize = kernel.iter().product();
    let shape2 = [outputs, inputs * positions];
    expect_len("scores", outputs * inputs * positions, scores.len())?;
    let words = Buffer::uninit(client, word_count(shape2))?;
    let nans = Buffer::of_u32(client, &[0])?;
    if !words.is_empty() {
        rank::launch(
            client,
            folded(words.len().div_ceil(TILE)),
            units(),
            scores.arg(),
            words.arg(),
            nans.arg(),
            shape2[1] as u32,
            positions as u32,
            n as u32,
            // A group of one channel, of which one stays, is a layer that stays dense.
            if nm_applies(shape, m) { m } else { 1 },
            magnitude,
            ballots(client),
        );
        if nans.read_u32()?[0] > 0 {
            let index = nan_index(scores)?.unwrap_or_default();
            return Err(KernelError::NonFiniteScore { layer: 0, index });
        }
    }
    Ok(Words {
        words,
        shape: shape2,
    })
}

#[cube(launch, create_dummy_kernel)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn rank(
    scores: &[u32],
    words: &mut [u32],
    nans: &[Atomic<u32>],
    cols: u32,
    positions: u32,
    n: u32,
    #[comptime] m: usize,
    #[comptime] magnitude: bool,
    #[comptime] ballots: bool,
) {
    let cols = cols as usize;
    let positions = positions as usize;
    let stride = cols.div_ceil(BITS);
    let unit = UNIT_POS as usize;
    let stays = Shared::<[Atomic<u32>]>::new_slice(TILE);
    if unit < TILE {
        stays[unit].store(0u32);
    }
    sync_cube();
    for step in 0..STEPS {
        let at = step * UNITS + unit; // in the tile: word, then bit
        let word = CUBE_POS * TILE + at / BITS;
        let bit = at % BITS;
        let col = word % stride * BITS + bit;
        let mut keep = false;
        if word < words.len() && col < cols {
            let own_bits = scores[word / stride * cols + col];
            if is_nan(own_bits) {
                nans[0].fetch_add(1u32);
            }
            let own = key(own_bits, magnitude);
            let slot = col / positions % m;
            // The group's first channel at this position.
            let first = word / stride * cols + col - slot * positions;
            let mut before = 0u32;
            for other in 0..m {
                let key = key(scores[first + other * positions], magnitude);
                if key > own || (key == own && other < slot) {
                    before += 1u32;
                }
            }
            keep = before < n;
        }
        if ballots {
            let bits = plane_ballot(keep).extract(0usize);
            if bit == 0 {
                stays[at / BITS].store(bits);
            }
        } else if keep {
            // Every bit is added once, which is as good as an or.
            stays[at / BITS].fetch_add(1u32 << u32::cast_from(bit));
        }
    }
    sync_cube();
    let word = CUBE_POS * TILE + unit;
    if unit < TILE && word < words.len() {
        words[word] = stays[unit].load() & used(word, stride, cols);
    }
}

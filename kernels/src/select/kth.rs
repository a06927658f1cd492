//! The k-th smallest score: a sample brackets it, one pass counts around the bracket and collects what lies inside.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::keys::{below, key, radix, value};
use super::scan::Float;
use super::{CHUNK, Layer, PIECE, Scores, Stored, available};
use crate::KernelError;

/// Up to here the sample is everything.
const SMALL: usize = 1 << 12;
/// Half the bracket's width in standard deviations of the sample's rank: one draw in 2,000 falls outside.
const DEVIATIONS: f64 = 3.5;

/// Part of a layer, and how its scores lie around the k-th smallest of all.
pub(super) struct Piece {
    pub(super) layer: usize,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) below: u64,
    pub(super) equal: u64,
}

/// The k-th smallest score of all layers, and what every piece holds below and at it.
pub(super) struct Kth {
    pub(super) value: f64,
    pub(super) pieces: Vec<Piece>,
}

impl Kth {
    pub(super) fn find<S: Scores>(layers: &[Layer<S>], k: u64) -> Result<Self, KernelError> {
        let ranges = ranges(layers);
        let [lo, hi] = bracket(layers, k);
        let (mut at, mut found) = (lo, None);
        if lo < hi {
            let tally = Tally::new(layers, &ranges, Around::Inside(lo, hi))?;
            match tally.place(k) {
                Place::Inside(value) => found = Some((value, tally)),
                Place::NotAbove => {}
                Place::NotBelow => at = hi,
            }
        }
        let (value, tally) = match found {
            Some(found) => found,
            // Many equal scores are ends of the bracket sooner than inside it.
            None => {
                let tally = Tally::new(layers, &ranges, Around::At(at))?;
                match tally.place(k) {
                    Place::Inside(value) => (value, tally),
                    _ => {
                        let value = radix(layers, &ranges, k);
                        (value, Tally::new(layers, &ranges, Around::At(value))?)
                    }
                }
            }
        };
        let pieces = ranges.iter().zip(&tally.counts);
        let pieces = pieces.map(|(&(layer, start, end), counts)| {
            let (below, equal) = match tally.around {
                Around::At(_) => (counts.low, counts.high - counts.low),
                Around::Inside(..) => counts.around(value),
            };
            Piece {
                layer,
                start,
                end,
                below,
                equal,
            }
        });
        Ok(Self {
            value: value + 0.0, // -0 + 0 = +0
            pieces: pieces.collect(),
        })
    }

    pub(super) fn below(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.below).sum()
    }

    pub(super) fn equal(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.equal).sum()
    }
}

/// Cuts the layers into parallel pieces: (layer, start, end).
pub(super) fn ranges<S: Scores>(layers: &[Layer<S>]) -> Vec<(usize, usize, usize)> {
    let cut = |(layer, scores): (usize, &Layer<S>)| {
        let len = scores.len();
        (0..len)
            .step_by(PIECE)
            .map(move |start| (layer, start, len.min(start + PIECE)))
    };
    layers.iter().enumerate().flat_map(cut).collect()
}

/// Two scores between which the k-th smallest probably lies; both are it where the sample is everything.
///
/// One score is drawn from each of as many equal stretches of all scores as the sample is large, at a place that a fixed
/// sequence of pseudo-random numbers names, so that no period in the data meets a period in the sample.
pub(super) fn bracket<S: Scores>(layers: &[Layer<S>], k: u64) -> [f64; 2] {
    let len = available(layers) as usize;
    // The passes cost n, the sample s, and what falls inside the bracket n / sqrt(s): least at s ~ n^(2/3); a half is
    // the measured factor, a draw being a cache miss.
    let draws = if len <= SMALL {
        len
    } else {
        SMALL.max((len as f64).powf(2.0 / 3.0) as usize / 2)
    };
    let mut firsts = Vec::with_capacity(layers.len());
    let mut first = 0;
    for layer in layers {
        firsts.push(first);
        first += layer.len();
    }
    let draw = |draw: usize| {
        let stretch = |draw: usize| draw * len / draws; // below 2^64 for up to 2^38 scores
        let (start, end) = (stretch(draw), stretch(draw + 1));
        let index = start + ((random(draw as u64) as usize * (end - start)) >> 32);
        // The last layer to begin here or before: an empty one begins where the next does.
        let layer = firsts.partition_point(|&first| first <= index) - 1;
        let score = layers[layer].at(index - firsts[layer]);
        (!score.is_nan()).then(|| key(score))
    };
    let draws_each = (0..draws).into_par_iter().with_min_len(SMALL / 4);
    let mut sample: Vec<u64> = draws_each.filter_map(draw).collect();
    let drawn = sample.len() as f64;
    let rate = (k as f64 - 0.5) / len as f64;
    let spread = if draws == len {
        0.0
    } else {
        DEVIATIONS * (drawn * rate * (1.0 - rate)).sqrt() + 2.0
    };
    let rank = drawn * rate;
    let (low, high) = ((rank - spread).floor(), (rank + spread).floor());
    let mut upper = sample.as_mut_slice();
    let mut lo = f64::NEG_INFINITY;
    if low >= 0.0 && (low as usize) < upper.len() {
        let (_, found, _) = upper.select_nth_unstable(low as usize);
        lo = value(*found);
        upper = &mut upper[low as usize..];
    }
    let high = high - low.max(0.0); // in `upper`
    let hi = if high >= 0.0 && (high as usize) < upper.len() {
        value(*upper.select_nth_unstable(high as usize).1)
    } else {
        f64::INFINITY
    };
    [lo, hi]
}

/// A 32-bit number that looks random, the same for the same draw (the finalizer of SplitMix64).
fn random(draw: u64) -> u32 {
    let mut x = (draw + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 32) as u32
}

/// Where a pass looks.
#[derive(Clone, Copy)]
enum Around {
    /// Between two scores, excluding both.
    Inside(f64, f64),
    /// At one score.
    At(f64),
}

impl Around {
    /// The borders of the scores below and not above the place.
    pub(super) fn borders<T>(self, border: impl Fn(f64, bool) -> T) -> [T; 2] {
        match self {
            Self::Inside(lo, hi) => [border(lo, true), border(hi, false)],
            Self::At(score) => [border(score, false), border(score, true)],
        }
    }

    pub(super) fn collects(self) -> bool {
        matches!(self, Self::Inside(..))
    }
}

/// What one pass finds, piece by piece.
struct Tally {
    around: Around,
    counts: Vec<Counts>,
    /// Whether so many scores lie inside that they were not all collected.
    crowded: bool,
}

#[derive(Default)]
struct Counts {
    /// Scores below the place looked at.
    low: u64,
    /// Scores below or in it.
    high: u64,
    nan: bool,
    /// Scores in it, if they are collected.
    inside: Vec<f64>,
}

impl Counts {
    /// How many scores lie below and at `value`, one of those inside.
    pub(super) fn around(&self, value: f64) -> (u64, u64) {
        let below = self.inside.iter().filter(|&&score| score < value).count() as u64;
        let equal = self.inside.iter().filter(|&&score| score == value).count() as u64;
        (self.low + below, equal)
    }
}

/// Where the k-th smallest score lies, as a pass sees it.
enum Place {
    /// Not above the place looked at, nor in it.
    NotAbove,
    /// In it, and this is it.
    Inside(f64),
    /// Not below it, nor, unless it was crowded, in it.
    NotBelow,
}

impl Tally {
    pub(super) fn new<S: Scores>(
        layers: &[Layer<S>],
        ranges: &[(usize, usize, usize)],
        around: Around,
    ) -> Result<Self, KernelError> {
        let borders: Vec<Option<[f32; 2]>> = layers
            .iter()
            .map(|layer| {
                let stored = layer.stored?;
                Some(around.borders(|score, through| stored.border(score, through)))
            })
            .collect();
        // At most an eighth of the scores is collected: more means that the sample misled.
        let room = (available(layers) / 8) as usize + SMALL;
        let collected = AtomicUsize::new(0);
        let count = |&(layer, start, end): &(usize, usize, usize)| {
            let mut counts = match (layers[layer].stored, borders[layer]) {
                (Some(stored), Some(borders)) => {
                    count_stored(stored, start..end, borders, around.collects())
                }
                _ => count_computed(layers[layer].scores, start..end, around),
            };
            let before = collected.fetch_add(counts.inside.len(), Ordering::Relaxed);
            if before + counts.inside.len() > room {
                counts.inside = Vec::new();
            }
            counts
        };
        let counts: Vec<Counts> = ranges.par_iter().map(count).collect();
        for (&(layer, start, end), counts) in ranges.iter().zip(&counts) {
            if counts.nan {
                let index = (start..end).find(|&index| layers[layer].at(index).is_nan());
                let index = index.expect("the pass met a NaN here");
                return Err(KernelError::NonFiniteScore { layer, index });
            }
        }
        Ok(Self {
            around,
            counts,
            crowded: collected.into_inner() > room,
        })
    }

    pub(super) fn place(&self, k: u64) -> Place {
        let low = self.counts.iter().map(|counts| counts.low).sum::<u64>();
        let high = self.counts.iter().map(|counts| counts.high).sum::<u64>();
        if k <= low {
            return Place::NotAbove;
        }
        if k > high || self.crowded {
            return Place::NotBelow;
        }
        if let Around::At(score) = self.around {
            return Place::Inside(score);
        }
        let mut inside: Vec<u64> = Vec::with_capacity((high - low) as usize);
        for counts in &self.counts {
            inside.extend(counts.inside.iter().map(|&score| key(score)));
        }
        let rank = (k - low - 1) as usize;
        Place::Inside(value(*inside.select_nth_unstable(rank).1))
    }
}

fn count_stored(stored: Stored, range: Range<usize>, borders: [f32; 2], collect: bool) -> Counts {
    let mut inside = Vec::new();
    let counts = f32::scan(
        &stored.values[range],
        stored.magnitude,
        borders,
        collect.then_some(&mut inside),
    );
    Counts {
        low: counts.low,
        high: counts.high,
        nan: counts.nan,
        inside: inside.iter().map(|&value| stored.score(value)).collect(),
    }
}

fn count_computed<S: Scores>(scores: &S, range: Range<usize>, around: Around) -> Counts {
    let borders = around.borders(|score, through| if through { score } else { below(score) });
    let mut counts = Counts::default();
    let mut chunk = Vec::with_capacity(CHUNK);
    for start in range.clone().step_by(CHUNK) {
        chunk.clear();
        chunk.extend((start..range.end.min(start + CHUNK)).map(|index| scores.at(index)));
        let inside = around.collects().then_some(&mut counts.inside);
        let more = f64::scan(&chunk, false, borders, inside);
        counts.low += more.low;
        counts.high += more.high;
        counts.nan |= more.nan;
    }
    counts
}

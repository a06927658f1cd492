//! Exact selection of the k smallest scores, in one layer or over many, without a sort and without a copy of the scores.
//!
//! A sample brackets the k-th smallest score; one pass counts what lies below the bracket and collects the few scores
//! inside it, among which the k-th is found; a second pass writes the mask. Equal scores need no bookkeeping there: of
//! scores equal to the k-th those before one position stay and those from it on go (section 0.2 of the specification:
//! among equal scores the lowest flat index is kept; across layers the earlier). Where the sample misled, digits of an
//! order-preserving integer key are counted from the top instead (radix selection), which no data can mislead.
//!
//! Scores that are a function of stored f32 values ([`Stored`]) never leave them: every border between scores becomes a
//! border between values, layer by layer, so that a pass is comparisons of f32 ([`scan`]) whatever the layer's divisor.
//!
//! Counts are integers and the sample depends on the lengths alone, so the result is the same for any number of threads.

mod scan;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::{BitMask, KernelError};
use scan::Float;

/// A layer's scores; the lowest go first.
///
/// Scores may be computed on the fly, so that a normed copy of a network never exists.
pub trait Scores: Sync {
    /// How many.
    fn len(&self) -> usize;

    /// The score at a flat row-major index below [`Scores::len`]. f32 scores widen exactly.
    fn at(&self, index: usize) -> f64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The f32 values that the scores come from, if [`Scores::at`] gives exactly [`Stored::score`] of them all.
    ///
    /// Selection is several times faster with it, and selects the same.
    fn stored(&self) -> Option<Stored<'_>> {
        None
    }
}

/// f32 values in memory, and the scores that they stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stored<'a> {
    /// One value per score, in the same order.
    pub values: &'a [f32],
    /// Whether a score is the magnitude of its value rather than the value.
    pub magnitude: bool,
    /// What it is divided by, in f64; positive and finite.
    pub divisor: f64,
}

impl Stored<'_> {
    /// The score of one value.
    pub fn score(&self, value: f32) -> f64 {
        f64::from(if self.magnitude { value.abs() } else { value }) / self.divisor
    }

    /// The largest value (magnitude) whose score is below `score`, or at it where `through`; NaN if there is none.
    ///
    /// [`Stored::score`] never falls as values rise, so the border is found by bisection, whatever a division rounds to.
    fn border(&self, score: f64, through: bool) -> f32 {
        let holds = |key: u32| {
            let found = self.score(value32(key));
            found < score || through && found == score
        };
        let least = if self.magnitude {
            0.0
        } else {
            f32::NEG_INFINITY
        };
        let (mut low, mut high) = (key32(least), key32(f32::INFINITY));
        if !holds(low) {
            return f32::NAN;
        }
        // `low` holds; nothing above `high` is a number.
        while low < high {
            let middle = high - (high - low) / 2;
            if holds(middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        value32(low)
    }
}

impl Scores for [f32] {
    fn len(&self) -> usize {
        <[f32]>::len(self)
    }

    fn at(&self, index: usize) -> f64 {
        f64::from(self[index])
    }

    fn stored(&self) -> Option<Stored<'_>> {
        Some(Stored {
            values: self,
            magnitude: false,
            divisor: 1.0,
        })
    }
}

impl Scores for Stored<'_> {
    fn len(&self) -> usize {
        self.values.len()
    }

    fn at(&self, index: usize) -> f64 {
        self.score(self.values[index])
    }

    fn stored(&self) -> Option<Stored<'_>> {
        Some(*self)
    }
}

impl Scores for [f64] {
    fn len(&self) -> usize {
        <[f64]>::len(self)
    }

    fn at(&self, index: usize) -> f64 {
        self[index]
    }
}

impl<S: Scores + ?Sized> Scores for &S {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn at(&self, index: usize) -> f64 {
        (**self).at(index)
    }

    fn stored(&self) -> Option<Stored<'_>> {
        (**self).stored()
    }
}

impl<T> Scores for Vec<T>
where
    [T]: Scores,
    T: Sync,
{
    fn len(&self) -> usize {
        Scores::len(self.as_slice())
    }

    fn at(&self, index: usize) -> f64 {
        self.as_slice().at(index)
    }

    fn stored(&self) -> Option<Stored<'_>> {
        self.as_slice().stored()
    }
}

/// What happens to scores equal to the k-th smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ties {
    /// Exactly k go; of equal scores the lowest flat index (and the earlier layer) is kept.
    KeepLowestIndex,
    /// All that are less than or equal to the k-th smallest go, so ties overshoot: the original release's rule.
    CompatLe,
}

/// The k-th smallest score and its surroundings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KthValue {
    /// The value.
    pub value: f64,
    /// Scores strictly below it.
    pub below: u64,
    /// Scores equal to it, at least 1.
    pub equal: u64,
}

/// Masks the `k` lowest of one layer's scores; the mask is `[rows, cols]`.
pub fn select_smallest<S: Scores + ?Sized>(
    scores: &S,
    [rows, cols]: [usize; 2],
    k: u64,
    ties: Ties,
) -> Result<BitMask, KernelError> {
    let mut masks = select_smallest_global(&[scores], &[[rows, cols]], k, ties)?;
    Ok(masks.remove(0))
}

/// Masks the `k` lowest scores of all layers together; one mask per layer, shaped as `shapes` says.
pub fn select_smallest_global<S: Scores>(
    layers: &[S],
    shapes: &[[usize; 2]],
    k: u64,
    ties: Ties,
) -> Result<Vec<BitMask>, KernelError> {
    if layers.len() != shapes.len() {
        return Err(KernelError::Length {
            what: "shapes",
            expected: layers.len(),
            found: shapes.len(),
        });
    }
    for (layer, [rows, cols]) in layers.iter().zip(shapes) {
        if layer.len() != rows * cols {
            return Err(KernelError::Length {
                what: "scores",
                expected: rows * cols,
                found: layer.len(),
            });
        }
    }
    let layers: Vec<Layer<S>> = layers.iter().map(Layer::new).collect();
    let Some(cut) = Cut::new(&layers, k, ties)? else {
        return Ok(shapes.iter().map(|&[r, c]| BitMask::full(r, c)).collect());
    };
    (0..layers.len())
        .into_par_iter()
        .map(|layer| cut.mask(&layers, layer, shapes[layer]))
        .collect()
}

/// How many of the `k` lowest scores of all layers together fall into each layer.
pub fn global_counts<S: Scores>(
    layers: &[S],
    k: u64,
    ties: Ties,
) -> Result<Vec<usize>, KernelError> {
    let layers: Vec<Layer<S>> = layers.iter().map(Layer::new).collect();
    let mut counts = vec![0; layers.len()];
    if let Some(cut) = Cut::new(&layers, k, ties)? {
        let mut keep = cut.keep_equal;
        for piece in &cut.kth.pieces {
            let kept = piece.equal.min(keep);
            keep -= kept;
            counts[piece.layer] += (piece.below + piece.equal - kept) as usize;
        }
    }
    Ok(counts)
}

/// The `k`-th smallest score of all layers together, 1 <= k <= n.
pub fn threshold_of<S: Scores>(layers: &[S], k: u64) -> Result<KthValue, KernelError> {
    let layers: Vec<Layer<S>> = layers.iter().map(Layer::new).collect();
    let available = available(&layers);
    if k == 0 || k > available {
        return Err(KernelError::TooMany {
            requested: k,
            available,
        });
    }
    let kth = Kth::find(&layers, k)?;
    Ok(KthValue {
        value: kth.value,
        below: kth.below(),
        equal: kth.equal(),
    })
}

/// Weights per mask word.
const BITS: usize = u32::BITS as usize;
/// Scores per parallel piece; a multiple of 32, so that a piece of a mask is whole words.
const PIECE: usize = 1 << 16;
/// Scores computed at a time; they stay in the first-level cache.
const CHUNK: usize = 1 << 10;
/// Up to here the sample is everything.
const SMALL: usize = 1 << 12;
/// Half the bracket's width in standard deviations of the sample's rank: one draw in 2,000 falls outside.
const DEVIATIONS: f64 = 3.5;

/// One layer, its stored values looked up once.
struct Layer<'a, S> {
    scores: &'a S,
    stored: Option<Stored<'a>>,
}

impl<'a, S: Scores> Layer<'a, S> {
    fn new(scores: &'a S) -> Self {
        // A divisor or a length outside the contract costs speed, not correctness.
        let stored = scores.stored().filter(|stored| {
            stored.values.len() == scores.len()
                && stored.divisor > 0.0
                && stored.divisor.is_finite()
        });
        Self { scores, stored }
    }

    fn len(&self) -> usize {
        self.scores.len()
    }

    fn at(&self, index: usize) -> f64 {
        self.scores.at(index)
    }
}

fn available<S: Scores>(layers: &[Layer<S>]) -> u64 {
    layers.iter().map(|layer| layer.len() as u64).sum()
}

/// The border between pruned and kept.
struct Cut {
    kth: Kth,
    /// Of the scores equal to the k-th, the first so many in (layer, index) order stay.
    keep_equal: u64,
}

impl Cut {
    /// None where nothing goes.
    fn new<S: Scores>(
        layers: &[Layer<S>],
        k: u64,
        ties: Ties,
    ) -> Result<Option<Self>, KernelError> {
        let available = available(layers);
        if k > available {
            return Err(KernelError::TooMany {
                requested: k,
                available,
            });
        }
        if available == 0 {
            return Ok(None);
        }
        // k = 0 looks for the smallest score too, so that a NaN is an error at every k.
        let kth = Kth::find(layers, k.max(1))?;
        let keep_equal = match ties {
            Ties::KeepLowestIndex => kth.below() + kth.equal() - k.max(1),
            Ties::CompatLe => 0,
        };
        Ok((k > 0).then_some(Self { kth, keep_equal }))
    }

    /// The index in this layer before which scores equal to the k-th stay, and from which on they go.
    fn index<S: Scores>(&self, layers: &[Layer<S>], layer: usize) -> usize {
        let mut keep = self.keep_equal;
        for piece in &self.kth.pieces {
            if keep == 0 {
                break;
            }
            if piece.layer == layer && piece.equal >= keep {
                let last = (piece.start..piece.end)
                    .filter(|&index| layers[layer].at(index) == self.kth.value)
                    .nth(keep as usize - 1);
                return last.expect("the piece was counted") + 1;
            }
            if piece.layer > layer {
                return layers[layer].len();
            }
            keep -= keep.min(piece.equal);
        }
        if keep == 0 { 0 } else { layers[layer].len() }
    }

    fn mask<S: Scores>(
        &self,
        layers: &[Layer<S>],
        layer: usize,
        [rows, cols]: [usize; 2],
    ) -> Result<BitMask, KernelError> {
        let index = self.index(layers, layer);
        let layer = &layers[layer];
        let writer = Writer::new(layer, self.kth.value);
        let stride = cols.div_ceil(BITS);
        let mut words = vec![0u32; rows * stride];
        words
            .par_chunks_mut(PIECE / BITS)
            .enumerate()
            .for_each(|(chunk, mut words)| {
                let mut word = chunk * (PIECE / BITS); // in the mask
                while !words.is_empty() {
                    let (row, first) = (word / stride, word % stride);
                    let (run, rest) = words.split_at_mut(words.len().min(stride - first));
                    let start = row * cols + first * BITS;
                    let end = (row * cols + cols).min(start + run.len() * BITS);
                    writer.write(start..end, index, run);
                    word += run.len();
                    words = rest;
                }
            });
        BitMask::from_words(rows, cols, words)
    }
}

/// Writes runs of mask words: scores below the k-th go, equal ones from an index on.
enum Writer<'a, S> {
    Stored {
        stored: Stored<'a>,
        below: f32,
        through: f32,
    },
    Computed {
        scores: &'a S,
        borders: [f64; 2],
    },
}

impl<'a, S: Scores> Writer<'a, S> {
    fn new(layer: &Layer<'a, S>, value: f64) -> Self {
        match layer.stored {
            Some(stored) => Self::Stored {
                stored,
                below: stored.border(value, false),
                through: stored.border(value, true),
            },
            None => Self::Computed {
                scores: layer.scores,
                borders: [below(value), value],
            },
        }
    }

    /// `range` is the flat indices that `words` covers, `index` where equal scores begin to go.
    fn write(&self, range: Range<usize>, index: usize, words: &mut [u32]) {
        match *self {
            Self::Stored {
                stored,
                below,
                through,
            } => {
                let early = index.clamp(range.start, range.end) - range.start;
                let values = &stored.values[range];
                write(values, stored.magnitude, [below, through], early, words);
            }
            Self::Computed { scores, borders } => {
                let mut chunk = Vec::with_capacity(CHUNK);
                for (start, words) in range
                    .clone()
                    .step_by(CHUNK)
                    .zip(words.chunks_mut(CHUNK / BITS))
                {
                    let end = range.end.min(start + CHUNK);
                    chunk.clear();
                    chunk.extend((start..end).map(|index| scores.at(index)));
                    write(
                        &chunk,
                        false,
                        borders,
                        index.clamp(start, end) - start,
                        words,
                    );
                }
            }
        }
    }
}

/// Writes the words of `values`, the first `early` by the border `below`, the others by `through`.
fn write<T: Float>(
    values: &[T],
    magnitude: bool,
    [below, through]: [T; 2],
    early: usize,
    words: &mut [u32],
) {
    let whole = early / BITS;
    let (before, after) = values.split_at(whole * BITS);
    T::write_above(before, magnitude, below, &mut words[..whole]);
    T::write_above(after, magnitude, through, &mut words[whole..]);
    if !early.is_multiple_of(BITS) {
        // The word that the position cuts.
        let mut cut = [0];
        T::write_above(&after[..early % BITS], magnitude, below, &mut cut);
        words[whole] |= cut[0];
    }
}

/// Part of a layer, and how its scores lie around the k-th smallest of all.
struct Piece {
    layer: usize,
    start: usize,
    end: usize,
    below: u64,
    equal: u64,
}

/// The k-th smallest score of all layers, and what every piece holds below and at it.
struct Kth {
    value: f64,
    pieces: Vec<Piece>,
}

impl Kth {
    fn find<S: Scores>(layers: &[Layer<S>], k: u64) -> Result<Self, KernelError> {
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

    fn below(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.below).sum()
    }

    fn equal(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.equal).sum()
    }
}

/// Cuts the layers into parallel pieces: (layer, start, end).
fn ranges<S: Scores>(layers: &[Layer<S>]) -> Vec<(usize, usize, usize)> {
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
fn bracket<S: Scores>(layers: &[Layer<S>], k: u64) -> [f64; 2] {
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
    fn borders<T>(self, border: impl Fn(f64, bool) -> T) -> [T; 2] {
        match self {
            Self::Inside(lo, hi) => [border(lo, true), border(hi, false)],
            Self::At(score) => [border(score, false), border(score, true)],
        }
    }

    fn collects(self) -> bool {
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
    fn around(&self, value: f64) -> (u64, u64) {
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
    fn new<S: Scores>(
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

    fn place(&self, k: u64) -> Place {
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

/// The largest number below a score; NaN if there is none.
fn below(score: f64) -> f64 {
    if score == f64::NEG_INFINITY {
        f64::NAN
    } else {
        score.next_down()
    }
}

/// Maps a score to an integer of the same order; both zeros to the same one.
fn key(score: f64) -> u64 {
    let bits = (score + 0.0).to_bits(); // -0 + 0 = +0
    if bits >> 63 == 1 {
        !bits
    } else {
        bits | 1 << 63
    }
}

/// The score that [`key`] maps to this integer.
fn value(key: u64) -> f64 {
    f64::from_bits(if key >> 63 == 1 {
        key & !(1 << 63)
    } else {
        !key
    })
}

/// As [`key`], for stored values.
fn key32(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

/// The value that [`key32`] maps to this integer.
fn value32(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 {
        key & !(1 << 31)
    } else {
        !key
    })
}

/// Bits per digit: sign and exponent first, then the mantissa in four parts.
const DIGITS: [u32; 5] = [12, 13, 13, 13, 13];

/// The k-th smallest score, digit by digit: five passes whatever the data. No score is NaN.
fn radix<S: Scores>(layers: &[Layer<S>], ranges: &[(usize, usize, usize)], k: u64) -> f64 {
    let mut high = u64::BITS; // bits from here up are known
    let mut prefix = 0u64;
    let mut below = 0u64;
    for width in DIGITS {
        let shift = high - width;
        let count = |mut histogram: Vec<u64>, &(layer, start, end): &(usize, usize, usize)| {
            let layer = &layers[layer];
            for index in start..end {
                let key = key(layer.at(index));
                if high == u64::BITS || key >> high == prefix {
                    histogram[(key >> shift) as usize & ((1 << width) - 1)] += 1;
                }
            }
            histogram
        };
        let add = |mut left: Vec<u64>, right: Vec<u64>| {
            left.iter_mut().zip(right).for_each(|(l, r)| *l += r);
            left
        };
        let empty = || vec![0u64; 1 << width];
        let histogram = ranges.par_iter().fold(empty, count).reduce(empty, add);
        let mut digit = 0;
        while below + histogram[digit] < k {
            below += histogram[digit];
            digit += 1;
        }
        prefix = prefix << width | digit as u64;
        high = shift;
    }
    value(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule of section 0.2, literally: sort by (score ascending, position descending), prune the prefix.
    fn naive(layers: &[Vec<f32>], k: usize) -> Vec<Vec<bool>> {
        let mut order: Vec<(f32, usize, usize)> = layers
            .iter()
            .enumerate()
            .flat_map(|(l, s)| s.iter().enumerate().map(move |(i, &x)| (x, l, i)))
            .collect();
        order.sort_by(|a, b| {
            a.0.partial_cmp(&b.0)
                .unwrap()
                .then((b.1, b.2).cmp(&(a.1, a.2)))
        });
        let mut keep: Vec<Vec<bool>> = layers.iter().map(|s| vec![true; s.len()]).collect();
        for &(_, l, i) in &order[..k] {
            keep[l][i] = false;
        }
        keep
    }

    fn score() -> impl Strategy<Value = f32> {
        prop_oneof![
            (-4i8..4).prop_map(|x| f32::from(x) / 2.0), // many ties, both signs, zero
            Just(-0.0f32),
            Just(f32::INFINITY),
            Just(f32::NEG_INFINITY),
            Just(f32::MIN_POSITIVE / 4.0),
            proptest::num::f32::NORMAL,
        ]
    }

    fn nets() -> impl Strategy<Value = (Vec<Vec<f32>>, usize)> {
        proptest::collection::vec(proptest::collection::vec(score(), 0..40), 1..5).prop_flat_map(
            |layers| {
                let total = layers.iter().map(Vec::len).sum::<usize>();
                (Just(layers), 0..=total)
            },
        )
    }

    fn shapes(layers: &[Vec<f32>]) -> Vec<[usize; 2]> {
        layers.iter().map(|s| [1, s.len()]).collect()
    }

    proptest! {
        #[test]
        fn equals_a_sort((layers, k) in nets()) {
            let want = naive(&layers, k);
            let got = select_smallest_global(&layers, &shapes(&layers), k as u64, Ties::KeepLowestIndex).unwrap();
            for (mask, want) in got.iter().zip(&want) {
                prop_assert_eq!(&mask.to_keep(), want);
            }
            let counts = global_counts(&layers, k as u64, Ties::KeepLowestIndex).unwrap();
            prop_assert_eq!(counts.iter().sum::<usize>(), k);
            prop_assert_eq!(counts, got.iter().map(BitMask::zeros).collect::<Vec<_>>());
        }

        #[test]
        fn the_compat_rule_takes_all_ties((layers, k) in nets()) {
            let mut sorted: Vec<f32> = layers.concat();
            sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
            let got = select_smallest_global(&layers, &shapes(&layers), k as u64, Ties::CompatLe).unwrap();
            for (mask, layer) in got.iter().zip(&layers) {
                let want: Vec<bool> = layer.iter().map(|&x| k == 0 || x > sorted[k - 1]).collect();
                prop_assert_eq!(mask.to_keep(), want);
            }
        }

        #[test]
        fn the_threshold_is_the_sorted_element((layers, k) in nets()) {
            prop_assume!(k > 0);
            let mut sorted: Vec<f32> = layers.concat();
            sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
            let kth = sorted[k - 1];
            let got = threshold_of(&layers, k as u64).unwrap();
            prop_assert_eq!(got.value, f64::from(kth));
            prop_assert_eq!(got.below, sorted.iter().filter(|&&x| x < kth).count() as u64);
            prop_assert_eq!(got.equal, sorted.iter().filter(|&&x| x == kth).count() as u64);
        }

        #[test]
        fn keys_keep_the_order_and_the_value(a in score(), b in score()) {
            let (a, b) = (f64::from(a), f64::from(b));
            prop_assert_eq!(a.partial_cmp(&b), Some(key(a).cmp(&key(b))));
            prop_assert_eq!(value(key(a)), a);
        }
    }

    #[test]
    fn layers_longer_than_a_piece_are_cut_the_same() {
        // A permutation of 0..n: the k smallest are exactly the values below k.
        let n = 3 * PIECE + 17;
        let scores: Vec<f64> = (0..n).map(|i| (i * 7919 % n) as f64).collect();
        let k = n / 3;
        let mask = select_smallest(&scores, [1, n], k as u64, Ties::KeepLowestIndex).unwrap();
        assert_eq!(mask.zeros(), k);
        assert!(
            mask.keep()
                .zip(&scores)
                .all(|(keep, &s)| keep == (s >= k as f64))
        );
        // All equal: the last k go.
        let mask =
            select_smallest(&vec![1.5f32; n], [1, n], k as u64, Ties::KeepLowestIndex).unwrap();
        assert!(mask.keep().enumerate().all(|(i, keep)| keep == (i < n - k)));
    }

    /// Pseudo-random bits, seeded.
    fn random_bits(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed;
        move || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            state >> 32
        }
    }

    /// Larger than the sample, and awkward in one way each.
    fn awkward() -> Vec<(&'static str, Vec<f32>)> {
        const N: usize = 30_011;
        let mut bits = random_bits(1);
        let mut make =
            |f: &mut dyn FnMut(usize, u64) -> f32| (0..N).map(|i| f(i, bits())).collect();
        vec![
            ("all equal", make(&mut |_, _| 1.5)),
            ("two values", make(&mut |_, x| (x & 1) as f32)),
            (
                "three values",
                make(&mut |_, x| [0.0, 0.0, -1.0, 2.0][(x & 3) as usize]),
            ),
            (
                "denormal",
                make(&mut |_, x| f32::from_bits((x & 0x8000_03ff) as u32)),
            ),
            (
                "both zeros",
                make(&mut |_, x| if x & 1 == 0 { -0.0 } else { 0.0 }),
            ),
            (
                "infinities",
                make(&mut |_, x| match x % 5 {
                    0 => f32::INFINITY,
                    1 => f32::NEG_INFINITY,
                    _ => x as f32,
                }),
            ),
            ("ascending", make(&mut |i, _| i as f32)),
            ("descending", make(&mut |i, _| -(i as f32))),
            (
                "half zero",
                make(&mut |i, x| if i % 2 == 0 { 0.0 } else { x as f32 + 1.0 }),
            ),
            ("random", make(&mut |_, x| x as f32 - 2e9)),
            (
                "magnitudes of many scales",
                make(&mut |_, x| f32::from_bits(x as u32 & 0x7f00_0000)),
            ),
        ]
    }

    /// Ranks around the middle, the ends, and the borders between few values.
    fn ranks(sorted: &[f32]) -> Vec<usize> {
        let n = sorted.len();
        let mut ranks = vec![
            0,
            1,
            2,
            n / 100,
            n / 3,
            n / 2,
            n / 2 + 1,
            n * 9 / 10,
            n - 2,
            n - 1,
            n,
        ];
        let steps = (1..n).filter(|&i| sorted[i] != sorted[i - 1]);
        ranks.extend(steps.take(3).flat_map(|i| [i - 1, i, i + 1]));
        ranks
    }

    /// Checks one selection against the rule: a score goes if it is lower than the k-th, or as low and not among the
    /// first that may stay.
    fn check(what: &str, layer: &[f32], sorted: &[f32], k: usize, mask: &BitMask) {
        assert_eq!(mask.zeros(), k, "{what} {k}");
        if k == 0 {
            return;
        }
        let kth = sorted[k - 1];
        let at_most = sorted.partition_point(|&x| x <= kth);
        let mut may_stay = at_most - k;
        for (index, (&x, keep)) in layer.iter().zip(mask.keep()).enumerate() {
            let stays = x > kth || x == kth && may_stay > 0;
            may_stay -= usize::from(x == kth && stays);
            assert_eq!(keep, stays, "{what} {k}: {index}");
        }
    }

    #[test]
    fn awkward_data_of_many_pieces_are_cut_as_sorted() {
        for (what, layer) in awkward() {
            let mut sorted = layer.clone();
            sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
            let n = layer.len();
            let wide: Vec<f64> = layer.iter().map(|&x| f64::from(x)).collect();
            for k in ranks(&sorted) {
                let ties = Ties::KeepLowestIndex;
                let mask = select_smallest(&layer, [1, n], k as u64, ties).unwrap();
                check(what, &layer, &sorted, k, &mask);
                let computed = select_smallest(&wide, [1, n], k as u64, ties).unwrap();
                assert_eq!(mask, computed, "{what} {k}");
                // Rows that do not end with a word; 30,011 is prime, so some are left over.
                let (rows, cols) = (n / 37, 37);
                let part = &layer[..rows * cols];
                let k = k.min(part.len());
                let mask = select_smallest(part, [rows, cols], k as u64, ties).unwrap();
                let flat = select_smallest(part, [1, part.len()], k as u64, ties).unwrap();
                assert_eq!(mask.to_keep(), flat.to_keep(), "{what} {k}");
                let all = select_smallest(&layer, [1, n], k as u64, Ties::CompatLe).unwrap();
                let want = if k == 0 {
                    0
                } else {
                    sorted.partition_point(|&x| x <= sorted[k - 1])
                };
                assert_eq!(all.zeros(), want, "{what} {k}");
            }
        }
    }

    #[test]
    fn data_that_mislead_the_sample_are_cut_by_digits() {
        // Every drawn place holds a score of 1 to 2, all others lie far below: the bracket misses at every rank.
        const N: usize = 200_000;
        struct Watch(std::sync::Mutex<Vec<usize>>);
        impl Scores for Watch {
            fn len(&self) -> usize {
                N
            }
            fn at(&self, index: usize) -> f64 {
                self.0.lock().unwrap().push(index);
                1.0
            }
        }
        let watch = Watch(Default::default());
        bracket(&[Layer::new(&watch)], 1);
        let drawn = watch.0.into_inner().unwrap();
        let mut bits = random_bits(2);
        let mut scores: Vec<f32> = (0..N).map(|_| -(bits() as f32)).collect();
        for index in drawn {
            scores[index] = 1.0 + bits() as f32 / 4294967296.0;
        }
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
        for k in [1, N / 4, N / 2, N - 5, N] {
            let layers = [Layer::new(&scores)];
            let [lo, hi] = bracket(&layers, k as u64);
            let kth = f64::from(sorted[k - 1]);
            // At rank 1 the bracket is open below instead, and holds nearly everything.
            assert!(
                k > N / 2 || kth < lo || k == 1 && hi >= 1.0,
                "{k}: {kth} in {lo}, {hi}"
            );
            assert_eq!(radix(&layers, &ranges(&layers), k as u64), kth);
            let mask = select_smallest(&scores, [1, N], k as u64, Ties::KeepLowestIndex).unwrap();
            check("misleading", &scores, &sorted, k, &mask);
        }
    }

    #[test]
    fn stored_scores_are_cut_as_computed_ones() {
        /// The same scores without [`Scores::stored`].
        struct Computed<'a>(Stored<'a>);
        impl Scores for Computed<'_> {
            fn len(&self) -> usize {
                self.0.values.len()
            }
            fn at(&self, index: usize) -> f64 {
                self.0.at(index)
            }
        }
        let mut bits = random_bits(3);
        let mut values: Vec<Vec<f32>> = [40_000, 0, 27, 70_001, 5_000]
            .iter()
            .map(|&n| (0..n).map(|_| (bits() % 4001) as f32 - 2000.0).collect())
            .collect();
        values[4].iter_mut().for_each(|value| *value *= 1e-17);
        // The third is so small a divisor that scores overflow, the last so large that distinct values tie.
        let divisors = [3.0, 1.0, 1e-306, 7.5];
        for (magnitude, last) in [(true, 1e-3), (false, 1e-3), (true, f64::MAX)] {
            let stored: Vec<Stored> = values
                .iter()
                .zip(divisors.into_iter().chain([last]))
                .map(|(values, divisor)| Stored {
                    values,
                    magnitude,
                    divisor,
                })
                .collect();
            let computed: Vec<Computed> = stored.iter().map(|&stored| Computed(stored)).collect();
            let shapes: Vec<[usize; 2]> = values.iter().map(|v| [1, v.len()]).collect();
            let concatenated: Vec<f64> = stored
                .iter()
                .flat_map(|s| (0..s.len()).map(|i| s.at(i)))
                .collect();
            let total = concatenated.len();
            for k in [0, 1, 500, total / 2, total - 5_000, total - 1, total] {
                let k = k as u64;
                for ties in [Ties::KeepLowestIndex, Ties::CompatLe] {
                    let fast = select_smallest_global(&stored, &shapes, k, ties).unwrap();
                    let slow = select_smallest_global(&computed, &shapes, k, ties).unwrap();
                    assert_eq!(fast, slow, "{magnitude} {k}");
                    let counts: Vec<usize> = fast.iter().map(BitMask::zeros).collect();
                    assert_eq!(global_counts(&stored, k, ties).unwrap(), counts);
                    // Global is one layer of all scores, one after another.
                    let one = select_smallest(&concatenated, [1, total], k, ties).unwrap();
                    let all: Vec<bool> = fast.iter().flat_map(BitMask::to_keep).collect();
                    assert_eq!(one.to_keep(), all, "{magnitude} {k}");
                }
                if k > 0 {
                    assert_eq!(threshold_of(&stored, k), threshold_of(&computed, k));
                }
            }
        }
    }

    #[test]
    fn the_same_bits_at_every_thread_count_and_time() {
        let mut bits = random_bits(4);
        let n = 3 * PIECE + 1;
        let scores: Vec<f32> = (0..n).map(|_| (bits() % 50_000) as f32).collect();
        let make = || {
            let k = n as u64 / 2;
            select_smallest(&scores, [1, n], k, Ties::KeepLowestIndex).unwrap()
        };
        let want = make();
        for threads in [1, 2, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                for _ in 0..20 {
                    assert_eq!(make(), want, "{threads} threads");
                }
            });
        }
    }

    #[test]
    fn nan_is_named_at_every_k() {
        let layers = [vec![0.0f32, 1.0], vec![2.0, f32::NAN, f32::NAN]];
        for k in 0..=5 {
            assert_eq!(
                global_counts(&layers, k, Ties::KeepLowestIndex),
                Err(KernelError::NonFiniteScore { layer: 1, index: 1 })
            );
        }
    }

    #[test]
    fn too_many_and_nothing() {
        let empty: [Vec<f32>; 2] = [vec![], vec![]];
        assert_eq!(global_counts(&empty, 0, Ties::CompatLe), Ok(vec![0, 0]));
        let one = [vec![1.0f32]];
        assert_eq!(
            global_counts(&one, 2, Ties::CompatLe),
            Err(KernelError::TooMany {
                requested: 2,
                available: 1
            })
        );
        assert!(threshold_of(&one, 0).is_err());
        assert!(select_smallest(&one[0], [1, 2], 1, Ties::CompatLe).is_err());
    }
}

//! Exact selection of the k smallest scores on a device: the masks of [`crate::select_smallest_global`], bit for bit.
//!
//! Radix selection over an order-preserving key: three passes count its top 11, next 11 and last 10 bits, each within the
//! bucket that the pass before chose, in shared integers that only ever grow; between passes one cube finds the bucket.
//! What lies below the k-th and what equals it then become two words per 32 scores. Equal scores go from the highest index
//! on: their number per tile of words is summed over tiles and layers, and only the tile where the border falls counts its
//! bits. Integers in a fixed order: every device gives the same bits every time.

use cubecl::client::Client;
use cubecl::prelude::*;

use super::buffer::{Buffer, UNITS, folded, units};
use super::compensated::exclusive_sum;
use super::words::{self, BITS, STEPS, TILE, is_nan, key, used, word_count};
use crate::error::expect_len;
use crate::{BitMask, KernelError, KthValue, Ties};

/// Buckets of a pass.
const BUCKETS: usize = 1 << 11;
/// Where NaNs are counted: after the buckets.
const NANS: usize = BUCKETS;
/// Lowest bit and width of each pass's digit.
pub(crate) const DIGITS: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];
/// Scores that a unit counts, so that adding up a cube's buckets costs little beside reading them.
const SCORES_PER_UNIT: usize = 64;

/// What is known between passes: the key's known digits, the rank wanted among scores that share them, how many do.
const PREFIX: usize = 0;
const RANK: usize = 1;
const EQUAL: usize = 2;

/// One layer's scores on the device.
#[derive(Clone)]
pub struct Layer {
    /// Row-major f32 scores.
    pub scores: Buffer,
    /// Rows and columns of its mask.
    pub shape: [usize; 2],
}

/// The mask of a layer, on the device.
#[derive(Clone)]
pub struct Words {
    /// `[rows, ceil(cols / 32)]`, as [`BitMask`] packs them.
    pub words: Buffer,
    /// Rows and columns.
    pub shape: [usize; 2],
}

impl Words {
    /// A copy on the host.
    pub fn read(&self) -> Result<BitMask, KernelError> {
        BitMask::from_words(self.shape[0], self.shape[1], self.words.read_u32()?)
    }
}

/// Masks the `k` lowest scores (magnitudes, where so said) of all layers together; the masks stay on the device.
///
/// Waits once, for the number of NaNs.
pub fn select_smallest(
    client: &Client,
    layers: &[Layer],
    magnitude: bool,
    k: u64,
    ties: Ties,
) -> Result<Vec<Words>, KernelError> {
    let search = Search::new(client, layers, magnitude, k)?;
    let kth = search.find(layers)?;
    let mut below = Vec::new();
    let mut equal = Vec::new();
    let tiles: Vec<usize> = layers.iter().map(tiles).collect();
    let counts = Buffer::uninit(client, tiles.iter().sum())?;
    let mut first = 0;
    for (layer, &tiles) in layers.iter().zip(&tiles) {
        let [rows, cols] = layer.shape;
        let [less, same] = [(); 2].map(|()| Buffer::uninit(client, word_count([rows, cols])));
        let (less, same) = (less?, same?);
        if tiles > 0 {
            classify::launch(
                client,
                folded(tiles),
                units(),
                layer.scores.arg(),
                search.state.arg(),
                less.arg(),
                same.arg(),
                counts.arg(),
                cols as u32,
                first as u32,
                magnitude,
                ballots(client),
            );
        }
        first += tiles;
        below.push(less);
        equal.push(same);
    }
    if first > 0 {
        exclusive_sums::launch(client, folded(1), units(), counts.arg());
    }
    // Of the equal scores in order, how many stay; with k = 0 all scores do.
    let keep = match (k, ties) {
        (0, _) => u32::MAX,
        (_, Ties::CompatLe) => 0,
        (_, Ties::KeepLowestIndex) => kth.equal - kth.rank,
    };
    let mut first = 0;
    let mut masks = Vec::new();
    for (((layer, &tiles), below), equal) in layers.iter().zip(&tiles).zip(&below).zip(&equal) {
        let words = Buffer::uninit(client, below.len())?;
        if tiles > 0 {
            let cubes = folded(below.len().div_ceil(UNITS));
            finish::launch(
                client,
                cubes,
                units(),
                below.arg(),
                equal.arg(),
                counts.arg(),
                words.arg(),
                layer.shape[1] as u32,
                first as u32,
                keep,
                k == 0,
            );
        }
        first += tiles;
        masks.push(Words {
            words,
            shape: layer.shape,
        });
    }
    Ok(masks)
}

/// The `k`-th smallest score (magnitude) of all layers together, 1 <= k <= n.
pub fn threshold_of(
    client: &Client,
    layers: &[Layer],
    magnitude: bool,
    k: u64,
) -> Result<KthValue, KernelError> {
    let search = Search::new(client, layers, magnitude, k)?;
    if k == 0 {
        return Err(KernelError::TooMany {
            requested: k,
            available: search.available,
        });
    }
    let kth = search.find(layers)?;
    Ok(KthValue {
        value: f64::from(words::value(kth.key, magnitude)),
        below: k - u64::from(kth.rank),
        equal: u64::from(kth.equal),
    })
}

/// Whether a plane is one mask word wide and its units can vote.
pub(super) fn ballots(client: &Client) -> bool {
    let hardware = &client.properties().hardware;
    let word = BITS as u32;
    client
        .features()
        .plane
        .contains(cubecl::ir::features::Plane::Ops)
        && hardware.plane_size_min == word
        && hardware.plane_size_max == word
}

/// The k-th score's key, its rank among its equals (from 1), and their number.
struct Kth {
    key: u32,
    rank: u32,
    equal: u32,
}

struct Search<'a> {
    client: &'a Client,
    available: u64,
    magnitude: bool,
    state: Buffer,
}

impl<'a> Search<'a> {
    fn new(
        client: &'a Client,
        layers: &[Layer],
        magnitude: bool,
        k: u64,
    ) -> Result<Self, KernelError> {
        for layer in layers {
            let [rows, cols] = layer.shape;
            expect_len("scores", rows.saturating_mul(cols), layer.scores.len())?;
        }
        let available = layers.iter().map(|layer| layer.scores.len() as u64).sum();
        if k > available {
            return Err(KernelError::TooMany {
                requested: k,
                available,
            });
        }
        if available > u64::from(u32::MAX) {
            return Err(KernelError::Device {
                why: format!(
                    "{available} scores are more than a device counts in 32 bits; select layer by layer"
                ),
            });
        }
        // k = 0 looks for the smallest score too, so that a NaN is an error at every k.
        let state = Buffer::of_u32(client, &[0, (k as u32).max(1), 0])?;
        Ok(Self {
            client,
            available,
            magnitude,
            state,
        })
    }

    fn find(&self, layers: &[Layer]) -> Result<Kth, KernelError> {
        let counts = Buffer::zeros(self.client, BUCKETS + 1)?;
        for (pass, &(shift, width)) in DIGITS.iter().enumerate() {
            for layer in layers.iter().filter(|layer| !layer.scores.is_empty()) {
                let cubes = layer.scores.len().div_ceil(UNITS * SCORES_PER_UNIT);
                count::launch(
                    self.client,
                    folded(cubes),
                    units(),
                    layer.scores.arg(),
                    self.state.arg(),
                    counts.arg(),
                    shift,
                    width,
                    pass == 0,
                    self.magnitude,
                );
            }
            choose::launch(
                self.client,
                folded(1),
                units(),
                counts.arg(),
                self.state.arg(),
                width,
            );
        }
        if counts.read_u32()?[NANS] > 0 {
            return Err(first_nan(layers)?);
        }
        let state = self.state.read_u32()?;
        Ok(Kth {
            key: state[PREFIX],
            rank: state[RANK],
            equal: state[EQUAL],
        })
    }
}

/// The error that names the first NaN, looked for on the host: this happens once, before someone mends the weights.
fn first_nan(layers: &[Layer]) -> Result<KernelError, KernelError> {
    for (layer, scores) in layers.iter().enumerate() {
        if let Some(index) = nan_index(&scores.scores)? {
            return Ok(KernelError::NonFiniteScore { layer, index });
        }
    }
    Err(KernelError::Device {
        why: "NaNs were counted where there are none".into(),
    })
}

/// Index of a buffer's first NaN.
pub(super) fn nan_index(scores: &Buffer) -> Result<Option<usize>, KernelError> {
    Ok(scores.read_f32()?.iter().position(|score| score.is_nan()))
}

/// Tiles of a layer's words.
fn tiles(layer: &Layer) -> usize {
    word_count(layer.shape).div_ceil(TILE)
}

/// Adds the digits of all scores whose higher digits are the known ones to the buckets.
#[cube(launch, create_dummy_kernel)]
pub(crate) fn count(
    scores: &[u32],
    state: &[u32],
    counts: &[Atomic<u32>],
    #[comptime] shift: u32,
    #[comptime] width: u32,
    #[comptime] first: bool,
    #[comptime] magnitude: bool,
) {
    let buckets = Shared::<[Atomic<u32>]>::new_slice(BUCKETS + 1);
    let unit = UNIT_POS as usize;
    for step in 0..(BUCKETS + 1).div_ceil(UNITS) {
        let bucket = step * UNITS + unit;
        if bucket <= NANS {
            buckets[bucket].store(0u32);
        }
    }
    sync_cube();
    let known = state[PREFIX];
    for step in 0..SCORES_PER_UNIT {
        let at = (CUBE_POS * SCORES_PER_UNIT + step) * UNITS + unit;
        if at < scores.len() {
            let bits = scores[at];
            if is_nan(bits) {
                if first {
                    buckets[NANS].fetch_add(1u32);
                }
            } else {
                let key = key(bits, magnitude);
                // The first pass knows no digit, and a shift by 32 is none.
                let chosen = if first {
                    true.runtime()
                } else {
                    key >> comptime!(shift + width) == known
                };
                if chosen {
                    let digit = (key >> shift) & comptime!((1u32 << width) - 1);
                    buckets[digit as usize].fetch_add(1u32);
                }
            }
        }
    }
    sync_cube();
    for step in 0..(BUCKETS + 1).div_ceil(UNITS) {
        let bucket = step * UNITS + unit;
        if bucket <= NANS {
            let found = buckets[bucket].load();
            if found > 0u32 {
                counts[bucket].fetch_add(found);
            }
        }
    }
}

/// Finds the bucket of the wanted rank, and empties the buckets for the next pass. One cube.
#[cube(launch, create_dummy_kernel)]
pub(crate) fn choose(counts: &mut [u32], state: &mut [u32], #[comptime] width: u32) {
    let mut sums = Shared::<[u32]>::new_slice(UNITS);
    let unit = UNIT_POS as usize;
    let each = comptime!(BUCKETS / UNITS);
    let first = unit * each;
    let mut sum = 0u32;
    for i in 0..each {
        sum += counts[first + i];
    }
    let mut before = exclusive_sum(&mut sums, sum);
    let rank = state[RANK];
    let known = state[PREFIX];
    // Nobody writes the rank before everyone has read it.
    sync_cube();
    for i in 0..each {
        let found = counts[first + i];
        if before < rank && rank <= before + found {
            state[PREFIX] = (known << width) | u32::cast_from(first + i);
            state[RANK] = rank - before;
            state[EQUAL] = found;
        }
        before += found;
        counts[first + i] = 0u32;
    }
}

/// Two words for every 32 scores, below the k-th and equal to it, and each tile's number of equal ones.
#[cube(launch, create_dummy_kernel)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn classify(
    scores: &[u32],
    state: &[u32],
    below: &mut [u32],
    equal: &mut [u32],
    counts: &mut [u32],
    cols: u32,
    first_tile: u32,
    #[comptime] magnitude: bool,
    #[comptime] ballots: bool,
) {
    let cols = cols as usize;
    let stride = cols.div_ceil(BITS);
    let unit = UNIT_POS as usize;
    let less = Shared::<[Atomic<u32>]>::new_slice(TILE);
    let same = Shared::<[Atomic<u32>]>::new_slice(TILE);
    let total = Shared::<[Atomic<u32>]>::new_slice(1usize);
    if unit < TILE {
        less[unit].store(0u32);
        same[unit].store(0u32);
    }
    if unit == 0 {
        total[0].store(0u32);
    }
    sync_cube();
    let kth = state[PREFIX];
    let tile = CUBE_POS;
    for step in 0..STEPS {
        let at = step * UNITS + unit; // in the tile: word, then bit
        let word = tile * TILE + at / BITS;
        let bit = at % BITS;
        let col = word % stride * BITS + bit;
        let inside = word < below.len() && col < cols;
        let mut is_less = false;
        let mut is_same = false;
        if inside {
            let key = key(scores[word / stride * cols + col], magnitude);
            is_less = key < kth;
            is_same = key == kth;
        }
        if ballots {
            let less_bits = plane_ballot(is_less).extract(0usize);
            let same_bits = plane_ballot(is_same).extract(0usize);
            if bit == 0 {
                less[at / BITS].store(less_bits);
                same[at / BITS].store(same_bits);
            }
        } else {
            // Every bit is added once, which is as good as an or.
            let flag = 1u32 << u32::cast_from(bit);
            if is_less {
                less[at / BITS].fetch_add(flag);
            }
            if is_same {
                same[at / BITS].fetch_add(flag);
            }
        }
    }
    sync_cube();
    let word = tile * TILE + unit;
    if unit < TILE && word < below.len() {
        below[word] = less[unit].load();
        let same_bits = same[unit].load();
        equal[word] = same_bits;
        total[0].fetch_add(same_bits.count_ones());
    }
    sync_cube();
    let slot = first_tile as usize + tile;
    if unit == 0 && tile * TILE < below.len() {
        counts[slot] = total[0].load();
    }
}

/// Replaces every count by the sum of those before it. One cube.
#[cube(launch, create_dummy_kernel)]
pub(crate) fn exclusive_sums(counts: &mut [u32]) {
    let mut sums = Shared::<[u32]>::new_slice(UNITS);
    let each = counts.len().div_ceil(UNITS);
    let first = UNIT_POS as usize * each;
    let mut sum = 0u32;
    for i in first..first + each {
        if i < counts.len() {
            sum += counts[i];
        }
    }
    let mut before = exclusive_sum(&mut sums, sum);
    for i in first..first + each {
        if i < counts.len() {
            let count = counts[i];
            counts[i] = before;
            before += count;
        }
    }
}

/// Mask words: below the k-th goes, and of its equals all but the first `keep` of all layers.
#[cube(launch, create_dummy_kernel)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn finish(
    below: &[u32],
    equal: &[u32],
    counts: &[u32],
    words: &mut [u32],
    cols: u32,
    first_tile: u32,
    keep: u32,
    #[comptime] keep_all: bool,
) {
    let word = ABSOLUTE_POS;
    if word < words.len() {
        let cols = cols as usize;
        let used = used(word, cols.div_ceil(BITS), cols);
        if keep_all {
            words[word] = used;
        } else {
            let own = equal[word];
            let tile = word / TILE;
            let mut before = counts[first_tile as usize + tile];
            let mut goes = own;
            if own != 0u32 && before < keep {
                // How many equals lie before this word: only words near the border ask.
                let first = tile * TILE;
                for other in 0..word - first {
                    before += equal[first + other].count_ones();
                }
                while goes != 0u32 && before < keep {
                    goes &= goes - 1u32;
                    before += 1u32;
                }
            }
            words[word] = used & !(below[word] | goes);
        }
    }
}

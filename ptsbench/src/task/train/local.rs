//! How a transformer starts: as a small convolutional network, which training may leave.
//!
//! On few images a transformer spends most of its time learning what a convolution has built in. A layer of attention can
//! be a convolution: each head looks at the patch at one offset (Cordonnier et al. 2019, arXiv 1911.03584; as initial values
//! Zheng et al. 2024, arXiv 2404.01139). Here
//!
//! - the last [`WAVES`] channels of a token say where it is, as cosines and sines of 1 and 3 periods over 8 columns and rows.
//!   The product of two places is 4 where they agree, at most 2 elsewhere, and nothing in block or embedding writes there;
//! - a head's keys are these channels and its queries the same, turned by the head's offset; the class token has none, and
//!   attends to all patches alike;
//! - the patch embedding is the cosines of a patch (DCT-II) in each colour, slowest first, scaled to a deviation near 1
//!   over training images and then made small beside what the first block adds; filters that are left over stay random;
//! - the perceptron of the first block is a convolution: random 3 x 3 filters at four places of the patch, and their mean
//!   over the places.

use std::f64::consts::PI;

use crate::data::synthetic::{self, CHANNELS, PIXELS, SIDE};

/// Channels of a token that say where it is, and channels of a head.
pub const WAVES: usize = 8;
/// Side of a patch.
const PATCH: usize = 4;
/// Columns and rows in which the slower wave repeats.
const PERIOD: f64 = 8.0;
/// Periods of the two waves in [`PERIOD`].
const PERIODS: [f64; 2] = [1.0, 3.0];
/// Product of query and key where place and offset agree, as it goes into the softmax, over that of the waves.
const SHARPNESS: f64 = 2.0;
/// Part of random queries and keys beside the waves.
const RANDOM: f32 = 0.3;
/// Offsets that heads look at, columns and rows. A block with fewer heads takes others than the block before.
const OFFSETS: [[i8; 2]; 8] = [
    [1, 0],
    [-1, 0],
    [0, 1],
    [0, -1],
    [1, 1],
    [-1, -1],
    [1, -1],
    [-1, 1],
];
/// Images over which the embedding's deviations are taken.
const SAMPLE: usize = 500;
/// Added to a variance before its root: noise is not blown up.
const FLOOR: f64 = 0.05;
/// What the embedding's channels are multiplied by.
const FAINT: f64 = 0.3;
/// Side of the first block's filters, and the places of a patch at which each stands.
const FILTER: usize = 3;
const STANDS: usize = 4;
/// Mean of GELU over a normal variable, and the deviation of its mean over the places of a filter, which are alike.
const LEVEL: [f64; 2] = [0.282, 0.45];
/// Part of the first block's attention that is added to the token.
const FIRST: f32 = 0.1;

/// Changes the random `values` of the parameter at `path`, shaped as Burn keeps it (a linear layer's inputs first).
pub fn arrange(path: &str, shape: &[usize], values: &mut [f32], images: &[u8]) {
    let sample = || synthetic::normalize(&images[..images.len().min(SAMPLE * PIXELS)]);
    let scale = |values: &mut [f32], by: f32| values.iter_mut().for_each(|value| *value *= by);
    let block = path
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'));
    match (path, block) {
        ("cls_token", _) => silence(values, shape[2]),
        ("pos_embed", _) => values.copy_from_slice(&positions(shape[1], shape[2])),
        ("patch_embed.proj.weight", _) => embedding(values, [shape[0], shape[2]], &sample()),
        ("head.linear.weight", _) => scale(values, 0.1),
        (_, Some((place, "attn.qkv.linear.weight"))) => {
            heads(values, shape[0], place.parse().unwrap_or(0));
        }
        (_, Some((place, "attn.proj.weight"))) => {
            silence(values, shape[1]);
            scale(values, if place == "0" { FIRST } else { 1.0 });
        }
        (_, Some(("0", "mlp.fc1.linear.weight"))) => convolution(values, shape[0], &sample()),
        (_, Some(("0", "mlp.fc2.weight"))) => mean_over_places(values, shape[1]),
        (_, Some(("0", "mlp.fc2.bias"))) => {
            values[..shape[0] - WAVES].fill(-(LEVEL[0] / LEVEL[1]) as f32);
        }
        (_, Some((_, "mlp.fc2.weight"))) => {
            silence(values, shape[1]);
            // A block changes little at first.
            scale(values, 0.5);
        }
        _ => {}
    }
}

/// Clears the waves' channels of rows of `width`.
fn silence(values: &mut [f32], width: usize) {
    for row in values.chunks_exact_mut(width) {
        row[width - WAVES..].fill(0.0);
    }
}

/// Cosine and sine of each wave along columns, then along rows, at a place.
fn waves([column, row]: [f64; 2]) -> [f64; WAVES] {
    let mut all = [0.0; WAVES];
    for (axis, along) in [column, row].into_iter().enumerate() {
        for (wave, periods) in PERIODS.into_iter().enumerate() {
            let (sin, cos) = (2.0 * PI * periods * along / PERIOD).sin_cos();
            all[4 * axis + 2 * wave..][..2].copy_from_slice(&[cos, sin]);
        }
    }
    all
}

/// The waves of every patch, rows first, after the class token's zeros.
fn positions(tokens: usize, width: usize) -> Vec<f32> {
    let side = (tokens - 1).isqrt();
    let mut values = vec![0.0; tokens * width];
    for (place, token) in values.chunks_exact_mut(width).skip(1).enumerate() {
        let here = waves([(place % side) as f64, (place / side) as f64]);
        for (value, wave) in token[width - WAVES..].iter_mut().zip(here) {
            *value = wave as f32;
        }
    }
    values
}

/// Queries and keys of one block: `values` are `[width, 3 width]`, a head after the other in each third.
fn heads(values: &mut [f32], width: usize, block: usize) {
    let count = width / WAVES;
    let scale = (SHARPNESS * (WAVES as f64).sqrt()).sqrt() as f32;
    for (input, row) in values.chunks_exact_mut(3 * width).enumerate() {
        let (queries, rest) = row.split_at_mut(width);
        let keys = &mut rest[..width];
        let Some(wave) = (input + WAVES).checked_sub(width) else {
            queries.iter_mut().for_each(|value| *value *= RANDOM);
            keys.iter_mut().for_each(|value| *value *= RANDOM);
            continue;
        };
        for head in 0..count {
            let offset =
                OFFSETS[(head + if count < OFFSETS.len() { 3 * block } else { 0 }) % OFFSETS.len()];
            let turn = waves(offset.map(f64::from));
            // cos(a + d) = cos d cos a - sin d sin a, sin(a + d) = sin d cos a + cos d sin a.
            let (pair, is_sine) = (wave / 2 * 2, wave % 2 == 1);
            let (cos, sin) = (turn[pair] as f32, turn[pair + 1] as f32);
            let query = &mut queries[head * WAVES..][..WAVES];
            query.fill(0.0);
            query[pair] = scale * if is_sine { -sin } else { cos };
            query[pair + 1] = scale * if is_sine { cos } else { sin };
            let key = &mut keys[head * WAVES..][..WAVES];
            key.fill(0.0);
            key[wave] = scale;
        }
    }
}

/// One channel of the patch embedding: a cosine in one colour.
struct Channel {
    colour: usize,
    wave: Vec<f64>,
    /// Variance of a patch's product with the wave.
    variance: f64,
}

impl Channel {
    /// As many as there is room for before the waves' channels, slowest first; `planes` are whole images.
    fn all(width: usize, side: usize, planes: &[f32]) -> Vec<Self> {
        let mut frequencies: Vec<[usize; 2]> =
            (0..side * side).map(|at| [at % side, at / side]).collect();
        frequencies.sort_by_key(|[across, down]| across + down);
        frequencies
            .into_iter()
            .map(|frequency| cosine(frequency, side))
            .flat_map(|wave| {
                let variance = variance(&wave, side, planes);
                (0..CHANNELS).map(move |colour| Self {
                    colour,
                    wave: wave.clone(),
                    variance,
                })
            })
            .take(width - WAVES)
            .collect()
    }

    /// What the product with the wave is multiplied by.
    fn scale(&self) -> f64 {
        FAINT / (self.variance + FLOOR).sqrt()
    }
}

/// Filters of the patch embedding, `[width, 3, side, side]`; the waves' channels stay empty.
fn embedding(values: &mut [f32], [width, side]: [usize; 2], planes: &[f32]) {
    let area = side * side;
    let filters = values.chunks_exact_mut(CHANNELS * area);
    for (filter, channel) in filters.zip(Channel::all(width, side, planes)) {
        filter.fill(0.0);
        for (value, wave) in filter[channel.colour * area..][..area]
            .iter_mut()
            .zip(&channel.wave)
        {
            *value = (channel.scale() * wave) as f32;
        }
    }
    let (used, silent) = values.split_at_mut((width - WAVES) * CHANNELS * area);
    // There are as many cosines as a filter has values.
    for filter in used.chunks_exact_mut(CHANNELS * area).skip(CHANNELS * area) {
        filter.iter_mut().for_each(|value| *value *= FAINT as f32);
    }
    silent.fill(0.0);
}

/// The first block's hidden units, `[width, 4 width]`: at each place of the patch one filter per channel, random as
/// `values` are, three of four blind to the mean colour, and answering with a deviation near 1.
fn convolution(values: &mut [f32], width: usize, planes: &[f32]) {
    let side = PATCH;
    let channels = Channel::all(width, side, planes);
    // The norm before the perceptron divides by the root of the token's mean square, to which the waves add 4.
    let square: f64 = channels
        .iter()
        .map(|channel| channel.scale().powi(2) * channel.variance)
        .sum();
    let gain = (width as f64 / (square + (WAVES / 2) as f64)).sqrt();
    let area = FILTER * FILTER;
    let random: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
    values.fill(0.0);
    for (unit, filter) in random.chunks_exact(CHANNELS * area).take(width).enumerate() {
        let mut filter = filter.to_vec();
        if 4 * unit < 3 * width {
            for colour in filter.chunks_exact_mut(area) {
                let mean = colour.iter().sum::<f64>() / area as f64;
                colour.iter_mut().for_each(|value| *value -= mean);
            }
        }
        for stand in 0..STANDS {
            let [left, top] = [stand % 2, stand / 2].map(|far| far * (side - FILTER));
            // The filter's product with each cosine: its answer is the sum of these times the patch's.
            let parts: Vec<f64> = channels
                .iter()
                .map(|channel| {
                    let at = |place: usize| (top + place / FILTER) * side + left + place % FILTER;
                    let colour = &filter[channel.colour * area..][..area];
                    colour
                        .iter()
                        .enumerate()
                        .map(|(place, value)| value * channel.wave[at(place)])
                        .sum()
                })
                .collect();
            let variance: f64 = parts
                .iter()
                .zip(&channels)
                .map(|(part, channel)| part * part * channel.variance)
                .sum();
            for (input, (part, channel)) in parts.iter().zip(&channels).enumerate() {
                let weight = part / (channel.scale() * gain * variance.sqrt());
                values[input * 4 * width + stand * width + unit] = weight as f32;
            }
        }
    }
}

/// The first block's outputs, `[4 width, width]`: each the mean of one filter over its places, with a deviation near 1.
fn mean_over_places(values: &mut [f32], width: usize) {
    values.fill(0.0);
    for (unit, row) in values.chunks_exact_mut(width).enumerate() {
        let channel = unit % width;
        if channel < width - WAVES {
            row[channel] = (1.0 / (STANDS as f64 * LEVEL[1])) as f32;
        }
    }
}

/// A two-dimensional cosine of unit length over a patch.
fn cosine([across, down]: [usize; 2], side: usize) -> Vec<f64> {
    let one = |frequency: usize, at: usize| {
        let length = if frequency == 0 { 1.0 } else { 2.0 } / side as f64;
        length.sqrt() * (PI * frequency as f64 * (at as f64 + 0.5) / side as f64).cos()
    };
    (0..side * side)
        .map(|at| one(across, at % side) * one(down, at / side))
        .collect()
}

/// The variance of a filter's product with patches of one colour, all colours together.
fn variance(filter: &[f64], side: usize, planes: &[f32]) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for plane in planes.chunks_exact(SIDE * SIDE) {
        for (top, left) in (0..SIDE / side).flat_map(|y| (0..SIDE / side).map(move |x| (y, x))) {
            let product: f64 = filter
                .chunks_exact(side)
                .enumerate()
                .flat_map(|(y, row)| {
                    let from = &plane[(top * side + y) * SIDE + left * side..][..side];
                    row.iter().zip(from).map(|(a, &b)| a * f64::from(b))
                })
                .sum();
            count += 1.0;
            sum += product;
            squares += product * product;
        }
    }
    squares / count - (sum / count) * (sum / count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic::MicroSet;
    use crate::seed::Seed;

    /// Attention weights of a head at the start, of the patch at a place, over all tokens with the class token first.
    fn attention(head: usize, [column, row]: [usize; 2]) -> Vec<f64> {
        let (width, side) = (64, 8);
        let mut values = vec![0.0; width * 3 * width];
        heads(&mut values, width, 0);
        let tokens = positions(side * side + 1, width);
        let product = |token: usize, part: usize| -> Vec<f64> {
            (0..WAVES)
                .map(|at| {
                    let output = part * width + head * WAVES + at;
                    (0..width)
                        .map(|input| {
                            f64::from(
                                tokens[token * width + input] * values[input * 3 * width + output],
                            )
                        })
                        .sum()
                })
                .collect()
        };
        let query = product(1 + row * side + column, 0);
        let scores: Vec<f64> = (0..=side * side)
            .map(|token| {
                let key = product(token, 1);
                let score: f64 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                (score / (WAVES as f64).sqrt()).exp()
            })
            .collect();
        let sum: f64 = scores.iter().sum();
        scores.iter().map(|score| score / sum).collect()
    }

    #[test]
    fn a_head_looks_at_its_offset() {
        for (head, [across, down]) in OFFSETS.into_iter().enumerate() {
            let weights = attention(head, [3, 4]);
            let place = 1 + (4 + i64::from(down)) * 8 + 3 + i64::from(across);
            let there = weights[place as usize];
            assert!(there > 0.75, "head {head}: {there}");
        }
    }

    #[test]
    fn the_class_token_has_no_place() {
        let tokens = positions(65, 48);
        assert!(tokens[..48].iter().all(|&value| value == 0.0));
        for token in tokens.chunks_exact(48).skip(1) {
            let square: f32 = token.iter().map(|value| value * value).sum();
            assert!((square - 4.0).abs() < 1e-5, "{square}");
        }
    }

    #[test]
    fn cosines_are_a_basis_of_unit_length() {
        let side = 4;
        let all: Vec<Vec<f64>> = (0..16).map(|at| cosine([at % 4, at / 4], side)).collect();
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                let product: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((product - expected).abs() < 1e-12, "{i} {j}: {product}");
            }
        }
    }

    /// The tokens of images as they enter the first block.
    fn tokens(width: usize, planes: &[f32]) -> Vec<Vec<f64>> {
        let area = PATCH * PATCH;
        let mut filters = vec![0.0; width * CHANNELS * area];
        embedding(&mut filters, [width, PATCH], planes);
        let grid = SIDE / PATCH;
        let places = positions(grid * grid + 1, width);
        let mut tokens = Vec::new();
        for image in planes.chunks_exact(PIXELS) {
            for place in 0..grid * grid {
                let corner = place / grid * PATCH * SIDE + place % grid * PATCH;
                let pixel = |at: usize| {
                    let (colour, at) = (at / area, at % area);
                    image[colour * SIDE * SIDE + corner + at / PATCH * SIDE + at % PATCH]
                };
                let token =
                    filters
                        .chunks_exact(CHANNELS * area)
                        .enumerate()
                        .map(|(channel, filter)| {
                            let sum: f32 = filter
                                .iter()
                                .enumerate()
                                .map(|(at, value)| value * pixel(at))
                                .sum();
                            f64::from(sum + places[(place + 1) * width + channel])
                        });
                tokens.push(token.collect());
            }
        }
        tokens
    }

    fn deviation(values: impl Iterator<Item = f64>) -> f64 {
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for value in values {
            count += 1.0;
            sum += value;
            squares += value * value;
        }
        (squares / count - (sum / count) * (sum / count)).sqrt()
    }

    #[test]
    fn the_first_hidden_units_answer_with_a_deviation_near_one() {
        let width = 48;
        let planes = MicroSet::TRAIN.normalized(&(0..100).collect::<Vec<_>>());
        let tokens = tokens(width, &planes);
        for channel in 0..width - WAVES {
            let found = deviation(tokens.iter().map(|token| token[channel]));
            assert!((0.15..=0.31).contains(&found), "channel {channel}: {found}");
        }
        let mut stream = Seed(3).stream("test");
        let mut weights: Vec<f32> = (0..4 * width * width)
            .map(|_| stream.unit() - 0.5)
            .collect();
        convolution(&mut weights, width, &planes);
        let normed: Vec<Vec<f64>> = tokens
            .iter()
            .map(|token| {
                let mean = token.iter().sum::<f64>() / width as f64;
                let spread = deviation(token.iter().copied());
                token.iter().map(|value| (value - mean) / spread).collect()
            })
            .collect();
        for unit in (0..4 * width).step_by(7) {
            let answer = |token: &Vec<f64>| -> f64 {
                let weight = |input: usize| f64::from(weights[input * 4 * width + unit]);
                token
                    .iter()
                    .enumerate()
                    .map(|(input, value)| value * weight(input))
                    .sum()
            };
            let found = deviation(normed.iter().map(answer));
            assert!((0.5..=2.0).contains(&found), "unit {unit}: {found}");
        }
    }
}

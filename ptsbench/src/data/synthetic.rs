//! The micro set: 20 classes of procedural 32 x 32 RGB images, made when asked for and stored nowhere.
//!
//! A class is a shape and a texture (striped ring, dotted square). Everything else varies within each class: colours,
//! contrast, place, size, aspect, the orientations of shape and texture, the texture's period, the background, clutter
//! behind and in front, noise. Colour, brightness or place alone therefore tell next to nothing, and no class depends on
//! handedness: a mirrored image keeps its label.
//!
//! Images are drawn in integers only (fixed point, no trigonometry: a direction is a random vector divided by its integer
//! root), each from a [stream](Seed::stream) named by split and index: the bytes are the same on every machine, in every
//! order and on any number of threads. Only [`normalized`](MicroSet::normalized) has floats, one table look-up per pixel.

pub mod detection;
pub mod generation;

use rayon::prelude::*;

use crate::seed::{Seed, Stream};

/// Measurement version of the set: raised whenever a byte of it may change.
pub const VERSION: u32 = 1;
/// Width and height, pixels.
pub const SIDE: usize = 32;
/// Colour planes: red, green, blue.
pub const CHANNELS: usize = 3;
/// Bytes of an image.
pub const PIXELS: usize = CHANNELS * SIDE * SIDE;
/// Number of classes.
pub const CLASSES: usize = SHAPES.len() * TEXTURES.len();
/// Names of the classes; a label is a place in this list.
pub const CLASS_NAMES: [&str; CLASSES] = [
    "plain disc",
    "striped disc",
    "checked disc",
    "dotted disc",
    "plain square",
    "striped square",
    "checked square",
    "dotted square",
    "plain triangle",
    "striped triangle",
    "checked triangle",
    "dotted triangle",
    "plain cross",
    "striped cross",
    "checked cross",
    "dotted cross",
    "plain ring",
    "striped ring",
    "checked ring",
    "dotted ring",
];
/// Mean of each colour plane over the training split, of values in [0, 1].
pub const MEAN: [f32; CHANNELS] = [0.5; CHANNELS];
/// Standard deviation of each colour plane over the training split.
pub const STD: [f32; CHANNELS] = [0.2865; CHANNELS];

/// Part of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// For training and calibration.
    Train,
    /// For choices: how wide networks are and how long they are trained.
    Validation,
    /// For evaluation, and for nothing that is chosen.
    Test,
}

impl Split {
    /// Number of images, a multiple of [`CLASSES`].
    pub const fn len(self) -> usize {
        match self {
            Self::Train => 20_000,
            Self::Validation | Self::Test => 4_000,
        }
    }

    /// Never: every split holds images.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Its name in streams and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// One image and its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Red plane, green plane, blue plane, each row by row (CHW).
    pub pixels: [u8; PIXELS],
    /// Place in [`CLASS_NAMES`].
    pub label: u8,
}

/// One split of the micro set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicroSet {
    /// Which.
    pub split: Split,
}

impl MicroSet {
    /// The training split.
    pub const TRAIN: Self = Self {
        split: Split::Train,
    };
    /// The validation split.
    pub const VALIDATION: Self = Self {
        split: Split::Validation,
    };
    /// The test split.
    pub const TEST: Self = Self { split: Split::Test };

    /// Number of images.
    pub const fn len(self) -> usize {
        self.split.len()
    }

    /// Never: every split holds images.
    pub const fn is_empty(self) -> bool {
        self.split.is_empty()
    }

    /// The class of an image. Classes take turns, so every multiple of 20 first images is balanced.
    pub const fn label(self, index: usize) -> u8 {
        (index % CLASSES) as u8
    }

    /// Draws an image.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn image(self, index: usize) -> Image {
        assert!(
            index < self.len(),
            "image {index} of {} {} images",
            self.len(),
            self.split.name()
        );
        self.drawn(index)
    }

    fn drawn(self, index: usize) -> Image {
        let purpose = format!("micro.v{VERSION}.{}.{index}", self.split.name());
        let label = self.label(index);
        Image {
            pixels: draw(&mut Seed(0).stream(&purpose), label as usize),
            label,
        }
    }

    /// Images as bytes, one after the other.
    ///
    /// # Shapes
    /// `[indices, 3, 32, 32]`
    pub fn bytes(self, indices: &[usize]) -> Vec<u8> {
        let mut out = vec![0; indices.len() * PIXELS];
        out.par_chunks_exact_mut(PIXELS)
            .zip(indices)
            .for_each(|(out, &index)| out.copy_from_slice(&self.image(index).pixels));
        out
    }

    /// Images of the training stream as bytes. It has no end; the training split is its beginning.
    ///
    /// # Shapes
    /// `[indices, 3, 32, 32]`
    pub fn stream_bytes(indices: std::ops::Range<usize>) -> Vec<u8> {
        let mut out = vec![0; indices.len() * PIXELS];
        out.par_chunks_exact_mut(PIXELS)
            .zip(indices)
            .for_each(|(out, index)| out.copy_from_slice(&Self::TRAIN.drawn(index).pixels));
        out
    }

    /// Images as a network takes them: (value / 255 - [`MEAN`]) / [`STD`].
    ///
    /// # Shapes
    /// `[indices, 3, 32, 32]`
    pub fn normalized(self, indices: &[usize]) -> Vec<f32> {
        normalize(&self.bytes(indices))
    }

    /// The classes of images.
    pub fn labels(self, indices: &[usize]) -> Vec<u8> {
        indices.iter().map(|&index| self.label(index)).collect()
    }
}

/// Bytes of whole images as a network takes them: by colour, less the mean, over the deviation.
pub fn normalize(bytes: &[u8]) -> Vec<f32> {
    let levels: [[f32; 256]; CHANNELS] = std::array::from_fn(|channel| {
        std::array::from_fn(|value| (value as f32 / 255.0 - MEAN[channel]) / STD[channel])
    });
    let mut out = vec![0.0; bytes.len()];
    out.par_chunks_mut(PIXELS)
        .zip(bytes.par_chunks(PIXELS))
        .for_each(|(out, image)| {
            for (at, (out, &value)) in out.iter_mut().zip(image).enumerate() {
                *out = levels[at / (SIDE * SIDE)][usize::from(value)];
            }
        });
    out
}

// ---- what an image consists of -----------------------------------------------------------------------------------------
//
// Lengths are in 1/16 pixel (`PX`), the image's own coordinates run from 0 to 512. Local coordinates of a shape or texture
// are in 1/1024 of its radius or period (`ONE`).

const PX: i32 = 16;
const ONE: i32 = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Disc,
    Square,
    Triangle,
    Cross,
    Ring,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Texture {
    Plain,
    Stripes,
    Checks,
    Dots,
}

const SHAPES: [Shape; 5] = [
    Shape::Disc,
    Shape::Square,
    Shape::Triangle,
    Shape::Cross,
    Shape::Ring,
];
const TEXTURES: [Texture; 4] = [
    Texture::Plain,
    Texture::Stripes,
    Texture::Checks,
    Texture::Dots,
];

/// Colour as red, green, blue, 0 to 255.
type Colour = [i32; CHANNELS];

/// How hard the set is. Chosen so that the micro networks end between 85 and 95 %.
mod difficulty {
    use super::PX;

    /// Radius of the figure that names the class.
    pub const FIGURE: (i32, i32) = (8 * PX, 13 * PX);
    /// Distance of its centre from the image's, along each axis.
    pub const OFF_CENTRE: i32 = 4 * PX;
    /// Least distance between the colours of figure, texture and background: summed over channels.
    pub const CONTRAST: (i32, i32) = (80, 200);
    /// Height of the pattern on the background, up to this much up or down.
    pub const GROUND: i32 = 24;
    /// Number and radius of the scraps behind the figure.
    pub const BEHIND: ((i32, i32), (i32, i32)) = ((3, 8), (2 * PX, 4 * PX));
    /// Number and radius of the scraps in front of it.
    pub const IN_FRONT: ((i32, i32), (i32, i32)) = ((0, 4), (PX + PX / 2, 2 * PX + PX / 2));
    /// Noise of a channel; its standard deviation is 0.577 of this.
    pub const NOISE: (i32, i32) = (8, 44);
}

impl Shape {
    /// Whether it covers a point. Areas are alike, so that size does not give the shape away.
    fn covers(self, u: i32, v: i32) -> bool {
        match self {
            Self::Disc => u * u + v * v <= 900 * 900,
            Self::Square => u.abs().max(v.abs()) <= 790,
            // Equilateral: three half-planes at 560 from the centre, their normals (0, 1) and (±887, -512) / 1024.
            Self::Triangle => v <= 560 && 887 * u.abs() - 512 * v <= 560 * ONE,
            Self::Cross => u.abs().min(v.abs()) <= 350 && u.abs().max(v.abs()) <= 1000,
            Self::Ring => (480 * 480..=ONE * ONE).contains(&(u * u + v * v)),
        }
    }
}

impl Texture {
    /// Shortest and longest period: each where the pattern is visible and none told by its period alone.
    fn period(self) -> (i32, i32) {
        match self {
            Self::Plain => (PX, PX),
            Self::Stripes => (4 * PX, 7 * PX),
            Self::Checks => (6 * PX, 9 * PX),
            Self::Dots => (5 * PX, 7 * PX),
        }
    }

    /// Whether a point has the second colour.
    fn marks(self, u: i32, v: i32) -> bool {
        match self {
            Self::Plain => false,
            Self::Stripes => u & (ONE / 2) != 0,
            Self::Checks => (u ^ v) & (ONE / 2) != 0,
            Self::Dots => {
                let (u, v) = ((u & (ONE - 1)) - ONE / 2, (v & (ONE - 1)) - ONE / 2);
                u * u + v * v <= 330 * 330
            }
        }
    }
}

/// Local coordinates: a point of the image, moved, turned and scaled.
#[derive(Debug, Clone, Copy)]
struct Frame {
    centre: [i32; 2],
    /// Rows of the matrix, of 12 fractional bits.
    u: [i32; 2],
    v: [i32; 2],
}

impl Frame {
    /// A frame of random orientation whose unit is `radius` along v and `radius` x 256 / `aspect` along u.
    fn turned(stream: &mut Stream, centre: [i32; 2], radius: i32, aspect: i32) -> Self {
        let [cos, sin] = direction(stream);
        // 2^14 (direction) to 2^12 (matrix) x 2^10 (`ONE`): times 2^8.
        let [cos, sin] = [cos * 256 / radius, sin * 256 / radius];
        Self {
            centre,
            u: [cos * aspect / 256, sin * aspect / 256],
            v: [-sin, cos],
        }
    }

    fn local(&self, x: i32, y: i32) -> (i32, i32) {
        let (x, y) = (x - self.centre[0], y - self.centre[1]);
        (
            (x * self.u[0] + y * self.u[1]) >> 12,
            (x * self.v[0] + y * self.v[1]) >> 12,
        )
    }
}

/// A unit vector of uniform direction, of 14 fractional bits: a point of an annulus divided by its distance.
fn direction(stream: &mut Stream) -> [i32; 2] {
    loop {
        let [a, b] = [(); 2].map(|()| stream.between(-1024, 1024));
        let square = a * a + b * b;
        if (512 * 512..=1024 * 1024).contains(&square) {
            let norm = (square << 16).isqrt();
            return [a, b].map(|part| ((part << 22) / norm) as i32);
        }
    }
}

fn within(stream: &mut Stream, (low, high): (i32, i32)) -> i32 {
    stream.between(i64::from(low), i64::from(high)) as i32
}

/// A colour at least `contrast` away from each of `others`; one of the cube's corners always is.
fn colour(stream: &mut Stream, others: &[Colour], contrast: i32) -> Colour {
    loop {
        let colour: Colour = std::array::from_fn(|_| within(stream, (0, 255)));
        let far = |other: &Colour| {
            let distance: i32 = colour.iter().zip(other).map(|(a, b)| (a - b).abs()).sum();
            distance >= contrast
        };
        if others.iter().all(far) {
            return colour;
        }
    }
}

/// A shape filled with a texture in two colours.
struct Figure {
    shape: Shape,
    frame: Frame,
    /// Farthest any part of the shape may be from the centre.
    reach: i32,
    texture: Texture,
    weave: Frame,
    colours: [Colour; 2],
}

/// The image being painted: pixels of colours that may run over 0..=255 until noise is added.
struct Canvas([Colour; SIDE * SIDE]);

impl Canvas {
    /// A gradient between two colours under a faint pattern of any texture.
    fn ground(stream: &mut Stream, from: Colour, to: Colour) -> Self {
        let middle = SIDE as i32 * PX / 2;
        let slope = Frame::turned(stream, [middle; 2], middle, 256);
        let texture = TEXTURES[stream.below(4) as usize];
        let period = within(stream, (4 * PX, 12 * PX));
        let weave = weave(stream, period);
        let height = within(stream, (-difficulty::GROUND, difficulty::GROUND));
        let mut pixels = [[0; CHANNELS]; SIDE * SIDE];
        for (at, pixel) in pixels.iter_mut().enumerate() {
            let [x, y] = [at % SIDE, at / SIDE].map(|p| p as i32 * PX + PX / 2);
            let part = (slope.local(x, y).0 / 2 + ONE / 2).clamp(0, ONE);
            let (u, v) = weave.local(x, y);
            let mark = if texture.marks(u, v) { height } else { 0 };
            *pixel = std::array::from_fn(|c| from[c] + ((to[c] - from[c]) * part) / ONE + mark);
        }
        Self(pixels)
    }

    /// Paints a figure over what is there, four samples a pixel.
    fn paint(&mut self, figure: &Figure) {
        let span = |centre: i32| {
            let low = (centre - figure.reach).max(0) / PX;
            let high = (centre + figure.reach) / PX + 1;
            low as usize..high.clamp(0, SIDE as i32) as usize
        };
        for row in span(figure.frame.centre[1]) {
            for column in span(figure.frame.centre[0]) {
                let mut counts = [0; 2];
                for (dx, dy) in [(4, 4), (12, 4), (4, 12), (12, 12)] {
                    let (x, y) = (column as i32 * PX + dx, row as i32 * PX + dy);
                    let (u, v) = figure.frame.local(x, y);
                    if figure.shape.covers(u, v) {
                        let (u, v) = figure.weave.local(x, y);
                        counts[usize::from(figure.texture.marks(u, v))] += 1;
                    }
                }
                let [first, second] = figure.colours;
                let under = 4 - counts[0] - counts[1];
                if under < 4 {
                    let pixel = &mut self.0[row * SIDE + column];
                    *pixel = std::array::from_fn(|c| {
                        (pixel[c] * under + first[c] * counts[0] + second[c] * counts[1] + 2) >> 2
                    });
                }
            }
        }
    }

    /// Small plain shapes anywhere.
    fn scatter(&mut self, stream: &mut Stream, (count, radius): ((i32, i32), (i32, i32))) {
        for _ in 0..within(stream, count) {
            let centre = [(); 2].map(|()| within(stream, (0, SIDE as i32 * PX)));
            let radius = within(stream, radius);
            let frame = Frame::turned(stream, centre, radius, 256);
            self.paint(&Figure {
                shape: SHAPES[stream.below(5) as usize],
                frame,
                reach: radius * 3 / 2,
                texture: Texture::Plain,
                weave: frame,
                colours: [colour(stream, &[], 0); 2],
            });
        }
    }

    /// Adds noise, rounds into bytes, puts planes one after the other.
    fn develop(&self, stream: &mut Stream) -> [u8; PIXELS] {
        let noise = within(stream, difficulty::NOISE);
        let mut pixels = [0; PIXELS];
        let mut bits = 0;
        for (at, out) in pixels.iter_mut().enumerate() {
            if at % 2 == 0 {
                bits = stream.bits();
            }
            // The sum of four bytes: mean 510, standard deviation 147.8, near enough to normal.
            let sum: i32 = (bits as u32).to_le_bytes().map(i32::from).iter().sum();
            bits >>= 32;
            let value = self.0[at % (SIDE * SIDE)][at / (SIDE * SIDE)];
            *out = (value + (((sum - 510) * noise) >> 8)).clamp(0, 255) as u8;
        }
        pixels
    }
}

/// A texture's frame: any orientation, any phase.
fn weave(stream: &mut Stream, period: i32) -> Frame {
    let phase = [(); 2].map(|()| within(stream, (0, SIDE as i32 * PX)));
    Frame::turned(stream, phase, period, 256)
}

/// Draws one image of a class.
fn draw(stream: &mut Stream, label: usize) -> [u8; PIXELS] {
    let (shape, texture) = (SHAPES[label / 4], TEXTURES[label % 4]);

    let from = colour(stream, &[], 0);
    let to = from.map(|value| (value + within(stream, (-60, 60))).clamp(0, 255));
    let mut canvas = Canvas::ground(stream, from, to);
    canvas.scatter(stream, difficulty::BEHIND);

    let middle = SIDE as i32 * PX / 2;
    let centre = [(); 2]
        .map(|()| middle + within(stream, (-difficulty::OFF_CENTRE, difficulty::OFF_CENTRE)));
    let radius = within(stream, difficulty::FIGURE);
    let aspect = within(stream, (220, 300));
    let contrast = within(stream, difficulty::CONTRAST);
    let ground: Colour = std::array::from_fn(|c| (from[c] + to[c]) / 2);
    let first = colour(stream, &[ground], contrast);
    let second = colour(stream, &[ground, first], contrast);
    let frame = Frame::turned(stream, centre, radius, aspect);
    let period = within(stream, texture.period());
    canvas.paint(&Figure {
        shape,
        frame,
        reach: radius * 3 / 2,
        texture,
        weave: weave(stream, period),
        colours: [first, second],
    });

    canvas.scatter(stream, difficulty::IN_FRONT);
    canvas.develop(stream)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    #[test]
    fn bytes_are_the_same_everywhere() {
        let first: Vec<usize> = (0..1000).collect();
        assert_eq!(
            sha256(&MicroSet::TRAIN.bytes(&first)),
            "97aefcd1e45815f649f5651edb1b12c1643de8766189acfd6829ac3e35213e58"
        );
        assert_eq!(
            sha256(&MicroSet::TEST.bytes(&first)),
            "3657d9dc574a3bd05af6520f24e12b33d4324ea723ca7f21b696ad1617b67205"
        );
    }

    #[test]
    fn the_stream_begins_with_the_training_split_and_goes_on() {
        let last = MicroSet::TRAIN.len() - 1;
        let stream = MicroSet::stream_bytes(last..last + 3);
        let mut images = stream.chunks(PIXELS);
        assert!(images.next() == Some(&MicroSet::TRAIN.image(last).pixels[..]));
        let [next, one_more] = [(); 2].map(|()| images.next().unwrap());
        assert!(next != one_more && next != MicroSet::TRAIN.image(0).pixels);
        let other = MicroSet::VALIDATION.image(last % 4000).pixels;
        assert!(other != MicroSet::TEST.image(last % 4000).pixels);
    }

    #[test]
    fn neither_order_nor_threads_change_an_image() {
        let forwards: Vec<usize> = (0..100).collect();
        let backwards: Vec<usize> = (0..100).rev().collect();
        let pool = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
        };
        let one = pool(1).install(|| MicroSet::TRAIN.bytes(&forwards));
        let three = pool(3).install(|| MicroSet::TRAIN.bytes(&backwards));
        let turned: Vec<u8> = three.chunks(PIXELS).rev().flatten().copied().collect();
        assert!(one == turned);
        assert!(one[17 * PIXELS..18 * PIXELS] == MicroSet::TRAIN.image(17).pixels);
    }

    #[test]
    fn images_differ_within_and_between_splits() {
        let indices: Vec<usize> = (0..500).collect();
        let mut all = MicroSet::TRAIN.bytes(&indices);
        all.extend(MicroSet::TEST.bytes(&indices));
        let mut images: Vec<&[u8]> = all.chunks(PIXELS).collect();
        images.sort_unstable();
        images.dedup();
        assert_eq!(images.len(), 1000);
    }

    #[test]
    fn classes_are_balanced_and_named_in_order() {
        for set in [MicroSet::TRAIN, MicroSet::TEST] {
            let mut counts = [0; CLASSES];
            for index in 0..set.len() {
                counts[usize::from(set.label(index))] += 1;
            }
            assert_eq!(counts, [set.len() / CLASSES; CLASSES]);
        }
        for (label, name) in CLASS_NAMES.iter().enumerate() {
            let texture = ["plain", "striped", "checked", "dotted"][label % 4];
            let shape = format!("{:?}", SHAPES[label / 4]).to_lowercase();
            assert_eq!(*name, format!("{texture} {shape}"));
        }
    }

    #[test]
    fn the_constants_normalize_the_training_split() {
        let indices: Vec<usize> = (0..MicroSet::TRAIN.len()).step_by(7).collect();
        let values = MicroSet::TRAIN.normalized(&indices);
        for channel in 0..CHANNELS {
            let plane = values
                .chunks(SIDE * SIDE)
                .skip(channel)
                .step_by(CHANNELS)
                .flatten()
                .map(|&value| f64::from(value));
            let n = (indices.len() * SIDE * SIDE) as f64;
            let (sum, squares) =
                plane.fold((0.0, 0.0), |(sum, squares), v| (sum + v, squares + v * v));
            let mean = sum / n;
            let deviation = (squares / n - mean * mean).sqrt();
            assert!(mean.abs() < 0.02, "plane {channel}: mean {mean}");
            assert!(
                (deviation - 1.0).abs() < 0.01,
                "plane {channel}: {deviation}"
            );
        }
    }

    #[test]
    fn directions_are_unit_vectors_all_around() {
        let mut stream = Seed(1).stream("test");
        let mut quadrants = [0; 4];
        for _ in 0..4000 {
            let [cos, sin] = direction(&mut stream);
            let norm = f64::from(cos * cos + sin * sin).sqrt() / f64::from(1 << 14);
            assert!((norm - 1.0).abs() < 1e-3, "{norm}");
            quadrants[usize::from(cos < 0) * 2 + usize::from(sin < 0)] += 1;
        }
        assert!(
            quadrants.iter().all(|n| (850..1150).contains(n)),
            "{quadrants:?}"
        );
    }
}

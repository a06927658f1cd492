//! The micro detection set: textured shapes of all three COCO sizes on 160 x 160 pictures, with boxes, areas and crowds.
//!
//! A category is a shape; texture, colours, turn and place vary. Objects may hide parts of each other; box and area are
//! those of the whole object inside the picture, as an annotator would guess them. Like the classification set it is drawn
//! in integers, each picture from a stream of its own.

use super::{
    CHANNELS, Colour, Frame, ONE, PX, SHAPES, Shape, Split, TEXTURES, Texture, colour, within,
};
use crate::data::decode::Rgb;
use crate::metric::coco_ap::Truth;
use crate::seed::{Seed, Stream};

/// Measurement version of the set: raised whenever a byte of it may change.
pub const VERSION: u32 = 1;
/// Width and height in pixels.
pub const SIDE: usize = 160;
/// Names of the categories; a category's id is its place here plus 1.
pub const CATEGORIES: [&str; SHAPES.len()] = ["disc", "square", "triangle", "cross", "ring"];
/// Pictures of a split.
pub const fn pictures(split: Split) -> usize {
    match split {
        Split::Train => 4_000,
        Split::Validation | Split::Test => 1_000,
    }
}

/// One object, or a crowd of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Its place in [`CATEGORIES`].
    pub category: usize,
    /// Left, top, width, height in pixels.
    pub bbox: [usize; 4],
    /// Pixels it covers; of a crowd, those of all its members.
    pub area: usize,
    /// Many small objects under one box.
    pub crowd: bool,
}

/// A picture and what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scene {
    /// The picture.
    pub picture: Rgb,
    /// Its objects, the hindmost first.
    pub objects: Vec<Object>,
}

/// Radii of small, medium and large objects in sixteenths of a pixel; areas stay on their side of 32² and 96² pixels.
const RADII: [(i32, i32); 3] = [(5 * PX, 13 * PX), (24 * PX, 44 * PX), (74 * PX, 78 * PX)];

/// Draws a picture of a split.
pub fn scene(split: Split, index: usize) -> Scene {
    let purpose = format!("micro-detection.v{VERSION}.{}.{index}", split.name());
    let stream = &mut Seed(0).stream(&purpose);
    let mut canvas = Canvas::ground(stream);
    let mut objects: Vec<Object> = Vec::new();
    // A large object stands behind, or it would hide the rest.
    let large = stream.below(3) == 0;
    let (medium, small) = (within(stream, (0, 2)), within(stream, (1, 4)));
    let sizes = [(2, i32::from(large)), (1, medium), (0, small)];
    for (size, count) in sizes {
        for _ in 0..count {
            place(stream, &mut canvas, &mut objects, size);
        }
    }
    if stream.below(6) == 0 {
        crowd(stream, &mut canvas, &mut objects);
    }
    Scene {
        picture: canvas.develop(stream),
        objects,
    }
}

/// The objects of a scene as a scorer takes them; ids start at `first`.
pub fn truth(scene: &Scene, image: i64, first: i64) -> Vec<Truth> {
    let of = |(at, object): (usize, &Object)| Truth {
        id: first + at as i64,
        image,
        category: object.category as i64 + 1,
        bbox: object.bbox.map(|side| side as f64),
        area: object.area as f64,
        crowd: object.crowd,
    };
    scene.objects.iter().enumerate().map(of).collect()
}

/// Paints an object of a size where it covers no more than a third of another's box, if a place is found.
fn place(stream: &mut Stream, canvas: &mut Canvas, objects: &mut Vec<Object>, size: usize) {
    const TRIES: usize = 12;
    let category = stream.below(SHAPES.len() as u64) as usize;
    for _ in 0..TRIES {
        let radius = within(stream, RADII[size]);
        let edge = radius.min(SIDE as i32 * PX / 2 - PX);
        let centre = [(); 2].map(|()| within(stream, (edge, SIDE as i32 * PX - edge)));
        let frame = Frame::turned(stream, centre, radius, 256);
        let mask = Mask::of(SHAPES[category], &frame, radius);
        let Some(bbox) = mask.bbox() else {
            continue;
        };
        let free = objects.iter().all(|other| {
            // What is large may lie behind anything.
            let smaller = bbox[2..]
                .iter()
                .product::<usize>()
                .min(other.bbox[2] * other.bbox[3]);
            other.area > 96 * 96 || 3 * shared(&bbox, &other.bbox) <= smaller
        });
        if free {
            canvas.paint(stream, &mask, radius);
            objects.push(Object {
                category,
                bbox,
                area: mask.area(),
                crowd: false,
            });
            return;
        }
    }
}

/// Paints eight to fourteen small objects of one category close together.
fn crowd(stream: &mut Stream, canvas: &mut Canvas, objects: &mut Vec<Object>) {
    let category = stream.below(SHAPES.len() as u64) as usize;
    let middle = [(); 2].map(|()| within(stream, (40 * PX, (SIDE as i32 - 40) * PX)));
    let mut all = Mask(vec![0; SIDE * SIDE]);
    for _ in 0..within(stream, (8, 14)) {
        let radius = within(stream, (4 * PX, 7 * PX));
        let centre = middle.map(|middle| middle + within(stream, (-26 * PX, 26 * PX)));
        let frame = Frame::turned(stream, centre, radius, 256);
        let mask = Mask::of(SHAPES[category], &frame, radius);
        canvas.paint(stream, &mask, radius);
        for (all, one) in all.0.iter_mut().zip(&mask.0) {
            *all = (*all).max(*one);
        }
    }
    if let Some(bbox) = all.bbox() {
        objects.push(Object {
            category,
            bbox,
            area: all.area(),
            crowd: true,
        });
    }
}

/// Pixels that two boxes share.
fn shared(a: &[usize; 4], b: &[usize; 4]) -> usize {
    let side = |axis: usize| {
        let end = (a[axis] + a[axis + 2]).min(b[axis] + b[axis + 2]);
        end.saturating_sub(a[axis].max(b[axis]))
    };
    side(0) * side(1)
}

/// How much of each pixel an object covers, in quarters.
struct Mask(Vec<u8>);

impl Mask {
    fn of(shape: Shape, frame: &Frame, radius: i32) -> Self {
        let mut mask = vec![0; SIDE * SIDE];
        // No part of a shape is farther than the square's corner.
        let reach = radius * 3 / 2;
        let span = |centre: i32| {
            let low = (centre - reach).max(0) / PX;
            let high = (centre + reach) / PX + 1;
            low as usize..high.clamp(0, SIDE as i32) as usize
        };
        for row in span(frame.centre[1]) {
            for column in span(frame.centre[0]) {
                for (dx, dy) in [(4, 4), (12, 4), (4, 12), (12, 12)] {
                    let (x, y) = (column as i32 * PX + dx, row as i32 * PX + dy);
                    let (u, v) = frame.local(x, y);
                    mask[row * SIDE + column] += u8::from(shape.covers(u, v));
                }
            }
        }
        Self(mask)
    }

    /// Pixels covered at least by half.
    fn pixels(&self) -> impl Iterator<Item = (usize, usize)> {
        let covered = self
            .0
            .iter()
            .enumerate()
            .filter(|(_, quarters)| **quarters >= 2);
        covered.map(|(at, _)| (at % SIDE, at / SIDE))
    }

    fn area(&self) -> usize {
        self.pixels().count()
    }

    fn bbox(&self) -> Option<[usize; 4]> {
        let first = self.pixels().next()?;
        let start = (first.0, first.1, first.0, first.1);
        let (x0, y0, x1, y1) = self.pixels().fold(start, |(x0, y0, x1, y1), (x, y)| {
            (x0.min(x), y0.min(y), x1.max(x), y1.max(y))
        });
        Some([x0, y0, x1 - x0 + 1, y1 - y0 + 1])
    }
}

/// The picture being painted.
struct Canvas {
    pixels: Vec<Colour>,
    ground: Colour,
}

impl Canvas {
    /// A gradient between two near colours.
    fn ground(stream: &mut Stream) -> Self {
        let from = colour(stream, &[], 0);
        let to = from.map(|value| (value + within(stream, (-60, 60))).clamp(0, 255));
        let middle = SIDE as i32 * PX / 2;
        let slope = Frame::turned(stream, [middle; 2], middle, 256);
        let pixel = |at: usize| {
            let [x, y] = [at % SIDE, at / SIDE].map(|place| place as i32 * PX + PX / 2);
            let part = (slope.local(x, y).0 / 2 + ONE / 2).clamp(0, ONE);
            std::array::from_fn(|c| from[c] + (to[c] - from[c]) * part / ONE)
        };
        Self {
            pixels: (0..SIDE * SIDE).map(pixel).collect(),
            ground: std::array::from_fn(|c| (from[c] + to[c]) / 2),
        }
    }

    /// Fills a mask with a texture of two colours that differ from the ground.
    fn paint(&mut self, stream: &mut Stream, mask: &Mask, radius: i32) {
        let first = colour(stream, &[self.ground], 150);
        let second = colour(stream, &[self.ground, first], 100);
        // A texture of fewer than four pixels a period cannot be seen.
        let texture = if radius < 16 * PX {
            Texture::Plain
        } else {
            TEXTURES[stream.below(TEXTURES.len() as u64) as usize]
        };
        let phase = [(); 2].map(|()| within(stream, (0, SIDE as i32 * PX)));
        let period = within(stream, (6 * PX, 14 * PX));
        let weave = Frame::turned(stream, phase, period, 256);
        for (at, (pixel, &quarters)) in self.pixels.iter_mut().zip(&mask.0).enumerate() {
            if quarters > 0 {
                let [x, y] = [at % SIDE, at / SIDE].map(|place| place as i32 * PX + PX / 2);
                let (u, v) = weave.local(x, y);
                let paint = if texture.marks(u, v) { second } else { first };
                let part = i32::from(quarters);
                *pixel =
                    std::array::from_fn(|c| (pixel[c] * (4 - part) + paint[c] * part + 2) >> 2);
            }
        }
    }

    /// Adds noise and rounds into bytes.
    fn develop(&self, stream: &mut Stream) -> Rgb {
        let noise = within(stream, (4, 24));
        let pixels = self.pixels.iter().flat_map(|pixel| {
            let bits = stream.bits().to_le_bytes();
            std::array::from_fn::<u8, CHANNELS, _>(|c| {
                // The sum of two bytes: mean 255, standard deviation 104.5, a triangle.
                let sum = i32::from(bits[2 * c]) + i32::from(bits[2 * c + 1]);
                (pixel[c] + (((sum - 255) * noise) >> 8)).clamp(0, 255) as u8
            })
        });
        Rgb {
            width: SIDE,
            height: SIDE,
            pixels: pixels.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::coco_ap::{self, Found};

    #[test]
    fn all_sizes_categories_and_crowds_occur_and_boxes_lie_inside() {
        let (mut sizes, mut categories, mut crowds) = ([0; 3], [0; CATEGORIES.len()], 0);
        for index in 0..120 {
            let scene = scene(Split::Train, index);
            assert_eq!(scene.picture.pixels.len(), SIDE * SIDE * CHANNELS);
            for object in &scene.objects {
                let [x, y, width, height] = object.bbox;
                assert!(x + width <= SIDE && y + height <= SIDE);
                assert!(object.area > 0 && object.area <= width * height);
                categories[object.category] += 1;
                if object.crowd {
                    crowds += 1;
                } else {
                    let size =
                        usize::from(object.area > 32 * 32) + usize::from(object.area > 96 * 96);
                    sizes[size] += 1;
                }
            }
        }
        assert!(sizes.iter().all(|&count| count >= 10), "{sizes:?}");
        assert!(
            categories.iter().all(|&count| count >= 20),
            "{categories:?}"
        );
        assert!(crowds >= 5, "{crowds} crowds");
    }

    #[test]
    fn pictures_are_the_same_in_any_order_and_differ() {
        let again = scene(Split::Test, 7);
        assert_ne!(scene(Split::Test, 8), again);
        assert_ne!(scene(Split::Train, 7), again);
        assert_ne!(scene(Split::Validation, 7), again);
        assert_eq!(scene(Split::Test, 7), again);
    }

    #[test]
    fn the_truth_found_whole_scores_one() {
        let mut truth_of_all = Vec::new();
        for index in 0..20 {
            let next = truth_of_all.len() as i64 + 1;
            truth_of_all.extend(truth(&scene(Split::Test, index), index as i64, next));
        }
        let found: Vec<Found> = truth_of_all
            .iter()
            .filter(|truth| !truth.crowd)
            .map(|truth| Found {
                image: truth.image,
                category: truth.category,
                bbox: truth.bbox,
                score: 1.0,
            })
            .collect();
        let images: Vec<i64> = (0..20).collect();
        let result = coco_ap::evaluate(&images, &[1, 2, 3, 4, 5], &truth_of_all, &found).unwrap();
        assert!(
            (result.stats.ap.unwrap() - 1.0).abs() < 1e-12,
            "{:?}",
            result.stats
        );
    }
}

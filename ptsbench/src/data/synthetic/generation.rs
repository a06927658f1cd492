//! The micro generation set: one plain shape on a plain ground, 32 x 32, whose few parameters are drawn independently and
//! uniformly. The distribution is known exactly, so a generator can be judged beyond a distance of features: by the shapes,
//! places and sizes it makes.

use super::{CHANNELS, Colour, Frame, PIXELS, PX, SHAPES, SIDE, colour, within};
use crate::data::decode::Rgb;
use crate::seed::{Seed, Stream};

/// Measurement version of the set: raised whenever a byte of it may change.
pub const VERSION: u32 = 1;
/// Pictures of the training split; a generator has no test split.
pub const LEN: usize = 20_000;

/// What a picture shows. Lengths are in sixteenths of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Disc, square, triangle, cross or ring, by index: uniform.
    pub shape: usize,
    /// Centre from the left and the top: each uniform from 10 to 22 pixels.
    pub centre: [i32; 2],
    /// Uniform from 5 to 9 pixels.
    pub radius: i32,
    /// Of the ground: uniform.
    pub ground: Colour,
    /// Of the shape: uniform among colours at least 200 from the ground, summed over channels.
    pub paint: Colour,
}

/// The parameters of a picture, and its stream behind them.
fn draw(index: usize) -> (Parameters, Stream) {
    let mut stream = Seed(0).stream(&format!("micro-generation.v{VERSION}.{index}"));
    let shape = stream.below(SHAPES.len() as u64) as usize;
    let centre = [(); 2].map(|()| within(&mut stream, (10 * PX, 22 * PX)));
    let radius = within(&mut stream, (5 * PX, 9 * PX));
    let ground = colour(&mut stream, &[], 0);
    let paint = colour(&mut stream, &[ground], 200);
    let parameters = Parameters {
        shape,
        centre,
        radius,
        ground,
        paint,
    };
    (parameters, stream)
}

/// What a picture shows.
pub fn parameters(index: usize) -> Parameters {
    draw(index).0
}

/// A picture: red, green and blue plane, row by row.
pub fn image(index: usize) -> [u8; PIXELS] {
    let (parameters, mut stream) = draw(index);
    // The turn is part of the picture alone: it has no parameter worth recovering.
    let frame = Frame::turned(&mut stream, parameters.centre, parameters.radius, 256);
    let mut pixels = [0; PIXELS];
    for row in 0..SIDE {
        for column in 0..SIDE {
            let covered: i32 = [(4, 4), (12, 4), (4, 12), (12, 12)]
                .iter()
                .map(|&(dx, dy)| {
                    let (x, y) = (column as i32 * PX + dx, row as i32 * PX + dy);
                    let (u, v) = frame.local(x, y);
                    i32::from(SHAPES[parameters.shape].covers(u, v))
                })
                .sum();
            for channel in 0..CHANNELS {
                let (under, over) = (parameters.ground[channel], parameters.paint[channel]);
                let value = (under * (4 - covered) + over * covered + 2) >> 2;
                pixels[channel * SIDE * SIDE + row * SIDE + column] = value as u8;
            }
        }
    }
    pixels
}

/// The same picture with its three bytes beside each other in every pixel.
pub fn picture(index: usize) -> Rgb {
    let planes = image(index);
    let pixels = (0..SIDE * SIDE)
        .flat_map(|at| [0, 1, 2].map(|channel| planes[channel * SIDE * SIDE + at]))
        .collect();
    Rgb {
        width: SIDE,
        height: SIDE,
        pixels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::fid;

    #[test]
    fn parameters_are_spread_as_stated() {
        let all: Vec<Parameters> = (0..2_000).map(parameters).collect();
        let mean = |of: fn(&Parameters) -> i32| {
            all.iter().map(|one| f64::from(of(one))).sum::<f64>() / all.len() as f64
        };
        let pixels = f64::from(PX);
        assert!((mean(|one| one.centre[0]) / pixels - 16.0).abs() < 0.4);
        assert!((mean(|one| one.radius) / pixels - 7.0).abs() < 0.15);
        for shape in 0..SHAPES.len() {
            let count = all.iter().filter(|one| one.shape == shape).count();
            assert!((320..480).contains(&count), "{count} of shape {shape}");
        }
    }

    #[test]
    fn the_centre_has_the_shapes_colour_and_the_corner_the_grounds() {
        for index in 0..200 {
            let (parameters, image) = (parameters(index), image(index));
            let at = |x: usize, y: usize| -> Colour {
                std::array::from_fn(|c| image[c * SIDE * SIDE + y * SIDE + x].into())
            };
            assert_eq!(at(0, 0), parameters.ground);
            if parameters.shape != 4 {
                let [x, y] = parameters.centre.map(|place| (place / PX) as usize);
                assert_eq!(at(x, y), parameters.paint);
            }
        }
    }

    #[test]
    fn the_distance_is_nothing_to_itself_and_large_to_noise() {
        const WIDTH: usize = 48;
        // Means of 8 x 8 blocks stand for a network's features.
        let features = |image: &[u8]| -> Vec<f32> {
            let block = |at: usize| {
                let (channel, row, column) = (at / 16, at / 4 % 4, at % 4);
                let sum: u32 = (0..64)
                    .map(|k| {
                        let (y, x) = (row * 8 + k / 8, column * 8 + k % 8);
                        u32::from(image[channel * SIDE * SIDE + y * SIDE + x])
                    })
                    .sum();
                sum as f32 / 64.0
            };
            (0..WIDTH).map(block).collect()
        };
        let half = |from: usize| -> Vec<f32> {
            (from..from + 1_000)
                .flat_map(|at| features(&image(at)))
                .collect()
        };
        let (one, other) = (half(0), half(1_000));
        let mut stream = Seed(3).stream("noise");
        let noise: Vec<f32> = (0..1_000)
            .flat_map(|_| {
                let image: Vec<u8> = (0..PIXELS).map(|_| stream.below(256) as u8).collect();
                features(&image)
            })
            .collect();
        let distance = |a: &[f32], b: &[f32]| fid::distance_of_features(a, b, WIDTH).unwrap();
        let (itself, halves, far) = (
            distance(&one, &one),
            distance(&one, &other),
            distance(&one, &noise),
        );
        assert!(itself.abs() < 1e-6 * far, "{itself} to itself");
        assert!(
            halves < 0.05 * far,
            "{halves} between halves, {far} to noise"
        );
    }
}

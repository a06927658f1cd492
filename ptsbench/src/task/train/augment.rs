//! How training images are varied: mirrors, shifts and erased rectangles.

use rayon::prelude::*;

use crate::data::synthetic::{PIXELS, SIDE};
use crate::seed::Stream;

/// Largest shift of a training image along each axis, pixels.
const SHIFT: i64 = 2;
/// Shortest and longest side of an erased rectangle, pixels.
const ERASED: [i64; 2] = [4, 12];

/// How a training image is seen: mirrored or not (no class depends on handedness), shifted, perhaps partly erased.
#[derive(Debug, Clone, Copy)]
pub struct View {
    mirrored: bool,
    right: i64,
    down: i64,
    /// Left and upper edge, width and height of what is erased.
    erased: Option<[i64; 4]>,
}

impl View {
    /// Nothing more is drawn where nothing is ever erased: older recipes see the images they saw.
    pub fn draw(stream: &mut Stream, erasing: f64) -> Self {
        Self {
            mirrored: stream.below(2) == 1,
            right: stream.between(-SHIFT, SHIFT),
            down: stream.between(-SHIFT, SHIFT),
            erased: (erasing > 0.0 && f64::from(stream.unit()) < erasing).then(|| {
                let [width, height] = [(); 2].map(|()| stream.between(ERASED[0], ERASED[1]));
                let [left, top] = [width, height].map(|size| stream.between(0, SIDE as i64 - size));
                [left, top, width, height]
            }),
        }
    }

    /// One plane; what comes in from outside is the mean, 0.
    fn plane(self, from: &[f32], to: &mut [f32]) {
        let side = SIDE as i64;
        // The part of a row that has a source.
        let inside = [self.right, self.right + side].map(|end| end.clamp(0, side) as usize);
        for (row, to) in to.chunks_exact_mut(SIDE).enumerate() {
            to.fill(0.0);
            let y = row as i64 - self.down;
            if !(0..side).contains(&y) {
                continue;
            }
            let from = &from[y as usize * SIDE..][..SIDE];
            for (at, to) in (inside[0]..inside[1]).zip(&mut to[inside[0]..inside[1]]) {
                let x = (at as i64 - self.right) as usize;
                *to = from[if self.mirrored { SIDE - 1 - x } else { x }];
            }
        }
        if let Some([left, top, width, height]) = self.erased.map(|sides| sides.map(|n| n as usize))
        {
            for row in to.chunks_exact_mut(SIDE).skip(top).take(height) {
                row[left..left + width].fill(0.0);
            }
        }
    }
}

/// Images, each as its view shows it.
pub fn augmented(pixels: &[f32], views: &[View]) -> Vec<f32> {
    let mut out = vec![0.0; pixels.len()];
    out.par_chunks_exact_mut(PIXELS)
        .zip(pixels.par_chunks_exact(PIXELS))
        .zip(views)
        .for_each(|((out, image), view)| {
            let planes = out.chunks_exact_mut(SIDE * SIDE);
            for (to, from) in planes.zip(image.chunks_exact(SIDE * SIDE)) {
                view.plane(from, to);
            }
        });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    #[test]
    fn views_mirror_and_shift() {
        let plane: Vec<f32> = (0..SIDE * SIDE).map(|at| at as f32 + 1.0).collect();
        let mut seen = vec![f32::NAN; SIDE * SIDE];
        let mut view = View {
            mirrored: false,
            right: 2,
            down: -1,
            erased: None,
        };
        view.plane(&plane, &mut seen);
        assert_eq!(seen[10 * SIDE + 7], plane[11 * SIDE + 5]);
        assert_eq!(seen[10 * SIDE + 1], 0.0);
        assert_eq!(seen[31 * SIDE + 7], 0.0);
        view.mirrored = true;
        view.plane(&plane, &mut seen);
        assert_eq!(seen[10 * SIDE + 7], plane[11 * SIDE + 31 - 5]);
    }

    #[test]
    fn erased_rectangles_lie_inside_and_are_the_mean() {
        let plane = vec![1.0; SIDE * SIDE];
        let mut stream = Seed(7).stream("test");
        let mut erased = 0;
        for _ in 0..200 {
            let view = View {
                right: 0,
                down: 0,
                ..View::draw(&mut stream, 0.25)
            };
            let mut seen = vec![f32::NAN; SIDE * SIDE];
            view.plane(&plane, &mut seen);
            let gone = seen.iter().filter(|&&value| value == 0.0).count();
            match view.erased {
                Some([_, _, width, height]) => {
                    assert_eq!(gone, (width * height) as usize);
                    erased += 1;
                }
                None => assert_eq!(gone, 0),
            }
        }
        assert!((25..=75).contains(&erased), "{erased} of 200");
    }
}

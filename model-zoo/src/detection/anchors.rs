//! The boxes that detectors start from: SSD's priors and RetinaNet's anchors.
//!
//! References: the MobileNet-SSD release (priors), torchvision's anchor generator (anchors); equal to both bit for bit.

/// One feature map of SSD: cells on a side, pixels from one cell to the next, sides of the small and the large square.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PriorMap {
    /// Cells on a side.
    pub cells: usize,
    /// Pixels from one cell to the next; it need not divide the side.
    pub stride: f64,
    /// Side of the small square in pixels.
    pub small: f64,
    /// The large square's side is the geometric mean of this and the small one.
    pub large: f64,
}

/// Where an SSD expects boxes: six maps of an input of one size.
#[derive(Debug, PartialEq)]
pub struct Priors {
    /// Side of the input in pixels.
    pub side: usize,
    /// The maps, finest first.
    pub maps: [PriorMap; 6],
}

const fn map(cells: usize, stride: f64, small: f64, large: f64) -> PriorMap {
    PriorMap {
        cells,
        stride,
        small,
        large,
    }
}

impl Priors {
    /// Of MobileNetV1 SSD and MobileNetV2 SSD-Lite.
    pub const RELEASE: Self = Self {
        side: 300,
        maps: [
            map(19, 16.0, 60.0, 105.0),
            map(10, 32.0, 105.0, 150.0),
            map(5, 64.0, 150.0, 195.0),
            map(3, 100.0, 195.0, 240.0),
            map(2, 150.0, 240.0, 285.0),
            map(1, 300.0, 285.0, 330.0),
        ],
    };
    /// Of the built-in networks: the same steps of 15 % of the side, from half the release's smallest, since objects of the
    /// scenes are smaller.
    pub const MICRO: Self = Self {
        side: 160,
        maps: [
            map(20, 8.0, 16.0, 40.0),
            map(10, 16.0, 40.0, 64.0),
            map(5, 32.0, 64.0, 88.0),
            map(3, 160.0 / 3.0, 88.0, 112.0),
            map(2, 80.0, 112.0, 136.0),
            map(1, 160.0, 136.0, 160.0),
        ],
    };

    /// Those for inputs of this side.
    pub fn of_side(side: usize) -> Option<&'static Self> {
        [&Self::RELEASE, &Self::MICRO]
            .into_iter()
            .find(|priors| priors.side == side)
    }

    /// As centre x, centre y, width, height in shares of the side, clamped to 0 and 1: by map, row, column and shape. Computed
    /// in f64 and rounded once.
    pub fn boxes(&self) -> Vec<[f32; 4]> {
        let side = self.side as f64;
        let mut priors = Vec::new();
        for map in &self.maps {
            let scale = side / map.stride;
            let small = map.small / side;
            let large = (map.large * map.small).sqrt() / side;
            let mut shapes = vec![(small, small), (large, large)];
            for ratio in [2.0_f64, 3.0] {
                let root = ratio.sqrt();
                shapes.extend([(small * root, small / root), (small / root, small * root)]);
            }
            for row in 0..map.cells {
                for column in 0..map.cells {
                    let centre = |cell: usize| (cell as f64 + 0.5) / scale;
                    priors.extend(shapes.iter().map(|&(width, height)| {
                        [centre(column), centre(row), width, height]
                            .map(|value| (value as f32).clamp(0.0, 1.0))
                    }));
                }
            }
        }
        priors
    }
}

/// Shapes around the origin at each pyramid level, as left, top, right, bottom in pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct AnchorShapes {
    levels: Vec<Vec<[f32; 4]>>,
}

impl AnchorShapes {
    /// Shapes of the given sides and height-to-width ratios by level, by ratio then side; rounded to whole pixels, halves
    /// to even.
    pub fn new(levels: &[(&[f32], &[f32])]) -> Self {
        let shapes = |(sides, ratios): &(&[f32], &[f32])| {
            let mut shapes = Vec::new();
            for ratio in *ratios {
                let tall = ratio.sqrt();
                let wide = 1.0 / tall;
                for side in *sides {
                    let (width, height) = (wide * side, tall * side);
                    let corners = [-width, -height, width, height];
                    shapes.push(corners.map(|corner| (corner / 2.0).round_ties_even()));
                }
            }
            shapes
        };
        Self {
            levels: levels.iter().map(shapes).collect(),
        }
    }

    /// RetinaNet's: sides of 32 to 512 with two steps of a third of an octave, ratios 1/2, 1 and 2.
    pub fn retinanet() -> Self {
        Self::retinanet_from(32)
    }

    /// RetinaNet's for smaller or larger objects: `side` is the smallest one, and twice as much on each level.
    pub fn retinanet_from(side: usize) -> Self {
        let sides = [1.0_f64, 2.0, 4.0, 8.0, 16.0].map(|level| {
            let side = side as f64 * level;
            [0.0, 1.0, 2.0].map(|third| (side * (third / 3.0_f64).exp2()).trunc() as f32)
        });
        let levels: Vec<(&[f32], &[f32])> = sides
            .iter()
            .map(|sides| (sides.as_slice(), [0.5, 1.0, 2.0].as_slice()))
            .collect();
        Self::new(&levels)
    }

    /// The shapes of each level.
    pub fn levels(&self) -> &[Vec<[f32; 4]>] {
        &self.levels
    }

    /// All anchors of a padded batch of `[height, width]` pixels whose level `k` has `grids[k]` cells, `[rows, columns]`:
    /// by level, row, column and shape. The stride is the padded size divided by the cells, rounded down, so it is a
    /// power of two only where the cells divide the size.
    pub fn on(&self, padded: [usize; 2], grids: &[[usize; 2]]) -> Vec<[f32; 4]> {
        assert_eq!(grids.len(), self.levels.len(), "one grid for each level");
        let mut anchors = Vec::new();
        for (shapes, [rows, columns]) in self.levels.iter().zip(grids) {
            let (down, across) = (padded[0] / rows, padded[1] / columns);
            for row in 0..*rows {
                for column in 0..*columns {
                    let (x, y) = ((column * across) as f32, (row * down) as f32);
                    anchors.extend(
                        shapes
                            .iter()
                            .map(|[x0, y0, x1, y1]| [x0 + x, y0 + y, x1 + x, y1 + y]),
                    );
                }
            }
        }
        anchors
    }
}

/// Rows and columns of the five levels of RetinaNet's pyramid over a padded image: an eighth of it, and half on each
/// further level, rounded up.
pub fn pyramid(padded: [usize; 2]) -> [[usize; 2]; 5] {
    std::array::from_fn(|level| padded.map(|side| side.div_ceil(8 << level).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_six_priors_a_cell() {
        for priors in [Priors::RELEASE, Priors::MICRO] {
            let cells: usize = priors.maps.iter().map(|map| map.cells * map.cells).sum();
            assert_eq!(priors.boxes().len(), 6 * cells);
            assert_eq!(Priors::of_side(priors.side), Some(&priors));
        }
    }

    #[test]
    fn anchors_of_one_cell_are_its_shapes() {
        let shapes = AnchorShapes::new(&[(&[10.0, 20.0], &[1.0])]);
        assert_eq!(shapes.on([8, 8], &[[1, 1]]), shapes.levels()[0]);
        let two = shapes.on([8, 9], &[[1, 2]]);
        assert_eq!(two[2], [-5.0 + 4.0, -5.0, 5.0 + 4.0, 5.0]);
    }
}

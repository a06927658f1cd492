//! From a picture to a network's input. A recipe belongs to a weight file: the same network under another recipe has
//! another accuracy.

pub mod boxes;

use std::fmt;
use std::str::FromStr;

use model_zoo::catalog::Spec;
use model_zoo::catalog::origin::{Interpolation, Preprocess};

use crate::data::decode::{Rgb, Rotation};
use crate::data::resize::{self, Filter, Window};
use crate::data::synthetic;

/// Mean and standard deviation of each channel, for values from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// Subtracted, by channel.
    pub mean: [f32; 3],
    /// Divided by, by channel.
    pub std: [f32; 3],
}

/// ImageNet's, as torchvision and timm use them.
pub const IMAGENET: Statistics = Statistics {
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
};
/// One half for everything: the ViT checkpoints trained on ImageNet-21k.
pub const HALF: Statistics = Statistics {
    mean: [0.5; 3],
    std: [0.5; 3],
};
/// CIFAR-10's, with the deviations that the published networks were trained with.
pub const CIFAR10: Statistics = Statistics {
    mean: [0.4914, 0.4822, 0.4465],
    std: [0.2023, 0.1994, 0.2010],
};
/// CIFAR-100's.
pub const CIFAR100: Statistics = Statistics {
    mean: [0.5070, 0.4865, 0.4409],
    std: [0.2673, 0.2564, 0.2761],
};

impl Statistics {
    /// Refuses numbers that no picture can be normalised with.
    pub fn sound(&self) -> Result<(), String> {
        let Self { mean, std } = self;
        if !mean.iter().all(|mean| mean.is_finite()) {
            return Err(format!("mean is {mean:?}; give three finite numbers"));
        }
        if !std.iter().all(|std| std.is_finite() && *std > 0.0) {
            return Err(format!("std is {std:?}; give three numbers above 0"));
        }
        Ok(())
    }

    /// Normalised values of all bytes for one channel, in the reference's order of f32 operations.
    fn table(&self, channel: usize) -> [f32; 256] {
        std::array::from_fn(|byte| (byte as f32 / 255.0 - self.mean[channel]) / self.std[channel])
    }

    /// Channel by channel, row by row: `3 * height * width` normalised values.
    pub fn normalize(&self, picture: &Rgb) -> Vec<f32> {
        let mut out = Vec::with_capacity(picture.pixels.len());
        self.normalize_onto(picture, &mut out);
        out
    }

    /// Appends the normalised values to a batch.
    pub fn normalize_onto(&self, picture: &Rgb, out: &mut Vec<f32>) {
        for channel in 0..3 {
            let table = self.table(channel);
            let pixels = picture.pixels.as_chunks::<3>().0.iter();
            out.extend(pixels.map(|pixel| table[usize::from(pixel[channel])]));
        }
    }
}

/// The longest side that a recipe may ask for: no classifier has a larger input.
const LARGEST: usize = 4096;

/// How pictures reach a classifier: resize the shorter side, cut the centre, normalise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// The shorter side after resizing; at least `crop`.
    pub short: usize,
    /// Pillow's filter.
    pub filter: Filter,
    /// Side of the square cut out.
    pub crop: usize,
    /// Whether both sides are resized to `short`, whatever the picture's proportions are.
    pub squash: bool,
    /// Normalisation.
    pub statistics: Statistics,
}

impl From<&Preprocess> for Recipe {
    /// What belongs to a catalog network's public weights.
    fn from(origin: &Preprocess) -> Self {
        Self {
            short: origin.resize,
            filter: match origin.interpolation {
                Interpolation::Bilinear => Filter::Bilinear,
                Interpolation::Bicubic => Filter::Bicubic,
            },
            crop: origin.crop,
            squash: false,
            statistics: Statistics {
                mean: origin.mean,
                std: origin.std,
            },
        }
    }
}

/// The recipe as records hold it: every number that can change a pixel.
impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filter = match self.filter {
            Filter::Bilinear => Interpolation::Bilinear,
            Filter::Bicubic => Interpolation::Bicubic,
        };
        let Statistics { mean, std } = self.statistics;
        let side = if self.squash { BOTH } else { SHORTER };
        write!(
            f,
            "{side} {} {filter}, crop {}, mean {mean:?}, std {std:?}",
            self.short, self.crop
        )
    }
}

/// Three numbers as a list writes them.
fn three(text: &str) -> Option<[f32; 3]> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let values: Option<Vec<f32>> = inner.split(", ").map(|value| value.parse().ok()).collect();
    values?.try_into().ok()
}

/// How recipes begin that keep a picture's proportions.
const SHORTER: &str = "shorter side";
/// How those begin that do not.
const BOTH: &str = "both sides";

/// A text that is not a recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a recipe as records write it")]
pub struct NotARecipe(pub String);

/// What [`Display`](fmt::Display) writes: a cell is measured as it says.
impl FromStr for Recipe {
    type Err = NotARecipe;

    fn from_str(text: &str) -> Result<Self, NotARecipe> {
        let read = || {
            let (squash, rest) = match text.strip_prefix(BOTH) {
                Some(rest) => (true, rest),
                None => (false, text.strip_prefix(SHORTER)?),
            };
            let (resize, rest) = rest.split_once(", crop ")?;
            let (crop, rest) = rest.split_once(", mean ")?;
            let (mean, std) = rest.split_once(", std ")?;
            let (short, filter) = resize.strip_prefix(' ')?.split_once(' ')?;
            let recipe = Self {
                short: short.parse().ok()?,
                filter: match filter {
                    "bilinear" => Filter::Bilinear,
                    "bicubic" => Filter::Bicubic,
                    _ => return None,
                },
                crop: crop.parse().ok()?,
                squash,
                statistics: Statistics {
                    mean: three(mean)?,
                    std: three(std)?,
                },
            };
            recipe.sound().ok()?;
            Some(recipe)
        };
        read().ok_or_else(|| NotARecipe(text.to_owned()))
    }
}

impl Recipe {
    /// The built-in images': as they are.
    pub const MICRO: Self = Self {
        short: synthetic::SIDE,
        filter: Filter::Bilinear,
        crop: synthetic::SIDE,
        squash: false,
        statistics: Statistics {
            mean: synthetic::MEAN,
            std: synthetic::STD,
        },
    };

    /// The recipe of a network's weights: the one published with them or, for networks of the built-in images, the
    /// network's own size and the built-in statistics.
    pub fn of(spec: &Spec) -> Self {
        match spec.origin().and_then(|origin| origin.preprocess.as_ref()) {
            Some(preprocess) => Self::from(preprocess),
            None => Self {
                short: spec.input[1],
                crop: spec.input[1],
                ..Self::MICRO
            },
        }
    }

    /// Refuses numbers that no picture can be prepared with.
    pub fn sound(&self) -> Result<(), String> {
        if !(1..=LARGEST).contains(&self.crop) {
            return Err(format!(
                "an input of {0} x {0} pixels; give a side from 1 to {LARGEST}",
                self.crop
            ));
        }
        if !(self.crop..=LARGEST).contains(&self.short) {
            return Err(format!(
                "pictures are resized to {}, and {} are cut out of them; give at least that, and at most {LARGEST}",
                self.short, self.crop
            ));
        }
        self.statistics.sound()
    }

    /// Width and height after resizing: the longer side is truncated, and never below the crop.
    pub fn resized(&self, width: usize, height: usize) -> (usize, usize) {
        if self.squash {
            return (self.short, self.short);
        }
        let long =
            |long: usize, short: usize| (self.short as u64 * long as u64 / short as u64) as usize;
        if width <= height {
            (self.short, long(height, width))
        } else {
            (long(width, height), self.short)
        }
    }

    /// Left and top of the crop in a resized picture: half the margin, halves to even.
    pub fn corner(&self, width: usize, height: usize) -> (usize, usize) {
        let half = |margin: usize| margin / 2 + usize::from(margin % 4 == 3);
        (half(width - self.crop), half(height - self.crop))
    }

    /// The bytes that are normalised.
    pub fn cropped(&self, picture: &Rgb) -> Rgb {
        let (width, height) = self.resized(picture.width, picture.height);
        let (left, top) = self.corner(width, height);
        let window = Window {
            left,
            top,
            width: self.crop,
            height: self.crop,
        };
        resize::pillow_window(picture, width, height, self.filter, window)
    }

    /// The network's input: channels, rows, columns.
    pub fn apply(&self, picture: &Rgb) -> Vec<f32> {
        self.statistics.normalize(&self.cropped(picture))
    }
}

/// The MobileNet-SSD release: OpenCV's upright picture at 300 x 300, `(value - 127) / 128`.
pub mod ssd {
    use super::{Rgb, Rotation, resize};

    /// OpenCV turns pictures upright.
    pub const ROTATION: Rotation = Rotation::Apply;

    /// The bytes that are normalised, for an input of this side.
    pub fn resized(picture: &Rgb, side: usize) -> Rgb {
        resize::opencv_linear(picture, side, side)
    }

    /// The network's input: channels, rows, columns.
    pub fn apply(picture: &Rgb, side: usize) -> Vec<f32> {
        let picture = resized(picture, side);
        (0..3)
            .flat_map(|channel| {
                let pixels = picture.pixels.as_chunks::<3>().0.iter();
                pixels.map(move |pixel| (f32::from(pixel[channel]) - 127.0) / 128.0)
            })
            .collect()
    }
}

/// torchvision's RetinaNet: normalise, resize as floats, pad to multiples of 32.
pub mod retinanet {
    use super::{Rgb, Statistics, resize};

    /// The sides a detector resizes to.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Sides {
        /// The shorter side, unless the longer one forbids.
        pub short: usize,
        /// The longer side at most.
        pub long: usize,
    }

    /// 800 by at most 1333.
    pub const SIDES: Sides = Sides {
        short: 800,
        long: 1333,
    };

    /// Sides are padded to multiples of this.
    pub const STRIDE: usize = 32;

    /// One picture, normalised and resized: `3 * height * width` values, not yet padded.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Sized {
        /// Columns.
        pub width: usize,
        /// Rows.
        pub height: usize,
        /// Channels, rows, columns.
        pub values: Vec<f32>,
    }

    /// Pictures of one size with zeros at the right and bottom.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Batch {
        /// Columns of each picture.
        pub width: usize,
        /// Rows of each picture.
        pub height: usize,
        /// Pictures, channels, rows, columns.
        pub values: Vec<f32>,
    }

    impl Sides {
        /// Width and height of a resized picture, truncated after a product in f64.
        pub fn resized(self, width: usize, height: usize) -> (usize, usize) {
            let (short, long) = (width.min(height), width.max(height));
            let scale = (self.short as f64 / short as f64).min(self.long as f64 / long as f64);
            let side = |side: usize| ((side as f64 * scale).floor() as usize).max(1);
            (side(width), side(height))
        }

        /// Normalises and resizes a picture.
        pub fn apply(self, picture: &Rgb, statistics: &Statistics) -> Sized {
            let (width, height) = self.resized(picture.width, picture.height);
            let planes = statistics.normalize(picture);
            let values = planes
                .chunks_exact(picture.width * picture.height)
                .flat_map(|plane| {
                    let from = (picture.width, picture.height);
                    resize::torch_bilinear(plane, from, (width, height))
                })
                .collect();
            Sized {
                width,
                height,
                values,
            }
        }
    }

    /// Pads pictures to the largest width and height among them, rounded up to [`STRIDE`].
    pub fn batch(pictures: &[Sized]) -> Batch {
        let largest = |side: fn(&Sized) -> usize| {
            pictures
                .iter()
                .map(side)
                .max()
                .unwrap_or(0)
                .next_multiple_of(STRIDE)
        };
        let (width, height) = (largest(|one| one.width), largest(|one| one.height));
        let mut values = vec![0.0; pictures.len() * 3 * width * height];
        for (to, from) in values.chunks_exact_mut(3 * width * height).zip(pictures) {
            let planes = from.values.chunks_exact(from.width * from.height);
            for (to, from_plane) in to.chunks_exact_mut(width * height).zip(planes) {
                let rows = from_plane.chunks_exact(from.width);
                for (to, row) in to.chunks_exact_mut(width).zip(rows) {
                    to[..row.len()].copy_from_slice(row);
                }
            }
        }
        Batch {
            width,
            height,
            values,
        }
    }

    /// A box of the resized picture in pixels of the original one, or the way there with the sizes exchanged.
    pub fn rescale_box(corners: [f32; 4], from: (usize, usize), to: (usize, usize)) -> [f32; 4] {
        let across = to.0 as f32 / from.0 as f32;
        let down = to.1 as f32 / from.1 as f32;
        let [x0, y0, x1, y1] = corners;
        [x0 * across, y0 * down, x1 * across, y1 * down]
    }
}

/// The features of the Fréchet distance: 299 x 299 without antialiasing, from -1 to 1.
pub mod fid {
    use super::{Rgb, resize};

    pub use model_zoo::inception::SIDE;

    /// The network's input: channels, rows, columns.
    pub fn apply(picture: &Rgb) -> Vec<f32> {
        // One plane after the other: all three of a large picture would be four times what it takes itself.
        let of_channel = |channel: usize| {
            let pixels = picture.pixels.as_chunks::<3>().0.iter();
            let plane: Vec<f32> = pixels
                .map(|pixel| f32::from(pixel[channel]) / 255.0)
                .collect();
            of_planes(&plane, (picture.width, picture.height))
        };
        (0..3).flat_map(of_channel).collect()
    }

    /// The same for a picture given as channels, rows and columns of values from 0 to 1.
    pub fn of_planes(planes: &[f32], (width, height): (usize, usize)) -> Vec<f32> {
        planes
            .chunks_exact((width * height).max(1))
            .flat_map(|plane| resize::torch_bilinear(plane, (width, height), (SIDE, SIDE)))
            .map(|value| 2.0 * value - 1.0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_round_halves_to_even() {
        let recipe = Recipe {
            short: 256,
            filter: Filter::Bilinear,
            crop: 224,
            squash: false,
            statistics: IMAGENET,
        };
        for (margin, corner) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (7, 4)] {
            assert_eq!(
                recipe.corner(224 + margin, 224).0,
                corner,
                "margin {margin}"
            );
        }
    }

    #[test]
    fn recipes_are_read_as_they_are_written() {
        let mut all: Vec<Recipe> = model_zoo::catalog::all().iter().map(Recipe::of).collect();
        all.push(Recipe {
            squash: true,
            ..all[0]
        });
        for recipe in all {
            assert_eq!(recipe.to_string().parse(), Ok(recipe));
        }
        let sound = Recipe::MICRO.to_string();
        for bad in [
            "",
            "shorter side 32",
            &sound.replace("crop 32", "crop 33"),
            &sound.replace("bilinear", "nearest"),
            &sound.replace("std [", "std [0.0, "),
            &sound.replace("std [", "std [-"),
        ] {
            assert!(bad.parse::<Recipe>().is_err(), "{bad}");
        }
    }

    #[test]
    fn squashed_pictures_lose_their_proportions() {
        let recipe = Recipe {
            squash: true,
            ..Recipe::MICRO
        };
        assert_eq!(recipe.resized(100, 50), (32, 32));
        assert_eq!(Recipe::MICRO.resized(100, 50), (64, 32));
    }

    #[test]
    fn padding_is_zero_and_pictures_keep_their_corner() {
        let sized = |width, height, value| retinanet::Sized {
            width,
            height,
            values: vec![value; 3 * width * height],
        };
        let batch = retinanet::batch(&[sized(40, 30, 1.0), sized(10, 64, 2.0)]);
        assert_eq!((batch.width, batch.height), (64, 64));
        let sum: f32 = batch.values.iter().sum();
        assert_eq!(sum, 3.0 * (40.0 * 30.0 + 2.0 * 10.0 * 64.0));
        assert_eq!(batch.values[29 * 64 + 39], 1.0);
        assert_eq!(batch.values[29 * 64 + 40], 0.0);
        assert_eq!(batch.values[30 * 64], 0.0);
    }
}

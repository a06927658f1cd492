//! From a picture to a detector's input, and from its outputs to boxes: every number on the way that changes a result.
//!
//! The two kinds of detector have the rules of the programs that their weights come from: torchvision's RetinaNet and the
//! MobileNet-SSD release.

use std::fmt;
use std::str::FromStr;

use model_zoo::catalog::Spec;
use model_zoo::detection::Head;
use model_zoo::detection::anchors::{AnchorShapes, Priors, pyramid};
use model_zoo::detection::boxes::Quad;
use model_zoo::detection::found::{self, Found, Level, NotNumbers, RetinaNetRules, SsdRules};

use super::retinanet::{self, STRIDE, Sides, Sized};
use super::{IMAGENET, LARGEST, NotARecipe, Statistics, ssd, three};
use crate::data::decode::{Rgb, Rotation};

/// How pictures reach a detector, and how its outputs become boxes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DetectionRecipe {
    /// torchvision's, of RetinaNet.
    RetinaNet {
        /// The sides that pictures are resized to; they are padded to multiples of 32 then.
        sides: Sides,
        /// Normalisation.
        statistics: Statistics,
        /// The smallest anchor's side in pixels.
        anchor: usize,
        /// Which boxes are kept.
        rules: RetinaNetRules,
    },
    /// The MobileNet-SSD release's: a square, whatever the picture's proportions are, `(value - 127) / 128`.
    Ssd {
        /// The square's side, and where boxes are expected on it.
        priors: &'static Priors,
        /// Which boxes are kept.
        rules: SsdRules,
    },
}

/// The smallest anchor of the published networks, and of those for small pictures.
const ANCHORS: [usize; 2] = [32, 16];
/// Pictures whose shorter side is less are small.
const SMALL: usize = 512;
/// Candidates and boxes of an image that a recipe may ask for.
const MOST: usize = 100_000;

/// Boxes of one batch's image: one level of the pyramid each, or all of SSD's maps.
pub type Outputs<'a> = [(&'a [f32], &'a [f32])];

impl DetectionRecipe {
    /// The recipe of a network's weights; none where it finds no boxes.
    pub fn of(spec: &Spec) -> Option<Self> {
        let [_, height, width] = spec.input;
        Some(match spec.head()? {
            Head::RetinaNet => {
                let short = height.min(width);
                Self::RetinaNet {
                    sides: Sides {
                        short,
                        // torchvision's proportion; 1333 for 800.
                        long: match height == width {
                            true => short * 5 / 3,
                            false => height.max(width),
                        },
                    },
                    statistics: IMAGENET,
                    anchor: ANCHORS[usize::from(short < SMALL)],
                    rules: RetinaNetRules::default(),
                }
            }
            Head::Ssd => Self::Ssd {
                priors: spec.priors()?,
                rules: SsdRules::default(),
            },
        })
    }

    /// Whose rules they are.
    pub fn head(&self) -> Head {
        match self {
            Self::RetinaNet { .. } => Head::RetinaNet,
            Self::Ssd { .. } => Head::Ssd,
        }
    }

    /// What is done with a camera's rotation note.
    pub fn rotation(&self) -> Rotation {
        match self {
            Self::RetinaNet { .. } => Rotation::Ignore,
            Self::Ssd { .. } => ssd::ROTATION,
        }
    }

    /// Refuses numbers that no picture can be prepared and no box be chosen with.
    pub fn sound(&self) -> Result<(), String> {
        let (score, candidates, overlap) = match self {
            Self::RetinaNet { rules, .. } => (rules.score, rules.candidates, rules.overlap),
            Self::Ssd { rules, .. } => (rules.score, rules.candidates, rules.overlap.into()),
        };
        if !(0.0..1.0).contains(&score) {
            return Err(format!(
                "the score threshold is {score}; give a number from 0 to less than 1"
            ));
        }
        if !(0.0..=1.0).contains(&overlap) {
            return Err(format!(
                "the overlap of suppression is {overlap}; give a number from 0 to 1"
            ));
        }
        let mut counts = vec![("candidates", candidates)];
        if let Self::RetinaNet {
            sides,
            statistics,
            anchor,
            rules,
        } = self
        {
            counts.push(("boxes of an image", rules.most));
            if !(1..=LARGEST).contains(&sides.short)
                || !(sides.short..=LARGEST).contains(&sides.long)
            {
                return Err(format!(
                    "min_size is {} and max_size {}; give whole numbers from 1 to {LARGEST}, the larger one second",
                    sides.short, sides.long
                ));
            }
            if !(1..=LARGEST).contains(anchor) {
                return Err(format!(
                    "the smallest anchor is {anchor}; give a whole number from 1 to {LARGEST}"
                ));
            }
            statistics.sound()?;
        }
        match counts.iter().find(|(_, count)| !(1..=MOST).contains(count)) {
            None => Ok(()),
            Some((what, count)) => Err(format!(
                "{count} {what} are asked for; give a whole number from 1 to {MOST}"
            )),
        }
    }

    /// Width and height of a picture of this width and height as the network sees it, without padding.
    pub fn resized(&self, width: usize, height: usize) -> (usize, usize) {
        match self {
            Self::RetinaNet { sides, .. } => sides.resized(width, height),
            Self::Ssd { priors, .. } => (priors.side, priors.side),
        }
    }

    /// Channels, height and width of the network's input for a picture of this width and height, alone in its batch.
    pub fn input(&self, width: usize, height: usize) -> [usize; 3] {
        let (width, height) = self.resized(width, height);
        let [height, width] = self.padded([height, width]);
        [3, height, width]
    }

    /// Width and height of a typical picture: a square of the shorter side, as the sizes of pictures are not known before.
    pub fn typical(&self) -> (usize, usize) {
        match self {
            Self::RetinaNet { sides, .. } => (sides.short, sides.short),
            Self::Ssd { priors, .. } => (priors.side, priors.side),
        }
    }

    /// Height and width of an input that holds pictures of this height and width after resizing.
    pub fn padded(&self, size: [usize; 2]) -> [usize; 2] {
        match self {
            Self::RetinaNet { .. } => size.map(|side| side.next_multiple_of(STRIDE)),
            Self::Ssd { .. } => size,
        }
    }

    /// A picture as the network takes it, without padding.
    pub fn apply(&self, picture: &Rgb) -> Sized {
        match self {
            Self::RetinaNet {
                sides, statistics, ..
            } => sides.apply(picture, statistics),
            Self::Ssd { priors, .. } => Sized {
                width: priors.side,
                height: priors.side,
                values: ssd::apply(picture, priors.side),
            },
        }
    }

    /// Pictures as one input.
    pub fn batch(&self, pictures: &[Sized]) -> retinanet::Batch {
        match self {
            Self::RetinaNet { .. } => retinanet::batch(pictures),
            Self::Ssd { priors, .. } => retinanet::Batch {
                width: priors.side,
                height: priors.side,
                values: pictures
                    .iter()
                    .flat_map(|picture| picture.values.iter().copied())
                    .collect(),
            },
        }
    }

    /// Where boxes are expected on an input of this height and width: anchors in pixels as corners, priors in shares of
    /// the picture as centre and size.
    pub fn anchors(&self, padded: [usize; 2]) -> Vec<Quad> {
        match self {
            Self::RetinaNet { anchor, .. } => {
                AnchorShapes::retinanet_from(*anchor).on(padded, &pyramid(padded))
            }
            Self::Ssd { priors, .. } => priors.boxes(),
        }
    }

    /// The boxes that a network finds, in pixels of the picture: `outputs` are logits and offsets of each level, `resized`
    /// is the picture as it saw it, `picture` its own size, widths first.
    pub fn boxes(
        &self,
        outputs: &Outputs<'_>,
        anchors: &[Quad],
        resized: (usize, usize),
        picture: (usize, usize),
    ) -> Result<Vec<Found>, NotNumbers> {
        match self {
            Self::RetinaNet { rules, .. } => {
                let mut left = anchors;
                let levels: Vec<Level<'_>> = outputs
                    .iter()
                    .map(|&(logits, offsets)| {
                        let (anchors, rest) = left.split_at((offsets.len() / 4).min(left.len()));
                        left = rest;
                        Level {
                            logits,
                            offsets,
                            anchors,
                        }
                    })
                    .collect();
                let (width, height) = resized;
                let mut found = found::retinanet(&levels, [height, width], rules)?;
                for found in &mut found {
                    found.corners = retinanet::rescale_box(found.corners, resized, picture);
                }
                Ok(found)
            }
            Self::Ssd { rules, .. } => {
                let (logits, offsets): (Vec<_>, Vec<_>) = outputs.iter().copied().unzip();
                let (logits, offsets) = (logits.concat(), offsets.concat());
                let level = Level {
                    logits: &logits,
                    offsets: &offsets,
                    anchors,
                };
                let mut found = found::ssd(&level, rules)?;
                let sides = [picture.0 as f32, picture.1 as f32];
                for found in &mut found {
                    let [x0, y0, x1, y1] = found.corners;
                    found.corners = [x0 * sides[0], y0 * sides[1], x1 * sides[0], y1 * sides[1]];
                }
                Ok(found)
            }
        }
    }
}

/// The recipe as records hold it.
impl fmt::Display for DetectionRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RetinaNet {
                sides,
                statistics: Statistics { mean, std },
                anchor,
                rules,
            } => write!(
                f,
                "shorter side {}, longer side {}, mean {mean:?}, std {std:?}, padded to {STRIDE}, anchors from {anchor}; score above {}, {} candidates per level, overlap {}, {} boxes",
                sides.short, sides.long, rules.score, rules.candidates, rules.overlap, rules.most
            ),
            Self::Ssd { priors, rules } => write!(
                f,
                "both sides {}{SSD}; score above {}, {} candidates per class, overlap {}",
                priors.side, rules.score, rules.candidates, rules.overlap
            ),
        }
    }
}

/// How an SSD's pictures are prepared after resizing.
const SSD: &str = ", less 127, over 128";

/// What [`Display`](fmt::Display) writes: a cell is measured as it says.
impl FromStr for DetectionRecipe {
    type Err = NotARecipe;

    fn from_str(text: &str) -> Result<Self, NotARecipe> {
        let recipe = match text.strip_prefix("both sides ") {
            Some(rest) => read_ssd(rest),
            None => read_retinanet(text),
        };
        recipe
            .filter(|recipe| recipe.sound().is_ok())
            .ok_or_else(|| NotARecipe(text.to_owned()))
    }
}

/// The values between these words, in order; the text begins with the first word.
fn between<'a, const N: usize>(text: &'a str, words: [&str; N]) -> Option<[&'a str; N]> {
    let mut rest = text.strip_prefix(words[0])?;
    let mut values = [""; N];
    for (at, value) in values.iter_mut().enumerate() {
        let Some(next) = words.get(at + 1) else {
            *value = rest;
            break;
        };
        (*value, rest) = rest.split_once(next)?;
    }
    Some(values)
}

fn read_ssd(text: &str) -> Option<DetectionRecipe> {
    let (side, rest) = text.split_once(SSD)?;
    let words = ["; score above ", ", ", " candidates per class, overlap "];
    let [score, candidates, overlap] = between(rest, words)?;
    Some(DetectionRecipe::Ssd {
        priors: Priors::of_side(side.parse().ok()?)?,
        rules: SsdRules {
            score: score.parse().ok()?,
            candidates: candidates.parse().ok()?,
            overlap: overlap.parse().ok()?,
        },
    })
}

fn read_retinanet(text: &str) -> Option<DetectionRecipe> {
    let words = [
        "shorter side ",
        ", longer side ",
        ", mean ",
        ", std ",
        ", padded to 32, anchors from ",
        "; score above ",
        ", ",
        " candidates per level, overlap ",
        ", ",
    ];
    let [
        short,
        long,
        mean,
        std,
        anchor,
        score,
        candidates,
        overlap,
        most,
    ] = between(text, words)?;
    Some(DetectionRecipe::RetinaNet {
        sides: Sides {
            short: short.parse().ok()?,
            long: long.parse().ok()?,
        },
        statistics: Statistics {
            mean: three(mean)?,
            std: three(std)?,
        },
        anchor: anchor.parse().ok()?,
        rules: RetinaNetRules {
            score: score.parse().ok()?,
            candidates: candidates.parse().ok()?,
            overlap: overlap.parse().ok()?,
            most: most.strip_suffix(" boxes")?.parse().ok()?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<DetectionRecipe> {
        let all = model_zoo::catalog::all().iter();
        all.filter_map(DetectionRecipe::of).collect()
    }

    #[test]
    fn recipes_are_read_as_they_are_written() {
        let all = all();
        assert!(all.len() >= 6, "{}", all.len());
        for recipe in all {
            assert_eq!(recipe.to_string().parse(), Ok(recipe));
            let text = recipe.to_string();
            for (from, to) in [
                ("overlap 0", "overlap 2"),
                ("score above 0", "score above 1"),
                ("score above ", "score above -"),
                ("both sides 300", "both sides 299"),
                ("padded to 32", "padded to 64"),
                ("shorter side ", "shorter side 9"),
                ("std [", "std [-"),
                ("1000 candidates", "0 candidates"),
                (" boxes", ""),
            ] {
                let bad = text.replacen(from, to, 1);
                assert!(
                    bad == text || bad.parse::<DetectionRecipe>().is_err(),
                    "{bad}"
                );
            }
        }
        assert!("".parse::<DetectionRecipe>().is_err());
    }

    #[test]
    fn the_published_networks_have_their_programs_numbers() {
        let of = |name| DetectionRecipe::of(model_zoo::catalog::find(name).unwrap());
        assert_eq!(
            of("retinanet_resnet50_fpn_coco").unwrap().to_string(),
            "shorter side 800, longer side 1333, mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225], padded to 32, anchors from 32; score above 0.05, 1000 candidates per level, overlap 0.5, 300 boxes"
        );
        assert_eq!(
            of("mobilenetv1_ssd").unwrap().to_string(),
            "both sides 300, less 127, over 128; score above 0.01, 200 candidates per class, overlap 0.45"
        );
        assert_eq!(of("resnet18"), None);
    }

    #[test]
    fn pictures_of_extreme_proportions_keep_a_row() {
        for recipe in all() {
            for (width, height) in [(4000, 2), (1, 3000), (1, 1), (5000, 4999)] {
                let (wide, high) = recipe.resized(width, height);
                assert!(wide >= 1 && high >= 1, "{wide} x {high}");
                let [_, rows, columns] = recipe.input(width, height);
                assert!(rows >= high && columns >= wide);
                let anchors = recipe.anchors([rows, columns]);
                assert!(!anchors.is_empty());
            }
        }
    }
}

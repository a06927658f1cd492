//! From a detector's outputs for one image to boxes: torchvision's rules for RetinaNet, the MobileNet-SSD release's for
//! SSD.

use super::boxes::{BoxCoder, Quad, clip, corners, keep_by_label, keep_ssd, ssd_decode};

/// An object that a network found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Which of the network's classes.
    pub label: usize,
    /// Higher is surer; a probability.
    pub score: f32,
    /// Left, top, right, bottom.
    pub corners: Quad,
}

/// What a network gives for one level of an image: the classes' logits and the four offsets of each anchor.
#[derive(Debug, Clone, Copy)]
pub struct Level<'a> {
    /// Anchor by anchor, then class by class.
    pub logits: &'a [f32],
    /// Anchor by anchor.
    pub offsets: &'a [f32],
    /// Where the boxes are expected.
    pub anchors: &'a [Quad],
}

/// An output, or a box made of outputs, is NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the network's outputs are not all numbers")]
pub struct NotNumbers;

/// torchvision's numbers for RetinaNet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetinaNetRules {
    /// Scores must be above it.
    pub score: f32,
    /// Boxes of a level that are looked at, the surest first.
    pub candidates: usize,
    /// A box that overlaps a surer one of its class by more is dropped.
    pub overlap: f64,
    /// Boxes of an image at most.
    pub most: usize,
}

impl Default for RetinaNetRules {
    fn default() -> Self {
        Self {
            score: 0.05,
            candidates: 1000,
            overlap: 0.5,
            most: 300,
        }
    }
}

/// The MobileNet-SSD release's numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SsdRules {
    /// Scores must be above it.
    pub score: f32,
    /// Boxes of a class that are looked at, the surest first.
    pub candidates: usize,
    /// A box that overlaps a surer one of its class by more is dropped.
    pub overlap: f32,
}

impl Default for SsdRules {
    fn default() -> Self {
        Self {
            score: 0.01,
            candidates: 200,
            overlap: 0.45,
        }
    }
}

/// Refuses outputs that are not numbers.
fn finite(level: &Level<'_>) -> Result<(), NotNumbers> {
    let mut values = level.logits.iter().chain(level.offsets);
    match values.all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(NotNumbers),
    }
}

/// Refuses boxes that are not numbers: an exponential may be none where the outputs were.
fn sound(found: Vec<Found>) -> Result<Vec<Found>, NotNumbers> {
    let mut corners = found.iter().flat_map(|found| found.corners);
    match corners.all(f32::is_finite) {
        true => Ok(found),
        false => Err(NotNumbers),
    }
}

/// The offsets of an anchor.
fn offsets_at(level: &Level<'_>, anchor: usize) -> Quad {
    std::array::from_fn(|side| level.offsets[4 * anchor + side])
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// RetinaNet: boxes in pixels of an image of `[height, width]`, which may be less than what the anchors cover; the surest
/// first.
pub fn retinanet(
    levels: &[Level<'_>],
    [height, width]: [usize; 2],
    rules: &RetinaNetRules,
) -> Result<Vec<Found>, NotNumbers> {
    // Most logits are far below the threshold, and an exponential for each would take longer than the rest.
    let low = (rules.score / (1.0 - rules.score)).ln() - 0.1;
    let mut all = Vec::new();
    for level in levels {
        finite(level)?;
        let classes = level.logits.len() / level.anchors.len().max(1);
        let mut candidates: Vec<(f32, usize)> = level
            .logits
            .iter()
            .enumerate()
            .filter(|(_, logit)| **logit > low)
            .map(|(at, logit)| (sigmoid(*logit), at))
            .filter(|(score, _)| *score > rules.score)
            .collect();
        // Stable: the first among equals.
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        candidates.truncate(rules.candidates);
        all.extend(candidates.into_iter().map(|(score, at)| {
            let (anchor, label) = (at / classes, at % classes);
            let decoded =
                BoxCoder::RETINANET.decode(offsets_at(level, anchor), level.anchors[anchor]);
            Found {
                label,
                score,
                corners: clip(decoded, width as f32, height as f32),
            }
        }));
    }
    let all = sound(all)?;
    let corners: Vec<Quad> = all.iter().map(|found| found.corners).collect();
    let scores: Vec<f32> = all.iter().map(|found| found.score).collect();
    let labels: Vec<usize> = all.iter().map(|found| found.label).collect();
    let mut kept = keep_by_label(&corners, &scores, &labels, rules.overlap);
    kept.truncate(rules.most);
    Ok(kept.into_iter().map(|at| all[at]).collect())
}

/// SSD: boxes in shares of the image, class by class, in each the surest first. All maps are one level, and the anchors
/// are its priors as centre and size. Class 0 is the background, and no box.
pub fn ssd(level: &Level<'_>, rules: &SsdRules) -> Result<Vec<Found>, NotNumbers> {
    finite(level)?;
    let anchors = level.anchors.len();
    let classes = level.logits.len() / anchors.max(1);
    let probabilities = softmax(level.logits, classes);
    let mut boxes: Vec<Option<Quad>> = vec![None; anchors];
    let mut all = Vec::new();
    for label in 1..classes {
        let score = |anchor: usize| probabilities[anchor * classes + label];
        let candidates: Vec<usize> = (0..anchors)
            .filter(|&anchor| score(anchor) > rules.score)
            .collect();
        let scores: Vec<f32> = candidates.iter().map(|&anchor| score(anchor)).collect();
        let mut decode = |anchor: usize| {
            *boxes[anchor].get_or_insert_with(|| {
                corners(ssd_decode(offsets_at(level, anchor), level.anchors[anchor]))
            })
        };
        let quads: Vec<Quad> = candidates.iter().map(|&anchor| decode(anchor)).collect();
        let kept = keep_ssd(&quads, &scores, rules.overlap, rules.candidates, usize::MAX);
        all.extend(kept.into_iter().map(|at| Found {
            label,
            score: scores[at],
            corners: quads[at],
        }));
    }
    sound(all)
}

/// Row by row.
fn softmax(logits: &[f32], classes: usize) -> Vec<f32> {
    let mut out = logits.to_vec();
    for row in out.chunks_exact_mut(classes.max(1)) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for value in row.iter_mut() {
            *value = (*value - largest).exp();
            sum += *value;
        }
        for value in row {
            *value /= sum;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANCHOR: Quad = [10.0, 10.0, 30.0, 30.0];

    #[test]
    fn boxes_stay_in_the_image_and_one_of_a_class_suppresses_its_like() {
        let anchors = [ANCHOR, [11.0, 10.0, 31.0, 30.0], [100.0, 10.0, 120.0, 30.0]];
        let level = Level {
            logits: &[2.0, -9.0, 1.0, 0.5, -9.0, 3.0],
            offsets: &[0.0; 12],
            anchors: &anchors,
        };
        let found = retinanet(&[level], [40, 110], &RetinaNetRules::default()).unwrap();
        let seen: Vec<(usize, Quad)> = found.iter().map(|f| (f.label, f.corners)).collect();
        // The second anchor is dropped for class 0, where the first is surer, and kept for class 1.
        assert_eq!(
            seen,
            [
                (1, [100.0, 10.0, 110.0, 30.0]),
                (0, ANCHOR),
                (1, anchors[1])
            ]
        );
        let one = RetinaNetRules {
            most: 1,
            ..RetinaNetRules::default()
        };
        assert_eq!(retinanet(&[level], [40, 110], &one).unwrap(), found[..1]);
        let sure = RetinaNetRules { score: 0.95, ..one };
        assert_eq!(retinanet(&[level], [40, 110], &sure).unwrap().len(), 1);
        let surer = RetinaNetRules { score: 0.96, ..one };
        assert!(retinanet(&[level], [40, 110], &surer).unwrap().is_empty());
    }

    #[test]
    fn the_background_is_no_box() {
        let priors = [[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]];
        let level = Level {
            logits: &[9.0, 0.0, 0.0, 0.0, 0.0, 9.0],
            offsets: &[0.0; 8],
            anchors: &priors,
        };
        let found = ssd(&level, &SsdRules::default()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].label, 2);
        assert!(found[0].score > 0.99);
        assert_eq!(found[0].corners, corners(priors[1]));
    }

    #[test]
    fn outputs_that_are_no_numbers_are_told_from_no_boxes() {
        let level = |logit, offset| {
            let (logits, offsets) = (vec![logit, 0.0], vec![0.0, 0.0, offset, 0.0]);
            let level = Level {
                logits: &logits,
                offsets: &offsets,
                anchors: &[[0.5, 0.5, 0.1, 0.1]],
            };
            let retinanet = retinanet(&[level], [1, 1], &RetinaNetRules::default());
            [retinanet.is_ok(), ssd(&level, &SsdRules::default()).is_ok()]
        };
        assert_eq!(level(0.0, 0.0), [true, true]);
        assert_eq!(level(f32::NAN, 0.0), [false, false]);
        assert_eq!(level(0.0, f32::INFINITY), [false, false]);
        // RetinaNet bounds what it raises to a power, SSD does not.
        assert_eq!(level(0.0, 1e6), [true, false]);
    }
}

//! Boxes: how networks code them, how much they overlap, which of them are kept.
//!
//! Corners are left, top, right, bottom. Arithmetic is in f32 and in the references' order: torchvision's box coder and
//! suppression, and the MobileNet-SSD release's.

/// A box: its corners, or centre and size where a function says so.
pub type Quad = [f32; 4];

/// SSD's scale of coded centres.
const SSD_CENTRE: f32 = 0.1;
/// SSD's scale of coded sizes.
const SSD_SIZE: f32 = 0.2;

/// SSD: the box, as centre and size, that a network's four outputs mean at a prior.
pub fn ssd_decode(location: Quad, prior: Quad) -> Quad {
    let [x, y, width, height] = prior;
    [
        location[0] * SSD_CENTRE * width + x,
        location[1] * SSD_CENTRE * height + y,
        (location[2] * SSD_SIZE).exp() * width,
        (location[3] * SSD_SIZE).exp() * height,
    ]
}

/// SSD: the outputs that mean `target`, given as centre and size, at a prior.
pub fn ssd_encode(target: Quad, prior: Quad) -> Quad {
    let [x, y, width, height] = prior;
    [
        (target[0] - x) / width / SSD_CENTRE,
        (target[1] - y) / height / SSD_CENTRE,
        (target[2] / width).ln() / SSD_SIZE,
        (target[3] / height).ln() / SSD_SIZE,
    ]
}

/// Centre and size to corners.
pub fn corners([x, y, width, height]: Quad) -> Quad {
    [
        x - width / 2.0,
        y - height / 2.0,
        x + width / 2.0,
        y + height / 2.0,
    ]
}

/// The coding of RetinaNet and its kin: offsets in shares of a proposal's size, logarithms of sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoxCoder {
    /// Factors of the coded x, y, width and height.
    pub weights: Quad,
}

/// Decoded sizes grow by 1000/16 at most: a larger output is an error of the network, not a size.
fn largest_log() -> f32 {
    (1000.0_f64 / 16.0).ln() as f32
}

/// Centre and size of a box.
fn centred([x0, y0, x1, y1]: Quad) -> Quad {
    let (width, height) = (x1 - x0, y1 - y0);
    [x0 + 0.5 * width, y0 + 0.5 * height, width, height]
}

impl BoxCoder {
    /// RetinaNet's: all factors 1.
    pub const RETINANET: Self = Self { weights: [1.0; 4] };

    /// The outputs that mean `target` at a proposal.
    pub fn encode(&self, target: Quad, proposal: Quad) -> Quad {
        let [x, y, width, height] = centred(proposal);
        let [to_x, to_y, to_width, to_height] = centred(target);
        let [wx, wy, ww, wh] = self.weights;
        [
            wx * (to_x - x) / width,
            wy * (to_y - y) / height,
            ww * (to_width / width).ln(),
            wh * (to_height / height).ln(),
        ]
    }

    /// The box that four outputs mean at a proposal.
    pub fn decode(&self, deltas: Quad, proposal: Quad) -> Quad {
        let [x, y, width, height] = centred(proposal);
        let [wx, wy, ww, wh] = self.weights;
        let to_x = deltas[0] / wx * width + x;
        let to_y = deltas[1] / wy * height + y;
        let half_width = 0.5 * ((deltas[2] / ww).min(largest_log()).exp() * width);
        let half_height = 0.5 * ((deltas[3] / wh).min(largest_log()).exp() * height);
        [
            to_x - half_width,
            to_y - half_height,
            to_x + half_width,
            to_y + half_height,
        ]
    }
}

/// A box's part inside a picture.
pub fn clip([x0, y0, x1, y1]: Quad, width: f32, height: f32) -> Quad {
    [
        x0.clamp(0.0, width),
        y0.clamp(0.0, height),
        x1.clamp(0.0, width),
        y1.clamp(0.0, height),
    ]
}

fn area([x0, y0, x1, y1]: Quad) -> f32 {
    (x1 - x0) * (y1 - y0)
}

fn intersection(a: Quad, b: Quad) -> f32 {
    let side = |axis: usize| (a[axis + 2].min(b[axis + 2]) - a[axis].max(b[axis])).max(0.0);
    side(0) * side(1)
}

/// Intersection over union; NaN where both areas are zero.
pub fn overlap(a: Quad, b: Quad) -> f32 {
    let both = intersection(a, b);
    both / (area(a) + area(b) - both)
}

/// Indices by falling score; the lowest index first among equals.
fn by_score(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

/// Goes through `order`, keeping what no kept box suppresses, until `most` are kept.
fn suppress(order: &[usize], most: usize, suppresses: impl Fn(usize, usize) -> bool) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for &candidate in order {
        if kept.len() == most {
            break;
        }
        if !kept.iter().any(|&kept| suppresses(kept, candidate)) {
            kept.push(candidate);
        }
    }
    kept
}

/// Non-maximum suppression: the boxes, best first, that overlap no better one by more than `threshold`. An overlap of
/// exactly the threshold is kept, and so is one of two empty boxes, which is no number.
pub fn keep(boxes: &[Quad], scores: &[f32], threshold: f64) -> Vec<usize> {
    assert_eq!(boxes.len(), scores.len(), "one score for each box");
    suppress(&by_score(scores), usize::MAX, |kept, candidate| {
        f64::from(overlap(boxes[kept], boxes[candidate])) > threshold
    })
}

/// As [`keep`], where only boxes of one label suppress each other.
pub fn keep_by_label(
    boxes: &[Quad],
    scores: &[f32],
    labels: &[usize],
    threshold: f64,
) -> Vec<usize> {
    assert_eq!(boxes.len(), scores.len(), "one score for each box");
    assert_eq!(boxes.len(), labels.len(), "one label for each box");
    suppress(&by_score(scores), usize::MAX, |kept, candidate| {
        labels[kept] == labels[candidate]
            && f64::from(overlap(boxes[kept], boxes[candidate])) > threshold
    })
}

/// The MobileNet-SSD release's suppression of one class: among the best `candidates` only, 1e-5 in the denominator,
/// at most `most` boxes.
pub fn keep_ssd(
    boxes: &[Quad],
    scores: &[f32],
    threshold: f32,
    candidates: usize,
    most: usize,
) -> Vec<usize> {
    assert_eq!(boxes.len(), scores.len(), "one score for each box");
    let clipped_area = |[x0, y0, x1, y1]: Quad| (x1 - x0).max(0.0) * (y1 - y0).max(0.0);
    let mut order = by_score(scores);
    order.truncate(candidates);
    suppress(&order, most, |kept, candidate| {
        let both = intersection(boxes[kept], boxes[candidate]);
        let either = clipped_area(boxes[candidate]) + clipped_area(boxes[kept]) - both + 1e-5;
        both / either > threshold
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_undoes_encoding() {
        let (target, proposal) = ([10.0, 20.0, 50.0, 90.0], [12.0, 15.0, 60.0, 80.0]);
        let coder = BoxCoder {
            weights: [10.0, 10.0, 5.0, 5.0],
        };
        let back = coder.decode(coder.encode(target, proposal), proposal);
        for (got, want) in back.iter().zip(target) {
            assert!((got - want).abs() < 1e-4, "{back:?}");
        }
        let (target, prior) = ([0.5, 0.4, 0.2, 0.3], [0.45, 0.5, 0.25, 0.25]);
        let back = ssd_decode(ssd_encode(target, prior), prior);
        for (got, want) in back.iter().zip(target) {
            assert!((got - want).abs() < 1e-6, "{back:?}");
        }
    }

    #[test]
    fn no_kept_box_overlaps_a_better_one_and_no_dropped_one_is_free() {
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let boxes: Vec<Quad> = (0..200)
            .map(|_| {
                let (x, y) = (random() * 80.0, random() * 80.0);
                [x, y, x + 5.0 + random() * 30.0, y + 5.0 + random() * 30.0]
            })
            .collect();
        let scores: Vec<f32> = (0..200).map(|_| (random() * 16.0).floor()).collect();
        let kept = keep(&boxes, &scores, 0.4);
        for (at, &one) in kept.iter().enumerate() {
            for &better in &kept[..at] {
                assert!(scores[better] >= scores[one]);
                assert!(overlap(boxes[better], boxes[one]) <= 0.4);
            }
        }
        for dropped in (0..200).filter(|one| !kept.contains(one)) {
            let free = kept
                .iter()
                .filter(|&&one| scores[one] >= scores[dropped])
                .all(|&one| overlap(boxes[one], boxes[dropped]) <= 0.4);
            assert!(!free, "box {dropped} was dropped for nothing");
        }
    }
}

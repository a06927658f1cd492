//! From the stored outputs of detectors to the boxes that the reference makes of them.

use model_zoo::detection::Head;
use model_zoo::detection::anchors::{AnchorShapes, Priors, pyramid};
use model_zoo::detection::boxes::Quad;
use model_zoo::detection::found::{Found, Level, RetinaNetRules, SsdRules, retinanet, ssd};

use super::*;

const CASE: &str = "native";
/// Height and width of the RetinaNets' images.
const SIZE: [usize; 2] = [64, 96];

/// A stored tensor's values.
fn values(stored: &Container, name: &str) -> Vec<f32> {
    let name = format!("{CASE}.{name}");
    Source::read(stored, &name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn quads(values: &[f32]) -> Vec<Quad> {
    values.as_chunks::<4>().0.to_vec()
}

/// Compares boxes in any order: some scores are equal but for their last digits.
fn compare(stored: &Container, image: usize, found: &[Found], side: f32, what: &str) {
    let of = |part: &str| format!("detections.{image}.{part}");
    let boxes = quads(&values(stored, &of("boxes")));
    let scores = values(stored, &of("scores"));
    let labels = stored.raw(&format!("{CASE}.{}", of("labels"))).unwrap();
    let labels = labels.as_chunks::<8>().0.iter();
    let labels: Vec<usize> = labels
        .map(|label| i64::from_le_bytes(*label) as usize)
        .collect();
    assert_eq!(found.len(), boxes.len(), "{what}, image {image}");
    let mut free: Vec<&Found> = found.iter().collect();
    for (place, want) in boxes.iter().enumerate() {
        let fits = |found: &&Found| {
            let corners = found.corners.iter().zip(want);
            found.label == labels[place]
                && (found.score - scores[place]).abs() <= 1e-6
                && corners
                    .into_iter()
                    .all(|(a, b)| (a - b).abs() <= 1e-4 * side)
        };
        let at = free.iter().position(fits);
        let at = at.unwrap_or_else(|| panic!("{what}, image {image}: no box like {place}"));
        free.swap_remove(at);
    }
}

#[test]
fn stored_outputs_become_the_references_boxes() {
    let folder = golden_folder();
    let mut checked = 0;
    for spec in catalog::all() {
        let file = folder.join(format!("{}.safetensors", spec.name));
        let Some(head) = spec.head() else {
            continue;
        };
        if !file.is_file() {
            continue;
        }
        let stored = Container::open(&file).unwrap();
        let (name, priors) = match head {
            Head::RetinaNet => (["cls_logits", "bbox_regression"], "anchors"),
            Head::Ssd => (["confidences", "locations"], "priors"),
        };
        let [logits, offsets] = name.map(|name| values(&stored, name));
        let expected = quads(&values(&stored, priors));
        let images = offsets.len() / 4 / expected.len();
        let classes = logits.len() / images / expected.len();
        for image in 0..images {
            let logits = &logits[image * expected.len() * classes..][..expected.len() * classes];
            let offsets = &offsets[image * expected.len() * 4..][..expected.len() * 4];
            match head {
                Head::RetinaNet => {
                    let grids = pyramid(SIZE);
                    let anchors = AnchorShapes::retinanet().on(SIZE, &grids);
                    assert_eq!(anchors, expected, "{}", spec.name);
                    let mut start = 0;
                    let levels = grids.map(|[rows, columns]| {
                        let (from, count) = (start, 9 * rows * columns);
                        start += count;
                        Level {
                            logits: &logits[from * classes..][..count * classes],
                            offsets: &offsets[from * 4..][..count * 4],
                            anchors: &anchors[from..][..count],
                        }
                    });
                    let found = retinanet(&levels, SIZE, &RetinaNetRules::default()).unwrap();
                    compare(&stored, image, &found, 96.0, spec.name);
                }
                Head::Ssd => {
                    let anchors = Priors::RELEASE.boxes();
                    assert_eq!(anchors, expected, "{}", spec.name);
                    let level = Level {
                        logits,
                        offsets,
                        anchors: &anchors,
                    };
                    let found = ssd(&level, &SsdRules::default()).unwrap();
                    compare(&stored, image, &found, 1.0, spec.name);
                }
            }
            checked += 1;
        }
    }
    say(&format!("boxes of {checked} images of detectors\n"));
    assert!(checked > 0, "no detector's golden in {}", folder.display());
}

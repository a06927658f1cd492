//! Average precision of boxes as the COCO evaluation defines it: the twelve numbers of pycocotools, from the same f64
//! operations in the same order.
//!
//! Every rule that decides a number is stated where it is applied. Images, categories and annotations have arbitrary
//! ids; what is undefined (pycocotools prints -1) is `None`.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::statistics::mean;

/// One true object.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    /// Its annotation id.
    pub id: i64,
    /// The image's id.
    pub image: i64,
    /// The category's id.
    pub category: i64,
    /// Left, top, width, height in pixels.
    pub bbox: [f64; 4],
    /// Area of the object's mask, which is not the box's; it alone decides small, medium or large.
    pub area: f64,
    /// A region of many objects: found any number of times, counted neither way.
    pub crowd: bool,
}

/// One detection.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The image's id.
    pub image: i64,
    /// The category's id.
    pub category: i64,
    /// Left, top, width, height in pixels.
    pub bbox: [f64; 4],
    /// Higher is surer.
    pub score: f64,
}

/// IoU thresholds: 0.50, 0.55 to 0.95.
pub const THRESHOLDS: usize = 10;
/// Recall values at which precision is read.
const RECALLS: usize = 101;
/// Detections of one category in one image, the surest first, that count.
pub const MAX_DETECTIONS: usize = 100;
/// The three limits of average recall.
const LIMITS: [usize; 3] = [1, 10, MAX_DETECTIONS];
/// Object areas in pixels: all, small, medium, large; both ends belong to a range.
const AREAS: [[f64; 2]; 4] = [[0.0, 1e10], [0.0, 1024.0], [1024.0, 9216.0], [9216.0, 1e10]];

/// The twelve numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Mean over categories and thresholds: the headline.
    pub ap: Option<f64>,
    /// At IoU 0.50.
    pub ap50: Option<f64>,
    /// At IoU 0.75.
    pub ap75: Option<f64>,
    /// Objects up to 32 x 32 pixels.
    pub ap_small: Option<f64>,
    /// Objects from 32 x 32 to 96 x 96 pixels.
    pub ap_medium: Option<f64>,
    /// Objects from 96 x 96 pixels.
    pub ap_large: Option<f64>,
    /// Average recall with one detection of a category in an image.
    pub ar1: Option<f64>,
    /// With ten.
    pub ar10: Option<f64>,
    /// With a hundred.
    pub ar100: Option<f64>,
    /// Of small objects.
    pub ar_small: Option<f64>,
    /// Of medium objects.
    pub ar_medium: Option<f64>,
    /// Of large objects.
    pub ar_large: Option<f64>,
}

/// One category, over all areas.
#[derive(Debug, Clone, PartialEq)]
pub struct CategoryAp {
    /// The category's id.
    pub category: i64,
    /// Mean over thresholds.
    pub ap: Option<f64>,
    /// By threshold.
    pub ap_by_iou: [Option<f64>; THRESHOLDS],
    /// Recall with 100 detections, by threshold.
    pub recall_by_iou: [Option<f64>; THRESHOLDS],
}

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct CocoAp {
    /// The twelve numbers.
    pub stats: Stats,
    /// In ascending order of ids.
    pub categories: Vec<CategoryAp>,
}

/// What cannot be evaluated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApError {
    /// A detection of nowhere.
    #[error(
        "result {index} has image_id {image}, which the annotations do not list; evaluate results of the same split"
    )]
    UnknownImage {
        /// Place in the results, from 0.
        index: usize,
        /// Its image.
        image: i64,
    },
    /// A detection of nothing.
    #[error(
        "result {index} has category_id {category}, which the annotations do not list; map class indices to category ids"
    )]
    UnknownCategory {
        /// Place in the results, from 0.
        index: usize,
        /// Its category.
        category: i64,
    },
    /// Not a number where one must be.
    #[error("result {index} has {what}; the network diverged or its boxes were decoded wrongly")]
    NotFinite {
        /// Place in the results, from 0.
        index: usize,
        /// What is NaN or infinite.
        what: String,
    },
}

/// The `index`-th of the IoU thresholds, as `linspace(0.5, 0.95, 10)` rounds it.
fn threshold(index: usize) -> f64 {
    if index == THRESHOLDS - 1 {
        0.95
    } else {
        index as f64 * ((0.95 - 0.5) / 9.0) + 0.5
    }
}

/// Intersection over union of a detection and an object; over the detection's own area if the object is a crowd.
fn overlap(found: &[f64; 4], truth: &[f64; 4], crowd: bool) -> f64 {
    let side = |axis: usize| {
        (found[axis + 2] + found[axis]).min(truth[axis + 2] + truth[axis])
            - found[axis].max(truth[axis])
    };
    let (width, height) = (side(0), side(1));
    if width <= 0.0 || height <= 0.0 {
        return 0.0;
    }
    let both = width * height;
    let own = found[2] * found[3];
    both / if crowd {
        own
    } else {
        own + truth[2] * truth[3] - both
    }
}

/// A detection of a scene: what every threshold and area range asks of it, side by side in memory.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// Its place in the results.
    index: usize,
    score: f64,
    area: f64,
}

/// Objects and detections of one category in one image; detections sorted and cut.
struct Scene<'a> {
    truth: Vec<&'a Truth>,
    found: Vec<Candidate>,
    /// `overlaps[detection * truth.len() + object]`.
    overlaps: Vec<f64>,
}

/// A scene's objects in an area range.
struct Objects {
    bounds: [f64; 2],
    /// Which count neither way.
    ignored: Vec<bool>,
    /// Countable objects before ignored ones, each group in file order.
    order: Vec<usize>,
}

impl Objects {
    fn countable(&self) -> usize {
        self.ignored.iter().filter(|&&ignored| !ignored).count()
    }
}

/// What became of a detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict {
    /// The object it was given, by its place in the scene.
    object: Option<usize>,
    ignored: bool,
}

impl<'a> Scene<'a> {
    fn new(truth: Vec<&'a Truth>, mut found: Vec<(usize, &'a Found)>) -> Self {
        // Stable: equal scores stay in the order of the results.
        found.sort_by(|a, b| b.1.score.total_cmp(&a.1.score));
        found.truncate(MAX_DETECTIONS);
        let overlaps = found
            .iter()
            .flat_map(|(_, found)| {
                truth
                    .iter()
                    .map(|truth| overlap(&found.bbox, &truth.bbox, truth.crowd))
            })
            .collect();
        let candidate = |&(index, found): &(usize, &Found)| Candidate {
            index,
            score: found.score,
            area: found.bbox[2] * found.bbox[3],
        };
        Self {
            truth,
            found: found.iter().map(candidate).collect(),
            overlaps,
        }
    }

    fn objects(&self, bounds: [f64; 2]) -> Objects {
        let [low, high] = bounds;
        let ignored = |truth: &&Truth| truth.crowd || truth.area < low || truth.area > high;
        let ignored: Vec<bool> = self.truth.iter().map(ignored).collect();
        let mut order: Vec<usize> = (0..ignored.len()).collect();
        order.sort_by_key(|&at| ignored[at]);
        Objects {
            bounds,
            ignored,
            order,
        }
    }

    /// Gives each detection, the surest first, the best object that is still free, and appends the verdicts. `taken` is
    /// room to work in.
    fn assign(
        &self,
        objects: &Objects,
        threshold: f64,
        taken: &mut Vec<bool>,
        verdicts: &mut Vec<Verdict>,
    ) {
        let count = self.truth.len();
        let ignored = &objects.ignored;
        let [low, high] = objects.bounds;
        taken.clear();
        taken.resize(count, false);
        for (at, found) in self.found.iter().enumerate() {
            let overlaps = &self.overlaps[at * count..][..count];
            let mut best = threshold.min(1.0 - 1e-10);
            let mut object: Option<usize> = None;
            for &candidate in &objects.order {
                if taken[candidate] && !self.truth[candidate].crowd {
                    continue;
                }
                // A countable match is never given up for an ignored one.
                if object.is_some_and(|object| !ignored[object]) && ignored[candidate] {
                    break;
                }
                // Among equals the later object wins.
                if overlaps[candidate] >= best {
                    best = overlaps[candidate];
                    object = Some(candidate);
                }
            }
            let ignores = object.is_some_and(|object| ignored[object]);
            if let Some(object) = object {
                taken[object] = true;
            }
            // pycocotools marks "unmatched" by id 0, so an object of that id is never found, though it is taken.
            let object = object.filter(|&object| self.truth[object].id != 0);
            let outside = found.area < low || found.area > high;
            verdicts.push(Verdict {
                object,
                ignored: ignores || (object.is_none() && outside),
            });
        }
    }
}

/// Precision at the 101 recalls and the final recall, for one threshold and range; `None` without countable objects.
type Curve = Option<([f64; RECALLS], f64)>;

/// `recalls[limit]` and precision for the largest limit.
fn curve(verdicts: impl Iterator<Item = Verdict>, countable: usize) -> Curve {
    if countable == 0 {
        return None;
    }
    let (mut hits, mut misses) = (0_u64, 0_u64);
    let (mut recall, mut precision) = (Vec::new(), Vec::new());
    for verdict in verdicts {
        if !verdict.ignored {
            match verdict.object {
                Some(_) => hits += 1,
                None => misses += 1,
            }
        }
        recall.push(hits as f64 / countable as f64);
        // numpy's spacing(1) keeps 0/0 apart.
        precision.push(hits as f64 / (misses as f64 + hits as f64 + f64::EPSILON));
    }
    for at in (1..precision.len()).rev() {
        precision[at - 1] = precision[at - 1].max(precision[at]);
    }
    let mut points = [0.0; RECALLS];
    let mut at = 0;
    for (index, point) in points.iter_mut().enumerate() {
        let wanted = if index == RECALLS - 1 {
            1.0
        } else {
            index as f64 * 0.01
        };
        // The first place whose recall is not below the wanted one; recall never falls.
        while at < recall.len() && recall[at] < wanted {
            at += 1;
        }
        match precision.get(at) {
            Some(&value) => *point = value,
            None => break,
        }
    }
    Some((points, recall.last().copied().unwrap_or(0.0)))
}

/// One category's curves: by area and threshold, and recall by limit and threshold over all areas.
struct CategoryCurves {
    by_area: Vec<[Curve; THRESHOLDS]>,
    recall_by_limit: [[Option<f64>; THRESHOLDS]; LIMITS.len()],
}

fn category_curves(scenes: &[Scene]) -> CategoryCurves {
    // Images follow each other by ascending id and are sorted together, stably again.
    let ranked = scenes
        .iter()
        .flat_map(|scene| scene.found.iter().enumerate());
    let mut order: Vec<(f64, usize, usize)> = ranked
        .enumerate()
        .map(|(place, (rank, found))| (found.score, place, rank))
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut recall_by_limit = [[None; THRESHOLDS]; LIMITS.len()];
    let (mut taken, mut verdicts) = (Vec::new(), Vec::with_capacity(order.len()));
    let by_area = AREAS
        .iter()
        .enumerate()
        .map(|(area_index, &area)| {
            let objects: Vec<Objects> = scenes.iter().map(|scene| scene.objects(area)).collect();
            let countable: usize = objects.iter().map(Objects::countable).sum();
            std::array::from_fn(|index| {
                if countable == 0 {
                    return None;
                }
                verdicts.clear();
                for (scene, objects) in scenes.iter().zip(&objects) {
                    scene.assign(objects, threshold(index), &mut taken, &mut verdicts);
                }
                let up_to = |limit: usize| {
                    let counted = order.iter().filter(move |(_, _, rank)| *rank < limit);
                    counted.map(|&(_, place, _)| verdicts[place])
                };
                if area_index == 0 {
                    for (recalls, limit) in recall_by_limit.iter_mut().zip(LIMITS) {
                        let hits = up_to(limit)
                            .filter(|verdict| !verdict.ignored && verdict.object.is_some())
                            .count();
                        recalls[index] = Some(hits as f64 / countable as f64);
                    }
                }
                curve(up_to(MAX_DETECTIONS), countable)
            })
        })
        .collect();
    CategoryCurves {
        by_area,
        recall_by_limit,
    }
}

fn mean_of_defined(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    mean(&values.flatten().collect::<Vec<_>>())
}

fn precision_of(curve: &Curve) -> Option<f64> {
    curve
        .as_ref()
        .map(|(points, _)| points.iter().sum::<f64>() / RECALLS as f64)
}

/// The scenes of each category, by ascending category and image, empty ones left out.
fn scenes<'a>(
    images: &[i64],
    categories: &[i64],
    truth: &'a [Truth],
    found: &'a [Found],
) -> Result<Vec<Vec<Scene<'a>>>, ApError> {
    let places = |ids: &[i64]| -> HashMap<i64, usize> {
        ids.iter().enumerate().map(|(at, &id)| (id, at)).collect()
    };
    let (image_at, category_at) = (places(images), places(categories));
    type Content<'a> = (Vec<&'a Truth>, Vec<(usize, &'a Found)>);
    let mut grouped: Vec<HashMap<usize, Content>> = Vec::new();
    grouped.resize_with(categories.len(), HashMap::new);
    // The reader of annotations has checked their ids.
    for truth in truth {
        let image = image_at.get(&truth.image);
        if let (Some(&image), Some(&category)) = (image, category_at.get(&truth.category)) {
            grouped[category].entry(image).or_default().0.push(truth);
        }
    }
    for (index, found) in found.iter().enumerate() {
        let unknown = ApError::UnknownImage {
            index,
            image: found.image,
        };
        let &image = image_at.get(&found.image).ok_or(unknown)?;
        let unknown = ApError::UnknownCategory {
            index,
            category: found.category,
        };
        let &category = category_at.get(&found.category).ok_or(unknown)?;
        if !found.score.is_finite() {
            let what = format!("score {}", found.score);
            return Err(ApError::NotFinite { index, what });
        }
        if found.bbox.iter().any(|side| !side.is_finite()) {
            let what = format!("bbox {:?}", found.bbox);
            return Err(ApError::NotFinite { index, what });
        }
        grouped[category]
            .entry(image)
            .or_default()
            .1
            .push((index, found));
    }
    let ordered = grouped.into_par_iter().map(|by_image| {
        let mut by_image: Vec<_> = by_image.into_iter().collect();
        by_image.sort_unstable_by_key(|(image, _)| *image);
        by_image
            .into_iter()
            .map(|(_, (truth, found))| Scene::new(truth, found))
            .collect()
    });
    Ok(ordered.collect())
}

fn ascending(ids: &[i64]) -> Vec<i64> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Scores `found` on the images and categories listed.
pub fn evaluate(
    images: &[i64],
    categories: &[i64],
    truth: &[Truth],
    found: &[Found],
) -> Result<CocoAp, ApError> {
    let (images, categories) = (ascending(images), ascending(categories));
    let scenes = scenes(&images, &categories, truth, found)?;
    let curves: Vec<CategoryCurves> = scenes
        .par_iter()
        .map(|scenes| category_curves(scenes))
        .collect();
    let average_precision = |area: usize, indices: std::ops::Range<usize>| {
        let of = |index: usize| {
            curves
                .iter()
                .map(move |category| precision_of(&category.by_area[area][index]))
        };
        mean_of_defined(indices.flat_map(of))
    };
    let recall_in_area = |area: usize| {
        let all = curves.iter().flat_map(|category| &category.by_area[area]);
        mean_of_defined(all.map(|curve| curve.as_ref().map(|(_, recall)| *recall)))
    };
    let recall_at = |limit: usize| {
        let all = curves
            .iter()
            .flat_map(|category| category.recall_by_limit[limit]);
        mean_of_defined(all)
    };
    let stats = Stats {
        ap: average_precision(0, 0..THRESHOLDS),
        ap50: average_precision(0, 0..1),
        ap75: average_precision(0, 5..6),
        ap_small: average_precision(1, 0..THRESHOLDS),
        ap_medium: average_precision(2, 0..THRESHOLDS),
        ap_large: average_precision(3, 0..THRESHOLDS),
        ar1: recall_at(0),
        ar10: recall_at(1),
        ar100: recall_at(2),
        ar_small: recall_in_area(1),
        ar_medium: recall_in_area(2),
        ar_large: recall_in_area(3),
    };
    let of_category = |(&category, curves): (&i64, &CategoryCurves)| {
        let ap_by_iou = std::array::from_fn(|index| precision_of(&curves.by_area[0][index]));
        CategoryAp {
            category,
            ap: mean_of_defined(ap_by_iou.into_iter()),
            ap_by_iou,
            recall_by_iou: curves.recall_by_limit[2],
        }
    };
    Ok(CocoAp {
        stats,
        categories: categories.iter().zip(&curves).map(of_category).collect(),
    })
}

/// One detection's fate, for looking into an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// Its place in the results, from 0.
    pub found: usize,
    /// The annotation id of the object it was given.
    pub truth: Option<i64>,
    /// Whether it counts neither way.
    pub ignored: bool,
}

/// The matches at one IoU threshold over all areas, of one image and category, the surest first.
pub fn matches(
    image: i64,
    category: i64,
    truth: &[Truth],
    found: &[Found],
    threshold: f64,
) -> Vec<Match> {
    let truth = truth
        .iter()
        .filter(|truth| truth.image == image && truth.category == category);
    let found = found
        .iter()
        .enumerate()
        .filter(|(_, found)| found.image == image && found.category == category);
    let scene = Scene::new(truth.collect(), found.collect());
    let mut verdicts = Vec::new();
    scene.assign(
        &scene.objects(AREAS[0]),
        threshold,
        &mut Vec::new(),
        &mut verdicts,
    );
    scene
        .found
        .iter()
        .zip(verdicts)
        .map(|(found, verdict)| Match {
            found: found.index,
            truth: verdict.object.map(|object| scene.truth[object].id),
            ignored: verdict.ignored,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(id: i64, image: i64, bbox: [f64; 4]) -> Truth {
        Truth {
            id,
            image,
            category: 7,
            bbox,
            area: bbox[2] * bbox[3],
            crowd: false,
        }
    }

    fn found(image: i64, bbox: [f64; 4], score: f64) -> Found {
        Found {
            image,
            category: 7,
            bbox,
            score,
        }
    }

    #[test]
    fn a_half_found_set_scores_by_hand() {
        let square = [10.0, 10.0, 20.0, 20.0];
        let truth = [truth(1, 5, square), truth(2, 9, square)];
        let result = evaluate(&[9, 5], &[7], &truth, &[found(5, square, 0.5)]).unwrap();
        // Recall reaches 0.5, the first 51 of 101 points, with precision 1 less the rounding guard.
        let expected = 51.0 / 101.0;
        assert!((result.stats.ap.unwrap() - expected).abs() < 1e-12);
        assert_eq!(result.stats.ar1, Some(0.5));
        assert_eq!(result.stats.ap_medium, None);
        assert_eq!(result.stats.ap_small, result.stats.ap);
    }

    #[test]
    fn an_object_of_id_zero_is_never_found() {
        let square = [0.0, 0.0, 40.0, 40.0];
        let result = evaluate(&[1], &[7], &[truth(0, 1, square)], &[found(1, square, 0.9)]);
        assert_eq!(result.unwrap().stats.ap, Some(0.0));
    }

    #[test]
    fn results_that_make_no_sense_are_refused() {
        let square = [0.0, 0.0, 4.0, 4.0];
        let refuse = |found: Found| evaluate(&[1], &[7], &[], &[found]).unwrap_err().to_string();
        assert!(refuse(found(2, square, 0.5)).contains("image_id 2"));
        assert!(refuse(found(1, square, f64::NAN)).contains("score NaN"));
        assert!(refuse(found(1, [f64::INFINITY; 4], 0.5)).contains("inf"));
        let other = Found {
            category: 8,
            ..found(1, square, 0.5)
        };
        assert!(refuse(other).contains("category_id 8"));
    }
}

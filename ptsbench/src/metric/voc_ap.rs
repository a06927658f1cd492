//! Average precision by the rules of PASCAL VOC 2007, in the four variants found in the field. They share the matching
//! and differ in the overlap, in the comparison with one half, and in how eleven recall thresholds are rounded; recall
//! of exactly 3/10 alone moves a class by 9 points.

/// Which program's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The MATLAB devkit: boxes with both ends included, a hit from one half, thresholds filled from both ends.
    Devkit,
    /// The usual Python port: a hit above one half, thresholds as `arange(0, 1.1, 0.1)` rounds them.
    PythonPort,
    /// The MobileNet-SSD release: plain areas in f32, 1e-5 in the denominator; otherwise as the port. Its own sort of
    /// equal scores is not stable, so only files without ties can be compared.
    SsdRelease,
    /// As the devkit, with thresholds k/10.
    ExactTenths,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Devkit,
        Self::PythonPort,
        Self::SsdRelease,
        Self::ExactTenths,
    ];

    /// Its name in listings and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Devkit => "devkit",
            Self::PythonPort => "python_port",
            Self::SsdRelease => "ssd_release",
            Self::ExactTenths => "exact_tenths",
        }
    }

    fn overlap(self, a: &[f64; 4], b: &[f64; 4]) -> f64 {
        if self == Self::SsdRelease {
            return plain_overlap(a.map(|side| side as f32), b.map(|side| side as f32));
        }
        let area = |[x0, y0, x1, y1]: &[f64; 4]| (x1 - x0 + 1.0) * (y1 - y0 + 1.0);
        let width = a[2].min(b[2]) - a[0].max(b[0]) + 1.0;
        let height = a[3].min(b[3]) - a[1].max(b[1]) + 1.0;
        if width <= 0.0 || height <= 0.0 {
            return f64::NEG_INFINITY;
        }
        let both = width * height;
        both / (area(a) + area(b) - both)
    }

    fn hits(self, overlap: f64) -> bool {
        match self {
            Self::Devkit | Self::ExactTenths => overlap >= 0.5,
            Self::PythonPort | Self::SsdRelease => overlap > 0.5,
        }
    }

    fn recall_thresholds(self) -> [f64; 11] {
        std::array::from_fn(|k| {
            let tenths = k as f64;
            match self {
                Self::Devkit if k <= 5 => tenths * 0.1,
                Self::Devkit => 1.0 - (10.0 - tenths) * 0.1,
                Self::PythonPort | Self::SsdRelease => tenths * 0.1,
                Self::ExactTenths => tenths / 10.0,
            }
        })
    }
}

fn plain_overlap(a: [f32; 4], b: [f32; 4]) -> f64 {
    let area = |[x0, y0, x1, y1]: [f32; 4]| (x1 - x0) * (y1 - y0);
    let side = |axis: usize| (a[axis + 2].min(b[axis + 2]) - a[axis].max(b[axis])).max(0.0);
    let both = side(0) * side(1);
    (both / (area(a) + area(b) - both + 1e-5)).into()
}

/// One true object of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Index of its class.
    pub class: usize,
    /// Left, top, right, bottom: 1-based pixels, both ends included.
    pub bbox: [f64; 4],
    /// Found or not, it counts neither way.
    pub difficult: bool,
}

/// One detection.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// Index of its image.
    pub image: usize,
    /// Index of its class.
    pub class: usize,
    /// Left, top, right, bottom, as the objects' boxes.
    pub bbox: [f64; 4],
    /// Higher is surer.
    pub score: f64,
}

/// One class. What is undefined for want of countable objects is `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassAp {
    /// Objects that are not difficult.
    pub countable: usize,
    /// Detections of the class.
    pub detections: usize,
    /// Detections of an object not found before.
    pub hits: usize,
    /// Detections of nothing, or of an object already found.
    pub misses: usize,
    /// Detections of a difficult object.
    pub ignored: usize,
    /// Mean precision at eleven recalls: the metric of 2007.
    pub ap11: Option<f64>,
    /// Area under the precision envelope: the metric from 2010 on.
    pub ap_all: Option<f64>,
}

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct VocAp {
    /// By class index.
    pub classes: Vec<ClassAp>,
    /// Mean over the classes that have countable objects.
    pub map11: Option<f64>,
    /// The same of the area under the curve.
    pub map_all: Option<f64>,
}

/// What cannot be evaluated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum VocApError {
    /// A detection of nowhere or nothing.
    #[error(
        "detection {index} is of image {image} and class {class}, but there are {images} images and {classes} classes; evaluate detections of the same split"
    )]
    OutOfRange {
        /// Place among the detections, from 0.
        index: usize,
        /// Its image.
        image: usize,
        /// Its class.
        class: usize,
        /// Images there are.
        images: usize,
        /// Classes there are.
        classes: usize,
    },
    /// Not a number where one must be.
    #[error("detection {index} has a score or corner that is not finite; the network diverged")]
    NotFinite {
        /// Place among the detections, from 0.
        index: usize,
    },
}

/// Scores detections on images whose objects are listed in order; objects of class `classes` or more are left out.
pub fn evaluate(
    images: &[Vec<Object>],
    classes: usize,
    detections: &[Detection],
    variant: Variant,
) -> Result<VocAp, VocApError> {
    let mut by_class: Vec<Vec<&Detection>> = vec![Vec::new(); classes];
    for (index, detection) in detections.iter().enumerate() {
        let Detection { image, class, .. } = *detection;
        if image >= images.len() || class >= classes {
            return Err(VocApError::OutOfRange {
                index,
                image,
                class,
                images: images.len(),
                classes,
            });
        }
        let corners = detection.bbox.iter().chain([&detection.score]);
        if corners.into_iter().any(|value| !value.is_finite()) {
            return Err(VocApError::NotFinite { index });
        }
        by_class[class].push(detection);
    }
    let classes: Vec<ClassAp> = by_class
        .into_iter()
        .enumerate()
        .map(|(class, detections)| class_ap(images, class, detections, variant))
        .collect();
    let mean = |of: fn(&ClassAp) -> Option<f64>| {
        let defined: Vec<f64> = classes.iter().filter_map(of).collect();
        (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64)
    };
    Ok(VocAp {
        map11: mean(|class| class.ap11),
        map_all: mean(|class| class.ap_all),
        classes,
    })
}

fn class_ap(
    images: &[Vec<Object>],
    class: usize,
    mut detections: Vec<&Detection>,
    variant: Variant,
) -> ClassAp {
    let objects: Vec<Vec<&Object>> = images
        .iter()
        .map(|objects| {
            objects
                .iter()
                .filter(|object| object.class == class)
                .collect()
        })
        .collect();
    let countable = objects.iter().flatten().filter(|object| !object.difficult);
    let mut result = ClassAp {
        countable: countable.count(),
        detections: detections.len(),
        hits: 0,
        misses: 0,
        ignored: 0,
        ap11: None,
        ap_all: None,
    };
    let mut used: Vec<Vec<bool>> = objects
        .iter()
        .map(|objects| vec![false; objects.len()])
        .collect();
    // Stable: equal scores stay in the order given.
    detections.sort_by(|a, b| b.score.total_cmp(&a.score));
    let (mut recall, mut precision) = (Vec::new(), Vec::new());
    for detection in detections {
        // The best object alone is looked at, the first among equals; a used one is not replaced by the next best.
        let mut best: Option<(usize, f64)> = None;
        for (at, object) in objects[detection.image].iter().enumerate() {
            let overlap = variant.overlap(&detection.bbox, &object.bbox);
            if best.is_none_or(|(_, before)| overlap > before) {
                best = Some((at, overlap));
            }
        }
        match best.filter(|&(_, overlap)| variant.hits(overlap)) {
            Some((at, _)) if objects[detection.image][at].difficult => result.ignored += 1,
            Some((at, _)) if !used[detection.image][at] => {
                used[detection.image][at] = true;
                result.hits += 1;
            }
            _ => result.misses += 1,
        }
        let counted = (result.hits + result.misses) as f64;
        recall.push(result.hits as f64 / result.countable as f64);
        precision.push(result.hits as f64 / counted.max(f64::EPSILON));
    }
    if result.countable > 0 {
        for at in (1..precision.len()).rev() {
            precision[at - 1] = f64::max(precision[at - 1], precision[at]);
        }
        result.ap11 = Some(ap11(&recall, &precision, variant));
        result.ap_all = Some(ap_all(&recall, &precision));
    }
    result
}

/// `precision` is the envelope, so its first value from a recall on is the largest there.
fn ap11(recall: &[f64], precision: &[f64], variant: Variant) -> f64 {
    let at = |threshold: f64| {
        let first = recall.partition_point(|&recall| recall < threshold);
        precision.get(first).copied().unwrap_or(0.0)
    };
    variant
        .recall_thresholds()
        .map(at)
        .iter()
        .map(|precision| precision / 11.0)
        .sum()
}

fn ap_all(recall: &[f64], precision: &[f64]) -> f64 {
    let before = [0.0].iter().chain(recall);
    let steps = recall.iter().zip(before).zip(precision);
    steps
        .map(|((recall, before), precision)| (recall - before) * precision)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_differ_in_their_last_bit_alone() {
        let exact = Variant::ExactTenths.recall_thresholds();
        for variant in Variant::ALL {
            for (threshold, exact) in variant.recall_thresholds().iter().zip(exact) {
                assert!((threshold - exact).abs() < 1e-15, "{variant:?}");
            }
        }
        assert!(Variant::PythonPort.recall_thresholds()[3] > exact[3]);
    }

    #[test]
    fn detections_of_nothing_known_are_refused() {
        let detection = |image, class, score| Detection {
            image,
            class,
            bbox: [1.0, 1.0, 2.0, 2.0],
            score,
        };
        let refuse = |detection| evaluate(&[Vec::new()], 1, &[detection], Variant::Devkit);
        assert!(matches!(
            refuse(detection(1, 0, 0.5)),
            Err(VocApError::OutOfRange { .. })
        ));
        assert!(matches!(
            refuse(detection(0, 1, 0.5)),
            Err(VocApError::OutOfRange { .. })
        ));
        assert!(matches!(
            refuse(detection(0, 0, f64::NAN)),
            Err(VocApError::NotFinite { .. })
        ));
        assert!(refuse(detection(0, 0, 0.5)).is_ok());
    }
}

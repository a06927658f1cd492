//! What detectors learn from: which anchor stands for which object, and the losses of RetinaNet (Lin et al. 2017,
//! arXiv 1708.02002, section 3) and SSD (Liu et al. 2016, arXiv 1512.02325, section 2.2).
//!
//! Most anchors stand for nothing, so a loss here is plain loops over slices, and gives its gradient with it.

use model_zoo::detection::boxes::{Quad, overlap};

/// Focal loss: weight of objects, and the power by which what is easy counts less.
const ALPHA: f64 = 0.25;
const GAMMA: f64 = 2.0;

/// Anchors of no object that SSD learns from, for each anchor of one: the worst.
const NEGATIVES: usize = 3;

/// How much of an anchor a crowd covers, from which on it is neither object nor ground.
const CROWDED: f32 = 0.5;

/// What an anchor is to learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The object at this place of the image's list.
    Object(usize),
    /// That there is none.
    Ground,
    /// Nothing.
    Ignored,
}

/// Overlaps from which an anchor stands for an object, and below which it stands for none.
#[derive(Debug, Clone, Copy)]
pub struct Overlaps {
    /// From here on it is the object's.
    pub object: f32,
    /// Below, it is ground.
    pub ground: f32,
}

impl Overlaps {
    /// RetinaNet's.
    pub const RETINANET: Self = Self {
        object: 0.5,
        ground: 0.4,
    };
    /// SSD's.
    pub const SSD: Self = Self {
        object: 0.5,
        ground: 0.5,
    };
}

/// What each anchor is to learn. The anchors that overlap an object most are its own however little that is; what mostly
/// lies in a crowd is ignored.
pub fn roles(anchors: &[Quad], objects: &[Quad], crowds: &[Quad], at: Overlaps) -> Vec<Role> {
    let mut roles: Vec<Role> = anchors
        .iter()
        .map(|&anchor| {
            let crowded = crowds
                .iter()
                .any(|&crowd| covered(anchor, crowd) >= CROWDED);
            if crowded { Role::Ignored } else { Role::Ground }
        })
        .collect();
    let mut largest = vec![0.0_f32; anchors.len()];
    for (index, &object) in objects.iter().enumerate() {
        for ((&anchor, role), largest) in anchors.iter().zip(&mut roles).zip(&mut largest) {
            let now = overlap(anchor, object);
            if now > *largest {
                *largest = now;
                if now >= at.object {
                    *role = Role::Object(index);
                } else if now >= at.ground {
                    *role = Role::Ignored;
                }
            }
        }
    }
    // After all of them, so that no other object takes the best anchor away.
    for (index, &object) in objects.iter().enumerate() {
        let of = |&anchor: &Quad| overlap(anchor, object);
        let best = anchors.iter().map(of).fold(0.0, f32::max);
        for (anchor, role) in anchors.iter().zip(&mut roles) {
            if best > 0.0 && of(anchor) == best {
                *role = Role::Object(index);
            }
        }
    }
    roles
}

/// How much of a box another one covers.
fn covered([x0, y0, x1, y1]: Quad, by: Quad) -> f32 {
    let side = |from: f32, to: f32, low: f32, high: f32| (to.min(high) - from.max(low)).max(0.0);
    let both = side(x0, x1, by[0], by[2]) * side(y0, y1, by[1], by[3]);
    both / ((x1 - x0) * (y1 - y0))
}

/// What an image's anchors are to give: their roles, and of those with an object, its class and the offsets that mean it.
pub struct Wanted<'a> {
    /// Roles.
    pub roles: &'a [Role],
    /// Classes of the image's objects.
    pub labels: &'a [usize],
    /// Offsets that an anchor should give for an object.
    pub offsets: &'a dyn Fn(usize, usize) -> Quad,
}

impl Wanted<'_> {
    /// Anchors that stand for an object: their places, and the objects'.
    fn objects(&self) -> impl Iterator<Item = (usize, usize)> {
        let roles = self.roles.iter().enumerate();
        roles.filter_map(|(at, role)| match role {
            Role::Object(object) => Some((at, *object)),
            _ => None,
        })
    }
}

/// The loss of an image and its gradient by the logits and the offsets.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// Its value.
    pub value: f64,
    /// By the logits.
    pub logits: Vec<f32>,
    /// By the offsets.
    pub offsets: Vec<f32>,
    /// Anchors with an object.
    pub objects: usize,
}

/// RetinaNet's loss of an image: the focal loss of every class of every anchor, and the distance of offsets, over the number
/// of anchors with an object.
pub fn retinanet(logits: &[f32], offsets: &[f32], wanted: &Wanted<'_>) -> Loss {
    let classes = logits.len() / wanted.roles.len().max(1);
    let mut loss = Loss {
        value: 0.0,
        logits: vec![0.0; logits.len()],
        offsets: vec![0.0; offsets.len()],
        objects: wanted.objects().count(),
    };
    let share = 1.0 / loss.objects.max(1) as f64;
    for (at, role) in wanted.roles.iter().enumerate() {
        let label = match role {
            Role::Ignored => continue,
            Role::Ground => None,
            Role::Object(object) => Some(wanted.labels[*object]),
        };
        for class in 0..classes {
            let place = at * classes + class;
            let (value, slope) = focal(logits[place].into(), label == Some(class));
            loss.value += share * value;
            loss.logits[place] = (share * slope) as f32;
        }
    }
    for (at, object) in wanted.objects() {
        let target = (wanted.offsets)(at, object);
        for (k, target) in target.into_iter().enumerate() {
            let far = f64::from(offsets[4 * at + k]) - f64::from(target);
            loss.value += share * far.abs();
            loss.offsets[4 * at + k] = if far == 0.0 {
                0.0
            } else {
                (share * far.signum()) as f32
            };
        }
    }
    loss
}

/// The focal loss of a logit and its slope: Eq. 5 of the paper.
fn focal(x: f64, object: bool) -> (f64, f64) {
    // What is not an object is one with the logit's sign turned.
    let (x, sign, weight) = if object {
        (x, 1.0, ALPHA)
    } else {
        (-x, -1.0, 1.0 - ALPHA)
    };
    // log p without a difference of large numbers.
    let log = if x >= 0.0 {
        -(-x).exp().ln_1p()
    } else {
        x - x.exp().ln_1p()
    };
    let p = log.exp();
    let rest = (1.0 - p).powf(GAMMA);
    (
        -weight * rest * log,
        sign * weight * rest * (GAMMA * p * log + p - 1.0),
    )
}

/// SSD's loss of an image, to be divided by the number of anchors with an object in all of the batch: cross-entropy of those
/// and of the worst of the others, three for one, and the smooth distance of offsets. Class 0 is the ground.
pub fn ssd(logits: &[f32], offsets: &[f32], wanted: &Wanted<'_>) -> Loss {
    let classes = logits.len() / wanted.roles.len().max(1);
    let mut loss = Loss {
        value: 0.0,
        logits: vec![0.0; logits.len()],
        offsets: vec![0.0; offsets.len()],
        objects: wanted.objects().count(),
    };
    let row = |at: usize| &logits[at * classes..][..classes];
    let mut learns: Vec<(usize, usize)> = wanted
        .objects()
        .map(|(at, object)| (at, 1 + wanted.labels[object]))
        .collect();
    let mut ground: Vec<(usize, f64)> = wanted
        .roles
        .iter()
        .enumerate()
        .filter(|(_, role)| **role == Role::Ground)
        .map(|(at, _)| (at, log_sum(row(at)) - f64::from(row(at)[0])))
        .collect();
    // The first among equals, so that nothing depends on how a sort goes about it.
    ground.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ground.truncate(NEGATIVES * learns.len());
    learns.extend(ground.into_iter().map(|(at, _)| (at, 0)));
    for (at, label) in learns {
        let (row, sum) = (row(at), log_sum(row(at)));
        loss.value += sum - f64::from(row[label]);
        for (class, &logit) in row.iter().enumerate() {
            let p = (f64::from(logit) - sum).exp();
            loss.logits[at * classes + class] = (p - f64::from(u8::from(class == label))) as f32;
        }
    }
    for (at, object) in wanted.objects() {
        let target = (wanted.offsets)(at, object);
        for (k, target) in target.into_iter().enumerate() {
            let far = f64::from(offsets[4 * at + k]) - f64::from(target);
            loss.value += match far.abs() {
                far if far < 1.0 => 0.5 * far * far,
                far => far - 0.5,
            };
            loss.offsets[4 * at + k] = far.clamp(-1.0, 1.0) as f32;
        }
    }
    loss
}

/// The logarithm of the sum of exponentials.
fn log_sum(row: &[f32]) -> f64 {
    let most = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - most).exp()).sum();
    sum.ln() + most
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    #[test]
    fn anchors_stand_for_what_they_overlap() {
        let anchors = [
            [0.0, 0.0, 10.0, 10.0],
            [0.0, 0.0, 10.0, 20.0],
            [0.0, 0.0, 10.0, 24.0],
            [50.0, 50.0, 60.0, 60.0],
            [80.0, 80.0, 90.0, 90.0],
            [81.0, 81.0, 91.0, 91.0],
        ];
        let objects = [[0.0, 0.0, 10.0, 10.0], [52.0, 58.0, 90.0, 80.0]];
        let crowds = [[80.0, 80.0, 200.0, 200.0]];
        let of = |at| roles(&anchors, &objects, &crowds, at);
        use Role::{Ground, Ignored, Object};
        // The second object overlaps its best anchor by a hair, and that is enough.
        let [o, g, i] = [Object(0), Ground, Ignored];
        assert_eq!(of(Overlaps::RETINANET), [o, o, i, Object(1), i, i]);
        assert_eq!(of(Overlaps::SSD), [o, o, g, Object(1), i, i]);
        assert_eq!(roles(&anchors, &[], &[], Overlaps::SSD), [g; 6]);
    }

    #[test]
    fn of_two_objects_an_anchor_takes_the_nearer_but_neither_loses_its_best() {
        let anchors = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 12.0]];
        let objects = [[0.0, 0.0, 10.0, 11.0], [0.0, 0.0, 10.0, 9.0]];
        let found = roles(&anchors, &objects, &[], Overlaps::RETINANET);
        assert_eq!(found, [Role::Object(1), Role::Object(0)]);
    }

    /// Gradients against differences of the values in f64.
    fn check(loss: impl Fn(&[f32], &[f32], &Wanted<'_>) -> Loss, classes: usize) {
        let mut stream = Seed(1).stream("losses");
        let roles = [
            Role::Object(1),
            Role::Ground,
            Role::Ignored,
            Role::Ground,
            Role::Object(0),
            Role::Ground,
            Role::Ground,
        ];
        let mut draw = |count: usize, by: f32| -> Vec<f32> {
            (0..count)
                .map(|_| by * (2.0 * stream.unit() - 1.0))
                .collect()
        };
        let (logits, offsets) = (draw(roles.len() * classes, 4.0), draw(roles.len() * 4, 2.0));
        let wanted = Wanted {
            roles: &roles,
            labels: &[2, 0],
            offsets: &|at, object| [at as f32 * 0.3, 0.1, -0.5, object as f32],
        };
        let whole = loss(&logits, &offsets, &wanted);
        let step = 1.0 / 512.0;
        let slope = |values: &[f32], at: usize, with: &dyn Fn(&[f32]) -> f64| {
            let moved = |by: f32| {
                let mut values = values.to_vec();
                values[at] += by;
                with(&values)
            };
            (moved(step) - moved(-step)) / f64::from(2.0 * step)
        };
        for at in 0..logits.len() {
            let found = slope(&logits, at, &|l| loss(l, &offsets, &wanted).value);
            let said = f64::from(whole.logits[at]);
            assert!((found - said).abs() < 2e-5, "logit {at}: {said}, {found}");
        }
        for at in 0..offsets.len() {
            let found = slope(&offsets, at, &|o| loss(&logits, o, &wanted).value);
            let said = f64::from(whole.offsets[at]);
            assert!((found - said).abs() < 2e-5, "offset {at}: {said}, {found}");
        }
        let ignored = 2 * classes..3 * classes;
        assert!(whole.logits[ignored].iter().all(|&slope| slope == 0.0));
    }

    #[test]
    fn gradients_are_the_slopes_of_the_values() {
        check(retinanet, 3);
        check(ssd, 4);
    }

    #[test]
    fn the_focal_loss_is_the_papers() {
        for x in [-30.0_f64, -2.0, 0.0, 0.7, 30.0] {
            let p = 1.0 / (1.0 + (-x).exp());
            let plain = |p: f64, weight: f64| -weight * (1.0 - p).powf(2.0) * p.ln();
            assert!((focal(x, true).0 - plain(p, 0.25)).abs() < 1e-12);
            let q = 1.0 / (1.0 + x.exp());
            assert!((focal(x, false).0 - plain(q, 0.75)).abs() < 1e-12);
        }
    }

    #[test]
    fn the_worst_grounds_are_learned_three_for_one() {
        let mut roles = vec![Role::Ground; 10];
        roles[9] = Role::Object(0);
        // The later, the surer of an object.
        let logits: Vec<f32> = (0..10).flat_map(|at| [0.0, at as f32]).collect();
        let wanted = Wanted {
            roles: &roles,
            labels: &[0],
            offsets: &|_, _| [0.0; 4],
        };
        let found = ssd(&logits, &[0.0; 40], &wanted);
        let learned: Vec<usize> = (0..10).filter(|at| found.logits[2 * at] != 0.0).collect();
        assert_eq!(learned, [6, 7, 8, 9]);
    }
}

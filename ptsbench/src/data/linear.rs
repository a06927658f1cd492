//! Softmax regression on pixels: how much of a set needs no network at all.
//!
//! The same result on any number of threads: images are independent forwards, classes backwards, and each sum has one
//! order.

use rayon::prelude::*;

use crate::seed::Seed;

/// A linear classifier.
#[derive(Debug, Clone)]
pub struct Linear {
    /// One row of weights per class, its bias at the end.
    rows: Vec<Vec<f32>>,
}

/// Stochastic gradient descent with momentum, its rate falling linearly to nothing.
#[derive(Debug, Clone, Copy)]
pub struct Descent {
    /// Passes over the images.
    pub epochs: usize,
    /// Images in a step.
    pub batch: usize,
    /// Learning rate of the first step.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// Decay of weights, added to the gradient.
    pub decay: f32,
}

impl Linear {
    /// Trains on images of `features` values each, in the order of `labels`.
    pub fn train(
        images: &[f32],
        labels: &[u8],
        features: usize,
        classes: usize,
        descent: Descent,
        seed: Seed,
    ) -> Self {
        assert_eq!(images.len(), labels.len() * features, "one label per image");
        let mut model = Self {
            rows: vec![vec![0.0; features + 1]; classes],
        };
        let mut momenta = model.rows.clone();
        let mut order: Vec<usize> = (0..labels.len()).collect();
        let mut stream = seed.stream("linear");
        let steps = descent.epochs * labels.len().div_ceil(descent.batch);
        let mut step = 0;
        for _ in 0..descent.epochs {
            stream.shuffle(&mut order);
            for batch in order.chunks(descent.batch) {
                let image = |at: usize| &images[at * features..][..features];
                // d(cross-entropy) / d(logit) = softmax - one-hot.
                let errors: Vec<Vec<f32>> = batch
                    .par_iter()
                    .map(|&at| {
                        let mut error = softmax(model.logits(image(at)));
                        error[usize::from(labels[at])] -= 1.0;
                        error
                    })
                    .collect();
                let lr = descent.lr * (steps - step) as f32 / steps as f32;
                let share = 1.0 / batch.len() as f32;
                model
                    .rows
                    .par_iter_mut()
                    .zip(&mut momenta)
                    .enumerate()
                    .for_each(|(class, (row, momentum))| {
                        let mut gradient: Vec<f32> =
                            row.iter().map(|weight| weight * descent.decay).collect();
                        gradient[features] = 0.0;
                        for (error, &at) in errors.iter().zip(batch) {
                            let error = error[class] * share;
                            for (gradient, value) in gradient.iter_mut().zip(image(at)) {
                                *gradient += error * value;
                            }
                            gradient[features] += error;
                        }
                        for ((weight, momentum), gradient) in
                            row.iter_mut().zip(momentum).zip(gradient)
                        {
                            *momentum = descent.momentum * *momentum + gradient;
                            *weight -= lr * *momentum;
                        }
                    });
                step += 1;
            }
        }
        model
    }

    /// Fraction of images whose own class scores highest.
    pub fn top1(&self, images: &[f32], labels: &[u8]) -> f64 {
        let features = self.rows[0].len() - 1;
        let right = images
            .par_chunks_exact(features)
            .zip(labels)
            .filter(|(image, label)| {
                let logits = self.logits(image);
                let own = logits[usize::from(**label)];
                logits.iter().filter(|&&logit| logit >= own).count() == 1
            })
            .count();
        right as f64 / labels.len() as f64
    }

    fn logits(&self, image: &[f32]) -> Vec<f32> {
        self.rows
            .iter()
            .map(|row| dot(row, image) + row[image.len()])
            .collect()
    }
}

/// Sixteen running sums, so that the order is fixed and the loop still fills vector registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

fn softmax(mut logits: Vec<f32>) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits
        .iter_mut()
        .for_each(|logit| *logit = (*logit - top).exp());
    let sum: f32 = logits.iter().sum();
    logits.iter_mut().for_each(|logit| *logit /= sum);
    logits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic::{CHANNELS, CLASSES, MicroSet, PIXELS, SIDE};

    /// The undecayed fit knows its own images far better than chance, so a low test score is the set's doing.
    #[test]
    fn the_micro_set_is_beyond_a_linear_classifier() {
        let load = |set: MicroSet, images: usize| {
            let indices: Vec<usize> = (0..images).collect();
            (set.normalized(&indices), set.labels(&indices))
        };
        let (seen, seen_labels) = load(MicroSet::TRAIN, 10_000);
        let (unseen, unseen_labels) = load(MicroSet::TEST, MicroSet::TEST.len());
        for (lr, decay, least_fit) in [(0.003, 0.0, 0.3), (0.001, 0.1, 0.2), (0.0003, 1.0, 0.1)] {
            let descent = Descent {
                epochs: 8,
                batch: 100,
                lr,
                momentum: 0.9,
                decay,
            };
            let model = Linear::train(&seen, &seen_labels, PIXELS, CLASSES, descent, Seed(0));
            let fit = model.top1(&seen, &seen_labels);
            let top1 = model.top1(&unseen, &unseen_labels);
            println!(
                "lr {lr}, decay {decay}: top-1 {fit:.4} on its own images, {top1:.4} on the test split"
            );
            assert!(fit > least_fit, "{fit}: not trained enough to tell");
            assert!(top1 < 0.60, "a linear classifier reaches {top1}");
        }
    }

    /// The classifier itself works: where the mean colour decides, it finds out.
    #[test]
    fn a_linear_problem_is_solved() {
        let mut stream = Seed(3).stream("test");
        let features = CHANNELS * SIDE;
        let labels: Vec<u8> = (0..600).map(|_| stream.below(3) as u8).collect();
        let mut images = vec![0.0; labels.len() * features];
        for (image, &label) in images.chunks_exact_mut(features).zip(&labels) {
            for (at, value) in image.iter_mut().enumerate() {
                *value = stream.unit() - 0.5;
                if at / SIDE == usize::from(label) {
                    *value += 0.5;
                }
            }
        }
        let descent = Descent {
            epochs: 20,
            batch: 50,
            lr: 0.05,
            momentum: 0.9,
            decay: 0.0,
        };
        let (seen, unseen) = images.split_at(400 * features);
        let model = Linear::train(seen, &labels[..400], features, 3, descent, Seed(0));
        assert!(model.top1(unseen, &labels[400..]) > 0.98);
    }
}

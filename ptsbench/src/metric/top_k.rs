//! Top-k accuracy: which classes the logits name first, and how often the right one is among them.

use std::cmp::Ordering;

use thiserror::Error;

/// Why logits could not be scored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TopKError {
    /// The slice does not hold one row per label.
    #[error(
        "{logits} logits are not {labels} rows of {classes}: \
         check that the network's last layer has as many outputs as the task has classes"
    )]
    Shape {
        /// Values given.
        logits: usize,
        /// Labels given.
        labels: usize,
        /// Classes of the task.
        classes: usize,
    },
    /// A logit is not a number.
    #[error(
        "logit of class {class} for image {image} is NaN: the network diverged, so it has no accuracy; \
         lower the learning rate of its reconstruction or check its weights"
    )]
    Nan {
        /// Row.
        image: usize,
        /// Column.
        class: usize,
    },
}

/// How many of `labels` the rows of `logits` (one per label, `classes` wide) name; among equal logits the lowest class
/// wins.
pub fn correct(logits: &[f32], classes: usize, labels: &[usize]) -> Result<u64, TopKError> {
    correct_among(1, logits, classes, labels)
}

/// How many of `labels` are among the first `k` that the rows of `logits` name, in the order of [`first`].
pub fn correct_among(
    k: usize,
    logits: &[f32],
    classes: usize,
    labels: &[usize],
) -> Result<u64, TopKError> {
    if classes == 0 || Some(logits.len()) != labels.len().checked_mul(classes) {
        return Err(TopKError::Shape {
            logits: logits.len(),
            labels: labels.len(),
            classes,
        });
    }
    let mut correct = 0;
    for (image, (row, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        if let Some(class) = row.iter().position(|value| value.is_nan()) {
            return Err(TopKError::Nan { image, class });
        }
        // A label beyond the classes is named by none.
        let before = |&own: &f32| {
            let (lower, higher) = row.split_at(label);
            lower.iter().filter(|&&value| value >= own).count()
                + higher.iter().filter(|&&value| value > own).count()
        };
        correct += u64::from(row.get(label).is_some_and(|own| before(own) < k));
    }
    Ok(correct)
}

/// The `k` classes with the largest logits, the largest first and the lowest class first among equals; the class of the
/// first NaN where there is one.
pub fn first(k: usize, row: &[f32]) -> Result<Vec<usize>, usize> {
    if let Some(class) = row.iter().position(|value| value.is_nan()) {
        return Err(class);
    }
    let mut classes: Vec<usize> = (0..row.len()).collect();
    // Stable, so equals stay in order; 0 and -0 are equal.
    classes.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap_or(Ordering::Equal));
    classes.truncate(k);
    Ok(classes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_class() {
        let logits = [0.5, 2.0, 2.0, -1.0, -1.0, -1.0];
        assert_eq!(correct(&logits, 3, &[1, 0]), Ok(2));
        assert_eq!(correct(&logits, 3, &[2, 1]), Ok(0));
    }

    #[test]
    fn the_first_k_are_those_that_the_order_names() {
        let row = [0.5, 2.0, -0.0, 2.0, 0.0, -1.0];
        assert_eq!(first(3, &row), Ok(vec![1, 3, 0]));
        assert_eq!(first(9, &row).map(|all| all.len()), Ok(6));
        assert_eq!(first(1, &[0.0, f32::NAN]), Err(1));
        for k in 1..=6 {
            for label in 0..6 {
                let named = first(k, &row).unwrap().contains(&label);
                let counted = correct_among(k, &row, 6, &[label]).unwrap();
                assert_eq!(counted, u64::from(named), "k {k}, label {label}");
            }
        }
        assert_eq!(correct_among(2, &[1.0, 2.0], 2, &[2]), Ok(0));
    }

    #[test]
    fn infinities_are_ordinary_values() {
        let logits = [f32::NEG_INFINITY, 0.0, f32::INFINITY, 1e30];
        assert_eq!(correct(&logits, 2, &[1, 0]), Ok(2));
    }

    #[test]
    fn nan_is_an_error_wherever_it_stands() {
        assert_eq!(
            correct(&[0.0, 1.0, 3.0, f32::NAN], 2, &[1, 0]),
            Err(TopKError::Nan { image: 1, class: 1 })
        );
        assert_eq!(
            correct(&[f32::NAN, 1.0], 2, &[1]),
            Err(TopKError::Nan { image: 0, class: 0 })
        );
    }

    #[test]
    fn shapes_must_agree() {
        for (logits, classes, labels) in [(3, 2, 2), (4, 0, 2), (4, 2, 1)] {
            let result = correct(&vec![0.0; logits], classes, &vec![0; labels]);
            assert_eq!(
                result,
                Err(TopKError::Shape {
                    logits,
                    labels,
                    classes
                })
            );
        }
    }
}

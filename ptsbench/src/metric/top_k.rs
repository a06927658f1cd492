//! Top-1 accuracy: which class the logits name, and how often it is the right one.

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
    if classes == 0 || Some(logits.len()) != labels.len().checked_mul(classes) {
        return Err(TopKError::Shape {
            logits: logits.len(),
            labels: labels.len(),
            classes,
        });
    }
    let mut correct = 0;
    for (image, (row, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        let best = argmax(row).map_err(|class| TopKError::Nan { image, class })?;
        correct += u64::from(best == label);
    }
    Ok(correct)
}

/// The index of the largest value, the lowest among equals; the index of the first NaN where there is one.
fn argmax(row: &[f32]) -> Result<usize, usize> {
    let mut best = 0;
    for (class, &value) in row.iter().enumerate() {
        if value.is_nan() {
            return Err(class);
        }
        if value > row[best] {
            best = class;
        }
    }
    Ok(best)
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

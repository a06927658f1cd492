//! How far a generation got: sums of features, and what they amount to at the end.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::metric::fid::Gatherer;
use crate::task::judged::Tally;

/// Images that were generated, as the sums of their features.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// Images generated.
    pub images: usize,
    /// Of those, images with values that are no numbers; the sums are of the others.
    pub lost: usize,
    /// What is known of the features of the others.
    pub features: Gatherer,
    /// What came of all of them, once all are made.
    #[serde(skip)]
    pub found: Option<Found>,
}

/// What a distance is and of what.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// `fid`, or `fd_` and the network whose features were compared.
    pub metric: String,
    /// The distance; none where images were lost.
    pub distance: Option<f64>,
    /// Images that these were compared with; 0 where only their statistics are known.
    pub reference: usize,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Some(Found {
                metric,
                distance: Some(distance),
                ..
            }) => write!(f, "{metric} {distance:.4}"),
            Some(Found { metric, .. }) => {
                write!(f, "{metric}: collapsed, {} are no images,", self.lost)
            }
            None => f.write_str(&self.brief()),
        }
    }
}

impl Tally for Made {
    /// The sums of 4,096 features are four fifths of it.
    const LIMIT: u64 = 192 << 20;

    fn samples(&self) -> usize {
        self.images
    }

    /// Images are made, not read.
    fn unreadable(&self) -> &[String] {
        &[]
    }

    fn is_sound(&self) -> bool {
        let summed = self.images.checked_sub(self.lost);
        summed.is_some_and(|summed| summed as u64 == self.features.samples())
    }

    fn brief(&self) -> String {
        match self.lost {
            0 => format!("{} made", self.images),
            lost => format!("{} made, {lost} of them no images", self.images),
        }
    }

    fn numbers(&self) -> Value {
        let Some(found) = &self.found else {
            return json!({ "lost": self.lost });
        };
        let value = match found.distance {
            Some(distance) => json!(distance),
            None => json!("collapsed"),
        };
        json!({
            "metric": found.metric,
            "value": value,
            "reference": found.reference,
            "lost": self.lost,
        })
    }
}

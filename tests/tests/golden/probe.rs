//! Comparisons that count themselves: how many values, and the largest error as a share of its tolerance.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// `|got - want| <= abs + rel * |want|`.
#[derive(Clone, Copy)]
pub struct Tolerance {
    pub abs: f64,
    pub rel: f64,
}

impl Tolerance {
    pub const fn abs(abs: f64) -> Self {
        Self { abs, rel: 0.0 }
    }
}

/// What a test has compared so far.
#[derive(Default)]
pub struct Tally {
    compared: usize,
    worst: f64,
}

impl Tally {
    /// Counts `number` things found equal.
    pub fn exact(&mut self, number: usize) {
        self.compared += number;
    }

    #[track_caller]
    pub fn near(&mut self, got: f64, want: f64, tolerance: Tolerance, what: &str) {
        let allowed = tolerance.abs + tolerance.rel * want.abs();
        let error = (got - want).abs();
        assert!(
            error <= allowed,
            "{what}: {got} is not {want}: {error:e} is more than {allowed:e}"
        );
        self.compared += 1;
        if allowed > 0.0 {
            self.worst = self.worst.max(error / allowed);
        }
    }

    #[track_caller]
    pub fn all<G: Into<f64> + Copy, W: Into<f64> + Copy>(
        &mut self,
        got: &[G],
        want: &[W],
        tolerance: Tolerance,
        what: &str,
    ) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
            self.near(
                got.into(),
                want.into(),
                tolerance,
                &format!("{what}[{index}]"),
            );
        }
    }

    /// Prints the line that a report collects.
    pub fn report(self, topic: &str) {
        assert!(self.compared > 0, "{topic}: nothing was compared");
        println!(
            "golden {topic}: {} comparisons, largest error {:.3} of its tolerance",
            self.compared, self.worst
        );
    }
}

/// A tensor by its shape, sums, extremes and some of its values.
#[derive(Deserialize)]
pub struct Probe {
    shape: Vec<usize>,
    sum: f64,
    min: f64,
    max: f64,
    index: Vec<usize>,
    value: Vec<f64>,
}

impl Probe {
    pub fn of(value: &Value) -> Self {
        Self::deserialize(value).unwrap_or_else(|error| panic!("{error} in {value}"))
    }

    #[track_caller]
    pub fn check(
        &self,
        shape: &[usize],
        got: &[f32],
        tolerance: Tolerance,
        tally: &mut Tally,
        what: &str,
    ) {
        assert_eq!(shape, self.shape, "{what}");
        assert_eq!(got.len(), shape.iter().product::<usize>(), "{what}");
        for (&index, &want) in self.index.iter().zip(&self.value) {
            let what = format!("{what} at {index}");
            tally.near(got[index].into(), want, tolerance, &what);
        }
        let each = Tolerance::abs(tolerance.abs * got.len() as f64);
        let sum = got.iter().map(|&value| f64::from(value)).sum();
        tally.near(sum, self.sum, each, &format!("{what}: sum"));
        let extreme = |pick: fn(f32, f32) -> f32| got.iter().copied().reduce(pick).expect("values");
        let (low, high) = (extreme(f32::min), extreme(f32::max));
        tally.near(low.into(), self.min, tolerance, &format!("{what}: minimum"));
        tally.near(
            high.into(),
            self.max,
            tolerance,
            &format!("{what}: maximum"),
        );
    }
}

/// A JSON file of a topic.
pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

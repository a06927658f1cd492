//! FCPTS (section 1.4 of the specification; arXiv 2405.05808): a threshold per layer and all weights, trained together on
//! what the dense network says, under one constraint on the rate of the whole network.
//!
//! `L = L_rec + lambda |sum_l n_l rho_l / N - P|`, where `rho_l` is the share of layer `l` that its threshold prunes. The
//! allocation that a cell names is where the thresholds start. What comes of it are rates, and with them either the
//! trained network or, by magnitude, the dense one.
//!
//! `threshold.rs` has the equations of a threshold, `loss.rs` those of `L_rec`, `learner.rs` the training.

mod error;
pub mod learner;
pub mod loss;
pub mod threshold;

use kernels::MaskGrad;
use serde::{Deserialize, Serialize};

use crate::descent::warm_cosine;
use crate::options::{self, BadOptions, Options};
use threshold::Bridge;

pub use error::LearnError;

/// Its name in plans and records, where criteria are named.
pub const NAME: &str = "fcpts";
/// Measurement version: raised whenever its numbers may change.
pub const VERSION: u32 = 1;

/// The method with its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fcpts {
    /// Which weights the learned rates are applied to.
    pub weights: Kept,
    /// `L_rec`.
    pub loss: Loss,
    /// What the norms of the dense network use while it teaches.
    pub teacher: Teacher,
    /// What passes the mask backwards.
    #[serde(with = "MaskGradName")]
    pub mask_grad: MaskGrad,
    /// How a layer's rate depends on its threshold.
    pub bridge: Bridge,
    /// What a unit of rate costs that is missing or too much.
    pub lambda: f64,
    /// Times that the calibration images go through.
    pub epochs: usize,
    /// The largest learning rate of weights and thresholds; the release has 0.04 for 256 images and takes 64.
    pub learning_rate: f64,
    /// Images of a step; 0 for the calibration's batch.
    pub batch: usize,
}

/// Which weights the learned rates are applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Those trained with the thresholds, with biases and norms: a whole method.
    Trained,
    /// The dense network's, by magnitude: an allocation alone.
    Dense,
}

/// How far the sparse network's outputs are from the dense one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Kullback-Leibler divergence of logits; the mean square of what is no logits of a classifier.
    Kl,
    /// The mean square of every output.
    Mse,
}

/// What the norms of the dense network use while it teaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Teacher {
    /// Their own statistics, as when it is evaluated.
    Eval,
    /// The batch's, as in the release.
    Train,
}

/// As plans spell it.
#[derive(Serialize, Deserialize)]
#[serde(remote = "MaskGrad", rename_all = "snake_case")]
enum MaskGradName {
    None,
    Threshold,
    Both,
}

impl Default for Fcpts {
    fn default() -> Self {
        Self {
            weights: Kept::Trained,
            loss: Loss::Kl,
            teacher: Teacher::Eval,
            mask_grad: MaskGrad::Threshold,
            bridge: Bridge::Hist100,
            lambda: 1.0,
            epochs: 100,
            learning_rate: 0.01,
            batch: 0,
        }
    }
}

impl Fcpts {
    /// One line for `ptsbench list`.
    pub const ABOUT: &str = "a whole method: thresholds and weights trained together, from the allocation named beside it, \
                             to the dense network's outputs (no labels)";
    /// What it looks at, for `ptsbench list`.
    pub const NEEDS: &str = "weights, images";

    /// As these options ask for it.
    pub fn with(options: &Options) -> Result<Self, BadOptions> {
        let settings: Self = options::settings(NAME, options)?;
        match settings.out_of_range() {
            Some(why) => Err(BadOptions { name: NAME, why }),
            None => Ok(settings),
        }
    }

    /// The first option that lies outside its range, and what to write.
    fn out_of_range(&self) -> Option<String> {
        let Self {
            lambda,
            learning_rate,
            epochs,
            batch,
            ..
        } = self;
        if !(lambda.is_finite() && *lambda >= 0.0) {
            return Some(format!(
                "`lambda` is {lambda}; give a finite number, 0 or more (the paper's is 1)"
            ));
        }
        if !(*learning_rate > 0.0 && *learning_rate <= 1.0) {
            return Some(format!(
                "`learning_rate` is {learning_rate}; give a number above 0 and at most 1 (the release's is 0.01 for batches of 64)"
            ));
        }
        if !(1..=MOST_EPOCHS).contains(epochs) {
            return Some(format!(
                "`epochs` is {epochs}; give 1 to {MOST_EPOCHS} (the release's is 100)"
            ));
        }
        (*batch == 1).then(|| {
            "`batch` is 1, and norms need several images to measure; give 2 or more, or 0 for the calibration's batch"
                .to_owned()
        })
    }

    /// Its options that differ from the defaults.
    pub fn options(&self) -> Options {
        options::differing(self)
    }

    /// All its options.
    pub fn all_options(&self) -> Options {
        options::all(self)
    }

    /// Whether the network's other weights come from training too.
    pub fn trains(&self) -> bool {
        self.weights == Kept::Trained
    }

    /// The learning rate of a step, counted over the whole run of `steps` to an epoch; it rises for one epoch.
    pub fn rate(&self, step: usize, steps: usize) -> f64 {
        warm_cosine(self.learning_rate, step, steps, self.epochs * steps)
    }
}

/// Epochs at most: more are a slip of the pen.
const MOST_EPOCHS: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: impl Into<serde_json::Value>) -> Result<Fcpts, BadOptions> {
        Fcpts::with(&Options::from([(name.to_owned(), value.into())]))
    }

    #[test]
    fn options_out_of_range_are_named_with_their_bounds() {
        for (name, value, says) in [
            ("lambda", -1.0, "0 or more"),
            ("learning_rate", 0.0, "above 0"),
            ("learning_rate", 3.0, "at most 1"),
        ] {
            let error = with(name, value).unwrap_err().to_string();
            for part in ["fcpts", &format!("`{name}`"), &value.to_string(), says] {
                assert!(error.contains(part), "{error}");
            }
        }
        for (name, value, says) in [("epochs", 0, "1 to 10000"), ("batch", 1, "2 or more")] {
            let error = with(name, value).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(says), "{error}");
        }
        for (name, value) in [("weights", "sparse"), ("mask_grad", "all"), ("loss", "l1")] {
            let error = with(name, value).unwrap_err().to_string();
            assert!(error.contains(value), "{error}");
        }
        let error = with("init", "erk").unwrap_err().to_string();
        assert!(error.contains("`init`"), "{error}");
    }

    #[test]
    fn a_cell_holds_what_differs_from_the_defaults() {
        assert_eq!(with("lambda", 1).unwrap().options(), Options::new());
        let dense = with("weights", "dense").unwrap();
        assert_eq!(
            dense.options(),
            Options::from([("weights".to_owned(), "dense".into())])
        );
        assert!(!dense.trains() && Fcpts::default().trains());
        let none = with("mask_grad", "none").unwrap();
        assert_eq!(none.mask_grad, MaskGrad::None);
        assert_eq!(Fcpts::with(&none.all_options()).unwrap(), none);
    }

    #[test]
    fn the_rate_rises_for_an_epoch_and_falls_to_nothing() {
        let fcpts = Fcpts::default();
        let rates: Vec<f64> = (0..1600).map(|step| fcpts.rate(step, 16)).collect();
        assert_eq!((rates[0], rates[15], rates[16]), (0.01 / 16.0, 0.01, 0.01));
        assert!((rates[16 + 792] - 0.005).abs() < 1e-12);
        assert!(rates[1599] < 1e-7);
        // A run of one epoch only rises.
        let short = Fcpts { epochs: 1, ..fcpts };
        assert_eq!(short.rate(3, 4), 0.01);
    }
}

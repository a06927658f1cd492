//! The whole method: FCPTS from the allocation that the cell names to the one that it learns, and the network with it.

use model_zoo::tap::Bare;
use model_zoo::{Bundle, Network};

use super::{Dense, Images, Pruned};
use crate::allocate::{self, Allocation, Options, Rate};
use crate::batches::Batches;
use crate::cell::{Pattern, Rule, Sparsity};
use crate::criterion;
use crate::fcpts::learner::{Learner, Start, State, Terms};
use crate::fcpts::{Fcpts, Kept, LearnError, NAME, Teacher};
use crate::inventory::Weights;
use crate::pipeline::MeasureError;
use crate::record::Budget;
use crate::seed::Seed;
use crate::select::select;
use crate::subject;

impl<N: Network> Dense<'_, N> {
    pub(super) fn learn(
        &self,
        fcpts: &Fcpts,
        sparsity: &Sparsity,
        images: &mut Images<'_, N::Input>,
    ) -> Result<Pruned<N>, MeasureError> {
        let Pattern::Unstructured { rate } = sparsity.pattern else {
            return Err(LearnError::Pattern.into());
        };
        if sparsity.rule != Rule::Exact {
            return Err(LearnError::Rule.into());
        }
        let part = sparsity.allocation.as_ref().ok_or(LearnError::NoStart)?;
        let options = allocate::options_of(allocate::find(&part.name)?, &part.options)?;
        let (start, before) = self.allocate(sparsity, images)?;
        let start = start.ok_or(LearnError::NoStart)?;

        let mut wanted = sparsity
            .calibration
            .clone()
            .ok_or(MeasureError::NoCalibration)?;
        let batch = match fcpts.batch {
            0 => wanted.batch,
            batch => batch,
        };
        if batch > wanted.images {
            return Err(LearnError::Batch {
                batch,
                images: wanted.images,
            }
            .into());
        }
        let terms = Terms {
            fcpts,
            rate,
            batch,
            seed: Seed(wanted.seed),
            precision: self.precision,
        };
        let cost = cost(&terms, wanted.images);
        // One by one, since batches are mixed anew in each epoch.
        wanted.batch = 1;
        let singles = images(&wanted)?;
        let learner = self.train(terms, &self.starts(&start, &options)?, &singles)?;

        let trained = learner.network(self.device);
        let weights = subject::weights(&trained, self.census);
        let thresholds = learner.thresholds();
        let rate = Rate::new(rate)?;
        let allocation = allocate::by_thresholds(NAME, &weights, &thresholds, rate, &options)?;
        let (network, weights) = match fcpts.weights {
            Kept::Trained => (trained, &weights),
            Kept::Dense => (self.network.clone(), self.weights),
        };
        let (criterion, pattern) = (criterion::magnitude(), sparsity.pattern);
        let masks = select(
            weights,
            criterion,
            pattern,
            Some(&allocation),
            sparsity.rule,
        )?;
        Ok(Pruned {
            network,
            allocation: Some(allocation),
            masks,
            training: learner.history,
            budget: before.and(cost),
        })
    }

    /// Where each layer's threshold starts, by the layer's path in the module.
    fn starts(&self, from: &Allocation, options: &Options) -> Result<Vec<Start>, MeasureError> {
        // A threshold compares, and numbers that are none compare with nothing.
        allocate::finite_weights(NAME, self.weights)?;
        let most = allocate::most_zeros(self.weights.layers(), options)?;
        let sites = subject::sites(self.network, self.census);
        let starts = sites.iter().zip(from.zeros.values()).zip(most);
        let start = |((site, &zeros), most): ((&subject::Site, &usize), usize)| Start {
            path: site.weight(),
            zeros,
            most,
        };
        Ok(starts.map(start).collect())
    }

    /// All epochs, or those that an interrupted training still has to go.
    fn train<'t>(
        &self,
        terms: Terms<'t>,
        starts: &[Start],
        images: &Batches<'_, N::Input>,
    ) -> Result<Learner<'t, N>, LearnError> {
        let (fcpts, steps) = (terms.fcpts, terms.steps(images.len()));
        let dense = match fcpts.teacher {
            Teacher::Eval => self.network.clone(),
            // Statistics of a training copy are its own. Without gradients nothing is kept of the passes.
            Teacher::Train => self.network.clone().no_grad().train(),
        };
        let teacher = |batch: N::Input| {
            let batch = match fcpts.teacher {
                Teacher::Eval => batch,
                Teacher::Train => batch.to_autodiff(),
            };
            dense.run(batch, &mut Bare(self.precision))
        };
        let mut learner = Learner::start(self.network, starts, terms, self.device);
        let checkpoint = self.checkpoints.map(|all| all.of_training());
        if let Some(checkpoint) = &checkpoint {
            let expected = Learner::expected(self.network);
            match checkpoint.read(&expected, |state: &State| state.fits(fcpts, starts)) {
                Ok(None) => {}
                Ok(Some((state, tensors))) => {
                    learner = learner.resume(state, tensors, self.device);
                    let done = learner.history.len();
                    self.progress.note(&format!(
                        "{NAME}: going on after epoch {done} of {}",
                        fcpts.epochs
                    ));
                }
                Err(why) => {
                    checkpoint.remove()?;
                    self.progress.note(&format!(
                        "{}: {why}; it was removed, and training begins again",
                        checkpoint.file.display()
                    ));
                }
            }
        }
        let first = learner.history.len() * steps;
        let total = fcpts.epochs * steps - first;
        self.progress.unit(0, 1, NAME);
        while !learner.is_done() {
            learner = learner.epoch(images, &teacher, |done, loss| {
                self.progress.step(done - first, total, loss);
            })?;
            if let Some(checkpoint) = &checkpoint {
                let (state, tensors) = learner.checkpoint();
                checkpoint.write(&state, tensors.into_iter())?;
            }
        }
        Ok(learner)
    }
}

/// What training takes: every step sends its images through both networks.
fn cost(terms: &Terms<'_>, images: usize) -> Budget {
    let steps = (terms.fcpts.epochs * terms.steps(images)) as u64;
    Budget {
        images: images as u64,
        labels: 0,
        gradient_steps: steps,
        forward_passes: 2 * steps * terms.batch as u64,
    }
}

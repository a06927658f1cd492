//! DDIM, after Song, Meng and Ermon (2021), with the noise schedules that networks were trained with: the arithmetic of a
//! step in f64, as factors that a caller applies to its tensors. [`ddim`](super::ddim) is such a caller.

/// Training timesteps.
pub const TRAINING_STEPS: usize = 1000;

/// What the network was trained to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity: `sqrt(alpha) noise - sqrt(1 - alpha) image`.
    Velocity,
}

impl Prediction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Epsilon, Self::Velocity];

    /// As recipes spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "noise",
            Self::Velocity => "velocity",
        }
    }
}

/// How noise grows with the timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noising {
    /// Stable Diffusion's: [`Schedule::stable_diffusion`].
    ScaledLinear,
    /// [`Schedule::cosine`].
    Cosine,
}

impl Noising {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ScaledLinear, Self::Cosine];

    /// As recipes spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ScaledLinear => "scaled linear",
            Self::Cosine => "cosine",
        }
    }

    /// The schedule.
    pub fn schedule(self) -> Schedule {
        match self {
            Self::ScaledLinear => Schedule::stable_diffusion(),
            Self::Cosine => Schedule::cosine(),
        }
    }
}

/// What a network was trained to undo, and the timesteps that it is asked at where nobody says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// How noise grows.
    pub noising: Noising,
    /// What the network says.
    pub prediction: Prediction,
    /// Which timesteps.
    pub spacing: Spacing,
    /// How many.
    pub steps: usize,
}

impl Process {
    /// Stable Diffusion 2's base, whose network is for images of 512 x 512.
    pub const STABLE_DIFFUSION: Self = Self {
        noising: Noising::ScaledLinear,
        prediction: Prediction::Epsilon,
        spacing: Spacing::Leading,
        steps: 50,
    };

    /// The built-in networks'. Their images are large plain areas, so a colour's mean over an image survives noise that hides
    /// everything else: with Stable Diffusion's schedule the last step still shows it, and a sampler that begins with noise
    /// alone draws pale images. The cosine schedule ends in noise, begun at its very last step. There, noise says nothing of
    /// the image, and the velocity is the image itself: a small network's error is not divided by a signal near zero.
    pub const MICRO: Self = Self {
        noising: Noising::Cosine,
        prediction: Prediction::Velocity,
        spacing: Spacing::Trailing,
        steps: 20,
    };
}

/// How few timesteps are chosen among the training steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of the whole ratio, moved up by one: Stable Diffusion 2.
    Leading,
    /// Steps of the exact ratio down from the last.
    Trailing,
    /// Evenly from the first to the last.
    Linspace,
}

impl Spacing {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Leading, Self::Trailing, Self::Linspace];

    /// As recipes spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leading => "leading",
            Self::Trailing => "trailing",
            Self::Linspace => "linspace",
        }
    }
}

/// A number of steps that a spacing cannot give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepsError {
    /// None, or more than were trained.
    #[error("{steps} steps asked for; choose 1 to {TRAINING_STEPS}")]
    Count {
        /// Steps asked for.
        steps: usize,
    },
    /// A timestep outside the schedule.
    #[error(
        "{steps} steps with this spacing visit timestep {timestep}, outside 0..{TRAINING_STEPS}; choose fewer steps"
    )]
    Outside {
        /// Steps asked for.
        steps: usize,
        /// The timestep.
        timestep: i64,
    },
}

/// The noise schedule: cumulative products of alpha by timestep.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    alpha_bar: Vec<f64>,
}

/// One step as a linear map. With `x` the sample, `o` the network's output and `z` unit noise, the image is
/// `image[0] x + image[1] o` and the next sample `next[0] x + next[1] o + next[2] z`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Factors of sample and output in the predicted image.
    pub image: [f64; 2],
    /// Factors of sample, output and noise in the next sample.
    pub next: [f64; 3],
}

impl Schedule {
    /// Stable Diffusion 2's: betas whose roots rise evenly from the root of 0.00085 to that of 0.012.
    pub fn stable_diffusion() -> Self {
        let (low, high) = (0.00085_f64.sqrt(), 0.012_f64.sqrt());
        let step = (high - low) / (TRAINING_STEPS - 1) as f64;
        let mut product = 1.0;
        let alpha_bar = (0..TRAINING_STEPS)
            .map(|t| {
                let root = if t == TRAINING_STEPS - 1 {
                    high
                } else {
                    t as f64 * step + low
                };
                product *= 1.0 - root * root;
                product
            })
            .collect();
        Self { alpha_bar }
    }

    /// Nichol and Dhariwal's (2021, arXiv 2102.09672): the signal falls like a squared cosine, and at the last timestep next to
    /// nothing of it is left.
    pub fn cosine() -> Self {
        const OFFSET: f64 = 0.008;
        const MOST: f64 = 0.999;
        let signal = |t: usize| {
            let part = t as f64 / TRAINING_STEPS as f64;
            let angle = (part + OFFSET) / (1.0 + OFFSET) * std::f64::consts::FRAC_PI_2;
            angle.cos().powi(2)
        };
        let mut product = 1.0;
        let alpha_bar = (0..TRAINING_STEPS)
            .map(|t| {
                product *= 1.0 - (1.0 - signal(t + 1) / signal(t)).min(MOST);
                product
            })
            .collect();
        Self { alpha_bar }
    }

    /// The cumulative product at each timestep.
    pub fn alpha_bar(&self) -> &[f64] {
        &self.alpha_bar
    }

    /// The timesteps of a run, the noisiest first.
    pub fn timesteps(spacing: Spacing, steps: usize) -> Result<Vec<usize>, StepsError> {
        if steps == 0 || steps > TRAINING_STEPS {
            return Err(StepsError::Count { steps });
        }
        let all = TRAINING_STEPS as f64;
        let timesteps: Vec<i64> = match spacing {
            Spacing::Leading => {
                let ratio = (TRAINING_STEPS / steps) as i64;
                (0..steps as i64).rev().map(|k| k * ratio + 1).collect()
            }
            Spacing::Trailing => {
                let ratio = all / steps as f64;
                let count = (all / ratio).ceil() as usize;
                let place = |k: usize| (all - k as f64 * ratio).round_ties_even() as i64 - 1;
                (0..count).map(place).collect()
            }
            Spacing::Linspace => {
                let step = if steps > 1 {
                    (all - 1.0) / (steps - 1) as f64
                } else {
                    0.0
                };
                let place = |k: usize| (k as f64 * step).round_ties_even() as i64;
                (0..steps).rev().map(place).collect()
            }
        };
        timesteps
            .into_iter()
            .map(|timestep| {
                usize::try_from(timestep)
                    .ok()
                    .filter(|&timestep| timestep < TRAINING_STEPS)
                    .ok_or(StepsError::Outside { steps, timestep })
            })
            .collect()
    }

    /// The step from timestep `t` in a run of `steps`; `eta` 0 is deterministic, 1 is DDPM.
    ///
    /// The timestep before the first has the alpha of timestep 0, not 1: these networks never saw a clean image.
    pub fn step(&self, prediction: Prediction, t: usize, steps: usize, eta: f64) -> Step {
        let here = self.alpha_bar[t];
        let before = self.alpha_bar[t.saturating_sub(TRAINING_STEPS / steps)];
        let (signal, noise) = (here.sqrt(), (1.0 - here).sqrt());
        // Image and noise as factors of the sample and the output.
        let (image, epsilon) = match prediction {
            Prediction::Epsilon => ([1.0 / signal, -noise / signal], [0.0, 1.0]),
            Prediction::Velocity => ([signal, -noise], [noise, signal]),
        };
        // Equation 16 of the paper; equation 12 with it.
        let sigma = eta * ((1.0 - before) / (1.0 - here) * (1.0 - here / before)).sqrt();
        let direction = (1.0 - before - sigma * sigma).sqrt();
        let next = |at: usize| before.sqrt() * image[at] + direction * epsilon[at];
        Step {
            image,
            next: [next(0), next(1), sigma],
        }
    }

    /// Factors of image and noise in a noisy sample at timestep `t`; the velocity has them exchanged, the second negated.
    pub fn noising(&self, t: usize) -> [f64; 2] {
        let here = self.alpha_bar[t];
        [here.sqrt(), (1.0 - here).sqrt()]
    }
}

/// Classifier-free guidance: the factors of the unconditional and the conditional output.
pub fn guidance(scale: f64) -> [f64; 2] {
    [1.0 - scale, scale]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_prediction_leads_to_the_image_at_the_earlier_noise() {
        let schedule = Schedule::stable_diffusion();
        let (image, noise) = (0.7, -1.3);
        for t in [1, 481, 981] {
            let [signal, spread] = schedule.noising(t);
            let sample = signal * image + spread * noise;
            for (prediction, output) in [
                (Prediction::Epsilon, noise),
                (Prediction::Velocity, signal * noise - spread * image),
            ] {
                let step = schedule.step(prediction, t, 50, 0.0);
                let predicted = step.image[0] * sample + step.image[1] * output;
                assert!((predicted - image).abs() < 1e-12, "{prediction:?} at {t}");
                let [signal, spread] = schedule.noising(t.saturating_sub(20));
                let next = step.next[0] * sample + step.next[1] * output;
                let wanted = signal * image + spread * noise;
                assert!((next - wanted).abs() < 1e-12, "{prediction:?} at {t}");
            }
        }
    }

    #[test]
    fn the_cosine_schedule_ends_in_noise() {
        let schedule = Schedule::cosine();
        let alpha_bar = schedule.alpha_bar();
        assert_eq!(alpha_bar.len(), TRAINING_STEPS);
        assert!(alpha_bar.is_sorted_by(|a, b| a > b));
        assert!(alpha_bar[0] > 0.9999 && alpha_bar[TRAINING_STEPS - 1] < 1e-8);
        // Half of it, but for the offset, is gone in the middle.
        assert!((alpha_bar[TRAINING_STEPS / 2] - 0.49).abs() < 0.01);
    }

    #[test]
    fn impossible_runs_are_refused() {
        let error = Schedule::timesteps(Spacing::Leading, 1000).unwrap_err();
        assert!(error.to_string().contains("timestep 1000"), "{error}");
        assert!(Schedule::timesteps(Spacing::Leading, 0).is_err());
        assert!(Schedule::timesteps(Spacing::Trailing, 1001).is_err());
    }
}

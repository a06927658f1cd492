//! Whole runs of DDIM against diffusers': timesteps, noise levels, and the sample behind each step.

use std::collections::BTreeMap;

use model_zoo::diffusion::sampler::{Prediction, Schedule, Spacing};

use super::*;
use formula::stream;

/// The name of the golden file.
pub const NAME: &str = "sd2_schedulers";

#[derive(Deserialize)]
struct Golden {
    arch: String,
    salt: String,
    cases: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    name: String,
    config: Config,
    num_inference_steps: usize,
    shape: Vec<usize>,
    sample_scale: f32,
    timesteps: Vec<usize>,
    alphas_cumprod: BTreeMap<usize, f64>,
    tensor: String,
    atol: f64,
}

#[derive(Deserialize)]
struct Config {
    prediction_type: String,
    timestep_spacing: Option<String>,
}

impl Config {
    fn prediction(&self) -> Prediction {
        match self.prediction_type.as_str() {
            "epsilon" => Prediction::Epsilon,
            "v_prediction" => Prediction::Velocity,
            other => panic!("prediction {other}"),
        }
    }

    fn spacing(&self) -> Spacing {
        match self.timestep_spacing.as_deref() {
            None | Some("leading") => Spacing::Leading,
            Some("trailing") => Spacing::Trailing,
            Some(other) => panic!("spacing {other}"),
        }
    }
}

/// Every step's network gives half its sample and some noise of the formula.
pub fn check(folder: &Path) -> Result<Outcome, String> {
    let golden: Golden = read_json(&folder.join(format!("{NAME}.json")))?;
    let stored = Container::open(&folder.join(format!("{NAME}.safetensors")))
        .map_err(|error| error.to_string())?;
    let mut outcome = Outcome::default();
    outcome.expect("arch", golden.arch.as_str(), NAME);
    let schedule = Schedule::stable_diffusion();
    for case in &golden.cases {
        let (name, steps) = (&case.name, case.num_inference_steps);
        for (t, alpha) in &case.alphas_cumprod {
            // Printed with ten digits.
            let off = (schedule.alpha_bar()[*t] - alpha).abs() / alpha;
            outcome.expect(&format!("{name}: alpha at {t} is near"), off < 1e-6, true);
        }
        let timesteps = Schedule::timesteps(case.config.spacing(), steps);
        let timesteps = timesteps.map_err(|error| format!("{name}: {error}"))?;
        outcome.expect(&format!("{name}: timesteps"), &timesteps, &case.timesteps);

        let count: usize = case.shape.iter().product();
        let first = stream(&golden.salt, "sample").take(count);
        let mut x: Vec<f64> = first.map(|u| f64::from(case.sample_scale * u)).collect();
        let mut found = Vec::with_capacity(steps * count);
        for (place, &t) in timesteps.iter().enumerate() {
            let step = schedule.step(case.config.prediction(), t, steps, 0.0);
            let noise = stream(&golden.salt, &format!("model_output.{place}"));
            for (x, u) in x.iter_mut().zip(noise) {
                *x = step.next[0] * *x + step.next[1] * (0.5 * *x + f64::from(u));
            }
            found.extend(x.iter().map(|&x| x as f32));
        }
        let wanted = stored
            .read(&case.tensor)
            .map_err(|error| error.to_string())?;
        let ratio = error_ratio(&found, &wanted, case.atol);
        outcome.outputs += 1;
        outcome.ratio = outcome.ratio.max(ratio);
        if ratio > 1.0 {
            outcome.failures.push(format!(
                "{name}: error is {ratio:.3} x the tolerance {:e}",
                case.atol
            ));
        }
    }
    Ok(outcome)
}

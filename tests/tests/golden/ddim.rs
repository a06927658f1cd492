//! The DDIM sampler against diffusers (f32) and against its formulas in f64.

use model_zoo::diffusion::sampler::{self, Prediction, Schedule, Spacing};
use ptsbench_tests::golden_topic;

use crate::probe::{Tally, Tolerance, json};
use crate::tensors::Tensors;

const F32: Tolerance = Tolerance::abs(5e-6);
const F64: Tolerance = Tolerance::abs(1e-10);

fn tensors() -> Tensors {
    Tensors::open(&golden_topic("ddim").join("ddim.safetensors"))
}

fn prediction(name: &str) -> Prediction {
    match name {
        "epsilon" => Prediction::Epsilon,
        "v_prediction" => Prediction::Velocity,
        other => panic!("prediction {other}"),
    }
}

#[test]
fn ddim_schedule() {
    let tensors = tensors();
    let mut tally = Tally::default();
    let schedule = Schedule::stable_diffusion();
    let want = tensors.f64("alphas_cumprod_f64");
    tally.all(schedule.alpha_bar(), &want, Tolerance::abs(1e-14), "alpha");
    let want = tensors.f32("alphas_cumprod_f32");
    let close = Tolerance {
        abs: 0.0,
        rel: 1e-6,
    };
    tally.all(schedule.alpha_bar(), &want, close, "alpha in f32");
    let expected = json(&golden_topic("ddim").join("ddim.json"));
    for (key, want) in expected["schedules"].as_object().expect("schedules") {
        let (spacing, steps) = key.split_once('/').expect("spacing/steps");
        let spacing = match spacing {
            "leading" => Spacing::Leading,
            "trailing" => Spacing::Trailing,
            "linspace" => Spacing::Linspace,
            other => panic!("spacing {other}"),
        };
        let want: Vec<usize> = serde_json::from_value(want.clone()).expect("timesteps");
        match Schedule::timesteps(spacing, steps.parse().unwrap()) {
            Ok(timesteps) => assert_eq!(timesteps, want, "{key}"),
            // The reference walks past its table; we refuse.
            Err(error) => assert_eq!(want[0], sampler::TRAINING_STEPS, "{key}: {error}"),
        }
        tally.exact(want.len());
    }
    tally.report("ddim/schedule");
}

#[test]
fn ddim_steps() {
    let tensors = tensors();
    let expected = json(&golden_topic("ddim").join("ddim.json"));
    let schedule = Schedule::stable_diffusion();
    let mut tally = Tally::default();
    for (key, want) in expected["steps"].as_object().expect("steps") {
        let mut parts = key.split('/');
        let kind = prediction(parts.next().unwrap());
        let steps: usize = parts.next().unwrap().parse().unwrap();
        let timestep = want["timestep"].as_u64().unwrap() as usize;
        let step = schedule.step(kind, timestep, steps, want["eta"].as_f64().unwrap());
        let sample = tensors.f32(&format!("{key}/sample"));
        let output = tensors.f32(&format!("{key}/model_output"));
        let noise = format!("{key}/noise");
        let noise = if tensors.has(&noise) {
            tensors.f32(&noise)
        } else {
            vec![0.0; sample.len()]
        };
        let (mut next, mut image) = (Vec::new(), Vec::new());
        for ((x, o), z) in sample.iter().zip(&output).zip(&noise) {
            let [x, o, z] = [x, o, z].map(|value| f64::from(*value));
            next.push(step.next[0] * x + step.next[1] * o + step.next[2] * z);
            image.push(step.image[0] * x + step.image[1] * o);
        }
        tally.all(
            &next,
            &tensors.f64(&format!("{key}/prev_sample_f64")),
            F64,
            key,
        );
        tally.all(
            &image,
            &tensors.f64(&format!("{key}/pred_x0_f64")),
            F64,
            key,
        );
        tally.all(&next, &tensors.f32(&format!("{key}/prev_sample")), F32, key);
        // The image divides by a small number at the noisiest step.
        let image_f32 = Tolerance { rel: 1e-5, ..F32 };
        tally.all(
            &image,
            &tensors.f32(&format!("{key}/pred_x0")),
            image_f32,
            key,
        );
    }
    tally.report("ddim/steps");
}

#[test]
fn ddim_trajectories() {
    let tensors = tensors();
    let schedule = Schedule::stable_diffusion();
    let mut tally = Tally::default();
    for kind in ["epsilon", "v_prediction"] {
        let mut x = tensors.f32(&format!("trajectory/{kind}/start"));
        let want = tensors.f32(&format!("trajectory/{kind}/after_each_step"));
        let timesteps = Schedule::timesteps(Spacing::Leading, 20).unwrap();
        for (&t, want) in timesteps.iter().zip(want.chunks_exact(x.len())) {
            let step = schedule.step(prediction(kind), t, 20, 0.0);
            for x in &mut x {
                let output = 0.3 * *x + 0.01 * (t as f32 / 1000.0);
                let next = step.next[0] * f64::from(*x) + step.next[1] * f64::from(output);
                *x = next as f32;
            }
            tally.all(&x, want, Tolerance::abs(1e-4), &format!("{kind} after {t}"));
        }
    }
    tally.report("ddim/trajectories");
}

#[test]
fn ddim_noise_velocity_and_guidance() {
    let tensors = tensors();
    let schedule = Schedule::stable_diffusion();
    let mut tally = Tally::default();
    let close = Tolerance::abs(1e-6);
    let (x, z) = (tensors.f32("add_noise/x"), tensors.f32("add_noise/noise"));
    let times = tensors.counts("add_noise/t");
    let each = x.len() / times.len();
    let (mut noisy, mut velocity) = (Vec::new(), Vec::new());
    for (at, (&x, &z)) in x.iter().zip(&z).enumerate() {
        let [signal, spread] = schedule.noising(times[at / each]);
        noisy.push(signal * f64::from(x) + spread * f64::from(z));
        velocity.push(signal * f64::from(z) - spread * f64::from(x));
    }
    tally.all(&noisy, &tensors.f32("add_noise/out"), close, "noise");
    tally.all(&velocity, &tensors.f32("velocity/out"), close, "velocity");
    let [without, with] = sampler::guidance(7.5);
    let (uncond, cond) = (tensors.f32("cfg/uncond"), tensors.f32("cfg/cond"));
    let guided: Vec<f64> = uncond
        .iter()
        .zip(&cond)
        .map(|(&u, &c)| without * f64::from(u) + with * f64::from(c))
        .collect();
    let close = Tolerance {
        abs: 1e-6,
        rel: 1e-6,
    };
    tally.all(&guided, &tensors.f32("cfg/out_7.5"), close, "guidance");
    tally.report("ddim/noise");
}

//! What training and sampling must agree on: how images become a network's values, how they are noised, what a network is to
//! say of them, and the way from noise to an image.

use burn::tensor::{Device, Tensor, TensorData};

use super::sampler::{Prediction, Process, Schedule, StepsError};

/// A colour as a network has it, in [-1, 1].
pub fn from_byte(value: u8) -> f32 {
    f32::from(value) / 127.5 - 1.0
}

/// The colour next to a network's value; what lies outside [-1, 1] is cut off there.
pub fn to_byte(value: f32) -> u8 {
    // The cast saturates, and takes what is not a number to 0.
    ((value + 1.0) * 127.5).round_ties_even() as u8
}

/// Noisy images as a network is trained on them, and what it is to say.
#[derive(Debug, Clone)]
pub struct Noised {
    /// The noisy images.
    pub images: Tensor<4>,
    /// The timestep of each, as a network takes it.
    pub time: Tensor<1>,
    /// What the network is to say of them.
    pub target: Tensor<4>,
}

impl Schedule {
    /// Images with unit noise mixed in, each as much as its timestep says.
    pub fn noised(
        &self,
        prediction: Prediction,
        images: Tensor<4>,
        noise: Tensor<4>,
        timesteps: &[usize],
    ) -> Noised {
        let device = images.device();
        let factor = |of: usize| {
            let values: Vec<f32> = timesteps
                .iter()
                .map(|&t| self.noising(t)[of] as f32)
                .collect();
            let shape = [timesteps.len(), 1, 1, 1];
            Tensor::<4>::from_data(TensorData::new(values, shape), &device)
        };
        let (signal, spread) = (factor(0), factor(1));
        let noisy = signal.clone() * images.clone() + spread.clone() * noise.clone();
        Noised {
            images: noisy,
            time: times(timesteps, &device),
            target: match prediction {
                Prediction::Epsilon => noise,
                Prediction::Velocity => signal * noise - spread * images,
            },
        }
    }
}

/// Timesteps as a network takes them.
pub fn times(timesteps: &[usize], device: &Device) -> Tensor<1> {
    let values: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
    Tensor::from_data(TensorData::new(values, [timesteps.len()]), device)
}

/// A run of DDIM without noise on the way (eta 0): the same noise always leads to the same image.
#[derive(Debug, Clone)]
pub struct Ddim {
    schedule: Schedule,
    prediction: Prediction,
    timesteps: Vec<usize>,
    steps: usize,
}

impl Ddim {
    /// As the process says, but for the number of its steps.
    pub fn new(process: &Process, steps: usize) -> Result<Self, StepsError> {
        Ok(Self {
            schedule: process.noising.schedule(),
            prediction: process.prediction,
            timesteps: Schedule::timesteps(process.spacing, steps)?,
            steps,
        })
    }

    /// The timesteps at which the network is asked, the noisiest first.
    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    /// The sample behind the step at a place among [`Self::timesteps`], from the one before it and the network's output.
    pub fn step(&self, place: usize, sample: Tensor<4>, output: Tensor<4>) -> Tensor<4> {
        let step = self
            .schedule
            .step(self.prediction, self.timesteps[place], self.steps, 0.0);
        sample.mul_scalar(step.next[0]) + output.mul_scalar(step.next[1])
    }

    /// What noise becomes; `predict` is the network, asked about samples at a timestep.
    pub fn sample<E>(
        &self,
        noise: Tensor<4>,
        mut predict: impl FnMut(Tensor<4>, usize) -> Result<Tensor<4>, E>,
    ) -> Result<Tensor<4>, E> {
        let mut sample = noise;
        for (place, &t) in self.timesteps.iter().enumerate() {
            let output = predict(sample.clone(), t)?;
            sample = self.step(place, sample, output);
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn every_colour_comes_back() {
        for value in 0..=255 {
            assert_eq!(to_byte(from_byte(value)), value);
        }
        assert_eq!([-7.0, 7.0, f32::NAN].map(to_byte), [0, 255, 0]);
    }

    fn tensor(values: [f32; 4]) -> Tensor<4> {
        Tensor::from_data(
            TensorData::new(values.into(), [2, 1, 1, 2]),
            &Device::flex(),
        )
    }

    fn values(tensor: Tensor<4>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    #[test]
    fn a_network_that_is_always_right_leads_to_the_image_it_was_trained_on() {
        let image = tensor([-1.0, 0.25, 0.5, 1.0]);
        let noise = tensor([0.3, -1.2, 2.0, 0.1]);
        for prediction in Prediction::ALL {
            let process = Process {
                prediction,
                ..Process::STABLE_DIFFUSION
            };
            let schedule = process.noising.schedule();
            let run = Ddim::new(&process, 50).unwrap();
            let first = run.timesteps()[0];
            let start = schedule.noised(prediction, image.clone(), noise.clone(), &[first; 2]);
            assert_eq!(values(start.images.clone()).len(), 4);
            let found = run.sample(start.images, |sample, t| {
                // What was mixed in is the same at every step, and so is what is to be said of it.
                let now = schedule.noised(prediction, image.clone(), noise.clone(), &[t; 2]);
                assert!(
                    values((now.images - sample).abs())
                        .iter()
                        .all(|off| *off < 1e-4)
                );
                assert_eq!(
                    now.time.into_data().iter::<f32>().collect::<Vec<_>>(),
                    [t as f32; 2]
                );
                Ok::<_, Infallible>(now.target)
            });
            let [signal, spread] = schedule.noising(0);
            let Ok(found) = found;
            let wanted = image.clone().mul_scalar(signal) + noise.clone().mul_scalar(spread);
            assert!(values((found - wanted).abs()).iter().all(|off| *off < 1e-4));
        }
    }
}

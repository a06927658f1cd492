//! From noise to pictures: the same for the judge, for calibration and for `ptsbench generate`.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use model_zoo::Noise;
use model_zoo::diffusion::ddim::{Ddim, times, to_byte};
use model_zoo::diffusion::sampler::{StepsError, guidance};

use super::parts::Opened;
use super::recipe::{Recipe, STREAM};
use crate::data::decode::Rgb;
use crate::interrupt;
use crate::seed::Seed;
use crate::task::TaskError;
use crate::task::judged::Run;

/// Draws pictures by a network.
pub struct Drawing<'a> {
    recipe: &'a Recipe,
    steps: Ddim,
    parts: &'a Opened,
    device: &'a Device,
}

/// The contexts of a batch: its texts', and where there is guidance the empty text's.
#[derive(Debug, Clone)]
pub struct Contexts {
    /// Of the texts.
    pub texts: Tensor<3>,
    /// Of no text, as often.
    pub empty: Option<Tensor<3>>,
}

impl<'a> Drawing<'a> {
    /// As a recipe says, with what stands around the network.
    pub fn new(
        recipe: &'a Recipe,
        parts: &'a Opened,
        device: &'a Device,
    ) -> Result<Self, StepsError> {
        Ok(Self {
            recipe,
            steps: Ddim::new(&recipe.process, recipe.process.steps)?,
            parts,
            device,
        })
    }

    /// The timesteps at which the network is asked.
    pub fn timesteps(&self) -> &[usize] {
        self.steps.timesteps()
    }

    /// The noise that samples begin as. Each has a stream of its own, so that it is the same in every batch.
    pub fn noise(&self, purpose: &str, seed: Seed, samples: Range<usize>) -> Tensor<4> {
        let [channels, height, width] = self.recipe.noise;
        let (count, each) = (samples.len(), channels * height * width);
        let mut values = Vec::with_capacity(count * each);
        for sample in samples {
            let mut stream = seed.stream(&format!("{purpose}.v{STREAM}.{sample}"));
            values.extend((0..each).map(|_| stream.normal()));
        }
        let shape = [count, channels, height, width];
        Tensor::from_data(TensorData::new(values, shape), self.device)
    }

    /// Whether the network is asked about the empty text too.
    pub fn is_guided(&self) -> bool {
        self.recipe.guidance.is_some_and(|scale| scale != 1.0)
    }

    /// The contexts of texts; none where the network takes none.
    pub fn contexts(&self, texts: &[&str]) -> Option<Contexts> {
        let (contexts, _) = self.parts.contexts(texts)?;
        let empty = self.is_guided().then(|| {
            let empty = self.parts.contexts(&[""]).map(|(context, _)| context);
            empty.expect("it read the texts").repeat_dim(0, texts.len())
        });
        Some(Contexts {
            texts: contexts,
            empty,
        })
    }

    /// What a network makes of noise; `watch` sees the sample before each step.
    pub fn run(
        &self,
        network: &Run<'_, Noise>,
        noise: Tensor<4>,
        contexts: Option<&Contexts>,
        mut watch: impl FnMut(usize, &Tensor<4>),
    ) -> Result<Tensor<4>, TaskError> {
        let count = noise.dims()[0];
        let mut place = 0;
        self.steps.sample(noise, |sample, t| {
            interrupt::check()?;
            watch(place, &sample);
            place += 1;
            let time = || times(&vec![t; count], self.device);
            let ask = |context: Option<Tensor<3>>| network((sample.clone(), time(), context));
            let said = ask(contexts.map(|contexts| contexts.texts.clone()));
            let empty = contexts.and_then(|contexts| contexts.empty.clone());
            Ok(match (empty, self.recipe.guidance) {
                (Some(empty), Some(scale)) => {
                    let [without, with] = guidance(scale);
                    ask(Some(empty)).mul_scalar(without) + said.mul_scalar(with)
                }
                _ => said,
            })
        })
    }

    /// The pictures of what a network made, one by one: an autoencoder's images are large. None where a value is no number.
    pub fn pictures(&self, made: &Tensor<4>) -> Vec<Option<Rgb>> {
        let count = made.dims()[0];
        let pictures = (0..count).map(|at| {
            let image = self.parts.images(made.clone().narrow(0, at, 1));
            let [_, _, height, width] = image.dims();
            let values: Vec<f32> = image.into_data().iter::<f32>().collect();
            picture(&values, [width, height])
        });
        pictures.collect()
    }
}

/// The picture of an image's planes; none where a value is no number.
fn picture(values: &[f32], [width, height]: [usize; 2]) -> Option<Rgb> {
    if !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let plane = width * height;
    let pixels = (0..plane)
        .flat_map(|at| [0, 1, 2].map(|channel| to_byte(values[channel * plane + at])))
        .collect();
    Some(Rgb {
        width,
        height,
        pixels,
    })
}

#[cfg(test)]
mod tests {
    use model_zoo::catalog;

    use super::*;

    fn values(tensor: Tensor<4>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    #[test]
    fn a_sample_is_the_same_in_every_batch() {
        let device = Device::flex();
        let recipe = Recipe::of(catalog::find("micro_unet_s").unwrap(), None).unwrap();
        let parts = Opened::default();
        let drawing = Drawing::new(&recipe, &parts, &device).unwrap();
        // As a network: half of what it sees, and the time.
        let network = |(x, time, _): (Tensor<4>, Tensor<1>, Option<Tensor<3>>)| {
            let images = time.dims()[0];
            x.mul_scalar(0.5) + time.reshape([images, 1, 1, 1]).mul_scalar(1e-4)
        };
        let made = |samples: Range<usize>| {
            let noise = drawing.noise("test", Seed(3), samples);
            values(drawing.run(&network, noise, None, |_, _| ()).unwrap())
        };
        let all = made(0..5);
        assert_eq!([made(0..2), made(2..5)].concat(), all);
        assert_ne!(made(0..1), made(1..2));
        let other = drawing.noise("test", Seed(4), 0..1);
        assert_ne!(values(other), values(drawing.noise("test", Seed(3), 0..1)));
    }

    #[test]
    fn what_is_no_number_is_no_picture() {
        let mut planes = vec![-1.0, 1.0, 0.0, 2.0, -3.0, 0.5];
        let found = picture(&planes, [2, 1]).unwrap();
        assert_eq!(found.pixels, [0, 128, 0, 255, 255, 191]);
        planes[4] = f32::NAN;
        assert!(picture(&planes, [2, 1]).is_none());
        planes[4] = f32::INFINITY;
        assert!(picture(&planes, [2, 1]).is_none());
    }
}

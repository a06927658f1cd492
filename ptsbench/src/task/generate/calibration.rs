//! Calibration inputs of a generator: what the dense network sees on its own ways from noise to images.

use burn::tensor::{Device, Tensor, TensorData};
use model_zoo::diffusion::ddim::times;
use model_zoo::{Modality, Noise};

use super::batch_of;
use super::draw::Drawing;
use crate::batches::Batches;
use crate::cell::CalibrationCell;
use crate::data::calibration::CalibrationError;
use crate::seed::{Seed, Stream};
use crate::task::judged::Run;
use crate::task::{OpenError, TaskError};

/// What a network takes: samples, times, contexts.
pub type Input = <Noise as Modality>::Input;

/// Steps of a way that are looked at, evenly spread over it.
const LOOKS: usize = 20;

/// One input: which way, which of its steps, and of its two contexts the empty one or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Triple {
    way: usize,
    step: usize,
    empty: bool,
}

/// Which inputs: as many of every step as of any other, but for a rest, which is spread over the steps of one more way. In
/// random order, so that a batch has all kinds.
fn chosen(count: usize, steps: usize, guided: bool, stream: &mut Stream) -> Vec<Triple> {
    let looks = LOOKS.min(steps);
    let mut triples: Vec<Triple> = (0..count)
        .map(|at| {
            let (way, place) = (at / looks, at % looks);
            let of_way = looks.min(count - way * looks);
            Triple {
                way,
                step: place * steps / of_way,
                empty: false,
            }
        })
        .collect();
    stream.shuffle(&mut triples);
    // A guided sampler asks about the empty text as often as about the prompt.
    for triple in &mut triples {
        triple.empty = guided && stream.below(2) == 1;
    }
    triples
}

/// The inputs in batches. They are computed at once, since the network does not outlive this; `room` is for the batches made of
/// them.
pub fn triples(
    drawing: &Drawing<'_>,
    prompts: &[String],
    dense: &Run<'_, Noise>,
    wanted: &CalibrationCell,
    device: &Device,
    room: u64,
) -> Result<Batches<'static, Input>, TaskError> {
    if wanted.images == 0 {
        return Err(OpenError::from(CalibrationError::None).into());
    }
    let seed = Seed(wanted.seed);
    let mut stream = seed.stream("generation calibration");
    let timesteps = drawing.timesteps().to_vec();
    let triples = chosen(
        wanted.images,
        timesteps.len(),
        drawing.is_guided(),
        &mut stream,
    );
    let ways = triples
        .iter()
        .map(|triple| triple.way + 1)
        .max()
        .unwrap_or(0);
    let drawn: Vec<&str> = match prompts.len() {
        0 => Vec::new(),
        count => (0..ways)
            .map(|_| prompts[stream.below(count as u64) as usize].as_str())
            .collect(),
    };

    let mut samples: Vec<Vec<f32>> = vec![Vec::new(); triples.len()];
    let mut texts: Vec<Tensor<3>> = Vec::new();
    let mut empty = None;
    let mut shape = [0; 4];
    let mut first = 0;
    while first < ways {
        let noise = drawing.noise("generation calibration", seed, first..first + 1);
        let [_, channels, height, width] = noise.dims();
        shape = [1, channels, height, width];
        let last = ways.min(first + batch_of([channels, height, width]));
        let noise = drawing.noise("generation calibration", seed, first..last);
        let contexts = match drawn.is_empty() {
            true => None,
            false => drawing.contexts(&drawn[first..last]),
        };
        drawing.run(dense, noise, contexts.as_ref(), |step, sample| {
            for (triple, kept) in triples.iter().zip(&mut samples) {
                if triple.step == step && (first..last).contains(&triple.way) {
                    let one = sample.clone().narrow(0, triple.way - first, 1);
                    *kept = one.into_data().iter::<f32>().collect();
                }
            }
        })?;
        if let Some(contexts) = contexts {
            let each = (0..last - first).map(|at| contexts.texts.clone().narrow(0, at, 1));
            texts.extend(each);
            empty = contexts.empty.map(|empty| empty.narrow(0, 0, 1));
        }
        first = last;
    }

    let (device, batch) = (device.clone(), wanted.batch.max(1));
    Ok(Batches::new(
        triples.len().div_ceil(batch),
        room,
        move |at| {
            let these = at * batch..triples.len().min((at + 1) * batch);
            let values = samples[these.clone()].concat();
            let [_, channels, height, width] = shape;
            let shape = [these.len(), channels, height, width];
            let of_batch = &triples[these];
            let steps: Vec<usize> = of_batch.iter().map(|one| timesteps[one.step]).collect();
            let context = |one: &Triple| match (&empty, one.empty) {
                (Some(empty), true) => empty.clone(),
                _ => texts[one.way].clone(),
            };
            let contexts =
                (!texts.is_empty()).then(|| Tensor::cat(of_batch.iter().map(context).collect(), 0));
            let samples = Tensor::from_data(TensorData::new(values, shape), &device);
            Ok((samples, times(&steps, &device), contexts))
        },
    ))
}

#[cfg(test)]
mod tests {
    use model_zoo::catalog;

    use super::*;
    use crate::task::generate::parts::Opened;
    use crate::task::generate::recipe::Recipe;

    #[test]
    fn every_step_is_looked_at_equally_often() {
        let mut stream = Seed(0).stream("test");
        let triples = chosen(1024, 50, true, &mut stream);
        let mut steps = [0; 50];
        for triple in &triples {
            steps[triple.step] += 1;
        }
        let looked: Vec<usize> = steps.into_iter().filter(|count| *count > 0).collect();
        // 51 whole ways, and four more of the steps of the last.
        assert!(
            looked.len() >= LOOKS && looked.len() <= LOOKS + 4,
            "{looked:?}"
        );
        assert_eq!(looked.iter().sum::<usize>(), 1024);
        assert_eq!(looked.iter().filter(|count| **count >= 51).count(), LOOKS);
        let empty = triples.iter().filter(|triple| triple.empty).count();
        assert!((400..624).contains(&empty), "{empty}");
        // Few of them lie apart.
        let mut few: Vec<usize> = chosen(4, 20, false, &mut stream)
            .iter()
            .map(|triple| triple.step)
            .collect();
        few.sort_unstable();
        assert_eq!(few, [0, 5, 10, 15]);
    }

    #[test]
    fn inputs_are_what_the_network_saw() {
        let device = Device::flex();
        let recipe = Recipe::of(catalog::find("micro_unet_s").unwrap(), None).unwrap();
        let parts = Opened::default();
        let drawing = Drawing::new(&recipe, &parts, &device).unwrap();
        let seen = std::cell::RefCell::new(Vec::new());
        let network = |(x, time, _): Input| {
            let steps: Vec<f32> = time.into_data().iter::<f32>().collect();
            for (at, step) in steps.iter().enumerate() {
                let sample = x.clone().narrow(0, at, 1).into_data();
                seen.borrow_mut()
                    .push((*step, sample.iter::<f32>().collect::<Vec<_>>()));
            }
            x.mul_scalar(0.5)
        };
        let wanted = |images, batch| CalibrationCell {
            images,
            batch,
            seed: 7,
            list: None,
        };
        let of = |wanted: &CalibrationCell| -> Vec<(f32, Vec<f32>)> {
            let batches = triples(&drawing, &[], &network, wanted, &device, 0).unwrap();
            let mut found = Vec::new();
            for batch in batches.iter() {
                let (samples, time, contexts) = batch.unwrap();
                assert!(contexts.is_none());
                let steps: Vec<f32> = time.into_data().iter::<f32>().collect();
                for (at, step) in steps.iter().enumerate() {
                    let sample = samples.clone().narrow(0, at, 1).into_data();
                    found.push((*step, sample.iter::<f32>().collect()));
                }
            }
            found
        };
        let found = of(&wanted(25, 8));
        assert_eq!(found.len(), 25);
        assert!(found.iter().all(|one| seen.borrow().contains(one)));
        // Batches change nothing.
        assert_eq!(of(&wanted(25, 3)), found);
    }
}

//! Training classifiers: labelled images, cross-entropy, perhaps a teacher.

use std::collections::BTreeMap;

use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{Device, Int, Tensor, TensorData};
use model_zoo::catalog::Spec;
use model_zoo::tap::Bare;
use model_zoo::{Classes, Classifier};

use super::augment::{View, augmented};
use super::{Lesson, Recipe, Taken, Taught, TrainError};
use crate::data::synthetic::{self, CHANNELS, MicroSet, PIXELS, SIDE};
use crate::descent::floats;
use crate::interrupt;
use crate::metric::top_k::{self, TopKError};
use crate::seed::Stream;

/// Images in an evaluation batch; has no influence on any number.
const EVALUATION_BATCH: usize = 500;

/// A trained network: images to logits.
pub type Teacher = Box<dyn Fn(Tensor<4>) -> Tensor<2> + Send>;

/// The images of an epoch, as bytes: drawing them anew each time took a sixth of a small network's time.
#[derive(Default)]
pub struct ClassLesson {
    first: usize,
    bytes: Vec<u8>,
    teacher: Option<Teacher>,
}

impl ClassLesson {
    /// With the network whose answers a distilled recipe asks for.
    pub fn with_teacher(self, teacher: Teacher) -> Self {
        Self {
            teacher: Some(teacher),
            ..self
        }
    }

    /// Images at hand and their classes.
    fn pick(&self, indices: &[usize]) -> (Vec<u8>, Vec<u8>) {
        let pixels = |&index: &usize| &self.bytes[index * PIXELS..][..PIXELS];
        let bytes = indices.iter().flat_map(pixels).copied().collect();
        let label = |&index: &usize| MicroSet::TRAIN.label(self.first + index);
        (bytes, indices.iter().map(label).collect())
    }
}

impl Taught for Classes {
    type Lesson = ClassLesson;

    fn test<N: Classifier>(
        _: &Spec,
        network: &N,
        device: &Device,
    ) -> Result<(String, f64), TrainError> {
        Ok(("top1".to_owned(), top1(network, MicroSet::TEST, device)?))
    }
}

impl Lesson<Classes> for ClassLesson {
    /// Images as augmented, and their classes.
    type Batch = (Vec<f32>, Vec<u8>);

    fn turn_to(&mut self, recipe: Recipe, epoch: usize) {
        let first = recipe.first(epoch);
        if self.bytes.is_empty() || first != self.first {
            self.first = first;
            self.bytes = MicroSet::stream_bytes(first..first + recipe.images);
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn batch(&self, recipe: Recipe, indices: &[usize], stream: &mut Stream) -> Self::Batch {
        let erasing = recipe.transformer.map_or(0.0, |t| t.erasing);
        let views: Vec<View> = indices
            .iter()
            .map(|_| View::draw(stream, erasing))
            .collect();
        let (bytes, labels) = self.pick(indices);
        (augmented(&synthetic::normalize(&bytes), &views), labels)
    }

    fn take<N: Classifier>(
        &self,
        network: &N,
        recipe: Recipe,
        (pixels, labels): Self::Batch,
        device: &Device,
    ) -> Result<Taken, TrainError> {
        let smoothing = recipe.transformer.map(|t| t.smoothing).filter(|&s| s > 0.0);
        let criterion = CrossEntropyLossConfig::new()
            .with_smoothing(smoothing.map(|s| s as f32))
            .init(device);
        let pixels = images(pixels, device);
        let taught = self.teacher.as_ref().map(|teacher| {
            let answers = teacher(pixels.clone().inner()).argmax(1).squeeze_dim(1);
            Tensor::<1, Int>::from_inner(answers)
        });
        let logits = network.run(pixels, &mut Bare::default());
        let answers = logits.clone().inner();
        let targets: Vec<i32> = labels.iter().copied().map(i32::from).collect();
        let targets = Tensor::<1, Int>::from_data(targets.as_slice(), device);
        let mut loss = criterion.forward(logits.clone(), targets);
        if let Some(taught) = taught {
            let hard = CrossEntropyLossConfig::new().init(device);
            loss = (loss + hard.forward(logits, taught)) * 0.5;
        }
        let value: f32 = loss.clone().into_scalar();
        let right = match value.is_finite() {
            true => correct(answers, &labels)?,
            false => 0,
        };
        Ok(Taken { loss, value, right })
    }

    fn validate<N: Classifier>(
        &self,
        network: &N,
        right: u64,
        seen: usize,
        device: &Device,
    ) -> Result<BTreeMap<String, f64>, TrainError> {
        Ok(BTreeMap::from([
            (
                "train_top1".to_owned(),
                100.0 * right as f64 / seen.max(1) as f64,
            ),
            (
                "validation_top1".to_owned(),
                top1(network, MicroSet::VALIDATION, device)?,
            ),
        ]))
    }
}

/// Percent of a split that a network off the tape classifies correctly.
pub fn top1<N: Classifier>(network: &N, set: MicroSet, device: &Device) -> Result<f64, TrainError> {
    let indices: Vec<usize> = (0..set.len()).collect();
    let mut right = 0;
    for batch in indices.chunks(EVALUATION_BATCH) {
        interrupt::check()?;
        let logits = network.run(images(set.normalized(batch), device), &mut Bare::default());
        right += correct(logits, &set.labels(batch))?;
    }
    Ok(100.0 * right as f64 / set.len() as f64)
}

fn correct(logits: Tensor<2>, labels: &[u8]) -> Result<u64, TopKError> {
    let classes = logits.dims()[1];
    let labels: Vec<usize> = labels.iter().copied().map(usize::from).collect();
    top_k::correct(&floats(logits.into_data()), classes, &labels)
}

/// # Shapes
/// `[images, 3, 32, 32]`
fn images(pixels: Vec<f32>, device: &Device) -> Tensor<4> {
    let count = pixels.len() / PIXELS;
    Tensor::from_data(
        TensorData::new(pixels, [count, CHANNELS, SIDE, SIDE]),
        device,
    )
}

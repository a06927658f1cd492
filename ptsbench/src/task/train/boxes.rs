//! Training detectors: procedural scenes, each seen once.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use model_zoo::catalog::Spec;
use model_zoo::detection::Head;
use model_zoo::detection::boxes::{BoxCoder, Quad, corners, ssd_encode};
use model_zoo::tap::Bare;
use model_zoo::{Boxes, Of};
use rayon::prelude::*;

use super::box_loss::{self, Loss, Overlaps, Wanted, roles};
use super::{Lesson, Recipe, Taken, Taught, TrainError};
use crate::data::recipe::boxes::DetectionRecipe;
use crate::data::synthetic::Split;
use crate::data::synthetic::detection::pictures;
use crate::descent::floats;
use crate::seed::Stream;
use crate::task::detect::{Detection, Target, average_precision, drawn};

/// The built-in task.
const TASK: &str = "micro_boxes";
/// Scenes of the validation split that an epoch is scored on.
const HELD_OUT: usize = 250;

/// Scenes as one network takes them.
pub struct BoxLesson {
    recipe: DetectionRecipe,
    first: usize,
}

/// What a network gives for one level, [N, anchors, values], and its slope.
struct Output {
    tensor: Tensor<3>,
    values: Vec<f32>,
    /// Values of an image.
    each: usize,
    slope: Vec<f32>,
}

impl Output {
    fn of(tensor: Tensor<3>) -> Self {
        let [_, anchors, width] = tensor.dims();
        Self {
            values: floats(tensor.clone().inner().into_data()),
            each: anchors * width,
            slope: Vec::new(),
            tensor,
        }
    }

    /// A scalar with this slope.
    fn sloped(self, device: &Device) -> Tensor<1> {
        let slope = TensorData::new(self.slope, self.tensor.shape());
        (self.tensor * Tensor::from_data(slope, device)).sum()
    }
}

impl BoxLesson {
    /// For a network's inputs and anchors; none where it finds no boxes.
    pub fn new(spec: &Spec) -> Option<Self> {
        let recipe = DetectionRecipe::of(spec)?;
        Some(Self { recipe, first: 0 })
    }

    /// The loss of one image, not yet divided by anything that other images decide.
    fn loss(&self, logits: &[f32], offsets: &[f32], targets: &[Target], at: &Places) -> Loss {
        let of = |crowd: bool| -> Vec<Quad> {
            let of = targets.iter().filter(|target| target.crowd == crowd);
            of.map(|target| target.corners).collect()
        };
        let objects = of(false);
        let labels: Vec<usize> = targets
            .iter()
            .filter(|target| !target.crowd)
            .map(|target| target.category)
            .collect();
        let overlaps = match self.recipe.head() {
            Head::RetinaNet => Overlaps::RETINANET,
            Head::Ssd => Overlaps::SSD,
        };
        let roles = roles(&at.corners, &objects, &of(true), overlaps);
        let offsets_of = |anchor: usize, object: usize| match self.recipe.head() {
            Head::RetinaNet => BoxCoder::RETINANET.encode(objects[object], at.own[anchor]),
            Head::Ssd => ssd_encode(at.centred(objects[object]), at.own[anchor]),
        };
        let wanted = Wanted {
            roles: &roles,
            labels: &labels,
            offsets: &offsets_of,
        };
        match self.recipe.head() {
            Head::RetinaNet => box_loss::retinanet(logits, offsets, &wanted),
            Head::Ssd => box_loss::ssd(logits, offsets, &wanted),
        }
    }
}

/// Where a network expects boxes.
struct Places {
    /// As it codes them.
    own: Vec<Quad>,
    /// Left, top, right, bottom in pixels of the input.
    corners: Vec<Quad>,
    /// Width and height of the input.
    sides: [f32; 2],
}

impl Places {
    fn new(recipe: &DetectionRecipe, [height, width]: [usize; 2]) -> Self {
        let own = recipe.anchors([height, width]);
        let sides = [width as f32, height as f32];
        let pixels = |place: &Quad| match recipe.head() {
            Head::RetinaNet => *place,
            Head::Ssd => {
                let shares = corners(*place);
                std::array::from_fn(|k| shares[k] * sides[k % 2])
            }
        };
        Self {
            corners: own.iter().map(pixels).collect(),
            own,
            sides,
        }
    }

    /// A box in pixels as centre and size in shares of the input.
    fn centred(&self, [x0, y0, x1, y1]: Quad) -> Quad {
        let [width, height] = self.sides;
        [
            (x0 + x1) / 2.0 / width,
            (y0 + y1) / 2.0 / height,
            (x1 - x0) / width,
            (y1 - y0) / height,
        ]
    }
}

impl Taught for Boxes {
    type Lesson = BoxLesson;

    fn test<N: Of<Boxes>>(
        spec: &Spec,
        network: &N,
        device: &Device,
    ) -> Result<(String, f64), TrainError> {
        let recipe = DetectionRecipe::of(spec).ok_or(TrainError::NoTask {
            model: spec.name,
            task: TASK,
        })?;
        let judge = Detection::built_in(Split::Test, recipe);
        super::tested::<Boxes>(&judge, network, pictures(Split::Test), device)
    }
}

impl Lesson<Boxes> for BoxLesson {
    /// Scenes by their place in the stream: they are drawn when they are needed.
    type Batch = Vec<usize>;

    fn turn_to(&mut self, recipe: Recipe, epoch: usize) {
        self.first = recipe.first(epoch);
    }

    fn batch(&self, _: Recipe, indices: &[usize], _: &mut Stream) -> Vec<usize> {
        indices.iter().map(|index| self.first + index).collect()
    }

    fn take<N: Of<Boxes>>(
        &self,
        network: &N,
        _: Recipe,
        scenes: Vec<usize>,
        device: &Device,
    ) -> Result<Taken, TrainError> {
        let (input, targets) = drawn(Split::Train, &scenes, &self.recipe, device);
        let [_, _, height, width] = input.images.dims();
        let places = Places::new(&self.recipe, [height, width]);
        let mut outputs: Vec<[Output; 2]> = network
            .run(input, &mut Bare::default())
            .into_iter()
            .map(|(logits, offsets)| [logits, offsets].map(Output::of))
            .collect();
        let losses: Vec<Loss> = {
            let outputs = outputs
                .iter()
                .map(|[logits, offsets]| [logits, offsets].map(|o| (o.each, &o.values)))
                .collect::<Vec<_>>();
            let of_image = |(image, targets): (usize, &Vec<Target>)| {
                let all = |which: usize| -> Vec<f32> {
                    let levels = outputs.iter().map(|level| level[which]);
                    levels
                        .flat_map(|(each, values)| &values[image * each..][..each])
                        .copied()
                        .collect()
                };
                self.loss(&all(0), &all(1), targets, &places)
            };
            targets.par_iter().enumerate().map(of_image).collect()
        };
        // RetinaNet divides by each image's anchors of objects and by the images, SSD by all images' anchors of objects.
        let share = match self.recipe.head() {
            Head::RetinaNet => losses.len(),
            Head::Ssd => losses.iter().map(|loss| loss.objects).sum::<usize>(),
        };
        let share = 1.0 / share.max(1) as f64;
        let value = share * losses.iter().map(|loss| loss.value).sum::<f64>();
        let mut before = [0, 0];
        for level in &mut outputs {
            for (which, output) in level.iter_mut().enumerate() {
                let part = before[which]..before[which] + output.each;
                before[which] = part.end;
                let slopes = losses.iter().flat_map(|loss| match which {
                    0 => &loss.logits[part.clone()],
                    _ => &loss.offsets[part.clone()],
                });
                output.slope = slopes.map(|slope| slope * share as f32).collect();
            }
        }
        let sloped = outputs.into_iter().flatten().map(|o| o.sloped(device));
        let loss = sloped.reduce(|sum, one| sum + one);
        Ok(Taken {
            loss: loss.unwrap_or_else(|| Tensor::zeros([1], device)),
            value: value as f32,
            right: 0,
        })
    }

    fn validate<N: Of<Boxes>>(
        &self,
        network: &N,
        _: u64,
        _: usize,
        device: &Device,
    ) -> Result<BTreeMap<String, f64>, TrainError> {
        let run = |input| network.run(input, &mut Bare::default());
        let score = average_precision(&run, self.recipe, Split::Validation, HELD_OUT, device)?;
        Ok(BTreeMap::from([("validation_map11".to_owned(), score)]))
    }
}

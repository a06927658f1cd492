//! Detection: pictures with objects on them, and how well a network's boxes fit them.
//!
//! Each picture is looked at as if it were alone: those of a batch that have another size than others go through the network
//! by themselves, since padding would be seen near a picture's edges and move the anchors of the coarsest levels.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use model_zoo::catalog::Spec;
use model_zoo::detection::Head;
use model_zoo::detection::boxes::Quad;
use model_zoo::detection::found::NotNumbers;
use model_zoo::tap::Census;
use model_zoo::{Boxes, Of, Padded};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::judged::{After, Judge, Run, Stint, Tally};
use super::scenes::{Metric, Scenes};
use super::sightings::{Sighting, Sightings};
use super::{Set, TaskError, batch_of, same};
use crate::batches::Batches;
use crate::cell::CalibrationCell;
use crate::data::coco::Category;
use crate::data::decode::{ImageError, Rgb};
use crate::data::loader;
use crate::data::recipe::boxes::DetectionRecipe;
use crate::data::recipe::retinanet::{Sized, rescale_box};
use crate::data::synthetic::Split;
use crate::data::synthetic::detection::{self as micro, Scene};
use crate::interrupt;
use crate::metric::coco_ap::{self, Found};
use crate::metric::voc_ap::{self, Variant};
use crate::record::{Better, Counts, Level, Score};
use crate::terminal::remark_once;

/// A set of pictures with objects as the recipe of one network's weights sees it.
#[derive(Debug, Clone)]
pub struct Detection {
    set: Arc<Set>,
    recipe: DetectionRecipe,
}

/// A detector that is none for a task's pictures, or pictures that no detector can be judged on.
#[derive(Debug, thiserror::Error)]
pub enum Misfit {
    /// The classes are others.
    #[error(
        "`{model}` gives scores of {found} classes, and task {task} has {classes} ({wanted}); choose a model trained for the task, or weights of so many classes"
    )]
    Unfit {
        /// The model.
        model: String,
        /// Its classes.
        found: usize,
        /// The task.
        task: String,
        /// The task's classes.
        classes: usize,
        /// How many the network would give then.
        wanted: String,
    },
    /// Its input cannot be of this size.
    #[error(
        "`{model}` takes images of {own:?}, and the recipe makes {input:?}, of which nothing would be left; give a recipe of larger pictures (--recipe)"
    )]
    Size {
        /// The model.
        model: &'static str,
        /// Its own size.
        own: [usize; 3],
        /// The recipe's.
        input: [usize; 3],
    },
    /// No average precision is defined.
    #[error(
        "none of the first {samples} pictures of task {task} holds an object that counts, so that no average precision is defined; ask for more samples"
    )]
    NoObjects {
        /// Pictures asked for.
        samples: usize,
        /// The task.
        task: String,
    },
}

/// An object as training takes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Its category, by its place in the set's list.
    pub category: usize,
    /// Left, top, right, bottom in pixels of the network's input.
    pub corners: Quad,
    /// Many objects under one box, which is no box of its category.
    pub crowd: bool,
}

/// The objects of a built-in picture where a network's input has them.
pub fn targets(scene: &Scene, recipe: &DetectionRecipe) -> Vec<Target> {
    let own = (scene.picture.width, scene.picture.height);
    let resized = recipe.resized(own.0, own.1);
    let target = |object: &micro::Object| {
        let [left, top, width, height] = object.bbox.map(|side| side as f32);
        Target {
            category: object.category,
            corners: rescale_box([left, top, left + width, top + height], own, resized),
            crowd: object.crowd,
        }
    };
    scene.objects.iter().map(target).collect()
}

/// Pictures as one input.
pub fn input(pictures: &[Sized], recipe: &DetectionRecipe, device: &Device) -> Padded {
    let batch = recipe.batch(pictures);
    let shape = [pictures.len(), 3, batch.height, batch.width];
    Padded {
        images: Tensor::from_data(TensorData::new(batch.values, shape), device),
        sizes: pictures.iter().map(|one| [one.height, one.width]).collect(),
    }
}

/// Built-in pictures as one input, and what is on each.
pub fn drawn(
    split: Split,
    indices: &[usize],
    recipe: &DetectionRecipe,
    device: &Device,
) -> (Padded, Vec<Vec<Target>>) {
    let one = |&index: &usize| {
        let scene = micro::scene(split, index);
        (recipe.apply(&scene.picture), targets(&scene, recipe))
    };
    let (pictures, targets): (Vec<Sized>, Vec<Vec<Target>>) = indices.par_iter().map(one).unzip();
    (input(&pictures, recipe, device), targets)
}

/// The headline of a network on the first `samples` built-in pictures of a split, in percent; 0 where its outputs are no
/// numbers.
pub fn average_precision(
    network: &Run<'_, Boxes>,
    recipe: DetectionRecipe,
    split: Split,
    samples: usize,
    device: &Device,
) -> Result<f64, TaskError> {
    let judge = Detection::built_in(split, recipe);
    let score = judge.evaluate(network, samples, device, |_| {})?;
    Ok(score.value.number().unwrap_or(0.0))
}

/// What each of a network's classes is among the set's categories; none where it is none, as the background is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Numbering {
    categories: Vec<Option<usize>>,
    /// Said where it is not plain from the set.
    how: Option<&'static str>,
}

impl Numbering {
    /// By the number of a network's classes: that of COCO's ids, of the categories, or of those and a background.
    fn of(head: Head, width: usize, categories: &[Category]) -> Option<Self> {
        let count = categories.len();
        let least = categories.first()?.id;
        let by_id = categories.last()?.id.checked_add(1) == i64::try_from(width).ok();
        let free = match head {
            Head::RetinaNet => 0,
            Head::Ssd => 1,
        };
        if by_id && least >= free {
            let place = |id: usize| {
                categories
                    .iter()
                    .position(|category| category.id == id as i64)
            };
            return Some(Self {
                categories: (0..width).map(place).collect(),
                how: None,
            });
        }
        if head == Head::RetinaNet && width == count {
            return Some(Self {
                categories: (0..width).map(Some).collect(),
                how: Some(
                    "its classes are taken for the set's in the order of their ids, without a background",
                ),
            });
        }
        (width == count + 1).then(|| Self {
            categories: (0..width).map(|class| class.checked_sub(1)).collect(),
            how: Some("its class 0 is taken for the background, the others for the set's in the order of their ids"),
        })
    }
}

/// A picture on its way into a network: its own width and height, and as the network takes it.
struct Prepared {
    own: (usize, usize),
    sized: Sized,
}

impl Detection {
    /// The set in the form that a network's weights were trained for, or that a recipe says; none where the network finds
    /// no boxes.
    pub fn new(spec: &Spec, set: Arc<Set>, recipe: Option<&str>) -> Option<Self> {
        let own = DetectionRecipe::of(spec)?;
        let given: Option<DetectionRecipe> = recipe.and_then(|text| text.parse().ok());
        let fitting = given.filter(|given| given.head() == own.head());
        Some(Self {
            set,
            recipe: fitting.unwrap_or(own),
        })
    }

    /// A split of the built-in pictures.
    pub fn built_in(split: Split, recipe: DetectionRecipe) -> Self {
        let set = Arc::new(Set::micro_boxes(split));
        Self { set, recipe }
    }

    fn scenes(&self) -> &Scenes {
        let scenes = self.set.scenes();
        scenes.expect("the tasks that judge detectors have pictures with objects")
    }

    /// Channels, height and width of an input: of the built-in pictures, or of a square picture.
    fn size(&self) -> [usize; 3] {
        let (width, height) = match self.set.kind.built_in() {
            true => (micro::SIDE, micro::SIDE),
            false => self.recipe.typical(),
        };
        self.recipe.input(width, height)
    }

    fn numbering(&self, model: &str, width: usize) -> Result<Numbering, Misfit> {
        let (categories, head) = (&self.scenes().categories, self.recipe.head());
        Numbering::of(head, width, categories).ok_or_else(|| {
            let (count, ids) = (
                categories.len(),
                categories.last().map_or(0, |last| last.id),
            );
            let mut wanted = match head {
                Head::RetinaNet => format!("{count}, or {} with a background", count + 1),
                Head::Ssd => format!("{} with the background", count + 1),
            };
            if ids > count as i64 {
                wanted += &format!(", or {} numbered as its categories are", ids + 1);
            }
            Misfit::Unfit {
                model: model.to_owned(),
                found: width,
                task: self.set.label(),
                classes: count,
                wanted,
            }
        })
    }

    fn prepare(&self, picture: &Rgb) -> Prepared {
        Prepared {
            own: (picture.width, picture.height),
            sized: self.recipe.apply(picture),
        }
    }

    /// What a network finds on pictures, each as if it were alone.
    fn look(
        &self,
        network: &Run<'_, Boxes>,
        pictures: Vec<Prepared>,
        device: &Device,
    ) -> Result<Vec<Result<Vec<Sighting>, NotNumbers>>, TaskError> {
        let mut by_size: BTreeMap<[usize; 2], Vec<usize>> = BTreeMap::new();
        for (at, picture) in pictures.iter().enumerate() {
            let size = [picture.sized.height, picture.sized.width];
            by_size
                .entry(self.recipe.padded(size))
                .or_default()
                .push(at);
        }
        let (own, mut sized): (Vec<_>, Vec<_>) = pictures
            .into_iter()
            .map(|picture| (picture.own, Some(picture.sized)))
            .unzip();
        let mut found: Vec<_> = own.iter().map(|_| Ok(Vec::new())).collect();
        for (size, members) in by_size {
            let group: Vec<Sized> = members.iter().filter_map(|&at| sized[at].take()).collect();
            let resized: Vec<_> = group.iter().map(|one| (one.width, one.height)).collect();
            let outputs: Vec<[Values; 2]> = network(input(&group, &self.recipe, device))
                .into_iter()
                .map(|(logits, offsets)| [Values::of(logits), Values::of(offsets)])
                .collect();
            let width = outputs.first().map_or(0, |[logits, _]| logits.width);
            let numbering = self.numbering("the network", width)?;
            let anchors = self.recipe.anchors(size);
            let all: Vec<_> = members
                .par_iter()
                .enumerate()
                .map(|(place, &at)| {
                    let levels: Vec<(&[f32], &[f32])> = outputs
                        .iter()
                        .map(|[logits, offsets]| (logits.at(place), offsets.at(place)))
                        .collect();
                    let boxes = self
                        .recipe
                        .boxes(&levels, &anchors, resized[place], own[at]);
                    let seen = |found: model_zoo::detection::found::Found| {
                        Some(Sighting {
                            category: numbering.categories[found.label]? as u16,
                            score: found.score,
                            corners: found.corners,
                        })
                    };
                    boxes.map(|boxes| boxes.into_iter().filter_map(seen).collect())
                })
                .collect();
            for (at, one) in members.into_iter().zip(all) {
                found[at] = one;
            }
        }
        Ok(found)
    }

    /// The pictures that a tally has looked at, in the data set's own order, with what was found on them.
    fn looked_at<'a>(&self, tally: &'a Sightings) -> Vec<(usize, &'a [Sighting])> {
        let scenes = self.scenes();
        let places = tally.boxes.iter().enumerate();
        let mut all: Vec<(usize, &[Sighting])> = places
            .map(|(at, boxes)| (scenes.place(at), &boxes[..]))
            .collect();
        all.sort_unstable_by_key(|(place, _)| *place);
        all
    }

    /// The metrics of what was looked at by name, the headline first; none where the outputs are no numbers.
    fn metrics(&self, tally: &Sightings) -> Option<Vec<(&'static str, f64)>> {
        let looked = self.looked_at(tally);
        if tally.collapsed > 0 {
            return None;
        }
        let mut metrics = Vec::new();
        if self.scenes().metric != Metric::Coco {
            metrics.extend(self.voc(&looked)?);
        }
        if self.scenes().metric != Metric::Voc {
            metrics.extend(self.coco(&looked)?);
        }
        let percent = |(name, value): (_, Option<f64>)| Some((name, 100.0 * value?));
        Some(metrics.into_iter().filter_map(percent).collect())
    }

    fn voc(&self, looked: &[(usize, &[Sighting])]) -> Option<Vec<(&'static str, Option<f64>)>> {
        let scenes = self.scenes();
        let objects: Vec<Vec<voc_ap::Object>> = looked
            .iter()
            .map(|(place, _)| scenes.objects(*place).voc.clone())
            .collect();
        let found = looked.iter().enumerate().flat_map(|(image, (_, boxes))| {
            boxes.iter().map(move |seen| voc_ap::Detection {
                image,
                class: seen.category.into(),
                // Pixels are counted from 1 there.
                bbox: seen.corners.map(|side| f64::from(side + 1.0)),
                score: seen.score.into(),
            })
        });
        let found: Vec<voc_ap::Detection> = found.collect();
        let classes = scenes.categories.len();
        let all = voc_ap::evaluate(&objects, classes, &found, Variant::SsdRelease).ok()?;
        Some(vec![("map11", all.map11), ("map_all", all.map_all)])
    }

    fn coco(&self, looked: &[(usize, &[Sighting])]) -> Option<Vec<(&'static str, Option<f64>)>> {
        let scenes = self.scenes();
        let ids: Vec<i64> = scenes
            .categories
            .iter()
            .map(|category| category.id)
            .collect();
        let objects = || looked.iter().map(|(place, _)| scenes.objects(*place));
        let images: Vec<i64> = objects().map(|objects| objects.image).collect();
        let truth: Vec<coco_ap::Truth> = objects().flat_map(|of| of.coco.clone()).collect();
        let mut found = Vec::new();
        for (image, (_, boxes)) in images.iter().zip(looked) {
            for seen in *boxes {
                let [x0, y0, x1, y1] = seen.corners;
                found.push(Found {
                    image: *image,
                    category: *ids.get(usize::from(seen.category))?,
                    bbox: [x0, y0, x1 - x0, y1 - y0].map(f64::from),
                    score: seen.score.into(),
                });
            }
        }
        let stats = coco_ap::evaluate(&images, &ids, &truth, &found).ok()?.stats;
        Some(vec![
            ("ap", stats.ap),
            ("ap50", stats.ap50),
            ("ap75", stats.ap75),
            ("ap_small", stats.ap_small),
            ("ap_medium", stats.ap_medium),
            ("ap_large", stats.ap_large),
        ])
    }

    /// Objects that count on the first pictures.
    fn countable(&self, samples: usize) -> usize {
        let scenes = self.scenes();
        let places = (0..samples).into_par_iter().map(|at| scenes.place(at));
        places.map(|place| scenes.objects(place).countable()).sum()
    }
}

/// A tensor's values, image by image.
struct Values {
    values: Vec<f32>,
    each: usize,
    width: usize,
}

impl Values {
    fn of(tensor: Tensor<3>) -> Self {
        let [_, anchors, width] = tensor.dims();
        Self {
            values: tensor.into_data().iter::<f32>().collect(),
            each: anchors * width,
            width,
        }
    }

    fn at(&self, image: usize) -> &[f32] {
        &self.values[image * self.each..][..self.each]
    }
}

impl Judge<Boxes> for Detection {
    type Tally = Sightings;

    fn recipe(&self) -> Option<String> {
        Some(self.recipe.to_string())
    }

    fn available(&self) -> usize {
        self.set.available()
    }

    fn batch(&self) -> usize {
        batch_of(self.size())
    }

    fn census<N: Of<Boxes>>(
        &self,
        spec: &Spec,
        network: &N,
        device: &Device,
    ) -> Result<Census, TaskError> {
        let [channels, height, width] = self.size();
        if !spec.takes([channels, height, width]) {
            return Err(Misfit::Size {
                model: spec.name,
                own: spec.input,
                input: self.size(),
            }
            .into());
        }
        // Multiply-adds are those of the task's pictures.
        let blank = Padded {
            images: Tensor::zeros([1, channels, height, width], device),
            sizes: vec![[height, width]],
        };
        let mut census = Census::default();
        let levels = network.run(blank, &mut census);
        let classes = levels.first().map_or(0, |(logits, _)| logits.dims()[2]);
        let numbering = self.numbering(spec.name, classes)?;
        if let (Some(how), false) = (numbering.how, self.set.kind.built_in()) {
            remark_once(&format!(
                "note: `{}` gives scores of {classes} classes, and task {} has {}: {how}",
                spec.name,
                self.set.label(),
                self.set.classes
            ));
        }
        Ok(census)
    }

    fn calibration(
        &self,
        _: &Run<'_, Boxes>,
        wanted: &CalibrationCell,
        device: &Device,
        room: u64,
    ) -> Result<Batches<'static, Padded>, TaskError> {
        let (list, sha256) = self.set.calibration(wanted.images, wanted.seed)?;
        let what = "list of calibration images";
        same(&self.set, what, &wanted.list, &sha256)?;
        let (judge, device) = (self.clone(), device.clone());
        let (images, batch) = (list.indices, wanted.batch.max(1));
        Ok(Batches::new(
            images.len().div_ceil(batch),
            room,
            move |at| {
                let end = images.len().min((at + 1) * batch);
                let pictures: Result<Vec<Sized>, TaskError> = images[at * batch..end]
                    .par_iter()
                    .map(|&index| {
                        let rotation = judge.recipe.rotation();
                        let picture = judge.scenes().training()?.picture(index, rotation);
                        let picture = picture.map_err(|error| TaskError::Image { error })?;
                        Ok(judge.recipe.apply(&picture))
                    })
                    .collect();
                Ok(input(&pictures?, &judge.recipe, &device))
            },
        ))
    }

    fn tally(
        &self,
        network: &Run<'_, Boxes>,
        stint: Stint<Sightings>,
        device: &Device,
        after: &mut After<'_, Sightings>,
    ) -> Result<Sightings, TaskError> {
        let Stint {
            samples,
            batch,
            start,
        } = stint;
        let (first, mut seen) = (start.images, start);
        let samples = samples.min(self.available());
        if self.countable(samples) == 0 {
            let task = self.set.label();
            return Err(Misfit::NoObjects { samples, task }.into());
        }
        let scenes = self.scenes();
        let load = |at| {
            let picture = scenes.picture(first + at, self.recipe.rotation());
            Ok(picture.map(|picture| self.prepare(&picture)))
        };
        loader::batches(samples.saturating_sub(first), batch, load, |_, items| {
            interrupt::check()?;
            let mut unreadable = Vec::new();
            let mut pictures = Vec::with_capacity(items.len());
            let mut read = Vec::with_capacity(items.len());
            for item in items {
                read.push(item.is_ok());
                match item {
                    Ok(picture) => pictures.push(picture),
                    Err(error) => unreadable.push(error),
                }
            }
            let mut found = self.look(network, pictures, device)?.into_iter();
            for read in read {
                let boxes = if read { found.next() } else { None };
                seen.images += 1;
                seen.collapsed += usize::from(matches!(boxes, Some(Err(NotNumbers))));
                let boxes = boxes.and_then(Result::ok).unwrap_or_default();
                seen.boxes.push(Arc::from(boxes));
            }
            let said = unreadable.iter().map(ImageError::to_string);
            seen.unreadable.extend(said);
            after(&seen, &mut unreadable)
        })?;
        Ok(seen)
    }

    fn score(&self, tally: &Sightings) -> Score {
        let headline = match self.scenes().metric {
            Metric::Coco => "ap",
            Metric::Voc | Metric::Both => "map11",
        };
        let metrics = self.metrics(tally);
        let mut also: BTreeMap<String, f64> = metrics
            .iter()
            .flatten()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect();
        Score {
            metric: headline.to_owned(),
            value: match also.remove(headline) {
                Some(value) => Level::Number(value),
                None => Level::Collapsed,
            },
            better: Better::Higher,
            counts: Counts::Boxes {
                found: tally.count() as u64,
                objects: self.countable(tally.images) as u64,
                total: tally.images as u64,
                available: self.available() as u64,
            },
            also,
        }
    }

    fn said(&self, tally: &Sightings) -> String {
        match self.metrics(tally) {
            None => format!("collapsed ({})", tally.brief()),
            Some(metrics) => {
                let metrics = metrics
                    .iter()
                    .map(|(name, value)| format!("{name} {value:.2} %"));
                metrics.collect::<Vec<_>>().join(", ")
            }
        }
    }

    fn numbers(&self, tally: &Sightings) -> Value {
        let mut numbers = json!({
            "boxes": tally.count(),
            "objects": self.countable(tally.images),
            "collapsed": tally.collapsed,
        });
        for (name, value) in self.metrics(tally).into_iter().flatten() {
            numbers[name] = json!(value);
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use model_zoo::catalog;
    use model_zoo::detection::boxes::{BoxCoder, corners, overlap, ssd_encode};

    use super::*;

    fn recipe(model: &str) -> DetectionRecipe {
        DetectionRecipe::of(catalog::find(model).unwrap()).unwrap()
    }

    /// Built-in pictures as they are.
    fn as_it_is() -> DetectionRecipe {
        let side = crate::data::recipe::retinanet::Sides {
            short: micro::SIDE,
            long: micro::SIDE,
        };
        match recipe("retinanet_resnet18_fpn") {
            DetectionRecipe::RetinaNet {
                statistics, rules, ..
            } => DetectionRecipe::RetinaNet {
                sides: side,
                statistics,
                anchor: 16,
                rules,
            },
            other => other,
        }
    }

    /// A network that knows what is on the pictures of a split, which it is given in order, and gives it as outputs; those
    /// from picture `broken` on are no numbers.
    fn oracle(
        recipe: DetectionRecipe,
        split: Split,
        broken: usize,
    ) -> impl Fn(Padded) -> Vec<(Tensor<3>, Tensor<3>)> {
        let next = Cell::new(0);
        let count = micro::CATEGORIES.len();
        let (classes, first) = match recipe.head() {
            Head::RetinaNet => (count, 0),
            Head::Ssd => (count + 1, 1),
        };
        move |input: Padded| {
            let [images, _, height, width] = input.images.dims();
            let anchors = recipe.anchors([height, width]);
            let mut logits = vec![-12.0_f32; images * anchors.len() * classes];
            let mut offsets = vec![0.0_f32; images * anchors.len() * 4];
            for image in 0..images {
                let index = next.replace(next.get() + 1);
                let mut taken = Vec::new();
                for target in targets(&micro::scene(split, index), &recipe) {
                    if target.crowd {
                        continue;
                    }
                    let share = target.corners.map(|side| side / 300.0);
                    let fit = |anchor: &Quad| match recipe.head() {
                        Head::RetinaNet => overlap(*anchor, target.corners),
                        Head::Ssd => overlap(corners(*anchor), share),
                    };
                    let free = (0..anchors.len()).filter(|at| !taken.contains(at));
                    let best = free.max_by(|a, b| fit(&anchors[*a]).total_cmp(&fit(&anchors[*b])));
                    let best = best.unwrap();
                    taken.push(best);
                    let code = match recipe.head() {
                        Head::RetinaNet => {
                            BoxCoder::RETINANET.encode(target.corners, anchors[best])
                        }
                        Head::Ssd => {
                            let [x0, y0, x1, y1] = share;
                            let centred = [(x0 + x1) / 2.0, (y0 + y1) / 2.0, x1 - x0, y1 - y0];
                            ssd_encode(centred, anchors[best])
                        }
                    };
                    let at = image * anchors.len() + best;
                    logits[at * classes + first + target.category] = 12.0;
                    offsets[at * 4..][..4].copy_from_slice(&code);
                }
                if index >= broken {
                    logits[image * anchors.len() * classes] = f32::NAN;
                }
            }
            let tensor = |values: Vec<f32>, width: usize| {
                let shape = [images, anchors.len(), width];
                Tensor::from_data(TensorData::new(values, shape), &Device::flex())
            };
            vec![(tensor(logits, classes), tensor(offsets, 4))]
        }
    }

    fn category(id: i64) -> Category {
        Category {
            id,
            name: format!("category {id}"),
        }
    }

    #[test]
    fn a_network_that_knows_the_truth_scores_nearly_all() {
        let device = Device::flex();
        for recipe in [as_it_is(), recipe("mobilenetv1_ssd")] {
            for split in [Split::Test, Split::Validation] {
                let judge = Detection::built_in(split, recipe);
                let network = oracle(recipe, split, usize::MAX);
                let score = judge.evaluate(&network, 40, &device, |_| {}).unwrap();
                println!("{score:?}");
                assert_eq!(score.metric, "map11");
                assert!(score.value.number().unwrap() > 95.0, "{score:?}");
                assert!(score.also["ap50"] > 97.0, "{score:?}");
                assert!(score.also["ap"] > 85.0, "{score:?}");
                let Counts::Boxes {
                    objects,
                    total,
                    available,
                    ..
                } = score.counts
                else {
                    panic!("{score:?}");
                };
                assert_eq!((total, available), (40, 1000));
                assert!((100..400).contains(&objects), "{objects}");
            }
        }
    }

    #[test]
    fn batches_and_interruptions_change_nothing() {
        let device = Device::flex();
        let recipe = as_it_is();
        let judge = Detection::built_in(Split::Test, recipe);
        let tally = |batch, start, samples, network: &Run<'_, Boxes>| {
            let stint = Stint {
                samples,
                batch,
                start,
            };
            judge
                .tally(network, stint, &device, &mut |_, _| Ok(()))
                .unwrap()
        };
        let whole = tally(
            7,
            Sightings::default(),
            24,
            &oracle(recipe, Split::Test, usize::MAX),
        );
        let network = oracle(recipe, Split::Test, usize::MAX);
        let half = tally(5, Sightings::default(), 11, &network);
        let text = serde_json::to_string(&half).unwrap();
        let half: Sightings = serde_json::from_str(&text).unwrap();
        let rest = tally(16, half, 24, &network);
        assert_eq!(rest, whole);
        assert_eq!(judge.score(&rest), judge.score(&whole));
    }

    #[test]
    fn a_network_gone_wrong_has_collapsed_and_one_without_boxes_scores_nothing() {
        let device = Device::flex();
        let recipe = as_it_is();
        let judge = Detection::built_in(Split::Test, recipe);
        let broken = oracle(recipe, Split::Test, 3);
        let score = judge.evaluate(&broken, 5, &device, |_| {}).unwrap();
        assert_eq!(score.value, Level::Collapsed);
        assert!(score.also.is_empty());
        let blind = |input: Padded| {
            let outputs = oracle(recipe, Split::Test, usize::MAX)(input);
            let dark = |(logits, offsets): (Tensor<3>, _)| (logits * 0.0 - 12.0, offsets);
            outputs.into_iter().map(dark).collect()
        };
        let score = judge.evaluate(&blind, 5, &device, |_| {}).unwrap();
        assert_eq!(score.value, Level::Number(0.0));
        let ap = average_precision(&blind, recipe, Split::Test, 5, &device).unwrap();
        assert_eq!(ap, 0.0);
    }

    #[test]
    fn classes_are_numbered_by_the_heads_width() {
        let of = |head, width, ids: &[i64]| {
            let categories: Vec<Category> = ids.iter().copied().map(category).collect();
            Numbering::of(head, width, &categories).map(|numbering| numbering.categories)
        };
        let (retinanet, ssd) = (Head::RetinaNet, Head::Ssd);
        // COCO's ids have gaps, and torchvision's networks an output for each number.
        let gaps = [1, 2, 5];
        let by_id = Some(vec![None, Some(0), Some(1), None, None, Some(2)]);
        assert_eq!(of(retinanet, 6, &gaps), by_id);
        assert_eq!(of(ssd, 6, &gaps), by_id);
        let plain = Some(vec![Some(0), Some(1), Some(2)]);
        assert_eq!(of(retinanet, 3, &gaps), plain);
        assert_eq!(of(ssd, 3, &gaps), None);
        let behind = Some(vec![None, Some(0), Some(1), Some(2)]);
        assert_eq!(of(retinanet, 4, &gaps), behind);
        assert_eq!(of(ssd, 4, &gaps), behind);
        assert_eq!(of(retinanet, 5, &gaps), None);
        // From 0 on, an SSD's background still comes first.
        assert_eq!(of(retinanet, 3, &[0, 1, 2]), plain);
        assert_eq!(of(ssd, 3, &[0, 1, 2]), None);
        assert_eq!(of(ssd, 4, &[0, 1, 2]), behind);
    }

    #[test]
    fn other_numbers_of_classes_and_pictures_without_objects_are_refused() {
        let device = Device::flex();
        let recipe = as_it_is();
        let judge = Detection::built_in(Split::Test, recipe);
        let wide = |_: Padded| {
            let of = |width| Tensor::<3>::zeros([1, 9 * 532, width], &Device::flex());
            vec![(of(9), of(4))]
        };
        let error = judge.evaluate(&wide, 1, &device, |_| {}).unwrap_err();
        let error = error.to_string();
        for part in [
            "9 classes",
            "has 5",
            "or 6 with a background",
            "micro_boxes",
        ] {
            assert!(error.contains(part), "{error}");
        }
        let error = judge.evaluate(&wide, 0, &device, |_| {}).unwrap_err();
        assert!(
            error.to_string().contains("no average precision"),
            "{error}"
        );
    }
}

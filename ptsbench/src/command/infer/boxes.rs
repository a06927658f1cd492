//! What a detector finds on pictures: a line for each box, and pictures with the boxes drawn on them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use burn::tensor::Tensor;
use model_zoo::catalog::{Spec, Visit, Weights};
use model_zoo::detection::Head;
use model_zoo::tap::Bare;
use model_zoo::{Boxes, Of};
use serde::Serialize;

use super::super::target;
use super::{Args, names_of, oddity};
use crate::cell::BatchNorm;
use crate::data::decode::{self, Rgb};
use crate::data::error::name;
use crate::data::marked::{self, Mark};
use crate::data::recipe::boxes::DetectionRecipe;
use crate::data::recipe_file::Own;
use crate::data::synthetic::detection as micro;
use crate::data::{coco, limits, voc};
use crate::device::Chosen;
use crate::interrupt;
use crate::pipeline::open_dense;
use crate::task::detect::input;
use crate::{note, outln};

pub(super) struct Find<'a> {
    pub args: &'a Args,
    pub file: &'a Path,
    pub own: Option<&'a Own>,
    pub chosen: &'a Chosen,
}

/// What is printed of a picture.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    image: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
    width: usize,
    height: usize,
    boxes: Vec<Found<'a>>,
    /// Where the picture with its boxes is.
    #[serde(skip_serializing_if = "Option::is_none")]
    drawn: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Found<'a> {
    class: usize,
    label: &'a str,
    score: f32,
    /// Left, top, right, bottom in pixels.
    corners: [f32; 4],
}

impl Visit<Boxes> for Find<'_> {
    /// Pictures that could not be read.
    type Out = anyhow::Result<usize>;

    fn visit<N: Of<Boxes>>(self, spec: &'static Spec, network: N) -> anyhow::Result<usize> {
        let recipe = crate::own::boxes_recipe(spec, self.own)?;
        let recipe = recipe.context("a network that finds boxes has a recipe")?;
        let network = open_dense(network, self.file, BatchNorm::Folded)?;
        let device = &self.chosen.device;
        let targets = self.targets()?;
        let mut labels: Option<Vec<String>> = None;
        let mut unreadable = 0;
        for (image, target) in self.args.images.iter().zip(targets) {
            interrupt::check()?;
            let (picture, note) = match read(image, &recipe) {
                Ok(read) => read,
                Err(error) => {
                    note!("{}: {error:#}", image.display());
                    unreadable += 1;
                    continue;
                }
            };
            let sized = recipe.apply(&picture);
            let resized = (sized.width, sized.height);
            let x = input(&[sized], &recipe, device);
            let [_, _, height, width] = x.images.dims();
            let levels = network.run(x, &mut Bare::default());
            let classes = levels.first().map_or(0, |(logits, _)| logits.dims()[2]);
            let labels = match &mut labels {
                Some(labels) => labels,
                none => none.insert(self.labels(spec, &recipe, classes)?),
            };
            let values = |tensor: Tensor<3>| -> Vec<f32> { tensor.into_data().iter().collect() };
            let outputs: Vec<(Vec<f32>, Vec<f32>)> = levels
                .into_iter()
                .map(|(logits, offsets)| (values(logits), values(offsets)))
                .collect();
            let outputs: Vec<(&[f32], &[f32])> = outputs
                .iter()
                .map(|(logits, offsets)| (&logits[..], &offsets[..]))
                .collect();
            let own = (picture.width, picture.height);
            let anchors = recipe.anchors([height, width]);
            let mut found = recipe
                .boxes(&outputs, &anchors, resized, own)
                .with_context(|| image.display().to_string())?;
            found.retain(|found| found.score >= self.args.score);
            found.sort_by(|a, b| b.score.total_cmp(&a.score));
            let boxes: Vec<Found<'_>> = found
                .iter()
                .map(|found| Found {
                    class: found.label,
                    label: labels.get(found.label).map_or("", String::as_str),
                    score: found.score,
                    corners: found.corners,
                })
                .collect();
            if let Some(target) = &target {
                marked::save(&picture, &marks(&boxes), target)?;
            }
            self.print(&Answer {
                image,
                note,
                width: own.0,
                height: own.1,
                boxes,
                drawn: target,
            })?;
        }
        Ok(unreadable)
    }
}

impl Find<'_> {
    /// Where each picture is drawn, if anywhere; none is one of the pictures read.
    fn targets(&self) -> anyhow::Result<Vec<Option<PathBuf>>> {
        let Some(folder) = &self.args.draw else {
            return Ok(self.args.images.iter().map(|_| None).collect());
        };
        ensure!(
            folder.is_dir(),
            "--draw {}: no such folder; make it first",
            folder.display()
        );
        let inputs: Vec<(&str, &Path)> = self
            .args
            .images
            .iter()
            .map(|image| ("pictures", image.as_path()))
            .collect();
        let mut taken = HashSet::new();
        let mut targets = Vec::new();
        for image in &self.args.images {
            let stem = name(&image.with_extension(""));
            let mut file = format!("{stem}.png");
            // Pictures of several folders may have one name.
            for number in 2.. {
                if taken.insert(file.clone()) {
                    break;
                }
                file = format!("{stem}-{number}.png");
            }
            let target = folder.join(file);
            target::spare("--draw", &target, &inputs)?;
            targets.push(Some(target));
        }
        Ok(targets)
    }

    /// The names of the network's classes.
    fn labels(
        &self,
        spec: &Spec,
        recipe: &DetectionRecipe,
        classes: usize,
    ) -> anyhow::Result<Vec<String>> {
        let background = |names: Vec<String>| {
            let mut all = vec!["background".to_owned()];
            all.extend(names);
            all
        };
        // Lists of classes may leave the background out.
        let fit = |names: Vec<String>| match names.len() {
            count if count == classes => Some(names),
            count if count + 1 == classes => Some(background(names)),
            _ => None,
        };
        if let Some(path) = &self.args.labels {
            let names = names_of(path)?;
            let count = names.len();
            return fit(names).ok_or_else(|| {
                anyhow!(
                    "{}: {count} lines, and {} has {classes} classes; give one name per line, in the order of the classes, with or without the background",
                    path.display(),
                    spec.name
                )
            });
        }
        if let Some((names, own)) = self.own.and_then(|own| Some((own.labels.clone()?, own))) {
            let count = names.len();
            if let Some(names) = fit(names) {
                return Ok(names);
            }
            note!(
                "warning: {} names {count} classes, and the network has {classes}: the names are not used",
                own.from.display()
            );
        }
        let built_in = spec.weights == Weights::BuiltIn;
        if let (true, Some(names)) = (built_in, fit(micro::CATEGORIES.map(str::to_owned).to_vec()))
        {
            return Ok(names);
        }
        let voc = voc::CLASSES.len() + 1;
        Ok(match (recipe.head(), classes) {
            // The published networks are numbered by COCO's ids, or have VOC's classes behind the background.
            (Head::RetinaNet, 91) => (0..91).map(coco_name).collect(),
            (Head::Ssd, count) if count == voc => {
                background(voc::CLASSES.map(str::to_owned).to_vec())
            }
            _ => (0..classes).map(|class| format!("class {class}")).collect(),
        })
    }

    fn print(&self, answer: &Answer<'_>) -> anyhow::Result<()> {
        if self.args.json {
            outln!("{}", serde_json::to_string(answer)?)?;
            return Ok(());
        }
        outln!("{}", answer.image.display())?;
        if let Some(note) = answer.note {
            outln!("  note: {note}")?;
        }
        if answer.boxes.is_empty() {
            outln!("  nothing with a score of {} or more", self.args.score)?;
        }
        for found in &answer.boxes {
            let [x0, y0, x1, y1] = found.corners;
            outln!(
                "  {:5.1} %  {} from {x0:.1}, {y0:.1} to {x1:.1}, {y1:.1}",
                100.0 * found.score,
                found.label
            )?;
        }
        if let Some(drawn) = &answer.drawn {
            outln!("  drawn: {}", drawn.display())?;
        }
        Ok(())
    }
}

fn coco_name(id: i64) -> String {
    let known = coco::CATEGORIES.iter().find(|(known, _)| *known == id);
    known.map_or_else(|| format!("class {id}"), |(_, name)| (*name).to_owned())
}

fn marks(boxes: &[Found<'_>]) -> Vec<Mark> {
    let mark = |found: &Found<'_>| Mark {
        corners: found.corners,
        class: found.class,
        text: format!("{} {:.0} %", found.label, 100.0 * found.score),
    };
    boxes.iter().map(mark).collect()
}

/// A picture, and what is unusual about its file.
fn read(path: &Path, recipe: &DetectionRecipe) -> anyhow::Result<(Rgb, Option<&'static str>)> {
    let bytes = model_zoo::file::read(path, limits::PICTURE)
        .map_err(|error| anyhow!("{error}; name a JPEG, PNG or WebP file"))?;
    let picture = decode::decode(&bytes, recipe.rotation())?;
    Ok((picture, oddity(&bytes)))
}

//! Generation: images that a network makes of noise, and how far they are from real ones.
//!
//! A sample's noise comes from a stream that its place in the run names, so batches and interruptions change no image. Their
//! features are summed as they come; no image is kept.

mod calibration;
pub mod draw;
pub mod parts;
pub mod recipe;
mod tally;

use std::cell::OnceCell;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use model_zoo::catalog::Spec;
use model_zoo::diffusion::sampler::StepsError;
use model_zoo::tap::Census;
use model_zoo::{Noise, Of};

use super::generated::Generated;
use super::judged::{After, Judge, Run, Stint};
use super::{Set, TaskError};
use crate::batches::Batches;
use crate::cell::CalibrationCell;
use crate::features::{Extractor, FeatureError};
use crate::interrupt;
use crate::metric::fid::{self, FidError, Gatherer};
use crate::record::{Better, Counts, Level, Score};
use crate::seed::Seed;
use crate::subject;
use crate::terminal::remark_once;

use draw::Drawing;
use parts::{Opened, Parts, PartsError};
use recipe::Recipe;
pub use tally::{Found, Made};

/// Values of a latent in a batch where nothing else is asked for: 32 images of 32 x 32.
const BATCH_VALUES: usize = 32 * 32 * 32;
/// The most images in such a batch.
const MOST: usize = 64;

/// The stream of the noise that judged images begin as.
pub const NOISE: &str = "generation";

/// Why images cannot be generated or compared.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// What stands around the network.
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// The features.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// The distance.
    #[error(transparent)]
    Distance(#[from] FidError),
    /// The steps.
    #[error(transparent)]
    Steps(#[from] StepsError),
    /// The network is not one for the task.
    #[error(
        "`{model}` {makes}, and task {task} is for networks that {wanted}; choose another model (`ptsbench list models`)"
    )]
    Misfit {
        /// The network.
        model: &'static str,
        /// What it makes images of.
        makes: String,
        /// The task.
        task: String,
        /// What it is for.
        wanted: &'static str,
    },
}

/// Images of a latent's size in a batch where nothing else is asked for.
pub fn batch_of([_, height, width]: [usize; 3]) -> usize {
    (BATCH_VALUES / (height * width).max(1)).clamp(1, MOST)
}

/// The recipe of a network with this weight file in a set, with the digest of what stands around the network.
pub fn recipe(spec: &Spec, set: &Set, weights: &Path) -> Result<Option<Recipe>, GenerateError> {
    let features = set.generated().map(Generated::features);
    let Some(recipe) = Recipe::of(spec, features) else {
        return Ok(None);
    };
    Ok(Some(recipe.with(Parts::find(spec, weights)?.as_ref())))
}

/// Says once which texts are longer than what a text encoder reads.
pub fn tell_of_long(texts: &[String], parts: &Opened) {
    let long = texts
        .iter()
        .enumerate()
        .map(|(at, text)| (at, parts.left_out(text)));
    let long: Vec<_> = long.filter(|(_, left_out)| *left_out > 0).collect();
    if let Some((first, left_out)) = long.first() {
        remark_once(&format!(
            "note: {} of {} prompts are too long for the text encoder, which reads what comes first; of prompt {} it leaves out {left_out} tokens",
            long.len(),
            texts.len(),
            first + 1
        ));
    }
}

/// A set as one network's images are compared with it.
#[derive(Debug)]
pub struct Generation {
    set: Arc<Set>,
    recipe: Recipe,
    /// What stands around the network, if anything does.
    parts: Option<Parts>,
    opened: OnceCell<Opened>,
}

impl Generation {
    /// A set for a network, by a cell's recipe or the network's own; none where the network predicts no noise.
    pub fn new(spec: &Spec, set: Arc<Set>, recipe: Option<&str>) -> Option<Self> {
        let features = set.generated()?.features();
        let given = recipe.and_then(|text| text.parse().ok());
        let recipe = given.or_else(|| Recipe::of(spec, Some(features)))?;
        Some(Self {
            set,
            recipe,
            parts: None,
            opened: OnceCell::new(),
        })
    }

    fn images(&self) -> &Generated {
        let images = self.set.generated();
        images.expect("the tasks that judge generators say what images are compared with")
    }

    /// What stands around the network, opened when first asked for.
    fn opened(&self, device: &Device) -> Result<&Opened, GenerateError> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let opened = match &self.parts {
            Some(parts) => parts.open(device)?,
            None => Opened::default(),
        };
        let opened = self.opened.get_or_init(|| opened);
        tell_of_long(self.images().prompts(), opened);
        Ok(opened)
    }

    /// Refuses a network that makes its images of something else than the task has.
    fn check(&self, spec: &Spec) -> Result<(), GenerateError> {
        let prompts = !self.images().prompts().is_empty();
        let reads = spec.context().is_some();
        let built_in = self.set.kind.built_in();
        let [channels, height, width] = spec.input;
        if reads == prompts && (!built_in || spec.input == self.recipe.noise && channels == 3) {
            return Ok(());
        }
        let what = if reads { "texts" } else { "noise alone" };
        Err(GenerateError::Misfit {
            model: spec.name,
            makes: format!("makes {channels}x{height}x{width} of {what}"),
            task: self.set.label(),
            wanted: match (prompts, built_in) {
                (true, _) => "make images of texts",
                (_, true) => "make 3x32x32 of noise alone",
                _ => "make images of noise alone",
            },
        })
    }

    /// The distance of what was made.
    fn found(&self, made: &Made, extractor: &Extractor) -> Result<Found, TaskError> {
        let images = self.images();
        let distance = match made.lost {
            0 => {
                let statistics = made.features.clone().finish();
                let statistics = statistics.map_err(GenerateError::from)?;
                let reference = images.statistics(extractor)?;
                let distance = fid::distance(&statistics, &reference);
                // Below zero is round-off: the sets are equal.
                Some(distance.map_err(GenerateError::from)?.max(0.0))
            }
            _ => None,
        };
        if distance.is_some() && made.images <= extractor.width {
            remark_once(&format!(
                "note: there are no more images than features ({}); with so few, the distance comes out far too high",
                extractor.width
            ));
        }
        Ok(Found {
            metric: images.metric(),
            distance,
            reference: images.reference(),
        })
    }
}

impl Judge<Noise> for Generation {
    type Tally = Made;

    fn beside(mut self, spec: &Spec, weights: &Path) -> Result<Self, TaskError> {
        self.check(spec)?;
        self.parts = Parts::find(spec, weights).map_err(GenerateError::from)?;
        self.recipe = self.recipe.with(self.parts.as_ref());
        Ok(self)
    }

    fn recipe(&self) -> Option<String> {
        Some(self.recipe.to_string())
    }

    fn available(&self) -> usize {
        self.images().available()
    }

    fn batch(&self) -> usize {
        batch_of(self.recipe.noise)
    }

    fn census<N: Of<Noise>>(
        &self,
        spec: &Spec,
        network: &N,
        device: &Device,
    ) -> Result<Census, TaskError> {
        self.check(spec)?;
        Ok(subject::census(spec, network, device))
    }

    fn calibration(
        &self,
        dense: &Run<'_, Noise>,
        wanted: &CalibrationCell,
        device: &Device,
        room: u64,
    ) -> Result<Batches<'static, calibration::Input>, TaskError> {
        let opened = self.opened(device)?;
        let drawing = Drawing::new(&self.recipe, opened, device).map_err(GenerateError::from)?;
        calibration::triples(
            &drawing,
            self.images().prompts(),
            dense,
            wanted,
            device,
            room,
        )
    }

    fn tally(
        &self,
        network: &Run<'_, Noise>,
        stint: Stint<Made>,
        device: &Device,
        after: &mut After<'_, Made>,
    ) -> Result<Made, TaskError> {
        let Stint {
            samples,
            batch,
            start,
        } = stint;
        let images = self.images();
        let opened = self.opened(device)?;
        let drawing = Drawing::new(&self.recipe, opened, device).map_err(GenerateError::from)?;
        let extractor = images.extractor(device)?;
        // First, so that what is wrong with the reference shows before the long work.
        images.statistics(&extractor)?;
        let mut made = start;
        if made.features.samples() == 0 {
            made.features = Gatherer::new(extractor.width);
        }
        if made.features.width() != extractor.width {
            let (first, second) = (made.features.width(), extractor.width);
            return Err(GenerateError::from(FidError::Widths { first, second }).into());
        }
        let samples = samples.min(images.available());
        while made.images < samples {
            interrupt::check()?;
            let these = made.images..samples.min(made.images + batch);
            let prompts = images.prompts().get(these.clone()).unwrap_or_default();
            let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
            let contexts = match prompts.is_empty() {
                true => None,
                false => drawing.contexts(&prompts),
            };
            let noise = drawing.noise(NOISE, Seed(0), these.clone());
            let found = drawing.run(network, noise, contexts.as_ref(), |_, _| ())?;
            let pictures = drawing.pictures(&found);
            made.lost += pictures.iter().filter(|picture| picture.is_none()).count();
            let pictures: Vec<_> = pictures.into_iter().flatten().collect();
            made.features
                .add(&extractor.features(&pictures))
                .map_err(GenerateError::from)?;
            made.images = these.end;
            after(&made, &mut Vec::new())?;
        }
        made.found = Some(self.found(&made, &extractor)?);
        Ok(made)
    }

    fn score(&self, made: &Made) -> Score {
        let images = self.images();
        let distance = made.found.as_ref().and_then(|found| found.distance);
        Score {
            metric: images.metric(),
            value: distance.map_or(Level::Collapsed, Level::Number),
            better: Better::Lower,
            counts: Counts::Generated {
                reference: images.reference() as u64,
                total: made.images as u64,
                available: images.available() as u64,
            },
            also: Default::default(),
        }
    }
}

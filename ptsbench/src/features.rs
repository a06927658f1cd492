//! Features of images for the Fréchet distance: Inception's, on which FID is defined, those of a small random network, or
//! what any classifier of the catalog hands to its last layer.

pub mod random;

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use kernels::Precision;
use model_zoo::catalog::{OtherModality, Spec, Visit};
use model_zoo::inception::{self, Inception};
use model_zoo::tap::{Bare, Capture};
use model_zoo::weights::WeightError;
use model_zoo::{Classes, Classifier, Network};
use rayon::prelude::*;

use crate::cell::BatchNorm;
use crate::data::decode::Rgb;
use crate::data::error::DataError;
use crate::data::loader;
use crate::data::recipe::{Recipe, Statistics as Pixels, fid as resized};
use crate::interrupt::{self, Interrupted};
use crate::metric::fid::{FidError, Gatherer, Statistics};
use crate::pipeline::open_dense;
use crate::subject;

use random::RandomConv;

/// Why there are no features.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// The weight file is bad.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// Too few images, or features that are not finite.
    #[error(transparent)]
    Features(#[from] FidError),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The network is not a classifier.
    #[error(transparent)]
    Modality(#[from] OtherModality),
    /// The last layer does not take a row of features per image.
    #[error(
        "`{model}` does not end in a linear layer, so it has no features to compare; choose another network"
    )]
    NoClassifier {
        /// The model.
        model: &'static str,
    },
}

/// How a picture becomes an input.
#[derive(Debug, Clone, Copy)]
enum Input {
    Inception,
    Recipe(Recipe),
}

impl Input {
    fn of(self, picture: &Rgb) -> Vec<f32> {
        match self {
            Input::Inception => resized::apply(picture),
            Input::Recipe(recipe) => recipe.apply(picture),
        }
    }

    fn side(self) -> usize {
        match self {
            Input::Inception => resized::SIDE,
            Input::Recipe(recipe) => recipe.crop,
        }
    }
}

/// A network that gives each image a row of features.
pub struct Extractor {
    /// The network's name.
    pub name: &'static str,
    /// Features of an image.
    pub width: usize,
    input: Input,
    device: Device,
    run: Box<dyn Fn(Tensor<4>) -> Tensor<2>>,
}

impl Extractor {
    /// Inception with the weights of 2015.
    pub fn inception(file: &Path, device: &Device) -> Result<Self, FeatureError> {
        let network = open_dense(Inception::init(device), file, BatchNorm::Folded)?;
        Ok(Self {
            name: inception::NAME,
            width: inception::FEATURES,
            input: Input::Inception,
            device: device.clone(),
            run: Box::new(move |x| network.run(x, &mut Bare::default())),
        })
    }

    /// The random network, on images of the built-in ones' size in [-1, 1].
    pub fn random_conv(device: &Device) -> Self {
        let network = RandomConv::new(device);
        Self {
            name: random::NAME,
            width: random::FEATURES,
            input: Input::Recipe(Recipe {
                statistics: Pixels {
                    mean: [0.5; 3],
                    std: [0.5; 3],
                },
                ..Recipe::MICRO
            }),
            device: device.clone(),
            run: Box::new(move |x| network.run(x)),
        }
    }

    /// A network of the catalog, up to its classifier.
    pub fn classifier(
        spec: &'static Spec,
        file: &Path,
        device: &Device,
    ) -> Result<Self, FeatureError> {
        let visitor = UpToClassifier { file, device };
        spec.open_classes(device, "features come from classifiers", visitor)?
    }

    /// The features of pictures, one row after the other.
    pub fn features(&self, pictures: &[Rgb]) -> Vec<f32> {
        let input = self.input;
        let values: Vec<Vec<f32>> = pictures
            .par_iter()
            .map(|picture| input.of(picture))
            .collect();
        match values.len() {
            0 => Vec::new(),
            images => self.rows(values.concat(), images),
        }
    }

    fn rows(&self, pixels: Vec<f32>, images: usize) -> Vec<f32> {
        let side = self.input.side();
        let x = Tensor::from_data(
            TensorData::new(pixels, [images, 3, side, side]),
            &self.device,
        );
        (self.run)(x).into_data().iter::<f32>().collect()
    }

    /// The statistics of the features of `count` images, gathered batch by batch: memory does not grow with the images.
    /// An image that cannot be read is left out; `watch` hears of it, and how many images are through.
    pub fn statistics(
        &self,
        count: usize,
        batch: usize,
        image: impl Fn(usize) -> Result<Rgb, DataError> + Sync,
        mut watch: impl FnMut(Seen),
    ) -> Result<Statistics, FeatureError> {
        let mut gatherer = Gatherer::new(self.width);
        let input = self.input;
        let load = |index| Ok(image(index).map(|picture| input.of(&picture)));
        loader::batches(count, batch, load, |start, items| {
            interrupt::check()?;
            let through = start + items.len();
            let mut pixels = Vec::new();
            let mut images = 0;
            for item in items {
                match item {
                    Ok(values) => {
                        pixels.extend(values);
                        images += 1;
                    }
                    Err(error) => watch(Seen::Unreadable(error)),
                }
            }
            if images > 0 {
                gatherer.add(&self.rows(pixels, images))?;
            }
            watch(Seen::Through(through));
            Ok::<(), FeatureError>(())
        })?;
        Ok(gatherer.finish()?)
    }
}

/// What happens while statistics are gathered.
#[derive(Debug)]
pub enum Seen {
    /// An image cannot be read and is left out.
    Unreadable(DataError),
    /// So many images are through, unreadable ones among them.
    Through(usize),
}

struct UpToClassifier<'a> {
    file: &'a Path,
    device: &'a Device,
}

impl Visit<Classes> for UpToClassifier<'_> {
    type Out = Result<Extractor, FeatureError>;

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> Self::Out {
        let network = open_dense(network, self.file, BatchNorm::Folded)?;
        let layers = subject::census(spec, &network, self.device).layers();
        let missing = FeatureError::NoClassifier { model: spec.name };
        let Some(last) = layers.last() else {
            return Err(missing);
        };
        let &[_, width] = last.inputs[0].as_slice() else {
            return Err(missing);
        };
        let path = last.path.clone();
        let run = move |x| {
            let mut capture = Capture::of(&path, Precision::F32);
            network.run(x, &mut capture);
            let call = capture.into_calls().pop().map(|(input, _)| input);
            let features = call.and_then(|input| input.downcast::<Tensor<2>>().ok());
            *features.expect("the layer runs on rows, as the census saw")
        };
        Ok(Extractor {
            name: spec.name,
            width,
            input: Input::Recipe(Recipe::of(spec)),
            device: self.device.clone(),
            run: Box::new(run),
        })
    }
}

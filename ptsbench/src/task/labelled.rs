//! Images of one class each: those to evaluate on, in their order, and those that calibration is drawn from.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::data::decode::ImageError;
use crate::data::error::DataError;
use crate::data::folder::{self, Form};
use crate::data::imagenet::{self, Wanted};
use crate::data::recipe::Recipe;
use crate::data::source::Source;
use crate::data::synthetic::MicroSet;
use crate::seed::Seed;

/// Images of one class each.
#[derive(Debug)]
pub struct Labelled {
    evaluation: Source,
    /// Where the first, second, ... image to evaluate is in `evaluation`; in place where it is empty.
    order: Vec<usize>,
    training: OnceLock<Source>,
    /// Where training images lie that are not listed yet.
    folder: PathBuf,
    /// How class folders lie, where the set is of those.
    form: Option<Form>,
}

impl Labelled {
    /// A split of the built-in images.
    pub(super) fn built_in(split: MicroSet) -> Self {
        Self {
            evaluation: Source::Micro(split),
            order: Vec::new(),
            training: OnceLock::from(Source::Micro(MicroSet::TRAIN)),
            folder: PathBuf::new(),
            form: None,
        }
    }

    /// Images of a folder, which has training images too.
    pub(super) fn of(evaluation: Source, folder: &Path) -> Self {
        // Lists on disk are sorted by class, or may be: their first images would be of a few classes alone.
        let mut order: Vec<usize> = (0..evaluation.len()).collect();
        Seed(0).stream("evaluation").shuffle(&mut order);
        Self {
            evaluation,
            order,
            training: OnceLock::new(),
            folder: folder.to_owned(),
            form: None,
        }
    }

    /// With these training images.
    pub(super) fn with_training(self, training: Source) -> Self {
        Self {
            training: OnceLock::from(training),
            ..self
        }
    }

    /// With training images in class folders of this form.
    pub(super) fn with_form(self, form: Form) -> Self {
        Self {
            form: Some(form),
            ..self
        }
    }

    /// Images to evaluate on.
    pub fn len(&self) -> usize {
        self.evaluation.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.evaluation.is_empty()
    }

    /// SHA-256 of the list of them; none for the built-in images.
    pub(super) fn sha256(&self) -> Result<Option<String>, DataError> {
        self.evaluation.sha256(0..self.evaluation.len())
    }

    fn place(&self, at: usize) -> usize {
        self.order.get(at).copied().unwrap_or(at)
    }

    /// The class of an image, by its place in the evaluation's order.
    pub fn label_of(&self, at: usize) -> usize {
        self.evaluation.label(self.place(at))
    }

    /// An image as a network takes it, by its place in the evaluation's order.
    pub fn input(&self, at: usize, recipe: &Recipe) -> Result<Vec<f32>, ImageError> {
        self.evaluation.input(self.place(at), recipe)
    }

    /// The training images, listed when first asked for.
    pub fn training(&self) -> Result<&Source, DataError> {
        if let Some(source) = self.training.get() {
            return Ok(source);
        }
        let folder = &self.folder;
        let (pictures, class) = match self.form {
            None => {
                let set = imagenet::read_splits(folder, Wanted::Train)?;
                (set.train, "WordNet id")
            }
            Some(form) => (folder::read(folder, form, Wanted::Train)?.train, "class"),
        };
        if pictures.is_empty() {
            let problem = format!(
                "no training images, which calibration is drawn from; add train/<{class}>/"
            );
            return Err(DataError::new(folder, problem));
        }
        Ok(self.training.get_or_init(|| Source::files(pictures)))
    }
}

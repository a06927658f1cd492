//! Pictures with objects on them: those to evaluate on, in their order, what is on them, and those that calibration is
//! drawn from.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use crate::data::coco::Category;
use crate::data::decode::{self, ImageError, Rgb, Rotation};
use crate::data::error::{DataError, name};
use crate::data::synthetic::Split;
use crate::data::synthetic::detection as micro;
use crate::metric::coco_ap::Truth;
use crate::metric::voc_ap;

/// Pictures, and what is on those to evaluate on.
#[derive(Debug)]
pub struct Scenes {
    /// The classes of objects, by id.
    pub categories: Vec<Category>,
    /// What the boxes found are judged by.
    pub metric: Metric,
    evaluation: Pictures,
    /// Where the first, second, ... picture to evaluate is in `evaluation`; in place where it is empty.
    order: Vec<usize>,
    truth: Vec<OnceLock<Objects>>,
    training: OnceLock<Pictures>,
    /// Where training pictures lie that are not listed yet.
    folder: PathBuf,
}

/// What boxes are judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// VOC's mean average precision, by the MobileNet-SSD release's rules.
    Voc,
    /// COCO's average precision.
    Coco,
    /// VOC's, and COCO's beside it.
    Both,
}

/// What is on a picture, in the forms that the metrics take.
#[derive(Debug, Default)]
pub struct Objects {
    /// The picture's id.
    pub image: i64,
    /// For COCO's metric.
    pub coco: Vec<Truth>,
    /// For VOC's metric.
    pub voc: Vec<voc_ap::Object>,
}

impl Objects {
    /// Objects that count.
    pub fn countable(&self) -> usize {
        let coco = self.coco.iter().filter(|truth| !truth.crowd).count();
        let voc = self.voc.iter().filter(|object| !object.difficult).count();
        coco.max(voc)
    }

    /// What is on a built-in picture.
    fn drawn(split: Split, index: usize) -> Self {
        let scene = micro::scene(split, index);
        // Ids only have to be above 0 and different on a picture.
        let coco = micro::truth(&scene, index as i64, 1);
        let voc = scene.objects.iter().map(|object| {
            let [left, top, width, height] = object.bbox.map(|side| side as f64);
            voc_ap::Object {
                class: object.category,
                bbox: [left + 1.0, top + 1.0, left + width, top + height],
                difficult: object.crowd,
            }
        });
        Self {
            image: index as i64,
            voc: voc.collect(),
            coco,
        }
    }
}

/// Pictures, wherever they are.
#[derive(Debug)]
pub enum Pictures {
    /// The built-in ones.
    Micro(Split),
    /// A file for each.
    Files(Vec<PathBuf>),
}

impl Pictures {
    /// Number of pictures.
    pub fn len(&self) -> usize {
        match self {
            Self::Micro(split) => micro::pictures(*split),
            Self::Files(files) => files.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A picture.
    pub fn picture(&self, index: usize, rotation: Rotation) -> Result<Rgb, ImageError> {
        match self {
            Self::Micro(split) => Ok(micro::scene(*split, index).picture),
            Self::Files(files) => decode::read(&files[index], rotation),
        }
    }

    /// SHA-256 in hex of pictures in this order, by name and size; none for the built-in ones, which their version identifies.
    pub fn sha256(&self, indices: &[usize]) -> Result<Option<String>, DataError> {
        let Self::Files(files) = self else {
            return Ok(None);
        };
        let mut hash = Sha256::new();
        for &index in indices {
            add_file(&mut hash, &files[index])?;
        }
        Ok(Some(hex(hash)))
    }
}

/// Adds a picture's name and size to a digest.
fn add_file(hash: &mut Sha256, path: &Path) -> Result<(), DataError> {
    let size = std::fs::metadata(path)
        .map_err(|error| DataError::new(path, format!("cannot be examined: {error}")))?
        .len();
    let name = name(path);
    hash.update(size.to_le_bytes());
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
    Ok(())
}

fn hex(hash: Sha256) -> String {
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Scenes {
    /// A split of the built-in pictures.
    pub(super) fn built_in(split: Split) -> Self {
        let category = |(at, name): (usize, &&str)| Category {
            id: at as i64 + 1,
            name: (*name).to_owned(),
        };
        let evaluation = Pictures::Micro(split);
        Self {
            categories: micro::CATEGORIES.iter().enumerate().map(category).collect(),
            metric: Metric::Both,
            order: Vec::new(),
            truth: (0..evaluation.len()).map(|_| OnceLock::new()).collect(),
            evaluation,
            training: OnceLock::from(Pictures::Micro(Split::Train)),
            folder: PathBuf::new(),
        }
    }

    /// Pictures to evaluate on.
    pub fn len(&self) -> usize {
        self.evaluation.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a picture is in the data set's own list, by its place in the evaluation's order.
    pub fn place(&self, at: usize) -> usize {
        self.order.get(at).copied().unwrap_or(at)
    }

    /// What is on a picture, by its place in the data set's own list.
    pub fn objects(&self, place: usize) -> &Objects {
        self.truth[place].get_or_init(|| match &self.evaluation {
            Pictures::Micro(split) => Objects::drawn(*split, place),
            Pictures::Files(_) => Objects::default(),
        })
    }

    /// A picture, by its place in the evaluation's order.
    pub fn picture(&self, at: usize, rotation: Rotation) -> Result<Rgb, ImageError> {
        self.evaluation.picture(self.place(at), rotation)
    }

    /// The training pictures, listed when first asked for.
    pub fn training(&self) -> Result<&Pictures, DataError> {
        if let Some(pictures) = self.training.get() {
            return Ok(pictures);
        }
        let problem = "no training pictures";
        Err(DataError::new(&self.folder, problem))
    }
}

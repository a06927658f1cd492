//! Pictures with objects on them: those to evaluate on, in their order, what is on them, and those that calibration is
//! drawn from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use crate::data::coco::{self, Category, Depth};
use crate::data::decode::{self, ImageError, Rgb, Rotation};
use crate::data::error::{DataError, name};
use crate::data::synthetic::Split;
use crate::data::synthetic::detection as micro;
use crate::data::voc;
use crate::metric::coco_ap::Truth;
use crate::metric::voc_ap;
use crate::seed::Seed;

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
    /// Which training pictures are listed, and in which folder.
    listed: Training,
    folder: PathBuf,
}

/// Which training pictures a set has.
#[derive(Debug)]
enum Training {
    /// The built-in ones.
    BuiltIn,
    /// Those that belong to a split of COCO's.
    Coco(String),
    /// The first of these image sets that there is.
    Voc(&'static [&'static str]),
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
            listed: Training::BuiltIn,
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

    /// The pictures of a folder in COCO's layout, by id.
    pub(super) fn coco(folder: &Path) -> Result<(Self, Vec<String>), DataError> {
        let (split, annotations, pictures) = coco::evaluation(folder)?;
        let mut set = coco::read_instances(&annotations, &pictures, Depth::Listed)?;
        set.images.sort_by_key(|image| image.id);
        let mut truth: HashMap<i64, Vec<Truth>> = HashMap::new();
        for object in set.truth {
            truth.entry(object.image).or_default().push(object);
        }
        let all = set.images.into_iter().map(|image| {
            let objects = Objects {
                image: image.id,
                coco: truth.remove(&image.id).unwrap_or_default(),
                voc: Vec::new(),
            };
            (image.path, objects)
        });
        let training = Training::Coco(split);
        let scenes = Self::of_files(folder, Metric::Coco, set.categories, all, training);
        let scenes = scenes.some(&annotations)?;
        Ok((scenes, set.warnings))
    }

    /// The pictures of a folder in VOC's layout, in their list's order; and notes.
    pub(super) fn voc(folder: &Path) -> Result<(Self, Vec<String>, Option<String>), DataError> {
        let set = match voc::has_set(folder, "test") {
            true => "test",
            false => "val",
        };
        let opened = voc::open(folder, set)?;
        let category = |(at, name): (usize, String)| Category {
            id: at as i64 + 1,
            name,
        };
        let categories = opened.classes.into_iter().enumerate().map(category);
        let pictures = opened.voc.pictures.into_iter().enumerate();
        let all = pictures.map(|(at, picture)| {
            let object = |object: voc::Object| voc_ap::Object {
                class: object.class,
                bbox: object.bbox,
                difficult: object.difficult,
            };
            let objects = Objects {
                image: at as i64,
                coco: Vec::new(),
                voc: picture.objects.into_iter().map(object).collect(),
            };
            (picture.path, objects)
        });
        let sets: &[&str] = match set {
            "test" => &["trainval", "train"],
            _ => &["train"],
        };
        let training = Training::Voc(sets);
        let scenes = Self::of_files(folder, Metric::Voc, categories.collect(), all, training);
        let scenes = scenes.some(folder)?;
        let from = opened.from;
        let note = from.map(|from| format!("{}: {from}", folder.display()));
        Ok((scenes, opened.voc.warnings, note))
    }

    fn of_files(
        folder: &Path,
        metric: Metric,
        categories: Vec<Category>,
        all: impl Iterator<Item = (PathBuf, Objects)>,
        listed: Training,
    ) -> Self {
        let (files, objects): (Vec<PathBuf>, Vec<Objects>) = all.unzip();
        // Ids may follow each other by what is on the pictures.
        let mut order: Vec<usize> = (0..files.len()).collect();
        Seed(0).stream("evaluation").shuffle(&mut order);
        Self {
            categories,
            metric,
            evaluation: Pictures::Files(files),
            order,
            truth: objects.into_iter().map(OnceLock::from).collect(),
            training: OnceLock::new(),
            listed,
            folder: folder.to_owned(),
        }
    }

    /// Refuses a set without pictures or classes.
    fn some(self, file: &Path) -> Result<Self, DataError> {
        let lacks = match (self.is_empty(), self.categories.is_empty()) {
            (true, _) => "no pictures",
            (false, true) => "no classes of objects",
            (false, false) => return Ok(self),
        };
        let problem = format!("{lacks} to evaluate on; complete the annotations");
        Err(DataError::new(file, problem))
    }

    /// SHA-256 of the classes, the pictures and what is on them; none for the built-in ones.
    pub(super) fn sha256(&self) -> Result<Option<String>, DataError> {
        let Pictures::Files(files) = &self.evaluation else {
            return Ok(None);
        };
        let mut hash = Sha256::new();
        for Category { id, name } in &self.categories {
            hash.update(id.to_le_bytes());
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
        }
        for (place, file) in files.iter().enumerate() {
            add_file(&mut hash, file)?;
            let objects = self.objects(place);
            hash.update((objects.coco.len() as u64).to_le_bytes());
            for object in &objects.coco {
                hash.update(object.category.to_le_bytes());
                let numbers = object.bbox.iter().chain([&object.area]);
                numbers.for_each(|number| hash.update(number.to_le_bytes()));
                // An object of id 0 is never found.
                hash.update([object.crowd.into(), u8::from(object.id == 0)]);
            }
            hash.update((objects.voc.len() as u64).to_le_bytes());
            for object in &objects.voc {
                hash.update((object.class as u64).to_le_bytes());
                let numbers = object.bbox.iter();
                numbers.for_each(|number| hash.update(number.to_le_bytes()));
                hash.update([object.difficult.into()]);
            }
        }
        Ok(Some(hex(hash)))
    }

    /// The training pictures, listed when first asked for.
    pub fn training(&self) -> Result<&Pictures, DataError> {
        if let Some(pictures) = self.training.get() {
            return Ok(pictures);
        }
        let files = match &self.listed {
            Training::BuiltIn => Vec::new(),
            Training::Coco(evaluation) => coco::training(&self.folder, evaluation)?,
            Training::Voc(sets) => {
                let set = sets.iter().find(|set| voc::has_set(&self.folder, set));
                let Some(set) = set else {
                    let problem = format!(
                        "no training pictures, which calibration is drawn from; add ImageSets/Main/{}.txt and what it lists",
                        sets[0]
                    );
                    return Err(DataError::new(&self.folder, problem));
                };
                voc::pictures(&self.folder, set)?
            }
        };
        Ok(self.training.get_or_init(|| Pictures::Files(files)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_objects_are_the_same_in_both_forms() {
        let scenes = Scenes::built_in(Split::Test);
        let mut crowds = 0;
        for place in 0..30 {
            let Objects { coco, voc, .. } = scenes.objects(place);
            assert_eq!(coco.len(), voc.len());
            for (coco, voc) in coco.iter().zip(voc) {
                let [left, top, width, height] = coco.bbox;
                assert_eq!(
                    voc.bbox,
                    [left + 1.0, top + 1.0, left + width, top + height]
                );
                assert_eq!(voc.class as i64 + 1, coco.category);
                assert_eq!(voc.difficult, coco.crowd);
                crowds += usize::from(coco.crowd);
            }
        }
        assert!(crowds > 0);
        assert_eq!(scenes.sha256().unwrap(), None);
        assert_eq!(scenes.training().unwrap().sha256(&[0]).unwrap(), None);
    }
}

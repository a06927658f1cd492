//! ImageNet as people have it: `train/` in class folders, `val/` in class folders or flat with one of the published
//! lists of truth.
//!
//! A class is its place among the sorted WordNet ids, as in every published network. The ids of the 2012 development kit
//! are others; they are translated through its `meta.mat`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::data::error::{DataError, counted, entries, is_image_name, name, read, read_text};
use crate::data::limits;
use crate::data::matlab::{self, Value};

/// A picture's file and class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// Where it lies.
    pub path: PathBuf,
    /// Its class.
    pub label: usize,
}

/// A data set on disk: files and classes, no pixels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageNet {
    /// WordNet ids by class.
    pub classes: Vec<String>,
    /// Training pictures, by class folder and name.
    pub train: Vec<Labelled>,
    /// Validation pictures.
    pub validation: Vec<Labelled>,
    /// What is unusual.
    pub warnings: Vec<String>,
}

const MAPPING: &str = "LOC_synset_mapping.txt";
const CLASS_INDEX: &str = "imagenet_class_index.json";
const SOLUTION: &str = "LOC_val_solution.csv";
const TRUTH: &str = "ILSVRC2012_validation_ground_truth.txt";
const LAYOUT: &str = "expected train/<WordNet id>/*.JPEG and val/<WordNet id>/*.JPEG";

/// Whether a name is a WordNet id, as ImageNet's classes are called.
pub fn is_wnid(name: &str) -> bool {
    let digits = name.strip_prefix('n').unwrap_or_default();
    digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether one of the lists that come with ImageNet lies in a folder.
pub fn listed(root: &Path) -> bool {
    [MAPPING, CLASS_INDEX, SOLUTION, TRUTH]
        .iter()
        .any(|list| root.join(list).is_file())
}

/// Whether a folder looks like ImageNet, if it is not a set of other classes.
pub fn recognise(root: &Path) -> bool {
    ["train", "val", "val_flat"]
        .iter()
        .any(|split| root.join(split).is_dir())
}

/// What of a folder is listed: the training split has over a million names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Both splits, as far as they are there.
    Both,
    /// The training pictures.
    Train,
    /// The validation pictures.
    Validation,
}

/// Reads a folder with `train`, `val` (or `val_flat`), or both.
pub fn read_folder(root: &Path) -> Result<ImageNet, DataError> {
    read_splits(root, Wanted::Both)
}

/// [`read_folder`], listing only the pictures that are wanted. The classes are the same whichever those are.
pub fn read_splits(root: &Path, wanted: Wanted) -> Result<ImageNet, DataError> {
    let listed = listed_classes(root)?;
    let mut set = ImageNet {
        classes: listed.unwrap_or_default(),
        ..ImageNet::default()
    };
    let train = root.join("train");
    if train.is_dir() {
        if set.classes.is_empty() {
            set.classes = class_folders(&train)?;
        }
        if wanted != Wanted::Validation {
            set.train = in_folders(&train, &set.classes, &mut set.warnings)?;
        }
    }
    let validation = ["val", "val_flat"].map(|split| root.join(split));
    if let Some(folder) = validation.iter().find(|folder| folder.is_dir()) {
        if set.classes.is_empty() {
            set.classes = class_folders(folder)?;
        }
        if wanted != Wanted::Train {
            set.validation = read_validation(root, folder, &set.classes, &mut set.warnings)?;
        }
    } else if !train.is_dir() {
        let problem = format!("neither `train` nor `val` is here; {LAYOUT}");
        return Err(DataError::new(root, problem));
    }
    Ok(set)
}

/// Reads the validation pictures of one folder, flat or not.
pub fn read_validation(
    root: &Path,
    folder: &Path,
    classes: &[String],
    warnings: &mut Vec<String>,
) -> Result<Vec<Labelled>, DataError> {
    let images: Vec<PathBuf> = images_in(folder)?;
    if images.is_empty() {
        return in_folders(folder, classes, warnings);
    }
    let place: HashMap<&str, usize> = classes
        .iter()
        .enumerate()
        .map(|(label, class)| (class.as_str(), label))
        .collect();
    let solution = root.join(SOLUTION);
    if solution.is_file() {
        return from_solution(&solution, images, &place);
    }
    let truths = [root.join(TRUTH), root.join("devkit/data").join(TRUTH)];
    if let Some(truth) = truths.iter().find(|truth| truth.is_file()) {
        return from_truth(root, truth, images, &place);
    }
    let problem = format!(
        "images lie directly in the folder, so their classes are unknown; put {SOLUTION}, or {TRUTH} with devkit/data/meta.mat, into {} beside {MAPPING}, or sort the images into class folders",
        root.display()
    );
    Err(DataError::new(folder, problem))
}

/// The sorted WordNet ids of a list beside the pictures, if there is one.
fn listed_classes(root: &Path) -> Result<Option<Vec<String>>, DataError> {
    let mapping = root.join(MAPPING);
    let index = root.join(CLASS_INDEX);
    let mut classes: Vec<String> = if mapping.is_file() {
        let text = read_text(&mapping, limits::LIST)?;
        let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
        text.lines().filter_map(first).collect()
    } else if index.is_file() {
        let rows: HashMap<String, Vec<String>> =
            serde_json::from_str(&read_text(&index, limits::CLASS_INDEX)?)
                .map_err(|error| DataError::new(&index, format!("not the class index: {error}")))?;
        rows.into_values()
            .filter_map(|row| row.into_iter().next())
            .collect()
    } else {
        return Ok(None);
    };
    classes.sort();
    let before = classes.len();
    classes.dedup();
    if classes.len() != before || classes.is_empty() {
        let problem = "lists a WordNet id twice, or none; download it again";
        return Err(DataError::new(&mapping, problem));
    }
    Ok(Some(classes))
}

fn images_in(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = entries(folder)?;
    paths.retain(|path| is_image_name(path) && path.is_file());
    Ok(paths)
}

/// Folders called like WordNet ids.
fn class_folders(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut names: Vec<String> = entries(folder)?
        .iter()
        .filter(|path| path.is_dir())
        .map(|path| name(path))
        .collect();
    names.sort();
    Ok(names)
}

fn in_folders(
    folder: &Path,
    classes: &[String],
    warnings: &mut Vec<String>,
) -> Result<Vec<Labelled>, DataError> {
    let folders = class_folders(folder)?;
    if folders.is_empty() {
        let problem = format!("no class folders found; {LAYOUT}");
        return Err(DataError::new(folder, problem));
    }
    let mut all = Vec::new();
    for class in folders {
        let path = folder.join(&class);
        let Ok(label) = classes.binary_search(&class) else {
            let problem = format!(
                "class folder {class} is not in the synset mapping of {}; remove the folder or complete the mapping",
                counted(classes.len(), "class")
            );
            return Err(DataError::new(&path, problem));
        };
        let images = images_in(&path)?;
        if images.is_empty() {
            warnings.push(format!("{}: class {class} has no images", path.display()));
        }
        all.extend(images.into_iter().map(|path| Labelled { path, label }));
    }
    Ok(all)
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// `ImageId,PredictionString` rows in any order; the string starts with the WordNet id.
fn from_solution(
    solution: &Path,
    images: Vec<PathBuf>,
    place: &HashMap<&str, usize>,
) -> Result<Vec<Labelled>, DataError> {
    let text = read_text(solution, limits::LIST)?;
    let mut labels = HashMap::new();
    for (line, row) in text
        .lines()
        .enumerate()
        .skip(1)
        .filter(|(_, row)| !row.trim().is_empty())
    {
        let class = row
            .split_once(',')
            .and_then(|(image, boxes)| Some((image, boxes.split_whitespace().next()?)));
        let Some((image, class)) = class else {
            let problem = format!("line {} is not ImageId,PredictionString", line + 1);
            return Err(DataError::new(solution, problem));
        };
        let Some(&label) = place.get(class) else {
            let problem = format!(
                "line {} names {class}, which is not in the synset mapping; put {MAPPING} beside it",
                line + 1
            );
            return Err(DataError::new(solution, problem));
        };
        labels.insert(image.to_owned(), label);
    }
    images
        .into_iter()
        .map(|path| match labels.get(&stem(&path)) {
            Some(&label) => Ok(Labelled { path, label }),
            None => Err(DataError::new(
                solution,
                format!("has no row for {}", name(&path)),
            )),
        })
        .collect()
}

/// One id of the development kit a line, for the pictures by name.
fn from_truth(
    root: &Path,
    truth: &Path,
    images: Vec<PathBuf>,
    place: &HashMap<&str, usize>,
) -> Result<Vec<Labelled>, DataError> {
    let text = read_text(truth, limits::LIST)?;
    let lines: Vec<&str> = text.split_whitespace().collect();
    if lines.len() != images.len() {
        let problem = format!(
            "{} but {}; every validation image needs its line",
            counted(images.len(), "image"),
            counted(lines.len(), "label")
        );
        return Err(DataError::new(truth, problem));
    }
    let kits = [
        "devkit/data/meta.mat",
        "ILSVRC2012_devkit_t12/data/meta.mat",
        "meta.mat",
    ];
    let Some(meta) = kits
        .iter()
        .map(|kit| root.join(kit))
        .find(|kit| kit.is_file())
    else {
        let problem = format!(
            "holds ids of the 2012 development kit, which are not class indices; put its meta.mat at {}",
            root.join(kits[0]).display()
        );
        return Err(DataError::new(truth, problem));
    };
    let wnids = kit_ids(&meta)?;
    let of_line = |(at, line): (usize, &&str)| {
        let id: Option<u32> = line.parse().ok();
        let label = id
            .and_then(|id| wnids.get(&id))
            .and_then(|wnid| place.get(wnid.as_str()));
        label.copied().ok_or_else(|| {
            let problem = format!(
                "line {}: id {line} is not a class of {} that the synset mapping lists",
                at + 1,
                name(&meta)
            );
            DataError::new(truth, problem)
        })
    };
    let labels: Vec<usize> = lines
        .iter()
        .enumerate()
        .map(of_line)
        .collect::<Result<_, _>>()?;
    let pairs = images.into_iter().zip(labels);
    Ok(pairs
        .map(|(path, label)| Labelled { path, label })
        .collect())
}

/// WordNet ids by id of the development kit.
fn kit_ids(meta: &Path) -> Result<HashMap<u32, String>, DataError> {
    let rows = matlab::structures(&read(meta, limits::MATLAB)?, "synsets")
        .map_err(|problem| DataError::new(meta, format!("{problem}; unpack the kit again")))?;
    let mut ids = HashMap::new();
    for row in rows {
        let field = |wanted: &str| {
            row.iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value)
        };
        if let (Some(Value::Number(id)), Some(Value::Text(wnid))) =
            (field("ILSVRC2012_ID"), field("WNID"))
        {
            ids.insert(*id as u32, wnid.clone());
        }
    }
    Ok(ids)
}

//! COCO annotations and results, checked before anything is scored.
//!
//! Usual readers keep the last of two equal keys, ids or annotations and say nothing; here a file that says two things is
//! refused. What is merely odd (boxes beyond the picture, empty boxes) is kept for scoring, as the reference scorer
//! keeps it, with a warning.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::data::error::{DataError, entries, is_image_name, name, read, read_text};
use crate::data::{decode, limits};
use crate::metric::coco_ap::{Found, Truth};

/// A picture of an annotation file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: i64,
    /// Where it lies.
    pub path: PathBuf,
    /// Columns, as the annotations say.
    pub width: i64,
    /// Rows, as the annotations say.
    pub height: i64,
}

/// A class of objects.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Category {
    /// Its id; ids have gaps.
    pub id: i64,
    /// Its name.
    pub name: String,
}

/// A split: pictures, classes, objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Instances {
    /// In the file's order.
    pub images: Vec<Image>,
    /// By id: a class index is a place here.
    pub categories: Vec<Category>,
    /// In the file's order.
    pub truth: Vec<Truth>,
    /// What is odd.
    pub warnings: Vec<String>,
}

/// Whether picture files are opened to compare their size with the annotations'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only their presence is looked at.
    Listed,
    /// Their headers are read.
    Headers,
}

#[derive(Deserialize)]
struct File {
    images: Vec<ImageRow>,
    annotations: Vec<AnnotationRow>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct ImageRow {
    id: i64,
    file_name: String,
    width: i64,
    height: i64,
}

#[derive(Deserialize)]
struct AnnotationRow {
    id: i64,
    image_id: i64,
    category_id: i64,
    #[serde(default)]
    bbox: Loose,
    #[serde(default)]
    area: Option<f64>,
    #[serde(default)]
    iscrowd: i64,
}

/// Parses JSON; the error names the place and what stands there.
fn parse<T: DeserializeOwned>(path: &Path) -> Result<T, DataError> {
    let text = read_text(path, limits::COCO)?;
    serde_json::from_str(&text).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        let problem = if error.is_eof() {
            format!("end of file at {place}: the file is cut off; copy or download it again")
        } else if let Some(key) = not_a_number(&text, error.line(), error.column()) {
            format!("`{key}` is NaN or infinite at {place}, which is not JSON; compute it again")
        } else {
            let reason = error
                .to_string()
                .replace("duplicate field", "duplicate key");
            format!("{reason}; correct the file")
        };
        DataError::new(path, problem)
    })
}

/// The key before a NaN or an infinity at a place of the text, where one stands.
fn not_a_number(text: &str, line: usize, column: usize) -> Option<&str> {
    let line = text.lines().nth(line.checked_sub(1)?)?;
    let start = line.floor_char_boundary(column.saturating_sub(2));
    let at = line.floor_char_boundary(column + 10);
    let near = line.get(start..at)?;
    if !["NaN", "nan", "Inf", "inf"]
        .iter()
        .any(|word| near.contains(word))
    {
        return None;
    }
    let before = line.get(..column.min(line.len()))?;
    let (before, _) = before.rsplit_once(':')?;
    before.trim_end().strip_suffix('"')?.rsplit('"').next()
}

/// What stands in a box's place, without the memory that a list of millions would take.
#[derive(Debug, Clone, Copy, Default)]
enum Loose {
    Number(f64),
    List {
        /// The first ones, zero where there is none.
        numbers: [f64; 4],
        count: usize,
        /// The first item that is no number.
        other: Option<usize>,
    },
    #[default]
    Other,
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor)
    }
}

struct LooseVisitor;

impl<'de> Visitor<'de> for LooseVisitor {
    type Value = Loose;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of 4 numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Loose, A::Error> {
        let (mut numbers, mut count, mut other) = ([0.0; 4], 0, None);
        while let Some(item) = items.next_element()? {
            match (item, numbers.get_mut(count)) {
                (Loose::Number(value), Some(number)) => *number = value,
                (Loose::Number(_), None) => {}
                _ => other = other.or(Some(count)),
            }
            count += 1;
        }
        Ok(Loose::List {
            numbers,
            count,
            other,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Loose, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Loose::Other)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Loose, E> {
        Ok(Loose::Number(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Loose, E> {
        Ok(Loose::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Loose, E> {
        Ok(Loose::Number(value as f64))
    }

    fn visit_unit<E>(self) -> Result<Loose, E> {
        Ok(Loose::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Loose, E> {
        Ok(Loose::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Loose, E> {
        Ok(Loose::Other)
    }
}

/// Four finite numbers.
fn corners(found: Loose) -> Result<[f64; 4], String> {
    match found {
        Loose::List {
            other: Some(place), ..
        } => Err(format!(
            "bbox holds something other than a number at {place}"
        )),
        Loose::List {
            numbers, count: 4, ..
        } => Ok(numbers),
        Loose::List { count, .. } => Err(format!("bbox has {count} instead of 4 numbers")),
        Loose::Number(_) | Loose::Other => Err("bbox is not a list of 4 numbers".to_owned()),
    }
}

/// A file name must stay inside the picture folder.
fn stays_inside(file_name: &str) -> bool {
    let mut parts = Path::new(file_name).components();
    !file_name.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Reads an annotation file whose pictures lie in `folder`.
pub fn read_instances(path: &Path, folder: &Path, depth: Depth) -> Result<Instances, DataError> {
    let file: File = parse(path)?;
    let refuse = |problem: String| Err(DataError::new(path, problem));
    let mut warnings = Vec::new();
    let mut sizes = HashMap::new();
    let mut images = Vec::new();
    for row in file.images {
        let ImageRow {
            id,
            file_name,
            width,
            height,
        } = row;
        if sizes.insert(id, (width, height)).is_some() {
            return refuse(format!("image id {id} appears twice; make ids unique"));
        }
        if !stays_inside(&file_name) {
            return refuse(format!(
                "image id {id}: file_name {file_name:?} leads outside the image folder; refused"
            ));
        }
        let image = folder.join(&file_name);
        if !image.is_file() {
            return refuse(format!(
                "{file_name} (image id {id}) is listed but not found in {}; complete the images",
                folder.display()
            ));
        }
        if depth == Depth::Headers {
            let real = decode::size(&read(&image, limits::PICTURE)?)
                .map_err(|problem| DataError::new(&image, problem.to_string()))?;
            if (real.0 as i64, real.1 as i64) != (width, height) {
                warnings.push(format!(
                    "{file_name} is {}x{}, but the annotations say {width}x{height}",
                    real.0, real.1
                ));
            }
        }
        images.push(Image {
            id,
            path: image,
            width,
            height,
        });
    }
    let mut categories = file.categories;
    categories.sort_by_key(|category| category.id);
    let mut known = HashSet::new();
    for category in &categories {
        if !known.insert(category.id) {
            return refuse(format!("category id {} appears twice", category.id));
        }
    }
    let mut ids = HashSet::new();
    let mut truth = Vec::new();
    for row in file.annotations {
        let (id, image, category) = (row.id, row.image_id, row.category_id);
        if !ids.insert(id) {
            return refuse(format!("annotation id {id} appears twice; make ids unique"));
        }
        let Some(&(width, height)) = sizes.get(&image) else {
            return refuse(format!(
                "annotation {id}: image_id {image} is not among the images"
            ));
        };
        if !known.contains(&category) {
            return refuse(format!(
                "annotation {id}: category_id {category} is not among the categories"
            ));
        }
        let bbox = match corners(row.bbox) {
            Ok(bbox) => bbox,
            Err(problem) => return refuse(format!("annotation {id}: {problem}")),
        };
        let [x, y, w, h] = bbox;
        for (side, what) in [(w, "width"), (h, "height")] {
            if side < 0.0 {
                return refuse(format!("annotation {id}: negative {what} {side}"));
            }
        }
        if w == 0.0 || h == 0.0 {
            warnings.push(format!(
                "annotation {id}: a box of zero area is kept for scoring and dropped for training"
            ));
        }
        // Published boxes are rounded to hundredths.
        let slack = 0.01;
        if x < -slack || y < -slack || x + w > width as f64 + slack || y + h > height as f64 + slack
        {
            warnings.push(format!(
                "annotation {id}: bbox {bbox:?} reaches outside its image of {width}x{height}; kept as it is"
            ));
        }
        if id == 0 {
            warnings.push(
                "annotation id 0 means `unmatched` to the reference scorer: such an object is never found"
                    .to_owned(),
            );
        }
        truth.push(Truth {
            id,
            image,
            category,
            bbox,
            area: row.area.unwrap_or(w * h),
            crowd: row.iscrowd != 0,
        });
    }
    Ok(Instances {
        images,
        categories,
        truth,
        warnings,
    })
}

#[derive(Deserialize)]
struct ResultRow {
    image_id: Option<i64>,
    category_id: Option<i64>,
    #[serde(default)]
    bbox: Loose,
    score: Option<f64>,
}

/// Reads a results list for these images.
pub fn read_results(path: &Path, images: &HashSet<i64>) -> Result<Vec<Found>, DataError> {
    let refuse = |problem: String| DataError::new(path, problem);
    let text = read_text(path, limits::COCO)?;
    if !text.trim_start().starts_with('[') {
        return Err(refuse(
            "not a list of results; each result is an object in one list".to_owned(),
        ));
    }
    let rows: Vec<ResultRow> = parse(path)?;
    rows.into_iter()
        .enumerate()
        .map(|(index, row)| {
            let missing = |key: &str| refuse(format!("result {index} has no {key}"));
            let image = row.image_id.ok_or_else(|| missing("image_id"))?;
            if !images.contains(&image) {
                return Err(refuse(format!(
                    "result {index}: image_id {image} is not among the images; evaluate results of the same split"
                )));
            }
            let bbox = corners(row.bbox)
                .map_err(|problem| refuse(format!("result {index}: {problem}")))?;
            Ok(Found {
                image,
                category: row.category_id.ok_or_else(|| missing("category_id"))?,
                bbox,
                score: row.score.ok_or_else(|| missing("score"))?,
            })
        })
        .collect()
}

/// Where annotation tools put a split's annotations: among its pictures.
const AMONG: &str = "_annotations.coco.json";

/// The splits of a folder in COCO's layout, `annotations/instances_<split>.json` beside `<split>/`, or with the annotations
/// in `<split>/` itself: name, annotation file, picture folder.
pub fn splits(root: &Path) -> Vec<(String, PathBuf, PathBuf)> {
    let annotations = entries(&root.join("annotations")).unwrap_or_default();
    let beside = annotations.into_iter().filter_map(|path| {
        let file = name(&path);
        let split = file.strip_prefix("instances_")?.strip_suffix(".json")?;
        Some((split.to_owned(), path, root.join(split)))
    });
    let folders = entries(root).unwrap_or_default();
    let among = folders.into_iter().filter_map(|folder| {
        let annotations = folder.join(AMONG);
        let split = name(&folder);
        annotations
            .is_file()
            .then_some((split, annotations, folder))
    });
    beside.chain(among).collect()
}

/// The split to evaluate on: `val2017`, the only other one for validation, or the only one for tests.
pub fn evaluation(root: &Path) -> Result<(String, PathBuf, PathBuf), DataError> {
    let splits = splits(root);
    if let Some(split) = splits.iter().find(|(name, ..)| name == "val2017") {
        return Ok(split.clone());
    }
    for begins in ["val", "test"] {
        let named = splits.iter().filter(|(name, ..)| name.starts_with(begins));
        match named.collect::<Vec<_>>().as_slice() {
            [] => {}
            [split] => return Ok((*split).clone()),
            several => {
                let names: Vec<&str> = several.iter().map(|(name, ..)| name.as_str()).collect();
                let problem = format!(
                    "several splits to evaluate on: {}; leave one of them in the folder",
                    names.join(", ")
                );
                return Err(DataError::new(root, problem));
            }
        }
    }
    let names: Vec<&str> = splits.iter().map(|(name, ..)| name.as_str()).collect();
    let problem = format!(
        "no split to evaluate on among {}; add annotations/instances_val.json and val/ (or test)",
        names.join(", ")
    );
    Err(DataError::new(root, problem))
}

/// The training pictures that belong to a split to evaluate on, by name; their annotations are not looked at.
pub fn training(root: &Path, evaluation: &str) -> Result<Vec<PathBuf>, DataError> {
    let year = evaluation.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    let folders = [format!("train{year}"), "train".to_owned()].map(|name| root.join(name));
    let Some(folder) = folders.iter().find(|folder| folder.is_dir()) else {
        let problem = format!(
            "no training pictures, which calibration is drawn from; add {}/ with pictures, annotations are not needed",
            name(&folders[0])
        );
        return Err(DataError::new(root, problem));
    };
    let pictures: Vec<PathBuf> = entries(folder)?
        .into_iter()
        .filter(|path| is_image_name(path))
        .collect();
    if pictures.is_empty() {
        let problem = "no picture here, and calibration is drawn from the training pictures; add them, annotations are not needed";
        return Err(DataError::new(folder, problem));
    }
    Ok(pictures)
}

/// COCO's 80 categories: id and name. Ids have gaps.
pub const CATEGORIES: [(i64, &str); 80] = [
    (1, "person"),
    (2, "bicycle"),
    (3, "car"),
    (4, "motorcycle"),
    (5, "airplane"),
    (6, "bus"),
    (7, "train"),
    (8, "truck"),
    (9, "boat"),
    (10, "traffic light"),
    (11, "fire hydrant"),
    (13, "stop sign"),
    (14, "parking meter"),
    (15, "bench"),
    (16, "bird"),
    (17, "cat"),
    (18, "dog"),
    (19, "horse"),
    (20, "sheep"),
    (21, "cow"),
    (22, "elephant"),
    (23, "bear"),
    (24, "zebra"),
    (25, "giraffe"),
    (27, "backpack"),
    (28, "umbrella"),
    (31, "handbag"),
    (32, "tie"),
    (33, "suitcase"),
    (34, "frisbee"),
    (35, "skis"),
    (36, "snowboard"),
    (37, "sports ball"),
    (38, "kite"),
    (39, "baseball bat"),
    (40, "baseball glove"),
    (41, "skateboard"),
    (42, "surfboard"),
    (43, "tennis racket"),
    (44, "bottle"),
    (46, "wine glass"),
    (47, "cup"),
    (48, "fork"),
    (49, "knife"),
    (50, "spoon"),
    (51, "bowl"),
    (52, "banana"),
    (53, "apple"),
    (54, "sandwich"),
    (55, "orange"),
    (56, "broccoli"),
    (57, "carrot"),
    (58, "hot dog"),
    (59, "pizza"),
    (60, "donut"),
    (61, "cake"),
    (62, "chair"),
    (63, "couch"),
    (64, "potted plant"),
    (65, "bed"),
    (67, "dining table"),
    (70, "toilet"),
    (72, "tv"),
    (73, "laptop"),
    (74, "mouse"),
    (75, "remote"),
    (76, "keyboard"),
    (77, "cell phone"),
    (78, "microwave"),
    (79, "oven"),
    (80, "toaster"),
    (81, "sink"),
    (82, "refrigerator"),
    (84, "book"),
    (85, "clock"),
    (86, "vase"),
    (87, "scissors"),
    (88, "teddy bear"),
    (89, "hair drier"),
    (90, "toothbrush"),
];

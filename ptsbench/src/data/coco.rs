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

use crate::data::error::{DataError, read, read_text};
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

/// The splits of a folder in COCO's layout: name, annotation file, picture folder.
pub fn splits(root: &Path) -> Vec<(String, PathBuf, PathBuf)> {
    let annotations = crate::data::error::entries(&root.join("annotations")).unwrap_or_default();
    let split = |path: PathBuf| {
        let file = crate::data::error::name(&path);
        let split = file.strip_prefix("instances_")?.strip_suffix(".json")?;
        Some((split.to_owned(), root.join(split), path))
    };
    let found = annotations.into_iter().filter_map(split);
    found
        .map(|(split, folder, path)| (split, path, folder))
        .collect()
}

//! PASCAL VOC 2007 as the devkit lays it out: image sets, annotations in XML, pictures. Sets of one's own in this layout
//! have their own classes.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node, ParsingOptions};

use crate::data::error::{DataError, entries, read, read_text};
use crate::data::folder::few;
use crate::data::{decode, limits};

/// The classes in the devkit's order; an index is a network's output.
pub const CLASSES: [&str; 20] = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];

/// An object as annotated.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Its place in [`CLASSES`], or in the set's own list.
    pub class: usize,
    /// Left, top, right, bottom: 1-based pixels, both ends included.
    pub bbox: [f64; 4],
    /// Not counted.
    pub difficult: bool,
    /// Partly outside the picture.
    pub truncated: bool,
}

/// A picture and its objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Six digits, or whatever a set of one's own has.
    pub id: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Columns and rows, as annotated.
    pub size: (i64, i64),
    /// In the file's order.
    pub objects: Vec<Object>,
}

/// An image set.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Voc {
    /// In the set's order.
    pub pictures: Vec<Picture>,
    /// What is odd.
    pub warnings: Vec<String>,
}

/// The folder that holds `ImageSets`, from the devkit's, the year's or its parent.
pub fn find_root(folder: &Path) -> Option<PathBuf> {
    ["", "VOC2007", "VOCdevkit/VOC2007"]
        .iter()
        .map(|below| folder.join(below))
        .find(|root| root.join("ImageSets/Main").is_dir())
}

fn root_of(folder: &Path) -> Result<PathBuf, DataError> {
    find_root(folder).ok_or_else(|| {
        let problem = "no ImageSets/Main here; give the folder VOCdevkit or VOC2007";
        DataError::new(folder, problem)
    })
}

fn list_of(root: &Path, set: &str) -> PathBuf {
    root.join("ImageSets/Main").join(format!("{set}.txt"))
}

/// Whether there is such an image set.
pub fn has_set(folder: &Path, set: &str) -> bool {
    find_root(folder).is_some_and(|root| list_of(&root, set).is_file())
}

/// The ids of an image set in its order.
fn ids(root: &Path, set: &str) -> Result<Vec<String>, DataError> {
    let list = list_of(root, set);
    let mut ids = Vec::new();
    let mut seen = HashSet::new();
    // A set's file may hold a flag behind the id, blank lines and any line ends.
    for id in read_text(&list, limits::LIST)?
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        if !id
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter))
        {
            return Err(DataError::new(&list, format!("{id:?} is not an image id")));
        }
        if !seen.insert(id.to_owned()) {
            let problem = format!("image {id} is listed twice in {set}.txt; remove one line");
            return Err(DataError::new(&list, problem));
        }
        ids.push(id.to_owned());
    }
    Ok(ids)
}

fn missing(file: &Path, set: &str) -> DataError {
    let problem = format!("listed in {set}.txt, but missing; unpack the archive again");
    DataError::new(file, problem)
}

/// A picture's file; those of sets of one's own need not be JPEG.
fn picture(root: &Path, set: &str, id: &str) -> Result<PathBuf, DataError> {
    let named = |ending: &str| root.join("JPEGImages").join(format!("{id}.{ending}"));
    let mut others = ["jpg", "jpeg", "png"].map(named).into_iter();
    others
        .find(|file| file.is_file())
        .ok_or_else(|| missing(&named("jpg"), set))
}

/// The pictures of an image set alone, without looking at annotations.
pub fn pictures(folder: &Path, set: &str) -> Result<Vec<PathBuf>, DataError> {
    let root = root_of(folder)?;
    let ids = ids(&root, set)?;
    ids.iter().map(|id| picture(&root, set, id)).collect()
}

/// Reads an image set such as `test`, of VOC's own classes.
pub fn read_set(folder: &Path, set: &str) -> Result<Voc, DataError> {
    let (voc, names) = read_named(folder, set)?;
    number(voc, names, &CLASSES)
}

/// An image set of whatever classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// The set.
    pub voc: Voc,
    /// Its classes; an index is an object's class.
    pub classes: Vec<String>,
    /// Where the classes are from, if they are not VOC's.
    pub from: Option<String>,
}

/// The list of a set's own classes, a line each.
const OWN: &str = "classes.txt";

/// Reads an image set of VOC's classes or of others: those of `classes.txt` beside `Annotations`, else all names in the
/// annotations by alphabet, where none of them is VOC's.
pub fn open(folder: &Path, set: &str) -> Result<Opened, DataError> {
    let root = root_of(folder)?;
    let (voc, names) = read_named(folder, set)?;
    let list = root.join(OWN);
    let known = |name: &str| CLASSES.contains(&name);
    let mut all = names.iter().flatten().map(|(name, _)| name.as_str());
    let (classes, from) = if list.is_file() {
        let text = read_text(&list, limits::LABELS)?;
        let lines = text.lines().map(|line| line.trim().to_lowercase());
        let classes: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
        (classes, Some(format!("the classes are those of {OWN}")))
    } else if all.clone().any(known) || all.next().is_none() {
        (CLASSES.map(str::to_owned).to_vec(), None)
    } else {
        // A set's pictures need not show everything that networks were trained for.
        let mut found = BTreeSet::new();
        for file in entries(&root.join("Annotations"))? {
            if file.extension().is_some_and(|ending| ending == "xml") {
                let (_, objects) = read_annotation(&file, &mut Vec::new())?;
                found.extend(objects.into_iter().map(|(name, _)| name));
            }
        }
        let classes: Vec<String> = found.into_iter().collect();
        let from = format!(
            "none of the names in Annotations is VOC's, so the classes are those names by alphabet: {} ({OWN} with a name per line would set another order)",
            few(&classes)
        );
        (classes, Some(from))
    };
    let known: Vec<&str> = classes.iter().map(String::as_str).collect();
    let voc = number(voc, names, &known)?;
    Ok(Opened { voc, classes, from })
}

/// The objects' names, picture by picture, and the file that says so.
type Names = Vec<Vec<(String, PathBuf)>>;

/// Puts the places of names into their objects.
fn number(mut voc: Voc, names: Names, classes: &[&str]) -> Result<Voc, DataError> {
    for (picture, names) in voc.pictures.iter_mut().zip(names) {
        let objects = picture.objects.iter_mut().zip(names).enumerate();
        for (index, (object, (name, file))) in objects {
            let place = classes.iter().position(|class| *class == name);
            object.class = place.ok_or_else(|| {
                let whose = match classes == CLASSES {
                    true => "20 VOC classes".to_owned(),
                    false => format!("{} classes of {OWN}", classes.len()),
                };
                let problem = format!(
                    "object {index} is a {name:?}, none of the {whose}; correct it, or list the classes of a set of your own in {OWN} beside Annotations, a name per line"
                );
                DataError::new(&file, problem)
            })?;
        }
    }
    Ok(voc)
}

/// Reads an image set whose objects' classes are still names.
fn read_named(folder: &Path, set: &str) -> Result<(Voc, Names), DataError> {
    let root = root_of(folder)?;
    let mut voc = Voc::default();
    let mut names = Names::new();
    for id in ids(&root, set)? {
        let annotation = root.join("Annotations").join(format!("{id}.xml"));
        if !annotation.is_file() {
            return Err(missing(&annotation, set));
        }
        let path = picture(&root, set, &id)?;
        let (size, objects) = read_annotation(&annotation, &mut voc.warnings)?;
        let real = decode::size(&read(&path, limits::PICTURE)?)
            .map_err(|problem| DataError::new(&path, problem.to_string()))?;
        if (real.0 as i64, real.1 as i64) != size {
            voc.warnings.push(format!(
                "{}: {}x{}, but the annotation of {id} says {}x{}",
                path.display(),
                real.0,
                real.1,
                size.0,
                size.1
            ));
        }
        let (named, objects): (Vec<String>, Vec<Object>) = objects.into_iter().unzip();
        let named = named.into_iter().map(|name| (name, annotation.clone()));
        names.push(named.collect());
        voc.pictures.push(Picture {
            id,
            path,
            size,
            objects,
        });
    }
    Ok((voc, names))
}

/// Equals signs of an annotation at most, of which each attribute has one; some tools add one or two attributes.
const ATTRIBUTES: usize = 1000;
/// Elements and texts of an annotation at most; the published ones have 2,000.
const NODES: u32 = 50_000;

/// Width and height of a picture, and its objects with the names of their classes.
type Annotation = ((i64, i64), Vec<(String, Object)>);

/// Reads one annotation file.
fn read_annotation(path: &Path, warnings: &mut Vec<String>) -> Result<Annotation, DataError> {
    let text = read_text(path, limits::VOC)?;
    let refuse = |problem: String| DataError::new(path, problem);
    if text.trim().is_empty() {
        return Err(refuse(
            "the file is empty; unpack the archive again".to_owned(),
        ));
    }
    // An attribute is compared with each of its element's others, so many would take long. VOC's have none.
    let equals = text.bytes().filter(|&byte| byte == b'=').count();
    if equals > ATTRIBUTES {
        return Err(refuse(format!(
            "{equals} attributes, and no VOC annotation has any; unpack the archive again"
        )));
    }
    // Without a document type there are no entities to expand.
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: NODES,
        ..ParsingOptions::default()
    };
    let document = Document::parse_with_options(&text, options)
        .map_err(|error| refuse(describe(&text, &error)))?;
    let root = document.root_element();
    let number = |node: Option<Node>, what: &str| -> Result<f64, DataError> {
        let text = node.and_then(|node| node.text()).unwrap_or_default().trim();
        let value: Option<f64> = text.parse().ok().filter(|value: &f64| value.is_finite());
        value.ok_or_else(|| refuse(format!("{what} is {text:?} instead of a number")))
    };
    let size = child(root, "size");
    let side = |name: &str| number(size.and_then(|size| child(size, name)), name);
    let (width, height) = (side("width")?, side("height")?);
    let mut objects = Vec::new();
    let nodes = root.children().filter(|node| node.has_tag_name("object"));
    for (index, node) in nodes.enumerate() {
        let class_name = child(node, "name")
            .and_then(|name| name.text())
            .unwrap_or_default();
        let class_name = class_name.trim().to_lowercase();
        // A body part's own box lies deeper and is not looked at.
        let Some(corners) = child(node, "bndbox") else {
            return Err(refuse(format!("object {index} has no bndbox")));
        };
        let mut bbox = [0.0; 4];
        for (corner, name) in bbox.iter_mut().zip(["xmin", "ymin", "xmax", "ymax"]) {
            *corner = number(child(corners, name), name)?;
        }
        let [x0, y0, x1, y1] = bbox;
        for (low, high, axis) in [(x0, x1, 'x'), (y0, y1, 'y')] {
            if low > high {
                return Err(refuse(format!(
                    "object {index}: {axis}min {low} > {axis}max {high}"
                )));
            }
        }
        for (low, name) in [(x0, "xmin"), (y0, "ymin")] {
            if low < 1.0 {
                warnings.push(format!(
                    "{}: object {index}: {name} {low} lies outside, since coordinates are 1-based",
                    path.display()
                ));
            }
        }
        for (high, most, name, side) in
            [(x1, width, "xmax", "width"), (y1, height, "ymax", "height")]
        {
            if high > most {
                warnings.push(format!(
                    "{}: object {index}: {name} {high} is beyond the {side} {most}",
                    path.display()
                ));
            }
        }
        let flag = |name: &str| {
            let text = child(node, name).and_then(|flag| flag.text());
            text.is_some_and(|text| text.trim() == "1")
        };
        let object = Object {
            // Known when all names are.
            class: 0,
            bbox,
            difficult: flag("difficult"),
            truncated: flag("truncated"),
        };
        objects.push((class_name, object));
    }
    Ok(((width as i64, height as i64), objects))
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// The parser's error with its line; what it calls an end of stream is a cut file.
fn describe(text: &str, error: &roxmltree::Error) -> String {
    let place = error.pos();
    let last = text.lines().count() as u32;
    match error {
        roxmltree::Error::DtdDetected => {
            "DOCTYPE and entities are not allowed; no VOC annotation has them".to_owned()
        }
        roxmltree::Error::UnclosedRootNode | roxmltree::Error::UnexpectedEndOfStream => {
            format!(
                "end of file at line {last} before the annotation is closed; unpack the archive again"
            )
        }
        error if place.row >= last && !text.trim_end().ends_with('>') => {
            format!(
                "end of file at line {last} before the annotation is closed ({error}); unpack the archive again"
            )
        }
        error => format!("line {}: {error}; correct the file", place.row),
    }
}

//! PASCAL VOC 2007 as the devkit lays it out: image sets, annotations in XML, pictures.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node, ParsingOptions};

use crate::data::error::{DataError, read, read_text};
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
    /// Its place in [`CLASSES`].
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
    /// Six digits.
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

/// Reads an image set such as `test`.
pub fn read_set(folder: &Path, set: &str) -> Result<Voc, DataError> {
    let Some(root) = find_root(folder) else {
        let problem = "no ImageSets/Main here; give the folder VOCdevkit or VOC2007";
        return Err(DataError::new(folder, problem));
    };
    let list_name = format!("{set}.txt");
    let list = root.join("ImageSets/Main").join(&list_name);
    let mut voc = Voc::default();
    let mut seen = HashSet::new();
    // A set's file may hold a flag behind the id, blank lines and any line ends.
    for id in read_text(&list, limits::LIST)?
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        if !id
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
        {
            return Err(DataError::new(&list, format!("{id:?} is not an image id")));
        }
        if !seen.insert(id.to_owned()) {
            let problem = format!("image {id} is listed twice in {list_name}; remove one line");
            return Err(DataError::new(&list, problem));
        }
        let annotation = root.join("Annotations").join(format!("{id}.xml"));
        let path = root.join("JPEGImages").join(format!("{id}.jpg"));
        for file in [&annotation, &path] {
            if !file.is_file() {
                let problem =
                    format!("listed in {list_name}, but missing; unpack the archive again");
                return Err(DataError::new(file, problem));
            }
        }
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
        voc.pictures.push(Picture {
            id: id.to_owned(),
            path,
            size,
            objects,
        });
    }
    Ok(voc)
}

/// Equals signs of an annotation at most, of which each attribute has one; some tools add one or two attributes.
const ATTRIBUTES: usize = 1000;
/// Elements and texts of an annotation at most; the published ones have 2,000.
const NODES: u32 = 50_000;

/// Size and objects of one annotation file.
fn read_annotation(
    path: &Path,
    warnings: &mut Vec<String>,
) -> Result<((i64, i64), Vec<Object>), DataError> {
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
        let Some(class) = CLASSES.iter().position(|class| *class == class_name) else {
            return Err(refuse(format!(
                "object {index} is a {class_name:?}, none of the 20 VOC classes"
            )));
        };
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
        objects.push(Object {
            class,
            bbox,
            difficult: flag("difficult"),
            truncated: flag("truncated"),
        });
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

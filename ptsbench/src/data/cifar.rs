//! CIFAR-10 and CIFAR-100 as they are published: binary records, or Python pickles of which nothing is executed.

use std::path::Path;

use crate::data::decode::Rgb;
use crate::data::error::{DataError, counted, name, read};
use crate::data::limits;
use crate::data::pickle;

/// Side of an image.
pub const SIDE: usize = 32;
/// Bytes of an image.
pub const PIXELS: usize = 3 * SIDE * SIDE;

/// Which of the two sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ten classes.
    Cifar10,
    /// A hundred fine and twenty coarse classes.
    Cifar100,
}

impl Kind {
    /// Classes that networks are trained on.
    pub fn classes(self) -> u8 {
        match self {
            Self::Cifar10 => 10,
            Self::Cifar100 => 100,
        }
    }

    /// Label bytes before an image's.
    fn labels(self) -> usize {
        match self {
            Self::Cifar10 => 1,
            Self::Cifar100 => 2,
        }
    }
}

/// Images and labels of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    /// Class of each image; the fine one of CIFAR-100.
    pub labels: Vec<u8>,
    /// The coarse class of CIFAR-100; empty for CIFAR-10.
    pub coarse: Vec<u8>,
    /// Red, green and blue planes of each image, row by row.
    pub pixels: Vec<u8>,
}

impl Part {
    /// The planes of an image.
    pub fn planes(&self, index: usize) -> &[u8] {
        &self.pixels[index * PIXELS..][..PIXELS]
    }

    /// An image as other readers give it.
    pub fn image(&self, index: usize) -> Rgb {
        let planes = self.planes(index);
        let plane = SIDE * SIDE;
        let pixels =
            (0..plane).flat_map(|at| [planes[at], planes[plane + at], planes[2 * plane + at]]);
        Rgb {
            width: SIDE,
            height: SIDE,
            pixels: pixels.collect(),
        }
    }

    fn append(&mut self, other: Self) {
        self.labels.extend(other.labels);
        self.coarse.extend(other.coarse);
        self.pixels.extend(other.pixels);
    }

    fn check(&self, kind: Kind, path: &Path) -> Result<(), DataError> {
        let fine = if kind == Kind::Cifar10 {
            "label"
        } else {
            "fine label"
        };
        let most = [
            ("coarse label", &self.coarse, 20),
            (fine, &self.labels, kind.classes()),
        ];
        for (what, labels, classes) in most {
            if let Some(record) = labels.iter().position(|&label| label >= classes) {
                let problem = format!(
                    "record {record} has {what} {}, outside 0..{}; the file is damaged or belongs to another set",
                    labels[record],
                    classes - 1
                );
                return Err(DataError::new(path, problem));
            }
        }
        Ok(())
    }
}

/// Training and test images of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cifar {
    /// Which set.
    pub kind: Kind,
    /// Training images, in the order of the files.
    pub train: Part,
    /// Test images.
    pub test: Part,
    /// What is unusual.
    pub warnings: Vec<String>,
}

/// Reads one binary file.
pub fn read_binary(path: &Path, kind: Kind) -> Result<Part, DataError> {
    let bytes = read(path, limits::CIFAR)?;
    let refuse = |problem: String| Err(DataError::new(path, problem));
    let record = kind.labels() + PIXELS;
    if bytes.is_empty() {
        return refuse("no records: the file is empty; unpack the archive again".to_owned());
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return refuse("this is the gzip archive; unpack it first (tar -xzf)".to_owned());
    }
    if !bytes.len().is_multiple_of(record) {
        let (other, other_name) = match kind {
            Kind::Cifar10 => (PIXELS + 2, "CIFAR-100"),
            Kind::Cifar100 => (PIXELS + 1, "CIFAR-10"),
        };
        let hint = if bytes.len().is_multiple_of(other) {
            format!("; its records have {other} bytes, so it looks like {other_name}")
        } else {
            "; unpack the archive again".to_owned()
        };
        return refuse(format!(
            "{} bytes, not a multiple of {record}{hint}",
            bytes.len()
        ));
    }
    let mut part = Part::default();
    for record in bytes.chunks_exact(record) {
        let (labels, pixels) = record.split_at(kind.labels());
        if let [coarse, _] = labels {
            part.coarse.push(*coarse);
        }
        part.labels.push(labels[labels.len() - 1]);
        part.pixels.extend_from_slice(pixels);
    }
    part.check(kind, path)?;
    Ok(part)
}

/// Reads one pickle.
pub fn read_python(path: &Path, kind: Kind) -> Result<Part, DataError> {
    let refuse = |problem: String| DataError::new(path, problem);
    let bytes = read(path, limits::CIFAR)?;
    let value = pickle::read(&bytes).map_err(refuse)?;
    let labels = |key: &str| -> Result<Vec<u8>, DataError> {
        let missing = || {
            refuse(format!(
                "holds no list of numbers `{key}`; unpack the archive again"
            ))
        };
        let labels = value.integers(key).ok_or_else(missing)?;
        let narrow = |label: i64| u8::try_from(label).unwrap_or(u8::MAX);
        Ok(labels.into_iter().map(narrow).collect())
    };
    let (labels, coarse) = match kind {
        Kind::Cifar10 => (labels("labels")?, Vec::new()),
        Kind::Cifar100 => (labels("fine_labels")?, labels("coarse_labels")?),
    };
    let Some((shape, bytes)) = value.array("data") else {
        return Err(refuse(
            "holds no array `data`; unpack the archive again".to_owned(),
        ));
    };
    let fits = bytes.len() == labels.len() * PIXELS && shape == [labels.len(), PIXELS];
    if !fits || (kind == Kind::Cifar100 && coarse.len() != labels.len()) {
        let problem = format!(
            "{} labels, but `data` of shape {shape:?} and {} bytes; expected {} x {PIXELS}",
            labels.len(),
            bytes.len(),
            labels.len()
        );
        return Err(refuse(problem));
    }
    if labels.is_empty() {
        return Err(refuse("no records; unpack the archive again".to_owned()));
    }
    let part = Part {
        labels,
        coarse,
        pixels: bytes.to_vec(),
    };
    part.check(kind, path)?;
    Ok(part)
}

/// A way of reading one file.
type ReadPart = fn(&Path, Kind) -> Result<Part, DataError>;

/// The layouts: a file that tells it, the set, the training files, the test file, how they are read.
const LAYOUTS: [(&str, Kind, &[&str], &str, ReadPart); 4] = [
    (
        "test_batch.bin",
        Kind::Cifar10,
        &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        "test_batch.bin",
        read_binary,
    ),
    (
        "test_batch",
        Kind::Cifar10,
        &[
            "data_batch_1",
            "data_batch_2",
            "data_batch_3",
            "data_batch_4",
            "data_batch_5",
        ],
        "test_batch",
        read_python,
    ),
    (
        "test.bin",
        Kind::Cifar100,
        &["train.bin"],
        "test.bin",
        read_binary,
    ),
    ("test", Kind::Cifar100, &["train"], "test", read_python),
];

/// The set that a folder holds in one of the layouts.
pub fn recognise(folder: &Path) -> Option<Kind> {
    let found = LAYOUTS
        .iter()
        .find(|layout| folder.join(layout.0).is_file());
    found.map(|layout| layout.1)
}

/// Reads a folder as the archives unpack it.
pub fn read_folder(folder: &Path) -> Result<Cifar, DataError> {
    let found = LAYOUTS
        .iter()
        .find(|layout| folder.join(layout.0).is_file());
    let Some(&(_, kind, train_files, test_file, read_part)) = found else {
        let problem = "no CIFAR files (test_batch.bin, test_batch, test.bin or test); unpack the archive and give its folder";
        return Err(DataError::new(folder, problem));
    };
    let mut train = Part::default();
    let mut warnings = Vec::new();
    let mut take = |file: &str, expected: usize| {
        let path = folder.join(file);
        let part = read_part(&path, kind)?;
        if part.labels.len() != expected {
            let records = counted(part.labels.len(), "record");
            warnings.push(format!("{}: {records} instead of {expected}", name(&path)));
        }
        Ok::<_, DataError>(part)
    };
    for file in train_files {
        train.append(take(file, 50_000 / train_files.len())?);
    }
    let test = take(test_file, 10_000)?;
    Ok(Cifar {
        kind,
        train,
        test,
        warnings,
    })
}

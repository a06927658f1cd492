//! What a folder holds: the data set that its layout says, counts, and what is wrong with it.

use std::path::Path;

use crate::data::coco::{self, Depth};
use crate::data::error::{DataError, counted, entries, name};
use crate::data::lsun::Lsun;
use crate::data::{cifar, imagenet, voc};

/// What was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The data set's name.
    pub set: &'static str,
    /// Counts, a line each.
    pub facts: Vec<String>,
    /// What is unusual, a line each.
    pub warnings: Vec<String>,
}

/// A data set that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub set: &'static str,
    /// The task it serves.
    pub task: &'static str,
    /// What its folder holds.
    pub layout: &'static str,
}

/// Every data set, in the order in which a folder is compared with them.
pub const KNOWN: [Known; 6] = [
    Known {
        set: "VOC 2007",
        task: "detection",
        layout: "VOCdevkit/VOC2007 with Annotations, ImageSets/Main, JPEGImages",
    },
    Known {
        set: "COCO",
        task: "detection",
        layout: "annotations/instances_<split>.json and <split>/*.jpg",
    },
    Known {
        set: "CIFAR-10",
        task: "classification",
        layout: "data_batch_1..5 and test_batch, binary (.bin) or Python",
    },
    Known {
        set: "CIFAR-100",
        task: "classification",
        layout: "train and test, binary (.bin) or Python",
    },
    Known {
        set: "LSUN",
        task: "generation",
        layout: "<category>_<split>_lmdb/data.mdb, or a folder of pictures",
    },
    Known {
        set: "ImageNet",
        task: "classification",
        layout: "train/<WordNet id>, val/<WordNet id> or flat with LOC_val_solution.csv or the 2012 ground truth",
    },
];

/// Recognises a folder and reads all of its lists and the headers of its pictures.
pub fn check(folder: &Path) -> Result<Report, DataError> {
    if !folder.is_dir() {
        let problem = "no such folder; give the folder that a data set's archive unpacks to";
        return Err(DataError::new(folder, problem));
    }
    if voc::find_root(folder).is_some() {
        return check_voc(folder);
    }
    let splits = coco::splits(folder);
    if !splits.is_empty() {
        return check_coco(&splits);
    }
    if cifar::recognise(folder) {
        return check_cifar(folder);
    }
    let databases: Vec<_> = entries(folder)?
        .into_iter()
        .filter(|path| path.is_dir() && name(path).ends_with("_lmdb"))
        .collect();
    if !databases.is_empty() {
        let opened = databases
            .iter()
            .map(|path| Ok((name(path), Lsun::open(path)?)));
        return Ok(lsun_report(opened.collect::<Result<_, DataError>>()?));
    }
    if folder.join("data.mdb").exists() || name(folder).ends_with("_lmdb") {
        return Ok(lsun_report(vec![(name(folder), Lsun::open(folder)?)]));
    }
    if imagenet::recognise(folder) {
        let set = imagenet::read_folder(folder)?;
        return Ok(Report {
            set: "ImageNet",
            facts: vec![
                format!("classes: {}", set.classes.len()),
                format!("train: {}", counted(set.train.len(), "image")),
                format!("validation: {}", counted(set.validation.len(), "image")),
            ],
            warnings: set.warnings,
        });
    }
    let layouts: Vec<String> = KNOWN
        .iter()
        .map(|known| format!("  {}: {}", known.set, known.layout))
        .collect();
    let problem = format!("no known data set; the layouts are\n{}", layouts.join("\n"));
    Err(DataError::new(folder, problem))
}

fn lsun_report(databases: Vec<(String, Lsun)>) -> Report {
    let fact = |(name, lsun): &(String, Lsun)| format!("{name}: {}", counted(lsun.len(), "image"));
    Report {
        set: "LSUN",
        facts: databases.iter().map(fact).collect(),
        warnings: Vec::new(),
    }
}

fn check_voc(folder: &Path) -> Result<Report, DataError> {
    let mut report = Report {
        set: "VOC 2007",
        facts: Vec::new(),
        warnings: Vec::new(),
    };
    let root = voc::find_root(folder).unwrap_or_else(|| folder.to_owned());
    for set in ["trainval", "test"] {
        if !root
            .join("ImageSets/Main")
            .join(format!("{set}.txt"))
            .is_file()
        {
            continue;
        }
        let voc = voc::read_set(folder, set)?;
        let objects = voc
            .pictures
            .iter()
            .map(|picture| picture.objects.len())
            .sum();
        let images = counted(voc.pictures.len(), "image");
        report
            .facts
            .push(format!("{set}: {images}, {}", counted(objects, "object")));
        report.warnings.extend(voc.warnings);
    }
    if report.facts.is_empty() {
        let problem =
            "neither trainval.txt nor test.txt is in ImageSets/Main; unpack the archive again";
        return Err(DataError::new(&root, problem));
    }
    Ok(report)
}

fn check_coco(
    splits: &[(String, std::path::PathBuf, std::path::PathBuf)],
) -> Result<Report, DataError> {
    let mut report = Report {
        set: "COCO",
        facts: Vec::new(),
        warnings: Vec::new(),
    };
    for (split, annotations, folder) in splits {
        let set = coco::read_instances(annotations, folder, Depth::Headers)?;
        let crowds = set.truth.iter().filter(|truth| truth.crowd).count();
        report.facts.push(format!(
            "{split}: {}, {} in {} categories, {}",
            counted(set.images.len(), "image"),
            counted(set.truth.len(), "object"),
            set.categories.len(),
            counted(crowds, "crowd")
        ));
        report.warnings.extend(set.warnings);
    }
    Ok(report)
}

fn check_cifar(folder: &Path) -> Result<Report, DataError> {
    let set = cifar::read_folder(folder)?;
    Ok(Report {
        set: match set.kind {
            cifar::Kind::Cifar10 => "CIFAR-10",
            cifar::Kind::Cifar100 => "CIFAR-100",
        },
        facts: vec![
            format!("train: {}", counted(set.train.labels.len(), "image")),
            format!("test: {}", counted(set.test.labels.len(), "image")),
        ],
        warnings: set.warnings,
    })
}

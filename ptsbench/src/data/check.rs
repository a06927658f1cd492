//! What a folder holds: the data set that its layout says, counts, and what is wrong with it.

use std::path::Path;

use crate::data::coco::{self, Depth};
use crate::data::error::{DataError, counted, entries, name};
use crate::data::folder::Form;
use crate::data::imagenet::Wanted;
use crate::data::layout::{self, Layout};
use crate::data::lsun::Lsun;
use crate::data::{cifar, folder, imagenet, voc};

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
pub const KNOWN: [Known; 7] = [
    Known {
        set: "VOC 2007",
        task: "detection",
        layout: "VOCdevkit/VOC2007 with Annotations, ImageSets/Main, JPEGImages",
    },
    Known {
        set: "COCO",
        task: "detection",
        layout: "annotations/instances_<split>.json and <split>/*.jpg, or <split> with _annotations.coco.json",
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
        set: "one folder per class",
        task: "classification",
        layout: "train/<class> and val/<class> (or valid, validation, test), or <class> alone; classes.txt may order the classes",
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
    let Some((root, layout)) = layout::find(folder, layout::of)? else {
        return Err(unknown(folder));
    };
    let mut report = match layout {
        Layout::Voc => check_voc(&root)?,
        Layout::Coco => check_coco(&coco::splits(&root))?,
        Layout::Cifar(_) => check_cifar(&root)?,
        Layout::Lsun => check_lsun(&root)?,
        Layout::Folders(form) => check_folders(&root, form)?,
        Layout::ImageNet => check_imagenet(&root)?,
    };
    if root != folder {
        report
            .facts
            .insert(0, format!("found one level below, in {}", name(&root)));
    }
    Ok(report)
}

fn unknown(folder: &Path) -> DataError {
    if let Some(lacking) = folder::lacking(folder) {
        return DataError::new(folder, format!("no known data set: {lacking}"));
    }
    let layouts: Vec<String> = KNOWN
        .iter()
        .map(|known| format!("  {}: {}", known.set, known.layout))
        .collect();
    let problem = format!("no known data set; the layouts are\n{}", layouts.join("\n"));
    DataError::new(folder, problem)
}

fn check_imagenet(folder: &Path) -> Result<Report, DataError> {
    let set = imagenet::read_folder(folder)?;
    Ok(Report {
        set: Layout::ImageNet.name(),
        facts: vec![
            format!("classes: {}", set.classes.len()),
            format!("train: {}", counted(set.train.len(), "image")),
            format!("validation: {}", counted(set.validation.len(), "image")),
        ],
        warnings: set.warnings,
    })
}

fn check_folders(folder: &Path, form: Form) -> Result<Report, DataError> {
    let set = folder::read(folder, form, Wanted::Both)?;
    let mut facts = vec![
        "task: folder".to_owned(),
        format!(
            "classes: {} ({})",
            set.classes.len(),
            folder::few(&set.classes)
        ),
        format!("train: {}", counted(set.train.len(), "image")),
        format!("evaluation: {}", counted(set.evaluation.len(), "image")),
    ];
    facts.extend(set.split.map(|split| format!("split: {split}")));
    Ok(Report {
        set: Layout::Folders(form).name(),
        facts,
        warnings: set.warnings,
    })
}

fn check_lsun(folder: &Path) -> Result<Report, DataError> {
    let databases: Vec<_> = entries(folder)?
        .into_iter()
        .filter(|path| path.is_dir() && name(path).ends_with("_lmdb"))
        .collect();
    if databases.is_empty() {
        return Ok(lsun_report(vec![(name(folder), Lsun::open(folder)?)]));
    }
    let opened = databases
        .iter()
        .map(|path| Ok((name(path), Lsun::open(path)?)));
    Ok(lsun_report(opened.collect::<Result<_, DataError>>()?))
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
    let training: &[&str] = match voc::has_set(folder, "trainval") {
        true => &["trainval"],
        false => &["train", "val"],
    };
    let mut own = None;
    for set in training.iter().chain(&["test"]) {
        if !voc::has_set(folder, set) {
            continue;
        }
        let opened = voc::open(folder, set)?;
        let (voc, count) = (opened.voc, opened.classes.len());
        own = opened.from.map(|from| format!("classes: {count}; {from}"));
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
    report.facts.extend(own);
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

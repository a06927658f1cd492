//! Which data set a folder holds, told by its layout alone, there or one level below.

use std::path::{Path, PathBuf};

use crate::data::error::{DataError, entries, name};
use crate::data::folder::Form;
use crate::data::{cifar, coco, folder, imagenet, voc};

/// A data set that was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// VOC 2007.
    Voc,
    /// COCO.
    Coco,
    /// Either CIFAR.
    Cifar(cifar::Kind),
    /// LSUN.
    Lsun,
    /// Pictures in one folder per class.
    Folders(Form),
    /// ImageNet.
    ImageNet,
}

impl Layout {
    /// The data set's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Voc => "VOC 2007",
            Self::Coco => "COCO",
            Self::Cifar(cifar::Kind::Cifar10) => "CIFAR-10",
            Self::Cifar(cifar::Kind::Cifar100) => "CIFAR-100",
            Self::Lsun => "LSUN",
            Self::Folders(_) => "pictures in one folder per class",
            Self::ImageNet => "ImageNet",
        }
    }
}

/// What this folder itself holds.
pub fn of(folder: &Path) -> Option<Layout> {
    if voc::find_root(folder).is_some() {
        return Some(Layout::Voc);
    }
    if !coco::splits(folder).is_empty() {
        return Some(Layout::Coco);
    }
    if let Some(kind) = cifar::recognise(folder) {
        return Some(Layout::Cifar(kind));
    }
    let database = |path: &PathBuf| path.is_dir() && name(path).ends_with("_lmdb");
    let inside = entries(folder).unwrap_or_default();
    if inside.iter().any(database)
        || folder.join("data.mdb").exists()
        || name(folder).ends_with("_lmdb")
    {
        return Some(Layout::Lsun);
    }
    if let Some(form) = folder::recognise(folder) {
        return Some(Layout::Folders(form));
    }
    imagenet::recognise(folder).then_some(Layout::ImageNet)
}

/// The data set that a folder holds, or the one that is one level below it (as torchvision's `root` is meant): its folder
/// and layout. Several below are an error that lists them.
pub fn find(
    folder: &Path,
    recognise: impl Fn(&Path) -> Option<Layout>,
) -> Result<Option<(PathBuf, Layout)>, DataError> {
    if let Some(layout) = recognise(folder) {
        return Ok(Some((folder.to_owned(), layout)));
    }
    let below = entries(folder)?.into_iter().filter(|path| path.is_dir());
    let mut found: Vec<(PathBuf, Layout)> = below
        .filter_map(|path| Some((recognise(&path)?, path)))
        .map(|(layout, path)| (path, layout))
        .collect();
    if found.len() < 2 {
        return Ok(found.pop());
    }
    let lines: Vec<String> = found
        .iter()
        .map(|(path, layout)| format!("  {}: {}", name(path), layout.name()))
        .collect();
    let problem = format!(
        "no known data set here, but several one level below; give the folder of one:\n{}",
        lines.join("\n")
    );
    Err(DataError::new(folder, problem))
}

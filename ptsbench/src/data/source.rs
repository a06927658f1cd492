//! Labelled images behind one face, whether drawn, unpacked or read from a file each.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::data::cifar::Part;
use crate::data::decode::{self, ImageError, Rotation};
use crate::data::error::{DataError, name};
use crate::data::imagenet::Labelled;
use crate::data::recipe::Recipe;
use crate::data::synthetic::MicroSet;

/// One split of a data set.
#[derive(Debug)]
pub enum Source {
    /// The built-in images.
    Micro(MicroSet),
    /// A file for each picture.
    Files(Vec<Labelled>),
    /// Records in memory.
    Records(Part),
}

impl Source {
    /// Files, ordered by name and class alone: where the folders lie, and whether there are any, changes nothing.
    pub fn files(mut pictures: Vec<Labelled>) -> Self {
        pictures.sort_by_cached_key(|picture| (name(&picture.path), picture.label));
        Self::Files(pictures)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Self::Micro(set) => set.len(),
            Self::Files(pictures) => pictures.len(),
            Self::Records(part) => part.labels.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of an image.
    pub fn label(&self, index: usize) -> usize {
        match self {
            Self::Micro(set) => set.label(index).into(),
            Self::Files(pictures) => pictures[index].label,
            Self::Records(part) => part.labels[index].into(),
        }
    }

    /// An image as a network takes it: channels, rows, columns. The built-in images have one form, whatever the recipe.
    pub fn input(&self, index: usize, recipe: &Recipe) -> Result<Vec<f32>, ImageError> {
        Ok(match self {
            Self::Micro(set) => set.normalized(&[index]),
            Self::Files(pictures) => {
                recipe.apply(&decode::read(&pictures[index].path, Rotation::Ignore)?)
            }
            Self::Records(part) => recipe.apply(&part.image(index)),
        })
    }

    /// SHA-256 in hex of images in this order: of files the name, class and size, of records class and pixels. None for
    /// the built-in images, which their version identifies.
    pub fn sha256(
        &self,
        indices: impl IntoIterator<Item = usize>,
    ) -> Result<Option<String>, DataError> {
        let mut hash = Sha256::new();
        for index in indices {
            hash.update((self.label(index) as u64).to_le_bytes());
            match self {
                Self::Micro(_) => return Ok(None),
                Self::Records(part) => hash.update(part.planes(index)),
                Self::Files(pictures) => {
                    let path = &pictures[index].path;
                    let size = size(path)?;
                    let name = name(path);
                    hash.update(size.to_le_bytes());
                    hash.update((name.len() as u64).to_le_bytes());
                    hash.update(name);
                }
            }
        }
        let digest = hash.finalize();
        Ok(Some(digest.iter().map(|b| format!("{b:02x}")).collect()))
    }
}

fn size(path: &PathBuf) -> Result<u64, DataError> {
    std::fs::metadata(path)
        .map(|file| file.len())
        .map_err(|error| DataError::new(path, format!("cannot be examined: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pictures, in class folders or flat.
    fn source(folders: [&str; 2], sizes: [usize; 2]) -> (tempfile::TempDir, Source) {
        let root = tempfile::tempdir().unwrap();
        let picture = |at: usize| {
            let folder = root.path().join(folders[at]);
            std::fs::create_dir_all(&folder).unwrap();
            let path = folder.join(["b.JPEG", "a.JPEG"][at]);
            std::fs::write(&path, vec![0; sizes[at]]).unwrap();
            Labelled { path, label: at }
        };
        let files = Source::files((0..2).map(picture).collect());
        (root, files)
    }

    #[test]
    fn a_list_is_its_names_classes_and_sizes() {
        let (_flat, flat) = source(["", ""], [3, 4]);
        let (_sorted, sorted) = source(["n0", "n1"], [3, 4]);
        let (_other, other) = source(["", ""], [3, 5]);
        assert_eq!([flat.label(0), flat.label(1)], [1, 0]);
        let digest = |source: &Source| source.sha256(0..2).unwrap().unwrap();
        assert_eq!(digest(&flat), digest(&sorted));
        assert_ne!(digest(&flat), digest(&other));
        assert_ne!(flat.sha256([1, 0]).unwrap(), flat.sha256([0, 1]).unwrap());
    }

    #[test]
    fn records_are_their_pixels() {
        let part = |value| {
            Source::Records(Part {
                labels: vec![1, 0],
                coarse: Vec::new(),
                pixels: vec![value; 2 * crate::data::cifar::PIXELS],
            })
        };
        let digest = |source: &Source| source.sha256(0..2).unwrap().unwrap();
        assert_eq!(digest(&part(7)), digest(&part(7)));
        assert_ne!(digest(&part(7)), digest(&part(8)));
        assert_eq!(Source::Micro(MicroSet::TEST).sha256(0..2).unwrap(), None);
    }
}

//! A contact sheet of the micro set, to look at: one column per class.

use std::path::Path;

use plotters::backend::{BitMapBackend, DrawingBackend};

use crate::data::synthetic::{CHANNELS, CLASSES, MicroSet, SIDE};

/// Screen pixels per image pixel.
const SCALE: usize = 2;
/// Screen pixels from one image to the next.
const CELL: usize = (SIDE + 2) * SCALE;

/// The sheet cannot be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write the contact sheet {path}: {reason}; choose a file ending in .png in a folder that exists"
)]
pub struct SheetError {
    path: String,
    reason: String,
}

/// The first `rows` images of each class on white: width, height, and RGB bytes row by row.
pub fn contact_sheet(set: MicroSet, rows: usize) -> (usize, usize, Vec<u8>) {
    let rows = rows.clamp(1, set.len() / CLASSES);
    let (width, height) = (CLASSES * CELL, rows * CELL);
    let mut rgb = vec![255; width * height * CHANNELS];
    for index in 0..rows * CLASSES {
        let image = set.image(index);
        let (left, top) = (index % CLASSES * CELL, index / CLASSES * CELL);
        for y in 0..SIDE * SCALE {
            for x in 0..SIDE * SCALE {
                let to = ((top + y) * width + left + x) * CHANNELS;
                let from = y / SCALE * SIDE + x / SCALE;
                for channel in 0..CHANNELS {
                    rgb[to + channel] = image.pixels[channel * SIDE * SIDE + from];
                }
            }
        }
    }
    (width, height, rgb)
}

/// Writes a contact sheet as PNG.
pub fn save_contact_sheet(set: MicroSet, rows: usize, path: &Path) -> Result<(), SheetError> {
    let (width, height, rgb) = contact_sheet(set, rows);
    let size = (width as u32, height as u32);
    let mut png = BitMapBackend::new(path, size);
    png.blit_bitmap((0, 0), size, &rgb)
        .and_then(|()| png.present())
        .map_err(|error| SheetError {
            path: path.display().to_string(),
            reason: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_stand_in_the_column_of_their_class() {
        let (width, height, rgb) = contact_sheet(MicroSet::TEST, 2);
        assert_eq!((width, height), (20 * CELL, 2 * CELL));
        let image = MicroSet::TEST.image(CLASSES + 3).pixels;
        let at = |x: usize, y: usize| {
            let at = ((CELL + y * SCALE) * width + 3 * CELL + x * SCALE) * CHANNELS;
            &rgb[at..at + CHANNELS]
        };
        for (x, y) in [(0, 0), (31, 0), (5, 17), (31, 31)] {
            let wanted: Vec<u8> = (0..3).map(|c| image[c * 1024 + y * 32 + x]).collect();
            assert_eq!(at(x, y), wanted);
        }
        assert_eq!(&rgb[rgb.len() - 3..], [255; 3]);
    }

    #[test]
    fn a_sheet_is_written_or_says_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("micro.png");
        save_contact_sheet(MicroSet::TEST, 1, &path).unwrap();
        assert_eq!(&std::fs::read(&path).unwrap()[1..4], b"PNG");
        let nowhere = folder.path().join("none").join("micro.png");
        let error = save_contact_sheet(MicroSet::TEST, 1, &nowhere).unwrap_err();
        assert!(error.to_string().contains("micro.png"), "{error}");
    }
}

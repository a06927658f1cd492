//! Pictures as PNG, and many of them on one sheet.

use std::io;

use crate::data::decode::Rgb;

/// White between the pictures of a sheet, and around them.
const GAP: usize = 2;

/// A picture as a PNG file's bytes.
pub fn png(picture: &Rgb) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (width, height) = (picture.width as u32, picture.height as u32);
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.pixels)?;
    writer.finish()?;
    Ok(bytes)
}

/// A picture whose pixels are squares of so many pixels a side.
pub fn enlarged(picture: &Rgb, times: usize) -> Rgb {
    let (width, height) = (picture.width * times, picture.height * times);
    let line = picture.width * 3;
    let pixels = (0..height)
        .flat_map(|row| {
            picture.pixels[row / times * line..][..line]
                .as_chunks::<3>()
                .0
        })
        .flat_map(|pixel| std::iter::repeat_n(*pixel, times))
        .flatten()
        .collect();
    Rgb {
        width,
        height,
        pixels,
    }
}

/// Pictures of one size, row by row on white, about as many in a row as there are rows.
pub fn sheet(pictures: &[Rgb]) -> Rgb {
    let columns = (1..).find(|columns| columns * columns >= pictures.len());
    let columns = columns.unwrap_or(1).max(1);
    let rows = pictures.len().div_ceil(columns);
    let (width, height) = pictures
        .first()
        .map_or((0, 0), |one| (one.width, one.height));
    let side = |count: usize, each: usize| count * (each + GAP) + GAP;
    let (across, down) = (side(columns, width), side(rows, height));
    let mut pixels = vec![255; across * down * 3];
    for (at, picture) in pictures.iter().enumerate() {
        let (left, top) = (side(at % columns, width), side(at / columns, height));
        for (row, line) in picture.pixels.chunks_exact(width * 3).enumerate() {
            let start = ((top + row) * across + left) * 3;
            pixels[start..start + line.len()].copy_from_slice(line);
        }
    }
    Rgb {
        width: across,
        height: down,
        pixels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::decode::{Rotation, decode};

    fn plain(value: u8) -> Rgb {
        Rgb {
            width: 3,
            height: 2,
            pixels: vec![value; 18],
        }
    }

    #[test]
    fn enlarged_pixels_are_squares() {
        let picture = Rgb {
            width: 2,
            height: 1,
            pixels: vec![1, 2, 3, 4, 5, 6],
        };
        let large = enlarged(&picture, 2);
        let line = [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6];
        assert_eq!((large.width, large.height), (4, 2));
        assert_eq!(large.pixels, [line, line].concat());
        assert_eq!(enlarged(&picture, 1), picture);
    }

    #[test]
    fn a_png_is_its_picture() {
        let picture = Rgb {
            pixels: (0..18).collect(),
            ..plain(0)
        };
        let back = decode(&png(&picture).unwrap(), Rotation::Ignore).unwrap();
        assert_eq!((back.width, back.height), (3, 2));
        assert_eq!(back.pixels, picture.pixels);
    }

    #[test]
    fn a_sheet_has_every_picture_in_its_place() {
        let pictures: Vec<Rgb> = (0..5).map(plain).collect();
        let sheet = sheet(&pictures);
        // Three columns and two rows.
        assert_eq!((sheet.width, sheet.height), (3 * 5 + 2, 2 * 4 + 2));
        for (at, [x, y]) in [[2, 2], [7, 2], [12, 2], [2, 6], [7, 6]]
            .into_iter()
            .enumerate()
        {
            assert_eq!(sheet.at(x, y), [at as u8; 3]);
            assert_eq!(sheet.at(x + 2, y + 1), [at as u8; 3]);
        }
        for [x, y] in [[0, 0], [5, 2], [12, 6], [16, 9]] {
            assert_eq!(sheet.at(x, y), [255; 3]);
        }
    }
}

//! Image files to RGB bytes, as the usual folder loaders see them: the content decides the format, alpha is dropped,
//! grey, palette and CMYK become RGB, and EXIF rotation is ignored unless asked for.
//!
//! PNG and lossless WebP are exact. JPEG and lossy WebP differ from libjpeg-turbo and libwebp by a few levels (the
//! inverse transforms round differently); `docs/data.md` has the measured differences. With the feature `turbojpeg`, JPEG
//! is exact, too.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use model_zoo::file::{self, Unread};
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::data::{jpeg, limits};

/// The most pixels an image may have; Pillow warns of a decompression bomb above the same number.
pub const MAX_PIXELS: u64 = 89_478_485;

/// A picture: rows from the top, three bytes (red, green, blue) for each pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `width * height * 3` bytes.
    pub pixels: Vec<u8>,
}

/// The file formats that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JPEG, baseline or progressive.
    Jpeg,
    /// PNG.
    Png,
    /// WebP, lossy or lossless.
    WebP,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
        })
    }
}

/// What is wrong with the bytes of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Nothing there.
    #[error("0 bytes: the file is empty; copy or download it again")]
    Empty,
    /// Another kind of file.
    #[error(
        "not an image ({guess}); JPEG, PNG and WebP can be read: copy or download the file again"
    )]
    NotAnImage {
        /// What it looks like.
        guess: &'static str,
    },
    /// The end is missing.
    #[error("{format} image truncated after {bytes} bytes ({reason}); copy or download it again")]
    Truncated {
        /// The format of what is there.
        format: Format,
        /// Length of what is there.
        bytes: usize,
        /// What is missing.
        reason: String,
    },
    /// No pixels.
    #[error("the header says {width} x {height} pixels; copy or download the file again")]
    NoPixels {
        /// Pixels in a row.
        width: u64,
        /// Rows.
        height: u64,
    },
    /// More pixels than the limit.
    #[error(
        "the header says {width} x {height} pixels, over the limit of {MAX_PIXELS}; a data set's image is never that large, so replace the file"
    )]
    TooLarge {
        /// Pixels in a row.
        width: u64,
        /// Rows.
        height: u64,
    },
    /// Far more pixels than its length would let one expect.
    #[error(
        "{pixels} pixels in {bytes} bytes: no data set has a picture that large and that empty, so replace the file"
    )]
    Bomb {
        /// Pixels in all.
        pixels: usize,
        /// Bytes in all.
        bytes: usize,
    },
    /// The decoder refuses it.
    #[error("corrupt {format} image: {reason}; copy or download it again")]
    Corrupt {
        /// The format of the file.
        format: Format,
        /// The decoder's words.
        reason: String,
    },
}

/// An image file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is no file, too long for a picture, or the file system refuses.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Unread,
    },
    /// The content is not a readable image.
    #[error("{}: {source}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Unreadable,
    },
}

/// What to do with a camera's rotation note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Keep the stored rows, as Pillow does: all classification recipes.
    Ignore,
    /// Turn the picture upright, as OpenCV does: the SSD recipe.
    Apply,
}

/// Reads an image file.
pub fn read(path: &Path, rotation: Rotation) -> Result<Rgb, ImageError> {
    let bytes = file::read(path, limits::PICTURE).map_err(|source| ImageError::File {
        path: path.to_owned(),
        source,
    })?;
    decode(&bytes, rotation).map_err(|source| ImageError::Content {
        path: path.to_owned(),
        source,
    })
}

/// Decodes the bytes of an image file.
pub fn decode(bytes: &[u8], rotation: Rotation) -> Result<Rgb, Unreadable> {
    match sniff(bytes)? {
        Format::Jpeg => decode_jpeg(bytes, rotation),
        Format::Png => decode_png(bytes),
        Format::WebP => decode_webp(bytes),
    }
}

/// Width and height as the header says, without decoding; rotation is ignored.
pub fn size(bytes: &[u8]) -> Result<(usize, usize), Unreadable> {
    match sniff(bytes)? {
        Format::Jpeg => {
            let frame = jpeg::Layout::of(bytes)
                .frame
                .ok_or_else(|| truncated(Format::Jpeg, bytes, "no frame header"))?;
            checked_size(frame.0.into(), frame.1.into())
        }
        Format::Png => {
            let mut decoder = png::Decoder::new(Cursor::new(bytes));
            let info = decoder
                .read_header_info()
                .map_err(|error| png_error(bytes, &error))?;
            checked_size(info.width.into(), info.height.into())
        }
        Format::WebP => {
            let decoder = image_webp::WebPDecoder::new(Cursor::new(bytes))
                .map_err(|error| webp_error(bytes, &error))?;
            let (width, height) = decoder.dimensions();
            checked_size(width.into(), height.into())
        }
    }
}

/// The format that the first bytes name.
pub fn sniff(bytes: &[u8]) -> Result<Format, Unreadable> {
    match bytes {
        [] => Err(Unreadable::Empty),
        [0xff, 0xd8, ..] => Ok(Format::Jpeg),
        [0x89, b'P', b'N', b'G', ..] => Ok(Format::Png),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Ok(Format::WebP),
        _ => Err(Unreadable::NotAnImage {
            guess: guess(bytes),
        }),
    }
}

/// A guess, for a message, at what a file is that is not an image.
fn guess(bytes: &[u8]) -> &'static str {
    let start = &bytes[..bytes.len().min(512)];
    let trimmed = start.trim_ascii_start();
    match start {
        [0x1f, 0x8b, ..] => "it looks like gzip",
        [b'P', b'K', 3 | 5, ..] => "it looks like a zip archive",
        [b'G', b'I', b'F', b'8', ..] => "it looks like a GIF",
        [b'B', b'M', ..] => "it looks like a BMP",
        [0x49, 0x49, 42, 0, ..] | [0x4d, 0x4d, 0, 42, ..] => "it looks like a TIFF",
        _ if trimmed.starts_with(b"<") => "it looks like HTML",
        _ if trimmed.starts_with(b"version https://git-lfs") => "it looks like a Git LFS pointer",
        _ if start
            .iter()
            .all(|&byte| matches!(byte, 9 | 10 | 13 | 32..=126 | 128..)) =>
        {
            "it looks like text"
        }
        _ => "its first bytes match no known format",
    }
}

fn checked_size(width: u64, height: u64) -> Result<(usize, usize), Unreadable> {
    // Both fit 32 bits in every format, so the product cannot overflow.
    if width == 0 || height == 0 {
        return Err(Unreadable::NoPixels { width, height });
    }
    if width * height > MAX_PIXELS {
        return Err(Unreadable::TooLarge { width, height });
    }
    Ok((width as usize, height as usize))
}

fn truncated(format: Format, bytes: &[u8], reason: impl ToString) -> Unreadable {
    Unreadable::Truncated {
        format,
        bytes: bytes.len(),
        reason: reason.to_string(),
    }
}

fn corrupt(format: Format, reason: impl ToString) -> Unreadable {
    Unreadable::Corrupt {
        format,
        reason: reason.to_string(),
    }
}

/// Pixels up to which a picture may be all of one colour.
const ANY_CONTENT: usize = 1 << 24;

/// Pixels to a byte of larger pictures at most. Photographs have 20 at the lowest quality; a blank page of some kilobytes
/// would take a gigabyte.
const EMPTIEST: usize = 64;

/// Scans of a progressive JPEG at most; encoders make ten.
const SCANS: usize = 100;

/// Refuses a header that promises more pixels than the file can hold, or than a picture of its length has, before
/// memory is taken for them.
fn long_enough(
    format: Format,
    bytes: &[u8],
    pixels: usize,
    pixels_per_byte: usize,
) -> Result<(), Unreadable> {
    let least = pixels / pixels_per_byte;
    if bytes.len() < least {
        let reason = format!("its {pixels} pixels take {least} bytes at least");
        return Err(truncated(format, bytes, reason));
    }
    if pixels > ANY_CONTENT && bytes.len() < pixels / EMPTIEST {
        return Err(Unreadable::Bomb {
            pixels,
            bytes: bytes.len(),
        });
    }
    Ok(())
}

fn decode_jpeg(bytes: &[u8], rotation: Rotation) -> Result<Rgb, Unreadable> {
    let layout = jpeg::Layout::of(bytes);
    let Some((width, height)) = layout.frame else {
        return Err(truncated(Format::Jpeg, bytes, "no frame header"));
    };
    let (width, height) = checked_size(width.into(), height.into())?;
    // A scan may say in a few bytes that nothing changes, and all blocks are gone through for it.
    if layout.scans > SCANS {
        let reason = format!("{} scans, more than {SCANS}", layout.scans);
        return Err(corrupt(Format::Jpeg, reason));
    }
    // Each block of 64 pixels takes one bit at least.
    long_enough(Format::Jpeg, bytes, width * height, 8 * 64)?;
    let pixels = if layout.ended {
        // Like libjpeg, take what a slightly wrong file holds rather than refuse it: nothing of it is missing.
        jpeg_pixels(bytes, true).or_else(|_| jpeg_pixels(bytes, false))
    } else {
        jpeg_without_end(bytes)
    }?;
    if pixels.len() != width * height * 3 {
        return Err(corrupt(
            Format::Jpeg,
            "its parts disagree on the number of pixels",
        ));
    }
    let picture = Rgb {
        width,
        height,
        pixels,
    };
    Ok(match rotation {
        Rotation::Ignore => picture,
        Rotation::Apply => picture.upright(layout.orientation),
    })
}

/// Decodes a file that lacks its end marker: allowed if only the marker is missing. Then whatever follows the data
/// changes no pixel, while a missing block would take its values from there.
fn jpeg_without_end(bytes: &[u8]) -> Result<Vec<u8>, Unreadable> {
    let cut = || truncated(Format::Jpeg, bytes, "the last blocks are missing");
    let pixels = jpeg_pixels(bytes, true).map_err(|_| cut())?;
    let mut longer = bytes.to_vec();
    longer.extend((0..4096_u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8 & 0xfe));
    match jpeg_pixels(&longer, true) {
        Ok(other) if other == pixels => Ok(pixels),
        _ => Err(cut()),
    }
}

fn jpeg_pixels(bytes: &[u8], strict: bool) -> Result<Vec<u8>, Unreadable> {
    #[cfg(feature = "turbojpeg")]
    if let Some(pixels) = crate::data::turbo::pixels(bytes) {
        return Ok(pixels);
    }
    let options = DecoderOptions::default()
        .set_strict_mode(strict)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options)
        .decode()
        .map_err(|error| corrupt(Format::Jpeg, error))
}

fn decode_png(bytes: &[u8]) -> Result<Rgb, Unreadable> {
    let (width, height) = size(bytes)?;
    // Deflate shrinks 1,032 times at most, and a byte holds eight pixels at most.
    long_enough(Format::Png, bytes, width * height, 8 * 1032)?;
    png_checksums(bytes)?;
    let limits = png::Limits {
        bytes: MAX_PIXELS as usize,
    };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder
        .read_info()
        .map_err(|error| png_error(bytes, &error))?;
    let channels = reader.output_color_type().0.samples();
    let mut pixels = vec![0; width * height * channels];
    reader
        .next_frame(&mut pixels)
        .map_err(|error| png_error(bytes, &error))?;
    Ok(Rgb {
        width,
        height,
        pixels: to_rgb(pixels, channels),
    })
}

/// Compares the checksum of every whole critical chunk before anything is decoded: wrong data would otherwise be
/// reported as whatever it looks like to the decoder.
fn png_checksums(bytes: &[u8]) -> Result<(), Unreadable> {
    let mut rest = &bytes[8..];
    while let Some((head, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*head) as usize;
        let Some((chunk, behind)) = behind.split_at_checked(length.saturating_add(4)) else {
            break;
        };
        let Some((stored, behind)) = behind.split_first_chunk::<4>() else {
            break;
        };
        if chunk[0].is_ascii_uppercase() && crc32fast::hash(chunk) != u32::from_be_bytes(*stored) {
            let kind = chunk[..4].escape_ascii();
            let at = bytes.len() - rest.len();
            let reason = format!("wrong checksum (CRC) of the {kind} chunk at byte {at}");
            return Err(corrupt(Format::Png, reason));
        }
        rest = behind;
    }
    Ok(())
}

fn png_error(bytes: &[u8], error: &png::DecodingError) -> Unreadable {
    match error {
        png::DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            truncated(Format::Png, bytes, error)
        }
        error => corrupt(Format::Png, error),
    }
}

fn decode_webp(bytes: &[u8]) -> Result<Rgb, Unreadable> {
    let (width, height) = size(bytes)?;
    // Neither of its two codes has a bound on pixels to a byte.
    long_enough(Format::WebP, bytes, width * height, usize::MAX)?;
    if !lossy_frames_fit(&bytes[12..], width, height) {
        let reason = "its parts disagree on the number of pixels";
        return Err(corrupt(Format::WebP, reason));
    }
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes))
        .map_err(|error| webp_error(bytes, &error))?;
    decoder.set_memory_limit(MAX_PIXELS as usize * 4);
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut pixels = vec![0; width * height * channels];
    decoder
        .read_image(&mut pixels)
        .map_err(|error| webp_error(bytes, &error))?;
    Ok(Rgb {
        width,
        height,
        pixels: to_rgb(pixels, channels),
    })
}

/// Whether the lossy frames among these chunks are no larger than the picture: the decoder takes memory for a frame before
/// it compares them.
fn lossy_frames_fit(mut chunks: &[u8], width: usize, height: usize) -> bool {
    while let Some((head, rest)) = chunks.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if head.starts_with(b"VP8 ")
            // Three bytes of flags and three of a start code, then two sides of 14 bits.
            && let Some(&[w0, w1, h0, h1]) = rest.get(6..10)
        {
            let side = |low, high| usize::from(u16::from_le_bytes([low, high]) & 0x3fff);
            if side(w0, w1) > width || side(h0, h1) > height {
                return false;
            }
        }
        // A frame of an animation holds chunks behind 16 bytes.
        let next = if head.starts_with(b"ANMF") {
            16
        } else {
            length.next_multiple_of(2)
        };
        chunks = rest.get(next..).unwrap_or_default();
    }
    true
}

fn webp_error(bytes: &[u8], error: &image_webp::DecodingError) -> Unreadable {
    match error {
        image_webp::DecodingError::IoError(error)
            if error.kind() == std::io::ErrorKind::UnexpectedEof =>
        {
            truncated(Format::WebP, bytes, error)
        }
        error => corrupt(Format::WebP, error),
    }
}

/// Grey, grey with alpha, RGB or RGBA bytes to RGB.
fn to_rgb(mut pixels: Vec<u8>, channels: usize) -> Vec<u8> {
    match channels {
        3 => pixels,
        1 | 2 => pixels
            .chunks_exact(channels)
            .flat_map(|pixel| [pixel[0]; 3])
            .collect(),
        _ => {
            // In place: a second copy of a large picture would double what it takes.
            let count = pixels.len() / channels;
            for pixel in 1..count {
                pixels.copy_within(pixel * channels..pixel * channels + 3, pixel * 3);
            }
            pixels.truncate(count * 3);
            pixels
        }
    }
}

impl Rgb {
    /// The three bytes at column `x` of row `y`.
    pub fn at(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]]
    }

    /// The rectangle of `width` by `height` pixels whose corner is at (`left`, `top`), which must lie inside.
    pub fn crop(&self, left: usize, top: usize, width: usize, height: usize) -> Self {
        assert!(left + width <= self.width && top + height <= self.height);
        let pixels = (top..top + height)
            .flat_map(|y| {
                let start = (y * self.width + left) * 3;
                &self.pixels[start..start + width * 3]
            })
            .copied()
            .collect();
        Self {
            width,
            height,
            pixels,
        }
    }

    /// The picture turned as EXIF orientation 1 to 8 asks.
    fn upright(self, orientation: u8) -> Self {
        let (w, h) = (self.width, self.height);
        let (width, height) = if orientation >= 5 { (h, w) } else { (w, h) };
        if !(2..=8).contains(&orientation) {
            return self;
        }
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for y in 0..height {
            for x in 0..width {
                pixels.extend(match orientation {
                    2 => self.at(w - 1 - x, y),
                    3 => self.at(w - 1 - x, h - 1 - y),
                    4 => self.at(x, h - 1 - y),
                    5 => self.at(y, x),
                    6 => self.at(y, h - 1 - x),
                    7 => self.at(w - 1 - y, h - 1 - x),
                    _ => self.at(w - 1 - y, x),
                });
            }
        }
        Self {
            width,
            height,
            pixels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orientations_turn_the_way_exif_says() {
        // One row: a b. What each orientation shows, as rows.
        let picture = Rgb {
            width: 2,
            height: 1,
            pixels: vec![1, 1, 1, 2, 2, 2],
        };
        let seen = |orientation| {
            let turned = picture.clone().upright(orientation);
            let values: Vec<u8> = turned.pixels.chunks(3).map(|pixel| pixel[0]).collect();
            (turned.width, turned.height, values)
        };
        for (orientation, expected) in [
            (0, (2, 1, vec![1, 2])),
            (1, (2, 1, vec![1, 2])),
            (2, (2, 1, vec![2, 1])),
            (3, (2, 1, vec![2, 1])),
            (4, (2, 1, vec![1, 2])),
            (5, (1, 2, vec![1, 2])),
            (6, (1, 2, vec![1, 2])),
            (7, (1, 2, vec![2, 1])),
            (8, (1, 2, vec![2, 1])),
            (9, (2, 1, vec![1, 2])),
        ] {
            assert_eq!(seen(orientation), expected, "orientation {orientation}");
        }
        // Orientation 6: the stored left column is the top row, read from the bottom.
        let column = Rgb {
            width: 1,
            height: 2,
            pixels: vec![1, 1, 1, 2, 2, 2],
        };
        assert_eq!(column.upright(6).pixels, [2, 2, 2, 1, 1, 1]);
    }

    #[test]
    fn other_files_are_named_by_their_look() {
        for (bytes, words) in [
            (&b"<!doctype html>"[..], "HTML"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"404 not found", "text"),
            (b"\x00\x01\x02", "no known format"),
        ] {
            let message = decode(bytes, Rotation::Ignore).unwrap_err().to_string();
            assert!(
                message.contains("not an image") && message.contains(words),
                "{message}"
            );
        }
        assert_eq!(decode(b"", Rotation::Ignore), Err(Unreadable::Empty));
    }
}

//! The marker structure of a JPEG file: its size, its rotation note, and whether its end is there.
//!
//! Decoders fill what a cut file lacks with grey; this walk (ITU-T T.81, annex B) tells a whole file from a cut one.

/// What the markers of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Width and height of the frame, if its header is there.
    pub frame: Option<(u16, u16)>,
    /// EXIF orientation, 1 (as stored) to 8.
    pub orientation: u8,
    /// How often the picture is gone through.
    pub scans: usize,
    /// Whether the end-of-image marker follows the compressed data.
    pub ended: bool,
}

impl Layout {
    /// Walks the markers; whatever is missing stays at its default.
    pub fn of(bytes: &[u8]) -> Self {
        let mut layout = Self {
            frame: None,
            orientation: 1,
            scans: 0,
            ended: false,
        };
        let mut at = 2;
        while let Some(marker) = next_marker(bytes, &mut at) {
            match marker {
                END => {
                    layout.ended = layout.frame.is_some();
                    break;
                }
                // Restart markers, a second start of image and TEM stand alone.
                0x01 | 0xd0..=0xd8 => continue,
                _ => {}
            }
            let Some(&[high, low]) = bytes.get(at..at + 2) else {
                break;
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let body = bytes.get(at + 2..at + length.max(2)).unwrap_or_default();
            match marker {
                // Start of frame, any process; DHT, JPG and DAC share the range.
                0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                    if let (None, &[_, h1, h0, w1, w0, ..]) = (layout.frame, body) {
                        let size = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
                        layout.frame = Some(size);
                    }
                }
                0xda => layout.scans += 1,
                0xe1 => {
                    if let Some(tiff) = body.strip_prefix(b"Exif\0\0") {
                        layout.orientation = orientation(tiff).unwrap_or(1);
                    }
                }
                _ => {}
            }
            at += length.max(2);
        }
        layout
    }
}

const END: u8 = 0xd9;

/// The next marker at or after `at`, which moves behind it. Compressed data is skipped: there 0xff is followed by 0 or
/// a restart marker.
fn next_marker(bytes: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        let found = bytes.get(*at..)?.iter().position(|&byte| byte == 0xff)?;
        *at += found + 1;
        match *bytes.get(*at)? {
            0xff => {}
            0 => *at += 1,
            marker => {
                *at += 1;
                return Some(marker);
            }
        }
    }
}

/// Tag 0x0112 of the first directory of a TIFF header.
fn orientation(tiff: &[u8]) -> Option<u8> {
    let big = match tiff.get(..4)? {
        [b'I', b'I', 42, 0] => false,
        [b'M', b'M', 0, 42] => true,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let pair: [u8; 2] = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big {
            u16::from_be_bytes(pair)
        } else {
            u16::from_le_bytes(pair)
        })
    };
    let (first, second) = (usize::from(u16_at(4)?), usize::from(u16_at(6)?));
    let directory = if big {
        first << 16 | second
    } else {
        second << 16 | first
    };
    let entries = usize::from(u16_at(directory)?);
    // An entry: tag, type (3 is 16-bit), count (32 bits), value.
    (0..entries)
        .map(|entry| directory + 2 + entry * 12)
        .find(|&entry| u16_at(entry) == Some(0x0112) && u16_at(entry + 2) == Some(3))
        .and_then(|entry| u16_at(entry + 8))
        .and_then(|value| u8::try_from(value).ok())
        .filter(|value| (1..=8).contains(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: &[u8] = &[0xff, 0xd8, 0xff, 0xc0, 0, 8, 8, 0, 3, 0, 5, 1];

    fn file(parts: &[&[u8]]) -> Vec<u8> {
        [&[FRAME], parts].concat().concat()
    }

    #[test]
    fn the_end_is_found_behind_compressed_data_alone() {
        let scan: &[u8] = &[0xff, 0xda, 0, 2, 1, 0xff, 0, 0xd9, 0xff, 0xd0, 7];
        let whole = file(&[scan, &[0xff, 0xd9]]);
        let layout = Layout::of(&whole);
        assert_eq!((layout.frame, layout.ended), (Some((5, 3)), true));
        for cut in 0..whole.len() {
            assert!(!Layout::of(&whole[..cut]).ended, "cut at {cut}");
        }
        // A thumbnail's end inside a segment is not the file's.
        let thumbnail: &[u8] = &[0xff, 0xe1, 0, 6, 1, 2, 0xff, 0xd9];
        assert!(!Layout::of(&file(&[thumbnail, scan])).ended);
    }

    #[test]
    fn both_byte_orders_hold_an_orientation() {
        let little = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0";
        let big = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0";
        assert_eq!(orientation(little), Some(6));
        assert_eq!(orientation(big), Some(8));
        for cut in 0..20 {
            assert!(orientation(&little[..cut.min(little.len())]).is_none());
        }
    }
}

//! The boxes that a network has found so far, picture by picture: what a score is made from, and what an interrupted
//! evaluation goes on from.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, json};

use super::judged::Tally;

/// An object that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sighting {
    /// Its category, by its place in the set's list.
    pub category: u16,
    /// Higher is surer.
    pub score: f32,
    /// Left, top, right, bottom in pixels of the picture.
    pub corners: [f32; 4],
}

/// What was found on pictures, in the evaluation's order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sightings {
    /// Pictures looked at.
    pub images: usize,
    /// Of those, pictures for which the network's outputs were no numbers.
    pub collapsed: usize,
    /// Pictures that could not be read, each with the reason. Nothing was found on them.
    pub unreadable: Vec<String>,
    /// What was found on each picture. Shared, since progress is copied after each batch.
    #[serde(with = "packed")]
    pub boxes: Vec<Arc<[Sighting]>>,
}

impl Sightings {
    /// Boxes in all.
    pub fn count(&self) -> usize {
        self.boxes.iter().map(|boxes| boxes.len()).sum()
    }
}

impl fmt::Display for Sightings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.brief())
    }
}

impl Tally for Sightings {
    // Every box of a network that sees objects everywhere: thousands on each of thousands of pictures.
    const LIMIT: u64 = 1 << 30;

    fn samples(&self) -> usize {
        self.images
    }

    fn unreadable(&self) -> &[String] {
        &self.unreadable
    }

    fn is_sound(&self) -> bool {
        let finite = |seen: &Sighting| {
            let mut values = seen.corners.iter().chain([&seen.score]);
            values.all(|value| value.is_finite())
        };
        self.boxes.len() == self.images
            && self.collapsed + self.unreadable.len() <= self.images
            && self.boxes.iter().flat_map(|boxes| boxes.iter()).all(finite)
    }

    fn brief(&self) -> String {
        match self.collapsed {
            0 => format!("{} boxes", self.count()),
            _ => "outputs that are no numbers".to_owned(),
        }
    }

    fn numbers(&self) -> Value {
        json!({ "boxes": self.count() })
    }
}

/// Boxes as a text: numbers in base 64, a third of what JSON takes for them.
mod packed {
    use super::{Arc, Deserialize, Deserializer, Serializer, Sighting, de};

    /// Bytes of a box.
    const BOX: usize = 2 + 5 * 4;
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub fn serialize<S: Serializer>(boxes: &[Arc<[Sighting]>], to: S) -> Result<S::Ok, S::Error> {
        let count: usize = boxes.iter().map(|boxes| boxes.len()).sum();
        let mut bytes = Vec::with_capacity(4 * boxes.len() + BOX * count);
        for boxes in boxes {
            bytes.extend((boxes.len() as u32).to_le_bytes());
            for seen in boxes.iter() {
                bytes.extend(seen.category.to_le_bytes());
                bytes.extend(seen.score.to_le_bytes());
                bytes.extend(seen.corners.iter().flat_map(|side| side.to_le_bytes()));
            }
        }
        to.serialize_str(&text(&bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<Arc<[Sighting]>>, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = bytes(&text).ok_or_else(|| de::Error::custom("the boxes are not base 64"))?;
        read(&bytes).ok_or_else(|| de::Error::custom("the boxes are cut off"))
    }

    /// No count in the text sizes anything before its bytes are seen to be there.
    fn read(mut bytes: &[u8]) -> Option<Vec<Arc<[Sighting]>>> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let (count, rest) = bytes.split_first_chunk::<4>()?;
            let count = u32::from_le_bytes(*count) as usize;
            let (boxes, rest) = rest.split_at_checked(count.checked_mul(BOX)?)?;
            all.push(boxes.as_chunks::<BOX>().0.iter().map(one).collect());
            bytes = rest;
        }
        Some(all)
    }

    fn one(bytes: &[u8; BOX]) -> Sighting {
        let number = |at: usize| {
            let from = 2 + 4 * at;
            f32::from_le_bytes(std::array::from_fn(|byte| bytes[from + byte]))
        };
        Sighting {
            category: u16::from_le_bytes([bytes[0], bytes[1]]),
            score: number(0),
            corners: std::array::from_fn(|side| number(1 + side)),
        }
    }

    fn text(bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for three in bytes.chunks(3) {
            let bits = three
                .iter()
                .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
            let bits = bits << (8 * (3 - three.len()));
            for digit in 0..=three.len() {
                let at = bits >> (18 - 6 * digit) & 63;
                text.push(DIGITS[at as usize].into());
            }
        }
        text
    }

    fn bytes(text: &str) -> Option<Vec<u8>> {
        let value = |digit: u8| -> Option<u32> {
            Some(match digit {
                b'A'..=b'Z' => u32::from(digit - b'A'),
                b'a'..=b'z' => u32::from(digit - b'a') + 26,
                b'0'..=b'9' => u32::from(digit - b'0') + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            })
        };
        let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
        for four in text.as_bytes().chunks(4) {
            let mut bits = 0;
            for &digit in four {
                bits = bits << 6 | value(digit)?;
            }
            bits <<= 6 * (4 - four.len());
            let whole = four.len() * 6 / 8;
            bytes.extend(&bits.to_be_bytes()[1..1 + whole]);
        }
        Some(bytes)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn bytes_come_back() {
            for length in 0..20 {
                let all: Vec<u8> = (0..length).map(|at| (at * 37 + 200) as u8).collect();
                assert_eq!(bytes(&text(&all)), Some(all));
            }
            assert_eq!(text(b"Man"), "TWFu");
            assert_eq!(bytes("a b"), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sightings() -> Sightings {
        let one = |category, score| Sighting {
            category,
            score,
            corners: [0.1, -2.5, 1e-7, 640.0],
        };
        Sightings {
            images: 3,
            collapsed: 0,
            unreadable: vec!["b.jpg: empty".into()],
            boxes: vec![
                Arc::from([one(3, 0.3)]),
                Arc::from([]),
                Arc::from([one(0, 0.999), one(79, 0.01)]),
            ],
        }
    }

    #[test]
    fn sightings_come_back_bit_for_bit_and_what_is_cut_off_does_not() {
        let all = sightings();
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Sightings>(&text).unwrap(), all);
        assert!(all.is_sound());
        let start = text.find("\"boxes\":\"").unwrap() + 9;
        for (from, to) in [(start, start + 8), (text.len() - 10, text.len() - 6)] {
            let cut = format!("{}{}", &text[..from], &text[to..]);
            let read = serde_json::from_str::<Sightings>(&cut);
            assert!(read.is_err() || !read.unwrap().is_sound(), "{cut}");
        }
    }

    #[test]
    fn counts_that_contradict_each_other_are_not_sound() {
        let changes: [fn(&mut Sightings); 3] = [
            |all| all.images = 4,
            |all| all.collapsed = 3,
            |all| {
                all.boxes[1] = Arc::from([Sighting {
                    category: 0,
                    score: f32::NAN,
                    corners: [0.0; 4],
                }]);
            },
        ];
        for change in changes {
            let mut all = sightings();
            change(&mut all);
            assert!(!all.is_sound(), "{all:?}");
        }
    }
}

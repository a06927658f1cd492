//! A [`Gatherer`] as a text, to go on from: every number bit for bit, so that what is added later gives what it would have
//! given without the interruption.

use faer::Mat;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

use super::{BLOCK, Gatherer};

/// The widest features that are kept, as in statistics files.
const WIDEST: usize = 4096;

/// Digits of a number.
const DIGITS: usize = 16;

/// The written form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    width: usize,
    samples: u64,
    /// Pivot, sums, lower triangle of the products, what waits: the bits of each number in hex, one after the other.
    sums: String,
    /// Of the three before.
    sha256: String,
}

impl Kept {
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{} {} ", self.width, self.samples));
        hash.update(&self.sums);
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// Samples whose products are not taken yet.
fn waiting(samples: u64) -> usize {
    (samples % BLOCK as u64) as usize
}

impl Serialize for Gatherer {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let triangle = (0..self.width).flat_map(|row| (0..=row).map(move |column| (row, column)));
        let numbers = self
            .pivot
            .iter()
            .chain(&self.sums)
            .copied()
            .chain(triangle.map(|at| self.products[at]))
            .chain(self.waiting.iter().copied());
        let mut sums = String::new();
        for number in numbers {
            sums += &format!("{:016x}", number.to_bits());
        }
        let mut kept = Kept {
            width: self.width,
            samples: self.samples,
            sums,
            sha256: String::new(),
        };
        kept.sha256 = kept.digest();
        kept.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Gatherer {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let kept = Kept::deserialize(from)?;
        let width = kept.width;
        if width > WIDEST {
            let problem = format!("sums of {width} features, expected at most {WIDEST}");
            return Err(de::Error::custom(problem));
        }
        let pivot = if kept.samples > 0 { width } else { 0 };
        let triangle = width * (width + 1) / 2;
        let rest = waiting(kept.samples) * width;
        let expected = DIGITS * (pivot + width + triangle + rest);
        if kept.sums.len() != expected || kept.sha256 != kept.digest() {
            return Err(de::Error::custom("the sums are damaged"));
        }
        let mut numbers = kept.sums.as_bytes().chunks_exact(DIGITS).map(|digits| {
            let bits = std::str::from_utf8(digits).ok();
            let bits = bits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            bits.map(f64::from_bits).filter(|number| number.is_finite())
        });
        let mut take = |count: usize| -> Result<Vec<f64>, D::Error> {
            let taken: Option<Vec<f64>> = numbers.by_ref().take(count).collect();
            taken.ok_or_else(|| de::Error::custom("the sums hold what is no number"))
        };
        let (pivot, sums) = (take(pivot)?, take(width)?);
        let mut products = Mat::zeros(width, width);
        for row in 0..width {
            for (column, product) in take(row + 1)?.into_iter().enumerate() {
                products[(row, column)] = product;
            }
        }
        Ok(Self {
            width,
            samples: kept.samples,
            pivot,
            sums,
            products,
            waiting: take(rest)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    fn features(samples: usize) -> Vec<f32> {
        let mut stream = Seed(5).stream("features");
        (0..samples * 3).map(|_| stream.normal()).collect()
    }

    #[test]
    fn what_was_kept_goes_on_as_if_nothing_had_happened() {
        let all = features(700);
        let mut whole = Gatherer::new(3);
        whole.add(&all).unwrap();
        let wanted = whole.finish().unwrap();
        for samples in [0, 1, 255, 256, 257, 700] {
            let mut before = Gatherer::new(3);
            before.add(&all[..samples * 3]).unwrap();
            let text = serde_json::to_string(&before).unwrap();
            let mut after: Gatherer = serde_json::from_str(&text).unwrap();
            assert_eq!((after.width(), after.samples()), (3, samples as u64));
            after.add(&all[samples * 3..]).unwrap();
            assert_eq!(after.finish().unwrap(), wanted, "after {samples}");
        }
    }

    #[test]
    fn damaged_sums_are_refused() {
        let mut gatherer = Gatherer::new(3);
        gatherer.add(&features(4)).unwrap();
        let good = serde_json::to_value(&gatherer).unwrap();
        let refused = |change: fn(&mut serde_json::Value)| {
            let mut bad = good.clone();
            change(&mut bad);
            serde_json::from_value::<Gatherer>(bad)
                .unwrap_err()
                .to_string()
        };
        assert!(refused(|bad| bad["width"] = 2.into()).contains("damaged"));
        assert!(refused(|bad| bad["width"] = 100_000.into()).contains("at most 4096"));
        assert!(refused(|bad| bad["samples"] = 260.into()).contains("damaged"));
        assert!(refused(|bad| bad["sums"] = "0".into()).contains("damaged"));
        let flipped = refused(|bad| {
            let sums = bad["sums"].as_str().unwrap();
            let first = if sums.starts_with('3') { "4" } else { "3" };
            bad["sums"] = format!("{first}{}", &sums[1..]).into();
        });
        assert!(flipped.contains("damaged"), "{flipped}");
    }
}

//! How much of what piles up over calibration images may stay in memory.
//!
//! A pass through a network takes what one batch needs, whatever the budget. What is kept from batch to batch takes part
//! of the budget, and where that is used up it is loaded, computed or read again. So a budget decides how long a
//! measurement takes and never what comes of it.

use std::str::FromStr;

use model_zoo::Bundle;

use crate::machine;

/// The variable that sets the budget.
const VARIABLE: &str = "PTSBENCH_MEMORY";
/// Memory of a machine that does not tell.
const UNKNOWN: u64 = 8 << 30;

/// A budget in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(u64);

/// A budget that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{VARIABLE} is {0:?}; give a number of bytes, or a number with KiB, MiB or GiB such as 12GiB"
)]
pub struct BadMemory(String);

impl Memory {
    /// So many bytes.
    pub const fn of(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Half of what this process may use of the machine: networks, their gradients and the pass through a batch need
    /// the rest.
    pub fn of_machine() -> Self {
        Self(machine::memory().unwrap_or(UNKNOWN) / 2)
    }

    /// As `PTSBENCH_MEMORY` has it, or the machine's.
    pub fn from_env() -> Result<Self, BadMemory> {
        match std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
            Some(value) => value.to_string_lossy().parse(),
            None => Ok(Self::of_machine()),
        }
    }

    /// The part for calibration inputs, a quarter: they are read once per pass, what is made of them in every step.
    pub fn for_inputs(self) -> u64 {
        self.0 / 4
    }

    /// The part for what is made of them, one thing at a time: the pairs of a unit, or sums over layers.
    pub fn for_results(self) -> u64 {
        self.0 - self.for_inputs()
    }
}

impl FromStr for Memory {
    type Err = BadMemory;

    fn from_str(text: &str) -> Result<Self, BadMemory> {
        let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
        let unit = match unit.trim() {
            "" => Some(0),
            "KiB" => Some(10),
            "MiB" => Some(20),
            "GiB" => Some(30),
            _ => None,
        };
        match (number.parse::<f64>(), unit) {
            (Ok(number), Some(power)) => Ok(Self((number * (1u64 << power) as f64) as u64)),
            _ => Err(BadMemory(text.to_owned())),
        }
    }
}

/// Bytes of a bundle's tensors.
pub fn bytes_of(bundle: &impl Bundle) -> u64 {
    let values = |shape: &Vec<usize>| shape.iter().product::<usize>();
    let values: usize = bundle.shapes().iter().map(values).sum();
    (values * size_of::<f32>()) as u64
}

/// Bytes as messages say them.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_with_units_and_nothing_else() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("3KiB", 3 << 10),
            ("512 MiB", 512 << 20),
            ("1.5GiB", 3 << 29),
        ] {
            assert_eq!(text.parse(), Ok(Memory::of(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1", "12GB", "1..5GiB", "12 GiB of it", "inf"] {
            let error = text.parse::<Memory>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(error.contains("12GiB"), "{error}");
        }
    }

    #[test]
    fn the_parts_are_the_whole() {
        for bytes in [0, 1, 7, 1 << 33] {
            let memory = Memory::of(bytes);
            assert_eq!(memory.for_inputs() + memory.for_results(), bytes);
        }
        assert!(Memory::of_machine().for_results() > 0);
    }

    #[test]
    fn sizes_are_said_in_the_largest_unit_that_fits() {
        let said = [0, 1023, 1536, 5 << 20, 13 << 30].map(size);
        assert_eq!(
            said,
            ["0 bytes", "1023 bytes", "1.5 KiB", "5.0 MiB", "13.0 GiB"]
        );
    }
}

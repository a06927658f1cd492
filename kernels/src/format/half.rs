//! The two 16-bit floats of tensor cores, converted by hand: round to nearest, ties to even.

/// Which 16-bit float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// 8 exponent bits, 7 mantissa bits: an f32 cut in the middle.
    Bf16,
    /// 5 exponent bits, 10 mantissa bits: IEEE binary16. Magnitudes from 65520 become infinite.
    F16,
}

impl Half {
    /// The nearest 16-bit float, ties to even; NaN stays NaN.
    pub fn encode(self, value: f32) -> u16 {
        let bits = value.to_bits();
        let sign = (bits >> 16 & 0x8000) as u16;
        match self {
            Self::Bf16 if value.is_nan() => sign | 0x7fc0,
            Self::F16 if value.is_nan() => sign | 0x7e00,
            // 16 bits go: half of their last place, less one where the rest is even already.
            Self::Bf16 => ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16,
            Self::F16 => {
                let magnitude = value.abs();
                const NORMAL: f32 = 1.0 / 16384.0; // 2^-14
                if magnitude >= 65520.0 {
                    sign | 0x7c00
                } else if magnitude < NORMAL {
                    // A multiple of 2^-24, the last place of an f32 in [1/2, 1): the addition does the rounding.
                    let shifted = magnitude + 0.5;
                    sign | (shifted.to_bits() - 0.5f32.to_bits()) as u16
                } else {
                    // 13 bits of mantissa go; the exponent's bias falls from 127 to 15.
                    let magnitude = magnitude.to_bits();
                    let rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
                    sign | ((rounded >> 13) - (112 << 10)) as u16
                }
            }
        }
    }

    /// The same value as f32; exact.
    pub fn decode(self, bits: u16) -> f32 {
        match self {
            Self::Bf16 => f32::from_bits(u32::from(bits) << 16),
            Self::F16 => {
                let sign = u32::from(bits & 0x8000) << 16;
                let (exponent, mantissa) = (u32::from(bits >> 10 & 31), u32::from(bits & 0x3ff));
                let magnitude = match exponent {
                    0 => (mantissa as f32 / (1 << 24) as f32).to_bits(),
                    31 => 0x7f80_0000 | mantissa << 13,
                    _ => (exponent + 112) << 23 | mantissa << 13,
                };
                f32::from_bits(sign | magnitude)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_survives() {
        for half in [Half::Bf16, Half::F16] {
            for bits in 0..=u16::MAX {
                let value = half.decode(bits);
                if value.is_nan() {
                    assert!(half.decode(half.encode(value)).is_nan());
                } else {
                    assert_eq!(half.encode(value), bits, "{half:?} {value}");
                }
            }
        }
    }

    #[test]
    fn known_values() {
        assert_eq!(Half::F16.decode(0x3c00), 1.0);
        assert_eq!(Half::F16.decode(0x7bff), 65504.0);
        assert_eq!(Half::F16.decode(0x0001), 2f32.powi(-24));
        assert_eq!(Half::F16.encode(65519.9), 0x7bff);
        assert_eq!(Half::F16.encode(-65520.0), 0xfc00);
        assert_eq!(Half::F16.encode(2f32.powi(-25)), 0);
        assert_eq!(Half::Bf16.decode(0x4049), 3.140625);
        assert_eq!(Half::Bf16.encode(f32::MAX), 0x7f80);
        assert!(
            Half::Bf16
                .decode(Half::Bf16.encode(f32::from_bits(0x7f80_0001)))
                .is_nan()
        );
    }

    /// Halfway between neighbours the even one wins, a hair off it the nearer one; with order kept, that is all of rounding.
    #[test]
    fn every_midpoint_rounds_to_even() {
        for (half, infinite, beyond) in [(Half::Bf16, 0x7f80u16, 128), (Half::F16, 0x7c00, 16)] {
            // Infinity stands in for the next power of two.
            let value = |code: u16| match code == infinite {
                true => 2f64.powi(beyond),
                false => f64::from(half.decode(code)),
            };
            for code in 0..infinite {
                let middle = ((value(code) + value(code + 1)) / 2.0) as f32;
                for sign in [0, 0x8000] {
                    let encode = |value: f32| half.encode(if sign == 0 { value } else { -value });
                    assert_eq!(
                        encode(middle),
                        sign | (code + code % 2),
                        "{half:?} {middle}"
                    );
                    assert_eq!(encode(middle.next_down()), sign | code, "{half:?} {middle}");
                    assert_eq!(
                        encode(middle.next_up()),
                        sign | (code + 1),
                        "{half:?} {middle}"
                    );
                }
            }
        }
    }
}

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
            Self::Bf16 => ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16,
            Self::F16 => {
                let magnitude = value.abs();
                // Scaling by powers of two is exact, so the addition's rounding is the only one: it leaves the mantissa
                // counted in units of the result's last place.
                const NORMAL: f32 = 1.0 / 16384.0; // 2^-14
                if magnitude >= 65520.0 {
                    sign | 0x7c00
                } else if magnitude < NORMAL {
                    // Subnormal: multiples of 2^-24, which is the last place of a sum near 1/2 + ...
                    let shifted = magnitude + 0.5;
                    sign | (shifted.to_bits() - 0.5f32.to_bits()) as u16
                } else {
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
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn the_result_is_the_nearest(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            for (half, infinite) in [(Half::Bf16, 0x7f80u16), (Half::F16, 0x7c00)] {
                // Infinity stands at the next power of two when distances are compared.
                let decode = |code: u16| {
                    if code == infinite {
                        2f64.powi(if half == Half::F16 { 16 } else { 128 })
                    } else {
                        f64::from(half.decode(code))
                    }
                };
                let got = half.encode(value.abs());
                prop_assert_eq!(half.encode(-value.abs()), got | 0x8000);
                let distance = |code: u16| (decode(code) - f64::from(value.abs())).abs();
                for other in [got.saturating_sub(1), (got + 1).min(infinite)] {
                    if other != got {
                        let (mine, theirs) = (distance(got), distance(other));
                        prop_assert!(mine < theirs || mine == theirs && got % 2 == 0, "{value}");
                    }
                }
            }
        }
    }
}

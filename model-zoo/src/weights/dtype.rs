//! The values of a safetensors file, and how they become f32 and back.

use burn::tensor::{bf16, f16};

macro_rules! dtypes {
    ($($name:ident $bits:literal),* $(,)?) => {
        /// The dtypes of the format. Only the floats of 16 to 64 bits can be weights.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(non_camel_case_types)] // The format's own spelling.
        pub enum Dtype {
            $(#[doc = concat!("`", stringify!($name), "`")] $name),*
        }

        impl Dtype {
            /// The dtype of that spelling.
            pub fn parse(name: &str) -> Option<Dtype> {
                match name {
                    $(stringify!($name) => Some(Dtype::$name),)*
                    _ => None,
                }
            }

            /// The format's spelling.
            pub fn name(self) -> &'static str {
                match self {
                    $(Dtype::$name => stringify!($name)),*
                }
            }

            /// Bits of one value.
            pub fn bits(self) -> u64 {
                match self {
                    $(Dtype::$name => $bits),*
                }
            }
        }
    };
}

dtypes! {
    BOOL 8, U8 8, I8 8, I16 16, U16 16, I32 32, U32 32, I64 64, U64 64,
    F4 4, F6_E2M3 6, F6_E3M2 6, F8_E5M2 8, F8_E4M3 8, F8_E8M0 8, F8_E4M3FNUZ 8, F8_E5M2FNUZ 8,
    F16 16, BF16 16, F32 32, F64 64, C64 64,
}

pub(super) type Convert = fn(&[u8], &mut Vec<f32>);

/// How values of a dtype become f32; none for those that are not weights.
pub(super) fn conversion(dtype: Dtype) -> Option<Convert> {
    Some(match dtype {
        Dtype::F32 => |bytes, out| out.extend(each(bytes).map(f32::from_le_bytes)),
        Dtype::F16 => |bytes, out| out.extend(each(bytes).map(|b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => {
            |bytes, out| out.extend(each(bytes).map(|b| bf16::from_le_bytes(b).to_f32()))
        }
        Dtype::F64 => |bytes, out| out.extend(each(bytes).map(|b| f64::from_le_bytes(b) as f32)),
        _ => return None,
    })
}

/// Little-endian values as f32; none for dtypes that are not weights.
pub(super) fn as_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let mut values = Vec::with_capacity(bytes.len() / (dtype.bits() as usize / 8).max(1));
    conversion(dtype)?(bytes, &mut values);
    Some(values)
}

/// f32 values as little-endian values of a dtype, rounded to nearest; none for dtypes that are not weights.
pub fn from_f32(dtype: Dtype, values: &[f32]) -> Option<Vec<u8>> {
    let values = values.iter();
    Some(match dtype {
        Dtype::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect(),
        Dtype::BF16 => values
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect(),
        Dtype::F64 => values.flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
        _ => return None,
    })
}

fn each<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

//! The formula that fills every tensor and input of the zoo's goldens: a stream of exact f32 numbers by name.

use model_zoo::weights::{Source, WeightError};
use serde::Deserialize;

/// FNV-1a over the UTF-8 bytes of a name.
pub fn fnv1a64(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn splitmix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The stream of a name under a salt: u(name, 0), u(name, 1), …, each in [-1, 1] and exact in f32.
pub fn stream(salt: &str, name: &str) -> impl Iterator<Item = f32> + use<> {
    let seed = fnv1a64(salt.bytes().chain(name.bytes()));
    (0..).map(move |i: u64| (splitmix(seed.wrapping_add(i)) >> 40) as f32 * 2f32.powi(-23) - 1.0)
}

/// One entry of a state dict, with the constants that fill it.
#[derive(Debug, Deserialize)]
pub struct Filled {
    /// The checkpoint's key.
    pub key: String,
    /// Shape in the checkpoint's layout.
    pub shape: Vec<usize>,
    /// `F32`, or `I64` for counters, which are left out.
    pub dtype: Option<String>,
    /// Added to every value.
    pub offset: f32,
    /// Multiplied with every number of the stream.
    pub scale: f32,
}

impl Filled {
    /// Row-major values, two roundings each; nothing is added where the offset is 0.
    pub fn values(&self, salt: &str) -> Vec<f32> {
        fill(salt, &self.key, &self.shape, self.offset, self.scale)
    }

    /// Whether it is a tensor of the network and not a counter.
    pub fn is_float(&self) -> bool {
        self.dtype.as_deref() != Some("I64")
    }
}

fn fill(salt: &str, name: &str, shape: &[usize], offset: f32, scale: f32) -> Vec<f32> {
    let scaled = stream(salt, name)
        .take(shape.iter().product())
        .map(|u| scale * u);
    if offset == 0.0 {
        scaled.collect()
    } else {
        scaled.map(|value| offset + value).collect()
    }
}

/// How an input is made.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Input {
    /// A stream of the input's own name.
    Uniform {
        shape: Vec<usize>,
        offset: f32,
        scale: f32,
    },
    /// Noise over a 4x4 grid of flat patches, so that two images differ after pooling too.
    Image {
        shape: [usize; 4],
        fine: f32,
        coarse: f32,
        offset: f32,
    },
    /// Integers as listed.
    Values { shape: Vec<usize>, values: Vec<i64> },
}

impl Input {
    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        match self {
            Input::Uniform { shape, .. } | Input::Values { shape, .. } => shape,
            Input::Image { shape, .. } => shape,
        }
    }

    /// Row-major values.
    pub fn values(&self, salt: &str, name: &str) -> Vec<f32> {
        match self {
            Input::Uniform {
                shape,
                offset,
                scale,
            } => fill(salt, name, shape, *offset, *scale),
            Input::Image {
                shape: [n, c, h, w],
                fine,
                coarse,
                offset,
            } => {
                let grid: Vec<f32> = stream(salt, &format!("{name}.coarse"))
                    .take(n * c * 16)
                    .collect();
                let noise = stream(salt, &format!("{name}.fine")).take(n * c * h * w);
                let value = |(i, u): (usize, f32)| {
                    let (plane, y, x) = (i / (h * w), i / w % h, i % w);
                    let patch = (plane * 4 + y * 4 / h) * 4 + x * 4 / w;
                    (fine * u + coarse * grid[patch]) + offset
                };
                noise.enumerate().map(value).collect()
            }
            Input::Values { values, .. } => values.iter().map(|&value| value as f32).collect(),
        }
    }
}

/// A state dict as weights: every tensor is computed when it is read.
pub struct Formula<'a> {
    /// Named in messages.
    pub origin: String,
    /// Put before every name.
    pub salt: &'a str,
    /// Every entry.
    pub state_dict: &'a [Filled],
}

impl Formula<'_> {
    fn find(&self, key: &str) -> Option<&Filled> {
        self.state_dict
            .iter()
            .find(|filled| filled.key == key && filled.is_float())
    }
}

impl Source for Formula<'_> {
    fn origin(&self) -> String {
        self.origin.clone()
    }

    fn keys(&self) -> Vec<String> {
        self.state_dict
            .iter()
            .filter(|filled| filled.is_float())
            .map(|filled| filled.key.clone())
            .collect()
    }

    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        self.find(key).map(|filled| filled.shape.clone())
    }

    fn read(&self, key: &str) -> Result<Vec<f32>, WeightError> {
        match self.find(key) {
            Some(filled) => Ok(filled.values(self.salt)),
            None => Err(WeightError::NoSuchKey {
                file: self.origin(),
                key: key.to_string(),
            }),
        }
    }
}

/// `formula.json`: bit-exact vectors.
#[derive(Deserialize)]
pub struct Vectors {
    salt: String,
    tensors: Vec<TensorVector>,
    inputs: Vec<InputVector>,
}

#[derive(Deserialize)]
struct TensorVector {
    #[serde(flatten)]
    filled: Filled,
    fnv1a64: String,
    u_bits: Vec<String>,
    #[serde(flatten)]
    bits: Bits,
}

#[derive(Deserialize)]
struct InputVector {
    name: String,
    spec: Input,
    #[serde(flatten)]
    bits: Bits,
}

#[derive(Deserialize)]
struct Bits {
    value_bits: Vec<String>,
    last_value_bits: String,
    fnv1a64_of_bytes: String,
}

impl Bits {
    fn check(&self, what: &str, values: &[f32], failures: &mut Vec<String>) {
        let mut expect = |part: &str, found: String, expected: &str| {
            if found != expected {
                failures.push(format!(
                    "formula.json: {what}: {part} is {found}, expected {expected}"
                ));
            }
        };
        for (i, bits) in self.value_bits.iter().enumerate() {
            expect(&format!("value {i}"), hex(values[i]), bits);
        }
        expect(
            "last value",
            hex(values[values.len() - 1]),
            &self.last_value_bits,
        );
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        expect(
            "hash of all values",
            format!("{:016x}", fnv1a64(bytes)),
            &self.fnv1a64_of_bytes,
        );
    }
}

fn hex(value: f32) -> String {
    format!("{:08x}", value.to_bits())
}

impl Vectors {
    /// Tensors and inputs held.
    pub fn len(&self) -> usize {
        self.tensors.len() + self.inputs.len()
    }

    /// Everything that is not bit for bit as stated.
    pub fn check(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for tensor in &self.tensors {
            let key = &tensor.filled.key;
            let hash = format!("{:016x}", fnv1a64(self.salt.bytes().chain(key.bytes())));
            if hash != tensor.fnv1a64 {
                failures.push(format!(
                    "formula.json: {key}: hash of the name is {hash}, expected {}",
                    tensor.fnv1a64
                ));
            }
            let stream: Vec<String> = stream(&self.salt, key)
                .take(tensor.u_bits.len())
                .map(hex)
                .collect();
            if stream != tensor.u_bits {
                failures.push(format!(
                    "formula.json: {key}: stream is {stream:?}, expected {:?}",
                    tensor.u_bits
                ));
            }
            tensor
                .bits
                .check(key, &tensor.filled.values(&self.salt), &mut failures);
        }
        for input in &self.inputs {
            input.bits.check(
                &input.name,
                &input.spec.values(&self.salt, &input.name),
                &mut failures,
            );
        }
        failures
    }
}

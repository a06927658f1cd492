//! The text transformer of CLIP (Radford et al. 2021, arXiv 2103.00020) as transformers defines it (`CLIPTextModel`), in the
//! size that Stable Diffusion 2 reads its prompts with.
//!
//! It makes the contexts that the UNet is given, and is never pruned, so it is not in the catalog. That size is OpenCLIP's
//! ViT-H/14 without its last layer: what Stable Diffusion 2 takes is the last but one layer there, the last one here, with
//! the final norm. GELU is exact, where OpenAI's networks have an approximation. A token sees itself and those before it;
//! padding is not left out. Names are the checkpoint's; the first linear layer of a perceptron with its GELU is one module
//! here (`mlp.fc1.linear` for `mlp.fc1`), which [`key`] undoes.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::layer::{LayerNorm, LinearGelu, attend};
use crate::modality::{Modality, Tokens};
use crate::unit::{Fixed, Grain, Network, Tap, Unit};

/// Added to the variance in every norm.
const EPSILON: f64 = 1e-5;

/// One network of the family.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// What the network is called.
    pub name: &'static str,
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Tokens that a text may have.
    pub positions: usize,
    /// Width of the states.
    pub width: usize,
    /// Width inside a perceptron.
    pub hidden: usize,
    /// Layers.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
}

/// All sizes: Stable Diffusion 2's, one for tests, and one whose contexts `tiny_unet` takes.
pub const SIZES: [Size; 3] = [
    Size {
        name: "sd2_text_encoder",
        vocabulary: 49_408,
        positions: 77,
        width: 1024,
        hidden: 4096,
        depth: 23,
        heads: 16,
    },
    Size {
        name: "tiny_clip_text",
        vocabulary: 99,
        positions: 12,
        width: 32,
        hidden: 64,
        depth: 2,
        heads: 4,
    },
    Size {
        name: "tiny_unet_text_encoder",
        vocabulary: 600,
        positions: 77,
        width: 24,
        hidden: 32,
        depth: 1,
        heads: 2,
    },
];

/// A text transformer.
#[derive(Module, Debug)]
pub struct ClipText {
    embeddings: Embeddings,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
}

#[derive(Module, Debug)]
struct Embeddings {
    token_embedding: Embedding,
    position_embedding: Embedding,
}

#[derive(Module, Debug)]
struct Encoder {
    layers: Vec<Layer>,
}

/// A layer of the transformer: attention and perceptron, each normed before and added to what it was given.
#[derive(Module, Debug)]
pub struct Layer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Perceptron,
}

#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

#[derive(Module, Debug)]
struct Perceptron {
    fc1: LinearGelu,
    fc2: Linear,
}

impl Unit<Tensor<3>> for Layer {
    type Out = Tensor<3>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, x: Tensor<3>, tap: &mut T) -> Tensor<3> {
        let [_, tokens, _] = x.dims();
        let mask = causal(tokens, &x.device());
        let y = self.layer_norm1.forward(x.clone());
        let attention = &self.self_attn;
        let q = tap.unit("self_attn.q_proj", &attention.q_proj, y.clone());
        let k = tap.unit("self_attn.k_proj", &attention.k_proj, y.clone());
        let v = tap.unit("self_attn.v_proj", &attention.v_proj, y);
        let y = attend([q, k, v], attention.heads, Some(mask));
        let x = x + tap.unit("self_attn.out_proj", &attention.out_proj, y);
        let y = self.layer_norm2.forward(x.clone());
        let y = tap.unit("mlp.fc1", &self.mlp.fc1, y);
        x + tap.unit("mlp.fc2", &self.mlp.fc2, y)
    }
}

/// Nothing for a token itself and those before it, minus infinity for those behind.
fn causal(tokens: usize, device: &Device) -> Tensor<2> {
    let at = |place: usize| match place % tokens > place / tokens {
        true => f32::NEG_INFINITY,
        false => 0.0,
    };
    let values: Vec<f32> = (0..tokens * tokens).map(at).collect();
    Tensor::from_data(TensorData::new(values, [tokens, tokens]), device)
}

impl Size {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> ClipText {
        let width = self.width;
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let norm = || LayerNorm::init(width, EPSILON, device);
        let embedding = |rows| EmbeddingConfig::new(rows, width).init(device);
        let layer = |_| Layer {
            layer_norm1: norm(),
            self_attn: Attention {
                q_proj: linear(width, width),
                k_proj: linear(width, width),
                v_proj: linear(width, width),
                out_proj: linear(width, width),
                heads: self.heads,
            },
            layer_norm2: norm(),
            mlp: Perceptron {
                fc1: LinearGelu::init(width, self.hidden, device),
                fc2: linear(self.hidden, width),
            },
        };
        ClipText {
            embeddings: Embeddings {
                token_embedding: embedding(self.vocabulary),
                position_embedding: embedding(self.positions),
            },
            encoder: Encoder {
                layers: (0..self.depth).map(layer).collect(),
            },
            final_layer_norm: norm(),
        }
    }
}

impl Embeddings {
    /// The tokens' rows and their places', added.
    fn forward(&self, texts: &[Vec<u32>]) -> Tensor<3> {
        let [vocabulary, width] = self.token_embedding.weight.lazy_shape().dims();
        let [positions, _] = self.position_embedding.weight.lazy_shape().dims();
        let tokens = texts.first().map_or(0, Vec::len);
        assert!(
            texts.iter().all(|text| text.len() == tokens),
            "the texts of a batch have equally many tokens"
        );
        assert!(
            tokens <= positions,
            "a text of {tokens} tokens has at most {positions}"
        );
        let ids: Vec<i32> = texts.iter().flatten().map(|&id| id as i32).collect();
        let most = texts.iter().flatten().max();
        assert!(
            most.is_none_or(|&id| (id as usize) < vocabulary),
            "token {most:?} is one of {vocabulary}"
        );
        let device = self.token_embedding.weight.lazy_device();
        let ids = TensorData::new(ids, [texts.len(), tokens]);
        let ids = Tensor::<2, Int>::from_data(ids, &device);
        let places = self.position_embedding.weight.val();
        let places = places.narrow(0, 0, tokens).reshape([1, tokens, width]);
        self.token_embedding.forward(ids) + places
    }
}

impl Network for ClipText {
    type Input = <Tokens as Modality>::Input;
    type Output = <Tokens as Modality>::Output;

    fn run<T: Tap>(&self, Fixed(texts): Self::Input, tap: &mut T) -> Tensor<3> {
        let mut x = self.embeddings.forward(&texts);
        tap.mark("embeddings", &x);
        for (place, layer) in self.encoder.layers.iter().enumerate() {
            x = tap.unit(&format!("encoder.layers.{place}"), layer, x);
        }
        let x = self.final_layer_norm.forward(x);
        tap.mark("final_layer_norm", &x);
        x
    }

    fn key(&self, path: &str) -> String {
        key(path)
    }

    /// There is no batch norm.
    fn fold(self) -> Self {
        self
    }
}

/// The checkpoint's name: `encoder.layers.0.mlp.fc1.linear.bias` is `text_model.encoder.layers.0.mlp.fc1.bias`.
pub fn key(path: &str) -> String {
    let names: Vec<&str> = path.split('.').filter(|&name| name != "linear").collect();
    format!("text_model.{}", names.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Bare;
    use crate::weights::{Container, Dtype, Source, Stored, load, save, write_stored};
    use std::collections::BTreeMap;

    fn states(texts: &[&[u32]]) -> Vec<f32> {
        let device = Device::flex();
        device.seed(7);
        let texts = texts.iter().map(|text| text.to_vec()).collect();
        let network = SIZES[1].init(&device);
        let states = network.run(Fixed(texts), &mut Bare::default());
        states.into_data().iter::<f32>().collect()
    }

    #[test]
    fn keys_are_the_checkpoints() {
        for (path, expected) in [
            (
                "embeddings.token_embedding.weight",
                "text_model.embeddings.token_embedding.weight",
            ),
            (
                "encoder.layers.1.mlp.fc1.linear.bias",
                "text_model.encoder.layers.1.mlp.fc1.bias",
            ),
            (
                "encoder.layers.1.self_attn.out_proj",
                "text_model.encoder.layers.1.self_attn.out_proj",
            ),
            (
                "final_layer_norm.weight",
                "text_model.final_layer_norm.weight",
            ),
        ] {
            assert_eq!(key(path), expected);
        }
    }

    /// Older files also hold the numbers of the places.
    #[test]
    fn numbers_of_places_are_ignored() {
        let device = Device::flex();
        let (folder, network) = (tempfile::tempdir().unwrap(), SIZES[1].init(&device));
        let file = folder.path().join("text.safetensors");
        save(&network, key, &file, &BTreeMap::new()).unwrap();
        let stored = Container::open(&file).unwrap();
        let mut all: Vec<Stored> = stored
            .entries()
            .iter()
            .map(|(key, entry)| Stored {
                key: key.clone(),
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                bytes: stored.raw(key).unwrap(),
            })
            .collect();
        all.push(Stored {
            key: "text_model.embeddings.position_ids".to_owned(),
            dtype: Dtype::I64,
            shape: vec![1, 12],
            bytes: (0..12i64).flat_map(i64::to_le_bytes).collect(),
        });
        let older = folder.path().join("older.safetensors");
        write_stored(&older, &all, &BTreeMap::new()).unwrap();
        let source = Container::open(&older).unwrap();
        assert!(load(SIZES[1].init(&device), key, &source).is_ok());
    }

    #[test]
    fn a_token_sees_none_behind_it() {
        let width = SIZES[1].width;
        // Of one network: another test may draw between two of the same seed.
        let both = states(&[&[5, 6, 7, 8], &[5, 6, 9, 8]]);
        let (one, other) = both.split_at(4 * width);
        assert_eq!(one[..2 * width], other[..2 * width]);
        assert_ne!(one[2 * width..3 * width], other[2 * width..3 * width]);
        assert_ne!(one[3 * width..], other[3 * width..]);
        assert!(both.iter().all(|value| value.is_finite()));
    }

    #[test]
    #[should_panic(expected = "one of 99")]
    fn a_token_that_does_not_exist_is_refused() {
        states(&[&[99]]);
    }

    #[test]
    #[should_panic(expected = "at most 12")]
    fn a_text_that_is_too_long_is_refused() {
        states(&[&[1; 13]]);
    }

    #[test]
    #[should_panic(expected = "equally many tokens")]
    fn texts_of_several_lengths_are_refused() {
        states(&[&[1, 2], &[1]]);
    }
}

//! Vision transformers: ViT (Dosovitskiy et al. 2020, arXiv 2010.11929) and DeiT without distillation (Touvron et al.
//! 2020, arXiv 2012.12877) as timm defines them: one network, other weights.
//!
//! Norms come before the attention and the perceptron, their eps is 1e-6, GELU is exact, and a class token goes to the
//! classifier. Queries, keys and values are one linear layer, as the checkpoint stores them; what follows it up to the
//! projection, the attention itself, belongs to its layer unit. Names are the checkpoint's; a linear layer with what
//! follows it is one module here (`attn.qkv.linear` for `attn.qkv`), which [`key`] undoes.

use burn::module::{Initializer, Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::layer::{LayerNorm, LinearGelu, of_classes};
use crate::unit::{Grain, Layout, Network, Tap, Unit};

/// Added to the variance in every norm.
const EPSILON: f64 = 1e-6;

/// Width of the perceptron over that of the tokens.
const EXPANSION: usize = 4;

/// One network of the family: a row of the catalog's table.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Side of the square image: the positions fit only this one.
    pub image: usize,
    /// Side of a patch.
    pub patch: usize,
    /// Width of the tokens.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Classes.
    pub classes: usize,
}

/// A vision transformer.
#[derive(Module, Debug)]
pub struct Vit {
    cls_token: Param<Tensor<3>>,
    pos_embed: Param<Tensor<3>>,
    patch_embed: PatchEmbed,
    blocks: Vec<Block>,
    head: Head,
}

/// Image to tokens: one per patch, rows first.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    proj: Conv2d,
}

impl Unit<Tensor<4>> for PatchEmbed {
    type Out = Tensor<3>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<3> {
        tap.unit("proj", &self.proj, x)
            .flatten::<3>(2, 3)
            .swap_dims(1, 2)
    }
}

/// A transformer block: attention and perceptron, each normed before and added to what it was given.
#[derive(Module, Debug)]
pub struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Perceptron,
}

#[derive(Module, Debug)]
struct Attention {
    qkv: Attend,
    proj: Linear,
}

#[derive(Module, Debug)]
struct Perceptron {
    fc1: LinearGelu,
    fc2: Linear,
}

impl Unit<Tensor<3>> for Block {
    type Out = Tensor<3>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, x: Tensor<3>, tap: &mut T) -> Tensor<3> {
        let y = self.norm1.forward(x.clone());
        let y = tap.unit("attn.qkv", &self.attn.qkv, y);
        let x = x + tap.unit("attn.proj", &self.attn.proj, y);
        let y = self.norm2.forward(x.clone());
        let y = tap.unit("mlp.fc1", &self.mlp.fc1, y);
        x + tap.unit("mlp.fc2", &self.mlp.fc2, y)
    }
}

/// The linear layer that gives queries, keys and values, and the attention over them.
#[derive(Module, Debug)]
pub struct Attend {
    linear: Linear,
    heads: usize,
}

impl Unit<Tensor<3>> for Attend {
    type Out = Tensor<3>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<3>, tap: &mut T) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let depth = width / self.heads;
        let parts = tap
            .unit("linear", &self.linear, x)
            .reshape([batch, tokens, 3, self.heads, depth])
            .permute([2, 0, 3, 1, 4]);
        // One of the three, as [batch, heads, tokens, depth].
        let part = |i: usize| parts.clone().narrow(0, i, 1).squeeze_dim::<4>(0);
        let q = part(0).mul_scalar((depth as f64).powf(-0.5));
        let weights = kernels::softmax(kernels::matmul(q, part(1).swap_dims(2, 3)));
        kernels::matmul(weights, part(2))
            .swap_dims(1, 2)
            .reshape([batch, tokens, width])
    }
}

/// The last norm and the classifier, which reads the class token.
#[derive(Module, Debug)]
pub struct Head {
    norm: LayerNorm,
    linear: Linear,
}

impl Unit<Tensor<3>> for Head {
    type Out = Tensor<2>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<3>, tap: &mut T) -> Tensor<2> {
        let x = self.norm.forward(x);
        tap.mark("norm", &x);
        let x = x.narrow(1, 0, 1).squeeze_dim::<2>(1);
        tap.mark("fc_norm", &x);
        tap.unit("linear", &self.linear, x)
    }
}

impl Size {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> Vit {
        let width = self.width;
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let block = || Block {
            norm1: LayerNorm::init(width, EPSILON, device),
            attn: Attention {
                qkv: Attend {
                    linear: linear(width, 3 * width),
                    heads: self.heads,
                },
                proj: linear(width, width),
            },
            norm2: LayerNorm::init(width, EPSILON, device),
            mlp: Perceptron {
                fc1: LinearGelu::init(width, EXPANSION * width, device),
                fc2: linear(EXPANSION * width, width),
            },
        };
        let tokens = 1 + (self.image / self.patch).pow(2);
        let small = Initializer::Normal {
            mean: 0.0,
            std: 0.02,
        };
        Vit {
            cls_token: small.init([1, 1, width], device),
            pos_embed: small.init([1, tokens, width], device),
            patch_embed: PatchEmbed {
                proj: Conv2dConfig::new([3, width], [self.patch; 2])
                    .with_stride([self.patch; 2])
                    .init(device),
            },
            blocks: (0..self.depth).map(|_| block()).collect(),
            head: Head {
                norm: LayerNorm::init(width, EPSILON, device),
                linear: linear(width, self.classes),
            },
        }
    }
}

impl Network for Vit {
    type Input = Tensor<4>;
    type Output = Tensor<2>;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<2> {
        let patches = tap.unit("patch_embed", &self.patch_embed, x);
        let [batch, count, width] = patches.dims();
        let positions = self.pos_embed.val();
        let [_, tokens, _] = positions.dims();
        assert_eq!(
            count + 1,
            tokens,
            "an image has as many patches as the network has positions, the class token's apart"
        );
        let class = self.cls_token.val().expand([batch, 1, width]);
        let mut x = Tensor::cat(vec![class, patches], 1) + positions;
        // Where some transformers have another norm.
        tap.mark("norm_pre", &x);
        for (place, block) in self.blocks.iter().enumerate() {
            x = tap.unit(&format!("blocks.{place}"), block, x);
        }
        tap.unit("head", &self.head, x)
    }

    fn key(&self, path: &str) -> String {
        key(path)
    }

    fn key_in(&self, layout: Layout, path: &str) -> Option<String> {
        let mlp = match layout {
            Layout::Timm => return Some(key(path)),
            Layout::Torchvision => ["mlp.0", "mlp.3"],
            Layout::TorchvisionFirst => ["mlp.linear_1", "mlp.linear_2"],
            Layout::DiffusersFirst => return None,
        };
        Some(torchvision_key(&key(path), mlp))
    }

    fn classifier(&self) -> Option<String> {
        Some("head.linear".to_owned())
    }

    fn with_classes(self, classes: usize) -> Self {
        Self {
            head: Head {
                linear: of_classes(&self.head.linear, classes),
                norm: self.head.norm,
            },
            ..self
        }
    }

    /// There is no batch norm.
    fn fold(self) -> Self {
        self
    }
}

/// The checkpoint's name: `blocks.0.attn.qkv.linear.weight` is `blocks.0.attn.qkv.weight`, and the last norm is not
/// part of the head.
pub fn key(path: &str) -> String {
    let path = match path.strip_prefix("head.") {
        Some(rest) if !rest.starts_with("linear") => rest,
        _ => path,
    };
    let names: Vec<&str> = path.split('.').filter(|&name| name != "linear").collect();
    names.join(".")
}

/// torchvision's name of what timm calls `key`; `mlp` are its names of the two layers of an MLP.
fn torchvision_key(key: &str, mlp: [&str; 2]) -> String {
    let Some((block, part)) = key
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return match key {
            "cls_token" => "class_token".to_owned(),
            "pos_embed" => "encoder.pos_embedding".to_owned(),
            _ => [
                ("patch_embed.proj", "conv_proj"),
                ("norm", "encoder.ln"),
                ("head", "heads.head"),
            ]
            .iter()
            .find_map(|(timm, theirs)| Some(format!("{theirs}{}", key.strip_prefix(timm)?)))
            .unwrap_or_else(|| key.to_owned()),
        };
    };
    let [first, second] = mlp;
    let part = [
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        // One tensor of all three projections, which belongs to no single layer there.
        ("attn.qkv.", "self_attention.in_proj_"),
        ("attn.proj", "self_attention.out_proj"),
        ("mlp.fc1", first),
        ("mlp.fc2", second),
    ]
    .iter()
    .find_map(|(timm, theirs)| Some(format!("{theirs}{}", part.strip_prefix(timm)?)))
    .unwrap_or_else(|| part.to_owned());
    format!("encoder.layers.encoder_layer_{block}.{part}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_checkpoints() {
        for (path, expected) in [
            ("cls_token", "cls_token"),
            ("patch_embed.proj.weight", "patch_embed.proj.weight"),
            ("blocks.0.norm1.bias", "blocks.0.norm1.bias"),
            (
                "blocks.0.attn.qkv.linear.weight",
                "blocks.0.attn.qkv.weight",
            ),
            ("blocks.11.attn.proj.bias", "blocks.11.attn.proj.bias"),
            ("blocks.11.mlp.fc1.linear", "blocks.11.mlp.fc1"),
            ("blocks.11.mlp.fc2", "blocks.11.mlp.fc2"),
            ("head.norm.weight", "norm.weight"),
            ("head.linear.bias", "head.bias"),
        ] {
            assert_eq!(key(path), expected);
        }
    }

    #[test]
    #[should_panic(expected = "as many patches as the network has positions")]
    fn an_image_of_another_size_is_refused() {
        let size = Size {
            image: 32,
            patch: 8,
            width: 12,
            depth: 1,
            heads: 3,
            classes: 2,
        };
        let device = Device::flex();
        let network = size.init(&device);
        network.run(
            Tensor::zeros([1, 3, 48, 32], &device),
            &mut crate::tap::Bare::default(),
        );
    }
}

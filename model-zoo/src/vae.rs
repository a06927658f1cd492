//! The autoencoder of latent diffusion (Rombach et al. 2021, arXiv 2112.10752) as diffusers defines it for Stable Diffusion
//! (`AutoencoderKL`).
//!
//! It makes latents of images and images of latents, and is never pruned, so it is not in the catalog. Its blocks are the
//! UNet's without a time, with another eps; between levels the encoder pads below and on the right alone. The attention in
//! the middle has one head.

use burn::module::Module;
use burn::nn::Linear;
use burn::nn::conv::Conv2d;
use burn::tensor::{Device, Tensor};

use crate::diffusion::block::{Change, Out, Parts, ResNetBlock, Sampler};
use crate::layer::{GroupNorm, attend};
use crate::unet;
use crate::unit::{Grain, Layout, Network, Tap, Unit};

/// Added to the variance in every norm.
const EPSILON: f64 = 1e-6;

/// What latents are multiplied by for the UNet of Stable Diffusion.
pub const SCALING: f64 = 0.18215;

/// Colours.
const COLOURS: usize = 3;

/// One network of the family.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// What the network is called.
    pub name: &'static str,
    /// Channels of the latent.
    pub latent: usize,
    /// Channels of each level; between levels the image is halved.
    pub widths: &'static [usize],
    /// ResNet blocks of a level on the way down; one more on the way up.
    pub depth: usize,
    /// Groups of the norms.
    pub groups: usize,
}

/// All sizes: Stable Diffusion 2's, and one for tests.
pub const SIZES: [Size; 2] = [
    Size {
        name: "sd2_vae",
        latent: 4,
        widths: &[128, 256, 512, 512],
        depth: 2,
        groups: 32,
    },
    Size {
        name: "tiny_vae",
        latent: 4,
        widths: &[16, 32],
        depth: 1,
        groups: 8,
    },
];

/// An autoencoder.
#[derive(Module, Debug)]
pub struct Vae {
    encoder: Half,
    decoder: Half,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
}

/// The encoder, which has no levels on the way up, or the decoder, which has none on the way down.
#[derive(Module, Debug)]
struct Half {
    conv_in: Conv2d,
    down_blocks: Vec<Level>,
    mid_block: Level,
    up_blocks: Vec<Level>,
    out: Out,
}

/// ResNet blocks, in the middle an attention between them, and what changes the size.
#[derive(Module, Debug)]
struct Level {
    resnets: Vec<ResNetBlock>,
    attentions: Vec<Attention>,
    downsamplers: Vec<Sampler>,
    upsamplers: Vec<Sampler>,
}

/// Attention of an image's places to each other, normed before and added to what it was given.
#[derive(Module, Debug)]
pub struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Unit<Tensor<4>> for Attention {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let shape = x.dims();
        let y = self.group_norm.forward(x.clone());
        let y = y.flatten::<3>(2, 3).swap_dims(1, 2);
        let q = tap.unit("to_q", &self.to_q, y.clone());
        let k = tap.unit("to_k", &self.to_k, y.clone());
        let v = tap.unit("to_v", &self.to_v, y);
        let y = tap.unit("to_out", &self.to_out, attend([q, k, v], 1, None));
        x + y.swap_dims(1, 2).reshape(shape)
    }
}

impl Level {
    /// Not a unit of its own: its parts are.
    fn run<T: Tap>(&self, path: &str, mut x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        for (place, resnet) in self.resnets.iter().enumerate() {
            x = tap.unit(&format!("{path}.resnets.{place}"), resnet, (x, None));
            if let Some(attention) = self.attentions.get(place) {
                x = tap.unit(&format!("{path}.attentions.{place}"), attention, x);
            }
        }
        for (place, sampler) in self.downsamplers.iter().enumerate() {
            x = tap.unit(&format!("{path}.downsamplers.{place}"), sampler, x);
        }
        for (place, sampler) in self.upsamplers.iter().enumerate() {
            x = tap.unit(&format!("{path}.upsamplers.{place}"), sampler, x);
        }
        tap.mark(path, &x);
        x
    }
}

impl Half {
    /// Not a unit of its own: its parts are.
    fn run<T: Tap>(&self, path: &str, x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let mut x = tap.unit(&format!("{path}.conv_in"), &self.conv_in, x);
        for (level, down) in self.down_blocks.iter().enumerate() {
            x = down.run(&format!("{path}.down_blocks.{level}"), x, tap);
        }
        x = self.mid_block.run(&format!("{path}.mid_block"), x, tap);
        for (level, up) in self.up_blocks.iter().enumerate() {
            x = up.run(&format!("{path}.up_blocks.{level}"), x, tap);
        }
        tap.unit(&format!("{path}.out"), &self.out, x)
    }
}

impl Vae {
    /// The images of latents, [N, 3, H, W] in about [-1, 1]. A latent is what the UNet works on divided by
    /// [`SCALING`].
    pub fn decode<T: Tap>(&self, latents: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let x = tap.unit("post_quant_conv", &self.post_quant_conv, latents);
        self.decoder.run("decoder", x, tap)
    }

    /// The moments of the latents of images in [-1, 1]: means, then logarithms of variances, as channels.
    pub fn encode<T: Tap>(&self, images: Tensor<4>, tap: &mut T) -> Tensor<4> {
        let [_, _, height, width] = images.dims();
        let halvings = self.encoder.down_blocks.len() - 1;
        assert!(
            [height, width]
                .iter()
                .all(|side| side % (1 << halvings) == 0),
            "an image of {height} x {width} can be halved {halvings} times"
        );
        let x = self.encoder.run("encoder", images, tap);
        tap.unit("quant_conv", &self.quant_conv, x)
    }
}

impl Size {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> Vae {
        let parts = Parts {
            groups: self.groups,
            epsilon: EPSILON,
            device,
        };
        let (first, last) = (self.widths[0], self.widths[self.widths.len() - 1]);
        let moments = 2 * self.latent;
        let levels = |widths: &[usize], depth: usize, change: Change| -> Vec<Level> {
            let mut from = widths[0];
            let levels = widths.iter().enumerate();
            levels
                .map(|(level, &width)| {
                    let sampler = || parts.sampler(width, change);
                    let changes = level + 1 < widths.len();
                    let doubles = change == Change::Doubled;
                    let mut resnet =
                        |_| parts.resnet(std::mem::replace(&mut from, width), width, None);
                    Level {
                        resnets: (0..depth).map(&mut resnet).collect(),
                        attentions: Vec::new(),
                        downsamplers: (changes && !doubles).then(sampler).into_iter().collect(),
                        upsamplers: (changes && doubles).then(sampler).into_iter().collect(),
                    }
                })
                .collect()
        };
        let middle = || Level {
            resnets: (0..2).map(|_| parts.resnet(last, last, None)).collect(),
            attentions: vec![Attention {
                group_norm: parts.norm(last),
                to_q: parts.linear(last, last),
                to_k: parts.linear(last, last),
                to_v: parts.linear(last, last),
                to_out: parts.linear(last, last),
            }],
            downsamplers: Vec::new(),
            upsamplers: Vec::new(),
        };
        let reversed: Vec<usize> = self.widths.iter().rev().copied().collect();
        Vae {
            encoder: Half {
                conv_in: parts.conv([COLOURS, first], 3),
                down_blocks: levels(self.widths, self.depth, Change::HalvedBehind),
                mid_block: middle(),
                up_blocks: Vec::new(),
                out: parts.out(last, moments),
            },
            decoder: Half {
                conv_in: parts.conv([self.latent, last], 3),
                down_blocks: Vec::new(),
                mid_block: middle(),
                up_blocks: levels(&reversed, self.depth + 1, Change::Doubled),
                out: parts.out(first, COLOURS),
            },
            quant_conv: parts.conv([moments; 2], 1),
            post_quant_conv: parts.conv([self.latent; 2], 1),
        }
    }
}

impl Network for Vae {
    /// Latents and images, which have nothing to do with each other.
    type Input = (Tensor<4>, Tensor<4>);
    /// The latents decoded, and the moments of the images.
    type Output = (Tensor<4>, Tensor<4>);

    fn run<T: Tap>(&self, (latents, images): Self::Input, tap: &mut T) -> Self::Output {
        (self.decode(latents, tap), self.encode(images, tap))
    }

    /// diffusers names the parts of both networks alike.
    fn key(&self, path: &str) -> String {
        unet::key(path)
    }

    fn key_in(&self, layout: Layout, path: &str) -> Option<String> {
        (layout == Layout::DiffusersFirst).then(|| first_key(&self.key(path)))
    }

    /// There is no batch norm.
    fn fold(self) -> Self {
        self
    }
}

/// The first name of what diffusers calls `key` now: the attention's layers were once called otherwise.
fn first_key(key: &str) -> String {
    let Some((attention, layer)) = key.split_once(".attentions.0.") else {
        return key.to_owned();
    };
    let renamed = [
        ("to_q.", "query."),
        ("to_k.", "key."),
        ("to_v.", "value."),
        ("to_out.0.", "proj_attn."),
    ]
    .iter()
    .find_map(|(now, then)| Some(format!("{then}{}", layer.strip_prefix(now)?)));
    let layer = renamed.unwrap_or_else(|| layer.to_owned());
    format!("{attention}.attentions.0.{layer}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Bare;
    use crate::weights::{Container, Source, Stored, load_network, save, write_stored};
    use std::collections::BTreeMap;

    #[test]
    fn keys_are_the_checkpoints() {
        let network = SIZES[1].init(&Device::flex());
        let attention = "decoder.mid_block.attentions.0";
        for (path, expected, first) in [
            (
                "encoder.out.norm.weight",
                "encoder.conv_norm_out.weight",
                None,
            ),
            ("decoder.out.conv.bias", "decoder.conv_out.bias", None),
            ("quant_conv.weight", "quant_conv.weight", None),
            (
                "encoder.down_blocks.0.downsamplers.0.conv.weight",
                "encoder.down_blocks.0.downsamplers.0.conv.weight",
                None,
            ),
            (
                &format!("{attention}.group_norm.bias"),
                &format!("{attention}.group_norm.bias"),
                None,
            ),
            (
                &format!("{attention}.to_out.weight"),
                &format!("{attention}.to_out.0.weight"),
                Some(format!("{attention}.proj_attn.weight")),
            ),
            (
                &format!("{attention}.to_k.bias"),
                &format!("{attention}.to_k.bias"),
                Some(format!("{attention}.key.bias")),
            ),
        ] {
            assert_eq!(network.key(path), expected);
            let first = first.unwrap_or_else(|| expected.to_owned());
            assert_eq!(network.key_in(Layout::DiffusersFirst, path), Some(first));
        }
    }

    /// Older files name the attention otherwise, and some of them store its layers as convolutions.
    #[test]
    fn first_names_are_read() {
        let device = Device::flex();
        let (folder, network) = (tempfile::tempdir().unwrap(), SIZES[1].init(&device));
        let now = folder.path().join("now.safetensors");
        save(&network, |path| network.key(path), &now, &BTreeMap::new()).unwrap();
        let stored = Container::open(&now).unwrap();
        let older = stored.entries().iter().map(|(key, entry)| {
            let first = first_key(key);
            let mut shape = entry.shape.clone();
            if first != *key && shape.len() == 2 {
                shape.extend([1, 1]);
            }
            Stored {
                key: first,
                dtype: entry.dtype,
                shape,
                bytes: stored.raw(key).unwrap(),
            }
        });
        let older: Vec<Stored> = older.collect();
        assert!(
            older
                .iter()
                .any(|tensor| tensor.key.ends_with("value.bias"))
        );
        let then = folder.path().join("then.safetensors");
        write_stored(&then, &older, &BTreeMap::new()).unwrap();
        let source = Container::open(&then).unwrap();
        let read = load_network(SIZES[1].init(&device), &source).unwrap();
        let input = || {
            (
                Tensor::ones([1, 4, 4, 4], &device),
                Tensor::ones([1, 3, 8, 8], &device),
            )
        };
        let (decoded, moments) = network.run(input(), &mut Bare::default());
        let (again, moments_again) = read.run(input(), &mut Bare::default());
        assert_eq!(decoded.into_data(), again.into_data());
        assert_eq!(moments.into_data(), moments_again.into_data());
    }

    #[test]
    #[should_panic(expected = "can be halved 1 times")]
    fn an_image_that_cannot_be_halved_is_refused() {
        let device = Device::flex();
        let network = SIZES[1].init(&device);
        network.encode(Tensor::zeros([1, 3, 7, 8], &device), &mut Bare::default());
    }
}

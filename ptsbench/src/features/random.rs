//! A small convolutional network with random weights, whose features the built-in images are compared by.
//!
//! Features of a network that was trained on other images say little about images unlike those; random ones rank generators
//! better there (Naeem et al. 2020, arXiv 2002.09797, section 4.2). They also cost no training and no file.

use burn::module::Param;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::activation::relu;
use burn::tensor::module::avg_pool2d;
use burn::tensor::ops::AvgPoolOptions;
use burn::tensor::{Device, Tensor, TensorData};
use model_zoo::tap::Bare;
use model_zoo::unit::Unit;
use sha2::{Digest, Sha256};

use crate::seed::Seed;

/// What the network is called.
pub const NAME: &str = "random_conv";
/// Of its weights: raised whenever one of them may change.
const VERSION: u32 = 1;
/// Channels of the image, then of each convolution.
const CHANNELS: [usize; 4] = [3, 32, 64, 96];
/// Features of an image: fewer than half of the images that the micro suite draws, so that their covariance has full rank.
pub const FEATURES: usize = CHANNELS[CHANNELS.len() - 1];

/// The weights of a convolution of 3 x 3, uniform with variance 2 / inputs (He et al. 2015, arXiv 1502.01852, Eq. 10).
/// Integers and one square root make them, so they are the same on every machine.
fn weights(inputs: usize, outputs: usize) -> Vec<f32> {
    let mut stream = Seed(0).stream(&format!("{NAME}.v{VERSION}.{inputs}.{outputs}"));
    let read = inputs * 9;
    let bound = (6.0 / read as f32).sqrt();
    let drawn = (0..outputs * read).map(|_| (2.0 * stream.unit() - 1.0) * bound);
    drawn.collect()
}

fn layers() -> impl Iterator<Item = (usize, usize)> {
    CHANNELS.windows(2).map(|pair| (pair[0], pair[1]))
}

/// SHA-256 of all weights.
pub fn sha256() -> String {
    let mut hash = Sha256::new();
    for (inputs, outputs) in layers() {
        for weight in weights(inputs, outputs) {
            hash.update(weight.to_le_bytes());
        }
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Convolutions, each followed by a ReLU; places are halved by averages in between.
pub struct RandomConv(Vec<Conv2d>);

impl RandomConv {
    /// The network.
    pub fn new(device: &Device) -> Self {
        let layer = |(inputs, outputs): (usize, usize)| {
            let mut conv = Conv2dConfig::new([inputs, outputs], [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .with_bias(false)
                .init(device);
            let data = TensorData::new(weights(inputs, outputs), [outputs, inputs, 3, 3]);
            conv.weight = Param::from_tensor(Tensor::from_data(data, device));
            conv
        };
        Self(layers().map(layer).collect())
    }

    /// The deviation over places of each channel of the last convolution, a row per image. Means would be those of the
    /// ground, which most places show: an image without its shape would hardly differ from one with it.
    pub fn run(&self, mut x: Tensor<4>) -> Tensor<2> {
        for (at, conv) in self.0.iter().enumerate() {
            if at > 0 {
                x = avg_pool2d(x, AvgPoolOptions::new([2, 2]).with_stride([2, 2]));
            }
            x = relu(conv.run(x, &mut Bare::default()));
        }
        let x = x.flatten::<3>(2, 3);
        let difference = x.clone() - x.mean_dim(2);
        difference.square().mean_dim(2).sqrt().flatten(1, 2)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use crate::data::decode::Rgb;
    use crate::data::synthetic::{SIDE, generation};
    use crate::features::Extractor;
    use crate::metric::fid::distance_of_features;

    use super::*;

    /// Enough for a covariance of full rank.
    const IMAGES: usize = 256;

    fn real(first: usize) -> Vec<Rgb> {
        (first..first + IMAGES).map(generation::picture).collect()
    }

    /// The distance of images from others of the set.
    fn distance(images: &[Rgb]) -> f64 {
        let extractor = Extractor::random_conv(&Device::flex());
        let features = [real(0).as_slice(), images].map(|images| extractor.features(images));
        distance_of_features(&features[0], &features[1], FEATURES).unwrap()
    }

    fn changed(images: &[Rgb], change: impl Fn(usize, u8) -> u8) -> Vec<Rgb> {
        let one = |image: &Rgb| Rgb {
            pixels: (0..image.pixels.len())
                .map(|at| change(at, image.pixels[at]))
                .collect(),
            ..*image
        };
        images.iter().map(one).collect()
    }

    #[test]
    fn the_weights_are_what_they_were() {
        assert_eq!(&sha256()[..16], "df8f1d57957778f6");
    }

    #[test]
    fn the_more_images_are_one_and_the_same_the_farther_they_are() {
        let others = real(IMAGES);
        let collapsed = |share: usize| -> Vec<Rgb> {
            let mut images = others.clone();
            for at in 0..IMAGES * share / 8 {
                images[at] = others[IMAGES - 1 - at % 2].clone();
            }
            images
        };
        let distances: Vec<f64> = (0..=8).map(|share| distance(&collapsed(share))).collect();
        assert!(distances.is_sorted(), "{distances:?}");
        assert!(distances[8] > 20.0 * distances[0], "{distances:?}");
    }

    #[test]
    fn images_that_lack_something_are_farther_than_others_of_the_set() {
        let others = real(IMAGES);
        let near = distance(&others);
        let row = 3 * SIDE;
        // Everything that a broken generator was seen to do.
        for (what, images) in [
            ("no shape", {
                let mut images = others.clone();
                for image in &mut images {
                    let ground: [u8; 3] = std::array::from_fn(|channel| image.pixels[channel]);
                    image.pixels = ground.repeat(SIDE * SIDE);
                }
                images
            }),
            ("no colour", {
                let mut images = others.clone();
                for image in &mut images {
                    for pixel in image.pixels.chunks_exact_mut(3) {
                        pixel.fill(pixel[1]);
                    }
                }
                images
            }),
            (
                "half the contrast",
                changed(&others, |_, value| 64 + value / 2),
            ),
            (
                "every other row dark",
                changed(&others, |at, value| value / (1 + (at / row % 2) as u8)),
            ),
            ("one ground for all", {
                let mut images = others.clone();
                for image in &mut images {
                    let ground: [u8; 3] = std::array::from_fn(|channel| image.pixels[channel]);
                    for pixel in image.pixels.chunks_exact_mut(3) {
                        if *pixel == ground {
                            pixel.copy_from_slice(&[90, 160, 90]);
                        }
                    }
                }
                images
            }),
        ] {
            let far = distance(&images);
            println!("{what}: {far:.3}, others of the set {near:.3}");
            assert!(far > 5.0 * near, "{what}: {far}, others {near}");
        }
    }
}

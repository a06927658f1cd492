//! VGG (Simonyan and Zisserman 2014, arXiv 1409.1556) as torchvision defines it, with and without batch norm, and the
//! CIFAR form with a narrow classifier.
//!
//! A plain chain has no joins, so the family declares its blocks: the convolutions between two poolings, at most three
//! to a block. Checkpoints number a flat sequence that counts activations, poolings and dropouts too;
//! [`Size::key`] gives those numbers.

use burn::module::Module;
use burn::nn::pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::layer::{Activation, ConvNormAct, ConvNormActConfig, Pool, of_classes};
use crate::unit::{Grain, Layout, Network, Tap, Unit};

/// Convolutions in a block at most.
const BLOCK: usize = 3;

/// Entries of a classifier's layer in the checkpoint's sequence: linear, activation, dropout.
const CLASSIFIER_STEP: usize = 3;

/// One network of the family: a row of the catalog's table.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Channels of the convolutions, by group; a pooling ends each.
    pub groups: &'static [&'static [usize]],
    /// Whether batch norms follow the convolutions.
    pub batch_norm: bool,
    /// Side to which averages bring the last group's result.
    pub side: usize,
    /// Channels of the two hidden linear layers.
    pub hidden: usize,
    /// Classes.
    pub classes: usize,
}

/// A VGG network.
#[derive(Module, Debug)]
pub struct Vgg {
    features: Vec<Run>,
    pool: AdaptiveAvgPool2d,
    classifier: Vec<LinearAct>,
    #[module(skip)]
    size: Size,
}

/// Up to three convolutions in a row.
#[derive(Module, Debug)]
pub struct Run {
    convs: Vec<ConvNormAct>,
}

impl Unit<Tensor<4>> for Run {
    type Out = Tensor<4>;
    const GRAIN: Grain = Grain::Block;

    fn run<T: Tap>(&self, mut x: Tensor<4>, tap: &mut T) -> Tensor<4> {
        for (place, conv) in self.convs.iter().enumerate() {
            x = tap.unit(&format!("convs.{place}"), conv, x);
        }
        x
    }
}

/// A linear layer and, except at the end, a ReLU.
#[derive(Module, Debug)]
pub struct LinearAct {
    linear: Linear,
    relu: bool,
}

impl Unit<Tensor<2>> for LinearAct {
    type Out = Tensor<2>;
    const GRAIN: Grain = Grain::Layer;

    fn run<T: Tap>(&self, x: Tensor<2>, tap: &mut T) -> Tensor<2> {
        let x = tap.unit("linear", &self.linear, x);
        if !self.relu {
            return x;
        }
        let x = kernels::activate(x, Activation::Relu);
        tap.mark("act", &x);
        // Dropout, which does nothing here: it is for training from scratch.
        tap.mark("dropout", &x);
        x
    }
}

impl Size {
    /// A network of this size with random weights.
    pub fn init(&self, device: &Device) -> Vgg {
        let mut channels = 3;
        let features = self
            .runs()
            .map(|run| Run {
                convs: run
                    .iter()
                    .map(|place| {
                        let input = std::mem::replace(&mut channels, place.width);
                        let mut conv = ConvNormActConfig::new([input, place.width], 3, 1).biased();
                        if !self.batch_norm {
                            conv = conv.without_norm();
                        }
                        conv.pool = place.pools.then_some(Pool::Two);
                        conv.init(device)
                    })
                    .collect(),
            })
            .collect();
        let widths = [
            channels * self.side * self.side,
            self.hidden,
            self.hidden,
            self.classes,
        ];
        let classifier = widths
            .windows(2)
            .enumerate()
            .map(|(place, pair)| LinearAct {
                linear: LinearConfig::new(pair[0], pair[1]).init(device),
                relu: place + 2 < widths.len(),
            })
            .collect();
        Vgg {
            features,
            pool: AdaptiveAvgPool2dConfig::new([self.side; 2]).init(),
            classifier,
            size: *self,
        }
    }

    /// The blocks, each with its convolutions.
    fn runs(&self) -> impl Iterator<Item = Vec<Place>> {
        let step = if self.batch_norm { 3 } else { 2 };
        let mut index = 0;
        self.groups.iter().flat_map(move |&group| {
            let places: Vec<Place> = group
                .iter()
                .enumerate()
                .map(|(at, &width)| {
                    let pools = at + 1 == group.len();
                    let place = Place {
                        width,
                        pools,
                        index,
                    };
                    index += step + usize::from(pools);
                    place
                })
                .collect();
            places
                .chunks(BLOCK)
                .map(<[Place]>::to_vec)
                .collect::<Vec<_>>()
        })
    }

    /// The checkpoint's name: in VGG-19 with batch norms `features.1.convs.0.norm.gamma` is `features.8.weight`. A block
    /// and a layer have the name of their first convolution.
    pub fn key(&self, path: &str) -> String {
        let names: Vec<&str> = path.split('.').collect();
        let number = |name: &str| name.parse::<usize>().ok();
        let entry = |run: &str, conv: &str| {
            let place = *self.runs().nth(number(run)?)?.get(number(conv)?)?;
            Some(place.index)
        };
        let norm = usize::from(self.batch_norm);
        let (sequence, entry, rest) = match names[..] {
            ["features", run] => ("features", entry(run, "0"), &[][..]),
            ["features", run, "convs", conv] => ("features", entry(run, conv), &[][..]),
            ["features", run, "convs", conv, part, ..] => {
                let offset = match part {
                    "norm" => norm,
                    "act" => norm + 1,
                    "pool" => norm + 2,
                    _ => 0,
                };
                let entry = entry(run, conv).map(|index| index + offset);
                ("features", entry, &names[5..])
            }
            ["classifier", layer] => {
                let entry = number(layer).map(|layer| CLASSIFIER_STEP * layer);
                ("classifier", entry, &[][..])
            }
            ["classifier", layer, part, ..] => {
                let offset = match part {
                    "act" => 1,
                    "dropout" => 2,
                    _ => 0,
                };
                let entry = number(layer).map(|layer| CLASSIFIER_STEP * layer + offset);
                ("classifier", entry, &names[3..])
            }
            _ => return path.to_owned(),
        };
        let Some(entry) = entry else {
            return path.to_owned();
        };
        let mut key = format!("{sequence}.{entry}");
        for name in rest {
            key.push('.');
            key.push_str(match *name {
                "gamma" => "weight",
                "beta" => "bias",
                name => name,
            });
        }
        key
    }
}

/// A convolution's place in the checkpoint's sequence.
#[derive(Debug, Clone, Copy)]
struct Place {
    width: usize,
    /// Whether a pooling follows.
    pools: bool,
    index: usize,
}

impl Network for Vgg {
    type Input = Tensor<4>;
    type Output = Tensor<2>;

    fn run<T: Tap>(&self, mut x: Tensor<4>, tap: &mut T) -> Tensor<2> {
        for (place, run) in self.features.iter().enumerate() {
            x = tap.unit(&format!("features.{place}"), run, x);
        }
        let x = self.pool.forward(x);
        tap.mark("avgpool", &x);
        let mut x = x.flatten(1, 3);
        for (place, layer) in self.classifier.iter().enumerate() {
            x = tap.unit(&format!("classifier.{place}"), layer, x);
        }
        x
    }

    fn key(&self, path: &str) -> String {
        self.size.key(path)
    }

    /// timm writes the hidden layers of the classifier as convolutions over what the features end in.
    fn key_in(&self, layout: Layout, path: &str) -> Option<String> {
        let key = self.size.key(path);
        match layout {
            Layout::Timm => {
                let places = [
                    ("classifier.0.", "pre_logits.fc1."),
                    ("classifier.3.", "pre_logits.fc2."),
                    ("classifier.6.", "head.fc."),
                ];
                let renamed = places.iter().find_map(|(ours, theirs)| {
                    Some(format!("{theirs}{}", key.strip_prefix(ours)?))
                });
                Some(renamed.unwrap_or(key))
            }
            Layout::Torchvision => Some(key),
            Layout::TorchvisionFirst | Layout::DiffusersFirst => None,
        }
    }

    fn classifier(&self) -> Option<String> {
        let last = self.classifier.len().checked_sub(1)?;
        Some(format!("classifier.{last}.linear"))
    }

    fn with_classes(mut self, classes: usize) -> Self {
        if let Some(last) = self.classifier.last_mut() {
            last.linear = of_classes(&last.linear, classes);
        }
        self.size.classes = classes;
        self
    }

    fn fold(mut self) -> Self {
        for run in &mut self.features {
            run.convs = std::mem::take(&mut run.convs)
                .into_iter()
                .map(ConvNormAct::fold)
                .collect();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: &[&[usize]] = &[&[64; 2], &[128; 2], &[256; 4], &[512; 4], &[512; 4]];

    fn size(batch_norm: bool) -> Size {
        Size {
            groups: GROUPS,
            batch_norm,
            side: 7,
            hidden: 4096,
            classes: 1000,
        }
    }

    #[test]
    fn keys_are_the_checkpoints() {
        for (path, plain, normed) in [
            (
                "features.0.convs.0.conv.weight",
                "features.0.weight",
                "features.0.weight",
            ),
            (
                "features.0.convs.1.conv.bias",
                "features.2.bias",
                "features.3.bias",
            ),
            ("features.1.convs.0.conv", "features.5", "features.7"),
            (
                "features.3.convs.0.conv.weight",
                "features.16.weight",
                "features.23.weight",
            ),
            ("features.3.convs.0.pool", "features.18", "features.26"),
            (
                "features.7.convs.0.conv.weight",
                "features.34.weight",
                "features.49.weight",
            ),
            (
                "classifier.1.linear.weight",
                "classifier.3.weight",
                "classifier.3.weight",
            ),
            (
                "classifier.2.linear.bias",
                "classifier.6.bias",
                "classifier.6.bias",
            ),
        ] {
            assert_eq!(size(false).key(path), plain);
            assert_eq!(size(true).key(path), normed);
        }
        assert_eq!(
            size(true).key("features.1.convs.0.norm.gamma"),
            "features.8.weight"
        );
        assert_eq!(
            size(true).key("features.1.convs.0.norm.running_var"),
            "features.8.running_var"
        );
    }

    #[test]
    fn blocks_end_at_poolings_and_after_three_convolutions() {
        let lengths: Vec<usize> = size(true).runs().map(|run| run.len()).collect();
        assert_eq!(lengths, [2, 2, 3, 1, 3, 1, 3, 1]);
    }
}

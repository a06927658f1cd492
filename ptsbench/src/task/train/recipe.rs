//! The recipes of the built-in networks: what decides their weights, besides the network and the machine.

use serde::{Deserialize, Serialize};

use crate::data::synthetic::{self, MicroSet, Split, detection, generation};
use crate::descent::warm_cosine;

/// The built-in network that teaches.
pub const TEACHER: &str = "micro_resnet20";

/// All that decides the outcome of a training run, besides the network and the machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of the images ([`synthetic::VERSION`]).
    pub data: u32,
    /// Seed of initial weights, order and augmentation.
    pub seed: u64,
    /// Training images of an epoch: the first ones of the stream, which begins with the training split.
    pub images: usize,
    /// How often the stream goes on to as many new images before it begins again; absent for once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
    /// Passes over them.
    pub epochs: usize,
    /// Images in a step; what is left of an epoch is dropped.
    pub batch: usize,
    /// Largest learning rate.
    pub lr: f64,
    /// Momentum, without dampening.
    pub momentum: f64,
    /// Decay of every parameter, added to its gradient.
    pub decay: f64,
    /// Decay of the second moment, where the optimizer is AdamW and the network no transformer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta2: Option<f64>,
    /// What a transformer is trained with instead. Absent elsewhere, so that older files still state their recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transformer: Option<Transformer>,
}

/// What differs for a transformer: AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), whose first moment decays by
/// [`Recipe::momentum`]; [`Recipe::decay`] shrinks matrices and kernels alone, by the learning rate's part of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transformer {
    /// Decay of the second moment.
    pub beta2: f64,
    /// Epochs in which the rate rises.
    pub warm_up: usize,
    /// Part of the target spread over all classes.
    pub smoothing: f64,
    /// Probability that a rectangle of a training image is erased (Zhong et al. 2017, arXiv 1708.04896).
    pub erasing: f64,
    /// Whether [`TEACHER`]'s answers are half of the target (Touvron et al. 2021, arXiv 2012.12877, Eq. 3): hard labels, and
    /// no token of their own. Absent for no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub distilled: bool,
}

impl Recipe {
    /// The recipe of the built-in networks but for its length.
    pub(super) const MICRO: Self = Self {
        data: synthetic::VERSION,
        seed: 0,
        images: MicroSet::TRAIN.len(),
        blocks: None,
        epochs: 20,
        batch: 100,
        lr: 0.1,
        momentum: 0.9,
        decay: 5e-4,
        beta2: None,
        transformer: None,
    };

    /// The detectors': new scenes in every epoch.
    const DETECTOR: Self = Self {
        data: detection::VERSION,
        images: detection::pictures(Split::Train),
        blocks: Some(20),
        epochs: 20,
        batch: 16,
        lr: 1e-3,
        decay: 0.05,
        beta2: Some(0.99),
        ..Self::MICRO
    };

    /// The generators': new images in every epoch, as noise and timesteps are.
    const GENERATOR: Self = Self {
        data: generation::VERSION,
        images: generation::LEN,
        blocks: Some(16),
        epochs: 16,
        batch: 64,
        lr: 1e-3,
        decay: 0.01,
        beta2: Some(0.99),
        ..Self::MICRO
    };

    /// The recipe of a built-in network. Transformers see new images in every epoch, unless their name says how many there
    /// are; a DeiT differs from a ViT by its teacher alone.
    pub fn micro(name: &str) -> Self {
        if name.starts_with("micro_retinanet") || name.starts_with("micro_ssd") {
            return Self::DETECTOR;
        }
        if name.starts_with("micro_unet") {
            return Self::GENERATOR;
        }
        let distilled = name.starts_with("micro_deit");
        if !distilled && !name.starts_with("micro_vit") {
            return Self::MICRO;
        }
        const EPOCHS: usize = 64;
        let blocks = match name {
            _ if name.ends_with("_20k") => None,
            _ if name.ends_with("_160k") => Some(8),
            _ => Some(EPOCHS),
        };
        Self {
            blocks,
            epochs: EPOCHS,
            batch: 64,
            lr: 1.5e-3,
            decay: 0.05,
            transformer: Some(Transformer {
                beta2: 0.99,
                warm_up: 1,
                smoothing: 0.0,
                erasing: 0.0,
                distilled,
            }),
            ..Self::MICRO
        }
    }

    /// Steps in an epoch.
    pub const fn steps(&self) -> usize {
        self.images / self.batch
    }

    /// The decay of AdamW's second moment; none where the optimizer is SGD.
    pub fn second_moment(&self) -> Option<f64> {
        self.transformer.map(|t| t.beta2).or(self.beta2)
    }

    /// The first image of an epoch, counted from 1.
    pub fn first(&self, epoch: usize) -> usize {
        (epoch - 1) % self.blocks.unwrap_or(1).max(1) * self.images
    }

    /// The learning rate of a step, counted over the whole run: up a line for one epoch, then down half a cosine.
    pub fn rate(&self, step: usize) -> f64 {
        let warm_up = self.transformer.map_or(1, |t| t.warm_up);
        let (rise, all) = (warm_up * self.steps(), self.epochs * self.steps());
        warm_cosine(self.lr, step, rise, all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_for_an_epoch_and_falls_to_nothing() {
        let recipe = Recipe {
            images: 20_000,
            epochs: 5,
            batch: 200,
            ..Recipe::MICRO
        };
        let rates: Vec<f64> = (0..500).map(|step| recipe.rate(step)).collect();
        assert_eq!(rates[0], recipe.lr / 100.0);
        assert_eq!(rates[99], recipe.lr);
        assert!((rates[300] - recipe.lr / 2.0).abs() < 1e-12);
        assert!(rates[499] < recipe.lr * 1e-4);
        assert!(rates[..100].is_sorted() && rates[99..].is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn epochs_take_turns_over_the_blocks_of_the_stream() {
        let firsts = |blocks| {
            let recipe = Recipe {
                images: 100,
                blocks,
                ..Recipe::MICRO
            };
            (1..=5).map(|epoch| recipe.first(epoch)).collect::<Vec<_>>()
        };
        assert_eq!(firsts(None), [0; 5]);
        assert_eq!(firsts(Some(1)), [0; 5]);
        assert_eq!(firsts(Some(3)), [0, 100, 200, 0, 100]);
    }

    #[test]
    fn recipes_of_older_files_are_still_read() {
        let plain = r#"{"data":1,"seed":0,"images":20000,"epochs":20,"batch":100,"lr":0.1,"momentum":0.9,"decay":0.0005}"#;
        let recipe: Recipe = serde_json::from_str(plain).unwrap();
        assert_eq!(recipe, Recipe::MICRO);
        assert_eq!(serde_json::to_string(&recipe).unwrap(), plain);

        let adamw = r#"{"data":1,"seed":0,"images":20000,"epochs":24,"batch":64,"lr":0.0015,"momentum":0.9,"decay":0.05,"transformer":{"beta2":0.99,"warm_up":1,"smoothing":0.0,"erasing":0.0}}"#;
        let recipe: Recipe = serde_json::from_str(adamw).unwrap();
        assert_eq!((recipe.blocks, recipe.epochs), (None, 24));
        assert_eq!(serde_json::to_string(&recipe).unwrap(), adamw);
    }

    #[test]
    fn pairs_differ_in_one_respect() {
        let vit = Recipe::micro("micro_vit_nano");
        assert_eq!(vit.blocks, Some(vit.epochs));
        for (name, blocks) in [
            ("micro_vit_nano_20k", None),
            ("micro_vit_nano_160k", Some(8)),
        ] {
            assert_eq!(
                Recipe {
                    blocks: vit.blocks,
                    ..Recipe::micro(name)
                },
                vit
            );
            assert_eq!(Recipe::micro(name).blocks, blocks);
        }
        let mut deit = Recipe::micro("micro_deit_nano");
        assert!(std::mem::take(
            &mut deit.transformer.as_mut().unwrap().distilled
        ));
        assert_eq!(deit, vit);
        assert_eq!(Recipe::micro("micro_mobilenetv3_plain"), Recipe::MICRO);
    }
}

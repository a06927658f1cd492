//! What stands around the UNet of Stable Diffusion: a text encoder with its tokenizer, and an autoencoder, in the folders of
//! a diffusers pipeline beside the UNet's.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use model_zoo::catalog::Spec;
use model_zoo::clip_text::{self, ClipText};
use model_zoo::tap::Bare;
use model_zoo::tokenizer::{Tokenizer, TokenizerError};
use model_zoo::vae::{self, Vae};
use model_zoo::weights::{self, WeightError};
use model_zoo::{Fixed, Network};
use sha2::{Digest, Sha256};

use crate::own;

/// Channels of an image: a network that takes as many needs no autoencoder.
const COLOURS: usize = 3;

/// Names under which pipelines store a part's weights.
const WEIGHTS: [&str; 4] = [
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
];

/// The tokenizer's files.
const TOKENIZER: [&str; 2] = ["vocab.json", "merges.txt"];

/// Width of the contexts of Stable Diffusion 1.x.
const FIRST_WIDTH: usize = 768;

/// The networks that stand around a UNet: its name, the autoencoder's, the text encoder's.
const AROUND: [[&str; 3]; 2] = [
    ["sd2_unet", "sd2_vae", "sd2_text_encoder"],
    ["tiny_unet", "tiny_vae", "tiny_unet_text_encoder"],
];

/// Why what stands around a network cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// A part is not there.
    #[error(
        "{}: the {part} of `{model}` is missing: no {expected}; give the weights as the file in unet/ of a whole diffusers pipeline, which has vae/, text_encoder/ and tokenizer/ beside it",
        place.display()
    )]
    Missing {
        /// The network.
        model: &'static str,
        /// Which part.
        part: &'static str,
        /// Where it should be.
        place: PathBuf,
        /// What should be there.
        expected: String,
    },
    /// Nobody knows what stands around this network.
    #[error(
        "`{model}` works on latents or contexts, and what makes them is not known; choose another model (`ptsbench list models`)"
    )]
    Unknown {
        /// The network.
        model: &'static str,
    },
    /// The UNet is of another generation.
    #[error(
        "{file}: `{key}` takes contexts of {FIRST_WIDTH}, which are those of Stable Diffusion 1.x, and `{model}` takes {expected}; give the UNet of Stable Diffusion 2 (stable-diffusion-2-base)"
    )]
    FirstGeneration {
        /// The file.
        file: String,
        /// A layer of the cross-attention.
        key: String,
        /// The network.
        model: &'static str,
        /// The width that it takes.
        expected: usize,
    },
    /// A weight file is bad.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The tokenizer is bad.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// The files around a network.
#[derive(Debug, Clone)]
pub struct Parts {
    autoencoder: Option<(&'static vae::Size, PathBuf)>,
    text: Option<(&'static clip_text::Size, PathBuf, PathBuf)>,
    /// SHA-256 of all of them.
    pub sha256: String,
}

/// The folder of a part, which is beside the weight file's or in it, and must hold one of these files.
fn part(
    spec: &Spec,
    weights: &Path,
    name: &'static str,
    folder: &str,
    files: &[&str],
) -> Result<PathBuf, PartsError> {
    let own = weights.parent().unwrap_or(Path::new(""));
    let beside = own.parent().unwrap_or(Path::new(""));
    let places = [beside.join(folder), own.join(folder)];
    let found = places
        .iter()
        .flat_map(|place| files.iter().map(move |file| place.join(file)))
        .find(|file| file.is_file());
    found.ok_or_else(|| PartsError::Missing {
        model: spec.name,
        part: name,
        place: places.into_iter().next().unwrap_or_default(),
        expected: files.join(" or "),
    })
}

impl Parts {
    /// What stands around the network of a weight file; none where it makes images of noise alone.
    pub fn find(spec: &Spec, weights: &Path) -> Result<Option<Self>, PartsError> {
        let (decodes, reads) = (spec.input[0] != COLOURS, spec.context().is_some());
        if !decodes && !reads {
            return Ok(None);
        }
        let around = AROUND.iter().find(|[model, ..]| *model == spec.name);
        let Some([_, autoencoder, encoder]) = around else {
            return Err(PartsError::Unknown { model: spec.name });
        };
        second_generation(spec, weights)?;
        let mut files = Vec::new();
        let autoencoder = match vae::SIZES.iter().find(|size| size.name == *autoencoder) {
            Some(size) if decodes => {
                let file = part(spec, weights, "autoencoder", "vae", &WEIGHTS)?;
                files.push(file.clone());
                Some((size, file))
            }
            _ => None,
        };
        let text = match clip_text::SIZES.iter().find(|size| size.name == *encoder) {
            Some(size) if reads => {
                let file = part(spec, weights, "text encoder", "text_encoder", &WEIGHTS)?;
                let tokenizer =
                    TOKENIZER.map(|name| part(spec, weights, "tokenizer", "tokenizer", &[name]));
                files.push(file.clone());
                let mut folder = PathBuf::new();
                for name in tokenizer {
                    let name = name?;
                    folder = name.parent().map(Path::to_owned).unwrap_or_default();
                    files.push(name);
                }
                Some((size, file, folder))
            }
            _ => None,
        };
        let mut hash = Sha256::new();
        for file in &files {
            hash.update(weights::sha256(file)?);
        }
        let sha256 = hash.finalize();
        Ok(Some(Self {
            autoencoder,
            text,
            sha256: sha256.iter().map(|b| format!("{b:02x}")).collect(),
        }))
    }

    /// The networks of these files.
    pub fn open(&self, device: &Device) -> Result<Opened, PartsError> {
        let autoencoder = match &self.autoencoder {
            Some((size, file)) => {
                let source = own::open(file)?;
                Some(weights::load_network(size.init(device), source.as_ref())?)
            }
            None => None,
        };
        let text = match &self.text {
            Some((size, file, tokenizer)) => {
                let source = own::open(file)?;
                let encoder = weights::load_network(size.init(device), source.as_ref())?;
                Some((encoder, Tokenizer::open(tokenizer)?))
            }
            None => None,
        };
        Ok(Opened { autoencoder, text })
    }
}

/// Refuses a UNet whose cross-attention is as wide as the first generation's.
fn second_generation(spec: &Spec, weights: &Path) -> Result<(), PartsError> {
    let Some([_, expected]) = spec.context() else {
        return Ok(());
    };
    let source = own::open(weights)?;
    let keys = source.keys().into_iter();
    let first = keys
        .filter(|key| key.ends_with("attn2.to_k.weight"))
        .find(|key| {
            source
                .shape(key)
                .is_some_and(|shape| shape.last() == Some(&FIRST_WIDTH))
        });
    match first {
        Some(key) if expected != FIRST_WIDTH => Err(PartsError::FirstGeneration {
            file: source.origin(),
            key,
            model: spec.name,
            expected,
        }),
        _ => Ok(()),
    }
}

/// The networks around a network.
#[derive(Debug, Default)]
pub struct Opened {
    autoencoder: Option<Vae>,
    text: Option<(ClipText, Tokenizer)>,
}

impl Opened {
    /// The contexts of texts, and how many tokens of each found no room; none where the network takes no context.
    pub fn contexts(&self, texts: &[&str]) -> Option<(Tensor<3>, Vec<usize>)> {
        let (encoder, tokenizer) = self.text.as_ref()?;
        let encoded = texts.iter().map(|text| tokenizer.encode(text));
        let (ids, left_out): (Vec<_>, Vec<_>) = encoded.map(|one| (one.ids, one.left_out)).unzip();
        let contexts = encoder.run(Fixed(ids), &mut Bare::default());
        Some((contexts, left_out))
    }

    /// How many tokens of a text find no room.
    pub fn left_out(&self, text: &str) -> usize {
        let tokenizer = self.text.as_ref().map(|(_, tokenizer)| tokenizer);
        tokenizer.map_or(0, |tokenizer| tokenizer.encode(text).left_out)
    }

    /// Images of what a network made, in about [-1, 1].
    pub fn images(&self, made: Tensor<4>) -> Tensor<4> {
        match &self.autoencoder {
            Some(autoencoder) => {
                autoencoder.decode(made.div_scalar(vae::SCALING), &mut Bare::default())
            }
            None => made,
        }
    }
}

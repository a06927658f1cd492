//! What stands around the UNet of Stable Diffusion: a text encoder with its tokenizer, and an autoencoder, in the folders of
//! a diffusers pipeline beside the UNet's.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use model_zoo::catalog::Spec;
use model_zoo::clip_text::{self, ClipText};
use model_zoo::diffusion::sampler::Prediction;
use model_zoo::file;
use model_zoo::tap::Bare;
use model_zoo::tokenizer::{Tokenizer, TokenizerError};
use model_zoo::vae::{self, Vae};
use model_zoo::weights::{self, WeightError};
use model_zoo::{Fixed, Network};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::recipe::Recipe;
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

/// The file that says how noise grows, and its bytes at most; published ones have half a thousand.
const SCHEDULER: &str = "scheduler_config.json";
const SCHEDULER_LIMIT: u64 = 1 << 20;

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
    /// The pipeline's noise grows otherwise than any that is known here.
    #[error(
        "{}: `{key}` is {found}, and `{model}` is known with {expected}; give the pipeline as it was published",
        file.display()
    )]
    Scheduler {
        /// The scheduler's configuration.
        file: PathBuf,
        /// Which entry.
        key: &'static str,
        /// The network.
        model: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The scheduler's configuration cannot be read.
    #[error("{}: {problem}; give the pipeline as it was published", file.display())]
    Configuration {
        /// The file.
        file: PathBuf,
        /// Why not.
        problem: String,
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
    /// What the network was trained to say, where the pipeline tells.
    pub prediction: Option<Prediction>,
    /// SHA-256 of all of them.
    pub sha256: String,
}

/// Where the folder of a part may be: beside the weight file's, or in it.
fn places(weights: &Path, folder: &str) -> [PathBuf; 2] {
    let own = weights.parent().unwrap_or(Path::new(""));
    // A file's name alone is one in the working folder.
    let beside = match own == Path::new("") {
        true => Path::new(".."),
        false => own.parent().unwrap_or(Path::new("")),
    };
    [beside.join(folder), own.join(folder)]
}

/// A part's file of one of these names.
fn part(
    spec: &Spec,
    weights: &Path,
    name: &'static str,
    folder: &str,
    files: &[&str],
) -> Result<PathBuf, PartsError> {
    let places = places(weights, folder);
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
            prediction: prediction(spec, weights)?,
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

/// What the pipeline's scheduler says that the network predicts; nothing where there is none. Its noise must grow as Stable
/// Diffusion's does.
fn prediction(spec: &Spec, weights: &Path) -> Result<Option<Prediction>, PartsError> {
    let places = places(weights, "scheduler").map(|place| place.join(SCHEDULER));
    let Some(path) = places.into_iter().find(|path| path.is_file()) else {
        return Ok(None);
    };
    let bad = |problem: String| PartsError::Configuration {
        file: path.clone(),
        problem,
    };
    let text = file::read_text(&path, SCHEDULER_LIMIT).map_err(|error| bad(error.to_string()))?;
    let values: Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let other = |key: &'static str, expected: String| PartsError::Scheduler {
        file: path.clone(),
        key,
        model: spec.name,
        expected,
        found: values[key].to_string(),
    };
    for (key, expected) in [
        ("num_train_timesteps", json!(1000)),
        ("beta_schedule", json!("scaled_linear")),
        ("beta_start", json!(0.00085)),
        ("beta_end", json!(0.012)),
    ] {
        if values.get(key).is_some_and(|found| *found != expected) {
            return Err(other(key, expected.to_string()));
        }
    }
    let key = "prediction_type";
    match values.get(key).map(Value::as_str) {
        None => Ok(None),
        Some(Some("epsilon")) => Ok(Some(Prediction::Epsilon)),
        Some(Some("v_prediction")) => Ok(Some(Prediction::Velocity)),
        Some(_) => Err(other(key, "\"epsilon\" or \"v_prediction\"".to_owned())),
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

impl Recipe {
    /// With what stands around the network, which may know what the network was trained to say.
    pub fn with(mut self, parts: Option<&Parts>) -> Self {
        self.parts = parts.map(|parts| parts.sha256.clone());
        if let Some(prediction) = parts.and_then(|parts| parts.prediction) {
            self.process.prediction = prediction;
        }
        self
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model_zoo::catalog;
    use model_zoo::weights::{Named, write};

    use super::*;

    /// A folder with a UNet's file in which the cross-attention takes contexts of this width.
    fn pipeline(width: usize) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("unet")).unwrap();
        let file = folder.path().join("unet/model.safetensors");
        let layer = Named {
            key: "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight".to_owned(),
            shape: vec![2, width],
            values: vec![0.5; 2 * width],
        };
        write(&file, &[layer], &BTreeMap::new()).unwrap();
        (folder, file)
    }

    fn find(model: &str, file: &Path) -> Result<Option<Parts>, String> {
        let spec = catalog::find(model).unwrap();
        Parts::find(spec, file).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_missing_is_named() {
        let (_folder, file) = pipeline(1024);
        assert!(find("micro_unet_s", &file).unwrap().is_none());
        let error = find("sd2_unet", &file).unwrap_err();
        assert!(error.contains("the autoencoder of `sd2_unet`"), "{error}");
    }

    #[test]
    fn the_first_generation_is_recognised_by_its_contexts() {
        let (_folder, file) = pipeline(768);
        let error = find("sd2_unet", &file).unwrap_err();
        for part in ["attn2.to_k.weight", "768", "1.x", "takes 1024"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_scheduler_says_what_is_predicted() {
        let (folder, file) = pipeline(1024);
        let spec = catalog::find("sd2_unet").unwrap();
        let found = || prediction(spec, &file).map_err(|error| error.to_string());
        assert_eq!(found(), Ok(None));
        std::fs::create_dir(folder.path().join("scheduler")).unwrap();
        let path = folder.path().join("scheduler").join(SCHEDULER);
        let says = |text: &str| {
            std::fs::write(&path, text).unwrap();
            found()
        };
        assert_eq!(says("{}"), Ok(None));
        let velocity = r#"{"prediction_type": "v_prediction", "beta_end": 0.012}"#;
        assert_eq!(says(velocity), Ok(Some(Prediction::Velocity)));
        for (text, said) in [
            (
                r#"{"beta_schedule": "linear"}"#,
                "`beta_schedule` is \"linear\"",
            ),
            (
                r#"{"prediction_type": "sample"}"#,
                "`prediction_type` is \"sample\"",
            ),
            ("{", SCHEDULER),
        ] {
            let error = says(text).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}

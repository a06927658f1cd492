//! `ptsbench infer`: what a network takes images for, or finds on them.
//!
//! An image that cannot be read costs a line, not the run: the others are looked at, the unreadable ones are counted,
//! and the exit code says whether there were any.

mod boxes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use burn::tensor::{Tensor, TensorData};
use model_zoo::catalog::{OtherModality, Spec, Visit, Weights};
use model_zoo::file;
use model_zoo::tap::Bare;
use model_zoo::{Boxes, Classes, Classifier, Noise, Of, Tokens};
use serde::Serialize;

use super::evaluate::weight_file;
use crate::cell::BatchNorm;
use crate::data::decode::{self, Rotation};
use crate::data::limits;
use crate::data::recipe::Recipe;
use crate::data::recipe_file::Own;
use crate::data::synthetic;
use crate::device::{self, Choice, Chosen};
use crate::interrupt;
use crate::metric::top_k::{TopKError, first};
use crate::own;
use crate::pipeline::open_dense;
use crate::subject;
use crate::task::classify::{classes, takes};
use crate::{note, outln};

/// Classes named for each image.
const NAMED: usize = 5;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model's name in the catalog
    pub model: String,
    /// JPEG, PNG or WebP files
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    /// The model's weight file [default: the built-in one]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// How pictures become inputs: timm's config.json, transformers' preprocessor_config.json, or a TOML file
    /// (docs/weights.md) [default: the first of those beside the file of --weights, else the catalog's]
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Names of the classes, a line each [default: those of the recipe's file, those of the built-in networks, COCO's or VOC's
    /// for the published detectors, numbers elsewhere]
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Only boxes with this score or more (of networks that find boxes)
    #[arg(long, value_name = "SCORE", default_value_t = 0.3)]
    pub score: f32,
    /// Write each picture with its boxes drawn on it into this folder, as PNG (of networks that find boxes)
    #[arg(long, value_name = "FOLDER")]
    pub draw: Option<PathBuf>,
    /// The device to compute on
    #[arg(long, value_enum, default_value_t)]
    pub device: Choice,
    /// Folder of the built-in networks
    #[arg(long, value_name = "DIR", default_value = "assets")]
    pub assets: PathBuf,
    /// Print JSON, an object per image
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let named = own::named(&args.model)?;
    let spec = named.spec;
    let file = weight_file(&named, args.weights.clone(), &args.assets)?;
    let own = own::recipe_file(spec, args.recipe.as_deref(), args.weights.as_deref())?;
    if let (Some(folder), None) = (&args.draw, spec.head()) {
        anyhow::bail!(
            "--draw {}: `{}` finds no boxes that could be drawn; leave it out",
            folder.display(),
            spec.name
        );
    }
    let chosen = device::choose(args.device)?;
    interrupt::install("pictures that are drawn already stay")?;
    let infer = Infer {
        args: &args,
        file: &file,
        own: own.as_ref(),
        chosen: &chosen,
    };
    let unreadable = spec.open(&chosen.device, infer)?;
    if unreadable == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let count = args.images.len();
    note!(
        "{unreadable} of {count} {} could not be read",
        if count == 1 { "image" } else { "images" }
    );
    Ok(ExitCode::FAILURE)
}

/// The names of the classes.
fn labels(
    args: &Args,
    spec: &Spec,
    own: Option<&Own>,
    classes: usize,
) -> anyhow::Result<Vec<String>> {
    let Some(path) = &args.labels else {
        if let Some((names, own)) = own.and_then(|own| Some((own.labels.as_ref()?, own))) {
            if names.len() == classes {
                return Ok(names.clone());
            }
            note!(
                "warning: {} names {} classes, and the network has {classes}: the names are not used",
                own.from.display(),
                names.len()
            );
        }
        if spec.weights == Weights::BuiltIn && classes == synthetic::CLASSES {
            return Ok(synthetic::CLASS_NAMES.map(str::to_owned).to_vec());
        }
        return Ok((0..classes).map(|class| format!("class {class}")).collect());
    };
    let names = names_of(path)?;
    anyhow::ensure!(
        names.len() == classes,
        "{}: {} lines, and {} has {classes} classes; give one name per line, in the order of the classes",
        path.display(),
        names.len(),
        spec.name
    );
    Ok(names)
}

/// The lines of a file of names.
fn names_of(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = file::read_text(path, limits::LABELS).map_err(|error| {
        anyhow!(
            "{}: {error}; give the labels as a text file, one name per line",
            path.display()
        )
    })?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

struct Infer<'a> {
    args: &'a Args,
    file: &'a Path,
    own: Option<&'a Own>,
    chosen: &'a Chosen,
}

/// What is printed of an image.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    image: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
    classes: Vec<Named<'a>>,
}

#[derive(Debug, Serialize)]
struct Named<'a> {
    class: usize,
    label: &'a str,
    /// Softmax of the logits.
    probability: f64,
}

impl Visit<Classes> for Infer<'_> {
    /// Images that could not be read.
    type Out = anyhow::Result<usize>;

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> anyhow::Result<usize> {
        let device = &self.chosen.device;
        let network = open_dense(network, self.file, BatchNorm::Folded)?;
        let classes = classes(&subject::census(spec, &network, device));
        let labels = labels(self.args, spec, self.own, classes)?;
        let recipe = own::recipe(spec, self.own)?;
        takes(spec, [3, recipe.crop, recipe.crop])?;
        let mut unreadable = 0;
        for image in &self.args.images {
            interrupt::check()?;
            let (pixels, note) = match pixels(image, &recipe) {
                Ok(read) => read,
                Err(error) => {
                    note!("{}: {error:#}", image.display());
                    unreadable += 1;
                    continue;
                }
            };
            let shape = [1, 3, recipe.crop, recipe.crop];
            let x = Tensor::from_data(TensorData::new(pixels, shape), device);
            let logits = network.run(x, &mut Bare::default()).into_data();
            let logits: Vec<f32> = logits.iter::<f32>().collect();
            let named = first(NAMED, &logits)
                .map_err(|class| TopKError::Nan { image: 0, class })
                .with_context(|| image.display().to_string())?;
            let answer = Answer {
                image,
                note,
                classes: probabilities(&logits, &named, &labels),
            };
            self.print(&answer)?;
        }
        Ok(unreadable)
    }
}

impl Visit<Boxes> for Infer<'_> {
    type Out = anyhow::Result<usize>;

    fn visit<N: Of<Boxes>>(self, spec: &'static Spec, network: N) -> anyhow::Result<usize> {
        let Self {
            args,
            file,
            own,
            chosen,
        } = self;
        let find = boxes::Find {
            args,
            file,
            own,
            chosen,
        };
        find.visit(spec, network)
    }
}

macro_rules! refused {
    ($($modality:ident),+) => {$(
        impl Visit<$modality> for Infer<'_> {
            type Out = anyhow::Result<usize>;

            fn visit<N: Of<$modality>>(self, spec: &'static Spec, _: N) -> anyhow::Result<usize> {
                let does = "`infer` names classes and finds boxes";
                Err(OtherModality::of::<$modality>(spec, does).into())
            }
        }
    )+};
}

refused!(Noise, Tokens);

impl Infer<'_> {
    fn print(&self, answer: &Answer<'_>) -> anyhow::Result<()> {
        if self.args.json {
            outln!("{}", serde_json::to_string(answer)?)?;
            return Ok(());
        }
        outln!("{}", answer.image.display())?;
        if let Some(note) = answer.note {
            outln!("  note: {note}")?;
        }
        for named in &answer.classes {
            outln!("  {:5.1} %  {}", 100.0 * named.probability, named.label)?;
        }
        Ok(())
    }
}

fn probabilities<'a>(logits: &[f32], named: &[usize], labels: &'a [String]) -> Vec<Named<'a>> {
    let largest = named.first().map_or(0.0, |&class| f64::from(logits[class]));
    let power = |logit: f32| (f64::from(logit) - largest).exp();
    let sum: f64 = logits.iter().copied().map(power).sum();
    named
        .iter()
        .map(|&class| Named {
            class,
            label: labels.get(class).map_or("", String::as_str),
            probability: power(logits[class]) / sum,
        })
        .collect()
}

/// The network's input from an image file, and what is unusual about the file.
fn pixels(path: &Path, recipe: &Recipe) -> anyhow::Result<(Vec<f32>, Option<&'static str>)> {
    let bytes = file::read(path, limits::PICTURE)
        .map_err(|error| anyhow!("{error}; name a JPEG, PNG or WebP file"))?;
    let picture = decode::decode(&bytes, Rotation::Ignore)?;
    Ok((recipe.apply(&picture), oddity(&bytes)))
}

/// What an image holds beyond three times eight bits, which is converted as Pillow does, with a note.
fn oddity(bytes: &[u8]) -> Option<&'static str> {
    const FIRST: &str = "an animation: only its first picture was used";
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => {
            // Signature, then length, kind, content and checksum of each chunk; the depth is IHDR's ninth byte.
            let mut rest = bytes.get(8..)?;
            while let Some((length, kind)) = rest.split_first_chunk::<4>() {
                if kind.starts_with(b"acTL") {
                    return Some(FIRST);
                }
                if kind.starts_with(b"IDAT") {
                    break;
                }
                let length = u32::from_be_bytes(*length) as usize;
                rest = kind.get(length.saturating_add(8)..)?;
            }
            (bytes.get(24) == Some(&16))
                .then_some("16 bits per colour: only the upper eight were used")
        }
        [b'R', b'I', b'F', b'F', ..] => {
            // The second bit of the extended header's flags.
            let extended = bytes.get(12..16) == Some(b"VP8X");
            (extended && bytes.get(20)? & 2 != 0).then_some(FIRST)
        }
        [0xff, 0xd8, rest @ ..] => {
            let mut rest = rest;
            while let [0xff, marker, high, low, segment @ ..] = rest {
                if matches!(marker, 0xc0..=0xcf if ![0xc4, 0xc8, 0xcc].contains(marker)) {
                    // Precision, height, width, then the number of components.
                    return (segment.get(5) == Some(&4))
                        .then_some("CMYK: converted to RGB without a colour profile");
                }
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                rest = segment.get(length.checked_sub(2)?..)?;
            }
            None
        }
        _ => None,
    }
}

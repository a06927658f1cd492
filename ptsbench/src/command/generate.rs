//! `ptsbench generate`: pictures that a network makes of noise, and of texts where it reads some.
//!
//! The pictures of a seed are the same whatever the batch, and those of seed 0 are the ones that `evaluate` judges. Each is
//! written whole when its batch is done.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use model_zoo::catalog::{OtherModality, Spec, Visit};
use model_zoo::file;
use model_zoo::tap::Bare;
use model_zoo::{Noise, Of};

use super::evaluate::weight_file;
use crate::cell::BatchNorm;
use crate::data::decode::Rgb;
use crate::data::{encode, limits};
use crate::device::{self, Choice, Chosen};
use crate::interrupt;
use crate::own;
use crate::pipeline::open_dense;
use crate::progress::counter::Counter;
use crate::seed::Seed;
use crate::store::write_atomic;
use crate::task::TaskError;
use crate::task::generate::draw::Drawing;
use crate::task::generate::parts::{Opened, Parts};
use crate::task::generate::recipe::Recipe;
use crate::task::generate::{GenerateError, NOISE, batch_of, tell_of_long};
use crate::{note, outln};

/// What the command does, for networks that do something else.
const WANTED: &str = "`generate` makes pictures of noise";
/// The file of the contact sheet.
const SHEET: &str = "sheet.png";
/// Smaller pictures are enlarged on the sheet, to at most this width.
const SHOWN: usize = 96;
/// Pictures on the sheet at most: the first ones.
const ON_SHEET: usize = 100;
/// Pictures where nobody says how many: of noise alone, and of one text.
const OF_NOISE: usize = 16;
const OF_TEXT: usize = 4;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model's name in the catalog
    pub model: String,
    /// Its weight file; one that reads texts needs its diffusers pipeline around it [default: the built-in one]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Folder for the pictures and their contact sheet, sheet.png
    #[arg(short, long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Seed of the noise; the pictures of seed 0 are those that `evaluate` judges
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Steps from noise to picture [default: as many as `evaluate` takes]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Pictures [default: 16; 4 of a prompt; one of each of several]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub count: Option<u32>,
    /// What the pictures show, for a network that reads texts
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts")]
    pub prompt: Option<String>,
    /// The same from a file, a line for each picture; from its end they begin again
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// How strongly pictures follow their prompt; 1 is without guidance [default: as `evaluate` has it]
    #[arg(long, value_name = "G")]
    pub guidance: Option<f64>,
    /// Replace pictures that are there
    #[arg(long)]
    pub force: bool,
    /// The device to compute on
    #[arg(long, value_enum, default_value_t)]
    pub device: Choice,
    /// Folder of the built-in networks
    #[arg(long, value_name = "DIR", default_value = "assets")]
    pub assets: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let named = own::named(&args.model)?;
    let spec = named.spec;
    let recipe = recipe(spec, &args)?;
    let texts = texts(&args)?;
    let count = args.count.map(|count| count as usize);
    let count = count.unwrap_or(match texts.len() {
        0 => OF_NOISE,
        1 => OF_TEXT,
        several => several,
    });
    let files = spared(&args, count)?;
    let file = weight_file(&named, args.weights.clone(), &args.assets)?;
    let chosen = device::choose(args.device)?;
    interrupt::install("pictures that are written are whole, and kept")?;
    let generate = Generate {
        args: &args,
        file: &file,
        recipe,
        texts,
        files,
        chosen: &chosen,
    };
    spec.open_noise(&chosen.device, WANTED, generate)?
}

/// The network's own recipe, but for what the arguments say; a network without one makes no pictures.
fn recipe(spec: &Spec, args: &Args) -> anyhow::Result<Recipe> {
    let mut recipe = Recipe::of(spec, None).ok_or(OtherModality {
        model: spec.name,
        does: spec.does(),
        wanted: WANTED,
    })?;
    if let Some(steps) = args.steps {
        recipe.process.steps = steps;
    }
    let reads = recipe.guidance.is_some();
    let asked = args.prompt.is_some() || args.prompts.is_some();
    ensure!(
        reads || !asked && args.guidance.is_none(),
        "`{}` makes pictures of noise alone; leave --prompt, --prompts and --guidance out",
        spec.name
    );
    ensure!(
        asked || !reads,
        "`{}` makes pictures of texts; give one with --prompt, or a file of them with --prompts",
        spec.name
    );
    if let Some(guidance) = args.guidance {
        ensure!(
            guidance.is_finite(),
            "--guidance is {guidance}; give a number, such as 7.5"
        );
        recipe.guidance = Some(guidance);
    }
    Ok(recipe)
}

/// The texts that the pictures are made of, if any.
fn texts(args: &Args) -> anyhow::Result<Vec<String>> {
    if let Some(text) = &args.prompt {
        return Ok(vec![text.clone()]);
    }
    let Some(path) = &args.prompts else {
        return Ok(Vec::new());
    };
    let text = file::read_text(path, limits::LIST)
        .with_context(|| format!("--prompts {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let texts: Vec<String> = lines.map(str::to_owned).collect();
    ensure!(
        !texts.is_empty(),
        "--prompts {}: no prompt; write one in each line",
        path.display()
    );
    Ok(texts)
}

/// The pictures' files, of which there is none yet unless they may be replaced.
fn spared(args: &Args, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    let digits = (count - 1).to_string().len().max(4);
    let files = (0..count).map(|at| args.out.join(format!("{at:0digits$}.png")));
    let files: Vec<PathBuf> = files.collect();
    ensure!(
        !args.out.exists() || args.out.is_dir(),
        "-o {}: is no folder; name one, which is made where it does not exist",
        args.out.display()
    );
    let sheet = args.out.join(SHEET);
    let there = files.iter().chain([&sheet]).find(|file| file.exists());
    if let (Some(file), false) = (there, args.force) {
        bail!(
            "{}: is there already; name another folder with -o, or replace what is there with --force",
            file.display()
        );
    }
    Ok(files)
}

struct Generate<'a> {
    args: &'a Args,
    file: &'a Path,
    recipe: Recipe,
    texts: Vec<String>,
    files: Vec<PathBuf>,
    chosen: &'a Chosen,
}

/// Writes a picture, whole or not at all.
fn write(file: &Path, picture: &Rgb) -> anyhow::Result<()> {
    let bytes = encode::png(picture).with_context(|| file.display().to_string())?;
    Ok(write_atomic(file, &bytes)?)
}

impl Visit<Noise> for Generate<'_> {
    type Out = anyhow::Result<ExitCode>;

    fn visit<N: Of<Noise>>(self, spec: &'static Spec, network: N) -> Self::Out {
        let device = &self.chosen.device;
        let parts = Parts::find(spec, self.file)?;
        let recipe = self.recipe.with(parts.as_ref());
        let network = open_dense(network, self.file, BatchNorm::Folded)?;
        let parts = match parts {
            Some(parts) => parts.open(device)?,
            None => Opened::default(),
        };
        tell_of_long(&self.texts, &parts);
        let drawing = Drawing::new(&recipe, &parts, device).map_err(GenerateError::from)?;
        let run = |input| network.run(input, &mut Bare::default());
        let (count, seed) = (self.files.len(), Seed(self.args.seed));
        let steps = drawing.timesteps().len();
        let mut counter = Counter::new("images", 0, count);
        let mut on_sheet = Vec::new();
        let mut lost = Vec::new();
        let batch = batch_of(recipe.noise);
        for first in (0..count).step_by(batch) {
            let these = first..count.min(first + batch);
            let texts: Vec<&str> = match self.texts.len() {
                0 => Vec::new(),
                texts => these
                    .clone()
                    .map(|at| self.texts[at % texts].as_str())
                    .collect(),
            };
            let contexts = match texts.is_empty() {
                true => None,
                false => drawing.contexts(&texts),
            };
            let noise = drawing.noise(NOISE, seed, these.clone());
            let made = drawing.run(&run, noise, contexts.as_ref(), |step, _| {
                counter.at(first, &format!("; step {} of {steps}", step + 1));
            });
            let made = match made {
                Err(TaskError::Interrupted(_)) => {
                    counter.note(&format!(
                        "interrupted after {first} of {count} images; those are written (the same command with --force begins again)"
                    ));
                    return Ok(ExitCode::from(interrupt::EXIT_CODE));
                }
                made => made?,
            };
            for (at, picture) in these.zip(drawing.pictures(&made)) {
                match picture {
                    None => lost.push(at),
                    Some(picture) => {
                        write(&self.files[at], &picture)?;
                        if on_sheet.len() < ON_SHEET {
                            let times = (SHOWN / picture.width.max(1)).max(1);
                            on_sheet.push(encode::enlarged(&picture, times));
                        }
                    }
                }
            }
            counter.at(count.min(first + batch), "");
        }
        drop(counter);
        if !on_sheet.is_empty() {
            write(&self.args.out.join(SHEET), &encode::sheet(&on_sheet))?;
        }
        outln!(
            "{}: {} of {count} images by {} ({recipe})",
            self.args.out.display(),
            count - lost.len(),
            spec.name
        )?;
        let Some(first) = lost.first() else {
            return Ok(ExitCode::SUCCESS);
        };
        note!(
            "{} of {count} images have values that are no numbers, image {first} first, and are not written; the weights, or what was taken from them, are the reason",
            lost.len()
        );
        Ok(ExitCode::FAILURE)
    }
}

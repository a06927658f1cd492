//! `ptsbench fid`: the Fréchet distance between two sets of images.
//!
//! It is called FID where the features are Inception's of 2015, and nowhere else. An image that cannot be read costs a
//! line, not the run; the exit code says whether there were any.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use model_zoo::inception;
use model_zoo::weights::sha256;
use serde::Serialize;

use super::evaluate::weight_file;
use super::target;
use crate::data::decode::Rgb;
use crate::data::error::{DataError, counted, entries, is_image_name};
use crate::data::lsun::Lsun;
use crate::data::synthetic::generation;
use crate::device::{self, Choice, Chosen};
use crate::features::{Extractor, FeatureError, Seen, random};
use crate::interrupt;
use crate::metric::fid::{self, FidError, Statistics, Which};
use crate::metric::npz;
use crate::own;
use crate::progress::counter::Counter;
use crate::{note, outln};

/// The built-in set of images.
const BUILT_IN: &str = "micro:generation";
/// What `--features` calls Inception.
const INCEPTION: &str = "inception";

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images: a folder of them, an LSUN category, micro:generation, or a statistics file (.npz)
    pub a: String,
    /// What to compare them with, in the same forms
    #[arg(required_unless_present = "save_stats")]
    pub b: Option<String>,
    /// The network's weight file [default: the built-in one, where there is one]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Whose features to compare: inception's (only that is FID), those of a small network with random weights
    /// (random_conv), or those of a network of the catalog
    #[arg(long, value_name = "NAME", default_value = INCEPTION)]
    pub features: String,
    /// Only the first N images of each set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    pub samples: Option<u64>,
    /// Images in a batch; it changes the distance by rounding alone
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub batch: u64,
    /// Write the statistics of the first set into this .npz file, which can stand for the set from then on
    #[arg(long, value_name = "FILE")]
    pub save_stats: Option<PathBuf>,
    /// The device to compute on
    #[arg(long, value_enum, default_value_t)]
    pub device: Choice,
    /// Folder of the built-in networks
    #[arg(long, value_name = "DIR", default_value = "assets")]
    pub assets: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(file) = &args.save_stats {
        target::check("--save-stats", file, "npz")?;
        let inputs = [Some(&args.a), args.b.as_ref()].into_iter().flatten();
        let mut inputs: Vec<_> = inputs.map(|set| ("statistics", Path::new(set))).collect();
        inputs.extend(args.weights.iter().map(|file| ("weights", file.as_path())));
        target::spare("--save-stats", file, &inputs)?;
    }
    let mut sets = vec![Set::open(&args.a)?];
    if let Some(b) = &args.b {
        sets.push(Set::open(b)?);
    }
    interrupt::install("nothing is written until a whole set is done")?;
    // Statistics need none.
    let mut network = None;
    let mut measured = Vec::new();
    for (set, name) in sets.iter().zip([Some(&args.a), args.b.as_ref()]) {
        let name = name.map_or("", String::as_str);
        let set = set
            .measure(name, &args, &mut network)
            .with_context(|| name.to_owned())?;
        if let (Some(file), true) = (&args.save_stats, measured.is_empty()) {
            npz::write(file, &set.statistics)?;
            note!("{}: statistics of {name}", file.display());
        }
        measured.push(set);
    }
    let unreadable: usize = measured.iter().map(|set| set.told.unreadable).sum();
    if let [a, b] = &measured[..] {
        report(&args, network.as_ref(), a, b)?;
    }
    if unreadable == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    note!("{} could not be read", counted(unreadable, "image"));
    Ok(ExitCode::FAILURE)
}

fn is_npz(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "npz")
}

/// A set of images, or what is known of one.
enum Set {
    Statistics(Statistics),
    Images(Images),
}

/// Where images come from.
enum Images {
    Generation,
    Files(Lsun),
}

impl Images {
    fn len(&self) -> usize {
        match self {
            Images::Generation => generation::LEN,
            Images::Files(files) => files.len(),
        }
    }

    fn image(&self, index: usize) -> Result<Rgb, DataError> {
        match self {
            Images::Generation => Ok(generation::picture(index)),
            Images::Files(files) => files.image(index),
        }
    }
}

impl Set {
    fn open(name: &str) -> anyhow::Result<Set> {
        let path = Path::new(name);
        if name == BUILT_IN {
            return Ok(Set::Images(Images::Generation));
        }
        if path.is_dir() {
            let files = entries(path)?;
            ensure!(
                files.iter().any(|file| is_image_name(file)) || path.join("data.mdb").is_file(),
                "{name}: {} and no image among them (.jpg, .png, .webp); name the folder that holds the images themselves",
                match files.len() {
                    1 => "1 entry".to_owned(),
                    count => format!("{count} entries"),
                }
            );
            return Ok(Set::Images(Images::Files(Lsun::open(path)?)));
        }
        ensure!(
            is_npz(path),
            "{name}: no folder of images, no statistics file (.npz) and no built-in set ({BUILT_IN}); check the path"
        );
        Ok(Set::Statistics(npz::read(path)?))
    }

    fn measure(
        &self,
        name: &str,
        args: &Args,
        network: &mut Option<Opened>,
    ) -> anyhow::Result<Measured> {
        let images = match self {
            Set::Images(images) => images,
            Set::Statistics(statistics) => {
                return Ok(Measured {
                    statistics: statistics.clone(),
                    told: Told {
                        set: name.to_owned(),
                        images: None,
                        unreadable: 0,
                    },
                });
            }
        };
        let network = match network {
            Some(network) => network,
            None => network.insert(Opened::new(args)?),
        };
        let available = images.len();
        if let Some(asked) = args.samples {
            ensure!(
                asked <= available as u64,
                "--samples is {asked}, and the set holds {available}; ask for at most that many"
            );
        }
        let count = args
            .samples
            .map_or(available, |n| available.min(n as usize));
        let mut progress = Counter::new("images", 0, count);
        let mut unreadable = 0;
        let gathered = network.chosen.guard(|| {
            network.extractor.statistics(
                count,
                args.batch as usize,
                |index| images.image(index),
                |seen| match seen {
                    Seen::Through(done) => progress.at(done, &format!("; {name}")),
                    Seen::Unreadable(error) => {
                        unreadable += 1;
                        progress.note(&error.to_string());
                    }
                },
            )
        })?;
        let statistics = gathered.map_err(|error| match error {
            FeatureError::Interrupted(stop) => anyhow::Error::new(stop),
            error => error.into(),
        })?;
        Ok(Measured {
            statistics,
            told: Told {
                set: name.to_owned(),
                images: Some(count - unreadable),
                unreadable,
            },
        })
    }
}

/// The network whose features are compared.
struct Opened {
    extractor: Extractor,
    chosen: Chosen,
    /// None for the random network, which is made here.
    weights: Option<PathBuf>,
}

impl Opened {
    fn new(args: &Args) -> anyhow::Result<Opened> {
        let name = args.features.as_str();
        if name == random::NAME {
            ensure!(
                args.weights.is_none(),
                "--weights: {name} has no weight file; leave the option out"
            );
            let chosen = device::choose(args.device)?;
            return Ok(Opened {
                extractor: Extractor::random_conv(&chosen.device),
                chosen,
                weights: None,
            });
        }
        let (spec, weights) = if [INCEPTION, inception::NAME].contains(&name) {
            let weights = args.weights.clone().with_context(no_inception)?;
            (None, weights)
        } else {
            let named = own::named(name).with_context(|| {
                format!(
                    "--features {name}: neither {INCEPTION} nor {} nor a network of the catalog",
                    random::NAME
                )
            })?;
            let weights = weight_file(&named, args.weights.clone(), &args.assets)?;
            (Some(named.spec), weights)
        };
        let chosen = device::choose(args.device)?;
        let device = &chosen.device;
        let extractor = match spec {
            None => Extractor::inception(&weights, device)?,
            Some(spec) => Extractor::classifier(spec, &weights, device)?,
        };
        Ok(Opened {
            extractor,
            chosen,
            weights: Some(weights),
        })
    }

    fn sha256(&self) -> anyhow::Result<String> {
        Ok(match &self.weights {
            None => random::sha256(),
            Some(file) => sha256(file)?,
        })
    }
}

fn no_inception() -> String {
    format!(
        "FID is defined on Inception's weights of 2015, which are not built in: download {} (Apache-2.0) from {} and give it with --weights FILE; `--features random_conv` compares the features of a small network with random weights instead, which is not FID",
        inception::FILE,
        inception::ADDRESS
    )
}

struct Measured {
    statistics: Statistics,
    told: Told,
}

/// What is printed of a set.
#[derive(Debug, Serialize)]
struct Told {
    set: String,
    /// Images that count; none where only statistics are known.
    images: Option<usize>,
    unreadable: usize,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    metric: &'static str,
    distance: f64,
    /// The network whose features were compared; none where only statistics were.
    features: Option<&'static str>,
    width: usize,
    weights: Option<&'a Path>,
    weights_sha256: Option<String>,
    a: &'a Told,
    b: &'a Told,
}

fn report(args: &Args, network: Option<&Opened>, a: &Measured, b: &Measured) -> anyhow::Result<()> {
    // Below zero is round-off: the sets are equal.
    let distance = fid::distance(&a.statistics, &b.statistics).map_err(|error| {
        let named = match error {
            FidError::Negative { set, .. } => Some(if set == Which::First { a } else { b }),
            _ => None,
        };
        let error = anyhow::Error::new(error);
        match named {
            Some(set) => error.context(set.told.set.clone()),
            None => error,
        }
    })?;
    let distance = distance.max(0.0);
    let width = a.statistics.width();
    let features = network.map(|network| network.extractor.name);
    let is_fid = features == Some(inception::NAME);
    let smallest = [&a.told, &b.told]
        .iter()
        .filter_map(|told| told.images)
        .min();
    if smallest.is_some_and(|images| images <= width) {
        note!(
            "note: there are no more images than features ({width}); with so few, the distance comes out far too high"
        );
    }
    if args.json {
        let report = Report {
            metric: if is_fid { "fid" } else { "frechet_distance" },
            distance,
            features,
            width,
            weights: network.and_then(|network| network.weights.as_deref()),
            weights_sha256: network.map(Opened::sha256).transpose()?,
            a: &a.told,
            b: &b.told,
        };
        outln!("{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    match features {
        _ if is_fid => outln!("FID {distance:.4}")?,
        Some(name) => {
            outln!("Fréchet distance {distance:.6} of the {width} features of {name} (not FID)")?;
        }
        None => outln!("Fréchet distance {distance:.6} of statistics of {width} features")?,
    }
    for (side, told) in [("A", &a.told), ("B", &b.told)] {
        let images = told
            .images
            .map_or("statistics".to_owned(), |images| counted(images, "image"));
        outln!("  {side}: {} ({images})", told.set)?;
    }
    Ok(())
}

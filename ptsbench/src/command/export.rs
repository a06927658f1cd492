//! `ptsbench export`: the network of one cell as a weight file that timm or torchvision loads unchanged.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use kernels::Precision;
use kernels::plan::KernelPolicy;

use super::target;
use crate::allocate::{self, Rate};
use crate::cell::{
    BatchNorm, CalibrationCell, Cell, CorrectionCell, Fit, Inputs, Pattern, Reconstruction, Rule,
    Sparsity, TaskCell,
};
use crate::criterion::{self, Chooser};
use crate::device::{self, Choice};
use crate::export::{export, work_folder};
use crate::interrupt;
use crate::memory::Memory;
use crate::options::Chosen;
use crate::outln;
use crate::own;
use crate::pipeline::Bench;
use crate::plan::{FitPreset, OptimizerName, Registry};
use crate::progress::{Mode, Progress};
use crate::registry::Zoo;
use crate::repair;
use crate::store::read_record;
use model_zoo::catalog::{self, Weights};
use model_zoo::{Grain, Modality, Noise};

/// Whose images are looked at where options make the cell; a record names its own.
fn task_of<'a>(model: &str, folders: &'a [(String, PathBuf)]) -> anyhow::Result<&'a str> {
    let spec = catalog::find(model)?;
    Ok(match folders {
        [(task, _)] => task,
        [(first, _), (second, _), ..] => bail!(
            "--data-dir names {first} and {second}, and the images of one task are looked at; give one of them"
        ),
        [] => match (spec.weights, spec.head()) {
            (Weights::BuiltIn, Some(_)) => "micro_boxes",
            (Weights::BuiltIn, None) if spec.does() == Noise::DOES => "micro_generation",
            _ => "micro",
        },
    })
}

/// Calibration images in a cached batch, where there are as many.
const BATCH: usize = 64;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model's name in the catalog
    pub model: String,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Store zeros as bits: a smaller file, which other programs cannot read unless they unpack it
    #[arg(long)]
    pub compress: bool,
    /// The model's weight file (safetensors or .pth); built-in ones need none
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Folder of the built-in networks
    #[arg(long, value_name = "DIR", default_value = "assets")]
    pub assets: PathBuf,
    /// Use the cell of this record in place of the options below
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "pattern", "granularity"])]
    pub from_record: Option<PathBuf>,
    /// Fraction of zeros over all prunable weights, e.g. 0.9 [default: none, the dense network]
    #[arg(long, value_name = "P", conflicts_with = "pattern")]
    pub rate: Option<Rate>,
    /// N:M along input channels, e.g. 2:4; t2:4 for its transposable form
    #[arg(long, value_name = "N:M")]
    pub pattern: Option<Pattern>,
    /// How the rate is spread over layers; with options as erk,erk_power=0.5
    #[arg(long, value_name = "NAME", default_value = "erk")]
    pub allocator: Chosen,
    /// Which weights go in a layer, and what becomes of the others; with options as wanda,group=layer
    #[arg(long, value_name = "NAME", default_value = "magnitude")]
    pub criterion: Chosen,
    /// What repairs the network last, such as bn_re_estimation
    #[arg(long, value_name = "NAME")]
    pub repair: Option<Chosen>,
    /// Batch norms kept until everything is chosen and fitted, or folded before
    #[arg(long, value_name = "HOW", default_value_t)]
    pub batch_norm: BatchNorm,
    /// Reconstruct in pieces of this size: single, layer or block
    #[arg(long, value_name = "GRAIN", value_parser = granularity)]
    pub granularity: Option<Grain>,
    /// Where a piece's inputs come from: dense or sparse
    #[arg(long, value_name = "FROM", default_value = "sparse", value_parser = inputs)]
    pub inputs: Inputs,
    /// Do not correct weights and biases before fitting
    #[arg(long)]
    pub no_correction: bool,
    /// Calibration images
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = super::run::at_least_one)]
    pub images: usize,
    /// Steps for each piece
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub steps: usize,
    /// Learning rate of weights, Adam
    #[arg(long, value_name = "RATE", default_value_t = 0.002)]
    pub lr: f64,
    /// Learning rate of biases
    #[arg(long, value_name = "RATE", default_value_t = 0.002)]
    pub bias_lr: f64,
    /// Seed of the calibration images and batches
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The folder of a task's images, which are looked at for calibration [default: built-in images]
    #[arg(long = "data-dir", value_name = "TASK=DIR", value_parser = super::run::task_folder)]
    pub data_dirs: Vec<(String, PathBuf)>,
    /// The device to compute on
    #[arg(long, value_enum, default_value_t)]
    pub device: Choice,
}

fn granularity(text: &str) -> Result<Grain, String> {
    let named = Grain::ALL.into_iter().find(|grain| grain.name() == text);
    named.ok_or_else(|| "write single, layer or block".to_owned())
}

fn inputs(text: &str) -> Result<Inputs, String> {
    Ok(match text {
        "dense" => Inputs::Dense,
        "sparse" => Inputs::Sparse,
        _ => return Err("write dense or sparse".to_owned()),
    })
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    target::check("--out", &args.out, "safetensors")?;
    let model = own::named(&args.model)?.spec.name;
    let files: HashMap<_, _> = args
        .weights
        .iter()
        .map(|file| (model.to_owned(), file.clone()))
        .collect();
    let folders = args.data_dirs.iter().cloned().collect();
    let registry = Zoo::new(&args.assets, files)?.with_data(folders)?;
    let cell = cell(&args, model, &registry)?;
    let file = registry
        .file(model)
        .map_err(|error| anyhow::anyhow!(error))?;
    let mut inputs = vec![("weights", file.as_path())];
    inputs.extend(
        args.from_record
            .iter()
            .map(|file| ("record and cell", file.as_path())),
    );
    target::spare("--out", &args.out, &inputs)?;
    let chosen = device::choose(args.device)?;
    let trains = match &cell.sparsity {
        Some(sparsity) => {
            let part = &sparsity.criterion;
            let whole = matches!(
                criterion::find(&part.name, &part.options)?,
                Chooser::Whole(_)
            );
            whole || sparsity.reconstruction.is_some()
        }
        None => false,
    };
    if trains {
        interrupt::install("finished units and epochs are kept")
            .context("cannot listen for Ctrl-C")?;
    }
    let work = work_folder(&args.out, &cell.key());
    if trains {
        std::fs::create_dir_all(&work).with_context(|| {
            format!(
                "cannot create {}, where finished units and epochs are kept; name another --out",
                work.display()
            )
        })?;
    }
    let progress = Progress::new(1, Mode::Auto);
    let bench = Bench {
        chosen: &chosen,
        progress: &progress,
        sets: registry.sets(),
        policy: KernelPolicy::auto(),
        memory: Memory::from_env()?,
    };
    let exported = export(&bench, &cell, &file, &work);
    if exported.is_err() {
        // It stays where it holds units or epochs.
        let _ = std::fs::remove_dir(&work);
    }
    let exported = exported?;
    let weights: u64 = exported.weights();
    let zeros: u64 = exported.layers.iter().map(|(_, zeros)| zeros).sum();
    let (tensors, layers) = (exported.tensors.len(), exported.layers.len());
    exported.write(&args.out, &cell, args.compress)?;
    // Only units and epochs of a training that is now complete lie there.
    let _ = std::fs::remove_dir_all(&work);

    let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |file| file.len());
    outln!("{}: {cell}", args.out.display())?;
    outln!(
        "{tensors} tensors, {layers} layers, {zeros} of {weights} prunable weights are zero ({:.4})",
        zeros as f64 / weights.max(1) as f64
    )?;
    if let Some(sparsity) = &cell.sparsity {
        let left = registry
            .left_dense(&cell.model, sparsity.pattern)
            .map_err(anyhow::Error::from_boxed)?;
        if !left.is_empty() {
            outln!("{left}")?;
        }
    }
    outln!(
        "{} bytes; the file it was made from has {}",
        size(&args.out),
        size(&file)
    )?;
    Ok(())
}

/// The cell that the options describe.
fn cell(args: &Args, model: &str, registry: &Zoo) -> anyhow::Result<Cell> {
    if let Some(file) = &args.from_record {
        let record = read_record(file)?;
        let Some(record) = record else {
            bail!("{}: no such record", file.display());
        };
        ensure!(
            record.cell.model == model,
            "{}: this is a record of `{}`, not of `{}`",
            file.display(),
            record.cell.model,
            model
        );
        return Ok(record.cell);
    }
    let pattern = match (args.rate, args.pattern) {
        (Some(rate), _) if rate.get() == 0.0 => {
            bail!("--rate 0 prunes nothing; leave it out for the dense network")
        }
        (Some(rate), _) => Some(Pattern::Unstructured { rate: rate.get() }),
        (None, pattern) => pattern,
    };
    ensure!(
        pattern.is_some() || args.granularity.is_none(),
        "nothing is pruned, so nothing is reconstructed; add --rate or --pattern"
    );
    let task = task_of(model, &args.data_dirs)?;
    let sparsity = match pattern {
        Some(pattern) => Some(sparsity(args, model, task, pattern, registry)?),
        None => None,
    };
    let facts = registry.task(task).map_err(anyhow::Error::from_boxed)?;
    Ok(Cell {
        model: model.to_owned(),
        weights: registry.weights(model).map_err(anyhow::Error::from_boxed)?,
        task: TaskCell {
            name: task.to_owned(),
            version: facts.version,
            // Nothing is evaluated.
            samples: 1,
            data: facts.data,
            split: facts.split,
            recipe: registry
                .recipe(task, model)
                .map_err(anyhow::Error::from_boxed)?,
        },
        sparsity,
        precision: Precision::F32,
    })
}

fn sparsity(
    args: &Args,
    model: &str,
    task: &str,
    pattern: Pattern,
    registry: &Zoo,
) -> anyhow::Result<Sparsity> {
    registry
        .fits(model, pattern)
        .map_err(anyhow::Error::from_boxed)?;
    let allocation = match pattern {
        Pattern::Unstructured { .. } => Some(allocate::facts(&args.allocator)?),
        Pattern::NofM { .. } | Pattern::TransposableNofM { .. } => None,
    };
    let criterion = criterion::facts(&args.criterion)?;
    ensure!(
        !criterion.whole || allocation.is_some(),
        "`{}` learns how a rate is spread over layers, and an N:M pattern fixes it; give --rate, or take another criterion",
        args.criterion.name
    );
    ensure!(
        !(criterion.whole && criterion.moves) || args.granularity.is_none(),
        "`{}` trains every weight itself; leave --granularity out, or use {},weights=dense",
        args.criterion.name,
        args.criterion.name
    );
    let repair = match &args.repair {
        Some(_) if args.batch_norm == BatchNorm::Folded => {
            bail!(
                "--repair measures batch norms again, and folding removes them; use --batch-norm kept"
            )
        }
        Some(chosen) => Some(repair::facts(chosen)?),
        None => None,
    };
    ensure!(
        !criterion.moves || args.granularity.is_none() || args.no_correction,
        "`{}` moves the weights that stay, and the correction would put dense ones back; add --no-correction",
        args.criterion.name
    );
    let parts = [allocation.as_ref(), Some(&criterion), repair.as_ref()];
    let images = parts.into_iter().flatten().any(|facts| facts.images);
    let list = match images || args.granularity.is_some() {
        true => registry.calibration(task, args.images, args.seed),
        false => Ok(None),
    };
    let calibration = CalibrationCell {
        images: args.images,
        batch: args.images.min(BATCH),
        seed: args.seed,
        list: list.map_err(anyhow::Error::from_boxed)?,
    };
    let reconstruction = match args.granularity {
        Some(granularity) => Some(Reconstruction {
            version: registry.reconstruction_version(),
            granularity,
            inputs: args.inputs,
            correction: CorrectionCell::plain(!args.no_correction),
            calibration: calibration.clone(),
            fit: fit(args)?,
        }),
        None => None,
    };
    Ok(Sparsity {
        pattern,
        allocation: allocation.map(|facts| facts.part),
        criterion: criterion.part,
        rule: Rule::Exact,
        batch_norm: args.batch_norm,
        calibration: images.then_some(calibration),
        repair: repair.map(|facts| facts.part),
        reconstruction,
    })
}

fn fit(args: &Args) -> anyhow::Result<Fit> {
    let preset = FitPreset {
        optimizer: OptimizerName::Adam,
        lr: args.lr,
        bias_lr: args.bias_lr,
        momentum: None,
        steps: args.steps,
        early_stop: 1e-5,
    };
    preset.to_fit().map_err(anyhow::Error::msg)
}

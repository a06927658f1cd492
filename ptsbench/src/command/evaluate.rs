//! `ptsbench evaluate`: the accuracy of a network as its file stands, dense or pruned.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use model_zoo::Network;
use model_zoo::catalog::{self, Spec, Visit};
use serde::Serialize;

use crate::device::{self, Choice, Chosen};
use crate::interrupt;
use crate::pipeline::{check_fit, open_dense};
use crate::registry::{NoWeights, Zoo};
use crate::subject;
use crate::task::{self, Task};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model's name in the catalog
    pub model: String,
    /// Its weight file [default: the built-in one]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// What it is judged by (`ptsbench list tasks`)
    #[arg(long, value_name = "TASK", default_value = "micro")]
    pub data: String,
    /// Only the first N images
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub samples: Option<u64>,
    /// What computes
    #[arg(long, value_enum, default_value_t)]
    pub device: Choice,
    /// Folder of the built-in networks
    #[arg(long, value_name = "DIR", default_value = "assets")]
    pub assets: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The model's weight file: the user's, the built-in one, or what was fetched.
pub(super) fn weight_file(
    spec: &Spec,
    weights: Option<PathBuf>,
    assets: &Path,
) -> anyhow::Result<PathBuf> {
    if let Some(file) = weights {
        return Ok(file);
    }
    let found = Zoo::new(assets, HashMap::new())?.file(spec.name);
    found.map_err(|error| match error.downcast_ref() {
        Some(NoWeights::NotGiven { model, source_name }) => anyhow::anyhow!(
            "the weights of `{model}` are not built in ({source_name}); give the file: --weights FILE (`ptsbench fetch {model}` gets it, or says where it is)"
        ),
        _ => anyhow::Error::from_boxed(error),
    })
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let spec = catalog::find(&args.model)?;
    let task = task::find(&args.data)?;
    let file = weight_file(spec, args.weights, &args.assets)?;
    let chosen = device::choose(args.device)?;
    interrupt::install("nothing is written by this command")?;
    let samples = args.samples.map_or(task.available, |n| n as usize);
    let report = spec.open(
        &chosen.device,
        Evaluate {
            task,
            samples,
            file,
            chosen: &chosen,
        },
    )?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "{}: top-1 {:.2} %, top-5 {:.2} % of {} images of {} ({})",
            report.model,
            report.top1,
            report.top5,
            report.images,
            report.data,
            report.weights.display()
        );
    }
    Ok(())
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    model: &'static str,
    weights: PathBuf,
    data: &'static str,
    images: usize,
    top1: f64,
    top5: f64,
}

struct Evaluate<'a> {
    task: Task,
    samples: usize,
    file: PathBuf,
    chosen: &'a Chosen,
}

impl Visit for Evaluate<'_> {
    type Out = anyhow::Result<Report>;

    fn visit<N: Network<Input = Tensor<4>, Output = Tensor<2>>>(
        self,
        spec: &'static Spec,
        network: N,
    ) -> anyhow::Result<Report> {
        let device = &self.chosen.device;
        let network = open_dense(network, &self.file)?;
        check_fit(spec, &subject::census(spec, &network, device), self.task)?;
        let images = self.samples.min(self.task.available);
        let [top1, top5] = self
            .task
            .top_k(&network, images, [1, 5], device)?
            .map(|hits| 100.0 * hits as f64 / images as f64);
        Ok(Report {
            model: spec.name,
            weights: self.file,
            data: self.task.name,
            images,
            top1,
            top5,
        })
    }
}

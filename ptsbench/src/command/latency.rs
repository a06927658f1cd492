//! `ptsbench latency`: how long a network takes on this machine.
//!
//! Weights and images are random: what a network computes has no influence on how long that takes, but for its number of
//! classes, which a weight file decides. With a rate, the smallest weights of each layer go, and layers run on what is left
//! where that is faster.

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::ensure;
use burn::tensor::{Device, Distribution, Tensor};
use kernels::plan::KernelPolicy;
use model_zoo::catalog::{Spec, Visit};
use model_zoo::frozen::{Terms, freeze};
use model_zoo::tap::Bare;
use model_zoo::weights::load_network;
use model_zoo::{Blank, Bundle, Modality, Of, TensorMap};
use serde::Serialize;

use crate::allocate::{self, Rate};
use crate::cell::{Pattern, Rule};
use crate::outln;
use crate::own;
use crate::select::select;
use crate::{criterion, interrupt, subject};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or patterns of networks.
    #[arg(required = true)]
    models: Vec<String>,
    /// Images in a batch; several, separated by commas.
    #[arg(long, default_value = "1,8", value_delimiter = ',', value_parser = at_least_one)]
    batch: Vec<usize>,
    /// Threads [default: one for each core].
    #[arg(long)]
    threads: Option<u16>,
    /// Passes that are timed; one more runs before them.
    #[arg(long, default_value_t = 9, value_parser = at_least_one)]
    rounds: usize,
    /// Time the network with its batch norms folded into the convolutions.
    #[arg(long)]
    fold: bool,
    /// Also time it with this fraction of each layer's weights pruned; several, separated by commas.
    #[arg(long, value_delimiter = ',')]
    rate: Vec<Rate>,
    /// The weight file, where one network is timed: its classes and values replace random ones.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// A network's time at a batch.
#[derive(Debug, Serialize)]
struct Timing {
    model: &'static str,
    batch: usize,
    threads: usize,
    folded: bool,
    /// Fraction of each layer's weights that is pruned.
    rate: f64,
    /// Layers that ran on kept weights alone.
    sparse_layers: usize,
    /// Milliseconds of a pass: the first quartile, the middle, the third.
    ms: [f64; 3],
    /// Billions of multiply-adds for an image, of prunable layers.
    gmacs: f64,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    interrupt::install("nothing is kept")?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads.map_or(0, usize::from))
        .build()?;
    let mut specs: Vec<&'static Spec> = Vec::new();
    for pattern in &args.models {
        specs.extend(own::matching(pattern)?.iter().map(|named| named.spec));
    }
    ensure!(
        args.weights.is_none() || specs.len() == 1,
        "--weights is one network's file, and {} networks are named; name one",
        specs.len()
    );
    let mut timings = Vec::new();
    if !args.json {
        outln!(
            "{:24} {:>5} {:>5} {:>7} {:>10} {:>17} {:>9} {:>8}  sparse layers",
            "model",
            "rate",
            "batch",
            "threads",
            "ms",
            "quartiles",
            "images/s",
            "GMAC/s"
        )?;
    }
    for spec in specs {
        for &batch in &args.batch {
            interrupt::check()?;
            let time = Time { args: &args, batch };
            for timing in pool.install(|| spec.open(&Device::flex(), time))? {
                if !args.json {
                    outln!("{timing}")?;
                }
                timings.push(timing);
            }
        }
    }
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&timings)?)?;
    }
    Ok(())
}

fn at_least_one(value: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(0) => Err("expected 1 or more".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}; expected a whole number from 1")),
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, middle, high] = self.ms;
        let per_second = 1e3 * self.batch as f64 / middle;
        write!(
            f,
            "{:24} {:>5} {:>5} {:>7} {middle:>10.2} {:>17} {per_second:>9.1} {:>8.1}  {}",
            self.model,
            self.rate,
            self.batch,
            self.threads,
            format!("{low:.2} - {high:.2}"),
            per_second * self.gmacs,
            self.sparse_layers
        )
    }
}

struct Random;

impl TensorMap for Random {
    fn map<const D: usize>(&mut self, blank: Tensor<D>) -> Tensor<D> {
        blank.random_like(Distribution::Normal(0.0, 1.0))
    }
}

struct Time<'a> {
    args: &'a Args,
    batch: usize,
}

impl<M: Modality> Visit<M> for Time<'_> {
    type Out = anyhow::Result<Vec<Timing>>;

    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Self::Out {
        let device = Device::flex();
        let network = match &self.args.weights {
            Some(file) => load_network(network, own::open(file)?.as_ref())?,
            None => network,
        };
        let network = if self.args.fold {
            network.fold()
        } else {
            network
        };
        let images = N::Input::blank(spec, self.batch, &device).map(&mut Random);
        let census = subject::census(spec, &network, &device);
        let macs: u64 = census.layers().iter().map(|layer| layer.macs).sum();
        let timing = |rate, sparse_layers, ms| Timing {
            model: spec.name,
            batch: self.batch,
            threads: rayon::current_num_threads(),
            folded: self.args.fold,
            rate,
            sparse_layers,
            ms,
            gmacs: macs as f64 / 1e9,
        };
        let dense = quartiles(self.args.rounds, || {
            network.run(images.clone(), &mut Bare::default())
        });
        let mut timings = vec![timing(0.0, 0, dense)];
        if self.args.rate.is_empty() {
            return Ok(timings);
        }
        let weights = subject::weights(&network, &census);
        for &rate in &self.args.rate {
            let allocation = allocate::find("uniform")?.allocate(
                &weights,
                rate,
                Rule::Exact,
                &allocate::Options::default(),
            )?;
            let masks = select(
                &weights,
                criterion::magnitude(),
                Pattern::Unstructured { rate: rate.get() },
                Some(&allocation),
                Rule::Exact,
            )?;
            let sparse = subject::attach(network.clone(), &census, &masks, &device);
            let terms = Terms {
                policy: KernelPolicy::from_env()?,
                batch: self.batch,
                nm: None,
            };
            let frozen = freeze(sparse, &census, &terms);
            let ms = quartiles(self.args.rounds, || {
                frozen.network.run(images.clone(), &mut Bare::default())
            });
            timings.push(timing(rate.get(), frozen.sparse_layers(), ms));
        }
        Ok(timings)
    }
}

/// Milliseconds of a pass: a quarter, half, and three quarters of all passes took no longer. The first does not count.
fn quartiles<T>(rounds: usize, mut pass: impl FnMut() -> T) -> [f64; 3] {
    drop(pass());
    let mut ms: Vec<f64> = (0..rounds.max(1))
        .map(|_| {
            let start = Instant::now();
            let result = pass();
            let elapsed = start.elapsed();
            drop(result);
            1e3 * elapsed.as_secs_f64()
        })
        .collect();
    ms.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|part| ms[part * (ms.len() - 1) / 4])
}

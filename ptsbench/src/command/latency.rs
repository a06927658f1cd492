//! `ptsbench latency`: how long a network takes on this machine.
//!
//! Weights and images are random: what a network computes has no influence on how long that takes.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use model_zoo::Network;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::tap::{Bare, Census};
use serde::Serialize;

use crate::interrupt;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or patterns of networks.
    #[arg(required = true)]
    models: Vec<String>,
    /// Images in a batch; several, separated by commas.
    #[arg(long, default_value = "1,8", value_delimiter = ',')]
    batch: Vec<usize>,
    /// Threads [default: one for each core].
    #[arg(long)]
    threads: Option<u16>,
    /// Passes that count; one more goes before them.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Time the network with its batch norms folded into the convolutions.
    #[arg(long)]
    fold: bool,
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
    /// Milliseconds of a pass: the middle, and the quartiles.
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
    let mut timings = Vec::new();
    if !args.json {
        println!(
            "{:24} {:>5} {:>7} {:>10} {:>17} {:>9} {:>8}",
            "model", "batch", "threads", "ms", "quartiles", "images/s", "GMAC/s"
        );
    }
    for pattern in &args.models {
        for spec in catalog::matching(pattern)? {
            for &batch in &args.batch {
                interrupt::check()?;
                let timing =
                    pool.install(|| spec.open(&Device::flex(), Time { args: &args, batch }));
                if !args.json {
                    let [low, middle, high] = timing.ms;
                    println!(
                        "{:24} {:>5} {:>7} {middle:>10.2} {:>17} {:>9.1} {:>8.1}",
                        timing.model,
                        timing.batch,
                        timing.threads,
                        format!("{low:.2} - {high:.2}"),
                        1e3 * batch as f64 / middle,
                        1e3 * batch as f64 * timing.gmacs / middle
                    );
                }
                timings.push(timing);
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&timings)?);
    }
    Ok(())
}

struct Time<'a> {
    args: &'a Args,
    batch: usize,
}

impl Visit for Time<'_> {
    type Out = Timing;

    fn visit<N: Network<Input = Tensor<4>, Output = Tensor<2>>>(
        self,
        spec: &'static Spec,
        network: N,
    ) -> Timing {
        let network = if self.args.fold {
            network.fold()
        } else {
            network
        };
        let [channels, height, width] = spec.input;
        let dims = [self.batch, channels, height, width];
        let images = Tensor::random(dims, Distribution::Normal(0.0, 1.0), &Device::flex());
        // The pass that does not count also counts multiply-adds.
        let mut census = Census::default();
        network.run(images.clone(), &mut census);
        let macs: u64 = census.layers().iter().map(|layer| layer.macs).sum();
        let mut ms: Vec<f64> = (0..self.args.rounds.max(1))
            .map(|_| {
                let start = Instant::now();
                let logits = network.run(images.clone(), &mut Bare);
                let elapsed = start.elapsed();
                drop(logits);
                1e3 * elapsed.as_secs_f64()
            })
            .collect();
        ms.sort_unstable_by(f64::total_cmp);
        let at = |part: usize| ms[part * (ms.len() - 1) / 4];
        Timing {
            model: spec.name,
            batch: self.batch,
            threads: rayon::current_num_threads(),
            folded: self.args.fold,
            ms: [at(1), at(2), at(3)],
            gmacs: macs as f64 / 1e9,
        }
    }
}

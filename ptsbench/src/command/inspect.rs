//! `ptsbench inspect`: a model's prunable layers, and what an allocator or a pattern would take from each.
//!
//! Needs neither weights nor data unless the allocator looks at weights.

use std::path::{Path, PathBuf};

use anyhow::Context;
use burn::tensor::Device;
use indexmap::IndexMap;
use kernels::nm_applies;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::weights::WeightError;
use model_zoo::{Modality, Of};
use serde::Serialize;

use super::evaluate::weight_file;
use crate::allocate::{Allocation, Options, Rate, find};
use crate::cell::{BatchNorm, Pattern, Rule};
use crate::inventory::{Layer, Loaded, Weights};
use crate::pipeline::{layers_of, open_dense};
use crate::subject;
use crate::{out, outln};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model's name in the catalog.
    pub model: String,
    /// Fraction of zeros over all prunable weights, e.g. 0.9.
    #[arg(long, value_name = "P", conflicts_with = "pattern")]
    pub rate: Option<Rate>,
    /// How the rate is spread over layers.
    #[arg(long, value_name = "NAME", default_value = "erk", requires = "rate")]
    pub allocator: String,
    /// N:M along input channels, e.g. 2:4; t2:4 for its transposable form.
    #[arg(long, value_name = "N:M")]
    pub pattern: Option<Pattern>,
    /// Layers that stay dense, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "rate")]
    pub dense: Vec<String>,
    /// The highest rate of any layer, or LAYER=RATE for one; may be repeated.
    #[arg(long, value_name = "RATE", value_parser = parse_cap, requires = "rate")]
    pub max_rate: Vec<Cap>,
    /// Gamma in the density of ERK.
    #[arg(long, value_name = "GAMMA", default_value_t = 1.0, requires = "rate")]
    pub erk_power: f64,
    /// The model's weight file, for allocators that look at weights [default: the built-in one].
    #[arg(long, value_name = "FILE", requires = "rate")]
    pub weights: Option<PathBuf>,
    /// Whether allocators see the checkpoint's weights, or those with batch norms folded in.
    #[arg(long, value_enum, default_value_t)]
    pub batch_norm: BatchNorm,
    /// Folder of the built-in networks.
    #[arg(long, value_name = "DIR", default_value = "assets")]
    pub assets: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// A value of `--max-rate`.
#[derive(Debug, Clone, PartialEq)]
pub struct Cap {
    /// The layer, or all.
    pub layer: Option<String>,
    /// Its highest rate.
    pub rate: f64,
}

fn parse_cap(text: &str) -> Result<Cap, String> {
    let (layer, rate) = match text.rsplit_once('=') {
        Some((layer, rate)) => (Some(layer.to_owned()), rate),
        None => (None, text),
    };
    match rate.parse() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(Cap { layer, rate }),
        _ => Err("give a rate from 0 to 1, or LAYER=RATE".to_owned()),
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let layers = layers_of(&args.model)?;
    let outcome = match (args.rate, args.pattern) {
        (Some(rate), _) => Some(allocate(&args, layers.clone(), rate)?),
        (None, Some(pattern)) => Some(pattern_outcome(&layers, pattern)),
        (None, None) => None,
    };
    if args.json {
        outln!("{}", layer_json(&args.model, &layers, outcome.as_ref())?)?;
    } else {
        out!("{}", layer_table(&layers, outcome.as_ref()))?;
    }
    Ok(())
}

/// The model's weights as a run sees them.
fn load(args: &Args) -> anyhow::Result<Loaded> {
    struct Open<'a>(&'a Path, BatchNorm);
    impl<M: Modality> Visit<M> for Open<'_> {
        type Out = Result<Loaded, WeightError>;
        fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Self::Out {
            let network = open_dense(network, self.0, self.1)?;
            let census = subject::census(spec, &network, &Device::flex());
            Ok(subject::weights(&network, &census))
        }
    }
    let spec = catalog::find(&args.model)?;
    let file = weight_file(spec, args.weights.clone(), &args.assets)?;
    Ok(spec.open(&Device::flex(), Open(&file, args.batch_norm))?)
}

fn allocate(args: &Args, layers: Vec<Layer>, rate: Rate) -> anyhow::Result<Allocation> {
    let allocator = find(&args.allocator)?;
    let mut options = Options {
        dense: args.dense.clone(),
        erk_power: args.erk_power,
        ..Options::default()
    };
    for cap in &args.max_rate {
        match &cap.layer {
            Some(layer) => {
                options.max_rate_of.insert(layer.clone(), cap.rate);
            }
            None => options.max_rate = cap.rate,
        }
    }
    let weights: Box<dyn Weights> = if allocator.needs_weights() || args.weights.is_some() {
        Box::new(load(args)?)
    } else {
        Box::new(layers)
    };
    allocator
        .allocate(weights.as_ref(), rate, Rule::Exact, &options)
        .with_context(|| format!("model `{}`", args.model))
}

/// The zeros of an N:M pattern follow from shapes: a layer that it does not divide stays dense.
fn pattern_outcome(layers: &[Layer], pattern: Pattern) -> Allocation {
    let zeros: IndexMap<String, usize> = layers
        .iter()
        .map(|layer| {
            let zeros = match pattern {
                Pattern::NofM { n, m } if nm_applies(&layer.shape, m) => layer.len() / m * (m - n),
                Pattern::TransposableNofM { n, m }
                    if nm_applies(&layer.shape, m) && layer.shape[0] % m == 0 =>
                {
                    layer.len() / m * (m - n)
                }
                _ => 0,
            };
            (layer.path.clone(), zeros)
        })
        .collect();
    let rates = layers.iter().map(|layer| {
        let rate = fraction(zeros[&layer.path], layer.len());
        (layer.path.clone(), rate)
    });
    Allocation {
        rates: rates.collect(),
        zeros,
    }
}

fn fraction(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// The layers as aligned plain text, one line each, with a line of totals; `outcome` adds rates and zeros.
///
/// The rate shown is the achieved one, zeros over weights.
pub fn layer_table(layers: &[Layer], outcome: Option<&Allocation>) -> String {
    let mut rows = vec![vec![
        "layer".to_owned(),
        "shape".into(),
        "weights".into(),
        "MACs".into(),
    ]];
    let zeros = |layer: &Layer| outcome.and_then(|o| o.zeros.get(&layer.path)).copied();
    for layer in layers {
        let shape: Vec<String> = layer.shape.iter().map(usize::to_string).collect();
        let groups = if layer.groups > 1 {
            format!(" /{}", layer.groups)
        } else {
            String::new()
        };
        let mut row = vec![
            layer.path.clone(),
            shape.join("x") + &groups,
            grouped(layer.len() as u64),
            grouped(layer.macs),
        ];
        row.extend(
            zeros(layer)
                .into_iter()
                .flat_map(|z| rate_and_zeros(z, layer.len())),
        );
        rows.push(row);
    }
    let weights: usize = layers.iter().map(Layer::len).sum();
    let macs: u64 = layers.iter().map(|layer| layer.macs).sum();
    let mut total = vec![
        format!("{} layers", layers.len()),
        String::new(),
        grouped(weights as u64),
        grouped(macs),
    ];
    if let Some(outcome) = outcome {
        rows[0].extend(["rate".to_owned(), "zeros".to_owned()]);
        total.extend(rate_and_zeros(outcome.total_zeros(), weights));
    }
    rows.push(total);

    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let rule = "-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1));
    let mut text = String::new();
    let last = rows.len() - 1;
    for (index, row) in rows.iter().enumerate() {
        if index == 1 || index == last && last > 1 {
            text += &rule;
            text.push('\n');
        }
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                // Names and shapes to the left, numbers to the right.
                if column < 2 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn rate_and_zeros(zeros: usize, weights: usize) -> [String; 2] {
    let rate = format!("{:.6}", fraction(zeros, weights));
    [rate, grouped(zeros as u64)]
}

/// 11678912 as `11,678,912`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[derive(Serialize)]
struct JsonLayer<'a> {
    #[serde(flatten)]
    layer: &'a Layer,
    weights: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zeros: Option<usize>,
}

/// The same as JSON; `rate` is the real-valued rate before rounding to whole weights.
fn layer_json(
    model: &str,
    layers: &[Layer],
    outcome: Option<&Allocation>,
) -> serde_json::Result<String> {
    let rows: Vec<JsonLayer> = layers
        .iter()
        .map(|layer| JsonLayer {
            layer,
            weights: layer.len(),
            rate: outcome.and_then(|o| o.rates.get(&layer.path)).copied(),
            zeros: outcome.and_then(|o| o.zeros.get(&layer.path)).copied(),
        })
        .collect();
    serde_json::to_string_pretty(&serde_json::json!({
        "model": model,
        "weights": layers.iter().map(Layer::len).sum::<usize>(),
        "macs": layers.iter().map(|layer| layer.macs).sum::<u64>(),
        "zeros": outcome.map(Allocation::total_zeros),
        "layers": rows,
    }))
}

#[cfg(test)]
mod tests {
    use kernels::{TileLayout, nm_mask, nm_mask_transposable};

    use super::*;
    use crate::inventory::LayerKind;

    fn layers() -> Vec<Layer> {
        let layer = |path: &str, kind, shape: &[usize], groups, macs| Layer {
            path: path.to_owned(),
            kind,
            shape: shape.to_vec(),
            groups,
            macs,
        };
        vec![
            layer("stem", LayerKind::Conv, &[16, 3, 3, 3], 1, 442_368),
            layer("dw", LayerKind::Conv, &[16, 1, 3, 3], 16, 36_864),
            layer("fc", LayerKind::Linear, &[100, 16], 1, 1_600),
        ]
    }

    #[test]
    fn the_table_of_a_dense_model() {
        assert_eq!(
            layer_table(&layers(), None),
            "\
layer     shape         weights     MACs
----------------------------------------
stem      16x3x3x3          432  442,368
dw        16x1x3x3 /16      144   36,864
fc        100x16          1,600    1,600
----------------------------------------
3 layers                  2,176  480,832
"
        );
    }

    #[test]
    fn the_table_of_a_pattern() {
        let outcome = pattern_outcome(&layers(), Pattern::NofM { n: 2, m: 4 });
        assert_eq!(
            layer_table(&layers(), Some(&outcome)),
            "\
layer     shape         weights     MACs      rate  zeros
---------------------------------------------------------
stem      16x3x3x3          432  442,368  0.000000      0
dw        16x1x3x3 /16      144   36,864  0.000000      0
fc        100x16          1,600    1,600  0.500000    800
---------------------------------------------------------
3 layers                  2,176  480,832  0.367647    800
"
        );
    }

    #[test]
    fn the_pattern_outcome_is_what_the_masks_have() {
        for (n, m) in [(1, 4), (2, 4), (4, 8), (8, 16), (1, 3)] {
            let outcome = pattern_outcome(&layers(), Pattern::NofM { n, m });
            for layer in layers() {
                let scores = vec![1.0f32; layer.len()];
                let mask = nm_mask(&scores, &layer.shape, n, m).unwrap();
                assert_eq!(
                    outcome.zeros[&layer.path],
                    mask.zeros(),
                    "{n}:{m} {}",
                    layer.path
                );
            }
        }
        let outcome = pattern_outcome(&layers(), Pattern::TransposableNofM { n: 2, m: 4 });
        for layer in layers() {
            let scores = vec![1.0f32; layer.len()];
            let mask = nm_mask_transposable(&scores, &layer.shape, 2, 4, TileLayout::Matrix);
            assert_eq!(
                outcome.zeros[&layer.path],
                mask.unwrap().zeros(),
                "{}",
                layer.path
            );
        }
    }

    #[test]
    fn caps_are_parsed_or_explained() {
        let cap = parse_cap("layer1.0.conv1=0.5").unwrap();
        assert_eq!(cap.layer.as_deref(), Some("layer1.0.conv1"));
        assert_eq!(parse_cap("0.9").map(|cap| cap.rate), Ok(0.9));
        assert!(parse_cap("fc=2").is_err());
    }

    #[test]
    fn json_carries_every_layer() {
        let outcome = pattern_outcome(&layers(), Pattern::NofM { n: 2, m: 4 });
        let text = layer_json("tiny", &layers(), Some(&outcome)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["zeros"], 800);
        assert_eq!(value["layers"][2]["path"], "fc");
        assert_eq!(value["layers"][2]["zeros"], 800);
        let dense = layer_json("tiny", &layers(), None).unwrap();
        assert!(!dense.contains("\"rate\""));
    }
}

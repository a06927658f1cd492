//! `ptsbench inspect`: a model's prunable layers, and what an allocator or a pattern would take from each; or a weight
//! file's layers, and the zeros that they have already.
//!
//! Needs neither weights nor data unless the allocator looks at weights.

mod explain;
mod file;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use burn::tensor::Device;
use kernels::plan::KernelPolicy;
use model_zoo::catalog::{self, Named, Spec, Visit};
use model_zoo::frozen::Choice;
use model_zoo::weights::WeightError;
use model_zoo::{Modality, Of};
use serde::Serialize;

use self::file::{Found, network_of};
use super::evaluate::weight_file;
use crate::allocate::{Allocation, Options, Rate, find};
use crate::cell::{BatchNorm, Pattern, Rule};
use crate::inventory::{Layer, Loaded, Weights};
use crate::nofm::{self, LeftDense, left_dense};
use crate::own;
use crate::pipeline::{layers_of, open_dense};
use crate::subject;
use crate::{out, outln};

/// How weight files end.
const ENDINGS: [&str; 5] = ["safetensors", "pth", "pt", "bin", "ckpt"];

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model's name in the catalog, or a weight file.
    #[arg(value_name = "MODEL|FILE")]
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
    /// The model's weight file: for allocators that look at weights [default: the built-in one], or by itself, to show
    /// its zeros.
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// What allocators see: the checkpoint's weights (batch norms kept), or the weights with batch norms folded in.
    #[arg(long, value_name = "HOW", default_value_t)]
    pub batch_norm: BatchNorm,
    /// Folder of the built-in networks.
    #[arg(long, value_name = "DIR", default_value = "assets")]
    pub assets: PathBuf,
    /// With --rate or --pattern: show on which path each layer would run in an evaluation on this machine's CPU, and why.
    #[arg(long)]
    pub explain: bool,
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
    let mut args = args;
    let mut recognised = None;
    // A name of the catalog's is a name, whatever file lies there.
    let known = catalog::all().iter().any(|spec| spec.name == args.model);
    let given = Path::new(&args.model);
    let ending = given.extension().and_then(|ending| ending.to_str());
    if !known && ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
        // No name is meant, so whatever is wrong is wrong with a file.
        own::open(given)?;
    }
    if !known && given.is_file() {
        ensure!(
            args.weights.is_none(),
            "{} is a weight file itself; give it alone, or a model's name with --weights",
            args.model
        );
        let source = own::open(Path::new(&args.model))?;
        recognised = network_of(source.as_ref());
        args.weights = Some(PathBuf::from(&args.model));
        if let Some((spec, _)) = &recognised {
            args.model = spec.name.to_owned();
        } else if args.rate.is_some() || args.pattern.is_some() {
            bail!(
                "{}: no network of the catalog has these tensors, so there is nothing to allocate to; leave --rate and --pattern out, or name the model and give --weights",
                args.model
            );
        }
    }
    if let (Some(file), None, None, false) = (&args.weights, args.rate, args.pattern, args.explain)
    {
        return zeros(&args, file, recognised);
    }
    ensure!(
        !args.explain || args.rate.is_some() || args.pattern.is_some(),
        "--explain says how pruned layers run, and nothing is pruned; give --rate or --pattern"
    );
    let named = own::named(&args.model)?;
    let looks = match args.rate {
        Some(_) => find(&args.allocator)?.needs_weights(),
        None => false,
    };
    // The file's layers: it decides the number of classes.
    let weights: Box<dyn Weights> = if looks || args.weights.is_some() {
        Box::new(load(&args, &named)?)
    } else {
        Box::new(layers_of(named.spec.name)?)
    };
    let layers = weights.layers().to_vec();
    let outcome = match (args.rate, args.pattern) {
        (Some(rate), _) => Some(allocate(&args, weights.as_ref(), rate)?),
        (None, Some(pattern)) => {
            nofm::check(&layers, pattern).with_context(|| format!("model `{}`", args.model))?;
            Some(pattern_outcome(&layers, pattern))
        }
        (None, None) => None,
    };
    let plans = match &outcome {
        Some(outcome) if args.explain => {
            let policy = KernelPolicy::from_env()?;
            let zeros = |path: &str| outcome.zeros.get(path).copied().unwrap_or(0);
            let groups = args.pattern.and_then(Pattern::groups);
            Some(explain::choices(named.spec, &layers, zeros, groups, policy))
        }
        _ => None,
    };
    let left = args.pattern.map(|pattern| left_dense(&layers, pattern));
    if args.json {
        let (outcome, left) = (outcome.as_ref(), left.as_ref());
        let text = layer_json(named.spec.name, &layers, outcome, left, plans.as_deref())?;
        outln!("{text}")?;
    } else {
        out!("{}", layer_table(&layers, outcome.as_ref()))?;
        if let Some(left) = left.filter(|left| !left.is_empty()) {
            outln!("{left}")?;
        }
        if let Some(plans) = plans {
            out!("\n{}", explain::table(&plans))?;
        }
    }
    Ok(())
}

/// Prints the zeros that a file has: of the network that it was recognised as, or that the user names.
fn zeros(
    args: &Args,
    file: &Path,
    recognised: Option<(&'static Spec, Vec<&'static str>)>,
) -> anyhow::Result<()> {
    let source = own::open(file)?;
    let whole = file.to_str() == Some(args.model.as_str());
    let found = match recognised {
        Some((spec, also)) => Found::of_network(spec, also, source.as_ref())?,
        None if whole => Found::of_tensors(source.as_ref())?,
        None => Found::of_network(own::named(&args.model)?.spec, Vec::new(), source.as_ref())?,
    };
    if args.json {
        outln!("{}", found.json(file)?)?;
    } else {
        out!("{}", found.text(file))?;
    }
    Ok(())
}

/// The model's weights as a run sees them.
fn load(args: &Args, named: &Named) -> anyhow::Result<Loaded> {
    struct Open<'a>(&'a Path, BatchNorm);
    impl<M: Modality> Visit<M> for Open<'_> {
        type Out = Result<Loaded, WeightError>;
        fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Self::Out {
            let network = open_dense(network, self.0, self.1)?;
            let census = subject::census(spec, &network, &Device::flex());
            Ok(subject::weights(&network, &census))
        }
    }
    let file = weight_file(named, args.weights.clone(), &args.assets)?;
    Ok(named
        .spec
        .open(&Device::flex(), Open(&file, args.batch_norm))?)
}

fn allocate(args: &Args, weights: &dyn Weights, rate: Rate) -> anyhow::Result<Allocation> {
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
    allocator
        .allocate(weights, rate, Rule::Exact, &options)
        .with_context(|| format!("model `{}`", args.model))
}

/// The zeros of an N:M pattern follow from shapes: a layer that it does not divide stays dense.
fn pattern_outcome(layers: &[Layer], pattern: Pattern) -> Allocation {
    let zeros: Vec<usize> = layers
        .iter()
        .map(|layer| nofm::zeros(&layer.shape, pattern).unwrap_or(0))
        .collect();
    let rates = layers.iter().zip(&zeros);
    let rates = rates.map(|(layer, &zeros)| fraction(zeros, layer.len()));
    Allocation::new(layers, rates.collect(), zeros)
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
    ruled(&rows)
}

/// Rows of cells as aligned plain text, with rules below the first and above the last.
fn ruled(rows: &[Vec<String>]) -> String {
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
    /// Why a pattern leaves it dense.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_dense: Option<String>,
    /// The path on which it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    runs: Option<&'static str>,
    /// Why on that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<&'a str>,
}

/// The same as JSON; `rate` is the real-valued rate before rounding to whole weights.
fn layer_json(
    model: &str,
    layers: &[Layer],
    outcome: Option<&Allocation>,
    left: Option<&LeftDense>,
    plans: Option<&[Choice]>,
) -> serde_json::Result<String> {
    let reason = |path: &str| {
        let misfit = left?.each().find(|(name, _)| *name == path)?.1;
        Some(misfit.to_string())
    };
    let rows: Vec<JsonLayer> = layers
        .iter()
        .enumerate()
        .map(|(index, layer)| JsonLayer {
            layer,
            weights: layer.len(),
            rate: outcome.and_then(|o| o.rates.get(&layer.path)).copied(),
            zeros: outcome.and_then(|o| o.zeros.get(&layer.path)).copied(),
            left_dense: reason(&layer.path),
            runs: plans.map(|plans| plans[index].plan.path.name()),
            because: plans.map(|plans| plans[index].plan.reason.as_str()),
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
    use model_zoo::LayerKind;

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
        let left = left_dense(&layers(), Pattern::NofM { n: 2, m: 4 });
        let text = layer_json("tiny", &layers(), Some(&outcome), Some(&left), None).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["zeros"], 800);
        assert_eq!(value["layers"][2]["path"], "fc");
        assert_eq!(value["layers"][2]["zeros"], 800);
        let reason = "3 input channels per group are not divisible by 4";
        assert_eq!(value["layers"][0]["left_dense"], reason);
        assert_eq!(value["layers"][2].get("left_dense"), None);
        let dense = layer_json("tiny", &layers(), None, None, None).unwrap();
        assert!(!dense.contains("\"rate\""));
    }
}

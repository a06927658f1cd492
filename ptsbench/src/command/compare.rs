//! `ptsbench compare`: what differs between two weight files.
//!
//! Tensors are read in pairs and forgotten, so memory stays at two of them. As with `cmp`, the exit code is 1 where the
//! files differ.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::{out, outln, own};
use model_zoo::weights::{Source, WeightError};
use serde::Serialize;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// One weight file: safetensors or .pth
    pub a: PathBuf,
    /// The other one
    pub b: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A tensor in both files.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// Its key.
    pub key: String,
    /// Its shape in either file.
    pub shapes: [Vec<usize>; 2],
    /// Its type in either file.
    pub dtypes: [String; 2],
    /// The fraction of zeros in either file; none where its values are not weights.
    pub sparsity: Option<[f64; 2]>,
    /// The largest difference of two values, and their place; none where shapes differ, or values are not weights.
    pub largest: Option<(f64, usize)>,
}

/// What differs between two files.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Keys of the first file alone.
    pub only_a: Vec<String>,
    /// Keys of the second file alone.
    pub only_b: Vec<String>,
    /// The tensors of both, in the first file's order.
    pub pairs: Vec<Pair>,
}

impl Pair {
    /// Whether the tensor is the same in both files.
    pub fn equal(&self) -> bool {
        self.shapes[0] == self.shapes[1]
            && self.dtypes[0] == self.dtypes[1]
            && self.largest.is_none_or(|(largest, _)| largest == 0.0)
    }
}

impl Comparison {
    /// Compares the tensors of two sources.
    pub fn of(a: &dyn Source, b: &dyn Source) -> Result<Comparison, WeightError> {
        let (mut in_a, mut in_b) = (a.keys(), b.keys());
        // The order of headers differs from writer to writer.
        in_a.sort();
        in_b.sort();
        let only = |keys: &[String], other: &dyn Source| -> Vec<String> {
            let missing = |key: &&String| other.shape(key).is_none();
            keys.iter().filter(missing).cloned().collect()
        };
        let pairs = in_a.iter().filter(|key| b.shape(key).is_some());
        Ok(Comparison {
            only_a: only(&in_a, b),
            only_b: only(&in_b, a),
            pairs: pairs.map(|key| pair(key, a, b)).collect::<Result<_, _>>()?,
        })
    }

    /// Whether the files hold the same tensors.
    pub fn equal(&self) -> bool {
        self.only_a.is_empty() && self.only_b.is_empty() && self.pairs.iter().all(Pair::equal)
    }
}

fn pair(key: &str, a: &dyn Source, b: &dyn Source) -> Result<Pair, WeightError> {
    let shapes = [a, b].map(|source| source.shape(key).unwrap_or_default());
    let dtypes = [a, b].map(|source| source.dtype(key).map_or("?", |dtype| dtype.name()));
    let read = |source: &dyn Source| match source.read(key) {
        Ok(values) => Ok(Some(values)),
        // Counters and the like: compared as bytes.
        Err(WeightError::WrongDtype { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let mut pair = Pair {
        key: key.to_owned(),
        dtypes: dtypes.map(str::to_owned),
        sparsity: None,
        largest: None,
        shapes,
    };
    match (read(a)?, read(b)?) {
        (Some(a), Some(b)) => {
            pair.sparsity = Some([&a, &b].map(|values| {
                let zeros = values.iter().filter(|value| **value == 0.0).count();
                zeros as f64 / values.len().max(1) as f64
            }));
            if a.len() == b.len() && pair.shapes[0] == pair.shapes[1] {
                pair.largest = largest(&a, &b);
            }
        }
        _ if a.raw(key)? != b.raw(key)? => pair.largest = Some((f64::INFINITY, 0)),
        _ => {}
    }
    Ok(pair)
}

fn largest(a: &[f32], b: &[f32]) -> Option<(f64, usize)> {
    let differences = a
        .iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
        .enumerate();
    // The first of equal ones.
    differences.fold(None, |found, (at, difference)| match found {
        Some((largest, _)) if difference <= largest => found,
        _ => Some((difference, at)),
    })
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (a, b) = (own::open(&args.a)?, own::open(&args.b)?);
    let comparison = Comparison::of(a.as_ref(), b.as_ref())?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&comparison)?)?;
    } else {
        out!("{}", text(&args.a, &args.b, &comparison))?;
    }
    Ok(if comparison.equal() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The comparison in lines: what only one file has, then the tensors that differ, then the sums.
fn text(a: &Path, b: &Path, comparison: &Comparison) -> String {
    let mut text = String::new();
    for (file, keys) in [(a, &comparison.only_a), (b, &comparison.only_b)] {
        for key in keys {
            text += &format!("only in {}: {key}\n", file.display());
        }
    }
    let different: Vec<&Pair> = comparison
        .pairs
        .iter()
        .filter(|pair| !pair.equal())
        .collect();
    let width = different
        .iter()
        .map(|pair| pair.key.len())
        .max()
        .unwrap_or(0);
    for pair in &different {
        let mut parts = Vec::new();
        if pair.shapes[0] != pair.shapes[1] {
            parts.push(format!(
                "shape {:?} and {:?}",
                pair.shapes[0], pair.shapes[1]
            ));
        }
        if pair.dtypes[0] != pair.dtypes[1] {
            parts.push(format!("{} and {}", pair.dtypes[0], pair.dtypes[1]));
        }
        match pair.largest {
            Some((largest, _)) if largest.is_infinite() => parts.push("other bytes".to_owned()),
            Some((largest, at)) if largest > 0.0 => {
                parts.push(format!("largest difference {largest:.3e} at {at}"));
            }
            _ => {}
        }
        if let Some([a, b]) = pair.sparsity
            && a != b
        {
            parts.push(format!("sparsity {a:.4} and {b:.4}"));
        }
        text += &format!("{:<width$}  {}\n", pair.key, parts.join(", "));
    }
    let same = comparison.pairs.len() - different.len();
    text += &format!(
        "{} tensors in both, {same} of them equal; {} only in the first, {} only in the second\n",
        comparison.pairs.len(),
        comparison.only_a.len(),
        comparison.only_b.len()
    );
    text
}

//! A weight file as it is: whose it is, and the zeros that it has.

use std::path::Path;

use anyhow::Context;
use burn::tensor::Device;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::tap::Census;
use model_zoo::weights::{Source, WeightError, fits, load_network, other_classes, recognise};
use model_zoo::{Modality, Network, Of};
use serde_json::json;

use super::{fraction, grouped, ruled};
use crate::inventory::Weights;
use crate::subject;
use crate::zeros::Zeros;

/// A file's network and its prunable weights.
pub(super) struct Found {
    /// The network; none where it is none of the catalog's.
    model: Option<&'static str>,
    /// Other names of the same network.
    also: Vec<&'static str>,
    /// How many classes it names; none where it names none.
    classes: Option<usize>,
    layers: Vec<Row>,
}

struct Row {
    path: String,
    shape: Vec<usize>,
    zeros: Zeros,
}

/// The network whose keys and shapes a source has, its number of classes apart, and its other names.
///
/// The keys and the number of classes decide where several have the shapes, then the catalog's order.
pub(super) fn network_of(source: &dyn Source) -> Option<(&'static Spec, Vec<&'static str>)> {
    struct Fits<'a>(&'a dyn Source);
    impl<M: Modality> Visit<M> for Fits<'_> {
        /// How unlike the row the source is; nothing where it is another network.
        type Out = Option<[bool; 2]>;
        fn visit<N: Of<M>>(self, _: &'static Spec, network: N) -> Self::Out {
            let unlike = [
                recognise(&network, self.0).is_some(),
                other_classes(&network, self.0).is_some(),
            ];
            fits(network, self.0).ok().map(|_| unlike)
        }
    }
    let fitting = catalog::all().iter().filter_map(|spec| {
        let unlike = spec.open(&Device::flex(), Fits(source))?;
        Some((unlike, spec))
    });
    let mut fitting: Vec<([bool; 2], &'static Spec)> = fitting.collect();
    fitting.sort_by_key(|(unlike, _)| *unlike);
    let (_, first) = *fitting.first()?;
    let also = fitting.iter().skip(1).map(|(_, spec)| spec.name);
    Some((first, also.collect()))
}

/// How many classes a network names, or looks for.
fn classes<N: Network>(network: &N, census: &Census) -> Option<usize> {
    let path = network.classifier()?;
    let row = census.layers().into_iter().find(|row| row.path == path)?;
    Some(row.layer?.shape[0] / network.rows_of_class())
}

impl Found {
    /// A network's prunable weights in a source.
    pub(super) fn of_network(
        spec: &'static Spec,
        also: Vec<&'static str>,
        source: &dyn Source,
    ) -> Result<Self, WeightError> {
        struct Layers<'a>(&'a dyn Source);
        impl<M: Modality> Visit<M> for Layers<'_> {
            type Out = Result<(Option<usize>, Vec<Row>), WeightError>;
            fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Self::Out {
                let network = load_network(network, self.0)?;
                let census = subject::census(spec, &network, &Device::flex());
                let weights = subject::weights(&network, &census);
                let row = |(index, layer): (usize, &crate::inventory::Layer)| Row {
                    path: layer.path.clone(),
                    shape: layer.shape.clone(),
                    zeros: Zeros::of(&layer.shape, weights.weight(index).unwrap_or_default()),
                };
                let rows = weights.layers().iter().enumerate().map(row).collect();
                Ok((classes(&network, &census), rows))
            }
        }
        let (classes, layers) = spec.open(&Device::flex(), Layers(source))?;
        Ok(Self {
            model: Some(spec.name),
            also,
            classes,
            layers,
        })
    }

    /// The matrices and kernels of a source that is not a network of the catalog.
    pub(super) fn of_tensors(source: &dyn Source) -> anyhow::Result<Self> {
        let mut layers = Vec::new();
        for key in source.keys() {
            let shape = source.shape(&key).unwrap_or_default();
            if ![2, 4].contains(&shape.len()) {
                continue;
            }
            let values = match source.read(&key) {
                Ok(values) => values,
                // Whole numbers are not weights.
                Err(WeightError::WrongDtype { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let zeros = Zeros::of(&shape, &values);
            layers.push(Row {
                path: key,
                shape,
                zeros,
            });
        }
        let first = layers.first();
        first.with_context(|| {
            format!(
                "{}: holds no tensor of two or four dimensions, so it has no layer's weights; give a network's weights",
                source.origin()
            )
        })?;
        Ok(Self {
            model: None,
            also: Vec::new(),
            classes: None,
            layers,
        })
    }

    fn total(&self, of: impl Fn(&Zeros) -> usize) -> usize {
        self.layers.iter().map(|row| of(&row.zeros)).sum()
    }

    /// A line on whose file it is, and a line for each layer.
    pub(super) fn text(&self, file: &Path) -> String {
        let mut text = format!("{}: ", file.display());
        text += &match (self.model, self.classes) {
            (Some(model), Some(classes)) => format!("{model} with {classes} classes"),
            (Some(model), None) => model.to_owned(),
            (None, _) => "not a network of the catalog; its matrices and kernels".to_owned(),
        };
        if !self.also.is_empty() {
            text += &format!(" (its tensors also fit {})", self.also.join(", "));
        }
        text.push('\n');
        let mut rows = vec![
            [
                "layer",
                "shape",
                "weights",
                "zeros",
                "rate",
                "dead rows",
                "N:M",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for row in &self.layers {
            let zeros = &row.zeros;
            let patterns: Vec<String> = zeros.patterns.iter().map(written).collect();
            rows.push(vec![
                row.path.clone(),
                shape(&row.shape),
                grouped(zeros.weights as u64),
                grouped(zeros.zeros as u64),
                format!("{:.6}", fraction(zeros.zeros, zeros.weights)),
                format!("{} of {}", zeros.dead_rows, zeros.rows),
                patterns.join(" "),
            ]);
        }
        let weights = self.total(|zeros| zeros.weights);
        let zeros = self.total(|zeros| zeros.zeros);
        rows.push(vec![
            format!("{} layers", self.layers.len()),
            String::new(),
            grouped(weights as u64),
            grouped(zeros as u64),
            format!("{:.6}", fraction(zeros, weights)),
            format!(
                "{} of {}",
                self.total(|zeros| zeros.dead_rows),
                self.total(|zeros| zeros.rows)
            ),
        ]);
        text + &ruled(&rows)
    }

    /// The same as JSON.
    pub(super) fn json(&self, file: &Path) -> serde_json::Result<String> {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|row| {
                let zeros = &row.zeros;
                json!({
                    "path": row.path,
                    "shape": row.shape,
                    "weights": zeros.weights,
                    "zeros": zeros.zeros,
                    "rate": fraction(zeros.zeros, zeros.weights),
                    "rows": zeros.rows,
                    "dead_rows": zeros.dead_rows,
                    "patterns": zeros.patterns.iter().map(written).collect::<Vec<_>>(),
                })
            })
            .collect();
        serde_json::to_string_pretty(&json!({
            "file": file.display().to_string(),
            "model": self.model,
            "also": self.also,
            "classes": self.classes,
            "weights": self.total(|zeros| zeros.weights),
            "zeros": self.total(|zeros| zeros.zeros),
            "dead_rows": self.total(|zeros| zeros.dead_rows),
            "layers": layers,
        }))
    }
}

fn written((n, m): &(usize, usize)) -> String {
    format!("{n}:{m}")
}

fn shape(sides: &[usize]) -> String {
    let sides: Vec<String> = sides.iter().map(usize::to_string).collect();
    sides.join("x")
}

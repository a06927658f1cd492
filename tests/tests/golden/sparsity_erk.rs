//! The ERK table of the specification's section 1.3, from the published shapes (power 1, every convolution and linear
//! layer prunable), to 1e-6. The networks' golden files of this repository give the shapes.

use model_zoo::LayerKind;
use ptsbench::allocate::{Options, Rate, erk_densities, find};
use ptsbench::cell::Rule;
use ptsbench::inventory::Layer;
use ptsbench_tests::workspace_root;

use crate::sparsity_data::{count, read_json, shape, text};

struct Row {
    arch: &'static str,
    /// Replaces the last layer's outputs.
    classes: Option<usize>,
    total: usize,
    rate: f64,
    capped: usize,
    layers: usize,
    last: f64,
    largest: f64,
    /// The layer that reaches the largest rate first; empty where the table names none.
    reached_by: &'static str,
    weighted: f64,
}

#[rustfmt::skip]
const TABLE: [Row; 11] = [
    Row { arch: "resnet18", classes: None, total: 11_678_912, rate: 0.5, capped: 14, layers: 21, last: 0.0, largest: 0.662576, reached_by: "layer4.0.conv2", weighted: 0.50000000 },
    Row { arch: "resnet18", classes: None, total: 11_678_912, rate: 0.7, capped: 10, layers: 21, last: 0.0, largest: 0.828585, reached_by: "", weighted: 0.69999911 },
    Row { arch: "resnet18", classes: None, total: 11_678_912, rate: 0.8, capped: 4, layers: 21, last: 0.280309, largest: 0.893605, reached_by: "", weighted: 0.79999918 },
    Row { arch: "resnet18", classes: None, total: 11_678_912, rate: 0.9, capped: 3, layers: 21, last: 0.656585, largest: 0.949232, reached_by: "", weighted: 0.89999916 },
    Row { arch: "resnet50", classes: None, total: 25_502_912, rate: 0.5, capped: 32, layers: 54, last: 0.547634, largest: 0.867303, reached_by: "layer4.0.conv2", weighted: 0.50000000 },
    Row { arch: "resnet50", classes: None, total: 25_502_912, rate: 0.7, capped: 16, layers: 54, last: 0.768450, largest: 0.932077, reached_by: "", weighted: 0.69999889 },
    Row { arch: "resnet50", classes: None, total: 25_502_912, rate: 0.8, capped: 8, layers: 54, last: 0.851824, largest: 0.956534, reached_by: "", weighted: 0.79999904 },
    Row { arch: "resnet50", classes: None, total: 25_502_912, rate: 0.9, capped: 1, layers: 54, last: 0.927392, largest: 0.978701, reached_by: "", weighted: 0.89999895 },
    Row { arch: "mobilenetv2_100", classes: None, total: 3_469_760, rate: 0.5, capped: 44, layers: 53, last: 0.826381, largest: 0.826381, reached_by: "classifier", weighted: 0.50000000 },
    Row { arch: "mobilenetv2_100", classes: None, total: 3_469_760, rate: 0.9, capped: 19, layers: 53, last: 0.975905, largest: 0.975905, reached_by: "classifier", weighted: 0.89999481 },
    Row { arch: "cifar_resnet32", classes: Some(100), total: 470_192, rate: 0.9, capped: 2, layers: 34, last: 0.551582, largest: 0.936391, reached_by: "layer3.0.conv2", weighted: 0.89996214 },
];

/// Layers of a network's golden file in the order of the first forward pass.
fn layers(row: &Row) -> Vec<Layer> {
    let path = workspace_root().join(format!("tests/golden/zoo/{}.json", row.arch));
    let file = read_json(&path);
    let mut stored: Vec<_> = file["layers"].as_array().expect("layers").iter().collect();
    stored.sort_by_key(|layer| count(&layer["order"]));
    let mut layers: Vec<Layer> = stored
        .into_iter()
        .map(|layer| Layer {
            path: text(&layer["key"]).trim_end_matches(".weight").to_owned(),
            kind: match text(&layer["kind"]) {
                "linear" => LayerKind::Linear,
                _ => LayerKind::Conv,
            },
            shape: shape(&layer["shape"]),
            groups: layer.get("groups").map_or(1, count),
            macs: 0,
        })
        .collect();
    if let (Some(classes), Some(last)) = (row.classes, layers.last_mut()) {
        last.shape[0] = classes;
    }
    layers
}

#[test]
fn sparsity_erk_table() {
    let mut compared = 0;
    for row in &TABLE {
        let what = format!("{} {}", row.arch, row.rate);
        let close = |got: f64, want: f64, column: &str| {
            assert!(
                (got - want).abs() <= 1e-6,
                "{what} {column}: {got} is not {want}"
            );
        };
        let layers = layers(row);
        let total: usize = layers.iter().map(Layer::len).sum();
        assert_eq!((layers.len(), total), (row.layers, row.total), "{what}");

        let shapes: Vec<&[usize]> = layers.iter().map(|l| &l.shape[..]).collect();
        let got = erk_densities(&shapes, row.rate, 1.0, &vec![false; layers.len()]).unwrap();
        assert_eq!(
            got.dense.iter().filter(|&&dense| dense).count(),
            row.capped,
            "{what}"
        );
        close(got.rates[layers.len() - 1], row.last, "last layer's rate");
        let largest = got.rates.iter().copied().fold(0.0, f64::max);
        close(largest, row.largest, "largest rate");
        if !row.reached_by.is_empty() {
            let first = got.rates.iter().position(|&r| r == largest).unwrap();
            assert_eq!(layers[first].path, row.reached_by, "{what}");
        }
        let zeros: f64 = got
            .rates
            .iter()
            .zip(&layers)
            .map(|(r, l)| r * l.len() as f64)
            .sum();
        close(zeros / total as f64, row.weighted, "rate before repair");

        // The allocator gives the same rates, and whole weights that meet the budget.
        let rate = Rate::new(row.rate).unwrap();
        let erk = find("erk").unwrap();
        let allocation = erk
            .allocate(&layers, rate, Rule::Exact, &Options::default())
            .unwrap();
        assert!(allocation.rates.values().eq(got.rates.iter()), "{what}");
        assert_eq!(allocation.total_zeros(), rate.zeros(total), "{what}");
        compared += 1;
    }
    println!("sparsity: {compared} rows of the ERK table within 1e-6");
}

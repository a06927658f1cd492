//! Masks bit by bit: exact counts, the released rule, N:M, transposable 2:4 in both layouts.

use std::collections::HashMap;

use kernels::{BitMask, TileLayout, nm_applies, nm_mask, nm_mask_transposable};
use ptsbench::allocate::{Allocation, Options, find};
use ptsbench::cell::{Pattern, Rule};
use ptsbench::criterion;
use ptsbench::inventory::{Layer, Loaded, Weights};
use ptsbench::select::select;

use crate::sparsity_data::{Array, count, fields, json, models, number, tensors};

/// Layers of all golden models by `<model>/<layer>`.
fn layers() -> HashMap<String, (Layer, Vec<f32>)> {
    let mut all = HashMap::new();
    for model in models() {
        for (index, layer) in model.weights.layers().iter().enumerate() {
            let weight = model.weights.weight(index).unwrap().to_vec();
            all.insert(
                format!("{}/{}", model.name, layer.path),
                (layer.clone(), weight),
            );
        }
    }
    all
}

fn magnitudes(weight: &[f32]) -> Vec<f32> {
    weight.iter().map(|w| w.abs()).collect()
}

#[track_caller]
fn assert_same(mask: &BitMask, want: &Array, what: &str) {
    mask.validate().unwrap();
    assert_eq!(mask.rows(), want.shape[0], "{what}");
    let differing = mask.keep().zip(want.keep()).filter(|(a, b)| a != b).count();
    assert_eq!(
        (mask.len(), differing),
        (want.values.len(), 0),
        "{what}: bits differ"
    );
}

/// The bench's own way from weights to the mask of one layer.
fn select_one(
    layer: &Layer,
    weight: &[f32],
    pattern: Pattern,
    allocation: Option<&Allocation>,
) -> BitMask {
    let weights = Loaded::new([(layer.clone(), weight.to_vec())]).unwrap();
    let magnitude = criterion::magnitude();
    let masks = select(&weights, magnitude, pattern, allocation, Rule::Exact);
    masks
        .unwrap_or_else(|e| panic!("{e}"))
        .swap_remove(&layer.path)
        .unwrap()
}

#[test]
fn sparsity_exact_masks() {
    let layers = layers();
    let mut compared = 0;
    for (name, want) in tensors("masks.safetensors") {
        let Some((rate, key)) = name
            .strip_prefix("exact_floor/")
            .and_then(|rest| rest.split_once('/'))
        else {
            continue;
        };
        let rate: f64 = rate.parse().unwrap();
        let (layer, weight) = &layers[key];
        let zeros = (rate * weight.len() as f64).floor() as usize;
        let allocation = Allocation {
            rates: [(layer.path.clone(), rate)].into_iter().collect(),
            zeros: [(layer.path.clone(), zeros)].into_iter().collect(),
            losses: Vec::new(),
        };
        let mask = select_one(
            layer,
            weight,
            Pattern::Unstructured { rate },
            Some(&allocation),
        );
        assert_same(&mask, &want, &name);
        assert_eq!(mask.zeros(), zeros, "{name}");
        compared += 1;
    }
    println!("sparsity: {compared} exact masks equal");
    assert!(compared > 0);
}

#[test]
fn sparsity_released_masks() {
    let magnitude = criterion::magnitude();
    let mut compared = 0;
    for model in models() {
        for (rate, expected) in fields(&model.expected["rates"]) {
            let what = format!("{} {rate}", model.name);
            let rate = rate.parse().unwrap_or_else(|e| panic!("{what}: {e}"));
            let allocation = find("uniform")
                .unwrap()
                .allocate(&model.weights, rate, Rule::Msbench, &Options::default())
                .unwrap();
            let pattern = Pattern::Unstructured { rate: rate.get() };
            let masks = select(
                &model.weights,
                magnitude,
                pattern,
                Some(&allocation),
                Rule::Msbench,
            );
            for (path, mask) in &masks.unwrap() {
                let want = count(&expected["uniform"][path]["zeros_if_threshold"]["keep_trunc"]);
                assert_eq!(mask.zeros(), want, "{what} {path}");
                compared += 1;
            }
        }
    }
    println!("sparsity: {compared} masks of the released rule with equal counts, ties included");
    assert!(compared > 0);
}

#[test]
fn sparsity_n_of_m_masks() {
    let (layers, masks) = (layers(), tensors("masks.safetensors"));
    let (mut compared, mut dense) = (0, 0);
    for (pattern, expected) in fields(&json("masks.json")["nm"]) {
        let (n, m) = pattern.split_once(':').expect("N:M");
        let (n, m) = (n.parse().unwrap(), m.parse().unwrap());
        for (key, expected) in fields(expected) {
            let what = format!("nm/{pattern}/{key}");
            let (layer, weight) = &layers[key];
            let mask = nm_mask(&magnitudes(weight), &layer.shape, n, m).unwrap();
            assert_eq!(
                mask,
                select_one(layer, weight, Pattern::NofM { n, m }, None),
                "{what}"
            );
            assert_eq!(mask.zeros(), count(&expected["zeros"]), "{what}");
            let applies = expected["applies"].as_bool().expect("a flag");
            assert_eq!(nm_applies(&layer.shape, m), applies, "{what}");
            match masks.get(&what) {
                Some(want) => {
                    assert_same(&mask, want, &what);
                    compared += 1;
                }
                None => {
                    assert!(!applies, "{what} is missing");
                    dense += 1;
                }
            }
        }
    }
    println!("sparsity: {compared} N:M masks equal, {dense} layers dense as they must be");
    assert!(compared > 0);
}

#[test]
fn sparsity_transposable_masks() {
    let (layers, masks, expected) = (layers(), tensors("masks.safetensors"), json("masks.json"));
    let (mut compared, mut sums) = (0, 0);
    for (topic, layout) in [
        ("transposable_2:4", TileLayout::Matrix),
        ("transposable_2:4_flat16", TileLayout::Flat16),
    ] {
        for (key, expected) in fields(&expected[topic]) {
            let what = format!("{topic}/{key}");
            let (layer, weight) = &layers[key];
            let mask =
                nm_mask_transposable(&magnitudes(weight), &layer.shape, 2, 4, layout).unwrap();
            if layout == TileLayout::Matrix {
                let pattern = Pattern::TransposableNofM { n: 2, m: 4 };
                assert_eq!(mask, select_one(layer, weight, pattern, None), "{what}");
            }
            let kept = mask.keep().zip(weight).filter(|(keep, _)| *keep);
            let sum: f64 = kept.map(|(_, w)| f64::from(w.abs())).sum();
            let want = number(&expected["kept_abs_sum"]);
            assert!(
                (sum - want).abs() <= 1e-9 * want.abs(),
                "{what}: {sum} is not {want}"
            );
            sums += 1;
            // Equal sums leave the choice open; elsewhere the best mask is unique.
            if count(&expected["blocks_with_ties"]) == 0 {
                assert_same(&mask, &masks[&what], &what);
                assert_eq!(mask.zeros(), count(&expected["zeros"]), "{what}");
                compared += 1;
            }
        }
        // What the file leaves out has sides that 4 does not divide, and stays dense.
        if layout == TileLayout::Matrix {
            for (key, (layer, weight)) in &layers {
                if expected[topic].get(key).is_none() {
                    let mask =
                        nm_mask_transposable(&magnitudes(weight), &layer.shape, 2, 4, layout);
                    assert_eq!(mask.unwrap().zeros(), 0, "{key}");
                }
            }
        }
    }
    println!("sparsity: {compared} transposable masks equal, {sums} kept sums within 1e-9");
    assert!(compared > 0);
}

//! Networks pruned by magnitude, as several tests need them.

use burn::tensor::{Device, Tensor};
use ptsbench::allocate::{self, Options, Rate};
use ptsbench::cell::{CalibrationCell, Pattern, Rule};
use ptsbench::criterion;
use ptsbench::inventory::Loaded;
use ptsbench::select::{Masks, select};
use ptsbench::task::classify::Classification;
use ptsbench::task::judged::Judge;

/// The masks of the smallest weights at `rate`, spread by an allocator that looks at nothing but weights.
pub fn masks(weights: &Loaded, allocator: &str, rate: f64) -> Masks {
    let allocation = allocate::find(allocator)
        .and_then(|allocator| {
            let rate = Rate::new(rate).expect("a rate");
            allocator.allocate(weights, rate, Rule::Exact, &Options::default())
        })
        .expect("an allocation");
    select(
        weights,
        criterion::magnitude(),
        Pattern::Unstructured { rate },
        Some(&allocation),
        Rule::Exact,
    )
    .expect("masks")
}

/// Calibration images of the built-in set, drawn by a seed.
pub fn batches(images: usize, batch: usize, seed: u64, device: &Device) -> Vec<Tensor<4>> {
    let wanted = CalibrationCell {
        images,
        batch,
        seed,
        list: None,
    };
    let batches = Classification::micro().calibration(
        &|_| unreachable!("no input is a network's output"),
        &wanted,
        device,
        u64::MAX,
    );
    let batches = batches.expect("so many images");
    batches.iter().map(|batch| batch.expect("images")).collect()
}

//! The Fréchet distance against 50-digit arithmetic, exact routes and pytorch-fid's statistics files.

use ptsbench::metric::fid::{self, Statistics};
use ptsbench::metric::npz;
use ptsbench_tests::golden_topic;

use crate::probe::{Tally, Tolerance, json};
use crate::tensors::Tensors;

fn largest(values: &[f64]) -> f64 {
    values
        .iter()
        .fold(0.0, |most: f64, value| most.max(value.abs()))
}

#[test]
fn fid_distances() {
    let topic = golden_topic("fid");
    let tensors = Tensors::open(&topic.join("features.safetensors"));
    let expected = json(&topic.join("expected.json"));
    let mut tally = Tally::default();
    for (name, want) in expected["cases"].as_object().expect("cases") {
        let of = |set: &str| tensors.f32(&format!("{name}/{set}"));
        let width = want["d"].as_u64().unwrap() as usize;
        let (a, b) = (of("a"), of("b"));
        let statistics = [&a, &b].map(|features| Statistics::of(features, width).expect(name));
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        let scale =
            number(&want["mean_part"]) + number(&want["trace"][0]) + number(&want["trace"][1]);
        let singular = name.contains("singular") || name.ends_with("small_n") || width > 64;
        let tolerance = Tolerance::abs(match name.as_str() {
            "identical" => 1e-10,
            _ if singular => 1e-6 * scale,
            _ => 1e-10 * scale,
        });
        let reference = number(&want["reference"]);
        let got = fid::distance_of_features(&a, &b, width).expect(name);
        tally.near(got, reference, tolerance, name);
        // Thousands of eigenvalues say no more than those of the smaller cases.
        if width <= 64 {
            let got = fid::distance(&statistics[0], &statistics[1]).expect(name);
            println!("{name}: {:e} of the scale", (got - reference).abs() / scale);
            tally.near(
                got,
                reference,
                tolerance,
                &format!("{name}, from statistics"),
            );
            for (set, statistics) in ["a", "b"].iter().zip(&statistics) {
                let mean = tensors.f64(&format!("{name}/mu_{set}"));
                let near = Tolerance::abs(1e-12 * largest(&mean));
                tally.all(&statistics.mean, &mean, near, &format!("{name}: mean"));
                let covariance = tensors.f64(&format!("{name}/sigma_{set}"));
                let near = Tolerance::abs(1e-12 * largest(&covariance));
                let what = format!("{name}: covariance");
                tally.all(&statistics.covariance, &covariance, near, &what);
            }
        }
    }
    tally.report("fid/distance");
}

#[test]
fn fid_statistics_files() {
    let topic = golden_topic("fid");
    let tensors = Tensors::open(&topic.join("features.safetensors"));
    let mut tally = Tally::default();
    for file in ["stats_d16_a.npz", "stats_d16_a_deflate.npz"] {
        let got = npz::read(&topic.join(file)).expect("a good file");
        assert_eq!(got.mean, tensors.f64("d16/mu_a"), "{file}");
        assert_eq!(got.covariance, tensors.f64("d16/sigma_a"), "{file}");
        tally.exact(got.mean.len() + got.covariance.len());
    }
    tally.report("fid/files");
}

//! Times the metrics alone, for `tests/peers/metric_peer.py`, which sets the reference programs beside them.
//!
//!     metric_times coco TRUTH.json RESULTS.json     COCO AP of a results file
//!     metric_times fid A.f32 B.f32 WIDTH            distance of two files of little-endian f32 features
//!
//! Reading the files is not timed. One line of JSON comes out; processor time is there on Linux alone.

use std::time::Instant;

use anyhow::{Context, bail, ensure};
use ptsbench::metric::coco_ap::{self, Found, Truth};
use ptsbench::metric::fid::{self, Gatherer, Statistics};
use serde::Deserialize;
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let line = match arguments[..] {
        ["coco", truth, results] => coco(truth, results)?,
        ["fid", a, b, width] => frechet(a, b, width.parse().context("WIDTH")?)?,
        _ => bail!("metric_times coco TRUTH.json RESULTS.json, or fid A.f32 B.f32 WIDTH"),
    };
    println!("{line}");
    Ok(())
}

/// Wall and processor time since a start.
struct Watch(Instant, Option<f64>);

impl Watch {
    fn start() -> Self {
        Watch(Instant::now(), processor_seconds())
    }

    fn wall(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }

    fn processor(&self) -> Option<f64> {
        Some(processor_seconds()? - self.1?)
    }
}

/// Of all threads of this process; the file counts hundredths of seconds.
fn processor_seconds() -> Option<f64> {
    let line = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name before may hold spaces.
    let fields: Vec<&str> = line.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

#[derive(Deserialize)]
struct Annotations {
    images: Vec<Row>,
    categories: Vec<Row>,
    annotations: Vec<Object>,
}

#[derive(Deserialize)]
struct Row {
    id: i64,
}

#[derive(Deserialize)]
struct Object {
    id: i64,
    image_id: i64,
    category_id: i64,
    bbox: [f64; 4],
    area: f64,
    iscrowd: u8,
}

#[derive(Deserialize)]
struct Detection {
    image_id: i64,
    category_id: i64,
    bbox: [f64; 4],
    score: f64,
}

fn read(file: &str) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| file.to_owned())
}

fn coco(truth: &str, results: &str) -> anyhow::Result<serde_json::Value> {
    let annotated: Annotations = serde_json::from_slice(&read(truth)?)?;
    let detections: Vec<Detection> = serde_json::from_slice(&read(results)?)?;
    let ids = |rows: &[Row]| rows.iter().map(|row| row.id).collect::<Vec<i64>>();
    let (images, categories) = (ids(&annotated.images), ids(&annotated.categories));
    let truth: Vec<Truth> = annotated
        .annotations
        .iter()
        .map(|object| Truth {
            id: object.id,
            image: object.image_id,
            category: object.category_id,
            bbox: object.bbox,
            area: object.area,
            crowd: object.iscrowd != 0,
        })
        .collect();
    let found: Vec<Found> = detections
        .iter()
        .map(|detection| Found {
            image: detection.image_id,
            category: detection.category_id,
            bbox: detection.bbox,
            score: detection.score,
        })
        .collect();
    let watch = Watch::start();
    let s = coco_ap::evaluate(&images, &categories, &truth, &found)?.stats;
    let (seconds, processor) = (watch.wall(), watch.processor());
    let stats = [
        s.ap,
        s.ap50,
        s.ap75,
        s.ap_small,
        s.ap_medium,
        s.ap_large,
        s.ar1,
        s.ar10,
        s.ar100,
        s.ar_small,
        s.ar_medium,
        s.ar_large,
    ];
    Ok(json!({ "seconds": seconds, "processor_s": processor, "stats": stats }))
}

/// Features that the distance takes at a time, as a network would hand them over.
const BATCH: usize = 64;

fn statistics(features: &[f32], width: usize) -> anyhow::Result<Statistics> {
    let mut gatherer = Gatherer::new(width);
    for batch in features.chunks(BATCH * width) {
        gatherer.add(batch)?;
    }
    Ok(gatherer.finish()?)
}

fn frechet(a: &str, b: &str, width: usize) -> anyhow::Result<serde_json::Value> {
    let features = |file: &str| -> anyhow::Result<Vec<f32>> {
        let bytes = read(file)?;
        let (values, rest) = bytes.as_chunks::<4>();
        let whole = rest.is_empty() && width > 0 && values.len().is_multiple_of(width);
        ensure!(whole, "{file}: no rows of {width} features");
        Ok(values
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect())
    };
    let (a, b) = (features(a)?, features(b)?);
    let watch = Watch::start();
    let (a, b) = (statistics(&a, width)?, statistics(&b, width)?);
    let gathered = watch.wall();
    let distance = fid::distance(&a, &b)?;
    Ok(json!({
        "seconds": watch.wall(), "processor_s": watch.processor(), "statistics_s": gathered, "distance": distance,
    }))
}

//! The figures of a suite: what each shows, from records to positions and words.

use super::figure::{Axis, Bar, BarRow, Bars, Body, Figure, Line, Lines, Panel, Reference};
use super::groups::Group;
use super::published::{Published, percent};
use super::suite::{Found, Model, Suite, Task, level};
use super::tables::{mean_loss, top1_after};
use super::theme::{self, Marker, Style};
use super::{TRACK2, allocator_name};
use crate::overall;
use crate::record::Record;
use crate::statistics::Deviation;

/// The rate at which the paper's Fig. 3 stands.
const FIGURE3_RATE: f64 = 0.9;

/// All figures of a suite. One without records is left out.
pub fn figures(suite: &Suite<'_>) -> Vec<Figure> {
    let mut figures = Vec::new();
    figures.extend(layer_rates(suite));
    if suite.kind() == Task::Classification {
        figures.extend(loss_over_sizes(suite));
        figures.extend(architectures(suite));
    }
    for (family, models) in suite.pruned_families() {
        figures.extend(scores_over_rates(suite, family, &models));
    }
    // A distance has no scale of its own to be shown on.
    let reconstructed = match suite.kind() {
        Task::Generation => Vec::new(),
        _ => suite.allocators(true),
    };
    for allocator in reconstructed {
        let models = suite.reconstructed_models(&allocator);
        for model in &models {
            let several = (models.len() > 1).then_some(model);
            let mark = several.map_or_else(String::new, |model| format!("_{}", model.label));
            figures.extend(recovery(suite, &allocator, model, &mark));
        }
    }
    figures
}

/// Lines or bars beside each other at most: the paper's allocators first, the others in the tables alone.
const MOST: usize = 5;
/// Panels beside each other at most.
const MOST_PANELS: usize = 3;

/// The first allocators: those that were measured on every network at the rates of the overall metrics before others.
fn shown(suite: &Suite<'_>, most: usize) -> Vec<String> {
    let models = suite.pruned_models();
    let partial = |name: &String| models.iter().any(|m| m.relatives(name).is_err());
    let mut shown = suite.allocators(false);
    shown.sort_by_cached_key(partial);
    shown.truncate(most);
    shown
}

fn styled(allocators: &[String]) -> impl Iterator<Item = (&str, Style)> {
    allocators
        .iter()
        .enumerate()
        .map(|(place, name)| (name.as_str(), theme::allocator(name, place)))
}

fn percent_axis(label: &str) -> Axis {
    Axis::round(label, 0.0, 100.0, 5)
}

/// The size in the middle of the first family that has a record of every allocator at this rate: the paper shows one
/// network of its ResNets.
fn middle<'a>(
    suite: &'a Suite<'_>,
    allocators: &[String],
) -> Option<(&'a Model<'a>, Vec<&'a Record>)> {
    let complete = |models: Vec<&'a Model<'a>>| {
        let complete: Vec<_> = models
            .into_iter()
            .filter_map(|model| {
                let records: Found<Vec<&Record>> = allocators
                    .iter()
                    .map(|a| Ok(model.pruned(a, FIGURE3_RATE)?[0]))
                    .collect();
                Some((model, records.ok()?))
            })
            .collect();
        let place = complete.len().checked_sub(1)? / 2;
        complete.into_iter().nth(place)
    };
    let families = suite.pruned_families().into_iter();
    families.filter_map(|(_, models)| complete(models)).next()
}

/// Track 5: what is left of each task as zeros are added, beside the paper's numbers.
pub fn tasks(group: &Group<'_>, published: &Published) -> Option<Figure> {
    let line = |task: Task, of: &dyn Fn(f64) -> Option<f64>| {
        let points = overall::RATES.map(|rate| Some((100.0 * rate, of(rate)?)));
        let points: Vec<(f64, f64)> = points.into_iter().flatten().collect();
        (!points.is_empty()).then(|| Line {
            name: task.name().to_owned(),
            style: theme::family(task as usize),
            points,
        })
    };
    let ours = Task::ALL.map(|task| line(task, &|rate| group.kept(task, rate).ok()));
    let paper = Task::ALL.map(|task| {
        let row = published.task(task)?;
        line(task, &|rate| row.rates.get(&percent(rate)).copied())
    });
    let ours: Vec<Line> = ours.into_iter().flatten().collect();
    if ours.len() < 2 {
        return None;
    }
    let paper: Vec<Line> = paper.into_iter().flatten().collect();
    let points = ours.iter().chain(&paper).flat_map(|line| &line.points);
    let greatest = points.map(|point| point.1).fold(100.0, f64::max);
    let legend = ours.iter().map(|line| (line.name.clone(), line.style));
    Some(Figure {
        id: format!("{}_tasks_over_rate", group.name),
        title: "What is left of each task as zeros are added".to_owned(),
        subtitle: "L2Norm without reconstruction, relative performance, mean over networks"
            .to_owned(),
        description: "A panel of ours and one of the paper's, a line per task: relative performance over the rate of zeros."
            .to_owned(),
        legend: legend.collect(),
        panels: [("Ours", ours), ("The paper's", paper)]
            .into_iter()
            .map(|(title, lines)| Panel {
                title: title.to_owned(),
                body: Body::Lines(Lines {
                    x: Axis {
                        label: "Zeros, %".to_owned(),
                        min: 47.0,
                        max: 83.0,
                        ticks: overall::RATES
                            .map(|rate| (100.0 * rate, percent(rate)))
                            .to_vec(),
                    },
                    y: Axis::round("Relative performance, %", 0.0, greatest, 5),
                    lines,
                    references: Vec::new(),
                    direct_labels: false,
                }),
            })
            .collect(),
    })
}

/// Fig. 3: the rate of each layer.
fn layer_rates(suite: &Suite<'_>) -> Option<Figure> {
    let mut allocators = suite.allocators(false);
    allocators.retain(|a| {
        suite
            .rates(a, false)
            .iter()
            .any(|r| (r - FIGURE3_RATE).abs() < 1e-9)
    });
    if allocators.is_empty() {
        return None;
    }
    let (model, records) = middle(suite, &allocators)?;
    let mut legend = Vec::new();
    let mut references = Vec::new();
    let mut shown = Vec::new();
    for ((allocator, style), record) in styled(&allocators).zip(records) {
        // An allocator that asks for one rate everywhere is a line, which leaves the bars to the others.
        let asked = record.layers.first().and_then(|l| l.rate);
        if asked.is_some() && record.layers.iter().all(|l| l.rate == asked) {
            references.push(Reference {
                value: 100.0 * FIGURE3_RATE,
                label: format!(
                    "{} {:.0} %",
                    allocator_name(allocator),
                    100.0 * FIGURE3_RATE
                ),
            });
        } else {
            legend.push((allocator_name(allocator), style));
            shown.push((record, style));
        }
    }
    let layers = &suite_layers(&shown, model);
    let rows = layers
        .iter()
        .enumerate()
        .map(|(index, path)| BarRow {
            label: path.clone(),
            bars: shown
                .iter()
                .filter_map(|(record, style)| {
                    let layer = record.layers.get(index).filter(|l| l.path == *path)?;
                    Some(Bar {
                        value: 100.0 * layer.zeros as f64 / layer.weights.max(1) as f64,
                        spread: None,
                        style: *style,
                        label: None,
                    })
                })
                .collect(),
        })
        .collect();
    let names: Vec<String> = allocators.iter().map(|a| allocator_name(a)).collect();
    Some(Figure {
        id: format!("{}_figure3_layer_rates", suite.id),
        title: format!("How {} spread a rate of 90 % over the layers", list(&names)),
        subtitle: format!(
            "{}, {} prunable weights; layers in forward order, zeros as a share of each layer's weights",
            model.label,
            thousands(model.weights)
        ),
        description: format!(
            "Horizontal bars, one group per layer of {}: the share of zero weights each allocator leaves in it.",
            model.label
        ),
        legend,
        panels: vec![Panel {
            title: String::new(),
            body: Body::Bars(Bars {
                x: percent_axis("Zeros in the layer, %"),
                rows,
                references,
            }),
        }],
    })
}

/// Layers in forward order; any of the network's records has them all.
fn suite_layers(shown: &[(&Record, Style)], model: &Model<'_>) -> Vec<String> {
    let record = shown
        .first()
        .map(|(record, _)| *record)
        .or_else(|| model.records().first().copied());
    record
        .map(|r| r.layers.iter().map(|l| l.path.clone()).collect())
        .unwrap_or_default()
}

/// Fig. 4: mean relative accuracy loss over sizes, a panel per allocator, a line per family.
fn loss_over_sizes(suite: &Suite<'_>) -> Option<Figure> {
    let families = suite.pruned_families();
    let position = |m: &Model<'_>| (m.weights.max(1) as f64).log10();
    let mut drawn: Vec<(String, Vec<Line>)> = Vec::new();
    for allocator in shown(suite, MOST_PANELS) {
        let mut lines = Vec::new();
        for (place, (family, models)) in families.iter().enumerate() {
            let points: Vec<(f64, f64)> = models
                .iter()
                .filter_map(|m| Some((position(m), mean_loss(m, &allocator).ok()?)))
                .collect();
            if points.len() > 1 {
                lines.push(Line {
                    name: (*family).to_owned(),
                    style: theme::family(place),
                    points,
                });
            }
        }
        if !lines.is_empty() {
            drawn.push((allocator_name(&allocator), lines));
        }
    }
    let points = || {
        drawn
            .iter()
            .flat_map(|(_, lines)| lines)
            .flat_map(|l| &l.points)
    };
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
            (low.min(v), high.max(v))
        })
    };
    points().next()?;
    let (first, last) = bounds(&mut points().map(|p| p.0));
    let (least, greatest) = bounds(&mut points().map(|p| p.1));
    // Pruning may raise an accuracy, so a loss may be negative.
    let y = Axis::round(
        "Mean relative accuracy loss, %",
        least.min(0.0).floor(),
        greatest.max(1.0),
        5,
    );
    let legend = families
        .iter()
        .enumerate()
        .filter(|(_, (family, _))| {
            let mut lines = drawn.iter().flat_map(|(_, lines)| lines);
            lines.any(|line| line.name == *family)
        })
        .map(|(place, (family, _))| ((*family).to_owned(), theme::family(place)))
        .collect();
    let margin = 0.06 * (last - first).max(0.1);
    let x = Axis {
        label: "Prunable weights".to_owned(),
        min: first - margin,
        max: last + margin,
        ticks: round_sizes(first, last),
    };
    Some(Figure {
        id: format!("{}_figure4_loss_over_size", suite.id),
        title: "Accuracy lost by networks of different size".to_owned(),
        subtitle: "Relative top-1 loss without reconstruction, mean over 50, 60, 70 and 80 % zeros; logarithmic sizes".to_owned(),
        description: "Lines over the number of prunable weights, one per family, a panel per allocator: the mean relative accuracy loss.".to_owned(),
        legend,
        panels: drawn
            .into_iter()
            .map(|(allocator, lines)| Panel {
                title: allocator,
                body: Body::Lines(Lines {
                    x: x.clone(),
                    y: y.clone(),
                    lines,
                    references: Vec::new(),
                    direct_labels: false,
                }),
            })
            .collect(),
    })
}

/// Places of round numbers of weights between two logarithms: all of 1, 2 and 5 times a power of ten, or, where those
/// would be crowded, the powers alone.
fn round_sizes(first: f64, last: f64) -> Vec<(f64, String)> {
    let among = |factors: &[u64]| -> Vec<(f64, String)> {
        (0..12)
            .flat_map(|power| factors.iter().map(move |factor| factor * 10_u64.pow(power)))
            .map(|count| ((count as f64).log10(), short(count)))
            .filter(|(place, _)| (first - 0.03..=last + 0.03).contains(place))
            .collect()
    };
    let fine = among(&[1, 2, 5]);
    if fine.len() > 5 { among(&[1]) } else { fine }
}

/// A round count without the decimals of [`thousands`].
fn short(count: u64) -> String {
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{} k", count / 1_000),
        _ => format!("{} M", count / 1_000_000),
    }
}

/// The overall metrics of Table 5 by family: how much is kept (Track 3), and how unequally over sizes (Track 4).
fn architectures(suite: &Suite<'_>) -> Option<Figure> {
    let families = suite.pruned_families();
    let allocators = shown(suite, MOST);
    type Metric = fn(&[Vec<f64>]) -> Option<f64>;
    let metrics: [(&str, Metric); 2] = [
        ("OM_arch (Track 3), %", overall::om_arch_table),
        ("OM_robust (Track 4), points", |grid| {
            overall::om_robust(grid, Deviation::Sample)
        }),
    ];
    let mut panels = Vec::new();
    for (title, metric) in metrics {
        let mut rows = Vec::new();
        let mut greatest: f64 = 1.0;
        for (family, models) in &families {
            let mut bars = Vec::new();
            for (allocator, style) in styled(&allocators) {
                let grid: Result<Vec<Vec<f64>>, _> =
                    models.iter().map(|m| m.relatives(allocator)).collect();
                let Some(value) = grid.ok().and_then(|grid| metric(&grid)) else {
                    continue;
                };
                greatest = greatest.max(100.0 * value);
                bars.push(Bar {
                    value: 100.0 * value,
                    spread: None,
                    style,
                    label: None,
                });
            }
            rows.push(BarRow {
                label: (*family).to_owned(),
                bars,
            });
        }
        let x = if panels.is_empty() {
            percent_axis("100 \u{d7} sparse/dense")
        } else {
            Axis::round("Standard deviation over sizes", 0.0, greatest, 4)
        };
        panels.push(Panel {
            title: title.to_owned(),
            body: Body::Bars(Bars {
                x,
                rows,
                references: Vec::new(),
            }),
        });
    }
    let drawn = |panel: &Panel| matches!(&panel.body, Body::Bars(b) if b.rows.iter().any(|r| !r.bars.is_empty()));
    panels.retain(drawn);
    let has_bars = |style: &Style| {
        panels.iter().any(|panel| match &panel.body {
            Body::Bars(bars) => {
                let mut bars = bars.rows.iter().flat_map(|row| &row.bars);
                bars.any(|bar| bar.style == *style)
            }
            Body::Lines(_) => false,
        })
    };
    let legend = styled(&allocators)
        .filter(|(_, style)| has_bars(style))
        .map(|(name, style)| (allocator_name(name), style))
        .collect();
    (families.len() > 1 && !panels.is_empty()).then(|| Figure {
        id: format!("{}_table5_architectures", suite.id),
        title: "Families of networks under sparsity".to_owned(),
        subtitle: "Table 5: relative top-1 without reconstruction over 50, 60, 70 and 80 % zeros, its quadratic mean, and its \
                   deviation over a family's sizes (one size has none)"
            .to_owned(),
        description: "Horizontal bars, one group per family and one bar per allocator: the overall metrics of Tracks 3 and 4."
            .to_owned(),
        legend,
        panels,
    })
}

/// What a figure's axis says of a suite's scores, and how a title calls them: a distance is shown beside the dense one's.
fn shown_as(suite: &Suite<'_>) -> (String, &'static str) {
    match suite.kind() {
        Task::Classification => (suite.metric(), "top-1 accuracy"),
        Task::Detection => (suite.metric(), "average precision"),
        Task::Generation => (
            "100 \u{d7} dense/sparse distance".to_owned(),
            "quality of images",
        ),
    }
}

/// Scores over rates in one family, a panel per network.
fn scores_over_rates(suite: &Suite<'_>, family: &str, models: &[&Model<'_>]) -> Option<Figure> {
    let allocators = shown(suite, MOST);
    let (axis, called) = shown_as(suite);
    let generates = suite.kind() == Task::Generation;
    let mut panels = Vec::new();
    for model in models {
        let score = |allocator: &str, rate: f64| match generates {
            true => model.relative(allocator, rate).map(|ratio| 100.0 * ratio),
            false => model.pruned_level(allocator, rate),
        };
        let mut lines = Vec::new();
        let mut ticks: Vec<f64> = Vec::new();
        for (allocator, style) in styled(&allocators) {
            let points: Vec<(f64, f64)> = suite
                .rates(allocator, false)
                .into_iter()
                .filter_map(|rate| Some((100.0 * rate, score(allocator, rate).ok()?)))
                .collect();
            ticks.extend(points.iter().map(|p| p.0));
            if !points.is_empty() {
                lines.push(Line {
                    name: allocator_name(allocator),
                    style,
                    points,
                });
            }
        }
        ticks.sort_by(f64::total_cmp);
        ticks.dedup_by(|a, b| (*a - *b).abs() < 1e-6);
        let (Some(first), Some(last)) = (ticks.first(), ticks.last()) else {
            continue;
        };
        let references = model.dense().and_then(level).map(|value| match generates {
            true => Reference {
                value: 100.0,
                label: format!("dense, {value:.2}"),
            },
            false => Reference {
                value,
                label: format!("dense {value:.1} %"),
            },
        });
        panels.push(Panel {
            title: model.label.clone(),
            body: Body::Lines(Lines {
                x: Axis {
                    label: "Zeros, %".to_owned(),
                    min: first - 3.0,
                    max: last + 3.0,
                    ticks: ticks.iter().map(|t| (*t, format!("{t:.0}"))).collect(),
                },
                y: percent_axis(&axis),
                lines,
                references: references.into_iter().collect(),
                direct_labels: false,
            }),
        });
    }
    let legend: Vec<(String, Style)> = styled(&allocators)
        .map(|(name, style)| (allocator_name(name), style))
        .collect();
    (!panels.is_empty()).then(|| Figure {
        id: format!(
            "{}_{}_over_rate_{}",
            suite.id,
            match suite.kind() {
                Task::Classification => "top1",
                _ => "score",
            },
            family.to_lowercase()
        ),
        title: format!("{family}: {called} as zeros are added"),
        subtitle: "Without reconstruction".to_owned(),
        description: format!(
            "One panel per network: {called} over the rate of zeros, a line per allocator, the dense network's dashed."
        ),
        legend,
        panels,
    })
}

/// One network before and after reconstruction, a panel per rate.
fn recovery(suite: &Suite<'_>, allocator: &str, model: &Model<'_>, mark: &str) -> Option<Figure> {
    let before_style = Style {
        colour: theme::BEFORE,
        marker: Marker::Square,
    };
    let after_style = Style {
        colour: theme::AFTER,
        marker: Marker::Square,
    };
    let dense = model.dense().and_then(level).ok()?;
    let (axis, called) = shown_as(suite);
    let mut panels = Vec::new();
    for rate in suite.rates(allocator, true) {
        let Ok(before) = model.pruned_level(allocator, rate) else {
            continue;
        };
        let mut rows = vec![BarRow {
            label: "Not reconstructed".to_owned(),
            bars: vec![Bar {
                value: before,
                spread: None,
                style: before_style,
                label: Some(format!("{before:.1}")),
            }],
        }];
        for (index, (name, configuration)) in TRACK2.into_iter().enumerate() {
            // The base configuration stands three times in the table and once here.
            if TRACK2.iter().position(|(_, c)| *c == configuration) != Some(index) {
                continue;
            }
            let Ok(after) = top1_after(model, allocator, rate, configuration) else {
                continue;
            };
            let label = if index == 0 { "Base" } else { name };
            rows.push(BarRow {
                label: label.to_owned(),
                bars: vec![Bar {
                    value: after.value,
                    spread: after.spread,
                    style: after_style,
                    label: Some(signed(after.value, after.value - before)),
                }],
            });
        }
        if rows.len() > 1 {
            panels.push(Panel {
                title: format!("{} % zeros", super::published::percent(rate)),
                body: Body::Bars(Bars {
                    x: percent_axis(&axis),
                    rows,
                    references: vec![Reference {
                        value: dense,
                        label: format!("dense {dense:.1}"),
                    }],
                }),
            });
        }
    }
    let runs = suite
        .rates(allocator, true)
        .iter()
        .filter_map(|&rate| top1_after(model, allocator, rate, TRACK2[0].1).ok())
        .map(|m| m.runs)
        .max()
        .unwrap_or(1);
    let whiskers = if runs > 1 {
        format!("; whiskers: standard deviation of {runs} seeds")
    } else {
        String::new()
    };
    let suffix = if allocator == super::TRACK2_ALLOCATOR {
        String::new()
    } else {
        format!("_{allocator}")
    };
    (!panels.is_empty()).then(|| Figure {
        id: format!("{}_reconstruction{suffix}{mark}", suite.id),
        title: "What reconstruction brings back".to_owned(),
        subtitle: format!(
            "{}, {} allocation. Base: layer-wise, sparse input, with correction; each other row changes one thing{whiskers}",
            model.label,
            allocator_name(allocator)
        ),
        description: format!(
            "Horizontal bars, one panel per rate: {called} before and after reconstruction for each configuration of \
             Table 4, the dense network's dashed."
        ),
        legend: vec![("Pruned".to_owned(), before_style), ("Pruned and reconstructed".to_owned(), after_style)],
        panels,
    })
}

/// A value and its gain, with a true minus sign.
fn signed(value: f64, gain: f64) -> String {
    format!("{value:.1} ({gain:+.1})").replace('-', "\u{2212}")
}

fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

/// A count with thin groups of three digits, rounded to three figures from ten thousand on.
fn thousands(count: u64) -> String {
    let rounded = |unit: f64, suffix: &str| {
        let value = count as f64 / unit;
        let decimals = usize::from(value < 10.0) + usize::from(value < 100.0);
        format!("{value:.decimals$} {suffix}")
    };
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => rounded(1e3, "k"),
        _ => rounded(1e6, "M"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{fixture, suite::suites};
    use super::*;

    fn all(records: &[Record]) -> Vec<Figure> {
        suites(records).iter().flat_map(figures).collect()
    }

    fn svg(figures: &[Figure], id: &str) -> String {
        let figure = figures
            .iter()
            .find(|f| f.id == id)
            .unwrap_or_else(|| panic!("no figure {id}"));
        figure.svg().expect("drawn")
    }

    /// Words of an SVG, in drawing order.
    fn words(svg: &str) -> Vec<&str> {
        svg.split("<text")
            .skip(1)
            .filter_map(|t| t.split('>').nth(1)?.split('<').next())
            .map(str::trim)
            .collect()
    }

    #[test]
    fn each_figure_says_what_it_shows() {
        let records = fixture::records();
        let figures = all(&records);
        let expected: [(&str, &[&str]); 4] = [
            (
                "micro_figure3_layer_rates",
                &[
                    "conv1",
                    "layer1.0.conv1",
                    "layer2.0.downsample.0",
                    "fc",
                    "L2Norm",
                    "ERK",
                    "Uniform 90 %",
                    "Zeros in the layer, %",
                    "100",
                ],
            ),
            (
                "micro_figure4_loss_over_size",
                &[
                    "Prunable weights",
                    "ResNet",
                    "50 k",
                    "Uniform",
                    "L2Norm",
                    "ERK",
                    "Mean relative accuracy loss, %",
                ],
            ),
            (
                "micro_top1_over_rate_resnet",
                &[
                    "Top-1, %",
                    "Zeros, %",
                    "50",
                    "90",
                    "dense 90.1 %",
                    "Uniform",
                    "micro_resnet20",
                ],
            ),
            (
                "micro_reconstruction",
                &[
                    "70 % zeros",
                    "80 % zeros",
                    "Not reconstructed",
                    "Block-wise",
                    "dense 90.1",
                    "Top-1, %",
                ],
            ),
        ];
        assert_eq!(figures.len(), expected.len());
        for (id, labels) in expected {
            let svg = svg(&figures, id);
            let words = words(&svg);
            for label in labels {
                assert!(words.contains(label), "{id} lacks `{label}`: {words:?}");
            }
            assert!(
                svg.contains("role=\"img\"") && svg.contains("<title>"),
                "{id}"
            );
        }
    }

    #[test]
    fn nothing_is_drawn_outside() {
        for figure in all(&fixture::records()) {
            let svg = figure.svg().expect("drawn");
            let number = |tag: &str, key: &str| -> Option<f64> {
                tag.split(&format!(" {key}=\""))
                    .nth(1)?
                    .split('"')
                    .next()?
                    .parse()
                    .ok()
            };
            let head = svg.split('>').next().expect("a tag");
            let view: Vec<f64> = head
                .split("viewBox=\"")
                .nth(1)
                .and_then(|v| v.split('"').next())
                .expect("a view box")
                .split(' ')
                .map(|n| n.parse().expect("a number"))
                .collect();
            for tag in svg.split('<').skip(2) {
                for (key, limit) in [
                    ("x", view[2]),
                    ("x1", view[2]),
                    ("x2", view[2]),
                    ("y", view[3]),
                    ("y1", view[3]),
                    ("y2", view[3]),
                ] {
                    if let Some(value) = number(tag, key) {
                        assert!(
                            (0.0..=limit).contains(&value),
                            "{}: {key} = {value} in {tag}",
                            figure.id
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn figures_without_records_are_left_out() {
        let mut records = fixture::records();
        records.retain(|r| r.cell.sparsity.is_none());
        assert_eq!(all(&records), []);
        let mut records = fixture::records();
        records.retain(|r| {
            r.cell
                .sparsity
                .as_ref()
                .is_none_or(|s| s.reconstruction.is_none())
        });
        let ids: Vec<String> = all(&records).into_iter().map(|f| f.id).collect();
        assert_eq!(
            ids,
            [
                "micro_figure3_layer_rates",
                "micro_figure4_loss_over_size",
                "micro_top1_over_rate_resnet"
            ]
        );
    }

    #[test]
    fn figure3_shows_the_middle_size_and_what_was_measured() {
        let records = fixture::records();
        let figures = all(&records);
        let figure = &figures[0];
        assert!(
            figure.subtitle.starts_with("micro_resnet14,"),
            "{}",
            figure.subtitle
        );
        let Body::Bars(bars) = &figure.panels[0].body else {
            panic!("bars")
        };
        let record = records
            .iter()
            .find(|r| {
                r.cell.model == "micro_resnet14"
                    && super::super::suite::allocation(r)
                        .is_some_and(|(name, rate)| name == "l2norm" && rate == 0.9)
            })
            .expect("in the fixture");
        assert_eq!(bars.rows.len(), record.layers.len());
        for (row, layer) in bars.rows.iter().zip(&record.layers) {
            assert_eq!(row.label, layer.path);
            assert_eq!(
                row.bars[0].value,
                100.0 * layer.zeros as f64 / layer.weights as f64
            );
        }
    }

    #[test]
    fn figure4_is_the_mean_loss() {
        let records = fixture::records();
        let suites = suites(&records);
        let figure = loss_over_sizes(&suites[0]).expect("three sizes");
        let erk = figure.panels.iter().find(|p| p.title == "ERK");
        let Body::Lines(lines) = &erk.expect("a panel").body else {
            panic!("lines")
        };
        let model = &suites[0].models[2];
        let relatives = model.relatives("erk").expect("in the fixture");
        let expected = 100.0 * overall::mean_relative_loss(&relatives).expect("four rates");
        let resnet = &lines.lines[0];
        assert_eq!(resnet.name, "ResNet");
        assert_eq!(resnet.points[2], ((model.weights as f64).log10(), expected));
    }

    #[test]
    fn sizes_have_round_ticks() {
        let words = |first: f64, last: f64| -> Vec<String> {
            let ticks = round_sizes(first.log10(), last.log10());
            ticks.into_iter().map(|(_, words)| words).collect()
        };
        assert_eq!(words(14e3, 272e3), ["20 k", "50 k", "100 k", "200 k"]);
        assert_eq!(words(3e6, 3e8), ["10 M", "100 M"]);
    }

    #[test]
    fn counts_are_short() {
        let counts = [999, 9_999, 10_000, 123_456, 1_000_000, 25_502_912];
        assert_eq!(
            counts.map(thousands),
            ["999", "9999", "10.0 k", "123 k", "1.00 M", "25.5 M"]
        );
    }
}

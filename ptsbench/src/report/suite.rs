//! The records of one task, looked up by what the paper's tables ask for.
//!
//! Records of different tasks, task versions, data, numbers of images, precisions or treatments of batch norms are never
//! averaged: each combination is a suite with tables and figures of its own. Within a suite a value that has no record, or several that differ in something the
//! table does not show, is the reason why in place of the value.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use model_zoo::catalog;

use super::published::percent;
use super::{LEARNED, OF_DENSE};
use crate::cell::{BatchNorm, Cell, Inputs, Pattern, Reconstruction, Rule, TaskCell};
use crate::overall;
use crate::record::{Counts, Level, Record, Score};
use crate::statistics::{self, Deviation};
use model_zoo::Grain;

/// A value, or the sentence that says why there is none.
pub type Found<T> = Result<T, String>;

/// What a network's label ends with that stands beside itself.
pub const NORMS_FOLDED: &str = ", norms folded";

/// Two rates this close are the same rate.
const SAME_RATE: f64 = 1e-9;

/// A value over runs that differ in their seed alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Mean over runs.
    pub value: f64,
    /// Sample standard deviation over runs, where there are at least two.
    pub spread: Option<f64>,
    /// Runs.
    pub runs: usize,
}

impl Measured {
    /// The value of a measurement that has no seed.
    pub fn once(value: f64) -> Self {
        Self {
            value,
            spread: None,
            runs: 1,
        }
    }

    /// Mean and spread of one value per run.
    pub fn over(values: &[f64]) -> Option<Self> {
        Some(Self {
            value: statistics::mean(values)?,
            spread: statistics::deviation(values, Deviation::Sample),
            runs: values.len(),
        })
    }
}

/// A row of Track 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configuration {
    /// Size of the pieces.
    pub granularity: Grain,
    /// Where their inputs come from.
    pub inputs: Inputs,
    /// Whether Eq. 1 corrects first, as the specification has it.
    pub correction: bool,
}

impl Configuration {
    /// The row a reconstruction belongs to; none where its correction has options, which the paper's rows have not.
    pub fn of(reconstruction: &Reconstruction) -> Option<Self> {
        Some(Self {
            granularity: reconstruction.granularity,
            inputs: reconstruction.inputs,
            correction: reconstruction.correction.as_plain()?,
        })
    }
}

/// The paper's tasks, told by what a score is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Images to classes.
    Classification,
    /// Images to boxes.
    Detection,
    /// Noise to images.
    Generation,
}

impl Task {
    /// All of them, in the paper's order.
    pub const ALL: [Self; 3] = [Self::Classification, Self::Detection, Self::Generation];

    /// Of a record.
    pub fn of(record: &Record) -> Self {
        match record.score.counts {
            Counts::Top1 { .. } => Self::Classification,
            Counts::Boxes { .. } => Self::Detection,
            Counts::Generated { .. } => Self::Generation,
        }
    }

    /// As the paper has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classification => "CLS",
            Self::Detection => "DET",
            Self::Generation => "GEN",
        }
    }

    /// What Tables 2, 5 and 6 show of it.
    pub fn ratio(self) -> &'static str {
        match self {
            Self::Classification => "relative accuracy",
            Self::Detection => "relative average precision",
            Self::Generation => "relative distance",
        }
    }

    /// Its formula.
    pub fn formula(self) -> &'static str {
        match self {
            Self::Classification | Self::Detection => "100 \u{d7} sparse/dense",
            Self::Generation => "100 \u{d7} dense/sparse, at most 100",
        }
    }

    /// The relative performance of a sparse network.
    fn relative(self, sparse: f64, dense: f64) -> Option<f64> {
        match self {
            Self::Classification | Self::Detection => overall::relative_accuracy(sparse, dense),
            Self::Generation => Some(overall::relative_fid(sparse, dense)),
        }
    }
}

/// How a table's head calls a metric.
pub fn metric(score: &Score) -> String {
    match score.metric.as_str() {
        "top1" => "Top-1, %".to_owned(),
        "map11" => "mAP (11 points), %".to_owned(),
        "ap" => "AP, %".to_owned(),
        "fid" => "FID".to_owned(),
        other => match other.strip_prefix("fd_") {
            Some(features) => format!("Fr\u{e9}chet distance, {features}"),
            None => other.to_owned(),
        },
    }
}

/// A network with its records.
#[derive(Debug, Clone)]
pub struct Model<'a> {
    /// The catalog's name, followed by the weights' digest where one name has several.
    pub label: String,
    /// The catalog's name of its family; its own name where the catalog lacks it.
    pub family: &'a str,
    /// What it does.
    pub task: Task,
    /// Prunable weights.
    pub weights: u64,
    /// Whether it is no size of its family ([`catalog::Spec::stands_aside`]).
    pub aside: bool,
    /// Whether it is a network of the suite once more, with folded batch norms.
    pub again: bool,
    records: Vec<&'a Record>,
}

/// Records that may be averaged.
#[derive(Debug, Clone)]
pub struct Suite<'a> {
    /// The task's name, followed by what tells it from the other suites of that task.
    pub id: String,
    /// The task.
    pub task: &'a TaskCell,
    /// What was done with batch norms.
    pub batch_norm: BatchNorm,
    /// Its networks, the smallest first.
    pub models: Vec<Model<'a>>,
    /// Some of them with folded batch norms, where the suite keeps them and folds these few for comparison.
    pub folded: Vec<Model<'a>>,
}

/// What all records of a suite share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Group<'a> {
    task: &'a str,
    version: u32,
    samples: usize,
    data: Option<&'a str>,
    precision: &'static str,
    batch_norm: BatchNorm,
}

impl<'a> Group<'a> {
    fn of(cell: &'a Cell, batch_norm: BatchNorm) -> Self {
        Self {
            task: &cell.task.name,
            version: cell.task.version,
            samples: cell.task.samples,
            data: cell.task.data.as_deref(),
            precision: cell.precision.name(),
            batch_norm,
        }
    }

    /// What may tell two suites of one task apart, as parts of a file's name.
    fn marks(&self) -> [String; 4] {
        [
            format!("v{}_{}", self.version, self.samples),
            self.data.map_or("built_in".to_owned(), |digest| {
                digest.get(..8).unwrap_or(digest).to_owned()
            }),
            self.precision.to_owned(),
            self.batch_norm.name().to_owned(),
        ]
    }

    /// The task's name and the marks in which the suites of this task differ.
    fn id(&self, all: &[Group<'_>]) -> String {
        let mut id = self.task.to_owned();
        for (place, mark) in self.marks().iter().enumerate() {
            let mut of_task = all.iter().filter(|group| group.task == self.task);
            if of_task.any(|group| group.marks()[place] != *mark) {
                id = format!("{id}_{mark}");
            }
        }
        id
    }
}

/// Sorts records into suites; the order of `records` does not matter. A dense network has no treatment of batch norms
/// and belongs to the suites of each.
pub fn suites(records: &[Record]) -> Vec<Suite<'_>> {
    let mut groups: BTreeMap<Group<'_>, Vec<&Record>> = BTreeMap::new();
    let (dense, sparse): (Vec<&Record>, Vec<&Record>) = records
        .iter()
        .partition(|record| record.cell.sparsity.is_none());
    for record in sparse {
        let batch_norm = record.cell.sparsity.as_ref().map(|s| s.batch_norm);
        let group = Group::of(&record.cell, batch_norm.unwrap_or_default());
        groups.entry(group).or_default().push(record);
    }
    for record in dense {
        let joined = [BatchNorm::Kept, BatchNorm::Folded].map(|b| Group::of(&record.cell, b));
        let mut known = joined
            .iter()
            .filter(|group| groups.contains_key(group))
            .peekable();
        let places: Vec<Group<'_>> = match known.peek() {
            Some(_) => known.copied().collect(),
            None => vec![joined[0]],
        };
        for group in places {
            groups.entry(group).or_default().push(record);
        }
    }
    let mut beside = beside_kept(&mut groups);
    let all: Vec<Group<'_>> = groups.keys().copied().collect();
    groups
        .iter()
        .map(|(group, records)| Suite {
            id: group.id(&all),
            task: &records[0].cell.task,
            batch_norm: group.batch_norm,
            models: models(records),
            folded: again(&beside.remove(group).unwrap_or_default()),
        })
        .collect()
}

/// Takes out the groups of folded norms whose networks are a part of those with norms kept: they belong beside that suite
/// and are none of their own.
fn beside_kept<'a>(
    groups: &mut BTreeMap<Group<'a>, Vec<&'a Record>>,
) -> BTreeMap<Group<'a>, Vec<&'a Record>> {
    let pruned = |records: &[&'a Record]| -> BTreeSet<(&'a str, &'a str)> {
        let pruned = records.iter().filter(|r| r.cell.sparsity.is_some());
        pruned
            .map(|r| (r.cell.model.as_str(), r.cell.weights.as_str()))
            .collect()
    };
    let kept_of = |group: &Group<'a>| Group {
        batch_norm: BatchNorm::Kept,
        ..*group
    };
    let aside: Vec<Group<'a>> = groups
        .iter()
        .filter(|(group, _)| group.batch_norm == BatchNorm::Folded)
        .filter(|(group, records)| {
            let (folded, kept) = (pruned(records), groups.get(&kept_of(group)));
            // Reconstructions need the tables of a suite.
            let plain = records.iter().all(|r| reconstruction(r).is_none());
            kept.filter(|_| plain).is_some_and(|kept| {
                let kept = pruned(kept);
                folded.is_subset(&kept) && folded != kept
            })
        })
        .map(|(group, _)| *group)
        .collect();
    let taken = aside.into_iter().filter_map(|group| {
        let mut records = groups.remove(&group)?;
        // Dense references came to every group, whoever was pruned in it.
        let networks = pruned(&records);
        records.retain(|r| networks.contains(&(r.cell.model.as_str(), r.cell.weights.as_str())));
        Some((kept_of(&group), records))
    });
    taken.collect()
}

fn models<'a>(records: &[&'a Record]) -> Vec<Model<'a>> {
    let mut by_weights: BTreeMap<(&str, &str), Vec<&'a Record>> = BTreeMap::new();
    for record in records {
        let key = (record.cell.model.as_str(), record.cell.weights.as_str());
        by_weights.entry(key).or_default().push(record);
    }
    let names: Vec<&str> = by_weights.keys().map(|key| key.0).collect();
    let mut models: Vec<Model<'a>> = by_weights
        .iter()
        .map(|(&(name, digest), records)| {
            let mut records = records.clone();
            records.sort_by(|a, b| a.key.cmp(&b.key));
            let alone = names.iter().filter(|n| **n == name).count() == 1;
            Model {
                label: if alone {
                    name.to_owned()
                } else {
                    format!("{name}@{}", digest.get(..8).unwrap_or(digest))
                },
                family: catalog::find(name).map_or(name, |spec| spec.family),
                aside: catalog::find(name).is_ok_and(|spec| spec.stands_aside()),
                again: false,
                task: Task::of(records[0]),
                weights: records[0].cost.weights,
                records,
            }
        })
        .collect();
    models.sort_by(|a, b| (a.weights, &a.label).cmp(&(b.weights, &b.label)));
    models
}

/// Networks with folded norms beside those of a suite.
fn again<'a>(records: &[&'a Record]) -> Vec<Model<'a>> {
    let mut models = models(records);
    for model in &mut models {
        model.again = true;
        model.label += NORMS_FOLDED;
    }
    models
}

/// Allocator and rate of a record that the paper's tables are about: unstructured, by magnitude, exact counts, no repair.
/// FCPTS is one allocator for each that it starts from, and another where it leaves the dense network's weights.
pub fn allocation(record: &Record) -> Option<(Cow<'_, str>, f64)> {
    let sparsity = record.cell.sparsity.as_ref()?;
    let (Pattern::Unstructured { rate }, Some(allocator)) =
        (sparsity.pattern, &sparsity.allocation)
    else {
        return None;
    };
    if sparsity.rule != Rule::Exact || sparsity.repair.is_some() {
        return None;
    }
    let name = match sparsity.criterion.name.as_str() {
        "magnitude" => Cow::from(&allocator.name),
        "fcpts" => {
            let weights = sparsity.criterion.options.get("weights");
            let dense = weights.is_some_and(|weights| weights == "dense");
            let suffix = if dense { OF_DENSE } else { "" };
            Cow::from(format!("{LEARNED}{}{suffix}", allocator.name))
        }
        _ => return None,
    };
    Some((name, rate))
}

fn reconstruction(record: &Record) -> Option<&Reconstruction> {
    record.cell.sparsity.as_ref()?.reconstruction.as_ref()
}

/// Which draw of images allocator, criterion or repair looked at.
fn draw(record: &Record) -> Option<u64> {
    let sparsity = record.cell.sparsity.as_ref()?;
    Some(sparsity.calibration.as_ref()?.seed)
}

fn same(a: f64, b: f64) -> bool {
    (a - b).abs() < SAME_RATE
}

/// The score of a record as metrics take it: the distance of a generator whose images are no numbers is infinite.
pub fn value(record: &Record) -> Found<f64> {
    match (Task::of(record), record.score.value) {
        (Task::Generation, Level::Collapsed) => Ok(f64::INFINITY),
        _ => level(record),
    }
}

/// The number of a record's score; a collapsed network has none.
pub fn level(record: &Record) -> Found<f64> {
    record.score.value.number().ok_or_else(|| {
        format!(
            "Collapsed: cell {} has no number for its score.",
            record.key.short()
        )
    })
}

/// Whether a classifier's score is not two standard errors above what a guess gives. Its last layer says among how many
/// classes.
pub fn is_near_guessing(record: &Record) -> Option<bool> {
    let correct = record.score.counts.correct()?;
    let classes = *record.layers.last()?.shape.first()?;
    let (chance, images) = (1.0 / classes as f64, record.score.counts.total() as f64);
    let error = (chance * (1.0 - chance) / images).sqrt();
    let right = correct as f64 / images;
    Some(right <= chance + 2.0 * error)
}

/// The one record of `found`, or why it cannot be told.
fn only<'a>(found: &[&'a Record], what: &str) -> Found<&'a Record> {
    match found {
        [] => Err(format!("No record: {what}.")),
        [record] => Ok(record),
        several => {
            let keys: Vec<&str> = several.iter().map(|r| r.key.short()).collect();
            Err(format!(
                "{} records fit ({}): {what}. Choose a plan with --plan.",
                several.len(),
                keys.join(", ")
            ))
        }
    }
}

impl<'a> Model<'a> {
    /// All records, in the order of their keys.
    pub fn records(&self) -> &[&'a Record] {
        &self.records
    }

    /// The records that stand for this network alone: where it is there again, its dense reference is the other's.
    pub fn own_records(&self) -> impl Iterator<Item = &'a Record> {
        let records = self.records.iter().copied();
        records.filter(|record| !self.again || record.cell.sparsity.is_some())
    }

    /// The dense reference.
    pub fn dense(&self) -> Found<&'a Record> {
        let found: Vec<&Record> = self
            .records
            .iter()
            .copied()
            .filter(|r| r.cell.sparsity.is_none())
            .collect();
        only(&found, &format!("{}, dense", self.label))
    }

    /// Pruned and not reconstructed: one record, or one for each draw of the images that the allocator looked at.
    pub fn pruned(&self, allocator: &str, rate: f64) -> Found<Vec<&'a Record>> {
        let mut by_draw: BTreeMap<Option<u64>, Vec<&'a Record>> = BTreeMap::new();
        for record in self.allocated(allocator, rate) {
            if reconstruction(record).is_none() {
                by_draw.entry(draw(record)).or_default().push(record);
            }
        }
        let what = format!("{}, {allocator} at {} %", self.label, percent(rate));
        if by_draw.is_empty() {
            return Err(format!("No record: {what}."));
        }
        by_draw.values().map(|found| only(found, &what)).collect()
    }

    /// Relative accuracies `A^s / A` of those over `rates`, by draw.
    pub fn draws(&self, allocator: &str, rates: &[f64]) -> Found<BTreeMap<Option<u64>, Vec<f64>>> {
        let dense = level(self.dense()?)?;
        let mut by_draw: BTreeMap<Option<u64>, Vec<f64>> = BTreeMap::new();
        for &rate in rates {
            for record in self.pruned(allocator, rate)? {
                let relative = self.task.relative(value(record)?, dense);
                let relative = relative.ok_or_else(|| self.guesses_nothing())?;
                by_draw.entry(draw(record)).or_default().push(relative);
            }
        }
        by_draw.retain(|_, relatives| relatives.len() == rates.len());
        Ok(by_draw)
    }

    fn guesses_nothing(&self) -> String {
        format!("{} has a dense score of 0.", self.label)
    }

    /// Whether it was pruned by this allocator and not reconstructed.
    pub fn has(&self, allocator: &str) -> bool {
        self.records.iter().any(|r| {
            reconstruction(r).is_none() && allocation(r).is_some_and(|(name, _)| name == allocator)
        })
    }

    /// The mean score over those.
    pub fn pruned_level(&self, allocator: &str, rate: f64) -> Found<f64> {
        let levels = self.pruned(allocator, rate)?.into_iter().map(value);
        let levels: Vec<f64> = levels.collect::<Found<_>>()?;
        statistics::mean(&levels).ok_or_else(|| format!("No record of {}.", self.label))
    }

    /// Pruned and reconstructed, by seed.
    pub fn reconstructed(
        &self,
        allocator: &str,
        rate: f64,
        configuration: Configuration,
    ) -> Found<BTreeMap<u64, &'a Record>> {
        let mut by_seed: BTreeMap<u64, Vec<&'a Record>> = BTreeMap::new();
        for record in self.allocated(allocator, rate) {
            if let Some(r) =
                reconstruction(record).filter(|r| Configuration::of(r) == Some(configuration))
            {
                by_seed.entry(r.calibration.seed).or_default().push(record);
            }
        }
        let what = format!(
            "{}, {allocator} at {} %, this configuration",
            self.label,
            percent(rate)
        );
        if by_seed.is_empty() {
            return Err(format!("No record: {what}."));
        }
        by_seed
            .into_iter()
            .map(|(seed, found)| Ok((seed, only(&found, &format!("{what}, seed {seed}"))?)))
            .collect()
    }

    fn allocated(&self, allocator: &str, rate: f64) -> impl Iterator<Item = &'a Record> {
        self.records.iter().copied().filter(move |r| {
            allocation(r).is_some_and(|(name, at)| name == allocator && same(at, rate))
        })
    }

    /// Relative performance of the pruned network, its mean over draws.
    pub fn relative(&self, allocator: &str, rate: f64) -> Found<f64> {
        let of_rate = self.draws(allocator, &[rate])?;
        let relatives: Vec<f64> = of_rate.into_values().flatten().collect();
        statistics::mean(&relatives).ok_or_else(|| format!("No record of {}.", self.label))
    }

    /// Relative accuracies over the rates of the overall metrics.
    pub fn relatives(&self, allocator: &str) -> Found<Vec<f64>> {
        overall::RATES
            .iter()
            .map(|&rate| self.relative(allocator, rate))
            .collect()
    }
}

impl Suite<'_> {
    /// What its networks do.
    pub fn kind(&self) -> Task {
        let first = self.models.first();
        first.map_or(Task::Classification, |model| model.task)
    }

    /// How a table's head calls its metric.
    pub fn metric(&self) -> String {
        let first = self.models.iter().find_map(|model| model.records.first());
        first.map_or_else(String::new, |record| metric(&record.score))
    }

    /// The sizes of families that have a record pruned and not reconstructed.
    pub fn pruned_models(&self) -> Vec<&Model<'_>> {
        self.models
            .iter()
            .filter(|m| !m.aside)
            .filter(|m| {
                m.records
                    .iter()
                    .any(|r| allocation(r).is_some() && reconstruction(r).is_none())
            })
            .collect()
    }

    /// The same by family, families in the catalog's order.
    pub fn pruned_families(&self) -> Vec<(&str, Vec<&Model<'_>>)> {
        let mut families: Vec<(&str, Vec<&Model<'_>>)> = Vec::new();
        for model in self.pruned_models() {
            match families.iter_mut().find(|(name, _)| *name == model.family) {
                Some((_, models)) => models.push(model),
                None => families.push((model.family, vec![model])),
            }
        }
        let place = |name: &str| catalog::all().iter().position(|spec| spec.family == name);
        families.sort_by_key(|(name, _)| place(name).unwrap_or(usize::MAX));
        families
    }

    /// Models with a record reconstructed after this allocator.
    pub fn reconstructed_models(&self, allocator: &str) -> Vec<&Model<'_>> {
        let fits = |r: &&Record| {
            reconstruction(r).is_some() && allocation(r).is_some_and(|(name, _)| name == allocator)
        };
        self.models
            .iter()
            .filter(|m| m.records.iter().any(fits))
            .collect()
    }

    /// Its networks, and some of them again with folded norms.
    pub fn all_models(&self) -> impl Iterator<Item = &Model<'_>> {
        self.models.iter().chain(&self.folded)
    }

    /// All records.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.models.iter().flat_map(|m| m.records.iter().copied())
    }

    /// Allocators of records with (or without) reconstruction: those of the paper in its order, then others by name.
    pub fn allocators(&self, reconstructed: bool) -> Vec<String> {
        let found: BTreeSet<Cow<'_, str>> = self
            .records()
            .filter(|r| reconstruction(r).is_some() == reconstructed)
            .filter_map(|r| allocation(r).map(|(name, _)| name))
            .collect();
        let mut names: Vec<String> = found.into_iter().map(Cow::into_owned).collect();
        names.sort_by_key(|name| {
            let place = super::METHODS.iter().position(|(_, method)| method == name);
            place.unwrap_or(super::METHODS.len())
        });
        names
    }

    /// Rates of an allocator's records with (or without) reconstruction, ascending.
    pub fn rates(&self, allocator: &str, reconstructed: bool) -> Vec<f64> {
        let mut rates: Vec<f64> = self
            .records()
            .filter(|r| reconstruction(r).is_some() == reconstructed)
            .filter_map(allocation)
            .filter(|(name, _)| name == allocator)
            .map(|(_, rate)| rate)
            .collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup_by(|a, b| same(*a, *b));
        rates
    }

    /// The reconstructions of an allocator's records, without seeds and configurations: one where all were fitted alike.
    pub fn fits(&self, allocator: &str) -> Vec<&Reconstruction> {
        let mut fits: Vec<&Reconstruction> = Vec::new();
        for record in self.records() {
            let Some(r) = reconstruction(record) else {
                continue;
            };
            let known = fits.iter().any(|f| {
                f.fit == r.fit
                    && (f.calibration.images, f.calibration.batch)
                        == (r.calibration.images, r.calibration.batch)
            });
            if !known && allocation(record).is_some_and(|(name, _)| name == allocator) {
                fits.push(r);
            }
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn models_are_sorted_by_size() {
        let mut records = fixture::records();
        records.reverse();
        let suites = suites(&records);
        assert_eq!(suites.len(), 1);
        let labels: Vec<&str> = suites[0].models.iter().map(|m| m.label.as_str()).collect();
        assert_eq!(
            labels,
            ["micro_resnet8", "micro_resnet14", "micro_resnet20"]
        );
    }

    #[test]
    fn tasks_and_image_counts_are_kept_apart() {
        let mut records = fixture::records();
        let mut other = records[0].clone();
        other.cell.task.samples = 10;
        records.push(fixture::rekeyed(other));
        let ids: Vec<String> = suites(&records).iter().map(|s| s.id.clone()).collect();
        assert_eq!(ids, ["micro_v1_10", "micro_v1_2000"]);
    }

    #[test]
    fn networks_trained_again_are_other_models() {
        let mut records = fixture::records();
        let mut other = records[0].clone();
        other.cell.weights = "beef".repeat(16);
        let name = other.cell.model.clone();
        records.push(fixture::rekeyed(other));
        let suites = suites(&records);
        let labels: Vec<&str> = suites[0].models.iter().map(|m| m.label.as_str()).collect();
        assert!(
            labels.contains(&format!("{name}@beefbeef").as_str()),
            "{labels:?}"
        );
        assert_eq!(labels.len(), 4);
    }

    #[test]
    fn two_records_for_one_place_are_named() {
        let mut records = fixture::records();
        let mut twin = records
            .iter()
            .find(|r| reconstruction(r).is_some())
            .expect("the fixture has reconstructions")
            .clone();
        let sparsity = twin.cell.sparsity.as_mut().expect("pruned");
        let r = sparsity.reconstruction.as_mut().expect("reconstructed");
        r.fit.steps += 1;
        let (configuration, seed) = (Configuration::of(r).expect("plain"), r.calibration.seed);
        let rate = allocation(&twin).expect("unstructured").1;
        let name = twin.cell.model.clone();
        records.push(fixture::rekeyed(twin));
        let suites = suites(&records);
        let model = suites[0]
            .models
            .iter()
            .find(|m| m.label == name)
            .expect("same weights");
        let error = model
            .reconstructed("l2norm", rate, configuration)
            .expect_err("ambiguous");
        assert!(
            error.contains("2 records fit") && error.contains(&format!("seed {seed}")),
            "{error}"
        );
        assert!(error.contains("--plan"), "{error}");
    }

    #[test]
    fn runs_and_their_spread() {
        let measured = Measured::over(&[10.0, 12.0]).expect("two runs");
        assert_eq!(measured.value, 11.0);
        assert_eq!(measured.spread, Some(2.0_f64.sqrt()));
        assert_eq!(measured.runs, 2);
        assert_eq!(Measured::over(&[10.0]), Some(Measured::once(10.0)));
        assert_eq!(Measured::over(&[]), None);
    }
}

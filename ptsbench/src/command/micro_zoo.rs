//! `ptsbench micro-zoo`: train the built-in networks again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use burn::tensor::Device;
use model_zoo::catalog::{self, OtherModality, Spec, Visit, Weights};
use model_zoo::tap::Bare;
use model_zoo::weights::{self, Container, Dtype};
use model_zoo::{Boxes, Classes, Classifier, Noise, Of, Tokens};

use crate::interrupt;
use crate::store::write_atomic;
use crate::task::train::{
    self, BoxLesson, ClassLesson, EpochLog, NoiseLesson, Recipe, Taught, Training,
};
use crate::{note, outln};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or patterns of built-in networks [default: all of them, smallest first].
    models: Vec<String>,
    /// Folder for the trained weights and logs.
    #[arg(long, default_value = "assets/micro")]
    out: PathBuf,
    /// Folder for the checkpoints from which an interrupted run goes on.
    #[arg(long, default_value = "out/micro-zoo")]
    work: PathBuf,
    /// Networks to train side by side, each on its share of the cores; no weight depends on it.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Forget the checkpoints and start from the first epoch.
    #[arg(long)]
    fresh: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    for folder in [&args.out, &args.work] {
        std::fs::create_dir_all(folder).with_context(|| {
            format!(
                "cannot create the folder {}; name another one",
                folder.display()
            )
        })?;
    }
    interrupt::install("finished epochs are kept")?;
    let specs = chosen(&args.models)?;
    let jobs = usize::from(args.jobs).min(specs.len());
    let queue = Mutex::new(specs.into_iter());
    let threads = rayon::current_num_threads().div_ceil(jobs);
    let work = || -> anyhow::Result<()> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(spec) = next else { return Ok(()) };
            pool.install(|| train_one(spec, &args))?;
        }
    };
    if jobs == 1 {
        return work();
    }
    let outcomes: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().map(join).collect()
    });
    outcomes.into_iter().collect()
}

fn train_one(spec: &'static Spec, args: &Args) -> anyhow::Result<()> {
    // Always the CPU: the stored files are what this very path gives.
    spec.open(&Device::flex(), Train { args })
}

fn chosen(patterns: &[String]) -> anyhow::Result<Vec<&'static Spec>> {
    let built_in = |spec: &&Spec| spec.weights == Weights::BuiltIn;
    if patterns.is_empty() {
        return Ok(catalog::all().iter().filter(built_in).collect());
    }
    let mut chosen: Vec<&'static Spec> = Vec::new();
    for pattern in patterns {
        for spec in catalog::matching(pattern)? {
            anyhow::ensure!(
                built_in(&spec),
                "`{}` is not a built-in network; its weights come as a file, see `ptsbench list models`",
                spec.name
            );
            if chosen.iter().all(|other| other.name != spec.name) {
                chosen.push(spec);
            }
        }
    }
    Ok(chosen)
}

struct Train<'a> {
    args: &'a Args,
}

impl Visit<Classes> for Train<'_> {
    type Out = anyhow::Result<()>;

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> anyhow::Result<()> {
        let mut lesson = ClassLesson::default();
        let transformer = Recipe::micro(spec.name).transformer;
        if transformer.is_some_and(|t| t.distilled) {
            lesson = lesson.with_teacher(teacher(&self.args.out)?);
        }
        self.train::<Classes, N>(spec, network, lesson)
    }
}

impl Visit<Noise> for Train<'_> {
    type Out = anyhow::Result<()>;

    fn visit<N: Of<Noise>>(self, spec: &'static Spec, network: N) -> anyhow::Result<()> {
        let process = spec.process().context("it undoes no process")?;
        self.train::<Noise, N>(spec, network, NoiseLesson::new(process))
    }
}

impl Visit<Boxes> for Train<'_> {
    type Out = anyhow::Result<()>;

    fn visit<N: Of<Boxes>>(self, spec: &'static Spec, network: N) -> anyhow::Result<()> {
        let lesson = BoxLesson::new(spec).context("it has no anchors")?;
        self.train::<Boxes, N>(spec, network, lesson)
    }
}

impl Visit<Tokens> for Train<'_> {
    type Out = anyhow::Result<()>;

    fn visit<N: Of<Tokens>>(self, spec: &'static Spec, _: N) -> anyhow::Result<()> {
        let wanted = "`micro-zoo` trains networks that a built-in task is for";
        Err(OtherModality::of::<Tokens>(spec, wanted).into())
    }
}

impl Train<'_> {
    fn train<M: Taught, N: Of<M>>(
        self,
        spec: &'static Spec,
        network: N,
        lesson: M::Lesson,
    ) -> anyhow::Result<()> {
        let (name, recipe, device) = (spec.name, Recipe::micro(spec.name), Device::flex());
        let checkpoint = self
            .args
            .work
            .join(format!("{name}.checkpoint.safetensors"));
        let mut training = if checkpoint.exists() && !self.args.fresh {
            let training = Training::resume(name, network, recipe, lesson, &device, &checkpoint)?;
            note!("{name}: going on after epoch {}", training.log().len());
            training
        } else {
            Training::start(name, network, recipe, lesson, &device)
        };
        while !training.is_done() {
            let start = Instant::now();
            training = training.epoch()?;
            let seconds = start.elapsed().as_secs_f64();
            training.took((seconds * 10.0).round() / 10.0);
            training.checkpoint(&checkpoint)?;
            if let Some(log) = training.log().last() {
                let left = seconds * (recipe.epochs - log.epoch) as f64 / 60.0;
                note!(
                    "{name}: epoch {} of {}, loss {:.3}{}; {seconds:.0} s, {left:.0} min to go",
                    log.epoch,
                    recipe.epochs,
                    log.loss,
                    scores(log)
                );
            }
        }
        store(&training, spec, &device, self.args)
    }
}

/// What an epoch came to, as ", validation_top1 91.50".
fn scores(log: &EpochLog) -> String {
    let scores = log.scores.iter();
    scores
        .map(|(name, score)| format!(", {} {score:.3}", name.replace('_', " ")))
        .collect()
}

/// The trained network that teaches others.
fn teacher(folder: &Path) -> anyhow::Result<train::Teacher> {
    struct Open<'a>(&'a Path);
    impl Visit<Classes> for Open<'_> {
        type Out = anyhow::Result<train::Teacher>;

        fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> Self::Out {
            let file = self.0.join(format!("{}.safetensors", spec.name));
            anyhow::ensure!(
                file.is_file(),
                "the teacher `{name}` is not in {}; train it first: ptsbench micro-zoo {name}",
                self.0.display(),
                name = spec.name
            );
            let network = weights::load_network(network, &Container::open(&file)?)?;
            // A norm with its final statistics is a scale and a shift.
            let network = network.fold();
            Ok(Box::new(move |images| {
                network.run(images, &mut Bare::default())
            }))
        }
    }
    let spec = catalog::find(train::TEACHER)?;
    spec.open_classes(&Device::flex(), "the teacher classifies", Open(folder))?
}

/// Writes weights and log, and says whether they are what was there before.
///
/// The weights are stored in half precision and loaded again before they are scored: what the file says is what it gives.
/// This is the one place that reads the test split.
fn store<M: Taught, N: Of<M>>(
    training: &Training<M, N>,
    spec: &'static Spec,
    device: &Device,
    args: &Args,
) -> anyhow::Result<()> {
    let name = spec.name;
    let file = args.out.join(format!("{name}.safetensors"));
    let before = file.exists().then(|| weights::sha256(&file)).transpose()?;
    let network = training.network();
    let save = |file: &Path, metadata: &BTreeMap<String, String>| {
        weights::save_with(
            &network,
            |path| network.key(path),
            Dtype::F16,
            file,
            metadata,
        )
    };
    let unscored = args.work.join(format!("{name}.unscored.safetensors"));
    save(&unscored, &BTreeMap::new())?;
    let half = Container::open(&unscored)?;
    let stored = weights::load(network.clone(), |path| network.key(path), &half)?;
    let (metric, score) = M::test(spec, &stored, device)?;
    let metadata = BTreeMap::from([
        ("model".to_owned(), name.to_owned()),
        (
            "recipe".to_owned(),
            serde_json::to_string(&training.recipe())?,
        ),
        (format!("test_{metric}"), score.to_string()),
    ]);
    save(&file, &metadata)?;
    std::fs::remove_file(&unscored).with_context(|| format!("removing {}", unscored.display()))?;

    let mut lines = String::new();
    for epoch in training.log() {
        lines += &serde_json::to_string(epoch)?;
        lines.push('\n');
    }
    let log = args.out.join(format!("{name}.log.jsonl"));
    write_atomic(&log, lines.as_bytes())?;

    let after = weights::sha256(&file)?;
    let verdict = match before {
        None => "new",
        Some(before) if before == after => "the same bytes as before",
        Some(_) => "not the bytes that were there before",
    };
    outln!(
        "{}: {metric} {score:.2}, SHA-256 {after}, {verdict}",
        file.display()
    )?;
    Ok(())
}

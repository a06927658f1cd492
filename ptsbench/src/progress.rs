//! What a run shows while it works: one bar for all cells, one for the unit at hand, each with the time left.
//!
//! Where stderr is not a terminal, plain lines instead: one per finished cell, and between them one every few seconds.
//! Nothing here influences a result.

pub mod counter;

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cell::Cell;
use crate::record::Record;
use model_zoo::Grain;

/// How to show progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Bars where stderr is a terminal, lines elsewhere.
    #[default]
    Auto,
    /// Bars.
    Bars,
    /// Lines.
    Lines,
    /// Nothing but notes.
    Quiet,
}

/// Time between two lines while a cell is at work.
const PAUSE: Duration = Duration::from_secs(5);
/// Length of the overall bar: the finest step it shows.
const PARTS: f64 = 10_000.0;

/// The progress of a run.
pub struct Progress {
    inner: Mutex<Inner>,
}

struct Inner {
    view: View,
    eta: Eta,
    started: Instant,
    cells: usize,
    label: String,
    unit: Option<Unit>,
    /// Since when images are evaluated.
    evaluating: Option<Instant>,
}

struct Unit {
    index: usize,
    total: usize,
    path: String,
    started: Instant,
}

enum View {
    Bars {
        all: MultiProgress,
        overall: ProgressBar,
        unit: ProgressBar,
    },
    Lines {
        out: Box<dyn Write + Send>,
        last: Instant,
    },
    Quiet {
        out: Box<dyn Write + Send>,
    },
}

impl Progress {
    /// Progress over this many cells, on stderr.
    pub fn new(cells: usize, mode: Mode) -> Progress {
        let terminal = io::stderr().is_terminal();
        let view = match mode {
            Mode::Bars => View::bars(ProgressDrawTarget::stderr_with_hz(10)),
            Mode::Auto if terminal => View::bars(ProgressDrawTarget::stderr_with_hz(10)),
            Mode::Auto | Mode::Lines => View::lines(Box::new(io::stderr())),
            Mode::Quiet => View::Quiet {
                out: Box::new(io::stderr()),
            },
        };
        Progress::on(view, cells)
    }

    /// Progress as lines to a writer.
    pub fn to_writer(cells: usize, out: Box<dyn Write + Send>) -> Progress {
        Progress::on(View::lines(out), cells)
    }

    fn on(view: View, cells: usize) -> Progress {
        Progress {
            inner: Mutex::new(Inner {
                view,
                eta: Eta::new(cells),
                started: Instant::now(),
                cells,
                label: String::new(),
                unit: None,
                evaluating: None,
            }),
        }
    }

    /// Tells the weight of all cells together; without it, the cells to come are taken to be like those before.
    pub fn with_total_weight(self, weight: f64) -> Progress {
        self.lock().eta.total = Some(weight);
        self
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere must not take the bars with it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cell begins; `weight` is its expected share, in any unit, seconds for instance.
    pub fn cell_started(&self, label: &str, weight: f64) {
        let inner = &mut *self.lock();
        inner.eta.start(weight);
        inner.label = label.into();
        inner.unit = None;
        inner.evaluating = None;
        inner.show_overall();
    }

    /// The cell is done; `summary` is its outcome in a few words.
    pub fn cell_finished(&self, summary: &str) {
        let inner = &mut *self.lock();
        inner.eta.finish();
        inner.unit = None;
        let line = format!(
            "[{}/{}] {}: {summary}{}",
            inner.eta.cells,
            inner.cells,
            inner.label,
            inner.left_overall()
        );
        match &mut inner.view {
            View::Bars { all, unit, .. } => {
                unit.set_length(0);
                unit.set_message("");
                // A terminal that went away is no reason to stop computing.
                let _ = all.println(line);
            }
            View::Lines { out, last } => {
                let _ = writeln!(out, "{line}");
                *last = Instant::now();
            }
            View::Quiet { .. } => {}
        }
        inner.show_overall();
    }

    /// A unit of the cell begins; `index` counts from 0.
    pub fn unit(&self, index: usize, total: usize, path: &str) {
        let inner = &mut *self.lock();
        inner.unit = Some(Unit {
            index,
            total,
            path: path.into(),
            started: Instant::now(),
        });
        inner.eta.within(index as f64 / total.max(1) as f64);
        inner.show_overall();
        inner.show_unit(0, 0, None);
    }

    /// A step of the unit is done.
    pub fn step(&self, done: usize, total: usize, loss: f64) {
        let inner = &mut *self.lock();
        if let Some(unit) = &inner.unit {
            let within = done as f64 / total.max(1) as f64;
            inner
                .eta
                .within((unit.index as f64 + within) / unit.total.max(1) as f64);
        }
        inner.show_overall();
        inner.show_unit(done, total, Some(loss));
    }

    /// Images of the cell's evaluation are done.
    pub fn images(&self, done: usize, total: usize) {
        let inner = &mut *self.lock();
        inner.unit = None;
        let since = *inner.evaluating.get_or_insert_with(Instant::now);
        let left = left(since.elapsed(), done as f64, total as f64)
            .map_or(String::new(), |left| format!("; {} left", human(left)));
        match &mut inner.view {
            View::Bars { unit: bar, .. } => {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
                bar.set_message(format!("images evaluated{left}"));
            }
            View::Lines { out, last } if last.elapsed() >= PAUSE => {
                let label = &inner.label;
                let _ = writeln!(out, "      {label}: {done}/{total} images evaluated{left}");
                *last = Instant::now();
            }
            View::Lines { .. } | View::Quiet { .. } => {}
        }
    }

    /// Says something that must not be lost between the bars.
    pub fn note(&self, text: &str) {
        match &mut self.lock().view {
            View::Bars { all, .. } => {
                let _ = all.println(text);
            }
            View::Lines { out, .. } | View::Quiet { out } => {
                let _ = writeln!(out, "{text}");
            }
        }
    }
}

impl View {
    fn bars(target: ProgressDrawTarget) -> View {
        let style = |template: &str| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        let all = MultiProgress::with_draw_target(target);
        let overall = all.add(ProgressBar::new(PARTS as u64));
        overall.set_style(style("{bar:24} {percent:>3} %  {wide_msg}"));
        let unit = all.add(ProgressBar::new(0));
        unit.set_style(style("{bar:24} {pos}/{len}  {wide_msg}"));
        View::Bars { all, overall, unit }
    }

    fn lines(out: Box<dyn Write + Send>) -> View {
        View::Lines {
            out,
            last: Instant::now(),
        }
    }
}

impl Inner {
    fn left_overall(&self) -> String {
        match self.eta.left(self.started.elapsed()) {
            Some(left) if self.eta.cells < self.cells => format!("; all: {} left", human(left)),
            _ => String::new(),
        }
    }

    fn show_overall(&mut self) {
        let left = self.left_overall();
        if let View::Bars { overall, .. } = &self.view {
            overall.set_position((self.eta.share() * PARTS) as u64);
            overall.set_message(format!(
                "{}/{} cells  {}{left}",
                self.eta.cells, self.cells, self.label
            ));
        }
    }

    fn show_unit(&mut self, done: usize, total: usize, loss: Option<f64>) {
        let left_overall = self.left_overall();
        let Some(unit) = &self.unit else { return };
        let loss = loss.map_or(String::new(), |loss| format!(", loss {loss:.3e}"));
        let left = left(unit.started.elapsed(), done as f64, total as f64)
            .map_or(String::new(), |left| {
                format!("; unit: {} left", human(left))
            });
        let place = format!("unit {}/{} {}", unit.index + 1, unit.total, unit.path);
        match &mut self.view {
            View::Bars { unit: bar, .. } => {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
                bar.set_message(format!("{place}{loss}{left}"));
            }
            View::Lines { out, last } if last.elapsed() >= PAUSE => {
                let _ = writeln!(
                    out,
                    "      {}: {place}, step {done}/{total}{loss}{left}{left_overall}",
                    self.label
                );
                *last = Instant::now();
            }
            View::Lines { .. } | View::Quiet { .. } => {}
        }
    }
}

/// Time left, from the weights of what is finished.
#[derive(Debug, Clone)]
struct Eta {
    /// Weight of all cells, where it is known.
    total: Option<f64>,
    expected: usize,
    /// Cells finished, and their weight.
    cells: usize,
    weight: f64,
    /// Weight of the cell at work, and how much of it is done.
    current: f64,
    within: f64,
}

impl Eta {
    fn new(expected: usize) -> Eta {
        Eta {
            total: None,
            expected,
            cells: 0,
            weight: 0.0,
            current: 0.0,
            within: 0.0,
        }
    }

    fn start(&mut self, weight: f64) {
        self.current = weight.max(0.0);
        self.within = 0.0;
    }

    fn within(&mut self, share: f64) {
        self.within = share.clamp(0.0, 1.0);
    }

    fn finish(&mut self) {
        self.cells += 1;
        self.weight += self.current;
        self.start(0.0);
    }

    fn done(&self) -> f64 {
        self.weight + self.current * self.within
    }

    fn total(&self) -> f64 {
        let begun = self.weight + self.current;
        let cells = self.cells + usize::from(self.current > 0.0);
        let like_before = begun / cells.max(1) as f64 * self.expected as f64;
        self.total.unwrap_or(like_before).max(begun)
    }

    fn share(&self) -> f64 {
        if self.total() > 0.0 {
            self.done() / self.total()
        } else {
            0.0
        }
    }

    fn left(&self, elapsed: Duration) -> Option<Duration> {
        left(elapsed, self.done(), self.total())
    }
}

fn left(elapsed: Duration, done: f64, total: f64) -> Option<Duration> {
    let seconds = elapsed.as_secs_f64() / done * (total - done);
    (done > 0.0)
        .then(|| Duration::try_from_secs_f64(seconds).ok())
        .flatten()
}

/// A duration as people say it: `12 s`, `3 min 20 s`, `2 h 05 min`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Expected seconds of a cell, from the timings of recorded cells like it.
#[derive(Debug, Clone, Default)]
pub struct Estimator {
    /// Records learnt from.
    pub records: usize,
    prepare: HashMap<String, Mean>,
    evaluate_per_sample: HashMap<(String, String), Mean>,
    /// Early stops are averaged over: the steps a cell allows are what is known beforehand.
    reconstruct_per_step: HashMap<(String, Grain), Mean>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1.0;
    }

    fn value(&self) -> f64 {
        self.sum / self.count
    }
}

impl Estimator {
    /// Learns from a record's timing.
    pub fn learn(&mut self, record: &Record) {
        let (cell, timing) = (&record.cell, &record.timing);
        self.records += 1;
        self.prepare
            .entry(cell.model.clone())
            .or_default()
            .add(timing.prepare_s);
        self.evaluate_per_sample
            .entry((cell.model.clone(), cell.task.name.clone()))
            .or_default()
            .add(timing.evaluate_s / cell.task.samples.max(1) as f64);
        if let Some(reconstruction) = cell
            .sparsity
            .as_ref()
            .and_then(|s| s.reconstruction.as_ref())
        {
            self.reconstruct_per_step
                .entry((cell.model.clone(), reconstruction.granularity))
                .or_default()
                .add(timing.reconstruct_s / reconstruction.fit.steps.max(1) as f64);
        }
    }

    /// Expected seconds; none where no record is like this cell.
    pub fn seconds(&self, cell: &Cell) -> Option<f64> {
        let prepare = self.prepare.get(&cell.model)?.value();
        let task = (cell.model.clone(), cell.task.name.clone());
        let evaluate = self.evaluate_per_sample.get(&task)?.value() * cell.task.samples as f64;
        let reconstruct = match cell
            .sparsity
            .as_ref()
            .and_then(|s| s.reconstruction.as_ref())
        {
            Some(reconstruction) => {
                let kind = (cell.model.clone(), reconstruction.granularity);
                let per_step = self.reconstruct_per_step.get(&kind)?.value();
                per_step * reconstruction.fit.steps as f64
            }
            None => 0.0,
        };
        Some(prepare + evaluate + reconstruct)
    }

    /// A weight for [`Progress`]: the expected seconds, or a guess that keeps the order of magnitude (a sample is a
    /// forward pass; a step is about 200 of them, over all units).
    pub fn weight(&self, cell: &Cell) -> f64 {
        self.seconds(cell).unwrap_or_else(|| {
            let steps = cell
                .sparsity
                .as_ref()
                .and_then(|s| s.reconstruction.as_ref())
                .map_or(0, |r| r.fit.steps);
            1e-3 * (cell.task.samples + 200 * steps) as f64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::TermLike;
    use std::io::ErrorKind;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_time_left_follows_the_weights() {
        let mut eta = Eta::new(3);
        eta.total = Some(10.0);
        assert_eq!(eta.left(Duration::from_secs(1)), None);
        eta.start(4.0);
        eta.within(0.5);
        assert_eq!(
            eta.left(Duration::from_secs(6)),
            Some(Duration::from_secs(24))
        );
        eta.finish();
        assert_eq!(
            eta.left(Duration::from_secs(8)),
            Some(Duration::from_secs(12))
        );
        assert_eq!(eta.share(), 0.4);
    }

    #[test]
    fn without_a_total_the_rest_is_like_what_was() {
        let mut eta = Eta::new(4);
        eta.start(2.0);
        eta.finish();
        assert_eq!(
            eta.left(Duration::from_secs(5)),
            Some(Duration::from_secs(15))
        );
    }

    #[test]
    fn cells_of_no_weight_give_no_time_and_no_panic() {
        let mut eta = Eta::new(2);
        eta.start(0.0);
        eta.finish();
        assert_eq!(eta.left(Duration::from_secs(5)), None);
        assert_eq!(eta.share(), 0.0);
    }

    #[test]
    fn lines_name_every_finished_cell_and_are_sparse_between() {
        let out = Shared::default();
        let progress = Progress::to_writer(2, Box::new(out.clone())).with_total_weight(2.0);
        progress.cell_started("a", 1.0);
        progress.unit(0, 2, "conv1");
        for step in 1..=100 {
            progress.step(step, 100, 0.5);
        }
        progress.cell_finished("top1 91.5");
        progress.note("a note");
        progress.cell_started("b", 1.0);
        progress.cell_finished("top1 80");
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("[1/2] a: top1 91.5; all: "), "{text}");
        assert_eq!(lines[1], "a note");
        assert_eq!(lines[2], "[2/2] b: top1 80");
    }

    /// A terminal whose other end is closed.
    #[derive(Debug)]
    struct Gone;

    impl TermLike for Gone {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn write_line(&self, _: &str) -> io::Result<()> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn write_str(&self, _: &str) -> io::Result<()> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn clear_line(&self) -> io::Result<()> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn flush(&self) -> io::Result<()> {
            Err(ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn bars_on_a_terminal_that_went_away_cost_nothing() {
        let target = ProgressDrawTarget::term_like(Box::new(Gone));
        let progress = Progress::on(View::bars(target), 1);
        progress.cell_started("a", 1.0);
        progress.unit(0, 1, "conv1");
        progress.step(1, 2, 0.5);
        progress.images(1, 2);
        progress.note("a note");
        progress.cell_finished("top1 80");
    }

    #[test]
    fn durations_read_well() {
        for (seconds, text) in [
            (0.2, "0 s"),
            (59.4, "59 s"),
            (59.6, "1 min 00 s"),
            (200.0, "3 min 20 s"),
            (7500.0, "2 h 05 min"),
        ] {
            assert_eq!(human(Duration::from_secs_f64(seconds)), text);
        }
    }
}

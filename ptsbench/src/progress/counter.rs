//! One count towards a known total, with the rate and the time left: for work that is not a run of cells.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use crate::note;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{PAUSE, human, left};

/// A bar on a terminal; elsewhere a line every few seconds.
pub struct Counter {
    what: &'static str,
    total: usize,
    /// What was there before, which says nothing of the rate.
    first: usize,
    started: Instant,
    last: Instant,
    bar: Option<ProgressBar>,
    out: Box<dyn Write>,
}

impl Counter {
    /// A count of `what` from `first` to `total`, on stderr.
    pub fn new(what: &'static str, first: usize, total: usize) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr_with_hz(10);
            let bar = ProgressBar::with_draw_target(Some(total as u64), target);
            let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  {wide_msg}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self::on(what, first, total, bar, Box::new(io::stderr()))
    }

    fn on(
        what: &'static str,
        first: usize,
        total: usize,
        bar: Option<ProgressBar>,
        out: Box<dyn Write>,
    ) -> Self {
        let now = Instant::now();
        Self {
            what,
            total,
            first,
            started: now,
            last: now,
            bar,
            out,
        }
    }

    /// So many are done; `note` says more.
    pub fn at(&mut self, done: usize, note: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(done as u64);
                bar.set_message(self.line(done, note));
            }
            None if self.last.elapsed() >= PAUSE => {
                // A stderr that went away is no reason to stop computing.
                let line = self.line(done, note);
                let _ = writeln!(self.out, "{line}");
                self.last = Instant::now();
            }
            None => {}
        }
    }

    fn line(&self, done: usize, note: &str) -> String {
        let elapsed = self.started.elapsed();
        let (new, all) = ((done - self.first) as f64, (self.total - self.first) as f64);
        let left = left(elapsed, new, all).map_or(String::new(), |left| {
            let rate = new / elapsed.as_secs_f64();
            format!(", {rate:.1} a second, {} left", human(left))
        });
        format!("{done}/{} {}{left}{note}", self.total, self.what)
    }

    /// Says something that must not be lost.
    pub fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note!("{text}")),
            None => {
                let _ = writeln!(self.out, "{text}");
            }
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_there_before_is_not_counted_as_fast() {
        let mut counter = Counter::on("images", 400, 1000, None, Box::new(io::sink()));
        counter.started -= Duration::from_secs(10);
        let line = counter.line(500, "; top-1 3 %");
        assert_eq!(line, "500/1000 images, 10.0 a second, 50 s left; top-1 3 %");
        assert_eq!(counter.line(400, ""), "400/1000 images");
    }
}

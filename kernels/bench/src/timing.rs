//! Turns contestants into numbers: interleaved rounds, medians and spreads.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::contest::Contest;
use crate::machine::{CpuClock, Neighbours};
use crate::memory;

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds, in each of which every contestant runs.
    pub rounds: usize,
    /// A contestant repeats its call within a round until this many seconds are full.
    pub fill: f64,
}

/// A contestant's times, one per round, and what it allocated.
#[derive(Debug, Clone)]
pub struct Times {
    /// Seconds per call.
    pub wall: Vec<f64>,
    /// Processor seconds per call.
    pub cpu: Vec<f64>,
    /// Bytes allocated at the peak of the first call, beyond the operands.
    pub peak_bytes: usize,
}

/// A race's outcome.
pub struct Race {
    /// Of each contestant.
    pub times: Vec<Times>,
    /// Part of the machine that others used meanwhile.
    pub others: f64,
}

/// Runs every contestant in every round. The first call (which also measures memory) and the one after it do not count.
pub fn race(contest: &mut Contest, effort: Effort, clock: CpuClock) -> Race {
    let (sets, field, wait) = (contest.sets, &mut contest.contestants, &contest.wait);
    let mut times = Vec::new();
    let mut repeats = Vec::new();
    for contestant in field.iter_mut() {
        let peak_bytes = memory::peak_of(|| (contestant.call)(0));
        wait();
        let start = Instant::now();
        (contestant.call)(1 % sets);
        wait();
        let once = start.elapsed().as_secs_f64();
        repeats.push((effort.fill / once.max(1e-9)).ceil().clamp(1.0, 1e5) as usize);
        times.push(Times {
            wall: Vec::new(),
            cpu: Vec::new(),
            peak_bytes,
        });
    }
    let neighbours = Neighbours::watch();
    let mut next = vec![0; field.len()];
    for round in 0..effort.rounds {
        // Another one begins each round, so that nobody always runs after the same neighbour's mess.
        for turn in 0..field.len() {
            let who = (round + turn) % field.len();
            let (cpu, wall) = (clock.seconds(), Instant::now());
            for _ in 0..repeats[who] {
                (field[who].call)(next[who]);
                next[who] = (next[who] + 1) % sets;
            }
            wait();
            let calls = repeats[who] as f64;
            times[who].wall.push(wall.elapsed().as_secs_f64() / calls);
            times[who].cpu.push((clock.seconds() - cpu) / calls);
        }
    }
    Race {
        times,
        others: neighbours.share(),
    }
}

/// The middle of some numbers and how far they scatter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half are below.
    pub median: f64,
    /// A quarter is below.
    pub low: f64,
    /// A quarter is above.
    pub high: f64,
    /// The smallest.
    pub min: f64,
}

impl Spread {
    /// Of at least one number.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * (sorted.len() - 1) as f64;
            let (below, share) = (place.floor() as usize, place.fract());
            let above = (below + 1).min(sorted.len() - 1);
            sorted[below] * (1.0 - share) + sorted[above] * share
        };
        Self {
            median: at(0.5),
            low: at(0.25),
            high: at(0.75),
            min: sorted[0],
        }
    }

    /// Distance of the quartiles in parts of the median.
    pub fn relative(&self) -> f64 {
        (self.high - self.low) / self.median
    }
}

/// Round by round, so that what disturbed a whole round cancels.
pub fn ratio(reference: &Times, ours: &Times) -> Spread {
    let pairs = reference.wall.iter().zip(&ours.wall);
    Spread::of(&pairs.map(|(r, o)| r / o).collect::<Vec<_>>())
}

impl Race {
    /// Whether somebody else was on the processors: with one thread, wall and processor time are over 25 % apart; with more,
    /// others had over a tenth of the machine. Threads that wait for each other lose far more than that share.
    pub fn busy(&self, threads: usize) -> bool {
        let apart = |times: &Times| {
            let wall = Spread::of(&times.wall).median;
            (wall - Spread::of(&times.cpu).median).abs() > 0.25 * wall
        };
        match threads {
            1 => self.times.iter().any(apart),
            _ => self.others > 0.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::Contestant;
    use std::time::Duration;

    fn sleeper(name: &str, millis: u64) -> Contestant {
        Contestant {
            name: name.into(),
            sparsity: 0,
            path: None,
            call: Box::new(move |_| std::thread::sleep(Duration::from_millis(millis))),
        }
    }

    #[test]
    fn medians_and_quartiles() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0, 100.0]);
        assert_eq!((spread.median, spread.low, spread.high), (3.0, 2.0, 4.0));
        assert_eq!(Spread::of(&[1.0, 2.0]).median, 1.5);
    }

    #[test]
    fn the_ratio_is_taken_round_by_round() {
        let times = |wall: &[f64]| Times {
            wall: wall.to_vec(),
            cpu: wall.to_vec(),
            peak_bytes: 0,
        };
        // Every round was disturbed differently; the ratio was 2 in all of them.
        let (slow, fast) = (times(&[2.0, 4.0, 20.0]), times(&[1.0, 2.0, 10.0]));
        assert_eq!(ratio(&slow, &fast).median, 2.0);
    }

    #[test]
    fn a_race_sees_who_is_slower_and_that_sleep_is_not_work() {
        let mut contest = Contest {
            sets: 3,
            contestants: vec![sleeper("slow", 40), sleeper("fast", 4)],
            wait: Box::new(|| {}),
        };
        let effort = Effort {
            rounds: 3,
            fill: 0.0,
        };
        let mut race = race(&mut contest, effort, CpuClock::Thread);
        assert_eq!(race.times[0].wall.len(), 3);
        assert!(ratio(&race.times[0], &race.times[1]).median > 1.5);
        assert!(race.busy(1));
        race.others = 0.05;
        assert!(!race.busy(2));
        race.others = 0.2;
        assert!(race.busy(2));
    }
}

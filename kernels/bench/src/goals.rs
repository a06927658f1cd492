//! The goals: which ratio each row must reach, as data, and whether it did.

use anyhow::{Result, ensure};
use serde::Deserialize;

use crate::report::{Measured, Report};
use crate::shapes::Pass;

/// The goals that ship with the program.
pub const DEFAULT: &str = include_str!("../goals.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GoalFile {
    goal: Vec<Goal>,
}

/// One line of the table of goals.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// `G1`...
    pub id: String,
    /// What is compared.
    pub title: String,
    /// Whose speed.
    pub ours: String,
    /// In times of whose.
    pub against: String,
    rows: Where,
    /// Gates.
    pub must: Option<f64>,
    /// The target.
    pub aim: Option<f64>,
    #[serde(default = "yes")]
    gate: bool,
    needs: Option<Need>,
}

/// Rows that a goal is about; what is absent does not restrict.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Where {
    op: String,
    pass: Option<Pass>,
    kernel: Option<usize>,
    depthwise: Option<bool>,
    width: Option<Range>,
    batch: Option<Range>,
    sparsity: Option<u32>,
    #[serde(default)]
    sets: Vec<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    #[serde(default)]
    min: usize,
    max: Option<usize>,
}

/// What a goal needs that a machine or a build may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Need {
    Amx,
    SecondBuild,
    Wgpu,
    Cuda,
}

/// A goal's fate.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Of which goal, and what it compares.
    pub goal: String,
    /// What is demanded.
    pub demand: String,
    /// What happened.
    pub outcome: Outcome,
    /// Whether this alone makes the gate fail.
    pub fails: bool,
}

/// See [`Verdict`].
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Rows that reached must and aim, of how many; the worst row with its ratio; the rows below must.
    Measured {
        /// At or above `must`.
        must: usize,
        /// At or above `aim`.
        aim: usize,
        /// All.
        rows: usize,
        /// The slowest row.
        worst: (String, f64),
        /// Each row below `must`.
        missed: Vec<(String, f64)>,
    },
    /// Why not.
    NotMeasured(String),
}

impl Range {
    fn holds(self, value: usize) -> bool {
        self.min <= value && self.max.is_none_or(|max| value <= max)
    }
}

impl Where {
    fn matches(&self, row: &Measured) -> bool {
        row.op == self.op
            && self.pass.is_none_or(|pass| row.pass == pass)
            && self.kernel.is_none_or(|kernel| row.kernel == Some(kernel))
            && self.depthwise.is_none_or(|d| row.depthwise == d)
            && self
                .width
                .is_none_or(|range| row.width.is_some_and(|w| range.holds(w)))
            && self.batch.is_none_or(|range| range.holds(row.batch))
            && (self.sets.is_empty() || self.sets.iter().any(|set| row.sets.contains(set)))
            && !row.sets.iter().any(|set| set == "smoke")
    }
}

/// Reads the table.
pub fn parse(text: &str) -> Result<Vec<Goal>> {
    let file: GoalFile = toml::from_str(text)?;
    for goal in &file.goal {
        ensure!(
            goal.must.is_some() || goal.aim.is_some(),
            "goal {} ({}) demands nothing",
            goal.id,
            goal.title
        );
    }
    Ok(file.goal)
}

impl Goal {
    /// Whether it is about a GPU.
    pub fn of_gpu(&self) -> bool {
        matches!(self.needs, Some(Need::Wgpu | Need::Cuda))
    }

    /// Judges the rows of `report`. `complete`: nothing was left out on purpose, so a goal without rows is a failure.
    pub fn judge(&self, report: &Report, complete: bool) -> Verdict {
        let outcome = self.outcome(report);
        let gates = self.gate && self.must.is_some();
        let fails = gates
            && match &outcome {
                Outcome::Measured { missed, .. } => !missed.is_empty(),
                Outcome::NotMeasured(_) if self.absent(report).is_some() => false,
                Outcome::NotMeasured(_) => {
                    complete || report.rows.iter().any(|r| self.rows.matches(r) && r.busy)
                }
            };
        let number = |name: &str, value: Option<f64>| {
            value.map_or(String::new(), |value| format!("{name} {value}"))
        };
        Verdict {
            goal: format!("{} {}", self.id, self.title),
            demand: [number("must", self.must), number("aim", self.aim)]
                .join(" ")
                .trim()
                .to_owned(),
            outcome,
            fails,
        }
    }

    /// What the machine, or this program by itself, lacks to measure the goal.
    fn absent(&self, report: &Report) -> Option<String> {
        match self.needs {
            Some(Need::Amx) if !report.machine.amx => Some("this CPU has no AMX".into()),
            Some(Need::SecondBuild) => {
                Some("needs a build of Burn without x86-v4; see docs/benchmarks.md".into())
            }
            Some(need @ (Need::Wgpu | Need::Cuda)) => {
                let routes: &[&str] = match need {
                    Need::Wgpu => &["wgpu", "cuda"],
                    _ => &["cuda"],
                };
                let route = report.machine.accelerator.as_ref().map(|gpu| &gpu.route);
                match route {
                    Some(route) if routes.contains(&route.as_str()) => self.peer(),
                    _ => Some(format!(
                        "needs a GPU: bench-kernels --device {}",
                        routes.join(" or ")
                    )),
                }
            }
            _ => self.peer(),
        }
    }

    /// The other program that the goal compares with, where it is one.
    fn peer(&self) -> Option<String> {
        match self.against.as_str() {
            torch if torch.starts_with("torch") => Some("needs PyTorch; see tests/peers".into()),
            _ => None,
        }
    }

    fn outcome(&self, report: &Report) -> Outcome {
        if let Some(why) = self.absent(report) {
            return Outcome::NotMeasured(why);
        }
        let rows: Vec<&Measured> = report
            .rows
            .iter()
            .filter(|row| self.rows.matches(row))
            .collect();
        if let Some(row) = rows.iter().find(|row| row.busy) {
            return Outcome::NotMeasured(format!("machine busy during {}; run again", row.id()));
        }
        let found: Vec<(String, f64)> = rows.iter().flat_map(|row| self.ratios(row)).collect();
        let below = |bar: Option<f64>| {
            let bar = bar.unwrap_or(0.0);
            found.iter().filter(move |(_, ratio)| *ratio < bar)
        };
        let Some(worst) = found.iter().min_by(|a, b| a.1.total_cmp(&b.1)) else {
            return Outcome::NotMeasured(format!(
                "no row with both `{}` and `{}` ran",
                self.ours, self.against
            ));
        };
        Outcome::Measured {
            must: found.len() - below(self.must).count(),
            aim: found.len() - below(self.aim).count(),
            rows: found.len(),
            worst: worst.clone(),
            missed: below(self.must).cloned().collect(),
        }
    }

    /// Each of our contestants against the reference at the same sparsity, or else at none.
    fn ratios(&self, row: &Measured) -> Vec<(String, f64)> {
        let ours = row.entrants.iter().filter(|e| {
            e.name == self.ours
                && self
                    .rows
                    .sparsity
                    .is_none_or(|percent| e.sparsity == percent)
        });
        let against = |e: &crate::report::Entrant| {
            let pairs = row.ratios.iter().filter(|r| {
                r.ours == e.name
                    && r.sparsity == e.sparsity
                    && r.against == self.against
                    && (r.against_sparsity == e.sparsity || r.against_sparsity == 0)
            });
            let best = pairs.max_by_key(|r| r.against_sparsity)?;
            Some((format!("{} {}", row.id(), e.label()), best.ratio.median))
        };
        ours.filter_map(against).collect()
    }
}

impl Verdict {
    /// As a line, followed by a line for each row below `must`.
    pub fn lines(&self) -> String {
        let head = format!("{:<62} {:<20}", self.goal, self.demand);
        match &self.outcome {
            Outcome::NotMeasured(why) => {
                let mark = if self.fails { "FAILED " } else { "" };
                format!("{head} {mark}not measured: {why}\n")
            }
            Outcome::Measured {
                must,
                aim,
                rows,
                worst,
                missed,
            } => {
                let mark = match (self.fails, missed.is_empty()) {
                    (true, _) => "FAILED",
                    (false, true) => "ok",
                    (false, false) => "below (not gated)",
                };
                let mut text = format!(
                    "{head} {mark}: must {must}/{rows}, aim {aim}/{rows}, worst {:.2} ({})\n",
                    worst.1, worst.0
                );
                for (row, ratio) in missed {
                    text += &format!("    {ratio:6.2} {row}\n");
                }
                text
            }
        }
    }
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{report, row};

    fn goal(text: &str) -> Goal {
        parse(&format!("[[goal]]\nid='G'\ntitle='t'\n{text}"))
            .unwrap()
            .remove(0)
    }

    #[test]
    fn the_shipped_table_reads_and_names_the_goals() {
        let goals = parse(DEFAULT).unwrap();
        for id in [
            "G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G9b", "G9c", "G9d", "G10",
            "G11", "G12", "G13", "G14", "G15", "G16", "G17", "G18", "G19",
        ] {
            assert!(goals.iter().any(|goal| goal.id == id), "{id}");
        }
    }

    #[test]
    fn the_slowest_row_decides_and_is_named() {
        let fast = row(
            ["conv", "fast"],
            &["goals"],
            3,
            &[("burn", 0, 9.0), ("csr", 80, 1.0)],
        );
        let slow = row(
            ["conv", "slow"],
            &["goals"],
            3,
            &[("burn", 0, 4.0), ("csr", 80, 1.0)],
        );
        let smoke = row(
            ["conv", "tiny"],
            &["smoke"],
            3,
            &[("burn", 0, 1.0), ("csr", 80, 1.0)],
        );
        let other = row(
            ["conv", "1x1"],
            &["goals"],
            1,
            &[("burn", 0, 1.0), ("csr", 80, 1.0)],
        );
        let csr = goal(
            "ours='csr'\nagainst='burn'\nmust=5\naim=8\nrows={op='conv', kernel=3, sparsity=80}",
        );
        let verdict = csr.judge(&report(vec![fast.clone(), slow, smoke, other]), true);
        assert!(verdict.fails);
        let slow = ("conv slow b16 forward csr@80".to_owned(), 4.0);
        let expected = Outcome::Measured {
            must: 1,
            aim: 1,
            rows: 2,
            worst: slow.clone(),
            missed: vec![slow],
        };
        assert_eq!(verdict.outcome, expected);
        assert!(!csr.judge(&report(vec![fast]), true).fails);
    }

    #[test]
    fn the_reference_of_the_same_sparsity_comes_first() {
        let field = [
            ("burn_masked", 50, 3.0),
            ("masked", 50, 1.0),
            ("masked", 90, 1.0),
        ];
        let both = row(["conv", "a"], &[], 3, &field);
        let masked = goal("ours='masked'\nagainst='burn_masked'\nmust=2\nrows={op='conv'}");
        // The one at 90 % has no reference.
        assert_eq!(
            masked.ratios(&both),
            [("conv a b16 forward masked@50".to_owned(), 3.0)]
        );
    }

    #[test]
    fn what_cannot_be_measured_fails_only_if_it_could_have_been() {
        let none = report(vec![]);
        let gated = goal("ours='a'\nagainst='b'\nmust=2\nrows={op='conv'}");
        assert!(gated.judge(&none, true).fails);
        assert!(!gated.judge(&none, false).fails);
        let amx = goal("ours='a'\nagainst='b'\nmust=2\nneeds='amx'\nrows={op='conv'}");
        let verdict = amx.judge(&none, true);
        assert!(!verdict.fails);
        assert!(
            verdict
                .lines()
                .contains("not measured: this CPU has no AMX")
        );
        let torch = goal("ours='a'\nagainst='torch'\nmust=2\nrows={op='conv'}");
        assert!(!torch.judge(&none, true).fails);
        let reported = goal("ours='a'\nagainst='b'\nmust=2\ngate=false\nrows={op='conv'}");
        let slow = report(vec![row(
            ["conv", "x"],
            &[],
            3,
            &[("a", 0, 1.0), ("b", 0, 1.0)],
        )]);
        assert!(!reported.judge(&slow, true).fails);
        assert!(gated.judge(&slow, true).fails);
        let mut busy = report(vec![row(["conv", "x"], &[], 3, &[])]);
        busy.rows[0].busy = true;
        assert!(gated.judge(&busy, false).fails);
        assert!(!torch.judge(&busy, true).fails);
    }
}

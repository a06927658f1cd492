//! The result: a line per contestant on stdout, JSON and a markdown fragment on disk, and the comparison of two results.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::contest::Contestant;
use crate::machine::Machine;
use crate::shapes::{Op, Pass, Row};
use crate::timing::{Race, Spread, Times, ratio};

/// Version of the JSON.
pub const SCHEMA: u32 = 1;

/// A whole run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: u32,
    /// Where it ran.
    pub machine: Machine,
    /// Rounds per row.
    pub rounds: usize,
    /// The rows that were measured.
    pub rows: Vec<Measured>,
}

/// A row's facts and figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Product.
    pub op: String,
    /// Name in the shape file.
    pub shape: String,
    /// Batch.
    pub batch: usize,
    /// What was computed.
    pub pass: Pass,
    /// Sets of the shape file.
    pub sets: Vec<String>,
    /// Kernel height and width of a convolution.
    pub kernel: Option<usize>,
    /// Whether every channel has its own filter.
    pub depthwise: bool,
    /// Input width of a convolution.
    pub width: Option<usize>,
    /// Operations of the dense product.
    pub flops: f64,
    /// Part of the machine that others used meanwhile.
    pub others: f64,
    /// That was too much: no ratio is taken.
    pub busy: bool,
    /// Who computed it.
    pub entrants: Vec<Entrant>,
    /// Every pair: reference time / own time.
    pub ratios: Vec<Ratio>,
}

/// A contestant's figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entrant {
    /// As goals name it.
    pub name: String,
    /// Percent of the weights that are masked.
    pub sparsity: u32,
    /// Seconds per call.
    pub wall: Spread,
    /// Processor seconds per call.
    pub cpu: Spread,
    /// On dense operations, at the median; 0 where there are none.
    pub gflops: f64,
    /// Part of the measured peak.
    pub of_peak: f64,
    /// Bytes allocated at the peak of a call, output included, operands not; unknown for other programs.
    pub peak_bytes: Option<usize>,
    /// The path taken, where there is a choice.
    pub path: Option<String>,
}

/// One contestant against another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ratio {
    /// Whose speed it is.
    pub ours: String,
    /// Percent of its weights that are masked.
    pub sparsity: u32,
    /// The reference.
    pub against: String,
    /// Percent of the reference's weights that are masked.
    pub against_sparsity: u32,
    /// Reference time / own time.
    pub ratio: Spread,
}

impl Entrant {
    /// `name`, or `name@sparsity`.
    pub fn label(&self) -> String {
        match self.sparsity {
            0 => self.name.clone(),
            percent => format!("{}@{percent}", self.name),
        }
    }
}

impl Measured {
    /// From a race.
    pub fn new(row: &Row, machine: &Machine, field: &[Contestant], race: &Race) -> Self {
        let times = &race.times;
        let (kernel, depthwise, width) = match &row.op {
            Op::Conv(conv) => (Some(conv.kernel), conv.depthwise(), Some(conv.size)),
            _ => (None, false, None),
        };
        let flops = row.flops();
        let entrant = |(who, times): (&Contestant, &Times)| {
            let wall = Spread::of(&times.wall);
            let gflops = flops / wall.median / 1e9;
            Entrant {
                name: who.name.clone(),
                sparsity: who.sparsity,
                wall,
                cpu: Spread::of(&times.cpu),
                gflops,
                // A GPU's peak is not measured.
                of_peak: match machine.peak_gflops {
                    0.0 => 0.0,
                    peak => gflops / peak,
                },
                peak_bytes: Some(times.peak_bytes),
                path: who.path.clone(),
            }
        };
        let busy = machine.accelerator.is_none() && race.busy(machine.threads);
        let pairs = (0..field.len()).flat_map(|a| (0..field.len()).map(move |b| (a, b)));
        let ratios = pairs.filter(|(a, b)| a != b && !busy).map(|(a, b)| Ratio {
            ours: field[a].name.clone(),
            sparsity: field[a].sparsity,
            against: field[b].name.clone(),
            against_sparsity: field[b].sparsity,
            ratio: ratio(&times[b], &times[a]),
        });
        Self {
            op: row.op.name().to_owned(),
            shape: row.shape.clone(),
            batch: row.batch,
            pass: row.pass,
            sets: row.sets.iter().cloned().collect(),
            kernel,
            depthwise,
            width,
            flops,
            others: race.others,
            busy,
            entrants: field.iter().zip(times).map(entrant).collect(),
            ratios: ratios.collect(),
        }
    }

    /// `op shape bN pass`.
    pub fn id(&self) -> String {
        format!(
            "{} {} b{} {}",
            self.op,
            self.shape,
            self.batch,
            self.pass.name()
        )
    }

    /// The row as aligned lines.
    pub fn lines(&self) -> String {
        let mut text = format!("{}\n", self.id());
        for e in &self.entrants {
            let rate = match self.flops {
                0.0 => format!("{:32}", ""),
                // A GPU's peak is not measured.
                _ if e.of_peak == 0.0 => format!("{:8.1} GFLOP/s {:15}", e.gflops, ""),
                _ => format!(
                    "{:8.1} GFLOP/s {:5.1} % of peak",
                    e.gflops,
                    100.0 * e.of_peak
                ),
            };
            let memory = e
                .peak_bytes
                .map_or(String::new(), |b| format!("{:9.2} MiB", mib(b)));
            let path = e.path.as_deref().unwrap_or_default();
            text += format!(
                "  {:<16} {:10.3} ms +- {:4.1} %  {:4.2} cpu/wall {rate} {memory}  {path}",
                e.label(),
                1e3 * e.wall.median,
                50.0 * e.wall.relative(),
                e.cpu.median / e.wall.median,
            )
            .trim_end();
            text.push('\n');
        }
        if self.busy {
            text += &format!(
                "  machine busy (others had {:.0} % of it), so no ratios\n",
                100.0 * self.others
            );
        }
        text
    }
}

impl Report {
    /// Reads one; refuses another schema.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let report: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a result of this program", path.display()))?;
        ensure!(
            report.schema == SCHEMA,
            "{} has schema {}, this program reads {SCHEMA}",
            path.display(),
            report.schema
        );
        Ok(report)
    }

    /// Writes the JSON and, beside it, the markdown fragment.
    pub fn write(&self, path: &Path) -> Result<()> {
        let fail = || format!("writing {}", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(fail)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(self)? + "\n").with_context(fail)?;
        let markdown = path.with_extension("md");
        std::fs::write(&markdown, self.markdown())
            .with_context(|| format!("writing {}", markdown.display()))
    }

    /// A table for a page: each contestant's time, and its speed in times of stock Burn's dense product.
    pub fn markdown(&self) -> String {
        let m = &self.machine;
        let mut text = format!(
            "{}, {}, {} of {} threads, peak {:.0} GFLOP/s, f32, median of {} rounds.\n\n\
             | row | who | ms | GFLOP/s | of peak | allocated, MiB | x Burn |\n\
             | --- | --- | ---: | ---: | ---: | ---: | ---: |\n",
            m.cpu, m.isa, m.threads, m.cores, m.peak_gflops, self.rounds
        );
        for row in &self.rows {
            for e in &row.entrants {
                let against = row.ratios.iter().find(|r| {
                    r.ours == e.name
                        && r.sparsity == e.sparsity
                        && r.against == "burn"
                        && r.against_sparsity == 0
                });
                let dash = || "-".to_owned();
                let (gflops, peak) = match row.flops {
                    0.0 => (dash(), dash()),
                    _ => (
                        format!("{:.1}", e.gflops),
                        format!("{:.0} %", 100.0 * e.of_peak),
                    ),
                };
                text += &format!(
                    "| {} | {} | {:.3} | {gflops} | {peak} | {} | {} |\n",
                    row.id(),
                    e.label(),
                    1e3 * e.wall.median,
                    e.peak_bytes
                        .map_or_else(dash, |bytes| format!("{:.1}", mib(bytes))),
                    against.map_or_else(dash, |r| format!("{:.2}", r.ratio.median)),
                );
            }
        }
        text
    }

    /// Contestants of both results that now take over 5 % longer, worst first.
    pub fn regressions(&self, old: &Self) -> Vec<String> {
        let mut worse = Vec::new();
        for row in &self.rows {
            let Some(before) = old.rows.iter().find(|o| o.id() == row.id()) else {
                continue;
            };
            for e in &row.entrants {
                let same = |o: &&Entrant| o.name == e.name && o.sparsity == e.sparsity;
                let Some(was) = before.entrants.iter().find(same) else {
                    continue;
                };
                let slower = e.wall.median / was.wall.median;
                if slower > 1.05 {
                    let line = format!(
                        "{} {}: {:.3} ms, was {:.3} ms ({:+.0} %)",
                        row.id(),
                        e.label(),
                        1e3 * e.wall.median,
                        1e3 * was.wall.median,
                        100.0 * (slower - 1.0)
                    );
                    worse.push((slower, line));
                }
            }
        }
        worse.sort_by(|a, b| b.0.total_cmp(&a.0));
        worse.into_iter().map(|(_, line)| line).collect()
    }
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A row with contestants at these seconds, and the ratios that follow.
    pub fn row(
        id: [&str; 2],
        sets: &[&str],
        kernel: usize,
        field: &[(&str, u32, f64)],
    ) -> Measured {
        let spread = |value| Spread {
            median: value,
            low: value,
            high: value,
            min: value,
        };
        let entrant = |&(name, sparsity, seconds): &(&str, u32, f64)| Entrant {
            name: name.into(),
            sparsity,
            wall: spread(seconds),
            cpu: spread(seconds),
            gflops: 1.0 / seconds,
            of_peak: 0.1,
            peak_bytes: Some(1 << 20),
            path: None,
        };
        let ratio = |a: &(&str, u32, f64), b: &(&str, u32, f64)| Ratio {
            ours: a.0.into(),
            sparsity: a.1,
            against: b.0.into(),
            against_sparsity: b.1,
            ratio: spread(b.2 / a.2),
        };
        Measured {
            op: id[0].into(),
            shape: id[1].into(),
            batch: 16,
            pass: Pass::Forward,
            sets: sets.iter().map(|&s| s.into()).collect(),
            kernel: Some(kernel),
            depthwise: false,
            width: Some(8),
            flops: 1e9,
            others: 0.0,
            busy: false,
            entrants: field.iter().map(entrant).collect(),
            ratios: field
                .iter()
                .flat_map(|a| field.iter().map(move |b| ratio(a, b)))
                .collect(),
        }
    }

    /// A result of these rows.
    pub fn report(rows: Vec<Measured>) -> Report {
        let machine = Machine {
            cpu: "test".into(),
            isa: "portable".into(),
            amx: false,
            cores: 2,
            threads: 2,
            peak_gflops: 100.0,
            l2_bytes: 1 << 20,
            accelerator: None,
        };
        Report {
            schema: SCHEMA,
            machine,
            rounds: 7,
            rows,
        }
    }

    #[test]
    fn only_what_got_slower_by_more_than_five_percent_is_told() {
        let at = |ours, burn| {
            report(vec![row(
                ["conv", "a"],
                &[],
                3,
                &[("ours", 50, ours), ("burn", 0, burn)],
            )])
        };
        let told = at(1.2, 1.04).regressions(&at(1.0, 1.0));
        assert_eq!(
            told,
            ["conv a b16 forward ours@50: 1200.000 ms, was 1000.000 ms (+20 %)"]
        );
        assert!(at(0.5, 1.0).regressions(&at(1.0, 1.0)).is_empty());
    }

    #[test]
    fn a_result_survives_the_disk_and_another_schema_is_refused() {
        let folder = std::env::temp_dir().join(format!("bench-kernels-{}", std::process::id()));
        let path = folder.join("r.json");
        let mut result = report(vec![row(["conv", "a"], &["goals"], 3, &[("burn", 0, 0.5)])]);
        result.write(&path).unwrap();
        assert_eq!(
            Report::read(&path).unwrap().rows[0].id(),
            "conv a b16 forward"
        );
        let table = std::fs::read_to_string(path.with_extension("md")).unwrap();
        assert!(
            table.contains("| conv a b16 forward | burn | 500.000 |"),
            "{table}"
        );
        result.schema = 9;
        result.write(&path).unwrap();
        let refused = Report::read(&path).unwrap_err().to_string();
        assert!(refused.contains("schema 9"), "{refused}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}

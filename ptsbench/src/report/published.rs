//! The numbers the paper printed, read from `assets/published`.
//!
//! Facts only, each file naming its table; nothing here is compared or computed.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::ReportError;
use super::suite::Task;

/// Tables 1-7 of arXiv 2412.07268.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Table 1, the repository of architectures.
    pub networks: Vec<NetworkRow>,
    /// Table 2, sparsity allocation.
    pub allocation: Vec<MethodRow>,
    /// Table 3, reconstruction time.
    pub time: Vec<TimeRow>,
    /// Table 4, reconstruction.
    pub reconstruction: Vec<MethodRow>,
    /// Table 5, architectures and sizes.
    pub architectures: Vec<FamilyRow>,
    /// Table 6, tasks.
    pub tasks: Vec<TaskRow>,
    /// Table 7, findings.
    pub findings: Vec<FindingRow>,
}

/// A network of Table 1.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkRow {
    /// The task as printed.
    pub task: String,
    /// The family as printed.
    pub family: String,
    /// The network as printed.
    pub name: String,
    /// How the catalog calls this row, where it writes it differently.
    here: Option<String>,
    /// Parameters in millions by whoever publishes the weights; the paper prints none.
    pub parameters: Option<f64>,
}

impl NetworkRow {
    /// How the catalog calls this row of the paper.
    pub fn here(&self) -> &str {
        self.here.as_deref().unwrap_or(&self.name)
    }
}

/// Values by rate in whole percent.
pub type ByRate<T> = BTreeMap<String, T>;

/// A row of Tables 2 and 4.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodRow {
    /// The method as printed.
    pub method: String,
    /// OM_alloc or OM_recon.
    pub om: f64,
    /// Classification.
    pub cls: TaskBlock,
    /// Detection.
    pub det: TaskBlock,
    /// Generation.
    #[serde(rename = "gen")]
    pub generation: TaskBlock,
}

impl MethodRow {
    /// The values of a task.
    pub fn block(&self, task: Task) -> &TaskBlock {
        match task {
            Task::Classification => &self.cls,
            Task::Detection => &self.det,
            Task::Generation => &self.generation,
        }
    }
}

/// A method's values in one task.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskBlock {
    /// MS, the task's mean.
    pub ms: f64,
    /// Values by rate.
    pub rates: ByRate<f64>,
}

/// A row of Table 3.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeRow {
    /// The network as printed.
    pub model: String,
    /// The granularity as printed.
    pub granularity: String,
    /// Minutes.
    pub minutes: ByRate<f64>,
    /// The same as printed.
    pub printed: ByRate<String>,
}

/// A row of Table 5.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FamilyRow {
    /// The family as printed.
    pub family: String,
    /// OM_arch.
    pub om_arch: f64,
    /// OM_robust, in a unit the paper does not state.
    pub om_robust: f64,
    /// Values by rate.
    pub rates: ByRate<f64>,
}

/// A row of Table 6.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRow {
    /// The task as printed.
    pub task: String,
    /// OM_task.
    pub om_task: f64,
    /// Values by rate.
    pub rates: ByRate<f64>,
}

/// A row of Table 7.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FindingRow {
    /// The track's number.
    pub track: u32,
    /// The track's name.
    pub name: String,
    /// Best first, where the track ranks.
    #[serde(default)]
    pub ranking: Vec<String>,
    /// What it found.
    #[serde(default)]
    pub findings: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<Row> {
    row: Vec<Row>,
}

/// Reads the published tables that are compiled into the program.
pub fn published() -> Result<Published, ReportError> {
    macro_rules! table {
        ($file:literal) => {
            parse(
                $file,
                include_str!(concat!("../../../assets/published/", $file)),
            )?
        };
    }
    Ok(Published {
        networks: table!("table1.toml"),
        allocation: table!("table2.toml"),
        time: table!("table3.toml"),
        reconstruction: table!("table4.toml"),
        architectures: table!("table5.toml"),
        tasks: table!("table6.toml"),
        findings: table!("table7.toml"),
    })
}

fn parse<Row: for<'de> Deserialize<'de>>(
    file: &'static str,
    text: &str,
) -> Result<Vec<Row>, ReportError> {
    let file: File<Row> = toml::from_str(text).map_err(|source| ReportError::Published {
        file,
        source: Box::new(source),
    })?;
    Ok(file.row)
}

impl Published {
    /// A row of Table 2.
    pub fn allocation(&self, method: &str) -> Option<&MethodRow> {
        self.allocation.iter().find(|row| row.method == method)
    }

    /// A row of Table 4.
    pub fn reconstruction(&self, method: &str) -> Option<&MethodRow> {
        self.reconstruction.iter().find(|row| row.method == method)
    }

    /// A row of Table 6.
    pub fn task(&self, task: Task) -> Option<&TaskRow> {
        self.tasks.iter().find(|row| row.task == task.name())
    }

    /// A row of Table 5.
    pub fn family(&self, family: &str) -> Option<&FamilyRow> {
        self.architectures.iter().find(|row| row.family == family)
    }
}

/// The name under which [`ByRate`] holds a rate: percent with at most two decimals.
pub fn percent(rate: f64) -> String {
    format!("{}", (1e4 * rate).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overall;

    #[test]
    fn every_table_is_read_whole() {
        let p = published().expect("the files are part of the program");
        let rows = [
            p.networks.len(),
            p.allocation.len(),
            p.time.len(),
            p.reconstruction.len(),
            p.architectures.len(),
            p.tasks.len(),
            p.findings.len(),
        ];
        assert_eq!(rows, [40, 5, 15, 7, 7, 3, 5]);
        for row in p.allocation.iter().chain(&p.reconstruction) {
            assert_eq!(row.cls.rates.len(), 4, "{}", row.method);
            assert_eq!(row.det.rates.len(), 4, "{}", row.method);
            assert_eq!(row.generation.rates.len(), 1, "{}", row.method);
        }
    }

    /// A digit mistyped in one of the files would break the relation that the paper's own tables keep.
    #[test]
    fn printed_rows_agree_with_each_other() {
        let p = published().expect("the files are part of the program");
        for row in p.allocation.iter().chain(&p.reconstruction) {
            let om = overall::over_tasks(&[row.cls.ms, row.det.ms, row.generation.ms])
                .expect("three tasks");
            let agrees = (om - row.om).abs() < 0.006;
            assert_eq!(
                agrees,
                row.method != "Block-wise",
                "{}: {om} and {}",
                row.method,
                row.om
            );
        }
        for row in &p.architectures {
            let columns: Vec<f64> = row.rates.values().copied().collect();
            let om = overall::om_arch_table(&[columns]).expect("four rates");
            assert!((om - row.om_arch).abs() < 0.007, "{}: {om}", row.family);
        }
    }

    #[test]
    fn rates_are_named_in_percent() {
        assert_eq!(overall::RATES.map(percent), ["50", "60", "70", "80"]);
        assert_eq!(percent(0.7 + 1e-12), "70");
        assert_eq!(percent(0.875), "87.5");
    }
}

//! Records and published numbers in; tables, figures and one page out.
//!
//! Everything here is a pure function of its arguments but the two `write_*` functions at the end.
//! No number in a table or figure comes from anywhere but records and `assets/published`, and none depends on time or
//! machine: equal records give equal bytes.
//!
//! `suite` looks records up, `tables` and `figures` decide what is shown, `table` and `figure` are the models of what is
//! shown, and the other files each write one format.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::cell::{Inputs, Key};
use crate::record::Record;
use crate::store::{StoreError, write_atomic};
use model_zoo::Grain;

pub mod csv;
pub mod figure;
pub mod figures;
#[cfg(test)]
mod fixture;
mod groups;
pub mod html;
pub mod latex;
pub mod markdown;
pub mod published;
pub mod suite;
pub mod table;
pub mod tables;
pub mod theme;

use figure::Figure;
use suite::Configuration;
use table::Table;

/// The paper's allocation methods and our allocators' names.
pub const METHODS: [(&str, &str); 5] = [
    ("Uniform", "uniform"),
    ("L2Norm", "l2norm"),
    ("ERK", "erk"),
    ("FCPTS (L2Norm)", "fcpts_l2norm"),
    ("FCPTS (ERK)", "fcpts_erk"),
];

/// How the names of learned allocations begin: what follows is the allocator that they start from.
pub const LEARNED: &str = "fcpts_";

/// How they end where learned rates are applied to the dense network's weights.
pub const OF_DENSE: &str = "_dense";

/// The same as a table says it.
pub const DENSE_WEIGHTS: &str = ", dense weights";

/// The allocation on which Track 2 stands.
pub const TRACK2_ALLOCATOR: &str = "l2norm";

const BASE: Configuration = Configuration {
    granularity: Grain::Layer,
    inputs: Inputs::Sparse,
    correction: true,
};

/// The rows of Table 4: one base configuration, varied in one respect at a time.
pub const TRACK2: [(&str, Configuration); 7] = [
    ("w/ Correction", BASE),
    (
        "w/o Correction",
        Configuration {
            correction: false,
            ..BASE
        },
    ),
    ("Sparse Input", BASE),
    (
        "Dense Input",
        Configuration {
            inputs: Inputs::Dense,
            ..BASE
        },
    ),
    (
        "Single",
        Configuration {
            granularity: Grain::Single,
            ..BASE
        },
    ),
    ("Layer-wise", BASE),
    (
        "Block-wise",
        Configuration {
            granularity: Grain::Block,
            ..BASE
        },
    ),
];

/// How tables and figures call an allocator: as the paper does, where it is one of its methods.
pub fn allocator_name(name: &str) -> String {
    let known = METHODS.iter().find(|(_, allocator)| *allocator == name);
    if let (None, Some(start)) = (known, name.strip_prefix(LEARNED)) {
        return match start.strip_suffix(OF_DENSE) {
            Some(start) => allocator_name(&format!("{LEARNED}{start}")) + DENSE_WEIGHTS,
            None => format!("FCPTS ({})", allocator_name(start)),
        };
    }
    match (known, name) {
        (Some((method, _)), _) => (*method).to_owned(),
        (None, "l1norm") => "L1Norm".to_owned(),
        (None, "magnitude") => "Magnitude".to_owned(),
        (None, "erk_dense_last") => "ERK, last layer dense".to_owned(),
        (None, "random") => "Random".to_owned(),
        (None, "evopress") => "EvoPress".to_owned(),
        (None, other) => other.to_owned(),
    }
}

/// What accompanies the numbers and is not in the records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    /// The plan that made the records, where one was named.
    pub plan: Option<String>,
    /// The plan's sentences.
    pub notes: Vec<Note>,
}

/// A sentence of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The task under whose tables it stands; under all where there is none.
    pub task: Option<String>,
    /// The sentence.
    pub text: String,
}

impl Words {
    /// The sentences under a table of these tasks; the procedural set never goes without its warning.
    fn notes(&self, tasks: &[&str]) -> Vec<String> {
        if self.notes.is_empty() && tasks.iter().any(|task| task.starts_with("micro")) {
            return vec![
                "The data are procedural: levels are not comparable with the paper, orders may be."
                    .to_owned(),
            ];
        }
        let of_these = |note: &&Note| match &note.task {
            None => true,
            Some(task) => tasks.contains(&task.as_str()),
        };
        let notes = self.notes.iter().filter(of_these);
        notes.map(|note| note.text.clone()).collect()
    }
}

/// Why no report could be made.
#[derive(Debug, Error)]
pub enum ReportError {
    /// The store has no records.
    #[error("no records in {}: make some with `ptsbench run micro --store {}`", store.display(), store.display())]
    Empty {
        /// The store's folder.
        store: PathBuf,
    },
    /// The store has records, none of them of the plan.
    #[error(
        "none of the {records} records in the store belongs to the plan `{plan}`: make them with `ptsbench run {plan}`"
    )]
    NotOfPlan {
        /// The plan's name.
        plan: String,
        /// Records in the store.
        records: usize,
    },
    /// A file cannot be written.
    #[error("{0}; or choose another folder with --out")]
    Write(#[from] StoreError),
    /// A figure cannot be drawn.
    #[error("cannot draw the figure `{figure}`: {reason}")]
    Draw {
        /// The figure's id.
        figure: String,
        /// What the drawing library said.
        reason: String,
    },
    /// A file of published numbers is malformed.
    #[error("assets/published/{file} is malformed: {source}; this is a bug of this build")]
    Published {
        /// The file.
        file: &'static str,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
}

/// All tables of all suites; where some of their cells are among the `shipped` records, the differences too.
pub fn tables(
    records: &[Record],
    shipped: &[Record],
    words: &Words,
) -> Result<Vec<Table>, ReportError> {
    let published = published::published()?;
    let suites = suite::suites(records);
    let shipped: BTreeMap<&Key, &Record> = shipped.iter().map(|r| (&r.key, r)).collect();
    let mut all = tables::across(&groups::groups(&suites), &published, words);
    for suite in &suites {
        all.extend(tables::tables(suite, &published, words));
        all.extend(tables::shipped(suite, &shipped, words));
    }
    Ok(all)
}

/// All figures of all suites.
pub fn figures(records: &[Record]) -> Result<Vec<Figure>, ReportError> {
    let published = published::published()?;
    let suites = suite::suites(records);
    let groups = groups::groups(&suites);
    let across = groups.iter().filter_map(|g| figures::tasks(g, &published));
    Ok(across
        .chain(suites.iter().flat_map(figures::figures))
        .collect())
}

/// The records whose keys a plan has; an error where there are none.
pub fn of_plan(
    records: Vec<Record>,
    plan: &str,
    keys: &BTreeSet<Key>,
) -> Result<Vec<Record>, ReportError> {
    let count = records.len();
    let chosen: Vec<Record> = records
        .into_iter()
        .filter(|r| keys.contains(&r.key))
        .collect();
    if chosen.is_empty() {
        return Err(ReportError::NotOfPlan {
            plan: plan.to_owned(),
            records: count,
        });
    }
    Ok(chosen)
}

/// Writes `report.html` and `tables/*` below `out` and returns their paths; `shipped` is what [`tables()`] compares with.
pub fn write_report(
    records: &[Record],
    shipped: &[Record],
    words: &Words,
    out: &Path,
) -> Result<Vec<PathBuf>, ReportError> {
    let tables = tables(records, shipped, words)?;
    let page = html::page(records, &tables, &figures(records)?, words)?;
    let mut written = Vec::new();
    for table in &tables {
        let formats = [
            ("md", markdown::render(table)),
            ("csv", csv::render(table)),
            ("tex", latex::render(table)),
        ];
        for (extension, text) in formats {
            let path = out.join("tables").join(format!("{}.{extension}", table.id));
            write_atomic(&path, text.as_bytes())?;
            written.push(path);
        }
    }
    let path = out.join("report.html");
    write_atomic(&path, page.as_bytes())?;
    written.push(path);
    Ok(written)
}

/// Writes `figures/*` below `out` and returns their paths.
pub fn write_figures(records: &[Record], out: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let mut written = Vec::new();
    for figure in figures(records)? {
        let folder = out.join("figures");
        let svg = folder.join(format!("{}.svg", figure.id));
        write_atomic(&svg, figure.svg()?.as_bytes())?;
        let png = folder.join(format!("{}.png", figure.id));
        write_atomic(&png, &figure.png(&folder)?)?;
        written.extend([svg, png]);
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn bytes_below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in folder.read_dir().expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                found.extend(bytes_below(&path));
            } else {
                found.insert(path.clone(), std::fs::read(&path).expect("a file"));
            }
        }
        found
    }

    #[test]
    fn equal_records_give_equal_bytes() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let mut outputs = Vec::new();
        let mut shipped = fixture::records();
        shipped.truncate(9);
        for run in 0..2 {
            let mut records = fixture::records();
            for record in &mut records {
                // What differs from run to run must not show.
                record.timing.evaluate_s = run as f64;
                record.timing.finished_unix = 1_700_000_000 + run;
                record.environment.processor = format!("processor {run}");
                record.environment.threads = 1 + run as usize;
            }
            let out = root.path().join("out");
            write_report(&records, &shipped, &Words::default(), &out).expect("written");
            write_figures(&records, &out).expect("written");
            outputs.push(bytes_below(&out));
        }
        assert!(outputs[0].len() > 20, "{:?}", outputs[0].keys());
        assert!(
            outputs[0]
                .keys()
                .all(|p| !p.to_string_lossy().contains("partial"))
        );
        for (path, bytes) in &outputs[0] {
            assert!(outputs[1][path] == *bytes, "{} differs", path.display());
        }
        assert_eq!(outputs[0].len(), outputs[1].len());
    }

    #[test]
    fn a_plan_chooses_its_records() {
        let records = fixture::records();
        let keys: BTreeSet<Key> = records[..2].iter().map(|r| r.key.clone()).collect();
        let chosen = of_plan(records.clone(), "micro", &keys).expect("two of them");
        assert_eq!(chosen, records[..2]);
        let error = of_plan(records, "micro", &BTreeSet::new()).expect_err("none");
        assert!(error.to_string().contains("ptsbench run micro"), "{error}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let file = root.path().join("file");
        std::fs::write(&file, "").expect("written");
        let error = write_figures(&fixture::records(), &file)
            .expect_err("a file in the way")
            .to_string();
        assert!(
            error.contains("--out") && error.contains("file/figures"),
            "{error}"
        );
    }
}

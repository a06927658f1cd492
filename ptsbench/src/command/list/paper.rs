//! `ptsbench list models --paper`: the paper's Table 1 beside the catalog.

use model_zoo::catalog::origin::{self, Place};
use model_zoo::catalog::{self, Spec};

use super::Rows;
use crate::report::published::{NetworkRow, published};

/// A row for each network of Table 1, or of a family there; a dash where there is nothing.
pub(super) fn rows(family: Option<&str>) -> anyhow::Result<Rows> {
    let columns = vec![
        "paper",
        "task",
        "model",
        "published parameters",
        "weights",
        "MACs",
        "public weights",
        "also",
    ];
    // A family is meant as the catalog has it, where the paper writes it differently.
    let of_family = |row: &&NetworkRow| {
        let stand_ins = stand_ins(row);
        family.is_none_or(|family| {
            let mut families = stand_ins.iter().map(|spec| spec.family);
            families.any(|known| known.eq_ignore_ascii_case(family))
        })
    };
    let all = published()?.networks;
    Ok((columns, all.iter().filter(of_family).map(row).collect()))
}

/// How many rows have a network, and what the paper leaves open.
pub(super) fn summary(rows: &[Vec<String>]) -> String {
    let found = rows.iter().filter(|row| row[2] != "-").count();
    format!(
        "{found} of {} rows have a network here; the paper prints neither parameters nor multiply-adds, so those published \
         are of the weights",
        rows.len()
    )
}

/// The networks that the catalog has for a row, those with public weights first.
fn stand_ins(row: &NetworkRow) -> Vec<&'static Spec> {
    let all = catalog::all().iter();
    let mut found: Vec<&Spec> = all.filter(|spec| spec.paper == Some(row.here())).collect();
    found.sort_by_key(|spec| !is_public(spec));
    found
}

fn is_public(spec: &Spec) -> bool {
    origin::of(spec.name).is_some_and(|origin| origin.place != Place::Nowhere)
}

fn row(row: &NetworkRow) -> Vec<String> {
    let dash = || "-".to_owned();
    let found = stand_ins(row);
    let first = found.first();
    let counts = first.map(|spec| spec.counts());
    let others: Vec<&str> = found.iter().skip(1).map(|spec| spec.name).collect();
    let source = first.filter(|spec| is_public(spec));
    vec![
        row.name.clone(),
        row.task.clone(),
        first.map_or_else(dash, |spec| spec.name.to_owned()),
        row.parameters
            .map_or_else(dash, |millions| format!("{millions} M")),
        counts.map_or_else(dash, |counts| counts.weights.to_string()),
        counts.map_or_else(dash, |counts| counts.macs.to_string()),
        source.map_or_else(|| "none that are read here".to_owned(), publisher),
        match others.is_empty() {
            true => dash(),
            false => others.join(", "),
        },
    ]
}

/// Where a network's public weights come from, in a word.
fn publisher(spec: &&Spec) -> String {
    match spec.weights {
        catalog::Weights::File { source } => source.to_owned(),
        catalog::Weights::BuiltIn => "built in".to_owned(),
        catalog::Weights::None => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_paper_has_a_network() {
        let (columns, rows) = rows(None).unwrap();
        assert_eq!(rows.len(), 40);
        assert!(summary(&rows).starts_with("40 of 40 rows have a network here"));
        let mut used = std::collections::BTreeSet::new();
        for row in &rows {
            assert_eq!(row.len(), columns.len());
            assert!(catalog::find(&row[2]).is_ok(), "{row:?}");
            assert!(used.insert(row[2].clone()), "{row:?} stands for two");
        }
        // And every network that says it stands for a row is with one.
        for spec in catalog::all().iter().filter(|spec| spec.paper.is_some()) {
            let with = |row: &&Vec<String>| {
                row[2] == spec.name || row[7].split(", ").any(|name| name == spec.name)
            };
            assert_eq!(rows.iter().filter(with).count(), 1, "{}", spec.name);
        }
    }

    /// Prunable weights are parameters without norms, biases and embeddings. The publisher counts one network's, and a wrong
    /// size would be off by more.
    #[test]
    fn our_weights_are_the_published_parameters_but_for_what_is_not_pruned() {
        let mut compared = 0;
        for row in published().unwrap().networks {
            let Some(millions) = row.parameters else {
                continue;
            };
            let ours = stand_ins(&row)[0].counts().weights as f64 / 1e6;
            let share = ours / millions;
            assert!((0.98..1.0).contains(&share), "{}: {share}", row.name);
            compared += 1;
        }
        assert_eq!(compared, 32);
    }

    #[test]
    fn a_family_is_named_as_in_the_catalog() {
        let names: Vec<String> = rows(Some("unet"))
            .unwrap()
            .1
            .into_iter()
            .map(|row| row[0].clone())
            .collect();
        assert_eq!(names, ["Stable Diffusion V2"]);
        assert_eq!(rows(Some("ResNet")).unwrap().1.len(), 7);
    }
}

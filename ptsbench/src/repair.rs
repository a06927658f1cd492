//! What repairs a pruned network without training a weight (section 3.6 of the specification).

use model_zoo::misspelt::{did_you_mean, nearest};

use crate::cell::Part;
use crate::options::{self, BadOptions, Chosen};
use crate::plan::PartFacts;

/// What a repair does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Statistics of batch norms are measured again.
    BatchNorms,
}

/// A repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repair {
    /// Its name in plans and records.
    pub name: &'static str,
    /// Measurement version: raised whenever its numbers may change.
    pub version: u32,
    /// One line for `ptsbench list`.
    pub about: &'static str,
    /// What it does.
    pub kind: Kind,
}

/// Every repair.
pub const REPAIRS: &[Repair] = &[Repair {
    name: "bn_re_estimation",
    version: 1,
    about: "batch norms' statistics measured again on calibration images",
    kind: Kind::BatchNorms,
}];

/// No repair has this name.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("no repair is called `{name}`{} (`ptsbench list repairs` shows all)", did_you_mean(.nearest))]
pub struct UnknownRepair {
    /// The name asked for.
    pub name: String,
    /// The nearest names, best first.
    pub nearest: Vec<&'static str>,
}

/// The repair of this name.
pub fn find(name: &str) -> Result<&'static Repair, UnknownRepair> {
    REPAIRS
        .iter()
        .find(|repair| repair.name == name)
        .ok_or_else(|| UnknownRepair {
            name: name.to_owned(),
            nearest: nearest(name, REPAIRS.iter().map(|repair| repair.name)),
        })
}

/// No such repair, or not with these options.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RepairError {
    /// Its name.
    #[error(transparent)]
    Unknown(#[from] UnknownRepair),
    /// Its options.
    #[error(transparent)]
    Options(#[from] BadOptions),
}

/// The repair of this name as a cell names it.
pub fn facts(chosen: &Chosen) -> Result<PartFacts, RepairError> {
    let repair = find(&chosen.name)?;
    options::none(repair.name, &chosen.options)?;
    Ok(PartFacts {
        part: Part::plain(repair.name, repair.version),
        images: true,
        ..PartFacts::default()
    })
}

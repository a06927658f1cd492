//! One file per command: what it prints and in which order; the work is done by the library.

pub mod compare;
pub mod completions;
pub mod data;
pub mod doctor;
pub mod evaluate;
pub mod export;
pub mod fetch;
pub mod fid;
pub mod figures;
pub mod generate;
pub mod infer;
pub mod inspect;
pub mod latency;
pub mod list;
pub mod micro_zoo;
pub mod pack;
pub mod plan;
pub mod report;
pub mod run;
mod target;

use crate::cell::Key;
use crate::note;
use crate::store::Contents;

/// Says of the records that could not be read, those of the cells asked about, what is wrong and what to do.
fn tell_broken(contents: &Contents, asked: impl Fn(&Key) -> bool) {
    let broken = contents.broken.iter().filter(|(key, _)| asked(key));
    for error in broken.map(|(_, error)| error).chain(&contents.unlisted) {
        note!("{error}");
    }
}

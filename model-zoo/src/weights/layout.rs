//! A checkpoint in whichever layout it was written: recognised by its keys, and read under the network's own.
//!
//! timm and torchvision name the layers of most families differently and agree on the numbers. Where one writes a linear
//! layer and the other a convolution over the same values, shapes differ too, but not the order of the values.

use std::collections::HashMap;

use burn::module::Module;

use super::error::WeightError;
use super::source::{Source, Walk, load};
use crate::unit::{Layout, Network};

/// Fills a network from a source in its own layout or in another one of its family's, as [`load`] does it.
pub fn load_network<N: Network>(network: N, source: &dyn Source) -> Result<N, WeightError> {
    // Keys depend on the network's shape alone, but loading consumes it; running statistics that the two share are of no
    // interest to the one that only names keys.
    let names = network.clone();
    match recognise(&names, source) {
        None => load(network, |path| names.key(path), source),
        Some(layout) => {
            let key_of = |path: &str| {
                names
                    .key_in(layout, path)
                    .unwrap_or_else(|| names.key(path))
            };
            let wanted = slots(&names)
                .into_iter()
                .map(|(path, shape)| (key_of(&path), shape));
            let source = Reshaped {
                source,
                wanted: wanted.collect(),
            };
            load(network.meant_by(layout), key_of, &source)
        }
    }
}

/// Where a source keeps each of a network's parameters.
#[derive(Debug, Clone)]
pub struct Slot {
    /// The parameter's path in the module.
    pub path: String,
    /// Its key in the network's own layout.
    pub key: String,
    /// Its key in the source.
    pub source: String,
    /// Its shape in the network's own layout.
    pub shape: Vec<usize>,
}

/// A network's parameters, in the module's order, with their keys in a source.
pub fn parameters<N: Network>(network: &N, source: &dyn Source) -> Vec<Slot> {
    let layout = recognise(network, source);
    let slot = |(path, shape): (String, Vec<usize>)| {
        let key = network.key(&path);
        let other = layout.and_then(|layout| network.key_in(layout, &path));
        Slot {
            source: other.unwrap_or_else(|| key.clone()),
            path,
            key,
            shape,
        }
    };
    slots(network).into_iter().map(slot).collect()
}

/// The layout of a source, where it is another than the network's own.
///
/// The layout that has the most of the network's keys, so that what is missing is named as the file would name it.
pub fn recognise<N: Network>(network: &N, source: &dyn Source) -> Option<Layout> {
    let slots = slots(network);
    let found = |key: &dyn Fn(&str) -> Option<String>| {
        let present = |path: &str| key(path).is_some_and(|key| source.shape(&key).is_some());
        slots.iter().filter(|(path, _)| present(path)).count()
    };
    let own = found(&|path| Some(network.key(path)));
    let others = Layout::ALL.map(|layout| (layout, found(&|path| network.key_in(layout, path))));
    others
        .into_iter()
        .filter(|(_, count)| *count > own)
        .max_by_key(|(_, count)| *count)
        .map(|(layout, _)| layout)
}

/// The paths and shapes of a module's parameters, as checkpoints lay them out.
fn slots<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    let own = |path: &str| path.to_owned();
    let mut walk = Walk::new(&own);
    module.visit(&mut walk);
    walk.slots
        .into_iter()
        .map(|slot| (slot.key, slot.shape))
        .collect()
}

/// A source whose tensors take the wanted shapes where that moves no value.
struct Reshaped<'a> {
    source: &'a dyn Source,
    wanted: HashMap<String, Vec<usize>>,
}

impl Source for Reshaped<'_> {
    fn origin(&self) -> String {
        self.source.origin()
    }

    fn keys(&self) -> Vec<String> {
        self.source.keys()
    }

    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        let found = self.source.shape(key)?;
        let same = |wanted: &&Vec<usize>| {
            wanted.first() == found.first()
                && wanted.iter().product::<usize>() == found.iter().product::<usize>()
        };
        Some(self.wanted.get(key).filter(same).cloned().unwrap_or(found))
    }

    fn read(&self, key: &str) -> Result<Vec<f32>, WeightError> {
        self.source.read(key)
    }
}

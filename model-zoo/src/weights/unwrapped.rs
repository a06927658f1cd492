//! Checkpoints of wrapped models: `DataParallel` puts `module.` before every key and `torch.compile` `_orig_mod.`, one
//! around the other in any order. The network inside is the same.

use super::dtype::Dtype;
use super::error::WeightError;
use super::source::Source;

/// The wrappers that hold a network and nothing else.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// A source without the prefix that all of its keys have.
pub(super) struct Unwrapped {
    source: Box<dyn Source>,
    prefix: String,
}

impl Unwrapped {
    /// The source as it is, or without the wrappers around it.
    pub(super) fn of(source: Box<dyn Source>) -> Box<dyn Source> {
        let prefix = prefix(&source.keys());
        if prefix.is_empty() {
            return source;
        }
        Box::new(Self { source, prefix })
    }

    fn stored(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// The wrappers' prefixes that all keys begin with.
fn prefix(keys: &[String]) -> String {
    let mut prefix = String::new();
    let Some(first) = keys.first() else {
        return prefix;
    };
    while let Some(next) = WRAPPERS
        .iter()
        .find(|wrapper| first[prefix.len()..].starts_with(**wrapper))
    {
        let longer = format!("{prefix}{next}");
        // A key must be left: a network may call a layer of its own `module`.
        if !keys
            .iter()
            .all(|key| key.len() > longer.len() && key.starts_with(&longer))
        {
            break;
        }
        prefix = longer;
    }
    prefix
}

impl Source for Unwrapped {
    fn origin(&self) -> String {
        self.source.origin()
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn keys(&self) -> Vec<String> {
        let keys = self.source.keys().into_iter();
        keys.map(|key| key[self.prefix.len()..].to_owned())
            .collect()
    }

    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        self.source.shape(&self.stored(key))
    }

    fn dtype(&self, key: &str) -> Option<Dtype> {
        self.source.dtype(&self.stored(key))
    }

    fn raw(&self, key: &str) -> Result<Vec<u8>, WeightError> {
        self.source.raw(&self.stored(key))
    }

    fn read(&self, key: &str) -> Result<Vec<f32>, WeightError> {
        self.source.read(&self.stored(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_one_that_all_keys_have() {
        let of = |keys: &[&str]| {
            let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            prefix(&keys)
        };
        assert_eq!(of(&[]), "");
        assert_eq!(of(&["fc.weight"]), "");
        assert_eq!(of(&["module.fc.weight", "module.fc.bias"]), "module.");
        assert_eq!(of(&["module.fc.weight", "fc.bias"]), "");
        assert_eq!(
            of(&["_orig_mod.module.fc.weight", "_orig_mod.module.fc.bias"]),
            "_orig_mod.module."
        );
        assert_eq!(
            of(&["module.module.weight", "module.fc.bias"]),
            "module.",
            "a layer that is called so"
        );
        assert_eq!(of(&["module."]), "", "nothing would be left");
    }
}

//! Which layers an N:M pattern fits, and what becomes of the others: they stay dense, and every command says so.

use std::fmt;

use indexmap::IndexMap;
use kernels::nm_applies;

use crate::cell::Pattern;
use crate::inventory::Layer;
use crate::record::LayerOutcome;

/// A layer by its name and the shape of its weight.
pub trait Shaped {
    /// The checkpoint's name.
    fn path(&self) -> &str;
    /// OIHW or [out, in].
    fn shape(&self) -> &[usize];
}

impl Shaped for Layer {
    fn path(&self) -> &str {
        &self.path
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

impl Shaped for LayerOutcome {
    fn path(&self) -> &str {
        &self.path
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// Why a layer stays dense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Misfit {
    channels: usize,
    what: &'static str,
    m: usize,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Misfit { channels, what, m } = self;
        // A depthwise convolution has 1.
        let (noun, are) = match channels {
            1 => (what.strip_suffix('s').unwrap_or(what), "is"),
            _ => (*what, "are"),
        };
        let per_group = match *what {
            "input channels" => " per group",
            _ => "",
        };
        write!(f, "{channels} {noun}{per_group} {are} not divisible by {m}")
    }
}

/// The zeros that a pattern makes in a layer of this shape, or why it makes none. A rate says nothing of a layer.
pub fn zeros(shape: &[usize], pattern: Pattern) -> Result<usize, Misfit> {
    let (n, m, transposable) = match pattern {
        Pattern::Unstructured { .. } => return Ok(0),
        Pattern::NofM { n, m } => (n, m, false),
        Pattern::TransposableNofM { n, m } => (n, m, true),
    };
    let [outputs, inputs] = [0, 1].map(|axis| shape.get(axis).copied().unwrap_or(0));
    let convolution = shape.len() > 2;
    if !nm_applies(shape, m) {
        return Err(Misfit {
            channels: inputs,
            what: if convolution {
                "input channels"
            } else {
                "inputs"
            },
            m,
        });
    }
    if transposable && outputs % m != 0 {
        return Err(Misfit {
            channels: outputs,
            what: if convolution {
                "output channels"
            } else {
                "outputs"
            },
            m,
        });
    }
    Ok(shape.iter().product::<usize>() / m * (m - n))
}

/// The layers that a pattern leaves dense.
#[derive(Debug, Clone, PartialEq)]
pub struct LeftDense {
    pattern: Pattern,
    layers: usize,
    /// The names, by reason.
    reasons: IndexMap<Misfit, Vec<String>>,
}

/// The layers that `pattern` leaves dense; of a rate there are none.
pub fn left_dense<L: Shaped>(layers: &[L], pattern: Pattern) -> LeftDense {
    let mut reasons: IndexMap<Misfit, Vec<String>> = IndexMap::new();
    for layer in layers {
        if let Err(misfit) = zeros(layer.shape(), pattern) {
            let names = reasons.entry(misfit).or_default();
            names.push(layer.path().to_owned());
        }
    }
    LeftDense {
        pattern,
        layers: layers.len(),
        reasons,
    }
}

impl LeftDense {
    /// How many.
    pub fn count(&self) -> usize {
        self.reasons.values().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Each with the reason.
    pub fn each(&self) -> impl Iterator<Item = (&str, Misfit)> {
        self.reasons
            .iter()
            .flat_map(|(misfit, names)| names.iter().map(|name| (name.as_str(), *misfit)))
    }

    /// How many of how many, in a few words.
    pub fn summary(&self) -> String {
        let (count, layers) = (self.count(), self.layers);
        let stay = if count == 1 { "stays" } else { "stay" };
        format!(
            "{count} of {layers} layers {stay} dense at {}",
            self.pattern
        )
    }
}

/// How many, and a line per reason.
impl fmt::Display for LeftDense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.summary())?;
        for (misfit, names) in &self.reasons {
            write!(f, "\n  {misfit}: {}", names.join(", "))?;
        }
        Ok(())
    }
}

/// A pattern that prunes nothing of a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pattern {pattern} fits none of its {layers} layers, whose {channels} are not divisible by {m}; {instead}"
)]
pub struct FitsNothing {
    /// The pattern.
    pub pattern: String,
    /// Layers of the network.
    pub layers: usize,
    /// What does not fit, with the numbers.
    pub channels: String,
    /// The group.
    pub m: usize,
    /// What would fit.
    pub instead: String,
}

/// What is offered in place of a pattern that fits nothing.
const OTHERS: [Pattern; 4] = [
    Pattern::NofM { n: 1, m: 2 },
    Pattern::NofM { n: 2, m: 4 },
    Pattern::NofM { n: 4, m: 8 },
    Pattern::NofM { n: 8, m: 16 },
];

/// Refuses a pattern that fits no layer.
pub fn check<L: Shaped>(layers: &[L], pattern: Pattern) -> Result<(), FitsNothing> {
    let left = left_dense(layers, pattern);
    let Some(m) = left.reasons.keys().map(|misfit| misfit.m).next() else {
        return Ok(());
    };
    if left.count() < layers.len() {
        return Ok(());
    }
    let numbers = |kind: &str| {
        let of_kind = |misfit: &&Misfit| misfit.what.starts_with(kind);
        let found = left.reasons.keys().filter(of_kind);
        let mut found: Vec<usize> = found.map(|misfit| misfit.channels).collect();
        found.sort_unstable();
        found.dedup();
        let found: Vec<String> = found.iter().map(usize::to_string).collect();
        (!found.is_empty()).then(|| format!("{kind}s ({})", found.join(", ")))
    };
    let channels: Vec<String> = ["input", "output"]
        .into_iter()
        .filter_map(numbers)
        .collect();
    let fitting = |other: &Pattern| {
        let fits = layers.len() - left_dense(layers, *other).count();
        (fits > 0 && *other != pattern).then(|| format!("{other} fits {fits} of them"))
    };
    let offers: Vec<String> = OTHERS.iter().filter_map(fitting).collect();
    Err(FitsNothing {
        pattern: pattern.to_string(),
        layers: layers.len(),
        channels: channels.join(" or "),
        m,
        instead: if offers.is_empty() {
            "no pattern fits: give a rate".to_owned()
        } else {
            format!("{}; or give a rate", offers.join(", "))
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::tests::layer;

    fn layers() -> Vec<Layer> {
        vec![
            layer("stem", &[16, 3, 3, 3]),
            layer("dw", &[16, 1, 3, 3]),
            layer("conv", &[18, 16, 3, 3]),
            layer("fc", &[10, 18]),
        ]
    }

    #[test]
    fn layers_left_dense_are_named_with_the_reason() {
        let left = left_dense(&layers(), Pattern::NofM { n: 2, m: 4 });
        assert_eq!(
            left.to_string(),
            "3 of 4 layers stay dense at 2:4:\n  \
             3 input channels per group are not divisible by 4: stem\n  \
             1 input channel per group is not divisible by 4: dw\n  \
             18 inputs are not divisible by 4: fc"
        );
        let left = left_dense(&layers(), Pattern::TransposableNofM { n: 2, m: 4 });
        let conv = left.each().find(|(path, _)| *path == "conv").unwrap().1;
        assert_eq!(
            conv.to_string(),
            "18 output channels are not divisible by 4"
        );
        assert!(left_dense(&layers(), Pattern::Unstructured { rate: 0.5 }).is_empty());
    }

    #[test]
    fn a_pattern_that_fits_nothing_is_refused_with_what_would_fit() {
        let fits = |pattern: &str| check(&layers(), pattern.parse().unwrap());
        assert_eq!(fits("2:4"), Ok(()));
        assert_eq!(fits("1:3"), Ok(()));
        assert_eq!(
            fits("2:5").unwrap_err().to_string(),
            "the pattern 2:5 fits none of its 4 layers, whose inputs (1, 3, 16, 18) are not divisible by 5; \
             1:2 fits 2 of them, 2:4 fits 1 of them, 4:8 fits 1 of them, 8:16 fits 1 of them; or give a rate"
        );
        assert_eq!(
            fits("t2:4").unwrap_err().to_string(),
            "the pattern t2:4 fits none of its 4 layers, whose inputs (1, 3, 18) or outputs (18) are not divisible by 4; \
             1:2 fits 2 of them, 2:4 fits 1 of them, 4:8 fits 1 of them, 8:16 fits 1 of them; or give a rate"
        );
        let odd = [layer("a", &[5, 3])];
        let error = check(&odd, Pattern::NofM { n: 2, m: 4 }).unwrap_err();
        assert_eq!(error.instead, "no pattern fits: give a rate");
        assert_eq!(check(&odd, Pattern::Unstructured { rate: 0.5 }), Ok(()));
    }
}

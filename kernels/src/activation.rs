//! The activations that convolutional networks put behind a norm.

/// A function of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// max(x, 0).
    Relu,
    /// min(max(x, 0), 6).
    Relu6,
    /// min(max(x + 3, 0), 6) / 6.
    HardSigmoid,
    /// x times its hard sigmoid.
    HardSwish,
}

impl Activation {
    /// Every one.
    pub const ALL: [Self; 5] = [
        Self::Identity,
        Self::Relu,
        Self::Relu6,
        Self::HardSigmoid,
        Self::HardSwish,
    ];

    /// Whether its gradient needs what went in; the others make do with what came out, which the next layer keeps anyway.
    pub fn keeps_input(self) -> bool {
        self == Self::HardSwish
    }
}

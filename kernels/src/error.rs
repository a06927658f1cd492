//! What can go wrong in this crate, with the numbers requested and available.

/// An argument that a format or a selection cannot accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A score has no place in an order: it is NaN.
    #[error("score {index} of layer {layer} is NaN; remove NaN weights before selecting")]
    NonFiniteScore {
        /// Position of the layer in the call; 0 where there is only one.
        layer: usize,
        /// Flat row-major index in the layer.
        index: usize,
    },
    /// More elements were to be selected than there are.
    #[error("{requested} of {available} scores were to be pruned; ask for at most {available}")]
    TooMany {
        /// Requested number.
        requested: u64,
        /// Scores at hand.
        available: u64,
    },
    /// A slice's length disagrees with the shape.
    #[error(
        "{what} has {found} elements, its shape needs {expected}; pass the slice that belongs to the shape"
    )]
    Length {
        /// Which slice.
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements passed.
        found: usize,
    },
    /// A tail bit beyond the last column is set.
    #[error(
        "row {row} of a {cols}-column bit mask has bits beyond its last column; clear the tail bits"
    )]
    TailBits {
        /// Row of the bad word.
        row: usize,
        /// Columns of the mask.
        cols: usize,
    },
    /// A weight shape that has no input-channel axis.
    #[error("shape {shape:?} has no input channels; N:M needs [out, in] or [out, in, ky, kx]")]
    Shape {
        /// The shape.
        shape: Vec<usize>,
    },
    /// A device that does not do its part.
    #[error("the GPU cannot do it: {why}")]
    Device {
        /// What it said, or why it was not asked.
        why: String,
    },
    /// Not 1 <= N < M <= 32.
    #[error("{n}:{m} is not a pattern; N:M needs 1 <= N < M <= 32")]
    Pattern {
        /// Kept.
        n: usize,
        /// Group.
        m: usize,
    },
    /// A tensor that does not go with the others.
    #[error("{what}: expected {expected:?}, found {found:?}; pass tensors of one layer")]
    Operand {
        /// Which.
        what: &'static str,
        /// Sizes that the other tensors ask for.
        expected: Vec<usize>,
        /// Its sizes.
        found: Vec<usize>,
    },
    /// A convolution that cannot be.
    #[error("{why}; found {shape:?}")]
    Geometry {
        /// The shape.
        shape: Box<crate::ConvShape>,
        /// What is wrong with it.
        why: String,
    },
    /// A packed weight or mask that breaks its format's rules, or bytes that hold none.
    #[error("not a valid {format}: {why}; build it from the weight again")]
    Format {
        /// Which format.
        format: &'static str,
        /// The broken rule, with its numbers.
        why: String,
    },
    /// A threshold no magnitude can be held against.
    #[error("threshold {index} is NaN or negative; thresholds of magnitudes are at least 0")]
    Threshold {
        /// Its position.
        index: usize,
    },
    /// Transposable masks exist here for 2:4 alone.
    #[error("a transposable {n}:{m} mask is not available; use 2:4")]
    Transposable {
        /// Kept.
        n: usize,
        /// Tile.
        m: usize,
    },
    /// Arithmetic that this machine does not have.
    #[error("{precision} products are not available: {why}; use f32")]
    Precision {
        /// What was asked for.
        precision: crate::Precision,
        /// What is missing.
        why: String,
    },
    /// A name of no arithmetic.
    #[error("`{found}` is not a precision; use f32, bf16x3 or bf16")]
    UnknownPrecision {
        /// The name.
        found: String,
    },
    /// A name that is no instruction set and no path.
    #[error(
        "PTSBENCH_KERNELS_FORCE has {name:?}; use avx512, avx2 or portable, and dense, csr, nm or sampled, separated by commas"
    )]
    Force {
        /// The name.
        name: String,
    },
    /// A GPU kernel that this device or this product cannot have.
    #[error("the {route} does not apply: {why}; take another path")]
    Route {
        /// The kernel.
        route: &'static str,
        /// What is in the way.
        why: String,
    },
    /// A device buffer too short for its operand.
    #[error("the buffer of {what} has {found} bytes, its shape needs {needed}")]
    Buffer {
        /// Which operand.
        what: &'static str,
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        found: u64,
    },
    /// An instruction set that this processor does not have.
    #[error(
        "PTSBENCH_KERNELS_FORCE asks for {name}, which this processor does not have; name another set or unset it"
    )]
    ForceMissing {
        /// The instruction set.
        name: &'static str,
    },
}

/// Refuses a slice whose length is not its shape's.
pub(crate) fn expect_len(
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), KernelError> {
    if expected == found {
        Ok(())
    } else {
        Err(KernelError::Length {
            what,
            expected,
            found,
        })
    }
}

//! Which path a product takes and why (section 5.4 of the kernels' specification).
//!
//! The rules look at shape, density and instruction set alone. They never time anything: a path's rounding is its own, and
//! results must not depend on how busy a machine was.

use crate::cpu::Isa;
use crate::{ConvShape, KernelError, Precision};

/// One of the three products of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The output.
    Forward,
    /// The gradient of the input.
    InputGrad,
    /// The gradient of the weight, zero outside the mask.
    WeightGrad,
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Every weight, masked while it is packed.
    Dense,
    /// Kept weights alone.
    Csr,
    /// Kept weights alone, which come in N:M groups.
    Nm,
    /// The gradient of kept weights alone.
    SampledGrad,
}

impl Path {
    /// Every path.
    pub const ALL: [Self; 4] = [Self::Dense, Self::Csr, Self::Nm, Self::SampledGrad];

    /// As `PTSBENCH_KERNELS_FORCE` and reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Csr => "csr",
            Self::Nm => "nm",
            Self::SampledGrad => "sampled",
        }
    }
}

/// Who chooses the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathChoice {
    /// The rules.
    #[default]
    Auto,
    /// The caller; a path that a product does not have is not taken, and the plan says so.
    Force(Path),
}

/// What the rules may assume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelPolicy {
    /// Who chooses.
    pub path: PathChoice,
    /// Instruction set in use.
    pub isa: Isa,
    /// What factors are rounded to; kept weights alone are multiplied in f32 only.
    pub precision: Precision,
}

impl KernelPolicy {
    /// The rules on the instruction set in use.
    pub fn auto() -> Self {
        Self {
            path: PathChoice::Auto,
            isa: Isa::detect(),
            precision: Precision::F32,
        }
    }

    /// The same in another arithmetic.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// As [`KernelPolicy::auto`], or as `PTSBENCH_KERNELS_FORCE` has it: names of an instruction set, a path, or both with
    /// a comma between them.
    pub fn from_env() -> Result<Self, KernelError> {
        let forced = std::env::var("PTSBENCH_KERNELS_FORCE").unwrap_or_default();
        Ok(Self {
            path: forced_path(&forced)?,
            ..Self::auto()
        })
    }
}

fn forced_path(forced: &str) -> Result<PathChoice, KernelError> {
    let mut choice = PathChoice::Auto;
    for name in forced.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        if let Some(path) = Path::ALL.into_iter().find(|path| path.name() == name) {
            choice = PathChoice::Force(path);
        } else {
            let isa =
                Isa::from_name(name).ok_or_else(|| KernelError::Force { name: name.into() })?;
            if !Isa::available().contains(&isa) {
                return Err(KernelError::ForceMissing { name: isa.name() });
            }
        }
    }
    Ok(choice)
}

/// A product's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// A convolution.
    Conv(ConvShape),
    /// A linear layer.
    Linear {
        /// Rows of the activations.
        positions: usize,
        /// Output channels.
        rows: usize,
        /// Input channels.
        cols: usize,
    },
}

impl From<ConvShape> for Problem {
    fn from(shape: ConvShape) -> Self {
        Self::Conv(shape)
    }
}

impl Problem {
    /// Positions of the output, its channels, weights per channel.
    fn sizes(&self) -> [usize; 3] {
        match *self {
            Self::Conv(shape) => [
                shape.batch * shape.out_size().iter().product::<usize>(),
                shape.outputs,
                shape.weight_cols(),
            ],
            Self::Linear {
                positions,
                rows,
                cols,
            } => [positions, rows, cols],
        }
    }

    /// Floats of input, output and dense weight.
    fn floats(&self) -> [u64; 3] {
        let [positions, rows, cols] = self.sizes().map(|n| n as u64);
        match self {
            Self::Conv(shape) => [shape.input_len() as u64, positions * rows, rows * cols],
            Self::Linear { .. } => [positions * cols, positions * rows, rows * cols],
        }
    }
}

/// What is kept of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Kept weights.
    pub nnz: usize,
    /// N and M, where they are kept in groups.
    pub nm: Option<[usize; 2]>,
}

impl From<usize> for Kept {
    fn from(nnz: usize) -> Self {
        Self { nnz, nm: None }
    }
}

/// A chosen path.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The path.
    pub path: Path,
    /// The least time it can take on one core, in milliseconds: arithmetic or memory, whichever is longer.
    pub floor_ms: f64,
    /// Why this one.
    pub reason: String,
}

/// Multiply-adds per second of one core, by instruction set: 3.2 GHz, two units.
fn rate(isa: Isa) -> f64 {
    match isa {
        Isa::Avx512 => 102e9,
        Isa::Avx2 => 51e9,
        Isa::Portable => 12.8e9,
    }
}

/// Bytes per second that one core reads and writes.
const BANDWIDTH: f64 = 11e9;

/// Kept weights per row below which rows are too short to pay for themselves before much is pruned.
const SHORT: f64 = 16.0;

/// Kept weights per row from which on even half of the weights are worth leaving out.
const LONG: f64 = 64.0;

/// Inputs of a 1x1 convolution or outputs of a linear layer below which there is too little to leave out.
const NARROW: usize = 24;

/// The share of zeros from which on the sparse path is taken.
///
/// Forward shares were measured with AVX2 and AVX-512 on two threads of an AMD EPYC (Zen 5): 49 convolutions and 21 linear
/// layers of ResNet, MobileNet, ViT and the built-in networks, at batch 1 to 256. From these shares on, no product was slower
/// than dense. The dense path of AVX-512 does twice the work in the same time, and sums of kept weights wait for their loads
/// either way: hence the later start. Gradients were measured with AVX2 alone and get a margin elsewhere.
fn crossover(op: Op, problem: &Problem, isa: Isa, per_row: f64) -> f64 {
    let [_, _, cols] = problem.sizes();
    let unit_stride = matches!(problem, Problem::Conv(shape) if shape.stride == [1; 2]);
    let pointwise = matches!(problem, Problem::Conv(shape) if shape.is_pointwise());
    let linear = matches!(problem, Problem::Linear { .. });
    if (op, isa) == (Op::Forward, Isa::Avx512) {
        return match () {
            () if linear => 0.75,
            () if pointwise && cols < NARROW => 0.9,
            () if pointwise => 0.7,
            () => 0.65,
        };
    }
    let measured = match op {
        Op::Forward if pointwise => 0.7,
        // The dense path reads a 1x1 convolution where it lies and has no taps to win from a plane by.
        Op::InputGrad if pointwise => 0.8,
        Op::Forward | Op::InputGrad if per_row >= LONG && unit_stride => 0.5,
        Op::Forward | Op::InputGrad if per_row >= SHORT => 0.6,
        Op::Forward | Op::InputGrad => 0.7,
        Op::WeightGrad if per_row >= SHORT => 0.7,
        Op::WeightGrad => 0.9,
    };
    match isa {
        Isa::Avx2 => measured,
        Isa::Avx512 | Isa::Portable => f64::min(measured + 0.1, 0.95),
    }
}

/// The path of a product, and why. The convolution must be valid.
pub fn explain(op: Op, problem: &Problem, kept: Kept, policy: &KernelPolicy) -> Plan {
    let [positions, rows, cols] = problem.sizes();
    let weights = rows * cols;
    let zeros = 1.0 - kept.nnz as f64 / weights.max(1) as f64;
    let per_row = kept.nnz as f64 / rows.max(1) as f64;
    let sparse = match (op, kept.nm) {
        (Op::WeightGrad, _) => Path::SampledGrad,
        (_, Some(_)) => Path::Nm,
        (_, None) => Path::Csr,
    };
    let (path, reason) = match policy.path {
        _ if policy.precision != Precision::F32 => (
            Path::Dense,
            format!("{} has no sparse path", policy.precision),
        ),
        PathChoice::Force(Path::Dense) => (Path::Dense, "forced".into()),
        PathChoice::Force(path) if path == sparse => (path, "forced".into()),
        PathChoice::Force(path) => (
            Path::Dense,
            format!(
                "{} was asked for, which this product does not have",
                path.name()
            ),
        ),
        PathChoice::Auto => rule(op, problem, sparse, zeros, per_row, policy.isa),
    };
    let [input, output, dense] = problem.floats();
    let (macs, weight) = if path == Path::Dense {
        (positions as f64 * weights as f64, dense as f64)
    } else {
        // A value and an index each.
        (positions as f64 * kept.nnz as f64, 2.0 * kept.nnz as f64)
    };
    let bytes = 4.0 * (input as f64 + output as f64 + weight);
    Plan {
        path,
        floor_ms: 1e3 * (macs / rate(policy.isa)).max(bytes / BANDWIDTH),
        reason,
    }
}

fn rule(
    op: Op,
    problem: &Problem,
    sparse: Path,
    zeros: f64,
    per_row: f64,
    isa: Isa,
) -> (Path, String) {
    let percent = 100.0 * zeros;
    match problem {
        Problem::Conv(shape) if shape.is_depthwise() => {
            let why = "depthwise: a row has one channel, and all its taps fit in registers";
            return (Path::Dense, why.into());
        }
        Problem::Linear { .. } if op != Op::Forward => {
            return (Path::Dense, "linear gradients have no sparse path".into());
        }
        Problem::Linear { rows, .. } if *rows < NARROW => {
            let why = format!("{rows} outputs: too few to be worth a turned copy of the input");
            return (Path::Dense, why);
        }
        _ => {}
    }
    let from = match problem {
        Problem::Linear { positions, .. } if *positions < FEW_POSITIONS => FEW,
        _ => crossover(op, problem, isa, per_row),
    };
    let facts = format!(
        "{percent:.0} % zeros, {per_row:.0} kept a row; the sparse path pays from {:.0} % on {}",
        100.0 * from,
        isa.name()
    );
    if zeros >= from {
        (sparse, facts)
    } else {
        (Path::Dense, facts)
    }
}

/// Positions of a linear layer below which panels are partly empty.
const FEW_POSITIONS: usize = 32;

/// The share of zeros from which on a partly empty panel still takes less time than reading the dense weight.
const FEW: f64 = 0.8;

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(path: PathChoice) -> KernelPolicy {
        KernelPolicy {
            path,
            isa: Isa::Avx2,
            precision: Precision::F32,
        }
    }

    #[test]
    fn the_rules_follow_density_and_rows() {
        let shape = ConvShape::new(8, [128, 64], [28, 28], [3; 2]).with_padding([1; 2]);
        let problem = Problem::from(shape);
        let path = |op, zeros: f64, nm| {
            let nnz = (shape.weight_len() as f64 * (1.0 - zeros)) as usize;
            let plan = explain(op, &problem, Kept { nnz, nm }, &policy(PathChoice::Auto));
            assert!(plan.floor_ms > 0.0 && !plan.reason.is_empty());
            plan.path
        };
        assert_eq!(path(Op::Forward, 0.45, None), Path::Dense);
        assert_eq!(path(Op::Forward, 0.5, Some([2, 4])), Path::Nm);
        assert_eq!(path(Op::Forward, 0.65, None), Path::Csr);
        assert_eq!(path(Op::Forward, 0.75, Some([1, 4])), Path::Nm);
        assert_eq!(path(Op::InputGrad, 0.65, None), Path::Csr);
        assert_eq!(path(Op::WeightGrad, 0.65, None), Path::Dense);
        assert_eq!(path(Op::WeightGrad, 0.75, None), Path::SampledGrad);

        let thin = ConvShape::new(1, [16, 96], [56, 56], [1; 2]);
        let auto = policy(PathChoice::Auto);
        let kept = thin.weight_len() * 2 / 5;
        let plan = explain(Op::Forward, &thin.into(), kept.into(), &auto);
        assert_eq!(plan.path, Path::Dense, "{}", plan.reason);
        let strided = shape.with_stride([2; 2]);
        let kept = strided.weight_len() / 2;
        let plan = explain(Op::Forward, &strided.into(), kept.into(), &auto);
        assert_eq!(plan.path, Path::Dense, "{}", plan.reason);
        let few = Problem::Linear {
            positions: 8,
            rows: 1000,
            cols: 2048,
        };
        let path = |op, nnz: usize| explain(op, &few, nnz.into(), &auto).path;
        assert_eq!(path(Op::Forward, 2_048_000 * 3 / 10), Path::Dense);
        assert_eq!(path(Op::Forward, 2_048_000 / 10), Path::Csr);
        assert_eq!(path(Op::InputGrad, 2_048_000 / 10), Path::Dense);
        let depthwise = ConvShape::new(1, [16, 16], [9, 9], [3; 2]).with_groups(16);
        let plan = explain(Op::Forward, &depthwise.into(), 1.into(), &auto);
        assert_eq!(plan.path, Path::Dense, "{}", plan.reason);
    }

    #[test]
    fn a_forced_path_is_taken_where_it_exists() {
        let problem = Problem::from(ConvShape::new(1, [8, 8], [9, 9], [3; 2]));
        let explain =
            |op, path| explain(op, &problem, 576.into(), &policy(PathChoice::Force(path)));
        assert_eq!(explain(Op::Forward, Path::Csr).path, Path::Csr);
        let plan = explain(Op::Forward, Path::SampledGrad);
        assert_eq!(plan.path, Path::Dense);
        assert!(plan.reason.contains("sampled"), "{}", plan.reason);

        let rounded = policy(PathChoice::Force(Path::Csr)).with_precision(Precision::Bf16);
        let plan = super::explain(Op::Forward, &problem, 576.into(), &rounded);
        assert_eq!(plan.path, Path::Dense);
        assert_eq!(plan.reason, "bf16 has no sparse path");

        assert_eq!(forced_path(""), Ok(PathChoice::Auto));
        assert_eq!(forced_path("portable"), Ok(PathChoice::Auto));
        let csr = Ok(PathChoice::Force(Path::Csr));
        assert_eq!(forced_path("avx2, csr"), csr);
        assert!(forced_path("cuda").is_err());
    }
}

//! The shape file: which products are timed, at which sizes. Read by the peers' script too, so it is plain data.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The shapes that ship with the program.
pub const DEFAULT: &str = include_str!("../shapes.toml");

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapeFile {
    version: u32,
    #[serde(default)]
    conv: Vec<Conv>,
    #[serde(default)]
    linear: Vec<Linear>,
    #[serde(default)]
    matmul: Vec<Matmul>,
    #[serde(default)]
    softmax: Vec<Rows>,
    #[serde(default)]
    layer_norm: Vec<Rows>,
    #[serde(default)]
    select: Vec<Select>,
    #[serde(default)]
    nm: Vec<Nm>,
    #[serde(default)]
    block: Vec<Block>,
}

/// A 2-d convolution.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv {
    name: String,
    batch: Vec<usize>,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Input height and width.
    pub size: usize,
    /// Kernel height and width.
    pub kernel: usize,
    /// Along both axes.
    #[serde(default = "one")]
    pub stride: usize,
    /// Zeros on every side.
    #[serde(default)]
    pub padding: usize,
    /// Groups.
    #[serde(default = "one")]
    pub groups: usize,
    sets: BTreeSet<String>,
}

/// A linear layer over `batch * tokens` rows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    name: String,
    batch: Vec<usize>,
    /// Rows per batch element.
    #[serde(default = "one")]
    pub tokens: usize,
    /// Input width.
    pub inputs: usize,
    /// Output width.
    pub outputs: usize,
    sets: BTreeSet<String>,
}

/// `count` products `[m, k] x [k, n]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matmul {
    name: String,
    /// How many.
    pub count: usize,
    /// Rows of the left matrix.
    pub m: usize,
    /// Columns of the left matrix.
    pub k: usize,
    /// Columns of the right matrix.
    pub n: usize,
    sets: BTreeSet<String>,
}

/// An operation over rows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    name: String,
    /// How many.
    pub rows: usize,
    /// Their length.
    pub width: usize,
    sets: BTreeSet<String>,
}

/// Choosing the smallest scores.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    name: String,
    /// How many scores.
    pub count: usize,
    /// The part that goes.
    pub share: f64,
    sets: BTreeSet<String>,
}

/// An `n`:`m` mask.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nm {
    name: String,
    /// Rows of the score matrix.
    pub rows: usize,
    /// Its columns, along which groups run.
    pub cols: usize,
    /// Kept in each group.
    pub n: usize,
    /// Group length.
    pub m: usize,
    sets: BTreeSet<String>,
}

/// Plain layers in order; either an image `[channels, size, size]` or `[tokens, width]` goes in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    name: String,
    batch: Vec<usize>,
    channels: Option<usize>,
    size: Option<usize>,
    tokens: Option<usize>,
    width: Option<usize>,
    /// The layers.
    pub steps: Vec<Step>,
    sets: BTreeSet<String>,
}

/// What a block takes, without the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Channels, and height = width.
    Image([usize; 2]),
    /// Tokens, and their width.
    Tokens([usize; 2]),
}

/// One layer of a block.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Keeps the value for the next `add`.
    Save,
    /// Adds the value kept last.
    Add,
    /// max(x, 0).
    Relu,
    /// Clamped to [0, 6].
    Relu6,
    /// Exact GELU.
    Gelu,
    /// x sigmoid(x).
    Silu,
    /// Over the last axis, with scale and shift.
    LayerNorm,
    /// Over channel groups, without scale and shift.
    GroupNorm {
        /// How many.
        groups: usize,
    },
    /// A convolution without bias.
    Conv {
        /// Output channels.
        outputs: usize,
        /// Kernel height and width.
        kernel: usize,
        /// Along both axes.
        #[serde(default = "one")]
        stride: usize,
        /// Zeros on every side.
        #[serde(default)]
        padding: usize,
        /// Groups.
        #[serde(default = "one")]
        groups: usize,
    },
    /// A linear layer without bias.
    Linear {
        /// Output width.
        outputs: usize,
    },
    /// Queries, keys and values side by side in the last axis.
    Attention {
        /// Heads.
        heads: usize,
    },
}

/// What is computed of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    /// The output.
    Forward,
    /// The weight's gradient alone.
    WeightGrad,
    /// Output, input gradient and weight gradients.
    Step,
}

impl Pass {
    /// As written in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::WeightGrad => "weight_grad",
            Self::Step => "step",
        }
    }
}

/// The product of a row.
#[derive(Debug, Clone)]
pub enum Op {
    /// See [`Conv`].
    Conv(Conv),
    /// See [`Linear`].
    Linear(Linear),
    /// See [`Matmul`].
    Matmul(Matmul),
    /// Softmax over rows.
    Softmax(Rows),
    /// Layer norm over rows.
    LayerNorm(Rows),
    /// See [`Select`].
    Select(Select),
    /// See [`Nm`].
    Nm(Nm),
    /// See [`Block`].
    Block(Block),
}

impl Op {
    /// As written in files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Conv(_) => "conv",
            Self::Linear(_) => "linear",
            Self::Matmul(_) => "matmul",
            Self::Softmax(_) => "softmax",
            Self::LayerNorm(_) => "layer_norm",
            Self::Select(_) => "select",
            Self::Nm(_) => "nm",
            Self::Block(_) => "block",
        }
    }
}

/// One product at one size: what a row of the result is about.
#[derive(Debug, Clone)]
pub struct Row {
    /// The product.
    pub op: Op,
    /// Its name in the shape file.
    pub shape: String,
    /// Batch, 1 where there is none.
    pub batch: usize,
    /// What is computed.
    pub pass: Pass,
    /// Where it belongs.
    pub sets: BTreeSet<String>,
}

impl Row {
    /// `op shape bN pass`: what `--filter` looks in.
    pub fn id(&self) -> String {
        format!(
            "{} {} b{} {}",
            self.op.name(),
            self.shape,
            self.batch,
            self.pass.name()
        )
    }

    /// Multiplications and additions of the dense product, 0 where the work is moving data.
    pub fn flops(&self) -> f64 {
        let forward = match &self.op {
            Op::Conv(c) => c.flops(self.batch),
            Op::Linear(l) => product(&[2, self.batch, l.tokens, l.inputs, l.outputs]),
            Op::Matmul(m) => product(&[2, m.count, m.m, m.k, m.n]),
            Op::Block(b) => b.flops(self.batch),
            Op::Softmax(_) | Op::LayerNorm(_) | Op::Select(_) | Op::Nm(_) => 0.0,
        };
        forward * if self.pass == Pass::Step { 3.0 } else { 1.0 }
    }

    /// Bytes of one input set: what is rotated so that a run does not find its input in the cache.
    pub fn input_bytes(&self) -> usize {
        4 * match &self.op {
            Op::Conv(c) => self.batch * c.inputs * c.size * c.size,
            Op::Linear(l) => self.batch * l.tokens * l.inputs,
            Op::Matmul(m) => m.count * m.k * (m.m + m.n),
            Op::Softmax(r) | Op::LayerNorm(r) => r.rows * r.width,
            Op::Select(s) => s.count,
            Op::Nm(n) => n.rows * n.cols,
            Op::Block(b) => match b.input() {
                Input::Image([channels, size]) => self.batch * channels * size * size,
                Input::Tokens([tokens, width]) => self.batch * tokens * width,
            },
        }
    }
}

impl Conv {
    /// Output height and width.
    pub fn output_size(&self) -> usize {
        (self.size + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Whether every channel has its own filter.
    pub fn depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.inputs
    }

    fn flops(&self, batch: usize) -> f64 {
        let taps = self.inputs / self.groups * self.kernel * self.kernel;
        let size = self.output_size();
        product(&[2, batch, size, size, self.outputs, taps])
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.kernel > 0 && self.stride > 0 && self.groups > 0,
            "{}: kernel, stride and groups must be at least 1",
            self.name
        );
        ensure!(
            self.inputs.is_multiple_of(self.groups) && self.outputs.is_multiple_of(self.groups),
            "{}: {} groups do not divide {} inputs and {} outputs",
            self.name,
            self.groups,
            self.inputs,
            self.outputs
        );
        ensure!(
            self.size + 2 * self.padding >= self.kernel,
            "{}: a kernel of {} does not fit into {} with padding {}",
            self.name,
            self.kernel,
            self.size,
            self.padding
        );
        Ok(())
    }
}

impl Block {
    /// What goes in; checked when the file was read.
    pub fn input(&self) -> Input {
        match (self.channels, self.size, self.tokens, self.width) {
            (Some(channels), Some(size), None, None) => Input::Image([channels, size]),
            (None, None, Some(tokens), Some(width)) => Input::Tokens([tokens, width]),
            _ => unreachable!("checked when the file was read"),
        }
    }

    /// The convolutions of the block, each with the size that reaches it; [`Step::Linear`] and attention likewise.
    fn flops(&self, batch: usize) -> f64 {
        let (mut state, mut sum) = (self.input(), 0.0);
        for step in &self.steps {
            let (next, flops) = step
                .follow(state, batch)
                .expect("checked when the file was read");
            state = next;
            sum += flops;
        }
        sum
    }

    fn check(&self) -> Result<()> {
        let image = self.channels.is_some() && self.size.is_some();
        let tokens = self.tokens.is_some() && self.width.is_some();
        let given = [self.channels, self.size, self.tokens, self.width];
        ensure!(
            image != tokens && given.iter().flatten().count() == 2,
            "{}: give either channels and size, or tokens and width",
            self.name
        );
        let (mut state, mut saved) = (self.input(), None);
        for (index, step) in self.steps.iter().enumerate() {
            match step {
                Step::Save => saved = Some(state),
                Step::Add => ensure!(
                    saved == Some(state),
                    "{}: step {index} adds {saved:?} to {state:?}",
                    self.name
                ),
                _ => {}
            }
            (state, _) = step
                .follow(state, 1)
                .with_context(|| format!("{}: step {index}", self.name))?;
        }
        Ok(())
    }
}

impl Step {
    /// The state after the step, and the step's dense operations for `batch`.
    fn follow(&self, state: Input, batch: usize) -> Result<(Input, f64)> {
        Ok(match (*self, state) {
            (
                Step::Conv {
                    outputs,
                    kernel,
                    stride,
                    padding,
                    groups,
                },
                Input::Image([inputs, size]),
            ) => {
                let conv = Conv {
                    name: "conv".into(),
                    batch: Vec::new(),
                    inputs,
                    outputs,
                    size,
                    kernel,
                    stride,
                    padding,
                    groups,
                    sets: BTreeSet::new(),
                };
                conv.check()?;
                (
                    Input::Image([outputs, conv.output_size()]),
                    conv.flops(batch),
                )
            }
            (Step::Linear { outputs }, Input::Tokens([tokens, width])) => (
                Input::Tokens([tokens, outputs]),
                product(&[2, batch, tokens, width, outputs]),
            ),
            (Step::Attention { heads }, Input::Tokens([tokens, width])) => {
                ensure!(
                    heads > 0 && width.is_multiple_of(3 * heads),
                    "attention of {heads} heads needs a width divisible by {}, found {width}",
                    3 * heads
                );
                // Scores and mix are both tokens x tokens x width / 3.
                (
                    Input::Tokens([tokens, width / 3]),
                    2.0 * product(&[2, batch, tokens, tokens, width / 3]),
                )
            }
            (Step::GroupNorm { groups }, Input::Image([channels, _])) => {
                ensure!(
                    groups > 0 && channels.is_multiple_of(groups),
                    "{groups} groups do not divide {channels} channels"
                );
                (state, 0.0)
            }
            (
                Step::Conv { .. }
                | Step::Linear { .. }
                | Step::Attention { .. }
                | Step::GroupNorm { .. },
                _,
            ) => anyhow::bail!("{self:?} cannot follow {state:?}"),
            _ => (state, 0.0),
        })
    }
}

impl ShapeFile {
    /// Reads and checks; an error names the entry.
    pub fn parse(text: &str) -> Result<Self> {
        let file: Self = toml::from_str(text)?;
        ensure!(
            file.version == 1,
            "version {} of the shape file is not known; this program reads version 1",
            file.version
        );
        file.conv.iter().try_for_each(Conv::check)?;
        file.block.iter().try_for_each(Block::check)?;
        for nm in &file.nm {
            ensure!(
                0 < nm.n && nm.n < nm.m && nm.m <= 32 && nm.cols.is_multiple_of(nm.m),
                "{}: {}:{} does not fit {} columns",
                nm.name,
                nm.n,
                nm.m,
                nm.cols
            );
        }
        for select in &file.select {
            ensure!(
                0.0 < select.share && select.share < 1.0 && select.count > 1,
                "{}: share must lie between 0 and 1, and count above 1",
                select.name
            );
        }
        let mut seen = BTreeSet::new();
        for row in file.rows() {
            ensure!(seen.insert(row.id()), "{} occurs twice", row.id());
        }
        Ok(file)
    }

    /// Every row, in the file's order within each kind.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut push = |op: Op, name: &str, sets: &BTreeSet<String>, batch, passes: &[Pass]| {
            rows.extend(passes.iter().map(|&pass| Row {
                op: op.clone(),
                shape: name.to_owned(),
                batch,
                pass,
                sets: sets.clone(),
            }));
        };
        for c in &self.conv {
            for &batch in &c.batch {
                let passes = [Pass::Forward, Pass::WeightGrad, Pass::Step];
                push(Op::Conv(c.clone()), &c.name, &c.sets, batch, &passes);
            }
        }
        for l in &self.linear {
            for &batch in &l.batch {
                let passes = [Pass::Forward, Pass::Step];
                push(Op::Linear(l.clone()), &l.name, &l.sets, batch, &passes);
            }
        }
        for m in &self.matmul {
            push(
                Op::Matmul(m.clone()),
                &m.name,
                &m.sets,
                1,
                &[Pass::Forward, Pass::Step],
            );
        }
        for r in &self.softmax {
            push(
                Op::Softmax(r.clone()),
                &r.name,
                &r.sets,
                1,
                &[Pass::Forward, Pass::Step],
            );
        }
        for r in &self.layer_norm {
            push(
                Op::LayerNorm(r.clone()),
                &r.name,
                &r.sets,
                1,
                &[Pass::Forward, Pass::Step],
            );
        }
        for s in &self.select {
            push(Op::Select(s.clone()), &s.name, &s.sets, 1, &[Pass::Forward]);
        }
        for n in &self.nm {
            push(Op::Nm(n.clone()), &n.name, &n.sets, 1, &[Pass::Forward]);
        }
        for b in &self.block {
            for &batch in &b.batch {
                push(
                    Op::Block(b.clone()),
                    &b.name,
                    &b.sets,
                    batch,
                    &[Pass::Forward, Pass::Step],
                );
            }
        }
        rows
    }
}

fn one() -> usize {
    1
}

fn product(factors: &[usize]) -> f64 {
    factors.iter().map(|&factor| factor as f64).product()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_is_valid_and_counts_as_published() {
        let rows = ShapeFile::parse(DEFAULT).unwrap().rows();
        let find = |id: &str| rows.iter().find(|row| row.id() == id).unwrap();
        // ResNet-50's 3x3 layers are 0.23 GFLOP an image at every stage.
        let conv = find("conv r50_3x3_256_at14 b1 forward");
        assert_eq!(conv.flops(), 2.0 * 14.0 * 14.0 * 256.0 * 2304.0);
        assert_eq!(
            find("conv r50_3x3_256_at14 b8 step").flops(),
            24.0 * conv.flops()
        );
        // A ViT-B block: 12 T d^2 of products and 2 T^2 d of attention, two operations each.
        let (tokens, width) = (197.0, 768.0);
        assert_eq!(
            find("block vit_b_block b8 forward").flops(),
            8.0 * 2.0 * (12.0 * tokens * width * width + 2.0 * tokens * tokens * width)
        );
    }

    #[test]
    fn mistakes_are_named() {
        let refuse = |body: &str| {
            let error = ShapeFile::parse(&format!("version = 1\n{body}")).unwrap_err();
            format!("{error:#}")
        };
        let conv = "[[conv]]\nname='c'\nbatch=[1]\ninputs=3\noutputs=4\nsets=[]\n";
        assert!(refuse(&format!("{conv}size=2\nkernel=3")).contains("does not fit into 2"));
        assert!(
            refuse(&format!("{conv}size=4\nkernel=3\ngroups=2")).contains("do not divide 3 inputs")
        );
        assert!(refuse(&format!("{conv}size=4\nkernel=3\npading=1")).contains("pading"));
        let twice = format!("{conv}size=4\nkernel=3\n{conv}size=5\nkernel=3");
        assert!(refuse(&twice).contains("occurs twice"));
        let block = "[[block]]\nname='b'\nbatch=[1]\nchannels=4\nsize=4\nsets=[]\n";
        let adds = r#"steps=["save", { conv = { outputs = 8, kernel = 1 } }, "add"]"#;
        assert!(refuse(&format!("{block}{adds}")).contains("step 2 adds"));
        assert!(
            refuse(&format!("{block}steps=[{{ linear = {{ outputs = 8 }} }}]"))
                .contains("cannot follow")
        );
        assert!(
            ShapeFile::parse("version = 2")
                .unwrap_err()
                .to_string()
                .contains("version 2")
        );
    }
}

//! Turns a row into contestants: closures that each compute the row's product on one of several input sets.

use std::hint::black_box;

use anyhow::{Context, Result};
use burn::prelude::*;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Distribution, IndexingUpdateOp};
use kernels::cpu::sparse::{self, SparseWeight};
use kernels::cpu::{Isa, Mask, conv, weight_grad};
use kernels::plan::{self, KernelPolicy, Path, PathChoice, explain};
use kernels::{BitMask, ConvShape, Ties, nm_mask, select_smallest};

use crate::block::{Part, State, run};
use crate::engine::{self, Engine, Entry, Keep, Weight, tracked};
use crate::gpu::Gpu;
use crate::shapes::{Block, Conv, Input, Linear, Matmul, Nm, Op, Pass, Row, Rows, Select, Step};

/// Somebody who computes a row's product.
pub struct Contestant {
    /// As goals and files name it.
    pub name: String,
    /// Percent of the weights that are masked.
    pub sparsity: u32,
    /// The path taken, where there is a choice.
    pub path: Option<String>,
    /// Computes on input set `index`, below [`Contest::sets`].
    pub call: Box<dyn FnMut(usize)>,
}

/// A row with its inputs.
pub struct Contest {
    /// Input sets.
    pub sets: usize,
    /// In the order they take turns.
    pub contestants: Vec<Contestant>,
    /// Returns when everything called is done: at once on the CPU.
    pub wait: Box<dyn Fn()>,
}

/// Draws inputs for `row` and gathers its contestants, on the CPU or a GPU. `l2_bytes`: the input sets together are more
/// than twice this.
pub fn prepare(row: &Row, seed: u64, l2_bytes: usize, gpu: Option<&Gpu>) -> Result<Contest> {
    let device = gpu.map_or_else(Device::flex, Gpu::device);
    device.seed(seed);
    let sets = (2 * l2_bytes / row.input_bytes().max(1) + 1).clamp(3, 64);
    let stage = Stage {
        op: &row.op,
        device,
        sets,
        batch: row.batch,
        pass: row.pass,
        gpu,
    };
    let wait = match gpu {
        None => Box::new(|| {}) as Box<dyn Fn()>,
        Some(gpu) => gpu.waiter(),
    };
    let mut contestants = match &row.op {
        Op::Conv(conv) => stage.conv(conv)?,
        Op::Linear(linear) => stage.linear(linear)?,
        Op::Matmul(matmul) => stage.matmul(matmul),
        Op::Softmax(rows) => stage.softmax(rows),
        Op::LayerNorm(rows) => stage.layer_norm(rows),
        Op::Select(select) => stage.select(select)?,
        Op::Nm(nm) => stage.nm(nm)?,
        Op::Block(block) => stage.block(block)?,
    };
    if gpu.is_some() {
        // Paths are the CPU's.
        contestants
            .iter_mut()
            .for_each(|contestant| contestant.path = None);
    }
    Ok(Contest {
        sets,
        contestants,
        wait,
    })
}

struct Stage<'a> {
    op: &'a Op,
    device: Device,
    sets: usize,
    batch: usize,
    pass: Pass,
    gpu: Option<&'a Gpu>,
}

impl Stage<'_> {
    fn field(&self) -> Vec<Entry> {
        engine::field(self.op, self.pass)
    }

    fn draw<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &self.device)
    }

    fn inputs<const D: usize>(&self, shape: [usize; D]) -> Vec<Tensor<D>> {
        (0..self.sets).map(|_| self.draw(shape)).collect()
    }

    /// An OIHW weight, scaled so that outputs stay near 1, `sparsity` percent of it masked at random.
    fn conv_weight(&self, shape: [usize; 4], sparsity: u32) -> Result<Weight<4>> {
        let [outputs, inputs, height, width] = shape;
        let cols = inputs * height * width;
        let mask = self.keep(outputs, cols, sparsity)?;
        Ok(Weight {
            value: self.draw(shape) / (cols as f64).sqrt(),
            mask: mask.map(|(ones, words)| Keep {
                ones: ones.reshape(shape),
                words,
            }),
        })
    }

    /// The same as `[in, out]`.
    fn linear_weight(&self, inputs: usize, outputs: usize, sparsity: u32) -> Result<Weight<2>> {
        let mask = self.keep(outputs, inputs, sparsity)?;
        Ok(Weight {
            value: self.draw([inputs, outputs]) / (inputs as f64).sqrt(),
            mask: mask.map(|(ones, words)| Keep {
                // A copy: a transposed view would slow the product that reads it.
                ones: Tensor::from_data(ones.transpose().into_data(), &self.device),
                words,
            }),
        })
    }

    /// A mask of a row per output, as ones and as words.
    fn keep(
        &self,
        rows: usize,
        cols: usize,
        sparsity: u32,
    ) -> Result<Option<(Tensor<2>, Tensor<2, Int>)>> {
        if sparsity == 0 {
            return Ok(None);
        }
        let mask = self.mask(rows, cols, sparsity)?;
        let cells = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
        let ones: Vec<f32> = cells.map(|at| f32::from(mask.get(at.0, at.1))).collect();
        let words = TensorData::new(mask.words().to_vec(), [rows, cols.div_ceil(32)]);
        Ok(Some((
            Tensor::from_data(TensorData::new(ones, [rows, cols]), &self.device),
            Tensor::from_data(words, (&self.device, DType::U32)),
        )))
    }

    fn conv(&self, conv: &Conv) -> Result<Vec<Contestant>> {
        let options = options(conv.stride, conv.padding, conv.groups);
        let shape = [
            conv.outputs,
            conv.inputs / conv.groups,
            conv.kernel,
            conv.kernel,
        ];
        let inputs = self.inputs([self.batch, conv.inputs, conv.size, conv.size]);
        let output_size = conv.output_size();
        let output_grad = self.draw([self.batch, conv.outputs, output_size, output_size]);
        let masks = self.pass == Pass::Forward && !conv.depthwise();
        let mut contestants = Vec::new();
        // On plain slices there is only the CPU.
        if self.gpu.is_none() {
            contestants.push(self.core(conv, &inputs, &output_grad, 0)?);
        }
        if masks && self.gpu.is_none() {
            contestants.push(self.core(conv, &inputs, &output_grad, 50)?);
            for sparsity in [80, 90, 95] {
                contestants.push(self.frozen(
                    conv,
                    &inputs,
                    sparsity,
                    PathChoice::Force(Path::Csr),
                )?);
            }
            for sparsity in [50, 70, 90] {
                contestants.push(self.frozen(conv, &inputs, sparsity, PathChoice::Auto)?);
            }
        }
        let contest = |entry: Entry| {
            let w = self.conv_weight(shape, entry.sparsity)?;
            let (inputs, options) = (inputs.clone(), options.clone());
            let output_grad = output_grad.clone();
            Ok(enter(entry, self.pass, move |engine, pass, index| {
                let x = inputs[index].clone();
                match pass {
                    Pass::Forward => drop(black_box(engine.conv2d(x, &w, &options))),
                    Pass::WeightGrad => drop(black_box(engine.conv2d_weight_grad(
                        x,
                        &w,
                        output_grad.clone(),
                        &options,
                    ))),
                    Pass::Step => {
                        let (x, w) = (tracked(x), w.tracked());
                        let grads = engine.conv2d(x.clone(), &w, &options).backward();
                        black_box((x.grad(&grads), w.value.grad(&grads)));
                    }
                }
            }))
        };
        let through_burn: Result<Vec<_>> = self.field().into_iter().map(contest).collect();
        contestants.extend(through_burn?);
        Ok(contestants)
    }

    /// The kernels on plain slices, without Burn around them.
    fn core(
        &self,
        conv: &Conv,
        inputs: &[Tensor<4>],
        output_grad: &Tensor<4>,
        sparsity: u32,
    ) -> Result<Contestant> {
        let shape = self.shape(conv);
        let (rows, cols) = (conv.outputs, shape.weight_cols());
        let w: Tensor<2> = self.draw([rows, cols]) / (cols as f64).sqrt();
        let w = to_vecs(&[w])?.remove(0);
        let mask = (sparsity > 0).then(|| self.mask(rows, cols, sparsity));
        let mask = mask.transpose()?;
        let (inputs, g) = (
            to_vecs(inputs)?,
            to_vecs(std::slice::from_ref(output_grad))?.remove(0),
        );
        let (isa, pass) = (Isa::detect(), self.pass);
        let call = move |index: usize| {
            let (x, mask) = (&inputs[index], mask.as_ref().map(Mask::from));
            if pass != Pass::WeightGrad {
                let y = conv::forward(isa, &shape, x, &w, mask, None);
                drop(black_box(y));
            }
            if pass != Pass::Forward {
                let w_grad = weight_grad::weight_grad(isa, &shape, x, &g, mask);
                drop(black_box(w_grad));
            }
            if pass == Pass::Step {
                drop(black_box(conv::input_grad(isa, &shape, &g, &w, mask)));
            }
        };
        let name = if sparsity == 0 { "core" } else { "core_masked" };
        Ok(Contestant {
            sparsity,
            path: Some(isa.name().to_owned()),
            ..contestant(name, call)
        })
    }

    /// A weight that no longer changes, `sparsity` percent of it masked, on the path that is forced or chosen. Its forms
    /// are made in the first call, which is not timed.
    fn frozen(
        &self,
        conv: &Conv,
        inputs: &[Tensor<4>],
        sparsity: u32,
        path: PathChoice,
    ) -> Result<Contestant> {
        let shape = self.shape(conv);
        let (rows, cols) = (conv.outputs, shape.weight_cols());
        let w: Tensor<2> = self.draw([rows, cols]) / (cols as f64).sqrt();
        let (w, mask) = (to_vecs(&[w])?.remove(0), self.mask(rows, cols, sparsity)?);
        let inputs = to_vecs(inputs)?;
        let policy = KernelPolicy {
            path,
            ..KernelPolicy::auto()
        };
        let kept = mask.nnz().into();
        let plan = explain(plan::Op::Forward, &shape.into(), kept, &policy);
        let packed = (plan.path != Path::Dense).then(|| SparseWeight::from_dense(&w, &mask));
        let packed = packed.transpose()?;
        let call = move |index: usize| {
            let (isa, x) = (policy.isa, &inputs[index]);
            drop(black_box(match &packed {
                Some(weight) => sparse::forward(isa, &shape, x, weight, None),
                None => conv::forward(isa, &shape, x, &w, Some(Mask::from(&mask)), None),
            }));
        };
        let name = if path == PathChoice::Auto {
            "auto"
        } else {
            "csr"
        };
        Ok(Contestant {
            sparsity,
            path: Some(plan.path.name().to_owned()),
            ..contestant(name, call)
        })
    }

    fn shape(&self, conv: &Conv) -> ConvShape {
        ConvShape::new(
            self.batch,
            [conv.inputs, conv.outputs],
            [conv.size; 2],
            [conv.kernel; 2],
        )
        .with_stride([conv.stride; 2])
        .with_padding([conv.padding; 2])
        .with_groups(conv.groups)
    }

    /// `sparsity` percent masked at random.
    fn mask(&self, rows: usize, cols: usize, sparsity: u32) -> Result<BitMask> {
        let uniform: Tensor<1> = Tensor::random(
            [rows * cols],
            Distribution::Uniform(0.0, 100.0),
            &self.device,
        );
        let keep = uniform.greater_equal_elem(sparsity).into_data();
        // GPUs keep flags as 32-bit words.
        let keep: Vec<bool> = keep.iter::<bool>().collect();
        Ok(BitMask::from_keep(rows, cols, &keep)?)
    }

    fn linear(&self, linear: &Linear) -> Result<Vec<Contestant>> {
        let inputs = self.inputs([self.batch, linear.tokens, linear.inputs]);
        let contest = |entry: Entry| {
            let w = self.linear_weight(linear.inputs, linear.outputs, entry.sparsity)?;
            let inputs = inputs.clone();
            Ok(enter(entry, self.pass, move |engine, pass, index| {
                let x = inputs[index].clone();
                if pass == Pass::Forward {
                    drop(black_box(engine.linear(x, &w)));
                    return;
                }
                let (x, w) = (tracked(x), w.tracked());
                let grads = engine.linear(x.clone(), &w).backward();
                black_box((x.grad(&grads), w.value.grad(&grads)));
            }))
        };
        let mut contestants: Vec<Contestant> = self
            .field()
            .into_iter()
            .map(contest)
            .collect::<Result<_>>()?;
        if let (Some(gpu), Pass::Forward) = (self.gpu, self.pass) {
            let positions = self.batch * linear.tokens;
            let masks = [50, 80].map(|sparsity| {
                Ok((
                    sparsity,
                    self.mask(linear.outputs, linear.inputs, sparsity)?,
                ))
            });
            let masks = masks.into_iter().collect::<Result<Vec<_>>>()?;
            let sizes = [positions, linear.outputs, linear.inputs];
            contestants.extend(gpu.packed_linear(sizes, self.sets, &masks)?);
            if gpu.has_bf16() {
                contestants.push(self.linear_bf16(linear)?);
            }
        }
        Ok(contestants)
    }

    /// Burn's dense product of bf16 operands.
    fn linear_bf16(&self, linear: &Linear) -> Result<Contestant> {
        let inputs: Vec<Tensor<3>> = self
            .inputs([self.batch, linear.tokens, linear.inputs])
            .into_iter()
            .map(|x| x.cast(DType::BF16))
            .collect();
        let mut w = self.linear_weight(linear.inputs, linear.outputs, 0)?;
        w.value = w.value.cast(DType::BF16);
        Ok(contestant("burn_bf16", move |index| {
            drop(black_box(engine::Burn.linear(inputs[index].clone(), &w)));
        }))
    }

    fn matmul(&self, matmul: &Matmul) -> Vec<Contestant> {
        let left = self.inputs([matmul.count, matmul.m, matmul.k]);
        let right = self.inputs([matmul.count, matmul.k, matmul.n]);
        let contest = |entry: Entry| {
            let (left, right) = (left.clone(), right.clone());
            enter(entry, self.pass, move |engine, pass, index| {
                let (a, b) = (left[index].clone(), right[index].clone());
                if pass == Pass::Forward {
                    drop(black_box(engine.matmul(a, b)));
                    return;
                }
                let (a, b) = (tracked(a), tracked(b));
                let grads = engine.matmul(a.clone(), b.clone()).backward();
                black_box((a.grad(&grads), b.grad(&grads)));
            })
        };
        self.field().into_iter().map(contest).collect()
    }

    fn softmax(&self, rows: &Rows) -> Vec<Contestant> {
        self.row_wise(rows, |engine, x, _, _| engine.softmax(x))
    }

    fn layer_norm(&self, rows: &Rows) -> Vec<Contestant> {
        self.row_wise(rows, |engine, x, gamma, beta| {
            engine.layer_norm(x, gamma, beta)
        })
    }

    fn row_wise(
        &self,
        rows: &Rows,
        compute: fn(&dyn Engine, Tensor<3>, Tensor<1>, Tensor<1>) -> Tensor<3>,
    ) -> Vec<Contestant> {
        let inputs = self.inputs([1, rows.rows, rows.width]);
        let (gamma, beta) = (self.draw([rows.width]), self.draw([rows.width]));
        let contest = |entry: Entry| {
            let (inputs, gamma, beta) = (inputs.clone(), gamma.clone(), beta.clone());
            enter(entry, self.pass, move |engine, pass, index| {
                let (x, gamma, beta) = (inputs[index].clone(), gamma.clone(), beta.clone());
                if pass == Pass::Forward {
                    drop(black_box(compute(engine, x, gamma, beta)));
                    return;
                }
                // The square: a softmax row sums to one, so plain ones would ask for a gradient of zero.
                let x = tracked(x);
                let y = compute(engine, x.clone(), tracked(gamma), tracked(beta));
                let grads = (y.clone() * y).backward();
                black_box(x.grad(&grads));
            })
        };
        self.field().into_iter().map(contest).collect()
    }

    fn block(&self, block: &Block) -> Result<Vec<Contestant>> {
        let parts = self.parts(block)?;
        let inputs: Vec<State> = match block.input() {
            Input::Image([channels, size]) => self
                .inputs([self.batch, channels, size, size])
                .into_iter()
                .map(State::Image)
                .collect(),
            Input::Tokens([tokens, width]) => self
                .inputs([self.batch, tokens, width])
                .into_iter()
                .map(State::Tokens)
                .collect(),
        };
        let contest = |entry: Entry| {
            let (parts, inputs) = (parts.clone(), inputs.clone());
            enter(entry, self.pass, move |engine, pass, index| {
                let x = inputs[index].clone();
                if pass == Pass::Forward {
                    drop(black_box(run(engine, &parts, x)));
                    return;
                }
                let x = x.tracked();
                let parts: Vec<Part> = parts.iter().map(Part::tracked).collect();
                let grads = run(engine, &parts, x.clone()).backward();
                black_box(x.grad(&grads));
                parts.iter().for_each(|part| part.take_grad(&grads));
            })
        };
        Ok(self.field().into_iter().map(contest).collect())
    }

    fn parts(&self, block: &Block) -> Result<Vec<Part>> {
        let mut width = match block.input() {
            Input::Image([channels, _]) => channels,
            Input::Tokens([_, width]) => width,
        };
        let mut part = |step: &Step| -> Result<Part> {
            Ok(match *step {
                Step::Conv {
                    outputs,
                    kernel,
                    stride,
                    padding,
                    groups,
                } => {
                    let inputs = std::mem::replace(&mut width, outputs) / groups;
                    let shape = [outputs, inputs, kernel, kernel];
                    Part::Conv(
                        self.conv_weight(shape, 0)?,
                        options(stride, padding, groups),
                    )
                }
                Step::Linear { outputs } => {
                    let inputs = std::mem::replace(&mut width, outputs);
                    Part::Linear(self.linear_weight(inputs, outputs, 0)?)
                }
                Step::Attention { heads } => {
                    width /= 3;
                    Part::Attention(heads)
                }
                Step::LayerNorm => Part::LayerNorm(
                    Tensor::ones([width], &self.device),
                    Tensor::zeros([width], &self.device),
                ),
                Step::GroupNorm { groups } => Part::GroupNorm(groups),
                step => Part::Plain(step),
            })
        };
        block.steps.iter().map(&mut part).collect()
    }

    /// A sorting threshold must keep the scores, so those that reorder work on a copy, and that is timed.
    fn select(&self, select: &Select) -> Result<Vec<Contestant>> {
        let tensors = self.inputs([select.count]);
        let scores = to_vecs(&tensors)?;
        let k = (select.share * select.count as f64) as usize;
        let count = select.count;
        let burn = contestant("burn", move |index| {
            let x = tensors[index].clone();
            let threshold = x.clone().sort(0).narrow(0, k - 1, 1);
            black_box(x.greater(threshold.expand([count])));
        });
        if let Some(gpu) = self.gpu {
            let mut contestants = vec![gpu.select(scores, k as u64)?];
            // There Burn copies the scores to the host and sorts them in one thread: minutes, for more than these.
            if count <= 10_000_000 {
                contestants.push(burn);
            }
            return Ok(contestants);
        }
        let ours = {
            let scores = scores.clone();
            contestant("ours", move |index| {
                let mask = select_smallest(
                    scores[index].as_slice(),
                    [1, count],
                    k as u64,
                    Ties::KeepLowestIndex,
                );
                black_box(mask.expect("scores are finite"));
            })
        };
        let nth = {
            let scores = scores.clone();
            contestant("select_nth", move |index| {
                let mut copy = scores[index].clone();
                black_box(copy.select_nth_unstable_by(k - 1, f32::total_cmp).1);
            })
        };
        let sort = contestant("sort", move |index| {
            let mut copy = scores[index].clone();
            copy.sort_unstable_by(f32::total_cmp);
            black_box(copy[k - 1]);
        });
        Ok(vec![ours, nth, sort, burn])
    }

    fn nm(&self, nm: &Nm) -> Result<Vec<Contestant>> {
        let Nm {
            rows, cols, n, m, ..
        } = *nm;
        let tensors = self.inputs([rows * cols / m, m]);
        let scores = to_vecs(&tensors)?;
        let ours = {
            let scores = scores.clone();
            contestant("ours", move |index| {
                let mask = nm_mask(scores[index].as_slice(), &[rows, cols], n, m);
                black_box(mask.expect("groups divide the columns"));
            })
        };
        let device = self.device.clone();
        let burn = contestant("burn", move |index| {
            let groups = [rows * cols / m, n];
            let kept = tensors[index].clone().argsort_descending(1).narrow(1, 0, n);
            let mask: Tensor<2> = Tensor::zeros([groups[0], m], &device);
            let ones = Tensor::ones(groups, &device);
            black_box(mask.scatter(1, kept, ones, IndexingUpdateOp::Add));
        });
        if let Some(gpu) = self.gpu {
            return Ok(vec![gpu.nm_mask(scores, [rows, cols], [n, m])?, burn]);
        }
        let mut target = vec![0f32; rows * cols];
        let copy = contestant("copy", move |index| {
            target.copy_from_slice(&scores[index]);
            black_box(&mut target);
        });
        Ok(vec![ours, burn, copy])
    }
}

/// A contestant without masks and choices.
pub fn contestant(name: &str, call: impl FnMut(usize) + 'static) -> Contestant {
    Contestant {
        name: name.to_owned(),
        sparsity: 0,
        path: None,
        call: Box::new(call),
    }
}

fn enter(
    entry: Entry,
    pass: Pass,
    call: impl Fn(&dyn Engine, Pass, usize) + 'static,
) -> Contestant {
    Contestant {
        name: entry.name.to_owned(),
        sparsity: entry.sparsity,
        path: entry.engine.path(),
        call: Box::new(move |index| call(&*entry.engine, pass, index)),
    }
}

fn options(stride: usize, padding: usize, groups: usize) -> ConvOptions<2> {
    ConvOptions::new([stride; 2], [padding; 2], [1; 2], groups)
}

fn to_vecs<const D: usize>(tensors: &[Tensor<D>]) -> Result<Vec<Vec<f32>>> {
    let vecs = tensors.iter().map(|t| t.to_data().try_into_vec());
    vecs.collect::<Result<_, _>>().context("reading scores")
}

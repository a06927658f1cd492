//! Blocks of networks, put together from plain layers by the shape file.

use std::hint::black_box;

use burn::prelude::*;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Gradients, activation};
use kernels::Activation;

use crate::engine::{Engine, Weight, tracked};
use crate::shapes::Step;

/// A step with its weights.
#[derive(Clone)]
pub enum Part {
    Plain(Step),
    Conv(Weight<4>, ConvOptions<2>),
    Linear(Weight<2>),
    LayerNorm(Tensor<1>, Tensor<1>),
    GroupNorm(usize),
    Attention(usize),
}

/// A value inside a block.
#[derive(Clone)]
pub enum State {
    Image(Tensor<4>),
    Tokens(Tensor<3>),
}

impl Part {
    pub fn tracked(&self) -> Self {
        match self {
            Self::Conv(w, options) => Self::Conv(w.tracked(), options.clone()),
            Self::Linear(w) => Self::Linear(w.tracked()),
            Self::LayerNorm(gamma, beta) => {
                Self::LayerNorm(tracked(gamma.clone()), tracked(beta.clone()))
            }
            other => other.clone(),
        }
    }

    fn activation(&self) -> Option<Activation> {
        match self {
            Self::Plain(Step::Relu) => Some(Activation::Relu),
            Self::Plain(Step::Relu6) => Some(Activation::Relu6),
            _ => None,
        }
    }

    pub fn take_grad(&self, grads: &Gradients) {
        match self {
            Self::Conv(w, _) => drop(black_box(w.value.grad(grads))),
            Self::Linear(w) => drop(black_box(w.value.grad(grads))),
            _ => {}
        }
    }
}

impl State {
    pub fn tracked(self) -> Self {
        match self {
            Self::Image(x) => Self::Image(tracked(x)),
            Self::Tokens(x) => Self::Tokens(tracked(x)),
        }
    }

    pub fn backward(&self) -> Gradients {
        match self {
            Self::Image(x) => x.backward(),
            Self::Tokens(x) => x.backward(),
        }
    }

    pub fn grad(&self, grads: &Gradients) -> bool {
        match self {
            Self::Image(x) => x.grad(grads).is_some(),
            Self::Tokens(x) => x.grad(grads).is_some(),
        }
    }
}

/// The block's value, layer by layer.
pub fn run(engine: &dyn Engine, parts: &[Part], mut state: State) -> State {
    let mut saved = None;
    let mut parts = parts.iter().peekable();
    while let Some(part) = parts.next() {
        state = match (part, state) {
            (Part::Plain(Step::Save), state) => {
                saved = Some(state.clone());
                state
            }
            (Part::Plain(Step::Add), state) => match (state, saved.clone()) {
                (State::Image(x), Some(State::Image(kept))) => {
                    // What follows a sum belongs to it, as in the networks.
                    let behind = parts.next_if(|part| part.activation().is_some());
                    let behind = behind.and_then(Part::activation);
                    State::Image(engine.join(x, kept, behind.unwrap_or(Activation::Identity)))
                }
                (State::Tokens(x), Some(State::Tokens(kept))) => State::Tokens(x + kept),
                _ => unreachable!("the shape file was checked"),
            },
            (part, State::Image(x)) => State::Image(match (part, part.activation()) {
                (_, Some(what)) => engine.activate(x, what),
                (Part::Plain(Step::Silu), _) => activation::silu(x),
                (Part::Conv(w, options), _) => engine.conv2d(x, w, options),
                (Part::GroupNorm(groups), _) => group_norm(engine, x, *groups),
                _ => unreachable!("the shape file was checked"),
            }),
            (part, State::Tokens(x)) => State::Tokens(match part {
                Part::Plain(Step::Gelu) => engine.gelu(x),
                Part::Linear(w) => engine.linear(x, w),
                Part::LayerNorm(gamma, beta) => engine.layer_norm(x, gamma.clone(), beta.clone()),
                Part::Attention(heads) => attention(engine, x, *heads),
                _ => unreachable!("the shape file was checked"),
            }),
        };
    }
    state
}

/// Each group of channels is a row of a layer norm without scale and shift.
fn group_norm(engine: &dyn Engine, x: Tensor<4>, groups: usize) -> Tensor<4> {
    let shape = x.dims();
    let width = shape.iter().product::<usize>() / (shape[0] * groups);
    let (ones, zeros) = (
        Tensor::ones([width], &x.device()),
        Tensor::zeros([width], &x.device()),
    );
    let rows = x.reshape([1, shape[0] * groups, width]);
    engine.layer_norm(rows, ones, zeros).reshape(shape)
}

/// Scaled dot-product attention of `[batch, tokens, 3 * heads * size]`.
fn attention(engine: &dyn Engine, x: Tensor<3>, heads: usize) -> Tensor<3> {
    let [batch, tokens, width] = x.dims();
    let size = width / 3 / heads;
    let parts = x
        .reshape([batch, tokens, 3, heads * size])
        .permute([2, 0, 1, 3]);
    let part = |index: usize| {
        parts
            .clone()
            .narrow(0, index, 1)
            .reshape([batch, tokens, heads, size])
            .swap_dims(1, 2)
            .reshape([batch * heads, tokens, size])
    };
    let (queries, keys, values) = (part(0), part(1), part(2));
    let scores = engine.matmul(queries, keys.swap_dims(1, 2)) / (size as f64).sqrt();
    engine
        .matmul(engine.softmax(scores), values)
        .reshape([batch, heads, tokens, size])
        .swap_dims(1, 2)
        .reshape([batch, tokens, heads * size])
}

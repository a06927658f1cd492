//! The extension on the tape: which gradients an operation has, and what each needs kept.

use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;
use burn_autodiff::{
    Autodiff, NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};

use super::{Bias, CpuOps, Keep, Skip, SparseOps};
use crate::{Activation, ConvShape, Precision};

/// A tensor that may be on the tape.
type Taped<B, S> = FloatTensor<Autodiff<B, S>>;

/// A convolution or a linear layer on the tape, with (3 parents) or without (2) a bias.
#[derive(Debug)]
struct Product;

/// What its gradients need; activations and weights by their place on the tape.
#[derive(Debug, Clone)]
struct ProductState<B: Backend> {
    x: Option<NodeId>,
    w: Option<NodeId>,
    mask: Keep<B>,
    /// None for a linear layer.
    shape: Option<ConvShape>,
    precision: Precision,
}

impl<B: SparseOps, const N: usize> Backward<B, N> for Product {
    type State = ProductState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let g = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let precision = state.precision;
        let mut kept = |id: Option<NodeId>| {
            checkpointer.retrieve_node_output::<FloatTensor<B>>(
                id.expect("a tracked parent's partner was kept"),
            )
        };
        if let Some(x) = &ops.parents[0] {
            let (w, mask) = (kept(state.w), state.mask.clone());
            let dx = match state.shape {
                Some(shape) => B::sparse_conv2d_input_grad(g.clone(), w, mask, shape, precision),
                None => B::sparse_linear_input_grad(g.clone(), w, mask, precision),
            };
            grads.register::<B>(x.id, dx);
        }
        if let Some(w) = &ops.parents[1] {
            let (x, mask) = (kept(state.x), state.mask);
            let dw = match state.shape {
                Some(shape) => B::sparse_conv2d_weight_grad(x, g.clone(), mask, shape, precision),
                None => B::sparse_linear_weight_grad(x, g.clone(), mask, precision),
            };
            grads.register::<B>(w.id, dw);
        }
        if let Some(bias) = ops.parents.get(2).and_then(Option::as_ref) {
            grads.register::<B>(bias.id, B::channel_sums(g));
        }
    }
}

/// Puts a product on the tape.
fn product<B: SparseOps, S: CheckpointStrategy>(
    x: Taped<B, S>,
    w: Taped<B, S>,
    mask: Keep<Autodiff<B, S>>,
    bias: Bias<Autodiff<B, S>>,
    shape: Option<ConvShape>,
    precision: Precision,
) -> Taped<B, S> {
    let mask: Keep<B> = match mask {
        Keep::All => Keep::All,
        Keep::Words(words) => Keep::Words(words),
    };
    let run = |x, w, mask, bias| match shape {
        Some(shape) => B::sparse_conv2d(x, w, mask, bias, shape, precision),
        None => B::sparse_linear(x, w, mask, bias, precision),
    };
    let (x_tracked, w_tracked) = (x.is_tracked(), w.is_tracked());
    // Generic over the number of parents, which functions of tensors are not.
    macro_rules! prepare {
        ($nodes:expr, $bias:expr) => {
            match Product.prepare::<S>($nodes).compute_bound().stateful() {
                OpsKind::Tracked(mut prep) => {
                    let state = ProductState {
                        x: w_tracked.then(|| prep.checkpoint(&x)),
                        w: x_tracked.then(|| prep.checkpoint(&w)),
                        mask: mask.clone(),
                        shape,
                        precision,
                    };
                    let y = run(x.into_primitive(), w.into_primitive(), mask, $bias);
                    prep.finish(state, y)
                }
                OpsKind::UnTracked(prep) => {
                    prep.finish(run(x.into_primitive(), w.into_primitive(), mask, $bias))
                }
            }
        };
    }
    match bias {
        Bias::Channels(bias) => prepare!(
            [x.node(), w.node(), bias.node()],
            Bias::Channels(bias.into_primitive())
        ),
        Bias::Zero => prepare!([x.node(), w.node()], Bias::Zero),
    }
}

/// A stack of matrix products.
#[derive(Debug)]
struct Matmul;

impl<B: CpuOps> Backward<B, 2> for Matmul {
    type State = (Option<NodeId>, Option<NodeId>);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let g = grads.consume::<B>(&ops.node);
        let mut turned = |id: Option<NodeId>| {
            let kept = checkpointer.retrieve_node_output::<FloatTensor<B>>(
                id.expect("a tracked parent's partner was kept"),
            );
            B::float_swap_dims(kept, 1, 2)
        };
        if let Some(a) = &ops.parents[0] {
            grads.register::<B>(a.id, B::stacked_matmul(g.clone(), turned(ops.state.1)));
        }
        if let Some(b) = &ops.parents[1] {
            grads.register::<B>(b.id, B::stacked_matmul(turned(ops.state.0), g));
        }
    }
}

/// Batch norm or layer norm.
#[derive(Debug)]
struct Norm;

/// Input, scale, and the statistics that came out: mean and variance, or mean and 1 / deviation.
#[derive(Debug, Clone)]
struct NormState<B: Backend> {
    x: NodeId,
    gamma: NodeId,
    statistics: [FloatTensor<B>; 2],
    /// Batch norm's epsilon; None for layer norm.
    batch: Option<f64>,
}

impl<B: CpuOps> Backward<B, 3> for Norm {
    type State = NormState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let g = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(state.x);
        let gamma = checkpointer.retrieve_node_output::<FloatTensor<B>>(state.gamma);
        let [mean, spread] = state.statistics;
        let (dx, dgamma, dbeta) = match state.batch {
            Some(epsilon) => B::channel_norm_grad(x, gamma, mean, spread, epsilon, g),
            None => B::row_norm_grad(x, gamma, mean, spread, g),
        };
        for (parent, grad) in ops.parents.iter().zip([dx, dgamma, dbeta]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

/// Puts a norm on the tape.
fn norm<B: CpuOps, S: CheckpointStrategy>(
    x: Taped<B, S>,
    gamma: Taped<B, S>,
    beta: Taped<B, S>,
    epsilon: f64,
    batch: bool,
) -> (Taped<B, S>, Taped<B, S>, Taped<B, S>) {
    let run = |x, gamma, beta| {
        if batch {
            B::channel_norm(x, gamma, beta, epsilon)
        } else {
            B::row_norm(x, gamma, beta, epsilon)
        }
    };
    let nodes = [x.node(), gamma.node(), beta.node()];
    let (y, mean, spread) = match Norm.prepare::<S>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let (x_id, gamma_id) = (prep.checkpoint(&x), prep.checkpoint(&gamma));
            let (y, mean, spread) = run(
                x.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
            );
            let state = NormState {
                x: x_id,
                gamma: gamma_id,
                statistics: [mean.clone(), spread.clone()],
                batch: batch.then_some(epsilon),
            };
            (prep.finish(state, y), mean, spread)
        }
        OpsKind::UnTracked(prep) => {
            let (y, mean, spread) = run(
                x.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
            );
            (prep.finish(y), mean, spread)
        }
    };
    let untracked = Taped::<B, S>::new;
    (y, untracked(mean), untracked(spread))
}

/// Batch norm with fixed statistics, and an activation.
#[derive(Debug)]
struct FixedNorm;

/// Input, scale and shift; mean and variance, which have no gradient.
#[derive(Debug, Clone)]
struct FixedNormState<B: Backend> {
    parents: [NodeId; 3],
    statistics: [FloatTensor<B>; 2],
    epsilon: f64,
    activation: Activation,
}

impl<B: CpuOps> Backward<B, 3> for FixedNorm {
    type State = FixedNormState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let g = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let [x, gamma, beta] = state
            .parents
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let [mean, variance] = state.statistics;
        let (epsilon, activation) = (state.epsilon, state.activation);
        let (dx, dgamma, dbeta) =
            B::fixed_norm_grad(x, gamma, beta, mean, variance, epsilon, activation, g);
        for (parent, grad) in ops.parents.iter().zip([dx, dgamma, dbeta]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

/// An activation, of a sum (2 parents) or of one tensor.
#[derive(Debug)]
struct Join;

/// The activation, and what its gradient needs.
#[derive(Debug, Clone)]
struct JoinState<B: Backend> {
    activation: Activation,
    kept: Kept<B>,
}

#[derive(Debug, Clone)]
enum Kept<B: Backend> {
    Input(NodeId),
    Result(FloatTensor<B>),
}

impl<B: CpuOps, const N: usize> Backward<B, N> for Join {
    type State = JoinState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let g = grads.consume::<B>(&ops.node);
        let kept = match ops.state.kept {
            Kept::Input(id) => checkpointer.retrieve_node_output::<FloatTensor<B>>(id),
            Kept::Result(y) => y,
        };
        let dx = B::join_grad(kept, g, ops.state.activation);
        for parent in ops.parents.iter().flatten() {
            grads.register::<B>(parent.id, dx.clone());
        }
    }
}

/// Planes times a value each.
#[derive(Debug)]
struct Gate;

impl<B: CpuOps> Backward<B, 2> for Gate {
    type State = [NodeId; 2];

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let g = grads.consume::<B>(&ops.node);
        let [x, gate] = ops
            .state
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let (dx, dgate) = B::gate_planes_grad(x, gate, g);
        for (parent, grad) in ops.parents.iter().zip([dx, dgate]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

/// Softmax, whose gradient needs what came out.
#[derive(Debug)]
struct Softmax;

impl<B: CpuOps> Backward<B, 1> for Softmax {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let g = grads.consume::<B>(&ops.node);
        if let [Some(x)] = &ops.parents {
            grads.register::<B>(x.id, B::row_softmax_grad(ops.state, g));
        }
    }
}

/// GELU, whose gradient needs what went in.
#[derive(Debug)]
struct Gelu;

impl<B: CpuOps> Backward<B, 1> for Gelu {
    type State = NodeId;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let g = grads.consume::<B>(&ops.node);
        if let [Some(x)] = &ops.parents {
            let input = checkpointer.retrieve_node_output::<FloatTensor<B>>(ops.state);
            grads.register::<B>(x.id, B::exact_gelu_grad(input, g));
        }
    }
}

const ONCE: &str = "gradients have no gradients here";

impl<B: SparseOps, S: CheckpointStrategy> SparseOps for Autodiff<B, S> {
    fn sparse_conv2d(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        mask: Keep<Self>,
        bias: Bias<Self>,
        shape: ConvShape,
        precision: Precision,
    ) -> FloatTensor<Self> {
        product(x, w, mask, bias, Some(shape), precision)
    }

    fn sparse_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        mask: Keep<Self>,
        bias: Bias<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        product(x, w, mask, bias, None, precision)
    }

    fn sparse_conv2d_input_grad(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Keep<Self>,
        _: ConvShape,
        _: Precision,
    ) -> FloatTensor<Self> {
        unreachable!("{ONCE}")
    }

    fn sparse_conv2d_weight_grad(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Keep<Self>,
        _: ConvShape,
        _: Precision,
    ) -> FloatTensor<Self> {
        unreachable!("{ONCE}")
    }

    fn sparse_linear_input_grad(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Keep<Self>,
        _: Precision,
    ) -> FloatTensor<Self> {
        unreachable!("{ONCE}")
    }

    fn sparse_linear_weight_grad(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Keep<Self>,
        _: Precision,
    ) -> FloatTensor<Self> {
        unreachable!("{ONCE}")
    }

    fn channel_sums(_: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("{ONCE}")
    }
}

impl<B: CpuOps, S: CheckpointStrategy> CpuOps for Autodiff<B, S> {
    fn stacked_matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let (a_tracked, b_tracked) = (a.is_tracked(), b.is_tracked());
        match Matmul
            .prepare::<S>([a.node(), b.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = (
                    b_tracked.then(|| prep.checkpoint(&a)),
                    a_tracked.then(|| prep.checkpoint(&b)),
                );
                let c = B::stacked_matmul(a.into_primitive(), b.into_primitive());
                prep.finish(state, c)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::stacked_matmul(a.into_primitive(), b.into_primitive()))
            }
        }
    }

    fn channel_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        norm::<B, S>(x, gamma, beta, epsilon, true)
    }

    fn row_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        norm::<B, S>(x, gamma, beta, epsilon, false)
    }

    fn fixed_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let (mean, variance) = (mean.into_primitive(), variance.into_primitive());
        match FixedNorm.prepare::<S>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = FixedNormState {
                    parents: [&x, &gamma, &beta].map(|parent| prep.checkpoint(parent)),
                    statistics: [mean.clone(), variance.clone()],
                    epsilon,
                    activation,
                };
                let y = B::fixed_norm(
                    x.into_primitive(),
                    gamma.into_primitive(),
                    beta.into_primitive(),
                    mean,
                    variance,
                    epsilon,
                    activation,
                );
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::fixed_norm(
                x.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
                mean,
                variance,
                epsilon,
                activation,
            )),
        }
    }

    fn join(x: FloatTensor<Self>, skip: Skip<Self>, activation: Activation) -> FloatTensor<Self> {
        // Generic over the number of parents, as products are.
        macro_rules! prepare {
            ($nodes:expr, $skip:expr) => {
                match Join.prepare::<S>($nodes).compute_bound().stateful() {
                    OpsKind::Tracked(mut prep) if activation.keeps_input() => {
                        let kept = Kept::Input(prep.checkpoint(&x));
                        let y = B::join(x.into_primitive(), $skip, activation);
                        prep.finish(JoinState { activation, kept }, y)
                    }
                    OpsKind::Tracked(prep) => {
                        let y = B::join(x.into_primitive(), $skip, activation);
                        let kept = Kept::Result(y.clone());
                        prep.finish(JoinState { activation, kept }, y)
                    }
                    OpsKind::UnTracked(prep) => {
                        prep.finish(B::join(x.into_primitive(), $skip, activation))
                    }
                }
            };
        }
        match skip {
            Skip::Zero => prepare!([x.node()], Skip::Zero),
            Skip::Values(skip) => {
                prepare!([x.node(), skip.node()], Skip::Values(skip.into_primitive()))
            }
        }
    }

    fn gate_planes(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node(), gate.node()];
        match Gate.prepare::<S>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = [&x, &gate].map(|parent| prep.checkpoint(parent));
                let y = B::gate_planes(x.into_primitive(), gate.into_primitive());
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::gate_planes(x.into_primitive(), gate.into_primitive()))
            }
        }
    }

    fn fixed_norm_grad(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: f64,
        _: Activation,
        _: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{ONCE}")
    }

    fn join_grad(_: FloatTensor<Self>, _: FloatTensor<Self>, _: Activation) -> FloatTensor<Self> {
        unreachable!("{ONCE}")
    }

    fn gate_planes_grad(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{ONCE}")
    }

    fn row_softmax(x: FloatTensor<Self>) -> FloatTensor<Self> {
        match Softmax.prepare::<S>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::row_softmax(x.into_primitive());
                prep.finish(y.clone(), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::row_softmax(x.into_primitive())),
        }
    }

    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        match Gelu.prepare::<S>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = prep.checkpoint(&x);
                prep.finish(state, B::exact_gelu(x.into_primitive()))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::exact_gelu(x.into_primitive())),
        }
    }

    fn channel_norm_grad(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: f64,
        _: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{ONCE}")
    }

    fn row_norm_grad(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{ONCE}")
    }

    fn row_softmax_grad(_: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("{ONCE}")
    }

    fn exact_gelu_grad(_: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("{ONCE}")
    }
}

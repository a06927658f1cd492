//! The extension on the tape: which gradients an operation has, and what each needs kept.

use burn::backend::tensor::FloatTensor;
use burn_autodiff::{
    Autodiff, NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};

use super::{Bias, Keep, SparseOps, WeightGrad};
use crate::ConvShape;

/// A convolution that is on the tape: with (3 parents) or without (2) a bias.
#[derive(Debug)]
struct Conv2d;

/// What its gradients need; activations and weights by their place on the tape.
#[derive(Debug, Clone)]
struct Conv2dState<B: SparseOps> {
    x: Option<NodeId>,
    w: Option<NodeId>,
    mask: Keep<B>,
    shape: ConvShape,
    grad: WeightGrad,
}

impl<B: SparseOps> Conv2dState<B> {
    fn backward<const N: usize>(
        ops: Ops<Self, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let g = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let mut kept = |id: Option<NodeId>| {
            checkpointer.retrieve_node_output::<FloatTensor<B>>(
                id.expect("a tracked parent's partner was kept"),
            )
        };
        if let Some(x) = &ops.parents[0] {
            let dx = B::sparse_conv2d_input_grad(
                g.clone(),
                kept(state.w),
                state.mask.clone(),
                state.shape,
            );
            grads.register::<B>(x.id, dx);
        }
        if let Some(w) = &ops.parents[1] {
            let mask = match state.grad {
                WeightGrad::Masked => state.mask,
                WeightGrad::Dense => Keep::All,
            };
            let dw = B::sparse_conv2d_weight_grad(kept(state.x), g.clone(), mask, state.shape);
            grads.register::<B>(w.id, dw);
        }
        if let Some(bias) = ops.parents.get(2).and_then(Option::as_ref) {
            grads.register::<B>(bias.id, B::channel_sums(g));
        }
    }
}

impl<B: SparseOps, const N: usize> Backward<B, N> for Conv2d {
    type State = Conv2dState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        Conv2dState::backward(ops, grads, checkpointer);
    }
}

const ONCE: &str = "these operations have no second derivative";

impl<B: SparseOps, S: CheckpointStrategy> SparseOps for Autodiff<B, S> {
    fn sparse_conv2d(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        mask: Keep<Self>,
        bias: Bias<Self>,
        shape: ConvShape,
        grad: WeightGrad,
    ) -> FloatTensor<Self> {
        let mask: Keep<B> = match mask {
            Keep::All => Keep::All,
            Keep::Words(words) => Keep::Words(words),
        };
        let (x_tracked, w_tracked) = (x.is_tracked(), w.is_tracked());
        // Generic over the number of parents, which closures are not.
        macro_rules! prepare {
            ($nodes:expr, $bias:expr) => {
                match Conv2d.prepare::<S>($nodes).compute_bound().stateful() {
                    OpsKind::Tracked(mut prep) => {
                        let state = Conv2dState {
                            x: w_tracked.then(|| prep.checkpoint(&x)),
                            w: x_tracked.then(|| prep.checkpoint(&w)),
                            mask: mask.clone(),
                            shape,
                            grad,
                        };
                        let (x, w) = (x.into_primitive(), w.into_primitive());
                        prep.finish(state, B::sparse_conv2d(x, w, mask, $bias, shape, grad))
                    }
                    OpsKind::UnTracked(prep) => {
                        let (x, w) = (x.into_primitive(), w.into_primitive());
                        prep.finish(B::sparse_conv2d(x, w, mask, $bias, shape, grad))
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

    fn sparse_conv2d_input_grad(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Keep<Self>,
        _: ConvShape,
    ) -> FloatTensor<Self> {
        unreachable!("{ONCE}")
    }

    fn sparse_conv2d_weight_grad(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Keep<Self>,
        _: ConvShape,
    ) -> FloatTensor<Self> {
        unreachable!("{ONCE}")
    }

    fn channel_sums(_: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("{ONCE}")
    }
}

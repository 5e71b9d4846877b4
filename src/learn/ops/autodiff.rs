//! Joins each operation's forward and backward in burn's autodiff graph.
//!
//! The graph keeps what the closed forms need and nothing else; a gradient that nobody asks for (the images') is never
//! computed.

use super::{ConvArgs, LateRead, NormSaved, Normed, TrainOps, primitive, tensor};
use crate::learn::input::{Normalize, Pixels};
use crate::learn::vicreg::{LossOptions, LossTerms, closed_form};
use burn::tensor::{
    Tensor, TensorMetadata,
    backend::AutodiffBackend,
    ops::{FloatTensor, IntTensor},
};
use burn_autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use bytes::Bytes;
use std::ops::Range;

impl<B: TrainOps, C: CheckpointStrategy> TrainOps for Autodiff<B, C> {
    fn conv(x: FloatTensor<Self>, weight: FloatTensor<Self>, args: ConvArgs) -> FloatTensor<Self> {
        let nodes = [x.node.clone(), weight.node.clone()];
        match ConvBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = (x.primitive.clone(), weight.primitive.clone(), args);
                prep.finish(state, B::conv(x.primitive, weight.primitive, args))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::conv(x.primitive, weight.primitive, args)),
        }
    }

    fn norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        relu: bool,
        epsilon: f64,
    ) -> Normed<Self> {
        let normed = B::norm(
            x.primitive.clone(),
            gamma.primitive.clone(),
            beta.primitive,
            residual.as_ref().map(|r| r.primitive.clone()),
            relu,
            epsilon,
        );
        let saved = NormSaved {
            input: x.primitive,
            rectified: relu.then(|| normed.output.clone()),
            gamma: gamma.primitive,
            mean: normed.mean.clone(),
            variance: normed.variance.clone(),
            epsilon,
            residual: residual.is_some(),
        };
        let nodes = [x.node, gamma.node, beta.node];
        let output = match residual {
            None => match NormBackward.prepare::<C>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(saved, normed.output),
                OpsKind::UnTracked(prep) => prep.finish(normed.output),
            },
            Some(residual) => {
                let [x, gamma, beta] = nodes;
                match NormBackward
                    .prepare::<C>([x, gamma, beta, residual.node])
                    .compute_bound()
                    .stateful()
                {
                    OpsKind::Tracked(prep) => prep.finish(saved, normed.output),
                    OpsKind::UnTracked(prep) => prep.finish(normed.output),
                }
            }
        };
        Normed {
            output,
            mean: Self::from_inner(normed.mean),
            variance: Self::from_inner(normed.variance),
        }
    }

    fn vicreg(z: FloatTensor<Self>, z_prime: FloatTensor<Self>, options: &LossOptions) -> LossTerms<Self> {
        let nodes = [z.node, z_prime.node];
        let compute = |gradients| closed_form::<B>(tensor(z.primitive), tensor(z_prime.primitive), options, gradients);
        let (loss, terms) = match VicregBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                // The gradient at once: what it needs is then free again, instead of waiting for the backward pass.
                let (terms, gradients) = compute(true);
                let gradients = gradients.expect("asked for just now").map(primitive);
                (prep.finish(gradients, primitive(terms.loss.clone())), terms)
            }
            OpsKind::UnTracked(prep) => {
                let (terms, _) = compute(false);
                (prep.finish(primitive(terms.loss.clone())), terms)
            }
        };
        LossTerms::from_inner(terms, tensor(loss))
    }

    fn dense(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node.clone(), weight.node.clone()];
        match LinearBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = (x.primitive.clone(), weight.primitive.clone());
                prep.finish(state, B::dense(x.primitive, weight.primitive))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::dense(x.primitive, weight.primitive)),
        }
    }

    fn average(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let [_, h, w, _] = x.primitive.shape().dims();
        let node = x.node.clone();
        match AverageBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([h, w], B::average(x.primitive)),
            OpsKind::UnTracked(prep) => prep.finish(B::average(x.primitive)),
        }
    }

    fn max_pool(x: FloatTensor<Self>, kernel: usize, args: ConvArgs) -> FloatTensor<Self> {
        let y = B::max_pool(x.primitive.clone(), kernel, args);
        match PoolBackward.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x.primitive, y.clone(), kernel, args), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    const RUN_AHEAD: usize = B::RUN_AHEAD;

    fn upload(bytes: Bytes, device: &Self::Device) -> Pixels<IntTensor<Self>> {
        B::upload(bytes, device)
    }

    fn images(
        pixels: &Pixels<IntTensor<Self>>,
        range: Range<usize>,
        size: [usize; 2],
        by: Normalize,
        device: &Self::Device,
    ) -> FloatTensor<Self> {
        Self::from_inner(B::images(pixels, range, size, by, device))
    }

    fn read_late(values: FloatTensor<Self>) -> LateRead {
        B::read_late(values.primitive)
    }
}

/// Adds a gradient to what the node has already. burn would add by itself, on one thread, and free what it added. (A macro, since
/// burn does not let a node's type be named.)
macro_rules! register {
    ($backend:ident, $grads:ident, $node:expr, $grad:expr) => {{
        let (node, grad) = ($node, $grad);
        let id = node.id;
        // A gradient is found by its node alone.
        let mut slot = Autodiff::<$backend>::from_inner(grad);
        slot.node = node;
        let grad = match $grads.remove::<$backend>(&slot) {
            Some(other) => $backend::accumulate(slot.primitive, other),
            None => slot.primitive,
        };
        $grads.register::<$backend>(id, grad);
    }};
}

#[derive(Debug)]
struct VicregBackward;

impl<B: TrainOps> Backward<B, 2> for VicregBackward {
    /// dL/dZ and dL/dZ'.
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad: Tensor<B, 1> = tensor(grads.consume::<B>(&ops.node));
        for (parent, gradient) in ops.parents.into_iter().zip(ops.state) {
            if let Some(node) = parent {
                let gradient: Tensor<B, 2> = tensor(gradient);
                register!(B, grads, node, primitive(gradient * grad.clone().unsqueeze()));
            }
        }
    }
}

#[derive(Debug)]
struct ConvBackward;

impl<B: TrainOps> Backward<B, 2> for ConvBackward {
    /// Input, kernel, arguments.
    type State = (FloatTensor<B>, FloatTensor<B>, ConvArgs);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight, args) = ops.state;
        let [x_node, weight_node] = ops.parents;
        match (x_node, weight_node) {
            (Some(x_node), Some(weight_node)) => {
                let weight_grad = B::conv_weight_grad(x.clone(), weight.clone(), grad.clone(), args);
                register!(B, grads, weight_node, weight_grad);
                register!(B, grads, x_node, B::conv_input_grad(x, weight, grad, args));
            }
            (Some(node), None) => register!(B, grads, node, B::conv_input_grad(x, weight, grad, args)),
            (None, Some(node)) => register!(B, grads, node, B::conv_weight_grad(x, weight, grad, args)),
            (None, None) => {}
        }
    }
}

#[derive(Debug)]
struct LinearBackward;

impl<B: TrainOps> Backward<B, 2> for LinearBackward {
    /// Input, weight.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight) = ops.state;
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = weight_node {
            register!(B, grads, node, B::dense_weight_grad(x, grad.clone()));
        }
        if let Some(node) = x_node {
            register!(B, grads, node, B::dense_input_grad(weight, grad));
        }
    }
}

#[derive(Debug)]
struct AverageBackward;

impl<B: TrainOps> Backward<B, 1> for AverageBackward {
    /// Height and width of the maps.
    type State = [usize; 2];

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            register!(B, grads, node, B::average_grad(grad, ops.state));
        }
    }
}

#[derive(Debug)]
struct PoolBackward;

impl<B: TrainOps> Backward<B, 1> for PoolBackward {
    /// Input, output, side of the kernel, arguments.
    type State = (FloatTensor<B>, FloatTensor<B>, usize, ConvArgs);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, y, kernel, args) = ops.state;
        if let [Some(node)] = ops.parents {
            register!(B, grads, node, B::max_pool_grad(x, y, grad, kernel, args));
        }
    }
}

#[derive(Debug)]
struct NormBackward;

impl<B: TrainOps> Backward<B, 3> for NormBackward {
    type State = NormSaved<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        for (node, grad) in ops.parents.into_iter().zip(norm_grads(ops.state, grad)) {
            if let (Some(node), Some(grad)) = (node, grad) {
                register!(B, grads, node, grad);
            }
        }
    }
}

impl<B: TrainOps> Backward<B, 4> for NormBackward {
    type State = NormSaved<B>;

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        for (node, grad) in ops.parents.into_iter().zip(norm_grads(ops.state, grad)) {
            if let (Some(node), Some(grad)) = (node, grad) {
                register!(B, grads, node, grad);
            }
        }
    }
}

/// The gradients in the order of the parents: input, scale, shift, residual.
fn norm_grads<B: TrainOps>(saved: NormSaved<B>, grad: FloatTensor<B>) -> [Option<FloatTensor<B>>; 4] {
    let grads = B::norm_grad(saved, grad);
    [Some(grads.input), Some(grads.gamma), Some(grads.beta), grads.residual]
}

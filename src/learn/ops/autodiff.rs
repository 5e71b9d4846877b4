//! Joins each operation's forward and backward in burn's autodiff graph.
//!
//! The graph keeps what the closed forms need and nothing else; a gradient that nobody asks for (the images') is never
//! computed.

use super::{ConvArgs, LateRead, NormSaved, Normed, TrainOps, primitive, tensor};
use crate::learn::input::{Normalize, Pixels};
use crate::learn::vicreg::{LossOptions, LossTerms, closed_form};
use burn::tensor::{
    DType, Tensor,
    backend::AutodiffBackend,
    ops::{FloatTensor, IntTensor},
};
use burn_autodiff::{
    Autodiff, NodeId,
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

    fn pooled_type(dtype: DType) -> DType {
        B::pooled_type(dtype)
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
                register::<B>(grads, node.id, primitive(gradient * grad.clone().unsqueeze()));
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
        let [x_node, weight_node] = ops.parents.map(|parent| parent.map(|node| node.id));
        if let Some(id) = weight_node {
            register::<B>(
                grads,
                id,
                B::conv_weight_grad(x.clone(), weight.clone(), grad.clone(), args),
            );
        }
        if let Some(id) = x_node {
            register::<B>(grads, id, B::conv_input_grad(x, weight, grad, args));
        }
    }
}

#[derive(Debug)]
struct NormBackward;

impl<B: TrainOps> Backward<B, 3> for NormBackward {
    type State = NormSaved<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [x, gamma, beta] = ops.parents.map(|parent| parent.map(|node| node.id));
        let grad = grads.consume::<B>(&ops.node);
        register_norm::<B>(grads, [x, gamma, beta, None], ops.state, grad);
    }
}

impl<B: TrainOps> Backward<B, 4> for NormBackward {
    type State = NormSaved<B>;

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        let grad = grads.consume::<B>(&ops.node);
        register_norm::<B>(grads, parents, ops.state, grad);
    }
}

/// Computes batch norm's gradients and hands each to the parent that asked.
fn register_norm<B: TrainOps>(
    grads: &mut Gradients,
    parents: [Option<NodeId>; 4],
    saved: NormSaved<B>,
    grad: FloatTensor<B>,
) {
    let computed = B::norm_grad(saved, grad);
    let computed = [
        Some(computed.input),
        Some(computed.gamma),
        Some(computed.beta),
        computed.residual,
    ];
    for (parent, grad) in parents.into_iter().zip(computed) {
        if let (Some(id), Some(grad)) = (parent, grad) {
            register::<B>(grads, id, grad);
        }
    }
}

fn register<B: TrainOps>(grads: &mut Gradients, id: NodeId, grad: FloatTensor<B>) {
    grads.register::<B>(id, grad);
}

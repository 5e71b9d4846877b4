//! AdamW (Loshchilov, Hutter, arXiv 1711.05101), as torch.optim.AdamW computes it.
//!
//! m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p = (1 - lr wd) p - lr / (1-b1^t) m / (sqrt(v) / sqrt(1-b2^t) + eps).
//! Constants are worked out in f64 and rounded once.

use super::OptimizerOptions;
use burn::tensor::{Tensor, backend::Backend};

/// What AdamW remembers of a parameter; both moments `[n]`.
#[derive(Clone, Debug)]
pub(super) struct Moments<B: Backend> {
    /// Running mean of the gradient.
    pub m: Tensor<B, 1>,
    /// Running mean of its square.
    pub v: Tensor<B, 1>,
    /// Steps taken.
    pub t: u32,
}

/// The next parameter and moments. `p`, `g`: `[n]`.
pub(super) fn step<B: Backend>(
    options: &OptimizerOptions,
    lr: f64,
    p: Tensor<B, 1>,
    g: Tensor<B, 1>,
    decays: bool,
    memory: Option<Moments<B>>,
) -> (Tensor<B, 1>, Moments<B>) {
    let [b1, b2] = options.betas;
    let (g1, g2) = (g.clone() * (1.0 - b1), g.square() * (1.0 - b2));
    let moments = match memory {
        Some(Moments { m, v, t }) => Moments {
            m: m * b1 + g1,
            v: v * b2 + g2,
            t: t + 1,
        },
        None => Moments { m: g1, v: g2, t: 1 },
    };
    let t = f64::from(moments.t);
    let (bias1, bias2) = (1.0 - b1.powf(t), 1.0 - b2.powf(t));

    let denominator = moments.v.clone().sqrt() / bias2.sqrt() + options.eps; // [n]
    let p = if decays && options.weight_decay != 0.0 {
        p * (1.0 - lr * options.weight_decay)
    } else {
        p
    };
    let p = p - moments.m.clone() / denominator * (lr / bias1);
    (p, moments)
}

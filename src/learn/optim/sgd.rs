//! Stochastic gradient descent with momentum, as torch.optim.SGD computes it (no dampening, no Nesterov).
//!
//! g' = g + wd p; m = momentum m + g'; p = p - lr m. The rate is not inside the momentum, so a changed rate acts at once.
//! [`descend`] is also the second half of LARS.

use super::OptimizerOptions;
use burn::tensor::{Tensor, backend::Backend};

/// The gradient with its decay. `p`, `g`: `[n]`; `rows` is `None` for a parameter that is not decayed.
pub(super) fn direction<B: Backend>(
    options: &OptimizerOptions,
    p: &Tensor<B, 1>,
    g: Tensor<B, 1>,
    rows: Option<usize>,
) -> Tensor<B, 1> {
    match rows {
        Some(_) if options.weight_decay != 0.0 => g + p.clone() * options.weight_decay,
        _ => g,
    }
}

/// Momentum and the move along it: the next parameter and the next momentum, all `[n]`.
pub(super) fn descend<B: Backend>(
    momentum: f64,
    lr: f64,
    p: Tensor<B, 1>,
    g: Tensor<B, 1>,
    memory: Option<Tensor<B, 1>>,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let m = match memory {
        Some(m) => m * momentum + g,
        None => g,
    };
    (p - m.clone() * lr, m)
}

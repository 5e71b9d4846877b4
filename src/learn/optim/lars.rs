//! LARS (You, Gitman, Ginsburg, arXiv 1708.03888): each weight's gradient is scaled by a trust ratio before the momentum.
//!
//! official (facebookresearch/vicreg 4e12602): g' = g + wd p; q = eta |p| / |g'|, 1 where either norm is 0; then momentum on q g'.
//! solo (solo-learn 9187ea3): q = eta |p| / (|g| + wd |p| + 1e-8), with `clip` at most lr in effect: min(q / lr, 1);
//! then momentum on q (g + wd p); where either norm is 0, on g alone, without decay.
//! Both leave parameters with one dimension alone. The ratio stays a tensor: nothing waits for the device.

use super::{LarsVariant, OptimizerOptions, sum_of_squares};
use burn::tensor::{Tensor, backend::Backend};

/// Keeps solo-learn's denominator from 0.
const SOLO_EPS: f64 = 1e-8;

/// The scaled gradient, `[n]`, and the trust ratio q, `[1]`, of a parameter of so many rows.
pub(super) fn direction<B: Backend>(
    options: &OptimizerOptions,
    lr: f64,
    p: &Tensor<B, 1>,
    g: Tensor<B, 1>,
    rows: usize,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let (eta, wd) = (options.trust, options.weight_decay);
    let p_norm = norm(p, rows); // [1]
    match options.variant {
        LarsVariant::Official => {
            let g = g + p.clone() * wd; // [n]
            let g_norm = norm(&g, rows);
            let none = is_zero(&p_norm).bool_or(is_zero(&g_norm));
            let q = (p_norm * eta / g_norm).mask_fill(none, 1.0); // [1]
            (g * q.clone(), q)
        }
        LarsVariant::Solo => {
            let g_norm = norm(&g, rows);
            let none = is_zero(&p_norm).bool_or(is_zero(&g_norm));
            let q = p_norm.clone() * eta / (g_norm + p_norm * wd + SOLO_EPS);
            // At a rate of 0 the ratio is infinite, and the bound is what is left.
            let q = if options.clip { (q / lr).clamp_max(1.0) } else { q };
            let decay = q.clone() * wd;
            let (q, decay) = (q.mask_fill(none.clone(), 1.0), decay.mask_fill(none, 0.0));
            (g * q.clone() + p.clone() * decay, q) // q (g + wd p)
        }
    }
}

fn norm<B: Backend>(x: &Tensor<B, 1>, rows: usize) -> Tensor<B, 1> {
    sum_of_squares(x, rows).sqrt()
}

fn is_zero<B: Backend>(x: &Tensor<B, 1>) -> Tensor<B, 1, burn::tensor::Bool> {
    x.clone().equal_elem(0.0)
}

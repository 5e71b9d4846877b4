//! The loss and its gradient in closed form: no graph over a `[D, D]` matrix is ever built.
//!
//! In: two embeddings on a backend without gradients. Out: the terms and, where they are wanted, dL/dZ and dL/dZ'.
//! With Zc = Z - mean(Z), Var the unbiased variances, S = sqrt(Var + eps) and mu' = mu / 2 (official) or mu (paper), by hand from
//! paper eqs. (1)-(6):
//!
//! ```text
//! dL/dZ = 2 lambda (Z - Z') / (N D)  -  mu' [S < gamma] Zc / (D (N-1) S)  +  4 nu / (D (N-1)) Zc offdiag(C)
//! Zc offdiag(C) = Zc C - Zc Var = Gram Zc / (N-1) - Zc Var,   C = Zc^T Zc / (N-1),   Gram = Zc Zc^T
//! ```
//!
//! The last equality is the dual form: the smaller matrix, `[N, N]`, replaces `[D, D]`, and its squares' sum is the same. What it
//! subtracts loses digits where D is near N and the embeddings are whitened, hence the bound in [`Form::of`].

use super::{EPS, GAMMA, LossKind, LossOptions, LossTerms};
use crate::learn::ops::{TrainOps, cast, matmul};
use burn::tensor::{Tensor, activation::relu, backend::Backend};

/// The terms of a batch and, where they were asked for, dL/dZ and dL/dZ', `[N, D]` each.
type Closed<B> = (LossTerms<B>, Option<[Tensor<B, 2>; 2]>);

/// Which matrix carries the covariance term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The covariance `[D, D]`, as the paper writes it.
    Primal,
    /// The Gram matrix `[N, N]`.
    Dual,
}

impl Form {
    /// Dual where it costs at most half and keeps its digits: D >= 2 (N - 1).
    pub(super) fn of(n: usize, d: usize) -> Self {
        if d >= 2 * (n - 1) { Self::Dual } else { Self::Primal }
    }
}

/// The loss of `z` and `z_prime`, `[N, D]` each; `gradients`: whether they are wanted.
pub(in crate::learn) fn closed_form<B: TrainOps>(
    z: Tensor<B, 2>,
    z_prime: Tensor<B, 2>,
    options: &LossOptions,
    gradients: bool,
) -> Closed<B> {
    let [n, d] = z.dims();
    with_form(z, z_prime, options, gradients, Form::of(n, d))
}

/// [`closed_form`] by the given matrix: the tests compare them.
pub(super) fn with_form<B: TrainOps>(
    z: Tensor<B, 2>,
    z_prime: Tensor<B, 2>,
    options: &LossOptions,
    gradients: bool,
    form: Form,
) -> Closed<B> {
    let [n, d] = z.dims();
    let difference = z.clone() - z_prime.clone(); // [N, D]
    let s = total(difference.clone().square()) / (n * d) as f64; // [1]
    // The official code averages the branches' variance terms, the paper adds them.
    let share = match options.kind {
        LossKind::Official => 0.5,
        LossKind::Paper => 1.0,
    };
    let [a, b] = [z, z_prime].map(|z| Branch::new(z, options, share, gradients, form));
    let v = (a.variance + b.variance) * share;
    let c = a.covariance + b.covariance;
    let pull = difference * (2.0 * options.invariance / (n * d) as f64); // [N, D]
    let terms = LossTerms {
        loss: s.clone() * options.invariance + v.clone() * options.variance + c.clone() * options.covariance,
        invariance: s,
        variance: v,
        covariance: c,
        embedding_std: (a.std_mean + b.std_mean) / 2.0,
        embedding_std_min: a.std_min.min_pair(b.std_min),
    };
    let gradients = a.gradient.zip(b.gradient);
    (terms, gradients.map(|(a, b)| [a + pull.clone(), b - pull]))
}

/// What one view's embeddings add.
struct Branch<B: Backend> {
    /// v(Z), eq. (1), `[1]`.
    variance: Tensor<B, 1>,
    /// c(Z), eq. (4), `[1]`.
    covariance: Tensor<B, 1>,
    std_mean: Tensor<B, 1>,
    std_min: Tensor<B, 1>,
    /// d(mu' v + nu c)/dZ, `[N, D]`.
    gradient: Option<Tensor<B, 2>>,
}

impl<B: TrainOps> Branch<B> {
    fn new(z: Tensor<B, 2>, options: &LossOptions, share: f64, gradient: bool, form: Form) -> Self {
        let [n, d] = z.dims();
        let (samples, dims) = ((n - 1) as f64, d as f64);
        let centred = z.clone() - z.mean_dim(0); // [N, D] - [1, D]
        let var = centred.clone().square().sum_dim(0) / samples; // [1, D]
        let std = (var.clone() + EPS).sqrt(); // [1, D]
        let spread = var.clone().sqrt();
        let (covariance, mixed) = match form {
            Form::Primal => primal(&centred, gradient),
            Form::Dual => dual(&centred, &var, gradient),
        };
        let gradient = mixed.map(|mixed| {
            let short = std.clone().lower_elem(GAMMA);
            let hinge = std.clone().recip() * (-options.variance * share / (dims * samples)); // [1, D]
            let hinge = hinge.mask_fill(short.bool_not(), 0.0);
            centred * hinge + mixed * (4.0 * options.covariance / (dims * samples))
        });
        Self {
            variance: relu(-std + GAMMA).mean(),
            covariance,
            std_mean: spread.clone().mean(),
            std_min: spread.min(),
            gradient,
        }
    }
}

/// c(Z), and Zc offdiag(C) `[N, D]` where it is wanted, by the covariance `[D, D]`.
fn primal<B: TrainOps>(centred: &Tensor<B, 2>, gradient: bool) -> (Tensor<B, 1>, Option<Tensor<B, 2>>) {
    let [n, d] = centred.dims();
    let diagonal = cast(Tensor::<B, 2>::eye(d, &centred.device()), centred.dtype());
    let cov = matmul(centred.clone().transpose(), centred.clone()) / (n - 1) as f64; // [D, N] [N, D] -> [D, D]
    let off = cov * (-diagonal + 1.0);
    let mixed = gradient.then(|| matmul(centred.clone(), off.clone())); // [N, D] [D, D]
    (total(off.square()) / d as f64, mixed)
}

/// The same by the Gram matrix `[N, N]`: ||Zc^T Zc||_F = ||Zc Zc^T||_F, and the diagonal of C is Var.
fn dual<B: TrainOps>(
    centred: &Tensor<B, 2>,
    var: &Tensor<B, 2>,
    gradient: bool,
) -> (Tensor<B, 1>, Option<Tensor<B, 2>>) {
    let [n, d] = centred.dims();
    let gram = matmul(centred.clone(), centred.clone().transpose()) / (n - 1) as f64; // [N, D] [D, N] -> [N, N]
    let mixed = gradient.then(|| matmul(gram.clone(), centred.clone()) - centred.clone() * var.clone());
    let off = total(gram.square()) - total(var.clone().square());
    (off / d as f64, mixed)
}

/// Sum of all elements, row sums first: flex splits one long sum among its threads in an order that is not fixed.
fn total<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 1> {
    x.sum_dim(1).sum()
}

//! The VICReg loss: invariance, variance and covariance of two views' embeddings.
//!
//! In: two embeddings `[N, D]` of one full global batch. Out: the loss, with its graph, and the terms it is made of.
//! Bardes, Ponce, LeCun, "VICReg", arXiv 2105.04906, section 4.1; the published code is facebookresearch/vicreg, commit
//! 4e12602. They differ in the variance term, hence [`LossKind`].
//! Invariant: both covariance forms are one function of the embeddings; the shapes alone choose the cheaper. Every sum
//! goes row by row, so the loss does not depend on the number of threads.
//!
//! Where the published code differs from ours: it divides the covariance by the *configured* batch - 1 and keeps a short last
//! batch, whose term is then too small; our batches are always full, so N - 1 is the same number.

use burn::tensor::{Tensor, activation::relu, backend::Backend};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Target of a dimension's standard deviation, paper eq. (1).
pub const GAMMA: f64 = 1.0;
/// Added to a variance before its root, paper eq. (2).
pub const EPS: f64 = 1e-4;

/// `[loss]`: which loss, and its three coefficients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossOptions {
    /// `official`: the variance terms of the branches are averaged (published code). `paper`: they are added, so that
    /// variance = 25 there weighs as 50 here (paper eq. (6), solo-learn). Default official.
    pub kind: LossKind,
    /// Coefficient of the invariance term, lambda. Default 25 (paper, section 4.2).
    pub invariance: f64,
    /// Coefficient of the variance term, mu. Default 25 (paper, section 4.2).
    pub variance: f64,
    /// Coefficient of the covariance term, nu. Default 1 (paper, section 4.2).
    pub covariance: f64,
}

/// How the variance terms of the two branches are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// Averaged, as the published code has it.
    Official,
    /// Added, as the paper and solo-learn have it.
    Paper,
}

impl Default for LossOptions {
    fn default() -> Self {
        Self {
            kind: LossKind::Official,
            invariance: 25.0,
            variance: 25.0,
            covariance: 1.0,
        }
    }
}

/// Loss options that cannot be trained with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LossError {
    /// A coefficient is negative, infinite or not a number.
    #[error("`loss.{name}` is {value}, not a finite number of at least 0")]
    Coefficient {
        /// The option's name.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// All coefficients are 0.
    #[error("all coefficients of the loss are 0: there is nothing to learn from")]
    Nothing,
    /// A variance needs two samples.
    #[error("a batch of {batch} has no variance: the loss needs at least 2 images")]
    Batch {
        /// The batch size asked for.
        batch: usize,
    },
}

impl LossOptions {
    /// Checks the coefficients and that a batch of `batch` images has statistics.
    pub fn validate(&self, batch: usize) -> Result<(), LossError> {
        let coefficients = [
            ("invariance", self.invariance),
            ("variance", self.variance),
            ("covariance", self.covariance),
        ];
        for (name, value) in coefficients {
            if !(value.is_finite() && value >= 0.0) {
                return Err(LossError::Coefficient { name, value });
            }
        }
        if coefficients.iter().all(|&(_, value)| value == 0.0) {
            return Err(LossError::Nothing);
        }
        if batch < 2 {
            return Err(LossError::Batch { batch });
        }
        Ok(())
    }
}

/// The loss of a batch; every tensor has one element. Only `loss` is meant to be differentiated.
#[derive(Clone, Debug)]
pub struct LossTerms<B: Backend> {
    /// lambda s + mu v + nu c.
    pub loss: Tensor<B, 1>,
    /// s, before its coefficient.
    pub invariance: Tensor<B, 1>,
    /// v, before its coefficient: the branches' average (`official`) or sum (`paper`).
    pub variance: Tensor<B, 1>,
    /// c, before its coefficient: the branches' sum.
    pub covariance: Tensor<B, 1>,
    /// Standard deviation of a dimension, mean over the dimensions of both branches, without `EPS`: 0 is a collapse.
    pub embedding_std: Tensor<B, 1>,
}

/// The loss of embeddings `z` and `z_prime`, each `[N, D]`, N >= 2 (see [`LossOptions::validate`]). Paper eq. (6):
/// l(Z, Z') = lambda s(Z, Z') + mu (v(Z) + v(Z')) + nu (c(Z) + c(Z')).
///
/// # Panics
/// If the shapes differ or N < 2.
pub fn vicreg_loss<B: Backend>(z: Tensor<B, 2>, z_prime: Tensor<B, 2>, options: &LossOptions) -> LossTerms<B> {
    let [n, d] = z.dims();
    assert!(
        n >= 2 && z_prime.dims() == [n, d],
        "embeddings of one batch have one shape"
    );

    let s = total((z.clone() - z_prime.clone()).square()) / (n * d) as f64; // [1]
    let (a, b) = (Branch::new(z), Branch::new(z_prime));
    let v = a.variance_term() + b.variance_term(); // [1]
    let v = match options.kind {
        LossKind::Official => v / 2.0,
        LossKind::Paper => v,
    };
    let c = a.covariance_term() + b.covariance_term(); // [1]

    LossTerms {
        loss: s.clone() * options.invariance + v.clone() * options.variance + c.clone() * options.covariance,
        embedding_std: (a.mean_std() + b.mean_std()) / 2.0,
        invariance: s.detach(),
        variance: v.detach(),
        covariance: c.detach(),
    }
}

/// One view's embeddings, centred, with their variances.
struct Branch<B: Backend> {
    /// Z - mean(Z), `[N, D]`.
    centred: Tensor<B, 2>,
    /// Unbiased variance of each dimension, `[1, D]`.
    var: Tensor<B, 2>,
}

impl<B: Backend> Branch<B> {
    fn new(z: Tensor<B, 2>) -> Self {
        let n = z.dims()[0];
        let centred = z.clone() - z.mean_dim(0); // [N, D] - [1, D]
        let var = centred.clone().square().sum_dim(0) / (n - 1) as f64; // [1, D]
        Self { centred, var }
    }

    /// Paper eqs. (1) and (2): v(Z) = mean_j max(0, gamma - sqrt(Var(z_j) + eps)). Scalar.
    fn variance_term(&self) -> Tensor<B, 1> {
        let std = (self.var.clone() + EPS).sqrt(); // [1, D]
        relu(-std + GAMMA).mean()
    }

    /// Paper eqs. (3) and (4): c(Z) = 1/D sum over i != j of C(Z)_ij^2, with C(Z) = Zc^T Zc / (N - 1). Scalar.
    fn covariance_term(&self) -> Tensor<B, 1> {
        let [n, d] = self.centred.dims();
        if d >= 2 * (n - 1) {
            self.off_diagonal_dual()
        } else {
            self.off_diagonal_primal()
        }
    }

    /// c(Z) as the paper writes it, from the covariance matrix `[D, D]`.
    fn off_diagonal_primal(&self) -> Tensor<B, 1> {
        let [n, d] = self.centred.dims();
        let cov = self.centred.clone().transpose().matmul(self.centred.clone()) / (n - 1) as f64; // [D, N] [N, D] -> [D, D]
        let off = -Tensor::<B, 2>::eye(d, &cov.device()) + 1.0; // 1 off the diagonal
        total((cov * off).square()) / d as f64
    }

    /// The same from the Gram matrix `[N, N]`: ||Zc^T Zc||_F = ||Zc Zc^T||_F, and the diagonal of C is Var.
    /// D / N times less work. The subtraction loses digits only where D is near N and the embeddings are whitened, so it is
    /// kept for D >= 2 (N - 1).
    fn off_diagonal_dual(&self) -> Tensor<B, 1> {
        let [n, d] = self.centred.dims();
        let gram = self.centred.clone().matmul(self.centred.clone().transpose()) / (n - 1) as f64; // [N, D] [D, N] -> [N, N]
        (total(gram.square()) - total(self.var.clone().square())) / d as f64
    }

    /// mean_j sqrt(Var(z_j)), for the log. Scalar, without a graph.
    fn mean_std(&self) -> Tensor<B, 1> {
        self.var.clone().detach().sqrt().mean()
    }
}

/// Sum of all elements, row sums first: flex splits one long sum among its threads in an order that is not fixed.
fn total<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 1> {
    x.sum_dim(1).sum()
}

#[cfg(test)]
mod tests;

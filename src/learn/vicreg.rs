//! The VICReg loss: invariance, variance and covariance of two views' embeddings.
//!
//! In: two embeddings `[N, D]` of one full global batch. Out: the loss, with its graph, and the terms it is made of.
//! Bardes, Ponce, LeCun, "VICReg", arXiv 2105.04906, section 4.1; the published code is facebookresearch/vicreg, commit
//! 4e12602. They differ in the variance term, hence [`LossKind`].
//! Here: the options, and the loss as one operation; `closed_form` computes it. Invariant: both covariance forms are one
//! function of the embeddings; the shapes alone choose the cheaper. Every sum goes row by row, so the loss does not depend on
//! the number of threads.
//!
//! Where the published code differs from ours: it divides the covariance by the *configured* batch - 1 and keeps a short last
//! batch, whose term is then too small; our batches are always full, so N - 1 is the same number.

mod closed_form;

use super::ops::{TrainOps, primitive};
use burn::tensor::{
    Tensor,
    backend::{AutodiffBackend, Backend},
};
pub(super) use closed_form::closed_form;
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

/// The loss of a batch; every tensor has one element. Only `loss` carries a gradient.
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
    /// The smallest one.
    pub embedding_std_min: Tensor<B, 1>,
}

impl<B: AutodiffBackend> LossTerms<B> {
    /// The terms that the inner backend computed, with the loss as it stands in the graph.
    pub(super) fn from_inner(inner: LossTerms<B::InnerBackend>, loss: Tensor<B, 1>) -> Self {
        let LossTerms {
            loss: _,
            invariance,
            variance,
            covariance,
            embedding_std,
            embedding_std_min,
        } = inner;
        Self {
            loss,
            invariance: Tensor::from_inner(invariance),
            variance: Tensor::from_inner(variance),
            covariance: Tensor::from_inner(covariance),
            embedding_std: Tensor::from_inner(embedding_std),
            embedding_std_min: Tensor::from_inner(embedding_std_min),
        }
    }
}

/// The loss of embeddings `z` and `z_prime`, each `[N, D]`, N >= 2 (see [`LossOptions::validate`]). Paper eq. (6):
/// l(Z, Z') = lambda s(Z, Z') + mu (v(Z) + v(Z')) + nu (c(Z) + c(Z')). One operation of the graph: its gradient is known.
///
/// # Panics
/// If the shapes differ or N < 2.
pub fn vicreg_loss<B: TrainOps>(z: Tensor<B, 2>, z_prime: Tensor<B, 2>, options: &LossOptions) -> LossTerms<B> {
    let [n, d] = z.dims();
    assert!(
        n >= 2 && z_prime.dims() == [n, d],
        "embeddings of one batch have one shape"
    );
    B::vicreg(primitive(z), primitive(z_prime), options)
}

#[cfg(test)]
mod tests;

//! Batch norm with PyTorch's running statistics, for maps `[N, H, W, C]` and for rows `[N, C]`.
//!
//! In: activations and a [`Mode`]. Out: normalised activations; in training also the batch's statistics, which the layer
//! hands out instead of keeping: the trainer decides when they enter the running ones (view 1, then view 2; never in gradient
//! caching's second pass). Invariant: a forward pass changes nothing in the layer.
//! Source: Ioffe and Szegedy 2015; PyTorch's BatchNorm (momentum 0.1, the running variance is the unbiased one).

use super::ops::{TrainOps, primitive, tensor};
use burn::{
    module::{Module, Param, ParamId},
    tensor::{
        Tensor,
        backend::{AutodiffBackend, Backend},
    },
};

/// Added to the variance, as PyTorch does.
pub const EPSILON: f64 = 1e-5;
/// Share of the newest batch in the running statistics, as PyTorch's default.
pub const MOMENTUM: f64 = 0.1;

/// The statistics of one batch (or of several, pooled) in one batch-norm layer. They carry no gradient.
#[derive(Clone, Debug)]
pub struct BatchStats<B: Backend> {
    /// Mean by channel, `[C]`.
    pub mean: Tensor<B, 1>,
    /// Biased variance by channel, `[C]`.
    pub variance: Tensor<B, 1>,
    /// Values a channel: N, or N x H x W.
    pub count: usize,
}

impl<B: Backend> BatchStats<B> {
    /// The statistics of all groups taken together: mean of means and total variance (within + between), weighted by count.
    ///
    /// # Panics
    /// When there is no group.
    pub fn pool(groups: &[Self]) -> Self {
        let count: usize = groups.iter().map(|g| g.count).sum();
        let weighted = |value: &dyn Fn(&Self) -> Tensor<B, 1>| {
            let terms = groups.iter().map(|g| value(g) * (g.count as f64 / count as f64));
            terms.reduce(|a, b| a + b).expect("no group of statistics to pool")
        };
        let mean = weighted(&|g| g.mean.clone());
        let variance = weighted(&|g| {
            let offset = g.mean.clone() - mean.clone();
            g.variance.clone() + offset.clone() * offset
        });
        Self { mean, variance, count }
    }

    /// [`Self::pool`], layer by layer; `groups`: what each of several training passes pushed.
    pub fn pool_layers(groups: &[Vec<Self>]) -> Vec<Self> {
        let layers = groups.first().map_or(0, Vec::len);
        let layer = |at: usize| Self::pool(&groups.iter().map(|group| group[at].clone()).collect::<Vec<_>>());
        (0..layers).map(layer).collect()
    }

    /// The unbiased variance, which PyTorch's running variance averages. One value a channel has none: it stays as it is.
    pub fn unbiased(&self) -> Tensor<B, 1> {
        let n = self.count as f64;
        self.variance.clone() * (n / (n - 1.0).max(1.0))
    }
}

impl<B: AutodiffBackend> BatchStats<B> {
    /// Statistics that were collected without a graph (by the inner module), for a module with one.
    pub fn from_inner(inner: BatchStats<B::InnerBackend>) -> Self {
        Self {
            mean: Tensor::from_inner(inner.mean),
            variance: Tensor::from_inner(inner.variance),
            count: inner.count,
        }
    }
}

/// Which statistics normalise.
#[derive(Debug)]
pub enum Mode<'a, B: Backend> {
    /// The batch's own; each layer pushes them, in the order in which the layers are visited.
    Train(&'a mut Vec<BatchStats<B>>),
    /// The running ones.
    Eval,
}

/// A batch-norm layer: `y = weight (x - mean) / sqrt(variance + 1e-5) + bias` by channel. The names are PyTorch's.
#[derive(Module, Debug)]
pub struct BatchNorm<B: Backend> {
    /// Scale, gamma in the paper, `[C]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Shift, beta in the paper, `[C]`.
    pub bias: Param<Tensor<B, 1>>,
    /// Running mean, `[C]`; not trained.
    pub running_mean: Param<Tensor<B, 1>>,
    /// Running unbiased variance, `[C]`; not trained.
    pub running_var: Param<Tensor<B, 1>>,
}

impl<B: Backend> BatchNorm<B> {
    /// Scale 1, shift 0, running mean 0, running variance 1.
    pub fn new(channels: usize, device: &B::Device) -> Self {
        // `initialized`, not `from_tensor`: running statistics require no gradient.
        let running = |tensor| Param::initialized(ParamId::new(), tensor);
        Self {
            weight: Param::from_tensor(Tensor::ones([channels], device)),
            bias: Param::from_tensor(Tensor::zeros([channels], device)),
            running_mean: running(Tensor::zeros([channels], device)),
            running_var: running(Tensor::ones([channels], device)),
        }
    }

    /// Channels.
    pub fn channels(&self) -> usize {
        self.weight.shape()[0]
    }

    /// The layer after one more batch: `running = 0.9 running + 0.1 batch`, the variance unbiased.
    pub fn update_running(mut self, batch: &BatchStats<B>) -> Self {
        let blend = |running: Tensor<B, 1>, new: Tensor<B, 1>| running * (1.0 - MOMENTUM) + new * MOMENTUM;
        self.running_mean = self.running_mean.map(|running| blend(running, batch.mean.clone()));
        self.running_var = self.running_var.map(|running| blend(running, batch.unbiased()));
        self
    }

    /// The layer with running statistics that are the plain average over `batches` (PyTorch's `momentum=None`).
    ///
    /// # Panics
    /// When there is no batch.
    pub fn calibrate(mut self, batches: &[BatchStats<B>]) -> Self {
        let average = |value: &dyn Fn(&BatchStats<B>) -> Tensor<B, 1>| {
            let sum = batches
                .iter()
                .map(value)
                .reduce(|a, b| a + b)
                .expect("no batch to calibrate with");
            sum / batches.len() as f64
        };
        let (mean, variance) = (average(&|s| s.mean.clone()), average(&|s| s.unbiased()));
        self.running_mean = self.running_mean.map(|_| mean);
        self.running_var = self.running_var.map(|_| variance);
        self
    }
}

impl<B: TrainOps> BatchNorm<B> {
    /// Normalises `x`: `[N, C]` or `[N, H, W, C]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>, mode: &mut Mode<'_, B>) -> Tensor<B, D> {
        self.run(x, None, false, mode)
    }

    /// Normalises and rectifies, in one pass over the data.
    pub fn forward_relu<const D: usize>(&self, x: Tensor<B, D>, mode: &mut Mode<'_, B>) -> Tensor<B, D> {
        self.run(x, None, true, mode)
    }

    /// Normalises, adds the residual and rectifies: the end of a residual block, in one pass over the data.
    pub fn forward_add_relu<const D: usize>(
        &self,
        x: Tensor<B, D>,
        residual: Tensor<B, D>,
        mode: &mut Mode<'_, B>,
    ) -> Tensor<B, D> {
        self.run(x, Some(residual), true, mode)
    }

    fn run<const D: usize>(
        &self,
        x: Tensor<B, D>,
        residual: Option<Tensor<B, D>>,
        relu: bool,
        mode: &mut Mode<'_, B>,
    ) -> Tensor<B, D> {
        let (weight, bias, residual) = (self.weight.val(), self.bias.val(), residual.map(primitive));
        match mode {
            Mode::Train(stats) => {
                let count = x.shape().num_elements() / self.channels();
                let normed = B::norm(
                    primitive(x),
                    primitive(weight),
                    primitive(bias),
                    residual,
                    relu,
                    EPSILON,
                );
                let (mean, variance) = (tensor(normed.mean), tensor(normed.variance));
                stats.push(BatchStats { mean, variance, count });
                tensor(normed.output)
            }
            Mode::Eval => {
                let scale = weight / (self.running_var.val() + EPSILON).sqrt();
                let shift = bias - self.running_mean.val() * scale.clone();
                tensor(B::affine(
                    primitive(x),
                    primitive(scale),
                    primitive(shift),
                    residual,
                    relu,
                ))
            }
        }
    }
}

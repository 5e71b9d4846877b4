//! The whole network: backbone and projector, as both reference codes name encoder and expander.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use serde::Serialize;

use super::expander::{Expander, ExpanderOptions};
use super::norm::{BatchStats, Mode};
use super::ops::TrainOps;
use super::resnet::{ResNet, ResNetOptions};

/// Encoder and expander. Parameter paths are `backbone.*` and `projector.*`.
#[derive(Module, Debug)]
pub struct VicReg<B: Backend> {
    /// Images `[N, 3, H, W]` -> representations `[N, C]`: what is kept.
    pub backbone: ResNet<B>,
    /// Representations -> embeddings `[N, D]`: what the loss sees.
    pub projector: Expander<B>,
}

impl<B: TrainOps> VicReg<B> {
    /// First weights: a function of the options and the seed alone.
    pub fn new(encoder: &ResNetOptions, expander: &ExpanderOptions, seed: u64, device: &B::Device) -> Self {
        let mut position = 0;
        let backbone = ResNet::new(encoder, seed, &mut position, device);
        let features = encoder.representation_dim();
        Self {
            backbone,
            projector: Expander::new(expander, features, seed, &mut position, device),
        }
    }

    /// `x`: `[N, 3, H, W]`, one view -> embeddings `[N, D]`.
    pub fn embed(&self, x: Tensor<B, 4>, mode: &mut Mode<'_, B>) -> Tensor<B, 2> {
        let h = self.backbone.forward(x, mode); // [N, C]
        self.projector.forward(h, mode)
    }
}

impl<B: Backend> VicReg<B> {
    /// The network after one more batch: `batch` is what one training pass pushed, backbone first.
    pub fn update_running(self, batch: &[BatchStats<B>]) -> Self {
        let (backbone, projector) = batch.split_at(self.backbone.norms());
        Self {
            backbone: self.backbone.update_running(backbone),
            projector: self.projector.update_running(projector),
        }
    }
}

/// What training is estimated to need, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// What the graph keeps of the encoder's pass, both views.
    pub activations: u64,
    /// What it keeps of the expander's pass and the loss.
    pub expander: u64,
    /// Weights, gradients, optimiser state and the update's temporaries.
    pub parameters: u64,
}

impl MemoryEstimate {
    /// For batches of `batch` images of `size` x `size` pixels.
    pub fn new(encoder: &ResNetOptions, expander: &ExpanderOptions, batch: u64, size: usize) -> Self {
        let cost = encoder.cost(size);
        let weights = cost.parameters + expander.parameters(encoder.representation_dim());
        let outputs: u64 = expander.dims.iter().map(|&width| width as u64).sum();
        let embedding = expander.dims.last().map_or(0, |&width| width as u64);
        // Weights, gradients, up to two moments, and one more set while the update builds the new weights.
        let parameters = 4 * 5 * weights;
        // A linear output, its norm's and rectifier's, for two views, and their gradients.
        let layers = 2 * 4 * 3 * batch * outputs;
        let statistics = 2 * 4 * embedding.min(batch).pow(2);
        Self {
            activations: 2 * batch * cost.activation_bytes,
            expander: layers + statistics,
            parameters,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.activations + self.expander + self.parameters
    }
}

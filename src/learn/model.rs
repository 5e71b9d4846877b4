//! What VICReg trains: a backbone and, behind it, an expander that is thrown away afterwards.
//!
//! In: normalised images of ONE view. Out: representation (kept) and embedding (what the loss sees). Names of the parameters are
//! those of both reference checkpoints: `backbone.*`, `projector.*`.
//! Invariant: statistics go out in the order backbone, expander, and come back in that order.

use super::expander::{Expander, ExpanderOptions};
use super::norm::{BatchStats, Mode};
use super::ops::TrainOps;
use super::resnet::{ResNet, ResNetOptions};
use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

/// Backbone and expander.
#[derive(Module, Debug)]
pub struct VicReg<B: Backend> {
    /// The encoder, f in the paper.
    pub backbone: ResNet<B>,
    /// The expander, h in the paper.
    pub projector: Expander<B>,
}

impl<B: Backend> VicReg<B> {
    /// A model with fresh weights, a pure function of the options and `seed`. Both options should have passed their `validate`.
    pub fn new(encoder: &ResNetOptions, expander: &ExpanderOptions, seed: u64, device: &B::Device) -> Self {
        let mut position = 0;
        let backbone = ResNet::new(encoder, seed, &mut position, device);
        let projector = Expander::new(expander, backbone.representation_dim(), seed, &mut position, device);
        Self { backbone, projector }
    }

    /// Batch norms, which is how many statistics a training pass pushes.
    pub fn norms(&self) -> usize {
        self.backbone.norms() + self.projector.norms()
    }

    /// The model after one more view's batch. `batch`: what one training pass pushed. Call it for view 1, then for view 2.
    ///
    /// # Panics
    /// If there are not as many statistics as norms.
    pub fn update_running(self, batch: &[BatchStats<B>]) -> Self {
        assert_eq!(batch.len(), self.norms(), "one statistic a norm");
        let (backbone, projector) = batch.split_at(self.backbone.norms());
        Self {
            backbone: self.backbone.update_running(backbone),
            projector: self.projector.update_running(projector),
        }
    }
}

impl<B: TrainOps> VicReg<B> {
    /// Normalised images `[N, 3, S, S]` of one view -> representation `[N, H]` and embedding `[N, D]`.
    pub fn forward(&self, x: Tensor<B, 4>, mode: &mut Mode<'_, B>) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let representation = self.backbone.forward(x, mode);
        let embedding = self.projector.forward(representation.clone(), mode);
        (representation, embedding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::optim::{Optimizer, OptimizerKind, OptimizerOptions};
    use crate::learn::resnet::Stem;
    use crate::learn::vicreg::{LossOptions, vicreg_loss};
    use crate::learn::weights::export;
    use burn::backend::{Autodiff, Flex};
    use burn::optim::GradientsParams;
    use burn::tensor::Distribution;

    type Ad = Autodiff<Flex>;

    fn model(seed: u64) -> VicReg<Ad> {
        let encoder = ResNetOptions {
            depth: 8,
            width: 0.0625,
            stem: Stem::Cifar,
            ..Default::default()
        };
        let expander = ExpanderOptions {
            dims: vec![24, 24, 24],
            ..Default::default()
        };
        VicReg::new(&encoder, &expander, seed, &Default::default())
    }

    #[test]
    fn names_are_the_reference_checkpoints_and_weights_do_not_repeat() {
        let weights = export(&model(1));
        let has = |name: &str| weights.iter().any(|w| w.name == name);
        for name in [
            "backbone.conv1.weight",
            "backbone.layer2.0.downsample.0.weight",
            "projector.0.weight",
            "projector.1.running_var",
            "projector.4.bias",
            "projector.6.weight",
        ] {
            assert!(has(name), "{name}");
        }
        assert!(!has("projector.6.bias") && !has("projector.2.weight"));
        let drawn: Vec<_> = weights.iter().filter(|w| w.shape.len() > 1).collect();
        for (at, one) in drawn.iter().enumerate() {
            for other in &drawn[at + 1..] {
                assert_ne!(one.values[..4], other.values[..4], "{} and {}", one.name, other.name);
            }
        }
        assert_eq!(export(&model(1)), weights);
        assert_ne!(export(&model(2)), weights);
    }

    /// The joints of the room: forward, loss, backward, optimiser, running statistics, on one batch over and over.
    #[test]
    fn a_few_steps_lower_the_loss() {
        let device = Default::default();
        let draw = || Tensor::<Ad, 4>::random([16, 3, 8, 8], Distribution::Normal(0.0, 1.0), &device);
        let x = draw();
        let views = [x.clone() + draw() * 0.3, x + draw() * 0.3];
        let options = OptimizerOptions {
            kind: OptimizerKind::Adamw,
            weight_decay: 1e-4,
            ..Default::default()
        };
        let (mut model, mut optimizer) = (model(3), Optimizer::new(options));
        let mut losses = Vec::new();
        for _ in 0..12 {
            let mut stats: [Vec<BatchStats<Ad>>; 2] = Default::default();
            let [z, z_prime] =
                std::array::from_fn(|v| model.forward(views[v].clone(), &mut Mode::Train(&mut stats[v])).1);
            assert_eq!(stats[0].len(), model.norms());
            let terms = vicreg_loss(z, z_prime, &LossOptions::default());
            losses.push(terms.loss.to_data().to_vec::<f32>().unwrap()[0]);
            let grads = GradientsParams::from_grads(terms.loss.backward(), &model);
            model = optimizer.step(5e-3, model, grads);
            model = model.update_running(&stats[0]).update_running(&stats[1]);
        }
        assert!(losses[11] < 0.9 * losses[0], "{losses:?}");
        // Every trained parameter has a state, and nothing else has.
        let weights = export(&model);
        let trained = weights.iter().filter(|w| !w.name.contains("running_")).count();
        assert_eq!(optimizer.state().len(), 3 * trained);
        let means = weights.iter().find(|w| w.name == "projector.1.running_mean").unwrap();
        assert!(means.values.iter().any(|&m| m != 0.0));
    }
}

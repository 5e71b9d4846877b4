//! The whole network: backbone and projector, as both reference codes name encoder and expander.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::expander::{Expander, ExpanderOptions};
use super::norm::{BatchStats, Mode};
use super::ops::TrainOps;
use super::resnet::{ResNet, ResNetOptions};

/// Encoder and expander. Parameter paths are `backbone.*` and `projector.*`.
#[derive(Module, Debug)]
pub struct VicReg<B: Backend> {
    /// Images `[N, H, W, 3]` -> representations `[N, C]`: what is kept.
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

    /// `x`: `[N, H, W, 3]`, one view -> embeddings `[N, D]`.
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
        let draw = || Tensor::<Ad, 4>::random([16, 8, 8, 3], Distribution::Normal(0.0, 1.0), &device);
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
            let [z, z_prime] = std::array::from_fn(|v| model.embed(views[v].clone(), &mut Mode::Train(&mut stats[v])));
            let terms = vicreg_loss(z, z_prime, &LossOptions::default());
            losses.push(terms.loss.to_data().to_vec::<f32>().unwrap()[0]);
            let grads = GradientsParams::from_grads(terms.loss.backward(), &model);
            model = optimizer.step(5e-3, model, grads, None);
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

//! Gradient caching against one graph over the whole batch with the same batch-norm groups.

use super::*;
use crate::learn::expander::ExpanderOptions;
use crate::learn::input::Normalize;
use crate::learn::optim::{Optimizer, OptimizerKind, OptimizerOptions};
use crate::learn::options::Precision;
use crate::learn::resnet::{ResNetOptions, Stem};
use crate::learn::schedule::{Schedule, ScheduleOptions};
use crate::learn::trainer::Method;
use crate::learn::vicreg::LossOptions;
use crate::learn::weights::export;
use burn::backend::{Autodiff, Flex};
use burn::module::{ModuleVisitor, Param};
use burn::tensor::backend::Backend;

type Ad = Autodiff<Flex>;

const N: usize = 12;
const SIDE: usize = 8;

fn trainer(micro_batch: Option<usize>) -> Trainer<Ad> {
    let encoder = ResNetOptions {
        depth: 10,
        width: 0.0625,
        stem: Stem::Cifar,
        zero_init_residual: false,
        ..Default::default()
    };
    let expander = ExpanderOptions {
        dims: vec![24, 24, 16],
        ..Default::default()
    };
    let optimizer = OptimizerOptions {
        kind: OptimizerKind::Sgd,
        ..Default::default()
    };
    let schedule = ScheduleOptions {
        base_lr: 0.05,
        scale_by_batch: false,
        warmup_epochs: 0.0,
        ..Default::default()
    };
    let (schedule, _) = Schedule::new(&schedule, N as u64, 10, 10).unwrap();
    let method = Method {
        loss: LossOptions::default(),
        input: Normalize {
            mean: [0.5; 3],
            std: [0.25; 3],
        },
        precision: Precision::F32,
        micro_batch,
    };
    let model = VicReg::new(&encoder, &expander, 3, &Default::default());
    Trainer::new(model, Optimizer::new(optimizer), schedule, method, Default::default())
}

fn batch(seed: u32) -> Uploaded<Ad> {
    let bytes = 2 * N * SIDE * SIDE * 3;
    let byte = |i: u32| ((i ^ seed.wrapping_mul(0x85EB_CA6B)).wrapping_mul(0x9E37_79B9) >> 24) as u8;
    let pixels: Vec<u8> = (0..bytes as u32).map(byte).collect();
    Uploaded::new(pixels.into(), 2, SIDE, &Default::default())
}

/// Every gradient by its parameter's place in the walk.
fn values(model: &VicReg<Ad>, gradients: &GradientsParams) -> Vec<Vec<f32>> {
    struct Collect<'a>(&'a GradientsParams, Vec<Vec<f32>>);
    impl<B: Backend> ModuleVisitor<B> for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.0.get::<Flex, D>(param.id) {
                self.1.push(gradient.into_data().to_vec().unwrap());
            }
        }
    }
    let mut collect = Collect(gradients, Vec::new());
    burn::module::Module::<Ad>::visit(model, &mut collect);
    collect.1
}

/// Largest difference, relative to the largest value of the same tensor.
fn off(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let tensor = |(f, e): (&Vec<f32>, &Vec<f32>)| {
        let scale = e.iter().fold(1e-20f32, |m, e| m.max(e.abs()));
        f.iter().zip(e).fold(0.0f32, |m, (f, e)| m.max((f - e).abs())) / scale
    };
    found.iter().zip(expected).map(tensor).fold(0.0, f32::max)
}

/// One graph over everything: each group of each view through the encoder, all representations through expander and loss.
fn direct(trainer: &Trainer<Ad>, rows: usize) -> (f64, Vec<Vec<f32>>) {
    let batch = batch(1);
    let [z, z_prime] = [0, 1].map(|view| {
        let groups = groups_of(N, rows).map(|range| {
            let x = trainer.view(&batch, view, range);
            trainer.model.backbone.forward(x, &mut Mode::Train(&mut Vec::new()))
        });
        let h = Tensor::cat(groups.collect(), 0);
        trainer.model.projector.forward(h, &mut Mode::Train(&mut Vec::new()))
    });
    let loss = vicreg_loss(z, z_prime, &trainer.method.loss).loss;
    let gradients = GradientsParams::from_grads(loss.backward(), &trainer.model);
    let loss = loss.into_data().iter::<f64>().next().unwrap();
    (loss, values(&trainer.model, &gradients))
}

fn loss(computed: &Computed<Ad>) -> f64 {
    computed.terms.loss.to_data().iter::<f64>().next().unwrap()
}

#[test]
fn cached_gradients_are_those_of_one_graph_with_the_same_groups() {
    for rows in [4, 6, 3] {
        let trainer = trainer(Some(rows));
        let computed = trainer.gradients(batch(1));
        let (expected_loss, expected) = direct(&trainer, rows);
        assert_eq!(loss(&computed), expected_loss, "{rows}");
        let found = values(&trainer.model, &computed.gradients);
        let trained = export(&trainer.model)
            .iter()
            .filter(|w| !w.name.contains("running_"))
            .count();
        assert_eq!(found.len(), trained, "every trained parameter has its gradient");
        assert!(off(&found, &expected) < 2e-5, "{rows}: {}", off(&found, &expected));
        // The groups matter: without them the gradients are others.
        let (_, whole) = direct(&trainer, N);
        assert!(off(&found, &whole) > 1e-2);
    }
}

#[test]
fn a_micro_batch_of_the_whole_batch_is_the_usual_step_bit_for_bit() {
    let (mut cached, mut usual) = (trainer(Some(N)), trainer(None));
    for seed in 0..3 {
        let terms = [&mut cached, &mut usual].map(|trainer| trainer.train_step(batch(seed), true).wait());
        assert_eq!(terms[0], terms[1]);
    }
    assert_eq!(export(&cached.model), export(&usual.model));
}

/// The groups of a view are pooled into one update: what the first batch norm sees depends on no other, so its statistics are the
/// whole batch's. The second pass updates nothing.
#[test]
fn running_statistics_are_updated_once_a_view_with_the_total_variance() {
    let (mut cached, mut usual) = (trainer(Some(4)), trainer(None));
    cached.train_step(batch(1), false);
    usual.train_step(batch(1), false);
    let first = |trainer: &Trainer<Ad>, name: &str| {
        let weights = export(&trainer.model);
        weights.into_iter().find(|w| w.name == name).unwrap().values
    };
    for name in ["backbone.bn1.running_mean", "backbone.bn1.running_var"] {
        let (found, expected) = (first(&cached, name), first(&usual, name));
        assert!(off(&[found], &[expected]) < 1e-5, "{name}");
    }
    let deep = "backbone.layer3.0.bn2.running_var";
    assert!(off(&[first(&cached, deep)], &[first(&usual, deep)]) > 1e-3);
}

#[test]
fn the_usual_step_is_one_graph() {
    let trainer = trainer(None);
    let computed = trainer.gradients(batch(1));
    let (expected_loss, expected) = direct(&trainer, N);
    assert_eq!(loss(&computed), expected_loss);
    let error = off(&values(&trainer.model, &computed.gradients), &expected);
    assert!(error < 2e-5, "{error}");
}

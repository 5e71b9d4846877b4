//! Where a training step's time goes, operation by operation, and how far each is from the device's matrix peak.
//!
//! In: a model, what its recipe says of a step, and the whole step as `step` timed it. Out: [`OpsSpeed`], a table. `rows` says what
//! is called and how often, `maps` makes tensors as a step has them, `clock` times, `table` reports. Invariant: the rows and the rest
//! are the whole step. The rest is what no row is: the graph, casts, the sum of both views' gradients, running statistics, memory that
//! a step touches anew where a repeated call finds it warm; and noise, so it may be below 0.

mod clock;
mod maps;
mod rows;
mod table;

use super::step::StepSpeed;
use crate::learn::input::Normalize;
use crate::learn::model::VicReg;
use crate::learn::norm::{EPSILON, Mode};
use crate::learn::ops::{TrainAd, TrainOps, average, cast, tensor};
use crate::learn::optim::{Optimizer, OptimizerOptions};
use crate::learn::options::Precision;
use crate::learn::resnet::{Layer, POOL, POOL_KERNEL};
use crate::learn::vicreg::{LossOptions, vicreg_loss};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};
use clock::{Clock, Spent};
use maps::{Inner, Maps};
use rows::{Cut, Op, Row};
use std::time::Duration;
pub use table::{OpSpeed, OpsSpeed, Part};

/// Smaller than any rate that training takes: the weights stay what they are, and an update costs the same.
const RATE: f64 = 1e-6;

/// What a recipe says of a step.
#[derive(Clone, Debug)]
pub struct Work {
    /// The encoder's convolutions, see [`crate::learn::resnet::ResNetOptions::layers`].
    pub layers: Vec<Layer>,
    /// Outputs of the expander's layers.
    pub expander: Vec<usize>,
    /// The expander's trained values.
    pub expander_parameters: u64,
    /// Loss and coefficients.
    pub loss: LossOptions,
    /// The update rule.
    pub optimizer: OptimizerOptions,
    /// From bytes to what the network takes.
    pub normalize: Normalize,
    /// Type that is computed in.
    pub precision: Precision,
    /// Images in a batch.
    pub batch_size: usize,
    /// Images that the encoder takes at a time; `None`: the whole batch.
    pub micro_batch: Option<usize>,
}

/// Times every operation of a step of `model` on random values, each for `time`. `step`: the whole one.
pub fn ops<B: TrainAd>(
    model: &VicReg<B>,
    work: &Work,
    step: StepSpeed,
    device: &B::Device,
    time: Duration,
) -> OpsSpeed {
    let bench = Bench::new(model, work, device, time);
    let ops: Vec<OpSpeed> = bench
        .rows()
        .iter()
        .map(|row| OpSpeed::new(row, bench.time(row), &step))
        .collect();
    OpsSpeed::new(step, ops)
}

/// What the measurements share.
struct Bench<'a, B: TrainAd> {
    model: &'a VicReg<B>,
    work: &'a Work,
    cut: Cut,
    maps: Maps<'a, B>,
    clock: Clock<'a, B>,
}

impl<'a, B: TrainAd> Bench<'a, B> {
    fn new(model: &'a VicReg<B>, work: &'a Work, device: &'a B::Device, time: Duration) -> Self {
        let cut = Cut::new(work.batch_size, work.micro_batch);
        Self {
            model,
            work,
            cut,
            maps: Maps {
                layers: &work.layers,
                rows: cut.rows,
                dtype: work.precision.dtype(),
                normalize: work.normalize,
                device: device.clone(),
            },
            clock: Clock { device, time },
        }
    }

    fn rows(&self) -> Vec<Row> {
        let work = self.work;
        let widths = std::iter::once(self.model.backbone.representation_dim()).chain(work.expander.iter().copied());
        let expander = widths.map(|width| width.to_string()).collect::<Vec<_>>().join(">");
        let parameters = self.model.backbone.num_parameters() as u64 + work.expander_parameters;
        let mut rows = rows::encoder_rows(&work.layers, self.cut);
        rows.extend(rows::other_rows(
            self.cut,
            work.layers[0].side,
            &expander,
            work.expander_parameters,
            parameters,
        ));
        rows
    }

    fn time(&self, row: &Row) -> Spent {
        match (row.op, &row.layer) {
            (Op::Images, _) => self.images(),
            (Op::Expander, _) => self.expander(),
            (Op::Loss, _) => self.loss(),
            (Op::Update, _) => self.update(),
            (Op::PoolForward | Op::PoolBackward, _) => self.pool(row.op),
            (op, Some(layer)) => match op {
                Op::NormForward | Op::NormBackward => self.norm(op, layer),
                Op::Average => self.average(layer),
                Op::GradientSum => self.gradient_sum(layer),
                _ => self.convolution(op, layer),
            },
            (op, None) => unreachable!("{op:?} is a layer's"),
        }
    }

    fn convolution(&self, op: Op, layer: &Layer) -> Spent {
        let (x, weight, args) = (self.maps.input(layer), self.maps.weight(layer), layer.args);
        if op == Op::ConvForward {
            let call = |(x, weight)| Inner::<B>::conv(x, weight, args);
            return self.clock.mean(|| (x.clone(), weight.clone()), call);
        }
        let gradient = self.maps.output_gradient(layer);
        let prepare = || (x.clone(), weight.clone(), gradient.clone());
        match op {
            Op::ConvInputGrad => self.clock.mean(prepare, |(x, weight, grad)| {
                Inner::<B>::conv_input_grad(x, weight, grad, args)
            }),
            _ => self.clock.mean(prepare, |(x, weight, grad)| {
                Inner::<B>::conv_weight_grad(x, weight, grad, args)
            }),
        }
    }

    fn norm(&self, op: Op, layer: &Layer) -> Spent {
        let saved = self.maps.norm_saved(layer);
        if op == Op::NormForward {
            let ([gamma, beta], residual) = (self.maps.scale_shift(layer.outputs), self.maps.residual(layer));
            let (x, relu) = (saved.input, saved.rectified.is_some());
            let prepare = || (x.clone(), gamma.clone(), beta.clone(), residual.clone());
            return self.clock.mean(prepare, |(x, gamma, beta, residual)| {
                Inner::<B>::norm(x, gamma, beta, residual, relu, EPSILON)
            });
        }
        let gradients = self.maps.gradients(layer.outputs, layer.output_side());
        let prepare = || (saved.clone(), gradients());
        self.clock
            .mean(prepare, |(saved, grad)| Inner::<B>::norm_grad(saved, grad))
    }

    fn pool(&self, op: Op) -> Spent {
        if op == Op::PoolForward {
            let x = self.maps.pool_input();
            let call = |x| Inner::<B>::max_pool(x, POOL_KERNEL, POOL);
            return self.clock.mean(|| x.clone(), call);
        }
        let ([x, y], gradients) = (self.maps.pooled(), self.maps.pool_gradients());
        let prepare = || (x.clone(), y.clone(), gradients());
        self.clock.mean(prepare, |(x, y, grad)| {
            Inner::<B>::max_pool_grad(x, y, grad, POOL_KERNEL, POOL)
        })
    }

    fn average(&self, last: &Layer) -> Spent {
        let maps: Tensor<Inner<B>, 4> = tensor(self.maps.norm_saved(last).rectified.expect("it ends a block"));
        let maps = Tensor::<B, 4>::from_inner(maps).require_grad();
        let asked = self.maps.random([self.cut.rows, last.outputs]);
        let asked = Tensor::<B, 2>::from_inner(cast(asked, self.maps.dtype));
        self.clock.mean(
            || (maps.clone(), asked.clone()),
            |(maps, asked)| (average(maps) * asked).sum().backward(),
        )
    }

    fn gradient_sum(&self, opener: &Layer) -> Spent {
        let (block, shortcut) = (self.maps.input_gradients(opener), self.maps.shortcut_gradients(opener));
        self.clock.mean(
            || (block(), shortcut()),
            |(block, shortcut)| Inner::<B>::accumulate(block, shortcut),
        )
    }

    fn images(&self) -> Spent {
        let batch = self.maps.pixels(self.work.layers[0].side);
        self.clock.mean(|| (), |()| self.maps.images(&batch))
    }

    /// Rows of random values, one set a view.
    fn views(&self, width: usize, dtype: DType) -> [Tensor<B, 2>; 2] {
        let draw = || Tensor::from_inner(cast(self.maps.random([self.cut.batch, width]), dtype));
        [draw(), draw()]
    }

    /// Both views and back, as in the second phase of a step; in place of the loss a product with fixed values.
    fn expander(&self) -> Spent {
        let projector = &self.model.projector;
        let h = self.views(self.model.backbone.representation_dim(), self.maps.dtype);
        let h = h.map(Tensor::require_grad);
        let pull = self.views(self.embedding(), DType::F32);
        let call = |(h, pull): ([Tensor<B, 2>; 2], [Tensor<B, 2>; 2])| {
            let pulled = h.into_iter().zip(pull).map(|(h, pull)| {
                let z = projector.forward(h, &mut Mode::Train(&mut Vec::new()));
                (cast(z, DType::F32) * pull).sum()
            });
            let sum = pulled.reduce(|one, other| one + other);
            sum.expect("there are two views").backward()
        };
        self.clock.mean(|| (h.clone(), pull.clone()), call)
    }

    fn embedding(&self) -> usize {
        *self.work.expander.last().expect("an expander has a layer")
    }

    fn loss(&self) -> Spent {
        let z = self.views(self.embedding(), DType::F32).map(Tensor::require_grad);
        self.clock.mean(
            || z.clone(),
            |[z, z_prime]| vicreg_loss(z, z_prime, &self.work.loss).loss.backward(),
        )
    }

    /// The update of all parameters. A batch of two images is enough for gradients, which a step owns alone, in the layout of a step's.
    fn update(&self) -> Spent {
        let mut optimizer = Optimizer::<B>::new(self.work.optimizer.clone());
        let mut model = self.model.clone();
        let side = self.work.layers[0].side;
        let prepare = || {
            let embed = || {
                let x = cast(self.maps.random([2, side, side, 3]), self.maps.dtype);
                let z = self
                    .model
                    .embed(Tensor::from_inner(x), &mut Mode::Train(&mut Vec::new()));
                cast(z, DType::F32)
            };
            let loss = vicreg_loss(embed(), embed(), &self.work.loss).loss;
            GradientsParams::from_grads(loss.backward(), self.model)
        };
        self.clock.mean(prepare, |gradients| {
            model = optimizer.step(RATE, model.clone(), gradients, None);
        })
    }
}

#[cfg(test)]
mod tests;

//! Where a training step's time goes, operation by operation, and how far each is from the device's matrix peak.
//!
//! In: a model, what its recipe says of a step, and the whole step as `step` timed it. Out: [`OpsSpeed`], a table. `rows` says what is
//! called and how often, `maps` makes tensors as a step has them, `clock` times. Invariant: the rows and the rest are the whole step.
//! The rest is what no row is: the graph, casts, sums of gradients of both views, running statistics; and noise, so it may be below 0.

mod clock;
mod maps;
mod rows;

use super::step::StepSpeed;
use crate::learn::input::Normalize;
use crate::learn::model::VicReg;
use crate::learn::norm::{EPSILON, Mode};
use crate::learn::ops::{TrainAd, TrainOps, cast, tensor};
use crate::learn::optim::{Optimizer, OptimizerOptions};
use crate::learn::options::Precision;
use crate::learn::resnet::{Layer, averaged};
use crate::learn::vicreg::{LossOptions, vicreg_loss};
use burn::optim::GradientsParams;
use burn::tensor::ops::FloatTensorOps as _;
use burn::tensor::{DType, Tensor};
use clock::{Clock, Spent};
use maps::{Inner, Maps, PoolSaved};
use rows::{Cut, Op, Row};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

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

/// One distinct operation of a step.
#[derive(Clone, Debug, Serialize)]
pub struct OpSpeed {
    /// Its name.
    pub op: &'static str,
    /// The maps it works on; a convolution's inputs, outputs, kernel / stride, and the side of what it reads.
    pub shape: String,
    /// Calls a step.
    pub calls_per_step: u32,
    /// Milliseconds a call.
    pub wall_ms: f64,
    /// Milliseconds of CPU time a call, all threads. `None` where the system does not tell.
    pub cpu_ms: Option<f64>,
    /// Floating-point operations of a call, 2 a multiply-add. `None` where it is no product.
    pub flops: Option<f64>,
    /// Thousand millions of them a second.
    pub gflops_per_s: Option<f64>,
    /// How much of the device's matrix product that is.
    pub share_of_matmul_peak: Option<f64>,
    /// All calls of a step, and their share of it.
    #[serde(flatten)]
    pub per_step: Part,
}

/// A part of a step.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Part {
    /// Milliseconds a step.
    pub wall_ms_per_step: f64,
    /// Milliseconds of CPU time a step.
    pub cpu_ms_per_step: Option<f64>,
    /// Share of the step's time.
    pub share_of_step: f64,
}

/// The whole step and its parts.
#[derive(Clone, Debug, Serialize)]
pub struct OpsSpeed {
    /// The whole step.
    #[serde(flatten)]
    pub step: StepSpeed,
    /// Threads of the CPU backend.
    pub threads: usize,
    /// Every distinct operation.
    pub ops: Vec<OpSpeed>,
    /// All of them.
    pub sum: Part,
    /// What the step takes besides.
    pub rest: Part,
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
            return self.clock.mean(|| x.clone(), PoolSaved::<B>::forward);
        }
        let (saved, gradients) = (self.maps.pool_saved(), self.maps.pool_gradients());
        self.clock.mean(gradients, |grad| saved.backward(grad))
    }

    fn average(&self, last: &Layer) -> Spent {
        let maps: Tensor<Inner<B>, 4> = tensor(self.maps.norm_saved(last).rectified.expect("it ends a block"));
        let maps = Tensor::<B, 4>::from_inner(maps).require_grad();
        let asked = self.maps.random([self.cut.rows, last.outputs]);
        let asked = Tensor::<B, 2>::from_inner(cast(asked, self.maps.dtype));
        self.clock.mean(
            || (maps.clone(), asked.clone()),
            |(maps, asked)| (averaged(maps) * asked).sum().backward(),
        )
    }

    fn gradient_sum(&self, opener: &Layer) -> Spent {
        let (block, shortcut) = (self.maps.input_gradients(opener), self.maps.shortcut_gradients(opener));
        self.clock.mean(
            || (block(), shortcut()),
            |(block, shortcut)| Inner::<B>::float_add(block, shortcut),
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
                let x = cast(self.maps.random([2, 3, side, side]), self.maps.dtype);
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

impl OpSpeed {
    fn new(row: &Row, spent: Spent, step: &StepSpeed) -> Self {
        let flops = (row.multiply_adds > 0).then_some(2.0 * row.multiply_adds as f64);
        let calls = f64::from(row.calls);
        let rate = flops.map(|flops| flops / spent.wall);
        Self {
            op: row.op.name(),
            shape: row.shape.clone(),
            calls_per_step: row.calls,
            wall_ms: 1e3 * spent.wall,
            cpu_ms: spent.cpu.map(|cpu| 1e3 * cpu),
            flops,
            gflops_per_s: rate.map(|rate| rate / 1e9),
            share_of_matmul_peak: rate.map(|rate| rate / step.matmul_flops_per_s),
            per_step: Part::new(calls * spent.wall, spent.cpu.map(|cpu| calls * cpu), step),
        }
    }
}

impl Part {
    /// From seconds.
    fn new(wall: f64, cpu: Option<f64>, step: &StepSpeed) -> Self {
        Self {
            wall_ms_per_step: 1e3 * wall,
            cpu_ms_per_step: cpu.map(|cpu| 1e3 * cpu),
            share_of_step: wall / step.wall_s_per_step,
        }
    }

    /// All of these.
    fn sum<'a>(parts: impl Iterator<Item = &'a Self>) -> Self {
        let none = Self {
            cpu_ms_per_step: Some(0.0),
            ..Self::default()
        };
        parts.fold(none, |sum, part| sum.and(part, 1.0))
    }

    /// With `times` the other.
    fn and(self, other: &Self, times: f64) -> Self {
        let cpu = self.cpu_ms_per_step.zip(other.cpu_ms_per_step);
        Self {
            wall_ms_per_step: self.wall_ms_per_step + times * other.wall_ms_per_step,
            cpu_ms_per_step: cpu.map(|(one, other)| one + times * other),
            share_of_step: self.share_of_step + times * other.share_of_step,
        }
    }
}

impl OpsSpeed {
    fn new(step: StepSpeed, ops: Vec<OpSpeed>) -> Self {
        let sum = Part::sum(ops.iter().map(|op| &op.per_step));
        let whole = Part::new(step.wall_s_per_step, step.cpu_s_per_step, &step);
        Self {
            rest: whole.and(&sum, -1.0),
            threads: rayon::current_num_threads(),
            step,
            ops,
            sum,
        }
    }

    /// Operations of one name together, in the order of the table.
    fn kinds(&self) -> Vec<(&'static str, Part)> {
        let mut names: Vec<&'static str> = self.ops.iter().map(|op| op.op).collect();
        let mut seen = Vec::new();
        names.retain(|name| {
            let new = !seen.contains(name);
            seen.push(*name);
            new
        });
        let of = |name: &'static str| {
            let ops = self.ops.iter().filter(|op| op.op == name);
            (name, Part::sum(ops.map(|op| &op.per_step)))
        };
        names.into_iter().map(of).collect()
    }
}

/// A number, or a sign that there is none, in `width` columns.
fn column(value: Option<f64>, width: usize, digits: usize) -> String {
    value.map_or_else(|| format!("{:>width$}", "-"), |value| format!("{value:width$.digits$}"))
}

impl fmt::Display for OpSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peak = self.share_of_matmul_peak.map(|share| 100.0 * share);
        write!(
            f,
            "{:<17} {:<24} {:>5} {:10.3} {} {} {} {}",
            self.op,
            self.shape,
            self.calls_per_step,
            self.wall_ms,
            column(self.cpu_ms, 10, 3),
            column(self.gflops_per_s, 8, 1),
            column(peak, 7, 1),
            self.per_step
        )
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:10.2} {} {:7.1}",
            self.wall_ms_per_step,
            column(self.cpu_ms_per_step, 10, 2),
            100.0 * self.share_of_step
        )
    }
}

impl fmt::Display for OpsSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.step)?;
        writeln!(f, "operation by operation, {} threads:", self.threads)?;
        writeln!(
            f,
            "  {:<17} {:<24} {:>5} {:>10} {:>10} {:>8} {:>7} {:>10} {:>10} {:>7}",
            "", "shape", "calls", "ms a call", "CPU-ms", "GFLOP/s", "% peak", "ms a step", "CPU-ms", "% step"
        )?;
        for op in &self.ops {
            writeln!(f, "  {op}")?;
        }
        writeln!(f, "together:{:>91} {:>10} {:>7}", "ms a step", "CPU-ms", "% step")?;
        let whole = self.sum.and(&self.rest, 1.0);
        let lines = self.kinds().into_iter();
        for (name, part) in lines.chain([("sum", self.sum), ("rest", self.rest), ("whole step", whole)]) {
            writeln!(f, "  {name:<87} {part}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::backend::CpuAd;
    use crate::learn::expander::ExpanderOptions;
    use crate::learn::resnet::{ResNetOptions, Stem};

    const SIDE: usize = 32;
    const BATCH: usize = 4;

    fn network(stem: Stem) -> (ResNetOptions, ExpanderOptions) {
        let encoder = ResNetOptions {
            depth: 10,
            width: 0.0625,
            stem,
            ..Default::default()
        };
        let expander = ExpanderOptions {
            dims: vec![24, 16],
            ..Default::default()
        };
        (encoder, expander)
    }

    /// The whole step of such a network, as if it took a second.
    fn step(encoder: &ResNetOptions, expander: u64) -> StepSpeed {
        StepSpeed {
            device: "test".to_owned(),
            precision: Precision::F32,
            batch_size: BATCH as u32,
            steps: 1,
            wall_s_per_step: 1.0,
            cpu_s_per_step: Some(2.0),
            images_per_s: 4.0,
            flops_per_step: 12.0 * BATCH as f64 * (encoder.cost(SIDE).multiply_adds + expander) as f64,
            matmul_flops_per_s: 1e10,
            share_of_matmul_peak: 0.1,
        }
    }

    fn measured(stem: Stem, precision: Precision, micro_batch: Option<usize>) -> OpsSpeed {
        let (encoder, expander) = network(stem);
        let parameters = expander.parameters(encoder.representation_dim());
        let work = Work {
            layers: encoder.layers(SIDE),
            expander: expander.dims.clone(),
            expander_parameters: parameters,
            loss: LossOptions::default(),
            optimizer: OptimizerOptions::default(),
            normalize: Normalize {
                mean: [0.5; 3],
                std: [0.25; 3],
            },
            precision,
            batch_size: BATCH,
            micro_batch,
        };
        let device = Default::default();
        let model = VicReg::<CpuAd>::new(&encoder, &expander, 1, &device);
        let time = Duration::from_micros(200);
        ops(&model, &work, step(&encoder, parameters), &device, time)
    }

    #[test]
    fn the_rows_and_the_rest_are_the_whole_step() {
        let speed = measured(Stem::Imagenet, Precision::F32, None);
        for op in &speed.ops {
            assert!(op.wall_ms.is_finite() && op.wall_ms > 0.0, "{op}");
            assert!(op.cpu_ms.is_none_or(|cpu| cpu.is_finite() && cpu >= 0.0), "{op}");
            let ms = op.wall_ms * f64::from(op.calls_per_step);
            assert!((op.per_step.wall_ms_per_step - ms).abs() < 1e-9, "{op}");
        }
        let sum = speed.ops.iter().map(|op| op.per_step.share_of_step).sum::<f64>();
        assert!((speed.sum.share_of_step - sum).abs() < 1e-9);
        assert!((sum + speed.rest.share_of_step - 1.0).abs() < 1e-9);
        let kinds = speed.kinds();
        assert_eq!(kinds.len(), 13, "{kinds:?}");
        let of_kinds: f64 = kinds.iter().map(|(_, part)| part.wall_ms_per_step).sum();
        assert!((of_kinds - speed.sum.wall_ms_per_step).abs() < 1e-9);
        if cfg!(target_os = "linux") {
            let cpu = |part: &Part| part.cpu_ms_per_step.unwrap();
            assert!((cpu(&speed.sum) + cpu(&speed.rest) - 2000.0).abs() < 1e-6);
        }

        // All products of the step but the images' gradient.
        let flops: f64 = speed
            .ops
            .iter()
            .map(|op| f64::from(op.calls_per_step) * op.flops.unwrap_or(0.0))
            .sum();
        let stem = network(Stem::Imagenet).0.layers(SIDE)[0].multiply_adds();
        let expected = speed.step.flops_per_step - 4.0 * BATCH as f64 * stem as f64;
        assert!((flops / expected - 1.0).abs() < 1e-12, "{flops} for {expected}");

        let text = speed.to_string();
        let table = text.lines().skip_while(|line| !line.contains("shape"));
        let widths: Vec<usize> = table.map(|line| line.chars().count()).collect();
        assert!(widths.len() == 1 + speed.ops.len() + 1 + 13 + 3, "{text}");
        assert!(
            widths.iter().all(|&width| width == widths[0]),
            "columns are aligned:\n{text}"
        );
    }

    /// Every kind of tensor that a recipe can ask for goes through every operation.
    #[test]
    fn precision_and_micro_batches_are_those_of_the_recipe() {
        for (stem, precision, micro) in [
            (Stem::Cifar, Precision::F32, Some(2)),
            (Stem::Imagenet, Precision::Bf16, None),
        ] {
            let speed = measured(stem, precision, micro);
            let calls = |name: &str| {
                let first = speed.ops.iter().find(|op| op.op == name);
                first.unwrap_or_else(|| panic!("no {name}")).calls_per_step
            };
            let (parts, forwards) = if micro.is_some() { (2, 2) } else { (1, 1) };
            assert_eq!(calls("images"), 2 * parts * forwards);
            assert_eq!(calls("conv forward"), 2 * parts * forwards);
            assert_eq!(calls("conv weight grad"), 2 * parts);
            assert_eq!((calls("conv input grad"), calls("loss")), (0, 1));
        }
    }

    /// What is timed is what the network computes: here the last stage's maps, laid out by the operations that make them.
    #[test]
    fn tensors_have_the_shapes_of_the_network() {
        use burn::tensor::TensorMetadata as _;
        let (encoder, _) = network(Stem::Imagenet);
        let layers = encoder.layers(SIDE);
        let maps = Maps::<CpuAd> {
            layers: &layers,
            rows: 3,
            dtype: DType::F32,
            normalize: Normalize {
                mean: [0.5; 3],
                std: [0.25; 3],
            },
            device: Default::default(),
        };
        for layer in &layers {
            let (inner, outer) = (layer.side, layer.output_side());
            let read = [3, layer.inputs, inner, inner];
            let made = [3, layer.outputs, outer, outer];
            assert_eq!(maps.input(layer).shape().as_slice(), read, "{layer:?}");
            assert_eq!(maps.convolved(layer).shape().as_slice(), made, "{layer:?}");
            assert_eq!(maps.output_gradient(layer).shape().as_slice(), made, "{layer:?}");
            assert_eq!(
                maps.gradients(layer.outputs, outer)().shape().as_slice(),
                made,
                "{layer:?}"
            );
            assert_eq!(maps.input_gradients(layer)().shape().as_slice(), read, "{layer:?}");
            if layer.opens_block {
                assert_eq!(maps.shortcut_gradients(layer)().shape().as_slice(), read, "{layer:?}");
            }
        }
    }
}

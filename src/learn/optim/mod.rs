//! Optimisers: a model, its gradients and a rate in, the next model out.
//!
//! One file per rule (`lars`, `sgd`, `adamw`); this one walks the model, keeps the state and moves it to and from
//! checkpoints. One rule holds for all: a parameter with one dimension (bias, norm) is never decayed nor scaled, as in both
//! VICReg codes; for SGD and AdamW that is torch.optim with two parameter groups.
//! Invariant: no update reads a value back from the device, and none depends on another parameter's, so a checkpointed state
//! continues bit for bit.
//!
//! Why not burn-optim's `SimpleOptimizer`: it keys its state by `ParamId`, which a new process does not have; it hides the
//! parameter's name and has no groups; its AdamW rounds `1 - beta` in f32 (5e-5 off for beta = 0.999) and there is no LARS.
//! What is good in it is kept: `GradientsParams`, and updates by a `ModuleMapper` that take tensors by value, so that they can
//! be done in place.

mod adamw;
mod lars;
mod options;
mod sgd;
mod state;

use adamw::Moments;
use burn::module::{AutodiffModule, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
pub use options::{LarsVariant, OptimError, OptimizerKind, OptimizerOptions};
pub use state::StateError;
use std::collections::BTreeMap;

/// An optimiser with its state: what it remembers of each parameter, by the parameter's name (`backbone.conv1.weight`).
#[derive(Debug)]
pub struct Optimizer<B: AutodiffBackend> {
    options: OptimizerOptions,
    memory: BTreeMap<String, Memory<B::InnerBackend>>,
}

/// What is remembered of one parameter; tensors are flat.
#[derive(Clone, Debug)]
struct Memory<B: Backend> {
    shape: Vec<usize>,
    rule: RuleMemory<B>,
}

#[derive(Clone, Debug)]
enum RuleMemory<B: Backend> {
    /// LARS, SGD.
    Momentum(Tensor<B, 1>),
    /// AdamW.
    Moments(Moments<B>),
}

impl<B: AutodiffBackend> Optimizer<B> {
    /// An optimiser that has not stepped yet. `options` should have passed [`OptimizerOptions::validate`].
    pub fn new(options: OptimizerOptions) -> Self {
        Self {
            options,
            memory: BTreeMap::new(),
        }
    }

    /// One step at rate `lr`. Parameters without a gradient in `grads` stay as they are. `watch` is told what happens.
    pub fn step<M: AutodiffModule<B>>(
        &mut self,
        lr: f64,
        model: M,
        grads: GradientsParams,
        watch: Option<&mut UpdateWatch<B::InnerBackend>>,
    ) -> M {
        model.map(&mut Step {
            optimizer: self,
            lr,
            grads,
            path: Path::default(),
            watch,
        })
    }

    /// The update of one parameter of shape `shape`; `p` and `g` are flat.
    fn update(
        &mut self,
        lr: f64,
        name: String,
        shape: &[usize],
        p: Tensor<B::InnerBackend, 1>,
        g: Tensor<B::InnerBackend, 1>,
        watch: &mut Option<&mut UpdateWatch<B::InnerBackend>>,
    ) -> Tensor<B::InnerBackend, 1> {
        let rows = (shape.len() > 1).then(|| shape[0]);
        if let Some(watch) = watch {
            watch.squares.push(sum_of_squares(&g, rows.unwrap_or(1)));
        }
        let memory = self.memory.remove(&name).map(|memory| memory.rule);
        let (p, rule) = match self.options.kind {
            OptimizerKind::Lars | OptimizerKind::Sgd => {
                let momentum = match memory {
                    Some(RuleMemory::Momentum(momentum)) => Some(momentum),
                    _ => None,
                };
                let g = match (self.options.kind, rows) {
                    (OptimizerKind::Lars, None) => g,
                    (OptimizerKind::Lars, Some(rows)) => {
                        let (g, ratio) = lars::direction(&self.options, lr, &p, g, rows);
                        if let Some(watch) = watch {
                            watch.ratios.push(ratio);
                        }
                        g
                    }
                    _ => sgd::direction(&self.options, &p, g, rows),
                };
                let (p, momentum) = sgd::descend(self.options.momentum, lr, p, g, momentum);
                (p, RuleMemory::Momentum(momentum))
            }
            OptimizerKind::Adamw => {
                let moments = match memory {
                    Some(RuleMemory::Moments(moments)) => Some(moments),
                    _ => None,
                };
                let (p, moments) = adamw::step(&self.options, lr, p, g, rows.is_some(), moments);
                (p, RuleMemory::Moments(moments))
            }
        };
        let shape = shape.to_vec();
        self.memory.insert(name, Memory { shape, rule });
        p
    }
}

/// What an update was made of, for the log. Every tensor is `[1]`, on the device.
#[derive(Clone, Debug)]
pub struct UpdateWatch<B: Backend> {
    /// Sum of the squares of each parameter's gradient, before decay and scaling.
    pub squares: Vec<Tensor<B, 1>>,
    /// LARS: the factor of each scaled parameter's gradient.
    pub ratios: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Default for UpdateWatch<B> {
    fn default() -> Self {
        Self {
            squares: Vec::new(),
            ratios: Vec::new(),
        }
    }
}

/// Sum of squares, `[1]`. Row sums first: flex splits one very long sum among its threads in an order that is not fixed.
fn sum_of_squares<B: Backend>(x: &Tensor<B, 1>, rows: usize) -> Tensor<B, 1> {
    let n = x.dims()[0];
    x.clone().square().reshape([rows, n / rows]).sum_dim(1).sum()
}

/// Where a walk through a model is: the names of the fields and indices entered.
#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    fn enter(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn name(&self) -> String {
        self.0.join(".")
    }
}

/// One step's walk through the model.
struct Step<'a, B: AutodiffBackend> {
    optimizer: &'a mut Optimizer<B>,
    lr: f64,
    grads: GradientsParams,
    path: Path,
    watch: Option<&'a mut UpdateWatch<B::InnerBackend>>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Step<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) else {
            return param;
        };
        let (id, value, mapper) = param.consume();
        let value = value.inner();
        debug_assert_eq!(value.dtype(), DType::F32, "master weights are f32");
        let shape = value.dims();
        let n = value.shape().num_elements();
        // Flat, so that one rule serves every rank; a transposed gradient is laid out in order here, once.
        let (p, g) = (value.reshape([n]), grad.reshape([n]));
        let p = self
            .optimizer
            .update(self.lr, self.path.name(), &shape, p, g, &mut self.watch);
        let value = Tensor::from_inner(p.reshape(shape)).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}

#[cfg(test)]
mod tests;

//! The optimiser's state, to and from a checkpoint: named f32 arrays that continue the run bit for bit.
//!
//! Names are the parameter's with PyTorch's word for the state behind it: `backbone.conv1.weight.momentum_buffer` (LARS and SGD);
//! `.exp_avg`, `.exp_avg_sq`, `.step` (AdamW). Loading is strict: every trainable parameter has all of its entries, or there is no
//! entry at all (a run that has not stepped yet).

use super::adamw::Moments;
use super::{Memory, Optimizer, OptimizerKind, Path, RuleMemory};
use crate::learn::weights::NamedTensor;
use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use std::collections::BTreeMap;

const MOMENTUM: &str = "momentum_buffer";
const MEAN: &str = "exp_avg";
const SQUARE: &str = "exp_avg_sq";
const STEP: &str = "step";
/// f32 counts exactly up to here.
const MOST_STEPS: f32 = 16_777_216.0;

/// A state that does not fit the model or the optimiser.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StateError {
    /// An entry that a trainable parameter should have is not there.
    #[error("the optimiser's state has no entry `{name}`")]
    Missing {
        /// The entry's name.
        name: String,
    },
    /// An entry belongs to no trainable parameter of the model under this optimiser.
    #[error("the optimiser's state has an entry `{name}`, which this model and optimiser do not know")]
    Unknown {
        /// The entry's name.
        name: String,
    },
    /// An entry's shape is not the parameter's.
    #[error("the optimiser's state `{name}` has shape {found:?}, the parameter {expected:?}")]
    Shape {
        /// The entry's name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The parameter's shape.
        expected: Vec<usize>,
    },
    /// A step count is no whole number above 0.
    #[error("the optimiser's step count `{name}` is {value}")]
    Step {
        /// The entry's name.
        name: String,
        /// Its value.
        value: f32,
    },
}

impl<B: AutodiffBackend> Optimizer<B> {
    /// The state, ordered by name. Waits for the device.
    pub fn state(&self) -> Vec<NamedTensor> {
        let mut entries = Vec::new();
        for (name, Memory { shape, rule }) in &self.memory {
            let mut add = |what: &str, tensor: &Tensor<B::InnerBackend, 1>| {
                entries.push(NamedTensor {
                    name: format!("{name}.{what}"),
                    shape: shape.clone(),
                    values: tensor.to_data().iter::<f32>().collect(),
                });
            };
            match rule {
                RuleMemory::Momentum(momentum) => add(MOMENTUM, momentum),
                RuleMemory::Moments(moments) => {
                    add(MEAN, &moments.m);
                    add(SQUARE, &moments.v);
                    entries.push(NamedTensor {
                        name: format!("{name}.{STEP}"),
                        shape: vec![1],
                        values: vec![moments.t as f32],
                    });
                }
            }
        }
        entries
    }

    /// Takes over a state that [`Optimizer::state`] gave, for `model`'s parameters. On an error the optimiser is as before.
    pub fn load_state<M: AutodiffModule<B>>(&mut self, model: &M, entries: Vec<NamedTensor>) -> Result<(), StateError> {
        if entries.is_empty() {
            self.memory.clear();
            return Ok(());
        }
        let mut entries: Entries = entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        let mut trainable = Trainable::<B>::default();
        model.visit(&mut trainable);

        let mut memory = BTreeMap::new();
        for (name, (shape, device)) in trainable.parameters {
            let rule = match self.options.kind {
                OptimizerKind::Lars | OptimizerKind::Sgd => {
                    RuleMemory::Momentum(flat(take(&mut entries, &name, MOMENTUM, &shape)?, &device))
                }
                OptimizerKind::Adamw => RuleMemory::Moments(Moments {
                    m: flat(take(&mut entries, &name, MEAN, &shape)?, &device),
                    v: flat(take(&mut entries, &name, SQUARE, &shape)?, &device),
                    t: whole(&name, take(&mut entries, &name, STEP, &[1])?[0])?,
                }),
            };
            memory.insert(name, Memory { shape, rule });
        }
        if let Some((name, _)) = entries.pop_first() {
            return Err(StateError::Unknown { name });
        }
        self.memory = memory;
        Ok(())
    }
}

type Entries = BTreeMap<String, NamedTensor>;

/// Takes the values of one entry, if it is there with the right shape.
fn take(entries: &mut Entries, parameter: &str, what: &str, expected: &[usize]) -> Result<Vec<f32>, StateError> {
    let name = format!("{parameter}.{what}");
    let Some(entry) = entries.remove(&name) else {
        return Err(StateError::Missing { name });
    };
    if entry.shape != expected || entry.values.len() != expected.iter().product::<usize>() {
        return Err(StateError::Shape {
            name,
            found: entry.shape,
            expected: expected.to_vec(),
        });
    }
    Ok(entry.values)
}

fn flat<B: Backend>(values: Vec<f32>, device: &B::Device) -> Tensor<B, 1> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

fn whole(parameter: &str, value: f32) -> Result<u32, StateError> {
    if value.fract() == 0.0 && (1.0..=MOST_STEPS).contains(&value) {
        return Ok(value as u32);
    }
    Err(StateError::Step {
        name: format!("{parameter}.{STEP}"),
        value,
    })
}

/// Finds a model's trainable parameters: name -> shape and device.
struct Trainable<B: AutodiffBackend> {
    path: Path,
    parameters: BTreeMap<String, (Vec<usize>, B::Device)>,
}

impl<B: AutodiffBackend> Default for Trainable<B> {
    fn default() -> Self {
        Self {
            path: Path::default(),
            parameters: BTreeMap::new(),
        }
    }
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Trainable<B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if param.is_require_grad() {
            let at = (param.dims().to_vec(), param.device());
            self.parameters.insert(self.path.name(), at);
        }
    }
}

//! The expander: a multilayer perceptron from representations to embeddings; called `projector` in both reference codes.
//!
//! In: representations `[N, H]`. Out: embeddings `[N, D]`. Linear, batch norm, rectifier; the last layer is linear alone (paper,
//! section 4.2). Names and shapes of its parameters are PyTorch's for the same `nn.Sequential`: `0.weight` `[out, in]`, `0.bias`,
//! `1.weight`, `1.bias`, `1.running_mean`, `1.running_var`, `3.weight`... (2, 5, ... are the rectifiers).

use super::norm::{BatchNorm, BatchStats, Mode};
use super::ops::{TrainOps, as_computed, linear};
use crate::data::rng::{Domain, Philox};
use burn::module::{
    AutodiffModule, Content, Devices, HasAutodiffModule, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor, Param,
};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[expander]`: the widths and biases of the expander. Defaults are the official 8192-8192-8192.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExpanderOptions {
    /// Outputs of each layer; the last is the embedding's dimension. Default [8192, 8192, 8192] (paper, section 4.2).
    pub dims: Vec<usize>,
    /// Bias in all layers but the last. Default true (official, solo-learn).
    pub hidden_bias: bool,
    /// Bias in the last layer. Default false (official); solo-learn true.
    pub last_bias: bool,
}

impl Default for ExpanderOptions {
    fn default() -> Self {
        Self {
            dims: vec![8192; 3],
            hidden_bias: true,
            last_bias: false,
        }
    }
}

/// Widest layer: what a stream of random draws can fill, and far above any published expander.
const MAX_WIDTH: usize = 65_536;

/// Expander options that make no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpanderError {
    /// There is no layer.
    #[error("`expander.dims` is empty: the expander needs at least one layer")]
    Empty,
    /// A layer's width is out of range.
    #[error("`expander.dims` asks for a layer of {width} outputs, not 1 to {MAX_WIDTH}")]
    Width {
        /// The width.
        width: usize,
    },
}

impl ExpanderOptions {
    /// Checks the widths.
    pub fn validate(&self) -> Result<(), ExpanderError> {
        if self.dims.is_empty() {
            return Err(ExpanderError::Empty);
        }
        match self.dims.iter().find(|&&width| !(1..=MAX_WIDTH).contains(&width)) {
            Some(&width) => Err(ExpanderError::Width { width }),
            None => Ok(()),
        }
    }
}

impl ExpanderOptions {
    /// Trained values, for representations of `features` values.
    pub fn parameters(&self, features: usize) -> u64 {
        let mut inputs = features as u64;
        let mut sum = 0;
        for (layer, &width) in self.dims.iter().enumerate() {
            let (outputs, last) = (width as u64, layer + 1 == self.dims.len());
            let biased = if last { self.last_bias } else { self.hidden_bias };
            sum += (inputs + u64::from(biased)) * outputs + if last { 0 } else { 2 * outputs };
            inputs = outputs;
        }
        sum
    }
}

/// A linear layer: y = x W^T + b.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// W, `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
    /// b, `[out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> Linear<B> {
    /// Weight and bias uniform in +-1/sqrt(in), PyTorch's default. `position` numbers the parameters of the whole model,
    /// so that no two share their draws; it moves on by those made here.
    pub fn new(inputs: usize, outputs: usize, bias: bool, seed: u64, position: &mut u64, device: &B::Device) -> Self {
        let bound = 1.0 / (inputs as f64).sqrt();
        let mut draw = |rows: usize, columns: usize| {
            let values: Vec<f32> = (0..rows)
                .flat_map(|row| {
                    // A stream a row: a stream is shorter than a large weight.
                    let mut rng = Philox::new(seed, Domain::Init, row as u32, *position, 0);
                    std::iter::repeat_with(move || rng.uniform_in(-bound, bound) as f32).take(columns)
                })
                .collect();
            *position += 1;
            values
        };
        let weight = TensorData::new(draw(outputs, inputs), [outputs, inputs]);
        let bias = bias.then(|| TensorData::new(draw(1, outputs), [outputs]));
        Self {
            weight: Param::from_data(weight, device),
            bias: bias.map(|bias| Param::from_data(bias, device)),
        }
    }

    /// `x`: `[N, in]` -> `[N, out]`, in the type of `x`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2>
    where
        B: TrainOps,
    {
        let weight = as_computed(self.weight.val(), &x);
        let y = linear(x, weight);
        match &self.bias {
            Some(bias) => {
                let bias = as_computed(bias.val(), &y);
                y + bias.unsqueeze() // [1, out]
            }
            None => y,
        }
    }
}

/// The expander's layers: one norm fewer than linears.
#[derive(Clone, Debug)]
pub struct Expander<B: Backend> {
    linears: Vec<Linear<B>>,
    norms: Vec<BatchNorm<B>>,
}

impl<B: Backend> Expander<B> {
    /// An expander for representations of `features` values. `options` should have passed [`ExpanderOptions::validate`];
    /// `position`: see [`Linear::new`].
    pub fn new(options: &ExpanderOptions, features: usize, seed: u64, position: &mut u64, device: &B::Device) -> Self {
        let mut inputs = features;
        let last = options.dims.len() - 1;
        let (mut linears, mut norms) = (Vec::new(), Vec::new());
        for (layer, &outputs) in options.dims.iter().enumerate() {
            let bias = if layer == last {
                options.last_bias
            } else {
                options.hidden_bias
            };
            linears.push(Linear::new(inputs, outputs, bias, seed, position, device));
            if layer < last {
                norms.push(BatchNorm::new(outputs, device));
            }
            inputs = outputs;
        }
        Self { linears, norms }
    }

    /// Batch-norm layers, which is how many statistics a training pass pushes.
    pub fn norms(&self) -> usize {
        self.norms.len()
    }

    /// The expander after one more batch. `batch`: the statistics that one training pass pushed, in that order.
    ///
    /// # Panics
    /// If there are not as many as norms.
    pub fn update_running(mut self, batch: &[BatchStats<B>]) -> Self {
        assert_eq!(batch.len(), self.norms.len(), "one statistic a norm");
        let norms = self.norms.into_iter().zip(batch);
        self.norms = norms.map(|(norm, batch)| norm.update_running(batch)).collect();
        self
    }
}

impl<B: TrainOps> Expander<B> {
    /// `x`: `[N, H]` -> `[N, D]`.
    pub fn forward(&self, mut x: Tensor<B, 2>, mode: &mut Mode<'_, B>) -> Tensor<B, 2> {
        for (at, linear) in self.linears.iter().enumerate() {
            x = linear.forward(x);
            if let Some(norm) = self.norms.get(at) {
                x = norm.forward_relu(x, mode);
            }
        }
        x
    }
}

// What follows makes the expander a burn module whose walk meets its layers under PyTorch's indices; burn's derive can name
// a layer only after a field.

/// The tuple that stands for the expander where names do not matter.
type Layers<B> = (Vec<Linear<B>>, Vec<BatchNorm<B>>);

impl<B: Backend> Expander<B> {
    fn layers(self) -> Layers<B> {
        (self.linears, self.norms)
    }

    fn from_layers((linears, norms): Layers<B>) -> Self {
        Self { linears, norms }
    }
}

/// PyTorch's index of linear layer `at`; its norm has the next one.
fn index(at: usize) -> usize {
    3 * at
}

const CONTAINER: &str = "Struct:Expander";

impl<B: Backend> Module<B> for Expander<B> {
    type Record = <Layers<B> as Module<B>>::Record;

    fn visit<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        for (at, linear) in self.linears.iter().enumerate() {
            let name = index(at).to_string();
            visitor.enter_module(&name, CONTAINER);
            linear.visit(visitor);
            visitor.exit_module(&name, CONTAINER);
            if let Some(norm) = self.norms.get(at) {
                let name = (index(at) + 1).to_string();
                visitor.enter_module(&name, CONTAINER);
                norm.visit(visitor);
                visitor.exit_module(&name, CONTAINER);
            }
        }
    }

    fn map<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        let mut mapped = Self {
            linears: Vec::new(),
            norms: Vec::new(),
        };
        let mut norms = self.norms.into_iter();
        for (at, linear) in self.linears.into_iter().enumerate() {
            let name = index(at).to_string();
            mapper.enter_module(&name, CONTAINER);
            mapped.linears.push(linear.map(mapper));
            mapper.exit_module(&name, CONTAINER);
            if let Some(norm) = norms.next() {
                let name = (index(at) + 1).to_string();
                mapper.enter_module(&name, CONTAINER);
                mapped.norms.push(norm.map(mapper));
                mapper.exit_module(&name, CONTAINER);
            }
        }
        mapped
    }

    fn collect_devices(&self, devices: Devices<B>) -> Devices<B> {
        self.norms.collect_devices(self.linears.collect_devices(devices))
    }

    fn fork(self, device: &B::Device) -> Self {
        Self::from_layers(self.layers().fork(device))
    }

    fn to_device(self, device: &B::Device) -> Self {
        Self::from_layers(self.layers().to_device(device))
    }

    fn load_record(self, record: Self::Record) -> Self {
        Self::from_layers(self.layers().load_record(record))
    }

    fn into_record(self) -> Self::Record {
        self.layers().into_record()
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for Expander<B> {
    type InnerModule = Expander<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        Expander {
            linears: self.linears.valid(),
            norms: self.norms.valid(),
        }
    }

    fn from_inner(module: Self::InnerModule) -> Self {
        Self::from_layers(AutodiffModule::from_inner(module.layers()))
    }
}

impl<B: AutodiffBackend> HasAutodiffModule<B> for Expander<B::InnerBackend> {
    type TrainModule = Expander<B>;
}

impl<B: Backend> std::fmt::Display for Expander<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.format(Default::default()))
    }
}

impl<B: Backend> ModuleDisplayDefault for Expander<B> {
    fn content(&self, content: Content) -> Option<Content> {
        content
            .set_top_level_type("Expander")
            .add("linears", &self.linears)
            .add("norms", &self.norms)
            .optional()
    }
}

impl<B: Backend> ModuleDisplay for Expander<B> {}

#[cfg(test)]
mod tests;

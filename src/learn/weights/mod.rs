//! Weights by name: any burn module's float parameters out, and strictly back in; files of ours and of other programs.
//!
//! Here: tensors with names, to and from a module. `safetensors` has that format's bytes both ways, `file` reads whatever file
//! there is (`pytorch` and `pickle` do torch.save's), `layout` knows how others name the same parameters, `network` which of our
//! networks the names and shapes are, `foreign` joins these into an import, `probe` computes what an import can be compared by.
//! Names are the parameters' paths joined by dots, which our encoders choose to be torchvision's. Writing files is the data
//! room's task. Invariant: loading uses every tensor and fills every parameter, or says which and changes nothing; equal weights
//! and metadata give equal bytes.

pub mod file;
pub mod foreign;
pub mod layout;
pub mod network;
mod pickle;
pub mod probe;
pub mod pytorch;
pub mod safetensors;

#[cfg(test)]
mod tests;

use ::safetensors::SafeTensorError;
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Tensor, TensorData, backend::Backend},
};
use std::collections::HashMap;

pub use safetensors::{Counts, from_safetensors, to_safetensors};

use crate::learn::resnet::ResNetError;
use layout::Layout;
use network::{NetworkError, Shapes};
use pytorch::PytorchError;

/// One parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Path, dots between its parts.
    pub name: String,
    /// Sizes of its axes.
    pub shape: Vec<usize>,
    /// Values in row-major order.
    pub values: Vec<f32>,
}

/// What can go wrong with weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The network has parameters that the weights lack.
    #[error("the weights lack {}{}", some(names), also_unused(unused))]
    Missing {
        /// Their names.
        names: Vec<String>,
        /// Tensors that the network lacks.
        unused: Vec<String>,
    },
    /// The weights have tensors that the network lacks.
    #[error("the network has no place for {}", all(names))]
    Unused {
        /// Their names.
        names: Vec<String>,
    },
    /// Shapes that differ.
    #[error("the shape of `{name}` is {found:?} in the weights, {expected:?} in the network{}", and_more(*more))]
    Shape {
        /// Which tensor.
        name: String,
        /// The network's.
        expected: Vec<usize>,
        /// The weights'.
        found: Vec<usize>,
        /// Other tensors whose shapes differ.
        more: usize,
    },
    /// A type that cannot be used.
    #[error("`{name}` holds {found}, not {wanted}")]
    Type {
        /// Which tensor.
        name: String,
        /// Its type, as the file names it.
        found: String,
        /// What it should hold.
        wanted: &'static str,
    },
    /// Not a safetensors file.
    #[error("not a valid safetensors file")]
    Format(#[from] SafeTensorError),
    /// Not a PyTorch file that is read.
    #[error("not a PyTorch file that can be used")]
    Pytorch(#[from] PytorchError),
    /// Neither of them.
    #[error("neither a PyTorch file nor safetensors")]
    NoWeights,
    /// The file cannot be read.
    #[error("cannot read the file")]
    Read(#[from] std::io::Error),
    /// Keys of a classifier.
    #[error("the weights hold a classifier, for which there is no place: {}", all(names))]
    Head {
        /// Its keys.
        names: Vec<String>,
    },
    /// Keys that no known program has, or that the one that was named has not.
    #[error("these are not the keys of {}: {}", forced.map_or("a layout that is known".to_owned(), |f| f.to_string()), some(keys))]
    UnknownLayout {
        /// Which layout was asked for.
        forced: Option<Layout>,
        /// The keys.
        keys: Vec<String>,
    },
    /// A network that is none of ours.
    #[error("the weights are none of this program's networks")]
    Network(#[from] NetworkError),
    /// A padding that the network cannot have.
    #[error("the stem cannot be padded so")]
    Padding(#[from] ResNetError),
}

impl WeightsError {
    /// A type other than floats.
    fn of_type(name: &str, found: &str) -> Self {
        Self::Type {
            name: name.to_owned(),
            found: found.to_owned(),
            wanted: "floats",
        }
    }

    /// What the user can do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Pytorch(error) => error.hints(),
            Self::Head { .. } => vec!["`--drop-head` drops exactly these keys".to_owned()],
            Self::UnknownLayout { .. } => {
                vec![
                    "ResNets of torchvision, timm, the official VICReg code, solo-learn and lightly are known"
                        .to_owned(),
                ]
            }
            Self::Type { wanted: "f32", .. } => vec!["`vicreg-stream weights import` makes f32 of it".to_owned()],
            Self::NoWeights => vec!["give a .pth, .pt or .ckpt file of torch.save, or a .safetensors file".to_owned()],
            _ => Vec::new(),
        }
    }
}

fn all(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    quoted.join(", ")
}

/// The first few names, and how many more there are.
fn some(names: &[String]) -> String {
    let shown = names.len().min(4);
    all(&names[..shown]) + &and_more(names.len() - shown)
}

fn and_more(more: usize) -> String {
    match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}

fn also_unused(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!("; the network has no place for {}", all(names)),
    }
}

/// All float parameters of a module, in the order of its fields.
pub fn export<B: Backend, M: Module<B>>(module: &M) -> Vec<NamedTensor> {
    let mut collector = Collector {
        path: Vec::new(),
        tensors: Vec::new(),
    };
    module.visit(&mut collector);
    collector.tensors
}

struct Collector {
    path: Vec<String>,
    tensors: Vec<NamedTensor>,
}

impl<B: Backend> ModuleVisitor<B> for Collector {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let tensor = param.val();
        let shape = tensor.dims().to_vec();
        let values = tensor
            .into_data()
            .convert::<f32>()
            .into_vec()
            .expect("converted just now");
        self.tensors.push(NamedTensor {
            name: self.path.join("."),
            shape,
            values,
        });
    }
}

/// The module with its parameters replaced; ids and gradient settings stay.
///
/// # Errors
/// A parameter without a tensor, a tensor without a parameter, a shape that differs.
pub fn import<B: Backend, M: Module<B>>(module: M, tensors: Vec<NamedTensor>) -> Result<M, WeightsError> {
    let found = tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    compare(&shapes(&module), &found)?;
    let mut given: HashMap<String, NamedTensor> = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
    Ok(module.map(&mut Loader {
        path: Vec::new(),
        given: &mut given,
    }))
}

/// Names and shapes of a module's parameters.
pub fn shapes<B: Backend, M: Module<B>>(module: &M) -> Shapes {
    let mut found = ShapeVisitor {
        path: Vec::new(),
        shapes: Shapes::new(),
    };
    module.visit(&mut found);
    found.shapes
}

/// Holds what there is to what a network has: every name, every shape.
///
/// # Errors
/// The first kind of difference, with all its names.
pub fn compare(expected: &Shapes, found: &Shapes) -> Result<(), WeightsError> {
    let lacking = |there: &Shapes, here: &Shapes| -> Vec<String> {
        here.keys().filter(|name| !there.contains_key(*name)).cloned().collect()
    };
    let (names, unused) = (lacking(found, expected), lacking(expected, found));
    if !names.is_empty() {
        return Err(WeightsError::Missing { names, unused });
    }
    if !unused.is_empty() {
        return Err(WeightsError::Unused { names: unused });
    }
    let mut differing = expected.iter().filter(|(name, shape)| found[*name] != **shape);
    match differing.next() {
        None => Ok(()),
        Some((name, shape)) => Err(WeightsError::Shape {
            name: name.clone(),
            expected: shape.clone(),
            found: found[name].clone(),
            more: differing.count(),
        }),
    }
}

/// Names and shapes alone: no value is read back from a device.
struct ShapeVisitor {
    path: Vec<String>,
    shapes: Shapes,
}

impl<B: Backend> ModuleVisitor<B> for ShapeVisitor {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.shapes.insert(self.path.join("."), param.lazy_shape().to_vec());
    }
}

struct Loader<'a> {
    path: Vec<String>,
    given: &'a mut HashMap<String, NamedTensor>,
}

impl<B: Backend> ModuleMapper<B> for Loader<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, old, mapper) = param.consume();
        let new = self
            .given
            .remove(&self.path.join("."))
            .expect("every name was checked before");
        let tensor = Tensor::from_data(TensorData::new(new.values, new.shape), &old.device());
        Param::from_mapped_value(id, tensor.set_require_grad(old.is_require_grad()), mapper)
    }
}

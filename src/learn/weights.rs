//! Weights by name: any burn module's float parameters out, and strictly back in; safetensors bytes both ways.
//!
//! Names are the parameters' paths joined by dots, which our encoders choose to be torchvision's. Writing files is the data
//! room's task. Invariant: loading uses every tensor and fills every parameter, or says which and changes nothing; equal weights
//! and metadata give equal bytes.
//! Source: the safetensors format; PyTorch's `num_batches_tracked` beside each running mean.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Tensor, TensorData, backend::Backend},
};
use safetensors::{
    SafeTensorError, SafeTensors,
    tensor::{Dtype, TensorView, serialize},
};
use std::collections::{BTreeMap, HashMap};

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
    /// The module has parameters that the file lacks.
    #[error("the weights lack {}", list(names))]
    Missing {
        /// Their names.
        names: Vec<String>,
    },
    /// The file has tensors that the module lacks.
    #[error("the network has no place for {}", list(names))]
    Unused {
        /// Their names.
        names: Vec<String>,
    },
    /// Shapes that differ: (name, of the network, of the weights).
    #[error("the shape of `{name}` is {found:?} in the weights, {expected:?} in the network")]
    Shape {
        /// Which tensor.
        name: String,
        /// The network's.
        expected: Vec<usize>,
        /// The weights'.
        found: Vec<usize>,
    },
    /// A type that is not f32.
    #[error("`{name}` holds {found}, not f32")]
    Type {
        /// Which tensor.
        name: String,
        /// Its type, as safetensors writes it.
        found: String,
    },
    /// Not a safetensors file.
    #[error("not a valid safetensors file")]
    Format(#[from] SafeTensorError),
}

/// The first few names, and how many more there are.
fn list(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(4).map(|n| format!("`{n}`")).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
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
    let mut given: HashMap<String, NamedTensor> = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
    let mut shapes = Shapes {
        path: Vec::new(),
        shapes: Vec::new(),
    };
    module.visit(&mut shapes);
    let missing: Vec<String> = shapes
        .shapes
        .iter()
        .map(|(name, _)| name)
        .filter(|name| !given.contains_key(*name))
        .cloned()
        .collect();
    if !missing.is_empty() {
        return Err(WeightsError::Missing { names: missing });
    }
    let known: HashMap<&str, &Vec<usize>> = shapes.shapes.iter().map(|(n, s)| (n.as_str(), s)).collect();
    let mut unused: Vec<String> = given
        .keys()
        .filter(|name| !known.contains_key(name.as_str()))
        .cloned()
        .collect();
    if !unused.is_empty() {
        unused.sort();
        return Err(WeightsError::Unused { names: unused });
    }
    for (name, expected) in &shapes.shapes {
        let found = &given[name].shape;
        if found != expected {
            return Err(WeightsError::Shape {
                name: name.clone(),
                expected: expected.clone(),
                found: found.clone(),
            });
        }
    }
    Ok(module.map(&mut Loader {
        path: Vec::new(),
        given: &mut given,
    }))
}

/// Names and shapes alone: no value is read back from a device.
struct Shapes {
    path: Vec<String>,
    shapes: Vec<(String, Vec<usize>)>,
}

impl<B: Backend> ModuleVisitor<B> for Shapes {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.shapes.push((self.path.join("."), param.lazy_shape().to_vec()));
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

/// Safetensors bytes. `tracked`: batches that the running statistics have seen, for PyTorch's `num_batches_tracked`; `None`
/// leaves those entries out.
///
/// # Errors
/// Two tensors of one name, or values that do not fill their shape.
pub fn to_safetensors(
    tensors: &[NamedTensor],
    metadata: &BTreeMap<String, String>,
    tracked: Option<u64>,
) -> Result<Vec<u8>, WeightsError> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|t| t.values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let tracked = tracked.map(|count| (count as i64).to_le_bytes());
    let mut views = Vec::new();
    for (tensor, bytes) in tensors.iter().zip(&bytes) {
        views.push((
            tensor.name.clone(),
            TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?,
        ));
        if let (Some(layer), Some(tracked)) = (tensor.name.strip_suffix("running_mean"), &tracked) {
            views.push((
                format!("{layer}num_batches_tracked"),
                TensorView::new(Dtype::I64, vec![], tracked)?,
            ));
        }
    }
    Ok(with_metadata(serialize(views, None)?, metadata))
}

/// Puts metadata into a header. The crate would write it in a hash map's order: other bytes at each call.
fn with_metadata(file: Vec<u8>, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let (header, data) = file[8..].split_at(length);
    let header = header.trim_ascii_end();
    let entry = serde_json::json!(metadata).to_string();
    let mut new = format!("{{\"__metadata__\":{entry}").into_bytes();
    if header != b"{}" {
        new.push(b',');
    }
    new.extend_from_slice(&header[1..]);
    new.resize(new.len().next_multiple_of(8), b' ');
    [&(new.len() as u64).to_le_bytes()[..], &new, data].concat()
}

/// Tensors by name, and metadata, from safetensors bytes. `num_batches_tracked` is left out: nothing here reads it.
///
/// # Errors
/// Bytes that are no safetensors file; tensors of another type than f32.
pub fn from_safetensors(bytes: &[u8]) -> Result<(Vec<NamedTensor>, BTreeMap<String, String>), WeightsError> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let mut tensors = Vec::new();
    for (name, view) in SafeTensors::deserialize(bytes)?.iter() {
        if name.ends_with("num_batches_tracked") {
            continue;
        }
        if view.dtype() != Dtype::F32 {
            return Err(WeightsError::Type {
                name: name.to_owned(),
                found: format!("{:?}", view.dtype()),
            });
        }
        let (values, _) = view.data().as_chunks::<4>();
        let values = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        tensors.push(NamedTensor {
            name: name.to_owned(),
            shape: view.shape().to_vec(),
            values,
        });
    }
    Ok((tensors, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::resnet::{ResNet, ResNetOptions, Stem};
    use burn::backend::{Autodiff, Flex};

    type Net = ResNet<Autodiff<Flex>>;

    fn net(seed: u64) -> Net {
        let options = ResNetOptions {
            depth: 8,
            width: 0.0625,
            stem: Stem::Cifar,
            ..Default::default()
        };
        ResNet::new(&options, seed, &mut 0, &Default::default())
    }

    fn metadata() -> BTreeMap<String, String> {
        [("std", "0.2 \"x\""), ("mean", "0.5"), ("size", "32")]
            .map(|(k, v)| (k.into(), v.into()))
            .into()
    }

    #[test]
    fn weights_make_the_round_trip_bit_for_bit() {
        let source = net(1);
        let bytes = to_safetensors(&export(&source), &metadata(), Some(12)).unwrap();
        let (tensors, read) = from_safetensors(&bytes).unwrap();
        assert_eq!(read, metadata());
        let target = net(2);
        let id = target.conv1.weight.id;
        assert_ne!(export(&target), export(&source));
        let target = import(target, tensors).unwrap();
        assert_eq!(export(&target), export(&source));
        assert_eq!(target.conv1.weight.id, id, "the optimiser's state hangs on the id");
        assert!(target.conv1.weight.is_require_grad() && !target.bn1.running_mean.is_require_grad());
        assert_eq!(bytes, to_safetensors(&export(&target), &metadata(), Some(12)).unwrap());
    }

    #[test]
    fn batches_are_counted_beside_each_running_mean() {
        let bytes = to_safetensors(&export(&net(1)), &metadata(), Some(12)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tracked = file.tensor("layer2.0.downsample.1.num_batches_tracked").unwrap();
        assert_eq!(
            (tracked.dtype(), tracked.shape(), tracked.data()),
            (Dtype::I64, &[][..], &12i64.to_le_bytes()[..])
        );
        let norms = file.names().iter().filter(|n| n.ends_with("running_mean")).count();
        assert_eq!(
            file.names()
                .iter()
                .filter(|n| n.ends_with("num_batches_tracked"))
                .count(),
            norms
        );
    }

    #[test]
    fn loading_is_strict_and_names_what_does_not_fit() {
        let all = export(&net(1));
        let lacking = all.iter().filter(|t| t.name != "bn1.weight").cloned().collect();
        let error = import(net(2), lacking).unwrap_err().to_string();
        assert_eq!(error, "the weights lack `bn1.weight`");

        let mut more = all.clone();
        more.push(NamedTensor {
            name: "fc.weight".into(),
            shape: vec![1],
            values: vec![0.0],
        });
        let error = import(net(2), more).unwrap_err().to_string();
        assert_eq!(error, "the network has no place for `fc.weight`");

        let mut other = all;
        let stem = other.iter_mut().find(|t| t.name == "conv1.weight").unwrap();
        stem.shape = vec![4, 3, 9, 1];
        let error = import(net(2), other).unwrap_err().to_string();
        assert_eq!(
            error,
            "the shape of `conv1.weight` is [4, 3, 9, 1] in the weights, [4, 3, 3, 3] in the network"
        );
    }

    #[test]
    fn broken_files_are_refused() {
        let bytes = to_safetensors(&export(&net(1)), &metadata(), None).unwrap();
        for broken in [&bytes[..bytes.len() - 1], &bytes[..20], &[][..], &[0xff; 64][..]] {
            assert!(matches!(from_safetensors(broken), Err(WeightsError::Format(_))));
        }
        let half = [0u8; 4];
        let view = TensorView::new(Dtype::F16, vec![2], &half).unwrap();
        let error = from_safetensors(&serialize([("w", view)], None).unwrap())
            .unwrap_err()
            .to_string();
        assert_eq!(error, "`w` holds F16, not f32");
    }
}

//! The safetensors format: tensors, PyTorch's counts of batches and metadata to bytes, and back.
//!
//! Invariant: equal contents give equal bytes. Source: the safetensors format; PyTorch's `num_batches_tracked` beside each
//! running mean.

use safetensors::{
    SafeTensors,
    tensor::{Dtype, TensorView, serialize},
};
use std::collections::BTreeMap;

use super::{NamedTensor, WeightsError};

/// Batches that each norm has seen, by the norm's name: PyTorch's `num_batches_tracked`.
pub type Counts = BTreeMap<String, i64>;

/// What PyTorch calls a norm's count.
pub(super) const COUNT: &str = ".num_batches_tracked";
/// The tensor that each norm with a count has.
pub(super) const MEAN: &str = ".running_mean";

/// Safetensors bytes. `tracked`: batches that all running statistics have seen, for PyTorch's `num_batches_tracked`; `None`
/// leaves those entries out.
///
/// # Errors
/// Two tensors of one name, or values that do not fill their shape.
pub fn to_safetensors(
    tensors: &[NamedTensor],
    metadata: &BTreeMap<String, String>,
    tracked: Option<u64>,
) -> Result<Vec<u8>, WeightsError> {
    let norms = tensors.iter().filter_map(|t| t.name.strip_suffix(MEAN));
    let counts = tracked.map_or_else(Counts::new, |count| {
        norms.map(|norm| (norm.to_owned(), count as i64)).collect()
    });
    with_counts(tensors, metadata, &counts)
}

/// Safetensors bytes with a count for each norm in `counts`.
///
/// # Errors
/// As [`to_safetensors`].
pub fn with_counts(
    tensors: &[NamedTensor],
    metadata: &BTreeMap<String, String>,
    counts: &Counts,
) -> Result<Vec<u8>, WeightsError> {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| little_endian(&t.values)).collect();
    let counts: Vec<(String, [u8; 8])> = counts
        .iter()
        .map(|(norm, n)| (format!("{norm}{COUNT}"), n.to_le_bytes()))
        .collect();
    let mut views = Vec::new();
    for (tensor, bytes) in tensors.iter().zip(&bytes) {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?;
        views.push((tensor.name.as_str(), view));
    }
    for (name, bytes) in &counts {
        views.push((name, TensorView::new(Dtype::I64, vec![], bytes)?));
    }
    Ok(with_metadata(serialize(views, None)?, metadata))
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 * values.len());
    values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
    bytes
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
        if name.ends_with(COUNT) {
            continue;
        }
        if view.dtype() != Dtype::F32 {
            return Err(WeightsError::Type {
                name: name.to_owned(),
                found: format!("{:?}", view.dtype()),
                wanted: "f32",
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
    use crate::learn::weights::{export, import};
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

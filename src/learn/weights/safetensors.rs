//! The safetensors format: tensors, PyTorch's counts of batches and metadata to bytes, and back.
//!
//! Invariant: equal contents give equal bytes. Source: the safetensors format; PyTorch's `num_batches_tracked` beside each
//! running mean.

use safetensors::{SafeTensors, tensor::Dtype};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::{NamedTensor, WeightsError};

/// Batches that each norm has seen, by the norm's name: PyTorch's `num_batches_tracked`.
pub type Counts = BTreeMap<String, i64>;

/// What PyTorch calls a norm's count.
pub(super) const COUNT: &str = ".num_batches_tracked";
/// The tensor that each norm with a count has.
pub(super) const MEAN: &str = ".running_mean";

/// A tensor to write, under a name that need not be its own.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Shape and values.
    pub tensor: &'a NamedTensor,
}

impl<'a> Entry<'a> {
    /// Tensors under their own names.
    pub fn all(tensors: &'a [NamedTensor]) -> Vec<Self> {
        let own = |tensor: &'a NamedTensor| Self {
            name: &tensor.name,
            tensor,
        };
        tensors.iter().map(own).collect()
    }
}

/// The same count for the norms among `entries`.
pub fn counts(entries: &[Entry<'_>], batches: u64) -> Counts {
    let norms = entries.iter().filter_map(|entry| entry.name.strip_suffix(MEAN));
    norms.map(|norm| (norm.to_owned(), batches as i64)).collect()
}

/// Safetensors bytes with a count for each norm in `counts`, in memory.
///
/// # Errors
/// As [`write()`].
pub fn to_safetensors(
    tensors: &[NamedTensor],
    metadata: &BTreeMap<String, String>,
    counts: &Counts,
) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    write(&mut bytes, &Entry::all(tensors), metadata, counts)?;
    Ok(bytes)
}

/// Writes the tensors, and a count for each norm in `counts`, without a copy of them. The crate's own writer puts metadata in a hash
/// map's order, other bytes at each call. Counts come first, then tensors by name: wider types first, as the format asks.
///
/// # Errors
/// Two tensors of one name, values that do not fill their shape, or what `out` says.
pub fn write(
    out: &mut impl Write,
    entries: &[Entry<'_>],
    metadata: &BTreeMap<String, String>,
    counts: &Counts,
) -> io::Result<()> {
    let mut entries = entries.to_vec();
    entries.sort_by_key(|entry| entry.name);
    let header = header(&entries, metadata, counts)?;
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for count in counts.values() {
        out.write_all(&count.to_le_bytes())?;
    }
    let mut buffer = Vec::new();
    for values in entries.iter().flat_map(|entry| entry.tensor.values.chunks(16 << 10)) {
        buffer.clear();
        values.iter().for_each(|v| buffer.extend_from_slice(&v.to_le_bytes()));
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// [`write()`] into a new file of a folder that is not in its place yet.
pub fn write_file(
    path: &Path,
    entries: &[Entry<'_>],
    metadata: &BTreeMap<String, String>,
    counts: &Counts,
) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    write(&mut file, entries, metadata, counts)?;
    file.flush()
}

/// The header, padded to eight bytes.
fn header(entries: &[Entry<'_>], metadata: &BTreeMap<String, String>, counts: &Counts) -> io::Result<Vec<u8>> {
    let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    let mut header = format!("{{\"__metadata__\":{}", serde_json::json!(metadata));
    let mut offset = 0;
    let mut add = |name: &str, dtype: &str, shape: &[usize], bytes: usize| {
        let facts = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, offset + bytes] });
        header += &format!(",{}:{facts}", serde_json::json!(name));
        offset += bytes;
    };
    for norm in counts.keys() {
        add(&format!("{norm}{COUNT}"), "I64", &[], 8);
    }
    for (at, Entry { name, tensor }) in entries.iter().enumerate() {
        if at > 0 && entries[at - 1].name == *name {
            return invalid(format!("there are two tensors of the name `{name}`"));
        }
        if tensor.values.len() != tensor.shape.iter().product::<usize>() {
            return invalid(format!("`{name}` does not fill its shape {:?}", tensor.shape));
        }
        add(name, "F32", &tensor.shape, 4 * tensor.values.len());
    }
    let mut header = (header + "}").into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
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

    /// The bytes of a network that has seen twelve batches.
    fn twelve(net: &Net) -> io::Result<Vec<u8>> {
        let tensors = export(net);
        to_safetensors(&tensors, &metadata(), &counts(&Entry::all(&tensors), 12))
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let tensor = |name: &str, shape: Vec<usize>| NamedTensor {
            name: name.into(),
            shape,
            values: vec![1.0, 2.0],
        };
        let refused = |tensors: &[NamedTensor]| {
            to_safetensors(tensors, &metadata(), &Counts::new())
                .unwrap_err()
                .to_string()
        };
        let twice = [tensor("w", vec![2]), tensor("v", vec![2]), tensor("w", vec![2, 1])];
        assert_eq!(refused(&twice), "there are two tensors of the name `w`");
        assert_eq!(refused(&[tensor("w", vec![3])]), "`w` does not fill its shape [3]");
        assert!(to_safetensors(&[], &metadata(), &Counts::new()).is_ok());
    }

    #[test]
    fn weights_make_the_round_trip_bit_for_bit() {
        let source = net(1);
        let bytes = twelve(&source).unwrap();
        let (tensors, read) = from_safetensors(&bytes).unwrap();
        assert_eq!(read, metadata());
        let target = net(2);
        let id = target.conv1.weight.id;
        assert_ne!(export(&target), export(&source));
        let target = import(target, tensors).unwrap();
        assert_eq!(export(&target), export(&source));
        assert_eq!(target.conv1.weight.id, id, "the optimiser's state hangs on the id");
        assert!(target.conv1.weight.is_require_grad() && !target.bn1.running_mean.is_require_grad());
        assert_eq!(bytes, twelve(&target).unwrap());
    }

    #[test]
    fn batches_are_counted_beside_each_running_mean() {
        let bytes = twelve(&net(1)).unwrap();
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
        let bytes = to_safetensors(&export(&net(1)), &metadata(), &Counts::new()).unwrap();
        for broken in [&bytes[..bytes.len() - 1], &bytes[..20], &[][..], &[0xff; 64][..]] {
            assert!(matches!(from_safetensors(broken), Err(WeightsError::Format(_))));
        }
        let half = [0u8; 4];
        let view = safetensors::tensor::TensorView::new(Dtype::F16, vec![2], &half).unwrap();
        let error = from_safetensors(&safetensors::serialize([("w", view)], None).unwrap())
            .unwrap_err()
            .to_string();
        assert_eq!(error, "`w` holds F16, not f32");
    }
}

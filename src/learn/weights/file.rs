//! A file of weights, whoever wrote it: every tensor by its name in the file, with its own type.
//!
//! In: a path, or bytes. Out: a [`WeightsFile`]. PyTorch's zip archives and safetensors are told apart by their first bytes, not by
//! their names. Invariant: a tensor of the file is an entry here, and what else the file holds is named in `not_read`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::{SafeTensors, tensor::Dtype};

use super::pytorch::{self, PytorchError};
use super::{NamedTensor, WeightsError};
use crate::learn::LearnError;

/// The types that weights are stored in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Single precision: ours.
    F32,
    /// Double precision.
    F64,
    /// Integers of 64 bits: counts of batches.
    I64,
    /// Any other, by the name in the file.
    Other(String),
}

impl Kind {
    /// Bytes of an element, where it is known.
    pub fn size(&self) -> Option<usize> {
        match self {
            Self::F16 | Self::Bf16 => Some(2),
            Self::F32 => Some(4),
            Self::F64 | Self::I64 => Some(8),
            Self::Other(_) => None,
        }
    }
}

/// One tensor as it is in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name there.
    pub name: String,
    /// Sizes of its axes.
    pub shape: Vec<usize>,
    /// Type of its elements.
    pub kind: Kind,
    /// Little-endian elements in row-major order; empty where the type is not known.
    pub bytes: Vec<u8>,
}

impl Entry {
    /// The entry under another name, in f32: exact from the smaller types, rounded from f64.
    ///
    /// # Errors
    /// A type that is none of floats.
    pub fn into_tensor(self, name: String) -> Result<NamedTensor, WeightsError> {
        let dtype = match self.kind {
            Kind::F16 => DType::F16,
            Kind::Bf16 => DType::BF16,
            Kind::F32 => DType::F32,
            Kind::F64 => DType::F64,
            Kind::I64 => return Err(WeightsError::of_type(&self.name, "I64")),
            Kind::Other(found) => return Err(WeightsError::of_type(&self.name, &found)),
        };
        let shape = self.shape;
        let data = TensorData::from_bytes_vec(self.bytes, shape.clone(), dtype);
        let values = data.convert::<f32>().into_vec().expect("converted just now");
        Ok(NamedTensor { name, shape, values })
    }

    /// The one integer that the entry holds.
    ///
    /// # Errors
    /// Another type or another shape.
    pub fn count(&self) -> Result<i64, WeightsError> {
        match (&self.kind, <[u8; 8]>::try_from(&self.bytes[..])) {
            (Kind::I64, Ok(bytes)) if self.shape.is_empty() => Ok(i64::from_le_bytes(bytes)),
            (Kind::I64, _) => Err(WeightsError::Shape {
                name: self.name.clone(),
                expected: Vec::new(),
                found: self.shape.clone(),
                more: 0,
            }),
            (kind, _) => Err(WeightsError::Type {
                name: self.name.clone(),
                found: format!("{kind:?}"),
                wanted: "one integer of 64 bits",
            }),
        }
    }
}

/// What a file of weights holds.
#[derive(Debug, Default)]
pub struct WeightsFile {
    /// Its tensors.
    pub entries: Vec<Entry>,
    /// What it says of itself.
    pub metadata: BTreeMap<String, String>,
    /// The key of the dictionary that the tensors lie under, if they do not lie at the top.
    pub under: Option<String>,
    /// What else it holds, such as an optimiser's state: name and description.
    pub not_read: Vec<(String, String)>,
}

/// What torch.save wrote before version 1.6: a long integer, the magic number of torch/serialization.py.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

impl WeightsFile {
    /// Reads a file.
    ///
    /// # Errors
    /// One that cannot be read, is damaged, or is no file of weights.
    pub fn open(path: &Path) -> Result<Self, LearnError> {
        let file = File::open(path).map_err(|source| LearnError::io("read", path, source))?;
        Self::read(BufReader::new(file)).map_err(|source| LearnError::Weights {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads what a file would hold.
    ///
    /// # Errors
    /// As [`WeightsFile::open`].
    pub fn read(mut source: impl Read + Seek) -> Result<Self, WeightsError> {
        let mut head = Vec::new();
        source.by_ref().take(264).read_to_end(&mut head)?;
        source.rewind()?;
        if head.starts_with(b"PK") {
            return Ok(pytorch::read(source)?);
        }
        if head.starts_with(LEGACY) || head.get(257..262) == Some(b"ustar") {
            return Err(PytorchError::Legacy.into());
        }
        if head.get(8) != Some(&b'{') {
            return Err(WeightsError::NoWeights);
        }
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes)?;
        from_safetensors(&bytes)
    }
}

fn from_safetensors(bytes: &[u8]) -> Result<WeightsFile, WeightsError> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let entry = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| Entry {
        name: name.to_owned(),
        shape: view.shape().to_vec(),
        kind: match view.dtype() {
            Dtype::F16 => Kind::F16,
            Dtype::BF16 => Kind::Bf16,
            Dtype::F32 => Kind::F32,
            Dtype::F64 => Kind::F64,
            Dtype::I64 => Kind::I64,
            other => Kind::Other(format!("{other:?}")),
        },
        bytes: view.data().to_vec(),
    };
    let mut entries: Vec<Entry> = SafeTensors::deserialize(bytes)?.iter().map(entry).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(WeightsFile {
        entries,
        metadata,
        ..WeightsFile::default()
    })
}

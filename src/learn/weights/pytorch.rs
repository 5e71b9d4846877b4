//! Files of `torch.save`: a zip archive of stored entries, `data.pkl` with names, shapes and strides, `data/N` with the elements.
//!
//! In: an archive. Out: the tensors of its state dictionary, at the top or under a key such as `model`; the rest is named.
//! Invariants: no code is run (`pickle` makes data alone); only the storages of the state dictionary are read; every byte read has
//! passed the archive's checksum; no tensor takes more memory than its storage in the file.
//! Source: torch/serialization.py (format since 1.6); the formats before it are refused with a remedy. burn-store's reader was
//! looked at: it ignores strides, so that a transposed weight would be read as another, and drops what is no tensor unnamed.

use std::collections::HashMap;
use std::io::{Read, Seek};
use std::rc::Rc;

use zip::ZipArchive;
use zip::result::ZipError;

use super::file::{Entry, Kind, WeightsFile};
use super::pickle::{self, Heap, PickleError, Storage, TensorView, Value};

/// Keys that checkpoints keep their state dictionary under.
const UNDER: [&str; 4] = ["state_dict", "model", "model_state_dict", "module"];

/// Why a PyTorch file was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PytorchError {
    /// The archive is cut short or damaged.
    #[error("the zip archive is cut short or damaged")]
    Zip(#[from] ZipError),
    /// An entry of the archive cannot be read.
    #[error("cannot read `{name}` in the zip archive")]
    Entry {
        /// Which.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// A zip archive of something else.
    #[error("a zip archive without `data.pkl`, so not one of torch.save")]
    NotTorch,
    /// Written on a machine of the other byte order.
    #[error("the file was written on a big-endian machine")]
    BigEndian,
    /// A format of torch before 1.6.
    #[error("the file has the format of torch.save before version 1.6")]
    Legacy,
    /// The pickle.
    #[error("cannot read its `data.pkl`")]
    Pickle(#[from] PickleError),
    /// The file holds a whole module, a list or a number.
    #[error("the file holds no dictionary of tensors but {found}")]
    NoDictionary {
        /// What it holds.
        found: String,
    },
    /// No dictionary in it holds tensors, or several do.
    #[error("{} of the file holds weights under a key that is known; it has {}",
        if *several { "more than one dictionary" } else { "no dictionary" }, keys.join(", "))]
    WhichDictionary {
        /// More than one.
        several: bool,
        /// The keys with what they hold.
        keys: Vec<String>,
    },
    /// Something in the state dictionary that is not understood.
    #[error("`{name}` is no plain tensor but {found}")]
    NotATensor {
        /// Its key.
        name: String,
        /// What it is.
        found: String,
    },
    /// A tensor that does not lie in its storage, or is larger than it.
    #[error("the tensor `{name}` does not fit its storage of {elements} elements")]
    Storage {
        /// Its key.
        name: String,
        /// The storage's size.
        elements: usize,
    },
}

impl PytorchError {
    /// What the user can do about it, in Python.
    pub fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Legacy => {
                "convert it, where you trust it: `torch.save(torch.load(f), f)` with a torch of version 1.6 or later"
            }
            Self::NoDictionary { .. } => "save the state dictionary alone: `torch.save(model.state_dict(), f)`",
            Self::WhichDictionary { .. } => {
                "save the right one alone, such as `torch.save(torch.load(f)[\"student\"], g)`; `state_dict`, `model`, \
                 `model_state_dict` and `module` are looked at"
            }
            Self::BigEndian => "save it again on a little-endian machine",
            Self::Pickle(PickleError::Refused { .. }) => {
                "do not load the file in Python; take the weights from a source that you trust"
            }
            Self::Zip(_) | Self::Entry { .. } => "download or copy the file again",
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// Reads an archive.
pub fn read(source: impl Read + Seek) -> Result<WeightsFile, PytorchError> {
    let mut archive = Archive::open(source)?;
    let (root, heap) = pickle::read(&archive.entry("data.pkl")?)?;
    let Value::Dict(at) = root else {
        return Err(PytorchError::NoDictionary {
            found: heap.describe(&root),
        });
    };
    let top = last_wins(&heap.dicts[at]);
    let (under, items, mut rest) = state_dictionary(&heap, top)?;
    let mut tensors = Vec::new();
    for (key, value) in items {
        let name = key_name(&heap, key);
        match (key, value) {
            (Value::Text(_), Value::Tensor(tensor)) => tensors.push((name, tensor.clone())),
            (_, Value::Tensor(_) | Value::Object(_) | Value::Storage(_)) => {
                let found = heap.describe(value);
                return Err(PytorchError::NotATensor { name, found });
            }
            _ => rest.push((name, heap.describe(value))),
        }
    }
    Ok(WeightsFile {
        entries: archive.elements(tensors)?,
        under,
        not_read: rest,
        ..WeightsFile::default()
    })
}

type Items<'a> = Vec<(&'a Value, &'a Value)>;

/// A dictionary's items as Python would have them: the last of equal keys stays.
fn last_wins(items: &[(Value, Value)]) -> Items<'_> {
    let mut places = HashMap::new();
    let mut result: Items<'_> = Vec::new();
    for (key, value) in items {
        if let Value::Text(text) = key
            && let Some(at) = places.insert(text.clone(), result.len())
        {
            places.insert(text.clone(), at);
            result[at] = (key, value);
            continue;
        }
        result.push((key, value));
    }
    result
}

/// The state dictionary: the top, if a tensor lies there, else the one dictionary with tensors under a known key; with its key, and what
/// lies beside it.
#[allow(clippy::type_complexity)]
fn state_dictionary<'a>(
    heap: &'a Heap,
    top: Items<'a>,
) -> Result<(Option<String>, Items<'a>, Vec<(String, String)>), PytorchError> {
    let is_tensor = |(_, value): &(&Value, &Value)| matches!(value, Value::Tensor(_));
    if top.iter().any(is_tensor) {
        return Ok((None, top, Vec::new()));
    }
    let mut found = Vec::new();
    for &(key, value) in &top {
        if let (Value::Text(key), Value::Dict(at)) = (key, value)
            && UNDER.contains(&&**key)
        {
            let items = last_wins(&heap.dicts[*at]);
            if items.iter().any(is_tensor) {
                found.push((key.to_string(), items));
            }
        }
    }
    let described = |(key, value): &(&Value, &Value)| (key_name(heap, key), heap.describe(value));
    if found.len() == 1
        && let Some((under, items)) = found.pop()
    {
        let beside = top.iter().map(described).filter(|(key, _)| *key != under).collect();
        return Ok((Some(under), items, beside));
    }
    Err(PytorchError::WhichDictionary {
        several: !found.is_empty(),
        keys: top
            .iter()
            .map(|item| {
                let (key, found) = described(item);
                format!("`{key}` ({found})")
            })
            .collect(),
    })
}

fn key_name(heap: &Heap, key: &Value) -> String {
    match key {
        Value::Text(text) => text.to_string(),
        other => heap.describe(other),
    }
}

/// The zip archive; all entries lie in one folder, whose name is the file's when it was saved.
struct Archive<R> {
    zip: ZipArchive<R>,
    folder: String,
}

impl<R: Read + Seek> Archive<R> {
    fn open(source: R) -> Result<Self, PytorchError> {
        let zip = ZipArchive::new(source)?;
        let folder = zip
            .file_names()
            .find_map(|name| {
                name.strip_suffix("data.pkl")
                    .filter(|f| f.is_empty() || f.ends_with('/'))
            })
            .ok_or(PytorchError::NotTorch)?
            .to_owned();
        let mut archive = Self { zip, folder };
        // Written by torch since 2.1; before, the order was the writer's, which is little-endian wherever torch was common.
        let has_order = archive
            .zip
            .index_for_name(&format!("{}byteorder", archive.folder))
            .is_some();
        if has_order && archive.entry("byteorder")? != b"little" {
            return Err(PytorchError::BigEndian);
        }
        Ok(archive)
    }

    /// The bytes of an entry, its checksum passed.
    fn entry(&mut self, name: &str) -> Result<Vec<u8>, PytorchError> {
        let name = format!("{}{name}", self.folder);
        let mut bytes = Vec::new();
        let mut entry = self.zip.by_name(&name)?;
        match entry.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(source) => Err(PytorchError::Entry { name, source }),
        }
    }

    /// The tensors with their elements. A storage that several share is read once.
    fn elements(&mut self, tensors: Vec<(String, Rc<TensorView>)>) -> Result<Vec<Entry>, PytorchError> {
        let mut uses: HashMap<Rc<str>, usize> = HashMap::new();
        for (_, tensor) in &tensors {
            *uses.entry(tensor.storage.key.clone()).or_default() += 1;
        }
        let mut shared: HashMap<Rc<str>, Vec<u8>> = HashMap::new();
        let mut entries = Vec::new();
        for (name, tensor) in tensors {
            let storage = &tensor.storage;
            let kind = kind(storage);
            let bytes = match kind.size() {
                None => Vec::new(),
                Some(size) => {
                    let whole = match shared.remove(&storage.key) {
                        Some(bytes) => bytes,
                        None => self.entry(&format!("data/{}", storage.key))?,
                    };
                    let gathered = gather(&tensor, &whole, size).ok_or(PytorchError::Storage {
                        name: name.clone(),
                        elements: storage.elements,
                    })?;
                    if uses[&storage.key] > 1 {
                        shared.insert(storage.key.clone(), whole);
                    }
                    gathered
                }
            };
            entries.push(Entry {
                name,
                shape: tensor.shape.clone(),
                kind,
                bytes,
            });
        }
        Ok(entries)
    }
}

fn kind(storage: &Storage) -> Kind {
    match &*storage.kind {
        "HalfStorage" => Kind::F16,
        "BFloat16Storage" => Kind::Bf16,
        "FloatStorage" => Kind::F32,
        "DoubleStorage" => Kind::F64,
        "LongStorage" => Kind::I64,
        other => Kind::Other(other.to_owned()),
    }
}

/// A view's elements in row-major order. `None` where it leaves its storage, or repeats elements and so is larger than it.
fn gather(tensor: &TensorView, storage: &[u8], size: usize) -> Option<Vec<u8>> {
    let elements = tensor
        .shape
        .iter()
        .try_fold(1usize, |product, &n| product.checked_mul(n))?;
    if elements == 0 {
        return Some(Vec::new());
    }
    let axes = || tensor.shape.iter().zip(&tensor.strides);
    let last = axes().try_fold(tensor.offset, |sum, (&n, &step)| {
        sum.checked_add((n - 1).checked_mul(step)?)
    })?;
    let end = last.checked_add(1)?.checked_mul(size)?;
    if end > storage.len() || elements > storage.len() / size {
        return None;
    }
    let mut step = 1;
    let contiguous = axes().rev().all(|(&n, &stride)| {
        let fits = n == 1 || stride == step;
        step *= n;
        fits
    });
    if contiguous {
        return Some(storage[tensor.offset * size..end].to_vec());
    }
    let mut bytes = Vec::with_capacity(elements * size);
    let mut index = vec![0; tensor.shape.len()];
    for _ in 0..elements {
        let place: usize = index.iter().zip(&tensor.strides).map(|(i, step)| i * step).sum();
        let from = (tensor.offset + place) * size;
        bytes.extend_from_slice(&storage[from..from + size]);
        for (i, &n) in index.iter_mut().zip(&tensor.shape).rev() {
            *i += 1;
            if *i < n {
                break;
            }
            *i = 0;
        }
    }
    Some(bytes)
}

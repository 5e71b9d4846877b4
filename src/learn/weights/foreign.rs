//! A file of another program -> parameters of ours: layout, network, strict comparison, values; and ours -> its names.
//!
//! In: a [`WeightsFile`]. Out: an [`Imported`] network with its weights under our names. Invariant: every tensor of the file is used,
//! is the classifier's that the user drops, or is named in the error under the file's own name; nothing is half imported.

use std::collections::BTreeMap;

use super::file::{Kind, WeightsFile};
use super::layout::{Layout, Place, Scheme};
use super::network::{Network, Shapes};
use super::safetensors::{COUNT, Counts, MEAN};
use super::{NamedTensor, WeightsError, compare};
use crate::learn::resnet::Stem;

/// What the user says of a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportOptions {
    /// Whose names it has; `None`: told by its keys.
    pub layout: Option<Layout>,
    /// Drop a classifier's keys.
    pub drop_head: bool,
    /// Padding of the first convolution.
    pub stem_padding: Option<u32>,
}

/// How the stem's padding is known: no weight tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// The stem's own: 7x7 always has 3.
    Usual,
    /// A 3x3 stem's usual 1, taken for want of anything better.
    Assumed,
    /// solo-learn's 2 for a 3x3 stem.
    SoloLearn,
    /// Said by the user, or by the file's metadata.
    Given,
}

/// A network read from a file.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The file's names.
    pub scheme: Scheme,
    /// What it is.
    pub network: Network,
    /// How its padding is known.
    pub padding: Padding,
    /// Weights by our names, in the order of the names.
    pub tensors: Vec<NamedTensor>,
    /// Counts of batches, by our norms' names; empty if the file has none.
    pub counts: Counts,
    /// Keys of the classifier that was dropped.
    pub dropped: Vec<String>,
    /// Tensors that were rounded from f64.
    pub rounded: usize,
}

/// Reads the network that a file holds.
///
/// # Errors
/// Keys of no layout, a classifier that is not to be dropped, a network that is none of ours, any key that is missing or has no
/// place, any shape or type that differs.
pub fn import_file(file: WeightsFile, options: &ImportOptions) -> Result<Imported, WeightsError> {
    let scheme = Scheme::detect(file.entries.iter().map(|entry| entry.name.as_str()), options.layout)?;
    let mut found = Found::default();
    for entry in file.entries {
        match scheme.place(&entry.name) {
            Place::Ours(ours) => match ours.strip_suffix(COUNT) {
                Some(norm) => found.counts.push((norm.to_owned(), entry)),
                None => found.floats.push((ours, entry)),
            },
            Place::Head => found.head.push(entry.name),
            Place::Nowhere => found.nowhere.push(entry.name),
        }
    }
    if !found.head.is_empty() && !options.drop_head {
        return Err(WeightsError::Head { names: found.head });
    }
    let shapes: Shapes = found
        .floats
        .iter()
        .map(|(ours, entry)| (ours.clone(), entry.shape.clone()))
        .collect();
    let mut network = match Network::of(&shapes) {
        Ok(network) => network,
        // A key that nobody has says more than what the rest would be.
        Err(_) if !found.nowhere.is_empty() => return Err(WeightsError::Unused { names: found.nowhere }),
        Err(error) => return Err(error.into()),
    };
    check(&scheme, &network, &found)?;
    let said = options
        .stem_padding
        .or_else(|| file.metadata.get("stem_padding")?.parse().ok());
    let padding = pad(&mut network, scheme.layout, said)?;
    let rounded = found.floats.iter().filter(|(_, entry)| entry.kind == Kind::F64).count();
    let tensors = found.floats.into_iter().map(|(ours, entry)| entry.into_tensor(ours));
    let mut tensors = tensors.collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let counts = found
        .counts
        .iter()
        .map(|(norm, entry)| Ok((norm.clone(), entry.count()?)));
    Ok(Imported {
        scheme,
        network,
        padding,
        tensors,
        counts: counts.collect::<Result<_, WeightsError>>()?,
        dropped: found.head,
        rounded,
    })
}

/// A file's entries by where they belong.
#[derive(Default)]
struct Found {
    floats: Vec<(String, super::file::Entry)>,
    counts: Vec<(String, super::file::Entry)>,
    head: Vec<String>,
    nowhere: Vec<String>,
}

/// Holds the file to the network, in the file's own names. Counts are there for all norms or for none.
fn check(scheme: &Scheme, network: &Network, found: &Found) -> Result<(), WeightsError> {
    let name = |ours: &str| scheme.theirs(ours).unwrap_or_else(|| ours.to_owned());
    let mut expected = Shapes::new();
    for (ours, shape) in network.parameters() {
        if let (Some(norm), false) = (ours.strip_suffix(MEAN), found.counts.is_empty()) {
            expected.insert(name(&format!("{norm}{COUNT}")), Vec::new());
        }
        expected.insert(name(&ours), shape);
    }
    let entries = found
        .floats
        .iter()
        .chain(&found.counts)
        .map(|(_, entry)| (entry.name.clone(), entry.shape.clone()));
    // A key without a place has a shape that matters to nobody.
    let nowhere = found.nowhere.iter().map(|key| (key.clone(), Vec::new()));
    compare(&expected, &entries.chain(nowhere).collect())
}

/// Enters the stem's padding.
fn pad(network: &mut Network, layout: Layout, said: Option<u32>) -> Result<Padding, WeightsError> {
    let encoder = &mut network.encoder;
    let (padding, how) = match (said, encoder.stem) {
        (Some(padding), _) => (Some(padding), Padding::Given),
        (None, Stem::Imagenet) => (None, Padding::Usual),
        (None, Stem::Cifar) if layout == Layout::SoloLearn => (Some(2), Padding::SoloLearn),
        (None, Stem::Cifar) => (None, Padding::Assumed),
    };
    encoder.stem_padding = padding.filter(|&padding| padding as usize != encoder.stem_convolution().2.padding);
    encoder.validate()?;
    Ok(how)
}

/// What a file in another layout holds of ours: tensors and counts under its names. Parameters without a place there, the expander's
/// in the layouts of a backbone alone, are left out.
pub fn renamed(scheme: &Scheme, tensors: &[NamedTensor], counts: &Counts) -> (Vec<NamedTensor>, Counts) {
    let tensor = |tensor: &NamedTensor| {
        Some(NamedTensor {
            name: scheme.theirs(&tensor.name)?,
            ..tensor.clone()
        })
    };
    // A norm's name is the beginning of its parameters': the dot makes it a whole one.
    let norm = |(ours, &count): (&String, &i64)| {
        let theirs = scheme.theirs(&format!("{ours}{COUNT}"))?;
        Some((theirs.strip_suffix(COUNT)?.to_owned(), count))
    };
    (
        tensors.iter().filter_map(tensor).collect(),
        counts.iter().filter_map(norm).collect(),
    )
}

/// The facts of a network that its file carries: what `weights import` and whoever uses the file cannot tell from shapes.
pub fn metadata(network: &Network) -> BTreeMap<String, String> {
    let encoder = &network.encoder;
    let mut facts = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("depth".to_owned(), encoder.depth.to_string()),
        ("width".to_owned(), encoder.width.to_string()),
        ("stem".to_owned(), super::network::stem_name(encoder.stem).to_owned()),
    ]);
    if let Some(padding) = encoder.stem_padding {
        facts.insert("stem_padding".to_owned(), padding.to_string());
    }
    facts
}

//! Weights that a new run begins from: another run's, what `weights import` wrote, or a file of weights.
//!
//! In: what `--init-from` names, and a fresh model. Out: the model with the weights in it. Invariant: the backbone fits in full or it
//! is an error; the expander's weights are used if they fit the recipe's, else it begins fresh, and a line says so.

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::CliError;
use super::recipe::Recipe;
use crate::learn::checkpoint::newest;
use crate::learn::model::VicReg;
use crate::learn::ops::TrainOps;
use crate::learn::weights::file::WeightsFile;
use crate::learn::weights::foreign::{ImportOptions, Imported, Padding, import_file};
use crate::learn::weights::network::{Network, Shapes};
use crate::learn::weights::{self, NamedTensor, WeightsError};
use crate::learn::{LearnError, weights::compare};

/// A file of weights to begin from.
pub struct Init {
    file: PathBuf,
    /// What names the weights: a digest of their file.
    pub digest: String,
}

impl Init {
    /// Finds the weights that a path means.
    pub fn find(path: &Path) -> Result<Self, CliError> {
        let file = weights_file(path)?;
        let bytes = std::fs::read(&file).map_err(|source| LearnError::io("read", &file, source))?;
        Ok(Self {
            digest: format!("{:016x}", xxh3_64(&bytes)),
            file,
        })
    }

    /// The model with these weights in place of its first ones.
    pub fn begin<B: TrainOps>(&self, mut model: VicReg<B>, recipe: &Recipe) -> Result<VicReg<B>, LearnError> {
        let wrong = LearnError::weights(&self.file);
        let found = import_file(WeightsFile::open(&self.file)?, &ImportOptions::default()).map_err(&wrong)?;
        let wanted = Network {
            encoder: recipe.encoder.clone(),
            expander: Some(recipe.expander.clone()),
        };
        let fit = Fit::new(&wanted, &found);
        fit.backbone.map_err(|source| self.misfit(&wanted, &found, source))?;
        self.warn_of_padding(&wanted, &found);
        let (backbone, projector) = split(found.tensors);
        model.backbone = weights::import(model.backbone, backbone).map_err(&wrong)?;
        say!("weights from `{}`", self.file.display());
        match (fit.projector, projector.is_empty()) {
            (Ok(()), _) => model.projector = weights::import(model.projector, projector).map_err(&wrong)?,
            (Err(_), true) => say!("the expander begins fresh: the weights have none"),
            (Err(error), false) => {
                let keys = differing(&wanted, &found.network, "expander.");
                say!("the expander begins fresh: {error}; the weights' own has `{keys}`");
            }
        }
        Ok(model)
    }

    fn misfit(&self, wanted: &Network, found: &Imported, source: WeightsError) -> LearnError {
        LearnError::InitWeights {
            path: self.file.clone(),
            source,
            network: found.network.to_string(),
            keys: differing(wanted, &found.network, "encoder."),
        }
    }

    /// Padding changes what the same weights compute, and no shape tells it.
    fn warn_of_padding(&self, wanted: &Network, found: &Imported) {
        let padding = |network: &Network| network.encoder.stem_convolution().2.padding;
        let (ours, theirs) = (padding(wanted), padding(&found.network));
        if ours != theirs && found.padding != Padding::Assumed {
            say!(
                "warning: the first convolution of the weights is padded by {theirs}, the recipe's by {ours}; \
                 `--set encoder.stem_padding={theirs}` trains the network that they are of"
            );
        }
    }
}

/// The recipe's keys below `table` that would make the network of the weights, where they differ, as flags.
fn differing(recipe: &Network, weights: &Network, table: &str) -> String {
    let recipe = recipe.recipe_keys();
    let differ = |key: &String| key.starts_with(table) && !recipe.contains(key);
    let keys = weights.recipe_keys().into_iter().filter(differ);
    keys.map(|key| format!("--set {key}")).collect::<Vec<_>>().join(" ")
}

/// How the two parts of a network fit a recipe's.
struct Fit {
    backbone: Result<(), WeightsError>,
    projector: Result<(), WeightsError>,
}

impl Fit {
    fn new(wanted: &Network, found: &Imported) -> Self {
        let wanted = wanted.parameters();
        let found: Shapes = found
            .tensors
            .iter()
            .map(|t| (t.name.clone(), t.shape.clone()))
            .collect();
        let part = |prefix: &str, shapes: &Shapes| -> Shapes {
            let mut shapes = shapes.clone();
            shapes.retain(|name, _| name.starts_with(prefix));
            shapes
        };
        let fit = |prefix: &str| compare(&part(prefix, &wanted), &part(prefix, &found));
        Self {
            backbone: fit("backbone."),
            projector: fit("projector."),
        }
    }
}

/// Backbone and projector, each by its own names.
fn split(tensors: Vec<NamedTensor>) -> (Vec<NamedTensor>, Vec<NamedTensor>) {
    let (mut backbone, mut projector) = (Vec::new(), Vec::new());
    for mut tensor in tensors {
        if let Some(name) = tensor.name.strip_prefix("backbone.") {
            tensor.name = name.to_owned();
            backbone.push(tensor);
        } else if let Some(name) = tensor.name.strip_prefix("projector.") {
            tensor.name = name.to_owned();
            projector.push(tensor);
        }
    }
    (backbone, projector)
}

/// The file that a path means: itself; a checkpoint's, or that of a run's newest; what `weights import` wrote; a run's encoder.
pub fn weights_file(path: &Path) -> Result<PathBuf, CliError> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let folder = match newest(path)? {
        Some(checkpoint) => checkpoint,
        None => path.to_owned(),
    };
    let mut files = ["model.safetensors", "encoder.safetensors"]
        .map(|name| folder.join(name))
        .into_iter();
    files.find(|file| file.is_file()).ok_or_else(|| CliError::NothingThere {
        what: "checkpoint, `model.safetensors` or `encoder.safetensors`",
        path: path.to_owned(),
    })
}

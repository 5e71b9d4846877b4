//! `weights import`, `weights export`: networks of other programs into ours, and ours into their names.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::init::weights_file;
use super::{CliError, print};
use crate::data::store;
use crate::learn::LearnError;
use crate::learn::checkpoint::CheckpointState;
use crate::learn::resnet::ResNetOptions;
use crate::learn::weights::file::WeightsFile;
use crate::learn::weights::foreign::{ImportOptions, Imported, Padding, import_file, metadata, renamed};
use crate::learn::weights::layout::{Layout, Scheme};
use crate::learn::weights::network::Network;
use crate::learn::weights::probe::Probe;
use crate::learn::weights::safetensors::{self, Entry};

#[derive(Debug, Subcommand)]
pub enum WeightsCommand {
    /// Read a network that another program trained: torch.save's .pth, .pt, .ckpt, or safetensors
    Import(ImportArgs),
    /// Write a run's network under the names of torchvision, timm or the official code
    Export(ExportArgs),
}

/// Arguments of `weights import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The file; nothing in it is ever executed
    file: PathBuf,
    /// New folder for encoder.safetensors and, with an expander, model.safetensors; `train --init-from` takes it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Whose names the file has
    #[arg(long, value_enum, value_name = "LAYOUT", default_value = "auto")]
    layout: LayoutChoice,
    /// Drop the keys of a classifier (fc.*, classifier.*, online_classifier.*), and say which
    #[arg(long)]
    drop_head: bool,
    /// Zero padding of the first convolution, which no weight tells: 1 or 2 for a 3x3 stem
    #[arg(long, value_name = "P")]
    stem_padding: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `weights export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Run folder, checkpoint folder, folder of `weights import`, or a .safetensors file of ours
    source: PathBuf,
    /// torchvision and timm: the backbone alone; official: with the expander, where there is one
    #[arg(long, value_enum, value_name = "NAMING")]
    naming: Naming,
    /// The file to write
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// Also write, as JSON, what the network computes of a fixed input, to hold another program to
    #[arg(long, value_name = "FILE.json")]
    probe: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `--layout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LayoutChoice {
    /// Told by the file's keys
    Auto,
    /// conv1.weight, layer1.0.bn1.bias, ...
    Torchvision,
    /// The same names
    Timm,
    /// module.backbone.* and module.projector.*, or resnet50.pth
    Official,
    /// backbone.*, projector.*, classifier.*; a 3x3 stem has padding 2
    SoloLearn,
    /// backbone.0.weight, ..., projection_head.layers.*
    Lightly,
}

impl LayoutChoice {
    fn layout(self) -> Option<Layout> {
        match self {
            Self::Auto => None,
            Self::Torchvision => Some(Layout::Torchvision),
            Self::Timm => Some(Layout::Timm),
            Self::Official => Some(Layout::Official),
            Self::SoloLearn => Some(Layout::SoloLearn),
            Self::Lightly => Some(Layout::Lightly),
        }
    }
}

/// `--naming`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Naming {
    Torchvision,
    Timm,
    Official,
}

impl Naming {
    fn layout(self) -> Layout {
        match self {
            Self::Torchvision => Layout::Torchvision,
            Self::Timm => Layout::Timm,
            Self::Official => Layout::Official,
        }
    }
}

pub fn run(command: &WeightsCommand) -> Result<(), CliError> {
    match command {
        WeightsCommand::Import(args) => import(args),
        WeightsCommand::Export(args) => export(args),
    }
}

/// What `weights import` read and wrote.
#[derive(Debug, Serialize)]
struct ImportReport {
    layout: String,
    network: String,
    encoder_parameters: u64,
    expander_parameters: u64,
    keys: usize,
    dropped: Vec<String>,
    recipe: Vec<String>,
    wrote: Vec<PathBuf>,
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "layout      {}", self.layout)?;
        writeln!(f, "network     {}", self.network)?;
        writeln!(
            f,
            "parameters  {} encoder + {} expander",
            self.encoder_parameters, self.expander_parameters
        )?;
        writeln!(f, "keys        {} used, {} dropped", self.keys, self.dropped.len())?;
        writeln!(f, "recipe      {}", self.recipe.join(" "))?;
        for file in &self.wrote {
            writeln!(f, "wrote       {}", file.display())?;
        }
        Ok(())
    }
}

fn import(args: &ImportArgs) -> Result<(), CliError> {
    refuse_full(&args.out)?;
    let mut file = WeightsFile::open(&args.file)?;
    if let Some(under) = &file.under {
        say!("reading the weights under `{under}`");
    }
    for (key, what) in &file.not_read {
        say!("not read: `{key}` ({what})");
    }
    let keys = file.entries.len();
    let said = std::mem::take(&mut file.metadata);
    let options = ImportOptions {
        layout: args.layout.layout(),
        drop_head: args.drop_head,
        stem_padding: args.stem_padding.or_else(|| said.get("stem_padding")?.parse().ok()),
    };
    let mut found = import_file(file, &options).map_err(LearnError::weights(&args.file))?;
    say_notes(&found);
    if found.counts.is_empty() {
        found.counts = safetensors::counts(&Entry::all(&found.tensors), 0);
    }
    // What the file says of pixels (mean, std, size) stays; what it says of the network is what was read.
    let facts = said.into_iter().chain(metadata(&found.network)).collect();
    let wrote = write_folder(&args.out, &found, &facts)?;
    let Network { encoder, expander } = &found.network;
    let features = encoder.representation_dim();
    let report = ImportReport {
        layout: found.scheme.describe(),
        network: found.network.to_string(),
        encoder_parameters: encoder.cost(32).parameters,
        expander_parameters: expander.as_ref().map_or(0, |expander| expander.parameters(features)),
        keys: keys - found.dropped.len(),
        dropped: found.dropped,
        recipe: found.network.recipe_keys(),
        wrote,
    };
    Ok(print(args.json, &report)?)
}

fn refuse_full(folder: &Path) -> Result<(), CliError> {
    match store::first_name(folder) {
        Some(found) => Err(CliError::FolderInUse {
            path: folder.to_owned(),
            found,
        }),
        None => Ok(()),
    }
}

/// What was dropped, rounded, assumed or made up.
fn say_notes(found: &Imported) {
    for key in &found.dropped {
        say!("dropped: `{key}`");
    }
    if found.rounded > 0 {
        say!("note: {} tensors were rounded from f64 to f32", found.rounded);
    }
    match found.padding {
        Padding::SoloLearn => say!("note: a 3x3 stem of solo-learn has padding 2; `--stem-padding` says otherwise"),
        Padding::Assumed => {
            say!("note: no weight tells the padding of a 3x3 stem; 1 is assumed, `--stem-padding` says otherwise");
        }
        Padding::Usual | Padding::Given => {}
    }
    if found.counts.is_empty() {
        say!("note: the file has no `num_batches_tracked`; 0 is written");
    }
}

/// The folder appears whole: the encoder under torchvision's names, and the whole model where there is an expander.
fn write_folder(out: &Path, found: &Imported, facts: &BTreeMap<String, String>) -> Result<Vec<PathBuf>, CliError> {
    let backbone = Scheme::for_export(Layout::Torchvision, false);
    let (tensors, counts) = renamed(&backbone, &found.tensors, &found.counts);
    let mut files = vec![("encoder.safetensors", &tensors, &counts)];
    if found.network.expander.is_some() {
        files.push(("model.safetensors", &found.tensors, &found.counts));
    }
    let pending = store::PendingFolder::create(out)?;
    for (name, tensors, counts) in &files {
        let file = pending.path().join(name);
        safetensors::write_file(&file, &Entry::all(tensors), facts, counts)
            .map_err(|source| LearnError::io("write", &file, source))?;
    }
    pending.commit()?;
    Ok(files.iter().map(|(name, ..)| out.join(name)).collect())
}

/// What `weights export` wrote.
#[derive(Debug, Serialize)]
struct ExportReport {
    network: String,
    naming: String,
    tensors: usize,
    wrote: Vec<PathBuf>,
}

impl fmt::Display for ExportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "network     {}", self.network)?;
        writeln!(f, "naming      {}", self.naming)?;
        writeln!(f, "tensors     {}", self.tensors)?;
        for file in &self.wrote {
            writeln!(f, "wrote       {}", file.display())?;
        }
        Ok(())
    }
}

fn export(args: &ExportArgs) -> Result<(), CliError> {
    let mut source = Source::open(&args.source)?;
    let layout = args.naming.layout();
    if layout != Layout::Official && source.found.network.expander.take().is_some() {
        say!("note: {layout} has no place for the expander; `--naming official` keeps it");
    }
    let Imported {
        network,
        tensors,
        counts,
        ..
    } = &source.found;
    let scheme = Scheme::for_export(layout, network.expander.is_some());
    let (named, named_counts) = renamed(&scheme, tensors, counts);
    store::write_atomic(&args.out, |file| {
        safetensors::write(file, &Entry::all(&named), &source.facts, &named_counts)
    })?;
    let mut wrote = vec![args.out.clone()];
    if let Some(path) = &args.probe {
        // Large enough for a map of more than one value, small enough for seconds.
        let size = if network.encoder.stem_convolution().1 == 7 {
            64
        } else {
            32
        };
        let probe = Probe::run(network, tensors, size).map_err(LearnError::weights(&args.source))?;
        store::write_json(path, &probe)?;
        wrote.push(path.clone());
    }
    let report = ExportReport {
        network: network.to_string(),
        naming: scheme.describe(),
        tensors: named.len() + named_counts.len(),
        wrote,
    };
    Ok(print(args.json, &report)?)
}

/// A network of ours at rest, with the facts that its file carries.
struct Source {
    found: Imported,
    facts: BTreeMap<String, String>,
}

impl Source {
    fn open(path: &Path) -> Result<Self, CliError> {
        let file = weights_file(path)?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let mut read = WeightsFile::open(&file)?;
        let mut facts = std::mem::take(&mut read.metadata);
        let mut options = ImportOptions {
            stem_padding: facts.get("stem_padding").and_then(|padding| padding.parse().ok()),
            ..ImportOptions::default()
        };
        let mut steps = None;
        if folder.join("state.json").is_file() {
            let state = CheckpointState::load(folder)?;
            steps = Some(state.step);
            options.stem_padding = encoder_of(&state).and_then(|encoder| encoder.stem_padding);
            // The facts of a run lie beside its encoder.
            let encoder = folder.join("../../encoder.safetensors");
            if encoder.is_file() {
                facts = WeightsFile::open(&encoder)?.metadata;
            }
        }
        let mut found = import_file(read, &options).map_err(LearnError::weights(&file))?;
        if let Some(steps) = steps {
            // Each step updates the running statistics twice: view 1, then view 2.
            found.counts = safetensors::counts(&Entry::all(&found.tensors), 2 * steps);
        }
        facts.extend(metadata(&found.network));
        Ok(Self { found, facts })
    }
}

/// The encoder's options in the recipe that a checkpoint carries.
fn encoder_of(state: &CheckpointState) -> Option<ResNetOptions> {
    serde_json::from_value(state.identity.recipe.get("encoder")?.clone()).ok()
}

//! Checkpoints: a folder that appears whole or not at all, and from which training goes on bit for bit.
//!
//! `checkpoints/step-XXXXXXXX/`: `model.safetensors`, `optimizer.safetensors`, `state.json`. What a step needs beside these
//! is a pure function of the recipe and the step number: the schedule, the order and every random draw.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::LearnError;
use super::run::Identity;
use super::weights::safetensors::{self, Entry};
use super::weights::{self, Counts, NamedTensor};
use crate::data::store;
use crate::feed::QuarantineState;

/// Version of the folder's layout.
const FORMAT: u32 = 1;

/// The part of a checkpoint that is not a tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointState {
    format: u32,
    /// Steps done.
    pub step: u64,
    /// The run that it belongs to.
    pub identity: Identity,
    /// Bad samples met so far.
    pub quarantine: QuarantineState,
}

/// A whole checkpoint, in host memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// Step, identity, counts.
    pub state: CheckpointState,
    /// Every tensor of the model, running statistics included.
    pub model: Vec<NamedTensor>,
    /// The optimiser's state.
    pub optimizer: Vec<NamedTensor>,
}

impl CheckpointState {
    /// The state after `step` steps.
    pub fn new(step: u64, identity: Identity, quarantine: QuarantineState) -> Self {
        Self {
            format: FORMAT,
            step,
            identity,
            quarantine,
        }
    }
}

impl Checkpoint {
    /// Writes the checkpoint into a run folder (temporary folder, fsync, rename) and removes all but the newest `keep` and the one
    /// that is `spared`.
    pub fn save(&self, run: &Path, keep: usize, spared: Option<&Path>) -> Result<PathBuf, LearnError> {
        let path = run.join("checkpoints").join(format!("step-{:08}", self.state.step));
        let state = serde_json::to_vec_pretty(&self.state).expect("a state is plain JSON");
        let pending = store::PendingFolder::create(&path)?;
        for (name, tensors) in [
            ("model.safetensors", &self.model),
            ("optimizer.safetensors", &self.optimizer),
        ] {
            let file = pending.path().join(name);
            safetensors::write_file(&file, &Entry::all(tensors), &BTreeMap::new(), &Counts::new())
                .map_err(|source| LearnError::io("write", &file, source))?;
        }
        let file = pending.path().join("state.json");
        std::fs::write(&file, state).map_err(|source| LearnError::io("write", &file, source))?;
        pending.commit()?;
        let old = list(run)?.into_iter().rev().skip(keep).map(|(_, path)| path);
        for old in old.filter(|old| Some(old.as_path()) != spared) {
            std::fs::remove_dir_all(&old).map_err(|source| LearnError::io("remove", &old, source))?;
        }
        Ok(path)
    }

    /// Reads a checkpoint folder.
    pub fn load(path: &Path) -> Result<Self, LearnError> {
        let state = CheckpointState::load(path)?;
        Ok(Self {
            state,
            model: read_tensors(&path.join("model.safetensors"))?,
            optimizer: read_tensors(&path.join("optimizer.safetensors"))?,
        })
    }
}

impl CheckpointState {
    /// Reads `state.json` of a checkpoint folder alone.
    pub fn load(path: &Path) -> Result<Self, LearnError> {
        let file = path.join("state.json");
        let bytes = std::fs::read(&file).map_err(|source| LearnError::io("read", &file, source))?;
        let broken = |source| LearnError::BrokenJson {
            path: file.clone(),
            source,
        };
        let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(broken)?;
        // The format is looked at before the rest, which another format may not have.
        match json.get("format").and_then(serde_json::Value::as_u64) {
            Some(found) if found != u64::from(FORMAT) => Err(LearnError::CheckpointFormat {
                path: path.to_owned(),
                found: found as u32,
                known: FORMAT,
            }),
            _ => serde_json::from_value(json).map_err(broken),
        }
    }
}

/// Reads every tensor of a safetensors file.
pub fn read_tensors(path: &Path) -> Result<Vec<NamedTensor>, LearnError> {
    let bytes = std::fs::read(path).map_err(|source| LearnError::io("read", path, source))?;
    let (tensors, _) = weights::from_safetensors(&bytes).map_err(LearnError::weights(path))?;
    Ok(tensors)
}

/// The complete checkpoints of a run folder, oldest first.
pub fn list(run: &Path) -> Result<Vec<(u64, PathBuf)>, LearnError> {
    let folder = run.join("checkpoints");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LearnError::io("read", &folder, source)),
    };
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, path))
        })
        .collect();
    found.sort();
    Ok(found)
}

/// The newest complete checkpoint of a run folder.
pub fn newest(run: &Path) -> Result<Option<PathBuf>, LearnError> {
    Ok(list(run)?.pop().map(|(_, path)| path))
}

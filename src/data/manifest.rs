//! `manifest.json`: what an ingested data set consists of. Written last, so that its presence means completeness.
//!
//! Optional to read: any folder of shards trains without one. Where it is present, the folder is held against it.
//! It names no time and no machine, so that the same ingest gives the same bytes.

use super::DataError;
use super::dataset::Shard;
use super::ingest::IngestOptions;
use super::shard::{ShardRecord, hash_file};
use super::sources::SourceRecord;
use super::store;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The manifest's name in a data set's folder.
pub const MANIFEST: &str = "manifest.json";

/// What tells our manifests from others' files of that name.
const FORMAT: &str = "vicreg-stream data set";

/// The newest layout of the manifest that this version reads and writes.
pub const VERSION: u32 = 1;

/// A data set's contents and origin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `vicreg-stream data set`.
    pub format: String,
    /// Layout of this file.
    pub version: u32,
    /// Always true in a folder that may be used.
    pub complete: bool,
    /// Rows in all shards.
    pub samples: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Encoded bytes of all images.
    pub image_bytes: u64,
    /// Class names, where there are any.
    pub label_names: Option<Vec<String>>,
    /// The shards, in order.
    pub shards: Vec<ShardRecord>,
    /// How the ingest was asked to work.
    pub options: IngestOptions,
    /// What it read.
    pub sources: Vec<SourceRecord>,
    /// Images that were left out.
    pub rejects: Vec<RejectRecord>,
}

/// An image that an ingest left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectRecord {
    /// The source as it was given.
    pub source: String,
    /// File within the source.
    pub file: String,
    /// Row within a Parquet file, counted over all its row groups.
    pub row: Option<u64>,
    /// Short stable code ([`CodecError::code`](super::CodecError::code), or `null`, `unreadable`).
    pub code: String,
    /// What was wrong.
    pub reason: String,
}

impl Manifest {
    /// The manifest of a complete data set.
    pub fn new(
        shards: Vec<ShardRecord>,
        label_names: Option<Vec<String>>,
        options: IngestOptions,
        sources: Vec<SourceRecord>,
        rejects: Vec<RejectRecord>,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            complete: true,
            samples: shards.iter().map(|s| s.samples).sum(),
            bytes: shards.iter().map(|s| s.bytes).sum(),
            image_bytes: shards.iter().map(|s| s.image_bytes).sum(),
            label_names,
            shards,
            options,
            sources,
            rejects,
        }
    }

    /// Reads the manifest of `folder`; `None` where there is none of ours.
    pub fn read(folder: &Path) -> Result<Option<Self>, DataError> {
        let path = folder.join(MANIFEST);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(DataError::io("read", &path, e)),
        };
        // Others call files `manifest.json` too: only what names itself ours is held to our layout.
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
            return Ok(None);
        };
        if value["format"] != FORMAT {
            return Ok(None);
        }
        let problem = |problem: String| DataError::Manifest {
            path: path.clone(),
            problem,
        };
        match value["version"].as_u64() {
            Some(version) if version <= u64::from(VERSION) => {}
            version => {
                return Err(problem(format!(
                    "has version {version:?}; this program knows up to {VERSION}"
                )));
            }
        }
        serde_json::from_value(value)
            .map(Some)
            .map_err(|e| problem(format!("cannot be understood: {e}")))
    }

    /// Writes the manifest into `folder`, whole or not at all.
    pub fn write(&self, folder: &Path) -> Result<(), DataError> {
        store::write_json(&folder.join(MANIFEST), self)
    }

    /// Compares every shard's checksum; `progress` is told the bytes read so far.
    pub fn verify_content(&self, folder: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), DataError> {
        let mut done = 0;
        for shard in &self.shards {
            let found = hash_file(&folder.join(&shard.name))?;
            if found != shard.xxh3 {
                let problem = format!(
                    "gives `{}` the checksum {}, its content has {found}",
                    shard.name, shard.xxh3
                );
                return Err(DataError::Manifest {
                    path: folder.join(MANIFEST),
                    problem,
                });
            }
            done += shard.bytes;
            progress(done);
        }
        Ok(())
    }
}

/// Holds the shards found in `root` against its manifest, where there is one: each listed shard must be there with its length.
/// `others`: shards that are there and were not opened, being of another split.
pub fn verify_folder(root: &Path, shards: &[Shard], others: &[String]) -> Result<(), DataError> {
    let Some(manifest) = Manifest::read(root)? else {
        return Ok(());
    };
    if !manifest.complete {
        return Err(DataError::Unfinished {
            path: root.to_path_buf(),
        });
    }
    for listed in &manifest.shards {
        let found = shards.iter().find(|s| s.name == listed.name);
        let problem = match found {
            None if others.contains(&listed.name) => continue,
            None => format!("lists `{}`, which is not there", listed.name),
            Some(s) if s.bytes != listed.bytes => {
                format!("gives `{}` {} bytes, it has {}", listed.name, listed.bytes, s.bytes)
            }
            Some(_) => continue,
        };
        return Err(DataError::Manifest {
            path: root.join(MANIFEST),
            problem,
        });
    }
    Ok(())
}

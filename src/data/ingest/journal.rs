//! What is known of an ingest on its way: its arguments, and the shards it has finished.
//!
//! Layout inside the output, until all is done: `.ingest/journal.json` (arguments and sources), `.ingest/lock`, and for each
//! finished shard `.ingest/NAME.parquet` and then `.ingest/NAME.parquet.json` (its record and rejects), each whole or absent.
//! The end: shards move into the output, the manifest is written, `.ingest` is removed; a kill between any two of these steps
//! leaves `.ingest` in place, and the next run goes on from there.

use super::{IngestError, IngestOptions, JOURNAL_FOLDER};
use crate::data::error::DataError;
use crate::data::manifest::{MANIFEST, Manifest, RejectRecord};
use crate::data::shard::{ShardRecord, hash_file};
use crate::data::sources::SourceRecord;
use crate::data::store;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// What is in the output folder.
pub enum State {
    /// A complete data set of the same arguments.
    Complete(Box<Manifest>),
    /// A new or interrupted ingest of these arguments, now ours.
    Open(Journal),
}

/// A shard that is done.
#[derive(Serialize, Deserialize)]
pub struct Finished {
    /// Its record for the manifest.
    pub shard: ShardRecord,
    /// What was left out of it.
    pub rejects: Vec<RejectRecord>,
}

/// An ingest on its way. Holds the lock of the output.
pub struct Journal {
    out: PathBuf,
    folder: PathBuf,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct Arguments {
    options: IngestOptions,
    sources: Vec<SourceRecord>,
}

/// Finds out what `out` holds, and begins or goes on there.
pub fn open(out: &Path, options: &IngestOptions, sources: &[SourceRecord]) -> Result<State, IngestError> {
    let folder = out.join(JOURNAL_FOLDER);
    let now = Arguments {
        options: options.clone(),
        sources: sources.to_vec(),
    };
    match std::fs::metadata(out) {
        Ok(meta) if !meta.is_dir() => {
            return Err(IngestError::OutIsFile {
                path: out.to_path_buf(),
            });
        }
        Ok(_) if folder.is_dir() => {}
        Ok(_) => match Manifest::read(out)? {
            Some(manifest) => {
                let there = Arguments {
                    options: manifest.options.clone(),
                    sources: manifest.sources.clone(),
                };
                refuse_other(out, true, &there, &now)?;
                check_shards(out, &manifest)?;
                return Ok(State::Complete(Box::new(manifest)));
            }
            None => refuse_full(out)?,
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(DataError::io("open", out, e).into()),
    }
    std::fs::create_dir_all(&folder).map_err(|e| DataError::io("create", &folder, e))?;
    let lock = lock(out, &folder)?;
    let path = folder.join("journal.json");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let there: Arguments = serde_json::from_slice(&bytes).map_err(|e| DataError::Manifest {
                path: path.clone(),
                problem: format!("cannot be understood: {e}"),
            })?;
            refuse_other(out, false, &there, &now)?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => store::write_json(&path, &now)?,
        Err(e) => return Err(DataError::io("read", &path, e).into()),
    }
    store::remove_stale(&folder)?;
    Ok(State::Open(Journal {
        out: out.to_path_buf(),
        folder,
        _lock: lock,
    }))
}

fn lock(out: &Path, folder: &Path) -> Result<File, IngestError> {
    let path = folder.join("lock");
    let file = File::create(&path).map_err(|e| DataError::io("create", &path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(IngestError::Busy {
            path: out.to_path_buf(),
        }),
        // A file system without locks: better no protection than no ingest.
        Err(TryLockError::Error(_)) => Ok(file),
    }
}

fn refuse_full(out: &Path) -> Result<(), IngestError> {
    let mut entries = std::fs::read_dir(out).map_err(|e| DataError::io("list", out, e))?;
    match entries.next() {
        None => Ok(()),
        Some(Err(e)) => Err(DataError::io("list", out, e).into()),
        Some(Ok(entry)) => {
            let found = entry.file_name().to_string_lossy().into_owned();
            Err(IngestError::OutNotEmpty {
                path: out.to_path_buf(),
                found,
            })
        }
    }
}

fn check_shards(out: &Path, manifest: &Manifest) -> Result<(), DataError> {
    for shard in &manifest.shards {
        let length = std::fs::metadata(out.join(&shard.name)).map(|m| m.len()).ok();
        if length != Some(shard.bytes) {
            let problem = format!("lists `{}` with {} bytes; found: {length:?}", shard.name, shard.bytes);
            return Err(DataError::Manifest {
                path: out.join(MANIFEST),
                problem,
            });
        }
    }
    Ok(())
}

fn refuse_other(out: &Path, complete: bool, there: &Arguments, now: &Arguments) -> Result<(), IngestError> {
    let (old, new) = (serde_json::to_value(there), serde_json::to_value(now));
    let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
    let mut differences = Vec::new();
    compare("", &old, &new, &mut differences);
    if differences.is_empty() {
        return Ok(());
    }
    Err(IngestError::OtherArguments {
        path: out.to_path_buf(),
        complete,
        differences,
    })
}

/// Names every leaf that differs: `options.seed: 1 -> 2`.
fn compare(name: &str, there: &Value, now: &Value, differences: &mut Vec<String>) {
    let below = |key: &str| {
        if name.is_empty() {
            key.to_owned()
        } else {
            format!("{name}.{key}")
        }
    };
    match (there, now) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                compare(
                    &below(key),
                    a.get(key).unwrap_or(&Value::Null),
                    b.get(key).unwrap_or(&Value::Null),
                    differences,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&below(&i.to_string()), a, b, differences);
            }
        }
        (Value::Array(a), Value::Array(b)) => differences.push(format!("{name}: {} -> {} in number", a.len(), b.len())),
        _ if there != now => differences.push(format!("{name}: {there} -> {now}")),
        _ => {}
    }
}

impl Journal {
    /// Where source `index` may spill.
    pub fn spill(&self, index: usize) -> PathBuf {
        self.folder.join(format!("spill-{index}"))
    }

    /// Where the shard `name` is written.
    pub fn shard_path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A finished shard of that name whose content is what its record says; `None`: it must be written.
    pub fn finished(&self, name: &str) -> Result<Option<Finished>, DataError> {
        let Ok(bytes) = std::fs::read(self.record_path(name)) else {
            return Ok(None);
        };
        let Ok(finished) = serde_json::from_slice::<Finished>(&bytes) else {
            return Ok(None);
        };
        // A kill during the last steps leaves some shards moved out already.
        for path in [self.shard_path(name), self.out.join(name)] {
            let length = std::fs::metadata(&path).map(|m| m.len()).ok();
            if length == Some(finished.shard.bytes) && hash_file(&path)? == finished.shard.xxh3 {
                return Ok(Some(finished));
            }
        }
        Ok(None)
    }

    /// Notes that a shard, already under its name, is done.
    pub fn note(&self, finished: &Finished) -> Result<(), DataError> {
        store::write_json(&self.record_path(&finished.shard.name), finished)
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    /// Moves the shards out, writes the manifest, removes the journal.
    pub fn finish(self, manifest: &Manifest) -> Result<(), DataError> {
        for shard in &manifest.shards {
            let (from, to) = (self.shard_path(&shard.name), self.out.join(&shard.name));
            if from.exists() {
                std::fs::rename(&from, &to).map_err(|e| DataError::io("rename", &to, e))?;
            }
        }
        store::sync_folder(&self.out)?;
        manifest.write(&self.out)?;
        self.abandon()
    }

    /// Removes the journal and what it holds.
    pub fn abandon(self) -> Result<(), DataError> {
        std::fs::remove_dir_all(&self.folder).map_err(|e| DataError::io("remove", &self.folder, e))?;
        store::sync_folder(&self.out)
    }
}

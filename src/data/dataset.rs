//! A data set: a folder of Parquet shards in the Hugging Face image layout, opened by its footers.
//!
//! In: a folder and column names. Out: row groups whose images are borrowed byte views.
//! Invariant: shards are in byte order of their relative names, so a [`SampleKey`] means the same on every machine.
//! A folder whose ingest has not come to its end is refused; one with a manifest must hold every shard the manifest lists.

mod buffers;
mod folder;
mod footer;
mod row_group;
mod split;

pub use row_group::RowGroup;
pub use split::Split;

use super::DataError;
use buffers::BufferPool;
use footer::Opened;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Index of a shard in the data set's byte-ordered list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize)]
pub struct ShardId(pub u32);

/// Where one sample lies: it travels with the sample from the plan to the error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize)]
pub struct SampleKey {
    /// The shard.
    pub shard: ShardId,
    /// Row group inside the shard.
    pub row_group: u32,
    /// Row inside the row group.
    pub row: u32,
}

/// Names of the columns to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Column with the image: struct<bytes, path>, or plain binary.
    pub image: String,
    /// Column with the integer label; a data set without it has no labels. Empty: labels are not read.
    pub label: String,
}

impl Default for Columns {
    /// The names that Hugging Face's image folders use.
    fn default() -> Self {
        Self {
            image: "image".to_owned(),
            label: "label".to_owned(),
        }
    }
}

/// Size of one row group, from the footer.
#[derive(Clone, Copy, Debug)]
pub struct RowGroupInfo {
    /// Rows.
    pub rows: u32,
    /// Uncompressed bytes of the image column: what a loaded row group costs in memory.
    pub bytes: u64,
}

/// One shard, from its footer.
#[derive(Debug)]
pub struct Shard {
    /// Name relative to the data set's folder, with `/`.
    pub name: String,
    /// File length in bytes.
    pub bytes: u64,
    /// Row groups in file order.
    pub row_groups: Vec<RowGroupInfo>,
}

/// An opened data set. Cheap to share behind an `Arc`; reading takes `&self`.
#[derive(Debug)]
pub struct Dataset {
    root: PathBuf,
    shards: Vec<Shard>,
    opened: Vec<Opened>,
    samples: u64,
    label_names: Option<Vec<String>>,
    fingerprint: u64,
    pool: Arc<BufferPool>,
}

impl Dataset {
    /// Opens every `*.parquet` under `root` (recursively) by its footer. Hidden files, `*.tmp` and hidden folders are passed over.
    pub fn open(root: &Path, columns: &Columns) -> Result<Self, DataError> {
        Self::open_split(root, columns, Split::All)
    }

    /// As [`Dataset::open`], the shards of one split only. `root` may also be a single `*.parquet` file.
    pub fn open_split(root: &Path, columns: &Columns, split: Split) -> Result<Self, DataError> {
        if let Some((folder, name)) = folder::single_shard(root) {
            return Self::open_shards(folder, vec![name], columns);
        }
        let all = folder::shards(root)?;
        let names = split.select(all.clone());
        let others: Vec<String> = all.into_iter().filter(|name| !names.contains(name)).collect();
        let data = Self::open_shards(root, names, columns)?;
        super::manifest::verify_folder(root, &data.shards, &others)?;
        Ok(data)
    }

    /// The held-out shards of a folder whose names tell them apart from those to train on; `None` where they do not.
    pub fn open_held_out(root: &Path, columns: &Columns) -> Result<Option<Self>, DataError> {
        if folder::single_shard(root).is_some() {
            return Ok(None);
        }
        let all = folder::shards(root)?;
        if Split::HeldOut.select(all.clone()) == Split::Train.select(all) {
            return Ok(None);
        }
        Self::open_split(root, columns, Split::HeldOut).map(Some)
    }

    fn open_shards(root: &Path, names: Vec<String>, columns: &Columns) -> Result<Self, DataError> {
        let mut shards = Vec::with_capacity(names.len());
        let mut opened = Vec::with_capacity(names.len());
        let mut hash = Xxh3::new();
        for name in names {
            let path = root.join(&name);
            let footer = footer::open(&path, columns)?;
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(&footer.bytes.to_le_bytes());
            hash.update(&footer.raw);
            shards.push(Shard {
                name,
                bytes: footer.bytes,
                row_groups: footer.opened.row_groups(),
            });
            opened.push(footer.opened);
        }
        let samples = shards
            .iter()
            .flat_map(|s| &s.row_groups)
            .map(|g| u64::from(g.rows))
            .sum();
        if samples == 0 {
            return Err(DataError::Empty {
                path: root.to_path_buf(),
                shards: shards.len(),
            });
        }
        let label_names = common_label_names(&shards, &opened)?;
        let pool = Arc::new(BufferPool::default());
        Ok(Self {
            root: root.to_path_buf(),
            shards,
            opened,
            samples,
            label_names,
            fingerprint: hash.digest(),
            pool,
        })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Shards in byte order of their names.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Bytes of all shards' files.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// Where a sample lies, in words.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn place(&self, key: SampleKey) -> String {
        let shard = &self.shards[key.shard.0 as usize].name;
        format!("row {} of row group {} of `{shard}`", key.row, key.row_group)
    }

    /// Samples in all shards.
    #[allow(clippy::len_without_is_empty)] // An empty data set is refused when it is opened.
    pub fn len(&self) -> u64 {
        self.samples
    }

    /// Every row group in key order: shard, row group, rows.
    pub fn row_groups(&self) -> impl Iterator<Item = (ShardId, u32, u32)> {
        self.shards.iter().enumerate().flat_map(|(shard, info)| {
            let groups = info.row_groups.iter().enumerate();
            groups.map(move |(group, rows)| (ShardId(shard as u32), group as u32, rows.rows))
        })
    }

    /// Class names from the `huggingface` schema metadata, where present.
    pub fn label_names(&self) -> Option<&[String]> {
        self.label_names.as_deref()
    }

    /// Whether every shard has the label column.
    pub fn has_labels(&self) -> bool {
        self.opened.iter().all(Opened::has_label)
    }

    /// xxh3 over (name, length, footer bytes) of every shard. Content that changes without a change of length or footer
    /// is not seen: compare checksums with the manifest for that.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// How many bytes of idle row-group buffers are kept for the next read. Default 64 MiB. A reader that frees whole windows
    /// before it fills the next should allow for one window.
    pub fn keep_idle_buffers(&self, bytes: u64) {
        self.pool.set_limit(bytes);
    }

    /// Reads one row group: the bytes of the image (and path, label) columns only. Thread-safe.
    ///
    /// Fails on a damaged or changed file, naming shard and row group; a panic in the Parquet library is such an error too.
    pub fn read_row_group(&self, shard: ShardId, row_group: u32) -> Result<RowGroup, DataError> {
        let (Some(info), Some(opened)) = (self.shards.get(shard.0 as usize), self.opened.get(shard.0 as usize)) else {
            let path = self.root.clone();
            return Err(DataError::ReadRowGroup {
                path,
                row_group,
                source: format!("no shard {}", shard.0).into(),
            });
        };
        let path = self.root.join(&info.name);
        row_group::read(&path, info.bytes, opened, row_group, &self.pool).map_err(|source| DataError::ReadRowGroup {
            path,
            row_group,
            source,
        })
    }
}

/// The class names, which must be the same wherever a shard has them.
fn common_label_names(shards: &[Shard], opened: &[Opened]) -> Result<Option<Vec<String>>, DataError> {
    let mut first: Option<(&str, &Vec<String>)> = None;
    for (shard, names) in shards
        .iter()
        .zip(opened)
        .filter_map(|(s, o)| o.label_names.as_ref().map(|n| (s, n)))
    {
        match first {
            None => first = Some((&shard.name, names)),
            Some((first, known)) if known != names => {
                return Err(DataError::LabelNames {
                    first: first.to_owned(),
                    first_classes: known.len(),
                    second: shard.name.clone(),
                    second_classes: names.len(),
                });
            }
            Some(_) => {}
        }
    }
    Ok(first.map(|(_, names)| names.clone()))
}

#[cfg(test)]
mod tests;

//! A data set: a folder of Parquet shards in the Hugging Face image layout, opened by its footers.
//!
//! In: a folder and column names. Out: row groups whose images are borrowed byte views.
//! Invariant: shards are in byte order of their relative names, so a [`SampleKey`] means the same on every machine.

use std::path::{Path, PathBuf};

/// Index of a shard in the data set's byte-ordered list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ShardId(pub u32);

/// Where one sample lies: it travels with the sample from the plan to the error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
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
    /// Column with the integer label; a data set without it has no labels.
    pub label: String,
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
    // private: parquet metadata and resolved columns per shard
}

/// A loaded row group; images borrow its buffers.
pub struct RowGroup {
    // private
}

impl Dataset {
    /// Opens every `*.parquet` under `root` (recursively) by its footer.
    pub fn open(root: &Path, columns: &Columns) -> Result<Self, super::DataError> {
        todo!()
    }
    /// Shards in byte order of their names.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }
    /// Samples in all shards.
    pub fn len(&self) -> u64 {
        todo!()
    }
    /// Class names from the `huggingface` schema metadata, where present.
    pub fn label_names(&self) -> Option<&[String]> {
        todo!()
    }
    /// Whether every shard has the label column.
    pub fn has_labels(&self) -> bool {
        todo!()
    }
    /// xxh3 over (name, length, footer bytes) of every shard.
    pub fn fingerprint(&self) -> u64 {
        todo!()
    }
    /// Reads one row group. Thread-safe.
    pub fn read_row_group(&self, shard: ShardId, row_group: u32) -> Result<RowGroup, super::DataError> {
        todo!()
    }
}

impl RowGroup {
    /// Rows.
    pub fn len(&self) -> usize {
        todo!()
    }
    /// Encoded bytes of a row's image, borrowed from the page where the page is PLAIN; `None` for a null.
    pub fn image(&self, row: u32) -> Option<&[u8]> {
        todo!()
    }
    /// The row's `path`, where there is one.
    pub fn path(&self, row: u32) -> Option<&str> {
        todo!()
    }
    /// The row's label; `None` without a label column or for a null.
    pub fn label(&self, row: u32) -> Option<i64> {
        todo!()
    }
}

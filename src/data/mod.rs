//! Images at rest: encoded images in sharded Parquet, how they get there and how they are decoded.

pub mod codec;
pub mod dataset;
pub mod ingest;
pub mod manifest;
pub mod shard;
pub mod sources;
pub mod store;

pub mod rng;

pub use codec::{CodecError, DecodeOptions, Rgb8};
pub use dataset::{Columns, Dataset, RowGroup, SampleKey, ShardId};

/// What can go wrong with data at rest. Variants carry facts; the door prints causes and remedies.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Input or output failed on a file or folder.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried: `open`, `read`, `write`, `rename`...
        action: &'static str,
        /// On which path.
        path: std::path::PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

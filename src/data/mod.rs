//! Images at rest: encoded images in sharded Parquet, how they get there and how they are decoded.

pub mod codec;
pub mod dataset;
pub mod error;
pub mod ingest;
pub mod jpeg;
pub mod manifest;
pub mod options;
pub mod region;
pub mod shard;
pub mod simd;
pub mod sources;
pub mod store;

pub mod rng;

pub use codec::{CodecError, DecodeOptions, Decoder, Rgbx8};
pub use dataset::{Columns, Dataset, RowGroup, SampleKey, ShardId, Split};
pub use error::DataError;
pub use options::DataOptions;
pub use region::Region;

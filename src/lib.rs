//! `vicreg-stream`: a streaming trainer for VICReg. The rooms, in the order in which an image travels:
//!
//! - [`data`]: images at rest (codecs, shards, manifests, ingest).
//! - [`feed`]: images in motion (order, randomness, views, workers, ring).
//! - [`learn`]: images into representations (networks, loss, optimisers, the loop, checkpoints).
//! - [`measure`]: how good (features, k-NN, linear probe) and how fast.
//! - [`cli`]: the door; it sees all rooms.
//!
//! Imports point one way: measure -> learn -> feed -> data. `data` and `feed` know no burn type.
//! Start reading at `feed/mod.rs` for the pipeline and at `learn/trainer.rs` for the loop.

pub mod data;
pub mod feed;
#[cfg(feature = "learn")]
pub mod learn;
#[cfg(feature = "learn")]
pub mod measure;

#[cfg(feature = "learn")]
pub mod cli;

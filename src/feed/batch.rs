//! A full batch in the trainer's hand: pixels, keys, labels and rejects.
//!
//! In: a slot that is full. Out: plain slices, or the pixels as `Bytes` in flight; dropping either, on any thread, gives
//! the slot back.
//! Invariant: a pure function of plan, data set and step.

use super::quarantine::Reject;
use super::ring::Ring;
use super::slot::{Flying, Taken};
use crate::data::SampleKey;
use bytes::Bytes;
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// One batch of this rank.
pub struct Batch {
    /// Step of the run, over all epochs.
    pub step: u64,
    /// Epoch that the step belongs to.
    pub epoch: u32,
    ring: Arc<Ring>,
    /// Batch since the start of the feed.
    local: u64,
    /// `None` only while dropping, or once it flies.
    slot: Option<(Taken, Box<Leaf>)>,
}

/// What is written beside the pixels, gathered into slices.
#[derive(Debug, Default)]
pub(crate) struct Leaf {
    keys: Vec<SampleKey>,
    labels: Vec<i64>,
    present: Vec<bool>,
    pub rejects: Vec<Reject>,
}

impl Batch {
    /// Gathers the records of a full slot; `rejects` still has every one met.
    pub(crate) fn gather(ring: &Arc<Ring>, mut taken: Taken, local: u64, step: u64, epoch: u32) -> Self {
        let mut leaf = ring.leaves.pop().unwrap_or_default();
        leaf.keys.clear();
        leaf.labels.clear();
        leaf.present.clear();
        leaf.rejects.clear();
        for record in taken.records() {
            leaf.keys.push(record.key);
            leaf.labels.push(record.label);
            leaf.present.push(record.present);
            leaf.rejects.append(&mut record.rejects);
        }
        Self {
            step,
            epoch,
            ring: ring.clone(),
            local,
            slot: Some((taken, leaf)),
        }
    }

    fn slot(&self) -> &(Taken, Box<Leaf>) {
        self.slot.as_ref().expect("a batch has its slot until it is dropped")
    }

    pub(crate) fn rejects_mut(&mut self) -> &mut Vec<Reject> {
        &mut self
            .slot
            .as_mut()
            .expect("a batch has its slot until it is dropped")
            .1
            .rejects
    }

    /// Samples in it: this rank's share of the global batch; fewer in the last batch of a sequential pass.
    pub fn len(&self) -> usize {
        self.slot().0.len()
    }

    /// Never: a batch has one sample at least.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Views of each sample.
    pub fn views(&self) -> usize {
        self.ring.shape.views
    }

    /// Side of a view, pixels.
    pub fn side(&self) -> usize {
        (self.ring.shape.view_bytes / 3).isqrt()
    }

    /// One view of all samples: u8 `[N, H, W, 3]`, contiguous.
    ///
    /// # Panics
    /// If there is no such view.
    pub fn view(&self, view: usize) -> &[u8] {
        let bytes = self.len() * self.ring.shape.view_bytes;
        &self.pixels()[view * bytes..][..bytes]
    }

    /// u8 `[V, N, H, W, 3]`, contiguous. The address stays the same as long as the batch lives, wherever it is moved.
    pub fn pixels(&self) -> &[u8] {
        self.slot().0.pixels()
    }

    /// The sample in each place: the order's own or the substitute of a bad one. `[N]`
    pub fn keys(&self) -> &[SampleKey] {
        &self.slot().1.keys
    }

    /// Labels, -1 where there is none. `[N]`
    pub fn labels(&self) -> &[i64] {
        &self.slot().1.labels
    }

    /// False where a sequential pass met a bad sample: its pixels are 0. `[N]`
    pub fn present(&self) -> &[bool] {
        &self.slot().1.present
    }

    /// Bad samples met in this batch for the first time in the run, in the order of places and attempts.
    pub fn rejects(&self) -> &[Reject] {
        &self.slot().1.rejects
    }

    /// The pixels alone, u8 `[V, N, H, W, 3]`, in flight: whoever reads them asynchronously, such as a device,
    /// drops them when done, on any thread. With the last clone the slot goes back to the workers. No pixel is copied, and
    /// the memory outlives the feed if it must. Keys and labels are gone: read them before.
    ///
    /// Allocates once, a few words: the owner behind the `Bytes`.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self.fly())
    }

    pub(crate) fn fly(mut self) -> InFlight {
        let (taken, leaf) = self.slot.take().expect("a batch has its slot until it is dropped");
        self.ring.keep(leaf);
        InFlight {
            ring: self.ring.clone(),
            local: self.local,
            slot: Some(taken.fly()),
        }
    }

    /// xxh3 of the pixels.
    pub fn pixels_digest(&self) -> u64 {
        xxh3_64(self.pixels())
    }

    /// xxh3 of the keys: shard, row group and row as little-endian u32, sample after sample.
    pub fn keys_digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        for key in self.keys() {
            for part in [key.shard.0, key.row_group, key.row] {
                hash.update(&part.to_le_bytes());
            }
        }
        hash.digest()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some((taken, leaf)) = self.slot.take() {
            self.ring.keep(leaf);
            self.ring.give_back(self.local, taken);
        }
    }
}

/// The owner behind [`Batch::into_bytes`]: dropping it, on any thread, gives the slot back.
pub(crate) struct InFlight {
    ring: Arc<Ring>,
    /// Batch since the start of the feed.
    local: u64,
    /// `None` only while dropping.
    slot: Option<Flying>,
}

impl AsRef<[u8]> for InFlight {
    fn as_ref(&self) -> &[u8] {
        let slot = self.slot.as_ref();
        slot.expect("bytes in flight have their slot until they are dropped")
            .pixels()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(flying) = self.slot.take() {
            self.ring.land(self.local, flying);
        }
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch")
            .field("step", &self.step)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

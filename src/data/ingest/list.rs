//! The list of all images of all sources, its shuffle, and its cut into shards.
//!
//! Invariant: order and cuts are functions of the sources' lists and the options; they are not written down, but found again.

use super::journal::Journal;
use super::{IngestError, IngestOptions, IngestProgress, IngestStage, MergedLabels};
use crate::data::rng::{Domain, Philox};
use crate::data::sources::{Place, Source};

/// One image: where it lies and what is stored with it.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Index of the source.
    pub source: u32,
    /// Where it lies in the source.
    pub place: Place,
    /// False for a null in an image column.
    pub present: bool,
    /// Its label, in the output's numbering.
    pub label: Option<i64>,
    /// Encoded size, or an estimate.
    size: u64,
    path: (u64, u32),
}

/// All images, with their paths in one piece of memory.
#[derive(Default)]
pub struct List {
    entries: Vec<Entry>,
    paths: String,
}

impl List {
    /// Images listed.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry at `index` of the sources' order.
    pub fn entry(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    /// The path to store with it.
    pub fn path(&self, entry: &Entry) -> Option<&str> {
        let (start, length) = entry.path;
        (length != NO_PATH).then(|| &self.paths[start as usize..start as usize + length as usize])
    }
}

const NO_PATH: u32 = u32::MAX;

/// Lists every source; Parquet sources may spill into the journal's folder.
pub fn list(
    sources: &mut [Box<dyn Source>],
    labels: &MergedLabels,
    journal: &Journal,
    progress: &mut dyn FnMut(IngestProgress),
) -> Result<List, IngestError> {
    let total = sources.iter().map(|s| s.record().images).sum();
    let mut list = List::default();
    for (index, source) in sources.iter_mut().enumerate() {
        let map = labels.maps[index].as_deref();
        let spill = journal.spill(index);
        source.list(&spill, &mut |listed| {
            let path = match listed.path {
                Some(path) => (list.paths.len() as u64, path.len() as u32),
                None => (0, NO_PATH),
            };
            list.paths.push_str(listed.path.unwrap_or_default());
            // A label outside the class names (-1 often means unknown) is none.
            let label = listed.label.and_then(|label| match map {
                Some(map) => usize::try_from(label).ok().and_then(|l| map.get(l)).copied(),
                None => Some(label),
            });
            list.entries.push(Entry {
                source: index as u32,
                place: listed.place,
                present: listed.present,
                label,
                size: listed.size,
                path,
            });
            if list.entries.len() % 1024 == 0 {
                let done = list.entries.len() as u64;
                progress(IngestProgress {
                    stage: IngestStage::Listing,
                    done,
                    total,
                    bytes: 0,
                    rejected: 0,
                });
            }
            Ok(())
        })?;
    }
    Ok(list)
}

/// The shuffled list, cut into shards.
pub struct Plan {
    /// Indices into the list, in output order.
    pub order: Vec<u32>,
    /// Where each shard ends in `order`.
    pub ends: Vec<usize>,
}

impl Plan {
    /// The entries of a shard.
    pub fn shard(&self, index: usize) -> &[u32] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.order[start..self.ends[index]]
    }
}

/// Shuffles (Fisher-Yates; draw i is a Philox stream of its own, so any length is served) and cuts by size.
pub fn plan(list: &List, options: &IngestOptions) -> Plan {
    let mut order: Vec<u32> = (0..list.len() as u32).collect();
    for i in (1..order.len()).rev() {
        let j = Philox::new(options.seed, Domain::Ingest, 0, i as u64, 0).below(i as u32 + 1);
        order.swap(i, j as usize);
    }
    let most = u64::from(options.shard_mb) << 20;
    let mut ends = Vec::new();
    let mut bytes = 0;
    for (position, &index) in order.iter().enumerate() {
        bytes += list.entry(index).size;
        if bytes >= most {
            ends.push(position + 1);
            bytes = 0;
        }
    }
    if ends.last() != Some(&order.len()) {
        ends.push(order.len());
    }
    Plan { order, ends }
}

//! Writes the planned shards, keeping those that an interrupted ingest has finished.
//!
//! In: the plan. Out: one finished shard after the other, each noted in the journal. Images are loaded a row group at a time, in
//! output order; with `verify` they are decoded on all cores, which changes nothing but the time.

use super::journal::{Finished, Journal};
use super::list::{Entry, List, Plan};
use super::{IngestError, IngestOptions, IngestProgress, IngestStage};
use crate::data::codec::{self, CodecError, Rgbx8};
use crate::data::error::DataError;
use crate::data::manifest::RejectRecord;
use crate::data::shard::{Labels, ShardWriter};
use crate::data::sources::Source;

/// What writing a shard needs.
pub struct Work<'a> {
    /// The opened sources.
    pub sources: &'a [Box<dyn Source>],
    /// All images.
    pub list: &'a List,
    /// The label column.
    pub labels: &'a Labels,
    /// The ingest's options.
    pub options: &'a IngestOptions,
    /// The ingest's journal.
    pub journal: &'a Journal,
}

/// Why an image is left out: a code and a reason.
type Refusal = (String, String);

/// Writes every shard of the plan that is not there yet. Also gives the number of shards kept.
pub fn write_all(
    work: &Work<'_>,
    plan: &Plan,
    progress: &mut dyn FnMut(IngestProgress),
) -> Result<(Vec<Finished>, u64), IngestError> {
    let count = plan.ends.len();
    let total = plan.order.len() as u64;
    let mut state = IngestProgress {
        stage: IngestStage::Writing,
        done: 0,
        total,
        bytes: 0,
        rejected: 0,
    };
    let mut finished = Vec::with_capacity(count);
    let mut kept = 0;
    for index in 0..count {
        let name = format!("train-{index:05}-of-{count:05}.parquet");
        let shard = match work.journal.finished(&name)? {
            Some(shard) => {
                kept += 1;
                state.stage = IngestStage::Resuming;
                state.done += plan.shard(index).len() as u64;
                state.bytes += shard.shard.image_bytes;
                state.rejected += shard.rejects.len() as u64;
                progress(state);
                shard
            }
            None => {
                state.stage = IngestStage::Writing;
                let shard = write(work, &name, plan.shard(index), &mut state, progress)?;
                work.journal.note(&shard)?;
                shard
            }
        };
        finished.push(shard);
    }
    Ok((finished, kept))
}

fn write(
    work: &Work<'_>,
    name: &str,
    order: &[u32],
    state: &mut IngestProgress,
    progress: &mut dyn FnMut(IngestProgress),
) -> Result<Finished, DataError> {
    let rows = work.options.row_group;
    let mut writer = ShardWriter::create(&work.journal.shard_path(name), work.labels, rows)?;
    let mut rejects = Vec::new();
    let mut buffers: Vec<Vec<u8>> = Vec::new();
    // At most 1024 images at a time, however large the row group: it is only a batch for the threads that verify.
    for chunk in order.chunks(rows.min(1024) as usize) {
        buffers.resize_with(chunk.len(), Vec::new);
        let mut refusals = Vec::with_capacity(chunk.len());
        for (&index, buffer) in chunk.iter().zip(&mut buffers) {
            refusals.push(load(work, work.list.entry(index), buffer)?);
        }
        check(work.options, &buffers, &mut refusals);
        for ((&index, buffer), refusal) in chunk.iter().zip(&buffers).zip(refusals) {
            let entry = work.list.entry(index);
            match refusal {
                Some(refusal) => {
                    rejects.push(reject(work, entry, refusal));
                    state.rejected += 1;
                }
                None => {
                    writer.push(buffer, work.list.path(entry), entry.label)?;
                    state.bytes += buffer.len() as u64;
                }
            }
        }
        state.done += chunk.len() as u64;
        progress(*state);
    }
    Ok(Finished {
        shard: writer.finish()?,
        rejects,
    })
}

/// Loads an image; a null, an oversized or an unreadable one is refused here. A source that fails otherwise ends the ingest:
/// leaving out what a failing disk does not give would be a silent loss.
fn load(work: &Work<'_>, entry: &Entry, buffer: &mut Vec<u8>) -> Result<Option<Refusal>, DataError> {
    buffer.clear();
    if !entry.present {
        return Ok(Some(("null".to_owned(), "the row has no image".to_owned())));
    }
    let (bytes, limit) = (u64::from(entry.place.bytes), work.options.decode.max_bytes);
    if bytes > limit {
        return Ok(Some(refusal(&CodecError::TooManyBytes { bytes, limit })));
    }
    match work.sources[entry.source as usize].load(entry.place, buffer) {
        Ok(()) => Ok(None),
        Err(DataError::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Ok(Some(("unreadable".to_owned(), source.to_string())))
        }
        Err(error) => Err(error),
    }
}

/// Checks the loaded images: their headers, or with `verify` all of them, on all cores.
fn check(options: &IngestOptions, images: &[Vec<u8>], refusals: &mut [Option<Refusal>]) {
    let inspect = |image: &[u8], scratch: &mut Rgbx8| {
        let checked = if options.verify {
            codec::decode(image, &options.decode, scratch)
        } else {
            codec::probe(image, &options.decode).map(|_| ())
        };
        checked.err().map(|e| refusal(&e))
    };
    let threads = if options.verify {
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    } else {
        1
    };
    let share = images.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (images, refusals) in images.chunks(share).zip(refusals.chunks_mut(share)) {
            let work = move || {
                let mut scratch = Rgbx8::default();
                for (image, refusal) in images.iter().zip(refusals).filter(|(_, r)| r.is_none()) {
                    *refusal = inspect(image, &mut scratch);
                }
            };
            if threads == 1 {
                work();
            } else {
                scope.spawn(work);
            }
        }
    });
}

fn refusal(error: &CodecError) -> Refusal {
    (error.code().to_owned(), error.to_string())
}

fn reject(work: &Work<'_>, entry: &Entry, (code, reason): Refusal) -> RejectRecord {
    let source = &work.sources[entry.source as usize];
    let record = source.record();
    RejectRecord {
        source: record.name.clone(),
        file: source.file_name(entry.place.file),
        row: (record.kind == "parquet").then_some(entry.place.row.into()),
        code,
        reason,
    }
}

//! A loaded row group: one read per column chunk into reused memory, then views into its pages.
//!
//! Images of uncompressed PLAIN or dictionary pages are pointers into the chunk as it was read: no copy from disk to decoder.
//! Compressed pages are inflated once. The chunks' pages are checked against their bounds by the Parquet library.

use super::buffers::BufferPool;
use super::footer::Opened;
use crate::data::error::Cause;
use arrow::array::{Array, ArrayRef, AsArray, BinaryViewArray, RecordBatch, StructArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Int64Type};
use bytes::{Buf, Bytes};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

/// A loaded row group; images borrow its buffers.
#[derive(Debug)]
pub struct RowGroup {
    images: BinaryViewArray,
    paths: Option<ArrayRef>,
    labels: Option<ArrayRef>,
    // The image chunk as it lies in the file, and where it starts there.
    chunk: (u64, Bytes),
}

impl RowGroup {
    /// Rows.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Encoded bytes of a row's image, borrowed from the page where the page is not compressed; `None` for a null.
    pub fn image(&self, row: u32) -> Option<&[u8]> {
        let row = row as usize;
        (row < self.len() && self.images.is_valid(row)).then(|| self.images.value(row))
    }

    /// Where in the shard's file the bytes of `image` lie; `None` where it was inflated out of a compressed page, or copied.
    pub(in crate::data) fn file_offset(&self, image: &[u8]) -> Option<u64> {
        let (start, chunk) = &self.chunk;
        let within = (image.as_ptr() as usize).checked_sub(chunk.as_ptr() as usize)?;
        (within + image.len() <= chunk.len()).then_some(start + within as u64)
    }

    /// The row's `path`, where there is one.
    pub fn path(&self, row: u32) -> Option<&str> {
        let (paths, row) = (self.paths.as_ref()?, row as usize);
        if row >= paths.len() || paths.is_null(row) {
            return None;
        }
        match paths.data_type() {
            DataType::Utf8View => Some(paths.as_string_view().value(row)),
            // A `path` that its writer did not mark as text.
            DataType::BinaryView => std::str::from_utf8(paths.as_binary_view().value(row)).ok(),
            _ => None,
        }
    }

    /// The row's label; `None` without a label column or for a null.
    pub fn label(&self, row: u32) -> Option<i64> {
        let (labels, row) = (self.labels.as_ref()?, row as usize);
        (row < labels.len() && labels.is_valid(row)).then(|| labels.as_primitive::<Int64Type>().value(row))
    }
}

/// Reads row group `index` of the shard at `path`, which had `bytes` bytes when it was opened.
pub fn read(path: &Path, bytes: u64, opened: &Opened, index: u32, pool: &Arc<BufferPool>) -> Result<RowGroup, Cause> {
    let groups = opened.metadata.metadata().row_groups();
    let group = groups
        .get(index as usize)
        .ok_or_else(|| format!("the file has {} row groups", groups.len()))?;
    let mut file = File::open(path)?;
    let now = file.metadata()?.len();
    if now != bytes {
        return Err(format!("the file had {bytes} bytes when it was opened and has {now} now").into());
    }
    let leaves = opened.leaves();
    let mut chunks = Vec::with_capacity(leaves.len());
    for &leaf in &leaves {
        let (start, length) = group.column(leaf).byte_range();
        let mut buffer = pool.take(usize::try_from(length)?);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(buffer.as_mut())?;
        chunks.push((start, buffer.freeze()));
    }
    let rows = group.num_rows() as usize;
    let image_at = leaves
        .iter()
        .position(|&leaf| leaf == opened.image_leaf)
        .ok_or("no image column was read")?;
    let chunk = chunks[image_at].clone();
    let chunks = Chunks {
        file_length: bytes,
        chunks,
    };
    // Damaged pages can make the Parquet library panic; a reader thread must see an error instead.
    let batch = catch_unwind(AssertUnwindSafe(|| decode(opened, chunks, index, rows, leaves)))
        .map_err(|_| "the Parquet library panicked on its pages")??;
    if batch.num_rows() != rows {
        return Err(format!("it holds {} rows, its footer says {rows}", batch.num_rows()).into());
    }
    split(opened, &batch, chunk)
}

fn decode(opened: &Opened, chunks: Chunks, index: u32, rows: usize, leaves: Vec<usize>) -> Result<RecordBatch, Cause> {
    let mask = ProjectionMask::leaves(opened.metadata.parquet_schema(), leaves);
    let mut reader = ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, opened.metadata.clone())
        .with_projection(mask)
        .with_row_groups(vec![index as usize])
        .with_batch_size(rows.max(1))
        .build()?;
    match reader.next() {
        Some(batch) => Ok(batch?),
        None => Ok(RecordBatch::new_empty(arrow::array::RecordBatchReader::schema(&reader))),
    }
}

fn split(opened: &Opened, batch: &RecordBatch, chunk: (u64, Bytes)) -> Result<RowGroup, Cause> {
    let column = |name: &str| {
        batch
            .column_by_name(name)
            .ok_or_else(|| format!("column `{name}` was not read"))
    };
    let image = column(&opened.image)?;
    let (images, paths) = match image.as_any().downcast_ref::<StructArray>() {
        Some(parts) => (
            parts.column_by_name("bytes").cloned(),
            parts.column_by_name("path").cloned(),
        ),
        None => (Some(image.clone()), None),
    };
    let images = images
        .as_ref()
        .and_then(|i| i.as_binary_view_opt())
        .ok_or("its images are not binary")?
        .clone();
    let labels = match &opened.label {
        Some((_, name)) => {
            // Not `safe`: a label beyond i64 is an error, never a silent null.
            let options = CastOptions {
                safe: false,
                ..CastOptions::default()
            };
            Some(cast_with_options(column(name)?, &DataType::Int64, &options)?)
        }
        None => None,
    };
    Ok(RowGroup {
        images,
        paths,
        labels,
        chunk,
    })
}

/// The column chunks of one row group, in memory, behind the file offsets that the Parquet library asks for.
struct Chunks {
    file_length: u64,
    chunks: Vec<(u64, Bytes)>,
}

impl Chunks {
    fn from(&self, start: u64) -> Result<Bytes, ParquetError> {
        let holds = |&(at, ref bytes): &(u64, Bytes)| (at..=at + bytes.len() as u64).contains(&start);
        // Chunks touch: an offset at the end of one is the start of the next, so the later start wins.
        let (at, bytes) = self
            .chunks
            .iter()
            .filter(|c| holds(c))
            .max_by_key(|c| c.0)
            .ok_or_else(|| outside(start))?;
        Ok(bytes.slice((start - at) as usize..))
    }
}

fn outside(start: u64) -> ParquetError {
    ParquetError::EOF(format!("offset {start} lies outside the column chunks"))
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.file_length
    }
}

impl ChunkReader for Chunks {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes = self.from(start)?;
        if length > bytes.len() {
            return Err(outside(start + length as u64));
        }
        Ok(bytes.slice(..length))
    }
}

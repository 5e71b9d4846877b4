//! Our shard format, and the `huggingface` schema metadata that it shares with others.
//!
//! In: encoded images, in order. Out: a Parquet file with the columns `image` struct<bytes: binary, path: string> and, where there
//! are labels, `label` int64; whole or absent. Image pages are PLAIN and uncompressed (JPEG does not compress), one page a row
//! group, so that a reader's views point into the bytes as they lie on disk. Nothing in a shard depends on the clock or the
//! machine: the same samples give the same bytes.

use super::DataError;
use super::store::PendingFile;
use arrow::array::{ArrayRef, BinaryBuilder, Int64Builder, RecordBatch, StringBuilder, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use parquet::arrow::{ArrowWriter, parquet_to_arrow_schema};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Key of the schema metadata that the `datasets` library writes.
const HUGGINGFACE: &str = "huggingface";

/// A row group is closed early when its images reach this size: pages and Arrow's binary arrays count in 31 bits.
const MOST_ROW_GROUP_BYTES: usize = 512 << 20;

/// What the `label` column holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// There is none.
    #[default]
    None,
    /// Integers without names.
    Integers,
    /// Indices into these class names.
    Classes(Vec<String>),
}

impl Labels {
    /// Class names, where there are any.
    pub fn names(&self) -> Option<&[String]> {
        match self {
            Self::Classes(names) => Some(names),
            _ => None,
        }
    }
}

/// One shard as the manifest records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// File name.
    pub name: String,
    /// File length in bytes.
    pub bytes: u64,
    /// Rows.
    pub samples: u64,
    /// Row groups.
    pub row_groups: u64,
    /// Encoded bytes of all images.
    pub image_bytes: u64,
    /// xxh3 (64 bits, hexadecimal) of the file.
    pub xxh3: String,
}

/// Writes one shard. Dropped without [`finish`](Self::finish), it leaves no trace.
pub struct ShardWriter {
    path: PathBuf,
    writer: ArrowWriter<HashingFile>,
    schema: Arc<Schema>,
    rows_per_group: usize,
    images: BinaryBuilder,
    paths: StringBuilder,
    labels: Option<Int64Builder>,
    rows: usize,
    pending_bytes: usize,
    samples: u64,
    row_groups: u64,
    image_bytes: u64,
}

impl ShardWriter {
    /// Starts the shard `path` with row groups of `rows_per_group` images (at least 1).
    pub fn create(path: &Path, labels: &Labels, rows_per_group: u32) -> Result<Self, DataError> {
        let file = HashingFile {
            file: PendingFile::create(path)?,
            hash: Xxh3::new(),
            bytes: 0,
        };
        let schema = Arc::new(schema(labels));
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties(labels))).map_err(|e| {
            DataError::WriteShard {
                path: path.to_path_buf(),
                source: e.into(),
            }
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            writer,
            schema,
            rows_per_group: rows_per_group.max(1) as usize,
            images: BinaryBuilder::new(),
            paths: StringBuilder::new(),
            labels: (*labels != Labels::None).then(Int64Builder::new),
            rows: 0,
            pending_bytes: 0,
            samples: 0,
            row_groups: 0,
            image_bytes: 0,
        })
    }

    /// Adds one image. The label is dropped where the shard has no such column.
    pub fn push(&mut self, image: &[u8], path: Option<&str>, label: Option<i64>) -> Result<(), DataError> {
        if self.rows > 0 && self.pending_bytes + image.len() > MOST_ROW_GROUP_BYTES {
            self.close_row_group()?;
        }
        self.images.append_value(image);
        self.paths.append_option(path);
        if let Some(labels) = &mut self.labels {
            labels.append_option(label);
        }
        self.rows += 1;
        self.samples += 1;
        self.pending_bytes += image.len();
        self.image_bytes += image.len() as u64;
        if self.rows == self.rows_per_group {
            self.close_row_group()?;
        }
        Ok(())
    }

    /// Writes the footer and puts the shard under its name.
    pub fn finish(mut self) -> Result<ShardRecord, DataError> {
        self.close_row_group()?;
        let path = self.path;
        let file = self.writer.into_inner().map_err(|e| DataError::WriteShard {
            path: path.clone(),
            source: e.into(),
        })?;
        let record = ShardRecord {
            name: path
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default(),
            bytes: file.bytes,
            samples: self.samples,
            row_groups: self.row_groups,
            image_bytes: self.image_bytes,
            xxh3: hex(file.hash.digest()),
        };
        file.file.commit()?;
        Ok(record)
    }

    fn close_row_group(&mut self) -> Result<(), DataError> {
        if self.rows == 0 {
            return Ok(());
        }
        let written = self
            .batch()
            .and_then(|batch| self.writer.write(&batch))
            .and_then(|()| self.writer.flush());
        written.map_err(|e| DataError::WriteShard {
            path: self.path.clone(),
            source: e.into(),
        })?;
        self.row_groups += 1;
        (self.rows, self.pending_bytes) = (0, 0);
        Ok(())
    }

    fn batch(&mut self) -> Result<RecordBatch, ParquetError> {
        let parts: Vec<ArrayRef> = vec![Arc::new(self.images.finish()), Arc::new(self.paths.finish())];
        let mut columns: Vec<ArrayRef> = vec![Arc::new(StructArray::try_new(image_fields(), parts, None)?)];
        if let Some(labels) = &mut self.labels {
            columns.push(Arc::new(labels.finish()));
        }
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

fn image_fields() -> Fields {
    Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ])
}

fn schema(labels: &Labels) -> Schema {
    let mut fields = vec![Field::new("image", DataType::Struct(image_fields()), true)];
    if *labels != Labels::None {
        fields.push(Field::new("label", DataType::Int64, true));
    }
    Schema::new_with_metadata(fields, HashMap::from([(HUGGINGFACE.to_owned(), hf_metadata(labels))]))
}

/// The features as the `datasets` library (2 to 4) writes them: `Image`, and `ClassLabel` or `Value(int64)`.
fn hf_metadata(labels: &Labels) -> String {
    let mut features = json!({ "image": { "_type": "Image" } });
    match labels {
        Labels::None => {}
        Labels::Integers => features["label"] = json!({ "dtype": "int64", "_type": "Value" }),
        Labels::Classes(names) => features["label"] = json!({ "names": names, "_type": "ClassLabel" }),
    }
    json!({ "info": { "features": features } }).to_string()
}

fn properties(labels: &Labels) -> WriterProperties {
    WriterProperties::builder()
        .set_created_by(concat!("vicreg-stream ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        // One page a row group: row groups are closed by us, pages by neither rows nor bytes before that.
        .set_max_row_group_row_count(None)
        .set_data_page_size_limit(2 * MOST_ROW_GROUP_BYTES)
        .set_data_page_row_count_limit(usize::MAX)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_column_statistics_enabled(
            ColumnPath::from(vec!["image".to_owned(), "bytes".to_owned()]),
            EnabledStatistics::None,
        )
        .set_column_statistics_enabled(
            ColumnPath::from(vec!["image".to_owned(), "path".to_owned()]),
            EnabledStatistics::None,
        )
        .set_offset_index_disabled(true)
        // pyarrow writes it twice as well: here, and inside the serialised Arrow schema.
        .set_key_value_metadata(Some(vec![KeyValue::new(HUGGINGFACE.to_owned(), hf_metadata(labels))]))
        .build()
}

/// Class names of column `label`, from the `huggingface` metadata; `None` where there are none.
pub fn hf_label_names(metadata: &ParquetMetaData, label: &str) -> Option<Vec<String>> {
    let file = metadata.file_metadata();
    let pairs = file.key_value_metadata()?;
    let plain = pairs
        .iter()
        .find(|pair| pair.key == HUGGINGFACE)
        .and_then(|pair| pair.value.clone());
    // Some writers keep it only inside the serialised Arrow schema.
    let text = plain.or_else(|| {
        let schema = parquet_to_arrow_schema(file.schema_descr(), Some(pairs)).ok()?;
        schema.metadata().get(HUGGINGFACE).cloned()
    })?;
    let info: Value = serde_json::from_str(&text).ok()?;
    match &info["info"]["features"][label]["names"] {
        Value::Array(names) => names.iter().map(|n| n.as_str().map(str::to_owned)).collect(),
        // The older form: an object from "0", "1", ... to names.
        Value::Object(names) => (0..names.len())
            .map(|i| names.get(&i.to_string())?.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    }
}

/// xxh3 of a file's content, as [`ShardRecord`] writes it.
pub fn hash_file(path: &Path) -> Result<String, DataError> {
    let mut file = std::fs::File::open(path).map_err(|e| DataError::io("open", path, e))?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut buffer).map_err(|e| DataError::io("read", path, e))? {
            0 => return Ok(hex(hash.digest())),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn hex(value: u64) -> String {
    format!("{value:016x}")
}

/// A pending file that hashes what goes through it, so that a shard is never read back for its checksum.
struct HashingFile {
    file: PendingFile,
    hash: Xxh3,
    bytes: u64,
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Columns, Dataset, ShardId};

    #[test]
    fn a_shard_reads_back_as_it_was_written_and_is_the_same_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let labels = Labels::Classes(vec!["cat".to_owned(), "dog".to_owned()]);
        let write = |name: &str| {
            let mut shard = ShardWriter::create(&folder.path().join(name), &labels, 4).unwrap();
            for i in 0..10u8 {
                let path = format!("{i}.jpg");
                shard
                    .push(
                        &vec![i; 100 + usize::from(i)],
                        (i != 3).then_some(&path),
                        (i != 5).then_some(i64::from(i % 2)),
                    )
                    .unwrap();
            }
            shard.finish().unwrap()
        };
        let (a, b) = (write("a.parquet"), write("b.parquet"));
        assert_eq!((a.samples, a.row_groups, a.image_bytes), (10, 3, 1045));
        assert_eq!(a.xxh3, b.xxh3);
        assert_eq!(a.xxh3, hash_file(&folder.path().join("a.parquet")).unwrap());
        assert_eq!(
            a.bytes,
            std::fs::metadata(folder.path().join("a.parquet")).unwrap().len()
        );

        let data = Dataset::open(folder.path(), &Columns::default()).unwrap();
        assert_eq!(data.label_names().unwrap(), ["cat", "dog"]);
        assert!(data.has_labels());
        let rows: Vec<u32> = data.shards()[0].row_groups.iter().map(|g| g.rows).collect();
        assert_eq!(rows, [4, 4, 2]);
        for i in 0..10u32 {
            let group = data.read_row_group(ShardId(0), i / 4).unwrap();
            assert_eq!(group.image(i % 4).unwrap(), vec![i as u8; 100 + i as usize]);
            assert_eq!(group.path(i % 4), (i != 3).then(|| format!("{i}.jpg")).as_deref());
            assert_eq!(group.label(i % 4), (i != 5).then_some(i64::from(i % 2)));
        }
    }

    #[test]
    fn an_unfinished_shard_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut shard = ShardWriter::create(&folder.path().join("a.parquet"), &Labels::None, 2).unwrap();
        for _ in 0..5 {
            shard.push(b"image", None, None).unwrap();
        }
        drop(shard);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

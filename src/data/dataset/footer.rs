//! A shard's footer: read once at opening, resolved to the columns we want.
//!
//! In: a Parquet file. Out: its metadata with a schema that reads images as views into the pages, the leaf columns to load, class
//! names, and the raw footer bytes for the fingerprint. Source: Parquet's file format ("File Layout"): `footer length PAR1` ends a file.

use super::{Columns, RowGroupInfo};
use crate::data::DataError;
use crate::data::error::Cause;
use crate::data::shard::hf_label_names;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::schema::types::Type;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

/// A footer, with what the fingerprint needs.
pub struct Footer {
    /// The file's length.
    pub bytes: u64,
    /// The footer as it stands in the file.
    pub raw: Vec<u8>,
    /// What reading needs.
    pub opened: Opened,
}

/// What reading a shard's row groups needs.
#[derive(Debug)]
pub struct Opened {
    /// Metadata with the overriding schema.
    pub metadata: ArrowReaderMetadata,
    /// Name of the image column.
    pub image: String,
    /// Leaf column of the image bytes.
    pub image_leaf: usize,
    /// Leaf column of the path, where there is one.
    pub path_leaf: Option<usize>,
    /// Leaf column and name of the label, where there is one.
    pub label: Option<(usize, String)>,
    /// Class names from the `huggingface` metadata.
    pub label_names: Option<Vec<String>>,
}

impl Opened {
    /// Whether the shard has the label column.
    pub fn has_label(&self) -> bool {
        self.label.is_some()
    }

    /// Sizes of the row groups.
    pub fn row_groups(&self) -> Vec<RowGroupInfo> {
        let groups = self.metadata.metadata().row_groups().iter();
        groups
            .map(|g| RowGroupInfo {
                rows: g.num_rows() as u32,
                bytes: g.column(self.image_leaf).uncompressed_size().max(0) as u64,
            })
            .collect()
    }

    /// The leaf columns to load.
    pub fn leaves(&self) -> Vec<usize> {
        let mut leaves: Vec<usize> = [Some(self.image_leaf), self.path_leaf, self.label.as_ref().map(|l| l.0)]
            .into_iter()
            .flatten()
            .collect();
        leaves.sort_unstable();
        leaves
    }
}

/// Opens a shard by its footer.
pub fn open(path: &Path, columns: &Columns) -> Result<Footer, DataError> {
    let mut file = File::open(path).map_err(|e| DataError::io("open", path, e))?;
    let bytes = file.metadata().map_err(|e| DataError::io("open", path, e))?.len();
    let footer = |source: Cause| DataError::Footer {
        path: path.to_path_buf(),
        bytes,
        source,
    };
    let raw = read_footer(&mut file, bytes).map_err(|e| match e {
        ReadFooter::Io(e) => DataError::io("read", path, e),
        ReadFooter::Broken(reason) => footer(reason.into()),
    })?;
    // The Parquet library may panic on bytes that are not what they claim; to us that is a broken footer.
    let metadata = std::panic::catch_unwind(|| ParquetMetaDataReader::decode_metadata(&raw))
        .map_err(|_| footer("its metadata makes no sense".into()))?
        .map_err(|e| footer(e.into()))?;
    check_row_groups(&metadata, bytes).map_err(|reason| footer(reason.into()))?;
    let opened = resolve(path, Arc::new(metadata), columns, &footer)?;
    Ok(Footer { bytes, raw, opened })
}

enum ReadFooter {
    Io(std::io::Error),
    Broken(String),
}

/// The footer's bytes, without the eight that close the file.
fn read_footer(file: &mut File, bytes: u64) -> Result<Vec<u8>, ReadFooter> {
    if bytes < 12 {
        return Err(ReadFooter::Broken("too short for a header and a footer".to_owned()));
    }
    let mut tail = [0; 8];
    file.seek(SeekFrom::Start(bytes - 8))
        .and_then(|_| file.read_exact(&mut tail))
        .map_err(ReadFooter::Io)?;
    match &tail[4..] {
        b"PAR1" => {}
        b"PARE" => return Err(ReadFooter::Broken("its footer is encrypted".to_owned())),
        _ => return Err(ReadFooter::Broken("it does not end with `PAR1`".to_owned())),
    }
    let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if length > bytes - 12 {
        return Err(ReadFooter::Broken(format!("its footer claims {length} bytes")));
    }
    let mut raw = vec![0; length as usize];
    file.seek(SeekFrom::Start(bytes - 8 - length))
        .and_then(|_| file.read_exact(&mut raw))
        .map_err(ReadFooter::Io)?;
    Ok(raw)
}

/// Every column chunk must lie inside the file, and counts must be counts.
fn check_row_groups(metadata: &ParquetMetaData, bytes: u64) -> Result<(), String> {
    for (index, group) in metadata.row_groups().iter().enumerate() {
        if u32::try_from(group.num_rows()).is_err() {
            return Err(format!("row group {index} claims {} rows", group.num_rows()));
        }
        for column in group.columns() {
            let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
            let size = column.compressed_size();
            let end = u64::try_from(start)
                .ok()
                .zip(u64::try_from(size).ok())
                .and_then(|(s, n)| s.checked_add(n));
            if end.is_none_or(|end| end > bytes) {
                let name = column.column_path().string();
                return Err(format!("row group {index} places column `{name}` outside the file"));
            }
        }
    }
    Ok(())
}

/// Finds the wanted columns and overrides their types, so that images are read as views into the pages.
fn resolve(
    path: &Path,
    metadata: Arc<ParquetMetaData>,
    columns: &Columns,
    footer: &dyn Fn(Cause) -> DataError,
) -> Result<Opened, DataError> {
    let descr = metadata.file_metadata().schema_descr();
    let roots = descr.root_schema().get_fields();
    let root_of = |name: &str| roots.iter().position(|f| f.name() == name);
    let leaves_of = |root: usize| (0..descr.num_columns()).filter(move |&leaf| descr.get_column_root_idx(leaf) == root);
    let wrong = |column: &str, found: String, wanted: &'static str, label: bool| DataError::ColumnType {
        path: path.to_path_buf(),
        column: column.to_owned(),
        found,
        wanted,
        label,
    };

    let Some(image_root) = root_of(&columns.image) else {
        let names = roots.iter().map(|f| f.name().to_owned()).collect();
        return Err(DataError::NoImageColumn {
            path: path.to_path_buf(),
            wanted: columns.image.clone(),
            columns: names,
        });
    };
    let image = &roots[image_root];
    let wanted = "a struct of binary `bytes` (and string `path`), or binary";
    let (bytes_child, path_child) =
        image_children(image).ok_or_else(|| wrong(&columns.image, describe(image), wanted, false))?;
    // Children of such a struct are leaves all, so the n-th child is the n-th leaf of its root; others are skipped over.
    let image_leaves: Vec<usize> = leaves_of(image_root).collect();
    let label_root = if columns.label.is_empty() {
        None
    } else {
        root_of(&columns.label)
    };
    let label = match label_root {
        Some(root) if is_integer(&roots[root]) => leaves_of(root).next().map(|leaf| (leaf, columns.label.clone())),
        Some(root) => return Err(wrong(&columns.label, describe(&roots[root]), "an integer", true)),
        None => None,
    };

    let inferred = ArrowReaderMetadata::try_new(
        metadata.clone(),
        ArrowReaderOptions::new().with_skip_arrow_metadata(true),
    )
    .map_err(|e| footer(e.into()))?;
    let schema = with_views(inferred.schema(), image_root, bytes_child, path_child);
    let opened = ArrowReaderMetadata::try_new(
        metadata.clone(),
        ArrowReaderOptions::new().with_schema(Arc::new(schema)),
    )
    .map_err(|e| footer(e.into()))?;
    Ok(Opened {
        metadata: opened,
        image: columns.image.clone(),
        image_leaf: image_leaves[bytes_child.unwrap_or(0)],
        path_leaf: path_child.map(|child| image_leaves[child]),
        label,
        label_names: hf_label_names(&metadata, &columns.label),
    })
}

/// Positions of `bytes` and `path` among the struct's children; (None, None) for a plain binary column; `None`: cannot serve.
fn image_children(image: &Type) -> Option<(Option<usize>, Option<usize>)> {
    if repeated(image) {
        return None;
    }
    if image.is_primitive() {
        return is_bytes(image).then_some((None, None));
    }
    let children = image.get_fields();
    // A nested or repeated sibling would shift the leaves; no writer of image columns makes one.
    if children.iter().any(|c| !c.is_primitive() || repeated(c)) {
        return None;
    }
    let bytes = children.iter().position(|c| c.name() == "bytes" && is_bytes(c))?;
    Some((
        Some(bytes),
        children.iter().position(|c| c.name() == "path" && is_bytes(c)),
    ))
}

fn repeated(field: &Type) -> bool {
    let info = field.get_basic_info();
    info.has_repetition() && info.repetition() == Repetition::REPEATED
}

fn is_bytes(field: &Type) -> bool {
    field.is_primitive() && field.get_physical_type() == Physical::BYTE_ARRAY
}

fn is_integer(field: &Type) -> bool {
    if !field.is_primitive() || repeated(field) {
        return false;
    }
    let physical = matches!(field.get_physical_type(), Physical::INT32 | Physical::INT64);
    let info = field.get_basic_info();
    let logical = matches!(info.logical_type_ref(), None | Some(LogicalType::Integer { .. }));
    let converted = matches!(
        info.converted_type(),
        ConvertedType::NONE
            | ConvertedType::INT_8
            | ConvertedType::INT_16
            | ConvertedType::INT_32
            | ConvertedType::INT_64
            | ConvertedType::UINT_8
            | ConvertedType::UINT_16
            | ConvertedType::UINT_32
            | ConvertedType::UINT_64
    );
    physical && logical && converted
}

/// A column's type in words.
fn describe(field: &Type) -> String {
    if field.is_primitive() {
        let physical = field.get_physical_type();
        return match field.get_basic_info().logical_type_ref() {
            Some(logical) => format!("{physical} ({logical:?})"),
            None => physical.to_string(),
        };
    }
    let children: Vec<&str> = field.get_fields().iter().map(|c| c.name()).collect();
    format!("a group of ({})", children.join(", "))
}

/// The schema with the image's bytes (and path) as views.
fn with_views(schema: &Schema, root: usize, bytes: Option<usize>, path: Option<usize>) -> Schema {
    let as_view = |field: &Field| match field.data_type() {
        DataType::Utf8 => field.clone().with_data_type(DataType::Utf8View),
        DataType::Binary => field.clone().with_data_type(DataType::BinaryView),
        _ => field.clone(),
    };
    let fields = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(i, field)| match field.data_type() {
            _ if i != root => field.as_ref().clone(),
            DataType::Struct(children) => {
                let wanted = |c: usize| Some(c) == bytes || Some(c) == path;
                let children: Fields = children
                    .iter()
                    .enumerate()
                    .map(|(c, child)| {
                        if wanted(c) {
                            as_view(child)
                        } else {
                            child.as_ref().clone()
                        }
                    })
                    .collect();
                field.as_ref().clone().with_data_type(DataType::Struct(children))
            }
            _ => as_view(field),
        });
    Schema::new(fields.collect::<Vec<_>>())
}

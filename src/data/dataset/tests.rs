//! Data sets as other writers make them, and broken ones.

use super::*;
use crate::data::shard::{Labels, ShardWriter};
use arrow::array::{
    ArrayRef, BinaryArray, BinaryViewArray, Int16Array, Int64Array, LargeBinaryArray, ListArray, RecordBatch,
    StringArray, StructArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};
use std::fs::File;

fn open(root: &Path) -> Result<Dataset, DataError> {
    Dataset::open(root, &Columns::default())
}

/// Images of growing length: row i is i + 20 bytes of value i.
fn image(i: usize) -> Vec<u8> {
    vec![i as u8; i + 20]
}

fn struct_of(bytes: ArrayRef, path: Option<ArrayRef>) -> ArrayRef {
    let mut fields = vec![(Arc::new(Field::new("bytes", bytes.data_type().clone(), true)), bytes)];
    if let Some(path) = path {
        fields.push((Arc::new(Field::new("path", path.data_type().clone(), true)), path));
    }
    Arc::new(StructArray::from(fields))
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>, properties: Option<WriterProperties>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), properties).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn binary(n: usize) -> ArrayRef {
    Arc::new(BinaryArray::from_iter_values((0..n).map(image)))
}

fn paths(n: usize) -> ArrayRef {
    Arc::new(StringArray::from_iter_values((0..n).map(|i| format!("p/{i}.jpg"))))
}

fn check_rows(data: &Dataset, n: u32, with_path: bool, label: impl Fn(u32) -> Option<i64>) {
    assert_eq!(data.len(), u64::from(n));
    let group = data.read_row_group(ShardId(0), 0).unwrap();
    assert_eq!(group.len(), n as usize);
    for row in 0..n {
        assert_eq!(group.image(row).unwrap(), image(row as usize));
        assert_eq!(group.path(row), with_path.then(|| format!("p/{row}.jpg")).as_deref());
        assert_eq!(group.label(row), label(row));
    }
    assert_eq!(group.image(n), None);
}

#[test]
fn every_layout_of_the_image_column_reads_the_same() {
    let n = 30;
    let zstd = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let plain = WriterProperties::builder().set_dictionary_enabled(false).build();
    let v2 = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_dictionary_enabled(false)
        .build();
    let small_pages = WriterProperties::builder()
        .set_data_page_size_limit(64)
        .set_write_batch_size(4)
        .set_dictionary_page_size_limit(300)
        .build();
    let large: ArrayRef = Arc::new(LargeBinaryArray::from_iter_values((0..n).map(image)));
    let view: ArrayRef = Arc::new(BinaryViewArray::from_iter_values((0..n).map(image)));
    let cases: Vec<(&str, ArrayRef, bool, Option<WriterProperties>)> = vec![
        (
            "struct, dictionary pages",
            struct_of(binary(n), Some(paths(n))),
            true,
            None,
        ),
        (
            "struct, plain pages",
            struct_of(binary(n), Some(paths(n))),
            true,
            Some(plain),
        ),
        ("struct, zstd", struct_of(binary(n), Some(paths(n))), true, Some(zstd)),
        (
            "struct, version 2",
            struct_of(binary(n), Some(paths(n))),
            true,
            Some(v2),
        ),
        (
            "struct, many pages, dictionary given up",
            struct_of(binary(n), Some(paths(n))),
            true,
            Some(small_pages),
        ),
        ("struct without path", struct_of(binary(n), None), false, None),
        ("large binary", struct_of(large, None), false, None),
        ("binary view", struct_of(view, None), false, None),
        ("plain binary column", binary(n), false, None),
    ];
    for (name, column, with_path, properties) in cases {
        eprintln!("{name}");
        let folder = tempfile::tempdir().unwrap();
        // A list column beside it: leaves before the image must not shift it.
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(
            (0..n).map(|i| Some(vec![Some(i as i32); i % 3])),
        ));
        write(
            &folder.path().join("a.parquet"),
            vec![("tags", lists), ("image", column)],
            properties,
        );
        let data = open(folder.path()).unwrap();
        check_rows(&data, n as u32, with_path, |_| None);
        assert!(!data.has_labels());
        // Dictionary and plain pages alike are borrowed from the file's bytes; what was compressed, or is stored as
        // lengths apart from bytes (the default of version 2), lies in a page made of it.
        let group = data.read_row_group(ShardId(0), 0).unwrap();
        let borrowed = (0..n as u32).filter(|&row| group.file_offset(group.image(row).unwrap()).is_some());
        let made = matches!(name, "struct, zstd" | "struct, version 2");
        assert_eq!(borrowed.count(), if made { 0 } else { n }, "{name}");
    }
}

#[test]
fn any_integer_labels_are_read_and_nulls_stay_nulls() {
    let image = || struct_of(binary(3), Some(paths(3)));
    let cases: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![Some(7), None, Some(-1)])),
        Arc::new(Int16Array::from(vec![Some(7), None, Some(-1)])),
    ];
    for labels in cases {
        let folder = tempfile::tempdir().unwrap();
        write(
            &folder.path().join("a.parquet"),
            vec![("label", labels), ("image", image())],
            None,
        );
        check_rows(&open(folder.path()).unwrap(), 3, true, |row| {
            [Some(7), None, Some(-1)][row as usize]
        });
    }
    let folder = tempfile::tempdir().unwrap();
    let beyond: ArrayRef = Arc::new(UInt64Array::from(vec![1, u64::MAX, 2]));
    write(
        &folder.path().join("a.parquet"),
        vec![("label", beyond), ("image", image())],
        None,
    );
    let error = open(folder.path()).unwrap().read_row_group(ShardId(0), 0).unwrap_err();
    assert!(
        matches!(error, DataError::ReadRowGroup { row_group: 0, .. }),
        "{error:?}"
    );
}

#[test]
fn null_images_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![Some(&b"abc"[..]), None, Some(b"")]));
    write(
        &folder.path().join("a.parquet"),
        vec![("image", struct_of(bytes, None))],
        None,
    );
    let group = open(folder.path()).unwrap().read_row_group(ShardId(0), 0).unwrap();
    assert_eq!(
        (group.image(0), group.image(1), group.image(2)),
        (Some(&b"abc"[..]), None, Some(&b""[..]))
    );
}

#[test]
fn shards_come_in_byte_order_and_what_is_no_shard_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "b.parquet",
        "a/z.parquet",
        "B.parquet",
        "a.parquet",
        "a-b/c.parquet",
        ".hidden.parquet",
        ".h/x.parquet",
    ] {
        write(&folder.path().join(name), vec![("image", binary(2))], None);
    }
    std::fs::write(folder.path().join("c.parquet.tmp"), b"half").unwrap();
    let data = open(folder.path()).unwrap();
    let names: Vec<&str> = data.shards().iter().map(|s| s.name.as_str()).collect();
    // Bytes, not words: upper case first, `-` before `.` before `/`.
    assert_eq!(
        names,
        ["B.parquet", "a-b/c.parquet", "a.parquet", "a/z.parquet", "b.parquet"]
    );
}

#[test]
fn the_fingerprint_follows_names_and_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, vec![("image", binary(5))], None);
    let first = open(folder.path()).unwrap().fingerprint();
    assert_eq!(open(folder.path()).unwrap().fingerprint(), first);
    write(&path, vec![("image", binary(6))], None);
    let longer = open(folder.path()).unwrap().fingerprint();
    assert_ne!(longer, first);
    std::fs::rename(&path, folder.path().join("b.parquet")).unwrap();
    assert_ne!(open(folder.path()).unwrap().fingerprint(), longer);
}

#[test]
fn uncompressed_images_are_borrowed_and_buffers_are_reused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let mut shard = ShardWriter::create(&path, &Labels::None, 8).unwrap();
    (0..16).for_each(|i| shard.push(&image(i), None, None).unwrap());
    shard.finish().unwrap();
    let file = std::fs::read(&path).unwrap();
    let data = open(folder.path()).unwrap();
    let group = data.read_row_group(ShardId(0), 1).unwrap();
    for row in 0..8 {
        let bytes = group.image(row).unwrap();
        // Inside the buffer that was read from the file, at the place that the bytes have there.
        let offset = group.file_offset(bytes).expect("borrowed from the chunk") as usize;
        assert_eq!(&file[offset..offset + bytes.len()], bytes);
    }
    let address = group.image(0).unwrap().as_ptr();
    drop(group);
    let again = data.read_row_group(ShardId(0), 1).unwrap();
    assert_eq!(
        again.image(0).unwrap().as_ptr(),
        address,
        "the same memory serves the next read"
    );
}

fn error_of(result: Result<Dataset, DataError>) -> DataError {
    let error = result.unwrap_err();
    eprintln!(
        "{error} | {:?} | {:?}",
        std::error::Error::source(&error).map(ToString::to_string),
        error.hints()
    );
    error
}

#[test]
fn bad_folders_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    assert!(matches!(
        error_of(open(&root.join("nowhere"))),
        DataError::NoSuchFolder { .. }
    ));
    assert!(matches!(error_of(open(root)), DataError::NoParquet { images: 0, .. }));
    std::fs::write(root.join("cat.JPG"), b"x").unwrap();
    assert!(matches!(error_of(open(root)), DataError::NoParquet { images: 1, .. }));
    assert!(matches!(
        error_of(open(&root.join("cat.JPG"))),
        DataError::NotAFolder { .. }
    ));
    write(&root.join("a.parquet"), vec![("image", binary(0))], None);
    assert!(matches!(error_of(open(root)), DataError::Empty { shards: 1, .. }));
    write(&root.join("a.parquet"), vec![("image", binary(2))], None);
    assert!(open(root).is_ok());
    // One shard by its own path, whatever lies beside it.
    write(&root.join("b.parquet"), vec![("image", binary(3))], None);
    let single = open(&root.join("b.parquet")).unwrap();
    assert_eq!((single.len(), single.shards()[0].name.as_str()), (3, "b.parquet"));
    std::fs::create_dir(root.join(".ingest")).unwrap();
    assert!(matches!(error_of(open(root)), DataError::Unfinished { .. }));
}

#[test]
fn bad_columns_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, vec![("img", binary(2)), ("y", paths(2))], None);
    match error_of(open(folder.path())) {
        DataError::NoImageColumn { wanted, columns, .. } => assert_eq!(
            (&*wanted, &columns[..]),
            ("image", &["img".to_owned(), "y".to_owned()][..])
        ),
        other => panic!("{other:?}"),
    }
    let columns = |image: &str, label: &str| Columns {
        image: image.to_owned(),
        label: label.to_owned(),
    };
    assert!(Dataset::open(folder.path(), &columns("img", "label")).is_ok());
    assert!(Dataset::open(folder.path(), &columns("img", "")).is_ok());
    let error = error_of(Dataset::open(folder.path(), &columns("img", "y")));
    assert!(matches!(error, DataError::ColumnType { label: true, .. }));
    let integers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([
        Some(vec![Some(1)]),
        None,
    ]));
    for column in [integers.clone(), lists, struct_of(integers, None)] {
        write(&path, vec![("image", column)], None);
        assert!(matches!(
            error_of(open(folder.path())),
            DataError::ColumnType { label: false, .. }
        ));
    }
}

#[test]
fn broken_files_are_errors_at_every_length() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, vec![("image", struct_of(binary(20), Some(paths(20))))], None);
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(7) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = open(folder.path()).unwrap_err();
        assert!(
            matches!(error, DataError::Footer { bytes, .. } if bytes == length as u64),
            "{length}: {error:?}"
        );
    }
    // Any byte changed: an error, or other bytes; never a panic.
    let mut rng = crate::data::rng::Philox::new(1, crate::data::rng::Domain::View, 0, 0, 0);
    let (mut opened, mut refused) = (0, 0);
    for _ in 0..400 {
        let mut bytes = whole.clone();
        bytes[rng.below(whole.len() as u32) as usize] ^= 1 << rng.below(8);
        std::fs::write(&path, &bytes).unwrap();
        match open(folder.path()).and_then(|data| data.read_row_group(ShardId(0), 0)) {
            Ok(_) => opened += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(opened > 0 && refused > 0, "{opened} {refused}");
}

#[test]
fn a_file_that_changes_after_opening_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, vec![("image", binary(20))], None);
    let data = open(folder.path()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = data.read_row_group(ShardId(0), 0).unwrap_err();
    assert!(
        matches!(&error, DataError::ReadRowGroup { path: p, row_group: 0, .. } if *p == path),
        "{error:?}"
    );
    std::fs::remove_file(&path).unwrap();
    assert!(data.read_row_group(ShardId(0), 0).is_err());
    assert!(data.read_row_group(ShardId(9), 0).is_err() && data.read_row_group(ShardId(0), 9).is_err());
}

#[test]
fn class_names_must_agree() {
    let folder = tempfile::tempdir().unwrap();
    let shard = |name: &str, names: &[&str]| {
        let labels = Labels::Classes(names.iter().map(|&n| n.to_owned()).collect());
        let mut shard = ShardWriter::create(&folder.path().join(name), &labels, 8).unwrap();
        shard.push(b"x", None, Some(0)).unwrap();
        shard.finish().unwrap();
    };
    shard("a.parquet", &["cat", "dog"]);
    shard("b.parquet", &["cat", "dog"]);
    assert_eq!(open(folder.path()).unwrap().label_names().unwrap(), ["cat", "dog"]);
    shard("c.parquet", &["dog", "cat"]);
    assert!(matches!(error_of(open(folder.path())), DataError::LabelNames { .. }));
}

#[test]
fn class_names_of_older_writers_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let metadata = r#"{"info": {"features": {"label": {"names": {"0": "a", "1": "b"}, "_type": "ClassLabel"}}}}"#;
    let schema = Schema::new(vec![
        Field::new("image", DataType::Binary, true),
        Field::new("label", DataType::Int64, true),
    ])
    .with_metadata(std::collections::HashMap::from([(
        "huggingface".to_owned(),
        metadata.to_owned(),
    )]));
    let labels: ArrayRef = Arc::new(Int64Array::from(vec![0, 1]));
    let batch = RecordBatch::try_new(Arc::new(schema), vec![binary(2), labels]).unwrap();
    let file = File::create(folder.path().join("a.parquet")).unwrap();
    // Arrow's own writer keeps schema metadata inside the serialised schema only.
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    assert_eq!(open(folder.path()).unwrap().label_names().unwrap(), ["a", "b"]);
}

/// One row group with one dictionary page of 55 MB, as pyarrow writes by default, and ZSTD pages.
#[test]
fn third_party_files_read_well() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    if !shared.is_dir() {
        eprintln!("skipped: no {}", shared.display());
        return;
    }
    let photos = open(&shared.join("photos")).unwrap();
    assert_eq!((photos.len(), photos.has_labels()), (500, true));
    assert_eq!(photos.label_names().unwrap().len(), 1000);
    let group = photos.read_row_group(ShardId(0), 0).unwrap();
    assert!(
        (0..500).all(|row| group.file_offset(group.image(row).unwrap()).is_some()),
        "borrowed from the dictionary page"
    );
    assert!((0..500).all(|row| (0..1000).contains(&group.label(row).unwrap()) && group.path(row).is_some()));
    drop(group);
    let start = std::time::Instant::now();
    photos.read_row_group(ShardId(0), 0).unwrap();
    eprintln!("500 photos: {:.4} ms each to read", start.elapsed().as_secs_f64() * 2.0);

    let cifar = open(&shared.join("cifar10")).unwrap();
    assert_eq!((cifar.len(), cifar.shards().len()), (60_000, 5));
    assert_eq!(cifar.label_names().unwrap()[3], "cat");

    let hostile = open(&shared.join("hostile")).unwrap();
    assert_eq!((hostile.len(), hostile.has_labels()), (3081, false));
    let rows: usize = (0..7)
        .map(|g| hostile.read_row_group(ShardId(0), g).unwrap().len())
        .sum();
    assert_eq!(rows, 3081);
}

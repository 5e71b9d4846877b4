//! Ingest: what goes in comes out once, untouched and shuffled; interruptions and mistakes leave no half data set.

use super::*;
use crate::data::manifest::MANIFEST;
use crate::data::shard::ShardWriter;
use crate::data::sources::shapes::draw;
use crate::data::{Columns, Dataset, ShardId};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A tree `class/file` of `n` small JPEGs, three classes.
fn tree(root: &Path, n: u64) -> String {
    for i in 0..n {
        let class = root.join(["ant", "bee", "cow"][(i % 3) as usize]);
        std::fs::create_dir_all(&class).unwrap();
        std::fs::write(class.join(format!("{i:03}.jpg")), draw::jpeg(1, i)).unwrap();
    }
    root.to_str().unwrap().to_owned()
}

/// Small shards and row groups, so that there is something to interrupt.
fn small() -> IngestOptions {
    IngestOptions {
        shard_mb: 1,
        row_group: 16,
        ..IngestOptions::default()
    }
}

fn run(sources: &[String], out: &Path, options: &IngestOptions) -> Result<IngestSummary, IngestError> {
    ingest(sources, out, options, &mut |_| {})
}

type Row = (Option<String>, Option<i64>, Vec<u8>);

/// All rows of a data set, in order.
fn rows(folder: &Path) -> Vec<Row> {
    let data = Dataset::open(folder, &Columns::default()).unwrap();
    let mut rows = Vec::new();
    for (s, shard) in data.shards().iter().enumerate() {
        for g in 0..shard.row_groups.len() {
            let group = data.read_row_group(ShardId(s as u32), g as u32).unwrap();
            for r in 0..group.len() as u32 {
                rows.push((
                    group.path(r).map(str::to_owned),
                    group.label(r),
                    group.image(r).unwrap().to_vec(),
                ));
            }
        }
    }
    rows
}

/// Every file of a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    entries
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect()
}

#[test]
fn a_folder_tree_comes_out_once_untouched_and_shuffled() {
    let dir = tempfile::tempdir().unwrap();
    let source = tree(&dir.path().join("in"), 60);
    let out = dir.path().join("out");
    let mut stages = Vec::new();
    let summary = ingest(std::slice::from_ref(&source), &out, &small(), &mut |p| stages.push(p)).unwrap();
    assert_eq!((summary.samples, summary.rejected, summary.shards), (60, 0, 1));
    assert_eq!(summary.label_names.as_deref().unwrap(), ["ant", "bee", "cow"]);
    assert!(
        stages
            .last()
            .is_some_and(|p| p.done == 60 && p.total == 60 && p.bytes == summary.image_bytes)
    );

    let written = rows(&out);
    let names: Vec<&str> = written.iter().map(|r| r.0.as_deref().unwrap()).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_ne!(names, sorted, "shuffled");
    sorted.dedup();
    assert_eq!(sorted.len(), 60);
    for (path, label, bytes) in &written {
        let path = path.as_deref().unwrap();
        assert_eq!(*bytes, std::fs::read(dir.path().join("in").join(path)).unwrap());
        let class = path.split('/').next().unwrap();
        assert_eq!(["ant", "bee", "cow"][label.unwrap() as usize], class);
    }
    // Another seed: the same images in another order.
    let other = dir.path().join("other");
    run(&[source], &other, &IngestOptions { seed: 1, ..small() }).unwrap();
    let (mut a, mut b) = (written, rows(&other));
    assert_ne!(a, b);
    a.sort();
    b.sort();
    assert_eq!(a, b);
}

#[test]
fn rejects_are_listed_with_file_row_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("in");
    let source = tree(&root, 9);
    std::fs::write(root.join("ant/cut.jpg"), &draw::jpeg(1, 5)[..700]).unwrap();
    std::fs::write(root.join("ant/text.png"), b"not an image").unwrap();
    std::fs::write(root.join("bee/empty.webp"), b"").unwrap();
    let parquet = dir.path().join("pq");
    let mut shard = ShardWriter::create(&parquet.join("a.parquet"), &Labels::None, 2).unwrap();
    for (i, bytes) in [draw::jpeg(2, 0), draw::jpeg(2, 1), draw::jpeg(2, 2), b"broken".to_vec()]
        .iter()
        .enumerate()
    {
        shard.push(bytes, Some(&i.to_string()), None).unwrap();
    }
    shard.finish().unwrap();
    let out = dir.path().join("out");
    let summary = run(&[source, parquet.to_str().unwrap().to_owned()], &out, &small()).unwrap();
    let mut rejects: Vec<_> = summary
        .rejects
        .iter()
        .map(|r| (r.file.as_str(), r.row, r.code.as_str()))
        .collect();
    rejects.sort_unstable();
    let expected = [
        ("a.parquet", Some(3), "unknown-format"),
        ("ant/cut.jpg", None, "truncated"),
        ("ant/text.png", None, "unknown-format"),
        ("bee/empty.webp", None, "empty"),
    ];
    assert_eq!(rejects, expected);
    assert_eq!((summary.samples, summary.rejected), (12, 4));
    assert_eq!(rows(&out).len(), 12);
    // Labelled and unlabelled sources share a column: nulls where there is none.
    assert_eq!(rows(&out).iter().filter(|r| r.1.is_none()).count(), 3);
    assert_eq!(Manifest::read(&out).unwrap().unwrap().rejects, summary.rejects);
}

#[test]
fn verify_decodes_in_full() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("in");
    let source = tree(&root, 6);
    // An invalid code in the entropy-coded data: markers and header hold, only decoding shows it.
    let mut bytes = draw::jpeg(1, 50);
    let scan = bytes.windows(2).position(|w| w == [0xff, 0xda]).unwrap() + 14;
    for pair in bytes[scan..scan + 400].chunks_exact_mut(2) {
        pair.copy_from_slice(&[0xff, 0x00]);
    }
    std::fs::write(root.join("ant/bad.jpg"), &bytes).unwrap();
    let quick = run(std::slice::from_ref(&source), &dir.path().join("quick"), &small()).unwrap();
    assert_eq!(quick.rejected, 0);
    let full = run(
        &[source],
        &dir.path().join("full"),
        &IngestOptions {
            verify: true,
            ..small()
        },
    )
    .unwrap();
    assert_eq!((full.rejected, full.rejects[0].file.as_str()), (1, "ant/bad.jpg"));
}

/// Plain pages are read from their place, compressed ones through the spill file: the same comes out.
#[test]
fn parquet_keeps_labels_names_and_paths_compressed_or_not() {
    use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch};
    use parquet::basic::{Compression, ZstdLevel};
    let dir = tempfile::tempdir().unwrap();
    let images: Vec<Vec<u8>> = (0..40).map(|i| draw::jpeg(3, i)).collect();
    let mut outputs = Vec::new();
    for compression in [Compression::UNCOMPRESSED, Compression::ZSTD(ZstdLevel::default())] {
        let folder = dir.path().join(format!("{compression:?}").replace(['(', ')'], ""));
        std::fs::create_dir(&folder).unwrap();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("jpeg", Arc::new(BinaryArray::from_iter_values(&images))),
            ("class", Arc::new(Int64Array::from_iter_values((0..40).map(|i| i % 4)))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let properties = parquet::file::properties::WriterProperties::builder()
            .set_compression(compression)
            .set_max_row_group_row_count(Some(7))
            .build();
        let file = std::fs::File::create(folder.join("x.parquet")).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let out = dir.path().join(format!("out{}", outputs.len()));
        let options = IngestOptions {
            image_column: "jpeg".to_owned(),
            label_column: "class".to_owned(),
            ..small()
        };
        let summary = run(&[folder.to_str().unwrap().to_owned()], &out, &options).unwrap();
        assert_eq!((summary.samples, summary.label_names), (40, None));
        outputs.push(rows(&out));
    }
    assert_eq!(outputs[0], outputs[1]);
    let mut labels: Vec<i64> = outputs[0].iter().map(|r| r.1.unwrap()).collect();
    labels.sort_unstable();
    assert_eq!(labels, (0..40).map(|i| i / 10).collect::<Vec<_>>());
    // What we write is a source in its turn, with class names and paths.
    let again = dir.path().join("again");
    let first = dir.path().join("named");
    run(&[tree(&dir.path().join("in"), 12)], &first, &small()).unwrap();
    let summary = run(&[first.to_str().unwrap().to_owned()], &again, &small()).unwrap();
    assert_eq!(summary.label_names.as_deref().unwrap(), ["ant", "bee", "cow"]);
    let (mut a, mut b) = (rows(&first), rows(&again));
    a.sort();
    b.sort();
    assert_eq!(a, b);
}

/// Interrupts an ingest at its `n`-th report; false where it was done before.
fn interrupted(sources: &[String], out: &Path, options: &IngestOptions, n: u32) -> bool {
    let mut reports = 0;
    catch_unwind(AssertUnwindSafe(|| {
        ingest(sources, out, options, &mut |_| {
            reports += 1;
            assert!(reports < n, "interrupted, as the test wants it");
        })
    }))
    .is_err()
}

fn is_unfinished(out: &Path) -> bool {
    matches!(
        Dataset::open(out, &Columns::default()),
        Err(DataError::Unfinished { .. })
    )
}

#[test]
fn an_interrupted_ingest_is_refused_then_finished_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    // About 2 KB an image by estimate: 1 MiB shards hold 512, so there are three.
    let sources = ["synthetic:shapes?train=1300".to_owned()];
    let options = IngestOptions {
        row_group: 100,
        ..small()
    };
    let whole = dir.path().join("whole");
    let uninterrupted = run(&sources, &whole, &options).unwrap();
    assert_eq!((uninterrupted.samples, uninterrupted.shards), (1300, 3));

    let out = dir.path().join("out");
    let mut interruptions = 0;
    let mut kept = 0;
    for n in [1, 3, 9, 9] {
        assert!(interrupted(&sources, &out, &options, n));
        assert!(is_unfinished(&out));
        // What a kill leaves, and an unwinding test does not: a half-written temporary.
        std::fs::write(out.join(".ingest/.train-00001-of-00003.parquet.4194305-0.tmp"), b"half").unwrap();
        interruptions += 1;
        let records = std::fs::read_dir(out.join(".ingest")).unwrap();
        kept = records
            .filter(|e| e.as_ref().unwrap().path().to_string_lossy().ends_with(".parquet.json"))
            .count();
    }
    assert!(interruptions == 4 && kept >= 1, "{kept}");
    // A finished shard that was damaged since must be written anew.
    let shard = out.join(".ingest/train-00000-of-00003.parquet");
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&shard, bytes).unwrap();

    let resumed = run(&sources, &out, &options).unwrap();
    assert_eq!(resumed.shards_kept as usize, kept - 1);
    assert_eq!(files(&out), files(&whole));
}

#[test]
fn a_kill_in_the_last_steps_is_finished_too() {
    let dir = tempfile::tempdir().unwrap();
    let sources = ["synthetic:shapes?train=1100".to_owned()];
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    run(&sources, &whole, &small()).unwrap();
    // All shards noted; the first has moved out already, as in a kill between the moves.
    assert!(interrupted(&sources, &out, &small(), u32::MAX) || out.join(MANIFEST).exists());
    std::fs::remove_dir_all(&out).unwrap();
    let last = 1100u32.div_ceil(16) + 1;
    assert!(interrupted(&sources, &out, &small(), last));
    let name = "train-00000-of-00003.parquet";
    std::fs::rename(out.join(".ingest").join(name), out.join(name)).unwrap();
    assert!(is_unfinished(&out));
    let resumed = run(&sources, &out, &small()).unwrap();
    assert!(resumed.shards_kept >= 1);
    assert_eq!(files(&out), files(&whole));
    // The manifest is there, the journal not yet gone.
    std::fs::create_dir(out.join(".ingest")).unwrap();
    assert!(is_unfinished(&out));
}

#[test]
fn other_arguments_and_other_folders_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sources = ["synthetic:shapes?train=700".to_owned()];
    let out = dir.path().join("out");
    assert!(interrupted(&sources, &out, &small(), 5));
    let other = IngestOptions { seed: 4, ..small() };
    match run(&sources, &out, &other).unwrap_err() {
        IngestError::OtherArguments {
            complete: false,
            differences,
            ..
        } => assert_eq!(differences, ["options.seed: 0 -> 4"]),
        error => panic!("{error}"),
    }
    run(&sources, &out, &small()).unwrap();
    let before = files(&out);
    assert!(run(&sources, &out, &small()).unwrap().already_complete);
    let error = run(&["synthetic:shapes?train=701".to_owned()], &out, &small()).unwrap_err();
    assert!(
        matches!(error, IngestError::OtherArguments { complete: true, .. }),
        "{error}"
    );
    assert_eq!(files(&out), before);
    std::fs::remove_file(out.join("train-00000-of-00002.parquet")).unwrap();
    let lost = run(&sources, &out, &small()).unwrap_err();
    assert!(matches!(lost, IngestError::Data(DataError::Manifest { .. })), "{lost}");

    let full = dir.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("thesis.tex"), b"precious").unwrap();
    let error = run(&sources, &full, &small()).unwrap_err();
    assert!(
        matches!(&error, IngestError::OutNotEmpty { found, .. } if found == "thesis.tex"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(&full).unwrap().count(), 1);
    let file = run(&sources, &full.join("thesis.tex"), &small()).unwrap_err();
    assert!(matches!(file, IngestError::OutIsFile { .. }), "{file}");

    let source = tree(&dir.path().join("in"), 3);
    for inside in [dir.path().join("in"), dir.path().join("in/new/deep")] {
        let error = run(std::slice::from_ref(&source), &inside, &small()).unwrap_err();
        assert!(matches!(error, IngestError::OutInsideSource { .. }), "{error}");
    }
    assert!(matches!(run(&[], &out, &small()), Err(IngestError::NoSources)));
    let zero = IngestOptions {
        row_group: 0,
        ..small()
    };
    assert!(matches!(
        run(&sources, &out, &zero),
        Err(IngestError::ZeroOption { option: "row-group" })
    ));
    let nowhere = run(
        &[dir.path().join("nowhere").to_str().unwrap().to_owned()],
        &dir.path().join("n"),
        &small(),
    );
    assert!(matches!(
        nowhere,
        Err(IngestError::Data(DataError::NoSuchFolder { .. }))
    ));
    assert!(!dir.path().join("n").exists(), "a mistake leaves no folder");
}

#[test]
fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let sources = ["synthetic:shapes?train=100".to_owned()];
    let out = dir.path().join("out");
    let mut tried = false;
    ingest(&sources, &out, &small(), &mut |_| {
        if !std::mem::replace(&mut tried, true) {
            assert!(matches!(run(&sources, &out, &small()), Err(IngestError::Busy { .. })));
        }
    })
    .unwrap();
    assert!(tried);
}

#[test]
fn a_source_that_changed_is_not_the_same_ingest() {
    let dir = tempfile::tempdir().unwrap();
    let source = tree(&dir.path().join("in"), 40);
    let out = dir.path().join("out");
    assert!(interrupted(std::slice::from_ref(&source), &out, &small(), 2));
    std::fs::write(dir.path().join("in/ant/zzz.jpg"), draw::jpeg(1, 99)).unwrap();
    let error = run(&[source], &out, &small()).unwrap_err();
    assert!(error.to_string().contains("fingerprint"), "{error}");
}

#[test]
fn labels_follow_the_choice_and_class_names_are_united() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, i: u64| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, draw::jpeg(1, i)).unwrap();
    };
    for (i, name) in [
        "a/dog/1.jpg",
        "a/cat/2.jpg",
        "b/cat/3.jpg",
        "b/eel/4.jpg",
        "deep/x/y/5.jpg",
        "deep/6.jpg",
    ]
    .iter()
    .enumerate()
    {
        write(name, i as u64);
    }
    let source = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let labels = |sources: &[String], labels: LabelsFrom| {
        let out = tempfile::tempdir_in(dir.path()).unwrap().path().join("out");
        let summary = run(sources, &out, &IngestOptions { labels, ..small() }).unwrap();
        let named: BTreeMap<String, Option<i64>> = rows(&out).into_iter().map(|r| (r.0.unwrap(), r.1)).collect();
        (summary.label_names, named.into_values().collect::<Vec<_>>())
    };
    let (names, values) = labels(&[source("a"), source("b")], LabelsFrom::Auto);
    assert_eq!(names.unwrap(), ["cat", "dog", "eel"]);
    // In order of paths: cat/2, cat/3, dog/1, eel/4.
    assert_eq!(values, [Some(0), Some(0), Some(1), Some(2)]);
    assert_eq!(
        labels(&[source("a"), source("b")], LabelsFrom::None),
        (None, vec![None; 4])
    );
    assert_eq!(labels(&[source("deep")], LabelsFrom::Auto), (None, vec![None; 2]));
    assert_eq!(
        labels(&[source("deep")], LabelsFrom::Folders),
        (Some(vec!["x".to_owned()]), vec![None, Some(0)])
    );

    let bare = dir.path().join("bare");
    let mut shard = ShardWriter::create(&bare.join("a.parquet"), &Labels::Integers, 2).unwrap();
    shard.push(&draw::jpeg(1, 1), None, Some(3)).unwrap();
    shard.finish().unwrap();
    let error = run(&[source("a"), source("bare")], &dir.path().join("mixed"), &small()).unwrap_err();
    assert!(matches!(error, IngestError::LabelsMixed { .. }), "{error}");
}

#[test]
fn nothing_but_rejects_is_an_error_and_leaves_no_data_set() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("in")).unwrap();
    std::fs::write(dir.path().join("in/a.jpg"), b"no").unwrap();
    let out = dir.path().join("out");
    let error = run(&[dir.path().join("in").to_str().unwrap().to_owned()], &out, &small()).unwrap_err();
    assert!(matches!(error, IngestError::NoImages { listed: 1, .. }), "{error}");
    assert!(Dataset::open(&out, &Columns::default()).is_err());
}

#[test]
fn a_manifest_that_contradicts_the_folder_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run(&["synthetic:shapes?train=700".to_owned()], &out, &small()).unwrap();
    let manifest = Manifest::read(&out).unwrap().unwrap();
    manifest.verify_content(&out, &mut |_| {}).unwrap();
    // A change of content keeps length and footer: only the checksum sees it.
    let shard = out.join(&manifest.shards[0].name);
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&shard, &bytes).unwrap();
    assert!(Dataset::open(&out, &Columns::default()).is_ok());
    assert!(matches!(
        manifest.verify_content(&out, &mut |_| {}),
        Err(DataError::Manifest { .. })
    ));
    std::fs::remove_file(&shard).unwrap();
    let error = Dataset::open(&out, &Columns::default()).unwrap_err();
    assert!(error.to_string().contains("not there"), "{error}");
    // Somebody else's file of that name is none of our business.
    std::fs::write(out.join(MANIFEST), b"{\"name\": \"web app\"}").unwrap();
    assert!(Dataset::open(&out, &Columns::default()).is_ok());
}

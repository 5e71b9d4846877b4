//! Hostile images through a whole feed: nothing escapes, nothing is lost, and each bad row is told of once.
//!
//! In: 3,081 files of fuzzing corpora where a developer has them, and files that the test damages itself. The reference
//! is the codec, called row by row: what it refuses, the quarantine must list, and nothing else.

use super::*;
use crate::data::codec::Policy;
use crate::data::shard::{Labels, ShardWriter};
use std::collections::BTreeMap;

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/codec")
        .join(name);
    std::fs::read(path).unwrap()
}

/// A JPEG or PNG that claims to be `side` x `side`, checksum included.
fn huge(name: &str, side: u16) -> Vec<u8> {
    let mut bytes = fixture(name);
    let [high, low] = side.to_be_bytes();
    if name.ends_with(".png") {
        bytes[16..24].copy_from_slice(&[0, 0, high, low, 0, 0, high, low]);
        let checksum = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    } else {
        let sof = bytes
            .windows(2)
            .position(|w| w == [0xff, 0xc0] || w == [0xff, 0xc2])
            .unwrap();
        bytes[sof + 5..sof + 9].copy_from_slice(&[high, low, high, low]);
    }
    bytes
}

/// PNG's checksum, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1)))
    })
}

/// Most pixels of a damaged file: 4 MB in memory, a worker. A claim below it is decoded until the data end.
const MAX_PIXELS: u64 = 1_000_000;

/// Sides of square images that are refused by their header, two of them below the limit that users have by default.
const TOO_LARGE: [u16; 3] = [4_000, 13_000, 65_535];

/// Cuts, flipped bits and false headers of the fixtures; a multiple of 16 files.
fn damaged_files() -> Vec<Vec<u8>> {
    let mut files = vec![vec![], b"GIF89a and no more".to_vec(), vec![0xff; 300]];
    let mut rng = Philox::new(8, Domain::Shapes, 0, 0, 0);
    for name in [
        "rgb420.jpg",
        "progressive420.jpg",
        "restart420.jpg",
        "grey.jpg",
        "cmyk.jpg",
        "rgb.png",
        "palette.png",
        "lossless.webp",
        "lossy.webp",
    ] {
        let whole = fixture(name);
        files.push(whole.clone());
        for part in 1..16 {
            files.push(whole[..whole.len() * part / 16].to_vec());
        }
        for _ in 0..30 {
            let mut bytes = whole.clone();
            for _ in 0..1 + rng.below(3) {
                bytes[rng.below(whole.len() as u32) as usize] ^= 1 << rng.below(8);
            }
            files.push(bytes);
        }
    }
    for side in [1, 900].into_iter().chain(TOO_LARGE) {
        files.extend(["rgb420.jpg", "progressive420.jpg", "rgb.png"].map(|name| huge(name, side)));
    }
    files.resize(files.len().next_multiple_of(16), fixture("rgb444.jpg"));
    files
}

fn write(files: &[Vec<u8>]) -> Images {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = ShardWriter::create(&folder.path().join("hostile.parquet"), &Labels::None, 64).unwrap();
    for (number, bytes) in files.iter().enumerate() {
        shard.push(bytes, Some(&format!("file-{number}")), None).unwrap();
    }
    shard.finish().unwrap();
    let dataset = open(folder.path());
    Images { folder, dataset }
}

/// What the codec says of every row: its key -> code and path of a bad one.
fn verdicts(dataset: &Dataset, decode: &DecodeOptions) -> BTreeMap<SampleKey, (&'static str, String)> {
    let (mut bad, mut image) = (BTreeMap::new(), Rgbx8::default());
    for (shard, row_group, rows) in dataset.row_groups() {
        let group = dataset.read_row_group(shard, row_group).unwrap();
        for row in 0..rows {
            if let Err(error) = codec::decode(group.image(row).unwrap(), decode, &mut image) {
                let key = SampleKey { shard, row_group, row };
                bad.insert(key, (error.code(), group.path(row).unwrap().to_owned()));
            }
        }
    }
    bad
}

/// A pass over the data set, `steps` batches of it; the rejects in their order.
fn rejects(dataset: &Arc<Dataset>, plan: &FeedPlan, workers: u32, steps: usize) -> Vec<Reject> {
    let batches = run(dataset, plan, &options(workers, 3), 0, steps);
    assert_eq!(batches.len(), steps, "the run came to its end");
    batches.into_iter().flat_map(|batch| batch.rejects).collect()
}

fn each_bad_row_once(rejects: &[Reject], bad: &BTreeMap<SampleKey, (&'static str, String)>, shard: &str) {
    let mut found = BTreeMap::new();
    for reject in rejects {
        assert!(reject.shard == shard && !reject.reason.is_empty());
        let said = (reject.code, reject.path.clone().unwrap());
        assert_eq!(found.insert(reject.key, said), None, "{:?} is listed twice", reject.key);
    }
    assert!(found == *bad, "{} rows are listed, {} are bad", found.len(), bad.len());
}

/// One sequential pass, and one epoch of a shuffled one with substitutes, under both policies.
fn through_a_feed(dataset: &Arc<Dataset>, limits: &DecodeOptions, batch_size: u32, workers: &[u32]) {
    let samples = dataset.len();
    assert_eq!(
        samples % u64::from(batch_size),
        0,
        "an epoch without a tail, which would leave rows out"
    );
    let steps = (samples / u64::from(batch_size)) as usize;
    let shard = &dataset.shards()[0].name;
    for policy in [Policy::Strict, Policy::Lenient] {
        let decode = DecodeOptions {
            policy,
            ..limits.clone()
        };
        let bad = verdicts(dataset, &decode);
        eprintln!("{policy:?}: {} of {samples} are bad", bad.len());
        assert!(!bad.is_empty() && (bad.len() as u64) < samples);
        let sequential = FeedPlan {
            views: centre(),
            decode: decode.clone(),
            ..plan(Passes::Sequential, batch_size, 0)
        };
        let shuffled = FeedPlan {
            decode,
            ..plan(SHUFFLED, batch_size, u64::MAX)
        };
        for plan in [sequential, shuffled] {
            let first = rejects(dataset, &plan, workers[0], steps);
            each_bad_row_once(&first, &bad, shard);
            for &workers in &workers[1..] {
                assert!(rejects(dataset, &plan, workers, steps) == first, "{workers} workers");
            }
        }
    }
}

#[test]
fn damaged_files_of_every_kind_go_through_a_feed() {
    watched("damaged files", || {
        let images = write(&damaged_files());
        let limits = DecodeOptions {
            max_pixels: MAX_PIXELS,
            ..DecodeOptions::default()
        };
        // Each false header of the two lossy kinds and of PNG, and whatever bit flips made large.
        let refused = verdicts(&images.dataset, &limits);
        let refused = refused.values().filter(|(code, _)| *code == "too-many-pixels").count();
        assert!(
            refused >= 3 * TOO_LARGE.len(),
            "{refused} are refused for what they claim"
        );
        through_a_feed(&images.dataset, &limits, 16, &WORKERS);
    });
}

/// All 3,081 of the corpora: 39 batches of 79.
#[test]
fn the_hostile_corpora_go_through_a_feed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/hostile");
    if !folder.is_dir() {
        eprintln!("skipped: no {}", folder.display());
        return;
    }
    watched("the hostile corpora", move || {
        let dataset = open(&folder);
        assert_eq!(dataset.len(), 3_081);
        through_a_feed(&dataset, &DecodeOptions::default(), 79, &[3]);
    });
}

/// A file that fails behind its header has had its views drawn. Its substitute's are drawn anew: from the start of the
/// position's streams, for its own size.
#[test]
fn a_substitute_draws_its_views_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = ShardWriter::create(&folder.path().join("a.parquet"), &Labels::Integers, 20).unwrap();
    for index in 0..40 {
        let mut bytes = jpeg(index);
        if index % 3 == 0 {
            // Without its quantisation tables, which only the decoder misses.
            let table = bytes.windows(2).position(|w| w == [0xff, 0xdb]).unwrap();
            bytes[table + 1] = 0xe9;
        }
        shard
            .push(&bytes, Some(&format!("{index}.jpg")), Some(index as i64))
            .unwrap();
    }
    shard.finish().unwrap();
    let dataset = open(folder.path());
    let plan = plan(SHUFFLED, 8, bytes_of(&dataset));
    let mut expected: Vec<Seen> = (0..10).map(|step| specification(&dataset, &plan, step)).collect();
    bad::once(&mut expected);
    let rejects: Vec<_> = expected.iter().flat_map(|batch| &batch.rejects).collect();
    assert!(rejects.len() == 14 && rejects.iter().all(|reject| reject.code == "damaged"));
    for workers in WORKERS {
        assert!(
            run(&dataset, &plan, &options(workers, 3), 0, 10) == expected,
            "{workers} workers"
        );
    }
}

/// Every limit can be set in `[decode]`; at the limit an image passes, one below it is refused by name.
#[test]
fn the_decode_table_sets_every_limit() {
    let progressive = fixture("progressive420.jpg");
    let scans = progressive.windows(2).filter(|w| *w == [0xff, 0xda]).count();
    let cut = fixture("rgb420.jpg");
    let cut = cut[..cut.len() * 3 / 4].to_vec();
    let bomb = huge("rgb.png", 9_000);
    let cases: Vec<(&[u8], String, Option<&str>)> = vec![
        // 67 x 45 pixels.
        (&progressive, "max_pixels = 3015".into(), None),
        (&progressive, "max_pixels = 3014".into(), Some("too-many-pixels")),
        // A header's claim is refused before anything is made of it.
        (&bomb, "max_pixels = 80_999_999".into(), Some("too-many-pixels")),
        (&bomb, "max_pixels = 81_000_000".into(), Some("truncated")),
        (&progressive, format!("max_bytes = {}", progressive.len()), None),
        (
            &progressive,
            format!("max_bytes = {}", progressive.len() - 1),
            Some("too-many-bytes"),
        ),
        (&progressive, format!("max_scans = {scans}"), None),
        (
            &progressive,
            format!("max_scans = {}", scans - 1),
            Some("too-many-scans"),
        ),
        (&cut, "policy = 'strict'".into(), Some("truncated")),
        (&cut, "policy = 'lenient'".into(), None),
    ];
    for (bytes, table, refusal) in cases {
        let images = write(&[bytes.to_vec()]);
        let plan = FeedPlan {
            views: centre(),
            decode: toml::from_str(&table).unwrap(),
            ..plan(Passes::Sequential, 1, 0)
        };
        let batches = run(&images.dataset, &plan, &options(1, 2), 0, 2);
        assert_eq!(batches.len(), 1);
        let code = batches[0].rejects.first().map(|reject| reject.code);
        assert_eq!((code, batches[0].present[0]), (refusal, refusal.is_none()), "{table}");
    }
    // The switch that is no limit: a turned image gives other pixels.
    let images = write(&[fixture("exif6.jpg")]);
    let pixels = |table: &str| {
        let plan = FeedPlan {
            views: centre(),
            decode: toml::from_str(table).unwrap(),
            ..plan(Passes::Sequential, 1, 0)
        };
        run(&images.dataset, &plan, &options(1, 2), 0, 1).remove(0).pixels
    };
    assert!(pixels("apply_orientation = true") != pixels("apply_orientation = false"));
    assert!(pixels("") == pixels("apply_orientation = false"));
}

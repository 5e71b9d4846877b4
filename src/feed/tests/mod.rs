//! The feed as a whole, on shards that the tests write, against a plain loop that does the same in one thread.

mod bad;
mod batches;
pub(crate) mod chaos;
mod device;
mod ends;
mod golden;
mod hostile;
mod protocol;
mod shuffle;
mod stress;
mod windows;

use super::*;
use crate::data::dataset::Columns;
use crate::data::rng::{Domain, Philox};
use crate::data::{DecodeOptions, Rgbx8, SampleKey, codec};
use ::arrow::array::{ArrayRef, BinaryBuilder, Int64Array, RecordBatch, StringBuilder, StructArray};
use ::arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use std::path::Path;
use view::{Scratch, View, ViewsOptions};

const SIDE: u32 = 12;

/// A small JPEG that differs from sample to sample.
fn jpeg(index: u64) -> Vec<u8> {
    let mut rng = Philox::new(77, Domain::Shapes, 0, index, 0);
    let (width, height) = (10 + rng.below(14) as u16, 10 + rng.below(14) as u16);
    let pixels: Vec<u8> = (0..usize::from(width) * usize::from(height) * 3)
        .map(|_| rng.next_u32() as u8)
        .collect();
    let mut bytes = Vec::new();
    jpeg_encoder::Encoder::new(&mut bytes, 80)
        .encode(&pixels, width, height, jpeg_encoder::ColorType::Rgb)
        .unwrap();
    bytes
}

/// Writes shards with the given rows in each row group. The n-th sample has label n; a bad one is cut in half, every
/// fifth bad one has no image at all.
fn write_shards(folder: &Path, shards: &[&[usize]], bad: impl Fn(u64) -> bool) {
    let mut index = 0;
    for (number, groups) in shards.iter().enumerate() {
        let file = std::fs::File::create(folder.join(format!("s{number}.parquet"))).unwrap();
        let mut writer: Option<ArrowWriter<std::fs::File>> = None;
        for &rows in *groups {
            let (mut bytes, mut paths, mut labels) = (BinaryBuilder::new(), StringBuilder::new(), Vec::new());
            for _ in 0..rows {
                let image = jpeg(index);
                match bad(index) {
                    false => bytes.append_value(&image),
                    true if index % 5 == 0 => bytes.append_null(),
                    true => bytes.append_value(&image[..image.len() / 2]),
                }
                paths.append_value(format!("image-{index}.jpg"));
                labels.push(index as i64);
                index += 1;
            }
            let columns: Vec<(Field, ArrayRef)> = vec![
                (Field::new("bytes", DataType::Binary, true), Arc::new(bytes.finish())),
                (Field::new("path", DataType::Utf8, true), Arc::new(paths.finish())),
            ];
            let image = StructArray::from(columns.into_iter().map(|(f, a)| (Arc::new(f), a)).collect::<Vec<_>>());
            let batch = RecordBatch::try_from_iter([
                ("image", Arc::new(image) as ArrayRef),
                ("label", Arc::new(Int64Array::from(labels))),
            ])
            .unwrap();
            let writer = writer
                .get_or_insert_with(|| ArrowWriter::try_new(file.try_clone().unwrap(), batch.schema(), None).unwrap());
            writer.write(&batch).unwrap();
            writer.flush().unwrap();
        }
        writer.unwrap().close().unwrap();
    }
}

/// Shards in a folder that is removed with the value.
struct Images {
    folder: tempfile::TempDir,
    dataset: Arc<Dataset>,
}

fn images(shards: &[&[usize]], bad: impl Fn(u64) -> bool) -> Images {
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), shards, bad);
    let dataset = open(folder.path());
    Images { folder, dataset }
}

fn open(folder: &Path) -> Arc<Dataset> {
    let columns = Columns {
        image: "image".into(),
        label: "label".into(),
    };
    Arc::new(Dataset::open(folder, &columns).unwrap())
}

/// 61 samples in seven uneven row groups of three shards.
const UNEVEN: &[&[usize]] = &[&[7, 11], &[3, 1, 20], &[9, 10]];

fn bytes_of(dataset: &Dataset) -> u64 {
    dataset
        .shards()
        .iter()
        .flat_map(|shard| &shard.row_groups)
        .map(|group| group.bytes)
        .sum()
}

fn plan(passes: Passes, batch_size: u32, window_bytes: u64) -> FeedPlan {
    let views = ViewsOptions {
        size: SIDE,
        ..Default::default()
    }
    .views();
    FeedPlan {
        passes,
        batch_size,
        rank: 0,
        world: 1,
        views: views.to_vec(),
        decode: DecodeOptions::default(),
        window_bytes,
        seed: 11,
    }
}

/// Numbers of workers that must all give the same.
const WORKERS: [u32; 5] = [1, 2, 3, 7, 16];

/// Far above what any body needs, under a sanitizer or on a busy machine too: it tells a hang, and says nothing about speed.
const HANG: std::time::Duration = std::time::Duration::from_secs(300);

/// Runs `body` in a thread of its own; if that has not come to its end after `HANG`, the test fails and says so, instead of
/// hanging for ever.
fn watched<T: Send + 'static>(what: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = body();
        // The test may have given up.
        let _ = send.send(());
        result
    });
    if let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = receive.recv_timeout(HANG) {
        panic!(
            "{what}: no end after {} s, the feed hangs and its threads are left behind",
            HANG.as_secs()
        );
    }
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

const SHUFFLED: Passes = Passes::Shuffled { seed: 5 };

fn options(workers: u32, ring: u32) -> FeedOptions {
    FeedOptions {
        workers,
        ring,
        max_bad_fraction: 1.0,
        max_bad: None,
    }
}

/// Everything that a batch says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    step: u64,
    epoch: u32,
    pixels: Vec<u8>,
    keys: Vec<SampleKey>,
    labels: Vec<i64>,
    present: Vec<bool>,
    rejects: Vec<Reject>,
}

impl From<Batch> for Seen {
    fn from(batch: Batch) -> Self {
        Self::from(&batch)
    }
}

impl From<&Batch> for Seen {
    fn from(batch: &Batch) -> Self {
        assert_eq!(
            batch.pixels().len(),
            batch.views() * batch.len() * (SIDE * SIDE * 3) as usize
        );
        Self {
            step: batch.step,
            epoch: batch.epoch,
            pixels: batch.pixels().to_vec(),
            keys: batch.keys().to_vec(),
            labels: batch.labels().to_vec(),
            present: batch.present().to_vec(),
            rejects: batch.rejects().to_vec(),
        }
    }
}

/// The next `steps` batches of a feed, or fewer if it ends.
fn run(dataset: &Arc<Dataset>, plan: &FeedPlan, options: &FeedOptions, start: u64, steps: usize) -> Vec<Seen> {
    let mut feed = Feed::start(dataset.clone(), plan.clone(), options, start).unwrap();
    std::iter::from_fn(|| feed.next().unwrap())
        .take(steps)
        .map(Seen::from)
        .collect()
}

/// What the feed must make, by one loop without windows in memory, threads, slots or tickets. Rejects: every one met.
fn specification(dataset: &Dataset, plan: &FeedPlan, step: u64) -> Seen {
    let order = Order::new(dataset.shards(), plan.passes, plan.window_bytes);
    let batch = u64::from(plan.batch_size);
    let shuffled = plan.passes != Passes::Sequential;
    let steps = if shuffled {
        order.samples() / batch
    } else {
        order.samples().div_ceil(batch)
    };
    let (epoch, first) = ((step / steps) as u32, step % steps * batch);
    let epoch_plan = order.epoch(epoch);
    let len = batch.min(order.samples() - first);
    let view_bytes = (SIDE * SIDE * 3) as usize;
    let mut seen = Seen {
        step,
        epoch,
        pixels: vec![0; plan.views.len() * len as usize * view_bytes],
        keys: vec![],
        labels: vec![],
        present: vec![],
        rejects: vec![],
    };
    for (place, position) in (first..first + len).enumerate() {
        let mut image = Rgbx8::default();
        let mut found = None;
        for key in (0..).map_while(|attempt| epoch_plan.sample(position, attempt)) {
            let rows = dataset.read_row_group(key.shard, key.row_group).unwrap();
            let error = match rows.image(key.row) {
                None => ("null", "the row has no image".to_owned()),
                Some(bytes) => match codec::decode(bytes, &plan.decode, &mut image) {
                    Ok(()) => {
                        found = Some(key);
                        break;
                    }
                    Err(error) => (error.code(), error.to_string()),
                },
            };
            seen.rejects.push(Reject {
                key,
                shard: dataset.shards()[key.shard.0 as usize].name.clone(),
                path: rows.path(key.row).map(str::to_owned),
                reason: error.1,
                code: error.0,
            });
        }
        let key = found.unwrap_or_else(|| epoch_plan.sample(position, 0).unwrap());
        for (number, view) in plan.views.iter().enumerate().filter(|_| found.is_some()) {
            let start = (number * len as usize + place) * view_bytes;
            let mut rng = Philox::new(plan.seed, Domain::View, epoch, position, number as u8);
            view.render(
                &image,
                &view.draw(image.width, image.height, &mut rng),
                &mut Scratch::default(),
                &mut seen.pixels[start..start + view_bytes],
            );
        }
        let rows = dataset.read_row_group(key.shard, key.row_group).unwrap();
        seen.keys.push(key);
        seen.labels.push(rows.label(key.row).unwrap());
        seen.present.push(found.is_some());
    }
    seen
}

/// Centre crops, for evaluation.
fn centre() -> Vec<View> {
    vec![View::Center {
        resize: SIDE + 2,
        size: SIDE,
        interpolation: view::Interpolation::Bilinear,
    }]
}

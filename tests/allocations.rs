//! Allocations: per sample, our own code makes none. A worker's count is that of the decoder and of the resampler alone.
//!
//! In: an allocator that counts, on threads that have been told apart. Out: equalities. A plain loop decodes the same
//! samples and renders the same views on one thread with buffers of its own; what the worker allocates beyond that loop
//! would be ours. The loop also counts `Decoder::decode_part` and `Resampler::crop` one by one, so the libraries' shares are
//! known (printed; `cargo test --test allocations -- --nocapture`).
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use vicreg_stream::data::rng::{Domain, Philox};
use vicreg_stream::data::shard::{Labels, ShardWriter};
use vicreg_stream::data::simd::Lanes;
use vicreg_stream::data::{Columns, Dataset, DecodeOptions, Decoder, Region, Rgbx8, RowGroup, ShardId};
use vicreg_stream::feed::crop::Resampler;
use vicreg_stream::feed::options::Passes;
use vicreg_stream::feed::view::{Drawn, Scratch, View, ViewsOptions};
use vicreg_stream::feed::{Feed, FeedOptions, FeedPlan, HeapMemory, Order, SlotBytes, SlotMemory};

/// What a thread's allocations are counted as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Nothing is known of it: the reader, the test harness.
    Other,
    /// The test's own thread: the feed's consumer.
    Consumer,
    /// It has written into a slot.
    Worker,
}

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::Other) };
    static HERE: Cell<Count> = const { Cell::new(Count { calls: 0, bytes: 0 }) };
}

/// Allocations of all workers.
static WORKER_CALLS: AtomicU64 = AtomicU64::new(0);
static WORKER_BYTES: AtomicU64 = AtomicU64::new(0);

/// Calls of `alloc`, `alloc_zeroed` and `realloc`, and the bytes they asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    calls: u64,
    bytes: u64,
}

impl std::ops::Sub for Count {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            bytes: self.bytes - before.bytes,
        }
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, more: Self) {
        self.calls += more.calls;
        self.bytes += more.bytes;
    }
}

/// So far on this thread.
fn here() -> Count {
    HERE.get()
}

/// So far on all workers.
fn workers() -> Count {
    Count {
        calls: WORKER_CALLS.load(Relaxed),
        bytes: WORKER_BYTES.load(Relaxed),
    }
}

/// The allocations of `work` on this thread.
fn counted(work: impl FnOnce()) -> Count {
    let before = here();
    work();
    here() - before
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn note(bytes: usize) {
    let bytes = bytes as u64;
    // The thread's variables are constants without a destructor: reading them allocates nothing, and never fails.
    let so_far = HERE.get();
    HERE.set(Count {
        calls: so_far.calls + 1,
        bytes: so_far.bytes + bytes,
    });
    if ROLE.get() == Role::Worker {
        WORKER_CALLS.fetch_add(1, Relaxed);
        WORKER_BYTES.fetch_add(bytes, Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator with the same arguments; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract, which is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Ordinary slot memory that sees who writes into it: any thread but the consumer is a worker.
struct Watched;
struct WatchedBytes(Box<dyn SlotBytes>);

impl SlotMemory for Watched {
    fn allocate(&mut self, len: usize) -> Result<Box<dyn SlotBytes>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Box::new(WatchedBytes(HeapMemory.allocate(len)?)))
    }
}

// SAFETY: pointer and length are those of the memory inside, which keeps the contract.
unsafe impl SlotBytes for WatchedBytes {
    fn as_ptr(&self) -> NonNull<u8> {
        if ROLE.get() == Role::Other {
            ROLE.set(Role::Worker);
        }
        self.0.as_ptr()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// A photograph-like JPEG: smooth colours with a little noise, as large as ImageNet's are.
fn jpeg(index: u64) -> Vec<u8> {
    let mut rng = Philox::new(3, Domain::Shapes, 0, index, 0);
    let (width, height) = (300 + rng.below(200) as u16, 300 + rng.below(100) as u16);
    let slopes = [0; 3].map(|_| 1 + rng.below(5));
    let mut noise = rng.next_u32() | 1;
    let mut pixels = Vec::with_capacity(usize::from(width) * usize::from(height) * 3);
    for y in 0..u32::from(height) {
        for x in 0..u32::from(width) {
            for slope in slopes {
                // Marsaglia's xorshift: a stream of Philox is too short for an image.
                noise ^= noise << 13;
                noise ^= noise >> 17;
                noise ^= noise << 5;
                pixels.push((((x * slope + y * 3) / 4) as u8).wrapping_add((noise >> 28) as u8));
            }
        }
    }
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 85);
    if index.is_multiple_of(4) {
        encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
    }
    encoder
        .encode(&pixels, width, height, jpeg_encoder::ColorType::Rgb)
        .unwrap();
    bytes
}

const BATCH: u32 = 8;
const RING: u32 = 3;
const SEED: u64 = 21;

fn plan(window_bytes: u64) -> FeedPlan {
    FeedPlan {
        passes: Passes::Shuffled { seed: 4 },
        batch_size: BATCH,
        rank: 0,
        world: 1,
        views: ViewsOptions::default().views().to_vec(),
        decode: DecodeOptions::default(),
        window_bytes,
        seed: SEED,
    }
}

/// What the libraries need for the samples of one step, on buffers that have seen the steps before.
#[derive(Default)]
struct Bench {
    rows: HashMap<(ShardId, u32), RowGroup>,
    decoder: Decoder,
    image: Rgbx8,
    drawn: Vec<Drawn>,
    scratch: Scratch,
    resampler: Resampler,
    out: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Step {
    decode: Count,
    /// Whole views, as a worker makes them.
    render: Count,
    /// Their crops alone.
    crop: Count,
}

impl Bench {
    fn step(&mut self, dataset: &Dataset, plan: &FeedPlan, order: &Order, step: u64) -> Step {
        let steps = order.samples() / u64::from(BATCH);
        let (epoch, first) = ((step / steps) as u32, step % steps * u64::from(BATCH));
        let epoch_plan = order.epoch(epoch);
        let mut sum = Step::default();
        for position in first..first + u64::from(BATCH) {
            let key = epoch_plan.sample(position, 0).unwrap();
            let rows = self.rows.entry((key.shard, key.row_group));
            let rows = rows.or_insert_with(|| dataset.read_row_group(key.shard, key.row_group).unwrap());
            let bytes = rows.image(key.row).unwrap();
            let Self {
                decoder, image, drawn, ..
            } = self;
            let choose = |width, height| {
                drawn.clear();
                drawn.extend((0..).zip(&plan.views).map(|(number, view)| {
                    let mut rng = Philox::new(plan.seed, Domain::View, epoch, position, number);
                    view.draw(width, height, &mut rng)
                }));
                drawn.iter().map(Drawn::region).reduce(Region::union).unwrap()
            };
            sum.decode += counted(|| decoder.decode_part(bytes, &plan.decode, choose, image).unwrap());
            for (view, drawn) in plan.views.iter().zip(&self.drawn) {
                let View::Random { options, size } = view else {
                    unreachable!()
                };
                let (image, size) = (&self.image, *size);
                self.out.resize(size as usize * size as usize * 3, 0);
                sum.render += counted(|| view.render(image, drawn, &mut self.scratch, &mut self.out));
                let crop = drawn.region();
                sum.crop += counted(|| {
                    self.resampler
                        .crop(Lanes::default(), image, crop, options.interpolation, size, size);
                });
            }
        }
        sum
    }
}

/// Waits until the workers have filled the ring and gone to sleep, so that their counts stand still.
fn settle(feed: &Feed, taken: u64) {
    let images = (taken + u64::from(RING)) * u64::from(BATCH);
    let start = Instant::now();
    while feed.gauges().images < images {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "the feed hangs: {:?}",
            feed.gauges()
        );
        std::thread::yield_now();
    }
}

/// One worker against the loop, step by step; returns the loop's sum over the steps after the warm-up.
fn one_worker_is_the_loop(name: &str, dataset: &Arc<Dataset>, window_bytes: u64, epochs: u64) {
    let plan = plan(window_bytes);
    let order = Order::new(dataset.shards(), plan.passes, plan.window_bytes);
    let steps = order.samples() / u64::from(BATCH);
    let options = FeedOptions {
        workers: 1,
        ring: RING,
        ..FeedOptions::default()
    };
    let mut feed = Feed::start_with(dataset.clone(), plan.clone(), &options, 0, &mut Watched).unwrap();
    let mut bench = Bench::default();
    settle(&feed, 0);
    for step in 0..u64::from(RING) {
        bench.step(dataset, &plan, &order, step);
    }
    let (mut before, mut libraries, mut consumer) = (workers(), Step::default(), Count::default());
    for taken in 1..=epochs * steps {
        let next = here();
        drop(feed.next().unwrap().unwrap());
        // The first turn of the ring makes the lists of keys and labels; later ones use them again.
        if taken > u64::from(RING) {
            consumer += here() - next;
        }
        settle(&feed, taken);
        let now = workers();
        let expected = bench.step(dataset, &plan, &order, taken + u64::from(RING) - 1);
        let mut sum = expected.decode;
        sum += expected.render;
        assert_eq!(
            now - before,
            sum,
            "{name}, step {taken}: a worker allocates what the decoder and the views do"
        );
        before = now;
        libraries.decode += expected.decode;
        libraries.render += expected.render;
        libraries.crop += expected.crop;
    }
    assert_eq!(
        libraries.render, libraries.crop,
        "{name}: a view allocates what its crop does"
    );
    assert_eq!(consumer, Count::default(), "{name}: the consumer allocates nothing");
    let samples = (epochs * steps * u64::from(BATCH)) as f64;
    // Without AVX2 it is fast_image_resize that resamples, with some hundred allocations a view. Buffers grow now and then.
    let views = 2 * epochs * steps * u64::from(BATCH);
    assert!(
        libraries.crop.calls < views / 8 || !Lanes::default().has_avx2(),
        "{name}: {} allocations in {views} crops",
        libraries.crop.calls
    );
    let each = |count: Count, per: f64| (count.calls as f64 / per, count.bytes as f64 / per);
    let (decode, crop) = (each(libraries.decode, samples), each(libraries.crop, 2.0 * samples));
    println!(
        "{name}: decode {:.2} allocations, {:.0} bytes a photo; crop {:.2} allocations, {:.0} bytes a view; ours 0",
        decode.0, decode.1, crop.0, crop.1
    );
}

/// Several workers share the buffers' growth out differently, and nothing else.
fn workers_differ_by_their_buffers_only(dataset: &Arc<Dataset>, window_bytes: u64) {
    let plan = plan(window_bytes);
    let order = Order::new(dataset.shards(), plan.passes, plan.window_bytes);
    let steps = order.samples() / u64::from(BATCH);
    let options = FeedOptions {
        workers: 3,
        ring: RING,
        ..FeedOptions::default()
    };
    let (warm, last) = (steps, 5 * steps);
    let mut feed = Feed::start_with(dataset.clone(), plan.clone(), &options, 0, &mut Watched).unwrap();
    (0..warm).for_each(|_| drop(feed.next().unwrap().unwrap()));
    settle(&feed, warm);
    let before = workers();
    (warm..last).for_each(|_| drop(feed.next().unwrap().unwrap()));
    settle(&feed, last);
    let calls = (workers() - before).calls;
    drop(feed);
    let mut bench = Bench::default();
    let mut wanted = 0;
    for step in 0..last + u64::from(RING) {
        let step_calls = bench.step(dataset, &plan, &order, step);
        if step >= warm + u64::from(RING) {
            wanted += step_calls.decode.calls + step_calls.render.calls;
        }
    }
    // A buffer that must grow doubles, a few times in a worker's life; a worker that comes late is not counted before
    // it first writes. One allocation a sample would be twice the bound.
    let samples = (last - warm) * u64::from(BATCH);
    assert!(
        calls.abs_diff(wanted) < samples / 2,
        "{calls} allocations of three workers for {samples} samples, {wanted} of the loop"
    );
}

#[test]
fn a_sample_costs_no_allocation_of_ours() {
    ROLE.set(Role::Consumer);
    let folder = tempfile::tempdir().unwrap();
    let mut shard = ShardWriter::create(&folder.path().join("a.parquet"), &Labels::Integers, 16).unwrap();
    for index in 0..48 {
        let path = format!("{index}.jpg");
        shard.push(&jpeg(index), Some(&path), Some(index as i64)).unwrap();
    }
    shard.finish().unwrap();
    let dataset = Arc::new(Dataset::open(folder.path(), &Columns::default()).unwrap());
    one_worker_is_the_loop("one window", &dataset, 1 << 30, 2);
    one_worker_is_the_loop("windows of a row group", &dataset, 0, 2);
    workers_differ_by_their_buffers_only(&dataset, 0);
    // ImageNet photographs, where a developer has them: the numbers that count.
    let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/photos");
    if photos.is_dir() {
        let dataset = Arc::new(Dataset::open(&photos, &Columns::default()).unwrap());
        one_worker_is_the_loop("photographs", &dataset, 1 << 30, 1);
    }
}

/// Once its buffers have the size, the own decoder asks for nothing more, whole or in part.
#[test]
fn decoding_again_allocates_nothing() {
    let (mut decoder, mut image, options) = (Decoder::default(), Rgbx8::default(), DecodeOptions::default());
    let files: Vec<_> = (0..48).map(jpeg).collect();
    for bytes in &files {
        decoder.decode(bytes, &options, &mut image).unwrap();
    }
    let before = here();
    for (bytes, n) in files.iter().zip(1..) {
        let part = |width, height| Region {
            left: width - width / n,
            top: height / 2,
            width: width / n,
            height: height - height / 2,
        };
        decoder.decode_part(bytes, &options, part, &mut image).unwrap();
    }
    assert_eq!(here() - before, Count::default());
}

//! Bytes in flight to a device that copies late, and that keeps what it was given as a GPU runtime does.
//!
//! In: feeds over the tests' shards. Out: what the device's kernels computed, against what a consumer sees that waits.
//! The device is a model of one stream of a GPU: uploads and kernels are queued, and run later, in order, in a thread of
//! their own. Its queue of bytes to drop follows cubecl's `PendingDropQueue` (0.10), which is what the CUDA backend has.
//! Bytes that are dropped before or while the device copies them are found out, in every schedule: the stream holds them
//! by a `Weak`.

use super::chaos::{Chaos, pause};
use super::slot::CountedMemory;
use super::stress::nothing_is_left;
use super::*;
use ::bytes::Bytes;
use std::sync::{Condvar, Mutex, MutexGuard, Weak, mpsc};
use xxhash_rust::xxh3::xxh3_64;

/// When the stream runs what is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// As late as can be: when someone waits for a fence, up to that fence.
    OnDemand,
    /// At once, with random delays.
    Random(u64),
}

enum Command {
    /// Host bytes -> device memory.
    Copy(Weak<Bytes>),
    /// Digests the device memory.
    Kernel,
}

/// How far the stream is, in commands.
#[derive(Default)]
struct Progress {
    demanded: Mutex<u64>,
    demand: Condvar,
    done: Mutex<u64>,
    step: Condvar,
}

impl Progress {
    fn lock(counter: &Mutex<u64>) -> MutexGuard<'_, u64> {
        counter.lock().unwrap()
    }

    fn raise(counter: &Mutex<u64>, changed: &Condvar, to: u64) {
        let mut value = Self::lock(counter);
        *value = to.max(*value);
        changed.notify_all();
    }

    fn wait(counter: &Mutex<u64>, changed: &Condvar, for_: u64) {
        drop(changed.wait_while(Self::lock(counter), |value| *value < for_).unwrap());
    }

    /// A fence after so many commands is waited for.
    fn sync(&self, fence: u64) {
        Self::raise(&self.demanded, &self.demand, fence);
        Self::wait(&self.done, &self.step, fence);
    }
}

/// cubecl's `PendingDropQueue`: bytes live for two flushes, and the second waits for the fence of the first.
#[derive(Default)]
struct DropQueue {
    fence: Option<u64>,
    pending: Vec<Arc<Bytes>>,
    staged: Vec<Arc<Bytes>>,
}

struct FakeDevice {
    commands: mpsc::Sender<Command>,
    queued: u64,
    progress: Arc<Progress>,
    drops: DropQueue,
    /// The kernels' digests; `None` for a copy whose bytes were not there any more.
    stream: thread::JoinHandle<Vec<Option<u64>>>,
}

impl FakeDevice {
    fn new(pace: Pace) -> Self {
        let (commands, queue) = mpsc::channel();
        let progress = Arc::<Progress>::default();
        let shared = progress.clone();
        Self {
            commands,
            queued: 0,
            progress,
            drops: DropQueue::default(),
            stream: thread::spawn(move || Self::run(pace, queue, &shared)),
        }
    }

    fn run(pace: Pace, queue: mpsc::Receiver<Command>, progress: &Progress) -> Vec<Option<u64>> {
        let mut dice = Philox::new(
            if let Pace::Random(seed) = pace { seed } else { 0 },
            Domain::Shapes,
            0,
            0,
            3,
        );
        let (mut memory, mut digests) = (None, Vec::new());
        for (number, command) in (1..).zip(queue) {
            match pace {
                Pace::OnDemand => Progress::wait(&progress.demanded, &progress.demand, number),
                Pace::Random(_) => pause(&mut dice),
            }
            match command {
                Command::Copy(bytes) => {
                    memory = bytes.upgrade().and_then(|bytes| {
                        let copy = bytes.to_vec();
                        // Still with the queue, and not with this thread alone: nobody dropped them meanwhile.
                        (Arc::strong_count(&bytes) > 1).then_some(copy)
                    });
                }
                Command::Kernel => digests.push(memory.as_deref().map(xxh3_64)),
            }
            Progress::raise(&progress.done, &progress.step, number);
        }
        digests
    }

    fn queue(&mut self, command: Command) {
        self.commands.send(command).unwrap();
        self.queued += 1;
    }

    /// Queues a copy of the bytes, a kernel on the copy, and keeps the bytes until some flush.
    fn upload(&mut self, bytes: Bytes) {
        let bytes = Arc::new(bytes);
        self.queue(Command::Copy(Arc::downgrade(&bytes)));
        self.drops.staged.push(bytes);
        self.queue(Command::Kernel);
    }

    fn flush(&mut self) {
        if let Some(fence) = self.drops.fence.take() {
            self.progress.sync(fence);
            self.drops.pending.clear();
        }
        std::mem::swap(&mut self.drops.pending, &mut self.drops.staged);
        self.drops.fence = Some(self.queued);
    }

    /// Waits until everything queued has run. Drops no bytes.
    fn sync(&self) {
        self.progress.sync(self.queued);
    }

    /// Runs what is queued, then drops all bytes. What the kernels made.
    fn finish(self) -> Vec<Option<u64>> {
        self.sync();
        drop((self.commands, self.drops));
        self.stream.join().unwrap()
    }
}

const BATCH: u32 = 8;
/// Two epochs of 61 samples, and the begin of a third.
const STEPS: usize = 16;

fn steps(dataset: &Arc<Dataset>, plan: &FeedPlan) -> Vec<Option<u64>> {
    let seen = run(dataset, plan, &options(1, 2), 0, STEPS);
    seen.iter().map(|seen| Some(xxh3_64(&seen.pixels))).collect()
}

/// With a flush after every upload, two slots are enough, however late the copies are.
#[test]
fn late_copies_read_what_the_feed_made() {
    watched("late copies read what the feed made", || {
        let images = images(UNEVEN, |i| i % 9 == 4);
        let plan = plan(SHUFFLED, BATCH, bytes_of(&images.dataset) / 3);
        let expected = steps(&images.dataset, &plan);
        assert!((1..STEPS).all(|step| expected[step] != expected[step - 1]));
        for (ring, workers) in [2, 3, 4, 6].into_iter().flat_map(|ring| [(ring, 1), (ring, 3)]) {
            for pace in [Pace::OnDemand, Pace::Random(1), Pace::Random(2)] {
                let chaos = Chaos::delays(u64::from(10 * ring + workers), None);
                let mut memory = CountedMemory::default();
                let (dataset, options) = (images.dataset.clone(), options(workers, ring));
                let mut feed = Feed::start_with(dataset, plan.clone(), &options, 0, &mut memory).unwrap();
                let mut device = FakeDevice::new(pace);
                for _ in 0..STEPS {
                    device.upload(feed.next().unwrap().unwrap().into_bytes());
                    device.flush();
                    assert_eq!(feed.slots().in_flight, 1, "the flush before gave the last slot back");
                }
                assert_eq!(device.finish(), expected, "{ring} slots, {workers} workers, {pace:?}");
                drop(feed);
                nothing_is_left(&chaos.0, &memory, &images.dataset);
            }
        }
    });
}

/// Why the trainer flushes after every upload: a runtime that waits for many uploads keeps all slots, copies done or not.
#[test]
fn without_a_flush_the_ring_runs_dry() {
    watched("without a flush the ring runs dry", || {
        let images = images(UNEVEN, |_| false);
        let plan = plan(SHUFFLED, BATCH, 0);
        let expected = steps(&images.dataset, &plan);
        for ring in [2, 3, 4, 6] {
            let mut feed = Feed::start(images.dataset.clone(), plan.clone(), &options(2, ring), 0).unwrap();
            let gauges = feed.gauges_handle();
            let mut device = FakeDevice::new(Pace::OnDemand);
            for _ in 0..ring {
                device.upload(feed.next().unwrap().unwrap().into_bytes());
            }
            let dry = SlotPhases {
                in_flight: ring,
                ..Default::default()
            };
            assert_eq!(feed.slots(), dry);
            device.sync();
            device.flush();
            assert_eq!(gauges.slots(), dry, "all copies are done, and no slot has come back");
            device.flush();
            assert_eq!(feed.slots().in_flight, 0);
            device.upload(feed.next().unwrap().unwrap().into_bytes());
            assert_eq!(device.finish(), expected[..ring as usize + 1]);
            drop(feed);
            assert_eq!(gauges.slots(), SlotPhases::default(), "a handle keeps no slot");
        }
    });
}

/// The feed goes first: the copies still find their bytes, and with these the memory goes.
#[test]
fn bytes_in_flight_outlive_the_feed() {
    watched("bytes in flight outlive the feed", || {
        let images = images(UNEVEN, |_| false);
        let plan = plan(SHUFFLED, BATCH, 0);
        let expected = steps(&images.dataset, &plan);
        for in_flight in 1..=3 {
            let chaos = Chaos::delays(in_flight as u64, None);
            let mut memory = CountedMemory::default();
            let (dataset, options) = (images.dataset.clone(), options(2, 3));
            let mut feed = Feed::start_with(dataset, plan.clone(), &options, 0, &mut memory).unwrap();
            let mut device = FakeDevice::new(Pace::OnDemand);
            for _ in 0..in_flight {
                device.upload(feed.next().unwrap().unwrap().into_bytes());
            }
            drop(feed);
            assert_eq!(memory.0.load(Ordering::Relaxed), 3, "the ring's memory lives");
            assert_eq!(device.finish(), expected[..in_flight]);
            nothing_is_left(&chaos.0, &memory, &images.dataset);
        }
    });
}

/// The slot comes back with the last clone, and no pixel was copied on the way.
#[test]
fn the_last_clone_gives_the_slot_back() {
    let images = images(UNEVEN, |_| false);
    let plan = plan(SHUFFLED, BATCH, 0);
    let mut feed = Feed::start(images.dataset.clone(), plan, &options(1, 2), 0).unwrap();
    let batch = feed.next().unwrap().unwrap();
    assert_eq!((feed.slots().held, feed.slots().in_flight), (1, 0));
    let (address, digest) = (batch.pixels().as_ptr(), batch.pixels_digest());
    let bytes = batch.into_bytes();
    assert_eq!((bytes.as_ptr(), xxh3_64(&bytes)), (address, digest));
    let part = bytes.slice(1..2);
    drop(bytes);
    assert_eq!((feed.slots().held, feed.slots().in_flight), (0, 1));
    drop(part);
    assert_eq!((feed.slots().held, feed.slots().in_flight), (0, 0));
}

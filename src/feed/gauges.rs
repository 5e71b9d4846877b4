//! Who works and who waits: where the time of each stage goes.
//!
//! In: relaxed counters, cache lines of its own for each thread. Out: [`GaugesSnapshot`].
//! Invariant: only read by people and tests of liveness; no decision of the feed depends on a clock.

use super::laps::{Part, PartTimes};
use super::life::Phase;
use super::ring::Ring;
use crate::data::{SampleKey, ShardId};
use crossbeam::utils::CachePadded;
use serde::Serialize;
use std::sync::{Arc, Weak};
// std's also under loom: what orders nothing need not be modelled.
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Doing {
    /// Its work.
    Busy,
    /// It waits for what the stage before it makes.
    WaitingForInput,
    /// It waits for room in the stage after it.
    WaitingForRoom,
    /// It has gone home.
    Done,
}

/// A stage of the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Row groups -> windows.
    Reader,
    /// Windows -> views.
    Worker,
    /// Full batches -> trainer.
    Consumer,
    /// Bytes in flight -> wherever they are copied to.
    Device,
}

/// One thread's clock. All orderings Relaxed: the numbers order nothing.
#[derive(Debug)]
pub(crate) struct Gauge {
    /// Nanoseconds by [`Doing`], without the current stretch.
    spent: [AtomicU64; 3],
    doing: AtomicU8,
    /// When the current stretch began, nanoseconds since the start of the feed.
    since: AtomicU64,
    /// Nanoseconds of a worker by part of its work, while that is measured.
    parts: [AtomicU64; Part::COUNT],
    /// The sample at hand, for a stall's report: shard and row group, then row + 1 (0: none yet). Two words that may be
    /// of two samples when a thread is quick; a stall is read from one that stands still.
    sample: [AtomicU64; 2],
}

/// All clocks and counters of a feed.
#[derive(Debug)]
pub(crate) struct Gauges {
    start: Instant,
    /// Measure the parts of the workers' work.
    pub profile: AtomicBool,
    pub reader: CachePadded<Gauge>,
    pub workers: Box<[CachePadded<Gauge>]>,
    pub consumer: CachePadded<Gauge>,
    /// Images finished (by all workers; one add a sample on a line of its own).
    pub images: CachePadded<AtomicU64>,
    pub rejects: AtomicU64,
    pub batches: CachePadded<AtomicU64>,
    pub windows: AtomicU64,
    pub bytes_read: AtomicU64,
    /// Nanoseconds from the start to the first batch; 0 before.
    pub first_batch: AtomicU64,
}

impl Gauge {
    fn new(doing: Doing) -> Self {
        Self {
            spent: Default::default(),
            doing: AtomicU8::new(doing as u8),
            since: AtomicU64::new(0),
            parts: Default::default(),
            sample: Default::default(),
        }
    }

    /// Enters a sample's laps.
    pub fn add(&self, laps: &[u64; Part::COUNT]) {
        for (sum, nanos) in self.parts.iter().zip(laps) {
            sum.fetch_add(*nanos, Ordering::Relaxed);
        }
    }

    /// The thread of this gauge turns to a sample. Only that thread calls it.
    pub fn at(&self, key: SampleKey) {
        let group = u64::from(key.shard.0) << 32 | u64::from(key.row_group);
        self.sample[0].store(group, Ordering::Relaxed);
        self.sample[1].store(u64::from(key.row) + 1, Ordering::Relaxed);
    }

    /// The sample that the thread turned to last.
    pub fn sample(&self) -> Option<SampleKey> {
        let [group, row] = [0, 1].map(|i| self.sample[i].load(Ordering::Relaxed));
        Some(SampleKey {
            shard: ShardId((group >> 32) as u32),
            row_group: group as u32,
            row: row.checked_sub(1)? as u32,
        })
    }

    fn doing(&self) -> Doing {
        match self.doing.load(Ordering::Relaxed) {
            0 => Doing::Busy,
            1 => Doing::WaitingForInput,
            2 => Doing::WaitingForRoom,
            _ => Doing::Done,
        }
    }
}

impl Gauges {
    pub fn new(workers: usize) -> Self {
        Self {
            start: Instant::now(),
            profile: AtomicBool::new(false),
            reader: CachePadded::new(Gauge::new(Doing::Busy)),
            workers: (0..workers)
                .map(|_| CachePadded::new(Gauge::new(Doing::WaitingForInput)))
                .collect(),
            consumer: CachePadded::new(Gauge::new(Doing::Busy)),
            images: Default::default(),
            rejects: Default::default(),
            batches: Default::default(),
            windows: Default::default(),
            bytes_read: Default::default(),
            first_batch: Default::default(),
        }
    }

    /// The thread of `gauge` does something else from now on. Only that thread calls it.
    pub fn turn(&self, gauge: &Gauge, doing: Doing) {
        let now = self.now();
        let since = gauge.since.swap(now, Ordering::Relaxed);
        let before = gauge.doing.swap(doing as u8, Ordering::Relaxed);
        if let Some(spent) = gauge.spent.get(usize::from(before)) {
            spent.fetch_add(now.saturating_sub(since), Ordering::Relaxed);
        }
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// `next`: the phase of the slot that the consumer's next batch comes in.
    pub fn snapshot(&self, next: Phase) -> GaugesSnapshot {
        let first = self.first_batch.load(Ordering::Relaxed);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GaugesSnapshot {
            seconds: seconds(self.now()),
            time_to_first_batch_s: (first > 0).then(|| seconds(first)),
            images: count(&self.images),
            rejects: count(&self.rejects),
            batches: count(&self.batches),
            windows: count(&self.windows),
            bytes_read: count(&self.bytes_read),
            reader: self.stage([&*self.reader]),
            workers: self.stage(self.workers.iter().map(|gauge| &**gauge)),
            consumer: self.stage([&*self.consumer]),
            parts: self.parts(),
            stalled: self.stall(STALL, next),
        }
    }

    fn parts(&self) -> PartTimes {
        let sum = |part: usize| -> u64 {
            let workers = self.workers.iter();
            workers.map(|gauge| gauge.parts[part].load(Ordering::Relaxed)).sum()
        };
        std::array::from_fn(|part| seconds(sum(part))).into()
    }

    fn stage<'a>(&self, gauges: impl IntoIterator<Item = &'a Gauge>) -> StageTime {
        let mut sum = StageTime::default();
        for gauge in gauges {
            let running = seconds(self.now().saturating_sub(gauge.since.load(Ordering::Relaxed)));
            let mut spent = [0, 1, 2].map(|i| seconds(gauge.spent[i].load(Ordering::Relaxed)));
            if let Some(current) = spent.get_mut(gauge.doing() as usize) {
                *current += running;
            }
            sum.threads += 1;
            sum.busy_s += spent[0];
            sum.waiting_for_input_s += spent[1];
            sum.waiting_for_room_s += spent[2];
        }
        sum
    }

    /// The stage that holds everything up, once the consumer has waited in vain for `limit`: the first, from the disk
    /// on, that is at one piece of work that long. `next`: the phase of the slot that the consumer waits for.
    pub fn stall(&self, limit: Duration, next: Phase) -> Option<Stall> {
        let stuck = |gauge: &Gauge, doing| {
            let waited = self.now().saturating_sub(gauge.since.load(Ordering::Relaxed));
            (gauge.doing() == doing && waited >= limit.as_nanos() as u64).then(|| seconds(waited))
        };
        let waited = stuck(&self.consumer, Doing::WaitingForInput)?;
        let named = |stage, for_s| Stall {
            stage,
            for_s,
            sample: None,
            consumer_waited_s: waited,
        };
        if let Some(for_s) = stuck(&self.reader, Doing::Busy) {
            return Some(named(Stage::Reader, for_s));
        }
        let busy = self.workers.iter().filter_map(|worker| {
            let for_s = stuck(worker, Doing::Busy)?;
            Some((for_s, worker.sample()))
        });
        if let Some((for_s, sample)) = busy.max_by(|a, b| a.0.total_cmp(&b.0)) {
            return Some(Stall {
                sample,
                ..named(Stage::Worker, for_s)
            });
        }
        // All workers wait for a free slot: batches that were handed out have not come back, from the one who has the
        // slot that is next in line.
        let holder = match next {
            Phase::InFlight => Stage::Device,
            _ => Stage::Consumer,
        };
        let full = self
            .workers
            .iter()
            .find_map(|worker| stuck(worker, Doing::WaitingForRoom));
        full.map(|for_s| named(holder, for_s))
    }
}

/// How long the consumer waits before a stall is reported.
pub(crate) const STALL: Duration = Duration::from_secs(60);

fn seconds(nanos: u64) -> f64 {
    nanos as f64 * 1e-9
}

/// Gauges at one moment, since the start of the feed.
#[derive(Clone, Debug, Serialize)]
pub struct GaugesSnapshot {
    /// Age of the feed, s.
    pub seconds: f64,
    /// From the start to the first batch, s.
    pub time_to_first_batch_s: Option<f64>,
    /// Images made, all views of one counted once.
    pub images: u64,
    /// Bad samples met, repetitions included.
    pub rejects: u64,
    /// Batches handed out.
    pub batches: u64,
    /// Windows read.
    pub windows: u64,
    /// Image bytes read.
    pub bytes_read: u64,
    /// The reader; its input is the disk, its room a window place.
    pub reader: StageTime,
    /// The workers; their input is a window, their room a slot.
    pub workers: StageTime,
    /// The consumer, inside `next`: waiting for input is the time that the trainer lost; busy is everything else.
    pub consumer: StageTime,
    /// Of the workers' busy time, by part of the work.
    pub parts: PartTimes,
    /// What holds everything up, once the consumer has waited for a minute.
    pub stalled: Option<Stall>,
}

/// Time of a stage, summed over its threads.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StageTime {
    /// Threads.
    pub threads: u32,
    /// At work, s.
    pub busy_s: f64,
    /// Waiting for what the stage before it makes, s.
    pub waiting_for_input_s: f64,
    /// Waiting for room in the stage after it, s.
    pub waiting_for_room_s: f64,
}

/// A stage that holds everything up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Stall {
    /// Which. `consumer`: batches that were handed out have not been dropped; `device`: bytes in flight have not.
    pub stage: Stage,
    /// How long it has been at one piece of work, s.
    pub for_s: f64,
    /// For a worker: the sample that it has been busy with that long. Of several, the one that takes longest.
    pub sample: Option<SampleKey>,
    /// How long the consumer has waited, s.
    pub consumer_waited_s: f64,
}

/// How many slots of the ring are where, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SlotPhases {
    /// Workers write them, or will.
    pub filling: u32,
    /// Full, for a later `next`.
    pub ready: u32,
    /// Batches that the trainer has.
    pub held: u32,
    /// A device reads their bytes on its own time: [`Batch::into_bytes`](super::Batch::into_bytes).
    pub in_flight: u32,
}

impl FromIterator<Phase> for SlotPhases {
    fn from_iter<I: IntoIterator<Item = Phase>>(phases: I) -> Self {
        let mut sum = Self::default();
        for phase in phases {
            *match phase {
                Phase::Filling => &mut sum.filling,
                Phase::Ready => &mut sum.ready,
                Phase::Held => &mut sum.held,
                Phase::InFlight => &mut sum.in_flight,
            } += 1;
        }
        sum
    }
}

/// Reads the gauges of a feed from any thread, also while `next` waits.
#[derive(Clone, Debug)]
pub struct GaugesHandle {
    gauges: Arc<Gauges>,
    /// Not an `Arc`: a handle that is kept shall not keep the slots' memory.
    ring: Weak<Ring>,
}

impl GaugesHandle {
    pub(crate) fn new(gauges: &Arc<Gauges>, ring: &Arc<Ring>) -> Self {
        Self {
            gauges: gauges.clone(),
            ring: Arc::downgrade(ring),
        }
    }

    /// The gauges now.
    pub fn snapshot(&self) -> GaugesSnapshot {
        let next = self.gauges.batches.load(Ordering::Relaxed);
        let phase = self.ring.upgrade().map_or(Phase::Filling, |ring| ring.phase(next));
        self.gauges.snapshot(phase)
    }

    /// Where the slots are now; none is anywhere once the feed and its batches are gone.
    pub fn slots(&self) -> SlotPhases {
        self.ring
            .upgrade()
            .map_or_else(SlotPhases::default, |ring| ring.phases())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_names_the_stage_nearest_to_the_disk() {
        let gauges = Gauges::new(2);
        let limit = Duration::from_nanos(1);
        let pause = || std::thread::sleep(Duration::from_micros(50));
        gauges.turn(&gauges.reader, Doing::WaitingForRoom);
        gauges.turn(&gauges.consumer, Doing::WaitingForInput);
        pause();
        assert_eq!(
            gauges.stall(limit, Phase::Held),
            None,
            "everyone waits and nobody works: nothing to name"
        );
        gauges.turn(&gauges.workers[1], Doing::WaitingForRoom);
        pause();
        assert_eq!(gauges.stall(limit, Phase::Held).unwrap().stage, Stage::Consumer);
        assert_eq!(gauges.stall(limit, Phase::InFlight).unwrap().stage, Stage::Device);
        let slow = SampleKey {
            shard: ShardId(3),
            row_group: u32::MAX,
            row: 7,
        };
        assert_eq!(gauges.stall(limit, Phase::Held).unwrap().sample, None);
        gauges.workers[0].at(slow);
        gauges.turn(&gauges.workers[0], Doing::Busy);
        pause();
        gauges.workers[1].at(SampleKey::default());
        gauges.turn(&gauges.workers[1], Doing::Busy);
        pause();
        let stall = gauges.stall(limit, Phase::Held).unwrap();
        assert_eq!(
            (stall.stage, stall.sample),
            (Stage::Worker, Some(slow)),
            "the slowest decode is named"
        );
        gauges.turn(&gauges.reader, Doing::Busy);
        pause();
        assert_eq!(gauges.stall(limit, Phase::Held).unwrap().stage, Stage::Reader);
        gauges.turn(&gauges.consumer, Doing::Busy);
        pause();
        assert_eq!(gauges.stall(limit, Phase::Held), None, "the trainer is at work");
        let times = gauges.snapshot(Phase::Held);
        assert!(times.workers.threads == 2 && times.workers.busy_s > 0.0 && times.reader.busy_s > 0.0);
    }
}

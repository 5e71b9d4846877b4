//! Images in motion: from a data set at rest to full batches of augmented views, in plan order.
//!
//! In: a [`Dataset`] and a [`FeedPlan`]. Out: [`Batch`]es of u8 `[V, N, H, W, 3]`.
//!
//! ```text
//! order    which sample comes when: a pure function                     permute, share (ranks)
//! reader   row groups ahead, into three window places                   one thread
//! worker   claim a position, decode what its views need, write them     one a core
//! view     parameters drawn, then passes                                crop (resample), planes, color, blur; simd under them
//! ring     slots that fill up, and are handed out in batch order        slot, life, cursor, board, sync
//! batch    what the trainer sees; dropping it gives the slot back       quarantine
//!          Batch -> bytes in flight: whoever reads them asynchronously drops them when done
//! gauges   who works, who waits, what each part costs                   laps
//! ```
//!
//! A slot's life: filling -> ready -> held (a [`Batch`]) -> in flight ([`Batch::into_bytes`], or not) -> filling again.
//!
//! Invariants: every byte is a function of (plan, data set, step), for any number of workers and slots; the path of a
//! sample takes no lock; an idle thread sleeps; a dead one is an error at the consumer. Knows no burn type: memory
//! comes from [`SlotMemory`]. Start reading at [`Feed::start`].

mod batch;
pub mod blur;
mod board;
pub mod color;
pub mod crop;
mod cursor;
mod error;
pub mod gauges;
pub mod laps;
mod life;
pub mod options;
pub mod order;
pub mod permute;
pub mod planes;
pub mod quarantine;
mod reader;
mod resample;
#[cfg(target_arch = "x86_64")]
mod resample_avx2;
mod ring;
mod share;
mod simd;
pub mod slot;
mod sync;
pub mod view;
mod worker;

#[cfg(all(test, vicreg_loom))]
#[path = "tests/models.rs"]
mod models;
#[cfg(all(test, not(vicreg_loom)))]
mod tests;

pub use batch::Batch;
pub use error::FeedError;
pub use gauges::{GaugesHandle, GaugesSnapshot, SlotPhases, Stall};
pub use options::{FeedOptions, FeedPlan, OrderOptions, Passes};
pub use order::Order;
pub use quarantine::{QuarantineState, Reject};
pub use slot::{HeapMemory, SlotBytes, SlotMemory};

use crate::data::Dataset;
use board::Board;
use gauges::{Doing, Gauges};
use quarantine::Quarantine;
use reader::Reader;
use ring::Ring;
use share::Share;
use slot::{Shape, WindowTable};
use std::collections::HashMap;
use std::sync::Arc;
use sync::{Ordering, thread};
use worker::Workshop;

/// Sizes of a pass, to print before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PassShape {
    /// Samples in the data set.
    pub samples: u64,
    /// Steps in an epoch.
    pub steps_per_epoch: u64,
    /// Samples of an epoch's permutation that no batch of it gets: a shuffled pass drops the tail.
    pub dropped: u64,
    /// Windows in the first epoch; 1 means a full shuffle.
    pub windows: u64,
    /// Row groups above the shuffle budget: the feed holds more than it was given while one of them is used.
    pub oversized_row_groups: u32,
    /// Bytes of one slot of this rank.
    pub slot_bytes: u64,
}

/// Called while a batch is long in coming.
type StallReport = Box<dyn FnMut(&Stall) + Send>;

/// A running feed: one reader thread, the workers, and the ring between them and the trainer.
pub struct Feed {
    dataset: Arc<Dataset>,
    ring: Arc<Ring>,
    board: Arc<Board>,
    gauges: Arc<Gauges>,
    share: Share,
    shape: PassShape,
    quarantine: Quarantine,
    /// Next batch, counted from the start of the feed.
    next: u64,
    /// An error has been returned.
    ended: bool,
    /// What to call when a batch is long in coming.
    on_stall: Option<StallReport>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl FeedPlan {
    /// Checks the plan against the data set, and says what a pass will be. Reads footers only.
    pub fn shape(&self, dataset: &Dataset) -> Result<PassShape, FeedError> {
        self.order(dataset).map(|(_, shape)| shape)
    }

    fn order(&self, dataset: &Dataset) -> Result<(Order, PassShape), FeedError> {
        let &Self {
            passes,
            batch_size: batch,
            rank,
            world,
            ..
        } = self;
        let order = Order::new(dataset.shards(), passes, self.window_bytes);
        let samples = order.samples();
        if samples == 0 {
            return Err(FeedError::Empty);
        }
        if batch == 0 || world == 0 || rank >= world || batch % world != 0 {
            return Err(FeedError::Ranks { rank, world, batch });
        }
        if matches!(passes, Passes::Shuffled { .. }) && samples < u64::from(batch) {
            return Err(FeedError::SmallerThanBatch { samples, batch });
        }
        let side = self.side()?;
        let view = u64::from(side) * u64::from(side) * 3;
        let slot_bytes = view
            .checked_mul(self.views.len() as u64 * u64::from(batch / world))
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or(FeedError::Memory {
                slots: 1,
                bytes: u64::MAX,
                source: None,
            })?;
        let share = Share::new(&order, batch, rank, world, 0);
        let shape = PassShape {
            samples,
            steps_per_epoch: share.steps_per_epoch,
            dropped: samples.saturating_sub(share.steps_per_epoch * u64::from(batch)),
            windows: order.epoch(0).windows() as u64,
            oversized_row_groups: order.row_groups_above(self.window_bytes),
            slot_bytes,
        };
        Ok((order, shape))
    }

    /// The side that all views share, pixels.
    fn side(&self) -> Result<u32, FeedError> {
        let sizes: Vec<u32> = self.views.iter().map(view::View::size).collect();
        match sizes.first() {
            Some(&side) if side > 0 && sizes.len() <= 255 && sizes.iter().all(|&size| size == side) => Ok(side),
            _ => Err(FeedError::Views { sizes }),
        }
    }
}

impl FeedOptions {
    /// Threads to start.
    fn threads(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers as usize,
        }
    }

    /// Checks the ranges.
    pub fn check(&self) -> Result<(), FeedError> {
        let refuse = |name, value: String, range| Err(FeedError::Option { name, value, range });
        if self.ring < 2 {
            return refuse("feed.ring", self.ring.to_string(), "2 or more");
        }
        if !(0.0..=1.0).contains(&self.max_bad_fraction) {
            return refuse("feed.max_bad_fraction", self.max_bad_fraction.to_string(), "0 to 1");
        }
        Ok(())
    }
}

impl Feed {
    /// Starts the threads; slots are ordinary memory. The first batch is that of `start_step`, with the bytes that it
    /// has in every run. Errors if the plan does not fit the data set, memory or threads are not to be had.
    pub fn start(
        dataset: Arc<Dataset>,
        plan: FeedPlan,
        options: &FeedOptions,
        start_step: u64,
    ) -> Result<Self, FeedError> {
        Self::start_with(dataset, plan, options, start_step, &mut HeapMemory)
    }

    /// As [`Feed::start`], with slots in the given memory.
    pub fn start_with(
        dataset: Arc<Dataset>,
        plan: FeedPlan,
        options: &FeedOptions,
        start_step: u64,
        memory: &mut dyn SlotMemory,
    ) -> Result<Self, FeedError> {
        options.check()?;
        let (order, shape) = plan.order(&dataset)?;
        // Half of the range, so that sums of steps and positions cannot overflow.
        if start_step / shape.steps_per_epoch >= u64::from(u32::MAX) / 2 || start_step >= u64::MAX >> 33 {
            return Err(FeedError::StartStep {
                step: start_step,
                steps_per_epoch: shape.steps_per_epoch,
            });
        }
        let share = Share::new(&order, plan.batch_size, plan.rank, plan.world, start_step);
        let board = Arc::new(Board::new(options.threads()));
        let gauges = Arc::new(Gauges::new(options.threads()));
        let side = plan.side()? as usize;
        let sizes = Shape {
            views: plan.views.len(),
            samples: share.share as usize,
            view_bytes: side * side * 3,
        };
        let slots = (0..options.ring).map(|_| memory.allocate(shape.slot_bytes as usize));
        let slots = slots
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| FeedError::Memory {
                slots: options.ring,
                bytes: shape.slot_bytes,
                source: Some(source),
            })?;
        let ring = Arc::new(Ring::new(share, sizes, slots, board.clone()));
        let (windows, writer) = WindowTable::new(&ring.cursor);
        let reader = Reader {
            dataset: dataset.clone(),
            order,
            share,
            budget: plan.window_bytes,
            writer,
            board: board.clone(),
            gauges: gauges.clone(),
            held: HashMap::new(),
        };
        let workshop = Arc::new(Workshop {
            dataset: dataset.clone(),
            share,
            ring: ring.clone(),
            windows,
            board: board.clone(),
            gauges: gauges.clone(),
            views: plan.views,
            decode: plan.decode,
            seed: plan.seed,
        });
        let mut feed = Self {
            dataset,
            quarantine: Quarantine::new(shape.samples, options),
            ring,
            board,
            gauges,
            share,
            shape,
            next: 0,
            ended: false,
            on_stall: None,
            threads: Vec::new(),
        };
        // From here on `feed` owns what runs: if a later thread cannot be started, its drop stops the earlier ones.
        if share.total > 0 {
            feed.spawn("feed-reader".into(), move || reader.run())?;
            for index in 0..options.threads() {
                let workshop = workshop.clone();
                feed.spawn(format!("feed-worker-{index}"), move || workshop.run(index))?;
            }
        }
        Ok(feed)
    }

    fn spawn(&mut self, name: String, body: impl FnOnce() + Send + 'static) -> Result<(), FeedError> {
        let thread = thread::Builder::new()
            .name(name)
            .spawn(sync::inherit(body))
            .map_err(FeedError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// The next batch, as soon as it is full; `None` after the last one of a sequential pass.
    ///
    /// Errors come at the batch that they spoil, after all earlier batches; after an error the feed has ended. Batch b +
    /// R needs the slot of batch b (R slots): a caller that still keeps it, or its bytes, waits for ever, unless another
    /// thread drops it.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Batch>, FeedError> {
        if self.ended {
            return Err(FeedError::Ended);
        }
        let local = self.next;
        if self.share.len(local) == 0 {
            return Ok(None);
        }
        let batch = self.take(local);
        self.ended = batch.is_err();
        self.next += 1;
        batch.map(Some)
    }

    fn take(&mut self, local: u64) -> Result<Batch, FeedError> {
        let taken = self.wait_for(local)?;
        let (step, epoch) = (
            self.share.start_step + local,
            self.share.place(local * self.share.share).epoch,
        );
        let mut batch = Batch::gather(&self.ring, taken, local, step, epoch);
        let present = batch.present().iter().filter(|&&present| present).count();
        self.quarantine.enter(step, present, batch.rejects_mut())?;
        Ok(batch)
    }

    fn wait_for(&mut self, local: u64) -> Result<slot::Taken, FeedError> {
        let Self {
            ring,
            board,
            gauges,
            on_stall,
            ..
        } = self;
        gauges.turn(&gauges.consumer, Doing::WaitingForInput);
        let look = || match ring.take(local) {
            Some(taken) => Some(Ok(taken)),
            None => board.failure(local).map(Err),
        };
        let late = || {
            if let (Some(stall), Some(report)) = (gauges.stall(gauges::STALL / 2, ring.phase(local)), on_stall.as_mut())
            {
                report(&stall);
            }
        };
        let taken = board.consumer.wait_or(look, Some(gauges::STALL), late);
        gauges.turn(&gauges.consumer, Doing::Busy);
        if taken.is_ok() && gauges.batches.fetch_add(1, Ordering::Relaxed) == 0 {
            gauges.first_batch.store(gauges.now(), Ordering::Relaxed);
        }
        taken
    }

    /// What it reads.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Calls `report` once a minute while `next` waits in vain and a stage is to blame.
    pub fn on_stall(&mut self, report: impl FnMut(&Stall) + Send + 'static) {
        self.on_stall = Some(Box::new(report));
    }

    /// Sizes of the pass.
    pub fn shape(&self) -> &PassShape {
        &self.shape
    }

    /// Where the time of each stage went.
    pub fn gauges(&self) -> GaugesSnapshot {
        self.gauges.snapshot(self.ring.phase(self.next))
    }

    /// Where the slots are: with the workers, the trainer, or a device.
    pub fn slots(&self) -> SlotPhases {
        self.ring.phases()
    }

    /// From now on, or no longer, measures the parts of the workers' work: [`GaugesSnapshot::parts`].
    pub fn profile(&self, on: bool) {
        self.gauges.profile.store(on, Ordering::Relaxed);
    }

    /// The gauges for another thread, such as a progress line's.
    pub fn gauges_handle(&self) -> GaugesHandle {
        GaugesHandle::new(&self.gauges, &self.ring)
    }

    /// Bad samples known after the last batch that `next` gave.
    pub fn quarantine_state(&self) -> QuarantineState {
        self.quarantine.state(None).unwrap_or_default()
    }

    /// Bad samples known after the batch of `step`, for a trainer that has fetched later ones already; `None` if that
    /// batch is not among the last 256.
    pub fn quarantine_state_after(&self, step: u64) -> Option<QuarantineState> {
        self.quarantine.state(Some(step))
    }

    /// Continues a checkpoint's quarantine. Call it before the first `next`.
    pub fn restore_quarantine(&mut self, state: QuarantineState) {
        self.quarantine.restore(state);
    }
}

impl Drop for Feed {
    /// Stops and joins all threads; batches and bytes that are still out keep their memory.
    fn drop(&mut self) {
        self.board.stop();
        for thread in self.threads.drain(..) {
            // A panic has been reported through the board.
            let _ = thread.join();
        }
    }
}
